/*
 * Whom a message of an RC_ANY group wakes: one sleeper is called at a time, and it
 * calls the next.
 *
 * The writer publishes, fences, and looks at `called`.  While that is up, somebody
 * was posted and has not answered, and the writer posts nobody.  Else it puts it up,
 * takes the bit of a sleeper and posts it; if the bit has gone meanwhile it tries
 * the next, and if there is none it takes `called` down again.  A member that does so
 * looks again then: others have called nobody meanwhile.  Whoever ends a sleep, for whatever reason, takes `called`
 * down, fences, and looks for messages.  After each claim a member that sees another
 * message, and somebody who sleeps, and `called` down, calls in the same way.  Who
 * leaves posts one sleeper in any case: it may have been called for a message that it
 * has not looked for.
 *
 * A member works on a message for a moment or, as it likes, until all are claimed.
 * Nobody may depend on it: the others must get the rest.
 *
 * The store of `published` and the one that takes `called` down pass through store
 * buffers, which drain when they like; a fence waits for that.  The bits are
 * sequentially consistent here: sleep_wake.pml is about them.
 *
 * Configurations, all of which must hold.  A member that sleeps for ever while
 * a message is not claimed is an invalid end state.
 *
 *   (none)     each member may wake once without a token, as at the end of a slice.
 *   -DLEAVES   there are three members, and member 0 may leave after a sleep.
 *   -DSTOPS    of three members, member 0 may stop for ever, where it sleeps and after it was posted.
 *              A slice ends only when nothing else can happen, and one such end is
 *              enough for all messages: what comes after it depends on no other.
 *
 * Left out: what wakes whom for messages given back (groups_any.pml: `again`), what a
 * group does not want, the other balances, whose messages wake their owner, and more
 * than one thread of a member, which posts its own bit last.
 *
 * Mutants, and what each breaks:
 *
 *   NO_PASS_ON        who claims calls nobody: what was published before it answered,
 *                     and wakes nobody, waits as long as it works.
 *   ANSWER_AFTER_LOOK the answer comes after the claim, and the message that was
 *                     published between the two wakes nobody.
 *   ANSWER_NO_FENCE   likewise, by the store buffer.
 *   CALL_LATE         `called` goes up after the bit is taken: who ends its sleep between
 *                     the two finds it down, and nobody takes it down any more.
 *   CALLED_STAYS      the bit has gone, nobody else sleeps, and `called` stays up.
 *   GIVE_UP_BLIND     (THREE members and messages) a member that has found nobody does not
 *                     look again.
 *   LEAVE_IN_SILENCE  (LEAVES) who leaves posts nobody.
 *   ONLY_CALLED_ANSWER (STOPS) who wakes by itself leaves `called` up, for one that
 *                     stands still: each message waits for a slice.
 */

#if defined(LEAVES) || defined(STOPS) || defined(THREE)
#define MEMBERS 3
#else
#define MEMBERS 2
#endif
#ifdef THREE
#define MESSAGES 3
#else
#define MESSAGES 2
#endif

#define BIT(m) (1 << (m))
#define OTHERS (asleep & ~BIT(me))

byte published;          /* messages visible in memory */
byte buffered;           /* the writer's buffered store of it; 0: none */
byte head;               /* messages claimed */
byte asleep;             /* a bit for each member */
byte tokens[MEMBERS];
bool called;
bool answering[MEMBERS]; /* a store of `called` that is not visible yet */
byte slices;             /* ends of a slice, with STOPS */

active proctype memory()
{
    end:
    do
    :: atomic { buffered != 0 -> published = buffered; buffered = 0 }
    :: atomic { answering[0] -> called = false; answering[0] = false }
    :: atomic { answering[1] -> called = false; answering[1] = false }
#if MEMBERS == 3
    :: atomic { answering[2] -> called = false; answering[2] = false }
#endif
    od
}

/* Any sleeper among `which`. */
inline pick(which)
{
    if
    :: which & BIT(0) -> who = 0
    :: which & BIT(1) -> who = 1
    :: which & BIT(2) -> who = 2
    fi
}

#ifdef CALLED_STAYS
#define TAKE_DOWN skip
#else
#define TAKE_DOWN called = false
#endif

/* Post one sleeper among `which`, if there is one: `got`. */
inline call(which)
{
#ifndef CALL_LATE
    called = true;
#endif
    do
    :: atomic { (which) != 0 -> pick(which) }
        atomic { got = (asleep & BIT(who)) != 0; asleep = asleep & ~BIT(who) }
#ifdef CALL_LATE
        called = true;
#endif
        if
        :: atomic { got -> tokens[who]++; who = 0; break }
        :: atomic { else -> who = 0 }
        fi
    :: else -> break /* nobody sleeps */
    od
}

active proctype writer()
{
    byte message, who;
    bool got;

    for (message : 1 .. MESSAGES) {
        buffered = message;
        buffered == 0;
        if
        :: called
        :: else ->
            if
            :: asleep != 0 ->
                call(asleep);
                if
                :: atomic { got -> got = false }
                :: atomic { else -> TAKE_DOWN }
                fi
            :: else
            fi
        fi
    }
}

inline answer()
{
    if
#ifdef ONLY_CALLED_ANSWER
    :: called && took ->
#else
    :: called ->
#endif
        answering[me] = true
    :: else
    fi;
#ifndef ANSWER_NO_FENCE
    !answering[me]
#endif
}

inline pass_on()
{
#ifndef NO_PASS_ON
    do
    :: OTHERS != 0 && !called && head < published ->
        call(OTHERS);
        if
        :: atomic { got -> got = false; break }
#ifdef GIVE_UP_BLIND
        :: atomic { else -> TAKE_DOWN; break }
#else
        :: atomic { else -> TAKE_DOWN }
#endif
        fi
    :: else -> break
    od
#else
    skip
#endif
}

active [MEMBERS] proctype member()
{
    byte me = _pid - 2;
    byte who;
    bool got, took, was_set;
#ifdef LEAVES
    bool may_wake = me == 0; /* for the others' sakes it would take too much memory */
#else
    bool may_wake = true;
#endif

    do
    :: head == MESSAGES -> break
    :: atomic { head < published -> head++ }
#ifdef ANSWER_AFTER_LOOK
        answer();
#endif
        pass_on();
        if
        :: skip
        :: true -> head == MESSAGES /* a long message */
        fi
    :: else ->
        asleep = asleep | BIT(me);
        took = false;
        if
        :: head < published
        :: else ->
            if
            :: atomic { tokens[me] > 0 -> tokens[me]--; took = true }
            :: head == MESSAGES
#ifdef STOPS
            :: me == 0 -> goto stopped
            :: atomic { me != 0 && timeout -> slices++; assert(slices <= 1) }
#else
            :: may_wake -> may_wake = false
#endif
            fi
        fi;
#ifdef STOPS
        if
        :: me == 0 -> goto stopped
        :: skip
        fi;
#endif
        atomic {
            was_set = (asleep & BIT(me)) != 0;
            asleep = asleep & ~BIT(me)
        }
        atomic {
            if
            :: !was_set && !took && tokens[me] > 0 -> tokens[me]--
            :: else
            fi;
            was_set = false
        }
#ifndef ANSWER_AFTER_LOOK
        answer();
#endif
        took = false;
#ifdef LEAVES
        if
        :: me == 0 ->
#ifndef LEAVE_IN_SILENCE
            if
            :: atomic { OTHERS != 0 -> pick(OTHERS); asleep = asleep & ~BIT(who) }
                atomic { tokens[who]++; who = 0 }
            :: else
            fi;
#endif
            goto stopped
        :: skip
        fi
#endif
    od;
stopped:
    skip
}

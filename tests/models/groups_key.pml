/*
 * A work group that keeps the messages of a key in order (RC_KEY): partitions,
 * their owners and heirs.
 *
 * One partition, and all messages are of it.  Its word says who owns it, whether
 * a message of it is in hand, which slot is to have it afterwards, and how often
 * it has changed hands.  The owner, and nobody else, claims its messages, from a
 * position of its own:
 *
 *   look      load the partition's word: not mine, pass.  Its count is not the one
 *             that I have seen: look again from the start.  Something of it is in
 *             my hand and there is an heir, in part or not: pass, it gets the rest.
 *             (One that takes no part may be struck: then begin anew at the floor.)
 *             Load the lease: FREE or RETURNED, claim it; DONE or KEPT or mine, pass;
 *             CLAIMED by another: load the partition's word again.  It has changed
 *             hands: pass.  It has not: one that was evicted has claimed it; make
 *             it RETURNED, `again` up, and look at it once more
 *   claim     partition mine, idle -> mine, busy;  then the lease, by compare-and-
 *             swap; then look whether I was evicted, and if so give it back
 *   finish    lease DONE, or KEPT as long as its bytes are used;  nothing else of
 *             the partition in hand: mine, busy -> mine, idle, or, if it has an
 *             heir that takes part, the heir's; if that one has gone, look at all
 *             that was passed over for it
 *   take      another's, idle -> mine, idle;  another's, busy -> I am the heir;
 *             of one that takes no part: any word -> mine, idle
 *   sweep     of one that is dead, evicted or leaving: its leases RETURNED, KEPT ones
 *             DONE; then members[] says GONE: it takes no part; `again` up
 *
 * A member may take the partition from one that lives, or make itself the heir,
 * some times in all: when it does so stands for any rule of sharing.  Of nobody's
 * it takes it always.  Up to two messages may be in one's hand.
 *
 * What may happen to member 0 between any two steps is chosen: -DDIES, -DSTOPS
 * (for good, its process lives), -DEVICTS, -DLEAVES, -DGIVES (back all it has,
 * once), -DKEEPS (uses the bytes of what it has acknowledged for a while).  There
 * is another, or with -DTHREE two; with -DJOINER the second comes after member 0
 * and into its slot.
 *
 * Proved:
 *
 *   - a message is handed out only to one that was not evicted before, while
 *     nobody else who lives and was not evicted has any of the partition, and
 *     when all before it are done, or in the same hand;
 *   - nobody who was not evicted is taken for a liar;
 *   - when nothing can happen any more, every message is done, but for those that
 *     wait for one that stopped and was not evicted.
 *
 * All of these must hold:
 *
 *   -DLEAVES -DGIVES -DDIES            -DTHREE -DONE -DDIES (one message)
 *   -DEVICTS                           -DJOINER -DDIES
 *   -DMANY -DFEW -DLEAVES (three messages)
 *   -DEVICTS -DSTOPS -DKEEPS -DFEW     (the partition changes hands once less)
 *   -DEVICTS -DDIES -DKEEPS -DFEW
 *
 * and with -DPROMPT: -DLEAVES -DDIES, -DEVICTS -DFEW.  There nobody looks at a
 * floor that does not move, which each member does now and then.  So whoever gains
 * the partition must look at what lies behind its position for that alone: who
 * takes it begins anew, and who hands it to an heir raises `again`.  Without these
 * two all the rest still holds, as long as somebody looks at the floor
 * (-DGAIN_NO_LOOK -DHEIR_NOT_CALLED, with -DLEAVES -DDIES, and with -DEVICTS).
 *
 * Memory is sequentially consistent.
 *
 * Left out: laps and the floor (groups_any.pml), waking (groups_wake.pml), more
 * than one thread of a process, and words that nobody writes.
 *
 * That members[] says GONE after the sweep and not before is not needed for any of
 * this, since who meets a lease of the dead makes it RETURNED itself.
 *
 * Mutants, and what each breaks:
 *
 *   GAIN_NO_LOOK        (PROMPT) who takes the partition goes on at its position:
 *                       what it passed over, since it was not its own, is left.
 *   HEIR_NOT_CALLED     (PROMPT) likewise the heir.
 *   HEIR_GONE           (MANY, FEW, LEAVES) the owner passes over what is an heir's only
 *                       while that one takes part, and then goes on behind it.
 *   HEIR_FORGOTTEN      (MANY, FEW, LEAVES) the heir has gone, and the owner that strikes it
 *                       does not begin anew at what it has passed over for it.
 *   LET_GO_NO_LOOK      (PROMPT, LEAVES) the heir has gone, and who lets go of the
 *                       partition does not look at what it has passed over for it.
 *   POSITION_STAYS      (GIVES) who finds that the partition has changed hands does
 *                       not begin anew: it claims a later message first.
 *   TAKE_BUSY           the partition is taken while a message of it is in hand.
 *   CLAIM_IDLE          the owner does not say that one is.
 *   RELEASE_FIRST       it is idle before the lease is DONE.
 *   LET_GO_OF_ANYBODYS  (THREE, ONE, FEW, EVICTS) who was evicted makes idle what
 *                       is another's by now, and in hand there: a third takes it.
 *   KEPT_IS_CLAIMED     (KEEPS) a lease that the last owner still keeps is taken for
 *                       a lie.
 *   VOID_AT_ONCE        a lease CLAIMED by another is taken for a lie, without a
 *                       second look at the partition: it was just taken from us.
 *   VOID_AND_PASS       (EVICTS) after such a lie the look goes on at the next
 *                       message.
 *   NO_UNDO             (EVICTS) a member does not look whether it was evicted before
 *                       its claim.
 */

#ifdef ONE
#define MESSAGES 1
#elif defined(MANY)
#define MESSAGES 3
#else
#define MESSAGES 2
#endif
#define LAST (MESSAGES - 1)
#define MIDDLE (MESSAGES / 2)
#if defined(THREE) || defined(JOINER)
#define MEMBERS 3
#else
#define MEMBERS 2
#endif
#define SURVIVOR (MEMBERS - 1)
#ifdef FEW
#define TAKES 1
#else
#define TAKES 2
#endif

#define FREE 0
#define CLAIMED 1
#define KEPT 2
#define RETURNED 3
#define DONE 4
#define LEASE_WORD(who, times, state) ((who) << 6 | (times) << 3 | (state))
#define WHO(w) ((w) >> 6)
#define TIMES(w) ((w) >> 3 & 7)
#define STATE(w) ((w) & 7)
#define AS(w, state) (((w) & ~7) | (state))

#define PARTITION_WORD(changes, who) ((changes) << 5 | (who) + 1)
#define BUSY 16
#define OWNER(w) (((w) & 3) - 1)
#define OWNED(w) (((w) & 3) != 0)
#define HEIR(w) ((w) >> 2 & 3)      /* its slot + 1 */
#define WITH_HEIR(w, slot1) (((w) & ~12) | (slot1) << 2)
#define CHANGES(w) ((w) >> 5)

#ifdef JOINER
#define SLOT(m) ((m) == 1 -> 0 : (m))
#else
#define SLOT(m) (m)
#endif
#define GONE 8
#define TAKES_PART(m) (entry[SLOT(m)] == (m) + 1)
#define HEIR_TAKES_PART(w) (HEIR(w) != 0 && entry[HEIR(w) - 1] != 0 && entry[HEIR(w) - 1] < GONE)

#ifdef DIES
#define MORTAL (me == 0)
#else
#define MORTAL false
#endif
#ifdef STOPS
#define STOPPABLE (me == 0)
#else
#define STOPPABLE false
#endif

byte lease[MESSAGES];
short partition;
byte published, again;
byte entry[MEMBERS];       /* members[]: of each slot, who is in + 1, and GONE */
byte takes;

bool dead[MEMBERS];        /* or has left and freed its slot */
bool evicted[MEMBERS];
bool stopped[MEMBERS];
bool gave_back;

/* What is true, whatever the words say. */
byte holds[MEMBERS];       /* a bit for each message */
bool done[MESSAGES];

#define BIT(s) (1 << (s))
#define OTHERS_HOLD \
    (me != 0 && !evicted[0] && holds[0] != 0 || me != 1 && !evicted[1] && holds[1] != 0 || \
     MEMBERS == 3 && me != SURVIVOR && holds[SURVIVOR] != 0)

/* Between any two steps of those who may. */
#define MAY_END \
    if \
    :: true \
    :: mortal -> atomic { holds[me] = 0; dead[me] = true; goto gone } \
    :: stops -> atomic { stopped[me] = true; goto gone } \
    fi

inline swap_partition(with)
{
    atomic {
        if
        :: partition == pword -> partition = with; swapped = true
        :: else -> swapped = false
        fi
    }
}

/* None of it is in hand any more. */
inline let_go()
{
    do
    :: atomic {
        pword = partition;
        heir = 0;
        if
#ifdef LET_GO_OF_ANYBODYS
        :: false -> skip
#else
        :: !(OWNED(pword) && OWNER(pword) == me) -> break
#endif
        :: else
        fi;
        if
        :: HEIR_TAKES_PART(pword) && HEIR(pword) != SLOT(me) + 1 -> heir = entry[HEIR(pword) - 1]
        :: else
        fi
       }
       MAY_END;
       if
       :: heir != 0 -> swap_partition(PARTITION_WORD(CHANGES(pword) + 1, heir - 1))
       :: else -> swap_partition(WITH_HEIR(pword, 0) & ~BUSY)
       fi;
       if
       :: swapped ->
            MAY_END;
            if
#ifndef HEIR_NOT_CALLED
            :: heir != 0 -> again++
#endif
#ifndef LET_GO_NO_LOOK
            :: heir == 0 && HEIR(pword) != 0 -> next = 0
#endif
            :: else
            fi;
            break
       :: else
       fi
    od;
    atomic { pword = 0; heir = 0; swapped = false }
}

inline unhold()
{
    held--;
    if
    :: held == 0 -> let_go()
    :: else
    fi
}

/* Make it mine, or name myself the heir. */
inline take_partition()
{
    atomic {
        pword = partition;
        is_free = !OWNED(pword) || !TAKES_PART(OWNER(pword))
    }
    MAY_END;
    if
    :: is_free || !(pword & BUSY) ->
        swap_partition(PARTITION_WORD(CHANGES(pword) + 1, me));
#ifndef GAIN_NO_LOOK
        if
        :: swapped -> next = 0
        :: else
        fi
#endif
    :: else ->
#ifdef TAKE_BUSY
        swap_partition(PARTITION_WORD(CHANGES(pword) + 1, me))
#else
        swap_partition(WITH_HEIR(pword, SLOT(me) + 1))
#endif
        if
        :: swapped && OWNER(pword) == me -> next = 0
        :: else
        fi
    fi;
    atomic { pword = 0; is_free = false; swapped = false }
}

#define CAN_TAKE \
    ((!OWNED(partition) || !TAKES_PART(OWNER(partition))) || \
     takes < TAKES && HEIR(partition) != SLOT(me) + 1 && \
     (OWNER(partition) != me || HEIR_TAKES_PART(partition)))

inline sweep(m)
{
    for (k : 0 .. MESSAGES - 1) {
        word = lease[k];
        if
        :: WHO(word) == m && STATE(word) == CLAIMED ->
            atomic {
                if
                :: lease[k] == word -> lease[k] = AS(word, RETURNED); swept = true
                :: else
                fi
            }
            MAY_END
        :: WHO(word) == m && STATE(word) == KEPT ->
            atomic {
                if
                :: lease[k] == word -> lease[k] = AS(word, DONE)
                :: else
                fi
            }
            MAY_END
        :: else
        fi
    }
    atomic { word = 0; k = 0 }
    mark_gone(m);
    MAY_END
}

inline mark_gone(m)
{
    atomic {
        if
        :: entry[SLOT(m)] == m + 1 -> entry[SLOT(m)] = m + 1 | GONE; first = true
        :: else
        fi
    }
}

inline forget(m)
{
    atomic {
        if
        :: entry[SLOT(m)] == (m + 1 | GONE) -> entry[SLOT(m)] = 0
        :: else
        fi
    }
}

inline bury(m)
{
    atomic { is_dead = dead[m]; whom = m }
    sweep(whom);
    if
    :: swept || first || is_dead -> again++; MAY_END
    :: else
    fi;
    if
    :: is_dead -> forget(whom)
    :: else
    fi;
    atomic { is_dead = false; swept = false; first = false; whom = 0 }
}

#define HAS(m, s) ((STATE(lease[s]) == CLAIMED || STATE(lease[s]) == KEPT) && WHO(lease[s]) == (m))
#define OWNS_LEASE(m) (HAS(m, 0) || HAS(m, MIDDLE) || HAS(m, LAST))
#define IS_LEFT(s) ((s) < published && (STATE(lease[s]) == FREE || STATE(lease[s]) == RETURNED))
#define BURIABLE(m) (me != (m) && (entry[SLOT(m)] & ~GONE) == (m) + 1 && \
    (dead[m] || evicted[m] && (entry[SLOT(m)] < GONE || OWNS_LEASE(m))))

/* Judge the message at the position: claim it, pass, or look again. */
inline look()
{
    atomic { found = false; pword = partition; word = 0;
        if
        :: !(OWNED(pword) && OWNER(pword) == me) -> next++
        :: else ->
            if
            :: seen_changes != CHANGES(pword) ->
#ifdef POSITION_STAYS
                seen_changes = CHANGES(pword)
#else
                seen_changes = CHANGES(pword); next = 0
#endif
            :: else ->
                if
#ifdef HEIR_GONE
                :: held != 0 && HEIR_TAKES_PART(pword) && HEIR(pword) != SLOT(me) + 1 -> next++
#else
                :: held != 0 && HEIR(pword) != 0 && HEIR(pword) != SLOT(me) + 1 -> next++
                :: held != 0 && HEIR(pword) != 0 && HEIR(pword) != SLOT(me) + 1 &&
                    !HEIR_TAKES_PART(pword) ->
                    partition = WITH_HEIR(pword, 0);
#ifndef HEIR_FORGOTTEN
                    next = 0
#endif
#endif
                :: paused -> next++
                :: else -> found = true
                fi
            fi
        fi
    }
    if
    :: found ->
        word = lease[next];
        if
        :: atomic { STATE(word) == FREE || STATE(word) == RETURNED -> skip } claim()
#ifdef KEPT_IS_CLAIMED
        :: atomic { STATE(word) == DONE || STATE(word) == CLAIMED && WHO(word) == me -> next++ }
#else
        :: atomic { STATE(word) == DONE || STATE(word) == KEPT ||
                    STATE(word) == CLAIMED && WHO(word) == me -> next++ }
#endif
        :: else ->
            if
#ifdef VOID_AT_ONCE
            :: true ->
#else
            :: CHANGES(partition) == CHANGES(pword) ->
#endif
                atomic {
                    if
                    :: lease[next] == word ->
                        lease[next] = LEASE_WORD(me, 0, RETURNED);
                        swapped = true;
                        assert(!TAKES_PART(WHO(word)) || evicted[WHO(word)])
                    :: else
                    fi
                }
                MAY_END;
                if
                :: swapped -> again++
                :: else
                fi;
#ifdef VOID_AND_PASS
                next++
#endif
#ifndef VOID_AT_ONCE
            :: else -> next++
#endif
            fi
        fi
    :: else
    fi;
    atomic { found = false; pword = 0; swapped = false; mine = false; word = 0 }
}

/* The message at the position, whose lease was `word`. */
inline claim()
{
    atomic {
        pword = partition;
        mine = OWNED(pword) && OWNER(pword) == me;
        swapped = mine
    }
#ifndef CLAIM_IDLE
    if
    :: mine && !(pword & BUSY) -> swap_partition(pword | BUSY)
    :: else
    fi;
#endif
    if
    :: mine && swapped ->
        held++;
        MAY_END;
        atomic {
            if
            :: lease[next] == word ->
                word = LEASE_WORD(me, (STATE(word) == FREE -> 1 : TIMES(word) + 1), CLAIMED);
                lease[next] = word
            :: else -> mine = false
            fi
        }
        if
        :: mine ->
            MAY_END;
            atomic {
                if
#ifdef NO_UNDO
                :: true ->
#else
                :: !evicted[me] ->
#endif
                    assert(!evicted[me]);
                    assert(!done[next] && !OTHERS_HOLD && (holds[me] & BIT(next)) == 0);
                    for (k : 0 .. MESSAGES - 1) {
                        assert(k >= next || done[k] || (holds[me] & BIT(k)) != 0)
                    }
                    k = 0;
                    holds[me] = holds[me] | BIT(next);
                    words[next] = word;
                    next++;
                    mine = false
                :: else
                fi
            }
            if
            :: mine ->      /* undo */
                atomic {
                    if
                    :: lease[next] == word ->
                        lease[next] = LEASE_WORD(me, TIMES(word) - 1, RETURNED)
                    :: else -> mine = false
                    fi
                }
                MAY_END;
                if
                :: mine -> again++
                :: else
                fi;
                unhold()
            :: else
            fi
        :: else -> unhold()
        fi
    :: else
    fi
}

/* Acknowledge one of those in hand. */
inline finish(s, state)
{
#ifdef RELEASE_FIRST
    unhold();
#endif
    MAY_END;
    atomic {
        if
        :: lease[s] == words[s] ->
            lease[s] = AS(words[s], state);
            done[s] = true;
            if
            :: state == KEPT -> kept = s + 1
            :: else
            fi
        :: else
        fi;
        holds[me] = holds[me] & ~BIT(s);
        words[s] = 0
    }
#ifndef RELEASE_FIRST
    MAY_END;
    unhold()
#endif
}

inline release()
{
    atomic {
        if
        :: STATE(lease[kept - 1]) == KEPT && WHO(lease[kept - 1]) == me ->
            lease[kept - 1] = AS(lease[kept - 1], DONE)
        :: else
        fi;
        kept = 0
    }
}

/* All that is in hand, the first first. */
inline give_back()
{
    for (g : 0 .. MESSAGES - 1) {
        if
        :: (holds[me] & BIT(g)) != 0 ->
            atomic {
                if
                :: lease[g] == words[g] -> lease[g] = AS(words[g], RETURNED)
                :: else
                fi;
                holds[me] = holds[me] & ~BIT(g);
                words[g] = 0
            }
            MAY_END;
            unhold()
        :: else
        fi
    }
    atomic { g = 0; next = 0; paused = true }
    MAY_END;
    again++
}

inline leave()
{
    atomic { holds[me] = 0; was_evicted = evicted[me] }
    sweep(me);
    forget(me);
    MAY_END;
    if
    :: !was_evicted -> again++
    :: else
    fi;
    dead[me] = true;
    goto gone
}

active [MEMBERS] proctype member()
{
    byte me = _pid;
    byte next, seen, held, seen_changes, k, g, whom, heir, kept;
    byte word, words[MESSAGES];
    short pword;
    bool found, mine, swapped, is_free, swept, first, is_dead, was_evicted, paused;
    bool mortal = MORTAL, stops = STOPPABLE;

#ifdef JOINER
    if
    :: me == 1 ->
        end_before:
        dead[0];
        if
        :: entry[0] != 0 -> sweep(0); swept = true
        :: else
        fi;
        entry[0] = me + 1;
        MAY_END;
        seen = again - 1;
        if
        :: swept -> again++; swept = false; first = false
        :: else
        fi
    :: else -> atomic { entry[SLOT(me)] = me + 1 }
    fi;
#else
    atomic { entry[me] = me + 1 }
#endif
    end:
    do
    :: atomic { !evicted[me] && TAKES_PART(me) && again != seen ->
                seen = again; next = 0 }
    :: atomic { !evicted[me] && TAKES_PART(me) && next < published && again == seen -> skip }
        look()
    :: atomic { !evicted[me] && TAKES_PART(me) && CAN_TAKE ->
                takes = (OWNED(partition) && TAKES_PART(OWNER(partition)) -> takes + 1 : takes) }
        take_partition()
    :: atomic { paused -> paused = false; next = 0 }
    :: !evicted[me] && BURIABLE(0) -> bury(0)
#if MEMBERS == 3
    :: !evicted[me] && BURIABLE(1) -> bury(1)
#endif
#ifndef PROMPT
    :: atomic { next > 0 && held == 0 && !evicted[me] && TAKES_PART(me) && OWNED(partition) &&
                OWNER(partition) == me && again == seen && next == published &&
                (IS_LEFT(0) || IS_LEFT(MIDDLE) || IS_LEFT(LAST)) ->
                next = 0 }
#endif
    :: (holds[me] & 1) != 0 -> finish(0, DONE)
#ifndef ONE
    :: (holds[me] & 2) != 0 -> finish(1, DONE)
#endif
#ifdef MANY
    :: (holds[me] & 4) != 0 -> finish(2, DONE)
#endif
#ifdef KEEPS
    :: (holds[me] & 1) != 0 && me == 0 -> finish(0, KEPT)
    :: kept != 0 -> release()
#endif
#ifdef GIVES
    :: holds[me] != 0 && me == 0 && !gave_back -> gave_back = true; give_back()
#endif
#ifdef LEAVES
    :: me == 0 -> leave()
#endif
    :: evicted[me] || !TAKES_PART(me) ->
        if
        :: leave()
        :: atomic { stopped[me] = true; goto gone }
        fi
    od;
gone:
    atomic {
        next = 0; seen = 0; held = 0; seen_changes = 0; k = 0; g = 0; whom = 0; heir = 0; kept = 0;
        word = 0; words[0] = 0; words[MIDDLE] = 0; words[LAST] = 0; pword = 0; found = false; mine = false;
        swapped = false; is_free = false; swept = false; first = false; is_dead = false;
        was_evicted = false; paused = false
    }
}

active proctype writer()
{
    end:
    do
    :: atomic { published < MESSAGES -> published++ }
    od
}

#ifdef EVICTS
active proctype evictor()
{
    end:
    atomic { !dead[0] && !stopped[0] -> evicted[0] = true }
}
#endif

/* Nothing can happen any more. */
active proctype judge()
{
    byte s;

    timeout;
    assert(published == MESSAGES);
    do
    :: s < published -> assert(done[s] || stopped[0] && !evicted[0]); s++
    :: else -> break
    od
}

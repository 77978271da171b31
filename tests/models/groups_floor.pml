/*
 * The floor of a work group, and the writer's gate: what is handed out is not
 * overwritten, and what is wanted is not overwritten before it is done.
 *
 * To the writer a group's floor is what a cursor is for a reader that blocks, as
 * long as the state of the group's row is ACTIVE.  It takes the least of them; if
 * that is above its private gate it stores some gate up to there, fences, looks
 * again, and lowers the gate to what it finds; then it overwrites.  Before it
 * looks it moves the floor over messages that the group does not want.  It
 * believes no floor that goes back: it remembers the highest.
 *
 * Members share the floor.  Who has acknowledged something moves it over what is
 * done or not wanted, by compare-and-swap.  It reads leases and descriptors
 * meanwhile which the writer may overwrite if the group has just lost its hold;
 * then what it reads of them may be anything.
 *
 *   join    under a lock, which the kernel frees when its holder dies.
 *           The state is not ACTIVE: if there is no group, floor = start;  then the
 *           group's bit on; state HOLDING, which the writer minds as it does
 *           ACTIVE;  fence;  floor = max(floor, gate), and what lies between goes to
 *           the gap;  HOLDING -> ACTIVE.  Who dies in here leaves it to the next to
 *           repeat.  Whose group is ACTIVE does not touch the floor: a gate above it
 *           may be one that the writer has not looked at twice, and takes back.
 *           Then: my slot shows that I am of the group;  fence;  is the state
 *           ACTIVE still?
 *   demote  the writer ends the group's hold: state -> DEMOTED;  fence;  evict all
 *           whose slot shows the group.  It overwrites nothing before that is done.
 *   claim   lease FREE -> CLAIMED;  copy the descriptor;  and if my slot or the state
 *           has changed then, I do not have it
 *
 * Members 0 and 1 join once each, when they like, and leave; with -DDIES member 0
 * dies when it likes.  With -DDEMOTES the writer demotes once, when it likes.
 * Which messages the group wants, if not all (-DALL_WANTED), and where it starts,
 * is chosen.  All of these must hold: (none), -DDIES, -DDEMOTES, -DDEMOTES
 * -DALL_WANTED -DDIES.
 *
 * Proved:
 *
 *   - nothing is overwritten that a member has which was not evicted, and it was
 *     whole when the member copied its descriptor;
 *   - while the group has its hold, from the end of a join to the next demotion,
 *     nothing at or above the floor is overwritten; and the floor passes only what
 *     is done, not wanted, counted in the gap, or gone already;
 *   - the floor never goes back;
 *   - when nothing can happen any more, and there is a member, all messages were put,
 *     and each one from the start on is done, not wanted, or counted in the gap.
 *
 * The memory is weaker than x86.  The writer's store of the gate, and the
 * joiner's bit, state and slot, become visible when the process `memory` likes,
 * bit before state; a fence waits until the fencing process's have.  Compare-and-
 * swaps of floor, state and leases happen at once.
 *
 * Left out: what a successor of the writer finds (it evicts the members of a
 * group that it finds DEMOTED; nothing is overwritten between), removal of a group
 * and the row's next one, the slots' own reuse (reaping.pml), laps, sweeping step by
 * step (groups_any.pml), floors that lie, and two things that can make the gap too
 * small: who dies between moving the floor and counting, and one that was evicted
 * and takes for unwanted what it reads while it is overwritten.
 *
 * Mutants, and what each breaks:
 *
 *   WRITER_NO_FENCE   the writer's second look overtakes its store of the gate.
 *   NO_SECOND_LOOK    or there is none.
 *   JOINER_NO_FENCE   the load of the gate overtakes the state.
 *   GATE_FIRST        the joiner loads the gate before it shows the state.
 *   NO_CORRECTION     it leaves the floor where it is.
 *   HOLD_ALWAYS       there is no HOLDING, and each that joins corrects the floor: with
 *                     a gate that the writer has not looked at twice, over what
 *                     another has in hand; and the second look finds nothing wrong.
 *   ACTIVE_AT_ONCE    (DIES) there is no HOLDING, and who finds the group ACTIVE does
 *                     not correct the floor: who made it has died before it could.
 *   FLOOR_BACK        who finds the floor above `published` sets it back, though what
 *                     lies there was committed, and done.
 *   SLOT_NO_FENCE     (DEMOTES, ALL_WANTED) the joiner looks at the state before its
 *                     slot is visible, and the group is revived before it looks again.
 *   SLOTS_FIRST       (DEMOTES) the demoter looks at the slots before the state changes.
 *   CLEAR_BIT         (DEMOTES) it clears the group's bit at its end: the group has
 *                     been revived meanwhile.
 *   PASS_BLIND        the writer stores the floor that it moves over the unwanted.
 *   ADVANCE_BLIND     a member stores it.
 *   NO_CHECK          (DEMOTES) a member does not look at slot and state after its
 *                     claim.
 *   CHECK_FIRST       (DEMOTES) it looks before it copies the descriptor.
 */

#define MEMBERS 2
#define SLOTS 2
#define LAST 3             /* sequences 0 .. LAST - 1 */
#ifdef DEMOTES
#define DEMOTIONS 1
#else
#define DEMOTIONS 0
#endif
#ifdef ALL_WANTED
#define MAY_BE_UNWANTED false
#else
#define MAY_BE_UNWANTED true
#endif

#define NONE 0             /* of the row, and of slots */
#define ACTIVE 1
#define DEMOTED 2
#define EVICTED 3
#define HOLDING 4
#define FREE 0             /* of leases; CLAIMED by a member: its number + 1 */
#define DONE 255
#define EMPTY 255
#define MAX(a, b) ((a) > (b) -> (a) : (b))

#if defined(HOLD_ALWAYS) || defined(ACTIVE_AT_ONCE)
#define SHOWN_AS ACTIVE
#else
#define SHOWN_AS HOLDING
#endif

byte committed, published;
byte private_gate;         /* below it everything may be overwritten */
byte gate, gate_buffer = EMPTY;

byte state = NONE;         /* of the row */
bool shown;                /* its bit among the groups */
bool shown_pending, state_pending;
byte floor;
byte slot[MEMBERS];        /* ACTIVE: shows the group */
bool slot_pending[MEMBERS];
byte lock = EMPTY;
byte lease[LAST];

/* What is true. */
bool held;                 /* the group has its hold */
byte start;                /* what lies below was never promised */
bool wanted[LAST], done[LAST], told[LAST];
byte has[MEMBERS] = EMPTY;
bool over[MEMBERS];        /* dead, or has left */
bool garbled;              /* the floor went over what was read while it was overwritten */

#ifdef DIES
#define MORTAL (me == 0)
#else
#define MORTAL false
#endif

#define MAY_DIE \
    if \
    :: true \
    :: mortal -> goto dead \
    fi

active proctype memory()
{
    end:
    do
    :: atomic { gate_buffer != EMPTY -> gate = gate_buffer; gate_buffer = EMPTY }
    :: atomic { shown_pending -> shown = true; shown_pending = false }
    :: atomic { state_pending && !shown_pending -> state = SHOWN_AS; state_pending = false }
    :: atomic { slot_pending[0] -> slot[0] = ACTIVE; slot_pending[0] = false }
    :: atomic { slot_pending[1] -> slot[1] = ACTIVE; slot_pending[1] = false }
    od
}

#define MINDS (shown && (state == ACTIVE || state == HOLDING))

/* The lowest floor, at most `published`. */
inline look()
{
    if
    :: MINDS ->
        atomic {
            seen = MAX(seen, floor);
            least = (seen < published -> seen : published)
        }
    :: !MINDS -> least = published
    fi
}

/* What the floor passes on its way up. */
inline move_floor(from, to)
{
    i = from;
    do
    :: i < to ->
        assert(done[i] || !wanted[i] || told[i] || i < private_gate);
        garbled = garbled || wanted[i] && !done[i];
        i++
    :: else -> break
    od;
    i = 0;
    assert(to >= floor);
    floor = to
}

inline overwrite(upto)
{
    atomic {
        assert(has[0] == EMPTY || slot[0] == EVICTED || has[0] >= upto);
        assert(has[1] == EMPTY || slot[1] == EVICTED || has[1] >= upto);
        assert(!held || upto <= floor);
        private_gate = upto
    }
}

inline evict(m)
{
    atomic {
        if
        :: slot[m] == ACTIVE -> slot[m] = EVICTED
        :: else
        fi
    }
}

inline pass_unwanted()
{
    if
    :: atomic { MINDS && floor >= private_gate ->
        from = floor;
        wish = floor;
        do
        :: wish < published && !wanted[wish] -> wish++
        :: else -> break
        od
       }
       atomic {
        if
#ifdef PASS_BLIND
        :: wish > from -> move_floor(from, wish)
#else
        :: wish > from && floor == from -> move_floor(from, wish)
#endif
        :: else
        fi;
        from = 0; wish = 0
       }
    :: !(MINDS && floor >= private_gate)
    fi
}

inline make_room()
{
    pass_unwanted();
    look();
    if
    :: least <= private_gate
    :: else ->
        select (wish : private_gate + 1 .. least);
        gate_buffer = wish;
#ifndef WRITER_NO_FENCE
        gate_buffer == EMPTY;
#endif
#ifndef NO_SECOND_LOOK
        look();
        if
        :: least < wish ->
            wish = MAX(private_gate, least);
            gate_buffer = wish
        :: else
        fi;
#endif
        overwrite(wish)
    fi;
    atomic { least = 0; wish = 0 }
}

inline demote()
{
#ifdef SLOTS_FIRST
    evict(0);
    evict(1);
#endif
    atomic {
        swapped = (state == ACTIVE || state == HOLDING);
        if
        :: swapped -> state = DEMOTED; held = false
        :: else
        fi
    }
    if
    :: swapped ->
        gate_buffer == EMPTY;
#ifndef SLOTS_FIRST
        evict(0);
        evict(1);
#endif
#ifdef CLEAR_BIT
        shown = false;
#endif
        swapped = false
    :: else
    fi
}

active proctype writer()
{
    byte least, seen, wish, i, from, demotions;
    bool swapped;

    end:
    do
    :: atomic {
        committed < LAST && committed < private_gate + SLOTS ->
        if
        :: wanted[committed] = true
        :: MAY_BE_UNWANTED
        fi;
        committed++
       }
    :: atomic { published < committed -> published = committed }
    :: published == committed && published < LAST && private_gate < published &&
       (!MINDS || MAX(seen, floor) > private_gate || floor == private_gate && !wanted[floor]) ->
        make_room()
    :: atomic { demotions < DEMOTIONS && (state == ACTIVE || state == HOLDING) -> demotions++ }
        demote()
    od
}

inline count_missed(upto)
{
    i = floor;
    do
    :: i < upto -> told[i] = true; i++
    :: else -> break
    od;
    i = 0
}

/* The lock is held, and all that its last holder stored is visible. */
inline hold()
{
    if
    :: state == NONE ->
        select (at : 0 .. published);
        atomic { floor = at; start = at; at = 0 }
        MAY_DIE
    :: else
    fi;
#ifdef GATE_FIRST
    g = gate;
#endif
    shown_pending = true;
    MAY_DIE;
    state_pending = true;
    MAY_DIE;
#ifndef JOINER_NO_FENCE
    !shown_pending && !state_pending;
#endif
    p = published;
#ifndef GATE_FIRST
    g = gate;
#endif
    MAY_DIE;
    atomic {
        if
#ifdef FLOOR_BACK
        :: floor > p -> assert(p >= floor)
#endif
#ifndef NO_CORRECTION
        :: floor < g -> count_missed(g); floor = g
#endif
        :: else
        fi;
        g = 0; p = 0
    }
    MAY_DIE;
    atomic {
        if
        :: state == HOLDING -> state = ACTIVE
        :: else
        fi;
        held = held || state == ACTIVE || state_pending
    }
}

/* Who stores it sees it at once. */
#define I_AM_IN (slot_pending[me] || slot[me] == ACTIVE)

/* Below the gate a descriptor may be anything. */
inline advance()
{
    if
    :: I_AM_IN && state == ACTIVE ->
        atomic { from = floor; at = from }
        do
        :: atomic { at < committed && at < from + SLOTS && lease[at] == DONE -> at++ }
        :: atomic { at < committed && at < from + SLOTS && lease[at] == FREE &&
                    (!wanted[at] || at < private_gate) -> at++ }
        :: at >= committed || at >= from + SLOTS || lease[at] != DONE && wanted[at] -> break
        od;
        atomic {
            if
#ifdef ADVANCE_BLIND
            :: at > from -> move_floor(from, at)
#else
            :: at > from && floor == from -> move_floor(from, at)
#endif
            :: else
            fi;
            at = 0; from = 0
        }
    :: else
    fi
}

#define WHOSE(s) (lease[s] - 1)
#define CAN_CLAIM(s) \
    (lease[s] == FREE || lease[s] != DONE && (over[WHOSE(s)] || slot[WHOSE(s)] == EVICTED))
#define FINDS(s) ((s) < committed && (s) >= floor && wanted[s] && CAN_CLAIM(s))
#define CHANGED (!I_AM_IN || state != ACTIVE)

inline check()
{
    if
    :: I_AM_IN
    :: else -> goto dead
    fi;
    if
    :: state == ACTIVE
    :: else -> goto dead
    fi
}

inline handle(s)
{
    at = s;
    atomic {
        if
        :: CAN_CLAIM(at) -> lease[at] = me + 1; mine = true
        :: else
        fi
    }
    if
    :: mine ->
        MAY_DIE;
#ifdef CHECK_FIRST
        check();
#endif
        whole = (at >= private_gate);
#if !defined(CHECK_FIRST) && !defined(NO_CHECK)
        check();
#endif
        atomic { assert(whole); has[me] = at; whole = false }
        MAY_DIE;
        atomic {
            if
            :: lease[at] == me + 1 -> lease[at] = DONE; done[at] = true
            :: else
            fi;
            has[me] = EMPTY; at = 0; mine = false
        }
        MAY_DIE;
        advance()
    :: else -> at = 0
    fi
}

active [MEMBERS] proctype member()
{
    byte me = _pid - 2;
    byte at, g, p, i, from;
    bool mine, whole, mortal = MORTAL;

    atomic { lock == EMPTY && !shown_pending && !state_pending -> lock = me }
#ifdef HOLD_ALWAYS
    hold();
#else
    if
    :: state == ACTIVE
    :: else -> hold()
    fi;
#endif
    slot_pending[me] = true;
#ifndef SLOT_NO_FENCE
    !slot_pending[me];
#endif
    if
    :: state == ACTIVE
    :: else -> goto dead
    fi;
    lock = EMPTY;

    end:
    do
    :: CHANGED -> goto dead
    :: !CHANGED && FINDS(0) -> handle(0)
    :: !CHANGED && FINDS(1) -> handle(1)
    :: !CHANGED && FINDS(2) -> handle(2)
    :: !CHANGED && floor < committed && (lease[floor] == DONE || !wanted[floor]) -> advance()
    :: goto dead            /* leaves */
    od;
dead:
    atomic {
        !slot_pending[me];
        over[me] = true; has[me] = EMPTY;
        if
        :: lock == me -> lock = EMPTY
        :: else
        fi;
        at = 0; g = 0; p = 0; i = 0; from = 0; mine = false; whole = false
    }
}

/* Nothing can happen any more. */
active proctype judge()
{
    byte s;

    timeout;
    if
    :: over[0] && over[1]
    :: else ->
        assert(published == LAST);
        do
        :: s < LAST -> assert(done[s] || !wanted[s] || told[s] || s < start || garbled); s++
        :: else -> break
        od
    fi
}

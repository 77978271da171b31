/*
 * A work group that shares its messages out as they come (RC_ANY): leases, the
 * head, giving back, looking again, and members that die, stop, leave or are
 * evicted.
 *
 * Each sequence that the ring can hold has a lease, one word: the lap, who
 * wrote it, how often it was delivered, and a state.  A word of another lap
 * counts as FREE, or as DONE if the floor has passed.  A member takes the first
 * message that it may have, from its position to the head, and then at the
 * head:
 *
 *   claim      compare-and-swap the lease from the very word that was read to
 *              CLAIMED, mine; move the head past it; look whether I was evicted
 *              meanwhile, and if so give it back
 *   at head    the lease is another's, or done: move the head on for it
 *   finish     compare-and-swap CLAIMED to DONE; move the floor over what is
 *              done
 *   give back  CLAIMED to RETURNED; then `again` goes up.  It is paused: not
 *              taken by the same member for a while
 *   look again who sees `again` change starts anew from the floor, and until it
 *              has come to the head it does not jump to it
 *   sweep      the dead, evicted or leaving member's CLAIMED to RETURNED, each
 *              by compare-and-swap; members[] says GONE; `again` up; and if its
 *              process does not live, members[] forgets it
 *
 * What may happen to member 0, between any two steps, is chosen: -DDIES, -DSTOPS
 * (for good, its process lives), -DEVICTS, -DLEAVES (in order), -DGIVES (back,
 * once).  There is one other, who survives; with -DTHREE or -DJOINER there are
 * two, of whom one may die as well, while it buries member 0 for example.  Both
 * may bury it at once.  -DJOINER: the second comes after the first, into its
 * slot, and sweeps what it finds there.  The writer puts messages as far as the
 * floor allows; with -DLAPS so many that a lease is used a second time.
 *
 * Who finds nothing waits until a look would find something; how it is woken for
 * that is groups_wake.pml.  Here nothing may be left that no look would find.
 *
 * Proved:
 *
 *   - a message is handed out only if it is not done, and nobody has it who
 *     lives and was not evicted; so again only if its holder died, left, was
 *     evicted or gave it back; and never to one that was evicted before;
 *   - the floor passes no message that was not acknowledged, nor one that such a
 *     member has, and never goes back;
 *   - when nothing can happen any more, every message that was put is done, but
 *     for one that a stopped member has that was not evicted; and if nobody
 *     stopped, all messages were put, and the floor stands behind the last.
 *
 * All of these must hold:
 *
 *   -DLAPS -DGIVES -DLEAVES -DEVICTS -DSTOPS -DDIES
 *   -DTHREE -DDIES
 *   -DJOINER -DDIES -DLEAVES
 *
 * and with -DPROMPT: -DGIVES -DLEAVES -DEVICTS -DDIES, -DTHREE -DDIES, and
 * -DJOINER -DDIES.  There nobody looks at a floor that does not move, which each
 * member does now and then, a pause outlasts all, and who joins asks for nothing:
 * then `again` alone must lead the others to everything, unless somebody stops.
 *
 * Memory is sequentially consistent: every word that decides is changed by
 * compare-and-swap alone.  (The look for an eviction after the claim may be old on
 * other machines.  Then the next sweep takes the message from it, as from one
 * that stops there.)
 *
 * Left out: KEPT, messages not wanted, setting aside, RC_ROUND_ROBIN
 * (groups_wake.pml), what the writer overwrites (groups_floor.pml), and words
 * that nobody writes.
 *
 * Mutants, and what each breaks:
 *
 *   CLAIM_BLIND      the lease is stored, not swapped: two have the message.
 *   NO_HELP          (STOPS) who finds the lease at the head claimed waits for its
 *                    owner to move the head, and that one is stopped.
 *   AGAIN_FIRST      (PROMPT, GIVES) `again` goes up before the message is
 *                    RETURNED: who looks between the two looks for nothing.
 *   NO_AGAIN         (PROMPT, GIVES) giving back does not raise it.
 *   SCAN_JUMPS       (PROMPT, EVICTS) who looks again takes the head where it finds
 *                    it, though it was moved over a message not looked at yet.
 *   CALL_IF_FIRST    (PROMPT, DIES, LEAVES) who buries raises `again` only if it
 *                    has swept or marked something: the one that did has died.
 *   LEAVE_SILENTLY   (PROMPT, EVICTS, LEAVES) who was evicted leaves without raising it.
 *   FORGET_FIRST     (PROMPT, DIES, LEAVES) who leaves is forgotten before `again` is
 *                    up, and dies between the two.
 *   JOIN_NO_CALL     (PROMPT, JOINER, DIES) who joins sweeps what the last owner of
 *                    its slot had, and tells nobody.
 *   JOIN_NO_SWEEP    (JOINER, DIES) or does not sweep it.
 *   FORGET_EVICTED   (EVICTS, STOPS) an evicted member is forgotten after one
 *                    sweep, and claims, and stops, after that.
 *   NO_UNDO          (EVICTS) a member does not look whether it was evicted before
 *                    its claim.
 *   SWEEP_BLIND      (EVICTS) RETURNED is stored over a word that has changed.
 *   FINISH_BLIND     (EVICTS) DONE is stored by one that was evicted: another has
 *                    the message by now.
 *   NO_LAP           (LAPS) a lease of the last round is taken for one of this.
 *   FLOOR_BLIND      the floor is stored, not swapped: back it goes.
 */

#ifndef SLOTS
#define SLOTS 2
#endif
#ifdef LAPS
#define MESSAGES 3
#else
#define MESSAGES 2
#endif
#if defined(THREE) || defined(JOINER)
#define MEMBERS 3
#else
#define MEMBERS 2
#endif
#define SURVIVOR (MEMBERS - 1)

#define FREE 0
#define CLAIMED 1
#define RETURNED 2
#define DONE 3

#ifdef NO_LAP
#define LAP(s) 1
#else
#define LAP(s) ((s) / SLOTS + 1)
#endif
#define WORD(lap, who, times, state) ((lap) << 7 | (who) << 5 | (times) << 2 | (state))
#define LAP_OF(w) ((w) >> 7)
#define WHO(w) ((w) >> 5 & 3)
#define TIMES(w) ((w) >> 2 & 7)
#define AS(w, state) (((w) & ~3) | (state))
#define STATE(s, w) \
    (LAP_OF(w) == LAP(s) -> (w) & 3 : (LAP_OF(w) > LAP(s) && floor > (s) -> DONE : FREE))
#define LEASE(s) lease[(s) % SLOTS]

#ifdef JOINER
#define SLOT(m) ((m) == 1 -> 0 : (m))
#else
#define SLOT(m) (m)
#endif
#ifdef DIES
#define MORTAL (me != SURVIVOR)
#else
#define MORTAL false
#endif
#ifdef STOPS
#define STOPS_ (me == 0)
#else
#define STOPS_ false
#endif
#define GONE 8             /* in entry[] */
#define NOTHING 255

short lease[SLOTS];
byte head, floor, published, again;
byte entry[MEMBERS];       /* members[]: of each slot, who is in + 1, and GONE */

bool dead[MEMBERS];        /* or has left and freed its slot */
bool evicted[MEMBERS];
bool stopped[MEMBERS];
bool gave_back;            /* once is enough */

/* What is true, whatever the words say. */
byte holds[MEMBERS] = NOTHING;
bool taken[MESSAGES];      /* somebody has it who lives and was not evicted */
bool done[MESSAGES];

inline let_go(m)
{
    if
    :: holds[m] != NOTHING ->
        if
        :: !evicted[m] -> taken[holds[m]] = false
        :: else
        fi;
        holds[m] = NOTHING
    :: else
    fi
}

inline die(m)
{
    atomic { let_go(m); dead[m] = true; goto gone }
}

/* Between any two steps of those who may. */
#define MAY_END \
    if \
    :: true \
    :: mortal -> die(me) \
    :: stops -> atomic { stopped[me] = true; goto gone } \
    fi

#define LOOK_FOR(m) (entry[SLOT(m)] == (m) + 1 || entry[SLOT(m)] == ((m) + 1 | GONE))

inline call()
{
    again++
}

inline returned_by(s, w)
{
    atomic {
        if
#ifdef SWEEP_BLIND
        :: true ->
#else
        :: LEASE(s) == w ->
#endif
            LEASE(s) = AS(w, RETURNED);
            swept = true
        :: else
        fi
    }
}

/* What it has goes back.  `first`: it was not GONE before. */
inline sweep(m)
{
    swept = false;
    atomic { k = floor; upto = floor + SLOTS }
    do
    :: k < upto && k < published ->
        word = LEASE(k);
        if
        :: atomic { LAP_OF(word) == LAP(k) && WHO(word) == m && (word & 3) == CLAIMED ->
                    skip }
            returned_by(k, word);
            MAY_END
        :: else
        fi;
        k++
    :: else -> break
    od;
    atomic {
        word = 0; k = 0; upto = 0;
        if
        :: entry[SLOT(m)] == m + 1 -> entry[SLOT(m)] = m + 1 | GONE; first = true
        :: else -> first = false
        fi
    }
    MAY_END
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
    atomic { is_dead = dead[m]; sweep_m = m }
    sweep(sweep_m);
    if
#ifdef CALL_IF_FIRST
    :: swept || first -> call(); MAY_END
#else
    :: swept || first || is_dead -> call(); MAY_END
#endif
    :: else
    fi;
    if
#ifdef FORGET_EVICTED
    :: true -> forget(sweep_m)
#else
    :: is_dead -> forget(sweep_m)
    :: else
#endif
    fi;
    atomic { is_dead = false; swept = false; first = false; sweep_m = 0 }
}

/* Is there something to bury?  A repetition that would change nothing is none. */
#define OWNS(m) ((STATE(floor, LEASE(floor)) == CLAIMED && WHO(LEASE(floor)) == (m)) || \
    (floor + 1 < published && \
     STATE(floor + 1, LEASE(floor + 1)) == CLAIMED && WHO(LEASE(floor + 1)) == (m)))
#define BURIABLE(m) (me != (m) && LOOK_FOR(m) && \
    (dead[m] || evicted[m] && (entry[SLOT(m)] == (m) + 1 || OWNS(m))))

/* Would a look from the floor on find something? */
#define MAY_HAVE(s) ((s) < published && (s) != paused && \
    (STATE(s, LEASE(s)) == FREE || STATE(s, LEASE(s)) == RETURNED))
#define FLOOR_FINDS (floor < head && MAY_HAVE(floor) || \
                     floor + 1 < head && MAY_HAVE(floor + 1))
#define FLOOR_LAGS (floor < published && STATE(floor, LEASE(floor)) == DONE)
#define AT (head > floor -> head : floor)
#ifdef NO_HELP
#define HEAD_FINDS MAY_HAVE(AT)
#else
#define HEAD_FINDS (AT < published)
#endif

inline advance()
{
    do
    :: atomic { from = floor; k = floor }
        do
        :: atomic { k < from + SLOTS && k < published && STATE(k, LEASE(k)) == DONE -> k++ }
        :: atomic { else -> break }
        od;
        atomic {
            if
            :: k == from -> k = 0; from = 0; break
#ifdef FLOOR_BLIND
            :: true ->
#else
            :: k != from && floor == from ->
#endif
                assert(k >= floor);
                do
                :: from < k -> assert(done[from] && !taken[from]); from++
                :: else -> break
                od;
                floor = k;
                k = 0; from = 0;
                break
            :: else    /* another has moved it meanwhile */
            fi
        }
    od
}

/* The next that may be had; `found`, and the word that was read. */
inline find()
{
    found = NOTHING;
    atomic { next = (next < floor -> floor : next); h = head;
             if
             :: !rescan && h > next -> next = h
             :: else
             fi
    }
    do
    :: atomic { next < h ->
        word = LEASE(next);
        if
        :: next != paused && (STATE(next, word) == RETURNED || STATE(next, word) == FREE) ->
            found = next; break
        :: else -> next++
        fi }
    :: next >= h ->
        atomic {
            h = head;
            if
            :: floor > h -> at = floor
#ifndef SCAN_JUMPS
            :: floor <= h && h > next && rescan -> goto scan_on
#endif
            :: else -> at = h
            fi;
            rescan = false;
            next = at;
            if
            :: at >= published -> break
            :: else
            fi
        }
        atomic {
            word = LEASE(at);
            if
            :: at != paused && (STATE(at, word) == RETURNED || STATE(at, word) == FREE) ->
                found = at; break
            :: else
            fi
        }
#ifdef NO_HELP
        break
#else
        atomic {
            if
            :: head == h -> head = at + 1
            :: else
            fi;
            next = at + 1; h = 0; at = 0
        }
#endif
scan_on:
        h = head
    od;
    atomic { h = 0; at = 0 }
}

inline refresh()
{
    atomic {
        if
        :: again != seen -> seen = again; next = 0; rescan = true
        :: else
        fi
    }
}

inline claim()
{
    atomic {
        if
#ifdef CLAIM_BLIND
        :: true ->
#else
        :: LEASE(found) == word ->
#endif
            word = WORD(LAP(found), me,
                        (STATE(found, word) == FREE -> 1 : TIMES(word) + 1), CLAIMED);
            LEASE(found) = word;
            mine = true
        :: else -> mine = false
        fi
    }
    if
    :: mine ->
        MAY_END;
        atomic {
            if
            :: head <= found -> head = found + 1
            :: else
            fi
        }
        MAY_END;
        atomic {
            if
#ifdef NO_UNDO
            :: true ->
#else
            :: !evicted[me] ->
#endif
                assert(!done[found] && !taken[found] && !evicted[me]);
                taken[found] = true;
                holds[me] = found;
                next = (next == found -> next + 1 : next);
                mine = false
            :: else
            fi
        }
        if
        :: mine ->      /* undo */
            atomic {
                if
                :: LEASE(found) == word ->
                    LEASE(found) = WORD(LAP(found), me, TIMES(word) - 1, RETURNED)
                :: else -> mine = false
                fi
            }
            MAY_END;
            if
            :: mine -> call(); mine = false
            :: else
            fi
        :: else
        fi
    :: else -> word = 0
    fi;
    found = NOTHING
}

inline finish()
{
    MAY_END;
    atomic {
        if
#ifdef FINISH_BLIND
        :: true ->
#else
        :: LEASE(holds[me]) == word ->
#endif
            LEASE(holds[me]) = AS(word, DONE);
            done[holds[me]] = true;
            mine = true
        :: else
        fi;
        let_go(me);
        word = 0
    }
    MAY_END;
    if
    :: mine -> mine = false; advance()
    :: else
    fi
}

inline give_back()
{
#ifdef AGAIN_FIRST
    call();
#endif
    atomic {
        if
        :: LEASE(holds[me]) == word ->
            LEASE(holds[me]) = AS(word, RETURNED);
            paused = holds[me]
        :: else
        fi;
        next = 0; rescan = true;
        let_go(me);
        word = 0
    }
    MAY_END;
#if !defined(AGAIN_FIRST) && !defined(NO_AGAIN)
    call()
#endif
}

inline leave()
{
    atomic { let_go(me); word = 0; was_evicted = evicted[me] }
    sweep(me);
#ifdef FORGET_FIRST
    forget(me);
    MAY_END;
#endif
    if
#ifdef LEAVE_SILENTLY
    :: swept && !was_evicted -> call()
#else
    :: swept -> call()
#endif
    :: else
    fi;
    MAY_END;
    forget(me);
    dead[me] = true;
    goto gone
}

inline enter()
{
    if
    :: entry[SLOT(me)] != 0 ->
        before = true;
#ifndef JOIN_NO_SWEEP
        sweep(0);
#endif
    :: else
    fi;
    MAY_END;
    entry[SLOT(me)] = me + 1;
    MAY_END;
    seen = again - 1;
#ifndef JOIN_NO_CALL
    if
    :: before -> call()
    :: else
    fi
#endif
}

active [MEMBERS] proctype member()
{
    byte me = _pid;
    byte next, seen, found = NOTHING, h, at, k, upto, from, sweep_m;
    short word;
    byte paused = NOTHING;
    bool rescan, mine, swept, first, is_dead, was_evicted, before;
    bool mortal = MORTAL, stops = STOPS_;

#ifdef JOINER
    if
    :: me == 1 ->
        end_before:
        dead[0];
        enter();
#ifdef PROMPT
        goto gone       /* it is slow, and has not asked for anything yet */
#endif
    :: else -> atomic { entry[SLOT(me)] = me + 1 }
    fi;
#else
    atomic { entry[me] = me + 1 }
#endif
    do
    :: holds[me] == NOTHING ->
        end:
        if
        :: evicted[me] ->
            if
            :: leave()
            :: atomic { stopped[me] = true; goto gone }
            fi
#ifndef PROMPT
        :: atomic { paused != NOTHING -> paused = NOTHING; next = 0; rescan = true }
#endif
        :: atomic { !evicted[me] && (again != seen || rescan || HEAD_FINDS) -> refresh() }
            find();
            if
            :: found != NOTHING -> claim()
            :: else
            fi
#ifndef PROMPT
        :: atomic { !evicted[me] && again == seen && !rescan && !HEAD_FINDS && FLOOR_FINDS ->
                    next = 0; rescan = true }
            find();
            if
            :: found != NOTHING -> claim()
            :: else
            fi
#endif
        :: FLOOR_LAGS -> advance()
        :: !evicted[me] && BURIABLE(0) -> bury(0)
#if MEMBERS == 3
        :: !evicted[me] && BURIABLE(1) -> bury(1)
#endif
#ifdef LEAVES
        :: me == 0 -> leave()
#endif
        fi
    :: holds[me] != NOTHING -> finish()
#ifdef GIVES
    :: holds[me] != NOTHING && me == 0 && !gave_back -> gave_back = true; give_back()
#endif
#ifdef LEAVES
    :: holds[me] != NOTHING && me == 0 -> leave()
#endif
    od;
gone:
    atomic { next = 0; seen = 0; found = 0; h = 0; at = 0; k = 0; upto = 0; from = 0; sweep_m = 0;
      word = 0; paused = 0; rescan = false; mine = false; swept = false; first = false;
      is_dead = false; was_evicted = false; before = false }
}

active proctype writer()
{
    end:
    do
    :: atomic { published < MESSAGES && published < floor + SLOTS -> published++ }
    od
}

#ifdef EVICTS
active proctype evictor()
{
    end:
    atomic {
        !dead[0] && !stopped[0] ->
        evicted[0] = true;
        if
        :: holds[0] != NOTHING -> taken[holds[0]] = false
        :: else
        fi
    }
}

#endif

/* Nothing can happen any more. */
active proctype judge()
{
    byte s;

    timeout;
    do
    :: s < published ->
        assert(done[s] || stopped[0] && !evicted[0] && STATE(s, LEASE(s)) == CLAIMED &&
                          WHO(LEASE(s)) == 0);
        s++
    :: else -> break
    od;
    assert(stopped[0] || published == MESSAGES && floor == MESSAGES)
}

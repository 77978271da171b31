/*
 * Death and eviction: who may clean up a reader slot, and when.
 *
 * A reader slot has a state word (a state and a generation), a gating bit, and
 * a kernel lock.  Its owner holds the lock for as long as it owns the slot; the
 * kernel lets go of it when the owner dies.  So whoever HOLDS the lock knows
 * that nobody else lives in the slot, and knows it for as long as it holds it;
 * whoever merely asked whether the lock is free knows what was true a moment
 * ago.
 *
 *   free   state DEAD, clear the gating bit, state FREE with a new generation;
 *          only under the lock
 *   join   try the lock; free the slot if it is not FREE (its owner died);
 *          state JOINING, set the gating bit, state ACTIVE by compare-and-swap
 *   close  free the slot, unlock
 *   reap   seeing a slot that is not FREE, try the lock; read the state again;
 *          if it is still not FREE free the slot; unlock
 *   evict  compare-and-swap the state word of the reader that is meant to
 *          EVICTED, and nothing else
 *
 * The bit is set after the state leaves FREE and cleared before it returns, so
 * that a death anywhere leaves a slot which does not look FREE.  A reaper that
 * dies leaves such a slot too, and another does the work again.  An evictor has
 * no lock: what it did after the swap it might do to the next owner.  So the
 * bit of an evicted reader stays, and the writer passes over EVICTED slots when
 * it looks for the lowest cursor.
 *
 * Readers and one reaper may be killed between any two steps; the kernel drops
 * a victim's lock in the same step.  One reaper survives.  Proved:
 *
 *   - a slot never has two owners at once;
 *   - a live reader keeps its slot and its generation, and once it is ACTIVE
 *     its gating bit, until it closes or is evicted itself;
 *   - nobody is reported dead who did not die in the slot;
 *   - when all readers have closed or died and the slot is FREE again, the
 *     gating bit is clear; and that time comes (-DLIVENESS: each process that
 *     can always take a step takes one some time).
 *
 * Memory is sequentially consistent here: but for an eviction, which is one
 * compare-and-swap, and the first, unlocked look of a reaper, which decides
 * nothing, only the lock's holder touches the slot, and the kernel orders an
 * unlock, or a death, before the next lock.
 *
 * Left out: more than one slot (slots do not see each other), cursors, and how
 * the kernel's lock is made.  It must belong to one reader, not to a process
 * that may hold several or fork.
 *
 * Mutants, and what each breaks:
 *
 *   REAPER_ASKS         tests that the lock is free instead of taking it: the
 *                       slot is taken by a reader, who then loses it.
 *   REAPER_TRUSTS_LOOK  does not read the state again under the lock, and
 *                       reports dead a reader that closed in between.  (The
 *                       lock alone keeps it off a live one.)
 *   UNLOCK_FIRST        a closing reader unlocks, then frees the slot: it is
 *                       the next owner's by then.
 *   SHARED_LOCK         the lock belongs to a process that is a reader and a
 *                       reaper at once: the reaper's try succeeds.
 *   FREE_FIRST          stores FREE, dies, and leaves the bit set in a slot
 *                       nobody will reap.
 *   BIT_BEFORE_STATE    a joiner sets its bit first, and dies likewise.
 *   DEAD_IS_DONE        takes a DEAD slot for one somebody else deals with;
 *                       somebody else has died, and the survivor is stuck.
 *   EVICTOR_CLEARS_BIT  clears the gating bit after the swap: the evicted
 *                       reader has closed, and the bit is the next owner's.
 *   EVICTOR_RETRIES     swaps whatever word it finds when the first swap fails,
 *                       and evicts the next owner.
 */

#define READERS 2          /* processes 0 and 1 */
#ifdef LIVENESS
#define JOINS 1            /* of each */
#else
#define JOINS 2
#endif
#define MORTAL 2           /* the reaper that may be killed */
#define SURVIVOR 3
#define NOBODY 255

mtype = { FREE, JOINING, ACTIVE, EVICTED, DEAD };

mtype state = FREE;        /* these two are one word */
byte generation;
bool gating;
byte lock = NOBODY;

bool killed[READERS + 2];
bool closed[READERS];      /* will not join again */

/* What is true, whatever is in the slot. */
byte owner = NOBODY;       /* from JOINING to FREE, while alive */
bool entitled;             /* it is neither closing nor evicted */
byte owned_generation;
byte unreported;           /* deaths */
bool over;                 /* the survivor has found nothing more to do */

/* Some mutants hurt the living and the dead; they are shown hurting the living,
   which is an assert(false). */
#if defined(REAPER_ASKS) || defined(UNLOCK_FIRST) || defined(SHARED_LOCK)
#define OF_THE_DEAD(claim) true
#else
#define OF_THE_DEAD(claim) (claim)
#endif

/* Whoever frees another's slot tells the world of a death. */
inline report()
{
    assert(OF_THE_DEAD(unreported > 0));
    unreported--
}

inline store_free()
{
    atomic {
        state = FREE;
        generation++;
        if
        :: owner == me -> owner = NOBODY; owned_generation = 0
        :: else -> report()
        fi
    }
}

inline free_slot()
{
    state = DEAD;
#ifdef FREE_FIRST
    store_free();
    gating = false
#else
    gating = false;
    store_free()
#endif
}

#define ENDED(r) (killed[r] || closed[r])
#define ALL_OVER (ENDED(0) && ENDED(1) && state == FREE && lock == NOBODY)

inline kill(victim)
{
    killed[victim] = true;
    if
    :: lock == victim -> lock = NOBODY
    :: else
    fi;
    if
    :: owner == victim -> 
        unreported++;
        owner = NOBODY;
        owned_generation = 0;
        entitled = false
    :: else
    fi
}

active [READERS] proctype reader()
{
    byte me = _pid;
    byte join;

    {
        for (join : 1 .. JOINS) {
            if
            :: atomic { lock == NOBODY -> lock = me };
                if
                :: state != FREE -> free_slot()
                :: else
                fi;
#ifdef BIT_BEFORE_STATE
                gating = true;
#endif
                atomic {
                    if
                    :: owner != NOBODY -> assert(false)
                    :: else
                    fi;
                    owner = me;
                    owned_generation = generation;
                    state = JOINING;
                    entitled = true
                };
                gating = true;
                atomic {
                    if
                    :: state == JOINING -> state = ACTIVE
                    :: else    /* evicted, or the watch has seen why */
                    fi
                };
                entitled = false;
#ifdef UNLOCK_FIRST
                atomic { lock = NOBODY; owner = NOBODY };
                free_slot()
#else
                free_slot();
                lock = NOBODY
#endif
            :: lock != NOBODY    /* the slot is taken */
            fi
        };
        closed[me] = true
    } unless {
        killed[me]
    }
}

/* In the mutant SURVIVOR and reader 0 are one process, whose own lock does not
   stop it. */
#ifdef SHARED_LOCK
#define CAN_LOCK (lock == NOBODY || (me == SURVIVOR && lock == 0))
#else
#define CAN_LOCK (lock == NOBODY)
#endif

active [2] proctype reaper()
{
    byte me = _pid;

    {
        do
        :: ALL_OVER -> break
#ifdef DEAD_IS_DONE
        :: state != FREE && state != DEAD ->
#else
        :: state != FREE ->
#endif
            if
#ifdef REAPER_ASKS
            :: CAN_LOCK ->
                if
                :: state != FREE -> free_slot()
                :: else
                fi
#else
            :: atomic { CAN_LOCK -> lock = me };
#ifdef REAPER_TRUSTS_LOOK
                free_slot();
#else
                if
                :: state != FREE -> free_slot()
                :: else
                fi;
#endif
                lock = NOBODY
#endif
            :: !CAN_LOCK    /* its owner lives, or another is reaping */
            fi
        od;
        assert(OF_THE_DEAD(!gating));
        over = (me == SURVIVOR -> true : over)
    } unless {
        killed[me]
    }
}

#define SOMEBODY_IN (state == JOINING || state == ACTIVE)

active proctype evictor()
{
    byte meant;

    end:
    atomic { SOMEBODY_IN -> meant = generation };
    atomic {
        if
#ifdef EVICTOR_RETRIES
        :: SOMEBODY_IN ->
#else
        :: SOMEBODY_IN && generation == meant ->
#endif
            state = EVICTED;
            if
            :: owned_generation == meant -> entitled = false
            :: else
            fi
        :: else -> goto done
        fi
    };
#ifdef EVICTOR_CLEARS_BIT
    gating = false;
#endif
done:
    meant = 0
}

active proctype killer()
{
    end:
    do
    :: atomic { !ENDED(0) -> kill(0) }
    :: atomic { !ENDED(1) -> kill(1) }
    :: atomic { !killed[MORTAL] -> kill(MORTAL) }
#ifdef LIVENESS
    :: break    /* without it, fairness would have everybody killed */
#endif
    od
}

/* Runs at the moment, if there is one, at which a live reader is wronged. */
active proctype watch()
{
    end:
    atomic {
        entitled && (generation != owned_generation || !SOMEBODY_IN ||
                     state == ACTIVE && !gating) -> assert(false)
    }
}

#ifdef LIVENESS
ltl cleaned { <> over }
#endif

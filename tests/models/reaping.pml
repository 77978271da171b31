/*
 * Death, and who may clean up after it.
 *
 * A reader slot has a state, a gating bit, a generation, and a kernel lock.
 * Its owner holds the lock for as long as it owns the slot; the kernel lets go
 * of it when the owner dies.  So whoever HOLDS the lock knows that nobody else
 * lives in the slot, and knows it for as long as it holds it; whoever merely
 * asked whether the lock is free knows what was true a moment ago.
 *
 *   join   try the lock; clean up if the slot is not FREE (its owner died);
 *          state JOINING, set the gating bit, state ACTIVE by compare-and-swap
 *   close  clear the gating bit, state FREE with a new generation, unlock
 *   reap   seeing a slot that is not FREE, try the lock; read the state again;
 *          if it is still not FREE clean up; unlock
 *   clean  clear the gating bit, state DEAD, state FREE with a new generation
 *
 * The bit is set after the state leaves FREE and cleared before it returns, so
 * that a death anywhere leaves a slot which does not look FREE.  A reaper that
 * dies leaves such a slot too, and another does the work again.
 *
 * Readers and one reaper may be killed between any two steps; the kernel drops
 * a victim's lock in the same step.  One reaper survives.  Proved:
 *
 *   - a slot never has two owners at once;
 *   - a live reader that is ACTIVE stays so, with its gating bit and its
 *     generation, until it closes;
 *   - nobody is reported dead who did not die in the slot;
 *   - when all readers have closed or died and the slot is FREE again, the
 *     gating bit is clear; and that time comes (-DLIVENESS: each process that
 *     can always take a step takes one some time).
 *
 * Memory is sequentially consistent here: but for the first, unlocked look of
 * a reaper, which decides nothing, only a lock's holder touches the slot, and
 * the kernel orders an unlock, or a death, before the next lock.
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
 *   UNLOCK_FIRST        a closing reader unlocks, then clears the bit and
 *                       frees the slot: both are the next owner's by then.
 *   CLOSE_FREES_FIRST   a closing reader stores FREE, dies, and leaves its bit
 *                       set in a slot nobody will reap.
 *   REAPER_FREES_FIRST  the same of a reaper.
 *   BIT_BEFORE_STATE    the same of a joiner, which sets its bit first.
 *   DEAD_IS_DONE        takes a DEAD slot for one somebody else is dealing with;
 *                       somebody else has died, and the survivor is stuck.
 *   SHARED_LOCK         the lock belongs to a process that is a reader and a
 *                       reaper at once: the reaper's try succeeds.
 */

#define READERS 2          /* processes 0 and 1; each may join twice */
#define JOINS 2
#define MORTAL 2           /* the reaper that may be killed */
#define SURVIVOR 3
#define NOBODY 255

mtype = { FREE, JOINING, ACTIVE, DEAD };

mtype state = FREE;
bool gating;
byte generation;
byte lock = NOBODY;

bool killed[READERS + 2];
bool closed[READERS];      /* will not join again */

/* What is true, whatever the slot says. */
byte owner = NOBODY;       /* from JOINING to FREE, while alive */
bool reading;              /* the owner is ACTIVE */
byte owned_generation;
byte deaths, reported;
bool over;                 /* the survivor has found nothing more to do */

/* A reaper, or a joiner that cleans up, tells the world of a death.  The
   mutants that also hurt the living are shown doing that. */
inline report()
{
    reported++;
#if !defined(REAPER_ASKS) && !defined(UNLOCK_FIRST) && !defined(SHARED_LOCK)
    assert(reported <= deaths)
#endif
}

inline clean()
{
#ifdef REAPER_FREES_FIRST
    atomic { state = FREE; generation++; report() };
    gating = false
#else
    gating = false;
    state = DEAD;
    atomic { state = FREE; generation++; report() }
#endif
}

/* The last step of a close. */
inline free_slot()
{
    atomic {
        state = FREE;
        generation++;
        if
        :: owner == me -> owner = NOBODY
        :: else
        fi
    }
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
    :: owner == victim -> deaths++; owner = NOBODY; reading = false
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
                :: state != FREE -> clean()
                :: else
                fi;
#ifdef BIT_BEFORE_STATE
                gating = true;
#endif
                atomic {
                    assert(owner == NOBODY);
                    owner = me;
                    owned_generation = generation;
                    state = JOINING
                };
                gating = true;
                atomic {
                    assert(state == JOINING && generation == owned_generation);
                    state = ACTIVE;
                    reading = true
                };
                reading = false;
#ifdef UNLOCK_FIRST
                atomic { lock = NOBODY; owner = NOBODY };
#endif
#ifdef CLOSE_FREES_FIRST
                free_slot();
                gating = false;
#else
                gating = false;
                free_slot();
#endif
#ifndef UNLOCK_FIRST
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
                :: state != FREE -> clean()
                :: else
                fi
#else
            :: atomic { CAN_LOCK -> lock = me };
#ifdef REAPER_TRUSTS_LOOK
                clean();
#else
                if
                :: state != FREE -> clean()
                :: else
                fi;
#endif
                lock = NOBODY
#endif
            :: !CAN_LOCK    /* its owner lives, or another is reaping */
            fi
        od;
        assert(!gating);
        over = (me == SURVIVOR -> true : over)
    } unless {
        killed[me]
    }
}

active proctype killer()
{
    end:
    do
    :: atomic { !ENDED(0) -> kill(0) }
    :: atomic { !ENDED(1) -> kill(1) }
    :: atomic { !killed[MORTAL] -> kill(MORTAL) }
    :: break
    od
}

#ifdef LIVENESS
ltl cleaned { <> over }
#endif

/* Runs at the moment, if there is one, at which a live reader is wronged. */
active proctype watch()
{
    end:
    atomic {
        reading && (state != ACTIVE || !gating || generation != owned_generation)
        -> assert(false)
    }
}

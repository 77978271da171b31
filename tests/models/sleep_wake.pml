/*
 * Sleeping and waking: Dekker's handshake between the writer and its readers.
 *
 * A reader that finds nothing new sets its bit in `waiters`, fences, and looks
 * at the ring again; only if there is still nothing does it wait on its own
 * semaphore.  Then it clears its bit.  If the bit is already gone the writer
 * has taken it and owes, or has paid, one token; a reader that took none tries
 * once, without blocking, to take that token back, so that tokens do not pile
 * up.  The writer publishes, fences, looks at `waiters`, and if any bit is set
 * takes all of them with one exchange and posts one token for each.
 *
 * The memory here is weaker than x86.  The writer's store of `published`
 * passes through a store buffer, and so does the reader's fetch_or: on ARM the
 * store half of a read-modify-write may become visible after a later load.
 * (On x86 the fetch_or alone would do; the design leans on C11, which asks for
 * the fence.)  The process `memory` drains the buffers when it likes; a fence
 * waits until the fencing process's buffer is empty.  Loads see memory.
 *
 * Two configurations, both of which must hold:
 *
 *   (none)      Waits have no time-out and nobody dies.  Every reader ends
 *               with every message read: a reader that sleeps while a message
 *               is unread can be woken by nobody and is an invalid end state.
 *   -DTIMEOUTS  A wait may time out whenever it likes and the writer may die
 *               between any two steps.  Every reader ends with all that was
 *               published read, none blocks for ever, and a semaphore never
 *               holds more than two tokens: one that came too late to be taken
 *               back, and the one of the present sleep.
 *
 * Left out: the contents of messages, room in the ring, readers that come, go
 * or die (a dead reader's bit costs one token nobody takes), and how a reader
 * learns that the writer is dead.
 *
 * Mutants, and what each breaks:
 *
 *   WRITER_NO_FENCE     looks at waiters before its message is visible: the
 *                       reader's second look misses the message, the writer
 *                       misses the bit, the reader sleeps for ever.
 *   READER_NO_FENCE     the same from the other side.
 *   NO_SECOND_LOOK      a message published between look and bit wakes nobody.
 *   LOAD_THEN_STORE     a bit set between the writer's load and its store of
 *                       zero is wiped out without a token.
 *   ONE_SEMAPHORE       all readers share one semaphore: a reader that already
 *                       has the message sets its bit, takes the token meant
 *                       for another, and the other sleeps on without a bit.
 *   NO_TOKEN_BACK       (TIMEOUTS) tokens pile up.
 *   BLOCKING_TOKEN_BACK (TIMEOUTS) the writer dies between exchange and post,
 *                       and the reader waits for ever for a token owed by a
 *                       corpse.
 */

#define READERS 2
#define MESSAGES 3

#define BIT(r) (1 << (r))

byte published;            /* messages visible in memory */
byte buffered;             /* the writer's buffered store of it; 0: none */
byte waiters;              /* one bit a reader */
bool or_pending[READERS];  /* a fetch_or that is not visible yet */
byte tokens[READERS];
bool writer_dead;

#ifdef ONE_SEMAPHORE
#define SEMAPHORE(r) tokens[0]
#define MAX_TOKENS (2 * READERS)
#else
#define SEMAPHORE(r) tokens[r]
#define MAX_TOKENS 2
#endif

#ifdef TIMEOUTS
#define MAY_DIE if :: skip :: goto dead fi
#else
#define MAY_DIE skip
#endif

/* Drains in any order and at any time: buffers do not wait for a fence, a
   message in one becomes visible even if its writer is dead. */
active proctype memory()
{
    end:
    do
    :: atomic { buffered != 0 -> published = buffered; buffered = 0 }
    :: atomic { or_pending[0] -> waiters = waiters | BIT(0); or_pending[0] = false }
    :: atomic { or_pending[1] -> waiters = waiters | BIT(1); or_pending[1] = false }
    od
}

active proctype writer()
{
    byte message, taken, r;

    for (message : 1 .. MESSAGES) {
        buffered = message;
        MAY_DIE;
#ifndef WRITER_NO_FENCE
        buffered == 0;
#endif
        if
        :: waiters == 0
        :: else ->
            MAY_DIE;
#ifdef LOAD_THEN_STORE
            taken = waiters;
            waiters = 0;
#else
            atomic { taken = waiters; waiters = 0 }
#endif
            for (r : 0 .. READERS - 1) {
                MAY_DIE;
                if
                :: taken & BIT(r) ->
                    SEMAPHORE(r)++;
                    assert(SEMAPHORE(r) <= MAX_TOKENS)
                :: else
                fi
            }
        fi;
        MAY_DIE
    }
    goto done;
dead:
    writer_dead = true;
done:
    skip
}

active [READERS] proctype reader()
{
    byte me = _pid - 2;
    byte seen;
    bool took, was_set;

    do
    :: seen < published -> seen++
    :: seen == MESSAGES -> break
    :: writer_dead && buffered == 0 && seen == published -> break
    :: else ->
        or_pending[me] = true;
#ifndef READER_NO_FENCE
        !or_pending[me];
#endif
        took = false;
        if
#ifndef NO_SECOND_LOOK
        :: seen < published
#endif
        :: else ->
            if
            :: atomic { SEMAPHORE(me) > 0 -> SEMAPHORE(me)--; took = true }
#ifdef TIMEOUTS
            :: skip
#endif
            fi
        fi;
        /* The fetch_and is on the word of the fetch_or, so it comes after. */
        atomic {
            !or_pending[me];
            was_set = (waiters & BIT(me)) != 0;
            waiters = waiters & ~BIT(me)
        }
        if
#ifdef NO_TOKEN_BACK
        :: skip
#else
        :: !was_set && !took ->
#ifdef BLOCKING_TOKEN_BACK
            atomic { SEMAPHORE(me) > 0 -> SEMAPHORE(me)-- }
#else
            atomic {
                if
                :: SEMAPHORE(me) > 0 -> SEMAPHORE(me)--
                :: else
                fi
            }
#endif
        :: else
#endif
        fi
    od;
#ifndef TIMEOUTS
    assert(seen == MESSAGES)
#endif
}

/*
 * The uplink: sleeping and waking (shm/mpsc.h; sleep_wake.pml is the ring's).
 *
 * The receiver, when head's word is free, sets `sleeping`, fences, looks at the
 * word again, and sleeps on its semaphore.  A sender swaps a ticket's word,
 * fences, looks at `sleeping`, and if it is set takes it back with one exchange
 * and posts.  A sender without room sets its bit in `waiters`, fences, looks at
 * `taken` again, and sleeps on its lane's semaphore.  The receiver stores
 * `taken`, notes the lane as touched, and before it sleeps, or sooner, fences,
 * takes the bits of touched lanes with one fetch_and, and posts one token for
 * each.  Who wakes clears its flag; if that is already gone and it took no token,
 * it tries once, without blocking, to take the token it is owed.
 *
 * Each side's stores pass through a buffer: the swap, the fetch_or, the stores of
 * `sleeping` and `taken`.  On ARM the store half of a read-modify-write may become
 * visible after a later load.  The process `memory` drains the buffers in any
 * order; a fence waits until the fencing process's are empty.  A swap waits for
 * another sender's, since who goes on to the next ticket has seen the word filled.
 *
 * Three configurations, all of which must hold:
 *
 *   (none)       Waits have no time-out and nobody dies.  All is sent and taken:
 *                whoever sleeps while there is something to do, and no token to
 *                come, is an invalid end state.
 *   -DTIMEOUTS   A wait may time out whenever it likes and one sender may die
 *                at any step.  Nobody blocks for ever, and tokens do not pile up:
 *                the receiver's are at most one that came late for each sender,
 *                and the one of the present sleep.
 *   -DSUCCESSION Waits may time out and the receiver may die at any step; its
 *                successor counts every lane as touched.  The same holds, with one
 *                token more that the dead one left.
 *
 * Left out: acknowledgements, for which senders wait as for room, tickets' words
 * (uplink.pml), and lanes with other owners, who find at worst a token too many.
 *
 * Mutants, and what each breaks:
 *
 *   SENDER_NO_FENCE     looks at `sleeping` before its swap is visible: the
 *                       receiver misses the message, the sender the sleeper.
 *   RECEIVER_NO_FENCE   the same from the other side.
 *   RECEIVER_NO_LOOK    a message sent between look and flag wakes nobody.
 *   WAITER_NO_FENCE     looks at `taken` before its bit is visible.
 *   WAKER_NO_FENCE      looks at the bits before `taken` is visible.
 *   WAITER_NO_LOOK      room made between look and bit wakes nobody.
 *   LOAD_THEN_STORE     a bit set between the receiver's load of `waiters` and
 *                       its store is wiped out without a token.
 *   RECEIVER_KEEPS_TOKEN      (TIMEOUTS) tokens pile up.
 *   RECEIVER_WAITS_FOR_TOKEN  (TIMEOUTS) a sender dies between exchange and post,
 *                       and the receiver waits for ever for a corpse's token.
 */

#define SENDERS 2
#define MESSAGES 2         /* a sender; its lane holds one */
#define LAST (SENDERS * MESSAGES)

#define BIT(s) (1 << (s))

#ifdef TIMEOUTS
#define SENDER_DEATHS 1
#else
#define SENDER_DEATHS 0
#endif

#ifdef SUCCESSION
#define RECEIVER_DEATHS 1
#else
#define RECEIVER_DEATHS 0
#endif

/* Late ones, one of the present sleep, and what a dead one left. */
#define MAX_TOKENS (SENDERS + 1 + RECEIVER_DEATHS)

#define SENDER_MAY_DIE if :: true :: deaths < SENDER_DEATHS -> deaths++; goto die fi
#define RECEIVER_MAY_DIE if :: true :: successions < RECEIVER_DEATHS -> goto die fi

byte filled;               /* tickets below are, in memory */
byte lane_of[LAST];
bool swap_pending[SENDERS];     /* a swap that is not visible yet */
byte taken[SENDERS];       /* messages of the lane */
bool taken_pending[SENDERS];    /* the receiver's buffered store of one more */
bool sleeping, sleeping_pending;
byte waiters;              /* one bit a sender */
bool or_pending[SENDERS];       /* a fetch_or that is not visible yet */
byte receiver_tokens, tokens[SENDERS];

byte deaths, successions, ended;

/* Drains in any order and at any time. */
active proctype memory()
{
    end:
    do
    :: atomic { swap_pending[0] -> lane_of[filled] = 0; filled++; swap_pending[0] = false }
    :: atomic { swap_pending[1] -> lane_of[filled] = 1; filled++; swap_pending[1] = false }
    :: atomic { taken_pending[0] -> taken[0]++; taken_pending[0] = false }
    :: atomic { taken_pending[1] -> taken[1]++; taken_pending[1] = false }
    :: atomic { or_pending[0] -> waiters = waiters | BIT(0); or_pending[0] = false }
    :: atomic { or_pending[1] -> waiters = waiters | BIT(1); or_pending[1] = false }
    :: atomic { sleeping_pending -> sleeping = true; sleeping_pending = false }
    od
}

active [SENDERS] proctype sender()
{
    byte me = _pid - 1;
    byte sent;
    bool took, was_set;

    do
    :: sent == MESSAGES -> break
    :: sent < MESSAGES && sent == taken[me] ->
        /* A sender that finds the word taken has seen the swap that took it. */
        atomic { !swap_pending[1 - me] -> swap_pending[me] = true; sent++; SENDER_MAY_DIE };
#ifndef SENDER_NO_FENCE
        !swap_pending[me];
#endif
        if
        :: !sleeping
        :: else ->
            atomic { was_set = sleeping; sleeping = false; SENDER_MAY_DIE };
            if
            :: was_set -> atomic { receiver_tokens++; assert(receiver_tokens <= MAX_TOKENS) }
            :: else
            fi;
            was_set = false
        fi;
        atomic { SENDER_MAY_DIE }
    :: sent < MESSAGES && sent > taken[me] ->
        atomic { or_pending[me] = true; SENDER_MAY_DIE };
#ifndef WAITER_NO_FENCE
        !or_pending[me];
#endif
        if
#ifndef WAITER_NO_LOOK
        :: sent == taken[me]
#endif
        :: else ->
            if
            :: atomic { tokens[me] > 0 -> tokens[me]--; took = true; SENDER_MAY_DIE }
#if defined(TIMEOUTS) || defined(SUCCESSION)
            :: true
#endif
            fi
        fi;
        atomic {    /* the fetch_and is on the word of the fetch_or, so it comes after */
            !or_pending[me];
            was_set = (waiters & BIT(me)) != 0;
            waiters = waiters & ~BIT(me);
            SENDER_MAY_DIE
        };
        atomic {
            if
            :: !was_set && !took && tokens[me] > 0 -> tokens[me]--
            :: else
            fi;
            took = false;
            was_set = false
        }
    od;
die:
    ended++
}

inline wake_senders()
{
#ifndef WAKER_NO_FENCE
    !taken_pending[0] && !taken_pending[1];
#endif
#ifdef LOAD_THEN_STORE
    atomic { seen = waiters; bits = touched & seen };
    atomic { touched = 0; waiters = seen & ~bits; seen = 0 };
#else
    bits = touched & waiters;
    atomic { touched = 0; bits = bits & waiters; waiters = waiters & ~bits; RECEIVER_MAY_DIE };
#endif
    s = 0;
    do
    :: s < SENDERS ->
        atomic {
            if
            :: bits & BIT(s) -> tokens[s]++; assert(tokens[s] <= 2 + RECEIVER_DEATHS)
            :: else
            fi;
            s++;
            RECEIVER_MAY_DIE
        }
    :: else -> break
    od;
    atomic { bits = 0; s = 0 }
}

active proctype receiver()
{
    byte head, touched, bits, seen, s;
    bool took, was_set;

    do
    :: head < filled ->
        atomic { s = lane_of[head]; head++; touched = touched | BIT(s) };
        atomic { !taken_pending[s]; taken_pending[s] = true; s = 0; RECEIVER_MAY_DIE }
    :: touched -> wake_senders()
    :: head == filled && !touched ->
        if
        :: head == LAST -> break
#if defined(TIMEOUTS) || defined(SUCCESSION)
        :: ended == SENDERS && !swap_pending[0] && !swap_pending[1] && head == filled -> break
#endif
        :: else
        fi;
        atomic { sleeping_pending = true; RECEIVER_MAY_DIE };
#ifndef RECEIVER_NO_FENCE
        !sleeping_pending;
#endif
        if
#ifndef RECEIVER_NO_LOOK
        :: head < filled
#endif
        :: else ->
            if
            :: atomic { receiver_tokens > 0 -> receiver_tokens--; took = true; RECEIVER_MAY_DIE }
#if defined(TIMEOUTS) || defined(SUCCESSION)
            :: true
#endif
            fi
        fi;
        atomic {
            !sleeping_pending;
            was_set = sleeping;
            sleeping = false;
            RECEIVER_MAY_DIE
        };
        if
#ifdef RECEIVER_KEEPS_TOKEN
        :: true
#else
#ifdef RECEIVER_WAITS_FOR_TOKEN
        :: !was_set && !took -> atomic { receiver_tokens > 0 -> receiver_tokens-- }
#else
        :: !was_set && !took ->
            atomic {
                if
                :: receiver_tokens > 0 -> receiver_tokens--
                :: else
                fi
            }
#endif
        :: else
#endif
        fi;
        atomic { took = false; was_set = false }
    :: false ->
die:
        /* The kernel gives the lock away when the dead one's stores are visible. */
        atomic {
            !sleeping_pending && !taken_pending[0] && !taken_pending[1] ->
            successions++;
            bits = 0; s = 0; took = false; was_set = false;
            sleeping = false;
            touched = BIT(0) | BIT(1)
        }
    od
}

/*
 * Room in a ring whose readers choose among topics, sleep, and want nothing of
 * what comes: their cursors are needed all the same.
 *
 * The writer puts messages.  When the ring is full it says which cursor it
 * cannot do without (`wanted`) and whose crossing shall wake it (`enough`, a
 * little higher), fences, and looks at the cursors; if there is no room it takes
 * the bits of the choosers whose cursor stands below what is wanted, and posts a
 * token to each; then it waits for a token of its own.
 *
 * A reader passes over what is there, stores its cursor, fences, and if it has
 * crossed `enough` takes that down and posts the writer's token.  Then it sleeps:
 * chooser bit, fence, and in a copy of where it stands it passes over more; if
 * that is something, and the cursor that it has stored is below what is wanted or
 * below enough, it does not wait but stores a higher one.
 *
 * The memory is weaker than x86: each store waits in a buffer, one for each
 * variable, so that stores pass later loads and each other; a second store to the
 * same variable replaces the first.  So does the fetch_or of a chooser bit.  The
 * process `memory` drains the buffers when it likes, a fence waits for the
 * fencing process's.  A fetch_and on the word of a fetch_or comes after it.
 *
 * No wait has a time-out here: the writer's 20 ms and the readers' 100 ms are for
 * the dead.  Nor do messages wake anybody, nor does an eighth of the ring that
 * was filled, which the protocol needs for speed alone.  Proved: the writer is
 * never stuck, that is, whenever it waits somebody else can still do something;
 * with -DLIVENESS, if each process that can always take a step takes one some
 * time, the writer gets all the room that it needs, and then every reader sleeps:
 * none is kept awake without end by a reason that is none.
 *
 * Two sizes, both of which must hold: two readers in a ring of two slots, and with
 * -DONE_READER a longer run of one in a ring of three.
 *
 * Left out: the gate's second look (room_join.pml), and messages that are wanted,
 * which wake by themselves (choosers.pml).
 *
 * Mutants, and what each breaks:
 *
 *   NO_WAKE_LAGGING    the writer does not wake who sleeps.
 *   LAGGING_FIRST      it looks for them before it stores what it wants.
 *   WRITER_NO_FENCE    it looks for them, and at the cursors, before that is
 *                      visible.
 *   READER_NO_FENCE    the reader looks at what is wanted before its bit is
 *                      visible.
 *   NO_WANTED_LOOK     the reader does not look at what is wanted before it waits.
 *   WANTED_FIRST       it looks before it sets its bit.
 *   WANTED_ALONE       it looks at what is wanted, and not at what is enough. The
 *                      writer looks at its cursor, then the cursor comes to what
 *                      is wanted, which wakes nobody, and the reader sleeps.
 *   FLUSH_NO_FENCE     it looks whether the writer is to be woken before its
 *                      cursor is visible.
 *   NO_FLUSH           a reader that was woken passes over messages, but does not
 *                      store its cursor before it sleeps again.
 *   EQUALS             (ONE_READER) only a cursor that is exactly enough wakes the writer, one
 *                      that goes past it does not.
 */

#ifdef ONE_READER
#define READERS 1
#define SLOTS 3
#define LAST 7
#else
#define READERS 2
#define SLOTS 2
#define LAST 4
#endif
#define NONE 255

byte published;
byte published_buffer = NONE;
byte wanted, wanted_buffer = NONE;     /* cursor + 1; 0: none */
byte enough, enough_buffer = NONE;
byte cursor[READERS];
byte cursor_buffer[READERS] = NONE;
bool chooser[READERS];
bool or_pending[READERS];
byte tokens[READERS];
byte space;                /* the writer's tokens */
bool asleep[READERS];
bool writer_done;

/* Could the writer use a higher cursor than the one stored? */
#ifdef WANTED_ALONE
#define NEEDED (wanted != 0 && stored < wanted - 1)
#else
#define NEEDED ((wanted != 0 && stored < wanted - 1) || (enough != 0 && stored < enough - 1))
#endif

#define DRAINED (published_buffer == NONE && wanted_buffer == NONE && enough_buffer == NONE)

active proctype memory()
{
    end:
    do
    :: atomic { published_buffer != NONE -> published = published_buffer; published_buffer = NONE }
    :: atomic { wanted_buffer != NONE -> wanted = wanted_buffer; wanted_buffer = NONE }
    :: atomic { enough_buffer != NONE -> enough = enough_buffer; enough_buffer = NONE }
    :: atomic { cursor_buffer[0] != NONE -> cursor[0] = cursor_buffer[0]; cursor_buffer[0] = NONE }
    :: atomic { or_pending[0] -> chooser[0] = true; or_pending[0] = false }
#if READERS > 1
    :: atomic { cursor_buffer[1] != NONE -> cursor[1] = cursor_buffer[1]; cursor_buffer[1] = NONE }
    :: atomic { or_pending[1] -> chooser[1] = true; or_pending[1] = false }
#endif
    od
}

/* One load of each cursor. */
inline look()
{
    least = put;
    for (r : 0 .. READERS - 1) {
        atomic { least = (cursor[r] < least -> cursor[r] : least) }
    }
    r = 0
}

inline wake_lagging()
{
    for (r : 0 .. READERS - 1) {
        if
        :: atomic { chooser[r] && cursor[r] < need ->
                    chooser[r] = false; tokens[r]++; assert(tokens[r] <= 2) }
        :: !(chooser[r] && cursor[r] < need)
        fi
    }
    r = 0
}

active proctype writer()
{
    byte put, gate, least, need, r;

    do
    :: put == LAST -> break
    :: put < LAST && put < gate + SLOTS ->
        atomic {
            put++;
            published_buffer = put;
            if
            :: need != 0 -> need = 0; wanted_buffer = 0; enough_buffer = 0
            :: else
            fi
        }
    :: put < LAST && put == gate + SLOTS ->
        look();
        if
        :: least > gate -> gate = least
        :: else ->
            need = put + 1 - SLOTS;
#ifdef LAGGING_FIRST
            wake_lagging();
#endif
            atomic { wanted_buffer = need + 1; enough_buffer = need + 2 }
#ifndef WRITER_NO_FENCE
            DRAINED;
#endif
            look();
            if
            :: least > gate -> gate = least
            :: else ->
#if !defined(NO_WAKE_LAGGING) && !defined(LAGGING_FIRST)
                wake_lagging();
#endif
                atomic { space > 0 -> space-- }
            fi
        fi;
        least = 0
    od;
    writer_done = true
}

inline flush()
{
    if
    :: at > stored ->
        cursor_buffer[me] = at;
#ifndef FLUSH_NO_FENCE
        cursor_buffer[me] == NONE;
#endif
        atomic {
            crossed = enough;
            if
#ifdef EQUALS
            :: crossed != 0 && at == crossed - 1
#else
            :: crossed != 0 && stored < crossed - 1 && at >= crossed - 1
#endif
            :: else -> crossed = 0
            fi;
            stored = at
        }
        if
        :: atomic { crossed != 0 && enough == crossed -> enough = 0; space++ }
        :: atomic { crossed == 0 || enough != crossed }
        fi;
        crossed = 0
    :: else
    fi
}

active [READERS] proctype reader()
{
    byte me = _pid - 2;
    byte at, stored, crossed;
    bool took, was_set, ready, passes;

work:
    at = published;
#ifdef NO_FLUSH
    if
    :: took
    :: else -> flush()
    fi;
#else
    flush();
#endif
    took = false;
#ifdef WANTED_FIRST
    ready = NEEDED;
#endif
    or_pending[me] = true;
#ifndef READER_NO_FENCE
    !or_pending[me];
#endif
    passes = published != at;
#ifdef WANTED_FIRST
    ready = ready && passes;
#else
#ifndef NO_WANTED_LOOK
    ready = passes && NEEDED;
#endif
#endif
    if
    :: ready
    :: else ->
        asleep[me] = true;
end:
        atomic { tokens[me] > 0 -> tokens[me]--; took = true; asleep[me] = false }
    fi;
    atomic { !or_pending[me]; was_set = chooser[me]; chooser[me] = false }
    atomic {
        if
        :: !was_set && !took && tokens[me] > 0 -> tokens[me]--
        :: else
        fi;
        was_set = false; ready = false; passes = false
    }
    goto work
}

#ifdef LIVENESS
#if READERS > 1
ltl rest { <> [] (writer_done && asleep[0] && asleep[1]) }
#else
ltl rest { <> [] (writer_done && asleep[0]) }
#endif
#endif

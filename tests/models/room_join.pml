/*
 * The gate: how the writer makes room while lossless readers join and leave.
 *
 * The writer overwrites only sequences below its private gate.  To raise it,
 * it takes m, the least cursor of the gating readers (at most `published`).
 * If m is not above the private gate there is no room; a gating cursor below
 * the gate is a joiner's that is not corrected yet and means the same.
 * Otherwise it stores some G in (private gate, m] to the shared gate, fences,
 * and looks at the gating readers again: if one is below G, the gate comes
 * back down to that cursor, though never below the private gate.  Only then is
 * the private gate raised.
 *
 * A reader joins at any sequence it wishes for, perhaps one long overwritten:
 * it stores the cursor, sets its gating bit, fences, loads the gate, and moves
 * its cursor up to the gate.  From there on it reads without any check and
 * releases each sequence, after reading it, by storing its cursor.  To leave
 * it clears its bit.
 *
 * Either the joiner's fence comes first, and the writer's second look sees the
 * joiner; or the writer's does, and the joiner sees the gate.  Proved: no
 * reader ever reads a sequence below the private gate, that is, one the writer
 * has overwritten or may be overwriting.  With -DLIVENESS: if every reader goes
 * on reading or leaves, and each process that can always take a step takes one
 * some time, the writer gets all the room it needs.
 *
 * The memory is weaker than x86.  A store waits in a buffer, one for each
 * variable, so that stores pass later loads and each other; a second store to
 * the same variable replaces the first.  The fetch_or that sets a gating bit
 * waits likewise: a relaxed read-modify-write on ARM does not order what comes
 * after it.  On x86 it drains the store buffer and the joiner's fence costs
 * nothing that is not paid already; the design relies on C11, in which only
 * the fence orders the bit before the load of the gate.  The process `memory`
 * drains the buffers when it likes, a fence waits for the fencing process's.
 * Stores of cursors and the clearing of a bit are releases: they follow the
 * reads before them.
 *
 * Two sizes, both of which must hold: a longer run with one reader in each
 * reader slot, and with -DTWO_VISITS a shorter one with two, one after another.
 * A reader slot starts with the cursor of a former owner who had read it all.
 *
 * Left out: the slots' contents (the private gate stands for them), buffering
 * of `published` (a reader that sees it late only reads later), and the states
 * and locks of reader slots, which are the subject of reaping.pml.
 *
 * Mutants, all of which let a reader read below the private gate:
 *
 *   NO_SECOND_LOOK   the joiner loads the gate before the writer stores it,
 *                    and the writer looked before the joiner set its bit.
 *   WRITER_NO_FENCE  the second look overtakes the store of the gate.
 *   JOINER_NO_FENCE  the load of the gate overtakes the bit.
 *   GATE_BEFORE_BIT  the joiner loads the gate before it sets its bit.
 *   NO_CORRECTION    the joiner reads where it wished to.
 *   ADVANCE_FIRST    the reader stores its cursor before it reads.
 *   LEAVE_FIRST      the reader clears its bit before its last read.
 *   RAISE_EARLY      the private gate follows the first look, and the second
 *                    only corrects the shared one.
 */

#define READERS 2
#ifdef TWO_VISITS
#define SLOTS 1            /* slots in the ring */
#define LAST 3             /* sequences 0 .. LAST - 1 are published */
#define VISITS 2           /* readers one after another in a reader slot */
#else
#define SLOTS 2
#define LAST 4
#define VISITS 1
#endif
#define EMPTY 255

/* The gate may go up at any time; for liveness, only when it must. */
#ifdef LIVENESS
#define MAY_RAISE (published == private_gate + SLOTS)
#else
#define MAY_RAISE true
#endif

#define MAX(a, b) ((a) > (b) -> (a) : (b))

byte published;
byte private_gate;         /* the writer's own; readers only assert about it */

byte gate;                 /* what memory holds, and what is on its way */
byte gate_buffer = EMPTY;
byte gating;               /* one bit a reader */
bool bit_pending[READERS];
byte cursor[READERS] = LAST;
byte cursor_buffer[READERS] = EMPTY;

active proctype memory()
{
    byte r;

    end:
    do
    :: atomic { gate_buffer != EMPTY -> gate = gate_buffer; gate_buffer = EMPTY }
    :: atomic { bit_pending[0] -> gating = gating | 1; bit_pending[0] = false }
    :: atomic { bit_pending[1] -> gating = gating | 2; bit_pending[1] = false }
    :: atomic { cursor_buffer[0] != EMPTY ->
                cursor[0] = cursor_buffer[0]; cursor_buffer[0] = EMPTY }
    :: atomic { cursor_buffer[1] != EMPTY ->
                cursor[1] = cursor_buffer[1]; cursor_buffer[1] = EMPTY }
    od
}

/* The least gating cursor: one load of the bits, then one of each cursor. */
inline look()
{
    atomic { least = published; bits = gating }
    if
    :: atomic { bits & 1 -> least = (cursor[0] < least -> cursor[0] : least) }
    :: else
    fi;
    if
    :: atomic { bits & 2 -> least = (cursor[1] < least -> cursor[1] : least) }
    :: else
    fi;
    bits = 0
}

active proctype writer()
{
    byte least, bits, wanted;

    do
    :: published == LAST -> break
    :: published < LAST && published < private_gate + SLOTS -> published++
    :: published < LAST && MAY_RAISE ->
        look();
        if
        :: least <= private_gate
        :: else ->
            select (wanted : private_gate + 1 .. least);
            gate_buffer = wanted;
#ifndef WRITER_NO_FENCE
            gate_buffer == EMPTY;
#endif
#ifdef RAISE_EARLY
            private_gate = wanted;
#endif
#ifndef NO_SECOND_LOOK
            look();
            if
            :: least < wanted ->
                wanted = MAX(private_gate, least);
                gate_buffer = wanted
            :: else
            fi;
#endif
            private_gate = wanted
        fi;
        atomic { least = 0; wanted = 0 }
    od
}

inline set_bit()
{
    cursor_buffer[me] = at;
    bit_pending[me] = true;
#ifndef JOINER_NO_FENCE
    cursor_buffer[me] == EMPTY && !bit_pending[me];
#endif
}

active [READERS] proctype reader()
{
    byte me = _pid - 2;
    byte at, gate_seen, visit;

    for (visit : 1 .. VISITS) {
        select (at : 0 .. LAST);
#ifdef GATE_BEFORE_BIT
        gate_seen = gate;
        set_bit();
#else
        set_bit();
        gate_seen = gate;
#endif
#ifndef NO_CORRECTION
        at = MAX(at, gate_seen);
#endif
        gate_seen = 0;
        cursor_buffer[me] = at;

        do
        :: at < published ->
#ifdef ADVANCE_FIRST
            cursor_buffer[me] = at + 1;
#endif
            /* The gate only rises: it is enough to ask at the read's end. */
            assert(at >= private_gate);
            at++;
            cursor_buffer[me] = at
        :: break
        od;

        atomic {
            cursor_buffer[me] == EMPTY && !bit_pending[me];
            gating = gating & ~(1 << me)
        }
#ifdef LEAVE_FIRST
        if
        :: at < published -> assert(at >= private_gate)
        :: else
        fi
#endif
    }
}

#ifdef LIVENESS
ltl room { <> (published == LAST) }
#endif

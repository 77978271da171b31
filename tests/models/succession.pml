/*
 * Succession: a writer dies, and another takes the ring over.
 *
 * A dead writer may leave the shared gate higher than its private one: it had
 * stored the new gate and not yet looked a second time (room_join.pml).  Below
 * the shared gate there may then be readers who joined before it rose and whose
 * messages are still whole; and what lies below the private gate may be half
 * overwritten by a message that was never finished.  So neither the shared gate
 * nor the cursors tell the successor where to start, least of all the cursor of
 * a joiner, which is where it wished to begin until it is corrected.
 *
 * A second word does.  After its second look the writer stores its private gate
 * to `settled`, and only then overwrites anything below it.  A successor takes
 * `settled` for its private gate and stores it to the shared one: readers have
 * nothing below it, nothing at or above it has been touched, and nobody has to
 * be sent away.
 *
 * Proved: no reader reads a sequence that any writer has overwritten or may be
 * overwriting, with readers that join from anywhere at any time, and with two
 * deaths at any step, a successor's own first steps included.
 *
 * Memory is sequentially consistent here.  The order of the gate and the gating
 * bits is the subject of room_join.pml, and a dead process's stores are visible
 * before the kernel gives its lock to another.
 *
 * Left out: how a successor finds the end of what was published, the locks, and
 * the unfinished message itself, for which the writer's private gate stands.
 *
 * Mutants, all of which let a reader read what is overwritten:
 *
 *   TAKE_GATE        the successor starts from the shared gate as it finds it.
 *   LOWER_TO_CURSORS it lowers the shared gate to the lowest gating cursor, after
 *                    sending back whoever was joining.
 *   SETTLE_LATE      the writer begins to overwrite, then stores `settled`.
 */

#define READERS 2
#define SLOTS 2            /* slots in the ring */
#define LAST 3             /* sequences 0 .. LAST - 1 are published */
#define VISITS 2           /* readers one after another in a reader slot */
#define DEATHS 2

#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define MIN(a, b) ((a) < (b) -> (a) : (b))

mtype = { FREE, JOINING, ACTIVE, EVICTED };

byte published, gate, settled;
byte gating;
byte cursor[READERS];
mtype state[READERS] = FREE;

byte gone;                 /* what any writer may have overwritten lies below */
byte deaths;

/* The least gating cursor: one load of the bits, then one of each cursor. */
inline look()
{
    atomic { least = published; bits = gating }
    if
    :: atomic { bits & 1 -> least = MIN(least, cursor[0]) }
    :: else
    fi;
    if
    :: atomic { bits & 2 -> least = MIN(least, cursor[1]) }
    :: else
    fi;
    bits = 0
}

inline send_back(r)
{
    atomic {
        if
        :: state[r] == JOINING -> state[r] = EVICTED
        :: else
        fi
    }
}

#define MAY_DIE if :: true :: deaths < DEATHS -> goto die fi

active proctype writer()
{
    byte private_gate, least, bits, wanted;

    do
    :: published == LAST -> break
    :: published < LAST && published < private_gate + SLOTS ->
        published++;
        MAY_DIE
    :: published < LAST && published == private_gate + SLOTS ->
        look();
        if
        :: least <= private_gate
        :: else ->
            select (wanted : private_gate + 1 .. least);
            gate = wanted;
            MAY_DIE;
            look();
            if
            :: least < wanted ->
                wanted = MAX(private_gate, least);
                gate = wanted;
                MAY_DIE
            :: else
            fi;
            private_gate = wanted;
#ifdef SETTLE_LATE
            gone = MAX(gone, private_gate);
            MAY_DIE;
            settled = private_gate
#else
            settled = private_gate;
            MAY_DIE;
            gone = MAX(gone, private_gate)
#endif
        fi;
        atomic { least = 0; wanted = 0 };
        MAY_DIE
    :: false ->
die:
        atomic { deaths++; private_gate = 0; least = 0; bits = 0; wanted = 0 };
        /* From here on it is the successor. */
#ifdef TAKE_GATE
        private_gate = gate;
#else
#ifdef LOWER_TO_CURSORS
        wanted = gate;
        send_back(0);
        send_back(1);
        look();
        private_gate = (published - least <= SLOTS -> MIN(wanted, least) : wanted);
        atomic { least = 0; wanted = 0 };
#else
        private_gate = settled;
#endif
#endif
        MAY_DIE;
        gate = private_gate;
        MAY_DIE;
        gone = MAX(gone, private_gate)
    od
}

active [READERS] proctype reader()
{
    byte me = _pid - 1;
    byte at, visit;

    for (visit : 1 .. VISITS) {
        state[me] = JOINING;
        select (at : 0 .. LAST - 1);
        cursor[me] = at;
        gating = gating | (1 << me);
        at = MAX(at, gate);
        cursor[me] = at;
        if
        :: atomic { state[me] == JOINING -> state[me] = ACTIVE };
            do
            :: at < published ->
                /* It only rises: it is enough to ask at the read's end. */
                assert(at >= gone);
                at++;
                cursor[me] = at
            :: break
            od
        :: state[me] == EVICTED    /* it may join again */
        fi;
        gating = gating & ~(1 << me);
        atomic { state[me] = FREE; at = 0 }
    }
}

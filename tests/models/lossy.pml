/*
 * The lossy reader: copy first, ask afterwards.
 *
 * A lossy reader sets no gating bit and holds nobody up.  It takes a sequence
 * below `published`, copies the slot, which the writer may be overwriting
 * meanwhile, makes an acquire fence, and loads `settled`: the copy is good if
 * that is not above the sequence.  The writer stores `settled`, the gate as it
 * stands after its second look (room_join.pml), fences with release, and only
 * then overwrites what is below; having written a slot it stores `published`
 * with release.
 *
 * Proved: a copy the reader accepts is whole and is the sequence it asked for.
 *
 * The memory is weaker than x86.  Each variable of the writer's has a store
 * buffer of its own, so its stores become visible in any order unless a fence
 * or a release lies between them; the process `memory` drains the buffers when
 * it likes.  The reader's loads may be made in any order that its acquire load
 * of `published` and its acquire fence do not forbid.  A message has three
 * parts, as a stand-in for many words: the header of the frame that it came in,
 * and two halves of its payload.  The arena has room for two messages, one after
 * the other, so the header of the next message takes the place of that of the
 * oldest one, whose first protected byte is its header's.
 *
 * Left out: gating readers, the second look itself, more than one lossy reader
 * (they do not see one another), and what a reader does about a refused copy.
 *
 * Mutants, all of which let the reader accept a torn or foreign copy:
 *
 *   CHECK_FIRST         the reader loads `settled` before it copies.
 *   READER_NO_FENCE     the load of `settled` may overtake the copying.
 *   READER_NO_ACQUIRE   the copying may overtake the load of `published`.
 *   SETTLE_AFTER        the writer overwrites before it stores `settled`.
 *   WRITER_NO_FENCE     the overwriting may overtake the store of `settled`.
 *   WRITER_NO_RELEASE   `published` may overtake the writing of the slot.
 *   PAYLOAD_ONLY        what is free ends at the oldest message's payload, not at
 *                       its header: a header that arrives is written over it
 *                       without moving the gate.
 */

#define SLOTS 2
#define LAST 5             /* sequences 0 .. LAST - 1 are published */
#define READS 2
#define EMPTY 255
#define NOTHING 254        /* in a slot that was never written */

#define PARTS 3            /* of a message: header, and two halves of the payload */
#define PART(s, p) (PARTS * ((s) % SLOTS) + (p))

byte published;
byte published_buffer = EMPTY;
byte settled;
byte settled_buffer = EMPTY;
byte part[PARTS * SLOTS] = NOTHING;
byte part_buffer[PARTS * SLOTS] = EMPTY;

inline drain(where, buffer)
{
    atomic { buffer != EMPTY -> where = buffer; buffer = EMPTY }
}

active proctype memory()
{
    end:
    do
    :: drain(published, published_buffer)
    :: drain(settled, settled_buffer)
    :: drain(part[0], part_buffer[0])
    :: drain(part[1], part_buffer[1])
    :: drain(part[2], part_buffer[2])
    :: drain(part[3], part_buffer[3])
    :: drain(part[4], part_buffer[4])
    :: drain(part[5], part_buffer[5])
    od
}

#define DRAINED (published_buffer == EMPTY && settled_buffer == EMPTY && \
                 part_buffer[0] == EMPTY && part_buffer[1] == EMPTY && \
                 part_buffer[2] == EMPTY && part_buffer[3] == EMPTY && \
                 part_buffer[4] == EMPTY && part_buffer[5] == EMPTY)

inline raise_gate()
{
    if
    :: next >= SLOTS && private_gate <= next - SLOTS ->
        select (private_gate : next - SLOTS + 1 .. next);
        settled_buffer = private_gate;
#ifndef WRITER_NO_FENCE
        DRAINED;
#endif
    :: else
    fi
}

active proctype writer()
{
    byte next, private_gate;

    for (next : 0 .. LAST - 1) {
#ifdef PAYLOAD_ONLY
        part_buffer[PART(next, 0)] = next;
#endif
#ifndef SETTLE_AFTER
        raise_gate();
#endif
#ifndef PAYLOAD_ONLY
        part_buffer[PART(next, 0)] = next;
#endif
        part_buffer[PART(next, 1)] = next;
        part_buffer[PART(next, 2)] = next;
#ifdef SETTLE_AFTER
        raise_gate();
#endif
        /* A release is visible no earlier than all the stores before it. */
#ifndef WRITER_NO_RELEASE
        DRAINED;
#endif
        published_buffer = next + 1
    }
}

/* What a load must wait for in the reader. */
#ifdef READER_NO_ACQUIRE
#define AFTER_PUBLISHED true
#else
#define AFTER_PUBLISHED did_published
#endif

#ifdef CHECK_FIRST
#define BEFORE_COPY did_settled
#define AFTER_COPY true
#else
#define BEFORE_COPY true
#ifdef READER_NO_FENCE
#define AFTER_COPY true
#else
#define AFTER_COPY (did_header && did_first && did_second)
#endif
#endif

active proctype reader()
{
    byte sequence, limit, header, first, second, settled_seen, round;
    bool did_published, did_header, did_first, did_second, did_settled;

    for (round : 1 .. READS) {
        select (sequence : 0 .. LAST - 1);
        do
        :: !did_published -> atomic { limit = published; did_published = true }
        :: !did_header && AFTER_PUBLISHED && BEFORE_COPY ->
            atomic { header = part[PART(sequence, 0)]; did_header = true }
        :: !did_first && AFTER_PUBLISHED && BEFORE_COPY ->
            atomic { first = part[PART(sequence, 1)]; did_first = true }
        :: !did_second && AFTER_PUBLISHED && BEFORE_COPY ->
            atomic { second = part[PART(sequence, 2)]; did_second = true }
        :: !did_settled && AFTER_PUBLISHED && AFTER_COPY ->
            atomic { settled_seen = settled; did_settled = true }
        :: did_published && did_header && did_first && did_second && did_settled -> break
        od;
        if
        :: sequence < limit && settled_seen <= sequence ->
            assert(header == sequence && first == sequence && second == sequence)
        :: else
        fi;
        atomic {
            sequence = 0; limit = 0; header = 0; first = 0; second = 0; settled_seen = 0;
            did_published = false; did_header = false; did_first = false;
            did_second = false; did_settled = false
        }
    }
}

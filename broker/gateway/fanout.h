/* fanout.h - from a ring's arena to the sockets of many clients, without a copy but the kernel's.
 *
 * One lossless reader of the ring stands for all clients. An outlet is a client's way out: which
 * message is its next, how much of that the socket has taken already, and bytes of the gateway's own
 * (`own`: pongs, closes, names of topics) that go out where a frame ends. `inserts` are such bytes that have
 * a place among the messages: answers that came for this client alone.
 *
 *   RG_PLAIN     each message is a WebSocket frame of its own. Where the frame header that the server
 *                sent stands before the payload (rc_header_bytes()), both go out as they lie there, and
 *                neighbours that touch go out as one piece; else a header is built.
 *   RG_RECORDS   a binary frame holds as many records as there are, up to RG_FRAME_BYTES: for each
 *                message a header of RG_RECORD_BYTES and its payload (docs/wire.md).
 *
 * Short messages without such a header, and records, are copied together once, for all clients that get
 * everything: a piece costs the kernel more than copying a few hundred bytes does, and for each client anew.
 *
 * What goes out is described to sendmsg(2), up to RG_PIECES pieces at a time, and never waits. A
 * message is protected by the reader's cursor as long as that is not past it; who moves the cursor
 * past the next message of an outlet that has sent a part of it calls rg_outlet_cut() before, which
 * copies the rest of that frame aside. So whatever happens, a client gets whole frames.
 *
 * Nothing in a descriptor is believed: a message that does not lie within the arena is RG_IMPOSSIBLE.
 * If the writer has evicted the reader while bytes were being sent (rc_reader_holds()), they may have
 * been others': RG_TAKEN_AWAY, and that client's connection has to end without another byte.
 */
#ifndef RINGCAST_FANOUT_H
#define RINGCAST_FANOUT_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "broadcast.h"

#define RG_PIECES 1024u              /* of one sendmsg(2): UIO_MAXIOV */
#define RG_SEND_BYTES (1u << 19)     /* described at a time; a socket seldom takes more */
#define RG_FRAME_BYTES (1u << 16)    /* of records in one frame, unless one alone is longer */
#define RG_TURN_BYTES (1u << 20)     /* to one client before the others have their turn */
#define RG_JOIN_BYTES 1024u          /* longer messages are not copied */
#define RG_BLOCK_MESSAGES 256u       /* copied together */
#define RG_BLOCKS 64u                /* so far apart clients may be and yet find what was copied for others */
#define RG_JOINED 16u                /* blocks sent at a time, of most */
#define RG_FRAME_HEADER 10u          /* bytes, of most */
#define RG_RECORD_BYTES 64u
#define RG_MESSAGE 1u                /* type of a record */

typedef enum rg_mode { RG_PLAIN, RG_RECORDS } rg_mode;

typedef enum rg_result {
    RG_DRAINED = 1, /* all is sent */
    RG_MORE,        /* its turn is over, and there is more */
    RG_BLOCKED,     /* the socket takes no more now */
    RG_TOPIC,       /* the next message has a topic of which the outlet does not know whether it is wanted */
    RG_STOPPED,     /* all is sent up to where the outlet is to stop */
    RG_FAILED,      /* the socket has: errno */
    RG_TAKEN_AWAY,  /* the reader was evicted */
    RG_IMPOSSIBLE,  /* the segment holds what no writer writes */
    RG_NO_MEMORY,
} rg_result;

/* Bytes of the gateway's own. */
typedef struct rg_bytes {
    uint8_t *data;
    size_t begin, end, room;
} rg_bytes;

/* Bytes that go out before the message of a sequence. */
typedef struct rg_insert {
    uint64_t sequence;
    size_t size;
} rg_insert;

typedef struct rg_outlet {
    int fd;
    rg_mode mode;
    uint64_t next;         /* sequence of its next message */
    uint64_t stop;         /* and where it stops; UINT64_MAX: nowhere */
    uint64_t part;         /* bytes of the frame of `next` that are sent: RG_PLAIN, or a record by itself */
    uint64_t gap;          /* messages missed before `next` and not reported yet: RG_RECORDS */
    uint64_t messages, bytes, lost;
    const uint8_t *wanted; /* a bit for each topic, from 0, which is none; NULL: everything */
    const uint8_t *unsure; /* and of which it is not known whether it is wanted; NULL with `wanted` */
    uint32_t known;        /* topics up to this id are in `wanted`, and RG_RECORDS has their names */
    rg_bytes rest;         /* of a frame that was begun */
    rg_bytes own;          /* whole frames, sent where the next one would begin */
    rg_bytes inserts;      /* rg_insert, by sequence */
    rg_bytes inserted;     /* the frames that they tell the sizes of */
} rg_outlet;

/* Messages copied together: RG_PLAIN frames, or RG_RECORDS, one after the other. Those of a block lie between
 * two multiples of RG_BLOCK_MESSAGES, so that all clients, wherever they are, use the same ones. */
typedef struct rg_block {
    uint64_t begin, end; /* sequences; none: equal */
    uint32_t most_topic; /* the highest id among them */
    uint32_t offsets[RG_BLOCK_MESSAGES + 1]; /* of each in `data`; the last one is where the next would be */
    uint8_t data[RG_BLOCK_MESSAGES * (RG_RECORD_BYTES + RG_JOIN_BYTES)];
} rg_block;

/* What is described to sendmsg(2), and what it is made of. */
typedef struct rg_plan {
    struct iovec pieces[RG_PIECES];
    uint8_t headers[RG_PIECES][RG_RECORD_BYTES + RG_FRAME_HEADER];
    uint32_t count, built;
    uint64_t bytes;
    uint64_t messages; /* that they hold */
    uint64_t first;    /* sequence of the first */
    uint64_t next;     /* the outlet's next message after them */
    const rg_block *joined[RG_JOINED]; /* the blocks they lie in, if in any */
    uint32_t joins;
    rg_block blocks[2][RG_BLOCKS]; /* by mode */
} rg_plan;

/* ---- bytes ---------------------------------------------------------------------------------------- */

static inline size_t rg_bytes_left(const rg_bytes *b) { return b->end - b->begin; }

/* 0: no memory. What is left moves to the front where that costs no more than was taken, so the room is
 * bounded by what waits at a time, and not by what has ever passed. */
static inline int rg_bytes_add(rg_bytes *b, const void *data, size_t size)
{
    if (b->room - b->end < size && b->begin && b->begin >= rg_bytes_left(b)) {
        memmove(b->data, b->data + b->begin, rg_bytes_left(b));
        b->end -= b->begin;
        b->begin = 0;
    }
    if (b->room - b->end < size) {
        size_t room = 2 * (b->end + size);
        uint8_t *larger = realloc(b->data, room);
        if (!larger)
            return 0;
        b->data = larger;
        b->room = room;
    }
    memcpy(b->data + b->end, data, size);
    b->end += size;
    return 1;
}

static inline void rg_bytes_free(rg_bytes *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* ---- headers -------------------------------------------------------------------------------------- */

/* An unmasked frame's header, FIN (RFC 6455 section 5.2); how many bytes. */
static inline uint32_t rg_frame_header(uint8_t *to, uint8_t opcode, uint64_t length)
{
    to[0] = 0x80 | opcode;
    if (length < 126) {
        to[1] = (uint8_t)length;
        return 2;
    }
    if (length < 65536) {
        to[1] = 126;
        to[2] = (uint8_t)(length >> 8);
        to[3] = (uint8_t)length;
        return 4;
    }
    to[1] = 127;
    for (int i = 0; i < 8; i++)
        to[2 + i] = (uint8_t)(length >> (56 - 8 * i));
    return 10;
}

/* The header of a message's record; the numbers are little-endian, as this machine's. */
static inline void rg_record_header(uint8_t *to, const rc_descriptor *d, uint64_t gap)
{
    uint16_t type = RG_MESSAGE;
    memset(to, 0, RG_RECORD_BYTES);
    memcpy(to + 0, &d->f.length, 4);
    memcpy(to + 4, &type, 2);
    memcpy(to + 6, &d->f.kind, 2);
    uint64_t sequence = d->f.seq1 - 1;
    memcpy(to + 8, &sequence, 8);
    memcpy(to + 16, &d->f.time_ns, 8);
    memcpy(to + 24, &d->f.key, 8);
    memcpy(to + 32, &gap, 8);
    memcpy(to + 40, &d->f.topic, 4);
    memcpy(to + 44, &d->f.epoch, 4);
    memcpy(to + 48, &d->f.length, 4);
}

/* ---- the next message ------------------------------------------------------------------------------ */

/* Copy the descriptor of a message that is protected. 0: it is none. */
static inline int rg_look_up(const rc_reader *r, uint64_t sequence, rc_descriptor *d)
{
    const rc_descriptor *shared = &r->descriptors[sequence & (r->slots - 1)];
    rc_store(&d->words[0], rc_load_acquire(&shared->words[0])); /* release: rc_writer_commit() */
    rc_descriptor_copy(d, shared);
    return d->f.seq1 == sequence + 1 && rc_reader_within(r, d);
}

static inline int rg_has(const uint8_t *topics, uint32_t topic)
{
    return topics[topic / 8] >> (topic % 8) & 1;
}

/* What is to be done about the message at `at`, before `end`: RG_MORE: send it, *d is its descriptor. */
static inline rg_result rg_find(const rc_reader *r, rg_outlet *o, uint64_t *at, uint64_t end,
                                rc_descriptor *d)
{
    uint64_t last = o->stop < end ? o->stop : end;
    for (; *at < last; ++*at) {
        if (!rg_look_up(r, *at, d))
            return rc_reader_holds(r) ? RG_IMPOSSIBLE : RG_TAKEN_AWAY;
        if (d->f.destination != 0)
            continue; /* for one of the ring's readers, or one of our clients: not by this way */
        if (o->mode == RG_PLAIN && d->f.flags & RC_FLAG_ANSWER)
            continue; /* the manager's or a worker's: the client's own connection would know nothing of it */
        if (d->f.kind == RC_KIND_EVENT) {
            if (o->mode == RG_RECORDS)
                return RG_MORE;
            continue;
        }
        if (o->wanted || o->mode == RG_RECORDS) {
            if (d->f.topic > o->known || (o->wanted && rg_has(o->unsure, d->f.topic)))
                return RG_TOPIC;
            if (o->wanted && !rg_has(o->wanted, d->f.topic))
                continue;
        }
        return RG_MORE;
    }
    return *at >= o->stop ? RG_STOPPED : RG_DRAINED;
}

/* ---- plans ------------------------------------------------------------------------------------------ */

static inline void rg_plan_begin(rg_plan *p, uint64_t next)
{
    p->count = p->built = p->joins = 0;
    p->bytes = p->messages = 0;
    p->first = p->next = next;
}

/* One piece more; joined to the last one if it lies right behind it. */
static inline void rg_plan_add(rg_plan *p, const void *base, uint64_t length)
{
    if (length == 0)
        return;
    if (p->count && (const uint8_t *)p->pieces[p->count - 1].iov_base +
                            p->pieces[p->count - 1].iov_len == (const uint8_t *)base)
        p->pieces[p->count - 1].iov_len += length;
    else
        p->pieces[p->count++] = (struct iovec){(void *)(uintptr_t)base, length};
    p->bytes += length;
}

/* Leave out the first bytes, which are sent. */
static inline void rg_plan_pass(rg_plan *p, uint64_t sent)
{
    uint32_t i = 0;
    p->bytes -= sent;
    for (; i < p->count && sent >= p->pieces[i].iov_len; i++)
        sent -= p->pieces[i].iov_len;
    memmove(p->pieces, p->pieces + i, (p->count - i) * sizeof *p->pieces);
    p->count -= i;
    if (p->count) {
        p->pieces[0].iov_base = (uint8_t *)p->pieces[0].iov_base + sent;
        p->pieces[0].iov_len -= sent;
    }
}

static inline const uint8_t *rg_payload(const rc_reader *r, const rc_descriptor *d)
{
    return r->arena + (d->f.position & (r->capacity - 1));
}

/* A message as a frame of its own. */
static inline void rg_plan_frame(rg_plan *p, const rc_reader *r, const rc_descriptor *d)
{
    const uint8_t *payload = rg_payload(r, d);
    uint32_t header = rc_header_bytes(d, r->capacity);
    if (header) {
        rg_plan_add(p, payload - header, header + d->f.length);
        return;
    }
    uint8_t *built = p->headers[p->built++];
    header = rg_frame_header(built, d->f.kind == RC_KIND_TEXT ? 1 : 2, d->f.length);
    p->pieces[p->count++] = (struct iovec){built, header};
    p->bytes += header;
    rg_plan_add(p, payload, d->f.length);
}

/* A message as the only record of a frame. */
static inline void rg_plan_record(rg_plan *p, const rc_reader *r, const rc_descriptor *d, uint64_t gap)
{
    uint8_t *built = p->headers[p->built++];
    uint32_t header = rg_frame_header(built, 2, RG_RECORD_BYTES + (uint64_t)d->f.length);
    rg_record_header(built + header, d, gap);
    p->pieces[p->count++] = (struct iovec){built, header + RG_RECORD_BYTES};
    p->bytes += header + RG_RECORD_BYTES;
    rg_plan_add(p, rg_payload(r, d), d->f.length);
}

/* ---- messages copied together --------------------------------------------------------------------------- */

/* Is a message copied to others? It goes to everybody who gets everything. */
static inline int rg_joins(const rc_reader *r, const rc_descriptor *d, rg_mode mode)
{
    return d->f.length <= RG_JOIN_BYTES && d->f.destination == 0 &&
           (mode == RG_RECORDS || (d->f.kind != RC_KIND_EVENT && !(d->f.flags & RC_FLAG_ANSWER) &&
                                   !rc_header_bytes(d, r->capacity)));
}

/* Copy more messages, before `end`, as many as join and belong into the block. What it has stays where it is. */
static inline void rg_block_extend(const rc_reader *r, rg_mode mode, rg_block *b, uint64_t end)
{
    uint64_t before = b->end, last = (b->begin | (RG_BLOCK_MESSAGES - 1)) + 1;
    uint32_t size = b->offsets[b->end - b->begin];
    rc_descriptor d;
    for (; b->end < last && b->end < end; b->end++) {
        if (!rg_look_up(r, b->end, &d) || !rg_joins(r, &d, mode))
            break;
        if (mode == RG_RECORDS) {
            rg_record_header(b->data + size, &d, 0);
            size += RG_RECORD_BYTES;
        } else {
            size += rg_frame_header(b->data + size, d.f.kind == RC_KIND_TEXT ? 1 : 2, d.f.length);
        }
        memcpy(b->data + size, rg_payload(r, &d), d.f.length);
        size += d.f.length;
        b->offsets[b->end + 1 - b->begin] = size;
        if (d.f.topic > b->most_topic)
            b->most_topic = d.f.topic;
    }
    if (b->end != before && !rc_reader_holds(r))
        b->end = b->begin;
}

/* The block that has a message, before `end`. NULL: it is not copied. */
static inline const rg_block *rg_block_at(rg_plan *p, const rc_reader *r, rg_mode mode, uint64_t sequence,
                                          uint64_t end)
{
    rg_block *b = &p->blocks[mode][sequence / RG_BLOCK_MESSAGES % RG_BLOCKS];
    if (sequence < b->begin || sequence > b->end || b->begin == b->end ||
        sequence / RG_BLOCK_MESSAGES != b->begin / RG_BLOCK_MESSAGES) {
        b->begin = b->end = sequence;
        b->most_topic = b->offsets[0] = 0;
    }
    rg_block_extend(r, mode, b, end);
    return sequence < b->end ? b : NULL;
}

/* The last message of a block of which the copy begins at `offset` or before it; `end`, if all do. */
static inline uint64_t rg_block_find(const rg_block *b, uint64_t offset)
{
    uint64_t low = b->begin, high = b->end;
    while (low < high) { /* bisection: offsets grow */
        uint64_t middle = low + (high - low + 1) / 2;
        if (b->offsets[middle - b->begin] <= offset)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* From an outlet's next message on, what is copied together, as a plan: of RG_RECORDS one frame. 0: nothing
 * is. */
static inline int rg_plan_blocks(rg_plan *p, const rc_reader *r, const rg_outlet *o, uint64_t end)
{
    rg_plan_begin(p, o->next);
    if (o->wanted || o->gap || o->stop <= end)
        return 0;
    while (p->next < end && p->joins < RG_JOINED && p->bytes < RG_SEND_BYTES) {
        const rg_block *b = rg_block_at(p, r, o->mode, p->next, end);
        if (!b || (o->mode == RG_RECORDS && b->most_topic > o->known))
            break;
        uint32_t from = b->offsets[p->next - b->begin];
        uint64_t last = b->end;
        if (o->mode == RG_RECORDS) {
            last = rg_block_find(b, from + RG_FRAME_BYTES); /* at least one: a record is shorter */
            uint32_t size = b->offsets[last - b->begin] - from;
            uint32_t header = rg_frame_header(p->headers[0], 2, size);
            p->pieces[p->count++] = (struct iovec){p->headers[0], header};
            p->bytes += header;
        }
        rg_plan_add(p, b->data + from, b->offsets[last - b->begin] - from);
        p->joined[p->joins++] = b;
        p->messages += last - p->next;
        p->next = last;
        if (o->mode == RG_RECORDS || last % RG_BLOCK_MESSAGES)
            break;
    }
    return p->messages > 0;
}

/* As many whole frames as fit, RG_PLAIN. The result says what comes after them. */
static inline rg_result rg_plan_frames(rg_plan *p, const rc_reader *r, rg_outlet *o, uint64_t end)
{
    rc_descriptor d;
    rg_result found;
    rg_plan_begin(p, o->next);
    while ((found = rg_find(r, o, &p->next, end, &d)) == RG_MORE) {
        if (p->count + 2 > RG_PIECES || p->bytes >= RG_SEND_BYTES)
            return RG_MORE;
        rg_plan_frame(p, r, &d);
        p->messages++;
        p->next++;
    }
    return found;
}

/* One frame of records, RG_RECORDS, as many as fit. The result says what comes after it. */
static inline rg_result rg_plan_records(rg_plan *p, const rc_reader *r, rg_outlet *o, uint64_t end)
{
    rc_descriptor d;
    rg_result found;
    uint64_t size = 0, gap = o->gap;
    rg_plan_begin(p, o->next);
    p->count = p->built = 1; /* the frame's header, built at the end */
    while ((found = rg_find(r, o, &p->next, end, &d)) == RG_MORE) {
        uint64_t more = RG_RECORD_BYTES + (uint64_t)d.f.length;
        if (p->count + 2 > RG_PIECES || (size && size + more > RG_FRAME_BYTES))
            break;
        uint8_t *built = p->headers[p->built++];
        rg_record_header(built, &d, gap);
        p->pieces[p->count++] = (struct iovec){built, RG_RECORD_BYTES};
        rg_plan_add(p, rg_payload(r, &d), d.f.length);
        size += more;
        gap = 0;
        if (p->messages++ == 0)
            p->first = p->next;
        p->next++;
    }
    if (p->messages == 0) {
        p->count = p->built = 0;
        return found;
    }
    p->pieces[0] = (struct iovec){p->headers[0], rg_frame_header(p->headers[0], 2, size)};
    p->bytes = size + p->pieces[0].iov_len;
    return found;
}

/* ---- sending ----------------------------------------------------------------------------------------- */

/* How many bytes the socket took; -1: it failed, or takes none. */
static inline ssize_t rg_send(int fd, struct iovec *pieces, uint32_t count)
{
    struct msghdr header = {.msg_iov = pieces, .msg_iovlen = count};
    ssize_t sent;
    do
        sent = sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent;
}

static inline rg_result rg_send_result(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK ? RG_BLOCKED : RG_FAILED;
}

/* Send bytes of the gateway's own. RG_DRAINED: all. */
static inline rg_result rg_send_bytes(rg_outlet *o, rg_bytes *b)
{
    while (rg_bytes_left(b)) {
        struct iovec piece = {b->data + b->begin, rg_bytes_left(b)};
        ssize_t sent = rg_send(o->fd, &piece, 1);
        if (sent < 0)
            return rg_send_result();
        b->begin += (size_t)sent;
        o->bytes += (uint64_t)sent;
    }
    return RG_DRAINED;
}

/* ---- what is put in between ----------------------------------------------------------------------------- */

/* The first sequence before which something is to be put in; UINT64_MAX: none. */
static inline uint64_t rg_insert_at(const rg_outlet *o)
{
    rg_insert first;
    if (!rg_bytes_left(&o->inserts))
        return UINT64_MAX;
    memcpy(&first, o->inserts.data + o->inserts.begin, sizeof first);
    return first.sequence;
}

/* What is due before the outlet's next message becomes the gateway's own; not where that is to stop, for a
 * close may stand there, behind which nothing comes. 0: no memory. */
static inline int rg_insert_due(rg_outlet *o)
{
    while (rg_insert_at(o) <= o->next && o->next < o->stop) {
        rg_insert first;
        memcpy(&first, o->inserts.data + o->inserts.begin, sizeof first);
        if (!rg_bytes_add(&o->own, o->inserted.data + o->inserted.begin, first.size))
            return 0;
        o->inserted.begin += first.size;
        o->inserts.begin += sizeof first;
    }
    return 1;
}

/* Put whole frames in before a message; sequences do not fall from call to call. 0: no memory. */
static inline int rg_insert_add(rg_outlet *o, uint64_t sequence, const void *data, size_t size)
{
    rg_insert one = {sequence, size};
    if (!rg_bytes_add(&o->inserted, data, size))
        return 0;
    if (rg_bytes_add(&o->inserts, &one, sizeof one))
        return 1;
    o->inserted.end -= size;
    return 0;
}

/* The rest of the frame of `next`, of which a part is sent. */
static inline rg_result rg_plan_rest(rg_plan *p, const rc_reader *r, const rg_outlet *o)
{
    rc_descriptor d;
    rg_plan_begin(p, o->next);
    if (!rg_look_up(r, o->next, &d))
        return rc_reader_holds(r) ? RG_IMPOSSIBLE : RG_TAKEN_AWAY;
    if (o->mode == RG_PLAIN)
        rg_plan_frame(p, r, &d);
    else
        rg_plan_record(p, r, &d, o->gap);
    if (o->part >= p->bytes)
        return RG_IMPOSSIBLE; /* the descriptor has changed */
    rg_plan_pass(p, o->part);
    p->messages = 1;
    p->next = o->next + 1;
    return RG_MORE;
}

/* The frame lengths of a plan, once more: after how many whole frames do `sent` bytes end? Sets the outlet to
 * the first message that is not whole. */
static inline void rg_count_sent(const rc_reader *r, rg_outlet *o, uint64_t end, uint64_t sent)
{
    rc_descriptor d;
    while (rg_find(r, o, &o->next, end, &d) == RG_MORE) {
        uint64_t frame = rc_frame_header(d.f.length) + (uint64_t)d.f.length; /* the server's are as long */
        if (frame > sent) {
            o->part = sent;
            return;
        }
        sent -= frame;
        o->messages++;
        o->next++;
    }
}

/* As rg_count_sent(), of a plan of blocks. */
static inline void rg_count_joined(const rg_plan *p, rg_outlet *o, uint64_t sent)
{
    for (uint32_t i = 0; i < p->joins; i++) {
        const rg_block *b = p->joined[i];
        uint64_t offset = b->offsets[o->next - b->begin] + sent;
        uint64_t at = rg_block_find(b, offset);
        o->messages += at - o->next;
        o->next = at;
        if (at < b->end) {
            o->part = offset - b->offsets[at - b->begin];
            return;
        }
        sent = offset - b->offsets[at - b->begin];
    }
}

/* Copy the rest of a plan aside, after `sent` bytes of it. */
static inline int rg_keep_rest(rg_outlet *o, rg_plan *p, uint64_t sent)
{
    rg_plan_pass(p, sent);
    for (uint32_t i = 0; i < p->count; i++)
        if (!rg_bytes_add(&o->rest, p->pieces[i].iov_base, p->pieces[i].iov_len))
            return 0;
    return 1;
}

/* Move on to what comes after a plan of which `sent` bytes were taken. 0: no memory. */
static inline int rg_took(rg_plan *p, const rc_reader *r, rg_outlet *o, uint64_t end, uint64_t sent)
{
    if (sent < p->bytes && o->mode == RG_RECORDS && p->messages > 1) {
        if (!rg_keep_rest(o, p, sent))
            return 0;
    } else if (sent < p->bytes && (o->part || o->mode == RG_RECORDS)) {
        o->next = p->first; /* what lay before it is not wanted */
        o->part += sent;
        return 1;
    } else if (sent < p->bytes && p->joins) {
        rg_count_joined(p, o, sent);
        return 1;
    } else if (sent < p->bytes) {
        rg_count_sent(r, o, end, sent);
        return 1;
    }
    o->next = p->next;
    o->messages += p->messages;
    o->part = o->gap = 0;
    return 1;
}

/* Send what there is before `end`, as far as the socket takes it. */
static inline rg_result rg_outlet_pump(rg_plan *p, const rc_reader *r, rg_outlet *o, uint64_t end)
{
    for (uint64_t turn = 0; turn < RG_TURN_BYTES;) {
        rg_result after;
        if ((after = rg_send_bytes(o, &o->rest)) != RG_DRAINED)
            return after;
        if (o->part == 0 && !rg_insert_due(o))
            return RG_NO_MEMORY;
        if (o->part == 0 && (after = rg_send_bytes(o, &o->own)) != RG_DRAINED)
            return after;
        uint64_t insert = rg_insert_at(o), until = insert < end ? insert : end;
        if (o->part)
            after = rg_plan_rest(p, r, o);
        else if (until == end && rg_plan_blocks(p, r, o, end))
            after = RG_MORE;
        else if (o->mode == RG_PLAIN)
            after = rg_plan_frames(p, r, o, until);
        else
            after = rg_plan_records(p, r, o, until);
        if (after == RG_DRAINED && until < end)
            after = RG_MORE; /* what is to be put in, and what comes after it */
        if (p->messages == 0) {
            o->next = p->next; /* past what is not wanted */
            if (after == RG_MORE)
                continue;
            return after;
        }
        ssize_t sent = rg_send(o->fd, p->pieces, p->count);
        if (!rc_reader_holds(r))
            return RG_TAKEN_AWAY;
        if (sent < 0)
            return rg_send_result();
        o->bytes += (uint64_t)sent;
        turn += (uint64_t)sent;
        int whole = (uint64_t)sent == p->bytes;
        if (!rg_took(p, r, o, until, (uint64_t)sent))
            return RG_NO_MEMORY;
        if (rg_bytes_left(&o->rest) && !rc_reader_holds(r))
            return RG_TAKEN_AWAY; /* while it was copied aside */
        if (whole && after != RG_MORE && o->part == 0 && !rg_bytes_left(&o->own))
            return after;
    }
    return RG_MORE;
}

/* The cursor is to go past what this outlet has sent a part of: copy the rest of that frame aside. RG_DRAINED:
 * done. */
static inline rg_result rg_outlet_cut(rg_plan *p, const rc_reader *r, rg_outlet *o)
{
    if (o->part == 0)
        return RG_DRAINED;
    rg_result found = rg_plan_rest(p, r, o);
    if (found != RG_MORE)
        return found;
    if (!rg_keep_rest(o, p, 0))
        return RG_NO_MEMORY;
    if (!rc_reader_holds(r))
        return RG_TAKEN_AWAY;
    o->next++;
    o->messages++;
    o->part = o->gap = 0;
    return RG_DRAINED;
}

/* Go on at a later message; what was wanted of those between is lost to this client. RG_DRAINED: done. */
static inline rg_result rg_outlet_skip(rg_plan *p, const rc_reader *r, rg_outlet *o, uint64_t to)
{
    rc_descriptor d;
    rg_result found = rg_outlet_cut(p, r, o);
    if (found != RG_DRAINED)
        return found;
    while ((found = rg_find(r, o, &o->next, to, &d)) == RG_MORE || found == RG_TOPIC) {
        o->gap++;
        o->lost++;
        o->next++;
    }
    return found == RG_STOPPED ? RG_DRAINED : found;
}

#endif

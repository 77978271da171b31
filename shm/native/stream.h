/* stream.h - how a writer receives a stream of bytes in place.
 *
 * A program that receives bytes rather than messages lets the kernel put them where they will stay,
 * and describes the messages among them. From `head` on lie `held` bytes that are no message yet.
 *
 *   while ((bytes = rc_stream_room(w, need, want, &room, &length))) {
 *       w->held += recv(fd, bytes + w->held, room, 0);
 *       for each whole message among the held bytes: rc_stream_commit(w, &m, its position, header);
 *       rc_stream_skip(w, position of what is kept);
 *       rc_writer_release(w);
 *   }
 *   no room: rc_writer_wait(w, length, ...)
 */
#ifndef RINGCAST_STREAM_H
#define RINGCAST_STREAM_H

#include "broadcast.h"

/* Where the held bytes lie, and after them `*room` bytes, at most `want` and not 0, to receive more
 * into; NULL if the ring is full, and then `*length` is what to wait for. `need`: how many bytes
 * from head on must lie together, as far as that is known. Held bytes move only where the arena
 * ends: when it has no place for `need`, or next to none at all. */
static inline uint8_t *rc_stream_room(rc_writer *w, uint64_t need, uint64_t want, uint64_t *room,
                                      uint64_t *length)
{
    uint64_t left = w->capacity - (w->head & (w->capacity - 1));
    uint64_t start = w->head, total = w->held + want;
    if (left < need || left < w->held + (want + 15) / 16) {
        start += left;
        *length = total > left ? total : left + 1;
    } else {
        total = total < left ? total : left;
        *length = total;
    }
    if (rc_unlikely(!rc_writer_fits(w, start + total)) && !rc_writer_make_room(w, start + total))
        return NULL;
    if (rc_unlikely(w->wants))
        rc_writer_want_nothing(w);
    if (start != w->head) {
        rc_copy_in(w->arena, w->arena + (w->head & (w->capacity - 1)), w->held);
        w->head = start;
    }
    *room = total - w->held;
    return w->arena + (start & (w->capacity - 1));
}

/* The held bytes at positions before `start` are no part of a message. */
static inline void rc_stream_skip(rc_writer *w, uint64_t start)
{
    w->held -= start - w->head;
    w->head = start;
}

/* The stream has ended: what is held is given up. */
static inline void rc_stream_end(rc_writer *w)
{
    w->head = rc_align(w->head);
    w->held = 0;
}

/* Ask for as many bytes as a message had, so far ahead of it that the next read will fill them: what
 * the kernel writes is then in the cache, and waiting for memory is done while messages are decoded.
 * For floods; a few messages at a time gain nothing. */
static inline void rc_stream_prefetch(const rc_writer *w, uint64_t start, uint64_t length,
                                      uint64_t ahead)
{
    for (uint64_t at = start + ahead; at < start + ahead + length; at += 64)
        __builtin_prefetch(w->arena + (at & (w->capacity - 1)), 1);
}

/* The message.f.length held bytes at position `start` are the next message. The `header` held bytes
 * before them, if not 0, are the header of its one frame, which the descriptor says, unless the arena
 * ends between the two: then the message is empty. 0: no descriptor is free; wait for the length 1. */
static inline int rc_stream_commit(rc_writer *w, rc_descriptor *message, uint64_t start,
                                   uint32_t header)
{
    uint64_t end = start + message->f.length, held = w->held - (end - w->head);
    if (rc_unlikely(w->next - w->gate >= w->slots) && !rc_writer_make_room(w, end))
        return 0;
    message->f.flags &= (uint16_t)~RC_FLAG_HEADER_BITS;
    if ((start & (w->capacity - 1)) >= header)
        message->f.flags |= (uint16_t)header;
    rc_writer_commit(w, message, start);
    w->head = end; /* not aligned: what follows lies there already */
    w->held = held;
    return 1;
}

#endif

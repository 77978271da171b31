/* mpsc.h - the uplink: many senders, one receiver, one order. The bytes are in uplink_layout.h.
 *
 * The idea. A *ticket* is a message's place in the one order, counted from 0. The *ticket ring* has a
 * word for each ticket that may be outstanding; ticket t's is at t & (tickets - 1) and holds
 *
 *      free(t)       t << 16             nobody has ticket t yet
 *      filled(t, s)  t << 16 | s + 1     it is sender s's, and its record is in s's lane
 *
 * and after the receiver has taken it, free(t + tickets). Each sender has a *lane*, a byte ring of its
 * own, in which its records lie in the order of its tickets.
 *
 * Sending. Write the record, with ticket t in it, at the end of the own lane; store `written`
 * (release); then one compare-and-swap of the ticket word from free(t) to filled(t, s). That is claim
 * and commit in one: before it nothing was sent, after it the message is whole. There is no state in
 * between in which others would have to wait for this sender, so one that dies blocks nobody. If the
 * swap fails somebody else has t: write t + 1 into the record and try the next word; each failure is
 * somebody's success.
 *
 * Where to try first: `tail`, a hint, believed only if the word before it is filled, or if it is
 * `head`. So a ticket is claimed only when the one before it was: tickets have no holes.
 *
 * Room. A record takes at least 64 bytes of its lane, and there are as many tickets as all lanes have
 * 64 bytes. So a lane's room is a sender's share of the ticket ring, too, and a fast sender's
 * backpressure is its own. With `window` set a sender may also have only so many messages that are
 * not acknowledged, whatever their length: then nobody's message waits for more than `window` of each
 * other sender's.
 *
 * Receiving. Look at head's word. filled(head, s): the record is the next in s's lane; its ticket must
 * be head's. A record with a smaller ticket was never committed (its sender died before the swap), or
 * was taken by a receiver that died before it said so, and is skipped. Then, in this order: note
 * in `taking` what is to be done, free the word, count the message as taken, move head, free the
 * lane's bytes. It is taken when its word is free: a receiver that dies before has not taken it, and
 * what one that dies after has left undone, its successor does from the note. So a message is
 * delivered at most once, the lane's bytes are never lost, and the count of taken, not acknowledged
 * messages is how many nobody knows of (`unconfirmed`).
 *
 * Trust. What senders write is not believed: every word may be anything. Lane positions are the
 * receiver's private copies; a length is loaded once and bounded by what the lane holds. A ticket
 * word that is neither free(head) nor a whole message is voided (stored as taken) and counted, and the
 * lane it names, if any, is evicted: its state becomes RC_EVICTED, what it has sent is dropped. A
 * hole, which no honest sender makes, is voided when the receiver finds filled words behind it. What
 * senders read of the receiver it stores again now and then, so nothing written over it lasts.
 *
 * Death. A lane's lock is its sender's life. Who finds it free, and the lane in use, takes it; no
 * ticket can come any more, so when head has passed the end of the filled words (`free_at`), and all
 * that was taken is acknowledged, the lane is empty but for what was never committed, and is freed.
 * Only the receiver does that, or a sender that leaves an empty lane.
 *
 * Sleeping is as in broadcast.h: say that you sleep, fence, look again, sleep on the semaphore; the
 * other side changes, fences, looks for sleepers, posts. `sleeping` is the receiver's, `waiters` the
 * senders', who wait for room or for an acknowledgement.
 *
 * A whole sender                                 The whole receiver
 *
 *   while (rc_sender_try(s, ...) == RC_NO_ROOM)         while (rc_receiver_take(r, &item) == RC_TAKEN) {
 *       rc_sender_sleep(s, rc_sender_has_room, ...);        copy item.payload; rc_receiver_free(r, &item);
 *                                                           rc_receiver_done(r, item.ticket, ...);
 *                                                       }
 *                                                       rc_receiver_wake_senders(r);
 *                                                       rc_receiver_wait(r, how, deadline);
 */
#ifndef RINGCAST_MPSC_H
#define RINGCAST_MPSC_H

#include "broadcast.h"
#include "uplink_layout.h"

/* ---- a sender ------------------------------------------------------------------------------ */

typedef enum rc_sending {
    RC_SENT = 1,
    RC_NO_ROOM,     /* wait, and try again */
    RC_SENDER_EVICTED,     /* the receiver took the lane away */
    RC_NO_RECEIVER, /* it has closed the uplink */
    RC_REJECTED,     /* nothing can be delivered now */
    RC_WRONG,       /* the segment holds what no receiver writes */
} rc_sending;

typedef struct rc_sender {
    rc_uplink_map map;
    rc_lane *lane;
    sem_t *wake, *receiver_wake;
    uint64_t state;   /* what lane->state should hold */
    uint64_t written; /* private: what lane->written holds once committed */
    uint64_t taken;   /* as last seen */
    uint64_t sent;    /* messages, by all senders of this lane */
    uint64_t last;    /* own newest ticket + 1; 0: none yet */
    uint64_t rejected, unconfirmed; /* as last reported */
    uint32_t index;
} rc_sender;

static inline void rc_sender_map(rc_sender *s, void *segment, const rc_uplink_geometry *g,
                                 uint32_t index, sem_t *wake, sem_t *receiver_wake)
{
    memset(s, 0, sizeof *s);
    rc_uplink_place(&s->map, segment, g);
    s->lane = &s->map.shared->lanes[index];
    s->wake = wake;
    s->receiver_wake = receiver_wake;
    s->index = index;
}

/* Make the lane, whose lock the caller holds, ours; 0: it is not free. */
static inline int rc_sender_claim(rc_sender *s)
{
    uint64_t word = rc_load_acquire(&s->lane->state); /* release: rc_lane_free() */
    s->written = rc_load(&s->lane->written);
    s->taken = rc_load(&s->lane->taken);
    if ((word & 0xff) != RC_FREE || s->written != s->taken || s->written % RC_RECORD_ALIGNMENT)
        return 0;
    s->sent = rc_load(&s->lane->taken_count);
    s->rejected = rc_load(&s->lane->rejected);
    s->unconfirmed = rc_load(&s->lane->unconfirmed);
    rc_store(&s->lane->sent, s->sent);
    s->state = rc_state_word(word >> 8, RC_ACTIVE);
    for (uint32_t i = 0; i < RC_SENDERS_MAX && sem_trywait(s->wake) == 0; i++)
        ; /* tokens of the owner before */
    rc_store_release(&s->lane->state, s->state);
    return 1;
}

/* The lane's bytes and counts of a sender that is gone. The caller holds its lock. */
static inline void rc_lane_free(rc_lane *lane)
{
    uint64_t word = rc_load(&lane->state);
    rc_store(&lane->written, rc_load(&lane->taken)); /* what was never committed */
    rc_store(&lane->done_count, rc_load(&lane->taken_count));
    rc_store_release(&lane->state, rc_state_word((word >> 8) + 1, RC_FREE));
}

/* Leave; the caller holds the lock and gives it up afterwards. What is in the lane stays for the
 * receiver, which then frees it. */
static inline void rc_sender_leave(rc_sender *s)
{
    uint64_t state = s->state;
    atomic_fetch_and_explicit(&s->map.shared->waiters[s->index / 64], ~rc_bit(s->index),
                              memory_order_acq_rel);
    if (rc_load_acquire(&s->lane->taken) == s->written &&
        rc_load_acquire(&s->lane->done_count) == s->sent && rc_load(&s->lane->state) == state)
        rc_lane_free(s->lane);
    else
        atomic_compare_exchange_strong_explicit(&s->lane->state, &state,
                                                rc_state_word(state >> 8, RC_DEAD),
                                                memory_order_acq_rel, memory_order_relaxed);
}

/* Anything that speaks against sending? */
static inline rc_sending rc_sender_state(const rc_sender *s)
{
    if (rc_unlikely(rc_load(&s->lane->state) != s->state))
        return RC_SENDER_EVICTED;
    if (rc_unlikely(rc_load_acquire(&s->map.shared->state) == RC_RING_CLOSED))
        return RC_NO_RECEIVER;
    return rc_unlikely(rc_load(&s->map.shared->rejecting)) ? RC_REJECTED : RC_SENT;
}

/* Bytes before the record, to begin it at the lane's start if it would be cut; the room needed is
 * that and the record. */
static inline uint64_t rc_sender_padding(const rc_sender *s, uint64_t size)
{
    uint64_t left = s->map.g.lane_bytes - (s->written & (s->map.g.lane_bytes - 1));
    return size <= left ? 0 : left;
}

static inline rc_sending rc_sender_room(rc_sender *s, uint64_t total)
{
    uint64_t window = rc_load(&s->map.shared->window);
    int64_t under_way = (int64_t)(s->sent - rc_load_acquire(&s->lane->done_count));
    if (window && under_way > 0 && (uint64_t)under_way >= window)
        return RC_NO_ROOM;
    if (rc_likely(s->written + total - s->taken <= s->map.g.lane_bytes))
        return RC_SENT;
    /* acquire: pairs with the release in rc_receiver_free(); the receiver's reads are done */
    s->taken = rc_load_acquire(&s->lane->taken);
    if (s->written - s->taken > s->map.g.lane_bytes)
        return RC_WRONG;
    return s->written + total - s->taken <= s->map.g.lane_bytes ? RC_SENT : RC_NO_ROOM;
}

/* The first ticket to try; see "Where to try first". */
static inline uint64_t rc_first_try(const rc_uplink_map *m)
{
    uint64_t hint = rc_load(&m->shared->tail);
    uint64_t head = rc_load_acquire(&m->shared->head); /* release: rc_receiver_free() */
    if (hint > head && hint - head <= m->g.tickets) {
        uint64_t before = rc_load_acquire(rc_word_of(m, hint - 1));
        if (before >> RC_OWNER_BITS == hint - 1 && before != rc_free_word(hint - 1))
            return hint;
    }
    return head;
}

/* Claim a ticket for the record, whose ticket field is rewritten meanwhile. RC_NO_ROOM: others were
 * faster all the time. RC_WRONG: the ring of tickets is full, though there are as many as all lanes
 * have room for. */
static inline rc_sending rc_sender_claim_ticket(rc_sender *s, rc_record *record, uint64_t *ticket)
{
    const rc_uplink_map *m = &s->map;
    uint64_t t = rc_first_try(m);
    for (uint64_t tries = 0; tries <= 2 * m->g.tickets; tries++) {
        uint64_t word = rc_load_acquire(rc_word_of(m, t));
        if (rc_likely(word == rc_free_word(t))) {
            rc_store(&record->ticket, t);
            RC_FAULT(62);
            /* release: the record and `written`; pairs with the acquire in rc_receiver_take() */
            if (rc_likely(atomic_compare_exchange_strong_explicit(
                    rc_word_of(m, t), &word, rc_filled_word(t, s->index), memory_order_acq_rel,
                    memory_order_acquire))) {
                *ticket = t;
                return RC_SENT;
            }
        }
        if (word >> RC_OWNER_BITS < t)
            return RC_WRONG;
        uint64_t first = word >> RC_OWNER_BITS > t ? rc_first_try(m) : 0;
        t = first > t ? first : t + 1; /* somebody was faster; maybe it was even taken already */
    }
    return RC_NO_ROOM;
}

/* Send one message if there is room for it. RC_SENT: *ticket is its place in the order. */
static inline rc_sending rc_sender_try(rc_sender *s, const uint8_t *bytes, uint32_t length,
                                       uint16_t kind, uint64_t *ticket)
{
    uint64_t size = rc_record_size(length), padding = rc_sender_padding(s, size);
    rc_sending state = rc_sender_state(s);
    if (state != RC_SENT || (state = rc_sender_room(s, padding + size)) != RC_SENT)
        return state;
    if (padding) {
        rc_record *end = (rc_record *)rc_lane_at(&s->map, s->index, s->written);
        rc_store(&end->ticket, RC_PADDING);
    }
    rc_record *record =
        (rc_record *)rc_lane_at(&s->map, s->index, s->written + padding);
    rc_store(&record->about, (uint64_t)length << 32 | kind);
    RC_FAULT(60);
    rc_copy_in(record->payload, bytes, length);
    rc_store_release(&s->lane->written, s->written + padding + size);
    RC_FAULT(61);
    if ((state = rc_sender_claim_ticket(s, record, ticket)) != RC_SENT)
        return state; /* `written` is ahead; the next try writes the same place */
    RC_FAULT(63);
    s->written += padding + size;
    s->last = *ticket + 1;
    rc_store(&s->lane->sent, ++s->sent);
    if (rc_load(&s->map.shared->tail) < *ticket + 1)
        rc_store(&s->map.shared->tail, *ticket + 1);
    RC_FAULT(64);
    rc_fence(); /* pairs with the fence in rc_receiver_sleep() */
    if (rc_load(&s->map.shared->sleeping) &&
        atomic_exchange_explicit(&s->map.shared->sleeping, 0, memory_order_acq_rel))
        rc_post(s->receiver_wake);
    RC_FAULT(65);
    return RC_SENT;
}

/* Sleep until the receiver has taken or acknowledged something of this lane, or the deadline comes;
 * `ready` looks whether that is already so. At most RC_SLICE_NS. */
static inline int rc_sender_sleep(rc_sender *s, int (*ready)(const rc_sender *, uint64_t),
                                  uint64_t what, int64_t deadline_ns)
{
    _Atomic uint64_t *word = &s->map.shared->waiters[s->index / 64];
    uint64_t bit = rc_bit(s->index);
    int64_t slice = rc_now_ns() + RC_SLICE_NS;
    int token = 0;
    atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
    rc_fence(); /* pairs with the fence in rc_receiver_wake_senders() */
    rc_sending state = rc_sender_state(s);
    int found = ready(s, what) || state == RC_SENDER_EVICTED || state == RC_NO_RECEIVER;
    if (!found)
        token = rc_take_token_until(s->wake, slice < deadline_ns ? slice : deadline_ns);
    rc_is_awake(word, bit, s->wake, token); /* pairs with the exchange in rc_receiver_wake_senders() */
    return found || token;
}

/* Is there room for a message of this length? */
static inline int rc_sender_has_room(const rc_sender *s, uint64_t length)
{
    rc_sender copy = *s;
    uint64_t size = rc_record_size(length);
    return rc_sender_room(&copy, rc_sender_padding(s, size) + size) != RC_NO_ROOM;
}

/* Is everything below this ticket acknowledged? */
static inline int rc_sender_flushed(const rc_sender *s, uint64_t ticket)
{
    return rc_load_acquire(&s->map.shared->flushed) >= ticket; /* rc_receiver_acknowledge() */
}

/* ---- the receiver -------------------------------------------------------------------------- */

typedef enum rc_taking { RC_TAKEN = 1, RC_NOTHING, RC_VOIDED } rc_taking;

typedef struct rc_receiver {
    rc_uplink_map map;
    sem_t **senders_wake; /* one for each lane */
    sem_t *wake;
    uint64_t head, flushed;
    uint64_t *taken;   /* positions, private; max_senders */
    uint64_t *free_at; /* the ticket at which a dead sender's lane is empty, plus one; 0: not dead */
    uint64_t touched[RC_SENDERS_MAX / 64]; /* lanes with news since senders were last woken */
    uint64_t looked;                       /* tickets looked at for holes */
    uint64_t voided;                       /* ticket words that held no message */
    uint64_t evicted;                      /* senders */
    uint64_t window;                       /* what the shared words should hold */
    uint32_t rejecting;
    uint32_t epoch;
} rc_receiver;

typedef struct rc_item {
    const uint8_t *payload; /* in the lane, until rc_receiver_free() */
    uint64_t ticket, position; /* after the record */
    uint32_t length, lane;
    uint16_t kind;
} rc_item;

static inline void rc_receiver_map(rc_receiver *r, void *segment, const rc_uplink_geometry *g,
                                   sem_t **senders_wake, sem_t *wake, uint64_t *taken,
                                   uint64_t *free_at)
{
    memset(r, 0, sizeof *r);
    rc_uplink_place(&r->map, segment, g);
    r->senders_wake = senders_wake;
    r->wake = wake;
    r->taken = taken;
    r->free_at = free_at;
}

static inline void rc_receiver_touch(rc_receiver *r, uint32_t lane)
{
    r->touched[lane / 64] |= rc_bit(lane);
}

/* Finish what a dead receiver had begun: the noted word was freed, if it is below `head`, and so its
 * message was taken. Doing it again changes nothing. The note goes last of all, also if the message
 * was not taken: it may be voided now. */
static inline void rc_receiver_finish(rc_receiver *r, uint64_t head)
{
    rc_uplink *u = r->map.shared;
    uint64_t taking = rc_load_acquire(&u->taking);
    uint64_t owner = taking & ((1 << RC_OWNER_BITS) - 1);
    if (owner && owner <= r->map.g.max_senders && taking >> RC_OWNER_BITS < head) {
        rc_lane *lane = &u->lanes[owner - 1];
        rc_store(&lane->taken_count, rc_load(&u->taking_count));
        rc_store_release(&lane->taken, rc_load(&u->taking_position));
    }
    rc_store_release(&u->taking, 0);
}

/* Begin, or take over from a dead receiver, whose lock the caller holds: what was committed and not
 * taken is still there. 0: the counters are impossible. */
static inline int rc_receiver_open(rc_receiver *r, uint64_t pid, uint64_t now_ns)
{
    rc_uplink *u = r->map.shared;
    uint64_t head = rc_load_acquire(&u->head), tickets = r->map.g.tickets;
    for (uint64_t i = 0; i < tickets; i++, head++) /* words freed before head was moved */
        if (rc_load_acquire(rc_word_of(&r->map, head)) != rc_free_word(head + tickets))
            break;
    if (head > UINT64_MAX >> RC_OWNER_BITS)
        return 0;
    /* Before any byte is freed: a sender may fill a freed word anew once there is room, and a next
     * successor, had this one died, would not know it for one that was freed. */
    rc_store_release(&u->head, head);
    rc_receiver_finish(r, head);
    for (uint32_t i = 0; i < r->map.g.max_senders; i++) {
        rc_lane *lane = &u->lanes[i];
        uint64_t count = rc_load(&lane->taken_count), answered = rc_load(&lane->answered);
        r->taken[i] = rc_load(&lane->taken) & ~(uint64_t)(RC_RECORD_ALIGNMENT - 1);
        rc_store(&lane->unconfirmed, count - answered); /* of all deaths: the same if this one dies, too */
        rc_store_release(&lane->done_count, count);
        rc_receiver_touch(r, i); /* the dead one may not have come to wake its sender */
    }
    r->head = r->flushed = head;
    rc_store_release(&u->flushed, head);
    r->epoch = rc_load(&u->epoch) + 1;
    rc_store(&u->epoch, r->epoch);
    rc_store(&u->receiver_pid, pid);
    rc_store(&u->receiver_since_ns, now_ns);
    rc_store(&u->sleeping, 0);
    rc_store(&u->rejecting, 0);
    rc_store(&u->window, 0);
    rc_store_release(&u->state, RC_RING_OPEN);
    return 1;
}

/* Take the lane away from a sender that writes what no sender writes; what it has sent is dropped. */
static inline void rc_receiver_evict(rc_receiver *r, uint32_t lane)
{
    rc_lane *l = &r->map.shared->lanes[lane];
    uint64_t word = rc_load_acquire(&l->state), generation = word >> 8;
    while (word >> 8 == generation && ((word & 0xff) == RC_ACTIVE || (word & 0xff) == RC_DEAD)) {
        if (atomic_compare_exchange_strong_explicit(&l->state, &word,
                                                    rc_state_word(word >> 8, RC_EVICTED),
                                                    memory_order_acq_rel, memory_order_acquire)) {
            r->evicted++;
            rc_receiver_touch(r, lane);
            return;
        }
    }
}

/* Find the record of `ticket` in a lane; 0: it is not there as it should be. */
static inline int rc_receiver_find(rc_receiver *r, uint64_t ticket, uint32_t lane, rc_item *item)
{
    uint64_t bytes = r->map.g.lane_bytes, position = r->taken[lane];
    /* after the acquire of the ticket word, so it covers the record */
    uint64_t written = rc_load_acquire(&r->map.shared->lanes[lane].written);
    if (written - position > bytes)
        return 0;
    while (written != position) { /* each round comes at least RC_RECORD_ALIGNMENT nearer */
        const rc_record *record = (const rc_record *)rc_lane_at(&r->map, lane, position);
        uint64_t offset = position & (bytes - 1), found = rc_load(&record->ticket);
        uint64_t about = rc_load(&record->about), length = about >> 32;
        if (found == RC_PADDING && offset && bytes - offset <= written - position) {
            position += bytes - offset;
            continue;
        }
        uint64_t size = rc_record_size(length);
        if (found > ticket || length > r->map.g.max_message || offset + size > bytes ||
            size > written - position)
            return 0;
        position += size;
        if (found < ticket)
            continue; /* never committed, or taken by a receiver that died */
        item->payload = record->payload;
        item->ticket = ticket;
        item->position = position;
        item->length = (uint32_t)length;
        item->lane = lane;
        item->kind = (uint16_t)about;
        return 1;
    }
    return 0;
}

static inline void rc_receiver_pass(rc_receiver *r)
{
    uint64_t next = r->head + r->map.g.tickets;
    /* release: what was read of the message was read; pairs with the senders' swap */
    rc_store_release(rc_word_of(&r->map, r->head), rc_free_word(next));
    RC_FAULT(71);
    r->head++;
    rc_store_release(&r->map.shared->head, r->head); /* acquire: rc_first_try() */
}

static inline int rc_receiver_ready(const rc_receiver *r)
{
    return rc_load_acquire(rc_word_of(&r->map, r->head)) != rc_free_word(r->head);
}

/* How many words, head's and free ones, are there at most before a filled one? 0: it is no hole;
 * honest senders leave none. Looks at a part of the tickets, and at the next part the next time. */
static inline uint64_t rc_receiver_hole(rc_receiver *r)
{
    for (uint64_t i = 0; i < RC_HOLE_LOOKS; i++) {
        uint64_t ticket = r->head + 1 + r->looked++ % (r->map.g.tickets - 1);
        uint64_t word = rc_load_acquire(rc_word_of(&r->map, ticket));
        if (word >> RC_OWNER_BITS == ticket && word != rc_free_word(ticket))
            return rc_receiver_ready(r) ? 0 : ticket - r->head;
    }
    return 0;
}

/* Void a hole's first word; a sender may fill it at the same time, and then nothing is wrong with it. */
static inline void rc_receiver_void_hole(rc_receiver *r)
{
    uint64_t word = rc_free_word(r->head);
    if (atomic_compare_exchange_strong_explicit(rc_word_of(&r->map, r->head), &word,
                                                rc_free_word(r->head + r->map.g.tickets),
                                                memory_order_acq_rel, memory_order_acquire)) {
        r->voided++;
        r->flushed += r->flushed == r->head;
        r->head++;
        rc_store_release(&r->map.shared->head, r->head);
    }
}

/* Look at the next ticket. RC_TAKEN: *item is its message, to be freed with rc_receiver_free(), or
 * looked at again. RC_VOIDED: it was none; look again. */
static inline rc_taking rc_receiver_take(rc_receiver *r, rc_item *item)
{
    /* acquire: pairs with the swap in rc_sender_claim_ticket() */
    uint64_t word = rc_load_acquire(rc_word_of(&r->map, r->head));
    uint64_t owner = word & ((1 << RC_OWNER_BITS) - 1);
    if (word == rc_free_word(r->head))
        return RC_NOTHING;
    if (rc_likely(word >> RC_OWNER_BITS == r->head && owner <= r->map.g.max_senders)) {
        uint32_t lane = (uint32_t)owner - 1;
        uint64_t state = rc_load_acquire(&r->map.shared->lanes[lane].state) & 0xff;
        if (rc_likely((state == RC_ACTIVE || state == RC_DEAD) &&
                      rc_receiver_find(r, r->head, lane, item)))
            return RC_TAKEN;
        rc_receiver_evict(r, lane);
    }
    r->voided++;
    r->flushed += r->flushed == r->head; /* nobody acknowledges it */
    rc_receiver_pass(r);
    return RC_VOIDED;
}

/* The message was copied: free its ticket, count it, free its bytes. The releases keep this order for
 * a successor: a note is whole, or 0. */
static inline void rc_receiver_free(rc_receiver *r, const rc_item *item)
{
    rc_uplink *u = r->map.shared;
    rc_lane *lane = &u->lanes[item->lane];
    uint64_t count = rc_load(&lane->taken_count) + 1;
    rc_store(&u->taking, 0);
    rc_store_release(&u->taking_position, item->position);
    rc_store_release(&u->taking_count, count);
    rc_store_release(&u->taking, rc_filled_word(item->ticket, item->lane));
    RC_FAULT(70);
    rc_receiver_pass(r); /* its first store is the one that takes the message */
    rc_store_release(&lane->taken_count, count); /* not before that */
    r->taken[item->lane] = item->position;
    RC_FAULT(72);
    /* release: the copy is done; pairs with the acquire in rc_sender_room() */
    rc_store_release(&lane->taken, item->position);
    RC_FAULT(73);
    rc_receiver_touch(r, item->lane);
}

/* What became of a message that was taken: delivered, or rejected. Tickets in their order. */
static inline void rc_receiver_done(rc_receiver *r, uint64_t ticket, uint32_t lane, int rejected)
{
    rc_lane *l = &r->map.shared->lanes[lane];
    if (rejected)
        rc_store(&l->rejected, rc_load(&l->rejected) + 1);
    rc_store(&l->answered, rc_load(&l->answered) + 1);
    /* release: `rejected` comes before; acquire: rc_sender_room() and rc_sender_flushed() */
    rc_store_release(&l->done_count, rc_load(&l->done_count) + 1);
    r->flushed = ticket + 1;
    rc_store_release(&r->map.shared->flushed, r->flushed);
    rc_receiver_touch(r, lane);
}

/* There is news for every sender. */
static inline void rc_receiver_touch_all(rc_receiver *r) { memset(r->touched, 0xff, sizeof r->touched); }

/* Wake the senders that wait and for which there is news. Once a batch. */
static inline void rc_receiver_wake_senders(rc_receiver *r)
{
    rc_fence(); /* pairs with the fence in rc_sender_sleep() */
    for (uint32_t base = 0; base < r->map.g.max_senders; base += 64) {
        uint64_t bits = r->touched[base / 64] & rc_load(&r->map.shared->waiters[base / 64]);
        r->touched[base / 64] = 0;
        if (rc_likely(!bits))
            continue;
        /* acq_rel: whoever's bit this takes is owed exactly one token */
        bits &= atomic_fetch_and_explicit(&r->map.shared->waiters[base / 64], ~bits,
                                          memory_order_acq_rel);
        for (; bits; bits &= bits - 1) {
            uint32_t lane = base + (uint32_t)__builtin_ctzll(bits);
            if (lane < r->map.g.max_senders)
                rc_post(r->senders_wake[lane]);
        }
    }
}

/* A lane that was in use, whose lock the caller holds: free it once its last ticket was taken. */
static inline int rc_receiver_reap(rc_receiver *r, uint32_t index)
{
    rc_lane *lane = &r->map.shared->lanes[index];
    if ((rc_load_acquire(&lane->state) & 0xff) == RC_FREE)
        return 0; /* its sender left after the caller had looked: free_at would be the next owner's */
    if (!r->free_at[index]) {
        uint64_t end = r->head; /* no ticket of it can come after this */
        for (uint64_t i = 0; i < r->map.g.tickets; i++, end++) {
            uint64_t word = rc_load_acquire(rc_word_of(&r->map, end));
            if (word >> RC_OWNER_BITS != end || word == rc_free_word(end))
                break;
        }
        r->free_at[index] = end + 1;
    }
    /* `flushed` is private: a sender that wrote over the counts keeps no lane for ever */
    if (r->head < r->free_at[index] - 1 ||
        (r->flushed < r->free_at[index] - 1 &&
         (int64_t)(rc_load(&lane->taken_count) - rc_load(&lane->done_count)) > 0))
        return 0;
    r->free_at[index] = 0;
    rc_store(&lane->taken, r->taken[index]);
    rc_lane_free(lane);
    return 1;
}

/* Have the bytes of a free lane been written over? */
static inline int rc_receiver_spoiled(const rc_receiver *r, uint32_t index)
{
    const rc_lane *lane = &r->map.shared->lanes[index];
    return rc_load(&lane->written) != r->taken[index] || rc_load(&lane->taken) != r->taken[index];
}

/* Make a free lane, whose lock the caller holds, what its next owner must find. */
static inline void rc_receiver_mend(rc_receiver *r, uint32_t index)
{
    rc_lane *lane = &r->map.shared->lanes[index];
    if ((rc_load_acquire(&lane->state) & 0xff) != RC_FREE)
        return;
    rc_store(&lane->taken, r->taken[index]);
    rc_store(&lane->written, r->taken[index]);
}

/* Store again what senders rely on, whoever may have written over it. */
static inline void rc_receiver_republish(rc_receiver *r)
{
    rc_uplink *u = r->map.shared;
    rc_store_release(&u->head, r->head);
    rc_store_release(&u->flushed, r->flushed);
    rc_store(&u->window, r->window);
    rc_store(&u->rejecting, r->rejecting);
    rc_store_release(&u->state, RC_RING_OPEN);
    for (uint32_t i = 0; i < r->map.g.max_senders; i++)
        if ((rc_load(&u->lanes[i].state) & 0xff) != RC_FREE)
            rc_store_release(&u->lanes[i].taken, r->taken[i]);
}

/* The receiver's half of sleeping and waking, at most until the deadline. It works on a snapshot of
 * the receiver: the thread that sleeps need not be the one that takes, and `head` is the caller's. */
static inline int rc_receiver_sleep(const rc_receiver *r, int64_t deadline_ns)
{
    int token = 0;
    rc_store(&r->map.shared->sleeping, 1);
    rc_fence(); /* pairs with the fence in rc_sender_try() */
    int ready = rc_receiver_ready(r);
    if (!ready)
        token = rc_take_token_until(r->wake, deadline_ns);
    /* acq_rel: pairs with the exchange in rc_sender_try() */
    if (!atomic_exchange_explicit(&r->map.shared->sleeping, 0, memory_order_acq_rel) && !token)
        (void)sem_trywait(r->wake);
    return ready || token;
}

static inline int rc_receiver_wait(const rc_receiver *r, rc_wait_strategy strategy,
                                   int64_t deadline_ns)
{
    int64_t now = rc_now_ns();
    int64_t limit = now + RC_SLICE_NS < deadline_ns ? now + RC_SLICE_NS : deadline_ns;
    int64_t spin_until = strategy.kind != RC_BLOCKING ? limit : now + strategy.spin_ns;
    if (spin_until > limit)
        spin_until = limit;
    uint32_t round = 0;
    while (now < spin_until) {
        for (int i = 0; i < RC_SPINS_PER_CLOCK; i++) {
            if (rc_receiver_ready(r))
                return 1;
            rc_pause(strategy.kind);
        }
        rc_offer_core(strategy.kind, round++);
        now = rc_now_ns();
    }
    return strategy.kind != RC_BLOCKING ? 0 : rc_receiver_sleep(r, limit);
}

/* The end: senders find it at their next call. */
static inline void rc_receiver_close(rc_receiver *r)
{
    rc_store_release(&r->map.shared->state, RC_RING_CLOSED);
    rc_fence(); /* pairs with the fence in rc_sender_sleep(): it sees the end, or is woken below */
    for (uint32_t i = 0; i < r->map.g.max_senders; i++)
        if ((rc_load(&r->map.shared->lanes[i].state) & 0xff) != RC_FREE)
            rc_post(r->senders_wake[i]);
}

#endif

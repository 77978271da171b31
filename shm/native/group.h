/* group.h - work groups: a ring's messages shared out among the members of a group, each handled by one
 * of them, and by another only if the first died, left, was evicted or gave it back. The protocol.
 *
 * A member is a reader slot (broadcast.h): its lock says that it lives, its semaphore wakes it, its
 * state word evicts it. Instead of a cursor of its own it shares its group's floor (group_table.h). For
 * each sequence that the ring can hold the group's segment has a *lease*, one word:
 *
 *   63          32 31        21 20      11 10        3 2     0
 *   +--------------+------------+----------+-----------+-------+
 *   |     lap      | generation |   slot   | deliveries| state |
 *   +--------------+------------+----------+-----------+-------+
 *
 * The lap says which round of the ring the word is of, so that one of an earlier round counts as FREE.
 * Slot and generation are the member's that wrote it. Whoever changes a lease does so by compare-and-
 * swap from the very word that it has read:
 *
 *                 +------------ give back, leave, sweep ----------+
 *                 v                                               |
 *   FREE --> (ASSIGNED) --> CLAIMED --> KEPT --> DONE          RETURNED
 *     |                      |   ^  |             ^ ^             |
 *     +----------------------+   |  +-------------+ |             |
 *                                +------------------|-------------+
 *                                                   +--- set aside: delivered too often
 *
 *   FREE      nobody's yet. Wanted, or counted as done if the group does not want it.
 *   ASSIGNED  RC_ROUND_ROBIN only: dealt to a member that has not taken it yet.
 *   CLAIMED   handed to the program of the slot's owner. deliveries counts how often it was, with this.
 *   KEPT      acknowledged, but the program still has its bytes in hand: it is not delivered again, and
 *             the ring does not reuse it.
 *   RETURNED  to be delivered again. The slot says who had it.
 *   DONE      acknowledged, or set aside.
 *
 * The floor is the lowest sequence that is neither DONE nor unwanted. Who has acknowledged messages
 * moves it: from the floor over what is DONE or unwanted, then compare-and-swap of the floor. All that
 * was looked at on the way was protected as long as the floor stood where it began, and the
 * compare-and-swap finds out whether it did. It is moved now and then, as cursors are, and at once when
 * the writer waits for room. What is at or above the floor lies in the ring; so a lease protects its
 * message, and whoever has claimed it may use it in place.
 *
 * Who takes what
 *
 *   RC_ANY          head is the next sequence that nobody has claimed. A member claims the lease at the
 *                   head, then moves the head on. Who finds the lease at the head claimed moves the head
 *                   on for its owner: so a member that dies or stops between the two delays nobody.
 *   RC_ROUND_ROBIN  likewise, but the one at the head is dealt to the member after that whose turn was
 *                   last. Who is at work deals out all there is, and wakes whom it deals to.
 *   RC_KEY          each of RC_PARTITIONS partitions has an owner, and it alone claims the messages of
 *                   its partitions, in their order, from a position of its own.
 *
 * A partition changes hands only while none of its messages is in hand. Its word says BUSY while one is:
 *
 *   claim:   partition idle, mine -> busy, mine;  claim the lease
 *   finish:  DONE (release);  none of the partition in hand any more: busy, mine -> idle, mine,
 *            or, if it has an heir:  busy, mine -> idle, the heir's;  wake the heir
 *   take:    idle, another's -> idle, mine;  or busy, another's -> busy, another's, I am the heir
 *   of the dead: any word -> idle, mine, once all leases of the dead are swept
 *
 * The word counts how often it has changed hands. A member remembers for each partition the count that it
 * has seen, and when it meets another it looks again from the floor on. So each message of a partition
 * that lies below its position, and is not done, is in its own hand, or was given back by itself, which
 * takes the position back, too. With that, and since only the owner claims: the messages of a key are
 * handled in their order and never by two at a time.
 *
 * Who should own how many: 1024 partitions among n members, each floor(1024 / n) or one more. A member
 * that has fewer takes from those that have more, and each takes of what the dead and those that left
 * owned until it has its share; what lies there longer, whoever is awake takes. Nothing depends on two
 * members agreeing about who lives: they take by compare-and-swap, and look again when that changes.
 *
 * Waking (RC_ANY). A message wakes one sleeper, and while that one has not answered, others wake nobody:
 *
 *   writer: published (release);  fence(seq_cst);  called is up: nobody;
 *           else called up;  take the bit of a sleeper, post it, else try the next;  none: called down
 *   sleeper: woken, or by itself: its bit off;  called down;  fence(seq_cst);  look
 *   who claims: more is there, somebody sleeps, called is down: called up, and so on as the writer
 *
 * Of a writer that posts nobody and the sleeper that answers, one sees the other: so the sleeper finds what
 * was published, and calls the next for it. In a burst that costs the writer one post, not one a message. If
 * the one that was called dies or stands still, the next whose slice is over answers for it. With the other
 * balances a message wakes its owner.
 *
 * Looking again. row.again goes up whenever there is something for members behind their positions or
 * behind the head: a message was given back, or a member left or died. Who sees it change starts anew
 * from the floor. Who makes something RETURNED raises it after that.
 *
 * Death. Each RC_GROUP_SLICE_NS one of the members looks whether the others live: is the slot still of
 * the generation that has joined, in a state that holds, and its lock held? It sweeps those that are
 * not:
 *
 *   all leases of (slot, generation):  CLAIMED, ASSIGNED -> RETURNED;  KEPT -> DONE
 *   members[slot]: generation + 1 -> the same, GONE: its partitions are the next taker's
 *   again up;  wake sleepers
 *   members[slot]: -> 0, but not while its process lives
 *
 * Every step may be repeated, by the next one or by several at once: each lease is swept by one of them.
 * A member that was evicted and lives may, for a moment, claim what it had looked at before. It looks at
 * its slot after each claim, and gives back what it should not have; in case it is stopped or dies
 * there, members[slot] stays, GONE, and each look sweeps it again, until the slot is another's. Its
 * acknowledgement, when it comes too late, finds another word, and counts nothing. The bits of
 * row.members are hints, for the writer and for whose turn it is: each member puts its own right.
 *
 * Nothing in here is believed. A word that no member writes is thrown away (voided), its message is
 * RETURNED, and the member that it names is evicted. Every loop is bounded by the ring's slots or by a
 * constant.
 */
#ifndef RINGCAST_GROUP_H
#define RINGCAST_GROUP_H

#include "broadcast.h"
#include "endpoint.h"
#include "group_layout.h"

#define RC_PAUSES 16u                      /* messages given back that wait for their next delivery here */
#define RC_PAUSE_NS INT64_C(1000000)       /* the first one; doubles with each delivery */
#define RC_PAUSE_MAX_NS INT64_C(1000000000)
#define RC_PAUSE_FOR_OTHERS_NS INT64_C(100000000) /* as long as a stopped sleeper may keep one from others */
#define RC_TAKE_TRIES 64u                  /* races lost in one call */
#define RC_NO_HAND UINT32_MAX              /* who asks for nothing of which anybody has something in hand */
#define RC_NO_SEQUENCE UINT64_MAX
#define RC_SCAN_ON (UINT64_MAX - 1)        /* the head is past what was looked at */
#define RC_MEMBER_GONE (UINT64_C(1) << 63) /* of members[slot] */

enum {
    RC_LEASE_FREE = 0,
    RC_LEASE_ASSIGNED = 1,
    RC_LEASE_CLAIMED = 2,
    RC_LEASE_KEPT = 3,
    RC_LEASE_RETURNED = 4,
    RC_LEASE_DONE = 5,
    RC_LEASE_IMPOSSIBLE = 6,
};

/* ---- leases ---------------------------------------------------------------------------------- */

/* What says which leases there are, for members and for others that move a floor. */
typedef struct rc_group_map {
    rc_group_row *row;
    rc_group_segment *segment;
    rc_control *control;
    const rc_descriptor *descriptors;
    rc_group_view view;
    uint64_t slots;
    uint32_t group, max_readers;
} rc_group_map;

static inline void rc_group_map_at(rc_group_map *map, const void *data, void *control,
                                   rc_group_segment *segment, const rc_geometry *g, uint32_t group)
{
    *map = (rc_group_map){
        .row = &((rc_control *)control)->group_rows[group],
        .segment = segment,
        .control = control,
        .descriptors = (const rc_descriptor *)((const uint8_t *)data + RC_DESCRIPTORS_OFFSET),
        .view = rc_group_view_of(data, control, g),
        .slots = g->slots,
        .group = group,
        .max_readers = g->max_readers,
    };
}

static inline _Atomic uint64_t *rc_lease_at(const rc_group_map *map, uint64_t sequence)
{
    return &map->segment->leases[sequence & (map->slots - 1)];
}

static inline uint32_t rc_lease_lap(const rc_group_map *map, uint64_t sequence)
{
    return (uint32_t)(sequence >> __builtin_ctzll(map->slots)) + 1;
}

static inline uint64_t rc_lease_word(uint32_t lap, uint64_t owner, uint32_t deliveries, uint32_t state)
{
    return (uint64_t)lap << 32 | owner | (uint64_t)(deliveries & 0xff) << 3 | state;
}

/* The bits of a lease that say whose it is. */
static inline uint64_t rc_lease_owner(uint32_t slot, uint64_t generation)
{
    return (generation & 0x7ff) << 21 | (uint64_t)slot << 11;
}

#define RC_LEASE_OWNER_BITS UINT64_C(0xfffff800)

static inline uint32_t rc_lease_slot(uint64_t word) { return word >> 11 & 0x3ff; }
static inline uint32_t rc_lease_deliveries(uint64_t word) { return word >> 3 & 0xff; }

/* The same lease in another state. */
static inline uint64_t rc_lease_as(uint64_t word, uint32_t state)
{
    return (word & ~UINT64_C(7)) | state;
}

/* What a word says of this sequence. Of another lap: DONE if the floor is above the sequence, since whoever
 * wrote a later lap had seen it pass; else nobody has written this lap's. */
static inline uint32_t rc_lease_state(const rc_group_map *map, uint64_t sequence, uint64_t word)
{
    uint32_t state = word & 7, lap = rc_lease_lap(map, sequence);
    if (rc_likely(word >> 32 != lap))
        return (int32_t)((uint32_t)(word >> 32) - lap) > 0 &&
                       rc_load_acquire(&map->row->floor) > sequence
                   ? RC_LEASE_DONE : RC_LEASE_FREE;
    if (rc_likely(state == RC_LEASE_DONE || state == RC_LEASE_RETURNED || state == RC_LEASE_FREE))
        return state;
    return state < RC_LEASE_IMPOSSIBLE && rc_lease_slot(word) < map->max_readers
               ? state : RC_LEASE_IMPOSSIBLE;
}

static inline int rc_lease_swap(const rc_group_map *map, uint64_t sequence, uint64_t word, uint64_t with)
{
    /* acq_rel: what was done under the old word comes before, and is seen by who reads the new one */
    return atomic_compare_exchange_strong_explicit(rc_lease_at(map, sequence), &word, with,
                                                   memory_order_acq_rel, memory_order_relaxed);
}

/* Is the member of this slot, whose generation has these low bits, one that takes part? */
static inline int rc_group_has(const rc_group_map *map, uint32_t slot, uint64_t generation, uint64_t mask)
{
    if (slot >= map->max_readers)
        return 0;
    uint64_t joined = rc_load_acquire(&map->segment->members[slot]); /* acquire: rc_group_sweep() */
    return joined && !(joined & RC_MEMBER_GONE) && ((joined - 1) & mask) == (generation & mask);
}

static inline int rc_group_has_owner_of(const rc_group_map *map, uint64_t lease)
{
    return rc_group_has(map, rc_lease_slot(lease), lease >> 21 & 0x7ff, 0x7ff);
}

static inline int rc_group_wants_descriptor(const rc_group_map *map, const rc_descriptor *d)
{
    rc_glance m = rc_reader_glance(d);
    return rc_group_wants(&map->view, map->row, map->group, m.topic, m.kind, m.destination);
}

/* Move the floor over what is done or not wanted; where it stands then. RC_NO_SEQUENCE: another has moved
 * it meanwhile. */
static inline uint64_t rc_group_advance_once(const rc_group_map *map)
{
    uint64_t floor = rc_load_acquire(&map->row->floor), next = floor;
    for (uint64_t n = 0; n < map->slots; n++, next++) {
        uint64_t word = rc_load_acquire(rc_lease_at(map, next));
        uint32_t state = rc_lease_state(map, next, word);
        if (state == RC_LEASE_DONE)
            continue;
        const rc_descriptor *d = &map->descriptors[next & (map->slots - 1)];
        if (state != RC_LEASE_FREE || rc_load_acquire(&d->words[0]) != next + 1 ||
            rc_group_wants_descriptor(map, d))
            break;
    }
    if (next == floor)
        return floor;
    /* release: all that was done below is done; pairs with the acquire in rc_lowest_floor() */
    return atomic_compare_exchange_strong_explicit(&map->row->floor, &floor, next,
                                                   memory_order_acq_rel, memory_order_relaxed)
               ? next : RC_NO_SEQUENCE;
}

/* The same, again if another has moved it meanwhile: one of two that are done at once must see what both
 * have done. *before: where it stood. */
static inline uint64_t rc_group_advance(const rc_group_map *map, uint64_t *before)
{
    uint64_t upto = RC_NO_SEQUENCE;
    *before = rc_load_acquire(&map->row->floor);
    rc_fence(); /* our leases are DONE before the floor is loaded; pairs with itself in other members */
    for (uint32_t i = 0; i < RC_TAKE_TRIES && upto == RC_NO_SEQUENCE; i++)
        upto = rc_group_advance_once(map);
    return upto == RC_NO_SEQUENCE ? *before : upto;
}

/* ---- a member -------------------------------------------------------------------------------- */

/* A message that a member has claimed. word 0: none, or not any more. */
typedef struct rc_lease {
    uint64_t sequence, word;
    uint32_t partition;
} rc_lease;

typedef struct rc_pause_of {
    uint64_t sequence;
    int64_t until_ns;
    uint32_t partition;
} rc_pause_of;

/* How far a member has looked. Who waits does so with a copy. */
typedef struct rc_look {
    uint64_t next;  /* below it nothing is left for this member */
    uint64_t again; /* row.again when it began */
    uint32_t rescan; /* on its way from the floor to the head */
    uint32_t pause_count;
    rc_pause_of pauses[RC_PAUSES];
} rc_look;

typedef struct rc_member {
    rc_group_map map;
    _Atomic uint64_t *partitions;
    rc_slot *slot;
    sem_t *(*wake_of)(void *, uint32_t slot); /* another member's semaphore, or NULL */
    void *wakes;
    sem_t *wake, *space;
    uint64_t state;       /* what slot->state should hold */
    uint64_t group_state; /* and row->state */
    uint64_t owner;       /* as it stands in leases */
    uint64_t generation;  /* of the slot */
    uint64_t floor;       /* the highest that was seen */
    uint64_t flush_every, capacity, max_message;
    uint64_t unflushed, unflushed_bytes; /* acknowledged since the floor was last moved */
    uint64_t received;
    uint64_t in_hand;   /* leases CLAIMED here */
    uint64_t kept;      /* and KEPT */
    uint64_t floor_before; /* at the last look around */
    uint64_t position;  /* after the last message taken, for whoever inspects */
    int64_t looked_ns;
    rc_look look;
    int lock_fd;
    uint32_t index, balance, max_deliveries;
    uint32_t unowned;   /* partitions of nobody at the last look */
    uint64_t passed_over; /* RC_KEY: the lowest sequence that was, since another hand has its partition */
    uint32_t contended;   /* and some hand may sleep on that */
    uint32_t rouse;     /* it is not in hand any more: whoever waits in this process is to look again */
    uint32_t held[RC_PARTITIONS];              /* messages in hand */
    _Atomic uint32_t holder[RC_PARTITIONS];    /* which hand has them; 0: none */
    _Atomic uint32_t pausing[RC_PARTITIONS];   /* messages that were given back and wait: the next ones */
    _Atomic uint64_t changes[RC_PARTITIONS];   /* of the partition word, when last seen; + 1, 0: never */
} rc_member;

static inline uint64_t rc_member_published(const rc_member *m)
{
    return rc_load_acquire(&m->map.view.header->published);
}

/* The floor. One that has gone back, which no member does to it, is put right; one that lies where there
 * can be no message is not believed. */
static inline uint64_t rc_member_floor(const rc_member *m, uint64_t *seen)
{
    uint64_t floor = rc_load_acquire(&m->map.row->floor), found = floor;
    if (rc_unlikely(floor - *seen > m->map.slots && floor > rc_member_published(m) + m->map.slots))
        return *seen;
    if (rc_likely(floor >= *seen))
        return *seen = floor;
    if (atomic_compare_exchange_strong_explicit(&m->map.row->floor, &found, *seen,
                                                memory_order_acq_rel, memory_order_relaxed))
        atomic_fetch_add_explicit(&m->map.segment->voided, 1, memory_order_relaxed);
    return *seen;
}

/* Throw an impossible word away, and cut off whom it names. */
static inline void rc_member_void(const rc_member *m, uint64_t sequence, uint64_t word)
{
    uint64_t with = rc_lease_word(rc_lease_lap(&m->map, sequence), m->owner, 0, RC_LEASE_RETURNED);
    if (!rc_lease_swap(&m->map, sequence, word, with))
        return;
    atomic_fetch_add_explicit(&m->map.segment->voided, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&m->map.row->again, 1, memory_order_seq_cst);
    uint32_t slot = rc_lease_slot(word);
    if (slot != m->index && rc_group_has_owner_of(&m->map, word))
        rc_slot_evict_one(m->map.control, slot, rc_load_acquire(&m->map.segment->members[slot]) - 1);
}

/* ---- waking others ----------------------------------------------------------------------------- */

/* Take this member's bit if it sleeps, and post it; 0: it is not posted. After a fence, or a
 * read-modify-write that is seq_cst; pairs with the fence in rc_member_sleep(). */
static inline int rc_member_post(const rc_member *m, uint32_t slot)
{
    _Atomic uint64_t *word = &m->map.row->asleep[slot / 64];
    if (!(rc_load(word) & rc_bit(slot)) ||
        !(atomic_fetch_and_explicit(word, ~rc_bit(slot), memory_order_acq_rel) & rc_bit(slot)))
        return 0;
    sem_t *wake = m->wake_of(m->wakes, slot);
    if (!wake)
        return 0; /* it looks within RC_GROUP_SLICE_NS */
    rc_post(wake);
    return 1;
}

/* The end of a sleep. Who was called answers before it looks, so what the writer called nobody for meanwhile
 * is there to be seen: it passes that on with its claim. Who was not called answers for one that is stopped
 * or dead. */
static inline void rc_member_answer(const rc_member *m)
{
    if (rc_load(&m->map.row->called))
        rc_store(&m->map.row->called, 0);
    rc_fence(); /* pairs with the fence in rc_writer_release() */
}

/* Wake so many of the others that sleep; how many do. */
static inline uint64_t rc_member_wake(const rc_member *m, uint64_t count)
{
    uint32_t slot = m->index;
    uint64_t woken = 0;
    for (uint32_t i = 0; i < m->map.max_readers && woken < count; i++) {
        slot = rc_group_next(m->map.row->asleep, m->map.max_readers, slot);
        if (slot == RC_NOBODY || slot == m->index)
            break;
        woken += (uint64_t)rc_member_post(m, slot);
    }
    return woken;
}

/* There is something behind the others' positions. */
static inline void rc_member_call(const rc_member *m, uint64_t count)
{
    atomic_fetch_add_explicit(&m->map.row->again, 1, memory_order_seq_cst);
    rc_fence(); /* pairs with the fence in rc_member_sleep() */
    rc_member_wake(m, count);
}

/* ---- what was delivered too often --------------------------------------------------------------- */

static inline void rc_group_note_return(const rc_group_map *map, uint64_t sequence, uint32_t pid)
{
    uint64_t n = atomic_fetch_add_explicit(&map->segment->returns_count, 1, memory_order_relaxed);
    rc_return *r = &map->segment->returns[n % RC_RETURNS];
    rc_store(&r->sequence1, 0);
    rc_store(&r->pid, pid);
    rc_store_release(&r->sequence1, sequence + 1);
}

/* Who had a message, the newest first, as far as that is still there. */
static inline uint32_t rc_group_had(const rc_group_map *map, uint64_t sequence,
                                    uint32_t pids[RC_ASIDE_MEMBERS])
{
    uint64_t n = rc_load(&map->segment->returns_count);
    uint32_t count = 0;
    for (uint64_t i = 0; i < RC_RETURNS && i < n && count < RC_ASIDE_MEMBERS; i++) {
        const rc_return *r = &map->segment->returns[(n - 1 - i) % RC_RETURNS];
        if (rc_load_acquire(&r->sequence1) == sequence + 1)
            pids[count++] = (uint32_t)rc_load(&r->pid);
    }
    return count;
}

/* Record a message that is set aside. One record a message: who dies after it and before the lease is
 * DONE leaves it to the next to find. */
static inline void rc_group_record(const rc_group_map *map, uint64_t sequence, uint32_t deliveries)
{
    uint32_t pids[RC_ASIDE_MEMBERS];
    for (uint32_t i = 0; i < RC_ASIDE; i++)
        if (rc_load_acquire(&map->segment->aside[i].sequence1) == sequence + 1)
            return;
    const rc_descriptor *d = &map->descriptors[sequence & (map->slots - 1)];
    uint32_t had = rc_group_had(map, sequence, pids);
    uint64_t n = atomic_fetch_add_explicit(&map->segment->aside_next, 1, memory_order_relaxed);
    rc_aside *record = &map->segment->aside[n % RC_ASIDE];
    rc_store(&record->sequence1, 0);
    atomic_thread_fence(memory_order_release);
    rc_store(&record->time_ns, rc_load(&d->words[3]));
    rc_store(&record->set_aside_ns, (uint64_t)rc_clock_ns(CLOCK_REALTIME));
    rc_store(&record->topic, rc_reader_glance(d).topic);
    rc_store(&record->deliveries, deliveries);
    rc_store(&record->count, had);
    for (uint32_t i = 0; i < had; i++)
        rc_store(&record->pids[i], pids[i]);
    rc_store_release(&record->sequence1, sequence + 1);
}

/* ---- partitions --------------------------------------------------------------------------------- */

static inline uint32_t rc_member_partition(const rc_member *m, const rc_descriptor *d)
{
    return rc_group_partition(&m->map.view, rc_load(&d->words[4]), rc_reader_glance(d).topic);
}

static inline int rc_member_owns(const rc_member *m, uint64_t word)
{
    return rc_partition_owner(word) == m->index + 1 &&
           rc_partition_generation(word) == (m->generation & 0xffff);
}

/* Whose partition is it, or will it be? RC_NOBODY if its owner takes no part any more. */
static inline uint32_t rc_member_owner_of(const rc_member *m, uint64_t word)
{
    uint32_t slot = rc_partition_owner(word) - 1, heir = rc_partition_heir(word) - 1;
    if (!rc_group_has(&m->map, slot, rc_partition_generation(word), 0xffff))
        return RC_NOBODY;
    return rc_group_has(&m->map, heir, 0, 0) ? heir : slot;
}

static inline int rc_member_swap_partition(const rc_member *m, uint32_t p, uint64_t word, uint64_t with)
{
    /* acq_rel: what the last owner did comes before what the next one does */
    return atomic_compare_exchange_strong_explicit(&m->partitions[p], &word, with,
                                                   memory_order_acq_rel, memory_order_relaxed);
}

/* Make a partition ours, or become its owner's heir. 1: it counts as ours from now on. */
static inline int rc_member_take_partition(const rc_member *m, uint32_t p, uint64_t word, int is_free)
{
    uint64_t changes = rc_partition_changes(word) + 1;
    if (is_free || !(word & RC_PARTITION_BUSY))
        return rc_member_swap_partition(m, p, word,
                                        rc_partition_word(changes, m->generation, m->index + 1));
    return rc_member_swap_partition(m, p, word, rc_partition_with_heir(word, m->index + 1));
}

static inline uint32_t rc_member_count(const rc_member *m)
{
    uint32_t count = 0;
    for (uint32_t base = 0; base < m->map.max_readers; base += 64)
        count += (uint32_t)__builtin_popcountll(rc_load(&m->map.row->members[base / 64]));
    return count ? count : 1;
}

/* The heir of a partition that is in hand here has gone: it is ours again, with what was passed over for it. */
static inline void rc_member_forget_heir(rc_member *m, uint32_t p, uint64_t word)
{
    uint32_t heir = rc_partition_heir(word);
    if (heir == 0 || heir == m->index + 1 || !rc_member_owns(m, word) ||
        rc_group_has(&m->map, heir - 1, 0, 0) ||
        !rc_member_swap_partition(m, p, word, rc_partition_with_heir(word, 0)))
        return;
    m->look.next = 0;
    m->rouse = 1;
}

/* Take the share of partitions that is ours; with `all`, also what of nobody's is beyond it. */
static inline void rc_member_rebalance(rc_member *m, int all)
{
    uint16_t counts[RC_READERS_MAX] = {0};
    uint32_t members = rc_member_count(m), low = RC_PARTITIONS / members;
    uint32_t high = low + (RC_PARTITIONS % members != 0), mine = 0, unowned = 0;
    for (uint32_t p = 0; p < RC_PARTITIONS; p++) {
        uint32_t owner = rc_member_owner_of(m, rc_load_acquire(&m->partitions[p]));
        if (owner != RC_NOBODY)
            counts[owner]++;
    }
    mine = counts[m->index];
    for (uint32_t i = 0; i < RC_PARTITIONS; i++) {
        uint32_t p = (i + m->index * 37) % RC_PARTITIONS; /* survivors begin at different places */
        uint64_t word = rc_load_acquire(&m->partitions[p]);
        uint32_t owner = rc_member_owner_of(m, word);
        if (owner == m->index) {
            rc_member_forget_heir(m, p, word);
            continue;
        }
        if (owner == RC_NOBODY) {
            if ((all || mine < high) && rc_member_take_partition(m, p, word, 1))
                mine++;
            else
                unowned++;
        } else if (((mine < low && counts[owner] > low) || (mine < high && counts[owner] > high)) &&
                   rc_member_take_partition(m, p, word, 0)) {
            counts[owner]--;
            mine++;
            if (rc_member_owns(m, word)) /* from an heir, for whom messages were passed over */
                m->look.next = 0;
        }
    }
    m->unowned = unowned;
}

/* None of a partition's messages is in hand any more: it is idle, or its heir's. */
static inline void rc_member_let_partition_go(rc_member *m, uint32_t p)
{
    for (uint32_t i = 0; i < RC_TAKE_TRIES; i++) { /* a taker may name itself the heir meanwhile */
        uint64_t word = rc_load_acquire(&m->partitions[p]);
        if (!rc_member_owns(m, word))
            return; /* taken from an evicted member */
        uint32_t heir = rc_partition_heir(word) - 1;
        uint64_t idle = rc_partition_with_heir(word, 0) & ~RC_PARTITION_BUSY;
        int passes_on = heir != m->index && rc_group_has(&m->map, heir, 0, 0);
        if (passes_on)
            idle = rc_partition_word(rc_partition_changes(word) + 1,
                                     rc_load_acquire(&m->map.segment->members[heir]) - 1, heir + 1);
        if (!rc_member_swap_partition(m, p, word, idle))
            continue;
        if (passes_on) { /* it may be past messages of the partition: it is to look again */
            atomic_fetch_add_explicit(&m->map.row->again, 1, memory_order_seq_cst);
            rc_fence(); /* pairs with the fence in rc_member_sleep() */
            rc_member_post(m, heir);
        } else if (rc_unlikely(rc_partition_heir(word))) { /* ours after all, with what was passed over */
            m->look.next = 0;
            m->rouse = 1;
        }
        return;
    }
}

/* Before a claim: the partition is busy. 0: it is not ours any more. */
static inline int rc_member_hold_partition(rc_member *m, uint32_t p, uint32_t hand)
{
    uint64_t word = rc_load_acquire(&m->partitions[p]);
    if (!rc_member_owns(m, word))
        return 0;
    if (!(word & RC_PARTITION_BUSY) &&
        !rc_member_swap_partition(m, p, word, word | RC_PARTITION_BUSY))
        return 0;
    m->held[p]++;
    rc_store(&m->holder[p], hand);
    return 1;
}

static inline void rc_member_unhold_partition(rc_member *m, uint32_t p)
{
    if (m->held[p] == 0 || --m->held[p])
        return;
    rc_store(&m->holder[p], 0);
    rc_member_let_partition_go(m, p);
    if (m->contended) { /* another hand of this process has passed over messages */
        m->contended = 0;
        m->rouse = 1;
    }
}

/* ---- looking for a message ---------------------------------------------------------------------- */

static inline int rc_look_is_paused(const rc_look *look, uint64_t sequence)
{
    for (uint32_t i = 0; i < look->pause_count; i++)
        if (look->pauses[i].sequence == sequence)
            return 1;
    return 0;
}

static inline int64_t rc_look_pause_ends(const rc_look *look)
{
    int64_t end = INT64_MAX;
    for (uint32_t i = 0; i < look->pause_count; i++)
        if (look->pauses[i].until_ns < end)
            end = look->pauses[i].until_ns;
    return end;
}

/* Deal the message at the head, whose lease is FREE, to whose turn it is. RC_NO_SEQUENCE: it is not ours. */
static inline uint64_t rc_member_deal(const rc_member *m, uint64_t sequence, uint64_t word,
                                      uint32_t turn)
{
    uint32_t next = rc_group_next(m->map.row->members, m->map.max_readers, turn);
    if (next == m->index || next == RC_NOBODY)
        return sequence;
    uint64_t joined = rc_load_acquire(&m->map.segment->members[next]);
    if (!joined || joined & RC_MEMBER_GONE)
        return sequence; /* it is just leaving */
    uint64_t dealt = rc_lease_word(rc_lease_lap(&m->map, sequence),
                                   rc_lease_owner(next, joined - 1), 0, RC_LEASE_ASSIGNED);
    if (rc_lease_swap(&m->map, sequence, word, dealt)) {
        RC_FAULT(100);
        rc_fence(); /* pairs with the fence in rc_member_sleep(), and with the swap in rc_group_sweep() */
        if (rc_load(&m->map.segment->members[next]) == joined)
            rc_member_post(m, next);
        else if (rc_lease_swap(&m->map, sequence, dealt, rc_lease_as(dealt, RC_LEASE_RETURNED)))
            rc_member_call(m, 1); /* it has left meanwhile, and nobody sweeps it again */
    }
    return RC_NO_SEQUENCE;
}

/* Was a message dealt to us? Or to one that takes no part any more, and by one that could not say so. */
static inline int rc_member_is_dealt(const rc_member *m, uint64_t word)
{
    return (word & RC_LEASE_OWNER_BITS) == m->owner || !rc_group_has_owner_of(&m->map, word);
}

/* Has a message been published? The head may lie. */
static inline int rc_member_is_there(const rc_member *m, uint64_t sequence)
{
    const rc_descriptor *d = &m->map.descriptors[sequence & (m->map.slots - 1)];
    return rc_load_acquire(&d->words[0]) == sequence + 1; /* release: rc_writer_commit() */
}

/* Was what has been read of a message's descriptor its own? What is not wanted may be passed by the floor and
 * be overwritten meanwhile. What is wanted, and nobody has claimed, may not: so whoever has read that, and
 * finds it to be its own, may claim it. Pairs with the fence in rc_writer_make_room(), as rc_reader_intact(). */
static inline int rc_member_has_read(const rc_member *m, uint64_t sequence)
{
    rc_fence_acquire();
    return rc_load(&m->map.view.header->settled) <= sequence;
}

/* Does the group want a message that was published? */
static inline int rc_member_wants(const rc_member *m, uint64_t sequence)
{
    return rc_group_wants_descriptor(&m->map, &m->map.descriptors[sequence & (m->map.slots - 1)]);
}

/* RC_ANY and RC_ROUND_ROBIN: may a message at or below the head be claimed here? */
static inline int rc_member_may_have(const rc_member *m, const rc_look *look, uint64_t sequence,
                                     uint64_t word)
{
    switch (rc_lease_state(&m->map, sequence, word)) {
    case RC_LEASE_RETURNED: /* of what is not wanted, no member writes one */
        return !rc_look_is_paused(look, sequence) && rc_member_is_there(m, sequence) &&
               rc_member_wants(m, sequence);
    case RC_LEASE_ASSIGNED:
        return rc_member_is_dealt(m, word) && rc_member_is_there(m, sequence) &&
               rc_member_wants(m, sequence);
    case RC_LEASE_FREE: /* no member leaves that below the head */
        return rc_member_is_there(m, sequence) &&
               rc_member_wants(m, sequence) && rc_member_has_read(m, sequence);
    case RC_LEASE_IMPOSSIBLE:
        rc_member_void(m, sequence, word);
        return 0; /* `again` has gone up: the next look begins anew */
    default:
        return 0;
    }
}

/* RC_ANY and RC_ROUND_ROBIN: at the head, the next message to be claimed here; RC_NO_SEQUENCE: none.
 * Moves the head over what is not wanted, and over what others have claimed. RC_SCAN_ON: others have moved
 * it over messages that this look has to see. */
static inline uint64_t rc_member_find_at_head(const rc_member *m, rc_look *look, uint64_t *seen)
{
    const rc_group_map *map = &m->map;
    for (uint64_t n = 0; n < 2 * map->slots; n++) {
        /* acquire: pairs with the swaps of the head, so the lease of who moved it is seen */
        uint64_t head = rc_load_acquire(&map->row->head), at = rc_head_sequence(head);
        uint64_t floor = rc_member_floor(m, seen);
        uint32_t turn = rc_head_turn(head);
        if (floor > at)
            at = floor;
        else if (at > look->next && (m->balance == RC_ROUND_ROBIN || look->rescan))
            return RC_SCAN_ON;
        const rc_descriptor *d = &map->descriptors[at & (map->slots - 1)];
        uint64_t seq1 = rc_load_acquire(&d->words[0]); /* release: rc_writer_commit() */
        look->rescan = 0;
        look->next = at;
        if (seq1 != at + 1) {
            if (seq1 > at + 1)
                continue; /* the floor has passed meanwhile */
            return RC_NO_SEQUENCE;
        }
        uint64_t word = rc_load_acquire(rc_lease_at(map, at));
        uint32_t state = rc_lease_state(map, at, word);
        if (state == RC_LEASE_FREE && rc_group_wants_descriptor(map, d)) {
            if (!rc_member_has_read(m, at))
                continue; /* the floor has passed it */
            if (m->balance == RC_ANY || rc_member_deal(m, at, word, turn) == at)
                return at;
            continue; /* it is dealt: the head moves on with the next look at it */
        }
        if (rc_member_may_have(m, look, at, word))
            return at;
        if (state != RC_LEASE_FREE && state != RC_LEASE_IMPOSSIBLE)
            turn = rc_lease_slot(word);
        /* if another was faster, the next look sees how far */
        atomic_compare_exchange_strong_explicit(&map->row->head, &head, rc_head(at + 1, turn),
                                                memory_order_acq_rel, memory_order_relaxed);
        look->next = at + 1;
    }
    return RC_NO_SEQUENCE;
}

/* RC_ANY and RC_ROUND_ROBIN: from the look's position to the head, what was given back or dealt to us; then
 * at the head. */
static inline uint64_t rc_member_find_shared(const rc_member *m, rc_look *look, uint64_t *seen)
{
    const rc_group_map *map = &m->map;
    uint64_t found = RC_SCAN_ON;
    for (uint32_t i = 0; i < RC_TAKE_TRIES && found == RC_SCAN_ON; i++) {
        uint64_t head = rc_head_sequence(rc_load_acquire(&map->row->head));
        uint64_t floor = rc_member_floor(m, seen), most = floor + map->slots;
        if (look->next < floor)
            look->next = floor;
        if (head > most) /* impossible; rc_member_check_head() puts it right */
            head = most;
        if (m->balance == RC_ANY && !look->rescan && head > look->next)
            look->next = head;
        for (; look->next < head; look->next++)
            if (rc_member_may_have(m, look, look->next,
                                   rc_load_acquire(rc_lease_at(map, look->next))))
                return look->next;
        found = rc_member_find_at_head(m, look, seen);
    }
    return found == RC_SCAN_ON ? RC_NO_SEQUENCE : found;
}

typedef enum rc_verdict { RC_PASS, RC_CLAIM, RC_LOOK_TWICE } rc_verdict;

/* RC_KEY: is this message, of a partition that was ours when its word said `partition`, the next of it to
 * be claimed? RC_LOOK_TWICE: it was nobody's to claim, and will be in a moment; nothing of its partition
 * may be claimed before it. */
static inline rc_verdict rc_member_may_claim(const rc_member *m, uint64_t sequence, uint32_t p,
                                             uint64_t partition)
{
    uint64_t word = rc_load_acquire(rc_lease_at(&m->map, sequence));
    switch (rc_lease_state(&m->map, sequence, word)) {
    case RC_LEASE_FREE:
    case RC_LEASE_RETURNED:
        return RC_CLAIM;
    case RC_LEASE_DONE:
    case RC_LEASE_KEPT:
        return RC_PASS;
    case RC_LEASE_CLAIMED:
        if ((word & RC_LEASE_OWNER_BITS) == m->owner)
            return RC_PASS;
        /* Claimed by its next owner, if it has one: that one's claim comes after it took the partition. */
        if (rc_partition_changes(rc_load_acquire(&m->partitions[p])) !=
            rc_partition_changes(partition))
            return RC_PASS;
        break; /* by one that was evicted, or by a liar */
    default:
        break;
    }
    rc_member_void(m, sequence, word);
    return RC_LOOK_TWICE;
}

/* RC_KEY: does another member wait for a partition of which something is in hand here? Also one that takes
 * no part any more: what was passed over for it comes before the rest. rc_member_forget_heir(), or who lets
 * the partition go, begins the look anew. */
static inline int rc_member_has_heir(const rc_member *m, uint32_t p, uint64_t word)
{
    uint32_t heir = rc_partition_heir(word);
    return heir != 0 && heir != m->index + 1 && rc_load(&m->holder[p]) != 0;
}

/* RC_KEY: what to do about a message of this partition. RC_CLAIM also if the partition is new here:
 * rc_member_take() looks again from the floor on then. */
static inline rc_verdict rc_member_judge(const rc_member *m, uint64_t sequence, uint32_t p,
                                         uint32_t hand, uint64_t *passed_over)
{
    uint64_t word = rc_load_acquire(&m->partitions[p]);
    if (!rc_member_owns(m, word))
        return RC_PASS;
    if (rc_load(&m->changes[p]) != rc_partition_changes(word) + 1)
        return RC_CLAIM;
    uint32_t holder = rc_load(&m->holder[p]);
    if (holder && holder != hand) {
        if (sequence < *passed_over)
            *passed_over = sequence;
        return RC_PASS;
    }
    if (rc_unlikely(rc_load(&m->pausing[p]) != 0))
        return RC_PASS;
    /* an heir gets the rest */
    if (rc_unlikely(rc_partition_heir(word)) && rc_member_has_heir(m, p, word))
        return RC_PASS;
    return rc_member_may_claim(m, sequence, p, word);
}

/* RC_KEY: the next message of our partitions from the look's position on. `hand` may claim what no other
 * hand of this process has of the same partition. *passed_over: the first that was, for that. */
static inline uint64_t rc_member_find_keyed(const rc_member *m, rc_look *look, uint32_t hand,
                                            uint64_t *seen, uint64_t *passed_over)
{
    const rc_group_map *map = &m->map;
    uint64_t floor = rc_member_floor(m, seen);
    if (look->next < floor)
        look->next = floor;
    for (uint64_t n = 0; n < 2 * map->slots; n++) {
        const rc_descriptor *d = &map->descriptors[look->next & (map->slots - 1)];
        uint64_t seq1 = rc_load_acquire(&d->words[0]); /* release: rc_writer_commit() */
        if (seq1 != look->next + 1) {
            if (seq1 <= look->next)
                return RC_NO_SEQUENCE;
            floor = rc_member_floor(m, seen); /* it has passed meanwhile */
            if (floor <= look->next)
                return RC_NO_SEQUENCE;
            look->next = floor;
            continue;
        }
        __builtin_prefetch(d + RC_AHEAD_PASSED);
        rc_verdict verdict = RC_PASS;
        if (rc_group_wants_descriptor(map, d))
            verdict = rc_member_judge(m, look->next, rc_member_partition(m, d), hand, passed_over);
        if (verdict == RC_CLAIM && rc_member_has_read(m, look->next))
            return look->next;
        if (verdict != RC_LOOK_TWICE) /* the floor has passed what was to be claimed and is overwritten */
            look->next++;
    }
    return RC_NO_SEQUENCE;
}

static inline uint64_t rc_member_find(const rc_member *m, rc_look *look, uint32_t hand, uint64_t *seen,
                                      uint64_t *passed_over)
{
    if (m->balance == RC_KEY)
        return rc_member_find_keyed(m, look, hand, seen, passed_over);
    return rc_member_find_shared(m, look, seen);
}

/* ---- taking it ----------------------------------------------------------------------------------- */

/* The state of the lease at the floor, if it is ours; else RC_LEASE_FREE. */
static inline uint32_t rc_member_has_at_floor(const rc_member *m)
{
    uint64_t floor = rc_load_acquire(&m->map.row->floor);
    uint64_t word = rc_load_acquire(rc_lease_at(&m->map, floor));
    return (word & RC_LEASE_OWNER_BITS) == m->owner ? rc_lease_state(&m->map, floor, word)
                                                    : RC_LEASE_FREE;
}

/* Does the floor wait for a message that was acknowledged here, and whose bytes are still in use? */
static inline int rc_member_hoards(const rc_member *m)
{
    return rc_member_has_at_floor(m) == RC_LEASE_KEPT;
}

/* Do we hold the message at the floor? */
static inline int rc_member_blocks(const rc_member *m)
{
    uint32_t state = rc_member_has_at_floor(m);
    return state == RC_LEASE_CLAIMED || state == RC_LEASE_KEPT;
}

/* May we go on? Who was asked to let go, and holds the ring up no more, is active again. */
static inline rc_result rc_member_changed(const rc_member *m)
{
    uint64_t word = rc_load_acquire(&m->slot->state);
    if (rc_unlikely(word == rc_demoting(m->state)) && !rc_member_blocks(m) &&
        atomic_compare_exchange_strong_explicit(&m->slot->state, &word, m->state,
                                                memory_order_acq_rel, memory_order_acquire))
        word = m->state;
    if (word != m->state && word != rc_demoting(m->state))
        return RC_TAKEN_AWAY;
    return rc_load_acquire(&m->map.row->state) == m->group_state ? RC_EMPTY : RC_TAKEN_AWAY;
}

/* Look again from the floor on if anybody calls for it. */
static inline void rc_member_refresh(rc_member *m)
{
    uint64_t again = rc_load_acquire(&m->map.row->again); /* release: rc_member_call() */
    if (rc_likely(again == m->look.again))
        return;
    m->look.again = again;
    m->look.next = 0;
    m->look.rescan = 1;
    if (m->balance == RC_KEY)
        rc_member_rebalance(m, 0);
}

/* What was given back here and has waited long enough. */
static inline void rc_member_end_pauses(rc_member *m)
{
    int64_t now = rc_now_ns();
    for (uint32_t i = 0; i < m->look.pause_count;) {
        rc_pause_of *pause = &m->look.pauses[i];
        if (pause->until_ns > now) {
            i++;
            continue;
        }
        if (m->balance == RC_KEY)
            rc_store(&m->pausing[pause->partition], rc_load(&m->pausing[pause->partition]) - 1);
        *pause = m->look.pauses[--m->look.pause_count];
        m->look.next = 0;
        m->look.rescan = 1;
    }
}

/* RC_ANY: is there a message after this one that nobody has claimed? */
static inline int rc_member_sees_more(const rc_member *m, uint64_t sequence)
{
    for (uint64_t n = 1; n < m->map.slots; n++) {
        const rc_descriptor *d = &m->map.descriptors[(sequence + n) & (m->map.slots - 1)];
        if (rc_load_acquire(&d->words[0]) != sequence + n + 1) /* release: rc_writer_commit() */
            return 0;
        uint64_t word = rc_load_acquire(rc_lease_at(&m->map, sequence + n));
        if (rc_lease_state(&m->map, sequence + n, word) == RC_LEASE_FREE &&
            rc_group_wants_descriptor(&m->map, d))
            return 1;
    }
    return 0;
}

/* RC_ANY: after a claim, call a sleeper if there is more and nobody is called: the writer calls nobody while
 * one that it has called has not answered. Our own bit is last: another thread of this member sleeps. Who has
 * found nobody looks again once `called` is down: others have called nobody meanwhile. */
static inline void rc_member_pass_on(const rc_member *m, uint64_t sequence)
{
    rc_group_row *row = m->map.row;
    for (uint32_t i = 0; i < RC_TAKE_TRIES; i++) {
        if (rc_likely(!rc_group_has_sleepers(row, m->map.max_readers)) || rc_load(&row->called) ||
            !rc_member_sees_more(m, sequence))
            return;
        rc_store(&row->called, 1); /* before a bit is taken, as in rc_writer_call() */
        if (rc_member_wake(m, 1) || rc_member_post(m, m->index))
            return;
        rc_store(&row->called, 0);
        rc_fence(); /* pairs with the fences in rc_writer_release() and rc_member_sleep() */
    }
}

/* Move the head past a message that was claimed, if it stands there. */
static inline void rc_member_move_head(const rc_member *m, uint64_t sequence)
{
    uint64_t head = rc_load(&m->map.row->head);
    if (rc_head_sequence(head) <= sequence)
        atomic_compare_exchange_strong_explicit(&m->map.row->head, &head,
                                                rc_head(sequence + 1, m->index),
                                                memory_order_acq_rel, memory_order_relaxed);
}

/* A message that was delivered too often: ours for a moment, recorded, done. */
static inline void rc_member_set_aside(rc_member *m, uint64_t sequence, uint64_t word)
{
    uint32_t deliveries = rc_lease_deliveries(word);
    uint64_t mine = rc_lease_word(rc_lease_lap(&m->map, sequence), m->owner, deliveries,
                                  RC_LEASE_CLAIMED);
    if (!rc_lease_swap(&m->map, sequence, word, mine))
        return;
    RC_FAULT(101);
    rc_group_record(&m->map, sequence, deliveries);
    RC_FAULT(102);
    if (rc_lease_swap(&m->map, sequence, mine, rc_lease_as(mine, RC_LEASE_DONE)))
        atomic_fetch_add_explicit(&m->map.row->aside, 1, memory_order_relaxed);
    m->unflushed++;
}

/* A claim that came after our eviction is none. */
static inline void rc_member_undo(rc_member *m, uint64_t sequence, uint64_t word)
{
    uint32_t deliveries = rc_lease_deliveries(word) - 1;
    if (rc_lease_swap(&m->map, sequence, word,
                      rc_lease_word(rc_lease_lap(&m->map, sequence), m->owner, deliveries,
                                    RC_LEASE_RETURNED)))
        rc_member_call(m, 1);
}

/* Claim the lease of a message that was found. RC_EMPTY: another was faster. */
static inline rc_result rc_member_claim_lease(rc_member *m, uint64_t sequence, rc_lease *lease,
                                              rc_descriptor *d)
{
    uint64_t before = rc_load_acquire(rc_lease_at(&m->map, sequence));
    uint32_t state = rc_lease_state(&m->map, sequence, before), deliveries = 0;
    if (state != RC_LEASE_FREE)
        deliveries = rc_lease_deliveries(before);
    if (state != RC_LEASE_FREE && state != RC_LEASE_RETURNED &&
        !(state == RC_LEASE_ASSIGNED && rc_member_is_dealt(m, before)))
        return RC_EMPTY;
    if (rc_unlikely(deliveries >= m->max_deliveries)) {
        rc_member_set_aside(m, sequence, before);
        return RC_EMPTY;
    }
    uint64_t word = rc_lease_word(rc_lease_lap(&m->map, sequence), m->owner, deliveries + 1,
                                  RC_LEASE_CLAIMED);
    if (!rc_lease_swap(&m->map, sequence, before, word))
        return RC_EMPTY;
    RC_FAULT(103);
    if (m->balance != RC_KEY)
        rc_member_move_head(m, sequence);
    if (m->balance == RC_ANY)
        rc_member_pass_on(m, sequence);
    RC_FAULT(104);
    const rc_descriptor *shared = &m->map.descriptors[sequence & (m->map.slots - 1)];
    rc_store(&d->words[0], rc_load_acquire(&shared->words[0]));
    rc_descriptor_copy(d, shared);
    /* Evicted before the copy was whole? Then the claim may come after the sweep, too. Pairs with the
     * fence in rc_group_demote(), and with the order in rc_slot_evict(). */
    rc_fence_acquire();
    if (rc_unlikely(rc_member_changed(m) != RC_EMPTY)) {
        rc_member_undo(m, sequence, word);
        return RC_TAKEN_AWAY;
    }
    lease->sequence = sequence;
    lease->word = word;
    if (deliveries)
        atomic_fetch_add_explicit(&m->map.segment->redelivered, 1, memory_order_relaxed);
    return RC_MESSAGE;
}

/* With RC_KEY the message is of partition p. */
static inline rc_result rc_member_claim(rc_member *m, uint64_t sequence, uint32_t p, uint32_t hand,
                                        rc_lease *lease, rc_descriptor *d)
{
    if (m->balance == RC_KEY) {
        if (!rc_member_hold_partition(m, p, hand))
            return RC_EMPTY;
        RC_FAULT(105);
    }
    rc_result result = rc_member_claim_lease(m, sequence, lease, d);
    if (result != RC_MESSAGE) {
        if (m->balance == RC_KEY)
            rc_member_unhold_partition(m, p);
        return result;
    }
    lease->partition = p;
    m->in_hand++;
    m->received++;
    m->position = sequence + 1;
    if (m->look.next == sequence)
        m->look.next++;
    if (rc_likely(d->f.seq1 == sequence + 1 && d->f.length <= m->max_message &&
                  (d->f.position & (m->capacity - 1)) + d->f.length <= m->capacity))
        return RC_MESSAGE;
    return RC_IMPOSSIBLE;
}

/* RC_KEY: the partition of a message that was found is new here. 1: begin again at the floor. */
static inline int rc_member_gained(rc_member *m, uint32_t p)
{
    uint64_t word = rc_load_acquire(&m->partitions[p]);
    if (rc_load(&m->changes[p]) == rc_partition_changes(word) + 1 || !rc_member_owns(m, word))
        return 0;
    for (uint32_t q = 0; q < RC_PARTITIONS; q++) { /* those that came with it: one look for all */
        word = rc_load_acquire(&m->partitions[q]);
        if (rc_member_owns(m, word))
            rc_store(&m->changes[q], rc_partition_changes(word) + 1);
    }
    m->look.next = 0;
    return 1;
}

/* Can no message come to this member any more? The ring is closed, and what is not done is in our own
 * hands. */
static inline int rc_member_is_over(const rc_member *m)
{
    if (rc_load_acquire(&m->map.view.header->state) != RC_RING_CLOSED)
        return 0;
    uint64_t published = rc_member_published(m), next = rc_load_acquire(&m->map.row->floor);
    for (uint64_t n = 0; n < m->map.slots && next < published; n++, next++) {
        uint64_t word = rc_load_acquire(rc_lease_at(&m->map, next));
        uint32_t state = rc_lease_state(&m->map, next, word);
        int ours = state == RC_LEASE_CLAIMED && (word & RC_LEASE_OWNER_BITS) == m->owner;
        if (state == RC_LEASE_DONE || state == RC_LEASE_KEPT || ours)
            continue;
        if (state != RC_LEASE_FREE ||
            rc_group_wants_descriptor(&m->map, &m->map.descriptors[next & (m->map.slots - 1)]))
            return 0;
    }
    return 1;
}

/* Which messages a take is for. */
typedef enum rc_sort { RC_ANY_SORT, RC_FRESH, RC_SAME_ROUND } rc_sort;

/* May this message be in a batch that begins with `first`: has nobody had it, and, with RC_SAME_ROUND, does it
 * lie in the same round of the arena? */
static inline int rc_member_continues(const rc_member *m, rc_sort sort, const rc_descriptor *first,
                                      uint64_t found)
{
    const rc_descriptor *d = &m->map.descriptors[found & (m->map.slots - 1)];
    uint64_t word = rc_load_acquire(rc_lease_at(&m->map, found));
    if (rc_lease_state(&m->map, found, word) != RC_LEASE_FREE && rc_lease_deliveries(word))
        return 0;
    return sort == RC_FRESH ||
           ((rc_load(&d->words[1]) ^ first->f.position) & ~(m->capacity - 1)) == 0;
}

/* The next message for this member: RC_MESSAGE, its lease and a copy of its descriptor; RC_EMPTY: none
 * now; RC_ENDED; RC_TAKEN_AWAY: evicted; RC_IMPOSSIBLE: its descriptor is none, and its lease is ours.
 *
 * `hand` is who of this process asks, from 1. `sort`: RC_ANY_SORT, or what may follow `first` in a batch that
 * was begun; then RC_STEP_DOWN: the next message is not for it. Call rc_member_look_around() before it, now
 * and then. */
static inline rc_result rc_member_take(rc_member *m, uint32_t hand, rc_sort sort,
                                       const rc_descriptor *first, rc_lease *lease, rc_descriptor *d)
{
    for (uint32_t i = 0; i < RC_TAKE_TRIES; i++) {
        rc_result result = rc_member_changed(m);
        if (rc_unlikely(result != RC_EMPTY))
            return result;
        if (rc_unlikely(m->look.pause_count))
            rc_member_end_pauses(m);
        rc_member_refresh(m);
        if (rc_unlikely(m->passed_over < m->look.next)) /* by another hand, or by this one before */
            m->look.next = m->passed_over;
        m->passed_over = RC_NO_SEQUENCE;
        uint64_t found = rc_member_find(m, &m->look, hand, &m->floor, &m->passed_over);
        m->contended |= m->passed_over != RC_NO_SEQUENCE;
        if (found == RC_NO_SEQUENCE) {
            if (rc_load_acquire(&m->map.row->again) != m->look.again)
                continue;
            return rc_member_is_over(m) ? RC_ENDED : RC_EMPTY;
        }
        uint32_t p = 0;
        if (m->balance == RC_KEY) {
            p = rc_member_partition(m, &m->map.descriptors[found & (m->map.slots - 1)]);
            if (rc_member_gained(m, p))
                continue;
        }
        if (sort != RC_ANY_SORT && !rc_member_continues(m, sort, first, found))
            return RC_STEP_DOWN;
        result = rc_member_claim(m, found, p, hand, lease, d);
        if (result != RC_EMPTY)
            return result;
    }
    return RC_EMPTY;
}

/* Messages that the group has missed and that nobody was told of yet. */
static inline uint64_t rc_member_take_gap(const rc_member *m)
{
    if (rc_likely(rc_load(&m->map.row->gap) == 0))
        return 0;
    return atomic_exchange_explicit(&m->map.row->gap, 0, memory_order_acq_rel);
}

/* ---- giving it up -------------------------------------------------------------------------------- */

/* Move the floor if it can be moved, show how far we are, and wake the writer if that is what it waits
 * for. Not once the row may be another group's. */
static inline void rc_member_flush(rc_member *m)
{
    m->unflushed = m->unflushed_bytes = 0;
    if (rc_load(&m->slot->state) >> 8 != m->generation ||
        rc_load_acquire(&m->map.row->state) != m->group_state)
        return;
    uint64_t before, upto = rc_group_advance(&m->map, &before);
    rc_store(&m->slot->received, m->received);
    rc_store(&m->slot->cursor, m->position);
    if (upto <= before)
        return;
    rc_have_let_go(m->map.control, before, upto, m->space);
}

static inline int rc_member_flush_due(const rc_member *m)
{
    return m->unflushed >= m->flush_every || m->unflushed_bytes >= m->capacity / 8 ||
           (m->unflushed && rc_load(&m->map.control->wanted) != 0);
}

/* Some more is done: is it time to move the floor? */
static inline void rc_member_did(rc_member *m, uint64_t bytes)
{
    m->unflushed++;
    m->unflushed_bytes += bytes;
    if (rc_member_flush_due(m))
        rc_member_flush(m);
}

/* Acknowledge: DONE; or with `keep` KEPT, until rc_member_release(). 0: it was taken from us, and counts
 * nothing. The partition is let go after that: its next owner finds the lease done. */
static inline int rc_member_finish(rc_member *m, rc_lease *lease, int keep, uint64_t bytes)
{
    uint64_t word = lease->word;
    uint64_t with = rc_lease_as(word, keep ? RC_LEASE_KEPT : RC_LEASE_DONE);
    int ours = rc_lease_swap(&m->map, lease->sequence, word, with);
    RC_FAULT(106);
    lease->word = ours && keep ? with : 0;
    m->kept += (uint64_t)(ours && keep);
    m->in_hand--;
    if (m->balance == RC_KEY)
        rc_member_unhold_partition(m, lease->partition);
    RC_FAULT(107);
    if (ours && !keep)
        rc_member_did(m, bytes);
    return ours;
}

/* The bytes of an acknowledged message are not used any more. */
static inline void rc_member_release(rc_member *m, rc_lease *lease, uint64_t bytes)
{
    uint64_t word = lease->word;
    lease->word = 0;
    m->kept--;
    if (rc_lease_swap(&m->map, lease->sequence, word, rc_lease_as(word, RC_LEASE_DONE)))
        rc_member_did(m, bytes);
}

/* How long a message that was given back waits for us: others may have it at once. */
static inline int64_t rc_member_pause_for(const rc_member *m, uint32_t deliveries)
{
    int64_t pause = RC_PAUSE_NS << (deliveries > 11 ? 10 : deliveries ? deliveries - 1 : 0);
    if (pause > RC_PAUSE_MAX_NS)
        pause = RC_PAUSE_MAX_NS;
    if (m->balance != RC_KEY && rc_member_count(m) > 1 && pause < RC_PAUSE_FOR_OTHERS_NS)
        pause = RC_PAUSE_FOR_OTHERS_NS;
    return pause;
}

static inline void rc_member_pause(rc_member *m, uint64_t sequence, uint32_t partition,
                                   uint32_t deliveries)
{
    if (m->look.pause_count == RC_PAUSES)
        return; /* it is delivered again without one */
    m->look.pauses[m->look.pause_count++] = (rc_pause_of){
        sequence, rc_now_ns() + rc_member_pause_for(m, deliveries), partition};
    if (m->balance == RC_KEY)
        rc_store(&m->pausing[partition], rc_load(&m->pausing[partition]) + 1);
}

/* Give a message back, unhandled; with `pause` it waits a while before it comes here again. 0: it was
 * taken from us. The caller calls rc_member_call() after the last of several. */
static inline int rc_member_give_back(rc_member *m, rc_lease *lease, int pause)
{
    uint64_t word = lease->word, sequence = lease->sequence;
    lease->word = 0;
    m->in_hand--;
    rc_group_note_return(&m->map, sequence, rc_load(&m->slot->pid));
    int ours = rc_lease_swap(&m->map, sequence, word, rc_lease_as(word, RC_LEASE_RETURNED));
    RC_FAULT(108);
    if (m->balance == RC_KEY)
        rc_member_unhold_partition(m, lease->partition);
    if (ours && pause)
        rc_member_pause(m, sequence, lease->partition, rc_lease_deliveries(word));
    m->look.next = 0; /* whoever takes before the caller has called looks at it, too */
    m->look.rescan = 1;
    return ours;
}

/* ---- death --------------------------------------------------------------------------------------- */

/* Take from a member that is dead, evicted or leaving what it has: how many messages are to be delivered
 * again. Any number of processes may do so at once. *first: we are the first to have done. */
static inline uint64_t rc_group_sweep(const rc_group_map *map, uint32_t slot, uint64_t generation,
                                      int *first)
{
    uint64_t owner = rc_lease_owner(slot, generation), returned = 0, joined = generation + 1;
    uint64_t next = rc_load_acquire(&map->row->floor);
    uint32_t pid = 0;
    if (rc_load_acquire(&map->control->readers[slot].state) >> 8 == generation)
        pid = rc_load(&map->control->readers[slot].pid);
    for (uint64_t n = 0; n < map->slots; n++, next++) {
        uint64_t word = rc_load_acquire(rc_lease_at(map, next));
        uint32_t state = word & 7;
        if (rc_load_acquire(&map->descriptors[next & (map->slots - 1)].words[0]) < next + 1)
            break; /* nobody claims what is not there */
        if ((word & RC_LEASE_OWNER_BITS) != owner || word >> 32 != rc_lease_lap(map, next))
            continue;
        if (state == RC_LEASE_KEPT) {
            rc_lease_swap(map, next, word, rc_lease_as(word, RC_LEASE_DONE));
        } else if (state == RC_LEASE_CLAIMED || state == RC_LEASE_ASSIGNED) {
            if (state == RC_LEASE_CLAIMED)
                rc_group_note_return(map, next, pid);
            returned += (uint64_t)rc_lease_swap(map, next, word,
                                                rc_lease_as(word, RC_LEASE_RETURNED));
        }
        RC_FAULT(109);
    }
    /* seq_cst: the sweep comes before; pairs with rc_group_has(), which says whose partitions are whose, and
     * with the fence in rc_member_deal() */
    *first = atomic_compare_exchange_strong_explicit(&map->segment->members[slot], &joined,
                                                     joined | RC_MEMBER_GONE, memory_order_seq_cst,
                                                     memory_order_relaxed);
    if (*first)
        atomic_fetch_and_explicit(&map->row->members[slot / 64], ~rc_bit(slot), memory_order_acq_rel);
    RC_FAULT(110);
    return returned;
}

/* Its entry goes, if it is still the one. */
static inline void rc_group_forget(const rc_group_map *map, uint32_t slot, uint64_t generation)
{
    uint64_t gone = (generation + 1) | RC_MEMBER_GONE;
    atomic_compare_exchange_strong_explicit(&map->segment->members[slot], &gone, 0,
                                            memory_order_acq_rel, memory_order_relaxed);
}

/* Is the member that joined with this generation of its slot gone (2), evicted (1), or at work (0)? */
static inline int rc_group_is_gone(const rc_group_map *map, uint32_t slot, uint64_t generation,
                                   int lock_fd)
{
    uint64_t word = rc_load_acquire(&map->control->readers[slot].state);
    uint64_t state = word & 0xff;
    if (word >> 8 != generation || state == RC_FREE || state == RC_DEAD)
        return 2;
    if (rc_lock_held(lock_fd, RC_LOCK_READER + slot) == 0)
        return 2;
    return state == RC_EVICTED;
}

/* Sweep those of the others that are gone. */
static inline void rc_member_bury(rc_member *m)
{
    const rc_group_map *map = &m->map;
    for (uint32_t slot = 0; slot < map->max_readers; slot++) {
        uint64_t joined = rc_load_acquire(&map->segment->members[slot]) & ~RC_MEMBER_GONE;
        if (joined == 0 || slot == m->index)
            continue;
        int gone = rc_group_is_gone(map, slot, joined - 1, m->lock_fd), first;
        if (!gone)
            continue;
        uint64_t returned = rc_group_sweep(map, slot, joined - 1, &first);
        RC_FAULT(111);
        /* Of the dead always: whoever has swept it before us may not have come to say so. */
        if (returned || first || gone == 2)
            rc_member_call(m, m->balance == RC_KEY ? map->max_readers : returned);
        if (gone == 2)
            rc_group_forget(map, slot, joined - 1);
    }
}

/* Put right what no member would leave behind: a head above all messages. */
static inline void rc_member_check_head(rc_member *m)
{
    uint64_t head = rc_load_acquire(&m->map.row->head), sequence = rc_head_sequence(head);
    uint64_t floor = rc_member_floor(m, &m->floor);
    if (sequence <= floor ||
        rc_load_acquire(&m->map.descriptors[(sequence - 1) & (m->map.slots - 1)].words[0]) >= sequence)
        return;
    if (atomic_compare_exchange_strong_explicit(&m->map.row->head, &head,
                                                rc_head(floor, rc_head_turn(head)),
                                                memory_order_acq_rel, memory_order_relaxed))
        atomic_fetch_add_explicit(&m->map.segment->voided, 1, memory_order_relaxed);
}

/* A floor below what may be overwritten is a lie that was there before all members, so that nobody has seen
 * it go back. What is gone is lost. */
static inline void rc_member_raise_floor(const rc_member *m, uint64_t floor)
{
    uint64_t settled = rc_load_acquire(&m->map.view.header->settled), before = floor;
    if (floor >= settled ||
        !atomic_compare_exchange_strong_explicit(&m->map.row->floor, &before, settled,
                                                 memory_order_acq_rel, memory_order_relaxed))
        return;
    atomic_fetch_add_explicit(&m->map.row->gap, settled - floor, memory_order_acq_rel);
    atomic_fetch_add_explicit(&m->map.row->lost, settled - floor, memory_order_relaxed);
    atomic_fetch_add_explicit(&m->map.segment->voided, 1, memory_order_relaxed);
}

/* A lease of a message that the group does not want: no member writes one, and none looks for it. */
static inline void rc_member_end_unwanted(rc_member *m, uint64_t sequence, uint64_t word)
{
    if (rc_lease_swap(&m->map, sequence, word,
                      rc_lease_word(rc_lease_lap(&m->map, sequence), m->owner, 0, RC_LEASE_DONE)))
        atomic_fetch_add_explicit(&m->map.segment->voided, 1, memory_order_relaxed);
}

/* Nothing was done since the last look: begin the next one at the floor, in case somebody made a message
 * RETURNED and is stopped before it could say so. And is what the floor waits for ours, and in no hand of
 * ours? Then somebody wrote a lease in our name. Or one's who takes no part? What such a one had was swept
 * before it came to take none. Or is it unwanted? Then it is nobody's. */
static inline void rc_member_check_floor(rc_member *m)
{
    uint64_t floor = rc_member_floor(m, &m->floor);
    uint64_t word = rc_load_acquire(rc_lease_at(&m->map, floor));
    if (floor == m->floor_before && floor < rc_member_published(m)) {
        m->look.next = 0;
        m->look.rescan = 1;
        uint32_t state = rc_lease_state(&m->map, floor, word);
        if (state != RC_LEASE_FREE && state != RC_LEASE_DONE && !rc_member_wants(m, floor))
            rc_member_end_unwanted(m, floor, word);
        else if (m->in_hand == 0 && m->kept == 0 && rc_member_blocks(m))
            rc_member_void(m, floor, word);
        else if (state == RC_LEASE_CLAIMED && !rc_group_has_owner_of(&m->map, word))
            rc_member_void(m, floor, word);
        else if (state == RC_LEASE_KEPT && !rc_group_has_owner_of(&m->map, word))
            rc_lease_swap(&m->map, floor, word, rc_lease_as(word, RC_LEASE_DONE));
        rc_member_raise_floor(m, floor);
    }
    m->floor_before = floor;
}

/* Each RC_GROUP_SLICE_NS, by one of the members: look for the dead. By each: does our own entry still
 * stand, and is anything left that is nobody's? 0: we were cut off. */
static inline int rc_member_look_around(rc_member *m, int64_t now_ns)
{
    uint64_t looked = rc_load(&m->map.segment->looked_ns);
    m->looked_ns = now_ns;
    if (rc_member_changed(m) != RC_EMPTY ||
        rc_load_acquire(&m->map.segment->members[m->index]) != m->generation + 1)
        return 0;
    if (!(rc_load(&m->map.row->members[m->index / 64]) & rc_bit(m->index)))
        atomic_fetch_or_explicit(&m->map.row->members[m->index / 64], rc_bit(m->index),
                                 memory_order_acq_rel);
    if (m->balance == RC_KEY)
        rc_member_rebalance(m, m->unowned != 0);
    else
        rc_member_check_head(m);
    /* unsigned: a time that lies ahead is none that a member has written */
    if ((uint64_t)now_ns - looked >= (uint64_t)RC_GROUP_SLICE_NS &&
        atomic_compare_exchange_strong_explicit(&m->map.segment->looked_ns, &looked,
                                                (uint64_t)now_ns, memory_order_relaxed,
                                                memory_order_relaxed))
        rc_member_bury(m);
    rc_member_flush(m); /* what the dead, or those at work, have done and not said */
    rc_member_check_floor(m);
    return 1;
}

static inline int rc_member_look_due(const rc_member *m, int64_t now_ns)
{
    return now_ns - m->looked_ns >= RC_GROUP_SLICE_NS;
}

/* How many messages are in hand, and how many wait to be delivered again. */
typedef struct rc_group_census {
    uint64_t claimed, returned;
} rc_group_census;

static inline void rc_group_count(const rc_group_map *map, rc_group_census *census)
{
    uint64_t next = rc_load_acquire(&map->row->floor);
    *census = (rc_group_census){0};
    for (uint64_t n = 0; n < map->slots; n++, next++) {
        uint32_t state = rc_lease_state(map, next, rc_load_acquire(rc_lease_at(map, next)));
        census->claimed += state == RC_LEASE_CLAIMED;
        census->returned += state == RC_LEASE_RETURNED;
    }
}

/* Does the member of this slot take part, and is the slot still its own? When all are killed nobody sweeps
 * them, but the writer frees their slots. */
static inline int rc_group_works(const rc_group_map *map, uint32_t slot, uint64_t generation, uint64_t mask)
{
    if (!rc_group_has(map, slot, generation, mask))
        return 0;
    uint64_t word = rc_load_acquire(&map->control->readers[slot].state), state = word & 0xff;
    return ((word >> 8) & mask) == (generation & mask) && state != RC_FREE && state != RC_DEAD;
}

/* The first message from the floor on that is not done, though the floor may not have moved up to it yet;
 * *word: its lease. */
static inline uint64_t rc_group_first_undone(const rc_group_map *map, uint64_t *word)
{
    uint64_t next = rc_load_acquire(&map->row->floor);
    *word = 0;
    for (uint64_t n = 0; n < map->slots; n++, next++) {
        *word = rc_load_acquire(rc_lease_at(map, next));
        uint32_t state = rc_lease_state(map, next, *word);
        const rc_descriptor *d = &map->descriptors[next & (map->slots - 1)];
        if (rc_load_acquire(&d->words[0]) != next + 1)
            break;
        if (state != RC_LEASE_DONE && (state != RC_LEASE_FREE || rc_group_wants_descriptor(map, d)))
            break;
    }
    return next;
}

/* Which member the floor waits for, by its slot: who has its message, or whose partition it is of.
 * RC_NOBODY: no one. */
static inline uint32_t rc_group_holder(const rc_group_map *map, const _Atomic uint64_t *partitions)
{
    uint64_t word, first = rc_group_first_undone(map, &word);
    uint32_t state = rc_lease_state(map, first, word);
    if (state == RC_LEASE_CLAIMED || state == RC_LEASE_KEPT || state == RC_LEASE_ASSIGNED)
        return rc_group_works(map, rc_lease_slot(word), word >> 21, 0x7ff) ? rc_lease_slot(word)
                                                                         : RC_NOBODY;
    const rc_descriptor *d = &map->descriptors[first & (map->slots - 1)];
    if (rc_load(&map->row->balance) != RC_KEY || rc_load_acquire(&d->words[0]) != first + 1 ||
        (state != RC_LEASE_FREE && state != RC_LEASE_RETURNED))
        return RC_NOBODY;
    word = rc_load_acquire(
        &partitions[rc_group_partition(&map->view, rc_load(&d->words[4]), rc_reader_glance(d).topic)]);
    uint32_t slot = rc_partition_owner(word) - 1;
    return rc_group_works(map, slot, rc_partition_generation(word), 0xffff) ? slot : RC_NOBODY;
}

/* How many take part. */
static inline uint32_t rc_group_members(const rc_group_map *map)
{
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < map->max_readers; slot++)
        count += (uint32_t)rc_group_has(map, slot, 0, 0);
    return count;
}

/* ---- joining and leaving ------------------------------------------------------------------------- */

static inline void rc_member_map(rc_member *m, const rc_group_map *map, const rc_geometry *g,
                                 _Atomic uint64_t *partitions, uint32_t index, sem_t *wake,
                                 sem_t *space, int lock_fd)
{
    memset(m, 0, sizeof *m);
    m->map = *map;
    m->partitions = partitions;
    m->slot = rc_slot_at(map->control, index);
    m->index = index;
    m->passed_over = RC_NO_SEQUENCE;
    m->wake = wake;
    m->space = space;
    m->lock_fd = lock_fd;
    m->capacity = g->capacity;
    m->max_message = g->max_message;
    m->balance = rc_load(&map->row->balance);
    m->max_deliveries = rc_load(&map->row->max_deliveries);
    m->flush_every = g->slots / 8 < RC_FLUSH_MESSAGES ? g->slots / 8 : RC_FLUSH_MESSAGES;
    if (!m->flush_every)
        m->flush_every = 1;
}

/* Join, through the slot that the caller has claimed (rc_reader_claim()), whose state is `state`. 0: the
 * slot was evicted, or the group demoted, meanwhile: free the slot and begin again. */
static inline int rc_member_enter(rc_member *m, uint64_t state)
{
    rc_group_row *row = m->map.row;
    uint64_t joined = rc_state_word(state >> 8, RC_ACTIVE);
    m->group_state = rc_load_acquire(&row->state);
    m->generation = state >> 8;
    m->owner = rc_lease_owner(m->index, m->generation);
    rc_store(&m->slot->policy, RC_MEMBER);
    rc_store(&m->slot->group, m->map.group + 1);
    if (!atomic_compare_exchange_strong_explicit(&m->slot->state, &state, joined,
                                                 memory_order_acq_rel, memory_order_acquire))
        return 0;
    m->state = joined;
    rc_fence(); /* pairs with the fence in rc_group_demote() */
    if (rc_load(&row->state) != m->group_state || (m->group_state & 0xff) != RC_GROUP_ACTIVE)
        return 0;
    m->position = m->floor = rc_load_acquire(&row->floor);
    rc_store(&m->slot->cursor, m->position);
    uint64_t before = rc_load_acquire(&m->map.segment->members[m->index]) & ~RC_MEMBER_GONE;
    int first;
    if (before) /* of an earlier owner of the slot */
        rc_group_sweep(&m->map, m->index, before - 1, &first);
    RC_FAULT(112);
    atomic_store_explicit(&m->map.segment->members[m->index], m->generation + 1,
                          memory_order_seq_cst);
    RC_FAULT(113);
    atomic_fetch_or_explicit(&row->members[m->index / 64], rc_bit(m->index), memory_order_seq_cst);
    RC_FAULT(114);
    m->look.again = rc_load_acquire(&row->again) - 1; /* the first look begins at the floor */
    rc_store(&m->map.segment->looked_ns, 0);          /* and asks who lives */
    if (before)
        rc_member_call(m, m->map.max_readers);
    return 1;
}

/* Leave: what we have is for the others. The slot is freed afterwards. */
static inline void rc_member_leave(rc_member *m)
{
    int first;
    uint64_t returned = rc_group_sweep(&m->map, m->index, m->generation, &first);
    RC_FAULT(115);
    /* Also one that was evicted: it may have claimed after others swept it. Before its entry goes: while that
     * stands, whoever buries calls, too. One more than it returns: it may have been woken for a message that
     * it has not looked for. */
    rc_member_call(m, m->balance == RC_KEY ? m->map.max_readers : returned + 1);
    rc_group_forget(&m->map, m->index, m->generation);
    rc_member_flush(m);
}

/* ---- waiting ------------------------------------------------------------------------------------- */

/* Is there a reason to stop waiting? `look` is a copy of the member's, `hand` who waits. */
static inline int rc_member_ready(const rc_member *m, rc_look *look, uint32_t hand)
{
    uint64_t seen = rc_load_acquire(&m->map.row->floor);
    uint64_t passed_over = RC_NO_SEQUENCE, state = rc_load(&m->slot->state);
    if (rc_unlikely(state != m->state && !(state == rc_demoting(m->state) && rc_member_blocks(m))))
        return 1;
    if (rc_load_acquire(&m->map.row->again) != look->again ||
        rc_load_acquire(&m->map.row->state) != m->group_state)
        return 1;
    if (look->pause_count && rc_look_pause_ends(look) <= rc_now_ns())
        return 1;
    return rc_member_find(m, look, hand, &seen, &passed_over) != RC_NO_SEQUENCE || rc_member_is_over(m);
}

static inline int rc_member_spin(const rc_member *m, rc_look *look, uint32_t hand, int64_t limit_ns,
                                 rc_wait_kind kind)
{
    uint32_t round = 0;
    do {
        for (int i = 0; i < RC_SPINS_PER_CLOCK; i++) {
            if (rc_member_ready(m, look, hand))
                return 1;
            rc_pause(kind);
        }
        rc_offer_core(kind, round++);
    } while (rc_now_ns() < limit_ns);
    return 0;
}

/* The member's half of sleeping and waking; at most until the deadline. One thread a slot. */
static inline int rc_member_sleep(const rc_member *m, rc_look *look, uint32_t hand, int64_t deadline_ns)
{
    _Atomic uint64_t *word = &m->map.row->asleep[m->index / 64];
    uint64_t bit = rc_bit(m->index);
    int token = 0, ready;
    atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
    rc_fence(); /* pairs with the fences in rc_writer_release() and rc_member_call() */
    RC_FAULT(116);
    ready = rc_member_ready(m, look, hand);
    RC_FAULT(117);
    if (!ready)
        token = rc_take_token_until(m->wake, deadline_ns);
    rc_is_awake(word, bit, m->wake, token); /* pairs with rc_writer_post() and rc_member_post() */
    rc_member_answer(m);
    return ready || token;
}

/* How long one wait lasts at most: RC_GROUP_SLICE_NS, until a pause is over, and until the deadline. */
static inline int64_t rc_look_limit(const rc_look *look, int64_t deadline_ns)
{
    int64_t limit = rc_now_ns() + RC_GROUP_SLICE_NS, pause = rc_look_pause_ends(look);
    if (deadline_ns < limit)
        limit = deadline_ns;
    return pause < limit ? pause : limit;
}

/* Wait for something to happen, until the limit, which is rc_look_limit()'s. 1: look; 0: nothing happened. */
static inline int rc_member_wait(const rc_member *m, rc_look *look, uint32_t hand,
                                 rc_wait_strategy strategy, int64_t limit_ns)
{
    if (strategy.kind != RC_BLOCKING)
        return rc_member_spin(m, look, hand, limit_ns, strategy.kind);
    if (strategy.spin_ns > 0) {
        int64_t spin_until = rc_now_ns() + strategy.spin_ns;
        if (rc_member_spin(m, look, hand, spin_until < limit_ns ? spin_until : limit_ns, RC_BLOCKING))
            return 1;
    }
    return rc_member_sleep(m, look, hand, limit_ns);
}

/* ---- making, reviving and removing a group -------------------------------------------------------- */

/* Hold the ring from the floor on, or from the gate if that is past it; how many messages lie between.
 * The caller has the lock RC_LOCK_GROUPS, and the group is not ACTIVE. May be repeated: who dies in here leaves
 * it to the next. If the writer demotes the group meanwhile, it is not ACTIVE afterwards, and nobody enters. */
static inline uint64_t rc_group_hold(rc_control *control, const rc_header *header, uint64_t slots,
                                     uint32_t group, uint64_t generation)
{
    rc_group_row *row = &control->group_rows[group];
    const rc_descriptor *descriptors =
        (const rc_descriptor *)((const uint8_t *)header + RC_DESCRIPTORS_OFFSET);
    uint64_t holding = rc_group_state(generation, RC_GROUP_HOLDING);
    atomic_fetch_or_explicit(&control->groups, UINT64_C(1) << group, memory_order_release);
    RC_FAULT(120);
    /* release: pairs with the acquire in rc_writer_group(): floor and interest are there before */
    rc_store_release(&row->state, holding);
    RC_FAULT(123);
    rc_fence(); /* pairs with the fence in rc_writer_make_room() */
    uint64_t published = rc_load_acquire(&header->published), gate = rc_load_acquire(&header->gate);
    uint64_t floor = rc_load_acquire(&row->floor), start = floor;
    if (floor > published && rc_load_acquire(&descriptors[(floor - 1) & (slots - 1)].words[0]) != floor)
        /* a lie, for which it was demoted: it has done all there is, as it said */
        atomic_compare_exchange_strong_explicit(&row->floor, &floor, published,
                                                memory_order_acq_rel, memory_order_relaxed);
    else
        while (floor < gate &&
               !atomic_compare_exchange_weak_explicit(&row->floor, &floor, gate, memory_order_acq_rel,
                                                      memory_order_acquire))
            ; /* the writer moves it at most to `published`, and then no further */
    atomic_compare_exchange_strong_explicit(&row->state, &holding,
                                            rc_group_state(generation, RC_GROUP_ACTIVE),
                                            memory_order_seq_cst, memory_order_relaxed);
    return gate > start ? gate - start : 0;
}

/* First half of making a group in a free row: everything but its hold. Its list of topics stands in the
 * control segment already, its segment is formatted with the same generation. */
static inline void rc_group_make(void *control_address, const void *data, const rc_geometry *g,
                                 uint32_t group, uint64_t generation, const char *name,
                                 uint32_t balance, uint32_t chooses, uint32_t max_deliveries,
                                 uint64_t start)
{
    rc_control *control = control_address;
    rc_group_row *row = &control->group_rows[group];
    rc_group_view view = rc_group_view_of(data, control, g);
    _Atomic uint64_t *partitions = rc_partitions_at(control, g, group);
    char padded[8 * RC_GROUP_NAME_WORDS] = {0};
    strncpy(padded, name, sizeof padded - 1);
    rc_store_words(row->name, padded, sizeof padded);
    for (uint32_t i = 0; i < RC_BITMAP_WORDS; i++) {
        rc_store(&row->asleep[i], 0);
        rc_store(&row->members[i], 0);
    }
    for (uint32_t p = 0; p < RC_PARTITIONS; p++)
        rc_store(&partitions[p], 0);
    rc_store(&row->gap, 0);
    rc_store(&row->lost, 0);
    rc_store(&row->aside, 0);
    rc_store(&row->balance, balance);
    rc_store(&row->chooses, chooses);
    rc_store(&row->max_deliveries, max_deliveries);
    rc_store(&row->called, 0);
    rc_store(&row->created_ns, (uint64_t)rc_clock_ns(CLOCK_REALTIME));
    rc_store(&row->head, rc_head(start, (1u << RC_TURN_BITS) - 1));
    rc_store(&row->floor, start);
    for (uint32_t topic = 0; topic <= g->max_topics; topic++)
        rc_group_mark(&view, group, topic, 0);
    rc_store_release(&row->state, rc_group_state(generation, RC_GROUP_MAKING));
    rc_fence(); /* pairs with the fence in rc_writer_match_newest() */
    uint32_t count = rc_topics_count(data, g->max_topics);
    for (uint32_t topic = 1; topic <= count; topic++)
        rc_group_match(&view, control, g, group, topic);
    rc_group_mark(&view, group, 0, (chooses & RC_OTHERS) != 0);
}

/* A group that lost its hold, or whose maker died in the midst, goes on at the gate: what lies between is
 * lost, and told with the next message. One that is ACTIVE is left alone. */
static inline void rc_group_revive(rc_control *control, const rc_header *header, uint64_t slots,
                                   uint32_t group)
{
    rc_group_row *row = &control->group_rows[group];
    if (rc_group_is_active(row))
        return;
    uint64_t missed = rc_group_hold(control, header, slots, group,
                                    rc_load_acquire(&row->state) >> 8);
    atomic_fetch_add_explicit(&row->gap, missed, memory_order_acq_rel);
    atomic_fetch_add_explicit(&row->lost, missed, memory_order_relaxed);
}

/* Remove a group without members from its row. The caller has the lock RC_LOCK_GROUPS and unlinks the
 * segment afterwards. */
static inline void rc_group_remove(rc_control *control, uint32_t group, sem_t *space)
{
    rc_group_row *row = &control->group_rows[group];
    uint64_t generation = rc_load_acquire(&row->state) >> 8;
    rc_store_release(&row->state, rc_group_state(generation + 1, RC_GROUP_NONE));
    RC_FAULT(121);
    atomic_fetch_and_explicit(&control->groups, ~(UINT64_C(1) << group), memory_order_acq_rel);
    rc_wake_writer(control, space);
}

#endif

/* members.h - members of a work group over a ring in memory, and a ledger of what they did.
 *
 * Which messages the group wants, and the key of each, follow from the sequence. The ledger has an entry
 * for each message: whoever takes one, acknowledges it or gives it back writes there, with plain stores,
 * so that ThreadSanitizer sees whether the leases order them.
 *
 * A member's lock is that of its slot in a file without a name, through a description of its own, which
 * is closed when it dies. A crew of threads has no such file: there everybody lives.
 */
#ifndef RINGCAST_TEST_MEMBERS_H
#define RINGCAST_TEST_MEMBERS_H

#include "bed.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* readers for themselves are not tested here */
#include "cases.h"
#pragma GCC diagnostic pop

enum {
    ROW = 3, /* of the group */
    KEYS = 5,
    IN_HAND = 32, /* messages that a worker holds at most */
    HAND = 1,
    DELIVERIES = 200,
};

static const char *const balance_names[] = {"", "any", "key", "round-robin"};

/* ---- messages ------------------------------------------------------------------------------ */

static void adorn_with_key(rc_descriptor *m, uint64_t sequence)
{
    uint64_t h = mix(seed ^ mix(sequence) ^ 11);
    m->f.topic = 0;
    m->f.key = 1 + (h >> 8) % KEYS;
    if (h % 16 == 0)
        m->f.kind = RC_KIND_EVENT;
    else if (h % 16 == 1)
        m->f.destination = 1;
}

static int is_wanted(uint64_t sequence)
{
    rc_descriptor m = {.f.kind = RC_KIND_BINARY};
    adorn_with_key(&m, sequence);
    return m.f.kind != RC_KIND_EVENT && m.f.destination == 0;
}

static uint64_t key_of(uint64_t sequence)
{
    rc_descriptor m = {.f.kind = RC_KIND_BINARY};
    adorn_with_key(&m, sequence);
    return m.f.key;
}

/* The message of the same key before this one that is wanted; `base` - 1: there is none. */
static uint64_t before_of_key(uint64_t sequence, uint64_t base)
{
    uint64_t key = key_of(sequence);
    while (sequence-- > base)
        if (key_of(sequence) == key && is_wanted(sequence))
            break;
    return sequence;
}

/* ---- the crew ------------------------------------------------------------------------------ */

typedef struct entry {
    uint32_t taken;  /* how often a worker was handed it */
    uint32_t acked;  /* how often an acknowledgement counted */
    uint32_t acking; /* how many acknowledge it, or have */
    uint32_t given;  /* how often it was given back by one who was at work */
} entry;

typedef struct crew {
    ring ring;
    rc_writer writer;
    rc_group_segment *segment;
    rc_group_map map;
    entry *ledger;
    uint64_t base, room; /* of the ledger: its first sequence, and how many */
    uint32_t balance;
    int file; /* of locks; -1: none */
    int calm;    /* nobody dies or is evicted, and nothing is spoilt */
    int threads; /* each worker has a thread of its own */
    pthread_mutex_t door; /* for RC_LOCK_GROUPS */
} crew;

static entry *entry_of(const crew *c, uint64_t sequence)
{
    CHECK(sequence - c->base < c->room);
    return &c->ledger[sequence - c->base];
}

/* Plain, as long as the leases order it: an evicted worker may still write, beside the next one. */
static void note(const crew *c, uint32_t *number, int more)
{
    if (c->threads && !c->calm)
        __atomic_fetch_add(number, (uint32_t)more, __ATOMIC_RELAXED);
    else
        *number += (uint32_t)more;
}

static rc_group_row *row_of(const crew *c)
{
    return &((rc_control *)c->ring.control)->group_rows[ROW];
}

static _Atomic uint64_t *partitions_of(const crew *c)
{
    return rc_partitions_at(c->ring.control, &c->ring.geometry, ROW);
}

static _Atomic uint64_t *lease_at(const crew *c, uint64_t sequence)
{
    return rc_lease_at(&c->map, sequence);
}

static uint32_t state_of(const crew *c, uint64_t sequence)
{
    return rc_lease_state(&c->map, sequence, rc_load_acquire(lease_at(c, sequence)));
}

static uint32_t partition_of(uint64_t sequence) { return rc_partition_of_key(key_of(sequence)); }

/* A new ring as if so many messages had gone through it. */
static void ring_begin_at(ring *x, rc_writer *w, uint64_t base)
{
    rc_header *h = x->data;
    rc_store(&h->published, base);
    rc_store(&h->gate, base);
    rc_store(&h->settled, base);
    rc_writer_map(w, x->data, x->control, &x->geometry, x->wakes, &x->space);
    CHECK(rc_writer_resume(w));
    rc_writer_sign(w, 1, 1, 1);
}

static void group_begin(crew *c, uint64_t start, uint32_t max_deliveries)
{
    uint64_t generation = (rc_load(&row_of(c)->state) >> 8) + 1;
    rc_group_format(c->segment, &c->ring.geometry, generation, 1);
    rc_group_make(c->ring.control, c->ring.data, &c->ring.geometry, ROW, generation, "crew", c->balance,
                  0, max_deliveries, start);
    (void)rc_group_hold(c->ring.control, c->ring.data, c->ring.geometry.slots, ROW, generation);
}

static void crew_make(crew *c, uint32_t balance, uint64_t slots, uint64_t capacity, uint64_t base,
                      uint64_t room, int locks)
{
    memset(c, 0, sizeof *c);
    adorn = adorn_with_key;
    ring_make(&c->ring, slots, capacity);
    ring_begin_at(&c->ring, &c->writer, base);
    c->balance = balance;
    c->base = base;
    c->room = room;
    c->calm = 1;
    c->ledger = calloc(room, sizeof *c->ledger);
    c->segment = zeroed(rc_group_size(slots));
    c->file = -1;
    CHECK(c->ledger != NULL && pthread_mutex_init(&c->door, NULL) == 0);
    if (locks)
        CHECK((c->file = memfd_create("locks", MFD_CLOEXEC)) >= 0);
    group_begin(c, base, DELIVERIES);
    rc_group_map_at(&c->map, c->ring.data, c->ring.control, c->segment, &c->ring.geometry, ROW);
}

static void crew_free(crew *c)
{
    if (c->file >= 0)
        close(c->file);
    pthread_mutex_destroy(&c->door);
    unzeroed(c->segment, rc_group_size(c->ring.geometry.slots));
    free(c->ledger);
    ring_free(&c->ring);
}

/* ---- workers ------------------------------------------------------------------------------- */

typedef struct item {
    rc_lease lease;
    uint64_t length;
} item;

typedef struct worker {
    rc_member m;
    crew *crew;
    item hand[IN_HAND];
    uint32_t count;
    item kept[IN_HAND];
    uint32_t kept_count;
    int lock_fd;
    int in;   /* has joined, and not left or died */
    int wary; /* may be evicted, so it reads copies */
} worker;

static sem_t *wake_of(void *with, uint32_t slot)
{
    return slot < READERS ? &((ring *)with)->wake[slot] : NULL;
}

static int take_lock(const crew *c, uint32_t index)
{
    char path[64];
    if (c->file < 0)
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", c->file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && rc_lock_try(fd, RC_LOCK_READER + index) == 0);
    return fd;
}

/* Join through a slot whose lock nobody holds. */
static void worker_enter(worker *k, crew *c, uint32_t index)
{
    rc_reader r;
    memset(k, 0, sizeof *k);
    k->crew = c;
    k->lock_fd = take_lock(c, index);
    rc_reader_map(&r, c->ring.data, c->ring.control, &c->ring.geometry, index, &c->ring.wake[index],
                  &c->ring.space);
    rc_slot_free(r.control, index, r.space); /* what a dead owner left */
    rc_reader_claim(&r, 0);
    rc_store(&r.slot->pid, index + 1);
    rc_member_map(&k->m, &c->map, &c->ring.geometry, partitions_of(c), index, r.wake, r.space,
                  k->lock_fd);
    k->m.wake_of = wake_of;
    k->m.wakes = &c->ring;
    k->m.max_message = c->writer.max_message;
    if (c->threads)
        pthread_mutex_lock(&c->door);
    k->in = rc_member_enter(&k->m, r.state);
    if (c->threads)
        pthread_mutex_unlock(&c->door);
    if (!k->in)
        rc_reader_leave(&r);
}

static void worker_unlock(worker *k)
{
    if (k->lock_fd >= 0)
        close(k->lock_fd);
    k->lock_fd = -1;
}

static void worker_leave(worker *k)
{
    k->in = 0;
    k->count = k->kept_count = 0; /* whoever is evicted has lost them */
    rc_member_leave(&k->m);
    rc_slot_free(k->m.map.control, k->m.index, k->m.space);
    worker_unlock(k);
}

static int is_evicted(const worker *k) { return rc_member_changed(&k->m) != RC_EMPTY; }

static int holds(const worker *k, uint64_t sequence)
{
    for (uint32_t i = 0; i < k->count; i++)
        if (k->hand[i].lease.sequence == sequence)
            return 1;
    return 0;
}

/* All bytes of a message that was just taken. */
static void check_bytes(const worker *k, const rc_descriptor *d)
{
    const rc_writer *w = &k->crew->writer; /* its constants */
    const uint8_t *bytes = w->arena + (d->f.position & (w->capacity - 1));
    uint8_t copy[LONGEST];
    if (k->wary) {
        rc_copy_out(copy, bytes, d->f.length);
        bytes = copy;
        rc_fence_acquire();
        if (is_evicted(k))
            return;
    }
    check_message(d, bytes, d->f.seq1 - 1, k->m.max_message);
}

static int was_set_aside(const crew *c, uint64_t sequence)
{
    for (uint32_t i = 0; i < RC_ASIDE; i++)
        if (rc_load(&c->segment->aside[i].sequence1) == sequence + 1)
            return 1;
    return 0;
}

/* The messages of its key before it are done, or in the same hand; or they were set aside, or the group
 * has lost them. */
static void check_order(const worker *k, uint64_t sequence)
{
    const crew *c = k->crew;
    uint64_t before = before_of_key(sequence, c->base);
    if (before == c->base - 1)
        return;
    const entry *e = entry_of(c, before);
    if (e->acking || holds(k, before))
        return;
    CHECK(!c->calm && !c->threads);
    CHECK(e->acked || was_set_aside(c, before) || before < rc_load(&row_of(c)->floor));
}

/* Enter a message that was taken into hand and ledger. */
static void worker_note(worker *k, const rc_lease *lease, const rc_descriptor *d)
{
    entry *e = entry_of(k->crew, lease->sequence);
    CHECK(d->f.seq1 == lease->sequence + 1 && is_wanted(lease->sequence));
    CHECK(k->count < IN_HAND);
    check_bytes(k, d);
    if (k->crew->calm) {
        CHECK(!e->acking);
        CHECK(rc_lease_deliveries(lease->word) == e->given + 1 && e->taken == e->given);
    }
    if (k->crew->balance == RC_KEY && (k->crew->calm || (!k->crew->threads && !is_evicted(k))))
        check_order(k, lease->sequence);
    note(k->crew, &e->taken, 1);
    k->hand[k->count++] = (item){*lease, d->f.length};
}

static rc_result worker_take(worker *k)
{
    rc_descriptor d;
    rc_lease lease;
    rc_result result = rc_member_take(&k->m, HAND, RC_ANY_SORT, NULL, &lease, &d);
    if (result == RC_MESSAGE)
        worker_note(k, &lease, &d);
    CHECK(result != RC_IMPOSSIBLE && (result != RC_TAKEN_AWAY || k->wary));
    return result;
}

static item worker_lay_out(worker *k, uint32_t i)
{
    item found = k->hand[i];
    k->hand[i] = k->hand[--k->count];
    return found;
}

/* Acknowledge one of what is in hand; `keep`: its bytes stay in use. */
static void worker_finish(worker *k, uint32_t i, int keep)
{
    item found = worker_lay_out(k, i);
    entry *e = entry_of(k->crew, found.lease.sequence);
    note(k->crew, &e->acking, 1);
    step();
    int ours = rc_member_finish(&k->m, &found.lease, keep, found.length);
    CHECK(ours || k->wary);
    if (ours)
        note(k->crew, &e->acked, 1); /* nobody looks at this before the end */
    else
        note(k->crew, &e->acking, -1);
    if (ours && keep)
        k->kept[k->kept_count++] = found;
}

static void worker_release(worker *k)
{
    item found = k->kept[--k->kept_count];
    rc_member_release(&k->m, &found.lease, found.length);
}

/* Give one back; the caller calls rc_member_call(). */
static void worker_return(worker *k, uint32_t i, int pause)
{
    item found = worker_lay_out(k, i);
    entry *e = entry_of(k->crew, found.lease.sequence);
    note(k->crew, &e->given, 1);
    step();
    if (!rc_member_give_back(&k->m, &found.lease, pause))
        CHECK(k->wary);
}

static void worker_finish_all(worker *k)
{
    while (k->count)
        worker_finish(k, 0, 0);
    while (k->kept_count)
        worker_release(k);
}

/* Take and acknowledge all there is. */
static void worker_works(worker *k)
{
    rc_result result;
    do {
        worker_finish_all(k);
        result = worker_take(k);
    } while (result == RC_MESSAGE);
    rc_member_flush(&k->m);
}

#endif

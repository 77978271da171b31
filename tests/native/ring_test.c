/* ring_test.c - the C core alone: threads over one buffer, and every step of it held up or cut off.
 *
 *   ring_test [SEED [PERCENT [CASE]]]    all cases, each in a child process of its own; or one, here
 *
 * Three kinds of cases.
 *
 *   Threads     One writer and its readers run freely. Lossless readers read payloads in place with
 *               plain loads, so ThreadSanitizer sees whether the cursors order them before the
 *               writer's next round; lossy readers copy as shm does.
 *   Steps       One thread. An operation is begun, and before its n-th atomic operation another
 *               party's whole operation runs, or the party dies there, for every n there is. So
 *               every place to be interrupted or killed is tried, whatever the scheduler does.
 *   Hostility   Headers with every bit flipped and rings full of garbage, in buffers of the exact
 *               size, so that AddressSanitizer sees each byte read beyond them.
 *
 * A message is a function of the seed and its sequence: whoever publishes it, and whoever publishes
 * it again after a death, publishes the same; a reader knows every byte to come.
 *
 * The semaphores are unnamed, and the lock of a slot is here the rule that each slot has one thread.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* Each atomic operation of the core, and each of its RC_FAULT()s, is a step. The memory orders are
 * the core's own. */
static void step(void);
#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_exchange_explicit
#undef atomic_fetch_or_explicit
#undef atomic_fetch_and_explicit
#undef atomic_compare_exchange_strong_explicit
#define atomic_load_explicit(p, order) (step(), __atomic_load_n((p), (order)))
#define atomic_store_explicit(p, v, order) (step(), __atomic_store_n((p), (v), (order)))
#define atomic_exchange_explicit(p, v, order) (step(), __atomic_exchange_n((p), (v), (order)))
#define atomic_fetch_or_explicit(p, v, order) (step(), __atomic_fetch_or((p), (v), (order)))
#define atomic_fetch_and_explicit(p, v, order) (step(), __atomic_fetch_and((p), (v), (order)))
#define atomic_compare_exchange_strong_explicit(p, expected, v, success, failure) \
    (step(), __atomic_compare_exchange_n((p), (expected), (v), 0, (success), (failure)))
#define RC_FAULTS

#include "broadcast.h"
#include "endpoint.h"

#define READERS 6    /* slots of a ring */
#define LONGEST 4096 /* bytes of a message, in any ring here */
#define CASE_SECONDS 50

/* ---- the harness ------------------------------------------------------------------------- */

static uint64_t seed;
static uint64_t percent = 100;
static int64_t deadline; /* of the running case; CLOCK_MONOTONIC */

/* What the running case of steps is at, for the report of a failure. */
static struct {
    const char *plot;
    uint64_t round, at;
} scene;

static _Noreturn void failed(int line, const char *what)
{
    printf("ring_test.c:%d: not so: %s (seed %" PRIu64 ")\n", line, what, seed);
    if (scene.plot)
        printf("  in: %s, round %" PRIu64 ", step %" PRIu64 "\n", scene.plot, scene.round, scene.at);
    fflush(stdout);
    _exit(1);
}

#define CHECK(x) ((x) ? (void)0 : failed(__LINE__, #x))

static void in_time(void) { CHECK(rc_now_ns() < deadline); }

static uint64_t scaled(uint64_t n) { return n * percent / 100 ? n * percent / 100 : 1; }

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static _Thread_local uint64_t dice;

static void throw_with(uint64_t number) { dice = mix(seed) ^ mix(number); }

/* A random number below n. */
static uint64_t roll(uint64_t n)
{
    dice = mix(dice);
    return dice % n;
}

static void linger(uint64_t looks)
{
    for (uint64_t i = 0; i < looks; i++)
        rc_relax();
}

/* ---- steps ------------------------------------------------------------------------------- */

typedef void action(void *);

/* What is to happen to this thread: `then(with)` before its step number `left`; else it gives way
 * in one of `jitter` steps, so that threads meet in the middle of operations. */
static _Thread_local struct {
    action *then;
    void *with;
    uint64_t left;
    uint64_t jitter;
} plan;

static void step(void)
{
    if (plan.then) {
        if (plan.left-- == 0) {
            action *then = plan.then;
            plan.then = NULL;
            then(plan.with);
        }
    } else if (plan.jitter && roll(plan.jitter) == 0) {
        sched_yield();
    }
}

void rc_fault(int number)
{
    (void)number;
    step();
}

/* Run `a`, and before its step number `at` run `b`. 0: `a` is over before that. */
static int interrupted(action *a, action *b, void *with, uint64_t at)
{
    plan.then = b;
    plan.with = with;
    plan.left = at;
    a(with);
    int happened = plan.then == NULL;
    plan.then = NULL;
    return happened;
}

static _Thread_local jmp_buf grave;

static void die(void *with)
{
    (void)with;
    longjmp(grave, 1);
}

/* Run `a` up to its step number `at` and no further. 0: `a` is over before that. */
static int killed(action *a, void *with, uint64_t at)
{
    return setjmp(grave) ? 1 : interrupted(a, die, with, at);
}

/* ---- messages ---------------------------------------------------------------------------- */

static uint32_t length_of(uint64_t sequence, uint64_t max)
{
    uint64_t h = mix(seed ^ mix(sequence));
    if (h % 8 == 0)
        return 0;
    return (uint32_t)(h % 8 == 1 ? max : (h >> 8) % (max + 1));
}

static uint32_t checksum(const uint8_t *bytes, uint32_t n)
{
    uint32_t sum = n;
    for (uint32_t i = 0; i < n; i++)
        sum = sum * 31 + bytes[i];
    return sum;
}

/* Message `sequence` of a ring whose messages are at most `max` bytes long. */
static void compose(rc_descriptor *m, uint8_t *bytes, uint64_t sequence, uint64_t max)
{
    uint64_t h = mix(seed ^ mix(sequence));
    memset(m, 0, sizeof *m);
    m->f.length = length_of(sequence, max);
    m->f.topic = (uint32_t)h;
    m->f.key = sequence;
    m->f.kind = RC_KIND_BINARY;
    for (uint32_t i = 0; i < m->f.length; i++)
        bytes[i] = (uint8_t)(h >> (i & 7) * 8) ^ (uint8_t)i;
    m->f.crc32c = checksum(bytes, m->f.length);
}

static void check_message(const rc_descriptor *m, const uint8_t *bytes, uint64_t sequence,
                          uint64_t max)
{
    rc_descriptor expected;
    uint8_t payload[LONGEST];
    compose(&expected, payload, sequence, max);
    CHECK(m->f.seq1 == sequence + 1);
    CHECK(m->f.key == sequence);
    CHECK(m->f.length == expected.f.length);
    CHECK(m->f.topic == expected.f.topic && m->f.kind == expected.f.kind);
    CHECK(m->f.crc32c == checksum(bytes, m->f.length));
    CHECK(m->f.length == 0 || memcmp(bytes, payload, m->f.length) == 0);
}

/* ---- rings ------------------------------------------------------------------------------- */

typedef struct ring {
    rc_geometry geometry;
    void *data, *control;
    sem_t wake[READERS], space;
    sem_t *wakes[READERS];
} ring;

/* Exactly so many bytes, zeroed, aligned as a mapping's lines are. */
static void *zeroed(uint64_t size)
{
    void *memory = NULL;
    CHECK(posix_memalign(&memory, RC_LINE, size) == 0);
    memset(memory, 0, size);
    return memory;
}

static void ring_make(ring *x, uint64_t slots, uint64_t capacity)
{
    uint64_t data_size = rc_data_size(slots, capacity), control_size = rc_control_size(READERS);
    CHECK(rc_message_limit(capacity) <= LONGEST);
    x->geometry = (rc_geometry){slots, capacity, rc_message_limit(capacity), mix(seed), READERS};
    x->data = zeroed(data_size);
    x->control = zeroed(control_size);
    rc_fill_identity(x->data, &x->geometry, data_size, 1);
    rc_fill_identity(x->control, &x->geometry, control_size, 1);
    rc_seal(x->data, x->control);
    CHECK(sem_init(&x->space, 0, 0) == 0);
    for (int i = 0; i < READERS; i++) {
        CHECK(sem_init(&x->wake[i], 0, 0) == 0);
        x->wakes[i] = &x->wake[i];
    }
}

static void ring_free(ring *x)
{
    for (int i = 0; i < READERS; i++)
        sem_destroy(&x->wake[i]);
    sem_destroy(&x->space);
    free(x->control);
    free(x->data);
}

static rc_header *header_of(const ring *x) { return x->data; }

/* ---- writing ----------------------------------------------------------------------------- */

static const rc_wait_strategy ways[] = {
    {RC_BLOCKING, 0}, {RC_BLOCKING, 20000}, {RC_YIELDING, 0}, {RC_BUSY_SPIN, 0}};

static void write_to(rc_writer *w, ring *x)
{
    rc_writer_map(w, x->data, x->control, &x->geometry, x->wakes, &x->space);
    rc_writer_sign(w, 1, 1, 1);
}

/* The writer of this ring is dead: become its successor. */
static void succeed(rc_writer *w, ring *x)
{
    uint32_t epoch = __atomic_load_n(&header_of(x)->epoch, __ATOMIC_RELAXED);
    rc_writer_map(w, x->data, x->control, &x->geometry, x->wakes, &x->space);
    CHECK(rc_writer_resume(w));
    rc_writer_sign(w, epoch + 1, 1, 1);
    rc_writer_wake_all(w);
}

static int try_put(rc_writer *w)
{
    uint8_t bytes[LONGEST];
    rc_descriptor m;
    compose(&m, bytes, w->next, w->max_message);
    return rc_writer_try_put(w, &m, bytes, m.f.length);
}

/* Reserve for the next message and write some of it, as one does who receives in place. */
static void reserve_and_scribble(rc_writer *w)
{
    uint32_t length = length_of(w->next, w->max_message);
    uint64_t start;
    if (rc_writer_room(w, length, &start))
        for (uint32_t i = 0; i < length / 2; i++)
            __atomic_store_n(w->arena + (start & (w->capacity - 1)) + i, 0xee, __ATOMIC_RELAXED);
}

static void put(rc_writer *w, rc_wait_strategy how)
{
    while (!try_put(w)) {
        in_time();
        rc_writer_wait(w, length_of(w->next, w->max_message), how, deadline);
    }
    if (roll(3) == 0)
        rc_writer_release(w);
}

/* Publish up to sequence `total` and end the ring. */
static void write_all(rc_writer *w, uint64_t total, rc_wait_strategy how)
{
    while (w->next < total)
        put(w, how);
    rc_writer_end(w);
}

/* ---- reading ----------------------------------------------------------------------------- */

typedef enum start_at { OLDEST, LATEST, ZERO } start_at;

typedef struct guest {
    rc_reader ring;
    uint64_t start; /* where it wished to begin: everything since is received or lost */
    int in;         /* has joined, and not left */
    int overrun;    /* and not gone on yet */
    int asked;      /* to step down, and has not done so yet */
    int wary;       /* may be evicted, so it reads copies */
} guest;

/* Join through a free slot. g->in is 0 afterwards if a successor of the writer sent us back. */
static void enter(guest *g, ring *x, uint32_t index, int lossy, start_at where)
{
    rc_reader *r = &g->ring;
    memset(g, 0, sizeof *g);
    rc_reader_map(r, x->data, x->control, &x->geometry, index, &x->wake[index], &x->space);
    CHECK((__atomic_load_n(&r->slot->state, __ATOMIC_ACQUIRE) & 0xff) == RC_FREE);
    rc_reader_claim(r, lossy);
    if (where != ZERO)
        g->start = rc_load(where == LATEST ? &r->header->published : &r->header->gate);
    g->in = rc_reader_join(r, g->start);
    if (!g->in)
        rc_reader_leave(r);
    CHECK(!g->in || (r->next >= g->start && r->gap == r->next - g->start));
}

static void leave(guest *g)
{
    g->in = 0;
    rc_reader_leave(&g->ring);
}

/* Look at the next message, check every byte of it and take it. */
static rc_result look(guest *g)
{
    rc_reader *r = &g->ring;
    rc_descriptor m;
    uint8_t copy[LONGEST];
    rc_result result = rc_reader_peek(r, &m);
    if (result == RC_MESSAGE) {
        const uint8_t *bytes = r->arena + (m.f.position & (r->capacity - 1));
        step();
        if (r->lossy || g->wary) {
            rc_copy_out(copy, bytes, m.f.length);
            bytes = copy;
        }
        step();
        if (r->lossy && !rc_reader_intact(r, r->next)) {
            result = RC_OVERRUN;
        } else if (g->wary && !rc_reader_holds(r)) {
            result = RC_TAKEN_AWAY;
        } else {
            check_message(&m, bytes, r->next, r->max_message);
            rc_reader_advance(r, 1, m.f.length);
            if (rc_reader_flush_due(r))
                rc_reader_flush(r, r->next);
        }
    }
    g->overrun = result == RC_OVERRUN;
    CHECK(result != RC_IMPOSSIBLE);
    CHECK(r->received + r->lost == r->next - g->start);
    return result;
}

static void go_on(guest *g)
{
    uint64_t before = g->ring.lost;
    if (!g->overrun)
        return;
    g->overrun = 0;
    CHECK(rc_reader_resync(&g->ring));
    CHECK(g->ring.lost > before || g->ring.gap == 0);
}

static rc_result take(guest *g)
{
    rc_result result = look(g);
    go_on(g);
    return result;
}

static void step_down(guest *g)
{
    g->asked = 0;
    if (!rc_reader_step_down(&g->ring)) /* 0: evicted meanwhile; the next look says so */
        CHECK(rc_reader_changed(&g->ring) == RC_TAKEN_AWAY);
}

static void wait_for_message(guest *g, rc_wait_strategy how)
{
    rc_reader snapshot;
    in_time();
    if (g->asked)
        step_down(g);
    rc_reader_flush(&g->ring, g->ring.next);
    snapshot = g->ring;
    rc_reader_wait(&snapshot, how, deadline);
}

/* Read `most` messages, waiting for them: RC_MESSAGE; or until RC_ENDED or RC_TAKEN_AWAY. */
static rc_result follow(guest *g, rc_wait_strategy how, uint64_t most)
{
    for (uint64_t n = 0; n < most;) {
        if (g->asked && roll(4) == 0)
            step_down(g);
        switch (take(g)) {
        case RC_MESSAGE:
            n++;
            break;
        case RC_EMPTY:
            wait_for_message(g, how);
            break;
        case RC_STEP_DOWN: /* not at once: it reads on for a while */
            g->ring.state = rc_demoting(g->ring.state);
            g->asked = 1;
            break;
        case RC_ENDED:
            return RC_ENDED;
        case RC_TAKEN_AWAY:
            return RC_TAKEN_AWAY;
        case RC_OVERRUN:
        case RC_IMPOSSIBLE:
            break;
        }
    }
    return RC_MESSAGE;
}

/* ---- threads ----------------------------------------------------------------------------- */

typedef struct party {
    pthread_t thread;
    ring *ring;
    guest guest;
    uint32_t index;
    uint64_t total;      /* messages the ring will have when it ends */
    rc_wait_strategy how;
    int stubborn;        /* stops reading now and then, until it is evicted */
    uint64_t seen;       /* messages that reached it, in all its visits */
} party;

static void *party_reads_all(void *with)
{
    party *p = with;
    throw_with(p->index + 1);
    plan.jitter = 256;
    CHECK(follow(&p->guest, p->how, UINT64_MAX) == RC_ENDED);
    CHECK(p->guest.ring.next == p->total);
    CHECK(p->guest.ring.lossy || p->guest.ring.lost == 0);
    p->seen = p->guest.ring.received;
    leave(&p->guest);
    return NULL;
}

static void wait_for_eviction(guest *g)
{
    while (rc_reader_changed(&g->ring) != RC_TAKEN_AWAY &&
           rc_load_acquire(&g->ring.header->state) != RC_RING_CLOSED) {
        in_time();
        sched_yield();
    }
}

static void *party_comes_and_goes(void *with)
{
    party *p = with;
    guest *g = &p->guest;
    rc_result result = RC_MESSAGE;
    throw_with(p->index + 1);
    plan.jitter = 256;
    while (result != RC_ENDED) {
        int wary = p->stubborn, lossy = roll(3) == 0;
        in_time();
        enter(g, p->ring, p->index, lossy, (start_at)roll(3));
        if (!g->in)
            continue;
        g->wary = wary;
        result = follow(g, p->how, roll(3 * p->ring->geometry.slots));
        if (p->stubborn && result == RC_MESSAGE && roll(4) == 0)
            wait_for_eviction(g);
        p->seen += g->ring.received;
        leave(g);
    }
    return NULL;
}

static void party_start(party *p, ring *x, uint32_t index, uint64_t total, void *(*run)(void *))
{
    p->ring = x;
    p->index = index;
    p->total = total;
    p->how = ways[index % 3];
    CHECK(pthread_create(&p->thread, NULL, run, p) == 0);
}

/* A reader that is there before the first message. */
static void party_joins_and_starts(party *p, ring *x, uint32_t index, int lossy, uint64_t total)
{
    enter(&p->guest, x, index, lossy, ZERO);
    CHECK(p->guest.in && p->guest.ring.next == 0);
    party_start(p, x, index, total, party_reads_all);
}

static void parties_end(party *p, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        CHECK(pthread_join(p[i].thread, NULL) == 0);
}

static void run_readers(uint64_t slots, uint64_t capacity, uint32_t lossless, uint32_t lossy,
                        uint64_t total, rc_wait_strategy how)
{
    ring x;
    rc_writer w;
    party p[READERS] = {0};
    ring_make(&x, slots, capacity);
    write_to(&w, &x);
    for (uint32_t i = 0; i < lossless + lossy; i++)
        party_joins_and_starts(&p[i], &x, i, i >= lossless, total);
    plan.jitter = 256;
    write_all(&w, total, how);
    parties_end(p, lossless + lossy);
    CHECK(w.evictions == 0);
    ring_free(&x);
}

static void case_lossless(void)
{
    run_readers(4, 256, 1, 0, scaled(40000), ways[0]);
    run_readers(8, 256, 3, 0, scaled(15000), ways[1]);
    run_readers(64, 1024, 2, 0, scaled(20000), ways[2]);
    run_readers(16, 16384, 5, 0, scaled(5000), ways[0]);
    run_readers(8, 1024, 1, 0, scaled(5000), ways[3]);
}

static void case_lossy(void)
{
    run_readers(4, 256, 0, 2, scaled(60000), ways[0]);
    run_readers(16, 1024, 0, 4, scaled(30000), ways[0]);
    run_readers(64, 16384, 0, 1, scaled(30000), ways[0]);
    run_readers(8, 1024, 1, 2, scaled(15000), ways[0]); /* the lossless one slows the writer down */
    run_readers(32, 4096, 2, 2, scaled(10000), ways[1]);
}

static void case_joins_and_leaves(void)
{
    static const uint64_t sizes[][2] = {{4, 256}, {8, 1024}, {32, 1024}};
    for (int i = 0; i < 3; i++) {
        ring x;
        rc_writer w;
        party p[5] = {0};
        uint64_t total = scaled(12000);
        ring_make(&x, sizes[i][0], sizes[i][1]);
        write_to(&w, &x);
        party_joins_and_starts(&p[0], &x, 0, 0, total);
        for (uint32_t n = 1; n < 5; n++)
            party_start(&p[n], &x, n, total, party_comes_and_goes);
        plan.jitter = 64;
        write_all(&w, total, ways[0]);
        parties_end(p, 5);
        CHECK(w.evictions == 0 && p[0].seen == total);
        ring_free(&x);
    }
}

/* ---- demotion and eviction --------------------------------------------------------------- */

/* Demote or evict one of the slots 1 to n - 1, as the writer does with slow readers. */
static void press(rc_writer *w, uint32_t n)
{
    uint32_t index = 1 + (uint32_t)roll(n - 1);
    if (roll(3) ? rc_slot_demote(w->control, index) : rc_slot_evict(w->control, index))
        rc_post(w->readers_wake[index]);
}

static void case_demotion_and_eviction(void)
{
    ring x;
    rc_writer w;
    party p[5] = {0};
    uint64_t total = scaled(30000);
    ring_make(&x, 16, 1024);
    write_to(&w, &x);
    party_joins_and_starts(&p[0], &x, 0, 0, total);
    for (uint32_t n = 1; n < 5; n++) {
        p[n].stubborn = 1;
        party_start(&p[n], &x, n, total, party_comes_and_goes);
    }
    plan.jitter = 64;
    while (w.next < total) {
        if (roll(64) == 0)
            press(&w, 5);
        if (try_put(&w)) {
            if (roll(3) == 0)
                rc_writer_release(&w);
        } else if (!rc_writer_wait(&w, w.max_message, ways[0], rc_now_ns() + 1000000)) {
            in_time();
            press(&w, 5);
        }
    }
    rc_writer_end(&w);
    parties_end(p, 5);
    CHECK(w.evictions == 0 && p[0].seen == total);
    ring_free(&x);
}

/* ---- writers that die -------------------------------------------------------------------- */

typedef struct succession {
    rc_writer writer;
    uint64_t total;
} succession;

static void write_on(void *with)
{
    succession *s = with;
    while (s->writer.next < s->total) {
        if (roll(8) == 0)
            reserve_and_scribble(&s->writer);
        put(&s->writer, ways[0]);
    }
    rc_writer_end(&s->writer);
}

static void case_successions(void)
{
    ring x;
    static succession s; /* outlives the longjmp */
    static uint32_t deaths;
    party p[5] = {0};
    s.total = scaled(15000);
    ring_make(&x, 16, 1024);
    write_to(&s.writer, &x);
    for (uint32_t n = 0; n < 3; n++)
        party_joins_and_starts(&p[n], &x, n, n == 2, s.total);
    for (uint32_t n = 3; n < 5; n++)
        party_start(&p[n], &x, n, s.total, party_comes_and_goes);
    while (killed(write_on, &s, roll(4000))) {
        succeed(&s.writer, &x);
        deaths++;
    }
    parties_end(p, 5);
    CHECK(s.writer.epoch == deaths + 1 && deaths > 0);
    CHECK(p[0].seen == s.total && p[1].seen == s.total);
    ring_free(&x);
}

/* ---- batches ----------------------------------------------------------------------------- */

/* Check n descriptors and their payloads, which stand in one piece each. */
static void check_batch(const rc_reader *r, const rc_descriptor *table, const uint8_t *payloads,
                        uint64_t n)
{
    uint64_t origin = table[0].f.position;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t offset = table[i].f.position - origin;
        CHECK((origin & (r->capacity - 1)) + offset + table[i].f.length <= r->capacity);
        check_message(&table[i], payloads + offset, r->next + i, r->max_message);
    }
}

/* Take a batch in place, with plain loads. */
static void take_batch(rc_reader *r, uint64_t limit)
{
    const rc_descriptor *table = r->descriptors + (r->next & (r->slots - 1));
    uint64_t n = rc_reader_available(r, limit);
    CHECK(n >= 1 && n <= limit);
    check_batch(r, table, r->arena + (table[0].f.position & (r->capacity - 1)), n);
    rc_reader_advance(r, n,
                      table[n - 1].f.position - table[0].f.position + table[n - 1].f.length);
    if (rc_reader_flush_due(r))
        rc_reader_flush(r, r->next);
}

/* Take a copy of a batch. 0: overrun. */
static int take_lossy_batch(rc_reader *r, uint64_t limit)
{
    static _Thread_local rc_descriptor copies[64];
    static _Thread_local uint8_t payloads[4 * LONGEST];
    const rc_descriptor *table = r->descriptors + (r->next & (r->slots - 1));
    uint64_t span, n = rc_reader_fitting(r, table, rc_reader_available(r, limit), &span);
    if (n == 0) {
        CHECK(!rc_reader_intact(r, r->next));
        return 0;
    }
    rc_copy_out((uint8_t *)copies, (const uint8_t *)table, n * sizeof *table);
    uint64_t offset = copies[0].f.position & (r->capacity - 1);
    if (offset + span <= r->capacity) /* it may be torn */
        rc_copy_out(payloads, r->arena + offset, span);
    if (!rc_reader_intact(r, r->next))
        return 0;
    check_batch(r, copies, payloads, n);
    rc_reader_advance(r, n, span);
    return 1;
}

static void *party_reads_batches(void *with)
{
    party *p = with;
    guest *g = &p->guest;
    rc_reader *r = &g->ring;
    rc_descriptor first;
    rc_result result = RC_EMPTY;
    throw_with(p->index + 1);
    plan.jitter = 256;
    while (result != RC_ENDED) {
        uint64_t limit = 1 + roll(2 * r->slots);
        result = rc_reader_peek(r, &first);
        CHECK(result != RC_IMPOSSIBLE);
        if (result == RC_EMPTY)
            wait_for_message(g, p->how);
        else if (result == RC_MESSAGE && !r->lossy)
            take_batch(r, limit);
        else if (result == RC_OVERRUN || (result == RC_MESSAGE && !take_lossy_batch(r, limit)))
            CHECK(rc_reader_resync(r));
    }
    CHECK(r->received + r->lost == p->total && (r->lossy || r->lost == 0));
    leave(g);
    return NULL;
}

static void case_batches(void)
{
    static const uint64_t sizes[][2] = {{4, 256}, {16, 4096}, {64, 1024}};
    for (int i = 0; i < 3; i++) {
        ring x;
        rc_writer w;
        party p[4] = {0};
        uint64_t total = scaled(12000);
        ring_make(&x, sizes[i][0], sizes[i][1]);
        write_to(&w, &x);
        for (uint32_t n = 0; n < 4; n++) {
            enter(&p[n].guest, &x, n, n >= 2, ZERO);
            party_start(&p[n], &x, n, total, party_reads_batches);
        }
        plan.jitter = 256;
        write_all(&w, total, ways[0]);
        parties_end(p, 4);
        ring_free(&x);
    }
}

/* ---- sleep and wake ---------------------------------------------------------------------- */

/* Both ends of a ring sleep for as long as they like, not in slices: a wake-up that is lost is not
 * made good by a look 100 ms later, but ends the case. */
typedef struct link {
    ring ring;
    rc_writer writer;
    guest reader;
} link;

static void link_make(link *x, uint64_t slots)
{
    ring_make(&x->ring, slots, 256);
    write_to(&x->writer, &x->ring);
    enter(&x->reader, &x->ring, 0, 0, ZERO);
}

static void link_free(link *x)
{
    leave(&x->reader);
    ring_free(&x->ring);
}

static void send(link *x)
{
    rc_writer *w = &x->writer;
    linger(roll(100));
    while (!try_put(w))
        if (!rc_writer_want(w, length_of(w->next, w->max_message)))
            CHECK(rc_take_token_until(w->space, deadline));
    rc_writer_release(w);
}

/* 0: the ring has ended. */
static int receive(link *x)
{
    rc_reader *r = &x->reader.ring;
    linger(roll(100));
    for (;;) {
        rc_result result = take(&x->reader);
        if (result != RC_EMPTY)
            return result == RC_MESSAGE;
        rc_reader_flush(r, r->next);
        rc_reader snapshot = *r;
        CHECK(rc_reader_sleep(&snapshot, deadline));
    }
}

static void *echo(void *with)
{
    link *both = with;
    throw_with(1);
    while (receive(&both[0]))
        send(&both[1]);
    rc_writer_end(&both[1].writer);
    return NULL;
}

static void case_ping_pong(void)
{
    link both[2];
    pthread_t other;
    link_make(&both[0], 4);
    link_make(&both[1], 4);
    CHECK(pthread_create(&other, NULL, echo, both) == 0);
    for (uint64_t i = 0; i < scaled(100000); i++) {
        send(&both[0]);
        CHECK(receive(&both[1]));
    }
    rc_writer_end(&both[0].writer);
    CHECK(!receive(&both[1]));
    CHECK(pthread_join(other, NULL) == 0);
    link_free(&both[0]);
    link_free(&both[1]);
}

static void *swallow(void *with)
{
    throw_with(1);
    while (receive(with))
        ;
    return NULL;
}

static void case_waiting_for_room(void)
{
    link x;
    pthread_t other;
    link_make(&x, 4);
    CHECK(pthread_create(&other, NULL, swallow, &x) == 0);
    for (uint64_t i = 0; i < scaled(200000); i++)
        send(&x);
    rc_writer_end(&x.writer);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(x.reader.ring.received == scaled(200000));
    link_free(&x);
}

/* ---- steps: a small ring and those in it ------------------------------------------------- */

enum { RESIDENT, VISITOR, ONLOOKER }; /* lossless; lossless, not there at first; lossy */

typedef struct stage {
    ring ring;
    rc_writer writer;
    guest guests[3];
    start_at where; /* the visitor starts */
    int replaced;   /* the writer has died in this scene */
    int gone[3];    /* readers that have died */
} stage;

static void put_one(void *with)
{
    stage *s = with;
    if (try_put(&s->writer))
        rc_writer_release(&s->writer);
}

static void put_unreleased(void *with) { (void)try_put(&((stage *)with)->writer); }

static void put_many(void *with)
{
    for (int i = 0; i < 12; i++)
        put_one(with);
}

static void put_reserved(void *with)
{
    stage *s = with;
    reserve_and_scribble(&s->writer);
    step();
    put_one(s);
}

static void want_room(void *with)
{
    stage *s = with;
    put_many(s);
    (void)rc_writer_want(&s->writer, s->writer.max_message);
}

static void end_ring(void *with) { rc_writer_end(&((stage *)with)->writer); }

static void take_over(void *with)
{
    stage *s = with;
    s->replaced = 1;
    succeed(&s->writer, &s->ring);
}

static void evict_resident(void *with) { rc_slot_evict(((stage *)with)->ring.control, RESIDENT); }
static void demote_resident(void *with) { rc_slot_demote(((stage *)with)->ring.control, RESIDENT); }

static void take_some(guest *g)
{
    for (int i = 0; g->in && i < 3; i++)
        take(g);
}

static void resident_takes(void *with) { take_some(&((stage *)with)->guests[RESIDENT]); }

static void resident_leaves(void *with)
{
    stage *s = with;
    if (s->guests[RESIDENT].in)
        leave(&s->guests[RESIDENT]);
}

/* The slot's next owner is another reader. */
static void resident_is_followed(void *with)
{
    stage *s = with;
    resident_leaves(s);
    enter(&s->guests[RESIDENT], &s->ring, RESIDENT, 0, OLDEST);
}

static void resident_steps_down(void *with)
{
    stage *s = with;
    guest *g = &s->guests[RESIDENT];
    if (g->in && rc_reader_changed(&g->ring) == RC_STEP_DOWN)
        step_down(g);
}

static void visitor_joins(void *with)
{
    stage *s = with;
    enter(&s->guests[VISITOR], &s->ring, VISITOR, 0, s->where);
    CHECK(s->guests[VISITOR].in || s->replaced);
}

static void visitor_comes_and_goes(void *with)
{
    stage *s = with;
    visitor_joins(s);
    take_some(&s->guests[VISITOR]);
    if (s->guests[VISITOR].in)
        leave(&s->guests[VISITOR]);
}

static void onlooker_looks(void *with)
{
    stage *s = with;
    if (!s->guests[ONLOOKER].overrun)
        look(&s->guests[ONLOOKER]);
}

static void onlooker_takes(void *with)
{
    go_on(&((stage *)with)->guests[ONLOOKER]);
    take_some(&((stage *)with)->guests[ONLOOKER]);
}

static void visitor_joins_and_onlooker_looks(void *with)
{
    visitor_joins(with);
    onlooker_looks(with);
}

/* A ring after some random history: often full, sometimes wrapped. */
static void stage_set(stage *s, uint64_t round)
{
    scene.round = round;
    throw_with(round);
    memset(s, 0, sizeof *s);
    ring_make(&s->ring, 8, roll(2) ? 256 : 1024);
    write_to(&s->writer, &s->ring);
    enter(&s->guests[RESIDENT], &s->ring, RESIDENT, 0, ZERO);
    enter(&s->guests[ONLOOKER], &s->ring, ONLOOKER, 1, ZERO);
    s->where = (start_at)roll(3);
    for (uint64_t i = roll(60); i > 0; i--) {
        uint64_t what = roll(6);
        if (what < 3)
            (what ? put_one : put_unreleased)(s);
        else if (what < 5)
            take(&s->guests[RESIDENT]);
        else
            take(&s->guests[ONLOOKER]);
    }
}

/* Read all there is. */
static void drain(guest *g)
{
    while (g->in) {
        rc_result result = take(g);
        if (result == RC_STEP_DOWN) {
            step_down(g);
        } else if (result == RC_TAKEN_AWAY) {
            leave(g);
        } else if (result == RC_EMPTY || result == RC_ENDED) {
            rc_reader_flush(&g->ring, g->ring.next);
            return;
        }
    }
}

/* Whatever happened: who is in the ring reads on without a fault, and the writer finds room
 * without the help of anybody who is not. */
static void stage_clear(stage *s)
{
    go_on(&s->guests[ONLOOKER]);
    put_many(s);
    for (int i = 0; i < 30; i++) {
        for (int n = 0; n < 3; n++)
            drain(&s->guests[n]);
        CHECK(try_put(&s->writer));
        rc_writer_release(&s->writer);
    }
    for (uint32_t n = 0; n < 3; n++) {
        drain(&s->guests[n]);
        CHECK(!s->guests[n].in || s->guests[n].ring.next == s->writer.next);
        if (s->gone[n])
            enter(&s->guests[n], &s->ring, n, 0, OLDEST); /* the slot is usable again */
        if (s->guests[n].in)
            leave(&s->guests[n]);
    }
    CHECK(s->writer.evictions == 0);
    ring_free(&s->ring);
}

typedef struct plot {
    const char *name;
    action *before; /* cut off at a random step: the writer is dead when the scene begins */
    action *outer, *inner;
    int wary; /* the resident may be evicted */
} plot;

static const plot plots[] = {
    {"joining while the writer puts", NULL, visitor_joins, put_many, 0},
    {"putting while a reader joins", NULL, put_one, visitor_joins, 0},
    {"putting while a reader comes and goes", NULL, put_one, visitor_comes_and_goes, 0},
    {"putting while a reader takes", NULL, put_one, resident_takes, 0},
    {"taking while the writer puts", NULL, resident_takes, put_many, 0},
    {"leaving while the writer puts", NULL, resident_leaves, put_many, 0},
    {"wanting room while a reader leaves", NULL, want_room, resident_leaves, 0},
    {"looking lossily while the writer puts", NULL, onlooker_takes, put_many, 0},
    {"putting while a lossy reader looks", NULL, put_many, onlooker_looks, 0},
    {"putting while one joins and a lossy one looks", NULL, put_one,
     visitor_joins_and_onlooker_looks, 0},
    {"stepping down while the writer puts", NULL, resident_steps_down, put_many, 0},
    {"demoting while the reader takes", NULL, demote_resident, resident_takes, 0},
    {"demoting while the reader leaves", NULL, demote_resident, resident_is_followed, 0},
    {"stepping down while the writer evicts", NULL, resident_steps_down, evict_resident, 1},
    {"taking while the writer evicts", NULL, resident_takes, evict_resident, 1},
    {"leaving while the writer evicts", NULL, resident_leaves, evict_resident, 1},
    {"evicting while the reader steps down", NULL, evict_resident, resident_steps_down, 1},
    {"evicting while another takes the slot", NULL, evict_resident, resident_is_followed, 1},
    {"joining while a successor takes over", put_reserved, visitor_joins, take_over, 0},
    {"taking over while a reader joins", put_reserved, take_over, visitor_joins, 0},
    {"taking over while a reader comes and goes", put_reserved, take_over,
     visitor_comes_and_goes, 0},
    {"taking over while a lossy reader takes", put_reserved, take_over, onlooker_takes, 0},
    {"taking over while one joins and a lossy one looks", put_reserved, take_over,
     visitor_joins_and_onlooker_looks, 0},
    {"looking lossily while a successor takes over", put_reserved, onlooker_takes, take_over, 0},
    {"taking while a successor takes over", put_reserved, resident_takes, take_over, 0},
};

/* One scene. 0: the outer operation has no step of this number. */
static int play(const plot *p, uint64_t round, uint64_t at)
{
    stage s;
    scene.at = at;
    stage_set(&s, round);
    s.guests[RESIDENT].wary = p->wary;
    if (p->outer == resident_steps_down || p->inner == resident_steps_down)
        demote_resident(&s);
    if (p->before) {
        (void)killed(p->before, &s, roll(40));
        s.replaced = 1;
    }
    int happened = interrupted(p->outer, p->inner, &s, at);
    if (p->before && p->inner == take_over && !happened)
        take_over(&s);
    stage_clear(&s);
    return happened;
}

static void case_interruptions(void)
{
    for (size_t i = 0; i < sizeof plots / sizeof *plots; i++) {
        scene.plot = plots[i].name;
        for (uint64_t round = 0; round < scaled(60); round++) {
            uint64_t at = 0;
            in_time();
            while (play(&plots[i], round, at))
                at++;
        }
    }
}

/* ---- steps: deaths ----------------------------------------------------------------------- */

typedef struct death {
    const char *name;
    action *last; /* what it does when it dies */
    int who;      /* a reader, or WRITER */
} death;

enum { WRITER = -1 };

static const death deaths[] = {
    {"a writer dies while putting", put_one, WRITER},
    {"a writer dies while putting a batch", put_many, WRITER},
    {"a writer dies with a message put and not released", put_unreleased, WRITER},
    {"a writer dies while filling a reservation", put_reserved, WRITER},
    {"a writer dies while it wants room", want_room, WRITER},
    {"a writer dies while evicting", evict_resident, WRITER},
    {"a writer dies while demoting", demote_resident, WRITER},
    {"a writer dies while ending the ring", end_ring, WRITER},
    {"a successor dies while taking over", take_over, WRITER},
    {"a reader dies while taking", resident_takes, RESIDENT},
    {"a reader dies while leaving", resident_leaves, RESIDENT},
    {"a reader dies while stepping down", resident_steps_down, RESIDENT},
    {"a reader dies while joining", visitor_joins, VISITOR},
};

/* The writer takes the lock of a dead reader's slot and frees it. */
static void reap(stage *s, int who)
{
    rc_slot *slot = rc_slot_at(s->ring.control, (uint32_t)who);
    rc_slot_free(s->ring.control, (uint32_t)who, &s->ring.space);
    CHECK((rc_load(&slot->state) & 0xff) == RC_FREE);
    s->guests[who].in = 0;
    s->gone[who] = 1;
}

/* The new writer deals with the evicted one as with any other slow reader; that one is stopped,
 * say, and does nothing more. */
static void finish_eviction(stage *s)
{
    rc_slot_evict(s->ring.control, RESIDENT);
    s->guests[RESIDENT].in = 0;
}

static int play_death(const death *d, uint64_t round, uint64_t at)
{
    static stage s; /* outlives the longjmp */
    scene.at = at;
    stage_set(&s, round);
    s.guests[RESIDENT].wary = d->last == evict_resident;
    if (d->last == resident_steps_down)
        demote_resident(&s);
    if (d->last == take_over)
        (void)killed(put_reserved, &s, roll(40));
    uint64_t next = s.writer.next;
    int dead = killed(d->last, &s, at);
    if (d->who != WRITER) {
        reap(&s, d->who);
    } else {
        take_over(&s);
        CHECK(s.writer.next >= next);
        if (d->last == evict_resident)
            finish_eviction(&s);
    }
    stage_clear(&s);
    return dead;
}

static void case_deaths(void)
{
    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++) {
        scene.plot = deaths[i].name;
        for (uint64_t round = 0; round < scaled(60); round++) {
            uint64_t at = 0;
            in_time();
            while (play_death(&deaths[i], round, at))
                at++;
        }
    }
}

/* ---- hostility --------------------------------------------------------------------------- */

static rc_fault_found check_pair(const ring *x, uint64_t data_size, uint64_t control_size)
{
    rc_geometry found;
    return rc_check_segments(x->data, data_size, x->control, control_size, &found);
}

static uint64_t data_size_of(const ring *x)
{
    return rc_data_size(x->geometry.slots, x->geometry.capacity);
}

/* Flip each bit of a header, and each byte as a whole: whatever matters is noticed. */
static void flip_all(ring *x, uint8_t *header, uint64_t size)
{
    for (uint64_t byte = 0; byte < size; byte++)
        for (unsigned flip = 0; flip <= 8; flip++) {
            uint8_t mask = (uint8_t)(flip < 8 ? 1u << flip : 0xff);
            header[byte] ^= mask;
            rc_fault_found found = check_pair(x, data_size_of(x), rc_control_size(READERS));
            CHECK((found == RC_OK) == (byte >= offsetof(rc_identity, created_ns)));
            header[byte] ^= mask;
        }
}

/* Both segments cut to other lengths, each in a buffer of just that length. */
static void cut_all(const ring *x)
{
    const uint64_t full[] = {data_size_of(x), rc_control_size(READERS)};
    const uint64_t lengths[] = {1, 8, 71, 72, 511, 512, 513, 895, 4095, 4096, 4097, full[0] - 1};
    for (int which = 0; which < 2; which++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            ring cut = *x;
            uint64_t size[] = {full[0], full[1]};
            size[which] = lengths[i] < full[which] ? lengths[i] : full[which] - 1;
            void *copy = zeroed(size[which]);
            memcpy(copy, which ? x->control : x->data, size[which]);
            *(which ? &cut.control : &cut.data) = copy;
            rc_fault_found found = check_pair(&cut, size[0], size[1]);
            CHECK(found == RC_TOO_SMALL || found == RC_BAD_SIZE);
            free(copy);
        }
}

static void check_faults(ring *x)
{
    static const struct {
        uint64_t field, value;
        rc_fault_found fault;
    } wrong[] = {
        {offsetof(rc_identity, magic), 0, RC_INCOMPLETE},
        {offsetof(rc_identity, magic), 1, RC_NOT_A_RING},
        {offsetof(rc_identity, magic), RC_MAGIC_CONTROL, RC_NOT_A_RING},
        {offsetof(rc_identity, layout_hash), 1, RC_OTHER_LAYOUT},
        {offsetof(rc_identity, total_size), UINT64_MAX, RC_BAD_SIZE},
        {offsetof(rc_identity, instance), 1, RC_OTHER_INSTANCE},
        {offsetof(rc_identity, slots), 3, RC_BAD_GEOMETRY},
        {offsetof(rc_identity, slots), UINT64_C(1) << 63, RC_BAD_GEOMETRY},
        {offsetof(rc_identity, slots), 16, RC_BAD_GEOMETRY},
        {offsetof(rc_identity, capacity), UINT64_C(1) << 63, RC_BAD_GEOMETRY},
        {offsetof(rc_identity, capacity), 0, RC_BAD_GEOMETRY},
        {offsetof(rc_identity, max_message), UINT64_MAX, RC_BAD_GEOMETRY},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint64_t *field = (uint64_t *)((uint8_t *)x->data + wrong[i].field), before = *field;
        *field = wrong[i].value;
        CHECK(check_pair(x, data_size_of(x), rc_control_size(READERS)) == wrong[i].fault);
        *field = before;
    }
    header_of(x)->identity.magic = __builtin_bswap64(RC_MAGIC_DATA);
    CHECK(check_pair(x, data_size_of(x), rc_control_size(READERS)) == RC_OTHER_ENDIAN);
    header_of(x)->identity.magic = RC_MAGIC_DATA;
}

static void case_segments(void)
{
    ring x;
    rc_geometry found;
    ring_make(&x, 8, 256);
    CHECK(rc_check_segments(x.data, data_size_of(&x), x.control, rc_control_size(READERS),
                            &found) == RC_OK);
    CHECK(found.slots == 8 && found.capacity == 256 && found.max_message == 64 &&
          found.max_readers == READERS && found.instance == x.geometry.instance);
    flip_all(&x, x.data, RC_DESCRIPTORS_OFFSET);
    flip_all(&x, x.control, RC_READERS_OFFSET);
    cut_all(&x);
    check_faults(&x);
    ring_free(&x);
}

static uint64_t odd_number(uint64_t about)
{
    switch (roll(5)) {
    case 0:
        return roll(16);
    case 1:
        return UINT64_MAX - roll(16);
    case 2:
        return mix(roll(UINT64_MAX));
    default:
        return about + roll(24) - 8;
    }
}

/* Fill everything but the identities with numbers that are sometimes plausible. */
static void make_hostile(ring *x, uint64_t about)
{
    rc_header *h = x->data;
    rc_control *c = x->control;
    rc_descriptor *d = (rc_descriptor *)((uint8_t *)x->data + RC_DESCRIPTORS_OFFSET);
    uint64_t slots = x->geometry.slots;
    rc_store(&h->published, roll(3) ? about : odd_number(about));
    rc_store(&h->gate, roll(3) ? about - roll(slots) : odd_number(about));
    for (uint64_t i = 0; i < slots; i++) {
        uint64_t sequence = about - 1 - (about - 1 - i) % slots;
        for (int n = 1; n < 8; n++)
            rc_store(&d[i].words[n], odd_number(about * 32));
        rc_store(&d[i].words[0], roll(4) ? sequence + 1 : odd_number(about));
    }
    for (uint32_t i = 1; i < READERS; i++) { /* slot 0 is the victim's own */
        rc_store(&c->readers[i].cursor, odd_number(about));
        rc_store(&c->readers[i].state, odd_number(RC_ACTIVE));
    }
    rc_store(&c->waiters[0], odd_number(0));
    rc_store(&c->gating[0], odd_number(0));
    rc_store(&c->enough, odd_number(about));
    rc_store(&c->wanted, odd_number(about));
}

static void read_hostile(ring *x, int lossy, uint64_t about)
{
    static uint8_t copy[LONGEST];
    guest g;
    rc_reader *r = &g.ring;
    rc_descriptor m;
    memset(&g, 0, sizeof g);
    rc_reader_map(r, x->data, x->control, &x->geometry, 0, &x->wake[0], &x->space);
    rc_reader_claim(r, lossy);
    (void)rc_reader_join(r, about - roll(8));
    for (int i = 0; i < 8; i++) {
        const rc_descriptor *table = r->descriptors + (r->next & (r->slots - 1));
        if (rc_reader_peek(r, &m) == RC_MESSAGE) {
            CHECK(m.f.length <= r->max_message);
            rc_copy_out(copy, r->arena + (m.f.position & (r->capacity - 1)), m.f.length);
            uint64_t span, n = rc_reader_available(r, roll(20) + 1);
            CHECK((r->next & (r->slots - 1)) + n <= r->slots);
            if (rc_reader_fitting(r, table, n, &span))
                rc_copy_out(copy, r->arena + (rc_load(&table->words[1]) & (r->capacity - 1)), span);
            rc_reader_advance(r, 1, m.f.length);
            rc_reader_flush(r, r->next);
        } else if (!rc_reader_resync(r)) {
            rc_reader_advance(r, 1, 0);
        }
        (void)rc_reader_sleep(r, 0);
    }
    rc_reader_leave(r);
}

/* The descriptors are the writer's own; but what a predecessor left may be anything, too. */
static void write_hostile(ring *x)
{
    rc_writer w;
    rc_writer_map(&w, x->data, x->control, &x->geometry, x->wakes, &x->space);
    if (!rc_writer_resume(&w))
        return;
    for (int i = 0; i < 30; i++) {
        if (!try_put(&w))
            (void)rc_writer_want(&w, w.max_message);
        rc_writer_release(&w);
    }
}

static void case_garbage(void)
{
    for (uint64_t round = 0; round < scaled(20000); round++) {
        ring x;
        in_time();
        ring_make(&x, 8, 256);
        for (int lossy = 0; lossy < 2; lossy++) {
            uint64_t about = roll(2) ? 8 + roll(40) : roll(UINT64_MAX);
            make_hostile(&x, about);
            read_hostile(&x, lossy, about);
        }
        make_hostile(&x, 8 + roll(40));
        write_hostile(&x);
        ring_free(&x);
    }
}

/* A gating reader's wild store into its own cursor costs it its place, and nobody else anything. */
static void case_wild_cursor(void)
{
    stage s;
    stage_set(&s, 0);
    s.guests[RESIDENT].wary = 1;
    visitor_joins(&s);
    drain(&s.guests[RESIDENT]);
    rc_store(&s.guests[RESIDENT].ring.slot->cursor, UINT64_MAX / 2);
    put_many(&s);
    drain(&s.guests[VISITOR]);
    put_many(&s);
    CHECK(s.writer.evictions == 1);
    CHECK(rc_reader_changed(&s.guests[RESIDENT].ring) == RC_TAKEN_AWAY);
    s.writer.evictions = 0;
    stage_clear(&s);
}

/* ---- endpoints --------------------------------------------------------------------------- */

/* A name of process `pid`'s own. */
static const char *segment_of(pid_t pid)
{
    static char name[32];
    snprintf(name, sizeof name, "/rct-native.%ld", (long)pid);
    return name;
}

static const char *segment_make(void)
{
    const char *name = segment_of(getpid());
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    CHECK(ftruncate(fd, 4096) == 0);
    close(fd);
    return name;
}

static void case_locks(void)
{
    rc_endpoint a, b;
    const char *name = segment_make();
    CHECK(rc_endpoint_init(&a, "/rct-native.nowhere") == ENOENT);
    CHECK(rc_endpoint_init(&a, name) == 0 && rc_endpoint_init(&b, name) == 0);
    CHECK(shm_unlink(name) == 0);
    CHECK(rc_lock_held(a.lock_fd, 0) == 0 && rc_lock_try(a.lock_fd, 0) == 0);
    CHECK(rc_lock_try(a.lock_fd, 0) == 0); /* its own */
    CHECK(rc_lock_held(a.lock_fd, 0) == 0 && rc_lock_held(b.lock_fd, 0) == 1);
    int error = rc_lock_try(b.lock_fd, 0);
    CHECK(error == EAGAIN || error == EACCES);
    CHECK(rc_lock_try(b.lock_fd, 1) == 0 && rc_lock_held(a.lock_fd, 1) == 1);
    CHECK(rc_lock_release(a.lock_fd, 0) == 0 && rc_lock_held(b.lock_fd, 0) == 0);
    CHECK(rc_lock_held(a.lock_fd, 1) == 1 && rc_lock_try(b.lock_fd, 0) == 0);
    rc_endpoint_finish(&b);
    CHECK(rc_endpoint_phase(&b) == RC_SHUT && rc_lock_held(a.lock_fd, 1) == 0);
    CHECK(rc_lock_held(-1, 0) == -EBADF && rc_lock_try(-1, 0) == EBADF);
    rc_endpoint_finish(&a);
}

/* Does any descriptor of this process lead to the file? */
static int leads_anywhere(const struct stat *file)
{
    struct stat found;
    for (int fd = 0; fd < 256; fd++)
        if (fstat(fd, &found) == 0 && found.st_ino == file->st_ino && found.st_dev == file->st_dev)
            return 1;
    return 0;
}

static void bury(pid_t child)
{
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A forked child holds no lock of its parent's, while it lives. */
static void case_fork(void)
{
    rc_endpoint a, b, other;
    struct stat file;
    int talk[2];
    char word;
    const char *name = segment_make();
    CHECK(rc_register_fork_handlers() == 0);
    CHECK(rc_endpoint_init(&a, name) == 0 && rc_endpoint_init(&b, name) == 0);
    CHECK(rc_endpoint_init(&other, name) == 0);
    CHECK(shm_unlink(name) == 0);
    CHECK(fstat(a.lock_fd, &file) == 0 && pipe(talk) == 0);
    CHECK(rc_lock_try(a.lock_fd, 0) == 0 && rc_lock_try(b.lock_fd, 1) == 0);
    rc_endpoint_finish(&other); /* was the registry's first */
    pid_t child = fork();
    if (child == 0) {
        int fine = a.phase == RC_FORKED && b.phase == RC_FORKED && other.phase == RC_SHUT &&
                   a.lock_fd == -1 && rc_registry == NULL && !leads_anywhere(&file);
        rc_endpoint_finish(&a); /* does nothing */
        close(talk[1]);
        _exit(read(talk[0], &word, 1) == 0 && fine ? 0 : 1);
    }
    CHECK(rc_endpoint_phase(&a) == RC_OPEN && rc_lock_held(b.lock_fd, 0) == 1);
    rc_endpoint_finish(&a);
    CHECK(rc_lock_held(b.lock_fd, 0) == 0); /* though the child is there */
    close(talk[1]);
    close(talk[0]);
    bury(child);
    rc_endpoint_finish(&b);
    CHECK(rc_registry == NULL);
}

static void finish(void *with) { rc_endpoint_finish(with); }

static void hesitate(void *with)
{
    (void)with;
    linger(20000);
}

static int stop_opening;

/* Open and close endpoints, slowly at one step of the closing. */
static void *open_and_close(void *with)
{
    rc_endpoint e;
    for (uint64_t n = 0; !__atomic_load_n(&stop_opening, __ATOMIC_RELAXED); n++) {
        CHECK(rc_endpoint_init(&e, with) == 0);
        (void)rc_lock_try(e.lock_fd, 0);
        (void)interrupted(finish, hesitate, &e, n % 4);
        sched_yield();
    }
    return NULL;
}

/* Nor does one that is forked while another thread opens or closes an endpoint. */
static void case_fork_amid_opening_and_closing(void)
{
    pthread_t other;
    struct stat file;
    const char *name = segment_make();
    int fd = shm_open(name, O_RDWR, 0), leaks = 0;
    CHECK(fd >= 0 && fstat(fd, &file) == 0);
    close(fd);
    CHECK(rc_register_fork_handlers() == 0);
    CHECK(pthread_create(&other, NULL, open_and_close, (void *)(uintptr_t)name) == 0);
    for (uint64_t i = 0; i < scaled(200) + 50; i++) {
        int status = -1;
        pid_t child = fork();
        if (child == 0)
            _exit(leads_anywhere(&file));
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        leaks += status != 0;
    }
    __atomic_store_n(&stop_opening, 1, __ATOMIC_RELAXED);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(shm_unlink(name) == 0);
    CHECK(leaks == 0);
}

typedef struct bedroom {
    rc_endpoint endpoint;
    sem_t semaphore;
    uint64_t slept; /* plain: only whose turn it is may touch it */
} bedroom;

static void *sleeper(void *with)
{
    bedroom *b = with;
    for (;;) {
        in_time();
        switch (rc_endpoint_turn(&b->endpoint, rc_now_ns() + 20000000)) {
        case RC_MY_TURN:
            b->slept++;
            (void)rc_take_token_until(&b->semaphore, rc_now_ns() + 20000000);
            b->slept++;
            rc_endpoint_wake_up(&b->endpoint);
            break;
        case RC_LOOK_AGAIN:
            break;
        case RC_CLOSED_MEANWHILE:
            return NULL;
        }
    }
}

/* Threads sleep in turn; closing wakes all of them, and waits until the last is out. */
static void case_sleeping_in_turn(void)
{
    for (uint64_t round = 0; round < scaled(40); round++) {
        bedroom b = {.slept = 0};
        pthread_t threads[4];
        const char *name = segment_make();
        CHECK(rc_endpoint_init(&b.endpoint, name) == 0 && shm_unlink(name) == 0);
        CHECK(sem_init(&b.semaphore, 0, 0) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, sleeper, &b) == 0);
        for (uint64_t i = roll(50); i > 0; i--) {
            rc_post(&b.semaphore);
            linger(roll(500));
        }
        rc_endpoint_closing(&b.endpoint);
        do {
            in_time();
            rc_post(&b.semaphore);
        } while (!rc_endpoint_empty(&b.endpoint, rc_now_ns() + 1000000));
        CHECK(b.slept % 2 == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        rc_endpoint_finish(&b.endpoint);
        sem_destroy(&b.semaphore);
    }
}

/* ---- all of it --------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"lossless", case_lossless},
    {"lossy", case_lossy},
    {"joins_and_leaves", case_joins_and_leaves},
    {"demotion_and_eviction", case_demotion_and_eviction},
    {"successions", case_successions},
    {"batches", case_batches},
    {"ping_pong", case_ping_pong},
    {"waiting_for_room", case_waiting_for_room},
    {"interruptions", case_interruptions},
    {"deaths", case_deaths},
    {"segments", case_segments},
    {"garbage", case_garbage},
    {"wild_cursor", case_wild_cursor},
    {"locks", case_locks},
    {"fork", case_fork},
    {"fork_amid_opening_and_closing", case_fork_amid_opening_and_closing},
    {"sleeping_in_turn", case_sleeping_in_turn},
};

static void run_here(void (*run)(void))
{
    alarm(CASE_SECONDS + 5); /* for what hangs where no deadline is looked at */
    deadline = rc_now_ns() + CASE_SECONDS * INT64_C(1000000000);
    throw_with(0);
    run();
}

/* Run a case in a child, so that one that fails, hangs or dies does not end the others. */
static int run_in_child(const char *name, void (*run)(void))
{
    int status = -1;
    int64_t began = rc_now_ns();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        run_here(run);
        exit(0); /* not _exit: the leak check is made here */
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    shm_unlink(segment_of(child)); /* what a case that failed has left */
    printf("%-6s %-30s %6.2f s", status ? "FAILED" : "ok", name,
           (double)(rc_now_ns() - began) / 1e9);
    if (WIFSIGNALED(status))
        printf("  signal %d", WTERMSIG(status));
    printf("\n");
    return status != 0;
}

int main(int argc, char **argv)
{
    int failures = 0;
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)rc_clock_ns(CLOCK_REALTIME);
    percent = argc > 2 ? strtoull(argv[2], NULL, 0) : 100;
    printf("seed %" PRIu64 ", %" PRIu64 " %%\n", seed, percent);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (argc <= 3)
            failures += run_in_child(cases[i].name, cases[i].run);
        else if (strcmp(argv[3], cases[i].name) == 0)
            run_here(cases[i].run);
    return failures != 0;
}

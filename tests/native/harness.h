/* harness.h - what the test programs of rings share: checks, steps, messages, rings and guests.
 *
 * A message is a function of the seed and its sequence: whoever publishes it, and whoever publishes
 * it again after a death, publishes the same; a reader knows every byte to come.
 *
 * Semaphores are unnamed, and the lock of a slot is here the rule that each slot has one thread.
 */
#ifndef RINGCAST_TEST_HARNESS_H
#define RINGCAST_TEST_HARNESS_H

#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* Each atomic operation of the core, and each of its RC_FAULT()s, is a step. The memory orders are
 * the core's own. */
static void step(void);
#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_exchange_explicit
#undef atomic_fetch_add_explicit
#undef atomic_fetch_or_explicit
#undef atomic_fetch_and_explicit
#undef atomic_compare_exchange_strong_explicit
#define atomic_load_explicit(p, order) (step(), __atomic_load_n((p), (order)))
#define atomic_store_explicit(p, v, order) (step(), __atomic_store_n((p), (v), (order)))
#define atomic_exchange_explicit(p, v, order) (step(), __atomic_exchange_n((p), (v), (order)))
#define atomic_fetch_add_explicit(p, v, order) (step(), __atomic_fetch_add((p), (v), (order)))
#define atomic_fetch_or_explicit(p, v, order) (step(), __atomic_fetch_or((p), (v), (order)))
#define atomic_fetch_and_explicit(p, v, order) (step(), __atomic_fetch_and((p), (v), (order)))
#define atomic_compare_exchange_strong_explicit(p, expected, v, success, failure) \
    (step(), __atomic_compare_exchange_n((p), (expected), (v), 0, (success), (failure)))
#define RC_FAULTS

#define RC_ENDPOINT_REGISTRY
#include "attach.h"
#include "note.h"
#include "stream.h"

#define READERS 6    /* slots of a ring */
#define TOPICS 8     /* rows of its topic table */
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

static _Noreturn void failed(const char *file, int line, const char *what)
{
    printf("%s:%d: not so: %s (seed %" PRIu64 ")\n", file, line, what, seed);
    if (scene.plot)
        printf("  in: %s, round %" PRIu64 ", step %" PRIu64 "\n", scene.plot, scene.round,
               scene.at);
    fflush(stdout);
    _exit(1);
}

#define CHECK(x) ((x) ? (void)0 : failed(__FILE__, __LINE__, #x))

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

/* What a spoiled field may hold: small, huge, any, or near what it should be. */
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

static void linger(uint64_t looks)
{
    for (uint64_t i = 0; i < looks; i++)
        rc_relax();
}

/* Wait for the other of two threads, then go on within some looks of it. `arrived` counts at all
 * meetings of the two. Relaxed, so that ThreadSanitizer sees no order that the ring does not make. */
static void meet(uint64_t *arrived, uint64_t apart)
{
    uint64_t both = (__atomic_fetch_add(arrived, 1, __ATOMIC_RELAXED) | 1) + 1;
    for (uint64_t looks = 1; __atomic_load_n(arrived, __ATOMIC_RELAXED) < both; looks++) {
        if (looks % 1024 == 0) {
            in_time();
            sched_yield();
        }
        rc_relax();
    }
    linger(roll(apart));
    for (volatile uint64_t i = roll(64); i > 0; i--)
        ; /* finer than linger() */
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

/* Steps that this thread has done. */
static _Thread_local uint64_t steps;

static void step(void)
{
    steps++;
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

/* Gives message `sequence` its topic, kind and so on; NULL: a topic that no table has. */
static void (*adorn)(rc_descriptor *m, uint64_t sequence);

/* Message `sequence` of a ring whose messages are at most `max` bytes long. */
static void compose(rc_descriptor *m, uint8_t *bytes, uint64_t sequence, uint64_t max)
{
    uint64_t h = mix(seed ^ mix(sequence));
    memset(m, 0, sizeof *m);
    m->f.length = length_of(sequence, max);
    m->f.topic = (uint32_t)h;
    m->f.key = sequence;
    m->f.kind = RC_KIND_BINARY;
    if (adorn)
        adorn(m, sequence);
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
    CHECK(m->f.key == expected.f.key);
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

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FENCE_OFF(from, size) ASAN_POISON_MEMORY_REGION((from), (size))
#define LAY_OPEN(from, size) ASAN_UNPOISON_MEMORY_REGION((from), (size))
#else
#define FENCE_OFF(from, size) ((void)(from))
#define LAY_OPEN(from, size) ((void)(from))
#endif

#define PAGE UINT64_C(4096)

static uint64_t whole_pages(uint64_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

/* Exactly so many bytes, zeroed, aligned as a mapping's are: AddressSanitizer sees what is read beyond
 * them. Pages that nobody touches cost nothing. */
static void *zeroed(uint64_t size)
{
    uint64_t whole = whole_pages(size);
    uint8_t *memory = mmap(NULL, whole + 2 * PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    FENCE_OFF(memory, PAGE);
    FENCE_OFF(memory + PAGE + size, whole - size + PAGE);
    return memory + PAGE;
}

static void unzeroed(void *memory, uint64_t size)
{
    uint8_t *start = (uint8_t *)memory - PAGE;
    LAY_OPEN(start, whole_pages(size) + 2 * PAGE);
    CHECK(munmap(start, whole_pages(size) + 2 * PAGE) == 0);
}

static void ring_make(ring *x, uint64_t slots, uint64_t capacity)
{
    CHECK(rc_message_limit(capacity) <= LONGEST);
    x->geometry = (rc_geometry){slots, capacity, rc_message_limit(capacity), mix(seed), READERS, TOPICS};
    uint64_t data_size = rc_data_size(&x->geometry), control_size = rc_control_size(&x->geometry);
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
    unzeroed(x->control, rc_control_size(&x->geometry));
    unzeroed(x->data, rc_data_size(&x->geometry));
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
    CHECK(result != RC_TAKEN_AWAY || g->wary);
    CHECK(result != RC_ENDED || r->next == rc_load_acquire(&r->header->published));
    CHECK(r->received + r->lost == r->next - g->start);
    return result;
}

static void go_on(guest *g)
{
    if (g->overrun)
        CHECK(rc_reader_resync(&g->ring));
    g->overrun = 0;
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

#endif

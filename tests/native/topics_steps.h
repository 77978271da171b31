/* topics_steps.h - each step of choosing, sleeping and waking held up or cut off, in one thread.
 *
 * As in steps.h an operation is begun, and before its n-th atomic operation another party's whole
 * operation runs, or the party dies there, for every n there is. A reader that goes to sleep is left
 * there: it lies until a token comes, and no reason to be awake may come without one.
 */
#ifndef RINGCAST_TEST_TOPICS_STEPS_H
#define RINGCAST_TEST_TOPICS_STEPS_H

#include "bed.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* readers that take everything are not tested here */
#include "cases.h"
#pragma GCC diagnostic pop
#include "choosers.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#define LEAKS_BEGIN() __lsan_disable() /* who dies frees nothing */
#define LEAKS_END() __lsan_enable()
#else
#define LEAKS_BEGIN() ((void)0)
#define LEAKS_END() ((void)0)
#endif

/* ---- a reader that sleeps --------------------------------------------------------------- */

static _Thread_local jmp_buf bed;

/* The last thing before the sleep: without a token it lies there. */
static void lie_down(sem_t *semaphore)
{
    int tokens = 0;
    if (sem_getvalue(semaphore, &tokens) == 0 && tokens == 0)
        longjmp(bed, 1);
}

typedef struct hall {
    ring ring;
    rc_writer writer;
    chooser chooser;
    rc_reader snapshot;
    int asleep;
    int gone;        /* the chooser has died */
    int replaced;    /* the writer has */
    uint64_t deaths; /* of writers */
} hall;

/* What a thread does that works the reader, before it sleeps. */
static void prepare(void *with)
{
    hall *h = with;
    chooser *c = &h->chooser;
    while (choose(c, 0) == RC_MESSAGE)
        ;
    rc_filter_learn(&c->filter);
    rc_reader_flush(&c->guest.ring, c->guest.ring.next);
    h->snapshot = rc_reader_snapshot(&c->guest.ring);
}

static void sleep_then(void *with)
{
    hall *h = with;
    if (h->asleep || !h->chooser.guest.in)
        return;
    h->chooser.sleeping = 1;
    if (setjmp(bed) == 0) {
        before_bed = lie_down;
        (void)rc_reader_sleep(&h->snapshot, deadline);
        h->chooser.sleeping = 0;
    } else {
        h->asleep = 1;
    }
    before_bed = NULL;
}

static void fall_asleep(void *with)
{
    if (!((hall *)with)->asleep)
        prepare(with);
    sleep_then(with);
}

/* A token is there: the rest of rc_reader_sleep(). */
static int wake_up(hall *h)
{
    rc_reader *r = &h->chooser.guest.ring;
    if (!h->asleep || sem_trywait(r->wake) != 0)
        return 0;
    atomic_fetch_and_explicit(&r->control->choosers[0], ~rc_bit(r->index), memory_order_acq_rel);
    h->asleep = h->chooser.sleeping = 0;
    return 1;
}

/* Is there anything for which it should be awake? */
static int has_reason(const hall *h)
{
    const rc_reader *r = &h->chooser.guest.ring;
    for (uint64_t sequence = r->next; sequence < h->writer.published; sequence++)
        if (model_wants(&h->chooser, sequence))
            return 1;
    return rc_load(&r->header->state) == RC_RING_CLOSED || rc_load(&r->slot->state) != r->state ||
           (rc_reader_blocks(r) && r->next < h->writer.published);
}

static void hall_make(hall *h, uint64_t slots, uint64_t capacity, int lossy)
{
    memset(h, 0, sizeof *h);
    ring_make(&h->ring, slots, capacity);
    write_to(&h->writer, &h->ring);
    chooser_enters(&h->chooser, &h->ring, 1, lossy, ZERO);
}

static void hall_free(hall *h)
{
    chooser_leaves(&h->chooser);
    ring_free(&h->ring);
}

/* ---- steps --------------------------------------------------------------------------------- */

static void put_one(void *with)
{
    hall *h = with;
    if (try_put_topical(&h->writer))
        rc_writer_release(&h->writer);
}

static void put_unreleased(void *with) { (void)try_put_topical(&((hall *)with)->writer); }

static void put_several(void *with)
{
    for (int i = 0; i < 5; i++)
        put_one(with);
}

static void want_room(void *with)
{
    hall *h = with;
    for (uint64_t i = 0; i < h->writer.slots && try_put_topical(&h->writer); i++)
        ;
    (void)rc_writer_want(&h->writer, h->writer.max_message);
}

static void end_ring(void *with) { rc_writer_end(&((hall *)with)->writer); }

static void take_over(void *with)
{
    hall *h = with;
    h->replaced = 1;
    succeed(&h->writer, &h->ring);
}

static void change_list(void *with) { change(&((hall *)with)->chooser); }

static void change_and_put(void *with)
{
    change_list(with);
    put_one(with);
}

static void take_some(void *with)
{
    hall *h = with;
    for (int i = 0; i < 3 && !h->asleep && h->chooser.guest.in; i++)
        (void)choose(&h->chooser, i == 2 ? BATCH : 0);
}

static void join_again(void *with)
{
    hall *h = with;
    if (h->chooser.guest.in)
        chooser_leaves(&h->chooser);
    h->asleep = 0;
    chooser_enters(&h->chooser, &h->ring, 1, (int)roll(2), (start_at)roll(3));
}

/* A ring after some random history. */
static void hall_set(hall *h, uint64_t round)
{
    scene.round = round;
    throw_with(round);
    arrival_every = 8 + roll(24);
    hall_make(h, roll(2) ? 16 : 32, roll(2) ? 512 : 4096, roll(4) == 0);
    for (uint64_t i = roll(80); i > 0; i--)
        switch (roll(6)) {
        case 0:
            put_unreleased(h);
            break;
        case 1:
            change(&h->chooser);
            break;
        case 2:
            take_some(h);
            break;
        default:
            put_one(h);
        }
    rc_writer_release(&h->writer);
}

/* The writer puts one, if need be after it has woken the chooser. */
static void put_surely(hall *h)
{
    if (!try_put_topical(&h->writer)) {
        (void)rc_writer_want(&h->writer, h->writer.max_message);
        CHECK(wake_up(h));
        fall_asleep(h);
        CHECK(try_put_topical(&h->writer));
    }
    rc_writer_release(&h->writer);
}

/* Whatever happened: it does not sleep while it has a reason not to; it gets what it wants; the writer
 * finds room; and the table is whole. */
static void hall_clear(hall *h)
{
    chooser *c = &h->chooser;
    rc_writer_release(&h->writer);
    rc_writer_sign(&h->writer, h->writer.epoch, 1, 1); /* open, though it may have been ended */
    for (int i = 0; i < 10; i++) {
        (void)wake_up(h);
        CHECK(!h->asleep || !has_reason(h));
        fall_asleep(h);
        put_surely(h);
    }
    while (choose(c, BATCH) != RC_EMPTY)
        ;
    CHECK(c->guest.ring.next == h->writer.next);
    check_rows(&h->writer, h->deaths);
    hall_free(h);
}

typedef struct plot {
    const char *name;
    action *before; /* all of it */
    action *outer, *inner;
} plot;

static const plot plots[] = {
    {"falling asleep while the writer puts", NULL, fall_asleep, put_one},
    {"falling asleep while the writer puts several", NULL, fall_asleep, put_several},
    {"falling asleep while the writer wants room", NULL, fall_asleep, want_room},
    {"falling asleep while the writer ends the ring", NULL, fall_asleep, end_ring},
    {"falling asleep while the list changes", prepare, sleep_then, change_list},
    {"falling asleep while the list changes and the writer puts", prepare, sleep_then,
     change_and_put},
    {"putting while one falls asleep", prepare, put_one, sleep_then},
    {"putting several while one falls asleep", prepare, put_several, sleep_then},
    {"wanting room while one falls asleep", prepare, want_room, sleep_then},
    {"ending the ring while one falls asleep", prepare, end_ring, sleep_then},
    {"putting while the list of a sleeper changes", fall_asleep, put_one, change_list},
    {"putting while the list changes", NULL, put_several, change_list},
    {"changing the list while the writer puts", NULL, change_list, put_several},
    {"changing the list of a sleeper while the writer puts", fall_asleep, change_list, put_several},
    {"changing the list while another thread falls asleep", prepare, change_list, sleep_then},
    {"taking while the writer puts", NULL, take_some, put_several},
    {"putting while one takes", NULL, put_several, take_some},
    {"joining while the writer puts", NULL, join_again, put_several},
    {"putting while one joins", NULL, put_several, join_again},
    {"falling asleep while a successor takes over", put_unreleased, fall_asleep, take_over},
    {"taking over while one falls asleep", put_unreleased, take_over, fall_asleep},
};

/* One scene. 0: the outer operation has no step of this number. */
static int play(const plot *p, uint64_t round, uint64_t at)
{
    hall h;
    scene.at = at;
    hall_set(&h, round);
    if (p->before)
        p->before(&h);
    int happened = interrupted(p->outer, p->inner, &h, at);
    hall_clear(&h);
    return happened;
}

/* In one thread there is nothing for ThreadSanitizer to see. */
#ifdef __SANITIZE_THREAD__
enum { STRIDE = 7 };
#else
enum { STRIDE = 1 };
#endif

static uint64_t rounds(void) { return STRIDE > 1 ? 1 : scaled(20); }

static void case_interruptions(void)
{
    for (size_t i = 0; i < sizeof plots / sizeof *plots; i++) {
        scene.plot = plots[i].name;
        for (uint64_t round = 0; round < rounds(); round++) {
            uint64_t at = 0;
            in_time();
            while (play(&plots[i], round, at))
                at += STRIDE;
        }
    }
}

/* ---- deaths -------------------------------------------------------------------------------- */

typedef struct death {
    const char *name;
    action *last; /* what it does when it dies */
    int is_writer;
} death;

static const death deaths[] = {
    {"a writer dies while putting", put_one, 1},
    {"a writer dies while putting several", put_several, 1},
    {"a writer dies with a message put and not released", put_unreleased, 1},
    {"a writer dies while it wants room", want_room, 1},
    {"a writer dies while ending the ring", end_ring, 1},
    {"a successor dies while taking over", take_over, 1},
    {"a chooser dies while its list changes", change_list, 0},
    {"a chooser dies while taking", take_some, 0},
    {"a chooser dies while falling asleep", fall_asleep, 0},
    {"a chooser dies while joining", join_again, 0},
};

/* What stands of the dead one's wishes is its list before or after, or says that it is neither. */
static void check_wishes_of_the_dead(const hall *h, const chooser *before)
{
    static char text[RC_WISH_MAX];
    uint64_t version;
    int64_t length = rc_wishes_read(wishes_of(&h->ring, 1), text, &version);
    if (length < 0) {
        CHECK(version % 2 == 1);
        return;
    }
    CHECK(length == 0 || list_is(text, length, before) || list_is(text, length, &h->chooser));
}

/* Its slot is freed, and the next owner has a list of its own, and is woken for nothing else. */
static void bury_chooser(hall *h, const chooser *before)
{
    rc_reader *r = &h->chooser.guest.ring;
    check_wishes_of_the_dead(h, before);
    rc_slot_free(r->control, r->index, &h->ring.space);
    rc_filter_end(&h->chooser.filter);
    CHECK((rc_load(&r->slot->state) & 0xff) == RC_FREE && rc_load(&r->control->choosers[0]) == 0);
    h->asleep = 0;
    chooser_enters(&h->chooser, &h->ring, 1, 0, LATEST);
    rc_filter_learn(&h->chooser.filter);
    check_filter(&h->chooser, &h->writer);
}

static int play_death(const death *d, uint64_t round, uint64_t at)
{
    static hall h; /* outlives the longjmp */
    static chooser before;
    scene.at = at;
    LEAKS_BEGIN();
    hall_set(&h, round);
    if (d->last == take_over)
        h.deaths += (uint64_t)killed(put_several, &h, roll(60));
    else if (d->is_writer)
        fall_asleep(&h);
    before = h.chooser;
    int dead = killed(d->last, &h, at);
    LEAKS_END();
    before_bed = NULL;
    if (d->is_writer) {
        h.deaths += (uint64_t)dead;
        take_over(&h);
        CHECK(!h.asleep || wake_up(&h));
    } else {
        bury_chooser(&h, &before);
    }
    hall_clear(&h);
    return dead;
}

static void case_deaths(void)
{
    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++) {
        scene.plot = deaths[i].name;
        for (uint64_t round = 0; round < rounds(); round++) {
            uint64_t at = 0;
            in_time();
            while (play_death(&deaths[i], round, at))
                at += STRIDE;
        }
    }
}

#endif

/* group_steps.h - each step of a work group's protocol held up or cut off, in one thread.
 *
 * As in steps.h an operation is begun, and before its n-th atomic operation another party's whole
 * operation runs, or the worker dies there. What comes out must be a group that goes on: each message is
 * acknowledged once, those of a key in their order, the floor comes to the end, and nobody is evicted
 * whom the writer has not evicted.
 */
#ifndef RINGCAST_TEST_GROUP_STEPS_H
#define RINGCAST_TEST_GROUP_STEPS_H

#include "members.h"

enum {
    FIRST,
    SECOND,
    THIRD, /* not there at first */
    WORKERS,
    SLOTS = 8,
    ROOM = 512,
    SETTLING = 12, /* looks around until all is done, at most */
    EVERY_STEP = 64, /* of an operation is tried; of those after it some */
};

typedef struct stage {
    crew crew;
    worker workers[WORKERS];
    int64_t now;
    rc_look look; /* of the first, that goes to sleep */
    int asleep;
    int dead[WORKERS];
    int evictions; /* the writer evicts or demotes in this scene */
} stage;

static _Thread_local jmp_buf bed;

/* The last thing before the sleep: without a token it lies there. */
static void lie_down(sem_t *semaphore)
{
    int tokens = 0;
    if (sem_getvalue(semaphore, &tokens) == 0 && tokens == 0)
        longjmp(bed, 1);
}

/* ---- operations ---------------------------------------------------------------------------- */

static void put_one(void *with)
{
    stage *s = with;
    if (s->crew.writer.next - s->crew.base < ROOM && try_put(&s->crew.writer))
        rc_writer_release(&s->crew.writer);
}

static void put_many(void *with)
{
    for (int i = 0; i < SLOTS + 2; i++)
        put_one(with);
}

static void end_ring(void *with) { rc_writer_end(&((stage *)with)->crew.writer); }

static void look_around_as(stage *s, int who)
{
    worker *k = &s->workers[who];
    s->now += RC_GROUP_SLICE_NS;
    if (k->in && !rc_member_look_around(&k->m, s->now))
        CHECK(k->wary);
}

static void take_as(stage *s, int who)
{
    worker *k = &s->workers[who];
    if (k->in && k->count < IN_HAND)
        (void)worker_take(k);
}

static void finish_as(stage *s, int who, int keep)
{
    worker *k = &s->workers[who];
    if (k->in && k->count)
        worker_finish(k, (uint32_t)roll(k->count), keep);
}

static void return_as(stage *s, int who)
{
    worker *k = &s->workers[who];
    if (!k->in || !k->count)
        return;
    worker_return(k, (uint32_t)roll(k->count), 0);
    rc_member_call(&k->m, 1);
}

static void work_as(stage *s, int who)
{
    if (s->workers[who].in)
        worker_works(&s->workers[who]);
}

static void leave_as(stage *s, int who)
{
    worker *k = &s->workers[who];
    if (!k->in)
        return;
    for (uint32_t i = 0; i < k->count; i++)
        note(k->crew, &entry_of(k->crew, k->hand[i].lease.sequence)->given, 1);
    worker_leave(k);
}

static void first_takes(void *with) { take_as(with, FIRST); }
static void first_finishes(void *with) { finish_as(with, FIRST, 0); }
static void first_returns(void *with) { return_as(with, FIRST); }
static void first_looks_around(void *with) { look_around_as(with, FIRST); }
static void first_leaves(void *with) { leave_as(with, FIRST); }
static void second_takes(void *with) { take_as(with, SECOND); }
static void second_works(void *with) { work_as(with, SECOND); }
static void second_finishes(void *with) { finish_as(with, SECOND, 0); }
static void second_returns(void *with) { return_as(with, SECOND); }
static void second_looks_around(void *with) { look_around_as(with, SECOND); }
static void second_leaves(void *with) { leave_as(with, SECOND); }

static void first_works(void *with)
{
    stage *s = with;
    if (!s->asleep)
        work_as(s, FIRST);
}

static void first_keeps(void *with)
{
    finish_as(with, FIRST, 1);
}

static void first_keeps_and_releases(void *with)
{
    worker *k = &((stage *)with)->workers[FIRST];
    first_keeps(with);
    while (k->in && k->kept_count)
        worker_release(k);
}

static void first_flushes(void *with) { rc_member_flush(&((stage *)with)->workers[FIRST].m); }

static void third_joins(void *with)
{
    stage *s = with;
    if (s->workers[THIRD].in)
        return;
    s->dead[THIRD] = 0; /* if one has, this is its successor in the slot */
    worker_enter(&s->workers[THIRD], &s->crew, THIRD);
    s->workers[THIRD].wary = s->evictions;
    CHECK(s->workers[THIRD].in || s->evictions);
    look_around_as(s, THIRD);
}

static void third_takes(void *with) { take_as(with, THIRD); }

static void third_joins_and_takes(void *with)
{
    third_joins(with);
    third_takes(with);
    third_takes(with);
}

static void second_looks_and_works(void *with)
{
    second_looks_around(with);
    second_works(with);
}

static void second_passes_on(void *with) /* partitions that the first waits for */
{
    second_looks_around(with);
    second_works(with);
    first_looks_around(with);
}

static void ask_first(void *with)
{
    stage *s = with;
    (void)rc_slot_demote(s->crew.ring.control, FIRST);
}

static void evict_first(void *with)
{
    stage *s = with;
    (void)rc_slot_evict(s->crew.ring.control, FIRST);
}

static void evict_first_and_work(void *with)
{
    evict_first(with);
    second_looks_and_works(with);
    put_many(with);
    second_works(with);
}

static void demote_group(void *with)
{
    stage *s = with;
    (void)rc_group_demote(s->crew.ring.control, ROW, READERS);
}

static void demote_group_and_put(void *with)
{
    demote_group(with);
    put_many(with);
}

/* The locks of the dead are the kernel's. */
static void bury(stage *s, int who)
{
    worker *k = &s->workers[who];
    s->dead[who] = 1;
    s->crew.calm = 0;
    k->in = 0;
    worker_unlock(k);
}

static void third_dies(void *with)
{
    third_joins_and_takes(with);
    bury(with, THIRD);
}

static void third_dies_keeping(void *with)
{
    third_joins_and_takes(with);
    finish_as(with, THIRD, 1);
    bury(with, THIRD);
}

/* What a thread does before it sleeps, and the sleep: it lies there until a token comes. */
static void first_sleeps(void *with)
{
    stage *s = with;
    worker *k = &s->workers[FIRST];
    if (s->asleep || !k->in)
        return;
    worker_works(k);
    s->look = k->m.look;
    if (setjmp(bed) == 0) {
        before_bed = lie_down;
        (void)rc_member_sleep(&k->m, &s->look, HAND, deadline);
    } else {
        s->asleep = 1;
    }
    before_bed = NULL;
}

/* A token is there: the rest of rc_member_sleep(). */
static int wake_up(stage *s)
{
    worker *k = &s->workers[FIRST];
    if (!s->asleep || sem_trywait(k->m.wake) != 0)
        return 0;
    atomic_fetch_and_explicit(&row_of(&s->crew)->asleep[0], ~rc_bit(FIRST), memory_order_acq_rel);
    s->asleep = 0;
    return 1;
}

/* ---- before and after ---------------------------------------------------------------------- */

static void some_history(stage *s)
{
    for (uint64_t i = roll(50); i > 0; i--) {
        int who = (int)roll(2);
        worker *k = &s->workers[who];
        switch (roll(8)) {
        case 0:
        case 1:
            put_one(s);
            break;
        case 2:
        case 3:
            if (k->count < 3)
                take_as(s, who);
            break;
        case 4:
            finish_as(s, who, 0);
            break;
        case 5:
            if (k->kept_count)
                worker_release(k);
            else
                finish_as(s, who, 1);
            break;
        case 6:
            if (roll(3) == 0)
                return_as(s, who);
            break;
        default:
            look_around_as(s, who);
        }
    }
}

/* A group after some random history: often the ring is full, and mostly something is in hand. */
static void stage_set(stage *s, uint32_t balance, uint64_t round)
{
    scene.round = round;
    throw_with(round * 4 + balance);
    memset(s, 0, sizeof *s);
    s->now = RC_GROUP_SLICE_NS;
    crew_make(&s->crew, balance, SLOTS, roll(2) ? 256 : 1024, roll(3) ? roll(1000) : 0, ROOM, 1);
    for (int who = FIRST; who <= SECOND; who++) {
        worker_enter(&s->workers[who], &s->crew, (uint32_t)who);
        CHECK(s->workers[who].in);
        look_around_as(s, who);
    }
    look_around_as(s, FIRST);
    some_history(s);
    if (roll(2))
        put_many(s);
    for (int who = FIRST; who <= SECOND; who++)
        for (int i = 0; i < 3 && s->workers[who].count < 2; i++)
            take_as(s, who);
}

/* Whoever was evicted comes again; the group, if it has lost its hold, gets it back. */
static void come_again(stage *s, int who)
{
    worker *k = &s->workers[who];
    if (k->in) {
        CHECK(k->wary && is_evicted(k));
        worker_leave(k);
    }
    rc_group_revive(s->crew.ring.control, s->crew.ring.data, s->crew.ring.geometry.slots, ROW);
    worker_enter(k, &s->crew, (uint32_t)who);
    k->wary = s->evictions;
    CHECK(k->in);
}

static int all_is_done(const stage *s)
{
    return rc_load(&row_of(&s->crew)->floor) == s->crew.writer.published;
}

/* The ledger at the end. What one was acknowledging who died, may have counted. */
static void check_ledger_but_voided(const stage *s)
{
    uint64_t lost = rc_load(&row_of(&s->crew)->lost), missing = 0;
    CHECK(lost == 0 || s->evictions);
    for (uint64_t i = 0; i < s->crew.writer.next - s->crew.base; i++) {
        const entry *e = &s->crew.ledger[i];
        uint64_t sequence = s->crew.base + i;
        CHECK(e->acked <= 1 && (e->taken == 0 || is_wanted(sequence)));
        if (is_wanted(sequence) && !e->acked && !e->acking)
            missing += !was_set_aside(&s->crew, sequence);
        CHECK(e->acking <= e->acked || !s->crew.calm);
    }
    CHECK(missing <= lost);
}

static void check_ledger(const stage *s)
{
    check_ledger_but_voided(s);
    /* of an evicted one: what it claimed too late */
    CHECK(rc_load(&s->crew.segment->voided) == 0 || s->evictions);
}

/* All who are there look around, and do what there is. */
static void all_work(stage *s)
{
    int present = 0;
    for (int who = FIRST; who < WORKERS; who++) {
        worker *k = &s->workers[who];
        if (!k->in)
            continue;
        present = 1;
        if (is_evicted(k))
            come_again(s, who);
        look_around_as(s, who);
        worker_works(k);
    }
    if (!present)
        come_again(s, THIRD);
}

static void stage_clear(stage *s)
{
    rc_writer_sign(&s->crew.writer, 1, 1, 1); /* open, though it may have been ended */
    for (int who = FIRST; who < WORKERS; who++)
        if (s->dead[who] && roll(2)) { /* the slot is another's before anybody has looked */
            s->workers[who].count = s->workers[who].kept_count = 0;
            come_again(s, who);
        }
    if (s->asleep && !wake_up(s))
        (void)sem_post(s->workers[FIRST].m.wake);
    (void)wake_up(s);
    for (int i = 0; i < 2 * SLOTS; i++) {
        put_one(s);
        if (i % 4 == 3)
            all_work(s);
    }
    for (int i = 0; i < SETTLING && !all_is_done(s); i++)
        all_work(s);
    CHECK(all_is_done(s));
    uint64_t next = s->crew.writer.next;
    for (int i = 0; i < SLOTS; i++)
        put_one(s);
    CHECK(s->crew.writer.next > next); /* nobody holds the ring any more */
    for (int i = 0; i < SETTLING && !all_is_done(s); i++)
        all_work(s);
    CHECK(all_is_done(s));
    check_ledger(s);
    for (int who = FIRST; who < WORKERS; who++)
        leave_as(s, who);
    CHECK(s->crew.writer.evictions == 0);
    crew_free(&s->crew);
}

/* ---- interruptions ------------------------------------------------------------------------- */

enum { EVICTS = 1 };

typedef struct plot {
    const char *name;
    action *before, *outer, *inner;
    int flags;
} plot;

static const plot plots[] = {
    {"taking while another takes", NULL, first_takes, second_takes, 0},
    {"taking while another does all there is", NULL, first_takes, second_works, 0},
    {"taking while the writer puts", NULL, first_takes, put_many, 0},
    {"taking while another gives back", NULL, first_takes, second_returns, 0},
    {"taking while another leaves", NULL, first_takes, second_leaves, 0},
    {"taking while another looks around", NULL, first_takes, second_looks_around, 0},
    {"taking while one joins and takes", NULL, first_takes, third_joins_and_takes, 0},
    {"taking while one dies", NULL, first_takes, third_dies, 0},
    {"taking after one died", third_dies, first_takes, second_looks_and_works, 0},
    {"taking while it is asked to let go", NULL, first_takes, ask_first, 0},
    {"taking while it is evicted", NULL, first_takes, evict_first, EVICTS},
    {"taking while it is evicted and others go on", NULL, first_takes, evict_first_and_work, EVICTS},
    {"taking while the group is demoted", NULL, first_takes, demote_group, EVICTS},
    {"taking while the group is demoted and overwritten", NULL, first_takes, demote_group_and_put,
     EVICTS},
    {"acknowledging while another works", NULL, first_finishes, second_works, 0},
    {"acknowledging while another acknowledges", NULL, first_finishes, second_finishes, 0},
    {"acknowledging while another wants partitions", second_leaves, first_finishes,
     third_joins_and_takes, 0},
    {"acknowledging while another looks and works", NULL, first_finishes, second_looks_and_works, 0},
    {"acknowledging while it is evicted", NULL, first_finishes, evict_first_and_work, EVICTS},
    {"acknowledging while the group is demoted", NULL, first_finishes, demote_group_and_put, EVICTS},
    {"keeping while another works", NULL, first_keeps_and_releases, second_looks_and_works, 0},
    {"keeping while another wants partitions", second_leaves, first_keeps, third_joins_and_takes, 0},
    {"keeping while it is evicted", NULL, first_keeps_and_releases, evict_first_and_work, EVICTS},
    {"giving back while another works", NULL, first_returns, second_works, 0},
    {"giving back while another gives back", NULL, first_returns, second_returns, 0},
    {"giving back while another leaves", NULL, first_returns, second_leaves, 0},
    {"giving back while another looks and works", NULL, first_returns, second_looks_and_works, 0},
    {"giving back while it is evicted", NULL, first_returns, evict_first_and_work, EVICTS},
    {"leaving while another works", NULL, first_leaves, second_looks_and_works, 0},
    {"leaving while another leaves", NULL, first_leaves, second_leaves, 0},
    {"leaving while one joins", NULL, first_leaves, third_joins_and_takes, 0},
    {"leaving while the writer puts", NULL, first_leaves, put_many, 0},
    {"leaving while it is evicted", NULL, first_leaves, evict_first_and_work, EVICTS},
    {"joining while others work", NULL, third_joins, second_looks_and_works, 0},
    {"joining while another leaves", NULL, third_joins, second_leaves, 0},
    {"joining while the group is demoted", NULL, third_joins, demote_group, EVICTS},
    {"joining where one has died", third_dies, third_joins, second_looks_and_works, 0},
    {"joining where one has died keeping", third_dies_keeping, third_joins, second_looks_and_works, 0},
    {"looking around while another works", NULL, first_looks_around, second_works, 0},
    {"looking around while another looks", third_dies, first_looks_around, second_looks_and_works, 0},
    {"looking around while another leaves", NULL, first_looks_around, second_leaves, 0},
    {"looking around while one joins where one died", third_dies, first_looks_around,
     third_joins_and_takes, 0},
    {"moving the floor while another acknowledges", NULL, first_flushes, second_works, 0},
    {"putting while one works", NULL, put_many, first_works, 0},
    {"putting while one leaves", NULL, put_many, first_leaves, 0},
    {"putting while one joins", NULL, put_many, third_joins_and_takes, 0},
    {"demoting the group while one joins", NULL, demote_group, third_joins, EVICTS},
    {"demoting the group while one takes", NULL, demote_group_and_put, first_takes, EVICTS},
};

static int play(const plot *p, uint32_t balance, uint64_t round, uint64_t at)
{
    stage s;
    scene.at = at;
    stage_set(&s, balance, round);
    s.evictions = p->flags & EVICTS;
    for (int who = FIRST; who < WORKERS; who++)
        s.workers[who].wary = s.evictions;
    s.crew.calm = !s.evictions;
    if (p->before)
        p->before(&s);
    int happened = interrupted(p->outer, p->inner, &s, at);
    stage_clear(&s);
    return happened;
}

/* In one thread there is nothing for ThreadSanitizer to see, and it is slow: then a few are enough. */
#ifdef __SANITIZE_THREAD__
enum { PLOT_OF = 8, STEP_OF = 64 };
#else
enum { PLOT_OF = 1, STEP_OF = 1 };
#endif

/* The next step to be tried: each at first, then some. */
static uint64_t next_step(uint64_t at)
{
    return at + 1 + roll(STEP_OF) + (at < EVERY_STEP ? 0 : roll(at / 4));
}

static uint64_t group_rounds(void) { return STEP_OF > 1 ? 1 : scaled(4); }

static void case_interruptions(void)
{
    for (size_t i = seed % PLOT_OF; i < sizeof plots / sizeof *plots; i += PLOT_OF)
        for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
            char name[128];
            snprintf(name, sizeof name, "%s (%s)", plots[i].name, balance_names[balance]);
            scene.plot = name;
            for (uint64_t round = 0; round < group_rounds(); round++) {
                in_time();
                for (uint64_t at = 0; play(&plots[i], balance, round, at); at = next_step(at))
                    ;
            }
            scene.plot = NULL;
        }
}

/* ---- sleeping ------------------------------------------------------------------------------ */

static const plot bedtimes[] = {
    {"falling asleep while the writer puts", NULL, first_sleeps, put_one, 0},
    {"putting while one falls asleep", NULL, put_one, first_sleeps, 0},
    {"falling asleep while another gives back", NULL, first_sleeps, second_returns, 0},
    {"giving back while one falls asleep", NULL, second_returns, first_sleeps, 0},
    {"falling asleep while another leaves", NULL, first_sleeps, second_leaves, 0},
    {"leaving while one falls asleep", NULL, second_leaves, first_sleeps, 0},
    {"falling asleep while another acknowledges", NULL, first_sleeps, second_finishes, 0},
    {"acknowledging while one falls asleep", second_passes_on, second_finishes, first_sleeps, 0},
    {"falling asleep while the ring ends", NULL, first_sleeps, end_ring, 0},
    {"ending the ring while one falls asleep", NULL, end_ring, first_sleeps, 0},
    {"falling asleep while the writer evicts", NULL, first_sleeps, evict_first, EVICTS},
};

/* The one that lies there has no reason to be awake, or a token; or another is awake and does it. */
static void check_sleep(stage *s)
{
    worker *k = &s->workers[FIRST];
    int tokens = 0;
    CHECK(sem_getvalue(k->m.wake, &tokens) == 0 && tokens <= 1);
    if (!s->asleep) {
        CHECK(tokens == 0 || rc_load(&header_of(&s->crew.ring)->state) == RC_RING_CLOSED);
        return;
    }
    if (tokens || s->evictions) /* who evicts a sleeper posts it */
        return;
    if (s->workers[SECOND].in) {
        for (int i = 0; i < 2; i++) /* it is at work, and finds that nothing is left */
            work_as(s, SECOND);
        CHECK(sem_getvalue(k->m.wake, &tokens) == 0);
        if (tokens)
            return;
    }
    /* `again` alone is none: whoever leaves and has nothing raises it, too */
    rc_look look = {.again = rc_load(&row_of(&s->crew)->again), .rescan = 1};
    CHECK(!rc_member_ready(&k->m, &look, HAND));
}

static void case_sleep_steps(void)
{
    for (size_t i = seed % PLOT_OF; i < sizeof bedtimes / sizeof *bedtimes; i += PLOT_OF)
        for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++)
            for (uint64_t round = 0; round < group_rounds(); round++) {
                const plot *p = &bedtimes[i];
                char name[128];
                int happened = 1;
                snprintf(name, sizeof name, "%s (%s)", p->name, balance_names[balance]);
                scene.plot = name;
                in_time();
                for (uint64_t at = 0; happened; at = next_step(at)) {
                    stage s;
                    scene.at = at;
                    stage_set(&s, balance, round);
                    s.evictions = p->flags & EVICTS;
                    for (int who = FIRST; who < WORKERS; who++)
                        s.workers[who].wary = s.evictions;
                    s.crew.calm = !s.evictions;
                    if (p->before)
                        p->before(&s);
                    happened = interrupted(p->outer, p->inner, &s, at);
                    check_sleep(&s);
                    stage_clear(&s);
                }
                scene.plot = NULL;
            }
}

/* ---- deaths -------------------------------------------------------------------------------- */

typedef struct death {
    const char *name;
    action *before, *last; /* what it does when it dies */
    int who;
} death;

static void set_limit(void *with)
{
    stage *s = with;
    rc_store(&row_of(&s->crew)->max_deliveries, 1);
    for (int who = FIRST; who <= SECOND; who++)
        s->workers[who].m.max_deliveries = 1;
}

static void all_is_returned_once_too_often(void *with)
{
    stage *s = with;
    set_limit(s);
    for (int who = FIRST; who <= SECOND; who++)
        while (s->workers[who].count)
            return_as(s, who);
}

static const death deaths[] = {
    {"one dies while taking", NULL, first_takes, FIRST},
    {"one dies while taking after another died", third_dies, first_takes, FIRST},
    {"one dies while acknowledging", NULL, first_finishes, FIRST},
    {"one dies while keeping", NULL, first_keeps_and_releases, FIRST},
    {"one dies while giving back", NULL, first_returns, FIRST},
    {"one dies while leaving", NULL, first_leaves, FIRST},
    {"one dies while joining", NULL, third_joins, THIRD},
    {"one dies while joining where one died", third_dies, third_joins, THIRD},
    {"one dies while looking around", NULL, first_looks_around, FIRST},
    {"one dies while burying", third_dies, first_looks_around, FIRST},
    {"one dies while burying one that kept", third_dies_keeping, first_looks_around, FIRST},
    {"one dies while working", NULL, first_works, FIRST},
    {"one dies while setting aside", all_is_returned_once_too_often, first_takes, FIRST},
    {"one dies while falling asleep", NULL, first_sleeps, FIRST},
};

static int play_death(const death *d, uint32_t balance, uint64_t round, uint64_t at)
{
    static stage s; /* outlives the longjmp */
    scene.at = at;
    stage_set(&s, balance, round);
    if (d->before)
        d->before(&s);
    s.crew.calm = 0;
    int dead = killed(d->last, &s, at);
    before_bed = NULL;
    s.asleep = 0;
    bury(&s, d->who);
    stage_clear(&s);
    return dead;
}

static void case_deaths(void)
{
    for (size_t i = seed % PLOT_OF; i < sizeof deaths / sizeof *deaths; i += PLOT_OF)
        for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
            char name[128];
            snprintf(name, sizeof name, "%s (%s)", deaths[i].name, balance_names[balance]);
            scene.plot = name;
            for (uint64_t round = 0; round < group_rounds(); round++) {
                in_time();
                for (uint64_t at = 0; play_death(&deaths[i], balance, round, at); at = next_step(at))
                    ;
            }
            scene.plot = NULL;
        }
}

#endif

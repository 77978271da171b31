/* steps.h - every step of the core held up or cut off, in one thread.
 *
 * An operation is begun, and before its n-th atomic operation another party's whole operation runs,
 * or the party dies there, for every n there is. So every place to be interrupted or killed is
 * tried, whatever a scheduler does. What comes out must be a ring in which everybody reads on,
 * every byte as it was published, and the writer finds room.
 */
#ifndef RINGCAST_TEST_STEPS_H
#define RINGCAST_TEST_STEPS_H

#include "harness.h"

enum { MANY = 12 }; /* messages: more than the ring has slots */

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
    for (int i = 0; i < MANY; i++)
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

static void evict_resident_and_put(void *with)
{
    evict_resident(with);
    put_many(with);
}

static void put_and_end(void *with)
{
    put_one(with);
    end_ring(with);
}

static void demote_resident(void *with) { rc_slot_demote(((stage *)with)->ring.control, RESIDENT); }

static void take_some(guest *g)
{
    for (int i = 0; g->in && i < 3; i++)
        take(g);
}

static void resident_takes(void *with) { take_some(&((stage *)with)->guests[RESIDENT]); }

/* However it went, no token is left over, or they would pile up. */
static void resident_sleeps(void *with)
{
    stage *s = with;
    rc_reader snapshot = s->guests[RESIDENT].ring;
    int tokens = -1;
    (void)rc_reader_sleep(&snapshot, 0);
    CHECK(sem_getvalue(snapshot.wake, &tokens) == 0 && tokens == 0);
}

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
    s->guests[RESIDENT].wary = scene.at == 0; /* before the first look at who is in the slot */
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

static void onlooker_goes_on(void *with)
{
    go_on(&((stage *)with)->guests[ONLOOKER]);
}

static void onlooker_takes(void *with)
{
    onlooker_goes_on(with);
    take_some(&((stage *)with)->guests[ONLOOKER]);
}

static void visitor_joins_and_onlooker_looks(void *with)
{
    visitor_joins(with);
    onlooker_looks(with);
}

/* A reader that is stopped in the middle of joining, and dead in the end. */
static void visitor_stops_and_onlooker_looks(void *with)
{
    stage *s = with;
    s->gone[VISITOR] = 1;
    (void)killed(visitor_joins, s, roll(16));
    onlooker_looks(s);
}

static void writer_dies(void *with)
{
    stage *s = with;
    s->replaced = 1;
    (void)killed(put_reserved, s, roll(40));
}

/* The onlooker may see a gate that the dead writer never used, and the next one takes back. */
static void successor_comes_as_onlooker_looks(void *with)
{
    writer_dies(with);
    onlooker_looks(with);
    take_over(with);
}

/* The writer takes the lock of a dead reader's slot and frees it. */
static void reap(stage *s, int who)
{
    rc_slot *slot = rc_slot_at(s->ring.control, (uint32_t)who);
    rc_slot_free(s->ring.control, (uint32_t)who, &s->ring.space);
    CHECK((rc_load(&slot->state) & 0xff) == RC_FREE);
    s->guests[who].in = 0;
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
    if (roll(2)) { /* full, but for what the resident just let go: the next put moves the gate */
        put_many(s);
        take(&s->guests[RESIDENT]);
    }
    if (roll(2)) { /* the gate will not move without passing the onlooker */
        leave(&s->guests[ONLOOKER]);
        enter(&s->guests[ONLOOKER], &s->ring, ONLOOKER, 1, OLDEST);
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

static int gates(const guest *g)
{
    return g->in && !g->ring.lossy && rc_reader_changed(&g->ring) != RC_TAKEN_AWAY;
}

/* Whatever happened: who is in the ring reads on without a fault, and the writer finds room
 * without the help of anybody who is not. */
static void stage_clear(stage *s)
{
    CHECK(rc_load(&header_of(&s->ring)->gate) == s->writer.gate);
    CHECK(rc_load(&header_of(&s->ring)->settled) == s->writer.gate);
    rc_writer_sign(&s->writer, s->writer.epoch, 1, 1); /* open, though it may have been ended */
    go_on(&s->guests[ONLOOKER]);
    put_many(s);
    for (int n = 0; n < 3; n++)
        if (s->gone[n])
            reap(s, n);
    if (!gates(&s->guests[RESIDENT]) && !gates(&s->guests[VISITOR])) {
        uint64_t next = s->writer.next;
        put_many(s);
        CHECK(s->writer.next == next + MANY);
    }
    for (int i = 0; i < 20; i++) {
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
    action *before; /* all of it */
    action *outer, *inner;
    int wary; /* the resident may be evicted */
} plot;

static const plot plots[] = {
    {"joining while the writer puts", NULL, visitor_joins, put_many, 0},
    {"putting while a reader joins", NULL, put_one, visitor_joins, 0},
    {"putting while a reader comes and goes", NULL, put_one, visitor_comes_and_goes, 0},
    {"putting while a reader takes", NULL, put_one, resident_takes, 0},
    {"taking while the writer puts", NULL, resident_takes, put_many, 0},
    {"taking while the writer puts the last and ends", NULL, resident_takes, put_and_end, 0},
    {"looking lossily while the writer puts the last and ends", NULL, onlooker_takes, put_and_end,
     0},
    {"falling asleep while the writer puts", NULL, resident_sleeps, put_one, 0},
    {"putting while a reader falls asleep", NULL, put_one, resident_sleeps, 0},
    {"leaving while the writer puts", NULL, resident_leaves, put_many, 0},
    {"wanting room while a reader leaves", NULL, want_room, resident_leaves, 0},
    {"looking lossily while the writer puts", NULL, onlooker_takes, put_many, 0},
    {"going on while the writer puts", onlooker_looks, onlooker_goes_on, put_many, 0},
    {"putting while a lossy reader looks", NULL, put_many, onlooker_looks, 0},
    {"putting while one joins and a lossy one looks", NULL, put_one,
     visitor_joins_and_onlooker_looks, 0},
    {"putting while one stops joining and a lossy one looks", NULL, put_one,
     visitor_stops_and_onlooker_looks, 0},
    {"stepping down while the writer puts", NULL, resident_steps_down, put_many, 0},
    {"demoting while the reader takes", NULL, demote_resident, resident_takes, 0},
    {"demoting while the reader leaves", NULL, demote_resident, resident_is_followed, 0},
    {"stepping down while the writer evicts", NULL, resident_steps_down, evict_resident, 1},
    {"taking while the writer evicts", NULL, resident_takes, evict_resident, 1},
    {"taking while the writer evicts and puts", NULL, resident_takes, evict_resident_and_put, 1},
    {"leaving while the writer evicts", NULL, resident_leaves, evict_resident, 1},
    {"evicting while the reader steps down", NULL, evict_resident, resident_steps_down, 1},
    {"evicting while another takes the slot", NULL, evict_resident, resident_is_followed, 1},
    {"joining while a successor takes over", writer_dies, visitor_joins, take_over, 0},
    {"taking over while a reader joins", writer_dies, take_over, visitor_joins, 0},
    {"taking over while a reader comes and goes", writer_dies, take_over,
     visitor_comes_and_goes, 0},
    {"taking over while a lossy reader takes", writer_dies, take_over, onlooker_takes, 0},
    {"taking over while one joins and a lossy one looks", writer_dies, take_over,
     visitor_joins_and_onlooker_looks, 0},
    {"going on while a successor puts", successor_comes_as_onlooker_looks, onlooker_goes_on,
     put_many, 0},
    {"looking lossily while a successor takes over", writer_dies, onlooker_takes, take_over, 0},
    {"taking while a successor takes over", writer_dies, resident_takes, take_over, 0},
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
    if (p->before)
        p->before(&s);
    int happened = interrupted(p->outer, p->inner, &s, at);
    if (p->inner == take_over && !happened)
        take_over(&s);
    stage_clear(&s);
    return happened;
}

/* In one thread there is nothing for ThreadSanitizer to see. */
#ifdef __SANITIZE_THREAD__
enum { STRIDE = 7 };
#else
enum { STRIDE = 1 };
#endif

static uint64_t rounds(void) { return STRIDE > 1 ? 1 : scaled(80); }

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

/* ---- deaths ------------------------------------------------------------------------------ */

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
    {"a reader dies while falling asleep", resident_sleeps, RESIDENT},
    {"a reader dies while leaving", resident_leaves, RESIDENT},
    {"a reader dies while stepping down", resident_steps_down, RESIDENT},
    {"a reader dies while joining", visitor_joins, VISITOR},
};

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
        s.gone[d->who] = 1;
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
        for (uint64_t round = 0; round < rounds(); round++) {
            uint64_t at = 0;
            in_time();
            while (play_death(&deaths[i], round, at))
                at += STRIDE;
        }
    }
}

#endif

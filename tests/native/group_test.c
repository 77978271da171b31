/* group_test.c - work groups in the C core: each step of the protocol, threads as members, and garbage.
 *
 *   group_test [SEED [PERCENT [CASE]]]    all cases, each in a child process; or one, here
 *
 * Four kinds of cases.
 *
 *   Rules       One thread, one thing that the protocol promises.
 *   Steps       One thread; see group_steps.h.
 *   Threads     A writer and members run freely. They read payloads in place, with plain loads, and the
 *               ledger is plain, so ThreadSanitizer sees whether leases, partitions and floor order them.
 *   Hostility   Any word that members write may be anything: nothing crashes, no operation goes on for
 *               ever, and afterwards the group works again.
 */
#include "group_steps.h"

/* ---- rules --------------------------------------------------------------------------------- */

/* Two members of a group whose ring has so many messages. */
static void stage_begin(stage *s, uint32_t balance, uint64_t base, uint64_t messages)
{
    memset(s, 0, sizeof *s);
    s->now = RC_GROUP_SLICE_NS;
    crew_make(&s->crew, balance, SLOTS, 1024, base, ROOM, 1);
    s->crew.writer.max_message = 64; /* so that nothing but the descriptors fills the ring */
    for (int who = FIRST; who <= SECOND; who++) {
        worker_enter(&s->workers[who], &s->crew, (uint32_t)who);
        CHECK(s->workers[who].in);
        look_around_as(s, who);
    }
    look_around_as(s, FIRST);
    for (uint64_t i = 0; i < messages; i++)
        put_one(s);
    CHECK(s->crew.writer.next == base + messages);
}

static void stage_end(stage *s)
{
    for (int who = FIRST; who < WORKERS; who++)
        leave_as(s, who);
    crew_free(&s->crew);
}

/* Nobody was evicted, and no word was taken for a lie. */
static void check_peace(const stage *s)
{
    CHECK(rc_load(&s->crew.segment->voided) == 0 && s->crew.writer.evictions == 0);
    for (int who = FIRST; who < WORKERS; who++)
        CHECK(!s->workers[who].in || !is_evicted(&s->workers[who]));
}

/* The first two messages of one key, of which the first is wanted by `base` + SLOTS. A seed that has none
 * is another one's. */
static uint64_t two_of_a_key(uint64_t base, uint64_t *second)
{
    for (;; seed++)
        for (uint64_t i = base; i < base + SLOTS; i++)
            for (uint64_t k = i + 1; k < base + SLOTS; k++)
                if (is_wanted(i) && is_wanted(k) && key_of(i) == key_of(k)) {
                    *second = k;
                    return i;
                }
}

/* This worker owns the partition of a message from now on, if nothing of it is in hand. */
static void grab(stage *s, int who, uint64_t sequence)
{
    worker *k = &s->workers[who];
    uint32_t p = partition_of(sequence);
    uint64_t word = rc_load_acquire(&k->m.partitions[p]);
    if (!rc_member_owns(&k->m, word))
        CHECK(rc_member_take_partition(&k->m, p, word, 0));
}

/* Take until this message is in hand; the others are acknowledged. 0: it does not come. */
static int take_one(stage *s, int who, uint64_t sequence)
{
    worker *k = &s->workers[who];
    while (worker_take(k) == RC_MESSAGE) {
        if (k->hand[k->count - 1].lease.sequence == sequence)
            return 1;
        worker_finish(k, k->count - 1, 0);
    }
    return 0;
}

static void case_kept_is_passed_by_the_next_owner(void)
{
    stage s;
    uint64_t next, first = two_of_a_key(0, &next);
    stage_begin(&s, RC_KEY, 0, SLOTS);
    grab(&s, FIRST, first);
    CHECK(take_one(&s, FIRST, first));
    worker_finish(&s.workers[FIRST], 0, 1);
    CHECK(state_of(&s.crew, first) == RC_LEASE_KEPT);
    grab(&s, SECOND, first);
    CHECK(take_one(&s, SECOND, next));
    CHECK(state_of(&s.crew, first) == RC_LEASE_KEPT);
    worker_finish_all(&s.workers[SECOND]);
    rc_member_flush(&s.workers[SECOND].m);
    CHECK(rc_load(&row_of(&s.crew)->floor) <= first);
    worker_finish_all(&s.workers[FIRST]);
    for (int who = FIRST; who <= SECOND; who++)
        worker_works(&s.workers[who]);
    CHECK(all_is_done(&s));
    check_peace(&s);
    check_ledger(&s);
    stage_end(&s);
}

static uint64_t grabbed;

static void second_grabs_and_takes(void *with)
{
    stage *s = with;
    uint64_t word = rc_load_acquire(&partitions_of(&s->crew)[partition_of(grabbed)]);
    if (!(word & RC_PARTITION_BUSY)) {
        grab(s, SECOND, grabbed);
        second_takes(s);
    }
}

static void case_a_partition_that_is_taken_between_two_looks(void)
{
    uint64_t next;
    grabbed = two_of_a_key(0, &next);
    for (uint64_t at = 0, happened = 1; happened; at = next_step(at)) {
        stage s;
        stage_begin(&s, RC_KEY, 0, SLOTS);
        grab(&s, FIRST, grabbed);
        happened = (uint64_t)interrupted(first_takes, second_grabs_and_takes, &s, at);
        check_peace(&s);
        for (int who = FIRST; who <= SECOND; who++)
            worker_works(&s.workers[who]);
        for (int who = FIRST; who <= SECOND; who++)
            worker_works(&s.workers[who]);
        CHECK(all_is_done(&s));
        check_peace(&s);
        check_ledger(&s);
        stage_end(&s);
    }
}

static void case_nothing_is_claimed_past_an_impossible_lease(void)
{
    uint64_t next, first = two_of_a_key(0, &next);
    for (uint32_t state = RC_LEASE_ASSIGNED; state <= 7; state++) {
        stage s;
        if (state == RC_LEASE_RETURNED || state == RC_LEASE_DONE)
            continue;
        stage_begin(&s, RC_KEY, 0, SLOTS);
        s.crew.calm = 0;
        grab(&s, FIRST, first);
        /* in the name of another, who works and does not own the partition */
        worker *liar = &s.workers[SECOND];
        liar->wary = 1;
        rc_store(lease_at(&s.crew, first), rc_lease_word(rc_lease_lap(&s.crew.map, first),
                                                         liar->m.owner, 1, state));
        if (state == RC_LEASE_KEPT) { /* that may be */
            entry_of(&s.crew, first)->acking = 1;
            CHECK(take_one(&s, FIRST, next));
            check_peace(&s);
        } else {
            worker *k = &s.workers[FIRST];
            while (!holds(k, first)) {
                CHECK(worker_take(k) == RC_MESSAGE && !holds(k, next));
                if (!holds(k, first))
                    worker_finish(k, 0, 0);
            }
            CHECK(rc_load(&s.crew.segment->voided) == 1 && is_evicted(liar) && !is_evicted(k));
        }
        stage_end(&s);
    }
}

static void case_the_floor_moves_after_the_death_of_one_that_kept(void)
{
    uint64_t next, first = two_of_a_key(0, &next);
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        stage s;
        stage_begin(&s, balance, 0, SLOTS);
        s.crew.calm = 0;
        if (balance == RC_KEY)
            grab(&s, FIRST, first);
        while (worker_take(&s.workers[FIRST]) == RC_MESSAGE)
            ;
        CHECK(s.workers[FIRST].count);
        while (s.workers[FIRST].count)
            worker_finish(&s.workers[FIRST], 0, 1);
        bury(&s, FIRST);
        for (int i = 0; i < 3; i++) {
            look_around_as(&s, SECOND);
            second_works(&s);
        }
        CHECK(all_is_done(&s));
        CHECK(rc_load(&s.crew.segment->members[FIRST]) == 0);
        check_peace(&s);
        check_ledger(&s);
        stage_end(&s);
    }
}

/* A lease below all positions that nobody has called for: found after two looks around. */
static void leave_behind(uint32_t balance, uint32_t state, uint64_t owner)
{
    stage s;
    uint64_t sequence = 0;
    while (!is_wanted(sequence))
        sequence++;
    stage_begin(&s, balance, 0, SLOTS);
    s.crew.calm = 0;
    rc_store(lease_at(&s.crew, sequence),
             rc_lease_word(rc_lease_lap(&s.crew.map, sequence), rc_lease_owner(3, 7), 1,
                           RC_LEASE_DONE)); /* as if: everybody passes over it */
    entry_of(&s.crew, sequence)->acking = 1;
    second_works(&s);
    first_works(&s);
    second_works(&s);
    uint64_t again = rc_load(&row_of(&s.crew)->again);
    rc_store(&row_of(&s.crew)->floor, sequence); /* of which nobody believes that it went back */
    for (int who = FIRST; who <= SECOND; who++)
        s.workers[who].m.floor = sequence;
    rc_store(lease_at(&s.crew, sequence),
             rc_lease_word(rc_lease_lap(&s.crew.map, sequence), owner, 1, state));
    for (int i = 0; i < 2; i++)
        for (int who = FIRST; who <= SECOND; who++)
            look_around_as(&s, who);
    first_works(&s);
    second_works(&s);
    CHECK(all_is_done(&s) && entry_of(&s.crew, sequence)->acked == 1);
    CHECK(rc_load(&row_of(&s.crew)->again) == again);
    check_peace(&s);
    stage_end(&s);
}

static void case_what_nobody_has_called_for(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++)
        leave_behind(balance, RC_LEASE_RETURNED, rc_lease_owner(3, 7));
    leave_behind(RC_ROUND_ROBIN, RC_LEASE_ASSIGNED, rc_lease_owner(3, 7));
}

/* ---- groups that are made, revived and removed by somebody who dies ------------------------- */

static void revive(void *with)
{
    const crew *c = with;
    rc_group_revive(c->ring.control, c->ring.data, c->ring.geometry.slots, ROW);
}

static void take_away(void *with)
{
    crew *c = with;
    rc_group_remove(c->ring.control, ROW, &c->ring.space);
}

static void make_group(void *with)
{
    crew *c = with;
    group_begin(c, rc_load(&header_of(&c->ring)->published), DELIVERIES);
}

static int bit_is_on(const crew *c)
{
    return (int)(rc_load(&((rc_control *)c->ring.control)->groups) >> ROW & 1);
}

static uint64_t put_all(crew *c)
{
    uint64_t before = c->writer.next;
    while (c->writer.next < before + SLOTS && try_put(&c->writer))
        rc_writer_release(&c->writer);
    return c->writer.next - before;
}

/* It holds the ring from its floor on, and its members get all of it. */
static void check_hold(crew *c)
{
    worker k;
    CHECK(bit_is_on(c) && rc_group_is_active(row_of(c)));
    CHECK(rc_load(&row_of(c)->floor) >= rc_load(&header_of(&c->ring)->gate));
    worker_enter(&k, c, FIRST);
    CHECK(k.in);
    for (int i = 0; i < 3; i++) {
        while (put_all(c) == SLOTS)
            CHECK(c->writer.next - c->base < ROOM - SLOTS);
        CHECK(c->writer.next - rc_load(&row_of(c)->floor) <= SLOTS);
        worker_works(&k);
        CHECK(rc_load(&row_of(c)->floor) == c->writer.published);
    }
    worker_leave(&k);
}

static void case_deaths_of_makers(void)
{
    static crew c; /* outlives the longjmp */
    static uint64_t at;
    static int dead;
    for (at = 0, dead = 1; dead; at += 1 + (at > 200) * roll(100)) {
        crew_make(&c, RC_ANY, SLOTS, 1024, 0, ROOM, 1);
        take_away(&c);
        dead = killed(make_group, &c, at);
        (void)put_all(&c); /* whatever state it is in: the writer goes on, or waits */
        make_group(&c);
        check_hold(&c);
        crew_free(&c);
    }
    for (at = 0, dead = 1; dead; at++)
        for (uint64_t demoted = 0; demoted < 2; demoted++) {
            crew_make(&c, RC_ANY, SLOTS, 1024, 0, ROOM, 1);
            if (demoted) {
                CHECK(rc_group_demote(c.ring.control, ROW, READERS));
                (void)put_all(&c);
                (void)put_all(&c);
                CHECK(c.writer.next == 2 * SLOTS);
            }
            dead = killed(revive, &c, at);
            CHECK(bit_is_on(&c)); /* while it may be active */
            (void)put_all(&c);
            revive(&c);
            check_hold(&c);
            crew_free(&c);
        }
    for (at = 0, dead = 1; dead; at++) {
        crew_make(&c, RC_ANY, SLOTS, 1024, 0, ROOM, 1);
        dead = killed(take_away, &c, at);
        if (!dead) { /* else its bit may be left, and is passed over */
            CHECK(!bit_is_on(&c));
        }
        if ((rc_load(&row_of(&c)->state) & 0xff) == RC_GROUP_NONE)
            CHECK(put_all(&c) == SLOTS && put_all(&c) == SLOTS);
        take_away(&c);
        CHECK(!bit_is_on(&c) && !rc_group_is_active(row_of(&c)));
        CHECK(put_all(&c) == SLOTS && put_all(&c) == SLOTS);
        make_group(&c);
        check_hold(&c);
        crew_free(&c);
    }
}

/* ---- lies ---------------------------------------------------------------------------------- */

/* Look around and work until all is done. */
static void recover(stage *s)
{
    for (int i = 0; i < SETTLING && !all_is_done(s); i++)
        all_work(s);
    CHECK(all_is_done(s));
}

static void case_a_floor_that_lies(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        stage s;
        stage_begin(&s, balance, 100, SLOTS);
        second_works(&s);
        first_works(&s);
        second_works(&s);
        CHECK(all_is_done(&s));
        /* back: whoever looks puts it right, and nothing is delivered again */
        rc_store(&row_of(&s.crew)->floor, 101);
        CHECK(put_all(&s.crew) > 0);
        recover(&s);
        CHECK(rc_load(&s.crew.segment->voided) <= 1); /* 0: it moved over what is DONE */
        check_ledger_but_voided(&s);
        /* where there can be no message: its members do not believe it */
        rc_store(&row_of(&s.crew)->floor, UINT64_MAX / 2);
        look_around_as(&s, FIRST);
        CHECK(worker_take(&s.workers[FIRST]) == RC_EMPTY);
        /* and the writer ends its hold, and evicts them */
        while (put_all(&s.crew) && s.crew.writer.evictions == 0)
            ;
        CHECK(s.crew.writer.evictions == 1 && !rc_group_is_active(row_of(&s.crew)));
        s.evictions = 1;
        for (int who = FIRST; who <= SECOND; who++) {
            s.workers[who].wary = 1;
            CHECK(worker_take(&s.workers[who]) == RC_TAKEN_AWAY);
            come_again(&s, who);
        }
        s.crew.calm = 0;
        uint64_t next = s.crew.writer.next;
        CHECK(rc_load(&row_of(&s.crew)->floor) <= next);
        CHECK(put_all(&s.crew) > 0);
        recover(&s);
        stage_end(&s);
    }
}

static void case_a_time_that_lies(void)
{
    static const uint64_t times[] = {UINT64_MAX, UINT64_C(1) << 63, INT64_MAX, 0,
                                     UINT64_C(1000000000000)};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        stage s;
        stage_begin(&s, RC_ANY, 0, SLOTS);
        while (!s.workers[FIRST].count)
            first_takes(&s);
        bury(&s, FIRST);
        rc_store(&s.crew.segment->looked_ns, times[i]);
        look_around_as(&s, SECOND);
        second_works(&s);
        CHECK(all_is_done(&s) && rc_load(&s.crew.segment->members[FIRST]) == 0);
        stage_end(&s);
    }
}

static void case_a_head_that_lies(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance += RC_ROUND_ROBIN - RC_ANY)
        for (int64_t off = -12; off <= 40; off++) {
            stage s;
            uint64_t sequence = off == 40 ? UINT64_MAX >> RC_TURN_BITS : (uint64_t)(100 + off);
            stage_begin(&s, balance, 100, SLOTS);
            first_takes(&s);
            first_takes(&s);
            second_takes(&s);
            rc_store(&row_of(&s.crew)->head, rc_head(sequence, (uint32_t)roll(1024)));
            for (int i = 0; i < 3; i++) {
                first_works(&s);
                second_works(&s);
                first_looks_around(&s);
                second_looks_around(&s);
                put_one(&s);
            }
            recover(&s);
            check_ledger_but_voided(&s);
            CHECK(s.crew.writer.evictions == 0);
            stage_end(&s);
        }
}

/* ---- the rest ------------------------------------------------------------------------------ */

/* The words of a new segment are FREE, whatever the ring's lap. */
static void case_late_laps(void)
{
    static const uint64_t laps[] = {1, INT32_MAX, UINT64_C(1) << 31, (UINT64_C(1) << 31) + 1,
                                    UINT32_MAX - 1, UINT64_C(1) << 32};
    for (size_t i = 0; i < sizeof laps / sizeof *laps; i++)
        for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
            stage s;
            stage_begin(&s, balance, (laps[i] - 1) * SLOTS + roll(SLOTS), SLOTS);
            for (int n = 0; n < 5 * SLOTS; n++) {
                put_one(&s);
                if (roll(2))
                    first_works(&s);
                else
                    second_works(&s);
            }
            recover(&s);
            check_peace(&s);
            check_ledger(&s);
            stage_end(&s);
        }
}

static void case_shares(void)
{
    stage s;
    worker more[READERS];
    uint32_t counts[READERS];
    stage_begin(&s, RC_KEY, 0, 0);
    for (uint32_t n = 2; n <= READERS; n++) {
        if (n > 2) {
            worker_enter(&more[n - 1], &s.crew, n - 1);
            CHECK(more[n - 1].in);
        }
        for (int round = 0; round < 3; round++) {
            look_around_as(&s, FIRST);
            look_around_as(&s, SECOND);
            for (uint32_t i = 2; i < n; i++)
                CHECK(rc_member_look_around(&more[i].m, s.now += RC_GROUP_SLICE_NS));
        }
        memset(counts, 0, sizeof counts);
        for (uint32_t p = 0; p < RC_PARTITIONS; p++) {
            uint32_t owner = rc_partition_owner(rc_load(&partitions_of(&s.crew)[p]));
            CHECK(owner >= 1 && owner <= n);
            counts[owner - 1]++;
        }
        for (uint32_t i = 0; i < n; i++)
            CHECK(counts[i] == RC_PARTITIONS / n || counts[i] == RC_PARTITIONS / n + 1);
    }
    for (uint32_t i = 2; i < READERS; i++)
        worker_leave(&more[i]);
    stage_end(&s);
}

static void case_pauses(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        stage s;
        stage_begin(&s, balance, 0, 0);
        leave_as(&s, SECOND);
        worker *k = &s.workers[FIRST];
        while (!is_wanted(s.crew.writer.next))
            put_one(&s);
        uint64_t sequence = s.crew.writer.next;
        put_one(&s);
        for (uint32_t n = 0; n < 6; n += 2) {
            CHECK(take_one(&s, FIRST, sequence) && k->count == 1);
            int64_t before = rc_now_ns();
            worker_return(k, 0, 1);
            rc_member_call(&k->m, 1);
            while (worker_take(k) == RC_EMPTY) {
                rc_look look = k->m.look;
                in_time();
                (void)rc_member_wait(&k->m, &look, HAND, ways[0], rc_look_limit(&look, deadline));
            }
            CHECK(rc_now_ns() - before >= RC_PAUSE_NS << n);
            worker_return(k, 0, 0);
            entry_of(&s.crew, sequence)->given = entry_of(&s.crew, sequence)->taken;
        }
        /* another may have it at once */
        CHECK(take_one(&s, FIRST, sequence));
        worker_enter(&s.workers[SECOND], &s.crew, SECOND);
        look_around_as(&s, SECOND);
        worker_return(k, 0, 1);
        rc_member_call(&k->m, 1);
        if (balance == RC_KEY)
            grab(&s, SECOND, sequence);
        CHECK(worker_take(k) == RC_EMPTY && take_one(&s, SECOND, sequence));
        worker_finish_all(&s.workers[SECOND]);
        stage_end(&s);
    }
}

static void case_set_aside(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        stage s;
        stage_begin(&s, balance, 0, SLOTS);
        s.crew.calm = 0;
        set_limit(&s);
        for (int who = FIRST; who <= SECOND; who++)
            while (s.workers[who].count < 2 && worker_take(&s.workers[who]) == RC_MESSAGE)
                ;
        uint64_t first = s.workers[FIRST].count ? s.workers[FIRST].hand[0].lease.sequence
                                                : s.workers[SECOND].hand[0].lease.sequence;
        for (int who = FIRST; who <= SECOND; who++)
            while (s.workers[who].count)
                return_as(&s, who);
        recover(&s);
        CHECK(was_set_aside(&s.crew, first));
        CHECK(rc_load(&row_of(&s.crew)->aside) >= 1 && rc_load(&s.crew.segment->redelivered) == 0);
        for (uint32_t i = 0; i < rc_load(&row_of(&s.crew)->aside); i++) {
            const rc_aside *record = &s.crew.segment->aside[i];
            uint32_t pid = rc_load(&record->pids[0]);
            CHECK(rc_load(&record->deliveries) == 1 && rc_load(&record->count) == 1);
            CHECK(pid == FIRST + 1 || pid == SECOND + 1);
        }
        check_ledger(&s);
        stage_end(&s);
    }
}

/* ---- threads ------------------------------------------------------------------------------- */

enum { AT_ONCE = 8 };

typedef struct hand {
    pthread_t thread;
    crew *crew;
    worker worker;
    uint32_t index;
    rc_wait_strategy how;
    int restless; /* leaves and joins again */
    uint64_t done;
} hand;

/* One turn at work: 0: the ring has ended, and nothing is in hand. */
static int work_a_turn(hand *h)
{
    worker *k = &h->worker;
    rc_result result = k->count < AT_ONCE ? worker_take(k) : RC_EMPTY;
    if (result == RC_MESSAGE && roll(3))
        return 1; /* some more */
    for (uint64_t n = result == RC_MESSAGE ? roll(k->count + 1) : k->count; n > 0; n--) {
        uint32_t i = (uint32_t)roll(k->count);
        if (roll(64) == 0) {
            worker_return(k, i, roll(4) == 0);
            rc_member_call(&k->m, 1);
        } else {
            worker_finish(k, i, roll(4) == 0);
            h->done++;
        }
    }
    while (k->kept_count && (result != RC_MESSAGE || roll(2)))
        worker_release(k);
    int64_t now = rc_now_ns();
    if (rc_member_look_due(&k->m, now) && !rc_member_look_around(&k->m, now))
        CHECK(k->wary);
    if (result == RC_EMPTY) {
        in_time();
        rc_member_flush(&k->m);
        rc_look look = k->m.look;
        (void)rc_member_wait(&k->m, &look, HAND, h->how, rc_look_limit(&look, deadline));
    }
    return result != RC_ENDED && result != RC_TAKEN_AWAY;
}

/* What is in hand goes back. */
static void walk_out(hand *h)
{
    worker *k = &h->worker;
    for (uint32_t i = 0; i < k->count; i++)
        note(h->crew, &entry_of(h->crew, k->hand[i].lease.sequence)->given, 1);
    worker_leave(k);
}

static void *hand_works(void *with)
{
    hand *h = with;
    worker *k = &h->worker;
    throw_with(h->index + 1);
    plan.jitter = 256;
    int over = 0;
    while (!over) {
        if (!k->in)
            worker_enter(k, h->crew, h->index);
        k->wary = !h->crew->calm;
        if (!k->in)
            continue;
        over = !work_a_turn(h) && !is_evicted(k) && k->count == 0;
        if (!over && (is_evicted(k) || (h->restless && roll(200) == 0)))
            walk_out(h);
    }
    walk_out(h);
    return NULL;
}

static void hands_begin(crew *c, hand *hands, uint32_t count)
{
    c->threads = 1;
    for (uint32_t i = 0; i < count; i++) {
        hands[i].crew = c;
        hands[i].index = i;
        hands[i].how = ways[i % 3];
        hands[i].restless = hands[i].restless && i > 0;
        worker_enter(&hands[i].worker, c, i);
        CHECK(hands[i].worker.in && rc_member_look_around(&hands[i].worker.m, rc_now_ns()));
        hands[i].worker.wary = !c->calm;
    }
    for (uint32_t i = 0; i < count; i++)
        CHECK(pthread_create(&hands[i].thread, NULL, hand_works, &hands[i]) == 0);
}

static void hands_end(crew *c, hand *hands, uint32_t count, uint64_t total)
{
    uint64_t acked = 0;
    for (uint32_t i = 0; i < count; i++)
        CHECK(pthread_join(hands[i].thread, NULL) == 0);
    for (uint64_t i = 0; i < total; i++) {
        CHECK(c->ledger[i].acked == (uint32_t)is_wanted(i));
        CHECK(!c->calm || c->ledger[i].taken == c->ledger[i].acked + c->ledger[i].given);
        acked += c->ledger[i].acked;
    }
    CHECK(acked > 0 && c->writer.evictions == 0);
    CHECK(rc_load(&c->segment->voided) == 0 || !c->calm);
    crew_free(c);
}

static void run_hands(uint32_t balance, uint64_t slots, uint32_t count, uint64_t total, int restless,
                      rc_wait_strategy how)
{
    crew c;
    static hand hands[4];
    memset(hands, 0, sizeof hands);
    crew_make(&c, balance, slots, 32 * slots < 256 ? 256 : 32 * slots, 0, total, 0);
    for (uint32_t i = 0; i < count; i++)
        hands[i].restless = restless;
    hands_begin(&c, hands, count);
    plan.jitter = 256;
    write_all(&c.writer, total, how);
    plan.jitter = 0;
    hands_end(&c, hands, count, total);
}

static void case_threads(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        run_hands(balance, 8, 2, scaled(8000), 0, ways[0]);
        run_hands(balance, 16, 3, scaled(8000), 0, ways[1]);
        run_hands(balance, 64, 4, scaled(12000), 0, ways[0]);
    }
}

static void case_threads_that_come_and_go(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++)
        run_hands(balance, 16, 4, scaled(8000), 1, ways[0]);
}

/* Ask one to let go, or evict it, as the writer does with members that hold the ring up. */
static void press(crew *c)
{
    uint32_t index = 1 + (uint32_t)roll(3);
    if (roll(3) ? rc_slot_demote(c->ring.control, index) : rc_slot_evict(c->ring.control, index))
        rc_post(&c->ring.wake[index]);
}

static void case_threads_that_are_evicted(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        crew c;
        static hand hands[4];
        uint64_t total = scaled(8000);
        memset(hands, 0, sizeof hands);
        crew_make(&c, balance, 16, 1024, 0, total, 0);
        c.calm = 0;
        hands_begin(&c, hands, 4);
        plan.jitter = 64;
        while (c.writer.next < total) {
            if (roll(64) == 0)
                press(&c);
            if (try_put(&c.writer)) {
                if (roll(3) == 0)
                    rc_writer_release(&c.writer);
            } else if (!rc_writer_wait(&c.writer, c.writer.max_message, ways[0],
                                       rc_now_ns() + 200000)) {
                in_time();
                press(&c);
            }
        }
        rc_writer_end(&c.writer);
        plan.jitter = 0;
        hands_end(&c, hands, 4, total);
    }
}

/* ---- sleep and wake ------------------------------------------------------------------------ */

/* Members sleep for as long as they like, not in slices: a wake-up that is lost is not made good by a look
 * 40 ms later, but ends the case. */
typedef struct dormitory {
    crew crew;
    hand hands[3];
    uint64_t arrived;
    uint64_t rounds;
    atomic_uint_least64_t done;
} dormitory;

static rc_result take_or_sleep(worker *k)
{
    for (;;) {
        rc_result result = worker_take(k);
        if (result != RC_EMPTY)
            return result;
        rc_member_flush(&k->m);
        rc_look look = k->m.look;
        /* when the ring has ended, nobody says that the last message is done */
        int ended = rc_load(&k->m.map.view.header->state) == RC_RING_CLOSED;
        CHECK(rc_member_sleep(&k->m, &look, HAND, ended ? rc_now_ns() + 1000000 : deadline) || ended);
    }
}

static void *sleeper_alone(void *with)
{
    dormitory *x = with;
    worker *k = &x->hands[0].worker;
    throw_with(1);
    for (uint64_t i = 0; i < x->rounds; i++) {
        meet(&x->arrived, 8);
        CHECK(take_or_sleep(k) == RC_MESSAGE);
        worker_finish_all(k);
        rc_member_flush(&k->m);
    }
    while (take_or_sleep(k) == RC_MESSAGE)
        worker_finish_all(k);
    return NULL;
}

static void *sleeper_among_others(void *with)
{
    hand *h = with;
    dormitory *x = (dormitory *)(void *)((uint8_t *)h->crew - offsetof(dormitory, crew));
    throw_with(h->index + 1);
    plan.jitter = 256;
    while (take_or_sleep(&h->worker) == RC_MESSAGE) {
        if (roll(16) == 0) {
            worker_return(&h->worker, 0, 0);
            rc_member_call(&h->worker.m, 1);
            continue;
        }
        worker_finish_all(&h->worker);
        rc_member_flush(&h->worker.m);
        atomic_fetch_add(&x->done, 1);
    }
    return NULL;
}

static void dormitory_make(dormitory *x, uint32_t balance, uint32_t count, uint64_t room)
{
    memset(x, 0, sizeof *x);
    crew_make(&x->crew, balance, 8, 1024, 0, room, 0);
    x->crew.threads = 1;
    for (int round = 0; round < 3; round++)
        for (uint32_t i = 0; i < count; i++) {
            x->hands[i].crew = &x->crew;
            x->hands[i].index = i;
            if (round == 0)
                worker_enter(&x->hands[i].worker, &x->crew, i);
            CHECK(x->hands[i].worker.in);
            CHECK(rc_member_look_around(&x->hands[i].worker.m, rc_now_ns()));
        }
}

/* Put messages up to the next one that is wanted. */
static void put_wanted(crew *c)
{
    int wanted;
    do {
        wanted = is_wanted(c->writer.next);
        while (!try_put(&c->writer))
            if (!rc_writer_want(&c->writer, length_of(c->writer.next, c->writer.max_message)))
                CHECK(rc_take_token_until(c->writer.space, deadline));
    } while (!wanted);
    rc_writer_release(&c->writer);
}

static void case_crossings(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        static dormitory x;
        pthread_t other;
        uint64_t rounds = scaled(10000);
        dormitory_make(&x, balance, 1, 2 * rounds + 64);
        x.rounds = rounds;
        CHECK(pthread_create(&other, NULL, sleeper_alone, &x) == 0);
        for (uint64_t i = 0; i < rounds; i++) {
            meet(&x.arrived, 8);
            put_wanted(&x.crew);
        }
        rc_writer_end(&x.crew.writer);
        CHECK(pthread_join(other, NULL) == 0);
        worker_leave(&x.hands[0].worker);
        crew_free(&x.crew);
    }
}

static void case_sleepers(void)
{
    for (uint32_t balance = RC_ANY; balance <= RC_ROUND_ROBIN; balance++) {
        static dormitory x;
        uint64_t rounds = scaled(4000), put = 0;
        dormitory_make(&x, balance, 3, 4 * 2 * rounds + 64);
        for (uint32_t i = 0; i < 3; i++)
            CHECK(pthread_create(&x.hands[i].thread, NULL, sleeper_among_others, &x.hands[i]) == 0);
        for (uint64_t i = 0; i < rounds; i++) {
            for (uint64_t n = 1 + roll(4); n > 0; n--, put++)
                put_wanted(&x.crew);
            if (roll(4)) /* until all is done they sleep, most of them */
                while (atomic_load(&x.done) < put) {
                    in_time();
                    sched_yield();
                }
        }
        rc_writer_end(&x.crew.writer);
        for (uint32_t i = 0; i < 3; i++)
            CHECK(pthread_join(x.hands[i].thread, NULL) == 0);
        CHECK(atomic_load(&x.done) == put);
        for (uint32_t i = 0; i < 3; i++)
            worker_leave(&x.hands[i].worker);
        crew_free(&x.crew);
    }
}

/* ---- hostility ----------------------------------------------------------------------------- */

enum {
    TRIES = 100000,      /* words written, all in all */
    TRIES_EACH = 50,     /* before the group is to work again */
    STEPS_MAX = 2000000, /* of one operation: tries, times what a look costs */
    RECOVERY = 60,       /* looks around until all is done */
};

typedef struct siege {
    crew crew;
    worker workers[WORKERS];
    int64_t now;
} siege;

static uint64_t odd_lease(const siege *x)
{
    uint64_t sequence = x->crew.writer.next - roll(2 * SLOTS);
    uint32_t lap = rc_lease_lap(&x->crew.map, sequence) + (roll(4) ? 0 : (uint32_t)odd_number(0));
    uint64_t owner = rc_lease_owner((uint32_t)roll(roll(4) ? WORKERS : 1024), roll(4));
    return roll(8) ? rc_lease_word(lap, owner, (uint32_t)roll(256), (uint32_t)roll(8)) : odd_number(0);
}

static uint64_t odd_partition(void)
{
    uint64_t word = rc_partition_word(roll(4), roll(4), (uint32_t)roll(roll(4) ? WORKERS + 1 : 2048));
    if (roll(2))
        word = rc_partition_with_heir(word, (uint32_t)roll(roll(4) ? WORKERS + 1 : 2048));
    return roll(8) ? word | (roll(2) ? RC_PARTITION_BUSY : 0) : odd_number(0);
}

static void spoil(siege *x)
{
    rc_group_segment *segment = x->crew.segment;
    rc_group_row *row = row_of(&x->crew);
    uint64_t about = x->crew.writer.next;
    switch (roll(16)) {
    case 0:
    case 1:
    case 2:
    case 3:
        rc_store(&segment->leases[roll(SLOTS)], odd_lease(x));
        break;
    case 4:
    case 5:
        for (uint64_t n = 1 + roll(RC_PARTITIONS); n > 0; n -= 1 + roll(n))
            rc_store(&partitions_of(&x->crew)[roll(2) ? roll(RC_PARTITIONS)
                                                      : rc_partition_of_key(1 + roll(KEYS))],
                     odd_partition());
        break;
    case 6:
        rc_store(&segment->members[roll(roll(4) ? WORKERS : RC_READERS_MAX)],
                 odd_number(1) | (roll(3) ? 0 : RC_MEMBER_GONE));
        break;
    case 7:
    case 8:
        rc_store(&row->head, roll(2) ? rc_head(odd_number(about), (uint32_t)roll(1024))
                                     : odd_number(about));
        break;
    case 9:
        rc_store(&row->floor, odd_number(about));
        break;
    case 10:
        rc_store(&row->again, odd_number(rc_load(&row->again)));
        break;
    case 11:
        rc_store(&segment->looked_ns, odd_number((uint64_t)x->now));
        break;
    case 12:
        rc_store(&row->members[0], odd_number(7));
        break;
    case 13:
        rc_store(&row->asleep[roll(RC_BITMAP_WORDS)], odd_number(7));
        break;
    case 14:
        rc_store(&segment->returns[roll(RC_RETURNS)].sequence1, odd_number(about));
        rc_store(&segment->returns_count, odd_number(RC_RETURNS));
        rc_store(&segment->aside[roll(RC_ASIDE)].sequence1, odd_number(about));
        rc_store(&segment->aside_next, odd_number(RC_ASIDE));
        break;
    default:
        rc_store(&x->crew.map.control->readers[roll(WORKERS)].group, (uint32_t)odd_number(ROW + 1));
    }
}

/* It has come to an end, and not too late. */
static void check_steps(uint64_t began) { CHECK(steps - began < STEPS_MAX); }

static void besieged_enters(siege *x, int who)
{
    worker *k = &x->workers[who];
    uint64_t began = steps;
    if (k->in)
        worker_leave(k);
    rc_group_revive(x->crew.ring.control, x->crew.ring.data, x->crew.ring.geometry.slots, ROW);
    worker_enter(k, &x->crew, (uint32_t)who);
    check_steps(began);
}

/* Use the bytes that the descriptor says: they lie in the arena, whatever it is. */
static void besieged_uses(const worker *k, const rc_descriptor *d)
{
    static uint8_t copy[LONGEST];
    CHECK(d->f.length <= k->m.max_message);
    rc_copy_out(copy, k->crew->writer.arena + (d->f.position & (k->m.capacity - 1)), d->f.length);
}

static void besieged_lets_go(worker *k, int back)
{
    item found = worker_lay_out(k, (uint32_t)roll(k->count));
    uint64_t began = steps;
    if (back) {
        (void)rc_member_give_back(&k->m, &found.lease, roll(8) == 0);
        rc_member_call(&k->m, 1);
    } else {
        (void)rc_member_finish(&k->m, &found.lease, 0, found.length);
    }
    check_steps(began);
}

/* Take one message, or find none. */
static rc_result besieged_takes(siege *x, worker *k)
{
    rc_descriptor d;
    rc_lease lease;
    uint64_t began = steps;
    rc_result result = rc_member_take(&k->m, HAND, RC_ANY_SORT, NULL, &lease, &d);
    (void)x;
    check_steps(began);
    if (result == RC_IMPOSSIBLE)
        (void)rc_member_give_back(&k->m, &lease, 1);
    if (result != RC_MESSAGE)
        return result;
    besieged_uses(k, &d);
    k->hand[k->count++] = (item){lease, d.f.length};
    return result;
}

static void besieged_works(siege *x, int who)
{
    worker *k = &x->workers[who];
    uint64_t began = steps;
    if (!k->in || is_evicted(k)) {
        besieged_enters(x, who);
        return;
    }
    switch (roll(8)) {
    case 0:
        (void)rc_member_look_around(&k->m, x->now += RC_GROUP_SLICE_NS / 4);
        break;
    case 1:
        rc_member_flush(&k->m);
        break;
    case 2: {
        rc_look look = k->m.look;
        (void)rc_member_sleep(&k->m, &look, HAND, 0);
        break;
    }
    case 3:
        if (k->count)
            besieged_lets_go(k, roll(3) == 0);
        break;
    default:
        if (k->count == 3 || (k->count && besieged_takes(x, k) != RC_MESSAGE))
            besieged_lets_go(k, 0);
        else
            (void)besieged_takes(x, k);
    }
    check_steps(began);
}

static void besieged_puts(siege *x)
{
    uint64_t began = steps;
    if (try_put(&x->crew.writer))
        rc_writer_release(&x->crew.writer);
    else if (roll(4) == 0)
        (void)rc_writer_want(&x->crew.writer, x->crew.writer.max_message);
    check_steps(began);
}

static void look_at_it(const siege *x)
{
    rc_group_census census;
    uint32_t pids[RC_ASIDE_MEMBERS];
    rc_group_count(&x->crew.map, &census);
    CHECK(census.claimed + census.returned <= SLOTS);
    (void)rc_group_holder(&x->crew.map, partitions_of(&x->crew));
    CHECK(rc_group_members(&x->crew.map) <= READERS);
    CHECK(rc_group_had(&x->crew.map, roll(100), pids) <= RC_ASIDE_MEMBERS);
}

/* The garbage has come to an end: does everything work again? */
static void check_recovery(siege *x)
{
    const rc_group_row *row = row_of(&x->crew);
    uint64_t goal = x->crew.writer.next + 2 * SLOTS;
    int round = 0;
    for (int who = FIRST; who < WORKERS; who++)
        for (uint32_t i = 0; i < x->workers[who].m.look.pause_count; i++)
            x->workers[who].m.look.pauses[i].until_ns = 0; /* of many deliveries they take a second */
    for (; round < RECOVERY; round++) {
        int done = 1;
        for (int who = FIRST; who < WORKERS; who++) {
            worker *k = &x->workers[who];
            if (!k->in || is_evicted(k) ||
                !rc_member_look_around(&k->m, x->now += RC_GROUP_SLICE_NS)) {
                besieged_enters(x, who);
                done = 0;
                continue;
            }
            do
                while (k->count)
                    besieged_lets_go(k, 0);
            while (besieged_takes(x, k) == RC_MESSAGE);
            rc_member_flush(&k->m);
        }
        /* a floor that lies above is found out by the next messages */
        done = done && rc_load(&row->floor) >= x->crew.writer.published;
        if (done && x->crew.writer.next >= goal)
            return;
        for (int i = 0; i < SLOTS / 2 && x->crew.writer.next < goal; i++)
            besieged_puts(x);
    }
    CHECK(round < RECOVERY);
}

static void case_garbage(void)
{
    uint64_t tries = scaled(TRIES);
#ifdef __SANITIZE_THREAD__
    tries /= 4; /* in one thread there is nothing for it to see */
#endif
    for (uint64_t n = 0; n < tries;) {
        siege x;
        uint32_t balance = RC_ANY + (uint32_t)roll(3);
        in_time();
        memset(&x, 0, sizeof x);
        x.now = RC_GROUP_SLICE_NS;
        scene.plot = balance_names[balance];
        scene.round = n;
        crew_make(&x.crew, balance, SLOTS, roll(2) ? 256 : 1024, roll(100), 1, 1);
        x.crew.calm = 0;
        for (int who = FIRST; who < WORKERS; who++)
            besieged_enters(&x, who);
        for (uint64_t again = roll(4) + 1; again > 0; again--) {
            for (int i = 0; i < TRIES_EACH; i++, n++) {
                besieged_puts(&x);
                besieged_works(&x, (int)roll(WORKERS));
                spoil(&x);
                scene.at = n;
                besieged_works(&x, (int)roll(WORKERS));
                besieged_works(&x, (int)roll(WORKERS));
                look_at_it(&x);
            }
            check_recovery(&x);
        }
        for (int who = FIRST; who < WORKERS; who++)
            if (x.workers[who].in)
                worker_leave(&x.workers[who]);
        crew_free(&x.crew);
    }
    scene.plot = NULL;
}

/* ---- all of it --------------------------------------------------------------------------- */

static const test_case cases[] = {
    {"kept_is_passed", case_kept_is_passed_by_the_next_owner},
    {"taken_between_two_looks", case_a_partition_that_is_taken_between_two_looks},
    {"past_an_impossible_lease", case_nothing_is_claimed_past_an_impossible_lease},
    {"death_of_one_that_kept", case_the_floor_moves_after_the_death_of_one_that_kept},
    {"nobody_has_called_for", case_what_nobody_has_called_for},
    {"deaths_of_makers", case_deaths_of_makers},
    {"floor_that_lies", case_a_floor_that_lies},
    {"time_that_lies", case_a_time_that_lies},
    {"head_that_lies", case_a_head_that_lies},
    {"late_laps", case_late_laps},
    {"shares", case_shares},
    {"pauses", case_pauses},
    {"set_aside", case_set_aside},
    {"interruptions", case_interruptions},
    {"sleep_steps", case_sleep_steps},
    {"deaths", case_deaths},
    {"threads", case_threads},
    {"threads_that_come_and_go", case_threads_that_come_and_go},
    {"threads_that_are_evicted", case_threads_that_are_evicted},
    {"crossings", case_crossings},
    {"sleepers", case_sleepers},
    {"garbage", case_garbage},
};

int main(int argc, char **argv)
{
    return run_cases(argc, argv, cases, sizeof cases / sizeof *cases, NULL);
}

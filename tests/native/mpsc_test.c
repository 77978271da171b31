/* mpsc_test.c - the C core of the uplink alone; built and run as ring_test.c is.
 *
 *   mpsc_test [SEED [PERCENT [CASE]]]    all cases, each in a child process; or one, here
 *
 *   Threads     Senders, each a thread with a lane of its own, and one receiver, run freely.
 *   Steps       One thread. An operation is begun, and before each of its atomic operations another
 *               party acts, or the one that had begun dies there.
 *   Hostility   Headers with every bit flipped, and every word of a living uplink spoiled, in a
 *               buffer of the exact size.
 *
 * A message says who sent it and which of his it is, and what it holds follows from that.
 */
#define _GNU_SOURCE
#include <semaphore.h>

/* Falling asleep is a step, too: there is a moment between the last look and the sleep. */
static void step(void);
#define sem_clockwait(semaphore, clock, until) (step(), sem_clockwait((semaphore), (clock), (until)))

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* rings are not tested here */
#include "cases.h"
#pragma GCC diagnostic pop
#include "mpsc.h"

enum { LANES = 4, ROUNDS = 12 /* messages: more than go into a lane */ };

/* ---- an uplink ---------------------------------------------------------------------------- */

typedef struct person {
    rc_sender c;
    uint64_t who, sent; /* sent: known to be committed */
    int in;
} person;

typedef struct post {
    rc_uplink_geometry g;
    rc_uplink *segment;
    sem_t wake[LANES], up;
    sem_t *wakes[LANES];
    uint64_t taken[LANES], free_at[LANES];
    rc_receiver receiver;
    person people[LANES];
    uint64_t who[LANES], expected[LANES]; /* the receiver's: whose lane it is, his next message */
    uint64_t received, people_made, next_ticket;
    int with_losses; /* messages of people may be missing: a receiver has died */
    int hostile;     /* anything may be anything */
} post;

static void receiver_opens(post *p)
{
    rc_receiver_map(&p->receiver, p->segment, &p->g, p->wakes, &p->up, p->taken, p->free_at);
    memset(p->free_at, 0, sizeof p->free_at);
    CHECK(rc_receiver_open(&p->receiver, 1, 1));
}

static void post_make(post *p, uint32_t lanes, uint64_t lane_bytes)
{
    memset(p, 0, sizeof *p);
    p->g.max_senders = lanes;
    p->g.lane_bytes = lane_bytes;
    p->g.tickets = rc_uplink_tickets(lanes, lane_bytes);
    p->g.max_message = rc_uplink_message_limit(lane_bytes);
    CHECK(lanes <= LANES && p->g.max_message <= LONGEST);
    p->segment = zeroed(rc_uplink_size(&p->g));
    rc_uplink_format(p->segment, &p->g, 1);
    rc_uplink_seal(p->segment);
    CHECK(sem_init(&p->up, 0, 0) == 0);
    for (int i = 0; i < LANES; i++) {
        CHECK(sem_init(&p->wake[i], 0, 0) == 0);
        p->wakes[i] = &p->wake[i];
    }
    receiver_opens(p);
}

static void post_free(post *p)
{
    for (int i = 0; i < LANES; i++)
        sem_destroy(&p->wake[i]);
    sem_destroy(&p->up);
    unzeroed(p->segment, rc_uplink_size(&p->g));
}

/* ---- messages ----------------------------------------------------------------------------- */

static uint32_t letter(uint8_t *bytes, uint64_t who, uint64_t n, uint64_t max)
{
    uint64_t h = mix(seed ^ mix(who * 1000003 + n));
    uint32_t length = h % 8 == 0 ? 0 : (uint32_t)(h % 8 < 3 ? max : (h >> 8) % (max + 1));
    for (uint32_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(h >> (i & 7) * 8) ^ (uint8_t)i;
    return length;
}

static uint16_t kind_of(uint64_t n) { return (uint16_t)n; }

/* ---- people ------------------------------------------------------------------------------- */

/* Take a lane whose lock is free, which is the caller's rule. 0: it is not free yet. */
static int person_enters(post *p, uint32_t lane)
{
    person *s = &p->people[lane];
    rc_sender_map(&s->c, p->segment, &p->g, lane, &p->wake[lane], &p->up);
    s->in = rc_sender_claim(&s->c);
    if (s->in) {
        s->who = ++p->people_made;
        s->sent = 0;
    }
    return s->in;
}

static rc_sending person_tries(post *p, person *s)
{
    uint8_t bytes[LONGEST];
    uint64_t ticket, before = s->c.last;
    uint32_t length = letter(bytes, s->who, s->sent, p->g.max_message);
    rc_sending state = rc_sender_try(&s->c, bytes, length, kind_of(s->sent), &ticket);
    if (state == RC_SENT) {
        CHECK(p->hostile || (s->c.last == ticket + 1 && ticket + 1 > before));
        s->sent++;
    }
    return state;
}

/* ---- receiving ---------------------------------------------------------------------------- */

/* Is it the next of its sender, and whole? With losses: or a later one. */
static void check_letter(post *p, const rc_item *item)
{
    uint8_t expected[LONGEST];
    uint64_t who = p->who[item->lane], n = p->expected[item->lane], tries = 0;
    uint32_t length = letter(expected, who, n, p->g.max_message);
    while (p->with_losses && kind_of(n) != item->kind && tries++ < 2)
        length = letter(expected, who, ++n, p->g.max_message);
    CHECK(item->kind == kind_of(n));
    CHECK(item->length == length);
    CHECK(length == 0 || memcmp(item->payload, expected, length) == 0);
    CHECK(item->ticket >= p->next_ticket);
    CHECK(p->with_losses || item->ticket == p->next_ticket);
    p->next_ticket = item->ticket + 1;
    p->expected[item->lane] = n + 1;
    p->received++;
}

static rc_taking take_letter(post *p)
{
    rc_item item;
    rc_taking what = rc_receiver_take(&p->receiver, &item);
    if (what == RC_TAKEN) {
        rc_receiver_free(&p->receiver, &item);
        rc_receiver_done(&p->receiver, item.ticket, item.lane, 0);
    }
    return what;
}

/* The same, checked. The bytes are looked at while they are the receiver's. */
static rc_taking take_and_check(post *p)
{
    rc_item item;
    rc_taking what = rc_receiver_take(&p->receiver, &item);
    if (what == RC_TAKEN) {
        check_letter(p, &item);
        rc_receiver_free(&p->receiver, &item);
        rc_receiver_done(&p->receiver, item.ticket, item.lane, 0);
    }
    return what;
}

static void know(post *p, uint32_t lane)
{
    p->who[lane] = p->people[lane].who;
    p->expected[lane] = 0;
}

static void take_all(post *p)
{
    rc_taking what;
    while ((what = take_and_check(p)) != RC_NOTHING) {
        CHECK(what == RC_TAKEN);
        in_time();
    }
    rc_receiver_wake_senders(&p->receiver);
}

/* Everybody who is in sends more than the lane holds, and all of it comes. */
static void check_that_it_works(post *p)
{
    for (int round = 0; round < ROUNDS; round++)
        for (uint32_t i = 0; i < p->g.max_senders; i++) {
            person *s = &p->people[i];
            rc_sending state = s->in ? person_tries(p, s) : RC_SENT;
            if (state == RC_NO_ROOM) {
                take_all(p);
                state = person_tries(p, s);
            }
            CHECK(state == RC_SENT);
        }
    take_all(p);
    p->with_losses = 0;
    for (uint32_t i = 0; i < p->g.max_senders; i++)
        if (p->people[i].in) {
            CHECK(p->expected[i] == p->people[i].sent);
            CHECK(rc_sender_flushed(&p->people[i].c, p->people[i].c.last));
        }
    CHECK(p->receiver.voided == 0 && p->receiver.evicted == 0);
}

/* ---- threads ------------------------------------------------------------------------------ */

typedef struct thread_of {
    pthread_t thread;
    post *p;
    person *s;
    uint64_t total;
    int flushes;
} thread_of;

static void *sends_all(void *with)
{
    thread_of *t = with;
    uint8_t bytes[LONGEST];
    throw_with(t->s->who);
    plan.jitter = 512;
    while (t->s->sent < t->total) {
        rc_sending state = person_tries(t->p, t->s);
        CHECK(state == RC_SENT || state == RC_NO_ROOM);
        if (state == RC_NO_ROOM) {
            in_time();
            rc_sender_sleep(&t->s->c, rc_sender_has_room,
                            letter(bytes, t->s->who, t->s->sent, t->p->g.max_message), deadline);
        }
        while (t->flushes && t->s->sent % 16 == 0 &&
               !rc_sender_flushed(&t->s->c, t->s->c.last)) {
            in_time();
            rc_sender_sleep(&t->s->c, rc_sender_flushed, t->s->c.last, deadline);
        }
    }
    return NULL;
}

static void run_threads(uint32_t lanes, uint64_t lane_bytes, uint64_t window, uint64_t total)
{
    post *p = zeroed(sizeof *p);
    thread_of t[LANES];
    post_make(p, lanes, lane_bytes);
    rc_store(&p->segment->window, window);
    for (uint32_t i = 0; i < lanes; i++) {
        CHECK(person_enters(p, i));
        know(p, i);
        t[i] = (thread_of){.p = p, .s = &p->people[i], .total = total, .flushes = i % 2 != 0};
    }
    for (uint32_t i = 0; i < lanes; i++)
        CHECK(pthread_create(&t[i].thread, NULL, sends_all, &t[i]) == 0);
    plan.jitter = 512;
    while (p->received < lanes * total) {
        in_time();
        for (uint64_t n = roll(20) + 1; n > 0 && take_and_check(p) == RC_TAKEN; n--)
            ;
        rc_receiver_wake_senders(&p->receiver);
        if (!rc_receiver_ready(&p->receiver))
            rc_receiver_wait(&p->receiver, ways[roll(3)], deadline);
    }
    for (uint32_t i = 0; i < lanes; i++)
        CHECK(pthread_join(t[i].thread, NULL) == 0);
    CHECK(take_and_check(p) == RC_NOTHING);
    CHECK(p->receiver.voided == 0 && p->receiver.evicted == 0);
    post_free(p);
    unzeroed(p, sizeof *p);
}

static void case_threads(void)
{
    run_threads(1, 256, 0, scaled(20000));
    run_threads(4, 256, 0, scaled(20000));
    run_threads(4, 4096, 3, scaled(10000));
    run_threads(3, 8192, 0, scaled(20000));
}

/* ---- steps -------------------------------------------------------------------------------- */

static void first_sends(void *with)
{
    post *p = with;
    (void)person_tries(p, &p->people[0]);
}

static void second_sends(void *with)
{
    post *p = with;
    (void)person_tries(p, &p->people[1]);
}

static void second_sends_many(void *with)
{
    for (int i = 0; i < 3; i++)
        second_sends(with);
}

static void receiver_takes(void *with) { take_all(with); }

static void receiver_takes_one(void *with)
{
    post *p = with;
    (void)take_letter(p);
    rc_receiver_wake_senders(&p->receiver);
}

static void second_sends_and_is_received(void *with)
{
    second_sends_many(with);
    take_all(with);
}

/* Two people, who have sent some messages each; the first `head` of all were taken. */
static void two_people(post *p, uint64_t messages, uint64_t head, uint64_t window)
{
    post_make(p, 2, RC_LANE_MIN);
    rc_store(&p->segment->window, window);
    for (uint32_t i = 0; i < 2; i++) {
        CHECK(person_enters(p, i));
        know(p, i);
    }
    for (uint64_t i = 0; i < messages; i++)
        if (person_tries(p, &p->people[i % 2]) == RC_NO_ROOM)
            take_all(p);
    for (uint64_t i = 0; i < head; i++)
        (void)take_and_check(p);
}

/* In one thread there is nothing for ThreadSanitizer to see. */
static uint64_t rounds(uint64_t most)
{
#ifdef __SANITIZE_THREAD__
    return most / 8;
#else
    return most;
#endif
}

/* Before each step of sending, others send and receive. */
static void case_interrupted_senders(void)
{
    static action *const others[] = {second_sends, second_sends_many, receiver_takes,
                                     second_sends_and_is_received};
    post p;
    scene.plot = "a sender is interrupted";
    for (size_t other = 0; other < 4; other++)
        for (scene.round = 0; scene.round < rounds(40); scene.round++) {
            int happened = 1;
            for (scene.at = 0; happened; scene.at++) {
                two_people(&p, scene.round, scene.round % 3, 0);
                happened = interrupted(first_sends, others[other], &p, scene.at);
                check_that_it_works(&p);
                post_free(&p);
            }
        }
}

static void receiver_takes_checked(void *with)
{
    post *p = with;
    (void)take_and_check(p);
}

static void case_interrupted_receivers(void)
{
    static action *const others[] = {first_sends, second_sends_many};
    post p;
    scene.plot = "the receiver is interrupted";
    for (size_t other = 0; other < 2; other++)
        for (scene.round = 0; scene.round < rounds(40); scene.round++) {
            int happened = 1;
            for (scene.at = 0; happened; scene.at++) {
                two_people(&p, scene.round, scene.round % 2, 0);
                happened = interrupted(receiver_takes_checked, others[other], &p, scene.at);
                check_that_it_works(&p);
                post_free(&p);
            }
        }
}

/* The lane of a sender that has died is free after everything was taken: at the second look at the
 * latest, for at the first one its last messages may be there. */
static void bury(post *p, uint32_t lane)
{
    int free_now = rc_receiver_reap(&p->receiver, lane);
    take_all(p);
    CHECK(free_now || rc_receiver_reap(&p->receiver, lane));
    p->people[lane].in = 0;
}

static void case_deaths_of_senders(void)
{
    post p;
    scene.plot = "a sender dies";
    for (scene.round = 0; scene.round < rounds(60); scene.round++) {
        int happened = 1;
        for (scene.at = 0; happened; scene.at++) {
            uint64_t before;
            two_people(&p, scene.round, scene.round % 3, 0);
            before = p.people[0].sent;
            happened = killed(first_sends, &p, scene.at);
            second_sends(&p); /* nobody waits for the dead */
            bury(&p, 0);
            CHECK(p.expected[0] >= before && p.expected[0] <= before + 1);
            CHECK(p.expected[1] == p.people[1].sent);
            for (int again = 0; again < 3; again++) {
                CHECK(person_enters(&p, 0));
                know(&p, 0);
                check_that_it_works(&p);
                if (again == 0)
                    rc_sender_leave(&p.people[0].c);
                else
                    bury(&p, 0);
            }
            post_free(&p);
        }
    }
}

static void first_leaves(void *with) { rc_sender_leave(&((post *)with)->people[0].c); }

static void case_deaths_of_leavers(void)
{
    post p;
    scene.plot = "a sender dies while it leaves";
    for (scene.round = 0; scene.round < rounds(20); scene.round++) {
        int happened = 1;
        for (scene.at = 0; happened; scene.at++) {
            two_people(&p, scene.round, scene.round % 3, 0);
            happened = killed(first_leaves, &p, scene.at);
            if ((rc_load(&p.segment->lanes[0].state) & 0xff) != RC_FREE)
                bury(&p, 0);
            take_all(&p);
            CHECK(person_enters(&p, 0));
            know(&p, 0);
            check_that_it_works(&p);
            post_free(&p);
        }
    }
}

/* Whatever the receiver was at: what was not taken comes, nothing comes twice, one message at most
 * is lost and then its sender is told, and everybody can send on as before. */
static void deaths_of_receivers(uint64_t window)
{
    post p;
    for (scene.round = 0; scene.round < scaled(200); scene.round++) {
        int happened = 1;
        for (scene.at = 0; happened; scene.at++) {
            uint64_t sent, unconfirmed = 0;
            two_people(&p, scene.round, 0, window);
            happened = killed(receiver_takes_one, &p, scene.at);
            p.with_losses = 1;
            receiver_opens(&p);
            take_all(&p);
            sent = p.people[0].sent + p.people[1].sent;
            for (int i = 0; i < 2; i++)
                unconfirmed += rc_load(&p.segment->lanes[i].unconfirmed);
            CHECK(p.received + 1 >= sent && p.received <= sent);
            CHECK(unconfirmed <= 1);
            check_that_it_works(&p);
            for (int i = 0; i < 2; i++) {
                const rc_lane *lane = &p.segment->lanes[i];
                CHECK(rc_load(&lane->taken_count) == p.people[i].sent);
                CHECK(rc_load(&lane->done_count) == p.people[i].sent);
            }
            post_free(&p);
        }
    }
}

static void case_deaths_of_receivers(void)
{
    scene.plot = "the receiver dies";
    deaths_of_receivers(0);
    scene.plot = "the receiver dies, and senders may have one message under way";
    deaths_of_receivers(1);
}

static void receiver_opens_again(void *with) { receiver_opens(with); }

static void case_deaths_of_successors(void)
{
    post p;
    scene.plot = "a receiver dies while it resumes";
    for (scene.round = 0; scene.round < rounds(40); scene.round++) {
        int happened = 1;
        for (scene.at = 0; happened; scene.at++) {
            two_people(&p, scene.round, 0, 2);
            (void)killed(receiver_takes_one, &p, roll(20));
            p.with_losses = 1;
            happened = killed(receiver_opens_again, &p, scene.at);
            receiver_opens(&p);
            take_all(&p);
            CHECK(p.received + 1 >= p.people[0].sent + p.people[1].sent);
            check_that_it_works(&p);
            post_free(&p);
        }
    }
}

/* ---- sleeping ----------------------------------------------------------------------------- */

static int found_when_woken;

static void receiver_falls_asleep(void *with)
{
    found_when_woken =
        rc_receiver_sleep(&((post *)with)->receiver, rc_now_ns() + 20000000);
}

/* The sender that waits has a full lane; or waits for its last message's acknowledgement. */
static void first_waits_for_room(void *with)
{
    post *p = with;
    found_when_woken =
        rc_sender_sleep(&p->people[0].c, rc_sender_has_room, p->g.max_message,
                        rc_now_ns() + 20000000);
}

static void first_waits_for_flush(void *with)
{
    post *p = with;
    found_when_woken = rc_sender_sleep(&p->people[0].c, rc_sender_flushed, p->people[0].c.last,
                                       rc_now_ns() + 20000000);
}

static void first_fills_lane(post *p)
{
    while (person_tries(p, &p->people[0]) == RC_SENT)
        ;
}

static int tokens_in(sem_t *semaphore)
{
    int tokens = -1;
    CHECK(sem_getvalue(semaphore, &tokens) == 0);
    return tokens;
}

/* Before each step of falling asleep the other side does what is waited for: found without fail,
 * and no token is left over. */
static void case_sleeping(void)
{
    static action *const sleepers[] = {receiver_falls_asleep, first_waits_for_room,
                                       first_waits_for_flush};
    post p;
    scene.plot = "what is waited for comes while one falls asleep";
    for (scene.round = 0; scene.round < 3; scene.round++) {
        int happened = 1, missed = 0;
        for (scene.at = 0; happened; scene.at++) {
            two_people(&p, 0, 0, 0);
            if (scene.round > 0)
                first_fills_lane(&p);
            happened = interrupted(sleepers[scene.round],
                                   scene.round ? receiver_takes : second_sends, &p, scene.at);
            CHECK(!happened || !missed); /* but the last step comes after the sleep */
            missed = !found_when_woken;
            CHECK(tokens_in(&p.up) == 0 && tokens_in(&p.wake[0]) == 0);
            take_all(&p);
            check_that_it_works(&p);
            post_free(&p);
        }
    }
}

/* ---- hostility ---------------------------------------------------------------------------- */

/* Every bit of the header flipped: rejected, or it is one that nothing depends on. */
static void case_headers(void)
{
    post p;
    rc_uplink_geometry found;
    uint64_t size;
    post_make(&p, 3, 512);
    size = rc_uplink_size(&p.g);
    CHECK(rc_uplink_check(p.segment, size, &found) == RC_OK);
    CHECK(rc_uplink_check(p.segment, size - 1, &found) == RC_BAD_SIZE);
    CHECK(rc_uplink_check(p.segment, size + 1, &found) == RC_BAD_SIZE);
    CHECK(rc_uplink_check(p.segment, RC_LANES_OFFSET - 1, &found) == RC_TOO_SMALL);
    for (size_t bit = 0; bit < sizeof(rc_uplink_identity) * 8; bit++) {
        uint8_t *byte = (uint8_t *)p.segment + bit / 8;
        size_t at = bit / 8;
        int free_to_change = (at >= offsetof(rc_uplink_identity, instance) &&
                              at < offsetof(rc_uplink_identity, tickets)) ||
                             at >= offsetof(rc_uplink_identity, created_ns);
        *byte ^= (uint8_t)(1 << bit % 8);
        CHECK((rc_uplink_check(p.segment, size, &found) == RC_OK) == free_to_change);
        *byte ^= (uint8_t)(1 << bit % 8);
    }
    post_free(&p);
}

static uint64_t wild(uint64_t now)
{
    static const uint64_t odd[] = {0, 1, 63, 64, 255, 256, 257, 1u << 16, UINT64_MAX,
                                   UINT64_MAX - 1, UINT64_MAX - 63, UINT64_C(1) << 63};
    switch (roll(4)) {
    case 0:
        return odd[roll(sizeof odd / sizeof *odd)];
    case 1:
        return mix(dice);
    case 2:
        return now + roll(512) - 256;
    default:
        return now ^ UINT64_C(1) << roll(64);
    }
}

/* Write a number that nobody expects: into the counters, the tickets or a record's head. */
static void spoil(post *p)
{
    uint8_t *bytes = (uint8_t *)p->segment;
    uint64_t from = sizeof(rc_uplink_identity), until = rc_uplink_records_offset(&p->g);
    uint64_t at = from + roll((until - from) / 8) * 8;
    uint64_t records = p->g.max_senders * p->g.lane_bytes / RC_RECORD_ALIGNMENT;
    if (roll(3) == 0)
        at = until + roll(records) * RC_RECORD_ALIGNMENT + roll(2) * 8;
    else if (roll(2)) /* tickets, which are few among the lanes' words */
        at = rc_uplink_tickets_offset(p->g.max_senders) + roll(p->g.tickets) * 8;
    rc_store((_Atomic uint64_t *)(bytes + at), wild(rc_load((_Atomic uint64_t *)(bytes + at))));
}

/* Whatever is taken lies within one lane. */
static void take_hostile(post *p)
{
    rc_item item;
    uint8_t copy[LONGEST];
    for (uint64_t i = 0; i < 2 * p->g.tickets; i++) {
        rc_taking what = rc_receiver_take(&p->receiver, &item);
        if (what == RC_NOTHING)
            return;
        if (what == RC_VOIDED)
            continue;
        const uint8_t *lane = rc_lane_at(&p->receiver.map, item.lane, 0);
        CHECK(item.lane < p->g.max_senders && item.length <= p->g.max_message);
        CHECK(item.payload >= lane && item.payload + item.length <= lane + p->g.lane_bytes);
        rc_copy_out(copy, item.payload, item.length);
        rc_receiver_free(&p->receiver, &item);
        rc_receiver_done(&p->receiver, item.ticket, item.lane, (int)roll(2));
    }
    rc_receiver_wake_senders(&p->receiver);
}

static void person_again(post *p, uint32_t lane)
{
    if (p->people[lane].in)
        rc_sender_leave(&p->people[lane].c);
    p->people[lane].in = 0;
    (void)rc_receiver_reap(&p->receiver, lane);
    (void)person_enters(p, lane);
}

/* Nobody leaves the segment, and no call lasts for ever. */
static void case_garbage(void)
{
    post *p = zeroed(sizeof *p);
    for (uint64_t round = 0; round < scaled(4000); round++) {
        in_time();
        post_make(p, 1 + (uint32_t)roll(LANES), RC_LANE_MIN << roll(3));
        p->hostile = 1;
        for (uint32_t i = 0; i < p->g.max_senders; i++)
            (void)person_enters(p, i);
        for (int i = 0; i < 40; i++) {
            uint32_t lane = (uint32_t)roll(p->g.max_senders);
            if (roll(2))
                spoil(p);
            if (p->people[lane].in && person_tries(p, &p->people[lane]) >= RC_SENDER_EVICTED)
                person_again(p, lane);
            if (roll(3) == 0)
                take_hostile(p);
            if (rc_receiver_hole(&p->receiver))
                rc_receiver_void_hole(&p->receiver);
            if (roll(16) == 0) {
                rc_receiver_map(&p->receiver, p->segment, &p->g, p->wakes, &p->up, p->taken,
                                p->free_at);
                (void)rc_receiver_open(&p->receiver, 1, 1);
            }
        }
        rc_receiver_close(&p->receiver);
        post_free(p);
    }
    unzeroed(p, sizeof *p);
}

/* A sender that fills a ticket without a record loses its lane, and nobody else anything. */
static void case_liar(void)
{
    post p;
    two_people(&p, 6, 2, 0);
    rc_store(rc_word_of(&p.receiver.map, 6), rc_filled_word(6, 0));
    second_sends(&p);
    take_hostile(&p);
    CHECK(p.receiver.voided == 1 && p.receiver.evicted == 1);
    CHECK(person_tries(&p, &p.people[0]) == RC_SENDER_EVICTED);
    CHECK(rc_sender_flushed(&p.people[1].c, p.people[1].c.last));
    CHECK(person_tries(&p, &p.people[1]) == RC_SENT);
    post_free(&p);
}

/* ---- all of it ---------------------------------------------------------------------------- */

static const test_case cases[] = {
    {"threads", case_threads},
    {"interrupted_senders", case_interrupted_senders},
    {"interrupted_receivers", case_interrupted_receivers},
    {"deaths_of_senders", case_deaths_of_senders},
    {"deaths_of_leavers", case_deaths_of_leavers},
    {"deaths_of_receivers", case_deaths_of_receivers},
    {"deaths_of_successors", case_deaths_of_successors},
    {"sleeping", case_sleeping},
    {"headers", case_headers},
    {"garbage", case_garbage},
    {"liar", case_liar},
};

int main(int argc, char **argv)
{
    return run_cases(argc, argv, cases, sizeof cases / sizeof *cases, NULL);
}

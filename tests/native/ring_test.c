/* ring_test.c - the C core alone: threads over one buffer, and every step of it held up or cut off.
 *
 *   ring_test [SEED [PERCENT [CASE]]]    all cases, each in a child process; or one, here
 *
 * Four kinds of cases.
 *
 *   Threads     One writer and its readers run freely. Lossless readers read payloads in place with
 *               plain loads, so ThreadSanitizer sees whether the cursors order them before the
 *               writer's next round; lossy readers copy as shm does.
 *   Steps       One thread; see steps.h.
 *   Streams     What is received in place; see streams.h.
 *   Hostility   Headers with every bit flipped and rings full of garbage, in buffers of the exact
 *               size, so that AddressSanitizer sees each byte read beyond them.
 */
#include "cases.h"
#include "steps.h"
#include "streams.h"

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
        (void)rc_take_token_until(g->ring.wake, rc_now_ns() + 10000000);
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
    uint64_t total = scaled(15000);
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
        } else if (!rc_writer_wait(&w, w.max_message, ways[0], rc_now_ns() + 200000)) {
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
 * made good by a look 100 ms later, but ends the case. Before each crossing the two threads meet,
 * so that one puts just when the other gives up looking, give or take a random few nanoseconds. */
typedef struct channel {
    ring ring;
    rc_writer writer;
    guest reader;
} channel;

typedef struct crossing {
    channel there, back;
    uint64_t rounds;
    uint64_t arrived; /* at all meetings, by both */
} crossing;

/* Short messages, so that only the descriptors fill the ring. */
static void channel_make(channel *x)
{
    ring_make(&x->ring, 4, 256);
    write_to(&x->writer, &x->ring);
    enter(&x->reader, &x->ring, 0, 0, ZERO);
    x->writer.max_message = x->reader.ring.max_message = 8;
}

static void channel_free(channel *x)
{
    leave(&x->reader);
    ring_free(&x->ring);
}

static void channel_send(channel *x)
{
    rc_writer *w = &x->writer;
    while (!try_put(w))
        if (!rc_writer_want(w, length_of(w->next, w->max_message)))
            CHECK(rc_take_token_until(w->space, deadline));
    rc_writer_release(w);
}

/* 0: the ring has ended. */
static int channel_receive(channel *x)
{
    rc_reader *r = &x->reader.ring;
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
    crossing *x = with;
    throw_with(1);
    for (uint64_t i = 0; i < x->rounds; i++) {
        meet(&x->arrived, 8);
        CHECK(channel_receive(&x->there));
        meet(&x->arrived, 8);
        channel_send(&x->back);
    }
    meet(&x->arrived, 8);
    CHECK(!channel_receive(&x->there));
    return NULL;
}

/* Messages cross: one thread falls asleep while the other publishes, in turn. */
static void case_ping_pong(void)
{
    crossing x = {.rounds = scaled(60000)};
    pthread_t other;
    channel_make(&x.there);
    channel_make(&x.back);
    CHECK(pthread_create(&other, NULL, echo, &x) == 0);
    for (uint64_t i = 0; i < x.rounds; i++) {
        meet(&x.arrived, 8);
        channel_send(&x.there);
        meet(&x.arrived, 8);
        CHECK(channel_receive(&x.back));
    }
    meet(&x.arrived, 8);
    rc_writer_end(&x.there.writer);
    CHECK(pthread_join(other, NULL) == 0);
    channel_free(&x.there);
    channel_free(&x.back);
}

static void *swallow(void *with)
{
    crossing *x = with;
    throw_with(1);
    for (uint64_t i = 0; i < x->rounds; i++) {
        meet(&x->arrived, 8);
        CHECK(channel_receive(&x->there));
    }
    while (channel_receive(&x->there))
        ;
    return NULL;
}

/* Room crosses: the writer falls asleep on a full ring while the reader lets go of one message. */
static void case_waiting_for_room(void)
{
    crossing x = {.rounds = scaled(120000)};
    pthread_t other;
    channel_make(&x.there);
    while (try_put(&x.there.writer))
        rc_writer_release(&x.there.writer);
    CHECK(pthread_create(&other, NULL, swallow, &x) == 0);
    for (uint64_t i = 0; i < x.rounds; i++) {
        meet(&x.arrived, 8);
        channel_send(&x.there);
    }
    rc_writer_end(&x.there.writer);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(x.there.reader.ring.received == x.rounds + 4);
    channel_free(&x.there);
}

/* A full ring, and a writer that has said what it wants. */
static void fill_and_want(stage *s)
{
    stage_set(s, 0);
    put_many(s);
    CHECK(!rc_writer_want(&s->writer, s->writer.max_message));
    while (sem_trywait(&s->ring.space) == 0)
        ;
}

static void read_all(void *with) { drain(&((stage *)with)->guests[RESIDENT]); }

static void demote_and_step_down(void *with)
{
    demote_resident(with);
    resident_steps_down(with);
}

/* Whoever makes room posts the token that the writer sleeps for, and that room is enough. */
static void case_room_wakes_the_writer(void)
{
    static action *const ways_out[] = {read_all, resident_leaves, demote_and_step_down};
    for (int i = 0; i < 3; i++) {
        stage s;
        uint64_t start;
        fill_and_want(&s);
        ways_out[i](&s);
        CHECK(sem_trywait(&s.ring.space) == 0 && sem_trywait(&s.ring.space) != 0);
        CHECK(rc_writer_room(&s.writer, s.writer.max_message, &start));
        CHECK(rc_load(&s.writer.control->wanted) == 0);
        stage_clear(&s);
    }
}

/* ---- hostility --------------------------------------------------------------------------- */

static rc_check_result check_pair(const ring *x, uint64_t data_size, uint64_t control_size)
{
    rc_geometry found;
    return rc_check_segments(x->data, data_size, x->control, control_size, &found);
}

static uint64_t data_size_of(const ring *x)
{
    return rc_data_size(&x->geometry);
}

/* Is this byte of a header one that has to be right? When the ring was made does not. */
static int matters(uint64_t byte)
{
    return byte < offsetof(rc_identity, created_ns) ||
           (byte >= offsetof(rc_identity, max_topics) && byte < offsetof(rc_identity, zero));
}

/* Flip each bit of a header, and each byte as a whole: whatever matters is noticed. */
static void flip_all(ring *x, uint8_t *header, uint64_t size)
{
    for (uint64_t byte = 0; byte < size; byte++)
        for (unsigned flip = 0; flip <= 8; flip++) {
            uint8_t mask = (uint8_t)(flip < 8 ? 1u << flip : 0xff);
            header[byte] ^= mask;
            rc_check_result found = check_pair(x, data_size_of(x), rc_control_size(&x->geometry));
            CHECK((found == RC_OK) == !matters(byte));
            header[byte] ^= mask;
        }
}

/* Both segments cut to other lengths, each in a buffer of just that length. */
static void cut_all(const ring *x)
{
    const uint64_t full[] = {data_size_of(x), rc_control_size(&x->geometry)};
    const uint64_t lengths[] = {1, 8, 79, 80, 639, 640, 641, 1023, 4095, 4096, 4097,
                                UINT64_MAX /* all but the last byte */};
    for (int which = 0; which < 2; which++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            ring cut = *x;
            uint64_t size[] = {full[0], full[1]};
            size[which] = lengths[i] < full[which] ? lengths[i] : full[which] - 1;
            void *copy = zeroed(size[which]);
            memcpy(copy, which ? x->control : x->data, size[which]);
            *(which ? &cut.control : &cut.data) = copy;
            rc_check_result found = check_pair(&cut, size[0], size[1]);
            CHECK(found == RC_TOO_SMALL || found == RC_BAD_SIZE);
            unzeroed(copy, size[which]);
        }
}

static void check_faults(ring *x)
{
    static const struct {
        uint64_t field, value;
        rc_check_result fault;
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
        {offsetof(rc_identity, max_topics), 0, RC_BAD_GEOMETRY},
        {offsetof(rc_identity, max_topics), RC_TOPICS_MAX + 1, RC_BAD_GEOMETRY},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint64_t *field = (uint64_t *)((uint8_t *)x->data + wrong[i].field), before = *field;
        *field = wrong[i].value;
        CHECK(check_pair(x, data_size_of(x), rc_control_size(&x->geometry)) == wrong[i].fault);
        *field = before;
    }
    header_of(x)->identity.magic = __builtin_bswap64(RC_MAGIC_DATA);
    CHECK(check_pair(x, data_size_of(x), rc_control_size(&x->geometry)) == RC_OTHER_ENDIAN);
    header_of(x)->identity.magic = RC_MAGIC_DATA;
}

static void case_segments(void)
{
    ring x;
    rc_geometry found;
    ring_make(&x, 8, 256);
    CHECK(rc_check_segments(x.data, data_size_of(&x), x.control, rc_control_size(&x.geometry),
                            &found) == RC_OK);
    CHECK(found.slots == 8 && found.capacity == 256 && found.max_message == 64 &&
          found.max_readers == READERS && found.max_topics == TOPICS &&
          found.instance == x.geometry.instance);
    flip_all(&x, x.data, RC_DESCRIPTORS_OFFSET);
    flip_all(&x, x.control, RC_READERS_OFFSET);
    cut_all(&x);
    check_faults(&x);
    ring_free(&x);
}

/* The topic table, what readers want of it, and what is answered. */
static void make_hostile_topics(ring *x)
{
    const rc_geometry *g = &x->geometry;
    rc_topic *rows = (rc_topic *)((uint8_t *)x->data + rc_topics_offset(g));
    _Atomic uint64_t *interest = rc_interest_at(x->control, g);
    rc_store(&header_of(x)->topics, (uint32_t)(roll(2) ? roll(TOPICS + 1) : odd_number(TOPICS)));
    for (uint32_t i = 0; i < TOPICS; i++) {
        memset(rows[i].name, "ab*\xff"[roll(5)], sizeof rows[i].name); /* without a NUL, but for \0 */
        rc_store(&rows[i].version, odd_number(2));
        rc_store(&rows[i].seq1, odd_number(8));
    }
    for (uint32_t row = 0; row < TOPICS + RC_INTEREST_ROWS; row++)
        rc_store(&interest[row], odd_number(0));
    for (uint32_t i = 0; i < READERS; i++) {
        rc_wishes *wishes = (rc_wishes *)((uint8_t *)x->control + rc_wishes_offset(g)) + i;
        rc_answer *answer = (rc_answer *)((uint8_t *)x->data + rc_answers_offset(g)) + i;
        rc_store(&wishes->version, odd_number(2));
        rc_store(&wishes->length, odd_number(RC_WISH_MAX));
        rc_store(&answer->version, odd_number(2));
        rc_store(&answer->length, odd_number(RC_ANSWER_MAX));
    }
}

/* Read all that is said of topics. Lists and answers are copied into buffers of just their size. */
static void read_hostile_topics(ring *x)
{
    const rc_geometry *g = &x->geometry;
    char *wishes_text = malloc(RC_WISH_MAX), *answer_text = malloc(RC_ANSWER_MAX);
    uint64_t version;
    rc_topic_info info;
    for (uint32_t i = 0; i < READERS; i++) {
        const rc_wishes *wishes = (rc_wishes *)((uint8_t *)x->control + rc_wishes_offset(g)) + i;
        const rc_answer *answer = (rc_answer *)((uint8_t *)x->data + rc_answers_offset(g)) + i;
        CHECK(rc_wishes_read(wishes, wishes_text, &version) <= (int64_t)RC_WISH_MAX);
        CHECK(rc_answer_read(answer, answer_text, &version) <= (int64_t)RC_ANSWER_MAX);
    }
    CHECK(rc_topics_count(header_of(x), TOPICS) <= TOPICS);
    for (uint32_t i = 0; i < TOPICS; i++) {
        CHECK(rc_topic_name_length(&rc_topics_at(x->data, g)[i]) <= RC_TOPIC_NAME_MAX);
        CHECK(rc_topic_read(&rc_topics_at(x->data, g)[i], &info) || info.reason[0] == 0);
    }
    free(answer_text);
    free(wishes_text);
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
    rc_store(&c->choosers[0], odd_number(0));
    rc_store(&c->gating[0], odd_number(0));
    rc_store(&c->enough, odd_number(about));
    rc_store(&c->wanted, odd_number(about));
    make_hostile_topics(x);
}

/* What a reader that chooses does before it looks at a message. */
static void choose_hostile(rc_reader *r, rc_filter *f)
{
    rc_descriptor gathered[20];
    uint64_t gone, limit = 1 + roll(20);
    uint64_t n = rc_reader_available(r, r->slots), count = rc_reader_gather(r, n, gathered, limit, &gone);
    CHECK(count <= limit && count <= gone && gone <= n);
    rc_filter_learn(f);
    (void)rc_reader_pass(r, roll(20));
    rc_reader snapshot = rc_reader_snapshot(r);
    (void)rc_reader_ready(&snapshot);
}

static void read_hostile(ring *x, int lossy, uint64_t about)
{
    static uint8_t copy[LONGEST];
    guest g;
    rc_reader *r = &g.ring;
    rc_descriptor m;
    rc_filter filter;
    int chooses = (int)roll(2);
    memset(&g, 0, sizeof g);
    rc_reader_map(r, x->data, x->control, &x->geometry, 0, &x->wake[0], &x->space);
    rc_reader_claim(r, lossy);
    CHECK(rc_filter_begin(&filter, x->data, x->control, &x->geometry, 0, chooses, (int)roll(2),
                          (int)roll(2)) == 0);
    CHECK(rc_filter_add(&filter, "*a", 2) == 0);
    r->filter = chooses ? &filter : NULL;
    (void)rc_reader_join(r, about - roll(8));
    read_hostile_topics(x);
    for (int i = 0; i < 8; i++) {
        if (chooses)
            choose_hostile(r, &filter);
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
    }
    (void)rc_reader_sleep(r, 0);
    (void)rc_filter_remove(&filter, "*a", 2);
    rc_filter_end(&filter);
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
        if (roll(4) == 0)
            (void)rc_writer_add_topic(&w, "new", 3, 1);
        rc_writer_release(&w);
    }
}

static void case_garbage(void)
{
    for (uint64_t round = 0; round < scaled(10000); round++) {
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
    while (rc_lock_held(b.lock_fd, 0) != 0) /* until fork() has returned in the child, no longer */
        in_time();
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
    linger(40000);
}

static int stop_opening;

/* Open and close endpoints, slowly at one step of the closing. */
static void *open_and_close(void *with)
{
    rc_endpoint e;
    for (uint64_t n = 0; !__atomic_load_n(&stop_opening, __ATOMIC_RELAXED); n++) {
        CHECK(rc_endpoint_init(&e, with) == 0);
        (void)rc_lock_try(e.lock_fd, 0);
        (void)interrupted(finish, hesitate, &e, n % 2);
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

static int inside(bedroom *b)
{
    pthread_mutex_lock(&b->endpoint.mutex);
    int n = b->endpoint.inside;
    pthread_mutex_unlock(&b->endpoint.mutex);
    return n;
}

static void bedroom_make(bedroom *b)
{
    const char *name = segment_make();
    memset(b, 0, sizeof *b);
    CHECK(rc_endpoint_init(&b->endpoint, name) == 0 && shm_unlink(name) == 0);
    CHECK(sem_init(&b->semaphore, 0, 0) == 0);
}

static void bedroom_free(bedroom *b)
{
    rc_endpoint_finish(&b->endpoint);
    sem_destroy(&b->semaphore);
}

static void *next_in_turn(void *with)
{
    bedroom *b = with;
    while (rc_endpoint_turn(&b->endpoint, deadline) != RC_MY_TURN)
        in_time();
    b->slept++;
    rc_endpoint_wake_up(&b->endpoint);
    return NULL;
}

/* Whoever wakes up lets the next one sleep, who waits for nothing else. */
static void case_turn_is_passed_on(void)
{
    bedroom b;
    pthread_t other;
    bedroom_make(&b);
    CHECK(rc_endpoint_turn(&b.endpoint, deadline) == RC_MY_TURN);
    CHECK(pthread_create(&other, NULL, next_in_turn, &b) == 0);
    while (inside(&b) != 2)
        in_time();
    CHECK(!rc_endpoint_empty(&b.endpoint, rc_now_ns()));
    b.slept++;
    rc_endpoint_wake_up(&b.endpoint);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(b.slept == 2 && rc_endpoint_empty(&b.endpoint, 0));
    bedroom_free(&b);
}

/* Threads sleep in turn; closing wakes all of them, and waits until the last is out. */
static void case_sleeping_in_turn(void)
{
    for (uint64_t round = 0; round < scaled(40); round++) {
        bedroom b;
        pthread_t threads[4];
        bedroom_make(&b);
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
        CHECK(inside(&b) == 0 && b.slept % 2 == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        bedroom_free(&b);
    }
}

/* Would the next wait begin by spinning, if the last one brought so many messages? */
static int begins_by_spinning(const rc_waits *w, int64_t spin_ns, uint64_t brought)
{
    rc_waits copy = *w;
    rc_wait_strategy strategy = {RC_BLOCKING, spin_ns};
    return rc_wait_begins(&copy, strategy, w->taken + brought).spin_ns == spin_ns;
}

/* A wait that takes so long, after the last one brought a message. */
static void wait_for(rc_waits *w, int64_t spin_ns, int64_t took_ns)
{
    rc_wait_strategy strategy = {RC_BLOCKING, spin_ns};
    (void)rc_wait_begins(w, strategy, w->taken + 1);
    w->began_ns -= took_ns;
    rc_wait_ended(w, strategy);
}

/* After two long waits in a row one pauses: for 1 short wait, and after each long one that follows for
 * 2, 4 and so on up to RC_PAUSE_MAX. */
static void case_long_waits(void)
{
    const int64_t spin = INT64_C(1000000000000); /* so long that the time the test takes is nothing */
    const int64_t is_long = RC_LONG_SPINS * spin, is_short = is_long / 2;
    rc_waits w = {0};
    for (uint32_t round = 0; round < 3; round++) {
        wait_for(&w, spin, is_long);
        CHECK(begins_by_spinning(&w, spin, 1));
        wait_for(&w, spin, is_short);
        wait_for(&w, spin, is_long);
        CHECK(begins_by_spinning(&w, spin, 1)); /* not in a row */
        for (int32_t pause = 1; pause <= 4 * RC_PAUSE_MAX; pause *= 2) {
            wait_for(&w, spin, is_long);
            for (int32_t i = pause < RC_PAUSE_MAX ? pause : RC_PAUSE_MAX; i > 0; i--) {
                for (uint64_t k = roll(5); k > 0; k--)
                    wait_for(&w, spin, is_long);
                CHECK(!begins_by_spinning(&w, spin, 1));
                wait_for(&w, spin, is_short);
            }
            CHECK(begins_by_spinning(&w, spin, 1));
        }
        wait_for(&w, spin, 0);
    }
}

/* A wait that brought a flood is not long. */
static void case_floods(void)
{
    const int64_t spin = INT64_C(1000000000000);
    const uint64_t flood = 2 * RC_LONG_SPINS * RC_FLOOD_SPINS;
    rc_waits w = {0};
    wait_for(&w, spin, RC_LONG_SPINS * spin);
    wait_for(&w, spin, RC_LONG_SPINS * spin);
    CHECK(begins_by_spinning(&w, spin, flood));
    CHECK(!begins_by_spinning(&w, spin, flood / 4));
}

/* ---- all of it --------------------------------------------------------------------------- */

static const test_case cases[] = {
    {"lossless", case_lossless},
    {"lossy", case_lossy},
    {"joins_and_leaves", case_joins_and_leaves},
    {"demotion_and_eviction", case_demotion_and_eviction},
    {"successions", case_successions},
    {"batches", case_batches},
    {"ping_pong", case_ping_pong},
    {"waiting_for_room", case_waiting_for_room},
    {"room_wakes_the_writer", case_room_wakes_the_writer},
    {"interruptions", case_interruptions},
    {"deaths", case_deaths},
    {"headers_are_held", case_headers_are_held},
    {"oldest_header_is_held", case_oldest_header_is_held},
    {"receiving_writers_die", case_receiving_writers_die},
    {"segments", case_segments},
    {"garbage", case_garbage},
    {"spoiled_headers", case_spoiled_headers},
    {"wild_cursor", case_wild_cursor},
    {"locks", case_locks},
    {"fork", case_fork},
    {"fork_amid_opening_and_closing", case_fork_amid_opening_and_closing},
    {"turn_is_passed_on", case_turn_is_passed_on},
    {"sleeping_in_turn", case_sleeping_in_turn},
    {"long_waits", case_long_waits},
    {"floods", case_floods},
};

static void clean(pid_t child) { shm_unlink(segment_of(child)); }

int main(int argc, char **argv)
{
    return run_cases(argc, argv, cases, sizeof cases / sizeof *cases, clean);
}

/* topics_test.c - topics in the C core: names and patterns, filters, readers that choose, and each step
 * of choosing, sleeping and waking held up or cut off.
 *
 *   topics_test [SEED [PERCENT [CASE]]]    all cases, each in a child process; or one, here
 *
 * Threads run freely, as in ring_test.c: a reader has one thread that works it and sleeps, and another
 * that changes what is wanted meanwhile. For steps see topics_steps.h.
 */
#include "topics_steps.h"

/* ---- names and patterns -------------------------------------------------------------------- */

static uint32_t random_text(char *text, const char *letters, uint64_t longest)
{
    uint32_t n = (uint32_t)roll(longest + 1);
    for (uint32_t i = 0; i < n; i++)
        text[i] = letters[roll(strlen(letters))];
    text[n] = 0;
    return n;
}

static void case_patterns(void)
{
    uint64_t matches = 0;
    for (uint64_t round = 0; round < scaled(400000); round++) {
        char pattern[16], name[16];
        uint32_t length = random_text(pattern, "ab*", 7), name_length = random_text(name, "ab", 9);
        int found = rc_matches(pattern, length, name, name_length);
        CHECK(found == matches_by_definition(pattern, name));
        matches += (uint64_t)found;
    }
    CHECK(matches > 0);
    CHECK(rc_matches("a?[b]", 5, "a?[b]", 5) && !rc_matches("a?", 2, "ab", 2)); /* * alone */
    CHECK(rc_matches("\xc3*", 2, "\xc3\xa4", 2) && !rc_matches("A", 1, "a", 1));
}

/* A pattern and a name that make the matcher go back as often as it can: no more than their product. */
static void case_patterns_are_bounded(void)
{
    char pattern[RC_TOPIC_NAME_MAX], name[RC_TOPIC_NAME_MAX];
    memset(pattern, 'a', sizeof pattern);
    memset(name, 'a', sizeof name);
    for (size_t i = 0; i < sizeof pattern; i += 2)
        pattern[i] = '*';
    pattern[sizeof pattern - 2] = 'b';
    for (uint64_t round = 0; round < scaled(2000); round++) {
        in_time();
        CHECK(!rc_matches(pattern, sizeof pattern, name, sizeof name));
    }
}

static void case_hash(void)
{
    static const struct {
        const char *text;
        uint64_t hash;
    } vectors[] = {
        {"", UINT64_C(0xef46db3751d8e999)},
        {"a", UINT64_C(0xd24ec4f1a98c6e5b)},
        {"abc", UINT64_C(0x44bc2cf5ad770999)},
        {"Nobody inspects the spammish repetition", UINT64_C(0xfbcea83c8a378bf1)},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        CHECK(rc_hash((const uint8_t *)vectors[i].text, strlen(vectors[i].text), 0) ==
              vectors[i].hash);
}

/* ---- a filter and its model ---------------------------------------------------------------- */

static void case_filters(void)
{
    for (uint64_t round = 0; round < scaled(400); round++) {
        ring x;
        rc_writer w;
        chooser c;
        in_time();
        ring_make(&x, 4, 256);
        write_to(&w, &x);
        chooser_enters(&c, &x, 1, 0, LATEST);
        for (uint64_t n = roll(60); n > 0; n--) {
            if (roll(4) == 0 && w.topic_count < TOPICS) {
                const char *name = topic_names[w.topic_count];
                CHECK(rc_writer_add_topic(&w, name, (uint32_t)strlen(name), 1) > 0);
                CHECK(rc_filter_is_behind(&c.filter) == (int)rc_load(&c.filter.open));
                int wants = rc_filter_wants(&c.filter, w.topic_count);
                CHECK(wants == (rc_load(&c.filter.open) ? RC_LEARN : RC_UNWANTED));
            }
            if (roll(3)) /* else it learns them later, and its list changes meanwhile */
                rc_filter_learn(&c.filter);
            change(&c);
        }
        rc_filter_learn(&c.filter);
        check_filter(&c, &w);
        chooser_leaves(&c);
        chooser_enters(&c, &x, 1, 0, LATEST); /* the slot's next owner wants nothing */
        check_filter(&c, &w);
        chooser_leaves(&c);
        ring_free(&x);
    }
}

/* The list takes so many bytes and no more, and what does not go in changes nothing. */
static void case_a_list_is_bounded(void)
{
    static char text[RC_WISH_MAX];
    ring x;
    chooser c;
    char name[RC_TOPIC_NAME_MAX + 1];
    uint64_t added = 0, version;
    ring_make(&x, 4, 256);
    chooser_enters(&c, &x, 1, 0, LATEST);
    memset(name, 'n', sizeof name);
    for (;; added++) {
        int digits = snprintf(name, sizeof name, "%06" PRIu64, added);
        name[digits] = 'n';
        name[RC_TOPIC_NAME_MAX] = 0;
        int error = rc_filter_add(&c.filter, name, RC_TOPIC_NAME_MAX);
        if (error) {
            CHECK(error == ENOSPC && c.filter.count == added);
            break;
        }
    }
    CHECK(added == RC_WANT_MAX / (RC_TOPIC_NAME_MAX + 1));
    rc_filter_publish(&c.filter);
    int64_t length = rc_wishes_read(wishes_of(&x, 1), text, &version);
    CHECK(length == (int64_t)(added * (RC_TOPIC_NAME_MAX + 1)) && text[length - 1] == 0);
    while (c.filter.text_bytes < RC_WANT_MAX) { /* to the last byte */
        snprintf(name, sizeof name, "%" PRIu64, 100 + c.filter.text_bytes % 800);
        uint64_t room = RC_WANT_MAX - c.filter.text_bytes;
        uint32_t n = room > 8 ? 3 : (uint32_t)room - 1;
        memcpy(name + (n > 3 ? 3 : n), "123456", 6);
        CHECK(rc_filter_add(&c.filter, name, n) == 0);
    }
    rc_filter_publish(&c.filter);
    CHECK(rc_wishes_read(wishes_of(&x, 1), text, &version) == RC_WANT_MAX);
    CHECK(text[RC_WANT_MAX - 1] == 0 && memcmp(text, "000000n", 7) == 0);
    chooser_leaves(&c);
    ring_free(&x);
}

/* ---- threads ------------------------------------------------------------------------------- */

typedef struct party {
    pthread_t worker, changer;
    chooser chooser;
    uint64_t total;
    uint64_t batch; /* 0: one at a time */
    rc_wait_strategy how;
    int over;
} party;

/* Sleep as a thread does that has let others work the reader. It sleeps for as long as it likes: a
 * wake-up that is lost is not made good by a look after a slice. */
static void wait_for_wanted(party *p)
{
    chooser *c = &p->chooser;
    in_time();
    rc_filter_learn(&c->filter);
    rc_reader_flush(&c->guest.ring, c->guest.ring.next);
    rc_reader snapshot = rc_reader_snapshot(&c->guest.ring);
    pthread_mutex_unlock(&c->work);
    pthread_mutex_lock(&c->turn);
    c->sleeping = 1;
    pthread_mutex_unlock(&c->turn);
    if (p->how.kind == RC_BLOCKING)
        CHECK(rc_reader_sleep(&snapshot, deadline));
    else
        (void)rc_reader_wait(&snapshot, p->how, deadline);
    pthread_mutex_lock(&c->turn);
    c->sleeping = 0;
    pthread_mutex_unlock(&c->turn);
    pthread_mutex_lock(&c->work);
}

static void *work(void *with)
{
    party *p = with;
    chooser *c = &p->chooser;
    rc_reader *r = &c->guest.ring;
    rc_result result = RC_EMPTY;
    throw_with(r->index + 1);
    plan.jitter = 256;
    pthread_mutex_lock(&c->work);
    while (result != RC_ENDED) {
        result = choose(c, p->batch ? 1 + roll(p->batch) : 0);
        if (result == RC_EMPTY)
            wait_for_wanted(p);
        if (roll(16) == 0) { /* let the other thread in */
            pthread_mutex_unlock(&c->work);
            sched_yield();
            pthread_mutex_lock(&c->work);
        }
    }
    CHECK(r->next == p->total && (r->lossy || r->lost == 0));
    CHECK(r->received + r->skipped + r->lost == p->total);
    p->over = 1;
    pthread_mutex_unlock(&c->work);
    return NULL;
}

static void *change_at_random(void *with)
{
    party *p = with;
    chooser *c = &p->chooser;
    int over = 0;
    throw_with(100 + c->guest.ring.index);
    plan.jitter = 256;
    while (!over) {
        linger(roll(2000));
        sched_yield();
        pthread_mutex_lock(&c->work);
        over = p->over;
        if (!over)
            change(c);
        pthread_mutex_unlock(&c->work);
    }
    return NULL;
}

static void run_choosers(uint64_t slots, uint64_t capacity, uint32_t lossless, uint32_t lossy,
                         uint64_t total)
{
    ring x;
    rc_writer w;
    party p[READERS] = {0};
    ring_make(&x, slots, capacity);
    write_to(&w, &x);
    arrival_every = total / (TOPICS + 2) + 1;
    for (uint32_t i = 0; i < lossless + lossy; i++) {
        chooser_enters(&p[i].chooser, &x, i, i >= lossless, ZERO);
        p[i].total = total;
        p[i].how = ways[i % 3 == 1 ? 2 : 0];
        p[i].batch = i % 2 ? BATCH : 0;
        CHECK(pthread_create(&p[i].worker, NULL, work, &p[i]) == 0);
        CHECK(pthread_create(&p[i].changer, NULL, change_at_random, &p[i]) == 0);
    }
    plan.jitter = 256;
    while (w.next < total) {
        add_rows(&w);
        put(&w, ways[0]);
        if (roll(64) == 0)
            sched_yield();
    }
    rc_writer_end(&w);
    for (uint32_t i = 0; i < lossless + lossy; i++) {
        CHECK(pthread_join(p[i].worker, NULL) == 0);
        CHECK(pthread_join(p[i].changer, NULL) == 0);
        chooser_leaves(&p[i].chooser);
    }
    check_rows(&w, 0);
    CHECK(w.evictions == 0);
    ring_free(&x);
}

static void case_choosers(void)
{
    run_choosers(8, 256, 2, 0, scaled(12000));
    run_choosers(64, 4096, 3, 0, scaled(12000));
    run_choosers(16, 1024, 2, 2, scaled(12000));
    run_choosers(32, 1024, 0, 3, scaled(20000));
}

/* ---- one is woken, and by nothing else ----------------------------------------------------- */

/* Who wants nothing that comes is woken once for each eighth of the ring, at most, and a writer that
 * lets it look when it is woken never finds the ring full. In each ring it is nearly always messages, or
 * nearly always bytes, that make up the eighth. */
static void case_an_eighth(void)
{
    static const uint64_t sizes[][3] = {
        {64, 16384, 8}, {256, 16384, 8}, {1024, 4096, 128}, {1024, 1024, 16}};
    for (int i = 0; i < 8; i++) {
        const uint64_t slots = sizes[i / 2][0], capacity = sizes[i / 2][1];
        uint64_t wakes = 0, total = scaled(250000);
        hall h;
        arrival_every = UINT64_MAX / 2; /* one topic, and not the one that it wants */
        do
            hall_make(&h, slots, capacity, i % 2);
        while ((h.chooser.others || h.chooser.events) && (hall_free(&h), 1));
        h.writer.max_message = h.chooser.guest.ring.max_message = sizes[i / 2][2];
        want(&h.chooser, "zz");
        fall_asleep(&h);
        while (h.writer.next < total) {
            for (uint64_t n = 1 + roll(3); n > 0; n--)
                CHECK(try_put_topical(&h.writer));
            rc_writer_release(&h.writer);
            if (wake_up(&h)) {
                wakes++;
                fall_asleep(&h);
            }
            CHECK(h.asleep);
        }
        CHECK(wakes > 1); /* the first topic, which might be the one, is no eighth */
        CHECK(wakes <= 1 + h.writer.next * 8 / slots + h.writer.head * 8 / capacity);
        CHECK(h.chooser.guest.ring.received == 0 && h.chooser.guest.ring.lost == 0);
        hall_free(&h);
    }
}

/* ---- what keeps one awake ------------------------------------------------------------------ */

/* A reader that wants none of what follows. */
static void hall_make_for_nothing(hall *h, uint64_t slots, uint64_t capacity, int lossy)
{
    do
        hall_make(h, slots, capacity, lossy);
    while (h->chooser.others && (hall_free(h), 1));
}

static int put_unwanted(hall *h, uint32_t length)
{
    static const uint8_t bytes[LONGEST];
    rc_descriptor m = {.f.kind = RC_KIND_BINARY};
    int done = rc_writer_try_put(&h->writer, &m, bytes, length);
    rc_writer_release(&h->writer);
    return done;
}

/* The writer has looked at the cursors, in vain; then the reader stores exactly the one that is wanted,
 * which wakes nobody. It does not sleep on that: it can give enough. The messages are so few that they are
 * no eighth of the slots. */
static void case_gives_enough(void)
{
    hall h;
    rc_reader *r = &h.chooser.guest.ring;
    hall_make_for_nothing(&h, 256, 1024, 0);
    while (put_unwanted(&h, 96))
        ;
    CHECK(!rc_writer_want(&h.writer, 96));
    uint64_t wanted = rc_load(&h.writer.control->wanted) - 1;
    CHECK(rc_reader_pass(r, wanted) == wanted);
    rc_reader_flush(r, r->next);
    CHECK(wanted < rc_load(&h.writer.control->enough) - 1 && sem_trywait(r->space) != 0);
    h.snapshot = rc_reader_snapshot(r);
    h.snapshot.capacity = r->capacity * 8; /* so that nothing is an eighth of it */
    CHECK(rc_reader_ready(&h.snapshot));
    CHECK(rc_reader_pass(r, UINT64_MAX) == h.snapshot.next - wanted);
    rc_reader_flush(r, r->next);
    CHECK(sem_trywait(r->space) == 0);
    hall_free(&h);
}

/* A reader that spins is not woken for an eighth of the ring. It comes back by itself to store its cursor,
 * after an eighth of the arena, too, however few messages that is. */
static void case_passes_over_bytes(void)
{
    for (int lossy = 0; lossy < 2; lossy++) {
        hall h;
        hall_make_for_nothing(&h, 64, 1024, lossy);
        h.snapshot = rc_reader_snapshot(&h.chooser.guest.ring);
        CHECK(put_unwanted(&h, 1024 / RC_NUDGES - 8) && !rc_reader_ready(&h.snapshot));
        CHECK(put_unwanted(&h, 8) && rc_reader_ready(&h.snapshot));
        CHECK(h.snapshot.next == 2);
        hall_free(&h);
    }
}

/* ---- crossings ----------------------------------------------------------------------------- */

/* A chooser falls asleep while something that it wants is published, for every reason there is to want
 * it. It sleeps for as long as it likes, and the writer publishes nothing more until it is awake. */
typedef struct crossing {
    party reader;
    rc_writer writer;
    uint64_t arrived; /* at all meetings, by both */
    uint64_t got; /* messages, by the reader */
    uint64_t rounds;
} crossing;

static void *receive_each(void *with)
{
    crossing *x = with;
    chooser *c = &x->reader.chooser;
    rc_descriptor m;
    throw_with(1);
    for (uint64_t round = 0; round < x->rounds; round++) {
        meet(&x->arrived, 12);
        pthread_mutex_lock(&c->work);
        for (;;) {
            rc_result result = rc_reader_peek(&c->guest.ring, &m);
            if (result == RC_EMPTY) {
                wait_for_wanted(&x->reader);
                continue;
            }
            CHECK(result == RC_MESSAGE);
            int wants = rc_reader_wants(&c->guest.ring, rc_reader_glance(&m));
            if (wants == RC_LEARN)
                rc_filter_learn(&c->filter);
            else if (wants == RC_UNWANTED)
                CHECK(rc_reader_pass(&c->guest.ring, 8));
            else
                break;
        }
        CHECK(m.f.time_ns == round);
        rc_reader_advance(&c->guest.ring, 1, m.f.length);
        rc_reader_flush(&c->guest.ring, c->guest.ring.next);
        (void)rc_filter_remove(&c->filter, "later", 5); /* as the next rounds begin without it */
        pthread_mutex_unlock(&c->work);
        meet(&x->arrived, 12);
    }
    return NULL;
}

static void put_about(crossing *x, uint32_t topic, uint16_t kind, uint16_t destination, uint64_t round)
{
    uint64_t generation = x->reader.chooser.guest.ring.state >> 8;
    rc_descriptor m = {.f.topic = topic,
                       .f.kind = kind,
                       .f.destination = destination,
                       .f.key = destination ? generation : 0,
                       .f.time_ns = round};
    CHECK(rc_writer_try_put(&x->writer, &m, (const uint8_t *)"12345678", 8));
}

static void subscribe_from_elsewhere(crossing *x, const char *name)
{
    chooser *c = &x->reader.chooser;
    pthread_mutex_lock(&c->work);
    CHECK(rc_filter_add(&c->filter, name, (uint32_t)strlen(name)) == 0);
    rc_filter_publish(&c->filter);
    pthread_mutex_lock(&c->turn);
    if (c->sleeping)
        rc_post(c->guest.ring.wake);
    pthread_mutex_unlock(&c->turn);
    pthread_mutex_unlock(&c->work);
}

enum { BY_NAME = 1, UNWANTED = 2, LATER = 3 };

static void put_what_is_wanted(crossing *x, uint64_t round)
{
    char name[16];
    switch (roll(7)) {
    case 0:
        put_about(x, 0, RC_KIND_TEXT, 0, round);
        break;
    case 1: /* a number that no row has, below and above what the table could hold */
        put_about(x, roll(2) ? x->writer.topic_count + 1 : UINT32_MAX, RC_KIND_TEXT, 0, round);
        break;
    case 2:
        put_about(x, UNWANTED, RC_KIND_EVENT, 0, round);
        break;
    case 3:
        put_about(x, UNWANTED, RC_KIND_TEXT, 1, round);
        break;
    case 4:
        subscribe_from_elsewhere(x, "later");
        put_about(x, LATER, RC_KIND_TEXT, 0, round);
        break;
    case 5: /* one that arrives just now and matches */
        if (x->writer.topic_count < TOPICS - 1) {
            int n = snprintf(name, sizeof name, "new.%u", x->writer.topic_count);
            uint32_t topic = rc_writer_add_topic(&x->writer, name, (uint32_t)n, 0);
            put_about(x, topic, RC_KIND_TEXT, 0, round);
            break;
        }
        /* fall through */
    default:
        put_about(x, BY_NAME, RC_KIND_TEXT, 0, round);
    }
}

static void cross(uint64_t rounds)
{
    ring r;
    crossing x = {.rounds = rounds};
    pthread_t other;
    ring_make(&r, 64, 1024);
    write_to(&x.writer, &r);
    CHECK(rc_writer_add_topic(&x.writer, "name", 4, 0) == BY_NAME);
    CHECK(rc_writer_add_topic(&x.writer, "unwanted", 8, 0) == UNWANTED);
    CHECK(rc_writer_add_topic(&x.writer, "later", 5, 0) == LATER);
    chooser *c = &x.reader.chooser;
    do /* destination and no topic are wanted */
        chooser_enters(c, &r, 0, 0, ZERO);
    while ((!c->others || !c->events) && (chooser_leaves(c), 1));
    want(c, "name");
    want(c, "new.*");
    x.reader.how = ways[0];
    CHECK(pthread_create(&other, NULL, receive_each, &x) == 0);
    for (uint64_t round = 0; round < rounds; round++) {
        meet(&x.arrived, 12);
        for (uint64_t n = roll(3); n > 0; n--)
            put_about(&x, UNWANTED, RC_KIND_TEXT, 0, UINT64_MAX);
        if (roll(2))
            rc_writer_release(&x.writer);
        put_what_is_wanted(&x, round);
        for (uint64_t n = roll(3); n > 0; n--)
            put_about(&x, UNWANTED, RC_KIND_TEXT, 0, UINT64_MAX);
        rc_writer_release(&x.writer);
        meet(&x.arrived, 12);
    }
    CHECK(pthread_join(other, NULL) == 0);
    chooser_leaves(c);
    ring_free(&r);
}

static void case_crossings(void)
{
    for (uint64_t i = 0; i < scaled(300); i++)
        cross(100);
}

/* ---- all of it ----------------------------------------------------------------------------- */

static const test_case cases[] = {
    {"patterns", case_patterns},
    {"patterns_are_bounded", case_patterns_are_bounded},
    {"hash", case_hash},
    {"filters", case_filters},
    {"a_list_is_bounded", case_a_list_is_bounded},
    {"choosers", case_choosers},
    {"an_eighth", case_an_eighth},
    {"gives_enough", case_gives_enough},
    {"passes_over_bytes", case_passes_over_bytes},
    {"crossings", case_crossings},
    {"interruptions", case_interruptions},
    {"deaths", case_deaths},
};

int main(int argc, char **argv)
{
    adorn = adorn_with_topic;
    return run_cases(argc, argv, cases, sizeof cases / sizeof *cases, NULL);
}

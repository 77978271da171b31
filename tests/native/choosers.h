/* choosers.h - readers that choose among topics, and what each must get, as a model says it.
 *
 * Which topic a message has follows from its sequence, so whoever knows what a reader wanted when it
 * took a message, or passed over it, knows whether it was right. Rows are added to the table just
 * before the first message that needs them, more of them as the ring goes on.
 */
#ifndef RINGCAST_TEST_CHOOSERS_H
#define RINGCAST_TEST_CHOOSERS_H

#include "harness.h"
#include "hash.h"

enum { WANTS_MAX = 16, BATCH = 24 };

static const char *const topic_names[TOPICS] = {"a", "ab", "abc", "b", "b/a", "ba", "c", "caab"};
static const char *const wishes_pool[] = {"a",  "ab", "b/a", "c",   "caab", "zz", "*",
                                          "a*", "*a", "*b*", "b*a", "**",   "x*", "a*c"};
enum { POOL = sizeof wishes_pool / sizeof *wishes_pool };

/* Messages between two that bring a new topic. */
static uint64_t arrival_every = 64;

static void adorn_with_topic(rc_descriptor *m, uint64_t sequence)
{
    uint64_t h = mix(seed ^ mix(sequence) ^ 7), available = 1 + sequence / arrival_every;
    if (available > TOPICS)
        available = TOPICS;
    m->f.topic = 1 + (uint32_t)((h >> 8) % available);
    if (h % 16 == 0)
        m->f.topic = 0;
    else if (h % 16 == 1)
        m->f.topic = (h >> 8) % 2 ? TOPICS + 1 : UINT32_MAX; /* a number without a name */
    else if (h % 16 == 2)
        m->f.kind = RC_KIND_EVENT;
    if (sequence % arrival_every == 0 && available > sequence / arrival_every) {
        m->f.topic = (uint32_t)available; /* the new one is there at once */
        m->f.kind = RC_KIND_BINARY;
    }
}

/* Does the name match? By the definition: * is nothing, or one character and the same again. */
static int matches_by_definition(const char *pattern, const char *name)
{
    if (*pattern == '*')
        return matches_by_definition(pattern + 1, name) ||
               (*name && matches_by_definition(pattern, name + 1));
    if (!*pattern || !*name)
        return *pattern == *name;
    return *pattern == *name && matches_by_definition(pattern + 1, name + 1);
}

/* ---- a reader that chooses ----------------------------------------------------------------- */

typedef struct chooser {
    guest guest;
    rc_filter filter;
    ring *ring;
    int others, events;
    char wants[WANTS_MAX][8]; /* the model of its list, in order */
    int count;
    pthread_mutex_t work; /* whoever works reader, filter or model */
    pthread_mutex_t turn; /* as an endpoint's */
    int sleeping;         /* some thread has taken the turn to sleep */
} chooser;

static int model_finds(const chooser *c, const char *text)
{
    for (int i = 0; i < c->count; i++)
        if (strcmp(c->wants[i], text) == 0)
            return i;
    return -1;
}

static int model_wants_name(const chooser *c, const char *name)
{
    for (int i = 0; i < c->count; i++)
        if (matches_by_definition(c->wants[i], name))
            return 1;
    return 0;
}

static int model_wants(const chooser *c, uint64_t sequence)
{
    rc_descriptor m;
    memset(&m, 0, sizeof m);
    m.f.kind = RC_KIND_BINARY;
    adorn_with_topic(&m, sequence);
    if (m.f.kind == RC_KIND_EVENT)
        return c->events;
    if (m.f.topic == 0 || m.f.topic > TOPICS)
        return c->others;
    return model_wants_name(c, topic_names[m.f.topic - 1]);
}

static void chooser_enters(chooser *c, ring *x, uint32_t index, int lossy, start_at where)
{
    rc_reader *r = &c->guest.ring;
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->work, NULL);
    pthread_mutex_init(&c->turn, NULL);
    c->ring = x;
    c->others = (int)roll(2);
    c->events = (int)roll(2);
    rc_reader_map(r, x->data, x->control, &x->geometry, index, &x->wake[index], &x->space);
    CHECK((__atomic_load_n(&r->slot->state, __ATOMIC_ACQUIRE) & 0xff) == RC_FREE);
    rc_reader_claim(r, lossy);
    CHECK(rc_filter_begin(&c->filter, x->data, x->control, &x->geometry, index, 1, c->others,
                          c->events) == 0);
    r->filter = &c->filter;
    r->skip = c->events ? 0 : RC_KIND_EVENT;
    if (where != ZERO)
        c->guest.start = rc_load(where == LATEST ? &r->header->published : &r->header->gate);
    c->guest.in = rc_reader_join(r, c->guest.start);
    if (!c->guest.in)
        rc_reader_leave(r);
}

static void chooser_leaves(chooser *c)
{
    c->guest.in = 0;
    rc_reader_leave(&c->guest.ring);
    rc_filter_end(&c->filter);
}

/* ---- changing what is wanted --------------------------------------------------------------- */

static void want(chooser *c, const char *text)
{
    CHECK(rc_filter_add(&c->filter, text, (uint32_t)strlen(text)) == 0);
    if (model_finds(c, text) < 0) {
        CHECK(c->count < WANTS_MAX);
        strcpy(c->wants[c->count++], text);
    }
}

static void want_no_more(chooser *c, const char *text)
{
    int found = model_finds(c, text);
    CHECK(rc_filter_remove(&c->filter, text, (uint32_t)strlen(text)) == (found >= 0));
    if (found < 0)
        return;
    memmove(c->wants[found], c->wants[found + 1],
            (size_t)(c->count - found - 1) * sizeof c->wants[0]);
    c->count--;
}

/* As Reader.subscribe() and unsubscribe() do it. */
static void change(chooser *c)
{
    int more = c->count < WANTS_MAX - 3 && roll(2);
    for (uint64_t n = 1 + roll(3); n > 0; n--)
        (more ? want : want_no_more)(c, wishes_pool[roll(POOL)]);
    rc_filter_publish(&c->filter);
    if (!more)
        return;
    pthread_mutex_lock(&c->turn);
    if (c->sleeping)
        rc_post(c->guest.ring.wake);
    pthread_mutex_unlock(&c->turn);
}

/* ---- taking -------------------------------------------------------------------------------- */

/* All from `before` to the next message went by: was none of it wanted? */
static void check_passed(const chooser *c, uint64_t before)
{
    for (uint64_t sequence = before; sequence < c->guest.ring.next; sequence++)
        CHECK(!model_wants(c, sequence));
}

static int chooser_is_overrun(const chooser *c)
{
    return c->guest.ring.lossy && !rc_reader_intact(&c->guest.ring, c->guest.ring.next);
}

/* 0: overrun. */
static int take_wanted(chooser *c, const rc_descriptor *m)
{
    rc_reader *r = &c->guest.ring;
    uint8_t copy[LONGEST];
    const uint8_t *bytes = r->arena + (m->f.position & (r->capacity - 1));
    if (r->lossy) {
        rc_copy_out(copy, bytes, m->f.length);
        bytes = copy;
        if (!rc_reader_intact(r, r->next))
            return 0;
    }
    check_message(m, bytes, r->next, r->max_message);
    CHECK(model_wants(c, r->next));
    rc_reader_advance(r, 1, m->f.length);
    return 1;
}

/* Of what lies together, take up to `limit` that are wanted. 0: overrun, or look again. */
static int take_gathered(chooser *c, uint64_t limit)
{
    rc_reader *r = &c->guest.ring;
    static _Thread_local rc_descriptor table[BATCH];
    uint8_t copy[LONGEST];
    uint64_t before = r->next, gone, taken = 0, n = rc_reader_available(r, r->slots);
    uint64_t count = rc_reader_gather(r, n, table, limit < BATCH ? limit : BATCH, &gone);
    if (count == 0 || !(r->lossy ? rc_reader_intact(r, before) : rc_reader_holds(r)))
        return 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *bytes = r->arena + (table[i].f.position & (r->capacity - 1));
        if (r->lossy) {
            rc_copy_out(copy, bytes, table[i].f.length);
            bytes = copy;
            if (!rc_reader_intact(r, before))
                return 0;
        }
        check_message(&table[i], bytes, table[i].f.seq1 - 1, r->max_message);
    }
    for (uint64_t sequence = before; sequence < before + gone; sequence++)
        if (model_wants(c, sequence))
            CHECK(taken < count && table[taken++].f.seq1 == sequence + 1);
    CHECK(taken == count);
    r->skipped += gone - count;
    rc_reader_advance(r, gone, 0);
    r->received -= gone - count;
    return 1;
}

/* One look, with all that follows from it: as Reader.take() and Reader.batch() have it. */
static rc_result choose(chooser *c, uint64_t batch)
{
    rc_reader *r = &c->guest.ring;
    rc_descriptor m;
    uint64_t before = r->next;
    rc_result result = rc_reader_peek(r, &m);
    if (result == RC_MESSAGE) {
        int wants = rc_reader_wants(r, rc_reader_glance(&m));
        if (wants == RC_LEARN) {
            rc_filter_learn(&c->filter);
            wants = rc_reader_wants(r, rc_reader_glance(&m));
        }
        if (wants == RC_UNWANTED)
            (void)rc_reader_pass(r, r->slots / 8 + 1);
        else if (batch ? !take_gathered(c, batch) : !take_wanted(c, &m))
            CHECK(r->lossy || batch);
        if (r->next == before && chooser_is_overrun(c))
            result = RC_OVERRUN;
        else if (wants == RC_UNWANTED)
            check_passed(c, before);
        if (rc_reader_flush_due(r))
            rc_reader_flush(r, r->next);
    }
    if (result == RC_OVERRUN)
        CHECK(rc_reader_resync(r));
    CHECK(result != RC_IMPOSSIBLE && result != RC_TAKEN_AWAY);
    CHECK(r->received + r->skipped + r->lost == r->next - c->guest.start);
    return result;
}

/* ---- what stands in the ring of its wishes -------------------------------------------------- */

static rc_wishes *wishes_of(const ring *x, uint32_t index)
{
    return (rc_wishes *)((uint8_t *)x->control + rc_wishes_offset(&x->geometry)) + index;
}

/* Is this the list that stands there? */
static int list_is(const char *text, int64_t length, const chooser *c)
{
    char expected[WANTS_MAX * 8];
    int64_t n = 0;
    for (int i = 0; i < c->count; i++)
        n += sprintf(expected + n, "%s", c->wants[i]) + 1;
    return length == n && memcmp(text, expected, (size_t)n) == 0;
}

static void check_filter(const chooser *c, const rc_writer *w)
{
    static char text[RC_WISH_MAX];
    const rc_filter *f = &c->filter;
    uint64_t version;
    int open = 0;
    CHECK(rc_load(&f->known) == w->topic_count);
    for (uint32_t topic = 1; topic <= w->topic_count; topic++) {
        int wants = model_wants_name(c, topic_names[topic - 1]);
        CHECK(rc_filter_wants(f, topic) == (wants ? RC_WANTED : RC_UNWANTED));
        CHECK(((rc_load(&w->interest[topic * w->interest_stride]) & f->slot_bit) != 0) == wants);
    }
    for (int i = 0; i < c->count; i++) {
        int found = strchr(c->wants[i], '*') != NULL;
        for (uint32_t row = 0; row < w->topic_count && !found; row++)
            found = strcmp(topic_names[row], c->wants[i]) == 0;
        open |= strchr(c->wants[i], '*') || !found;
    }
    CHECK((int)rc_load(&f->open) == open);
    CHECK(rc_filter_wants(f, 0) == c->others && rc_filter_wants(f, UINT32_MAX) == c->others);
    int64_t length = rc_wishes_read(wishes_of(c->ring, c->guest.ring.index), text, &version);
    CHECK(list_is(text, length, c) && version % 2 == 0);
}

/* ---- writing ------------------------------------------------------------------------------- */

/* The rows that the next message needs. */
static void add_rows(rc_writer *w)
{
    rc_descriptor m;
    memset(&m, 0, sizeof m);
    adorn_with_topic(&m, w->next);
    while (m.f.topic <= TOPICS && w->topic_count < m.f.topic) {
        const char *name = topic_names[w->topic_count];
        uint64_t key = rc_hash((const uint8_t *)name, strlen(name), 0);
        CHECK(rc_writer_add_topic(w, name, (uint32_t)strlen(name), key) == w->topic_count);
    }
}

static int try_put_topical(rc_writer *w)
{
    add_rows(w);
    return try_put(w);
}

/* Rows are whole, and what they say is so, but for messages that dead writers left uncounted. */
static void check_rows(const rc_writer *w, uint64_t deaths)
{
    uint64_t messages[TOPICS + 1] = {0}, bytes[TOPICS + 1] = {0}, last[TOPICS + 1] = {0}, left = 0;
    for (uint64_t sequence = 0; sequence < w->next; sequence++) {
        rc_descriptor m = {.f.kind = RC_KIND_BINARY};
        adorn_with_topic(&m, sequence);
        if (m.f.topic > TOPICS)
            continue;
        messages[m.f.topic]++;
        bytes[m.f.topic] += length_of(sequence, w->max_message);
        last[m.f.topic] = sequence + 1;
    }
    for (uint32_t topic = 1; topic <= TOPICS; topic++) {
        const rc_topic *row = &w->topics[topic - 1];
        rc_topic_info info;
        if (topic > w->topic_count) {
            CHECK(messages[topic] == 0);
            continue;
        }
        CHECK(rc_topic_read(row, &info) && strcmp(row->name, topic_names[topic - 1]) == 0);
        CHECK(info.key == rc_hash((const uint8_t *)row->name, strlen(row->name), 0));
        CHECK(info.messages <= messages[topic] && info.bytes <= bytes[topic]);
        CHECK(info.seq1 == last[topic]);
        left += messages[topic] - info.messages;
        CHECK(left || info.bytes == bytes[topic] || deaths);
    }
    CHECK(left <= deaths);
}

#endif

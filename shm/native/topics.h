/* topics.h - topics by name: the table, what readers want of it, and what the writer answers.
 *
 * The table. Row id - 1 of the data segment names topic `id`. The writer alone adds rows: name and
 * key first, then header.topics with release, so a row that is counted is whole, whenever its writer
 * dies; rows are never taken back and ids never used again. The writer stores the figures of a row after
 * each message's descriptor: the newest sequence with release, the others relaxed, as they are for
 * looking at. State and reason change together, under a
 * version that is odd meanwhile (a seqlock: Boehm, "Can seqlocks get along with programming language
 * memory models?", MSPC 2012).
 *
 * What a reader wants is a list of names and patterns, in which only * is special. From it and the
 * table the reader keeps a bit for each topic, in private memory: the *filter*, which alone decides
 * what is handed out. Topics that appear later are matched when the reader meets them, before it
 * sleeps, or when it is woken for them: `known` is how far it has come.
 *
 *   meets a descriptor:   topic <= known            its bit
 *                         known < topic <= rows     RC_LEARN: match the new rows, then its bit
 *                         0, or no row of that id   a message without a topic: RC_OTHERS
 *
 * The same bits stand in the control segment once more, a row for each topic and in it a bit for each
 * reader slot: the *interest* table, by which the writer finds whom to wake. It is a hint: one that is
 * wrong costs a wake-up, or a look each 100 ms. broadcast.h has the protocol of sleeping. A row of its
 * own says who is to be woken when topics arrive: those with a pattern, or with a name that is not in
 * the table. Who claims a slot clears its last owner's bits.
 *
 * Wishes. The list of names and patterns stands in the control segment, too, for whoever asks a server
 * for topics: the reader writes it under a version (odd meanwhile), and the writer's process is woken
 * to read all of them. After the list, and an empty name, come those of which the reader asks for a
 * snapshot, until an answer says that they were read. It goes with the reader's slot: claiming a slot
 * empties its list, and nobody looks at that of a free slot. The writer says in the data
 * segment what it thinks of a list: up to which version it has looked, and which names can't be had; what
 * can be had has a row, whose state says the rest. Nothing here is believed: lengths are checked, names
 * are checked by who uses them, and a list that changes without end, or whose reader has stopped or died
 * in the midst of it, is left for the next look.
 */
#ifndef RINGCAST_TOPICS_H
#define RINGCAST_TOPICS_H

#include "base.h"
#include "glob.h"
#include "layout.h"

#include <stdlib.h>

static inline uint64_t rc_bit(uint32_t slot) { return UINT64_C(1) << (slot & 63); }

/* ---- words under a version ------------------------------------------------------------------ */

static inline void rc_change_begin(_Atomic uint64_t *version)
{
    rc_store(version, rc_load(version) | 1); /* odd already: a predecessor died in here */
    /* release: pairs with the acquire fence in rc_unchanged(): who sees a new word sees this, too */
    atomic_thread_fence(memory_order_release);
}

static inline void rc_change_end(_Atomic uint64_t *version)
{
    rc_store_release(version, rc_load(version) + 1); /* acquire: whoever loads it before reading */
}

static inline int rc_unchanged(const _Atomic uint64_t *version, uint64_t before)
{
    rc_fence_acquire();
    return !(before & 1) && rc_load(version) == before;
}

/* ---- the table ------------------------------------------------------------------------------ */

/* A row's words at one moment. */
typedef struct rc_topic_info {
    uint64_t messages, bytes, seq1, time_ns, key, state;
    char reason[RC_REASON_MAX + 1];
} rc_topic_info;

static inline const rc_topic *rc_topics_at(const void *data, const rc_geometry *g)
{
    return (const rc_topic *)((const uint8_t *)data + rc_topics_offset(g));
}

/* How many rows there are; never more than the segment has. */
static inline uint32_t rc_topics_count(const rc_header *header, uint32_t max_topics)
{
    uint32_t count = rc_load_acquire(&header->topics); /* release: rc_writer_add_topic() */
    return count < max_topics ? count : max_topics;
}

/* Bytes of a row's name. */
static inline uint32_t rc_topic_name_length(const rc_topic *row)
{
    return (uint32_t)strnlen(row->name, RC_TOPIC_NAME_MAX);
}

/* 0: state and reason change, or their writer died while they did; then they are left empty. */
static inline int rc_topic_read(const rc_topic *row, rc_topic_info *info)
{
    info->messages = rc_load(&row->messages);
    info->bytes = rc_load(&row->bytes);
    info->seq1 = rc_load_acquire(&row->seq1); /* release: rc_topic_note() */
    info->time_ns = rc_load(&row->time_ns);
    info->key = rc_load(&row->key);
    uint64_t version = rc_load_acquire(&row->version);
    info->state = rc_load(&row->state);
    rc_load_words(row->reason, info->reason, RC_REASON_MAX);
    info->reason[RC_REASON_MAX] = 0;
    if (rc_unchanged(&row->version, version))
        return 1;
    info->state = 0;
    info->reason[0] = 0;
    return 0;
}

/* The writer's: a reason that is too long is cut, and may then end within a character. */
static inline void rc_topic_say(rc_topic *row, uint64_t state, const char *reason, uint64_t length)
{
    char padded[RC_REASON_MAX] = {0};
    memcpy(padded, reason, length < RC_REASON_MAX ? length : RC_REASON_MAX);
    rc_change_begin(&row->version);
    rc_store(&row->state, state);
    rc_store_words(row->reason, padded, RC_REASON_MAX);
    rc_change_end(&row->version);
}

/* One message more; the writer's, after the descriptor. seq1 comes first: a successor counts what it
 * does not cover, so a writer that dies in here leaves a message uncounted and none counted twice. */
static inline void rc_topic_note(rc_topic *row, const rc_descriptor *message, uint64_t seq1)
{
    /* release: who reads it finds that message in the ring, or a later one; acquire: rc_topic_read() */
    rc_store_release(&row->seq1, seq1);
    RC_FAULT(5);
    rc_store(&row->messages, rc_load(&row->messages) + 1);
    rc_store(&row->bytes, rc_load(&row->bytes) + message->f.length);
    rc_store(&row->time_ns, message->f.time_ns);
}

/* ---- interest ------------------------------------------------------------------------------- */

static inline _Atomic uint64_t *rc_interest_at(void *control, const rc_geometry *g)
{
    return (_Atomic uint64_t *)((uint8_t *)control + rc_interest_offset(g));
}

/* The row of the interest table whose readers a message is for; the topic table has `count` rows. A
 * topic without a row is none. */
static inline uint32_t rc_interest_row(uint32_t max_topics, uint32_t count, uint32_t topic,
                                       uint16_t kind)
{
    if (rc_unlikely(kind == RC_KIND_EVENT))
        return max_topics + RC_INTEREST_EVENTS;
    return topic <= count ? topic : 0;
}

/* ---- a reader's filter ---------------------------------------------------------------------- */

/* What a filter says of a message. */
enum { RC_UNWANTED = 0, RC_WANTED = 1, RC_LEARN = 2 };

/* One name or pattern. */
typedef struct rc_want {
    char *text; /* NUL-terminated */
    uint32_t length;
    uint32_t is_pattern;
    uint32_t found; /* a name: its row is known */
    uint64_t snapshot; /* version of the list that asks for a snapshot of it; 0: none does */
} rc_want;

/* One thread at a time changes a filter, the one that works the reader (in Python: under the GIL);
 * the thread that waits reads `bits`, `known` and `open` meanwhile. These are relaxed but for `known`:
 * who subscribes has the endpoint's mutex afterwards (rc_endpoint_rouse()), as has who begins or ends to
 * wait; and a message that was published after the subscription brings them with it, since rc_filter_mark()
 * comes between. */
typedef struct rc_filter {
    const rc_header *header;
    const rc_topic *topics;
    _Atomic uint64_t *interest; /* word of this slot in row 0 */
    rc_wishes *wishes;
    uint64_t slot_bit;
    uint32_t words, max_topics;
    uint32_t others; /* 1: messages without a topic are wanted */
    _Atomic uint32_t known; /* rows that were matched */
    _Atomic uint32_t open;  /* 1: more of the topics that arrive may be wanted */
    _Atomic uint64_t *bits; /* of topic id: bits[id / 64], private memory; NULL: everything is wanted */
    rc_want *wants;
    uint32_t count, room;
    uint64_t text_bytes; /* of all wants, with their NULs */
    const rc_answer *answer;
} rc_filter;

static inline int rc_filter_has(const rc_filter *f, uint32_t topic)
{
    return (rc_load(&f->bits[topic / 64]) & rc_bit(topic)) != 0;
}

/* Does this reader want a message of the topic? Only of one that chooses. */
static inline int rc_filter_wants(const rc_filter *f, uint32_t topic)
{
    if (topic == 0)
        return (int)f->others;
    /* acquire: pairs with the release in rc_filter_learn(), if another thread runs it */
    if (rc_likely(topic <= rc_load_acquire(&f->known)))
        return rc_filter_has(f, topic);
    if (topic <= rc_topics_count(f->header, f->max_topics))
        return rc_load(&f->open) ? RC_LEARN : RC_UNWANTED;
    return (int)f->others;
}

/* Are there topics that arrived and may be wanted? A sleeper looks after its fence, which pairs with that
 * in rc_writer_release(). */
static inline int rc_filter_is_behind(const rc_filter *f)
{
    return rc_load(&f->open) &&
           rc_topics_count(f->header, f->max_topics) > rc_load(&f->known);
}

static inline void rc_filter_mark(rc_filter *f, uint32_t row, int wanted)
{
    _Atomic uint64_t *word = f->interest + (uint64_t)row * f->words;
    /* seq_cst: in place before the caller looks, sleeps or returns; pairs with the fence before the load in
     * rc_writer_interest(). The load here is of a bit that nobody else changes. */
    if (wanted)
        atomic_fetch_or_explicit(word, f->slot_bit, memory_order_seq_cst);
    else if (rc_load(word) & f->slot_bit)
        atomic_fetch_and_explicit(word, ~f->slot_bit, memory_order_seq_cst);
}

static inline void rc_filter_set(rc_filter *f, uint32_t topic, int wanted)
{
    _Atomic uint64_t *word = &f->bits[topic / 64];
    rc_store(word, wanted ? rc_load(word) | rc_bit(topic) : rc_load(word) & ~rc_bit(topic));
    rc_filter_mark(f, topic, wanted);
}

static inline int rc_want_matches(const rc_want *want, const char *name, uint32_t length)
{
    if (want->is_pattern)
        return rc_matches(want->text, want->length, name, length);
    return want->length == length && memcmp(want->text, name, length) == 0;
}

static inline void rc_filter_see_whether_open(rc_filter *f)
{
    uint32_t open = 0;
    for (uint32_t i = 0; i < f->count && !open; i++)
        open = f->wants[i].is_pattern || !f->wants[i].found;
    rc_store(&f->open, open);
    rc_filter_mark(f, f->max_topics + RC_INTEREST_ARRIVALS, (int)open);
}

/* Match the rows that were added since the last time. */
static inline void rc_filter_learn(rc_filter *f)
{
    uint32_t count = rc_topics_count(f->header, f->max_topics), known = rc_load(&f->known);
    if (!f->bits || known == count)
        return;
    for (; known < count; known++) {
        const rc_topic *row = &f->topics[known];
        uint32_t length = rc_topic_name_length(row), wanted = 0;
        for (uint32_t i = 0; i < f->count; i++) {
            if (!rc_want_matches(&f->wants[i], row->name, length))
                continue;
            f->wants[i].found = wanted = 1;
        }
        if (wanted)
            rc_filter_set(f, known + 1, 1);
    }
    rc_store_release(&f->known, count); /* acquire: rc_filter_wants() */
    rc_filter_see_whether_open(f);
}

/* Append a text and its NUL; *length is how much there is. */
static inline void rc_wishes_append(rc_wishes *wishes, char word[8], uint64_t *length,
                                    const char *text, uint32_t text_length)
{
    for (uint32_t at = 0; at <= text_length; at++) {
        word[(*length)++ & 7] = at < text_length ? text[at] : 0;
        if (!(*length & 7))
            rc_store_words(&wishes->words[*length / 8 - 1], word, 8);
    }
}

/* Write the list for the writer's process to read. It has room: rc_filter_add() sees to that. */
static inline void rc_filter_publish(rc_filter *f)
{
    char word[8];
    uint64_t length = 0, answered = rc_load(&f->answer->wishes);
    rc_change_begin(&f->wishes->version);
    for (uint32_t i = 0; i < f->count; i++)
        rc_wishes_append(f->wishes, word, &length, f->wants[i].text, f->wants[i].length);
    RC_FAULT(82);
    for (uint32_t i = 0, any = 0; i < f->count; i++) {
        if (f->wants[i].snapshot <= answered)
            continue;
        if (!any++)
            rc_wishes_append(f->wishes, word, &length, "", 0);
        rc_wishes_append(f->wishes, word, &length, f->wants[i].text, f->wants[i].length);
    }
    if (length & 7)
        rc_store_words(&f->wishes->words[length / 8], word, length & 7);
    rc_store(&f->wishes->length, length);
    rc_change_end(&f->wishes->version);
}

/* Ask for a snapshot of a topic that is wanted by name; the caller calls rc_filter_publish(). */
static inline void rc_filter_ask_snapshot(rc_filter *f, rc_want *want)
{
    want->snapshot = (rc_load(&f->wishes->version) | 1) + 1; /* the next list's */
}

static inline rc_want *rc_filter_find(rc_filter *f, const char *text, uint32_t length)
{
    for (uint32_t i = 0; i < f->count; i++)
        if (f->wants[i].length == length && memcmp(f->wants[i].text, text, length) == 0)
            return &f->wants[i];
    return NULL;
}

/* Want these topics, too. It holds for every message published after it returns; the caller calls
 * rc_filter_publish() when it has added all. 0; ENOSPC: the list would be longer than a reader's may
 * be; ENOMEM. */
static inline int rc_filter_add(rc_filter *f, const char *text, uint32_t length)
{
    if (rc_filter_find(f, text, length))
        return 0;
    if (f->text_bytes + length + 1 > RC_WANT_MAX) /* each may stand in the list twice */
        return ENOSPC;
    if (f->count == f->room) {
        uint32_t room = f->room ? 2 * f->room : 8;
        rc_want *larger = realloc(f->wants, room * sizeof *larger);
        if (!larger)
            return ENOMEM;
        f->wants = larger;
        f->room = room;
    }
    rc_want want = {.text = malloc((size_t)length + 1), .length = length};
    if (!want.text)
        return ENOMEM;
    memcpy(want.text, text, length);
    want.text[length] = 0;
    want.is_pattern = memchr(text, '*', length) != NULL;
    for (uint32_t row = 0; f->bits && row < rc_load(&f->known); row++)
        if (rc_want_matches(&want, f->topics[row].name, rc_topic_name_length(&f->topics[row]))) {
            want.found = 1;
            rc_filter_set(f, row + 1, 1);
        }
    f->wants[f->count++] = want;
    f->text_bytes += (uint64_t)length + 1;
    if (f->bits)
        rc_filter_see_whether_open(f);
    return 0;
}

/* Want this no more: what no other name or pattern wants is not handed out from now on. 0: it was not
 * on the list. */
static inline int rc_filter_remove(rc_filter *f, const char *text, uint32_t length)
{
    rc_want *gone = rc_filter_find(f, text, length);
    if (!gone)
        return 0;
    rc_want want = *gone;
    memmove(gone, gone + 1, (size_t)(&f->wants[--f->count] - gone) * sizeof *gone);
    f->text_bytes -= (uint64_t)length + 1;
    for (uint32_t row = 0; f->bits && row < rc_load(&f->known); row++) {
        const char *name = f->topics[row].name;
        uint32_t name_length = rc_topic_name_length(&f->topics[row]), wanted = 0;
        if (!rc_want_matches(&want, name, name_length))
            continue;
        for (uint32_t i = 0; i < f->count && !wanted; i++)
            wanted = (uint32_t)rc_want_matches(&f->wants[i], name, name_length);
        if (!wanted)
            rc_filter_set(f, row + 1, 0);
    }
    free(want.text);
    if (f->bits)
        rc_filter_see_whether_open(f);
    return 1;
}

/* A reader's filter, after its slot was claimed: nothing is wanted yet (`chooses`), or everything.
 * 0, or ENOMEM. */
static inline int rc_filter_begin(rc_filter *f, const void *data, void *control,
                                  const rc_geometry *g, uint32_t index, int chooses, int others,
                                  int events)
{
    memset(f, 0, sizeof *f);
    f->header = data;
    f->topics = rc_topics_at(data, g);
    f->words = rc_interest_stride(g);
    f->interest = rc_interest_at(control, g) + index / 64;
    f->wishes = (rc_wishes *)((uint8_t *)control + rc_wishes_offset(g)) + index;
    f->answer = (const rc_answer *)((const uint8_t *)data + rc_answers_offset(g)) + index;
    f->slot_bit = rc_bit(index);
    f->max_topics = g->max_topics;
    f->others = (uint32_t)(others != 0);
    rc_filter_publish(f); /* empties what the slot's last owner wished for */
    rc_store(&((rc_control *)control)->readers[index].chooses, chooses ? RC_CHOOSES | (others ? RC_OTHERS : 0) : 0);
    if (!chooses)
        return 0;
    f->bits = calloc(g->max_topics / 64 + 1, sizeof *f->bits);
    if (!f->bits)
        return ENOMEM;
    for (uint32_t row = 0; row < g->max_topics + RC_INTEREST_ROWS; row++)
        rc_filter_mark(f, row, 0); /* the slot's last owner may have been killed */
    rc_filter_mark(f, 0, others);
    rc_filter_mark(f, g->max_topics + RC_INTEREST_EVENTS, events);
    rc_filter_learn(f);
    return 0;
}

static inline void rc_filter_end(rc_filter *f)
{
    for (uint32_t i = 0; i < f->count; i++)
        free(f->wants[i].text);
    free(f->wants);
    free((void *)f->bits);
    f->wants = NULL;
    f->bits = NULL;
    f->count = f->room = 0;
}

/* ---- wishes and answers, the writer's side -------------------------------------------------- */

/* Copy a reader's list, RC_WISH_MAX bytes at most, and return its length; -1: it changes just now, or
 * is impossible. *version says which list it is. */
static inline int64_t rc_wishes_read(const rc_wishes *wishes, char *text, uint64_t *version)
{
    *version = rc_load_acquire(&wishes->version);
    uint64_t length = rc_load(&wishes->length);
    if (length > RC_WISH_MAX)
        return -1;
    rc_load_words(wishes->words, text, length);
    return rc_unchanged(&wishes->version, *version) ? (int64_t)length : -1;
}

/* Say that the list of this version was looked at, and what of it can't be had. */
static inline void rc_answer_say(rc_answer *answer, uint64_t version, const char *text,
                                 uint64_t length)
{
    if (length > RC_ANSWER_MAX)
        length = RC_ANSWER_MAX;
    rc_change_begin(&answer->version);
    rc_store(&answer->wishes, version);
    rc_store(&answer->length, length);
    rc_store_words(answer->words, text, length);
    rc_change_end(&answer->version);
}

/* Copy an answer, RC_ANSWER_MAX bytes at most, and return its length; -1 as in rc_wishes_read(). */
static inline int64_t rc_answer_read(const rc_answer *answer, char *text, uint64_t *wishes)
{
    uint64_t version = rc_load_acquire(&answer->version);
    uint64_t length = rc_load(&answer->length);
    *wishes = rc_load(&answer->wishes);
    if (length > RC_ANSWER_MAX)
        return -1;
    rc_load_words(answer->words, text, length);
    return rc_unchanged(&answer->version, version) ? (int64_t)length : -1;
}

#endif

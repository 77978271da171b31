/* group_table.h - work groups as the control segment shows them: what everybody needs of them, the
 * writer above all. What their members do to each other stands in group.h.
 *
 * A group is a row of the control segment, a table of partitions, a list of topics and a bit in each
 * row of the interest table. To the writer its row is what a slot is for a reader that blocks:
 *
 *   floor     all below it is done. The writer minds it like a cursor: same join, same fence, same
 *             second look (broadcast.h). It outlives the members, and the writer.
 *   asleep    the members that sleep, a bit per reader slot. A message wakes one of them.
 *
 * Whom a message wakes depends on how the group shares messages out. RC_ANY: the next of the sleepers.
 * RC_KEY: the owner of the message's partition, if it sleeps. RC_ROUND_ROBIN: the member whose turn it
 * is. A member sleeps as every reader does:
 *
 *   member: asleep bit on;  fence(seq_cst);  look for work;  none: sem_clockwait
 *   writer: published (release);  fence(seq_cst);  load asleep;  for each message that the group wants:
 *           take one bit, post its owner
 *
 * One of the two sees the other. A token may go to a member that is stopped, or that finds another has
 * been faster. So whoever sleeps looks at least each RC_GROUP_SLICE_NS, and takes what lies there.
 *
 * What a group does not want counts as done. The interest table says what that is: in the word of the
 * groups, a bit per group. It is set by who makes the group, for the topics that are there, and by the
 * writer, for those that it adds:
 *
 *   maker:  list of topics (release);  state MAKING;  fence;  match all rows of the topic table
 *   writer: row of the topic table (release);  fence;  match it with the list of every group
 *
 * So a topic that is wanted has its bit before its first message is published. The bits never change
 * afterwards, so all processes agree on what the group wants, and the writer moves the floor over the
 * rest while members sleep or none is there: by compare-and-swap, since members move it, too.
 *
 * A group holds the ring while its row's state is ACTIVE, or HOLDING: while its floor is brought up to the
 * gate. Nobody is a member before it is ACTIVE, and from then on nobody but members and the writer's pass over
 * what is unwanted moves the floor: a gate may be one that the writer takes back, and a floor that followed
 * it would give up what a member has in hand. The row's bit in control.groups only says where to look.
 *
 * Nothing in here is believed. A floor above what is published ends the group's hold; one that goes
 * back is overruled by the highest that the writer has seen in this generation of the row.
 */
#ifndef RINGCAST_GROUP_TABLE_H
#define RINGCAST_GROUP_TABLE_H

#include "base.h"
#include "layout.h"
#include "topics.h"

#define RC_GROUP_SLICE_NS INT64_C(40000000) /* a member's longest sleep, and from look to look for the dead */
#define RC_GROUP_MASK ((UINT64_C(1) << RC_GROUPS_MAX) - 1)
#define RC_NOBODY UINT32_MAX
#define RC_MATCH_TRIES 4u

/* ---- words ----------------------------------------------------------------------------------- */

/* head: the next sequence that nobody has claimed, 54 bits; and the slot whose turn was last, 10 bits.
 * At 10^8 messages a second that is enough for five years. */
#define RC_TURN_BITS 10

static inline uint64_t rc_head(uint64_t sequence, uint32_t turn)
{
    return sequence << RC_TURN_BITS | turn;
}

static inline uint64_t rc_head_sequence(uint64_t head) { return head >> RC_TURN_BITS; }

static inline uint32_t rc_head_turn(uint64_t head)
{
    return (uint32_t)head & ((1u << RC_TURN_BITS) - 1);
}

/* A partition: who owns it (reader slot + 1, 0 for nobody; low bits of the slot's generation), whether
 * the owner is at work on a message of it, who is to have it afterwards, and how often it has changed
 * hands.
 *
 *   63         39 38        23  22  21     11 10      0
 *   +------------+------------+----+---------+---------+
 *   |   changes  | generation |busy|  heir   |  owner  |
 *   +------------+------------+----+---------+---------+
 */
#define RC_PARTITION_BUSY (UINT64_C(1) << 22)

static inline uint64_t rc_partition_word(uint64_t changes, uint64_t generation, uint32_t owner)
{
    return changes << 39 | (generation & 0xffff) << 23 | owner;
}

static inline uint32_t rc_partition_owner(uint64_t word) { return word & 0x7ff; }
static inline uint32_t rc_partition_heir(uint64_t word) { return word >> 11 & 0x7ff; }
static inline uint32_t rc_partition_generation(uint64_t word) { return word >> 23 & 0xffff; }
static inline uint64_t rc_partition_changes(uint64_t word) { return word >> 39; }

static inline uint64_t rc_partition_with_heir(uint64_t word, uint32_t heir)
{
    return (word & ~(UINT64_C(0x7ff) << 11)) | (uint64_t)heir << 11;
}

/* Which partition messages of this key belong to: multiplicative hashing (Knuth, The Art of Computer
 * Programming, vol. 3, 6.4) with 2^64 divided by the golden ratio; the upper 10 bits. The same in every
 * build and on every host. */
static inline uint32_t rc_partition_of_key(uint64_t key)
{
    static_assert(RC_PARTITIONS == 1u << 10, "");
    return (uint32_t)(key * UINT64_C(0x9e3779b97f4a7c15) >> 54);
}

/* ---- rows ------------------------------------------------------------------------------------ */

static inline _Atomic uint64_t *rc_partitions_at(void *control, const rc_geometry *g, uint32_t group)
{
    return (_Atomic uint64_t *)((uint8_t *)control + rc_partitions_offset(g)) +
           (uint64_t)group * RC_PARTITIONS;
}

static inline rc_wishes *rc_group_wishes_at(void *control, const rc_geometry *g, uint32_t group)
{
    return (rc_wishes *)((uint8_t *)control + rc_group_wishes_offset(g, group));
}

static inline void rc_group_name(const rc_group_row *row, char name[8 * RC_GROUP_NAME_WORDS + 1])
{
    rc_load_words(row->name, name, 8 * RC_GROUP_NAME_WORDS);
    name[8 * RC_GROUP_NAME_WORDS] = 0;
}

/* What a process needs to say what a group wants. */
typedef struct rc_group_view {
    const rc_header *header;
    const rc_topic *topics;
    const _Atomic uint64_t *interest; /* the groups' word in row 0 */
    uint32_t stride, max_topics;
} rc_group_view;

static inline rc_group_view rc_group_view_of(const void *data, void *control, const rc_geometry *g)
{
    return (rc_group_view){
        .header = data,
        .topics = rc_topics_at(data, g),
        .interest = rc_interest_at(control, g) + rc_interest_words(g),
        .stride = rc_interest_stride(g),
        .max_topics = g->max_topics,
    };
}

/* Does the group want a message? Records of kind EVENT and what is meant for one reader are nobody's.
 * The topic's row, if it has one, was there before the message: its count is loaded after the message's
 * seq1, with acquire. */
static inline int rc_group_wants(const rc_group_view *v, const rc_group_row *row, uint32_t group,
                                 uint32_t topic, uint16_t kind, uint16_t destination)
{
    if (destination != 0 || kind == RC_KIND_EVENT)
        return 0;
    if (!(rc_load(&row->chooses) & RC_CHOOSES))
        return 1;
    if (topic > rc_topics_count(v->header, v->max_topics))
        topic = 0;
    /* acquire: pairs with the seq_cst stores in rc_group_mark() */
    uint64_t bits = rc_load_acquire(&v->interest[(uint64_t)topic * v->stride]);
    return (int)(bits >> group & 1);
}

/* The partition of a message: by its key, else by the hash of its topic's name, else by its topic's
 * number. */
static inline uint32_t rc_group_partition(const rc_group_view *v, uint64_t key, uint32_t topic)
{
    if (rc_unlikely(key == 0 && topic != 0)) {
        int named = topic <= rc_topics_count(v->header, v->max_topics);
        key = named ? rc_load(&v->topics[topic - 1].key) : topic;
    }
    return rc_partition_of_key(key);
}

static inline void rc_group_mark(const rc_group_view *v, uint32_t group, uint32_t topic, int wanted)
{
    _Atomic uint64_t *word = (_Atomic uint64_t *)v->interest + (uint64_t)topic * v->stride;
    if (wanted)
        atomic_fetch_or_explicit(word, UINT64_C(1) << group, memory_order_seq_cst);
    else
        atomic_fetch_and_explicit(word, ~(UINT64_C(1) << group), memory_order_seq_cst);
}

/* Does a list of names and patterns want this topic? One that changes meanwhile, or is impossible, wants
 * it: a floor that stands too low costs less than a message that is lost. */
static inline int rc_group_list_wants(const rc_wishes *wishes, const char *name, uint32_t length)
{
    char want[RC_TOPIC_NAME_MAX + 1];
    uint64_t version = rc_load_acquire(&wishes->version), bytes = rc_load(&wishes->length), word = 0;
    uint32_t at = 0;
    int found = 0;
    if (bytes > RC_WISH_MAX)
        return 1;
    for (uint64_t i = 0; i < bytes && !found; i++) {
        char letter;
        if ((i & 7) == 0)
            word = rc_load(&wishes->words[i / 8]);
        memcpy(&letter, (const char *)&word + (i & 7), 1);
        if (letter != 0) {
            if (at == RC_TOPIC_NAME_MAX)
                return 1;
            want[at++] = letter;
            continue;
        }
        found = memchr(want, '*', at) ? rc_matches(want, at, name, length)
                                      : at == length && memcmp(want, name, length) == 0;
        at = 0;
    }
    return found || !rc_unchanged(&wishes->version, version);
}

/* Match one row of the topic table with what a group wants. Again if the row has become another group's
 * meanwhile: then the bit is as the new one's list says, whoever sets it. */
static inline void rc_group_match(const rc_group_view *v, void *control, const rc_geometry *g,
                                  uint32_t group, uint32_t topic)
{
    const rc_topic *topic_row = &v->topics[topic - 1];
    const rc_group_row *row = &((rc_control *)control)->group_rows[group];
    uint64_t generation = rc_load_acquire(&row->state) >> 8, before;
    uint32_t tries = 0;
    do {
        before = generation;
        rc_group_mark(v, group, topic,
                      rc_group_list_wants(rc_group_wishes_at(control, g, group), topic_row->name,
                                          rc_topic_name_length(topic_row)));
        generation = rc_load_acquire(&row->state) >> 8;
    } while (generation != before && ++tries < RC_MATCH_TRIES);
}

static inline uint64_t rc_group_state(uint64_t generation, uint64_t state)
{
    return generation << 8 | state;
}

static inline int rc_group_is_active(const rc_group_row *row)
{
    return (rc_load_acquire(&row->state) & 0xff) == RC_GROUP_ACTIVE;
}

/* Does a group in this state hold the ring at its floor? HOLDING: also one whose maker died there. */
static inline int rc_group_state_holds(uint64_t state)
{
    return (state & 0xff) == RC_GROUP_ACTIVE || (state & 0xff) == RC_GROUP_HOLDING;
}

static inline int rc_group_holds(const rc_group_row *row)
{
    return rc_group_state_holds(rc_load_acquire(&row->state));
}

/* Is there a group in this row? */
static inline int rc_group_is_made(const rc_group_row *row)
{
    uint64_t state = rc_load_acquire(&row->state);
    return rc_group_state_holds(state) || (state & 0xff) == RC_GROUP_DEMOTED;
}

/* The member after this slot, in the order of slots and round again; RC_NOBODY if there is none. */
static inline uint32_t rc_group_next(const _Atomic uint64_t *bitmap, uint32_t max_readers,
                                     uint32_t slot)
{
    uint32_t words = (max_readers + 63) / 64, first = (slot + 1) / 64;
    for (uint32_t i = 0; i <= words; i++) {
        uint32_t word = (first + i) % words;
        uint64_t bits = rc_load(&bitmap[word]);
        if (i == 0 && first < words)
            bits &= ~(rc_bit(slot + 1) - 1);
        if (word == words - 1 && max_readers % 64)
            bits &= rc_bit(max_readers) - 1;
        if (bits)
            return word * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return RC_NOBODY;
}

#endif

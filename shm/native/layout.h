/* layout.h - the bytes of a ringcast ring: what lies where, and who may write it.
 *
 * A ring NAME is two shared-memory segments and a set of named semaphores.
 *
 *   /rc.NAME.d   data      written by the writer only; readers map it PROT_READ
 *   /rc.NAME.c   control   written by the writer and by readers; its inode carries the locks
 *
 * and for each work group a segment /rc.NAME.g.GROUP of its members, which group_layout.h describes.
 *
 * Data segment                                       Control segment
 *
 *   0x0000 +--------------------------------+          0x0000 +--------------------------------+
 *          | identity  (constant)           |                 | identity  (constant)           |
 *   0x0080 +--------------------------------+          0x0080 +--------------------------------+
 *          | published, destined            |                 | wanted, enough                 |
 *   0x0100 +--------------------------------+          0x0100 +--------------------------------+
 *          | gate, settled                  |                 | waiters   1024 bits            |
 *   0x0180 +--------------------------------+          0x0180 +--------------------------------+
 *          | writer: state epoch pid since  |                 | gating    1024 bits            |
 *          |         topics answers         |          0x0200 +--------------------------------+
 *   0x0200 +--------------------------------+                 | choosers  1024 bits            |
 *          | note: version, two copies      |          0x0280 +--------------------------------+
 *   0x0a80 +--------------------------------+                 | groups      32 bits            |
 *          | zero                           |          0x0300 +--------------------------------+
 *   0x1000 +--------------------------------+                 | group rows  32 of 640 bytes    |
 *          | descriptors  slots * 64 bytes  |          0x5300 +--------------------------------+
 *          +--------------------------------+                 | slot 0: cursor                 |
 *          | arena        capacity bytes    |          0x5380 |         identity, state        |
 *          +--------------------------------+          0x5400 |         statistics             |
 *          | topics       max_topics rows   |          0x5480 +--------------------------------+
 *          +--------------------------------+                 | slot 1 ...   max_readers slots |
 *          | answers      max_readers rows  |                 +--------------------------------+
 *          +--------------------------------+                 | interest: a row of bits for    |
 *                                                             |   each topic, a bit per slot   |
 *                                                             |   and a bit per group          |
 *                                                             +--------------------------------+
 *                                                             | partitions  32 tables of words |
 *                                                             +--------------------------------+
 *                                                             | wishes      max_readers lists, |
 *                                                             |   and one per group            |
 *                                                             +--------------------------------+
 *
 * Lines are 128 bytes, not 64: adjacent-line prefetchers move lines in pairs, and what one side
 * writes must not share a pair with what the other side writes.
 *
 * Counters are monotonic and 64 bits wide. A *sequence* counts messages, a *position* counts
 * arena bytes; sequence & (slots - 1) is a descriptor's index, position & (capacity - 1) an
 * arena offset. At 10^9 messages a second a sequence lasts 584 years.
 *
 * Everything here is little or big endian as the machine is; the magic shows which. The numbers
 * are asserted below, and tests compare them with what Python declares.
 */
#ifndef RINGCAST_LAYOUT_H
#define RINGCAST_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RC_MAGIC_DATA UINT64_C(0x0a44474e49526372)    /* "rcRING" 'D' '\n' on little endian */
#define RC_MAGIC_CONTROL UINT64_C(0x0a43474e49526372) /* "rcRING" 'C' '\n' */
#define RC_VERSION 5u
#define RC_LINE 128u

#define RC_DESCRIPTORS_OFFSET 4096u
#define RC_CONTROL_LEAST 640u /* bytes of a control segment of any version */
#define RC_GROUP_ROWS_OFFSET 768u
#define RC_READERS_OFFSET 21248u
#define RC_READERS_MAX 1024u
#define RC_BITMAP_WORDS (RC_READERS_MAX / 64u)
#define RC_GROUPS_MAX 32u
#define RC_MEMBERS_MAX 256u   /* of one group */
#define RC_PARTITIONS 1024u   /* of one group */
#define RC_GROUP_NAME_WORDS 4u /* as long as a ring's, with its NUL */

#define RC_SLOTS_MIN 4u
#define RC_SLOTS_MAX (UINT64_C(1) << 26)
#define RC_CAPACITY_MIN 256u
#define RC_CAPACITY_MAX (UINT64_C(1) << 40)
#define RC_MESSAGE_MAX UINT64_C(0x7fffffff)
#define RC_ALIGNMENT 8u /* of a payload the writer places itself; equal lengths give equal strides */
#define RC_LABEL_MAX 64u
#define RC_NOTE_WORDS 127u
#define RC_NOTE_MAX (RC_NOTE_WORDS * 8u)

#define RC_TOPICS_MAX 65536u
#define RC_TOPIC_NAME_MAX 127u /* bytes */
#define RC_REASON_WORDS 14u
#define RC_REASON_MAX (RC_REASON_WORDS * 8u) /* bytes */
#define RC_ANSWER_WORDS 61u
#define RC_ANSWER_MAX (RC_ANSWER_WORDS * 8u) /* bytes */
#define RC_WISH_WORDS 8190u
#define RC_WISH_MAX (RC_WISH_WORDS * 8u) /* bytes of a reader's list */
#define RC_WANT_MAX ((RC_WISH_MAX - 1u) / 2u) /* of all that it wants, a NUL after each */
/* Rows of the interest table after those of the topics 0 (none) to max_topics. */
#define RC_INTEREST_EVENTS 1u   /* + max_topics: records of kind EVENT */
#define RC_INTEREST_ARRIVALS 2u /* + max_topics: topics that are not in the table yet */
#define RC_INTEREST_ROWS 3u     /* + max_topics */

/* Bytes of the control segment's inode that carry open-file-description locks. They are byte
 * numbers for fcntl, not contents. */
#define RC_LOCK_WRITER 0
#define RC_LOCK_READER 1 /* + slot index */
#define RC_LOCK_GROUPS 4096 /* who makes, revives or removes a group, or joins one */

/* kind */
enum { RC_KIND_TEXT = 1, RC_KIND_BINARY = 2, RC_KIND_EVENT = 16 };

/* descriptor.flags: how many bytes of a WebSocket frame's header stand in the arena directly before the
 * payload; 0: none. Read them with rc_header_bytes(). And whether the message answers somebody's, and
 * says nothing to who has asked nothing. */
#define RC_FLAG_HEADER_BITS 0x000fu
#define RC_FLAG_ANSWER 0x0010u

/* header.state */
enum { RC_RING_OPEN = 1, RC_RING_CLOSED = 2 };

/* Low byte of a reader slot's state word; the rest is the slot's generation. */
enum {
    RC_FREE = 0,
    RC_JOINING = 1,
    RC_ACTIVE = 2,
    RC_DEMOTING = 3,
    RC_DEMOTED = 4,
    RC_EVICTED = 5,
    RC_DEAD = 6,
};

/* reader policy; a member's hold on the ring is its group's */
enum { RC_BLOCK = 1, RC_LOSSY = 2, RC_MEMBER = 3 };

/* Low byte of a group row's state word; the rest is the row's generation. */
enum {
    RC_GROUP_NONE = 0,
    RC_GROUP_MAKING = 1,
    RC_GROUP_ACTIVE = 2,
    RC_GROUP_DEMOTED = 3,
    RC_GROUP_HOLDING = 4, /* its floor may lie below the gate yet */
};

/* group balance */
enum { RC_ANY = 1, RC_KEY = 2, RC_ROUND_ROBIN = 3 };

/* A descriptor's destination: whom it was for is gone. */
#define RC_FOR_NOBODY 0xffffu

/* slot.chooses: what a reader takes. 0: every message; else these, and the topics that it wants. */
enum { RC_CHOOSES = 1, RC_OTHERS = 2 /* messages without a topic */ };

typedef struct rc_identity {
    uint64_t magic; /* stored last of all, by the creator */
    uint32_t version;
    uint32_t max_readers;
    uint64_t layout_hash;
    uint64_t total_size; /* of this segment, bytes */
    uint64_t instance;   /* random; the same in both segments and in the semaphores' names */
    uint64_t slots;
    uint64_t capacity;
    uint64_t max_message; /* bytes */
    uint64_t created_ns;  /* Unix time */
    uint32_t max_topics;
    uint32_t zero;
} rc_identity;

/* What the writer wants known of itself at any time, such as the state of its connection: bytes
 * that mean something to the application alone. Copy number version & 1 is the one to read, and the
 * writer works on the other, so one that dies meanwhile leaves a whole note. */
typedef struct rc_note {
    _Atomic uint64_t length; /* bytes */
    _Atomic uint64_t words[RC_NOTE_WORDS];
} rc_note;

typedef struct rc_header {
    _Alignas(128) rc_identity identity;
    _Alignas(128) _Atomic uint64_t published; /* next sequence: all below it may be read */
    _Atomic uint64_t destined; /* sequence + 1 of the newest message with a destination; 0: none */
    _Alignas(128) _Atomic uint64_t gate;      /* all below it may be overwritten */
    _Atomic uint64_t settled;                 /* the same, after the second look: the last gate used */
    _Alignas(128) _Atomic uint32_t state;
    _Atomic uint32_t epoch; /* 1 for the creator, one more at each resume */
    _Atomic uint64_t writer_pid;
    _Atomic uint64_t writer_since_ns; /* Unix time */
    _Atomic uint32_t topics;          /* rows of the topic table in use: ids 1 to this */
    _Atomic uint32_t answers_wishes;  /* 1: somebody answers what readers wish for */
    _Alignas(128) _Atomic uint64_t note_version;
    _Alignas(128) rc_note notes[2];
} rc_header;

/* One message. seq1 is the sequence plus one, so a zeroed slot holds no message; it is stored
 * last, with release, and read first, with acquire. The rest is moved as relaxed words. */
typedef union rc_descriptor {
    struct {
        uint64_t seq1;
        uint64_t position; /* of the payload; monotonic */
        uint32_t length;   /* bytes */
        uint32_t topic;
        uint64_t time_ns; /* Unix time of receipt */
        uint64_t key;     /* partition hash; 0 for none. For one reader: its slot's generation */
        uint16_t kind;
        uint16_t connection;
        uint16_t destination; /* 0 for everyone, RC_FOR_NOBODY, else reader slot + 1 */
        uint16_t flags;
        uint32_t epoch;
        uint32_t crc32c; /* 0 unless flags say otherwise */
        uint64_t reserved;
    } f;
    _Atomic uint64_t words[8];
} rc_descriptor;

/* Of a descriptor that may change meanwhile: one load, whatever the byte order. */
static inline uint32_t rc_descriptor_length(const rc_descriptor *d)
{
    rc_descriptor copy;
    atomic_init(&copy.words[2], atomic_load_explicit(&d->words[2], memory_order_relaxed));
    return copy.f.length;
}

/* Bytes of the header of an unmasked frame with so many bytes of payload (RFC 6455 section 5.2). */
static inline uint32_t rc_frame_header(uint32_t length)
{
    return length < 126 ? 2 : length < 65536 ? 4 : 10;
}

/* How many bytes directly before the payload are the header of the one frame that the message came in,
 * unmasked, FIN, without reserved bits: 2, 4 or 10, and in one piece with the payload; 0: there is no
 * such header. What protects the payload protects them, too. 0 is also what an impossible number says:
 * one that such a frame of this length does not have, or more bytes than lie before the payload in its
 * round of the arena. So whatever the flags hold, no byte outside the arena is meant. */
static inline uint32_t rc_header_bytes(const rc_descriptor *d, uint64_t capacity)
{
    uint32_t bytes = d->f.flags & RC_FLAG_HEADER_BITS;
    if (bytes != rc_frame_header(d->f.length) || (d->f.position & (capacity - 1)) < bytes)
        return 0;
    return bytes;
}

/* A topic: row id - 1. The name stands before the row is counted in header.topics, and never changes.
 * The writer alone writes; topics.h says how the rest is read. */
typedef struct rc_topic {
    _Alignas(128) char name[RC_TOPIC_NAME_MAX + 1]; /* UTF-8, NUL-terminated */
    _Alignas(128) _Atomic uint64_t messages;
    _Atomic uint64_t bytes;
    _Atomic uint64_t seq1;    /* of the newest message, as in its descriptor; 0: none yet */
    _Atomic uint64_t time_ns; /* of the newest message */
    _Atomic uint64_t key;     /* hash of the name */
    _Alignas(128) _Atomic uint64_t version; /* odd while the words below change */
    _Atomic uint64_t state; /* means something to the application alone; 0 at first */
    _Atomic uint64_t reason[RC_REASON_WORDS]; /* UTF-8, NUL-padded */
} rc_topic;

/* What becomes of one reader's wishes, as far as no row of the topic table says it. Written by the
 * writer alone. */
typedef struct rc_answer {
    _Alignas(128) _Atomic uint64_t version; /* odd while the words below change */
    _Atomic uint64_t wishes; /* version of the wishes that were last looked at */
    _Atomic uint64_t length; /* bytes of text */
    _Atomic uint64_t words[RC_ANSWER_WORDS];
} rc_answer;

/* What one reader wants: names and patterns, each with a NUL after it; then, if there are any, an empty
 * one and the names of which it asks for a snapshot. Written by the reader alone. */
typedef struct rc_wishes {
    _Alignas(128) _Atomic uint64_t version; /* odd while the words below change */
    _Atomic uint64_t length; /* bytes */
    _Atomic uint64_t words[RC_WISH_WORDS];
} rc_wishes;

typedef struct rc_slot {
    _Alignas(128) _Atomic uint64_t cursor; /* next sequence the reader needs; the owner stores it */
    _Alignas(128) _Atomic uint64_t state;  /* generation << 8 | state */
    _Atomic uint32_t policy;
    _Atomic uint32_t pid;
    _Atomic uint64_t started; /* the process's start time, clock ticks since boot */
    _Atomic uint64_t joined_ns; /* Unix time */
    char label[RC_LABEL_MAX];   /* UTF-8, NUL-terminated */
    _Alignas(128) _Atomic uint64_t received; /* messages handed out */
    _Atomic uint64_t lost;                   /* messages missed */
    _Atomic uint64_t skipped;                /* messages passed over */
    _Atomic uint32_t chooses;                /* RC_CHOOSES, RC_OTHERS */
    _Atomic uint32_t group;                  /* of a member: its group's row + 1 */
} rc_slot;

/* A work group, as far as the writer minds it; group_table.h has the protocol. */
typedef struct rc_group_row {
    _Alignas(128) _Atomic uint64_t floor; /* all below it is done; members and writer, never back */
    _Alignas(128) _Atomic uint64_t head;  /* rc_head(): next sequence to be claimed, whose turn was last */
    _Alignas(128) _Atomic uint64_t state; /* generation << 8 | state */
    _Atomic uint64_t again;  /* goes up when members are to look again from the floor on */
    _Atomic uint64_t gap;    /* messages missed and not yet reported with a message */
    _Atomic uint64_t lost;   /* messages missed in all */
    _Atomic uint64_t created_ns; /* Unix time */
    _Atomic uint64_t name[RC_GROUP_NAME_WORDS]; /* NUL-terminated */
    _Atomic uint32_t balance;
    _Atomic uint32_t chooses; /* RC_CHOOSES, RC_OTHERS */
    _Atomic uint32_t max_deliveries;
    _Atomic uint32_t called; /* RC_ANY: a sleeper was posted and has not answered yet */
    _Atomic uint64_t aside; /* messages set aside, in all */
    _Alignas(128) _Atomic uint64_t asleep[RC_BITMAP_WORDS];  /* members, by reader slot */
    _Alignas(128) _Atomic uint64_t members[RC_BITMAP_WORDS]; /* likewise */
} rc_group_row;

typedef struct rc_control {
    _Alignas(128) rc_identity identity;
    _Alignas(128) _Atomic uint64_t wanted; /* cursor + 1 that the writer waits for; 0: none */
    _Atomic uint64_t enough;               /* cursor + 1 whose crossing wakes it; 0: none */
    _Alignas(128) _Atomic uint64_t waiters[RC_BITMAP_WORDS];
    _Alignas(128) _Atomic uint64_t gating[RC_BITMAP_WORDS];
    _Alignas(128) _Atomic uint64_t choosers[RC_BITMAP_WORDS];
    _Alignas(128) _Atomic uint64_t groups; /* rows where the writer is to look */
    _Alignas(128) rc_group_row group_rows[RC_GROUPS_MAX];
    _Alignas(128) rc_slot readers[]; /* max_readers */
} rc_control;

static_assert(sizeof(void *) == 8, "ringcast needs a 64-bit machine");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "ringcast needs lock-free 64-bit atomics");
static_assert(sizeof(_Atomic uint64_t) == 8, "atomics carry no lock");
static_assert(sizeof(rc_descriptor) == 64, "a descriptor is one cache line");
static_assert(offsetof(rc_descriptor, f.position) == 8, "");
static_assert(offsetof(rc_descriptor, f.length) == 16, "");
static_assert(offsetof(rc_descriptor, f.topic) == 20, "");
static_assert(offsetof(rc_descriptor, f.time_ns) == 24, "");
static_assert(offsetof(rc_descriptor, f.key) == 32, "");
static_assert(offsetof(rc_descriptor, f.kind) == 40, "");
static_assert(offsetof(rc_descriptor, f.connection) == 42, "");
static_assert(offsetof(rc_descriptor, f.destination) == 44, "");
static_assert(offsetof(rc_descriptor, f.flags) == 46, "");
static_assert(offsetof(rc_descriptor, f.epoch) == 48, "");
static_assert(offsetof(rc_descriptor, f.crc32c) == 52, "");
static_assert(sizeof(rc_identity) == 80, "");
static_assert(offsetof(rc_header, published) == 0x080, "");
static_assert(offsetof(rc_header, destined) == 0x088, "");
static_assert(offsetof(rc_header, gate) == 0x100, "");
static_assert(offsetof(rc_header, settled) == 0x108, "");
static_assert(offsetof(rc_header, state) == 0x180, "");
static_assert(offsetof(rc_header, epoch) == 0x184, "");
static_assert(offsetof(rc_header, writer_pid) == 0x188, "");
static_assert(offsetof(rc_header, topics) == 0x198, "");
static_assert(offsetof(rc_header, answers_wishes) == 0x19c, "");
static_assert(offsetof(rc_header, note_version) == 0x200, "");
static_assert(offsetof(rc_header, notes) == 0x280 && sizeof(rc_note) == 0x400, "");
static_assert(sizeof(rc_header) == 0xa80 && sizeof(rc_header) <= RC_DESCRIPTORS_OFFSET, "");
static_assert(offsetof(rc_control, wanted) == 0x080, "");
static_assert(offsetof(rc_control, waiters) == 0x100, "");
static_assert(offsetof(rc_control, gating) == 0x180, "");
static_assert(offsetof(rc_control, choosers) == 0x200, "");
static_assert(offsetof(rc_control, groups) == 0x280, "");
static_assert(offsetof(rc_control, group_rows) == RC_GROUP_ROWS_OFFSET, "");
static_assert(sizeof(rc_group_row) == 640, "");
static_assert(offsetof(rc_group_row, head) == 0x080, "");
static_assert(offsetof(rc_group_row, state) == 0x100, "");
static_assert(offsetof(rc_group_row, name) == 0x128, "");
static_assert(offsetof(rc_group_row, balance) == 0x148, "");
static_assert(offsetof(rc_group_row, called) == 0x154, "");
static_assert(offsetof(rc_group_row, asleep) == 0x180, "");
static_assert(offsetof(rc_group_row, members) == 0x200, "");
static_assert(offsetof(rc_control, readers) == RC_READERS_OFFSET, "");
static_assert(sizeof(rc_slot) == 384, "");
static_assert(offsetof(rc_slot, state) == 0x080, "");
static_assert(offsetof(rc_slot, label) == 0x0a0, "");
static_assert(offsetof(rc_slot, received) == 0x100, "");
static_assert(offsetof(rc_slot, skipped) == 0x110, "");
static_assert(offsetof(rc_slot, group) == 0x11c, "");
static_assert(sizeof(rc_topic) == 384, "");
static_assert(offsetof(rc_topic, messages) == 0x080, "");
static_assert(offsetof(rc_topic, version) == 0x100, "");
static_assert(sizeof(rc_answer) == 512, "");
static_assert(sizeof(rc_wishes) == 65536, "");

/* A fingerprint of the numbers above (FNV-1a, 64 bits): two builds that disagree on any of them
 * refuse each other's rings. */
static inline uint64_t rc_layout_hash(void)
{
    static const uint32_t numbers[] = {
        RC_VERSION, RC_LINE, RC_DESCRIPTORS_OFFSET, RC_READERS_OFFSET, RC_READERS_MAX, RC_ALIGNMENT,
        sizeof(rc_identity), sizeof(rc_header), sizeof(rc_descriptor), sizeof(rc_slot),
        offsetof(rc_identity, instance), offsetof(rc_identity, max_message),
        offsetof(rc_header, published), offsetof(rc_header, destined), offsetof(rc_header, gate), offsetof(rc_header, settled),
        offsetof(rc_header, state), offsetof(rc_header, writer_pid), offsetof(rc_header, note_version),
        offsetof(rc_header, notes), sizeof(rc_note), offsetof(rc_descriptor, f.position),
        offsetof(rc_descriptor, f.length), offsetof(rc_descriptor, f.time_ns),
        offsetof(rc_descriptor, f.key), offsetof(rc_descriptor, f.kind),
        offsetof(rc_descriptor, f.epoch), offsetof(rc_control, wanted),
        offsetof(rc_control, waiters), offsetof(rc_control, gating), offsetof(rc_slot, state),
        offsetof(rc_slot, label), offsetof(rc_slot, received), RC_LOCK_WRITER, RC_LOCK_READER,
        offsetof(rc_identity, max_topics), offsetof(rc_header, topics), sizeof(rc_topic),
        offsetof(rc_topic, messages), offsetof(rc_topic, version), sizeof(rc_answer),
        sizeof(rc_wishes), offsetof(rc_control, choosers), offsetof(rc_slot, skipped),
        RC_INTEREST_ROWS, RC_GROUPS_MAX, RC_PARTITIONS, RC_LOCK_GROUPS, sizeof(rc_group_row),
        offsetof(rc_control, groups), offsetof(rc_group_row, head), offsetof(rc_group_row, state),
        offsetof(rc_group_row, name), offsetof(rc_group_row, asleep), offsetof(rc_slot, group),
        offsetof(rc_descriptor, f.flags), RC_FLAG_HEADER_BITS,
    };
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        hash = (hash ^ numbers[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* The numbers an endpoint works with. Copied out of the segment once, checked, and never read
 * from it again: what stands in shared memory may change under a hostile peer's hand. */
typedef struct rc_geometry {
    uint64_t slots;
    uint64_t capacity;
    uint64_t max_message;
    uint64_t instance;
    uint32_t max_readers;
    uint32_t max_topics;
} rc_geometry;

typedef enum rc_check_result {
    RC_OK = 0,
    RC_TOO_SMALL,       /* the segment is smaller than its header */
    RC_INCOMPLETE,      /* no magic: the creator has not finished, or died */
    RC_NOT_A_RING,      /* another magic */
    RC_OTHER_ENDIAN,    /* the magic, byte-swapped */
    RC_OTHER_VERSION,   /* another layout version */
    RC_OTHER_LAYOUT,    /* the same version, other numbers */
    RC_BAD_GEOMETRY,    /* slots, capacity or limits out of range */
    RC_BAD_SIZE,        /* the segment's size is not what its header says */
    RC_OTHER_INSTANCE,  /* data and control segments of different rings */
} rc_check_result;

static inline int rc_is_power_of_two(uint64_t n) { return n && !(n & (n - 1)); }

/* Where things lie, in bytes from the start of their segment, and how long the segments are. */

static inline uint64_t rc_topics_offset(const rc_geometry *g)
{
    return RC_DESCRIPTORS_OFFSET + g->slots * sizeof(rc_descriptor) + g->capacity;
}

static inline uint64_t rc_answers_offset(const rc_geometry *g)
{
    return rc_topics_offset(g) + (uint64_t)g->max_topics * sizeof(rc_topic);
}

static inline uint64_t rc_data_size(const rc_geometry *g)
{
    return rc_answers_offset(g) + (uint64_t)g->max_readers * sizeof(rc_answer);
}

/* Words of a row of the interest table that have a bit for each reader slot. One more has a bit for
 * each group. */
static inline uint32_t rc_interest_words(const rc_geometry *g)
{
    return (g->max_readers + 63) / 64;
}

/* Words from one row of the interest table to the next. */
static inline uint32_t rc_interest_stride(const rc_geometry *g) { return rc_interest_words(g) + 1; }

static inline uint64_t rc_interest_offset(const rc_geometry *g)
{
    return RC_READERS_OFFSET + (uint64_t)g->max_readers * sizeof(rc_slot);
}

static inline uint64_t rc_partitions_offset(const rc_geometry *g)
{
    uint64_t rows = (uint64_t)g->max_topics + RC_INTEREST_ROWS;
    uint64_t end = rc_interest_offset(g) + rows * rc_interest_stride(g) * sizeof(uint64_t);
    return (end + RC_LINE - 1) / RC_LINE * RC_LINE;
}

static inline uint64_t rc_wishes_offset(const rc_geometry *g)
{
    return rc_partitions_offset(g) + (uint64_t)RC_GROUPS_MAX * RC_PARTITIONS * sizeof(uint64_t);
}

/* Of a group's list; those of the readers come first. */
static inline uint64_t rc_group_wishes_offset(const rc_geometry *g, uint32_t group)
{
    return rc_wishes_offset(g) + ((uint64_t)g->max_readers + group) * sizeof(rc_wishes);
}

static inline uint64_t rc_control_size(const rc_geometry *g)
{
    return rc_group_wishes_offset(g, RC_GROUPS_MAX);
}

static inline uint64_t rc_message_limit(uint64_t capacity)
{
    return capacity / 4 < RC_MESSAGE_MAX ? capacity / 4 : RC_MESSAGE_MAX;
}

static inline rc_check_result rc_check_identity(const rc_identity *id, uint64_t magic)
{
    /* acquire: pairs with the release in rc_seal(), so a visible magic means a whole header */
    uint64_t found = __atomic_load_n(&id->magic, __ATOMIC_ACQUIRE);
    if (found == 0)
        return RC_INCOMPLETE;
    if (found == __builtin_bswap64(magic))
        return RC_OTHER_ENDIAN;
    if (found != magic)
        return RC_NOT_A_RING;
    if (id->version != RC_VERSION)
        return RC_OTHER_VERSION;
    return id->layout_hash == rc_layout_hash() ? RC_OK : RC_OTHER_LAYOUT;
}

static inline rc_check_result rc_check_numbers(const rc_geometry *g)
{
    if (!rc_is_power_of_two(g->slots) || g->slots < RC_SLOTS_MIN || g->slots > RC_SLOTS_MAX)
        return RC_BAD_GEOMETRY;
    if (!rc_is_power_of_two(g->capacity) || g->capacity < RC_CAPACITY_MIN ||
        g->capacity > RC_CAPACITY_MAX)
        return RC_BAD_GEOMETRY;
    if (g->max_readers < 1 || g->max_readers > RC_READERS_MAX)
        return RC_BAD_GEOMETRY;
    if (g->max_topics < 1 || g->max_topics > RC_TOPICS_MAX)
        return RC_BAD_GEOMETRY;
    return g->max_message == rc_message_limit(g->capacity) ? RC_OK : RC_BAD_GEOMETRY;
}

static inline void rc_read_numbers(const rc_identity *id, rc_geometry *g)
{
    const volatile rc_identity *once = id;
    g->slots = once->slots;
    g->capacity = once->capacity;
    g->max_message = once->max_message;
    g->instance = once->instance;
    g->max_readers = once->max_readers;
    g->max_topics = once->max_topics;
}

/* Check both segments, of which data_size and control_size bytes are mapped, and copy the
 * geometry out. Nothing outside the mapped bytes is read, whatever the segments hold. */
static inline rc_check_result rc_check_segments(const void *data, uint64_t data_size,
                                               const void *control, uint64_t control_size,
                                               rc_geometry *out)
{
    const rc_header *header = data;
    const rc_control *shared = control;
    rc_geometry other;
    rc_check_result fault;
    if (data_size < RC_DESCRIPTORS_OFFSET || control_size < RC_CONTROL_LEAST)
        return RC_TOO_SMALL;
    if ((fault = rc_check_identity(&header->identity, RC_MAGIC_DATA)) != RC_OK)
        return fault;
    if ((fault = rc_check_identity(&shared->identity, RC_MAGIC_CONTROL)) != RC_OK)
        return fault;
    rc_read_numbers(&header->identity, out);
    rc_read_numbers(&shared->identity, &other);
    if ((fault = rc_check_numbers(out)) != RC_OK)
        return fault;
    if (other.instance != out->instance)
        return RC_OTHER_INSTANCE;
    if (other.slots != out->slots || other.capacity != out->capacity ||
        other.max_message != out->max_message || other.max_readers != out->max_readers ||
        other.max_topics != out->max_topics)
        return RC_BAD_GEOMETRY;
    if (header->identity.total_size != rc_data_size(out) ||
        shared->identity.total_size != rc_control_size(out) ||
        data_size != rc_data_size(out) || control_size != rc_control_size(out))
        return RC_BAD_SIZE;
    return RC_OK;
}

static inline void rc_fill_identity(rc_identity *id, const rc_geometry *g, uint64_t size,
                                    uint64_t created_ns)
{
    id->version = RC_VERSION;
    id->max_readers = g->max_readers;
    id->layout_hash = rc_layout_hash();
    id->total_size = size;
    id->instance = g->instance;
    id->slots = g->slots;
    id->capacity = g->capacity;
    id->max_message = g->max_message;
    id->created_ns = created_ns;
    id->max_topics = g->max_topics;
}

/* The creator's last act: from here on the ring can be attached. The data segment's magic is the
 * very last store. */
static inline void rc_seal(void *data, void *control)
{
    /* release: pairs with the acquire in rc_check_identity() */
    __atomic_store_n(&((rc_control *)control)->identity.magic, RC_MAGIC_CONTROL, __ATOMIC_RELEASE);
    __atomic_store_n(&((rc_header *)data)->identity.magic, RC_MAGIC_DATA, __ATOMIC_RELEASE);
}

#endif

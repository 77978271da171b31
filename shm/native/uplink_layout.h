/* uplink_layout.h - the bytes of an uplink: what lies where, and who may write it.
 *
 * An uplink NAME is one segment, /rc.NAME.u, and a set of named semaphores. Senders and the receiver
 * write it; its inode carries the locks that say who lives (byte 0: the receiver, 1 + n: lane n).
 *
 *   0x0000 +--------------------------------+
 *          | identity  (constant)           |
 *   0x0080 +--------------------------------+
 *          | head, flushed, window, taking  |   the receiver's
 *   0x0100 +--------------------------------+
 *          | tail (a hint)                  |   the senders'
 *   0x0180 +--------------------------------+
 *          | state epoch pid since sleeping |
 *   0x0200 +--------------------------------+
 *          | waiters   1024 bits            |
 *   0x0280 +--------------------------------+
 *          | lane 0: written, sent          |   its sender's
 *   0x0300 |         taken, counts          |   the receiver's
 *   0x0380 |         state, identity        |
 *   0x0400 +--------------------------------+
 *          | lane 1 ...   max_senders lanes |
 *          +--------------------------------+
 *          | tickets      tickets * 8 bytes |
 *          +--------------------------------+
 *          | lane 0's records  lane_bytes   |
 *          | lane 1's ...                   |
 *          +--------------------------------+
 *
 * What the words mean, and in which order they change, stands in mpsc.h.
 */
#ifndef RINGCAST_UPLINK_LAYOUT_H
#define RINGCAST_UPLINK_LAYOUT_H

#include "base.h"
#include "layout.h"

#define RC_MAGIC_UPLINK UINT64_C(0x0a55474e49526372) /* "rcRING" 'U' '\n' */
#define RC_UPLINK_VERSION 1u
#define RC_SENDERS_MAX 1024u
#define RC_LANES_OFFSET 640u
#define RC_RECORD_ALIGNMENT 64u
#define RC_LANE_MIN 256u
#define RC_LANE_MAX (UINT64_C(1) << 32)
#define RC_TICKETS_MAX (UINT64_C(1) << 28)
#define RC_OWNER_BITS 16
#define RC_PADDING UINT64_MAX /* a record's ticket: nothing up to the lane's end */
#define RC_HOLE_LOOKS 4096u
#define RC_LOCK_RECEIVER 0
#define RC_LOCK_LANE 1 /* + lane index */

typedef struct rc_uplink_identity {
    uint64_t magic; /* stored last of all, by the creator */
    uint32_t version;
    uint32_t max_senders;
    uint64_t layout_hash;
    uint64_t total_size; /* bytes */
    uint64_t instance;   /* random; also in the semaphores' names */
    uint64_t tickets;
    uint64_t lane_bytes;
    uint64_t max_message; /* bytes */
    uint64_t created_ns;  /* Unix time */
} rc_uplink_identity;

typedef struct rc_lane {
    _Alignas(128) _Atomic uint64_t written; /* position after the last record */
    _Atomic uint64_t sent;                  /* messages, by all the lane's senders */
    _Alignas(128) _Atomic uint64_t taken;   /* position after the last record taken */
    _Atomic uint64_t taken_count;           /* messages */
    _Atomic uint64_t answered;              /* of those, acknowledged or rejected */
    _Atomic uint64_t unconfirmed;                /* of those, taken by a receiver that then died */
    _Atomic uint64_t done_count;            /* answered and unconfirmed */
    _Atomic uint64_t rejected;               /* of the answered, those not delivered */
    _Alignas(128) _Atomic uint64_t state;   /* generation << 8 | state, as a reader slot's */
    _Atomic uint32_t pid;
    _Atomic uint32_t padding;
    _Atomic uint64_t started;   /* clock ticks since boot */
    _Atomic uint64_t joined_ns; /* Unix time */
    char label[RC_LABEL_MAX];   /* UTF-8, NUL-terminated */
} rc_lane;

typedef struct rc_uplink {
    _Alignas(128) rc_uplink_identity identity;
    _Alignas(128) _Atomic uint64_t head; /* next ticket to take */
    _Atomic uint64_t flushed;            /* all tickets below are acknowledged */
    _Atomic uint64_t window;             /* messages a sender may have unacknowledged; 0: any */
    _Atomic uint64_t taking; /* filled word of the newest message taken, or about to be; 0: none */
    _Atomic uint64_t taking_position; /* its lane's `taken`, and `taken_count`, after it */
    _Atomic uint64_t taking_count;
    _Alignas(128) _Atomic uint64_t tail; /* a hint: next ticket to claim */
    _Alignas(128) _Atomic uint32_t state;
    _Atomic uint32_t epoch;
    _Atomic uint64_t receiver_pid;
    _Atomic uint64_t receiver_since_ns;
    _Atomic uint32_t sleeping; /* the receiver does, or is about to */
    _Atomic uint32_t rejecting; /* nothing can be delivered: senders get RC_REJECTED */
    _Alignas(128) _Atomic uint64_t waiters[RC_SENDERS_MAX / 64];
    _Alignas(128) rc_lane lanes[]; /* max_senders */
} rc_uplink;

typedef struct rc_record {
    _Atomic uint64_t ticket;
    _Atomic uint64_t about; /* length << 32 | kind */
    uint8_t payload[];
} rc_record;

static_assert(sizeof(rc_uplink_identity) == 72, "");
static_assert(offsetof(rc_uplink, head) == 0x080, "");
static_assert(offsetof(rc_uplink, taking) == 0x098, "");
static_assert(offsetof(rc_uplink, tail) == 0x100, "");
static_assert(offsetof(rc_uplink, state) == 0x180, "");
static_assert(offsetof(rc_uplink, waiters) == 0x200, "");
static_assert(offsetof(rc_uplink, lanes) == RC_LANES_OFFSET, "");
static_assert(sizeof(rc_lane) == 384, "");
static_assert(offsetof(rc_lane, taken) == 0x080, "");
static_assert(offsetof(rc_lane, state) == 0x100, "");
static_assert(sizeof(rc_record) == 16, "");

static inline uint64_t rc_uplink_hash(void)
{
    static const uint32_t numbers[] = {
        RC_UPLINK_VERSION, RC_LANES_OFFSET, RC_RECORD_ALIGNMENT, RC_OWNER_BITS, RC_SENDERS_MAX,
        sizeof(rc_uplink_identity), sizeof(rc_lane), sizeof(rc_record), offsetof(rc_uplink, head),
        offsetof(rc_uplink, taking), offsetof(rc_uplink, tail), offsetof(rc_uplink, state),
        offsetof(rc_uplink, waiters), offsetof(rc_lane, taken), offsetof(rc_lane, state),
        offsetof(rc_lane, label),
        RC_LOCK_RECEIVER, RC_LOCK_LANE,
    };
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        hash = (hash ^ numbers[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* ---- geometry ------------------------------------------------------------------------------ */

typedef struct rc_uplink_geometry {
    uint64_t tickets, lane_bytes, max_message, instance;
    uint32_t max_senders;
} rc_uplink_geometry;

/* As many tickets as all lanes together can have outstanding; a power of two. */
static inline uint64_t rc_uplink_tickets(uint32_t max_senders, uint64_t lane_bytes)
{
    uint64_t wanted = max_senders * (lane_bytes / RC_RECORD_ALIGNMENT), tickets = 1;
    while (tickets < wanted)
        tickets *= 2;
    return tickets;
}

/* A record never takes more than half of its lane, so it fits somewhere as soon as the lane is
 * empty, wherever the next one begins. */
static inline uint64_t rc_uplink_message_limit(uint64_t lane_bytes)
{
    uint64_t limit = lane_bytes / 2 - sizeof(rc_record);
    return limit < RC_MESSAGE_MAX ? limit : RC_MESSAGE_MAX;
}

static inline uint64_t rc_uplink_tickets_offset(uint32_t max_senders)
{
    return RC_LANES_OFFSET + (uint64_t)max_senders * sizeof(rc_lane);
}

static inline uint64_t rc_uplink_records_offset(const rc_uplink_geometry *g)
{
    return (rc_uplink_tickets_offset(g->max_senders) + g->tickets * 8 + 4095) & ~UINT64_C(4095);
}

static inline uint64_t rc_uplink_size(const rc_uplink_geometry *g)
{
    return rc_uplink_records_offset(g) + g->max_senders * g->lane_bytes;
}

static inline int rc_uplink_fits(uint32_t max_senders, uint64_t lane_bytes)
{
    return max_senders >= 1 && max_senders <= RC_SENDERS_MAX && rc_is_power_of_two(lane_bytes) &&
           lane_bytes >= RC_LANE_MIN && lane_bytes <= RC_LANE_MAX &&
           rc_uplink_tickets(max_senders, lane_bytes) <= RC_TICKETS_MAX;
}

/* Check a segment of which `size` bytes are mapped, or the copy of its first RC_LANES_OFFSET bytes,
 * and copy the geometry out. */
static inline rc_check_result rc_uplink_check(const void *segment, uint64_t size,
                                             rc_uplink_geometry *out)
{
    const volatile rc_uplink_identity *id = segment;
    if (size < RC_LANES_OFFSET)
        return RC_TOO_SMALL;
    /* acquire: pairs with the release in rc_uplink_seal() */
    uint64_t found = __atomic_load_n(&id->magic, __ATOMIC_ACQUIRE);
    if (found != RC_MAGIC_UPLINK)
        return found == 0 ? RC_INCOMPLETE
               : found == __builtin_bswap64(RC_MAGIC_UPLINK) ? RC_OTHER_ENDIAN : RC_NOT_A_RING;
    if (id->version != RC_UPLINK_VERSION)
        return RC_OTHER_VERSION;
    if (id->layout_hash != rc_uplink_hash())
        return RC_OTHER_LAYOUT;
    out->tickets = id->tickets;
    out->lane_bytes = id->lane_bytes;
    out->max_message = id->max_message;
    out->instance = id->instance;
    out->max_senders = id->max_senders;
    if (!rc_uplink_fits(out->max_senders, out->lane_bytes) ||
        out->tickets != rc_uplink_tickets(out->max_senders, out->lane_bytes) ||
        out->max_message != rc_uplink_message_limit(out->lane_bytes))
        return RC_BAD_GEOMETRY;
    return id->total_size == rc_uplink_size(out) && size == rc_uplink_size(out) ? RC_OK
                                                                                : RC_BAD_SIZE;
}

static inline uint64_t rc_free_word(uint64_t ticket) { return ticket << RC_OWNER_BITS; }

static inline uint64_t rc_filled_word(uint64_t ticket, uint32_t lane)
{
    return ticket << RC_OWNER_BITS | (lane + 1);
}

static inline uint64_t rc_record_size(uint64_t length)
{
    return (sizeof(rc_record) + length + RC_RECORD_ALIGNMENT - 1) & ~(uint64_t)(RC_RECORD_ALIGNMENT - 1);
}

/* ---- what both ends map -------------------------------------------------------------------- */

typedef struct rc_uplink_map {
    rc_uplink *shared;
    _Atomic uint64_t *words;
    uint8_t *records;
    rc_uplink_geometry g;
} rc_uplink_map;

static inline void rc_uplink_place(rc_uplink_map *m, void *segment, const rc_uplink_geometry *g)
{
    m->shared = segment;
    m->words = (_Atomic uint64_t *)((uint8_t *)segment + rc_uplink_tickets_offset(g->max_senders));
    m->records = (uint8_t *)segment + rc_uplink_records_offset(g);
    m->g = *g;
}

static inline _Atomic uint64_t *rc_word_of(const rc_uplink_map *m, uint64_t ticket)
{
    return &m->words[ticket & (m->g.tickets - 1)];
}

static inline uint8_t *rc_lane_at(const rc_uplink_map *m, uint32_t lane, uint64_t position)
{
    return m->records + lane * m->g.lane_bytes + (position & (m->g.lane_bytes - 1));
}

static inline void rc_uplink_format(void *segment, const rc_uplink_geometry *g, uint64_t now_ns)
{
    rc_uplink_map m;
    rc_uplink_place(&m, segment, g);
    rc_uplink_identity *id = &m.shared->identity;
    id->version = RC_UPLINK_VERSION;
    id->max_senders = g->max_senders;
    id->layout_hash = rc_uplink_hash();
    id->total_size = rc_uplink_size(g);
    id->instance = g->instance;
    id->tickets = g->tickets;
    id->lane_bytes = g->lane_bytes;
    id->max_message = g->max_message;
    id->created_ns = now_ns;
    for (uint64_t t = 0; t < g->tickets; t++)
        rc_store(&m.words[t], rc_free_word(t));
}

/* The creator's last act: from here on it can be attached. */
static inline void rc_uplink_seal(void *segment)
{
    /* release: pairs with the acquire in rc_uplink_check() */
    __atomic_store_n(&((rc_uplink *)segment)->identity.magic, RC_MAGIC_UPLINK, __ATOMIC_RELEASE);
}

#endif

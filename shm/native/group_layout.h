/* group_layout.h - the bytes of a work group's segment: what lies where, and who may write it.
 *
 * A group GROUP of ring NAME has one segment of its own, /rc.NAME.g.GROUP, which its members write; its
 * row, partitions and list of topics stand in the ring's control segment (layout.h). Its inode carries
 * no locks: a member is a reader slot, and that has one.
 *
 *   0x0000 +--------------------------------+
 *          | identity  (constant)           |   the ring's numbers, with a magic of its own
 *   0x0080 +--------------------------------+
 *          | generation (constant), looked  |
 *          | redelivered, voided            |
 *   0x0100 +--------------------------------+
 *          | members   1024 words           |   which generation of a reader slot is a member; 0: none
 *   0x2100 +--------------------------------+
 *          | returns   256 of 16 bytes      |   who held what was given back or taken back
 *   0x3100 +--------------------------------+
 *          | aside     64 records           |   what was delivered too often
 *   0x5100 +--------------------------------+
 *          | leases    slots * 8 bytes      |   a word for each sequence that the ring can hold
 *          +--------------------------------+
 *
 * What the words mean, and in which order they change, stands in group.h.
 */
#ifndef RINGCAST_GROUP_LAYOUT_H
#define RINGCAST_GROUP_LAYOUT_H

#include "base.h"
#include "layout.h"

#define RC_MAGIC_GROUP UINT64_C(0x0a47474e49526372) /* "rcRING" 'G' '\n' */
#define RC_LEASES_OFFSET 0x5100u
#define RC_RETURNS 256u
#define RC_ASIDE 64u
#define RC_ASIDE_MEMBERS 8u /* process ids of a record */

/* A message that went from a member without being done. */
typedef struct rc_return {
    _Atomic uint64_t sequence1; /* sequence + 1, stored last; 0: none */
    _Atomic uint64_t pid;
} rc_return;

/* A message that was set aside. */
typedef struct rc_aside {
    _Alignas(128) _Atomic uint64_t sequence1; /* sequence + 1, stored last; 0: none, or it changes */
    _Atomic uint64_t time_ns;                 /* of its receipt, Unix time */
    _Atomic uint64_t set_aside_ns;            /* Unix time */
    _Atomic uint32_t topic;
    _Atomic uint32_t deliveries;
    _Atomic uint32_t count;                   /* of the process ids */
    _Atomic uint32_t pids[RC_ASIDE_MEMBERS];  /* the newest first */
} rc_aside;

typedef struct rc_group_segment {
    _Alignas(128) rc_identity identity;
    _Alignas(128) uint64_t generation; /* of the row: the same as long as the group exists */
    _Atomic uint64_t looked_ns;        /* when somebody last looked for the dead, CLOCK_MONOTONIC */
    _Atomic uint64_t redelivered;      /* deliveries beyond the first */
    _Atomic uint64_t voided;           /* impossible words that were thrown away */
    _Atomic uint64_t returns_count;
    _Atomic uint64_t aside_next; /* place of the next record */
    _Alignas(128) _Atomic uint64_t members[RC_READERS_MAX]; /* generation of the slot + 1 */
    _Alignas(128) rc_return returns[RC_RETURNS];
    _Alignas(128) rc_aside aside[RC_ASIDE];
    _Alignas(128) _Atomic uint64_t leases[]; /* slots */
} rc_group_segment;

static_assert(offsetof(rc_group_segment, generation) == 0x80, "");
static_assert(offsetof(rc_group_segment, members) == 0x100, "");
static_assert(offsetof(rc_group_segment, returns) == 0x2100, "");
static_assert(offsetof(rc_group_segment, aside) == 0x3100 && sizeof(rc_aside) == 128, "");
static_assert(offsetof(rc_group_segment, leases) == RC_LEASES_OFFSET, "");

static inline uint64_t rc_group_size(uint64_t slots)
{
    return RC_LEASES_OFFSET + slots * sizeof(uint64_t);
}

/* Write the header of a new, zeroed segment; the magic last. */
static inline void rc_group_format(rc_group_segment *s, const rc_geometry *g, uint64_t generation,
                                   uint64_t now_ns)
{
    rc_fill_identity(&s->identity, g, rc_group_size(g->slots), now_ns);
    s->generation = generation;
    /* release: pairs with the acquire in rc_check_identity() */
    __atomic_store_n(&s->identity.magic, RC_MAGIC_GROUP, __ATOMIC_RELEASE);
}

/* Is this the segment of the group whose row has this generation, in this very ring? */
static inline rc_check_result rc_group_check(const rc_group_segment *s, uint64_t size,
                                             const rc_geometry *g, uint64_t generation)
{
    rc_check_result fault;
    if (size < RC_LEASES_OFFSET)
        return RC_TOO_SMALL;
    if ((fault = rc_check_identity(&s->identity, RC_MAGIC_GROUP)) != RC_OK)
        return fault;
    if (s->identity.instance != g->instance || s->generation != generation)
        return RC_OTHER_INSTANCE;
    if (s->identity.slots != g->slots || size != rc_group_size(g->slots) ||
        s->identity.total_size != size)
        return RC_BAD_SIZE;
    return RC_OK;
}

#endif

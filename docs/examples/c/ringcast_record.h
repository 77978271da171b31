/* ringcast_record.h - the header of a record of ringcast.1; docs/wire.md explains it. */
#ifndef RINGCAST_RECORD_H
#define RINGCAST_RECORD_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum ringcast_record_type {
    RINGCAST_MESSAGE = 1,
    RINGCAST_TOPIC = 2,
    RINGCAST_STATE = 3,
    RINGCAST_GAP = 4,
    RINGCAST_ACK = 5,
    RINGCAST_REFUSED = 6,
    RINGCAST_HELLO = 7,
    RINGCAST_ENDED = 8,
    RINGCAST_ANSWER = 9,
    RINGCAST_SEND = 32,
    RINGCAST_SUBSCRIBE = 33,
    RINGCAST_UNSUBSCRIBE = 34,
    RINGCAST_DONE = 35,
    RINGCAST_GIVE_BACK = 36,
    RINGCAST_REQUEST = 37,
    RINGCAST_END_REQUEST = 38
};

struct ringcast_record {
    uint32_t size;
    uint16_t type;
    uint16_t kind;
    uint64_t sequence;
    uint64_t time_ns;
    uint64_t key;
    uint64_t gap;
    uint32_t topic;
    uint32_t epoch;
    uint32_t total;
    uint32_t offset;
    uint32_t deliveries;
    uint32_t zero;
};

static_assert(sizeof(struct ringcast_record) == 64, "a header has 64 bytes");
static_assert(offsetof(struct ringcast_record, size) == 0, "size");
static_assert(offsetof(struct ringcast_record, type) == 4, "type");
static_assert(offsetof(struct ringcast_record, kind) == 6, "kind");
static_assert(offsetof(struct ringcast_record, sequence) == 8, "sequence");
static_assert(offsetof(struct ringcast_record, time_ns) == 16, "time_ns");
static_assert(offsetof(struct ringcast_record, key) == 24, "key");
static_assert(offsetof(struct ringcast_record, gap) == 32, "gap");
static_assert(offsetof(struct ringcast_record, topic) == 40, "topic");
static_assert(offsetof(struct ringcast_record, epoch) == 44, "epoch");
static_assert(offsetof(struct ringcast_record, total) == 48, "total");
static_assert(offsetof(struct ringcast_record, offset) == 52, "offset");
static_assert(offsetof(struct ringcast_record, deliveries) == 56, "deliveries");
static_assert(offsetof(struct ringcast_record, zero) == 60, "zero");

#endif

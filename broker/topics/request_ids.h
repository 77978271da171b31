/* request_ids.h - the ids of requests over a shared connection: each says by itself whose it is.
 *
 *   bit   52   51 ......... 38   37 ... 28   27 ......... 14   13 ........ 0
 *        +----+----------------+-----------+-----------------+--------------+
 *        |  1 |     check      |   slot    |   generation    |   counter    |
 *        +----+----------------+-----------+-----------------+--------------+
 *
 * Slot and generation are the reader's that asked, of the generation the low bits; the counter is its
 * own. So a manager that resumes a ring knows whose an answer is, though it has never seen the request.
 *
 * An id is a number below 2^53, which every JSON parser keeps exactly (RFC 8259 section 6), and at
 * least 2^52, so it always has 16 digits. As text it is these digits, which any server takes that
 * takes letters and digits. Numbers that people count with are smaller, and so are times in
 * microseconds, milliseconds and seconds; of others of 16 digits, the check lets one in 2^14 pass.
 */
#ifndef RINGCAST_REQUEST_IDS_H
#define RINGCAST_REQUEST_IDS_H

#include <stdint.h>

#include "hash.h"

enum {
    RT_COUNTER_BITS = 14,
    RT_GENERATION_BITS = 14,
    RT_SLOT_BITS = 10,
    RT_CHECK_BITS = 14,
    RT_GENERATION_AT = RT_COUNTER_BITS,
    RT_SLOT_AT = RT_GENERATION_AT + RT_GENERATION_BITS,
    RT_CHECK_AT = RT_SLOT_AT + RT_SLOT_BITS,
    RT_REQUEST_DIGITS = 16,
};

#define RT_REQUEST_FIRST (UINT64_C(1) << (RT_CHECK_AT + RT_CHECK_BITS))

static inline uint64_t rt_low_bits(uint64_t x, unsigned bits) { return x & ((UINT64_C(1) << bits) - 1); }

/* The check of what stands below it: the upper bits of a product, on which all bits of it tell. */
static inline uint64_t rt_request_check(uint64_t below)
{
    return (below ^ RC_HASH_3) * RC_HASH_1 >> (64 - RT_CHECK_BITS);
}

static inline uint64_t rt_request_id(uint32_t slot, uint64_t generation, uint64_t counter)
{
    uint64_t below = rt_low_bits(slot, RT_SLOT_BITS) << RT_SLOT_AT |
                     rt_low_bits(generation, RT_GENERATION_BITS) << RT_GENERATION_AT |
                     rt_low_bits(counter, RT_COUNTER_BITS);
    return RT_REQUEST_FIRST | rt_request_check(below) << RT_CHECK_AT | below;
}

static inline uint32_t rt_request_slot(uint64_t id)
{
    return (uint32_t)rt_low_bits(id >> RT_SLOT_AT, RT_SLOT_BITS);
}

static inline uint32_t rt_request_generation(uint64_t id)
{
    return (uint32_t)rt_low_bits(id >> RT_GENERATION_AT, RT_GENERATION_BITS);
}

static inline uint32_t rt_request_counter(uint64_t id)
{
    return (uint32_t)rt_low_bits(id, RT_COUNTER_BITS);
}

/* Is it an id of the reader that has its slot in this generation? */
static inline int rt_request_is_of(uint64_t id, uint64_t generation)
{
    return rt_request_generation(id) == rt_low_bits(generation, RT_GENERATION_BITS);
}

/* The id that the text p[0 .. n) is, a number or what a string means; 0: it is none of ours. */
static inline uint64_t rt_read_request_id(const uint8_t *p, uint64_t n)
{
    uint64_t id = 0;
    if (n != RT_REQUEST_DIGITS)
        return 0;
    for (uint64_t i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return 0;
        id = id * 10 + (p[i] - '0');
    }
    if (id < RT_REQUEST_FIRST || id >= 2 * RT_REQUEST_FIRST)
        return 0;
    uint64_t below = rt_low_bits(id, RT_CHECK_AT);
    return rt_low_bits(id >> RT_CHECK_AT, RT_CHECK_BITS) == rt_request_check(below) ? id : 0;
}

#endif

/* hash.h - XXH64, the hash that a message's `key` is made with.
 *
 * Written from "xxHash fast digest algorithm", the specification by Yann Collet (version 0.2.0,
 * section "XXH64 algorithm description"). The value depends on the bytes and the seed alone, never
 * on the machine, so keys may be stored and compared between hosts. Keys use the seed 0. It is no
 * cryptographic hash: who may choose the bytes can make two strings with the same value.
 */
#ifndef RINGCAST_HASH_H
#define RINGCAST_HASH_H

#include <stdint.h>
#include <string.h>

#define RC_HASH_1 UINT64_C(0x9e3779b185ebca87)
#define RC_HASH_2 UINT64_C(0xc2b2ae3d27d4eb4f)
#define RC_HASH_3 UINT64_C(0x165667b19e3779f9)
#define RC_HASH_4 UINT64_C(0x85ebca77c2b2ae63)
#define RC_HASH_5 UINT64_C(0x27d4eb2f165667c5)

/* Eight bytes as a little-endian number, on every machine. */
static inline uint64_t rc_little_u64(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static inline uint64_t rc_little_u32(const uint8_t *p)
{
    uint32_t word;
    memcpy(&word, p, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap32(word);
#endif
    return word;
}

static inline uint64_t rc_turn_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static inline uint64_t rc_hash_round(uint64_t lane, uint64_t input)
{
    return rc_turn_left(lane + input * RC_HASH_2, 31) * RC_HASH_1;
}

/* Steps 1 to 3, for 32 bytes and more: four lanes, and how they converge. */
static inline uint64_t rc_hash_stripes(const uint8_t *p, uint64_t n, uint64_t seed)
{
    uint64_t lanes[4] = {seed + RC_HASH_1 + RC_HASH_2, seed + RC_HASH_2, seed, seed - RC_HASH_1};
    uint64_t hash;
    for (; n >= 32; p += 32, n -= 32)
        for (int i = 0; i < 4; i++)
            lanes[i] = rc_hash_round(lanes[i], rc_little_u64(p + 8 * i));
    hash = rc_turn_left(lanes[0], 1) + rc_turn_left(lanes[1], 7) + rc_turn_left(lanes[2], 12) +
           rc_turn_left(lanes[3], 18);
    for (int i = 0; i < 4; i++)
        hash = (hash ^ rc_hash_round(0, lanes[i])) * RC_HASH_1 + RC_HASH_4;
    return hash;
}

/* Step 5: the bytes that fill no stripe, fewer than 32. */
static inline uint64_t rc_hash_rest(const uint8_t *p, uint64_t n, uint64_t hash)
{
    for (; n >= 8; p += 8, n -= 8)
        hash = rc_turn_left(hash ^ rc_hash_round(0, rc_little_u64(p)), 27) * RC_HASH_1 + RC_HASH_4;
    if (n >= 4) {
        hash = rc_turn_left(hash ^ rc_little_u32(p) * RC_HASH_1, 23) * RC_HASH_2 + RC_HASH_3;
        p += 4;
        n -= 4;
    }
    for (; n; p++, n--)
        hash = rc_turn_left(hash ^ *p * RC_HASH_5, 11) * RC_HASH_1;
    return hash;
}

static inline uint64_t rc_hash(const uint8_t *p, uint64_t n, uint64_t seed)
{
    uint64_t hash = n >= 32 ? rc_hash_stripes(p, n, seed) : seed + RC_HASH_5;
    hash = rc_hash_rest(p + (n & ~UINT64_C(31)), n & 31, hash + n);
    hash = (hash ^ hash >> 33) * RC_HASH_2; /* step 6: the avalanche */
    hash = (hash ^ hash >> 29) * RC_HASH_3;
    return hash ^ hash >> 32;
}

#endif

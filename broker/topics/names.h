/* names.h - which topic a name is: a hash table of bounded size.
 *
 * A name is what the scanner finds in a message, or a Python function returns; a topic's id and key
 * are what the manager made of it. A name is asked for once and then stands here, so messages with
 * known names need nothing else. When the table is full, other names are no topic.
 *
 *   rt_names_make(&names, max, seed)       0: no memory
 *   rt_names_look(&names, &found, keys)    RT_NAMED becomes RT_KNOWN, RT_NEW or RT_OVERFLOWED
 *   rt_names_put(&names, name, n, topic, key)
 *
 * Open addressing with linear probing, at most half full. The hash is seeded at random: a server
 * that makes up names cannot easily make them meet. Entries lie at fixed places and their lengths
 * are bounded where they are used.
 */
#ifndef RINGCAST_NAMES_H
#define RINGCAST_NAMES_H

#include <stdlib.h>

#include "pointer.h"

#define RT_NAMES_MAX (UINT32_C(1) << 20)

typedef struct rt_entry {
    uint64_t key;
    uint32_t topic;
    uint8_t length;
    uint8_t name[RT_NAME_MAX];
} rt_entry;

typedef struct rt_place {
    uint32_t entry; /* its number + 1; 0: the place is free */
    uint32_t hash;  /* the upper half */
} rt_place;

typedef struct rt_names {
    rt_place *places; /* mask + 1, a power of two */
    rt_entry *entries;
    uint64_t seed;
    uint32_t mask, max, count;
} rt_names;

static inline void rt_names_free(rt_names *names)
{
    free(names->places);
    free(names->entries);
    memset(names, 0, sizeof *names);
}

/* The hash of this table alone; keys are made by another. Two words that cover the name, or 16 bytes at
 * a time of a longer one, each multiplied to 128 bits whose halves are joined, as in wyhash (Wang Yi). */
__extension__ typedef unsigned __int128 rt_wide;

static inline uint64_t rt_names_mix(uint64_t a, uint64_t b)
{
    rt_wide product = (rt_wide)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t rt_names_word(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t rt_names_hash(const uint8_t *p, uint32_t n, uint64_t seed)
{
    uint64_t hash = seed, tail[2] = {0, 0};
    uint32_t left = n;
    for (; left > 16; left -= 16, p += 16)
        hash = rt_names_mix(rt_names_word(p) ^ RC_HASH_1 ^ hash, rt_names_word(p + 8) ^ RC_HASH_2);
    if (left >= 8) {
        tail[0] = rt_names_word(p);
        tail[1] = rt_names_word(p + left - 8);
    } else {
        memcpy(tail, p, left);
    }
    return rt_names_mix(tail[0] ^ RC_HASH_3 ^ hash, tail[1] ^ (RC_HASH_4 + n) ^ seed << 1);
}

/* Are the n bytes the same? Names are short: a call of memcmp() would cost more. */
static inline int rt_names_same(const uint8_t *a, const uint8_t *b, uint32_t n)
{
    uint32_t at = 0;
    for (; at + 8 <= n; at += 8)
        if (rt_names_word(a + at) != rt_names_word(b + at))
            return 0;
    if (n >= 8)
        return at == n || rt_names_word(a + n - 8) == rt_names_word(b + n - 8);
    for (; at < n; at++)
        if (a[at] != b[at])
            return 0;
    return 1;
}

/* Room for `max` names, 1 to RT_NAMES_MAX. Memory of entries that are not used is not touched. */
static inline int rt_names_make(rt_names *names, uint32_t max, uint64_t seed)
{
    uint32_t places = 2;
    while (places < 2 * max)
        places *= 2;
    names->places = calloc(places, sizeof *names->places);
    names->entries = malloc(max * sizeof *names->entries);
    names->seed = seed;
    names->mask = places - 1;
    names->max = max;
    names->count = 0;
    if (names->places && names->entries)
        return 1;
    rt_names_free(names);
    return 0;
}

static inline void rt_names_forget(rt_names *names)
{
    memset(names->places, 0, (names->mask + UINT64_C(1)) * sizeof *names->places);
    names->count = 0;
}

/* The place of this name, or the free one where it would be put. */
static inline rt_place *rt_names_place(const rt_names *names, const uint8_t *name, uint32_t n,
                                       uint64_t hash)
{
    for (uint64_t at = hash;; at++) { /* bounded: half of the places are free */
        rt_place *place = &names->places[at & names->mask];
        if (!place->entry)
            return place;
        const rt_entry *entry = &names->entries[place->entry - 1];
        if (place->hash == hash >> 32 && entry->length == n && rt_names_same(entry->name, name, n))
            return place;
    }
}

/* What the name in `found` is. `has_key`: found->key came from the message and stays. */
static inline void rt_names_look(const rt_names *names, rt_found *found, int has_key)
{
    uint64_t hash = rt_names_hash(found->name, found->length, names->seed);
    const rt_place *place = rt_names_place(names, found->name, found->length, hash);
    if (!place->entry) {
        found->what = names->count < names->max ? RT_NEW : RT_OVERFLOWED;
        return;
    }
    const rt_entry *entry = &names->entries[place->entry - 1];
    found->what = RT_KNOWN;
    found->topic = entry->topic;
    if (!has_key)
        found->key = entry->key;
}

/* Say what topic a name is, 1 to RT_NAME_MAX bytes. 0: the table is full. */
static inline int rt_names_put(rt_names *names, const uint8_t *name, uint32_t n, uint32_t topic,
                               uint64_t key)
{
    uint64_t hash = rt_names_hash(name, n, names->seed);
    rt_place *place = rt_names_place(names, name, n, hash);
    if (!place->entry) {
        if (names->count == names->max)
            return 0;
        rt_entry *entry = &names->entries[names->count++];
        entry->length = (uint8_t)n;
        memcpy(entry->name, name, n);
        *place = (rt_place){names->count, (uint32_t)(hash >> 32)};
    }
    names->entries[place->entry - 1].topic = topic;
    names->entries[place->entry - 1].key = key;
    return 1;
}

#endif

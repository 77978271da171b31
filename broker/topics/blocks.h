/* blocks.h - where the structure of a JSON text is: 64 bytes at a time, one bit per byte.
 *
 * After simdjson's first stage (Langdale and Lemire, "Parsing Gigabytes of JSON per Second", VLDB
 * Journal 28, 2019): compare 64 bytes with the few characters that matter, drop the quotes that a
 * backslash escapes, and a prefix sum modulo 2 over the quotes that are left says which bytes lie
 * inside of a string. What is left is a set of events, in order:
 *
 *     a quote that begins or ends a string, and outside of strings { } [ ] and ,
 *
 *     rt_blocks b;
 *     rt_cursor c = rt_begin(&b, rt_best_way(), bytes, n);
 *     while ((at = rt_next(&c)) != RT_END)    bytes[at] is the event
 *     rt_skip(&c)                             takes all to the end of a container
 *
 * Blocks are classified when they are asked for, so who stops early has not looked at the rest.
 * Inside of a string there are no events: the one after a beginning quote is the ending one.
 *
 * Nothing before bytes[0] or from bytes[n] on is read. The last block ends where the text does: it
 * overlaps the one before it, or, of a text below 64 bytes, is a padded copy.
 *
 * Nothing is checked here. What is said of a text that is not JSON depends on its bytes alone, not
 * on which of the ways below has classified it: AVX2 with a carry-less multiplication where the
 * processor has it, SSE2 on other x86-64, words of eight bytes elsewhere.
 */
#ifndef RINGCAST_BLOCKS_H
#define RINGCAST_BLOCKS_H

#include <stdint.h>
#include <string.h>

#include "hash.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RT_INLINE static inline __attribute__((always_inline))
#define RT_RARE __attribute__((noinline, unused)) /* apart, so that the rest stays small */
#define rt_unlikely(x) __builtin_expect(!!(x), 0)
#define RT_BLOCK 64u
#define RT_END UINT64_MAX

typedef struct rt_blocks rt_blocks;

/* A way to do it: go to the next block, which there is; and see rt_skip. */
typedef struct rt_way {
    void (*classify)(rt_blocks *);
    uint64_t (*skip)(rt_blocks *, uint64_t events);
    const char *name;
} rt_way;

struct rt_blocks {
    const uint8_t *bytes;
    uint64_t n;
    const rt_way *way;
    uint64_t base, next; /* where the current block begins; where the next one does */
    uint64_t events, opens, closes; /* of the current block */
    uint64_t inside;  /* all ones: the current block ends inside of a string */
    uint64_t escaped; /* 1: a backslash escapes the next block's first byte */
    uint64_t slashes; /* not 0: some backslash has been seen in this text */
};

/* Where its user is. Its address is given to nobody but what is inline, so it lives in registers. */
typedef struct rt_cursor {
    rt_blocks *blocks;
    const uint8_t *bytes;
    uint64_t n;
    uint64_t base;   /* of the current block */
    uint64_t events; /* of the current block that were not yet taken */
} rt_cursor;

/* The 64 bytes of a block that are one of these characters, inside of strings, too. */
typedef struct rt_raw {
    uint64_t quotes, slashes, opens, closes, commas;
} rt_raw;

/* ---- what the ways have in common ---------------------------------------------------------- */

/* Bit i of the result is the parity of bits 0 to i. */
RT_INLINE uint64_t rt_parity(uint64_t x)
{
    for (int distance = 1; distance < 64; distance *= 2)
        x ^= x << distance;
    return x;
}

/* The end of a block: `parity` is that of the quotes. */
RT_INLINE void rt_classified(rt_blocks *b, const rt_raw *raw, uint64_t parity)
{
    uint64_t strings = parity ^ b->inside;
    b->inside = UINT64_C(0) - (strings >> 63);
    b->opens = raw->opens & ~strings;
    b->closes = raw->closes & ~strings;
    b->events = raw->quotes | b->opens | b->closes | (raw->commas & ~strings);
    b->base = b->next;
    b->next += RT_BLOCK;
}

/* The same of a block with backslashes, or after one that ends with one. A quote that a backslash
 * escapes is none; a backslash that is itself escaped escapes nothing. */
static RT_RARE void rt_classified_escapes(rt_blocks *b, rt_raw raw)
{
    uint64_t slashes = raw.slashes & ~b->escaped, escaped = b->escaped;
    b->slashes |= raw.slashes;
    b->escaped = 0;
    while (slashes) { /* at most 32 rounds: each takes two bits */
        uint64_t lowest = slashes & (~slashes + 1);
        escaped |= lowest << 1;
        b->escaped = lowest >> 63;
        slashes &= ~(lowest | lowest << 1);
    }
    raw.quotes &= ~escaped;
    rt_classified(b, &raw, rt_parity(raw.quotes));
}

/* Where to read the last block, and how many bits to the right its first byte then is. */
static inline const uint8_t *rt_last_window(const rt_blocks *b, uint8_t *spare, unsigned *shift)
{
    if (b->n >= RT_BLOCK) {
        *shift = (unsigned)(RT_BLOCK - (b->n - b->next));
        return b->bytes + b->n - RT_BLOCK;
    }
    *shift = 0;
    memset(spare, 0, RT_BLOCK);
    memcpy(spare, b->bytes, b->n);
    return spare;
}

/* Is there more than the last block to come? */
RT_INLINE int rt_is_whole(const rt_blocks *b) { return b->n - b->next >= RT_BLOCK; }

RT_INLINE void rt_shift(rt_raw *raw, unsigned bits)
{
    raw->quotes >>= bits;
    raw->slashes >>= bits;
    raw->opens >>= bits;
    raw->closes >>= bits;
    raw->commas >>= bits;
}

/* The end of a block, where no instruction has the parity. */
RT_INLINE void rt_classified_raw(rt_blocks *b, rt_raw *raw, unsigned shift)
{
    rt_shift(raw, shift);
    if (rt_unlikely(raw->slashes | b->escaped))
        rt_classified_escapes(b, *raw);
    else
        rt_classified(b, raw, rt_parity(raw->quotes));
}

/* ---- passing over containers ---------------------------------------------------------------- */

/* Go to the next block. 0: there is none. */
RT_INLINE int rt_more(rt_blocks *b)
{
    if (b->next >= b->n)
        return 0;
    b->way->classify(b);
    return 1;
}

/* How many bits are set. The baseline of x86-64 has no instruction for it. */
RT_INLINE uint64_t rt_count(uint64_t x, int has_instruction)
{
    if (has_instruction)
        return (uint64_t)__builtin_popcountll(x);
    x -= x >> 1 & UINT64_C(0x5555555555555555);
    x = (x & UINT64_C(0x3333333333333333)) + (x >> 2 & UINT64_C(0x3333333333333333));
    x = (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return x * UINT64_C(0x0101010101010101) >> 56;
}

/* How much less deep it can get, at most, within a block with these brackets: the closing ones but
 * for those that come right after an opening one. A sum finds these: added to a run of bytes that
 * are no bracket, a bit moves to the bracket that ends the run. */
RT_INLINE uint64_t rt_fall(uint64_t opens, uint64_t closes, int has_instruction)
{
    uint64_t after_open = (opens << 1) + ~(opens | closes);
    return rt_count(closes & ~after_open, has_instruction);
}

/* The first bracket of these that ends a container at this depth, as a bit; 0: none does. */
static inline uint64_t rt_ending(uint64_t opens, uint64_t closes, uint64_t depth)
{
    for (uint64_t left = opens | closes; left; left &= left - 1) {
        uint64_t lowest = left & (~left + 1);
        depth += opens & lowest ? 1 : UINT64_MAX;
        if (!depth)
            return lowest;
    }
    return 0;
}

/* See rt_skip. `events` are left of the current block; what then is left is in b->events. */
RT_INLINE uint64_t rt_skip_by(rt_blocks *b, uint64_t events, int has_instruction)
{
    for (uint64_t depth = 1;;) {
        uint64_t opens = b->opens & events, closes = b->closes & events, end;
        if (rt_fall(opens, closes, has_instruction) >= depth &&
            (end = rt_ending(opens, closes, depth))) {
            b->events = events & ~(end | (end - 1));
            return b->base + (uint64_t)__builtin_ctzll(end);
        }
        depth += rt_count(opens, has_instruction) - rt_count(closes, has_instruction);
        if (!rt_more(b))
            return RT_END;
        events = b->events;
    }
}

/* ---- words --------------------------------------------------------------------------------- */

/* Of eight bytes, bit i: byte i is c. Exact: no borrow goes from one byte to the next. */
RT_INLINE uint64_t rt_word_is(uint64_t word, uint8_t c)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), low = ones * 0x7f;
    uint64_t other = word ^ ones * c; /* 0 where it is c */
    uint64_t is = ~(((other & low) + low) | other | low) >> 7;
    return is * UINT64_C(0x0102040810204080) >> 56;
}

RT_INLINE void rt_words(rt_blocks *b, const uint8_t *p, unsigned shift)
{
    rt_raw raw = {0};
    for (unsigned i = 0; i < RT_BLOCK; i += 8) {
        uint64_t word = rc_little_u64(p + i), folded = word | UINT64_C(0x2020202020202020);
        raw.quotes |= rt_word_is(word, '"') << i;
        raw.slashes |= rt_word_is(word, '\\') << i;
        raw.opens |= rt_word_is(folded, '{') << i; /* [ and { differ in that bit alone */
        raw.closes |= rt_word_is(folded, '}') << i;
        raw.commas |= rt_word_is(word, ',') << i;
    }
    rt_classified_raw(b, &raw, shift);
}

static RT_RARE void rt_last_words(rt_blocks *b)
{
    uint8_t spare[RT_BLOCK];
    unsigned shift;
    const uint8_t *p = rt_last_window(b, spare, &shift);
    rt_words(b, p, shift);
}

static inline void rt_classify_words(rt_blocks *b)
{
    if (rt_is_whole(b))
        rt_words(b, b->bytes + b->next, 0);
    else
        rt_last_words(b);
}

static inline uint64_t rt_skip_words(rt_blocks *b, uint64_t events) { return rt_skip_by(b, events, 0); }

static const rt_way rt_way_words = {rt_classify_words, rt_skip_words, "words"};

/* ---- x86-64 -------------------------------------------------------------------------------- */

#if defined(__x86_64__)

RT_INLINE uint64_t rt_sse2_bits(__m128i is) { return (uint32_t)_mm_movemask_epi8(is); }

RT_INLINE void rt_sse2(rt_blocks *b, const uint8_t *p, unsigned shift)
{
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'),
                  open = _mm_set1_epi8('{'), close = _mm_set1_epi8('}'),
                  comma = _mm_set1_epi8(','), fold = _mm_set1_epi8(0x20);
    rt_raw raw = {0};
    for (unsigned i = 0; i < RT_BLOCK; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(p + i)), folded = _mm_or_si128(v, fold);
        raw.quotes |= rt_sse2_bits(_mm_cmpeq_epi8(v, quote)) << i;
        raw.slashes |= rt_sse2_bits(_mm_cmpeq_epi8(v, slash)) << i;
        raw.opens |= rt_sse2_bits(_mm_cmpeq_epi8(folded, open)) << i;
        raw.closes |= rt_sse2_bits(_mm_cmpeq_epi8(folded, close)) << i;
        raw.commas |= rt_sse2_bits(_mm_cmpeq_epi8(v, comma)) << i;
    }
    rt_classified_raw(b, &raw, shift);
}

static RT_RARE void rt_last_sse2(rt_blocks *b)
{
    uint8_t spare[RT_BLOCK];
    unsigned shift;
    const uint8_t *p = rt_last_window(b, spare, &shift);
    rt_sse2(b, p, shift);
}

static inline void rt_classify_sse2(rt_blocks *b)
{
    if (rt_is_whole(b))
        rt_sse2(b, b->bytes + b->next, 0);
    else
        rt_last_sse2(b);
}

static const rt_way rt_way_sse2 = {rt_classify_sse2, rt_skip_words, "sse2"};

#define RT_AVX2 __attribute__((target("avx2,pclmul,popcnt")))

/* Which of 64 bytes, in two halves, are this character. It stands in memory, since a compiler would
 * take three instructions to make it up. */
RT_AVX2 RT_INLINE uint64_t rt_avx2_is(__m256i low, __m256i high, const uint8_t *character)
{
    __m256i wanted = _mm256_load_si256((const __m256i *)character);
    uint64_t first = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, wanted));
    uint64_t last = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, wanted));
    return first | last << 32;
}

#define RT_4(c) c, c, c, c
#define RT_32(c) {RT_4(c), RT_4(c), RT_4(c), RT_4(c), RT_4(c), RT_4(c), RT_4(c), RT_4(c)}

RT_AVX2 RT_INLINE void rt_avx2(rt_blocks *b, const uint8_t *p, unsigned shift)
{
    static const _Alignas(32) uint8_t all[6][32] = {RT_32('"'), RT_32('\\'), RT_32('{'),
                                                    RT_32('}'), RT_32(','),  RT_32(0x20)};
    __m256i low = _mm256_loadu_si256((const __m256i *)p);
    __m256i high = _mm256_loadu_si256((const __m256i *)(p + 32));
    __m256i fold = _mm256_load_si256((const __m256i *)all[5]);
    __m256i folded_low = _mm256_or_si256(low, fold), folded_high = _mm256_or_si256(high, fold);
    rt_raw raw = {
        .quotes = rt_avx2_is(low, high, all[0]),
        .slashes = rt_avx2_is(low, high, all[1]),
        .opens = rt_avx2_is(folded_low, folded_high, all[2]),
        .closes = rt_avx2_is(folded_low, folded_high, all[3]),
        .commas = rt_avx2_is(low, high, all[4]),
    };
    rt_shift(&raw, shift);
    if (rt_unlikely(raw.slashes | b->escaped)) {
        rt_classified_escapes(b, raw);
        return;
    }
    __m128i quotes = _mm_cvtsi64_si128((int64_t)raw.quotes);
    __m128i parity = _mm_clmulepi64_si128(quotes, _mm_set1_epi8((char)0xff), 0);
    rt_classified(b, &raw, (uint64_t)_mm_cvtsi128_si64(parity));
}

RT_AVX2 static RT_RARE void rt_last_avx2(rt_blocks *b)
{
    uint8_t spare[RT_BLOCK];
    unsigned shift;
    const uint8_t *p = rt_last_window(b, spare, &shift);
    rt_avx2(b, p, shift);
}

RT_AVX2 static inline void rt_classify_avx2(rt_blocks *b)
{
    if (rt_is_whole(b))
        rt_avx2(b, b->bytes + b->next, 0);
    else
        rt_last_avx2(b);
}

RT_AVX2 static inline uint64_t rt_skip_avx2(rt_blocks *b, uint64_t events)
{
    return rt_skip_by(b, events, 1);
}

static const rt_way rt_way_avx2 = {rt_classify_avx2, rt_skip_avx2, "avx2"};

#endif

/* ---- reading ------------------------------------------------------------------------------- */

/* The fastest way that this processor has. */
static inline const rt_way *rt_best_way(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("pclmul") &&
        __builtin_cpu_supports("popcnt"))
        return &rt_way_avx2;
    return &rt_way_sse2;
#else
    return &rt_way_words;
#endif
}

RT_INLINE rt_cursor rt_begin(rt_blocks *b, const rt_way *way, const uint8_t *bytes, uint64_t n)
{
    b->bytes = bytes;
    b->n = n;
    b->way = way;
    b->next = b->inside = b->escaped = b->slashes = 0; /* a block's own are set with each */
    return (rt_cursor){b, bytes, n, 0, 0};
}

/* A place in the text: the compiler need not ask whether it is RT_END. */
RT_INLINE uint64_t rt_there(uint64_t at)
{
    if (at >= RT_END - 1)
        __builtin_unreachable();
    return at;
}

/* Take the next event: where it is, or RT_END. */
RT_INLINE uint64_t rt_next(rt_cursor *c)
{
    while (rt_unlikely(!c->events)) {
        if (!rt_more(c->blocks))
            return RT_END;
        c->events = c->blocks->events;
        c->base = c->blocks->base;
    }
    uint64_t at = c->base + (unsigned)__builtin_ctzll(c->events);
    c->events &= c->events - 1;
    return rt_there(at);
}

/* The event that was taken last has begun a container or lies in one: take all up to its end. Where
 * that is, or RT_END. Kinds of brackets are not told apart. */
RT_INLINE uint64_t rt_skip(rt_cursor *c)
{
    uint64_t at = c->blocks->way->skip(c->blocks, c->events);
    c->events = at == RT_END ? 0 : c->blocks->events;
    c->base = c->blocks->base;
    return at;
}

#endif

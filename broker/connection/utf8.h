/* utf8.h - is a text UTF-8? Checked piece by piece, as it comes.
 *
 *   rf_utf8 u = {0};
 *   rf_utf8_check(&u, piece, n)    0: wrong, whatever follows
 *   u.left == 0                    the text may end here
 */
#ifndef RINGCAST_UTF8_H
#define RINGCAST_UTF8_H

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* Where the check of a text stands between two of its pieces. */
typedef struct rf_utf8 {
    uint8_t left, low, high; /* continuation bytes to come; the next one's range */
} rf_utf8;

/* How many bytes from p on are ASCII. */
static inline uint64_t rf_ascii(const uint8_t *p, uint64_t n)
{
    uint64_t i = 0, words[4];
#if defined(__SSE2__)
    for (; i + 64 <= n; i += 64) {
        const __m128i *v = (const __m128i *)(p + i);
        __m128i one = _mm_or_si128(_mm_loadu_si128(v), _mm_loadu_si128(v + 1));
        __m128i two = _mm_or_si128(_mm_loadu_si128(v + 2), _mm_loadu_si128(v + 3));
        if (_mm_movemask_epi8(_mm_or_si128(one, two)))
            break;
    }
#endif
    for (; i + 32 <= n; i += 32) {
        memcpy(words, p + i, 32);
        if ((words[0] | words[1] | words[2] | words[3]) & UINT64_C(0x8080808080808080))
            break;
    }
    for (; i + 8 <= n; i += 8) {
        memcpy(words, p + i, 8);
        if (words[0] & UINT64_C(0x8080808080808080))
            break;
    }
    while (i < n && p[i] < 0x80)
        i++;
    return i;
}

/* The first byte of a sequence: how many follow, and what the first of them may be (table 3-7 of
 * the Unicode Standard, which leaves out overlong forms, surrogates and what is past U+10FFFF). */
static inline int rf_utf8_lead(rf_utf8 *u, uint8_t c)
{
    u->left = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    u->low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    u->high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    return c >= 0xc2 && c <= 0xf4;
}

/* Check the next n bytes of a text. 0: wrong. The text may end here if u->left is 0. */
static inline int rf_utf8_check(rf_utf8 *u, const uint8_t *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        if (!u->left) {
            i += rf_ascii(p + i, n - i);
            if (i == n)
                return 1;
            if (!rf_utf8_lead(u, p[i]))
                return 0;
        } else {
            if (p[i] < u->low || p[i] > u->high)
                return 0;
            u->left--;
            u->low = 0x80;
            u->high = 0xbf;
        }
    }
    return 1;
}

#endif

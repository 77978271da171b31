/* values.h - what JSON's strings and numbers mean (RFC 8259 sections 6 and 7).
 *
 * Strings are given as they stand between their quotes. Bytes that are not ASCII, and controls, are
 * taken as they are: whether it is UTF-8 is the question of who uses it.
 */
#ifndef RINGCAST_VALUES_H
#define RINGCAST_VALUES_H

#include <stdint.h>
#include <string.h>

/* The four digits of a \\u escape at p[*i]. More than 16 bits: there are none. */
static inline uint32_t rt_hex(const uint8_t *p, uint64_t n, uint64_t *i)
{
    uint32_t code = 0;
    if (n - *i < 4)
        return UINT32_MAX;
    for (uint64_t end = *i + 4; *i < end; ++*i) {
        uint8_t c = p[*i], letter = c | 0x20;
        if (c >= '0' && c <= '9')
            code = code << 4 | (uint32_t)(c - '0');
        else if (letter >= 'a' && letter <= 'f')
            code = code << 4 | (uint32_t)(letter - 'a' + 10);
        else
            return UINT32_MAX;
    }
    return code;
}

static inline uint32_t rt_encode(uint32_t code, uint8_t *out)
{
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    uint32_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (uint32_t i = n - 1; i > 0; i--, code >>= 6)
        out[i] = (uint8_t)(0x80 | (code & 0x3f));
    out[0] = (uint8_t)(lead[n] | code);
    return n;
}

/* The character of a \\u escape whose digits are at p[*i], with the second one of a pair. */
static inline uint32_t rt_unicode(const uint8_t *p, uint64_t n, uint64_t *i, uint8_t *out)
{
    uint32_t code = rt_hex(p, n, i), low;
    if (code >= 0xd800 && code < 0xdc00) {
        if (n - *i < 2 || p[*i] != '\\' || p[*i + 1] != 'u')
            return 0;
        *i += 2;
        low = rt_hex(p, n, i);
        if (low < 0xdc00 || low > 0xdfff)
            return 0;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code > 0xffff || (code >= 0xdc00 && code < 0xe000)) {
        return 0;
    }
    return rt_encode(code, out);
}

/* The next character of a string, or byte of one, at p[*i] of n: up to four bytes to `out`. How
 * many; 0: a bad escape. */
static inline uint32_t rt_character(const uint8_t *p, uint64_t n, uint64_t *i, uint8_t *out)
{
    static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *name;
    out[0] = p[(*i)++];
    if (out[0] != '\\')
        return 1;
    if (*i == n)
        return 0;
    uint8_t c = p[(*i)++];
    if (c == 'u')
        return rt_unicode(p, n, i, out);
    name = c ? strchr(names, c) : NULL;
    if (!name)
        return 0;
    out[0] = (uint8_t)meanings[name - names];
    return 1;
}

/* Does the string p[0 .. n) mean these bytes? */
static inline int rt_means(const uint8_t *p, uint64_t n, const uint8_t *bytes, uint64_t length)
{
    uint8_t character[4];
    uint64_t done = 0;
    for (uint64_t i = 0; i < n;) {
        uint32_t more = rt_character(p, n, &i, character);
        if (!more || more > length - done || memcmp(bytes + done, character, more))
            return 0;
        done += more;
    }
    return done == length;
}

static inline uint64_t rt_digits(const uint8_t *p, uint64_t i, uint64_t n)
{
    while (i < n && p[i] >= '0' && p[i] <= '9')
        i++;
    return i;
}

/* Is p[0 .. n) a number (RFC 8259 section 6)? */
static inline int rt_is_number(const uint8_t *p, uint64_t n)
{
    uint64_t i = n && p[0] == '-', begin = i;
    i = rt_digits(p, i, n);
    if (i == begin || (p[begin] == '0' && i > begin + 1))
        return 0;
    if (i < n && p[i] == '.') {
        begin = ++i;
        if ((i = rt_digits(p, i, n)) == begin)
            return 0;
    }
    if (i < n && (p[i] == 'e' || p[i] == 'E')) {
        i++;
        i += i < n && (p[i] == '+' || p[i] == '-');
        begin = i;
        if ((i = rt_digits(p, i, n)) == begin)
            return 0;
    }
    return i == n;
}

static inline int rt_is_space(uint8_t c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

#endif

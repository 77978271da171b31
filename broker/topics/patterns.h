/* patterns.h - patterns for topics, keys, control messages and answers, compiled for pointer.h.
 *
 * A pattern is text with JSON pointers (RFC 6901) in braces: "{/arg/channel}:{/arg/instId}". A
 * doubled brace, {{ or }}, is a brace. A pointer begins with a slash; in it ~1 is a slash and ~0 a
 * tilde, and it holds no brace. A token such as 0 or 12, without leading zeros, is the index of an
 * array's element as well as an object's key. A pattern has at least one pointer.
 *
 * A control pattern may go on with = and what the joined string must look like, where * stands for
 * anything: "{/event}=bts:*". The first = outside of braces begins it, and all that follows is
 * taken as it stands. Of answers there is one pattern, which is a pointer and nothing else.
 *
 *   rt_patterns p;
 *   rt_patterns_begin(&p);
 *   rt_patterns_add(&p, RT_TOPIC, text, n, &error)    0: error.why, at byte error.at of the text
 *
 * All patterns share one tree of tokens, so each key of a message is looked up once. Of each
 * pointer there is one bit, the same in all patterns; a node knows the bits at and below it.
 * Everything has a fixed size: a set of patterns is one piece of memory without pointers into it.
 */
#ifndef RINGCAST_PATTERNS_H
#define RINGCAST_PATTERNS_H

#include <stdint.h>
#include <string.h>

#include "hash.h"

enum {
    RT_NAME_MAX = 127,    /* bytes of a topic's name */
    RT_PATTERNS_MAX = 32, /* of a kind */
    RT_POINTERS_MAX = 64, /* different ones, all kinds together */
    RT_DEPTH_MAX = 64,    /* tokens of a pointer */
    RT_NODES_MAX = 512,
    RT_PARTS_MAX = 512,
    RT_TEXT_MAX = 16384, /* bytes of tokens and text, all patterns together */
};

typedef enum rt_kind { RT_TOPIC, RT_KEY, RT_CONTROL, RT_ANSWER, RT_KINDS } rt_kind;

#define RT_NONE 0u /* no node, since the root is nobody's child */
#define RT_NO_POINTER 255u
#define RT_NO_INDEX UINT64_MAX
#define RT_WORD 8u  /* bytes of a token that are compared at once */
#define RT_COPY 16u /* bytes that are copied at once, if as many may be read and written */

/* A token of pointers. */
typedef struct rt_node {
    uint64_t word;     /* its first bytes as a little-endian number, zeros after them */
    uint64_t index;    /* it as an array's index, or RT_NO_INDEX */
    uint64_t ends;     /* bit of the pointer that ends here, or 0 */
    uint64_t below;    /* bits of the pointers that end below */
    uint64_t elements; /* those of them that go on with an index */
    uint64_t firsts;   /* first bytes of the tokens below it, see rt_first */
    uint32_t text;     /* where its text begins */
    uint16_t length;
    uint16_t child, sibling; /* how many nodes further the first child and the next one are; 0: none */
    uint8_t pointer; /* that ends here, if ends is not 0 */
    uint8_t spare[5]; /* to 64 bytes, so that an index is a shift */
} rt_node;

/* Text, and the pointer whose value follows it; RT_NO_POINTER at the end of a pattern. */
typedef struct rt_part {
    uint32_t text;
    uint16_t length;
    uint8_t pointer;
} rt_part;

typedef struct rt_pattern {
    uint64_t needs; /* bits of its pointers */
    uint32_t glob;  /* where the text after = begins */
    uint16_t glob_length, part, parts;
    uint8_t has_glob;
} rt_pattern;

typedef struct rt_patterns {
    uint64_t all; /* bits of all pointers */
    uint32_t count[RT_KINDS];
    uint32_t nodes, parts, text, pointers; /* in use */
    rt_pattern of[RT_KINDS][RT_PATTERNS_MAX];
    rt_part part[RT_PARTS_MAX];
    rt_node node[RT_NODES_MAX]; /* the first is the root */
    uint8_t bytes[RT_TEXT_MAX + RT_COPY];
} rt_patterns;

typedef struct rt_error {
    const char *why;
    uint64_t at; /* byte of the pattern */
} rt_error;

static inline void rt_patterns_begin(rt_patterns *p)
{
    memset(p, 0, sizeof *p);
    p->nodes = 1;
}

static inline int rt_refuse(rt_error *error, uint64_t at, const char *why)
{
    error->at = at;
    error->why = why;
    return 0;
}

static inline int rt_put(rt_patterns *p, uint8_t byte)
{
    if (p->text == RT_TEXT_MAX)
        return 0;
    p->bytes[p->text++] = byte;
    return 1;
}

/* The array index that a token is (RFC 6901 section 4), or RT_NO_INDEX. */
static inline uint64_t rt_index(const uint8_t *token, uint64_t n)
{
    uint64_t index = 0;
    if (n == 0 || n > 18 || (n > 1 && token[0] == '0'))
        return RT_NO_INDEX;
    for (uint64_t i = 0; i < n; i++) {
        if (token[i] < '0' || token[i] > '9')
            return RT_NO_INDEX;
        index = index * 10 + (token[i] - '0');
    }
    return index;
}

/* The first bytes of a string as a little-endian number, zeros after them. */
static inline uint64_t rt_first_word(const uint8_t *p, uint64_t n)
{
    uint8_t bytes[RT_WORD] = {0};
    memcpy(bytes, p, n < RT_WORD ? n : RT_WORD);
    return rc_little_u64(bytes);
}

/* The bit of a key's first byte; an empty key's is its ending quote. Others may have the same bit. */
static inline uint64_t rt_first(uint8_t byte) { return UINT64_C(1) << (byte & 63); }

/* The child of `parent` for the token that was put at `text`, made if there is none. RT_NONE: too
 * many. */
static inline uint32_t rt_child(rt_patterns *p, uint32_t parent, uint32_t text)
{
    uint32_t length = p->text - text, at = parent;
    uint16_t *link = &p->node[parent].child;
    for (; *link; link = &p->node[at].sibling) {
        at += *link;
        const rt_node *node = &p->node[at];
        if (node->length == length && memcmp(p->bytes + node->text, p->bytes + text, length) == 0) {
            p->text = text; /* it is there already */
            return at;
        }
    }
    if (p->nodes == RT_NODES_MAX)
        return RT_NONE;
    *link = (uint16_t)(p->nodes - at);
    at = p->nodes++;
    rt_node *node = &p->node[at];
    node->text = text;
    node->length = (uint16_t)length;
    node->index = rt_index(p->bytes + text, length);
    node->word = rt_first_word(p->bytes + text, length);
    p->node[parent].firsts |= rt_first(length ? p->bytes[text] : '"');
    return at;
}

/* The token at text[*i .. n), which is put in plain; *i is after it. */
static inline int rt_token(rt_patterns *p, const uint8_t *text, uint64_t *i, uint64_t n,
                           rt_error *error)
{
    for (; *i < n && text[*i] != '/'; ++*i) {
        uint8_t byte = text[*i];
        if (byte == '~') {
            if (*i + 1 == n || (text[*i + 1] != '0' && text[*i + 1] != '1'))
                return rt_refuse(error, *i, "in a pointer ~ stands before 0 or 1: write ~0 for ~");
            byte = text[++*i] == '0' ? '~' : '/';
        }
        if (!rt_put(p, byte))
            return rt_refuse(error, *i, "the patterns are too long, taken together");
    }
    return 1;
}

/* Give the pointer that leads along `path` to its last node a bit, unless it has one. */
static inline int rt_end_pointer(rt_patterns *p, const uint32_t *path, uint32_t depth)
{
    rt_node *last = &p->node[path[depth]];
    if (last->ends)
        return 1;
    if (p->pointers == RT_POINTERS_MAX)
        return 0;
    last->pointer = (uint8_t)p->pointers;
    last->ends = UINT64_C(1) << p->pointers++;
    p->all |= last->ends;
    for (uint32_t i = 0; i < depth; i++) {
        p->node[path[i]].below |= last->ends;
        if (p->node[path[i + 1]].index != RT_NO_INDEX)
            p->node[path[i]].elements |= last->ends;
    }
    return 1;
}

/* The pointer text[i .. n): its number, or RT_NO_POINTER and an error. */
static inline uint32_t rt_pointer(rt_patterns *p, const uint8_t *text, uint64_t i, uint64_t n,
                                  rt_error *error)
{
    uint32_t path[RT_DEPTH_MAX + 1] = {0}, depth = 0;
    uint64_t begin = i;
    if (i == n || text[i] != '/') {
        rt_refuse(error, i, "a pointer begins with a slash: write {/key}");
        return RT_NO_POINTER;
    }
    while (i < n) {
        uint32_t start = p->text;
        if (depth == RT_DEPTH_MAX) {
            rt_refuse(error, i, "a pointer has more than 64 tokens");
            return RT_NO_POINTER;
        }
        i++; /* the slash */
        if (!rt_token(p, text, &i, n, error))
            return RT_NO_POINTER;
        path[depth + 1] = rt_child(p, path[depth], start);
        if (path[++depth] == RT_NONE) {
            rt_refuse(error, begin, "the patterns have too many pointers");
            return RT_NO_POINTER;
        }
    }
    if (!rt_end_pointer(p, path, depth)) {
        rt_refuse(error, begin, "the patterns have more than 64 different pointers");
        return RT_NO_POINTER;
    }
    return p->node[path[depth]].pointer;
}

/* The plain text text[*i ..) is put, up to a pointer, the glob or the end. */
static inline int rt_plain(rt_patterns *p, rt_kind kind, const uint8_t *text, uint64_t *i,
                           uint64_t n, rt_error *error)
{
    for (; *i < n && !(kind == RT_CONTROL && text[*i] == '='); ++*i) {
        uint8_t byte = text[*i];
        if (byte == '{' || byte == '}') {
            int doubled = *i + 1 < n && text[*i + 1] == byte;
            if (byte == '{' && !doubled)
                return 1;
            *i += (uint64_t)doubled; /* a single one that closes nothing stands for itself */
        }
        if (!rt_put(p, byte))
            return rt_refuse(error, *i, "the patterns are too long, taken together");
    }
    return 1;
}

/* Where the pointer that begins at text[i] ends: at its closing brace. n: nowhere. */
static inline uint64_t rt_closing(const uint8_t *text, uint64_t i, uint64_t n)
{
    while (i < n && text[i] != '}' && text[i] != '{')
        i++;
    return i < n && text[i] == '}' ? i : n;
}

/* One part: text, then a pointer or the end. *i is after it. */
static inline int rt_add_part(rt_patterns *p, rt_kind kind, rt_pattern *pattern,
                              const uint8_t *text, uint64_t *i, uint64_t n, rt_error *error)
{
    rt_part *part = &p->part[p->parts];
    uint64_t begin = *i, end;
    if (p->parts == RT_PARTS_MAX)
        return rt_refuse(error, begin, "the patterns have too many pointers");
    p->parts++;
    pattern->parts++;
    part->text = p->text;
    part->pointer = RT_NO_POINTER;
    if (!rt_plain(p, kind, text, i, n, error))
        return 0;
    if (p->text - part->text > RT_NAME_MAX)
        return rt_refuse(error, begin, "text is longer than the 127 bytes of a topic's name");
    part->length = (uint16_t)(p->text - part->text);
    if (*i == n || text[*i] != '{')
        return 1;
    end = rt_closing(text, *i + 1, n);
    if (end == n)
        return rt_refuse(error, *i, "this brace is not closed: write {{ for a brace");
    uint32_t pointer = rt_pointer(p, text, *i + 1, end, error);
    if (pointer == RT_NO_POINTER)
        return 0;
    part->pointer = (uint8_t)pointer;
    pattern->needs |= UINT64_C(1) << pointer;
    *i = end + 1;
    return 1;
}

/* What follows the = of a control pattern, up to the end. */
static inline int rt_add_glob(rt_patterns *p, rt_pattern *pattern, const uint8_t *text, uint64_t i,
                              uint64_t n, rt_error *error)
{
    pattern->has_glob = 1;
    pattern->glob = p->text;
    for (uint64_t k = i; k < n; k++)
        if (!rt_put(p, text[k]))
            return rt_refuse(error, k, "the patterns are too long, taken together");
    pattern->glob_length = (uint16_t)(n - i);
    return 1;
}

/* Add a pattern after those of its kind. 0: it is refused, and the whole set with it. */
static inline int rt_patterns_add(rt_patterns *p, rt_kind kind, const uint8_t *text, uint64_t n,
                                  rt_error *error)
{
    uint64_t i = 0;
    *error = (rt_error){0};
    if (p->count[kind] == RT_PATTERNS_MAX)
        return rt_refuse(error, 0, "there are more than 32 patterns of a kind");
    rt_pattern *pattern = &p->of[kind][p->count[kind]++];
    pattern->part = (uint16_t)p->parts;
    do
        if (!rt_add_part(p, kind, pattern, text, &i, n, error))
            return 0;
    while (i < n && !(kind == RT_CONTROL && text[i] == '='));
    if (!pattern->needs)
        return rt_refuse(error, 0, "the pattern has no pointer, such as {/key}");
    return i == n || rt_add_glob(p, pattern, text, i + 1, n, error);
}

#endif

/* pointer.h - the scanner: finds the topic of a message in its JSON, without parsing the rest.
 *
 *   rt_find(&patterns, rt_best_way(), payload, n, &found)
 *       found.what RT_NAMED      found.length bytes at found.name are the topic's name
 *                  RT_UNNAMED    no topic pattern has all its values, or it is no JSON
 *                  RT_UNUSABLE   the name is empty, not UTF-8 or longer than RT_NAME_MAX
 *                  RT_IS_CONTROL a control pattern fits; nothing else is said
 *                  RT_IS_ANSWER  the answer pattern finds an id of ours (request_ids.h), which
 *                                found.key is
 *       found.key                from the key patterns; 0 if none has all its values
 *
 * The rules, which the tests' oracle has, too:
 *
 *   - Of a kind, the first pattern whose pointers are all there wins. A control pattern that fits
 *     goes before everything but an answer, and may be any of them.
 *   - A value is there if it is a string, then it is what the string means, or a number, then it is
 *     that as it is spelled. true, false, null, objects and arrays are not there.
 *   - Keys are compared by what they mean: "\u0073tream" is stream. The first of equal keys counts,
 *     even if its value is not there.
 *   - What follows the last value needed is not looked at. What comes before is looked at as far as
 *     the way to the values needs it: what is passed over may be no JSON.
 *   - A string with a bad escape or half a surrogate pair has no meaning in UTF-8. A topic with it
 *     is RT_UNUSABLE, a key is none, and a control pattern's text after = does not fit it.
 *
 * One pass for all patterns. The patterns' tree (patterns.h) is walked along with the payload's
 * containers; keys that are no token, and values of no interest, are passed over by blocks.h.
 * Three sets of pointers say where it stands: `found`; `decided`, which are found or known to be
 * absent, as the container that would hold them has ended or their place is taken by another value;
 * and `wanted`, those that still matter. A pattern with a pointer that is decided and not found is
 * out. The first pattern of its kind that is not out and has found all makes those after it
 * irrelevant. The pass ends when nothing is wanted, and leaves a container when nothing in it is.
 *
 * The stack is as deep as the longest pointer, since only containers on the way to a value are
 * walked. Values are remembered as places in the payload and joined at the end, so what is in a
 * name comes from the payload and the patterns and from nowhere else.
 */
#ifndef RINGCAST_POINTER_H
#define RINGCAST_POINTER_H

#include "blocks.h"
#include "glob.h"
#include "patterns.h"
#include "request_ids.h"
#include "utf8.h"
#include "values.h"

#define RT_JOINED_MAX 1023u /* bytes of a key's or control pattern's string: longer is no match */
#define RT_NOT_JOINED UINT32_MAX
#define RT_SLACK (3 * RT_COPY + 1) /* bytes that the place for a joined string has beyond those */

typedef enum rt_what {
    RT_UNNAMED,
    RT_UNUSABLE,
    RT_IS_CONTROL,
    RT_NAMED,
    RT_NEW,        /* from names.h on: the name is not in the map */
    RT_OVERFLOWED, /* it is not, and the map is full */
    RT_KNOWN,      /* it is: found.topic is set, and found.key unless there are key patterns */
    RT_FAILED,     /* a Python function has raised, or returned no name */
    RT_IS_ANSWER,
} rt_what;

typedef struct rt_found {
    uint64_t key;
    uint32_t topic;
    uint32_t length; /* of the name; 0 unless it is usable */
    rt_what what;
    uint8_t name[RT_NAME_MAX + RT_SLACK];
} rt_found;

typedef struct rt_value {
    uint64_t at, length;
} rt_value;

typedef struct rt_pass {
    rt_blocks blocks;
    const rt_patterns *patterns;
    uint64_t found, decided, wanted;
    uint64_t escaped; /* values that have a backslash */
    uint32_t unfit;   /* bits of control patterns whose text after = does not fit */
    const rt_pattern *topic, *key; /* that have won */
    const rt_pattern *leader;      /* the first topic pattern that is not out; see rt_leader */
    int is_control;
    uint64_t request; /* the id of ours that it answers; 0: none was found */
    rt_value values[RT_POINTERS_MAX];
} rt_pass;

/* ---- joining ------------------------------------------------------------------------------- */

/* Copy RT_COPY bytes, of which fewer may matter. Returns 0 if all are ASCII. */
RT_INLINE uint64_t rt_copy(uint8_t *to, const uint8_t *from)
{
    uint64_t words[RT_COPY / 8];
    memcpy(words, from, RT_COPY);
    memcpy(to, words, RT_COPY);
    return (words[0] | words[1]) & UINT64_C(0x8080808080808080);
}

/* A string with escapes, in plain; where it ends in `out`, or RT_NOT_JOINED. */
static RT_RARE uint32_t rt_unescape(const uint8_t *p, uint64_t n, uint8_t *out, uint32_t at,
                                    uint32_t max)
{
    uint8_t character[4];
    for (uint64_t i = 0; i < n;) {
        uint32_t more = rt_character(p, n, &i, character);
        if (!more || more > max - at)
            return RT_NOT_JOINED;
        memcpy(out + at, character, more);
        at += more;
    }
    return at;
}

static RT_RARE int rt_is_utf8(const uint8_t *p, uint64_t n)
{
    rf_utf8 u = {0};
    return rf_utf8_check(&u, p, n) && !u.left;
}

/* See rt_join. */
static RT_RARE uint32_t rt_join_any(const rt_pass *s, const rt_pattern *pattern, uint8_t *out,
                                    uint32_t max)
{
    const rt_part *part = s->patterns->part + pattern->part;
    uint32_t at = 0;
    for (uint32_t i = 0; i < pattern->parts; i++, part++) {
        if (part->length > max - at)
            return RT_NOT_JOINED;
        memcpy(out + at, s->patterns->bytes + part->text, part->length);
        at += part->length;
        if (part->pointer == RT_NO_POINTER)
            continue;
        const rt_value *value = &s->values[part->pointer];
        const uint8_t *bytes = s->blocks.bytes + value->at;
        if (s->escaped >> part->pointer & 1) {
            at = rt_unescape(bytes, value->length, out, at, max);
            if (at == RT_NOT_JOINED)
                return at;
        } else if (value->length <= max - at) {
            memcpy(out + at, bytes, value->length);
            at += (uint32_t)value->length;
        } else {
            return RT_NOT_JOINED;
        }
    }
    return rt_is_utf8(out, at) ? at : RT_NOT_JOINED;
}

/* The text and values of a pattern whose values are all there, at most `max` bytes, to `out`, which
 * has RT_SLACK bytes more. How many, or RT_NOT_JOINED. What is short and ASCII, and no escape in it,
 * is done here, by one or two moves of RT_COPY bytes. */
RT_INLINE uint32_t rt_join(const rt_pass *s, const rt_pattern *pattern, uint8_t *out, uint32_t max)
{
    const rt_part *part = s->patterns->part + pattern->part, *end = part + pattern->parts;
    uint64_t at = 0, not_ascii = 0;
    if (s->blocks.n < 2 * RT_COPY || s->escaped & pattern->needs)
        return rt_join_any(s, pattern, out, max);
    for (uint64_t last = s->blocks.n - 2 * RT_COPY; part < end; part++) {
        if (part->length > RT_COPY || at > max)
            return rt_join_any(s, pattern, out, max);
        rt_copy(out + at, s->patterns->bytes + part->text); /* UTF-8, as all of a pattern is */
        at += part->length;
        if (part->pointer == RT_NO_POINTER)
            continue;
        const rt_value *value = &s->values[part->pointer];
        const uint8_t *bytes = s->blocks.bytes + value->at;
        if (value->length > 2 * RT_COPY || value->at > last)
            return rt_join_any(s, pattern, out, max);
        not_ascii |= rt_copy(out + at, bytes);
        if (value->length > RT_COPY)
            not_ascii |= rt_copy(out + at + RT_COPY, bytes + RT_COPY);
        at += value->length;
    }
    return at > max || not_ascii ? rt_join_any(s, pattern, out, max) : (uint32_t)at;
}

static inline int rt_glob_fits(const rt_pass *s, const rt_pattern *pattern)
{
    uint8_t joined[RT_JOINED_MAX + RT_SLACK];
    uint32_t n = rt_join(s, pattern, joined, RT_JOINED_MAX);
    const char *glob = (const char *)s->patterns->bytes + pattern->glob;
    return n != RT_NOT_JOINED &&
           rc_matches(glob, pattern->glob_length, (const char *)joined, n);
}

/* ---- what still matters -------------------------------------------------------------------- */

RT_INLINE int rt_is_out(const rt_pass *s, const rt_pattern *pattern)
{
    return (pattern->needs & s->decided & ~s->found) != 0;
}

RT_INLINE int rt_has_all(const rt_pass *s, const rt_pattern *pattern)
{
    return !(pattern->needs & ~s->found);
}

/* What the patterns of a kind need that may still win; *winner is the one that has. */
RT_INLINE uint64_t rt_wanted_by(const rt_pass *s, rt_kind kind, const rt_pattern **winner)
{
    const rt_pattern *pattern = s->patterns->of[kind];
    uint64_t wanted = 0;
    for (uint32_t i = 0; i < s->patterns->count[kind]; i++, pattern++) {
        if (rt_is_out(s, pattern))
            continue;
        if (rt_has_all(s, pattern)) {
            *winner = pattern; /* unless one before it does */
            break;
        }
        wanted |= pattern->needs;
    }
    return wanted;
}

/* The same of control patterns, any of which may be the one. */
static RT_RARE uint64_t rt_wanted_by_control(rt_pass *s)
{
    const rt_pattern *pattern = s->patterns->of[RT_CONTROL];
    uint64_t wanted = 0;
    for (uint32_t i = 0; i < s->patterns->count[RT_CONTROL]; i++, pattern++) {
        if (rt_is_out(s, pattern) || s->unfit >> i & 1)
            continue;
        if (!rt_has_all(s, pattern)) {
            wanted |= pattern->needs;
        } else if (!pattern->has_glob || rt_glob_fits(s, pattern)) {
            s->is_control = 1;
            return 0;
        } else {
            s->unfit |= UINT32_C(1) << i;
        }
    }
    return wanted;
}

/* The same of the answer pattern. */
static RT_RARE uint64_t rt_wanted_by_answer(rt_pass *s)
{
    const rt_pattern *pattern = s->patterns->of[RT_ANSWER];
    if (rt_is_out(s, pattern))
        return 0;
    if (!rt_has_all(s, pattern))
        return pattern->needs;
    const rt_value *value = &s->values[s->patterns->part[pattern->part].pointer];
    s->request = rt_read_request_id(s->blocks.bytes + value->at, value->length);
    return 0;
}

/* The first topic pattern that can still win; NULL if none can, or if that alone does not end the
 * pass. */
static inline const rt_pattern *rt_leader(const rt_pass *s)
{
    const rt_pattern *pattern = s->patterns->of[RT_TOPIC];
    if (s->patterns->count[RT_CONTROL] || s->patterns->count[RT_KEY] || s->patterns->count[RT_ANSWER])
        return NULL;
    for (uint32_t i = 0; i < s->patterns->count[RT_TOPIC]; i++, pattern++)
        if (!rt_is_out(s, pattern))
            return pattern;
    return NULL;
}

/* Find out what is still wanted. 0: nothing is. */
static RT_RARE int rt_reconsider(rt_pass *s)
{
    uint64_t wanted = 0;
    if (s->patterns->count[RT_ANSWER]) {
        wanted = rt_wanted_by_answer(s);
        if (s->request)
            return 0;
    }
    if (s->patterns->count[RT_CONTROL]) {
        if (!s->is_control)
            wanted |= rt_wanted_by_control(s);
        if (s->is_control) { /* and, unless that is known, an answer perhaps */
            s->wanted = wanted & ~s->decided;
            return s->wanted != 0;
        }
    }
    wanted |= rt_wanted_by(s, RT_TOPIC, &s->topic) | rt_wanted_by(s, RT_KEY, &s->key);
    s->wanted = wanted & ~s->decided;
    s->leader = rt_leader(s);
    return s->wanted != 0;
}

/* These pointers are decided. 0: so is everything that matters. With a leader, what was found ends
 * the pass if the leader has all now, and changes nothing else. */
RT_INLINE int rt_decide(rt_pass *s, uint64_t pointers)
{
    const rt_pattern *leader = s->leader;
    s->decided |= pointers;
    s->wanted &= ~pointers;
    if (!leader || pointers & ~s->found)
        return rt_reconsider(s);
    if (!rt_has_all(s, leader))
        return 1;
    s->topic = leader;
    return 0;
}

/* ---- the walk ------------------------------------------------------------------------------ */

/* A container on the way to a value. */
typedef struct rt_frame {
    uint64_t below; /* the pointers that may lie in it */
    uint64_t index; /* of an array: the element that comes next */
    const rt_node *node;
    int is_array;
} rt_frame;

/* The pointers that may lie in the container of this node. */
RT_INLINE uint64_t rt_inside(const rt_node *node, uint8_t bracket)
{
    return bracket == '[' ? node->elements : node->below;
}

RT_INLINE void rt_enter(rt_frame *frame, const rt_node *node, uint8_t bracket)
{
    frame->below = rt_inside(node, bracket);
    frame->index = 0;
    frame->node = node;
    frame->is_array = bracket == '[';
}

/* A key of at most RT_WORD bytes at p as a node has it of its token. */
RT_INLINE uint64_t rt_key_word(const uint8_t *p, uint64_t n, uint64_t readable)
{
    if (rt_unlikely(readable < RT_WORD))
        return rt_first_word(p, n);
    uint64_t word = rc_little_u64(p);
    return n == RT_WORD ? word : word & ~(UINT64_MAX << 8 * n);
}

/* The child of a node for a key of more than RT_WORD bytes, or NULL. */
static RT_RARE const rt_node *rt_long_member(const rt_patterns *p, const rt_node *parent,
                                             const uint8_t *key, uint64_t n)
{
    const rt_node *node = parent;
    for (uint32_t step = parent->child; step; step = node->sibling) {
        node += step;
        if (node->length == n && memcmp(p->bytes + node->text, key, n) == 0)
            return node;
    }
    return NULL;
}

/* The child of a node for a key with escapes, or NULL. */
static RT_RARE const rt_node *rt_escaped_member(const rt_patterns *p, const rt_node *parent,
                                                const uint8_t *key, uint64_t n)
{
    const rt_node *node = parent;
    for (uint32_t step = parent->child; step; step = node->sibling) {
        node += step;
        if (rt_means(key, n, p->bytes + node->text, node->length))
            return node;
    }
    return NULL;
}

/* The child of a node for the key at bytes[at .. end), or NULL. */
RT_INLINE const rt_node *rt_member(const rt_patterns *p, const rt_node *parent, const rt_cursor *c,
                                   uint64_t at, uint64_t end)
{
    const uint8_t *key = c->bytes + at;
    uint64_t n = end - at;
    if (rt_unlikely(c->blocks->slashes && memchr(key, '\\', n)))
        return rt_escaped_member(p, parent, key, n);
    if (!(parent->firsts & rt_first(*key)))
        return NULL;
    if (n > RT_WORD)
        return rt_long_member(p, parent, key, n);
    uint64_t word = rt_key_word(key, n, c->n - at);
    const rt_node *node = parent;
    for (uint32_t step = parent->child; step; step = node->sibling) {
        node += step;
        if (node->word == word && node->length == n)
            return node;
    }
    return NULL;
}

/* The child of a node for an array's element, or NULL. */
RT_INLINE const rt_node *rt_element(const rt_node *parent, uint64_t index)
{
    const rt_node *node = parent;
    for (uint32_t step = parent->child; step; step = node->sibling) {
        node += step;
        if (node->index == index)
            return node;
    }
    return NULL;
}

/* The colon after the key whose ending quote is at `end`, or RT_END. */
RT_INLINE uint64_t rt_colon(const rt_cursor *c, uint64_t end)
{
    if (end >= c->n - 1) /* RT_END, too */
        return RT_END;
    uint64_t at = end + 1;
    while (rt_unlikely(c->bytes[at] != ':'))
        if (!rt_is_space(c->bytes[at]) || ++at == c->n)
            return RT_END;
    return rt_there(at);
}

/* The number that may stand at bytes[at .. end), with spaces around it. 0: none does. */
static RT_RARE int rt_number(rt_pass *s, uint32_t pointer, uint64_t at, uint64_t end)
{
    const uint8_t *bytes = s->blocks.bytes;
    while (at < end && rt_is_space(bytes[at]))
        at++;
    while (at < end && rt_is_space(bytes[end - 1]))
        end--;
    s->values[pointer] = (rt_value){at, end - at};
    return rt_is_number(bytes + at, end - at);
}

RT_INLINE void rt_string(rt_pass *s, uint32_t pointer, uint64_t at, uint64_t end)
{
    s->values[pointer] = (rt_value){at, end - at};
    if (s->blocks.slashes && memchr(s->blocks.bytes + at, '\\', end - at))
        s->escaped |= UINT64_C(1) << pointer;
}

typedef enum rt_step { RT_GO_ON, RT_DESCEND, RT_DONE, RT_NO_JSON } rt_step;

/* Pass over the value whose first event is at `at`. The event after it, or RT_END. */
RT_INLINE uint64_t rt_pass_over(rt_cursor *c, uint64_t at)
{
    uint8_t byte = c->bytes[at];
    if (byte == '"')
        rt_next(c);
    else if (byte != '{' && byte != '[')
        return at; /* a scalar, which has no event */
    else if (rt_skip(c) == RT_END)
        return RT_END;
    return rt_next(c);
}

/* Go to the next member of an object that has a node. Returns it, with the value's first event in *at
 * and where the value may begin in *begin; NULL: *at is the event that ends the object, or RT_END. */
RT_INLINE const rt_node *rt_seek_member(const rt_patterns *p, const rt_node *parent, rt_cursor *c,
                                        uint64_t *begin, uint64_t *at)
{
    for (;;) { /* bounded: each round takes an event */
        uint64_t quote = *at = rt_next(c);
        if (quote == RT_END || c->bytes[quote] != '"')
            return NULL;
        uint64_t end = rt_next(c), colon = rt_colon(c, end);
        *at = colon == RT_END ? RT_END : rt_next(c);
        if (*at == RT_END)
            return NULL;
        const rt_node *node = rt_member(p, parent, c, quote + 1, end);
        if (node) {
            *begin = colon + 1;
            return node;
        }
        *at = rt_pass_over(c, *at);
        if (*at == RT_END || c->bytes[*at] != ',')
            return NULL;
    }
}

/* The same of an array's elements; *at is the event before the next one. */
RT_INLINE const rt_node *rt_seek_element(rt_frame *frame, rt_cursor *c, uint64_t *begin, uint64_t *at)
{
    for (;;) { /* bounded: each round takes an event */
        *begin = *at + 1;
        *at = rt_next(c);
        if (*at == RT_END)
            return NULL;
        const rt_node *node = rt_element(frame->node, frame->index++);
        if (node)
            return node;
        *at = rt_pass_over(c, *at);
        if (*at == RT_END || c->bytes[*at] != ',')
            return NULL;
    }
}

/* Take the value of a node, whose first event is *at, and the event after it, which is then *at. */
RT_INLINE rt_step rt_take_value(rt_pass *s, const rt_node *node, uint64_t begin, rt_cursor *c,
                                uint64_t *at)
{
    uint64_t first = *at, wanted = (node->ends | node->below) & s->wanted;
    uint8_t byte = c->bytes[first];
    if (byte == '"') {
        uint64_t end = rt_next(c);
        if (end == RT_END)
            return RT_NO_JSON;
        *at = rt_next(c);
        if (wanted & node->ends) {
            rt_string(s, node->pointer, first + 1, end);
            s->found |= node->ends;
        }
    } else if ((byte == '{' || byte == '[') && (rt_inside(node, byte) & wanted)) {
        return RT_DESCEND;
    } else {
        *at = rt_pass_over(c, first);
        if (*at == first && wanted & node->ends && rt_number(s, node->pointer, begin, first))
            s->found |= node->ends;
    }
    return !wanted || rt_decide(s, wanted) ? RT_GO_ON : RT_DONE;
}

/* The event `at` comes after a value: leave the containers that end, and those in which nothing is
 * wanted. RT_GO_ON: a comma was last. */
RT_INLINE rt_step rt_leave(rt_pass *s, const rt_frame *outermost, rt_frame **frame,
                           rt_cursor *c, uint64_t *at)
{
    for (;; --*frame) { /* bounded: by the depth */
        if (*at != RT_END && c->bytes[*at] == ',' && !((*frame)->below & s->wanted))
            *at = rt_skip(c);
        if (*at == RT_END)
            return RT_NO_JSON;
        if (c->bytes[*at] == ',')
            return RT_GO_ON;
        if (c->bytes[*at] != ((*frame)->is_array ? ']' : '}'))
            return RT_NO_JSON;
        if (!rt_decide(s, (*frame)->node->below) || *frame == outermost)
            return RT_DONE;
        *at = rt_next(c);
    }
}

/* Walk through the payload until nothing is wanted, or to its end. 0: it is no JSON, as far as that
 * was looked at. */
RT_INLINE int rt_walk(rt_pass *s, const rt_patterns *p, rt_cursor *c)
{
    rt_frame stack[RT_DEPTH_MAX + 1], *frame = stack;
    uint64_t begin = 0, at = rt_next(c);
    if (at == RT_END || (c->bytes[at] != '{' && c->bytes[at] != '['))
        return 0;
    rt_enter(frame, p->node, c->bytes[at]);
    if (!(frame->below & s->wanted))
        return 1;
    for (;;) { /* bounded: each round takes an event */
        rt_step step = RT_GO_ON;
        const rt_node *node = frame->is_array ? rt_seek_element(frame, c, &begin, &at)
                                              : rt_seek_member(p, frame->node, c, &begin, &at);
        if (node)
            step = rt_take_value(s, node, begin, c, &at);
        if (step == RT_DESCEND) {
            if (!rt_decide(s, node->ends))
                return 1;
            rt_enter(++frame, node, c->bytes[at]);
            continue;
        }
        if (step == RT_GO_ON)
            step = rt_leave(s, stack, &frame, c, &at);
        if (step != RT_GO_ON)
            return step == RT_DONE;
    }
}

/* ---- what comes of it ---------------------------------------------------------------------- */

static RT_RARE uint64_t rt_key(const rt_pass *s)
{
    uint8_t joined[RT_JOINED_MAX + RT_SLACK];
    uint32_t n = rt_join(s, s->key, joined, RT_JOINED_MAX);
    return n == RT_NOT_JOINED ? 0 : rc_hash(joined, n, 0);
}

/* Nothing of a topic is known. */
RT_INLINE void rt_found_nothing(rt_found *found, rt_what what)
{
    found->what = what;
    found->key = 0;
    found->topic = 0;
    found->length = 0;
}

/* See above; c is at the beginning of the payload. */
RT_INLINE void rt_find_from(rt_pass *s, const rt_patterns *patterns, rt_cursor *c, rt_found *found)
{
    s->patterns = patterns; /* the values are set as they are found */
    s->found = s->decided = s->escaped = 0;
    s->wanted = patterns->all;
    s->unfit = 0;
    s->topic = s->key = NULL;
    s->is_control = 0;
    s->request = 0;
    s->leader = rt_leader(s);
    rt_found_nothing(found, RT_UNNAMED);
    if (!rt_walk(s, patterns, c) && !s->is_control)
        return;
    if (s->request) {
        found->what = RT_IS_ANSWER;
        found->key = s->request;
        return;
    }
    if (s->is_control) {
        found->what = RT_IS_CONTROL;
        return;
    }
    if (s->key)
        found->key = rt_key(s);
    if (!s->topic)
        return;
    uint32_t length = rt_join(s, s->topic, found->name, RT_NAME_MAX);
    found->what = length == 0 || length == RT_NOT_JOINED ? RT_UNUSABLE : RT_NAMED;
    found->length = found->what == RT_NAMED ? length : 0;
}

static RT_RARE void rt_find_by(const rt_patterns *patterns, const rt_way *way,
                               const uint8_t *payload, uint64_t n, rt_found *found)
{
    rt_pass s;
    rt_cursor c = rt_begin(&s.blocks, way, payload, n);
    rt_find_from(&s, patterns, &c, found);
}

#if defined(__x86_64__)
/* The same with the first block classified here, where most topics stand: a call
 * for it is a seventh of a short message's time. */
RT_AVX2 static RT_RARE void rt_find_avx2(const rt_patterns *patterns, const uint8_t *payload,
                                         uint64_t n, rt_found *found)
{
    rt_pass s;
    rt_cursor c = rt_begin(&s.blocks, &rt_way_avx2, payload, n);
    rt_avx2(&s.blocks, payload, 0);
    c.events = s.blocks.events;
    c.base = 0;
    rt_find_from(&s, patterns, &c, found);
}
#endif

/* Where the value of a set's only pattern lies, whose only part is a pointer: a string with its
 * quotes, or a number. 0: it is not there. */
static inline int rt_locate(const rt_patterns *patterns, const rt_way *way, const uint8_t *payload,
                            uint64_t n, uint64_t *begin, uint64_t *end)
{
    rt_pass s;
    rt_found found;
    rt_cursor c = rt_begin(&s.blocks, way, payload, n);
    rt_find_from(&s, patterns, &c, &found);
    if (!s.topic)
        return 0;
    const rt_value *value = &s.values[patterns->part[s.topic->part].pointer];
    int is_string = payload[value->at - 1] == '"'; /* before it stands at least a bracket */
    *begin = value->at - (uint64_t)is_string;
    *end = value->at + value->length + (uint64_t)is_string;
    return 1;
}

/* See above. */
static inline void rt_find(const rt_patterns *patterns, const rt_way *way, const uint8_t *payload,
                           uint64_t n, rt_found *found)
{
#if defined(__x86_64__)
    if (way == &rt_way_avx2 && n >= RT_BLOCK) {
        rt_find_avx2(patterns, payload, n, found);
        return;
    }
#endif
    rt_find_by(patterns, way, payload, n, found);
}

#endif

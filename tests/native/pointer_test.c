/* pointer_test.c - the scanner of topics alone; built and run as ring_test.c is.
 *
 *   pointer_test [SEED [PERCENT [CASE]]]    all cases, or one
 *
 * Every way to classify blocks says the same as a plain loop over bytes, for any bytes. The scanner
 * is given messages of exchanges that are cut, spoiled and mixed: each way finds the same, and what
 * it finds comes from the payload. That valid JSON is understood as a parser does is tested in
 * Python, against one.
 *
 * Payloads lie in memory of exactly their size, so AddressSanitizer sees each access beyond.
 */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* rings are not tested here */
#include "harness.h"
#pragma GCC diagnostic pop
#include "cases.h"
#include "names.h"

static const rt_way *const all_ways[] = {
    &rt_way_words,
#if defined(__x86_64__)
    &rt_way_sse2,
    &rt_way_avx2,
#endif
};

/* The ways that this processor has: those above up to the best. */
static size_t count_ways(void)
{
    size_t n = 0;
    while (all_ways[n++] != rt_best_way())
        CHECK(n < sizeof all_ways / sizeof *all_ways);
    return n;
}

static uint8_t *exactly(const uint8_t *bytes, uint64_t n)
{
    uint8_t *memory = malloc(n);
    CHECK(memory || n == 0);
    if (n)
        memcpy(memory, bytes, n);
    return memory;
}

/* ---- blocks -------------------------------------------------------------------------------- */

#define TEXT_MAX 400u

/* A text in which what matters is frequent. */
static uint64_t any_text(uint8_t *text)
{
    static const char frequent[] = "\"\"\"\\\\{}[],:{}[] a1";
    uint64_t n = roll(TEXT_MAX), plain = roll(4) * 20;
    for (uint64_t i = 0; i < n; i++)
        text[i] = (uint8_t)(roll(100) < plain ? roll(256) : (uint64_t)frequent[roll(17)]);
    return n;
}

/* The events of a text, one byte after the other. */
static uint64_t plain_events(const uint8_t *text, uint64_t n, uint64_t *events)
{
    uint64_t count = 0;
    int inside = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (text[i] == '\\') {
            i++; /* what it escapes is none */
            if (i >= n || text[i] == '"' || text[i] == '\\' || inside)
                continue;
        }
        if (text[i] == '"')
            inside = !inside;
        else if (inside || !strchr("{}[],", text[i]) || !text[i])
            continue;
        events[count++] = i;
    }
    return count;
}

static uint64_t plain_end(const uint8_t *text, const uint64_t *events, uint64_t count, uint64_t *i)
{
    uint64_t depth = 1;
    for (; *i < count; ++*i) {
        uint8_t c = text[events[*i]];
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
        if (!depth)
            return events[(*i)++];
    }
    return RT_END;
}

static void case_blocks(void)
{
    uint8_t text[TEXT_MAX];
    uint64_t events[TEXT_MAX];
    for (uint64_t round = 0; round < scaled(200000); round++) {
        uint64_t n = any_text(text), count = plain_events(text, n, events);
        uint8_t *copy = exactly(text, n);
        uint64_t skip_at = roll(count + 1);
        for (size_t way = 0; way < count_ways(); way++) {
            rt_blocks b;
            rt_cursor c = rt_begin(&b, all_ways[way], copy, n);
            uint64_t i = 0;
            while (i < skip_at)
                CHECK(rt_next(&c) == events[i++]);
            if (i && roll(2))
                CHECK(rt_skip(&c) == plain_end(text, events, count, &i));
            while (i < count)
                CHECK(rt_next(&c) == events[i++]);
            CHECK(rt_next(&c) == RT_END);
        }
        free(copy);
    }
}

/* ---- messages ------------------------------------------------------------------------------ */

static const char *const messages[] = {
    "{\"stream\":\"btcusdt@trade\",\"data\":{\"e\":\"trade\",\"E\":1723161602217,\"s\":\"BTCUSDT\","
    "\"p\":\"61684.01000000\",\"q\":\"0.00009000\",\"m\":true,\"M\":true}}",
    "{\"e\":\"depthUpdate\",\"s\":\"ETHUSDT\",\"b\":[[\"2684.99\",\"1.25\"],[\"2684.98\",\"0.04\"],"
    "[\"2684.97\",\"3\"]],\"a\":[],\"u\":50093421612}",
    "{ \"arg\" : { \"channel\" : \"books\" , \"instId\" : \"BTC-USDT\" } , \"data\" : [ { \"asks\" "
    ": [ ] , \"ts\" : \"1652459227179\", \"checksum\":-1219754310 } ] }",
    "{\"event\":\"bts:heartbeat\",\"channel\":\"\",\"data\":{\"status\":\"success\"}}",
    "[3648,{\"a\":[[\"0.007565\",\"0.0\",\"1618678134.183560\"]],\"c\":\"161898964\"},\"book-1000\","
    "\"KSM/XBT\"]",
    "{\"\\u0073tream\":\"\\u00e9t\\u00e9@\\ud83d\\ude00\",\"e\":\"a\\\"b\\\\c\\/d\\n\",\"s\":\"\\ud800\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":12,\"result\":[\"book.BTC\",{\"x\":{\"y\":{\"z\":[1,2,3]}}}]}",
    "{\"s\":\"\xc3\xa9t\xc3\xa9\",\"e\":\"\xf0\x9f\x98\x80\",\"x\":null,\"stream\":-1.5e+10}",
};

#define MESSAGES (sizeof messages / sizeof *messages)
#define LONGEST_MESSAGE 1200u

/* The patterns of a venue; the first set has one pointer a pattern and no text beside it. */
static const struct {
    rt_kind kind;
    const char *text;
} pattern_sets[][6] = {
    {{RT_TOPIC, "{/stream}"}, {RT_TOPIC, "{/2}"}, {RT_TOPIC, "{/e}"}, {RT_TOPIC, "{/id}"}},
    {{RT_TOPIC, "{/stream}"}, {RT_TOPIC, "{/e}:{/s}"}, {RT_KEY, "{/data/s}"}, {RT_KEY, "{/s}"}},
    {{RT_TOPIC, "{{{/arg/channel}:{/arg/instId}}}"}, {RT_KEY, "{/data/0/ts}"},
     {RT_CONTROL, "{/event}=bts:*"}, {RT_CONTROL, "{/id}"}},
    {{RT_TOPIC, "{/2}:{/3}"}, {RT_TOPIC, "{/result/1/x/y/z/2}"}, {RT_TOPIC, "{/b/1/0}"},
     {RT_CONTROL, "{/event}:{/channel}=*beat*:"}},
};

#define SETS (sizeof pattern_sets / sizeof *pattern_sets)

static void compile(rt_patterns *p, size_t set)
{
    rt_error error;
    rt_patterns_begin(p);
    for (size_t i = 0; i < 6 && pattern_sets[set][i].text; i++) {
        const char *text = pattern_sets[set][i].text;
        CHECK(rt_patterns_add(p, pattern_sets[set][i].kind, (const uint8_t *)text, strlen(text),
                              &error));
    }
}

static void spoil(uint8_t *bytes, uint64_t *n)
{
    static const char structural[] = "\"\"\\\\{}[],:u0dD89 ";
    uint64_t at = *n ? roll(*n) : 0, much = *n ? roll(*n - at < 40 ? *n - at : 40) : 0;
    switch (roll(6)) {
    case 0: /* cut short */
        *n = at;
        break;
    case 1: /* some is missing */
        memmove(bytes + at, bytes + at + much, *n - at - much);
        *n -= much;
        break;
    case 2: /* some comes twice */
        if (*n + much > LONGEST_MESSAGE)
            break;
        memmove(bytes + at + much, bytes + at, *n - at);
        *n += much;
        break;
    case 3: /* any byte */
        if (*n)
            bytes[at] = (uint8_t)roll(256);
        break;
    default: /* a byte that means something */
        if (*n)
            bytes[at] = (uint8_t)structural[roll(17)];
        break;
    }
}

/* A message, or the beginning of one and the end of another, spoiled some times. */
static uint64_t any_message(uint8_t *bytes)
{
    const char *one = messages[roll(MESSAGES)], *other = messages[roll(MESSAGES)];
    uint64_t n = strlen(one), tail = 0;
    memcpy(bytes, one, n);
    if (roll(4) == 0) {
        n = roll(n);
        tail = roll(strlen(other));
        memcpy(bytes + n, other + strlen(other) - tail, tail);
        n += tail;
    }
    for (uint64_t times = roll(4); times; times--)
        spoil(bytes, &n);
    return n;
}

static int occurs(const uint8_t *bytes, uint64_t n, const uint8_t *part, uint64_t length)
{
    for (uint64_t i = 0; i + length <= n; i++)
        if (memcmp(bytes + i, part, length) == 0)
            return 1;
    return 0;
}

static void check_found(const rt_found *found, const rt_found *other)
{
    CHECK(found->what == other->what && found->key == other->key);
    CHECK(found->topic == 0 && found->length == other->length);
    CHECK(memcmp(found->name, other->name, found->length) == 0);
    CHECK((found->what == RT_NAMED) == (found->length > 0) && found->length <= RT_NAME_MAX);
    CHECK(!found->length || rt_is_utf8(found->name, found->length));
}

/* Each thing that can be found has been, so that no case tests nothing. */
static void check_tally(const uint64_t *tally)
{
    CHECK(tally[RT_NAMED] && tally[RT_UNNAMED] && tally[RT_UNUSABLE] && tally[RT_IS_CONTROL]);
}

static void case_mutations(void)
{
    static rt_patterns patterns[SETS];
    uint8_t bytes[2 * LONGEST_MESSAGE];
    uint64_t tally[RT_FAILED + 1] = {0};
    for (size_t set = 0; set < SETS; set++)
        compile(&patterns[set], set);
    for (uint64_t round = 0; round < scaled(3000000); round++) {
        size_t set = roll(SETS);
        uint64_t n = any_message(bytes);
        uint8_t *payload = exactly(bytes, n);
        rt_found found[sizeof all_ways / sizeof *all_ways];
        for (size_t way = 0; way < count_ways(); way++) {
            rt_find(&patterns[set], all_ways[way], payload, n, &found[way]);
            check_found(&found[way], &found[0]);
        }
        tally[found[0].what]++;
        if (set == 0 && found[0].length && !memchr(payload, '\\', n))
            CHECK(occurs(payload, n, found[0].name, found[0].length));
        free(payload);
    }
    check_tally(tally);
}

/* ---- patterns and names -------------------------------------------------------------------- */

/* Patterns of any text are refused or compiled, within their bounds. */
static void case_patterns(void)
{
    static const char frequent[] = "{}{}//~01=*a9:{/";
    static rt_patterns p;
    uint8_t text[300];
    rt_error error;
    rt_found found;
    for (uint64_t round = 0; round < scaled(20000); round++) {
        rt_patterns_begin(&p);
        for (uint64_t left = roll(40); left; left--) {
            uint64_t n = roll(roll(20) ? 24 : sizeof text);
            for (uint64_t i = 0; i < n; i++)
                text[i] = (uint8_t)frequent[roll(16)];
            uint8_t *copy = exactly(text, n);
            int added = rt_patterns_add(&p, (rt_kind)roll(RT_KINDS), copy, n, &error);
            CHECK(added || (error.why && error.at <= n));
            free(copy);
            if (!added)
                break;
        }
        const char *message = messages[roll(MESSAGES)];
        uint8_t *payload = exactly((const uint8_t *)message, strlen(message));
        rt_find(&p, rt_best_way(), payload, strlen(message), &found);
        free(payload);
    }
}

/* A map with as many names as it takes, emptied now and then, against a plain list. */
static void case_names(void)
{
    enum { MOST = 50, NAMES = 80 };
    rt_names names;
    uint32_t topics[NAMES] = {0};
    CHECK(rt_names_make(&names, MOST, mix(seed)));
    for (uint64_t round = 0; round < scaled(100000); round++) {
        rt_found found;
        uint32_t number = (uint32_t)roll(NAMES), topic = 1 + (uint32_t)roll(1000), known = 0;
        rt_found_nothing(&found, RT_NAMED);
        found.length = (uint32_t)snprintf((char *)found.name, RT_NAME_MAX, "name %u", number);
        for (int i = 0; i < NAMES; i++)
            known += topics[i] != 0;
        rt_names_look(&names, &found, 0);
        CHECK(names.count == known);
        CHECK(found.what == (topics[number] ? RT_KNOWN : known < MOST ? RT_NEW : RT_OVERFLOWED));
        CHECK(found.topic == topics[number] && found.key == 3 * (uint64_t)topics[number]);
        if (rt_names_put(&names, found.name, found.length, topic, 3 * (uint64_t)topic))
            topics[number] = topic;
        else
            CHECK(!topics[number] && known == MOST);
        if (roll(500) == 0) {
            rt_names_forget(&names);
            memset(topics, 0, sizeof topics);
        }
    }
    rt_names_free(&names);
}

int main(int argc, char **argv)
{
    static const test_case cases[] = {
        {"blocks", case_blocks},
        {"mutations", case_mutations},
        {"patterns", case_patterns},
        {"names", case_names},
    };
    return run_cases(argc, argv, cases, sizeof cases / sizeof *cases, NULL);
}

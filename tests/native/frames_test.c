/* frames_test.c - the decoder of WebSocket frames alone; built and run as ring_test.c is.
 *
 *   frames_test [SEED [PERCENT [CASE]]]    all cases, or one
 *
 * Streams of frames, whole, cut short, spoiled or made of anything, are given in pieces to
 * rf_next() and as a whole to a plain decoder, which is written from RFC 6455 and moves nothing in
 * place. Both say the same, byte by byte, for every input; of a stream without a fault they say
 * what was put in.
 *
 * What rf_next() sees is as long as what was received, in memory of exactly that size, so that
 * AddressSanitizer sees each access beyond; what was taken already is spoiled.
 */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* rings are not tested here */
#include "harness.h"
#pragma GCC diagnostic pop
#include "frames.h"

#define HEADER_MAX 10u          /* bytes of a server's header */
#define CONTROL_MAX (2u + 125u) /* bytes of a control frame, which may come within a message */

/* ---- byte strings ------------------------------------------------------------------------- */

typedef struct string {
    uint8_t *bytes;
    uint64_t n, room;
} string;

static void *exactly(uint64_t n)
{
    void *memory = malloc(n);
    CHECK(memory);
    return memory;
}

static void add(string *s, const void *bytes, uint64_t n)
{
    if (s->n + n > s->room) {
        s->room = 2 * (s->n + n);
        s->bytes = realloc(s->bytes, s->room);
        CHECK(s->bytes);
    }
    if (n)
        memcpy(s->bytes + s->n, bytes, n);
    s->n += n;
}

static void add_byte(string *s, uint32_t byte) { add(s, &(uint8_t){(uint8_t)byte}, 1); }

static int same(const string *a, const string *b)
{
    return a->n == b->n && (a->n == 0 || memcmp(a->bytes, b->bytes, a->n) == 0);
}

/* One line of a log of what a decoder says; logs are the same if their bytes are. `code` is, of a
 * message, the length of the header of its one frame, or 0. */
static void note(string *log, rf_what what, int is_text, uint16_t code, const uint8_t *payload,
                 uint64_t n)
{
    add_byte(log, what);
    add_byte(log, is_text != 0);
    add(log, &code, sizeof code);
    add(log, &n, sizeof n);
    add(log, payload, n);
}

/* ---- the plain decoder -------------------------------------------------------------------- */

enum { WRONG, WHOLE, OPEN }; /* OPEN: ends within a character that may yet become right */

/* A character's missing bytes are anything from 80 to bf: is any value between allowed? */
static int well_formed(const uint8_t *p, uint64_t n)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    for (uint64_t i = 0; i < n;) {
        uint32_t c = p[i], length = 1;
        if (c >= 0x80)
            length = c < 0xc0 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf8 ? 4 : 0;
        uint32_t low = length > 1 ? c & (0x7f >> length) : c, high = low;
        if (!length)
            return WRONG;
        for (uint64_t k = i + 1; k < i + length; k++) {
            if (k < n && (p[k] & 0xc0) != 0x80)
                return WRONG;
            low = low << 6 | (k < n ? p[k] & 0x3f : 0);
            high = high << 6 | (k < n ? p[k] & 0x3f : 0x3f);
        }
        if (high < least[length] || low > 0x10ffff || (low >= 0xd800 && high <= 0xdfff))
            return WRONG;
        if (i + length > n)
            return OPEN;
        i += length;
    }
    return WHOLE;
}

/* What has been seen in all streams, so that no case tests nothing. */
static struct {
    uint64_t texts, binaries, controls, fragments, protocol, bad_text, too_big, unfinished;
} tally;

/* May a frame begin so, while a message of `opcode` has begun (0: none)? */
static int may_begin(const uint8_t *p, int opcode)
{
    if ((p[0] & 0x70) || (p[1] & 0x80))
        return 0;
    switch (p[0] & 0x0f) {
    case 0:
        return opcode != 0;
    case 1:
    case 2:
        return opcode == 0;
    case 8:
    case 9:
    case 10:
        return (p[0] & 0x80) && p[1] <= 125;
    default:
        return 0;
    }
}

/* What is wrong with a control frame, or 0. */
static uint16_t control_fault(uint8_t opcode, const uint8_t *payload, uint64_t n, uint16_t *code)
{
    *code = 0;
    if (opcode != 8)
        return 0;
    *code = n ? (uint16_t)(n > 1 ? payload[0] * 256 + payload[1] : 0) : 1005;
    if (n && *code != 1000 && *code != 1001 && *code != 1002 && *code != 1003 &&
        !(*code > 1006 && *code < 1015) && !(*code / 1000 == 3 || *code / 1000 == 4))
        return 1002;
    return n > 2 && well_formed(payload + 2, n - 2) != WHOLE ? 1007 : 0;
}

/* Decode one frame at p of n bytes. Its length with the header; 0: *fault, or more is needed. */
static uint64_t decode_frame(const uint8_t *p, uint64_t n, uint64_t max, int *opcode,
                             string *message, string *log, uint16_t *fault)
{
    uint64_t length = n < 2 ? 0 : p[1] & 0x7f, header = length == 126 ? 4 : length == 127 ? 10 : 2;
    uint16_t code;
    int text;
    if (n >= 2 && !may_begin(p, *opcode))
        *fault = 1002;
    if (n < header || *fault)
        return 0;
    if (header > 2)
        for (uint64_t i = length = 0; i < header - 2; i++)
            length = length * 256 + p[2 + i];
    if ((header == 4 && length < 126) || (header == 10 && (length < 65536 || length >> 63))) {
        *fault = 1002;
        return 0;
    }
    uint64_t there = n - header < length ? n - header : length;
    if (p[0] & 8) {
        if (there < length || (*fault = control_fault(p[0] & 15, p + header, length, &code)))
            return 0;
        rf_what what = (p[0] & 15) == 8 ? RF_CLOSE : (p[0] & 15) == 9 ? RF_PING : RF_PONG;
        note(log, what, 0, code, p + header, length);
        tally.controls++;
        return header + length;
    }
    if (length > max || message->n + length > max) {
        *fault = 1009;
        return 0;
    }
    *opcode = p[0] & 15 ? p[0] & 15 : *opcode;
    tally.fragments += !(p[0] & 0x80);
    add(message, p + header, there);
    text = *opcode == 1 ? well_formed(message->bytes, message->n) : WHOLE;
    if (text == WRONG || (there == length && (p[0] & 0x80) && text == OPEN))
        *fault = 1007;
    if (*fault || there < length)
        return 0;
    if (p[0] & 0x80) {
        code = p[0] & 15 ? (uint16_t)header : 0;
        note(log, RF_MESSAGE, *opcode == 1, code, message->bytes, message->n);
        tally.texts += *opcode == 1;
        tally.binaries += *opcode == 2;
        message->n = 0;
        *opcode = 0;
    }
    return header + length;
}

static void decode_plainly(const uint8_t *p, uint64_t n, uint64_t max, string *log)
{
    string message = {0};
    int opcode = 0;
    uint16_t fault = 0;
    for (uint64_t at = 0, length = 1; length; at += length)
        length = decode_frame(p + at, n - at, max, &opcode, &message, log, &fault);
    note(log, fault ? RF_FAULT : RF_MORE, 0, fault, NULL, 0);
    tally.protocol += fault == 1002;
    tally.bad_text += fault == 1007;
    tally.too_big += fault == 1009;
    tally.unfinished += !fault && (opcode || message.n);
    free(message.bytes);
}

/* ---- the user ----------------------------------------------------------------------------- */

typedef struct user {
    rf_decoder d;
    uint8_t *bytes; /* n of them when they were received */
    uint64_t n;
    uint64_t largest;  /* read */
    int tight;         /* has only the room that rf_need() asks for */
    int refuses, keeps; /* often: a message it can't use yet; bytes that were taken */
} user;

/* Have a new buffer with what is needed, or all of it, and `more` bytes. */
static void receive(user *u, const uint8_t *more, uint64_t n)
{
    uint64_t from = u->keeps && roll(2) ? 0 : rf_kept(&u->d);
    uint8_t *bytes = exactly(u->n - from + n);
    memcpy(bytes, u->bytes + from, u->n - from);
    memcpy(bytes + u->n - from, more, n);
    free(u->bytes);
    u->bytes = bytes;
    u->n += n - from;
    if (from)
        rf_rebase(&u->d);
    else
        memset(bytes, 0xff, rf_kept(&u->d));
}

/* A whole message that came in one frame has its header directly before it. */
static void check_header(const user *u, const rf_item *item)
{
    const uint8_t *payload = u->bytes + u->d.begin;
    rf_frame f;
    CHECK(u->d.header <= u->d.begin);
    if (!u->d.header)
        return;
    CHECK(rf_header(payload - u->d.header, u->d.header, &f));
    CHECK(f.header == u->d.header && f.length == item->length);
    CHECK(f.fin && f.opcode == (item->is_text ? RF_TEXT : RF_BINARY));
}

static rf_what use_what_is_there(user *u, rf_item *item, string *log)
{
    rf_what what;
    int refused = 0;
    while ((what = rf_next(&u->d, u->bytes, &u->n, item)) != RF_MORE && what != RF_FAULT) {
        uint64_t offset = what == RF_MESSAGE ? u->d.begin : item->offset;
        CHECK(offset <= u->n && item->length <= u->n - offset);
        CHECK(!refused || what == RF_MESSAGE);
        refused = what == RF_MESSAGE && u->refuses && roll(2);
        if (what == RF_MESSAGE)
            check_header(u, item);
        if (!refused)
            note(log, what, what == RF_MESSAGE && item->is_text,
                 what == RF_MESSAGE ? u->d.header : what == RF_CLOSE ? item->code : 0,
                 u->bytes + offset, item->length);
        if (!refused && what == RF_MESSAGE)
            rf_taken(&u->d);
        if (refused || roll(8) == 0)
            receive(u, u->bytes, 0);
    }
    return what;
}

static void check_need(const user *u)
{
    uint64_t need = rf_need(&u->d), kept = u->n - u->d.begin;
    CHECK(u->d.begin <= u->n && u->d.header == 0);
    CHECK(need > kept);
    CHECK(need <= u->d.max_message + HEADER_MAX || need <= u->d.so_far + CONTROL_MAX);
    CHECK(u->d.so_far <= u->d.max_message);
}

/* A fault is for ever, whatever comes. */
static void check_fault(user *u, const rf_item *item)
{
    static const uint8_t more[] = {0x82, 0, 0x81, 0};
    rf_item again;
    CHECK(item->code && item->reason);
    for (int i = 0; i < 3; i++) {
        CHECK(rf_next(&u->d, u->bytes, &u->n, &again) == RF_FAULT);
        CHECK(again.code == item->code && again.reason == item->reason);
        receive(u, more, sizeof more);
    }
}

static void decode_in_pieces(user *u, const uint8_t *p, uint64_t size, string *log)
{
    rf_item item = {0};
    rf_what what;
    u->bytes = exactly(0);
    u->n = 0;
    for (uint64_t at = 0, n;; at += n) {
        what = use_what_is_there(u, &item, log);
        if (what == RF_MORE)
            check_need(u);
        if (what == RF_FAULT || at == size)
            break;
        n = 1 + roll(u->largest);
        if (u->tight && (roll(2) || n > rf_need(&u->d) - (u->n - u->d.begin)))
            n = rf_need(&u->d) - (u->n - u->d.begin);
        n = n < size - at ? n : size - at;
        receive(u, p + at, n);
    }
    if (what == RF_FAULT)
        check_fault(u, &item);
    note(log, what, 0, what == RF_FAULT ? item.code : 0, NULL, 0);
    free(u->bytes);
}

/* Both decoders say the same of a stream; returns what. */
static string both_say(const uint8_t *p, uint64_t n, uint64_t max)
{
    const uint64_t largest[] = {1, 3, 20, n / 7 + 1, n + 1};
    string expected = {0}, log = {0};
    user u = {.tight = roll(2), .refuses = roll(2), .keeps = roll(2)};
    u.largest = largest[n > 5000 ? 3 + roll(2) : roll(5)];
    rf_begin(&u.d, max);
    decode_plainly(p, n, max, &expected);
    decode_in_pieces(&u, p, n, &log);
    CHECK(same(&expected, &log));
    free(log.bytes);
    return expected;
}

static void check(const uint8_t *p, uint64_t n, uint64_t max) { free(both_say(p, n, max).bytes); }

/* ---- streams ------------------------------------------------------------------------------ */

static void add_noise(string *s, uint64_t n)
{
    while (n--)
        add_byte(s, (uint32_t)roll(256));
}

/* A character of `length` bytes, often the first or last that has so many. */
static void add_character(string *s, uint32_t length)
{
    static const uint32_t first[] = {0, 0x80, 0x800, 0x10000};
    static const uint32_t last[] = {0x7f, 0x7ff, 0xffff, 0x10ffff};
    static const uint32_t lead[] = {0, 0xc0, 0xe0, 0xf0};
    uint32_t lowest = first[length - 1], highest = last[length - 1];
    uint32_t c = lowest + (uint32_t)roll(highest - lowest + 1);
    c = roll(4) ? c : roll(2) ? lowest : highest;
    if (c >= 0xd800 && c <= 0xdfff)
        c = roll(2) ? 0xd7ff : 0xe000;
    add_byte(s, lead[length - 1] | c >> 6 * (length - 1));
    for (uint32_t i = length - 1; i-- > 0;)
        add_byte(s, 0x80 | (c >> 6 * i & 0x3f));
}

static void add_text(string *s, uint64_t n)
{
    for (uint64_t end = s->n + n; s->n < end;) {
        uint64_t left = end - s->n, plain = roll(3) ? 0 : roll(left < 90 ? left + 1 : 90);
        for (uint64_t i = 0; i < plain; i++)
            add_byte(s, ' ' + (uint32_t)roll(0x5f));
        if (s->n < end)
            add_character(s, 1 + (uint32_t)roll(end - s->n < 4 ? end - s->n : 4));
    }
}

static void add_frame(string *s, uint32_t first, const uint8_t *payload, uint64_t n)
{
    uint32_t extra = n < 126 ? 0 : n < 65536 ? 2 : 8;
    add_byte(s, first);
    add_byte(s, extra == 0 ? (uint32_t)n : extra == 2 ? 126 : 127);
    while (extra--)
        add_byte(s, (uint32_t)(n >> 8 * extra) & 0xff);
    add(s, payload, n);
}

static void add_control(string *s, string *log)
{
    static const uint16_t codes[] = {1000, 1003, 1007, 1014, 3000, 4999};
    static const rf_what whats[] = {RF_CLOSE, RF_PING, RF_PONG};
    const uint64_t lengths[] = {0, 1, 125, roll(126)};
    uint64_t which = roll(8) ? 1 + roll(2) : 0, n = lengths[roll(4)];
    uint16_t code = which ? 0 : 1005;
    string payload = {0};
    if (which) {
        add_noise(&payload, n);
    } else if (n >= 2) {
        code = codes[roll(6)];
        add_byte(&payload, code >> 8);
        add_byte(&payload, code & 0xff);
        add_text(&payload, n - 2);
    }
    add_frame(s, 0x88 + (uint32_t)which, payload.bytes, payload.n);
    note(log, whats[which], 0, code, payload.bytes, payload.n);
    free(payload.bytes);
}

static void add_message(string *s, string *log, uint64_t max)
{
    const uint64_t lengths[] = {0, 1, 125, 126, 127, 65535, 65536, max, roll(40), roll(200)};
    uint64_t n = lengths[roll(10)], pieces = roll(2) ? 1 : 1 + roll(6), at = 0, size;
    int text = roll(2) != 0;
    string payload = {0};
    n = n < max ? n : max;
    if (text)
        add_text(&payload, n);
    else
        add_noise(&payload, n);
    for (uint64_t i = 0; i < pieces; i++, at += size) {
        int last = i + 1 == pieces;
        size = last ? n - at : roll(4) ? roll(n - at + 1) : 0;
        add_frame(s, (i ? 0 : text ? 1 : 2) | (last ? 0x80 : 0), size ? payload.bytes + at : NULL,
                  size);
        if (last)
            note(log, RF_MESSAGE, text, pieces > 1 ? 0 : n < 126 ? 2 : n < 65536 ? 4 : 10, payload.bytes,
                 n);
        while (roll(4) == 0)
            add_control(s, log);
    }
    free(payload.bytes);
}

/* Frames, and in the log what they are. */
static string stream_of(uint64_t messages, uint64_t max, string *log)
{
    string s = {0};
    while (messages--)
        add_message(&s, log, max);
    return s;
}

static void check_stream(uint64_t messages, uint64_t max)
{
    string log = {0}, said, s = stream_of(messages, max, &log);
    note(&log, RF_MORE, 0, 0, NULL, 0);
    said = both_say(s.bytes, s.n, max);
    CHECK(same(&said, &log));
    free(said.bytes);
    free(log.bytes);
    free(s.bytes);
}

/* ---- cases -------------------------------------------------------------------------------- */

static void case_streams(void)
{
    static const uint64_t sizes[] = {64, 130, 300, 4096};
    for (uint64_t i = 0; i < scaled(8000); i++)
        check_stream(1 + roll(12), sizes[roll(4)]);
    for (uint64_t i = 0; i < scaled(120); i++)
        check_stream(1 + roll(6), 65535 + roll(3) * 1000);
    CHECK(tally.texts && tally.binaries && tally.controls);
    CHECK(tally.fragments);
    CHECK(tally.protocol + tally.bad_text + tally.too_big + tally.unfinished == 0);
}

/* A prefix says nothing early and holds nothing back, and a limit is known from the header. */
static void case_truncations(void)
{
    for (uint64_t i = 0; i < scaled(120); i++) {
        string log = {0}, s = stream_of(1 + roll(5), 300, &log);
        for (uint64_t n = 0; n <= s.n; n++)
            check(s.bytes, n, roll(4) ? 300 : roll(300));
        free(log.bytes);
        free(s.bytes);
    }
    CHECK(tally.unfinished && tally.too_big);
}

static void case_corruptions(void)
{
    for (uint64_t i = 0; i < 10 + scaled(20); i++) {
        string log = {0}, s = stream_of(1 + roll(4), 300, &log);
        for (uint64_t at = 0; at < s.n; at++) {
            uint8_t right = s.bytes[at];
            for (int bit = 0; bit < 8; bit++) {
                s.bytes[at] = (uint8_t)(right ^ 1 << bit);
                check(s.bytes, s.n, 300);
            }
            s.bytes[at] = (uint8_t)roll(256);
            check(s.bytes, s.n, 300);
            s.bytes[at] = right;
        }
        free(log.bytes);
        free(s.bytes);
    }
    CHECK(tally.protocol && tally.bad_text && tally.too_big);
    CHECK(tally.unfinished);
}

/* Any bytes at all, with many of those that frames are made of. */
static void case_garbage(void)
{
    static const uint8_t usual[] = {0x81, 0x82, 0x01, 0x02, 0x80, 0x00, 0x88, 0x89, 0x8a, 0x03,
                                    0xe8, 0x7d, 0x7e, 0x7f, 0x01, 0x05, 0x00, 0xc3, 0xa9, 'x'};
    static const uint64_t sizes[] = {0, 1, 64, 300, UINT64_C(1) << 40};
    for (uint64_t i = 0; i < scaled(100000); i++) {
        string s = {0};
        for (uint64_t n = roll(120); n > 0; n--)
            add_byte(&s, roll(16) ? usual[roll(sizeof usual)] : (uint32_t)roll(256));
        check(s.bytes, s.n, sizes[roll(5)]);
        free(s.bytes);
    }
    CHECK(tally.protocol && tally.bad_text && tally.too_big);
    CHECK(tally.unfinished && tally.texts && tally.controls);
}

/* Every way to say a length, and every length around where ways and limits change. */
static void case_lengths(void)
{
    static const uint64_t around[] = {0, 1, 124, 125, 126, 127, 128, 255, 256, 299, 300, 301, 65534,
                                      65535, 65536, 65537, UINT64_MAX >> 1, (UINT64_MAX >> 1) + 1,
                                      UINT64_MAX - 14, UINT64_MAX};
    static const uint8_t firsts[] = {0x81, 0x82, 0x01, 0x02, 0x80, 0x00, 0x88, 0x89};
    for (uint64_t i = 0; i < sizeof around / sizeof *around * sizeof firsts; i++)
        for (uint32_t extra = 0; extra <= 8; extra += extra ? 6 : 2) {
            uint64_t n = around[i / sizeof firsts];
            string s = {0};
            if (roll(2)) /* a message is so far 100 bytes long */
                add_frame(&s, 1, (const uint8_t[100]){0}, 100);
            add_byte(&s, firsts[i % sizeof firsts]);
            add_byte(&s, extra == 0 ? n & 0x7f : extra == 2 ? 126 : 127);
            for (uint32_t byte = extra; byte-- > 0;)
                add_byte(&s, (uint32_t)(n >> 8 * byte) & 0xff);
            add_text(&s, n < 70000 ? n : roll(200));
            add_frame(&s, 0x82, NULL, 0);
            check(s.bytes, s.n, roll(2) ? 300 : 65536);
            free(s.bytes);
        }
}

/* Every code, and reasons that end anywhere. */
static void case_closes(void)
{
    for (uint32_t code = 0; code < 65536; code++) {
        string s = {0}, payload = {0};
        add_byte(&payload, code >> 8);
        add_byte(&payload, code & 0xff);
        add_frame(&s, 0x88, payload.bytes, 2);
        add_text(&payload, roll(120));
        add_character(&payload, 1 + (uint32_t)roll(4));
        add_frame(&s, 0x88, payload.bytes, payload.n - (payload.n > 5 ? roll(4) : 0));
        check(s.bytes, s.n, 300);
        free(payload.bytes);
        free(s.bytes);
    }
    CHECK(tally.protocol && tally.bad_text && tally.controls);
}

/* ---- UTF-8 -------------------------------------------------------------------------------- */

/* Check p[0 .. n), cut before byte i + 1 where bit i of `cuts` is set. */
static int in_pieces(const uint8_t *p, uint32_t n, uint32_t cuts)
{
    rf_utf8 u = {0};
    for (uint32_t i = 0, from = 0; i < n; i++)
        if (i + 1 == n || cuts >> i & 1) {
            if (!rf_utf8_check(&u, p + from, i + 1 - from))
                return WRONG;
            from = i + 1;
        }
    return u.left ? OPEN : WHOLE;
}

static void check_sequence(const uint8_t *p, uint32_t n)
{
    int expected = well_formed(p, n);
    for (uint32_t cuts = 0; cuts < 1u << (n - 1); cuts++)
        CHECK(in_pieces(p, n, cuts) == expected);
}

/* All of one, two and three bytes. */
static void case_sequences(void)
{
    uint8_t *one = exactly(1), *two = exactly(2), *three = exactly(3);
    for (uint32_t i = 0; i < 256 * 256; i++) {
        one[0] = two[0] = three[0] = (uint8_t)(i >> 8);
        two[1] = three[1] = (uint8_t)i;
        check_sequence(one, 1);
        check_sequence(two, 2);
        for (uint32_t c = 0; c < 256; c++) {
            three[2] = (uint8_t)c;
            if (percent >= 100 || roll(100) < percent)
                check_sequence(three, 3);
        }
    }
    free(one);
    free(two);
    free(three);
}

/* Of four bytes, all of those at which something changes, and some more. */
static void case_long_sequences(void)
{
    static const uint8_t edges[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f,
                                    0xa0, 0xbf, 0xc0, 0xc2, 0xff};
    const uint32_t many = sizeof edges;
    uint8_t *p = exactly(4);
    for (uint32_t i = 0; i < 256 * many * many * many; i++) {
        p[0] = (uint8_t)(i / (many * many * many));
        p[1] = edges[i / (many * many) % many];
        p[2] = edges[i / many % many];
        p[3] = edges[i % many];
        check_sequence(p, 4);
    }
    for (uint64_t i = 0; i < scaled(500000); i++) {
        p[0] = (uint8_t)(0xe0 + roll(24));
        for (int k = 1; k < 4; k++)
            p[k] = (uint8_t)(roll(8) ? 0x80 + roll(64) : roll(256));
        check_sequence(p, 4);
    }
    free(p);
}

/* A character, or a wrong byte, at each place of a plain text: the check goes by words there. */
static void case_among_ascii(void)
{
    for (uint32_t n = 1; n <= 150; n++)
        for (uint32_t at = 0; at < n; at++) {
            string character = {0};
            uint8_t *p = exactly(n);
            add_character(&character, 1 + (uint32_t)roll(4));
            for (uint32_t i = 0; i < n; i++)
                p[i] = (uint8_t)roll(0x80);
            memcpy(p + at, character.bytes, character.n < n - at ? character.n : n - at);
            if (roll(3) == 0)
                p[roll(n)] = (uint8_t)(0x80 + roll(0x80));
            for (uint32_t cut = 0; cut < n; cut++) {
                rf_utf8 u = {0};
                int right = rf_utf8_check(&u, p, cut) && rf_utf8_check(&u, p + cut, n - cut);
                CHECK((right ? u.left ? OPEN : WHOLE : WRONG) == well_formed(p, n));
            }
            free(character.bytes);
            free(p);
        }
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"streams", case_streams},
    {"truncations", case_truncations},
    {"corruptions", case_corruptions},
    {"garbage", case_garbage},
    {"lengths", case_lengths},
    {"closes", case_closes},
    {"sequences", case_sequences},
    {"long_sequences", case_long_sequences},
    {"among_ascii", case_among_ascii},
};

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)rc_clock_ns(CLOCK_REALTIME);
    percent = argc > 2 ? strtoull(argv[2], NULL, 0) : 100;
    printf("seed %" PRIu64 ", %" PRIu64 " %%\n", seed, percent);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (argc <= 3 || strcmp(argv[3], cases[i].name) == 0) {
            int64_t began = rc_now_ns();
            printf("%-30s ", cases[i].name);
            fflush(stdout);
            alarm(CASE_SECONDS);
            memset(&tally, 0, sizeof tally);
            throw_with(i);
            cases[i].run();
            printf("%6.2f s\n", (double)(rc_now_ns() - began) / 1e9);
        }
    return 0;
}

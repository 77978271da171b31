/* streams.h - frames that are received in place, and what is protected of them.
 *
 * The server is a function of the seed: message n comes in one frame, or in fragments, perhaps with
 * control frames around and between them, or it is no frame at all and the writer copies it in. Readers
 * know from n which header must stand before its payload, and check it, with plain loads as long as they
 * hold the message: so ThreadSanitizer sees whether it is protected.
 */
#ifndef RINGCAST_TEST_STREAMS_H
#define RINGCAST_TEST_STREAMS_H

#include "frames.h"
#include "harness.h"

/* ---- the server --------------------------------------------------------------------------- */

#define CONTROL_LONGEST 16 /* bytes of a control frame with its header */
#define PIECES 3           /* fragments of a message, at most */
#define WIRE_LONGEST (LONGEST + PIECES * (RF_HEADER_MAX + 2 * CONTROL_LONGEST))

typedef enum way { IN_ONE_FRAME, IN_FRAGMENTS, COPIED } way;

static way way_of(uint64_t sequence)
{
    uint64_t h = mix(seed ^ mix(~sequence)) % 8;
    return h == 0 ? COPIED : h == 1 ? IN_FRAGMENTS : IN_ONE_FRAME;
}

/* Bytes of message `sequence` on the wire, and those not sent yet. */
typedef struct server {
    uint8_t wire[WIRE_LONGEST];
    uint64_t size, sent;
    uint64_t next; /* sequence of the message after it */
    uint64_t total; /* it sends no more than so many */
    uint64_t max;
} server;

static void send_header(server *s, uint8_t first, uint32_t length)
{
    uint8_t *p = s->wire + s->size;
    uint32_t bytes = rc_frame_header(length);
    p[0] = first;
    p[1] = (uint8_t)length;
    if (bytes == 4) {
        p[1] = 126;
        p[2] = (uint8_t)(length >> 8);
        p[3] = (uint8_t)length;
    }
    s->size += bytes;
}

static void send_frame(server *s, uint8_t first, const uint8_t *payload, uint32_t length)
{
    send_header(s, first, length);
    if (length)
        memcpy(s->wire + s->size, payload, length);
    s->size += length;
}

static void maybe_send_control(server *s)
{
    static const uint8_t payload[CONTROL_LONGEST] = "\x82\x82\x82";
    if (roll(4) == 0)
        send_frame(s, 0x80 | (roll(2) ? RF_OP_PING : RF_OP_PONG), payload,
                   (uint32_t)roll(CONTROL_LONGEST - 2));
}

static void encode(server *s)
{
    uint8_t payload[LONGEST];
    rc_descriptor m;
    compose(&m, payload, s->next, s->max);
    s->size = s->sent = 0;
    maybe_send_control(s);
    if (way_of(s->next) == IN_ONE_FRAME) {
        send_frame(s, 0x80 | RF_BINARY, payload, m.f.length);
    } else {
        uint32_t at = 0;
        for (int piece = 0; piece < PIECES; piece++) {
            uint32_t left = m.f.length - at, last = piece == PIECES - 1;
            uint32_t length = last ? left : (uint32_t)roll(left + 1);
            send_frame(s, (uint8_t)(last << 7) | (piece ? RF_CONTINUATION : RF_BINARY), payload + at,
                       length);
            at += length;
            if (!last)
                maybe_send_control(s);
        }
    }
    s->next++;
}

/* Receive at most n bytes. It sends nothing after what the writer is to copy in first. */
static uint64_t receive(server *s, uint8_t *to, uint64_t n)
{
    uint64_t got = 0;
    while (got < n) {
        if (s->sent == s->size) {
            if (s->next == s->total || way_of(s->next) == COPIED)
                break;
            encode(s);
        }
        uint64_t some = s->size - s->sent < n - got ? s->size - s->sent : n - got;
        memcpy(to + got, s->wire + s->sent, some);
        s->sent += some;
        got += some;
    }
    return got;
}

/* ---- the writer --------------------------------------------------------------------------- */

typedef struct inlet {
    rc_writer writer;
    rf_decoder decoder;
    server server;
    uint64_t total; /* messages to publish */
    uint64_t most;  /* bytes of a read */
    uint64_t wait;  /* length of what there was no room for */
} inlet;

/* The server sends from the next message on. */
static void connect_again(inlet *x)
{
    rc_stream_end(&x->writer);
    rf_begin(&x->decoder, x->writer.max_message);
    x->server = (server){
        .next = x->writer.next, .total = x->total, .max = x->writer.max_message};
}

static int commit(inlet *x, uint64_t start, uint64_t length)
{
    uint8_t payload[LONGEST];
    rc_descriptor m;
    compose(&m, payload, x->writer.next, x->writer.max_message);
    CHECK(m.f.length == length);
    m.f.flags = RC_FLAG_HEADER_BITS; /* it is not for the caller to say */
    return rc_stream_commit(&x->writer, &m, start, x->decoder.header);
}

/* Publish the whole messages among the held bytes. 0: the ring is full. */
static int decode(inlet *x)
{
    rc_writer *w = &x->writer;
    uint64_t base = w->head, n = w->held;
    uint8_t *bytes = w->arena + (base & (w->capacity - 1));
    rf_item item;
    rf_what what;
    int room = 1;
    while (room && (what = rf_next(&x->decoder, bytes, &n, &item)) != RF_MORE) {
        CHECK(what != RF_FAULT);
        if (what != RF_MESSAGE)
            continue;
        room = commit(x, base + x->decoder.begin, item.length);
        if (room)
            rf_taken(&x->decoder);
    }
    if (!room)
        x->wait = 1;
    w->held = n - (w->head - base);
    rc_stream_skip(w, base + rf_kept(&x->decoder));
    rf_rebase(&x->decoder);
    rc_writer_release(w);
    return room;
}

/* Do one thing. 0: the ring is full. */
static int take_in(inlet *x)
{
    rc_writer *w = &x->writer;
    uint64_t room;
    uint8_t *bytes;
    if (!decode(x))
        return 0;
    if (w->next == x->total)
        return 1;
    if (way_of(w->next) == COPIED && w->held == 0) {
        x->wait = length_of(w->next, w->max_message);
        int done = try_put(w);
        x->server.next = w->next;
        return done;
    }
    bytes = rc_stream_room(w, rf_need(&x->decoder), 1 + roll(x->most), &room, &x->wait);
    if (!bytes)
        return 0;
    step();
    w->held += receive(&x->server, bytes + w->held, room);
    step();
    return 1;
}

static void take_in_all(void *with)
{
    inlet *x = with;
    while (x->writer.next < x->total)
        if (!take_in(x)) {
            in_time();
            rc_writer_wait(&x->writer, x->wait, ways[0], deadline);
        }
    rc_writer_end(&x->writer);
}

static void inlet_open(inlet *x, ring *ring, uint64_t total)
{
    memset(x, 0, sizeof *x);
    write_to(&x->writer, ring);
    x->total = total;
    x->most = ring->geometry.capacity / (roll(2) ? 64 : 8); /* so that a message arrives between deaths */
    connect_again(x);
}

/* ---- readers ------------------------------------------------------------------------------ */

/* What stands before the payload of message `sequence` is what the server sent. `header`: copied from
 * there, or there. */
static void check_header(const rc_descriptor *m, const uint8_t *header, uint64_t sequence,
                         uint64_t capacity)
{
    uint32_t bytes = rc_header_bytes(m, capacity);
    server s = {.size = 0};
    CHECK(m->f.flags == bytes);
    if (way_of(sequence) != IN_ONE_FRAME) {
        CHECK(bytes == 0);
        return;
    }
    if (bytes == 0) { /* the arena ends between the two */
        CHECK(m->f.length == 0 && (m->f.position & (capacity - 1)) < 2);
        return;
    }
    send_header(&s, 0x80 | RF_BINARY, m->f.length);
    CHECK(bytes == s.size && memcmp(header, s.wire, bytes) == 0);
}

/* Look at the next message in place or, if it is lossy, copied, and check it to the first byte of its
 * header. It is not taken yet. */
static rc_result see(guest *g, rc_descriptor *m)
{
    rc_reader *r = &g->ring;
    uint8_t copy[LONGEST + RF_HEADER_MAX];
    rc_result result = rc_reader_peek(r, m);
    if (result != RC_MESSAGE)
        return result;
    uint32_t header = rc_header_bytes(m, r->capacity);
    const uint8_t *bytes = r->arena + (m->f.position & (r->capacity - 1)) - header;
    if (r->lossy) {
        rc_copy_out(copy, bytes, header + m->f.length);
        bytes = copy;
        if (!rc_reader_intact(r, r->next))
            return RC_OVERRUN;
    }
    check_header(m, bytes, r->next, r->capacity);
    check_message(m, bytes + header, r->next, r->max_message);
    return RC_MESSAGE;
}

static void take_seen(guest *g, const rc_descriptor *m)
{
    rc_reader_advance(&g->ring, 1, m->f.length);
    if (rc_reader_flush_due(&g->ring))
        rc_reader_flush(&g->ring, g->ring.next);
}

typedef struct watcher {
    pthread_t thread;
    guest guest;
    uint64_t total;
} watcher;

/* Hold each message a while, as one does who sends it on, and look at it twice. */
static void *hold_and_look(void *with)
{
    watcher *p = with;
    guest *g = &p->guest;
    rc_descriptor m;
    throw_with(g->ring.index + 1);
    plan.jitter = 256;
    for (;;) {
        rc_result result = see(g, &m);
        g->overrun = result == RC_OVERRUN;
        if (result == RC_ENDED)
            break;
        CHECK(result == RC_MESSAGE || result == RC_EMPTY || g->overrun);
        go_on(g);
        if (result == RC_EMPTY)
            wait_for_message(g, ways[g->ring.index % 3]);
        if (result != RC_MESSAGE)
            continue;
        if (!g->ring.lossy && roll(8) == 0) {
            linger(roll(2000));
            CHECK(see(g, &m) == RC_MESSAGE);
        }
        take_seen(g, &m);
    }
    CHECK(g->ring.next == p->total && (g->ring.lossy || g->ring.lost == 0));
    leave(g);
    return NULL;
}

#if defined(__SANITIZE_THREAD__)
#define WATCHERS 2 /* what arrives, and fragments that are moved, race with lossy copies by design */
#else
#define WATCHERS 3 /* the last is lossy */
#endif

static void watchers_start(watcher *p, ring *x, uint64_t total)
{
    for (uint32_t i = 0; i < WATCHERS; i++) {
        enter(&p[i].guest, x, i, i == 2, ZERO);
        CHECK(p[i].guest.in);
        p[i].total = total;
        CHECK(pthread_create(&p[i].thread, NULL, hold_and_look, &p[i]) == 0);
    }
}

static void watchers_end(watcher *p)
{
    for (uint32_t i = 0; i < WATCHERS; i++)
        CHECK(pthread_join(p[i].thread, NULL) == 0);
}

/* ---- cases -------------------------------------------------------------------------------- */

static const uint64_t stream_sizes[][2] = {{4, 256}, {16, 256}, {64, 1024}, {16, 4096}, {64, 16384}};
#define STREAM_SIZES (sizeof stream_sizes / sizeof *stream_sizes)

static void case_headers_are_held(void)
{
    for (size_t i = 0; i < STREAM_SIZES; i++) {
        ring x;
        inlet in;
        watcher p[WATCHERS] = {0};
        ring_make(&x, stream_sizes[i][0], stream_sizes[i][1]);
        inlet_open(&in, &x, scaled(12000));
        watchers_start(p, &x, in.total);
        plan.jitter = 64;
        take_in_all(&in);
        watchers_end(p);
        CHECK(in.writer.evictions == 0);
        ring_free(&x);
    }
}

/* The writer fills the ring behind a reader that has the oldest message in hand, again and again. */
static void case_oldest_header_is_held(void)
{
    for (uint64_t round = 0; round < scaled(1000); round++) {
        ring x;
        inlet in;
        guest g;
        rc_descriptor m;
        ring_make(&x, stream_sizes[round % STREAM_SIZES][0], stream_sizes[round % STREAM_SIZES][1]);
        inlet_open(&in, &x, UINT64_MAX);
        enter(&g, &x, 0, 0, ZERO);
        for (int i = 0; i < 100; i++) {
            in_time();
            while (take_in(&in))
                ; /* until it is full */
            CHECK(see(&g, &m) == RC_MESSAGE);
            for (uint64_t n = 1 + roll(3); n > 0 && see(&g, &m) == RC_MESSAGE; n--)
                take_seen(&g, &m);
            rc_reader_flush(&g.ring, g.ring.next);
        }
        CHECK(g.ring.lost == 0);
        ring_free(&x);
    }
}

/* A successor protects what its predecessor has, and the stream begins anew. */
static void case_receiving_writers_die(void)
{
    for (size_t i = 0; i < STREAM_SIZES; i++) {
        ring x;
        static inlet in; /* outlives the longjmp */
        static uint32_t deaths;
        watcher p[WATCHERS] = {0};
        deaths = 0;
        ring_make(&x, stream_sizes[i][0], stream_sizes[i][1]);
        inlet_open(&in, &x, scaled(6000));
        watchers_start(p, &x, in.total);
        while (killed(take_in_all, &in, roll(4000))) {
            succeed(&in.writer, &x);
            connect_again(&in);
            deaths++;
        }
        watchers_end(p);
        CHECK(in.writer.epoch == deaths + 1 && deaths > 0);
        ring_free(&x);
    }
}

/* Spoil what describes a header in some messages, so that it may mean anything. */
static void spoil_headers(ring *x)
{
    rc_descriptor *d = (rc_descriptor *)((uint8_t *)x->data + RC_DESCRIPTORS_OFFSET);
    for (uint64_t i = 0; i < x->geometry.slots; i++) {
        rc_descriptor m;
        rc_descriptor_copy(&m, &d[i]);
        if (roll(2))
            m.f.flags = (uint16_t)(roll(2) ? roll(16) : roll(65536));
        if (roll(4) == 0)
            m.f.length = (uint32_t)(roll(2) ? roll(300) : roll(UINT32_MAX));
        for (int n = 1; n < 8; n++)
            rc_store(&d[i].words[n], rc_load(&m.words[n]));
    }
}

/* No reader believes more than there is, and a successor's own messages are whole. */
static void case_spoiled_headers(void)
{
    for (uint64_t round = 0; round < scaled(2000); round++) {
        ring x;
        inlet in;
        rc_descriptor m;
        in_time();
        ring_make(&x, 8, 256);
        inlet_open(&in, &x, UINT64_MAX);
        for (uint64_t n = roll(60); n > 0; n--)
            (void)take_in(&in);
        spoil_headers(&x);
        for (uint64_t i = 0; i < 8; i++) {
            rc_descriptor_copy(&m, &in.writer.descriptors[i]);
            uint32_t bytes = rc_header_bytes(&m, 256);
            CHECK(bytes == 0 || bytes == 2 || bytes == 4 || bytes == 10);
            CHECK(bytes <= (m.f.position & 255));
        }
        rc_writer_map(&in.writer, x.data, x.control, &x.geometry, x.wakes, &x.space);
        if (rc_writer_resume(&in.writer)) {
            guest g;
            connect_again(&in);
            enter(&g, &x, 0, 0, LATEST);
            while (take_in(&in))
                ;
            while (see(&g, &m) == RC_MESSAGE)
                take_seen(&g, &m);
        }
        ring_free(&x);
    }
}

#endif

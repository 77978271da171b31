/* frames.h - the client's half of reading RFC 6455: bytes in, messages and control frames out.
 *
 * The decoder works on the bytes where they lie and keeps none of its own. Its user owns a buffer
 * that begins with what is still needed and grows at the end:
 *
 *     bytes[0]            begin              at                      n
 *       | taken already    | message so far   | raw, not yet decoded |
 *
 * A whole message that came in one frame has that frame's header directly before `begin`: the last
 * d.header bytes there are not taken before the message is.
 *
 *   n += what was received;
 *   while ((what = rf_next(&d, bytes, &n, &item)) != RF_MORE)
 *       RF_MESSAGE  item.length bytes of text or binary lie at d.begin: use them, then rf_taken(&d)
 *       RF_PING, RF_PONG, RF_CLOSE  item.length bytes at item.offset, gone with the next rf_next()
 *       RF_FAULT    item.code is the close code that RFC 6455 asks for, item.reason says why; the
 *                   decoder says so for ever
 *   keep bytes[rf_kept(&d) .. n) as the next buffer: rf_rebase(&d);  room needed in all: rf_need(&d)
 *
 * Nothing is copied but what fragments force: a message's fragments are moved together, and what is
 * raw is moved up to them, so the message so far and the raw bytes are always one piece at RF_MORE.
 * Text is checked as it comes, not when it is whole, so what is wrong is refused at its first wrong
 * byte (RFC 6455 section 8.1). Lengths are refused when their header is read, before their bytes.
 *
 * An extension that changes payloads (permessage-deflate, RFC 7692) would have its place where a
 * message is whole: reserved bits are refused at one place below, and the message is one piece.
 */
#ifndef RINGCAST_FRAMES_H
#define RINGCAST_FRAMES_H

#include <stdint.h>
#include <string.h>

#include "utf8.h"

typedef enum rf_what { RF_MORE, RF_MESSAGE, RF_PING, RF_PONG, RF_CLOSE, RF_FAULT } rf_what;

enum { RF_CONTINUATION = 0, RF_TEXT = 1, RF_BINARY = 2, RF_OP_CLOSE = 8, RF_OP_PING = 9, RF_OP_PONG = 10 };
enum { RF_PROTOCOL = 1002, RF_NO_CODE = 1005, RF_BAD_TEXT = 1007, RF_TOO_BIG = 1009 };

#define RF_HEADER_MAX 10u /* of a frame that is not masked */

typedef struct rf_decoder {
    uint64_t max_message; /* bytes */
    uint64_t begin;       /* the message so far, else the next frame */
    uint64_t so_far;      /* its bytes from `begin` on */
    uint64_t at;          /* next byte to decode */
    uint64_t checked;     /* payload bytes of the frame at `at` whose text was checked */
    uint64_t frame;       /* length of the frame at `at` with its header; 0: not known yet */
    rf_utf8 utf8;
    uint8_t opcode; /* of the message so far; 0: none has begun */
    uint8_t whole;  /* the message so far is all of it */
    uint8_t header; /* of a whole message that came in one frame: length of its header; else 0 */
    uint16_t fault;
    const char *reason;
} rf_decoder;

typedef struct rf_item {
    uint64_t offset, length; /* of a control frame's payload; length of a message */
    const char *reason;
    uint16_t code; /* of a close frame or a fault */
    uint8_t is_text;
} rf_item;

typedef struct rf_frame {
    uint64_t length; /* of the payload */
    uint32_t header;
    uint8_t opcode, fin;
} rf_frame;

static inline void rf_begin(rf_decoder *d, uint64_t max_message)
{
    memset(d, 0, sizeof *d);
    d->max_message = max_message;
}

/* ---- frames -------------------------------------------------------------------------------- */

static inline rf_what rf_fail(rf_decoder *d, uint16_t code, const char *reason, rf_item *item)
{
    d->fault = code;
    d->reason = reason;
    item->code = code;
    item->reason = reason;
    return RF_FAULT;
}

/* Read a header of at most n bytes. 0: more is needed. */
static inline int rf_header(const uint8_t *p, uint64_t n, rf_frame *f)
{
    if (n < 2)
        return 0;
    uint32_t short_length = p[1] & 0x7f, extra = short_length < 126 ? 0 : short_length == 126 ? 2 : 8;
    f->opcode = p[0] & 0x0f;
    f->fin = p[0] >> 7;
    f->header = 2 + extra;
    f->length = short_length;
    if (n < f->header)
        return 0;
    if (extra) {
        f->length = 0;
        for (uint32_t i = 0; i < extra; i++)
            f->length = f->length << 8 | p[2 + i];
    }
    return 1;
}

/* What is wrong with the first two bytes of a frame, if anything (RFC 6455 sections 5.1 to 5.5). */
static inline const char *rf_wrong_start(const rf_decoder *d, const uint8_t *p)
{
    uint8_t opcode = p[0] & 0x0f, fin = p[0] >> 7;
    if (p[0] & 0x70)
        return "a reserved bit is set and no extension was agreed";
    if (p[1] & 0x80)
        return "a server's frame is masked";
    if (opcode > RF_OP_PONG || (opcode > RF_BINARY && opcode < RF_OP_CLOSE))
        return "the opcode is reserved";
    if (opcode >= RF_OP_CLOSE && !fin)
        return "a control frame is fragmented";
    if (opcode >= RF_OP_CLOSE && (p[1] & 0x7f) > 125)
        return "a control frame is longer than 125 bytes";
    if (opcode == RF_CONTINUATION && !d->opcode)
        return "a continuation of no message";
    if ((opcode == RF_TEXT || opcode == RF_BINARY) && d->opcode)
        return "a message begins inside another";
    return NULL;
}

static inline const char *rf_wrong_length(const uint8_t *p, const rf_frame *f)
{
    if (f->length >> 63)
        return "the highest bit of a 64-bit length is set";
    if ((p[1] == 126 && f->length < 126) || (p[1] == 127 && f->length < 65536))
        return "a length takes more bytes than it needs";
    return NULL;
}

/* Close codes that may stand in a frame: RFC 6455 section 7.4 and IANA's registry. */
static inline int rf_is_close_code(uint32_t code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

static inline rf_what rf_close(rf_decoder *d, const uint8_t *payload, uint64_t n, rf_item *item)
{
    rf_utf8 utf8 = {0};
    item->code = RF_NO_CODE;
    if (n == 0)
        return RF_CLOSE;
    if (n == 1)
        return rf_fail(d, RF_PROTOCOL, "a close frame's payload has one byte", item);
    item->code = (uint16_t)(payload[0] << 8 | payload[1]);
    if (!rf_is_close_code(item->code))
        return rf_fail(d, RF_PROTOCOL, "a close frame's code is not one that may be sent", item);
    if (!rf_utf8_check(&utf8, payload + 2, n - 2) || utf8.left)
        return rf_fail(d, RF_BAD_TEXT, "a close frame's reason is not UTF-8", item);
    return RF_CLOSE;
}

static inline rf_what rf_control(rf_decoder *d, const uint8_t *bytes, const rf_frame *f,
                                 rf_item *item)
{
    item->offset = d->at + f->header;
    item->length = f->length;
    d->at += f->header + f->length;
    d->frame = 0;
    if (!d->opcode)
        d->begin = d->at;
    if (f->opcode == RF_OP_CLOSE)
        return rf_close(d, bytes + item->offset, item->length, item);
    return f->opcode == RF_OP_PING ? RF_PING : RF_PONG;
}

/* Close up what is raw to the message so far. */
static inline void rf_compact(rf_decoder *d, uint8_t *bytes, uint64_t *n)
{
    uint64_t end = d->begin + d->so_far;
    if (!d->opcode || d->at == end)
        return;
    memmove(bytes + end, bytes + d->at, *n - d->at);
    *n -= d->at - end;
    d->at = end;
}

/* Check as much of a text frame's payload as is there. 0: wrong. */
static inline int rf_check_text(rf_decoder *d, const uint8_t *bytes, const rf_frame *f, uint64_t n)
{
    uint64_t there = n - d->at - f->header;
    if (there > f->length)
        there = f->length;
    int right = rf_utf8_check(&d->utf8, bytes + d->at + f->header + d->checked, there - d->checked);
    d->checked = there;
    return right;
}

/* A data frame is there as a whole: put its payload to the message so far. */
static inline void rf_join(rf_decoder *d, uint8_t *bytes, const rf_frame *f)
{
    uint64_t payload = d->at + f->header;
    if (f->opcode != RF_CONTINUATION) {
        d->begin = payload;
        d->so_far = 0;
    } else if (f->length) {
        memmove(bytes + d->begin + d->so_far, bytes + payload, f->length);
    }
    d->so_far += f->length;
    d->at = payload + f->length;
    d->frame = 0;
    d->checked = 0;
}

static inline rf_what rf_found(const rf_decoder *d, rf_item *item)
{
    item->offset = d->begin;
    item->length = d->so_far;
    item->is_text = d->opcode == RF_TEXT;
    return RF_MESSAGE;
}

/* The message was used: what follows begins after it. */
static inline void rf_taken(rf_decoder *d)
{
    d->begin = d->at;
    d->so_far = 0;
    d->opcode = 0;
    d->whole = 0;
    d->header = 0;
}

/* A data frame, of which at least the header is there. RF_MORE with d->frame known: not all of it
 * is; RF_MORE with d->frame 0: go on with the next frame. */
static inline rf_what rf_data(rf_decoder *d, uint8_t *bytes, uint64_t n, const rf_frame *f,
                              rf_item *item)
{
    uint8_t opcode = f->opcode ? f->opcode : d->opcode;
    if (f->length > d->max_message - d->so_far)
        return rf_fail(d, RF_TOO_BIG, "a message is longer than the ring's max_message", item);
    d->frame = f->header + f->length;
    if (opcode == RF_TEXT && !rf_check_text(d, bytes, f, n))
        return rf_fail(d, RF_BAD_TEXT, "a text is not UTF-8", item);
    if (n - d->at < d->frame)
        return RF_MORE;
    d->opcode = opcode;
    rf_join(d, bytes, f);
    if (!f->fin)
        return RF_MORE;
    if (opcode == RF_TEXT && d->utf8.left)
        return rf_fail(d, RF_BAD_TEXT, "a text ends within a character", item);
    d->whole = 1;
    d->header = f->opcode == RF_CONTINUATION ? 0 : (uint8_t)f->header;
    return rf_found(d, item);
}

/* Decode the next frames of bytes[0 .. *n); see above. */
static inline rf_what rf_next(rf_decoder *d, uint8_t *bytes, uint64_t *n, rf_item *item)
{
    rf_frame f;
    const char *wrong;
    rf_what what;
    if (d->fault)
        return rf_fail(d, d->fault, d->reason, item);
    if (d->whole) /* and not yet taken */
        return rf_found(d, item);
    for (;;) { /* bounded: each round uses up a header of at least two bytes */
        if (*n - d->at >= 2 && (wrong = rf_wrong_start(d, bytes + d->at)))
            return rf_fail(d, RF_PROTOCOL, wrong, item);
        if (!rf_header(bytes + d->at, *n - d->at, &f))
            break;
        if ((wrong = rf_wrong_length(bytes + d->at, &f)))
            return rf_fail(d, RF_PROTOCOL, wrong, item);
        if (f.opcode >= RF_OP_CLOSE) {
            d->frame = f.header + f.length;
            if (*n - d->at < d->frame)
                break;
            return rf_control(d, bytes, &f, item);
        }
        what = rf_data(d, bytes, *n, &f, item);
        if (what != RF_MORE)
            return what;
        if (d->frame)
            break;
    }
    rf_compact(d, bytes, n);
    return RF_MORE;
}

/* The first byte that is still needed. */
static inline uint64_t rf_kept(const rf_decoder *d) { return d->begin - d->header; }

/* bytes[rf_kept(d) .. n) have become a buffer of their own. */
static inline void rf_rebase(rf_decoder *d)
{
    d->at -= rf_kept(d);
    d->begin = d->header;
}

/* After RF_MORE: how many bytes from `begin` on must lie together, as far as that is known. */
static inline uint64_t rf_need(const rf_decoder *d)
{
    return d->so_far + (d->frame ? d->frame : RF_HEADER_MAX);
}

#endif

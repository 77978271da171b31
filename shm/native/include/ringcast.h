/* ringcast.h - read a ringcast ring, and send through it, from C11 and C++17.
 *
 * A manager (`ringcast serve`), or any ring writer, publishes messages into a ring with a name. Any
 * number of processes attach by that name and read each message where it lies, without a copy. What
 * they send goes through the uplink of the same name.
 *
 * Compile ringcast.c, which is installed beside this header, into your program:
 *
 *     cc -std=c11 $(python -m ringcast --pkgconfig cflags) worker.c \
 *         $(python -m ringcast --sources) $(python -m ringcast --pkgconfig libs)
 *
 * (a C++ program compiles ringcast.c as C and links it). A program and the ring's writer have to use
 * the same version of ringcast: attaching checks it. What lies in shared memory is no part of this
 * interface; only what this header declares is.
 *
 * A whole worker:
 *
 *     ringcast_reader *reader;
 *     ringcast_message message;
 *     if (ringcast_reader_attach(&reader, "md", NULL) != RINGCAST_OK)
 *         return fprintf(stderr, "%s\n", ringcast_last_error()), 1;
 *     while (ringcast_read(reader, &message, RINGCAST_FOREVER) == RINGCAST_OK)
 *         use(message.payload, message.length);
 *     ringcast_reader_close(reader);
 *
 * Threads. One thread at a time uses a reader or a sender; different ones are independent. The
 * exception is ringcast_wait(), which another thread may call. A forked child cannot use what its
 * parent attached (RINGCAST_CLOSED): it attaches by itself, and may close what it inherited.
 */
#ifndef RINGCAST_H
#define RINGCAST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a call returns. All but the first three are errors; ringcast_last_error() says more. */
typedef enum ringcast_status {
    RINGCAST_OK = 0,
    RINGCAST_TIMEOUT = 1,           /* nothing happened in time */
    RINGCAST_ENDED = 2,             /* the writer ended the ring, and every message was read */
    RINGCAST_INVALID = 3,           /* an argument is out of range */
    RINGCAST_NOT_FOUND = 4,         /* there is no such ring, or it is being made or removed */
    RINGCAST_LAYOUT_MISMATCH = 5,   /* it is of another version, byte order or kind */
    RINGCAST_CORRUPT = 6,           /* it holds what no writer writes */
    RINGCAST_SYSTEM = 7,            /* the operating system refuses */
    RINGCAST_NO_MEMORY = 8,
    RINGCAST_TOO_MANY_READERS = 9,  /* every reader slot is taken by a living process */
    RINGCAST_TOO_MANY_SENDERS = 10, /* so is every lane of the uplink */
    RINGCAST_EVICTED = 11,          /* the writer took this end away, and what was read is not valid */
    RINGCAST_CLOSED = 12,           /* ring or uplink have ended or were removed, or this end was */
    RINGCAST_FULL = 13,             /* no room in time */
    RINGCAST_MESSAGE_TOO_LARGE = 14,
    RINGCAST_SEND_REJECTED = 15,    /* there is no connection; nothing was sent */
    RINGCAST_SEND_UNCONFIRMED = 16, /* nobody knows of messages sent before; nothing was sent */
} ringcast_status;

/* One sentence about a status. */
const char *ringcast_status_text(ringcast_status status);

/* What went wrong in the last call of this thread that returned an error (or in a ringcast_flush() that
 * ran out of time), and what to do about it. Valid until the next such call: closing keeps it. */
const char *ringcast_last_error(void);

/* What a payload is. */
enum { RINGCAST_TEXT = 1, RINGCAST_BINARY = 2, RINGCAST_EVENT = 16 };

#define RINGCAST_FOREVER INT64_C(-1) /* as a timeout, which is in nanoseconds; 0 does not wait */

/* ---- reading ------------------------------------------------------------------------------- */

typedef struct ringcast_reader ringcast_reader;

typedef enum ringcast_policy {
    RINGCAST_BLOCK = 0, /* lossless: a full ring makes its writer wait for this reader */
    RINGCAST_LOSSY = 1, /* never holds anybody up; learns exactly how many messages it missed */
} ringcast_policy;

typedef enum ringcast_start {
    RINGCAST_LATEST = 0,   /* what is published from now on */
    RINGCAST_OLDEST = 1,   /* all that is still there */
    RINGCAST_SEQUENCE = 2, /* from a sequence on; what is gone of it counts as lost */
} ringcast_start;

typedef enum ringcast_strategy {
    RINGCAST_BLOCKING = 0,  /* look for spin_us microseconds, then sleep */
    RINGCAST_BUSY_SPIN = 1, /* look without a pause: lowest latency, and a core */
    RINGCAST_YIELDING = 2,  /* look, and offer the core to others between looks */
} ringcast_strategy;

/* How to attach. All zero is the default. */
typedef struct ringcast_reader_options {
    ringcast_policy policy;
    ringcast_start start;
    uint64_t sequence; /* of RINGCAST_SEQUENCE */
    ringcast_strategy wait;
    int32_t spin_us;   /* of RINGCAST_BLOCKING; 0: the default, 50; negative: sleep at once */
    int32_t events;    /* not 0: hand out records of kind RINGCAST_EVENT, too; see docs/manager.md */
    const char *label; /* what to call this reader in `ringcast inspect`; NULL: the program's name */
    int64_t owner;     /* user id + 1 that the ring has to belong to; 0: the caller's own, or root */
    const char *const *topics; /* names and patterns of the topics that are wanted, see ringcast_subscribe() */
    size_t topic_count; /* of these; not 0: nothing but what is wanted is handed out */
    int32_t choose;    /* not 0: the same with no topic yet */
    int32_t others;    /* not 0, with the two above: messages that have no topic are wanted, too */
} ringcast_reader_options;

/* One message. DANGER: `payload` points into shared memory (of a lossy reader: into memory of the
 * reader), and is valid until the next ringcast_read(), ringcast_read_many(), ringcast_release() or
 * ringcast_reader_close() of the same reader, unless the reader is evicted before: copy what you keep,
 * and if you cannot lose against an eviction, ask ringcast_valid() after you have used it. */
typedef struct ringcast_message {
    const void *payload;
    size_t length;     /* bytes */
    uint64_t sequence; /* number of the message in the ring, from 0, without holes */
    uint64_t time_ns;  /* when the writer received it, Unix time */
    uint64_t gap;      /* messages that this reader missed just before it; 0 of a lossless reader */
    uint64_t key;      /* partition hash; 0 for none */
    uint32_t topic;    /* 0 for none */
    uint32_t epoch;    /* which writer published it: 1, and one more for each that resumed */
    uint16_t kind;     /* RINGCAST_TEXT, RINGCAST_BINARY, RINGCAST_EVENT, or another number */
    uint16_t connection; /* number of the manager's connection; 0 without a manager */
} ringcast_message;

typedef struct ringcast_reader_info {
    uint64_t cursor;      /* sequence of the next message */
    uint64_t lag;         /* messages published and not yet read */
    uint64_t received, lost; /* messages handed out, and missed, since attaching */
    uint64_t skipped;     /* messages passed over, since attaching: they were not wanted */
    uint64_t max_message; /* bytes */
    ringcast_policy policy; /* RINGCAST_LOSSY also after the writer demoted this reader */
    uint32_t slot;        /* the reader slot, as `ringcast inspect` numbers them */
    int writer_alive;     /* if not, another process may resume the ring */
} ringcast_reader_info;

/* Attach to a ring by name. `options` NULL: the defaults. On RINGCAST_OK the reader is to be closed
 * with ringcast_reader_close(). */
ringcast_status ringcast_reader_attach(ringcast_reader **reader, const char *name,
                                       const ringcast_reader_options *options);

/* The next message, waiting for it for `timeout_ns` nanoseconds at most. Gives back what was read
 * before. RINGCAST_OK, RINGCAST_TIMEOUT, RINGCAST_ENDED, RINGCAST_EVICTED, RINGCAST_CLOSED,
 * RINGCAST_CORRUPT, RINGCAST_NO_MEMORY. */
ringcast_status ringcast_read(ringcast_reader *reader, ringcast_message *message,
                              int64_t timeout_ns);

/* As many messages as there are, at most `limit`, waiting for the first: *count of them, with
 * RINGCAST_OK at least one. They are valid together. A lossy reader gets one at a time. */
ringcast_status ringcast_read_many(ringcast_reader *reader, ringcast_message *messages,
                                   size_t limit, size_t *count, int64_t timeout_ns);

/* Give back what was read. A reader that holds messages of a full ring makes its writer wait. */
void ringcast_release(ringcast_reader *reader);

/* Not 0 as long as what was read last was not taken away by an eviction: asked after using a payload,
 * it says that the bytes used were the message's. */
int ringcast_valid(ringcast_reader *reader);

/* Wait until there is reason to read. Another thread than the one that reads may call it, one at a
 * time: for event loops, which read with timeout 0 when they are woken. Returns at once as long as
 * nobody has read; so that thread waits for the loop before it calls again. RINGCAST_OK: read;
 * RINGCAST_TIMEOUT; RINGCAST_CLOSED. */
ringcast_status ringcast_wait(ringcast_reader *reader, int64_t timeout_ns);

/* Want these topics, too: names, or patterns in which * stands for any run of characters; nothing else
 * is special, and case counts. They are UTF-8, and are copied. It holds for every message published
 * after it returns, and for topics that appear later; a thread in ringcast_wait() looks again. The
 * thread that reads calls it. A reader that was attached without topics gets every message anyway; what
 * it subscribes to is shown to the manager, who may ask the server for it.
 *
 * RINGCAST_OK. RINGCAST_INVALID: one of them can't name a topic, since a name has 1 to 127 bytes, or the
 * list would be too long (its names and patterns take 32,759 bytes at most, with a NUL after each);
 * RINGCAST_NO_MEMORY: then those before it are wanted, and it and those after it are not.
 * RINGCAST_CLOSED: nothing has changed. */
ringcast_status ringcast_subscribe(ringcast_reader *reader, const char *const *topics,
                                   size_t count);

/* Want these no more, as they were subscribed to; others are ignored. What no other name or pattern
 * wants is not handed out after it returns, and messages that were handed out stay valid as ever.
 * RINGCAST_OK, RINGCAST_CLOSED. */
ringcast_status ringcast_unsubscribe(ringcast_reader *reader, const char *const *topics,
                                     size_t count);

/* The name of a message's topic, UTF-8, valid until the reader is closed; NULL if it has none, or one
 * that the ring has only a number of. */
const char *ringcast_topic_name(const ringcast_reader *reader, uint32_t topic);

/* RINGCAST_CLOSED in a forked child. */
ringcast_status ringcast_reader_get_info(ringcast_reader *reader, ringcast_reader_info *info);

/* What the writer publishes about itself; a manager: the state of its connection, as JSON. At most
 * `size` - 1 bytes of it and a NUL; *length is the whole length, at most 1016. */
ringcast_status ringcast_note(ringcast_reader *reader, char *note, size_t size, size_t *length);

/* Leave the ring and free the reader; no thread may be using it. NULL is fine. */
void ringcast_reader_close(ringcast_reader *reader);

/* ---- sending ------------------------------------------------------------------------------- */

typedef struct ringcast_sender ringcast_sender;

/* Attach to the uplink of this name. `label` and `owner` as in ringcast_reader_options. */
ringcast_status ringcast_sender_attach(ringcast_sender **sender, const char *name,
                                       const char *label, int64_t owner);

/* Send one message, waiting for room in this sender's lane for `timeout_ns` nanoseconds at most. The
 * bytes are copied. *ticket (which may be NULL) is its place in the order of all senders' messages.
 *
 * `kind` is RINGCAST_TEXT, which has to be UTF-8 or the manager evicts this sender, or RINGCAST_BINARY.
 * RINGCAST_OK, RINGCAST_FULL, RINGCAST_MESSAGE_TOO_LARGE (more than half of the lane: `send_buffer_bytes`
 * of the manager's configuration), RINGCAST_SEND_REJECTED, RINGCAST_SEND_UNCONFIRMED, RINGCAST_EVICTED,
 * RINGCAST_CLOSED. */
ringcast_status ringcast_send(ringcast_sender *sender, const void *payload, size_t length,
                              uint16_t kind, int64_t timeout_ns, uint64_t *ticket);

/* Wait until what was sent here was delivered: a manager has handed it to the socket. RINGCAST_OK,
 * RINGCAST_TIMEOUT (it may still be), RINGCAST_SEND_REJECTED, RINGCAST_SEND_UNCONFIRMED,
 * RINGCAST_EVICTED, RINGCAST_CLOSED. Each rejected or unconfirmed message is reported once, to the
 * first ringcast_send() or ringcast_flush() after it. */
ringcast_status ringcast_flush(ringcast_sender *sender, int64_t timeout_ns);

/* Leave the uplink and free the sender. What was sent stays there for the receiver. NULL is fine. */
void ringcast_sender_close(ringcast_sender *sender);

#ifdef __cplusplus
}
#endif

#endif

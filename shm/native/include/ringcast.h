/* ringcast.h - read a ringcast ring, share its messages out, and send through it, from C11 and C++17.
 *
 * A manager (`ringcast serve`), or any ring writer, publishes messages into a ring with a name. Any
 * number of processes attach by that name and read each message where it lies, without a copy; or they
 * are members of a work group, and each message is handled by one of them. What they send goes through
 * the uplink of the same name.
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
 * Threads. One thread at a time uses a reader, member or sender; different ones are independent. The
 * exceptions are ringcast_wait() and ringcast_member_wait(), which another thread may call. A forked
 * child cannot use what its parent attached (RINGCAST_CLOSED): it attaches by itself, and may close what
 * it inherited.
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
    RINGCAST_EVICTED = 11,          /* this end was taken away, and what was read is not valid */
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
    uint64_t gap;      /* messages that this reader missed just before it; 0 of a lossless reader. Of a
                          member: that its group missed, and that no member was told of before */
    uint64_t key;      /* partition hash; 0 for none */
    uint32_t topic;    /* 0 for none */
    uint32_t epoch;    /* which writer published it: 1, and one more for each that resumed */
    uint16_t kind;     /* RINGCAST_TEXT, RINGCAST_BINARY, RINGCAST_EVENT, or another number */
    uint16_t connection; /* number of the manager's connection; 0 without a manager */
    uint32_t deliveries; /* of a member: how often it was handed to a program, with this time: 1, unless
                            somebody had it before. 0 of a reader */
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

/* ---- work groups --------------------------------------------------------------------------- */

/* Any number of processes, up to 256, in C or in Python, are members of a *group* of a ring. Each message
 * that the group wants is handled by one living member, and by another only if that one died, left, was
 * evicted or gave it back before it acknowledged: at least once, and `deliveries` says when it is not the
 * first time. The group holds the ring at its oldest message that is not acknowledged. It outlives its
 * members, and the writer: `ringcast group` shows and removes it.
 *
 *     ringcast_member *member;
 *     ringcast_message message;
 *     if (ringcast_member_attach(&member, "md", "store", NULL) != RINGCAST_OK)
 *         return fprintf(stderr, "%s\n", ringcast_last_error()), 1;
 *     while (ringcast_take(member, &message, RINGCAST_FOREVER) == RINGCAST_OK)
 *         if (store(message.payload, message.length))
 *             ringcast_acknowledge(member, &message, 1);
 *         else
 *             ringcast_give_back(member, &message, 1);
 *     ringcast_member_close(member);
 */
typedef struct ringcast_member ringcast_member;

/* How a group shares its messages out. All its members say the same. */
typedef enum ringcast_balance {
    RINGCAST_ANY = 0,         /* whoever is free takes the next */
    RINGCAST_KEY = 1,         /* messages of one key, or topic, in their order and by one member at a time */
    RINGCAST_ROUND_ROBIN = 2, /* in turn */
} ringcast_balance;

/* How to join. All zero is the default. */
typedef struct ringcast_member_options {
    ringcast_balance balance;
    int32_t max_deliveries; /* of a message before it is set aside, 1 to 200; 0: as the group has it, and 5
                               of a new one */
    ringcast_start start;   /* of a new group; else ignored */
    uint64_t sequence;      /* of RINGCAST_SEQUENCE */
    ringcast_strategy wait;
    int32_t spin_us;        /* these four as in ringcast_reader_options */
    const char *label;
    int64_t owner;
    const char *const *topics; /* names and patterns that the group wants; all its members name the same */
    size_t topic_count;     /* of these; not 0: it wants nothing else */
    int32_t choose;         /* not 0: the same without any topic */
    int32_t others;         /* not 0, with the two above: messages that have no topic are wanted, too */
} ringcast_member_options;

typedef struct ringcast_member_info {
    uint64_t lag;         /* messages published and not done by the group, those in hand included */
    uint64_t received;    /* messages handed out to this member, since attaching */
    uint64_t in_hand;     /* of these: neither acknowledged nor given back */
    uint64_t lost;        /* messages that the group has missed: see `gap` */
    uint64_t max_message; /* bytes */
    uint32_t members;     /* of the group */
    uint32_t slot;        /* the reader slot, as `ringcast inspect` numbers them */
    int writer_alive;     /* if not, another process may resume the ring */
} ringcast_member_info;

/* Join the group of this name, making it if there is none; names as for rings. `options` NULL: the
 * defaults. On RINGCAST_OK the member is to be closed with ringcast_member_close(). Beside what attaching
 * a reader returns: RINGCAST_INVALID, also if the group is one of another balance, max_deliveries or
 * topics; RINGCAST_TOO_MANY_READERS, also for the 257th member; RINGCAST_SYSTEM, also if the ring has 32
 * groups or /dev/shm no room. */
ringcast_status ringcast_member_attach(ringcast_member **member, const char *name, const char *group,
                                       const ringcast_member_options *options);

/* Take the next message for this member, waiting for it for `timeout_ns` nanoseconds at most. It is this
 * member's to handle until it is acknowledged or given back: so long `payload` is valid (unless the member
 * is evicted before), whatever else is taken meanwhile. A message that is neither is nobody else's, and a
 * full ring makes its writer wait for it.
 *
 * RINGCAST_OK; RINGCAST_TIMEOUT; RINGCAST_ENDED: the ring has ended, and all is done, or in this member's
 * hands; RINGCAST_EVICTED: so was this member, and what it has not acknowledged is others' now;
 * RINGCAST_CLOSED; RINGCAST_CORRUPT; RINGCAST_NO_MEMORY. */
ringcast_status ringcast_take(ringcast_member *member, ringcast_message *message, int64_t timeout_ns);

/* As many as there are for this member, at most `limit`, waiting for the first: *count of them, with
 * RINGCAST_OK at least one. What somebody has had before comes alone, so that what makes a member fail is
 * found among few. */
ringcast_status ringcast_take_many(ringcast_member *member, ringcast_message *messages, size_t limit,
                                   size_t *count, int64_t timeout_ns);

/* These messages are done, in any order and whether they were taken together or not. Their bytes are not
 * valid after it.
 *
 * RINGCAST_OK: all are, and while they were used their bytes were the messages'. RINGCAST_EVICTED: those
 * from some one on came too late, and others have them or will. RINGCAST_INVALID: one is not in this
 * member's hands, since it was acknowledged or given back before; the others are done.
 * RINGCAST_CLOSED: nothing has changed. */
ringcast_status ringcast_acknowledge(ringcast_member *member, const ringcast_message *messages,
                                     size_t count);

/* Give these messages back: they are delivered again, of RINGCAST_KEY as the next of their keys, else to
 * another member, if there is one. Here they come after a pause, of 1 ms at first, and twice as long each
 * time, up to 1 s; if others may have them, of 100 ms at least. (No more than 16 wait so: more that are
 * given back meanwhile may come at once.) A message that was delivered `max_deliveries` times is set
 * aside instead. Returns as ringcast_acknowledge() does. */
ringcast_status ringcast_give_back(ringcast_member *member, const ringcast_message *messages,
                                   size_t count);

/* Wait until there is reason to take. Another thread than the one that works the member may call it, one
 * at a time: for event loops, which take with timeout 0 when they are woken. Returns at once as long as
 * the loop has not tried since; so that thread waits for the loop before it calls again. RINGCAST_OK:
 * take (it is so at least each 40 ms, since taking looks whether the other members live);
 * RINGCAST_TIMEOUT; RINGCAST_CLOSED. */
ringcast_status ringcast_member_wait(ringcast_member *member, int64_t timeout_ns);

/* As ringcast_topic_name(); valid until the member is closed. */
const char *ringcast_member_topic_name(const ringcast_member *member, uint32_t topic);

/* RINGCAST_CLOSED in a forked child. */
ringcast_status ringcast_member_get_info(ringcast_member *member, ringcast_member_info *info);

/* Leave the group and free the member; no thread may be using it. What is in hand is given back, without
 * a pause. NULL is fine. */
void ringcast_member_close(ringcast_member *member);

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

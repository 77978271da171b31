/* attach.h - from a name to an end of a ring or uplink that works, and back.
 *
 * The one implementation of attaching: the Cython objects and ringcast.c both use it.
 *
 *   open    the segment that carries the locks, for its locks alone (endpoint.h)
 *   check   every segment before it is mapped: whose it is, who may write it, that it has no holes,
 *           and its header, in a private copy; then the header again where it is mapped
 *   lock    a reader slot or lane: the first whose lock no living process holds
 *   look    whether the name still leads to the segment that carries the locks. If so, nobody can
 *           have removed the ring before we held a lock in it
 *   join    under that lock, as broadcast.h and mpsc.h say
 *   wait    in turn with the threads of the same end; every 100 ms look whether anything can still come
 *   leave   wake the threads that wait, give slot or lane back, close the lock, unmap
 *
 * A reader that only looks (`ringcast inspect`) opens and checks, and stops there.
 *
 * Every function that can fail fills an rc_error: a status of ringcast.h, an errno where there is one,
 * and one sentence that says what to do.
 */
#ifndef RINGCAST_ATTACH_H
#define RINGCAST_ATTACH_H

#include "broadcast.h"
#include "endpoint.h"
#include "group.h"
#include "include/ringcast.h"
#include "mpsc.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define RC_SHM_FOLDER "/dev/shm"
#define RC_NAME_MAX 20u     /* characters: more do not fit into a semaphore's name */
#define RC_OBJECT_MAX 64u   /* bytes of the name of a segment or semaphore, with its NUL */
#define RC_TEXT_MAX 512u    /* bytes of an error's text, with its NUL */
#define RC_SLOT_LOOKS 3     /* at all slots, before all count as taken: a reaper may hold a lock */
#define RC_JOIN_TRIES 20    /* of a reader that is evicted before it has begun */
#define RC_LANE_WAIT_NS INT64_C(1000000000) /* for the lanes of dead senders to be emptied */
#define RC_LANE_PAUSE_NS 10000000           /* between two looks at them */
#define RC_ANY_OWNER INT64_C(0) /* the caller's own segments, or root's; else a user id + 1 */

/* ---- errors -------------------------------------------------------------------------------- */

typedef struct rc_error {
    ringcast_status status;
    int system; /* an errno, or 0 */
    char text[RC_TEXT_MAX];
} rc_error;

#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
static inline ringcast_status rc_fail(rc_error *error, ringcast_status status, int system,
                                      const char *format, ...)
{
    va_list arguments;
    error->status = status;
    error->system = system;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return status;
}

/* What a check of headers found, as an error. `what` is "ring" or "uplink". */
static inline ringcast_status rc_fail_check(rc_error *error, rc_check_result found,
                                            const char *what, const char *name)
{
    unsigned version = strcmp(what, "ring") == 0 ? RC_VERSION : RC_UPLINK_VERSION;
    switch (found) {
    case RC_OK:
        return RINGCAST_OK;
    case RC_INCOMPLETE:
    case RC_TOO_SMALL:
        return rc_fail(error, RINGCAST_NOT_FOUND, 0,
                       "%s '%s' is not complete: its creator is still making it, or died. Create it"
                       " again, or remove it: ringcast clean %s", what, name, name);
    case RC_NOT_A_RING:
        return rc_fail(error, RINGCAST_LAYOUT_MISMATCH, 0,
                       "/rc.%s.* is no ringcast %s: its magic is another", name, what);
    case RC_OTHER_ENDIAN:
        return rc_fail(error, RINGCAST_LAYOUT_MISMATCH, 0,
                       "%s '%s' was made on a machine of the other byte order", what, name);
    case RC_OTHER_VERSION:
        return rc_fail(error, RINGCAST_LAYOUT_MISMATCH, 0,
                       "%s '%s' has another layout version than %u: run the same ringcast on both"
                       " ends", what, name, version);
    case RC_OTHER_LAYOUT:
        return rc_fail(error, RINGCAST_LAYOUT_MISMATCH, 0,
                       "%s '%s' has version %u but other field offsets: run the same ringcast build on"
                       " both ends", what, name, version);
    case RC_BAD_GEOMETRY:
        return rc_fail(error, RINGCAST_CORRUPT, 0, "%s '%s' has impossible sizes in its header",
                       what, name);
    case RC_BAD_SIZE:
        return rc_fail(error, RINGCAST_CORRUPT, 0,
                       "%s '%s' is shorter or longer than its header says", what, name);
    case RC_OTHER_INSTANCE:
        break;
    }
    return rc_fail(error, RINGCAST_CORRUPT, 0,
                   "the two segments of ring '%s' are of different rings: it was replaced while it was"
                   " opened, or one of them was; try again", name);
}

/* ---- names --------------------------------------------------------------------------------- */

/* 1 to 20 of a-z, 0-9, _ and -, beginning with a letter or digit. */
static inline int rc_is_name(const char *name)
{
    size_t n = 0;
    for (; name[n]; n++) {
        int letter = (name[n] >= 'a' && name[n] <= 'z') || (name[n] >= '0' && name[n] <= '9');
        if (n >= RC_NAME_MAX || !(letter || (n && (name[n] == '_' || name[n] == '-'))))
            return 0;
    }
    return n > 0;
}

/* Shared-memory name of a segment: `part` is 'd' (data), 'c' (control) or 'u' (uplink). */
static inline void rc_segment_name(char out[RC_OBJECT_MAX], const char *name, char part)
{
    snprintf(out, RC_OBJECT_MAX, "/rc.%.20s.%c", name, part);
}

/* Name of a semaphore of this instance; `part` says whose: "r" + reader slot, "space" (the writer's),
 * "wish" (of whoever answers readers' wishes), "s" + lane, "up" (the receiver's). `index` below 0: none is appended. */
static inline void rc_semaphore_name(char out[RC_OBJECT_MAX], const char *name, uint64_t instance,
                                     const char *part, int64_t index)
{
    if (index < 0)
        snprintf(out, RC_OBJECT_MAX, "/rc.%.20s.%016" PRIx64 ".%s", name, instance, part);
    else
        snprintf(out, RC_OBJECT_MAX, "/rc.%.20s.%016" PRIx64 ".%s%" PRId64, name, instance, part,
                 index);
}

static inline void rc_path(char out[RC_OBJECT_MAX + 16], const char *folder, const char *object)
{
    snprintf(out, RC_OBJECT_MAX + 16, "%s%s", folder, object + 1);
}

/* Does the name still lead to the segment on which the endpoint was opened? */
static inline int rc_leads_to(const rc_endpoint *e, const char *object)
{
    char path[RC_OBJECT_MAX + 16];
    struct stat there;
    rc_path(path, RC_SHM_FOLDER "/", object);
    return lstat(path, &there) == 0 && there.st_dev == e->device && there.st_ino == e->inode;
}

/* ---- segments ------------------------------------------------------------------------------ */

/* How segments are mapped. RC_LOOKING maps nothing for writing and touches no page by itself. */
typedef enum rc_access { RC_LOOKING, RC_READING, RC_WRITING } rc_access;

typedef struct rc_segment {
    int fd;
    uint64_t size;
    void *address;
    struct stat status;
} rc_segment;

/* Whose is it, and who may write it? The data segment is its owner's alone; the others may be
 * written by their group. */
static inline ringcast_status rc_segment_check(const rc_segment *s, const char *object,
                                               int64_t owner, rc_error *error)
{
    const char *part = strchr(object + sizeof "/rc." - 1, '.'); /* after the ring's name */
    mode_t others = part && strcmp(part, ".d") == 0 ? 022 : 002;
    int64_t uid = (int64_t)s->status.st_uid;
    if (!S_ISREG(s->status.st_mode))
        return rc_fail(error, RINGCAST_CORRUPT, 0, "%s is no shared-memory segment", object);
    if (owner == RC_ANY_OWNER ? uid != 0 && uid != (int64_t)geteuid() : uid + 1 != owner)
        return rc_fail(error, RINGCAST_CORRUPT, 0,
                       "%s belongs to user %" PRId64 ", not to you or root: if it is meant to be that"
                       " user's, attach with owner=%" PRId64 " (in C, one more)", object, uid, uid);
    if (s->status.st_mode & others)
        return rc_fail(error, RINGCAST_CORRUPT, 0,
                       "%s can be written by others (mode %#o): ringcast never makes it so; remove it"
                       " and create the ring again", object, s->status.st_mode & 07777);
    return RINGCAST_OK;
}

/* Open one segment and check its inode. Not by shm_open(): what lies there may be a FIFO, on which that
 * would wait for ever. One that can't be opened is looked at all the same: whose it is says more. */
static inline ringcast_status rc_segment_open(rc_segment *s, const char *object, int writable,
                                              int64_t owner, rc_error *error)
{
    char path[RC_OBJECT_MAX + 16];
    ringcast_status status;
    rc_path(path, RC_SHM_FOLDER "/", object);
    s->address = NULL;
    s->fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
    int system = s->fd < 0 ? errno : 0;
    if (s->fd >= 0 ? fstat(s->fd, &s->status) != 0 : lstat(path, &s->status) != 0)
        system = errno;
    if (system == ENOENT)
        return rc_fail(error, RINGCAST_NOT_FOUND, ENOENT,
                       "%s is being made or removed: try again", object);
    if ((system == 0 || system == EACCES || system == EISDIR) &&
        (status = rc_segment_check(s, object, owner, error)))
        return status;
    if (system)
        return rc_fail(error, RINGCAST_SYSTEM, system, "cannot open %s: %s", object,
                       strerror(system));
    s->size = (uint64_t)s->status.st_size;
    return RINGCAST_OK;
}

/* After the header, which a segment that is being made does not have yet; and looked at only now,
 * since it may have been made since it was opened. */
static inline ringcast_status rc_segment_check_pages(const rc_segment *s, const char *object,
                                                     rc_error *error)
{
    struct stat now;
    if (fstat(s->fd, &now) == 0 && (uint64_t)now.st_blocks * 512 >= s->size)
        return RINGCAST_OK;
    return rc_fail(error, RINGCAST_CORRUPT, 0,
                   "%s has holes: ringcast takes a ring's memory when it creates it, and reading holes"
                   " could take more than there is", object);
}

static inline ringcast_status rc_segment_read(const rc_segment *s, const char *object, void *head,
                                              size_t n, rc_error *error)
{
    ssize_t got = pread(s->fd, head, n, 0);
    if (got < 0)
        return rc_fail(error, RINGCAST_SYSTEM, errno, "cannot read %s: %s", object,
                       strerror(errno));
    memset((char *)head + got, 0, n - (size_t)got);
    return RINGCAST_OK;
}

/* Map it all. The first `busy` bytes are what messages pass through: their pages are there at once, so
 * that no message waits for one. The rest comes with its first use. */
static inline ringcast_status rc_segment_map(rc_segment *s, const char *object, int writable,
                                             uint64_t busy, rc_error *error)
{
    int access = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *address = mmap(NULL, s->size, access, MAP_SHARED, s->fd, 0);
    if (address != MAP_FAILED && busy &&
        mmap(address, busy, access, MAP_SHARED | MAP_FIXED | MAP_POPULATE, s->fd, 0) == MAP_FAILED) {
        int system = errno;
        munmap(address, s->size);
        errno = system;
        address = MAP_FAILED;
    }
    if (address == MAP_FAILED)
        return rc_fail(error, RINGCAST_SYSTEM, errno, "cannot map %s, %" PRIu64 " bytes: %s",
                       object, s->size, strerror(errno));
    s->address = address;
    return RINGCAST_OK;
}

/* The descriptor is needed no more; the mapping stays. */
static inline void rc_segment_close(rc_segment *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

static inline void rc_segment_unmap(rc_segment *s)
{
    rc_segment_close(s);
    if (s->address)
        munmap(s->address, s->size);
    s->address = NULL;
}

/* A ring's segments, mapped and checked. */
typedef struct rc_ring {
    rc_segment data, control;
    rc_geometry g;
    char name[RC_NAME_MAX + 1];
} rc_ring;

static inline void rc_ring_unmap(rc_ring *r)
{
    rc_segment_unmap(&r->data);
    rc_segment_unmap(&r->control);
}

static inline ringcast_status rc_ring_check_and_map(rc_ring *r, rc_access access, int64_t owner,
                                                    rc_error *error)
{
    _Alignas(RC_LINE) unsigned char heads[2][RC_DESCRIPTORS_OFFSET];
    char data[RC_OBJECT_MAX], control[RC_OBJECT_MAX];
    ringcast_status status;
    rc_segment_name(data, r->name, 'd');
    rc_segment_name(control, r->name, 'c');
    if ((status = rc_segment_open(&r->data, data, access == RC_WRITING, owner, error)) ||
        (status = rc_segment_open(&r->control, control, access != RC_LOOKING, owner, error)) ||
        (status = rc_segment_read(&r->data, data, heads[0], RC_DESCRIPTORS_OFFSET, error)) ||
        (status = rc_segment_read(&r->control, control, heads[1], RC_DESCRIPTORS_OFFSET, error)) ||
        (status = rc_fail_check(error,
                                rc_check_segments(heads[0], r->data.size, heads[1],
                                                  r->control.size, &r->g), "ring", r->name)) ||
        (status = rc_segment_check_pages(&r->data, data, error)) ||
        (status = rc_segment_check_pages(&r->control, control, error)) ||
        (status = rc_segment_map(&r->data, data, access == RC_WRITING,
                                 access == RC_LOOKING ? 0 : rc_topics_offset(&r->g), error)) ||
        (status = rc_segment_map(&r->control, control, access != RC_LOOKING,
                                 access == RC_LOOKING ? 0 : rc_wishes_offset(&r->g), error)))
        return status;
    return rc_fail_check(error,
                         rc_check_segments(r->data.address, r->data.size, r->control.address,
                                           r->control.size, &r->g), "ring", r->name);
}

/* Open, check and map a ring that exists. On failure nothing stays open. */
static inline ringcast_status rc_ring_open(rc_ring *r, const char *name, rc_access access,
                                           int64_t owner, rc_error *error)
{
    memset(r, 0, sizeof *r);
    r->data.fd = r->control.fd = -1;
    if (!rc_is_name(name))
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "'%.40s' can't name a ring: use 1 to 20 of a-z, 0-9, _ and -, starting with a"
                       " letter or digit", name);
    strcpy(r->name, name);
    ringcast_status status = rc_ring_check_and_map(r, access, owner, error);
    if (status != RINGCAST_OK) {
        rc_ring_unmap(r);
        return status;
    }
    rc_segment_close(&r->data);
    rc_segment_close(&r->control);
    return RINGCAST_OK;
}

/* An uplink's segment, mapped and checked. */
typedef struct rc_uplink_segment {
    rc_segment segment;
    rc_uplink_map map;
    char name[RC_NAME_MAX + 1];
} rc_uplink_segment;

static inline void rc_uplink_unmap(rc_uplink_segment *u) { rc_segment_unmap(&u->segment); }

static inline ringcast_status rc_uplink_check_and_map(rc_uplink_segment *u, rc_access access,
                                                      int64_t owner, rc_error *error)
{
    _Alignas(RC_LINE) unsigned char head[RC_LANES_OFFSET];
    char object[RC_OBJECT_MAX];
    rc_uplink_geometry g;
    ringcast_status status;
    int writable = access != RC_LOOKING;
    rc_segment_name(object, u->name, 'u');
    if ((status = rc_segment_open(&u->segment, object, writable, owner, error)) ||
        (status = rc_segment_read(&u->segment, object, head, RC_LANES_OFFSET, error)) ||
        (status = rc_fail_check(error, rc_uplink_check(head, u->segment.size, &g), "uplink",
                                u->name)) ||
        (status = rc_segment_check_pages(&u->segment, object, error)) ||
        (status = rc_segment_map(&u->segment, object, writable, writable ? u->segment.size : 0,
                                 error)) ||
        (status = rc_fail_check(error, rc_uplink_check(u->segment.address, u->segment.size, &g),
                                "uplink", u->name)))
        return status;
    rc_uplink_place(&u->map, u->segment.address, &g);
    return RINGCAST_OK;
}

/* Open, check and map an uplink that exists. On failure nothing stays open. */
static inline ringcast_status rc_uplink_open(rc_uplink_segment *u, const char *name,
                                             rc_access access, int64_t owner, rc_error *error)
{
    memset(u, 0, sizeof *u);
    u->segment.fd = -1;
    if (!rc_is_name(name))
        return rc_fail(error, RINGCAST_INVALID, 0, "'%.40s' can't name an uplink", name);
    strcpy(u->name, name);
    ringcast_status status = rc_uplink_check_and_map(u, access, owner, error);
    if (status != RINGCAST_OK) {
        rc_uplink_unmap(u);
        return status;
    }
    rc_segment_close(&u->segment);
    return RINGCAST_OK;
}

/* ---- attached ends ------------------------------------------------------------------------- */

/* A reader of a ring: everything it needs, and nothing shared with another. */
typedef struct rc_attached_reader {
    rc_reader reader; /* first: every message needs it */
    rc_filter filter;
    rc_endpoint endpoint;
    rc_ring ring;
    rc_waits waits; /* used by the one thread whose turn it is */
    sem_t *wake, *space, *wishes;
    int64_t looked_ns; /* the reading thread's, for rc_attached_reader_is_abandoned() */
    rc_member *member; /* of a work group; NULL: reads for itself */
    rc_segment group;  /* the group's */
    sem_t *_Atomic *wakes; /* of its members, by reader slot, as far as they were needed */
} rc_attached_reader;

/* A sender of an uplink, likewise. */
typedef struct rc_attached_sender {
    rc_sender sender;
    rc_endpoint endpoint;
    rc_uplink_segment uplink;
    sem_t *wake, *receiver_wake;
    int64_t looked_ns;
} rc_attached_sender;

/* Is the lock's holder dead and the name gone, so that nothing can come or go any more? A dead holder
 * alone is no reason: another process can resume while the name leads here. */
static inline int rc_is_abandoned(const rc_endpoint *e, int64_t lock, const char *name, char part)
{
    char object[RC_OBJECT_MAX];
    if (rc_lock_held(e->lock_fd, lock) == 1)
        return 0;
    rc_segment_name(object, name, part);
    return !rc_leads_to(e, object);
}

/* Every RC_SLICE_NS of waiting at most: is it time to look around? */
static inline int rc_look_due(int64_t *looked_ns)
{
    int64_t now = rc_now_ns();
    if (now - *looked_ns < RC_SLICE_NS)
        return 0;
    *looked_ns = now;
    return 1;
}

/* The next for a member; `look` is a copy of its look, `hand` who asks. */
static inline int rc_attached_member_is_abandoned(const rc_attached_reader *a, rc_look *look,
                                                  uint32_t hand, int64_t *looked_ns)
{
    return rc_look_due(looked_ns) &&
           rc_is_abandoned(&a->endpoint, RC_LOCK_WRITER, a->ring.name, 'c') &&
           !rc_member_ready(a->member, look, hand);
}

/* Can no message come any more, though the ring has not ended? Looks once each 100 ms. What came
 * before the writer went is read first, and after it went there is nothing more to miss. */
static inline int rc_attached_reader_is_abandoned(const rc_attached_reader *a,
                                                  const rc_reader *reader, int64_t *looked_ns)
{
    if (a->member) {
        rc_look look = a->member->look;
        return rc_attached_member_is_abandoned(a, &look, RC_NO_HAND, looked_ns);
    }
    if (!rc_look_due(looked_ns) ||
        !rc_is_abandoned(&a->endpoint, RC_LOCK_WRITER, a->ring.name, 'c'))
        return 0;
    rc_reader snapshot = rc_reader_snapshot(reader);
    return !rc_reader_ready(&snapshot);
}

static inline int rc_attached_sender_is_abandoned(rc_attached_sender *a)
{
    return rc_look_due(&a->looked_ns) &&
           rc_is_abandoned(&a->endpoint, RC_LOCK_RECEIVER, a->uplink.name, 'u');
}

/* Wait in turn until something happens, RC_SLICE_NS at most; `snapshot` is a copy of the reader. */
static inline rc_turn rc_attached_reader_wait(rc_attached_reader *a, rc_reader *snapshot,
                                              rc_wait_strategy strategy, int64_t deadline_ns)
{
    int64_t limit = rc_now_ns() + RC_SLICE_NS;
    if (deadline_ns < limit)
        limit = deadline_ns;
    rc_turn turn = rc_endpoint_turn(&a->endpoint, limit);
    if (turn == RC_MY_TURN) {
        rc_wait_strategy now = rc_wait_begins(&a->waits, strategy, snapshot->received);
        rc_reader_wait(snapshot, now, limit);
        rc_wait_ended(&a->waits, strategy);
        rc_endpoint_wake_up(&a->endpoint);
    }
    return turn;
}

/* The same for a member; `look` is a copy of its look, `hand` who waits. */
static inline rc_turn rc_attached_member_wait(rc_attached_reader *a, rc_look *look, uint32_t hand,
                                              uint64_t taken, rc_wait_strategy strategy,
                                              int64_t deadline_ns)
{
    int64_t limit = rc_look_limit(look, deadline_ns);
    rc_turn turn = rc_endpoint_turn(&a->endpoint, limit);
    if (turn == RC_MY_TURN) {
        rc_wait_strategy now = rc_wait_begins(&a->waits, strategy, taken);
        rc_member_wait(a->member, look, hand, now, limit);
        rc_wait_ended(&a->waits, strategy);
        rc_endpoint_wake_up(&a->endpoint);
    }
    return turn;
}

/* The same for a sender that waits until `ready` of `what`. */
static inline rc_turn rc_attached_sender_wait(rc_attached_sender *a, rc_sender *snapshot,
                                              int (*ready)(const rc_sender *, uint64_t),
                                              uint64_t what, int64_t deadline_ns)
{
    int64_t limit = rc_now_ns() + RC_SLICE_NS;
    if (deadline_ns < limit)
        limit = deadline_ns;
    rc_turn turn = rc_endpoint_turn(&a->endpoint, limit);
    if (turn == RC_MY_TURN) {
        rc_sender_sleep(snapshot, ready, what, limit);
        rc_endpoint_wake_up(&a->endpoint);
    }
    return turn;
}

/* First half of closing any end: no thread waits in it when this returns. Those that do are woken
 * and find it closed; one that spins needs RC_SLICE_NS at most. */
static inline void rc_endpoint_leave(rc_endpoint *e, sem_t *wake)
{
    rc_endpoint_closing(e);
    do
        rc_post(wake);
    while (!rc_endpoint_empty(e, rc_now_ns() + RC_SLICE_NS));
}

/* Write who we are into a slot or lane that is ours. */
static inline void rc_sign(_Atomic uint32_t *pid, _Atomic uint64_t *started,
                           _Atomic uint64_t *joined_ns, char *label, const char *own_label)
{
    char line[1024], *field;
    uint64_t ticks = 0;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    if (n > 0) { /* field 22, proc(5): the second one, the program's name, may hold anything */
        line[n] = 0;
        field = strrchr(line, ')');
        for (int i = 0; field && i < 20; i++)
            field = strchr(field + 1, ' ');
        if (field)
            ticks = strtoull(field, NULL, 10);
    }
    rc_store(pid, (uint32_t)getpid());
    rc_store(started, ticks);
    rc_store(joined_ns, (uint64_t)rc_clock_ns(CLOCK_REALTIME));
    memset(label, 0, RC_LABEL_MAX);
    memcpy(label, own_label, strnlen(own_label, RC_LABEL_MAX - 1));
}

/* How a reader attaches: as ringcast_reader_options, which see. */
typedef struct rc_reader_options {
    ringcast_policy policy;
    ringcast_start start;
    uint64_t sequence;
    int64_t owner;
    const char *label;
    const char *const *topics; /* names and patterns; NULL with `chooses` off */
    uint32_t topic_count;
    uint32_t chooses; /* 0: everything is wanted */
    uint32_t others;
    uint16_t skip; /* a kind that is passed over; 0: none */
    const char *group; /* join this work group; NULL: read for itself */
    uint32_t balance;
    uint32_t max_deliveries; /* 0: as the group has it, or RC_DELIVERIES */
} rc_reader_options;

#define RC_DELIVERIES 5u       /* of a message, before it is set aside */
#define RC_DELIVERIES_MAX 200u /* what a lease can count, and some room */

/* A list of names and patterns changed: show it, and have it read. */
static inline void rc_show_wishes(rc_attached_reader *a)
{
    rc_filter_publish(&a->filter);
    rc_post(a->wishes);
}

/* One topic more. rc_show_wishes() is called after the last. */
static inline ringcast_status rc_want_topic(rc_attached_reader *a, const char *topic,
                                            rc_error *error)
{
    if (!topic)
        return rc_fail(error, RINGCAST_INVALID, 0, "a topic's name is NULL");
    size_t length = strlen(topic);
    if (length == 0 || length > RC_TOPIC_NAME_MAX)
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "'%.40s' can't name a topic: a name or pattern has 1 to %u bytes, this one %zu",
                       topic, RC_TOPIC_NAME_MAX, length);
    int system = rc_filter_add(&a->filter, topic, (uint32_t)length);
    if (system == ENOSPC)
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "no room for topic '%s': the names and patterns of one reader take %u bytes at"
                       " most. Use patterns, or several readers", topic, RC_WANT_MAX);
    if (system)
        return rc_fail(error, RINGCAST_NO_MEMORY, system, "no memory for topics");
    return RINGCAST_OK;
}

/* ---- attaching, for the translation unit that has the registry of endpoints ----------------- */

#ifdef RC_ENDPOINT_REGISTRY

/* glibc keeps the mappings of named semaphores under a lock that fork() does not mend: a child forked
 * while another thread is in sem_open() or sem_close() could never attach. So both are called under the
 * registry's mutex, which holds a fork up. */
static inline sem_t *rc_sem_open(const char *object)
{
    pthread_mutex_lock(&rc_registry_mutex);
    sem_t *found = sem_open(object, 0);
    int error = errno;
    pthread_mutex_unlock(&rc_registry_mutex);
    errno = error;
    return found;
}

static inline void rc_semaphore_close(sem_t *semaphore)
{
    pthread_mutex_lock(&rc_registry_mutex);
    sem_close(semaphore);
    pthread_mutex_unlock(&rc_registry_mutex);
}

/* Open a named semaphore that exists. sem_open() maps whatever it finds, and a file that is too
 * short would be a SIGBUS: so its size is looked at first. */
static inline ringcast_status rc_semaphore_open(sem_t **semaphore, const char *object,
                                                rc_error *error)
{
    char path[RC_OBJECT_MAX + 16];
    struct stat status;
    rc_path(path, RC_SHM_FOLDER "/sem.", object);
    if (lstat(path, &status) == 0 && status.st_size < (off_t)sizeof(sem_t))
        return rc_fail(error, RINGCAST_CORRUPT, 0,
                       "semaphore %s is cut short: somebody tampered with the ring; remove it and"
                       " create it again", object);
    sem_t *found = rc_sem_open(object);
    if (found == SEM_FAILED) {
        *semaphore = NULL;
        return rc_fail(error, RINGCAST_CORRUPT, errno,
                       "semaphore %s is missing: %s; the ring is being removed, or somebody deleted"
                       " it", object, strerror(errno));
    }
    *semaphore = found;
    return RINGCAST_OK;
}

/* Open the segment that carries the locks. */
static inline ringcast_status rc_open_locks(rc_endpoint *e, const char *what, const char *name,
                                            char part, rc_error *error)
{
    char object[RC_OBJECT_MAX];
    rc_segment_name(object, name, part);
    int system = rc_endpoint_init(e, object);
    if (system == 0)
        return RINGCAST_OK;
    if (system == ENOENT)
        return rc_fail(error, RINGCAST_NOT_FOUND, system,
                       "there is no %s '%s': start its %s or manager; `ringcast ls` lists the rings",
                       what, name,
                       part == 'c' ? "writer" : "receiver");
    return rc_fail(error, RINGCAST_SYSTEM, system, "cannot open %s '%s': %s%s", what, name,
                   strerror(system), system != EACCES ? "" :
                   ". It belongs to another user; its owner lets a group attach with mode=0o640");
}

static inline void rc_close_endpoint(rc_endpoint *e)
{
    rc_endpoint_finish(e);
    rc_endpoint_free(e);
}

#endif

#include "attach_group.h"

#ifdef RC_ENDPOINT_REGISTRY

/* Take the lock of a reader slot that no living process holds. */
static inline ringcast_status rc_take_reader_slot(rc_attached_reader *a, uint32_t *slot,
                                                  rc_error *error)
{
    for (int look = 0; look < RC_SLOT_LOOKS; look++) {
        for (*slot = 0; *slot < a->ring.g.max_readers; ++*slot)
            if (rc_lock_try(a->endpoint.lock_fd, RC_LOCK_READER + *slot) == 0)
                return RINGCAST_OK;
        sched_yield();
    }
    return rc_fail(error, RINGCAST_TOO_MANY_READERS, 0,
                   "all %u reader slots of ring '%s' are taken by living processes: create it with a"
                   " larger max_readers", a->ring.g.max_readers, a->ring.name);
}

static inline ringcast_status rc_open_reader_semaphores(rc_attached_reader *a, uint32_t slot,
                                                        rc_error *error)
{
    char wake[RC_OBJECT_MAX], space[RC_OBJECT_MAX], wishes[RC_OBJECT_MAX];
    ringcast_status status;
    rc_semaphore_name(wake, a->ring.name, a->ring.g.instance, "r", slot);
    rc_semaphore_name(space, a->ring.name, a->ring.g.instance, "space", -1);
    rc_semaphore_name(wishes, a->ring.name, a->ring.g.instance, "wish", -1);
    if ((status = rc_semaphore_open(&a->wake, wake, error)) ||
        (status = rc_semaphore_open(&a->space, space, error)) ||
        (status = rc_semaphore_open(&a->wishes, wishes, error)))
        return status;
    return RINGCAST_OK;
}

static inline ringcast_status rc_begin_filter(rc_attached_reader *a, uint32_t slot,
                                              const rc_reader_options *options, rc_error *error)
{
    ringcast_status status = RINGCAST_OK;
    if (rc_filter_begin(&a->filter, a->ring.data.address, a->ring.control.address, &a->ring.g, slot,
                        options->chooses && !options->group, (int)options->others,
                        options->skip != RC_KIND_EVENT))
        return rc_fail(error, RINGCAST_NO_MEMORY, ENOMEM, "no memory for topics");
    for (uint32_t i = 0; i < options->topic_count && status == RINGCAST_OK; i++)
        status = rc_want_topic(a, options->topics[i], error);
    if (status == RINGCAST_OK && options->topic_count)
        rc_filter_publish(&a->filter); /* read once the slot is active: see rc_join_reader() */
    a->reader.filter = options->chooses && !options->group ? &a->filter : NULL;
    a->reader.skip = options->skip;
    return status;
}

/* Join through the slot whose lock is held. RINGCAST_EVICTED: begin again. */
static inline ringcast_status rc_join_reader(rc_attached_reader *a, uint32_t slot,
                                             const rc_reader_options *options, rc_error *error)
{
    rc_reader *r = &a->reader;
    const rc_header *header = a->ring.data.address;
    rc_reader_map(r, a->ring.data.address, a->ring.control.address, &a->ring.g, slot, a->wake,
                  a->space);
    rc_slot_free(r->control, slot, a->space); /* what a dead owner left */
    rc_reader_claim(r, options->policy == RINGCAST_LOSSY);
    ringcast_status status = rc_begin_filter(a, slot, options, error);
    if (status != RINGCAST_OK) {
        rc_reader_leave(r);
        return status;
    }
    rc_sign(&r->slot->pid, &r->slot->started, &r->slot->joined_ns, r->slot->label, options->label);
    uint64_t published = rc_load(&header->published);
    uint64_t start = options->start == RINGCAST_LATEST   ? published
                     : options->start == RINGCAST_OLDEST ? rc_load(&header->gate)
                                                         : options->sequence;
    if (options->start == RINGCAST_SEQUENCE && start > published) {
        rc_reader_leave(r);
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "sequence %" PRIu64 " is not published yet: the next one is %" PRIu64, start,
                       published);
    }
    if (options->group) {
        if ((status = rc_join_group(a, start, options, error))) {
            rc_reader_leave(r);
        } else if (options->topic_count) {
            rc_post(a->wishes);
        }
        return status;
    }
    if (!rc_reader_join(r, start)) {
        rc_reader_leave(r);
        return rc_fail(error, RINGCAST_EVICTED, 0,
                       "the writer of ring '%s' evicts every reader that joins", a->ring.name);
    }
    if (options->topic_count)
        rc_post(a->wishes);
    if (options->start != RINGCAST_SEQUENCE) { /* what went while we joined was never promised */
        r->gap = r->lost = 0;
        rc_store(&r->slot->lost, 0);
    }
    return RINGCAST_OK;
}

static inline ringcast_status rc_attach_reader_once(rc_attached_reader *a, const char *name,
                                                    const rc_reader_options *options,
                                                    rc_error *error)
{
    char control[RC_OBJECT_MAX];
    uint32_t slot;
    ringcast_status status;
    rc_segment_name(control, name, 'c');
    if ((status = rc_ring_open(&a->ring, name, RC_READING, options->owner, error)) ||
        (status = rc_take_reader_slot(a, &slot, error)))
        return status;
    if (!rc_leads_to(&a->endpoint, control))
        return rc_fail(error, RINGCAST_CORRUPT, 0,
                       "ring '%s' was replaced while it was opened: try again", name);
    if ((status = rc_open_reader_semaphores(a, slot, error)))
        return status;
    return rc_join_reader(a, slot, options, error);
}

/* Give everything back but the slot, which is free or was never ours. */
static inline void rc_detach_reader(rc_attached_reader *a)
{
    if (a->wake)
        rc_semaphore_close(a->wake);
    if (a->space)
        rc_semaphore_close(a->space);
    if (a->wishes)
        rc_semaphore_close(a->wishes);
    rc_filter_end(&a->filter);
    rc_detach_group(a);
    rc_ring_unmap(&a->ring);
    rc_close_endpoint(&a->endpoint);
}

/* Attach a reader; on failure nothing stays open. */
static inline ringcast_status rc_attach_reader(rc_attached_reader *a, const char *name,
                                               const rc_reader_options *options, rc_error *error)
{
    ringcast_status status = RINGCAST_EVICTED;
    if (!rc_is_name(name)) /* says why */
        return rc_ring_open(&a->ring, name, RC_READING, options->owner, error);
    if (options->group && !rc_is_name(options->group))
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "'%.40s' can't name a group: use 1 to 20 of a-z, 0-9, _ and -, starting with a"
                       " letter or digit", options->group);
    if (options->group && (options->balance < RC_ANY || options->balance > RC_ROUND_ROBIN ||
                           options->max_deliveries > RC_DELIVERIES_MAX))
        return rc_fail(error, RINGCAST_INVALID, 0,
                       "a group's balance is any, key or round-robin, and its max_deliveries 1 to %u",
                       RC_DELIVERIES_MAX);
    for (int i = 0; i < RC_JOIN_TRIES && status == RINGCAST_EVICTED; i++) {
        memset(a, 0, sizeof *a);
        if ((status = rc_open_locks(&a->endpoint, "ring", name, 'c', error)))
            return status;
        a->ring.data.fd = a->ring.control.fd = a->group.fd = -1;
        status = rc_attach_reader_once(a, name, options, error);
        if (status != RINGCAST_OK)
            rc_detach_reader(a);
    }
    a->looked_ns = rc_now_ns();
    return status == RINGCAST_EVICTED ? error->status = RINGCAST_SYSTEM : status;
}

/* Leave an orderly slot behind, once no thread waits (rc_endpoint_leave) and nothing is held. */
static inline void rc_leave_reader(rc_attached_reader *a)
{
    int wished = a->filter.count != 0;
    rc_leave_group(a);
    rc_reader_leave(&a->reader);
    rc_endpoint_finish(&a->endpoint);
    if (wished)
        rc_post(a->wishes);
}

/* Claim the lane whose lock is held. RINGCAST_TOO_MANY_SENDERS: it is not free yet. */
static inline ringcast_status rc_claim_lane(rc_attached_sender *a, uint32_t lane,
                                            const char *label, rc_error *error)
{
    char wake[RC_OBJECT_MAX], segment[RC_OBJECT_MAX];
    const rc_uplink_geometry *g = &a->uplink.map.g;
    rc_lane *slot = &a->uplink.map.shared->lanes[lane];
    ringcast_status status;
    if ((rc_load(&slot->state) & 0xff) != RC_FREE)
        return RINGCAST_TOO_MANY_SENDERS;
    rc_segment_name(segment, a->uplink.name, 'u');
    if (!rc_leads_to(&a->endpoint, segment))
        return rc_fail(error, RINGCAST_NOT_FOUND, 0,
                       "uplink '%s' was replaced while it was opened: try again", a->uplink.name);
    rc_semaphore_name(wake, a->uplink.name, g->instance, "s", lane);
    if ((status = rc_semaphore_open(&a->wake, wake, error)))
        return status;
    rc_sender_map(&a->sender, a->uplink.segment.address, g, lane, a->wake, a->receiver_wake);
    if (rc_sender_claim(&a->sender)) {
        rc_sign(&slot->pid, &slot->started, &slot->joined_ns, slot->label, label);
        return RINGCAST_OK;
    }
    rc_semaphore_close(a->wake);
    a->wake = NULL;
    return RINGCAST_TOO_MANY_SENDERS;
}

/* One look at every lane. *left_behind: some have no living sender and are not free. */
static inline ringcast_status rc_try_lanes(rc_attached_sender *a, const char *label,
                                           int *left_behind, rc_error *error)
{
    *left_behind = 0;
    for (uint32_t lane = 0; lane < a->uplink.map.g.max_senders; lane++) {
        if (rc_lock_try(a->endpoint.lock_fd, RC_LOCK_LANE + lane) != 0)
            continue;
        ringcast_status status = rc_claim_lane(a, lane, label, error);
        if (status != RINGCAST_TOO_MANY_SENDERS)
            return status;
        rc_lock_release(a->endpoint.lock_fd, RC_LOCK_LANE + lane);
        *left_behind = 1;
    }
    return RINGCAST_TOO_MANY_SENDERS;
}

/* Take a lane, waiting RC_LANE_WAIT_NS at most for the receiver to free those of the dead. */
static inline ringcast_status rc_take_lane(rc_attached_sender *a, const char *label,
                                           rc_error *error)
{
    const struct timespec pause = {.tv_nsec = RC_LANE_PAUSE_NS};
    int64_t end = rc_now_ns() + RC_LANE_WAIT_NS;
    int left_behind = 0;
    for (int look = 0; look < RC_SLOT_LOOKS || (left_behind && rc_now_ns() < end); look++) {
        ringcast_status status = rc_try_lanes(a, label, &left_behind, error);
        if (status != RINGCAST_TOO_MANY_SENDERS)
            return status;
        if (rc_load_acquire(&a->uplink.map.shared->state) == RC_RING_CLOSED)
            return rc_fail(error, RINGCAST_CLOSED, 0, "uplink '%s' has ended", a->uplink.name);
        rc_post(a->receiver_wake); /* it frees the lanes of the dead */
        nanosleep(&pause, NULL);
    }
    return rc_fail(error, RINGCAST_TOO_MANY_SENDERS, 0,
                   "all %u lanes of uplink '%s' are taken%s: create it with a larger max_senders",
                   a->uplink.map.g.max_senders, a->uplink.name,
                   left_behind ? ", some by dead senders whose messages wait" : "");
}

static inline void rc_detach_sender(rc_attached_sender *a)
{
    if (a->wake)
        rc_semaphore_close(a->wake);
    if (a->receiver_wake)
        rc_semaphore_close(a->receiver_wake);
    rc_uplink_unmap(&a->uplink);
    rc_close_endpoint(&a->endpoint);
}

/* Attach a sender; on failure nothing stays open. Takes up to RC_LANE_WAIT_NS. */
static inline ringcast_status rc_attach_sender(rc_attached_sender *a, const char *name,
                                               const char *label, int64_t owner, rc_error *error)
{
    char receiver[RC_OBJECT_MAX];
    ringcast_status status;
    memset(a, 0, sizeof *a);
    if (!rc_is_name(name)) /* says why */
        return rc_uplink_open(&a->uplink, name, RC_READING, owner, error);
    if ((status = rc_open_locks(&a->endpoint, "uplink", name, 'u', error)))
        return status;
    a->uplink.segment.fd = -1;
    status = rc_uplink_open(&a->uplink, name, RC_READING, owner, error);
    if (status == RINGCAST_OK &&
        rc_load_acquire(&a->uplink.map.shared->state) == RC_RING_CLOSED)
        status = rc_fail(error, RINGCAST_CLOSED, 0, "uplink '%s' has ended", name);
    if (status == RINGCAST_OK) {
        rc_semaphore_name(receiver, name, a->uplink.map.g.instance, "up", -1);
        status = rc_semaphore_open(&a->receiver_wake, receiver, error);
    }
    if (status == RINGCAST_OK)
        status = rc_take_lane(a, label, error);
    if (status != RINGCAST_OK)
        rc_detach_sender(a);
    a->looked_ns = rc_now_ns();
    return status;
}

static inline void rc_leave_sender(rc_attached_sender *a)
{
    rc_sender_leave(&a->sender);
    rc_endpoint_finish(&a->endpoint);
}

#endif

#endif

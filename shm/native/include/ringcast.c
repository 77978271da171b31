/* ringcast.c - the implementation of ringcast.h, for C11 compilers on Linux: compile it into your
 * program. It is a thin layer over the headers one folder up, which are also what the Python package
 * is made of; they are no part of the interface.
 */
#ifndef _GNU_SOURCE /* it may stand on the command line */
#define _GNU_SOURCE
#endif
#define RC_ENDPOINT_REGISTRY
#include "ringcast.h"

#include "../attach.h"
#include "../note.h"

#define DEFAULT_SPIN_US 50
#define SPIN_US_MAX 1000000
#define NOTE_READS 1000 /* how often a note that changes while it is copied is copied again */
#define LOOKS_EACH 256  /* messages that are sent between two looks at the clock */
#define PASSES_IN_A_ROUND 8 /* of the ring, at least: between them the cursor is stored */
#define RECOVERIES 64   /* of a lossy reader that is lapped, before it looks at its deadline */
#define HAND_FIRST 64   /* places for messages in a member's hands, at first */
#define HAND 1          /* the only one of a member here: one thread works it */

/* What an attached end has beside what attach.h knows. The second thread, that calls ringcast_wait(),
 * must not look into `a.reader`, which the first one changes: it works on a snapshot that it makes
 * from the constants there and from the two words that change, mirrored here as atomics. */
struct ringcast_reader {
    rc_attached_reader a;
    rc_wait_strategy strategy;
    _Atomic uint64_t next, state; /* of a.reader; relaxed: the ring's own words order everything */
    int64_t waiter_looked_ns;     /* as a.looked_ns, of the thread in ringcast_wait() */
    uint8_t *copy;                /* of a lossy reader's message */
    size_t copy_size;
    int held;         /* messages were handed out and not given back */
};

/* A message in a member's hands. */
typedef struct held {
    rc_lease lease; /* word 0: this place is empty */
    uint32_t length;
} held;

/* A member. The thread in ringcast_member_wait() works on a copy of what the other has shown it. */
struct ringcast_member {
    rc_attached_reader a;
    rc_wait_strategy strategy;
    held *hand; /* by sequence: open addressing with linear probing, half empty at least */
    size_t size, count;
    pthread_mutex_t mutex; /* for the next two */
    rc_look shown;
    uint64_t shown_received;
    int64_t waiter_looked_ns;
    char group[RC_NAME_MAX + 1];
};

struct ringcast_sender {
    rc_attached_sender a;
    uint32_t sends;
};

static _Thread_local rc_error last_error;

static const char *const texts[] = {
    [RINGCAST_OK] = "fine",
    [RINGCAST_TIMEOUT] = "nothing happened in time",
    [RINGCAST_ENDED] = "the ring has ended, and every message was read",
    [RINGCAST_INVALID] = "an argument is out of range",
    [RINGCAST_NOT_FOUND] = "there is no such ring",
    [RINGCAST_LAYOUT_MISMATCH] = "the ring is of another version, byte order or kind",
    [RINGCAST_CORRUPT] = "the ring holds what no writer writes",
    [RINGCAST_SYSTEM] = "the operating system refuses",
    [RINGCAST_NO_MEMORY] = "there is no memory",
    [RINGCAST_TOO_MANY_READERS] = "every reader slot is taken",
    [RINGCAST_TOO_MANY_SENDERS] = "every lane is taken",
    [RINGCAST_EVICTED] = "this end was evicted",
    [RINGCAST_CLOSED] = "this end is closed, or what it was attached to is gone",
    [RINGCAST_FULL] = "there was no room in time",
    [RINGCAST_MESSAGE_TOO_LARGE] = "the message is too long",
    [RINGCAST_SEND_REJECTED] = "messages were not delivered",
    [RINGCAST_SEND_UNCONFIRMED] = "nobody knows whether messages were delivered",
};

const char *ringcast_status_text(ringcast_status status)
{
    size_t index = (size_t)status;
    return index < sizeof texts / sizeof *texts ? texts[index] : "no status of ringcast";
}

const char *ringcast_last_error(void) { return last_error.text; }

#define FAIL(status, ...) rc_fail(&last_error, (status), 0, __VA_ARGS__)

/* ---- what readers and senders share --------------------------------------------------------- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int fork_handlers; /* 0, or an errno */

static void register_once(void) { fork_handlers = rc_register_fork_handlers(); }

/* Before anything is attached: a forked child must not keep its parent's locks. */
static ringcast_status prepare(const char *name)
{
    pthread_once(&once, register_once);
    if (fork_handlers)
        return FAIL(RINGCAST_NO_MEMORY, "pthread_atfork: %s", strerror(fork_handlers));
    return name ? RINGCAST_OK : FAIL(RINGCAST_INVALID, "the name is NULL");
}

static int64_t deadline_of(int64_t timeout_ns)
{
    int64_t now = rc_now_ns();
    return timeout_ns < 0 || timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
}

static ringcast_status check_open(rc_endpoint *e)
{
    int phase = rc_endpoint_phase(e);
    if (rc_likely(phase == RC_OPEN))
        return RINGCAST_OK;
    return FAIL(RINGCAST_CLOSED, phase == RC_FORKED
                                     ? "this end belongs to the parent process: a forked child has"
                                       " to attach for itself"
                                     : "this end is closed");
}

/* ---- reading ------------------------------------------------------------------------------- */

/* What the options say, of readers and of members. */
static ringcast_status parse(const ringcast_reader_options *options, rc_reader_options *how,
                             rc_wait_strategy *strategy)
{
    static const rc_wait_kind kinds[] = {RC_BLOCKING, RC_BUSY_SPIN, RC_YIELDING};
    int32_t spin_us = options->spin_us == 0 ? DEFAULT_SPIN_US : options->spin_us;
    if ((unsigned)options->wait > RINGCAST_YIELDING || spin_us > SPIN_US_MAX ||
        (unsigned)options->policy > RINGCAST_LOSSY ||
        (unsigned)options->start > RINGCAST_SEQUENCE || options->owner < 0 ||
        options->topic_count > UINT32_MAX || (options->topic_count && !options->topics))
        return FAIL(RINGCAST_INVALID,
                    "the options are out of range: begin with all zero and set what differs");
    strategy->kind = kinds[options->wait];
    strategy->spin_ns = spin_us < 0 ? 0 : (int64_t)spin_us * 1000;
    *how = (rc_reader_options){
        .policy = options->policy,
        .start = options->start,
        .sequence = options->sequence,
        .owner = options->owner,
        .label = options->label ? options->label : program_invocation_short_name,
        .topics = options->topics,
        .topic_count = (uint32_t)options->topic_count,
        .chooses = options->choose || options->topic_count,
        .others = (uint32_t)(options->others != 0),
        .skip = options->events ? 0 : RC_KIND_EVENT,
    };
    return RINGCAST_OK;
}

/* Show the thread in ringcast_wait() where the reader stands. */
static void mirror(ringcast_reader *r)
{
    atomic_store_explicit(&r->next, r->a.reader.next, memory_order_relaxed);
    atomic_store_explicit(&r->state, r->a.reader.state, memory_order_relaxed);
}

ringcast_status ringcast_reader_attach(ringcast_reader **reader, const char *name,
                                       const ringcast_reader_options *options)
{
    static const ringcast_reader_options defaults;
    rc_reader_options how;
    ringcast_status status = prepare(name);
    if (status != RINGCAST_OK)
        return status;
    if (!options)
        options = &defaults;
    ringcast_reader *r = calloc(1, sizeof *r);
    if (!r)
        return FAIL(RINGCAST_NO_MEMORY, "no memory for a reader");
    if ((status = parse(options, &how, &r->strategy)) != RINGCAST_OK ||
        (status = rc_attach_reader(&r->a, name, &how, &last_error)) != RINGCAST_OK) {
        free(r);
        return status;
    }
    r->waiter_looked_ns = r->a.looked_ns;
    mirror(r);
    *reader = r;
    return RINGCAST_OK;
}

static ringcast_status evicted(const ringcast_reader *r)
{
    return FAIL(RINGCAST_EVICTED,
                "the writer evicted reader slot %u: it held the ring full for too long. What was read"
                " last is not valid; attach again, and read faster or with RINGCAST_LOSSY",
                r->a.reader.index);
}

static ringcast_status spoilt(const char *name, uint64_t sequence)
{
    return FAIL(RINGCAST_CORRUPT,
                "ring '%s' holds an impossible descriptor or counter at sequence %" PRIu64, name,
                sequence);
}

static ringcast_status corrupt(const ringcast_reader *r)
{
    return spoilt(r->a.ring.name, r->a.reader.next);
}

void ringcast_release(ringcast_reader *reader)
{
    reader->held = 0;
    if (rc_endpoint_phase(&reader->a.endpoint) == RC_OPEN)
        rc_reader_flush(&reader->a.reader, reader->a.reader.next);
}

int ringcast_valid(ringcast_reader *reader)
{
    return rc_endpoint_phase(&reader->a.endpoint) == RC_OPEN &&
           (reader->a.reader.lossy || rc_reader_holds(&reader->a.reader));
}

/* Copy a lossy reader's message out and check the copy. RINGCAST_TIMEOUT: it was overrun. */
static ringcast_status copy_out(ringcast_reader *r, const rc_descriptor *d, ringcast_message *m)
{
    if (r->copy_size < d->f.length || !r->copy) {
        uint8_t *larger = realloc(r->copy, (size_t)d->f.length + 1);
        if (!larger)
            return FAIL(RINGCAST_NO_MEMORY, "no memory for a message of %u bytes", d->f.length);
        r->copy = larger;
        r->copy_size = d->f.length;
    }
    rc_copy_out(r->copy, m->payload, d->f.length);
    m->payload = r->copy;
    return rc_reader_intact(&r->a.reader, r->a.reader.next) ? RINGCAST_OK : RINGCAST_TIMEOUT;
}

static void describe(const rc_reader *r, const rc_descriptor *d, uint64_t gap, ringcast_message *m)
{
    m->payload = r->arena + (d->f.position & (r->capacity - 1));
    m->length = d->f.length;
    m->sequence = d->f.seq1 - 1;
    m->time_ns = d->f.time_ns;
    m->gap = gap;
    m->key = d->f.key;
    m->topic = d->f.topic;
    m->epoch = d->f.epoch;
    m->kind = d->f.kind;
    m->connection = d->f.connection;
    m->deliveries = 0;
}

/* Something stands in the way of the next message: deal with it. RINGCAST_OK: look again. */
static ringcast_status recover(ringcast_reader *r, rc_result result)
{
    switch (result) {
    case RC_OVERRUN:
        return rc_reader_resync(&r->a.reader) ? RINGCAST_OK : corrupt(r);
    case RC_STEP_DOWN: /* nothing is held: what was handed out was given back before */
        return rc_reader_step_down(&r->a.reader) ? RINGCAST_OK : evicted(r);
    case RC_TAKEN_AWAY:
        return evicted(r);
    default:
        return corrupt(r);
    }
}

/* The next message is not wanted, and perhaps more after it. 0: none was passed over, since they were
 * overwritten meanwhile, or a topic has just arrived. */
static int pass_over(ringcast_reader *r)
{
    rc_reader *reader = &r->a.reader;
    if (!rc_reader_pass(reader, reader->slots / PASSES_IN_A_ROUND + 1))
        return 0;
    if (!r->held && rc_reader_flush_due(reader))
        rc_reader_flush(reader, reader->next);
    return 1;
}

/* Find the next message that is handed out, and take it. */
static ringcast_status find(ringcast_reader *r, ringcast_message *m)
{
    rc_reader *reader = &r->a.reader;
    rc_descriptor d;
    ringcast_status status = check_open(&r->a.endpoint);
    for (int i = 0; status == RINGCAST_OK && i < RECOVERIES; i++) {
        rc_result result = rc_reader_peek(reader, &d);
        if (result == RC_EMPTY || (result == RC_STEP_DOWN && r->held))
            return RINGCAST_TIMEOUT;
        if (result == RC_ENDED)
            return RINGCAST_ENDED;
        if (rc_unlikely(result != RC_MESSAGE)) {
            status = recover(r, result);
            continue;
        }
        rc_glance glance = rc_reader_glance(&d);
        int wants = rc_reader_wants(reader, glance);
        if (wants == RC_LEARN) {
            rc_filter_learn(&r->a.filter);
            wants = rc_reader_wants(reader, glance);
        }
        if (wants != RC_WANTED) {
            if (pass_over(r))
                i--; /* bounded by what was published */
            else if (reader->lossy && !rc_reader_intact(reader, reader->next))
                status = recover(r, RC_OVERRUN);
            continue;
        }
        describe(reader, &d, reader->gap, m);
        if (reader->lossy && (status = copy_out(r, &d, m)) != RINGCAST_OK) {
            if (status == RINGCAST_TIMEOUT)
                status = recover(r, RC_OVERRUN);
            continue; /* without memory: it is not taken, and the next call tries again */
        }
        rc_reader_advance(reader, 1, d.f.length);
        r->held = !reader->lossy;
        return status;
    }
    return status == RINGCAST_OK ? RINGCAST_TIMEOUT : status;
}

/* Take the next message if there is one; RINGCAST_TIMEOUT: there is none. While messages are held, a
 * demotion waits: it ends that they are valid. Without a message, too, the reader may stand elsewhere
 * than before: after events, topics that are not wanted, gaps or a demotion. Unless that is mirrored,
 * and topics that have arrived are learned, ringcast_wait() would take it for a reason to read. */
static ringcast_status take(ringcast_reader *r, ringcast_message *m)
{
    ringcast_status status = find(r, m);
    if (status == RINGCAST_TIMEOUT)
        rc_filter_learn(&r->a.filter);
    mirror(r);
    return status;
}

static ringcast_status abandoned(const rc_attached_reader *a)
{
    return FAIL(RINGCAST_CLOSED,
                "ring '%s' has no writer and was removed, so no message can come any more",
                a->ring.name);
}

/* Wait for a reason to look; RINGCAST_TIMEOUT: the deadline is over. A call that does not wait looks
 * around all the same. */
static ringcast_status wait_until(ringcast_reader *r, rc_reader *snapshot,
                                  int64_t *looked_ns, int64_t deadline)
{
    int over = rc_now_ns() >= deadline;
    if (!over &&
        rc_attached_reader_wait(&r->a, snapshot, r->strategy, deadline) == RC_CLOSED_MEANWHILE)
        return check_open(&r->a.endpoint);
    if (rc_attached_reader_is_abandoned(&r->a, snapshot, looked_ns))
        return abandoned(&r->a);
    return over ? RINGCAST_TIMEOUT : RINGCAST_OK;
}

ringcast_status ringcast_read(ringcast_reader *reader, ringcast_message *message,
                              int64_t timeout_ns)
{
    int64_t deadline = 0;
    if (rc_reader_flush_due(&reader->a.reader) &&
        rc_endpoint_phase(&reader->a.endpoint) == RC_OPEN)
        rc_reader_flush(&reader->a.reader, reader->a.reader.next);
    reader->held = 0;
    for (;;) {
        ringcast_status status = take(reader, message);
        if (rc_likely(status == RINGCAST_OK))
            return status;
        ringcast_release(reader); /* a writer that waits until all is read sees that we have */
        if (status != RINGCAST_TIMEOUT)
            return status;
        if (!deadline)
            deadline = deadline_of(timeout_ns);
        rc_reader snapshot = rc_reader_snapshot(&reader->a.reader);
        if ((status = wait_until(reader, &snapshot, &reader->a.looked_ns, deadline)) !=
            RINGCAST_OK)
            return status;
    }
}

ringcast_status ringcast_read_many(ringcast_reader *reader, ringcast_message *messages,
                                   size_t limit, size_t *count, int64_t timeout_ns)
{
    *count = 0;
    if (limit == 0)
        return FAIL(RINGCAST_INVALID, "limit is a number of messages, 1 or more");
    ringcast_status status = ringcast_read(reader, messages, timeout_ns);
    if (status != RINGCAST_OK)
        return status;
    for (*count = 1; *count < limit && reader->held; ++*count)
        if (take(reader, &messages[*count]) != RINGCAST_OK)
            break; /* what it is, the next call reports */
    return RINGCAST_OK;
}

ringcast_status ringcast_wait(ringcast_reader *reader, int64_t timeout_ns)
{
    int64_t deadline = deadline_of(timeout_ns);
    rc_reader snapshot;
    rc_reader_map(&snapshot, reader->a.ring.data.address, reader->a.ring.control.address,
                  &reader->a.ring.g, reader->a.reader.index, reader->a.wake, reader->a.space);
    snapshot.filter = reader->a.reader.filter; /* this and the next never change */
    snapshot.skip = reader->a.reader.skip;
    for (;;) {
        ringcast_status status = check_open(&reader->a.endpoint);
        if (status != RINGCAST_OK)
            return status;
        snapshot.next = atomic_load_explicit(&reader->next, memory_order_relaxed);
        snapshot.began = snapshot.next;
        snapshot.unflushed = 0;
        snapshot.stored = rc_load(&snapshot.slot->cursor);
        snapshot.state = atomic_load_explicit(&reader->state, memory_order_relaxed);
        if (rc_reader_ready(&snapshot))
            return RINGCAST_OK;
        if ((status = wait_until(reader, &snapshot, &reader->waiter_looked_ns, deadline)) !=
            RINGCAST_OK)
            return status;
    }
}

ringcast_status ringcast_reader_get_info(ringcast_reader *reader, ringcast_reader_info *info)
{
    const rc_reader *r = &reader->a.reader;
    ringcast_status status = check_open(&reader->a.endpoint);
    if (status != RINGCAST_OK)
        return status;
    uint64_t published = rc_load(&r->header->published);
    *info = (ringcast_reader_info){
        .cursor = r->next,
        .lag = published > r->next ? published - r->next : 0,
        .received = r->received,
        .lost = r->lost,
        .skipped = r->skipped,
        .max_message = r->max_message,
        .policy = r->lossy ? RINGCAST_LOSSY : RINGCAST_BLOCK,
        .slot = r->index,
        .writer_alive = rc_lock_held(reader->a.endpoint.lock_fd, RC_LOCK_WRITER) == 1,
    };
    return RINGCAST_OK;
}

ringcast_status ringcast_subscribe(ringcast_reader *reader, const char *const *topics,
                                   size_t count)
{
    ringcast_status status = check_open(&reader->a.endpoint);
    size_t added = 0;
    for (; added < count && status == RINGCAST_OK; added++)
        status = rc_want_topic(&reader->a, topics[added], &last_error);
    if (added) {
        rc_show_wishes(&reader->a);
        rc_endpoint_rouse(&reader->a.endpoint, reader->a.wake);
    }
    return status;
}

ringcast_status ringcast_unsubscribe(ringcast_reader *reader, const char *const *topics,
                                     size_t count)
{
    ringcast_status status = check_open(&reader->a.endpoint);
    if (status != RINGCAST_OK)
        return status;
    for (size_t i = 0; i < count; i++)
        if (topics[i])
            rc_filter_remove(&reader->a.filter, topics[i],
                             (uint32_t)strnlen(topics[i], RC_TOPIC_NAME_MAX + 1));
    rc_show_wishes(&reader->a);
    return RINGCAST_OK;
}

static const char *topic_name(const rc_ring *ring, uint32_t topic)
{
    if (topic == 0 || topic > rc_topics_count(ring->data.address, ring->g.max_topics))
        return NULL;
    return rc_topics_at(ring->data.address, &ring->g)[topic - 1].name;
}

const char *ringcast_topic_name(const ringcast_reader *reader, uint32_t topic)
{
    return topic_name(&reader->a.ring, topic);
}

ringcast_status ringcast_note(ringcast_reader *reader, char *note, size_t size, size_t *length)
{
    uint8_t copy[RC_NOTE_MAX + 8];
    int32_t n = -1;
    ringcast_status status = check_open(&reader->a.endpoint);
    if (status != RINGCAST_OK)
        return status;
    for (int i = 0; n < 0 && i < NOTE_READS; i++)
        n = rc_note_read(reader->a.reader.header, copy);
    if (n < 0)
        return FAIL(RINGCAST_CORRUPT, "the writer's note in ring '%s' can't be read: its length is"
                                      " impossible, or it changes without end", reader->a.ring.name);
    *length = (size_t)n;
    if (size) {
        size_t kept = *length < size ? *length : size - 1;
        memcpy(note, copy, kept);
        note[kept] = 0;
    }
    return RINGCAST_OK;
}

void ringcast_reader_close(ringcast_reader *reader)
{
    if (!reader)
        return;
    if (rc_endpoint_phase(&reader->a.endpoint) == RC_OPEN) {
        rc_endpoint_leave(&reader->a.endpoint, reader->a.wake);
        rc_leave_reader(&reader->a);
    }
    rc_detach_reader(&reader->a);
    free(reader->copy);
    free(reader);
}

/* ---- work groups --------------------------------------------------------------------------- */

ringcast_status ringcast_member_attach(ringcast_member **member, const char *name, const char *group,
                                       const ringcast_member_options *options)
{
    static const ringcast_member_options defaults;
    static const uint32_t balances[] = {RC_ANY, RC_KEY, RC_ROUND_ROBIN};
    rc_reader_options how;
    ringcast_status status = prepare(name);
    if (status != RINGCAST_OK)
        return status;
    if (!group)
        return FAIL(RINGCAST_INVALID, "the group's name is NULL");
    if (!options)
        options = &defaults;
    if ((unsigned)options->balance > RINGCAST_ROUND_ROBIN || options->max_deliveries < 0)
        return FAIL(RINGCAST_INVALID, "balance is RINGCAST_ANY, _KEY or _ROUND_ROBIN, and max_deliveries"
                                      " 0, or 1 to %u", RC_DELIVERIES_MAX);
    ringcast_reader_options common = {
        .start = options->start,
        .sequence = options->sequence,
        .wait = options->wait,
        .spin_us = options->spin_us,
        .label = options->label,
        .owner = options->owner,
        .topics = options->topics,
        .topic_count = options->topic_count,
        .choose = options->choose,
        .others = options->others,
    };
    ringcast_member *m = calloc(1, sizeof *m);
    if (m)
        m->hand = calloc(HAND_FIRST, sizeof *m->hand);
    if (!m || !m->hand) {
        free(m);
        return FAIL(RINGCAST_NO_MEMORY, "no memory for a member");
    }
    if ((status = parse(&common, &how, &m->strategy)) == RINGCAST_OK) {
        how.group = group;
        how.balance = balances[options->balance];
        how.max_deliveries = (uint32_t)options->max_deliveries;
        status = rc_attach_reader(&m->a, name, &how, &last_error);
    }
    if (status != RINGCAST_OK) {
        free(m->hand);
        free(m);
        return status;
    }
    m->size = HAND_FIRST;
    m->waiter_looked_ns = m->a.looked_ns;
    m->shown = m->a.member->look;
    pthread_mutex_init(&m->mutex, NULL);
    strcpy(m->group, group);
    *member = m;
    return RINGCAST_OK;
}

static ringcast_status cut_off(const ringcast_member *m)
{
    return FAIL(RINGCAST_EVICTED,
                "member %u of group '%s' was evicted: it held the ring '%s' full for too long. What it has"
                " not acknowledged is others' now; attach again", m->a.reader.index, m->group,
                m->a.ring.name);
}

/* Where a message stands in the hand, or would. */
static held *place_of(const ringcast_member *m, uint64_t sequence)
{
    size_t i = sequence & (m->size - 1);
    while (m->hand[i].lease.word && m->hand[i].lease.sequence != sequence)
        i = (i + 1) & (m->size - 1);
    return &m->hand[i];
}

/* Room in the hand for one more. 0: there is no memory. */
static int make_room(ringcast_member *m)
{
    held *before = m->hand;
    size_t size = m->size;
    if (2 * (m->count + 1) <= size)
        return 1;
    m->hand = calloc(2 * size, sizeof *m->hand);
    if (!m->hand) {
        m->hand = before;
        return 0;
    }
    m->size = 2 * size;
    for (size_t i = 0; i < size; i++)
        if (before[i].lease.word)
            *place_of(m, before[i].lease.sequence) = before[i];
    free(before);
    return 1;
}

/* This place is empty from now on. What stands after it moves up if that brings it nearer to where it
 * would stand alone. */
static void put_down(ringcast_member *m, held *place)
{
    size_t mask = m->size - 1, hole = (size_t)(place - m->hand), i = hole;
    while (m->hand[i = (i + 1) & mask].lease.word) {
        size_t home = m->hand[i].lease.sequence & mask;
        if (((i - home) & mask) < ((i - hole) & mask))
            continue;
        m->hand[hole] = m->hand[i];
        hole = i;
    }
    m->hand[hole].lease.word = 0;
    m->count--;
}

/* Take what is there, if anything is: else RINGCAST_TIMEOUT. RC_FRESH: to go with others. */
static ringcast_status claim(ringcast_member *m, rc_sort sort, ringcast_message *message)
{
    rc_member *member = m->a.member;
    rc_descriptor d;
    rc_lease lease;
    ringcast_status status = check_open(&m->a.endpoint);
    if (status != RINGCAST_OK)
        return status;
    if (sort != RC_FRESH) {
        int64_t now = rc_clock_ns(CLOCK_MONOTONIC_COARSE);
        if (rc_member_look_due(member, now) && !rc_member_look_around(member, now))
            return cut_off(m);
    }
    if (rc_unlikely(!make_room(m)))
        return FAIL(RINGCAST_NO_MEMORY, "no memory for more than %zu messages in hand", m->count);
    switch (rc_member_take(member, HAND, sort, NULL, &lease, &d)) {
    case RC_MESSAGE:
        break;
    case RC_ENDED:
        return RINGCAST_ENDED;
    case RC_TAKEN_AWAY:
        return cut_off(m);
    case RC_IMPOSSIBLE:
        (void)rc_member_give_back(member, &lease, 1);
        return spoilt(m->a.ring.name, lease.sequence);
    default:
        return RINGCAST_TIMEOUT;
    }
    *place_of(m, lease.sequence) = (held){lease, d.f.length};
    m->count++;
    describe(&m->a.reader, &d, rc_member_take_gap(member), message);
    message->deliveries = rc_lease_deliveries(lease.word);
    return RINGCAST_OK;
}

/* Wait for a reason to look; RINGCAST_TIMEOUT: the deadline is over. */
static ringcast_status rest(ringcast_member *m, rc_look *look, uint64_t received, int64_t *looked_ns,
                            int64_t deadline)
{
    int over = rc_now_ns() >= deadline;
    if (!over && rc_attached_member_wait(&m->a, look, HAND, received, m->strategy, deadline) ==
                     RC_CLOSED_MEANWHILE)
        return check_open(&m->a.endpoint);
    if (rc_attached_member_is_abandoned(&m->a, look, HAND, looked_ns))
        return abandoned(&m->a);
    return over ? RINGCAST_TIMEOUT : RINGCAST_OK;
}

/* Nothing is there: say what was done, and show the thread in ringcast_member_wait() how far we are. */
static rc_look settle(ringcast_member *m)
{
    rc_look look = m->a.member->look;
    if (rc_endpoint_phase(&m->a.endpoint) != RC_OPEN)
        return look;
    rc_member_flush(m->a.member);
    pthread_mutex_lock(&m->mutex);
    m->shown = look;
    m->shown_received = m->a.member->received;
    pthread_mutex_unlock(&m->mutex);
    return look;
}

ringcast_status ringcast_take(ringcast_member *member, ringcast_message *message, int64_t timeout_ns)
{
    int64_t deadline = 0;
    for (;;) {
        ringcast_status status = claim(member, RC_ANY_SORT, message);
        if (rc_likely(status == RINGCAST_OK))
            return status;
        rc_look look = settle(member);
        if (status != RINGCAST_TIMEOUT)
            return status;
        if (!deadline)
            deadline = deadline_of(timeout_ns);
        if ((status = rest(member, &look, member->a.member->received, &member->a.looked_ns,
                           deadline)) != RINGCAST_OK)
            return status;
    }
}

ringcast_status ringcast_take_many(ringcast_member *member, ringcast_message *messages, size_t limit,
                                   size_t *count, int64_t timeout_ns)
{
    *count = 0;
    if (limit == 0)
        return FAIL(RINGCAST_INVALID, "limit is a number of messages, 1 or more");
    ringcast_status status = ringcast_take(member, messages, timeout_ns);
    if (status != RINGCAST_OK)
        return status;
    for (*count = 1; *count < limit && messages->deliveries == 1; ++*count)
        if (claim(member, RC_FRESH, &messages[*count]) != RINGCAST_OK)
            break; /* what it is, the next call reports */
    return RINGCAST_OK;
}

/* Acknowledge one message or give it back. An evicted member does neither: the bytes that were used may
 * have been another message's, or another has the message already. */
static ringcast_status let_go(ringcast_member *m, const ringcast_message *message, int back)
{
    rc_fence_acquire(); /* the message was used before; pairs with the order in rc_slot_evict() */
    if (rc_unlikely(rc_member_changed(m->a.member) != RC_EMPTY))
        return cut_off(m);
    held *place = place_of(m, message->sequence), found = *place;
    if (!found.lease.word || rc_lease_deliveries(found.lease.word) != message->deliveries)
        return FAIL(RINGCAST_INVALID,
                    "message %" PRIu64 " is not in this member's hands: it was acknowledged or given back"
                    " before", message->sequence);
    put_down(m, place);
    if (back ? rc_member_give_back(m->a.member, &found.lease, 1)
             : rc_member_finish(m->a.member, &found.lease, 0, found.length))
        return RINGCAST_OK;
    return cut_off(m);
}

static ringcast_status let_all_go(ringcast_member *m, const ringcast_message *messages, size_t count,
                                  int back)
{
    ringcast_status status = check_open(&m->a.endpoint), bad = RINGCAST_OK;
    size_t returned = 0;
    if (status != RINGCAST_OK)
        return status;
    for (size_t i = 0; i < count && status != RINGCAST_EVICTED; i++) {
        status = let_go(m, &messages[i], back);
        returned += status == RINGCAST_OK;
        if (status != RINGCAST_OK)
            bad = status;
    }
    if (back && returned)
        rc_member_call(m->a.member, returned);
    return bad;
}

ringcast_status ringcast_acknowledge(ringcast_member *member, const ringcast_message *messages,
                                     size_t count)
{
    return let_all_go(member, messages, count, 0);
}

ringcast_status ringcast_give_back(ringcast_member *member, const ringcast_message *messages,
                                   size_t count)
{
    return let_all_go(member, messages, count, 1);
}

ringcast_status ringcast_member_wait(ringcast_member *member, int64_t timeout_ns)
{
    int64_t deadline = deadline_of(timeout_ns), look_around = rc_now_ns() + RC_GROUP_SLICE_NS;
    for (;;) {
        ringcast_status status = check_open(&member->a.endpoint);
        if (status != RINGCAST_OK)
            return status;
        pthread_mutex_lock(&member->mutex);
        rc_look look = member->shown;
        uint64_t received = member->shown_received;
        pthread_mutex_unlock(&member->mutex);
        if (rc_member_ready(member->a.member, &look, HAND))
            return RINGCAST_OK;
        int64_t until = deadline < look_around ? deadline : look_around;
        status = rest(member, &look, received, &member->waiter_looked_ns, until);
        if (status == RINGCAST_TIMEOUT && until < deadline)
            return RINGCAST_OK; /* whoever takes looks whether the others live */
        if (status != RINGCAST_OK)
            return status;
    }
}

const char *ringcast_member_topic_name(const ringcast_member *member, uint32_t topic)
{
    return topic_name(&member->a.ring, topic);
}

ringcast_status ringcast_member_get_info(ringcast_member *member, ringcast_member_info *info)
{
    const rc_member *m = member->a.member;
    ringcast_status status = check_open(&member->a.endpoint);
    if (status != RINGCAST_OK)
        return status;
    uint64_t published = rc_member_published(m), floor = rc_load(&m->map.row->floor);
    *info = (ringcast_member_info){
        .lag = published > floor ? published - floor : 0,
        .received = m->received,
        .in_hand = member->count,
        .lost = rc_load(&m->map.row->lost),
        .max_message = m->max_message,
        .members = rc_group_members(&m->map),
        .slot = m->index,
        .writer_alive = rc_lock_held(member->a.endpoint.lock_fd, RC_LOCK_WRITER) == 1,
    };
    return RINGCAST_OK;
}

void ringcast_member_close(ringcast_member *member)
{
    if (!member)
        return;
    if (rc_endpoint_phase(&member->a.endpoint) == RC_OPEN) {
        rc_endpoint_leave(&member->a.endpoint, member->a.wake);
        rc_leave_reader(&member->a);
        pthread_mutex_destroy(&member->mutex);
    }
    rc_detach_reader(&member->a);
    free(member->hand);
    free(member);
}

/* ---- sending ------------------------------------------------------------------------------- */

ringcast_status ringcast_sender_attach(ringcast_sender **sender, const char *name,
                                       const char *label, int64_t owner)
{
    ringcast_status status = prepare(name);
    if (status != RINGCAST_OK)
        return status;
    if (owner < 0)
        return FAIL(RINGCAST_INVALID, "owner is a user id + 1, or 0");
    ringcast_sender *s = calloc(1, sizeof *s);
    if (!s)
        return FAIL(RINGCAST_NO_MEMORY, "no memory for a sender");
    status = rc_attach_sender(&s->a, name, label ? label : program_invocation_short_name, owner,
                              &last_error);
    if (status != RINGCAST_OK) {
        free(s);
        return status;
    }
    *sender = s;
    return RINGCAST_OK;
}

/* Why nothing can be sent. */
static ringcast_status why_not(const ringcast_sender *s, rc_sending state)
{
    const char *name = s->a.uplink.name;
    switch (state) {
    case RC_SENDER_EVICTED:
        return FAIL(RINGCAST_EVICTED,
                    "the receiver of uplink '%s' evicted lane %u: it held what no sender writes, or"
                    " text that is not UTF-8; attach again", name, s->a.sender.index);
    case RC_NO_RECEIVER:
        return FAIL(RINGCAST_CLOSED, "uplink '%s' has ended: its receiver closed it", name);
    case RC_REJECTED:
        return FAIL(RINGCAST_SEND_REJECTED,
                    "uplink '%s' takes nothing now: there is no connection; nothing was sent", name);
    default:
        return FAIL(RINGCAST_CORRUPT, "uplink '%s' holds what no receiver writes", name);
    }
}

/* What became of messages that were sent before: reported once. */
static ringcast_status report(ringcast_sender *s)
{
    rc_sender *c = &s->a.sender;
    uint64_t rejected = rc_load(&c->lane->rejected), unconfirmed = rc_load(&c->lane->unconfirmed);
    if (rc_sender_state(c) == RC_SENDER_EVICTED)
        return why_not(s, RC_SENDER_EVICTED);
    if (rejected != c->rejected) {
        uint64_t count = rejected - c->rejected;
        c->rejected = rejected;
        return FAIL(RINGCAST_SEND_REJECTED,
                    "%" PRIu64 " of the messages sent before were rejected: they were not delivered,"
                    " for there was no connection", count);
    }
    if (unconfirmed != c->unconfirmed) {
        uint64_t count = unconfirmed - c->unconfirmed;
        c->unconfirmed = unconfirmed;
        return FAIL(RINGCAST_SEND_UNCONFIRMED,
                    "%" PRIu64 " of the messages sent before may or may not have been delivered: the"
                    " receiver died while it had them", count);
    }
    return RINGCAST_OK;
}

/* Will anybody ever receive? Looks each 100 ms at most. */
static ringcast_status look_around(ringcast_sender *s)
{
    if (!rc_attached_sender_is_abandoned(&s->a))
        return RINGCAST_OK;
    return FAIL(RINGCAST_CLOSED, "uplink '%s' has no receiver and was removed, so no message can go"
                                 " any more", s->a.uplink.name);
}

/* Wait for room or an acknowledgement; RINGCAST_TIMEOUT: the deadline is over. */
static ringcast_status wait_for(ringcast_sender *s, int (*ready)(const rc_sender *, uint64_t),
                                uint64_t what, int64_t deadline)
{
    ringcast_status status;
    if (rc_now_ns() >= deadline)
        return (status = look_around(s)) != RINGCAST_OK ? status : RINGCAST_TIMEOUT;
    rc_sender snapshot = s->a.sender;
    rc_attached_sender_wait(&s->a, &snapshot, ready, what, deadline);
    return (status = look_around(s)) != RINGCAST_OK ? status : check_open(&s->a.endpoint);
}

ringcast_status ringcast_send(ringcast_sender *sender, const void *payload, size_t length,
                              uint16_t kind, int64_t timeout_ns, uint64_t *ticket)
{
    uint64_t taken, max_message = sender->a.uplink.map.g.max_message;
    int64_t deadline = deadline_of(timeout_ns);
    ringcast_status status = check_open(&sender->a.endpoint);
    if (status != RINGCAST_OK || (status = report(sender)) != RINGCAST_OK ||
        (++sender->sends % LOOKS_EACH == 0 && (status = look_around(sender)) != RINGCAST_OK))
        return status;
    if (kind != RINGCAST_TEXT && kind != RINGCAST_BINARY)
        return FAIL(RINGCAST_INVALID, "kind is RINGCAST_TEXT or RINGCAST_BINARY, not %u", kind);
    if (length > max_message)
        return FAIL(RINGCAST_MESSAGE_TOO_LARGE,
                    "a message of %zu bytes is longer than this uplink's limit of %" PRIu64
                    ": set send_buffer_bytes of the manager to twice that, or more", length,
                    max_message);
    for (;;) {
        rc_sending state = rc_sender_try(&sender->a.sender, payload, (uint32_t)length, kind,
                                         ticket ? ticket : &taken);
        if (state == RC_SENT)
            return RINGCAST_OK;
        if (state != RC_NO_ROOM)
            return why_not(sender, state);
        status = wait_for(sender, rc_sender_has_room, length, deadline);
        if (status == RINGCAST_TIMEOUT)
            return FAIL(RINGCAST_FULL,
                        "no room for %zu bytes in lane %u of uplink '%s' in time, or as many of its"
                        " messages as may be are not delivered yet: its receiver is behind, or has no"
                        " connection", length, sender->a.sender.index, sender->a.uplink.name);
        if (status != RINGCAST_OK)
            return status;
    }
}

ringcast_status ringcast_flush(ringcast_sender *sender, int64_t timeout_ns)
{
    int64_t deadline = deadline_of(timeout_ns);
    rc_sender *s = &sender->a.sender;
    ringcast_status status = check_open(&sender->a.endpoint);
    while (status == RINGCAST_OK && !rc_sender_flushed(s, s->last)) {
        rc_sending state = rc_sender_state(s);
        if (state == RC_SENDER_EVICTED || state == RC_NO_RECEIVER)
            return why_not(sender, state);
        if (state == RC_REJECTED && (status = report(sender)) != RINGCAST_OK)
            return status; /* those that wait will be rejected, too */
        status = wait_for(sender, rc_sender_flushed, s->last, deadline);
    }
    if (status == RINGCAST_TIMEOUT)
        return FAIL(RINGCAST_TIMEOUT,
                    "not everything that was sent was delivered in time: it still may be");
    return status == RINGCAST_OK ? report(sender) : status;
}

void ringcast_sender_close(ringcast_sender *sender)
{
    if (!sender)
        return;
    if (rc_endpoint_phase(&sender->a.endpoint) == RC_OPEN) {
        rc_endpoint_leave(&sender->a.endpoint, sender->a.wake);
        rc_leave_sender(&sender->a);
    }
    rc_detach_sender(&sender->a);
    free(sender);
}

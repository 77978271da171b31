/* broadcast.h - one writer, many readers, variable-length messages: the protocol.
 *
 * The writer copies a payload into the arena, describes it in descriptors[sequence & mask], and
 * stores the descriptor's seq1 with release. A reader that acquires seq1 == sequence + 1 sees the
 * whole message. Prior art: Firedancer's mcache/dcache for the two rings, the LMAX Disruptor for
 * gating sequences, Dekker's algorithm for sleeping, and the seqlock for the lossy reader.
 *
 * The gate
 *
 *   header.gate is the one word that says what may be gone: every sequence below it, and the
 *   arena below its position, may be overwritten at any moment. The position of a message is that
 *   of its first protected byte: its payload's, or that of the frame header directly before it
 *   (rc_header_bytes()). The writer never overwrites anything at or above the gate. To move it up
 *   from g:
 *
 *       m = lowest cursor of all gating readers            (acquire: their reads are done)
 *       G = as far as needed, and a sixteenth of the ring; at most m
 *       gate = G;  fence(seq_cst);  look at the cursors again;  lower G to any below it
 *       settled = G;  and only now may anything below G be overwritten
 *
 *   and a reader that joins, from any start it likes:
 *
 *       cursor = start;  gating bit on;  fence(seq_cst);  cursor = max(start, gate)
 *
 *   Of two such parties at least one sees the other: either the writer's second look finds the
 *   joiner's cursor, or the joiner's load finds the new gate. A gating cursor below the writer's
 *   own gate is a joiner's that is not corrected yet. It means "no further for now".
 *
 *   A lossy reader does not gate. It copies, then fence(acquire), then loads `settled`: the copy
 *   holds if settled <= sequence, since that moved (and was fenced) before any byte changed. The
 *   gate itself may be taken back; `settled` never is.
 *   A successor of a dead writer starts from `settled`, too: the dead one may have stored a gate that
 *   it had not looked at twice, but below what it had settled everything may be half-overwritten,
 *   and above it nothing is.
 *
 * Sleeping
 *
 *   reader: waiter bit on;  fence(seq_cst);  look again;  nothing: sem_clockwait, 100 ms at most
 *           bit off;  if the writer had taken it, take back one token without waiting
 *   writer: published (release);  fence(seq_cst);  load waiters;  if any: exchange(0), post each
 *
 *   Again one of the two sees the other. A token is a hint to look, never a right: a stale one
 *   costs one look, a missing one (the writer died between exchange and post) 100 ms.
 *
 *   A reader that chooses among topics (topics.h) sleeps as a *chooser*, and is woken only for what it
 *   wants:
 *
 *   reader: chooser bit on;  fence(seq_cst);  pass over what is there and not wanted, to the end;
 *           at the end, and no topics have arrived that may be wanted: sem_clockwait, as above
 *   writer: published (release);  fence(seq_cst);  load choosers;  if any: load the interest rows of
 *           the messages just published, and take the bits of the choosers that stand there, and no
 *           others
 *
 *   Whichever fence comes first, the other side sees what was stored before it. So either the reader's
 *   look finds the message, or the writer finds the chooser bit and every interest bit that the reader
 *   had set before it slept. Arriving topics are found in the same way: header.topics stands for the
 *   message, and the row of those that wait for topics for the interest row. The writer looks there at
 *   its next release, since only that has a fence.
 *   A writer may miss an interest bit that is set while the reader sleeps. So who subscribes posts a
 *   token to the thread that sleeps, and that looks anew. No message that is published after the
 *   subscription has returned depends on the token: the interest bit stands there by then.
 *
 *   The writer sleeps for room in the same way. `wanted` is the cursor it cannot do without: while
 *   it is up, readers store their cursors at every message. `enough` lies a little higher, so that
 *   a full ring does not cost two context switches per message: only the reader that crosses it takes
 *   it down and answers with a token. (The writer looks each 20 ms besides, so what it could not
 *   do without does not wait for what would be enough.)
 *
 *   A chooser sleeps on messages that it does not want, and they must not fill the ring:
 *
 *   writer: wanted, enough;  fence(seq_cst);  look at the cursors;  no room: take the bits of the
 *           choosers whose cursor stands below what is wanted
 *   reader: chooser bit on;  fence(seq_cst);  pass over messages;  if there were some, and the cursor
 *           that it has stored is below wanted or below enough, it does not sleep but stores a higher one
 *
 *   It looks at `enough`, too: between the writer's look at the cursors and its sleep the reader may
 *   store exactly what is wanted, which wakes nobody, and then both would sleep. For speed alone, so
 *   that it seldom comes to that, the writer also wakes the choosers that lag each time that it has
 *   filled an eighth of the ring, and a chooser does not pass over more than that without storing its
 *   cursor.
 *
 * Slots
 *
 *   FREE -> JOINING -> ACTIVE -> DEMOTING -> DEMOTED, and from any but FREE: EVICTED or DEAD,
 *   then FREE. Whoever makes a slot FREE holds the lock byte of that slot, and the kernel takes
 *   the lock from a process only when it dies; so a slot is never handed on while its owner may
 *   still store a cursor, and cursors need no generation. The state word has one, so that a
 *   demotion or eviction meant for one reader cannot reach the next. For the same reason whoever
 *   evicts a slot does not touch its bits: the writer passes over the cursor of an evicted slot, and
 *   its owner or reaper, who has the lock, clears them.
 *
 * A whole writer                                A whole lossless reader
 *
 *   while (!rc_writer_try_put(w, &m, p, n))       switch (rc_reader_peek(r, &m)) {
 *       rc_writer_wait(w, n, how, until);         case RC_MESSAGE: rc_reader_advance(r, 1, m.f.length);
 *   rc_writer_release(w);                                          use(r->arena + (m.f.position & mask));
 *                                                                  rc_reader_flush(r, r->next); break;
 *                                                 case RC_EMPTY:   rc_reader_wait(&snapshot, how, until);
 *
 * The file stays whole, because it is one proof: each order that a line relies on is stated at its
 * partner, and both stand here.
 *
 * No function here allocates, and every loop is bounded by a number taken from the geometry or by
 * a deadline. One thread at a time works an rc_writer or an rc_reader. rc_reader_wait takes a
 * snapshot (a copy of the rc_reader), so one thread may wait while another works the original.
 */
#ifndef RINGCAST_BROADCAST_H
#define RINGCAST_BROADCAST_H

#include "base.h"
#include "group_table.h"
#include "layout.h"
#include "topics.h"

#define RC_ROOM_SLICE_NS INT64_C(20000000) /* the writer's, so that it reaps in time: 20 ms */
#define RC_FLUSH_MESSAGES UINT64_C(256)    /* most messages between two stores of a cursor */
#define RC_NUDGES 8u /* times that the writer wakes a chooser that lags, in one round of the ring */
#define RC_AHEAD_MESSAGES 16u              /* descriptors fetched ahead of the writer's stores */
#define RC_AHEAD_BYTES 2048u               /* arena bytes, likewise */
#define RC_AHEAD_PASSED 32u                /* descriptors fetched ahead of one that is passed over */

/* ---- bitmaps and slots, used from both sides -------------------------------------------- */

/* All of a descriptor but seq1, which is stored last and read first. */
static inline void rc_descriptor_copy(rc_descriptor *to, const rc_descriptor *from)
{
    for (int i = 1; i < 8; i++)
        rc_store(&to->words[i], rc_load(&from->words[i]));
}

static inline rc_slot *rc_slot_at(rc_control *control, uint32_t index)
{
    return &control->readers[index];
}

static inline uint64_t rc_state_word(uint64_t generation, uint64_t state)
{
    return generation << 8 | state;
}

/* The state word of a reader that is asked to step down and cannot yet: it reads on meanwhile. */
static inline uint64_t rc_demoting(uint64_t state)
{
    return rc_state_word(state >> 8, RC_DEMOTING);
}

/* A gating reader has left: wake a writer that waits for room. */
static inline void rc_wake_writer(rc_control *control, sem_t *space)
{
    rc_fence(); /* pairs with the fence in rc_writer_want() */
    if (rc_load(&control->enough) &&
        atomic_exchange_explicit(&control->enough, 0, memory_order_acq_rel))
        rc_post(space);
}

/* Stop gating and stop waiting. The caller holds the slot's lock byte.
 * release: the owner's reads come before; pairs with the acquire in rc_lowest_cursor(). */
static inline void rc_slot_silence(rc_control *control, uint32_t index)
{
    uint32_t group = rc_load(&control->readers[index].group) - 1;
    if (group < RC_GROUPS_MAX)
        atomic_fetch_and_explicit(&control->group_rows[group].asleep[index / 64], ~rc_bit(index),
                                  memory_order_acq_rel);
    atomic_fetch_and_explicit(&control->gating[index / 64], ~rc_bit(index), memory_order_acq_rel);
    atomic_fetch_and_explicit(&control->waiters[index / 64], ~rc_bit(index), memory_order_acq_rel);
    atomic_fetch_and_explicit(&control->choosers[index / 64], ~rc_bit(index), memory_order_acq_rel);
}

/* Free a slot. The caller HOLDS its lock byte: it is the owner, or the owner is dead. Every step
 * may be repeated, so whoever finds the lock free after a death in here starts again. */
static inline void rc_slot_free(rc_control *control, uint32_t index, sem_t *space)
{
    rc_slot *slot = &control->readers[index];
    uint64_t word = rc_load_acquire(&slot->state);
    if ((word & 0xff) == RC_FREE)
        return;
    rc_store_release(&slot->state, rc_state_word(word >> 8, RC_DEAD));
    RC_FAULT(40);
    rc_slot_silence(control, index);
    RC_FAULT(41);
    rc_store_release(&slot->state, rc_state_word((word >> 8) + 1, RC_FREE));
    rc_wake_writer(control, space);
}

/* Ask the reader to step down, or a member to let go of what it holds. 0 if it is neither. */
static inline int rc_slot_demote(rc_control *control, uint32_t index)
{
    rc_slot *slot = &control->readers[index];
    uint64_t word = rc_load_acquire(&slot->state);
    uint32_t policy = rc_load(&slot->policy);
    if ((word & 0xff) != RC_ACTIVE || (policy != RC_BLOCK && policy != RC_MEMBER))
        return 0;
    /* acq_rel: pairs with the load at the head of rc_reader_peek() */
    return atomic_compare_exchange_strong_explicit(&slot->state, &word,
                                                   rc_state_word(word >> 8, RC_DEMOTING),
                                                   memory_order_acq_rel, memory_order_relaxed);
}

/* Take the hold on the ring away from the reader that is in the slot now; never from the next. 0 if
 * nobody is in it. The state changes before any byte is overwritten: rc_reader_holds() relies on
 * that order. */
static inline int rc_slot_evict_one(rc_control *control, uint32_t index, uint64_t generation)
{
    rc_slot *slot = &control->readers[index];
    uint64_t word = rc_load_acquire(&slot->state);
    while (word >> 8 == generation) { /* a generation has no more than six states */
        uint64_t state = word & 0xff;
        if (state == RC_FREE || state == RC_DEAD || state == RC_EVICTED)
            return 0;
        if (atomic_compare_exchange_strong_explicit(
                &slot->state, &word, rc_state_word(generation, RC_EVICTED), memory_order_seq_cst,
                memory_order_acquire))
            return 1;
    }
    return 0;
}

/* The same of whoever is in the slot now. */
static inline int rc_slot_evict(rc_control *control, uint32_t index)
{
    return rc_slot_evict_one(control, index, rc_load_acquire(&control->readers[index].state) >> 8);
}

/* Evict all members of a group. */
static inline void rc_group_evict(rc_control *control, uint32_t group, uint32_t max_readers)
{
    for (uint32_t i = 0; i < max_readers; i++) {
        /* acquire: pairs with the swap of the state in rc_member_enter(), after the group is set */
        uint64_t word = rc_load_acquire(&control->readers[i].state);
        if (rc_load(&control->readers[i].group) == group + 1)
            rc_slot_evict_one(control, i, word >> 8);
    }
}

/* End a group's hold on the ring: its members are evicted, and the writer minds its floor no more, since
 * it minds those of groups that are ACTIVE or HOLDING alone. 0 if it holds nothing. The state changes
 * before the slots are looked at, and a member that joins looks at the state after its slot shows it: so
 * either it is evicted here, or it finds the group demoted. Only the writer does this, so it overwrites
 * nothing before all are evicted; rc_writer_resume() does the rest for one that died in the midst. */
static inline int rc_group_demote(rc_control *control, uint32_t group, uint32_t max_readers)
{
    rc_group_row *row = &control->group_rows[group];
    uint64_t word = rc_load_acquire(&row->state);
    if (!rc_group_state_holds(word) ||
        !atomic_compare_exchange_strong_explicit(&row->state, &word,
                                                 rc_group_state(word >> 8, RC_GROUP_DEMOTED),
                                                 memory_order_seq_cst, memory_order_relaxed))
        return 0;
    RC_FAULT(90);
    rc_fence(); /* pairs with the fence in rc_member_enter() */
    rc_group_evict(control, group, max_readers);
    RC_FAULT(91);
    return 1;
}

/* ---- the writer -------------------------------------------------------------------------- */

/* What the writer remembers of a group. */
typedef struct rc_group_memory {
    uint64_t generation; /* of the row when the rest was learned */
    uint64_t floor;      /* the highest that was seen */
    uint64_t sequence;   /* RC_ROUND_ROBIN: whose turn it is was foretold up to here */
    uint32_t turn;       /* the slot whose turn is last before it */
    uint32_t woken;      /* RC_ANY: the slot that was woken last */
} rc_group_memory;

typedef struct rc_writer {
    rc_header *header;
    rc_control *control;
    rc_descriptor *descriptors;
    uint8_t *arena;
    sem_t **readers_wake; /* one for each reader slot */
    sem_t *space;
    uint64_t slots, capacity, max_message;
    uint64_t next;          /* sequence of the next message */
    uint64_t published;     /* what header.published holds */
    uint64_t head;          /* position of the first byte not used by a message */
    uint64_t gate;          /* everything below may be overwritten */
    uint64_t gate_position; /* the same in bytes */
    uint64_t held;          /* bytes from head on that a stream received and that are no message yet */
    uint64_t evictions;     /* readers evicted for an impossible cursor */
    uint64_t nudged;        /* sequence at which choosers that lag were last woken */
    uint64_t nudged_position; /* the head then */
    rc_topic *topics;
    const _Atomic uint64_t *interest;
    uint32_t interest_stride;
    uint32_t max_topics;
    uint32_t topic_count;
    uint32_t announced; /* rows for whose arrival readers were woken, or are about to be */
    uint32_t max_readers;
    uint32_t epoch;
    uint32_t wants; /* control.wanted is up */
    rc_group_view view;
    rc_geometry geometry;
    rc_group_memory groups[RC_GROUPS_MAX];
} rc_writer;

static inline void rc_writer_map(rc_writer *w, void *data, void *control, const rc_geometry *g,
                                 sem_t **readers_wake, sem_t *space)
{
    memset(w, 0, sizeof *w);
    w->header = data;
    w->control = control;
    w->descriptors = (rc_descriptor *)((uint8_t *)data + RC_DESCRIPTORS_OFFSET);
    w->arena = (uint8_t *)(w->descriptors + g->slots);
    w->readers_wake = readers_wake;
    w->space = space;
    w->slots = g->slots;
    w->capacity = g->capacity;
    w->max_message = g->max_message;
    w->max_readers = g->max_readers;
    w->topics = (rc_topic *)((uint8_t *)data + rc_topics_offset(g));
    w->interest = rc_interest_at(control, g);
    w->interest_stride = rc_interest_stride(g);
    w->max_topics = g->max_topics;
    w->view = rc_group_view_of(data, control, g);
    w->geometry = *g;
}

static inline void rc_writer_sign(rc_writer *w, uint32_t epoch, uint64_t pid, uint64_t now_ns)
{
    w->epoch = epoch;
    rc_store(&w->header->epoch, epoch);
    rc_store(&w->header->writer_pid, pid);
    rc_store(&w->header->writer_since_ns, now_ns);
    rc_store_release(&w->header->state, RC_RING_OPEN);
}

/* Position of sequence in [gate, published]: where its payload starts, or the frame header before
 * it; for the next message the start of the unpublished bytes. */
static inline uint64_t rc_writer_position(const rc_writer *w, uint64_t sequence)
{
    if (sequence >= w->published)
        return w->head;
    rc_descriptor m;
    rc_descriptor_copy(&m, &w->descriptors[sequence & (w->slots - 1)]);
    return m.f.position - rc_header_bytes(&m, w->capacity);
}

/* What the writer remembers of this group, and not of an earlier one of the row; NULL if it does not hold
 * the ring. */
static inline rc_group_memory *rc_writer_group(rc_writer *w, uint32_t group)
{
    rc_group_memory *memory = &w->groups[group];
    /* acquire: pairs with the release in rc_group_hold(); loaded before the floor */
    uint64_t state = rc_load_acquire(&w->control->group_rows[group].state);
    if (!rc_group_state_holds(state))
        return NULL;
    if (rc_unlikely(memory->generation != state >> 8))
        *memory = (rc_group_memory){.generation = state >> 8, .woken = RC_NOBODY};
    return memory;
}

/* Move the floor of a group over messages that it does not want, which may be while nobody of it is
 * awake. Below the gate it is one that joins. */
static inline void rc_writer_pass_unwanted(rc_writer *w, uint32_t group)
{
    rc_group_row *row = &w->control->group_rows[group];
    rc_group_memory *memory = rc_writer_group(w, group);
    uint64_t floor = rc_load_acquire(&row->floor), next = floor;
    if (!memory || floor < w->gate)
        return;
    for (; next < w->published; next++) {
        const rc_descriptor *d = &w->descriptors[next & (w->slots - 1)];
        if (rc_group_wants(&w->view, row, group, d->f.topic, d->f.kind, d->f.destination))
            break;
    }
    if (next > floor && rc_writer_group(w, group) == memory &&
        memory->generation == rc_load(&row->state) >> 8)
        /* if a member was faster, it has come at least as far, or the next look helps */
        atomic_compare_exchange_strong_explicit(&row->floor, &floor, next, memory_order_acq_rel,
                                                memory_order_relaxed);
}

/* The lowest floor of the groups, at most `lowest`. One above `published` is not believed: its group
 * loses its hold; nor is one that goes back. */
static inline uint64_t rc_lowest_floor(rc_writer *w, uint64_t lowest)
{
    /* acquire: pairs with the release in rc_group_hold(), so the floor is there before the bit */
    uint64_t bits = rc_load_acquire(&w->control->groups) & RC_GROUP_MASK;
    for (; bits; bits &= bits - 1) {
        uint32_t group = (uint32_t)__builtin_ctzll(bits);
        rc_group_memory *memory = rc_writer_group(w, group);
        if (!memory)
            continue;
        /* acquire: pairs with the release in rc_group_advance(): all that was done below is done */
        uint64_t floor = rc_load_acquire(&w->control->group_rows[group].floor);
        if (floor > w->published) {
            w->evictions += (uint64_t)rc_group_demote(w->control, group, w->max_readers);
            continue;
        }
        if (floor > memory->floor)
            memory->floor = floor;
        if (memory->floor < lowest)
            lowest = memory->floor;
    }
    return lowest;
}

/* Lowest cursor of the gating readers, at most `published`. A cursor above that is a lie or a
 * wild store: its owner is evicted rather than believed. An evicted reader's is passed over; a
 * joiner that follows it in the slot is not, if it was there before the caller's fence, since it
 * changes the state before it sets the bit. */
static inline uint64_t rc_lowest_cursor(rc_writer *w)
{
    uint64_t lowest = w->published;
    for (uint32_t base = 0; base < w->max_readers; base += 64) {
        /* acquire: pairs with the owner's fetch_and when it leaves, so its last reads are done */
        uint64_t bits = rc_load_acquire(&w->control->gating[base / 64]);
        if (w->max_readers - base < 64)
            bits &= rc_bit(w->max_readers - base) - 1;
        for (; bits; bits &= bits - 1) {
            uint32_t index = base + (uint32_t)__builtin_ctzll(bits);
            /* acquire: pairs with the release in rc_reader_flush() */
            uint64_t cursor = rc_load_acquire(&w->control->readers[index].cursor);
            if (rc_likely(cursor >= lowest && cursor <= w->published))
                continue;
            if ((rc_load_acquire(&w->control->readers[index].state) & 0xff) == RC_EVICTED)
                continue;
            if (cursor > w->published)
                w->evictions += (uint64_t)rc_slot_evict(w->control, index);
            else
                lowest = cursor;
        }
    }
    return rc_lowest_floor(w, lowest);
}

/* Take bits of sleepers, and post each that was still there: acq_rel, since whoever's bit this takes is
 * owed exactly one token. Returns whose. */
static inline uint64_t rc_writer_post(rc_writer *w, _Atomic uint64_t *sleepers, uint32_t base,
                                      uint64_t whom)
{
    uint64_t taken = atomic_fetch_and_explicit(sleepers, ~whom, memory_order_acq_rel) & whom;
    RC_FAULT(20);
    for (uint64_t bits = taken; bits; bits &= bits - 1) {
        uint32_t index = base + (uint32_t)__builtin_ctzll(bits);
        if (index < w->max_readers)
            rc_post(w->readers_wake[index]);
    }
    return taken;
}

static inline uint64_t rc_writer_interest(const rc_writer *w, uint32_t row, uint32_t word)
{
    /* relaxed: the caller's fence orders it; pairs with rc_filter_mark() */
    return rc_load(&w->interest[(uint64_t)row * w->interest_stride + word]);
}

/* Which of these sleeping choosers want a message from `first` on, or wait for topics, if some have
 * arrived. No message of them is overwritten yet, since a batch is never longer than the ring. */
static inline uint64_t rc_writer_wanting(const rc_writer *w, uint32_t word, uint64_t sleepers,
                                         uint64_t first, int arrivals)
{
    uint64_t found = 0;
    if (arrivals)
        found = rc_writer_interest(w, w->max_topics + RC_INTEREST_ARRIVALS, word);
    for (; first < w->next && (sleepers & ~found); first++) {
        const rc_descriptor *d = &w->descriptors[first & (w->slots - 1)];
        if (rc_unlikely(d->f.destination != 0)) {
            if ((d->f.destination - 1u) / 64 == word)
                found |= rc_bit(d->f.destination - 1u);
            continue;
        }
        uint32_t row = rc_interest_row(w->max_topics, w->topic_count, d->f.topic, d->f.kind);
        found |= rc_writer_interest(w, row, word);
    }
    return sleepers & found;
}

/* Which of these sleeping choosers have their cursor below a sequence. A cursor that is just being
 * stored may look lower than it is, which costs a wake-up: so a relaxed load does. */
static inline uint64_t rc_writer_lagging(const rc_writer *w, uint32_t base, uint64_t sleepers,
                                         uint64_t sequence)
{
    uint64_t found = 0;
    for (uint64_t bits = sleepers; bits; bits &= bits - 1) {
        uint32_t index = base + (uint32_t)__builtin_ctzll(bits);
        if (index < w->max_readers && rc_load(&w->control->readers[index].cursor) < sequence)
            found |= rc_bit(index);
    }
    return found;
}

/* Who of a round-robin group has the turn at a sequence that it wants: counted from what its members
 * have dealt out, over what they have not. */
static inline uint32_t rc_writer_foretell(rc_writer *w, uint32_t group, uint64_t sequence)
{
    rc_group_row *row = &w->control->group_rows[group];
    rc_group_memory *memory = &w->groups[group];
    uint64_t head = rc_load(&row->head), dealt = rc_head_sequence(head);
    if (dealt > memory->sequence && dealt <= sequence) {
        memory->sequence = dealt;
        memory->turn = rc_head_turn(head);
    }
    if (memory->sequence < w->gate)
        memory->sequence = w->gate;
    for (; memory->sequence <= sequence; memory->sequence++) {
        const rc_descriptor *d = &w->descriptors[memory->sequence & (w->slots - 1)];
        if (rc_group_wants(&w->view, row, group, d->f.topic, d->f.kind, d->f.destination))
            memory->turn = rc_group_next(row->members, w->max_readers, memory->turn);
    }
    return memory->turn;
}

/* RC_ANY: post one sleeper. `called` goes up before its bit is taken, so whoever finds its bit gone finds it
 * up, and takes it down: rc_member_answer(). */
static inline void rc_writer_call(rc_writer *w, uint32_t group)
{
    rc_group_row *row = &w->control->group_rows[group];
    uint32_t slot = w->groups[group].woken;
    rc_store(&row->called, 1);
    for (uint32_t i = 0; i < w->max_readers; i++) {
        slot = rc_group_next(row->asleep, w->max_readers, slot);
        if (slot >= w->max_readers)
            break;
        w->groups[group].woken = slot;
        if (rc_writer_post(w, &row->asleep[slot / 64], slot & ~63u, rc_bit(slot)))
            return;
    }
    rc_store(&row->called, 0); /* nobody sleeps any more */
}

static inline int rc_group_has_sleepers(const rc_group_row *row, uint32_t max_readers)
{
    uint64_t any = 0;
    for (uint32_t base = 0; base < max_readers; base += 64)
        any |= rc_load(&row->asleep[base / 64]);
    return any != 0;
}

/* Wake whom of a group that has sleepers this message is for. */
static inline void rc_writer_wake_for(rc_writer *w, uint32_t group, uint64_t sequence)
{
    rc_group_row *row = &w->control->group_rows[group];
    const rc_descriptor *d = &w->descriptors[sequence & (w->slots - 1)];
    if (!rc_group_wants(&w->view, row, group, d->f.topic, d->f.kind, d->f.destination))
        return;
    uint32_t balance = rc_load(&row->balance), slot;
    /* One that was faster than this loop has it, or has dealt it out and woken whom it is for. */
    if (balance != RC_KEY && rc_head_sequence(rc_load(&row->head)) > sequence)
        return;
    switch (balance) {
    case RC_KEY: {
        const _Atomic uint64_t *partitions = rc_partitions_at(w->control, &w->geometry, group);
        uint32_t p = rc_group_partition(&w->view, d->f.key, d->f.topic);
        slot = rc_partition_owner(rc_load(&partitions[p])) - 1;
        break;
    }
    case RC_ROUND_ROBIN:
        slot = rc_writer_foretell(w, group, sequence);
        break;
    default:
        rc_writer_call(w, group);
        return;
    }
    if (slot < w->max_readers)
        rc_writer_post(w, &row->asleep[slot / 64], slot & ~63u, rc_bit(slot));
}

/* Wake a sleeper of each group for each message from `first` on that the group wants, as long as it has
 * some, and unless one was called and has not answered yet: that one calls the next if there is more than
 * it takes. After the fence in rc_writer_release(), which pairs with those in rc_member_sleep() and
 * rc_member_answer(). */
static inline void rc_writer_wake_groups(rc_writer *w, uint64_t first)
{
    uint64_t bits = rc_load(&w->control->groups) & RC_GROUP_MASK;
    for (; bits; bits &= bits - 1) {
        uint32_t group = (uint32_t)__builtin_ctzll(bits);
        rc_group_row *row = &w->control->group_rows[group];
        if (rc_load(&row->called))
            continue;
        for (uint64_t s = first; s < w->next; s++) {
            if (rc_likely(!rc_group_has_sleepers(row, w->max_readers)) || !rc_writer_group(w, group))
                break;
            rc_writer_wake_for(w, group, s);
        }
    }
}

/* An eighth of the ring was filled since choosers that lag were woken: the sequence below which a cursor
 * lags now; else 0. One that has moved since, half-way to here at least, sleeps on. */
static inline uint64_t rc_writer_nudge(rc_writer *w)
{
    if (rc_likely((w->next - w->nudged) * RC_NUDGES < w->slots &&
                  (w->head - w->nudged_position) * RC_NUDGES < w->capacity))
        return 0;
    uint64_t middle = w->nudged + (w->next - w->nudged + 1) / 2;
    w->nudged = w->next;
    w->nudged_position = w->head;
    return middle;
}

/* Wake the sleeping choosers that want a message from `first` on, or topics that have arrived, or lag. */
static inline void rc_writer_wake_choosers(rc_writer *w, uint64_t first, int arrivals)
{
    uint64_t lagging = rc_writer_nudge(w);
    for (uint32_t base = 0; base < w->max_readers; base += 64) {
        _Atomic uint64_t *choosers = &w->control->choosers[base / 64];
        uint64_t bits = rc_load(choosers), whom = 0;
        if (bits)
            whom = rc_writer_wanting(w, base / 64, bits, first, arrivals);
        if (bits && lagging)
            whom |= rc_writer_lagging(w, base, bits, lagging);
        if (whom)
            rc_writer_post(w, choosers, base, whom);
    }
}

/* Wake those who sleep and take everything, and the choosers as above. After the fence in
 * rc_writer_release(), so the loads of bits can be relaxed. */
static inline void rc_writer_wake(rc_writer *w, uint64_t first)
{
    uint32_t count = w->topic_count; /* a thread may add one while another waits for room */
    uint64_t asleep = 0;
    for (uint32_t base = 0; base < w->max_readers; base += 64) {
        _Atomic uint64_t *waiters = &w->control->waiters[base / 64];
        uint64_t bits = rc_load(waiters);
        if (rc_unlikely(bits))
            rc_writer_post(w, waiters, base, bits);
        asleep |= rc_load(&w->control->choosers[base / 64]);
    }
    if (rc_unlikely(asleep))
        rc_writer_wake_choosers(w, first, count != w->announced);
    if (rc_unlikely(rc_load(&w->control->groups)))
        rc_writer_wake_groups(w, first);
    w->announced = count;
}

/* Wake the sleeping choosers whose cursor stands below a sequence. After the fence in rc_writer_want(). */
static inline void rc_writer_wake_lagging(rc_writer *w, uint64_t sequence)
{
    for (uint32_t base = 0; base < w->max_readers; base += 64) {
        _Atomic uint64_t *choosers = &w->control->choosers[base / 64];
        uint64_t whom = rc_writer_lagging(w, base, rc_load(choosers), sequence);
        if (whom)
            rc_writer_post(w, choosers, base, whom);
    }
}

/* Make all that was put known, and wake those who sleep. One release and one fence a batch. */
static inline void rc_writer_release(rc_writer *w)
{
    uint64_t first = w->published;
    if (first == w->next)
        return;
    w->published = w->next;
    RC_FAULT(10);
    rc_store_release(&w->header->published, w->published); /* acquire: rc_reader_available() */
    RC_FAULT(11);
    rc_fence(); /* pairs with the fence in rc_reader_sleep() */
    rc_writer_wake(w, first);
    RC_FAULT(12);
}

static inline uint64_t rc_align(uint64_t position)
{
    return (position + RC_ALIGNMENT - 1) & ~(uint64_t)(RC_ALIGNMENT - 1);
}

/* Where a payload of this length starts: at head, or at the arena's start if it would be cut. */
static inline uint64_t rc_writer_place(const rc_writer *w, uint64_t length)
{
    uint64_t offset = w->head & (w->capacity - 1);
    return offset + length <= w->capacity ? w->head : w->head + (w->capacity - offset);
}

static inline int rc_writer_fits(const rc_writer *w, uint64_t end)
{
    return w->next - w->gate < w->slots && end - w->gate_position <= w->capacity;
}

/* The lowest gate in [gate, limit] that leaves `messages` free descriptors and lets bytes up to
 * `end` be written; limit if none does. Positions grow with sequences, so a bisection finds it. */
static inline uint64_t rc_gate_for(const rc_writer *w, uint64_t messages, uint64_t end,
                                   uint64_t limit)
{
    uint64_t low = w->gate, high = limit;
    uint64_t position = end > w->capacity ? end - w->capacity : 0;
    if (w->next + messages > w->slots && w->next + messages - w->slots > low)
        low = w->next + messages - w->slots;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (rc_writer_position(w, middle) >= position)
            high = middle;
        else
            low = middle + 1;
    }
    return low < limit ? low : limit;
}

/* The gate the writer would like for one more message that ends at `end`: what is needed and a
 * sixteenth of the ring, so that a full ring is not looked over anew for every message. */
static inline uint64_t rc_gate_wished(const rc_writer *w, uint64_t end, uint64_t limit)
{
    return rc_gate_for(w, 1 + w->slots / 16, end + w->capacity / 16, limit);
}

/* Move the gate up if a message that ends at `end` needs it and the readers let it. */
static inline int rc_writer_make_room(rc_writer *w, uint64_t end)
{
    rc_writer_release(w); /* readers can't free what they have not been shown */
    /* acquire: pairs with the release in rc_group_hold() */
    uint64_t bits = rc_load_acquire(&w->control->groups) & RC_GROUP_MASK;
    for (; bits; bits &= bits - 1)
        rc_writer_pass_unwanted(w, (uint32_t)__builtin_ctzll(bits));
    uint64_t lowest = rc_lowest_cursor(w);
    if (lowest <= w->gate)
        return rc_writer_fits(w, end);
    uint64_t gate = rc_gate_wished(w, end, lowest);
    rc_store(&w->header->gate, gate);
    RC_FAULT(30);
    rc_fence(); /* pairs with the fence in rc_reader_join() */
    lowest = rc_lowest_cursor(w);
    if (rc_unlikely(lowest < gate)) {
        gate = lowest > w->gate ? lowest : w->gate;
        rc_store(&w->header->gate, gate);
    }
    /* The payload and descriptor stores that this allows come after the fence; it pairs with those
     * in rc_reader_intact(), and a successor's look comes after the writer's death. */
    rc_store(&w->header->settled, gate);
    atomic_thread_fence(memory_order_release);
    w->gate_position = rc_writer_position(w, gate);
    w->gate = gate;
    RC_FAULT(31);
    return rc_writer_fits(w, end);
}

static inline void rc_writer_want_nothing(rc_writer *w)
{
    rc_store(&w->control->wanted, 0);
    rc_store(&w->control->enough, 0);
    w->wants = 0;
}

/* Room for `length` contiguous bytes and a descriptor. 1 and *start, or 0: the ring is full. */
static inline int rc_writer_room(rc_writer *w, uint64_t length, uint64_t *start)
{
    *start = rc_writer_place(w, length);
    if (rc_unlikely(!rc_writer_fits(w, *start + length)) &&
        !rc_writer_make_room(w, *start + length))
        return 0;
    if (rc_unlikely(w->wants)) /* what was wanted is there */
        rc_writer_want_nothing(w);
    return 1;
}

/* Describe the next message, whose bytes stand at `start`. Not known to batch readers and
 * sleepers before rc_writer_release(). */
static inline void rc_writer_commit(rc_writer *w, rc_descriptor *message, uint64_t start)
{
    rc_descriptor *d = &w->descriptors[w->next & (w->slots - 1)];
    /* Readers have this line, from the last time round: ask for it before it is written. */
    __builtin_prefetch(&w->descriptors[(w->next + RC_AHEAD_MESSAGES) & (w->slots - 1)], 1);
    message->f.position = start;
    message->f.epoch = w->epoch;
    rc_descriptor_copy(d, message);
    if (rc_unlikely(message->f.destination != 0))
        rc_store(&w->header->destined, w->next + 1); /* before seq1: see rc_reader_may_decline() */
    RC_FAULT(2);
    /* release: pairs with the acquire in rc_reader_peek(); payload and fields come before */
    rc_store_release(&d->words[0], w->next + 1);
    RC_FAULT(3);
    if (message->f.topic - 1 < w->topic_count) /* 0 is none of them */
        rc_topic_note(&w->topics[message->f.topic - 1], message, w->next + 1);
    RC_FAULT(4);
    w->head = rc_align(start + message->f.length);
    w->next++;
}

/* Copy one message in. `message` carries topic, time, kind and so on; 0: the ring is full. */
static inline int rc_writer_try_put(rc_writer *w, rc_descriptor *message, const uint8_t *bytes,
                                    uint32_t length)
{
    uint64_t start;
    if (!rc_writer_room(w, length, &start))
        return 0;
    uint64_t ahead = start + length + RC_AHEAD_BYTES; /* readers have these lines, too */
    __builtin_prefetch(w->arena + (ahead & (w->capacity - 1)), 1);
    __builtin_prefetch(w->arena + ((ahead + 64) & (w->capacity - 1)), 1);
    RC_FAULT(0);
    rc_copy_in(w->arena + (start & (w->capacity - 1)), bytes, length);
    RC_FAULT(1);
    message->f.length = length;
    rc_writer_commit(w, message, start);
    return 1;
}

/* Say which cursor is needed for a message of this length, then look once more. Readers store
 * their cursors at every message while something is wanted. 1: there is room after all. */
static inline int rc_writer_want(rc_writer *w, uint64_t length)
{
    uint64_t end = rc_writer_place(w, length) + length;
    rc_writer_release(w);
    /* 0 means that nobody waits, so cursors are stored plus one */
    rc_store(&w->control->wanted, rc_gate_for(w, 1, end, w->published) + 1);
    rc_store(&w->control->enough, rc_gate_wished(w, end, w->published) + 1);
    w->wants = 1;
    /* pairs with the fences in rc_have_let_go(), rc_wake_writer() and rc_reader_sleep() */
    rc_fence();
    if (rc_writer_make_room(w, end))
        return 1;
    rc_writer_wake_lagging(w, rc_load(&w->control->wanted) - 1);
    return 0;
}

/* The same before a spin or after a try that failed. A token that comes of an earlier one is taken
 * back, so that tokens do not pile up under a writer that never sleeps. */
static inline int rc_writer_hint(rc_writer *w, uint64_t length)
{
    (void)sem_trywait(w->space);
    return rc_writer_want(w, length);
}

/* Want, look, and sleep until a reader crosses what is wanted or the deadline comes. Returns 1 if
 * there may be room. Bounded: at most RC_ROOM_SLICE_NS. */
static inline int rc_writer_sleep(rc_writer *w, uint64_t length, int64_t deadline_ns)
{
    if (rc_writer_want(w, length))
        return 1;
    int64_t slice = rc_now_ns() + RC_ROOM_SLICE_NS;
    return rc_take_token_until(w->space, slice < deadline_ns ? slice : deadline_ns);
}

/* Look for room until the deadline, spinning; at most RC_ROOM_SLICE_NS. 1: there is room. */
static inline int rc_writer_spin(rc_writer *w, uint64_t length, int64_t deadline_ns,
                                 rc_wait_kind kind)
{
    int64_t limit = rc_now_ns() + RC_ROOM_SLICE_NS;
    uint32_t round = 0;
    uint64_t start;
    if (limit > deadline_ns)
        limit = deadline_ns;
    do {
        for (int i = 0; i < RC_SPINS_PER_CLOCK; i++) {
            if (rc_writer_room(w, length, &start))
                return 1;
            rc_pause(kind);
        }
        rc_offer_core(kind, round++);
    } while (rc_now_ns() < limit);
    return 0;
}

/* Wait for room as `strategy` says, at most RC_ROOM_SLICE_NS and at most until the deadline. What
 * is wanted is stored before spinning, too: it makes readers store their cursors, and warns one that
 * is about to sleep on a message it holds. */
static inline int rc_writer_wait(rc_writer *w, uint64_t length, rc_wait_strategy strategy,
                                 int64_t deadline_ns)
{
    if (rc_writer_hint(w, length))
        return 1;
    if (strategy.kind != RC_BLOCKING)
        return rc_writer_spin(w, length, deadline_ns, strategy.kind);
    if (strategy.spin_ns > 0) {
        int64_t spin_until = rc_now_ns() + strategy.spin_ns;
        if (spin_until > deadline_ns)
            spin_until = deadline_ns;
        if (rc_writer_spin(w, length, spin_until, RC_BLOCKING))
            return 1;
    }
    return rc_writer_sleep(w, length, deadline_ns);
}

/* Match the newest row of the topic table with what groups want. */
static inline void rc_writer_match_newest(rc_writer *w)
{
    rc_fence(); /* pairs with the fence in rc_group_make() */
    for (uint32_t group = 0; group < RC_GROUPS_MAX && w->topic_count; group++)
        if ((rc_load_acquire(&w->control->group_rows[group].state) & 0xff) != RC_GROUP_NONE)
            rc_group_match(&w->view, w->control, &w->geometry, group, w->topic_count);
}

/* Add a topic to the table; its id, or 0 if the table is full. The name is at most RC_TOPIC_NAME_MAX
 * bytes without a NUL, and not there yet. */
static inline uint32_t rc_writer_add_topic(rc_writer *w, const char *name, uint32_t length,
                                           uint64_t key)
{
    if (w->topic_count >= w->max_topics)
        return 0;
    rc_topic *row = &w->topics[w->topic_count];
    memset(row, 0, sizeof *row); /* a writer may have died in it */
    memcpy(row->name, name, length);
    rc_store(&row->key, key);
    RC_FAULT(80);
    rc_store_release(&w->header->topics, ++w->topic_count); /* acquire: rc_topics_count() */
    RC_FAULT(81);
    rc_writer_match_newest(w);
    return w->topic_count; /* those who may want it are woken by the next rc_writer_release() */
}

/* The dead writer may not have counted the last messages that it put. */
static inline void rc_writer_recount(rc_writer *w, uint64_t first, uint64_t next)
{
    for (; first < next; first++) {
        const rc_descriptor *d = &w->descriptors[first & (w->slots - 1)];
        uint32_t topic = d->f.topic;
        if (topic - 1 < w->topic_count && rc_load(&w->topics[topic - 1].seq1) <= first)
            rc_topic_note(&w->topics[topic - 1], d, first + 1);
    }
}

/* Take over from a dead writer, whose lock the caller holds. Messages it had committed are
 * published, none is rewritten; a message it had not finished was never seen and is gone.
 * Returns 0 if the ring's contents are impossible. */
static inline int rc_writer_resume(rc_writer *w)
{
    uint64_t next = rc_load_acquire(&w->header->published);
    uint64_t gate = rc_load_acquire(&w->header->settled);
    if (gate > next || next - gate > w->slots)
        return 0;
    for (uint64_t i = 0; i < w->slots; i++, next++) /* acquire: pairs with rc_writer_commit() */
        if (rc_load_acquire(&w->descriptors[next & (w->slots - 1)].words[0]) != next + 1)
            break;
    if (next - gate > w->slots)
        return 0;
    w->topic_count = rc_topics_count(w->header, w->max_topics);
    w->announced = 0; /* the dead writer may have added rows and not woken anybody */
    rc_writer_recount(w, rc_load(&w->header->published), next);
    rc_writer_match_newest(w); /* the dead writer may not have come to it, nor to its evictions */
    for (uint32_t group = 0; group < RC_GROUPS_MAX; group++)
        if ((rc_load_acquire(&w->control->group_rows[group].state) & 0xff) == RC_GROUP_DEMOTED)
            rc_group_evict(w->control, group, w->max_readers);
    w->next = next;
    w->published = next;
    w->nudged = next;
    if (next > 0) {
        const rc_descriptor *last = &w->descriptors[(next - 1) & (w->slots - 1)];
        if (last->f.length > w->max_message ||
            (last->f.position & (w->capacity - 1)) + last->f.length > w->capacity)
            return 0;
        w->head = rc_align(last->f.position + last->f.length);
    }
    w->nudged_position = w->head;
    /* Readers that joined meanwhile saw this gate or a higher one that was never used. */
    rc_store_release(&w->header->gate, gate);
    w->gate = gate;
    w->gate_position = rc_writer_position(w, gate);
    /* The head is aligned, and what a stream received need not be: the last message may have ended
     * before it, where the ring was full. */
    if (w->head < w->gate_position || w->head - w->gate_position >= w->capacity + RC_ALIGNMENT)
        return 0;
    rc_writer_want_nothing(w);
    rc_store_release(&w->header->published, next);
    return 1;
}

static inline void rc_writer_wake_all(rc_writer *w)
{
    for (uint32_t i = 0; i < w->max_readers; i++)
        if ((rc_load(&w->control->readers[i].state) & 0xff) != RC_FREE)
            rc_post(w->readers_wake[i]);
}

/* The end: readers drain what is there, then see it. */
static inline void rc_writer_end(rc_writer *w)
{
    rc_writer_release(w);
    rc_store_release(&w->header->state, RC_RING_CLOSED); /* acquire: rc_reader_nothing() */
    rc_fence(); /* pairs with the fence in rc_reader_sleep(): it sees the end, or is woken below */
    rc_writer_wake_all(w);
}

/* ---- the reader -------------------------------------------------------------------------- */

typedef enum rc_result {
    RC_MESSAGE = 1, /* one was taken */
    RC_EMPTY,       /* nothing to read now */
    RC_ENDED,       /* nothing to read, and the writer has closed the ring */
    RC_OVERRUN,     /* lossy only: messages are gone; call rc_reader_resync() */
    RC_STEP_DOWN,   /* lossless only: the writer asks; let go, then rc_reader_step_down() */
    RC_TAKEN_AWAY,  /* evicted */
    RC_IMPOSSIBLE,  /* the segment holds what no writer writes */
} rc_result;

typedef struct rc_reader {
    const rc_header *header;
    const rc_descriptor *descriptors;
    const uint8_t *arena;
    rc_control *control;
    rc_slot *slot;
    sem_t *wake, *space;
    uint64_t slots, capacity, max_message;
    uint64_t state;       /* what slot->state should hold */
    uint64_t next;        /* next sequence to take */
    uint64_t stored;      /* what slot->cursor holds */
    uint64_t unflushed;   /* payload bytes taken since */
    uint64_t flush_every; /* messages */
    uint64_t received, lost;
    uint64_t gap; /* messages missed just before `next` and not yet reported with a message */
    uint64_t skipped;
    const rc_filter *filter; /* NULL: does not choose among topics */
    uint64_t began; /* of a snapshot: `next` when it was taken; `unflushed` counts from there, too */
    uint32_t index;
    uint16_t lossy;
    uint16_t skip; /* a kind that is passed over; 0: none */
} rc_reader;

static inline void rc_reader_map(rc_reader *r, const void *data, void *control,
                                 const rc_geometry *g, uint32_t index, sem_t *wake, sem_t *space)
{
    memset(r, 0, sizeof *r);
    r->header = data;
    r->control = control;
    r->descriptors = (const rc_descriptor *)((const uint8_t *)data + RC_DESCRIPTORS_OFFSET);
    r->arena = (const uint8_t *)(r->descriptors + g->slots);
    r->slot = &r->control->readers[index];
    r->wake = wake;
    r->space = space;
    r->slots = g->slots;
    r->capacity = g->capacity;
    r->max_message = g->max_message;
    r->index = index;
    r->flush_every = g->slots / 8 < RC_FLUSH_MESSAGES ? g->slots / 8 : RC_FLUSH_MESSAGES;
    if (!r->flush_every)
        r->flush_every = 1;
}

/* First half of joining: the slot, whose lock the caller holds and which is FREE, becomes ours. */
static inline void rc_reader_claim(rc_reader *r, int lossy)
{
    uint64_t generation = rc_load_acquire(&r->slot->state) >> 8;
    r->lossy = (uint16_t)lossy;
    r->state = rc_state_word(generation, RC_JOINING);
    rc_store(&r->slot->policy, lossy ? RC_LOSSY : RC_BLOCK);
    rc_store(&r->slot->received, 0);
    rc_store(&r->slot->lost, 0);
    rc_store(&r->slot->skipped, 0);
    rc_store(&r->slot->group, 0);
    rc_store_release(&r->slot->state, r->state);
    rc_drain(r->wake);
    RC_FAULT(50);
}

/* Second half: start at `start`, or at the gate if that is past it; what lies between is lost.
 * 0: evicted already; free the slot and begin again. */
static inline int rc_reader_join(rc_reader *r, uint64_t start)
{
    uint64_t gate;
    rc_store(&r->slot->cursor, start);
    if (!r->lossy) {
        /* release: the cursor is in place before the bit that makes the writer look at it */
        atomic_fetch_or_explicit(&r->control->gating[r->index / 64], rc_bit(r->index),
                                 memory_order_release);
        RC_FAULT(51);
        rc_fence(); /* pairs with the fence in rc_writer_make_room() */
    }
    gate = rc_load_acquire(&r->header->gate);
    r->next = start > gate ? start : gate;
    r->gap = r->next - start;
    r->lost = r->gap;
    r->stored = r->next;
    rc_store_release(&r->slot->cursor, r->next);
    rc_store(&r->slot->lost, r->lost);
    RC_FAULT(52);
    uint64_t joined = rc_state_word(r->state >> 8, RC_ACTIVE);
    if (!atomic_compare_exchange_strong_explicit(&r->slot->state, &r->state, joined,
                                                 memory_order_acq_rel, memory_order_acquire))
        return 0;
    r->state = joined;
    return 1;
}

/* Is the slot still ours, so that what was just copied (or is about to be handed out) was not
 * overwritten? Call after the copy. The fence pairs with the order in rc_slot_evict(). A slot that
 * was freed since has another generation. */
static inline int rc_reader_holds(const rc_reader *r)
{
    rc_fence_acquire();
    uint64_t word = rc_load(&r->slot->state);
    return word >> 8 == r->state >> 8 && (word & 0xff) != RC_EVICTED;
}

/* Lossy: was the copy of `sequence` taken before the gate passed it? Pairs with the fence in
 * rc_writer_make_room(), between the store of `settled` and the first overwritten byte. */
static inline int rc_reader_intact(const rc_reader *r, uint64_t sequence)
{
    rc_fence_acquire();
    return rc_load(&r->header->settled) <= sequence;
}

static inline int rc_reader_within(const rc_reader *r, const rc_descriptor *m)
{
    return m->f.length <= r->max_message &&
           (m->f.position & (r->capacity - 1)) + m->f.length <= r->capacity;
}

static inline rc_result rc_reader_changed(const rc_reader *r)
{
    uint64_t word = rc_load_acquire(&r->slot->state);
    if (rc_likely(word == r->state))
        return RC_EMPTY;
    if (word == rc_demoting(r->state) && !r->lossy)
        return RC_STEP_DOWN;
    return RC_TAKEN_AWAY;
}

/* seq1 is not the next message's: why? */
static inline rc_result rc_reader_nothing(const rc_reader *r, uint64_t seq1)
{
    rc_result changed = rc_reader_changed(r);
    if (changed != RC_EMPTY)
        return changed;
    if (seq1 > r->next + 1) /* the slot holds a later message */
        return r->lossy && (seq1 - 1 - r->next) % r->slots == 0 ? RC_OVERRUN : RC_IMPOSSIBLE;
    /* acquire: pairs with the release in rc_writer_end(); the last message is visible before */
    if (rc_load_acquire(&r->header->state) != RC_RING_CLOSED)
        return RC_EMPTY;
    return rc_load_acquire(&r->descriptors[r->next & (r->slots - 1)].words[0]) > r->next
               ? RC_EMPTY /* it came in between: look again */
               : RC_ENDED;
}

/* Look at the next message; RC_MESSAGE fills *m, which is private memory. It is not taken yet:
 * rc_reader_advance() does that. In a lossy reader *m and the payload may be torn until
 * rc_reader_intact() says otherwise, but m always lies within the arena. */
static inline rc_result rc_reader_peek(const rc_reader *r, rc_descriptor *m)
{
    const rc_descriptor *d = &r->descriptors[r->next & (r->slots - 1)];
    uint64_t seq1 = rc_load_acquire(&d->words[0]); /* release: rc_writer_commit() */
    if (seq1 != r->next + 1)
        return rc_reader_nothing(r, seq1);
    rc_store(&m->words[0], seq1);
    rc_descriptor_copy(m, d);
    rc_fence_acquire(); /* evicted before the copy was whole? pairs as in rc_reader_holds() */
    if (rc_unlikely(rc_load(&r->slot->state) != r->state))
        return rc_reader_changed(r);
    if (rc_likely(rc_reader_within(r, m)))
        return RC_MESSAGE;
    return r->lossy && !rc_reader_intact(r, r->next) ? RC_OVERRUN : RC_IMPOSSIBLE;
}

/* What a reader has to know of a message to say whether it wants it. */
typedef struct rc_glance {
    uint32_t length, topic;
    uint16_t kind, destination;
    const rc_descriptor *at;
} rc_glance;

/* At a descriptor that may change meanwhile. Two words, moved in registers: what most messages that are
 * passed over cost is this. */
static inline rc_glance rc_reader_glance(const rc_descriptor *d)
{
    uint64_t second = rc_load(&d->words[2]), fifth = rc_load(&d->words[5]);
    struct {
        uint32_t length, topic;
    } size;
    struct {
        uint16_t kind, connection, destination, flags;
    } what;
    static_assert(sizeof size == sizeof second && sizeof what == sizeof fifth, "words");
    memcpy(&size, &second, sizeof size);
    memcpy(&what, &fifth, sizeof what);
    return (rc_glance){size.length, size.topic, what.kind, what.destination, d};
}

/* May this reader, which chooses no topics, not want some message from its next one on? Of those that it
 * has found published. */
static inline int rc_reader_may_decline(const rc_reader *r)
{
    return r->skip || rc_load(&r->header->destined) > r->next;
}

/* Is a message that has a destination for this reader, and not for one that had its slot before? */
static inline int rc_reader_is_meant(const rc_reader *r, rc_glance m)
{
    return m.destination == r->index + 1 && rc_load(&m.at->words[4]) == r->state >> 8;
}

/* Does this reader want a message? RC_WANTED, RC_UNWANTED, or RC_LEARN: match the topics that have
 * arrived, rc_filter_learn(), and ask again. */
static inline int rc_reader_wants(const rc_reader *r, rc_glance m)
{
    if (rc_unlikely(m.destination != 0))
        return rc_reader_is_meant(r, m) ? RC_WANTED : RC_UNWANTED;
    if (m.kind == r->skip && r->skip)
        return RC_UNWANTED;
    if (!r->filter || m.kind == RC_KIND_EVENT)
        return RC_WANTED;
    return rc_filter_wants(r->filter, m.topic);
}

/* The quick no of rc_reader_wants(), for most messages that a reader passes over: the topic is one of
 * the `known`, and not wanted. 0: ask rc_reader_wants(). */
static inline int rc_reader_declines(const rc_filter *filter, uint32_t known, rc_glance m)
{
    return m.topic - 1 < known && m.destination == 0 && m.kind != RC_KIND_EVENT &&
           !rc_filter_has(filter, m.topic);
}

/* How many topics rc_reader_declines() may judge. acquire: as in rc_filter_wants() */
static inline uint32_t rc_reader_knows(const rc_reader *r)
{
    return r->filter ? rc_load_acquire(&r->filter->known) : 0;
}

/* Pass over the messages that are there and not wanted, at most `most`; returns how many. What was
 * read of them holds unless they were overwritten meanwhile, and then none is passed over. */
static inline uint64_t rc_reader_pass(rc_reader *r, uint64_t most)
{
    uint64_t next = r->next, bytes = 0;
    uint32_t known = rc_reader_knows(r);
    for (; next - r->next < most; next++) {
        const rc_descriptor *d = &r->descriptors[next & (r->slots - 1)];
        if (rc_load_acquire(&d->words[0]) != next + 1) /* release: rc_writer_commit() */
            break;
        __builtin_prefetch(d + RC_AHEAD_PASSED);
        rc_glance m = rc_reader_glance(d);
        if (!rc_reader_declines(r->filter, known, m) && rc_reader_wants(r, m) != RC_UNWANTED)
            break;
        bytes += m.length;
    }
    uint64_t passed = next - r->next;
    if (passed == 0 || !(r->lossy ? rc_reader_intact(r, r->next) : rc_reader_holds(r)))
        return 0;
    r->next = next;
    r->skipped += passed;
    r->unflushed += bytes;
    return passed;
}

/* Of the n messages from the next one on, which lie together: copy the descriptors of those that are
 * wanted, at most `limit`, and return how many. *gone: how many messages that went through. It ends
 * before a message of a topic that has just arrived. Check rc_reader_holds() or rc_reader_intact()
 * after it. */
static inline uint64_t rc_reader_gather(const rc_reader *r, uint64_t n, rc_descriptor *out,
                                        uint64_t limit, uint64_t *gone)
{
    const rc_descriptor *d = &r->descriptors[r->next & (r->slots - 1)];
    uint64_t count = 0;
    uint32_t known = rc_reader_knows(r);
    for (*gone = 0; *gone < n; ++*gone) {
        __builtin_prefetch(&d[*gone + RC_AHEAD_PASSED]);
        rc_glance m = rc_reader_glance(&d[*gone]);
        if (rc_reader_declines(r->filter, known, m))
            continue;
        int wants = rc_reader_wants(r, m);
        if (wants == RC_LEARN || (wants == RC_WANTED && count == limit))
            break;
        if (wants == RC_UNWANTED)
            continue;
        rc_store(&out[count].words[0], rc_load(&d[*gone].words[0]));
        rc_descriptor_copy(&out[count++], &d[*gone]);
    }
    return count;
}

/* A message of any sequence; *m is private memory. 0: it is not there, or not any more. 1: it was when
 * it was looked at, which holds for its payload if rc_reader_intact() says so after the copy. */
static inline int rc_reader_look_up(const rc_reader *r, uint64_t sequence, rc_descriptor *m)
{
    const rc_descriptor *d = &r->descriptors[sequence & (r->slots - 1)];
    rc_store(&m->words[0], rc_load_acquire(&d->words[0])); /* release: rc_writer_commit() */
    rc_descriptor_copy(m, d);
    return m->f.seq1 == sequence + 1 && rc_reader_intact(r, sequence);
}

static inline void rc_reader_advance(rc_reader *r, uint64_t messages, uint64_t bytes)
{
    r->next += messages;
    r->received += messages;
    r->unflushed += bytes;
    r->gap = 0;
}

/* A cursor or floor was at `before` and is at `upto`: wake the writer if that is what it waits for. */
static inline void rc_have_let_go(rc_control *control, uint64_t before, uint64_t upto, sem_t *space)
{
    rc_fence(); /* pairs with the fence in rc_writer_want() */
    uint64_t enough = rc_load(&control->enough);
    if (enough && before < enough - 1 && upto >= enough - 1 &&
        atomic_compare_exchange_strong_explicit(&control->enough, &enough, 0, memory_order_acq_rel,
                                                memory_order_relaxed))
        rc_post(space);
}

/* Let the writer have everything below `upto`, and wake it if that is what it waits for. */
static inline void rc_reader_flush(rc_reader *r, uint64_t upto)
{
    uint64_t before = r->stored;
    if (upto <= before)
        return;
    /* release: every read of the messages below is done; pairs with rc_lowest_cursor() */
    rc_store_release(&r->slot->cursor, upto);
    rc_store(&r->slot->received, r->received);
    rc_store(&r->slot->skipped, r->skipped);
    r->stored = upto;
    r->unflushed = 0;
    if (r->lossy)
        return;
    rc_have_let_go(r->control, before, upto, r->space);
}

/* Does the writer wait for a cursor above the one stored? */
static inline int rc_reader_blocks(const rc_reader *r)
{
    /* relaxed: a sleeper's fence orders it; pairs with the fence in rc_writer_want() */
    uint64_t wanted = rc_load(&r->control->wanted);
    return !r->lossy && wanted && r->stored < wanted - 1;
}

/* Would a cursor above the one stored help a writer that waits? It may still wait for `enough` after
 * this reader has stored what is wanted, if it had looked just before. */
static inline int rc_reader_could_help(const rc_reader *r)
{
    uint64_t enough = rc_load(&r->control->enough); /* relaxed, as above */
    return rc_reader_blocks(r) || (!r->lossy && enough && r->stored < enough - 1);
}

/* Is it time to flush? After a batch of messages or bytes, or while the writer waits for room. */
static inline int rc_reader_flush_due(const rc_reader *r)
{
    return r->next - r->stored >= r->flush_every || r->unflushed >= r->capacity / 8 ||
           rc_load(&r->control->wanted) != 0;
}

/* How many messages can be taken at once, at most `limit`, such that descriptors and payloads are
 * contiguous: a batch stops where either ring starts over. Call after rc_reader_peek() has found
 * the first, which is there even if its batch is not released yet (or never was: its writer died). */
static inline uint64_t rc_reader_available(const rc_reader *r, uint64_t limit)
{
    uint64_t published = rc_load_acquire(&r->header->published); /* release: rc_writer_release() */
    uint64_t first = r->next & (r->slots - 1);
    uint64_t n = published - r->next;
    if (published <= r->next || n > r->slots)
        return 1;
    if (n > limit)
        n = limit;
    if (n > r->slots - first)
        n = r->slots - first;
    if (n < 2)
        return n;
    /* Positions grow, so the first message of the arena's next round is found by bisection. */
    const rc_descriptor *d = r->descriptors + first;
    uint64_t round = rc_load(&d[0].words[1]) & ~(r->capacity - 1), low = 1, high = n;
    if ((rc_load(&d[n - 1].words[1]) & ~(r->capacity - 1)) == round)
        return n;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if ((rc_load(&d[middle].words[1]) & ~(r->capacity - 1)) == round)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Lossy batches: how many of the first n messages to copy, and in *span how many bytes, an eighth
 * of the arena unless the first alone has more. What stands there may be torn: the descriptors are
 * believed only as far as they lie in order within one round of the arena, and rc_reader_intact()
 * has the last word after the copy. 0: not even the first makes sense. */
static inline uint64_t rc_reader_fitting(const rc_reader *r, const rc_descriptor *d, uint64_t n,
                                         uint64_t *span)
{
    uint64_t origin = rc_load(&d[0].words[1]), offset = origin & (r->capacity - 1);
    *span = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t start = rc_load(&d[i].words[1]) - origin;
        uint64_t length = rc_descriptor_length(&d[i]);
        if (length > r->max_message || start < *span || start > r->capacity ||
            offset + start + length > r->capacity ||
            (i && start + length > r->capacity / 8))
            return i;
        *span = start + length;
    }
    return n;
}

/* After an overrun: go on half-way between the oldest message still there and the newest, so that
 * the next overrun is not at once. Counts what was missed. 0: the header is impossible. */
static inline int rc_reader_resync(rc_reader *r)
{
    uint64_t gate = rc_load_acquire(&r->header->settled);
    uint64_t published = rc_load_acquire(&r->header->published);
    if (published < gate || gate <= r->next)
        return 0;
    uint64_t next = gate + (published - gate) / 2;
    r->gap += next - r->next;
    r->lost += next - r->next;
    r->next = next;
    rc_store(&r->slot->lost, r->lost);
    return 1;
}

/* Acknowledge a demotion. The caller holds no message in place any more. 0: evicted meanwhile. */
static inline int rc_reader_step_down(rc_reader *r)
{
    uint64_t expected = rc_demoting(r->state);
    uint64_t demoted = rc_state_word(r->state >> 8, RC_DEMOTED);
    if (!atomic_compare_exchange_strong_explicit(&r->slot->state, &expected, demoted,
                                                 memory_order_acq_rel, memory_order_acquire))
        return 0;
    r->state = demoted;
    r->lossy = 1;
    rc_store(&r->slot->policy, RC_LOSSY);
    rc_slot_silence(r->control, r->index);
    rc_wake_writer(r->control, r->space);
    return 1;
}

/* Leave an orderly slot behind. The caller holds the lock byte and gives it up afterwards. */
static inline void rc_reader_leave(rc_reader *r)
{
    rc_slot_free(r->control, r->index, r->space);
}

/* Pass over what is not wanted. What keeps a reader that chooses awake besides messages: topics that
 * have arrived and may be wanted; a cursor that can move and would help the writer; and an eighth of the
 * ring passed over, in messages or in bytes, so that the cursor is stored. */
static inline int rc_reader_ready_to_choose(rc_reader *r)
{
    uint64_t most = r->slots / RC_NUDGES + 1; /* no snapshot has passed over more than that */
    rc_reader_pass(r, most - (r->next - r->began));
    return r->next - r->began >= most || r->unflushed >= r->capacity / RC_NUDGES ||
           rc_filter_is_behind(r->filter) || (r->next != r->began && rc_reader_could_help(r));
}

/* Is there a reason to stop waiting? `r` is a snapshot; what it passes over is passed over again, by the
 * thread that works the reader. */
static inline int rc_reader_ready(rc_reader *r)
{
    if (r->filter && rc_reader_ready_to_choose(r))
        return 1;
    return rc_load_acquire(&r->descriptors[r->next & (r->slots - 1)].words[0]) > r->next ||
           rc_load(&r->slot->state) != r->state ||
           rc_load_acquire(&r->header->state) == RC_RING_CLOSED;
}

/* A copy to wait with, while another thread may work the reader. */
static inline rc_reader rc_reader_snapshot(const rc_reader *r)
{
    rc_reader snapshot = *r;
    snapshot.began = r->next;
    snapshot.unflushed = 0;
    return snapshot;
}

static inline int rc_reader_spin(rc_reader *r, int64_t limit_ns, rc_wait_kind kind)
{
    uint32_t round = 0;
    do {
        for (int i = 0; i < RC_SPINS_PER_CLOCK; i++) {
            if (rc_reader_ready(r))
                return 1;
            rc_pause(kind);
        }
        rc_offer_core(kind, round++);
    } while (rc_now_ns() < limit_ns);
    return 0;
}

/* The reader's half of sleeping and waking; at most until the deadline. One thread a slot. */
static inline int rc_reader_sleep(rc_reader *r, int64_t deadline_ns)
{
    rc_control *c = r->control;
    _Atomic uint64_t *word = (r->filter ? c->choosers : c->waiters) + r->index / 64;
    uint64_t bit = rc_bit(r->index);
    int token = 0, ready;
    atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
    rc_fence(); /* pairs with the fences in rc_writer_release() and rc_writer_want() */
    RC_FAULT(53);
    ready = rc_reader_ready(r);
    RC_FAULT(54);
    if (!ready)
        token = rc_take_token_until(r->wake, deadline_ns);
    RC_FAULT(55);
    rc_is_awake(word, bit, r->wake, token); /* pairs with rc_writer_post() */
    return ready || token;
}

/* Wait for something to happen as `strategy` says, at most RC_SLICE_NS and at most until the
 * deadline. 1: look; 0: nothing happened. `r` is a snapshot. */
static inline int rc_reader_wait(rc_reader *r, rc_wait_strategy strategy, int64_t deadline_ns)
{
    int64_t now = rc_now_ns();
    int64_t limit = now + RC_SLICE_NS < deadline_ns ? now + RC_SLICE_NS : deadline_ns;
    if (strategy.kind != RC_BLOCKING)
        return rc_reader_spin(r, limit, strategy.kind);
    if (strategy.spin_ns > 0) {
        int64_t spin_until = now + strategy.spin_ns < limit ? now + strategy.spin_ns : limit;
        if (rc_reader_spin(r, spin_until, RC_BLOCKING))
            return 1;
    }
    return rc_reader_sleep(r, limit);
}

#endif

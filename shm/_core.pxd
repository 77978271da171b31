# cython: language_level=3
"""Declarations of the native core, as far as the Cython modules use it: one truth, in native/*.h."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define is_finalizing() Py_IsFinalizing()
    #else
    #define is_finalizing() _Py_IsFinalizing()
    #endif
    """
    bint is_finalizing() noexcept nogil

cdef extern from "unistd.h" nogil:
    ssize_t write(int, const void *, size_t)

cdef extern from "sys/types.h" nogil:
    ctypedef unsigned long dev_t
    ctypedef unsigned long ino_t

cdef extern from "semaphore.h" nogil:
    ctypedef struct sem_t:
        pass

cdef extern from "time.h" nogil:
    int CLOCK_REALTIME, CLOCK_MONOTONIC_COARSE

# ---- the toolbox

cdef extern from "base.h" nogil:
    int64_t RC_SLICE_NS
    int64_t rc_now_ns()
    int64_t rc_clock_ns(int)
    uint64_t rc_load_u64 "rc_load"(const uint64_t *)
    uint32_t rc_load_u32 "rc_load"(const uint32_t *)
    void rc_store_u32 "rc_store"(uint32_t *, uint32_t)
    void rc_store_u64 "rc_store"(uint64_t *, uint64_t)
    void rc_copy_out(uint8_t *, const uint8_t *, size_t)
    void rc_post(sem_t *)
    ctypedef struct rc_flag:
        uint32_t up

    int rc_take_token_until(sem_t *, int64_t deadline_ns)

    ctypedef enum rc_wait_kind:
        RC_BUSY_SPIN, RC_YIELDING, RC_BLOCKING

    ctypedef struct rc_wait_strategy:
        rc_wait_kind kind
        int64_t spin_ns

    ctypedef struct rc_waits:
        pass

    rc_wait_strategy rc_wait_begins(rc_waits *, rc_wait_strategy, uint64_t taken)
    void rc_wait_ended(rc_waits *, rc_wait_strategy)

cdef extern from "hash.h" nogil:
    uint64_t rc_hash(const uint8_t *, uint64_t length, uint64_t seed)

# ---- a ring's bytes

cdef extern from "layout.h" nogil:
    ctypedef struct rc_atomic_u64 "_Atomic uint64_t":
        pass

    int RC_VERSION, RC_LOCK_WRITER, RC_LOCK_READER, RC_READERS_MAX, RC_LABEL_MAX, RC_FOR_NOBODY
    int RC_DESCRIPTORS_OFFSET, RC_SLOTS_MIN, RC_CAPACITY_MIN, RC_NOTE_MAX
    uint64_t RC_SLOTS_MAX, RC_CAPACITY_MAX
    uint32_t RC_TOPICS_MAX, RC_TOPIC_NAME_MAX, RC_REASON_MAX, RC_ANSWER_MAX, RC_WISH_MAX
    int RC_CHOOSES, RC_OTHERS
    int RC_KIND_TEXT, RC_KIND_BINARY, RC_KIND_EVENT, RC_FLAG_ANSWER
    int RC_RING_CLOSED
    int RC_FREE, RC_ACTIVE, RC_DEMOTING, RC_DEMOTED, RC_EVICTED, RC_DEAD, RC_LOSSY, RC_MEMBER
    uint32_t RC_GROUPS_MAX, RC_PARTITIONS, RC_NOBODY
    int RC_ANY, RC_KEY, RC_ROUND_ROBIN, RC_LOCK_GROUPS

    ctypedef struct rc_identity:
        uint64_t created_ns

    ctypedef struct rc_header:
        rc_identity identity
        uint64_t published, gate, settled, writer_pid, writer_since_ns
        uint32_t state, epoch, topics, answers_wishes

    ctypedef struct rc_fields "":
        uint64_t seq1, position, time_ns, key, reserved
        uint32_t length, topic, epoch
        uint16_t kind, connection, destination, flags

    ctypedef struct rc_descriptor:
        rc_fields f
        uint64_t words[8]

    ctypedef struct rc_slot:
        uint64_t cursor, state, started, joined_ns, received, lost, skipped
        uint32_t policy, pid, chooses, group
        char label[64]

    ctypedef struct rc_group_row:
        uint64_t floor, head, state, again, gap, lost, created_ns, aside
        uint64_t *asleep
        rc_atomic_u64 *sleepers "asleep"
        uint32_t balance, chooses, max_deliveries

    ctypedef struct rc_topic:
        char *name

    ctypedef struct rc_answer:
        pass

    ctypedef struct rc_wishes:
        uint64_t version

    ctypedef struct rc_control:
        rc_identity identity
        uint64_t *waiters
        uint64_t *choosers
        uint64_t *gating
        uint64_t wanted, groups
        rc_group_row *group_rows

    ctypedef struct rc_geometry:
        uint64_t slots, capacity, max_message, instance
        uint32_t max_readers, max_topics

    uint32_t rc_descriptor_length(const rc_descriptor *)
    uint64_t rc_data_size(const rc_geometry *)
    uint64_t rc_control_size(const rc_geometry *)
    uint64_t rc_answers_offset(const rc_geometry *)
    uint64_t rc_wishes_offset(const rc_geometry *)
    uint32_t rc_interest_words(const rc_geometry *)
    uint32_t rc_interest_stride(const rc_geometry *)
    uint64_t rc_message_limit(uint64_t capacity)
    void rc_fill_identity(rc_identity *, const rc_geometry *, uint64_t, uint64_t)
    void rc_seal(void *data, void *control)

cdef extern from "note.h" nogil:
    void rc_note_write(rc_header *, const uint8_t *, uint32_t)
    int32_t rc_note_read(const rc_header *, uint8_t *)

# ---- topics

cdef extern from "topics.h" nogil:
    int RC_UNWANTED, RC_WANTED, RC_LEARN

    ctypedef struct rc_topic_info:
        uint64_t messages, bytes, seq1, time_ns, key, state
        char *reason

    ctypedef struct rc_want:
        char *text
        uint32_t length, is_pattern

    ctypedef struct rc_filter:
        rc_want *wants
        uint32_t count
        rc_wishes *wishes

    const rc_topic *rc_topics_at(const void *data, const rc_geometry *)
    uint32_t rc_topics_count(const rc_header *, uint32_t max_topics)
    uint32_t rc_topic_name_length(const rc_topic *)
    int rc_topic_read(const rc_topic *, rc_topic_info *)
    void rc_topic_say(rc_topic *, uint64_t state, const char *reason, uint64_t length)
    uint64_t rc_load_atomic "rc_load"(const rc_atomic_u64 *)

    rc_atomic_u64 *rc_interest_at(void *control, const rc_geometry *)
    int rc_filter_is_behind(const rc_filter *)
    void rc_filter_learn(rc_filter *)
    rc_want *rc_filter_find(rc_filter *, const char *text, uint32_t length)
    void rc_filter_ask_snapshot(rc_filter *, rc_want *)
    int rc_filter_remove(rc_filter *, const char *text, uint32_t length)
    int64_t rc_wishes_read(const rc_wishes *, char *text, uint64_t *version)
    void rc_answer_say(rc_answer *, uint64_t version, const char *text, uint64_t length)
    int64_t rc_answer_read(const rc_answer *, char *text, uint64_t *wishes)

# ---- the protocol of a ring

cdef extern from "broadcast.h" nogil:
    int64_t RC_ROOM_SLICE_NS
    uint64_t rc_bit(uint32_t)
    rc_slot *rc_slot_at(rc_control *, uint32_t)
    uint64_t rc_demoting(uint64_t)
    void rc_slot_free(rc_control *, uint32_t, sem_t *)
    int rc_slot_demote(rc_control *, uint32_t)
    int rc_slot_evict(rc_control *, uint32_t)

    ctypedef struct rc_writer:
        rc_header *header
        rc_control *control
        rc_descriptor *descriptors
        uint8_t *arena
        sem_t *space
        rc_topic *topics
        uint64_t slots, capacity, max_message, next, published, head, gate, held
        uint32_t max_readers, max_topics, topic_count, epoch, wants

    void rc_writer_map(rc_writer *, void *, void *, const rc_geometry *, sem_t **, sem_t *)
    void rc_writer_sign(rc_writer *, uint32_t epoch, uint64_t pid, uint64_t now_ns)
    int rc_writer_resume(rc_writer *)
    uint32_t rc_writer_add_topic(rc_writer *, const char *, uint32_t, uint64_t key)
    int rc_writer_room(rc_writer *, uint64_t length, uint64_t *start)
    int rc_writer_hint(rc_writer *, uint64_t length)
    void rc_writer_want_nothing(rc_writer *)
    int rc_writer_try_put(rc_writer *, rc_descriptor *, const uint8_t *, uint32_t length)
    void rc_writer_commit(rc_writer *, rc_descriptor *, uint64_t start)
    void rc_writer_release(rc_writer *)
    int rc_writer_wait(rc_writer *, uint64_t, rc_wait_strategy, int64_t deadline_ns)
    void rc_writer_wake_all(rc_writer *)
    void rc_writer_end(rc_writer *)

    ctypedef enum rc_result:
        RC_MESSAGE, RC_EMPTY, RC_ENDED, RC_OVERRUN, RC_STEP_DOWN, RC_TAKEN_AWAY, RC_IMPOSSIBLE

    ctypedef struct rc_reader:
        const rc_header *header
        const rc_descriptor *descriptors
        const uint8_t *arena
        rc_control *control
        rc_slot *slot
        sem_t *wake
        sem_t *space
        const rc_filter *filter
        uint64_t slots, capacity, max_message, state, next, stored, received, lost, gap, skipped
        uint32_t index
        uint16_t lossy, skip

    int rc_reader_holds(const rc_reader *)
    int rc_reader_within(const rc_reader *, const rc_descriptor *)
    int rc_reader_intact(const rc_reader *, uint64_t sequence)
    int rc_reader_look_up(const rc_reader *, uint64_t sequence, rc_descriptor *)
    rc_result rc_reader_peek(const rc_reader *, rc_descriptor *)
    ctypedef struct rc_glance:
        uint32_t length, topic
        uint16_t kind, destination

    rc_glance rc_reader_glance(const rc_descriptor *)
    int rc_reader_may_decline(const rc_reader *)
    int rc_reader_is_meant(const rc_reader *, rc_glance)
    int rc_reader_wants(const rc_reader *, rc_glance)
    uint64_t rc_reader_pass(rc_reader *, uint64_t most)
    uint64_t rc_reader_gather(const rc_reader *, uint64_t n, rc_descriptor *out, uint64_t limit,
                              uint64_t *gone)
    rc_reader rc_reader_snapshot(const rc_reader *)
    void rc_reader_advance(rc_reader *, uint64_t messages, uint64_t bytes)
    void rc_reader_flush(rc_reader *, uint64_t upto)
    int rc_reader_blocks(const rc_reader *)
    int rc_reader_flush_due(const rc_reader *)
    uint64_t rc_reader_available(const rc_reader *, uint64_t limit)
    uint64_t rc_reader_fitting(const rc_reader *, const rc_descriptor *, uint64_t, uint64_t *)
    int rc_reader_resync(rc_reader *)
    int rc_reader_step_down(rc_reader *)
    int rc_reader_ready(rc_reader *)
    int rc_reader_sleep(rc_reader *, int64_t deadline_ns)

    int rc_group_demote(rc_control *, uint32_t, uint32_t max_readers)

# ---- work groups

cdef extern from "group_table.h" nogil:
    int64_t RC_GROUP_SLICE_NS
    void rc_group_name(const rc_group_row *, char *)
    rc_wishes *rc_group_wishes_at(void *control, const rc_geometry *, uint32_t)
    int rc_group_holds(const rc_group_row *)
    int rc_group_is_made(const rc_group_row *)
    uint32_t rc_group_next(const rc_atomic_u64 *, uint32_t max_readers, uint32_t slot)
    rc_atomic_u64 *rc_partitions_at(void *control, const rc_geometry *, uint32_t)
    uint32_t rc_partition_of_key(uint64_t)
    uint32_t rc_partition_owner(uint64_t)
    uint64_t rc_head_sequence(uint64_t)

cdef extern from "group_layout.h" nogil:
    uint32_t RC_ASIDE, RC_ASIDE_MEMBERS

    ctypedef struct rc_aside:
        uint64_t sequence1, time_ns, set_aside_ns
        uint32_t topic, deliveries, count
        uint32_t *pids

    ctypedef struct rc_group_segment:
        uint64_t redelivered, voided
        uint64_t *members
        rc_aside *aside

cdef extern from "group.h" nogil:
    int RC_LEASE_FREE, RC_LEASE_ASSIGNED, RC_LEASE_CLAIMED, RC_LEASE_KEPT, RC_LEASE_RETURNED
    uint32_t RC_NO_HAND
    ctypedef enum rc_sort:
        RC_ANY_SORT, RC_FRESH, RC_SAME_ROUND


    ctypedef struct rc_group_map:
        rc_group_row *row
        rc_group_segment *segment
        rc_control *control
        uint32_t group

    ctypedef struct rc_lease:
        uint64_t sequence, word
        uint32_t partition

    ctypedef struct rc_look:
        uint64_t next

    ctypedef struct rc_member:
        rc_group_map map
        rc_look look
        uint64_t received, in_hand, position, unflushed
        uint32_t rouse, balance, max_deliveries

    void rc_group_map_at(rc_group_map *, const void *data, void *control, rc_group_segment *,
                         const rc_geometry *, uint32_t)
    uint64_t rc_group_advance(const rc_group_map *, uint64_t *before)
    ctypedef struct rc_group_census:
        uint64_t claimed, returned

    void rc_group_count(const rc_group_map *, rc_group_census *)
    int rc_group_is_gone(const rc_group_map *, uint32_t slot, uint64_t generation, int lock_fd)
    int rc_group_has(const rc_group_map *, uint32_t slot, uint64_t generation, uint64_t mask)
    rc_result rc_member_take(rc_member *, uint32_t hand, rc_sort, const rc_descriptor *first, rc_lease *,
                             rc_descriptor *)
    uint64_t rc_member_take_gap(const rc_member *)
    int rc_member_finish(rc_member *, rc_lease *, int keep, uint64_t size)
    void rc_member_release(rc_member *, rc_lease *, uint64_t size)
    int rc_member_give_back(rc_member *, rc_lease *, int pause)
    void rc_member_call(const rc_member *, uint64_t count)
    void rc_member_flush(rc_member *)
    int rc_member_hoards(const rc_member *)
    rc_result rc_member_changed(const rc_member *)
    int rc_member_look_due(const rc_member *, int64_t now_ns)
    int rc_member_look_around(rc_member *, int64_t now_ns)
    int rc_member_ready(const rc_member *, rc_look *, uint32_t hand)
    int rc_member_sleep(const rc_member *, rc_look *, uint32_t hand, int64_t deadline_ns)
    uint32_t rc_lease_deliveries(uint64_t word)
    uint32_t rc_group_holder(const rc_group_map *, const rc_atomic_u64 *partitions)

cdef extern from "stream.h" nogil:
    uint8_t *rc_stream_room(rc_writer *, uint64_t need, uint64_t want, uint64_t *room,
                            uint64_t *length)
    void rc_stream_skip(rc_writer *, uint64_t start)
    void rc_stream_end(rc_writer *)
    void rc_stream_prefetch(const rc_writer *, uint64_t start, uint64_t length, uint64_t ahead)
    int rc_stream_commit(rc_writer *, rc_descriptor *, uint64_t start, uint32_t header)

# ---- an uplink

cdef extern from "uplink_layout.h" nogil:
    int RC_SENDERS_MAX, RC_LANE_MIN, RC_LOCK_RECEIVER, RC_LOCK_LANE
    uint64_t RC_LANE_MAX

    ctypedef struct rc_uplink_identity:
        uint64_t created_ns

    ctypedef struct rc_lane:
        uint64_t written, sent, taken, taken_count, done_count, rejected, unconfirmed
        uint64_t state, started, joined_ns
        uint32_t pid
        char label[64]

    ctypedef struct rc_uplink:
        rc_uplink_identity identity
        uint64_t head, flushed, window, tail, receiver_pid, receiver_since_ns
        uint32_t state, epoch, rejecting
        rc_lane *lanes

    ctypedef struct rc_uplink_geometry:
        uint64_t tickets, lane_bytes, max_message, instance
        uint32_t max_senders

    ctypedef struct rc_uplink_map:
        rc_uplink *shared
        rc_uplink_geometry g

    uint64_t rc_uplink_tickets(uint32_t, uint64_t)
    uint64_t rc_uplink_message_limit(uint64_t)
    uint64_t rc_uplink_size(const rc_uplink_geometry *)
    int rc_uplink_fits(uint32_t, uint64_t)
    void rc_uplink_format(void *, const rc_uplink_geometry *, uint64_t)
    void rc_uplink_seal(void *)

cdef extern from "mpsc.h" nogil:
    ctypedef enum rc_sending:
        RC_SENT, RC_NO_ROOM, RC_SENDER_EVICTED, RC_NO_RECEIVER, RC_REJECTED, RC_WRONG

    ctypedef struct rc_sender:
        rc_uplink_map map
        rc_lane *lane
        sem_t *wake
        uint64_t sent, last, rejected, unconfirmed
        uint32_t index

    rc_sending rc_sender_state(const rc_sender *)
    rc_sending rc_sender_try(rc_sender *, const uint8_t *, uint32_t, uint16_t, uint64_t *)
    int rc_sender_has_room(const rc_sender *, uint64_t)
    int rc_sender_flushed(const rc_sender *, uint64_t)

    ctypedef enum rc_taking:
        RC_TAKEN, RC_NOTHING, RC_VOIDED

    ctypedef struct rc_item:
        const uint8_t *payload
        uint64_t ticket
        uint32_t length, lane
        uint16_t kind

    ctypedef struct rc_receiver:
        rc_uplink_map map
        sem_t *wake
        uint64_t head, voided, evicted, window
        uint32_t rejecting, epoch

    void rc_receiver_map(rc_receiver *, void *, const rc_uplink_geometry *, sem_t **, sem_t *,
                         uint64_t *, uint64_t *)
    int rc_receiver_open(rc_receiver *, uint64_t, uint64_t)
    rc_taking rc_receiver_take(rc_receiver *, rc_item *)
    void rc_receiver_free(rc_receiver *, const rc_item *)
    void rc_receiver_done(rc_receiver *, uint64_t, uint32_t, int)
    void rc_receiver_wake_senders(rc_receiver *)
    int rc_receiver_reap(rc_receiver *, uint32_t)
    void rc_receiver_evict(rc_receiver *, uint32_t)
    uint64_t rc_receiver_hole(rc_receiver *)
    void rc_receiver_touch_all(rc_receiver *)
    void rc_receiver_void_hole(rc_receiver *)
    void rc_receiver_republish(rc_receiver *)
    int rc_receiver_spoiled(const rc_receiver *, uint32_t)
    void rc_receiver_mend(rc_receiver *, uint32_t)
    int rc_receiver_ready(const rc_receiver *)
    int rc_receiver_sleep(const rc_receiver *, int64_t)
    int rc_receiver_wait(const rc_receiver *, rc_wait_strategy, int64_t)
    void rc_receiver_close(rc_receiver *)

# ---- endpoints, and attaching

cdef extern from "endpoint.h" nogil:
    int RC_OPEN, RC_CLOSING, RC_FORKED

    ctypedef struct rc_endpoint:
        int lock_fd
        dev_t device
        ino_t inode

    ctypedef enum rc_turn:
        RC_MY_TURN, RC_LOOK_AGAIN, RC_CLOSED_MEANWHILE

    int rc_endpoint_phase(rc_endpoint *)
    int rc_lock_try(int, int64_t)
    int rc_lock_release(int, int64_t)
    int rc_lock_held(int, int64_t)
    rc_turn rc_endpoint_turn(rc_endpoint *, int64_t)
    void rc_endpoint_wake_up(rc_endpoint *)
    void rc_endpoint_rouse(rc_endpoint *, sem_t *)

cdef extern from "attach.h" nogil:
    int RC_OBJECT_MAX, RC_NAME_MAX

    ctypedef enum ringcast_status:
        RINGCAST_OK, RINGCAST_INVALID, RINGCAST_NOT_FOUND, RINGCAST_LAYOUT_MISMATCH
        RINGCAST_CORRUPT, RINGCAST_SYSTEM, RINGCAST_NO_MEMORY, RINGCAST_TOO_MANY_READERS
        RINGCAST_TOO_MANY_SENDERS, RINGCAST_EVICTED, RINGCAST_CLOSED

    ctypedef enum ringcast_policy:
        RINGCAST_BLOCK, RINGCAST_LOSSY

    ctypedef enum ringcast_start:
        RINGCAST_LATEST, RINGCAST_OLDEST, RINGCAST_SEQUENCE

    ctypedef struct rc_error:
        ringcast_status status
        int system
        char *text

    ctypedef enum rc_access:
        RC_LOOKING, RC_READING, RC_WRITING

    ctypedef struct rc_segment:
        uint64_t size
        void *address

    ctypedef struct rc_ring:
        rc_segment data, control
        rc_geometry g
        char *name

    ctypedef struct rc_uplink_segment:
        rc_segment segment
        rc_uplink_map map
        char *name

    ctypedef struct rc_attached_reader:
        rc_ring ring
        rc_endpoint endpoint
        rc_reader reader
        rc_filter filter
        sem_t *wishes
        int64_t looked_ns
        rc_member *member
        rc_segment group

    ctypedef struct rc_attached_sender:
        rc_uplink_segment uplink
        rc_endpoint endpoint
        rc_sender sender

    ctypedef struct rc_reader_options:
        ringcast_policy policy
        ringcast_start start
        uint64_t sequence
        int64_t owner
        const char *label
        const char **topics
        uint32_t topic_count, chooses, others
        uint16_t skip
        const char *group
        uint32_t balance, max_deliveries

    void rc_show_wishes(rc_attached_reader *)
    ringcast_status rc_want_topic(rc_attached_reader *, const char *, rc_error *)
    int rc_is_name(const char *)
    void rc_segment_name(char *, const char *, char)
    void rc_semaphore_name(char *, const char *, uint64_t, const char *, int64_t)
    int rc_leads_to(const rc_endpoint *, const char *)
    ringcast_status rc_ring_open(rc_ring *, const char *, rc_access, int64_t, rc_error *)
    void rc_ring_unmap(rc_ring *)
    ringcast_status rc_uplink_open(rc_uplink_segment *, const char *, rc_access, int64_t, rc_error *)
    void rc_uplink_unmap(rc_uplink_segment *)
    int rc_attached_reader_is_abandoned(const rc_attached_reader *, const rc_reader *, int64_t *)
    int rc_attached_sender_is_abandoned(rc_attached_sender *)
    rc_turn rc_attached_reader_wait(rc_attached_reader *, rc_reader *, rc_wait_strategy, int64_t)
    rc_turn rc_attached_member_wait(rc_attached_reader *, rc_look *, uint32_t hand, uint64_t taken,
                                    rc_wait_strategy, int64_t)
    uint32_t rc_find_group(const rc_control *, const char *)
    ringcast_status rc_lock_groups(rc_endpoint *, const char *, rc_error *)
    const uint32_t RC_DELIVERIES_MAX
    ringcast_status rc_group_open(rc_segment *, const rc_ring *, const char *, uint32_t, rc_access,
                                  rc_error *)
    void rc_groups_tidy(const rc_ring *)
    void rc_group_remove(rc_control *, uint32_t, sem_t *)
    void rc_group_object(char *, const char *, const char *)
    void rc_segment_unmap(rc_segment *)
    rc_turn rc_attached_sender_wait(rc_attached_sender *, rc_sender *,
                                    int (*)(const rc_sender *, uint64_t), uint64_t, int64_t)
    void rc_endpoint_leave(rc_endpoint *, sem_t *)

# cython: language_level=3
"""Declarations of layout.h, broadcast.h and endpoint.h, and the fields of the native classes."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define is_finalizing() Py_IsFinalizing()
    #else
    #define is_finalizing() _Py_IsFinalizing()
    #endif
    """
    bint is_finalizing() noexcept nogil

cdef extern from "sys/mman.h" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)

cdef extern from "unistd.h" nogil:
    ssize_t write(int, const void *, size_t)

cdef extern from "semaphore.h" nogil:
    ctypedef struct sem_t:
        pass
    sem_t *sem_open(const char *, int)
    int sem_close(sem_t *)

cdef extern from "time.h" nogil:
    int CLOCK_REALTIME

cdef extern from "layout.h" nogil:
    int RC_VERSION, RC_LOCK_WRITER, RC_LOCK_READER, RC_READERS_MAX, RC_LABEL_MAX
    int RC_DESCRIPTORS_OFFSET, RC_READERS_OFFSET, RC_SLOTS_MIN, RC_CAPACITY_MIN
    uint64_t RC_SLOTS_MAX, RC_CAPACITY_MAX
    int RC_KIND_TEXT, RC_KIND_BINARY, RC_KIND_EVENT
    int RC_RING_CLOSED
    int RC_FREE, RC_EVICTED, RC_LOSSY

    ctypedef struct rc_identity:
        uint64_t created_ns

    ctypedef struct rc_header:
        rc_identity identity
        uint64_t published, gate, writer_pid, writer_since_ns
        uint32_t state, epoch

    int RC_NOTE_MAX

    ctypedef struct rc_fields "":
        uint64_t seq1, position, time_ns, key
        uint32_t length, topic, epoch
        uint16_t kind, connection

    ctypedef struct rc_descriptor:
        rc_fields f
        uint64_t words[8]

    ctypedef struct rc_slot:
        uint64_t cursor, state, started, joined_ns, received, lost
        uint32_t policy, pid
        char label[64]

    ctypedef struct rc_control:
        rc_identity identity
        uint64_t *waiters
        uint64_t *gating

    ctypedef struct rc_geometry:
        uint64_t slots, capacity, max_message, instance
        uint32_t max_readers

    ctypedef enum rc_fault_found:
        RC_OK, RC_TOO_SMALL, RC_INCOMPLETE, RC_NOT_A_RING, RC_OTHER_ENDIAN, RC_OTHER_VERSION
        RC_OTHER_LAYOUT, RC_BAD_GEOMETRY, RC_BAD_SIZE, RC_OTHER_INSTANCE

    uint32_t rc_descriptor_length(const rc_descriptor *)
    uint16_t rc_descriptor_kind(const rc_descriptor *)
    uint64_t rc_data_size(uint64_t slots, uint64_t capacity)
    uint64_t rc_control_size(uint32_t max_readers)
    uint64_t rc_message_limit(uint64_t capacity)
    rc_fault_found rc_check_segments(const void *, uint64_t, const void *, uint64_t, rc_geometry *)
    rc_fault_found rc_check_copies(const void *, uint64_t, const void *, uint64_t, rc_geometry *)
    void rc_fill_identity(rc_identity *, const rc_geometry *, uint64_t, uint64_t)
    void rc_seal(void *data, void *control)

cdef extern from "broadcast.h" nogil:
    int64_t RC_SLICE_NS, RC_ROOM_SLICE_NS
    int64_t rc_now_ns()
    int64_t rc_clock_ns(int)
    uint64_t rc_load_u64 "rc_load"(const uint64_t *)
    uint32_t rc_load_u32 "rc_load"(const uint32_t *)
    void rc_store_u64 "rc_store"(uint64_t *, uint64_t)
    void rc_store_u32 "rc_store"(uint32_t *, uint32_t)
    void rc_copy_out(uint8_t *, const uint8_t *, size_t)
    void rc_post(sem_t *)
    uint64_t rc_bit(uint32_t)
    rc_slot *rc_slot_at(rc_control *, uint32_t)
    uint64_t rc_demoting(uint64_t)
    void rc_slot_free(rc_control *, uint32_t, sem_t *)
    int rc_slot_demote(rc_control *, uint32_t)
    int rc_slot_evict(rc_control *, uint32_t)

    ctypedef enum rc_wait_kind:
        RC_BUSY_SPIN, RC_YIELDING, RC_BLOCKING

    ctypedef struct rc_wait_strategy:
        rc_wait_kind kind
        int64_t spin_ns

    ctypedef struct rc_writer:
        rc_header *header
        rc_control *control
        rc_descriptor *descriptors
        uint8_t *arena
        sem_t *space
        uint64_t slots, capacity, max_message, next, published, head, gate, held
        uint32_t max_readers, epoch, wants

    void rc_writer_map(rc_writer *, void *, void *, const rc_geometry *, sem_t **, sem_t *)
    void rc_writer_sign(rc_writer *, uint32_t epoch, uint64_t pid, uint64_t now_ns)
    int rc_writer_resume(rc_writer *)
    int rc_writer_room(rc_writer *, uint64_t length, uint64_t *start)
    int rc_writer_hint(rc_writer *, uint64_t length)
    void rc_writer_want_nothing(rc_writer *)
    int rc_writer_try_put(rc_writer *, rc_descriptor *, const uint8_t *, uint32_t length)
    void rc_writer_commit(rc_writer *, rc_descriptor *, uint64_t start)
    void rc_writer_release(rc_writer *)
    int rc_writer_wait(rc_writer *, uint64_t, rc_wait_strategy, int64_t deadline_ns)
    uint8_t *rc_stream_room(rc_writer *, uint64_t need, uint64_t want, uint64_t *room,
                            uint64_t *length)
    void rc_stream_skip(rc_writer *, uint64_t start)
    void rc_stream_end(rc_writer *)
    void rc_stream_prefetch(const rc_writer *, uint64_t start, uint64_t length, uint64_t ahead)
    int rc_stream_commit(rc_writer *, rc_descriptor *, uint64_t start)
    void rc_note_write(rc_header *, const uint8_t *, uint32_t)
    int rc_note_read(const rc_header *, uint8_t *)
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
        uint64_t slots, capacity, max_message, state, next, stored, received, lost, gap
        uint32_t index, lossy

    void rc_reader_map(rc_reader *, const void *, void *, const rc_geometry *, uint32_t, sem_t *,
                       sem_t *)
    void rc_reader_claim(rc_reader *, int lossy)
    int rc_reader_join(rc_reader *, uint64_t start)
    int rc_reader_holds(const rc_reader *)
    int rc_reader_intact(const rc_reader *, uint64_t sequence)
    rc_result rc_reader_peek(const rc_reader *, rc_descriptor *)
    void rc_reader_advance(rc_reader *, uint64_t messages, uint64_t bytes)
    void rc_reader_flush(rc_reader *, uint64_t upto)
    int rc_reader_blocks(const rc_reader *)
    int rc_reader_flush_due(const rc_reader *)
    uint64_t rc_reader_available(const rc_reader *, uint64_t limit)
    uint64_t rc_reader_fitting(const rc_reader *, const rc_descriptor *, uint64_t, uint64_t *)
    int rc_reader_resync(rc_reader *)
    int rc_reader_step_down(rc_reader *)
    void rc_reader_leave(rc_reader *)
    int rc_reader_ready(const rc_reader *)
    int rc_reader_sleep(const rc_reader *, int64_t deadline_ns)
    ctypedef struct rc_waits:
        pass
    rc_wait_strategy rc_wait_begins(rc_waits *, rc_wait_strategy)
    void rc_wait_ended(rc_waits *, rc_wait_strategy)
    int rc_reader_wait(const rc_reader *, rc_wait_strategy, int64_t deadline_ns)

cdef extern from "endpoint.h" nogil:
    int RC_OPEN, RC_CLOSING, RC_FORKED

    ctypedef struct rc_endpoint:
        int lock_fd

    ctypedef enum rc_turn:
        RC_MY_TURN, RC_LOOK_AGAIN, RC_CLOSED_MEANWHILE

    int rc_register_fork_handlers()
    int rc_endpoint_init(rc_endpoint *, const char *)
    int rc_endpoint_phase(rc_endpoint *)
    void rc_endpoint_finish(rc_endpoint *)
    void rc_endpoint_free(rc_endpoint *)
    int rc_lock_try(int, int64_t)
    int rc_lock_release(int, int64_t)
    int rc_lock_held(int, int64_t)
    rc_turn rc_endpoint_turn(rc_endpoint *, int64_t)
    void rc_endpoint_wake_up(rc_endpoint *)
    void rc_endpoint_closing(rc_endpoint *)
    int rc_endpoint_empty(rc_endpoint *, int64_t)


# A member of a reader's list of pins; see _ring.pyx. `message` is the Message it belongs to, or
# NULL for a Batch, which is never detached.
ctypedef struct rc_pin:
    rc_pin *previous
    rc_pin *following
    uint64_t sequence
    Py_ssize_t exports
    bint linked
    void *message


cdef int64_t deadline_of(object timeout) except -1


cdef class Mapping:
    cdef void *address
    cdef readonly size_t size


cdef class Endpoint:
    cdef rc_endpoint c
    cdef bint made, ready
    cdef readonly tuple inode
    cdef void finish(self) noexcept
    cdef int check(self) except -1
    cdef int leave(self, sem_t *wake) except -1


cdef class Semaphores:
    cdef sem_t **handles
    cdef int count


cdef class Wait:
    cdef rc_wait_strategy c


cdef class Segments:
    cdef rc_geometry geometry
    cdef readonly str name
    cdef Mapping data, control
    cdef rc_header *header(self) noexcept
    cdef rc_control *shared(self) noexcept


cdef class Message:
    cdef rc_descriptor descriptor
    cdef rc_pin pin
    cdef Reader reader
    cdef const uint8_t *data
    cdef uint8_t *owned
    cdef Py_ssize_t size
    cdef uint64_t missed
    cdef int check(self) except -1
    cdef int detach(self) noexcept


cdef class View:
    cdef Batch batch
    cdef const uint8_t *data
    cdef Py_ssize_t size


cdef class Batch:
    cdef rc_pin pin
    cdef Reader reader
    cdef const rc_descriptor *table
    cdef const uint8_t *payloads
    cdef uint8_t *owned
    cdef uint64_t origin, span
    cdef Py_ssize_t count
    cdef uint64_t missed
    cdef bint released
    cdef void unpin(self) noexcept
    cdef int check(self) except -1
    cdef View view(self, const uint8_t *data, Py_ssize_t size)
    cdef const uint8_t *place(self, uint64_t position, uint64_t length) except NULL
    cdef int check_lengths(self, uint64_t size) except -1
    cdef uint64_t spacing(self, uint64_t size, uint64_t *origin, uint64_t *last) except? 0


cdef class Reader:
    cdef rc_reader ring
    cdef rc_pin pins
    cdef Segments segments
    cdef Endpoint endpoint
    cdef Semaphores semaphores
    cdef Wait wait
    cdef rc_waits waits  # used by the one thread whose turn it is
    cdef object writer_gone
    cdef int64_t looked_ns
    cdef bint joined, asked, lingering
    cdef uint16_t skipped
    cdef object __weakref__
    cdef bint is_open(self) noexcept
    cdef object evicted(self)
    cdef object corrupt(self)
    cdef object ended(self)
    cdef uint64_t floor(self) noexcept
    cdef void flush(self) noexcept
    cdef void flush_if_due(self) noexcept
    cdef int detach_all(self) noexcept
    cdef int settle(self) except -1
    cdef int refuse_to_block_the_ring(self) except -1
    cdef int step_down(self) except -1
    cdef int take(self, Message message) except -1
    cdef Message next_message(self)
    cdef void hand_out(self, Message message) noexcept
    cdef int copy_out(self, Message message) except -1
    cdef int pass_over(self, uint32_t length) except -1
    cdef uint64_t until_skipped(self, const rc_descriptor *table, uint64_t n) noexcept
    cdef int recover(self, rc_result result) except -1
    cdef int look_around(self) except -1
    cdef int wait_until(self, int64_t deadline) except -1
    cdef void hand_out_batch(self, Batch batch, rc_descriptor *first, uint64_t limit) noexcept
    cdef int copy_out_batch(self, Batch batch, uint64_t limit) except -1
    cdef bint exported(self) noexcept
    cdef uint64_t oldest_export(self) noexcept
    cdef int linger(self) except -1
    cdef void let_go(self) noexcept
    cdef void finish(self) noexcept


cdef class Iteration:
    cdef Reader reader


cdef class Reservation:
    cdef Writer writer
    cdef uint8_t *data
    cdef uint64_t start
    cdef Py_ssize_t size, exports
    cdef bint over, abandoned
    cdef void end(self) noexcept
    cdef int check(self) except -1


cdef class Writer:
    cdef rc_writer ring
    cdef Segments segments
    cdef Endpoint endpoint
    cdef Semaphores semaphores
    cdef Wait wait
    cdef object turn
    cdef int queued  # threads that have the turn or wait for it
    cdef unsigned long turn_of  # the thread that has it, or 0
    cdef bint opened
    cdef int64_t reaped_ns
    cdef void *reservation
    cdef object __weakref__
    cdef int check(self) except -1
    cdef int check_length(self, uint64_t length) except -1
    cdef int wait_for_room(self, uint64_t length, int64_t deadline) except -1
    cdef int begin_turn(self, int64_t deadline) except -1
    cdef int end_turn(self) except -1
    cdef object full(self, uint64_t length, uint64_t published)
    cdef object slowest(self)
    cdef int put(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length,
                 int64_t deadline) except -1
    cdef int put_slowly(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length,
                        object timeout) except -1
    cdef int put_one(self, rc_descriptor *d, const uint8_t *bytes, uint64_t length,
                     object timeout) except -1
    cdef int try_put(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length) except -1
    cdef int check_buffer(self, object item) except -1
    cdef int put_item(self, rc_descriptor *d, object item) except -1
    cdef int put_item_slowly(self, rc_descriptor *d, object item, int64_t deadline,
                             uint64_t first) except -1
    cdef int check_slot(self, uint32_t slot) except -1

# cython: language_level=3
"""The fields of readers, messages and batches; see _reader.pyx."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ringcast.shm._core cimport (
    rc_attached_reader, rc_descriptor, rc_header, rc_lease, rc_result, rc_topic,
)
from ringcast.shm._endpoint cimport WaitStrategy

# A member of a reader's list of pins; see _reader.pyx. `message` is the Message it belongs to, or
# NULL for a Batch, which is never detached.
ctypedef struct rc_pin:
    rc_pin *previous
    rc_pin *following
    uint64_t sequence
    Py_ssize_t exports
    bint linked
    void *message


cdef void pin_link(rc_pin *pins, rc_pin *pin, uint64_t sequence) noexcept
cdef void pin_unlink(rc_pin *pin) noexcept


# no_gc here, too: subclasses in other modules share its free list
@cython.no_gc
cdef class Message:
    cdef rc_descriptor descriptor
    cdef rc_pin pin
    cdef Reader reader
    cdef const uint8_t *data
    cdef uint8_t *owned
    cdef Py_ssize_t size
    cdef uint64_t missed
    # of a work group's message, see _group.pyx
    cdef rc_lease lease
    cdef void *hand
    cdef Py_ssize_t place
    cdef int check(self) except -1
    cdef int detach(self) noexcept
    cdef void unexported(self) noexcept


cdef class View:
    cdef Batch batch
    cdef const uint8_t *data
    cdef Py_ssize_t size


@cython.no_gc
cdef class Batch:
    cdef rc_pin pin
    cdef Reader reader
    cdef const rc_descriptor *table
    cdef const uint8_t *payloads
    cdef uint8_t *owned  # what `table` lies in, if not in the ring
    cdef uint64_t *places  # of payloads that were copied one by one; what `payloads` lies in
    cdef bint copied  # payloads are private: `span` bytes from position `origin` on
    cdef uint64_t origin, span
    cdef Py_ssize_t count
    cdef uint64_t missed
    cdef bint released
    # of a work group's batch, see _group.pyx
    cdef rc_lease *leases
    cdef void *hand
    cdef void unpin(self) noexcept
    cdef int check(self) except -1
    cdef View view(self, const uint8_t *data, Py_ssize_t size)
    cdef uint64_t position(self, Py_ssize_t index) noexcept
    cdef const uint8_t *place(self, uint64_t position, uint64_t length) except NULL
    cdef int check_lengths(self, uint64_t size) except -1
    cdef uint64_t spacing(self, uint64_t size, uint64_t *origin, uint64_t *last) except? 0


cdef class Reader:
    cdef rc_attached_reader a
    cdef rc_pin pins
    cdef WaitStrategy wait
    cdef readonly str name
    cdef bint attached, joined, asked, lingering
    cdef dict names  # of topics, by id, as far as they were asked for
    cdef object __weakref__
    cdef int attach_to(self, str name, bint lossy, object start, WaitStrategy wait, object label,
                       object owner, uint16_t skip, object topics, bint others, object group,
                       uint32_t balance, uint32_t max_deliveries) except -1
    cdef const rc_header *header(self) noexcept
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
    cdef bint wants(self, const rc_descriptor *d) noexcept
    cdef bint pass_over(self) noexcept
    cdef bint is_overrun(self) noexcept
    cdef uint64_t until_unwanted(self, const rc_descriptor *table, uint64_t n) noexcept
    cdef int recover(self, rc_result result) except -1
    cdef int look_around(self) except -1
    cdef int learn(self) except -1
    cdef int wait_until(self, int64_t deadline) except -1
    cdef void hand_out_batch(self, Batch batch, rc_descriptor *first, uint64_t limit) noexcept
    cdef int copy_out_batch(self, Batch batch, uint64_t limit) except -1
    cdef int gather_batch(self, Batch batch, uint64_t limit) except -1
    cdef void forget_gathered(self, Batch batch) noexcept
    cdef int copy_out_gathered(self, Batch batch, const rc_descriptor *table,
                               uint64_t *gone) except -1
    cdef list wanted(self)
    cdef object name_of(self, uint32_t topic)
    cdef object newest(self, const rc_topic *row)
    cdef bint copy_newest(self, Message message, uint64_t sequence) except -1
    cdef bint exported(self) noexcept
    cdef uint64_t oldest_export(self) noexcept
    cdef int linger(self) except -1
    cdef void let_go(self) noexcept
    cdef void finish(self) noexcept


cdef class Iteration:
    cdef Reader reader

# cython: language_level=3
"""The fields of writers and reservations; see _writer.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ringcast.shm._core cimport rc_descriptor, rc_writer
from ringcast.shm._endpoint cimport Endpoint, OwnerEnd, Segments, Semaphores, WaitStrategy


cdef class Reservation:
    cdef Writer writer
    cdef uint8_t *data
    cdef uint64_t start
    cdef Py_ssize_t size, exports
    cdef bint over, abandoned
    cdef void end(self) noexcept
    cdef int check(self) except -1


cdef class Writer(OwnerEnd):
    cdef rc_writer ring
    cdef Segments segments
    cdef Semaphores semaphores
    cdef WaitStrategy wait
    cdef object turn
    cdef int queued  # threads that have the turn or wait for it
    cdef unsigned long turn_of  # the thread that has it, or 0
    cdef int64_t reaped_ns
    cdef void *reservation
    cdef dict ids  # of topics, by name
    cdef object __weakref__
    cdef int bind(self, Segments segments, Endpoint endpoint, Semaphores semaphores,
                  WaitStrategy wait) except -1
    cdef int check(self) except -1
    cdef int check_length(self, uint64_t length) except -1
    cdef int wait_for_room(self, uint64_t length, int64_t deadline) except -1
    cdef int begin_turn(self, int64_t deadline) except -1
    cdef int end_turn(self) except -1
    cdef object full(self, uint64_t length, uint64_t published)
    cdef object slowest_group(self, uint32_t i, uint64_t floor)
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
    cdef int read_ids(self) except -1
    cdef int check_slot(self, uint32_t slot) except -1
    cdef void wake_group_of(self, uint32_t slot) noexcept

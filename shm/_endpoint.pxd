# cython: language_level=3
"""What readers, writers, senders and receivers are made of; see _endpoint.pyx."""

from libc.stdint cimport int64_t, uint8_t

from ringcast.shm._core cimport (
    RC_OPEN, rc_geometry, rc_reader_options, rc_attached_reader, rc_attached_sender, rc_control,
    rc_endpoint, rc_endpoint_phase, rc_error, rc_header, rc_ring, rc_wait_strategy, sem_t,
)
from libc.stdint cimport uint64_t

cdef object error_of(rc_error *error)
cdef int64_t deadline_of(object timeout) except -1
cdef int64_t owner_of(object owner) except -1
cdef object raise_not_open(int phase)
cdef int check_making(tuple arguments, str how) except -1
cdef int leave(rc_endpoint *endpoint, sem_t *wake) except -1
cdef bytes label_of(object label)
cdef int attach_reader(rc_attached_reader *a, bytes name, const rc_reader_options *how) except -1
cdef void leave_reader(rc_attached_reader *a) noexcept
cdef void detach_reader(rc_attached_reader *a) noexcept
cdef int attach_sender(rc_attached_sender *a, bytes name, bytes label, int64_t owner) except -1
cdef void leave_sender(rc_attached_sender *a) noexcept
cdef void detach_sender(rc_attached_sender *a) noexcept


cdef inline int check_open(rc_endpoint *endpoint) except -1:
    """Raise unless this end is open, and not a forked child's copy."""
    cdef int phase = rc_endpoint_phase(endpoint)
    if phase != RC_OPEN:
        raise_not_open(phase)
    return 0


cdef class WaitStrategy:
    cdef rc_wait_strategy c


cdef class Endpoint:
    cdef rc_endpoint c
    cdef bint made, ready
    cdef void finish(self) noexcept


cdef class OwnerEnd:
    cdef Endpoint endpoint
    cdef sem_t *wake
    cdef bint opened
    cdef bint let_go  # without having been ended
    cdef int own(self, Endpoint endpoint, sem_t *wake) except -1
    cdef int begin_end(self) except -1


cdef class Semaphores:
    cdef sem_t **handles
    cdef int count


cdef class Segments:
    cdef rc_ring ring
    cdef readonly str name
    cdef rc_header *header(self) noexcept
    cdef rc_control *control(self) noexcept


cdef class Geometry:
    cdef rc_geometry c


cdef class NewMapping:
    cdef void *address
    cdef readonly size_t size


cdef bytes read_note(const rc_header *header, str name)
cdef str label_text(const char *label)

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""What readers, writers, senders and receivers are made of: segments, locks, semaphores, and
attaching by name (native/attach.h), with Python's lifetimes and errors.

This is the module that has the registry of endpoints (native/endpoint.h): it makes and finishes all
of them, also those inside the objects of the other native modules, which cimport from here.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EACCES, EAGAIN
from libc.stdint cimport INT64_MAX, UINT32_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ringcast.shm._core cimport (
    CLOCK_REALTIME, RC_CAPACITY_MAX, RC_CAPACITY_MIN, RC_CHOOSES, RC_DESCRIPTORS_OFFSET, RC_EVICTED,
    RC_FORKED, RC_FREE, RC_GROUPS_MAX,
    RC_LABEL_MAX, RC_LOCK_READER, RC_LOCK_WRITER, RC_LOOKING, RC_LOSSY, RC_MEMBER, RC_NAME_MAX, RC_NOTE_MAX,
    RC_READERS_MAX, RC_READING, RC_RING_CLOSED, RC_SLOTS_MAX, RC_SLOTS_MIN, RC_TOPICS_MAX, RC_WRITING,
    RINGCAST_CLOSED, RINGCAST_CORRUPT, RINGCAST_EVICTED, RINGCAST_INVALID,
    RINGCAST_LAYOUT_MISMATCH, RINGCAST_NO_MEMORY, RINGCAST_NOT_FOUND, RINGCAST_OK, RINGCAST_SYSTEM,
    RINGCAST_TOO_MANY_READERS, RINGCAST_TOO_MANY_SENDERS, is_finalizing, rc_access, rc_bit,
    rc_clock_ns, rc_control_size, rc_data_size, rc_descriptor, rc_endpoint_leave,
    rc_control, rc_fill_identity, rc_geometry, rc_is_name, rc_leads_to, rc_load_u32, rc_load_u64,
    rc_lock_held, rc_lock_release, rc_lock_try, rc_message_limit, rc_note_read, rc_now_ns,
    rc_ring_open, rc_ring_unmap, rc_seal, rc_segment_name, rc_semaphore_name, rc_slot,
    rc_slot_at, rc_wait_kind, ringcast_status,
)

import os
import sys
from pathlib import Path

from .counters import ReaderCounters, RingCounters
from .errors import (
    Evicted, LayoutMismatch, RingClosed, RingCorrupt, RingError, RingNotFound, TooManyReaders,
    TooManySenders,
)

cdef extern from "sys/mman.h" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)

cdef extern from "attach.h" nogil:  # what only the module with the registry may call
    int rc_register_fork_handlers()
    int rc_endpoint_init(rc_endpoint *, const char *)
    void rc_endpoint_finish(rc_endpoint *)
    void rc_endpoint_free(rc_endpoint *)
    ringcast_status rc_semaphore_open(sem_t **, const char *, rc_error *)
    void rc_semaphore_close(sem_t *)
    ringcast_status rc_attach_reader(rc_attached_reader *, const char *, const rc_reader_options *,
                                     rc_error *)
    void rc_leave_reader(rc_attached_reader *)
    void rc_detach_reader(rc_attached_reader *)
    ringcast_status rc_attach_sender(rc_attached_sender *, const char *, const char *, int64_t,
                                     rc_error *)
    void rc_leave_sender(rc_attached_sender *)
    void rc_detach_sender(rc_attached_sender *)

LOCK_WRITER = RC_LOCK_WRITER
LOCK_READER = RC_LOCK_READER
LOSSY = RC_LOSSY
MEMBER = RC_MEMBER
FREE = RC_FREE
EVICTED = RC_EVICTED
READERS_MAX = RC_READERS_MAX
TOPICS_MAX = RC_TOPICS_MAX
SLOTS_MIN = RC_SLOTS_MIN
SLOTS_MAX = RC_SLOTS_MAX
CAPACITY_MIN = RC_CAPACITY_MIN
CAPACITY_MAX = RC_CAPACITY_MAX
NAME_MAX = RC_NAME_MAX

#: The kinds that have names, by number; the package fills it in.
KINDS = {}

#: The first argument of every reader, writer, sender and receiver that is made by its own class
#: methods. A direct call of the class does not have it, and raises what to call instead.
MAKING = object()

cdef enum:
    NOTE_READS = 1000  # how often a note that changes while it is copied is copied again
    OBJECT_MAX = 64    # RC_OBJECT_MAX

if rc_register_fork_handlers() != 0:
    raise ImportError("ringcast needs pthread_atfork, and this process has no memory for it")

cdef dict ERRORS = {
    RINGCAST_INVALID: ValueError,
    RINGCAST_NOT_FOUND: RingNotFound,
    RINGCAST_LAYOUT_MISMATCH: LayoutMismatch,
    RINGCAST_CORRUPT: RingCorrupt,
    RINGCAST_SYSTEM: RingError,
    RINGCAST_NO_MEMORY: MemoryError,
    RINGCAST_TOO_MANY_READERS: TooManyReaders,
    RINGCAST_TOO_MANY_SENDERS: TooManySenders,
    RINGCAST_EVICTED: Evicted,
    RINGCAST_CLOSED: RingClosed,
}


cdef object error_of(rc_error *error):
    """The exception for what a native function reports."""
    return ERRORS[error.status](error.text.decode("utf-8", "replace"))


cdef int64_t deadline_of(object timeout) except -1:
    """CLOCK_MONOTONIC nanoseconds at which `timeout` (seconds, or None for never) is over."""
    cdef double seconds
    if timeout is None:
        return INT64_MAX
    seconds = timeout
    if seconds != seconds or seconds < 0:
        raise ValueError(f"timeout is seconds, 0 or more, or None for no limit, not {timeout!r}")
    if seconds > 1e9:
        return INT64_MAX
    return rc_now_ns() + <int64_t>(seconds * 1e9)


cdef int64_t owner_of(object owner) except -1:
    """A user id, or None for the caller's own segments and root's, as attach.h has it."""
    cdef int64_t user
    if owner is None:
        return 0
    user = owner
    if not 0 <= user <= UINT32_MAX:  # -1 would be anybody's, by attach.h
        raise ValueError(f"owner is a user id, or None, not {owner!r}")
    return user + 1


cdef object raise_not_open(int phase):
    if phase == RC_FORKED:
        raise RingClosed("this end of the ring belongs to the parent process: a forked child must"
                         " attach for itself")
    raise RingClosed("this end of the ring is closed")


cdef int check_making(tuple arguments, str how) except -1:
    """Raise TypeError unless an object is being made by its own class methods."""
    if not arguments or arguments[0] is not MAKING:
        raise TypeError(how)
    return 0


cdef int leave(rc_endpoint *endpoint, sem_t *wake) except -1:
    """No thread waits in this end when this returns: those that do are woken, and get RingClosed."""
    with nogil:
        rc_endpoint_leave(endpoint, wake)
    return 0


cdef bytes label_of(object label):
    """What an end is called in listings, by default after the program; truncated to fit."""
    if label is None:
        label = Path(sys.argv[0]).name if sys.argv else "python"
    return label.encode("utf-8", "replace")[:RC_LABEL_MAX - 1]


# ---- attaching -----------------------------------------------------------------------------


cdef int attach_reader(rc_attached_reader *a, bytes name, const rc_reader_options *how) except -1:
    cdef rc_error error
    cdef ringcast_status status
    cdef const char *name_bytes = name
    with nogil:
        status = rc_attach_reader(a, name_bytes, how, &error)
    if status != RINGCAST_OK:
        raise error_of(&error)
    return 0


cdef void leave_reader(rc_attached_reader *a) noexcept:
    rc_leave_reader(a)


cdef void detach_reader(rc_attached_reader *a) noexcept:
    rc_detach_reader(a)


cdef int attach_sender(rc_attached_sender *a, bytes name, bytes label, int64_t owner) except -1:
    cdef rc_error error
    cdef ringcast_status status
    cdef const char *name_bytes = name
    cdef const char *label_bytes = label
    with nogil:
        status = rc_attach_sender(a, name_bytes, label_bytes, owner, &error)
    if status != RINGCAST_OK:
        raise error_of(&error)
    return 0


cdef void leave_sender(rc_attached_sender *a) noexcept:
    rc_leave_sender(a)


cdef void detach_sender(rc_attached_sender *a) noexcept:
    rc_detach_sender(a)


# ---- names ---------------------------------------------------------------------------------


def is_name(str name not None) -> bool:
    """May a ring have this name?"""
    return "\0" not in name and rc_is_name(name.encode("utf-8", "replace"))


def segment_name(str name not None, str part not None) -> str:
    """Shared-memory name of a ring's segment: "d" data, "c" control, "u" uplink."""
    cdef char out[OBJECT_MAX]
    rc_segment_name(out, name.encode(), ord(part))
    return out.decode()


def semaphore_name(str name not None, uint64_t instance, str part not None, int64_t index=-1) -> str:
    """Name of a semaphore: "r" + reader slot, "space" (the writer's), "s" + lane, "up"."""
    cdef char out[OBJECT_MAX]
    rc_semaphore_name(out, name.encode(), instance, part.encode(), index)
    return out.decode()


# ---- objects -------------------------------------------------------------------------------


cdef class WaitStrategy:
    """How an endpoint waits: the base of BusySpin, Yielding and Blocking."""

    def __cinit__(self, int kind, double spin_us):
        self.c.kind = <rc_wait_kind>kind
        self.c.spin_ns = <int64_t>(spin_us * 1000)


@cython.final
cdef class Endpoint:
    """The descriptor whose locks say that this end lives, and its phase.

    Raises:
        FileNotFoundError, PermissionError, OSError: the segment cannot be opened.
    """

    def __cinit__(self, str segment not None):
        cdef int error = rc_endpoint_init(&self.c, segment.encode())
        self.made = self.ready = error == 0
        if error:
            raise OSError(error, os.strerror(error), segment)

    def __dealloc__(self):
        self.finish()
        if self.made:
            rc_endpoint_free(&self.c)

    cdef void finish(self) noexcept:
        if self.ready:
            self.ready = False
            rc_endpoint_finish(&self.c)

    def close(self) -> None:
        """Give up every lock of this end."""
        self.finish()

    @property
    def forked(self) -> bool:
        """Is this the copy that a forked child has of its parent's end?"""
        return rc_endpoint_phase(&self.c) == RC_FORKED

    @property
    def inode(self) -> tuple:
        """(device, inode) of the segment."""
        return self.c.device, self.c.inode

    def leads_here(self, str segment not None) -> bool:
        """Does this name still lead to the segment on which the endpoint was opened?"""
        return rc_leads_to(&self.c, segment.encode()) == 1

    def try_lock(self, int64_t byte) -> bool:
        """Take the lock on a byte; False if another description holds it."""
        cdef int error = rc_lock_try(self.c.lock_fd, byte)
        if error == 0:
            return True
        if error == EAGAIN or error == EACCES:
            return False
        raise OSError(error, os.strerror(error))

    def unlock(self, int64_t byte) -> None:
        cdef int error = rc_lock_release(self.c.lock_fd, byte)
        if error:
            raise OSError(error, os.strerror(error))

    def is_held(self, int64_t byte) -> bool:
        """Does another description hold the lock on this byte?"""
        cdef int held = rc_lock_held(self.c.lock_fd, byte)
        if held < 0:
            raise OSError(-held, os.strerror(-held))
        return held == 1


cdef class OwnerEnd:
    """How the end of a ring's or uplink's owner, its writer or receiver, is closed or let go."""

    cdef int own(self, Endpoint endpoint, sem_t *wake) except -1:
        """Take this endpoint, which holds the owner's lock; `wake` is what its threads sleep on."""
        self.endpoint = endpoint
        self.wake = wake
        return 0

    cdef int begin_end(self) except -1:
        """No thread waits in this end any more, and it is closed, keeping the lock; 0: it was
        closed already, or is a forked child's copy."""
        if not self.opened:
            return 0
        self.opened = False
        if rc_endpoint_phase(&self.endpoint.c) == RC_FORKED:
            return 0
        leave(&self.endpoint.c, self.wake)
        return 1

    def abandon(self) -> None:
        """Let go without ending it, as a crash would: `resume` goes on with it."""
        if self.begin_end():  # else another thread ends it, and gives up the lock when it has
            self.let_go = True
            self.endpoint.finish()

    def _release(self) -> None:
        """Give up the owner's lock, after the end."""
        self.endpoint.finish()

    @property
    def abandoned(self) -> bool:
        """Was this end let go with `abandon`? Then the end of its ``with`` block removes nothing."""
        return self.let_go

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return not self.opened or rc_endpoint_phase(&self.endpoint.c) != RC_OPEN


@cython.final
cdef class Semaphores:
    """Handles on named semaphores that exist already, in the order of their names.

    Raises:
        RingCorrupt: one is missing, or no semaphore.
    """

    def __cinit__(self, list names not None):
        cdef rc_error error
        self.count = 0
        self.handles = <sem_t **>calloc(len(names) + 1, sizeof(sem_t *))
        if self.handles == NULL:
            raise MemoryError
        for name in names:
            if rc_semaphore_open(&self.handles[self.count], (<str>name).encode(), &error):
                raise error_of(&error)
            self.count += 1

    def __dealloc__(self):
        cdef int i
        if self.handles == NULL or is_finalizing():
            return
        for i in range(self.count):
            rc_semaphore_close(self.handles[i])
        free(self.handles)


@cython.final
cdef class Segments:
    """Both segments of a ring, checked and mapped until nothing refers to this object.

    Args:
        name: the ring's.
        access: "look": nothing is mapped for writing; "change": the control segment is; "write": the
            data segment, too.
        owner: user id they must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: they do not pass.
    """

    def __cinit__(self, str name not None, str access not None, owner):
        cdef rc_error error
        cdef rc_access how = RC_LOOKING
        if access != "look":
            how = RC_WRITING if access == "write" else RC_READING
        if rc_ring_open(&self.ring, name.encode(), how, owner_of(owner), &error):
            raise error_of(&error)
        self.name = name

    def __dealloc__(self):
        # Not when it was never opened: zeroed descriptors would be standard input's. Never at exit:
        # daemon threads may still be looking at it, and the kernel does it anyway.
        if self.ring.data.address != NULL and not is_finalizing():
            rc_ring_unmap(&self.ring)

    cdef rc_header *header(self) noexcept:
        return <rc_header *>self.ring.data.address

    cdef rc_control *control(self) noexcept:
        return <rc_control *>self.ring.control.address

    @property
    def instance(self) -> int:
        return self.ring.g.instance

    @property
    def slots(self) -> int:
        return self.ring.g.slots

    @property
    def capacity(self) -> int:
        return self.ring.g.capacity

    @property
    def max_message(self) -> int:
        return self.ring.g.max_message

    @property
    def max_readers(self) -> int:
        return self.ring.g.max_readers

    @property
    def max_topics(self) -> int:
        return self.ring.g.max_topics

    @property
    def created_ns(self) -> int:
        return self.header().identity.created_ns

    def counters(self):
        """A `RingCounters`."""
        cdef rc_header *h = self.header()
        return RingCounters(rc_load_u32(&h.state) == RC_RING_CLOSED, rc_load_u32(&h.epoch),
                            rc_load_u64(&h.writer_pid), rc_load_u64(&h.writer_since_ns),
                            rc_load_u64(&h.published), rc_load_u64(&h.gate))

    def note(self) -> bytes:
        """What the writer publishes about itself; see `Writer.note`."""
        return read_note(self.header(), self.name)

    def position(self, uint64_t sequence) -> tuple:
        """(seq1, position, length) in the descriptor where this sequence has its place."""
        cdef rc_descriptor *d = <rc_descriptor *>(<uint8_t *>self.ring.data.address
                                                  + RC_DESCRIPTORS_OFFSET)
        d += sequence & (self.ring.g.slots - 1)
        return rc_load_u64(&d.words[0]), rc_load_u64(&d.words[1]), d.f.length

    def reader_counters(self, uint32_t index):
        """A `ReaderCounters`."""
        if index >= self.ring.g.max_readers:
            raise IndexError(f"the ring has {self.ring.g.max_readers} reader slots")
        cdef rc_control *c = self.control()
        cdef rc_slot *slot = rc_slot_at(c, index)
        return ReaderCounters(
            rc_load_u64(&slot.state) & 0xff, rc_load_u32(&slot.policy), rc_load_u32(&slot.pid),
            rc_load_u64(&slot.started), rc_load_u64(&slot.joined_ns), label_text(slot.label),
            rc_load_u64(&slot.cursor), rc_load_u64(&slot.received), rc_load_u64(&slot.lost),
            rc_load_u64(&slot.skipped), rc_load_u32(&slot.chooses) & RC_CHOOSES != 0,
            bool(rc_load_u64(&c.gating[index // 64]) & rc_bit(index)),
            bool((rc_load_u64(&c.waiters[index // 64]) | rc_load_u64(&c.choosers[index // 64])
                  | asleep_in_group(c, slot, index // 64)) & rc_bit(index)))


cdef uint64_t asleep_in_group(rc_control *control, rc_slot *slot, uint32_t word) noexcept:
    """Of a member's group, the bits of those that sleep."""
    cdef uint32_t group = rc_load_u32(&slot.group) - 1
    return rc_load_u64(&control.group_rows[group].asleep[word]) if group < RC_GROUPS_MAX else 0


cdef bytes read_note(const rc_header *header, str name):
    cdef uint8_t copy[1024]
    cdef int length = -1
    cdef int i
    for i in range(NOTE_READS):
        length = rc_note_read(header, copy)
        if length >= 0:
            return PyBytes_FromStringAndSize(<char *>copy, length)
    raise RingCorrupt(f"the writer's note in ring {name!r} can't be read: its length is impossible,"
                      " or it changes without end")


cdef str label_text(const char *label):
    """A label as it stands in shared memory, whatever it holds."""
    cdef bytes raw = PyBytes_FromStringAndSize(label, RC_LABEL_MAX)
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


# ---- making --------------------------------------------------------------------------------


@cython.final
cdef class Geometry:
    """The numbers of a new ring, which its segments' sizes follow from."""

    def __cinit__(self, uint64_t slots, uint64_t capacity, uint32_t max_readers,
                  uint32_t max_topics):
        memset(&self.c, 0, sizeof(self.c))
        self.c.slots = slots
        self.c.capacity = capacity
        self.c.max_message = rc_message_limit(capacity)
        self.c.max_readers = max_readers
        self.c.max_topics = max_topics

    @property
    def data_size(self) -> int:
        """Bytes of the data segment."""
        return rc_data_size(&self.c)

    @property
    def control_size(self) -> int:
        """Bytes of the control segment."""
        return rc_control_size(&self.c)


@cython.final
cdef class NewMapping:
    """A new segment, mapped for writing its header."""

    def __cinit__(self, int fd, size_t size):
        self.address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if self.address == MAP_FAILED:
            self.address = NULL
            raise MemoryError(f"cannot map a segment of {size} bytes")
        self.size = size

    def __dealloc__(self):
        if self.address != NULL:
            munmap(self.address, self.size)


def format_ring(NewMapping data not None, NewMapping control not None, Geometry geometry not None,
                uint64_t instance) -> None:
    """Write both headers of a new, zeroed ring; the magic last."""
    cdef rc_geometry g = geometry.c
    cdef uint64_t now = rc_clock_ns(CLOCK_REALTIME)
    g.instance = instance
    if data.size != rc_data_size(&g) or control.size != rc_control_size(&g):
        raise ValueError("the mappings do not have the sizes of such a ring")
    rc_fill_identity(&(<rc_header *>data.address).identity, &g, data.size, now)
    rc_fill_identity(&(<rc_control *>control.address).identity, &g, control.size, now)
    rc_seal(data.address, control.address)

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""Rings as Python objects: who owns which bytes for how long, buffers, errors.

The protocols are in broadcast.h (what the processes do to each other) and endpoint.h (what the
threads of one process do to each other); this file gives them Python lifetimes.

Two rules keep a Python caller away from bytes that are gone:

* A message of a lossless reader lies in the arena. It is linked into its reader's list of *pins*,
  ordered by sequence, and the reader's cursor never passes the first pin. A pin without an exported
  buffer can be *detached*: it takes a private copy and leaves the list. Exported buffers can't move,
  so they pin.
* Whatever exports memory holds a reference to its reader, and a reader unmaps only when no pin is
  left. Deallocation, which may run in the midst of an allocation or in another thread, does no more
  than leave the list.

All of it runs under the GIL but for the waiting, which works on a snapshot of the reader.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.sequence cimport PySequence_Fast, PySequence_Fast_GET_ITEM, PySequence_Fast_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport ENOMEM, EPERM, errno
from libc.stdint cimport INT64_MAX, UINT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import gc
import os
import threading

import numpy

from .errors import (
    Evicted, LayoutMismatch, MessageTooLarge, RingClosed, RingCorrupt, RingError, RingFull,
    RingNotFound,
)

KIND_TEXT = RC_KIND_TEXT
KIND_BINARY = RC_KIND_BINARY
KIND_EVENT = RC_KIND_EVENT

LOCK_WRITER = RC_LOCK_WRITER
LOCK_READER = RC_LOCK_READER
LOSSY = RC_LOSSY
READERS_MAX = RC_READERS_MAX
SLOTS_MIN = RC_SLOTS_MIN
SLOTS_MAX = RC_SLOTS_MAX
CAPACITY_MIN = RC_CAPACITY_MIN
CAPACITY_MAX = RC_CAPACITY_MAX
LABEL_MAX = RC_LABEL_MAX - 1
NOTE_MAX = RC_NOTE_MAX
DATA_HEADER = RC_DESCRIPTORS_OFFSET
CONTROL_HEADER = RC_READERS_OFFSET

#: The descriptor as numpy sees it; tests compare it with layout.h.
DESCRIPTOR = numpy.dtype([
    ("seq1", "u8"), ("position", "u8"), ("length", "u4"), ("topic", "u4"), ("time_ns", "u8"),
    ("key", "u8"), ("kind", "u2"), ("connection", "u2"), ("destination", "u2"), ("flags", "u2"),
    ("epoch", "u4"), ("crc32c", "u4"), ("reserved", "u8"),
])

if rc_register_fork_handlers() != 0:
    raise ImportError("ringcast needs pthread_atfork, and this process has no memory for it")

cdef int64_t FOR_EVER = INT64_MAX
# How often one call catches up with a writer that laps it before it looks at signals and its timeout.
cdef int RECOVERIES = 64
# How often a note that changes while it is copied is copied again.
cdef int NOTE_READS = 1000

#: The kinds that have names, by number; the package fills it in.
KINDS = {}


cdef int64_t deadline_of(object timeout) except -1:
    """CLOCK_MONOTONIC nanoseconds at which `timeout` (seconds, or None for never) is over."""
    cdef double seconds
    if timeout is None:
        return FOR_EVER
    seconds = timeout
    if seconds != seconds or seconds < 0:
        raise ValueError(f"timeout is seconds, 0 or more, or None for no limit, not {timeout!r}")
    if seconds > 1e9:
        return FOR_EVER
    return rc_now_ns() + <int64_t>(seconds * 1e9)


# ---- what an endpoint is made of -----------------------------------------------------------


@cython.final
cdef class Mapping:
    """A whole shared-memory segment mapped into this process; unmapped when nothing refers to it."""

    def __cinit__(self, int fd, size_t size, bint writable, bint populate):
        self.address = mmap(NULL, size, PROT_READ | PROT_WRITE if writable else PROT_READ,
                            MAP_SHARED | MAP_POPULATE if populate else MAP_SHARED, fd, 0)
        if self.address == MAP_FAILED:
            self.address = NULL
            raise OSError(errno, f"cannot map a segment of {size} bytes: {os.strerror(errno)}")
        self.size = size

    def __dealloc__(self):
        # Never at exit: daemon threads may still be looking at it, and the kernel does it anyway.
        if self.address != NULL and not is_finalizing():
            munmap(self.address, self.size)


@cython.final
cdef class Endpoint:
    """The descriptor whose locks say that this end of the ring is alive, and its phase.

    Raises:
        FileNotFoundError, PermissionError, OSError: the segment cannot be opened.
    """

    def __cinit__(self, str segment not None):
        cdef int error = rc_endpoint_init(&self.c, segment.encode())
        self.made = self.ready = error == 0
        if error:
            raise OSError(error, os.strerror(error), segment)
        status = os.fstat(self.c.lock_fd)
        self.inode = (status.st_dev, status.st_ino)

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

    def try_lock(self, int64_t byte) -> bool:
        """Take the lock on a byte; False if another description holds it."""
        cdef int error = rc_lock_try(self.c.lock_fd, byte)
        if error == 0:
            return True
        if error in (11, 13):  # EAGAIN, EACCES
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

    cdef int check(self) except -1:
        cdef int phase = rc_endpoint_phase(&self.c)
        if phase == RC_OPEN:
            return 0
        if phase == RC_FORKED:
            raise RingClosed("this end of the ring belongs to the parent process: a forked child"
                             " must attach for itself")
        raise RingClosed("this end of the ring is closed")

    cdef int leave(self, sem_t *wake) except -1:
        """No thread waits in here when this returns: those that do are woken, and get RingClosed.
        100 ms at most for one that spins."""
        cdef bint empty = False
        rc_endpoint_closing(&self.c)
        while not empty:
            rc_post(wake)
            with nogil:
                empty = rc_endpoint_empty(&self.c, rc_now_ns() + RC_SLICE_NS)
        return 0


@cython.final
cdef class Semaphores:
    """Handles on named semaphores that exist already, in the order of their names."""

    def __cinit__(self, list names not None):
        self.count = 0
        self.handles = <sem_t **>calloc(len(names) + 1, sizeof(sem_t *))
        if self.handles == NULL:
            raise MemoryError
        for name in names:
            check_semaphore(name)
            self.handles[self.count] = sem_open((<str>name).encode(), 0)
            if self.handles[self.count] == NULL:
                raise RingCorrupt(f"semaphore {name} is missing: {os.strerror(errno)}; the ring is"
                                  " being removed, or somebody deleted it")
            self.count += 1

    def __dealloc__(self):
        cdef int i
        if self.handles == NULL or is_finalizing():
            return
        for i in range(self.count):
            sem_close(self.handles[i])
        free(self.handles)


cdef int check_semaphore(str name) except -1:
    """sem_open() maps whatever it finds; a file that is too short would be a SIGBUS."""
    try:
        size = os.stat(f"/dev/shm/sem.{name[1:]}", follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
    if size < <Py_ssize_t>sizeof(sem_t):
        raise RingCorrupt(f"semaphore {name} is cut short: somebody tampered with the ring; remove"
                          " it and create it again")
    return 0


cdef class Wait:
    """How an endpoint waits: the base of BusySpin, Yielding and Blocking."""

    def __cinit__(self, int kind, double spin_us):
        self.c.kind = <rc_wait_kind>kind
        self.c.spin_ns = <int64_t>(spin_us * 1000)


cdef object explain(rc_fault_found fault, str name):
    if fault == RC_INCOMPLETE or fault == RC_TOO_SMALL:
        return RingNotFound(f"ring {name!r} is not complete: its creator is still at it, or died;"
                            f" create it again, or remove it with shm.unlink({name!r})")
    if fault == RC_NOT_A_RING:
        return LayoutMismatch(f"/rc.{name}.* is no ringcast ring: its magic is another")
    if fault == RC_OTHER_ENDIAN:
        return LayoutMismatch(f"ring {name!r} was made on a machine of the other byte order")
    if fault == RC_OTHER_VERSION:
        return LayoutMismatch(f"ring {name!r} has another layout version than {RC_VERSION}: run the"
                              " same ringcast on both ends")
    if fault == RC_OTHER_LAYOUT:
        return LayoutMismatch(f"ring {name!r} has version {RC_VERSION} but other field offsets: run"
                              " the same ringcast build on both ends")
    if fault == RC_BAD_GEOMETRY:
        return RingCorrupt(f"ring {name!r} has impossible sizes in its header")
    if fault == RC_BAD_SIZE:
        return RingCorrupt(f"ring {name!r} is shorter or longer than its header says")
    return RingCorrupt(f"the two segments of ring {name!r} are of different rings: it was replaced"
                       " while it was opened, or one of them was; try again")


def explain_fault(int fault, str name not None) -> Exception:
    """What to raise for an rc_fault_found."""
    return explain(<rc_fault_found>fault, name)


@cython.final
cdef class Segments:
    """Both segments of a ring, mapped and checked, with the geometry copied out.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt: the header does not pass.
    """

    def __cinit__(self, str name not None, Mapping data not None, Mapping control not None):
        cdef rc_fault_found fault = rc_check_segments(
            data.address, data.size, control.address, control.size, &self.geometry)
        if fault != RC_OK:
            raise explain(fault, name)
        self.name = name
        self.data = data
        self.control = control

    cdef rc_header *header(self) noexcept:
        return <rc_header *>self.data.address

    cdef rc_control *shared(self) noexcept:
        return <rc_control *>self.control.address

    @property
    def instance(self) -> int:
        return self.geometry.instance

    @property
    def slots(self) -> int:
        return self.geometry.slots

    @property
    def capacity(self) -> int:
        return self.geometry.capacity

    @property
    def max_message(self) -> int:
        return self.geometry.max_message

    @property
    def max_readers(self) -> int:
        return self.geometry.max_readers

    @property
    def created_ns(self) -> int:
        return self.header().identity.created_ns

    def ring_counters(self) -> tuple:
        """(closed, epoch, writer pid, since_ns, published, gate), each read once."""
        cdef rc_header *h = self.header()
        return (rc_load_u32(&h.state) == RC_RING_CLOSED, rc_load_u32(&h.epoch),
                rc_load_u64(&h.writer_pid), rc_load_u64(&h.writer_since_ns),
                rc_load_u64(&h.published), rc_load_u64(&h.gate))

    def note(self) -> bytes:
        """What the writer wants known of itself; see `Writer.note`."""
        cdef uint8_t copy[1024]
        cdef int32_t length = -1
        cdef int i
        for i in range(NOTE_READS):
            length = rc_note_read(self.header(), copy)
            if length >= 0:
                return PyBytes_FromStringAndSize(<char *>copy, length)
        raise RingCorrupt(f"the writer's note in ring {self.name!r} can't be read: its length is"
                          " impossible, or it changes without end")

    def position(self, uint64_t sequence) -> tuple:
        """(seq1, position, length) in the descriptor where this sequence has its place."""
        cdef rc_descriptor *d = <rc_descriptor *>(<uint8_t *>self.data.address
                                                  + RC_DESCRIPTORS_OFFSET)
        d += sequence & (self.geometry.slots - 1)
        return rc_load_u64(&d.words[0]), rc_load_u64(&d.words[1]), d.f.length

    def reader_counters(self, uint32_t index) -> tuple:
        """(state, policy, pid, started, joined_ns, label, cursor, received, lost, gating, waiting)
        of a reader slot, each read once."""
        if index >= self.geometry.max_readers:
            raise IndexError(f"the ring has {self.geometry.max_readers} reader slots")
        cdef rc_control *c = self.shared()
        cdef rc_slot *slot = rc_slot_at(c, index)
        cdef bytes label = PyBytes_FromStringAndSize(slot.label, RC_LABEL_MAX).partition(b"\0")[0]
        return (rc_load_u64(&slot.state) & 0xff, rc_load_u32(&slot.policy),
                rc_load_u32(&slot.pid), rc_load_u64(&slot.started), rc_load_u64(&slot.joined_ns),
                label.decode("utf-8", "replace"), rc_load_u64(&slot.cursor),
                rc_load_u64(&slot.received), rc_load_u64(&slot.lost),
                bool(rc_load_u64(&c.gating[index // 64]) & rc_bit(index)),
                bool(rc_load_u64(&c.waiters[index // 64]) & rc_bit(index)))


def check_headers(str name, bytes data not None, uint64_t data_size, bytes control not None,
                  uint64_t control_size) -> None:
    """Check copies of both headers, before anything is mapped, against the segments' true sizes.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt: they do not pass.
    """
    cdef rc_geometry geometry
    if len(data) < RC_DESCRIPTORS_OFFSET or len(control) < RC_READERS_OFFSET:
        raise explain(RC_TOO_SMALL, name)
    cdef rc_fault_found fault = rc_check_copies(
        PyBytes_AS_STRING(data), data_size, PyBytes_AS_STRING(control), control_size, &geometry)
    if fault != RC_OK:
        raise explain(fault, name)


def data_size(uint64_t slots, uint64_t capacity) -> int:
    """Bytes of a data segment."""
    return rc_data_size(slots, capacity)


def control_size(uint32_t max_readers) -> int:
    """Bytes of a control segment."""
    return rc_control_size(max_readers)


def format_segments(Mapping data not None, Mapping control not None, uint64_t slots,
                    uint64_t capacity, uint32_t max_readers, uint64_t instance) -> None:
    """Write both headers of a new, zeroed ring; the magic last."""
    cdef rc_geometry g
    cdef uint64_t now = rc_clock_ns(CLOCK_REALTIME)
    memset(&g, 0, sizeof(g))
    g.slots = slots
    g.capacity = capacity
    g.max_message = rc_message_limit(capacity)
    g.instance = instance
    g.max_readers = max_readers
    if data.size != rc_data_size(slots, capacity) or control.size != rc_control_size(max_readers):
        raise ValueError("the mappings do not have the sizes of such a ring")
    rc_fill_identity(&(<rc_header *>data.address).identity, &g, data.size, now)
    rc_fill_identity(&(<rc_control *>control.address).identity, &g, control.size, now)
    rc_seal(data.address, control.address)


# ---- pins ----------------------------------------------------------------------------------


cdef void pin_link(rc_pin *pins, rc_pin *pin, uint64_t sequence) noexcept:
    pin.sequence = sequence
    pin.linked = True
    pin.previous = pins.previous
    pin.following = pins
    pins.previous.following = pin
    pins.previous = pin


cdef void pin_unlink(rc_pin *pin) noexcept:
    if pin.linked:
        pin.linked = False
        pin.previous.following = pin.following
        pin.following.previous = pin.previous


# ---- the reader ----------------------------------------------------------------------------


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Message:
    """One message. In a lossless reader its bytes lie in the ring, and while this object or a
    buffer made from it lives, the ring does not reuse them (unless the reader is evicted).

    A Message exports the buffer protocol, read-only: ``memoryview``, numpy, orjson and the like
    read it without a copy. ``bytes(message)`` copies.
    """

    def __init__(self):
        raise TypeError("messages come from a Reader")

    def __dealloc__(self):
        pin_unlink(&self.pin)
        free(self.owned)

    cdef int check(self) except -1:
        """May the payload be looked at?"""
        if self.pin.linked:
            if rc_endpoint_phase(&self.reader.endpoint.c) == RC_FORKED:
                raise RingClosed("this message lies in the parent process's ring: copy it before"
                                 " the fork, or attach in the child")
            if not rc_reader_holds(&self.reader.ring):
                raise self.reader.evicted()
        return 0

    cdef int detach(self) noexcept:
        """Take a private copy of the bytes and stop pinning. Only without exported buffers.

        Runs no Python code and allocates no Python object: nothing can come in between. An errno:
        ENOMEM, or EPERM for one whose reader was evicted; it stays as it is.
        """
        cdef uint8_t *copy = <uint8_t *>malloc(self.size + 1)
        if copy == NULL:
            return ENOMEM
        rc_copy_out(copy, self.data, self.size)
        if not rc_reader_holds(&self.reader.ring):
            free(copy)
            return EPERM
        self.owned = copy
        self.data = copy
        pin_unlink(&self.pin)
        return 0

    @property
    def sequence(self) -> int:
        """Number of this message in the ring, from 0, without holes."""
        return self.descriptor.f.seq1 - 1

    @property
    def topic(self) -> int:
        """The topic it was published under; 0 if none was given."""
        return self.descriptor.f.topic

    @property
    def kind(self):
        """A `shm.Kind`, or a plain int for one that has no name."""
        return KINDS.get(self.descriptor.f.kind, self.descriptor.f.kind)

    @property
    def time_ns(self) -> int:
        """When the writer received it, Unix time in nanoseconds."""
        return self.descriptor.f.time_ns

    @property
    def epoch(self) -> int:
        """Which writer published it: 1 for the ring's creator, one more for each that resumed."""
        return self.descriptor.f.epoch

    @property
    def gap(self) -> int:
        """How many messages this reader missed just before this one; 0 in a lossless reader."""
        return self.missed

    @property
    def payload(self) -> memoryview:
        """The bytes in place, valid for as long as the view lives (unless the reader is evicted)."""
        return PyMemoryView_FromObject(self)

    def text(self) -> str:
        """The payload decoded as UTF-8. Raises UnicodeDecodeError."""
        self.check()
        cdef object text = PyUnicode_DecodeUTF8(<const char *>self.data, self.size, "strict")
        self.check()
        return text

    def __bytes__(self):
        self.check()
        cdef bytes copy = PyBytes_FromStringAndSize(NULL, self.size)
        rc_copy_out(<uint8_t *>PyBytes_AS_STRING(copy), self.data, self.size)
        self.check()
        return copy

    def __len__(self):
        return self.size

    def __bool__(self):
        return True  # an empty message is a message: `while message := reader.read(0)`

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.check()
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, 1, flags)
        self.pin.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.pin.exports -= 1
        if self.pin.exports == 0 and self.pin.linked and self.reader.lingering:
            self.reader.let_go()

    def __repr__(self):
        return (f"<Message {self.sequence} kind={self.kind!r} topic={self.topic}"
                f" {self.size} bytes>")


@cython.final
@cython.no_gc
cdef class View:
    """A piece of a Batch's memory as a buffer; it pins the batch while it lives."""

    def __init__(self):
        raise TypeError("views come from a Batch")

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.batch.check()
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, 1, flags)
        self.batch.pin.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.batch.pin.exports -= 1
        if self.batch.pin.exports == 0 and self.batch.released:
            self.batch.unpin()


@cython.final
@cython.no_gc
cdef class Batch:
    """Many messages at once, valid until its ``with`` block ends, or longer where an array or view
    made from it still lives.

    In a lossless reader the descriptors and payloads lie in the ring; in a lossy one they are
    copies that were checked. A batch never runs over the end of either ring, so what is in it is
    contiguous.
    """

    def __init__(self):
        raise TypeError("batches come from Reader.batch()")

    def __dealloc__(self):
        self.unpin()
        free(self.owned)

    cdef void unpin(self) noexcept:
        if self.pin.linked:
            pin_unlink(&self.pin)
            if self.reader.lingering:
                self.reader.let_go()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()

    def release(self) -> None:
        """Give the messages back to the ring, once no array or view of them is left."""
        if self.released:
            return
        self.released = True
        if self.pin.exports == 0:
            self.unpin()
        if self.reader.is_open():
            self.reader.flush_if_due()

    cdef int check(self) except -1:
        if self.released:
            raise ValueError("the batch is over: use it inside its with block")
        if self.pin.linked:
            if rc_endpoint_phase(&self.reader.endpoint.c) == RC_FORKED:
                raise RingClosed("this batch lies in the parent process's ring: attach in the"
                                 " child")
            if not rc_reader_holds(&self.reader.ring):
                raise self.reader.evicted()
        return 0

    cdef View view(self, const uint8_t *data, Py_ssize_t size):
        cdef View view = View.__new__(View)
        view.batch = self
        view.data = data
        view.size = size
        return view

    cdef const uint8_t *place(self, uint64_t position, uint64_t length) except NULL:
        """Where a payload lies; the numbers are private copies and may be anything."""
        cdef uint64_t offset
        if self.owned != NULL:  # a copy of the bytes from `origin` on
            offset = position - self.origin
            if offset <= self.span and length <= self.span - offset:
                return self.payloads + offset
        else:
            offset = position & (self.reader.ring.capacity - 1)
            if length <= self.reader.ring.max_message and (
                    offset + length <= self.reader.ring.capacity):
                return self.payloads + offset
        raise RingCorrupt("a descriptor of this batch points outside the arena")

    def __len__(self):
        return self.count

    @property
    def first(self) -> int:
        """Sequence of the first message."""
        return self.pin.sequence

    @property
    def gap(self) -> int:
        """How many messages this reader missed just before the first; 0 in a lossless reader."""
        return self.missed

    @property
    def descriptors(self):
        """The descriptors as a read-only structured array of dtype `shm.DESCRIPTOR`, shape
        (len(batch),); the array keeps the batch pinned while it lives."""
        self.check()
        return numpy.frombuffer(self.view(<const uint8_t *>self.table, self.count * 64),
                                dtype=DESCRIPTOR)

    def payload(self, Py_ssize_t index) -> memoryview:
        """The bytes of message `index` in place; the view keeps the batch pinned while it lives."""
        cdef uint64_t position
        cdef uint32_t length
        self.check()
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError(f"the batch has {self.count} messages")
        position = rc_load_u64(&self.table[index].words[1])
        length = rc_descriptor_length(&self.table[index])
        return PyMemoryView_FromObject(self.view(self.place(position, length), length))

    def records(self, dtype):
        """All payloads as one read-only structured array, shape (len(batch),), without a copy; the
        array keeps the batch pinned while it lives.

        Args:
            dtype: what one payload holds; every message must have its itemsize.

        Raises:
            TypeError: the dtype holds Python objects.
            ValueError: a message has another length, or the payloads are not evenly spaced (as
                when messages of other lengths, or reservations, lie between them).
        """
        dtype = numpy.dtype(dtype)
        if dtype.hasobject:
            raise TypeError("payloads hold bytes, never Python objects: use a dtype without 'O'")
        if self.count == 0:
            return numpy.empty(0, dtype)
        self.check()
        cdef uint64_t size = dtype.itemsize
        cdef uint64_t origin, last
        self.check_lengths(size)
        cdef uint64_t stride = self.spacing(size, &origin, &last)
        cdef const uint8_t *start = self.place(origin, size)
        cdef Py_ssize_t span = stride * (self.count - 1) + size
        if <uint64_t>(self.place(last, size) - start) + size != <uint64_t>span:
            raise RingCorrupt("the descriptors of this batch do not hold together")
        flat = numpy.frombuffer(self.view(start, span), dtype=numpy.uint8)
        return numpy.ndarray((self.count,), dtype, buffer=flat, strides=(stride,))

    cdef int check_lengths(self, uint64_t size) except -1:
        """Has every message this length?"""
        cdef Py_ssize_t i
        cdef uint32_t length
        for i in range(self.count):
            length = rc_descriptor_length(&self.table[i])
            if length != size:
                raise ValueError(
                    f"records() needs messages of {size} bytes, the dtype's size, but message"
                    f" {self.first + i} has {length}: use payload(i)")
        return 0

    cdef uint64_t spacing(self, uint64_t size, uint64_t *origin, uint64_t *last) except? 0:
        """Bytes from each payload to the next, the same for all; and the positions of the first and
        the last. Each position is loaded once: it may be anything."""
        cdef Py_ssize_t i
        cdef uint64_t position, stride = size
        origin[0] = last[0] = rc_load_u64(&self.table[0].words[1])
        for i in range(1, self.count):
            position = rc_load_u64(&self.table[i].words[1])
            if i == 1:
                stride = position - last[0]
            if position - last[0] != stride or stride < size:
                raise ValueError(f"the payloads are not evenly spaced after message"
                                 f" {self.first + i - 1}: use payload(i)")
            last[0] = position
        # A batch lies in one round of the arena; so no product with the stride overflows below.
        if self.count > 1 and stride > self.reader.ring.capacity // <uint64_t>(self.count - 1):
            raise RingCorrupt("the descriptors of this batch do not hold together")
        return stride

    def __repr__(self):
        return f"<Batch of {self.count} messages from {self.first}>"


cdef int check_limit(Py_ssize_t limit) except -1:
    if limit < 1:
        raise ValueError(f"limit is a number of messages, 1 or more, not {limit}")
    return 0


cdef class Reader:
    """The native half of `shm.broadcast.Reader`, which see."""

    def __cinit__(self, Segments segments not None, Endpoint endpoint not None, uint32_t index,
                  Semaphores semaphores not None, Wait wait not None, writer_gone):
        self.pins.previous = &self.pins
        self.pins.following = &self.pins
        if index >= segments.geometry.max_readers or semaphores.count != 2:
            raise ValueError("a reader needs a slot of the ring and its two semaphores")
        self.segments = segments
        self.endpoint = endpoint
        self.semaphores = semaphores
        self.wait = wait
        self.writer_gone = writer_gone
        self.looked_ns = rc_now_ns()
        rc_reader_map(&self.ring, segments.data.address, segments.control.address,
                      &segments.geometry, index, semaphores.handles[0], semaphores.handles[1])

    def _join(self, bint lossy, bytes label, start, uint64_t started, uint16_t skipped) -> bool:
        """Join the ring through a slot whose lock is held; False: begin again with a slot."""
        self.skipped = skipped
        cdef rc_slot *slot = self.ring.slot
        cdef uint64_t published, wanted
        rc_slot_free(self.ring.control, self.ring.index, self.ring.space)  # a dead owner's remains
        rc_reader_claim(&self.ring, lossy)
        rc_store_u32(&slot.pid, os.getpid())
        rc_store_u64(&slot.started, started)
        rc_store_u64(&slot.joined_ns, rc_clock_ns(CLOCK_REALTIME))
        memset(slot.label, 0, RC_LABEL_MAX)
        memcpy(slot.label, PyBytes_AS_STRING(label), min(len(label), RC_LABEL_MAX - 1))
        published = rc_load_u64(&self.segments.header().published)
        if start == "latest":
            wanted = published
        elif start == "oldest":
            wanted = rc_load_u64(&self.segments.header().gate)
        elif start > published:
            rc_reader_leave(&self.ring)
            raise ValueError(f"sequence {start} is not published yet: the next one is {published}")
        else:
            wanted = start
        if not rc_reader_join(&self.ring, wanted):
            rc_reader_leave(&self.ring)
            return False
        if start in ("latest", "oldest"):  # what went while we joined was never promised
            self.ring.gap = self.ring.lost = 0
            rc_store_u64(&slot.lost, 0)
        self.joined = True
        return True

    def __dealloc__(self):
        # No message is left (each holds a reference), so nothing pins.
        if self.joined and self.endpoint is not None and not is_finalizing():
            self.finish()

    @cython.final
    cdef bint is_open(self) noexcept:
        return self.joined and rc_endpoint_phase(&self.endpoint.c) == RC_OPEN

    @cython.final
    cdef object evicted(self):
        return Evicted(f"the writer evicted reader slot {self.ring.index}: it held the ring full for"
                       " too long. Views made from its messages are not valid; attach again, and"
                       " read faster or with policy='lossy'")

    @cython.final
    cdef object corrupt(self):
        return RingCorrupt(f"ring {self.segments.name!r} holds an impossible descriptor or counter"
                           f" at sequence {self.ring.next}")

    # -- holding and letting go

    @cython.final
    cdef uint64_t floor(self) noexcept:
        """The oldest sequence still needed here."""
        return self.pins.following.sequence if self.pins.following != &self.pins else self.ring.next

    @cython.final
    cdef void flush(self) noexcept:
        """Tell the writer how far we are; not from a forked child, nor once the slot is given up."""
        if self.joined and rc_endpoint_phase(&self.endpoint.c) in (RC_OPEN, RC_CLOSING):
            rc_reader_flush(&self.ring, self.floor())

    @cython.final
    cdef void flush_if_due(self) noexcept:
        if rc_reader_flush_due(&self.ring):
            rc_reader_flush(&self.ring, self.floor())

    @cython.final
    cdef int settle(self) except -1:
        """Detach every message without an exported buffer, and tell the writer how far we are."""
        cdef int error = self.detach_all()
        if error == ENOMEM:
            raise MemoryError
        if error:
            raise self.evicted()
        self.flush()
        return 0

    @cython.final
    cdef int detach_all(self) noexcept:
        cdef rc_pin *pin = self.pins.following
        cdef rc_pin *following
        cdef int error = 0
        while pin != &self.pins and error == 0:
            following = pin.following  # detach() lets nothing run that could change the list
            if pin.exports == 0 and pin.message != NULL:
                error = (<Message>pin.message).detach()
            pin = following
        return error

    @cython.final
    cdef int refuse_to_block_the_ring(self) except -1:
        """About to sleep: raise if what is held here is what the writer waits for."""
        if self.pins.following == &self.pins or not rc_reader_blocks(&self.ring):
            return 0
        gc.collect()  # a cycle may be all that holds it
        self.settle()
        if self.pins.following == &self.pins or not rc_reader_blocks(&self.ring):
            return 0
        raise RingFull(
            f"this reader would wait for ever: the ring is full, and the writer waits for message"
            f" {self.pins.following.sequence}, of which a view, an array or an open batch is still"
            " alive here. Release it, or copy what you keep with bytes(message)")

    @cython.final
    cdef int step_down(self) except -1:
        """The writer asks this reader to go on as a lossy one. Done once nothing is exported."""
        self.asked = True
        self.ring.state = rc_demoting(self.ring.state)
        self.settle()
        if self.pins.following != &self.pins:
            return 0
        if not rc_reader_step_down(&self.ring):
            raise self.evicted()
        self.asked = False
        return 0

    # -- taking messages

    @cython.final
    cdef int take(self, Message message) except -1:
        """Fill a fresh message with the next one: 1; nothing to read: 0; the ring has ended: -2.

        From the look to the end nothing allocates Python objects, so no finalizer can come in
        between and read from this same reader.
        """
        cdef rc_result result
        cdef rc_descriptor *d = &message.descriptor
        cdef int i
        self.endpoint.check()
        if self.asked:
            self.step_down()
        for i in range(RECOVERIES):
            result = rc_reader_peek(&self.ring, d)
            if result == RC_MESSAGE:
                if self.skipped and d.f.kind == self.skipped:
                    if self.pass_over(d.f.length):
                        continue
                elif not self.ring.lossy:
                    self.hand_out(message)
                    return 1
                elif self.copy_out(message):
                    return 1
                result = RC_OVERRUN
            if result == RC_EMPTY:
                return 0
            if result == RC_ENDED:
                self.settle()  # who waits for readers to have read it all sees that this one has
                return -2
            self.recover(result)
        return 0

    @cython.final
    cdef void hand_out(self, Message message) noexcept:
        cdef rc_descriptor *d = &message.descriptor
        message.reader = self
        message.data = self.ring.arena + (d.f.position & (self.ring.capacity - 1))
        message.size = d.f.length
        message.missed = self.ring.gap
        message.pin.message = <void *>message
        pin_link(&self.pins, &message.pin, self.ring.next)
        rc_reader_advance(&self.ring, 1, d.f.length)
        self.flush_if_due()

    @cython.final
    cdef int copy_out(self, Message message) except -1:
        """Lossy: copy and check. 0: overrun."""
        cdef rc_descriptor *d = &message.descriptor
        cdef uint8_t *copy = <uint8_t *>malloc(d.f.length + 1)
        if copy == NULL:
            raise MemoryError
        rc_copy_out(copy, self.ring.arena + (d.f.position & (self.ring.capacity - 1)), d.f.length)
        if not rc_reader_intact(&self.ring, self.ring.next):
            free(copy)
            return 0
        message.reader = self
        free(message.owned)
        message.owned = copy
        message.data = copy
        message.size = d.f.length
        message.missed = self.ring.gap
        rc_reader_advance(&self.ring, 1, d.f.length)
        self.flush_if_due()
        return 1

    @cython.final
    cdef int pass_over(self, uint32_t length) except -1:
        """The next message is of the kind not wanted here. 0: overrun, so it may be none."""
        cdef uint64_t gap = self.ring.gap
        if self.ring.lossy and not rc_reader_intact(&self.ring, self.ring.next):
            return 0
        rc_reader_advance(&self.ring, 1, length)
        self.ring.received -= 1
        self.ring.gap = gap  # told with the next message that is handed out
        self.flush_if_due()
        return 1

    @cython.final
    cdef uint64_t until_skipped(self, const rc_descriptor *table, uint64_t n) noexcept:
        """How many of n messages, the first of which is wanted, come before one that is not."""
        cdef uint64_t i
        if self.skipped:
            for i in range(1, n):
                if rc_descriptor_kind(&table[i]) == self.skipped:
                    return i
        return n

    @cython.final
    cdef int recover(self, rc_result result) except -1:
        if result == RC_OVERRUN:
            if not rc_reader_resync(&self.ring):
                raise self.corrupt()
        elif result == RC_STEP_DOWN:
            self.step_down()
        elif result == RC_TAKEN_AWAY:
            raise self.evicted()
        else:
            raise self.corrupt()
        return 0

    @cython.final
    cdef object ended(self):
        return RingClosed(f"ring {self.segments.name!r} has ended: its writer closed it, and every"
                          " message was read")

    # -- waiting

    @cython.final
    cdef int look_around(self) except -1:
        """Each 100 ms of waiting: could there still come anything? What came before the writer went
        is read first, and after it went there is nothing more to miss."""
        cdef int64_t now = rc_now_ns()
        if now - self.looked_ns < RC_SLICE_NS:
            return 0
        self.looked_ns = now
        reason = self.writer_gone()
        if reason and not rc_reader_ready(&self.ring):
            raise RingClosed(reason)
        return 0

    @cython.final
    cdef int wait_until(self, int64_t deadline) except -1:
        """Wait for something to happen, 100 ms at most; 0: the deadline is over."""
        cdef rc_reader snapshot
        cdef rc_turn turn
        cdef rc_wait_strategy strategy
        cdef int64_t now = rc_now_ns()
        cdef int64_t limit
        self.settle()
        if now >= deadline:
            return 0
        self.refuse_to_block_the_ring()
        limit = deadline if deadline - now < RC_SLICE_NS else now + RC_SLICE_NS
        snapshot = self.ring
        with nogil:
            turn = rc_endpoint_turn(&self.endpoint.c, limit)
            if turn == RC_MY_TURN:
                strategy = rc_wait_begins(&self.waits, self.wait.c)
                rc_reader_wait(&snapshot, strategy, limit)
                rc_wait_ended(&self.waits, self.wait.c)
                rc_endpoint_wake_up(&self.endpoint.c)
        PyErr_CheckSignals()
        self.endpoint.check()
        self.look_around()
        return 1

    def read(self, timeout=None):
        """The next message, waiting for it.

        Args:
            timeout: seconds; None waits as long as it takes, 0 not at all.

        Returns:
            A `Message`, or None when the time is over.

        Raises:
            RingClosed: the ring has ended and every message was read, or was removed.
            Evicted: the writer took this reader's hold away.
            RingFull: a view held here is what the full ring's writer waits for.
            RingCorrupt: the segment holds what no writer writes.
        """
        cdef Message message = Message.__new__(Message)
        cdef int taken = self.take(message)
        cdef int64_t deadline
        if taken == 1:
            return message
        deadline = deadline_of(timeout)
        while True:
            if taken == 1:
                return message
            if taken == -2:
                raise self.ended()
            if not self.wait_until(deadline):
                return None
            taken = self.take(message)

    def __iter__(self):
        cdef Iteration iteration = Iteration.__new__(Iteration)
        iteration.reader = self
        return iteration

    def __next__(self):
        return self.next_message()

    @cython.final
    cdef Message next_message(self):
        cdef Message message = Message.__new__(Message)
        cdef int taken = self.take(message)
        while taken != 1:
            if taken == -2:
                raise StopIteration
            self.wait_until(FOR_EVER)
            taken = self.take(message)
        return message

    def read_available(self, Py_ssize_t limit=256) -> list:
        """What is there now, at most `limit` messages; never waits. Raises as `read` does."""
        cdef list messages = []
        cdef Message message
        cdef int taken
        check_limit(limit)
        try:
            while len(messages) < limit:
                message = Message.__new__(Message)
                taken = self.take(message)
                if taken == 1:
                    messages.append(message)
                elif taken == 0 or messages:
                    break
                else:
                    raise self.ended()
        except RingError:
            if not messages:  # else the next call raises it, and these are not lost
                raise
        if not messages:
            self.settle()  # a message that is kept does not hold the ring of one who only polls
        return messages

    def batch(self, Py_ssize_t limit=65536, timeout=None) -> Batch:
        """The next messages at once, waiting for the first; use it in a ``with`` block.

        Args:
            limit: at most so many messages.
            timeout: seconds to wait for the first; None for as long as it takes, 0 not at all.
                When it is over the batch is empty.

        Raises: as `read` does.
        """
        cdef Batch batch
        cdef rc_descriptor first
        cdef rc_result result
        cdef int64_t deadline = -1
        cdef int recoveries = 0
        check_limit(limit)
        batch = Batch.__new__(Batch)
        batch.reader = self
        while True:
            self.endpoint.check()
            if self.asked:
                self.step_down()
            result = rc_reader_peek(&self.ring, &first)
            if result == RC_MESSAGE:
                if self.skipped and first.f.kind == self.skipped:
                    if self.pass_over(first.f.length):
                        continue
                elif not self.ring.lossy:
                    self.hand_out_batch(batch, &first, limit)
                    return batch
                elif self.copy_out_batch(batch, limit):
                    return batch
                result = RC_OVERRUN
            if result == RC_ENDED:
                self.settle()
                raise self.ended()
            if result != RC_EMPTY:
                self.recover(result)
                recoveries += 1
                if recoveries % RECOVERIES:
                    continue
            if deadline < 0:
                deadline = deadline_of(timeout)
            if not self.wait_until(deadline):
                batch.pin.sequence = self.ring.next
                return batch

    @cython.final
    cdef void hand_out_batch(self, Batch batch, rc_descriptor *first, uint64_t limit) noexcept:
        cdef uint64_t n = rc_reader_available(&self.ring, limit)
        cdef const rc_descriptor *table = self.ring.descriptors + (
            self.ring.next & (self.ring.slots - 1))
        n = self.until_skipped(table, n)
        batch.table = table
        batch.count = n
        batch.payloads = self.ring.arena
        batch.missed = self.ring.gap
        pin_link(&self.pins, &batch.pin, self.ring.next)
        # how many bytes is only a hint of when to flush: nothing is believed of it
        rc_reader_advance(&self.ring, n,
                          rc_load_u64(&table[n - 1].words[1]) - first.f.position + first.f.length)

    @cython.final
    cdef int copy_out_batch(self, Batch batch, uint64_t limit) except -1:
        """Lossy: copy descriptors and payloads out, then check. 0: overrun."""
        cdef uint64_t span = 0, n = rc_reader_available(&self.ring, limit)
        cdef uint8_t *copy
        cdef const rc_descriptor *table = self.ring.descriptors + (
            self.ring.next & (self.ring.slots - 1))
        n = rc_reader_fitting(&self.ring, table, n, &span)
        if n == 0:  # torn or hostile
            if rc_reader_intact(&self.ring, self.ring.next):
                raise self.corrupt()
            return 0
        copy = <uint8_t *>malloc(n * 64 + span + 1)
        if copy == NULL:
            raise MemoryError
        rc_copy_out(copy, <const uint8_t *>table, n * 64)
        batch.origin = (<rc_descriptor *>copy)[0].f.position
        rc_copy_out(copy + n * 64, self.ring.arena + (batch.origin & (self.ring.capacity - 1)),
                    span if (batch.origin & (self.ring.capacity - 1)) + span <= self.ring.capacity
                    else 0)
        if not rc_reader_intact(&self.ring, self.ring.next):
            free(copy)
            return 0
        batch.payloads = copy + n * 64  # behind all descriptors copied, handed out or not
        n = self.until_skipped(<const rc_descriptor *>copy, n)
        batch.owned = copy
        batch.table = <const rc_descriptor *>copy
        batch.span = span
        batch.count = n
        batch.missed = self.ring.gap
        batch.pin.sequence = self.ring.next
        rc_reader_advance(&self.ring, n, span)
        self.flush_if_due()
        return 1

    # -- asyncio: one native thread waits on the semaphore and writes an eventfd

    def _take_nowait(self):
        """The next message or None, StopAsyncIteration at the end; for the asyncio half."""
        cdef Message message = Message.__new__(Message)
        cdef int taken = self.take(message)
        if taken == -2:
            raise StopAsyncIteration
        return message if taken == 1 else None

    def _before_await(self) -> None:
        """What every sleeper does first: let go of what it need not hold."""
        self.settle()
        self.refuse_to_block_the_ring()
        self.look_around()

    def _wait_natively(self, int eventfd) -> bool:
        """Wait, without the GIL, for a reason to look, then write `eventfd`. 100 ms at most, unless
        nothing is held here and the writer lives. False: this end is closed."""
        cdef rc_reader snapshot = self.ring
        cdef rc_turn turn = RC_LOOK_AGAIN
        cdef int64_t limit
        cdef int found = 0
        cdef uint64_t one = 1
        with nogil:
            while not found:
                limit = rc_now_ns() + RC_SLICE_NS
                turn = rc_endpoint_turn(&self.endpoint.c, limit)
                if turn == RC_CLOSED_MEANWHILE:
                    break
                if turn == RC_MY_TURN:
                    found = (rc_reader_sleep(&snapshot, limit) or rc_reader_blocks(&snapshot)
                             or rc_lock_held(self.endpoint.c.lock_fd, RC_LOCK_WRITER) != 1)
                    rc_endpoint_wake_up(&self.endpoint.c)
                found = found or rc_reader_ready(&snapshot)
            write(eventfd, &one, sizeof(one))
        return turn != RC_CLOSED_MEANWHILE

    # -- the end

    def close(self) -> None:
        """Leave the ring and unmap it. Messages without exported buffers stay readable: they take
        a copy. A thread that waits in this reader gets RingClosed.

        Raises:
            BufferError: views or arrays of messages are still alive; they would dangle.
        """
        if not self.joined:
            return
        if rc_endpoint_phase(&self.endpoint.c) == RC_FORKED:
            self.joined = False
            return
        if self.exported():
            raise BufferError(
                f"views, arrays or open batches of this reader are still alive, the oldest of"
                f" message {self.oldest_export()}: release them first")
        self.endpoint.leave(self.ring.wake)
        self.linger()

    @cython.final
    cdef bint exported(self) noexcept:
        cdef rc_pin *pin = self.pins.following
        while pin != &self.pins:
            if pin.exports or pin.message == NULL:
                return True
            pin = pin.following
        return False

    @cython.final
    cdef uint64_t oldest_export(self) noexcept:
        cdef rc_pin *pin = self.pins.following
        while pin.exports == 0 and pin.message != NULL:
            pin = pin.following
        return pin.sequence

    @cython.final
    cdef int linger(self) except -1:
        """Hold what is exported, and nothing else; finish when that is gone."""
        self.lingering = True
        self.let_go()
        return 0

    @cython.final
    cdef void let_go(self) noexcept:
        """After the end, each time something was released: what has become movable takes a copy;
        then move on, or finish with the last."""
        if not self.joined or rc_endpoint_phase(&self.endpoint.c) == RC_FORKED:
            return
        if self.detach_all() == ENOMEM:
            return
        if self.exported():
            self.flush()
        else:
            self.finish()

    @cython.final
    cdef void finish(self) noexcept:
        if self.joined:
            self.joined = False
            if rc_endpoint_phase(&self.endpoint.c) != RC_FORKED:
                rc_reader_leave(&self.ring)
                self.endpoint.finish()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if not self.joined or rc_endpoint_phase(&self.endpoint.c) == RC_FORKED:
            self.joined = False
            return
        self.endpoint.leave(self.ring.wake)
        self.linger()

    # -- figures

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return not self.is_open()

    @property
    def name(self) -> str:
        """The ring's name."""
        return self.segments.name

    @property
    def slot(self) -> int:
        """The reader slot, as `Writer.demote` and `shm.status` number them."""
        return self.ring.index

    @property
    def max_message(self) -> int:
        """Longest message, bytes."""
        return self.ring.max_message

    @property
    def policy(self) -> str:
        """"block", or "lossy"; a reader that was asked to step down has become lossy."""
        return "lossy" if self.ring.lossy else "block"

    @property
    def writer_alive(self) -> bool:
        """Has the ring a living writer? If not, another may resume it.

        Raises:
            RingClosed: this end is closed.
        """
        self.endpoint.check()
        return self.endpoint.is_held(RC_LOCK_WRITER)

    @property
    def note(self) -> bytes:
        """What the writer says of itself just now: see `Writer.note`; empty if it says nothing.

        Raises:
            RingClosed: this end is closed.
        """
        self.endpoint.check()
        return self.segments.note()

    @property
    def cursor(self) -> int:
        """Sequence of the next message this reader will take."""
        return self.ring.next

    @property
    def lag(self) -> int:
        """Messages published and not yet taken."""
        cdef uint64_t published
        self.endpoint.check()
        published = rc_load_u64(&self.segments.header().published)
        return published - self.ring.next if published > self.ring.next else 0

    @property
    def lost(self) -> int:
        """Messages missed since attaching; where, each message's `gap` says."""
        return self.ring.lost


@cython.final
cdef class Iteration:
    """What ``for message in reader`` steps through: a Python subclass's own ``__next__`` would cost a
    look-up and a call by message."""

    def __init__(self):
        raise TypeError("iterate a Reader")

    def __iter__(self):
        return self

    def __next__(self):
        return self.reader.next_message()


# ---- the writer ----------------------------------------------------------------------------


cdef inline void describe(rc_descriptor *d, uint32_t topic, uint16_t kind) noexcept:
    """A message that is received now."""
    memset(d, 0, sizeof(rc_descriptor))
    d.f.topic = topic
    d.f.kind = kind
    d.f.time_ns = rc_clock_ns(CLOCK_REALTIME)


@cython.final
@cython.no_gc
cdef class Reservation:
    """Room in the arena to write a message in place; valid until `commit` or the end of its
    ``with`` block.

    It exports the buffer protocol, writable: ``socket.recv_into(room)``, ``struct.pack_into``,
    ``numpy.frombuffer(room)`` and ``room[a:b] = data`` write straight into shared memory.
    """

    def __init__(self):
        raise TypeError("reservations come from Writer.reserve()")

    def __dealloc__(self):
        if self.writer is not None and self.writer.reservation == <void *>self:
            self.writer.reservation = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.abandoned = True
        if self.exports == 0:
            self.end()

    cdef void end(self) noexcept:
        self.over = True
        if self.writer.reservation == <void *>self:
            self.writer.reservation = NULL

    cdef int check(self) except -1:
        if self.over or self.abandoned:
            raise ValueError("the reservation is over")
        self.writer.endpoint.check()
        return 0

    def commit(self, nbytes=None, *, uint32_t topic=0, uint16_t kind=RC_KIND_BINARY) -> int:
        """Publish the first `nbytes` bytes (default: all) as one message; returns its sequence.

        Raises:
            BufferError: a view of the reservation is still alive and could write on.
            ValueError: more than was reserved, or the reservation is over.
        """
        cdef rc_descriptor d
        cdef int64_t n
        n = self.size if nbytes is None else nbytes  # may run code that commits: check after
        self.check()
        if not 0 <= n <= self.size:
            raise ValueError(f"{self.size} bytes are reserved, {nbytes!r} can't be published")
        if self.exports:
            raise BufferError("a view of the reservation is still alive: release it, then commit")
        describe(&d, topic, kind)
        d.f.length = n
        rc_writer_commit(&self.writer.ring, &d, self.start)
        rc_writer_release(&self.writer.ring)
        self.end()
        return self.writer.ring.next - 1

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        with PyMemoryView_FromObject(self) as view:
            return bytes(view[key]) if isinstance(key, slice) else view[key]

    def __setitem__(self, key, value):
        with PyMemoryView_FromObject(self) as view:
            view[key] = value

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.check()
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
        if self.exports == 0 and self.abandoned:
            self.end()


cdef class Writer:
    """The native half of `shm.broadcast.Writer`, which see."""

    def __cinit__(self, Segments segments not None, Endpoint endpoint not None,
                  Semaphores semaphores not None, Wait wait not None):
        if semaphores.count != <int>segments.geometry.max_readers + 1:
            raise ValueError("a writer needs every reader's semaphore, and its own last")
        self.segments = segments
        self.endpoint = endpoint
        self.semaphores = semaphores
        self.wait = wait
        self.turn = threading.Lock()
        rc_writer_map(&self.ring, segments.data.address, segments.control.address,
                      &segments.geometry, semaphores.handles,
                      semaphores.handles[segments.geometry.max_readers])

    def _open(self, bint resume) -> None:
        """Begin at sequence 0, or where the dead writer stopped. The writer lock is held."""
        if resume:
            if not rc_writer_resume(&self.ring):
                raise RingCorrupt(f"ring {self.segments.name!r} can't be resumed: its counters"
                                  f" are impossible; remove it with shm.unlink()")
            self._reap()
        rc_writer_sign(&self.ring, rc_load_u32(&self.segments.header().epoch) + 1, os.getpid(),
                       rc_clock_ns(CLOCK_REALTIME))
        rc_writer_wake_all(&self.ring)
        self.opened = True

    def _reap(self) -> None:
        """Free the slots of dead readers: those whose lock can be taken."""
        cdef rc_control *control = self.ring.control
        cdef uint32_t i
        cdef int fd = self.endpoint.c.lock_fd
        for i in range(self.ring.max_readers):
            if rc_load_u64(&rc_slot_at(control, i).state) & 0xff == RC_FREE:
                continue
            if rc_lock_try(fd, RC_LOCK_READER + i) == 0:
                rc_slot_free(control, i, self.ring.space)
                rc_lock_release(fd, RC_LOCK_READER + i)
        self.reaped_ns = rc_now_ns()

    @cython.final
    cdef int check(self) except -1:
        self.endpoint.check()
        if self.reservation != NULL:
            raise BufferError("a reservation is open, or a view of one that was left is still"
                              " alive: commit or leave it, and release its views")
        if self.ring.held:
            raise BufferError("a stream is being received into the ring and is in the midst of a"
                              " message: publish between its messages, or when it has ended")
        return 0

    @cython.final
    cdef int check_length(self, uint64_t length) except -1:
        if length > self.ring.max_message:
            raise MessageTooLarge(
                f"a message of {length} bytes is longer than this ring's limit of"
                f" {self.ring.max_message}, a quarter of its capacity: create it with"
                f" capacity={1 << (4 * length - 1).bit_length()} or more")
        return 0

    # Room. One thread at a time waits for it, without the GIL, and has the turn while it does. Whoever
    # comes while anybody has it or waits for it queues, so nobody barges in between.

    @cython.final
    cdef int wait_for_room(self, uint64_t length, int64_t deadline) except -1:
        """Wait at most 20 ms for room; reap. The caller has the turn. 0: the deadline is over."""
        cdef int64_t now = rc_now_ns()
        cdef rc_turn turn
        if now >= deadline:
            return 0
        with nogil:
            turn = rc_endpoint_turn(&self.endpoint.c, deadline)
            if turn == RC_MY_TURN:
                rc_writer_wait(&self.ring, length, self.wait.c, deadline)
                rc_endpoint_wake_up(&self.endpoint.c)
        PyErr_CheckSignals()
        self.endpoint.check()
        if rc_now_ns() - self.reaped_ns >= RC_ROOM_SLICE_NS:
            self._reap()
        return 1

    @cython.final
    cdef int begin_turn(self, int64_t deadline) except -1:
        """Become the one thread that works the ring while it is full. 0: not in time, or this very
        thread waits already and a signal handler of its publishes: then the ring is full."""
        cdef double seconds = -1 if deadline == FOR_EVER else (
            max(0, deadline - rc_now_ns()) / 1e9)
        cdef bint mine = False
        if self.turn_of == threading.get_ident():
            return 0
        self.queued += 1
        try:
            mine = self.turn.acquire(True, seconds)
        finally:
            if not mine:
                self.queued -= 1
        if mine:
            self.turn_of = threading.get_ident()
        return mine

    @cython.final
    cdef int end_turn(self) except -1:
        self.turn_of = 0
        self.queued -= 1
        if self.ring.wants:  # given up
            rc_writer_want_nothing(&self.ring)
        self.turn.release()
        return 0

    @cython.final
    cdef object full(self, uint64_t length, uint64_t published):
        return RingFull(
            f"no room for {length} bytes in ring {self.segments.name!r} in time: reader"
            f" {self.slowest()} holds it full", published)

    @cython.final
    cdef object slowest(self):
        cdef uint32_t i
        cdef uint64_t cursor, lowest = UINT64_MAX
        found = None
        for i in range(self.ring.max_readers):
            counters = self.segments.reader_counters(i)
            cursor = counters[6]
            if counters[9] and counters[0] != RC_EVICTED and cursor < lowest:
                lowest = cursor
                found = f"slot {i} (process {counters[2]}, {counters[5]!r}, at {cursor})"
        return found or "(none any more)"

    @cython.final
    cdef int put(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length,
                 int64_t deadline) except -1:
        """Put one message in, waiting for room; the caller has the turn. 0: not in time."""
        while not rc_writer_try_put(&self.ring, d, bytes, length):
            if not self.wait_for_room(length, deadline):
                return 0
            self.check()
        return 1

    @cython.final
    cdef int put_slowly(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length,
                        object timeout) except -1:
        cdef int64_t deadline = deadline_of(timeout)
        cdef int done = 0
        if self.begin_turn(deadline):
            try:
                self.check()
                done = self.put(d, bytes, length, deadline)
            finally:
                self.end_turn()
        if not done:
            raise self.full(length, 0)
        return 0

    def publish(self, data, *, uint32_t topic=0, uint16_t kind=RC_KIND_BINARY, timeout=None) -> int:
        """Publish one message and wake who waits for it; waits while the ring is full.

        Args:
            data: bytes or any C-contiguous buffer, from 0 to `max_message` bytes; copied.
            topic: a number readers see with the message.
            kind: a `shm.Kind`.
            timeout: seconds to wait for room; None waits as long as it takes.

        Returns:
            The message's sequence.

        Raises:
            RingFull: no room in time.
            MessageTooLarge: longer than `max_message`.
            BufferError: a reservation is open.
            RingClosed: this writer is closed.
        """
        cdef rc_descriptor d
        cdef Py_buffer view
        cdef uint64_t sequence
        self.check()
        describe(&d, topic, kind)
        if PyBytes_CheckExact(data):
            self.put_one(&d, <const uint8_t *>PyBytes_AS_STRING(data), len(<bytes>data), timeout)
            return self.ring.next - 1
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.put_one(&d, <const uint8_t *>view.buf, view.len, timeout)
            sequence = self.ring.next - 1  # releasing the buffer may run other code
        finally:
            PyBuffer_Release(&view)
        return sequence

    @cython.final
    cdef int put_one(self, rc_descriptor *d, const uint8_t *bytes, uint64_t length,
                     object timeout) except -1:
        self.check_length(length)
        if self.queued or not rc_writer_try_put(&self.ring, d, bytes, length):
            self.put_slowly(d, bytes, length, timeout)
        rc_writer_release(&self.ring)
        return 0

    def try_publish(self, data, *, uint32_t topic=0, uint16_t kind=RC_KIND_BINARY):
        """As `publish`, but never waits: returns None when the ring is full."""
        cdef rc_descriptor d
        cdef Py_buffer view
        cdef int done
        self.check()
        describe(&d, topic, kind)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.check_length(view.len)
            done = self.try_put(&d, <const uint8_t *>view.buf, view.len)
            sequence = self.ring.next - 1 if done else None
        finally:
            PyBuffer_Release(&view)
        return sequence

    @cython.final
    cdef int try_put(self, rc_descriptor *d, const uint8_t *bytes, uint32_t length) except -1:
        if self.queued:
            return 0
        if not rc_writer_try_put(&self.ring, d, bytes, length):
            if rc_now_ns() - self.reaped_ns >= RC_ROOM_SLICE_NS:
                self._reap()
            if not (rc_writer_hint(&self.ring, length)
                    and rc_writer_try_put(&self.ring, d, bytes, length)):
                return 0
        rc_writer_release(&self.ring)
        return 1

    def publish_many(self, buffers, *, uint32_t topic=0, uint16_t kind=RC_KIND_BINARY,
                     timeout=None) -> range:
        """Publish many messages with one release and one wake-up; waits while the ring is full,
        having published what fits.

        Args:
            buffers: a sequence of bytes or C-contiguous buffers; each is copied. All are looked at
                before the first is published.
            topic, kind: of all of them.
            timeout: seconds to wait for room in all; None waits as long as it takes.

        Returns:
            The sequences, as a range.

        Raises:
            RingFull: no room in time; its `published` says how many went before.
            MessageTooLarge, TypeError, BufferError: nothing was published.
        """
        cdef rc_descriptor d
        cdef uint64_t first
        cdef object fast = PySequence_Fast(buffers, "publish_many() takes a sequence of buffers")
        cdef Py_ssize_t i, n = PySequence_Fast_GET_SIZE(fast)
        cdef int64_t deadline = FOR_EVER if timeout is None else deadline_of(timeout)
        cdef bint mine = False
        for i in range(n):
            if i >= PySequence_Fast_GET_SIZE(fast):
                raise RuntimeError("the sequence changed while it was looked at")
            self.check_buffer(<object>PySequence_Fast_GET_ITEM(fast, i))
        describe(&d, topic, kind)
        if self.queued:
            if not self.begin_turn(deadline):
                raise self.full(0, 0)
            mine = True
        first = self.ring.next
        try:
            self.check()
            for i in range(n):
                if i >= PySequence_Fast_GET_SIZE(fast):
                    raise RuntimeError("the sequence changed while it was published")
                item = <object>PySequence_Fast_GET_ITEM(fast, i)
                if self.put_item(&d, item):
                    continue
                if not mine:
                    if not self.begin_turn(deadline):
                        raise self.full(len(item), self.ring.next - first)
                    mine = True
                    self.check()
                self.put_item_slowly(&d, item, deadline, first)
        finally:
            rc_writer_release(&self.ring)
            if mine:
                self.end_turn()
        return range(first, first + n)

    @cython.final
    cdef int check_buffer(self, object item) except -1:
        cdef Py_buffer view
        if PyBytes_CheckExact(item):
            return self.check_length(len(<bytes>item))
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
        cdef uint64_t length = view.len
        PyBuffer_Release(&view)
        return self.check_length(length)

    @cython.final
    cdef int put_item(self, rc_descriptor *d, object item) except -1:
        """Put one in if there is room."""
        cdef Py_buffer view
        cdef int done
        if PyBytes_CheckExact(item):
            self.check_length(len(<bytes>item))
            return rc_writer_try_put(&self.ring, d, <const uint8_t *>PyBytes_AS_STRING(item),
                                     len(<bytes>item))
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.check_length(view.len)
            done = rc_writer_try_put(&self.ring, d, <const uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return done

    @cython.final
    cdef int put_item_slowly(self, rc_descriptor *d, object item, int64_t deadline,
                             uint64_t first) except -1:
        cdef Py_buffer view
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            self.check()
            self.check_length(view.len)
            if not self.put(d, <const uint8_t *>view.buf, view.len, deadline):
                raise self.full(view.len, self.ring.next - first)
        finally:
            PyBuffer_Release(&view)
        return 0

    def reserve(self, Py_ssize_t nbytes, timeout=None) -> Reservation:
        """Room for a message of at most `nbytes` bytes, to be written in place; use it in a
        ``with`` block and call `Reservation.commit`. Leaving the block without publishes nothing.

        One reservation can be open at a time, and nothing else be published meanwhile. Raises as
        `publish` does.
        """
        cdef Reservation room
        cdef uint64_t start = 0
        cdef int64_t deadline
        if nbytes < 0:
            raise ValueError(f"nbytes is 0 or more, not {nbytes}")
        self.check()
        self.check_length(nbytes)
        room = Reservation.__new__(Reservation)
        if self.queued or not rc_writer_room(&self.ring, nbytes, &start):
            deadline = deadline_of(timeout)
            if not self.begin_turn(deadline):
                raise self.full(nbytes, 0)
            try:
                self.check()
                while not rc_writer_room(&self.ring, nbytes, &start):
                    if not self.wait_for_room(nbytes, deadline):
                        raise self.full(nbytes, 0)
            finally:
                self.end_turn()
        room.writer = self
        room.start = start
        room.size = nbytes
        room.data = self.ring.arena + (start & (self.ring.capacity - 1))
        self.reservation = <void *>room
        return room

    # -- readers

    def demote(self, uint32_t slot) -> bool:
        """Ask the reader in `slot` to step down: at its next call into the ring it copies what it
        holds, stops gating and goes on as a lossy reader. It does so once no view or array of its
        messages is alive. False if there is no gating reader."""
        self.endpoint.check()
        self.check_slot(slot)
        if not rc_slot_demote(self.ring.control, slot):
            return False
        rc_post(self.semaphores.handles[slot])
        return True

    def evict(self, uint32_t slot) -> bool:
        """Take the ring away from the reader in `slot`, at once: views it holds are no longer valid
        and its next call raises Evicted. For a reader that does not step down when asked. False if
        there is no reader."""
        self.endpoint.check()
        self.check_slot(slot)
        if not rc_slot_evict(self.ring.control, slot):
            return False
        rc_post(self.semaphores.handles[slot])
        return True

    @cython.final
    cdef int check_slot(self, uint32_t slot) except -1:
        if slot >= self.ring.max_readers:
            raise IndexError(f"the ring has reader slots 0 to {self.ring.max_readers - 1}")
        return 0

    # -- the note

    @property
    def note(self) -> bytes:
        """What this writer publishes about itself, such as the state of its connection: at most
        1016 bytes that anybody can look up at any time (`shm.status`, `Reader.note`). Assigning
        bytes, or any C-contiguous buffer, replaces it.

        Raises:
            MessageTooLarge: the new one is longer.
            RingClosed: this writer is closed.
        """
        self.endpoint.check()
        return self.segments.note()

    @note.setter
    def note(self, data):
        cdef bytes copy = bytes(data)
        self.endpoint.check()
        if len(copy) > <Py_ssize_t>RC_NOTE_MAX:
            raise MessageTooLarge(f"a note has at most {RC_NOTE_MAX} bytes, not {len(copy)}")
        rc_note_write(self.ring.header, <const uint8_t *>PyBytes_AS_STRING(copy), len(copy))

    # -- the end

    def close(self) -> None:
        """End the ring: readers drain it, then see the end. The segments stay until `unlink`.

        Raises:
            BufferError: a view of a reservation is still alive.
        """
        if self.reservation != NULL and (<Reservation>self.reservation).exports:
            raise BufferError("a view of a reservation is still alive: release it first")
        if self._end():
            self.abandon()

    def _end(self) -> bool:
        """End the ring, keeping the writer lock; False if it has ended, or is a parent's."""
        if not self.opened:
            return False
        self.opened = False
        if rc_endpoint_phase(&self.endpoint.c) == RC_FORKED:
            return False
        if self.reservation != NULL:  # a view that is left may write on: nobody reads there any more
            (<Reservation>self.reservation).end()
        self.endpoint.leave(self.ring.space)
        rc_writer_end(&self.ring)
        return True

    def abandon(self) -> None:
        """Let go of the ring without ending it, as a crash would: `resume` goes on with it."""
        self.endpoint.finish()

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return not self.opened or rc_endpoint_phase(&self.endpoint.c) != RC_OPEN

    @property
    def name(self) -> str:
        """The ring's name."""
        return self.segments.name

    @property
    def sequence(self) -> int:
        """Sequence of the next message."""
        return self.ring.next

    @property
    def oldest(self) -> int:
        """Oldest sequence that is not given up to be overwritten."""
        return self.ring.gate

    @property
    def epoch(self) -> int:
        """1 for the ring's creator, one more for each writer that resumed it."""
        return self.ring.epoch

    @property
    def slots(self) -> int:
        """Messages the ring can hold."""
        return self.ring.slots

    @property
    def capacity(self) -> int:
        """Bytes of the arena."""
        return self.ring.capacity

    @property
    def max_message(self) -> int:
        """Longest message, bytes."""
        return self.ring.max_message


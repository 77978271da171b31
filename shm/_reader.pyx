# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""A reader, its messages and batches: lifetimes of bytes, buffers, errors.

The protocols are in native/broadcast.h (what the processes do to each other) and native/endpoint.h
(what the threads of one process do to each other); this file gives them Python lifetimes. Message,
Batch and Reader stand together, since they share one list, and the proof that it holds is one:

* A message of a lossless reader lies in the arena. It is linked into its reader's list of *pins*,
  ordered by sequence, and the reader's cursor never passes the first pin. A pin without an exported
  buffer can be *detached*: it takes a private copy and leaves the list. Exported buffers can't move,
  so they pin.
* An object that exports memory holds a reference to its reader, and a reader unmaps only when no pin
  is left. Deallocation, which may run in the midst of an allocation or in another thread, does no
  more than leave the list.

All of it runs under the GIL but for the waiting, which works on a snapshot of the reader.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport ENOMEM, EPERM
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp

from ringcast.shm._core cimport (
    RC_ANSWER_MAX, RC_CLOSED_MEANWHILE, RC_CLOSING, RC_EMPTY, RC_ENDED, RC_FORKED, RC_LEARN,
    RC_LOCK_WRITER, RC_LOOK_AGAIN, RC_MESSAGE, RC_MY_TURN, RC_OPEN, RC_OVERRUN, RC_SLICE_NS,
    RC_STEP_DOWN, RC_TAKEN_AWAY, RC_WANTED, RINGCAST_BLOCK, RINGCAST_LATEST, RINGCAST_LOSSY,
    RINGCAST_OK, RINGCAST_OLDEST, RINGCAST_SEQUENCE, is_finalizing, rc_answer, rc_answer_read,
    rc_answers_offset, rc_attached_reader_is_abandoned, rc_attached_reader_wait, rc_copy_out,
    rc_demoting, rc_descriptor, rc_descriptor_length, rc_endpoint_phase, rc_endpoint_rouse,
    rc_endpoint_turn, rc_endpoint_wake_up, rc_error, rc_filter_ask_snapshot, rc_filter_find,
    rc_filter_learn, rc_filter_remove, rc_glance, rc_header,
    rc_load_u32, rc_load_u64, rc_lock_held, rc_now_ns, rc_reader, rc_reader_advance,
    rc_reader_available, rc_reader_blocks, rc_reader_fitting, rc_reader_flush, rc_reader_flush_due,
    rc_reader_gather, rc_reader_glance, rc_reader_holds, rc_reader_intact, rc_reader_is_meant,
    rc_reader_look_up, rc_reader_may_decline,
    rc_reader_options, rc_reader_pass, rc_reader_peek, rc_reader_ready, rc_reader_resync, rc_reader_sleep,
    rc_reader_snapshot, rc_reader_step_down, rc_reader_wants, rc_reader_within, rc_result,
    rc_show_wishes, rc_topic, rc_topic_info, rc_topic_name_length, rc_topic_read, rc_topics_at,
    rc_topics_count, rc_turn, rc_want_topic, write,
)
from ringcast.shm._endpoint cimport (
    WaitStrategy, attach_reader, check_making, check_open, deadline_of, detach_reader, error_of,
    label_of, leave, leave_reader, owner_of, read_note,
)
from ringcast.shm._topics cimport rows_of

import gc

import numpy

from ._endpoint import KINDS
from .counters import WishesAnswer
from .errors import Evicted, RingClosed, RingCorrupt, RingError, RingFull

#: The descriptor as numpy sees it; tests compare it with layout.h.
DESCRIPTOR = numpy.dtype([
    ("seq1", "u8"), ("position", "u8"), ("length", "u4"), ("topic", "u4"), ("time_ns", "u8"),
    ("key", "u8"), ("kind", "u2"), ("connection", "u2"), ("destination", "u2"), ("flags", "u2"),
    ("epoch", "u4"), ("crc32c", "u4"), ("reserved", "u8"),
])

cdef int64_t FOR_EVER = INT64_MAX
cdef enum:
    DESCRIPTOR_BYTES = 64
    # How often one call catches up with a writer that laps it before it looks at signals and its
    # timeout.
    RECOVERIES = 64
    PASSES_IN_A_ROUND = 8  # of the ring, at least: between them the cursor is stored
    GATHER_FIRST = 64  # descriptors for which a batch that is gathered has room at first
    READS = 64  # of something that changes meanwhile
    TAKEN = 1   # what `take` returns
    EMPTY = 0
    AT_END = -2


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

    @cython.final
    cdef int check(self) except -1:
        """May the payload be looked at?"""
        if self.pin.linked:
            if rc_endpoint_phase(&self.reader.a.endpoint) == RC_FORKED:
                raise RingClosed("this message lies in the parent process's ring: copy it before"
                                 " the fork, or attach in the child")
            if not rc_reader_holds(&self.reader.a.reader):
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
        if not rc_reader_holds(&self.reader.a.reader):
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
    def topic_name(self) -> str | None:
        """The topic's name in the ring's table; None if the message has no topic, or only a number."""
        return self.reader.name_of(self.descriptor.f.topic)

    @property
    def key(self) -> int:
        """What work groups share messages out by, by default a hash of the topic's name
        (`shm.hash_key`); 0 for none."""
        return self.descriptor.f.key

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
        if self.pin.exports == 0 and self.pin.linked:
            self.unexported()

    cdef void unexported(self) noexcept:
        """The last buffer was released of a message that lies in the arena."""
        if self.reader.lingering:
            self.reader.let_go()

    def __repr__(self):
        return (f"<{type(self).__name__} {self.sequence} kind={self.kind!r} topic={self.topic}"
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


@cython.no_gc
cdef class Batch:
    """Many messages at once, valid until its ``with`` block ends, or longer where an array or view
    made from it still lives.

    In a lossless reader the descriptors and payloads lie in the ring; in a lossy one they are
    copies that were checked. A batch never runs over the end of either ring, so what is in it is
    contiguous; in that of a reader that chooses among topics, what is not wanted lies in between, and
    the descriptors are a copy of those that are.
    """

    def __init__(self):
        raise TypeError("batches come from Reader.batch()")

    def __dealloc__(self):
        self.unpin()
        free(self.owned)
        free(self.places)

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

    @cython.final
    cdef int check(self) except -1:
        if self.released:
            raise ValueError("the batch is over: use it inside its with block")
        if self.pin.linked:
            if rc_endpoint_phase(&self.reader.a.endpoint) == RC_FORKED:
                raise RingClosed("this batch lies in the parent process's ring: attach in the"
                                 " child")
            if not rc_reader_holds(&self.reader.a.reader):
                raise self.reader.evicted()
        return 0

    @cython.final
    cdef View view(self, const uint8_t *data, Py_ssize_t size):
        cdef View view = View.__new__(View)
        view.batch = self
        view.data = data
        view.size = size
        return view

    @cython.final
    cdef uint64_t position(self, Py_ssize_t index) noexcept:
        """Of a payload in what it lies in; loaded once, it may be anything."""
        return self.places[index] if self.places != NULL else rc_load_u64(&self.table[index].words[1])

    @cython.final
    cdef const uint8_t *place(self, uint64_t position, uint64_t length) except NULL:
        """Where a payload lies; the numbers are private copies and may be anything."""
        cdef uint64_t offset
        if self.copied:  # the bytes from `origin` on
            offset = position - self.origin
            if offset <= self.span and length <= self.span - offset:
                return self.payloads + offset
        else:
            offset = position & (self.reader.a.reader.capacity - 1)
            if length <= self.reader.a.reader.max_message and (
                    offset + length <= self.reader.a.reader.capacity):
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
        (len(batch),); the array keeps the batch pinned while it lives. The field `flags` says, in its
        four lowest bits, how many bytes of a WebSocket frame's header stand in the ring directly
        before the payload: 2, 4, 10, or 0 for none (RFC 6455 section 5.2)."""
        self.check()
        return numpy.frombuffer(self.view(<const uint8_t *>self.table, self.count * DESCRIPTOR_BYTES),
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
        position = self.position(index)
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

    @cython.final
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

    @cython.final
    cdef uint64_t spacing(self, uint64_t size, uint64_t *origin, uint64_t *last) except? 0:
        """Bytes from each payload to the next, the same for all; and the positions of the first and
        the last. Each position is loaded once: it may be anything."""
        cdef Py_ssize_t i
        cdef uint64_t position, stride = size
        origin[0] = last[0] = self.position(0)
        for i in range(1, self.count):
            position = self.position(i)
            if i == 1:
                stride = position - last[0]
            if position - last[0] != stride or stride < size:
                raise ValueError(f"the payloads are not evenly spaced after message"
                                 f" {self.first + i - 1}: use payload(i)")
            last[0] = position
        # A batch lies in one round of the arena; so no product with the stride overflows below.
        if self.count > 1 and stride > self.reader.a.reader.capacity // <uint64_t>(self.count - 1):
            raise RingCorrupt("the descriptors of this batch do not hold together")
        return stride

    def __repr__(self):
        return f"<{type(self).__name__} of {self.count} messages from {self.first}>"


cdef bytes check_topic(topic):
    """The UTF-8 of a name or pattern."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a string, not {type(topic).__name__}: {topic!r:.60}")
    if "\0" in topic:
        raise ValueError(f"{topic!r:.60} can't name a topic: it has a NUL in it")
    return topic.encode()


cdef int check_limit(Py_ssize_t limit) except -1:
    if limit < 1:
        raise ValueError(f"limit is a number of messages, 1 or more, not {limit}")
    return 0


cdef class Reader:
    """The native half of `shm.broadcast.Reader`, which see."""

    def __cinit__(self, *args, **kwargs):
        check_making(args, "readers are made by Reader.attach(name)")
        self.pins.previous = &self.pins
        self.pins.following = &self.pins
        _, name, lossy, start, wait, label, owner, skip, topics, others, group, balance, most = args[:13]
        self.names = {}
        self.attach_to(name, lossy, start, wait, label, owner, skip, topics, others, group, balance,
                       most)

    cdef int attach_to(self, str name, bint lossy, start, WaitStrategy wait, label, owner,
                       uint16_t skip, topics, bint others, group, uint32_t balance,
                       uint32_t max_deliveries) except -1:
        cdef rc_reader_options how
        cdef bytes group_bytes = b"" if group is None else group.encode()
        cdef bytes label_bytes = label_of(label)
        cdef list encoded = [check_topic(topic) for topic in topics or ()]
        cdef const char **texts = <const char **>calloc(len(encoded) + 1, sizeof(char *))
        cdef Py_ssize_t i
        if texts == NULL:
            raise MemoryError
        how.policy = RINGCAST_LOSSY if lossy else RINGCAST_BLOCK
        how.start = RINGCAST_SEQUENCE
        how.sequence = 0
        how.label = label_bytes
        how.topics = texts
        how.topic_count = len(encoded)
        how.chooses = topics is not None
        how.others = others
        how.skip = skip
        how.group = NULL
        if group is not None:
            how.group = group_bytes
        how.balance = balance
        how.max_deliveries = max_deliveries
        if start == "latest":
            how.start = RINGCAST_LATEST
        elif start == "oldest":
            how.start = RINGCAST_OLDEST
        else:
            how.sequence = min(start, UINT64_MAX)  # which no ring has published
        try:
            how.owner = owner_of(owner)
            for i in range(len(encoded)):
                texts[i] = <bytes>encoded[i]
            attach_reader(&self.a, name.encode(), &how)
        except ValueError as error:
            if how.sequence != UINT64_MAX:
                raise
            raise ValueError(str(error).replace(str(how.sequence), str(start), 1)) from None
        finally:
            free(texts)
        self.attached = self.joined = True
        self.name = name
        self.wait = wait
        return 0

    cdef const rc_header *header(self) noexcept:
        return <const rc_header *>self.a.ring.data.address

    def __dealloc__(self):
        # No message is left (each holds a reference), so nothing pins. Never at exit: daemon
        # threads may still be looking at it, and the kernel does it anyway.
        if self.attached and not is_finalizing():
            self.finish()
            detach_reader(&self.a)

    @cython.final
    cdef bint is_open(self) noexcept:
        return self.joined and rc_endpoint_phase(&self.a.endpoint) == RC_OPEN

    @cython.final
    cdef object evicted(self):
        return Evicted(f"the writer evicted reader slot {self.a.reader.index}: it held the ring full for"
                       " too long. Views made from its messages are not valid; attach again, and"
                       " read faster or with policy='lossy'")

    @cython.final
    cdef object corrupt(self):
        return RingCorrupt(f"ring {self.name!r} holds an impossible descriptor or counter"
                           f" at sequence {self.a.reader.next}")

    # -- holding and letting go

    @cython.final
    cdef uint64_t floor(self) noexcept:
        """The oldest sequence still needed here."""
        return self.pins.following.sequence if self.pins.following != &self.pins else self.a.reader.next

    cdef void flush(self) noexcept:
        """Tell the writer how far we are; not from a forked child, nor once the slot is given up."""
        if self.joined and rc_endpoint_phase(&self.a.endpoint) in (RC_OPEN, RC_CLOSING):
            rc_reader_flush(&self.a.reader, self.floor())

    @cython.final
    cdef void flush_if_due(self) noexcept:
        if rc_reader_flush_due(&self.a.reader):
            rc_reader_flush(&self.a.reader, self.floor())

    cdef int settle(self) except -1:
        """Detach every message without an exported buffer, and store the cursor."""
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
        if self.pins.following == &self.pins or not rc_reader_blocks(&self.a.reader):
            return 0
        gc.collect()  # a cycle may be all that holds it
        self.settle()
        if self.pins.following == &self.pins or not rc_reader_blocks(&self.a.reader):
            return 0
        raise RingFull(
            f"this reader would wait for ever: the ring is full, and the writer waits for message"
            f" {self.pins.following.sequence}, of which a view, an array or an open batch is still"
            " alive here. Release it, or copy what you keep with bytes(message)")

    @cython.final
    cdef int step_down(self) except -1:
        """The writer asks this reader to go on as a lossy one. Done once nothing is exported."""
        self.asked = True
        self.a.reader.state = rc_demoting(self.a.reader.state)
        self.settle()
        if self.pins.following != &self.pins:
            return 0
        if not rc_reader_step_down(&self.a.reader):
            raise self.evicted()
        self.asked = False
        return 0

    # -- taking messages

    @cython.final
    cdef int take(self, Message message) except -1:
        """Fill a fresh message with the next one: TAKEN; nothing to read: EMPTY; the ring has ended: AT_END.

        From the look to the end nothing allocates Python objects, so no finalizer can come in
        between and read from this same reader.
        """
        cdef rc_result result
        cdef rc_descriptor *d = &message.descriptor
        cdef int i
        check_open(&self.a.endpoint)
        if self.asked:
            self.step_down()
        for i in range(RECOVERIES):
            result = rc_reader_peek(&self.a.reader, d)
            if result == RC_MESSAGE:
                if not self.wants(d):
                    if self.pass_over():
                        continue
                elif not self.a.reader.lossy:
                    self.hand_out(message)
                    return TAKEN
                elif self.copy_out(message):
                    return TAKEN
                result = RC_OVERRUN
            if result == RC_EMPTY:
                return EMPTY
            if result == RC_ENDED:
                self.settle()  # a writer that waits until all is read sees that we have
                return AT_END
            self.recover(result)
        return 0

    @cython.final
    cdef void hand_out(self, Message message) noexcept:
        cdef rc_descriptor *d = &message.descriptor
        message.reader = self
        message.data = self.a.reader.arena + (d.f.position & (self.a.reader.capacity - 1))
        message.size = d.f.length
        message.missed = self.a.reader.gap
        message.pin.message = <void *>message
        pin_link(&self.pins, &message.pin, self.a.reader.next)
        rc_reader_advance(&self.a.reader, 1, d.f.length)
        self.flush_if_due()

    @cython.final
    cdef int copy_out(self, Message message) except -1:
        """Lossy: copy and check. 0: overrun."""
        cdef rc_descriptor *d = &message.descriptor
        cdef uint8_t *copy = <uint8_t *>malloc(d.f.length + 1)
        if copy == NULL:
            raise MemoryError
        rc_copy_out(copy, self.a.reader.arena + (d.f.position & (self.a.reader.capacity - 1)), d.f.length)
        if not rc_reader_intact(&self.a.reader, self.a.reader.next):
            free(copy)
            return 0
        message.reader = self
        free(message.owned)
        message.owned = copy
        message.data = copy
        message.size = d.f.length
        message.missed = self.a.reader.gap
        rc_reader_advance(&self.a.reader, 1, d.f.length)
        self.flush_if_due()
        return 1

    @cython.final
    cdef bint wants(self, const rc_descriptor *d) noexcept:
        """Is this message, a private copy, handed out here?"""
        cdef rc_glance glance = rc_reader_glance(d)
        cdef int wants = rc_reader_wants(&self.a.reader, glance)
        if wants == RC_LEARN:
            rc_filter_learn(&self.a.filter)
            wants = rc_reader_wants(&self.a.reader, glance)
        return wants == RC_WANTED

    @cython.final
    cdef bint pass_over(self) noexcept:
        """The next message is not wanted here, and perhaps more after it. False: a lossy reader was
        overrun. If none was passed over for another reason (an eviction, a topic that has just
        arrived), the next look says so."""
        cdef uint64_t passed = rc_reader_pass(&self.a.reader,
                                              self.a.reader.slots // PASSES_IN_A_ROUND + 1)
        if passed:
            self.flush_if_due()
        return passed or not self.is_overrun()

    @cython.final
    cdef bint is_overrun(self) noexcept:
        return self.a.reader.lossy and not rc_reader_intact(&self.a.reader, self.a.reader.next)

    @cython.final
    cdef uint64_t until_unwanted(self, const rc_descriptor *table, uint64_t n) noexcept:
        """How many of n messages, the first of which is wanted, come before one that is not. For a
        reader that does not choose among topics."""
        cdef uint64_t i
        if rc_reader_may_decline(&self.a.reader):
            for i in range(1, n):
                if rc_reader_wants(&self.a.reader, rc_reader_glance(&table[i])) != RC_WANTED:
                    return i
        return n

    @cython.final
    cdef int recover(self, rc_result result) except -1:
        if result == RC_OVERRUN:
            if not rc_reader_resync(&self.a.reader):
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
        return RingClosed(f"ring {self.name!r} has ended: its writer closed it, and every"
                          " message was read")

    # -- waiting

    @cython.final
    cdef int look_around(self) except -1:
        """Could there still come anything? Looks each 100 ms at most."""
        if rc_attached_reader_is_abandoned(&self.a, &self.a.reader, &self.a.looked_ns):
            raise RingClosed(f"ring {self.name!r} has no writer and was removed, so no message can"
                             " come any more")
        return 0

    @cython.final
    cdef int learn(self) except -1:
        """Match topics that have arrived. Not once the slot may be another's, and its bits with it."""
        check_open(&self.a.endpoint)
        rc_filter_learn(&self.a.filter)
        return 0

    @cython.final
    cdef int wait_until(self, int64_t deadline) except -1:
        """Wait for something to happen, 100 ms at most; 0: the deadline is over."""
        cdef rc_reader snapshot
        self.settle()
        if rc_now_ns() >= deadline:
            return 0
        self.learn()
        self.refuse_to_block_the_ring()
        snapshot = rc_reader_snapshot(&self.a.reader)
        with nogil:
            rc_attached_reader_wait(&self.a, &snapshot, self.wait.c, deadline)
        PyErr_CheckSignals()
        check_open(&self.a.endpoint)
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
        if taken == TAKEN:
            return message
        deadline = deadline_of(timeout)
        while True:
            if taken == TAKEN:
                return message
            if taken == AT_END:
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
        while taken != TAKEN:
            if taken == AT_END:
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
                if taken == TAKEN:
                    messages.append(message)
                elif taken == EMPTY or messages:
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
            check_open(&self.a.endpoint)
            if self.asked:
                self.step_down()
            result = rc_reader_peek(&self.a.reader, &first)
            if result == RC_MESSAGE:
                if not self.wants(&first):
                    if self.pass_over():
                        continue
                elif self.a.reader.filter != NULL:
                    if self.gather_batch(batch, limit):
                        return batch
                    if not self.is_overrun():
                        continue  # evicted, or its topic has just arrived: look again
                elif not self.a.reader.lossy:
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
                batch.pin.sequence = self.a.reader.next
                return batch

    @cython.final
    cdef void hand_out_batch(self, Batch batch, rc_descriptor *first, uint64_t limit) noexcept:
        cdef uint64_t n = rc_reader_available(&self.a.reader, limit)
        cdef const rc_descriptor *table = self.a.reader.descriptors + (
            self.a.reader.next & (self.a.reader.slots - 1))
        n = self.until_unwanted(table, n)
        batch.table = table
        batch.count = n
        batch.payloads = self.a.reader.arena
        batch.missed = self.a.reader.gap
        pin_link(&self.pins, &batch.pin, self.a.reader.next)
        # how many bytes is only a hint of when to flush: nothing is believed of it
        rc_reader_advance(&self.a.reader, n,
                          rc_load_u64(&table[n - 1].words[1]) - first.f.position + first.f.length)

    @cython.final
    cdef int copy_out_batch(self, Batch batch, uint64_t limit) except -1:
        """Lossy: copy descriptors and payloads out, then check. 0: overrun."""
        cdef uint64_t span = 0, n = rc_reader_available(&self.a.reader, limit)
        cdef uint8_t *copy
        cdef const rc_descriptor *table = self.a.reader.descriptors + (
            self.a.reader.next & (self.a.reader.slots - 1))
        n = rc_reader_fitting(&self.a.reader, table, n, &span)
        if n == 0:  # torn or hostile
            if rc_reader_intact(&self.a.reader, self.a.reader.next):
                raise self.corrupt()
            return 0
        copy = <uint8_t *>malloc(n * DESCRIPTOR_BYTES + span + 1)
        if copy == NULL:
            raise MemoryError
        rc_copy_out(copy, <const uint8_t *>table, n * DESCRIPTOR_BYTES)
        batch.origin = (<rc_descriptor *>copy)[0].f.position
        rc_copy_out(copy + n * DESCRIPTOR_BYTES, self.a.reader.arena + (batch.origin & (self.a.reader.capacity - 1)),
                    span if (batch.origin & (self.a.reader.capacity - 1)) + span <= self.a.reader.capacity
                    else 0)
        if not rc_reader_intact(&self.a.reader, self.a.reader.next):
            free(copy)
            return 0
        batch.payloads = copy + n * DESCRIPTOR_BYTES  # behind all descriptors copied, handed out or not
        n = self.until_unwanted(<const rc_descriptor *>copy, n)
        batch.owned = copy
        batch.copied = True
        batch.table = <const rc_descriptor *>copy
        batch.span = span
        batch.count = n
        batch.missed = self.a.reader.gap
        batch.pin.sequence = self.a.reader.next
        rc_reader_advance(&self.a.reader, n, span)
        self.flush_if_due()
        return 1

    @cython.final
    cdef int gather_batch(self, Batch batch, uint64_t limit) except -1:
        """For a reader that chooses among topics, the next message being wanted: copy the descriptors
        of those that are. 0: evicted or overrun."""
        cdef rc_reader at = self.a.reader
        cdef uint64_t n = rc_reader_available(&at, at.slots)
        cdef uint64_t count = 0, room = 0, found, gone = 0
        cdef rc_descriptor *table = NULL
        cdef rc_descriptor *larger
        cdef const rc_descriptor *first
        while at.next - self.a.reader.next < n and count == room and count < limit:
            room = min(limit, max(<uint64_t>GATHER_FIRST, 2 * room))
            larger = <rc_descriptor *>realloc(table, room * DESCRIPTOR_BYTES)
            if larger == NULL:
                free(table)
                raise MemoryError
            table = larger
            found = rc_reader_gather(&at, n - (at.next - self.a.reader.next), table + count,
                                     room - count, &gone)
            count += found
            at.next += gone
        gone = at.next - self.a.reader.next
        if count == 0:  # torn: a lossy reader was overrun, or a lossless one evicted
            free(table)
            return 0
        batch.owned = <uint8_t *>table
        batch.table = table
        batch.count = count
        batch.missed = self.a.reader.gap
        if self.a.reader.lossy:
            if not self.copy_out_gathered(batch, table, &gone):
                self.forget_gathered(batch)
                return 0
        else:
            if not rc_reader_holds(&self.a.reader):
                self.forget_gathered(batch)
                return 0
            batch.payloads = self.a.reader.arena
            pin_link(&self.pins, &batch.pin, table[0].f.seq1 - 1)
        self.a.reader.skipped += gone - batch.count
        first = self.a.reader.descriptors + (self.a.reader.next & (self.a.reader.slots - 1))
        # how many bytes is only a hint of when to flush: nothing is believed of it
        rc_reader_advance(&self.a.reader, gone,
                          rc_load_u64(&first[gone - 1].words[1]) - rc_load_u64(&first.words[1]))
        self.a.reader.received -= gone - batch.count
        if self.a.reader.lossy:
            self.flush_if_due()
        return 1

    @cython.final
    cdef void forget_gathered(self, Batch batch) noexcept:
        """The batch is empty again: it may be handed out so, when the time is over."""
        free(batch.owned)
        batch.owned = NULL
        batch.table = NULL
        batch.count = batch.missed = 0

    @cython.final
    cdef int copy_out_gathered(self, Batch batch, const rc_descriptor *table,
                               uint64_t *gone) except -1:
        """Lossy: copy the payloads of the gathered descriptors, an eighth of the arena at most unless
        the first alone has more, and check them. *gone becomes less if that is not all. 0: overrun."""
        cdef const rc_reader *r = &self.a.reader
        cdef uint64_t total = 0, offset
        cdef Py_ssize_t i
        cdef uint8_t *copy
        if not rc_reader_intact(r, r.next):
            return 0
        for i in range(batch.count):
            offset = table[i].f.position & (r.capacity - 1)
            if table[i].f.length > r.max_message or offset + table[i].f.length > r.capacity:
                raise self.corrupt()
            if i and total + table[i].f.length > r.capacity // 8:
                batch.count = i
                gone[0] = table[i].f.seq1 - 1 - r.next
                break
            total += table[i].f.length
        copy = <uint8_t *>malloc(batch.count * sizeof(uint64_t) + total + 1)
        if copy == NULL:
            raise MemoryError
        batch.places = <uint64_t *>copy
        batch.payloads = copy + batch.count * sizeof(uint64_t)
        batch.copied = True
        batch.span = total
        total = 0
        for i in range(batch.count):
            batch.places[i] = total
            rc_copy_out(<uint8_t *>batch.payloads + total,
                        r.arena + (table[i].f.position & (r.capacity - 1)), table[i].f.length)
            total += table[i].f.length
        batch.pin.sequence = table[0].f.seq1 - 1
        if rc_reader_intact(r, r.next):
            return 1
        free(batch.places)
        batch.places = NULL
        return 0

    # -- topics

    def _subscribe(self, topics, bint snapshot=False) -> None:
        """Want these names and patterns, too: all of them, or none if it raises. `snapshot`: and ask
        for one of each name."""
        cdef rc_error error
        cdef list added = []
        cdef bytes topic
        check_open(&self.a.endpoint)
        wanted = {<bytes>text for text in self.wanted()}
        for topic in [check_topic(given) for given in topics]:
            if rc_want_topic(&self.a, topic, &error) != RINGCAST_OK:
                for topic in added:
                    rc_filter_remove(&self.a.filter, topic, len(topic))
                raise error_of(&error)
            if topic not in wanted:
                added.append(topic)
        if snapshot:
            for topic in [check_topic(given) for given in topics]:
                rc_filter_ask_snapshot(&self.a.filter,
                                       rc_filter_find(&self.a.filter, topic, len(topic)))
        rc_show_wishes(&self.a)
        rc_endpoint_rouse(&self.a.endpoint, self.a.reader.wake)

    def _unsubscribe(self, topics) -> None:
        """Want these no more."""
        cdef bytes topic
        check_open(&self.a.endpoint)
        for topic in [check_topic(given) for given in topics]:
            rc_filter_remove(&self.a.filter, topic, len(topic))
        rc_show_wishes(&self.a)

    @cython.final
    cdef list wanted(self):
        cdef uint32_t i
        cdef list found = []
        for i in range(self.a.filter.count):
            found.append(self.a.filter.wants[i].text[:self.a.filter.wants[i].length])
        return found

    @property
    def subscriptions(self) -> tuple:
        """The names and patterns that this reader wants, in the order in which it asked."""
        check_open(&self.a.endpoint)
        return tuple([text.decode() for text in self.wanted()])

    @property
    def chooses(self) -> bool:
        """Does this reader get the topics that it wants, or every message?"""
        return self.a.reader.filter != NULL

    @property
    def skipped(self) -> int:
        """Messages passed over since attaching, because they were not wanted here."""
        return self.a.reader.skipped

    @property
    def received(self) -> int:
        """Messages handed out since attaching."""
        return self.a.reader.received

    @cython.final
    cdef object name_of(self, uint32_t topic):
        """The name of a topic, or None. The segments stay mapped as long as this object lives."""
        cdef const rc_topic *row
        if topic == 0 or topic > rc_topics_count(self.header(), self.a.ring.g.max_topics):
            return None
        name = self.names.get(topic)
        if name is None:
            row = rc_topics_at(self.a.ring.data.address, &self.a.ring.g) + (topic - 1)
            name = self.names[topic] = row.name[:rc_topic_name_length(row)].decode("utf-8", "replace")
        return name

    @property
    def topics(self) -> list:
        """The ring's topics, as `shm.TopicStatus`, in the order of their ids.

        Raises:
            RingClosed: this end is closed.
        """
        check_open(&self.a.endpoint)
        return rows_of(&self.a.ring)

    def wishes_answer(self):
        """What the ring's owner says of this reader's wishes, as `WishesAnswer`."""
        cdef bytes text = PyBytes_FromStringAndSize(NULL, RC_ANSWER_MAX)
        cdef uint64_t wishes = 0
        cdef int64_t length = -1
        cdef int i
        check_open(&self.a.endpoint)
        if not rc_load_u32(&self.header().answers_wishes):
            return WishesAnswer(False, 0, "")
        for i in range(READS):
            length = rc_answer_read(
                <const rc_answer *>(<const uint8_t *>self.a.ring.data.address
                                    + rc_answers_offset(&self.a.ring.g)) + self.a.reader.index,
                PyBytes_AS_STRING(text), &wishes)
            if length >= 0:
                return WishesAnswer(True, wishes, text[:length].decode("utf-8", "replace"))
        return WishesAnswer(True, 0, "")  # it changes just now, or its writer died while it did

    def topic_id(self, str name not None) -> int:
        """The id of a topic; 0 if the table does not have it."""
        cdef const rc_topic *rows = rc_topics_at(self.a.ring.data.address, &self.a.ring.g)
        cdef bytes encoded = name.encode()
        cdef uint32_t i
        check_open(&self.a.endpoint)
        for i in range(rc_topics_count(self.header(), self.a.ring.g.max_topics)):
            if rc_topic_name_length(&rows[i]) == <uint32_t>len(encoded) and (
                    memcmp(rows[i].name, <const char *>encoded, len(encoded)) == 0):
                return i + 1
        return 0

    def topic_name(self, uint32_t topic) -> str | None:
        """The name of a topic; None if the table does not have it, so for 0 and for an id that is
        only a number."""
        check_open(&self.a.endpoint)
        return self.name_of(topic)

    def topic_state(self, uint32_t topic) -> tuple:
        """State and reason of a topic of the table, as its row says."""
        cdef rc_topic_info info
        cdef int i
        check_open(&self.a.endpoint)
        if not 1 <= topic <= rc_topics_count(self.header(), self.a.ring.g.max_topics):
            raise IndexError(f"the table has no topic {topic}")
        for i in range(READS):
            if rc_topic_read(&rc_topics_at(self.a.ring.data.address, &self.a.ring.g)[topic - 1],
                             &info):
                break
        return info.state, (<bytes>info.reason).decode("utf-8", "replace")

    @property
    def wishes_version(self) -> int:
        """Which list of this reader's wishes stands in its slot: more after each change."""
        check_open(&self.a.endpoint)
        return rc_load_u64(&self.a.filter.wishes.version)

    def latest(self, str topic not None) -> Message | None:
        """The newest message of a topic, as a copy, if the ring still has it: so that who joins late
        has something at once. It does not move this reader, and the topic need not be one of its own.

        Returns:
            A `Message` that holds nothing in the ring; None if there is none, or no longer.
        """
        cdef uint32_t found = self.topic_id(topic)
        if found == 0:
            return None
        return self.newest(&rc_topics_at(self.a.ring.data.address, &self.a.ring.g)[found - 1])

    @cython.final
    cdef object newest(self, const rc_topic *row):
        cdef Message message = Message.__new__(Message)
        cdef rc_topic_info info
        cdef uint64_t before = 0
        cdef int i
        for i in range(READS):
            rc_topic_read(row, &info)
            if info.seq1 == before:
                return None  # gone, and none has come since
            if self.copy_newest(message, info.seq1 - 1):
                return message
            before = info.seq1
        return None

    @cython.final
    cdef bint copy_newest(self, Message message, uint64_t sequence) except -1:
        """Copy this message out of the ring, if it is there."""
        cdef const rc_reader *at = &self.a.reader
        cdef uint8_t *copy
        if not rc_reader_look_up(at, sequence, &message.descriptor):
            return False
        if message.descriptor.f.destination and not rc_reader_is_meant(
                at, rc_reader_glance(&message.descriptor)):
            return False
        if not rc_reader_within(at, &message.descriptor):
            raise self.corrupt()
        copy = <uint8_t *>malloc(message.descriptor.f.length + 1)
        if copy == NULL:
            raise MemoryError
        rc_copy_out(copy, at.arena + (message.descriptor.f.position & (at.capacity - 1)),
                    message.descriptor.f.length)
        if not rc_reader_intact(at, sequence):
            free(copy)
            return False
        free(message.owned)
        message.owned = copy
        message.data = copy
        message.size = message.descriptor.f.length
        message.reader = self
        return True

    # -- asyncio: one native thread waits on the semaphore and writes an eventfd

    def _take_nowait(self):
        """The next message or None, StopAsyncIteration at the end; for the asyncio half."""
        cdef Message message = Message.__new__(Message)
        cdef int taken = self.take(message)
        if taken == AT_END:
            raise StopAsyncIteration
        return message if taken == TAKEN else None

    def _before_await(self) -> None:
        """What every sleeper does first: let go of what it need not hold, and learn topics."""
        self.settle()
        self.learn()
        self.refuse_to_block_the_ring()
        self.look_around()

    def wait_into(self, int eventfd) -> bool:
        """Wait, without the GIL, for a reason to look, then write `eventfd`. 100 ms at most, unless
        nothing is held here and the writer lives. False: this end is closed."""
        cdef rc_reader snapshot = rc_reader_snapshot(&self.a.reader)
        cdef rc_turn turn = RC_LOOK_AGAIN
        cdef int64_t limit
        cdef int found = 0
        cdef uint64_t one = 1
        with nogil:
            while not found:
                limit = rc_now_ns() + RC_SLICE_NS
                turn = rc_endpoint_turn(&self.a.endpoint, limit)
                if turn == RC_CLOSED_MEANWHILE:
                    break
                if turn == RC_MY_TURN:
                    found = (rc_reader_sleep(&snapshot, limit) or rc_reader_blocks(&snapshot)
                             or rc_lock_held(self.a.endpoint.lock_fd, RC_LOCK_WRITER) != 1)
                    rc_endpoint_wake_up(&self.a.endpoint)
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
        if rc_endpoint_phase(&self.a.endpoint) == RC_FORKED:
            self.joined = False
            return
        if self.exported():
            raise BufferError(
                f"views, arrays or open batches of this reader are still alive, the oldest of"
                f" message {self.oldest_export()}: release them first")
        leave(&self.a.endpoint, self.a.reader.wake)
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
        if not self.joined or rc_endpoint_phase(&self.a.endpoint) == RC_FORKED:
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
            if rc_endpoint_phase(&self.a.endpoint) != RC_FORKED:
                leave_reader(&self.a)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if not self.joined or rc_endpoint_phase(&self.a.endpoint) == RC_FORKED:
            self.joined = False
            return
        leave(&self.a.endpoint, self.a.reader.wake)
        self.linger()

    # -- figures

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return not self.is_open()

    @property
    def slot(self) -> int:
        """The reader slot, as `Writer.demote` and `shm.status` number them."""
        return self.a.reader.index

    @property
    def generation(self) -> int:
        """Which of the readers that have had this slot it is, one after the other: the slot and this
        say whose a message for one reader is."""
        return self.a.reader.state >> 8

    @property
    def max_message(self) -> int:
        """Longest message, bytes."""
        return self.a.reader.max_message

    @property
    def policy(self) -> str:
        """"block", or "lossy"; a reader that was asked to step down has become lossy."""
        return "lossy" if self.a.reader.lossy else "block"

    @property
    def writer_alive(self) -> bool:
        """Has the ring a living writer? If not, another may resume it.

        Raises:
            RingClosed: this end is closed.
        """
        check_open(&self.a.endpoint)
        return rc_lock_held(self.a.endpoint.lock_fd, RC_LOCK_WRITER) == 1

    @property
    def note(self) -> bytes:
        """What the writer says of itself just now: see `Writer.note`; empty if it says nothing.

        Raises:
            RingClosed: this end is closed.
        """
        check_open(&self.a.endpoint)
        return read_note(self.header(), self.name)

    @property
    def cursor(self) -> int:
        """Sequence of the next message this reader will take."""
        return self.a.reader.next

    @property
    def lag(self) -> int:
        """Messages published and not yet taken."""
        cdef uint64_t published
        check_open(&self.a.endpoint)
        published = rc_load_u64(&self.header().published)
        return published - self.a.reader.next if published > self.a.reader.next else 0

    @property
    def lost(self) -> int:
        """Messages missed since attaching; where, each message's `gap` says."""
        return self.a.reader.lost


@cython.final
cdef class Iteration:
    """What ``for message in reader`` steps through: a Python subclass's own ``__next__`` would cost a
    look-up and a call per message."""

    def __init__(self):
        raise TypeError("iterate a Reader")

    def __iter__(self):
        return self

    def __next__(self):
        return self.reader.next_message()

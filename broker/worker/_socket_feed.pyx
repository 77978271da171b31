# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, auto_pickle=False, embedsignature=True, embedsignature.format=python
"""From the bytes of a gateway's connection to messages, in place: a payload is a view of the buffer
that the kernel copied it into.

    socket ──recv──▶ Chunk ──▶ WebSocket frames (RFC 6455 section 5.2, unmasked) ──▶ records (docs/wire.md)

Records are taken out one by one as soon as each is complete; only one that a chunk ends in is moved,
to the beginning of the next chunk. A chunk is used again once no message lies in it.

Threads share a `Receiver` under the interpreter's lock: what a message is made of is found and passed
over without any Python code in between. One thread at a time may receive, which is not seen to here.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

import os
from collections import deque

import numpy

from ringcast import shm
from ringcast.shm._endpoint import KINDS

from .wire import Record

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *) noexcept

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void *, size_t, int)
    int MSG_DONTWAIT

cdef enum:
    HEADER = 64               # bytes of a record's
    CHUNK_BYTES = 1 << 18
    READ_LEAST = 1 << 16      # room for the kernel, unless a chunk is still in use
    FRAME_FIRST = 1 << 16     # bytes of a frame before HELLO has said what may come
    CONTROL_MAX = 125
    TOPICS_MOST = 1 << 22     # no ring has so many
    FIN = 0x80
    RESERVED = 0x70
    MASKED = 0x80
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PONG = 10

    MESSAGE = 1
    TOPIC = 2
    GAP = 4
    HELLO = 7

    WAITING = 0               # of `find`: more bytes are needed
    FOUND = 1
    CONTROL = 2

    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    TOO_BIG = 1009

DESCRIPTOR = numpy.dtype({
    "names": ["length", "kind", "sequence", "time_ns", "key", "gap", "topic", "epoch"],
    "formats": ["<u4", "<u2", "<u8", "<u8", "<u8", "<u8", "<u4", "<u4"],
    "offsets": [0, 6, 8, 16, 24, 32, 40, 44],
    "itemsize": HEADER,
})
"""What `SocketBatch.descriptors` has of each message: the header of its record."""


cdef inline uint16_t u16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value


cdef inline uint32_t u32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline uint64_t u64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


@cython.final
cdef class Chunk:
    """Memory that messages lie in. It lives as long as one of them does."""

    cdef uint8_t *data
    cdef size_t room

    def __dealloc__(self):
        free(self.data)


cdef Chunk new_chunk(size_t room):
    cdef Chunk chunk = Chunk.__new__(Chunk)
    chunk.data = <uint8_t *>malloc(room)
    if chunk.data == NULL:
        raise MemoryError
    chunk.room = room
    return chunk


@cython.no_gc  # it is in no cycle; so making one lets no other code run
@cython.freelist(64)
cdef class SocketMessage:
    """One message. Its bytes lie in memory of this process; they stay as they are while this object
    or a buffer made from it lives, which keeps what was received together with it, too, up to 256
    KiB: copy what is to be kept for long, with ``bytes(message)``.

    A SocketMessage exports the buffer protocol, read-only.
    """

    cdef Chunk chunk
    cdef const uint8_t *header  # the payload follows it
    cdef uint64_t missed
    cdef dict names

    def __init__(self):
        raise TypeError("messages come from a SocketFeed")

    @property
    def sequence(self) -> int:
        """Number of this message in the ring."""
        return u64(self.header + 8)

    @property
    def topic(self) -> int:
        """Id of its topic in the ring; 0 if it has none."""
        return u32(self.header + 40)

    @property
    def topic_name(self) -> str | None:
        """The topic's name; None if the message has no topic, or only a number."""
        return self.names.get(u32(self.header + 40))

    @property
    def key(self) -> int:
        """What work groups share messages out by; 0 for none."""
        return u64(self.header + 24)

    @property
    def kind(self):
        """A `shm.Kind`, or a plain int for one that has no name."""
        cdef uint16_t kind = u16(self.header + 6)
        return KINDS.get(kind, kind)

    @property
    def time_ns(self) -> int:
        """When the manager received it, Unix time in nanoseconds."""
        return u64(self.header + 16)

    @property
    def epoch(self) -> int:
        """Which manager published it: 1 for the ring's creator, one more for each that resumed."""
        return u32(self.header + 44)

    @property
    def gap(self) -> int:
        """How many messages of the ring this feed missed just before this one."""
        return self.missed

    @property
    def payload(self) -> memoryview:
        """The bytes in place, valid for as long as the view lives."""
        return PyMemoryView_FromObject(self)

    def text(self) -> str:
        """The payload decoded as UTF-8. Raises UnicodeDecodeError."""
        return PyUnicode_DecodeUTF8(<const char *>self.header + HEADER, u32(self.header), "strict")

    @property
    def _deliveries(self) -> int:
        return u32(self.header + 56)

    def _become(self, SocketMessage other not None) -> None:
        """Be this message, too; for a new object of a subclass."""
        self.chunk = other.chunk
        self.header = other.header
        self.missed = other.missed
        self.names = other.names

    def __bytes__(self):
        return PyBytes_FromStringAndSize(<const char *>self.header + HEADER, u32(self.header))

    def __len__(self):
        return u32(self.header)

    def __bool__(self):
        return True  # an empty message is a message: `while message := feed.read(0)`

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>(self.header + HEADER), u32(self.header), 1, flags)

    def __repr__(self):
        return (f"<SocketMessage {self.sequence} kind={self.kind!r} topic={self.topic}"
                f" {len(self)} bytes>")


@cython.final
cdef class View:
    """A buffer that keeps a chunk."""

    cdef Chunk chunk
    cdef const uint8_t *data
    cdef Py_ssize_t size
    cdef bint writable

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, not self.writable, flags)


@cython.final
cdef class SocketBatch:
    """Many messages at once. What is in it stays valid as long as it, or a view of it, lives."""

    cdef Chunk chunk
    cdef list places  # where in the chunk each header is
    cdef object headers
    cdef readonly uint64_t gap

    def __init__(self):
        raise TypeError("batches come from SocketFeed.batch()")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()

    def release(self) -> None:
        """Nothing waits for a batch over a socket: this does nothing."""

    def __len__(self):
        return len(self.places)

    @property
    def first(self) -> int:
        """Sequence of the first message. Raises IndexError: there is none."""
        return int(self.headers["sequence"][0])

    @property
    def descriptors(self):
        """Of each message its sequence, length, topic, time_ns, key, kind, epoch and gap: a copy, a
        structured array of shape (len(batch),)."""
        return self.headers

    def payload(self, Py_ssize_t index) -> memoryview:
        """The bytes of message `index` in place; the view keeps what the batch lies in. Raises
        IndexError."""
        cdef View view
        cdef const uint8_t *header
        cdef Py_ssize_t count = len(self.places)
        if index < 0:
            index += count
        if not 0 <= index < count:
            raise IndexError(f"the batch has {count} messages")
        header = self.chunk.data + <size_t>self.places[index]
        view = View.__new__(View)
        view.chunk = self.chunk
        view.data = header + HEADER
        view.size = u32(header)
        return PyMemoryView_FromObject(view)

    def records(self, dtype):
        """The payloads as an array of `dtype`, which each has to be one item of: a copy, as records
        lie apart on a socket. Raises ValueError."""
        cdef Py_ssize_t i
        kind = numpy.dtype(dtype)
        if not (self.headers["length"] == kind.itemsize).all():
            raise ValueError(f"not every message of this batch has the {kind.itemsize} bytes of {kind}")
        return numpy.frombuffer(b"".join([self.payload(i) for i in range(len(self.places))]), kind)


cdef class Receiver:
    """What is common to all that a `SocketFeed` reads. Its methods that wait call `_arrive`, which
    the feed has."""

    cdef Chunk chunk, spare
    cdef size_t begin, end          # in the chunk: what was received and not passed over
    cdef uint64_t frame_left        # bytes of a frame of records that are still to come
    cdef Chunk side                 # a frame that came in fragments, once it is whole
    cdef size_t side_begin, side_end
    cdef bint fragmented, last      # a fragmented frame is under way; its last fragment is
    cdef uint64_t fragment_left
    cdef bytearray fragments
    cdef uint64_t frame_most
    cdef bint stopped, greeted, events
    cdef bint any_order             # a member of a work group gets some messages again
    cdef bint fresh                 # something has come since all was looked at
    cdef uint64_t next              # sequence that the next message has at least
    cdef bint placed                # `next` is known
    cdef uint64_t missing, missed_all
    cdef object ready               # messages that were found while something else was looked for
    cdef size_t ready_bytes
    cdef dict names
    cdef dict kept                  # the newest message of each topic, of earlier chunks
    cdef uint32_t *newest           # of this chunk: where the header of each topic's newest is, plus 1
    cdef uint32_t newest_room
    cdef list touched               # topics that have one

    def __cinit__(self, *args, **kwargs):
        self.chunk = new_chunk(CHUNK_BYTES)
        self.ready = deque()
        self.fragments = bytearray()
        self.names = {}
        self.kept = {}
        self.touched = []
        self.frame_most = FRAME_FIRST

    def __dealloc__(self):
        free(self.newest)

    # -- what came

    def _begin(self) -> None:
        """A new connection: bytes of the last one that make no record are nothing any more."""
        self.keep_newest()
        if Py_REFCNT(<PyObject *>self.chunk) > 1:
            self.chunk = new_chunk(CHUNK_BYTES)
        self.side = None
        self.begin = self.end = self.side_begin = self.side_end = 0
        self.frame_left = self.fragment_left = 0
        self.fragmented = self.last = self.greeted = self.stopped = False
        self.frame_most = FRAME_FIRST
        self.fragments = bytearray()

    def _greet(self, uint64_t sequence, uint64_t max_message, bint same) -> None:
        """HELLO has come: the first message's sequence at least, the longest message, and whether it
        is the ring that it was."""
        self.greeted = True
        self.frame_most = max(<uint64_t>FRAME_FIRST, max_message + HEADER)
        if not same:
            self.names = {}  # that of messages of the other ring stays with them
            self.kept = {}
            self.touched = []
            free(self.newest)
            self.newest = NULL
            self.newest_room = 0
            self.missing = 0
        if not (same and self.placed):
            self.next = sequence
            self.placed = True

    def _stop(self) -> None:
        """Nothing of this connection is to be handed out any more."""
        self.stopped = True

    def _forget(self) -> None:
        """Nothing is to be handed out any more."""
        self.stopped = True
        self.ready = deque()

    def _receive(self, int fd) -> int:
        """Receive what has come, into the chunk.

        Returns:
            How many bytes; 0 at the connection's end, -1 if nothing has come.

        Raises: OSError.
        """
        cdef ssize_t got
        cdef uint8_t *data
        cdef size_t room
        self.make_room()
        data = self.chunk.data + self.end
        room = self.chunk.room - self.end
        while True:
            with nogil:
                got = recv(fd, data, room, MSG_DONTWAIT)
            if got >= 0:
                self.end += got
                self.fresh = True
                return got
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                raise OSError(errno, os.strerror(errno))

    def _room(self) -> memoryview:
        """Where to receive into; `_came` says how much has come. It is to be let go before the next
        call of either."""
        cdef View view = View.__new__(View)
        self.make_room()
        view.chunk = self.chunk
        view.data = self.chunk.data + self.end
        view.size = self.chunk.room - self.end
        view.writable = True
        return PyMemoryView_FromObject(view)

    def _came(self, size_t got) -> None:
        if got > self.chunk.room - self.end:
            raise ValueError("more than there was room for")
        self.end += got
        self.fresh = True

    def _feed(self, const uint8_t[::1] data not None) -> None:
        """These bytes have come."""
        cdef size_t at = 0, size
        while at < <size_t>data.shape[0]:
            self.make_room()
            size = min(self.chunk.room - self.end, data.shape[0] - at)
            memcpy(self.chunk.data + self.end, &data[at], size)
            self.end += size
            at += size
        self.fresh = True

    cdef int make_room(self) except -1:
        """Make room at the end of the chunk, for the rest of what is in it at least."""
        cdef Chunk old = self.chunk, chunk
        cdef size_t left = self.end - self.begin, most
        cdef size_t wanted = left + READ_LEAST
        cdef bint unused
        if self.frame_left and left >= HEADER:  # a record that is not complete
            wanted = max(wanted, HEADER + <size_t>min(u32(old.data + self.begin), self.frame_left))
        if left == 0 and self.end and Py_REFCNT(<PyObject *>old) <= 2:  # ours, and `old`
            self.keep_newest()
            self.begin = self.end = 0
        if old.room - self.begin >= wanted and self.end < old.room:
            return 0
        chunk = self.spare
        if chunk is None or Py_REFCNT(<PyObject *>chunk) > 2 or chunk.room < wanted:
            chunk = new_chunk(max(<size_t>CHUNK_BYTES, wanted))
        self.keep_newest()
        # What another thread has taken meanwhile is not moved: nothing below lets it run.
        left = self.end - self.begin
        memcpy(chunk.data, old.data + self.begin, left)
        self.chunk = chunk
        self.spare = old if old.room == CHUNK_BYTES else None
        self.begin = 0
        self.end = left
        return 0

    # -- frames and records

    cdef int refuse(self, int code, str why) except -1:
        self.stopped = True
        self._wrong(code, why)
        raise shm.RingCorrupt(why)

    cdef int find(self, const uint8_t **found, PyObject **owner) except -1:
        """Find the next record, or control frame, and pass it over. `owner` is borrowed."""
        cdef const uint8_t *at
        cdef uint64_t size, have
        while not self.stopped:
            if self.side is not None:
                if self.side_begin < self.side_end:
                    at = self.side.data + self.side_begin
                    size = self.whole_record(at, self.side_end - self.side_begin,
                                             self.side_end - self.side_begin)
                    self.side_begin += size
                    found[0] = at
                    owner[0] = <PyObject *>self.side
                    return FOUND
                self.side = None
            at = self.chunk.data + self.begin
            have = self.end - self.begin
            if self.frame_left:
                size = self.whole_record(at, have, self.frame_left)
                if size == 0:
                    return WAITING
                self.begin += size
                self.frame_left -= size
                found[0] = at
                owner[0] = <PyObject *>self.chunk
                return FOUND
            if self.fragment_left:
                if have == 0:
                    return WAITING
                self.add_fragment(min(have, self.fragment_left))
                continue
            size = self.frame_header(at, have)
            if size == 0:
                return WAITING
            if at[0] & 8:
                self.begin += size
                found[0] = at
                owner[0] = <PyObject *>self.chunk
                return CONTROL
        return WAITING

    cdef uint64_t whole_record(self, const uint8_t *at, uint64_t have, uint64_t frame) except? 0:
        """Bytes of the record here; 0 if it is not all there."""
        cdef uint64_t size
        if frame < HEADER:
            self.refuse(PROTOCOL_ERROR, f"a frame ends with {frame} bytes of a record")
        if have < HEADER:
            return 0
        size = HEADER + <uint64_t>u32(at)
        if size > frame:
            self.refuse(PROTOCOL_ERROR, "a record reaches beyond its frame")
        if u32(at + 60) != 0:
            self.refuse(PROTOCOL_ERROR, "a record is of a later version: install the same ringcast on"
                        " both sides")
        if u32(at + 48) != size - HEADER or u32(at + 52) != 0:
            self.refuse(PROTOCOL_ERROR, "a record is a part of a message, or has a wrong size")
        return size if size <= have else 0

    cdef uint64_t frame_header(self, const uint8_t *at, uint64_t have) except? 0:
        """Begin a frame. Returns the bytes of its header, and of its payload if it is a control
        frame, which is passed over by the caller; 0 if more have to come."""
        cdef uint8_t opcode
        cdef uint64_t length, header = 2
        cdef bint final
        cdef int i
        if have < 2:
            return 0
        opcode = at[0] & 15
        final = at[0] & FIN != 0
        length = at[1] & 127
        if at[0] & RESERVED or at[1] & MASKED:
            self.refuse(PROTOCOL_ERROR, "a frame is masked, or has reserved bits set")
        if opcode & 8:
            if opcode > PONG or not final or length > CONTROL_MAX:
                self.refuse(PROTOCOL_ERROR, "a control frame is fragmented, too long or unknown")
            return 2 + length if have >= 2 + length else 0
        if length >= 126:
            header = 4 if length == 126 else 10
            if have < header:
                return 0
            length = 0
            for i in range(2, <int>header):
                length = length << 8 | at[i]
        if opcode == TEXT:
            self.refuse(UNSUPPORTED, "there is text where records are expected")
        if opcode not in (CONTINUATION, BINARY) or (opcode == CONTINUATION) != self.fragmented:
            self.refuse(PROTOCOL_ERROR, "a frame is unknown, or no continuation where there has to be one")
        if length + len(self.fragments) > self.frame_most:
            self.refuse(TOO_BIG, f"a frame of {length} bytes is longer than the ring's messages")
        self.begin += header
        if final and opcode == BINARY:
            self.frame_left = length
            return header
        self.fragmented = True
        self.last = final
        self.fragment_left = length
        if length == 0:
            self.add_fragment(0)
        return header

    cdef int add_fragment(self, uint64_t size) except -1:
        cdef Chunk side
        self.fragments += (<const char *>self.chunk.data + self.begin)[:size]
        self.begin += size
        self.fragment_left -= size
        if self.last and self.fragment_left == 0:
            side = new_chunk(max(1, len(self.fragments)))
            memcpy(side.data, <const char *>self.fragments, len(self.fragments))
            self.side = side
            self.side_begin = 0
            self.side_end = len(self.fragments)
            self.fragmented = self.last = False
            self.fragments = bytearray()
        return 0

    cdef int take_into(self, SocketMessage message) except -1:
        """Find the next message. Returns WAITING or FOUND."""
        cdef const uint8_t *at = NULL
        cdef Chunk owner = None
        cdef PyObject *where = NULL
        cdef int what
        cdef uint16_t kind
        cdef uint64_t sequence
        cdef uint32_t topic
        while True:
            what = self.find(&at, &where)
            if what == WAITING:
                self.fresh = False
                return WAITING
            owner = <Chunk><object>where
            if what == CONTROL:
                self._control(at[0] & 15, (<const char *>at)[2:2 + at[1]])
                continue
            kind = u16(at + 4)
            if kind != MESSAGE:
                self.other(kind, at)
                continue
            if not self.greeted:
                self.refuse(PROTOCOL_ERROR, "a message comes before HELLO")
            sequence = u64(at + 8)
            if sequence < self.next and self.placed and not self.any_order:
                continue  # it has come already
            self.miss(u64(at + 32))
            self.next = sequence + 1
            self.placed = True
            if u16(at + 6) == 16 and not self.events:
                continue
            topic = u32(at + 40)
            if topic and topic < self.newest_room and owner is self.chunk:
                if self.newest[topic] == 0:
                    self.touched.append(topic)
                self.newest[topic] = <uint32_t>(at - owner.data) + 1
            message.chunk = owner
            message.header = at
            message.names = self.names
            message.missed = self.missing
            self.missing = 0
            return FOUND

    cdef void miss(self, uint64_t count) noexcept:
        self.missing += count
        self.missed_all += count

    cdef int other(self, uint16_t kind, const uint8_t *at) except -1:
        """A record that is no message."""
        cdef uint32_t topic = u32(at + 40), room
        cdef uint32_t *newest
        cdef bytes payload = PyBytes_FromStringAndSize(<const char *>at + HEADER, u32(at))
        if kind != HELLO and not self.greeted:
            self.refuse(PROTOCOL_ERROR, "the first record is not HELLO: this is no gateway")
        if kind == TOPIC:
            if topic >= TOPICS_MOST:
                self.refuse(PROTOCOL_ERROR, f"no topic has the id {topic}")
            if topic >= self.newest_room:
                room = 2 * (topic + 1)
                newest = <uint32_t *>realloc(self.newest, room * sizeof(uint32_t))
                if newest == NULL:
                    raise MemoryError
                memset(newest + self.newest_room, 0, (room - self.newest_room) * sizeof(uint32_t))
                self.newest = newest
                self.newest_room = room
            self.names[topic] = payload.decode("utf-8", "replace")
        elif kind == GAP:
            self.miss(u64(at + 32))
        else:
            self._record(Record(kind, payload, u16(at + 6), u64(at + 8), u64(at + 16), u64(at + 24)))
            return 0
        if self.placed and u64(at + 8) > self.next:
            self.next = u64(at + 8)
        return 0

    def _record(self, record) -> None:
        """A `wire.Record` that is neither a message nor of a topic or a gap has come."""

    def _control(self, int opcode, payload) -> None:
        """A control frame has come."""

    def _wrong(self, int code, why) -> None:
        """What came is not what a gateway sends; `code` is what to close the connection with (RFC
        6455 section 7.4.1). RingCorrupt is raised after this."""

    # -- the newest of a topic

    cdef int keep_newest(self) except -1:
        """The chunk goes: copy the newest message of each topic in it."""
        cdef uint32_t topic, place
        cdef list touched
        while self.touched:  # another thread may take messages while copies are made
            touched = self.touched
            self.touched = []
            for topic in touched:
                place = self.newest[topic]
                self.newest[topic] = 0
                self.kept[topic] = self.copy_of(self.chunk, place)
        return 0

    cdef SocketMessage copy_of(self, Chunk chunk, uint32_t place):
        """A message that is in this chunk, with memory of its own."""
        cdef SocketMessage message = SocketMessage.__new__(SocketMessage)
        cdef const uint8_t *header = chunk.data + place - 1
        cdef size_t size = HEADER + <size_t>u32(header)
        message.chunk = new_chunk(size)
        memcpy(message.chunk.data, header, size)
        message.header = message.chunk.data
        message.names = self.names
        message.missed = 0
        return message

    def latest(self, str topic not None):
        """The newest message of this topic that this feed has handed out; None if there is none. It
        has memory of its own. Only what came through this feed is known, unlike in a `Feed`."""
        cdef uint32_t number
        for number, name in list(self.names.items()):
            if name == topic:
                if number < self.newest_room and self.newest[number]:
                    return self.copy_of(self.chunk, self.newest[number])
                return self.kept.get(number)
        return None

    # -- messages

    def _take(self):
        """The next message that is complete; None if there is none."""
        return self.take()

    cdef SocketMessage take(self):
        cdef SocketMessage message = None
        if not self.ready:
            # It is made before anything is looked at: that may let another thread run.
            message = SocketMessage.__new__(SocketMessage)
        if self.ready:
            message = self.ready.popleft()
            self.ready_bytes -= HEADER + u32(message.header)
            return message
        if message is None:
            return self.take()
        return message if self.take_into(message) == FOUND else None

    def _set_aside(self, size_t most) -> bool:
        """Put what has come aside, to see the records in between. False: that is `most` bytes now,
        and there may be more."""
        cdef SocketMessage message
        while self.ready_bytes < most:
            message = SocketMessage.__new__(SocketMessage)
            if self.take_into(message) != FOUND:
                return True
            self.ready.append(message)
            self.ready_bytes += HEADER + u32(message.header)
        return False

    def read(self, timeout=None):
        """The next message.

        Args:
            timeout: seconds to wait; None waits as long as it takes, 0 not at all.

        Returns:
            The message, or None if none came in time.

        Raises:
            shm.RingClosed: this end is closed, or is the parent process's.
            shm.RingCorrupt: the other end sends what no gateway sends.
        """
        cdef SocketMessage message = self.take()
        return message if message is not None else self._wait_for_message(timeout)

    def __iter__(self):
        return self

    def __next__(self):
        cdef SocketMessage message = self.take()
        while message is None:
            self._arrive(None)
            message = self.take()
        return message

    def read_available(self, Py_ssize_t limit=256) -> list:
        """Up to `limit` messages that are there, without waiting.

        Raises: as `read` does.
        """
        cdef SocketMessage message
        cdef list found = []
        while len(found) < limit:
            message = self.take()
            if message is None:
                if found or not self._arrive(0.0):
                    break
                continue
            found.append(message)
        return found

    def _batch(self, Py_ssize_t limit) -> SocketBatch:
        """Up to `limit` messages that are complete and lie in one chunk."""
        cdef SocketBatch batch = SocketBatch.__new__(SocketBatch)
        cdef SocketMessage message
        cdef list found = []
        cdef uint8_t[:, ::1] rows
        cdef Py_ssize_t i
        batch.places = []
        while len(found) < limit:
            if found and (<SocketMessage>found[0]).chunk is not self.upcoming():
                break
            message = self.take()
            if message is None:
                break
            found.append(message)
        if found:
            batch.chunk = (<SocketMessage>found[0]).chunk
            batch.gap = (<SocketMessage>found[0]).missed
        headers = numpy.empty((len(found), HEADER), dtype=numpy.uint8)
        rows = headers
        for i in range(len(found)):
            message = found[i]
            memcpy(&rows[i, 0], message.header, HEADER)
            memcpy(&rows[i, 32], &message.missed, sizeof(uint64_t))
            batch.places.append(message.header - batch.chunk.data)
        batch.headers = headers.reshape(-1).view(DESCRIPTOR)
        batch.headers.flags.writeable = False
        return batch

    cdef Chunk upcoming(self):
        """The chunk that the next message lies in."""
        if self.ready:
            return (<SocketMessage>self.ready[0]).chunk
        if self.side is not None and self.side_begin < self.side_end:
            return self.side
        return self.chunk

    @property
    def cursor(self) -> int:
        """Sequence that the next message has at least."""
        cdef SocketMessage message
        if self.ready:
            message = self.ready[0]
            return u64(message.header + 8)
        return self.next

    @property
    def lost(self) -> int:
        """Messages of the ring that this feed has missed; those of other rings that had its name are
        among them."""
        return self.missed_all

    @property
    def _has_news(self) -> bool:
        """Has something come that nobody has looked at?"""
        return self.fresh

    @property
    def _has_aside(self) -> bool:
        """Are there messages aside?"""
        return bool(self.ready)

    @property
    def _names(self) -> dict:
        return self.names

    @property
    def _next(self) -> int | None:
        """Sequence after what has come whole; None before HELLO."""
        return self.next if self.placed else None

    @property
    def _events(self) -> bool:
        return self.events

    @_events.setter
    def _events(self, bint events):
        self.events = events

    @property
    def _any_order(self) -> bool:
        """Do messages come in any order, and some again, as to a member of a work group?"""
        return self.any_order

    @_any_order.setter
    def _any_order(self, bint any_order):
        self.any_order = any_order

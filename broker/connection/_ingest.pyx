# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""From the socket into the ring: bytes are received where they stay, and the frames among them are
decoded there. frames.h knows what a frame is, stream.h where bytes may lie, and a finder of the room
`topics` what a message is about; this file brings the three together, one read at a time, without
the GIL.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ringcast.shm._core cimport (
    CLOCK_REALTIME, RC_ACTIVE, RC_DEMOTED, RC_DEMOTING, RC_FLAG_ANSWER, RC_FOR_NOBODY, RC_KIND_BINARY,
    RC_KIND_TEXT, RC_LOCK_READER, rc_clock_ns, rc_descriptor, rc_load_u64, rc_lock_held, rc_now_ns, rc_slot_at,
    rc_stream_commit, rc_stream_end, rc_stream_prefetch, rc_stream_room, rc_stream_skip, rc_writer,
    rc_writer_release,
)
from ringcast.broker.topics._scan cimport (
    Finder, RT_IS_ANSWER, RT_IS_CONTROL, RT_NEW, rt_found, rt_request_is_of, rt_request_slot,
)
from ringcast.shm._endpoint cimport check_open
from ringcast.shm._writer cimport Writer

import os
import ssl

cdef extern from "sys/socket.h" nogil:
    int MSG_DONTWAIT
    ssize_t recv(int, void *, size_t, int)

cdef extern from "frames.h" nogil:
    ctypedef enum rf_what:
        RF_MORE, RF_MESSAGE, RF_PING, RF_PONG, RF_CLOSE, RF_FAULT

    ctypedef struct rf_decoder:
        uint64_t begin
        uint8_t header

    ctypedef struct rf_item:
        uint64_t offset, length
        const char *reason
        uint16_t code
        uint8_t is_text

    void rf_begin(rf_decoder *, uint64_t max_message)
    rf_what rf_next(rf_decoder *, uint8_t *bytes, uint64_t *n, rf_item *)
    void rf_taken(rf_decoder *)
    uint64_t rf_kept(const rf_decoder *)
    void rf_rebase(rf_decoder *)
    uint64_t rf_need(const rf_decoder *)

cdef enum:
    READ_MOST = 1 << 18  # larger reads leave the processor's cache
    TLS_READ = 1 << 16  # what is decrypted at once, and the place for it, fit the cache together
    FRAME_HEADER = 4     # bytes, of most
    READS = 64           # in one call, so that its caller can look at the clock

# What comes of receiving; see `Ingest.receive`. The first are frames.h's.
cdef enum:
    OUT_PING = RF_PING
    OUT_PONG = RF_PONG
    OUT_CLOSE = RF_CLOSE
    OUT_FAULT = RF_FAULT
    OUT_DRAINED = 16
    OUT_MORE = 17
    OUT_FULL = 18
    OUT_ENDED = 19
    OUT_FAILED = 20
    OUT_NEEDS_BYTES = 21
    OUT_NAME = 22
    OUT_CONTROL = 23

PING = OUT_PING
PONG = OUT_PONG
CLOSE = OUT_CLOSE
FAULT = OUT_FAULT
DRAINED = OUT_DRAINED
MORE = OUT_MORE
FULL = OUT_FULL
ENDED = OUT_ENDED
NAME = OUT_NAME
CONTROL = OUT_CONTROL


@cython.final
cdef class Space:
    """Memory that the ssl module may write to or read from; `place` says which. For one call."""

    cdef uint8_t *address
    cdef Py_ssize_t size

    cdef void place(self, uint8_t *address, Py_ssize_t size) noexcept:
        self.address = address
        self.size = size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, 0, flags)


@cython.final
cdef class Ingest:
    """Receives a WebSocket's frames into a ring.

    Args:
        writer: of the ring.
        finder: finds the messages' topics and keys; None: they have none.

    Attributes:
        payload: of the ping, pong or close frame that `receive` returned, the name for NAME, or the
            message for CONTROL.
        code, reason: of the close frame, or of the fault: the code to close with and why.
        messages: published so far, all connections together.
        answers_dropped: those of them that answer a request whose worker is gone; nobody gets them.
    """

    cdef Writer writer
    cdef rf_decoder decoder
    cdef rf_item item
    cdef uint64_t time_ns, read_most, wait_length
    cdef bint flooded  # the last read brought much
    cdef uint16_t connection
    cdef const uint8_t *control
    cdef readonly bytes payload
    cdef uint64_t count, all_bytes, dropped
    cdef Space space
    cdef uint8_t *records
    cdef Finder finder
    cdef rt_found found  # in the next message
    cdef bint looked  # `found` is set; it stays until the message is published
    cdef bint handed  # the next message is for the manager, and it has said who else gets it
    cdef uint16_t destination  # the slot of the only reader that gets it, + 1; or 0
    cdef uint64_t generation  # of that slot
    cdef bint answers  # it is an answer to somebody

    def __cinit__(self, Writer writer not None, Finder finder=None):
        self.writer = writer
        self.finder = finder
        self.read_most = min(<uint64_t>READ_MOST, writer.ring.capacity // 8)
        self.payload = b""
        self.space = Space()
        self.records = <uint8_t *>malloc(TLS_READ)
        if self.records == NULL:
            raise MemoryError
        rf_begin(&self.decoder, writer.ring.max_message)

    def __dealloc__(self):
        free(self.records)

    def begin(self, uint16_t connection) -> None:
        """A new connection begins, at a frame's start; `connection` is its number, which stands in
        the descriptors."""
        self.end()
        self.connection = connection

    def end(self) -> None:
        """The connection is over: bytes of a message that is not whole are given up."""
        self.looked = self.handed = False
        rc_stream_end(&self.writer.ring)
        rf_begin(&self.decoder, self.writer.ring.max_message)

    @property
    def messages(self) -> int:
        return self.count

    @property
    def answers_dropped(self) -> int:
        return self.dropped

    @property
    def received_bytes(self) -> int:
        """Bytes received, frames' headers and all, all connections together."""
        return self.all_bytes

    @property
    def partial(self) -> bool:
        """Has the beginning of a message come, and not yet its end?"""
        return self.writer.ring.held > 0

    @property
    def code(self) -> int:
        return self.item.code

    @property
    def reason(self) -> str:
        return self.item.reason.decode() if self.item.reason != NULL else ""

    # -- decoding and receiving, both without the GIL

    cdef int decode(self) noexcept nogil:
        """Publish the whole messages among the held bytes."""
        cdef rc_writer *w = &self.writer.ring
        cdef uint64_t base = w.head, n = w.held
        cdef uint8_t *bytes = w.arena + (base & (w.capacity - 1))
        cdef rc_descriptor d
        cdef rf_what what
        cdef bint finding = self.finder is not None
        cdef int outcome = OUT_NEEDS_BYTES
        cdef uint64_t count = 0
        memset(&d, 0, sizeof(d))
        d.f.connection = self.connection
        d.f.time_ns = self.time_ns
        while True:
            what = rf_next(&self.decoder, bytes, &n, &self.item)
            if what != RF_MESSAGE:
                if what != RF_MORE:
                    outcome = what
                break
            d.f.length = self.item.length
            d.f.kind = RC_KIND_TEXT if self.item.is_text else RC_KIND_BINARY
            if finding and not self.find_topic(&d, bytes + self.decoder.begin):
                outcome = OUT_NAME
                break
            if finding and self.found.what == RT_IS_CONTROL:
                if not self.handed:
                    outcome = OUT_CONTROL
                    break
                self.deliver_to(&d, self.destination, self.generation)
                d.f.flags = RC_FLAG_ANSWER if self.answers else 0
            elif finding and self.found.what == RT_IS_ANSWER:
                self.address(&d)
            if not rc_stream_commit(w, &d, base + self.decoder.begin, self.decoder.header):
                self.wait_length = 1
                outcome = OUT_FULL
                break
            if self.flooded:
                rc_stream_prefetch(w, d.f.position, d.f.length + FRAME_HEADER, self.read_most)
            count += 1
            rf_taken(&self.decoder)
            if d.f.destination == RC_FOR_NOBODY:
                self.dropped = self.dropped + 1
            d.f.destination = 0
            d.f.flags = 0
            if finding:
                self.looked = self.handed = False
                self.finder.counts[<int>self.found.what] = self.finder.counts[<int>self.found.what] + 1
        self.count = self.count + count  # Cython takes no += on members without the GIL
        self.control = bytes + self.item.offset
        w.held = n - (w.head - base)  # fragments that were moved together leave fewer
        rc_stream_skip(w, base + rf_kept(&self.decoder))
        rf_rebase(&self.decoder)
        rc_writer_release(w)
        return outcome

    cdef bint find_topic(self, rc_descriptor *d, const uint8_t *payload) noexcept nogil:
        """Set a message's topic and key. Returns whether it may be published: not while its name is
        new. A message is looked at once, however often it finds no room, or waits for its name."""
        if not self.looked:
            self.finder.find(self.writer.segments, payload, d.f.length, &self.found)
            self.looked = True
        elif self.found.what == RT_NEW:
            self.finder.look(&self.found)
        d.f.topic = self.found.topic
        d.f.key = self.found.key
        return self.found.what != RT_NEW

    cdef void deliver_to(self, rc_descriptor *d, uint16_t destination,
                         uint64_t generation) noexcept nogil:
        """A message is for one reader, or for all."""
        d.f.destination = destination
        if destination:
            d.f.key = generation

    cdef void address(self, rc_descriptor *d) noexcept nogil:
        """An answer is for the reader that asked, which its id names, or for nobody if that is gone.
        The state is loaded once: a reader that joins meanwhile has another generation."""
        cdef uint32_t slot = rt_request_slot(self.found.key)
        cdef uint64_t word
        d.f.topic = 0
        d.f.key = 0
        d.f.destination = RC_FOR_NOBODY
        if slot >= self.writer.ring.max_readers:
            return
        word = rc_load_u64(&rc_slot_at(self.writer.ring.control, slot).state)
        if ((word & 0xff == RC_ACTIVE or word & 0xff == RC_DEMOTING or word & 0xff == RC_DEMOTED)
                and rt_request_is_of(self.found.key, word >> 8)
                and rc_lock_held(self.writer.endpoint.c.lock_fd, RC_LOCK_READER + slot) == 1):
            self.deliver_to(d, <uint16_t>(slot + 1), word >> 8)

    cdef uint8_t *room(self, uint64_t *size) noexcept nogil:
        """Where to receive the next bytes; NULL: the ring is full."""
        cdef uint8_t *held = rc_stream_room(&self.writer.ring, rf_need(&self.decoder),
                                            self.read_most, size, &self.wait_length)
        return held + self.writer.ring.held if held != NULL else NULL

    cdef void received(self, ssize_t n) noexcept nogil:
        self.writer.ring.held = self.writer.ring.held + n
        self.all_bytes = self.all_bytes + n
        self.time_ns = rc_clock_ns(CLOCK_REALTIME)
        self.flooded = <uint64_t>n >= self.read_most // 4

    cdef int receive_plain(self, int fd) noexcept nogil:
        cdef int i, outcome
        cdef uint64_t size = 0
        cdef uint8_t *room
        cdef ssize_t n
        for i in range(READS):
            outcome = self.decode()
            if outcome != OUT_NEEDS_BYTES:
                return outcome
            room = self.room(&size)
            if room == NULL:
                return OUT_FULL
            n = recv(fd, room, size, MSG_DONTWAIT)
            if n <= 0:
                return OUT_ENDED if n == 0 else OUT_FAILED
            self.received(n)
            if <uint64_t>n < size:  # that was all there is
                outcome = self.decode()
                return OUT_DRAINED if outcome == OUT_NEEDS_BYTES else outcome
        return OUT_MORE

    def receive(self, int fd) -> int:
        """Receive what is there from a plain socket and publish its messages; never waits.

        Returns:
            DRAINED: nothing is left to receive. MORE: there may be. FULL: the ring is; nothing was
            received that it has no room for: `wait_for_room`, then call again. PING, PONG, CLOSE:
            `payload` (and `code`) is for the caller; call again for the rest. FAULT: the peer broke
            the protocol; close with `code`. ENDED: the peer has closed the socket. NAME: `payload`
            is a new name; say with `name` what topic it is, then call again for its message and
            the rest. CONTROL: `payload` is a message for the manager; say with `deliver` who else
            gets it, then call again for it and the rest.

        Raises:
            OSError: the socket failed.
            RingClosed: the writer is closed.
            BufferError: a reservation of the writer is open.
        """
        cdef int outcome
        self.begin_turn()
        try:
            with nogil:
                outcome = self.receive_plain(fd)
            if outcome == OUT_FAILED:
                if errno in (EAGAIN, EINTR):
                    outcome = OUT_DRAINED
                else:
                    raise OSError(errno, os.strerror(errno))
            return self.done(outcome)
        finally:
            self.writer.end_turn()

    def receive_tls(self, stream, *, bint receiving=True) -> int:
        """The same from a non-blocking `tls.Stream`; with `receiving` off, only what was received
        before and is not yet decrypted.

        Raises: as `receive` does, and ssl.SSLError.
        """
        cdef int outcome
        self.begin_turn()
        try:
            outcome = self.receive_records(stream.fileno(), stream.tls.read, stream.incoming,
                                           receiving)
            return self.done(outcome)
        finally:
            self.writer.end_turn()

    cdef int receive_records(self, int fd, read, incoming, bint receiving) except -1:
        cdef int i, outcome
        cdef uint64_t size = 0
        cdef uint8_t *room
        cdef ssize_t n
        cdef bint drained = not receiving
        for i in range(READS):
            with nogil:
                outcome = self.decode()
            if outcome != OUT_NEEDS_BYTES:
                return outcome
            room = self.room(&size)
            if room == NULL:
                return OUT_FULL
            try:
                n = self.decrypt(read, room, size)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return OUT_ENDED
            if n:
                self.received(n)
                continue
            if drained:
                return OUT_DRAINED
            with nogil:
                n = recv(fd, self.records, TLS_READ, MSG_DONTWAIT)
            if n < 0:
                if errno in (EAGAIN, EINTR):
                    return OUT_DRAINED
                raise OSError(errno, os.strerror(errno))
            if n == 0:
                incoming.write_eof()
            else:
                self.space.place(self.records, n)
                incoming.write(self.space)
                drained = n < TLS_READ
        return OUT_MORE

    cdef ssize_t decrypt(self, read, uint8_t *room, uint64_t size) except -1:
        """Decrypt records to `room` until it is full or no whole one is left; returns how many
        bytes that gave."""
        cdef uint64_t filled = 0
        cdef ssize_t n
        try:
            while filled < size:
                self.space.place(room + filled, size - filled)
                n = read(size - filled, self.space)
                if n == 0:
                    raise ssl.SSLZeroReturnError
                filled += n
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            if not filled:  # else it comes again, after what came before it
                raise
        return filled

    def publish_received(self) -> int:
        """Publish what was received before and found no room; receives nothing. Returns DRAINED
        when it is all in the ring, else as `receive` does."""
        cdef int outcome
        self.begin_turn()
        try:
            with nogil:
                outcome = self.decode()
            return self.done(OUT_DRAINED if outcome == OUT_NEEDS_BYTES else outcome)
        finally:
            self.writer.end_turn()

    cdef int begin_turn(self) except -1:
        """Nobody else publishes while bytes are received."""
        check_open(&self.writer.endpoint.c)
        if self.writer.reservation != NULL:
            raise BufferError("a reservation is open in this ring: commit or leave it first")
        if not self.writer.begin_turn(INT64_MAX):
            raise RuntimeError("a signal handler can't receive while its own thread does")

    cdef int done(self, int outcome) except -1:
        if outcome == OUT_NAME:
            self.payload = PyBytes_FromStringAndSize(<char *>self.found.name, self.found.length)
        elif (outcome == OUT_PING or outcome == OUT_PONG or outcome == OUT_CLOSE
                or outcome == OUT_CONTROL):
            self.payload = PyBytes_FromStringAndSize(<char *>self.control, self.item.length)
        if self.finder is not None:
            self.finder.raise_interruption()
        return outcome

    def name(self, bytes raw not None, uint32_t topic, uint64_t key) -> None:
        """After NAME: what topic and key its messages have. Raises as `Finder.name` does."""
        self.finder.name(raw, topic, key)

    def deliver(self, uint16_t destination, bint answers=False) -> None:
        """After CONTROL: publish the message for all readers (0), or for the one whose slot is
        `destination` - 1. `answers`: it says nothing to who has asked nothing."""
        if destination > self.writer.ring.max_readers:
            raise ValueError(f"destination is {destination}; the ring has"
                             f" {self.writer.ring.max_readers} reader slots")
        self.destination = destination
        if destination:
            self.generation = rc_load_u64(
                &rc_slot_at(self.writer.ring.control, destination - 1).state) >> 8
        self.answers = answers
        self.handed = True

    def wait_for_room(self, double seconds) -> bool:
        """After FULL: wait until there may be room, 20 ms at most, and at most so long. Slots of
        dead readers are freed meanwhile. False if the time is over."""
        self.begin_turn()
        try:
            return self.writer.wait_for_room(self.wait_length,
                                             rc_now_ns() + <int64_t>(seconds * 1e9))
        finally:
            self.writer.end_turn()

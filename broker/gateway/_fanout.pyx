# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""From a ring to the sockets of many clients; fanout.h has how. This file brings it together with one
reader of the ring: what has come, who gets it, and how far the reader's cursor may go."""

from typing import NamedTuple

cimport cython
from libc.errno cimport errno
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ringcast.shm._core cimport (
    RC_EMPTY, RC_ENDED, RC_KIND_EVENT, RC_MESSAGE, RC_STEP_DOWN, RC_TAKEN_AWAY, rc_descriptor,
    rc_reader, rc_reader_advance, rc_reader_available, rc_reader_blocks, rc_reader_flush,
    rc_reader_holds, rc_reader_peek, rc_result, rc_topics_count,
)
from ringcast.shm._endpoint cimport check_open
from ringcast.shm._reader cimport Reader, pin_link, pin_unlink, rc_pin

cdef extern from "fanout.h" nogil:
    ctypedef enum rg_mode:
        RG_PLAIN, RG_RECORDS

    ctypedef enum rg_result:
        RG_DRAINED, RG_MORE, RG_BLOCKED, RG_TOPIC, RG_STOPPED, RG_FAILED, RG_TAKEN_AWAY, RG_IMPOSSIBLE
        RG_NO_MEMORY

    ctypedef struct rg_bytes:
        pass

    ctypedef struct rg_outlet:
        int fd
        rg_mode mode
        uint64_t next, stop, part, gap, messages, bytes, lost
        const uint8_t *wanted
        const uint8_t *unsure
        uint32_t known
        rg_bytes rest, own, inserts, inserted

    ctypedef struct rg_plan:
        pass

    int rg_bytes_add(rg_bytes *, const void *, size_t)
    int rg_insert_add(rg_outlet *, uint64_t sequence, const void *, size_t)
    size_t rg_bytes_left(const rg_bytes *)
    void rg_bytes_free(rg_bytes *)
    rg_result rg_outlet_pump(rg_plan *, const rc_reader *, rg_outlet *, uint64_t end)
    int rg_look_up(const rc_reader *, uint64_t sequence, rc_descriptor *)
    const uint8_t *rg_payload(const rc_reader *, const rc_descriptor *)
    rg_result rg_outlet_skip(rg_plan *, const rc_reader *, rg_outlet *, uint64_t to)

# What comes of `Fanout.pump`, for those of which something is to be known.
DRAINED = RG_DRAINED
MORE = RG_MORE
BLOCKED = RG_BLOCKED
TOPIC = RG_TOPIC
STOPPED = RG_STOPPED
FAILED = RG_FAILED

cdef enum:
    LOOKS = 64  # in one call, so that its caller can look at the clock


class Addressed(NamedTuple):
    """A message that is for one of the ring's readers alone.

    Attributes:
        sequence, kind, time_ns: of the message.
        slot, generation: of the reader.
    """

    sequence: int
    slot: int
    generation: int
    kind: int
    time_ns: int


@cython.final
cdef class Outlet:
    """A client's way out. Made with `Fanout.add`; one thread works all of a `Fanout`.

    Attributes:
        fd: its socket, non-blocking; not closed here.
        lossy: it does not hold the ring: what it has not taken in time is lost to it.
        error: errno, once `pump` has said FAILED.
        reports_drained: `pump` says so, too, when all is sent. Can be set.
    """

    cdef rg_outlet c
    cdef uint8_t *topics  # those that are wanted, and behind them those that are unsure
    cdef uint32_t topics_max
    cdef bint full  # the socket is
    cdef readonly bint lossy
    cdef readonly int error
    cdef public bint reports_drained
    cdef object __weakref__

    def __dealloc__(self):
        rg_bytes_free(&self.c.rest)
        rg_bytes_free(&self.c.own)
        rg_bytes_free(&self.c.inserts)
        rg_bytes_free(&self.c.inserted)
        free(self.topics)

    @property
    def fd(self) -> int:
        return self.c.fd

    @property
    def next(self) -> int:
        """The sequence of its next message."""
        return self.c.next

    @property
    def messages(self) -> int:
        """Messages sent whole."""
        return self.c.messages

    @property
    def bytes_sent(self) -> int:
        """Bytes that the socket has taken, headers and the gateway's own among them."""
        return self.c.bytes

    @property
    def lost(self) -> int:
        """Messages that went by while it did not take them."""
        return self.c.lost

    @property
    def waits(self) -> bool:
        """Is its socket full? `resume` says that it takes more."""
        return self.full

    @property
    def pending(self) -> int:
        """Bytes of the gateway's own, and of a frame that was begun, that are still to be sent."""
        return rg_bytes_left(&self.c.own) + rg_bytes_left(&self.c.rest) + (self.c.part != 0)

    @property
    def inserted(self) -> int:
        """Bytes that have a place among the messages, and are not among those `pending` yet."""
        return rg_bytes_left(&self.c.inserted)

    @property
    def known(self) -> int:
        """It is known which topics, up to this id, it wants."""
        return self.c.known

    def queue(self, const uint8_t[::1] data not None) -> None:
        """Send whole frames of the gateway's own, where the frame that goes out now ends. Raises
        MemoryError."""
        if data.shape[0] and not rg_bytes_add(&self.c.own, &data[0], data.shape[0]):
            raise MemoryError

    def insert(self, uint64_t sequence, const uint8_t[::1] data not None) -> None:
        """Send whole frames of the gateway's own before the message of this sequence, or at once if
        that is sent. From call to call sequences do not fall. Raises MemoryError."""
        if data.shape[0] and not rg_insert_add(&self.c, sequence, &data[0], data.shape[0]):
            raise MemoryError

    def stop(self, uint64_t sequence) -> None:
        """Send no messages from this sequence on."""
        self.c.stop = min(self.c.stop, sequence)

    def resume(self) -> None:
        """The socket takes more."""
        self.full = False

    def choose(self, wanted not None, uint32_t known, unsure=()) -> None:
        """Which topics it wants, up to the id `known`: ids; 0 stands for messages without one. What
        was chosen before stands no more. `pump` asks, with TOPIC, about those that are `unsure` and
        those beyond `known` when messages of theirs come. One that got everything gets only these
        from now on. Raises MemoryError."""
        cdef uint32_t size = self.topics_max // 8 + 1
        if known > self.topics_max:
            raise ValueError(f"{known} topics are more than the {self.topics_max} of the ring")
        for topic in (*wanted, *unsure):
            if not 0 <= topic <= known:
                raise ValueError(f"topic {topic} is beyond {known}")
        self.allocate()
        memset(self.topics, 0, 2 * size)
        for topic in wanted:
            self.topics[<uint32_t>topic // 8] |= <uint8_t>(1 << (<uint32_t>topic % 8))
        for topic in unsure:
            self.topics[size + <uint32_t>topic // 8] |= <uint8_t>(1 << (<uint32_t>topic % 8))
        self.c.known = known

    cdef int allocate(self) except -1:
        """Room for what it wants: until something is chosen, nothing."""
        cdef uint32_t size = self.topics_max // 8 + 1
        if self.topics == NULL:
            self.topics = <uint8_t *>calloc(2, size)
            if self.topics == NULL:
                raise MemoryError
            self.c.wanted = self.topics
            self.c.unsure = self.topics + size
        return 0

    def knows(self, uint32_t known) -> None:
        """It has the names of the topics up to this id."""
        self.c.known = known


@cython.final
cdef class Fanout:
    """One lossless reader's messages for many clients. While it works nothing else reads from the
    reader.

    Args:
        reader: a lossless `shm.broadcast.Reader`; it must not choose among topics.
    """

    cdef Reader reader
    cdef rg_plan *plan
    cdef rc_pin pin
    cdef list outlets
    cdef list events  # sequences of records of kind EVENT that `take_events` has not returned
    cdef list addressed  # of messages for one reader that `take_addressed` has not returned
    cdef uint64_t missed, missed_at

    def __cinit__(self, Reader reader not None):
        self.plan = <rg_plan *>calloc(1, sizeof(rg_plan))
        if self.plan == NULL:
            raise MemoryError
        if reader.a.reader.lossy or reader.a.reader.filter != NULL:
            raise ValueError("a fan-out needs a lossless reader that gets every message")
        self.reader = reader
        self.outlets = []
        self.events = []
        self.addressed = []
        pin_link(&reader.pins, &self.pin, reader.a.reader.next)

    def __dealloc__(self):
        if self.reader is not None:
            pin_unlink(&self.pin)
        free(self.plan)

    def close(self) -> None:
        """Hold nothing any more. The reader is not closed."""
        self.outlets.clear()
        pin_unlink(&self.pin)

    @property
    def instance(self) -> int:
        """Which of all rings that had this name."""
        return self.reader.a.ring.g.instance

    @property
    def capacity(self) -> int:
        """How many bytes of messages the ring holds."""
        return self.reader.a.reader.capacity

    @property
    def slots(self) -> int:
        """How many messages the ring holds."""
        return self.reader.a.reader.slots

    @property
    def end(self) -> int:
        """One beyond the newest message that `look` has found."""
        return self.reader.a.reader.next

    @property
    def has_ended(self) -> bool:
        """Has the ring's writer closed it, and was everything taken?"""
        cdef rc_descriptor first
        return rc_reader_peek(&self.reader.a.reader, &first) == RC_ENDED

    @property
    def floor(self) -> int:
        """The oldest message that is held."""
        return self.pin.sequence

    @property
    def blocks(self) -> bool:
        """Does the ring's writer wait for what is held here?"""
        return rc_reader_blocks(&self.reader.a.reader)

    @property
    def topics(self) -> int:
        """How many topics the ring has."""
        return rc_topics_count(self.reader.header(), self.reader.a.ring.g.max_topics)

    def add(self, int fd, *, bint records, bint lossy, bint chooses, start=None,
            uint64_t missed=0) -> Outlet:
        """A client more.

        Args:
            fd: its socket, non-blocking.
            records: send records (docs/wire.md), else the messages as frames.
            lossy: see `Outlet`.
            chooses: it gets what `Outlet.choose` says, and nothing before.
            start: its first sequence; from `floor` to `end`, which is the default.
            missed: messages that it has missed before that.

        Raises:
            ValueError: `start` is not held here.
        """
        cdef Outlet outlet = Outlet.__new__(Outlet)
        outlet.c.fd = fd
        outlet.c.mode = RG_RECORDS if records else RG_PLAIN
        outlet.c.next = self.reader.a.reader.next if start is None else start
        outlet.c.stop = UINT64_MAX
        outlet.c.gap = outlet.c.lost = missed
        outlet.lossy = lossy
        outlet.topics_max = self.reader.a.ring.g.max_topics
        if not self.pin.sequence <= outlet.c.next <= self.reader.a.reader.next:
            raise ValueError(f"{outlet.c.next} is not held here")
        if chooses:
            outlet.allocate()
        self.outlets.append(outlet)
        return outlet

    def adopt(self, Outlet outlet not None) -> None:
        """Serve a client of another `Fanout` of the same ring, from its next message on. Raises
        ValueError: that is not held here."""
        if not self.pin.sequence <= outlet.c.next <= self.reader.a.reader.next:
            raise ValueError(f"{outlet.c.next} is not held here")
        self.outlets.append(outlet)

    def remove(self, Outlet outlet not None) -> None:
        """A client has gone."""
        self.outlets.remove(outlet)

    def look(self) -> bool:
        """Take what has come into the ring. Returns whether there was something.

        Raises:
            RingClosed: the ring has ended, and everything was taken.
            Evicted: the writer has taken this reader's hold away, or asks it to give it up: no
                message that is not sent can be sent any more. Attach again.
            RingCorrupt: the segment holds what no writer writes.
        """
        cdef rc_reader *r = &self.reader.a.reader
        cdef rc_descriptor first
        cdef rc_result result
        cdef uint64_t n, begun = r.next, before = r.next
        cdef int i
        check_open(&self.reader.a.endpoint)
        for i in range(LOOKS):
            result = rc_reader_peek(r, &first)
            if result != RC_MESSAGE:
                break
            if r.gap:
                self.missed = r.gap
                self.missed_at = r.next
                before = r.next
            n = rc_reader_available(r, r.slots)
            rc_reader_advance(r, n, 0)
        if r.next != before:
            self.find_special(before)
        if result == RC_MESSAGE or (result == RC_EMPTY or result == RC_ENDED) and r.next != begun:
            return True
        if result == RC_EMPTY:
            return False
        if result == RC_ENDED:
            raise self.reader.ended()
        if result == RC_STEP_DOWN or result == RC_TAKEN_AWAY:
            raise self.reader.evicted()
        raise self.reader.corrupt()

    cdef int find_special(self, uint64_t begin) except -1:
        """Note which messages since `begin` are records of kind EVENT, or for one reader alone."""
        cdef rc_reader *r = &self.reader.a.reader
        cdef const rc_descriptor *d
        cdef uint64_t at
        for at in range(begin, r.next):
            d = &r.descriptors[at & (r.slots - 1)]
            if d.f.kind == RC_KIND_EVENT:
                self.events.append(at)
            elif d.f.destination != 0:
                self.addressed.append(Addressed(at, d.f.destination - 1, d.f.key, d.f.kind,
                                                d.f.time_ns))
        return 0

    def take_events(self) -> list:
        """The sequences, since the last call, of records of kind EVENT. They are held until the next
        `let_go`."""
        found = self.events
        self.events = []
        return found

    def take_addressed(self) -> list:
        """The messages, since the last call, that are for one of the ring's readers alone, as
        `Addressed`. They are held until the next `let_go`."""
        found = self.addressed
        self.addressed = []
        return found

    def topic_of(self, uint64_t sequence) -> int:
        """The id of a held message's topic, 0 for none. Raises as `payload` does."""
        cdef rc_descriptor d
        self.look_up(sequence, &d)
        return d.f.topic

    def take_gap(self) -> tuple:
        """Messages that this reader missed, since the last call, and before which sequence."""
        found = (self.missed, self.missed_at)
        self.missed = 0
        return found

    def payload(self, uint64_t sequence) -> bytes:
        """A copy of the payload of a message that is held.

        Raises:
            ValueError: it is not held.
            Evicted, RingCorrupt: as `look` does.
        """
        cdef rc_descriptor d
        self.look_up(sequence, &d)
        payload = (<const char *>rg_payload(&self.reader.a.reader, &d))[:d.f.length]
        if not rc_reader_holds(&self.reader.a.reader):
            raise self.reader.evicted()
        return payload

    cdef int look_up(self, uint64_t sequence, rc_descriptor *d) except -1:
        """Copy the descriptor of a held message."""
        cdef rc_reader *r = &self.reader.a.reader
        if not self.pin.sequence <= sequence < r.next:
            raise ValueError(f"{sequence} is not held here")
        if not rg_look_up(r, sequence, d):
            raise self.failure(RG_IMPOSSIBLE)
        return 0

    def pump(self) -> list:
        """Send to each client what there is, as far as its socket takes it; never waits. A client
        whose socket is full is passed over until its `resume`.

        Returns:
            Pairs of an outlet and MORE, BLOCKED, TOPIC (see `Outlet.choose`), STOPPED or FAILED,
            for those that have not drained; and DRAINED, for those that report it.

        Raises:
            Evicted, RingCorrupt: as `look` does.
        """
        cdef Outlet outlet
        cdef rg_result result
        cdef list found = []
        cdef uint64_t end = self.reader.a.reader.next
        for outlet in self.outlets:
            if outlet.full:
                continue
            with nogil:
                result = rg_outlet_pump(self.plan, &self.reader.a.reader, &outlet.c, end)
            if result == RG_DRAINED and not outlet.reports_drained:
                continue
            if result == RG_FAILED:
                outlet.error = errno
                outlet.full = True
            elif result == RG_BLOCKED:
                outlet.full = True
            elif result == RG_NO_MEMORY or result == RG_TAKEN_AWAY or result == RG_IMPOSSIBLE:
                raise self.failure(result)
            elif result == RG_TOPIC and self.topic_of(outlet.c.next) > self.topics:
                raise self.failure(RG_IMPOSSIBLE)  # it has no such topic
            found.append((outlet, <int>result))
        return found

    cdef object failure(self, rg_result result):
        """What to raise."""
        if result == RG_NO_MEMORY:
            return MemoryError()
        if result == RG_TAKEN_AWAY or not rc_reader_holds(&self.reader.a.reader):
            return self.reader.evicted()
        return self.reader.corrupt()

    def let_go(self, *, uint64_t keep, bint keep_blocking) -> list:
        """Move the ring's cursor up to what clients still need.

        Args:
            keep: a lossy client holds at most so many messages, and less if they fill more than half
                of the arena.
            keep_blocking: clients that are not lossy hold what they need; else no more than others.

        Returns:
            The outlets that were behind, and have lost messages now.

        Raises:
            Evicted, RingCorrupt: as `look` does.
        """
        cdef rc_reader *r = &self.reader.a.reader
        cdef Outlet outlet
        cdef rg_result result
        cdef uint64_t limit = self.oldest_kept(keep), floor = r.next, lost
        cdef list behind = []
        for outlet in self.outlets:
            if outlet.c.next < limit and (outlet.c.part or outlet.c.next < outlet.c.stop) and not (
                    keep_blocking and not outlet.lossy):
                lost = outlet.c.lost
                result = rg_outlet_skip(self.plan, r, &outlet.c, limit)
                if result != RG_DRAINED:
                    raise self.failure(result)
                if outlet.c.lost > lost:
                    behind.append(outlet)
            if outlet.c.next < floor and (outlet.c.part or outlet.c.next < outlet.c.stop):
                floor = outlet.c.next
        if self.events:  # `payload` is asked for them once they are taken
            floor = min(floor, <uint64_t>self.events[0])
        if self.addressed:
            floor = min(floor, <uint64_t>self.addressed[0].sequence)
        if floor > self.pin.sequence:
            self.pin.sequence = floor
            rc_reader_flush(r, floor)
        return behind

    cdef uint64_t oldest_kept(self, uint64_t keep) noexcept:
        """The oldest message that is kept for a lossy client."""
        cdef rc_reader *r = &self.reader.a.reader
        cdef uint64_t low = self.pin.sequence, high = r.next, middle, newest
        if high - low > keep:
            low = high - keep
        if low == high:
            return low
        high -= 1
        newest = self.position(high)
        while low < high:  # bisection: positions grow
            middle = low + (high - low) // 2
            if newest - self.position(middle) > r.capacity // 2:
                low = middle + 1
            else:
                high = middle
        return low

    cdef uint64_t position(self, uint64_t sequence) noexcept:
        return self.reader.a.reader.descriptors[sequence & (self.reader.a.reader.slots - 1)].f.position

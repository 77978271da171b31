# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""The uplink as Python objects. The protocol is in mpsc.h; what an endpoint keeps for itself, in
endpoint.h. Payloads are copied out of the lanes, so nothing here outlives its call.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ringcast.shm._core cimport (
    CLOCK_REALTIME, RC_ACTIVE, RC_CLOSED_MEANWHILE, RC_EVICTED, RC_FORKED, RC_FREE, RC_KIND_BINARY, RC_LANE_MAX,
    RC_LANE_MIN, RC_LOCK_LANE, RC_LOCK_RECEIVER, RC_LOOKING, RC_MY_TURN, RC_NO_RECEIVER,
    RC_NO_ROOM, RC_OPEN, RC_READING, RC_REJECTED, RC_RING_CLOSED, RC_SENDERS_MAX,
    RC_SENDER_EVICTED, RC_SENT, RC_SLICE_NS, RC_TAKEN, RC_VOIDED, RC_WRONG, is_finalizing,
    rc_access, rc_attached_sender, rc_attached_sender_is_abandoned, rc_attached_sender_wait,
    rc_clock_ns, rc_copy_out, rc_endpoint_phase, rc_endpoint_turn, rc_endpoint_wake_up, rc_error,
    rc_item, rc_lane, rc_load_u32, rc_load_u64, rc_lock_release, rc_lock_try, rc_now_ns,
    rc_receiver, rc_receiver_close, rc_receiver_done, rc_receiver_evict, rc_receiver_free,
    rc_receiver_hole, rc_receiver_map, rc_receiver_mend, rc_receiver_open, rc_receiver_ready,
    rc_receiver_reap, rc_receiver_republish, rc_receiver_sleep, rc_receiver_spoiled,
    rc_receiver_take, rc_receiver_touch_all, rc_receiver_void_hole, rc_receiver_wait,
    rc_receiver_wake_senders, rc_sender, rc_sender_flushed, rc_sender_has_room, rc_sender_state,
    rc_sender_try, rc_sending, rc_store_u32, rc_store_u64, rc_taking, rc_turn, rc_uplink,
    rc_uplink_fits, rc_uplink_format, rc_uplink_geometry, rc_uplink_message_limit, rc_uplink_open,
    rc_uplink_seal, rc_uplink_segment, rc_uplink_size, rc_uplink_tickets, rc_uplink_unmap,
    rc_wait_begins, rc_wait_ended, rc_wait_strategy, rc_waits, sem_t, write,
)
from ringcast.shm._endpoint cimport (
    Endpoint, NewMapping, Semaphores, WaitStrategy, attach_sender, check_making, check_open, deadline_of,
    detach_sender, error_of, label_of, label_text, leave, leave_sender, owner_of,
)

import collections
import os

from ._endpoint import KINDS
from .counters import LaneCounters, UplinkCounters
from .errors import (
    Evicted, MessageTooLarge, RingClosed, RingCorrupt, RingFull, SendRejected, SendUnconfirmed,
)

LOCK_RECEIVER = RC_LOCK_RECEIVER
FREE = RC_FREE
ACTIVE = RC_ACTIVE
EVICTED = RC_EVICTED
LOCK_LANE = RC_LOCK_LANE
SENDERS_MAX = RC_SENDERS_MAX
LANE_MIN = RC_LANE_MIN
LANE_MAX = RC_LANE_MAX

cdef int64_t FOR_EVER = INT64_MAX
cdef enum:
    LOOKS_EACH = 256  # messages that are sent between two looks at the clock


# ---- the segment ---------------------------------------------------------------------------


def check_sizes(uint32_t max_senders, uint64_t lane_bytes) -> None:
    """Raise ValueError for sizes that no uplink can have."""
    if not 1 <= max_senders <= <uint32_t>RC_SENDERS_MAX:
        raise ValueError(f"max_senders={max_senders} is not from 1 to {RC_SENDERS_MAX}")
    if not rc_uplink_fits(1, lane_bytes):
        raise ValueError(f"lane_bytes={lane_bytes} is not a power of two from {RC_LANE_MIN} to"
                         f" {RC_LANE_MAX}")
    if not rc_uplink_fits(max_senders, lane_bytes):
        raise ValueError(f"{max_senders} lanes of {lane_bytes} bytes are too much: make"
                         " max_senders or lane_bytes smaller")


cdef void fill_geometry(rc_uplink_geometry *g, uint32_t max_senders, uint64_t lane_bytes) noexcept:
    memset(g, 0, sizeof(rc_uplink_geometry))
    g.max_senders = max_senders
    g.lane_bytes = lane_bytes
    g.tickets = rc_uplink_tickets(max_senders, lane_bytes)
    g.max_message = rc_uplink_message_limit(lane_bytes)


def segment_size(uint32_t max_senders, uint64_t lane_bytes) -> int:
    """Bytes of an uplink's segment."""
    cdef rc_uplink_geometry g
    fill_geometry(&g, max_senders, lane_bytes)
    return rc_uplink_size(&g)


def format_uplink(NewMapping mapping not None, uint32_t max_senders, uint64_t lane_bytes,
                  uint64_t instance) -> None:
    """Write the header of a new, zeroed uplink; the magic last."""
    cdef rc_uplink_geometry g
    fill_geometry(&g, max_senders, lane_bytes)
    g.instance = instance
    if mapping.size != rc_uplink_size(&g):
        raise ValueError("the mapping does not have the size of such an uplink")
    rc_uplink_format(mapping.address, &g, rc_clock_ns(CLOCK_REALTIME))
    rc_uplink_seal(mapping.address)


@cython.final
cdef class Uplink:
    """An uplink's segment, checked and mapped until nothing refers to this object.

    Args:
        name: the uplink's.
        access: "look": it is not mapped for writing; "write".
        owner: user id it must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: it does not pass.
    """

    cdef rc_uplink_segment c
    cdef readonly str name

    def __cinit__(self, str name not None, str access not None, owner):
        cdef rc_error error
        cdef rc_access how = RC_READING if access == "write" else RC_LOOKING
        if rc_uplink_open(&self.c, name.encode(), how, owner_of(owner), &error):
            raise error_of(&error)
        self.name = name

    def __dealloc__(self):
        if self.c.segment.address != NULL and not is_finalizing():  # as for Segments
            rc_uplink_unmap(&self.c)

    @property
    def instance(self) -> int:
        return self.c.map.g.instance

    @property
    def tickets(self) -> int:
        return self.c.map.g.tickets

    @property
    def lane_bytes(self) -> int:
        return self.c.map.g.lane_bytes

    @property
    def max_message(self) -> int:
        return self.c.map.g.max_message

    @property
    def max_senders(self) -> int:
        return self.c.map.g.max_senders

    def counters(self):
        """An `UplinkCounters`."""
        cdef rc_uplink *u = self.c.map.shared
        return UplinkCounters(rc_load_u32(&u.state) == RC_RING_CLOSED, rc_load_u32(&u.epoch),
                              rc_load_u64(&u.receiver_pid), rc_load_u64(&u.head),
                              rc_load_u64(&u.flushed), rc_load_u64(&u.tail))

    def lane_counters(self, uint32_t index):
        """A `LaneCounters`."""
        if index >= self.c.map.g.max_senders:
            raise IndexError(f"the uplink has {self.c.map.g.max_senders} lanes")
        cdef rc_lane *lane = &self.c.map.shared.lanes[index]
        cdef uint64_t pending = rc_load_u64(&lane.written) - rc_load_u64(&lane.taken)
        return LaneCounters(
            rc_load_u64(&lane.state) & 0xff, rc_load_u32(&lane.pid), rc_load_u64(&lane.joined_ns),
            label_text(lane.label), rc_load_u64(&lane.sent), rc_load_u64(&lane.taken_count),
            rc_load_u64(&lane.done_count), rc_load_u64(&lane.rejected),
            rc_load_u64(&lane.unconfirmed), min(pending, self.c.map.g.lane_bytes))


# ---- the sender ----------------------------------------------------------------------------


cdef class Sender:
    """The native half of `shm.mpsc.Sender`, which see."""

    cdef rc_attached_sender a
    cdef readonly str name
    cdef bint attached, joined
    cdef uint32_t sends
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        check_making(args, "senders are made by Sender.attach(name)")
        _, name, label, owner = args
        self.attach_to(name, label, owner)

    cdef int attach_to(self, str name, label, owner) except -1:
        attach_sender(&self.a, name.encode(), label_of(label), owner_of(owner))
        self.attached = self.joined = True
        self.name = name
        return 0

    def __dealloc__(self):
        if self.attached and not is_finalizing():
            self.finish()
            detach_sender(&self.a)

    @cython.final
    cdef void finish(self) noexcept:
        if self.joined:
            self.joined = False
            if rc_endpoint_phase(&self.a.endpoint) != RC_FORKED:
                leave_sender(&self.a)

    @cython.final
    cdef int report(self) except -1:
        """Raise what became of messages that were sent before; once each."""
        cdef uint64_t rejected = rc_load_u64(&self.a.sender.lane.rejected)
        cdef uint64_t unconfirmed = rc_load_u64(&self.a.sender.lane.unconfirmed)
        cdef uint64_t count
        if rc_sender_state(&self.a.sender) == RC_SENDER_EVICTED:
            raise self.why_not(RC_SENDER_EVICTED)
        if rejected != self.a.sender.rejected:
            count = rejected - self.a.sender.rejected
            self.a.sender.rejected = rejected
            raise SendRejected(f"{count} of the messages sent before were rejected: they were not"
                              " delivered, for there was no connection", count)
        if unconfirmed != self.a.sender.unconfirmed:
            count = unconfirmed - self.a.sender.unconfirmed
            self.a.sender.unconfirmed = unconfirmed
            raise SendUnconfirmed(f"{count} of the messages sent before may or may not have been"
                                  " delivered: the receiver died while it had them", count)
        return 0

    @cython.final
    cdef object why_not(self, rc_sending state):
        if state == RC_SENDER_EVICTED:
            return Evicted(f"the receiver of uplink {self.name!r} evicted lane {self.a.sender.index}"
                           ": it held what no sender writes; attach again")
        if state == RC_NO_RECEIVER:
            return RingClosed(f"uplink {self.name!r} has ended: its receiver closed it")
        if state == RC_REJECTED:
            return SendRejected(f"uplink {self.name!r} takes nothing now: there is no"
                               " connection; nothing was sent", 0)
        return RingCorrupt(f"uplink {self.name!r} holds what no receiver writes")

    @cython.final
    cdef int wait_until(self, int64_t deadline,
                        int (*ready)(const rc_sender *, uint64_t) noexcept nogil,
                        uint64_t what) except -1:
        """Wait at most 100 ms; 0: the deadline is over."""
        cdef rc_sender snapshot = self.a.sender
        if rc_now_ns() >= deadline:
            return 0
        with nogil:
            rc_attached_sender_wait(&self.a, &snapshot, ready, what, deadline)
        PyErr_CheckSignals()
        check_open(&self.a.endpoint)
        self.look_around()
        return 1

    @cython.final
    cdef int look_around(self) except -1:
        """Will anybody ever receive? Looks each 100 ms at most."""
        if rc_attached_sender_is_abandoned(&self.a):
            raise RingClosed(f"uplink {self.name!r} has no receiver and was removed, so no message"
                             " can go any more")
        return 0

    def _send(self, data, uint16_t kind, bint wait, timeout):
        """The ticket, or None when there is no room and `wait` is off."""
        cdef Py_buffer view
        cdef uint64_t ticket = 0
        cdef rc_sending state
        cdef int64_t deadline = FOR_EVER if timeout is None else deadline_of(timeout)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)  # may run code: check after
        try:
            check_open(&self.a.endpoint)
            self.report()
            self.sends += 1
            if self.sends % LOOKS_EACH == 0:
                self.look_around()
            if <uint64_t>view.len > self.a.sender.map.g.max_message:
                raise MessageTooLarge(
                    f"a message of {view.len} bytes is longer than this uplink's limit of"
                    f" {self.a.sender.map.g.max_message}: create it with a larger lane_bytes")
            while True:
                state = rc_sender_try(&self.a.sender, <const uint8_t *>view.buf, view.len, kind,
                                      &ticket)
                if state == RC_SENT:
                    return ticket
                if state != RC_NO_ROOM:
                    raise self.why_not(state)
                if not wait:
                    self.look_around()
                    return None
                if not self.wait_until(deadline, rc_sender_has_room, view.len):
                    raise RingFull(f"no room for {view.len} bytes in lane {self.a.sender.index} of"
                                   f" uplink {self.name!r} in time: its receiver is behind. Send less"
                                   " often, or give the lanes more room (lane_bytes=)")
        finally:
            PyBuffer_Release(&view)

    def flush(self, ticket=None, timeout=None) -> None:
        """Wait until a message was delivered: taken by the receiver, and with a manager, handed to
        the socket. What was rejected, or is not known, is told once, to the call of this sender that
        comes first after it, whichever messages it was.

        Args:
            ticket: of the message; None for the last one sent here.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not in time; it may still be.
            SendRejected, SendUnconfirmed: messages sent here were not delivered, or nobody knows.
            Evicted, RingClosed: this end was evicted; the receiver has closed the uplink.
        """
        cdef uint64_t upto
        cdef rc_sending state
        cdef int64_t deadline = deadline_of(timeout)
        check_open(&self.a.endpoint)
        if ticket is not None and not 0 <= ticket < <object>self.a.sender.last:
            raise ValueError(f"ticket {ticket} was not sent here")
        upto = self.a.sender.last if ticket is None else <uint64_t>ticket + 1
        while not rc_sender_flushed(&self.a.sender, upto):
            state = rc_sender_state(&self.a.sender)
            if state == RC_SENDER_EVICTED or state == RC_NO_RECEIVER:
                raise self.why_not(state)
            if state == RC_REJECTED:  # those that wait will be rejected, too
                self.report()
            if not self.wait_until(deadline, rc_sender_flushed, upto):
                raise TimeoutError(f"message {upto - 1} was not delivered in time; it may still be")
        self.report()  # what was dropped when this sender was evicted is passed, too

    @property
    def pending(self) -> int:
        """Messages sent here that are not delivered yet."""
        check_open(&self.a.endpoint)
        cdef uint64_t done = rc_load_u64(&self.a.sender.lane.done_count)
        return self.a.sender.sent - done if self.a.sender.sent > done else 0

    def close(self) -> None:
        """Leave the uplink. What was sent stays there for the receiver."""
        if not self.joined:
            return
        if rc_endpoint_phase(&self.a.endpoint) == RC_FORKED:
            self.joined = False
            return
        leave(&self.a.endpoint, self.a.sender.wake)
        self.finish()

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return not self.joined or rc_endpoint_phase(&self.a.endpoint) != RC_OPEN

    @property
    def lane(self) -> int:
        """The lane, as `Envelope.sender` numbers it."""
        return self.a.sender.index

    @property
    def max_message(self) -> int:
        """Longest message, bytes."""
        return self.a.sender.map.g.max_message


# ---- the receiver --------------------------------------------------------------------------


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Envelope:
    """One message that was sent, with its place in the order and its sender. It is its bytes, a
    private copy, as a `Message` is: ``memoryview``, ``bytes``, ``len`` and the buffer protocol,
    read-only.

    Attributes:
        ticket: its place in the order of all messages.
        sender: lane of its sender.
    """

    cdef readonly uint64_t ticket
    cdef readonly uint32_t sender
    cdef int kind_number
    cdef bytes data

    def __init__(self):
        raise TypeError("envelopes come from a Receiver")

    @property
    def kind(self):
        """A `shm.Kind`, or whatever number the sender gave."""
        return KINDS.get(self.kind_number, self.kind_number)

    @property
    def payload(self) -> memoryview:
        """The bytes; valid for as long as the view lives."""
        return PyMemoryView_FromObject(self)

    def text(self) -> str:
        """The payload decoded as UTF-8. Raises UnicodeDecodeError."""
        return self.data.decode()

    def __bytes__(self):
        return self.data

    def __len__(self):
        return len(self.data)

    def __bool__(self):
        return True  # an empty message is a message: `while envelope := receiver.read(0)`

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>PyBytes_AS_STRING(self.data), len(self.data), 1, flags)

    def __repr__(self):
        return f"<Envelope {self.ticket} by {self.sender}, {len(self)} bytes>"


cdef class Receiver:
    """The native half of `shm.mpsc.Receiver`, which see."""

    cdef rc_receiver c
    cdef Uplink uplink
    cdef Endpoint endpoint
    cdef Semaphores semaphores
    cdef WaitStrategy wait
    cdef rc_waits waits  # used by the one thread whose turn it is
    cdef uint64_t *arrays
    cdef bint opened, auto_ack
    cdef readonly bint abandoned
    cdef int64_t reaped_ns
    cdef object taken  # without auto_ack: what is to be acknowledged, in order
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        check_making(args, "receivers are made by Receiver.create(name) or Receiver.resume(name)")
        _, uplink, endpoint, semaphores, wait, auto_ack = args
        self.bind(uplink, endpoint, semaphores, wait, auto_ack)

    cdef int bind(self, Uplink uplink, Endpoint endpoint, Semaphores semaphores, WaitStrategy wait,
                  bint auto_ack) except -1:
        cdef uint32_t n = uplink.c.map.g.max_senders
        if semaphores.count != <int>n + 1:
            raise ValueError("a receiver needs every lane's semaphore, and its own last")
        self.arrays = <uint64_t *>calloc(2 * n, sizeof(uint64_t))
        if self.arrays == NULL:
            raise MemoryError
        self.uplink = uplink
        self.endpoint = endpoint
        self.semaphores = semaphores
        self.wait = wait
        self.auto_ack = auto_ack
        self.taken = collections.deque()
        rc_receiver_map(&self.c, uplink.c.segment.address, &uplink.c.map.g, semaphores.handles,
                        semaphores.handles[n], self.arrays, self.arrays + n)
        return 0

    def __dealloc__(self):
        free(self.arrays)

    def _open(self) -> None:
        """Begin, or go on where a dead receiver stopped. The receiver's lock is held."""
        if not rc_receiver_open(&self.c, os.getpid(), rc_clock_ns(CLOCK_REALTIME)):
            raise RingCorrupt(f"uplink {self.uplink.name!r} can't be resumed: its counters are"
                              " impossible; remove it with shm.unlink()")
        rc_receiver_wake_senders(&self.c)
        self.opened = True

    @cython.final
    cdef int check(self) except -1:
        check_open(&self.endpoint.c)
        if not self.opened:
            raise RingClosed("this end of the uplink is closed")
        return 0

    def look_around(self) -> None:
        """Free the lanes of dead senders, and void a hole that a hostile one has made; does nothing
        for 100 ms after it did. `read_available` and `read` do it, too: for a receiver that does not call
        them for a while."""
        cdef int64_t now = rc_now_ns()
        cdef uint32_t i
        cdef uint64_t hole, state
        cdef int fd
        self.check()
        fd = self.endpoint.c.lock_fd
        if now - self.reaped_ns < RC_SLICE_NS:
            return
        self.reaped_ns = now
        for i in range(self.c.map.g.max_senders):
            state = rc_load_u64(&self.c.map.shared.lanes[i].state) & 0xff
            if state == RC_FREE and not rc_receiver_spoiled(&self.c, i):
                continue
            if rc_lock_try(fd, RC_LOCK_LANE + i) == 0:
                rc_receiver_reap(&self.c, i)
                rc_receiver_mend(&self.c, i)
                rc_lock_release(fd, RC_LOCK_LANE + i)
        rc_receiver_republish(&self.c)
        if not rc_receiver_ready(&self.c):
            hole = rc_receiver_hole(&self.c)
            while hole and not rc_receiver_ready(&self.c):
                rc_receiver_void_hole(&self.c)
                hole -= 1

    @cython.final
    cdef Envelope take(self):
        """The next message, or None."""
        cdef rc_item item
        cdef rc_taking what = RC_VOIDED
        cdef Envelope envelope
        cdef uint64_t i
        for i in range(self.c.map.g.tickets):
            what = rc_receiver_take(&self.c, &item)
            if what != RC_VOIDED:
                break
        if what != RC_TAKEN:
            return None
        envelope = Envelope.__new__(Envelope)
        # Allocating may run other code, which may receive from here: look again after it.
        envelope.data = PyBytes_FromStringAndSize(NULL, item.length)
        if self.c.head != item.ticket:
            return self.take()
        rc_copy_out(<uint8_t *>PyBytes_AS_STRING(envelope.data), item.payload, item.length)
        envelope.ticket = item.ticket
        envelope.sender = item.lane
        envelope.kind_number = item.kind
        rc_receiver_free(&self.c, &item)
        if self.auto_ack:
            rc_receiver_done(&self.c, item.ticket, item.lane, False)
        else:
            self.taken.append(envelope)
        return envelope

    def read_available(self, Py_ssize_t limit=256) -> list:
        """What is there now, at most `limit` messages in the order of their tickets; never waits.

        Raises:
            RingClosed: this end is closed.
        """
        cdef list messages = []
        cdef Envelope envelope
        if limit < 1:
            raise ValueError(f"limit is a number of messages, 1 or more, not {limit}")
        self.check()
        self.look_around()
        while len(messages) < limit:
            envelope = self.take()
            if envelope is None:
                break
            messages.append(envelope)
        if messages:
            rc_receiver_wake_senders(&self.c)
        return messages

    def read(self, timeout=None):
        """The next message, waiting for it; None when the time is over.

        Args:
            timeout: seconds; None waits as long as it takes, 0 not at all.

        Raises:
            RingClosed: this end is closed.
        """
        cdef int64_t deadline = -1
        cdef int64_t now, limit
        cdef rc_turn turn
        cdef rc_wait_strategy strategy
        cdef rc_receiver snapshot
        cdef Envelope envelope
        while True:
            self.check()
            self.look_around()
            envelope = self.take()
            if envelope is not None:
                rc_receiver_wake_senders(&self.c)
                return envelope
            if deadline < 0:
                deadline = deadline_of(timeout)
            now = rc_now_ns()
            if now >= deadline:
                return None
            limit = deadline if deadline - now < RC_SLICE_NS else now + RC_SLICE_NS
            snapshot = self.c
            with nogil:
                turn = rc_endpoint_turn(&self.endpoint.c, limit)
                if turn == RC_MY_TURN:
                    strategy = rc_wait_begins(&self.waits, self.wait.c)
                    rc_receiver_wait(&snapshot, strategy, limit)
                    rc_wait_ended(&self.waits, self.wait.c)
                    rc_endpoint_wake_up(&self.endpoint.c)
            PyErr_CheckSignals()

    def ack(self, envelopes, *, bint rejected=False) -> None:
        """Say what became of messages that were read, for a receiver made with ``auto_ack=False``:
        each once, in the order in which they were read.

        Args:
            envelopes: a sequence of `Envelope`.
            rejected: they were not delivered; their senders get SendRejected.

        Raises:
            ValueError: one is not the next; those before it are acknowledged.
        """
        cdef Envelope envelope
        self.check()
        try:
            for envelope in envelopes:
                if not self.taken or self.taken[0] is not envelope:
                    raise ValueError(f"{envelope!r} is not the next to be acknowledged: each is,"
                                     " once, in the order of reading, by a receiver made with"
                                     " auto_ack=False")
                self.taken.popleft()
                rc_receiver_done(&self.c, envelope.ticket, envelope.sender, rejected)
        finally:
            rc_receiver_wake_senders(&self.c)

    def reject_sends(self, bint rejecting) -> None:
        """Have `Sender.send` raise SendRejected from now on, or no more."""
        self.check()
        self.c.rejecting = rejecting
        rc_store_u32(&self.c.map.shared.rejecting, rejecting)
        self.wake_all_senders()

    @cython.final
    cdef void wake_all_senders(self) noexcept:
        rc_receiver_touch_all(&self.c)
        rc_receiver_wake_senders(&self.c)

    def limit_in_flight(self, uint64_t window) -> None:
        """Let each sender have at most so many messages that are not acknowledged; 0: any."""
        self.check()
        self.c.window = window
        rc_store_u64(&self.c.map.shared.window, window)
        self.wake_all_senders()

    def evict(self, uint32_t sender) -> None:
        """Take the lane away from a sender: what it has sent and was not taken is dropped, and its
        next call raises Evicted. `sender` is that of a message which is not acknowledged yet: until
        then the lane has no other owner."""
        self.check()
        if sender >= self.c.map.g.max_senders:
            raise IndexError(f"the uplink has {self.c.map.g.max_senders} lanes")
        rc_receiver_evict(&self.c, sender)
        rc_receiver_wake_senders(&self.c)

    def wait_into(self, int eventfd) -> bool:
        """Wait, without the GIL, until there is something to read or a sender wants a lane, then
        add 1 to the counter of `eventfd` (eventfd(2)): for event loops, which cannot poll a
        semaphore. False: this end is closed."""
        cdef rc_receiver snapshot = self.c
        cdef rc_turn turn
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
                    found = rc_receiver_sleep(&snapshot, limit)
                    rc_endpoint_wake_up(&self.endpoint.c)
                snapshot.head = self.c.head
                found = found or rc_receiver_ready(&snapshot)
            write(eventfd, &one, sizeof(one))
        return turn != RC_CLOSED_MEANWHILE

    def close(self) -> None:
        """End the uplink: senders get RingClosed. The segment stays until `unlink`."""
        if self._end():
            self.endpoint.finish()

    def _end(self) -> bool:
        """End it, keeping the lock; False if it has ended, or is a parent's."""
        if not self.opened:
            return False
        self.opened = False
        if rc_endpoint_phase(&self.endpoint.c) == RC_FORKED:
            return False
        leave(&self.endpoint.c, self.c.wake)
        rc_receiver_close(&self.c)
        return True

    def abandon(self) -> None:
        """Let go of the uplink without ending it, as a crash would: `resume` goes on with it."""
        if self.opened:
            self.opened = False
            self.abandoned = True
            if rc_endpoint_phase(&self.endpoint.c) == RC_OPEN:
                leave(&self.endpoint.c, self.c.wake)
        self.endpoint.finish()

    @property
    def closed(self) -> bool:
        """Is this end closed?"""
        return not self.opened or rc_endpoint_phase(&self.endpoint.c) != RC_OPEN

    @property
    def name(self) -> str:
        """The uplink's name."""
        return self.uplink.name

    @property
    def ticket(self) -> int:
        """Ticket of the next message."""
        return self.c.head

    @property
    def max_message(self) -> int:
        """Longest message, bytes."""
        return self.c.map.g.max_message

    @property
    def epoch(self) -> int:
        """1 for the uplink's creator, one more for each receiver that resumed it."""
        return self.c.epoch

    @property
    def voided(self) -> int:
        """Tickets that held no message: somebody wrote into the segment what no sender writes."""
        return self.c.voided

    @property
    def senders_evicted(self) -> int:
        """Senders that were evicted for that, or by `evict`."""
        return self.c.evicted

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""The receiver of an uplink as a Python object, and the envelopes that it hands out. The protocol is
in native/mpsc.h; payloads are copied out of the lanes, so nothing here outlives its call.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

from ringcast.shm._core cimport (
    CLOCK_REALTIME, RC_CLOSED_MEANWHILE, RC_FREE, RC_LOCK_LANE, RC_MY_TURN,
    RC_SLICE_NS, RC_TAKEN, RC_VOIDED, rc_clock_ns, rc_copy_out,
    rc_endpoint_turn, rc_endpoint_wake_up, rc_item, rc_load_u64, rc_lock_release, rc_lock_try,
    rc_now_ns, rc_receiver, rc_receiver_close, rc_receiver_done, rc_receiver_evict,
    rc_receiver_free, rc_receiver_hole, rc_receiver_map, rc_receiver_mend, rc_receiver_open,
    rc_receiver_ready, rc_receiver_reap, rc_receiver_republish, rc_receiver_sleep,
    rc_receiver_spoiled, rc_receiver_take, rc_receiver_touch_all, rc_receiver_void_hole,
    rc_receiver_wait, rc_receiver_wake_senders, rc_store_u32, rc_store_u64, rc_taking, rc_turn,
    rc_wait_begins, rc_wait_ended, rc_wait_strategy, rc_waits, write,
)
from ringcast.shm._endpoint cimport (
    Endpoint, OwnerEnd, Semaphores, WaitStrategy, check_making, check_open, deadline_of,
)
from ringcast.shm._uplink cimport Uplink

import collections
import os

from ._endpoint import KINDS
from .errors import RingClosed, RingCorrupt


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


cdef class Receiver(OwnerEnd):
    """The native half of `shm.mpsc.Receiver`, which see."""

    cdef rc_receiver c
    cdef Uplink uplink
    cdef Semaphores semaphores
    cdef WaitStrategy wait
    cdef rc_waits waits  # used by the one thread whose turn it is
    cdef uint64_t *arrays
    cdef bint auto_ack
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
        self.semaphores = semaphores
        self.wait = wait
        self.auto_ack = auto_ack
        self.taken = collections.deque()
        rc_receiver_map(&self.c, uplink.c.segment.address, &uplink.c.map.g, semaphores.handles,
                        semaphores.handles[n], self.arrays, self.arrays + n)
        self.own(endpoint, semaphores.handles[n])
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
                    strategy = rc_wait_begins(&self.waits, self.wait.c, snapshot.head)
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
            self._release()

    def _end(self) -> bool:
        """End it, keeping the lock; False if it has ended, or is a parent's."""
        if not self.begin_end():
            return False
        rc_receiver_close(&self.c)
        return True

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

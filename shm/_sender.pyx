# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: nonecheck=True, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=python
"""A sender of an uplink as a Python object. The protocol is in native/mpsc.h; payloads are copied
into the lane, so nothing here outlives its call.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t, uint8_t

from ringcast.shm._core cimport (
    RC_FORKED, RC_NO_RECEIVER, RC_NO_ROOM, RC_OPEN, RC_REJECTED, RC_SENDER_EVICTED, RC_SENT,
    is_finalizing, rc_attached_sender, rc_attached_sender_is_abandoned, rc_attached_sender_wait,
    rc_endpoint_phase, rc_load_u64, rc_now_ns, rc_sender, rc_sender_flushed, rc_sender_has_room,
    rc_sender_state, rc_sender_try, rc_sending,
)
from ringcast.shm._endpoint cimport (
    attach_sender, check_making, check_open, deadline_of, detach_sender, label_of, leave,
    leave_sender, owner_of,
)

from .errors import (
    Evicted, MessageTooLarge, RingClosed, RingCorrupt, RingFull, SendRejected, SendUnconfirmed,
)

cdef int64_t FOR_EVER = INT64_MAX
cdef enum:
    LOOKS_EACH = 256  # messages that are sent between two looks at the clock


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

    @cython.final
    cdef object full(self, uint64_t length):
        cdef uint64_t window = rc_load_u64(&self.a.sender.map.shared.window)
        cdef uint64_t done = rc_load_u64(&self.a.sender.lane.done_count)
        if window and self.a.sender.sent >= done + window:
            return RingFull(
                f"{self.a.sender.sent - done} messages of this sender are not delivered yet, and the"
                f" receiver of uplink {self.name!r} lets each sender have {window}: it is behind, or"
                " has no connection. Wait, or raise that limit (of a manager: max_in_flight)")
        return RingFull(
            f"no room for {length} bytes in lane {self.a.sender.index} of uplink {self.name!r} in"
            " time: its receiver is behind, or has no connection. Wait, or give the lanes more room"
            " (lane_bytes; of a manager: send_buffer_bytes)")

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
                    raise self.full(view.len)
        finally:
            PyBuffer_Release(&view)

    def flush(self, ticket=None, timeout=None) -> None:
        """Wait until a message was delivered: taken by the receiver, and with a manager, handed to
        the socket. What was rejected, or is not known, is reported once, to the first call of this
        sender after it, whichever messages it was.

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

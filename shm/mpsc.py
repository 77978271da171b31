"""Many senders, one receiver, one order: messages of any length from any number of processes.

Each message gets a *ticket*, its place in the order of all. A sender that dies leaves whole
messages or none and blocks nobody; a receiver that dies leaves what it had not taken to its
successor. The protocol is told in mpsc.h.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from . import _ring, _uplink, liveness, segment, signals
from .errors import RingClosed, RingNotFound, TooManySenders
from .signals import Blocking

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Envelope", "Receiver", "Sender", "SenderStatus", "UplinkStatus", "status"]

Envelope = _uplink.Envelope

_EMPTYING: Final = 1.0
"""Seconds to wait for the lanes of dead senders to be emptied."""
_LOOKS: Final = 3
"""At the lanes before all count as taken: a reaper may hold a lane's lock for a moment."""


class Receiver(segment.Owner, _uplink.Receiver):
    """The one receiver. Made with `create` or `resume`, not directly.

    As a context manager it closes and unlinks the uplink at the end.
    """

    __slots__ = ("_endpoint",)

    _part = segment.UPLINK
    _endpoint: _ring.Endpoint

    @classmethod
    def create(
        cls,
        name: str,
        *,
        max_senders: int = 64,
        lane_bytes: int = 1 << 16,
        mode: int = 0o600,
        wait: _ring.Wait | None = None,
        auto_ack: bool = True,
    ) -> Self:
        """Make a new uplink; what a closed one or a dead creator left of that name is replaced.

        Args:
            name: 1 to 20 of a-z, 0-9, _ and -; a ring of `shm.broadcast` may have the same.
            max_senders: how many can be attached at once, 1 to 1024.
            lane_bytes: what each can have under way, a power of two; the longest message is half.
            mode: 0o600, or 0o640 to let the group attach.
            wait: how to wait for messages; `Blocking()` by default.
            auto_ack: a message counts as delivered, for `Sender.flush`, when it is read; with
                False, when `ack` says so.

        Raises:
            RingExists: one of that name lives, or can be resumed.
            ValueError: a bad name or size.
            RingError: /dev/shm has no room.
        """
        opened = segment.create_uplink(name, max_senders, lane_bytes, mode)
        try:
            return cls._open_uplink(opened, wait, auto_ack=auto_ack)
        except BaseException:
            segment.remove_uplink(name)
            opened.endpoint.close()
            raise

    @classmethod
    def resume(
        cls,
        name: str,
        *,
        wait: _ring.Wait | None = None,
        auto_ack: bool = True,
    ) -> Self:
        """Take over an uplink whose receiver died: what was sent and not taken is still there, and
        senders stay attached. Those of messages that were taken and not acknowledged are told.

        Raises:
            RingNotFound: there is none.
            RingExists: its receiver is alive.
            RingClosed: its receiver ended it.
            LayoutMismatch, RingCorrupt: it can't be used.
        """
        opened = segment.open_uplink(name)
        try:
            segment.UPLINK.take_over(name, opened.endpoint, opened.uplink.counters)
            return cls._open_uplink(opened, wait, auto_ack=auto_ack)
        except BaseException:
            opened.endpoint.close()
            raise

    @classmethod
    def _open_uplink(
        cls,
        opened: segment.OpenedUplink,
        wait: _ring.Wait | None,
        *,
        auto_ack: bool,
    ) -> Self:
        uplink = opened.uplink
        names = signals.uplink_semaphores(uplink.name, uplink.instance, uplink.max_senders)
        semaphores = _ring.Semaphores(names)
        receiver = cls(uplink, opened.endpoint, semaphores, wait or Blocking(), auto_ack)
        receiver._endpoint = opened.endpoint
        receiver._open()
        return receiver

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.ticket}"
        return f"<Receiver of {self.name!r} {state}>"


class Sender(_uplink.Sender):
    """One of the senders. Made with `attach`, not directly.

    Threads may share it. A forked child can't use it; it attaches anew. As a context manager it is
    closed at the end; what was sent stays in the uplink.
    """

    __slots__ = ()

    @classmethod
    def attach(cls, name: str, *, label: str | None = None, owner: int | None = None) -> Self:
        """Attach to an uplink by name.

        Args:
            name: the uplink's.
            label: what to call this sender in `status`; the program's name by default.
            owner: user id the uplink must belong to; None for the caller's own or root.

        Raises:
            RingNotFound: there is no such uplink.
            LayoutMismatch, RingCorrupt: it can't be used.
            RingClosed: it has ended.
            TooManySenders: every lane is taken, or was left by a dead sender and is not yet empty.
        """
        label_bytes = liveness.label_bytes(label)
        opened = segment.open_uplink(name, owner=owner)
        try:
            if opened.uplink.counters()[0]:
                raise RingClosed(f"uplink {name!r} has ended")
            return cls._take_lane(opened, label_bytes)
        except BaseException:
            opened.endpoint.close()
            raise

    @classmethod
    def _take_lane(cls, opened: segment.OpenedUplink, label: bytes) -> Self:
        uplink = opened.uplink
        receiver = _ring.Semaphores([signals.receiver_semaphore(uplink.name, uplink.instance)])
        end = time.monotonic() + _EMPTYING
        tries = 0
        while True:
            sender, left_behind = cls._try_lanes(opened, label)
            tries += 1
            if sender is not None:
                return sender
            if uplink.counters()[0]:
                raise RingClosed(f"uplink {uplink.name!r} has ended")
            if time.monotonic() > end or (tries >= _LOOKS and not left_behind):
                break
            _uplink.wake_receiver(receiver)  # it frees the lanes of the dead
            time.sleep(0.01)
        raise TooManySenders(
            f"all {uplink.max_senders} lanes of uplink {uplink.name!r} are taken"
            + (", some by dead senders whose messages wait" if left_behind else "")
            + ": create it with a larger max_senders"
        )

    @classmethod
    def _try_lanes(cls, opened: segment.OpenedUplink, label: bytes) -> tuple[Self | None, bool]:
        """A sender, if a lane is free; and whether any has no living sender and is not free."""
        left_behind = False
        for lane in range(opened.uplink.max_senders):
            if not opened.endpoint.try_lock(_uplink.LOCK_LANE + lane):
                continue
            sender = cls._claim(opened, lane, label)
            if sender is not None:
                return sender, False
            opened.endpoint.unlock(_uplink.LOCK_LANE + lane)
            left_behind = True
        return None, left_behind

    @classmethod
    def _claim(cls, opened: segment.OpenedUplink, lane: int, label: bytes) -> Self | None:
        uplink = opened.uplink
        if uplink.lane_state(lane) != 0:
            return None
        if not segment.leads_here(uplink.name, opened.endpoint, segment.uplink_name):
            raise RingNotFound(
                f"uplink {uplink.name!r} was replaced while it was opened: try again"
            )
        semaphores = _ring.Semaphores(
            [
                signals.sender_semaphore(uplink.name, uplink.instance, lane),
                signals.receiver_semaphore(uplink.name, uplink.instance),
            ]
        )
        gone = segment.UPLINK.watch(uplink.name, opened.endpoint)
        sender = cls(uplink, opened.endpoint, lane, semaphores, gone)
        return sender if sender._join(label, liveness.process_started()) else None

    def send(self, data: Buffer, *, kind: int = 2, timeout: float | None = None) -> int:
        """Send one message; waits while this sender's lane is full.

        Args:
            data: bytes or any C-contiguous buffer, at most `max_message` bytes; copied.
            kind: a `shm.Kind`.
            timeout: seconds to wait for room; None waits as long as it takes.

        Returns:
            The message's ticket: its place in the order of all senders' messages.

        Raises:
            RingFull: no room in time.
            MessageTooLarge: longer than `max_message`.
            SendRejected: the receiver takes nothing now, or rejected messages sent before; nothing
                was sent.
            SendUnconfirmed: nobody knows of messages sent before; nothing was sent.
            Evicted: the receiver cut this sender off.
            RingClosed: the receiver has closed the uplink, or this end is closed.
        """
        ticket = self._send(data, kind, True, timeout)
        assert ticket is not None  # or it has raised
        return ticket

    def try_send(self, data: Buffer, *, kind: int = 2) -> int | None:
        """As `send`, but never waits: returns None when there is no room."""
        return self._send(data, kind, False, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"lane {self.lane}"
        return f"<Sender to {self.name!r} {state}>"


# ---- figures -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SenderStatus:
    """One lane in use.

    Attributes:
        lane: number of the lane.
        pid: process id.
        label: what the sender calls itself.
        state: "active", "dead" (its process ended, or it left, and its messages wait), "evicted".
        sent, pending: messages of this lane, and those of them that are not acknowledged.
        pending_bytes: what is not yet taken, with headers.
        rejected, unconfirmed: messages that were not delivered; of which nobody knows.
        joined_ns: when it attached, Unix time.
    """

    lane: int
    pid: int
    label: str
    state: str
    sent: int
    pending: int
    pending_bytes: int
    rejected: int
    unconfirmed: int
    joined_ns: int


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    """An uplink.

    Attributes:
        name: its name.
        state: "open"; "orphaned": the receiver died and can be resumed; "closed".
        epoch: 1 for the first receiver, one more for each that resumed.
        tickets: how many can be outstanding.
        lane_bytes, max_message: sizes, bytes.
        max_senders: lanes.
        ticket: next ticket to be taken.
        pending: messages sent and not taken.
        receiver_pid: the receiver's process, dead or alive.
        senders: the lanes in use.
    """

    name: str
    state: str
    epoch: int
    tickets: int
    lane_bytes: int
    max_message: int
    max_senders: int
    ticket: int
    pending: int
    receiver_pid: int
    senders: tuple[SenderStatus, ...]


def status(name: str, *, owner: int | None = None) -> UplinkStatus:
    """Look at an uplink without disturbing it.

    Raises: as `Sender.attach` does.
    """
    opened = segment.open_uplink(name, owner=owner, read_only=True)
    try:
        return _look(opened)
    finally:
        opened.endpoint.close()


def _look(opened: segment.OpenedUplink) -> UplinkStatus:
    uplink = opened.uplink
    closed, epoch, pid, head, _flushed, _tail = uplink.counters()
    alive = opened.endpoint.is_held(_uplink.LOCK_RECEIVER)
    senders = []
    pending = 0
    for lane in range(uplink.max_senders):
        state, sender_pid, joined_ns, label, sent, taken, done, rejected, unconfirmed, held = (
            uplink.lane_counters(lane)
        )
        if state == 0:
            continue
        living = opened.endpoint.is_held(_uplink.LOCK_LANE + lane)
        shown = "evicted" if state == 5 else "active" if living and state == 2 else "dead"
        pending += max(0, sent - taken)
        senders.append(
            SenderStatus(
                lane=lane,
                pid=sender_pid,
                label=label,
                state=shown,
                sent=sent,
                pending=max(0, sent - done),
                pending_bytes=held,
                rejected=rejected,
                unconfirmed=unconfirmed,
                joined_ns=joined_ns,
            )
        )
    return UplinkStatus(
        name=uplink.name,
        state="closed" if closed else "open" if alive else "orphaned",
        epoch=epoch,
        tickets=uplink.tickets,
        lane_bytes=uplink.lane_bytes,
        max_message=uplink.max_message,
        max_senders=uplink.max_senders,
        ticket=head,
        pending=pending,
        receiver_pid=pid,
        senders=tuple(senders),
    )

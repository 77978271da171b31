"""Many senders, one receiver, one order: messages of any length from any number of processes.

Each message gets a *ticket*, its place in the order of all. A sender that dies leaves whole
messages or none and blocks nobody; a receiver that dies leaves what it had not taken to its
successor. The protocol is in native/mpsc.h.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from . import _endpoint, _receiver, _sender, _uplink, blocks
from ._endpoint import MAKING
from .counters import LaneCounters
from .names import check_name, uplink_semaphores
from .ownership import UPLINK, Owner, create_uplink
from .waiting import Blocking, WaitStrategy

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Envelope", "Receiver", "Sender", "SenderStatus", "UplinkStatus", "status"]

Envelope = _receiver.Envelope


class Receiver(Owner, _receiver.Receiver):
    """The one receiver. Made with `create` or `resume`, not directly.

    As a context manager it closes and unlinks the uplink at the end.
    """

    __slots__ = ("_endpoint",)

    _part = UPLINK
    _endpoint: _endpoint.Endpoint

    @classmethod
    def create(
        cls,
        name: str,
        *,
        max_senders: int = 64,
        lane_bytes: int = 1 << 16,
        mode: int = 0o600,
        wait: WaitStrategy | None = None,
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
        opened = create_uplink(name, max_senders, lane_bytes, mode)
        try:
            return cls._open_uplink(opened, wait, auto_ack=auto_ack)
        except BaseException:
            blocks.remove_uplink(name)
            opened.endpoint.close()
            raise

    @classmethod
    def resume(
        cls,
        name: str,
        *,
        wait: WaitStrategy | None = None,
        auto_ack: bool = True,
    ) -> Self:
        """Take over an uplink whose receiver died: what was sent and not taken is still there, and
        senders stay attached. Senders of messages that were read and not acknowledged get
        SendUnconfirmed.

        Raises:
            RingNotFound: there is none.
            RingExists: its receiver is alive.
            RingClosed: its receiver ended it.
            LayoutMismatch, RingCorrupt: it can't be used.
        """
        opened = blocks.open_uplink(name, writable=True)
        try:
            UPLINK.take_over(name, opened.endpoint, opened.uplink.counters)
            return cls._open_uplink(opened, wait, auto_ack=auto_ack)
        except BaseException:
            opened.endpoint.close()
            raise

    @classmethod
    def _open_uplink(
        cls,
        opened: blocks.OpenedUplink,
        wait: WaitStrategy | None,
        *,
        auto_ack: bool,
    ) -> Self:
        uplink = opened.uplink
        names = uplink_semaphores(uplink.name, uplink.instance, uplink.max_senders)
        semaphores = _endpoint.Semaphores(names)
        strategy = wait or Blocking()
        receiver = cls.__new__(cls, MAKING, uplink, opened.endpoint, semaphores, strategy, auto_ack)
        receiver._endpoint = opened.endpoint
        receiver._open()
        return receiver

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.ticket}"
        return f"<Receiver of {self.name!r} {state}>"


class Sender(_sender.Sender):
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
        check_name(name)
        return cls.__new__(cls, MAKING, name, label, owner)

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
    opened = blocks.open_uplink(name, owner=owner)
    with contextlib.closing(opened.endpoint):
        return _look(opened)


def _look(opened: blocks.OpenedUplink) -> UplinkStatus:
    uplink = opened.uplink
    counters = uplink.counters()
    alive = opened.endpoint.is_held(_uplink.LOCK_RECEIVER)
    senders = []
    pending = 0
    for lane in range(uplink.max_senders):
        found = uplink.lane_counters(lane)
        if found.state == _uplink.FREE:
            continue
        pending += max(0, found.sent - found.taken)
        living = opened.endpoint.is_held(_uplink.LOCK_LANE + lane)
        senders.append(_sender_status(lane, found, living=living))
    return UplinkStatus(
        name=uplink.name,
        state="closed" if counters.closed else "open" if alive else "orphaned",
        epoch=counters.epoch,
        tickets=uplink.tickets,
        lane_bytes=uplink.lane_bytes,
        max_message=uplink.max_message,
        max_senders=uplink.max_senders,
        ticket=counters.head,
        pending=pending,
        receiver_pid=counters.receiver_pid,
        senders=tuple(senders),
    )


def _sender_status(lane: int, found: LaneCounters, *, living: bool) -> SenderStatus:
    if found.state == _uplink.EVICTED:
        state = "evicted"
    else:
        state = "active" if living and found.state == _uplink.ACTIVE else "dead"
    return SenderStatus(
        lane=lane,
        pid=found.pid,
        label=found.label,
        state=state,
        sent=found.sent,
        pending=max(0, found.sent - found.done),
        pending_bytes=found.pending_bytes,
        rejected=found.rejected,
        unconfirmed=found.unconfirmed,
        joined_ns=found.joined_ns,
    )

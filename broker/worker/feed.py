"""A worker's end: `attach` to a manager's ring by name."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Final, Literal, Self

from ringcast import shm
from ringcast.shm import broadcast, mpsc

from . import parts
from .state import ConnectionState, Phase

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Feed", "attach"]

_KINDS: Final[dict[str | shm.Kind, shm.Kind]] = {
    "text": shm.Kind.TEXT,
    "binary": shm.Kind.BINARY,
    shm.Kind.TEXT: shm.Kind.TEXT,
    shm.Kind.BINARY: shm.Kind.BINARY,
}


class Feed(broadcast.Reader):
    """What the server says, message by message; made with `attach`.

    It has everything that `shm.broadcast.Reader` has (iteration plain and ``async``, `read`,
    `read_available`, `batch`, `cursor`, `lag`, `lost`, `close`, ``with``), knows the connection's
    state, and sends to the server through the manager.
    """

    __slots__ = ("_attaching", "_label", "_owner", "_sender")

    _attaching: threading.Lock  # or sending in parts
    """Each feed has its own: a child forked while it is held must not wait for it in another."""
    _label: str | None
    _owner: int | None
    _sender: mpsc.Sender | None

    @classmethod
    def _attach(
        cls,
        name: str,
        policy: Literal["block", "lossy"],
        start: Literal["latest", "oldest"] | int,
        wait: shm.WaitStrategy | None,
        label: str | None,
        owner: int | None,
        skip: int,
    ) -> Self:
        feed = cls.attach(
            name, policy=policy, start=start, wait=wait, label=label, owner=owner, skip=skip
        )
        feed._attaching = threading.Lock()
        feed._label, feed._owner, feed._sender = label, owner, None
        return feed

    @property
    def state(self) -> ConnectionState:
        """The connection, as its manager last said; phase ORPHANED if there is no manager now.

        Raises:
            shm.RingClosed: this end is closed.
            shm.RingError: no manager writes this ring.
        """
        state = ConnectionState.decode(self.note)
        if state is None:
            raise shm.RingError(
                f"ring {self.name!r} is not a manager's: read it with shm.broadcast.Reader"
            )
        if state.phase is not Phase.STOPPED and not self.writer_alive:
            return dataclasses.replace(state, phase=Phase.ORPHANED)
        return state

    def send(
        self,
        payload: str | Buffer,
        *,
        kind: Literal["text", "binary"] | shm.Kind | None = None,
        timeout: float | None = None,
    ) -> int:
        """Send a message to the server, through the manager.

        Args:
            payload: a str (UTF-8), or bytes or any C-contiguous buffer; copied. At most a quarter
                of the ring's capacity; what is longer than half of a lane goes through it in parts.
            kind: "text" or "binary", or the `shm.Kind` of either; None sends a str as text and
                bytes as binary. Bytes sent as text have to be UTF-8.
            timeout: seconds to wait while too many messages of this worker are under way; None
                waits as long as it takes.

        Returns:
            The message's ticket: its place in the order of all workers' messages.

        Raises:
            shm.RingFull: no room in time.
            shm.MessageTooLarge: longer than may be.
            shm.SendRejected: there is no connection, and the manager is configured to refuse; or
                messages sent before were rejected. Nothing was sent.
            shm.SendUnconfirmed: a manager died with messages sent before; nobody knows of them.
                Nothing was sent.
            shm.Evicted: the manager cut this worker off, for text that was not UTF-8.
            shm.RingClosed: the manager has ended, or this end is closed.
            ValueError: `kind` is another, or text as "text" is not UTF-8.
        """
        number = _KINDS.get(kind) if kind is not None else _kind_of(payload)
        if number is None:
            raise ValueError(f'kind is "text" or "binary", not {kind!r}')
        data = payload.encode() if isinstance(payload, str) else payload
        if number == shm.Kind.TEXT and not isinstance(payload, str):
            str(memoryview(data), "utf-8")  # raises what the server would close the connection for
        sender = self._attached_sender()
        view = memoryview(data)
        if view.nbytes <= sender.max_message or not view.c_contiguous:  # which send() refuses
            return sender.send(data, kind=number, timeout=timeout)
        return self._send_parts(sender, view.cast("B"), number, timeout)

    def _send_parts(
        self, sender: mpsc.Sender, data: memoryview, kind: shm.Kind, timeout: float | None
    ) -> int:
        if len(data) > self.max_message:
            raise shm.MessageTooLarge(
                f"a message of {len(data)} bytes is longer than the {self.max_message} that go"
                " through here, a quarter of the ring's capacity"
            )
        end = None if timeout is None else time.monotonic() + timeout
        ticket = 0
        with self._attaching:  # parts of two messages are not to mix
            for part in parts.split(data, kind, sender.max_message):
                left = None if end is None else max(0.0, end - time.monotonic())
                ticket = sender.send(part, kind=parts.KIND, timeout=left)
        return ticket

    def flush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """Wait until the manager has handed a message to the socket.

        Args:
            ticket: of the message; None for the last one sent here.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not in time; it may still be sent.
            shm.SendRejected, shm.SendUnconfirmed, shm.Evicted, shm.RingClosed: as `send` does.
        """
        self._attached_sender().flush(ticket, timeout)

    def _attached_sender(self) -> mpsc.Sender:
        """Attached at the first use: a worker that only reads takes no lane."""
        if self.closed:
            raise shm.RingClosed("this feed is closed")
        with self._attaching:
            if self._sender is None:
                self._sender = mpsc.Sender.attach(self.name, label=self._label, owner=self._owner)
            sender = self._sender
        if self.closed:  # meanwhile, and `close` may have seen no sender
            sender.close()
            raise shm.RingClosed("this feed is closed")
        return sender

    def close(self) -> None:
        """Leave the ring and the uplink; what was sent is sent. Raises as the reader's does."""
        super().close()
        self._close_sender()

    def __exit__(self, *exc: object) -> None:
        self._close_sender()
        super().__exit__(*exc)

    def _close_sender(self) -> None:
        if self._sender is not None:
            self._sender.close()


def _kind_of(payload: str | Buffer) -> shm.Kind:
    return shm.Kind.TEXT if isinstance(payload, str) else shm.Kind.BINARY


def attach(
    name: str,
    *,
    policy: Literal["block", "lossy"] = "block",
    start: Literal["latest", "oldest"] | int = "latest",
    wait: shm.WaitStrategy | None = None,
    label: str | None = None,
    owner: int | None = None,
    events: bool = False,
) -> Feed:
    """Attach to a manager's ring by name.

    Args:
        name: the manager's `Config.name`.
        policy: "block" (lossless) or "lossy".
        start: "latest", "oldest" or a sequence.
        wait: how to wait for messages.
        label: what to call this worker in `ringcast inspect`.
        owner: user id of the manager, if it is another's.
        events: hand out the records of kind EVENT, too, each where it happened: JSON, see
            `ringcast.broker.worker.state`. Without it they are passed over.

    Raises: as `shm.broadcast.Reader.attach` does; RingNotFound while there is no manager.
    """
    skip = 0 if events else shm.Kind.EVENT
    return Feed._attach(name, policy, start, wait, label, owner, skip)

"""A worker's end: `attach` to a manager's ring by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Self

from ringcast import shm
from ringcast.shm import broadcast

from .sending import MessageKind, MessageSender
from .state import ConnectionState, Phase

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Feed", "attach"]


class Feed(broadcast.Reader):
    """The server's messages, one after the other; made with `attach`.

    It has everything that `shm.broadcast.Reader` has (iteration plain and ``async``, `read`,
    `read_available`, `batch`, `cursor`, `lag`, `lost`, `close`, ``with``), knows the connection's
    state, and sends to the server through the manager. Threads may share it.
    """

    __slots__ = ("_messages",)

    _messages: MessageSender

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        policy: Literal["block", "lossy"] = "block",
        start: Literal["latest", "oldest"] | int = "latest",
        wait: shm.WaitStrategy | None = None,
        label: str | None = None,
        owner: int | None = None,
        skip: int = shm.Kind.EVENT,
        topics: Iterable[str] | None = None,
        others: bool = False,
    ) -> Self:
        """As the function `attach`; `skip` as in `shm.broadcast.Reader.attach`."""
        feed = super().attach(
            name,
            policy=policy,
            start=start,
            wait=wait,
            label=label,
            owner=owner,
            skip=skip,
            topics=topics,
            others=others,
        )
        feed._messages = MessageSender(name, label=label, owner=owner, max_message=feed.max_message)
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

    # -- sending

    def send(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
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
            shm.RingFull: no room in time. Nothing was sent: of a message in parts, the manager
                throws away those it has.
            shm.MessageTooLarge: longer than may be.
            shm.SendRejected: there is no connection, and the manager is configured to refuse; or
                messages sent before were rejected. Nothing was sent.
            shm.SendUnconfirmed: a manager died with messages sent before; nobody knows of them.
                Nothing was sent.
            shm.Evicted: the manager evicted this worker's sender, for text that was not UTF-8.
            shm.RingClosed: the manager has ended, or this end is closed.
            ValueError: `kind` is another, or text as "text" is not UTF-8.
        """
        return self._messages.send(payload, kind, timeout)

    def try_send(self, payload: str | Buffer, *, kind: MessageKind | None = None) -> int | None:
        """As `send`, but waits for no room: the ticket, or None when there is none and nothing was
        sent. Only attaching to the uplink, with the first message, may take a moment.

        Raises: as `send` does, without RingFull. A message that would go in parts, and so need room
            that the manager makes only meanwhile, is MessageTooLarge.
        """
        return self._messages.try_send(payload, kind)

    async def asend(
        self,
        payload: str | Buffer,
        *,
        kind: MessageKind | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `send`, for asyncio: other tasks go on while it waits.

        It waits only when there is no room, until the manager has handed over what this worker sent
        before; tasks then send in the order in which they came. A buffer must not be changed before
        this returns.

        Cancelled while it waits, it has sent nothing; a ticket that it returned stands for a
        message that was sent. One exception: a message in parts (see `send`) whose last part was
        just being sent may be sent whole, or not at all. Never is a part of it sent to the server.

        Raises: as `send` does.
        """
        return await self._messages.asend(payload, kind, timeout)

    def flush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """Wait until the manager has handed a message to the socket.

        Args:
            ticket: of the message; None for the last one sent here.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not in time; it may still be sent.
            shm.SendRejected, shm.SendUnconfirmed, shm.Evicted, shm.RingClosed: as `send` does.
        """
        self._messages.flush(ticket, timeout)

    async def aflush(self, ticket: int | None = None, timeout: float | None = None) -> None:
        """As `flush`, for asyncio: other tasks go on while it waits. Cancelling it changes nothing:
        the message is under way, and what becomes of it is reported to a later call.

        Raises: as `flush` does.
        """
        await self._messages.aflush(ticket, timeout)

    # -- closing

    def close(self) -> None:
        """Leave the ring and the uplink; what was sent is sent, and calls that wait raise
        RingClosed. Raises as the reader's does."""
        super().close()
        self._messages.close()

    def __exit__(self, *exc: object) -> None:
        self._messages.close()
        super().__exit__(*exc)


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
    return Feed.attach(
        name,
        policy=policy,
        start=start,
        wait=wait,
        label=label,
        owner=owner,
        skip=0 if events else shm.Kind.EVENT,
    )

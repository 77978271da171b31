"""One writer, any number of readers: every message is written once and read where it lies.

A reader's policy is its own. ``block``: it gets every message, its messages stay valid while they
live, and while it lags a full ring the writer waits. ``lossy``: it never holds anybody up, its
messages are checked copies, and each `gap` is exactly what it missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal, Self

from . import _endpoint, _reader, _writer, blocks
from ._endpoint import MAKING
from .aio import MESSAGES_A_TURN, EventBridge
from .blocks import RingSizes
from .names import check_name, ring_semaphores
from .ownership import RING, Owner, create_ring
from .waiting import Blocking, WaitStrategy

__all__ = ["Batch", "Message", "Reader", "Reservation", "Writer"]

Message = _reader.Message
Batch = _reader.Batch
Reservation = _writer.Reservation


class Writer(Owner, _writer.Writer):
    """The one writer of a ring. Made with `create` or `resume`, not directly.

    Threads may share it. As a context manager it closes and unlinks the ring at the end.
    """

    __slots__ = ("_endpoint",)

    _part = RING
    _endpoint: _endpoint.Endpoint

    @classmethod
    def create(
        cls,
        name: str,
        *,
        slots: int = 65536,
        capacity: int = 64 << 20,
        max_readers: int = 64,
        max_topics: int = 4096,
        mode: int = 0o600,
        wait: WaitStrategy | None = None,
    ) -> Self:
        """Make a new ring; what a closed ring or a dead creator left of that name is replaced.

        Args:
            name: 1 to 20 of a-z, 0-9, _ and -.
            slots: messages it holds, a power of two.
            capacity: bytes of payload it holds, a power of two; the longest message is a quarter.
            max_readers: how many can be attached at once, 1 to 1024.
            max_topics: how many topics `topic` can name, 1 to 65536.
            mode: 0o600, or 0o640 to let the group attach.
            wait: how to wait for room; `Blocking()` by default.

        Raises:
            RingExists: one of that name lives, or can be resumed.
            ValueError: a bad name or size.
            RingError: /dev/shm has no room.
        """
        opened = create_ring(name, RingSizes(slots, capacity, max_readers, max_topics), mode)
        try:
            return cls._open_ring(opened, wait, resume=False)
        except BaseException:
            blocks.remove_ring(name)
            opened.endpoint.close()
            raise

    @classmethod
    def resume(cls, name: str, *, wait: WaitStrategy | None = None) -> Self:
        """Take over a ring whose writer died: sequences go on without a hole or a repeat, under a
        new epoch, and readers keep their attachment.

        Raises:
            RingNotFound: there is none.
            RingExists: its writer is alive.
            RingClosed: its writer ended it.
            LayoutMismatch, RingCorrupt: it can't be used.
        """
        opened = blocks.open_ring(name, access="write")
        try:
            RING.take_over(name, opened.endpoint, opened.segments.counters)
            return cls._open_ring(opened, wait, resume=True)
        except BaseException:
            opened.endpoint.close()
            raise

    @classmethod
    def _open_ring(
        cls, opened: blocks.OpenedRing, wait: WaitStrategy | None, *, resume: bool
    ) -> Self:
        ring = opened.segments
        names = ring_semaphores(ring.name, ring.instance, ring.max_readers)
        semaphores = _endpoint.Semaphores(names)
        writer = cls.__new__(cls, MAKING, ring, opened.endpoint, semaphores, wait or Blocking())
        writer._endpoint = opened.endpoint
        writer._open(resume)
        return writer

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.sequence}"
        return f"<Writer of {self.name!r} {state}>"


class Reader(_reader.Reader):
    """One reader of a ring. Made with `attach`, not directly.

    Iterating it, plainly or with ``async for``, waits for messages and ends with the ring. Threads
    may share it: each message goes to one of them. A forked child can't use it; it attaches anew.
    As a context manager it is closed at the end; what is still viewed stays valid until the last
    view is gone, and holds its place in the ring so long.

    A reader that was attached with `topics` chooses: it gets what it wants and nothing else, and
    sleeps while nothing of that comes. `subscribe` and `unsubscribe` change what it wants, at any
    time and from any thread.
    """

    __slots__ = ("_awaited", "_bridge")

    _awaited: int
    _bridge: EventBridge | None

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        policy: Literal["block", "lossy"] = "block",
        start: Literal["latest", "oldest"] | int = "latest",
        wait: WaitStrategy | None = None,
        label: str | None = None,
        owner: int | None = None,
        skip: int = 0,
        topics: Iterable[str] | None = None,
        others: bool = False,
    ) -> Self:
        """Attach to a ring by name.

        Args:
            name: the ring's.
            policy: "block": lossless, the writer waits for it; "lossy": may be overrun,
                and `Message.gap` counts what it missed.
            start: "latest": what is published from now on; "oldest": all that is still there; or a
                sequence: what went before the oldest still there counts as lost.
            wait: how to wait for messages; `Blocking()` by default.
            label: what to call this reader in `shm.status`; the program's name by default.
            owner: user id the ring must belong to; None for the caller's own or root.
            skip: a `shm.Kind` that this reader passes over, as if it were not there; 0 for none.
                A batch ends before such a message.
            topics: names and patterns of the topics that it wants, `*` standing for any run of
                characters; None: every message, an empty list: none. Records of kind EVENT do not
                depend on it.
            others: want messages that have no topic, too. Without `topics` they come anyway.

        Raises:
            RingNotFound: there is no such ring.
            LayoutMismatch, RingCorrupt: it can't be used.
            TooManyReaders: every slot is taken.
            ValueError: a bad argument, or a start that is not published yet.
        """
        if isinstance(topics, str):
            raise TypeError(f"topics is a list of names and patterns: [{topics!r}]")
        if policy not in ("block", "lossy"):
            raise ValueError(f'policy is "block" or "lossy", not {policy!r}')
        if start not in ("latest", "oldest") and (not isinstance(start, int) or start < 0):
            raise ValueError(f'start is "latest", "oldest" or a sequence, not {start!r}')
        check_name(name)
        strategy = wait or Blocking()
        reader = cls.__new__(
            cls,
            MAKING,
            name,
            policy == "lossy",
            start,
            strategy,
            label,
            owner,
            skip,
            topics if topics is None else list(topics),
            others,
            None,
            0,
            0,
        )
        reader._awaited = 0
        reader._bridge = None
        return reader

    def subscribe(self, *topics: str) -> None:
        """Want these topics, too: names, or patterns in which `*` stands for any run of characters.
        It holds for every message published after it returns, and for topics that appear later.

        A reader that was attached without `topics` gets every message anyway; what it subscribes to
        is shown to the ring's owner, who may ask a server for it.

        Raises:
            ValueError: no topic can have such a name, or the list would become too long: its names
                and patterns take 32,759 bytes at most. Nothing has changed then.
            RingClosed: this end is closed.
        """
        self._subscribe(topics)

    def unsubscribe(self, *topics: str) -> None:
        """Want these names and patterns no more, as they were subscribed to; others are ignored.
        Nothing that only they wanted is handed out after it returns, but in a batch already taken.

        Raises:
            RingClosed: this end is closed.
        """
        self._unsubscribe(topics)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        self._awaited += 1
        if self._awaited % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        while (message := self._take_nowait()) is None:
            self._before_await()
            if self._bridge is None:
                self._bridge = EventBridge(self)
            await self._bridge.wait()
        return message

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.cursor}"
        return f"<Reader of {self.name!r} slot {self.slot} {self.policy} {state}>"

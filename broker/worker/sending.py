"""How a worker's messages get to the manager: whole, or in parts if they are long; with threads
and with asyncio.

With asyncio nothing of the common case waits: a message is put into the lane by a call that never
blocks. Only when there is no room does a thread wait for it, and the message is then sent by the
event loop's own thread. So a wait that is cancelled has sent nothing.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

from ringcast import shm
from ringcast.shm import mpsc

from . import parts
from .deadlines import check_timeout, deadline
from .threads import CANCEL_LOOK, in_thread
from .turns import Turns

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MessageKind", "MessageSender", "check_length", "encoded"]

MessageKind = Literal["text", "binary"] | shm.Kind

_KINDS: Final[dict[str | shm.Kind, shm.Kind]] = {
    "text": shm.Kind.TEXT,
    "binary": shm.Kind.BINARY,
    shm.Kind.TEXT: shm.Kind.TEXT,
    shm.Kind.BINARY: shm.Kind.BINARY,
}
_SENDS_A_TURN: Final = 128
"""Messages that a task sends before other tasks get their turn."""
_RECENT: Final = 64
"""Tickets that are remembered. More threads than that do not send at the same moment."""
_NEVER: Final = threading.Event()
"""Is not set: for calls that are not cancelled."""


class MessageSender:
    """Sends one worker's messages. Attached at the first use: a worker that only reads takes no
    lane. `Feed` says what its methods do and raise.

    Args:
        name: the ring's.
        label, owner: as `attach` has them.
        max_message: bytes of the longest message that goes through the manager.
    """

    def __init__(
        self, name: str, *, label: str | None, owner: int | None, max_message: int
    ) -> None:
        self._name = name
        self._label = label
        self._owner = owner
        self._max_message = max_message
        # Each has its own locks: a child forked while one is held must not wait for it in another.
        self._attaching = threading.Lock()
        self._sending_parts = threading.Lock()  # parts of two messages are not to mix
        self._sender: mpsc.Sender | None = None
        self._piece_max = 0  # bytes of the longest message that goes in one piece
        self._closed = False
        self._pid = os.getpid()
        # Of what was sent here; not in their order, for threads overtake each other.
        self._recent: collections.deque[int] = collections.deque(maxlen=_RECENT)
        self._unheard: collections.deque[Exception] = collections.deque()
        self._asends = 0
        self._turns = Turns()  # of tasks that send

    # -- sending

    def send(self, payload: str | Buffer, kind: MessageKind | None, timeout: float | None) -> int:
        view, number = encoded(payload, kind)
        sender = self._attached()
        if view.nbytes > self._piece_max:
            return self._send_parts(sender, view, number, timeout, _NEVER)
        ticket = sender.send(view, kind=number, timeout=timeout)
        self._recent.append(ticket)
        return ticket

    def try_send(self, payload: str | Buffer, kind: MessageKind | None) -> int | None:
        view, number = encoded(payload, kind)
        sender = self._attached()
        if view.nbytes > self._piece_max:
            self._check_length(view)
            raise shm.MessageTooLarge(
                f"a message of {view.nbytes} bytes goes to the manager in parts, which means"
                f" waiting: above {self._piece_max} bytes use send or asend, or configure a larger"
                " send_buffer_bytes"
            )
        ticket = sender.try_send(view, kind=number)
        if ticket is not None:
            self._recent.append(ticket)
        return ticket

    async def asend(
        self, payload: str | Buffer, kind: MessageKind | None, timeout: float | None
    ) -> int:
        view, number = encoded(payload, kind)
        check_timeout(timeout)
        self._asends += 1
        if self._asends % _SENDS_A_TURN == 0:
            await asyncio.sleep(0)
        sender = await self._attached_async()
        self._check_length(view)
        try:
            async with asyncio.timeout(timeout) as limit:
                return await self._asend(sender, view, number, limit)
        except TimeoutError:
            raise shm.RingFull(
                f"no room for {view.nbytes} bytes in this worker's lane of uplink {self._name!r} in"
                " time: the manager is behind"
            ) from None

    async def _asend(
        self, sender: mpsc.Sender, view: memoryview, kind: shm.Kind, limit: asyncio.Timeout
    ) -> int:
        async with self._turns.lock():
            self._raise_unheard()
            if view.nbytes > self._piece_max:
                return await self._asend_parts(sender, view, kind, limit)
            while (ticket := sender.try_send(view, kind=kind)) is None:
                await self._delivered(sender, self._last_ticket())
        self._recent.append(ticket)
        return ticket

    async def _asend_parts(
        self, sender: mpsc.Sender, view: memoryview, kind: shm.Kind, limit: asyncio.Timeout
    ) -> int:
        until = limit.when()
        left = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
        limit.reschedule(None)  # the thread keeps to it, and knows whether the last part was sent
        data = memoryview(bytes(view))  # the caller may change its own once cancelled
        return await in_thread(
            lambda cancelled: self._send_parts(sender, data, kind, left, cancelled), self._keep
        )

    def _check_length(self, view: memoryview) -> None:
        if view.nbytes > self._piece_max:  # what fits into a lane goes in any case
            check_length(view, self._max_message)

    def _send_parts(
        self,
        sender: mpsc.Sender,
        view: memoryview,
        kind: shm.Kind,
        timeout: float | None,
        cancelled: threading.Event,
    ) -> int:
        """If it ends between two parts, the manager throws away those it has, as after a death."""
        self._check_length(view)
        until = deadline(timeout)
        ticket = 0
        with self._parts_turn(until, cancelled):
            for part in parts.split(view.cast("B"), kind, sender.max_message):
                ticket = _send_part(sender, part, until, cancelled)
        self._recent.append(ticket)
        return ticket

    @contextlib.contextmanager
    def _parts_turn(self, until: float, cancelled: threading.Event) -> Iterator[None]:
        while not self._sending_parts.acquire(timeout=_slice(until)):
            if cancelled.is_set():
                raise concurrent.futures.CancelledError
            if time.monotonic() >= until:
                raise shm.RingFull("another thread's long message was not sent in time")
        try:
            yield
        finally:
            self._sending_parts.release()

    # -- waiting until it was delivered

    def flush(self, ticket: int | None, timeout: float | None) -> None:
        self._attached().flush(ticket, timeout)

    async def aflush(self, ticket: int | None, timeout: float | None) -> None:
        check_timeout(timeout)
        sender = await self._attached_async()
        self._raise_unheard()
        if ticket is None:
            ticket = self._last_ticket()  # and not what others send meanwhile
        try:
            sender.flush(ticket, timeout=0)
        except TimeoutError:
            pass
        else:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._delivered(sender, ticket)
        except TimeoutError:
            raise TimeoutError(
                f"message {ticket} was not delivered in time; it may still be"
            ) from None

    async def _delivered(self, sender: mpsc.Sender, ticket: int | None) -> None:
        """Wait until this message was delivered, and so all of this worker's before it."""

        def wait(cancelled: threading.Event) -> None:
            delivered = False
            while not (delivered or cancelled.is_set()):
                with contextlib.suppress(TimeoutError):
                    sender.flush(ticket, timeout=CANCEL_LOOK)
                    delivered = True

        await in_thread(wait, self._keep)

    def _last_ticket(self) -> int | None:
        return max(self._recent.copy(), default=None)

    def _keep(self, error: BaseException) -> None:
        """What became of messages is reported once; a cancelled call was not there to hear it."""
        if isinstance(error, shm.SendRejected | shm.SendUnconfirmed):
            self._unheard.append(error)

    def _raise_unheard(self) -> None:
        if self._unheard:
            raise self._unheard.popleft()

    # -- attaching and closing

    def _attached(self) -> mpsc.Sender:
        if self._unheard:
            self._raise_unheard()
        return self._sender if self._sender is not None else self._attach()

    async def _attached_async(self) -> mpsc.Sender:
        """The first time in a thread: lanes of the dead may have to be emptied first."""
        if self._sender is not None:
            return self._sender
        return await in_thread(lambda _cancelled: self._attach(), self._keep)

    def _attach(self) -> mpsc.Sender:
        if self._closed or os.getpid() != self._pid:
            raise shm.RingClosed("this feed is closed; in a forked process attach anew")
        with self._attaching:
            if self._sender is None:
                sender = mpsc.Sender.attach(self._name, label=self._label, owner=self._owner)
                self._piece_max = sender.max_message
                self._sender = sender
            sender = self._sender
        if self._closed:  # meanwhile, and `close` may have seen no sender
            sender.close()
            raise shm.RingClosed("this feed is closed")
        return sender

    def close(self) -> None:
        """Give the lane back. What was sent is sent; calls that wait raise RingClosed."""
        self._closed = True
        if self._sender is not None:
            self._sender.close()


def encoded(payload: str | Buffer, kind: MessageKind | None) -> tuple[memoryview, shm.Kind]:
    """What is sent, and as what; text is checked. Raises as `MessageSender.send` does."""
    if kind is None:
        kind = shm.Kind.TEXT if isinstance(payload, str) else shm.Kind.BINARY
    number = _KINDS.get(kind)
    if number is None:
        raise ValueError(f'kind is "text" or "binary", not {kind!r}')
    view = memoryview(payload.encode() if isinstance(payload, str) else payload)
    if not view.c_contiguous:
        raise BufferError("a payload is a contiguous buffer: send a copy, bytes(payload)")
    if number is shm.Kind.TEXT and not isinstance(payload, str):
        str(view, "utf-8")  # raises what the server would close the connection for
    return view, number


def check_length(view: memoryview, most: int) -> None:
    """Raise MessageTooLarge if a payload is longer than the ring's longest message."""
    if view.nbytes > most:
        raise shm.MessageTooLarge(
            f"a message of {view.nbytes} bytes is longer than the {most} that go through here, a"
            " quarter of the ring's capacity"
        )


def _send_part(sender: mpsc.Sender, part: bytes, until: float, cancelled: threading.Event) -> int:
    while True:
        if cancelled.is_set():
            raise concurrent.futures.CancelledError
        try:
            return sender.send(part, kind=parts.KIND, timeout=_slice(until))
        except shm.RingFull:
            if time.monotonic() >= until:
                raise


def _slice(until: float) -> float:
    """Seconds of one wait among those up to `until`, so that it can be cancelled."""
    return min(CANCEL_LOOK, max(0.0, until - time.monotonic()))

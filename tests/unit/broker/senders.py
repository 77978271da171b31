"""What the tests of sending share: ways to send, what a manager may do, and tasks that wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from ringcast import Feed
from ringcast.shm.mpsc import Receiver
from tests.conftest import BETWEEN_LOOKS, DEADLINE, eventually

# ---- tasks ---------------------------------------------------------------------------------


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run it in an event loop, which is to end; and all threads that it started, too."""

    async def bounded() -> Any:
        async with asyncio.timeout(DEADLINE):
            return await main

    result = asyncio.run(bounded())
    eventually(lambda: not waiting_threads(), "the threads that waited for it end")
    return result


def waiting_threads() -> set[threading.Thread]:
    """Those that wait for tasks."""
    return {thread for thread in threading.enumerate() if thread.name == "ringcast-send"}


async def until(condition: Callable[[], object], what: str) -> None:
    """Let other tasks run until it is true."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(BETWEEN_LOOKS)


async def waiting(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has begun to wait for the manager."""
    before = waiting_threads()
    task = asyncio.create_task(call)
    await until(lambda: waiting_threads() - before or task.done(), "it waits")
    assert not task.done()
    return task


# ---- ways to send --------------------------------------------------------------------------


def send(feed: Feed, *args: Any, **options: Any) -> int:
    return feed.send(*args, timeout=0, **options)


def try_send(feed: Feed, *args: Any, **options: Any) -> int:
    ticket = feed.try_send(*args, **options)
    assert ticket is not None
    return ticket


def asend(feed: Feed, *args: Any, **options: Any) -> int:
    ticket = run(feed.asend(*args, timeout=0, **options))
    assert isinstance(ticket, int)
    return ticket


Send = Callable[..., int]
every_way: Final = pytest.mark.parametrize(
    "send_it", [send, try_send, asend], ids=lambda way: way.__name__
)


# ---- what a manager may do -----------------------------------------------------------------


def fill_the_lane(receiver: Receiver) -> None:
    receiver.limit_in_flight(1)


def refuse(receiver: Receiver) -> None:
    receiver.reject_sends(True)


def refuse_what_was_sent(receiver: Receiver) -> None:
    receiver.ack(receiver.read_available(), rejected=True)


def evict(receiver: Receiver) -> None:
    receiver.evict(receiver.read_available()[0].sender)


def end(receiver: Receiver) -> None:
    receiver.close()

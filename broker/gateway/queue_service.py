"""Message queues beside a ring: each is filled from a reader of its own, and one is drained into
the uplink. queues.py has what they hold; this file has when.

A reader of its own for each queue, since a full queue with the policy "block" holds the ring for
itself alone, and no longer than `hold`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ringcast import shm
from ringcast.shm.aio import EventBridge

from ..worker import wire
from ..worker.feed import NO_KIND, Feed
from ..worker.sending import MessageSender
from .queues import QueueOptions, QueueWriter, UplinkQueue

__all__ = ["QueuePlan", "QueueService"]

AT_ONCE: Final = 4096
"""Messages of a batch."""
LOOK_AGAIN: Final = 0.005
"""Seconds after which what had no room in the uplink is tried again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """Which queues a gateway has.

    Attributes:
        labels: one queue for each.
        options: how they are made.
        hold: seconds for which a full queue with the policy "block" may hold a full ring.
        read_only: nothing goes up, so there is no queue for it.
    """

    labels: Sequence[str]
    options: QueueOptions
    hold: float
    read_only: bool = False


class QueueService:
    """The queues of one ring, as long as it lasts.

    Args:
        name: of the ring.
        instance: of the ring.
        hello: what their readers are told of it.
        plan: which there are.
        owner: user id of the ring's manager, if it is another's.
    """

    def __init__(
        self, name: str, instance: int, hello: wire.Hello, plan: QueuePlan, owner: int | None
    ) -> None:
        self._name = name
        self._instance = instance
        self._hello = hello
        self._plan = plan
        self._owner = owner

    async def run(self) -> None:
        """Fill and drain until the ring ends.

        Raises:
            shm.RingExists: another gateway has one of the queues.
            shm.RingError: a queue can't be made, or the ring can't be read any more.
        """
        async with asyncio.TaskGroup() as group:
            filling = [group.create_task(self._fill(label)) for label in self._plan.labels]
            drain = None if self._plan.read_only else group.create_task(self._drain())
            await asyncio.gather(*filling)
            if drain is not None:
                drain.cancel()

    # -- down

    async def _fill(self, label: str) -> None:
        feed: Feed | None = None
        writer = QueueWriter.create(
            self._name,
            label,
            instance=self._instance,
            topic_name=lambda topic: feed.topic_name(topic) if feed is not None else None,
            options=self._plan.options,
        )
        why = "the gateway ends"
        try:
            start = writer.next_sequence
            feed = Feed.attach(
                self._name,
                start="latest" if start is None else start,
                label=label,
                owner=self._owner,
                skip=NO_KIND,
            )
            writer.say(wire.Record(wire.RecordType.HELLO, self._hello.encode()))
            await self._carry(feed, writer)
        except shm.RingClosed:
            why = "the manager has stopped"
        finally:
            writer.close(why)
            if feed is not None:
                feed.close()

    async def _carry(self, feed: Feed, writer: QueueWriter) -> None:
        """Put what comes into the ring into the queue."""
        bridge, note = EventBridge(feed), b""
        while True:
            if feed.note != note:
                note = feed.note
                writer.say(wire.Record(wire.RecordType.STATE, note))
            with feed.batch(limit=AT_ONCE, timeout=0) as batch:
                count, at = len(batch), writer.offer(batch)
                held_since = time.monotonic()
                while at < count:
                    if not await _room(writer, self._plan.hold - (time.monotonic() - held_since)):
                        last = int(batch.descriptors["seq1"][count - 1])
                        writer.lapse(last)
                        break
                    at = writer.offer(batch, at)
            if count:
                await asyncio.sleep(0)
            elif writer.waiting:
                await _room(writer, LOOK_AGAIN)
                writer.flush()
            else:
                await bridge.wait()

    # -- up

    async def _drain(self) -> None:
        """Send what comes up."""
        queue = UplinkQueue.create(
            self._name,
            instance=self._instance,
            max_message=self._hello.max_message,
            options=self._plan.options,
        )
        sender = MessageSender(
            self._name, label="queues", owner=self._owner, max_message=self._hello.max_message
        )

        def send(payload: bytes, kind: shm.Kind) -> bool:
            return (
                sender.try_send(payload, "text" if kind is shm.Kind.TEXT else "binary") is not None
            )

        try:
            while True:
                try:
                    queue.drain(send)
                except shm.RingError as error:
                    _log.warning("a message from a queue of %s was not sent: %s", self._name, error)
                if queue.waiting:
                    await asyncio.sleep(LOOK_AGAIN)
                else:
                    await _readable(queue.fileno())
        finally:
            queue.close()
            sender.close()


async def _once(add: Callable[..., None], remove: Callable[[int], bool], fd: int) -> None:
    """Return once a descriptor is ready; `add` and `remove` are the event loop's."""
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    await _once(loop.add_reader, loop.remove_reader, fd)


async def _room(writer: QueueWriter, seconds: float) -> bool:
    """Wait until a queue has room; False: not within these seconds."""
    loop = asyncio.get_running_loop()
    waiting = _once(loop.add_writer, loop.remove_writer, writer.fileno())
    try:
        await asyncio.wait_for(waiting, max(0.0, seconds))
    except TimeoutError:
        return False
    return True

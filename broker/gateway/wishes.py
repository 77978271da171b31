"""What the gateway's clients want of the server, all together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from ringcast import shm

from ..topics.states import TopicState
from ..worker.feed import Feed
from ..worker.subscribing import Verdicts

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Wishes"]

_UNANSWERED_MAX: Final = 256
"""Requests of one client that wait for the server at once."""
_PAUSE_FIRST: Final = 0.001
_PAUSE_MOST: Final = 0.02
"""Seconds between two looks for the server's answers; they double up to this."""


class _Pending(NamedTuple):
    """A request that waits for answers."""

    verdicts: Verdicts
    done: Callable[[dict[str, str]], None]


class Wishes:
    """Topics that clients want, each counted, and asked for once. They stand in the slot of a
    reader that reads nothing, and so holds nothing.

    Args:
        name: the ring's.
        owner: user id of the ring's manager, if it is another's.

    Raises as `attach` does.
    """

    def __init__(self, name: str, owner: int | None) -> None:
        self._feed = Feed.attach(name, policy="lossy", label="gateway", owner=owner, topics=[])
        self._counts: Counter[str] = Counter()
        self._pending: dict[Client, list[_Pending]] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def reader(self) -> tuple[int, int]:
        """Slot and generation of the reader: snapshots that the server sends to who asks come to
        it."""
        return self._feed.slot, self._feed.generation

    def want(self, topics: Iterable[str], *, snapshot: bool = False) -> None:
        """One more client wants these; with `snapshot`, and their present state, as far as the
        venue offers it. Raises as `Feed.subscribe` does."""
        topics = list(topics)
        new = [topic for topic in topics if snapshot or not self._counts[topic]]
        if new:
            self._feed.subscribe(*new, wait=False, snapshot=snapshot)
        self._counts.update(topics)

    def give_up(self, topics: Iterable[str]) -> None:
        """A client that wanted them does so no more."""
        topics = list(topics)
        self._counts.subtract(topics)
        old = [topic for topic in topics if self._counts[topic] <= 0]
        for topic in old:
            del self._counts[topic]
        if old:
            self._feed.unsubscribe(*old)

    def may_ask(self, client: Client) -> bool:
        """Do so few requests of a client wait for answers that it may have one more?"""
        return len(self._pending.get(client, ())) < _UNANSWERED_MAX

    def when_answered(
        self, client: Client, names: Iterable[str], done: Callable[[dict[str, str]], None]
    ) -> None:
        """Once the server has answered for all that was wanted just now, call `done` with what is
        refused, and why. It is not called if the ring ends before, or the client."""
        verdicts = Verdicts(self._feed, (name for name in names if "*" not in name))
        self._pending.setdefault(client, []).append(_Pending(verdicts, done))
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        pause = _PAUSE_FIRST
        while self._pending:
            self.look()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MOST)
        self._looking = None

    def look(self) -> None:
        """Look whether the server has answered."""
        found = [(client, each) for client, waiting in self._pending.items() for each in waiting]
        for client, pending in found:
            try:
                is_answered = pending.verdicts.look()
            except shm.RingError:  # it has ended, and so do its clients
                self._take_out(client, pending)
                continue
            if is_answered and self._take_out(client, pending):
                pending.done(pending.verdicts.reasons)

    def _take_out(self, client: Client, pending: _Pending) -> bool:
        """It waits no more. False: it had been taken out before."""
        waiting = self._pending.get(client, [])
        if pending not in waiting:
            return False
        waiting.remove(pending)
        if not waiting:
            del self._pending[client]
        return True

    def forget(self, client: Client) -> None:
        """A client has gone: it is not answered any more."""
        self._pending.pop(client, None)

    def is_had(self, name: str) -> bool:
        """Does the server send this topic, or does nobody ask it for any?"""
        if not self._feed.wishes_answer().expected:
            return True
        topic = self._feed.topic_id(name)
        return topic != 0 and self._feed.topic_state(topic)[0] == TopicState.SUBSCRIBED

    def close(self) -> None:
        """Give them all up."""
        self._pending.clear()
        if self._looking is not None:
            self._looking.cancel()
        self._feed.close()

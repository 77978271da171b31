"""What the gateway's clients want of the server, all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..worker.feed import Feed

__all__ = ["Wishes"]


class Wishes:
    """What clients want of the server, through a reader that reads nothing and so holds nothing."""

    def __init__(self, name: str, owner: int | None) -> None:
        self._feed = Feed.attach(name, policy="lossy", label="gateway", owner=owner, topics=[])
        self._counts: Counter[str] = Counter()

    def want(self, topics: Iterable[str]) -> None:
        """One more client wants these. Raises as `Feed.subscribe` does."""
        new = [topic for topic in topics if not self._counts[topic]]
        if new:
            self._feed.subscribe(*new, wait=False)
        self._counts.update(topics)

    def give_up(self, topics: Iterable[str]) -> None:
        """A client that wanted them has gone."""
        self._counts.subtract(topics)
        old = [topic for topic in topics if self._counts[topic] <= 0]
        if old:
            self._feed.unsubscribe(*old)

    def close(self) -> None:
        """Give them all up."""
        self._feed.close()

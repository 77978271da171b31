"""A reader of the ring, and the clients of the gateway that it stands for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal

from ringcast.shm.aio import EventBridge

from ..worker import wire
from ..worker.feed import NO_KIND, Feed
from . import _fanout

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Source"]

_PROGRESS_SHARE: Final = 16
"""See `Source.holds_for`."""


class Source:
    """A reader of the ring, and the clients that it stands for."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.fanout = _fanout.Fanout(feed)
        self.bridge = EventBridge(feed)
        self.clients: dict[_fanout.Outlet, Client] = {}
        self.full_since: float | None = None
        self._goal = 0  # the sequence up to which clients must come for that to be progress

    @classmethod
    def attach(
        cls, name: str, owner: int | None, start: Literal["latest", "oldest"] | int = "latest"
    ) -> Source:
        """Raises as `attach` does."""
        return cls(Feed.attach(name, start=start, label="gateway", owner=owner, skip=NO_KIND))

    def adopt(self, other: Source, outlet: _fanout.Outlet) -> None:
        """A client of another source is this one's from now on."""
        client = other.clients.pop(outlet)
        other.fanout.remove(outlet)
        self.fanout.adopt(outlet)
        self.clients[outlet] = client

    def holds_for(self) -> float:
        """For how many seconds clients have kept the ring full. The clock starts anew when they
        free a sixteenth of what the ring holds, as the manager's own for its readers does: who is
        slow is not stuck."""
        now, floor = time.monotonic(), self.fanout.floor
        if not self.fanout.blocks:
            self.full_since = None
            return 0.0
        if self.full_since is None or floor >= self._goal:
            self.full_since = now
            self._goal = floor + max(1, (self.fanout.end - floor) // _PROGRESS_SHARE)
        return now - self.full_since

    def hello(self) -> wire.Hello:
        """What clients are told of the ring."""
        return wire.Hello(
            self.feed.name,
            self.fanout.instance,
            self.fanout.slots,
            self.fanout.capacity,
            self.feed.max_message,
        )

    def close(self) -> None:
        """Leave the ring."""
        self.clients.clear()
        self.fanout.close()
        self.feed.close()

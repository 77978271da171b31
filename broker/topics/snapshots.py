"""Late joiners: who waits for a topic's snapshot, and when the server may be asked for it.

ask ──▶ waiting, until the topic is subscribed and `Snapshot.every` has passed since the last
        ──▶ "resubscribe": the topic's name, once for all who wait (`advance` returns it)
        ──▶ "request": a message for each who waits (`requests`)
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from .venue import Request, Venue

__all__ = ["Snapshots"]

Row = TypeVar("Row")
Entry = TypeVar("Entry")


class Snapshots:
    """The snapshots that workers wait for.

    Args:
        venue: says how a topic's snapshot comes.
    """

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._waiting: dict[str, dict[int, None]] = {}  # topic: slots, in order
        self._times: list[tuple[float, str]] = []  # heap of when to look at a topic
        self._timed: set[str] = set()  # the topics in it
        self._last: dict[str, float] = {}  # topic: when the server was last asked
        self._due: OrderedDict[int, dict[str, None]] = OrderedDict()  # slot: topics to request

    def ask(self, slot: int, name: str, now: float, *, subscribed: bool) -> None:
        """A worker wants the snapshot of a topic that it has asked for. A topic that is being
        subscribed brings its snapshot, if resubscribing would."""
        kind = self._venue.snapshot(name).kind
        if kind == "none" or (kind == "resubscribe" and not subscribed):
            return
        self._waiting.setdefault(name, {})[slot] = None
        if subscribed:
            self._schedule(name, now)

    def withdraw(self, slot: int, name: str) -> None:
        """The worker does not want it any more."""
        _discard(self._waiting, name, slot)
        _discard(self._due, slot, name)

    def subscribed(self, name: str, now: float) -> None:
        """The server has subscribed the topic, or has again."""
        if name not in self._waiting:
            return
        if self._venue.snapshot(name).kind == "resubscribe":
            del self._waiting[name]
        else:
            self._schedule(name, now)

    def forget(self, name: str) -> None:
        """Nobody wants the topic, and the server does not have it."""
        self._waiting.pop(name, None)
        self._last.pop(name, None)

    def disconnected(self) -> None:
        """Those who wait for a requested snapshot still do on the next connection; what is
        subscribed there brings the others."""
        for slot, names in self._due.items():
            for name in names:
                self._waiting.setdefault(name, {})[slot] = None
        self._due.clear()
        self._times.clear()
        self._timed.clear()
        for name in list(self._waiting):
            if self._venue.snapshot(name).kind == "resubscribe":
                del self._waiting[name]

    def _schedule(self, name: str, now: float) -> None:
        if name not in self._timed:
            self._timed.add(name)
            every = self._venue.snapshot(name).every
            heapq.heappush(self._times, (max(now, self._last.get(name, -math.inf) + every), name))

    @property
    def deadline(self) -> float | None:
        """When `advance` has something to do."""
        return self._times[0][0] if self._times else None

    def advance(self, now: float, is_subscribed: Callable[[str], bool]) -> list[str]:
        """The topics that are to be subscribed again, now."""
        again = []
        while self._times and self._times[0][0] <= now:
            name = heapq.heappop(self._times)[1]
            self._timed.remove(name)
            if name not in self._waiting or not is_subscribed(name):
                continue  # `subscribed` comes back to it
            self._last[name] = now
            slots = self._waiting.pop(name)
            if self._venue.snapshot(name).kind == "resubscribe":
                again.append(name)
            else:
                for slot in slots:
                    self._due.setdefault(slot, {})[name] = None
        return again

    @property
    def has_requests(self) -> bool:
        """Does `requests` have something?"""
        return bool(self._due)

    def requests(self, ids: Iterator[int]) -> list[tuple[int, Request]]:
        """The messages that ask for what one worker waits for, and its slot."""
        if not self._due:
            return []
        slot, names = self._due.popitem(last=False)
        return [(slot, request) for request in self._venue.snapshot_request(list(names), ids)]


def _discard(table: dict[Row, dict[Entry, None]], row: Row, entry: Entry) -> None:
    entries = table.get(row)
    if entries is not None:
        entries.pop(entry, None)
        if not entries:
            del table[row]

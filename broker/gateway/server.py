"""The gateway: readers of the ring, and any number of WebSocket clients.

A turn: take what has come into the ring, send to each client what its socket takes, move the ring's
cursor up to what clients still need. Nothing waits for a client. What a client has not taken is
held for it in the ring, and nowhere else: for a lossy one as long as that costs nobody anything, for
one that blocks as long as `hold` allows. Who has more than that behind is passed over: a plain
client is closed, one that gets records is told how many it missed.

One reader is at the newest message, and stands for all clients that keep up. A client that begins
at an earlier message gets a reader of its own, until it has come to where that one is.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from websockets.frames import CloseCode
from websockets.http11 import Request

from ringcast import shm
from ringcast.shm.aio import EventBridge

from ..topics.templates import glob_matches
from ..worker.feed import NO_KIND, Feed
from ..worker.state import Phase
from . import _fanout
from .client import Client, Refused
from .options import ClientOptions

__all__ = ["Gateway", "GatewayOptions", "OnLoss"]

ATTACH_EVERY: Final = 0.25
"""Seconds between two looks for a ring that is not there."""
LOOK_AGAIN: Final = 0.005
"""Seconds after which the gateway looks again while it holds a full ring for clients that block, and
while there is no room for what clients send."""
ACCEPTS: Final = 64
"""Clients accepted at a time."""

_log = logging.getLogger(__name__)

Admit = Callable[[Client, Request], ClientOptions]
"""Lets a handshake in and says what the client wants, or raises `Refused`."""


class OnLoss(enum.StrEnum):
    """What becomes of plain clients when the connection to the server is lost, or messages are."""

    CLOSE = "close"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How a gateway serves.

    Attributes:
        on_loss: whether plain clients are closed when the connection to the server is lost.
        hold: seconds for which clients that block may hold a full ring.
        read_only: clients may send nothing.
        clients: at most so many at a time.
        message_bytes: the longest message that a client may send.
        ping_interval: seconds between two pings of a client.
        open_timeout, close_timeout: seconds for a client's handshake, and for its end.
        owner: user id of the ring's manager, if it is another's.
    """

    on_loss: OnLoss = OnLoss.CLOSE
    hold: float = 0.25
    read_only: bool = False
    clients: int = 1024
    message_bytes: int = 1 << 20
    ping_interval: float = 20.0
    open_timeout: float = 10.0
    close_timeout: float = 5.0
    owner: int | None = None


class _Source:
    """A reader of the ring, and the clients that it stands for."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.fanout = _fanout.Fanout(feed)
        self.bridge = EventBridge(feed)
        self.clients: dict[_fanout.Outlet, Client] = {}
        self.full_since: float | None = None

    @classmethod
    def attach(cls, name: str, owner: int | None, start: str | int = "latest") -> _Source:
        """Raises as `attach` does."""
        return cls(Feed.attach(name, start=start, label="gateway", owner=owner, skip=NO_KIND))  # type: ignore[arg-type]

    def adopt(self, other: _Source, outlet: _fanout.Outlet) -> None:
        """A client of another source is this one's from now on."""
        client = other.clients.pop(outlet)
        other.fanout.remove(outlet)
        self.fanout.adopt(outlet)
        self.clients[outlet] = client

    def close(self) -> None:
        """Leave the ring."""
        self.clients.clear()
        self.fanout.close()
        self.feed.close()


class _Wishes:
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


class Gateway:
    """Serves a ring's messages to WebSocket clients.

    Args:
        name: the ring's.
        listeners: listening sockets; closed by `run`.
        admit: see `Admit`.
        options: how it serves.
    """

    def __init__(
        self,
        name: str,
        listeners: Sequence[socket.socket],
        admit: Admit,
        options: GatewayOptions,
    ) -> None:
        self._name = name
        self._listeners = listeners
        self._admit = admit
        self._options = options
        self._main: _Source | None = None
        self._late: dict[_Source, asyncio.Task[None]] = {}
        self._wishes: _Wishes | None = None
        self._clients: set[Client] = set()
        self._ends = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`. A ring that has ended, or is not there yet, is waited for."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            listener.setblocking(False)
            loop.add_reader(listener.fileno(), self._accept, listener)
        tasks = {asyncio.create_task(work()) for work in (self._serve, self._ping, self._ends.wait)}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for listener in self._listeners:
                loop.remove_reader(listener.fileno())
            await self._close_clients("the gateway ends")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for listener in self._listeners:
                listener.close()

    def stop(self) -> None:
        """Let `run` return: clients are closed in order."""
        self._ends.set()

    # -- the ring

    async def _serve(self) -> None:
        while True:
            try:
                source = _Source.attach(self._name, self._options.owner)
            except (shm.RingNotFound, shm.RingClosed, shm.TooManyReaders) as error:
                _log.debug("%s", error)
                await asyncio.sleep(ATTACH_EVERY)
                continue
            _log.info("reads ring %s from %d on", self._name, source.fanout.end)
            self._main = source
            try:
                await self._read(source)
            finally:
                self._main = None
                await self._leave(source)

    async def _leave(self, source: _Source) -> None:
        """The ring has ended, or was taken away."""
        for task in self._late.values():
            task.cancel()
        await asyncio.gather(*self._late.values(), return_exceptions=True)
        for client in list(self._clients):
            client.drop("the ring is gone")
        if self._wishes is not None:
            self._wishes.close()
            self._wishes = None
        source.close()

    async def _read(self, source: _Source) -> None:
        """Serve the clients of a source until the ring ends, or it was taken away."""
        try:
            while source is self._main or source.clients:
                came = source.fanout.look()
                self._look_at_special(source)
                self._send(source)
                if source is not self._main:
                    self._catch_up(source)
                if came:
                    await asyncio.sleep(0)  # sockets have their turn
                elif source.fanout.blocks or self._retry():
                    await asyncio.sleep(LOOK_AGAIN)
                else:
                    await source.bridge.wait()
        except shm.Evicted:
            _log.warning("was evicted from ring %s", self._name)
            for client in list(source.clients.values()):
                client.drop("the gateway was evicted from the ring")
        except shm.RingClosed:
            _log.info("ring %s has ended", self._name)
            await self._close_clients("the manager has stopped")

    def _catch_up(self, source: _Source) -> None:
        """Hand over those that have come to where the main source is."""
        main = self._main
        if main is None:
            return
        for outlet in list(source.clients):
            if main.fanout.floor <= outlet.next <= main.fanout.end:
                main.adopt(source, outlet)

    async def _read_late(self, source: _Source) -> None:
        try:
            await self._read(source)
        finally:
            for client in list(source.clients.values()):
                client.drop("the ring is gone")
            self._late.pop(source, None)
            source.close()

    # -- what is not for everybody

    def _look_at_special(self, source: _Source) -> None:
        missed, before = source.fanout.take_gap()
        if missed:
            self._lost(source, before, f"{missed} messages were missed")
        for sequence in source.fanout.take_special():
            kind, _topic, payload = source.fanout.message(sequence)
            if kind == shm.Kind.EVENT:
                event = json.loads(payload)
                if event.get("event") in ("disconnected", "restarted"):
                    self._lost(source, sequence, "the connection to the server was lost")

    def _lost(self, source: _Source, sequence: int, why: str) -> None:
        """Plain clients end before this message, as their own connections would have."""
        if self._options.on_loss is OnLoss.KEEP:
            return
        for outlet, client in source.clients.items():
            if not client.records and outlet.next <= sequence:
                outlet.stop(sequence)
                client.ends_with(CloseCode.SERVICE_RESTART, why)

    # -- sending

    def _send(self, source: _Source) -> None:
        """Send to all clients of a source what there is."""
        again = False
        for outlet, what in source.fanout.pump():
            client = source.clients.get(outlet)
            if client is None:  # it has gone meanwhile
                continue
            if what == _fanout.MORE:
                again = True
            elif what == _fanout.BLOCKED:
                self._await_room(client, outlet)
            elif what == _fanout.TOPIC:
                self._choose(source, client, outlet)
                again = True
            elif what == _fanout.FAILED:
                client.drop(os.strerror(outlet.error))
            else:
                client.stopped()
        self._let_go(source)
        if again:
            asyncio.get_running_loop().call_soon(self._send_again, source)

    def _send_again(self, source: _Source) -> None:
        if source is self._main or source in self._late:
            self._send(source)

    def _await_room(self, client: Client, outlet: _fanout.Outlet) -> None:
        loop = asyncio.get_running_loop()

        def writable() -> None:
            loop.remove_writer(outlet.fd)
            outlet.resume()
            self.send(client)

        loop.add_writer(outlet.fd, writable)

    def _let_go(self, source: _Source) -> None:
        fanout, now = source.fanout, time.monotonic()
        if not fanout.blocks:
            source.full_since = None
        elif source.full_since is None:
            source.full_since = now
        full_since = source.full_since
        held_long = full_since is not None and now - full_since >= self._options.hold
        keep = fanout.slots // (2 if full_since is None else 4)
        for outlet in fanout.let_go(keep=keep, keep_blocking=not held_long):
            source.clients[outlet].lapped()

    def _choose(self, source: _Source, client: Client, outlet: _fanout.Outlet) -> None:
        """There are topics of which the client does not know yet."""
        rows = source.feed.topics
        options = client.options
        assert options is not None
        if options.topics is None:
            outlet.knows(len(rows))
        else:
            wanted = [row.id for row in rows if _matches(options.topics, row.name)]
            outlet.choose([0, *wanted] if options.others else wanted, len(rows))
        client.name_topics(rows)

    # -- clients: what `client.Host` asks for

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("can't accept a client: %s", error)
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients.add(
                Client(
                    self,
                    sock,
                    message_bytes=self._options.message_bytes,
                    open_timeout=self._options.open_timeout,
                    close_timeout=self._options.close_timeout,
                )
            )

    def admit(self, client: Client, request: Request) -> ClientOptions:
        """See `client.Host`."""
        if self._main is None:
            raise Refused(503, f"ring {self._name} is not there; try again", [("Retry-After", "1")])
        if len(self._clients) > self._options.clients:
            raise Refused(503, f"{self._options.clients} clients are connected, which is the limit")
        options = self._admit(client, request)
        if options.topics:
            self._want(options.topics)
        return options

    def _want(self, topics: Sequence[str]) -> None:
        try:
            if self._wishes is None:
                self._wishes = _Wishes(self._name, self._options.owner)
            self._wishes.want(topics)
        except (shm.RingError, ValueError) as error:
            raise Refused(503 if isinstance(error, shm.RingError) else 400, str(error)) from error

    def open(self, client: Client) -> None:
        """See `client.Host`."""
        options, source = client.options, self._main
        assert options is not None
        if source is None:
            client.drop("the ring is gone")
            return
        start = options.start
        if start == "latest":
            begin = source.fanout.end
        elif isinstance(start, int) and start >= source.fanout.floor:
            begin = min(start, source.fanout.end)
        else:
            try:
                source = _Source.attach(self._name, self._options.owner, start)
            except (shm.RingError, ValueError) as error:
                client.close(CloseCode.TRY_AGAIN_LATER, str(error))
                return
            begin = source.fanout.end
            self._late[source] = asyncio.create_task(self._read_late(source))
        outlet = source.fanout.add(
            client.fd,
            records=client.records,
            lossy=options.policy == "lossy",
            chooses=options.topics is not None,
            start=begin,
        )
        source.clients[outlet] = client
        client.outlet = outlet

    def received(self, client: Client, payload: bytes, *, is_text: bool) -> bool:
        """See `client.Host`."""
        if self._options.read_only:
            client.close(CloseCode.POLICY_VIOLATION, "this gateway is read-only")
            return True
        if self._main is None:
            return True
        try:
            ticket = self._main.feed.try_send(payload, kind="text" if is_text else "binary")
        except shm.MessageTooLarge as error:
            client.close(CloseCode.MESSAGE_TOO_BIG, str(error))
        except shm.SendRejected as error:
            client.close(CloseCode.SERVICE_RESTART, str(error))
        except shm.RingError as error:
            client.close(CloseCode.TRY_AGAIN_LATER, str(error))
        else:
            return ticket is not None
        return True

    def _retry(self) -> bool:
        """Try once more to send what clients have sent. Returns whether some still waits."""
        waiting = [client for client in self._clients if client.waits]
        for client in waiting:
            client.retry()
        return any(client.waits for client in waiting)

    def send(self, client: Client) -> None:
        """See `client.Host`."""
        for source in (self._main, *self._late):
            if source is not None and client.outlet in source.clients:
                self._send(source)

    def gone(self, client: Client) -> None:
        """See `client.Host`."""
        self._clients.discard(client)
        if self._wishes is not None and client.options is not None and client.options.topics:
            self._wishes.give_up(client.options.topics)
        for source in (self._main, *self._late):
            if source is not None and client.outlet in source.clients:
                assert client.outlet is not None
                del source.clients[client.outlet]
                source.fanout.remove(client.outlet)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._options.ping_interval)
            for client in list(self._clients):
                client.ping(self._options.ping_interval)

    async def _close_clients(self, why: str) -> None:
        """Close all in order, and wait until they are gone."""
        for client in list(self._clients):
            client.close(CloseCode.GOING_AWAY, why)
        end = time.monotonic() + self._options.close_timeout
        while self._clients and time.monotonic() < end:
            await asyncio.sleep(LOOK_AGAIN)
        for client in list(self._clients):
            client.drop()

    @property
    def phase(self) -> Phase | None:
        """The connection's phase as the manager says; None without a ring."""
        return None if self._main is None else self._main.feed.state.phase


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(glob_matches(pattern, name) for pattern in patterns)

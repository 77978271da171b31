"""The gateway: readers of the ring, and any number of WebSocket clients.

A turn: take what has come into the ring, send to each client what its socket takes, move the ring's
cursor up to what clients still need. Nothing waits for a client. What a client has not taken is
held for it in the ring, and nowhere else: for a lossy one as long as that costs nobody anything,
for one that blocks as long as `hold` allows. Who has more than that behind is passed over: a plain
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
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from websockets.frames import CloseCode
from websockets.http11 import Request

from ringcast import shm

from ..topics.templates import glob_matches
from ..worker import wire
from ..worker.feed import Feed
from . import _fanout
from .access import AccessRules, Transport, decide
from .addresses import Listener
from .client import Client, Refused, Upward
from .members import Members
from .options import ClientOptions, OptionsError
from .queue_service import QueuePlan, QueueService
from .roster import keep_roster
from .source import Source
from .tls import relay
from .upstream import Upstream

__all__ = ["Gateway", "GatewayOptions", "OnLoss"]

ATTACH_EVERY: Final = 0.25
"""Seconds between two looks for a ring that is not there."""
LOOK_AGAIN: Final = 0.005
"""Seconds after which the gateway looks again while it holds a full ring for clients that block,
and while there is no room for what clients send."""
BURST: Final = 64
"""Messages: if so many come at a time, turns are `TURN` apart."""
TURN: Final = 0.001
"""Seconds. Between two turns the ring's writer has nobody to wake, which would cost it a system
call, and each call to a client's socket carries more."""
STATE_EVERY: Final = 0.25
"""Seconds between two looks whether the connection's state has changed."""
ACCEPT_AGAIN: Final = 0.25
"""Seconds without accepting clients after one could not be accepted."""
SEND_BUFFER: Final = 1 << 20
"""Bytes that a Unix socket may hold; the kernel allows less, as net.core.wmem_max says. The more it
holds, the less often a client and the gateway wake each other: to many clients, a flood goes up to
twice as fast as with the kernel's default."""
ACCEPTS: Final = 64
"""Clients accepted at a time."""

_log = logging.getLogger(__name__)


class OnLoss(enum.StrEnum):
    """What becomes of plain clients when the connection to the server is lost, or messages are."""

    CLOSE = "close"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How a gateway serves.

    Attributes:
        on_loss: whether plain clients are closed when the connection to the server is lost.
        forward_login: logins of clients go up though the manager has logged in.
        hold: seconds for which clients that block may hold a full ring.
        ping_interval: seconds between two pings of a client.
        close_timeout: seconds for a client's end.
        owner: user id of the ring's manager, if it is another's.
    """

    on_loss: OnLoss = OnLoss.CLOSE
    forward_login: bool = False
    hold: float = 0.25
    ping_interval: float = 20.0
    close_timeout: float = 5.0
    owner: int | None = None


class Gateway:
    """Serves a ring's messages to WebSocket clients.

    Args:
        name: the ring's.
        listeners: where it listens; closed by `run`.
        rules: who may come in.
        options: how it serves.
        tls: for clients that come by TCP; None: they are not encrypted.
        queues: message queues that it has besides.
    """

    def __init__(
        self,
        name: str,
        listeners: Sequence[Listener],
        rules: AccessRules,
        options: GatewayOptions,
        *,
        tls: ssl.SSLContext | None = None,
        queues: QueuePlan | None = None,
    ) -> None:
        self._name = name
        self._listeners = listeners
        self._rules = rules
        self._tls = tls
        self._queues = queues
        self._options = options
        self._main: Source | None = None
        self._late: dict[Source, asyncio.Task[None]] = {}
        self._upstream: Upstream | None = None  # while there is a main source
        self._members = Members(name, options.owner)
        self._told = ""  # why the ring can't be read, as the log says
        self._clients: set[Client] = set()
        self._sending: set[Source] = set()
        self._waiting: set[Client] = set()  # for room for what they have sent
        self._relays: set[asyncio.Task[None]] = set()
        self._ends = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`. A ring that has ended, or is not there yet, is waited for."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            self._listen(listener)
        work = (self._serve, self._ping, self._tell_state, self._ends.wait)
        tasks = {asyncio.create_task(each()) for each in work}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for listener in self._listeners:
                loop.remove_reader(listener.sock.fileno())
                listener.close()
            await self._close_clients("the gateway ends")
            for task in (*tasks, *self._relays):
                task.cancel()
            await asyncio.gather(*tasks, *self._relays, return_exceptions=True)

    def stop(self) -> None:
        """Let `run` return: clients are closed in order."""
        self._ends.set()

    # -- the ring

    async def _serve(self) -> None:
        ended: int | None = None
        while True:
            source = self._attach(ended)
            if source is None:
                await asyncio.sleep(ATTACH_EVERY)
                continue
            ended = source.fanout.instance
            _log.info("reads ring %s from %d on", self._name, source.fanout.end)
            self._check_hold(source.feed)
            self._main = source
            self._upstream = Upstream(
                source.feed,
                owner=self._options.owner,
                read_only=self._rules.read_only,
                forward_login=self._options.forward_login,
                chosen=self._topics_chosen,
            )
            queues = self._start_queues(source)
            roster = asyncio.create_task(keep_roster(self._name, source, self._clients))
            try:
                await self._read(source)
            finally:
                self._main = None
                roster.cancel()
                await asyncio.wait([roster])
                await self._end_queues(queues)
                await self._leave(source)

    def _attach(self, ended: int | None) -> Source | None:
        """The ring, if it is there and another one than that which has ended."""
        try:
            source = Source.attach(self._name, self._options.owner)
        except shm.RingError as error:  # one that is just being removed may look damaged
            if str(error) != self._told and not isinstance(error, shm.RingNotFound):
                _log.warning("can't read ring %s: %s", self._name, error)
            self._told = str(error)
            return None
        self._told = ""
        if source.fanout.instance == ended and source.fanout.has_ended:
            source.close()
            return None
        return source

    def _check_hold(self, feed: Feed) -> None:
        """Say so if the manager demotes this gateway before it passes over clients that block."""
        with contextlib.suppress(shm.RingError):  # it is no manager's ring
            demote_after = feed.state.demote_after
            if demote_after is not None and self._options.hold >= demote_after:
                _log.warning(
                    "--hold %g is not below the manager's demote_after, %g: a client that blocks"
                    " can cost all clients their connections; give less",
                    self._options.hold,
                    demote_after,
                )

    def _start_queues(self, source: Source) -> asyncio.Task[None] | None:
        if self._queues is None:
            return None
        service = QueueService(
            self._name,
            source.fanout.instance,
            source.hello(),
            self._queues,
            self._options.owner,
        )
        task = asyncio.create_task(service.run())
        task.add_done_callback(_report)
        return task

    async def _end_queues(self, task: asyncio.Task[None] | None) -> None:
        """The ring has ended, and they see so by themselves; or the gateway ends."""
        if task is not None:
            if self._ends.is_set():
                task.cancel()
            await asyncio.wait([task], timeout=self._options.close_timeout)
            task.cancel()
            await asyncio.wait([task])

    async def _leave(self, source: Source) -> None:
        """The ring has ended, or was taken away."""
        for task in self._late.values():
            task.cancel()
        await asyncio.gather(*self._late.values(), return_exceptions=True)
        for client in list(self._clients):
            client.drop("the ring is gone")
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        source.close()

    async def _read(self, source: Source) -> None:
        """Serve the clients of a source until the ring ends, or it was taken away."""
        try:
            while source is self._main or source.clients:
                began, before = time.monotonic(), source.fanout.end
                came = self._look(source)
                self._send(source)
                if source is self._main:
                    self._members.turn()
                else:
                    self._catch_up(source)
                if came:
                    await asyncio.sleep(_rest(source, began, source.fanout.end - before))
                elif source.fanout.blocks:
                    await asyncio.sleep(LOOK_AGAIN)
                else:
                    await source.bridge.wait()
        except (shm.Evicted, shm.RingCorrupt) as error:
            _log.warning("left ring %s: %s", self._name, error)
            for client in list(source.clients.values()):
                client.drop("the gateway had to leave the ring")
        except shm.RingClosed:
            _log.info("ring %s has ended", self._name)
            await self._end_clients(source, "the manager has stopped")

    async def _end_clients(self, source: Source, why: str) -> None:
        """Close the clients of a source once they have everything."""
        end = time.monotonic() + self._options.close_timeout
        for outlet, client in list(source.clients.items()):
            if client.member is None:  # else it ends when its group has nothing more for it
                outlet.stop(source.fanout.end)
                client.ends_with(CloseCode.GOING_AWAY, why)
        while source.clients and time.monotonic() < end:
            self._members.turn()
            self._send(source)
            await asyncio.sleep(LOOK_AGAIN)

    def _catch_up(self, source: Source) -> None:
        """Hand over those that have come to where the main source is."""
        main = self._main
        if main is None or source.fanout.end < main.fanout.end:  # not all events are seen yet
            return
        for outlet in list(source.clients):
            if main.fanout.floor <= outlet.next <= main.fanout.end:
                main.adopt(source, outlet)

    async def _read_late(self, source: Source) -> None:
        try:
            await self._read(source)
        finally:
            for client in list(source.clients.values()):
                client.drop("the ring is gone")
            self._late.pop(source, None)
            source.close()

    # -- what comes that is no message for all

    def _look(self, source: Source) -> bool:
        """Take what has come into the ring. Before it is sent, clients that end at an event learn
        where, and answers get their place. Raises as `Fanout.look` does."""
        came = source.fanout.look()
        self._look_at_events(source)
        self._look_at_answers(source)
        return came

    def _look_at_events(self, source: Source) -> None:
        # all are read before one is acted on: what is sent for it may let go of them
        events = [(n, source.fanout.payload(n)) for n in source.fanout.take_events()]
        missed, before = source.fanout.take_gap()
        if missed:
            self._lost(source, before, f"{missed} messages were missed")
        for sequence, event in events:
            if _says_lost(event):
                self._lost(source, sequence, "the connection to the server was lost")

    def _look_at_answers(self, source: Source) -> None:
        addressed = source.fanout.take_addressed()
        if self._upstream is None or source is not self._main:  # other sources see the same ones
            return
        # all are read before one is acted on, as above
        found = [(each, source.fanout.payload(each.sequence)) for each in addressed]
        for message, payload in found:
            self._upstream.answered(message, payload)

    def _lost(self, source: Source, sequence: int, why: str) -> None:
        """Plain clients end before this message, as their own connections would have. Not members
        of a group: what they get is no stream that could be broken."""
        if self._options.on_loss is OnLoss.KEEP:
            return
        for outlet, client in list(source.clients.items()):
            if not client.records and client.member is None and outlet.next <= sequence:
                outlet.stop(sequence)
                client.ends_with(CloseCode.SERVICE_RESTART, why)

    # -- sending

    def _send(self, source: Source) -> None:
        """Send to all clients of a source what there is."""
        again = False
        for outlet, what in source.fanout.pump():
            client = source.clients.get(outlet)
            if client is None:  # it has gone meanwhile
                continue
            client.look_whether_to_read()
            if what == _fanout.MORE:
                again = True
            elif what == _fanout.BLOCKED:
                self._await_room(client, outlet)
            elif what == _fanout.TOPIC:
                self._topic_comes(source, client, outlet)
                again = True
            elif what == _fanout.FAILED:
                client.drop(os.strerror(outlet.error))
            elif what == _fanout.STOPPED:
                client.stopped()
        self._let_go(source)
        if again:
            self._send_soon(source)

    def _send_soon(self, source: Source) -> None:
        """Once for all that ask for it: closing one client does not send to the others."""
        if source not in self._sending:
            self._sending.add(source)
            asyncio.get_running_loop().call_soon(self._send_again, source)

    def _send_again(self, source: Source) -> None:
        self._sending.discard(source)
        if source is self._main or source in self._late:
            try:
                self._send(source)
            except (shm.Evicted, shm.RingCorrupt) as error:
                _log.debug("%s", error)  # `_read` finds it, too, and ends

    def _await_room(self, client: Client, outlet: _fanout.Outlet) -> None:
        loop = asyncio.get_running_loop()

        def writable() -> None:
            loop.remove_writer(outlet.fd)
            outlet.resume()
            self.send(client)

        loop.add_writer(outlet.fd, writable)

    def _let_go(self, source: Source) -> None:
        fanout = source.fanout
        held_long = source.holds_for() >= self._options.hold
        keep = fanout.slots // (2 if source.full_since is None else 4)
        for outlet in fanout.let_go(keep=keep, keep_blocking=not held_long):
            source.clients[outlet].lapped()

    def _topic_comes(self, source: Source, client: Client, outlet: _fanout.Outlet) -> None:
        """A message comes of a topic of which it is not known whether the client wants it."""
        if client.pending and self._upstream is not None:
            topic = source.fanout.topic_of(outlet.next)
            name = next(row.name for row in source.feed.topics if row.topic == topic)
            if name in client.pending:
                self._upstream.data_comes(client, name)
        self._choose(source, client, outlet)

    def _topics_chosen(self, client: Client) -> None:
        source = self._source_of(client)
        if source is not None and client.outlet is not None:
            self._choose(source, client, client.outlet)
            self.send(client)

    def _choose(self, source: Source, client: Client, outlet: _fanout.Outlet) -> None:
        """There are topics of which the client does not know yet, or it wants others now."""
        rows, known = source.feed.topics, outlet.known
        if client.topics is None:
            outlet.knows(len(rows))
        else:
            matches = _matcher(client.topics)
            wanted = [row.topic for row in rows if matches(row.name)]
            unsure = [row.topic for row in rows if row.name in client.pending]
            others = client.options is not None and client.options.others
            outlet.choose([0, *wanted] if others else wanted, len(rows), unsure)
        if client.records:
            for row in rows[known:]:
                client.send_record(
                    wire.Record(wire.RecordType.TOPIC, row.name.encode(), topic=row.topic)
                )

    # -- clients: what `client.Host` asks for

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _address = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:  # too many files: there may be fewer in a moment
                _log.warning("can't accept a client: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.sock.fileno())
                loop.call_later(ACCEPT_AGAIN, self._listen, listener)
                return
            if self._tls is not None and sock.family != socket.AF_UNIX:
                self._start_tls(sock)
            else:
                self._connected(sock, Transport.of(sock))

    def _listen(self, listener: Listener) -> None:
        if not self._ends.is_set():
            loop = asyncio.get_running_loop()
            loop.add_reader(listener.sock.fileno(), self._accept, listener)

    def _connected(self, sock: socket.socket, transport: Transport) -> None:
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:  # the kernel lets TCP's grow by itself
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limits = self._rules.limits
        self._clients.add(
            Client(
                self,
                sock,
                transport,
                header_bytes=limits.header_bytes,
                message_bytes=limits.message_bytes,
                open_timeout=limits.handshake_seconds,
                close_timeout=self._options.close_timeout,
            )
        )

    def _start_tls(self, sock: socket.socket) -> None:
        assert self._tls is not None
        task = asyncio.create_task(relay(sock, self._tls, self._connected))
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)

    def admit(self, client: Client, request: Request) -> ClientOptions:
        """See `client.Host`."""
        decision = decide(self._rules, request, client.transport)
        if decision.status is not None:
            raise Refused(decision.status, decision.reason, decision.headers)
        if self._upstream is None:
            raise Refused(503, f"ring {self._name} is not there; try again", [("Retry-After", "1")])
        most = self._rules.limits.clients
        if len(self._clients) > most:
            raise Refused(503, f"{most} clients are connected, which is the limit")
        try:
            options = ClientOptions.parse(request.path)
        except OptionsError as error:
            raise Refused(400, str(error)) from error
        if options.group is not None:
            client.member = self._members.admit(client, options)
        else:
            self._upstream.admit(client, options)
        return options

    def open(self, client: Client) -> None:
        """See `client.Host`."""
        options, source = client.options, self._main
        assert options is not None
        missed = 0
        if source is None:
            client.drop("the ring is gone")
            return
        if client.member is not None:
            outlet = source.fanout.add(client.fd, records=False, lossy=True, chooses=True)
            outlet.stop(0)  # of the stream it gets nothing: its member gives it what it gets
            self._start(client, source, outlet, 0)
            client.member.begin(outlet)
            return
        start = options.start
        with contextlib.suppress(shm.RingError):  # `_read` finds it, too
            self._look(source)
        if start == "latest":
            begin = source.fanout.end
        elif isinstance(start, int) and start >= source.fanout.floor:
            begin = min(start, source.fanout.end)
        else:
            try:
                source = Source.attach(self._name, self._options.owner, start)
            except (shm.RingError, ValueError) as error:
                client.close(CloseCode.TRY_AGAIN_LATER, str(error))
                return
            begin = source.fanout.end
            missed = begin - start if isinstance(start, int) else 0
            self._late[source] = asyncio.create_task(self._read_late(source))
        outlet = source.fanout.add(
            client.fd,
            records=client.records,
            lossy=options.policy == "lossy",
            chooses=client.topics is not None,
            start=begin,
            missed=missed,
        )
        if client.topics is not None and options.others:
            outlet.choose([0], 0)  # of the others it is asked what is wanted
        _log.info("serves %s from %d on", client.transport.peer, begin)
        self._start(client, source, outlet, begin)

    def _start(self, client: Client, source: Source, outlet: _fanout.Outlet, begin: int) -> None:
        """Serve a client by this way out, from this sequence on."""
        source.clients[outlet] = client
        client.outlet = outlet
        if client.records:
            hello = source.hello().encode()
            client.send_record(wire.Record(wire.RecordType.HELLO, hello, sequence=begin))
            client.send_record(wire.Record(wire.RecordType.STATE, _state(source.feed)))

    def received(self, client: Client, sent: Upward) -> Upward | None:
        """See `client.Host`."""
        rest = self._upstream.received(client, sent) if self._upstream is not None else None
        if rest is not None:
            self._retry_later(client)
        return rest

    def _retry_later(self, client: Client) -> None:
        """There is no room for what a client has sent."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(LOOK_AGAIN, self._retry)
        self._waiting.add(client)

    def _retry(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for client in waiting:
            client.retry()

    def _source_of(self, client: Client) -> Source | None:
        for source in (self._main, *self._late):
            if source is not None and client.outlet in source.clients:
                return source
        return None

    def send(self, client: Client) -> None:
        """See `client.Host`."""
        source = self._source_of(client)
        if source is not None:
            self._send_soon(source)

    def gone(self, client: Client) -> None:
        """See `client.Host`."""
        self._clients.discard(client)
        self._waiting.discard(client)
        if client.member is not None:
            client.member.leave()
        if self._upstream is not None:
            self._upstream.gone(client)
        source = self._source_of(client)
        if source is not None and client.outlet is not None:
            del source.clients[client.outlet]
            source.fanout.remove(client.outlet)

    async def _tell_state(self) -> None:
        """Tell clients that get records when the connection's state changes."""
        told = b""
        while True:
            await asyncio.sleep(STATE_EVERY)
            listening = [each for each in self._clients if each.records and each.outlet is not None]
            if self._upstream is not None:
                self._upstream.look()
            if self._main is None or not listening:
                continue
            note = _state(self._main.feed)
            if note not in (told, b""):
                told = note
                for client in listening:
                    client.send_record(wire.Record(wire.RecordType.STATE, note))

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


def _rest(source: Source, began: float, count: int) -> float:
    """How long to pause after a turn in which so many messages came; 0: sockets have their turn."""
    if count < BURST or source.fanout.blocks:
        return 0.0
    return max(0.0, began + TURN - time.monotonic())


def _says_lost(event: bytes) -> bool:
    """Does a record of kind EVENT say that the connection was lost? Not all are a manager's."""
    try:
        fields = json.loads(event)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("event") in ("disconnected", "restarted")


def _report(task: asyncio.Task[None]) -> None:
    """Say why there are no queues, if it is for an error."""
    if not task.cancelled() and (error := task.exception()) is not None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        _log.error("no message queues: %s", error)


def _state(feed: Feed) -> bytes:
    """The connection's state; empty if the ring is not a manager's."""
    try:
        return feed.state.encode()
    except shm.RingError:
        return b""


def _matcher(topics: Iterable[str]) -> Callable[[str], bool]:
    """Says of a name whether one of these names and patterns means it."""
    names = {topic for topic in topics if "*" not in topic}
    patterns = [topic for topic in topics if "*" in topic]
    return lambda name: name in names or any(glob_matches(each, name) for each in patterns)

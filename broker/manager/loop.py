"""The manager: one process, one WebSocket connection, one ring.

    CONNECTING ──▶ OPEN ──▶ CLOSING ──▶ RECONNECTING ──▶ CONNECTING ...        any ──▶ STOPPED
      (Dialer)    (Connection)          (Backoff)

One thread does everything but dialling. It sleeps in poll(2) on the socket and on an eventfd that
signals, `stop` and the dialler write; while the ring is full it sleeps on the ring's semaphore
instead, 20 ms at a time, and leaves the socket unread, so TCP pushes back.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import IO, Any, Final, Self

from ringcast import shm
from ringcast.shm import broadcast, mpsc

from ..config import Config, ConfigError
from ..connection import _ingest
from ..connection.upstream import GOING_AWAY, Backoff, Connection, Dialer, Lost, Opened
from ..logs import Bell, log, tell
from ..worker.state import ConnectionState, Phase
from .outbox import Outbox

__all__ = ["Manager", "ManagerError"]

_SLICE: Final = 0.02
"""Seconds of one wait for room."""
_REFRESH: Final = 1.0
"""Seconds after which changed counters are shown again."""
_EVENTS_MOST: Final = 16
_DENSE: Final = (",", ":")
_DIALERS_MOST: Final = 4
"""Attempts that were given up and have not noticed yet: above that none is begun."""
_START_WAIT: Final = 30.0
_DRAIN_LOOK: Final = 0.01


class ManagerError(RuntimeError):
    """The manager stopped, or did not start, for the reason that the message gives."""


# ---- readers that hold the ring up ---------------------------------------------------------


class Patience:
    """When to ask readers that keep the ring full to step down, and when to put them out.

    The clock counts only short waits for room, so a manager that was itself stopped demotes nobody,
    and it starts anew when a sixteenth of what the ring held was freed: slow is not stuck.
    """

    def __init__(self, writer: broadcast.Writer, config: Config) -> None:
        self._writer = writer
        self._config = config
        self._blocked = 0.0
        self._goal = 0
        self._asked: dict[tuple[int, int], float] = {}
        self.demoted = 0
        self.evicted = 0

    def waited(self, seconds: float) -> None:
        """The ring was full for so long, and still is."""
        if self._writer.oldest >= self._goal:
            self._blocked = 0.0
            self._asked.clear()
            self._goal = self._writer.oldest + self._sixteenth()
        seconds = min(seconds, 5 * _SLICE)
        self._blocked += seconds
        if self._config.demote_after is not None and self._blocked >= self._config.demote_after:
            self._insist(seconds)

    def _sixteenth(self) -> int:
        return max(1, (self._writer.sequence - self._writer.oldest) // 16)

    def _insist(self, seconds: float) -> None:
        try:
            readers = shm.status(self._writer.name).readers
        except shm.RingError:  # somebody has removed the names; who is attached reads on
            return
        for reader in readers:
            if not reader.gating or reader.cursor >= self._goal:
                continue
            who = (reader.slot, reader.joined_ns)
            if reader.state == "active":
                self._demote(reader)
            elif self._config.evict_after is not None:
                self._asked[who] = self._asked.get(who, 0.0) + seconds
                if self._asked[who] >= self._config.evict_after:
                    self._evict(reader)

    def _demote(self, reader: shm.ReaderStatus) -> None:
        if self._writer.demote(reader.slot):
            self.demoted += 1
            self._tell("demoted", reader, self._config.demote_after, self.demoted)

    def _evict(self, reader: shm.ReaderStatus) -> None:
        if self._writer.evict(reader.slot):
            self.evicted += 1
            self._tell("evicted", reader, self._config.evict_after, self.evicted)

    def _tell(self, event: str, reader: shm.ReaderStatus, after: float | None, count: int) -> None:
        tell(
            logging.WARNING,
            event,
            ring=self._writer.name,
            slot=reader.slot,
            pid=reader.pid,
            label=reader.label,
            lag=reader.lag,
            after_s=after,
            count=count,
        )


# ---- the manager ---------------------------------------------------------------------------


class Manager:
    """Holds one connection and writes what it says into the ring that workers attach to.

    Args:
        config: what to connect to, and the ring's name and size.

    `run` works in the calling thread until it is stopped; `start` does so in a child process. As a
    context manager it is such a child, started and stopped.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        # Plain, for signal handlers set them: an Event's lock is not one that they may take.
        self._stopping = False
        self._at_once = False
        self._bell = Bell()
        self._child: subprocess.Popen[str] | None = None

    def stop(self) -> None:
        """Stop, orderly; a second call stops at once. From any thread, or a signal handler; for a
        child, see `__exit__`."""
        self._at_once = self._stopping
        self._stopping = True
        self._bell.ring()

    def run(self, *, on_ready: Callable[[], None] | None = None, until: int | None = None) -> None:
        """Do the work until `stop` or SIGTERM or SIGINT (in the main thread), or until the
        connection can't be had any more.

        A ring of that name whose manager died is resumed: its workers read on.

        Args:
            on_ready: called once, when workers can attach.
            until: a descriptor that stops the manager, too, when it becomes readable: a pidfd
                of whoever started it, or a pipe that is closed.

        Raises:
            ManagerError: it stopped because of an error: one that another attempt would meet again
                (401, 403, 404, a bad certificate), or any, if `Config.reconnect` is off.
            shm.RingExists: another manager of this name lives.
            shm.RingError: the ring can't be made.
        """
        with contextlib.ExitStack() as ends:
            receiver, writer, resumed = _open_both(self.config)
            ends.callback(_end, receiver)
            ends.callback(_end, writer)
            ends.enter_context(self._signals())
            work = _Work(self, writer, receiver, resumed=resumed, until=until)
            if on_ready is not None:
                on_ready()
            error = work.run()
        if error is not None:
            raise ManagerError(error)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop; only the main thread may say so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_signal: int, _frame: FrameType | None) -> None:
            self.stop()

        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- as a child process

    def start(self) -> None:
        """Run in a child process; returns when workers can attach. It stops when this process
        ends, and logs to standard error, at this process's level.

        Raises:
            ManagerError: it did not start; the message says why.
        """
        if self._child is not None:
            raise ManagerError(f"the manager of {self.config.name!r} runs already")
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-P",  # not the working directory: a user's select.py is not ours
                "-m",
                "ringcast.broker.manager.child",
                str(log.getEffectiveLevel()),
                str(os.getpid()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the child
        )
        assert self._child.stdin is not None  # both are pipes
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: what it said tells why
            self._child.stdin.write(self.config.as_json() + "\n")
            self._child.stdin.flush()
        said = _read_line(self._child.stdout, _START_WAIT)
        if said != "ready":
            self._end_child(0)
            raise ManagerError(said or f"the manager did not start within {_START_WAIT:g} s")

    @property
    def pid(self) -> int | None:
        """The child's process id, or None if there is none."""
        return self._child.pid if self._child is not None else None

    def join(self, timeout: float | None = None) -> int | None:
        """Wait for the child to end; its exit code (0 fine, 1 failed), or None at the time-out."""
        if self._child is None:
            return None
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Stop the child, orderly, and wait for it; at once if it takes longer than it may."""
        self._end_child(self.config.drain_timeout + 10.0)

    def _end_child(self, patience: float) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for ask in (child.terminate, child.terminate, child.kill):
            ask()
            try:
                child.wait(patience)
                break
            except subprocess.TimeoutExpired:
                patience = 5.0
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _read_line(stream: IO[str], seconds: float) -> str:
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline().strip() if ready else ""


def _open_ring(config: Config) -> tuple[broadcast.Writer, bool]:
    """A new ring, or the one that a dead manager left: (writer, resumed)."""
    try:
        return (
            broadcast.Writer.create(
                config.name,
                slots=config.slots,
                capacity=config.capacity,
                max_readers=config.max_readers,
                mode=config.mode,
            ),
            False,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except shm.RingExists:
        writer = broadcast.Writer.resume(config.name)
    if (writer.slots, writer.capacity) != (config.slots, config.capacity):
        tell(
            logging.WARNING,
            "resumed ring keeps its size",
            ring=config.name,
            slots=writer.slots,
            capacity=writer.capacity,
        )
    return writer, True


def _open_uplink(config: Config) -> tuple[mpsc.Receiver, bool]:
    """A new uplink, or the one that a dead manager left: (receiver, resumed)."""
    try:
        return (
            mpsc.Receiver.create(
                config.name,
                max_senders=config.max_senders,
                lane_bytes=config.send_buffer_bytes,
                mode=config.mode,
                auto_ack=False,
            ),
            False,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except shm.RingExists:
        return mpsc.Receiver.resume(config.name, auto_ack=False), True


def _open_both(config: Config) -> tuple[mpsc.Receiver, broadcast.Writer, bool]:
    """Uplink and ring: (receiver, writer, ring resumed). The ring last: who can attach to it can
    send, too. When it can't be had, an uplink that a dead manager left stays as it was: workers'
    messages are in it."""
    receiver, uplink_resumed = _open_uplink(config)
    try:
        writer, resumed = _open_ring(config)
    except BaseException:
        if uplink_resumed:
            receiver.abandon()
        else:
            _end(receiver)
        raise
    return receiver, writer, resumed


def _end(end: broadcast.Writer | mpsc.Receiver) -> None:
    if not end.closed:
        end.close()
    end.unlink()


class _Work:
    """What `Manager.run` does, with everything it needs while it does it."""

    def __init__(
        self,
        manager: Manager,
        writer: broadcast.Writer,
        receiver: mpsc.Receiver,
        *,
        resumed: bool,
        until: int | None,
    ) -> None:
        self._manager = manager
        self._config = manager.config
        self._url = manager.config.shown_url
        self._writer = writer
        self._ingest = _ingest.Ingest(writer)
        self._outbox = Outbox(receiver, manager.config)
        self._patience = Patience(writer, manager.config)
        self._backoff = Backoff(manager.config)
        self._dialer: Dialer | None = None
        self._given_up: list[Dialer] = []
        self._connection: Connection | None = None
        self._connections = 0
        self._retry_at: float | None = None
        self._no_connection_since = time.monotonic_ns()
        self._sent_before = 0
        self._rtt_ns: int | None = None
        self._last_error: str | None = None
        self._events: collections.deque[dict[str, Any]] = collections.deque()
        self._coalesced = 0
        self._failed: str | None = None
        self._finished = False
        self._full = False  # as the last turn found it
        self._more = False  # to read, though the socket need not be ready
        self._phase = Phase.STARTING
        self._since_ns = time.time_ns()
        self._shown = b""
        self._show_at = 0.0
        self._before = shm.status(writer.name) if resumed else None
        self._poll = select.poll()
        self._poll.register(manager._bell.fd, select.POLLIN)
        self._poll.register(self._outbox.bell.fd, select.POLLIN)
        if until is not None:
            self._poll.register(until, select.POLLIN)

    # -- what is said of it

    def _enter(self, phase: Phase, event: str, level: int = logging.INFO, **fields: Any) -> None:
        """Change the phase: in the header at once, among the messages when there is room."""
        self._phase = phase
        self._since_ns = time.time_ns()
        tell(level, event, ring=self._config.name, url=self._url, **fields)
        if len(self._events) >= _EVENTS_MOST:
            self._events.popleft()
            self._coalesced += 1
        record = {"event": event, "time_ns": self._since_ns, "url": self._url}
        self._events.append({**record, "connection": self._connections, **fields})
        self._show()

    def _show(self) -> None:
        """Bring the header's state up to date."""
        connection = self._connection
        state = ConnectionState(
            phase=self._phase,
            url=self._url,
            since_ns=self._since_ns,
            epoch=self._writer.epoch,
            rtt_ns=connection.rtt_ns if connection is not None else self._rtt_ns,
            received=self._ingest.messages,
            sent=self._sent_before + (connection.sent if connection is not None else 0),
            reconnects=max(0, self._connections - 1),
            last_error=self._last_error,
        ).encode()
        if state != self._shown:
            self._writer.note = state
            self._shown = state
        self._show_at = time.monotonic() + _REFRESH

    def _publish_events(self, timeout: float) -> bool:
        """Put the records that wait, if any, into the ring; False if it is full."""
        while self._events:
            record = self._events[0]
            if self._coalesced:
                record = {**record, "coalesced": self._coalesced}
            try:
                self._writer.publish(
                    json.dumps(record, separators=_DENSE).encode(),
                    kind=shm.Kind.EVENT,
                    timeout=timeout,
                )
            except shm.RingFull:
                return False
            except shm.MessageTooLarge:  # a ring of a few kilobytes: what happened, at least
                self._events[0] = {key: record[key] for key in ("event", "time_ns")}
                self._coalesced = 0
                continue
            self._events.popleft()
            self._coalesced = 0
        return True

    # -- the life cycle

    def run(self) -> str | None:
        """Work until there is nothing more to do; returns what went wrong, or None."""
        try:
            if self._before is not None:
                self._say_restarted(self._before)
            self._dial()
            while not (self._finished or self._manager._stopping):
                self._turn()
            self._wind_up()
        finally:
            if self._dialer is not None:
                self._dialer.give_up()
            if self._connection is not None:
                self._outbox.disconnected(self._connection)
                self._connection.finish()
            self._outbox.close()
        return self._failed

    def _say_restarted(self, before: shm.RingStatus) -> None:
        state = ConnectionState.decode(before.note)
        self._enter(
            Phase.STARTING,
            "restarted",
            logging.WARNING,
            epoch=self._writer.epoch,
            sequence=self._writer.sequence,
            last_phase=str(state.phase) if state is not None else None,
        )

    def _dial(self) -> None:
        self._retry_at = None
        self._given_up = [dialer for dialer in self._given_up if dialer.lingers]
        if len(self._given_up) >= _DIALERS_MOST:
            self._not_connected(Lost("earlier attempts are still held up by the server or proxy"))
            return
        self._enter(Phase.CONNECTING, "connecting", attempt=self._backoff.attempts + 1)
        self._dialer = Dialer(self._config, self._manager._bell.ring)

    def _look_at_the_dialer(self, dialer: Dialer) -> None:
        result = dialer.result()
        if result is None and time.monotonic() >= dialer.deadline:
            dialer.give_up()
            self._given_up.append(dialer)
            result = Lost(f"no connection within {self._config.open_timeout:g} s")
        if result is None:
            return
        self._dialer = None
        if isinstance(result, Opened):
            self._connected(result)
        else:
            self._not_connected(result)

    def _connected(self, opened: Opened) -> None:
        silent_ns = time.monotonic_ns() - self._no_connection_since
        self._connections += 1
        self._connection = Connection(
            opened, self._ingest, self._outbox, self._connections, self._config
        )
        self._poll.register(self._connection, select.POLLIN)
        self._enter(
            Phase.OPEN,
            "connected",
            subprotocol=opened.subprotocol,
            gap=self._connections > 1 or self._before is not None,
            silent_ns=silent_ns,
        )
        self._outbox.connected()

    def _not_connected(self, lost: Lost) -> None:
        """An attempt failed, or a connection is gone: try again, or stop."""
        self._last_error = lost.error or self._last_error
        if lost.final or not self._config.reconnect:
            self._failed = lost.error
            self._finished = True
            return
        pause = self._backoff.pause(lost.retry_in)
        self._retry_at = time.monotonic() + pause
        self._enter(
            Phase.RECONNECTING,
            "reconnecting",
            logging.WARNING,
            retry_in=round(pause, 3),
            error=lost.error,
        )

    def _lost(self, connection: Connection, lost: Lost) -> None:
        self._poll.unregister(connection)
        self._outbox.disconnected(connection)
        connection.finish()
        self._sent_before += connection.sent
        self._rtt_ns = connection.rtt_ns
        self._connection = None
        self._no_connection_since = time.monotonic_ns()
        self._backoff.connected_for(time.monotonic() - connection.began)
        self._last_error = lost.error or self._last_error
        self._full = self._more = False
        level = logging.INFO if lost.error is None else logging.WARNING
        self._enter(
            Phase.CLOSING,
            "disconnected",
            level,
            code=lost.code,
            reason=lost.reason,
            error=lost.error,
        )
        self._not_connected(lost)

    # -- one turn

    def _turn(self) -> None:
        """Sleep until there is something to do, and do it."""
        full = not self._publish_events(0)
        ready = self._sleep(full or self._full)
        if self._dialer is not None:
            self._look_at_the_dialer(self._dialer)
        elif self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._dial()
        self._outbox.turn(self._open_connection())
        if self._connection is not None:
            self._serve(self._connection, ready)
        if time.monotonic() >= self._show_at:
            self._show()

    def _open_connection(self) -> Connection | None:
        """The connection, if messages can still be sent there."""
        connection = self._connection
        if connection is None or connection.closing is not None or connection.lost is not None:
            return None
        return connection

    def _serve(self, connection: Connection, ready: bool) -> None:
        # What a new connection says comes after the record that it is there.
        outcome = connection.turn(reading=self._publish_events(0), ready=ready)
        self._full = outcome == _ingest.FULL
        self._more = outcome == _ingest.MORE
        if connection.lost is not None:
            self._lost(connection, connection.lost)
        elif connection.closing is not None and self._phase is Phase.OPEN:
            why = connection.closing
            self._enter(Phase.CLOSING, "closing", code=why.code, reason=why.reason, error=why.error)

    def _sleep(self, full: bool) -> bool:
        """Wait for the socket, a deadline or a call; while the ring is full for room, briefly.
        True: the socket is ready."""
        if full:
            self._wait_for_room()
        timeout = 0.0 if full or self._more else self._time_left()
        if self._connection is not None:
            self._poll.modify(self._connection, self._connection.poll_mask(reading=not full))
        socket_fd = self._connection.fileno() if self._connection is not None else -1
        ready = False
        for fd, events in self._poll.poll(None if timeout is None else timeout * 1000):
            if fd == socket_fd:
                ready = bool(events & ~select.POLLOUT)
            elif fd == self._manager._bell.fd:
                self._manager._bell.hush()
            elif fd == self._outbox.bell.fd:
                continue  # the outbox looks by itself
            else:
                self._poll.unregister(fd)
                self._manager.stop()
        return ready

    def _wait_for_room(self) -> None:
        began = time.monotonic()
        if self._events:
            there_is_room = self._publish_events(_SLICE)
        else:
            there_is_room = False
            self._ingest.wait_for_room(_SLICE)
        if not there_is_room:
            self._patience.waited(time.monotonic() - began)

    def _time_left(self) -> float | None:
        """Seconds until something is due."""
        times = [self._show_at] if self._connection is not None else []
        if self._dialer is not None:
            times.append(self._dialer.deadline)
        if self._retry_at is not None:
            times.append(self._retry_at)
        if self._connection is not None:
            times.append(self._connection.deadline)
        outbox_deadline = self._outbox.deadline(self._open_connection())
        if outbox_deadline is not None:
            times.append(outbox_deadline)
        left = min(times, default=float("inf")) - time.monotonic()
        return None if left == float("inf") else max(0.0, left)

    # -- the end

    def _wind_up(self) -> None:
        """Publish what was received and the end, let workers read it, say goodbye to the server."""
        until = time.monotonic() + self._config.drain_timeout
        if self._dialer is not None:
            self._dialer.give_up()
            self._dialer = None
        self._publish_the_rest(until)
        self._ingest.end()
        self._enter(Phase.STOPPED, "stopped", error=self._failed)
        while not self._publish_events(_SLICE) and self._may_wait(until):
            pass
        self._writer.close()
        while self._is_being_read() and self._may_wait(until):
            self._outbox.turn(self._open_connection())  # a worker's last words
            time.sleep(_DRAIN_LOOK)
        self._outbox.turn(self._open_connection())
        if self._connection is not None:
            self._say_goodbye(self._connection)

    def _may_wait(self, until: float) -> bool:
        return time.monotonic() < until and not self._manager._at_once

    def _publish_the_rest(self, until: float) -> None:
        """What has left the socket is not to be lost because the ring is full."""
        while self._connection is not None and self._may_wait(until):
            outcome = self._connection.publish_received()
            if outcome == _ingest.FULL:
                self._ingest.wait_for_room(_SLICE)
            elif outcome not in (_ingest.PING, _ingest.PONG, _ingest.MORE):
                return

    def _is_being_read(self) -> bool:
        """Has any living reader that gates not read to the end?"""
        try:
            readers = shm.status(self._config.name).readers
        except shm.RingError:  # somebody has removed it
            return False
        return any(r.gating and r.lag and r.state != "dead" for r in readers)

    def _say_goodbye(self, connection: Connection) -> None:
        connection.close(GOING_AWAY, "the manager stops")
        poll = select.poll()
        poll.register(connection, connection.poll_mask(reading=True))
        while connection.lost is None and not self._manager._at_once:
            wait = min(max(0.0, connection.deadline - time.monotonic()), 0.1)
            poll.modify(connection, connection.poll_mask(reading=True))
            ready = bool(poll.poll(wait * 1000))
            connection.turn(reading=True, ready=ready)

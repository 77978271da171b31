"""One session of the manager, turn by turn: one WebSocket connection after the other, one ring.

    CONNECTING ──▶ OPEN ──▶ CLOSING ──▶ RECONNECTING ──▶ CONNECTING ...        any ──▶ STOPPED
      (Dialer)    (Connection)          (Backoff)

One thread does everything but dialling. It sleeps in poll(2) on the socket and on eventfds that
signals, `Manager.stop`, the dialler and workers' messages set; while the ring is full it sleeps on
the ring's semaphore instead, 20 ms at a time, and leaves the socket unread, so TCP pushes back.
"""

from __future__ import annotations

import logging
import select
import time
from typing import Final

from ringcast import shm

from ..backoff import Backoff
from ..config import Config
from ..connection import (
    FULL,
    GOING_AWAY,
    MORE,
    Connection,
    Dialer,
    Disconnect,
    Ingest,
    OpenSocket,
)
from ..topics.dialogue import Dialogue, Login
from ..topics.venue import Venue
from ..topics.venue_file import load_venue, venue_name
from ..worker.state import ConnectionState, Phase
from .groups import Groups
from .naming import Naming
from .outbox import Outbox
from .reporting import Counters, Reporter
from .rings import Rings
from .slow_readers import SlowReaders
from .snapshot_answers import EVERYONE
from .wakeup import StopRequest
from .wishes import Wishes

__all__ = ["Session"]

_ROOM_WAIT: Final = 0.02
"""Seconds of one wait for room."""
_DIALERS_MAX: Final = 4
"""Attempts that were given up and still run: above that none is begun."""
_DRAIN_LOOK: Final = 0.01
"""Seconds between two looks whether workers have read to the end."""
_CLOSE_LOOK: Final = 0.1
"""Seconds between two looks whether to stop at once, while the server is to close."""


class Session:
    """What `Manager.run` does, with everything it needs while it does it.

    Args:
        config: the manager's.
        rings: open; the session closes the writer and the receiver.
        stop: the wish to stop.
        until: a descriptor that stops the session, too, when it becomes readable; or None.
    """

    def __init__(self, config: Config, rings: Rings, stop: StopRequest, until: int | None) -> None:
        self._config = config
        self._rings = rings
        self._stop = stop
        venue = load_venue(config.venue) if config.venue is not None else None
        self._naming = Naming(config, venue, rings.writer)
        self._wishes = Wishes(config, venue, rings.writer, self._naming) if venue else None
        self._ingest = Ingest(rings.writer, self._naming.finder)
        self._outbox = Outbox(rings.receiver, config, venue, self._wishes)
        self._reporter = Reporter(
            rings.writer,
            config.shown_url,
            self._counters,
            request_id=config.request_id,
            request_id_is_text=venue is not None and venue.request_id_is_text,
            venue=_shown_venue(venue, config),
            is_logged_in=venue is not None and _logs_in(venue, config),
            demote_after=config.demote_after,
        )
        self._groups = Groups(rings.writer, self._reporter)
        self._slow_readers = SlowReaders(rings.writer, config)
        # Connecting.
        self._backoff = Backoff(
            config.reconnect_delay, config.reconnect_delay_max, config.reconnect_reset_after
        )
        self._dialer: Dialer | None = None
        self._given_up: list[Dialer] = []
        self._retry_at: float | None = None
        # The connection, and what the ones before it left.
        self._connection: Connection | None = None
        self._connections = 0
        self._no_connection_since = time.monotonic_ns()
        self._sent_before = 0
        self._rtt_ns: int | None = None
        # How the last turn ended.
        self._full = False  # the ring was
        self._more = False  # to read, though the socket need not be ready
        self._error: str | None = None
        self._finished = False
        self._poll = select.poll()
        self._poll.register(stop.wakeup.fd, select.POLLIN)
        # The outbox looks by itself, at messages and at wishes.
        self._outbox_fds = {self._outbox.wakeup.fd}
        if self._wishes is not None:
            self._outbox_fds.add(self._wishes.wakeup.fd)
        for fd in self._outbox_fds:
            self._poll.register(fd, select.POLLIN)
        if until is not None:
            self._poll.register(until, select.POLLIN)
        self._reporter.show()  # workers that attach from now on find a state

    def run(self) -> str | None:
        """Work until there is nothing more to do; returns what went wrong, or None."""
        try:
            if self._rings.before is not None:
                self._report_restart(self._rings.before)
            self._dial()
            while not (self._finished or self._stop.is_made):
                self._turn()
            self._wind_up()
        finally:
            if self._dialer is not None:
                self._dialer.give_up()
            if self._connection is not None:
                self._outbox.disconnected(self._connection)
                self._connection.finish()
            if self._wishes is not None:
                self._wishes.close()
            self._outbox.close()
        return self._error

    def _report_restart(self, before: shm.RingStatus) -> None:
        state = ConnectionState.decode(before.note)
        self._reporter.enter(
            Phase.STARTING,
            "restarted",
            logging.WARNING,
            epoch=self._rings.writer.epoch,
            sequence=self._rings.writer.sequence,
            last_phase=str(state.phase) if state is not None else None,
        )

    def _counters(self) -> Counters:
        protocol = self._connection.protocol if self._connection is not None else None
        return Counters(
            connections=self._connections,
            rtt_ns=protocol.rtt_ns if protocol is not None else self._rtt_ns,
            received=self._ingest.messages,
            sent=self._sent_before + (protocol.sent if protocol is not None else 0),
            answers_dropped=self._ingest.answers_dropped,
        )

    # -- connecting

    def _dial(self) -> None:
        self._retry_at = None
        self._given_up = [dialer for dialer in self._given_up if dialer.is_working]
        if len(self._given_up) >= _DIALERS_MAX:
            why = "earlier attempts are still held up by the server or proxy"
            self._not_connected(Disconnect(why))
            return
        attempt = self._backoff.attempts + 1
        self._reporter.enter(Phase.CONNECTING, "connecting", attempt=attempt)
        self._dialer = Dialer(self._config, self._stop.wakeup.set)

    def _look_at_the_dialer(self, dialer: Dialer) -> None:
        result = dialer.result()
        if result is None and time.monotonic() >= dialer.deadline:
            dialer.give_up()
            self._given_up.append(dialer)
            result = Disconnect(f"no connection within {self._config.open_timeout:g} s")
        if result is None:
            return
        self._dialer = None
        if isinstance(result, OpenSocket):
            self._connected(result)
        else:
            self._not_connected(result)

    def _connected(self, opened: OpenSocket) -> None:
        silent_ns = time.monotonic_ns() - self._no_connection_since
        self._connections += 1
        self._connection = Connection(
            opened,
            self._ingest,
            self._connections,
            self._config,
            self._outbox.control_frame_sent,
            resolve_name=self._naming.resolve,
            control_received=self._control_received,
        )
        self._poll.register(self._connection, select.POLLIN)
        self._reporter.enter(
            Phase.OPEN,
            "connected",
            subprotocol=opened.subprotocol,
            gap=self._connections > 1 or self._rings.before is not None,
            silent_ns=silent_ns,
        )
        self._outbox.connected()

    def _control_received(self, payload: bytes) -> tuple[int, bool]:
        return self._wishes.heard(payload) if self._wishes is not None else (EVERYONE, False)

    def _not_connected(self, why: Disconnect) -> None:
        """An attempt failed, or a connection is gone: try again, or stop."""
        self._reporter.last_error = why.error or self._reporter.last_error
        if why.final or not self._config.reconnect:
            self._error = why.error
            self._finished = True
            return
        pause = self._backoff.pause(why.retry_in)
        self._retry_at = time.monotonic() + pause
        self._reporter.enter(
            Phase.RECONNECTING,
            "reconnecting",
            logging.WARNING,
            retry_in=round(pause, 3),
            error=why.error,
        )

    def _disconnected(self, connection: Connection, why: Disconnect) -> None:
        self._poll.unregister(connection)
        self._outbox.disconnected(connection)
        connection.finish()
        self._sent_before += connection.protocol.sent
        self._rtt_ns = connection.protocol.rtt_ns
        self._connection = None
        self._no_connection_since = time.monotonic_ns()
        self._backoff.connected_for(time.monotonic() - connection.began)
        self._reporter.last_error = why.error or self._reporter.last_error
        self._full = self._more = False
        self._reporter.enter(
            Phase.CLOSING,
            "disconnected",
            logging.INFO if why.error is None else logging.WARNING,
            code=why.code,
            reason=why.reason,
            error=why.error,
        )
        self._not_connected(why)

    # -- one turn

    def _turn(self) -> None:
        """Sleep until there is something to do, and do it."""
        full = not self._reporter.publish(0)
        ready = self._sleep(full or self._full)
        if self._dialer is not None:
            self._look_at_the_dialer(self._dialer)
        elif self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._dial()
        self._outbox.turn(self._open_connection(), reading=not (full or self._full))
        if self._connection is not None:
            self._serve(self._connection, ready)
        if time.monotonic() >= self._reporter.refresh_at:
            self._reporter.show()
            self._naming.look()
            self._groups.look()

    def _open_connection(self) -> Connection | None:
        """The connection, if messages can still be sent there."""
        connection = self._connection
        return connection if connection is not None and connection.accepts_messages else None

    def _serve(self, connection: Connection, ready: bool) -> None:
        # What a new connection says comes after the record that it is there.
        outcome = connection.turn(reading=self._reporter.publish(0), ready=ready)
        self._full = outcome == FULL
        self._more = outcome == MORE
        protocol = connection.protocol
        if protocol.lost is not None:
            self._disconnected(connection, protocol.lost)
        elif protocol.closing is not None and self._reporter.phase is Phase.OPEN:
            why = protocol.closing
            self._reporter.enter(
                Phase.CLOSING, "closing", code=why.code, reason=why.reason, error=why.error
            )

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
            elif fd == self._stop.wakeup.fd:
                self._stop.wakeup.clear()
            elif fd in self._outbox_fds:
                continue
            else:
                self._poll.unregister(fd)
                self._stop.make()
        return ready

    def _wait_for_room(self) -> None:
        began = time.monotonic()
        if self._reporter.has_waiting:
            there_is_room = self._reporter.publish(_ROOM_WAIT)
        else:
            there_is_room = False
            self._ingest.wait_for_room(_ROOM_WAIT)
        if not there_is_room:
            self._slow_readers.blocked_for(time.monotonic() - began)

    def _time_left(self) -> float | None:
        """Seconds until something is due."""
        times = []
        if self._connection is not None:
            times += [self._reporter.refresh_at, self._connection.protocol.deadline]
        if self._dialer is not None:
            times.append(self._dialer.deadline)
        if self._retry_at is not None:
            times.append(self._retry_at)
        outbox_deadline = self._outbox.deadline(self._open_connection())
        if outbox_deadline is not None:
            times.append(outbox_deadline)
        left = min(times, default=float("inf")) - time.monotonic()
        return None if left == float("inf") else max(0.0, left)

    # -- the end

    def _wind_up(self) -> None:
        """Publish what was received and the end, let workers read it, close the connection."""
        until = time.monotonic() + self._config.drain_timeout
        if self._dialer is not None:
            self._dialer.give_up()
            self._dialer = None
        # What has left the socket is not to be lost because the ring is full.
        while (
            self._connection is not None
            and self._may_wait(until)
            and not self._connection.publish_received()
        ):
            self._ingest.wait_for_room(_ROOM_WAIT)
        self._ingest.end()
        self._reporter.enter(Phase.STOPPED, "stopped", error=self._error)
        while not self._reporter.publish(_ROOM_WAIT) and self._may_wait(until):
            pass
        if self._wishes is not None:
            self._wishes.close()
        self._rings.writer.close()
        while self._is_being_read() and self._may_wait(until):
            self._outbox.turn(self._open_connection())  # a worker's last messages
            time.sleep(_DRAIN_LOOK)
        self._outbox.turn(self._open_connection())
        if self._connection is not None:
            self._close(self._connection)

    def _may_wait(self, until: float) -> bool:
        return time.monotonic() < until and not self._stop.at_once

    def _is_being_read(self) -> bool:
        """Has any living reader that gates not read to the end, or a group that has living
        members?"""
        try:
            status = shm.status(self._config.name)
        except shm.RingError:  # somebody has removed it
            return False
        alive = [reader for reader in status.readers if reader.state != "dead"]
        if any(reader.gating and reader.lag for reader in alive):
            return True
        working = {reader.group for reader in alive if reader.state != "evicted"}
        return any(group.lag and group.name in working for group in status.groups)

    def _close(self, connection: Connection) -> None:
        """The closing handshake, to its end."""
        connection.close(GOING_AWAY, "the manager stops")
        poll = select.poll()
        poll.register(connection, connection.poll_mask(reading=True))
        protocol = connection.protocol
        while protocol.lost is None and not self._stop.at_once:
            wait = min(max(0.0, protocol.deadline - time.monotonic()), _CLOSE_LOOK)
            poll.modify(connection, connection.poll_mask(reading=True))
            ready = bool(poll.poll(wait * 1000))
            connection.turn(reading=True, ready=ready)


def _shown_venue(venue: Venue | None, config: Config) -> str | None:
    """The venue for others; None if topics are found by patterns of the configuration, and so may
    have other names than the venue's."""
    if venue is None or config.venue is None or config.topic != venue.topic:
        return None
    return venue_name(config.venue)


def _logs_in(venue: Venue, config: Config) -> bool:
    """Is one of the first messages on a connection a login?"""
    dialogue = Dialogue(venue)
    first = (*venue.initial, *config.initial_messages)
    return any(
        isinstance(dialogue.read(text.encode() if isinstance(text, str) else text), Login)
        for text in first
    )

"""What workers wish for, and what the server is asked: the ring's wishes, brought to the state
machine of the topics room, and its changes brought to the topic table.

    reader slots: wishes ──▶ Wishes ──▶ Subscriptions ──▶ requests ──▶ Outbox
    topic table, answers ◀── Wishes ◀── Subscriptions ◀── control messages ◀── Connection

Wishes are state: whenever a worker changes them, or the manager is a new one, all are read. A
worker that leaves says so; one that dies is found by its lock, once a second while anybody wishes.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from ringcast import shm
from ringcast.shm import broadcast
from ringcast.shm.counters import SlotWishes

from ..config import Config
from ..logs import log_event
from ..topics.heartbeat import Heartbeats
from ..topics.states import TopicState
from ..topics.subscriptions import Subscriptions
from ..topics.venue import Venue
from ..worker.subscribing import answer_text
from .naming import Naming
from .snapshot_answers import EVERYONE, SnapshotAnswers
from .wakeup import Wakeup

__all__ = ["Wishes"]

_LOOK: Final = 1.0
"""Seconds between two looks for the dead, while anybody wishes for anything."""


class _Watcher:
    """Wakes the manager when wishes change: a semaphore can't be polled, so a thread sleeps on it,
    without the GIL.

    Attributes:
        wakeup: set when they have.
    """

    def __init__(self, writer: broadcast.Writer) -> None:
        self.wakeup = Wakeup()
        self._watch = writer.watch_wishes()
        self._thread = threading.Thread(target=self._run, name="wishes", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._watch.wait_into(self.wakeup.fd):
            pass

    def end(self) -> None:
        self._watch.close()
        self._thread.join()


class Wishes:
    """Keeps the server's subscriptions equal to what workers want.

    Args:
        config: `subscribe`, `allow` and `linger` are its.
        venue: how the server is asked.
        writer: of the ring.
        naming: gives topics their rows.

    Attributes:
        wakeup: set when workers' wishes have changed: call `turn`.
    """

    def __init__(
        self, config: Config, venue: Venue, writer: broadcast.Writer, naming: Naming
    ) -> None:
        self._ring = config.name
        self._venue = venue
        self._writer = writer
        self._naming = naming
        self._subscriptions = Subscriptions(
            venue, own=config.subscribe, allow=config.allow, linger=config.linger
        )
        self._heartbeats = Heartbeats(venue)
        self._snapshot_answers = SnapshotAnswers()
        self._closed = False
        self._seen: dict[int, SlotWishes] = {}
        self._look_at: float | None = 0.0
        self._watcher = _Watcher(writer)
        self.wakeup = self._watcher.wakeup
        for topic in shm.list_topics(config.name):  # what a dead manager said of them
            if topic.state != TopicState.NONE:
                writer.set_topic_state(topic.topic, TopicState.NONE)
        for name in config.subscribe:
            naming.row(name)
        self._show_changes()

    # -- workers

    def turn(self) -> None:
        """Read what has changed, if anything may have."""
        now = time.monotonic()
        fired = self.wakeup.clear()
        if self._closed:
            return
        if not fired and (self._look_at is None or now < self._look_at):
            return
        changing = False
        present = {wisher.slot: wisher for wisher in self._writer.wishers()}
        for slot in [slot for slot in self._seen if slot not in present]:
            self._leave(slot, now)
        for wisher in present.values():
            changing |= not self._read(wisher, now)
        self._show_changes()
        # Who has changed a list says so; but it may be stopped in the midst of it.
        self._look_at = now + _LOOK if self._seen or changing else None

    def _leave(self, slot: int, now: float) -> None:
        del self._seen[slot]
        self._snapshot_answers.leave(slot)
        self._subscriptions.leave(slot, now)

    def _read(self, wisher: SlotWishes, now: float) -> bool:
        """Read one worker's list if it is another than before. False: it changes just now."""
        before = self._seen.get(wisher.slot)
        if before == wisher:
            return True
        wishes = self._writer.wishes(wisher.slot)
        if wishes is None:
            return False
        if before is not None and before.joined_ns != wisher.joined_ns:
            self._leave(wisher.slot, now)
        names = [name for name in wishes.topics if "*" not in name]
        if before is None and not names:
            return True  # most workers wish for nothing
        self._seen[wisher.slot] = wisher._replace(version=wishes.version)
        refused = self._subscriptions.wish(wisher.slot, names, now, again=names)
        rowless = [name for name in names if name not in refused and not self._naming.row(name)]
        if rowless:
            refused |= dict.fromkeys(rowless, "the topic table is full: configure max_topics")
            kept = [name for name in names if name not in rowless]
            self._subscriptions.wish(wisher.slot, kept, now)
        for name in wishes.snapshots:
            self._subscriptions.snapshot(wisher.slot, name, now)
        self._show_changes()
        self._writer.answer_wishes(wisher.slot, wishes.version, answer_text(refused))
        return True

    def _show_changes(self) -> None:
        for change in self._subscriptions.changes():
            if self._closed:
                continue
            topic = self._naming.row(change.name)
            if topic:
                self._writer.set_topic_state(topic, change.state, change.reason)
            if change.state is TopicState.REFUSED:
                log_event(
                    logging.WARNING,
                    "subscription refused",
                    ring=self._ring,
                    topic=change.name,
                    reason=change.reason,
                )

    # -- the connection

    def connected(self) -> None:
        """A connection is open: everything is asked for again."""
        now = time.monotonic()
        self._subscriptions.connected(now)
        self._naming.venue_may_have_learned()
        self._heartbeats.connected(now)
        self._show_changes()

    def disconnected(self) -> None:
        """It is gone, and all subscriptions with it."""
        now = time.monotonic()
        self._subscriptions.disconnected(now)
        for request in self._snapshot_answers.disconnected():
            for name in request.names:
                self._subscriptions.snapshot(request.slot, name, now)
        self._heartbeats.disconnected()
        self._show_changes()

    def heard(self, payload: bytes) -> tuple[int, bool]:
        """A control message of the server. Returns the slot of the worker that is to get it, + 1,
        or 0 for all; and whether it says nothing to who has asked nothing: it answers something
        that the manager or a worker has sent, or wants an answer of the manager."""
        is_answer = self._subscriptions.heard(payload, time.monotonic())
        is_test = self._heartbeats.heard(payload)
        self._naming.venue_may_have_learned()
        self._show_changes()
        ids = self._venue.ids(payload)
        destination = EVERYONE
        if self._snapshot_answers.are_expected:
            destination = self._snapshot_answers.destination(ids)
        return destination, destination == EVERYONE and (is_answer or is_test or bool(ids))

    def urgent(self) -> list[str]:
        """Texts that can't wait: signs of life."""
        now = time.monotonic()
        texts = self._heartbeats.take(now)
        if texts and self._venue.counts_everything:
            self._subscriptions.spent(len(texts), now)
        return texts

    def take(self, most: int) -> list[str]:
        """Requests to send now, at most so many and within the venue's rate."""
        texts = self._subscriptions.take(time.monotonic(), most)
        self._snapshot_answers.asked(self._subscriptions.snapshots_asked())
        self._naming.venue_may_have_learned()  # what is asked for may be what names mean
        self._show_changes()
        return texts

    def spent(self, count: int) -> None:
        """So many other messages were sent."""
        self._subscriptions.spent(count, time.monotonic())

    @property
    def is_behind(self) -> bool:
        """Do topics wait to be asked for, on this connection?"""
        return self._subscriptions.is_behind

    def deadline(self, *, connected: bool) -> float | None:
        """When `turn`, `urgent` or `take` have something to do though nothing happens."""
        times = [self._look_at]
        if connected:
            times += [self._heartbeats.deadline, self._subscriptions.deadline(time.monotonic())]
        return min((at for at in times if at is not None), default=None)

    def close(self) -> None:
        """The ring ends: wishes are not read any more, and nothing is shown."""
        if not self._closed:
            self._closed = True
            self._look_at = None
            self._writer.answers_wishes = False
            self._watcher.end()

"""Workers that do not keep up: they hold the server up, are demoted, are evicted."""

from __future__ import annotations

import os
import signal
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

import pytest

from ringcast import attach, shm
from tests.conftest import DEADLINE, Processes, eventually, reader_status

from .flood import SMALL, Flood, full, number_of
from .manager import (
    listen,
    quick,
    serving,
    url_of,
    watching,
)

LIMIT: Final = 0.2
"""Seconds of the waits that a test lets run out."""


def test_a_worker_that_does_not_read_holds_the_server_up_and_nothing_is_lost(name: str) -> None:
    flood = Flood()
    with serving(flood) as server, watching(quick(name, server.url, **SMALL)) as watch:
        assert flood.blocked.wait(DEADLINE)
        assert full(name)
        held = flood.sent
        flood.last = held + 200
        records = watch.until(f"text {held + 199}")
        assert watch.feed.lost == 0
        assert watch.feed.policy == "block"
    assert [number_of(r) for r in records if r.startswith("text")] == [*range(held + 200)]
    assert flood.sent == held + 200


def test_a_worker_that_holds_the_ring_too_long_goes_on_lossy_and_is_told(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    flood = Flood()
    config_of = {**SMALL, "demote_after": LIMIT, "evict_after": None}
    with (
        serving(flood) as server,
        watching(quick(name, server.url, **config_of), label="slow") as watch,
    ):
        eventually(lambda: (s := reader_status(name)) and s.state == "demoting", "it is asked")
        assert flood.blocked.wait(DEADLINE)  # until it has stepped down, the ring stays full
        first = watch.feed.read(DEADLINE)
        assert first is not None
        eventually(lambda: (s := reader_status(name)) and not s.gating, "it has stepped down")
        held = flood.sent
        eventually(lambda: flood.sent > held + 2 * SMALL["slots"], "the server goes on")
        expected = first.sequence + 1
        numbers: list[int] = []
        missed = 0
        while missed == 0 or len(numbers) < 20:
            message = watch.feed.read(DEADLINE)
            assert message is not None
            assert message.sequence == expected + message.gap
            expected = message.sequence + 1
            missed += message.gap
            if message.kind == shm.Kind.TEXT:
                numbers.append(int(message.text()))
                # Sequences count the two events before the first message, too.
                assert message.sequence - numbers[-1] == 2
        assert watch.feed.lost == missed > 0
        assert watch.feed.policy == "lossy"
    assert "demoted" in caplog.text
    assert "label='slow'" in caplog.text


def stop_then_read(name: str, pipe: Connection) -> None:
    """A process: a worker that is stopped by a signal before it has read anything."""
    with attach(name, label="stopped") as feed:
        pipe.send_bytes(b"attached")
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            feed.read(DEADLINE)
        except shm.Evicted:
            pipe.send_bytes(b"evicted")


def test_a_stopped_worker_is_evicted_and_the_others_go_on(
    name: str, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    flood = Flood()
    listener = listen()
    limits = {"demote_after": LIMIT, "evict_after": LIMIT, **SMALL}
    with watching(quick(name, url_of(listener), **limits), policy="lossy") as watch:
        ours, theirs = Pipe()
        worker = processes.start(stop_then_read, name, theirs)
        assert ours.poll(DEADLINE)
        assert ours.recv_bytes() == b"attached"
        with serving(flood, listener=listener):
            eventually(lambda: "evicted" in caplog.text, "it is evicted")
            held = flood.sent
            eventually(lambda: flood.sent > held + 2 * SMALL["slots"], "the server goes on")
            assert watch.until("text")
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGCONT)
            assert ours.poll(DEADLINE)
            assert ours.recv_bytes() == b"evicted"
            processes.join(worker)
    assert "evicted" in caplog.text
    assert "label='stopped'" in caplog.text

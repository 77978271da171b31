"""Work groups through the gateway among real processes: members at its socket are killed, and the
gateway is."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import pytest

import ringcast
from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from tests.conftest import Processes, eventually

from .gateway import Gateway
from .members import Log, judge
from .traffic import stress_seconds

NAME: Final = "g"
KEYS: Final = 20
ROOM: Final = 1 << 18
AT_SOCKET: Final = 3


@pytest.fixture
def ring(name: str) -> Iterator[Writer]:
    """A ring and its group; whose end is the fixture's."""
    with Writer.create(name, slots=1024, capacity=1 << 20) as writer:
        group.Member.attach(name, NAME, balance="key", start="oldest", max_deliveries=200).close()
        yield writer


def handle(where: str, path: str) -> None:
    """A member, at a gateway's socket or in shared memory: handles messages until it is killed, and
    writes down what it does. A gateway that is not there is waited for."""
    log = Log(Path(path), ROOM)
    while True:
        with (
            contextlib.suppress(ConnectionRefusedError, shm.RingNotFound),
            ringcast.attach(where, group=NAME, balance="key") as feed,
        ):
            for message in feed:
                log.begin(message)
                log.done()
        time.sleep(0.01)


class Workers:
    """Member processes, each with its log."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self._logs: list[Log] = []
        self.alive: list[BaseProcess] = []

    def start(self, where: str) -> None:
        path = self._folder / f"{len(self._logs)}.log"
        self._logs.append(Log(path, ROOM, create=True))
        self.alive.append(self._processes.start(handle, where, str(path)))

    def kill(self, process: BaseProcess) -> None:
        self.alive.remove(process)
        self._processes.kill(process)

    def logs(self) -> list[Any]:
        return [log.records() for log in self._logs]


def status(ring: Writer) -> group.GroupStatus:
    return group.list_groups(ring.name)[0]


@pytest.mark.parametrize("gateway_dies", [False, True])
@pytest.mark.parametrize("brief", [True, pytest.param(False, marks=pytest.mark.stress)])
def test_nothing_is_lost_and_keys_keep_their_order(
    ring: Writer, tmp_path: Path, processes: Processes, *, brief: bool, gateway_dies: bool
) -> None:
    rng = random.Random(1)
    end = time.monotonic() + (1.0 if brief else stress_seconds() / 4)
    count_max = 4000 if brief else ROOM // 2
    gateway = Gateway(ring.name, tmp_path)
    address = f"unix:{gateway.path}?in_flight=16"
    workers = Workers(processes, tmp_path)
    try:
        gateway.attached()
        workers.start(ring.name)
        for _ in range(AT_SOCKET):
            workers.start(address)
        while time.monotonic() < end and ring.sequence < count_max:
            for _ in range(200):
                ring.publish(b"", key=1 + rng.randrange(KEYS))
            if rng.random() < 0.3:
                workers.kill(workers.alive[-1 - rng.randrange(AT_SOCKET)])
                workers.start(address)
            if gateway_dies and rng.random() < 0.1:
                gateway.kill()
                assert gateway.process.stderr is not None
                gateway.process.stderr.close()
                gateway = Gateway(ring.name, tmp_path)
        count = ring.sequence
        eventually(lambda: status(ring).lag == 0, "everything is done")
        for process in list(workers.alive):
            workers.kill(process)
    finally:
        gateway.stop()
    judge(workers.logs(), range(count), ordered_keys=not gateway_dies, evicted=gateway_dies)
    assert status(ring).set_aside == 0

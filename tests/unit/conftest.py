"""What the unit tests share: one tiny ring a test, and a few things done to it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, SHM, eventually, reader_status

SLOTS = 8
CAPACITY = 1024
MAX_MESSAGE = CAPACITY // 4
WAITS = [shm.Blocking(), shm.Blocking(spin_us=0), shm.Yielding(), shm.BusySpin()]
DATA_HEADER = 4096
"""Where the descriptors begin in the data segment (layout.h)."""


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """The writer of a ring of 8 messages, 1024 bytes and 4 readers; closed and unlinked after."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=4) as writer:
        yield writer


@pytest.fixture
def reader(writer: Writer) -> Reader:
    """A lossless reader from the first message on."""
    return Reader.attach(writer.name)


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """No test takes for ever: what waits in the main thread is interrupted."""

    def expired(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"not over within {2 * DEADLINE} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, 2 * DEADLINE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def data_path(name: str) -> Path:
    """The ring's data segment as a file."""
    return SHM / f"rc.{name}.d"


def control_path(name: str) -> Path:
    """The ring's control segment as a file."""
    return SHM / f"rc.{name}.c"


def fill(writer: Writer, payload: bytes = b"12345678") -> list[int]:
    """Publish until the ring is full; the sequences."""
    sequences = []
    while (sequence := writer.try_publish(payload)) is not None:
        sequences.append(sequence)
        assert len(sequences) <= writer.slots, "nobody gates this ring: it never gets full"
    return sequences


def read_all(reader: Reader) -> list[bytes]:
    """Every payload that is there, and let go of all."""
    payloads = []
    while (message := reader.read(timeout=0)) is not None:
        payloads.append(bytes(message))
        del message
    return payloads


def wait_until_waiting(name: str, slot: int = 0) -> shm.ReaderStatus:
    """Return when the reader in `slot` sleeps."""

    def waiting() -> shm.ReaderStatus | None:
        status = reader_status(name, slot)
        return status if status is not None and status.waiting else None

    found = eventually(waiting, f"the reader in slot {slot} of {name} sleeps")
    assert isinstance(found, shm.ReaderStatus)
    return found


class Background:
    """A call that runs in a thread of its own; `result` waits for it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # whatever it is, the test shall see it
            self._error = error

    def result(self) -> Any:
        """What the call returned; raises what it raised."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the call did not come back"
        if self._error is not None:
            raise self._error
        return self._result

    @property
    def running(self) -> bool:
        """Has it not come back yet?"""
        return self._thread.is_alive()


@contextmanager
def on_signal(handler: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Run `handler` in the main thread at SIGUSR1; the value sends that signal to it."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGUSR1, handle)
    main = threading.main_thread().ident
    assert main is not None
    try:
        yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

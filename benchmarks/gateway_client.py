"""The receiving end of the scenario `gateway`: `gateway_client.c`, a process per client."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from . import native
from .errors import RunFailedError
from .payloads import Contents, contents
from .processes import Children
from .programs import POLL_INTERVAL_S, Program, ProgramResult

SIZE: Final = 128
"""Bytes per message."""
_PROGRAM: Final = Path(__file__).with_name("gateway_client.c")


def flow_contents() -> Contents:
    """The messages that every server sends, over and over."""
    return contents(SIZE)


@dataclass(frozen=True, slots=True)
class ClientResult(ProgramResult):
    """What a client found.

    Attributes:
        missed: number of messages that it was told it missed.
        bytes: number of bytes that it received.
        began_ns, ended_ns: when the first message and the end came (CLOCK_MONOTONIC).
        close: code with which the server closed before the end; 0 if it did not.
    """

    missed: int
    bytes: int
    began_ns: int
    ended_ns: int
    close: int


def result_of(client: Program) -> ClientResult:
    """What a client found, once it has ended. Raises as `Program.result`."""
    found = client.result()
    assert isinstance(found, ClientResult)
    return found


def figures_of_flow(found: Sequence[ClientResult], sent: int, cpu_s: float) -> dict[str, float]:
    """The figures of a flow that every client has received whole.

    Returns:
        rate: messages per second that each received, from the first message of any client to the
        end of the last; server: CPU time of the server in us per message and client; client:
        likewise of the clients.

    Raises:
        RunFailedError: a client received another number of messages than were sent.
    """
    if any(one.received != sent for one in found):
        counts = [one.received for one in found]
        raise RunFailedError(f"{sent} messages were sent, and {counts} came")
    seconds = (max(one.ended_ns for one in found) - min(one.began_ns for one in found)) / 1e9
    each = sent * len(found) / 1e6
    return {
        "rate": sent / seconds,
        "server": cpu_s / each,
        "client": sum(one.cpu_seconds for one in found) / each,
    }


class Clients:
    """The clients of a run.

    Attributes:
        programs: one per client.
    """

    def __init__(self, folder: Path, programs: list[Program]) -> None:
        self._folder = folder
        self.programs = programs

    def results(self) -> list[ClientResult]:
        """What they found, once all have ended. Raises as `Program.result`."""
        return [result_of(program) for program in self.programs]

    def times_ns(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """When each message came to a timed client that has ended (CLOCK_MONOTONIC)."""
        return np.fromfile(_times_path(self._folder, index), np.int64)


def _times_path(folder: Path, index: int) -> Path:
    return folder / f"times{index}"


@dataclass(frozen=True, slots=True)
class ReceivingEnd:
    """The program, and a file with the filler of its messages."""

    program: Path
    filler: Path

    @classmethod
    @contextlib.contextmanager
    def compiled(cls) -> Iterator[ReceivingEnd | None]:
        """The program while it is there; None without a C compiler.

        Raises:
            RunFailedError: it does not compile.
        """
        with (
            native.compiled(_PROGRAM) as program,
            tempfile.NamedTemporaryFile(prefix="ringcast-bench-") as file,
        ):
            file.write(flow_contents().filler)
            file.flush()
            yield None if program is None else cls(program, Path(file.name))

    def start(
        self,
        children: Children,
        folder: Path,
        address: str,
        count: int,
        *options: str,
        timed: bool = False,
    ) -> Clients:
        """Start clients, and wait until the server has answered the handshakes of all.

        Args:
            children: of the run.
            folder: an empty one, which outlives the clients.
            address: as the program takes it.
            count: number of clients.
            options: of the program.
            timed: whether they note when each message came.

        Raises:
            RunFailedError: a process failed, or they are not connected in time.
        """
        fifo = folder / "ready"
        os.mkfifo(fifo)
        ready = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        words = [self.program, address, SIZE, len(flow_contents().payloads), self.filler, fifo]
        try:
            programs = [
                children.start_program(
                    [
                        *map(str, words),
                        *options,
                        *(("--times", str(_times_path(folder, k))) if timed else ()),
                    ],
                    ClientResult.parse,
                )
                for k in range(count)
            ]
            _wait_ready(children, ready, count)
        finally:
            os.close(ready)
        return Clients(folder, programs)


def _wait_ready(children: Children, ready: int, count: int) -> None:
    """Wait until so many bytes have come."""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    end = time.monotonic() + children.deadline_s
    while count:
        if time.monotonic() > end:
            raise RunFailedError(f"{count} clients did not connect in {children.deadline_s:.0f} s")
        if any(event & select.POLLIN for _, event in poll.poll(POLL_INTERVAL_S * 1000)):
            count -= len(os.read(ready, count))
        else:
            children.check()
            time.sleep(0.001)  # once a client has closed the FIFO, poll() returns at once

"""A reader in C beside readers in Python: what the language costs.

*Filled.* A ring of default size is filled once, and then read from the oldest message on, over and
over: CPU time per message, user and system. Attaching is not included.

*Live.* A writer in Python publishes 64 messages per call, as fast as it can, to one reader. Both
wait in the default way. The figure is messages per second from the first message to the last.

All readers check each message in the same way. The program in C is compiled with the C compiler of
the machine; without one, its figures are missing.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ringcast import shm
from ringcast.shm import broadcast

from .errors import RunFailedError
from .figures import Figure, figures_of, interleave, ratio, samples_of
from .payloads import Checker, contents
from .processes import Channel, Children, child_processes
from .programs import ProgramResult
from .report import Plan, Report, describe_machine
from .ring_names import temporary_ring_name
from .transports.base import BATCH_SIZE

SIZE: Final = 128
ROUNDS: Final = 14
"""Of 4,096 messages each: what a ring of 65,536 slots holds, with room for the mark."""
NATIVE: Final = "C, one by one"
PYTHON: Final = "Python, one by one"
BATCHES: Final = "Python, numpy batches"
FLAGS: Final = ("-std=c11", "-O2")
"""How programs in C are compiled."""
COST: Final = 0.5
"""CPU time per message of the reader in C, at most, relative to Python's, one by one."""
REPEATS_PER_S: Final = 40
"""How often a filled ring is read, per second of the plan."""
INTERFACE: Final = Path(shm.__file__).parent / "native" / "include"
READER: Final = (Path(__file__).with_name("native_reader.c"), INTERFACE / "ringcast.c")

Read = Callable[[Checker, broadcast.Reader], None]


def _one_by_one(checker: Checker, reader: broadcast.Reader) -> None:
    checker.read(reader, 0)


def _in_batches(checker: Checker, reader: broadcast.Reader) -> None:
    checker.read_batches(_batches(reader), 0)


def _batches(reader: broadcast.Reader) -> Iterator[broadcast.Batch]:
    """Batches such that the mark is the last message of one."""
    while True:
        with reader.batch() as batch:
            yield batch


def _read(channel: Channel, name: str, read: Read, repeats: int) -> None:
    """Be a reader in Python: attach and read up to the mark, over and over."""
    checker = Checker(contents(SIZE), lossy=False)
    received = cpu_ns = wall_ns = 0
    for _ in range(repeats):
        with broadcast.Reader.attach(name, start="oldest") as reader:
            if not reader.lag:  # live: do not measure the wait for the first message
                channel.send()
            while not reader.lag:
                time.sleep(0)
            began, cpu_began = time.perf_counter_ns(), time.process_time_ns()
            read(checker, reader)
            wall_ns += time.perf_counter_ns() - began
            cpu_ns += time.process_time_ns() - cpu_began
        received += checker.received
    channel.send([received, wall_ns * 1e-9, cpu_ns * 1e-9])


def _fill(channel: Channel, name: str) -> None:
    """Be the writer of a ring that is full of messages and stays so."""
    with broadcast.Writer.create(name) as writer:
        for _ in range(ROUNDS):
            writer.publish_many(contents(SIZE).payloads)
        writer.publish(contents(SIZE).mark(0))
        channel.send()
        channel.receive()


def _publish(channel: Channel, name: str, seconds: float) -> None:
    """Be a writer that publishes for a while, once a reader is attached."""
    payloads = contents(SIZE).payloads
    with broadcast.Writer.create(name) as writer:
        channel.send()
        end = time.monotonic() + channel.deadline_s
        while not any(reader.state == "active" for reader in shm.status(name).readers):
            if time.monotonic() > end:
                raise RunFailedError("no reader attached in time")
            time.sleep(0.001)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for start in range(0, len(payloads), BATCH_SIZE):
                writer.publish_many(payloads[start : start + BATCH_SIZE])
        writer.publish(contents(SIZE).mark(0))
        channel.send(writer.sequence - 1)
        channel.receive()


def _result(
    children: Children, name: str, how: str, repeats: int, program: Path | None, filler: Path
) -> Callable[[], ProgramResult]:
    """Start a reader. Returns a function that waits for its figures."""
    if how == NATIVE:
        round_size = len(contents(SIZE).payloads)
        words = [str(program), name, str(SIZE), str(round_size), str(filler), str(repeats)]
        return children.start_program(words).result
    channel = children.start(_read, name, _in_batches if how == BATCHES else _one_by_one, repeats)

    def result() -> ProgramResult:
        while (found := channel.receive()) is None:
            continue
        received, seconds, cpu_seconds = found
        return ProgramResult(received, seconds, cpu_seconds, wrong=0)

    return result


def filled(seconds: float, how: str, program: Path | None, filler: Path) -> dict[str, float]:
    repeats = max(1, int(seconds * REPEATS_PER_S))
    with temporary_ring_name() as name, child_processes(seconds) as children:
        writer = children.start(_fill, name)
        writer.receive()
        found = _result(children, name, how, repeats, program, filler)()
        writer.send()
        due = repeats * ROUNDS * len(contents(SIZE).payloads)
        if found.received != due:
            raise RunFailedError(f"{due} messages were there and {found.received} read")
        return {f"filled: {how}": found.cpu_seconds / found.received}


def _live(seconds: float, how: str, program: Path | None, filler: Path) -> dict[str, float]:
    with temporary_ring_name() as name, child_processes(seconds) as children:
        writer = children.start(_publish, name, seconds)
        writer.receive()
        result = _result(children, name, how, 1, program, filler)
        published = writer.receive()
        found = result()
        writer.send()
        if found.received != published:
            raise RunFailedError(f"{published} messages were sent and {found.received} read")
        return {
            f"live: {how}": found.received / found.seconds,
            f"live cpu: {how}": found.cpu_seconds / found.received,
        }


@contextlib.contextmanager
def compiled(*sources: Path) -> Iterator[Path | None]:
    """A program made of sources in C; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as folder:
        program = Path(folder) / sources[0].stem
        folders = [f"-I{path}" for path in (INTERFACE, INTERFACE.parent)]
        command = [compiler, *FLAGS, *folders, *map(str, sources)]
        done = subprocess.run(
            [*command, "-pthread", "-lrt", "-o", str(program)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise RunFailedError(f"{sources[0].name} does not compile: {done.stderr}")
        yield program


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: a reader did not get exactly what was sent, or a process failed.
    """
    machine = describe_machine()
    with (
        compiled(*READER) as program,
        tempfile.NamedTemporaryFile(prefix="ringcast-bench-") as file,
    ):
        file.write(contents(SIZE).filler)
        file.flush()
        ways = (PYTHON, BATCHES) if program is None else (NATIVE, PYTHON, BATCHES)
        runs = [
            partial(run, plan.seconds, how, program, Path(file.name))
            for run in (filled, _live)
            for how in ways
        ]
        found = interleave(runs, plan.repeat)
    of_filled, live = samples_of(found, "filled"), samples_of(found, "live")
    groups: dict[str, Sequence[Figure]] = {
        "CPU time per message, from a filled ring": figures_of(of_filled, "ns", 1e9),
        "messages per second to one reader": figures_of(live, "M/s", 1e-6),
        "CPU time per message, live": figures_of(samples_of(found, "live cpu"), "ns", 1e9),
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE}
    if program is None:
        parameters["missing"] = "a C compiler, for the reader in C"
    else:
        groups["the reader in C against Python's, one by one"] = [
            ratio("CPU time, filled", of_filled[NATIVE], of_filled[PYTHON], COST, "smaller"),
            ratio("messages per second, live", live[NATIVE], live[PYTHON]),
        ]
    return Report("native", parameters, machine, groups)

"""The benchmarks' programs: what they print is read, and they end with the run in any case."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringcast.benchmarks import processes, programs
from ringcast.benchmarks.errors import ChildFailedError, RunFailedError
from ringcast.benchmarks.processes import Channel, Children, child_processes
from ringcast.benchmarks.programs import Program, ProgramResult
from ringcast.benchmarks.ring_names import temporary_ring_name
from ringcast.shm import broadcast
from tests.conftest import DEADLINE

SECONDS = 0.02
FIGURES = {"received": 3, "seconds": 0.5, "cpu_seconds": 0.25, "wrong": 0}
READER = """
import json, sys, time
from ringcast.shm import broadcast

name, count = sys.argv[1], int(sys.argv[2])
wrong = 0
with broadcast.Reader.attach(name, start="oldest") as reader:
    began, cpu = time.monotonic(), time.process_time()
    for number in range(count):
        wrong += bytes(next(reader)) != b"%d" % number
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
print(json.dumps(dict(received=count, seconds=seconds, cpu_seconds=cpu_seconds, wrong=wrong)))
"""
FOREVER = "import time\nwhile True: time.sleep(60)"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits look sooner whether another process has failed. Benchmarks must not be disturbed so."""
    monkeypatch.setattr(processes, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(programs, "POLL_INTERVAL_S", 0.01)


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def printing(text: str) -> list[str]:
    return python("import sys; sys.stdout.write(sys.argv[1])", text)


def has_ended(program: Program) -> bool:
    """Whether there is no such process any more."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(program.pid, 0)
        return False
    return True


@pytest.fixture
def ring() -> Iterator[str]:
    with temporary_ring_name() as name:
        yield name


def read_three(ring: str, *sent: bytes) -> ProgramResult:
    """Have a program read three messages, which are to be their numbers, from a filled ring."""
    with broadcast.Writer.create(ring) as writer:
        writer.publish_many(sent)
        with child_processes(SECONDS) as children:
            return children.start_program(python(READER, ring, "3")).result()


def test_a_program_reads_a_ring_by_its_name(ring: str) -> None:
    found = read_three(ring, b"0", b"1", b"2")
    assert (found.received, found.wrong) == (3, 0)
    assert found.seconds > 0


def test_a_program_that_finds_wrong_messages_fails_the_run(ring: str) -> None:
    with pytest.raises(RunFailedError, match="found 1 of 3 messages wrong"):
        read_three(ring, b"0", b"2", b"2")


def test_a_program_may_say_what_it_found_wrong() -> None:
    program = f"import sys; print('number 7 is due', file=sys.stderr); sys.exit({os.EX_DATAERR})"
    with (
        pytest.raises(ChildFailedError, match="ended with 65: number 7 is due") as raised,
        child_processes(SECONDS) as children,
    ):
        children.start_program(python(program)).result()
    assert raised.value.closeness > ChildFailedError("", found_wrong=False).closeness


def test_figures_are_read_from_the_one_line_that_a_program_prints() -> None:
    with child_processes(SECONDS) as children:
        program = children.start_program(printing(json.dumps(FIGURES) + "\n"))
        assert program.result() == ProgramResult(3, 0.5, 0.25, 0)
        assert program.result() == program.result()
    assert has_ended(program)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "done",
        "[]",
        json.dumps({**FIGURES, "more": 1}),
        json.dumps({"received": 3}),
        json.dumps({**FIGURES, "received": 0.5}),
        json.dumps({**FIGURES, "seconds": None}),
        json.dumps({**FIGURES, "seconds": float("nan")}),
        json.dumps({**FIGURES, "wrong": -1}),
        f"{json.dumps(FIGURES)}\n{json.dumps(FIGURES)}\n",
    ],
)
def test_anything_else_that_a_program_prints_fails_the_run(text: str) -> None:
    with pytest.raises(RunFailedError, match="printed"), child_processes(SECONDS) as children:
        children.start_program(printing(text)).result()


def test_a_program_whose_result_nobody_asks_for_is_checked() -> None:
    with pytest.raises(RunFailedError, match="printed"), child_processes(SECONDS) as children:
        children.start_program(printing("done"))


def only_receives(channel: Channel) -> None:
    channel.receive()


def fails(_channel: Channel) -> None:
    raise ValueError("there is no 7")


def fails_and_says_why(children: Children) -> None:
    program = "import sys; print('there is no ring', file=sys.stderr); sys.exit(3)"
    children.start_program(python(program)).result()


def is_missing(children: Children) -> None:
    children.start_program(["/no/such/program"])


def is_killed_while_a_child_is_awaited(children: Children) -> None:
    child = children.start(only_receives)
    program = children.start_program(python(FOREVER))
    os.kill(program.pid, signal.SIGKILL)
    child.receive()


def is_awaited_while_a_child_fails(children: Children) -> None:
    children.start(fails)
    children.start_program(python(FOREVER)).result()


@pytest.mark.parametrize(
    ("leader", "why"),
    [
        (fails_and_says_why, "ended with 3: there is no ring"),
        (is_missing, "cannot be started"),
        (is_killed_while_a_child_is_awaited, "ended with -9"),
        (is_awaited_while_a_child_fails, "there is no 7"),
    ],
)
def test_a_failure_fails_the_run(leader: Callable[[Children], None], why: str) -> None:
    with pytest.raises(RunFailedError, match=why), child_processes(SECONDS) as children:
        leader(children)
    for program in children.programs:
        assert has_ended(program)


def test_a_program_has_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.0)
    with (
        pytest.raises(RunFailedError, match="did not end in 0 s"),
        child_processes(SECONDS) as children,
    ):
        children.start_program(python(FOREVER)).result()
    assert has_ended(children.programs[0])


def test_a_program_ends_with_a_run_that_is_interrupted() -> None:
    def interrupt(children: Children) -> None:
        children.start_program(python(FOREVER))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), child_processes(SECONDS) as children:
        interrupt(children)
    assert has_ended(children.programs[0])


def test_a_program_ends_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    benchmark = """
import sys
from ringcast.benchmarks.processes import child_processes

with child_processes(600) as children:
    children.start_program([sys.executable, "-c", *sys.argv[1:]]).result()
"""
    opens = "import sys; fifo = open(sys.argv[1], 'w'); print('x', file=fifo, flush=True)"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read_end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(read_end, select.POLLIN)
    with subprocess.Popen(
        [sys.executable, "-c", benchmark, f"{opens}\n{FOREVER}", str(fifo)]
    ) as process:
        try:
            assert poll.poll(DEADLINE * 1000)
            assert os.read(read_end, 100) == b"x\n"
        finally:
            process.kill()
            process.wait(DEADLINE)
    assert poll.poll(DEADLINE * 1000)
    assert os.read(read_end, 100) == b""  # the program has closed it
    os.close(read_end)

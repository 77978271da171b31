"""Forks, and the end of the interpreter while messages, views, loops and threads are alive."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import GroupBatch, GroupMessage, Member
from tests.conftest import DEADLINE, Processes, eventually
from tests.unit.conftest import Background

from .conftest import BALANCES, Join, collect, put, status_of, take, text


def in_a_fork(
    member: Member, message: GroupMessage, batch: GroupBatch, keep: list[Any], in_hand: bool
) -> None:
    """The parent's member is of no use here, and does it no harm; this process joins anew."""
    uses: list[Callable[[], object]] = [
        lambda: member.read(timeout=0),
        member.read_available,
        lambda: member.batch(timeout=0),
        lambda: next(member),
        lambda: list(member),
        lambda: member.lag,
        lambda: bytes(message),
        lambda: message.payload,
        *([message.ack, message.nack] if in_hand else []),
        batch.ack,
        batch.nack,
        lambda: batch.descriptors,
        lambda: batch.payload(0),
    ]
    for use in uses:
        with pytest.raises(shm.RingClosed):
            use()
    assert (message.sequence, message.deliveries, batch.deliveries) == (0, 1, 1)
    with Member.attach(member.name, "g", balance=member.balance) as own:  # type: ignore[arg-type]
        for found in own.read_available():
            found.ack()
        assert own.slot != member.slot
    batch.release()
    keep.clear()
    member.close()
    gc.collect()


@pytest.mark.parametrize("auto_ack", [True, False])
@pytest.mark.parametrize("balance", BALANCES)
def test_a_forked_child(
    writer: Writer, join: Join, processes: Processes, balance: Any, auto_ack: bool
) -> None:
    member = join(balance=balance, auto_ack=auto_ack)
    put(writer, *[1] * 6)
    messages = member.read_available(limit=2)
    batch = member.batch(limit=2, timeout=0)
    keep: list[Any] = [messages, iter(member)]
    processes.start(in_a_fork, member, messages[0], batch, keep, not auto_ack)
    processes.join()
    assert status_of(writer).members == (member.slot,)
    assert status_of(writer).in_flight == (2 if auto_ack else 4)
    assert [bytes(batch.payload(i)) for i in range(2)] == [text(2), text(3)]
    batch.ack()
    if not auto_ack:
        member.ack(messages)
    for rest in iter(member.read_available, []):
        member.ack(rest)
    assert status_of(writer).lag == 0


def hold_and_exit(name: str) -> None:
    """A process that ends with messages in hand, without a word."""
    member = Member.attach(name, "g")
    assert member.read(DEADLINE) is not None
    assert member.batch(limit=2, timeout=0).first


def test_the_end_of_a_process_gives_back(writer: Writer, processes: Processes) -> None:
    Member.attach(writer.name, "g").close()
    put(writer, *[0] * 5)
    processes.start(hold_and_exit, writer.name)
    processes.join()
    with Member.attach(writer.name, "g") as member:
        found = collect([member], 4)
        assert [(m.sequence, m.deliveries) for _, m in found] == [(1, 2), (2, 2), (3, 1), (4, 1)]


EXITS = {
    "messages": "kept = [member.read(0), member.read_available(), member.read(0)]",
    "views": "kept = [memoryview(m) for m in member.read_available()]",
    "acked views": "kept = [(memoryview(m), m.ack()) for m in member.read_available()]",
    "batch": "kept = member.batch(timeout=0)",
    "array": "kept = member.batch(timeout=0).descriptors",
    "loop": "kept = iter(member); next(kept)",
    "cycle": "kept = [member.read(0), member]; kept.append(kept)",
    "thread": (
        "import threading\n"
        "t = threading.Thread(target=lambda: list(member), daemon=True); t.start()\n"
        "while not shm.status(name).readers[0].waiting: pass"
    ),
    "busy thread": (
        "import threading, time\n"
        "spinning = Member.attach(name, 'g', balance=sys.argv[2], wait=shm.BusySpin())\n"
        "t = threading.Thread(target=lambda: list(spinning), daemon=True); t.start()\n"
        "time.sleep(0.01)"
    ),
    "asyncio": (
        "import asyncio\n"
        "async def main():\n"
        "    kept = [await anext(member) for _ in range(3)]\n"
        "    t = asyncio.create_task(forever())\n"
        "    await asyncio.sleep(0.01)\n"
        "    sys.exit(0)\n"
        "async def forever():\n"
        "    async for message in member: pass\n"
        "asyncio.run(main())"
    ),
    "exception": "for message in member: raise SystemExit(0)",
}

PROGRAM = """
import sys
from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import Member
name = sys.argv[1]
member = Member.attach(name, "g", balance=sys.argv[2], auto_ack=sys.argv[3] == "True")
{}
"""


@pytest.mark.parametrize("how", EXITS)
def test_the_end_of_the_interpreter(name: str, how: str) -> None:
    """It ends as it should, and what it had is delivered again."""
    balance, auto_ack = [("any", True), ("key", False)][list(EXITS).index(how) % 2]
    options: dict[str, Any] = {"balance": balance}
    code = PROGRAM.format(EXITS[how])
    command = [sys.executable, "-P", "-X", "faulthandler", "-c", code]
    with Writer.create(name, slots=64, capacity=4096, max_readers=4) as writer:
        Member.attach(name, "g", **options).close()
        put(writer, *[1] * 8)
        done = subprocess.run(
            [*command, name, balance, str(auto_ack)],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        with Member.attach(name, "g", **options) as member:
            eventually(lambda: take(member) == [] and member.lag == 0, "all is done")


def test_threads_and_forks(writer: Writer, join: Join, processes: Processes) -> None:
    """A child that is forked while a thread waits in a member."""
    member = join()
    waiting = Background(lambda: [m.sequence for m in member])
    for _ in range(3):
        processes.start(gc.collect)
    processes.join()
    put(writer, 0, 0, 0)
    writer.close()
    assert waiting.result() == [0, 1, 2]

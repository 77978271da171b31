"""The benchmark of work groups: it measures, and lost, doubled and wrong messages fail the run."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ringcast.benchmarks import (
    groups,
    groups_claim,
    groups_flow,
    groups_paced,
    groups_tally,
    native,
    plots,
    processes,
)
from ringcast.benchmarks.__main__ import as_json
from ringcast.benchmarks.errors import RunFailedError
from ringcast.benchmarks.figures import interleave
from ringcast.benchmarks.groups_paced import Pace
from ringcast.benchmarks.groups_tally import ROUND, SIZE, Handler, Tally, flow_contents
from ringcast.benchmarks.payloads import contents
from ringcast.benchmarks.report import Plan
from ringcast.benchmarks.transports import Transport
from ringcast.benchmarks.transports.sharing import (
    GROUP,
    SHARING,
    GroupAny,
    GroupBatched,
    GroupKey,
    all_done,
)
from ringcast.benchmarks.transports.stdlib import Queue
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from tests.conftest import SHM

SECONDS = 0.02
ORDINARY = 100
"""The number of a message of which consumers compare the last word."""
SAMPLED = 128
"""The number of one that they compare whole."""
WHAT = flow_contents()

Tamper = Callable[[list[Any]], list[Any]]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits look sooner whether another process has failed. Benchmarks must not be disturbed so."""
    monkeypatch.setattr(processes, "POLL_INTERVAL_S", 0.01)


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[Callable[..., Path | None]]:
    """Compiles each program in C once, without optimising: that takes longer than measuring."""
    compiled = native.compiled
    with contextlib.ExitStack() as programs, pytest.MonkeyPatch.context() as patched:
        patched.setattr(native, "FLAGS", ("-std=c11", "-O0"))
        yield functools.cache(lambda *sources: programs.enter_context(compiled(*sources)))


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch, compiled_once: Callable[..., Path | None]) -> None:
    """Programs in C are there already."""
    monkeypatch.setattr(
        native, "compiled", lambda *sources: contextlib.nullcontext(compiled_once(*sources))
    )


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No run leaves a process, or anything in /dev/shm."""
    yield
    assert not multiprocessing.active_children()
    assert not [e.name for e in SHM.iterdir() if f"rc.bench{os.getpid()}-" in e.name]


def title(transport: type[Transport]) -> str:
    return transport.name


# ---- flows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", SHARING, ids=title)
def test_each_transport_shares_a_flow_out_among_two(transport: type[Transport]) -> None:
    if (why := transport.missing()) is not None:
        pytest.skip(why)
    found = groups_flow.share(transport, 2, SECONDS)
    assert found["rate"] > 0
    assert 1 <= found["largest"] <= 2
    assert found["cpu of consumers"] > 0
    assert (found["cpu of server"] > 0) == (transport.program is not None)


def flipped(message: bytes, at: int) -> bytes:
    changed = bytearray(message)
    changed[at] ^= 1
    return bytes(changed)


def flips(number: int, at: int) -> Tamper:
    return lambda m: [*m[:number], flipped(m[number], at), *m[number + 1 :]]


def leaves_out(messages: list[bytes]) -> list[bytes]:
    return [*messages[:ORDINARY], *messages[ORDINARY + 1 :]]


def doubles(messages: list[bytes]) -> list[bytes]:
    return [*messages[: ORDINARY + 1], *messages[ORDINARY:]]


def replaces(messages: list[bytes]) -> list[bytes]:
    return [*messages[:ORDINARY], messages[ORDINARY - 1], *messages[ORDINARY + 1 :]]


WRONG: dict[str, Tamper] = {
    "a small counter": flips(ORDINARY, 0),
    "a large counter": flips(ORDINARY, 7),
    "the filler": flips(SAMPLED, 60),
    "the last word": flips(ORDINARY, -1),
    "one left out": leaves_out,
    "one twice": doubles,
    "one for another": replaces,
    "one cut": lambda m: [*m[:ORDINARY], m[ORDINARY][:-1], *m[ORDINARY + 1 :]],
}


def sending(transport: type[Transport], tamper: Tamper) -> type[Transport]:
    """A transport whose sender sends another round than it was given."""

    def prepare(self: Transport, payloads: Sequence[bytes]) -> list[Any]:
        is_round = len(payloads) == ROUND  # otherwise it is a mark
        return transport.prepare(self, tamper(list(payloads)) if is_round else payloads)

    return type("Sending", (transport,), {"prepare": prepare})


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("transport", [GroupAny, GroupBatched, Queue], ids=title)
def test_wrong_messages_fail_the_run(transport: type[Transport], wrong: str) -> None:
    with pytest.raises(RunFailedError):
        groups_flow.share(sending(transport, WRONG[wrong]), 2, SECONDS)


def bringing(change: Callable[[Iterator[bytes]], Iterator[bytes]]) -> type[Transport]:
    """A queue whose receivers get something else than was sent."""

    @contextlib.contextmanager
    def receiver(self: Transport, index: int) -> Iterator[Iterator[bytes]]:
        with Queue.receiver(self, index) as messages:  # type: ignore[arg-type]
            yield change(messages)

    return type("Bringing", (Queue,), {"receiver": receiver})


def test_messages_that_do_not_arrive_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_tally, "STALLED_S", 0.2)

    def loses(messages: Iterator[bytes]) -> Iterator[bytes]:
        return (m for number, m in enumerate(messages) if number != ORDINARY)

    with pytest.raises(RunFailedError, match="were sent and only"):
        groups_flow.share(bringing(loses), 2, SECONDS)


def test_messages_that_arrive_twice_fail_the_run() -> None:
    def repeats(messages: Iterator[bytes]) -> Iterator[bytes]:
        for number, message in enumerate(messages):
            yield message
            if number == ORDINARY:
                yield message

    with pytest.raises(RunFailedError, match="handled"):
        groups_flow.share(bringing(repeats), 2, SECONDS)


def test_a_consumer_that_dies_fails_the_run() -> None:
    def dies(messages: Iterator[bytes]) -> Iterator[bytes]:
        yield next(messages)
        os.kill(os.getpid(), 9)

    with pytest.raises(RunFailedError, match="ended with -9"):
        groups_flow.share(bringing(dies), 2, SECONDS)


def test_messages_that_nobody_acknowledges_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_tally, "STALLED_S", 0.2)
    forgetful = type("Forgetful", (GroupAny,), {"is_acknowledged": lambda _: False})
    with pytest.raises(RunFailedError, match="acknowledged"):
        groups_flow.share(forgetful, 2, SECONDS)


def test_a_message_that_was_delivered_twice_is_noticed(name: str) -> None:
    with Writer.create(name) as writer, group.Member.attach(name, GROUP) as member:
        writer.publish(b"x")
        message = member.read(0)
        assert message is not None
        assert not all_done(name)
        message.nack()
        assert member.read(1) is not None
        with pytest.raises(RunFailedError, match="redelivered"):
            all_done(name)


# ---- the tally -----------------------------------------------------------------------------


def test_a_tally_adds_consumers_up() -> None:
    tally = Tally(2, messages=4)
    tally.check(0)
    for index, counter in ((0, 0), (1, 1), (1, 2), (0, 3), (0, 0)):
        tally.row(index)[counter] += 1
    assert tally.total() == 5
    assert tally.by_consumer().tolist() == [3, 2]
    tally.check(5)
    with pytest.raises(RunFailedError, match="number 1 was sent 2 times and handled 1 times"):
        tally.check(6)


def test_messages_one_by_one_are_counted_up_to_the_mark() -> None:
    tally = Tally(1)
    messages = iter([WHAT.payloads[n] for n in (5, 64, 5, ROUND - 1)] + [WHAT.mark(0), b"left"])
    Handler(tally.row(0)).handle(messages)
    assert [int(tally.table[0][n]) for n in (5, 64, ROUND - 1)] == [2, 1, 1]
    assert tally.total() == 4
    assert next(messages) == b"left"


def test_a_mark_with_other_bytes_is_none() -> None:
    handler = Handler(Tally(1).row(0))
    with pytest.raises(RunFailedError, match="no such message"):
        handler.handle(iter([flipped(WHAT.mark(0), 60)]))


@pytest.mark.parametrize("uneven", [False, True])
def test_batches_are_counted_up_to_the_mark(name: str, uneven: bool) -> None:
    tally = Tally(1)
    with Writer.create(name) as writer, group.Member.attach(name, GROUP, topics=["a"]) as member:
        wanted, other = writer.topic("a"), writer.topic("b")
        for number in range(60, 70):
            writer.publish(WHAT.payloads[number], topic=wanted)
            if uneven and number == 65:
                writer.publish(WHAT.payloads[0], topic=other)

        def batches() -> Iterator[group.GroupBatch]:
            while True:
                with member.batch(timeout=0) as batch:
                    yield batch
                writer.publish(WHAT.mark(0), topic=wanted)

        Handler(tally.row(0)).handle_batches(batches())
    assert tally.table[0][60:70].tolist() == [1] * 10
    assert tally.total() == 10


@pytest.mark.parametrize(
    "wrong", [b"x" * SIZE, flipped(WHAT.mark(0), 60), flipped(WHAT.payloads[9], 7)]
)
def test_wrong_batches_are_noticed(name: str, wrong: bytes) -> None:
    handler = Handler(Tally(1).row(0))
    with Writer.create(name) as writer, group.Member.attach(name, GROUP) as member:
        writer.publish_many([*WHAT.payloads[:3], wrong])
        with member.batch() as batch, pytest.raises(RunFailedError, match="no such message"):
            handler.handle_batches(iter([batch]))


# ---- members that keep up ------------------------------------------------------------------


@pytest.mark.parametrize("who", ["members", "readers"])
@pytest.mark.parametrize(
    "pace", [Pace(1, 10_000), Pace(8, 20_000), Pace(8, 20_000, at_once=True)], ids=lambda p: p.name
)
def test_the_cost_of_the_writer_is_measured(who: Any, pace: Pace) -> None:
    (cost,) = groups_paced.writer_cost(who, pace, SECONDS).values()
    assert cost > 0


@pytest.mark.parametrize("slow", [True, False])
def test_members_beside_a_slow_one_are_measured(
    monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setattr(groups_paced, "SLOW_S", 0.05)
    found = groups_paced.slow_member(slow, 0.2)
    how = "with" if slow else "without"
    assert found[f"{how}: rate"] > 0
    assert 0 < found[f"{how}: p50"] <= found[f"{how}: p99"]


def test_wakes_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_paced, "IDLE_S", 0.1)
    found = groups_paced.wakes(0.1)
    assert found["woken: per message"] > 0
    assert found["woken: per second while nothing comes"] >= 0


def test_a_claim_is_measured() -> None:
    with groups_claim.runs(SECONDS) as runs:
        found = interleave(runs, 1)
    names = [figure.name for figure in groups_claim.figures(found)]
    assert names[0] == "member.read(0) beyond reader.read(0)"
    assert all(value > 0 for values in found.values() for value in values)


def test_a_program_in_c_that_finds_wrong_messages_fails_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_fill", _fill_wrongly)
    with groups_claim.runs(SECONDS) as (_, *in_c):
        for run in in_c:
            with pytest.raises(RunFailedError, match="messages wrong"):
                run()


def _fill_wrongly(channel: processes.Channel, name: str) -> None:
    what = contents(SIZE)
    with Writer.create(name) as writer:
        for _ in range(native.ROUNDS):
            writer.publish_many([*what.payloads[:-1], what.payloads[0]])
        writer.publish(what.mark(0))
        channel.send()
        channel.receive()


# ---- the scenario --------------------------------------------------------------------------


def test_the_scenario_reports_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(groups, "SHARING", (GroupAny, GroupKey, GroupBatched, Queue))
    monkeypatch.setattr(groups, "BRIEF_SLOW_FLOW_S", 0.1)
    monkeypatch.setattr(groups_paced, "SLOW_S", 0.05)
    monkeypatch.setattr(groups_paced, "IDLE_S", 0.1)
    report = groups.measure(Plan(SECONDS, 1, brief=True))
    names = {figure.name for figures in report.groups.values() for figure in figures}
    assert {"any / multiprocessing.Queue", "any, batched / any", "4 members", "rate"} <= names
    assert "any / NATS queue group" not in names
    drawn = [path.name for path in plots.draw(as_json([report]), tmp_path)]
    assert drawn == ["groups.svg"]

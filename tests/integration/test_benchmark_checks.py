"""The benchmarks' checks: that wrong contents and lost messages are found out whatever carried
them, and that nothing but those is; and what a crew does when a child of it fails or dies."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import pytest

from ringcast.benchmarks import flows, ingest, latency, method, uplink, websocket
from ringcast.benchmarks.method import Channel, Crew, RunFailedError, crew
from ringcast.benchmarks.payloads import Checker, contents
from ringcast.benchmarks.transports import GROUP, Outlet, Transport
from ringcast.benchmarks.transports.rings import BatchedRing, SmallRing, Uplink
from ringcast.benchmarks.transports.stdlib import UnixSeqpacket, UnixStreamGrouped
from tests.conftest import DEADLINE, SHM

SIZE = 128
SECONDS = 0.02
FLOOD_SECONDS = 0.01
SAMPLED = 128
"""The number of a message that receivers compare whole."""
ORDINARY = 100
"""The number of one of which they compare only the first and the last word."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits in vain looks around sooner than in a benchmark, which is not to be disturbed."""
    monkeypatch.setattr(method, "SLICE_S", 0.01)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No run leaves a process or anything in /dev/shm."""
    yield
    assert not multiprocessing.active_children()
    assert not [e.name for e in SHM.iterdir() if f"rc.bench{os.getpid()}-" in e.name]


# ---- what is done to messages --------------------------------------------------------------

Meddle = Callable[[Iterator[bytes]], Iterator[bytes]]


def flipped(message: bytes, at: int) -> bytes:
    """A message with another byte there."""
    changed = bytearray(message)
    changed[at] ^= 1
    return bytes(changed)


def leaves_all(messages: Iterator[bytes]) -> Iterator[bytes]:
    return messages


def flips_the_first_word(messages: Iterator[bytes]) -> Iterator[bytes]:
    return (flipped(m, 0) if number == ORDINARY else m for number, m in enumerate(messages))


def flips_the_filler(messages: Iterator[bytes]) -> Iterator[bytes]:
    return (flipped(m, 60) if number == SAMPLED else m for number, m in enumerate(messages))


def flips_the_last_word(messages: Iterator[bytes]) -> Iterator[bytes]:
    return (flipped(m, -1) if number == ORDINARY else m for number, m in enumerate(messages))


def drops_one(messages: Iterator[bytes]) -> Iterator[bytes]:
    return (message for number, message in enumerate(messages) if number != ORDINARY)


def doubles_one(messages: Iterator[bytes]) -> Iterator[bytes]:
    for number, message in enumerate(messages):
        yield message
        if number == ORDINARY:
            yield message


def swaps_two(messages: Iterator[bytes]) -> Iterator[bytes]:
    for number, message in enumerate(messages):
        if number == ORDINARY:
            yield next(messages)
        yield message


def cuts_one(messages: Iterator[bytes]) -> Iterator[bytes]:
    return (m[:-1] if number == ORDINARY else m for number, m in enumerate(messages))


WRONG: Sequence[Meddle] = (
    flips_the_first_word,
    flips_the_filler,
    flips_the_last_word,
    drops_one,
    doubles_one,
    swaps_two,
    cuts_one,
)


def ends_a_phase(message: bytes) -> bool:
    """Is this a mark of a flow, or a lone sender's last message?"""
    return int.from_bytes(message[:8], "little") >= uplink.LAST


# ---- who does it ---------------------------------------------------------------------------


def sending(transport: type[Transport], meddle: Meddle) -> type[Transport]:
    """A transport whose sender has another round than it was given, over and over."""

    def prepare(self: Transport, payloads: Sequence[bytes]) -> list[Any]:
        is_round = len(payloads) > GROUP  # else it is what ends one
        return transport.prepare(self, list(meddle(iter(payloads))) if is_round else payloads)

    return type("Sending", (transport,), {"prepare": prepare})


def bringing(transport: type[Transport], meddle: Meddle, *, lossy: bool = False) -> type[Transport]:
    """A transport that brings the receiver something else than was sent, marks and all."""

    @contextlib.contextmanager
    def receiver(self: Transport, index: int) -> Iterator[Iterator[bytes]]:
        with transport.receiver(self, index) as messages:
            yield meddle(map(bytes, messages))

    return type("Bringing", (transport,), {"receiver": receiver, "lossy": lossy})


# ---- transports ----------------------------------------------------------------------------


class SmallBatchedRing(BatchedRing):
    """One that is made quickly."""

    geometry = SmallRing.geometry


def flow(transport: type[Transport]) -> dict[str, float]:
    return flows.broadcast(transport, SIZE, 1, SECONDS)


def gather(transport: type[Transport]) -> dict[str, float]:
    return uplink.gather(transport, 2, SECONDS)


def round_trips(transport: type[Transport]) -> dict[str, float]:
    return latency.round_trips(transport, SIZE, SECONDS, "block")


def paced(transport: type[Transport]) -> dict[str, float]:
    # More messages than a round has, for what is wrong may look like one round gone.
    return latency.paced(transport, SECONDS, "block", 2560, 10_000_000)


Run = Callable[[type[Transport]], dict[str, float]]
Layer = Callable[[type[Transport], Meddle], type[Transport]]
RUNS: Sequence[tuple[Run, type[Transport], Layer]] = (
    (flow, UnixSeqpacket, bringing),
    (flow, UnixStreamGrouped, bringing),
    (flow, SmallBatchedRing, sending),
    (gather, UnixSeqpacket, sending),
    (gather, Uplink, sending),
    (round_trips, UnixSeqpacket, sending),
    (round_trips, UnixStreamGrouped, sending),
    (round_trips, SmallBatchedRing, sending),
    (paced, UnixSeqpacket, bringing),
    (paced, SmallBatchedRing, sending),
)
each_run = pytest.mark.parametrize(
    ("run", "transport", "layer"),
    [pytest.param(*case, id=f"{case[0].__name__}-{case[1].name}") for case in RUNS],
)


@each_run
def test_what_nobody_meddles_with_is_measured(
    run: Run, transport: type[Transport], layer: Layer
) -> None:
    found = run(layer(transport, leaves_all))
    assert found.get("lost", 0) == 0


@each_run
@pytest.mark.parametrize("meddle", WRONG)
def test_wrong_contents_fail_the_run(
    run: Run, transport: type[Transport], layer: Layer, meddle: Meddle
) -> None:
    with pytest.raises(RunFailedError):
        run(layer(transport, meddle))


@pytest.mark.parametrize("at", [0, 60, -1], ids=["first word", "filler", "last word"])
@pytest.mark.parametrize(
    "run", [flow, lambda t: uplink.gather(t, 1, SECONDS)], ids=["flow", "gather"]
)
def test_a_wrong_end_is_no_end(run: Run, at: int) -> None:
    def meddle(messages: Iterator[bytes]) -> Iterator[bytes]:
        return (flipped(m, at) if ends_a_phase(m) else m for m in messages)

    with pytest.raises(RunFailedError, match="is due"):
        run(bringing(UnixSeqpacket, meddle))


def test_a_message_missing_at_the_end_is_missed() -> None:
    def meddle(messages: Iterator[bytes]) -> Iterator[bytes]:
        held: list[bytes] = []
        for message in messages:
            if ends_a_phase(message):
                yield message
                held.clear()
            else:
                yield from held
                held = [message]

    with pytest.raises(RunFailedError, match="were sent"):
        flow(bringing(UnixSeqpacket, meddle))


def test_a_whole_round_is_missed() -> None:
    def meddle(messages: Iterator[bytes]) -> Iterator[bytes]:
        gone = range(uplink.WARM_UP, uplink.WARM_UP + uplink.ROUND)
        return (message for number, message in enumerate(messages) if number not in gone)

    with pytest.raises(RunFailedError, match="were sent"):
        uplink.gather(bringing(UnixSeqpacket, meddle), 1, SECONDS)


# ---- transports that may lose messages -----------------------------------------------------


@pytest.mark.parametrize(
    "meddle", [flips_the_first_word, flips_the_filler, flips_the_last_word, cuts_one]
)
def test_who_may_lose_messages_may_not_change_them(meddle: Meddle) -> None:
    with pytest.raises(RunFailedError):
        flow(bringing(UnixSeqpacket, meddle, lossy=True))


def test_what_a_lossy_one_loses_is_counted() -> None:
    def halve(messages: Iterator[bytes]) -> Iterator[bytes]:
        return (message for number, message in enumerate(messages) if number % 2 == 0)

    found = flow(bringing(UnixSeqpacket, halve, lossy=True))
    assert found["lost"] == pytest.approx(0.5, abs=0.02)


# ---- the checker by itself -----------------------------------------------------------------


def test_a_checker_counts_a_phase_and_knows_its_mark() -> None:
    what = contents(SIZE)
    checker = Checker(what, lossy=False)
    for phase, count in enumerate((0, 1, 63, 64, 65, len(what.payloads), 10_000)):
        sent = [what.payloads[i % len(what.payloads)] for i in range(count)]
        checker.read(iter([*sent, what.mark(phase)]), phase)
        assert checker.received == count


def test_a_checker_counts_rounds_as_short_as_its_sample() -> None:
    what = contents(1 << 20)
    checker = Checker(what, lossy=False)
    sent = [what.payloads[i % len(what.payloads)] for i in range(3 * len(what.payloads) + 5)]
    checker.read(iter([*sent, what.mark(0)]), 0)
    assert checker.received == len(sent)


def test_a_flow_without_its_mark_is_no_flow() -> None:
    what = contents(SIZE)
    with pytest.raises(RunFailedError, match="before their mark"):
        Checker(what, lossy=False).read(iter(what.payloads[:10]), 0)


# ---- WebSocket -----------------------------------------------------------------------------

Receive = Callable[[websocket.Load], dict[str, float]]
RECEIVERS: dict[str, Receive] = {
    "websocket-client": lambda load: ingest._client(load, websocket.websocket_client),
    "picows": lambda load: ingest._client(load, websocket.picows),
    "websockets": lambda load: ingest._client(load, websocket.websockets),
    "aiohttp": lambda load: ingest._client(load, websocket.aiohttp),
    "one by one": lambda load: ingest._ringcast(load, websocket.work),
    "batches": lambda load: ingest._ringcast(load, websocket.work_in_batches),
    "checked": lambda load: ingest._ringcast(load, websocket.check_all),
    "published": lambda load: ingest._published(load, websocket.CAPACITY),
}
each_receiver = pytest.mark.parametrize("receiver", RECEIVERS)


def present(receiver: str) -> Receive:
    if receiver in ingest.PEERS and not websocket.is_installed(receiver):
        pytest.skip(f"{receiver} is not installed")
    return RECEIVERS[receiver]


def load_of(meddle: Meddle) -> websocket.Load:
    """A round of frames that was meddled with, over and over. What is flipped of a frame is in its
    payload, whose filler begins at its 14th byte."""
    return websocket.Load(FLOOD_SECONDS, list(meddle(iter(websocket.pieces(1)))))


@each_receiver
def test_a_flood_that_nobody_meddles_with_is_measured(receiver: str) -> None:
    assert present(receiver)(load_of(leaves_all))["rate"] > 0


@each_receiver
@pytest.mark.parametrize("meddle", [flips_the_filler, flips_the_last_word, drops_one])
def test_a_wrong_flood_fails_the_run(receiver: str, meddle: Meddle) -> None:
    receive = present(receiver)
    with pytest.raises(RunFailedError):
        receive(load_of(meddle))


@each_receiver
def test_a_flood_shorter_than_the_server_says_fails_the_run(receiver: str) -> None:
    receive = present(receiver)
    load = dataclasses.replace(load_of(leaves_all), messages=2 * websocket.BLOCK)
    with pytest.raises(RunFailedError):
        receive(load)


# ---- children that fail, and that die ------------------------------------------------------


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("this process outlived SIGKILL")


def dies(messages: Iterator[bytes]) -> Iterator[bytes]:
    return (die() if number == ORDINARY else m for number, m in enumerate(messages))


class SenderDies(SmallRing):
    """Its sender dies while it sends."""

    @contextlib.contextmanager
    def sender(self) -> Iterator[Outlet]:
        with super().sender() as outlet:

            def send(payload: bytes) -> None:
                if payload == contents(self.size).payloads[ORDINARY]:
                    die()
                outlet.send(payload)

            yield Outlet(send)


@pytest.mark.parametrize(
    "transport", [SenderDies, bringing(SmallRing, dies)], ids=["sender", "receivers"]
)
def test_a_child_that_is_killed_fails_the_run(transport: type[Transport]) -> None:
    with pytest.raises(RunFailedError):
        flows.broadcast(transport, SIZE, 2, SECONDS)


def dies_at_once(_channel: Channel) -> None:
    die()


def dies_unhearing(channel: Channel) -> None:
    channel.has_word(DEADLINE)
    die()


def just_hears(channel: Channel) -> None:
    channel.hear()


def hears_it(group: Crew) -> None:
    group.start(dies_at_once).hear()


def tells_it_and_hears_it(group: Crew) -> None:
    child = group.start(dies_unhearing)
    child.tell()
    child.hear()


def tells_it(group: Crew) -> None:
    child = group.start(dies_at_once)
    group.processes[0].join(DEADLINE)
    child.tell()


def hears_another(group: Crew) -> None:
    other = group.start(just_hears)
    group.start(dies_at_once)
    other.hear()


def hears_nobody(group: Crew) -> None:
    group.start(dies_at_once)


@pytest.mark.parametrize(
    "leader", [hears_it, tells_it_and_hears_it, tells_it, hears_another, hears_nobody]
)
def test_a_dead_child_fails_the_run_whatever_its_leader_does(
    leader: Callable[[Crew], None],
) -> None:
    with pytest.raises(RunFailedError, match="ended with -9"), crew(SECONDS) as group:
        leader(group)


def cannot(_channel: Channel, number: int) -> None:
    raise ValueError(f"there is no {number}")


def hears_who_cannot(group: Crew) -> None:
    group.start(cannot, 7).hear()


def hears_another_than_who_cannot(group: Crew) -> None:
    other = group.start(just_hears)
    group.start(cannot, 7)
    other.hear()


def hears_not_who_cannot(group: Crew) -> None:
    group.start(just_hears)
    group.start(cannot, 7)


@pytest.mark.parametrize(
    "leader", [hears_who_cannot, hears_another_than_who_cannot, hears_not_who_cannot]
)
def test_why_a_child_failed_is_told(leader: Callable[[Crew], None]) -> None:
    with pytest.raises(RunFailedError, match="ValueError") as told, crew(SECONDS) as group:
        leader(group)
    assert "in cannot\n" in str(told.value)
    assert "there is no 7" in str(told.value)


def test_children_end_with_a_benchmark_that_is_killed() -> None:
    """Also one that waits where the signal to end may come to another thread."""
    program = """
from multiprocessing import get_context
from ringcast.benchmarks.method import crew

def fill(channel, queue):
    channel.tell()
    while True:
        queue.put(bytes(1000))

with crew(600) as group:
    child = group.start(fill, get_context("fork").Queue(4))
    child.hear()
    print("there", flush=True)
    child.hear()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.kill()
        assert process.communicate(timeout=DEADLINE)[0] == b""  # nobody has it open any more

"""The benchmarks' checks: wrong contents and lost messages fail the run, whatever carried them, and
nothing else does. A run also fails if a child fails or dies."""

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

from ringcast.benchmarks import flows, ingest, latency, processes, uplink
from ringcast.benchmarks.errors import RunFailedError
from ringcast.benchmarks.payloads import Checker, contents
from ringcast.benchmarks.processes import Channel, Children, child_processes
from ringcast.benchmarks.transports import BATCH_SIZE, LinkSender, Transport
from ringcast.benchmarks.transports.rings import BatchedRing, SmallRing, Uplink
from ringcast.benchmarks.transports.stdlib import UnixSeqpacket, UnixStreamGrouped
from ringcast.benchmarks.websocket import clients, ringcast_side
from ringcast.benchmarks.websocket.frames import ROUND, round_in_writes
from ringcast.benchmarks.websocket.server import Load
from tests.conftest import DEADLINE, SHM

SIZE = 128
SECONDS = 0.02
FLOOD_SECONDS = 0.01
SAMPLED = 128
"""The number of a message that receivers compare whole."""
ORDINARY = 100
"""The number of a message of which they compare only the first and the last word."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits look sooner whether another process has failed. Benchmarks must not be disturbed so."""
    monkeypatch.setattr(processes, "POLL_INTERVAL_S", 0.01)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No run leaves a process, or anything in /dev/shm."""
    yield
    assert not multiprocessing.active_children()
    assert not [e.name for e in SHM.iterdir() if f"rc.bench{os.getpid()}-" in e.name]


# ---- tampering with messages ---------------------------------------------------------------

Tamper = Callable[[Iterator[bytes]], Iterator[bytes]]


def flipped(message: bytes, at: int) -> bytes:
    """The message with one byte changed."""
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


WRONG: Sequence[Tamper] = (
    flips_the_first_word,
    flips_the_filler,
    flips_the_last_word,
    drops_one,
    doubles_one,
    swaps_two,
    cuts_one,
)


def ends_a_phase(message: bytes) -> bool:
    """Whether this is a mark of a flow, or the last message of a lone sender."""
    return int.from_bytes(message[:8], "little") >= uplink.LAST


# ---- transports that tamper ----------------------------------------------------------------


def sending(transport: type[Transport], tamper: Tamper) -> type[Transport]:
    """A transport whose sender sends another round than it was given, over and over."""

    def prepare(self: Transport, payloads: Sequence[bytes]) -> list[Any]:
        is_round = len(payloads) > BATCH_SIZE  # otherwise it is what ends one
        return transport.prepare(self, list(tamper(iter(payloads))) if is_round else payloads)

    return type("Sending", (transport,), {"prepare": prepare})


def bringing(transport: type[Transport], tamper: Tamper, *, lossy: bool = False) -> type[Transport]:
    """A transport whose receiver gets something else than was sent, marks included."""

    @contextlib.contextmanager
    def receiver(self: Transport, index: int) -> Iterator[Iterator[bytes]]:
        with transport.receiver(self, index) as messages:
            yield tamper(map(bytes, messages))

    return type("Bringing", (transport,), {"receiver": receiver, "lossy": lossy})


# ---- transports ----------------------------------------------------------------------------


class SmallBatchedRing(BatchedRing):
    """A ring that is made quickly."""

    geometry = SmallRing.geometry


def flow(transport: type[Transport]) -> dict[str, float]:
    return flows.broadcast(transport, SIZE, 1, SECONDS)


def gather(transport: type[Transport]) -> dict[str, float]:
    return uplink.gather(transport, 2, SECONDS)


def round_trips(transport: type[Transport]) -> dict[str, float]:
    return latency.round_trips(transport, SIZE, SECONDS, "block")


def paced(transport: type[Transport]) -> dict[str, float]:
    # More messages than a round has, because an error may look like a missing round.
    return latency.paced(transport, SECONDS, "block", 2560, 10_000_000)


Run = Callable[[type[Transport]], dict[str, float]]
Layer = Callable[[type[Transport], Tamper], type[Transport]]
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
def test_an_untampered_run_is_measured(run: Run, transport: type[Transport], layer: Layer) -> None:
    found = run(layer(transport, leaves_all))
    assert found.get("lost", 0) == 0


@each_run
@pytest.mark.parametrize("tamper", WRONG)
def test_wrong_contents_fail_the_run(
    run: Run, transport: type[Transport], layer: Layer, tamper: Tamper
) -> None:
    with pytest.raises(RunFailedError):
        run(layer(transport, tamper))


@pytest.mark.parametrize("at", [0, 60, -1], ids=["first word", "filler", "last word"])
@pytest.mark.parametrize(
    "run", [flow, lambda t: uplink.gather(t, 1, SECONDS)], ids=["flow", "gather"]
)
def test_a_wrong_end_is_no_end(run: Run, at: int) -> None:
    def tamper(messages: Iterator[bytes]) -> Iterator[bytes]:
        return (flipped(m, at) if ends_a_phase(m) else m for m in messages)

    with pytest.raises(RunFailedError, match="is due"):
        run(bringing(UnixSeqpacket, tamper))


def test_a_message_missing_at_the_end_is_noticed() -> None:
    def tamper(messages: Iterator[bytes]) -> Iterator[bytes]:
        held: list[bytes] = []
        for message in messages:
            if ends_a_phase(message):
                yield message
                held.clear()
            else:
                yield from held
                held = [message]

    with pytest.raises(RunFailedError, match="were sent"):
        flow(bringing(UnixSeqpacket, tamper))


def test_a_missing_round_is_noticed() -> None:
    def tamper(messages: Iterator[bytes]) -> Iterator[bytes]:
        gone = range(uplink.WARM_UP, uplink.WARM_UP + uplink.ROUND)
        return (message for number, message in enumerate(messages) if number not in gone)

    with pytest.raises(RunFailedError, match="were sent"):
        uplink.gather(bringing(UnixSeqpacket, tamper), 1, SECONDS)


# ---- transports that may lose messages -----------------------------------------------------


@pytest.mark.parametrize(
    "tamper", [flips_the_first_word, flips_the_filler, flips_the_last_word, cuts_one]
)
def test_a_lossy_transport_may_not_change_messages(tamper: Tamper) -> None:
    with pytest.raises(RunFailedError):
        flow(bringing(UnixSeqpacket, tamper, lossy=True))


def test_lost_messages_are_counted() -> None:
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

Receive = Callable[[Load], dict[str, float]]
RECEIVERS: dict[str, Receive] = {
    "websocket-client": lambda load: ingest.run_client(load, clients.check_websocket_client),
    "picows": lambda load: ingest.run_client(load, clients.check_picows),
    "websockets": lambda load: ingest.run_client(load, clients.check_websockets),
    "aiohttp": lambda load: ingest.run_client(load, clients.check_aiohttp),
    "one by one": lambda load: ingest.run_ringcast(load, ringcast_side.check_messages),
    "batches": lambda load: ingest.run_ringcast(load, ringcast_side.check_batches),
    "batches, rarely": lambda load: ingest.run_ringcast(load, ringcast_side.check_batches_rarely),
    "manager alone": lambda load: ingest.run_manager_alone(load, ringcast_side.CAPACITY_BYTES),
}
each_receiver = pytest.mark.parametrize("receiver", RECEIVERS)


def present(receiver: str) -> Receive:
    if receiver in ingest.PEERS and not clients.is_installed(receiver):
        pytest.skip(f"{receiver} is not installed")
    return RECEIVERS[receiver]


def load_of(tamper: Tamper) -> Load:
    """A round of frames that was tampered with, over and over. What is flipped is in the payload of
    a frame, whose filler begins at byte 13."""
    return Load(FLOOD_SECONDS, list(tamper(iter(round_in_writes(1)))))


@each_receiver
def test_an_untampered_flood_is_measured(receiver: str) -> None:
    assert present(receiver)(load_of(leaves_all))["rate"] > 0


@each_receiver
@pytest.mark.parametrize("tamper", [flips_the_filler, flips_the_last_word, drops_one])
def test_a_wrong_flood_fails_the_run(receiver: str, tamper: Tamper) -> None:
    receive = present(receiver)
    with pytest.raises(RunFailedError):
        receive(load_of(tamper))


@each_receiver
def test_a_flood_shorter_than_the_server_reports_fails_the_run(receiver: str) -> None:
    receive = present(receiver)
    load = dataclasses.replace(load_of(leaves_all), messages=2 * ROUND)
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
    def sender(self) -> Iterator[LinkSender]:
        with super().sender() as link_sender:

            def send(payload: bytes) -> None:
                if payload == contents(self.size).payloads[ORDINARY]:
                    die()
                link_sender.send(payload)

            yield LinkSender(send)


@pytest.mark.parametrize(
    "transport", [SenderDies, bringing(SmallRing, dies)], ids=["sender", "receivers"]
)
def test_a_child_that_is_killed_fails_the_run(transport: type[Transport]) -> None:
    with pytest.raises(RunFailedError):
        flows.broadcast(transport, SIZE, 2, SECONDS)


def dies_at_once(_channel: Channel) -> None:
    die()


def dies_without_receiving(channel: Channel) -> None:
    channel.has_message(DEADLINE)
    die()


def only_receives(channel: Channel) -> None:
    channel.receive()


def receives(children: Children) -> None:
    children.start(dies_at_once).receive()


def sends_and_receives(children: Children) -> None:
    child = children.start(dies_without_receiving)
    child.send()
    child.receive()


def sends(children: Children) -> None:
    child = children.start(dies_at_once)
    children.processes[0].join(DEADLINE)
    child.send()


def receives_from_another(children: Children) -> None:
    other = children.start(only_receives)
    children.start(dies_at_once)
    other.receive()


def receives_nothing(children: Children) -> None:
    children.start(dies_at_once)


@pytest.mark.parametrize(
    "leader", [receives, sends_and_receives, sends, receives_from_another, receives_nothing]
)
def test_a_dead_child_fails_the_run_whatever_its_leader_does(
    leader: Callable[[Children], None],
) -> None:
    with pytest.raises(RunFailedError, match="ended with -9"), child_processes(SECONDS) as children:
        leader(children)


def cannot(_channel: Channel, number: int) -> None:
    raise ValueError(f"there is no {number}")


def receives_from_the_failing(children: Children) -> None:
    children.start(cannot, 7).receive()


def receives_from_another_than_the_failing(children: Children) -> None:
    other = children.start(only_receives)
    children.start(cannot, 7)
    other.receive()


def receives_nothing_of_the_failing(children: Children) -> None:
    children.start(only_receives)
    children.start(cannot, 7)


@pytest.mark.parametrize(
    "leader",
    [
        receives_from_the_failing,
        receives_from_another_than_the_failing,
        receives_nothing_of_the_failing,
    ],
)
def test_why_a_child_failed_is_reported(leader: Callable[[Children], None]) -> None:
    with (
        pytest.raises(RunFailedError, match="ValueError") as raised,
        child_processes(SECONDS) as children,
    ):
        leader(children)
    assert "in cannot\n" in str(raised.value)
    assert "there is no 7" in str(raised.value)


def test_children_end_with_a_benchmark_that_is_killed() -> None:
    """Also one that waits where the signal to end may come to another thread."""
    program = """
from multiprocessing import get_context
from ringcast.benchmarks.processes import child_processes

def fill(channel, queue):
    channel.send()
    while True:
        queue.put(bytes(1000))

with child_processes(600) as children:
    child = children.start(fill, get_context("fork").Queue(4))
    child.receive()
    print("there", flush=True)
    child.receive()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.kill()
        assert process.communicate(timeout=DEADLINE)[0] == b""  # nobody has it open any more

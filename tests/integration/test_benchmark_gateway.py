"""The benchmark of the gateway: its client finds whatever is wrong; every server delivers all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, unix_serve

from ringcast.benchmarks import flows, gateway, gateway_paced, gateway_ring, processes, programs
from ringcast.benchmarks.errors import RunFailedError
from ringcast.benchmarks.gateway_client import (
    SIZE,
    ClientResult,
    ReceivingEnd,
    figures_of_flow,
    flow_contents,
)
from ringcast.benchmarks.gateway_servers import PEERS, AiohttpJoined, Peer, Websockets
from ringcast.benchmarks.processes import Channel, child_processes
from ringcast.benchmarks.report import Plan
from ringcast.benchmarks.websocket.frames import end_payload, frame
from tests.conftest import SHM

SECONDS = 0.02
COUNT = 200
ORDINARY = 100
"""The number of a message of which the client compares the first and the last word."""
SAMPLED = 128
"""The number of one that it compares whole."""
SUBPROTOCOL = "ringcast.1"
RECORDS_PER_FRAME = 50

Messages = list[bytes]
Tamper = Callable[[Messages], Messages]
Talk = Callable[[ServerConnection], object]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits look sooner whether another process has failed. Benchmarks must not be disturbed so."""
    monkeypatch.setattr(processes, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(programs, "POLL_INTERVAL_S", 0.01)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No run leaves a process, or anything in /dev/shm."""
    yield
    assert not multiprocessing.active_children()
    assert not [e.name for e in SHM.iterdir() if f"rc.bench{os.getpid()}-" in e.name]


@pytest.fixture(scope="module")
def end() -> Iterator[ReceivingEnd]:
    with ReceivingEnd.compiled() as compiled:
        if compiled is None:
            pytest.skip("there is no C compiler")
        yield compiled


# ---- a server that sends what a test wants -------------------------------------------------


def _serve(_channel: Channel, listener: socket.socket, talk: Talk) -> None:
    def select(_connection: ServerConnection, offered: Sequence[Any]) -> Any:
        return SUBPROTOCOL if SUBPROTOCOL in offered else None

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(OSError):  # a client that found something wrong has gone
            talk(connection)

    with unix_serve(
        handle, sock=listener, compression=None, ping_interval=None, select_subprotocol=select
    ) as server:
        server.serve_forever()


def result(end: ReceivingEnd, folder: Path, talk: Talk, *options: str) -> ClientResult:
    """What a client of a server that talks so found."""
    with child_processes(SECONDS) as children, socket.socket(socket.AF_UNIX) as listener:
        path = folder / "server"
        listener.bind(str(path))
        listener.listen()
        server = children.start(_serve, listener, talk)
        (found,) = end.start(children, folder, f"unix:{path}", 1, *options).results()
        children.stop(server)
    return found


def sends(data: bytes) -> Talk:
    """Sends bytes, and then a close frame."""
    return lambda connection: connection.socket.sendall(data)


def breaks_off(data: bytes) -> Talk:
    """Sends bytes, and nothing more."""

    def talk(connection: ServerConnection) -> None:
        connection.socket.sendall(data)
        connection.socket.shutdown(socket.SHUT_RDWR)

    return talk


def in_frames(messages: Messages) -> bytes:
    return b"".join(frame(message, is_text=False) for message in messages)


def record(payload: bytes, *, kind: int = 2, gap: int = 0, type_: int = 1, total: int = 0) -> bytes:
    header = (len(payload), type_, kind, 0, 0, 0, gap, 0, 1, total or len(payload), 0, 0, 0)
    return struct.pack("<IHHQQQQIIIIII", *header) + payload


def in_records(records: list[bytes]) -> bytes:
    return in_frames(
        [
            b"".join(records[i : i + RECORDS_PER_FRAME])
            for i in range(0, len(records), RECORDS_PER_FRAME)
        ]
    )


def as_records(messages: Messages) -> bytes:
    return in_records([record(message) for message in messages])


FORMS: dict[str, tuple[Callable[[Messages], bytes], Sequence[str]]] = {
    "frames": (in_frames, ()),
    "records": (as_records, ("--ringcast-1",)),
}
each_form = pytest.mark.parametrize("form", FORMS)


def flow(count: int = COUNT) -> Messages:
    payloads = flow_contents().payloads
    return [payloads[i % len(payloads)] for i in range(count)]


# ---- the client ----------------------------------------------------------------------------


def flips(number: int, at: int) -> Tamper:
    def tamper(messages: Messages) -> Messages:
        changed = bytearray(messages[number])
        changed[at] ^= 1
        return [*messages[:number], bytes(changed), *messages[number + 1 :]]

    return tamper


WRONG: dict[str, Tamper] = {
    "the counter": flips(ORDINARY, 0),
    "the filler": flips(SAMPLED, 60),
    "the last word": flips(ORDINARY, -1),
    "one left out": lambda m: [*m[:ORDINARY], *m[ORDINARY + 1 :]],
    "the last left out": lambda m: m[:-1],
    "one twice": lambda m: [*m[: ORDINARY + 1], *m[ORDINARY:]],
    "two swapped": lambda m: [*m[:ORDINARY], m[ORDINARY + 1], m[ORDINARY], *m[ORDINARY + 2 :]],
    "one cut": lambda m: [*m[:ORDINARY], m[ORDINARY][:-1], *m[ORDINARY + 1 :]],
    "one empty": lambda m: [*m[:ORDINARY], b"", *m[ORDINARY + 1 :]],
}


@each_form
def test_a_client_counts_what_it_gets(end: ReceivingEnd, tmp_path: Path, form: str) -> None:
    encode, options = FORMS[form]
    count = len(flow_contents().payloads) + COUNT
    found = result(end, tmp_path, sends(encode([*flow(count), end_payload(count)])), *options)
    assert (found.received, found.missed, found.close) == (count, 0, 0)
    assert found.bytes > count * SIZE
    assert 0 < found.began_ns <= found.ended_ns
    assert found.cpu_seconds > 0


@each_form
@pytest.mark.parametrize("wrong", WRONG)
def test_a_client_finds_wrong_messages(
    end: ReceivingEnd, tmp_path: Path, form: str, wrong: str
) -> None:
    encode, options = FORMS[form]
    messages = [*WRONG[wrong](flow()), end_payload(COUNT)]
    with pytest.raises(RunFailedError, match=r"ended with 65: (after \d+ messages|200 messages)"):
        result(end, tmp_path, sends(encode(messages)), *options)


def test_a_client_notices_a_round_that_is_missing(end: ReceivingEnd, tmp_path: Path) -> None:
    size = len(flow_contents().payloads)
    messages = [*flow(size), end_payload(2 * size)]
    with pytest.raises(RunFailedError, match="8192 messages were sent, and 4096 came"):
        result(end, tmp_path, sends(in_frames(messages)))


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        (sends(in_frames(flow())), "closed with 1000 after 200 messages"),
        (sends(in_frames(flow()) + b"\x88\x02\x03\xf5"), "closed with 1013 after 200 messages"),
        (breaks_off(in_frames(flow())[:-1]), "ended after 199 messages"),
        (sends(b"\x82\x84\x00\x00\x00\x00mask"), "begins with 82 84"),
        (sends(b"\x02\x01a\x80\x01b"), "begins with 02 01"),
        (sends(b"\xc1\x01a"), "begins with c1 01"),
    ],
    ids=["no end", "cut off", "breaks off", "masked", "fragmented", "reserved bit"],
)
def test_a_client_takes_only_a_whole_stream(
    end: ReceivingEnd, tmp_path: Path, talk: Talk, why: str
) -> None:
    with pytest.raises(RunFailedError, match=f"ended with 65: .*{why}"):
        result(end, tmp_path, talk)


def test_a_lossy_client_may_be_cut_off(end: ReceivingEnd, tmp_path: Path) -> None:
    cut = in_frames(flow()) + b"\x88\x02\x03\xf5"
    found = result(end, tmp_path, sends(cut), "--lossy")
    assert (found.received, found.close) == (COUNT, 1013)


def test_a_client_answers_pings(end: ReceivingEnd, tmp_path: Path) -> None:
    def talk(connection: ServerConnection) -> None:
        connection.ping("there?").wait()
        connection.socket.sendall(in_frames([*flow(), end_payload(COUNT)]))

    assert result(end, tmp_path, talk).received == COUNT


def test_a_client_that_is_timed_notes_when_each_message_came(
    end: ReceivingEnd, tmp_path: Path
) -> None:
    times = tmp_path / "times"
    data = in_frames([*flow(), end_payload(COUNT)])
    found = result(end, tmp_path, sends(data), "--times", str(times))
    noted = np.fromfile(times, np.int64)
    assert len(noted) == COUNT
    assert (np.diff(noted) >= 0).all()
    assert found.began_ns == noted[0] <= noted[-1] <= found.ended_ns


def test_a_client_without_the_subprotocol_is_no_client(end: ReceivingEnd, tmp_path: Path) -> None:
    with (
        pytest.raises(RunFailedError, match=r"does not speak ringcast\.1"),
        gateway_ring.load_of(SECONDS).serve(1) as (children, _, address),
    ):
        end.start(children, tmp_path, f"127.0.0.1:{address.port}", 1, "--ringcast-1")


def test_a_client_takes_gaps_only_if_it_is_lossy(end: ReceivingEnd, tmp_path: Path) -> None:
    messages = flow()
    records = [
        record(b'{"ring": "md"}', type_=7),
        *(record(message) for message in messages[:100]),
        record(b"{}", kind=16),
        record(messages[103], gap=3),
        *(record(message) for message in messages[104:]),
        record(b"", type_=4, gap=5),
        record(end_payload(COUNT + 5)),
    ]
    data = in_records(records)
    found = result(end, tmp_path, sends(data), "--ringcast-1", "--lossy")
    assert (found.received, found.missed) == (COUNT - 3, 8)
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(RunFailedError, match="after 100 messages, 3 are missing"):
        result(end, again, sends(data), "--ringcast-1")


@pytest.mark.parametrize(
    "records", [[record(flow()[0], total=256)], [record(b"x" * 100)[:-1]]], ids=["part", "cut"]
)
def test_a_client_takes_only_whole_records(
    end: ReceivingEnd, tmp_path: Path, records: list[bytes]
) -> None:
    with pytest.raises(RunFailedError, match="ended with 65: after 0 messages"):
        result(end, tmp_path, sends(in_records(records)), "--ringcast-1")


def test_a_client_that_got_fewer_than_were_sent_fails_the_run() -> None:
    found = ClientResult(5, 1.0, 1.0, 0, 0, 1000, 1, 2, 0)
    assert figures_of_flow([found, found], 5, 1.0)["server"] == pytest.approx(1e5)
    with pytest.raises(RunFailedError, match=r"6 messages were sent, and \[5, 5\] came"):
        figures_of_flow([found, found], 6, 1.0)


# ---- the servers ---------------------------------------------------------------------------


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_each_server_delivers_all_to_three(end: ReceivingEnd, peer: type[Peer]) -> None:
    if (why := peer.missing()) is not None:
        pytest.skip(why)
    found = gateway.run_peer(end, peer, 3, SECONDS)
    assert all(found[what] > 0 for what in ("rate", "server", "client"))


@pytest.mark.parametrize("wrong", ["one left out", "one twice", "the filler"])
def test_a_server_that_sends_something_else_fails_the_run(end: ReceivingEnd, wrong: str) -> None:
    async def send(self: Websockets, messages: Sequence[bytes]) -> None:
        several = len(messages) > 1  # otherwise it is the end
        await Websockets.send(self, WRONG[wrong](list(messages)) if several else messages)

    tampering = type("Tampering", (Websockets,), {"send": send, "batch": COUNT})
    with pytest.raises(RunFailedError, match="ended with 65"):
        gateway.run_peer(end, tampering, 2, SECONDS)


# ---- the gateway ---------------------------------------------------------------------------

needs_gateway = pytest.mark.skipif(
    gateway_ring.missing() is not None, reason=str(gateway_ring.missing())
)


@needs_gateway
@pytest.mark.parametrize("options", [(), ("--ringcast-1",)], ids=["plain", SUBPROTOCOL])
def test_published_messages_are_delivered(end: ReceivingEnd, options: Sequence[str]) -> None:
    assert gateway.run_published(end, 2, SECONDS, *options)["rate"] > 0


@needs_gateway
def test_received_messages_are_delivered(end: ReceivingEnd) -> None:
    assert gateway.run_received(end, 2, SECONDS)["rate"] > 0


@needs_gateway
@pytest.mark.parametrize(
    "way", [gateway_ring.Attached, gateway_ring.AttachedOverSocket, gateway_ring.AttachedToQueue]
)
def test_a_feed_is_measured(way: type[gateway_ring.Attached]) -> None:
    assert flows.broadcast(way, SIZE, 1, SECONDS)["rate"] > 0


@needs_gateway
def test_what_a_gateway_costs_a_manager_is_measured(
    end: ReceivingEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_paced, "CLIENTS", 3)
    monkeypatch.setattr(gateway_paced, "STOPPED", 1)
    found = gateway_paced.run(end, tmp_path, SECONDS)
    assert found["with a gateway: cpu"] > 0
    assert found["with a gateway: client p50"] > 0


def test_a_manager_without_a_gateway_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_paced, "SECONDS_LEAST", 0.1)
    found = gateway_paced.run(None, tmp_path, SECONDS)
    assert 0 < found["without: manager p50"] <= found["without: manager p99"]
    assert found["without: cpu"] > 0


# ---- the scenario --------------------------------------------------------------------------


def test_the_scenario_reports_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = (Websockets, AiohttpJoined)
    monkeypatch.setattr(gateway, "PEERS", peers)
    monkeypatch.setattr(gateway, "BRIEF_CLIENTS", (1, 2))
    monkeypatch.setattr(gateway_ring, "missing", lambda: "there is none")
    report = gateway.measure(Plan(SECONDS, 1, brief=True))
    names = {figure.name for figures in report.groups.values() for figure in figures}
    assert names == {f"{p.name} | {n}" for p in peers for n in ("1 client", "2 clients")}
    assert report.parameters["not measured"] == {"gateway": "there is none"}


def test_ratios_have_floors() -> None:
    rates = {f"rate: {gateway.PUBLISHED} | 4 clients": [9.0, 9.0]}
    rates |= {f"rate: {peer.name} | 4 clients": [1.0, 1.0] for peer in PEERS}
    rates |= {f"server: {name} | 4 clients": [1.0, 1.0] for name in (gateway.PUBLISHED, "picows")}
    groups = gateway.groups_of(rates, (4,))
    ratios = groups["messages per second to each client, gateway / other"]
    assert [(figure.floor, figure.met) for figure in ratios] == [(8, True), (2, True), (1.5, True)]
    (cost,) = groups["server's CPU time per message and client, gateway / other"]
    assert (cost.floor, cost.met) == (0.2, False)

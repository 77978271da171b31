"""Whatever a server sends (RFC 6455), byte for byte: what workers get, and how the client answers.

Each case of the table is sent whole, byte by byte and amid other messages, over plain TCP and over
TLS, where each write is a record and so is received on its own. The default run sends each whole
over the one to a manager of its own, and all byte by byte over the other to one manager.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings

from ringcast import Config, Feed, Manager, attach, shm
from ringcast.broker.manager import ManagerError
from tests.conftest import DEADLINE
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, header

from .rawserver import Frame, Peer, RawServer, make_certificate
from .rfc6455_cases import (
    CAPACITY,
    FAULTS,
    GOES_ON,
    HALF_CLOSED,
    LENGTHS,
    NO_FRAME,
    STARTED,
    TABLE,
    WRONG,
    Case,
    Message,
    amid,
    answers_to,
    byte_by_byte,
    code_only,
    finished,
    halves,
    no_utf8,
    noise,
    whole,
)
from .rfc6455_model import Model, conversations

ENDED: Final = "the server closed the socket without a close frame"


# ---- a manager, a worker and a server ------------------------------------------------------


@pytest.fixture(scope="module", params=["plain", "tls"])
def certificate(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path] | None:
    if request.param == "plain":
        return None
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(certificate: tuple[Path, Path] | None) -> Iterator[RawServer]:
    """One of each kind. A manager may have begun to connect anew when it is stopped, so no other
    test's client may be waiting here."""
    server = RawServer(certificate)
    yield server
    server.close()


SMALL: Final = {"slots": 1024, "capacity": CAPACITY, "max_readers": 1, "max_senders": 1}
"""For one worker: most of a case's time goes into making the ring and the uplink."""


def config(name: str, server: RawServer, **options: Any) -> Config:
    """No pings of the client's own, and one connection."""
    plan = {"reconnect": False, "ping_interval": None, **SMALL}
    return Config(name=name, url=server.url, ca=server.ca, **(plan | options))


@dataclass
class Session:
    """A manager that runs in a thread, and a worker in another that reads all of it."""

    manager: Manager
    ran: Future[None]
    received: Future[list[Message]]

    def error(self) -> str | None:
        """What the manager stopped for; it has to have ended."""
        error = self.ran.exception(DEADLINE)
        assert error is None or isinstance(error, ManagerError), error
        return None if error is None else str(error)

    def messages(self) -> list[Message]:
        """What the server sent; the ring has to have ended."""
        return [m for m in self.received.result(DEADLINE) if m[0] is not shm.Kind.EVENT]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The manager's records of this kind."""
        every = self.received.result(DEADLINE)
        records = [json.loads(payload) for kind, payload in every if kind is shm.Kind.EVENT]
        assert records[-1]["event"] == "stopped"
        return [record for record in records if record["event"] == event]


def read_all(feed: Feed) -> list[Message]:
    with feed:
        return [(shm.Kind(message.kind), bytes(message)) for message in feed]


@contextmanager
def running(configured: Config) -> Iterator[Session]:
    """Run a manager; the worker is attached before it connects."""
    manager = Manager(configured)
    attached: Future[Feed] = Future()

    def ready() -> None:
        attached.set_result(attach(configured.name, start="oldest", events=True))

    with ThreadPoolExecutor(2) as pool:
        ran = pool.submit(manager.run, on_ready=ready)
        try:
            yield Session(manager, ran, pool.submit(read_all, attached.result(DEADLINE)))
        except BaseException:
            manager.stop()
            manager.stop()
            raise


def brief(messages: Iterable[Message]) -> list[tuple[str, int, bytes]]:
    """Messages as a failed comparison can show them."""
    return [
        (
            kind.name,
            len(payload),
            payload if len(payload) < 200 else hashlib.sha256(payload).digest(),
        )
        for kind, payload in messages
    ]


# ---- checks --------------------------------------------------------------------------------


def check_answers(peer: Peer, case: Case) -> None:
    """The client answers as it has to, and sends nothing after its close frame."""
    answers = peer.answers()
    peer.shut()
    assert peer.frame() is None
    assert code_only(answers) == answers_to(case)


def check_end(session: Session, *cases: Case) -> None:
    """One connection a case, and they delivered what they had to."""
    assert brief(session.messages()) == brief(m for case in cases for m in case.delivers)
    lost = [((e["code"], e["reason"]), e["error"]) for e in session.events("disconnected")]
    assert lost == [(case.reported, case.error) for case in cases]


def check(configured: Config, server: RawServer, case: Case, pieces: list[bytes]) -> None:
    """Send a case; it is the manager's only connection, so its error is the manager's."""
    with running(configured) as session, server.accept() as peer:
        peer.send(*pieces)
        check_answers(peer, case)
    check_end(session, case)
    assert session.error() == case.error
    assert [e["error"] for e in session.events("stopped")] == [case.error]


def check_in_turn(name: str, server: RawServer, cases: list[tuple[Case, list[bytes]]]) -> None:
    """Send cases to one manager, which connects anew for each."""
    again = config(name, server, reconnect=True, reconnect_delay=0.001, reconnect_delay_max=0.001)
    with running(again) as session:
        for case, pieces in cases:
            with server.accept() as peer:
                peer.send(*pieces)
                check_answers(peer, case)
        session.manager.stop()
    check_end(session, *(case for case, _ in cases))
    assert session.error() is None


# ---- the table -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("certificate", "way"),
    [
        pytest.param("plain", whole, id="plain-whole"),
        pytest.param("tls", byte_by_byte, id="tls-byte_by_byte", marks=pytest.mark.stress),
        # TCP joins most of the bytes again, and what is in one record is in one write, too.
        pytest.param("plain", byte_by_byte, id="plain-byte_by_byte", marks=pytest.mark.stress),
        pytest.param("tls", whole, id="tls-whole", marks=pytest.mark.stress),
    ],
    indirect=["certificate"],
)
def test_case(
    name: str, server: RawServer, case: Case, way: Callable[[bytes], list[bytes]]
) -> None:
    case = finished(case)
    check(config(name, server), server, case, way(case.data))


@pytest.mark.parametrize("certificate", ["tls"], indirect=True)
def test_each_case_byte_by_byte(name: str, server: RawServer) -> None:
    """One connection after the other."""
    cases = [finished(case) for case in TABLE]
    check_in_turn(name, server, [(case, byte_by_byte(case.data)) for case in cases])


def test_all_that_goes_on_in_one_write(name: str, server: RawServer) -> None:
    cases = [case for case in TABLE if case.code == GOES_ON]
    everything = Case(
        "everything",
        b"".join(case.data for case in cases),
        tuple(m for case in cases for m in case.delivers),
        tuple(p for case in cases for p in case.pongs),
    )
    case = finished(everything)
    check(config(name, server), server, case, [case.data])


def test_each_case_amid_others_in_one_write(name: str, server: RawServer) -> None:
    """Also one connection after the other: nothing of one is left when the next begins."""
    cases = [finished(amid(case)) for case in TABLE]
    check_in_turn(name, server, [(case, [case.data]) for case in cases])


# TCP joins most writes again, and the fragments are the same.
@pytest.mark.parametrize(
    "certificate", ["tls", pytest.param("plain", marks=pytest.mark.stress)], indirect=True
)
def test_wrong_text_cut_everywhere(name: str, server: RawServer) -> None:
    """In two fragments, of which the second is never whole; and in two writes."""
    cases: list[tuple[Case, list[bytes]]] = []
    for wrong in WRONG:
        begins = "é".encode() + wrong
        for first, rest in halves(begins):
            if rest:  # the first byte that is wrong is the last
                data = [frame(TEXT, first, fin=False), header(CONTINUATION, 99) + rest]
                cases.append((no_utf8("fragments", b"".join(data)), [b"".join(data)]))
            cases.append((no_utf8("writes", begins), [header(TEXT, 99) + first, rest]))
    check_in_turn(name, server, cases)


@pytest.mark.parametrize("notify", [True, False], ids=["orderly", "truncated"])
@pytest.mark.parametrize("case", HALF_CLOSED, ids=lambda case: case.name)
def test_stream_that_ends_without_a_close_frame(
    name: str, server: RawServer, case: Case, notify: bool
) -> None:
    """Whole messages are delivered, and no close frame is sent to a server that no longer reads."""
    with running(config(name, server)) as session, server.accept() as peer:
        peer.send(case.data)
        peer.shut(notify=notify)
        assert peer.answers() == [Frame(PONG, payload) for payload in case.pongs]
    assert brief(session.messages()) == brief(case.delivers)
    assert session.error() == ENDED
    (lost,) = session.events("disconnected")
    assert (lost["code"], lost["error"]) == (NO_FRAME, ENDED)


@pytest.mark.parametrize(
    "before", [b"", STARTED, frame(TEXT, b"a")], ids=["first", "amid", "after"]
)
@pytest.mark.parametrize("payload", [b"", b"?", noise(125)], ids=len)
def test_ping_is_answered_at_once(
    name: str, server: RawServer, before: bytes, payload: bytes
) -> None:
    """The server sends no more before it has the pong."""
    with running(config(name, server)) as session, server.accept() as peer:
        peer.send(before + frame(PING, payload))
        assert peer.frame() == Frame(PONG, payload)
        peer.send(close_frame(1000))
        assert code_only(peer.answers()) == [Frame(CLOSE, struct.pack("!H", 1000))]
    assert session.error() is None


def test_what_the_client_sends_is_masked_anew(name: str, server: RawServer) -> None:
    sent = ("", "é" * 100, b"", noise(70_000))
    with running(config(name, server, initial_messages=sent)) as session, server.accept() as peer:
        peer.send(close_frame(1000))
        frames = peer.answers()
    assert frames[:-1] == [
        *(Frame(TEXT, text.encode()) for text in sent if isinstance(text, str)),
        *(Frame(BINARY, data) for data in sent if isinstance(data, bytes)),
    ]
    assert len(set(peer.masks)) == len(frames)
    assert session.error() is None


@pytest.mark.parametrize("case", [LENGTHS[1], FAULTS[0]], ids=lambda case: case.name)
def test_manager_as_a_child(name: str, server: RawServer, case: Case) -> None:
    case = finished(case)
    manager = Manager(config(name, server))
    with manager:
        with attach(name, start="oldest") as feed, server.accept() as peer:
            peer.send(case.data)
            check_answers(peer, case)
            assert [(shm.Kind(m.kind), bytes(m)) for m in feed] == [*case.delivers]
        assert manager.join(DEADLINE) == (0 if case.error is None else 1)


# ---- against a model -----------------------------------------------------------------------


@settings(
    max_examples=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(conversation=conversations())
def test_as_the_model(
    name: str, server: RawServer, conversation: tuple[bytes, list[bytes]]
) -> None:
    data, pieces = conversation
    model = Model(data)
    code = model.code()
    with running(config(name, server)) as session, server.accept() as peer:
        peer.send(*pieces)
        if code == GOES_ON:
            peer.shut()
        answers = code_only(peer.answers())
    expected = [Frame(PONG, payload) for payload in model.pongs]
    if code != GOES_ON:
        expected.append(Frame(CLOSE, b"" if code is None else struct.pack("!H", code)))
    assert answers == expected
    assert session.messages() == model.delivers
    assert (session.error() == ENDED) == (code == GOES_ON)

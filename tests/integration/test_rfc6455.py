"""What a server may say (RFC 6455), byte for byte: what workers get, and how the client answers.

The table is of cases; each is said whole, byte by byte and in the midst of other messages, over
plain TCP and over TLS, where each write is a record and so is received on its own.

One file, for it is one proof: the table, the ways to say it, and a model that agrees with both.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringcast import Config, Feed, Manager, attach, shm
from ringcast.broker.manager import ManagerError
from tests.conftest import DEADLINE

from .rawserver import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    Peer,
    RawServer,
    close_frame,
    frame,
    header,
    make_certificate,
)

CAPACITY: Final = 4 << 20
LIMIT: Final = CAPACITY // 4
"""The longest message of a ring of that capacity."""
ENDED: Final = "the server closed the socket without a close frame"
NO_FRAME: Final = 1006
"""The code that stands for a connection that ended without a close frame."""

Message = tuple[shm.Kind, bytes]


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


def config(name: str, server: RawServer, **options: Any) -> Config:
    """No pings of the client's own, and one connection."""
    plan = {"reconnect": False, "ping_interval": None, "slots": 1024, "capacity": CAPACITY}
    return Config(name=name, url=server.url, ca=server.ca, **(plan | options))


@dataclass
class Talk:
    """A manager that runs in a thread, and a worker in another that hears all of it."""

    manager: Manager
    ran: Future[None]
    heard: Future[list[Message]]

    def error(self) -> str | None:
        """What the manager stopped for; it has to have ended."""
        error = self.ran.exception(DEADLINE)
        assert error is None or isinstance(error, ManagerError), error
        return None if error is None else str(error)

    def messages(self) -> list[Message]:
        """What the server said; the ring has to have ended."""
        return [m for m in self.heard.result(DEADLINE) if m[0] is not shm.Kind.EVENT]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The manager's records of this kind."""
        every = self.heard.result(DEADLINE)
        records = [json.loads(payload) for kind, payload in every if kind is shm.Kind.EVENT]
        assert records[-1]["event"] == "stopped"
        return [record for record in records if record["event"] == event]


def hear(feed: Feed) -> list[Message]:
    with feed:
        return [(shm.Kind(message.kind), bytes(message)) for message in feed]


@contextmanager
def talking(configured: Config) -> Iterator[Talk]:
    """Run a manager; the worker is attached before it connects."""
    manager = Manager(configured)
    attached: Future[Feed] = Future()

    def ready() -> None:
        attached.set_result(attach(configured.name, start="oldest", events=True))

    with ThreadPoolExecutor(2) as pool:
        ran = pool.submit(manager.run, on_ready=ready)
        try:
            yield Talk(manager, ran, pool.submit(hear, attached.result(DEADLINE)))
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


# ---- the table -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Bytes of the server's, and what has to come of them.

    Attributes:
        delivers: the messages that workers get.
        pongs: payloads of the client's pongs.
        code: with which the client closes, None for a close frame without one; GOES_ON if it has
            no reason to.
        error: the manager's.
        told: code and reason of the server's close frame, as the records tell.
    """

    name: str
    says: bytes
    delivers: tuple[Message, ...] = ()
    pongs: tuple[bytes, ...] = ()
    code: int | None = -1
    error: str | None = None
    told: tuple[int, str] = (NO_FRAME, "")


GOES_ON: Final = -1


def text(payload: bytes | str) -> Message:
    return shm.Kind.TEXT, payload.encode() if isinstance(payload, str) else payload


def binary(payload: bytes) -> Message:
    return shm.Kind.BINARY, payload


def good(name: str, says: bytes, *delivers: Message, pongs: tuple[bytes, ...] = ()) -> Case:
    return Case(name, says, delivers, pongs)


def fault(code: int, why: str) -> Callable[..., Case]:
    """Cases that the client closes with `code`, saying why."""

    def case(name: str, says: bytes, *delivers: Message) -> Case:
        return Case(name, says, delivers, (), code, f"the server broke the protocol: {why}")

    return case


def cut(kind: int, *parts: bytes, between: bytes = b"") -> bytes:
    """A message in these fragments, with these bytes after each but the last."""
    frames = [
        frame(CONTINUATION if i else kind, part, fin=i == len(parts) - 1)
        for i, part in enumerate(parts)
    ]
    return between.join(frames)


def halves(payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Cut in two at every place."""
    for i in range(len(payload) + 1):
        yield payload[:i], payload[i:]


def letters(size: int) -> bytes:
    """A text of so many bytes, of characters of all lengths."""
    some = ("aé€😀" * (size // 10)).encode()
    return some + b"x" * (size - len(some))


def noise(size: int) -> bytes:
    return bytes(range(255, -1, -1)) * (size // 256) + b"\xff" * (size % 256)


SIZES: Final = (0, 1, 125, 126, 127, 65_535, 65_536, LIMIT - 1, LIMIT)
LENGTHS: Final = [
    *(good(f"text of {n}", frame(TEXT, letters(n)), text(letters(n))) for n in SIZES),
    *(good(f"binary of {n}", frame(BINARY, noise(n)), binary(noise(n))) for n in SIZES),
]

PINGED: Final = frame(PING, b"") + frame(PING, noise(125)) + frame(PONG, b"?")
FRAGMENTS: Final = [
    *(
        good(f"{n} fragments", cut(BINARY, *(noise(i) for i in range(n))), binary(joined))
        for n, joined in ((n, b"".join(noise(i) for i in range(n))) for n in (2, 3, 4, 50))
    ),
    good("first empty", cut(TEXT, b"", b"ab", b"c"), text(b"abc")),
    good("middle empty", cut(TEXT, b"ab", b"", b"", b"c"), text(b"abc")),
    good("last empty", cut(TEXT, b"ab", b"c", b""), text(b"abc")),
    good("all empty", cut(TEXT, b"", b"", b"") + cut(BINARY, b"", b""), text(b""), binary(b"")),
    good("empty amid a character", cut(TEXT, b"\xe2", b"", b"\x82", b"", b"\xac"), text("€")),
    good("large fragments", cut(BINARY, *[noise(65_536)] * 3), binary(noise(65_536) * 3)),
    good(
        "limit in fragments", cut(TEXT, letters(LIMIT - 1), b"x"), text(letters(LIMIT - 1) + b"x")
    ),
    good(
        "control frames between",
        cut(TEXT, b"a", b"", b"\xc3", b"\xa9", between=PINGED),
        text("aé"),
        pongs=(b"", noise(125)) * 3,
    ),
    good(
        "control frames between large ones",
        cut(BINARY, *[noise(70_000)] * 3, between=frame(PING, b"!")),
        binary(noise(70_000) * 3),
        pongs=(b"!", b"!"),
    ),
]

NUMBERS: Final = [bytes((i,)) for i in range(9)]
CONTROL: Final = [
    good("ping of 0", frame(PING), pongs=(b"",)),
    good("ping of 125", frame(PING, noise(125)), pongs=(noise(125),)),
    good("pings", b"".join(frame(PING, i) for i in NUMBERS), pongs=(*NUMBERS,)),
    good("pongs", frame(PONG) + frame(PONG, noise(125)) + frame(TEXT, b"x"), text(b"x")),
]

reserved_bit = fault(1002, "a reserved bit is set and no extension was agreed")
reserved_opcode = fault(1002, "the opcode is reserved")
masked = fault(1002, "a server's frame is masked")
cut_control = fault(1002, "a control frame is fragmented")
long_control = fault(1002, "a control frame is longer than 125 bytes")
orphan = fault(1002, "a continuation of no message")
nested = fault(1002, "a message begins inside another")
long_form = fault(1002, "a length takes more bytes than it needs")
top_bit = fault(1002, "the highest bit of a 64-bit length is set")
too_big = fault(1009, "a message is longer than the ring's max_message")

STARTED: Final = frame(TEXT, b"a", fin=False)
CONTROLS: Final = {"ping": PING, "pong": PONG, "close": CLOSE}
FAULTS: Final = [
    *(reserved_bit(f"bits {bits:03b}", header(TEXT | bits << 4, 9)) for bits in range(1, 8)),
    *(reserved_bit(f"{n} with a bit", header(op | 0x40, 0)) for n, op in CONTROLS.items()),
    reserved_bit("continuation with a bit", STARTED + header(CONTINUATION | 0x40, 9)),
    *(reserved_opcode(f"opcode {op}", header(op, 0)) for op in (*range(3, 8), *range(11, 16))),
    reserved_opcode("reserved amid a message", STARTED + header(3, 0)),
    *(
        masked(f"masked {op}", bytes((0x80 | op, 0x80 | 5)) + b"\1\2\3\4" + b"hello")
        for op in (TEXT, BINARY, PING)
    ),
    *(cut_control(f"{n} not final", header(op, 0, fin=False)) for n, op in CONTROLS.items()),
    *(long_control(f"{n} of 126", header(op, 126)) for n, op in CONTROLS.items()),
    *(long_control(f"{n} of 65536", header(op, 65_536)) for n, op in CONTROLS.items()),
    orphan("continuation first", header(CONTINUATION, 5)),
    orphan("continuation not final", header(CONTINUATION, 5, fin=False)),
    orphan("after a whole message", frame(TEXT, b"a") + header(CONTINUATION, 1), text(b"a")),
    orphan("after its end", cut(TEXT, b"a", b"b") + header(CONTINUATION, 1), text(b"ab")),
    nested("text inside", STARTED + header(TEXT, 1)),
    nested("binary inside", STARTED + header(BINARY, 1, fin=False)),
    nested("inside after a ping", STARTED + frame(PONG) + header(TEXT, 1)),
    *(long_form(f"{n} in 16 bits", header(BINARY, n, form=2)) for n in (0, 1, 125)),
    *(long_form(f"{n} in 64 bits", header(BINARY, n, form=8)) for n in (0, 125, 126, 65_535)),
    *(top_bit(f"length {n:#x}", header(BINARY, n, form=8)) for n in (1 << 63, (1 << 64) - 1)),
    *(
        too_big(f"{kind} of {n}", header(kind, n))
        for kind, n in product((TEXT, BINARY), (LIMIT + 1, 1 << 32, (1 << 63) - 1))
    ),
    too_big("limit and a byte", frame(BINARY, noise(LIMIT), fin=False) + header(CONTINUATION, 1)),
    too_big("fragments past it", STARTED + header(CONTINUATION, LIMIT)),
    too_big("sum past 64 bits", STARTED + header(CONTINUATION, (1 << 63) - 1)),
]

TEXTS: Final = [
    *(chr(c) for c in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xCFFF, 0xD000, 0xD7FF, 0xE000)),
    *(chr(c) for c in (0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0x10FFFF)),
    "κόσμε",
    *("x" * n + "é" + "y" * n for n in (7, 8, 31, 32, 33)),
]
ENCODED: Final = [t.encode() for t in TEXTS]

no_utf8 = fault(1007, "a text is not UTF-8")
cut_short = fault(1007, "a text ends within a character")
WRONG: Final = [
    bytes.fromhex(wrong)
    for wrong in (
        *("80", "bf", "c0", "c1", "f5", "f8", "fc", "fe", "ff"),
        *("e080", "e09f", "f080", "f08f"),  # overlong
        *("eda0", "edbf"),  # surrogates
        *("f490", "f4bf"),  # past U+10FFFF
        *("c241", "c2c2", "dfff", "e241", "e28241", "e282c3", "f09f9828", "f180c0", "f4807f"),
        *("c3a980", "e282acbf", "f09f988080"),  # one continuation too many
    )
]
"""Texts that are wrong in their last byte, and not before."""
SHORT: Final = [bytes.fromhex(short) for short in ("c2", "e2", "e282", "f0", "f09f", "f09f98")]

UTF8: Final = [
    good("all texts", b"".join(frame(TEXT, t) for t in ENCODED), *map(text, ENCODED)),
    good(
        "all texts cut everywhere",
        b"".join(cut(TEXT, *parts) for t in ENCODED for parts in halves(t)),
        *(text(t) for t in ENCODED for _ in halves(t)),
    ),
    good(
        "texts in fragments of a byte",
        b"".join(cut(TEXT, *(bytes((b,)) for b in t), between=frame(PONG)) for t in ENCODED),
        *map(text, ENCODED),
    ),
    good("binary is not text", frame(BINARY, b"".join(WRONG)), binary(b"".join(WRONG))),
    # The rest of the frame is never said: the client has to refuse what it has.
    *(no_utf8(f"wrong {wrong.hex()}", header(TEXT, 999) + wrong) for wrong in WRONG),
    no_utf8("wrong after much", header(TEXT, LIMIT) + letters(99_999) + b"\xc3("),
    no_utf8(
        "wrong behind a binary", frame(BINARY, b"\xff") + header(TEXT, 9) + b"\xff", binary(b"\xff")
    ),
    *(cut_short(f"short {short.hex()}", frame(TEXT, b"a" + short)) for short in SHORT),
    *(cut_short(f"short {short.hex()}, empty end", cut(TEXT, short, b"")) for short in SHORT),
]


def closing(code: int, reason: bytes = b"") -> Case:
    """A close frame that is to be echoed."""
    said = reason.decode()
    error = f"the server closed with code {code}: {said or 'no reason given'}"
    name = f"close {code} with {len(reason)}"
    expected = None if code in (1000, 1001) else error
    return Case(name, close_frame(code, reason), (), (), code, expected, (code, said))


wrong_code = fault(1002, "a close frame's code is not one that may be sent")
wrong_reason = fault(1007, "a close frame's reason is not UTF-8")
CLOSES: Final = [
    Case("close of nothing", close_frame(), (), (), None, None, (1005, "")),
    fault(1002, "a close frame's payload has one byte")("close of a byte", frame(CLOSE, b"\3")),
    *(closing(code) for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999)),
    *(closing(code, b"x" * 123) for code in (1000, 1011, 4000)),
    closing(1000, "adiós".encode()),
    *(
        wrong_code(f"close {code}", close_frame(code))
        for code in (
            0,
            1,
            999,
            1004,
            1005,
            1006,
            1015,
            1016,
            1100,
            2000,
            2999,
            5000,
            32_768,
            65_535,
        )
    ),
    wrong_code("close 999, reason wrong", close_frame(999, b"\xff")),
    *(wrong_reason(f"reason {w.hex()}", close_frame(1000, w)) for w in (*WRONG[::5], *SHORT)),
    Case(
        "close amid a message",
        STARTED + close_frame(1001, b"bye"),
        code=1001,
        told=(1001, "bye"),
    ),
    Case(
        "data after close",
        frame(TEXT, b"a") + close_frame(1000) + frame(TEXT, b"b") + frame(PING) + header(3, 0),
        (text(b"a"),),
        code=1000,
        told=(1000, ""),
    ),
]

TABLE: Final = [*LENGTHS, *FRAGMENTS, *CONTROL, *FAULTS, *UTF8, *CLOSES]


# ---- ways to say it ------------------------------------------------------------------------

_ENDS: Final = 300


def whole(says: bytes) -> list[bytes]:
    return [says]


def byte_by_byte(says: bytes) -> list[bytes]:
    """One byte a write; the middle of what is long is said at once."""
    middle = [says[_ENDS:-_ENDS]] if len(says) > 20 * _ENDS else []
    first, last = (says[:_ENDS], says[-_ENDS:]) if middle else (says, b"")
    return [*(bytes((b,)) for b in first), *middle, *(bytes((b,)) for b in last)]


WAYS: Final = [whole, byte_by_byte]


def finished(case: Case) -> Case:
    """The same, ended by the server where the client has no reason to."""
    if case.code != GOES_ON:
        return case
    says = case.says + close_frame(1000)
    return Case(case.name, says, case.delivers, case.pongs, 1000, None, (1000, ""))


def amid(case: Case) -> Case:
    """The same between two other messages; what follows an end is ignored."""
    before, after = frame(BINARY, b"before"), frame(TEXT, b"after")
    delivers = (binary(b"before"), *case.delivers)
    if case.code == GOES_ON:
        delivers = (*delivers, text(b"after"))
    says = before + case.says + after
    return Case(case.name, says, delivers, case.pongs, case.code, case.error, case.told)


def answers_to(case: Case) -> list[Frame]:
    """The client's frames up to its close frame; a fault's reason is for people."""
    return [
        *(Frame(PONG, payload) for payload in case.pongs),
        Frame(CLOSE, b"" if case.code is None else struct.pack("!H", case.code)),
    ]


def code_only(frames: list[Frame]) -> list[Frame]:
    return [Frame(op, payload[:2] if op == CLOSE else payload) for op, payload in frames]


def check_answers(peer: Peer, case: Case) -> None:
    """The client answers as it has to, and says nothing after its close frame."""
    answers = peer.answers()
    peer.shut()
    assert peer.frame() is None
    assert code_only(answers) == answers_to(case)


def check_end(talk: Talk, *cases: Case) -> None:
    """One connection a case, and they delivered what they had to."""
    assert brief(talk.messages()) == brief(m for case in cases for m in case.delivers)
    lost = [((e["code"], e["reason"]), e["error"]) for e in talk.events("disconnected")]
    assert lost == [(case.told, case.error) for case in cases]


def check(configured: Config, server: RawServer, case: Case, pieces: list[bytes]) -> None:
    """Say a case; it is the manager's only connection, so its error is the manager's."""
    with talking(configured) as talk, server.accept() as peer:
        peer.say(*pieces)
        check_answers(peer, case)
    check_end(talk, case)
    assert talk.error() == case.error
    assert [e["error"] for e in talk.events("stopped")] == [case.error]


def check_in_turn(name: str, server: RawServer, cases: list[tuple[Case, list[bytes]]]) -> None:
    """Say cases to one manager, which connects anew for each."""
    again = config(name, server, reconnect=True, reconnect_delay=0.001, reconnect_delay_max=0.001)
    with talking(again) as talk:
        for case, pieces in cases:
            with server.accept() as peer:
                peer.say(*pieces)
                check_answers(peer, case)
        talk.manager.stop()
    check_end(talk, *(case for case, _ in cases))
    assert talk.error() is None


# ---- the tests -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_case(
    name: str, server: RawServer, case: Case, way: Callable[[bytes], list[bytes]]
) -> None:
    case = finished(case)
    check(config(name, server), server, case, way(case.says))


def test_all_that_goes_on_in_one_write(name: str, server: RawServer) -> None:
    cases = [case for case in TABLE if case.code == GOES_ON]
    everything = Case(
        "everything",
        b"".join(case.says for case in cases),
        tuple(m for case in cases for m in case.delivers),
        tuple(p for case in cases for p in case.pongs),
    )
    case = finished(everything)
    check(config(name, server), server, case, [case.says])


def test_each_case_amid_others_in_one_write(name: str, server: RawServer) -> None:
    """Also one connection after the other: nothing of one is left when the next begins."""
    cases = [finished(amid(case)) for case in TABLE]
    check_in_turn(name, server, [(case, [case.says]) for case in cases])


def test_wrong_text_cut_everywhere(name: str, server: RawServer) -> None:
    """In two fragments, of which the second is never whole; and in two writes."""
    cases: list[tuple[Case, list[bytes]]] = []
    for wrong in WRONG:
        begins = "é".encode() + wrong
        for first, rest in halves(begins):
            if rest:  # the first byte that is wrong is the last
                says = [frame(TEXT, first, fin=False), header(CONTINUATION, 99) + rest]
                cases.append((no_utf8("fragments", b"".join(says)), [b"".join(says)]))
            cases.append((no_utf8("writes", begins), [header(TEXT, 99) + first, rest]))
    check_in_turn(name, server, cases)


HALF_CLOSED: Final = [
    good("at once", b""),
    good("at a frame's border", frame(TEXT, b"a"), text(b"a")),
    good("after a ping", frame(TEXT, b"a") + frame(PING, b"!"), text(b"a"), pongs=(b"!",)),
    good("amid the first two bytes", frame(TEXT, b"a") + b"\x81", text(b"a")),
    good("amid a length", header(BINARY, 300)[:3]),
    good("after a header", frame(TEXT, b"a") + header(TEXT, 9), text(b"a")),
    good("amid a payload", frame(TEXT, b"a") + header(TEXT, 9) + b"b", text(b"a")),
    good("amid a large payload", header(BINARY, LIMIT) + noise(300_000)),
    good("amid a character", header(TEXT, 9) + b"\xe2\x82"),
    good("amid a ping", frame(TEXT, b"a") + header(PING, 9) + b"b", text(b"a")),
    good("amid a close frame", frame(TEXT, b"a") + close_frame(1000)[:3], text(b"a")),
    good("between fragments", STARTED),
]


@pytest.mark.parametrize("notify", [True, False], ids=["orderly", "cut off"])
@pytest.mark.parametrize("case", HALF_CLOSED, ids=lambda case: case.name)
def test_stream_that_ends_without_a_close_frame(
    name: str, server: RawServer, case: Case, notify: bool
) -> None:
    """Whole messages are delivered, and no close frame is sent to who listens no more."""
    with talking(config(name, server)) as talk, server.accept() as peer:
        peer.say(case.says)
        peer.shut(notify=notify)
        assert peer.answers() == [Frame(PONG, payload) for payload in case.pongs]
    assert brief(talk.messages()) == brief(case.delivers)
    assert talk.error() == ENDED
    (lost,) = talk.events("disconnected")
    assert (lost["code"], lost["error"]) == (NO_FRAME, ENDED)


@pytest.mark.parametrize(
    "before", [b"", STARTED, frame(TEXT, b"a")], ids=["first", "amid", "after"]
)
@pytest.mark.parametrize("payload", [b"", b"?", noise(125)], ids=len)
def test_ping_is_answered_at_once(
    name: str, server: RawServer, before: bytes, payload: bytes
) -> None:
    """The server says no more before it has the pong."""
    with talking(config(name, server)) as talk, server.accept() as peer:
        peer.say(before + frame(PING, payload))
        assert peer.frame() == Frame(PONG, payload)
        peer.say(close_frame(1000))
        assert code_only(peer.answers()) == [Frame(CLOSE, struct.pack("!H", 1000))]
    assert talk.error() is None


def test_what_the_client_says_is_masked_anew(name: str, server: RawServer) -> None:
    said = ("", "é" * 100, b"", noise(70_000))
    with talking(config(name, server, initial_messages=said)) as talk, server.accept() as peer:
        peer.say(close_frame(1000))
        frames = peer.answers()
    assert frames[:-1] == [
        *(Frame(TEXT, text.encode()) for text in said if isinstance(text, str)),
        *(Frame(BINARY, data) for data in said if isinstance(data, bytes)),
    ]
    assert len(set(peer.masks)) == len(frames)
    assert talk.error() is None


@pytest.mark.parametrize("case", [LENGTHS[1], FAULTS[0]], ids=lambda case: case.name)
def test_manager_as_a_child(name: str, server: RawServer, case: Case) -> None:
    case = finished(case)
    manager = Manager(config(name, server))
    with manager:
        with attach(name, start="oldest") as feed, server.accept() as peer:
            peer.say(case.says)
            check_answers(peer, case)
            assert [(shm.Kind(m.kind), bytes(m)) for m in feed] == [*case.delivers]
        assert manager.join(DEADLINE) == (0 if case.error is None else 1)


# ---- against a model -----------------------------------------------------------------------


@dataclass
class Model:
    """A reader of frames that has all bytes at hand, and takes its time."""

    says: bytes
    limit: int = LIMIT
    delivers: list[Message] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    at: int = 0
    kind: int = 0
    whole: bytes = b""

    def code(self) -> int | None:
        """Read all of it; returns the code that the client closes with, GOES_ON if it waits."""
        while True:
            code = self._frame()
            if code != 0:
                return code

    def _frame(self) -> int | None:
        """0: there may be another."""
        left = self.says[self.at :]
        if len(left) < 2:
            return GOES_ON
        opcode, fin = left[0] & 0x0F, left[0] >= 0x80
        if left[0] & 0x70 or left[1] & 0x80 or opcode not in (0, 1, 2, 8, 9, 10):
            return 1002
        if opcode >= CLOSE and (not fin or left[1] > 125):
            return 1002
        if opcode < CLOSE and (opcode == CONTINUATION) != (self.kind != 0):
            return 1002
        extra = {126: 2, 127: 8}.get(left[1], 0)
        if len(left) < 2 + extra:
            return GOES_ON
        length = int.from_bytes(left[2 : 2 + extra], "big") if extra else left[1]
        if length >> 63 or (extra and length < {2: 126, 8: 65_536}[extra]):
            return 1002
        payload = left[2 + extra :][:length]
        self.at += 2 + extra + length
        if opcode >= CLOSE:
            return GOES_ON if len(payload) < length else self._control(opcode, payload)
        return self._data(opcode, payload, length, fin=fin)

    def _control(self, opcode: int, payload: bytes) -> int | None:
        if opcode == PING:
            self.pongs.append(payload)
        if opcode != CLOSE:
            return 0
        if len(payload) < 2:
            return 1002 if payload else None
        code = int.from_bytes(payload[:2], "big")
        if code not in {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}:
            return 1002
        return code if is_text(payload[2:], whole=True) else 1007

    def _data(self, opcode: int, payload: bytes, length: int, *, fin: bool) -> int | None:
        if len(self.whole) + length > self.limit:
            return 1009
        self.kind = self.kind or opcode
        self.whole += payload
        ended = len(payload) == length
        if self.kind == TEXT and not is_text(self.whole, whole=ended and fin):
            return 1007
        if not ended:
            return GOES_ON
        if fin:
            self.delivers.append((shm.Kind(self.kind), self.whole))
            self.kind, self.whole = 0, b""
        return 0


def is_text(data: bytes, *, whole: bool) -> bool:
    """Is it UTF-8; or, if it is not whole, its beginning?"""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, whole)
    except UnicodeDecodeError:
        return False
    return True


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """What a server says, mostly right, and the pieces it says it in."""
    payloads = st.one_of(st.text().map(str.encode), st.binary(max_size=300))
    controls = st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125))
    messages = st.builds(
        lambda kind, parts, control: cut(kind, *parts, between=control),
        st.sampled_from([TEXT, BINARY]),
        st.lists(payloads, min_size=1, max_size=4),
        st.just(b"") | controls,
    )
    closes = st.builds(close_frame, st.integers(990, 1020), st.text(max_size=9).map(str.encode))
    said = bytearray(b"".join(draw(st.lists(messages | controls | closes, max_size=8))))
    if said and draw(st.booleans()):
        said[draw(st.integers(0, len(said) - 1))] = draw(st.integers(0, 255))
    places = sorted({0, len(said), *draw(st.lists(st.integers(0, len(said)), max_size=20))})
    return bytes(said), [bytes(said[a:b]) for a, b in pairwise(places)]


@settings(
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(conversation=conversations())
def test_as_the_model(
    name: str, server: RawServer, conversation: tuple[bytes, list[bytes]]
) -> None:
    says, pieces = conversation
    model = Model(says)
    code = model.code()
    with talking(config(name, server)) as talk, server.accept() as peer:
        peer.say(*pieces)
        if code == GOES_ON:
            peer.shut()
        answers = code_only(peer.answers())
    expected = [Frame(PONG, payload) for payload in model.pongs]
    if code != GOES_ON:
        expected.append(Frame(CLOSE, b"" if code is None else struct.pack("!H", code)))
    assert answers == expected
    assert talk.messages() == model.delivers
    assert (talk.error() == ENDED) == (code == GOES_ON)

"""What a server may send (RFC 6455), as a table of cases, and the ways to send each.

A case is the bytes of a server and all that has to come of them: what workers get, and how the
client answers. The table holds lengths, fragments, control frames, faults, UTF-8 and close frames.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from ringcast import shm
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, header

from .rawserver import Frame

CAPACITY: Final = 4 << 20
LIMIT: Final = CAPACITY // 4
"""The longest message of a ring of that capacity."""
GOES_ON: Final = -1
"""The code that stands for a client that has no reason to close."""
NO_FRAME: Final = 1006
"""The code that stands for a connection that ended without a close frame."""

Message = tuple[shm.Kind, bytes]


# ---- a case --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Bytes that a server sends, and what has to come of them.

    Attributes:
        delivers: the messages that workers get.
        pongs: payloads of the client's pongs.
        code: with which the client closes, None for a close frame without one; GOES_ON if it has
            no reason to.
        error: the manager's.
        reported: code and reason of the server's close frame, as the records have them.
    """

    name: str
    data: bytes
    delivers: tuple[Message, ...] = ()
    pongs: tuple[bytes, ...] = ()
    code: int | None = GOES_ON
    error: str | None = None
    reported: tuple[int, str] = (NO_FRAME, "")


def text(payload: bytes | str) -> Message:
    return shm.Kind.TEXT, payload.encode() if isinstance(payload, str) else payload


def binary(payload: bytes) -> Message:
    return shm.Kind.BINARY, payload


def good(name: str, data: bytes, *delivers: Message, pongs: tuple[bytes, ...] = ()) -> Case:
    return Case(name, data, delivers, pongs)


def fault(code: int, why: str) -> Callable[..., Case]:
    """Cases that the client closes with `code`, for this reason."""

    def case(name: str, data: bytes, *delivers: Message) -> Case:
        return Case(name, data, delivers, (), code, f"the server broke the protocol: {why}")

    return case


def fragmented(kind: int, *parts: bytes, between: bytes = b"") -> bytes:
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


def mixed_text(size: int) -> bytes:
    """A text of so many bytes, of characters of all lengths."""
    some = ("aé€😀" * (size // 10)).encode()
    return some + b"x" * (size - len(some))


def noise(size: int) -> bytes:
    return bytes(range(255, -1, -1)) * (size // 256) + b"\xff" * (size % 256)


SIZES: Final = (0, 1, 125, 126, 127, 65_535, 65_536, LIMIT - 1, LIMIT)
LENGTHS: Final = [
    *(good(f"text of {n}", frame(TEXT, mixed_text(n)), text(mixed_text(n))) for n in SIZES),
    *(good(f"binary of {n}", frame(BINARY, noise(n)), binary(noise(n))) for n in SIZES),
]

PINGED: Final = frame(PING, b"") + frame(PING, noise(125)) + frame(PONG, b"?")
FRAGMENTS: Final = [
    *(
        good(f"{n} fragments", fragmented(BINARY, *(noise(i) for i in range(n))), binary(joined))
        for n, joined in ((n, b"".join(noise(i) for i in range(n))) for n in (2, 3, 4, 50))
    ),
    good("first empty", fragmented(TEXT, b"", b"ab", b"c"), text(b"abc")),
    good("middle empty", fragmented(TEXT, b"ab", b"", b"", b"c"), text(b"abc")),
    good("last empty", fragmented(TEXT, b"ab", b"c", b""), text(b"abc")),
    good(
        "all empty",
        fragmented(TEXT, b"", b"", b"") + fragmented(BINARY, b"", b""),
        text(b""),
        binary(b""),
    ),
    good(
        "empty amid a character", fragmented(TEXT, b"\xe2", b"", b"\x82", b"", b"\xac"), text("€")
    ),
    good("large fragments", fragmented(BINARY, *[noise(65_536)] * 3), binary(noise(65_536) * 3)),
    good(
        "limit in fragments",
        fragmented(TEXT, mixed_text(LIMIT - 1), b"x"),
        text(mixed_text(LIMIT - 1) + b"x"),
    ),
    good(
        "control frames between",
        fragmented(TEXT, b"a", b"", b"\xc3", b"\xa9", between=PINGED),
        text("aé"),
        pongs=(b"", noise(125)) * 3,
    ),
    good(
        "control frames between large ones",
        fragmented(BINARY, *[noise(70_000)] * 3, between=frame(PING, b"!")),
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
    orphan("after its end", fragmented(TEXT, b"a", b"b") + header(CONTINUATION, 1), text(b"ab")),
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
        b"".join(fragmented(TEXT, *parts) for t in ENCODED for parts in halves(t)),
        *(text(t) for t in ENCODED for _ in halves(t)),
    ),
    good(
        "texts in fragments of a byte",
        b"".join(fragmented(TEXT, *(bytes((b,)) for b in t), between=frame(PONG)) for t in ENCODED),
        *map(text, ENCODED),
    ),
    good("binary is not text", frame(BINARY, b"".join(WRONG)), binary(b"".join(WRONG))),
    # The rest of the frame is never sent: the client has to refuse what it has.
    *(no_utf8(f"wrong {wrong.hex()}", header(TEXT, 999) + wrong) for wrong in WRONG),
    no_utf8("wrong after much", header(TEXT, LIMIT) + mixed_text(99_999) + b"\xc3("),
    no_utf8(
        "wrong behind a binary", frame(BINARY, b"\xff") + header(TEXT, 9) + b"\xff", binary(b"\xff")
    ),
    *(cut_short(f"short {short.hex()}", frame(TEXT, b"a" + short)) for short in SHORT),
    *(
        cut_short(f"short {short.hex()}, empty end", fragmented(TEXT, short, b""))
        for short in SHORT
    ),
]


def closing(code: int, reason: bytes = b"") -> Case:
    """A close frame that is to be echoed."""
    shown = reason.decode()
    error = f"the server closed with code {code}: {shown or 'no reason given'}"
    name = f"close {code} with {len(reason)}"
    expected = None if code in (1000, 1001) else error
    return Case(name, close_frame(code, reason), (), (), code, expected, (code, shown))


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
        reported=(1001, "bye"),
    ),
    Case(
        "data after close",
        frame(TEXT, b"a") + close_frame(1000) + frame(TEXT, b"b") + frame(PING) + header(3, 0),
        (text(b"a"),),
        code=1000,
        reported=(1000, ""),
    ),
]

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

TABLE: Final = [*LENGTHS, *FRAGMENTS, *CONTROL, *FAULTS, *UTF8, *CLOSES]


# ---- ways to send it -----------------------------------------------------------------------

_ENDS: Final = 300


def whole(data: bytes) -> list[bytes]:
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    """One byte a write; the middle of what is long is sent at once."""
    middle = [data[_ENDS:-_ENDS]] if len(data) > 20 * _ENDS else []
    first, last = (data[:_ENDS], data[-_ENDS:]) if middle else (data, b"")
    return [*(bytes((b,)) for b in first), *middle, *(bytes((b,)) for b in last)]


def finished(case: Case) -> Case:
    """The same, ended by the server where the client has no reason to."""
    if case.code != GOES_ON:
        return case
    data = case.data + close_frame(1000)
    return Case(case.name, data, case.delivers, case.pongs, 1000, None, (1000, ""))


def amid(case: Case) -> Case:
    """The same between two other messages; whatever follows an end is ignored."""
    before, after = frame(BINARY, b"before"), frame(TEXT, b"after")
    delivers = (binary(b"before"), *case.delivers)
    if case.code == GOES_ON:
        delivers = (*delivers, text(b"after"))
    data = before + case.data + after
    return Case(case.name, data, delivers, case.pongs, case.code, case.error, case.reported)


def answers_to(case: Case) -> list[Frame]:
    """The client's frames up to its close frame; a fault's reason is for people."""
    return [
        *(Frame(PONG, payload) for payload in case.pongs),
        Frame(CLOSE, b"" if case.code is None else struct.pack("!H", case.code)),
    ]


def code_only(frames: list[Frame]) -> list[Frame]:
    return [Frame(op, payload[:2] if op == CLOSE else payload) for op, payload in frames]

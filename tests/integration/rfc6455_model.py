"""A model of a client's reading side (RFC 6455, section 5), for whatever a server may send."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import strategies as st

from ringcast import shm
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame

from .rfc6455_cases import (
    GOES_ON,
    LIMIT,
    Message,
    fragmented,
)


@dataclass
class Model:
    """A reader of frames that has all bytes at hand, and takes its time."""

    data: bytes
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
        left = self.data[self.at :]
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
    """What a server sends, mostly right, and the pieces that it sends."""
    payloads = st.one_of(st.text().map(str.encode), st.binary(max_size=300))
    controls = st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125))
    messages = st.builds(
        lambda kind, parts, control: fragmented(kind, *parts, between=control),
        st.sampled_from([TEXT, BINARY]),
        st.lists(payloads, min_size=1, max_size=4),
        st.just(b"") | controls,
    )
    closes = st.builds(close_frame, st.integers(990, 1020), st.text(max_size=9).map(str.encode))
    sent = bytearray(b"".join(draw(st.lists(messages | controls | closes, max_size=8))))
    if sent and draw(st.booleans()):
        sent[draw(st.integers(0, len(sent) - 1))] = draw(st.integers(0, 255))
    places = sorted({0, len(sent), *draw(st.lists(st.integers(0, len(sent)), max_size=20))})
    return bytes(sent), [bytes(sent[a:b]) for a, b in pairwise(places)]

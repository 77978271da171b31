"""Whatever a client sends (RFC 6455), byte for byte: what the gateway's protocol makes of it, and
how it answers. The table is that of what a server may send, its frames masked as a client's."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import pytest

from ringcast import shm
from tests.conftest import DEADLINE
from tests.frames import BINARY, CLOSE, PING, PONG, TEXT, masked
from tests.integration.gateway import Client
from tests.integration.rfc6455_cases import LIMIT, TABLE, Case, fault, finished

KEY: Final = b"\x81\x00\xff\x7e"


class Header(NamedTuple):
    """A frame's, as it stands in a case."""

    first: int
    length: int
    size: int
    form: bytes


def header_at(data: bytes, at: int) -> Header:
    """Read one."""
    short = data[at + 1] & 0x7F
    more = {126: 2, 127: 8}.get(short, 0)
    form = data[at + 1 : at + 2 + more]
    return Header(data[at], int.from_bytes(form[1:], "big") if more else short, 2 + more, form)


def as_client(data: bytes) -> bytes:
    """The same frames masked. One whose rest is not sent gets one: who reads whole frames says
    what is wrong at their end, but where a frame is too long."""
    made, at = bytearray(), 0
    while at < len(data):
        header = header_at(data, at)
        at += header.size
        payload = data[at : at + header.length]
        at += header.length
        if header.length <= LIMIT:
            payload = payload.ljust(header.length, b"\0")
        key = (KEY * (len(payload) // 4 + 1))[: len(payload)]
        hidden = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
        made += bytes([header.first, header.form[0] | 0x80]) + header.form[1:] + KEY
        made += hidden.to_bytes(len(payload), "big")
    return bytes(made)


NOT_FOR_BOTH: Final = (
    "masked ",  # that is right from a client
    *(" in 16 bits", " in 64 bits"),  # `websockets` is lenient about longer lengths than needed
    *("length 0x", "close 999, reason"),  # two faults at once, of which it names the other one
)


def is_for_both(case: Case) -> bool:
    """Is a client to be answered as a server is?"""
    return not any(part in case.name for part in NOT_FOR_BOTH)


unmasked = fault(1002, "a client's frame is not masked")
CASES: Final = [
    *(replace(c, data=as_client(c.data)) for c in map(finished, TABLE) if is_for_both(c)),
    *(unmasked(f"not masked {op}", bytes((0x80 | op, 5)) + b"hello") for op in (TEXT, PING)),
    unmasked("not masked, empty", bytes((0x80 | BINARY, 0))),
    unmasked("not masked in its end", masked(TEXT, b"a", fin=False) + bytes((0x80, 1)) + b"b"),
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where the echo server listens."""
    command = [sys.executable, "-m", "tests.conformance.echo", "0", str(LIMIT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
        finally:
            server.kill()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_a_client_sends(port: int, case: Case) -> None:
    expected = case
    with Client(socket.create_connection(("127.0.0.1", port), DEADLINE)) as client:
        client.shake_hands()
        client.sock.sendall(expected.data)
        echoed, pongs, code = [], [], None
        while (frame := client.frame())[0] != CLOSE:
            if frame[0] == PONG:
                pongs.append(frame[1])
            else:
                echoed.append((shm.Kind.TEXT if frame[0] == TEXT else shm.Kind.BINARY, frame[1]))
        code = int.from_bytes(frame[1][:2], "big") if frame[1] else None
        assert code == expected.code
        assert pongs == [*expected.pongs]
        assert echoed == [*expected.delivers]
        assert client.rest() == b""

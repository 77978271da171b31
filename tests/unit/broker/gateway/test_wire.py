"""The records of ringcast.1: what goes in comes out, and what is no record is refused."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from ringcast.broker.worker.wire import (
    FIELDS,
    HEADER,
    HEADER_SIZE,
    PAYLOAD_MAX,
    Hello,
    Record,
    RecordType,
    WireError,
    encode,
    parse,
    records,
)

WIRE_PAGE: Final = Path(__file__).parents[4] / "docs" / "wire.md"
C_TYPES: Final = {"uint64_t": "<u8", "uint32_t": "<u4", "uint16_t": "<u2"}

FULL: Final = Record(
    RecordType.MESSAGE,
    b"payload",
    kind=1,
    sequence=2**63,
    time_ns=1_700_000_000_000_000_000,
    key=2**64 - 1,
    gap=3,
    topic=7,
    epoch=2,
    total=20,
    offset=13,
    deliveries=5,
)
HELLO: Final = Hello("md", 0xABC, slots=8, capacity=1024, max_message=256)


COUNTS: Final[list[Callable[[bytearray], int]]] = [
    lambda data: len(list(records(data))),
    lambda data: len(parse(data)),
]


def with_field(field: str, value: int) -> bytes:
    """A record of 7 bytes with one field of its header changed."""
    data = bytearray(encode(FULL))
    header = HEADER.fields
    assert header is not None
    kind, offset = header[field][:2]
    data[offset : offset + kind.itemsize] = value.to_bytes(kind.itemsize, "little")
    return bytes(data)


def test_a_header_is_64_bytes_for_struct_and_for_numpy() -> None:
    assert HEADER_SIZE == FIELDS.size == HEADER.itemsize == 64
    assert len(HEADER.names or ()) == len(FIELDS.unpack(bytes(64)))


def test_every_byte_of_a_record() -> None:
    fields = (7, 1, 1, 2**63, FULL.time_ns, 2**64 - 1, 3, 7, 2, 20, 13, 5, 0)
    assert encode(FULL) == struct.pack("<I2H4Q6I", *fields) + b"payload"


@pytest.mark.parametrize("kind", list(RecordType))
def test_what_goes_in_comes_out(kind: RecordType) -> None:
    record = Record(kind, b"some bytes", sequence=9)
    (found,) = records(encode(record))
    assert found == record
    assert found.type is kind
    assert found.total == 10


def test_many_records_come_in_their_order_and_are_views() -> None:
    rng = random.Random(14)
    sent = [
        Record(RecordType.MESSAGE, rng.randbytes(rng.choice((0, 1, 63, 64, 65, 5000))), sequence=n)
        for n in range(300)
    ]
    data = bytearray(b"".join(map(encode, sent)))
    found = list(records(data))
    assert found == sent
    frame = parse(data)
    assert len(frame) == len(sent)
    assert frame.headers["sequence"].tolist() == list(range(300))
    assert [bytes(frame.payload(n)) for n in range(300)] == [bytes(r.payload) for r in sent]
    data[frame.starts[-1]] ^= 0xFF
    assert bytes(found[-1].payload) == bytes(frame.payload(299)) != sent[-1].payload


def test_a_frame_may_be_empty() -> None:
    assert list(records(b"")) == []
    assert len(parse(b"")) == 0


def test_a_type_that_is_not_known_is_handed_out_as_a_number() -> None:
    (found,) = records(encode(Record(99, b"later")))
    assert (found.type, bytes(found.payload)) == (99, b"later")


@pytest.mark.parametrize("decode", COUNTS)
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0", "truncated"),
        (encode(FULL)[:63], "truncated"),
        (encode(FULL)[:-1], "byte 0 is truncated: the frame has 70 bytes"),
        (encode(FULL) + b"\0" * 63, "byte 71 is truncated"),
        (with_field("size", 2**32 - 1), "truncated|impossible"),
        (with_field("total", 19), "impossible size: 7 bytes at 13 of a message of 19"),
        (with_field("offset", 2**32 - 1), "impossible"),
        (with_field("total", 2**32 - 1), "impossible"),
        (with_field("zero", 1), "unknown version"),
    ],
)
def test_what_is_no_record_is_refused(
    decode: Callable[[bytearray], int], data: bytes, why: str
) -> None:
    with pytest.raises(WireError, match=why):
        decode(bytearray(data))


def test_rubbish_is_refused_or_read_and_both_ways_agree() -> None:
    rng = random.Random(4)
    whole = b"".join(encode(Record(RecordType.SEND, b"x" * n)) for n in range(40))
    for _ in range(2000):
        data = bytearray(whole[: rng.randrange(len(whole))])
        for _ in range(rng.randrange(3)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        outcomes: list[int | None] = []
        for decode in COUNTS:
            try:
                outcomes.append(decode(data))
            except WireError:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "record",
    [
        Record(RecordType.MESSAGE, b"abc", total=2),
        Record(RecordType.MESSAGE, b"abc", total=5, offset=3),
        Record(RecordType.MESSAGE, b"", total=PAYLOAD_MAX + 1),
        Record(RecordType.MESSAGE, b"", sequence=-1),
        Record(RecordType.MESSAGE, b"", kind=1 << 16),
        Record(1 << 16, b""),
    ],
)
def test_what_fits_no_header_is_not_encoded(record: Record) -> None:
    with pytest.raises(WireError):
        encode(record)


def test_hello() -> None:
    payload = HELLO.encode()
    assert json.loads(payload)["instance"] == "0000000000000abc"
    assert Hello.decode(payload) == HELLO
    assert Hello.decode(memoryview(payload[:-1] + b',"more":1}')) == HELLO


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"ring":"md"}'])
def test_a_hello_that_is_none(payload: bytes) -> None:
    with pytest.raises(WireError, match="HELLO can't be read"):
        Hello.decode(payload)


def test_a_hello_of_another_version() -> None:
    with pytest.raises(WireError, match="speaks version 2 of the records, this is version 1"):
        Hello.decode(HELLO.encode().replace(b'"version":1', b'"version":2'))


# ---- the page ------------------------------------------------------------------------------


def test_the_page_has_the_struct_and_its_offsets() -> None:
    text = WIRE_PAGE.read_text(encoding="utf-8")
    body = re.search(r"struct ringcast_record \{(.*?)\};", text, re.DOTALL)
    assert body is not None
    declared = re.findall(r"^\s*(uint\d+_t) (\w+);", body[1], re.MULTILINE)
    assert [(name, C_TYPES[c]) for c, name in declared] == HEADER.descr
    asserted = re.findall(r"offsetof\(struct ringcast_record, (\w+)\) == (\d+)", text)
    fields = HEADER.fields
    assert fields is not None
    assert {name: fields[name][1] for name in fields} == {n: int(o) for n, o in asserted}


def test_the_page_has_every_type() -> None:
    text = WIRE_PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", text, re.MULTILINE)
    assert {name: int(number) for number, name in found} == {t.name: int(t) for t in RecordType}

"""The ids of requests: their form, how the scanner tells them from others, and how they are put
into a payload and taken out again."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringcast.broker.config import Config
from ringcast.broker.connection import MORE, Connection, Ingest, OpenSocket
from ringcast.broker.topics import Scanner, What
from ringcast.broker.topics._scan import REQUEST_COUNTERS, make_request_id, read_request_id
from ringcast.broker.topics.found import RequestId
from ringcast.broker.topics.requests import FoundId, IdPlace
from ringcast.shm.broadcast import Reader, Writer

from .test_ingest import text_frame

SLOTS: Final = st.integers(0, 1023)
GENERATIONS: Final = st.integers(0, (1 << 56) - 1)
COUNTERS: Final = st.integers(0, REQUEST_COUNTERS - 1)
LOW: Final = (1 << 14) - 1
OURS: Final = make_request_id(5, 7, 9)


# ---- the form of an id -------------------------------------------------------------------------


@given(SLOTS, GENERATIONS, COUNTERS)
def test_an_id_says_whose_it_is(slot: int, generation: int, counter: int) -> None:
    number = make_request_id(slot, generation, counter)
    assert 1 << 52 <= number < 1 << 53
    text = str(number)
    assert len(text) == 16
    assert json.loads(json.dumps(float(number))) == number  # as JavaScript would have it
    assert read_request_id(text.encode()) == RequestId(slot, generation & LOW, counter)


def test_ids_differ_in_every_part() -> None:
    numbers = {make_request_id(s, g, c) for s in range(20) for g in range(20) for c in range(20)}
    assert len(numbers) == 8000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1",
        b"9007199254740992",  # 2^53
        b"4503599627370495",  # 2^52 - 1
        b"-%d" % OURS,
        b"+%d" % OURS,
        b" %d" % OURS,
        b"%d " % OURS,
        b"0%d" % OURS,
        b"%d0" % OURS,
        b"%d.0" % OURS,
        b"%de0" % OURS,
        b"%d" % (OURS ^ 1),
        b"%d" % (OURS ^ 1 << 51),
        b"1700000000000000",  # microseconds
        b"1700000000000000000",  # nanoseconds
        b"\xff" * 16,
        "٣".encode() * 8,
    ],
)
def test_what_is_no_id_of_ours(text: bytes) -> None:
    assert read_request_id(text) is None


@given(st.binary(max_size=20))
def test_hostile_ids_are_none(text: bytes) -> None:
    assert read_request_id(text) is None


def test_of_others_numbers_the_check_lets_few_pass() -> None:
    first = 5_000_000_000_000_000
    passed = sum(read_request_id(b"%d" % (first + i)) is not None for i in range(100_000))
    assert passed < 60  # one in 16,384 is six


@given(SLOTS, GENERATIONS, COUNTERS, st.integers(0, 51))
def test_an_id_with_a_wrong_bit_is_somebody_elses_at_most(
    slot: int, generation: int, counter: int, bit: int
) -> None:
    found = read_request_id(b"%d" % (make_request_id(slot, generation, counter) ^ 1 << bit))
    assert found != RequestId(slot, generation & LOW, counter)


def test_a_slot_has_to_fit() -> None:
    with pytest.raises(ValueError, match="below 1024"):
        make_request_id(1024, 0, 0)


# ---- the scanner -------------------------------------------------------------------------------


def what(payload: bytes, answer: str = "/id", **kinds: Any) -> What:
    return Scanner(["{/s}"], answer=answer, names_max=4, **kinds).scan(payload).what


@pytest.mark.parametrize("text", [b"%d", b'"%d"', b' "%d" ', b"\n%d\t"])
def test_an_answer_bears_an_id_of_ours(text: bytes) -> None:
    value = text % OURS
    for payload in (
        b'{"id":%b}' % value,
        b'{"s":"x","id":%b}' % value,
        b'{"id":%b,"s":"x"}' % value,
        b'{"a":[{"id":1}],"s":{"id":"}"},"\\u0069d":%b}' % value,
    ):
        found = Scanner(["{/s}"], answer="/id", names_max=1).scan(payload)
        assert found == (What.ANSWER, None, 0, OURS)


def test_messages_without_an_id_of_ours_keep_their_topic() -> None:
    for payload in (
        b'{"s":"x"}',
        b'{"id":1,"s":"x"}',
        b'{"id":"%d","s":"x"}' % (OURS ^ 1),
        b'{"id":[%d],"s":"x"}' % OURS,
        b'{"id":null,"id":%d,"s":"x"}' % OURS,
        b'{"data":{"id":%d},"s":"x"}' % OURS,
    ):
        assert Scanner(["{/s}"], answer="/id", names_max=1).scan(payload)[:2] == (What.NEW, b"x")
    assert what(b"no JSON") == What.UNNAMED
    assert what(b'{"id":5}') == What.UNNAMED


@pytest.mark.parametrize("control", ["{/id}", "{/method}", "{/id}=*", "{/method}=x"])
def test_an_answer_goes_before_control_messages(control: str) -> None:
    kinds: dict[str, Any] = {"control": [control]}
    for payload in (b'{"method":"x","id":%d}', b'{"id":%d,"method":"x"}'):
        assert what(payload % OURS, **kinds) == What.ANSWER
        assert what(payload % 5, **kinds) == What.CONTROL
    assert what(b'{"method":"x","s":"y"}', control=["{/method}"]) == What.CONTROL
    assert what(b'{"method":"x" and no JSON', control=["{/method}"]) == What.CONTROL


def test_an_id_may_lie_deeper() -> None:
    assert what(b'{"header":{"n":1,"id":"%d"}}' % OURS, "/header/id") == What.ANSWER
    assert what(b'[0,{"id":"%d"}]' % OURS, "/1/id") == What.ANSWER
    assert what(b'{"header":{"n":1,"id":"%d"}}' % OURS) == What.UNNAMED
    assert what(b'{"a/b":%d}' % OURS, "/a~1b") == What.ANSWER


# ---- in a payload ------------------------------------------------------------------------------

ID: Final = IdPlace("/id")


def found_in(payload: bytes) -> FoundId:
    """The id of ours that a payload has."""
    found = ID.find(payload)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("payload", "changed", "original"),
    [
        ('{"id":1}', '{"id":N}', "1"),
        ('{"id":"a"}', '{"id":"N"}', '"a"'),
        ('{"id":""}', '{"id":"N"}', '""'),
        ('{"id":-5}', '{"id":N}', "-5"),
        ('{"id":123456789012345678901234567890}', '{"id":N}', "123456789012345678901234567890"),
        (' { "a" : [1, 2 ] ,\n "id"\t:\r 17 } ', ' { "a" : [1, 2 ] ,\n "id"\t:\r N } ', "17"),
        ('{"id":"\\u0061\\"}","x":1}', '{"id":"N","x":1}', '"\\u0061\\"}"'),
        ('{"\\u0069d":1,"é":"€😀"}', '{"\\u0069d":N,"é":"€😀"}', "1"),
        ('{"params":{"id":7,"x":"\\"id\\":3"},"id":1}', None, "1"),
        ('{"x":"{\\"id\\":1}","id":"é"}', '{"x":"{\\"id\\":1}","id":"N"}', '"é"'),
    ],
)
def test_only_the_ids_bytes_change(payload: str, changed: str | None, original: str) -> None:
    found = ID.readdress(payload.encode(), OURS)
    expected = changed or '{"params":{"id":7,"x":"\\"id\\":3"},"id":N}'
    assert found.payload.decode() == expected.replace("N", str(OURS))
    assert found.original == original.encode()
    there = found_in(found.payload)
    assert there.id == RequestId(5, 7, 9)
    assert there.restored(found.payload, found.original) == payload.encode()


@pytest.mark.parametrize(
    ("payload", "changed"),
    [
        ("{}", '{"id":N}'),
        (" { } ", ' {"id":N } '),
        ('{"a":1}', '{"id":N,"a":1}'),
        ('\n{ "params":{"id":1}}', '\n{"id":N, "params":{"id":1}}'),
    ],
)
def test_an_id_is_added(payload: str, changed: str) -> None:
    found = ID.readdress(payload.encode(), OURS)
    assert tuple(found) == (changed.replace("N", str(OURS)).encode(), None)
    there = found_in(found.payload)
    assert there.id == RequestId(5, 7, 9)
    assert there.restored(found.payload, None) == found.payload
    as_text = IdPlace("/id", as_text=True).readdress(payload.encode(), OURS).payload
    assert json.loads(as_text)["id"] == str(OURS)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "no JSON"),
        (b"ping", "no JSON"),
        (b"{", "no JSON"),
        (b'{"id":1', "no JSON"),
        (b'{"id":1}x', "no JSON"),
        (b'{"id":NaN}', "NaN is not JSON"),
        (b'{"id":"\xff"}', "no JSON"),
        (b"\xff\xfe{\x00}\x00", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "a JSON object"),
        (b'"id"', "a JSON object"),
        (b'{"id":null}', "whole number or text"),
        (b'{"id":true}', "whole number or text"),
        (b'{"id":1.5}', "whole number or text"),
        (b'{"id":1e3}', "whole number or text"),
        (b'{"id":[1]}', "whole number or text"),
        (b'{"id":{}}', "whole number or text"),
        (b'{"id":1,"id":2}', "more than once"),
        (b'{"id":"a","\\u0069d":"b"}', "more than once"),
    ],
)
def test_payloads_that_are_refused(payload: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ID.readdress(payload, OURS)


def test_a_pointer_that_leads_deeper() -> None:
    place = IdPlace("/header/id")
    found = place.readdress(b'{"header":{"id":"x"},"id":5}', OURS)
    assert found == (b'{"header":{"id":"%d"},"id":5}' % OURS, b'"x"')
    for payload in (b"{}", b'{"header":{}}', b'{"header":5}'):
        with pytest.raises(ValueError, match="no id at /header/id"):
            place.readdress(payload, OURS)
    with pytest.raises(ValueError, match="more than once"):
        place.readdress(b'{"header":{"id":1},"header":{"id":2}}', OURS)
    with pytest.raises(ValueError, match="no JSON pointer"):
        IdPlace("id")


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=4), JSON, max_size=4),
    st.none() | st.integers() | st.text(max_size=40),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_any_request_there_and_back(
    document: dict[str, Any], value: int | str | None, ascii_only: bool, indent: int | None
) -> None:
    document.pop("id", None)
    if value is not None:
        document["id"] = value
    payload = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    found = ID.readdress(payload, OURS)
    sent = json.loads(found.payload)
    assert sent == {**document, "id": str(OURS) if isinstance(value, str) else OURS}
    assert what(found.payload) == What.ANSWER
    if value is not None:
        assert found_in(found.payload).restored(found.payload, found.original) == payload


def test_an_answer_may_spell_the_id_as_it_likes() -> None:
    for answer in (b'{"result":[{"id":3}],"id":"%d"}', b'{"result":[{"id":3}],"id": %d }'):
        payload = answer % OURS
        found = found_in(payload)
        assert found.id == RequestId(5, 7, 9)
        assert json.loads(found.restored(payload, b"17"))["id"] == 17
    assert ID.find(b"") is None
    assert ID.find(b'{"id":17}') is None


# ---- where frames are decoded ------------------------------------------------------------------


class Line:
    """A connection whose server is the test; no message is to come to the manager."""

    def __init__(self, writer: Writer) -> None:
        self.name = writer.name
        self.server, client = socket.socketpair()
        client.setblocking(False)
        self.ingest = Ingest(writer, Scanner(["{/s}"], answer="/id", names_max=4))
        self.connection = Connection(
            OpenSocket(client, None),
            self.ingest,
            1,
            Config(name="answers", url="ws://127.0.0.1/"),
            lambda: None,
            control_received=self._no_message,
        )

    def _no_message(self, payload: bytes) -> tuple[int, bool]:
        raise AssertionError(payload)

    def say(self, *payloads: bytes) -> None:
        self.server.sendall(b"".join(map(text_frame, payloads)))
        while self.connection.turn(reading=True, ready=True) == MORE:
            pass

    def close(self) -> None:
        self.connection.finish()
        self.server.close()


@pytest.fixture
def line(name: str) -> Iterator[Line]:
    with Writer.create(name, slots=16, capacity=1 << 14, max_readers=4) as writer:
        line = Line(writer)
        yield line
        line.close()


def answer_to(reader: Reader, counter: int = 0) -> bytes:
    return b'{"id":%d}' % make_request_id(reader.slot, reader.generation, counter)


def payloads(reader: Reader) -> list[bytes]:
    return [bytes(message) for message in reader.read_available()]


def test_an_answer_goes_to_one_reader_and_only_while_it_lives(line: Line) -> None:
    with Reader.attach(line.name) as first, Reader.attach(line.name, topics=[]) as second:
        line.say(answer_to(first), b'{"id":5}', answer_to(second, 1))
        assert payloads(first) == [answer_to(first), b'{"id":5}']
        assert payloads(second) == [answer_to(second, 1)]
        assert line.ingest.answers_dropped == 0
        late, slot = answer_to(second), second.slot
    with Reader.attach(line.name), Reader.attach(line.name) as third:
        assert third.slot == slot
        line.say(late, b'{"id":6}')
        assert payloads(third) == [b'{"id":6}']
        assert line.ingest.answers_dropped == 1
        # Slots that there are not, and one that nobody has.
        line.say(*(b'{"id":%d}' % make_request_id(s, 0, 0) for s in (2, 3, 4, 1023)))
        assert payloads(third) == []
        assert line.ingest.answers_dropped == 5


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_the_next_reader_in_the_slot_does_not_find_it_in_the_ring(line: Line, policy: Any) -> None:
    with Reader.attach(line.name) as first:
        line.say(answer_to(first), b'{"id":5}')
        slot = first.slot
    with Reader.attach(line.name, policy=policy, start="oldest") as second:
        assert second.slot == slot
        assert payloads(second) == [b'{"id":5}']
    with (
        Reader.attach(line.name, policy=policy, start="oldest") as third,
        third.batch(timeout=0) as batch,
    ):
        assert [bytes(batch.payload(i)) for i in range(len(batch))] == [b'{"id":5}']


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_a_batch_has_no_message_for_others(line: Line, policy: Any) -> None:
    with Reader.attach(line.name) as first, Reader.attach(line.name, policy=policy) as second:
        line.say(b"1", answer_to(first), answer_to(first), b"2", b"3", answer_to(first))
        found: list[bytes] = []
        while len(found) < 3:
            with second.batch(timeout=0) as batch:
                found += [bytes(batch.payload(i)) for i in range(len(batch))]
        assert found == [b"1", b"2", b"3"]
        with second.batch(timeout=0) as batch:
            assert len(batch) == 0

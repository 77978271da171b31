"""From the ring to the sockets, byte by byte: what clients get of what was published, whatever
their sockets take at a time."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
from typing import Final

import pytest

from ringcast import shm
from ringcast.broker.gateway import _fanout
from ringcast.broker.worker.wire import RecordType
from ringcast.broker.worker.wire import records as parsed
from ringcast.shm.broadcast import Reader
from tests.frames import BINARY, PONG, TEXT, frame

from .outlets import EVENT, Frame, Line, Out, Ring, out, ring

LENGTHS: Final = (0, 1, 125, 126, 127, 1024, 1025, 65535, 65536)
LARGE: Final = {"slots": 64, "capacity": 1 << 20}


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# ---- frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("received", [False, True])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_frames_of_every_length(name: str, kind: int, received: bool) -> None:
    with ring(name, **LARGE) as made, out(name) as sends:
        line = sends.add()
        for length in LENGTHS:
            made.publish(noise(length), kind, received=received)
        sends.drain()
        assert bytes(line.data) == b"".join(frame(kind, noise(length)) for length in LENGTHS)
        assert line.outlet.messages == len(LENGTHS)
        assert line.outlet.bytes_sent == len(line.data)


def test_records_of_every_length(name: str) -> None:
    with ring(name, **LARGE) as made, out(name) as sends:
        line = sends.add(records=True)
        kinds = itertools.cycle((TEXT, BINARY, EVENT))
        sent = [(i, next(kinds), noise(length)) for i, length in enumerate(LENGTHS)]
        for i, kind, payload in sent:
            made.writer.publish(payload, kind=kind, key=i + 7)
        sends.drain()
        got = line.records()
        assert [(r.sequence, r.kind, r.payload) for r in got] == sent
        assert [(r.key, r.total, r.offset) for r in got] == [
            (i + 7, len(payload), 0) for i, _, payload in sent
        ]
        assert {(r.type, r.gap, r.epoch, r.topic) for r in got} == {(RecordType.MESSAGE, 0, 1, 0)}
        assert all(r.time_ns > 0 for r in got)


def test_events_are_for_records_only(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        plain, told = sends.add(), sends.add(records=True)
        made.publish(b"a", TEXT)
        made.publish(b"{}", EVENT)
        made.publish(b"b", TEXT)
        sends.drain()
        assert plain.frames() == [Frame(TEXT, b"a"), Frame(TEXT, b"b")]
        assert [r.payload for r in told.records()] == [b"a", b"{}", b"b"]
        assert sends.fanout.take_events() == [1]
        assert sends.fanout.payload(1) == b"{}"
        assert sends.fanout.take_events() == []


# ---- sockets that take a part --------------------------------------------------------------


def send_in_parts(sends: Out, line: Line, sizes: random.Random) -> None:
    """To the end, with a client that reads a few bytes at a time."""
    sends.fanout.look()
    line.outlet.resume()
    while sends.pump():
        line.read(sizes.choice((1, 7, 300, 5000)))
        line.outlet.resume()
    while line.read():
        pass


@pytest.mark.parametrize("records", [False, True], ids=["plain", "records"])
@pytest.mark.parametrize("received", [False, True], ids=["built", "received"])
def test_a_send_that_ends_at_any_byte(name: str, records: bool, received: bool) -> None:
    """The first message is longer by a byte each time, so that what the socket takes ends at each
    byte of the header and of the payload of the messages behind it."""
    dice = random.Random(1)
    header = 74 if records else 10
    ends = set()
    with ring(name, slots=256, capacity=1 << 18) as made, out(name) as sends:
        for more in range(2 * (header + 126)):
            line = sends.add(records=records, small=True)
            first = made.writer.sequence
            payloads = [noise(1100 + more, more), *(noise(126, i) for i in range(60))]
            for payload in payloads:
                made.publish(payload, received=received)
            sends.fanout.look()
            sends.pump()
            ends.add(line.outlet.bytes_sent - more)
            send_in_parts(sends, line, dice)
            if records:
                assert [r.payload for r in line.records()] == payloads
                assert [r.sequence for r in line.records()] == list(range(first, first + 61))
            else:
                assert bytes(line.data) == b"".join(frame(BINARY, p) for p in payloads)
            assert line.outlet.messages == len(payloads)
            sends.fanout.remove(line.outlet)
            sends.fanout.let_go(keep=0, keep_blocking=False)
    assert len(ends) > header + 126, "the sends did not end everywhere"


@pytest.mark.parametrize("records", [False, True], ids=["plain", "records"])
def test_a_part_of_a_message_behind_unwanted_ones(name: str, records: bool) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add(records=records, chooses=True, small=True)
        wanted, other = made.writer.topic("a"), made.writer.topic("b")
        line.outlet.choose([wanted], 2)
        made.publish(b"x" * 200, topic=other)
        made.publish(noise(12000), topic=wanted)
        made.publish(b"y" * 100, topic=other)
        send_in_parts(sends, line, random.Random(0))
        got = [bytes(r.payload) for r in line.records()] if records else None
        assert (got or [f.payload for f in line.frames()]) == [noise(12000)]


def test_own_frames_go_between_frames(name: str) -> None:
    dice = random.Random(2)
    with ring(name, slots=256, capacity=1 << 18) as made, out(name) as sends:
        for records in (False, True):
            line = sends.add(records=records, small=True)
            own, payloads = [], []
            for i in range(60):
                payloads.append(noise(dice.choice((0, 10, 200, 3000)), i))
                made.publish(payloads[-1], received=i % 2 == 0)
                sends.fanout.look()
                sends.pump()
                own.append(b"own %d" % i)
                line.outlet.queue(frame(PONG, own[-1]))
                line.read(dice.choice((1, 100, 2000)))
                line.outlet.resume()
            send_in_parts(sends, line, dice)
            assert [f.payload for f in line.frames() if f.opcode == PONG] == own
            got = [r.payload for r in line.records()] if records else None
            assert (got or [f.payload for f in line.messages()]) == payloads
            assert line.outlet.pending == 0
            sends.fanout.remove(line.outlet)
            sends.fanout.let_go(keep=0, keep_blocking=False)


# ---- topics --------------------------------------------------------------------------------


def test_chosen_topics(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        some = sends.add(chooses=True)
        ids = [made.writer.topic(text) for text in ("a", "b")]
        for topic in (*ids, 0, *ids):
            made.publish(b"%d" % topic, topic=topic)
        sends.fanout.look()
        assert sends.pump() == {some.outlet: _fanout.TOPIC}
        some.outlet.choose([ids[1]], 2)
        sends.drain()
        assert [f.payload for f in some.frames()] == [b"2", b"2"]
        some.outlet.choose([0, ids[0]], 2)
        for topic in (*ids, 0):
            made.publish(b"%d" % topic, topic=topic)
        sends.drain()
        assert [f.payload for f in some.frames()] == [b"2", b"2", b"1", b"0"]
        third = made.writer.topic("c")
        made.publish(b"3", topic=third)
        sends.fanout.look()
        assert sends.pump() == {some.outlet: _fanout.TOPIC}
        some.outlet.choose([], 3)
        sends.drain()
        assert len(some.frames()) == 4


def test_choosing_what_there_cannot_be(name: str) -> None:
    with ring(name), out(name) as sends:
        some = sends.add(chooses=True)
        with pytest.raises(ValueError, match="topic 2 is beyond 1"):
            some.outlet.choose([2], 1)
        with pytest.raises(ValueError, match="more than the 64"):
            some.outlet.choose([1 << 20], 1 << 31)


def test_one_that_got_everything_chooses(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add()
        topic = made.writer.topic("a")
        made.publish(b"before")
        sends.drain()
        line.outlet.choose([topic], 1)
        for payload, of in ((b"none", 0), (b"a", topic), (b"none", 0)):
            made.publish(payload, topic=of)
        sends.drain()
        assert [f.payload for f in line.frames()] == [b"before", b"a"]


def test_it_is_asked_about_topics_that_are_unsure(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add(chooses=True)
        a, b = made.writer.topic("a"), made.writer.topic("b")
        line.outlet.choose([a], 2, unsure=[b])
        at = [made.publish(b"%d" % topic, topic=topic) for topic in (a, b, a)]
        sends.fanout.look()
        assert sends.pump() == {line.outlet: _fanout.TOPIC}
        assert (line.outlet.next, sends.fanout.topic_of(line.outlet.next)) == (at[1], b)
        line.outlet.queue(frame(TEXT, b"yes"))
        line.outlet.choose([a, b], 2)
        sends.drain()
        assert [f.payload for f in line.frames()] == [b"1", b"yes", b"2", b"1"]


# ---- what is put in between ----------------------------------------------------------------


@pytest.mark.parametrize("records", [False, True], ids=["plain", "records"])
@pytest.mark.parametrize("received", [False, True], ids=["built", "received"])
def test_what_is_inserted_stands_in_its_place(name: str, records: bool, received: bool) -> None:
    dice = random.Random(received)
    with ring(name, **LARGE) as made, out(name) as sends:
        line = sends.add(records=records, small=True)
        expected: list[bytes] = []
        for i in range(60):
            if dice.randrange(3) == 0:
                put = b"put %d" % i
                line.outlet.insert(i, frame(TEXT, put))
                expected.append(put)
            payload = b"%d" % i * dice.choice((1, 40, 4000))
            made.publish(payload, received=received)
            expected.append(payload)
            if dice.randrange(4) == 0:
                sends.fanout.look()
                send_in_parts(sends, line, dice)
        line.outlet.insert(60, frame(TEXT, b"last"))
        sends.drain()
        send_in_parts(sends, line, dice)
        got: list[bytes] = []
        for each in line.frames():
            if records and each.opcode == BINARY:
                got += [bytes(record.payload) for record in parsed(each.payload)]
            else:
                got.append(each.payload)
        assert got == [*expected, b"last"]
        assert (line.outlet.pending, line.outlet.inserted) == (0, 0)


def test_what_is_inserted_outlives_the_messages_around_it(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add()
        line.outlet.insert(2, frame(TEXT, b"put"))
        for i in range(4):
            made.publish(b"%d" % i)
        sends.fanout.look()
        assert sends.fanout.let_go(keep=1, keep_blocking=False) == [line.outlet]
        sends.drain()
        assert [f.payload for f in line.frames()] == [b"put", b"3"]


def test_messages_for_one_reader(name: str) -> None:
    """They go to nobody by themselves; whose they are is reported."""
    with ring(name) as made, out(name) as sends:
        line = sends.add()
        at = made.publish(b"mine")
        assert at is not None
        place = made.descriptor(at)
        struct.pack_into("<H", made.bytes, place + 44, 3)
        struct.pack_into("<Q", made.bytes, place + 32, 77)
        made.publish(b"all")
        sends.drain()
        (mine,) = sends.fanout.take_addressed()
        assert (mine.sequence, mine.slot, mine.generation, mine.kind) == (at, 2, 77, BINARY)
        assert sends.fanout.payload(at) == b"mine"
        assert sends.fanout.take_addressed() == []
        assert [f.payload for f in line.frames()] == [b"all"]


def test_records_wait_until_names_of_topics_are_known(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add(records=True)
        made.publish(b"x", topic=made.writer.topic("a"))
        sends.fanout.look()
        assert sends.pump() == {line.outlet: _fanout.TOPIC}
        line.outlet.knows(1)
        sends.drain()
        assert [(r.topic, r.payload) for r in line.records()] == [(1, b"x")]


# ---- who is behind -------------------------------------------------------------------------


def fill(made: Ring, count: int, size: int = 100) -> None:
    for i in range(count):
        assert made.publish(noise(size, i), received=i % 2 == 0) is not None


@pytest.mark.parametrize("records", [False, True], ids=["plain", "records"])
def test_who_is_behind_loses_and_is_counted(name: str, records: bool) -> None:
    with ring(name) as made, out(name) as sends:
        slow, quick = sends.add(records=records, small=True), sends.add()
        for _ in range(2):  # one frame of records holds what is there at a time
            fill(made, 30, size=1000)
            sends.fanout.look()
            sends.pump()
        assert slow.outlet.waits
        assert sends.fanout.let_go(keep=10, keep_blocking=False) == [slow.outlet]
        assert sends.fanout.floor == 50
        lost = slow.outlet.lost
        sends.drain()
        assert [f.payload for f in quick.frames()] == [noise(1000, i % 30) for i in range(60)]
        if records:
            sequences = [r.sequence for r in slow.records()]
            gaps = [r.gap for r in slow.records() if r.gap]
            assert gaps == [lost]
        else:
            sequences = [*range(50 - lost), *range(50, 60)]
            got = [f.payload for f in slow.frames()]
            assert got == [noise(1000, i % 30) for i in sequences]
        assert sequences == [*range(50 - lost), *range(50, 60)]
        assert 20 <= lost < 50
        assert slow.outlet.messages == 60 - lost


def test_only_wanted_messages_are_lost(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add(records=True, chooses=True)
        wanted, other = made.writer.topic("a"), made.writer.topic("b")
        line.outlet.choose([wanted], 2)
        for topic in (other, wanted, other, wanted, other, wanted):
            made.publish(b"x", topic=topic)
        sends.fanout.look()
        assert sends.fanout.let_go(keep=4, keep_blocking=False) == [line.outlet]
        assert line.outlet.lost == 1
        sends.drain()
        assert [(r.sequence, r.gap) for r in line.records()] == [(3, 1), (5, 0)]


def test_who_loses_nothing_is_not_behind(name: str) -> None:
    """Neither one that does not want what goes by, nor one whose rest is copied aside."""
    with ring(name) as made, out(name) as sends:
        idle, part = sends.add(chooses=True), sends.add(small=True)
        idle.outlet.choose([], 1)
        made.publish(noise(10000), topic=made.writer.topic("a"))
        sends.fanout.look()
        sends.pump()
        assert part.outlet.pending
        assert sends.fanout.let_go(keep=0, keep_blocking=False) == []
        assert sends.fanout.floor == 1
        fill(made, 2)
        sends.drain()
        assert [f.payload for f in part.frames()] == [noise(10000), noise(100, 0), noise(100, 1)]
        assert idle.frames() == []


def test_who_blocks_is_kept_as_long_as_that_is_asked_for(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add(lossy=False)
        fill(made, 20)
        sends.fanout.look()
        assert sends.fanout.let_go(keep=5, keep_blocking=True) == []
        assert sends.fanout.floor == 0
        assert sends.fanout.let_go(keep=5, keep_blocking=False) == [line.outlet]
        assert (sends.fanout.floor, line.outlet.lost) == (15, 15)
        sends.drain()
        assert len(line.frames()) == 5


@pytest.mark.parametrize("records", [False, True], ids=["plain", "records"])
def test_a_large_message_is_cut_in_its_middle(name: str, records: bool) -> None:
    """What follows it stands between frames, and the ring has its place back at once."""
    with ring(name) as made, out(name) as sends:
        line = sends.add(records=records, small=True)
        made.publish(noise(16000))
        sends.fanout.look()
        sends.pump()
        assert line.outlet.pending
        line.outlet.queue(frame(PONG, b"end"))
        line.outlet.stop(0)
        sends.fanout.let_go(keep=0, keep_blocking=False)
        assert sends.fanout.floor == 1
        assert line.outlet.lost == 0
        for _ in range(8):  # the ring starts over, where the message was
            made.publish(bytes(12000))
            sends.fanout.look()
            sends.fanout.let_go(keep=0, keep_blocking=False)
        send_to_stop(sends, line)
        got = [bytes(r.payload) for r in line.records()] if records else None
        assert (got or [f.payload for f in line.messages()]) == [noise(16000)]
        assert line.frames()[-1] == Frame(PONG, b"end")
        assert len(line.frames()) == 2


def send_to_stop(sends: Out, line: Line) -> None:
    line.outlet.resume()
    while sends.pump() != {line.outlet: _fanout.STOPPED}:
        line.read()
        line.outlet.resume()
    line.read()


def test_stop(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add()
        fill(made, 10)
        line.outlet.stop(6)
        line.outlet.stop(8)
        sends.fanout.look()
        line.outlet.queue(frame(PONG, b"before"))
        assert sends.pump() == {line.outlet: _fanout.STOPPED}
        line.outlet.queue(frame(PONG, b"after"))
        assert sends.pump() == {line.outlet: _fanout.STOPPED}
        assert sends.fanout.let_go(keep=0, keep_blocking=False) == []
        assert sends.fanout.floor == 10
        line.read()
        payloads = [noise(100, i) for i in range(6)]
        assert [f.payload for f in line.frames()] == [b"before", *payloads, b"after"]


def test_missed_before_it_came(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add(records=True, missed=5)
        made.publish(b"x")
        made.publish(b"y")
        sends.drain()
        assert [(r.payload, r.gap) for r in line.records()] == [(b"x", 5), (b"y", 0)]
        assert line.outlet.lost == 5


# ---- one fan-out and another ---------------------------------------------------------------


def test_adopt(name: str) -> None:
    with ring(name) as made, out(name) as late, out(name) as main:
        line = late.add(start=0)
        fill(made, 3)
        main.fanout.look()
        main.fanout.let_go(keep=0, keep_blocking=False)
        with pytest.raises(ValueError, match="not held"):
            main.fanout.adopt(line.outlet)
        late.drain()
        late.fanout.remove(line.outlet)
        main.fanout.adopt(line.outlet)
        made.publish(b"x", TEXT)
        main.fanout.look()
        main.pump()
        late.drain()
        assert len(line.frames()) == 4
        assert line.frames()[-1] == Frame(TEXT, b"x")
        with pytest.raises(ValueError, match="list"):
            late.fanout.remove(line.outlet)


def test_what_is_not_held(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        fill(made, 3)
        sends.fanout.look()
        for start in (4, 1 << 60):
            with pytest.raises(ValueError, match="not held"):
                sends.add(start=start)
        with pytest.raises(ValueError, match="not held"):
            sends.fanout.payload(3)
        lossy = Reader.attach(name, policy="lossy")
        with lossy, pytest.raises(ValueError, match="lossless"):
            _fanout.Fanout(lossy)


def test_the_end(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add()
        made.publish(b"last", TEXT)
        made.writer.close()
        assert sends.fanout.look()
        with pytest.raises(shm.RingClosed):
            sends.fanout.look()
        sends.pump()
        line.read()
        assert line.frames() == [Frame(TEXT, b"last")]


def test_evicted(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        line = sends.add()
        made.publish(b"x", TEXT)
        sends.fanout.look()
        assert made.writer.evict(0)
        with pytest.raises(shm.Evicted):
            sends.pump()
        with pytest.raises(shm.Evicted):
            sends.fanout.look()
        line.read()
        assert line.frames() in ([], [Frame(TEXT, b"x")])


def test_a_client_that_has_gone(name: str) -> None:
    with ring(name) as made, out(name) as sends:
        gone, other = sends.add(), sends.add()
        gone.theirs.close()
        made.publish(b"x", TEXT)
        sends.fanout.look()
        assert sends.pump() == {gone.outlet: _fanout.FAILED}
        assert os.strerror(gone.outlet.error) == "Broken pipe"
        other.read()
        assert other.frames() == [Frame(TEXT, b"x")]


# ---- anything, in any order ----------------------------------------------------------------


class Plan:
    """One client's part, and what it has to have got in the end."""

    def __init__(self, line: Line, *, records: bool, lossy: bool, topics: set[int] | None) -> None:
        self.line = line
        self.records = records
        self.lossy = lossy
        self.topics = topics
        self.begin = line.outlet.next
        self.stop: int | None = None
        self.own: list[bytes] = []

    def check(self, sent: list[Sent]) -> None:
        """It got what it wanted but for what it lost, whole and in order."""
        frames = self.line.frames()
        assert [f.payload for f in frames if f.opcode == PONG] == self.own
        wanted = [m for m in sent[self.begin : self.stop] if self.wants(m)]
        if self.records:
            got = [
                (r.sequence, r.kind, r.topic, bytes(r.payload), r.gap) for r in self.line.records()
            ]
        else:
            got = [
                (int.from_bytes(f.payload[:4], "big"), f.opcode, 0, f.payload, 0)
                for f in self.line.messages()
            ]
        rest, gaps = iter(wanted), 0
        for sequence, kind, topic, payload, gap in got:
            missed = 0
            while (message := next(rest)).sequence != sequence:
                missed += 1
            assert (kind, payload) == (message.kind, message.payload)
            if self.records:
                assert topic == message.topic
                assert gap == missed
            gaps += missed
        gaps += len(list(rest))
        assert gaps == self.line.outlet.lost
        assert self.lossy or gaps == 0
        assert self.line.outlet.messages == len(got)

    def wants(self, message: Sent) -> bool:
        return (self.records or message.kind != EVENT) and (
            self.topics is None or message.topic in self.topics or message.kind == EVENT
        )


class Sent:
    """A message of the test."""

    def __init__(self, sequence: int, dice: random.Random) -> None:
        self.sequence = sequence
        self.kind = dice.choice((TEXT, BINARY, BINARY, EVENT))
        self.topic = 0 if self.kind == EVENT else dice.randrange(4)
        size = dice.choice((0, 20, 117, 118, 121, 122, 1019, 1021, 4000, 9000))
        self.payload = sequence.to_bytes(4, "big") + dice.randbytes(size)
        self.received = self.kind != EVENT and dice.random() < 0.5


def play(name: str, dice: random.Random, turns: int) -> None:
    """Messages and clients at random; then all is compared."""
    sent: list[Sent] = []
    with ring(name, slots=32) as made, out(name) as sends:
        for topic in ("a", "b", "c"):
            made.writer.topic(topic)
        plans = []
        for records, lossy, chooses in itertools.product((False, True), repeat=3):
            line = sends.add(
                records=records, lossy=lossy, chooses=chooses, small=dice.random() < 0.7
            )
            topics = set(dice.sample(range(4), 2)) if chooses else None
            if topics is not None:
                line.outlet.choose(sorted(topics), 3)
            elif records:
                line.outlet.knows(3)
            plans.append(Plan(line, records=records, lossy=lossy, topics=topics))
        for _ in range(turns):
            step(made, sends, dice, sent, plans)
        sends.drain()
        for plan in plans:
            plan.check(sent)


def step(made: Ring, sends: Out, dice: random.Random, sent: list[Sent], plans: list[Plan]) -> None:
    """One of the things that happen."""
    plan = dice.choice(plans)
    what = dice.randrange(10)
    if what < 4:
        message = Sent(len(sent), dice)
        done = made.publish(message.payload, message.kind, message.topic, received=message.received)
        if done is not None:
            assert done == message.sequence
            sent.append(message)
    elif what == 4:
        sends.fanout.look()
    elif what == 5:
        sends.pump()
    elif what == 6:
        sends.fanout.let_go(keep=dice.choice((0, 5, 16)), keep_blocking=True)
    elif what == 7 and plan.stop is None and dice.random() < 0.02:
        plan.stop = max(plan.line.outlet.next, len(sent) - dice.randrange(20)) + (
            1 if plan.line.outlet.pending else 0
        )
        plan.line.outlet.stop(plan.stop)
    elif what == 8 and plan.stop is None and dice.random() < 0.3:
        plan.own.append(b"%d" % len(plan.own))
        plan.line.outlet.queue(frame(PONG, plan.own[-1]))
    else:
        plan.line.read(dice.choice((1, 100, 3000, 30000)))
        plan.line.outlet.resume()


@pytest.mark.parametrize(
    ("rounds", "turns"), [(20, 3000), pytest.param(100, 20000, marks=pytest.mark.stress)]
)
def test_anything_in_any_order(name: str, rounds: int, turns: int) -> None:
    for _ in range(rounds):
        seed = random.SystemRandom().getrandbits(32)
        print(f"seed {seed}")
        play(name, random.Random(seed), turns)


# ---- what no writer writes -----------------------------------------------------------------


def test_descriptors_that_no_writer_writes(name: str) -> None:
    """Whatever stands in them, nothing outside the arena is sent, and nothing crashes."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    numbers = (0, 1, 63, 1 << 15, (1 << 16) - 1, (1 << 16) + 1, (1 << 32) - 1, (1 << 63) + 7)
    for _ in range(150):
        with ring(name, slots=16) as made, out(name) as sends:
            lines = [
                sends.add(records=records, chooses=chooses, small=dice.random() < 0.5)
                for records, chooses in itertools.product((False, True), repeat=2)
            ]
            for i in range(8):
                made.publish(noise(dice.choice((0, 100, 3000)), i), received=i % 2 == 0)
            if dice.random() < 0.5:
                sends.fanout.look()
                sends.pump()
            for _ in range(dice.randrange(1, 4)):
                at = made.descriptor(dice.randrange(8)) + 8 * dice.randrange(8)
                value = dice.choice((*numbers, dice.randrange(1 << 64)))
                struct.pack_into("<Q", made.bytes, at, value)
            for _ in range(4):
                try:
                    sends.fanout.look()
                    sends.pump()
                    for sequence in range(9):
                        use(sends, sequence)
                    sends.fanout.let_go(keep=dice.randrange(3), keep_blocking=False)
                except (shm.RingError, ValueError):
                    break
                for line in lines:
                    line.read()
                    line.outlet.resume()


def use(sends: Out, sequence: int) -> None:
    """Read a message that may have gone, or be none."""
    with contextlib.suppress(shm.RingError, ValueError):
        assert len(sends.fanout.payload(sequence)) <= sends.reader.max_message


@pytest.mark.parametrize("seed", range(3))
def test_clients_anywhere_get_all_of_a_mixture(name: str, seed: int) -> None:
    """Short messages are copied together for all, long ones and received ones are not; each client
    reads a little, now and then, so all are at places of their own."""
    dice = random.Random(seed)
    with ring(name, slots=1024, capacity=1 << 20) as made, out(name) as sends:
        lines = [
            sends.add(records=records, small=dice.random() < 0.5, lossy=False)
            for records in (False, True) * 3
        ]
        expected: list[bytes] = []
        while len(expected) < 2500:
            for _ in range(dice.choice((1, 30, 300))):
                size = dice.choice((0, 5, 5, 5, 120, 1024, 1025, 3000))
                payload = b"%d " % len(expected) + bytes(size)
                if made.publish(payload, received=dice.random() < 0.1) is None:
                    break
                expected.append(payload)
            sends.fanout.look()
            for line in lines:
                if dice.random() < 0.7:
                    line.read(dice.choice((10, 1000, 50_000)))
                    line.outlet.resume()
            sends.pump()
            sends.fanout.let_go(keep=1024, keep_blocking=True)
        while any(line.outlet.next < sends.fanout.end for line in lines) or any(
            line.outlet.pending for line in lines
        ):
            for line in lines:
                line.read()
                line.outlet.resume()
            sends.pump()
        for line in lines:
            while line.read():
                pass
        for at, line in enumerate(lines):
            if at % 2:
                got = [bytes(record.payload) for record in line.records()]
            else:
                got = [message.payload for message in line.messages()]
            assert got == expected

"""Queues that a gateway fills: what goes in, what is lost, and what outlives a gateway."""

from __future__ import annotations

import os
import random
import resource
import select
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from ringcast import shm
from ringcast.broker.gateway.queues import MESSAGE_SIZE_MIN, QueueOptions, QueueWriter
from ringcast.broker.worker.wire import HEADER_SIZE, Hello, Record, RecordType
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import leftovers
from tests.unit.broker.cli.conftest import lines, only, parsed

from .conftest import INSTANCE, LABEL, SMALL, Gateway, Tap, joined, new_writer

ROOM: Final = SMALL - HEADER_SIZE
"""Bytes of the longest payload that goes in one piece."""


def publish(writer: Writer, count: int, size: int = ROOM // 2 + 1) -> None:
    """Messages of which each takes a message of the queue for itself."""
    for _ in range(count):
        writer.publish(b"x" * size, timeout=0)


def fill(ring: Writer, gateway: Gateway) -> None:
    """Four messages, and the queue is full."""
    publish(ring, 4)
    assert gateway.pass_on() == 0
    assert gateway.writer.lost == 0


def writable(gateway: Gateway) -> bool:
    poll = select.poll()
    poll.register(gateway.writer, select.POLLOUT)
    return bool(poll.poll(0))


@pytest.fixture
def blocking(ring: Writer) -> Iterator[Gateway]:
    """A gateway with a queue that blocks."""
    with Reader.attach(ring.name) as reader:
        gateway = Gateway(reader, new_writer(ring.name, reader, policy="block"))
        yield gateway
        gateway.writer.close("over")


# ---- what goes in --------------------------------------------------------------------------


def test_a_message_has_what_its_descriptor_says(
    mqueue: Path, ring: Writer, gateway: Gateway, tap: Tap
) -> None:
    del mqueue
    topic = ring.topic("btcusdt@trade")
    ring.publish(b"hello", topic=topic, kind=shm.Kind.TEXT, key=7)
    reader = Reader.attach(ring.name, start="oldest")
    message = reader.read(timeout=0)
    assert message is not None
    gateway.pass_on()
    naming, record = tap.take()
    assert naming == Record(RecordType.TOPIC, b"btcusdt@trade", topic=topic)
    assert record == Record(
        RecordType.MESSAGE,
        b"hello",
        kind=1,
        sequence=0,
        time_ns=message.time_ns,
        key=7,
        topic=topic,
        epoch=1,
    )
    assert record.total == 5


def test_all_sizes_come_whole_and_in_order(ring: Writer, blocking: Gateway) -> None:
    rng = random.Random(6)
    edges = [ROOM - 1, ROOM, ROOM + 1, 2 * ROOM - 1, 2 * ROOM, 2 * ROOM + 1, ring.max_message]
    sizes = [0, 1, *edges, *rng.choices(range(300), k=200), 0, *rng.choices(range(5000), k=60)]
    sent = [rng.randbytes(size) for size in sizes]
    tap = Tap.of(ring.name)
    got: list[Record] = []
    for number, payload in enumerate(sent):
        ring.publish(payload, timeout=0)
        if rng.random() < 0.2 or number == len(sent) - 1:
            got += all_of(blocking, tap)
    assert blocking.writer.lost == 0
    assert joined(got) == list(enumerate(sent))
    assert max(tap.sizes) == SMALL
    assert blocking.writer.sent == len(sent)
    assert {record.gap for record in got} == {0}
    tap.queue.close()


def all_of(gateway: Gateway, tap: Tap) -> list[Record]:
    """What the ring has and the queue gets, message by message of the queue."""
    got: list[Record] = []
    while True:
        with gateway.reader.batch(timeout=0) as batch:
            at = 0
            while at < len(batch):
                at = gateway.writer.offer(batch, at)
                got += tap.messages(1)
            while not gateway.writer.flush():
                got += tap.messages(1)
            if len(batch) == 0:
                return got + tap.messages()


def test_a_queue_message_holds_as_many_as_fit(ring: Writer, gateway: Gateway, tap: Tap) -> None:
    for _ in range(33):
        ring.publish(bytes(64))
    gateway.pass_on()
    assert len(tap.messages(1)) == SMALL // 128
    assert len(tap.messages(1)) == SMALL // 128
    assert len(tap.messages(1)) == 1


def test_each_queue_message_names_the_topics_that_it_uses(
    ring: Writer, gateway: Gateway, tap: Tap
) -> None:
    ids = [ring.topic(f"t{n}") for n in range(3)]
    for n in range(36):
        ring.publish(bytes(100), topic=ids[n % 3] if n % 7 else 0)
    ring.publish(b"a number without a name", topic=4000)
    gateway.pass_on()
    seen = 0
    while found := tap.take(1):
        named: dict[int, bytes] = {0: b"", 4000: b""}
        for record in found:
            if record.type is RecordType.TOPIC:
                assert record.topic not in named
                named[record.topic] = bytes(record.payload)
            else:
                assert record.topic in named
                seen += 1
        assert {named.get(i, b"t%d" % n) for n, i in enumerate(ids)} == {b"t0", b"t1", b"t2"}
    assert seen == 37


def test_hello_and_state_come_first_and_of_each_the_newest(
    ring: Writer, gateway: Gateway, tap: Tap
) -> None:
    hello = Hello(ring.name, INSTANCE, 256, 1 << 16, ring.max_message)
    fill(ring, gateway)
    gateway.writer.say(Record(RecordType.STATE, b"old"))
    gateway.writer.say(Record(RecordType.STATE, b"new"))
    gateway.writer.say(Record(RecordType.HELLO, hello.encode()))
    assert gateway.writer.waiting
    assert not gateway.writer.flush()
    tap.take(2)
    publish(ring, 1)
    gateway.pass_on()
    assert not gateway.writer.waiting
    found = [r for r in tap.take() if r.sequence != 2 or r.type is not RecordType.MESSAGE][-3:]
    assert [r.type for r in found] == [RecordType.HELLO, RecordType.STATE, RecordType.MESSAGE]
    assert Hello.decode(found[0].payload) == hello
    assert found[1].payload == b"new"


class Handmade:
    """Messages as no test's ring has them."""

    def __init__(self, sequences: list[int], destinations: list[int]) -> None:
        self.descriptors = np.zeros(len(sequences), shm.DESCRIPTOR)
        self.descriptors["seq1"] = np.array(sequences) + 1
        self.descriptors["length"] = 1
        self.descriptors["destination"] = destinations

    def payload(self, index: int) -> memoryview:
        return memoryview(b"%d" % (index % 10))


def test_what_is_for_another_alone_is_no_gap(gateway: Gateway, tap: Tap) -> None:
    assert gateway.writer.offer(Handmade([10, 11, 12, 13], [0, 3, 3, 0])) == 4
    assert gateway.writer.offer(Handmade([14, 15], [1, 1])) == 2
    assert gateway.writer.offer(Handmade([16], [0])) == 1
    found = tap.messages()
    assert [(r.sequence, bytes(r.payload), r.gap) for r in found] == [
        (10, b"0", 0),
        (13, b"3", 0),
        (16, b"0", 0),
    ]


# ---- a full queue --------------------------------------------------------------------------


def test_a_lossy_queue_loses_and_the_next_message_says_how_many(
    ring: Writer, gateway: Gateway, tap: Tap
) -> None:
    fill(ring, gateway)
    publish(ring, 5)
    assert gateway.pass_on() == 0
    assert gateway.writer.lost == 5
    assert not writable(gateway)
    assert not gateway.writer.flush()
    assert [r.sequence for r in tap.messages(1)] == [0]
    assert writable(gateway)
    publish(ring, 2)
    gateway.pass_on()
    found = tap.messages()
    assert [(r.sequence, r.gap) for r in found] == [(1, 0), (2, 0), (3, 0), (9, 5)]
    assert gateway.writer.flush()
    (gap,) = tap.take()
    assert (gap.type, gap.gap, gap.sequence) == (RecordType.GAP, 1, 11)
    publish(ring, 1)
    gateway.pass_on()
    assert [(r.sequence, r.gap) for r in tap.messages()] == [(11, 0)]
    assert (gateway.writer.lost, gateway.writer.waiting) == (6, False)


@pytest.mark.parametrize("policy", ["lossy", "block"])
def test_gaps_are_exactly_what_is_missing(ring: Writer, policy: str) -> None:
    """A reader that is now fast, now slow; with "block" the gateway gives up now and then."""
    rng = random.Random(ring.name)
    with Reader.attach(ring.name) as reader:
        gateway = Gateway(reader, new_writer(ring.name, reader, policy=policy))
        tap = Tap.of(ring.name)
        got: list[Record] = []
        for _ in range(300):
            for _ in range(rng.randrange(12)):
                ring.publish(bytes(rng.choice((0, 10, 500, 1500, 4000))), timeout=0)
            gateway.pass_on()
            if rng.random() < 0.5:
                got += tap.take(rng.randrange(4))
            if rng.random() < 0.5:
                gateway.writer.flush()
        while not gateway.writer.flush():
            got += tap.take()
        ring.publish(b"last")
        got += tap.take()
        gateway.pass_on()
        got += tap.take()
        check_gaps(got, ring.sequence)
        assert gateway.writer.lost == sum(r.gap for r in got) > 0
        gateway.writer.close("over")
        tap.queue.close()


def check_gaps(got: list[Record], published: int) -> None:
    """Every sequence is there, or in the gap where it is missing."""
    expected, part = 0, 0
    for record in got:
        if record.type is RecordType.GAP:
            expected += record.gap
            assert record.sequence == expected
            continue
        assert record.offset == part
        if part == 0:
            assert record.sequence == expected + record.gap
            expected = record.sequence + 1
        part = record.offset + len(record.payload)
        if part == record.total:
            part = 0
    assert (expected, part) == (published, 0)


def test_a_blocking_queue_says_where_to_go_on(ring: Writer, blocking: Gateway) -> None:
    tap = Tap.of(ring.name)
    publish(ring, 7)
    with blocking.reader.batch(timeout=0) as batch:
        assert blocking.writer.offer(batch) == 4
        assert blocking.writer.offer(batch, 4) == 4
        assert not writable(blocking)
        assert [r.sequence for r in tap.messages(2)] == [0, 1]
        assert blocking.writer.offer(batch, 4) == 6
        assert len(tap.messages()) == 4
        assert blocking.writer.offer(batch, 6) == 7
        assert blocking.writer.offer(batch, 7) == 7
    assert [(r.sequence, r.gap) for r in tap.messages()] == [(6, 0)]
    assert (blocking.writer.lost, blocking.writer.next_sequence) == (0, 7)
    tap.queue.close()


def test_what_a_gateway_can_not_keep_for_a_blocking_queue_is_a_gap(
    ring: Writer, blocking: Gateway
) -> None:
    tap = Tap.of(ring.name)
    publish(ring, 7)
    assert blocking.pass_on() == 3  # and lets go of them
    tap.take()
    publish(ring, 2)
    assert blocking.pass_on() == 0
    assert [(r.sequence, r.gap) for r in tap.messages()] == [(7, 3), (8, 0)]
    assert blocking.writer.lost == 3
    tap.queue.close()


def test_a_gateway_says_what_it_can_not_keep(ring: Writer, blocking: Gateway) -> None:
    tap = Tap.of(ring.name)
    publish(ring, 7)
    assert blocking.pass_on() == 3
    blocking.writer.lapse(7)
    blocking.writer.lapse(7)
    blocking.writer.lapse(2)
    assert (blocking.writer.lost, blocking.writer.next_sequence) == (3, 7)
    tap.take()
    assert blocking.writer.flush()
    (gap,) = tap.take()
    assert (gap.type, gap.gap, gap.sequence) == (RecordType.GAP, 3, 7)
    tap.queue.close()


def test_a_batch_with_far_more_than_the_queue_has_room_for(blocking: Gateway) -> None:
    tap = Tap.of(blocking.reader.name)
    count = 5000
    messages = Handmade(list(range(count)), [0] * count)
    got: list[Record] = []
    at = 0
    while at < count:
        before, at = at, blocking.writer.offer(messages, at)
        assert at > before
        got += tap.messages()
    assert [record.sequence for record in got] == list(range(count))
    assert blocking.writer.lost == 0
    tap.queue.close()


@pytest.mark.parametrize("policy", ["lossy", "block"])
def test_a_long_message_that_has_begun_is_completed(ring: Writer, policy: str) -> None:
    payload = random.Random(1).randbytes(7 * ROOM + 1)
    with Reader.attach(ring.name) as reader:
        gateway = Gateway(reader, new_writer(ring.name, reader, policy=policy))
        tap = Tap.of(ring.name)
        ring.publish(payload, timeout=0)
        ring.publish(b"after", timeout=0)
        left = gateway.pass_on()
        assert (left, gateway.writer.lost) == ((1, 0) if policy == "block" else (0, 1))
        got = tap.messages()
        while not gateway.writer.flush():
            got += tap.messages()
        got += tap.messages()
        assert joined(got) == [(0, payload)]
        ring.publish(b"later", timeout=0)
        gateway.pass_on()
        found = tap.messages()
        gaps = [(r.sequence, r.gap) for r in found]
        assert gaps == ([(2, 1)] if policy == "block" else [(2, 0)])
        gateway.writer.close("over")
        tap.queue.close()


# ---- a gateway that died -------------------------------------------------------------------


def test_the_next_gateway_goes_on_where_the_last_one_died(
    ring: Writer, gateway: Gateway, tap: Tap
) -> None:
    fill(ring, gateway)
    publish(ring, 3)
    gateway.pass_on()
    assert gateway.writer.lost == 3
    gateway.writer.abandon()
    publish(ring, 2)
    assert [r.sequence for r in tap.messages(2)] == [0, 1]
    writer = new_writer(ring.name, gateway.reader)
    assert (writer.next_sequence, writer.lost) == (4, 0)
    with Reader.attach(ring.name, start=4) as reader:
        with reader.batch(timeout=0) as batch:
            assert writer.offer(batch) == 5
        assert [(r.sequence, r.gap) for r in tap.messages()] == [(2, 0), (3, 0), (4, 0), (5, 0)]
        publish(ring, 1)
        Gateway(reader, writer).pass_on()
    assert [(r.sequence, r.gap) for r in tap.messages()] == [(9, 3)]
    writer.close("over")


def test_what_a_queue_has_already_is_passed_over(ring: Writer, gateway: Gateway, tap: Tap) -> None:
    publish(ring, 3)
    gateway.pass_on()
    with Reader.attach(ring.name, start="oldest") as reader, reader.batch(timeout=0) as batch:
        assert gateway.writer.offer(batch) == 3
    publish(ring, 1)
    gateway.pass_on()
    assert [(r.sequence, r.gap) for r in tap.messages()] == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_a_long_message_that_a_dead_gateway_has_begun_comes_again(
    ring: Writer, gateway: Gateway, tap: Tap
) -> None:
    payload = bytes(6 * ROOM)
    ring.publish(payload, timeout=0)
    gateway.pass_on()
    gateway.writer.abandon()
    writer = new_writer(ring.name, gateway.reader)
    assert writer.next_sequence == 0
    tap.take(1)
    with Reader.attach(ring.name, start="oldest") as reader:
        Gateway(reader, writer).pass_on()
        got = tap.messages()
        while not writer.flush():
            got += tap.messages()
    got += tap.messages()
    assert joined(got[3:]) == [(0, payload)]
    writer.close("over")


def test_a_gateway_that_died_before_it_got_a_message(gateway: Gateway, tap: Tap) -> None:
    del tap
    gateway.writer.abandon()
    writer = new_writer(gateway.reader.name, gateway.reader)
    assert writer.next_sequence is None
    writer.abandon()


@pytest.mark.parametrize("change", [{"depth": 5}, {"message_size": SMALL + 1}])
def test_a_queue_of_another_size_is_a_new_one(
    ring: Writer, gateway: Gateway, tap: Tap, change: dict[str, int]
) -> None:
    fill(ring, gateway)
    gateway.writer.abandon()
    writer = new_writer(ring.name, gateway.reader, **change)
    assert writer.next_sequence is None
    assert tap.queue.unlinked
    assert len(tap.messages()) == 4
    tap.queue.close()
    new = Tap.of(ring.name)
    assert new.take() == []
    assert (new.queue.depth, new.queue.message_size) == (
        change.get("depth", 4),
        change.get("message_size", SMALL),
    )
    new.queue.close()
    writer.close("over")


def test_a_queue_of_another_ring_of_that_name_is_a_new_one(
    ring: Writer, gateway: Gateway, tap: Tap
) -> None:
    fill(ring, gateway)
    gateway.writer.abandon()
    writer = QueueWriter.create(
        ring.name,
        LABEL,
        instance=INSTANCE + 1,
        topic_name=gateway.reader.topic_name,
        options=QueueOptions(depth=4, message_size=SMALL),
    )
    assert tap.queue.unlinked
    assert writer.next_sequence is None
    writer.close("over")


# ---- one for each end ----------------------------------------------------------------------


def test_a_queue_has_one_gateway_and_one_reader(ring: Writer, gateway: Gateway, tap: Tap) -> None:
    del tap
    with pytest.raises(shm.RingExists, match=f"belongs to a living process, {os.getpid()}"):
        new_writer(ring.name, gateway.reader)
    with pytest.raises(shm.RingExists, match="has a reader already"):
        Tap.of(ring.name)


def test_there_is_no_such_queue(name: str) -> None:
    with pytest.raises(shm.RingNotFound, match="start `ringcast gateway` with --queue"):
        Tap.of(name)


@pytest.mark.parametrize("label", ["", "UPPER", "a.b", "x" * 21, "-up"])
def test_a_label_obeys_the_rule_for_names_of_rings(label: str) -> None:
    with pytest.raises(ValueError, match="can't name a queue"):
        QueueWriter.create("md", label, instance=1, topic_name=lambda _: None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"depth": 0}, "at least 1 message, not 0"),
        ({"message_size": MESSAGE_SIZE_MIN - 1}, "at least 2048 bytes, not 2047"),
        ({"policy": "both"}, '"lossy" or "block"'),
        ({"mode": 0o666}, "no other is offered"),
    ],
)
def test_options_that_are_not_possible(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        QueueOptions(**options)


# ---- the system's limits -------------------------------------------------------------------


def as_nobody(check: Callable[[], None]) -> None:
    """Run a check in a child process without privileges."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            check()
        except BaseException:  # whatever it is, the parent shall see it
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def sysctl(limit: str) -> int:
    return int(Path(f"/proc/sys/fs/mqueue/{limit}").read_text(encoding="ascii"))


@pytest.mark.parametrize(
    ("option", "limit"), [("depth", "msg_max"), ("message_size", "msgsize_max")]
)
def test_the_error_names_the_sysctl_and_the_number(name: str, option: str, limit: str) -> None:
    allowed = sysctl(limit)
    one_more: dict[str, Any] = {option: allowed + 1}

    def check() -> None:
        with pytest.raises(shm.RingError) as caught:
            QueueWriter.create(
                name,
                LABEL,
                instance=1,
                topic_name=lambda _: None,
                options=QueueOptions(**one_more),
            )
        assert f"fs.mqueue.{limit} is {allowed}: `sysctl -w fs.mqueue.{limit}={allowed + 1}`" in (
            str(caught.value)
        )

    as_nobody(check)
    assert leftovers(name) == []


def test_the_error_names_the_limit_of_all_queues_of_a_user(name: str) -> None:
    def check() -> None:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (80_000, 80_000))
        with pytest.raises(shm.RingError, match=r"counts as 82880 bytes.*may have 80000 "):
            QueueWriter.create(name, LABEL, instance=1, topic_name=lambda _: None)

    as_nobody(check)
    assert leftovers(name) == []


def test_what_no_system_can_have(name: str) -> None:
    options = QueueOptions(message_size=1 << 25)
    with pytest.raises(shm.RingError, match="16777216 is the most that Linux can have"):
        QueueWriter.create(name, LABEL, instance=1, topic_name=lambda _: None, options=options)


# ---- the end -------------------------------------------------------------------------------


def test_the_end_is_said_and_nothing_is_left(mqueue: Path, ring: Writer) -> None:
    with Reader.attach(ring.name) as reader:
        gateway = Gateway(reader, new_writer(ring.name, reader))
        tap = Tap.of(ring.name)
        assert [path.name for path in mqueue.iterdir() if ring.name in path.name] == [
            f"rc.{ring.name}.q.{LABEL}"
        ]
        publish(ring, 1)
        gateway.pass_on()
        assert not tap.queue.unlinked
        gateway.writer.close("the ring has ended")
        gateway.writer.close("twice")
    assert tap.queue.unlinked
    message, ended = tap.take()
    assert message.type is RecordType.MESSAGE
    assert (ended.type, bytes(ended.payload)) == (RecordType.ENDED, b"the ring has ended")
    tap.queue.close()


def test_a_full_queue_ends_without_a_word(mqueue: Path, ring: Writer) -> None:
    del mqueue
    with Reader.attach(ring.name) as reader:
        gateway = Gateway(reader, new_writer(ring.name, reader))
        tap = Tap.of(ring.name)
        fill(ring, gateway)
        gateway.writer.close("the ring has ended")
    assert tap.queue.unlinked
    assert len(tap.messages()) == 4
    tap.queue.close()


def test_an_old_gateway_does_not_remove_the_queue_of_a_new_one(name: str, mqueue: Path) -> None:
    del mqueue
    with Writer.create(name, slots=8, capacity=1024) as ring, Reader.attach(name) as reader:
        old = new_writer(name, reader)
        ring.close()
        shm.unlink(name)
    with Writer.create(name, slots=8, capacity=1024), Reader.attach(name) as reader:
        new = new_writer(name, reader)
        old.close("the ring has ended")
        tap = Tap.of(name)
        assert not tap.queue.unlinked
        tap.queue.close()
        new.close("over")


# ---- listing and cleaning ------------------------------------------------------------------


def test_ls_shows_queues_and_clean_removes_them(
    name: str, mqueue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del mqueue
    only(monkeypatch, name)
    writer = Writer.create(name, slots=8, capacity=1024)
    with Reader.attach(name) as reader:
        queue = new_writer(name, reader)
        (entry,) = shm.list_rings()
        assert entry.queues == (LABEL,)
        assert parsed("ls", "--json")[0]["queues"] == [LABEL]
        head, row = lines("ls")
        assert (head.split()[-1], row.split()[-1]) == ("queues", LABEL)
        queue.abandon()
    del writer
    assert parsed("clean", name, "--json")[0]["outcome"] == "removed"
    assert leftovers(name) == []


def test_a_queue_whose_ring_is_gone_is_found(name: str, mqueue: Path) -> None:
    del mqueue
    with Writer.create(name, slots=8, capacity=1024), Reader.attach(name) as reader:
        topic_name = reader.topic_name
    QueueWriter.create(name, LABEL, instance=1, topic_name=topic_name).abandon()
    (entry,) = [entry for entry in shm.list_rings() if entry.name == name]
    assert (entry.state, entry.queues) == ("incomplete", (LABEL,))
    shm.unlink(name)
    assert leftovers(name) == []


def test_a_ring_that_ends_takes_its_queues_with_it(name: str, mqueue: Path) -> None:
    del mqueue
    with Writer.create(name, slots=8, capacity=1024), Reader.attach(name) as reader:
        writer = new_writer(name, reader)
        tap = Tap.of(name)
    assert tap.queue.unlinked
    writer.close("the ring has ended")
    assert [r.type for r in tap.take()] == [RecordType.ENDED]
    tap.queue.close()

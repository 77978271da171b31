"""How messages are shared out: any, in turn, by key; in one process, while members come and go."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from functools import partial
from typing import Any

import pytest

from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.group import GroupMessage, Member, partition_of_key
from tests.conftest import DEADLINE
from tests.unit.conftest import Background, wait_until_waiting

from .conftest import BALANCES, SLOTS, Join, collect, get, put, status_of, take


@pytest.mark.parametrize("balance", BALANCES)
def test_one_member_gets_everything_in_order(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    for _ in range(5):
        put(writer, *range(SLOTS))
        assert take(member) == list(range(writer.sequence - SLOTS, writer.sequence))
    assert (member.received, member.cursor, member.lag) == (5 * SLOTS, 5 * SLOTS, 0)


@pytest.mark.parametrize("balance", BALANCES)
def test_what_a_message_says_of_itself(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    topic = writer.topic("a")
    writer.publish(b"hello", topic=topic, key=77, kind=1)
    message = member.read(timeout=0)
    assert message is not None
    assert (message.sequence, message.topic, message.topic_name) == (0, topic, "a")
    assert (message.key, message.kind, message.epoch) == (77, 1, 1)
    assert (message.gap, message.deliveries) == (0, 1)
    assert (message.text(), len(message), bytes(message.payload)) == ("hello", 5, b"hello")


@pytest.mark.parametrize("balance", BALANCES)
def test_groups_and_readers_do_not_disturb_each_other(
    writer: Writer, join: Join, balance: Any
) -> None:
    members = [join(name, balance=balance) for name in ("one", "two")]
    with Reader.attach(writer.name) as reader:
        put(writer, *range(SLOTS))
        assert [take(member) for member in members] == [list(range(SLOTS))] * 2
        assert [message.sequence for message in reader.read_available()] == list(range(SLOTS))


def work(member: Member) -> list[int]:
    """The sequences of all that comes until the end."""
    return [message.sequence for message in member]


@pytest.mark.parametrize("balance", BALANCES)
def test_threads_share_out_a_flood(writer: Writer, join: Join, balance: Any) -> None:
    """Each message once, in the order of the sequences in each member."""
    members = [join(balance=balance) for _ in range(3)]
    count = 3000
    working = [Background(partial(work, member)) for member in members]
    for n in range(count):
        put(writer, n % 50, timeout=DEADLINE)
    writer.close()
    seen = [work.result() for work in working]
    assert sorted(itertools.chain(*seen)) == list(range(count))
    if balance == "round-robin":
        assert seen == [list(range(turn, count, 3)) for turn in range(3)]
    if balance == "any":
        assert all(one == sorted(one) for one in seen)


# ---- any -----------------------------------------------------------------------------------


def test_any_whoever_asks_gets_the_next(writer: Writer, join: Join) -> None:
    members = [join() for _ in range(3)]
    rng = random.Random(0)
    for _ in range(5):
        put(writer, *[0] * 30)
        first = writer.sequence - 30
        order = rng.choices(members, k=30)
        assert [get(member).sequence for member in order] == list(range(first, first + 30))
        for member in members:
            assert member.read(timeout=0) is None
    assert sum(member.received for member in members) == 150
    assert (status_of(writer).lag, status_of(writer).redelivered) == (0, 0)


def test_any_a_member_that_does_not_ask_gets_nothing(writer: Writer, join: Join) -> None:
    busy, idle = join(), join()
    for _ in range(3):
        put(writer, *range(SLOTS))
        assert take(busy) == list(range(writer.sequence - SLOTS, writer.sequence))
    assert take(idle) == []
    assert (busy.received, idle.received) == (3 * SLOTS, 0)


def test_any_members_come_and_go(writer: Writer, join: Join) -> None:
    seen: list[int] = []
    rng = random.Random(1)
    members = [join()]
    for _ in range(100):
        if rng.random() < 0.3 and len(members) < 8:
            members.append(join())
        if rng.random() < 0.3 and len(members) > 1:
            members.pop(rng.randrange(len(members))).close()
        put(writer, *[0] * 5)
        for _ in range(5):
            message = get(rng.choice(members))
            assert message.deliveries == 1
            seen.append(message.sequence)
        for member in members:  # nobody keeps what would come again when it leaves
            assert member.read(timeout=0) is None
    assert seen == list(range(500))


def read_one(member: Member) -> int:
    """Wait for a message, and acknowledge it; its sequence."""
    message = member.read(DEADLINE)
    assert message is not None
    message.ack()
    return message.sequence


# ---- round-robin ---------------------------------------------------------------------------


def test_in_turn(writer: Writer, join: Join) -> None:
    members = [join(balance="round-robin") for _ in range(3)]
    for start in range(0, 3 * 36, 36):
        put(writer, *range(36))
        for turn in (2, 0, 1):  # it does not matter who looks first
            assert take(members[turn]) == list(range(start + turn, start + 36, 3))


def test_in_turn_one_at_a_time(writer: Writer, join: Join) -> None:
    members = [join(balance="round-robin") for _ in range(3)]
    for turn in [0, 1, 2] * 30:
        put(writer, 0)
        assert [take(member) for member in members] == [
            [writer.sequence - 1] if index == turn else [] for index in range(3)
        ]


def test_in_turn_counts_what_the_group_wants(writer: Writer, join: Join) -> None:
    members = [join(balance="round-robin", topics=["w*"]) for _ in range(3)]
    wanted: list[int] = []
    seen: list[list[int]] = [[], [], []]
    rng = random.Random(2)
    for _ in range(50):
        for topic in rng.choices(["w1", "w2", "x", "y", None], k=10):
            sequences = put(writer, 0, topic=topic)
            wanted += sequences if topic in ("w1", "w2") else []
        for turn in rng.sample(range(3), 3):
            seen[turn] += take(members[turn])
    assert seen == [wanted[turn::3] for turn in range(3)]


@pytest.mark.parametrize("topics", [None, ["w"]])
def test_in_turn_whoever_sleeps_is_woken(
    writer: Writer, join: Join, topics: list[str] | None
) -> None:
    """Each message wakes the member whose turn it is: all sleep."""
    members = [join(balance="round-robin", topics=topics) for _ in range(3)]
    for _ in range(4):
        sleepers = [Background(partial(read_one, member)) for member in members]
        for member in members:
            wait_until_waiting(writer.name, member.slot)
        sequences = []
        for _ in range(3):
            if topics:
                put(writer, 0, 0, topic="unwanted")
            sequences += put(writer, 0, topic="w")
        assert [sleeper.result() for sleeper in sleepers] == sequences


def test_in_turn_a_member_at_work_is_not_passed_over(writer: Writer, join: Join) -> None:
    slow, fast = join(balance="round-robin"), join(balance="round-robin")
    put(writer, *[0] * 20)
    assert get(slow).sequence == 0
    assert take(fast) == list(range(1, 20, 2))
    assert take(fast) == []
    put(writer, *[0] * 20)
    assert take(fast) == list(range(21, 40, 2))
    assert take(slow) == list(range(2, 40, 2))


def test_in_turn_what_was_dealt_to_one_that_leaves_is_dealt_anew(
    writer: Writer, join: Join
) -> None:
    """It was handed to nobody: its delivery is the first."""
    staying, leaving = join(balance="round-robin"), join(balance="round-robin")
    put(writer, *[0] * 10)
    assert take(staying) == [0, 2, 4, 6, 8]
    leaving.close()
    found = collect([staying], 5)
    assert [message.sequence for _, message in found] == [1, 3, 5, 7, 9]
    assert {message.deliveries for _, message in found} == {1}


def test_in_turn_as_members_join(writer: Writer, join: Join) -> None:
    members = [join(balance="round-robin")]
    for _ in range(4):
        put(writer, *[0] * 12)
        first = writer.sequence - 12
        shares = [take(member) for member in members]
        assert sorted(itertools.chain(*shares)) == list(range(first, first + 12))
        assert {len(share) for share in shares} == {12 // len(members)}
        assert all(
            [b - a for a, b in itertools.pairwise(share)] == [len(members)] * (len(share) - 1)
            for share in shares
        )
        members.append(join(balance="round-robin"))


# ---- by key --------------------------------------------------------------------------------


def test_partitions() -> None:
    assert partition_of_key(0) == 0
    found = Counter(partition_of_key(key) for key in range(1, 20_000))
    assert set(found) == set(range(1024))
    assert max(found.values()) < 40
    assert partition_of_key(2**64 - 1) in range(1024)


def test_each_key_has_one_member(writer: Writer, join: Join) -> None:
    members = [join(balance="key") for _ in range(3)]
    owner: dict[int, int] = {}
    for _ in range(4):
        put(writer, *range(1, 61), timeout=DEADLINE)
        for number, message in collect(members, 60):
            assert owner.setdefault(message.key, number) == number
            message.ack()
    shares = [list(owner.values()).count(number) for number in range(3)]
    assert sum(shares) == 60
    assert min(shares) > 5, "each has about a third of the keys"


def test_messages_of_a_key_come_in_order(writer: Writer, join: Join) -> None:
    members = [join(balance="key") for _ in range(3)]
    rng = random.Random(3)
    seen: dict[int, list[int]] = defaultdict(list)
    sent: dict[int, list[int]] = defaultdict(list)
    for _ in range(30):
        for key in rng.choices(range(1, 10), k=40):
            sent[key] += put(writer, key, timeout=DEADLINE)
        for _, message in collect(rng.sample(members, 3), 40):
            seen[message.key].append(message.sequence)
            message.ack()
    assert seen == sent


def test_without_a_key_the_topic_is_what_counts(writer: Writer, join: Join) -> None:
    """By default a message has the hash of its topic's name for a key; with key 0 it is the
    same."""
    members = [join(balance="key") for _ in range(3)]
    owner: dict[str | None, int] = {}
    for _ in range(3):
        for number in range(10):
            name = f"topic-{number}"
            topic = writer.topic(name)
            writer.publish(b"", topic=topic, timeout=DEADLINE)
            writer.publish(b"", topic=topic, key=0, timeout=DEADLINE)
        for number, message in collect(members, 20):
            assert owner.setdefault(message.topic_name, number) == number
            message.ack()
    assert len(set(owner.values())) > 1


def holding(member: Member) -> list[GroupMessage]:
    """All that this member can have at a time."""
    found = []
    while (message := member.read(timeout=0)) is not None:
        found.append(message)
    return found


def test_one_key_is_never_with_two(writer: Writer, join: Join) -> None:
    """A member that joins gets a key only once nothing of it is in hand; one that has something in
    hand gets the rest meanwhile, unless the other is to have the key."""
    first = join(balance="key", auto_ack=False)
    put(writer, *range(1, 31))
    held = {message.key: message for message in holding(first)}
    assert len(held) == 30
    second = join(balance="key", auto_ack=False)
    put(writer, *range(1, 31))
    assert holding(second) == []
    more = {message.key: message for message in holding(first)}
    rest = set(range(1, 31)) - set(more)
    assert 5 < len(rest) < 25, "about half of the keys are for the other one"
    for message in held.values():
        message.ack()
    for key, message in more.items():
        assert message.sequence == 30 + key - 1
        message.ack()
    found = collect([second], len(rest))
    assert {message.key for _, message in found} == rest
    for _, message in found:
        message.ack()
    assert first.read(timeout=0) is None
    assert status_of(writer).lag == 0


def test_the_rest_of_a_key_whose_heir_has_gone(writer: Writer, join: Join) -> None:
    """Whoever has some of a key in hand gets the rest, in order, before it lets go of that."""
    member = join(balance="key", auto_ack=False)
    put(writer, *range(1, 11))
    held = holding(member)
    for _ in range(2):
        Member.attach(writer.name, "g", balance="key").close()
    put(writer, *range(1, 11))
    while len(held) < 20:
        message = member.read(timeout=DEADLINE)
        assert message is not None
        held.append(message)
    newest: dict[int, int] = {}
    for message in held:
        assert newest.get(message.key, -1) < message.sequence
        newest[message.key] = message.sequence
    assert sorted(message.sequence for message in held) == list(range(20))


@pytest.mark.parametrize("seed", range(4))
def test_by_key_as_members_come_and_go(writer: Writer, join: Join, seed: int) -> None:
    """In order, never with two, and what a leaving member had in hand is the next of its key."""
    rng = random.Random(seed)
    options: dict[str, Any] = {"balance": "key", "auto_ack": False}
    members = [join(**options)]
    in_hand: list[tuple[Member, GroupMessage]] = []
    left: dict[int, list[int]] = defaultdict(list)
    delivered: dict[int, int] = defaultdict(int)

    def check(member: Member, message: GroupMessage) -> None:
        with_others = [m for m, other in in_hand if other.key == message.key and m is not member]
        assert with_others == []
        ours = [other.sequence for m, other in in_hand if other.key == message.key]
        waiting = [sequence for sequence in left[message.key] if sequence not in ours]
        assert message.sequence == waiting[0]
        delivered[message.sequence] += 1
        assert message.deliveries == delivered[message.sequence]
        in_hand.append((member, message))

    for _ in range(400):
        action = rng.choice(["put", "take", "take", "take", "ack", "ack", "join", "leave"])
        if action == "put" and sum(map(len, left.values())) < SLOTS:
            (key,) = rng.choices(range(1, 7))
            left[key] += put(writer, key, timeout=DEADLINE)
        elif action == "take":
            member = rng.choice(members)
            message = member.read(timeout=0)
            if message is not None:
                check(member, message)
        elif action == "ack" and in_hand:
            _, message = in_hand.pop(rng.randrange(len(in_hand)))
            message.ack()
            left[message.key].remove(message.sequence)
        elif action == "join" and len(members) < 5 and rng.random() < 0.4:
            members.append(join(**options))
        elif action == "leave" and len(members) > 1 and rng.random() < 0.4:
            member = members.pop(rng.randrange(len(members)))
            member.close()
            in_hand = [(m, message) for m, message in in_hand if m is not member]
    for _, message in in_hand:
        message.ack()
        left[message.key].remove(message.sequence)
    in_hand.clear()
    while any(left.values()):
        ((number, message),) = collect(members, 1)
        check(members[number], message)
        in_hand.clear()
        message.ack()
        left[message.key].remove(message.sequence)
    assert status_of(writer).lag == 0

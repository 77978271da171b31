"""Workers that choose among topics, change their minds at random and write down what they see; and
a judge that compares this with everything that was published.

    attach       cursor, topics, others        a life begins, with all from the cursor on
    subscribe    cursor before, topic, published after
    unsubscribe  cursor before, topic, cursor after
    got          sequence, topic, number
    at           cursor, received, skipped, lost

A subscription holds for what is published after it returned, and may hold for what was not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import random
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple

from ringcast import Feed, attach, shm
from ringcast.shm.broadcast import Message

NAMES: Final = [f"{letter}{number}" for letter in "abcdefgh" for number in range(5)]
WISHES: Final = [
    *NAMES,
    *(f"{letter}*" for letter in "abcdefgh"),
    *(f"*{n}" for n in range(5)),
    "*",
]
"""What workers wish for: names, patterns, and at times everything that has a topic."""
_BRIEFLY: Final = 0.005
_WANTED_MOST: Final = 6


def text_of(rng: random.Random, number: int) -> str:
    """A message of the flood: of a topic, of none, or of one whose name is too long."""
    pad = "." * rng.randrange(120)
    kind = rng.random()
    if kind < 0.05:
        return f'{{"n":{number},"pad":"{pad}"}}'
    if kind < 0.08:
        return f'{{"t":"{"x" * 128}","n":{number}}}'
    # Some topics are seldom, and some appear late.
    name = NAMES[min(rng.randrange(len(NAMES)), rng.randrange(1 + number // 50))]
    return f'{{"t":"{name}","n":{number},"pad":"{pad}"}}'


def number_in(payload: bytes) -> int:
    """The number of a message of the flood."""
    number = json.loads(payload)["n"]
    assert isinstance(number, int)
    return number


# ---- workers -----------------------------------------------------------------------------------


class Diary:
    """What a worker writes down; what is flushed outlives its death."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, *entry: Any) -> None:
        """One line."""
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")

    def got(self, messages: Sequence[Message]) -> None:
        """Messages that were handed out."""
        for m in messages:
            self.write("got", m.sequence, m.topic_name, number_in(bytes(m)))

    def at(self, feed: Feed) -> None:
        """How far it has come; by the thread that reads."""
        self.write("at", feed.cursor, feed.received, feed.skipped, feed.lost)
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()


class Mind:
    """Changes what a feed wants, at random."""

    def __init__(self, feed: Feed, diary: Diary, rng: random.Random, wanted: set[str]) -> None:
        self._feed = feed
        self._diary = diary
        self._rng = rng
        self._wanted = wanted

    def change(self) -> None:
        """One topic or pattern more, or less."""
        feed, rng = self._feed, self._rng
        before = feed.cursor
        if self._wanted and (len(self._wanted) >= _WANTED_MOST or rng.random() < 0.5):
            topic = rng.choice(sorted(self._wanted))
            self._wanted.discard(topic)
            feed.unsubscribe(topic)
            self._diary.write("unsubscribe", before, topic, feed.cursor)
        else:
            topic = rng.choice(WISHES)
            if topic not in self._wanted:
                self._wanted.add(topic)
                feed.subscribe(topic, wait=False)
                published = feed.cursor + feed.lag
                self._diary.write("subscribe", before, topic, published)


def read_many(feed: Feed, diary: Diary, mind: Mind, rng: random.Random) -> Iterator[None]:
    """With read_available, and read where nothing is there."""
    while True:
        messages = feed.read_available(rng.randint(1, 64))
        if not messages:
            message = feed.read(_BRIEFLY)
            messages = [message] if message is not None else []
        diary.got(messages)
        del messages
        diary.at(feed)
        if rng.random() < 0.2:
            mind.change()
        yield


def read_batches(feed: Feed, diary: Diary, mind: Mind, rng: random.Random) -> Iterator[None]:
    """With batch."""
    names = {topic.topic: topic.name for topic in feed.topics}
    while True:
        with feed.batch(rng.randint(1, 64), _BRIEFLY) as batch:
            table = batch.descriptors
            if any(int(topic) not in names for topic in table["topic"] if topic):
                names = {topic.topic: topic.name for topic in feed.topics}
            for i in range(len(batch)):
                sequence, topic = int(table["seq1"][i]) - 1, int(table["topic"][i])
                number = number_in(bytes(batch.payload(i)))
                diary.write("got", sequence, names[topic] if topic else None, number)
            del table
        diary.at(feed)
        if rng.random() < 0.2:
            mind.change()
        yield


def read_while_another_changes(
    feed: Feed, diary: Diary, mind: Mind, rng: random.Random
) -> Iterator[None]:
    """With read, while another thread subscribes."""
    ends = threading.Event()

    def change() -> None:
        with contextlib.suppress(shm.RingClosed):
            while not ends.wait(rng.random() * _BRIEFLY):
                mind.change()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        while True:
            message = feed.read(_BRIEFLY)
            if message is not None:
                diary.got([message])
            del message
            diary.at(feed)
            yield
    finally:
        ends.set()
        thread.join()


def read_async(feed: Feed, diary: Diary, mind: Mind, rng: random.Random) -> Iterator[None]:
    """With asyncio, cancelled now and then."""

    async def some() -> None:
        for _ in range(rng.randint(1, 64)):
            try:
                message = await asyncio.wait_for(anext(feed), _BRIEFLY)
            except TimeoutError:
                return
            except StopAsyncIteration:
                raise shm.RingClosed("it ended") from None
            diary.got([message])
            del message

    with asyncio.Runner() as runner:
        while True:
            runner.run(some())
            diary.at(feed)
            mind.change()
            yield


Way = Callable[[Feed, Diary, Mind, random.Random], Iterator[None]]
WAYS: Final[tuple[Way, ...]] = (read_many, read_batches, read_while_another_changes, read_async)


def choose(name: str, path: Path, seed: int, way: int, stop: ctypes.c_bool) -> None:
    """A process: lives of a worker, to the end of the ring or of the test."""
    rng = random.Random(seed)
    diary = Diary(path)
    with contextlib.suppress(shm.RingClosed):
        while not stop.value:
            wanted = set(rng.sample(WISHES, rng.randint(0, 3)))
            others = rng.random() < 0.3
            with attach(name, topics=sorted(wanted), others=others) as feed:
                diary.write("attach", feed.cursor, sorted(wanted), others)
                reading = WAYS[way](feed, diary, Mind(feed, diary, rng, wanted), rng)
                try:
                    until = time.monotonic() + rng.uniform(0.05, 1)
                    for _ in reading:
                        if stop.value or time.monotonic() > until:
                            break
                finally:
                    reading.close()  # type: ignore[attr-defined]
    diary.close()


# ---- the judge ---------------------------------------------------------------------------------


class Span(NamedTuple):
    """Sequences for which a topic or pattern was wanted: of what may be handed out, what must."""

    wish: str
    may_from: int
    must_from: int
    must_to: int
    may_to: int


@dataclass
class Life:
    """One attachment of a worker.

    Attributes:
        first: its cursor at first.
        others: messages without a topic are wanted.
        spans: what was wanted when.
        got: sequences, in the order of their coming.
        cursor: how far it is known to have come; what came after that does not count.
    """

    first: int
    others: bool
    spans: list[Span] = field(default_factory=list)
    got: list[int] = field(default_factory=list)
    cursor: int = 0


class Published:
    """Everything that was published.

    Args:
        messages: by sequence: topic and number of those of the flood, in order.
    """

    def __init__(self, messages: dict[int, tuple[str | None, int]]) -> None:
        self._messages = messages
        self._by_topic: dict[str | None, list[int]] = defaultdict(list)
        for sequence, (topic, _) in messages.items():
            self._by_topic[topic].append(sequence)

    def _of(self, topic: str | None, begin: int, end: int) -> list[int]:
        sequences = self._by_topic.get(topic, [])
        return sequences[bisect_left(sequences, begin) : bisect_left(sequences, end)]

    def _wanted(self, wish: str, begin: int, end: int) -> Iterator[int]:
        for topic in self._by_topic:
            if topic is not None and fnmatchcase(topic, wish):
                yield from self._of(topic, begin, end)

    def judge(self, path: Path) -> int:
        """Check what a worker wrote down; how many messages it got."""
        lives = self._read(path)
        for life in lives:
            must, may = set(), set()
            if life.others:
                must |= set(self._of(None, life.first, life.cursor))
            for span in life.spans:
                end = min(span.may_to, life.cursor)
                may |= set(self._wanted(span.wish, span.may_from, end))
                must |= set(self._wanted(span.wish, span.must_from, min(span.must_to, end)))
            assert life.got == sorted(set(life.got)), "out of order, or twice"
            got = {sequence for sequence in life.got if sequence < life.cursor}
            assert not must - got, ("lost", path.name, self._about(must - got), life)
            assert not got - may - must, ("not its own", path.name, self._about(got - may), life)
        return sum(len(life.got) for life in lives)

    def _about(self, sequences: set[int]) -> list[tuple[int, tuple[str | None, int]]]:
        return [(sequence, self._messages[sequence]) for sequence in sorted(sequences)[:5]]

    def _read(self, path: Path) -> list[Life]:
        lives: list[Life] = []
        opened: dict[str, tuple[int, int]] = {}
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            what, *entry = json.loads(line)
            if what == "attach":
                _finish(lives, opened)
                lives.append(Life(entry[0], entry[2], cursor=entry[0]))
                opened = dict.fromkeys(entry[1], (entry[0], entry[0]))
                continue
            life = lives[-1]
            if what == "subscribe":
                before, topic, after = entry
                opened[topic] = (before, after)
            elif what == "unsubscribe":
                before, topic, after = entry
                life.spans.append(Span(topic, *opened.pop(topic), before, after))
            elif what == "got":
                sequence, topic, number = entry
                assert self._messages[sequence] == (topic, number)
                life.got.append(sequence)
            else:
                life.cursor, received, skipped, lost = entry
                assert received + skipped + lost == life.cursor - life.first
                assert (lost, received) == (0, len(life.got))
        _finish(lives, opened)
        return lives


def _finish(lives: list[Life], opened: dict[str, tuple[int, int]]) -> None:
    """What was still wanted when the last life ended."""
    for topic, (may_from, must_from) in opened.items():
        lives[-1].spans.append(Span(topic, may_from, must_from, 1 << 62, 1 << 62))

"""Workers that come and go, a server, and what must hold whatever they do.

The model is what the workers want. Everything is checked against it and against the server's own
books: at each message that the server gets, after each call, and when all has come to rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ringcast.broker.topics.subscriptions import NO_ANSWER, TopicState
from ringcast.broker.topics.venue import Confirmation

from .play import Desk, PlayServer, PlayVenue, Told

LINGER = 5.0
TOPICS = (
    *(f"t{i}" for i in range(8)),
    *(f"{kind}.{i}" for kind in ("x", "y") for i in range(4)),
    "new0",
    "new1",
    "ask0",
)
BAD = ("bad0", "bad1", "x.bad")
"""The server refuses them."""
IMPOSSIBLE = ("much too long a name", "secret")
"""They are not asked for."""
NAMES = (*TOPICS, *BAD, *IMPOSSIBLE)
ALLOWED = [f"{beginning}*" for beginning in ("t", "x.", "y.", "new", "ask", "bad", "m")]
ROUNDING = 1e-3


@dataclass
class Books:
    """Of one topic: since when nobody wants it, and whether it lingered to the end since it was
    subscribed."""

    unwanted_since: float = 0.0
    lingered: bool = False


@dataclass
class World:
    """All of them.

    Attributes:
        venue: the rules.
        server: keeps them.
        wishes: by slot.
    """

    venue: PlayVenue
    server: PlayServer
    connected: bool = False
    wishes: dict[int, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.desk = Desk(
            self.venue, own=["own"], allow=ALLOWED, linger=LINGER, connected=self.connected
        )
        self.books = {name: Books(self.desk.now) for name in NAMES}
        self.table: dict[str, TopicState] = {}
        self.tokens = float(self.venue.burst)
        self.filled = self.desk.now
        self.strict = self.server.loss == 0.0

    # ---- what happens

    def wish(self, slot: int, names: Collection[str], again: Collection[str] = ()) -> None:
        """A worker wants exactly these."""
        before = self.wanted()
        faults = self.desk.wish(slot, names, again)
        self.wishes[slot] = set(names) - set(IMPOSSIBLE)
        self.note(before)
        impossible = set(names) & set(IMPOSSIBLE)
        assert impossible <= set(faults)
        assert self.venue.topics_per_connection is not None or impossible == set(faults)
        self.check()

    def leave(self, slot: int) -> None:
        """A worker is gone."""
        before = self.wanted()
        self.desk.leave(slot)
        self.wishes.pop(slot, None)
        self.note(before)
        self.check()

    def snapshot(self, slot: int, name: str) -> None:
        """A worker wants a snapshot."""
        self.desk.subscriptions.snapshot(slot, name, self.desk.now)

    def connect(self) -> None:
        """If there is no connection."""
        if not self.connected:
            self.connected = True
            self.desk.subscriptions.connected(self.desk.now)
            self.check()

    def disconnect(self) -> None:
        """If there is one."""
        if self.connected:
            self.connected = False
            self.server.disconnect()
            self.desk.subscriptions.disconnected(self.desk.now)
            self.check()

    def run(self, seconds: float, most: int = 10_000) -> None:
        """Let so much time pass."""
        end = self.desk.now + seconds
        while True:
            for told in self.desk.take(most):
                self.tell(told)
            self.check()
            times = [self.server.next_answer, self.desk.subscriptions.deadline(self.desk.now)]
            times = [time for time in times if time is not None]
            now = min((time for time in times if time is not None), default=end)
            if now > end or not times:
                self.desk.now = max(self.desk.now, end)
                return
            self.desk.now = max(self.desk.now, now)
            self.desk.heard(*self.server.answers(self.desk.now))

    # ---- what must hold

    def wanted(self) -> set[str]:
        """By workers."""
        return set().union(*self.wishes.values())

    def note(self, before: set[str]) -> None:
        """Keep the books of what is wanted."""
        for name in self.wanted() - before:
            books = self.books[name]
            books.lingered |= self.desk.now - books.unwanted_since >= LINGER
        for name in before - self.wanted():
            self.books[name].unwanted_since = self.desk.now

    def tell(self, told: Told) -> None:
        """The server gets a message: at the right time?"""
        assert self.connected
        rate = self.venue.messages_per_second
        if rate is not None:
            passed = told.time - self.filled
            self.tokens = min(self.venue.burst, self.tokens + passed * rate) - 1.0
            self.filled = told.time
            assert self.tokens > -ROUNDING, "above the rate"
        assert not self.venue.topics_per_request or (
            len(told.names) <= self.venue.topics_per_request
        )
        if told.op == "unsubscribe":
            self.check_end(told)
        self.server.tell(told)
        for name in told.names if told.op == "subscribe" else ():
            if name in self.books:
                self.books[name].lingered = False
        if self.strict:
            assert self.server.doubled == [], "subscribed twice"
        limit = self.venue.topics_per_connection
        assert limit is None or len(self.server.on) <= limit, "too many topics"

    def check_end(self, told: Told) -> None:
        """Nobody is torn down, and what lingers does."""
        assert "own" not in told.names or not self.strict
        if not self.strict or self.venue.topics_per_connection is not None:
            return
        for name in told.names:
            if name not in self.server.on:  # without an answer of its own, it may have been
                assert self.venue.confirmation in {Confirmation.TOPIC, Confirmation.LIST}
                assert not self.server.named
                continue
            books = self.books[name]
            unwanted = name not in self.wanted()
            lingered = unwanted and told.time - books.unwanted_since >= LINGER - ROUNDING
            assert lingered or books.lingered or name.startswith("new"), f"{name} is torn down"

    def check(self) -> None:
        """The changes lead to the states."""
        subscriptions = self.desk.subscriptions
        for change in subscriptions.changes():
            self.table[change.name] = change.state
            assert bool(change.reason) == (change.state is TopicState.REFUSED)
        for name in (*NAMES, "own"):
            assert self.table.get(name, TopicState.NONE) is subscriptions.state(name)
            count = sum(name in names for names in self.wishes.values())
            assert subscriptions.wanted_by(name) == count
        if not self.connected:
            assert not set(self.table.values()) & {TopicState.PENDING, TopicState.SUBSCRIBED}

    def rest(self) -> None:
        """All comes to rest: the server has what is wanted, and nothing else."""
        self.connect()
        self.run(10_000.0)
        assert self.desk.subscriptions.deadline(self.desk.now) is None
        assert self.desk.subscriptions.in_flight == 0
        states = {name: self.desk.subscriptions.state(name) for name in (*NAMES, "own")}
        on = {name for name, state in states.items() if state is TopicState.SUBSCRIBED}
        assert on == set(self.server.on)
        wanted = self.wanted() | {"own"}
        for name, state in states.items():
            if name not in wanted:
                assert state is TopicState.NONE
            elif name in self.server.bad:
                assert state is TopicState.REFUSED
            elif state is not TopicState.SUBSCRIBED:
                assert state is TopicState.REFUSED
                self.check_reason(name)

    def check_reason(self, name: str) -> None:
        """Of a topic that the server would not refuse."""
        reason = self.desk.subscriptions.reason(name)
        if reason == NO_ANSWER:
            assert not self.strict
        else:
            assert self.venue.topics_per_connection is not None
            assert "topics per connection" in reason

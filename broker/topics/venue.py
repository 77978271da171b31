"""A venue: how one exchange's topics are named, asked for, acknowledged and found in messages.

All of it is data from a TOML file (`venue_file.load_venue`); nothing here knows an exchange. A
`Venue` makes the texts of requests and reads the server's answers; when to send what, and what to
do when no answer comes, is decided elsewhere.

Three things are remembered for the life of a connection, and forgotten by `reconnected`: which
topics each request asked for, so that an answer with its id can be understood; under which name
messages of a topic come, where only the server's answer says so (channel numbers); and which topics
have been asked for, where the same message can belong to one of several.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ringcast.shm.topics import NAME_MAX

from .json_templates import JsonTemplate
from .rules import (
    AnswerRule,
    ClientRules,
    Done,
    Heartbeat,
    Naming,
    Outcome,
    Rename,
    Reply,
    Snapshot,
    SnapshotRule,
)
from .templates import NameParts, glob_matches, parse_json, value_at

__all__ = [
    "Answer",
    "Confirmation",
    "Heartbeat",
    "Outcome",
    "Reply",
    "Request",
    "Snapshot",
    "Venue",
]

_ANSWER_BYTES_MAX: Final = 1 << 20
"""Longer control messages are not looked at: parsing one would hold up everybody."""
_REQUESTS_MAX: Final = 4096
"""Requests that are remembered; the oldest is forgotten first."""
_REASON_MAX: Final = 500
"""Characters of a refusal's reason."""


class Confirmation(enum.StrEnum):
    """What a server's answer names."""

    ID = "id"
    """The id of the request."""
    TOPIC = "topic"
    """Topics, or the id of a request for one topic; refusals may have an id alone."""
    LIST = "list"
    """All topics that are subscribed."""
    ORDER = "order"
    """Nothing: it answers the oldest request, so requests go out one at a time. `SUBSCRIBED` then
    may also mean that it is unsubscribed."""


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the server.

    Attributes:
        text: the message.
        names: the topics it concerns.
        subscribing: does it subscribe? Else it unsubscribes.
        id: as the answer will spell it; None if the venue has no ids.
    """

    text: str
    names: tuple[str, ...]
    subscribing: bool
    id: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one control message of the server says.

    A refusal with an `id` and no `names` concerns all of that request, which may have been refused
    for one of its topics. A refusal with neither concerns the oldest request that is unanswered.

    Attributes:
        outcome: what became of it.
        id: of the request it answers, if it says so.
        names: topics it names, or all that are subscribed (`Outcome.LISTED`).
        reason: the server's words, of a refusal.
    """

    outcome: Outcome
    id: str | None = None
    names: tuple[str, ...] = ()
    reason: str = ""


# ---- what is remembered ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asked for."""

    names: tuple[str, ...]
    subscribing: bool


class _Memory:
    """What is known for the life of a connection."""

    __slots__ = ("names_by_raw", "raws_by_name", "requests", "version", "wanted")

    def __init__(self) -> None:
        self.requests: dict[str, _Asked] = {}
        self.names_by_raw: dict[str, str] = {}
        self.raws_by_name: dict[str, str] = {}
        self.wanted: set[str] = set()
        self.version = 0

    def ask(self, request: Request) -> None:
        """Remember what a request asks for."""
        if request.id is not None:
            if len(self.requests) >= _REQUESTS_MAX:
                del self.requests[next(iter(self.requests))]
            self.requests[request.id] = _Asked(request.names, request.subscribing)

    def has_asked_for(self, name: str) -> bool:
        """Did one of the requests that are remembered ask for it?"""
        return any(name in asked.names for asked in self.requests.values())

    def want(self, request: Request) -> None:
        """Remember which topics are asked for."""
        before = len(self.wanted)
        if request.subscribing:
            self.wanted.update(request.names)
        else:
            self.wanted.difference_update(request.names)
        self.version += len(self.wanted) != before

    def learn(self, raw: str, name: str) -> None:
        if raw == name or self.names_by_raw.get(raw) == name:
            return
        self.forget(name)
        stale = self.names_by_raw.pop(raw, None)
        if stale is not None:
            del self.raws_by_name[stale]
        self.names_by_raw[raw] = name
        self.raws_by_name[name] = raw
        self.version += 1

    def forget(self, name: str) -> None:
        raw = self.raws_by_name.pop(name, None)
        if raw is not None:
            del self.names_by_raw[raw]
            self.version += 1

    def clear(self) -> None:
        self.requests.clear()
        self.names_by_raw.clear()
        self.raws_by_name.clear()
        self.wanted.clear()
        self.version += 1


# ---- the venue -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Venue:
    """How an exchange is talked to; `load_venue` makes one. It is for one connection at a time and
    for one thread.

    Attributes:
        name: of the venue.
        about: what it is, in a sentence.
        documentation: where the exchange documents it.
        url: where to connect; None if the file leaves that to the configuration.
        topic: patterns that find a message's name; the first whose pointers are all there counts.
        key: pattern of the key for work groups; empty: the topic is the key.
        control: patterns of messages that are answers, errors or heartbeats: ``{/event}`` (the
            pointer is there) or ``{/event}=bts:*`` (the value matches). They have no topic.
        only_learned: a message's name means nothing until an answer has said what it stands for.
        request_id: pointer to the id of workers' requests and of their answers; None: the venue has
            none.
        request_id_is_text: an id that is added to a request is text, and not a number.
        confirmation: what an answer names.
        topics_per_request: most topics of one message.
        topics_per_connection: most topics of one connection.
        messages_per_second: messages to send, at most; None: the venue sets no limit.
        burst: messages that may go at once after a pause.
        counts_everything: heartbeats, replies, pings and pongs count as messages, too.
        answer_timeout: seconds to wait for an answer.
        heartbeat: what to send again and again.
        initial: messages that come first on each connection.
        namings: forms of names, and how topics are asked for; the first that fits counts.
        rules: of answers.
        reply_rules: of replies.
        renames: of names that messages bear and topics do not.
        snapshots: by topic; the first that matches counts.
        clients: how to speak with programs that think they talk to this exchange; `Dialogue` does.
    """

    name: str
    about: str
    documentation: str
    url: str | None
    topic: tuple[str, ...]
    key: tuple[str, ...]
    control: tuple[str, ...]
    only_learned: bool
    request_id: str | None
    request_id_is_text: bool
    confirmation: Confirmation
    topics_per_request: int | None
    topics_per_connection: int | None
    messages_per_second: float | None
    burst: int
    counts_everything: bool
    answer_timeout: float
    heartbeat: Heartbeat | None
    initial: tuple[str, ...]
    namings: tuple[Naming, ...]
    rules: tuple[AnswerRule, ...]
    reply_rules: tuple[Reply, ...]
    renames: tuple[Rename, ...]
    snapshots: tuple[SnapshotRule, ...]
    clients: ClientRules
    _memory: _Memory = field(default_factory=_Memory, repr=False)

    # ---- names

    def check_name(self, name: str) -> None:
        """Check that a topic of this venue can have this name.

        Raises:
            ValueError: it can't; the error says what names look like.
        """
        self.read_name(name)

    def read_name(self, name: str) -> tuple[Naming, NameParts]:
        """The form that a topic's name has, and its parts.

        Raises:
            ValueError: as `check_name` does.
        """
        try:
            length = len(name.encode())
        except UnicodeEncodeError:
            raise ValueError(f"the topic {name!r} is not valid Unicode") from None
        if not name:
            raise ValueError("a topic's name is empty")
        if length > NAME_MAX:
            raise ValueError(
                f"the topic {name[:40]!r}... has {length} bytes; names have at most"
                f" {NAME_MAX} bytes of UTF-8"
            )
        if not name.isprintable():
            raise ValueError(f"the topic {name!r} has characters that can't be printed")
        for naming in self.namings:
            parts = naming.form.read(name)
            if parts is not None:
                fault = naming.form.case_fault(parts)
                if fault is not None:
                    raise ValueError(f"{name!r} is no topic of {self.name}: {fault}")
                return naming, parts
        forms = " or ".join(f"{naming.form.text} ({naming.example})" for naming in self.by_use)
        raise ValueError(f"{name!r} is no topic of {self.name}: write it as {forms}")

    @property
    def by_use(self) -> list[Naming]:
        """The forms of names, for people: those for all channels before those for some."""
        return sorted(self.namings, key=lambda naming: naming.form.is_limited)

    def _is_name(self, name: str) -> bool:
        try:
            self.read_name(name)
        except ValueError:
            return False
        return True

    def topic_of(self, raw: str) -> str | None:
        """The name under which a topic is subscribed, for the name that the topic patterns found in
        a message; None if it belongs to no topic. The answer holds until `version` changes."""
        learned = self._memory.names_by_raw.get(raw)
        if learned is not None:
            return learned
        if self.only_learned:
            return None
        for rename in self.renames:
            candidates = rename.candidates(raw)
            if candidates:
                wanted = self._memory.wanted
                return next((name for name in candidates if name in wanted), candidates[0])
        return raw

    @property
    def version(self) -> int:
        """Changes whenever `topic_of` may answer differently from then on."""
        return self._memory.version

    def reconnected(self) -> None:
        """Forget what was remembered of the last connection."""
        self._memory.clear()

    # ---- to the server

    def requests(
        self, names: Sequence[str], *, subscribing: bool, ids: Iterator[int]
    ) -> list[Request]:
        """The messages that subscribe or unsubscribe topics, as few as the venue allows.

        A topic whose unsubscription needs what only the server's acknowledgement tells (a channel
        number) is left out before that has come: there is nothing to unsubscribe yet.

        Args:
            names: of the topics.
            subscribing: or unsubscribing.
            ids: numbers for requests; each is taken once.

        Raises:
            ValueError: a name can't be a topic of this venue.
        """
        topics = []
        for name in dict.fromkeys(names):
            naming, parts = self.read_name(name)
            template = naming.subscribe if subscribing else naming.unsubscribe
            topics.append((template, name, parts))
        requests = self._grouped(topics, ids, subscribing=subscribing)
        for request in requests:
            self._memory.ask(request)
            if self.renames:
                self._memory.want(request)
        return requests

    def snapshot(self, name: str) -> Snapshot:
        """How a late joiner of this topic gets its snapshot."""
        for rule in self.snapshots:
            if any(glob_matches(glob, name) for glob in rule.globs):
                return rule.snapshot
        return Snapshot()

    def snapshot_request(self, names: Sequence[str], ids: Iterator[int]) -> list[Request]:
        """The messages that ask for the snapshots of topics of kind "request"; other topics are
        left out.

        Raises:
            ValueError: a name can't be a topic of this venue.
        """
        requests: list[Request] = []
        for rule in self.snapshots:
            template = rule.snapshot.request
            if template is not None:
                mine = [name for name in names if self.snapshot(name) is rule.snapshot]
                requests += self._grouped(
                    [(template, name, self.read_name(name)[1]) for name in mine],
                    ids,
                    subscribing=True,
                )
        return requests

    def _grouped(
        self,
        topics: Iterable[tuple[JsonTemplate, str, NameParts]],
        ids: Iterator[int],
        *,
        subscribing: bool,
    ) -> list[Request]:
        """Requests for topics, those together that can share a message."""
        groups: dict[tuple[Any, ...], list[tuple[JsonTemplate, str, NameParts]]] = {}
        for template, name, parts in topics:
            known = {**parts, "name": name, "id": ""}
            if "raw" in template.used:
                raw = self._memory.raws_by_name.get(name)
                if raw is None:
                    continue
                known["raw"] = raw
            group = (id(template), *template.group(known))
            groups.setdefault(group, []).append((template, name, known))
        most = self.topics_per_request
        return [
            self._request(group[start : start + (most or len(group))], ids, subscribing=subscribing)
            for group in groups.values()
            for start in range(0, len(group), most or len(group))
        ]

    def _request(
        self,
        topics: Sequence[tuple[JsonTemplate, str, NameParts]],
        ids: Iterator[int],
        *,
        subscribing: bool,
    ) -> Request:
        template = topics[0][0]
        number = str(next(ids)) if "id" in template.used else None
        return Request(
            text=template.text([{**parts, "id": number or ""} for _, _, parts in topics]),
            names=tuple(name for _, name, _ in topics),
            subscribing=subscribing,
            id=number,
        )

    # ---- from the server

    def answers(self, payload: bytes) -> list[Answer]:
        """What a control message says about requests. Nothing if it is no answer, or answers a
        request that this venue did not make."""
        message = _parsed(payload)
        for rule in self.rules:
            if message is not None and all(condition.holds(message) for condition in rule.when):
                return self._understood(rule, message)
        return []

    def ids(self, payload: bytes) -> list[str]:
        """The ids of requests that a control message bears, whosever they are: what is found where
        any of the rules has one."""
        pointers = dict.fromkeys(rule.id for rule in self.rules if rule.id is not None)
        message = _parsed(payload) if pointers else None
        if message is None:
            return []
        found = (value_at(message, pointer) for pointer in pointers)
        return [number for number in found if number is not None]

    def replies(self, payload: bytes) -> list[str]:
        """What to send back at once to a control message."""
        message = _parsed(payload) if self.reply_rules else None
        if message is None:
            return []
        return [
            rule.send
            for rule in self.reply_rules
            if all(condition.holds(message) for condition in rule.when)
        ]

    def _understood(self, rule: AnswerRule, message: Any) -> list[Answer]:
        number = value_at(message, rule.id) if rule.id is not None else None
        asked = self._memory.requests.get(number) if number is not None else None
        if number is not None and asked is None:
            return []
        outcome = rule.outcome
        if isinstance(outcome, Done):
            is_unsubscribed = asked is not None and not asked.subscribing
            outcome = Outcome.UNSUBSCRIBED if is_unsubscribed else Outcome.SUBSCRIBED
        raw = rule.raw.find(message) if rule.raw is not None else None
        names = self._named(rule, message, asked, raw)
        answers = [Answer(outcome, number, names, _reason(rule, message, outcome))]
        if rule.refuses_rest and asked is not None:
            answers = _with_rest(answers[0], asked)
        self._learn(answers, raw)
        return [answer for answer in answers if self._says_something(answer)]

    def _named(
        self, rule: AnswerRule, message: Any, asked: _Asked | None, raw: str | None
    ) -> tuple[str, ...]:
        """The topics that an answer names, or means without naming them."""
        if asked is not None and len(asked.names) == 1 and not rule.refuses_rest:
            return asked.names
        found = self._found(rule, message)
        if found:
            return found
        if rule.parts and asked is not None:
            values = {part: value_at(message, pointer) for part, pointer in rule.parts.items()}
            return tuple(
                name for name in asked.names if values.items() <= self.read_name(name)[1].items()
            )
        learned = self._memory.names_by_raw.get(raw) if raw is not None else None
        return () if learned is None else (learned,)

    def _found(self, rule: AnswerRule, message: Any) -> tuple[str, ...]:
        """What the patterns of a rule find: all of it in a list of what is subscribed, else what
        the first one finds, if possible something that was asked for."""
        found = [
            [name for name in dict.fromkeys(pattern.find_all(message)) if self._is_name(name)]
            for pattern in rule.names
        ]
        if rule.outcome is Outcome.LISTED:
            return tuple(dict.fromkeys(name for names in found for name in names))
        some = [names for names in found if names]
        if len(some) > 1:
            some = [names for names in some if self._memory.has_asked_for(names[0])] or some
        return tuple(some[0]) if some else ()

    def _says_something(self, answer: Answer) -> bool:
        """Does it matter to any request? An acknowledgement that names nothing does only where that
        is how this venue acknowledges."""
        if answer.names or answer.outcome in (Outcome.REFUSED, Outcome.LISTED):
            return True
        if self.confirmation is Confirmation.ID:
            return answer.id is not None
        return self.confirmation is Confirmation.ORDER

    def _learn(self, answers: Iterable[Answer], raw: str | None) -> None:
        for answer in answers:
            if answer.outcome is Outcome.SUBSCRIBED and raw is not None and len(answer.names) == 1:
                self._memory.learn(raw, answer.names[0])
            elif answer.outcome is Outcome.UNSUBSCRIBED:
                for name in answer.names:
                    self._memory.forget(name)


def _with_rest(answer: Answer, asked: _Asked) -> list[Answer]:
    """An answer, and what becomes of the topics of its request that it leaves out."""
    rest = tuple(name for name in asked.names if name not in answer.names)
    if answer.outcome is Outcome.UNSUBSCRIBED:
        return [Answer(answer.outcome, answer.id, (*answer.names, *rest))]
    refusal = Answer(Outcome.REFUSED, answer.id, rest, "the server's answer leaves it out")
    return [answer, refusal] if rest else [answer]


def _parsed(payload: bytes) -> Any:
    return parse_json(payload) if len(payload) <= _ANSWER_BYTES_MAX else None


def _reason(rule: AnswerRule, message: Any, outcome: Outcome) -> str:
    if outcome is not Outcome.REFUSED:
        return ""
    found = (pattern.find(message) for pattern in rule.reason)
    return next((text for text in found if text), "the server gives no reason")[:_REASON_MAX]

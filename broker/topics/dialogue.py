"""What programs say that think they talk to an exchange, and what the exchange would answer.

Such a program speaks to somebody who has a connection to the exchange already, and shares it. So
its requests to subscribe must become wishes, its pings and logins must not reach the exchange, and
yet it must get the answers that it waits for. A `Dialogue` understands what it says and words the
answers, both by the venue's file. It sends nothing and waits for nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

from .answer_templates import AnswerTemplate
from .json_templates import JsonTemplate
from .matching import Element, Row, constant_texts, match
from .rules import Naming, RequestPair, Retort
from .templates import NameParts, parse_json
from .venue import Confirmation, Venue

__all__ = ["Answering", "Ask", "Dialogue", "Login", "Ping"]

_MESSAGE_BYTES_MAX: Final = 64 << 10
"""Longer messages are not looked at: exchanges refuse longer requests to subscribe, and parsing
one would hold up everybody."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A client's request to subscribe or unsubscribe.

    Attributes:
        names: of the topics, each once, in the order asked.
        subscribing: does it subscribe? Else it unsubscribes.
        id: JSON of its id, numbers as it spelled them: ``7``, ``"abc"``; None if it has none.
    """

    names: tuple[str, ...]
    subscribing: bool
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    """A client's message that the server answers at once, and that changes nothing.

    Attributes:
        answer: the server's.
    """

    answer: str


@dataclass(frozen=True, slots=True)
class Login:
    """A client's login.

    Attributes:
        answer: the server's, to one that succeeds.
    """

    answer: str


class Answering(enum.Enum):
    """How an exchange answers a request for several topics."""

    EACH = "each"
    """Each topic in a message of its own. So a part of a request can be answered before the rest:
    as an `Ask` of fewer names."""
    SOME = "some"
    """In one message, which names the topics that are accepted."""
    WHOLE = "whole"
    """In one message. A topic that is refused refuses all topics of the request."""


class _Form(NamedTuple):
    """A message with which clients ask.

    Attributes:
        template: of the message.
        constants: the texts that it has at its top: most messages that do not match differ there.
        naming: of the topics that it asks for.
    """

    template: JsonTemplate
    constants: tuple[tuple[str, str], ...]
    naming: Naming


class _Topic(NamedTuple):
    """A topic that a message names; its name is empty if it is none of the form."""

    name: str
    elements: tuple[Element, ...]


class Dialogue:
    """How to speak for an exchange to its clients.

    It keeps nothing of any client, so one serves them all.

    Args:
        venue: the exchange.

    Attributes:
        answering: how it answers requests for several topics; None if requests can't be answered
            for it, because its venue file does not say how. Then `read` finds no `Ask`. An exchange
            whose messages bear numbers that only its own answers explain is of that kind.
    """

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._rules = venue.clients
        self.answering = _answering(venue)
        self._forms = {subscribing: _forms(venue, subscribing) for subscribing in (True, False)}

    def read(self, payload: bytes) -> Ask | Ping | Login | None:
        """Understand a client's message.

        None means that it is none of these, or asks for something that can't be said as a list of
        topics: a channel with parameters that the venue's names do not have, a name that the venue
        has no form for, letters in a case that the exchange does not take. Such a message is for
        the exchange, unchanged. Never raises.
        """
        if len(payload) > _MESSAGE_BYTES_MAX:
            return None
        for retort in self._rules.pings:
            if isinstance(retort.when, str) and payload == retort.when.encode():
                return Ping(_said(retort, None))
        message = parse_json(payload) if payload.lstrip()[:1] == b"{" else None
        if message is None:
            return None
        login = self._rules.login
        if login is not None and _holds(login, message):
            return Login(_said(login, message))
        for retort in self._rules.pings:
            if _holds(retort, message):
                return Ping(_said(retort, message))
        if self.answering is None:
            return None
        return self._ask(message, subscribing=True) or self._ask(message, subscribing=False)

    def answers(
        self, ask: Ask, refused: Mapping[str, str] | None = None, held: Iterable[str] = ()
    ) -> list[str]:
        """The messages with which the server answers a request, once all of its topics are decided.

        Args:
            ask: what `read` found.
            refused: topics of it that are refused, and why. Unsubscribing is never refused.
            held: all topics that the client has now; only exchanges that answer with a list of
                them (`Confirmation.LIST`) need it. What is no topic of this venue is left out.

        Raises:
            ValueError: a topic can't be one of this venue, or requests can't be answered for it.
        """
        rules, refusals = self._rules, dict(refused or {})
        accepting = rules.subscribed if ask.subscribing else rules.unsubscribed
        if accepting is None or rules.refused is None:
            raise ValueError(f"the venue {self._venue.name} does not say how requests are answered")
        if self.answering is Answering.EACH:
            return [
                self._worded(rules.refused, ask, [name], refusals[name])
                if name in refusals
                else self._worded(accepting, ask, [name])
                for name in ask.names
            ]
        wrong = [name for name in ask.names if name in refusals]
        accepted = [name for name in ask.names if name not in refusals]
        if wrong and (self.answering is Answering.WHOLE or not accepted):
            return [self._worded(rules.refused, ask, wrong, refusals[wrong[0]])]
        is_list = self._venue.confirmation is Confirmation.LIST
        named = [name for name in held if self._is_name(name)] if is_list else accepted
        return [self._worded(accepting, ask, named)]

    def topics_of_url(
        self, path: str, parameters: Sequence[tuple[str, str]]
    ) -> tuple[str, ...] | None:
        """The topics that a client subscribes by the URL to which it connects; None if it names
        none. What is no topic of this venue is passed over.

        Args:
            path: percent-decoded.
            parameters: names and values of the query, percent-decoded.
        """
        for form in self._rules.urls:
            if form.parameter is None:
                texts = [path.removeprefix(form.path)] if path.startswith(form.path) else []
            else:
                values = [value for name, value in parameters if name == form.parameter]
                texts = values if path == form.path else []
            separator = self._rules.separator
            names = [
                name for text in texts for name in text.split(separator) if self._is_name(name)
            ]
            if names:
                return tuple(dict.fromkeys(names))
        return None

    def _is_name(self, name: str) -> bool:
        try:
            self._venue.check_name(name)
        except ValueError:
            return False
        return True

    def _worded(
        self, template: AnswerTemplate, ask: Ask, names: Sequence[str], reason: str = ""
    ) -> str:
        topics = [{**self._venue.read_name(name)[1], "name": name} for name in names]
        return template.text(topics, request_id=ask.id, reason=reason)

    # ---- requests

    def _ask(self, message: Mapping[str, Any], *, subscribing: bool) -> Ask | None:
        """What a message asks for, if some forms together say all of it.

        Elements of its lists may have different forms. Each is read by the first form that makes
        topics of all that is in it.
        """
        request_id: str | None = None
        found: list[tuple[int, str]] = []
        listed: set[Element] = set()
        read: set[Element] = set()
        for form in self._forms[subscribing]:
            if any(message.get(key) != text for key, text in form.constants):
                continue
            reading = match(form.template, message, form.naming.optional)
            topics = self._topics(form.naming, reading.rows, read) if reading is not None else []
            if reading is None or not topics:
                continue
            request_id = reading.id
            listed |= reading.elements
            for topic in topics:
                read.update(topic.elements)
                position = topic.elements[0].position if topic.elements else 0
                found.append((position, topic.name))
            if read == listed:
                break
        if not found or read != listed:
            return None
        names = dict.fromkeys(name for _, name in sorted(found, key=itemgetter(0)))
        return Ask(tuple(names), subscribing, request_id)

    def _topics(self, naming: Naming, rows: Sequence[Row], read: set[Element]) -> list[_Topic]:
        """The topics of this form in elements that are not `read`, and that have no others."""
        topics = [_Topic(self._name(naming, row.parts), row.elements) for row in rows]
        others = {element for topic in topics if not topic.name for element in topic.elements}
        return [
            topic
            for topic in topics
            if topic.name
            and others.isdisjoint(topic.elements)
            and read.isdisjoint(topic.elements[:1])
        ]

    def _name(self, naming: Naming, parts: NameParts) -> str:
        """The name with these parts; empty if that is no topic of this form."""
        name = parts["name"] if "name" in parts else naming.form.write(parts)
        try:
            form, whole = self._venue.read_name(name)
        except ValueError:
            return ""
        is_same = {**whole, "name": name}.items() >= parts.items()
        return name if form is naming and is_same else ""


def _answering(venue: Venue) -> Answering | None:
    template = venue.clients.subscribed
    if template is None:
        return None
    parts = {"name", *(part for naming in venue.namings for part in naming.form.parts)}
    if template.shared & parts:
        return Answering.EACH
    is_list = venue.confirmation is Confirmation.LIST
    return Answering.SOME if template.used & parts and not is_list else Answering.WHOLE


def _forms(venue: Venue, subscribing: bool) -> tuple[_Form, ...]:
    return tuple(
        _Form(template, constant_texts(template), naming)
        for naming in venue.namings
        for pair in (RequestPair(naming.subscribe, naming.unsubscribe), *naming.also)
        for template in [pair.subscribe if subscribing else pair.unsubscribe]
    )


def _holds(retort: Retort, message: Any) -> bool:
    return not isinstance(retort.when, str) and all(c.holds(message) for c in retort.when)


def _said(retort: Retort, message: Any) -> str:
    send = retort.send
    return send if isinstance(send, str) else send.text(message=message)

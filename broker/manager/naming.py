"""Which topic a message has: the scanner's names, mapped to rows of the ring's topic table.

The scanner (topics room) finds names natively and knows those it has met. Only a name that it has
not met comes here, once: so no Python runs per message, unless the topic is a Python function.
"""

from __future__ import annotations

import logging
from typing import Final

from ringcast import shm
from ringcast.shm import broadcast

from ..config import Config, ConfigError
from ..logs import log_event
from ..topics._scan import Finder, FunctionScanner, Scanner
from ..topics.patterns import load_function
from ..topics.venue import Venue

__all__ = ["Naming"]

_RAW_NAMES_PER_TOPIC: Final = 4
"""Names in messages that may lead to one topic, on average: several kinds of message belong to one
subscription."""
_NONE: Final = (0, 0)


class Naming:
    """Finds topics of messages and gives them rows.

    Args:
        config: `topic`, `key` and `max_topics` are its.
        venue: says where topics stand, unless the config does, and what their names mean; or None.
        writer: of the ring.

    Attributes:
        finder: for `Ingest`; None if messages have no topics.

    Raises:
        ConfigError: the Python function for topics can't be had.
    """

    def __init__(self, config: Config, venue: Venue | None, writer: broadcast.Writer) -> None:
        self._ring = config.name
        self._venue = venue if venue is not None and config.topic == venue.topic else None
        self._writer = writer
        self._version = venue.version if venue is not None else 0
        self._reported: set[str] = set()
        self.finder = _finder(config, venue)

    def resolve(self, raw: bytes) -> tuple[int, int]:
        """The topic's id and key for a name that was found in a message; zeros if it has none."""
        name = raw.decode()
        if self._venue is not None:
            known = self._venue.topic_of(name)
            if known is None:
                return _NONE
            name = known
        topic = self.row(name)
        return (topic, shm.hash_key(name)) if topic else _NONE

    def row(self, name: str) -> int:
        """The id of a topic, which gets a row if it has none; 0 if it can't have one."""
        try:
            return self._writer.topic(name)
        except ValueError as error:
            self._report("a topic has an impossible name", error=str(error))
        except shm.TooManyTopics as error:
            self._report("the topic table is full", error=str(error))
        return 0

    def venue_may_have_learned(self) -> None:
        """The venue heard something, or was told of another connection: names in messages may mean
        other topics from now on."""
        if self.finder is None or self._venue is None or self._venue.version == self._version:
            return
        self._version = self._venue.version
        self.finder.forget_names()

    def look(self) -> None:
        """Report once what went wrong natively."""
        finder = self.finder
        if isinstance(finder, FunctionScanner) and finder.failed:
            self._report("the topic function failed", error=finder.first_error)
        if finder is not None and finder.overflowed:
            self._report("more names than topics can have", names=finder.names_known)

    def _report(self, event: str, **fields: object) -> None:
        if event not in self._reported:
            self._reported.add(event)
            log_event(logging.WARNING, event, ring=self._ring, **fields)


def _finder(config: Config, venue: Venue | None) -> Finder | None:
    names_max = _RAW_NAMES_PER_TOPIC * config.max_topics
    if config.topic_function is not None:
        try:
            function = load_function(config.topic_function)
        except ValueError as error:
            raise ConfigError(f"topic: {error}") from error
        return FunctionScanner(function, names_max=names_max)
    if not config.topic and config.request_id is None:
        return None
    return Scanner(
        config.topic,
        key=config.key or (),
        control=venue.control if venue is not None else (),
        answer=config.request_id,
        names_max=names_max,
    )

"""``ringcast topics``: a ring's topic table, and what the server has been asked for.

It reads the ring's own memory. Nobody has to answer, so it works without a manager, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.text import Text

from ringcast import shm

from ..topics.states import TopicState
from .output import (
    AsJson,
    Name,
    Owner,
    age_text,
    new_table,
    print_json,
    print_notice,
    rate_text,
    size_text,
    state_text,
    visible,
)
from .watching import Interval, Watch, show, watch_ring

__all__ = ["topics"]

_WORDS: Final = {int(state): state.name.lower() for state in TopicState}


@dataclass(frozen=True, slots=True)
class _Look:
    """A ring's topics at one moment.

    Attributes:
        topics: in the order of their ids.
        created_ns: when the ring was made, which tells it from the next one of that name.
        at: seconds of the monotonic clock.
        now_ns: Unix time.
    """

    topics: list[shm.TopicStatus]
    created_ns: int
    at: float
    now_ns: int


def topics(
    name: Name,
    watch: Watch = False,
    interval: Interval = 0.5,
    as_json: AsJson = False,
    owner: Owner = None,
) -> None:
    """List a ring's topics: state, rate, messages, and how many workers want each.

    A topic is "wanted" until the server is asked for it, "pending" until it answers, then
    "subscribed" or "refused". One that nobody asks the server for has no state. With --json, the
    first look of --watch has no rates."""

    def look() -> _Look:
        created_ns = shm.status(name, owner=owner).created_ns
        found = shm.list_topics(name, owner=owner)
        return _Look(found, created_ns, time.monotonic(), time.time_ns())

    if watch:
        watch_ring(name, look, interval, _view, _as_json if as_json else None)
        return
    first = look()
    time.sleep(interval)
    second = look()
    if as_json:
        print_json(_as_json(second, first))
    elif not second.topics:
        print_notice(f"ring {name!r} has no topics: a manager has them by `venue` or `topic`")
    else:
        show(_view, second, first)


def _rates(now: _Look, before: _Look | None) -> list[float | None]:
    """Messages per second of each topic since the look before; None without one at this ring."""
    if before is None or before.created_ns != now.created_ns:
        return [None] * len(now.topics)
    earlier = {topic.topic: topic.messages for topic in before.topics}
    seconds = now.at - before.at
    return [(topic.messages - earlier.get(topic.topic, 0)) / seconds for topic in now.topics]


def _state(topic: shm.TopicStatus) -> str:
    """In words; a state that a program of its own gave as its number."""
    return _WORDS.get(topic.state, str(topic.state))


def _as_json(now: _Look, before: _Look | None) -> list[dict[str, Any]]:
    return [
        {
            "topic": topic.topic,
            "name": topic.name,
            "state": _state(topic),
            "reason": topic.reason,
            "wanted_by": topic.wanted_by,
            "rate": rate,
            "messages": topic.messages,
            "bytes": topic.bytes,
            "last_sequence": topic.last_sequence,
            "last_time_ns": topic.last_time_ns or None,
        }
        for topic, rate in zip(now.topics, _rates(now, before), strict=True)
    ]


def _view(_console: Console, now: _Look, before: _Look | None) -> RenderableType:
    table = new_table(
        ">id",
        "~name",
        "~state",
        ">wanted by",
        ">rate",
        ">messages",
        ">bytes",
        ">last sequence",
        ">last",
    )
    for topic, rate in zip(now.topics, _rates(now, before), strict=True):
        has_message = topic.last_sequence is not None
        table.add_row(
            str(topic.topic),
            visible(topic.name),
            _state_text(topic),
            str(topic.wanted_by),
            rate_text(rate),
            f"{topic.messages:,}",
            size_text(topic.bytes),
            f"{topic.last_sequence:,}" if has_message else "",
            f"{age_text(now.now_ns - topic.last_time_ns)} ago" if has_message else "",
        )
    return table


def _state_text(topic: shm.TopicStatus) -> Text:
    if topic.state == TopicState.NONE:
        return Text()
    text = state_text(_state(topic))
    return text.append(f": {visible(topic.reason)}") if topic.reason else text

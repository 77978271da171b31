"""``ringcast tail``: the messages of a ring, as they come."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from ringcast import shm
from ringcast.shm.broadcast import Message

from ..worker import Feed, SubscriptionRefused
from ..worker.subscribing import wait_for_server
from .output import Name, Owner, print_notice, time_text, visible

__all__ = ["tail"]

_DUMP_BYTES: Final = 64
"""Bytes of a binary message that are shown."""
_DUMP_LINE: Final = 16
"""Bytes per line of them."""
_ASCII_PRINTABLE: Final = range(0x20, 0x7F)
_ANSWER_WAIT: Final = 5.0
"""Seconds to wait for what the server says of topics; then messages are printed all the same."""


def tail(
    name: Name,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            min=0,
            help="Begin with the last N messages of the ring, and stop after them.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.")
    ] = False,
    topics: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            metavar="NAME",
            help="Print only this topic, or those that match, with * for any characters."
            " Repeatable. As for a worker, the server is asked for names.",
        ),
    ] = None,
    others: Annotated[
        bool, typer.Option("--others", help="With --topic: messages that have no topic, too.")
    ] = False,
    follow: Annotated[
        bool | None,
        typer.Option("--follow/--no-follow", help="Go on with what comes. The default without -n."),
    ] = None,
    owner: Owner = None,
) -> None:
    """Print messages as they come, until the ring ends or Ctrl-C.

    It is a lossy reader, which never holds the writer up, and reports on stderr what it missed.
    With --topic it leaves out the connection's events, too."""
    following = count is None if follow is None else follow
    if not following and count is None:
        raise typer.BadParameter("needs -n, the number of messages", param_hint="--no-follow")
    if others and not topics:
        raise typer.BadParameter("needs --topic; without it, all is printed", param_hint="--others")
    status = shm.status(name, owner=owner)
    format_message = _json_line if as_json else _lines
    start = status.sequence if count is None else max(status.oldest, status.sequence - count)
    with _attach(name, start, topics or None, others=others, owner=owner) as feed:
        if topics and following:
            _report_refusals(feed, topics)
        for message in _messages(feed, start, None if following else status.sequence):
            sys.stdout.write(format_message(message) + "\n")


def _attach(
    name: str, start: int, topics: list[str] | None, *, others: bool, owner: int | None
) -> Feed:
    try:
        return Feed.attach(
            name,
            policy="lossy",
            start=start,
            wait=shm.Blocking(spin_us=0),
            label="ringcast tail",
            owner=owner,
            skip=0 if topics is None else shm.Kind.EVENT,
            topics=topics,
            others=others,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--topic") from error


def _report_refusals(feed: Feed, topics: list[str]) -> None:
    """Report on stderr what the server does not give; what it gives comes all the same."""
    try:
        wait_for_server(feed, topics, _ANSWER_WAIT)
    except (SubscriptionRefused, TimeoutError) as error:
        print_notice(str(error))
    except shm.RingClosed:  # there may be messages left
        return


def _messages(feed: Feed, start: int, end: int | None) -> Iterator[Message]:
    """The messages from `start` up to `end` (None: as they come, until the ring ends). Reports on
    stderr what was missed."""
    expected = start
    lost = 0
    while end is None or expected < end:
        try:
            message = feed.read(timeout=0)
            if message is None:
                sys.stdout.flush()
                message = feed.read() if end is None else None
        except shm.RingClosed as closed:
            message = None
            print_notice(str(closed))
        reached = feed.cursor if message is None else message.sequence
        if end is not None:
            reached = min(reached, end)
        missed = min(feed.lost - lost, reached - expected)
        lost = feed.lost
        if missed:
            print_notice(f"missed {missed:,} messages from {expected} on: they were overwritten")
        if message is None or reached == end:
            return
        yield message
        expected = message.sequence + 1


def _lines(message: Message) -> str:
    """A message for people, without the last line break."""
    name = message.topic_name
    topic = message.topic if name is None else visible(name)
    head = f"{message.sequence} {time_text(message.time_ns)} topic {topic} "
    if message.kind == shm.Kind.TEXT:
        return head + _visible_text(message)
    if message.kind == shm.Kind.EVENT:
        return f"{head}EVENT {_visible_text(message)}"
    kind = "binary" if message.kind == shm.Kind.BINARY else f"kind {int(message.kind)}"
    return f"{head}{kind}, {len(message)} bytes{_dump(bytes(message))}"


def _visible_text(message: Message) -> str:
    return visible(bytes(message).decode("utf-8", "backslashreplace"))


def _dump(payload: bytes) -> str:
    """Lines of offset, hexadecimal and ASCII; each starts with a line break."""
    text = ""
    for offset in range(0, min(len(payload), _DUMP_BYTES), _DUMP_LINE):
        line = payload[offset : offset + _DUMP_LINE]
        ascii_ = "".join(chr(byte) if byte in _ASCII_PRINTABLE else "." for byte in line)
        text += f"\n    {offset:04x}  {line.hex(' '):<{3 * _DUMP_LINE - 1}}  {ascii_}"
    if len(payload) > _DUMP_BYTES:
        text += f"\n    … {len(payload) - _DUMP_BYTES} bytes more: --json has them"
    return text


def _json_line(message: Message) -> str:
    """A message for programs."""
    known = isinstance(message.kind, shm.Kind)
    record: dict[str, Any] = {
        "sequence": message.sequence,
        "time_ns": message.time_ns,
        "kind": shm.Kind(message.kind).name.lower() if known else message.kind,
        "topic": message.topic,
        "topic_name": message.topic_name,
        "epoch": message.epoch,
        "gap": message.gap,
    }
    payload = bytes(message)
    text = None
    if message.kind in (shm.Kind.TEXT, shm.Kind.EVENT):
        text = _utf8(payload)
    if text is None:
        record["base64"] = base64.b64encode(payload).decode("ascii")
    else:
        record["text"] = text
    return json.dumps(record)


def _utf8(payload: bytes) -> str | None:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return None

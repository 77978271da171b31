"""Flows from one sender to consumers that share the messages out; timed as those of `flows` are.

A flow is as fast as all consumers together. It is timed from the first send after the warm-up until
the parent finds that everything has been handled; it looks every millisecond then. What was lost or
doubled fails the run, and so does a message that a consumer has not acknowledged. CPU times are
those that the kernel counts for each process, from the end of the warm-up on.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .flows import RESEND_S, WARM_UP_SHARE
from .groups_tally import (
    SIZE,
    Handler,
    Tally,
    flow_contents,
    wait_until_acknowledged,
    wait_until_handled,
)
from .processes import Channel, Children, child_processes
from .transports import LinkSender, Transport, Usage
from .transports.base import usage_of

CHUNK: Final = 512
"""Number of messages between two looks of the sender at the clock, about."""


def _all_sender(sender: LinkSender) -> Callable[[Sequence[Any]], object]:
    if sender.send_all is not None:
        return sender.send_all
    send = sender.send

    def send_all(items: Sequence[Any]) -> None:
        for item in items:
            send(item)

    return send_all


def _send(channel: Channel, link: Transport, seconds: float) -> None:
    """Be the sender: two phases, then marks until every consumer has left."""
    what = flow_contents()
    items = link.prepare(what.payloads)
    step = max(1, CHUNK // link.item_messages)
    messages_of = len if link.item_messages > 1 else _one
    chunks = itertools.cycle(
        (chunk, sum(map(messages_of, chunk)))
        for chunk in [items[i : i + step] for i in range(0, len(items), step)]
    )
    with link.sender() as sender:
        send_all = _all_sender(sender)
        channel.send(os.getpid())
        channel.receive()  # the consumers are attached
        sender.wait_for_receivers()
        sent = 0
        for phase_s in (seconds * WARM_UP_SHARE, seconds):
            began = time.monotonic_ns()
            end = began + int(phase_s * 1e9)
            while time.monotonic_ns() < end:
                chunk, count = next(chunks)
                send_all(chunk)
                sent += count
            channel.send({"began": began, "sent": sent})
            channel.receive()  # everything has been handled
        mark = link.prepare([what.mark(0)])
        send_all(mark * link.readers)
        while not channel.has_message(RESEND_S):
            send_all(mark)
        channel.receive()


def _one(_item: object) -> int:
    return 1


def _consume(channel: Channel, link: Transport, index: int, tally: Tally) -> None:
    handler = Handler(tally.row(index))
    handle = handler.handle_batches if link.yields_batches else handler.handle
    with link.receiver(index) as messages:
        channel.send(os.getpid())
        handle(messages)
    channel.send()


def _used(link: Transport, sender: int, consumers: Sequence[int]) -> dict[str, Usage]:
    of_consumers = [usage_of(pid) for pid in consumers]
    return {
        "sender": usage_of(sender),
        "consumers": sum(of_consumers, Usage(0.0, 0)),
        "server": link.usage(),
    }


def share(transport: type[Transport], consumers: int, seconds: float) -> dict[str, float]:
    """Measure one sender and so many consumers.

    Returns:
        rate: messages handled per second by all together; largest: the number that the busiest
        consumer handled, relative to their mean; cpu of sender, consumers, server: in us per
        message; switches: context switches of all processes per message.

    Raises:
        RunFailedError: a message was lost, doubled, or wrong, or a process failed.
    """
    flow_contents()
    link = transport(SIZE, readers=consumers)
    tally = Tally(consumers)
    with link.open(), child_processes(seconds * (1 + WARM_UP_SHARE)) as children:
        sender = children.start(_send, link, seconds)
        sender_pid = sender.receive()
        receivers = [children.start(_consume, link, k, tally) for k in range(consumers)]
        pids = [receiver.receive() for receiver in receivers]
        sender.send()
        _, warm_up, _ = _phase(children, sender, tally)
        handled_before = tally.by_consumer()
        used = _used(link, sender_pid, pids)
        sender.send()
        began, sent, ended = _phase(children, sender, tally)
        after = _used(link, sender_pid, pids)
        handled = tally.by_consumer() - handled_before
        tally.check(sent)
        wait_until_acknowledged(children, link.is_acknowledged)
        sender.send()
        for receiver in receivers:
            receiver.receive()  # it has left
        tally.check(sent)
        sender.send()
    count = sent - warm_up
    spent = {who: after[who] - used[who] for who in used}
    return {
        "rate": count / (ended - began) * 1e9,
        "largest": float(handled.max() / handled.mean()),
        **{f"cpu of {who}": one.cpu_s / count * 1e6 for who, one in spent.items()},
        "switches": sum(one.switches for one in spent.values()) / count,
    }


def _phase(children: Children, sender: Channel, tally: Tally) -> tuple[int, int, int]:
    """Wait for the end of a phase. Returns when it began, how many messages had been sent by its
    end, and when all had been handled."""
    found = sender.receive()
    ended = wait_until_handled(children, tally, found["sent"])
    return found["began"], found["sent"], ended

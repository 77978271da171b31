"""Flows from one sender to its receivers: a warm-up, then so many seconds that are measured.

A flow is as fast as its slowest process. It is timed from the first send after the warm-up, which
every receiver has read by then, until the last receiver has read the last message. So a large
buffer makes nothing faster: what it holds at the end has yet to be read. CPU time and context
switches are those of all processes in that time, including a server between them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from .errors import RunFailedError
from .payloads import Checker, contents
from .processes import Channel, child_processes
from .transports import LinkSender, Memory, Transport, Usage, Wait

WARM_UP_SHARE: Final = 0.5
"""Duration of the warm-up as a share of the seconds that are measured."""
RESEND_S: Final = 0.01
"""Seconds after which a mark that may be lost is sent again."""
_CHUNKS: Final = 16
"""The sender looks at the clock so often per round of messages."""


def _one_by_one(send: Callable[[Any], object]) -> Callable[[Sequence[Any]], object]:
    def send_all(items: Sequence[Any]) -> None:
        for item in items:
            send(item)

    return send_all


def _to_all(senders: Sequence[LinkSender]) -> Callable[[Sequence[Any]], object]:
    """A function that sends each of some items on every link."""
    if len(senders) == 1:
        return senders[0].send_all or _one_by_one(senders[0].send)
    sends = [sender.send for sender in senders]

    def send_all(items: Sequence[Any]) -> None:
        for item in items:
            for send in sends:
                send(item)

    return send_all


def send_until_received(channel: Channel, link: Transport, send_mark: Callable[[], object]) -> None:
    """Send a mark, over and over if it may be lost, until the benchmark reports that it came."""
    send_mark()
    while link.lossy and not channel.has_message(RESEND_S):
        send_mark()
    channel.receive()


class _SendingFlow:
    """What a sender does in each phase."""

    def __init__(
        self,
        channel: Channel,
        link: Transport,
        senders: Sequence[LinkSender],
        items: Sequence[Any],
    ) -> None:
        self._channel = channel
        self._link = link
        self._send_all = _to_all(senders)
        step = -(-len(items) // _CHUNKS)
        self._chunks = [items[i : i + step] for i in range(0, len(items), step)]
        self._item_messages = link.item_messages

    def send(self, seconds: float) -> int:
        """Send the round over and over. Returns how many messages that were."""
        send_all = self._send_all
        sent = 0
        end = time.monotonic_ns() + int(seconds * 1e9)
        while time.monotonic_ns() < end:
            for chunk in self._chunks:
                send_all(chunk)
                sent += len(chunk) * self._item_messages
                if time.monotonic_ns() >= end:
                    break
        return sent

    def mark(self, phase: int) -> None:
        """Send the mark of a phase, until the benchmark reports that every receiver has it."""
        items = self._link.prepare([contents(self._link.size).mark(phase)])
        send_until_received(self._channel, self._link, partial(self._send_all, items))


def _send(channel: Channel, links: Sequence[Transport], seconds: float, idle: bool) -> None:
    with contextlib.ExitStack() as stack:
        items = links[0].prepare(contents(links[0].size).payloads)
        held = Memory.own()
        senders = [stack.enter_context(link.sender()) for link in links]
        channel.send()
        channel.receive()  # the receivers are attached
        for sender in senders:
            sender.wait_for_receivers()
        flow = _SendingFlow(channel, links[0], senders, items)
        flow.send(seconds * WARM_UP_SHARE)
        flow.mark(0)
        used = Usage.own()
        began = time.monotonic_ns()
        sent = flow.send(seconds)
        used = Usage.own() - used
        flow.mark(1)
        costs = _costs(used, Memory.own().beyond(held))
        channel.send({"began": began, "sent": sent, **costs})
        if idle:
            channel.receive()
            flow.mark(2)
        channel.receive()  # all are done


def _receive(channel: Channel, link: Transport, index: int, idle: bool) -> None:
    checker = Checker(contents(link.size), link.lossy)
    held = Memory.own()
    read = checker.read_batches if link.yields_batches else checker.read
    with link.receiver(index) as messages:
        channel.send()
        read(messages, 0)
        used = Usage.own()
        channel.send()
        read(messages, 1)
        ended = time.monotonic_ns()
        used = Usage.own() - used
        costs = _costs(used, Memory.own().beyond(held))
        channel.send({"ended": ended, "received": checker.received, **costs})
        if idle:
            used = Usage.own()
            read(messages, 2)
            used = Usage.own() - used
            channel.send({"cpu": used.cpu_s, "switches": used.switches})
        channel.receive()


def _costs(used: Usage, memory: int) -> dict[str, float]:
    return {"cpu": used.cpu_s, "switches": used.switches, "memory": memory}


def _result(
    sender: dict[str, float], receivers: Sequence[dict[str, float]], server: Usage, lossy: bool
) -> dict[str, float]:
    sent, count = sender["sent"], len(receivers)
    received = sum(one["received"] for one in receivers)
    if received != sent * count and not (lossy and received < sent * count):
        raise RunFailedError(f"{sent} messages were sent to each of {count}, {received} came")
    seconds = (max(one["ended"] for one in receivers) - sender["began"]) / 1e9
    processes = [sender, *receivers]
    return {
        "rate": received / count / seconds,
        "lost": 1 - received / (sent * count),
        "cpu": (sum(one["cpu"] for one in processes) + server.cpu_s) / max(1, received) * 1e6,
        "switches": (sum(one["switches"] for one in processes) + server.switches)
        / max(1, received),
        "memory": sum(one["memory"] for one in processes),
    }


def broadcast(
    transport: type[Transport],
    size: int,
    readers: int,
    seconds: float,
    wait: Wait = "block",
    idle_s: float = 0.0,
) -> dict[str, float]:
    """Measure one sender and so many receivers, and then, if asked for, an idle time.

    Returns:
        rate: messages per second that each received; lost: the share of the messages that did not
        come; cpu, in us, and switches: CPU time and context switches of all processes per message
        received; memory: bytes that all processes but a server hold. For the idle time: idle cpu,
        in s, and idle switches: of all receivers and a server, per second.

    Raises:
        RunFailedError: a receiver did not get exactly what was sent, or a process failed.
    """
    contents(size)
    if transport.fans_out or readers == 1:
        links = [transport(size, readers=readers, wait=wait)]
    else:
        links = [transport(size, wait=wait) for _ in range(readers)]
    with contextlib.ExitStack() as stack:
        for link in links:
            stack.enter_context(link.open())
        children = stack.enter_context(child_processes(seconds * (1 + WARM_UP_SHARE) + idle_s))
        sender = children.start(_send, links, seconds, idle_s > 0)
        sender.receive()
        receivers = [
            children.start(_receive, links[k % len(links)], k, idle_s > 0) for k in range(readers)
        ]
        for receiver in receivers:
            receiver.receive()
        sender.send()
        for receiver in receivers:
            receiver.receive()  # the warm-up is read
        before = _used_by_servers(links)
        sender.send()
        found = [receiver.receive() for receiver in receivers]
        server = _used_by_servers(links) - before
        sender.send()
        result = _result(sender.receive(), found, server, transport.lossy)
        if idle_s:
            result |= _idle(links, sender, receivers, idle_s)
        for channel in (sender, *receivers):
            channel.send()
        return result


def _idle(
    links: Sequence[Transport], sender: Channel, receivers: Sequence[Channel], idle_s: float
) -> dict[str, float]:
    before = _used_by_servers(links)
    time.sleep(idle_s)  # this is what is measured
    used = _used_by_servers(links) - before
    sender.send()
    found = [receiver.receive() for receiver in receivers]
    sender.send()
    cpu_s = used.cpu_s + sum(one["cpu"] for one in found)
    switches = used.switches + sum(one["switches"] for one in found)
    return {"idle cpu": cpu_s / idle_s, "idle switches": switches / idle_s}


def _used_by_servers(links: Sequence[Transport]) -> Usage:
    return sum((link.usage() for link in links), Usage(0.0, 0))

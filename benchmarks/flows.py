"""Leading senders and receivers through a flow: a warm-up, then so many seconds that are measured.

A flow goes as fast as its slowest. It is timed from the first send after the warm-up, which every
receiver has read, until the last receiver has read the last message; so a large buffer makes
nothing faster: what it holds at the end is yet to be read. CPU time and context switches are those
of all processes in that time, a server in between included.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from .method import Channel, RunFailedError, crew
from .payloads import Checker, contents
from .transports import Memory, Outlet, Transport, Usage, Wait

WARM_UP_SHARE: Final = 0.5
"""Of the seconds measured, this much more before."""
AGAIN_S: Final = 0.01
"""Seconds after which a mark that may be lost is said again."""
_CHUNKS: Final = 16
"""Looks at the clock a round of messages."""


def _each(send: Callable[[Any], object]) -> Callable[[Sequence[Any]], object]:
    def send_all(items: Sequence[Any]) -> None:
        for item in items:
            send(item)

    return send_all


def _to_all(outlets: Sequence[Outlet]) -> Callable[[Sequence[Any]], object]:
    """A function that sends each of some items to every outlet."""
    if len(outlets) == 1:
        return outlets[0].send_all or _each(outlets[0].send)
    sends = [outlet.send for outlet in outlets]

    def send_all(items: Sequence[Any]) -> None:
        for item in items:
            for send in sends:
                send(item)

    return send_all


def say_until_heard(channel: Channel, link: Transport, say: Callable[[], object]) -> None:
    """Send a mark, over and over if it may be lost, until the benchmark says that it came."""
    say()
    while link.lossy and not channel.has_word(AGAIN_S):
        say()
    channel.hear()


class _Flow:
    """What a sender does in both phases."""

    def __init__(
        self, channel: Channel, link: Transport, outlets: Sequence[Outlet], items: Sequence[Any]
    ) -> None:
        self._channel = channel
        self._link = link
        self._send_all = _to_all(outlets)
        step = -(-len(items) // _CHUNKS)
        self._chunks = [items[i : i + step] for i in range(0, len(items), step)]
        self._group = link.group

    def send(self, seconds: float) -> int:
        """Send the round over and over; how many messages that were."""
        send_all = self._send_all
        sent = 0
        end = time.monotonic_ns() + int(seconds * 1e9)
        while time.monotonic_ns() < end:
            for chunk in self._chunks:
                send_all(chunk)
                sent += len(chunk) * self._group
                if time.monotonic_ns() >= end:
                    break
        return sent

    def mark(self, phase: int) -> None:
        """Say that a phase is over, until the benchmark says that everybody has heard it."""
        items = self._link.prepare([contents(self._link.size).mark(phase)])
        say_until_heard(self._channel, self._link, partial(self._send_all, items))


def _send(channel: Channel, links: Sequence[Transport], seconds: float, idle: bool) -> None:
    with contextlib.ExitStack() as stack:
        items = links[0].prepare(contents(links[0].size).payloads)
        held = Memory.own()
        outlets = [stack.enter_context(link.sender()) for link in links]
        channel.tell()
        channel.hear()  # the receivers are there
        for outlet in outlets:
            outlet.settle()
        flow = _Flow(channel, links[0], outlets, items)
        flow.send(seconds * WARM_UP_SHARE)
        flow.mark(0)
        used = Usage.own()
        began = time.monotonic_ns()
        sent = flow.send(seconds)
        used = Usage.own() - used
        flow.mark(1)
        channel.tell({"began": began, "sent": sent, **_told(used, Memory.own().beyond(held))})
        if idle:
            channel.hear()
            flow.mark(2)
        channel.hear()  # everybody is done


def _receive(channel: Channel, link: Transport, index: int, idle: bool) -> None:
    checker = Checker(contents(link.size), link.lossy)
    held = Memory.own()
    read = checker.read_batches if link.arrays else checker.read
    with link.receiver(index) as messages:
        channel.tell()
        read(messages, 0)
        used = Usage.own()
        channel.tell()
        read(messages, 1)
        ended = time.monotonic_ns()
        used = Usage.own() - used
        told = _told(used, Memory.own().beyond(held))
        channel.tell({"ended": ended, "received": checker.received, **told})
        if idle:
            used = Usage.own()
            read(messages, 2)
            used = Usage.own() - used
            channel.tell({"cpu": used.cpu_s, "switches": used.switches})
        channel.hear()


def _told(used: Usage, memory: int) -> dict[str, float]:
    return {"cpu": used.cpu_s, "switches": used.switches, "memory": memory}


def _result(
    sender: dict[str, float], receivers: Sequence[dict[str, float]], server: Usage, lossy: bool
) -> dict[str, float]:
    sent, count = sender["sent"], len(receivers)
    received = sum(one["received"] for one in receivers)
    if received != sent * count and not (lossy and received < sent * count):
        raise RunFailedError(f"{sent} messages were sent to each of {count}, {received} came")
    seconds = (max(one["ended"] for one in receivers) - sender["began"]) / 1e9
    everybody = [sender, *receivers]
    return {
        "rate": received / count / seconds,
        "lost": 1 - received / (sent * count),
        "cpu": (sum(one["cpu"] for one in everybody) + server.cpu_s) / max(1, received) * 1e6,
        "switches": (sum(one["switches"] for one in everybody) + server.switches)
        / max(1, received),
        "memory": sum(one["memory"] for one in everybody),
    }


def broadcast(
    transport: type[Transport],
    size: int,
    readers: int,
    seconds: float,
    wait: Wait = "block",
    idle_s: float = 0.0,
) -> dict[str, float]:
    """One sender, so many receivers; and then, if asked, nothing for a while.

    Returns:
        rate: messages a second that each received; lost: the share of those sent that did not come;
        cpu: CPU time of all processes, us, and switches: their context switches, by message
        received; memory: bytes that all but a server hold for it. Of the idle time: idle cpu, the
        CPU time of all receivers and a server, s by second; idle switches, likewise.

    Raises:
        RunFailedError: a receiver got something else than what was sent, or a process failed.
    """
    contents(size)
    if transport.fans_out or readers == 1:
        links = [transport(size, readers=readers, wait=wait)]
    else:
        links = [transport(size, wait=wait) for _ in range(readers)]
    with contextlib.ExitStack() as stack:
        for link in links:
            stack.enter_context(link.open())
        group = stack.enter_context(crew(seconds * (1 + WARM_UP_SHARE) + idle_s))
        sender = group.start(_send, links, seconds, idle_s > 0)
        sender.hear()
        receivers = [
            group.start(_receive, links[k % len(links)], k, idle_s > 0) for k in range(readers)
        ]
        for receiver in receivers:
            receiver.hear()
        sender.tell()
        for receiver in receivers:
            receiver.hear()  # the warm-up is read
        before = _used_by_servers(links)
        sender.tell()
        found = [receiver.hear() for receiver in receivers]
        server = _used_by_servers(links) - before
        sender.tell()
        result = _result(sender.hear(), found, server, transport.lossy)
        if idle_s:
            result |= _idle(links, sender, receivers, idle_s)
        for channel in (sender, *receivers):
            channel.tell()
        return result


def _idle(
    links: Sequence[Transport], sender: Channel, receivers: Sequence[Channel], idle_s: float
) -> dict[str, float]:
    before = _used_by_servers(links)
    time.sleep(idle_s)  # this is what is measured
    used = _used_by_servers(links) - before
    sender.tell()
    told = [receiver.hear() for receiver in receivers]
    sender.tell()
    cpu_s = used.cpu_s + sum(one["cpu"] for one in told)
    switches = used.switches + sum(one["switches"] for one in told)
    return {"idle cpu": cpu_s / idle_s, "idle switches": switches / idle_s}


def _used_by_servers(links: Sequence[Transport]) -> Usage:
    return sum((link.usage() for link in links), Usage(0.0, 0))

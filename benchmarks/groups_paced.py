"""Work groups whose members keep up, since messages come at a fixed rate.

*The writer's cost.* Its CPU time in publish(), while four members of a group, or four ordinary
readers, keep up. Messages come one by one, each to sleepers; or 64 are due at once, and are
published by publish() one after the other, or by publish_many().

*A slow member.* Four members of a group, one of which takes a second for each message; beside it
the other three alone. The ring holds what comes in more than four seconds. The figures are those of
the three: messages handled per second, and the time from publish() until a message was handled.

*Waking.* Four members that sleep, and messages so rare that each finds them asleep. The figure is
how often the kernel counts that a member has gone to sleep, per message: what is beyond 1 was in
vain. Beside it stands how often they do while nothing comes, since each looks by itself now and
then.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from ringcast.shm import broadcast, group

from .errors import RunFailedError
from .figures import percentiles
from .groups_tally import Handler, Tally, flow_contents, wait_until_acknowledged, wait_until_handled
from .payloads import Checker
from .processes import Channel, Children, child_processes
from .ring_names import temporary_ring_name
from .topics import pauses
from .transports.sharing import GROUP, all_done

Who = Literal["members", "readers"]

CONSUMERS: Final = 4
WARM_UP_SHARE: Final = 0.1
"""The share of the messages that come before those that count."""
ENDLESS_S: Final = 1e6

SLOW_S: Final = 1.0
"""How long the slow member takes for a message."""
SLOW_RATE: Final = 10_000
"""Messages per second; a ring of default size holds what comes in 6.5 s."""
WAKE_RATE: Final = 1_000
IDLE_S: Final = 0.4
"""How long it is counted how often members wake while nothing comes."""


@dataclass(frozen=True, slots=True)
class Pace:
    """A fixed rate.

    Attributes:
        step: how many messages are due at once.
        rate: messages per second.
        at_once: whether those are published by one call of publish_many().
    """

    step: int
    rate: int
    at_once: bool = False

    @property
    def name(self) -> str:
        """How figures name it."""
        if self.step == 1:
            return f"one by one, {self.rate:,} per second"
        how = ", publish_many()" if self.at_once else ""
        return f"{self.step} at a time{how}, {self.rate:,} per second"

    def count(self, seconds: float) -> int:
        """How many messages that is."""
        return max(2, int(seconds * self.rate / self.step)) * self.step


PACES: Final = (Pace(1, 10_000), Pace(64, 64_000), Pace(64, 64_000, at_once=True))


# ---- the writer ----------------------------------------------------------------------------


def _publish(channel: Channel, name: str, pace: Pace, count: int, marked: bool) -> None:
    """Publish so many messages, each when it is due. Reports the CPU time in publish() in us per
    message. The ring ends when everything has been handled."""
    clock = time.process_time_ns
    what = flow_contents()
    size, step = len(what.payloads), pace.step
    skipped = int(count * WARM_UP_SHARE)
    cpu_ns = counted = 0
    with broadcast.Writer.create(name) as writer:
        channel.send()
        channel.receive()  # everybody is attached
        publish, publish_many = writer.publish, writer.publish_many
        for at, _ in zip(range(0, count, step), pauses(pace.rate, step, ENDLESS_S), strict=False):
            chunk = [what.payloads[i % size] for i in range(at, at + step)]
            before = clock()
            if pace.at_once:
                publish_many(chunk)
            else:
                for payload in chunk:
                    publish(payload)
            if at >= skipped:
                cpu_ns += clock() - before
                counted += step
        if marked:
            publish(what.mark(0))
        channel.send(cpu_ns / counted / 1000)
        channel.receive()  # everything has been handled


# ---- those who handle ----------------------------------------------------------------------


def _member(channel: Channel, name: str, index: int, tally: Tally) -> None:
    handler = Handler(tally.row(index))
    with group.Member.attach(name, GROUP) as member:
        channel.send(os.getpid())
        handler.handle(iter(member))
    channel.send()


def _reader(channel: Channel, name: str) -> None:
    checker = Checker(flow_contents(), lossy=False)
    with broadcast.Reader.attach(name) as reader:
        channel.send(os.getpid())
        checker.read(reader, 0)
        channel.send(checker.received)


class _Times:
    """When each message was published and handled, Unix time in ns, and by whom, in memory that all
    processes share.

    Attributes:
        published: by number.
        handled: by number.
        by: by number, the index of the member.
    """

    def __init__(self, count: int) -> None:
        memory = mmap.mmap(-1, 3 * 8 * count)
        words = np.frombuffer(memory, np.int64).reshape(3, count)
        words[:] = 0
        self.published, self.handled, self.by = words


def _timing_member(
    channel: Channel, name: str, index: int, tally: Tally, times: _Times, work_s: float
) -> None:
    """Be a member that takes a while for each message and notes when it has handled it."""
    clock = time.time_ns
    handler = Handler(tally.row(index))

    def worked(messages: Iterator[group.GroupMessage]) -> Iterator[group.GroupMessage]:
        at = 0
        for message in messages:
            if work_s:
                time.sleep(work_s)
            at = int.from_bytes(memoryview(message)[:8], "little")
            yield message
            times.handled[at] = clock()
            times.published[at] = message.time_ns
            times.by[at] = index
            del message

    with group.Member.attach(name, GROUP) as member:
        channel.send(os.getpid())
        handler.handle(worked(iter(member)))
    channel.send()


# ---- what is measured ----------------------------------------------------------------------


def writer_cost(who: Who, pace: Pace, seconds: float) -> dict[str, float]:
    """Measure the writer's CPU time in publish() in us per message.

    Raises:
        RunFailedError: a message was lost, doubled or wrong, or a process failed.
    """
    flow_contents()
    count = pace.count(seconds)
    tally = Tally(CONSUMERS)
    with temporary_ring_name() as name, child_processes(seconds) as children:
        writer = children.start(_publish, name, pace, count, who == "readers")
        writer.receive()
        ends = [
            children.start(_member, name, k, tally)
            if who == "members"
            else children.start(_reader, name)
            for k in range(CONSUMERS)
        ]
        for end in ends:
            end.receive()
        writer.send()
        cost_us: float = writer.receive()
        if who == "members":
            _finish(children, name, tally, count)
        else:
            found = [end.receive() for end in ends]
            writer.send()
            if found != [count] * CONSUMERS:
                raise RunFailedError(f"{count} messages were sent, and {found} read")
    return {f"writer {who}: {pace.name}": cost_us}


def _finish(children: Children, name: str, tally: Tally, count: int) -> None:
    """Wait until all is handled and acknowledged, end the ring, and wait until the members have
    left. The writer is the first of the children, and the members are the others."""
    writer, *members = children.channels
    wait_until_handled(children, tally, count)
    tally.check(count)
    wait_until_acknowledged(children, partial(all_done, name))
    writer.send()
    for member in members:
        member.receive()
    tally.check(count)


def slow_member(slow: bool, seconds: float) -> dict[str, float]:
    """Measure three members of a group: messages that they handle per second, and percentiles of
    the time in us from publish() until a message was handled.

    Args:
        slow: whether there is a fourth one, which takes `SLOW_S` for a message.
        seconds: for which messages come.

    Raises:
        RunFailedError: a message was lost, doubled or wrong, or a process failed.
    """
    what = flow_contents()
    pace = Pace(1, SLOW_RATE)
    count = min(pace.count(seconds), len(what.payloads))
    members = CONSUMERS - 1 + slow
    tally, times = Tally(members), _Times(count)
    with temporary_ring_name() as name, child_processes(seconds + 2 * SLOW_S) as children:
        writer = children.start(_publish, name, pace, count, False)
        writer.receive()
        ends = [
            children.start(
                _timing_member, name, k, tally, times, SLOW_S if k == CONSUMERS - 1 else 0.0
            )
            for k in range(members)
        ]
        for end in ends:
            end.receive()
        writer.send()
        writer.receive()
        _finish(children, name, tally, count)
    return {f"{'with' if slow else 'without'}: {k}": v for k, v in _of_the_three(times).items()}


def _of_the_three(times: _Times) -> dict[str, float]:
    skipped = int(len(times.by) * WARM_UP_SHARE)
    theirs = times.by[skipped:] < CONSUMERS - 1
    published, handled = times.published[skipped:], times.handled[skipped:]
    took: Any = (handled - published)[theirs]
    if took.min() < 0:
        raise RunFailedError(f"a message was handled {-took.min()} ns before it was published")
    span_ns = int(handled[theirs].max() - published.min())
    return {
        "rate": int(theirs.sum()) / span_ns * 1e9,
        **percentiles((50.0, 99.0), len(took), partial(np.percentile, took)),
    }


def wakes(seconds: float) -> dict[str, float]:
    """Measure how often members go to sleep: all together per message, and per second while nothing
    comes.

    Raises:
        RunFailedError: a message was lost, doubled or wrong, or a process failed.
    """
    flow_contents()
    pace = Pace(1, WAKE_RATE)
    count = pace.count(seconds)
    tally = Tally(CONSUMERS)
    with temporary_ring_name() as name, child_processes(seconds + IDLE_S) as children:
        writer = children.start(_publish, name, pace, count, False)
        writer.receive()
        ends = [children.start(_member, name, k, tally) for k in range(CONSUMERS)]
        pids = [end.receive() for end in ends]
        began, slept = time.monotonic(), _slept(pids)
        time.sleep(IDLE_S)  # this is what is measured
        idle = (_slept(pids) - slept) / (time.monotonic() - began)
        slept = _slept(pids)
        writer.send()
        writer.receive()
        wait_until_handled(children, tally, count)
        slept = _slept(pids) - slept
        _finish(children, name, tally, count)
    return {
        "woken: per message": slept / count,
        "woken: per second while nothing comes": idle,
    }


def _slept(pids: list[int]) -> int:
    """How often these processes have gone to sleep, by themselves, in their main threads."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total

"""How long a message takes from one side to the other, in three ways of asking.

*There and back again.* One side sends and waits for the answer, over and over; half of that is one
way. One message at a time; for batched transports, 64 that go together. Each side has a core of its
own; both sleep while they wait, or both spin. The answer's contents are checked outside the time,
for groups inside it.

*At a fixed rate.* A sender that watches the clock sends each message when it is due, late ones at
once; the receiver notes when it holds each. What counts is the time since a message was *due*: had
it counted from when it was sent, a transport that makes the sender wait would hide how long the
messages behind it waited ("coordinated omission", Gil Tene). Times go into an HdrHistogram of three
digits. Between two looks at the clock the sender lets its other threads run: some libraries send
from one, or write from one.

*In bursts.* The same, but many messages are due at once, each 20 ms, and then none.

No percentile is told beyond which fewer than ten times lie.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from .flows import say_until_heard
from .method import (
    Channel,
    Figure,
    Plan,
    Report,
    RunFailedError,
    Samples,
    crew,
    describe_machine,
    grid,
    interleave,
    percentiles,
    picked,
)
from .payloads import MARK, Contents, contents
from .throughput import AHEAD_TO, ahead, bytes_text, fits
from .transports import Transport, Wait, available
from .transports.rings import LossyRing, Uplink

SIZE: Final = 128
SIZES: Final = (32, 128, 4096)
BRIEF_SIZES: Final = (128,)
OVER: Final = -1
WARM_UP: Final = 512
"""Round trips before those that count."""
RATES: Final = (1_000, 10_000, 100_000)
BRIEF_RATES: Final = (10_000,)
PACED_S_MOST: Final = 2.0
"""Seconds at a fixed rate: who can't keep up takes many times as long."""
BURST: Final = 1024
BURST_PERIOD_NS: Final = 20_000_000
HEAD_START_NS: Final = 20_000_000
"""From what both sides are told to the first message that is due."""
UNCOUNTED: Final = 0.1
"""Share of the messages at a fixed rate that are the warm-up."""
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
LONGEST_NS: Final = 600_000_000_000
ROUND_MOST: Final = 1 << 18
"""Messages at a fixed rate that are different: as many would have to be lost in a row for one to be
taken for another."""

Run = Callable[[], dict[str, float]]


# ---- there and back again ------------------------------------------------------------------


class _Groups:
    """The messages of a round as they go to and fro, and a last group that ends it."""

    def __init__(self, link: Transport) -> None:
        what = contents(link.size)
        each = link.group
        self.items = link.prepare(what.payloads)
        self.due = [what.payloads[i : i + each] for i in range(0, len(what.payloads), each)]
        self.over = [what.mark(0)] * each
        self.last_item = link.prepare(self.over)[0]
        self.joined = [b"".join(group) for group in self.due]
        self.joined_over = b"".join(self.over)


def _taker(link: Transport, groups: _Groups, messages: Iterator[Any]) -> Callable[[int], int]:
    """A function that waits for the group of a number and returns when it had it, ns; OVER if the
    last group came."""
    if link.group == 1:
        return _single_taker(groups, messages)
    return _array_taker(link, groups, messages) if link.arrays else _list_taker(groups, messages)


def _single_taker(groups: _Groups, messages: Iterator[Any]) -> Callable[[int], int]:
    clock, joined, count = time.perf_counter_ns, groups.joined, len(groups.joined)

    def take(number: int) -> int:
        item = next(messages)
        now = clock()
        found = bytes(item)
        if found != joined[number % count]:
            return _over(found, groups.joined_over)
        return now

    return take


def _array_taker(link: Transport, groups: _Groups, messages: Iterator[Any]) -> Callable[[int], int]:
    clock, count = time.perf_counter_ns, len(groups.joined)
    whole = np.dtype(("<u8", link.size // 8))
    due = [np.frombuffer(joined, whole) for joined in groups.joined]
    over = np.frombuffer(groups.joined_over, whole)

    def take(number: int) -> int:
        wanted = due[number % count]
        held = 0
        while held < len(wanted):
            found = next(messages).records(whole)
            part = slice(held, held + len(found))
            if not np.array_equal(found, wanted[part]):
                return _over(found.tobytes(), over[part].tobytes())
            held += len(found)
            del found  # it would hold the ring
        return clock()

    return take


def _list_taker(groups: _Groups, messages: Iterator[Any]) -> Callable[[int], int]:
    clock, due, count = time.perf_counter_ns, groups.due, len(groups.due)

    def take(number: int) -> int:
        group = due[number % count]
        for wanted, item in zip(group, messages, strict=False):
            if bytes(item) != wanted:
                return _over(bytes(item), groups.over[0])
        return clock()

    return take


def _over(found: bytes, over: bytes) -> int:
    if found != over:
        raise RunFailedError(f"other bytes came than were sent: {found[:64]!r}")
    return OVER


def _ping(channel: Channel, there: Transport, back: Transport, seconds: float) -> None:
    """Send and wait; tell percentiles of half the time, us."""
    clock = time.perf_counter_ns
    groups = _Groups(there)
    items, count = groups.items, len(groups.items)
    times: list[int] = []
    with _both(channel, there, back) as (outlet, messages):
        channel.hear()  # the other side is ready
        take, send = _taker(back, groups, messages), outlet.send
        end = 0
        for number in itertools.count():
            if number == WARM_UP:
                times.clear()
                end = clock() + int(seconds * 1e9)
            item = items[number % count]
            before = clock()
            send(item)
            after = take(number)
            times.append(after - before)
            if end and after > end:
                break
        send(groups.last_item)
        one_way = np.array(times) / 2
        channel.tell(percentiles((50.0, 99.0), len(times), partial(np.percentile, one_way)))
        channel.hear()


def _pong(channel: Channel, there: Transport, back: Transport) -> None:
    """Answer each group with the same, until the last."""
    groups = _Groups(back)
    items, count = groups.items, len(groups.items)
    with _both(channel, back, there) as (outlet, messages):
        take, send = _taker(there, groups, messages), outlet.send
        for number in itertools.count():
            if take(number) == OVER:
                break
            send(items[number % count])
        channel.tell()
        channel.hear()


@contextlib.contextmanager
def _both(channel: Channel, out: Transport, into: Transport) -> Iterator[Any]:
    """A sending and a receiving side, made in an order in which nobody waits for ever."""
    with contextlib.ExitStack() as stack:
        if out.receiver_first:
            messages = stack.enter_context(into.receiver(0))
            channel.tell()
            channel.hear()
            outlet = stack.enter_context(out.sender())
        else:
            outlet = stack.enter_context(out.sender())
            channel.tell()
            channel.hear()
            messages = stack.enter_context(into.receiver(0))
        channel.tell()
        channel.hear()
        outlet.settle()
        channel.tell()
        yield outlet, messages


def round_trips(
    transport: type[Transport], size: int, seconds: float, wait: Wait
) -> dict[str, float]:
    """Half the time of there and back again, us: p50 and p99, if there were enough.

    Raises:
        RunFailedError: an answer is not what was sent, or a process failed.
    """
    contents(size)
    there, back = (transport(size, wait=wait) for _ in range(2))
    with there.open(), back.open(), crew(seconds, "apart") as group:
        ends = [group.start(_ping, there, back, seconds), group.start(_pong, there, back)]
        for step in (Channel.hear, Channel.tell, Channel.hear, Channel.tell, Channel.hear):
            for end in ends:
                step(end)
        ping, pong = ends
        ping.tell()
        found: dict[str, float] = ping.hear()
        pong.hear()
        for end in ends:
            end.tell()
        return found


# ---- at a fixed rate, and in bursts --------------------------------------------------------


def _round(count: int) -> Contents:
    """The messages of a run of so many."""
    return contents(SIZE, min(count, ROUND_MOST))


def _on_time(channel: Channel, link: Transport, count: int, burst: int, period_ns: int) -> None:
    """Send so many messages, a burst of them each period, and then a mark."""
    clock, let_others_run = time.monotonic_ns, select.poll().poll
    what = _round(count)
    with link.sender() as outlet:
        items = link.prepare(what.payloads)
        channel.tell()
        channel.hear()  # the receiver is there
        outlet.settle()
        channel.tell()
        began = channel.hear()
        each = max(1, burst // link.group)
        send, send_all = outlet.send, outlet.send_all
        for number in range(count // burst):
            at = number * each % len(items)
            chunk = items[at : at + each]
            due = began + number * period_ns
            while clock() < due:
                let_others_run(0)  # it releases the interpreter's lock, and returns at once
            if each == 1:
                send(chunk[0])
            elif send_all is not None:
                send_all(chunk)
            else:
                for item in chunk:
                    send(item)
        say_until_heard(channel, link, partial(send, link.prepare([what.mark(0)])[0]))


def _note_times(channel: Channel, link: Transport, count: int, burst: int, period_ns: int) -> None:
    """Receive so many; tell how long each took from when it was due."""
    with link.receiver(0) as messages:
        channel.tell()
        began = channel.hear()
        held = _held_batches if link.arrays else _held
        times = held(messages, _round(count), count)
        if not link.lossy and not times.all():
            raise RunFailedError(f"message {int(np.argmin(times))} did not come")
        channel.tell(_percentiles(times - began, count, burst, period_ns))
        channel.hear()


def _held(messages: Iterator[Any], what: Contents, count: int) -> np.ndarray[Any, Any]:
    """When each message was held, by number; 0 for one that did not come. Ends with the mark."""
    clock = time.monotonic_ns
    unpack = what.layout.unpack
    payloads, mark = what.payloads, what.mark(0)
    size = len(payloads)
    times = np.zeros(count, np.int64)
    number = -1
    for item in messages:
        now = clock()
        counter = unpack(item)[0]
        if counter == MARK and bytes(item) == mark:
            break
        number += 1 + (counter - number - 1) % size  # a lossy one may have gone on
        if counter >= size or number >= count or bytes(item) != payloads[counter]:
            raise RunFailedError(f"message {number} is not what was sent")
        times[number] = now
    return times


def _held_batches(messages: Iterator[Any], what: Contents, count: int) -> np.ndarray[Any, Any]:
    """The same for batches: all of one are held at once."""
    clock = time.monotonic_ns
    size = len(what.payloads)
    times = np.zeros(count, np.int64)
    number = 0
    for batch in messages:
        now = clock()
        till = min(count, number + len(batch))
        due = [what.payloads[i % size] for i in range(number, till)]
        ended = len(batch) > len(due)
        due += [what.mark(0)] * ended
        if batch.records(np.dtype(("V", what.size))).tobytes() != b"".join(due):
            raise RunFailedError(f"after message {number} come other ones than were sent")
        times[number:till] = now
        number = till
        if ended:
            break
    return times


def _percentiles(
    since_ns: np.ndarray[Any, Any], count: int, burst: int, period_ns: int
) -> dict[str, float]:
    """Percentiles, us, of the messages after the warm-up, and the share that did not come."""
    from hdrh.histogram import HdrHistogram

    skipped = int(count * UNCOUNTED)
    due = np.arange(count, dtype=np.int64) // burst * period_ns
    came = since_ns[skipped:] > -due.max() - HEAD_START_NS
    took = (since_ns - due)[skipped:][came]
    histogram = HdrHistogram(1, LONGEST_NS, 3)
    for value in took.tolist():
        histogram.record_value(max(1, value))
    total = histogram.get_total_count()
    found = percentiles(PERCENTILES, total, histogram.get_value_at_percentile)
    return {**found, "lost": 1 - total / (count - skipped)}


def paced(
    transport: type[Transport], seconds: float, wait: Wait, burst: int, period_ns: int
) -> dict[str, float]:
    """Percentiles of the time since a message was due, us, where bursts are due each period; for so
    many seconds, at most `PACED_S_MOST`.

    Raises:
        RunFailedError: what came is not what was sent, or a process failed.
    """
    count = max(2, int(min(seconds, PACED_S_MOST) * 1e9 / period_ns)) * burst
    _round(count)
    link = transport(SIZE, wait=wait)
    with link.open(), crew(seconds, "apart") as group:
        sender = group.start(_on_time, link, count, burst, period_ns)
        sender.hear()
        receiver = group.start(_note_times, link, count, burst, period_ns)
        receiver.hear()
        sender.tell()
        sender.hear()  # it is settled
        began = time.monotonic_ns() + HEAD_START_NS
        receiver.tell(began)
        sender.tell(began)
        found: dict[str, float] = receiver.hear()
        receiver.tell()
        sender.tell()
        return found


# ---- the scenario --------------------------------------------------------------------------


def _named(what: str, row: str, column: str, measured: Callable[[], dict[str, float]]) -> Run:
    return lambda: {f"{what} {name}: {row} | {column}": v for name, v in measured().items()}


def _round_trip_runs(plan: Plan, used: Sequence[type[Transport]]) -> list[Run]:
    return [
        _named(
            f"trip {wait}",
            transport.name,
            bytes_text(size),
            lambda t=transport, s=size, w=wait: round_trips(t, s, plan.seconds, w),  # type: ignore[misc]
        )
        for wait in ("spin", "block")
        for size in (BRIEF_SIZES if plan.brief else SIZES)
        for transport in used
        if wait in transport.waits and fits(transport, size)
        if not (wait == "block" and size != SIZE)
    ]


def _paced_runs(plan: Plan, used: Sequence[type[Transport]]) -> list[Run]:
    cases = [
        (f"at {rate:,}/s", 1, 10**9 // rate, wait)
        for rate in (BRIEF_RATES if plan.brief else RATES)
        for wait in ("spin", "block")
    ]
    if plan.brief:
        cases = [case for case in cases if case[3] == "block"]
    cases.append(("bursts", BURST, BURST_PERIOD_NS, "block"))
    return [
        _named(
            f"{what}, {wait}" if burst == 1 else what,
            transport.name,
            "",
            lambda t=transport, b=burst, p=period, w=wait: paced(t, plan.seconds, w, b, p),  # type: ignore[misc]
        )
        for what, burst, period, wait in cases
        for transport in used
        if (wait in transport.waits or burst > 1) and transport.group <= burst
    ]


def _turned(found: Samples, start: str) -> dict[str, Sequence[float]]:
    """Samples "START PERCENTILE: ROW | " as "ROW | PERCENTILE"."""
    turned = {}
    for name, values in found.items():
        if name.startswith(f"{start} "):
            percentile, _, row = name.removeprefix(f"{start} ").partition(": ")
            turned[f"{row.removesuffix(' | ')} | {percentile}"] = values
    return turned


def _paced_groups(found: Samples) -> dict[str, Sequence[Figure]]:
    starts = dict.fromkeys(
        name.partition(": ")[0].rpartition(" ")[0] for name in found if not name.startswith("trip")
    )
    groups: dict[str, Sequence[Figure]] = {}
    for start in starts:
        turned = _turned(found, start)
        times = {name: v for name, v in turned.items() if not name.endswith(" lost")}
        lost = {name: v for name, v in turned.items() if name.endswith(" lost") and any(v)}
        what = f"{BURST} messages each 20 ms" if start == "bursts" else start
        groups[f"time since due, {what}"] = grid(times, "us")
        groups[f"lost, {what}"] = grid(lost, "%", 100)
    return groups


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: what came is not what was sent, or a process failed.
    """
    present, missing = available()
    used = [transport for transport in present if transport is not LossyRing]
    runs = _round_trip_runs(plan, used)
    if importlib.util.find_spec("hdrh") is None:
        missing["no fixed rates"] = "hdrhistogram is not installed: pip install 'ringcast[bench]'"
    else:
        runs += _paced_runs(plan, [transport for transport in present if transport is not Uplink])
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    sizes = {bytes_text(size) for size in SIZES if size <= AHEAD_TO}
    spin = picked(found, "trip spin p50")
    demanded = len(os.sched_getaffinity(0)) > 1  # who spins needs a core
    groups = {
        "transport / ringcast, spinning, p50": ahead(
            spin, used, "smaller", lambda column: 1.0 if demanded and column in sizes else None
        ),
        "one way, half a round trip, spinning, p50": grid(spin, "us"),
        "one way, half a round trip, spinning, p99": grid(picked(found, "trip spin p99"), "us"),
        "one way, half a round trip, asleep, p50": grid(picked(found, "trip block p50"), "us"),
        "one way, half a round trip, asleep, p99": grid(picked(found, "trip block p99"), "us"),
        **_paced_groups(found),
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, **missing}
    return Report("latency", parameters, machine, groups)

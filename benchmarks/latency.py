"""How long a message takes from one side to the other, measured in three ways.

*Round trips.* One side sends and waits for the answer, over and over. One way is half of that. One
message goes at a time; with batched transports, 64 together. Each side has a core of its own. Both
sleep while they wait, or both spin. The contents of an answer are checked outside the measured
time; those of batches inside it.

*Fixed rates.* A sender that watches the clock sends each message when it is due, and late ones at
once. The receiver notes when it holds each. A latency counts from when a message was *due*. If it
counted from when the message was sent, a transport that makes the sender wait would hide how long
the messages behind it waited ("coordinated omission", Gil Tene). Latencies go into an HdrHistogram
of three digits. Between two looks at the clock the sender lets its other threads run, because some
libraries send from a thread of theirs.

*Bursts.* The same, but every 20 ms many messages are due at once.

A percentile beyond which fewer than ten latencies lie is not reported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from . import histograms
from .comparison import AHEAD_TO_BYTES, fits, ratios_to_ringcast
from .errors import RunFailedError
from .figures import (
    Figure,
    Samples,
    bytes_text,
    figures_of,
    interleave,
    percentiles,
    samples_of,
)
from .flows import send_until_received
from .payloads import MARK, Contents, contents
from .processes import Channel, Placement, child_processes
from .report import Plan, Report, describe_machine
from .transports import LinkSender, Transport, Wait, available
from .transports.rings import LossyRing, Uplink

SIZE: Final = 128
SIZES: Final = (32, 128, 4096)
BRIEF_SIZES: Final = (128,)
WARM_UP: Final = 512
"""Number of round trips before those that count."""
RATES: Final = (1_000, 10_000, 100_000)
BRIEF_RATES: Final = (10_000,)
PACED_S_MOST: Final = 2.0
"""Seconds at a fixed rate. A transport that cannot keep up takes many times as long."""
BURST: Final = 1024
"""Number of messages in a burst."""
BURST_PERIOD_NS: Final = 20_000_000
HEAD_START_NS: Final = 20_000_000
"""Time that both sides have before the first message is due."""
WARM_UP_SHARE: Final = 0.1
"""Share of the messages at a fixed rate that are the warm-up."""
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
ROUND_MESSAGES_MOST: Final = 1 << 18
"""Number of different messages at a fixed rate. That many would have to be lost in a row for one
message to be taken for another."""
WAITING: Final = {"spin": "spinning", "block": "asleep"}
"""How headings name the ways of waiting."""

_LAST: Final = -1
"""Instead of the time at which a message came: it was the last one."""

Run = Callable[[], dict[str, float]]
ReceiveItem = Callable[[int], int]
"""A function that waits for the item of this number, checks it, and returns when it had it in ns;
_LAST if the last item came instead."""


# ---- round trips ---------------------------------------------------------------------------


class _RoundTripItems:
    """What goes to and fro: the messages of a round, item by item, and a last item.

    Attributes:
        items: the items of a round, as the sender sends them.
        last_item: the item that ends the round trips.
        messages: the messages of each item.
        joined: the bytes of each item.
        last_message: the message of which the last item consists.
        last_joined: the bytes of the last item.
    """

    def __init__(self, link: Transport) -> None:
        what = contents(link.size)
        each = link.item_messages
        self.items = link.prepare(what.payloads)
        self.messages = [what.payloads[i : i + each] for i in range(0, len(what.payloads), each)]
        self.joined = [b"".join(messages) for messages in self.messages]
        self.last_message = what.mark(0)
        self.last_item = link.prepare([self.last_message] * each)[0]
        self.last_joined = self.last_message * each


def _item_receiver(link: Transport, due: _RoundTripItems, messages: Iterator[Any]) -> ReceiveItem:
    if link.item_messages == 1:
        return _single_receiver(due, messages)
    if link.yields_batches:
        return _batch_receiver(link, due, messages)
    return _list_receiver(due, messages)


def _single_receiver(due: _RoundTripItems, messages: Iterator[Any]) -> ReceiveItem:
    clock, joined, count = time.perf_counter_ns, due.joined, len(due.joined)

    def receive(number: int) -> int:
        item = next(messages)
        now = clock()
        found = bytes(item)
        if found != joined[number % count]:
            return _check_last(found, due.last_joined)
        return now

    return receive


def _batch_receiver(link: Transport, due: _RoundTripItems, messages: Iterator[Any]) -> ReceiveItem:
    clock, count = time.perf_counter_ns, len(due.joined)
    message = np.dtype(("<u8", link.size // 8))
    arrays = [np.frombuffer(joined, message) for joined in due.joined]
    last = np.frombuffer(due.last_joined, message)

    def receive(number: int) -> int:
        wanted = arrays[number % count]
        held = 0
        while held < len(wanted):
            found = next(messages).records(message)
            part = slice(held, held + len(found))
            if not np.array_equal(found, wanted[part]):
                return _check_last(found.tobytes(), last[part].tobytes())
            held += len(found)
            del found  # it would hold the ring
        return clock()

    return receive


def _list_receiver(due: _RoundTripItems, messages: Iterator[Any]) -> ReceiveItem:
    clock, lists, count = time.perf_counter_ns, due.messages, len(due.messages)

    def receive(number: int) -> int:
        wanted = lists[number % count]
        for expected, item in zip(wanted, messages, strict=False):
            if bytes(item) != expected:
                return _check_last(bytes(item), due.last_message)
        return clock()

    return receive


def _check_last(found: bytes, last: bytes) -> int:
    if found != last:
        raise RunFailedError(f"other bytes came than were sent: {found[:64]!r}")
    return _LAST


def _ping(channel: Channel, there: Transport, back: Transport, seconds: float) -> None:
    """Send and wait for the answer. Reports percentiles of half the time in us."""
    clock = time.perf_counter_ns
    due = _RoundTripItems(there)
    items, count = due.items, len(due.items)
    times: list[int] = []
    with _both_sides(channel, there, back) as (sender, messages):
        channel.receive()  # the other side is ready
        receive, send = _item_receiver(back, due, messages), sender.send
        end = 0
        for number in itertools.count():
            if number == WARM_UP:
                times.clear()
                end = clock() + int(seconds * 1e9)
            item = items[number % count]
            before = clock()
            send(item)
            after = receive(number)
            times.append(after - before)
            if end and after > end:
                break
        send(due.last_item)
        one_way = np.array(times) / 2
        found = percentiles((50.0, 99.0), len(times), partial(np.percentile, one_way))
        channel.send({"mean": float(one_way.mean()) / 1000, **found})
        channel.receive()


def _pong(channel: Channel, there: Transport, back: Transport) -> None:
    """Answer each item with the same, until the last."""
    due = _RoundTripItems(back)
    items, count = due.items, len(due.items)
    with _both_sides(channel, back, there) as (sender, messages):
        receive, send = _item_receiver(there, due, messages), sender.send
        for number in itertools.count():
            if receive(number) == _LAST:
                break
            send(items[number % count])
        channel.send()
        channel.receive()


@contextlib.contextmanager
def _both_sides(
    channel: Channel, outgoing: Transport, incoming: Transport
) -> Iterator[tuple[LinkSender, Iterator[Any]]]:
    """A sending and a receiving side, made in an order in which neither waits for ever."""
    with contextlib.ExitStack() as stack:
        if outgoing.receiver_first:
            messages = stack.enter_context(incoming.receiver(0))
            channel.send()
            channel.receive()
            sender = stack.enter_context(outgoing.sender())
        else:
            sender = stack.enter_context(outgoing.sender())
            channel.send()
            channel.receive()
            messages = stack.enter_context(incoming.receiver(0))
        channel.send()
        channel.receive()
        sender.wait_for_receivers()
        channel.send()
        yield sender, messages


def round_trips(
    transport: type[Transport],
    size: int,
    seconds: float,
    wait: Wait,
    placement: Placement = "apart",
) -> dict[str, float]:
    """Measure half the time of a round trip in us: its mean, and p50 and p99 if there were enough.

    Raises:
        RunFailedError: an answer is not what was sent, or a process failed.
    """
    contents(size)
    there, back = (transport(size, wait=wait) for _ in range(2))
    with there.open(), back.open(), child_processes(seconds, placement) as children:
        ends = [children.start(_ping, there, back, seconds), children.start(_pong, there, back)]
        for step in (Channel.receive, Channel.send, Channel.receive, Channel.send, Channel.receive):
            for end in ends:
                step(end)
        ping, pong = ends
        ping.send()
        found: dict[str, float] = ping.receive()
        pong.receive()
        for end in ends:
            end.send()
        return found


# ---- fixed rates and bursts ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Schedule:
    """When messages are due.

    Attributes:
        count: number of messages.
        burst: number of messages that are due at once.
        period_ns: from one burst to the next.
    """

    count: int
    burst: int
    period_ns: int

    def contents(self) -> Contents:
        """The messages of a round, made once (see `payloads.contents`)."""
        return contents(SIZE, min(self.count, ROUND_MESSAGES_MOST))


def _send_on_time(channel: Channel, link: Transport, schedule: _Schedule) -> None:
    """Send messages when they are due, and then a mark."""
    clock, let_others_run = time.monotonic_ns, select.poll().poll
    what = schedule.contents()
    count, burst, period_ns = schedule.count, schedule.burst, schedule.period_ns
    with link.sender() as sender:
        items = link.prepare(what.payloads)
        channel.send()
        channel.receive()  # the receiver is attached
        sender.wait_for_receivers()
        channel.send()
        began = channel.receive()
        each = max(1, burst // link.item_messages)
        send, send_all = sender.send, sender.send_all
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
        send_until_received(channel, link, partial(send, link.prepare([what.mark(0)])[0]))


def _receive_and_time(channel: Channel, link: Transport, schedule: _Schedule) -> None:
    """Receive messages. Reports how long they took from when they were due."""
    with link.receiver(0) as messages:
        channel.send()
        began = channel.receive()
        receive = _times_of_batches if link.yields_batches else _times_of_messages
        times = receive(messages, schedule.contents(), schedule.count)
        if not link.lossy and not times.all():
            raise RunFailedError(f"message {int(np.argmin(times))} did not come")
        channel.send(_latencies(times - began, schedule))
        channel.receive()


def _times_of_messages(messages: Iterator[Any], what: Contents, count: int) -> np.ndarray[Any, Any]:
    """Receive messages until the mark. Returns when each was held, by number; 0 for one that did
    not come."""
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
        number += 1 + (counter - number - 1) % size  # some may have been lost
        if counter >= size or number >= count or bytes(item) != payloads[counter]:
            raise RunFailedError(f"message {number} is not what was sent")
        times[number] = now
    return times


def _times_of_batches(messages: Iterator[Any], what: Contents, count: int) -> np.ndarray[Any, Any]:
    """As `_times_of_messages`, for batches: all messages of one are held at once."""
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
            raise RunFailedError(f"after message {number}, other ones came than were sent")
        times[number:till] = now
        number = till
        if ended:
            break
    return times


def _latencies(since_ns: np.ndarray[Any, Any], schedule: _Schedule) -> dict[str, float]:
    """Percentiles in us of the messages after the warm-up, and the share that did not come."""
    count = schedule.count
    skipped = int(count * WARM_UP_SHARE)
    due = np.arange(count, dtype=np.int64) // schedule.burst * schedule.period_ns
    came = since_ns[skipped:] > -due.max() - HEAD_START_NS
    took = (since_ns - due)[skipped:][came]
    histogram = histograms.Histogram()
    histogram.record(np.maximum(took, 1))
    found = histogram.percentiles(PERCENTILES)
    return {**found, "lost": 1 - histogram.count / (count - skipped)}


def paced(
    transport: type[Transport], seconds: float, wait: Wait, burst: int, period_ns: int
) -> dict[str, float]:
    """Measure percentiles of the time in us since a message was due, where every period a burst is
    due; for so many seconds, at most `PACED_S_MOST`.

    Raises:
        RunFailedError: what came is not what was sent, or a process failed.
    """
    periods = max(2, int(min(seconds, PACED_S_MOST) * 1e9 / period_ns))
    schedule = _Schedule(periods * burst, burst, period_ns)
    schedule.contents()
    link = transport(SIZE, wait=wait)
    with link.open(), child_processes(seconds, "apart") as children:
        sender = children.start(_send_on_time, link, schedule)
        sender.receive()
        receiver = children.start(_receive_and_time, link, schedule)
        receiver.receive()
        sender.send()
        sender.receive()  # its messages would reach the receiver
        began = time.monotonic_ns() + HEAD_START_NS
        receiver.send(began)
        sender.send(began)
        found: dict[str, float] = receiver.receive()
        receiver.send()
        sender.send()
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
        (f"{rate:,} per second", 1, 10**9 // rate, wait)
        for rate in (BRIEF_RATES if plan.brief else RATES)
        for wait in ("spin", "block")
    ]
    if plan.brief:
        cases = [case for case in cases if case[3] == "block"]
    cases.append(("bursts", BURST, BURST_PERIOD_NS, "block"))
    return [
        _named(
            f"{what}, {WAITING[wait]}" if burst == 1 else what,
            transport.name,
            "",
            lambda t=transport, b=burst, p=period, w=wait: paced(t, plan.seconds, w, b, p),  # type: ignore[misc]
        )
        for what, burst, period, wait in cases
        for transport in used
        if (wait in transport.waits or burst > 1) and transport.item_messages <= burst
    ]


def _by_percentile(found: Samples, start: str) -> dict[str, Sequence[float]]:
    """Those samples that are named "START PERCENTILE: ROW | ", as "ROW | PERCENTILE"."""
    by_percentile = {}
    for name, values in found.items():
        if name.startswith(f"{start} "):
            percentile, _, row = name.removeprefix(f"{start} ").partition(": ")
            by_percentile[f"{row.removesuffix(' | ')} | {percentile}"] = values
    return by_percentile


def _paced_groups(found: Samples) -> dict[str, Sequence[Figure]]:
    starts = dict.fromkeys(
        name.partition(": ")[0].rpartition(" ")[0] for name in found if not name.startswith("trip")
    )
    groups: dict[str, Sequence[Figure]] = {}
    for start in starts:
        named = _by_percentile(found, start)
        times = {name: v for name, v in named.items() if not name.endswith(" lost")}
        lost = {name: v for name, v in named.items() if name.endswith(" lost") and any(v)}
        what = f"{BURST} messages every 20 ms" if start == "bursts" else start
        groups[f"time since due, {what}"] = figures_of(times, "us")
        groups[f"messages lost, {what}"] = figures_of(lost, "%", 100)
    return groups


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: what came is not what was sent, or a process failed.
    """
    present, missing = available()
    used = [transport for transport in present if transport is not LossyRing]
    runs = _round_trip_runs(plan, used)
    if not histograms.is_installed():
        missing["no fixed rates"] = f"hdrhistogram is {histograms.NOT_INSTALLED}"
    else:
        runs += _paced_runs(plan, [transport for transport in present if transport is not Uplink])
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    sizes = {bytes_text(size) for size in SIZES if size <= AHEAD_TO_BYTES}
    spin = samples_of(found, "trip spin p50")
    demanded = len(os.sched_getaffinity(0)) > 1  # two that spin need two cores
    groups = {
        "transport / ringcast, spinning, p50": ratios_to_ringcast(
            spin, used, "smaller", lambda column: 1.0 if demanded and column in sizes else None
        ),
        "one way, half a round trip, spinning, p50": figures_of(spin, "us"),
        "one way, half a round trip, spinning, p99": figures_of(
            samples_of(found, "trip spin p99"), "us"
        ),
        "one way, half a round trip, asleep, p50": figures_of(
            samples_of(found, "trip block p50"), "us"
        ),
        "one way, half a round trip, asleep, p99": figures_of(
            samples_of(found, "trip block p99"), "us"
        ),
        **_paced_groups(found),
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, **missing}
    return Report("latency", parameters, machine, groups)

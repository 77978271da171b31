"""Many senders to one receiver: the uplink against what else lets many write to one.

A message has the sender's number in its first word, beside its counter, then what `payloads.py`
puts into all: a filler that is different at each position, and a last word made of the counter. The
receiver checks both words of every message, that each sender's counter goes up by one, and each
64th message of a sender whole; and at the end that it got as many as were sent. That is the work a
figure includes.

A flow is timed from the senders' common start, after a warm-up, until the receiver has read the
last message. All processes share the cores there are. Every transport waits as it does by default.
Those that may lose messages are left out: what many senders lose is not told apart here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from struct import Struct
from typing import Any, Final

from ringcast.shm import mpsc

from .method import (
    Channel,
    Figure,
    Plan,
    Report,
    RunFailedError,
    cell_of,
    crew,
    describe_machine,
    grid,
    in_turns,
    interleave,
    picked,
    ratio,
)
from .payloads import SAMPLE, contents, last_word
from .transports import Transport, available
from .transports.rings import Uplink, in_a_child
from .transports.stdlib import Queue

SIZE: Final = 128
ROUND: Final = 4096
WARM_UP: Final = ROUND
SENDERS: Final = (1, 2, 4, 8)
BRIEF_SENDERS: Final = (4,)
LAST: Final = 2**48 - 1
"""The counter of a sender's last message."""
QUEUE_FLOOR: Final = 10
"""The uplink with four senders against `multiprocessing.Queue`, at least."""

_unpack_words: Final = Struct(f"<Q{SIZE - 16}xQ").unpack


def _payload(sender: int, counter: int) -> bytes:
    what = contents(SIZE)
    return what.layout.pack(sender << 48 | counter, what.filler, last_word(counter))


def _send(channel: Channel, link: Transport, sender: int, seconds: float) -> None:
    """Send counted messages, then a last one; tells how many."""
    items = link.prepare([_payload(sender, counter) for counter in range(ROUND)])
    last = link.prepare([_payload(sender, LAST)])[0]
    with link.sender() as outlet:
        channel.tell()
        channel.hear()
        outlet.settle()
        send = outlet.send
        for item in items:
            send(item)
        channel.tell()
        channel.hear()  # the receiver has them, and everybody else's
        end = time.monotonic_ns() + int(seconds * 1e9)
        sent = 0
        while time.monotonic_ns() < end:
            for item in items:
                send(item)
            sent += ROUND
        send(last)
        channel.tell(sent)
        channel.hear()


class _Check:
    """What the receiver does with each message."""

    def __init__(self, senders: int) -> None:
        self.received = [0] * senders
        self.ended: set[int] = set()

    def __call__(self, payload: Any) -> None:
        """Check one message.

        Raises:
            RunFailedError: it is neither the next of its sender nor its last.
        """
        word, last = _unpack_words(payload)
        sender, counter = word >> 48, word & LAST
        expected = self.received[sender] % ROUND
        if (
            counter != expected
            or last != last_word(counter)
            or (not counter % SAMPLE and bytes(payload) != _payload(sender, counter))
        ):
            self._end(sender, expected, bytes(payload))
            return
        self.received[sender] += 1

    def _end(self, sender: int, expected: int, payload: bytes) -> None:
        """Check that a message that is not the one that is due is the sender's last."""
        if payload != _payload(sender, LAST) or sender in self.ended:
            raise RunFailedError(
                f"sender {sender}: message {expected} is due, and this came: {payload!r}"
            )
        self.ended.add(sender)


def _receive(channel: Channel, link: Transport, senders: int) -> None:
    """Check messages to the end of every sender; tells when that was, and how many came."""
    check = _Check(senders)
    with link.receiver(0) as messages:
        channel.tell()
        for payload in itertools.islice(messages, senders * WARM_UP):
            check(payload)
        check.received = [0] * senders
        channel.tell()
        for payload in messages:
            check(payload)
            if len(check.ended) == senders:
                break
        channel.tell((time.monotonic_ns(), sum(check.received)))
        channel.hear()


def gather(transport: type[Transport], senders: int, seconds: float) -> dict[str, float]:
    """Messages a second from so many senders to one receiver.

    Raises:
        RunFailedError: the receiver did not get exactly what was sent, or a process failed.
    """
    contents(SIZE)
    link = transport(SIZE, senders=senders)
    with link.open(), crew(seconds) as group:
        receiver = group.start(_receive, link, senders)
        receiver.hear()
        sending = [group.start(_send, link, k, seconds) for k in range(senders)]
        for step in (Channel.hear, Channel.tell, Channel.hear):
            for sender in sending:
                step(sender)
        receiver.hear()
        began = time.monotonic_ns()
        for sender in sending:
            sender.tell()
        sent = sum(sender.hear() for sender in sending)
        ended, received = receiver.hear()
        if sent != received:
            raise RunFailedError(f"{sent} messages were sent and {received} received")
        for channel in (receiver, *sending):
            channel.tell()
        column = f"{senders} sender{'s' if senders > 1 else ''}"
        return {f"rate: {transport.name} | {column}": received / (ended - began) * 1e9}


def _alone(channel: Channel, name: str, seconds: float) -> None:
    """Tell what sending and receiving cost by message, ns, where they take turns."""
    group = 256
    payloads = [_payload(0, counter) for counter in range(group)]
    with mpsc.Receiver.create(name) as receiver, mpsc.Sender.attach(name) as sender:

        def send() -> None:
            for payload in payloads:
                sender.send(payload)

        def receive() -> None:
            if [sent.payload for sent in receiver.read_available(group)] != payloads:
                raise RunFailedError("other messages came than were sent")

        spent = in_turns({"send": send, "poll": receive}, seconds)
    channel.tell({f"alone: {what}": ns / group for what, ns in spent.items()})


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: the receiver did not get exactly what was sent, or a process failed.
    """
    present, missing = available()
    used = [t for t in present if t.many_senders and t.group == 1 and not t.lossy]
    runs: list[Callable[[], dict[str, float]]] = [
        partial(gather, transport, senders, plan.seconds)
        for senders in (BRIEF_SENDERS if plan.brief else SENDERS)
        for transport in used
    ]
    runs.append(partial(in_a_child, _alone, plan.seconds))
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    rates = picked(found, "rate")

    def ratios() -> Iterator[Figure]:
        for name, theirs in rates.items():
            row, column = cell_of(name)
            floor = QUEUE_FLOOR if row == Queue.name and column == "4 senders" else None
            if row != Uplink.name:
                ours = rates[f"{Uplink.name} | {column}"]
                yield ratio(name, ours, theirs, floor)

    groups: dict[str, Sequence[Figure]] = {
        "ringcast / transport, messages a second": list(ratios()),
        "messages a second, all senders together": grid(rates, "M/s", 1e-6),
        "in one process, by message": [
            Figure(what, "ns", tuple(values)) for what, values in picked(found, "alone").items()
        ],
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, **missing}
    return Report("uplink", parameters, machine, groups)

"""Many senders to one receiver: the uplink against other transports that allow that.

The first word of a message holds the sender's number and a counter. The rest is as in all flows
(`payloads`): a filler that is different at each position, and a last word made from the counter.
The receiver checks both words of every message, that the counter of each sender goes up by one, and
each 64th message of a sender whole. At the end it checks that it got as many as were sent. A figure
includes this work.

A flow is timed from the common start of the senders, after a warm-up, until the receiver has read
the last message. All processes share the cores there are. Every transport waits as it does by
default. Transports that may lose messages are left out: with many senders, what each loses is not
counted here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from ringcast.shm import mpsc

from .errors import RunFailedError
from .figures import Figure, cell_of, figures_of, interleave, ratio, samples_of
from .one_process import in_child, in_turns
from .payloads import SAMPLE_EVERY, contents, last_word, words_unpacker
from .processes import Channel, child_processes
from .report import Plan, Report, describe_machine
from .transports import Transport, available
from .transports.rings import Uplink
from .transports.stdlib import Queue

SIZE: Final = 128
ROUND: Final = 4096
"""Number of messages that a sender sends over and over."""
WARM_UP: Final = ROUND
ALONE_STEP: Final = 256
"""Number of messages that are sent before they are read, in one process."""
SENDERS: Final = (1, 2, 4, 8)
BRIEF_SENDERS: Final = (4,)
LAST: Final = 2**48 - 1
"""The counter of a sender's last message."""
QUEUE_FLOOR: Final = 10
"""How many times as fast as `multiprocessing.Queue` the uplink has to be with four senders."""

_unpack_words: Final = words_unpacker(SIZE)


def _payload(sender: int, counter: int) -> bytes:
    what = contents(SIZE)
    return what.layout.pack(sender << 48 | counter, what.filler, last_word(counter))


def _send(channel: Channel, link: Transport, sender: int, seconds: float) -> None:
    """Send counted messages, then a last one. Reports how many."""
    items = link.prepare([_payload(sender, counter) for counter in range(ROUND)])
    last = link.prepare([_payload(sender, LAST)])[0]
    with link.sender() as link_sender:
        channel.send()
        channel.receive()
        link_sender.wait_for_receivers()
        send = link_sender.send
        for item in items:
            send(item)
        channel.send()
        channel.receive()  # the receiver has them, and those of all other senders
        end = time.monotonic_ns() + int(seconds * 1e9)
        sent = 0
        while time.monotonic_ns() < end:
            for item in items:
                send(item)
            sent += ROUND
        send(last)
        channel.send(sent)
        channel.receive()


class _Check:
    """The receiver's check of each message.

    Attributes:
        received: number of messages of each sender.
        ended: the senders whose last message came.
    """

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
            or (not counter % SAMPLE_EVERY and bytes(payload) != _payload(sender, counter))
        ):
            self._check_last(sender, expected, bytes(payload))
            return
        self.received[sender] += 1

    def _check_last(self, sender: int, expected: int, payload: bytes) -> None:
        """Check that a message that is not due is the sender's last."""
        if payload != _payload(sender, LAST) or sender in self.ended:
            raise RunFailedError(
                f"sender {sender}: message {expected} is due, and this came: {payload!r}"
            )
        self.ended.add(sender)


def _receive(channel: Channel, link: Transport, senders: int) -> None:
    """Check messages until every sender has ended. Reports when that was, and how many came."""
    check = _Check(senders)
    with link.receiver(0) as messages:
        channel.send()
        for payload in itertools.islice(messages, senders * WARM_UP):
            check(payload)
        check.received = [0] * senders
        channel.send()
        for payload in messages:
            check(payload)
            if len(check.ended) == senders:
                break
        channel.send({"ended_ns": time.monotonic_ns(), "received": sum(check.received)})
        channel.receive()


def gather(transport: type[Transport], senders: int, seconds: float) -> dict[str, float]:
    """Measure messages per second from so many senders to one receiver.

    Raises:
        RunFailedError: the receiver did not get exactly what was sent, or a process failed.
    """
    contents(SIZE)
    link = transport(SIZE, senders=senders)
    with link.open(), child_processes(seconds) as children:
        receiver = children.start(_receive, link, senders)
        receiver.receive()
        sending = [children.start(_send, link, k, seconds) for k in range(senders)]
        for step in (Channel.receive, Channel.send, Channel.receive):
            for sender in sending:
                step(sender)
        receiver.receive()
        began_ns = time.monotonic_ns()
        for sender in sending:
            sender.send()
        sent = sum(sender.receive() for sender in sending)
        found = receiver.receive()
        received = found["received"]
        if sent != received:
            raise RunFailedError(f"{sent} messages were sent, and {received} were received")
        for channel in (receiver, *sending):
            channel.send()
        column = f"{senders} sender{'s' if senders > 1 else ''}"
        rate = received / (found["ended_ns"] - began_ns) * 1e9
        return {f"rate: {transport.name} | {column}": rate}


def _alone(channel: Channel, name: str, seconds: float) -> None:
    """Send and receive in turns. Reports what each costs per message in ns."""
    payloads = [_payload(0, counter) for counter in range(ALONE_STEP)]
    with mpsc.Receiver.create(name) as receiver, mpsc.Sender.attach(name) as sender:

        def send() -> None:
            for payload in payloads:
                sender.send(payload)

        received: list[mpsc.Envelope] = []

        def receive() -> None:
            received[:] = receiver.read_available(ALONE_STEP)

        def check() -> None:
            if list(map(bytes, received)) != payloads:
                raise RunFailedError("other messages came than were sent")
            received.clear()

        spent = in_turns({"send": send, "read_available": receive, "check": check}, seconds)
    measured = ("send", "read_available")
    channel.send({f"alone: {what}": spent[what] / ALONE_STEP for what in measured})


def measure(plan: Plan) -> Report:
    """Run the scenario.

    Raises:
        RunFailedError: the receiver did not get exactly what was sent, or a process failed.
    """
    present, missing = available()
    used = [t for t in present if t.many_senders and t.item_messages == 1 and not t.lossy]
    runs: list[Callable[[], dict[str, float]]] = [
        partial(gather, transport, senders, plan.seconds)
        for senders in (BRIEF_SENDERS if plan.brief else SENDERS)
        for transport in used
    ]
    runs.append(partial(in_child, _alone, plan.seconds))
    machine = describe_machine()
    found = interleave(runs, plan.repeat)
    rates = samples_of(found, "rate")

    def ratios() -> Iterator[Figure]:
        for name, theirs in rates.items():
            row, column = cell_of(name)
            floor = QUEUE_FLOOR if row == Queue.name and column == "4 senders" else None
            if row != Uplink.name:
                ours = rates[f"{Uplink.name} | {column}"]
                yield ratio(name, ours, theirs, floor)

    groups: dict[str, Sequence[Figure]] = {
        "ringcast / transport, messages per second": list(ratios()),
        "messages per second, all senders together": figures_of(rates, "M/s", 1e-6),
        "time per message in one process": [
            Figure(what, "ns", tuple(values)) for what, values in samples_of(found, "alone").items()
        ],
    }
    parameters = {**plan.as_json(), "message_bytes": SIZE, **missing}
    return Report("uplink", parameters, machine, groups)

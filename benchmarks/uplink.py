"""An uplink against multiprocessing.Queue and a Unix socket: many senders, one receiver.

Every message is 128 bytes: a word with the sender's number and a counter, zeros, and a last word
made of the counter. The receiver checks both words of every message, that each sender's counter
goes up by one, and at the end that it got as many as were sent. That is the work a figure includes.

Who copies what:

* Uplink: the sender copies a payload into its lane; the receiver copies it out, as bytes.
* Queue: a thread of the sender pickles the bytes and writes them to a pipe, under a lock that all
  senders share; the receiver reads and unpickles them.

A flow is timed from the senders' common start, after a warm-up, until the receiver has read the
last message. Five processes share the cores there are. Latency is measured as the ring's is: half
of there and back again, each side spinning on a core of its own.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.queues
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import shm
from shm import mpsc

from .method import (
    Channel,
    Figure,
    Report,
    RunFailedError,
    crew,
    describe_machine,
    interleave,
    ratio,
)
from .ring import LAYOUT, PAYLOADS, ROUND, SIZE, ping, prefixed, ring_names, socket_latency

SENDERS: Final = 4
WARM_UP: Final = ROUND
LAST: Final = 2**48 - 1
"""The counter of a sender's last message."""


def _payload(sender: int, counter: int) -> bytes:
    return LAYOUT.pack(sender << 48 | counter, counter * 0x9E3779B97F4A7C15 % 2**64)


def _send(channel: Channel, send: Callable[[bytes], object], sender: int, seconds: float) -> None:
    """Send counted messages one by one, then a last one; tells how many."""
    payloads = [_payload(sender, counter) for counter in range(ROUND)]
    channel.tell()
    channel.hear()
    for payload in payloads[:WARM_UP]:
        send(payload)
    channel.tell()
    channel.hear()  # the receiver has them, and everybody else's
    end = time.monotonic_ns() + int(seconds * 1e9)
    sent = 0
    while time.monotonic_ns() < end:
        for payload in payloads:
            send(payload)
        sent += ROUND
    send(_payload(sender, LAST))
    channel.tell(sent)


class _Check:
    """What the receiver does with each message."""

    def __init__(self) -> None:
        self.received = [0] * SENDERS
        self.ended = 0

    def __call__(self, payload: bytes) -> None:
        """Check one message.

        Raises:
            RunFailedError: it is not the next of its sender.
        """
        word, last = LAYOUT.unpack(payload)
        sender, counter = word >> 48, word & LAST
        if counter == LAST:
            self.ended += 1
            return
        expected = self.received[sender] % ROUND
        if counter != expected or last != counter * 0x9E3779B97F4A7C15 % 2**64:
            raise RunFailedError(f"sender {sender}: message {counter} came, not {expected}")
        self.received[sender] += 1


def _receive(channel: Channel, messages: Iterator[bytes]) -> None:
    """Check messages to the end of every sender; tells when that was, and how many came."""
    check = _Check()
    for payload in itertools.islice(messages, SENDERS * WARM_UP):
        check(payload)
    check.received = [0] * SENDERS
    channel.tell()
    for payload in messages:
        check(payload)
        if check.ended == SENDERS:
            break
    channel.tell((time.monotonic_ns(), sum(check.received)))


def _uplink_messages(receiver: mpsc.Receiver) -> Iterator[bytes]:
    while True:
        first = receiver.recv()
        assert first is not None  # there is no time-out
        yield first.payload
        for sent in receiver.poll():
            yield sent.payload


def _uplink_receiver(channel: Channel, name: str) -> None:
    with mpsc.Receiver.create(name) as receiver:
        channel.tell()
        _receive(channel, _uplink_messages(receiver))
        channel.hear()


def _uplink_sender(channel: Channel, name: str, sender: int, seconds: float) -> None:
    with mpsc.Sender.attach(name) as uplink:
        _send(channel, uplink.send, sender, seconds)


def _queue_receiver(channel: Channel, queue: multiprocessing.queues.Queue[bytes]) -> None:
    channel.tell()
    _receive(channel, iter(queue.get, None))
    channel.hear()


def _queue_sender(
    channel: Channel, queue: multiprocessing.queues.Queue[bytes], sender: int, seconds: float
) -> None:
    _send(channel, queue.put, sender, seconds)


def _rate(receiver: Channel, senders: list[Channel]) -> float:
    """Lead senders and receiver through a flow; returns messages a second."""
    for step in (Channel.hear, Channel.tell, Channel.hear):
        for sender in senders:
            step(sender)
    receiver.hear()
    began = time.monotonic_ns()
    for sender in senders:
        sender.tell()
    sent = sum(sender.hear() for sender in senders)
    ended, received = receiver.hear()
    receiver.tell()
    if sent != received:
        raise RunFailedError(f"{sent} messages were sent and {received} received")
    messages_a_second: float = received / (ended - began) * 1e9
    return messages_a_second


def _uplink_flow(seconds: float) -> float:
    with ring_names(1) as (name,), crew(seconds) as group:
        receiver = group.start(_uplink_receiver, name)
        receiver.hear()
        senders = [group.start(_uplink_sender, name, k, seconds) for k in range(SENDERS)]
        return _rate(receiver, senders)


def _queue_flow(seconds: float) -> float:
    queue = multiprocessing.get_context("fork").Queue(maxsize=1024)
    with crew(seconds) as group:
        receiver = group.start(_queue_receiver, queue)
        receiver.hear()
        senders = [group.start(_queue_sender, queue, k, seconds) for k in range(SENDERS)]
        return _rate(receiver, senders)


# ---- there and back again ------------------------------------------------------------------


def _answers(receiver: mpsc.Receiver) -> Iterator[bytes]:
    while (sent := receiver.recv()) is not None:
        yield sent.payload


def _ping(channel: Channel, there: str, back: str, seconds: float) -> None:
    with mpsc.Receiver.create(back, wait=shm.BusySpin()) as receiver:
        channel.tell()
        channel.hear()
        with mpsc.Sender.attach(there) as sender:
            ping(channel, sender.send, _answers(receiver), seconds)
            sender.send(b"")


def _pong(channel: Channel, there: str, back: str) -> None:
    with mpsc.Receiver.create(there, wait=shm.BusySpin()) as receiver:
        channel.tell()
        channel.hear()
        with mpsc.Sender.attach(back) as sender:
            for payload in iter(_answers(receiver).__next__, b""):
                sender.send(payload)


def _latency(seconds: float) -> dict[str, float]:
    with ring_names(2) as (there, back), crew(seconds, "apart") as group:
        ends = [
            group.start(_ping, there, back, seconds),
            group.start(_pong, there, back),
        ]
        for step in (Channel.hear, Channel.tell):
            for end in ends:
                step(end)
        found: dict[str, float] = ends[0].hear()
        return found


# ---- the scenario --------------------------------------------------------------------------


def _alone(channel: Channel, name: str, seconds: float) -> None:
    """Tell what sending and receiving cost by one message, in ns, where they take turns."""
    spent_ns = {"send": 0, "receive": 0}
    rounds = 0
    with mpsc.Receiver.create(name) as receiver, mpsc.Sender.attach(name) as sender:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before = time.perf_counter_ns()
            for payload in PAYLOADS[:256]:
                sender.send(payload)
            between = time.perf_counter_ns()
            receiver.poll(256)
            spent_ns["receive"] += time.perf_counter_ns() - between
            spent_ns["send"] += between - before
            rounds += 1
    channel.tell({what: ns / rounds / 256 for what, ns in spent_ns.items()})


def _single_process(seconds: float) -> dict[str, float]:
    with ring_names(1) as (name,), crew(seconds) as group:
        found: dict[str, float] = group.start(_alone, name, seconds).hear()
        return found


def measure(seconds: float, repeat: int) -> Report:
    """Run the scenario: each measurement for so many seconds, all of them `repeat` times in turn.

    Raises:
        RunFailedError: the receiver did not get exactly what was sent, or a process failed.
    """
    runs: list[Callable[[], dict[str, float]]] = [
        lambda: {"uplink": _uplink_flow(seconds)},
        lambda: {"queue": _queue_flow(seconds)},
        lambda: prefixed("uplink ", _latency(seconds)),
        lambda: prefixed("socket ", socket_latency(seconds, "apart")),
        lambda: _single_process(seconds),
    ]
    machine = describe_machine()
    found = interleave(runs, repeat)

    def plain(what: str, name: str, unit: str) -> Figure:
        return Figure(what, unit, tuple(found[name]))

    def rate(what: str, name: str) -> Figure:
        return Figure(what, "M/s", tuple(value / 1e6 for value in found[name]))

    groups: dict[str, list[Figure]] = {
        f"messages, {SENDERS} senders and one receiver, one by one": [
            rate("uplink: send, recv and poll", "uplink"),
            rate("multiprocessing.Queue: put, get", "queue"),
            ratio("uplink / Queue", found["uplink"], found["queue"], 10),
        ],
        "one way, half a round trip, each side on its own core": [
            plain("uplink, BusySpin, p50", "uplink p50", "us"),
            plain("uplink, BusySpin, p99", "uplink p99", "us"),
            plain("socket, p50", "socket p50", "us"),
            ratio("socket / uplink, p50", found["socket p50"], found["uplink p50"], 20),
        ],
        "in one process, by message": [
            plain("send", "send", "ns"),
            plain("poll(256)", "receive", "ns"),
        ],
    }
    parameters: dict[str, Any] = {"message_bytes": SIZE, "seconds": seconds, "repeat": repeat}
    return Report("uplink", parameters, machine, groups)

"""Checking what a receiver of a stream gets, one by one or in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ringcast.shm import broadcast

from ..errors import RunFailedError
from ..processes import Channel
from .frames import MESSAGE_BYTES, PAYLOADS, ROUND, SAMPLE_EVERY, end_payload

BATCH_MESSAGES: Final = 4096
"""The most that a batch holds."""

_RECORD_TYPE: Final = np.dtype([("most", "u1", MESSAGE_BYTES - 1), ("last", "u1")])
_EXPECTED: Final = np.frombuffer(
    b"".join(PAYLOADS) * (BATCH_MESSAGES // ROUND + 2), _RECORD_TYPE
)  # a batch of any length, starting anywhere in a round
_LAST_BYTES: Final = _EXPECTED["last"].copy()

PayloadHandler = Callable[[bytes | memoryview], bool]
"""A function that is called with each payload. It returns whether more messages are to come."""


class StreamChecker:
    """Counts and checks the payloads that a receiver gets.

    A `check_...` receiver counts and compares the last byte itself, in its loop, and calls
    `check_whole` and `end` only when that is due.

    Attributes:
        count: number of messages, the end message not included.
        began_ns: time of the first message (CLOCK_REALTIME).
        ended_ns: time of the end message; 0 before it came.
        cpu_before_s, cpu_after_s: CPU time of this process at both.
    """

    def __init__(self) -> None:
        self.count = 0
        self.began_ns = 0
        self.ended_ns = 0
        self.cpu_before_s = 0.0
        self.cpu_after_s = 0.0

    def begin(self) -> None:
        """Note the time of the first message."""
        self.began_ns = time.time_ns()
        self.cpu_before_s = time.process_time()

    def check_whole(self, payload: bytes | memoryview, count: int) -> None:
        """Check a payload whole. It is number `count`, and its last byte is 0."""
        if not count:
            self.begin()
        if payload != PAYLOADS[count % ROUND]:
            raise RunFailedError(f"message {count} is not what was sent: {bytes(payload)!r}")

    def end(self, payload: bytes | memoryview, count: int) -> None:
        """Check that a payload that is not number `count` of the stream is its end."""
        self.ended_ns = time.time_ns()
        self.cpu_after_s = time.process_time()
        self.count = count
        if payload != end_payload(count):
            raise RunFailedError(f"message {count} is not what was sent: {bytes(payload)!r}")

    def check(self, payload: bytes | memoryview) -> bool:
        """Check a payload. Returns whether more are to come."""
        last = payload[-1]
        if last != self.count % SAMPLE_EVERY:
            self.end(payload, self.count)
            return False
        if not last:
            self.check_whole(payload, self.count)
        self.count += 1
        return True

    def check_batch(self, batch: broadcast.Batch) -> None:
        """Check a batch in place. Where the messages are not evenly spaced, which is where the ring
        starts again and at the end, check them one by one."""
        times = batch.descriptors["time_ns"]
        if not self.count:
            self.began_ns = int(times[0])
            self.cpu_before_s = time.process_time()
        try:
            records = batch.records(_RECORD_TYPE)
        except ValueError:
            for i in range(len(batch)):
                self.check(batch.payload(i))
        else:
            start = self.count % ROUND
            whole = slice(-self.count % SAMPLE_EVERY, None, SAMPLE_EVERY)
            expected = _EXPECTED[start : start + len(batch)]
            if not (
                np.array_equal(records["last"], _LAST_BYTES[start : start + len(batch)])
                and records[whole].tobytes() == expected[whole].tobytes()
            ):
                raise RunFailedError(f"after {self.count} messages, other ones came than were sent")
            self.count += len(batch)

    def report(self, channel: Channel) -> None:
        """Send the count, messages per second, and the CPU time from the first message to the end.

        Raises:
            RunFailedError: the end has not come.
        """
        if not self.ended_ns:
            raise RunFailedError(f"the stream did not end; {self.count} messages came")
        seconds = max(1, self.ended_ns - self.began_ns) / 1e9
        channel.send(
            {
                "count": self.count,
                "rate": self.count / seconds,
                "cpu": self.cpu_after_s - self.cpu_before_s,
                "began_ns": self.began_ns,
                "ended_ns": self.ended_ns,
            }
        )


def collect(
    server: Channel, receivers: Sequence[Channel]
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return what the receivers report, and what the server reports.

    Raises:
        RunFailedError: a receiver got another number of messages than the server sent.
    """
    received = [receiver.receive() for receiver in receivers]
    served = server.receive()
    if any(one["count"] != served["sent"] for one in received):
        counts = [one["count"] for one in received]
        raise RunFailedError(f"{served['sent']} messages were sent, and {counts} came")
    return received, served

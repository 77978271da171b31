"""What the messages of a flow hold, and how whoever receives them checks that.

A message is a counter, a filler that is different at each position, and a last word made of the
counter. The receiver compares both words of each message with what is due, so it touches the first
and the last cache line of each, and each 64th message whole. Where a message may be missing, the
counter tells which came instead; the count of all, told beside, tells how many were lost.

A round of messages is made beforehand and sent over and over, so that making them is no part of
what is measured. A mark ends a phase: the warm-up, then what is measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from struct import Struct
from typing import Any, Final

import numpy as np

from ringcast.shm.broadcast import Batch

from .method import RunFailedError

SMALLEST: Final = 16
SAMPLE: Final = 64
"""Each message so numbered is compared whole."""
ROUND_MOST: Final = 4096
ROUND_BYTES: Final = 4 << 20
MARK: Final = 2**64 - 16
"""The counter of the mark that ends phase 0; one more for each phase after it."""
BATCH_MOST: Final = 65536

Payload = Any
"""Whatever has the buffer protocol."""


def last_word(counter: int) -> int:
    """What a message with this counter ends with."""
    return counter * 0x9E3779B97F4A7C15 % 2**64


class Contents:
    """A round of messages of one size.

    Attributes:
        size: bytes a message.
        layout: a counter, the filler, a last word.
        filler: different at each position.
        payloads: the messages of a round.
    """

    def __init__(self, size: int, count: int | None) -> None:
        if size < SMALLEST:
            raise ValueError(f"messages here have at least {SMALLEST} bytes, not {size}")
        self.size = size
        self.layout = Struct(f"<Q{size - SMALLEST}sQ")
        self.filler = np.random.default_rng(size).bytes(size - SMALLEST)
        usual = min(ROUND_MOST, max(SAMPLE, ROUND_BYTES // size))
        self.payloads = [self._make(counter) for counter in range(count or usual)]

    def _make(self, counter: int) -> bytes:
        return self.layout.pack(counter, self.filler, last_word(counter))

    def mark(self, phase: int) -> bytes:
        """The message that ends a phase."""
        return self._make(MARK + phase)


@cache
def contents(size: int, count: int | None = None) -> Contents:
    """`Contents` of this size, with as many messages as are usual or so many, made once; children
    that are forked later have them too."""
    return Contents(size, count)


class Checker:
    """Checks what a receiver gets, phase by phase.

    Attributes:
        received: messages of the phase, its mark not counted.
    """

    def __init__(self, what: Contents, lossy: bool) -> None:
        self._what = what
        self._lossy = lossy
        self._unpack = Struct(f"<Q{what.size - SMALLEST}xQ").unpack
        self._round = len(what.payloads)
        self._counted = 0
        self.received = 0
        # A number stands where the whole message is due: it equals no pair of words.
        self._due: list[tuple[int, int] | int] = [
            (i, last_word(i)) if i % SAMPLE else i for i in range(self._round)
        ]
        self._words = np.dtype(
            {
                "names": ["counter", "last"],
                "formats": ["<u8", "<u8"],
                "offsets": [0, what.size - 8],
                "itemsize": what.size,
            }
        )
        copies = BATCH_MOST // self._round + 2  # of any length, starting anywhere in a round
        counters = np.arange(self._round, dtype=np.uint64)
        self._counters = np.tile(counters, copies)
        self._lasts = np.tile(
            np.array([last_word(i) for i in range(self._round)], np.uint64), copies
        )

    def read(self, messages: Iterator[Payload], phase: int) -> None:
        """Take messages one by one until the mark of a phase.

        Raises:
            RunFailedError: one has other bytes, or, where nothing may be lost, is not the next.
        """
        self._begin()
        unpack = self._unpack
        start = 0
        while start >= 0:
            due = itertools.chain(self._due[start:], itertools.cycle(self._due))
            for item, expected in zip(messages, due, strict=False):
                if unpack(item) != expected:
                    start = self._look(item, expected, phase)
                    if start != -2:
                        break
            else:
                raise RunFailedError("the messages ended before their mark")

    def _begin(self) -> None:
        self.received = self._counted = 0

    def _look(self, item: Payload, expected: tuple[int, int] | int, phase: int) -> int:
        """Look closer at a message: -2 if it is the one that is due; else which is due after it, or
        -1 after the mark."""
        index = expected if isinstance(expected, int) else expected[0]
        counter, last = self._unpack(item)
        self.received += (index - self._counted) % self._round
        self._counted = index
        if counter == index and bytes(item) == self._what.payloads[index]:
            self._count_one(index)
            return -2
        if counter >= MARK and bytes(item) == self._what.mark(counter - MARK):
            if counter - MARK < phase:
                return index  # one of a former phase, said again
            if counter - MARK == phase:
                return -1
        if (
            not self._lossy
            or counter >= self._round
            or last != last_word(counter)
            or (not counter % SAMPLE and bytes(item) != self._what.payloads[counter])
        ):
            raise RunFailedError(
                f"after {self.received} messages of phase {phase}, number {index} of the round is "
                f"due, and {counter} came, ending with {last:#x}: {bytes(item)[:64]!r}"
            )
        self._count_one(counter)
        return self._counted

    def _count_one(self, index: int) -> None:
        self.received += 1
        self._counted = (index + 1) % self._round

    def read_batches(self, batches: Iterator[Batch], phase: int) -> None:
        """Take messages in batches, as numpy arrays in place, until the mark of a phase, which is
        the last of a batch. Raises as `read`."""
        self._begin()
        for batch in batches:
            if self._ends(batch, phase):
                return
        raise RunFailedError("the batches ended before their mark")

    def _ends(self, batch: Batch, phase: int) -> bool:
        """Check a batch; is its last message the mark? A function of its own, so that no array is
        alive when the next batch is waited for: arrays hold the ring."""
        records = batch.records(self._words)
        count = len(records)
        ended = count > 0 and int(records["counter"][-1]) == MARK + phase
        self._compare(batch, records, count - ended)
        if ended and bytes(batch.payload(count - 1)) != self._what.mark(phase):
            raise RunFailedError(f"the mark of phase {phase} is not what was sent")
        return ended

    def _compare(self, batch: Batch, records: np.ndarray[Any, Any], count: int) -> None:
        start = self.received % self._round
        payloads = self._what.payloads
        if (
            int(batch.descriptors["length"].sum()) != len(records) * self._what.size
            or not np.array_equal(records["counter"][:count], self._counters[start : start + count])
            or not np.array_equal(records["last"][:count], self._lasts[start : start + count])
            or any(
                bytes(batch.payload(i)) != payloads[(start + i) % self._round]
                for i in range(-start % SAMPLE, count, SAMPLE)
            )
        ):
            raise RunFailedError(f"after {self.received} messages come other ones than were sent")
        self.received += count

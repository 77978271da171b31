"""What the messages of a flow contain, and how their receivers check that.

A message is a counter, a filler that is different at each position, and a last word made from the
counter. The receiver compares both words of each message with what is due, so it touches the first
and the last cache line of each. It compares each 64th message whole. Where messages may be missing,
the counter shows which one came instead, and the number of messages sent shows how many were lost.

A round of messages is made beforehand and sent over and over, so making them is not measured. A
mark ends a phase: the warm-up, then what is measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from struct import Struct
from typing import Any, Final

import numpy as np

from ringcast.shm.broadcast import Batch

from .errors import RunFailedError

SMALLEST_BYTES: Final = 16
"""A message of a counter and a last word, without a filler."""
SAMPLE_EVERY: Final = 64
"""Receivers compare each message whole whose number is a multiple of this."""
MARK: Final = 2**64 - 16
"""The counter of the mark that ends phase 0; one more for each phase after it."""
BATCH_MESSAGES_MOST: Final = 65536
_ROUND_MESSAGES_MOST: Final = 4096
_ROUND_BYTES: Final = 4 << 20

_AS_DUE: Final = -2
_PHASE_ENDED: Final = -1

Words = tuple[int, int]
"""The counter and the last word of a message."""
Payload = Any
"""An object with the buffer protocol."""


def last_word(counter: int) -> int:
    """The last word of the message with this counter."""
    return counter * 0x9E3779B97F4A7C15 % 2**64


def words_unpacker(size: int) -> Callable[[Payload], tuple[Any, ...]]:
    """A function that returns the `Words` of a message of this size."""
    return Struct(f"<Q{size - SMALLEST_BYTES}xQ").unpack


class Contents:
    """A round of messages of one size.

    Attributes:
        size: bytes per message.
        layout: a counter, the filler, a last word.
        filler: different at each position.
        payloads: the messages of a round.
    """

    def __init__(self, size: int, count: int | None) -> None:
        if size < SMALLEST_BYTES:
            raise ValueError(f"a message has at least {SMALLEST_BYTES} bytes here, not {size}")
        self.size = size
        self.layout = Struct(f"<Q{size - SMALLEST_BYTES}sQ")
        self.filler = np.random.default_rng(size).bytes(size - SMALLEST_BYTES)
        usual = min(_ROUND_MESSAGES_MOST, max(SAMPLE_EVERY, _ROUND_BYTES // size))
        self.payloads = [self._make(counter) for counter in range(count or usual)]

    def _make(self, counter: int) -> bytes:
        return self.layout.pack(counter, self.filler, last_word(counter))

    def mark(self, phase: int) -> bytes:
        """The message that ends a phase."""
        return self._make(MARK + phase)


@cache
def contents(size: int, count: int | None = None) -> Contents:
    """Return `Contents` of this size, with `count` messages or the usual number. They are made
    once. Children that are forked later share them."""
    return Contents(size, count)


class Checker:
    """Checks what a receiver gets, phase by phase.

    Attributes:
        received: number of messages of the phase, without its mark.
    """

    def __init__(self, what: Contents, lossy: bool) -> None:
        self._what = what
        self._lossy = lossy
        self._unpack = words_unpacker(what.size)
        self._round = len(what.payloads)
        self._counted = 0
        self.received = 0
        # Where the whole message is to be compared, a number stands: it equals no pair of words.
        self._due: list[Words | int] = [
            (i, last_word(i)) if i % SAMPLE_EVERY else i for i in range(self._round)
        ]
        self._record_type = np.dtype(
            {
                "names": ["counter", "last"],
                "formats": ["<u8", "<u8"],
                "offsets": [0, what.size - 8],
                "itemsize": what.size,
            }
        )
        # Long enough for a batch of any length that starts anywhere in a round.
        copies = BATCH_MESSAGES_MOST // self._round + 2
        counters = np.arange(self._round, dtype=np.uint64)
        self._counters = np.tile(counters, copies)
        self._lasts = np.tile(
            np.array([last_word(i) for i in range(self._round)], np.uint64), copies
        )

    def read(self, messages: Iterator[Payload], phase: int) -> None:
        """Read messages one by one until the mark of a phase.

        Raises:
            RunFailedError: one has wrong bytes; or, where nothing may be lost, is not the next.
        """
        self._begin()
        unpack = self._unpack
        start = 0
        while start >= 0:
            due = itertools.chain(self._due[start:], itertools.cycle(self._due))
            for item, expected in zip(messages, due, strict=False):
                if unpack(item) != expected:
                    start = self._check_closely(item, expected, phase)
                    if start != _AS_DUE:
                        break
            else:
                raise RunFailedError("the messages ended before their mark")

    def _begin(self) -> None:
        self.received = self._counted = 0

    def _check_closely(self, item: Payload, expected: Words | int, phase: int) -> int:
        """Check a message whole. Returns _AS_DUE if it is the one that is due, _PHASE_ENDED if it
        is the mark of the phase, or else the number in the round of the one that is due next."""
        index = expected if isinstance(expected, int) else expected[0]
        counter, last = self._unpack(item)
        self.received += (index - self._counted) % self._round
        self._counted = index
        if counter == index and bytes(item) == self._what.payloads[index]:
            self._count_one(index)
            return _AS_DUE
        if counter >= MARK and bytes(item) == self._what.mark(counter - MARK):
            if counter - MARK < phase:
                return index  # the mark of an earlier phase, sent again
            if counter - MARK == phase:
                return _PHASE_ENDED
        if (
            not self._lossy
            or counter >= self._round
            or last != last_word(counter)
            or (not counter % SAMPLE_EVERY and bytes(item) != self._what.payloads[counter])
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
        """Read messages in batches, as numpy arrays in place, until the mark of a phase, which is
        the last of its batch. Raises as `read`."""
        self._begin()
        for batch in batches:
            if self._check_batch(batch, phase):
                return
        raise RunFailedError("the batches ended before their mark")

    def _check_batch(self, batch: Batch, phase: int) -> bool:
        """Check a batch. Returns whether its last message is the mark.

        This is a function of its own so that no array is alive while the next batch is awaited:
        arrays hold the ring.
        """
        records = batch.records(self._record_type)
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
                for i in range(-start % SAMPLE_EVERY, count, SAMPLE_EVERY)
            )
        ):
            raise RunFailedError(f"after {self.received} messages, other ones came than were sent")
        self.received += count

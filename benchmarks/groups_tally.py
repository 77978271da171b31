"""Who handled which messages, where several processes share them out, and what such a consumer
checks.

Any consumer may get any message, in any order. So each looks up what belongs to the message's
counter: it compares the last word, and each 64th message as a whole. Then it counts the message in
a table in memory that all processes share. The parent adds the tables up: each message must have
been handled as often as it was sent, by all consumers together.

A round has as many messages as a ring has slots. In a flow of several rounds, one message that is
lost and another that is doubled would be overlooked if they lay exactly a round apart.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import numpy as np

from ringcast.shm.broadcast import Batch

from .errors import RunFailedError
from .payloads import SAMPLE_EVERY, Contents, Payload, contents, last_word, words_unpacker
from .processes import Children

SIZE: Final = 128
ROUND: Final = 65536
"""Number of different messages: that of the slots of a ring of default size."""
POLL_S: Final = 0.001
"""How often the parent looks whether everything has been handled."""
STALLED_S: Final = 10.0
"""Seconds without a message, or an acknowledgement, after which a run has failed."""
_WHOLE: Final = -1
"""Instead of a last word: the whole message is to be compared."""
_WORDS: Final = np.dtype(("<u8", SIZE // 8))
_ONE: Final = np.uint32(1)


def flow_contents() -> Contents:
    """The messages of a round, made once."""
    return contents(SIZE, ROUND)


class Tally:
    """How often each consumer has handled each message. Make it before the consumers are forked.

    Attributes:
        table: a row for each consumer, a column for each counter of the round.
    """

    def __init__(self, consumers: int, messages: int = ROUND) -> None:
        flow_contents()
        _last_words()
        memory = mmap.mmap(-1, consumers * messages * 4)
        self.table = np.frombuffer(memory, np.uint32).reshape(consumers, messages)
        self.table[:] = 0  # its pages are there before anything is measured
        self._view = memoryview(memory).cast("I", (consumers * messages,))

    def row(self, index: int) -> memoryview:
        """The row of a consumer."""
        size = self.table.shape[1]
        return self._view[index * size : (index + 1) * size]

    def total(self) -> int:
        """How many messages have been handled."""
        return int(self.table.sum())

    def by_consumer(self) -> np.ndarray[Any, Any]:
        """How many messages each consumer has handled."""
        totals: np.ndarray[Any, Any] = self.table.sum(axis=1)
        return totals

    def check(self, sent: int) -> None:
        """Check that so many messages, round after round, have been handled exactly once each.

        Raises:
            RunFailedError: one was lost or doubled.
        """
        size = self.table.shape[1]
        due = np.full(size, sent // size)
        due[: sent % size] += 1
        handled = self.table.sum(axis=0)
        wrong = np.flatnonzero(handled != due)
        if len(wrong):
            first = wrong[0]
            raise RunFailedError(
                f"of {sent} messages, {len(wrong)} of the round of {size} were not handled as often"
                f" as they were sent: number {first} was sent {due[first]} times and handled"
                f" {handled[first]} times"
            )


def wait_until_handled(children: Children, tally: Tally, sent: int) -> int:
    """Wait until so many messages have been handled. Returns when that was noticed, in ns.

    Args:
        children: who handles them; if one fails, this ends.
        tally: where they count.
        sent: how many there are.

    Raises:
        RunFailedError: not all are handled, or more.
    """
    handled, end = -1, 0.0
    while (found := tally.total()) < sent:
        now = time.monotonic()
        if found != handled:
            handled, end = found, now + STALLED_S
        if now > end:
            raise RunFailedError(f"{sent} messages were sent and only {found} handled")
        children.check()
        time.sleep(POLL_S)
    now_ns = time.monotonic_ns()
    if found > sent:
        raise RunFailedError(f"{sent} messages were sent and {found} handled")
    return now_ns


def wait_until_acknowledged(children: Children, is_acknowledged: Callable[[], bool]) -> None:
    """Wait until it is so.

    Raises:
        RunFailedError: it does not come about, or a child failed.
    """
    end = time.monotonic() + STALLED_S
    while not is_acknowledged():
        if time.monotonic() > end:
            raise RunFailedError("not everything that was handled has been acknowledged")
        children.check()
        time.sleep(POLL_S)


@cache
def _last_words() -> tuple[list[int], np.ndarray[Any, Any]]:
    """For each counter of the round, the last word that belongs to it, or what never does if the
    whole message is to be compared; as a list and as an array. Made once, before processes fork."""
    found = [last_word(i) if i % SAMPLE_EVERY else _WHOLE for i in range(ROUND)]
    return found, np.array([last % 2**64 for last in found], np.uint64)


class Handler:
    """What a consumer does with messages: it checks them and counts them in its row of a tally."""

    def __init__(self, row: memoryview) -> None:
        self._what = flow_contents()
        self._row = row
        self._lasts, self._lasts_array = _last_words()

    def handle(self, messages: Iterator[Payload]) -> None:
        """Handle messages one by one, until they end or their mark comes.

        Raises:
            RunFailedError: one has wrong bytes.
        """
        unpack, lasts, row = words_unpacker(SIZE), self._lasts, self._row
        for message in messages:
            counter, last = unpack(message)
            try:
                if last != lasts[counter]:
                    self._compare(message, counter)
                row[counter] += 1
            except IndexError:
                if bytes(message) == self._what.mark(0):
                    return
                raise RunFailedError(f"no such message was sent: {bytes(message)!r}") from None

    def _compare(self, message: Payload, counter: int) -> None:
        """Compare a message as a whole with the one of this counter. Raises as `handle`."""
        if bytes(message) != self._what.payloads[counter]:
            raise RunFailedError(f"number {counter} of the round came as {bytes(message)!r}")

    def handle_batches(self, batches: Iterator[Batch]) -> None:
        """As `handle`, batch by batch, as numpy arrays."""
        counts = np.frombuffer(self._row, np.uint32)
        for batch in batches:
            if self._handle_batch(batch, counts):
                return

    def _handle_batch(self, batch: Batch, counts: np.ndarray[Any, Any]) -> bool:
        """Handle a batch. Returns whether a mark came. A function of its own, so that no array is
        alive when the batch ends."""
        words = _words(batch)
        at = words[:, 0].astype(np.intp)
        try:
            due = self._lasts_array.take(at)  # a mark counts from the end, and finds a wrong one
        except IndexError:
            raise RunFailedError(f"no such messages were sent: {at.tolist()}") from None
        for i in (words[:, -1] != due).nonzero()[0].tolist():
            if at[i] < 0:
                return self._is_mark(batch)
            self._compare(batch.payload(i), int(at[i]))
        np.add.at(counts, at, _ONE)
        return False

    def _is_mark(self, batch: Batch) -> bool:
        """Compare the messages of a batch as wholes: they are marks, or something is wrong."""
        for i in range(len(batch)):
            if bytes(batch.payload(i)) != self._what.mark(0):
                raise RunFailedError(f"no such message was sent: {bytes(batch.payload(i))!r}")
        return True


def _words(batch: Batch) -> np.ndarray[Any, Any]:
    """The messages of a batch as rows of 64-bit words; in place if they are evenly spaced, which
    they are not where others took some in between."""
    try:
        return batch.records(_WORDS)
    except ValueError:
        joined = b"".join([batch.payload(i) for i in range(len(batch))])
        return np.frombuffer(joined, np.uint64).reshape(len(batch), -1)

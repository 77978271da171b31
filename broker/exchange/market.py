"""Made-up market data: the messages of an exchange that never closes, as fast as wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Final

__all__ = ["TOPIC", "messages"]

TOPIC: Final = ("{/type}:{/symbol}",)
"""Patterns of the messages' topics, such as ``trade:BTC-USD``."""

# Names and first prices in cents; the prices then walk at random, and never below _FLOOR.
_SYMBOLS: Final = (
    (b"BTC-USD", 6_168_599),
    (b"ETH-USD", 260_012),
    (b"BNB-USD", 51_230),
    (b"SOL-USD", 15_433),
    (b"LTC-USD", 6_120),
    (b"AVAX-USD", 2_181),
    (b"LINK-USD", 1_047),
    (b"BCH-USD", 34_410),
)
_FLOOR: Final = 1_000
_START_MS: Final = 1_700_000_000_000  # Unix time of the first message

_BLOCK: Final = 1 << 14  # messages that are made once and then repeated
_PER_MS: Final = 8  # messages in a millisecond of the time that they show

_HEAD: Final = b'{"id":%d,"time":%d,%b'
_TRADE: Final = (
    b'"type":"trade","symbol":"%b","price":"%d.%02d","size":"%d.%04d","side":"%b","order":"%08x"}'
)
_BEST: Final = (
    b'"type":"best","symbol":"%b","bid":"%d.%02d","bid_size":"%d.%04d",'
    b'"ask":"%d.%02d","ask_size":"%d.%04d"}'
)
_LEVEL: Final = b'["%d.%02d","%d.%04d"]'
_BOOK: Final = b'"type":"%b","symbol":"%%b","bids":[%b],"asks":[%b]}'
_SNAPSHOT_LEVELS: Final = 240  # per side: about 10 kB
_SNAPSHOT_EVERY: Final = 2048


def _book(kind: bytes, levels: int) -> bytes:
    side = b",".join([_LEVEL] * levels)
    return _BOOK % (kind, side, side)


_DEPTHS: Final = tuple(_book(b"depth", levels) for levels in range(3, 11))
_SNAPSHOT: Final = _book(b"snapshot", _SNAPSHOT_LEVELS)


def messages(seed: int = 1) -> Iterator[bytes]:
    """Endless JSON texts: trades, best bid and ask, and changes of the order books of several
    symbols, whose prices walk at random. About 200 bytes each, and every 2048th or so a snapshot of
    about 10 kB. ``id`` is the first field and counts from 1. The same seed gives the same messages.

    To be fast, only ``id`` and ``time`` are new in each message: the rest comes from a block of
    16,384 messages, forwards and backwards in turn, so that no price jumps where the block ends.
    """
    block = list(_tails(Random(seed)))
    for number, tail in enumerate(itertools.cycle(block + block[::-1]), start=1):
        yield _HEAD % (number, _START_MS + number // _PER_MS, tail)


def _tails(random: Random) -> Iterator[bytes]:
    """A block of messages, each without its head."""
    names = [name for name, _ in _SYMBOLS]
    prices = [price for _, price in _SYMBOLS]
    for number in range(1, _BLOCK + 1):
        at = random.randrange(len(names))
        chance = random.getrandbits(32)
        price = prices[at] = max(_FLOOR, prices[at] + (chance & 15) - (chance >> 4 & 15))
        yield _tail(number % _SNAPSHOT_EVERY == 0, names[at], price, chance)


def _tail(is_snapshot: bool, name: bytes, price: int, chance: int) -> bytes:
    """One message; what it is and its sizes come from 32 random bits."""
    if is_snapshot:
        return _SNAPSHOT % (name, *_levels(price, _SNAPSHOT_LEVELS, chance))
    kind = chance >> 8 & 15
    size = chance >> 12 & 0x3FFF
    here = (name, price // 100, price % 100, size >> 12, size & 0xFFF)
    if kind < 6:
        return _TRADE % (*here, b"sell" if size & 1 else b"buy", chance)
    if kind < 12:
        ask = price + 1 + (chance >> 26 & 3)
        return _BEST % (*here, ask // 100, ask % 100, chance >> 30, chance >> 18 & 0xFFF)
    depth = chance >> 29
    return _DEPTHS[depth] % (name, *_levels(price, depth + 3, chance))


def _levels(price: int, count: int, chance: int) -> list[int]:
    """The numbers of `count` bids from `price` down, then of as many asks above it."""
    numbers: list[int] = []
    for start, step in ((price, -1), (price + 2, 1)):
        for level in range(count):
            here = max(1, start + step * level)
            size = (chance + level * 2_654_435_761) >> 7 & 0x3FFF
            numbers += (here // 100, here % 100, size >> 12, size & 0xFFF)
    return numbers

"""Finding topics: the native scanner alone, for the scenario `topics`.

Against msgspec: both take the same two fields, `e` and `s`, from a trade as Binance sends it. The
scanner joins them to a name, as in a manager; msgspec's decoder, which ignores the other fields,
makes an object of two strings. The scanner goes over a list of messages natively, as it does in a
manager, and msgspec is called for each, as a Python program does. The trade is the same over and
over, so it lies in the cache.

Over a capture: all messages of binance-spot, some 270 bytes on average, one after the other.
"{/absent}" is in none, so each is passed over as a whole; "{/data/absent}" is in none, either, but
what it might be in has to be walked through; "{/stream}" comes first in all. Bytes are those of
the payloads, looked at or not.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ringcast.broker.exchange import captures
from ringcast.broker.topics import Scanner

from .figures import Figure, Samples, figures_of, ratio, samples_of

CAPTURE: Final = "binance-spot.tsv.gz"
MSGSPEC_FLOOR: Final = 8.0
"""The scanner is to be so many times as fast as msgspec, at least."""
ABSENT_FLOOR: Final = 1.5
"""GB/s that the scanner is to pass over, at least."""
PATTERNS: Final = ("{/absent}", "{/data/absent}", "{/stream}")

TRADE: Final = (
    b'{"e":"trade","E":1723161602217,"s":"BTCUSDT","t":3735693045,"p":"61684.01000000",'
    b'"q":"0.00009000","T":1723161602210,"m":true,"M":true}'
)

_BLOCK: Final = 1000
"""Messages between two looks at the clock."""
_SCANNER: Final = "trade: scanner"
_MSGSPEC: Final = "trade: msgspec"
_CAPTURE: Final = "capture"


def _ns_per_message(step: Callable[[], object], messages: int, seconds: float) -> float:
    """Time of a step over so many messages, per message, over so many seconds, in ns."""
    clock = time.perf_counter_ns
    step()
    rounds = 0
    began = now = clock()
    while now - began < seconds * 1e9:
        step()
        rounds += 1
        now = clock()
    return (now - began) / rounds / messages


def scan_trade(seconds: float) -> dict[str, float]:
    """The scanner on the trade: ns per message."""
    scanner = Scanner(["{/e}:{/s}"], names_max=1)
    trades = [TRADE] * _BLOCK
    return {_SCANNER: _ns_per_message(lambda: scanner.scan_all(trades), _BLOCK, seconds)}


def decode_trade(seconds: float) -> dict[str, float]:
    """The same with msgspec: ns per message; nothing where it is not installed."""
    if importlib.util.find_spec("msgspec") is None:
        return {}
    import msgspec

    decode = msgspec.json.Decoder(msgspec.defstruct("Trade", [("e", str), ("s", str)])).decode
    trades = [TRADE] * _BLOCK

    def step() -> None:
        for trade in trades:
            decode(trade)

    return {_MSGSPEC: _ns_per_message(step, _BLOCK, seconds)}


def scan_capture(payloads: list[bytes], pattern: str, seconds: float) -> dict[str, float]:
    """The scanner over the messages of a capture: GB/s."""
    scanner = Scanner([pattern], names_max=1)
    size = sum(map(len, payloads)) / len(payloads)
    taken = _ns_per_message(lambda: scanner.scan_all(payloads), len(payloads), seconds)
    return {f"{_CAPTURE}: {pattern}": size / taken}


def runs(seconds: float, folder: Path | None) -> Sequence[Callable[[], Mapping[str, float]]]:
    """The measurements, for `figures.interleave`.

    Args:
        seconds: duration of each.
        folder: of captures; without the one that is needed, its measurements are left out.

    Raises:
        CaptureError, OSError: the capture cannot be read.
    """
    found: list[Callable[[], Mapping[str, float]]] = [
        lambda: scan_trade(seconds),
        lambda: decode_trade(seconds),
    ]
    path = folder / CAPTURE if folder is not None else None
    if path is not None and path.exists():
        payloads = [record.payload for record in captures.read(path) if record.kind != "sent"]
        found += [
            lambda pattern=pattern: scan_capture(payloads, pattern, seconds)  # type: ignore[misc]
            for pattern in PATTERNS
        ]
    return found


def groups(found: Samples) -> dict[str, Sequence[Figure]]:
    """The figures of the samples that the measurements gave."""
    trade = samples_of(found, "trade")
    compared = (
        [ratio("scanner / msgspec", found[_MSGSPEC], found[_SCANNER], MSGSPEC_FLOOR)]
        if _MSGSPEC in found
        else []
    )
    over_capture = [
        Figure(pattern, "GB/s", tuple(values), ABSENT_FLOOR if pattern == PATTERNS[0] else None)
        for pattern, values in samples_of(found, _CAPTURE).items()
    ]
    return {
        "two fields of a trade, time per message": [*figures_of(trade, "ns"), *compared],
        "topics of the capture binance-spot": over_capture,
    }

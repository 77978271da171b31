"""A manager that finds topics, against one that does not, for the scenario `topics`.

Both receive the same flood of JSON messages of 200 bytes, in the form of Binance's combined
streams, of 16 topics in turn; the pointer is ``{/stream}``. Nothing reads meanwhile. At the end,
what the ring still holds is checked: each message, and its topic. A rate counts from the beginning
of the connection to the last message.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Final

import numpy as np

import ringcast
from ringcast import shm

from .errors import RunFailedError
from .figures import Figure, Samples, figures_of, ratio
from .processes import Channel, on_last_core
from .ring_names import temporary_ring_name
from .websocket.frames import end_payload, frame
from .websocket.ringcast_side import CAPACITY_BYTES, run_manager
from .websocket.server import Load

WITH: Final = "manager with topics"
WITHOUT: Final = "manager without topics"
SHARE_LEAST: Final = 0.6
"""What of the rate a manager is to keep with topics, at least."""

_BYTES: Final = 200
_TOPICS: Final = 16
_MESSAGES: Final = 1280
_BATCH: Final = 4096


def _message(number: int) -> bytes:
    """A message of its number's topic, filled up to its length."""
    symbol = f"coin{number % _TOPICS:02}usdt"
    trade = {"e": "trade", "E": 1723161602217, "s": symbol.upper(), "t": number}
    trade |= {"p": "61684.01000000", "q": "0.00009000", "m": True, "note": ""}
    whole = {"stream": f"{symbol}@trade", "data": trade}
    trade["note"] = "x" * (_BYTES - len(json.dumps(whole, separators=(",", ":"))))
    return json.dumps(whole, separators=(",", ":")).encode()


_PAYLOADS: Final = [_message(number) for number in range(_MESSAGES)]


def _check_remainder(channel: Channel, name: str, topics: bool) -> None:
    """Check what the ring still holds once the manager has ended; report when the last message was
    received, and how many there were."""
    last_ns = 0
    payload = b""
    before: int | None = None
    with ringcast.attach(name, policy="lossy", start="oldest", events=True) as feed:
        channel.send()
        channel.receive()  # the manager has ended
        names = {topic.topic: topic.name for topic in feed.topics}
        with contextlib.suppress(shm.RingClosed):
            while True:
                with feed.batch(_BATCH) as batch:
                    found = batch.descriptors[batch.descriptors["kind"] == shm.Kind.TEXT]
                    texts = np.flatnonzero(batch.descriptors["kind"] == shm.Kind.TEXT)
                    for index, topic in zip(texts, found["topic"], strict=True):
                        payload = bytes(batch.payload(int(index)))
                        last_ns = int(batch.descriptors["time_ns"][index])
                        if payload.startswith(b"end"):
                            continue
                        number = json.loads(payload)["data"]["t"]
                        if before is not None and number != (before + 1) % _MESSAGES:
                            raise RunFailedError(f"after message {before} came {number}")
                        before = number
                        expected = json.loads(_PAYLOADS[number])["stream"] if topics else None
                        if names.get(int(topic)) != expected or payload != _PAYLOADS[number]:
                            raise RunFailedError(f"message {number} is not what was sent")
    channel.send({"ended_ns": last_ns, "end": payload.decode()})


def run_alone(seconds: float, *, topics: bool) -> dict[str, float]:
    """Run a manager without workers. Returns messages per second.

    Raises:
        RunFailedError: a message or its topic is not what was sent.
    """
    load = Load(seconds, (b"".join(map(frame, _PAYLOADS)),), _MESSAGES)
    with temporary_ring_name() as name, load.serve(1) as (children, server, address):
        pattern = ("{/stream}",) if topics else ()
        manager = children.start(on_last_core, run_manager, address, name, CAPACITY_BYTES, pattern)
        manager.receive()
        checker = children.start(on_last_core, _check_remainder, name, topics)
        checker.receive()
        manager.send()
        began_ns = manager.receive()["connected_ns"]
        checker.send()
        found = checker.receive()
        sent = server.receive()["sent"]
    if found["end"] != end_payload(sent).decode():
        raise RunFailedError(f"the last message is not the end of {sent}: {found['end']!r}")
    rate = sent / (found["ended_ns"] - began_ns) * 1e9
    return {WITH if topics else WITHOUT: rate}


def groups(found: Samples) -> dict[str, Sequence[Figure]]:
    """The figures of the samples that `run_alone` gave."""
    rates = {name: found[name] for name in (WITHOUT, WITH)}
    share = ratio("with / without", found[WITH], found[WITHOUT], SHARE_LEAST)
    return {"JSON of 200 bytes into the ring": [*figures_of(rates, "M/s", 1e-6), share]}

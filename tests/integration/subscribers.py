"""What the tests of subscriptions share: topics of each venue, numbered messages, and workers that
come and go."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

from ringcast import Config, Feed, attach, broker
from ringcast.broker.topics.states import TopicState
from ringcast.shm.broadcast import Message
from tests.conftest import DEADLINE

from .manager import quick

TOPICS: Final = {
    "binance": [f"{pair}usdt@trade" for pair in ("btc", "eth", "sol", "xrp", "ada", "bnb")],
    "binance-usdm": [f"{pair}usdt@aggTrade" for pair in ("btc", "eth", "sol", "xrp", "ada", "bnb")],
    "coinbase": [f"ticker:{pair}-USD" for pair in ("BTC", "ETH", "SOL", "XRP", "ADA", "LTC")],
    "kraken": [f"trade:{pair}/USD" for pair in ("BTC", "ETH", "SOL", "XRP", "ADA", "LTC")],
    "okx": [f"trades:{pair}-USDT" for pair in ("BTC", "ETH", "SOL", "XRP", "ADA", "LTC")],
    "bybit": [f"publicTrade.{pair}USDT" for pair in ("BTC", "ETH", "SOL", "XRP", "ADA", "LTC")],
    "bitstamp": [f"live_trades_{pair}usd" for pair in ("btc", "eth", "sol", "xrp", "ada", "ltc")],
    "deribit": [
        f"trades.{pair}-PERPETUAL.100ms"
        for pair in ("BTC", "ETH", "SOL_USDC", "XRP_USDC", "ADA_USDC", "LTC_USDC")
    ],
    "bitfinex": [f"trades:t{pair}USD" for pair in ("BTC", "ETH", "SOL", "XRP", "ADA", "LTC")],
}
"""Some topics of each venue, as its file names them."""

RING: Final = {"slots": 1024, "capacity": 1 << 20, "max_topics": 256}
VENUES: Final = Path(broker.__file__).with_name("topics") / "venues"
_NUMBER: Final = re.compile(rb'"n":(\d+)|,(\d+)\]$')


def config_of(url: str, name: str, venue: str, **options: Any) -> Config:
    """A manager's configuration for a server, with a small ring; topics linger for a moment."""
    return quick(name, url, venue=venue, **{**RING, "linger": 0.05, **options})


def venue_file(folder: Path, venue: str, *changes: tuple[str, str]) -> str:
    """A user's copy of a venue's file, by its path, with some texts replaced."""
    text = (VENUES / f"{venue}.toml").read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    path = folder / f"{venue}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def number_of(message: Message) -> int:
    """The number that the server gave a message of a topic."""
    found = _NUMBER.search(bytes(message))
    assert found, bytes(message)
    return int(found[1] or found[2])


def states(feed: Feed) -> dict[str, str]:
    """What is known of each topic that is wanted, or was."""
    return {t.name: TopicState(t.state).name.lower() for t in feed.topics if t.state}


def reasons(feed: Feed) -> dict[str, str]:
    """Why topics are refused."""
    return {t.name: t.reason for t in feed.topics if t.reason}


def drain(feed: Feed) -> list[tuple[str | None, int]]:
    """All messages that are there: topic and number. A server's first words are not numbered."""
    taken = [(m.topic_name, number_of(m)) for m in feed.read_available(1 << 16)]
    return [(topic, number) for topic, number in taken if number]


def come_and_go(name: str, topics: Sequence[str], seed: int, stop: Event) -> None:
    """A process: a worker that changes its mind, and at times attaches anew, until it is stopped or
    killed. It sees nothing but what it asked for."""
    rng = random.Random(seed)
    while not stop.is_set():
        mine = set(rng.sample(topics, rng.randint(0, len(topics))))
        with attach(name, topics=mine) as feed:
            for _ in range(rng.randint(1, 20)):
                for message in feed.read_available(256):
                    assert message.topic_name in mine, (message.topic_name, mine)
                topic = rng.choice(topics)
                if rng.random() < 0.5:
                    mine.add(topic)
                    with contextlib.suppress(TimeoutError):
                        feed.subscribe(topic, wait=rng.random() < 0.3, timeout=0.05)
                else:
                    mine.discard(topic)
                    feed.unsubscribe(topic)
                stop.wait(rng.random() * 0.01)
                if stop.is_set():
                    break


def hold(name: str, topics: Sequence[str], ready: Event, stop: Event) -> None:
    """A process: a worker that wants these topics until it is stopped or killed."""
    with attach(name, topics=topics, timeout=DEADLINE) as feed:
        ready.set()
        while not stop.is_set():
            feed.read_available(256)
            stop.wait(0.002)

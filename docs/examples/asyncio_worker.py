"""A worker with asyncio: it sends, and reads while another task runs.

Try it beside a manager: `ringcast demo --name md --seconds 60` in one terminal, and
`python docs/examples/asyncio_worker.py md` in another.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from ringcast import Feed, attach


async def send(feed: Feed) -> int:
    """Send a message to the server; return its ticket when the socket has taken it."""
    ticket = await feed.asend('{"op":"ping"}')
    await feed.aflush(timeout=5)
    return ticket


async def count(feed: Feed, limit: int) -> Counter[str]:
    """Read messages until the ring ends or `limit` is reached; count them for each symbol."""
    symbols: Counter[str] = Counter()
    async for message in feed:
        symbols[json.loads(message.text())["symbol"]] += 1
        if symbols.total() == limit:
            break
    return symbols


async def main(name: str, limit: int) -> None:
    """Send and read at the same time."""
    with attach(name, start="oldest", label="asyncio worker") as feed:
        ticket, symbols = await asyncio.gather(send(feed), count(feed, limit))
    print(f"sent with ticket {ticket}, read {symbols.total()} messages")
    for symbol, number in symbols.most_common():
        print(f"{symbol}: {number}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100_000))

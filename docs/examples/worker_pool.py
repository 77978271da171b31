"""A pool of worker processes that share the messages out.

Each process gets every message, and handles those whose sequence is its own modulo the number of
workers. Passing over the others costs about 40 ns per message.

Try it beside a manager: `ringcast demo --name md --seconds 60` in one terminal, and
`python docs/examples/worker_pool.py md` in another. It ends with the ring.
"""

from __future__ import annotations

import json
import multiprocessing
import sys

from ringcast import attach

WORKERS = 2


def work(name: str, number: int) -> tuple[int, float]:
    """One worker: how many messages it handled, and the highest price it saw."""
    handled, highest = 0, 0.0
    with attach(name, start="oldest", label=f"pool-{number}") as feed:
        for message in feed:
            if message.sequence % WORKERS != number:
                continue
            trade = json.loads(message.text())
            highest = max(highest, float(trade.get("price", 0)))
            handled += 1
    return handled, highest


def main(name: str) -> None:
    """Start the workers, and wait until the ring ends."""
    context = multiprocessing.get_context("spawn")  # a forked child could use no feed of ours
    with context.Pool(WORKERS) as pool:
        results = pool.starmap(work, [(name, number) for number in range(WORKERS)], chunksize=1)
    for number, (handled, highest) in enumerate(results):
        print(f"worker {number}: {handled} messages, highest price {highest}")
    print(f"all: {sum(handled for handled, _ in results)} messages")


if __name__ == "__main__":
    main(sys.argv[1])

"""A worker that has the server asked for topics, and reads no others.

It needs a manager with a venue, for example `ringcast serve --name md --venue okx`. Then
`python docs/examples/subscribe.py md trades:BTC-USDT trades:ETH-USDT` reads 100 messages of these
topics. What the server refuses is reported and given up.
"""

from __future__ import annotations

import sys
from collections import Counter

from ringcast import Feed, SubscriptionRefused, attach

MESSAGES = 100


def subscribe(feed: Feed, topics: list[str]) -> None:
    """Want these topics, without those that the server refuses."""
    try:
        feed.subscribe(*topics, timeout=30)
    except SubscriptionRefused as refused:
        for topic, reason in refused.reasons.items():
            print(f"{topic}: refused, {reason}")
        feed.unsubscribe(*refused.reasons)


def main(name: str, topics: list[str]) -> None:
    """Subscribe, and count the messages of each topic."""
    counts: Counter[str | None] = Counter()
    with attach(name, topics=[], label="subscribe") as feed:
        subscribe(feed, topics)
        for message in feed:
            counts[message.topic_name] += 1
            if counts.total() == MESSAGES:
                break
    for topic, count in sorted(counts.items(), key=str):
        print(f"{topic}: {count} messages")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

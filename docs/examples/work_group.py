"""A work group by key: one process writes, others share the messages out.

Each message belongs to an account. Whichever member handles an account, it sees the account's
messages in their order, one by one.

Run it with a name for the ring: `python docs/examples/work_group.py accounts`.
"""

from __future__ import annotations

import multiprocessing
import struct
import sys

from ringcast import shm
from ringcast.shm import broadcast, group, hash_key

ACCOUNTS = 50
MESSAGES = 10_000
MEMBERS = 3
BOOKING = struct.Struct("<II")  # the account, and the number of the booking in it


def work(name: str) -> tuple[int, bool]:
    """One member: how many messages it handled, and whether each account's were in their order."""
    handled, ordered = 0, True
    last: dict[int, int] = {}
    with group.Member.attach(name, "books", balance="key") as member:
        for message in member:  # ends when the ring has ended and all is done
            account, number = BOOKING.unpack_from(message)
            ordered = ordered and number > last.get(account, -1)
            last[account] = number
            handled += 1  # asking for the next message says that this one is done
    return handled, ordered


def count_members(name: str) -> int:
    """How many have joined, of all groups of the ring."""
    return sum(len(found.members) for found in shm.status(name).groups)


def main(name: str) -> None:
    """Write the bookings, close the ring, and add up what the members did."""
    with broadcast.Writer.create(name, slots=1024, capacity=1 << 20) as writer:
        context = multiprocessing.get_context("spawn")
        with context.Pool(MEMBERS) as pool:
            results = pool.map_async(work, [name] * MEMBERS, chunksize=1)
            while count_members(name) < MEMBERS and not results.ready():
                results.wait(0.01)  # until all have joined
            for number in range(MESSAGES):
                account = number % ACCOUNTS
                writer.publish(
                    BOOKING.pack(account, number // ACCOUNTS),
                    key=hash_key(f"account {account}"),
                    timeout=30,
                )
            writer.close()
            found = results.get(timeout=30)
    total = sum(handled for handled, _ in found)
    ordered = all(in_order for _, in_order in found)
    print(f"{MEMBERS} members handled {total} messages; in order: {ordered}")


if __name__ == "__main__":
    main(sys.argv[1])

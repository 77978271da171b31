"""A ring without a connection: one process writes, two others read.

Run it with a name for the ring: `python docs/examples/plain_ring.py numbers`.
"""

from __future__ import annotations

import multiprocessing
import struct
import sys

from ringcast import shm
from ringcast.shm import broadcast

MESSAGES = 10_000
READERS = 2
NUMBER = struct.Struct("<Q")


def read(name: str) -> int:
    """One reader: the sum of all numbers, each read in place."""
    total = 0
    with broadcast.Reader.attach(name, start="oldest") as reader:
        for message in reader:  # ends when the writer closes the ring
            (number,) = NUMBER.unpack_from(message)
            total += number
    return total


def main(name: str) -> None:
    """Write the numbers, close the ring, and compare what the readers found."""
    with broadcast.Writer.create(name, slots=1024, capacity=1 << 20) as writer:
        context = multiprocessing.get_context("spawn")
        with context.Pool(READERS) as pool:
            results = pool.map_async(read, [name] * READERS, chunksize=1)
            while len(shm.status(name).readers) < READERS and not results.ready():
                results.wait(0.01)  # until both are attached
            for number in range(MESSAGES):
                writer.publish(NUMBER.pack(number), timeout=30)  # waits while the ring is full
            writer.close()
            totals = results.get(timeout=30)
    print(f"{READERS} readers read {MESSAGES} messages; their sums are {totals}")


if __name__ == "__main__":
    main(sys.argv[1])

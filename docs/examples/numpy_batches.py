"""Read in numpy batches: figures about the stream, without a Python object per message.

Try it beside a manager: `ringcast demo --name md --seconds 60` in one terminal, and
`python docs/examples/numpy_batches.py md` in another. It ends with the ring.
"""

from __future__ import annotations

import sys

import numpy

from ringcast import RingClosed, attach


def main(name: str) -> None:
    """Read until the ring ends; print how many messages and bytes came, and how unevenly."""
    messages = payload_bytes = longest = batches = 0
    largest_pause_ns = 0
    with attach(name, start="oldest", label="numpy batches") as feed:
        while True:
            try:
                with feed.batch() as batch:  # waits for the first message
                    lengths = batch.descriptors["length"]  # arrays on the ring: no copy
                    times_ns = batch.descriptors["time_ns"].astype(numpy.int64)
                    messages += len(batch)
                    payload_bytes += int(lengths.sum())
                    longest = max(longest, int(lengths.max()))
                    pauses_ns = numpy.diff(times_ns)
                    largest_pause_ns = max(largest_pause_ns, int(pauses_ns.max(initial=0)))
                    batches += 1
                    del lengths  # a view would hold the batch in the ring
            except RingClosed:
                break
    print(f"{messages} messages in {batches} batches, {payload_bytes} bytes")
    print(f"the longest message has {longest} bytes")
    print(f"the longest pause within a batch was {largest_pause_ns / 1e6:.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1])

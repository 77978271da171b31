"""Bytes of the gateway's own in an outlet: answers, pongs, closes, and the room that they take."""

from __future__ import annotations

import resource

from ringcast.broker.gateway import _fanout
from tests.frames import BINARY, CLOSE, TEXT, frame

from .outlets import out, ring

MIB = 1 << 20


def test_it_says_that_all_is_sent_if_it_is_to(name: str) -> None:
    """Who waits until its own bytes are taken learns so, also if they are taken at once."""
    with ring(name), out(name) as sends:
        line = sends.add()
        line.outlet.queue(frame(TEXT, b"one"))
        assert sends.pump() == {}
        line.outlet.reports_drained = True
        line.outlet.queue(frame(TEXT, b"two"))
        assert sends.pump() == {line.outlet: _fanout.DRAINED}
        assert line.outlet.pending == 0
        line.outlet.reports_drained = False
        assert sends.pump() == {}


def test_nothing_comes_behind_a_close(name: str) -> None:
    """What was to be inserted behind the message that is being sent is left out."""
    with ring(name, slots=64, capacity=8 * MIB) as made, out(name) as sends:
        line = sends.add(small=True)
        made.publish(bytes(MIB), BINARY)
        made.publish(b"next", BINARY)
        sends.fanout.look()
        line.outlet.insert(1, frame(TEXT, b"answer"))
        assert sends.pump() == {line.outlet: _fanout.BLOCKED}
        line.outlet.queue(frame(CLOSE, b""))
        line.outlet.stop(0)
        sends.drain()
        assert [each.opcode for each in line.frames()] == [BINARY, CLOSE]


def test_its_room_is_that_of_what_waits(name: str) -> None:
    """Not of all that has ever passed, though it is never empty."""
    data = frame(BINARY, bytes(MIB))
    with ring(name), out(name) as sends:
        line = sends.add()
        line.outlet.queue(data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(256):
            line.outlet.queue(data)
            while line.outlet.pending > len(data):
                line.outlet.resume()
                sends.pump()
                line.read(MIB)
                line.data.clear()
        assert 0 < line.outlet.pending <= len(data)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kib < 64 << 10

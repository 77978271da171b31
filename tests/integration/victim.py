"""Processes that die at a step of the protocol, forked by nursery.py with a build that has fault
points.

Each writes one byte when it is ready, waits for one before it goes on, and then writes one byte for
each message that it has published. It ends with exit code 0 if the step never came.

    write NAME SEED WAY COUNT create|resume
    write_topics NAME SEED            messages of topical.py
    attach NAME POLICY
    choose NAME
    send NAME WHO                     through an uplink
    receive NAME create|resume HOW    from an uplink
    work NAME BALANCE                 as a member of group "g": join, work, leave, often
    remove NAME                       group "g"
    demote NAME                       the same, as the ring's next writer
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import cast

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.mpsc import Receiver, Sender
from tests.integration import numbered, topical, traffic

MESSAGES = 5000  # far more than it takes to reach any step


def write(name: str, seed: str, way: str, count: str, how: str) -> None:
    """Publish `count` messages at a time, in one way."""
    writer = traffic.create(name) if how == "create" else Writer.resume(name)
    payloads = traffic.Payloads(int(seed), writer.max_message)
    sending = next(sending for sending in traffic.SENDINGS if sending.__name__ == way)
    os.write(1, b"r")
    os.read(0, 1)
    for _ in range(MESSAGES // int(count)):
        sending(writer, payloads, int(count))
        os.write(1, b"." * int(count))


def attach(name: str, policy: str) -> None:
    """Join from the first message on, and leave."""
    os.write(1, b"r")
    os.read(0, 1)
    Reader.attach(name, policy=cast(traffic.Policy, policy), start=0).close()


def write_topics(name: str, seed: str) -> None:
    """Publish messages of topics that come up one by one."""
    writer = topical.create(name)
    os.write(1, b"r")
    os.read(0, 1)
    for n in range(MESSAGES):
        topical.publish_topical(writer, int(seed), n + 1)
        os.write(1, b".")


def choose(name: str) -> None:
    """Join with a list, change it, sleep, and leave."""
    os.write(1, b"r")
    os.read(0, 1)
    sleepy = shm.Blocking(spin_us=0)
    with Reader.attach(name, topics=["a", "b*"], wait=sleepy) as reader:
        for _ in range(5):
            reader.subscribe("ab")
            reader.read(timeout=0.01)
            reader.unsubscribe("ab")


def send(name: str, who: str) -> None:
    """Send numbered messages through an uplink."""
    with Sender.attach(name) as sender:
        os.write(1, b"r")
        os.read(0, 1)
        for n in range(MESSAGES):
            sender.send(numbered.numbered_message(int(who), n))
            os.write(1, b".")


def receive(name: str, how: str, auto_ack: str) -> None:
    """Receive numbered messages, one at a time."""
    make = numbered.create if how == "create" else Receiver.resume
    receiver = make(name, auto_ack=auto_ack == "True")
    os.write(1, b"r")
    os.read(0, 1)
    while receiver.read(timeout=1) is not None:
        os.write(1, b".")


def work(name: str, balance: str) -> None:
    """Join, handle some messages, give some back, wait, be dealt some more, leave; so many times.
    What is given back is set aside at its second delivery."""
    os.write(1, b"r")
    os.read(0, 1)
    for _ in range(MESSAGES):
        with group.Member.attach(
            name,
            "g",
            balance=cast(group.Balance, balance),
            start="oldest",
            max_deliveries=2,
            wait=shm.Blocking(spin_us=0),
        ) as member:
            for n in range(20):
                message = member.read(timeout=0.005)
                if message is not None and (n % 3 == 0 or message.deliveries > 1):
                    message.nack()
            with member.batch(limit=5, timeout=0):
                pass
            time.sleep(0.003)  # time for the others to deal it what it leaves behind


def remove(name: str) -> None:
    """Remove group "g"."""
    os.write(1, b"r")
    os.read(0, 1)
    group.remove(name, "g")


def demote(name: str) -> None:
    """Take the ring over, and demote group "g"."""
    writer = Writer.resume(name)
    os.write(1, b"r")
    os.read(0, 1)
    writer.demote_group("g")


ROLES: dict[str, Callable[..., None]] = {
    "write": write,
    "write_topics": write_topics,
    "attach": attach,
    "choose": choose,
    "send": send,
    "receive": receive,
    "work": work,
    "remove": remove,
    "demote": demote,
}

"""Members of work groups that are clients of the gateway.

Each such client has a member of its own in the group (`shm.group.Member`), as a worker process has.
What the member is handed goes to the client as messages of the gateway's own, a copy; it stays the
client's until the client acknowledges it, gives it back or goes.

*Acknowledging.* A client with records says DONE. A plain one can't: after what it was given the
gateway sends a ping, and the pong, which libraries send by themselves and in order (RFC 6455
section 5.5.3), says that the client's library has received all that came before the ping. What a
ping carries is random, so a pong stands for a ping that has arrived.

*Alone.* A message that somebody has had before is given when the client has no other, and no other
is given before it is acknowledged. So a message that makes clients fail takes no others with it.

*Bounds.* A client has at most so many messages as it says in its URL, and no more is taken for it
while its socket has not taken what it was given last. So the gateway holds few bytes per client;
all else waits in the ring, and other members may have it.

*Waiting.* No member sleeps. The gateway's reader is woken for each message anyway, and then all
members look. For what comes back from members of other processes they look every `LOOK_EVERY`,
which is also how often a member that sleeps would.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from websockets.frames import CloseCode

from ringcast import shm
from ringcast.shm import group

from ..worker import wire
from .client import Downward, Refused

if TYPE_CHECKING:
    from ._fanout import Outlet
    from .client import Client
    from .options import ClientOptions

__all__ = ["ClientMember", "Handed", "Members"]

LOOK_EVERY: Final = 0.04
"""Seconds between two looks for messages that others gave back, or left when they died."""
TURN_MESSAGES: Final = 16
"""For one client, before the other members have their turn."""
TURN_BYTES: Final = 1 << 16
"""For one client, before its socket has taken them; exceeded by one message at most."""
FRAME_BYTES: Final = 1 << 16
"""Of records in one frame, unless one alone is longer."""
PING_BYTES: Final = 8

_log = logging.getLogger(__name__)


class Handed(NamedTuple):
    """What a member's client has been given.

    Attributes:
        messages: all of them.
        in_flight: those that it has not acknowledged.
        lost: messages that the group missed just before one of these.
    """

    messages: int
    in_flight: int
    lost: int


class Members:
    """All clients of a gateway that are members of work groups.

    Args:
        name: the ring's.
        owner: user id of the ring's manager, if it is another's.
    """

    def __init__(self, name: str, owner: int | None) -> None:
        self._name = name
        self._owner = owner
        self._members: deque[ClientMember] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._turns_soon = False

    def admit(self, client: Client, options: ClientOptions) -> ClientMember:
        """Let a client join the group that it names, which is made if there is none.

        Raises:
            Refused: the group has other parameters or no room, or the ring is not there.
        """
        assert options.group is not None
        try:
            member = group.Member.attach(
                self._name,
                options.group,
                balance=options.balance,
                auto_ack=False,
                max_deliveries=options.max_deliveries,
                start=options.start,
                label=options.label or "gateway",
                owner=self._owner,
                topics=options.topics,
                others=options.others,
            )
        except ValueError as error:
            raise Refused(400, str(error)) from error
        except shm.RingError as error:
            raise Refused(503, str(error)) from error
        return ClientMember(self, client, member, options.in_flight)

    def joined(self, member: ClientMember) -> None:
        """This one's client can be given messages from now on."""
        self._members.append(member)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)
        self.turn_soon()

    def left(self, member: ClientMember) -> None:
        """This one is no member any more, and what it had is for the others."""
        if member in self._members:
            self._members.remove(member)
        self.turn_soon()

    def turn(self) -> None:
        """Each takes what there is for it; another one begins each time."""
        self._members.rotate(-1)
        for member in list(self._members):
            member.take()

    def turn_soon(self) -> None:
        """Once for all that ask for it."""
        if not self._turns_soon and self._members:
            self._turns_soon = True
            asyncio.get_running_loop().call_soon(self._turn_now)

    def _turn_now(self) -> None:
        self._turns_soon = False
        self.turn()

    def _look(self) -> None:
        self._timer = None
        if self._members:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)
            self.turn()


class ClientMember:
    """A client's place in a work group; made with `Members.admit`.

    Args:
        members: all of them.
        client: whose place it is.
        member: what it is in the ring; closed by `leave`.
        in_flight: how many messages that are not acknowledged the client has at most.
    """

    def __init__(
        self, members: Members, client: Client, member: group.Member, in_flight: int
    ) -> None:
        self._members = members
        self._client = client
        self._member = member
        self._in_flight = in_flight
        self._outlet: Outlet | None = None
        self._held: dict[int, group.GroupMessage] = {}  # by sequence, in the order of giving
        self._given = 0
        self._lost = 0
        self._acknowledged = 0
        self._pings: dict[bytes, int] = {}  # not answered, each with how many were given before it
        self._again: group.GroupMessage | None = None  # had before, not given yet: it goes alone
        self._alone = False  # what is held goes alone
        self._known_topics = 0
        self._takes_on = False  # as soon as its socket has taken what it was given
        self._takes_soon = False
        self._left = False

    @property
    def handed(self) -> Handed:
        """What its client has been given so far."""
        return Handed(self._given, len(self._held), self._lost)

    def begin(self, outlet: Outlet) -> None:
        """Give the client messages from now on, by this way out."""
        self._outlet = outlet
        self._members.joined(self)
        _log.info(
            "serves %s as a member of group %s", self._client.transport.peer, self._member.group
        )

    # -- giving

    def has_room(self) -> None:
        """The client's socket has taken everything."""
        if self._takes_on:
            self.take()

    def take(self) -> None:
        """Give the client what there is for it, as far as it may have more now."""
        if self._left or self._outlet is None or not self._client.is_open:
            return
        self._takes_on = self._outlet.pending > 0
        if self._takes_on or not self._may_have_more():
            self._check()
            return
        taken = self._read()
        if taken:
            self._takes_on = True
            self._held |= {message.sequence: message for message in taken}
            self._given += len(taken)
            self._lost += sum(message.gap for message in taken)
            self._give(taken)

    def _may_have_more(self) -> bool:
        if self._held and (self._alone or self._again is not None):
            return False
        return len(self._held) < self._in_flight

    def _check(self) -> None:
        """It takes nothing now; it may have been evicted meanwhile."""
        try:
            self._member.check()
        except shm.RingError as error:
            self._failed(error)

    def _read(self) -> list[group.GroupMessage]:
        """The next messages for the client; those that it has allow for one at least."""
        most = min(TURN_MESSAGES, self._in_flight - len(self._held))
        taken: list[group.GroupMessage] = []
        size = 0
        try:
            while len(taken) < most and size < TURN_BYTES:
                message, self._again = self._again or self._member.read(timeout=0), None
                if message is None:
                    break
                again = message.deliveries > 1
                if again and (taken or self._held):
                    self._again = message
                    break
                self._alone = again
                taken.append(message)
                size += len(message)
                if again:
                    break
        except shm.RingError as error:
            if not taken:  # else the next call finds it, too
                self._failed(error)
        return taken

    def _give(self, taken: list[group.GroupMessage]) -> None:
        if self._client.records:
            self._client.send_messages(_frames(self._records(taken)))
            return
        ping = os.urandom(PING_BYTES)
        self._pings[ping] = self._given
        self._client.send_messages(
            [Downward(bytes(each), each.kind == shm.Kind.TEXT) for each in taken], ping
        )

    def _records(self, taken: list[group.GroupMessage]) -> Iterator[bytes]:
        if max(message.topic for message in taken) > self._known_topics:
            rows = self._member.topics
            for row in rows[self._known_topics :]:
                yield wire.encode(
                    wire.Record(wire.RecordType.TOPIC, row.name.encode(), topic=row.topic)
                )
            self._known_topics = len(rows)
        for message in taken:
            yield wire.encode(_record(message))

    # -- what the client says

    def ponged(self, payload: bytes) -> None:
        """A pong has come. If it answers a ping of this member's, what was given before that is
        done; a pong may stand for earlier pings, too."""
        until = self._pings.get(payload)
        if until is None:
            return
        self._pings = {ping: given for ping, given in self._pings.items() if given > until}
        done = list(itertools.islice(self._held, until - self._acknowledged))
        self._acknowledged = until
        self._finish(self._held.pop(sequence) for sequence in done)

    def received(self, record: wire.Record) -> bool:
        """A record has come. False: it is none of a member's. One that is about a message that the
        client does not have any more says nothing."""
        if record.type not in (wire.RecordType.DONE, wire.RecordType.GIVE_BACK):
            return False
        message = self._held.pop(record.sequence, None)
        if message is None:
            return True
        if record.type == wire.RecordType.DONE:
            self._finish([message])
            return True
        try:
            message.nack()
        except shm.RingError as error:
            self._failed(error)
        self._members.turn_soon()
        return True

    def _finish(self, messages: Iterable[group.GroupMessage]) -> None:
        try:
            self._member.ack(messages)
        except shm.RingError as error:
            self._failed(error)
        else:
            self._take_soon()

    def _take_soon(self) -> None:
        """Once for all that one frame has said."""
        if not self._takes_soon:
            self._takes_soon = True
            asyncio.get_running_loop().call_soon(self._take_now)

    def _take_now(self) -> None:
        self._takes_soon = False
        self.take()

    # -- its end

    def _failed(self, error: shm.RingError) -> None:
        """The member can't go on: the ring has ended, or it was evicted."""
        if not isinstance(error, shm.RingClosed):
            self._client.close(CloseCode.TRY_AGAIN_LATER, f"no member any more: {error}")
        elif not self._held:
            self._client.ends_with(CloseCode.GOING_AWAY, "the manager has stopped")
            self._client.flush()

    def leave(self) -> None:
        """Give back, to others, what the client has not acknowledged. A second time does
        nothing."""
        if self._left:
            return
        self._left = True
        self._again = None
        self._held.clear()
        self._pings.clear()
        self._member.close()
        self._members.left(self)


def _record(message: group.GroupMessage) -> wire.Record:
    return wire.Record(
        wire.RecordType.MESSAGE,
        bytes(message),
        kind=message.kind,
        sequence=message.sequence,
        time_ns=message.time_ns,
        key=message.key,
        gap=message.gap,
        topic=message.topic,
        epoch=message.epoch,
        deliveries=message.deliveries,
    )


def _frames(records: Iterable[bytes]) -> Iterator[Downward]:
    """Records one after the other, as few frames as there may be."""
    frame = b""
    for record in records:
        if frame and len(frame) + len(record) > FRAME_BYTES:
            yield Downward(frame, is_text=False)
            frame = b""
        frame += record
    if frame:
        yield Downward(frame, is_text=False)

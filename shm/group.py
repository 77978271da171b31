"""Work groups: a ring's messages shared out among members, each handled by one of them.

Any number of processes join a group by name, at any time. Every message that the group wants is
handled by exactly one living member, and by another only if that one died, left, was evicted or
gave it back before acknowledging: at least once, and a message that somebody had before says so.
The group holds the ring at its oldest message that is not done; it outlives its members, and the
writer.

How a group shares out is its *balance*: "any": whoever is free takes the next; "key": messages of
one key are handled in their order, by one member at a time; "round-robin": in turn. The protocol is
in native/group.h.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final, Literal, NoReturn, Self

from . import _group
from ._endpoint import MAKING, WaitStrategy
from ._group import GroupBatch, GroupMessage, Loop, partition_of_key
from .aio import MESSAGES_A_TURN, EventBridge
from .blocks import open_ring, remove_group
from .counters import GroupStatus, SetAside
from .errors import RingError
from .names import check_name
from .waiting import Blocking

__all__ = [
    "Balance",
    "GroupBatch",
    "GroupMessage",
    "GroupStatus",
    "Member",
    "SetAside",
    "list_groups",
    "partition_of_key",
    "remove",
]

Balance = Literal["any", "key", "round-robin"]

_BALANCES: Final = {balance: number for number, balance in _group.BALANCES.items()}


class Member(_group.Member):
    """One member of a work group; made with `attach`.

    Iterating, with ``for`` or ``async for``, waits for messages and ends with the ring, once
    nothing that could come to this member is left. Threads and tasks may share a member: each
    message goes to one of them, and with balance "key" those of one key never to two at a time. A
    forked child can't use it; it attaches anew.

    With `auto_ack` asking for the next message says that the last one of the same thread or task is
    done. Leaving a loop by ``break`` or an exception, `close`, and the end of a thread or task give
    back what was in hand. Without it, each message is acknowledged with its `ack`, or given back
    with its `nack`; one that is dropped without either is given back.

    As a context manager it is closed at the end; what is still viewed stays valid until the last
    view is gone.
    """

    __slots__ = ("_bridge",)

    _bridge: EventBridge | None

    @classmethod
    def attach(
        cls,
        name: str,
        group: str,
        *,
        balance: Balance = "any",
        auto_ack: bool = True,
        max_deliveries: int | None = None,
        start: Literal["latest", "oldest"] | int = "latest",
        wait: WaitStrategy | None = None,
        label: str | None = None,
        owner: int | None = None,
        topics: Iterable[str] | None = None,
        others: bool = False,
    ) -> Self:
        """Join a group of a ring, making it if there is none of this name.

        Args:
            name: the ring's.
            group: the group's; names as for rings.
            balance: how it shares messages out; all its members say the same.
            auto_ack: whether asking for the next message acknowledges the last one.
            max_deliveries: how often a message is handed to a program before it is set aside, 1 to
                200; None: what the group has, 5 for a new one.
            start: for a new group, as `shm.broadcast.Reader.attach` has it; else ignored.
            wait: how to wait for messages; `Blocking()` by default.
            label: what to call this member in `shm.status`; the program's name by default.
            owner: user id the ring must belong to; None for the caller's own or root.
            topics: what the group wants, as `shm.broadcast.Reader.attach` has it; all its members
                say the same. Records of kind EVENT go to no member.
            others: with `topics`, whether it wants messages that have no topic, too; likewise.

        Raises:
            ValueError: a bad argument; the group has another balance or max_deliveries, or wants
                other topics; or a start that is not published yet.
            RingNotFound: there is no such ring.
            LayoutMismatch, RingCorrupt: it can't be used.
            TooManyReaders: every reader slot is taken, or the group has 256 members.
            RingError: the ring has 32 groups, or /dev/shm no room.
        """
        if isinstance(topics, str):
            raise TypeError(f"topics is a list of names and patterns: [{topics!r}]")
        check_name(group, "group")
        if balance not in _BALANCES:
            raise ValueError(f'balance is "any", "key" or "round-robin", not {balance!r}')
        if max_deliveries is not None and not 1 <= max_deliveries <= _group.DELIVERIES_MAX:
            raise ValueError(
                f"max_deliveries is from 1 to {_group.DELIVERIES_MAX}, not {max_deliveries!r}"
            )
        if start not in ("latest", "oldest") and (not isinstance(start, int) or start < 0):
            raise ValueError(f'start is "latest", "oldest" or a sequence, not {start!r}')
        check_name(name)
        member = cls.__new__(
            cls,
            MAKING,
            name,
            True,
            start,
            wait or Blocking(),
            label,
            owner,
            0,
            topics if topics is None else list(topics),
            others,
            group,
            _BALANCES[balance],
            max_deliveries or 0,
            auto_ack,
            balance,
        )
        member._bridge = None
        return member

    def subscribe(self, *topics: str) -> NoReturn:
        """Not for a group: its topics are fixed when it is made.

        Raises:
            RingError: always.
        """
        raise RingError(
            f"group {self.group!r} can't want {topics!r:.60}: its topics are fixed when it is made;"
            " attach to a group of another name"
        )

    unsubscribe = subscribe

    def __aiter__(self) -> _AsyncIteration:
        return _AsyncIteration(self, self._loop(self._hand_of(asyncio.current_task())))

    async def __anext__(self) -> GroupMessage:
        hand = self._hand_of(asyncio.current_task())
        while (message := self._take_nowait_for(hand)) is None:
            await self._wait()
        return message

    async def _wait(self) -> None:
        """Until there is reason to look again."""
        self._before_await()
        if self._bridge is None:
            self._bridge = EventBridge(self)
        await self._bridge.wait()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"slot {self.slot}"
        return f"<Member of {self.group!r} of {self.name!r} by {self.balance} {state}>"


class _AsyncIteration:
    """What ``async for message in member`` steps through. When the loop is left, and this goes,
    what it handed out last is given back."""

    __slots__ = ("_loop", "_member", "_taken")

    def __init__(self, member: Member, loop: Loop) -> None:
        self._member = member
        self._loop = loop
        self._taken = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GroupMessage:
        self._taken += 1
        if self._taken % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        while (message := self._loop.take_nowait()) is None:
            await self._member._wait()
        return message


def list_groups(name: str, *, owner: int | None = None) -> list[GroupStatus]:
    """The work groups of a ring, without disturbing them.

    Args:
        name: the ring's.
        owner: user id it must belong to; None for the caller's own or root.

    Raises:
        RingNotFound, LayoutMismatch, RingCorrupt, RingError: as attaching does.
    """
    opened = open_ring(name, owner=owner)
    with contextlib.closing(opened.endpoint):
        return _group.read_groups(opened.segments)


def remove(name: str, group: str, *, owner: int | None = None) -> None:
    """Remove a work group that has no members: what it has not done is nobody's any more, and the
    ring is not held for it.

    Args:
        name: the ring's.
        group: the group's.
        owner: user id the ring must belong to; None for the caller's own or root.

    Raises:
        RingNotFound: there is no such ring, or no such group of it.
        RingError: the group has living members: stop them first.
    """
    remove_group(name, group, owner=owner)

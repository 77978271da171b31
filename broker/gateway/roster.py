"""Who is connected to a gateway, for operators: `ringcast inspect` and `ls` show it.

The gateway writes it into a roster beside the ring (`shm.rosters`), as JSON, at most once per
second and only if something has changed. What that costs is bounded: at most 1,000 clients are
listed, those that are furthest behind, and all clients are served after every few that were listed.

Whoever reads a roster believes nothing: what has not the form that is written here is passed over.
Texts in it are the clients', so a terminal must not get them as they are.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from ringcast import shm
from ringcast.shm.rosters import Roster, read_rosters

if TYPE_CHECKING:
    from .client import Client
    from .source import Source

__all__ = ["GatewayStatus", "ListedClient", "keep_roster", "list_gateways"]

_PAUSE: Final = 1.0
"""Seconds between two rosters."""
_AT_ONCE: Final = 64
"""Clients that are written down before the gateway goes on with its work."""
_LISTED_MAX: Final = 1000
"""Bounds what a roster costs."""
_TEXT_MAX: Final = 256
"""Characters of a text; the longest path of a Unix socket has 108 bytes."""
_NUMBER_MAX: Final = 2**64 - 1
_FORM: Final = 1
"""Changes with the form of a roster. Those of another form are passed over."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListedClient:
    """A client of a gateway.

    Attributes:
        address: its HOST:PORT; over a Unix socket the path of the gateway's.
        pid: its process, over a Unix socket: 0 if that can't be seen from the gateway; else None.
        user: its user, likewise.
        label: what it calls itself, or None.
        records: it gets records; else it is a plain client.
        policy: "lossy", "block" or, of a member of a work group, "group".
        topics: how many names and patterns of topics it wants; None: every message.
        next: sequence of its next message; 0 of a member of a work group.
        lag: messages that are published and that it has not got. Of a member: messages that it has
            and has not acknowledged.
        messages, bytes: sent to it; headers count as bytes.
        lost: messages that it missed.
        waiting: its socket takes no more now.
        since_ns: when it came, Unix time.
    """

    address: str
    pid: int | None
    user: str | None
    label: str | None
    records: bool
    policy: str
    topics: int | None
    next: int
    lag: int
    messages: int
    bytes: int
    lost: int
    waiting: bool
    since_ns: int


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """A gateway, and who is connected to it; about a second old.

    Attributes:
        number: which of the ring's gateways.
        pid: its process.
        client_count: clients that are connected.
        clients: the first 1,000 of them by lag, in the order in which they came.
    """

    number: int
    pid: int
    client_count: int
    clients: tuple[ListedClient, ...]


# ---- writing ---------------------------------------------------------------------------------


async def keep_roster(name: str, source: Source, clients: Collection[Client]) -> None:
    """List the clients of a gateway until this is cancelled; then the roster is removed. Without
    one, if there can't be any, the gateway works all the same, and the log says why.

    Args:
        name: the ring's.
        source: which is at the ring's newest message.
        clients: all of them, as they are at each moment.
    """
    roster: Roster | None = None
    written, told = b"", ""
    try:
        while True:
            data = await _encode(source, clients)
            if data != written:
                try:
                    if roster is None:
                        roster = Roster.claim(name, data)
                    else:
                        roster.write(data)
                    written, told = data, ""
                except shm.RingError as error:
                    # A ring that ends just now takes its rosters with it.
                    if str(error) != told and not isinstance(error, shm.RingNotFound):
                        _log.warning("clients are not listed: %s", error)
                    told = str(error)
            await asyncio.sleep(_PAUSE)
    finally:
        if roster is not None:
            roster.remove()


async def _encode(source: Source, clients: Collection[Client]) -> bytes:
    """A whole roster; other tasks have their turn meanwhile."""
    served = [client for client in clients if client.outlet is not None]
    count, end = len(served), source.fanout.end
    if count > _LISTED_MAX:
        served = heapq.nlargest(_LISTED_MAX, served, key=lambda client: _progress(client, end).lag)
    rows = []
    for i, client in enumerate(sorted(served, key=_since), start=1):
        if client.fd >= 0:  # it may have gone meanwhile
            rows.append(json.dumps(_row(client, end)))
        if i % _AT_ONCE == 0:
            await asyncio.sleep(0)
            end = source.fanout.end
    head = json.dumps({"form": _FORM, "pid": os.getpid(), "client_count": count})
    listed = ",\n".join(rows)
    return f'{head[:-1]}, "clients": [\n{listed}]}}\n'.encode()


class _Progress(NamedTuple):
    """How far a client has come: some of the values of a `ListedClient`."""

    next: int
    lag: int
    messages: int
    lost: int


def _progress(client: Client, end: int) -> _Progress:
    outlet = client.outlet
    assert outlet is not None
    if client.member is not None:  # of the stream it gets nothing
        handed = client.member.handed
        return _Progress(0, handed.in_flight, handed.messages, handed.lost)
    return _Progress(outlet.next, max(0, end - outlet.next), outlet.messages, outlet.lost)


def _since(client: Client) -> int:
    return client.since_ns


def _row(client: Client, end: int) -> dict[str, Any]:
    """The values of a `ListedClient`."""
    outlet, options, transport = client.outlet, client.options, client.transport
    assert outlet is not None
    assert options is not None
    process = transport.process
    topics = client.topics if client.member is None else options.topics
    return {
        "address": (transport.peer if process is None else transport.local)[:_TEXT_MAX],
        "pid": None if process is None else process.pid,
        "user": None if process is None else process.user[:_TEXT_MAX],
        "label": options.label,
        "records": client.records,
        "policy": options.policy if client.member is None else "group",
        "topics": None if topics is None else len(topics),
        **_progress(client, end)._asdict(),
        "bytes": outlet.bytes_sent,
        "waiting": outlet.waits,
        "since_ns": client.since_ns,
    }


# ---- reading ---------------------------------------------------------------------------------


def list_gateways(name: str, *, owner: int | None = None) -> list[GatewayStatus]:
    """The living gateways of a ring, and who is connected to them.

    Args:
        name: the ring's.
        owner: user id of a gateway, if it is neither the caller's own nor root.
    """
    found = (_decode(each.number, each.data) for each in read_rosters(name, owner=owner))
    return [gateway for gateway in found if gateway is not None]


class _Unfit(ValueError):
    """A roster is of another form."""


def _decode(number: int, data: bytes) -> GatewayStatus | None:
    """Read a roster; None if it is none."""
    try:
        values = _Values.of(json.loads(data))
        if values.number("form") != _FORM:
            return None
        rows = values.values["clients"]
        if not isinstance(rows, list) or len(rows) > _LISTED_MAX:
            return None
        return GatewayStatus(
            number=number,
            pid=values.number("pid"),
            client_count=values.number("client_count"),
            clients=tuple(_client(_Values.of(row)) for row in rows),
        )
    except (ValueError, KeyError, RecursionError):  # _Unfit, and what is no JSON
        return None


@dataclass(frozen=True, slots=True)
class _Values:
    """The members of a JSON object. All methods raise KeyError or _Unfit."""

    values: dict[str, Any]

    @classmethod
    def of(cls, value: object) -> Self:
        if not isinstance(value, dict):
            raise _Unfit
        return cls(value)

    def number(self, key: str) -> int:
        value = self.values[key]
        if type(value) is not int or not 0 <= value <= _NUMBER_MAX:
            raise _Unfit
        return value

    def number_or_none(self, key: str) -> int | None:
        return None if self.values[key] is None else self.number(key)

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str) or len(value) > _TEXT_MAX:
            raise _Unfit
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self.values[key] is None else self.text(key)

    def truth(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise _Unfit
        return value


def _client(row: _Values) -> ListedClient:
    return ListedClient(
        address=row.text("address"),
        pid=row.number_or_none("pid"),
        user=row.text_or_none("user"),
        label=row.text_or_none("label"),
        records=row.truth("records"),
        policy=row.text("policy"),
        topics=row.number_or_none("topics"),
        next=row.number("next"),
        lag=row.number("lag"),
        messages=row.number("messages"),
        bytes=row.number("bytes"),
        lost=row.number("lost"),
        waiting=row.truth("waiting"),
        since_ns=row.number("since_ns"),
    )

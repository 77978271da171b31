"""Whom a ring's gateways serve, as `ringcast inspect` shows it: clients and message queues."""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ringcast.shm.queues import QueueStatus

from ..gateway.roster import GatewayStatus, ListedClient
from .output import age_text, new_table, size_text, state_text, visible

__all__ = ["gateway_as_json", "queue_as_json", "served_tables"]

_CLIENTS_SHOWN: Final = 50
"""Clients of all gateways that are shown to people; JSON has more."""


class _Row(NamedTuple):
    """A client, and the number of its gateway."""

    gateway: int
    client: ListedClient


def gateway_as_json(gateway: GatewayStatus) -> dict[str, Any]:
    """One gateway, for programs."""
    return dataclasses.asdict(gateway)


def queue_as_json(queue: QueueStatus, published: int) -> dict[str, Any]:
    """One message queue, for programs; `published`: next sequence of the ring."""
    return dataclasses.asdict(queue) | {"lag": _queue_lag(queue, published)}


def served_tables(
    gateways: Sequence[GatewayStatus], queues: Sequence[QueueStatus], published: int, *, wide: bool
) -> Iterator[RenderableType]:
    """All for people; a narrow table leaves out what is needed least."""
    if gateways:
        table = new_table(">gateway", ">pid", ">clients")
        for gateway in gateways:
            table.add_row(str(gateway.number), str(gateway.pid), f"{gateway.client_count:,}")
        yield table
    rows = [_Row(gateway.number, client) for gateway in gateways for client in gateway.clients]
    if rows:
        shown = heapq.nlargest(_CLIENTS_SHOWN, rows, key=lambda row: row.client.lag)
        shown.sort(key=lambda row: (row.gateway, row.client.since_ns))
        yield _clients_table(shown, wide=wide)
        more = sum(gateway.client_count for gateway in gateways) - len(shown)
        if more > 0:
            yield f"and {more:,} more, which are not further behind"
    if queues:
        yield _queues_table(queues, published)


def _clients_table(rows: Sequence[_Row], *, wide: bool) -> Table:
    wide_heads = (">bytes", "socket", ">connected") if wide else ()
    heads = (">gateway", "~client", "~user", "~label", "gets", "policy", ">topics")
    table = new_table(*heads, ">lag", ">sent", ">lost", *wide_heads)
    now_ns = time.time_ns()
    for number, client in rows:
        socket = "full" if client.waiting else "takes more"
        wide_cells = (size_text(client.bytes), socket, age_text(now_ns - client.since_ns))
        table.add_row(
            str(number),
            visible(client.address),
            visible(_user_text(client)),
            visible(client.label or ""),
            "records" if client.records else "messages",
            visible(client.policy),
            "all" if client.topics is None else f"{client.topics:,}",
            f"{client.lag:,}",
            f"{client.messages:,}",
            Text(f"{client.lost:,}", "red" if client.lost else ""),
            *(wide_cells if wide else ()),
        )
    return table


def _user_text(client: ListedClient) -> str:
    if client.user is None:
        return ""
    return f"{client.user}, pid {client.pid}" if client.pid else client.user


def _queues_table(queues: Sequence[QueueStatus], published: int) -> Table:
    heads = ("~queue", ">pid", "state", "read in Python", ">depth", ">bytes", ">lag", ">lost")
    table = new_table(*heads)
    for queue in queues:
        lag = _queue_lag(queue, published)
        table.add_row(
            visible(queue.label),
            str(queue.pid),
            state_text("active" if queue.filled else "dead"),
            "yes" if queue.read else "no",
            f"{queue.depth:,}",
            f"{queue.message_size:,}",
            "" if lag is None else f"{lag:,}",
            Text(f"{queue.lost:,}", "red" if queue.lost else ""),
        )
    return table


def _queue_lag(queue: QueueStatus, published: int) -> int | None:
    """Messages that were published after the last that is in it; None if nobody fills it, or it
    is new."""
    if not queue.filled or queue.next is None:
        return None
    return max(0, published - queue.next)

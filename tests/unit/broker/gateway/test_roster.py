"""What operators see of a gateway's clients: what is believed of a roster, and how it is shown."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from ringcast.broker.gateway.access import PeerCredentials
from ringcast.broker.gateway.options import ClientOptions
from ringcast.broker.gateway.roster import GatewayStatus, keep_roster, list_gateways
from ringcast.shm.broadcast import Writer
from ringcast.shm.rosters import Roster
from tests.conftest import DEADLINE
from tests.unit.broker.cli.conftest import HOSTILE, lines, only, parsed

CLIENT: Final[dict[str, Any]] = {
    "address": "/run/md.sock",
    "pid": 7,
    "user": "me",
    "label": None,
    "records": True,
    "policy": "block",
    "topics": None,
    "next": 10,
    "lag": 5,
    "messages": 1234,
    "bytes": 2048,
    "lost": 6,
    "waiting": False,
    "since_ns": 1_700_000_000_000_000_000,
}
GATEWAY: Final[dict[str, Any]] = {"form": 1, "pid": 99, "client_count": 1, "clients": [CLIENT]}


@pytest.fixture
def roster(ring: Writer) -> Iterator[Roster]:
    """A roster of that ring, whatever is in it."""
    roster = Roster.claim(ring.name, b"")
    yield roster
    roster.remove()


def listed(ring: Writer, roster: Roster, value: object) -> list[GatewayStatus]:
    """What is read if that is written."""
    roster.write(value if isinstance(value, bytes) else json.dumps(value).encode())
    return list_gateways(ring.name)


def test_what_is_written_is_read(ring: Writer, roster: Roster) -> None:
    (gateway,) = listed(ring, roster, GATEWAY)
    assert (gateway.number, gateway.pid, gateway.client_count) == (1, 99, 1)
    (client,) = gateway.clients
    assert {name: getattr(client, name) for name in CLIENT} == CLIENT
    assert listed(ring, roster, {**GATEWAY, "more": 1, "clients": []})[0].clients == ()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"form": 1' + b"0" * 5000 + b"}",
        [],
        {},
        {**GATEWAY, "form": 2},
        {**GATEWAY, "pid": -1},
        {**GATEWAY, "pid": True},
        {**GATEWAY, "pid": 1.5},
        {**GATEWAY, "client_count": 2**64},
        {**GATEWAY, "clients": {}},
        {**GATEWAY, "clients": [[]]},
        {**GATEWAY, "clients": [CLIENT] * 1001},
        *({**GATEWAY, "clients": [{**CLIENT, name: ["x"]}]} for name in CLIENT),
        *({**GATEWAY, "clients": [{k: CLIENT[k] for k in CLIENT if k != n}]} for n in CLIENT),
        {**GATEWAY, "clients": [{**CLIENT, "address": "x" * 257}]},
        {**GATEWAY, "clients": [{**CLIENT, "lag": None}]},
    ],
)
def test_what_is_not_believed(ring: Writer, roster: Roster, value: object) -> None:
    assert listed(ring, roster, value) == []
    assert parsed("inspect", ring.name, "--json")["gateways"] == []


def test_texts_do_not_steer_the_terminal(
    ring: Writer, roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, ring.name)
    texts = dict.fromkeys(("address", "user", "label", "policy"), "a" + HOSTILE + "\ud800")
    listed(ring, roster, {**GATEWAY, "clients": [{**CLIENT, **texts}]})
    shown = "\n".join(lines("inspect", ring.name, "--interval", "0.01"))
    assert shown.count("a\\x1b]0;owned\\x07\\x9b2J\\u202e\\r\\n\\ud800") == len(texts)
    assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown) is None
    (client,) = parsed("inspect", ring.name, "--json")["gateways"][0]["clients"]
    assert client["label"] == texts["label"]


def test_shown_to_people(ring: Writer, roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many clients, those that are furthest behind."""
    only(monkeypatch, ring.name)
    clients = [{**CLIENT, "label": f"lag{lag}", "lag": lag, "topics": 3} for lag in range(100)]
    listed(ring, roster, {**GATEWAY, "client_count": 5000, "clients": clients})
    shown = lines("inspect", ring.name, "--interval", "0.01")
    heads = next(line for line in shown if line.startswith("gateway  client")).split()
    rows = [line for line in shown if "/run/md.sock" in line]
    cells = rows[0].split()
    assert len(rows) == 50
    assert "lag99" in "".join(rows)
    assert "lag49" not in "".join(rows)
    assert heads[:4] == ["gateway", "client", "user", "label"]
    assert cells[:6] == ["1", "/run/md.sock", "me,", "pid", "7", "lag99"]
    assert cells[6:12] == ["records", "block", "3", "99", "1,234", "6"]
    assert "and 4,950 more, which are not further behind" in shown
    assert parsed("ls", "--json")[0]["clients"] == 5000
    head, row = lines("ls")
    assert head.split()[-1] == "clients"
    assert row.split()[-1] == "5,000"


def test_queues_are_not_believed_either(ring: Writer) -> None:
    path = Path(f"/dev/shm/rc.{ring.name}.q.x")
    for content in (b"", b"x" * 64, b"RCQUEUE\0" + bytes(56)):
        path.write_bytes(content)
        assert parsed("inspect", ring.name, "--json")["queues"] == []
    path.unlink()


# ---- what a gateway writes -------------------------------------------------------------------

LABEL: Final = 21 * "€"
"""As long as one can be, and longer in JSON."""


def stand_in(sequence: int) -> SimpleNamespace:
    """As much of a client as is listed, whose next message is that one."""
    return SimpleNamespace(
        fd=5,
        outlet=SimpleNamespace(next=sequence, messages=1, bytes_sent=2, lost=3, waits=True),
        options=ClientOptions(label=LABEL),
        transport=SimpleNamespace(local=108 * "/", peer="", process=PeerCredentials(7, 0, 0)),
        records=True,
        topics=None,
        member=None,
        since_ns=1,
    )


def test_what_is_listed_of_very_many_clients(ring: Writer) -> None:
    """Those that are furthest behind, a few at a time; none that is not served yet."""
    clients: Any = [stand_in(sequence) for sequence in range(3000)]
    clients.append(SimpleNamespace(outlet=None))
    source: Any = SimpleNamespace(fanout=SimpleNamespace(end=5000))
    turns = 0

    async def written() -> GatewayStatus:
        nonlocal turns
        keeping = asyncio.create_task(keep_roster(ring.name, source, clients))
        async with asyncio.timeout(DEADLINE):
            while not (found := list_gateways(ring.name)):
                turns += 1
                await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.wait([keeping])
        return found[0]

    gateway = asyncio.run(written())
    assert gateway.client_count == 3000
    assert sorted(client.lag for client in gateway.clients) == [*range(4001, 5001)]
    assert {client.label for client in gateway.clients} == {LABEL}
    assert turns >= 10
    assert list_gateways(ring.name) == []

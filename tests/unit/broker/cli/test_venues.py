"""The command `venues`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.broker.cli.conftest import executed, lines, parsed

NINE = {
    *("binance", "binance-usdm", "coinbase", "kraken", "okx"),
    *("bybit", "bitstamp", "deribit", "bitfinex"),
}


def test_all_venues_are_listed() -> None:
    listed = parsed("venues", "--json")
    assert {venue["name"] for venue in listed} == NINE
    assert all(venue["url"].startswith("wss://") for venue in listed)
    head, *rows = lines("venues")
    assert head.split()[0] == "venue"
    assert {row.split()[0] for row in rows} == NINE


def test_one_venue_is_shown() -> None:
    okx = parsed("venues", "okx", "--json")
    assert okx["names"][0] == {"form": "{channel}:{instId:upper}", "example": "trades:BTC-USDT"}
    assert okx["heartbeat"] == {"send": "ping", "every": 20}
    assert (okx["request_id"], okx["answers_clients"]) == ("/id", True)
    assert parsed("venues", "bitfinex", "--json")["answers_clients"] is False
    shown = "\n".join(lines("venues", "okx"))
    assert re.search(r"^answers_clients +yes$", shown, re.MULTILINE)
    assert "wss://ws.okx.com" in shown
    assert "trades:BTC-USDT" in shown


def test_a_bad_venue_is_reported_in_one_line(tmp_path: Path) -> None:
    code, out, err = executed("venues", "krakn")
    assert (code, out) == (1, "")
    assert err.startswith("ringcast venues: there is no venue 'krakn': did you mean kraken?")
    file = tmp_path / "mine.toml"
    file.write_text("colour = 1", "utf-8")
    code, out, err = executed("venues", str(file))
    assert (code, out) == (1, "")
    assert err.startswith(f"ringcast venues: {file}: ")
    assert err.count("\n") == 1

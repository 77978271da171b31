"""The commands `serve` and `demo`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ringcast import Config, shm
from ringcast.broker.cli import app
from ringcast.broker.config import KEYS
from ringcast.broker.exchange import demo
from ringcast.shm.broadcast import Reader
from tests.unit.broker.cli.conftest import executed, lines, run

# ---- serve ---------------------------------------------------------------------------------


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What `serve` gives to its manager, which does nothing."""
    given: list[Config] = []

    class Idle:
        def __init__(self, config: Config) -> None:
            given.append(config)

        def run(self) -> None:
            """Return at once."""

    monkeypatch.setattr("ringcast.broker.cli.serve.Manager", Idle)
    return given


def test_serve_takes_options(configured: list[Config], tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    lines(
        *("serve", "--name", "md", "--url", "wss://example.org/"),
        *("--initial-message", "one", "--initial-message", "two"),
        *("--header", "X-Key: a:b", "--header", "X-Other:c", "--proxy", "http://localhost:1"),
        *("--ca", str(pem), "--certificate", str(pem), "--private-key", str(pem)),
        *("--no-reconnect", "--ping-interval", "never", "--idle-timeout", "1.5"),
        *("--slots", "1024", "--capacity", "65536", "--max-readers", "3"),
        *("--demote-after", "9", "--evict-after", "never", "--offline-sends", "reject"),
        *("--send-rate", "10", "--drain-timeout", "0"),
        *("--listen", "unix:/run/md.sock", "--listen", "[::1]:9001"),
    )
    assert configured == [
        Config(
            name="md",
            url="wss://example.org/",
            initial_messages=["one", "two"],
            headers={"X-Key": "a:b", "X-Other": "c"},
            proxy="http://localhost:1",
            ca=pem,
            certificate=pem,
            private_key=pem,
            reconnect=False,
            ping_interval=None,
            idle_timeout=1.5,
            slots=1024,
            capacity=65536,
            max_readers=3,
            demote_after=9,
            evict_after=None,
            offline_sends="reject",
            send_rate=10,
            drain_timeout=0,
            listen=["unix:/run/md.sock", "[::1]:9001"],
        )
    ]


def test_serve_takes_a_venue(configured: list[Config]) -> None:
    lines(
        *("serve", "--name", "md", "--venue", "okx"),
        *("--subscribe", "trades:BTC-USDT", "--subscribe", "books:BTC-USDT"),
    )
    assert configured == [
        Config(name="md", venue="okx", subscribe=["trades:BTC-USDT", "books:BTC-USDT"])
    ]


def test_serve_prefers_options_to_the_file(configured: list[Config], tmp_path: Path) -> None:
    file = tmp_path / "md.toml"
    file.write_text("name = 'md'\nurl = 'ws://h'\nreconnect = false\nping_interval = 'never'")
    lines("serve", "--config", str(file))
    lines("serve", "--config", str(file), "--reconnect", "--ping-interval", "7", "--name", "other")
    first, second = configured
    assert (first.name, first.reconnect, first.ping_interval) == ("md", False, None)
    assert (second.name, second.reconnect, second.ping_interval) == ("other", True, 7.0)


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "md"],
        ["--url", "ws://h"],
        ["--name", "md", "--url", "ws://h", "--header", "no colon"],
        ["--name", "md", "--url", "ws://h", "--ping-interval", "often"],
        ["--name", "md", "--url", "ws://h", "--offline-sends", "drop"],
    ],
)
def test_serve_refuses_bad_usage(options: list[str], configured: list[Config]) -> None:
    assert run("serve", *options).exit_code == 2
    assert configured == []


def test_serve_reports_a_bad_value_in_one_line() -> None:
    code, out, err = executed("serve", "--name", "md", "--url", "http://h/")
    assert (code, out) == (1, "")
    assert err == "ringcast: url='http://h/': it must start with ws:// or wss://\n"


def test_options_of_serve_have_the_help_of_their_keys() -> None:
    command: Any = typer.main.get_command(app)
    singular = {"initial_message": "initial_messages", "header": "headers"}
    options = {singular.get(p.name, p.name): p.help for p in command.commands["serve"].params}
    named_otherwise = {"config", "log"}
    assert options.keys() - named_otherwise <= KEYS.keys()
    for name in options.keys() - named_otherwise:
        assert options[name].startswith(KEYS[name].kind.summary)


# ---- demo ----------------------------------------------------------------------------------


def test_demo_reports_what_each_worker_got(name: str) -> None:
    code, out, err = executed(
        *("demo", "--json", "--seconds", "0.5", "--workers", "2", "--rate", "2000", "--name", name)
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["ok"] is True
    assert report["sent"] > 0
    assert [worker["label"] for worker in report["workers"]] == ["worker-0", "worker-1"]
    for worker in report["workers"]:
        assert worker["received"] == worker["delivered"] == report["sent"]
        assert (worker["lost"], worker["whole"]) == (0, True)
        latency = worker["latency_us"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"]


def test_demo_has_topics_and_room_for_those_who_look_on(name: str) -> None:
    topics: set[str] = set()

    def watch(_status: shm.RingStatus) -> None:
        topics.update(row.name for row in shm.list_topics(name))
        with contextlib.ExitStack() as onlookers:
            for _ in range(8):
                onlookers.enter_context(Reader.attach(name, policy="lossy"))

    assert demo.run(name, demo.Scenario(seconds=0.5, rate=2000), 1, watch).ok
    assert {"trade:BTC-USD", "best:BTC-USD"} <= topics


def test_demo_reports_a_missing_capture_in_one_line(tmp_path: Path) -> None:
    code, out, err = executed("demo", "--capture", str(tmp_path / "none.tsv"))
    assert (code, out) == (1, "")
    assert err.startswith("ringcast demo: the server: ")
    assert err.count("\n") == 1

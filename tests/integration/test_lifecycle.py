"""A connection's life: what a worker sees and what is logged, whatever the server does."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import Manager, ManagerError, Phase, attach, shm
from ringcast.shm import broadcast
from tests.conftest import DEADLINE, Processes, eventually, leftovers

from .flood import SMALL, Flood, full, number_of
from .manager import (
    HOST,
    Peer,
    Script,
    answering,
    describe,
    is_running,
    listen,
    quick,
    sending,
    serving,
    url_of,
    watching,
)

LIMIT: Final = 0.2
"""Seconds of the waits that a test lets run out."""


def closing(code: int, reason: str, received: list[int | None]) -> Script:
    """A script: sends a message, closes, and notes what code comes back."""

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.send("hello")
        received.append(peer.close(code, reason))

    return script


# ---- how it begins -------------------------------------------------------------------------


def test_a_server_that_is_not_there_at_first_is_awaited(name: str) -> None:
    listener = socket.socket()
    listener.bind((HOST, 0))  # and does not listen: refuses
    with watching(quick(name, url_of(listener))) as watch:
        assert watch.until("reconnecting") == ["connecting 1", "reconnecting"]
        assert watch.until("reconnecting") == ["connecting 2", "reconnecting"]
        assert watch.event("reconnecting")["error"] == "cannot connect: Connection refused"
        assert watch.feed.state.last_error == "cannot connect: Connection refused"
        listener.listen()
        with serving(sending("hello"), listener=listener):
            assert watch.until("text")[-2:] == ["connected 1", "text hello"]
        assert watch.event("connected")["gap"] is False


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param("401 Unauthorized", "bad key", id="401"),
        pytest.param("403 Forbidden", "not from here", id="403"),
        pytest.param("404 Not Found", "", id="404"),
    ],
)
def test_a_refusal_that_will_not_change_stops(
    name: str, status: str, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = answering(f"HTTP/1.1 {status}\nContent-Length: {len(body)}\n\n{body}")
    with serving(answer) as server, watching(quick(name, server.url)) as watch:
        assert watch.rest() == ["connecting 1", "stopped"]
        assert server.connections == 1
    expected = f"the server answered {status}" + (f": {body}" if body else "")
    assert watch.errors == [expected]
    assert watch.event("stopped")["error"] == expected
    assert expected in caplog.text


def test_a_child_that_stops_with_an_error_says_so_and_exits_with_1(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(answering("HTTP/1.1 401 Unauthorized\nContent-Length: 0\n\n")) as server:
        manager = Manager(quick(name, server.url))
        with manager:
            assert manager.join(DEADLINE) == 1
    assert "the server answered 401 Unauthorized" in capfd.readouterr().err.splitlines()[-1]


def test_a_child_that_can_t_start_says_why_in_its_own_words(name: str) -> None:
    manager = Manager(quick(name, "ws://127.0.0.1:1/", slots=1000))
    with pytest.raises(ManagerError, match=r"^slots=1000 is not a power of two") as error:
        manager.start()
    assert error.value.__cause__ is None
    assert manager.pid is None
    with broadcast.Writer.create(name, slots=8, capacity=1024):
        manager = Manager(quick(name, "ws://127.0.0.1:1/"))
        with pytest.raises(ManagerError, match=f"ring '{name}'"):
            manager.start()


def test_a_child_that_dies_before_it_says_anything_is_not_waited_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(quick(name, "ws://127.0.0.1:1/"))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ManagerError, match="exit code 1 before it was ready"):
        manager.start()
    assert manager.pid is None


def test_a_state_is_there_as_soon_as_the_child_has_started(name: str) -> None:
    with listen() as listener, Manager(quick(name, url_of(listener))), attach(name) as feed:
        assert feed.state.phase in (Phase.STARTING, Phase.CONNECTING)


@pytest.mark.parametrize(
    ("head", "pause"),
    [
        pytest.param("429 Too Many Requests\nRetry-After: 1", 1.0, id="429"),
        pytest.param("503 Service Unavailable", 0.0, id="503"),
    ],
)
def test_a_refusal_that_may_pass_is_tried_again(name: str, head: str, pause: float) -> None:
    refuse = answering(f"HTTP/1.1 {head}\nContent-Length: 0\n\n")
    with (
        serving(refuse, sending("hello")) as server,
        watching(quick(name, server.url)) as watch,
    ):
        assert watch.until("text") == [
            *("connecting 1", "reconnecting", "connecting 2", "connected 1", "text hello")
        ]
        assert server.connections == 2
    waiting = watch.event("reconnecting")
    assert waiting["error"] == f"the server answered {head.partition(chr(10))[0]}"
    assert pause <= waiting["retry_in"] <= max(pause, 0.01)


def test_a_refusal_of_any_length_is_tried_again_and_told_in_short(name: str) -> None:
    refuse = answering(f"HTTP/1.1 503 {'A' * 300_000}\nContent-Length: 0\n\n")
    with serving(refuse, sending("hello")) as server:
        config = quick(name, server.url, capacity=1 << 20)
        with watching(config) as watch:
            assert watch.until("text")[-1] == "text hello"
            error = watch.event("reconnecting")["error"]
    assert error.startswith("the server answered 503 AAA")
    assert len(error) < 400


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_stops_and_names_its_target(name: str, status: int) -> None:
    target = "wss://elsewhere.test/feed"
    answer = answering(f"HTTP/1.1 {status} There\nLocation: {target}\nContent-Length: 0\n\n")
    with serving(answer) as server, watching(quick(name, server.url)) as watch:
        assert watch.rest() == ["connecting 1", "stopped"]
        assert server.connections == 1
    assert watch.errors == [f"the server redirects, use this as `url`: {target}"]


# ---- how it ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        pytest.param(1000, "", None, id="1000"),
        pytest.param(1001, "maintenance", None, id="1001"),
        pytest.param(1008, "policy", "the server closed with code 1008: policy", id="1008"),
        pytest.param(4000, "slow", "the server closed with code 4000: slow", id="4000"),
    ],
)
def test_a_close_is_answered_told_and_followed_by_another_connection(
    name: str, code: int, reason: str, error: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    received: list[int | None] = []
    with (
        serving(closing(code, reason, received), sending("again")) as server,
        watching(quick(name, server.url)) as watch,
    ):
        assert watch.until("text again") == [
            "connecting 1",
            "connected 1",
            "text hello",
            "closing",
            f"disconnected {code} {reason}".rstrip(),
            "reconnecting",
            "connecting 2",
            "connected 2 after a gap",
            "text again",
        ]
        state = watch.feed.state
    assert received == [code]
    assert watch.event("disconnected")["error"] == error
    assert (state.phase, state.reconnects, state.last_error) == (Phase.OPEN, 1, error)
    assert f"disconnected ring={name!r}" in caplog.text
    assert error is None or error in caplog.text


@pytest.mark.parametrize(
    ("code", "errors"),
    [
        pytest.param(1000, [], id="orderly"),
        pytest.param(1008, ["the server closed with code 1008: bye"], id="error"),
    ],
)
def test_without_reconnecting_the_manager_ends_with_the_connection(
    name: str, code: int, errors: list[str]
) -> None:
    received: list[int | None] = []
    with (
        serving(closing(code, "bye", received)) as server,
        watching(quick(name, server.url, reconnect=False)) as watch,
    ):
        assert watch.rest() == [
            *("connecting 1", "connected 1", "text hello"),
            *("closing", f"disconnected {code} bye", "stopped"),
        ]
    assert watch.errors == errors


def say_and_wait(listener: socket.socket) -> None:
    """A process: a server that sends one message and then nothing."""
    sock, _ = listener.accept()
    sending("hello")(sock)


def test_a_server_that_is_killed_is_awaited(name: str, processes: Processes) -> None:
    listener = listen()  # kept by this process, so whoever connects waits for the next server
    victim = processes.start(say_and_wait, listener)
    with watching(quick(name, url_of(listener))) as watch:
        assert watch.until("text") == ["connecting 1", "connected 1", "text hello"]
        processes.kill(victim)
        with serving(sending("again"), listener=listener):
            assert watch.until("text") == [
                "disconnected 1006",
                "reconnecting",
                "connecting 2",
                "connected 2 after a gap",
                "text again",
            ]


def test_a_reset_is_told(name: str) -> None:
    def reset(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.send("hello")
        peer.receive_messages(1)  # and all was delivered: a reset throws away what was not
        peer.reset()

    with (
        serving(reset, sending("again")) as server,
        watching(quick(name, server.url, initial_messages=("go",))) as watch,
    ):
        records = watch.until("reconnecting")
        assert records[:2] + records[-2:] == [
            *("connecting 1", "connected 1", "disconnected 1006", "reconnecting")
        ]
        assert watch.event("disconnected")["error"] == "receiving failed: Connection reset by peer"
        assert watch.until("text")[-2:] == ["connected 2 after a gap", "text again"]


def silent(sock: socket.socket) -> None:
    """A script: accepts TCP, and sends nothing."""
    while sock.recv(4096):
        pass


def test_a_server_that_never_answers_is_given_up(name: str) -> None:
    with (
        serving(silent, sending("hello")) as server,
        watching(quick(name, server.url, open_timeout=LIMIT)) as watch,
    ):
        assert watch.until("reconnecting") == ["connecting 1", "reconnecting"]
        assert watch.event("reconnecting")["error"] in (
            f"no connection within {LIMIT:g} s",
            "the server did not answer in time",
        )
        assert watch.until("text")[-1] == "text hello"


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        pytest.param(
            {"ping_interval": LIMIT, "ping_timeout": LIMIT},
            f"no pong within {LIMIT:g} s",
            id="no pong",
        ),
        pytest.param(
            {"ping_interval": None, "idle_timeout": LIMIT},
            f"the server said nothing for {LIMIT:g} s",
            id="silence",
        ),
    ],
)
def test_a_connection_that_has_gone_quiet_is_replaced(
    name: str, limits: dict[str, float | None], error: str
) -> None:
    closes: list[tuple[int | None, str]] = []
    hung_up = threading.Event()

    def hang(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.send("hello")
        assert hung_up.wait(DEADLINE)
        closes.append(peer.answer_until_end())

    with (
        serving(hang, sending("again")) as server,
        watching(quick(name, server.url, **limits)) as watch,
    ):
        assert watch.until("reconnecting") == [
            *("connecting 1", "connected 1", "text hello", "disconnected 1006", "reconnecting")
        ]
        assert watch.event("disconnected")["error"] == error
        hung_up.set()
        assert watch.until("text")[-2:] == ["connected 2 after a gap", "text again"]
        eventually(lambda: closes, "the first connection's end")
    assert closes == [(1001, error)]


@pytest.mark.parametrize("code", [1001, 1012])
def test_after_a_server_s_daily_close_everything_is_said_again(name: str, code: int) -> None:
    received: list[list[str | bytes]] = []
    days = itertools.count(1)

    def day(sock: socket.socket) -> None:
        peer = Peer(sock)
        received.append(peer.receive_messages(3))
        number = next(days)
        peer.send(*(f"{number}.{n}" for n in range(3)))
        if number < 3:
            peer.close(code, "daily")
        peer.answer_until_end()

    messages = ("subscribe é", b"\x00\xff", "login")
    with (
        serving(day) as server,
        watching(quick(name, server.url, initial_messages=messages)) as watch,
    ):
        records = watch.until("text 3.2")
        eventually(lambda: watch.feed.state.sent == 9, "the state counts what was sent")
        state = watch.feed.state
    assert received == [[*messages]] * 3
    assert [r for r in records if r.startswith(("text", "connected", "disconnected"))] == [
        *("connected 1", "text 1.0", "text 1.1", "text 1.2", f"disconnected {code} daily"),
        *("connected 2 after a gap", "text 2.0", "text 2.1", "text 2.2"),
        f"disconnected {code} daily",
        *("connected 3 after a gap", "text 3.0", "text 3.1", "text 3.2"),
    ]
    assert watch.event("connected")["silent_ns"] > 0
    assert (state.reconnects, state.epoch) == (2, 1)


def test_a_ping_measures_the_round_trip(name: str) -> None:
    with (
        serving(sending()) as server,
        watching(quick(name, server.url, ping_interval=0.05, ping_timeout=DEADLINE)) as watch,
    ):
        assert watch.until("connected")
        rtt_ns = eventually(lambda: watch.feed.state.rtt_ns, "a round trip is measured")
        assert 0 < rtt_ns < DEADLINE * 1e9


def test_a_long_message_on_a_slow_line_is_no_silence(name: str) -> None:
    """Neither is it a missing pong, which can't come before the message's end."""
    pieces = 12

    def trickle(sock: socket.socket) -> None:
        peer = Peer(sock)
        sock.sendall(b"\x81\x7e" + (pieces * 1000).to_bytes(2, "big"))
        for _ in range(pieces):
            sock.sendall(b"x" * 1000)
            threading.Event().wait(0.15)
        peer.answer_until_end()

    limits: dict[str, Any] = {"ping_interval": 0.3, "ping_timeout": 1.2, "idle_timeout": 1.2}
    with serving(trickle) as server, watching(quick(name, server.url, **limits)) as watch:
        assert watch.until("text") == [
            *("connecting 1", "connected 1", "text " + "x" * pieces * 1000)
        ]


# ---- the manager's own end -----------------------------------------------------------------


def test_sigterm_drains(name: str) -> None:
    flood = Flood()
    listener = listen()
    manager = Manager(quick(name, url_of(listener), drain_timeout=DEADLINE, **SMALL))
    with (
        manager,
        attach(name, start="oldest", events=True) as feed,
        serving(flood, listener=listener),
    ):
        assert flood.blocked.wait(DEADLINE)
        eventually(lambda: full(name), "the ring is full")
        held = shm.status(name).sequence
        assert manager.pid is not None
        os.kill(manager.pid, signal.SIGTERM)
        records = []
        with contextlib.suppress(shm.RingClosed):
            while (message := feed.read(DEADLINE)) is not None:
                records.append(describe(message))
        assert manager.join(DEADLINE) == 0
        eventually(lambda: flood.close, "the server receives the end")
    assert flood.close == (1001, "the manager stops")
    assert records[:2] == ["connecting 1", "connected 1"]
    assert records[-1] == "stopped"
    assert [number_of(r) for r in records[2:-1]] == [*range(len(records) - 3)]
    assert len(records) > held
    assert leftovers(name) == []


def test_a_second_sigterm_stops_at_once_though_a_worker_does_not_read(name: str) -> None:
    listener = listen()
    manager = Manager(quick(name, url_of(listener), drain_timeout=10 * DEADLINE, **SMALL))
    with manager, attach(name, start="oldest"):
        assert manager.pid is not None
        with serving(Flood(last=5), listener=listener):
            eventually(lambda: shm.status(name).sequence == 2 + 5, "all is published")
            os.kill(manager.pid, signal.SIGTERM)
            eventually(lambda: shm.status(name).state == "closed", "it winds up")
            assert manager.join(0) is None
            os.kill(manager.pid, signal.SIGTERM)
            assert manager.join(DEADLINE) == 0
    assert leftovers(name) == []


CLIENT: Final = """
import os, sys
from ringcast import Config, Manager
manager = Manager(Config(name=sys.argv[1], url=sys.argv[2]))
manager.start()
if sys.argv[3] == "with a worker":
    if not os.fork():
        sys.stdin.read()
        os._exit(0)
print(manager.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("worker", ["alone", "with a worker"])
def test_a_child_ends_with_its_parent_however_that_ends(name: str, worker: str) -> None:
    closes: list[tuple[int | None, str]] = []
    with serving(lambda sock: closes.append(Peer(sock).answer_until_end())) as server:
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, name, server.url, worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as client:
            assert client.stdout is not None
            pid = int(client.stdout.readline())
            feed = attach(name)
            eventually(lambda: feed.state.phase == Phase.OPEN, "the child is connected")
            feed.close()
            client.kill()
            eventually(lambda: not is_running(pid), "the child ends")
        eventually(lambda: closes, "the server receives the end")
    assert closes == [(1001, "the manager stops")]
    assert leftovers(name) == []

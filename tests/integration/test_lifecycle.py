"""A connection's life: what a worker sees and what the log says, whatever the server does."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import logging
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import Config, Manager, Phase, attach, shm
from ringcast.broker.connection import Backoff
from tests.conftest import DEADLINE, Processes, eventually, leftovers, reader_status

from .manager import (
    HOST,
    Authority,
    Peer,
    Script,
    answering,
    describe,
    is_running,
    listen,
    quick,
    serving,
    speaking,
    url_of,
    watching,
)

LIMIT: Final = 0.2
"""Seconds of the waits that a test lets run out."""


def closing(code: int, reason: str, heard: list[int | None]) -> Script:
    """A script: says something, closes, and notes what code comes back."""

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.say("hello")
        heard.append(peer.close(code, reason))

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
        with serving(speaking("hello"), listener=listener):
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
        serving(refuse, speaking("hello")) as server,
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
    with serving(refuse, speaking("hello")) as server:
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
    heard: list[int | None] = []
    with (
        serving(closing(code, reason, heard), speaking("again")) as server,
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
    assert heard == [code]
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
    heard: list[int | None] = []
    with (
        serving(closing(code, "bye", heard)) as server,
        watching(quick(name, server.url, reconnect=False)) as watch,
    ):
        assert watch.rest() == [
            *("connecting 1", "connected 1", "text hello"),
            *("closing", f"disconnected {code} bye", "stopped"),
        ]
    assert watch.errors == errors


def say_and_wait(listener: socket.socket) -> None:
    """A process: a server that says one message and then nothing."""
    sock, _ = listener.accept()
    speaking("hello")(sock)


def test_a_server_that_is_killed_is_awaited(name: str, processes: Processes) -> None:
    listener = listen()  # kept by this process, so whoever connects waits for the next server
    victim = processes.start(say_and_wait, listener)
    with watching(quick(name, url_of(listener))) as watch:
        assert watch.until("text") == ["connecting 1", "connected 1", "text hello"]
        processes.kill(victim)
        with serving(speaking("again"), listener=listener):
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
        peer.say("hello")
        peer.hear_messages(1)  # and all was delivered: a reset throws away what was not
        peer.reset()

    with (
        serving(reset, speaking("again")) as server,
        watching(quick(name, server.url, initial_messages=("go",))) as watch,
    ):
        records = watch.until("reconnecting")
        assert records[:2] + records[-2:] == [
            *("connecting 1", "connected 1", "disconnected 1006", "reconnecting")
        ]
        assert watch.event("disconnected")["error"] == "receiving failed: Connection reset by peer"
        assert watch.until("text")[-2:] == ["connected 2 after a gap", "text again"]


def silent(sock: socket.socket) -> None:
    """A script: accepts TCP, and says nothing."""
    while sock.recv(4096):
        pass


def test_a_server_that_never_answers_is_given_up(name: str) -> None:
    with (
        serving(silent, speaking("hello")) as server,
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
    told: list[tuple[int | None, str]] = []
    hung_up = threading.Event()

    def hang(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.say("hello")
        assert hung_up.wait(DEADLINE)
        told.append(peer.listen())

    with (
        serving(hang, speaking("again")) as server,
        watching(quick(name, server.url, **limits)) as watch,
    ):
        assert watch.until("reconnecting") == [
            *("connecting 1", "connected 1", "text hello", "disconnected 1006", "reconnecting")
        ]
        assert watch.event("disconnected")["error"] == error
        hung_up.set()
        assert watch.until("text")[-2:] == ["connected 2 after a gap", "text again"]
        eventually(lambda: told, "the first connection's end")
    assert told == [(1001, error)]


@pytest.mark.parametrize("code", [1001, 1012])
def test_after_a_server_s_daily_close_everything_is_said_again(name: str, code: int) -> None:
    heard: list[list[str | bytes]] = []
    days = itertools.count(1)

    def day(sock: socket.socket) -> None:
        peer = Peer(sock)
        heard.append(peer.hear_messages(3))
        number = next(days)
        peer.say(*(f"{number}.{n}" for n in range(3)))
        if number < 3:
            peer.close(code, "daily")
        peer.listen()

    say = ("subscribe é", b"\x00\xff", "login")
    with serving(day) as server, watching(quick(name, server.url, initial_messages=say)) as watch:
        records = watch.until("text 3.2")
        eventually(lambda: watch.feed.state.sent == 9, "the state counts what was said")
        state = watch.feed.state
    assert heard == [[*say]] * 3
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
        serving(speaking()) as server,
        watching(quick(name, server.url, ping_interval=0.05, ping_timeout=DEADLINE)) as watch,
    ):
        assert watch.until("connected")
        rtt_ns = eventually(lambda: watch.feed.state.rtt_ns, "a round trip is measured")
        assert 0 < rtt_ns < DEADLINE * 1e9


# ---- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


def test_a_certificate_of_a_given_authority_is_right(name: str, authority: Authority) -> None:
    with (
        serving(speaking("hello"), context=authority.context()) as server,
        watching(quick(name, server.url, ca=authority.certificate)) as watch,
    ):
        assert watch.until("text") == ["connecting 1", "connected 1", "text hello"]


@pytest.mark.parametrize(
    ("wrong", "because"),
    [
        pytest.param({"expired": True}, "certificate has expired", id="expired"),
        pytest.param(
            {"name": "other.test"}, "certificate is not valid for '127.0.0.1'", id="other name"
        ),
    ],
)
def test_a_wrong_certificate_stops(
    name: str, authority: Authority, wrong: dict[str, Any], because: str
) -> None:
    with (
        serving(speaking("hello"), context=authority.context(**wrong)) as server,
        watching(quick(name, server.url, ca=authority.certificate)) as watch,
    ):
        assert watch.rest() == ["connecting 1", "stopped"]
        assert server.connections == 1
    (error,) = watch.errors
    assert error.startswith("the server's certificate is not to be trusted")
    assert because in error


@pytest.mark.parametrize("known", [False, True], ids=["system's", "another"])
def test_an_unknown_authority_stops(
    name: str, authority: Authority, stranger: Authority, known: bool
) -> None:
    ca = stranger.certificate if known else None
    with (
        serving(speaking("hello"), context=authority.context()) as server,
        watching(quick(name, server.url, ca=ca)) as watch,
    ):
        assert watch.rest() == ["connecting 1", "stopped"]
    (error,) = watch.errors
    assert "unable to get local issuer certificate" in error


def test_a_certificate_that_is_not_checked_need_not_be_right(
    name: str, authority: Authority
) -> None:
    with (
        serving(speaking("hello"), context=authority.context("other.test", expired=True)) as server,
        watching(quick(name, server.url, verify=False)) as watch,
    ):
        assert watch.until("text")[-1] == "text hello"


def test_a_client_s_certificate_is_shown_to_a_server_that_demands_one(
    name: str, authority: Authority
) -> None:
    shown: list[object] = []

    def script(sock: socket.socket) -> None:
        assert isinstance(sock, ssl.SSLSocket)
        shown.append(sock.getpeercert())
        speaking("hello")(sock)

    context = authority.context(clients=True)
    own = authority.issue("client.test")
    with serving(script, context=context) as server:
        config = quick(name, server.url, ca=authority.certificate, certificate=own)
        with watching(config) as watch:
            assert watch.until("text")[-1] == "text hello"
    assert "client.test" in str(shown)


def test_without_a_client_s_certificate_such_a_server_is_not_reached(
    name: str, authority: Authority
) -> None:
    with (
        serving(speaking("hello"), context=authority.context(clients=True)) as server,
        watching(quick(name, server.url, ca=authority.certificate)) as watch,
    ):
        assert watch.until("reconnecting")[0] == "connecting 1"
        assert watch.event("reconnecting")["error"]


def test_the_server_name_is_asked_for_and_checked(name: str, authority: Authority) -> None:
    asked: list[str | None] = []
    context = authority.context("exchange.test")
    context.sni_callback = lambda _socket, server_name, _context: asked.append(server_name)
    with serving(speaking("hello"), context=context) as server:
        config = quick(name, server.url, ca=authority.certificate, server_name="exchange.test")
        with watching(config) as watch:
            assert watch.until("text")[-1] == "text hello"
    assert asked == ["exchange.test"]


# ---- proxies -------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A proxy for `serving`, of either kind.

    Attributes:
        login: user:password that it demands, or None.
        asked: host and port that each client asked for.
    """

    login: str | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)

    def http(self, sock: socket.socket) -> None:
        """A script: RFC 9110 section 9.3.6."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        request, *fields = head.decode().split("\r\n")
        method, target, _ = request.split(" ")
        assert method == "CONNECT"
        if self.login is not None:
            wanted = f"Proxy-Authorization: Basic {base64.b64encode(self.login.encode()).decode()}"
            if wanted not in fields:
                sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
        host, _, port = target.partition(":")
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        self._tunnel(sock, host, int(port))

    def socks5(self, sock: socket.socket) -> None:
        """A script: RFC 1928 and RFC 1929."""
        version, count = _exactly(sock, 2)
        methods = _exactly(sock, count)
        assert version == 5
        method = 2 if self.login is not None else 0
        sock.sendall(bytes((5, method if method in methods else 0xFF)))
        if method not in methods:
            return
        if self.login is not None:
            user = _exactly(sock, _exactly(sock, 2)[1]).decode()
            password = _exactly(sock, _exactly(sock, 1)[0]).decode()
            is_right = f"{user}:{password}" == self.login
            sock.sendall(bytes((1, 0 if is_right else 1)))
            if not is_right:
                return
        kind = _exactly(sock, 4)[3]
        if kind == 1:
            host = socket.inet_ntoa(_exactly(sock, 4))
        else:
            host = _exactly(sock, _exactly(sock, 1)[0]).decode()
        (port,) = struct.unpack("!H", _exactly(sock, 2))
        sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
        self._tunnel(sock, host, port)

    def _tunnel(self, sock: socket.socket, host: str, port: int) -> None:
        self.asked.append((host, port))
        with socket.create_connection((host, port), DEADLINE) as other:
            ways = {sock: other, other: sock}
            while True:
                for ready in select.select([*ways], [], [], DEADLINE)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    ways[ready].sendall(data)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


@pytest.mark.parametrize("login", [None, "user:pass%word"], ids=["open", "password"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_is_gone_through(name: str, scheme: str, login: str | None) -> None:
    proxy = Proxy(login)
    with (
        serving(speaking("hello")) as server,
        serving(proxy.http if scheme == "http" else proxy.socks5) as between,
    ):
        user = "" if login is None else login.replace("%", "%25") + "@"
        address = f"{scheme}://{user}{HOST}:{between.port}"
        with watching(quick(name, server.url, proxy=address)) as watch:
            assert watch.until("text") == ["connecting 1", "connected 1", "text hello"]
    assert proxy.asked == [(HOST, server.port)]


def test_tls_goes_through_a_proxy(name: str, authority: Authority) -> None:
    proxy = Proxy()
    with (
        serving(speaking("hello"), context=authority.context()) as server,
        serving(proxy.http) as between,
    ):
        address = f"http://{HOST}:{between.port}"
        config = quick(name, server.url, proxy=address, ca=authority.certificate)
        with watching(config) as watch:
            assert watch.until("text")[-1] == "text hello"
    assert proxy.asked == [(HOST, server.port)]


def test_a_proxy_that_wants_a_password_stops(name: str) -> None:
    with serving(Proxy("user:right").http) as between:
        address = f"http://user:wrong@{HOST}:{between.port}"
        with watching(quick(name, "ws://exchange.test/", proxy=address)) as watch:
            assert watch.rest() == ["connecting 1", "stopped"]
    (error,) = watch.errors
    assert error.startswith("the proxy refuses")
    assert "407" in error


@pytest.mark.parametrize(
    ("scheme", "script"),
    [
        pytest.param("http", answering("HTTP/1.1 502 Bad Gateway\n\n"), id="http"),
        pytest.param("socks5", Proxy("user:right").socks5, id="socks5"),
    ],
)
def test_a_proxy_that_refuses_is_told_and_tried_again(
    name: str, scheme: str, script: Script
) -> None:
    with serving(script) as between:
        address = f"{scheme}://user:wrong@{HOST}:{between.port}"
        with watching(quick(name, "ws://exchange.test/", proxy=address)) as watch:
            assert watch.until("reconnecting") == ["connecting 1", "reconnecting"]
            assert watch.event("reconnecting")["error"].startswith("the proxy refuses")
            assert watch.until("connecting") == ["connecting 2"]


# ---- the handshake's contents, and secrets -------------------------------------------------


def test_everything_configured_arrives_in_the_handshake(name: str) -> None:
    requests = []

    def script(sock: socket.socket) -> None:
        peer = Peer(sock, subprotocols=("v2.exchange", "v1.exchange"))
        requests.append(peer.request)
        peer.listen()

    with serving(script) as server:
        config = quick(
            name,
            server.url + "feed?key=value",
            headers={"X-Key": "abc", "User-Agent": "mine"},
            cookie="session=1",
            origin="https://page.test",
            subprotocols=("v9.exchange", "v1.exchange"),
        )
        with watching(config) as watch:
            watch.until("connected")
    (request,) = requests
    assert request.path == "/feed?key=value"
    headers = request.headers
    assert headers["X-Key"] == "abc"
    assert headers.get_all("User-Agent") == ["mine"]
    assert headers["Cookie"] == "session=1"
    assert headers["Origin"] == "https://page.test"
    assert headers["Host"] == f"{HOST}:{server.port}"
    assert [s.strip() for s in headers["Sec-WebSocket-Protocol"].split(",")] == [
        *("v9.exchange", "v1.exchange")
    ]
    assert watch.event("connected")["subprotocol"] == "v1.exchange"


SECRETS: Final = ("s3cret-token", "s3cret-cookie", "s3cret-key", "s3cret-login", "s3cret-pass")


def _secretive(name: str, url: str, proxy: str) -> Config:
    token, cookie, key, login, password = SECRETS
    return quick(
        name,
        f"{url}feed?key={key}",
        headers={"Authorization": f"Bearer {token}"},
        cookie=f"session={cookie}",
        initial_messages=(f'{{"login":"{login}"}}',),
        proxy=proxy.replace("://", f"://user:{password}@"),
    )


def _echo(sock: socket.socket) -> None:
    """A script: tells the client its own secrets in the reason of a close."""
    peer = Peer(sock)
    peer.hear_messages(1)
    peer.close(4001, f"not with {SECRETS[0]} and {SECRETS[1]}, {SECRETS[2]}")


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(
            f"HTTP/1.1 401 Unauthorized for {SECRETS[0]}\n\nno {SECRETS[1]} {SECRETS[2]}", id="401"
        ),
        pytest.param(
            f"HTTP/1.1 401 No\n\n{'x' * 250} {SECRETS[0] * 20} {SECRETS[1]}", id="cut within one"
        ),
        pytest.param(
            f"HTTP/1.1 302 Found\nLocation: ws://elsewhere.test/?key={SECRETS[2]}\n\n", id="302"
        ),
    ],
)
def test_secrets_stand_in_no_log_record_or_event(
    name: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="ringcast")
    proxy = Proxy(f"user:{SECRETS[4]}")
    with serving(_echo, answering(second)) as server, serving(proxy.http) as between:
        config = _secretive(name, server.url, f"http://{HOST}:{between.port}")
        with watching(config) as watch:
            records = watch.rest()
    assert [r for r in records if r.startswith("disconnected 4001")]
    said = json.dumps([watch.events, watch.errors]) + "".join(
        f"{record.getMessage()} {record.__dict__}" for record in caplog.records
    )
    assert "feed?key=***" in said
    assert [secret for secret in SECRETS if secret in said] == []


def test_a_long_message_on_a_slow_line_is_no_silence(name: str) -> None:
    """Neither is it a missing pong, which can't come before the message's end."""
    pieces = 12

    def trickle(sock: socket.socket) -> None:
        peer = Peer(sock)
        sock.sendall(b"\x81\x7e" + (pieces * 1000).to_bytes(2, "big"))
        for _ in range(pieces):
            sock.sendall(b"x" * 1000)
            threading.Event().wait(0.25)
        peer.listen()

    limits: dict[str, Any] = {"ping_interval": 0.5, "ping_timeout": 2.0, "idle_timeout": 2.0}
    with serving(trickle) as server, watching(quick(name, server.url, **limits)) as watch:
        assert watch.until("text") == [
            *("connecting 1", "connected 1", "text " + "x" * pieces * 1000)
        ]


# ---- pauses --------------------------------------------------------------------------------


def test_pauses_grow_with_full_jitter_up_to_their_bound() -> None:
    config = Config(name="x", url="ws://x/", reconnect_delay=1.0, reconnect_delay_max=10.0)
    rounds = [Backoff(config) for _ in range(300)]
    for bound in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
        pauses = [backoff.pause(None) for backoff in rounds]
        assert 0 <= min(pauses) < bound * 0.1
        assert bound * 0.9 < max(pauses) <= bound
        assert bound * 0.3 < sum(pauses) / len(pauses) < bound * 0.7  # evenly: 12 sigma
    assert {backoff.attempts for backoff in rounds} == {6}


def test_pauses_start_anew_after_a_stable_connection_only() -> None:
    config = Config(name="x", url="ws://x/", reconnect_reset_after=60.0)
    backoff = Backoff(config)
    for _ in range(2000):  # a long outage: the doubling stays finite
        assert 0 <= backoff.pause(None) <= config.reconnect_delay_max
    backoff.connected_for(59.0)
    assert backoff.attempts == 2000
    backoff.connected_for(60.0)
    assert backoff.attempts == 0
    assert backoff.pause(None) <= config.reconnect_delay


def test_a_pause_is_at_least_what_the_server_asked_for() -> None:
    backoff = Backoff(Config(name="x", url="ws://x/"))
    assert all(backoff.pause(100.0) == 100.0 for _ in range(10))


# ---- workers that do not keep up -----------------------------------------------------------

SMALL: Final = {"slots": 64, "capacity": 1 << 16}
SIZE: Final = 4000


def numbered(number: int) -> str:
    """A message that fills a small ring soon, and says which it is."""
    return f"{number:<{SIZE}}"


def number_of(told: str) -> int:
    return int(told.removeprefix("text "))


@dataclass
class Flood:
    """A script: numbers messages up until the client closes or `last` is said.

    Attributes:
        said: how many.
        blocked: set when a message could not be sent for `LIMIT` seconds.
        close: what the client closed with.
    """

    last: int | None = None
    said: int = 0
    blocked: threading.Event = field(default_factory=threading.Event)
    close: tuple[int | None, str] | None = None

    def __call__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        peer = Peer(sock)
        with contextlib.suppress(OSError):
            while self.said != self.last and not select.select([sock], [], [], 0)[0]:
                if not select.select([], [sock], [], LIMIT)[1]:
                    self.blocked.set()
                peer.say(numbered(self.said))
                self.said += 1
        self.close = peer.listen()


def full(name: str) -> bool:
    """Is there no room for another message?"""
    status = shm.status(name)
    return status.used_bytes + SIZE > status.capacity_bytes - SIZE


def test_a_worker_that_does_not_read_holds_the_server_up_and_nothing_is_lost(name: str) -> None:
    flood = Flood()
    with serving(flood) as server, watching(quick(name, server.url, **SMALL)) as watch:
        assert flood.blocked.wait(DEADLINE)
        assert full(name)
        held = flood.said
        flood.last = held + 200
        records = watch.until(f"text {held + 199}")
        assert watch.feed.lost == 0
        assert watch.feed.policy == "block"
    assert [number_of(r) for r in records if r.startswith("text")] == [*range(held + 200)]
    assert flood.said == held + 200


def test_a_worker_that_holds_the_ring_too_long_goes_on_lossy_and_is_told(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    flood = Flood()
    config_of = {**SMALL, "demote_after": LIMIT, "evict_after": None}
    with (
        serving(flood) as server,
        watching(quick(name, server.url, **config_of), label="slow") as watch,
    ):
        eventually(lambda: (s := reader_status(name)) and s.state == "demoting", "it is asked")
        assert flood.blocked.wait(DEADLINE)  # until it has stepped down, the ring stays full
        first = watch.feed.read(DEADLINE)
        assert first is not None
        eventually(lambda: (s := reader_status(name)) and not s.gating, "it has stepped down")
        held = flood.said
        eventually(lambda: flood.said > held + 2 * SMALL["slots"], "the server goes on")
        expected = first.sequence + 1
        numbers: list[int] = []
        missed = 0
        while missed == 0 or len(numbers) < 20:
            message = watch.feed.read(DEADLINE)
            assert message is not None
            assert message.sequence == expected + message.gap
            expected = message.sequence + 1
            missed += message.gap
            if message.kind == shm.Kind.TEXT:
                numbers.append(int(message.text()))
                # Sequences count the two events before the first message, too.
                assert message.sequence - numbers[-1] == 2
        assert watch.feed.lost == missed > 0
        assert watch.feed.policy == "lossy"
    assert "demoted" in caplog.text
    assert "label='slow'" in caplog.text


def stop_then_read(name: str, pipe: Connection) -> None:
    """A process: a worker that is stopped by a signal before it has read anything."""
    with attach(name, label="stopped") as feed:
        pipe.send_bytes(b"attached")
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            feed.read(DEADLINE)
        except shm.Evicted:
            pipe.send_bytes(b"evicted")


def test_a_stopped_worker_is_evicted_and_the_others_go_on(
    name: str, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    flood = Flood()
    listener = listen()
    limits = {"demote_after": LIMIT, "evict_after": LIMIT, **SMALL}
    with watching(quick(name, url_of(listener), **limits), policy="lossy") as watch:
        ours, theirs = Pipe()
        worker = processes.start(stop_then_read, name, theirs)
        assert ours.poll(DEADLINE)
        assert ours.recv_bytes() == b"attached"
        with serving(flood, listener=listener):
            eventually(lambda: "evicted" in caplog.text, "it is evicted")
            held = flood.said
            eventually(lambda: flood.said > held + 2 * SMALL["slots"], "the server goes on")
            assert watch.until("text")
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGCONT)
            assert ours.poll(DEADLINE)
            assert ours.recv_bytes() == b"evicted"
            processes.join(worker)
    assert "evicted" in caplog.text
    assert "label='stopped'" in caplog.text


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
        eventually(lambda: flood.close, "the server hears the end")
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
    told: list[tuple[int | None, str]] = []
    with serving(lambda sock: told.append(Peer(sock).listen())) as server:
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
        eventually(lambda: told, "the server hears the end")
    assert told == [(1001, "the manager stops")]
    assert leftovers(name) == []

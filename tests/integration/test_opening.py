"""Opening a connection: TLS, proxies, the handshake, and that no secret is shown."""

from __future__ import annotations

import base64
import json
import logging
import select
import socket
import ssl
import struct
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from ringcast import Config
from tests.conftest import DEADLINE

from .manager import (
    HOST,
    Authority,
    Peer,
    Script,
    answering,
    quick,
    sending,
    serving,
    watching,
)

# ---- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


def test_a_certificate_of_a_given_authority_is_right(name: str, authority: Authority) -> None:
    with (
        serving(sending("hello"), context=authority.context()) as server,
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
        serving(sending("hello"), context=authority.context(**wrong)) as server,
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
        serving(sending("hello"), context=authority.context()) as server,
        watching(quick(name, server.url, ca=ca)) as watch,
    ):
        assert watch.rest() == ["connecting 1", "stopped"]
    (error,) = watch.errors
    assert "unable to get local issuer certificate" in error


def test_a_certificate_that_is_not_checked_need_not_be_right(
    name: str, authority: Authority
) -> None:
    with (
        serving(sending("hello"), context=authority.context("other.test", expired=True)) as server,
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
        sending("hello")(sock)

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
        serving(sending("hello"), context=authority.context(clients=True)) as server,
        watching(quick(name, server.url, ca=authority.certificate)) as watch,
    ):
        assert watch.until("reconnecting")[0] == "connecting 1"
        assert watch.event("reconnecting")["error"]


def test_the_server_name_is_asked_for_and_checked(name: str, authority: Authority) -> None:
    asked: list[str | None] = []
    context = authority.context("exchange.test")
    context.sni_callback = lambda _socket, server_name, _context: asked.append(server_name)
    with serving(sending("hello"), context=context) as server:
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
        serving(sending("hello")) as server,
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
        serving(sending("hello"), context=authority.context()) as server,
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
        peer.answer_until_end()

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
    peer.receive_messages(1)
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
    shown = json.dumps([watch.events, watch.errors]) + "".join(
        f"{record.getMessage()} {record.__dict__}" for record in caplog.records
    )
    assert "feed?key=***" in shown
    assert [secret for secret in SECRETS if secret in shown] == []

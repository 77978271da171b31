"""Who comes into a gateway, by request and transport."""

from __future__ import annotations

import dataclasses
import socket
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import pytest
import websocket
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeaderValue
from websockets.http11 import Request
from websockets.server import ServerProtocol

from ringcast.broker.config import ConfigError
from ringcast.broker.config.addresses import AddressKind
from ringcast.broker.gateway.access import (
    AccessRules,
    Decision,
    Limits,
    Transport,
    check_listen,
    decide,
)
from ringcast.broker.gateway.addresses import ListenAddress, bind
from tests.conftest import DEADLINE

TOKEN = "Gz7-secret-token-Gz7"  # noqa: S105 - nobody's
OTHER_TOKEN = "another/long+token=="  # noqa: S105 - nobody's
RULES = AccessRules()
WITH_TOKENS = AccessRules(tokens=(OTHER_TOKEN, TOKEN))
TCP = Transport(AddressKind.TCP, local="127.0.0.1:9001", peer="127.0.0.1:5")
TLS = Transport(AddressKind.TCP, tls=True, local="127.0.0.1:9001", peer="127.0.0.1:5")
UNIX = Transport(AddressKind.UNIX, local="/run/md.sock", peer="pid 5 of user me")


def decision(
    *headers: tuple[str, str],
    rules: AccessRules = RULES,
    transport: Transport = TCP,
    target: str = "/",
    host: str | None = "127.0.0.1:9001",
) -> Decision:
    """What becomes of a request with these headers, and a Host that is fine."""
    all_headers = Headers()
    if host is not None:
        all_headers["Host"] = host
    for name, value in headers:
        all_headers[name] = value
    return decide(rules, Request(target, all_headers), transport)


def status(*headers: tuple[str, str], **how: Any) -> int:
    """0 for those who may come in."""
    found = decision(*headers, **how)
    assert bool(found.reason) is (found.status is not None)
    assert TOKEN not in f"{found}"
    assert found.reason.isprintable()
    return found.status or 0


# ---- Host ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:9001", "LOCALHOST.:9001", "127.0.0.1", "127.1.2.3:1"),
        *("[::1]", "[::1]:9001", "[0:0:0:0:0:0:0:1]:1", "[::ffff:127.0.0.1]:1", "127.0.0.1."),
    ],
)
def test_loopback_is_a_host(host: str) -> None:
    assert status(host=host) == 0
    assert status(host=host, transport=TLS) == 0


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:9001", "localhost.evil.example", "a.localhost"),
        *("127.0.0.1.evil.example:9001", "0.0.0.0:9001", "[::]:9001", "192.168.0.1"),
        *("[::ffff:192.168.0.1]", "localhos", "ip6-localhost"),
    ],
)
def test_rebinding_is_refused(host: str) -> None:
    found = decision(host=host)
    assert found.status == HTTPStatus.FORBIDDEN
    assert "--host" in found.reason


@pytest.mark.parametrize(
    "host",
    [
        *("", ":9001", "localhost:", "localhost:x", "localhost:99999", "user@localhost"),
        *("localhost, evil.example", "localhost evil", "localhost/", "localhost\\", "::1"),
        *("127.1", "2130706433", "0x7f000001", "localhost%00", "\u00ff", "a" * 8000, "[::1"),
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert status(host=host) == HTTPStatus.BAD_REQUEST


def test_one_host_is_sent() -> None:
    assert status(host=None) == HTTPStatus.BAD_REQUEST
    assert status(("Host", "127.0.0.1")) == HTTPStatus.BAD_REQUEST
    assert status(("host", "evil.example")) == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("given_host", "host", "transport", "accepted"),
    [
        ("md.example", "md.example", TCP, True),
        ("md.example", "MD.Example.:9001", TCP, True),
        ("MD.example.", "md.example", TCP, True),
        ("md.example:9001", "md.example:9001", TCP, True),
        ("md.example:9001", "md.example:9002", TCP, False),
        ("md.example:9001", "md.example", TCP, False),
        ("md.example:80", "md.example", TCP, True),
        ("md.example:443", "md.example", TCP, False),
        ("md.example:443", "md.example", TLS, True),
        ("md.example", "x.md.example", TCP, False),
        ("192.168.0.1", "192.168.0.1:9001", TCP, True),
        ("[2001:db8::0:1]", "[2001:DB8::1]:9001", TCP, True),
        ("md.example", "localhost", TCP, True),
    ],
)
def test_hosts_that_are_given(
    given_host: str, host: str, transport: Transport, accepted: bool
) -> None:
    rules = AccessRules(hosts=("first.example", given_host))
    expected = 0 if accepted else HTTPStatus.FORBIDDEN
    assert status(host=host, rules=rules, transport=transport) == expected


# ---- Origin ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host", "transport", "accepted"),
    [
        ("http://127.0.0.1:9001", "127.0.0.1:9001", TCP, True),
        ("http://LOCALHOST:9001", "localhost:9001", TCP, True),
        ("http://[::1]:9001", "[0:0::1]:9001", TCP, True),
        ("http://localhost", "localhost", TCP, True),
        ("http://localhost", "localhost:80", TCP, True),
        ("http://localhost:80", "localhost", TCP, True),
        ("https://localhost", "localhost:443", TLS, True),
        ("https://localhost:9001", "localhost:9001", TLS, True),
        # another scheme, host or port
        ("https://localhost:9001", "localhost:9001", TCP, False),
        ("http://localhost:9001", "localhost:9001", TLS, False),
        ("ws://localhost:9001", "localhost:9001", TCP, False),
        ("http://localhost:9001", "127.0.0.1:9001", TCP, False),
        ("http://localhost:9002", "localhost:9001", TCP, False),
        ("http://localhost", "localhost:9001", TCP, False),
        ("http://localhost:9001", "localhost", TCP, False),
        ("http://evil.example", "localhost:9001", TCP, False),
        ("http://localhost.evil.example:9001", "localhost:9001", TCP, False),
        ("null", "localhost:9001", TCP, False),
        # no origin at all
        ("", "localhost:9001", TCP, False),
        ("NULL", "localhost:9001", TCP, False),
        ("localhost:9001", "localhost:9001", TCP, False),
        ("//localhost:9001", "localhost:9001", TCP, False),
        ("http://localhost:9001/", "localhost:9001", TCP, False),
        ("http://localhost:9001?a", "localhost:9001", TCP, False),
        ("http://localhost:9001#a", "localhost:9001", TCP, False),
        ("http://a@localhost:9001", "localhost:9001", TCP, False),
        ("http://localhost:9001 http://evil.example", "localhost:9001", TCP, False),
        ("http://localhost:9001, http://evil.example", "localhost:9001", TCP, False),
        ("http://localhost%3a9001", "localhost:9001", TCP, False),
        ("http://\u00ff:9001", "localhost:9001", TCP, False),
        ("http://" + "a" * 8000, "localhost:9001", TCP, False),
    ],
)
def test_origins(origin: str, host: str, transport: Transport, accepted: bool) -> None:
    found = decision(("Origin", origin), host=host, transport=transport)
    assert found.status == (None if accepted else HTTPStatus.FORBIDDEN)
    assert accepted or "--allow-origin" in found.reason


def test_one_origin_at_most_is_sent() -> None:
    same = ("Origin", "http://127.0.0.1:9001")
    assert status(same) == 0
    assert status(same, same) == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("allowed", "origin", "accepted"),
    [
        ("https://app.example", "https://app.example", True),
        ("https://app.example", "https://APP.example:443", True),
        ("https://app.example:443", "https://app.example", True),
        ("HTTPS://App.Example", "https://app.example", True),
        ("https://app.example", "http://app.example", False),
        ("https://app.example", "https://app.example:444", False),
        ("https://app.example", "https://x.app.example", False),
        ("https://app.example", "null", False),
        ("null", "null", True),
        ("null", "http://evil.example", False),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh", True),
    ],
)
def test_origins_that_are_allowed(allowed: str, origin: str, accepted: bool) -> None:
    rules = AccessRules(origins=(allowed, "http://second.example"))
    expected = 0 if accepted else HTTPStatus.FORBIDDEN
    assert status(("Origin", origin), rules=rules) == expected
    assert status(("Origin", "http://second.example"), rules=rules) == 0


def test_an_origin_that_is_the_requests_own_does_not_help_a_wrong_host() -> None:
    origin = ("Origin", "http://evil.example:9001")
    assert status(origin, host="evil.example:9001") == HTTPStatus.FORBIDDEN


# ---- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "target", "expected"),
    [
        ([("Authorization", f"Bearer {TOKEN}")], "/", 0),
        ([("authorization", f"bearer   {TOKEN}")], "/?a=b", 0),
        ([("Authorization", f"Bearer {OTHER_TOKEN}")], "/", 0),
        ([], f"/?token={TOKEN}", 0),
        ([], f"/ws/x?a=b&token={TOKEN}&c", 0),
        ([], "/?token=another/long+token==", 0),
        ([], "/?token=another%2Flong%2Btoken%3D%3D", 0),
        ([], f"/?%74oken=%47{TOKEN[1:]}", 0),
        ([("Authorization", "Basic YTpi")], f"/?token={TOKEN}", 0),
        # none, or a wrong one
        ([], "/", 401),
        ([], "/?token=", 401),
        ([], "/?token", 401),
        ([], f"/?Token={TOKEN}", 401),
        ([], f"/{TOKEN}", 401),
        ([], f"/?token={TOKEN[:-1]}", 401),
        ([], f"/?token={TOKEN}x", 401),
        ([], f"/?token={TOKEN}%00", 401),
        ([], f"/?token={TOKEN}%20", 401),
        ([], "/?token=%ff%zz", 401),
        ([], f"/?token={TOKEN.lower()}", 401),
        ([("Authorization", "Bearer wrong")], "/", 401),
        ([("Authorization", f"Basic {TOKEN}")], "/", 401),
        ([("Authorization", TOKEN)], "/", 401),
        ([("Authorization", f"Bearer{TOKEN}")], "/", 401),
        ([("X-Authorization", f"Bearer {TOKEN}")], "/", 401),
        ([("Cookie", f"token={TOKEN}")], "/", 401),
        # malformed, or more than one
        ([("Authorization", "Bearer")], "/", 400),
        ([("Authorization", "Bearer ")], "/", 400),
        ([("Authorization", f"Bearer {TOKEN} {TOKEN}")], "/", 400),
        ([("Authorization", f"Bearer {TOKEN}\u00e4")], "/", 400),
        ([("Authorization", f"Bearer {TOKEN}")] * 2, "/", 400),
        ([("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Basic a")], "/", 400),
        ([("Authorization", f"Bearer {TOKEN}")], f"/?token={TOKEN}", 400),
        ([], f"/?token={TOKEN}&token={TOKEN}", 400),
        ([], f"/?token={TOKEN}&token=x", 400),
        ([], f"/?token={TOKEN}&%74oken={TOKEN}", 400),
        ([], "/?token=" + "a" * 8000, 401),
    ],
)
def test_tokens(headers: list[tuple[str, str]], target: str, expected: int) -> None:
    assert status(*headers, rules=WITH_TOKENS, target=target) == expected


def test_who_lacks_a_token_learns_how_to_send_it() -> None:
    missing = decision(rules=WITH_TOKENS)
    assert missing.headers == (("WWW-Authenticate", "Bearer"),)
    assert "?token=" in missing.reason
    wrong = decision(rules=WITH_TOKENS, target="/?token=wrong")
    assert wrong.headers == (("WWW-Authenticate", 'Bearer error="invalid_token"'),)


def test_without_tokens_none_is_looked_at() -> None:
    assert status(("Authorization", "Bearer x"), ("Authorization", "y"), target="/?token=") == 0


def test_a_token_does_not_help_a_page_from_elsewhere() -> None:
    target = f"/?token={TOKEN}"
    origin = ("Origin", "http://evil.example")
    assert status(origin, rules=WITH_TOKENS, target=target) == HTTPStatus.FORBIDDEN
    refused = status(host="evil.example", rules=WITH_TOKENS, target=target)
    assert refused == HTTPStatus.FORBIDDEN


# ---- transports ------------------------------------------------------------------------------


def test_over_a_unix_socket_its_permissions_decide() -> None:
    for host in (None, "evil.example", "a/b"):
        headers = (("Origin", "http://evil.example"), ("Origin", "x"))
        assert status(*headers, host=host, transport=UNIX, rules=WITH_TOKENS) == 0


@pytest.mark.parametrize("local", ["192.168.0.1:9001", "[2001:db8::1]:1", "[fe80::1%eth0]:1", ""])
def test_beyond_loopback_nobody_comes_in_without_a_token(local: str) -> None:
    transport = Transport(AddressKind.TCP, local=local)
    found = decision(transport=transport)
    assert found.status == HTTPStatus.FORBIDDEN
    assert "--token-file" in found.reason
    target = f"/?token={TOKEN}"
    assert status(transport=transport, rules=WITH_TOKENS, target=target) == 0


@pytest.mark.parametrize("local", ["[::1]:9001", "[::ffff:127.0.0.1]:9001", "127.9.9.9:1"])
def test_loopback_by_any_of_its_addresses(local: str) -> None:
    assert status(transport=Transport(AddressKind.TCP, local=local)) == 0


def test_the_transport_of_a_tcp_socket() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as accepted,
    ):
        assert Transport.of(accepted, tls=True) == Transport(
            AddressKind.TCP,
            tls=True,
            local=f"127.0.0.1:{server.getsockname()[1]}",
            peer=f"127.0.0.1:{client.getsockname()[1]}",
        )
    assert Transport.of(accepted).peer == "unknown"


def test_the_transport_of_a_unix_socket() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        found = Transport.of(ours)
    assert (found.kind, found.tls) == (AddressKind.UNIX, False)
    assert found.peer.startswith("pid ")


# ---- rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        ({"hosts": ("a b",)}, "--host 'a b'"),
        ({"hosts": ("http://h",)}, "--host"),
        ({"hosts": ("",)}, "--host"),
        ({"hosts": ("*",)}, "--host"),
        ({"origins": ("h",)}, "--allow-origin 'h': an origin is"),
        ({"origins": ("http://h/",)}, "--allow-origin"),
        ({"origins": ("*",)}, "--allow-origin"),
        ({"tokens": ("short",)}, "16 characters"),
        ({"tokens": ("with a space in its middle",)}, "visible ASCII"),
    ],
)
def test_rules_that_can_not_be(rules: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AccessRules(**rules)
    assert part in str(caught.value)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_above_0(name: str) -> None:
    assert getattr(Limits(**{name: 5}), name) == 5
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match=name):
            Limits(**{name: wrong})  # type: ignore[arg-type]


def test_the_limits_by_default() -> None:
    assert dataclasses.astuple(AccessRules().limits) == (1024, 8192, 1 << 20, 10.0)


def test_rules_show_no_token_and_do_not_change() -> None:
    assert TOKEN not in repr(WITH_TOKENS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        WITH_TOKENS.read_only = True  # type: ignore[misc]
    changed = dataclasses.replace(WITH_TOKENS, read_only=True, hosts=("h",))
    assert status(rules=changed, host="h", target=f"/?token={TOKEN}") == 0


# ---- where it may listen ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "rules", "tls", "insecure", "part"),
    [
        (["unix:/run/a"], RULES, False, False, None),
        (["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/run/a"], RULES, False, False, None),
        (["0.0.0.0:1"], RULES, False, False, "--token-file"),
        (["0.0.0.0:1"], RULES, True, True, "--token-file"),
        (["127.0.0.1:1", "[::]:1"], RULES, True, False, "--token-file"),
        (["md.example:1"], RULES, True, False, "--token-file"),
        (["0.0.0.0:1"], WITH_TOKENS, False, False, "--certificate and --private-key"),
        (["0.0.0.0:1"], WITH_TOKENS, False, False, "--insecure"),
        (["0.0.0.0:1"], WITH_TOKENS, True, False, None),
        (["0.0.0.0:1", "127.0.0.1:1"], WITH_TOKENS, False, True, None),
    ],
)
def test_where_it_may_listen(
    addresses: list[str], rules: AccessRules, tls: bool, insecure: bool, part: str | None
) -> None:
    parsed = [ListenAddress.parse(address) for address in addresses]
    if part is None:
        check_listen(rules, parsed, tls=tls, insecure=insecure)
        return
    with pytest.raises(ConfigError) as caught:
        check_listen(rules, parsed, tls=tls, insecure=insecure)
    assert part in str(caught.value)
    assert TOKEN not in str(caught.value)


# ---- whatever is sent ------------------------------------------------------------------------

VALUES = st.text() | st.sampled_from(
    [TOKEN, f"Bearer {TOKEN}", "localhost", "http://localhost", "null", "[::1", "localhost:1"]
)
HEADERS = st.tuples(st.sampled_from(["Host", "Origin", "Authorization"]), VALUES)


@given(st.lists(HEADERS, max_size=5), st.text(), st.sampled_from([TCP, TLS, UNIX]), st.booleans())
def test_a_decision_is_made_on_anything(
    headers: list[tuple[str, str]], query: str, transport: Transport, has_tokens: bool
) -> None:
    sent = Headers()
    for name, value in headers:
        try:
            sent[name] = value
        except InvalidHeaderValue:
            return
    rules = WITH_TOKENS if has_tokens else RULES
    found = decide(rules, Request(f"/?{query}", sent), transport)
    assert found.reason.isprintable()
    if transport is UNIX:
        assert found.status is None
    elif has_tokens and found.status is None:
        assert f"Bearer {TOKEN}" in sent.get_all("Authorization")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_no_other_token_is_accepted(token: str) -> None:
    accepted = status(("Authorization", f"Bearer {token}"), rules=WITH_TOKENS) == 0
    assert accepted is (token in (TOKEN, OTHER_TOKEN))


# ---- a real client ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_websocket_client_comes_in(text: str) -> None:
    """It sends an Origin of its own making."""
    try:
        listener = bind(ListenAddress.parse(text))
    except ConfigError as error:
        pytest.skip(str(error))
    protocol = ServerProtocol()
    with listener, ThreadPoolExecutor(1) as thread:
        url = f"{listener.address.url()}/ws?token={TOKEN}"
        client = thread.submit(websocket.create_connection, url, timeout=DEADLINE)
        listener.sock.settimeout(DEADLINE)
        with listener.sock.accept()[0] as accepted:
            accepted.settimeout(DEADLINE)
            while not (events := protocol.events_received()):
                protocol.receive_data(accepted.recv(4096))
            request = events[0]
            assert isinstance(request, Request)
            assert "Origin" in request.headers
            found = decide(WITH_TOKENS, request, Transport.of(accepted))
            protocol.send_response(protocol.accept(request))
            accepted.sendall(b"".join(protocol.data_to_send()))
            client.result(DEADLINE).shutdown()  # type: ignore[no-untyped-call]
    assert found == Decision()

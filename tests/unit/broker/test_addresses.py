"""Addresses that a worker attaches by, and the hosts and paths in them."""

from __future__ import annotations

import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringcast import shm
from ringcast.broker.config import ConfigError
from ringcast.broker.config.addresses import AddressKind, Authority, check_socket_path
from ringcast.broker.worker.addresses import ClientAddress

SECRET = "Gz7-secret-token-Gz7"  # noqa: S105 - nobody's


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", None),
        ("LocalHost.:80", "localhost", 80),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.0.0.1.:65535", "127.0.0.1", 65535),
        ("[::1]:9001", "::1", 9001),
        ("[0:0:0:0:0:0:0:1]", "::1", None),
        ("[2001:DB8::0:1]", "2001:db8::1", None),
        ("[::FFFF:127.0.0.1]:1", "::ffff:7f00:1", 1),
        ("my_host-1.example:1", "my_host-1.example", 1),
        ("1.example", "1.example", None),
        ("a" * 63 + ".b", "a" * 63 + ".b", None),
    ],
)
def test_authorities(text: str, host: str, port: int | None) -> None:
    parsed = Authority.parse(text)
    assert parsed.host in {host, "::ffff:127.0.0.1"}  # newer Pythons write it so
    assert parsed.port == port
    assert Authority.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "a host is"),
        ("::1", "brackets"),
        ("::1:9001", "brackets"),
        ("[::1", "brackets"),
        ("[::1]x:1", "brackets"),
        ("[]:1", "a host is"),
        ("[:::1]:1", "no IPv6 address"),
        ("[fe80::1%eth0]:1", "brackets"),
        ("[127.0.0.1]:1", "no IPv6 address"),
        ("h:", "a port is"),
        ("h:65536", "a port is"),
        ("h:-1", "a port is"),
        ("h:+1", "a port is"),
        ("h:01", "a port is"),
        ("h: 1", "a port is"),
        ("h:1\n", "a port is"),
        ("h:\u0661", "a port is"),
        (" h:1", "a host is"),
        ("h\0:1", "a host is"),
        ("h..x:1", "a host is"),
        ("h.x..", "a host is"),
        (".", "a host is"),
        ("user@h:1", "a host is"),
        ("h%2e:1", "a host is"),
        ("localhos\u1d57", "a host is"),
        ("\u212aelvin", "a host is"),
        ("a" * 64, "a host is"),
        ("a." * 127 + "a", "a host is"),
        ("127.1:80", "four numbers"),
        ("2130706433", "four numbers"),
        ("0x7f.0.0.1", "four numbers"),
        ("127.0.0.0x1", "four numbers"),
        ("0177.0.0.1", "four numbers"),
        ("127.0.0.1.1", "four numbers"),
        ("256.0.0.1", "four numbers"),
    ],
)
def test_what_is_no_authority(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Authority.parse(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST.:1", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("0.0.0.0", False),  # noqa: S104
        ("[::]", False),
        ("[::ffff:10.0.0.1]", False),
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("a.localhost", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback(text: str, loopback: bool) -> None:
    assert Authority.parse(text).is_loopback is loopback


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "starts with /"),
        ("md.sock", "starts with /"),
        ("@md", "starts with /"),
        ("//run/md.sock", "one slash"),
        ("/run/", "a folder"),
        ("/", "a folder"),
        ("/run/m\0d", "control characters"),
        ("/run/m\nd", "control characters"),
        ("/run/a?b", r"no \?"),
        ("/run/a#b", "no #"),
        ("/" + "\u00e4" * 54, "109 bytes, at most 107"),
        ("/\ud800", "not valid Unicode"),
        ("/" + "a" * 100_000, "100001 bytes"),
    ],
)
def test_paths_that_no_socket_can_have(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        check_socket_path(text)


def test_paths_of_sockets() -> None:
    for path in ("/run/md.sock", "/a%20 b\u00e4", "/" + "a" * 106, "/run/\udcff"):
        assert check_socket_path(path) == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "unix:/run/md.sock",
            ClientAddress(AddressKind.UNIX, "/run/md.sock", Authority("localhost"), "/"),
        ),
        (
            "UNIX:/run/a%20b?topics=a,b*&start=oldest",
            ClientAddress(
                AddressKind.UNIX,
                "/run/a%20b",
                Authority("localhost"),
                "/?topics=a,b*&start=oldest",
            ),
        ),
        ("ws://H", ClientAddress(AddressKind.TCP, "", Authority("h", 80), "/")),
        (
            "wss://[::1]:9001/ws/a?b=c?d",
            ClientAddress(AddressKind.TLS, "", Authority("::1", 9001), "/ws/a?b=c?d"),
        ),
        ("WSS://h?x", ClientAddress(AddressKind.TLS, "", Authority("h", 443), "/?x")),
        ("mq:md/l-1", ClientAddress(AddressKind.QUEUE, ring="md", label="l-1")),
    ],
)
def test_client_addresses(text: str, expected: ClientAddress) -> None:
    assert ":" in text  # by which `attach` knows them
    assert ClientAddress.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "give unix:"),
        ("md", "the name of a ring"),
        (":9001", "give unix:"),
        ("127.0.0.1:9001", "give unix:"),
        ("tcp://h:1", "give unix:"),
        ("http://h:1", "ws://"),
        ("unix:", "starts with /"),
        ("unix:///run/x", "one slash"),
        ("unix:/x?a b", "percent-encode"),
        ("unix:/x?a#b", "no fragment"),
        ("ws:h", "two slashes"),
        ("ws://", "a host is"),
        ("ws://:80", "a host is"),
        ("ws://h:0", "port 0"),
        ("ws://h:99999/", "a port is"),
        ("ws://h/\u00e4", "percent-encode"),
        ("ws://h/a\r\nX: y", "percent-encode"),
        ("ws://h/#a", "no fragment"),
        ("ws://me:pw@h/", "token"),
        ("mq:md", "mq:RING/LABEL"),
        ("mq:MD/a", "can't name a ring"),
        ("mq:md/", "can't name a queue"),
        ("mq:md/a/b", "can't name a queue"),
    ],
)
def test_what_is_no_client_address(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        ClientAddress.parse(text)


@pytest.mark.parametrize("name", ["md", "a-b_9"])
def test_a_rings_name_is_no_address(name: str) -> None:
    assert shm.names.check_name(name) == name
    with pytest.raises(ConfigError):
        ClientAddress.parse(name)
    with pytest.raises(ValueError, match="can't name a ring"):
        shm.names.check_name(f"{name}:{name}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"unix:/run/md.sock?token={SECRET}", "unix:/run/md.sock?token=***"),
        (f"wss://h:1/a?topics=b&token={SECRET}", "wss://h:1/a?topics=***&token=***"),
        ("ws://h/", "ws://h:80/"),
        ("unix:/run/md.sock", "unix:/run/md.sock"),
        ("mq:md/a", "mq:md/a"),
    ],
)
def test_what_is_shown_of_an_address_has_no_token(text: str, shown: str) -> None:
    address = ClientAddress.parse(text)
    assert address.shown == shown
    assert SECRET not in repr(address)


PIECES = st.sampled_from(
    [
        "unix:",
        "ws://",
        "wss://",
        "mq:",
        "/",
        "?",
        "&",
        "=",
        "#",
        "@",
        ":",
        "[",
        "]",
        "::1",
        "h",
        "%2",
    ]
) | st.text(max_size=8)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_parsing_raises_nothing_else(text: str) -> None:
    for parse in (ClientAddress.parse, Authority.parse, check_socket_path):
        with suppress(ConfigError):
            parse(text)


@given(
    st.sampled_from(["unix:/x", "unix:x", "ws://h", "ws://u@h", "ftp://h", "ws://h:0", "ws://h/ "]),
    st.sampled_from(["?token=", "?a=b&token=", "#token=", "?to%6ben="]),
    st.text(string.printable, max_size=5),
)
def test_no_error_and_no_repr_shows_a_token(start: str, parameter: str, tail: str) -> None:
    assert SECRET not in said_of(f"{start}{parameter}{SECRET}{tail}")


def said_of(text: str) -> str:
    """All that an address, or the error about it, shows."""
    try:
        address = ClientAddress.parse(text)
    except ConfigError as error:
        return str(error)
    return repr(address) + address.shown

"""Where a worker finds its messages when it can't map the ring: the addresses of a gateway.

    unix:/run/md.sock            a Unix socket; a query may follow: unix:/run/md.sock?topics=a
    ws://127.0.0.1:9001          TCP; a path and a query may follow
    wss://md.example:9001        TCP with TLS
    mq:md/LABEL                  a POSIX message queue of the ring md

A ring's name has no colon, and each of these has one: so one look tells which of them a text is.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Final, Self

from ringcast import shm

from ..config import ConfigError
from ..config.redaction import redact_target

__all__ = ["AddressKind", "Authority", "ClientAddress", "check_socket_path"]

_SOCKET_PATH_MAX: Final = 107
"""Bytes: sun_path has 108, and a NUL ends it (unix(7))."""
_PORT_MAX: Final = 65535
_NAME_MAX: Final = 253
"""Characters of a host's name (RFC 1035 section 2.3.4, without the lengths' own bytes)."""

_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(.*))?", re.DOTALL)
_LABELS: Final = re.compile(r"[0-9a-z_-]{1,63}(?:\.[0-9a-z_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A host whose last label is one is an IPv4 address or wrong (WHATWG URL, "ends in a number")."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_VISIBLE: Final = re.compile(r"[!-~]*")
_URL: Final = re.compile(r"//([^/?]*)(.*)", re.DOTALL)
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}

_EXPECTED: Final = (
    "give unix:/PATH, ws://HOST:PORT, wss://HOST:PORT, mq:RING/LABEL, or the name of a ring"
)


class AddressKind(enum.StrEnum):
    """By what messages travel."""

    UNIX = "unix"
    TCP = "tcp"
    TLS = "tls"
    QUEUE = "queue"


# ---- hosts and ports -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authority:
    """HOST or HOST:PORT, as addresses, URLs and the Host header have it (RFC 3986 section 3.2).

    Equal hosts compare equal however they were written.

    Attributes:
        host: in lower case, without brackets and without the dot that may end a name; an address in
            its shortest form.
        port: None if none was given.
    """

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it.

        Raises:
            ConfigError: it is no such thing; the error says what is expected, and not what was
                given.
        """
        bracketed = _BRACKETED.fullmatch(text)
        if bracketed is not None:
            return cls(_ipv6(bracketed[1]), _port(bracketed[2]))
        host, _, port = text.partition(":")
        if ":" in port:
            raise ConfigError("write an IPv6 address in brackets, such as [::1]:9001")
        return cls(_host(host), _port(port if len(host) < len(text) else None))

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an address; None if it is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_loopback(self) -> bool:
        """Does it mean this machine alone: 127.0.0.0/8, also mapped to IPv6, ::1, localhost?"""
        address = self.address
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return self.host == "localhost" if address is None else address.is_loopback

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not _PORT.fullmatch(text) or int(text) > _PORT_MAX:
        raise ConfigError(f"a port is a number, up to {_PORT_MAX}")
    return int(text)


def _ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ConfigError("what is in the brackets is no IPv6 address") from None


def _host(text: str) -> str:
    host = text.lower().removesuffix(".")
    # ASCII is asked of `text`: the Kelvin sign is "k" in lower case.
    if len(host) > _NAME_MAX or not text.isascii() or not _LABELS.fullmatch(host):
        raise ConfigError(
            "a host is a name of ASCII letters, digits, . and -, or an IP address (IPv6 in"
            " brackets)"
        )
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return host
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ConfigError("an IPv4 address is four numbers, such as 127.0.0.1") from None


# ---- Unix sockets ----------------------------------------------------------------------------


def check_socket_path(path: str) -> str:
    """Return `path` if a Unix socket can have it, and an address can name it.

    Raises:
        ConfigError: it can't; the error says why.
    """
    if path.startswith("//"):
        raise ConfigError("write one slash: unix:/run/md.sock")
    if not path.startswith("/"):
        raise ConfigError("a Unix socket's path starts with /, as in unix:/run/md.sock")
    if path.endswith("/"):
        raise ConfigError("a Unix socket's path names a file, not a folder")
    if _CONTROL.search(path) or "?" in path or "#" in path:
        raise ConfigError("a Unix socket's path has no control characters, no ? and no #")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise ConfigError("the path of a Unix socket is not valid Unicode") from None
    if size > _SOCKET_PATH_MAX:
        raise ConfigError(
            f"the path of a Unix socket has {size} bytes, at most {_SOCKET_PATH_MAX} fit: use a"
            " shorter one"
        )
    return path


# ---- a gateway, as its clients name it -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where to attach, other than by a ring's name. Its `repr` shows nothing of its query.

    Attributes:
        kind: UNIX, TCP (ws://), TLS (wss://) or QUEUE.
        path: of the Unix socket; else empty.
        authority: host and port, and what to send as Host; "localhost" for a Unix socket. None for
            a queue.
        target: what to ask for in the handshake: path and query, starting with a slash. It may hold
            a token: show `shown` instead. Empty for a queue.
        ring: the ring whose queue it is; else empty.
        label: of the queue; else empty.
    """

    kind: AddressKind
    path: str = ""
    authority: Authority | None = None
    target: str = field(default="", repr=False)
    ring: str = ""
    label: str = ""

    @staticmethod
    def is_address(text: str) -> bool:
        """Is it one of these, and not a ring's name?"""
        return ":" in text

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address as it is given to `attach`.

        The path of a Unix socket stands as it is: percent signs mean nothing in it. A query follows
        the first question mark, for Unix sockets, too.

        Raises:
            ConfigError: it is none; the error says what is expected, and shows no query.
        """
        scheme, colon, rest = text.partition(":")
        scheme = scheme.lower()
        if not colon or not scheme:
            raise ConfigError(f"this is no address: {_EXPECTED}")
        if scheme == "unix":
            return cls._parse_unix(rest)
        if scheme in _DEFAULT_PORTS:
            return cls._parse_url(scheme, rest)
        if scheme == "mq":
            return cls._parse_queue(rest)
        if scheme in ("http", "https"):
            raise ConfigError("write ws:// for http://, and wss:// for https://")
        raise ConfigError(f"this is no address: {_EXPECTED}")

    @classmethod
    def _parse_unix(cls, rest: str) -> Self:
        path, mark, query = rest.partition("?")
        check_socket_path(path)
        target = _check_target(f"/{mark}{query}")
        return cls(AddressKind.UNIX, path=path, authority=Authority("localhost"), target=target)

    @classmethod
    def _parse_url(cls, scheme: str, rest: str) -> Self:
        found = _URL.fullmatch(rest)
        if found is None:
            raise ConfigError(f"two slashes and a host follow {scheme}:, as in ws://127.0.0.1:9001")
        if "@" in found[1]:
            raise ConfigError(
                "a gateway knows no user and password: give a token, as ?token= at the end"
            )
        given = Authority.parse(found[1])
        port = _DEFAULT_PORTS[scheme] if given.port is None else given.port
        if port == 0:
            raise ConfigError("port 0 is none to connect to: give the one that the gateway shows")
        target = found[2] if found[2].startswith("/") else f"/{found[2]}"
        return cls(
            AddressKind.TLS if scheme == "wss" else AddressKind.TCP,
            authority=Authority(given.host, port),
            target=_check_target(target),
        )

    @classmethod
    def _parse_queue(cls, rest: str) -> Self:
        ring, slash, label = rest.partition("/")
        if not slash:
            raise ConfigError("a queue is named by its ring and its label: mq:RING/LABEL")
        try:
            shm.check_name(ring)
            shm.check_name(label, "queue")
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return cls(AddressKind.QUEUE, ring=ring, label=label)

    @property
    def shown(self) -> str:
        """The address for people to see: values of its query are hidden."""
        if self.kind is AddressKind.QUEUE:
            return f"mq:{self.ring}/{self.label}"
        target = redact_target(self.target)
        if self.kind is AddressKind.UNIX:
            return f"unix:{self.path}{target.removeprefix('/')}"
        scheme = "wss" if self.kind is AddressKind.TLS else "ws"
        return f"{scheme}://{self.authority}{target}"


def _check_target(target: str) -> str:
    if not _VISIBLE.fullmatch(target):
        raise ConfigError(
            "percent-encode spaces, control characters and all that is not ASCII in an address's"
            " path and query"
        )
    if "#" in target:
        raise ConfigError("an address has no fragment; write # as %23")
    return target

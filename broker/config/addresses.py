"""Addresses as text: hosts and ports, the paths of Unix sockets, and where a gateway listens.

They are read here, below all who use them: a manager's configuration has where its gateway listens,
a worker where to find one.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from .kinds import ConfigError

__all__ = [
    "AddressKind",
    "Authority",
    "ListenAddress",
    "check_local_addresses",
    "check_socket_path",
]

_SOCKET_PATH_MAX: Final = 107
"""Bytes: sun_path has 108, and a NUL ends it (unix(7))."""
_PORT_MAX: Final = 65535
_NAME_MAX: Final = 253
"""Characters of a host's name (RFC 1035 section 2.3.4, without the lengths' own bytes)."""
_SHOWN_MAX: Final = 120
"""Characters of a wrong address that an error shows."""

_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(.*))?", re.DOTALL)
_LABELS: Final = re.compile(r"[0-9a-z_-]{1,63}(?:\.[0-9a-z_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A host whose last label is one is an IPv4 address or wrong (WHATWG URL, "ends in a number")."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

_EXPECTED: Final = "give unix:/PATH, HOST:PORT or [IPV6]:PORT"


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


# ---- where a gateway listens -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One `--listen` address.

    Attributes:
        kind: UNIX or TCP.
        path: of the Unix socket; else empty.
        authority: host and port of TCP; port 0 stands for any free one. None for a Unix socket.
    """

    kind: AddressKind
    path: str = ""
    authority: Authority | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``unix:/PATH``, ``HOST:PORT`` or ``[IPV6]:PORT``.

        Raises:
            ConfigError: it is none of these; the error says what is expected.
        """
        try:
            scheme, colon, path = text.partition(":")
            if colon and scheme.lower() == "unix":
                return cls(AddressKind.UNIX, path=check_socket_path(path))
            return cls(AddressKind.TCP, authority=_tcp(text))
        except ConfigError as error:
            raise ConfigError(f"can't listen on {text[:_SHOWN_MAX]!r}: {error}") from None

    @property
    def is_loopback(self) -> bool:
        """Is it TCP that only this machine reaches: 127.0.0.0/8, ::1 or localhost? Other names are
        not resolved: they count as reachable."""
        return self.authority is not None and self.authority.is_loopback

    def url(self, *, tls: bool = False) -> str:
        """What clients connect to: ``ws://``, with `tls` ``wss://``, or ``unix:``."""
        if self.authority is None:
            return f"unix:{self.path}"
        return f"{'wss' if tls else 'ws'}://{self.authority}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.authority is None else str(self.authority)


def _tcp(text: str) -> Authority:
    if "//" in text:
        raise ConfigError(f"leave scheme and slashes out: {_EXPECTED}")
    if ":" not in text:
        raise ConfigError(f"it has no port: {_EXPECTED}")
    if text.startswith(":") and text.count(":") == 1:
        shown = text[: len(":65535")]
        raise ConfigError(
            f"say on which address: 127.0.0.1{shown} for this machine alone, 0.0.0.0{shown}"
            " for every network it is in (needs --token-file)"
        )
    authority = Authority.parse(text)
    if authority.port is None:
        raise ConfigError(f"it has no port: {_EXPECTED}; port 0 takes any free one")
    mapped = getattr(authority.address, "ipv4_mapped", None)
    if mapped is not None:
        raise ConfigError(f"write the IPv4 address: {mapped}:{authority.port}")
    return authority


def check_local_addresses(texts: Iterable[str]) -> None:
    """See to it that a gateway which is given nothing else can listen there: only this machine
    reaches the addresses.

    Raises:
        ConfigError: one is no address, is beyond this machine, or is there twice; the error shows
            it.
    """
    seen = set()
    for text in texts:
        address = ListenAddress.parse(text)
        if address.kind is not AddressKind.UNIX and not address.is_loopback:
            raise ConfigError(
                f"other machines reach {address}: run `ringcast gateway` by itself, which takes"
                " --token-file and --certificate, or listen on 127.0.0.1"
            )
        if address in seen:
            raise ConfigError(f"{address} is there twice: name each one once")
        seen.add(address)

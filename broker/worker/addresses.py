"""Where a worker finds its messages when it can't map the ring: the addresses of a gateway.

    unix:/run/md.sock            a Unix socket; a query may follow: unix:/run/md.sock?topics=a
    ws://127.0.0.1:9001          TCP; a path and a query may follow
    wss://md.example:9001        TCP with TLS
    mq:md/LABEL                  a POSIX message queue of the ring md

A ring's name has no colon, and each of these has one: so one look tells which of them a text is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Self

from ringcast import shm

from ..config import ConfigError
from ..config.addresses import AddressKind, Authority, check_socket_path
from ..config.redaction import redact_target

__all__ = ["AddressKind", "Authority", "ClientAddress"]

_VISIBLE: Final = re.compile(r"[!-~]*")
_URL: Final = re.compile(r"//([^/?]*)(.*)", re.DOTALL)
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}

_EXPECTED: Final = (
    "give unix:/PATH, ws://HOST:PORT, wss://HOST:PORT, mq:RING/LABEL, or the name of a ring"
)


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
            raise ConfigError(
                "it names no queue: that is mq:RING/LABEL, LABEL as in `ringcast gateway RING"
                " --queue LABEL`"
            )
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

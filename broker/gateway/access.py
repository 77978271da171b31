"""Who may come in: which hosts, pages and tokens a gateway lets through, and who a client is.

Over a Unix socket, the permissions of its file decide, and nothing else is asked. Over TCP, three
things are looked at, in this order.

* Host: the name of this machine for itself, or one that was given. A page of another site can make
  its own name mean 127.0.0.1 (DNS rebinding), but its browser then sends that name.
* Origin: a browser sends from which site a page is, and the page can't change it. A page may come
  in if it was loaded from where it connects to, or if its site was given. Programs send nothing, or
  where they connect to.
* The token, if there are any: ``Authorization: Bearer TOKEN`` (RFC 6750 section 2.1), or
  ``?token=TOKEN`` for browsers, which can't set headers.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self, TypeVar

from ..config import ConfigError
from ..config.addresses import AddressKind, Authority
from .addresses import ListenAddress
from .options import parameters

if TYPE_CHECKING:
    from websockets.http11 import Request

__all__ = [
    "AccessRules",
    "Decision",
    "Limits",
    "PeerCredentials",
    "Transport",
    "check_listen",
    "decide",
    "peer_credentials",
    "read_tokens",
]

_TOKEN_MIN: Final = 16
"""Characters: what is shorter can be guessed."""
_TOKEN_FILE_MAX: Final = 1 << 20
"""Bytes."""
_OTHERS: Final = 0o077
"""Permissions of a file that are not its owner's."""

_VISIBLE: Final = re.compile(r"[!-~]+")
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr](?: +(.*))?", re.DOTALL)
_ORIGIN: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@]+)", re.DOTALL)
_T = TypeVar("_T")

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NULL_ORIGIN: Final = "null"
"""Of a page without a site: a file, a frame in a sandbox (RFC 6454 section 6.1)."""

_CREDENTIALS: Final = struct.Struct("iII")
"""struct ucred (unix(7)): pid, uid, gid."""


# ---- the rules -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients can cost at most.

    Attributes:
        clients: at once.
        header_bytes: of a handshake's request, all of it.
        message_bytes: of a message that a client sends.
        handshake_seconds: from connecting to the end of the handshake, that of TLS included.
    """

    clients: int = 1024
    header_bytes: int = 8192
    message_bytes: int = 1 << 20
    handshake_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("clients", "header_bytes", "message_bytes", "handshake_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: give a number above 0")


class _Site(NamedTuple):
    """An origin (RFC 6454 section 4): where a page was loaded from."""

    scheme: str
    authority: Authority

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``SCHEME://HOST`` or ``SCHEME://HOST:PORT``.

        Raises:
            ConfigError: it is none.
        """
        found = _ORIGIN.fullmatch(text)
        if found is None:
            raise ConfigError("an origin is SCHEME://HOST or SCHEME://HOST:PORT, or null")
        scheme = found[1].lower()
        return cls(scheme, _with_port(scheme, Authority.parse(found[2])))


def _scheme(tls: bool) -> str:
    """That of a page which is loaded in the same way."""
    return "https" if tls else "http"


def _with_port(scheme: str, authority: Authority) -> Authority:
    """`authority` with the port that it has by default, if it names none."""
    if authority.port is not None:
        return authority
    return Authority(authority.host, _DEFAULT_PORTS.get(scheme))


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Whom a gateway lets in, and what clients may do. Its `repr` shows no token.

    Attributes:
        tokens: any of them lets a client in over TCP; empty: none is asked for.
        hosts: names and addresses that clients may use for this machine besides loopback's, as HOST
            (with any port) or HOST:PORT.
        origins: sites whose pages may come in, as SCHEME://HOST or SCHEME://HOST:PORT, or "null".
        read_only: clients may not send messages.
        limits: what clients can cost.

    Raises:
        ConfigError: a host or an origin is none, or a token can't be one.
    """

    tokens: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    read_only: bool = False
    limits: Limits = field(default_factory=Limits)
    _digests: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _authorities: frozenset[Authority] = field(init=False, repr=False, compare=False)
    _sites: frozenset[_Site] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for token in self.tokens:
            fault = _token_fault(token)
            if fault is not None:
                raise ConfigError(f"a token can't be used: {fault}")
        sites = [origin for origin in self.origins if origin != _NULL_ORIGIN]
        derived = {
            "_digests": tuple(_digest(token.encode()) for token in self.tokens),
            "_authorities": frozenset(_given("--host", Authority.parse, self.hosts)),
            "_sites": frozenset(_given("--allow-origin", _Site.parse, sites)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def allows_host(self, host: Authority) -> bool:
        """May a client call this machine so? `host` has its port, also where it is the default."""
        return host.is_loopback or not self._authorities.isdisjoint((host, Authority(host.host)))

    def allows_origin(self, origin: str, host: Authority, *, tls: bool) -> bool:
        """May a page of this origin come in, that connects to `host`, by TLS or without?"""
        if origin == _NULL_ORIGIN:
            return _NULL_ORIGIN in self.origins
        try:
            site = _Site.parse(origin)
        except ConfigError:
            return False
        return site in self._sites or site == _Site(_scheme(tls), host)

    def allows_token(self, token: bytes) -> bool:
        """Is it one of the tokens? The time that it takes says nothing about them."""
        # Digests have one length: comparing those of unequal lengths would show the tokens'.
        digest = _digest(token)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _given(option: str, parse: Callable[[str], _T], texts: Iterable[str]) -> Iterator[_T]:
    for text in texts:
        try:
            yield parse(text)
        except ConfigError as error:
            raise ConfigError(f"{option} {text!r}: {error}") from None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


# ---- the decision ----------------------------------------------------------------------------


class _Socket(Protocol):
    """What is asked of a socket; asyncio's are no `socket.socket`."""

    @property
    def family(self) -> int: ...
    def getsockname(self) -> Any: ...
    def getpeername(self) -> Any: ...
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Transport:
    """How a client is connected.

    Attributes:
        kind: UNIX or TCP.
        tls: is it encrypted?
        local: HOST:PORT that it connected to, or the path of the Unix socket.
        peer: for the log: its HOST:PORT, or process and user; "unknown" once it is gone.
        process: of a client over a Unix socket; None for others, and once it is gone.
    """

    kind: AddressKind
    tls: bool = False
    local: str = ""
    peer: str = ""
    process: PeerCredentials | None = None

    @classmethod
    def of(cls, sock: _Socket, *, tls: bool = False) -> Self:
        """That of an accepted socket."""
        is_unix = sock.family == socket.AF_UNIX
        kind = AddressKind.UNIX if is_unix else AddressKind.TCP
        try:
            local = _place(sock.getsockname())
            process = peer_credentials(sock) if is_unix else None
            peer = _place(sock.getpeername()) if process is None else str(process)
        except OSError:  # reset meanwhile
            return cls(kind, tls, peer="unknown")
        return cls(kind, tls, local, peer, process)


def _place(name: Any) -> str:
    """What a socket says of one of its ends."""
    if isinstance(name, tuple):
        return str(Authority(*name[:2]))
    return os.fsdecode(name)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a client may come in.

    Attributes:
        status: that of the HTTP answer which refuses it; None if it may come in.
        reason: why it is refused, for the answer's body and the log; it shows no token.
        headers: what to add to that answer.
    """

    status: HTTPStatus | None = None
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """Ends the examination of a request."""

    def __init__(self, status: HTTPStatus, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.decision = Decision(status, reason, headers)


def decide(rules: AccessRules, request: Request, transport: Transport) -> Decision:
    """May the client come in that sent this request for a handshake?"""
    if transport.kind is AddressKind.UNIX:
        return Decision()
    try:
        _check_reach(rules, transport)
        host = _check_host(rules, request, transport)
        _check_origin(rules, request, host, transport)
        _check_token(rules, request)
    except _Refused as refused:
        return refused.decision
    return Decision()


def _check_reach(rules: AccessRules, transport: Transport) -> None:
    """`check_listen` sees to it at the start, by the addresses as they were given; this by where
    the client really came in."""
    if rules.tokens:
        return
    try:
        is_loopback = Authority.parse(transport.local).is_loopback
    except ConfigError:
        is_loopback = False
    if not is_loopback:
        raise _Refused(
            HTTPStatus.FORBIDDEN,
            "this gateway has no tokens, so it serves this machine alone: start it with"
            " --token-file",
        )


def _single(request: Request, name: str) -> str | None:
    values = request.headers.get_all(name)
    if len(values) > 1:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"the header {name} is there twice: send it once")
    return values[0] if values else None


def _check_host(rules: AccessRules, request: Request, transport: Transport) -> Authority:
    value = _single(request, "Host")
    try:
        host = _with_port(_scheme(transport.tls), Authority.parse(value or ""))
    except ConfigError:
        raise _Refused(
            HTTPStatus.BAD_REQUEST, "send the header Host: HOST or HOST:PORT, as in the URL"
        ) from None
    if not rules.allows_host(host):
        raise _Refused(
            HTTPStatus.FORBIDDEN,
            f"this gateway is not known as {host.host!r}: connect to a loopback address, or start"
            " it with --host and that name",
        )
    return host


def _check_origin(
    rules: AccessRules, request: Request, host: Authority, transport: Transport
) -> None:
    origin = _single(request, "Origin")
    if origin is not None and not rules.allows_origin(origin, host, tls=transport.tls):
        raise _Refused(
            HTTPStatus.FORBIDDEN,
            "pages of this Origin may not come in: start the gateway with --allow-origin and it",
        )


def _check_token(rules: AccessRules, request: Request) -> None:
    if not rules.tokens:
        return
    given = [parameter.data for parameter in parameters(request.path) if parameter.name == "token"]
    bearer = _BEARER.fullmatch(_single(request, "Authorization") or "")
    if bearer is not None:
        if not _VISIBLE.fullmatch(bearer[1] or ""):
            raise _Refused(HTTPStatus.BAD_REQUEST, "send Authorization: Bearer TOKEN")
        given.append(bearer[1].encode())
    if len(given) > 1:
        raise _Refused(
            HTTPStatus.BAD_REQUEST,
            "send the token once, as Authorization: Bearer TOKEN or as ?token=TOKEN",
        )
    if not given:
        raise _Refused(
            HTTPStatus.UNAUTHORIZED,
            "send a token, as Authorization: Bearer TOKEN or as ?token=TOKEN",
            ("WWW-Authenticate", "Bearer"),
        )
    if not rules.allows_token(given[0]):
        raise _Refused(
            HTTPStatus.UNAUTHORIZED,
            "this token is not one of the gateway's",
            ("WWW-Authenticate", 'Bearer error="invalid_token"'),
        )


# ---- at the start ----------------------------------------------------------------------------


def check_listen(
    rules: AccessRules,
    addresses: Sequence[ListenAddress],
    *,
    tls: bool = False,
    insecure: bool = False,
) -> None:
    """See to it that nobody comes in from other machines without a token, and that nobody on the
    way reads the token.

    Args:
        rules: whom the gateway lets in.
        addresses: where it is to listen.
        tls: does it have a certificate?
        insecure: did the user say that it needs none?

    Raises:
        ConfigError: an address can't be listened on so; the error names the options.
    """
    for address in addresses:
        if address.kind is AddressKind.UNIX or address.is_loopback:
            continue
        if not rules.tokens:
            raise ConfigError(
                f"other machines reach {address}: give --token-file, so that only those come in"
                " who have a token, or listen on 127.0.0.1"
            )
        if not (tls or insecure):
            raise ConfigError(
                f"other machines reach {address}: give --certificate and --private-key, so that"
                " nobody on the way reads tokens and messages, or say --insecure"
            )


def read_tokens(path: str | Path) -> tuple[str, ...]:
    """Read a file of tokens: one per line. Empty lines are passed over, and those that start with
    ``#``.

    Raises:
        ConfigError: it can't be read, is no regular file, others than its owner may touch it, it is
            neither this user's nor root's, it has no token, or one that can't be used; the error
            shows no token.
    """
    try:
        data = _read_private(path)
    except OSError as error:
        raise ConfigError(f"token file {str(path)!r}: {error.strerror or error}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"token file {str(path)!r} is not UTF-8") from None
    tokens: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        fault = _token_fault(token)
        if fault is not None:
            raise ConfigError(f"token file {str(path)!r}, line {number}: {fault}")
        tokens[token] = None
    if not tokens:
        raise ConfigError(f"token file {str(path)!r} has no token: write one per line")
    return tuple(tokens)


def _token_fault(token: str) -> str | None:
    if len(token) < _TOKEN_MIN:
        return f"a token has {_TOKEN_MIN} characters at least: make one with `openssl rand -hex 32`"
    if not _VISIBLE.fullmatch(token):
        return "a token has visible ASCII characters only, no spaces; a comment has its own line"
    return None


def _read_private(path: str | Path) -> bytes:
    """What a file holds that only its owner may touch."""
    shown = str(path)
    # Not blocking: a FIFO would wait for somebody who writes it.
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL in it
        raise ConfigError(f"token file {shown!r} can't be the path of a file") from None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"token file {shown!r} is no regular file")
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"token file {shown!r} belongs to another user: copy it, or chown it to"
                f" {_user_name(os.geteuid())}"
            )
        if found.st_mode & _OTHERS:
            raise ConfigError(f"others may touch token file {shown!r}: chmod 600 it")
        if found.st_size > _TOKEN_FILE_MAX:
            raise ConfigError(f"token file {shown!r} is longer than {_TOKEN_FILE_MAX} bytes")
        with os.fdopen(os.dup(file), "rb") as opened:
            return opened.read(_TOKEN_FILE_MAX)
    finally:
        os.close(file)


# ---- who a client is -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """The process at the other end of a Unix socket, as it was when it connected.

    Attributes:
        pid: 0 if it can't be seen from here.
        uid: its user.
        gid: its group.
    """

    pid: int
    uid: int
    gid: int

    @property
    def user(self) -> str:
        """The user's name, or number if there is none."""
        return _user_name(self.uid)

    def __str__(self) -> str:
        return f"pid {self.pid} of user {self.user}"


def peer_credentials(sock: _Socket) -> PeerCredentials:
    """Who is at the other end of a Unix socket (SO_PEERCRED in unix(7)).

    Raises:
        OSError: the kernel doesn't say.
    """
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return PeerCredentials(*_CREDENTIALS.unpack(data))


@functools.lru_cache(maxsize=256)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

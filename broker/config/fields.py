"""What one manager is told to do: checked when it is made, and silent about its secrets.

A `Config` is made in code, or from a TOML file whose keys are its fields. What is secret (whatever
came from an environment variable, credentials, header values, the query of the URL) is known to be
so from the start, also in a child process that got the configuration through a pipe: `repr`, errors
and `shown_url` do not show it, and `redact` takes it out of anybody else's text.
"""

from __future__ import annotations

import base64
import difflib
import itertools
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self
from urllib.parse import unquote, unquote_plus, urlsplit

from ringcast import shm

__all__ = ["Config", "ConfigError"]

_HIDDEN: Final = "***"
_REDACTED_MIN: Final = 4
"""Characters. Shorter secrets are left in other people's text: taking out each "1" tells nothing
apart any more."""
_SECONDS_MAX: Final = 1_000_000
"""Any wait must fit poll(), which counts milliseconds in 31 bits."""

_SECRET_KEYS: Final = ("initial_messages", "headers", "cookie", "private_key_password")
_FILES: Final = ("ca", "certificate", "private_key")
_FLAGS: Final = ("verify", "reconnect")
_COUNTS: Final = (
    *("slots", "capacity", "max_readers", "mode"),
    *("max_senders", "send_buffer_bytes", "send_burst"),
)
_BYTES: Final = ("capacity", "send_buffer_bytes")
_MAY_BE_ZERO: Final = ("reconnect_reset_after", "drain_timeout")
_MAY_BE_NEVER: Final = ("ping_interval", "idle_timeout", "demote_after", "evict_after")
_SECONDS: Final = (
    *("open_timeout", "close_timeout", "reconnect_delay", "reconnect_delay_max", "ping_timeout"),
    *_MAY_BE_ZERO,
    *_MAY_BE_NEVER,
)
_OPTIONAL_TEXTS: Final = ("cookie", "origin", "proxy", "private_key_password", "server_name")
_TYPES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    **dict.fromkeys(("name", "url"), ((str,), "text")),
    **dict.fromkeys(
        ("initial_messages", "subprotocols"), ((tuple,), "a list of texts (in code: a tuple)")
    ),
    "headers": ((Mapping,), "a table of texts"),
    **dict.fromkeys(_OPTIONAL_TEXTS, ((str, type(None)), "text")),
    **dict.fromkeys(_FILES, ((Path, type(None)), "a path (in code: a pathlib.Path)")),
    **dict.fromkeys(_FLAGS, ((bool,), "true or false")),
    **dict.fromkeys(_COUNTS, ((int,), "a whole number")),
    **dict.fromkeys(_SECONDS, ((int, float), "a number of seconds")),
    "send_rate": ((int, float, type(None)), "a number of messages a second"),
    "max_in_flight": ((int, type(None)), "a number of messages"),
    "offline_sends": ((str,), "text"),
    **dict.fromkeys(
        _MAY_BE_NEVER, ((int, float, type(None)), 'a number of seconds, or "never" (in code: None)')
    ),
}

_PROXIES: Final = ("http", "socks4", "socks4a", "socks5", "socks5h")
_OWNED_HEADERS: Final = re.compile(r"host|upgrade|connection|sec-websocket-.*", re.IGNORECASE)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
_HOST_NAME: Final = re.compile(r"[0-9A-Za-z_:-][0-9A-Za-z_:.-]{0,252}")
_VISIBLE: Final = re.compile(r"[!-~]+")
_URL: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?P<user>[^/?#]*)@)?[^/?#@]*[^?#]*(?:\?(?P<query>[^#]*))?"
)
_QUERY_VALUE: Final = re.compile(r"(?:^|&)(?:[^&=]*=)?([^&]*)")
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMG]iB)?")
_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MODE: Final = re.compile(r"(?:0o?)?([0-7]{3})")


class ConfigError(ValueError):
    """A configuration that can't be used: which key, and what would be right. Holds no secret."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Config:
    """What one manager needs to know. All times are in seconds; None stands for never.

    Attributes:
        name: the ring's, 1 to 20 of a-z, 0-9, _ and -; workers attach by it.
        url: where to connect, ws:// or wss://, in ASCII and without a fragment.
        initial_messages: messages sent after each connect, in order: subscriptions, a login. A str
            is sent as text, bytes as binary.
        headers: further headers of the handshake. Those it makes itself are refused.
        cookie: value of the Cookie header.
        origin: value of the Origin header; None leaves it to the WebSocket library.
        subprotocols: offered to the server, the preferred one first.
        proxy: http://, socks4://, socks4a://, socks5:// or socks5h://, with user:password@ if the
            proxy asks for it; None connects directly.
        ca: PEM file of the authorities to trust in place of the system's.
        certificate: PEM file of the client's certificate chain.
        private_key: PEM file of its key; None if that is in the certificate's file.
        private_key_password: for a key that is encrypted.
        server_name: name that is asked for (SNI) and that the certificate must have; None for the
            URL's host. For a server reached by an address or through a tunnel.
        verify: check the server's certificate. False lets anybody in between read and write.
        open_timeout: for all of connecting: TCP, proxy, TLS and handshake. 10, since a server
            that needs longer is better tried again.
        close_timeout: for the server's half of the closing handshake (RFC 6455 section 7.1.1).
        reconnect: connect again when the connection is lost; False ends the manager instead.
        reconnect_delay: longest pause before the first new attempt; doubled for each further one.
            0.5, for a lost connection is mostly one server's restart.
        reconnect_delay_max: longest pause of all. 30, well below the limits of servers that count
            attempts.
        reconnect_reset_after: a connection that has lasted so long starts the pauses anew. 60, so
            that one that is accepted and dropped at once is not hammered.
        ping_interval: pause between pings, which measure the round trip and find dead connections.
            20, below the idle limits of common proxies.
        ping_timeout: a ping not answered for so long means that the connection is lost.
        idle_timeout: so does receiving nothing at all for so long. None, for only the user knows
            how quiet the stream may be.
        slots: messages that the ring holds, a power of two.
        capacity: bytes of payload that the ring holds, a power of two. 64 MiB.
        max_readers: workers that can be attached at once.
        mode: permissions of the ring, 0o600 or 0o640.
        demote_after: readers that keep the ring full for so long are asked to become lossy. None:
            they hold up everybody.
        evict_after: a reader that does not answer that for so long loses its hold on the ring.
        drain_timeout: how long to wait at the end for readers to take what is left.
        max_senders: workers that can send at once.
        send_buffer_bytes: what each can have sent and not yet handed to the socket, a power of
            two. A longer message goes through in parts.
        offline_sends: what becomes of workers' messages while there is no connection: "buffer"
            keeps them, as many as fit into each one's buffer, for the next one; "reject" raises
            SendRejected in the sender.
        send_rate: messages a second to the server, pings and pongs included; None for no limit.
            Below what the server allows: those who send too fast are cut off.
        send_burst: messages at once after a pause.
        max_in_flight: messages that each worker may have sent and that are not yet handed to the
            socket. None: 2 while `send_rate` is set, so that nobody's message waits for more than
            two of each other worker's; else no limit.

    Raises:
        ConfigError: a value is of the wrong type, out of range or contradicts another one, or a
            file can't be read. The ring's sizes and mode are checked when the ring is made.
    """

    name: str
    url: str
    initial_messages: tuple[str | bytes, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    cookie: str | None = None
    origin: str | None = None
    subprotocols: tuple[str, ...] = ()
    proxy: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    private_key_password: str | None = None
    server_name: str | None = None
    verify: bool = True
    open_timeout: float = 10.0
    close_timeout: float = 2.0
    reconnect: bool = True
    reconnect_delay: float = 0.5
    reconnect_delay_max: float = 30.0
    reconnect_reset_after: float = 60.0
    ping_interval: float | None = 20.0
    ping_timeout: float = 10.0
    idle_timeout: float | None = None
    slots: int = 65536
    capacity: int = 64 << 20
    max_readers: int = 64
    mode: int = 0o600
    demote_after: float | None = 5.0
    evict_after: float | None = 5.0
    drain_timeout: float = 5.0
    max_senders: int = 64
    send_buffer_bytes: int = 65536
    offline_sends: str = "buffer"
    send_rate: float | None = None
    send_burst: int = 1
    max_in_flight: int | None = None
    # By key, what its ${VAR}s were replaced by. A field, so that `dataclasses.replace` and the
    # checks know it; not a key of files or options.
    _expanded: Mapping[str, Iterable[str]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Check everything; the types first, since the other checks and `redact` rely on them."""
        self._check_types()
        # A copy that nobody can change: what was checked is what is used.
        object.__setattr__(self, "headers", MappingProxyType(dict(self.headers)))
        self._check_addresses()
        self._check_handshake()
        self._check_tls()
        self._check_times()
        self._check_uplink()

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Self:
        """Read a TOML file whose top-level keys are the fields of this class.

        ``${VAR}`` in any text is replaced from the environment, ``$${`` is a literal ``${``.
        "never" stands for None, `mode` may be "0600", sizes may be text such as "64MiB", and
        relative paths start at the file's folder.

        Args:
            path: the file.
            options: fields that take precedence over the file's, as the constructor has them: not
                expanded, and paths relative to the working directory.

        Raises:
            ConfigError: the file can't be read, or holds what can't be used.
        """
        path = Path(path)
        table = _read_toml(path)
        _refuse_unknown((*table, *options))
        expanded: dict[str, list[str]] = {}
        values = dict(options)
        for key, value in table.items():
            if key not in options:
                values[key] = _from_toml(key, _expand(key, value, expanded), path.parent)
        for key in ("name", "url"):
            if key not in values:
                raise ConfigError(f"{key} is missing: give it in {path} or as an option")
        return cls(**values, _expanded=expanded)

    def as_json(self) -> str:
        """All of it, **secrets included**, for `from_json` in a child process. For a pipe: not for
        a file, a command line or an environment variable, where others can read it."""
        values = {key: getattr(self, key) for key in _KEYS}
        values["initial_messages"] = [_say_as_json(said) for said in self.initial_messages]
        values["headers"] = dict(self.headers)
        values |= {key: values[key] and str(values[key]) for key in _FILES}
        values["_expanded"] = {key: list(texts) for key, texts in self._expanded.items()}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `as_json` wrote; nothing is expanded again, what was secret still is.

        Raises:
            ConfigError: `text` is something else, or a file is gone since.
        """
        values = _read_json(text)
        expanded = values.pop("_expanded")
        _refuse_unknown(values)
        values["initial_messages"] = tuple(map(_say_from_json, values["initial_messages"]))
        values["subprotocols"] = tuple(values["subprotocols"])
        values |= {key: values[key] and Path(values[key]) for key in _FILES}
        return cls(**values, _expanded=expanded)

    @property
    def shown_url(self) -> str:
        """The URL for people to see: without user and password, and with ``***`` for the values of
        its query and for what came from the environment."""
        found = _URL.match(self.url)
        hidden = [*_find(self._long_secrets() | set(self._expanded.get("url", ())), self.url)]
        if found is None:
            return _HIDDEN
        if found["query"] is not None:
            start = found.start("query")
            hidden += (
                (start + value.start(1), start + value.end(1))
                for value in _QUERY_VALUE.finditer(found["query"])
            )
        if found["user"] is None:
            return _mask(self.url, hidden)
        return _mask(self.url, hidden, dropped=(found.start("user"), found.end("user") + 1))

    def redact(self, text: str) -> str:
        """`text` with ``***`` in place of every secret of four characters or more, also where it is
        percent-encoded. For log lines and for the errors of other libraries."""
        return _mask(text, _find(self._long_secrets(), text))

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{key}={self._display(key)}' for key in _KEYS)})"

    def _display(self, key: str) -> str:
        """The value of `key` for people to see. Redacted before quoting, which would escape."""
        value = getattr(self, key)
        if key == "url":
            return repr(self.shown_url)
        if key == "headers":
            return repr({self.redact(name): _HIDDEN for name in value})
        if value is None or value == ():
            return repr(value)
        if key in _SECRET_KEYS or key in self._expanded:
            return _HIDDEN
        if key == "proxy":
            value = re.sub("(?s)//.*@", "//", value)
        if isinstance(value, str | Path):
            return repr(self.redact(str(value)))
        if isinstance(value, tuple):
            return repr(tuple(map(self.redact, value)))
        return self.redact(oct(value) if key == "mode" else repr(value))

    def _wrong(self, key: str, right: str) -> ConfigError:
        """An error that shows the value, unless something of it is or may be secret. A URL that is
        not well formed may have its password anywhere."""
        value = getattr(self, key)
        unclear = key in ("url", "proxy") and any(mark in value for mark in "@?#")
        if unclear or key in self._expanded or key in _SECRET_KEYS:
            return ConfigError(f"{key} (its value is not shown): {right}")
        shown = repr(self.redact(value)) if key == "url" else self._display(key)
        return ConfigError(f"{key}={shown}: {right}")

    def _secrets(self) -> Iterator[str]:
        for texts in self._expanded.values():
            yield from texts
        yield from self.headers.values()
        for name, value in self.headers.items():
            if name.lower() in ("authorization", "proxy-authorization"):
                yield value.partition(" ")[2]
        if self.cookie is not None:
            yield self.cookie
            yield from (pair.partition("=")[2] for pair in self.cookie.split("; "))
        if self.private_key_password is not None:
            yield self.private_key_password
        for address in (self.url, self.proxy or ""):
            for text in _address_secrets(address):
                yield from (text, unquote(text), unquote_plus(text))

    def _long_secrets(self) -> set[str]:
        return {secret for secret in self._secrets() if len(secret) >= _REDACTED_MIN}

    def _check_types(self) -> None:
        """Without showing values: until the types are right, nobody knows what is secret."""
        for key, (allowed, right) in _TYPES.items():
            value = getattr(self, key)
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise ConfigError(f"{key} is to be {right}, not {type(value).__name__}")
        for key, parts, element in (
            ("initial_messages", self.initial_messages, (str, bytes)),
            ("subprotocols", self.subprotocols, (str,)),
            ("headers", (*self.headers, *self.headers.values()), (str,)),
        ):
            for part in parts:
                if not isinstance(part, element):
                    raise ConfigError(f"{key} is to hold texts, not {type(part).__name__}")

    def _check_addresses(self) -> None:
        try:
            shm.check_name(self.name)
        except ValueError:
            right = "use 1 to 20 of a-z, 0-9, _ and -, starting with a letter or digit"
            raise self._wrong("name", right) from None
        self._check_address("url", ("ws", "wss"))
        if "#" in self.url:
            raise self._wrong("url", "a WebSocket URL has no fragment; write # as %23")
        if self.proxy is not None:
            self._check_address("proxy", _PROXIES)
            if re.search("[/?#]", self.proxy.partition("://")[2].removesuffix("/")):
                raise self._wrong(
                    "proxy", "nothing may follow the port; in a password, percent-encode / ? #"
                )

    def _check_address(self, key: str, schemes: tuple[str, ...]) -> None:
        text = getattr(self, key)
        if not _VISIBLE.fullmatch(text):
            raise self._wrong(
                key, "percent-encode spaces, control characters and all that is not ASCII"
            )
        if text.partition("://")[0] not in schemes or "://" not in text:
            raise self._wrong(key, f"it is to start with {' or '.join(f'{s}://' for s in schemes)}")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:  # its message may quote the password
            host, port = None, None
        if not host or port == 0:
            raise self._wrong(
                key,
                "it has no valid host and port: SCHEME://HOST or SCHEME://HOST:PORT, port 1 to"
                " 65535; in a password, percent-encode / ? # @",
            )

    def _check_handshake(self) -> None:
        for name, value in self.headers.items():
            if not _TOKEN.fullmatch(name):
                raise ConfigError(
                    "headers: a name (not shown) is empty or has characters other than letters,"
                    " digits and !#$%&'*+-.^_`|~"
                )
            if _OWNED_HEADERS.fullmatch(name):
                raise ConfigError(
                    f"headers: {self.redact(name)!r} is made by the handshake; leave it out"
                    " (subprotocols has a key of its own)"
                )
            if name.lower() in ("cookie", "origin") and getattr(self, name.lower()) is not None:
                raise ConfigError(f"headers: {name.lower()} is given twice, here and as a key")
            if not _HEADER_VALUE.fullmatch(value):
                raise ConfigError(
                    f"headers: the value of {self.redact(name)!r} (not shown) has a line break or"
                    " another control character"
                )
        for key in ("cookie", "origin"):
            value = getattr(self, key)
            if value is not None and not (value and _HEADER_VALUE.fullmatch(value)):
                raise self._wrong(key, "it is empty, or has a line break or control character")
        if not all(map(_TOKEN.fullmatch, self.subprotocols)):
            raise self._wrong("subprotocols", "use letters, digits and !#$%&'*+-.^_`|~ only")
        if len(set(self.subprotocols)) < len(self.subprotocols):
            raise self._wrong("subprotocols", "name each one once")
        for number, said in enumerate(self.initial_messages, 1):
            if isinstance(said, str) and re.search("[\ud800-\udfff]", said):
                raise ConfigError(
                    f"initial_messages: message {number} (not shown) is not valid Unicode"
                )

    def _check_tls(self) -> None:
        used = [key for key in ("ca", "certificate", "server_name") if getattr(self, key)]
        used += [] if self.verify else ["verify"]
        if used and not self.url.startswith("wss://"):
            raise self._wrong(used[0], "it is for TLS, but url starts with ws://; use wss://")
        for key in ("private_key", "private_key_password"):
            if getattr(self, key) is not None and self.certificate is None:
                raise self._wrong(key, "it needs certificate, the file it belongs to")
        if self.server_name is not None and not _HOST_NAME.fullmatch(self.server_name):
            raise self._wrong("server_name", "give a host name, without scheme and port")
        for key in _FILES:
            path = getattr(self, key)
            if path is None:
                continue
            try:
                found = path.is_file()
            except OSError as error:
                raise self._wrong(key, f"cannot look at it: {error.strerror}") from None
            if not found:
                raise self._wrong(key, "there is no such file")
            if not os.access(path, os.R_OK):
                raise self._wrong(key, "this user can't read the file; change its permissions")

    def _check_times(self) -> None:
        for key in _SECONDS:
            value = getattr(self, key)
            if value is None:
                continue
            zero = key in _MAY_BE_ZERO
            if not (0 <= value <= _SECONDS_MAX) or (value == 0 and not zero):
                right = f"give seconds {'from' if zero else 'above'} 0, up to {_SECONDS_MAX}"
                raise self._wrong(key, right)
            object.__setattr__(self, key, float(value))
        if self.reconnect_delay_max < self.reconnect_delay:
            raise self._wrong(
                "reconnect_delay_max", "it is below reconnect_delay; raise it or lower that"
            )
        if self.evict_after is not None and self.demote_after is None:
            raise self._wrong(
                "evict_after",
                "only readers that were asked to step down are evicted; set demote_after as well,"
                ' or both to "never" (in code: None)',
            )

    def _check_uplink(self) -> None:
        if self.offline_sends not in ("buffer", "reject"):
            raise self._wrong("offline_sends", 'it is "buffer" or "reject"')
        if self.send_rate is not None and not 0 < self.send_rate <= 1e6:
            raise self._wrong("send_rate", "give messages a second, above 0 and up to 1000000")
        if self.send_burst < 1:
            raise self._wrong("send_burst", "give a number of messages, 1 or more")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise self._wrong("max_in_flight", "give a number of messages, 1 or more")


_KEYS: Final = tuple(part.name for part in fields(Config) if part.name != "_expanded")


def _refuse_unknown(keys: Iterable[str]) -> None:
    for key in keys:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            raise ConfigError(f"there is no key {key!r}: {hint}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}; save it as such") from None
    except ValueError as error:  # TOMLDecodeError, or an absurd number
        where = re.search(r"\(at [^()]*\)$", str(error))  # the rest may quote the file
        raise ConfigError(f"{path} is not valid TOML {where[0] if where else ''}") from None


def _expand(key: str, value: Any, expanded: dict[str, list[str]]) -> Any:
    """`value` with its variables replaced; what they were replaced by is noted in `expanded`."""
    if isinstance(value, list):
        return [_expand(key, part, expanded) for part in value]
    if isinstance(value, dict):
        return {name: _expand(key, part, expanded) for name, part in value.items()}
    if not isinstance(value, str):
        return value

    def replacement(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        variable = found[1]
        if variable is None:
            raise ConfigError(f"{key}: write ${{NAME}} for a variable, or $${{ for a literal ${{")
        if variable not in os.environ:
            raise ConfigError(f"{key}: the environment variable {variable} is not set")
        expanded.setdefault(key, []).append(os.environ[variable])
        return os.environ[variable]

    return _VARIABLE.sub(replacement, value)


def _from_toml(key: str, value: Any, folder: Path) -> Any:
    """What stands for `value` in code; types that TOML should not have there are left as they are,
    for the check of all types."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    if key in _FILES:
        return folder / value
    if key in _MAY_BE_NEVER and value == "never":
        return None
    if key == "mode":
        mode = _MODE.fullmatch(value)
        if mode is None:
            raise ConfigError('mode (its text is not shown): write it as "0600" or "0640"')
        return int(mode[1], 8)
    if key in _COUNTS:
        size = _SIZE.fullmatch(value)
        if size is None or (size[2] and key not in _BYTES):
            right = '"64MiB" (KiB, MiB, GiB) or "65536"' if key in _BYTES else '"65536"'
            raise ConfigError(f"{key} (its text is not shown): write it like {right}")
        return int(size[1]) * _UNITS[size[2]]
    return value


def _read_json(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not {*_KEYS, "_expanded"} <= values.keys():
        raise ConfigError("this is not what Config.as_json wrote: pass its text on unchanged")
    return values


def _say_as_json(said: str | bytes) -> str | dict[str, str]:
    return said if isinstance(said, str) else {"base64": base64.b64encode(said).decode("ascii")}


def _say_from_json(said: str | dict[str, str]) -> str | bytes:
    return said if isinstance(said, str) else base64.b64decode(said["base64"], validate=True)


def _address_secrets(address: str) -> Iterator[str]:
    """User, password and the values of the query, as they are written in a URL."""
    found = _URL.match(address)
    if found is None:
        return
    if found["user"]:
        yield found["user"]
        user, _, password = found["user"].partition(":")
        yield from (user, password)
    if found["query"]:
        yield from _QUERY_VALUE.findall(found["query"])


def _find(secrets: Iterable[str], text: str) -> Iterator[tuple[int, int]]:
    """Where any of `secrets` stands in `text`, also with any of its characters percent-encoded.
    A lookahead, and one secret at a time: they may overlap, and none may keep another one shown."""
    for secret in secrets:
        if secret:
            for found in re.finditer(f"(?=({_pattern(secret)}))", text):
                yield found.span(1)


def _pattern(secret: str) -> str:
    """A regular expression for `secret`, in which each character may be percent-encoded."""
    parts = []
    for character in secret:
        encoded = character.encode("utf-8", "surrogatepass").hex("%")
        plus = r"|\+" if character == " " else ""
        parts.append(f"(?:(?i:%{encoded})|{re.escape(character)}{plus})")
    return "".join(parts)


def _mask(text: str, hidden: Iterable[tuple[int, int]], dropped: tuple[int, int] = (0, 0)) -> str:
    """`text` with ``***`` for each stretch of `hidden` spans, and without the `dropped` one."""
    fate = bytearray(len(text))
    for start, end in hidden:
        fate[start:end] = b"\1" * (end - start)
    start, end = dropped
    kept = [*zip(fate, text, strict=True)]
    del kept[start:end]
    return "".join(
        _HIDDEN if is_hidden else "".join(character for _, character in group)
        for is_hidden, group in itertools.groupby(kept, key=lambda pair: pair[0])
    )

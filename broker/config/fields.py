"""`Config`: what one manager needs to know, checked when it is made, and silent about its secrets.

A `Config` is made in code, or from a TOML file whose keys are its fields. What is secret (whatever
came from an environment variable, credentials, header values, the query of the URL) is known to be
so from the start, also in a child process that got the configuration through a pipe: `repr`, errors
and `shown_url` do not show it, and `redact` takes it out of anybody else's text.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Final, Self

from ..topics.venue import Venue
from ..topics.venue_file import VenueError, load_venue
from . import file, redaction
from .addresses import check_local_addresses
from .keys import keyed, keys_of, refuse_unknown, setting
from .kinds import (
    TOKEN_CHARACTERS,
    Choice,
    ConfigError,
    Count,
    File,
    Flag,
    Headers,
    HeaderValue,
    HostName,
    Messages,
    Mode,
    Name,
    Patterns,
    Pointer,
    Proxy,
    Rate,
    Seconds,
    SecondsOrNever,
    Size,
    Text,
    Texts,
    Tokens,
    TopicPatterns,
    Url,
    VenueName,
    is_function,
    is_header_value,
    is_token,
)

__all__ = ["KEYS", "Config", "OfflineSends"]

_OWNED_HEADERS: Final = re.compile(r"host|upgrade|connection|sec-websocket-.*", re.IGNORECASE)
"""Headers that the handshake makes itself (RFC 6455 section 4.1)."""


class OfflineSends(enum.StrEnum):
    """What becomes of workers' messages while there is no connection."""

    BUFFER = "buffer"
    REJECT = "reject"


@keyed
class Config:
    """What one manager needs to know. All times are in seconds; a time that may be None is "never"
    in files.

    Lists are kept as tuples, and paths as `pathlib.Path`. A Config cannot be changed;
    `dataclasses.replace` makes another one.

    Raises:
        ConfigError: an unknown or missing key, or a value that is of the wrong type, out of range,
            in contradiction to another one, or a file that can't be read. The ring's sizes and mode
            are checked when the ring is made.
    """

    # ---- which ring, and which server

    name: str = setting(
        Name(
            "The ring's name; workers attach by it.",
            "1 to 20 of a-z, 0-9, _ and -, starting with a letter or digit.",
        )
    )
    url: str = setting(
        Url(
            "Where to connect: ws:// or wss://.",
            "In ASCII and without a fragment. Required, unless the venue has one.",
        ),
        default=None,  # until the venue's is put in its place
    )
    venue: str | None = setting(
        VenueName(
            "The exchange: a name that `ringcast venues` lists, or the path of a venue file of your"
            " own.",
            "It says how topics are found in messages and asked for at the server.",
        ),
        default=None,
    )
    initial_messages: Sequence[str | bytes] = setting(
        Messages(
            "Messages to send after each connect, in this order.",
            "Subscriptions, a login. A str is sent as text, bytes as binary.",
            secret=True,
        ),
        default=(),
    )

    # ---- topics

    subscribe: Sequence[str] = setting(
        Texts(
            "Topics that the manager wants itself, whatever workers want.",
            "They need a venue, and are never unsubscribed.",
        ),
        default=(),
    )
    topic: Sequence[str] = setting(
        TopicPatterns(
            'Where a message has its topic: patterns of JSON pointers, such as "{/stream}"; the'
            " first whose pointers are all there counts.",
            'Or one Python function, "module:function", which takes the payload and returns the'
            " topic or None. Without it, the venue's.",
        ),
        default=(),
    )
    key: Sequence[str] = setting(
        Patterns(
            "Where a message has the key by which work groups share messages out, as for topic.",
            "Without it, the venue's; without that, the topic is the key.",
        ),
        default=(),
    )
    max_topics: int = setting(
        Count(
            "Topics that the ring knows, at most.",
            "Messages of further ones have no topic.",
            least=1,
            most=65536,
        ),
        default=4096,
    )
    allow: Sequence[str] = setting(
        Texts(
            "Topics that workers may ask the server for: names, with * for any characters.",
            "The manager's own topics need not be among them.",
        ),
        default=("*",),
    )
    linger: float = setting(
        Seconds(
            "A topic that no worker wants any more is unsubscribed after so long.",
            "So workers that restart do not cost a request each.",
            may_be_zero=True,
        ),
        default=5.0,
    )

    request_id: str | None = setting(
        Pointer(
            'Where requests and their answers have an id: a JSON pointer, such as "/id".',
            "It lets workers send requests whose answers come to them alone. Without it, the"
            " venue's.",
        ),
        default=None,
    )

    # ---- the handshake

    headers: Mapping[str, str] = setting(
        Headers(
            "Further headers of the handshake.",
            "Those that the handshake makes itself are refused.",
            secret=True,
        ),
        default_factory=dict,
    )
    cookie: str | None = setting(
        HeaderValue("Value of the Cookie header.", secret=True), default=None
    )
    origin: str | None = setting(
        HeaderValue("Value of the Origin header.", "None: what the WebSocket library sends."),
        default=None,
    )
    subprotocols: Sequence[str] = setting(
        Tokens("Subprotocols to offer to the server, the preferred one first."), default=()
    )
    proxy: str | None = setting(
        Proxy(
            "Proxy to connect through: http://, socks4://, socks4a://, socks5:// or socks5h://,"
            " with user:password@ if it asks for them.",
            "None connects directly; the environment's proxies are never used.",
        ),
        default=None,
    )

    # ---- TLS

    ca: str | Path | None = setting(
        File("PEM file of the authorities to trust in place of the system's."), default=None
    )
    certificate: str | Path | None = setting(
        File("PEM file of the client's certificate chain."), default=None
    )
    private_key: str | Path | None = setting(
        File(
            "PEM file of the certificate's key.", "None: the key is in the certificate's own file."
        ),
        default=None,
    )
    private_key_password: str | None = setting(
        Text("Password of a private key that is encrypted.", secret=True), default=None
    )
    server_name: str | None = setting(
        HostName(
            "Name to ask for (SNI), and that the certificate must have.",
            "None: the URL's host. For a server that is reached by an address or through a tunnel.",
        ),
        default=None,
    )
    verify: bool = setting(
        Flag(
            "Check the server's certificate.",
            "Without the check, anybody on the way can read and change all that is sent.",
        ),
        default=True,
    )

    # ---- the life of a connection

    open_timeout: float = setting(
        Seconds(
            "Time for all of connecting: TCP, proxy, TLS and handshake.",
            "A server that needs longer is better tried again.",
        ),
        default=10.0,
    )
    close_timeout: float = setting(
        Seconds(
            "Time to wait for the server's half of the closing handshake"
            " (RFC 6455 section 7.1.1); then the socket is closed without it."
        ),
        default=2.0,
    )
    reconnect: bool = setting(
        Flag("Connect again when the connection is lost, or else end the manager."), default=True
    )
    reconnect_delay: float = setting(
        Seconds(
            "Longest pause before the first new attempt; it doubles with each further one.",
            "Short by default: most connections are lost because one server restarts.",
        ),
        default=0.5,
    )
    reconnect_delay_max: float = setting(
        Seconds(
            "Longest pause before any attempt.",
            "The default is well below the limits of servers that count attempts.",
        ),
        default=30.0,
    )
    reconnect_reset_after: float = setting(
        Seconds(
            "A connection that lasted so long makes the next pause short again.",
            "So a server that accepts and then drops each connection is not flooded with attempts.",
            may_be_zero=True,
        ),
        default=60.0,
    )
    ping_interval: float | None = setting(
        SecondsOrNever(
            "Pause between pings, which measure the round trip and find dead connections.",
            "The default is below the idle limits of common proxies.",
        ),
        default=20.0,
    )
    ping_timeout: float = setting(
        Seconds("A connection on which a ping is not answered for so long counts as lost."),
        default=10.0,
    )
    idle_timeout: float | None = setting(
        SecondsOrNever(
            "A connection on which nothing at all arrives for so long counts as lost.",
            "None by default: only you know how quiet the stream may be.",
        ),
        default=None,
    )

    # ---- the ring and its readers

    slots: int = setting(Count("Messages that the ring holds, a power of two."), default=65536)
    capacity: int = setting(
        Size("Bytes of payload that the ring holds, a power of two."), default=64 << 20
    )
    max_readers: int = setting(Count("Workers that can be attached at once."), default=64)
    mode: int = setting(Mode("Permissions of the ring: 0600 or 0640, octal."), default=0o600)
    demote_after: float | None = setting(
        SecondsOrNever(
            "Readers that keep the ring full for so long are asked to become lossy.",
            "None: a reader that stops reading holds up everybody.",
        ),
        default=5.0,
    )
    evict_after: float | None = setting(
        SecondsOrNever(
            "Readers that were asked to become lossy, and do not for so long, are evicted."
        ),
        default=5.0,
    )
    drain_timeout: float = setting(
        Seconds("Time to wait at the end until readers have read what is left.", may_be_zero=True),
        default=5.0,
    )

    # ---- what workers send

    max_senders: int = setting(Count("Workers that can send at once."), default=64)
    send_buffer_bytes: int = setting(
        Size(
            "Bytes that each worker can have sent and that the socket has not taken yet.",
            "A power of two. A longer message goes through in parts.",
        ),
        default=65536,
    )
    max_in_flight: int | None = setting(
        Count(
            "Messages that each worker can have sent and that the socket has not taken yet.",
            "None: 2 while send_rate is set, so that no worker keeps the others waiting, else"
            " without limit.",
            least=1,
        ),
        default=None,
    )
    offline_sends: str = setting(
        Choice(
            "What becomes of workers' messages while there is no connection.",
            '"buffer" keeps as many as fit into each worker\'s buffer for the next connection;'
            ' "reject" raises SendRejected in the worker.',
            choices=OfflineSends,
        ),
        default="buffer",
    )
    send_rate: float | None = setting(
        Rate(
            "Messages to send to the server per second, at most, pings and pongs included.",
            "None: no limit. Set it below what the server allows: servers disconnect those who"
            " send too fast.",
        ),
        default=None,
    )
    send_burst: int = setting(
        Count("Messages that may be sent at once after a pause.", least=1), default=1
    )

    # ---- programs that can't map the ring

    listen: Sequence[str] = setting(
        Texts(
            "Where a gateway that runs with the manager serves WebSocket clients of this machine:"
            " unix:/PATH or HOST:PORT.",
            "For other machines, and with other options, run `ringcast gateway` by itself.",
        ),
        default=(),
    )

    # What the ${VAR}s of each key were replaced by. A field, so that `dataclasses.replace` and the
    # checks know it; not a key of files or options.
    _expanded: file.Expanded = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Check everything; the types first, since the other checks and `redact` rely on them."""
        venue = self._take_from_venue()
        for key in KEYS.values():
            object.__setattr__(self, key.name, key.accept(getattr(self, key.name)))
        for key in KEYS.values():
            value = getattr(self, key.name)
            fault = None if value is None else key.kind.fault(value)
            if fault is not None:
                raise self._error(key.name, fault)
        self._check_headers()
        self._check_tls()
        self._check_times()
        self._check_topics(venue)
        self._check_listen()

    def _take_from_venue(self) -> Venue | None:
        """Fill in what the venue says and nobody else does."""
        venue = None
        if isinstance(self.venue, str):  # other types are refused soon
            try:
                venue = load_venue(self.venue)
            except VenueError as error:
                shown = (
                    "it can't be used (why is not shown)" if "venue" in self._expanded else error
                )
                raise ConfigError(f"venue: {shown}") from None
        if self.url is None:
            if venue is None or venue.url is None:
                raise ConfigError("url is missing: give it, or a venue that has one")
            object.__setattr__(self, "url", venue.url)
        if venue is not None:
            for key in ("topic", "key", "request_id"):
                if getattr(self, key) in ((), None):
                    object.__setattr__(self, key, getattr(venue, key))
        return venue

    # ---- as text

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
        refuse_unknown(options, KEYS)
        values, expanded = file.read(path, KEYS, overridden=options)
        values |= options
        if "url" not in values and "venue" not in values:
            raise ConfigError(f"url is missing: give it, or a venue, in {path} or as an option")
        for key in KEYS.values():
            if key.is_required and key.name not in values:
                raise ConfigError(f"{key.name} is missing: give it in {path} or as an option")
        return cls(**values, _expanded=expanded)

    def as_json(self) -> str:
        """All of it, **secrets included**, for `from_json` in a child process. For a pipe: not for
        a file, a command line or an environment variable, where others can read it."""
        values = {name: getattr(self, name) for name in KEYS}
        return file.to_json(values, KEYS, self._expanded)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `as_json` wrote; nothing is expanded again, what was secret still is.

        Raises:
            ConfigError: `text` is something else, or a file is gone since.
        """
        values, expanded = file.from_json(text, KEYS)
        return cls(**values, _expanded=expanded)

    @property
    def topic_function(self) -> str | None:
        """The Python function that finds topics, as "module:function"; None if patterns do."""
        return next(filter(is_function, self.topic), None)

    # ---- without secrets

    @property
    def shown_url(self) -> str:
        """The URL for people to see: without user and password, and with ``***`` for the values of
        its query and for what came from the environment."""
        hidden = redaction.worth_hiding(self._secrets()) | {*self._expanded.get("url", ())}
        return redaction.redact_url(self.url, hidden)

    def redact(self, text: str) -> str:
        """`text` with ``***`` in place of every secret of four characters or more, also where it is
        percent-encoded. For log lines and for the errors of other libraries."""
        return redaction.redact(text, redaction.worth_hiding(self._secrets()))

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={self._display(name)}' for name in KEYS)})"

    def _display(self, name: str) -> str:
        """The value of a key for people to see."""
        value, kind = getattr(self, name), KEYS[name].kind
        if name == "url":
            return repr(self.shown_url)
        if name == "headers":  # its names are no secrets
            return kind.display(value, self.redact)
        if value is None or value == ():
            return repr(value)
        if kind.secret or name in self._expanded:
            return redaction.HIDDEN
        return kind.display(value, self.redact)

    def _error(self, name: str, right: str) -> ConfigError:
        """An error that shows the value, unless something of it is or may be secret. A URL that is
        not well formed may have its password anywhere."""
        value = getattr(self, name)
        unclear = name in ("url", "proxy") and any(mark in value for mark in "@?#")
        if unclear or name in self._expanded or KEYS[name].kind.secret:
            return ConfigError(f"{name} (its value is not shown): {right}")
        shown = repr(self.redact(value)) if name == "url" else self._display(name)
        return ConfigError(f"{name}={shown}: {right}")

    def _secrets(self) -> Iterator[str]:
        for texts in self._expanded.values():
            yield from texts
        yield from redaction.header_secrets(self.headers)
        if self.cookie is not None:
            yield from redaction.cookie_secrets(self.cookie)
        if self.private_key_password is not None:
            yield self.private_key_password
        for address in (self.url, self.proxy or ""):
            yield from redaction.address_secrets(address)

    # ---- checks of more than one key, and of those whose errors show a part

    def _check_headers(self) -> None:
        for name, value in self.headers.items():
            if not is_token(name):
                raise ConfigError(
                    "headers: a name (not shown) is empty or has characters other than"
                    f" {TOKEN_CHARACTERS}"
                )
            shown_name = repr(self.redact(name))
            if _OWNED_HEADERS.fullmatch(name):
                raise ConfigError(
                    f"headers: {shown_name} is made by the handshake; leave it out"
                    " (subprotocols has a key of its own)"
                )
            if name.lower() in ("cookie", "origin") and getattr(self, name.lower()) is not None:
                raise ConfigError(f"headers: {name.lower()} is given twice, here and as a key")
            if not is_header_value(value):
                raise ConfigError(
                    f"headers: the value of {shown_name} (not shown) has a line break or another"
                    " control character"
                )

    def _check_tls(self) -> None:
        used = [name for name in ("ca", "certificate", "server_name") if getattr(self, name)]
        used += [] if self.verify else ["verify"]
        if used and not self.url.startswith("wss://"):
            raise self._error(used[0], "it is for TLS, but url starts with ws://; use wss://")
        for name in ("private_key", "private_key_password"):
            if getattr(self, name) is not None and self.certificate is None:
                raise self._error(name, "it needs certificate, the file it belongs to")

    def _check_topics(self, venue: Venue | None) -> None:
        if self.topic_function is not None and venue is not None:
            raise self._error(
                "topic",
                "with a venue it is patterns: a function would hide the venue's answers from it",
            )
        if self.topic_function is not None and self.key:
            raise self._error(
                "key",
                "its patterns look into JSON; with a topic function the key is a hash of the topic",
            )
        if self.topic_function is not None and self.request_id is not None:
            raise self._error(
                "request_id",
                "answers are found by what finds topics by patterns; with a topic function there"
                " are none",
            )
        if venue is None:
            if self.subscribe:
                raise self._error("subscribe", "it needs venue, which says how to ask for topics")
            return
        hidden = "subscribe" in self._expanded
        for topic in self.subscribe:
            if "*" in topic:
                raise self._error("subscribe", "a server is asked for names; '*' is no part of one")
            try:
                venue.check_name(topic)
            except ValueError as error:
                what = f"a topic (not shown) is none of {venue.name}" if hidden else str(error)
                raise ConfigError(f"subscribe: {what}") from None

    def _check_listen(self) -> None:
        try:
            check_local_addresses(self.listen)
        except ConfigError as error:
            hidden = "listen" in self._expanded
            why = "an address (not shown) can't be listened on" if hidden else error
            raise ConfigError(f"listen: {self.redact(str(why))}") from None

    def _check_times(self) -> None:
        if self.reconnect_delay_max < self.reconnect_delay:
            raise self._error(
                "reconnect_delay_max", "it is below reconnect_delay; raise it or lower that"
            )
        if self.evict_after is not None and self.demote_after is None:
            raise self._error(
                "evict_after",
                "only readers that were asked to become lossy are evicted; set demote_after as"
                ' well, or both to "never" (in code: None)',
            )


KEYS: Final = keys_of(Config)
"""Every key by name: what it may hold, what it is for, its default."""

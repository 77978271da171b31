"""Opening a connection: proxy, TLS and the handshake, all through websocket-client.

It reads the handshake byte by byte, so nothing of the first frame is swallowed: the socket is taken
over as soon as the handshake is done. A failure is explained: which stage failed, what to do, and
whether another attempt can succeed.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import websocket

from ..config import Config
from .outcome import Disconnect, OpenSocket
from .tls import StreamContext

__all__ = ["Dialer"]

_FINAL_STATUS: Final = frozenset({400, 401, 403, 404, 405, 407, 410, 426})
_REDIRECT_STATUS: Final = frozenset({301, 302, 303, 307, 308})
_RETRY_AFTER_MAX: Final = 3600.0
"""Seconds. A server that asks for a longer pause gets this one."""
_ERROR_MAX: Final = 300
"""Characters that are kept of a server's explanation of a failed attempt."""
_HTTP_PROXY_PORT: Final = 80
_SOCKS_PROXY_PORT: Final = 1080


class Dialer:
    """One attempt to connect, in a thread of its own, so that the manager goes on meanwhile.

    Args:
        config: where and how.
        wake: called, from that thread, when the attempt has ended.

    Attributes:
        deadline: when the attempt has taken too long, time.monotonic() seconds.
    """

    def __init__(self, config: Config, wake: Callable[[], None]) -> None:
        self._config = config
        self._wake = wake
        self._lock = threading.Lock()
        self._ws: websocket.WebSocket | None = None
        self._result: OpenSocket | Disconnect | None = None
        self._given_up = False
        self.deadline = time.monotonic() + config.open_timeout
        self._thread = threading.Thread(target=self._dial, name=f"dial-{config.name}", daemon=True)
        self._thread.start()

    def _dial(self) -> None:
        result: OpenSocket | Disconnect
        try:
            self._ws = _new_websocket(self._config)
        except (OSError, ValueError) as error:  # ssl's errors, too
            text = f"TLS can't be set up: {error}; see ca, certificate and private_key"
            result = Disconnect(self._config.redact(text), final=True)
        else:
            result = self._try()
        with self._lock:
            if not self._given_up:
                self._result = result
            elif isinstance(result, OpenSocket):
                result.sock.close()
        self._wake()

    def _try(self) -> OpenSocket | Disconnect:
        assert self._ws is not None
        try:
            return _open(self._config, self._ws)
        except Exception as error:  # whatever it is, the manager reports it and goes on
            return _explained(self._config, self._ws, error)

    def result(self) -> OpenSocket | Disconnect | None:
        """What came of it; None while it lasts."""
        with self._lock:
            return self._result

    @property
    def is_working(self) -> bool:
        """Does the attempt still run? One that was given up may, for a while."""
        return self._thread.is_alive()

    def give_up(self) -> None:
        """The connection is not wanted any more: if it opens it is closed at once."""
        with self._lock:
            self._given_up = True
            result, sock = self._result, self._ws.sock if self._ws is not None else None
        if isinstance(result, OpenSocket):
            result.sock.close()
        elif sock is not None:  # still in the handshake, which may be kept going for ever
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


# ---- one attempt ---------------------------------------------------------------------------


def _new_websocket(config: Config) -> websocket.WebSocket:
    options: dict[str, Any] = {}
    if config.url.startswith("wss:"):
        options = {
            "context": _tls_context(config),
            "server_hostname": config.server_name,
            "cert_reqs": ssl.CERT_REQUIRED if config.verify else ssl.CERT_NONE,
            "check_hostname": config.verify,
        }
    return websocket.WebSocket(sslopt=options, enable_multithread=False)


def _tls_context(config: Config) -> ssl.SSLContext:
    context = StreamContext(ssl.PROTOCOL_TLS_CLIENT)
    if config.ca is not None:
        context.load_verify_locations(config.ca)
    else:
        context.load_default_certs()
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.certificate is not None:
        context.load_cert_chain(
            config.certificate,
            config.private_key,
            config.private_key_password or "",  # None: OpenSSL would ask at the terminal
        )
    return context


def _open(config: Config, ws: websocket.WebSocket) -> OpenSocket:
    ws.connect(  # type: ignore[no-untyped-call]
        config.url,
        timeout=config.open_timeout,
        header=_header_lines(config),
        cookie=config.cookie,
        origin=config.origin,
        subprotocols=list(config.subprotocols),
        redirect_limit=0,
        **_proxy_options(config),
    )
    # Taken over: websocket-client is to forget the socket, not to close it.
    sock, ws.sock, ws.connected = ws.sock, None, False
    assert sock is not None  # connect() raises otherwise
    assert ws.handshake_response is not None
    sock.setblocking(False)
    return OpenSocket(sock, ws.handshake_response.subprotocol)


def _proxy_options(config: Config) -> dict[str, Any]:
    """What websocket-client needs to know of the proxy; its look at the environment (http_proxy,
    no_proxy) is answered for it: only what is configured counts."""
    if config.proxy is None:
        return {"http_no_proxy": ["*"]}
    proxy = urlsplit(config.proxy)
    auth = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    default_port = _HTTP_PROXY_PORT if proxy.scheme == "http" else _SOCKS_PROXY_PORT
    return {
        "proxy_type": proxy.scheme,
        "http_proxy_host": proxy.hostname,
        "http_proxy_port": proxy.port or default_port,
        "http_proxy_auth": auth,
        "http_proxy_timeout": config.open_timeout,
        "http_no_proxy": ["-"],  # no host's name: an empty list would mean the environment's
    }


def _header_lines(config: Config) -> list[str]:
    lines = [f"{name}: {value}" for name, value in config.headers.items()]
    if not any(name.lower() == "user-agent" for name in config.headers):
        lines.append(f"User-Agent: ringcast/{metadata.version('ringcast')}")
    return lines


# ---- what a failure means ------------------------------------------------------------------


def _explained(config: Config, ws: websocket.WebSocket, error: Exception) -> Disconnect:
    """What an attempt's exception means for the next one. Redacted first and cut then, so that no
    part of a secret stays."""
    found = _meaning(ws, error)
    text = config.redact(found.error or "")
    if len(text) > _ERROR_MAX:
        text = text[:_ERROR_MAX] + "…"
    return Disconnect(text, final=found.final, retry_in=found.retry_in)


def _meaning(ws: websocket.WebSocket, error: Exception) -> Disconnect:
    if isinstance(error, websocket.WebSocketBadStatusException):
        return _meaning_of_status(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Disconnect(
            f"the server's certificate is not to be trusted: {error.verify_message}. Give its"
            " authority with `ca`, or the name it has with `server_name`",
            final=True,
        )
    response = ws.handshake_response
    if response is not None and response.status in _REDIRECT_STATUS:
        target = response.headers.get("location", "another place")
        return Disconnect(f"the server redirects, use this as `url`: {target}", final=True)
    if isinstance(error, websocket.WebSocketProxyException):
        return Disconnect(f"the proxy refuses: {error}", final="status: 407" in str(error))
    if isinstance(error, websocket.WebSocketTimeoutException | TimeoutError):
        return Disconnect("the server did not answer in time")
    if type(error).__name__ == "ProxyError":  # of python_socks, which need not be installed
        return Disconnect(f"the proxy refuses: {error}")
    if "Python Socks is needed" in str(error):
        return Disconnect("SOCKS needs another package: pip install 'ringcast[socks]'", final=True)
    if isinstance(error, ssl.SSLError):
        return Disconnect(f"TLS failed: {error.reason or error}")
    if isinstance(error, OSError):
        return Disconnect(f"cannot connect: {error.strerror or error}")
    return Disconnect(f"the handshake failed: {error}")


def _meaning_of_status(error: websocket.WebSocketBadStatusException) -> Disconnect:
    status = error.status_code
    text = f"the server answered {status} {error.status_message or ''}".rstrip()
    body = (error.resp_body or b"").decode("utf-8", "replace").strip()
    if body:
        text += f": {re.sub(r'[^ -~]+', ' ', body)}"
    wait = (error.resp_headers or {}).get("retry-after", "")
    retry_in = min(float(wait), _RETRY_AFTER_MAX) if wait.isdecimal() else None
    return Disconnect(text, final=status in _FINAL_STATUS, retry_in=retry_in)

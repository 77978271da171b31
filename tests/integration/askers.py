"""What the tests of requests share: a JSON-RPC server that answers when a test says so."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import Any, Final

from websockets.frames import Frame, Opcode

from ringcast import Config
from tests.conftest import eventually

from .manager import Peer, quick

__all__ = ["Rpc", "rpc_config"]

NOTICE: Final = "notice"


def rpc_config(name: str, url: str, **options: Any) -> Config:
    """A manager's that knows where ids are, and finds a topic in notices."""
    return quick(name, url, **{"request_id": "/id", "topic": ["{/topic}"], **options})


class Rpc:
    """A script of a server, for `serving`: what it hears waits until it is answered.

    Attributes:
        heard: every request, in order, as text.
    """

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._peers: list[Peer] = []
        self._lock = threading.Lock()

    def __call__(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        with self._lock:
            self._peers.append(peer)
        with suppress(EOFError):
            while True:
                frame = peer.receive()
                if isinstance(frame, Frame) and frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                    self.heard.append(bytes(frame.data).decode())

    def requests(self, count: int) -> list[dict[str, Any]]:
        """The first so many requests, when they have come."""
        eventually(lambda: len(self.heard) >= count, f"{count} requests have come")
        return [json.loads(text) for text in self.heard[:count]]

    def say(self, *messages: Any) -> None:
        """Send to the newest connection: text as it is, other things as JSON."""
        texts = [m if isinstance(m, str) else json.dumps(m) for m in messages]
        with self._lock:
            self._peers[-1].send(*texts)

    def answer(self, request: dict[str, Any], **fields: Any) -> None:
        """Answer a request with its own parameters, or with other fields."""
        self.say(
            {"jsonrpc": "2.0", "id": request["id"], **(fields or {"result": request["params"]})}
        )

    def notice(self, number: int, topic: str = NOTICE) -> None:
        """Send a message that is nobody's answer."""
        self.say({"topic": topic, "n": number})

    def wait_for_connections(self, count: int) -> None:
        """Return when there have been so many."""
        eventually(lambda: len(self._peers) >= count, f"{count} connections")

"""The gateway's protocol as an echo server, for WebSocket test suites whose client asks a server.

    python -m tests.conformance.echo [PORT [BYTES]]

prints its URL. With port 0 any that is free. Messages may have so many bytes; by default 16 MiB.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Final

from websockets.http11 import Request

from ringcast.broker.gateway.access import Transport
from ringcast.broker.gateway.client import Client, Upward
from ringcast.broker.gateway.options import ClientOptions

HEADER_BYTES: Final = 8192
MESSAGE_BYTES: Final = 16 << 20
PORT: Final = 9353


class EchoHost:
    """What a client needs of its gateway: here what it sends comes back."""

    def admit(self, _client: Client, _request: Request) -> ClientOptions:
        return ClientOptions()

    def open(self, client: Client) -> None:
        pass

    def received(self, client: Client, sent: Upward) -> Upward | None:
        client.send_message(sent.payload, is_text=sent.is_text)
        return None

    def send(self, client: Client) -> None:
        pass

    def gone(self, client: Client) -> None:
        pass


async def serve(port: int, message_bytes: int) -> None:
    """Serve until it is cancelled."""
    host, loop = EchoHost(), asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        listener.setblocking(False)
        print(f"ws://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Client(
                host,
                sock,
                Transport.of(sock),
                header_bytes=HEADER_BYTES,
                message_bytes=message_bytes,
                open_timeout=10,
                close_timeout=5,
            )


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(serve(*given, *(PORT, MESSAGE_BYTES)[len(given) :]))

"""Encrypted clients: decrypted on one side of a pair of sockets, and served on the other like all.

That costs two copies more each way than a client without TLS. Encryption costs more than both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from .access import Transport

__all__ = ["relay"]

CHUNK: Final = 1 << 16
HANDSHAKE_TIMEOUT: Final = 10.0

_log = logging.getLogger(__name__)


async def relay(
    sock: socket.socket,
    context: ssl.SSLContext,
    connected: Callable[[socket.socket, Transport], None],
) -> None:
    """Carry bytes between an encrypted client and the gateway, until one of them ends.

    Args:
        sock: the client's, just accepted; closed by this.
        context: the server's side of TLS.
        connected: called with the gateway's end and how the client is connected, once the TLS
            handshake is done.
    """
    transport = Transport.of(sock, tls=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK)
    try:
        wire, _ = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader),
            sock,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
        )
    except (OSError, ssl.SSLError) as error:
        _log.info("%s: no TLS: %s", transport.peer, error)
        sock.close()
        return
    protocol = wire.get_protocol()
    assert isinstance(protocol, asyncio.StreamReaderProtocol)
    outer = asyncio.StreamWriter(wire, protocol, reader, loop)
    ours, theirs = socket.socketpair()
    inner_reader, inner = await asyncio.open_connection(sock=ours)
    connected(theirs, transport)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_carry(reader, inner))
            tasks.create_task(_carry(inner_reader, outer))
    except* (OSError, ssl.SSLError) as errors:
        _log.info("%s: %s", transport.peer, errors.exceptions[0])
    finally:
        for writer in (inner, outer):
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()

"""The clients that ringcast is compared with. Each has a connection of its own.

Why some exist twice, as `check_...` and `handle_...`: see the package.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Coroutine
from importlib import metadata
from typing import Any, Final

import websocket

from ..errors import RunFailedError
from ..processes import Channel
from .checking import PayloadHandler, StreamChecker
from .frames import END_BYTES, FRAME_BYTES, SAMPLE_EVERY
from .server import RECEIVE_BYTES, Address

CheckingClient = Callable[[Channel, Address], None]
"""A client that checks a stream, and reports."""
HandlingClient = Callable[[Address, PayloadHandler], None]
"""A client that calls a handler with each payload."""

_NOT_INSTALLED: Final = "not installed, so not compared with: pip install 'ringcast[bench]'"


# ---- what is installed ---------------------------------------------------------------------


def versions(*clients: str) -> dict[str, str]:
    """Versions of clients and of what they run on, or that they are not installed."""
    absent = dict.fromkeys(clients, _NOT_INSTALLED) | {"uvloop": "none", "aiofastnet": "none"}
    return {
        name: metadata.version(name) if is_installed(name) else text
        for name, text in absent.items()
    }


def is_installed(client: str) -> bool:
    """Whether a client is installed. If so, it is imported here, once, and not in each child."""
    parts = {"websocket-client": ("websocket",), "websockets": ("websockets", "asyncio.client")}
    package, *rest = parts.get(client, (client,))
    if importlib.util.find_spec(package) is None:
        return False
    importlib.import_module(".".join((package, *rest)))
    return True


# ---- the socket ----------------------------------------------------------------------------


def count_bytes(channel: Channel, address: Address) -> None:
    """Receive without a client, and count bytes."""
    checker = StreamChecker()
    sock = _connect(address).sock
    assert sock is not None  # connect() raises otherwise
    view = memoryview(bytearray(RECEIVE_BYTES))
    total = sock.recv_into(view)
    checker.began_ns = time.time_ns()
    while received := sock.recv_into(view):
        total += received
        checker.ended_ns = time.time_ns()
    checker.count, rest = divmod(total - END_BYTES, FRAME_BYTES)
    if rest:
        raise RunFailedError(f"{total} bytes are no whole number of frames")
    checker.report(channel)


# ---- websocket-client ----------------------------------------------------------------------


def _connect(address: Address) -> websocket.WebSocket:
    ws = websocket.WebSocket()
    ws.connect(address.url, http_no_proxy=["*"])  # type: ignore[no-untyped-call]
    return ws


def check_websocket_client(channel: Channel, address: Address) -> None:
    """Call recv_data() in a loop."""
    checker = StreamChecker()
    ws = _connect(address)
    receive = ws.recv_data
    for count in itertools.count():
        _, payload = receive()
        last = payload[-1]
        if last != count % SAMPLE_EVERY:
            checker.end(payload, count)
            break
        if not last:
            checker.check_whole(payload, count)
    ws.close()
    checker.report(channel)


def handle_websocket_client(address: Address, handle: PayloadHandler) -> None:
    """Call recv_data() in a loop."""
    ws = _connect(address)
    receive = ws.recv_data
    while handle(receive()[1]):
        pass
    ws.close()


# ---- asyncio -------------------------------------------------------------------------------


def run_in_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop, or on asyncio's own loop if uvloop is not installed."""
    if importlib.util.find_spec("uvloop") is not None:
        new_loop = importlib.import_module("uvloop").new_event_loop
    else:
        new_loop = None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main)


# ---- picows --------------------------------------------------------------------------------


def check_picows(channel: Channel, address: Address) -> None:
    """Take memoryviews in the callback of picows."""
    import picows

    text = picows.WSMsgType.TEXT
    checker = StreamChecker()

    class Listener(picows.WSListener):
        __slots__ = ("count",)  # an instance's dictionary would slow it down by a fifth

        def __init__(self) -> None:
            self.count = 0

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            count = self.count
            payload = frame.get_payload_as_memoryview()
            if frame.msg_type != text:
                transport.disconnect()
                return
            last = payload[-1]
            if last != count % SAMPLE_EVERY:
                checker.end(payload, count)
                return
            if not last:
                checker.check_whole(payload, count)
            self.count = count + 1

    run_in_loop(_listen(address, Listener))
    checker.report(channel)


def handle_picows(address: Address, handle: PayloadHandler) -> None:
    """Take memoryviews in the callback of picows."""
    import picows

    data_types = (picows.WSMsgType.TEXT, picows.WSMsgType.BINARY)

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type not in data_types:
                transport.disconnect()
                return
            handle(frame.get_payload_as_memoryview())

    run_in_loop(_listen(address, Listener))


async def _listen(address: Address, listener: Callable[[], Any]) -> None:
    import picows

    context = address.certificate.client_context() if address.certificate is not None else None
    transport, _ = await picows.ws_connect(listener, address.url, ssl_context=context)
    await transport.wait_disconnected()


# ---- websockets ----------------------------------------------------------------------------


def _open_websockets(address: Address) -> Any:
    from websockets.asyncio.client import connect

    return connect(
        address.url,
        compression=None,
        ping_interval=None,
        max_size=None,
        max_queue=None,
        proxy=None,
    )


def check_websockets(channel: Channel, address: Address) -> None:
    """Call recv() of websockets' asyncio client in a loop; without TLS."""
    checker = StreamChecker()

    async def main() -> None:
        async with _open_websockets(address) as connection:
            receive = connection.recv
            for count in itertools.count():
                payload = await receive(decode=False)
                last = payload[-1]
                if last != count % SAMPLE_EVERY:
                    checker.end(payload, count)
                    break
                if not last:
                    checker.check_whole(payload, count)

    run_in_loop(main())
    checker.report(channel)


def handle_websockets(address: Address, handle: PayloadHandler) -> None:
    """Call recv() of websockets' asyncio client in a loop; without TLS."""

    async def main() -> None:
        async with _open_websockets(address) as connection:
            receive = connection.recv
            while handle(await receive(decode=False)):
                pass

    run_in_loop(main())


# ---- aiohttp -------------------------------------------------------------------------------


def check_aiohttp(channel: Channel, address: Address) -> None:
    """Call receive() of aiohttp's client in a loop; without TLS."""
    import aiohttp

    checker = StreamChecker()

    async def main() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address.url, max_msg_size=0, decode_text=False) as connection,
        ):
            receive = connection.receive
            for count in itertools.count():
                payload = (await receive()).data
                last = payload[-1]
                if last != count % SAMPLE_EVERY:
                    checker.end(payload, count)
                    break
                if not last:
                    checker.check_whole(payload, count)

    run_in_loop(main())
    checker.report(channel)

"""Gateways for tests: in a thread of this process, or as the command, which can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import threading
from collections.abc import Iterator
from typing import Any, Final, cast

import ringcast
from ringcast import shm
from ringcast.broker.gateway.access import AccessRules
from ringcast.broker.gateway.addresses import ListenAddress, bind
from ringcast.broker.gateway.server import Gateway, GatewayOptions
from ringcast.broker.worker.socket_feed import SocketFeed
from tests.conftest import DEADLINE, eventually

from .gateway import start

NO_RULES: Final = AccessRules()
OPTIONS: Final = GatewayOptions()


class InThread:
    """A gateway in a thread; it listens once this is made.

    Attributes:
        url: what clients connect to.
    """

    def __init__(
        self,
        name: str,
        listen: str,
        *,
        rules: AccessRules = NO_RULES,
        options: GatewayOptions = OPTIONS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = bind(ListenAddress.parse(listen))
        self.url = self._listener.address.url(tls=tls is not None)
        self._gateway = Gateway(name, [self._listener], rules, options, tls=tls)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._gateway.run())
        self._loop.close()

    def stop(self) -> None:
        """End it in order."""
        self._loop.call_soon_threadsafe(self._gateway.stop)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(name: str, listen: str, **options: Any) -> Iterator[str]:
    """A gateway inside the block; where it listens."""
    gateway = InThread(name, listen, **options)
    try:
        yield gateway.url
    finally:
        gateway.stop()


class Command:
    """The command in a process; it is not waited for until it listens."""

    def __init__(self, name: str, listen: str) -> None:
        self._process = start(name, listen)

    def stop(self) -> None:
        """SIGSTOP it."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL it."""
        self._process.kill()
        self._process.communicate(timeout=DEADLINE)


def attach(url: str, **options: Any) -> SocketFeed:
    """As `ringcast.attach`; waits until there is somebody, who has a ring."""

    def attached() -> SocketFeed | None:
        try:
            return cast(SocketFeed, ringcast.attach(url, **options))
        except (shm.RingNotFound, ConnectionRefusedError):
            return None

    found = eventually(attached, f"a gateway at {url}")
    assert isinstance(found, SocketFeed)
    return found

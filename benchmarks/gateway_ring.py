"""ringcast's side of the scenario `gateway`: the gateway's process, and what fills its ring.

*Published.* A writer in Python publishes the flow with `publish_many()`, so no frame headers lie in
the ring, and the gateway makes them.

*Received.* A manager receives the flow from a WebSocket server, in blocks of a round, so each
message lies in the ring behind the header that the server sent. The server and the manager run on
the same cores as all else.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from ringcast.shm import broadcast

from .errors import RunFailedError
from .gateway_client import flow_contents
from .processes import Channel, Children
from .transports import BATCH_SIZE
from .websocket.frames import end_payload, frame
from .websocket.ringcast_side import CAPACITY_BYTES
from .websocket.server import Load

BLOCKING: Final = "/?policy=block&start=oldest"
"""What a client requests that misses nothing."""
LOSSY: Final = "/?policy=lossy&start=oldest"
"""What a client requests that holds nobody up."""
_CONNECT_INTERVAL_S: Final = 0.01


def missing() -> str | None:
    """Why the gateway cannot be measured; None if it can be."""
    if importlib.util.find_spec("ringcast.broker.cli.gateway") is None:
        return "this version has no command `ringcast gateway`"
    return None


def _become_gateway(_channel: Channel, name: str, path: Path) -> None:
    """Be replaced by the command."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    words = [sys.executable, "-m", "ringcast", "gateway", name, "--listen", f"unix:{path}"]
    os.execv(words[0], words)


class Gateway:
    """The gateway's process.

    Attributes:
        address: where it listens, as clients take it.
        pid: its process id.
    """

    def __init__(self, children: Children, name: str, folder: Path) -> None:
        """Start the gateway of a ring, and wait until it listens.

        Raises:
            RunFailedError: a process failed, or it does not listen in time.
        """
        path = folder / "gateway"
        self.address = f"unix:{path}"
        self._children = children
        self._channel = children.start(_become_gateway, name, path)
        pid = children.processes[-1].pid
        assert pid is not None  # it has been started
        self.pid: int = pid
        end = time.monotonic() + children.deadline_s
        while not _is_listening(path):
            children.check()
            if time.monotonic() > end:
                raise RunFailedError(f"the gateway did not listen in {children.deadline_s:.0f} s")
            time.sleep(_CONNECT_INTERVAL_S)

    def stop(self) -> None:
        """End it."""
        self._children.stop(self._channel)


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return not sock.connect_ex(str(path))


def publish(channel: Channel, name: str, seconds: float) -> None:
    """Be a writer: publish the flow for so long, once told to. Reports how many messages that were,
    and ends the ring once told to."""
    payloads = flow_contents().payloads
    chunks = [payloads[i : i + BATCH_SIZE] for i in range(0, len(payloads), BATCH_SIZE)]
    with broadcast.Writer.create(name, capacity=CAPACITY_BYTES) as writer:
        channel.send()
        channel.receive()
        end = time.monotonic() + seconds
        sent = 0
        while time.monotonic() < end:
            for chunk in chunks:
                writer.publish_many(chunk)
                sent += len(chunk)
                if time.monotonic() >= end:
                    break
        writer.publish(end_payload(sent))
        channel.send(sent)
        channel.receive()


def load_of(seconds: float, per_tick: int = 0) -> Load:
    """The flow for a manager, in frames: as fast as it receives, or so many messages per
    millisecond."""
    frames = [frame(payload, is_text=False) for payload in flow_contents().payloads]
    return Load(seconds, (b"".join(frames),), len(frames), per_tick=per_tick, frames=frames)

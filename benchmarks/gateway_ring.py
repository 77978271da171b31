"""ringcast's side of the scenario `gateway`: the gateway's process, and what fills its ring.

*Published.* A writer in Python publishes the flow with `publish_many()`, so no frame headers lie in
the ring, and the gateway makes them.

*Received.* A manager receives the flow from a WebSocket server, in blocks of a round, so each
message lies in the ring behind the header that the server sent. The server and the manager run on
the same cores as all else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import ringcast
from ringcast import shm
from ringcast.shm import broadcast

from .errors import RunFailedError
from .gateway_client import flow_contents
from .processes import GRACE_S, Channel, Children
from .programs import end_with_parent
from .transports import BATCH_SIZE, LinkSender
from .transports.base import cpu_s_of
from .transports.rings import Ring
from .websocket.frames import end_payload, frame
from .websocket.ringcast_side import CAPACITY_BYTES
from .websocket.server import Load

BLOCKING: Final = ("--resource", "/?policy=block&start=oldest")
"""Options of a client that misses nothing."""
LOSSY: Final = ("--lossy", "--resource", "/?policy=lossy&start=oldest")
"""Options of a client that holds nobody up."""
_CONNECT_INTERVAL_S: Final = 0.01
_QUEUE: Final = "bench"


def missing() -> str | None:
    """Why the gateway cannot be measured; None if it can be."""
    if importlib.util.find_spec("ringcast.broker.cli.gateway") is None:
        return "this version has no command `ringcast gateway`"
    return None


def command(name: str, path: Path) -> list[str]:
    """The command that serves a ring at the path of a Unix socket."""
    return [sys.executable, "-m", "ringcast", "gateway", name, "--listen", f"unix:{path}"]


def wait_listening(path: Path, deadline_s: float, check: Callable[[], None]) -> None:
    """Wait until somebody listens at the path of a Unix socket.

    Args:
        path: of the socket.
        deadline_s: how many seconds to wait at most.
        check: raises RunFailedError if waiting is in vain.

    Raises:
        RunFailedError: nobody does in time.
    """
    end = time.monotonic() + deadline_s
    while not _is_listening(path):
        check()
        if time.monotonic() > end:
            raise RunFailedError(f"the gateway did not listen in {deadline_s:.0f} s")
        time.sleep(_CONNECT_INTERVAL_S)


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return not sock.connect_ex(str(path))


def _become_gateway(_channel: Channel, name: str, path: Path, parent: int) -> None:
    """Be replaced by the command."""
    end_with_parent(parent)
    words = command(name, path)
    os.execv(words[0], words)  # noqa: S606 - there is nothing for a shell to do


class Gateway:
    """The gateway's process.

    Attributes:
        address: where it listens, as clients take it.
    """

    def __init__(self, children: Children, name: str, folder: Path) -> None:
        """Start the gateway of a ring, and wait until it listens.

        Raises:
            RunFailedError: a process failed, or it does not listen in time.
        """
        path = folder / "gateway"
        self.address = f"unix:{path}"
        self._children = children
        self._channel = children.start(_become_gateway, name, path, os.getpid())
        pid = children.processes[-1].pid
        assert pid is not None  # it has been started
        self._pid: int = pid
        wait_listening(path, children.deadline_s, children.check)

    def cpu_s(self) -> float:
        """CPU seconds that it has used until now."""
        return cpu_s_of(self._pid)

    def stop(self) -> None:
        """End it."""
        self._children.stop(self._channel)


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
    millisecond. The server closes when it is told to, so that the ring lives until everybody has
    the last message."""
    frames = [frame(payload, is_text=False) for payload in flow_contents().payloads]
    block = (b"".join(frames),)
    return Load(seconds, block, len(frames), per_tick=per_tick, frames=frames, held=True)


class Attached(Ring):
    """`attach()` to the ring itself, one message at a time of those that a writer publishes 64 per
    call."""

    name = "ringcast, attach(NAME)"
    item_messages = BATCH_SIZE

    @contextlib.contextmanager
    def sender(self) -> Iterator[LinkSender]:
        """A writer of groups."""
        with broadcast.Writer.create(self.ring, wait=self._strategy()) as writer:
            yield LinkSender(writer.publish_many)

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A feed, which is its own iterator."""
        with ringcast.attach(self.ring) as feed:
            yield iter(feed)


class AttachedOverSocket(Attached):
    """Likewise, through a gateway that the receiver starts."""

    name = "ringcast, attach(unix:...)"
    copies = "the writer copies into shared memory; the kernel copies in, and out into the reader"

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A feed, which is its own iterator."""
        with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as folder:
            path = Path(folder) / "gateway"
            with _started(command(self.ring, path)) as check:
                wait_listening(path, GRACE_S, check)
                with ringcast.attach(f"unix:{path}", policy="block") as feed:
                    yield iter(feed)


class AttachedToQueue(Attached):
    """Likewise, from a message queue that the gateway fills."""

    name = "ringcast, attach(mq:...)"
    copies = "the writer copies into shared memory, the gateway into a message of the queue; the"
    copies += " kernel copies in, and out into the reader"

    @contextlib.contextmanager
    def receiver(self, index: int) -> Iterator[Iterator[Any]]:  # noqa: ARG002
        """A feed, which is its own iterator."""
        words = [sys.executable, "-m", "ringcast", "gateway", self.ring, "--queue", _QUEUE]
        hold = ["--queue-policy", "block", "--hold", f"{GRACE_S}"]
        with _started([*words, *hold]) as check:
            end = time.monotonic() + GRACE_S
            # What is published before the gateway reads for the queue does not come.
            while all(reader.label != _QUEUE for reader in shm.status(self.ring).readers):
                check()
                if time.monotonic() > end:
                    raise RunFailedError("the gateway does not read the ring")
                time.sleep(_CONNECT_INTERVAL_S)
            with ringcast.attach(f"mq:{self.ring}/{_QUEUE}") as feed:
                yield (message.payload for message in feed)


@contextlib.contextmanager
def _started(words: list[str]) -> Iterator[Callable[[], None]]:
    """A gateway inside the block. Yields what raises RunFailedError if it has ended."""
    with subprocess.Popen(
        words,
        preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509 - see programs
    ) as gateway:
        try:
            yield partial(_check_runs, gateway)
        finally:
            gateway.kill()


def _check_runs(gateway: subprocess.Popen[bytes]) -> None:
    if (code := gateway.poll()) is not None:
        raise RunFailedError(f"the gateway ended with {code}")

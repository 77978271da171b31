"""placeholder"""
from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .gateway_client import ReceivingEnd, figures_of_flow
from .gateway_servers import Peer, serve
from .processes import child_processes


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ringcast-bench-") as folder:
        yield Path(folder)


def run_peer(end: ReceivingEnd, peer: type[Peer], clients: int, seconds: float) -> dict[str, float]:
    with _folder() as folder, child_processes(seconds) as children:
        path = folder / "server"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(clients)
            server = children.start(serve, listener, peer, clients, seconds)
        ends = end.start(children, folder, f"unix:{path}", clients)
        server.send()
        served = server.receive()
        return figures_of_flow(ends.results(), served["sent"], served["cpu"])

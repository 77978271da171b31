"""A manager as somebody's child process: ``python -m broker.child LEVEL``, see `Manager.start`.

Its configuration is the first line of standard input, a pipe, so no secret stands on a command
line. It says "ready" or what went wrong on standard output, logs to standard error, and stops when
the pipe is closed: its parent has ended.
"""

from __future__ import annotations

import io
import logging
import sys

import shm

from .config import Config, ConfigError
from .manager import Manager, ManagerError


def main() -> int:
    """Run it; returns the exit status."""
    logging.basicConfig(level=int(sys.argv[1]), format="%(asctime)s %(levelname)s %(message)s")
    said = False

    def ready() -> None:
        nonlocal said
        said = True
        print("ready", flush=True)

    try:
        # Unbuffered: what comes after the line is left in the pipe for the manager to watch.
        line = io.FileIO(sys.stdin.fileno(), closefd=False)
        manager = Manager(Config.from_json(_read_line(line)))
        manager.run(on_ready=ready, until_closed=sys.stdin.fileno())
    except (ConfigError, ManagerError, shm.RingError) as error:
        print(error, file=sys.stderr if said else sys.stdout, flush=True)
        return 1
    return 0


def _read_line(stream: io.FileIO) -> str:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = stream.read(1)
        if not byte:
            break
        line += byte
    return line.decode()


if __name__ == "__main__":
    sys.exit(main())

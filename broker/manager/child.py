"""A manager as somebody's child: ``python -m ringcast.child LEVEL PARENT``, see `Manager.start`.

Its configuration is the first line of standard input, a pipe, so no secret stands on a command
line. It says "ready" or what went wrong on standard output, logs to standard error from LEVEL on,
and stops when process PARENT ends, however that ends.
"""

from __future__ import annotations

import logging
import os
import sys

from ringcast import shm

from ..config import Config, ConfigError
from . import Manager, ManagerError


def main() -> int:
    """Run it; returns the exit status."""
    logging.basicConfig(level=int(sys.argv[1]), format="%(asctime)s %(levelname)s %(message)s")
    said = False

    def ready() -> None:
        nonlocal said
        said = True
        print("ready", flush=True)

    try:
        parent = os.pidfd_open(int(sys.argv[2]))
    except ProcessLookupError:
        return 1
    if os.getppid() != int(sys.argv[2]):  # it has ended already, and the number is another's
        return 1
    try:
        Manager(Config.from_json(sys.stdin.readline())).run(on_ready=ready, until=parent)
    except (ConfigError, ManagerError, shm.RingError) as error:
        print(error, file=sys.stderr if said else sys.stdout, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

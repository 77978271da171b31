"""A manager as somebody's child: ``python -m ringcast.broker.manager.child LEVEL PARENT``, see
`Manager.start`.

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
from .manager import Manager, ManagerError
from .process import READY


def main() -> int:
    """Run it; returns the exit status."""
    level, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        parent = os.pidfd_open(parent_pid)
    except ProcessLookupError:
        return 1
    if os.getppid() != parent_pid:  # it has ended already, and the number is another's
        return 1
    started = False

    def ready() -> None:
        nonlocal started
        started = True
        print(READY, flush=True)

    config: Config | None = None
    try:
        config = Config.from_json(sys.stdin.readline())
        Manager(config).run(on_ready=ready, until=parent)
    except (ConfigError, ManagerError, shm.RingError) as error:
        print(error, file=sys.stderr if started else sys.stdout, flush=True)
        return 1
    except Exception as error:
        if not started:  # the traceback follows on standard error
            words = f"{type(error).__name__}: {error}"
            print(config.redact(words) if config is not None else words, flush=True)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())

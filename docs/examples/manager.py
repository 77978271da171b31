"""A manager from Python, for a limited time.

Run it with the name of the ring, the URL of a WebSocket server, and the seconds to run:
`python docs/examples/manager.py md wss://ws.example.org/stream 60`. Meanwhile, workers attach to
`md`. `ringcast replay FILE` is a server to try it with.
"""

from __future__ import annotations

import logging
import sys
import threading

from ringcast import Config, Manager, ManagerError


def main(name: str, url: str, seconds: float) -> int:
    """Run the manager; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = Config(
        name=name,
        url=url,
        initial_messages=('{"op":"subscribe","args":["trades"]}',),
        ping_interval=5,
        slots=4096,
        capacity=4 << 20,  # with the descriptors some 4 MiB of /dev/shm
    )
    manager = Manager(config)
    ending = threading.Timer(seconds, manager.stop)
    ending.daemon = True
    try:
        manager.run(on_ready=ending.start)  # until stop(), SIGTERM or SIGINT
    except ManagerError as error:  # one that another attempt would meet again
        print(f"the manager gave up: {error}")
        return 1
    print("the manager was stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))

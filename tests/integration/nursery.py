"""Forks victims of victim.py: it has loaded what they need, which takes longer than most live.

Run with the build that has fault points. Its standard input is a socket, on which each request has
one reply, both JSON:

    ["start", FAULT, ARGUMENTS]     with the victim's standard input and output; its process id
    ["poll", PID]                   the exit code of one that has ended, or null
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from ringcast import shm
from tests.integration.victim import ROLES


def become(fault: str, arguments: list[str], fds: list[int]) -> NoReturn:
    """Be a victim. Nothing here has come to a step yet, so FAULT is still to be read."""
    os.environ["RINGCAST_FAULT"] = fault
    code = 1
    try:
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
            os.close(fd)
        role, *rest = arguments
        ROLES[role](*rest)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start(fault: str, arguments: list[str], fds: list[int]) -> int:
    """Fork; in the parent the victim's process id."""
    pid = os.fork()
    if pid == 0:
        become(fault, arguments, fds)
    for fd in fds:
        os.close(fd)
    return pid


def poll(pid: int) -> int | None:
    """How a victim ended, if it has."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def serve(requests: socket.socket) -> None:
    """Do what is asked for, until the other end is closed."""
    while True:
        request, fds, _, _ = socket.recv_fds(requests, 1 << 16, 2)
        if not request:
            return
        reply: int | None
        match json.loads(request):
            case ["start", fault, arguments]:
                reply = start(fault, arguments, fds)
            case ["poll", pid]:
                reply = poll(pid)
            case other:
                raise ValueError(other)
        requests.send(json.dumps(reply).encode())


if __name__ == "__main__":
    if not Path(shm.__file__).is_relative_to(Path.cwd()):
        sys.exit(f"{shm.__file__} is not the build with the fault points")
    serve(socket.socket(fileno=0))

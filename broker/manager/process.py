"""A manager as a child process of this one; child.py is its other end."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from typing import IO, Final

from ..config import Config
from ..logs import log

__all__ = ["READY", "ManagerProcess", "StartError"]

READY: Final = "ready"
"""What the child says on standard output when workers can attach; anything else says why not."""

_START_TIMEOUT: Final = 30.0
_KILL_AFTER: Final = 5.0
"""Seconds that each further step of ending a child waits."""
_WORDS_MAX: Final = 1 << 16
"""Bytes of what a child that does not start may say."""
_READ: Final = 1 << 12


class StartError(Exception):
    """The child did not start; the message is its own explanation, or what is known without one."""


class ManagerProcess:
    """The child, from the moment that workers can attach.

    Args:
        config: reaches the child through a pipe: no secret stands on a command line.

    Raises:
        StartError: it did not start. Nothing of it is left.
    """

    def __init__(self, config: Config) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # not the working directory: a user's select.py is not ours
                "-m",
                "ringcast.broker.manager.child",
                str(log.getEffectiveLevel()),
                str(os.getpid()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the child
        )
        try:
            self._await_start(config)
        except BaseException:
            self.end(0)
            raise

    def _await_start(self, config: Config) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # both are pipes
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: what it said is the reason
            stdin.write(config.as_json().encode() + b"\n")
            stdin.flush()
        words, ended = _first_words(stdout, _START_TIMEOUT)
        if words == READY:
            return
        if words:
            raise StartError(words)
        if not ended:
            raise StartError(f"the manager did not start within {_START_TIMEOUT:g} s")
        status = self.join(_KILL_AFTER)
        raise StartError(
            f"the manager's process ended with exit code {status} before it was ready; what it"
            " wrote to standard error says why"
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def join(self, timeout: float | None = None) -> int | None:
        """Wait for its end; the exit code, or None at the time-out."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def end(self, timeout: float) -> None:
        """Stop it in order and wait `timeout` seconds; then at once, then kill it."""
        for step in (self._process.terminate, self._process.terminate, self._process.kill):
            step()
            if self.join(timeout) is not None:
                break
            timeout = _KILL_AFTER
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of what it died without reading
                pipe.close()


def _first_words(stream: IO[bytes], seconds: float) -> tuple[str, bool]:
    """The line READY, or else all that is said up to the end of the stream or the time-out; and
    whether the stream has ended."""
    said = b""
    until = time.monotonic() + seconds
    ended = False
    while not ended and len(said) < _WORDS_MAX and said != READY.encode() + b"\n":
        left = until - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            break
        piece = os.read(stream.fileno(), _READ)
        said += piece
        ended = not piece
    return said.decode("utf-8", "replace").strip(), ended

"""A process that works beside the manager, and ends with it: the gateway of `Config.listen`.

The manager's own thread has no part in it. Another one starts the process, sleeps in poll(2) until
it ends or is to end, and starts it again. If the manager is killed, nobody is left to end the
process, so it watches the manager itself: `--parent` says which process that is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from ..backoff import Backoff
from ..config import Config
from ..logs import log, log_event, present_format
from .wakeup import StopRequest, Wakeup

__all__ = ["Companion", "gateway_beside"]

_PAUSE_FIRST: Final = 0.2
_PAUSE_MAX: Final = 10.0
"""Seconds, at most, before a process that has ended is started again: see `Backoff`."""
_STABLE: Final = 30.0
"""A process that has lived for so many seconds makes the next pauses short again."""
_KILL_AFTER: Final = 5.0
"""Seconds that the process has to end in order."""
_KILL_AT_ONCE: Final = 0.5
"""Likewise, when the manager is to wait for nothing: time to remove the files of its sockets."""
_END_LOOK: Final = 0.02
"""Seconds between two looks whether the process that was asked to end has done so."""
_WORDS_MAX: Final = 1 << 12
"""Bytes of what the process said went wrong."""


@contextlib.contextmanager
def gateway_beside(config: Config, stop: StopRequest) -> Iterator[None]:
    """Inside the block, a gateway serves the ring at `config.listen`; none if that is empty."""
    if not config.listen:
        yield
        return
    # All of this can be read by everybody, and nothing of it is secret.
    command = [sys.executable, "-P", "-m", "ringcast", "gateway", config.name]
    for address in config.listen:
        command += ["--listen", address]
    command += ["--parent", str(os.getpid())]
    command += ["--log", present_format(), "--log-level", str(log.getEffectiveLevel())]
    with Companion("gateway", command, config.name, stop):
        yield


class _End(NamedTuple):
    """How a process ended."""

    exit_code: int | None
    """As `subprocess` has it: the negative number of the signal that killed it. None: it was never
    started."""
    error: str | None
    """What it said of it on standard output, or why it could not be started."""


class Companion:
    """Keeps a process running. As a context manager: from the block's begin to its end, at which
    the process is ended in order, or killed if that takes longer than 5 s.

    A process that ends by itself is started again after a pause, for as long as no stop is wished.
    What it writes to standard output is taken for the reason of its end.

    Args:
        what: it is, for the log.
        command: starts it. It should end by itself when this process does.
        ring: the manager's, for the log.
        stop: the wish to stop. If that is to happen at once, the process has less time.
    """

    def __init__(self, what: str, command: Sequence[str], ring: str, stop: StopRequest) -> None:
        self._what = what
        self._command = command
        self._ring = ring
        self._stop = stop
        self._is_over = False
        self._wakeup = Wakeup()
        self._thread = threading.Thread(target=self._keep, name=f"ringcast {what}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._is_over = True
        self._wakeup.set()
        self._thread.join()

    # -- in its thread

    def _keep(self) -> None:
        backoff = Backoff(_PAUSE_FIRST, _PAUSE_MAX, _STABLE)
        while not self._is_unwanted:
            began = time.monotonic()
            end = self._run_once()
            if self._is_unwanted:
                break
            backoff.connected_for(time.monotonic() - began)
            pause = backoff.pause(None)
            log_event(
                logging.WARNING,
                f"{self._what} ended",
                ring=self._ring,
                exit_code=end.exit_code,
                error=end.error,
                restart_in=round(pause, 3),
            )
            self._sleep(seconds=pause)

    @property
    def _is_unwanted(self) -> bool:
        return self._is_over or self._stop.is_made

    def _run_once(self) -> _End:
        """Start the process and wait for its end, or end it when the block ends."""
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the manager, whose last messages it serves
            )
        except OSError as error:
            return _End(None, str(error))
        assert process.stdout is not None
        with process.stdout as words:
            try:
                log_event(logging.INFO, f"{self._what} started", ring=self._ring, pid=process.pid)
                life = os.pidfd_open(process.pid)
                try:
                    self._sleep(life)
                finally:
                    os.close(life)
            except OSError as error:  # too many files are open: nobody could watch it
                return _End(None, str(error))
            finally:
                self._end(process)
            return _End(process.returncode, _last_words(words))

    def _sleep(self, life: int | None = None, *, seconds: float | None = None) -> None:
        """Sleep until the block ends, the process does whose pidfd is `life`, or the time is
        over."""
        poll = select.poll()
        poll.register(self._wakeup.fd, select.POLLIN)
        if life is not None:
            poll.register(life, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Let the process end, if it has not, and take its exit code: no zombie stays."""
        process.terminate()  # nothing, if it has ended
        asked_at = time.monotonic()
        while process.poll() is None:
            limit = _KILL_AT_ONCE if self._stop.at_once else _KILL_AFTER
            if time.monotonic() - asked_at > limit:
                log_event(logging.WARNING, f"{self._what} is killed", ring=self._ring)
                process.kill()
                process.wait()
                break
            time.sleep(_END_LOOK)


def _last_words(stream: IO[bytes]) -> str | None:
    """What a process that has ended wrote into the pipe."""
    os.set_blocking(stream.fileno(), False)  # if somebody else holds the pipe, it has no end
    try:
        said = os.read(stream.fileno(), _WORDS_MAX)
    except BlockingIOError:
        return None
    return " ".join(said.decode("utf-8", "replace").split()) or None

"""The manager as its user sees it: run here, or as a child process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Final, Self

from ..config import Config
from .companion import gateway_beside
from .loop import Session
from .process import ManagerProcess, StartError
from .rings import open_rings
from .wakeup import StopRequest

__all__ = ["Manager", "ManagerError"]

_END_SLACK: Final = 10.0
"""Seconds beyond `Config.drain_timeout` that a child and its gateway may take to stop in order."""


class ManagerError(RuntimeError):
    """The manager stopped, or did not start, for the reason that the message gives."""


class Manager:
    """Holds one connection and writes what it receives into the ring that workers attach to.

    Args:
        config: what to connect to, and the ring's name and size.

    `run` works in the calling thread until it is stopped; `start` does so in a child process. As a
    context manager it is such a child, started and stopped.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stop = StopRequest()
        self._child: ManagerProcess | None = None

    def stop(self) -> None:
        """Stop `run`, orderly; a second call stops at once. From any thread, or a signal handler.

        It does not stop a child: that is stopped at the end of the ``with`` block.
        """
        self._stop.make()

    def run(self, *, on_ready: Callable[[], None] | None = None, until: int | None = None) -> None:
        """Do the work until `stop` or SIGTERM or SIGINT (in the main thread), or until the
        connection can't be had any more.

        A ring of that name whose manager died is resumed: its workers read on. With
        `Config.listen`, a gateway runs as a process of its own until this returns.

        Args:
            on_ready: called once, when workers can attach.
            until: a descriptor that stops the manager, too, when it becomes readable: a pidfd
                of whoever started it, or a pipe that is closed.

        Raises:
            ManagerError: it stopped because of an error: one that another attempt would meet again
                (401, 403, 404, a bad certificate), or any, if `Config.reconnect` is off.
            ConfigError: sizes that no ring can have, or a topic function that can't be had.
            shm.RingExists: another manager of this name lives.
            shm.RingError: the ring can't be made.
        """
        with self._signals(), open_rings(self.config) as rings:  # a signal does not end the end
            session = Session(self.config, rings, self._stop, until)
            with gateway_beside(self.config, self._stop):
                if on_ready is not None:
                    on_ready()
                error = session.run()
        if error is not None:
            raise ManagerError(error)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop; only the main thread may set handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_signal: int, _frame: FrameType | None) -> None:
            self.stop()

        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- as a child process

    def start(self) -> None:
        """Run in a child process; returns when workers can attach. It stops when this process
        ends, and logs to standard error, at this process's level.

        Raises:
            ManagerError: it did not start; the message is what the child said of it.
        """
        if self._child is not None:
            raise ManagerError(f"the manager of {self.config.name!r} runs already")
        try:
            self._child = ManagerProcess(self.config)
        except StartError as error:
            raise ManagerError(str(error)) from None

    @property
    def pid(self) -> int | None:
        """The child's process id, or None if there is none."""
        return self._child.pid if self._child is not None else None

    def join(self, timeout: float | None = None) -> int | None:
        """Wait for the child to end; its exit code (0 fine, 1 failed), or None at the time-out."""
        return self._child.join(timeout) if self._child is not None else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Stop the child, orderly, and wait for it; at once if it takes longer than it may."""
        child, self._child = self._child, None
        if child is not None:
            child.end(self.config.drain_timeout + _END_SLACK)

"""Child processes of a run.

Every run starts fresh child processes, so no run inherits caches, garbage or a backlog from
another. Nothing that a child does is unbounded. A wait for a child gives up at a deadline. Each
child also has a sleeping thread that ends it after the deadline, or when the benchmark has died.
If something goes wrong in a child, above all if it receives wrong contents, the benchmark fails.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Concatenate, Final, Literal, ParamSpec

from .errors import ChildFailedError, ProcessDiedError, RunFailedError
from .programs import POLL_INTERVAL_S, Program, ProgramResult

GRACE_S: Final = 30.0
"""Seconds that a child may take beyond the duration of the run."""

END_TIMEOUT_S: Final = 10.0
"""Seconds that a child has to end in good order after its deadline."""

Placement = Literal["anywhere", "apart", "together"]
"""The cores that children run on: any, as the scheduler likes; a core each, as far as there are
enough; or one core for all."""

Params = ParamSpec("Params")


class Channel:
    """One end of the conversation between the benchmark and a child. It carries JSON values.

    Attributes:
        deadline_s: seconds after which `receive` gives up.
    """

    def __init__(
        self, connection: Connection, deadline_s: float, check_others: Callable[[], None]
    ) -> None:
        self._connection = connection
        self.deadline_s = deadline_s
        self._check_others = check_others

    def send(self, value: Any = None) -> None:
        """Send a value, which the other end's `receive` returns.

        Raises:
            RunFailedError: the other end died.
        """
        self._send({"value": value})

    def send_failure(self, error: Exception) -> None:
        """Make the other end's `receive` raise. Raises as `send`."""
        found_wrong = isinstance(error, RunFailedError)
        self._send({"failed": traceback.format_exc(), "found_wrong": found_wrong})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:
            raise ProcessDiedError from None

    def has_message(self, seconds: float) -> bool:
        """Wait at most so long for a message. Returns whether there is one."""
        return self._connection.poll(seconds)

    def receive(self) -> Any:
        """Return the next value from the other end.

        Raises:
            RunFailedError: the other end failed, died, or sent nothing until the deadline; or
                another child failed, so waiting would be in vain.
        """
        end = time.monotonic() + self.deadline_s
        while not self._connection.poll(POLL_INTERVAL_S):
            if time.monotonic() > end:
                raise RunFailedError(f"a process sent nothing in {self.deadline_s:.0f} s")
            self._check_others()
        try:
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise ProcessDiedError from None
        if "failed" in message:
            raise ChildFailedError(message["failed"], found_wrong=message["found_wrong"])
        return message["value"]

    def failure(self) -> RunFailedError | None:
        """Return the failure that the other end has sent and nobody has received yet, if any."""
        try:
            while self.has_message(POLL_INTERVAL_S):
                self.receive()
        except RunFailedError as failure:
            return failure
        return None


# ---- in the child --------------------------------------------------------------------------


def _raise_timeout(_signal: int, _frame: object) -> None:
    raise TimeoutError("this process ran beyond its deadline")


def _start_watchdog(parent: int, seconds: float) -> None:
    """Start a thread that raises TimeoutError in the main thread after so many seconds, or when the
    parent dies, and ends the process if that does not help.

    This is not an alarm: the kernel may deliver its signal to a thread of some library, and the
    main thread would sleep on in whatever it waits for."""
    signal.signal(signal.SIGALRM, _raise_timeout)
    main = threading.get_ident()
    life = os.pidfd_open(parent)
    if os.getppid() != parent:
        raise RunFailedError("the benchmark died")
    ends = select.poll()
    ends.register(life, select.POLLIN)

    def watch() -> None:
        ends.poll(seconds * 1000)
        signal.pthread_kill(main, signal.SIGALRM)
        time.sleep(END_TIMEOUT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_child(
    target: Callable[Concatenate[Channel, Params], None],
    channel: Channel,
    deadline_s: float,
    parent: int,
    core: int | None,
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    for number in (signal.SIGINT, signal.SIGHUP):  # they end the parent, and that ends this child
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _start_watchdog(parent, deadline_s + 1)
        target(channel, *args, **kwargs)
    except Exception as error:
        with contextlib.suppress(RunFailedError):
            channel.send_failure(error)
        os._exit(1)  # a regular exit may wait for ever for a library's thread to write what is left


def pin_to_core(core: Literal["first", "last"]) -> None:
    """Keep this process on the first or the last core that it may use."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0 if core == "first" else -1]})


def on_last_core(
    channel: Channel,
    target: Callable[Concatenate[Channel, Params], None],
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> None:
    """Run `target` in this child, on the last core."""
    pin_to_core("last")
    target(channel, *args, **kwargs)


# ---- in the benchmark ----------------------------------------------------------------------


class Children:
    """The child processes of one run. `child_processes` makes it and ends them."""

    def __init__(self, deadline_s: float, cores: Iterator[int | None]) -> None:
        self.deadline_s = deadline_s
        self.cores = cores
        self.processes: list[BaseProcess] = []
        self.channels: list[Channel] = []
        self.programs: list[Program] = []

    def start(
        self,
        target: Callable[Concatenate[Channel, Params], None],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Channel:
        """Run ``target(channel, *args)`` in a forked child. Returns this end of its channel."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        channel = Channel(theirs, self.deadline_s, lambda: None)
        process = context.Process(
            target=_run_child,
            args=(target, channel, self.deadline_s, os.getpid(), next(self.cores), *args),
            kwargs=kwargs,
        )
        process.start()
        theirs.close()
        self.processes.append(process)
        self.channels.append(Channel(ours, self.deadline_s, self.check))
        return self.channels[-1]

    def start_program(
        self,
        command: Sequence[str],
        parse: Callable[[str], ProgramResult] = ProgramResult.parse,
    ) -> Program:
        """Run a program that prints its figures as one line of JSON (see `programs`), which `parse`
        reads. It ends with the run, whatever happens.

        Raises:
            RunFailedError: it cannot be started.
        """
        program = Program(
            command,
            core=next(self.cores),
            deadline_s=self.deadline_s,
            check_others=self.check,
            parse=parse,
        )
        self.programs.append(program)
        return program

    def stop(self, channel: Channel) -> None:
        """Kill a child that waits for something that no longer comes."""
        at = self.channels.index(channel)
        process = self.processes.pop(at)
        del self.channels[at]
        process.kill()
        process.join()
        process.close()

    def check(self) -> None:
        """Raise RunFailedError if a child or a program has failed."""
        for program in self.programs:
            program.check()
        if any(process.exitcode for process in self.processes):
            raise ProcessDiedError

    def cause_of(self, failure: RunFailedError) -> RunFailedError:
        """Return the cause of a failure.

        A child that ends makes others fail, and their failures may be received first. So this
        looks at the failures of all: one that found something wrong comes first, then one that
        failed otherwise, then one that only ended.
        """
        reported = [failure, *filter(None, (channel.failure() for channel in self.channels))]
        for program in self.programs:
            try:
                program.check()
            except ChildFailedError as failed:
                reported.append(failed)
        cause = max(reported, key=lambda one: one.closeness)
        for process in self.processes:
            process.join(POLL_INTERVAL_S)
        codes = [process.exitcode for process in self.processes if process.exitcode]
        if isinstance(cause, ProcessDiedError) and codes:  # the number of a signal is negative
            return RunFailedError(f"a child process ended with {min(codes)}")
        return cause

    def join(self) -> None:
        """Wait until every child and program has ended well.

        Raises:
            RunFailedError: one failed, or did not end within the deadline.
        """
        end = time.monotonic() + self.deadline_s
        while alive := [p.sentinel for p in self.processes if p.exitcode is None]:
            if time.monotonic() > end:
                raise RunFailedError(f"a child process did not end in {self.deadline_s:.0f} s")
            self.check()
            wait(alive, POLL_INTERVAL_S)
        for program in self.programs:
            program.result()
        self.check()

    def kill(self) -> None:
        """Kill whatever still runs."""
        for program in self.programs:
            program.kill()
        for process in self.processes:
            process.kill()
            process.join()
            process.close()


@contextlib.contextmanager
def child_processes(seconds: float, placement: Placement = "anywhere") -> Iterator[Children]:
    """Child processes for a run of about so many seconds. None of them outlives the block.

    They are placed on cores in the order in which they start.
    """
    cores = sorted(os.sched_getaffinity(0))
    orders: dict[Placement, Sequence[int | None]] = {
        "anywhere": (None,),
        "apart": cores,
        "together": cores[:1],
    }
    children = Children(seconds + GRACE_S, itertools.cycle(orders[placement]))
    try:
        yield children
        children.join()
    except RunFailedError as failure:
        if (cause := children.cause_of(failure)) is not failure:
            raise cause from failure
        raise
    finally:
        children.kill()

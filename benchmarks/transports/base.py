"""What a way of carrying messages must be able to do to be compared.

A transport is a class; an object of it is a link, from one sender (some take more) to so many
receivers. It is made in the parent process, `open` there around the life of all children, and used
in the children: `sender` in the one that sends, `receiver` in each that receives. The sender's side
is entered first, unless `receiver_first`.

What a link hands out does the work itself: `Outlet.send` is, where that can be, the very function
of the library that is measured, and what a receiver iterates over are the library's own objects,
so that nothing of the benchmark stands in between.
"""

from __future__ import annotations

import abc
import contextlib
import importlib.util
import resource
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

Wait = Literal["block", "spin"]
"""How a side waits: asleep, or asking over and over."""

GROUP: Final = 64
"""Messages that a batched transport takes at once."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes used.

    Attributes:
        cpu_s: CPU time, user and system, seconds.
        switches: context switches, voluntary or not.
    """

    cpu_s: float
    switches: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_s + other.cpu_s, self.switches + other.switches)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu_s - other.cpu_s, self.switches - other.switches)

    @classmethod
    def own(cls) -> Usage:
        """Of this process until now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(used.ru_utime + used.ru_stime, used.ru_nvcsw + used.ru_nivcsw)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds, bytes.

    Attributes:
        private: anonymous memory, what it has of its parent's included.
        shared: memory that is there to be shared, divided among those that do.
    """

    private: int
    shared: int

    @classmethod
    def own(cls) -> Memory:
        """Of this process now (proc(5), smaps_rollup)."""
        held = {"Anonymous": 0, "Pss_Shmem": 0}
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in held:
                held[name] = int(rest.split()[0]) << 10
        return cls(held["Anonymous"], held["Pss_Shmem"])

    def beyond(self, before: Memory) -> int:
        """Private memory more than before, and all that is shared."""
        return max(0, self.private - before.private) + self.shared


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Outlet:
    """The sending side of a link.

    Attributes:
        send: sends one item as `Transport.prepare` makes them; waits while there is no room.
        send_all: sends items one after the other, where a library has more to say to that than a
            loop over `send`; None if it has not.
        settle: called when every receiver is there; returns when each would get what is sent.
    """

    send: Callable[[Any], object]
    send_all: Callable[[Sequence[Any]], object] | None = None
    settle: Callable[[], object] = nothing


class Transport(abc.ABC):
    """A way of carrying messages; an object of it is a link.

    Attributes:
        name: what it is called in tables.
        copies: who copies a message and who allocates for it, in a line.
        modules: what it imports that is not in ringcast's own dependencies.
        program: the server it needs, or None.
        group: messages an item has: 1, or `GROUP` if it takes many at once.
        lossy: whether messages may be missing.
        fans_out: whether one link reaches many receivers; else each has a link of its own, and who
            sends to many sends to each.
        many_senders: whether a link may have more than one sender.
        receiver_first: whether the receiver's side has to be there before the senders'.
        arrays: whether a receiver gets `shm.broadcast.Batch`es, not messages.
        waits: how its sides can wait.
    """

    name: ClassVar[str]
    copies: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    program: ClassVar[str | None] = None
    group: ClassVar[int] = 1
    lossy: ClassVar[bool] = False
    fans_out: ClassVar[bool] = False
    many_senders: ClassVar[bool] = False
    receiver_first: ClassVar[bool] = False
    arrays: ClassVar[bool] = False
    waits: ClassVar[frozenset[Wait]] = frozenset({"block", "spin"})

    def __init__(
        self, size: int, *, readers: int = 1, senders: int = 1, wait: Wait = "block"
    ) -> None:
        self.size = size
        self.readers = readers
        self.senders = senders
        self.wait = wait

    @classmethod
    def missing(cls) -> str | None:
        """Why it can't be used here, with what to do about it; None if it can."""
        for module in cls.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed: pip install 'ringcast[bench]'"
        if cls.program is not None and find_program(cls.program) is None:
            return f"the program {cls.program} is not installed"
        return None

    @classmethod
    def largest(cls) -> int | None:
        """The most bytes a message can have; None if that is more than anybody asks for."""
        return None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """In the parent, before any child begins: make what both sides need; end it."""
        yield

    def prepare(self, payloads: Sequence[bytes]) -> list[Any]:
        """Items for `Outlet.send`, made before anything is measured."""
        if self.group == 1:
            return list(payloads)
        return [payloads[i : i + self.group] for i in range(0, len(payloads), self.group)]

    @abc.abstractmethod
    def sender(self) -> contextlib.AbstractContextManager[Outlet]:
        """In a child that sends."""

    @abc.abstractmethod
    def receiver(self, index: int) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """In a child that receives, one of `readers`: its messages in order, without end. Each is
        valid until the next is asked for. With `arrays`: batches."""

    def usage(self) -> Usage:
        """What a server in between has used until now."""
        return Usage(0.0, 0)


def find_program(name: str) -> str | None:
    """Where a program is: on the path, or where pip puts programs."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def usage_of(pid: int) -> Usage:
    """What another process has used until now, from /proc."""
    switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text(encoding="utf-8").splitlines():
            if "ctxt_switches" in line:
                switches += int(line.split()[1])
    # The clock that clock_getcpuclockid(3) gives for a process: ns, where /proc has ticks of 10 ms.
    return Usage(time.clock_gettime(~pid << 3 | 2), switches)

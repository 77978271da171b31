"""The interface of a transport: what a way of carrying messages must do to be compared.

A transport is a class. An object of it is a link from one sender (some allow more) to so many
receivers. The parent process makes the link and keeps it `open` while the children live. The
children use it: the one that sends enters `sender`, each that receives enters `receiver`. The
sender's side is entered first, unless `receiver_first` says otherwise.

Nothing of the benchmark stands between a library and its use. `LinkSender.send` is, where
possible, the very function of the library that is measured, and a receiver iterates over the
library's own objects.
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
"""How a side waits: asleep, or by asking over and over."""

BATCH_SIZE: Final = 64
"""Number of messages that a batched transport takes at once."""


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
        """What this process has used until now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(used.ru_utime + used.ru_stime, used.ru_nvcsw + used.ru_nivcsw)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds, bytes.

    Attributes:
        private: anonymous memory, including what it has from its parent.
        shared: its part of memory that is made for sharing, divided among those that share it.
    """

    private: int
    shared: int

    @classmethod
    def own(cls) -> Memory:
        """What this process holds now (proc(5), smaps_rollup)."""
        held = {"Anonymous": 0, "Pss_Shmem": 0}
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in held:
                held[name] = int(rest.split()[0]) << 10
        return cls(held["Anonymous"], held["Pss_Shmem"])

    def beyond(self, before: Memory) -> int:
        """Private memory beyond what it was before, plus all shared memory."""
        return max(0, self.private - before.private) + self.shared


def _do_nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class LinkSender:
    """The sending side of a link.

    Attributes:
        send: sends one item of those that `Transport.prepare` makes; waits while there is no room.
        send_all: sends items one after the other, if a library has something better for that than
            a loop over `send`; else None.
        wait_for_receivers: is called once every receiver is attached; returns when each would get
            what is sent.
    """

    send: Callable[[Any], object]
    send_all: Callable[[Sequence[Any]], object] | None = None
    wait_for_receivers: Callable[[], object] = _do_nothing


class Transport(abc.ABC):
    """A way of carrying messages. An object of it is a link.

    Attributes:
        name: its title in tables.
        copies: who copies a message and who allocates for it, in a line.
        modules: what it imports beyond ringcast's own dependencies.
        program: the server it needs, or None.
        item_messages: number of messages per item: 1, or `BATCH_SIZE` if it takes many at once.
        lossy: whether messages may be missing.
        fans_out: whether one link reaches many receivers. Otherwise each receiver has a link of its
            own, and the sender sends to each.
        many_senders: whether a link may have more than one sender.
        receiver_first: whether the receiver has to be attached before the senders.
        yields_batches: whether a receiver gets `shm.broadcast.Batch`es instead of messages.
        waits: how its sides can wait.
    """

    name: ClassVar[str]
    copies: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    program: ClassVar[str | None] = None
    item_messages: ClassVar[int] = 1
    lossy: ClassVar[bool] = False
    fans_out: ClassVar[bool] = False
    many_senders: ClassVar[bool] = False
    receiver_first: ClassVar[bool] = False
    yields_batches: ClassVar[bool] = False
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
        """Why it cannot be used here, and what to do about it; None if it can be used."""
        for module in cls.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed: pip install 'ringcast[bench]'"
        if cls.program is not None and find_program(cls.program) is None:
            return f"the program {cls.program} is not installed"
        return None

    @classmethod
    def largest(cls) -> int | None:
        """The largest message in bytes; None if it is larger than any that is measured."""
        return None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make what both sides need, and remove it at the end. In the parent, around children."""
        yield

    def prepare(self, payloads: Sequence[bytes]) -> list[Any]:
        """Make items for `LinkSender.send`, before anything is measured."""
        if self.item_messages == 1:
            return list(payloads)
        return [
            payloads[i : i + self.item_messages]
            for i in range(0, len(payloads), self.item_messages)
        ]

    @abc.abstractmethod
    def sender(self) -> contextlib.AbstractContextManager[LinkSender]:
        """The sending side. In a child."""

    @abc.abstractmethod
    def receiver(self, index: int) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """The receiving side number `index` of `readers`: its messages in order, without end; with
        `yields_batches`, batches. Each is valid until the next is requested. In a child."""

    def usage(self) -> Usage:
        """What a server between the sides has used until now."""
        return Usage(0.0, 0)

    def is_acknowledged(self) -> bool:
        """Where receivers share messages out: whether all have been acknowledged. True where there
        are no acknowledgements. In the parent.

        Raises:
            RunFailedError: one was delivered more than once.
        """
        return True


def find_program(name: str) -> str | None:
    """The path of a program, on PATH or where pip installs programs; None if it is missing."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def cpu_s_of(pid: int) -> float:
    """CPU seconds, user and system, that another process has used until now."""
    # The clock that clock_getcpuclockid(3) returns. It counts ns; /proc counts ticks of 10 ms.
    return time.clock_gettime(~pid << 3 | 2)


def usage_of(pid: int) -> Usage:
    """What another process has used until now."""
    switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text(encoding="utf-8").splitlines():
            if "ctxt_switches" in line:
                switches += int(line.split()[1])
    return Usage(cpu_s_of(pid), switches)

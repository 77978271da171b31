"""A process of endpoints.c: C readers, members and senders that do what a test asks."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from tests.conftest import DEADLINE

from .toolchain import OPTIONS, REPORT

Answer = dict[str, Any]

FOREVER: Final = -1
POLICIES: Final = ("block", "lossy")
STARTS: Final = ("latest", "oldest", "sequence")
BALANCES: Final = ("any", "key", "round-robin")
STRATEGIES: Final = ("blocking", "busy-spin", "yielding")
MANY: Final = 4096
"""The most messages that one `read_many` of endpoints.c asks for."""


class Status(IntEnum):
    """`ringcast_status`."""

    OK = 0
    TIMEOUT = 1
    ENDED = 2
    INVALID = 3
    NOT_FOUND = 4
    LAYOUT_MISMATCH = 5
    CORRUPT = 6
    SYSTEM = 7
    NO_MEMORY = 8
    TOO_MANY_READERS = 9
    TOO_MANY_SENDERS = 10
    EVICTED = 11
    CLOSED = 12
    FULL = 13
    MESSAGE_TOO_LARGE = 14
    SEND_REJECTED = 15
    SEND_UNCONFIRMED = 16


def ns(seconds: float) -> int:
    """A timeout as C takes it."""
    return FOREVER if seconds < 0 else int(seconds * 1e9)


def joined(topics: Sequence[str]) -> str:
    """Names and patterns as endpoints.c takes them."""
    return "|".join(topics) if topics else "-"


class Followed(NamedTuple):
    """What came of `follow` or `loop`."""

    messages: list[Answer]
    end: Answer


class Worked(NamedTuple):
    """What a member did that was asked to `work`: messages that it was handed, and the sequences of
    those that it was about to acknowledge and to give back, each in order."""

    taken: list[Answer]
    done: list[int]
    back: list[int]


def sorted_out(lines: list[Answer]) -> Worked:
    """What lines of `work` say."""
    return Worked(
        [line for line in lines if "sequence" in line],
        [line["done"] for line in lines if "done" in line],
        [line["back"] for line in lines if "back" in line],
    )


class Ends:
    """One process. Ends are numbered from 0 to 7, readers, members and senders each."""

    def __init__(self, command: list[str], errors: Path) -> None:
        self._errors = errors
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env=os.environ | OPTIONS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._pump = threading.Thread(target=self._read_lines, daemon=True)
        self._pump.start()

    def _read_lines(self) -> None:
        """Take what is printed at once: a full pipe would stop the process. At last, b""."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    @property
    def pid(self) -> int:
        return self._process.pid

    # -- requests

    def begin(self, *request: object) -> None:
        """Ask, and do not wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, request)).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Answer:
        """The next line of the answer."""
        line = self._lines.get(timeout=DEADLINE)
        assert line, f"the process ended:\n{self._errors.read_text(encoding='utf-8')}"
        answer = json.loads(line)
        assert isinstance(answer, dict)
        answer["status"] = Status(answer["status"])
        return answer

    def ask(self, *request: object) -> Answer:
        """Ask, and wait for the answer."""
        self.begin(*request)
        return self.answer()

    def attach(
        self,
        name: str,
        end: int = 0,
        *,
        policy: str = "block",
        start: str | int = "latest",
        wait: str = "blocking",
        spin_us: int = 0,
        events: bool = False,
        owner: int = 0,
        label: str = "-",
        topics: Sequence[str] | None = None,
        others: bool = False,
    ) -> Answer:
        """Attach a reader; a `start` that is a number is a sequence."""
        kind, sequence = (start, 0) if isinstance(start, str) else ("sequence", start)
        numbers = (POLICIES.index(policy), STARTS.index(kind), sequence, STRATEGIES.index(wait))
        choices = (int(topics is not None), int(others), joined(topics or ()))
        return self.ask(
            "attach", end, name or "-", *numbers, spin_us, int(events), owner, label, *choices
        )

    def attached(self, name: str, end: int = 0, **options: Any) -> None:
        """Attach a reader, which has to work."""
        answer = self.attach(name, end, **options)
        assert answer["status"] is Status.OK, answer

    def read(self, end: int = 0, timeout: float = 0) -> Answer:
        """One message, or why there is none."""
        return self.ask("read", end, ns(timeout))

    def read_many(self, limit: int, end: int = 0, timeout: float = 0) -> Answer:
        """Many at once."""
        return self.ask("read_many", end, limit, ns(timeout))

    def subscribe(self, *topics: str, end: int = 0) -> Answer:
        return self.ask("subscribe", end, joined(topics))

    def unsubscribe(self, *topics: str, end: int = 0) -> Answer:
        return self.ask("unsubscribe", end, joined(topics))

    def topic_name(self, topic: int, end: int = 0) -> str | None:
        """The name that C finds for a topic."""
        found = self.ask("topic_name", end, topic)
        return str(found["name"]) if found["known"] else None

    def info(self, end: int = 0) -> Answer:
        return self.ask("info", end)

    def begin_following(
        self, end: int = 0, *, limit: int = 1, timeout: float = FOREVER, loop: bool = False
    ) -> None:
        """Read until something ends that; with `loop`, as an event loop does."""
        if loop:
            self.begin("loop", end, limit)
        else:
            self.begin("follow", end, limit, ns(timeout))

    def messages(self) -> Iterator[Answer]:
        """Messages that come, and at last the answer that is none."""
        while True:
            answer = self.answer()
            yield answer
            if "sequence" not in answer:
                return

    def followed(self) -> Followed:
        """All messages, and how it ended."""
        *messages, end = self.messages()
        return Followed(messages, end)

    # -- members

    def join(
        self,
        name: str,
        group: str = "g",
        end: int = 0,
        *,
        balance: str | int = "any",
        max_deliveries: int = 0,
        start: str | int = "latest",
        wait: str = "blocking",
        spin_us: int = 0,
        owner: int = 0,
        label: str = "-",
        topics: Sequence[str] | None = None,
        others: bool = False,
    ) -> Answer:
        """Join a group; a `start` that is a number is a sequence, "-" as a group is NULL."""
        kind, sequence = (start, 0) if isinstance(start, str) else ("sequence", start)
        number = BALANCES.index(balance) if isinstance(balance, str) else balance
        numbers = (number, max_deliveries, STARTS.index(kind), sequence, STRATEGIES.index(wait))
        choices = (int(topics is not None), int(others), joined(topics or ()))
        return self.ask("join", end, name, group or "''", *numbers, spin_us, owner, label, *choices)

    def joined(self, name: str, group: str = "g", end: int = 0, **options: Any) -> None:
        """Join a group, which has to work."""
        answer = self.join(name, group, end, **options)
        assert answer["status"] is Status.OK, answer

    def take(self, end: int = 0, timeout: float = 0) -> Answer:
        """One message, or why there is none."""
        return self.ask("take", end, ns(timeout))

    def take_many(self, limit: int, end: int = 0, timeout: float = 0) -> Answer:
        """Many at once."""
        return self.ask("take_many", end, limit, ns(timeout))

    def acknowledge(self, *sequences: int, end: int = 0) -> Answer:
        return self.ask("acknowledge", end, ",".join(map(str, sequences)))

    def give_back(self, *sequences: int, end: int = 0) -> Answer:
        return self.ask("give_back", end, ",".join(map(str, sequences)))

    def member_info(self, end: int = 0) -> Answer:
        return self.ask("member_info", end)

    def begin_working(self, end: int = 0, *, limit: int = 1, back: int = 0) -> None:
        """Take and acknowledge, `limit` at a time, until something ends that; every `back`-th is
        given back first."""
        self.begin("work", end, limit, FOREVER, back)

    def worked(self) -> tuple[Worked, Answer]:
        """All that a member did, and how it ended."""
        lines = []
        while not {"sequence", "done", "back"}.isdisjoint(answer := self.answer()):
            lines.append(answer)
        return sorted_out(lines), answer

    # -- senders

    def send(self, payload: bytes, end: int = 0, *, kind: int = 1, timeout: float = 0) -> Answer:
        return self.ask("send", end, kind, ns(timeout), payload.hex() or "-")

    def flush(self, end: int = 0, timeout: float = 0) -> Answer:
        return self.ask("flush", end, ns(timeout))

    # -- life and death

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait(DEADLINE)

    def last_messages(self) -> list[Answer]:
        """What a killed process has printed and nobody has looked at, but for half a line."""
        lines = iter(lambda: self._lines.get(timeout=DEADLINE), b"")
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def end(self) -> None:
        """Let it end by itself; no sanitizer has anything to report."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(DEADLINE)
            errors = self._errors.read_text(encoding="utf-8")
            assert self._process.returncode == 0, errors
            assert not REPORT.search(errors), errors

    def abort(self) -> None:
        """Whatever happened, it ends now."""
        self._process.kill()
        self._process.wait(DEADLINE)
        self._pump.join(DEADLINE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

"""ringcast.h: readers in C see what readers in Python see, and report what they report."""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import SHM, Processes, eventually, reader_status
from tests.integration.traffic import Payloads, orphan

from .conftest import INCLUDE
from .ends import Answer, Ends, Status
from .toolchain import COMPILERS, PLAIN, STANDARDS, WARNINGS, Toolchain, compile_with, find, run

SLOTS: Final = 16
CAPACITY: Final = 4096
SHORT: Final = 0.02
READERS: Final = 3


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """The writer of a small ring."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=READERS) as writer:
        yield writer


def crc(payload: bytes) -> int:
    return zlib.crc32(payload)


def sequences(messages: list[Answer]) -> list[int]:
    return [message["sequence"] for message in messages]


def check_content(messages: list[Answer], payloads: Payloads) -> None:
    """Each message holds what the seed says."""
    for message in messages:
        payload = payloads[message["sequence"]]
        assert (message["length"], message["crc"]) == (len(payload), crc(payload))


# ---- compiling -----------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("suffix", STANDARDS)
def test_the_header_stands_alone_and_may_come_twice(
    compiler: str, suffix: str, tmp_path: Path
) -> None:
    source = tmp_path / f"alone{suffix}"
    source.write_text(
        '#include "ringcast.h"\n#include "ringcast.h"\nint main(void) { return 0; }\n'
    )
    driver = find(compiler if suffix == ".c" else COMPILERS[compiler])
    flags = [STANDARDS[suffix], *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only"]
    compile_with([driver, *flags, str(source)])


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("more", [[], ["-D_GNU_SOURCE"], ["-std=gnu11", "-D_GNU_SOURCE=1"]])
def test_the_implementation_compiles_without_a_warning(compiler: str, more: list[str]) -> None:
    flags = ["-std=c11", *WARNINGS, *more, "-O2", "-fsyntax-only"]
    compile_with([find(compiler), *flags, str(INCLUDE / "ringcast.c")])


def test_statuses_are_those_of_the_header(ends: Ends) -> None:
    text = (INCLUDE / "ringcast.h").read_text(encoding="utf-8")
    declared = {name: int(n) for name, n in re.findall(r"RINGCAST_(\w+) = (\d+), +/\*", text)}
    declared |= {
        name: int(n) for name, n in re.findall(r"^    RINGCAST_(\w+) = (\d+),", text, re.M)
    }
    assert {status.name: int(status) for status in Status}.items() <= declared.items()
    texts = [ends.ask("status_text", number)["text"] for number in Status]
    assert len(set(texts)) == len(Status)
    for number in (-1, len(Status)):
        assert ends.ask("status_text", number)["text"] == "no status of ringcast"


FUNCTIONS: Final = {
    "acknowledge",
    "flush",
    "give_back",
    "last_error",
    "member_attach",
    "member_close",
    "member_get_info",
    "member_topic_name",
    "member_wait",
    "note",
    "read",
    "read_many",
    "reader_attach",
    "reader_close",
    "reader_get_info",
    "release",
    "send",
    "sender_attach",
    "sender_close",
    "status_text",
    "subscribe",
    "take",
    "take_many",
    "topic_name",
    "unsubscribe",
    "valid",
    "wait",
}
TYPES: Final = {
    "balance",
    "member",
    "member_info",
    "member_options",
    "message",
    "policy",
    "reader",
    "reader_info",
    "reader_options",
    "sender",
    "start",
    "status",
    "strategy",
}


def test_the_names_of_the_header() -> None:
    """A program that is compiled anew finds each of them: this list grows, and loses nothing."""
    text = (INCLUDE / "ringcast.h").read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert set(re.findall(r"\bringcast_(\w+)\(", code)) == FUNCTIONS
    types = re.findall(r"^(?:typedef struct \w+ |} )ringcast_(\w+);", code, re.MULTILINE)
    assert set(types) == TYPES


def test_every_name_of_the_header_is_there(toolchain: Toolchain, tmp_path: Path) -> None:
    """Each function that it declares is defined, and links from C++ as well."""
    uses = ", ".join(f"(void *)ringcast_{name}" for name in sorted(FUNCTIONS))
    for suffix in STANDARDS:
        source = tmp_path / f"uses{suffix}"
        source.write_text(
            '#include "ringcast.h"\n'
            f"int main(void) {{ void *all[] = {{{uses}}}; return all[0] == 0; }}\n"
        )
        command = [find(COMPILERS["gcc"] if suffix == ".cpp" else "gcc"), STANDARDS[suffix]]
        implementation = toolchain.object(INCLUDE / "ringcast.c", "gcc", PLAIN, f"-I{INCLUDE}")
        program = tmp_path / f"uses{suffix}.program"
        flags = [f"-I{INCLUDE}", str(source), str(implementation), "-pthread", "-lrt"]
        compile_with([*command, *flags, "-o", str(program)])
        assert run([str(program)]).returncode == 0


# ---- starting ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"), [("latest", []), ("oldest", [0, 1, 2]), (1, [1, 2]), (3, [])]
)
def test_where_a_reader_starts(
    ends: Ends, writer: Writer, start: str | int, expected: list[int]
) -> None:
    writer.publish_many([b"0", b"1", b"2"])
    ends.attached(writer.name, start=start)
    writer.publish(b"3")
    writer.close()
    ends.begin_following()
    messages, end = ends.followed()
    assert sequences(messages) == [*expected, 3]
    assert end["status"] is Status.ENDED


def test_a_sequence_that_is_gone_counts_as_lost(ends: Ends, writer: Writer) -> None:
    for n in range(3 * SLOTS):
        writer.publish(b"%d" % n)
    oldest = writer.oldest
    assert oldest > 0
    ends.attached(writer.name, start=0)
    assert ends.info()["lost"] == oldest
    message = ends.read()
    assert (message["sequence"], message["gap"]) == (oldest, oldest)


def test_a_sequence_that_is_not_published_yet(ends: Ends, writer: Writer) -> None:
    answer = ends.attach(writer.name, start=1)
    assert answer["status"] is Status.INVALID
    assert "sequence 1 is not published yet" in answer["error"]
    assert shm.status(writer.name).readers == ()


# ---- reading -------------------------------------------------------------------------------


def test_every_field_of_a_message_is_what_python_sees(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name, label="c-reader")
    with Reader.attach(writer.name) as reader:
        writer.publish(b"text", topic=7, kind=shm.Kind.TEXT)
        writer.publish(b"\0\xff", topic=2**32 - 1)
        writer.publish(b"", kind=99)
        for _ in range(3):
            theirs, mine = ends.read(), reader.read(timeout=0)
            assert mine is not None
            for field in ("sequence", "gap", "topic", "kind", "epoch", "time_ns"):
                assert theirs[field] == getattr(mine, field), field
            assert (theirs["length"], theirs["crc"]) == (len(mine), crc(bytes(mine)))
            assert (theirs["key"], theirs["connection"]) == (0, 0)
    status = reader_status(writer.name)
    assert status is not None
    assert (status.label, status.pid, status.state) == ("c-reader", ends.pid, "active")


@pytest.mark.parametrize("wait", ["blocking", "busy-spin", "yielding"])
@pytest.mark.parametrize("limit", [1, 7])
def test_messages_of_every_size_come_whole(
    ends: Ends, writer: Writer, wait: str, limit: int
) -> None:
    """From 0 bytes to the longest, many times round the ring, through a lossless reader."""
    payloads = Payloads(1, writer.max_message)
    ends.attached(writer.name, wait=wait)
    ends.begin_following(limit=limit)
    for n in range(20 * SLOTS):
        writer.publish(payloads[n], timeout=10)
    writer.close()
    messages, end = ends.followed()
    assert sequences(messages) == list(range(20 * SLOTS))
    assert {0, writer.max_message} <= {message["length"] for message in messages}
    check_content(messages, payloads)
    assert end["status"] is Status.ENDED
    info = ends.info()
    assert (info["received"], info["lost"], info["lag"]) == (20 * SLOTS, 0, 0)


def test_a_lossy_reader_learns_exactly_what_it_missed(ends: Ends, writer: Writer) -> None:
    payloads = Payloads(2, writer.max_message)
    ends.attached(writer.name, policy="lossy")
    messages: list[Answer] = []
    for rounds in range(6):
        for _ in range(rounds * SLOTS // 2):
            writer.publish(payloads[writer.sequence], timeout=0)
        for _ in range(rounds):
            messages.append(ends.read())
    writer.close()
    ends.begin_following()
    rest, end = ends.followed()
    messages += rest
    assert end["status"] is Status.ENDED
    check_content(messages, payloads)
    expected = 0
    for message in messages:
        assert message["sequence"] == expected + message["gap"]
        expected = message["sequence"] + 1
    assert expected == writer.sequence
    info = ends.info()
    assert info["lost"] == sum(message["gap"] for message in messages) > 0
    assert info["received"] == len(messages)
    assert info["received"] + info["lost"] == writer.sequence
    assert info["policy"] == 1


def test_a_lossy_reader_beside_a_fast_writer(ends: Ends, writer: Writer) -> None:
    """It is lapped at any moment; what it reads is whole, and what it misses is counted."""
    payloads = Payloads(3, writer.max_message)
    ends.attached(writer.name, policy="lossy", wait="busy-spin")
    ends.begin_following()
    for n in range(200 * SLOTS):
        writer.publish(payloads[n], timeout=0)
    writer.close()
    messages, _ = ends.followed()
    check_content(messages, payloads)
    assert len(messages) + sum(message["gap"] for message in messages) == writer.sequence


def test_many_at_once_are_valid_together(ends: Ends, writer: Writer) -> None:
    payloads = [b"%d" % n * n for n in range(10)]
    ends.attached(writer.name)
    writer.publish_many(payloads)
    many = ends.read_many(7)
    assert (many["count"], many["first"]) == (7, 0)
    assert many["crcs"] == [crc(payload) for payload in payloads[:7]]
    assert ends.ask("held", 0)["crcs"] == many["crcs"]
    assert ends.read_many(100)["count"] == 3
    assert ends.read_many(100) == {**ends.read_many(100), "status": Status.TIMEOUT, "count": 0}
    assert ends.read_many(0)["status"] is Status.INVALID


def test_what_is_held_holds_the_ring(ends: Ends, writer: Writer) -> None:
    """Until it is released, or more is read."""
    ends.attached(writer.name)
    writer.publish_many([b"x"] * SLOTS)
    assert ends.read_many(SLOTS)["count"] == SLOTS
    assert writer.try_publish(b"y") is None
    ends.ask("release", 0)
    assert writer.try_publish(b"y") == SLOTS
    assert ends.read()["sequence"] == SLOTS
    assert ends.read()["status"] is Status.TIMEOUT
    writer.publish_many([b"z"] * SLOTS, timeout=0)


def test_a_lossy_reader_gets_one_at_a_time(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name, policy="lossy")
    writer.publish_many([b"x", b"y"])
    assert ends.read_many(10)["crcs"] == [crc(b"x")]
    assert ends.read_many(10)["crcs"] == [crc(b"y")]


def test_timeouts(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    for timeout in (0, SHORT, 0.15):  # more than the 100 ms after which one looks around
        before = time.monotonic()
        assert ends.read(timeout=timeout)["status"] is Status.TIMEOUT
        assert time.monotonic() - before >= timeout
    ends.begin("read", 0, -1)
    writer.publish(b"at last")
    assert ends.answer()["crc"] == crc(b"at last")


def test_events_are_passed_over_unless_asked_for(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    ends.attached(writer.name, 1, events=True)
    kinds = [shm.Kind.EVENT, shm.Kind.TEXT, shm.Kind.EVENT, shm.Kind.EVENT, shm.Kind.BINARY]
    for kind in kinds:
        writer.publish(b"x", kind=kind)
    assert [ends.read()["sequence"] for _ in range(2)] == [1, 4]
    assert ends.read()["status"] is Status.TIMEOUT
    assert ends.info()["received"] == 2
    assert [ends.read(1)["kind"] for _ in kinds] == kinds
    assert ends.info(1)["received"] == len(kinds)


def test_many_events_do_not_hold_the_ring(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    ends.begin_following(limit=5)
    for n in range(5 * SLOTS):
        writer.publish(b"x", kind=shm.Kind.TEXT if n % 11 == 3 else shm.Kind.EVENT, timeout=10)
    writer.close()
    messages, _ = ends.followed()
    assert sequences(messages) == [n for n in range(5 * SLOTS) if n % 11 == 3]


def test_a_note(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    answer = ends.ask("note", 0, 100)
    assert (answer["length"], answer["note"]) == (0, "")
    writer.note = b"open"
    answer = ends.ask("note", 0, 100)
    assert (answer["status"], answer["length"], answer["note"]) == (Status.OK, 4, "open")
    assert ends.ask("note", 0, 3)["note"] == "op"
    assert ends.ask("note", 0, 0) == {"status": Status.OK, "length": 4, "note": "untouched"}
    writer.note = b"x" * 1016
    assert ends.ask("note", 0, 2000)["note"] == "x" * 1016


def test_info(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    ends.attached(writer.name, 1, policy="lossy")
    writer.publish_many([b"a", b"b", b"c"])
    ends.read()
    info = ends.info()
    assert info == {
        "status": Status.OK,
        "cursor": 1,
        "lag": 2,
        "received": 1,
        "lost": 0,
        "skipped": 0,
        "max_message": writer.max_message,
        "policy": 0,
        "slot": 0,
        "writer_alive": 1,
    }
    assert (ends.info(1)["slot"], ends.info(1)["policy"]) == (1, 1)
    writer.abandon()
    assert ends.info()["writer_alive"] == 0
    Writer.resume(writer.name).close()
    shm.unlink(writer.name)


# ---- the end -------------------------------------------------------------------------------


def test_the_end_comes_after_the_last_message(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    writer.publish_many([b"a", b"b"])
    writer.close()
    assert [ends.read()["sequence"] for _ in range(2)] == [0, 1]
    for _ in range(2):
        assert ends.read(timeout=-1)["status"] is Status.ENDED
    assert ends.read_many(3)["status"] is Status.ENDED


@pytest.mark.parametrize("request_", [("read", 0, -1), ("read_many", 0, 10, -1), ("wait", 0, -1)])
def test_a_ring_that_was_removed_after_its_writer_died(
    ends: Ends, name: str, request_: tuple[object, ...]
) -> None:
    orphan(name, messages=2)
    ends.attached(name)
    ends.begin(*request_)
    shm.unlink(name)
    answer = ends.answer()
    assert answer["status"] is Status.CLOSED
    assert "no writer and was removed" in answer["error"]


def test_one_that_never_waits_learns_of_the_removal_too(ends: Ends, name: str) -> None:
    orphan(name, messages=1)
    ends.attached(name, start="oldest")
    assert ends.read()["sequence"] == 0
    shm.unlink(name)
    answer = eventually(
        lambda: (found := ends.read())["status"] is not Status.TIMEOUT and found, "it is told"
    )
    assert answer["status"] is Status.CLOSED


def test_closing_frees_the_slot(ends: Ends, writer: Writer) -> None:
    writer.publish(b"x")
    ends.attached(writer.name, start="oldest")
    ends.read()
    ends.ask("close", 0)
    assert shm.status(writer.name).readers == ()
    ends.ask("close", 0)  # of NULL


def test_two_readers_in_one_process(ends: Ends, writer: Writer) -> None:
    for end in (0, 1):
        ends.attached(writer.name, end)
    writer.publish_many([b"a", b"b"])
    assert ends.read(0)["sequence"] == 0
    ends.ask("close", 0)
    assert [ends.read(1)["sequence"] for _ in range(2)] == [0, 1]
    ends.ask("release", 1)
    writer.publish_many([b"x"] * SLOTS, timeout=0)


def test_a_forked_child_attaches_by_itself(ends: Ends, writer: Writer) -> None:
    """What it inherits says RINGCAST_CLOSED and can be closed; the lock stays the parent's."""
    ends.attached(writer.name)
    writer.publish(b"x")
    assert ends.read()["sequence"] == 0
    assert ends.ask("fork", 0, writer.name)["child"] == 0
    assert [reader.pid for reader in shm.status(writer.name).readers] == [ends.pid]
    writer.publish(b"y")
    assert ends.read()["sequence"] == 1


# ---- a thread that waits -------------------------------------------------------------------


@pytest.mark.parametrize("handshake", [1, 0], ids=["event-loop", "both-wait"])
def test_another_thread_waits(ends: Ends, writer: Writer, handshake: int) -> None:
    """An event loop gets every message; and so does one that waits itself at the same time."""
    payloads = Payloads(5, writer.max_message)
    ends.attached(writer.name)
    ends.begin_following(limit=handshake, loop=True)
    for n in range(20 * SLOTS):
        writer.publish(payloads[n], timeout=10)
    writer.close()
    messages, end = ends.followed()
    assert sequences(messages) == list(range(20 * SLOTS))
    check_content(messages, payloads)
    assert end["status"] is Status.ENDED
    assert end["wakes"] > 0 or not handshake


def test_waiting(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    assert ends.ask("wait", 0, 0)["status"] is Status.TIMEOUT
    ends.begin("wait", 0, -1)
    writer.publish(b"x")
    assert ends.answer()["status"] is Status.OK
    assert ends.ask("wait", 0, 0)["status"] is Status.OK
    assert ends.read()["sequence"] == 0
    assert ends.ask("wait", 0, 0)["status"] is Status.TIMEOUT


def test_nothing_is_left_to_wait_for_after_messages_that_were_passed_over(
    ends: Ends, writer: Writer
) -> None:
    """Or an event loop would be woken without end."""
    ends.attached(writer.name)
    writer.publish(b"x", kind=shm.Kind.EVENT)
    assert ends.ask("wait", 0, 0)["status"] is Status.OK
    assert ends.read()["status"] is Status.TIMEOUT
    assert ends.ask("wait", 0, 0)["status"] is Status.TIMEOUT


def test_nothing_is_left_to_wait_for_after_a_demotion(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    assert writer.demote(0)
    assert ends.ask("wait", 0, 0)["status"] is Status.OK
    assert ends.read()["status"] is Status.TIMEOUT
    assert ends.info()["policy"] == 1
    assert ends.ask("wait", 0, 0)["status"] is Status.TIMEOUT


# ---- what cannot be attached to ------------------------------------------------------------


def refused(ends: Ends, name: str, status: Status, text: str, owner: int = 0) -> None:
    """Attaching fails so; nothing is left open."""
    ends.ask("status_text", 0)  # it has started
    before = os.listdir(f"/proc/{ends.pid}/fd")  # noqa: PTH208
    answer = ends.attach(name, owner=owner)
    assert answer["status"] is status, answer
    assert re.search(text, answer["error"]), answer["error"]
    assert os.listdir(f"/proc/{ends.pid}/fd") == before  # noqa: PTH208


@pytest.mark.parametrize("bad", ["", "Name", "-x", "a/b", "a" * 21])
def test_names_that_cannot_be(ends: Ends, bad: str) -> None:
    refused(ends, bad, Status.INVALID, "can't name a ring: use 1 to 20")


def test_there_is_no_ring(ends: Ends, name: str) -> None:
    refused(ends, name, Status.NOT_FOUND, f"there is no ring '{name}'")


@pytest.mark.parametrize(
    "options", [{"spin_us": 2_000_000}, {"owner": -1}], ids=["spin_us", "owner"]
)
def test_options_out_of_range(ends: Ends, writer: Writer, options: dict[str, Any]) -> None:
    answer = ends.attach(writer.name, **options)
    assert answer["status"] is Status.INVALID
    assert "begin with all zero" in answer["error"]


def test_another_owner(ends: Ends, writer: Writer) -> None:
    why = rf"belongs to user {os.getuid()}, .* owner={os.getuid()} \(in C, one more\)"
    refused(ends, writer.name, Status.CORRUPT, why, owner=os.getuid() + 2)
    ends.attached(writer.name, owner=os.getuid() + 1)


VERSION_OFFSET: Final = 8
"""Of the layout version in the identity of either header."""


def test_another_version(ends: Ends, writer: Writer) -> None:
    for part in "dc":
        with (SHM / f"rc.{writer.name}.{part}").open("r+b") as file:
            file.seek(VERSION_OFFSET)
            version = int.from_bytes(file.read(4), "little")
            file.seek(VERSION_OFFSET)
            file.write((version + 1).to_bytes(4, "little"))
    refused(ends, writer.name, Status.LAYOUT_MISMATCH, "another layout version than 5")


@pytest.mark.parametrize("part", ["r0", "space"])
def test_a_semaphore_that_is_cut_short(ends: Ends, writer: Writer, part: str) -> None:
    (path,) = SHM.glob(f"sem.rc.{writer.name}.*.{part}")
    os.truncate(path, 7)
    refused(ends, writer.name, Status.CORRUPT, r"semaphore .* is cut short")


@pytest.mark.parametrize("part", ["d", "c"])
def test_a_fifo_in_place_of_a_segment(ends: Ends, writer: Writer, part: str) -> None:
    path = SHM / f"rc.{writer.name}.{part}"
    aside = path.with_suffix(".aside")
    path.rename(aside)
    os.mkfifo(path)
    refused(ends, writer.name, Status.CORRUPT, "is no shared-memory segment")
    aside.rename(path)


@pytest.mark.parametrize(("part", "mode"), [("d", 0o620), ("d", 0o602), ("c", 0o602)])
def test_a_segment_that_others_may_write(ends: Ends, writer: Writer, part: str, mode: int) -> None:
    (SHM / f"rc.{writer.name}.{part}").chmod(mode)
    refused(ends, writer.name, Status.CORRUPT, "can be written by others")


def test_a_segment_with_holes(ends: Ends, writer: Writer) -> None:
    path = SHM / f"rc.{writer.name}.d"
    head = path.read_bytes()[:4096]
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(4096)
        file.truncate(size)
        file.write(head)
    refused(ends, writer.name, Status.CORRUPT, "has holes")


def test_a_segment_that_is_not_complete(ends: Ends, writer: Writer) -> None:
    path = SHM / f"rc.{writer.name}.c"
    whole = path.read_bytes()
    os.truncate(path, 100)
    refused(ends, writer.name, Status.NOT_FOUND, "is not complete")
    with path.open("r+b") as file:  # the writer has mapped it
        file.write(whole)


def test_every_slot_is_taken(ends: Ends, writer: Writer) -> None:
    for end in range(READERS):
        ends.attached(writer.name, end)
    refused(ends, writer.name, Status.TOO_MANY_READERS, f"all {READERS} reader slots")


def test_the_slot_of_the_dead_is_free(ends: Ends, writer: Writer, processes: Processes) -> None:
    def join_and_die() -> None:
        for _ in range(READERS):
            Reader.attach(writer.name)
        os._exit(9)

    process = processes.start(join_and_die)
    eventually(lambda: process.exitcode is not None, "it dies")
    assert ends.attach(writer.name)["status"] is Status.OK

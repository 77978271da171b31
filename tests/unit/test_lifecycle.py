"""From create to unlink: what is refused, what is replaced, resumed, listed, and left behind."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm import mpsc, ownership
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, SHM, Processes, eventually, leftovers
from tests.unit.conftest import control_path, data_path


def create(name: str) -> Writer:
    """A tiny ring."""
    return Writer.create(name, slots=8, capacity=1024, max_readers=2)


def die(name: str, messages: int = 0, *, resumed: bool = False) -> None:
    """A writer that publishes and is gone without closing, as one that died: its lock is free."""
    writer = Writer.resume(name) if resumed else create(name)
    for _ in range(messages):
        writer.publish(b"%d" % writer.sequence)
    del writer
    gc.collect()


def entry(name: str) -> shm.RingEntry | None:
    """This ring's line in the list."""
    return next((ring for ring in shm.list_rings() if ring.name == name), None)


def state_of(name: str) -> str | None:
    """How the list calls it; None if it is not in there."""
    found = entry(name)
    return found.state if found else None


# ---- create --------------------------------------------------------------------------------


def test_what_is_made(name: str) -> None:
    with create(name):
        assert leftovers(name)[:2] == [f"rc.{name}.c", f"rc.{name}.d"]
        semaphores = leftovers(name)[2:]
        assert sorted(s.rpartition(".")[2] for s in semaphores) == ["r0", "r1", "space", "wish"]
        for path in (SHM / left for left in leftovers(name)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        for path in (data_path(name), control_path(name)):
            assert path.stat().st_blocks * 512 >= path.stat().st_size  # its memory is taken
    assert leftovers(name) == []


def test_a_ring_for_the_group(name: str) -> None:
    before = os.umask(0o077)
    try:
        with Writer.create(name, slots=8, capacity=1024, max_readers=2, mode=0o640) as writer:
            modes = {
                left.rpartition(".")[2]: stat.S_IMODE((SHM / left).stat().st_mode)
                for left in leftovers(name)
            }
            semaphores = dict.fromkeys(("r0", "r1", "space", "wish"), 0o660)
            assert modes == {"d": 0o640, "c": 0o660, **semaphores}
            with Reader.attach(name) as reader:
                writer.publish(b"x")
                assert reader.read(timeout=0) is not None
    finally:
        os.umask(before)


def test_defaults(name: str) -> None:
    with Writer.create(name) as writer:
        assert (writer.slots, writer.capacity, writer.max_message) == (65536, 64 << 20, 16 << 20)
        assert shm.status(name).max_readers == 64


@pytest.mark.parametrize(
    ("slots", "near"), [(0, 4), (1, 4), (-8, 4), (3, 4), (100, 128), (1 << 27, 1 << 26)]
)
def test_slots_that_cannot_be(name: str, slots: int, near: int) -> None:
    with pytest.raises(ValueError, match=rf"slots={slots} is not a power of two .* take {near}$"):
        Writer.create(name, slots=slots)


@pytest.mark.parametrize(
    ("capacity", "near"), [(0, 256), (255, 256), (1000, 1024), (3 << 39, 1 << 40)]
)
def test_capacities_that_cannot_be(name: str, capacity: int, near: int) -> None:
    why = rf"capacity={capacity} is not a power of two .* take {near}$"
    with pytest.raises(ValueError, match=why):
        Writer.create(name, capacity=capacity)


@pytest.mark.parametrize("max_readers", [0, -1, 1025])
def test_numbers_of_readers_that_cannot_be(name: str, max_readers: int) -> None:
    with pytest.raises(ValueError, match=f"max_readers={max_readers} is not from 1 to 1024"):
        Writer.create(name, max_readers=max_readers)


@pytest.mark.parametrize("mode", [0, 0o644, 0o660, 0o666, 0o777])
def test_modes_that_cannot_be(name: str, mode: int) -> None:
    with pytest.raises(ValueError, match=f"mode={mode:#o}: 0o600 keeps the ring to one user"):
        Writer.create(name, mode=mode)


@pytest.mark.parametrize(
    "options",
    [{"slots": 8.0}, {"slots": "8"}, {"capacity": None}, {"wait": "fast"}],
)
def test_options_of_another_type_leave_nothing(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Writer.create(name, **{"slots": 8, "capacity": 1024, "max_readers": 1, **options})
    gc.collect()
    assert leftovers(name) == []


def test_no_room_in_dev_shm_is_told_at_once(name: str) -> None:
    with pytest.raises(shm.RingError, match=r"/dev/shm has no room .* KiB are needed"):
        Writer.create(name, slots=8, capacity=1 << 40)
    assert leftovers(name) == []


def test_the_smallest_and_odd_rings(name: str) -> None:
    for slots, capacity in ((4, 256), (4, 4096), (64, 256), (1024, 256)):
        with (
            Writer.create(name, slots=slots, capacity=capacity, max_readers=1) as writer,
            Reader.attach(name) as reader,
        ):
            for i in range(3 * slots):
                payload = bytes([i & 255]) * (capacity // 4)
                writer.publish(payload, timeout=0)
                assert [bytes(message) for message in reader.read_available()] == [payload]
                assert reader.read(timeout=0) is None


def test_all_readers_that_a_ring_can_have(name: str) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=1024) as writer:
        readers = [Reader.attach(name) for _ in range(130)]
        writer.publish(b"x")
        assert [reader.slot for reader in readers] == list(range(130))
        assert all(reader.read(timeout=0) is not None for reader in readers)
        for reader in readers:
            reader.close()


# ---- a name that is taken ----------------------------------------------------------------------


def test_a_living_ring_is_not_replaced(name: str) -> None:
    with create(name) as writer:
        for call in (create, Writer.resume, shm.unlink):
            with pytest.raises(shm.RingExists, match="writer"):
                call(name)
        assert writer.publish(b"x") == 0
        assert state_of(name) == "open"


def test_an_orphan_is_not_replaced(name: str) -> None:
    die(name)
    with pytest.raises(shm.RingExists, match=r"its writer died\. Writer\.resume"):
        create(name)
    assert state_of(name) == "orphaned"
    shm.unlink(name)
    assert state_of(name) is None


def test_a_closed_ring_is_replaced(name: str) -> None:
    writer = create(name)
    reader = Reader.attach(name)
    writer.publish(b"old")
    writer.close()
    assert state_of(name) == "closed"
    with pytest.raises(shm.RingClosed, match="ended by its writer: create a new one"):
        Writer.resume(name)
    with create(name) as new:
        assert new.publish(b"new") == 0
        assert [bytes(message) for message in reader] == [b"old"]
        writer.unlink()  # the name leads to another ring now: nothing happens
        assert state_of(name) == "open"


def test_a_closed_ring_is_read_to_its_end_by_who_comes_late(name: str) -> None:
    writer = create(name)
    writer.publish_many([b"a", b"b"])
    writer.close()
    with Reader.attach(name, start="oldest") as reader:
        assert [bytes(message) for message in reader] == [b"a", b"b"]
    writer.unlink()
    writer.unlink()  # again: nothing happens


def test_leaving_a_block_closes_and_unlinks(name: str) -> None:
    with create(name) as writer:
        writer.publish(b"x")
    assert writer.closed
    assert leftovers(name) == []
    with writer:
        pass


def test_unlinked_under_its_readers(name: str) -> None:
    with create(name) as writer, Reader.attach(name) as reader:
        writer.publish(b"before")
        writer.unlink()
        assert leftovers(name) == []
        with pytest.raises(shm.RingNotFound):
            Reader.attach(name)
        writer.publish(b"after")
        assert [bytes(message) for message in reader.read_available()] == [b"before", b"after"]


# ---- what a creator left that died -------------------------------------------------------------


def only_an_empty_control_segment(name: str) -> None:
    control_path(name).touch(mode=0o600)


def no_data_segment(name: str) -> None:
    die(name)
    data_path(name).unlink()


def no_magic(name: str) -> None:
    die(name)
    for path in (data_path(name), control_path(name)):
        with path.open("r+b") as segment:
            segment.write(bytes(8))


def no_magic_in_the_data(name: str) -> None:
    die(name)
    with data_path(name).open("r+b") as segment:
        segment.write(bytes(8))


def an_empty_data_segment(name: str) -> None:
    die(name)
    os.truncate(data_path(name), 0)


HALF_MADE = [
    only_an_empty_control_segment,
    no_data_segment,
    no_magic,
    no_magic_in_the_data,
    an_empty_data_segment,
]


@pytest.mark.parametrize("half_make", HALF_MADE)
def test_what_was_half_made_is_told_and_replaced(
    name: str, half_make: Callable[[str], None]
) -> None:
    half_make(name)
    found = entry(name)
    assert found is not None
    assert found.state == "incomplete"
    assert found.detail
    for call in (Reader.attach, Writer.resume, shm.status):
        with pytest.raises(shm.RingNotFound):
            call(name)
    with create(name) as writer:
        assert writer.publish(b"x") == 0
        assert state_of(name) == "open"


@pytest.mark.parametrize("half_make", HALF_MADE)
def test_what_was_half_made_can_be_removed(name: str, half_make: Callable[[str], None]) -> None:
    half_make(name)
    shm.unlink(name)
    assert leftovers(name) == []
    with pytest.raises(shm.RingNotFound):
        shm.unlink(name)


@pytest.mark.parametrize("keep", [".d", ".r0", ".space"])
def test_pieces_without_a_control_segment(name: str, keep: str) -> None:
    die(name)
    for left in leftovers(name):
        if not left.endswith(keep):
            (SHM / left).unlink()
    assert state_of(name) == "incomplete"
    with create(name):
        assert state_of(name) == "open"
    assert leftovers(name) == []
    die(name)
    for left in leftovers(name):
        if not left.endswith(keep):
            (SHM / left).unlink()
    shm.unlink(name)
    assert leftovers(name) == []


def test_what_is_no_ring_is_not_replaced(name: str) -> None:
    for path in (data_path(name), control_path(name)):
        path.write_bytes(b"not a ring " * 1000)
        path.chmod(0o600)
    assert state_of(name) == "invalid"
    for call in (create, Reader.attach, Writer.resume, shm.status):
        with pytest.raises(shm.LayoutMismatch, match="its magic is another"):
            call(name)
    shm.unlink(name)


# ---- resume --------------------------------------------------------------------------------


def test_resuming_goes_on_where_it_stopped(name: str) -> None:
    die(name, 3)
    assert state_of(name) == "orphaned"
    reader = Reader.attach(name, start="oldest")
    with Writer.resume(name) as writer:
        assert (writer.sequence, writer.epoch) == (3, 2)
        assert (writer.slots, writer.capacity) == (8, 1024)
        assert writer.publish(b"3") == 3
        assert state_of(name) == "open"
        messages = reader.read_available()
        assert [(m.sequence, m.epoch) for m in messages] == [(0, 1), (1, 1), (2, 1), (3, 2)]
        assert [bytes(message) for message in messages] == [b"%d" % i for i in range(4)]


def test_readers_stay_attached_over_writers(name: str) -> None:
    die(name)
    with Reader.attach(name) as block, Reader.attach(name, policy="lossy") as lossy:
        for epoch in range(2, 6):
            die(name, 5, resumed=True)
            for reader in (block, lossy):
                messages = reader.read_available()
                assert [m.epoch for m in messages] == [epoch] * 5
                assert [bytes(m) for m in messages] == [b"%d" % m.sequence for m in messages]
                assert reader.read(timeout=0) is None
        with Writer.resume(name) as writer:
            assert (writer.sequence, writer.epoch) == (20, 6)
    assert block.lost == lossy.lost == 0


def test_a_full_ring_stays_full_over_writers(name: str) -> None:
    die(name)
    with Reader.attach(name) as reader:
        die(name, 8, resumed=True)
        view = reader.read_available()[0].payload
        with Writer.resume(name) as writer:
            assert writer.try_publish(b"x") is None
            assert bytes(view) == b"0"
            view.release()
            reader.read_available()
            assert writer.try_publish(b"x") == 8


def test_a_resumed_ring_can_be_closed_for_good(name: str) -> None:
    die(name, 1)
    with Reader.attach(name, start="oldest") as reader:
        Writer.resume(name).close()
        assert [bytes(message) for message in reader] == [b"0"]
        with pytest.raises(shm.RingClosed):
            Writer.resume(name)
    shm.unlink(name)


def test_a_ring_that_ends_while_it_is_resumed_stays_ended(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer ends it after the successor has opened it and before that takes it over."""
    take_over = ownership.Part.take_over
    with create(name) as writer, Reader.attach(name) as reader:

        def close_and_take_over(*args: Any) -> None:
            writer.close()
            take_over(*args)

        monkeypatch.setattr(ownership.Part, "take_over", close_and_take_over)
        with pytest.raises(shm.RingClosed, match="was ended by its writer"):
            Writer.resume(name)
        assert list(reader) == []


# ---- a process that is killed --------------------------------------------------------------------


def create_and_wait(name: str) -> None:
    """Make a ring and wait to be killed."""
    writer = create(name)
    writer.publish(b"from the dead")
    time.sleep(DEADLINE)


def test_a_ring_outlives_its_killed_creator(name: str, processes: Processes) -> None:
    creator = processes.start(create_and_wait, name, method="spawn")
    eventually(lambda: state_of(name) == "open" and shm.status(name).sequence == 1, "it is made")
    processes.kill(creator)
    assert state_of(name) == "orphaned"
    with Writer.resume(name) as writer, Reader.attach(name, start="oldest") as reader:
        assert [bytes(message) for message in reader.read_available()] == [b"from the dead"]
        assert (writer.sequence, writer.epoch) == (1, 2)


NO_TRACKER = """
import sys
from multiprocessing import resource_tracker
from ringcast.shm.broadcast import Reader, Writer

with Writer.create(sys.argv[1], slots=8, capacity=1024, max_readers=1) as writer:
    with Reader.attach(sys.argv[1]) as reader:
        writer.publish(b"x")
        assert reader.read(timeout=0) is not None
    assert resource_tracker._resource_tracker._pid is None
"""


def test_no_resource_tracker_hears_of_a_ring(name: str) -> None:
    """The tracker of a killed creator would unlink the ring; there is none to do it."""
    subprocess.run([sys.executable, "-c", NO_TRACKER, name], check=True, timeout=DEADLINE)


# ---- the list ------------------------------------------------------------------------------


def test_the_list(name: str) -> None:
    assert entry(name) is None
    with create(name) as writer:
        found = entry(name)
        assert found is not None
        sizes = [path.stat().st_size for path in (data_path(name), control_path(name))]
        assert found == shm.RingEntry(name, "open", sum(sizes), "")
        writer.close()
        assert state_of(name) == "closed"
    assert entry(name) is None


def test_the_list_is_sorted_and_knows_foreign_files(name: str) -> None:
    odd = [SHM / f"rc.{name}", SHM / f"rc.{name.upper()}.d", SHM / f"sem.{name}"]
    for path in odd:
        path.touch()
    try:
        with create(name):
            names = [ring.name for ring in shm.list_rings()]
            assert names == sorted(names)
            assert names.count(name) == 1
            assert name.upper() not in names
    finally:
        for path in odd:
            path.unlink()


def test_entries_and_statuses_are_frozen(name: str) -> None:
    with create(name):
        found = entry(name)
        for record in (found, shm.status(name)):
            with pytest.raises(AttributeError):
                record.name = "other"  # type: ignore[misc, union-attr]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_nothing_stays_open(name: str) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(3):
        with create(name), pytest.raises(shm.RingExists):
            create(name)
        die(name)
        with pytest.raises(shm.RingExists):
            create(name)
        Writer.resume(name).close()
        with pytest.raises(shm.RingClosed):
            Writer.resume(name)
        shm.list_rings()
        shm.unlink(name)
        gc.collect()
    assert count() == before


# ---- openings that fail ----------------------------------------------------------------------


@pytest.mark.parametrize("look", [shm.status, mpsc.status])
def test_a_bad_owner_closes_no_descriptor(name: str, look: Callable[..., Any]) -> None:
    """An object whose opening raised before it began had zeroed descriptors: standard input's."""
    before = os.fstat(0)
    with Writer.create(name), mpsc.Receiver.create(name):
        with pytest.raises(TypeError):
            look(name, owner="root")
        for owner in (-1, -2, 1 << 40):
            with pytest.raises(ValueError, match="owner is a user id"):
                look(name, owner=owner)
    assert os.path.samestat(os.fstat(0), before)


@pytest.mark.parametrize("rounds", [100, pytest.param(400, marks=pytest.mark.stress)])
def test_a_ring_that_is_completed_while_it_is_opened(name: str, rounds: int) -> None:
    """A segment has its size before its pages: who opens it then, and reads its header when it is
    done, must not say that it has holes."""
    wrong: list[Exception] = []

    def look(ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                shm.status(name)
            except shm.RingNotFound:
                pass
            except shm.RingError as error:
                wrong.append(error)

    ended = threading.Event()
    looker = threading.Thread(target=look, args=(ended,))
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # the looker never sleeps: it would have the GIL most of the time
    looker.start()
    try:
        for _ in range(rounds):
            Writer.create(name, slots=16, capacity=1 << 16, max_readers=1, max_topics=1).close()
    finally:
        ended.set()
        looker.join()
        sys.setswitchinterval(switch_interval)
        shm.unlink(name)
    assert not [error for error in wrong if "holes" in str(error)]


def test_a_fork_while_another_thread_attaches(name: str) -> None:
    """The C library's lock on the list of named semaphores is whole in the child."""
    with Writer.create(name, slots=16, capacity=4096, max_readers=8):
        ended = threading.Event()

        def attach() -> None:
            while not ended.is_set():
                Reader.attach(name).close()

        attaching = threading.Thread(target=attach)
        attaching.start()
        try:
            for _ in range(100):
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        signal.signal(signal.SIGALRM, signal.SIG_DFL)
                        signal.alarm(int(DEADLINE))
                        Reader.attach(name).close()
                        status = 0
                    finally:
                        os._exit(status)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            ended.set()
            attaching.join()

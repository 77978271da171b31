"""What may not change without notice: the names, the errors' bases, the numbers of the layout."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import ringcast
from ringcast import shm
from ringcast.shm import broadcast, group, mpsc

NAMES = [
    "DESCRIPTOR",
    "Blocking",
    "BusySpin",
    "Evicted",
    "GroupStatus",
    "Kind",
    "LayoutMismatch",
    "MessageTooLarge",
    "ReaderStatus",
    "RingClosed",
    "RingCorrupt",
    "RingEntry",
    "RingError",
    "RingExists",
    "RingFull",
    "RingNotFound",
    "RingStatus",
    "SendRejected",
    "SendUnconfirmed",
    "TooManyReaders",
    "TooManySenders",
    "TooManyTopics",
    "TopicStatus",
    "WaitStrategy",
    "Yielding",
    "check_name",
    "hash_key",
    "list_rings",
    "list_topics",
    "status",
    "unlink",
]
LAYOUT = (Path(shm.__file__).parent / "native" / "layout.h").read_text(encoding="utf-8")
C_TYPES = {"uint64_t": "u8", "uint32_t": "u4", "uint16_t": "u2"}


def test_names_of_the_package() -> None:
    assert sorted(shm.__all__) == sorted(NAMES)
    assert sorted(broadcast.__all__) == ["Batch", "Message", "Reader", "Reservation", "Writer"]
    assert group.__all__ == [
        "Balance",
        "GroupBatch",
        "GroupMessage",
        "GroupStatus",
        "Member",
        "SetAside",
        "list_groups",
        "partition_of_key",
        "remove",
    ]


TOP: Final = (
    "Answer Config ConfigError ConnectionState Evicted Feed Following GatewayUnreachable GroupFeed"
    " LayoutMismatch Manager ManagerError MessageTooLarge Phase QueueFeed RingClosed RingCorrupt"
    " RingError RingExists RingFull RingNotFound SendRejected SendUnconfirmed SocketFeed"
    " SubscriptionRefused TooManyReaders TooManySenders TooManyTopics TopicState attach"
)


def test_names_at_the_top() -> None:
    assert sorted(ringcast.__all__) == sorted(TOP.split())
    assert set(ringcast.__all__) <= set(dir(ringcast))
    for name in ringcast.__all__:
        assert getattr(ringcast, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ringcast.nothing  # noqa: B018


@pytest.mark.parametrize("use", ["import ringcast.shm", "import ringcast; ringcast.attach"])
def test_a_worker_loads_no_websocket_client(use: str) -> None:
    code = f"{use}\nimport sys\nprint([name for name in sys.modules if 'websocket' in name])"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", [shm, broadcast, group])
def test_every_public_name_is_there_and_explained(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]
        if name != "Balance":  # an alias has no place for it
            assert getattr(module, name).__doc__, name


def test_methods_of_reader_and_writer() -> None:
    public = {
        broadcast.Writer: (
            "abandon abandoned answer_wishes answers_wishes capacity close closed create demote"
            " demote_group epoch evict max_message name note oldest publish publish_many reserve"
            " resume sequence"
            " set_aside set_topic_state slots topic try_publish unlink"
            " watch_wishes wishers wishes"
        ),
        broadcast.Reader: (
            "attach batch chooses close closed cursor generation lag latest lost max_message name"
            " note policy read read_available received skipped slot subscribe subscriptions"
            " topic_id topic_name topic_state topics unsubscribe wait_into wishes_answer"
            " wishes_version"
            " writer_alive"
        ),
        broadcast.Message: "epoch gap key kind payload sequence text time_ns topic topic_name",
        broadcast.Batch: "descriptors first gap payload records release",
        broadcast.Reservation: "commit",
        group.Member: (
            "ack attach balance batch check chooses close closed cursor generation group lag latest"
            " lost max_message name note policy read read_available received skipped slot subscribe"
            " subscriptions topic_id topic_name topic_state topics unsubscribe wait_into"
            " wishes_answer"
            " wishes_version writer_alive"
        ),
        group.GroupMessage: (
            "ack deliveries epoch gap key kind nack payload sequence text time_ns topic topic_name"
        ),
        group.GroupBatch: ("ack deliveries descriptors first gap nack payload records release"),
    }
    for cls, names in public.items():
        assert [n for n in dir(cls) if not n.startswith("_")] == names.split(), cls


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (shm.RingNotFound, FileNotFoundError),
        (shm.RingExists, FileExistsError),
        (shm.LayoutMismatch, shm.RingError),
        (shm.RingCorrupt, shm.RingError),
        (shm.RingFull, TimeoutError),
        (shm.MessageTooLarge, ValueError),
        (shm.SendRejected, shm.RingError),
        (shm.SendUnconfirmed, shm.RingError),
        (shm.TooManyReaders, shm.RingError),
        (shm.TooManySenders, shm.RingError),
        (shm.TooManyTopics, shm.RingError),
        (shm.Evicted, shm.RingError),
        (shm.RingClosed, shm.RingError),
    ],
)
def test_bases_of_the_errors(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, shm.RingError)
    assert issubclass(error, base)


def test_kinds() -> None:
    assert {kind.name: int(kind) for kind in shm.Kind} == {"TEXT": 1, "BINARY": 2, "EVENT": 16}


@pytest.mark.parametrize(
    "cls",
    [
        broadcast.Message,
        broadcast.Batch,
        broadcast.Reservation,
        group.GroupMessage,
        group.GroupBatch,
    ],
)
def test_what_a_ring_hands_out_is_not_made_by_hand(cls: type) -> None:
    with pytest.raises(TypeError, match="come from"):
        cls()


@pytest.mark.parametrize(
    "cls", [broadcast.Reader, broadcast.Writer, group.Member, mpsc.Sender, mpsc.Receiver]
)
def test_endpoints_are_not_made_by_hand(cls: Any) -> None:
    for call in (cls, lambda: cls("md"), lambda: cls.__new__(cls)):
        with pytest.raises(TypeError, match="are made by"):
            call()


def test_blank_objects_raise_and_do_not_crash() -> None:
    message = broadcast.Message.__new__(broadcast.Message)
    assert (len(message), bytes(message), message.text()) == (0, b"", "")
    assert bytes(message.payload) == b""
    batch = broadcast.Batch.__new__(broadcast.Batch)
    assert len(batch) == 0
    with pytest.raises(IndexError):
        batch.payload(0)
    room = broadcast.Reservation.__new__(broadcast.Reservation)
    with pytest.raises((AttributeError, ValueError)):
        room.commit()
    member_message = group.GroupMessage.__new__(group.GroupMessage)
    assert (len(member_message), bytes(member_message), member_message.deliveries) == (0, b"", 0)
    member_batch = group.GroupBatch.__new__(group.GroupBatch)
    assert (len(member_batch), member_batch.deliveries) == (0, 0)
    for call in (member_message.ack, member_message.nack, member_batch.ack, member_batch.nack):
        with pytest.raises(AttributeError):
            call()
    with member_batch:
        pass


# ---- waiting -------------------------------------------------------------------------------


def test_strategies_show_what_they_are() -> None:
    assert repr(shm.BusySpin()) == "BusySpin()"
    assert repr(shm.Yielding()) == "Yielding()"
    assert repr(shm.Blocking()) == "Blocking(spin_us=50)"
    assert repr(shm.Blocking(spin_us=2.5)) == "Blocking(spin_us=2.5)"


@pytest.mark.parametrize("spin_us", [-1, 1e6 + 1, float("nan"), float("inf")])
def test_spinning_has_bounds(spin_us: float) -> None:
    with pytest.raises(ValueError, match="spin_us is from 0 to 1,000,000 microseconds"):
        shm.Blocking(spin_us=spin_us)


# ---- the layout, as C asserts it and as numpy sees it ----------------------------------------


def test_descriptor_offsets_are_those_that_layout_h_asserts() -> None:
    asserted = re.findall(r"static_assert\(offsetof\(rc_descriptor, f\.(\w+)\) == (\w+), ", LAYOUT)
    assert len(asserted) >= 11
    fields = shm.DESCRIPTOR.fields
    assert fields is not None
    for field, offset in asserted:
        assert fields[field][1] == int(offset, 0), field
    size = re.search(r"static_assert\(sizeof\(rc_descriptor\) == (\w+), ", LAYOUT)
    assert size is not None
    assert shm.DESCRIPTOR.itemsize == int(size[1], 0)


def test_descriptor_fields_are_those_that_layout_h_declares() -> None:
    body = re.search(r"typedef union rc_descriptor \{\s*struct \{(.*?)\} f;", LAYOUT, re.DOTALL)
    assert body is not None
    declared = re.findall(r"^\s*(uint\d+_t) (\w+);", body[1], re.MULTILINE)
    assert np.dtype([(name, C_TYPES[c]) for c, name in declared]) == shm.DESCRIPTOR

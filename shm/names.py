"""Names: which a ring may have, and what its shared-memory objects are called.

A ring NAME is ``/rc.NAME.d`` (data, written by the writer alone), ``/rc.NAME.c`` (control, written
by readers too), ``/rc.NAME.g.GROUP`` for each of its work groups, and semaphores
``/rc.NAME.INSTANCE.*``. Its message queues are ``/rc.NAME.q.LABEL``, and ``/rc.NAME.q-up`` for what
goes up; beside each is a segment of the same name (queues.py). Each process that serves the ring to
clients has a roster, ``/rc.NAME.gw-N`` (rosters.py). An uplink NAME is ``/rc.NAME.u`` and
semaphores. The rules are native/attach.h's, which C programs attach by.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from . import _endpoint

__all__ = [
    "ROSTER_DRAFT",
    "SHM",
    "SegmentName",
    "check_name",
    "control_name",
    "data_name",
    "group_segments",
    "is_uplink_semaphore",
    "queue_label",
    "queue_name",
    "queue_segments",
    "ring_names",
    "ring_segments",
    "ring_semaphores",
    "roster_name",
    "roster_segments",
    "uplink_name",
    "uplink_names",
    "uplink_semaphores",
    "upward_queue_name",
]

SHM: Final = Path("/dev/shm")

SegmentName = Callable[[str], str]
"""`control_name` or `uplink_name`: the segment that carries the locks."""

_GROUP: Final = "g"
_QUEUE: Final = "q"
_UPWARD_QUEUE: Final = "q-up"
_ROSTER: Final = "gw-"
ROSTER_DRAFT: Final = ".new"
"""Ends the name of a roster that is being written, and takes the place of the old one then."""
_OBJECT_PARTS: Final = 3
"""Of the name of a segment: rc, the ring's name, what it is. A semaphore's has one more."""


def check_name(name: str, what: str = "ring") -> str:
    """Return `name` if a ring can have it, or a work group; `what` says which of them it is for.

    Raises:
        TypeError: it is no string.
        ValueError: it can't be a name; the text says why.
    """
    if not isinstance(name, str):
        raise TypeError(f"a {what}'s name is a string, not {type(name).__name__}")
    if _endpoint.is_name(name):
        return name
    if not name:
        why = "it is empty"
    elif len(name) > _endpoint.NAME_MAX:
        why = (
            f"it has {len(name)} characters, at most {_endpoint.NAME_MAX} fit into a semaphore's"
            " name"
        )
    elif name[0] in "_-":
        why = f"it starts with {name[0]!r}"
    else:
        bad = next(c for c in name if not re.fullmatch("[a-z0-9_-]", c))
        why = f"it has the character {bad!r}"
    raise ValueError(
        f"{name!r} can't name a {what}: {why}. Use 1 to 20 of a-z, 0-9, _ and -, starting with a"
        " letter or digit"
    )


def data_name(name: str) -> str:
    """Shared-memory name of the data segment."""
    return _endpoint.segment_name(name, "d")


def control_name(name: str) -> str:
    """Shared-memory name of the control segment."""
    return _endpoint.segment_name(name, "c")


def uplink_name(name: str) -> str:
    """Shared-memory name of the uplink's segment."""
    return _endpoint.segment_name(name, "u")


def ring_segments(name: str) -> list[str]:
    """Shared-memory names of all segments that a ring has now, sorted; not those of an uplink of
    the same name."""
    start = f"rc.{name}."
    found = [f"/{entry.name}" for entry in os.scandir(SHM) if entry.name.startswith(start)]
    return sorted(segment for segment in found if segment != uplink_name(name))


def group_segments(name: str) -> list[str]:
    """Shared-memory names of the segments of a ring's work groups that there are."""
    return [each for each in ring_segments(name) if each.startswith(f"/rc.{name}.{_GROUP}.")]


def roster_name(name: str, number: int) -> str:
    """Shared-memory name of a ring's roster with this number."""
    return f"/rc.{check_name(name)}.{_ROSTER}{number}"


def roster_segments(name: str) -> list[str]:
    """Shared-memory names of a ring's rosters that there are, and of those that are being written
    now."""
    roster = re.compile(rf"/rc\.{name}\.{_ROSTER}[0-9]+({re.escape(ROSTER_DRAFT)})?")
    return [each for each in ring_segments(name) if roster.fullmatch(each)]


def queue_name(name: str, label: str) -> str:
    """Name of the message queue with this label, and of the segment that lists it.

    Raises:
        TypeError, ValueError: a ring, or a queue, can't have such a name.
    """
    return f"/rc.{check_name(name)}.{_QUEUE}.{check_name(label, 'queue')}"


def upward_queue_name(name: str) -> str:
    """The same of the message queue for what goes up.

    Raises:
        TypeError, ValueError: a ring can't have such a name.
    """
    return f"/rc.{check_name(name)}.{_UPWARD_QUEUE}"


def queue_label(segment: str) -> str | None:
    """The label of the message queue that a ring's segment belongs to; None if it belongs to
    none, or to the queue for what goes up."""
    _, _, what, *label = segment.split(".", 3)
    return label[0] if what == _QUEUE and label else None


def queue_segments(name: str) -> list[str]:
    """Names of all message queues of a ring, the one for what goes up among them."""
    upward = f"/rc.{name}.{_UPWARD_QUEUE}"
    found = ring_segments(name)
    return [each for each in found if each == upward or queue_label(each) is not None]


def ring_semaphores(name: str, instance: int, max_readers: int) -> list[str]:
    """Names of a ring's semaphores: every reader's, by reader slot, then the writer's, and last the
    one that is posted when readers' wishes change."""
    readers = [_endpoint.semaphore_name(name, instance, "r", i) for i in range(max_readers)]
    others = [_endpoint.semaphore_name(name, instance, part) for part in ("space", "wish")]
    return [*readers, *others]


def uplink_semaphores(name: str, instance: int, max_senders: int) -> list[str]:
    """Names of an uplink's semaphores: every sender's, by lane, and the receiver's last."""
    senders = [_endpoint.semaphore_name(name, instance, "s", i) for i in range(max_senders)]
    return [*senders, _endpoint.semaphore_name(name, instance, "up")]


def is_uplink_semaphore(semaphore: str) -> bool:
    """Does a semaphore of this name belong to an uplink, or to a ring?"""
    return semaphore.rpartition(".")[2][:1] in ("u", "s") and not semaphore.endswith(".space")


def ring_names() -> list[str]:
    """Names of all rings that have left anything in /dev/shm, sorted."""
    return _found(uplink=False)


def uplink_names() -> list[str]:
    """Names of all uplinks that have left anything in /dev/shm, sorted."""
    return _found(uplink=True)


def _found(*, uplink: bool) -> list[str]:
    found = set()
    for entry in os.scandir(SHM):
        parts = entry.name.removeprefix("sem.").split(".")
        if parts[0] != "rc" or len(parts) < _OBJECT_PARTS or not _endpoint.is_name(parts[1]):
            continue
        if len(parts) == _OBJECT_PARTS:
            of_uplink = parts[-1] == "u"
        else:
            is_semaphore = entry.name.startswith("sem.")
            of_uplink = is_semaphore and is_uplink_semaphore(entry.name)
        if of_uplink is uplink:
            found.add(parts[1])
    return sorted(found)

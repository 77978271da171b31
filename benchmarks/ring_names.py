"""Names for the rings of a run."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

from ringcast import shm

_numbers = itertools.count()


@contextlib.contextmanager
def temporary_ring_name() -> Iterator[str]:
    """A name that no other ring has. What a dead child leaves of the ring is removed at the end."""
    name = f"bench{os.getpid()}-{next(_numbers)}"
    try:
        yield name
    finally:
        with contextlib.suppress(shm.RingNotFound):
            shm.unlink(name)

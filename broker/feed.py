"""A worker's end: `attach` to a manager's ring by name."""

from __future__ import annotations

import dataclasses
from typing import Literal

import shm
from shm import _ring, broadcast

from .state import ConnectionState, Phase

__all__ = ["Feed", "attach"]


class Feed(broadcast.Reader):
    """What the server says, message by message; made with `attach`.

    It has everything that `shm.broadcast.Reader` has (iteration plain and ``async``, `read`,
    `poll`, `batch`, `cursor`, `lag`, `lost`, `close`, ``with``), and knows the connection's state.
    """

    __slots__ = ()

    @property
    def state(self) -> ConnectionState:
        """The connection, as its manager last said; phase ABSENT if there is no manager now.

        Raises:
            shm.RingClosed: this end is closed.
            shm.RingError: no manager writes this ring.
        """
        state = ConnectionState.decode(self.note)
        if state is None:
            raise shm.RingError(
                f"ring {self.name!r} is not a manager's: read it with shm.broadcast.Reader"
            )
        if not self.writer_alive:
            return dataclasses.replace(state, phase=Phase.ABSENT)
        return state


def attach(
    name: str,
    *,
    policy: Literal["block", "lossy"] = "block",
    start: Literal["latest", "oldest"] | int = "latest",
    wait: _ring.Wait | None = None,
    label: str | None = None,
    owner: int | None = None,
    events: bool = False,
) -> Feed:
    """Attach to a manager's ring by name.

    Args:
        name: the manager's `Config.name`.
        policy: "block" (lossless) or "lossy".
        start: "latest", "oldest" or a sequence.
        wait: how to wait for messages.
        label: what to call this worker in `ringcast inspect`.
        owner: user id of the manager, if it is another's.
        events: hand out the records of kind EVENT, too, each where it happened: JSON, see
            `broker.state`. Without it they are passed over.

    Raises: as `shm.broadcast.Reader.attach` does; RingNotFound while there is no manager.
    """
    return Feed.attach(
        name,
        policy=policy,
        start=start,
        wait=wait,
        label=label,
        owner=owner,
        skip=0 if events else shm.Kind.EVENT,
    )

"""Where a topic stands with the server, as the ring's topic table shows it."""

from __future__ import annotations

import enum

__all__ = ["TopicState"]


class TopicState(enum.IntEnum):
    """Where a topic stands. The numbers stand in shared memory, so they never change."""

    NONE = 0
    """Nobody asks the server for it: no worker wants it by name, or there is no venue."""
    WANTED = 1
    """It is to be subscribed: there is no connection, or it waits for its turn."""
    PENDING = 2
    """The server has been asked for it and has not answered."""
    SUBSCRIBED = 3
    """The server has acknowledged it. It stays so while it lingers without a worker."""
    REFUSED = 4
    """It is wanted and won't be had: the reason stands beside it."""

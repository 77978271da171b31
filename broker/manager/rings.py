"""The manager's ring and uplink: new, or those that a dead manager left."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from ringcast import shm
from ringcast.shm import broadcast, mpsc

from ..config import Config, ConfigError
from ..logs import log_event

__all__ = ["Rings", "open_rings"]


@dataclass(frozen=True, slots=True)
class Rings:
    """Both directions.

    Attributes:
        writer: of the ring that workers read.
        receiver: of the uplink that workers send through.
        before: the ring as its dead manager left it, or None if it is new.
    """

    writer: broadcast.Writer
    receiver: mpsc.Receiver
    before: shm.RingStatus | None


@contextlib.contextmanager
def open_rings(config: Config) -> Iterator[Rings]:
    """Ring and uplink inside the block; closed, if nobody did, and unlinked after it.

    The ring is opened last: workers that can attach to it can send, too. When it can't be had, an
    uplink that a dead manager left stays as it was: workers' messages are in it.

    Raises:
        ConfigError: sizes that no ring can have.
        shm.RingExists: another manager of this name lives.
        shm.RingError: ring or uplink can't be made.
    """
    receiver, uplink_resumed = _open_uplink(config)
    try:
        writer, resumed = _open_ring(config)
    except BaseException:
        if uplink_resumed:
            receiver.abandon()
        else:
            _remove(receiver)
        raise
    try:
        yield Rings(writer, receiver, shm.status(config.name) if resumed else None)
    finally:
        try:
            _remove(writer)
        finally:
            _remove(receiver)


def _open_ring(config: Config) -> tuple[broadcast.Writer, bool]:
    """The writer, and whether it resumes a dead manager's ring."""
    resumed = False
    try:
        writer = broadcast.Writer.create(
            config.name,
            slots=config.slots,
            capacity=config.capacity,
            max_readers=config.max_readers,
            max_topics=config.max_topics,
            mode=config.mode,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except shm.RingExists:
        writer = broadcast.Writer.resume(config.name)
        resumed = True
    writer.answers_wishes = config.venue is not None  # a worker that is early does not miss it
    if resumed and (writer.slots, writer.capacity) != (config.slots, config.capacity):
        log_event(
            logging.WARNING,
            "resumed ring keeps its size",
            ring=config.name,
            slots=writer.slots,
            capacity=writer.capacity,
        )
    return writer, resumed


def _open_uplink(config: Config) -> tuple[mpsc.Receiver, bool]:
    """The receiver, and whether it resumes a dead manager's uplink."""
    try:
        receiver = mpsc.Receiver.create(
            config.name,
            max_senders=config.max_senders,
            lane_bytes=config.send_buffer_bytes,
            mode=config.mode,
            auto_ack=False,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except shm.RingExists:
        return _resume_uplink(config.name), True
    return receiver, False


def _resume_uplink(name: str) -> mpsc.Receiver:
    try:
        return mpsc.Receiver.resume(name, auto_ack=False)
    except shm.RingExists as error:
        raise shm.RingExists(f"a manager of ring {name!r} is running already: {error}") from error


def _remove(end: broadcast.Writer | mpsc.Receiver) -> None:
    if not end.closed:
        end.close()
    end.unlink()

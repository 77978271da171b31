"""A worker's end of requests, against a writer and a receiver in place of a manager."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, Final

import pytest

from ringcast import Feed, Phase, attach, shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import DEADLINE, Processes, eventually
from tests.unit.conftest import Background

from . import reading

REQUEST: Final = {"id": 1}
OPEN_MAX: Final = 4096
STATE: Final = dataclasses.replace(reading.STATE, request_id="/id")


@pytest.fixture
def asker(feed: Feed, writer: Writer) -> Feed:
    """A worker whose manager knows where ids are."""
    writer.note = STATE.encode()
    return feed


def asked(feed: Feed) -> Background:
    """A request that waits for its answer."""
    waiting = Background(lambda: feed.request(REQUEST, timeout=DEADLINE))
    eventually(lambda: len(shm.status(feed.name).readers) == 2, "it has its slot")
    return waiting


def answers_slot(feed: Feed) -> int:
    """Of the reader of its answers."""
    (found,) = (r.slot for r in shm.status(feed.name).readers if r.slot != feed.slot)
    return found


def test_the_longest_state_fits_into_the_note(writer: Writer) -> None:
    most = 1 << 63
    state = dataclasses.replace(
        STATE,
        phase=Phase.RECONNECTING,
        url='"' * 1000,
        last_error='"' * 1000,
        since_ns=most,
        epoch=1 << 32,
        rtt_ns=most,
        received=most,
        sent=most,
        reconnects=most,
        answers_dropped=most,
        request_id="/" + "x" * 61,  # as long as a configuration may have it
    )
    writer.note = state.encode()


def test_an_older_managers_state_has_no_request_id(feed: Feed, writer: Writer) -> None:
    values = json.loads(STATE.encode())
    for member in ("request_id", "request_id_is_text", "answers_dropped"):
        del values[member]
    writer.note = json.dumps(values).encode()
    assert (feed.state.request_id, feed.state.answers_dropped) == (None, 0)
    with pytest.raises(ValueError, match="configure request_id"):
        feed.request(REQUEST)


def test_a_ring_without_a_manager_is_not_asked(feed: Feed) -> None:
    with pytest.raises(shm.RingError, match="is not a manager's"):
        feed.request(REQUEST)


def test_a_manager_that_has_stopped_is_not_asked(asker: Feed, writer: Writer) -> None:
    writer.note = dataclasses.replace(STATE, phase=Phase.STOPPED).encode()
    with pytest.raises(shm.RingClosed, match="has stopped"):
        asker.request(REQUEST)


def test_the_reader_of_answers_is_labelled_and_goes_with_the_feed(
    receiver: Receiver, writer: Writer
) -> None:
    writer.note = STATE.encode()
    with attach(writer.name, label="mine") as feed:
        waiting = asked(feed)
        labels = [reader.label for reader in shm.status(writer.name).readers]
        assert sorted(labels) == ["mine", "mine (answers)"]
        (envelope,) = eventually(receiver.read_available, "it is sent")
        assert (envelope.kind, len(json.loads(bytes(envelope)))) == (shm.Kind.TEXT, 1)
    with pytest.raises(shm.RingClosed):
        waiting.result()
    assert shm.status(writer.name).readers == ()


def test_an_evicted_reader_of_answers_ends_requests(asker: Feed, writer: Writer) -> None:
    waiting = asked(asker)
    assert writer.evict(answers_slot(asker))
    writer.publish(b"x")
    with pytest.raises(shm.Evicted):
        waiting.result()
    with pytest.raises(shm.Evicted):
        asker.request(REQUEST)


def test_requests_that_wait_are_bounded(asker: Feed, receiver: Receiver) -> None:
    open_now = []
    for _ in range(OPEN_MAX):
        open_now.append(asker.follow(REQUEST, timeout=0))
        receiver.ack(receiver.read_available())
    with pytest.raises(shm.RingFull, match="4096 requests of this feed wait"):
        asker.follow(REQUEST)
    open_now.pop().close()
    with asker.follow(REQUEST):
        (envelope,) = receiver.read_available()
        assert json.loads(bytes(envelope))["id"] % (1 << 14) == OPEN_MAX


@pytest.mark.stress
def test_ids_begin_anew_and_pass_over_those_without_an_answer(
    asker: Feed, receiver: Receiver
) -> None:
    def ask() -> int:
        """Ask in vain; the counter in the request's id."""
        asker.follow(REQUEST, timeout=0).close()
        (envelope,) = receiver.read_available()
        number: int = json.loads(bytes(envelope))["id"]
        receiver.ack([envelope])
        return number % (1 << 14)

    with asker.follow(REQUEST):  # the first number, all the time
        receiver.ack(receiver.read_available())
        assert [ask() for _ in range(1 << 14)] == [*range(1, 1 << 14), 1]


def use_in_child(feed: Feed, following: Any) -> None:
    for call in (lambda: feed.request(REQUEST), following.read, lambda: next(following)):
        try:
            call()
        except (shm.RingClosed, StopIteration):
            continue
        os._exit(1)
    following.close()
    feed.close()


def test_a_forked_child_asks_nothing(asker: Feed, writer: Writer, processes: Processes) -> None:
    with asker.follow(REQUEST) as following:
        processes.start(use_in_child, asker, following)
        processes.join()
        assert not asker.closed
        assert following.read(0) is None
        assert len(shm.status(writer.name).readers) == 2

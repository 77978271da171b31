"""Subscriptions: what the server says, when it says nothing, and when it says nonsense."""

from __future__ import annotations

import pytest

from ringcast.broker.topics.subscriptions import NO_ANSWER, Change, TopicState
from ringcast.broker.topics.venue import Confirmation

from .play import Desk, PlayServer, PlayVenue, Told, answer

NONE, WANTED, PENDING, SUBSCRIBED, REFUSED = TopicState
ID, TOPIC, LIST, ORDER = Confirmation


def play(desk: Desk, server: PlayServer, seconds: float = 1000.0) -> list[Told]:
    """Let the two talk for so long; what was sent."""
    end, before = desk.now + seconds, len(desk.told)
    while True:
        for told in desk.take():
            server.tell(told)
        times = [t for t in (server.next_answer, desk.subscriptions.deadline(desk.now)) if t]
        if not times or min(times) > end:
            desk.now = end
            return desk.told[before:]
        desk.now = max(desk.now, *[min(times)])
        desk.heard(*server.answers(desk.now))


# ---- refusals


@pytest.mark.parametrize("confirmation", Confirmation)
def test_one_topic_is_refused_with_the_servers_words(confirmation: Confirmation) -> None:
    desk = Desk(PlayVenue(confirmation))
    desk.wish(0, ["bad"])
    server = PlayServer(confirmation, bad=frozenset(["bad"]))
    assert len(play(desk, server)) == 1
    assert desk.subscriptions.changes()[-1] == Change("bad", REFUSED, "bad topic")
    assert desk.subscriptions.reason("bad") == "bad topic"
    desk.leave(0)
    assert desk.states("bad") == [NONE]
    assert desk.run_for(100) == []


@pytest.mark.parametrize("confirmation", Confirmation)
@pytest.mark.parametrize("bad", [(3,), (0, 15), (7, 8), tuple(range(16))])
def test_a_refused_batch_is_split_until_the_refused_stand_alone(
    confirmation: Confirmation, bad: tuple[int, ...]
) -> None:
    desk = Desk(PlayVenue(confirmation))
    names = [f"t{i}" for i in range(16)]
    desk.wish(0, names)
    server = PlayServer(confirmation, bad=frozenset(names[i] for i in bad), delay=0.1)
    told = play(desk, server)
    expected = [REFUSED if i in bad else SUBSCRIBED for i in range(16)]
    assert desk.states(*names) == expected
    assert set(server.on) == set(names) - server.bad
    assert server.doubled == []
    assert len(told) <= 1 + 2 * 4 * len(bad)


@pytest.mark.parametrize("confirmation", [ID, TOPIC])
def test_a_refusal_that_names_topics_refuses_only_these(confirmation: Confirmation) -> None:
    desk = Desk(PlayVenue(confirmation))
    desk.wish(0, ["a", "b", "c"])
    server = PlayServer(confirmation, bad=frozenset("b"), named=True)
    assert len(play(desk, server)) == 1
    assert desk.states("a", "b", "c") == [SUBSCRIBED, REFUSED, SUBSCRIBED]


def test_a_batch_that_is_refused_as_a_whole_without_a_name_is_split_too() -> None:
    """By a server whose other answers name topics: they are waited for, but not for long."""
    desk = Desk(PlayVenue(TOPIC))
    desk.wish(0, ["a", "b", "c", "d"])
    begin = desk.now
    while not set(desk.states("a", "b", "c", "d")) <= {SUBSCRIBED, REFUSED}:
        for told in desk.take():
            if "c" in told.names and told.op == "subscribe":
                desk.heard(answer("refused", reason="no"))
            else:
                desk.confirm([told])
        desk.now = desk.subscriptions.deadline(desk.now) or desk.now
    assert desk.states("a", "b", "c", "d") == [SUBSCRIBED, SUBSCRIBED, REFUSED, SUBSCRIBED]
    assert desk.now - begin < desk.venue.answer_timeout


@pytest.mark.parametrize("confirmation", [TOPIC, LIST])
def test_nobody_else_is_refused_for_a_refusal_without_a_name(confirmation: Confirmation) -> None:
    desk = Desk(PlayVenue(confirmation, topics_per_request=1))
    names = [f"t{i}" for i in range(50)]
    desk.wish(0, names)
    server = PlayServer(confirmation, bad=frozenset(["t20", "t40"]), delay=0.1)
    play(desk, server, 60.0)
    assert [n for n in names if desk.states(n) == [REFUSED]] == ["t20", "t40"]
    assert desk.subscriptions.reason("t20") == "bad topic"
    assert set(server.on) == set(names) - server.bad
    assert server.doubled == []


def test_a_refusal_without_an_id_is_not_ours_where_answers_have_ids() -> None:
    desk = Desk(PlayVenue(ID))
    desk.wish(0, ["a"])
    told = desk.take()
    desk.heard(answer("refused", reason="a worker's own message"))
    assert desk.states("a") == [PENDING]
    desk.confirm(told)
    assert desk.states("a") == [SUBSCRIBED]


def test_a_refused_topic_is_asked_for_again_at_the_next_wish_only() -> None:
    desk = Desk(PlayVenue())
    server = PlayServer(ID, bad=frozenset(["bad"]))
    desk.wish(0, ["bad", "a"])
    play(desk, server)
    assert desk.states("bad", "a") == [REFUSED, SUBSCRIBED]
    desk.wish(0, ["a", "bad"])  # read again, not wished again
    desk.wish(0, ["a", "bad"], again=["a", "strange"])
    assert desk.ops() == []
    desk.wish(0, ["a", "bad"], again=["bad"])
    assert desk.states("bad") == [WANTED]
    assert [told.names for told in play(desk, server)] == [("bad",)]
    desk.subscriptions.changes()
    desk.wish(1, ["bad"])  # another's wish is a new one
    assert [told.names for told in play(desk, server)] == [("bad",)]
    assert desk.subscriptions.changes() == [Change("bad", REFUSED, "bad topic")]
    server.bad = frozenset()
    desk.subscriptions.disconnected(desk.now)
    server.disconnect()
    assert desk.states("bad") == [REFUSED]
    desk.subscriptions.connected(desk.now)
    assert desk.states("bad") == [WANTED]
    play(desk, server)
    assert desk.states("bad", "a") == [SUBSCRIBED] * 2


def test_a_refusal_of_an_unsubscription_ends_the_matter() -> None:
    desk = Desk(PlayVenue(), linger=0.0)
    desk.wish(0, ["a", "b"])
    desk.confirm(desk.take())
    desk.leave(0)
    (told,) = desk.take()
    desk.heard(answer("refused", number=told.id, reason="not subscribed"))  # for which of them?
    halves = desk.take()
    assert sorted(one.names for one in halves) == [("a",), ("b",)]
    desk.heard(answer("refused", number=halves[0].id, reason="not subscribed"))
    desk.confirm(halves[1:])
    assert desk.run_for(100) == []
    assert desk.states("a", "b") == [NONE] * 2


# ---- no answers


@pytest.mark.parametrize("confirmation", Confirmation)
def test_without_an_answer_it_is_asked_once_more_and_then_refused(
    confirmation: Confirmation,
) -> None:
    desk = Desk(PlayVenue(confirmation, answer_timeout=10.0))
    desk.wish(0, ["a"])
    assert desk.run_for(9.9) == [("subscribe", "a")]
    assert desk.run_for(0.2) == [("subscribe", "a")]
    assert desk.states("a") == [PENDING]
    desk.subscriptions.changes()
    desk.run_for(10.0)
    assert desk.subscriptions.changes() == [Change("a", REFUSED, NO_ANSWER)]


def test_what_the_server_may_have_without_an_answer_is_ended() -> None:
    desk = Desk(PlayVenue(TOPIC))
    desk.wish(0, ["a"])
    ops = desk.run_for(100)
    assert ops == [("subscribe", "a")] * 2 + [("unsubscribe", "a")] * 2
    assert desk.states("a") == [REFUSED]
    desk.wish(0, ["a"], again=["a"])
    assert desk.ops() == [("subscribe", "a")]


def test_a_wish_that_is_withdrawn_without_an_answer_is_not_asked_for_again() -> None:
    desk = Desk(PlayVenue(TOPIC))
    desk.wish(0, ["a"])
    desk.ops()
    desk.leave(0)
    assert desk.run_for(15) == [("unsubscribe", "a")]
    desk.confirm(desk.told[-1:])
    assert desk.run_for(100) == []


@pytest.mark.parametrize("confirmation", [ID, TOPIC])
def test_an_answer_to_the_second_attempt_is_as_good(confirmation: Confirmation) -> None:
    desk = Desk(PlayVenue(confirmation))
    desk.wish(0, ["a", "b"])
    desk.run_for(11.0)
    assert [told.names for told in desk.told] == [("a", "b")] * 2
    desk.confirm(desk.told[-1:])
    assert desk.states("a", "b") == [SUBSCRIBED] * 2
    assert desk.run_for(100) == []


def test_only_what_is_not_answered_is_asked_once_more() -> None:
    desk = Desk(PlayVenue(TOPIC))
    desk.wish(0, ["a", "b", "c"])
    desk.ops()
    desk.heard(answer("subscribed", "b"))
    assert desk.run_for(10.0) == [("subscribe", "a", "c")]


def test_a_list_that_lacks_a_pending_topic_is_no_refusal() -> None:
    desk = Desk(PlayVenue(LIST))
    desk.wish(0, ["a", "b"])
    desk.ops()
    desk.heard(answer("listed", "a"))
    assert desk.states("a", "b") == [SUBSCRIBED, PENDING]
    desk.heard(answer("listed", "a", "b"))
    assert desk.states("a", "b") == [SUBSCRIBED] * 2


def test_an_unsubscription_without_an_answer_is_taken_for_done() -> None:
    desk = Desk(PlayVenue(), linger=0.0)
    desk.wish(0, ["a"])
    desk.confirm(desk.take())
    desk.leave(0)
    assert desk.run_for(100) == [("unsubscribe", "a")] * 2
    desk.wish(0, ["a"])
    assert desk.ops() == [("subscribe", "a")]


def test_what_there_is_no_way_to_unsubscribe_is_forgotten() -> None:
    desk = Desk(PlayVenue(topics_per_request=1), linger=0.0)
    names = [f"mute{i}" for i in range(5)]
    desk.wish(0, [*names, "a"])
    desk.confirm(desk.take())
    desk.leave(0)
    assert desk.ops() == [("unsubscribe", "a")]
    assert desk.states(*names) == [NONE] * 5


# ---- answers that are late, doubled, or nobody's


@pytest.mark.parametrize("confirmation", Confirmation)
def test_what_was_not_asked_for_does_nothing(confirmation: Confirmation) -> None:
    desk = Desk(PlayVenue(confirmation))
    noise = [
        answer("subscribed", "x", "y"),
        answer("unsubscribed", "a"),
        answer("refused", "x"),
        answer("refused", "a", reason="no"),
        answer("refused", reason="no"),
        answer("listed", "x", "a"),
        answer("listed"),
        answer("subscribed"),
        answer("unsubscribed"),
        answer("subscribed", number=5),
        answer("refused", number=1_000_000_001),
        answer("subscribed", "x", number=1_000_000_001),
        b"{}",
    ]
    desk.heard(*noise)
    assert desk.run_for(100) == []
    desk.wish(0, ["a"])
    desk.confirm(desk.take())
    if confirmation is LIST:
        desk.heard(answer("listed", "a"))
    elif confirmation is ORDER:
        desk.heard(answer("subscribed"))
    desk.subscriptions.changes()
    desk.heard(*noise, *noise)
    assert desk.run_for(100) == []
    assert desk.subscriptions.changes() == []
    assert desk.states("a", "x") == [SUBSCRIBED, NONE]


def test_an_answer_names_only_topics_of_its_request() -> None:
    desk = Desk(PlayVenue(ID, topics_per_request=1))
    desk.wish(0, ["a", "b"])
    told = desk.take()
    desk.heard(answer("subscribed", "b", number=told[0].id))
    assert desk.states("a", "b") == [PENDING] * 2


def test_a_late_answer_counts_as_long_as_nothing_else_was_asked() -> None:
    desk = Desk(PlayVenue(TOPIC, messages_per_second=0.04))
    desk.wish(0, ["a"])
    desk.run_for(45.0)
    assert [told.op for told in desk.told] == ["subscribe"] * 2
    assert desk.states("a") == [REFUSED]
    desk.heard(answer("subscribed", "a"))
    assert desk.states("a") == [SUBSCRIBED]
    assert desk.run_for(100) == []


def test_a_late_refusal_counts_as_well() -> None:
    desk = Desk(PlayVenue(TOPIC, messages_per_second=0.04, burst=1))
    desk.wish(0, ["a"])
    desk.run_for(12.0)
    desk.subscriptions.wish(1, ["b"], desk.now)
    desk.heard(answer("refused", "a", reason="late"))
    assert desk.states("a") == [PENDING]  # its second request is made and waits for the rate
    desk.run_for(14.0)
    desk.heard(answer("refused", "a", reason="late"))
    assert desk.states("a") == [REFUSED]


def test_answers_by_order_are_not_taken_for_the_next_requests() -> None:
    """The server is slow: it answers both attempts, after the second one."""
    desk = Desk(PlayVenue(ORDER))
    desk.wish(0, ["a"])
    desk.run_for(12.0)
    desk.wish(0, ["a", "bad"])
    assert desk.ops() == []  # one at a time
    desk.heard(answer("subscribed"))
    assert desk.states("a", "bad") == [SUBSCRIBED, WANTED]
    assert desk.ops() == []  # the other answer may come
    desk.heard(answer("subscribed"))
    assert desk.ops() == [("subscribe", "bad")]
    assert desk.states("bad") == [PENDING]
    desk.heard(answer("refused", reason="bad topic"))
    assert desk.states("a", "bad") == [SUBSCRIBED, REFUSED]


def test_an_answer_by_order_that_does_not_come_is_not_waited_for_for_ever() -> None:
    desk = Desk(PlayVenue(ORDER))
    desk.wish(0, ["a"])
    desk.run_for(12.0)
    desk.wish(0, ["a", "b"])
    desk.heard(answer("subscribed"))
    assert desk.run_for(17.9) == []
    assert desk.run_for(0.2) == [("subscribe", "b")]


def test_after_a_silence_the_answers_to_it_are_waited_for() -> None:
    desk = Desk(PlayVenue(ORDER))
    desk.wish(0, ["a"])
    desk.run_for(20.5)
    assert desk.states("a") == [REFUSED]
    desk.wish(1, ["b"])
    desk.heard(answer("subscribed"), answer("subscribed"))
    assert desk.states("b") == [WANTED]
    assert desk.ops() == [("subscribe", "b")]
    desk.heard(answer("subscribed"))
    assert desk.ops() == [("unsubscribe", "a")]


def test_a_request_made_once_more_goes_before_all_others() -> None:
    desk = Desk(PlayVenue(ORDER), linger=0.0)
    desk.wish(0, ["x.1", "y.1", "z.1"])
    assert desk.ops() == [("subscribe", "x.1")]
    desk.wish(1, ["new"])
    assert desk.run_for(11.0) == [("subscribe", "x.1")]
    desk.heard(answer("subscribed"), answer("subscribed"))
    assert desk.ops() == [("subscribe", "y.1")]


def test_the_memory_stays_bounded_by_what_is_wanted() -> None:
    desk = Desk(PlayVenue(TOPIC, topics_per_request=1))
    names = [f"t{i}" for i in range(3000)]
    desk.wish(0, names)
    assert len(desk.take()) == desk.subscriptions.in_flight == 1024
    for i in range(3000):
        desk.heard(answer("subscribed", f"strange{i}"), answer("listed", f"strange{i}"))
    assert len(desk.subscriptions.changes()) == 3000
    assert desk.take() == []
    desk.heard(answer("subscribed", "t0"))
    assert [told.names for told in desk.take()] == [("t1024",)]


def test_a_refusal_of_the_second_attempt_leaves_the_first_in_doubt() -> None:
    """As by a server that says "already subscribed"."""
    desk = Desk(PlayVenue())
    desk.wish(0, ["a"])
    desk.run_for(11.0)
    desk.heard(answer("refused", number=desk.told[1].id, reason="already subscribed"))
    assert desk.states("a") == [REFUSED]
    assert desk.ops() == [("unsubscribe", "a")]
    desk.confirm(desk.told[-1:])
    assert desk.run_for(100) == []


def test_a_refusal_that_has_come_is_not_waited_for() -> None:
    desk = Desk(PlayVenue(TOPIC, topics_per_request=1))
    desk.wish(0, ["a", "bad"])
    desk.ops()
    desk.heard(answer("refused", reason="bad topic"), answer("subscribed", "a"))
    assert desk.run_for(10.0) == [("subscribe", "bad")]
    desk.heard(answer("refused", reason="bad topic"))
    assert desk.states("a", "bad") == [SUBSCRIBED, REFUSED]
    desk.wish(0, ["a", "b"])
    assert ("subscribe", "b") in desk.ops() + desk.run_for(0.0)


def test_a_late_answer_does_not_take_the_place_of_others() -> None:
    desk = Desk(PlayVenue(TOPIC, topics_per_connection=1, messages_per_second=0.04))
    desk.wish(0, ["a"])
    desk.run_for(45.0)
    assert desk.states("a") == [REFUSED]
    assert desk.wish(1, ["b"]) == {}
    desk.heard(answer("subscribed", "a"))
    assert desk.states("a", "b") == [REFUSED, WANTED]
    assert desk.run_for(10.0) == [("unsubscribe", "a")]
    desk.confirm(desk.told[-1:])
    assert desk.run_for(30.0) == [("subscribe", "b")]


def test_an_answer_by_order_to_more_topics_is_not_taken_for_that_to_fewer() -> None:
    desk = Desk(PlayVenue(ORDER))
    desk.wish(0, ["a", "bad"])
    assert desk.ops() == [("subscribe", "a", "bad")]
    desk.wish(0, ["a"])
    assert desk.run_for(11.0) == []
    desk.heard(answer("refused", reason="bad topic"))  # late, and for what nobody wants any more
    assert desk.ops() == [("subscribe", "a")]
    assert desk.states("a") == [PENDING]

"""Subscriptions: what workers want and when the server is asked for it."""

from __future__ import annotations

import time

import pytest

from ringcast.broker.topics.subscriptions import Change, Subscriptions, TopicState
from ringcast.broker.topics.venue import Confirmation, Heartbeat

from .play import Desk, PlayVenue, answer

NONE, WANTED, PENDING, SUBSCRIBED, REFUSED = TopicState


def subscribed(desk: Desk, *names: str, slot: int = 0) -> None:
    """Have the worker subscribed to exactly these."""
    desk.wish(slot, names)
    desk.confirm(desk.take())
    assert set(desk.states(*names)) <= {SUBSCRIBED}
    desk.subscriptions.changes()


# ---- counting


def test_the_numbers_of_the_states_stand_in_shared_memory() -> None:
    assert [state.value for state in TopicState] == [0, 1, 2, 3, 4]
    assert [state.name for state in TopicState] == [
        "NONE",
        "WANTED",
        "PENDING",
        "SUBSCRIBED",
        "REFUSED",
    ]


def test_a_topic_goes_through_its_states() -> None:
    desk = Desk(PlayVenue())
    assert desk.wish(3, ["a"]) == {}
    assert desk.subscriptions.changes() == [Change("a", WANTED)]
    told = desk.take()
    assert [(t.op, t.names) for t in told] == [("subscribe", ("a",))]
    assert desk.subscriptions.changes() == [Change("a", PENDING)]
    desk.confirm(told)
    assert desk.subscriptions.changes() == [Change("a", SUBSCRIBED)]
    desk.leave(3)
    assert desk.states("a") == [SUBSCRIBED]
    assert desk.run_for(4.9) == []
    assert desk.run_for(0.2) == [("unsubscribe", "a")]
    assert desk.subscriptions.changes() == [Change("a", NONE)]
    desk.confirm(desk.told[-1:])
    assert desk.run_for(1000) == []
    assert desk.subscriptions.changes() == []
    assert desk.subscriptions.deadline(desk.now) is None


def test_only_the_first_worker_subscribes_and_only_the_last_one_ends_it() -> None:
    desk = Desk(PlayVenue())
    subscribed(desk, "a", slot=0)
    for slot in range(1, 8):
        desk.wish(slot, ["a"])
        assert desk.ops() == []
        assert desk.subscriptions.wanted_by("a") == slot + 1
    for slot in range(7):
        desk.leave(slot)
        assert desk.run_for(60) == []
    desk.wish(7, [])
    assert desk.run_for(9) == [("unsubscribe", "a")]


def test_many_topics_go_out_in_one_request() -> None:
    desk = Desk(PlayVenue())
    desk.wish(0, ["a", "b"])
    desk.wish(1, ["b", "c"])
    assert desk.ops() == [("subscribe", "a", "b", "c")]
    desk.confirm(desk.told)
    desk.leave(0)
    desk.leave(1)
    assert sorted(desk.run_for(5.0)[0]) == ["a", "b", "c", "unsubscribe"]


def test_a_venue_says_how_many_topics_a_request_has() -> None:
    desk = Desk(PlayVenue(topics_per_request=10))
    desk.wish(0, [f"t{i}" for i in range(95)])
    assert [len(op) - 1 for op in desk.ops()] == [10] * 9 + [5]


def test_a_venue_says_which_topics_share_a_request() -> None:
    desk = Desk(PlayVenue())
    desk.wish(0, [f"{kind}.{i}" for i in range(20) for kind in ("book", "trade")])
    assert [len(op) - 1 for op in desk.ops()] == [20, 20]


def test_the_same_wish_costs_nothing() -> None:
    desk = Desk(PlayVenue())
    subscribed(desk, "a", "b")
    assert desk.wish(0, ["b", "a", "b"]) == {}
    assert desk.run_for(100) == []
    assert desk.subscriptions.changes() == []


def test_a_wish_replaces_the_one_before() -> None:
    desk = Desk(PlayVenue(), linger=0.0)
    subscribed(desk, "a", "b")
    desk.wish(0, ["b", "c"])
    assert desk.ops() == [("subscribe", "c"), ("unsubscribe", "a")]


def test_a_wish_that_comes_back_while_the_topic_lingers_costs_nothing() -> None:
    desk = Desk(PlayVenue())
    subscribed(desk, "a")
    for _ in range(3):
        desk.leave(0)
        assert desk.run_for(4.9) == []
        desk.wish(1, ["a"])
        desk.leave(1)
        desk.wish(0, ["a"])
        assert desk.run_for(100) == []
    assert desk.subscriptions.changes() == []


def test_each_topic_lingers_from_when_it_was_left() -> None:
    desk = Desk(PlayVenue())
    subscribed(desk, "a", "b")
    desk.wish(0, ["b"])
    assert desk.run_for(3.0) == []
    desk.wish(0, [])
    assert desk.run_for(2.0) == [("unsubscribe", "a")]
    assert desk.run_for(3.0) == [("unsubscribe", "b")]


def test_a_wish_that_is_withdrawn_before_it_is_sent_is_forgotten() -> None:
    desk = Desk(PlayVenue())
    desk.wish(0, ["a"])
    desk.leave(0)
    assert desk.run_for(100) == []
    assert desk.states("a") == [NONE]


def test_a_wish_that_is_withdrawn_while_it_is_pending_waits_for_the_answer() -> None:
    desk = Desk(PlayVenue())
    desk.wish(0, ["a"])
    told = desk.take()
    desk.leave(0)
    assert desk.run_for(8.0) == []
    desk.confirm(told)
    assert desk.run_for(4.9) == []
    assert desk.run_for(0.1) == [("unsubscribe", "a")]


def test_a_wish_under_way_to_be_unsubscribed_is_subscribed_after_the_answer() -> None:
    desk = Desk(PlayVenue(), linger=0.0)
    subscribed(desk, "a")
    desk.leave(0)
    ended = desk.take()
    assert ended[0].op == "unsubscribe"
    desk.wish(1, ["a"])
    assert desk.states("a") == [WANTED]
    assert desk.ops() == []
    desk.confirm(ended)
    assert desk.ops() == [("subscribe", "a")]


def test_what_others_have_for_granted_goes_before_what_is_new() -> None:
    desk = Desk(PlayVenue(topics_per_request=1, messages_per_second=1.0), linger=0.0)
    subscribed(desk, "a")
    desk.leave(0)
    desk.now += 1
    ended = desk.take()
    desk.wish(1, ["b", "a"])
    desk.confirm(ended)
    desk.now += 1
    assert desk.ops() == [("subscribe", "a")]


def test_a_worker_that_was_never_there_can_leave() -> None:
    desk = Desk(PlayVenue())
    desk.leave(5)
    assert desk.ops() == []


def test_own_topics_never_end() -> None:
    desk = Desk(PlayVenue(), own=["a", "b", "a"], linger=0.0, allow=["x*"])
    told = desk.take()
    assert told[0].names == ("a", "b")
    desk.confirm(told)
    desk.wish(0, ["xa"])
    desk.confirm(desk.take())
    desk.leave(0)
    assert desk.run_for(100)[0] == ("unsubscribe", "xa")
    assert desk.states("a", "b") == [SUBSCRIBED] * 2
    assert desk.subscriptions.wanted_by("a") == 0


def test_own_topics_must_be_possible() -> None:
    with pytest.raises(ValueError, match="is too long"):
        Subscriptions(PlayVenue().as_venue(), own=["a" * 50])
    with pytest.raises(ValueError, match="play allows 2 topics per connection"):
        Subscriptions(PlayVenue(topics_per_connection=2).as_venue(), own=["a", "b", "c"])
    Subscriptions(PlayVenue(topics_per_connection=2).as_venue(), own=["a", "b", "a"])


# ---- what is refused before asking


def test_what_is_not_allowed_or_no_topic_is_not_asked_for() -> None:
    desk = Desk(PlayVenue(), allow=["btc*", "e*h", "one"])
    faults = desk.wish(0, ["btcusdt", "ethxh", "one", "sol", "ones", "xbtc", "btc" + "c" * 20])
    assert sorted(faults) == ["btc" + "c" * 20, "ones", "sol", "xbtc"]
    assert "allows" in faults["sol"]
    assert "too long" in faults["btc" + "c" * 20]
    assert desk.ops() == [("subscribe", "btcusdt", "ethxh", "one")]
    assert desk.wish(0, ["btcusdt", "sol"]) == {"sol": faults["sol"]}
    assert desk.wish(0, ["btcusdt"]) == {}
    assert desk.states("sol") == [NONE]


def test_more_than_the_venue_allows_is_refused_before_asking() -> None:
    desk = Desk(PlayVenue(topics_per_connection=3))
    assert desk.wish(0, ["a", "b"]) == {}
    assert desk.wish(1, ["b", "c", "d"]) == {"d": "play allows 3 topics per connection"}
    assert desk.wish(1, ["b", "c", "d"]) == {"d": "play allows 3 topics per connection"}
    assert desk.states("a", "b", "c", "d") == [WANTED, WANTED, WANTED, REFUSED]
    assert desk.subscriptions.reason("d") == "play allows 3 topics per connection"
    desk.confirm(desk.take())
    desk.leave(0)  # there is room again, but nobody wishes
    assert desk.run_for(9) == [("unsubscribe", "a")]
    desk.confirm(desk.told[-1:])
    assert desk.run_for(100) == []
    assert desk.wish(1, ["b", "c", "d"], again=["d"]) == {}
    assert desk.ops() == [("subscribe", "d")]


def test_a_worker_that_changes_its_mind_needs_no_room_for_both() -> None:
    desk = Desk(PlayVenue(topics_per_connection=1))
    subscribed(desk, "a")
    assert desk.wish(0, ["b"]) == {}


def test_what_is_beyond_the_limit_is_asked_for_on_the_next_connection() -> None:
    desk = Desk(PlayVenue(topics_per_connection=1))
    subscribed(desk, "a", slot=0)
    desk.wish(1, ["b"])
    desk.leave(0)
    assert desk.states("b") == [REFUSED]
    desk.subscriptions.disconnected(desk.now)
    desk.subscriptions.connected(desk.now)
    assert desk.ops() == [("subscribe", "b")]


def test_lingering_topics_make_room_the_longest_unwanted_first() -> None:
    desk = Desk(PlayVenue(topics_per_connection=3))
    subscribed(desk, "a", "b", "c")
    desk.wish(0, ["b", "c"])
    desk.now += 1
    desk.wish(0, ["c"])
    desk.wish(0, ["c", "d"])
    ended = desk.take()
    assert [(t.op, t.names) for t in ended] == [("unsubscribe", ("a",))]
    assert desk.ops() == []  # not before the server has ended the other
    desk.confirm(ended)
    assert desk.ops() == [("subscribe", "d")]
    assert desk.states("b", "c", "d") == [SUBSCRIBED, SUBSCRIBED, PENDING]


def test_what_there_is_room_for_is_subscribed_before_something_is_unsubscribed() -> None:
    desk = Desk(PlayVenue(topics_per_connection=3))
    subscribed(desk, "a", "b")
    desk.wish(0, ["x", "y", "z"])
    told = desk.take()
    assert [(t.op, t.names) for t in told] == [
        ("subscribe", ("x",)),
        ("unsubscribe", ("a", "b")),
    ]
    desk.confirm(told)
    assert desk.ops() == [("subscribe", "y", "z")]


def test_a_lingering_topic_beyond_the_limit_is_not_taken_back() -> None:
    desk = Desk(PlayVenue(topics_per_connection=1))
    subscribed(desk, "a")
    desk.wish(0, ["b"])
    assert list(desk.wish(1, ["a"])) == ["a"]
    told = desk.take()
    assert [(t.op, t.names) for t in told] == [("unsubscribe", ("a",))]
    desk.confirm(told)
    assert desk.ops() == [("subscribe", "b")]
    assert desk.states("a", "b") == [REFUSED, PENDING]


# ---- the connection


def test_without_a_connection_wishes_stand() -> None:
    desk = Desk(PlayVenue(), connected=False)
    desk.wish(0, ["a", "b"])
    desk.wish(0, ["b"])
    assert desk.run_for(100) == []
    assert desk.subscriptions.deadline(desk.now) is None
    assert desk.states("a", "b") == [NONE, WANTED]
    desk.subscriptions.connected(desk.now)
    assert desk.ops() == [("subscribe", "b")]


def test_after_a_reconnect_all_is_subscribed_again() -> None:
    desk = Desk(PlayVenue(), own=["o"])
    subscribed(desk, "a", "b", "c", "d")
    desk.wish(0, ["a", "b", "c"])  # d lingers
    desk.wish(1, ["e"])
    late = desk.take()
    desk.subscriptions.disconnected(desk.now)
    assert desk.states("o", "a", "b", "c", "d", "e") == [WANTED] * 4 + [NONE, WANTED]
    desk.wish(0, ["a", "b"])
    assert desk.run_for(100) == []
    desk.subscriptions.connected(desk.now)
    assert desk.venue.reconnections == 2
    assert desk.ops() == [("subscribe", "o", "a", "b", "e")]
    desk.confirm(late)  # of the old connection
    assert desk.states("e") == [PENDING]


def test_an_end_that_nobody_noticed_is_noticed_with_the_next_connection() -> None:
    desk = Desk(PlayVenue())
    subscribed(desk, "a")
    desk.subscriptions.connected(desk.now)
    assert desk.ops() == [("subscribe", "a")]


# ---- rates


def test_the_rate_is_kept() -> None:
    desk = Desk(PlayVenue(topics_per_request=1, messages_per_second=2.0, burst=3))
    desk.wish(0, [f"t{i}" for i in range(20)])
    assert len(desk.ops()) == 3
    assert desk.ops() == []
    assert desk.subscriptions.deadline(desk.now) == desk.now + 0.5
    assert len(desk.run_for(1.0)) == 2
    desk.subscriptions.spent(2, desk.now)
    assert len(desk.run_for(1.0)) == 0
    assert len(desk.run_for(1.0)) == 2


def test_no_more_is_taken_than_the_socket_has_room_for() -> None:
    desk = Desk(PlayVenue(topics_per_request=1))
    desk.wish(0, [f"t{i}" for i in range(20)])
    assert len(desk.ops(0)) == 0
    assert len(desk.ops(7)) == 7
    deadline = desk.subscriptions.deadline(desk.now)
    assert deadline is not None
    assert deadline <= desk.now
    assert len(desk.ops()) == 13


def test_a_token_is_left_for_the_heartbeat() -> None:
    heartbeat = Heartbeat("ping", 20.0)
    venue = PlayVenue(topics_per_request=1, messages_per_second=1.0, burst=3, heartbeat=heartbeat)
    desk = Desk(venue)
    desk.wish(0, [f"t{i}" for i in range(20)])
    assert len(desk.ops()) == 2
    desk.subscriptions.spent(1, desk.now)  # the heartbeat
    assert desk.subscriptions.deadline(desk.now) == desk.now + 2.0
    assert len(desk.run_for(2.0)) == 1


def test_a_burst_of_one_has_no_place_to_leave() -> None:
    venue = PlayVenue(messages_per_second=1.0, burst=1, heartbeat=Heartbeat("ping", 20.0))
    desk = Desk(venue)
    desk.wish(0, ["a"])
    assert len(desk.ops()) == 1


def test_those_who_leave_take_turns_with_those_who_come() -> None:
    desk = Desk(PlayVenue(topics_per_request=1, messages_per_second=1.0), linger=0.0)
    subscribed(desk, "a")
    desk.leave(0)
    desk.wish(1, [f"t{i}" for i in range(20)])
    assert ("unsubscribe", "a") in desk.run_for(3.0)


def test_what_waits_long_is_asked_for_once() -> None:
    desk = Desk(PlayVenue(topics_per_request=2, messages_per_second=1.0))
    desk.wish(0, [f"t{i}" for i in range(40)])
    desk.confirm(desk.take())
    desk.wish(1, [f"t{i}" for i in range(40)])
    desk.leave(0)
    seen = [name for told in desk.told for name in told.names]
    for _ in range(40):
        desk.confirm(told := desk.take())
        seen += [name for one in told for name in one.names]
        desk.now += 1
    assert sorted(seen) == sorted(f"t{i}" for i in range(40))


def test_a_call_does_not_get_dearer_with_the_topics_that_wait() -> None:
    """A quadratic `take` would need minutes."""

    def seconds(count: int) -> float:
        venue = PlayVenue(topics_per_request=1, messages_per_second=1000.0, burst=1)
        desk = Desk(venue)
        names = [f"t{i}" for i in range(count)]
        desk.wish(0, names)
        begin = time.process_time()
        for _ in range(count):
            told = desk.take(1)
            desk.confirm(told)
            desk.now += 0.01
        assert desk.states(*names) == [SUBSCRIBED] * count
        return time.process_time() - begin

    ratio = min(seconds(4000) / seconds(500) for _ in range(3))
    assert ratio < 24, f"8 times as many topics cost {ratio:.1f} times as much"


# ---- snapshots


def test_a_late_joiner_gets_its_snapshot_by_a_new_subscription() -> None:
    desk = Desk(PlayVenue(every=60.0))
    subscribed(desk, "new1", "new2", "other", slot=0)
    for slot in (1, 2, 3):
        desk.wish(slot, ["new1", "new2"])
        desk.subscriptions.snapshot(slot, "new1", desk.now)
    desk.subscriptions.snapshot(2, "new2", desk.now)
    desk.subscriptions.snapshot(0, "other", desk.now)
    told = desk.take()
    assert [(t.op, t.names) for t in told] == [("unsubscribe", ("new1", "new2"))]
    assert desk.states("new1", "new2", "other") == [WANTED, WANTED, SUBSCRIBED]
    desk.subscriptions.snapshot(3, "new1", desk.now)  # it is under way
    desk.confirm(told)
    desk.subscriptions.snapshot(3, "new1", desk.now)
    desk.confirm(desk.take())
    assert desk.told[-1].op == "subscribe"
    assert sorted(desk.told[-1].names) == ["new1", "new2"]
    assert desk.run_for(10.0) == []
    desk.subscriptions.snapshot(1, "new1", desk.now)
    desk.subscriptions.snapshot(2, "new1", desk.now)
    assert desk.run_for(49.9) == []
    assert desk.run_for(0.1) == [("unsubscribe", "new1")]


def test_a_first_subscription_brings_the_snapshot() -> None:
    desk = Desk(PlayVenue())
    desk.wish(0, ["new1"])
    desk.subscriptions.snapshot(0, "new1", desk.now)
    told = desk.take()
    desk.subscriptions.snapshot(0, "new1", desk.now)
    desk.confirm(told)
    assert desk.run_for(100) == []


def test_a_snapshot_that_nobody_waits_for_is_not_made() -> None:
    desk = Desk(PlayVenue(every=60.0))
    subscribed(desk, "new1")
    desk.wish(1, ["new1"])
    desk.subscriptions.snapshot(1, "new1", desk.now)
    desk.leave(1)
    desk.subscriptions.snapshot(1, "new1", desk.now)  # it has left
    desk.subscriptions.snapshot(0, "strange", desk.now)
    assert desk.run_for(100) == []


def test_a_topic_that_everybody_leaves_while_it_waits_for_its_snapshot_lingers() -> None:
    desk = Desk(PlayVenue(messages_per_second=1.0))
    subscribed(desk, "new1")
    desk.subscriptions.snapshot(0, "new1", desk.now)
    assert desk.ops() == []  # the rate
    desk.leave(0)
    assert desk.run_for(4.9) == []
    assert desk.run_for(0.1) == [("unsubscribe", "new1")]


def test_a_snapshot_is_requested_for_the_one_who_asks() -> None:
    desk = Desk(PlayVenue(every=0.0))
    subscribed(desk, "ask1", "ask2", slot=0)
    desk.wish(1, ["ask1", "ask2"])
    desk.wish(2, ["ask1"])
    desk.subscriptions.snapshot(1, "ask1", desk.now)
    desk.subscriptions.snapshot(1, "ask2", desk.now)
    desk.subscriptions.snapshot(2, "ask1", desk.now)
    desk.subscriptions.snapshot(2, "ask1", desk.now)
    told = desk.take()
    assert [(t.op, t.names) for t in told] == [
        ("snapshot", ("ask1", "ask2")),
        ("snapshot", ("ask1",)),
    ]
    asked = desk.subscriptions.snapshots_asked()
    assert [(a.slot, a.id, a.names) for a in asked] == [
        (1, str(told[0].id), ("ask1", "ask2")),
        (2, str(told[1].id), ("ask1",)),
    ]
    assert desk.subscriptions.snapshots_asked() == []
    assert desk.subscriptions.in_flight == 0


def test_a_snapshot_is_requested_when_the_topic_is_subscribed() -> None:
    desk = Desk(PlayVenue(every=30.0))
    desk.wish(0, ["ask1"])
    desk.subscriptions.snapshot(0, "ask1", desk.now)
    told = desk.take()
    assert [t.op for t in told] == ["subscribe"]
    desk.confirm(told)
    assert desk.ops() == [("snapshot", "ask1")]
    desk.subscriptions.snapshot(0, "ask1", desk.now)
    assert desk.run_for(29.0) == []
    assert desk.run_for(1.0) == [("snapshot", "ask1")]


def test_who_waits_for_a_requested_snapshot_gets_it_on_the_next_connection() -> None:
    desk = Desk(PlayVenue(messages_per_second=1.0))
    subscribed(desk, "ask1")
    desk.subscriptions.snapshot(0, "ask1", desk.now)
    desk.now += 0.5
    desk.subscriptions.disconnected(desk.now)
    desk.subscriptions.connected(desk.now)
    desk.now += 1
    desk.confirm(desk.take())
    assert desk.run_for(2.0) == [("snapshot", "ask1")]


# ---- one topic and each kind of confirmation


@pytest.mark.parametrize("confirmation", Confirmation)
def test_a_topic_comes_and_goes(confirmation: Confirmation) -> None:
    desk = Desk(PlayVenue(confirmation), linger=0.0)
    desk.wish(0, ["a", "b"])
    assert desk.ops() == [("subscribe", "a", "b")]
    number = desk.told[0].id
    if confirmation is Confirmation.ID:
        desk.heard(answer("subscribed", number=number))
    elif confirmation is Confirmation.TOPIC:
        desk.heard(answer("subscribed", "a"), answer("subscribed", "b"))
    elif confirmation is Confirmation.LIST:
        desk.heard(answer("listed", "b", "a"))
    else:
        desk.heard(answer("subscribed"))
    assert desk.states("a", "b") == [SUBSCRIBED] * 2
    desk.wish(0, ["b"])
    assert desk.ops() == [("unsubscribe", "a")]
    assert desk.subscriptions.in_flight == 1
    number = desk.told[1].id
    if confirmation is Confirmation.ID:
        desk.heard(answer("subscribed", number=number))  # some servers have one word for both
    elif confirmation is Confirmation.TOPIC:
        desk.heard(answer("unsubscribed", "a"))
    elif confirmation is Confirmation.LIST:
        desk.heard(answer("listed", "b"))
    else:
        desk.heard(answer("subscribed"))
    assert desk.subscriptions.in_flight == 0
    assert desk.states("a", "b") == [NONE, SUBSCRIBED]
    assert desk.run_for(100) == []

"""What is understood of clients' messages, and how answers are worded, whatever the exchange."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringcast.broker.topics import venue_file
from ringcast.broker.topics.dialogue import Answering, Ask, Dialogue, Login, Ping
from ringcast.broker.topics.venue_file import VenueError, list_venues, load_venue

VENUE = """
confirmation = "topic"
[topics]
patterns = ["{/topic}"]
[[answers]]
when = { "/ok" = true }
outcome = "done"
"""

LISTED = """
[[names]]
form = "{channel}:{symbol:upper}"
example = "trades:BTC"
[names.subscribe]
op = "sub"
version = 2
level = 1.5
args = [{ channel = "{channel}", symbols = ["{symbol}"], of = { deep = ["x", "y"] } }]
id = "{id:number}"
[names.unsubscribe]
op = "unsub"
args = ["{channel}/{symbol}"]
id = "{id:number}"
[clients.subscribed]
done = ["{name}"]
id = "{id}"
[clients.unsubscribed]
done = ["{name}"]
id = "{id}"
[clients.refused]
error = "sorry: {reason}"
id = "{id:null}"
"""

Load = Callable[[str], Dialogue]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Dialogue:
        file = tmp_path / "mine.toml"
        file.write_text(VENUE + text, "utf-8")
        return Dialogue(load_venue(str(file)))

    return load


@pytest.fixture
def listed(load: Load) -> Dialogue:
    return load(LISTED)


def arg(channel: str = "trades", *symbols: Any) -> dict[str, Any]:
    return {"channel": channel, "symbols": [*symbols], "of": {"deep": ["x", "y"]}}


def ask(*args: Any, **changes: Any) -> dict[str, Any]:
    return {"op": "sub", "version": 2, "level": 1.5, "args": [*args], **changes}


def names(dialogue: Dialogue, message: Any) -> tuple[str, ...] | None:
    found = dialogue.read(json.dumps(message).encode())
    assert found is None or isinstance(found, Ask)
    return None if found is None else found.names


# ---- requests ----------------------------------------------------------------------------------


def test_lists_may_have_any_number_of_elements(listed: Dialogue) -> None:
    assert names(listed, ask(arg("trades", "B", "A"), arg("book", "C"))) == (
        *("trades:B", "trades:A", "book:C"),
    )
    assert names(listed, ask(arg("trades", "A"), arg("trades", "A", "A"))) == ("trades:A",)
    assert listed.read(b'{"id":3,"args":["a/B","c/D"],"op":"unsub"}') == Ask(
        ("a:B", "c:D"), subscribing=False, id="3"
    )


@pytest.mark.parametrize(
    "message",
    [
        ask(arg("trades", "A"), op="SUB"),
        ask(arg("trades", "A"), op=5),
        ask(arg("trades", "A"), version=3),
        ask(arg("trades", "A"), version="2"),
        ask(arg("trades", "A"), version=True),
        ask(arg("trades", "A"), level=1.25),
        ask(arg("trades", "A"), more=1),
        ask(arg("trades", "A"), id=True),
        ask(arg("trades", "A"), id=[1]),
        ask(arg("trades", "A"), id={"a": 1}),
        ask(),
        ask(arg("trades")),
        ask(arg("trades", "A"), arg("trades")),
        ask(arg("trades", "A", 5)),
        ask(arg("trades", "A", "a")),
        ask(arg("trades", "A", "")),
        ask(arg("trades", "X" * 128)),
        ask(arg("trades", "A\n")),
        ask(arg("trades", "\ud800")),
        ask({**arg("trades", "A"), "of": {"deep": ["x"]}}),
        ask({**arg("trades", "A"), "of": {"deep": "xy"}}),
        ask({**arg("trades", "A"), "of": None}),
        ask({**arg("trades", "A"), "to": 1}),
        ask({"channel": "trades"}),
        ask(args={"0": arg("trades", "A")}),
        {"op": "unsub", "args": ["trades"]},
        {"op": "unsub", "args": ["trades/A", 5]},
        {"op": "unsub", "args": ["trades/" + "A" * 5000]},
        {"op": "sub"},
        {},
        [],
        [ask(arg("trades", "A"))],
        "sub",
        None,
    ],
)
def test_what_cannot_be_said_as_topics_is_not_read(listed: Dialogue, message: Any) -> None:
    assert names(listed, message) is None


@pytest.mark.parametrize(
    "spelled",
    [
        *("7", "-7", "0", "18446744073709551617", "1.50", "1E400", "0.1e-7"),
        *('"7"', '""', '"a\\"b"', '"\\u00e9"', '"\\ud800"', "null"),
    ],
)
def test_ids_come_back_as_they_were_spelled(listed: Dialogue, spelled: str) -> None:
    payload = '{"op":"unsub","args":["a/B"],"id":' + spelled + "}"
    found = listed.read(payload.encode())
    assert found == Ask(("a:B",), subscribing=False, id=spelled)
    (answer,) = listed.answers(found)
    assert answer == '{"done":["a:B"],"id":' + spelled + "}"


def test_without_an_id_there_is_none_in_the_answer(listed: Dialogue) -> None:
    found = listed.read(b'{"op":"unsub","args":["a/B"]}')
    assert found == Ask(("a:B",), subscribing=False, id=None)
    assert listed.answers(found) == ['{"done":["a:B"]}']
    assert listed.answers(found, {"a:B": "no"}) == ['{"error":"sorry: no","id":null}']


def test_a_reason_cannot_break_the_answer(listed: Dialogue) -> None:
    reason = 'no","op":"{id}\\\n\u00e9'
    (answer,) = listed.answers(Ask(("a:B",), subscribing=True, id="1"), {"a:B": reason})
    assert json.loads(answer) == {"error": f"sorry: {reason}", "id": 1}


def test_large_requests_are_not_read(listed: Dialogue) -> None:
    symbols = [f"S{number}" for number in range(4000)]
    payload = json.dumps(ask(arg("trades", *symbols))).encode()
    found = listed.read(payload)
    assert isinstance(found, Ask)
    assert len(found.names) == 4000
    assert listed.read(payload + b" " * (64 << 10)) is None
    many = ask(arg("trades", *["A"] * 5000))
    assert names(listed, many) is None


def test_products_of_lists_are_bounded(load: Load) -> None:
    text = LISTED.replace(
        'args = [{ channel = "{channel}", symbols = ["{symbol}"], of = { deep = ["x", "y"] } }]',
        'channels = ["{channel}"]\nsymbols = ["{symbol}"]',
    )
    dialogue = load(text)
    message: dict[str, Any] = {"op": "sub", "version": 2, "level": 1.5}
    assert names(dialogue, {**message, "channels": ["a", "b"], "symbols": ["C", "D"]}) == (
        *("a:C", "a:D", "b:C", "b:D"),
    )
    many = {"channels": ["a"] * 4000, "symbols": ["A"] * 4000}
    assert names(dialogue, {**message, **many}) is None


def test_a_part_that_is_there_twice_must_be_the_same(load: Load) -> None:
    text = LISTED.replace('op = "sub"', 'op = "sub"\nkind = "{channel}"')
    text = text.replace('op = "unsub"', 'op = "unsub"\nall = "{name}-{name}"')
    dialogue = load(text)
    assert names(dialogue, ask(arg("trades", "A"), kind="trades")) == ("trades:A",)
    assert names(dialogue, ask(arg("trades", "A"), kind="book")) is None
    assert names(dialogue, ask(arg("trades", "A"), arg("book", "B"), kind="book")) is None
    unsubscribe = {"op": "unsub", "args": ["trades/A"]}
    assert names(dialogue, {**unsubscribe, "all": "trades:A-trades:A"}) == ("trades:A",)
    assert names(dialogue, {**unsubscribe, "all": "trades:A-trades:B"}) is None


def test_pings_and_logins_come_before_requests(load: Load) -> None:
    dialogue = load(
        LISTED
        + """
        [[clients.pings]]
        when = "hello {"
        send = "{"
        [[clients.pings]]
        when = { "/op" = ["ping", "time*"], "/on" = true }
        send = { a = ["{/list/1}", "{/list}"], b = "{/o~1p}", c = "{/on}", d = { e = "{/x}" } }
        [clients.login]
        when = { "/op" = "login" }
        send = "welcome"
        """
    )
    assert dialogue.read(b"hello {") == Ping("{")
    assert dialogue.read(b"hello { ") is None
    payload = b'{"op":"time?","on":true,"list":[1,2.50],"o/p":null}'
    assert dialogue.read(payload) == Ping('{"a":[2.50],"b":null,"c":true,"d":{}}')
    assert dialogue.read(b'{"op":"ping","on":false}') is None
    assert dialogue.read(b' {"op":"login","secret":"s"}') == Login("welcome")


# ---- whatever is sent --------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)

DIALOGUES = {name: Dialogue(load_venue(name)) for name in list_venues()}

REQUESTS: list[dict[str, Any]] = [
    {"method": "SUBSCRIBE", "params": ["btcusdt@trade", "!a@b"], "id": 1},
    {"method": "subscribe", "params": {"channel": "book", "symbol": ["A/B"], "depth": 10}},
    {"op": "subscribe", "id": "1", "args": [{"channel": "trades", "instId": "A-B"}]},
    {"op": "unsubscribe", "args": ["tickers.BTCUSDT"]},
    {"event": "bts:subscribe", "data": {"channel": "live_trades_btcusd"}},
    {"type": "subscribe", "product_ids": ["A-B"], "channels": ["ticker", {"name": "status"}]},
    {"jsonrpc": "2.0", "id": 1, "method": "public/subscribe", "params": {"channels": ["a.b"]}},
    {"event": "subscribe", "channel": "book", "symbol": "tBTCUSD"},
    {"op": "ping", "req_id": 1},
    {"op": "login", "args": []},
]


def changed(value: Any, choose: Callable[[Any], Any]) -> Any:
    """A value with something else in some place."""
    if isinstance(value, dict) and value:
        key = choose(st.sampled_from([*value, None]))
        if key is not None:
            return {**value, key: changed(value[key], choose)}
    elif isinstance(value, list) and value:
        index = choose(st.integers(0, len(value)))
        if index < len(value):
            return [*value[:index], changed(value[index], choose), *value[index + 1 :]]
    return choose(JSON)


def check(payload: bytes) -> None:
    for dialogue in DIALOGUES.values():
        found = dialogue.read(payload)
        if isinstance(found, Ask):
            assert found.names
            assert len({*found.names}) == len(found.names)
            for refused in ({}, {found.names[0]: "no"}):
                texts = dialogue.answers(found, refused, found.names)
                assert texts
                assert all(isinstance(json.loads(text), dict) for text in texts)
        elif found is not None:
            assert found.answer == "pong" or isinstance(json.loads(found.answer), dict)


@given(JSON)
def test_any_json_is_understood_or_not(value: Any) -> None:
    check(json.dumps(value).encode())


@given(st.data())
def test_any_change_of_a_request_is_understood_or_not(data: st.DataObject) -> None:
    request = data.draw(st.sampled_from(REQUESTS))
    check(json.dumps(changed(request, data.draw)).encode())


@given(st.binary())
def test_any_bytes_are_understood_or_not(payload: bytes) -> None:
    check(payload)
    check(b"{" + payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"{" * 50_000,
        b'{"a":' * 10_000,
        b'{"op":"subscribe","args":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"type":"subscribe","channels":["a"],"product_ids":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"op":"ping","req_id":NaN}',
        b'{"id":' + b"9" * 60_000 + b"}",
        b'{"type":"subscribe","channels":["' + b"a" * 60_000 + b'"],"product_ids":["A"]}',
    ],
    ids=range(7),
)
def test_hostile_messages(payload: bytes) -> None:
    check(payload)


# ---- the template that explains the keys -------------------------------------------------------


def test_the_template_does_what_it_says() -> None:
    folder = Path(venue_file.__file__).parent / "venues"
    dialogue = Dialogue(load_venue(str(folder / "template.toml")))
    assert dialogue.answering is Answering.EACH
    message: dict[str, Any] = {"op": "subscribe", "args": [{"channel": "trades", "symbols": ["A"]}]}
    assert names(dialogue, message) == ("trades:A",)
    assert names(dialogue, {**message, "snapshot": True}) == ("trades:A",)
    message["args"][0]["group"] = "none"
    assert names(dialogue, message) == ("trades:A",)
    message["args"][0]["group"] = "some"
    assert names(dialogue, message) is None
    book = {"op": "subscribe", "depth": 50, "args": [{"channel": "book", "symbols": ["A"]}]}
    assert names(dialogue, {**book, "key": "secret"}) == ("book-50:A",)
    assert names(dialogue, {"op": "add", "topic": "trades:A"}) == ("trades:A",)
    found = dialogue.read(b'{"op":"remove","topic":"trades:A","id":7}')
    assert found is None  # `also` has no id there
    both = Ask(("book-50:A", "trades:A"), subscribing=True, id="7")
    assert dialogue.answers(both, {"trades:A": "no"}) == [
        '{"event":"subscribed","id":7,"channel":"book","depth":50,"symbol":"A"}',
        '{"event":"error","id":7,"code":7,"message":"no"}',
    ]
    assert dialogue.read(b"ping") == Ping("pong")
    assert dialogue.read(b'{"op":"time","id":"x"}') == Ping('{"op":"time","id":"x"}')
    assert dialogue.read(b'{"op":"login"}') == Login('{"op":"login","ok":true}')
    assert dialogue.topics_of_url("/ws/trades:A,book:B,x", []) == ("trades:A", "book:B")
    assert dialogue.topics_of_url("/stream", [("topics", "trades:A")]) == ("trades:A",)


# ---- keys that can't be used -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[clients.refused]", "[clients.refusal]", "clients.refused: is missing: give a table, as"),
        ("{name}", "{nam}", "clients.subscribed: there is no {nam} here; known are {channel}"),
        ("{name}", "{reason}", "clients.subscribed: there is no {reason} here"),
        ("{name}", "{/op}", "clients.subscribed: there is no {/pointer} here"),
        ("{name}", "{null}!", "'{null}!': {null} is a value of its own"),
        ("{name}", "{id}!", "'{id}!': {id} is a value of its own"),
        ("{name}", "{name:null}", "only {id:null} has :null"),
        ("{name}", "{id:number}", "only a part of a name is made a :number"),
        ("{name}", "{name:text}", "after the colon goes :number or :null"),
        ('done = ["{name}"]', "done = 1979-05-27", "date is nothing that JSON can hold"),
        (
            "[clients.subscribed]",
            "[clients.x]\n[clients.subscribed]",
            "clients: there is no key 'x'",
        ),
        ("[topics]", "[topics]\nonly_learned = true", "clients.subscribed: the messages of this"),
        ('"{channel}/{symbol}"', '"{raw}"', "clients.subscribed: the messages of this exchange"),
        ("$", "[[clients.pings]]\nsend = 'x'", "clients.pings[1].when: is missing"),
        ("$", "[[clients.pings]]\nwhen = {}\nsend = 'x'", "clients.pings[1].when: is empty"),
        ("$", "[[clients.pings]]\nwhen = ''\nsend = 'x'", "clients.pings[1].when: is empty"),
        ("$", "[[clients.pings]]\nwhen = {a = 1}\nsend = 'x'", "'a' is no JSON pointer"),
        ("$", "[[clients.pings]]\nwhen = {'/a' = [[]]}\nsend = 'x'", "must hold texts or numbers"),
        ("$", "[[clients.pings]]\nwhen = 'x'", "clients.pings[1].send: is missing"),
        ("$", "[[clients.pings]]\nwhen = 'x'\nsend = {}", "clients.pings[1].send: is empty"),
        ("$", "[[clients.pings]]\nwhen = 'x'\nsend = {a = '{id}'}", "there is no {id} here"),
        ("$", "[[clients.pings]]\nwhen = 'x'\nsend = {a = '{/~x}'}", "'/~x' is no JSON pointer"),
        ("$", "[clients.login]\nwhen = 'x'\nsend = 'y'\nalso = 1", "there is no key 'also'"),
        ("$", "[clients.urls]\nforms = ['/{names}']", "clients.urls.separator: is missing"),
        ("$", "[clients.urls]\nseparator = ','", "clients.urls.forms: is missing"),
        *(
            (
                "$",
                f"[clients.urls]\nforms = ['{form}']\nseparator = ','",
                "write it as /path/{names}",
            )
            for form in ("/ws", "ws/{names}", "/{names}/x", "/x?{names}", "/x?={names}")
        ),
        ("$", "[clients.urls]\nforms = ['/x?a=b&c={names}']\nseparator = ','", "write it as"),
        ("[names.subscribe]", "optional = { a = 1 }\n[names.subscribe]", "'a' is no JSON pointer"),
        ("[names.subscribe]", "also = [{}]\n[names.subscribe]", "names[1].also[1].subscribe: is"),
        (
            "[names.subscribe]",
            "also = [{ subscribe = { a = '{symbol}' } }]\n[names.subscribe]",
            "names[1].also[1].subscribe: has no {channel}",
        ),
    ],
)
def test_keys_that_are_refused(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = VENUE + LISTED
    (tmp_path / "mine.toml").write_text(
        text + new if old == "$" else text.replace(old, new, 1), "utf-8"
    )
    with pytest.raises(VenueError) as caught:
        load_venue(str(tmp_path / "mine.toml"))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message

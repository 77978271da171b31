"""Venue files: what they can say, and what is refused with which words."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ringcast.broker.topics import venue_file
from ringcast.broker.topics.rules import Outcome
from ringcast.broker.topics.venue import Answer, Confirmation, Venue
from ringcast.broker.topics.venue_file import VenueError, list_venues, load_venue
from tests.unit.broker.topics import oracle

FOLDER = Path(venue_file.__file__).parent / "venues"

SMALL = """
url = "wss://example.com/"
confirmation = "id"
[subscribe]
do = "sub"
names = ["{name}"]
id = "{id:number}"
[unsubscribe]
do = "unsub"
names = ["{name}"]
id = "{id:number}"
[[names]]
form = "{channel}:{symbol}"
example = "a:b"
[topics]
patterns = ["{/topic}"]
control = ["{/id}"]
[[answers]]
when = { "/id" = "*" }
outcome = "done"
id = "/id"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def load(file: Path, text: str) -> Venue:
    file.write_text(text, "utf-8")
    return load_venue(str(file))


def refused(file: Path, text: str) -> str:
    with pytest.raises(VenueError) as caught:
        load(file, text)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


def replaced(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new, 1)


# ---- files ------------------------------------------------------------------------------------


def test_a_file_by_its_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venue = load(file, SMALL)
    assert (venue.name, venue.url) == ("mine", "wss://example.com/")
    monkeypatch.chdir(file.parent)
    assert load_venue("mine.toml").name == load_venue("./mine.toml").name == "mine"
    other = file.parent / "other"
    other.write_text(SMALL, "utf-8")
    assert load_venue("./other").name == "other"


def test_what_is_not_given_has_a_default(file: Path) -> None:
    venue = load(file, SMALL)
    assert (venue.about, venue.documentation, venue.key, venue.initial) == ("", "", (), ())
    assert (venue.topics_per_request, venue.topics_per_connection) == (None, None)
    assert (venue.messages_per_second, venue.burst, venue.counts_everything) == (None, 1, False)
    assert (venue.answer_timeout, venue.heartbeat, venue.only_learned) == (10.0, None, False)
    assert venue.snapshot("a:b").kind == "none"
    assert venue.topic_of("whatever") == "whatever"


@pytest.mark.parametrize("name", ["", "nothing", "template", "OKX", "..", "okx\n"])
def test_a_name_that_is_no_venue(name: str) -> None:
    with pytest.raises(VenueError, match="there is no venue") as caught:
        load_venue(name)
    assert "okx" in str(caught.value)


def test_files_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(VenueError, match=r"cannot read the venue file .*mine\.toml: No such file"):
        load_venue(str(file))
    with pytest.raises(VenueError, match="cannot read the venue file"):
        load_venue(f"{file.parent}/")
    file.write_bytes(b"about = '\xff'")
    with pytest.raises(VenueError, match="is not UTF-8 at byte 9"):
        load_venue(str(file))
    file.write_text("about = ", "utf-8")
    with pytest.raises(VenueError, match=r"is not valid TOML: .*at end of document"):
        load_venue(str(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour = 1\n" + SMALL, "there is no key 'colour': known are "),
        ("urls = 'wss://h'\n" + SMALL, "there is no key 'urls': did you mean url?"),
        (replaced('url = "wss', 'url = "https'), "url: is 'https://example.com/'; it must start"),
        (replaced('"wss://example.com/"', "5"), "url: must be a text, not a whole number"),
        (replaced('"wss://example.com/"', '""'), "url: is empty"),
        (replaced('confirmation = "id"', ""), "confirmation: is missing: give one of id, topic"),
        (replaced('"id"', '"ids"'), "confirmation: is 'ids': did you mean id?"),
        (replaced("[subscribe]", "[subscribed]"), "names[1].subscribe: is missing"),
        (replaced("{name}", "{nam}"), "names[1].subscribe: there is no {nam} here; known are"),
        (replaced("{name}", "{name"), "names[1].subscribe: '{name' has a brace that is not closed"),
        (replaced("{name}", "{n-1}"), "{n-1} in '{n-1}' is no name of a part"),
        (replaced("{id:number}", "{id:int}"), "after the colon goes :number"),
        (replaced("{id:number}", "x{id:number}"), "only a placeholder alone can be a number"),
        (replaced("{name}", "{raw}"), "names[1].subscribe: there is no {raw} here"),
        (
            replaced("{name}", "{channel}"),
            "names[1].subscribe: has no {symbol}: topics",
        ),
        (replaced('"sub"', "1979-05-27"), "names[1].subscribe: date is nothing that JSON can hold"),
        (replaced("[[names]]", "[[name]]"), "names: is missing: give a list of tables, [[names]]"),
        (replaced('form = "{channel}:{symbol}"', ""), "names[1].form: is missing: give a text"),
        (replaced("{channel}:{symbol}", "{channel}{symbol}"), "names[1].form: '{channel}{symbol}'"),
        (replaced("{channel}:{symbol}", "{a}:{a}"), "names[1].form: '{a}:{a}' has a part twice"),
        (replaced("{channel}:{symbol}", "{name}"), "names[1].form: '{name}': {name} has a meaning"),
        (replaced("{symbol}", "{symbol:title}"), "goes :number or :lower or :upper"),
        (replaced('"a:b"', '"a"'), "names[1].example: 'a' is no topic of mine: write it as"),
        (replaced('example = "a:b"', ""), "names[1].example: is missing"),
        (
            replaced('"a:b"', '"a:b"\nonly = {channel = "b"}'),
            "names[1].example: 'a:b' is no topic",
        ),
        (
            replaced('"a:b"', '"a:b"\nonly = {x = "b"}'),
            "names[1].form: '{channel}:{symbol}' has",
        ),
        (replaced("[topics]", "[topic]"), "topics: is missing: give a table"),
        (replaced('["{/topic}"]', "[]"), "topics.patterns: is empty"),
        (replaced('["{/topic}"]', "[1]"), "topics.patterns: must hold texts, not a whole number"),
        (replaced("{/topic}", "topic"), "topics.patterns: 'topic' has no pointer"),
        (replaced("{/topic}", "{topic}"), "topics.patterns: 'topic' is no JSON pointer"),
        (replaced("{/topic}", "{/topic/*}"), "topics.patterns: '{/topic/*}': a topic's pointer"),
        (replaced("{/id}", "id=5"), "topics.control: 'id=5': write a pointer in braces"),
        (
            replaced("control", "controls"),
            "topics: there is no key 'controls': did you mean",
        ),
        (replaced("[[answers]]", "[answers]"), "answers: must be a list of tables, [[answers]]"),
        (replaced('when = { "/id" = "*" }', ""), "answers[1].when: is missing"),
        (replaced('{ "/id" = "*" }', "{}"), "answers[1].when: is empty: it would match every"),
        (replaced('"/id" = "*"', '"id" = "*"'), "answers[1].when.id: 'id' is no JSON pointer"),
        (replaced('"/id" = "*"', '"/id" = {}'), "answers[1].when./id: must be a text, number"),
        (
            replaced('"/id" = "*"', '"/id" = [[]]'),
            "answers[1].when./id: must hold texts",
        ),
        (replaced('"done"', '"finished"'), "answers[1].outcome: is 'finished': known are"),
        (replaced('"done"', '"refuse"'), "answers[1].outcome: is 'refuse': did you mean refused?"),
        (SMALL + 'reason = "no"', "answers[1].reason: 'no' has no pointer"),
        (SMALL + 'parts = {size = "/a"}', "answers[1].parts.size: is no part of a name; known are"),
        (SMALL + 'parts = {symbol = "a"}', "answers[1].parts.symbol: 'a' is no JSON pointer"),
        (SMALL + 'reasons = "{/a}"', "answers[1]: there is no key 'reasons': did you mean reason?"),
        (SMALL + "[limits]\nburst = 0", "limits.burst: is 0; give a number from 1"),
        (
            SMALL + "[limits]\nburst = true",
            "limits.burst: must be a whole number, not true",
        ),
        (SMALL + "[limits]\nmessages_per_second = -1", "limits.messages_per_second: is -1; give"),
        (SMALL + "[limits]\nmessages_per_second = inf", "limits.messages_per_second: is inf"),
        (SMALL + "[limits]\nanswer_timeout = nan", "limits.answer_timeout: is nan"),
        (SMALL + '[limits]\ncounts = "all"', "limits.counts: is 'all'"),
        (
            SMALL + "[limits]\ntopics = 1",
            "limits: there is no key 'topics': did you mean topics",
        ),
        (SMALL + "[heartbeat]\nevery = 1", "heartbeat.send: is missing"),
        (SMALL + '[heartbeat]\nsend = "a"', "heartbeat.every: is missing: give a number"),
        (SMALL + '[heartbeat]\nsend = {a = "{id}"}\nevery = 1', "heartbeat.send: there is no {id}"),
        ("initial = [5]\n" + SMALL, "initial: must be a text, or a table that becomes JSON"),
        ('initial = "a"\n' + SMALL, "initial: must be a list, not a text"),
        (SMALL + "[[replies]]\nsend = 'a'", "replies[1].when: is missing"),
        (SMALL + "[[replies]]\nwhen = {'/a' = 1}", "replies[1].send: is missing"),
        (SMALL + "[rename]\n'a*b*' = 'c'", "rename.a*b*: 'a*b*': one * on the left"),
        (SMALL + "[rename]\n'a' = 'c*'", "rename.a: 'c*': one * on the left"),
        (SMALL + "[[snapshots]]\nkind = 'none'", "snapshots[1].names: is missing"),
        (SMALL + "[[snapshots]]\nnames = '*'\nkind = 'some'", "snapshots[1].kind: is 'some'"),
        (
            SMALL + "[[snapshots]]\nnames = '*'\nkind = 'resubscribe'",
            "snapshots[1].every: is missing",
        ),
        (
            SMALL + "[[snapshots]]\nnames = '*'\nkind = 'request'",
            "snapshots[1].request: is",
        ),
        (
            SMALL + "[[snapshots]]\nnames = '*'\nkind = 'none'\nrequest = {a = 'b'}",
            "snapshots[1].request: is for kind request",
        ),
    ],
)
def test_files_that_are_refused(file: Path, text: str, expected: str) -> None:
    assert expected in refused(file, text)


# ---- the template -------------------------------------------------------------------------------


FREE = {
    *("subscribe", "unsubscribe", "when", "only", "rename", "send", "parts", "request", "initial"),
    *("subscribed", "unsubscribed", "refused", "optional"),
}
"""Keys whose values have keys of their own."""


def keys_in(value: Any) -> set[str]:
    """Every key of TOML tables, at any depth, without those that may be anything."""
    if isinstance(value, dict):
        return {*value}.union(*(keys_in(part) for key, part in value.items() if key not in FREE))
    return set().union(*map(keys_in, value)) if isinstance(value, list) else set()


def test_the_template_has_and_explains_every_key_that_files_use() -> None:
    text = (FOLDER / "template.toml").read_text("utf-8")
    template = keys_in(tomllib.loads(text))
    for name in list_venues():
        table = tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))
        assert keys_in(table) <= template, name
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            above = next(above for above in reversed(lines[:number]) if above)
            assert above.startswith(("#", "[", '"')) or " = " in above, line


def test_the_template_does_what_it_says() -> None:
    venue = load_venue(str(FOLDER / "template.toml"))
    assert venue.name == "template"
    assert venue.initial == ('{"op":"hello","version":1}',)
    names = ["book-50:BTC-USD", "trades:BTC-USD", "trades:ETH-USD", "book:BTC-USD"]
    first, second = venue.requests(names, subscribing=True, ids=itertools.count(7))
    assert json.loads(first.text) == {
        "op": "subscribe",
        "id": 7,
        "depth": 50,
        "args": [{"channel": "book", "symbols": ["BTC-USD"]}],
    }
    assert json.loads(second.text)["args"] == [
        {"channel": "trades", "symbols": ["BTC-USD", "ETH-USD"]},
        {"channel": "book", "symbols": ["BTC-USD"]},
    ]
    said = b'{"event":"subscribed","id":8,"channel":"trades","symbol":"ETH-USD","number":4}'
    assert venue.answers(said) == [Answer(Outcome.SUBSCRIBED, "8", ("trades:ETH-USD",))]
    assert venue.topic_of("4") == "trades:ETH-USD"
    refusal = b'{"event":"error","id":8,"code":3,"message":"no"}'
    assert venue.answers(refusal) == [Answer(Outcome.REFUSED, "8", (), "3: no")]
    assert venue.replies(b'{"op":"ping"}') == ['{"op":"pong"}']
    assert venue.topic_of("book_snapshot:BTC-USD") == "book:BTC-USD"
    assert oracle.is_control(venue.control, b'{"op":"ping"}')
    snapshot = venue.snapshot("book-50:BTC-USD")
    assert (snapshot.kind, snapshot.every) == ("request", 1.0)
    (request,) = venue.snapshot_request(names, itertools.count(9))
    assert (request.names, request.id) == (("book-50:BTC-USD",), "9")
    assert json.loads(request.text) == {"op": "snapshot", "id": 9, "channels": [names[0]]}
    assert venue.answers(b'{"event":"subscribed","id":9}') == []


def test_a_venue_that_answers_in_order(file: Path) -> None:
    text = replaced('confirmation = "id"', 'confirmation = "order"')
    text = text.replace('id = "{id:number}"\n', "").replace('id = "/id"', "")
    venue = load(file, text.replace('"/id" = "*"', '"/ok" = [true, 1]'))
    assert venue.confirmation is Confirmation.ORDER
    (request,) = venue.requests(["a:b", "c:d"], subscribing=True, ids=itertools.count())
    assert (request.text, request.id) == ('{"do":"sub","names":["a:b","c:d"]}', None)
    for said in (b'{"ok":true}', b'{"ok":1}'):
        assert venue.answers(said) == [Answer(Outcome.SUBSCRIBED)]
    assert venue.answers(b'{"ok":false}') == []


def test_braces_and_texts_with_parts(file: Path) -> None:
    text = replaced('do = "sub"', 'do = "{{{channel}/{symbol}}"')
    venue = load(file, text)
    first, second = venue.requests(["a:b", "c:d"], subscribing=True, ids=itertools.count())
    assert json.loads(first.text)["do"] == "{a/b}"
    assert json.loads(second.text)["do"] == "{c/d}"


def test_files_hold_no_secrets_and_are_in_the_package() -> None:
    for path in FOLDER.glob("*.toml"):
        text = path.read_text("utf-8").lower()
        assert not any(word in text for word in ("password", "api_key", "apikey", "token"))
    root = Path(__file__).parents[4]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert "ringcast.broker.topics" in project["packages"]
    assert "venues/*.toml" in project["package-data"]["ringcast.broker.topics"]


# ---- requests of workers -----------------------------------------------------------------------


def test_where_requests_have_their_id(file: Path) -> None:
    venue = load(file, SMALL)
    assert (venue.request_id, venue.request_id_is_text) == (None, False)
    venue = load(file, SMALL + '\n[requests]\nid = "/a/id"\ntext = true\n')
    assert (venue.request_id, venue.request_id_is_text) == ("/a/id", True)
    assert "requests.id: 'id' is no JSON pointer" in refused(
        file, SMALL + '\n[requests]\nid = "id"\n'
    )
    assert "requests: there is no key 'ids'" in refused(file, SMALL + '\n[requests]\nids = "/id"\n')


@pytest.mark.parametrize("name", list_venues())
def test_workers_requests_have_the_id_where_the_managers_have_it(name: str) -> None:
    venue = load_venue(name)
    if venue.request_id is None:
        return
    example = venue.namings[0].example
    (request,) = venue.requests([example], subscribing=True, ids=itertools.count(7))
    value = json.loads(request.text)[venue.request_id.removeprefix("/")]
    assert value == ("7" if venue.request_id_is_text else 7)

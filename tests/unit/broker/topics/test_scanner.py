"""The scanner against an oracle in Python, by hand, at random and over captures."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringcast.broker.exchange import captures
from ringcast.broker.topics import Found, FunctionScanner, Scanner, What
from ringcast.shm import hash_key

from .oracle import expected

CAPTURES: Final = Path(__file__).parents[5] / "shared" / "captures"


def scan(payload: bytes, *topic: str, **kinds: Any) -> Found:
    return Scanner(topic, names_max=1, **kinds).scan(payload)


def name_of(payload: bytes, *topic: str) -> bytes | None:
    return scan(payload, *topic).name


# -- values


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (rb'{"a":"x"}', b"x"),
        (rb' { "a" : "x" } ', b"x"),
        (b'\t{\r\n"a"\t:\n12\r}', b"12"),
        (rb'{"a":0}', b"0"),
        (rb'{"a":-0.5e+10}', b"-0.5e+10"),
        (rb'{"a":1E2,"b":1}', b"1E2"),
        (rb'{"a":"\"\\\/\b\f\n\r\t"}', b'"\\/\b\f\n\r\t'),
        (rb'{"a":"\u00e9\u20AC\ud83d\uDE00"}', "é€😀".encode()),
        ('{"a":"é€😀"}'.encode(), "é€😀".encode()),
        (rb'{"\u0061":"x"}', b"x"),
        (rb'{"b":"\\","\u0061":"x"}', b"x"),
        (rb'{"b":"\"a\":1,","a":"x"}', b"x"),
        (rb'{"b":{"a":"no"},"a":"x"}', b"x"),
        (rb'{"b":[{"a":"no"}],"a":"x"}', b"x"),
        (rb'{"a":"x","a":"second"}', b"x"),
        (rb'{"a":"x"', b"x"),
        (rb'{"a":"x"} and more', b"x"),
        (b'{"a":"' + b"y" * 127 + b'"}', b"y" * 127),
        (b'{"a":"\\u0000"}', b"\0"),
    ],
)
def test_strings_and_numbers(payload: bytes, name: bytes) -> None:
    assert scan(payload, "{/a}") == Found(What.NEW, name, 0, 0)


@pytest.mark.parametrize(
    "payload",
    [
        *(b'{"a":%b}' % value for value in (b"true", b"false", b"null", b"{}", b"[]", b'["x"]')),
        *(
            b'{"a":%b}' % value
            for value in (b"01", b"+1", b".5", b"1.", b"1e", b"-", b"0x1", b"NaN")
        ),
        rb'{"a":null,"a":"second"}',
        rb'{"b":"x"}',
        rb'{"a":"x',
        rb'{"a" "x"}',
        rb'{"b":{"a":"x"}}',
        rb'["a","x"]',
        rb'"a"',
        b"12",
        b"",
        b"pong",
        b"{}",
        b"[]",
    ],
)
def test_what_is_no_value(payload: bytes) -> None:
    assert scan(payload, "{/a}") == Found(What.UNNAMED, None, 0, 0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"y" * 128,
        rb"\ud800",
        rb"\udc00\ud800",
        rb"\ud800\u0041",
        rb"\ud800x",
        rb"\u12",
        rb"\x",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
    ],
)
def test_names_that_cannot_be_used(value: bytes) -> None:
    scanner = Scanner(["{/a}", "{/b}"], names_max=1)
    payload = b'{"b":"other","a":"%b"}' % value
    assert scanner.scan(payload) == Found(What.UNUSABLE, None, 0, 0)
    assert (scanner.unusable, scanner.unnamed) == (1, 0)


def test_the_limit_counts_text_and_values_and_bytes() -> None:
    payload = b'{"a":"%b"}' % ("é".encode() * 60)
    assert name_of(payload, "1234567{/a}") == b"1234567" + "é".encode() * 60
    assert scan(payload, "12345678{/a}").what == What.UNUSABLE
    assert scan(payload, "{/a}12345678").what == What.UNUSABLE


# -- pointers and patterns


@pytest.mark.parametrize(
    ("pattern", "payload", "name"),
    [
        ("{/a/b/c}", rb'{"a":{"x":1,"b":{"c":"v"}}}', b"v"),
        ("{/a/1}", rb'{"a":["u","v"]}', b"v"),
        ("{/a/1}", rb'{"a":{"1":"v"}}', b"v"),
        ("{/a/01}", rb'{"a":["u","v"]}', None),
        ("{/a/01}", rb'{"a":{"01":"v"}}', b"v"),
        ("{/a/-}", rb'{"a":["u","v"]}', None),
        ("{/a/2}", rb'{"a":["u","v"]}', None),
        ("{/1/0/s}", rb'[[{"s":"u"}],[{"s":"v"}]]', b"v"),
        ("{/0}", rb"[7]", b"7"),
        ("{/0}", rb"[]", None),
        ("{/}", rb'{"":"v"}', b"v"),
        ("{//}", rb'{"":{"":"v"}}', b"v"),
        ("{/a~1b}", rb'{"a/b":"v"}', b"v"),
        ("{/a~0b}", rb'{"a~b":"v"}', b"v"),
        ("{/~01}", rb'{"~1":"v"}', b"v"),
        ('{/"}', rb'{"\"":"v"}', b"v"),
        ("{/\\}", rb'{"\\":"v"}', b"v"),
        ("{/\\\\}", rb'{"\\":"no","\\\\":"v"}', b"v"),
        ("{/é}", '{"é":"v"}'.encode(), b"v"),
        ("{/a key that is long}", rb'{"a key that was long":1,"a key that is long":"v"}', b"v"),
        ("{/12345678}", rb'{"1234567":1,"123456789":1,"12345678":"v"}', b"v"),
        ("{{{/a}}}", rb'{"a":"v"}', b"{v}"),
        ("{/a}}", rb'{"a":"v"}', b"v}"),
        ("}{/a}", rb'{"a":"v"}', b"}v"),
        ("{/a}={/b}", rb'{"a":"v","b":2}', b"v=2"),
        ("{/a}{/a}", rb'{"a":"v"}', b"vv"),
        ("é{/a}", rb'{"a":"v"}', "év".encode()),
        ("{/a/b}", rb'{"a":"x","a":{"b":"v"}}', None),
        ("{/a/b}", rb'{"a":{"b":"v"},"a":"x"}', b"v"),
    ],
)
def test_pointers(pattern: str, payload: bytes, name: bytes | None) -> None:
    assert name_of(payload, pattern) == name


def test_the_first_pattern_wins_wherever_its_values_stand() -> None:
    patterns = ("{/a}:{/b}", "{/c/d}", "{/e}")
    assert name_of(rb'{"e":"3","c":{"d":"2"},"b":"y","a":"x"}', *patterns) == b"x:y"
    assert name_of(rb'{"e":"3","c":{"d":"2"},"b":"y"}', *patterns) == b"2"
    assert name_of(rb'{"e":"3","c":{"f":"2"},"b":"y"}', *patterns) == b"3"
    assert name_of(rb'{"e":"3","a":1,"b":null,"c":4}', *patterns) == b"3"


def test_a_pointer_may_be_the_beginning_of_another() -> None:
    patterns = ("{/a/b}", "{/a}")
    assert name_of(rb'{"a":"x"}', *patterns) == b"x"
    assert name_of(rb'{"a":{"b":"x"}}', *patterns) == b"x"
    assert name_of(rb'{"a":{"c":"x"}}', *patterns) is None


def test_what_follows_the_last_value_needed_is_not_looked_at() -> None:
    assert name_of(b'{"a":"x",]]]]', "{/a}", "{/b}") == b"x"
    assert name_of(b'{"a":"x",]]]]', "{/b}", "{/a}") is None
    assert name_of(b'{"o":{"a":"x","z":[1}', "{/o/a}") == b"x"


def test_long_nesting_is_passed_over() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert name_of(b'{"d":' + deep + b',"a":"x"}', "{/a}") == b"x"
    assert name_of(b'{"d":' + deep[:-1] + b',"a":"x"}', "{/a}") is None
    pointer = "/0" * 64
    assert name_of(b"[" * 64 + b"5" + b"]" * 64, f"{{{pointer}}}") == b"5"


@pytest.mark.parametrize(
    ("pattern", "character", "what"),
    [
        ("{/a", 1, "not closed"),
        ("x{/a{/b}", 2, "not closed"),
        ("é{/a", 2, "not closed"),
        ("{a}", 2, "slash"),
        ("{}", 2, "slash"),
        ("{/a~2}", 4, "~0"),
        ("{/a~}", 4, "~0"),
        ("", 1, "no pointer"),
        ("trades", 1, "no pointer"),
        ("{{/a}}", 1, "no pointer"),
        ("{/a}" + "x" * 128, 5, "127 bytes"),
        ("{" + "/a" * 65 + "}", 130, "64 tokens"),
    ],
)
def test_bad_patterns(pattern: str, character: int, what: str) -> None:
    for kind in ("key", "control"):
        with pytest.raises(ValueError, match=f"^{kind} pattern '.*', character {character}: "):
            scan(b"{}", "{/a}", **{kind: [pattern]})
    with pytest.raises(ValueError, match=f"^topic pattern .*, character {character}: .*{what}"):
        scan(b"{}", "{/fine}", pattern)


def test_too_much_of_everything() -> None:
    with pytest.raises(ValueError, match="more than 32 patterns"):
        scan(b"{}", *["{/a}"] * 33)
    with pytest.raises(ValueError, match="more than 64 different"):
        scan(b"{}", *(f"{{/a{n}}}{{/b{n}}}{{/c{n}}}" for n in range(30)))
    with pytest.raises(ValueError, match="too many"):
        scan(b"{}", *(f"{{{f'/{n}' * 60}}}" for n in range(20)))
    with pytest.raises(ValueError, match="too long"):
        scan(b"{}", "{/" + "a" * 20_000 + "}")
    with pytest.raises(TypeError, match="sequence"):
        Scanner("{/a}", names_max=1)
    for names_max in (0, 1 << 21):
        with pytest.raises(ValueError, match="names_max"):
            Scanner(["{/a}"], names_max=names_max)


# -- keys and control messages


def test_keys_have_patterns_of_their_own() -> None:
    scanner = Scanner(["{/a}"], key=["{/k}:{/a}", "{/l}"], names_max=2)
    assert scanner.scan(b'{"a":"x","k":1}') == Found(What.NEW, b"x", 0, hash_key(b"1:x"))
    scanner.name(b"x", 5, 99)
    assert scanner.scan(b'{"a":"x","l":"y"}') == Found(What.KNOWN, b"x", 5, hash_key(b"y"))
    assert scanner.scan(b'{"a":"x"}') == Found(What.KNOWN, b"x", 5, 0)
    assert scanner.scan(b'{"l":"y"}') == Found(What.UNNAMED, None, 0, hash_key(b"y"))
    assert scanner.scan(b'{"l":"%b"}' % (b"y" * 1023)).key == hash_key(b"y" * 1023)
    assert scanner.scan(b'{"l":"%b"}' % (b"y" * 1024)).key == 0


@pytest.mark.parametrize(
    ("pattern", "payload", "is_control"),
    [
        ("{/event}", rb'{"a":"x","event":"y"}', True),
        ("{/event}", rb'{"a":"x","event":null}', False),
        ("{/event}=bts:*", rb'{"event":"bts:heartbeat","a":"x"}', True),
        ("{/event}=bts:*", rb'{"event":"data","a":"x"}', False),
        ("{/event}=bts:*", rb'{"event":"\u0062ts:","a":"x"}', True),
        ("{/event}=*a*b*", rb'{"event":"xaxxbabx","a":"x"}', True),
        ("{/event}=*ab", rb'{"event":"ababa","a":"x"}', False),
        ("{/event}=*ab", rb'{"event":"abab","a":"x"}', True),
        ("{/event}=?", rb'{"event":"x","a":"x"}', False),
        ("{/event}=", rb'{"event":"","a":"x"}', True),
        ("{/event}=", rb'{"event":"x","a":"x"}', False),
        ("{/event}=a=b", rb'{"event":"a=b","a":"x"}', True),
        ("{/e}.{/id}=x.1", rb'{"id":1,"e":"x","a":"x"}', True),
        ("{/event}=*", rb'{"event":"\ud800","a":"x"}', False),
    ],
)
def test_control_messages(pattern: str, payload: bytes, is_control: bool) -> None:
    found = scan(payload, "{/a}", control=["{/other}", pattern])
    ordinary = Found(What.NEW, b"x", 0, 0)
    assert found == (Found(What.CONTROL, None, 0, 0) if is_control else ordinary)


# -- against the oracle

KEYS: Final = ["a", "b", "0", "1", "", "stream", "a/b", "~", "é", '"\\', "a long key of some bytes"]
_TOKENS: Final = [key.replace("~", "~0").replace("/", "~1") for key in KEYS]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 10**25),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.text('ab"\\/\n{}[],:é€😀', max_size=70),
    st.sampled_from(["", "x" * 127, "é" * 64, "a", "bts:x"]),
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=5).map(tuple),
    ),
    max_leaves=25,
)
pointers = st.lists(st.sampled_from(_TOKENS), min_size=1, max_size=3).map(
    lambda tokens: "{/" + "/".join(tokens) + "}"
)
patterns = st.lists(st.one_of(pointers, st.sampled_from([":", "{{", "x"])), min_size=1, max_size=4)
pattern_lists = st.lists(
    patterns.filter(lambda parts: any("/" in part for part in parts)).map("".join), max_size=3
)


def spell(document: Any, draw: st.DrawFn) -> str:
    """A document as JSON: with equal keys, spaces, and escapes where none need be."""
    space = draw(st.sampled_from(["", "", " ", "\n\t"]))
    if isinstance(document, str):
        return json.dumps(document, ensure_ascii=draw(st.booleans()))
    if isinstance(document, list):
        return "[" + ",".join(space + spell(item, draw) + space for item in document) + "]"
    if isinstance(document, tuple):
        items = []
        for key, value in document:
            text = json.dumps(key)
            if draw(st.integers(0, 5)) == 0:
                text = '"' + "".join(f"\\u{ord(character):04X}" for character in key) + '"'
            items.append(f"{space}{text}{space}:{space}{spell(value, draw)}{space}")
        return "{" + ",".join(items) + "}"
    return json.dumps(document)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    return spell(draw(documents), draw).encode()


@given(payloads(), pattern_lists, pattern_lists, pattern_lists, st.sampled_from(["", "=*a*", "=x"]))
@settings(max_examples=120, deadline=None)
def test_valid_json_is_understood_as_a_parser_does(
    payload: bytes, topic: list[str], key: list[str], control: list[str], glob: str
) -> None:
    control = [pattern + glob for pattern in control]
    found = Scanner(topic, key=key, control=control, names_max=1).scan(payload)
    assert (found.what, found.name, found.key) == expected(payload, topic, key, control)


@given(payloads(), pattern_lists, st.data())
@settings(max_examples=60, deadline=None)
def test_anything_may_follow_the_values(
    payload: bytes, topic: list[str], data: st.DataObject
) -> None:
    """A payload that is cut short has the same name, or none, or another pattern's."""
    cut = payload[: data.draw(st.integers(0, len(payload)))]
    found = scan(cut, *topic)
    whole = scan(payload, *topic)
    assert found.what in {What.UNNAMED, What.UNUSABLE, whole.what}
    assert found.name is None or found.name == whole.name


# -- captures


CAPTURED: Final = {
    "binance-spot": ["{/stream}"],
    "binance-usdm": ["{/nothing}", "{/data/e}:{/data/s}"],
    "bitfinex": ["{/event}:{/channel}:{/symbol}", "{/event}", "{/0}"],
    "bitmex": ["{/table}:{/data/0/symbol}", "{/table}", "{/success}{/subscribe}", "{/info}"],
    "bitstamp": ["{/channel}:{/event}", "{/event}"],
    "bybit": ["{/topic}", "{/request/args/0}"],
    "coinbase": ["{/type}:{/product_id}", "{/type}"],
    "deribit": ["{/params/channel}", "{/id}"],
    "kraken": ["{/2}/{/3}", "{/3}/{/4}", "{/channelName}:{/pair}", "{/event}"],
    "okx": ["{/arg/channel}:{/arg/instId}", "{/event}"],
    "upbit-binary": ["{/ty}.{/cd}"],
}
KEY: Final = {"binance-spot": ["{/data/s}"], "okx": ["{/data/0/ts}", "{/arg/instId}"]}
CONTROL: Final = {"bitstamp": ["{/event}=bts:*"], "okx": ["{/event}"], "deribit": ["{/result/0}"]}


def received(exchange: str) -> list[bytes]:
    path = CAPTURES / f"{exchange}.tsv.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    return [record.payload for record in captures.read(path) if record.kind != "sent"]


@pytest.mark.parametrize("exchange", CAPTURED)
def test_captures_of_exchanges(exchange: str) -> None:
    topic, key, control = CAPTURED[exchange], KEY.get(exchange, []), CONTROL.get(exchange, [])
    payloads = received(exchange)
    scanner = Scanner(topic, key=key, control=control, names_max=1)
    kinds = set()
    for payload in payloads:
        found = scanner.scan(payload)
        assert (found.what, found.name, found.key) == expected(payload, topic, key, control)
        kinds.add(found.what)
    assert What.NEW in kinds
    assert (What.CONTROL in kinds) == bool(control)


def test_a_capture_that_is_compressed_by_a_function() -> None:
    payloads = received("huobi-gzip")

    def topic(payload: memoryview) -> str | None:
        name: str | None = json.loads(gzip.decompress(payload)).get("ch")
        return name

    scanner = FunctionScanner(topic, names_max=1)
    for payload in payloads:
        name = json.loads(gzip.decompress(payload)).get("ch")
        assert scanner.scan(payload).name == (name.encode() if name else None)
    assert scanner.failed == 0
    assert 0 < scanner.unnamed < len(payloads)

"""What clients ask for in the URL that they connect to."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringcast.broker.gateway.options import ClientOptions, OptionsError, parameters
from ringcast.shm import _group
from ringcast.shm import _topics as topics_module

SECRET = "Gz7-secret-token-Gz7"  # noqa: S105 - nobody's


def refused(target: str) -> str:
    with pytest.raises(OptionsError) as caught:
        ClientOptions.parse(target)
    return str(caught.value)


def test_nothing_asked_for() -> None:
    for target in ("/", "/?", "/?&&"):
        assert ClientOptions.parse(target) == ClientOptions()
    options = ClientOptions()
    assert (options.topics, options.others, options.start) == (None, False, "latest")
    assert (options.policy, options.in_flight, options.balance) == ("lossy", 64, "any")


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("topics=a", {"topics": ("a",)}),
        ("topics=a,b*,a", {"topics": ("a", "b*")}),
        ("topics=a%2Cb%20c", {"topics": ("a", "b c")}),
        ("topics=btc%40trade,%C3%A4", {"topics": ("btc@trade", "\u00e4")}),
        ("topics=a+b", {"topics": ("a+b",)}),
        ("topics=a=b", {"topics": ("a=b",)}),
        ("topics=", {"topics": ()}),
        ("topics", {"topics": ()}),
        ("t%6fpics=a", {"topics": ("a",)}),
        ("topics=" + "a" * 127, {"topics": ("a" * 127,)}),
        ("others=true", {"others": True}),
        ("others=0", {"others": False}),
        ("start=latest", {"start": "latest"}),
        ("start=oldest", {"start": "oldest"}),
        ("start=0", {"start": 0}),
        ("start=18446744073709551615", {"start": 2**64 - 1}),
        ("policy=block", {"policy": "block"}),
        ("policy=lossy", {"policy": "lossy"}),
        ("label=my%20%E2%82%ac", {"label": "my \u20ac"}),
        ("label=" + "a" * 63, {"label": "a" * 63}),
        ("group=g-1", {"group": "g-1"}),
        ("group=g&balance=round-robin", {"group": "g", "balance": "round-robin"}),
        ("balance=key&group=g", {"group": "g", "balance": "key"}),
        ("group=g&in_flight=1", {"group": "g", "in_flight": 1}),
        ("group=g&in_flight=65536", {"group": "g", "in_flight": 65536}),
        ("group=g&max_deliveries=200", {"group": "g", "max_deliveries": 200}),
        ("token=a%2Fb+c==", {"token": "a/b+c=="}),
    ],
)
def test_wishes(query: str, wanted: dict[str, Any]) -> None:
    assert ClientOptions.parse(f"/?{query}") == ClientOptions(**wanted)


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("topics=a,", "topics='a,': a topic between the commas has no name"),
        ("topics=,", "has no name"),
        ("topics=a%00", "no NUL"),
        ("topics=" + "a" * 128, "at most 127 bytes"),
        ("topics=%ff", "topics= is not valid UTF-8"),
        ("topics=%ed%a0%80", "not valid UTF-8"),
        ("topics=50%", "write % itself as %25"),
        ("topics=a&topics=b", "topics= is given twice"),
        ("topics=a&%74opics=b", "topics= is given twice"),
        ("others=yes", "give true or false"),
        ("others", "give true or false"),
        ("start=first", "start='first': give latest, oldest or a sequence"),
        ("start=-1", "give latest, oldest or a sequence"),
        ("start=%D9%A1", "give latest, oldest or a sequence"),
        ("start=18446744073709551616", "give latest, oldest or a sequence"),
        ("start=" + "9" * 10_000, "give latest, oldest or a sequence"),
        ("policy=BLOCK", "give lossy or block"),
        ("label=", "1 to 63 bytes"),
        ("label=a%0Ab", "no control characters"),
        ("label=a%C2%85b", "no control characters"),
        ("label=" + "%C3%A4" * 32, "1 to 63 bytes"),
        ("group=", "use 1 to 20 of a-z"),
        ("group=G", "use 1 to 20 of a-z"),
        ("group=" + "a" * 9000, "use 1 to 20 of a-z"),
        ("group=g&balance=all", "give any, key or round-robin"),
        ("balance=key", "balance= is for members of a work group: give group="),
        ("in_flight=9", "in_flight= is for members"),
        ("max_deliveries=9", "max_deliveries= is for members"),
        ("group=g&policy=block", "policy= is not for members"),
        ("group=g&in_flight=0", "from 1 to 65536"),
        ("group=g&in_flight=65537", "from 1 to 65536"),
        ("group=g&in_flight=1.5", "from 1 to 65536"),
        ("group=g&in_flight=%201", "from 1 to 65536"),
        ("group=g&max_deliveries=201", "from 1 to 200"),
        ("token=", "it is empty"),
        (f"token={SECRET}&token={SECRET}", "token= is given twice"),
    ],
)
def test_wrong_values(query: str, part: str) -> None:
    said = refused(f"/?{query}")
    assert part in said
    assert len(said) < 200
    assert SECRET not in said


@pytest.mark.parametrize(
    "target", ["", "*", "ws", "http://h/", "/ ", "/a\n", "/\u00e4", "/\0", "/#a", "/?a=b#token=c"]
)
def test_what_is_no_target(target: str) -> None:
    assert "starts with /" in refused(target)


@pytest.mark.parametrize(
    ("target", "path", "rest"),
    [
        ("/ws/btcusdt@trade", "/ws/btcusdt@trade", ()),
        ("/ws/a%40b//", "/ws/a%40b//", ()),
        ("/stream?streams=a/b%2Fc", "/stream", (("streams", "a/b/c"),)),
        ("/?a=1&topics=x&a=2&b", "/", (("a", "1"), ("a", "2"), ("b", ""))),
        ("/?Topics=x", "/", (("Topics", "x"),)),
        ("/?x=%zz%ff&%", "/", (("x", "%zz\ufffd"), ("%", ""))),
        ("/a?b?c=d?e", "/a", (("b?c", "d?e"),)),
        ("//h/x", "//h/x", ()),
    ],
)
def test_what_an_exchanges_client_sends_is_kept(
    target: str, path: str, rest: tuple[tuple[str, str], ...]
) -> None:
    options = ClientOptions.parse(target)
    assert (options.path, options.rest) == (path, rest)


def test_parameters_keep_their_bytes() -> None:
    found = [*parameters("/?to%6Ben=%ff+a&&b")]
    assert [(parameter.name, parameter.data) for parameter in found] == [
        ("token", b"\xff+a"),
        ("b", b""),
    ]


def test_nothing_shows_a_token_or_what_is_unknown() -> None:
    options = ClientOptions.parse(f"/ws?token={SECRET}&listenKey=also-{SECRET}&topics=a")
    assert options.token == SECRET
    assert SECRET not in repr(options)
    assert "topics=('a',)" in repr(options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.path = "/"  # type: ignore[misc]


def test_limits_are_the_rings() -> None:
    most = _group.DELIVERIES_MAX
    assert ClientOptions.parse(f"/?group=g&max_deliveries={most}").max_deliveries == most
    refused(f"/?group=g&max_deliveries={most + 1}")
    longest = "a" * topics_module.NAME_MAX
    assert ClientOptions.parse(f"/?topics={longest}").topics == (longest,)
    refused(f"/?topics={longest}a")


TOPIC = st.text(st.characters(exclude_characters=",\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(TOPIC.filter(lambda topic: len(topic.encode()) <= 127), unique=True))
def test_topics_come_back(topics: list[str]) -> None:
    joined = ",".join(topics)
    for encoded in (quote(joined), quote(joined, safe="")):
        assert ClientOptions.parse(f"/?topics={encoded}").topics == tuple(topics)
    query = urlencode({"topics": joined}, quote_via=quote)
    assert ClientOptions.parse(f"/?{query}").topics == tuple(topics)
    assert ClientOptions.parse(f"/?rest={quote_plus(joined)}").topics is None


NAMES = st.sampled_from([*(f.name for f in dataclasses.fields(ClientOptions)), "x"])
PARTS = st.builds("{}={}".format, NAMES, st.sampled_from(["a", "1", "true", "%", "%2c", "", "é"]))
TARGETS = st.text() | st.lists(PARTS | st.text(max_size=5)).map(lambda p: "/?" + "&".join(p))


@given(TARGETS)
def test_parsing_raises_nothing_else(target: str) -> None:
    try:
        options = ClientOptions.parse(target)
    except OptionsError:
        return
    assert options.path.startswith("/")


@given(
    st.lists(PARTS, max_size=3), st.sampled_from(["token=", "tok%65n=", "token=%zz", "token=%ff"])
)
def test_no_error_and_no_repr_shows_a_token(parts: list[str], name: str) -> None:
    target = "/?" + "&".join([*parts, f"{name}{SECRET}"])
    try:
        said = repr(ClientOptions.parse(target))
    except OptionsError as error:
        said = str(error)
    assert SECRET not in said

"""The small languages of venue files."""

from __future__ import annotations

import fnmatch
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringcast.broker.topics.json_templates import JsonTemplate
from ringcast.broker.topics.templates import (
    Form,
    Pattern,
    TemplateError,
    check_topic_pattern,
    glob_matches,
    parse_json,
)
from tests.unit.broker.topics import oracle


@given(st.text("ab*", max_size=8), st.text("abc*\n", max_size=12))
def test_globs_are_those_of_fnmatch(pattern: str, text: str) -> None:
    assert glob_matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)


@given(st.text(max_size=8), st.text(max_size=8))
def test_only_the_star_is_special(pattern: str, text: str) -> None:
    expected = re.fullmatch("(?s:.*)".join(map(re.escape, pattern.split("*"))), text)
    assert glob_matches(pattern, text) == (expected is not None)


def test_a_glob_takes_no_time() -> None:
    assert not glob_matches("*a" * 1000 + "*b", "a" * 100_000)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_every_value_arrives_as_it_is(channel: str, symbol: str) -> None:
    template = JsonTemplate({"a": "{x}", "b": ["{y}"], "c": "<{x}>{{"}, ["x", "y"])
    topics = [{"x": channel, "y": symbol}, {"x": channel, "y": channel}]
    sent = json.loads(template.text(topics))
    listed = [*dict.fromkeys([symbol, channel])]
    assert sent == {"a": channel, "b": listed, "c": f"<{channel}>{{"}


def test_lists_are_repeated_and_nested() -> None:
    template = JsonTemplate({"op": "{o}", "args": [{"c": "{c}", "s": ["{s}"]}], "n": [1, 2]}, "ocs")
    assert template.used == {"o", "c", "s"}
    assert template.shared == {"o"}
    topics = [{"o": "go", "c": c, "s": s} for c, s in ("ax", "by", "az")]
    assert json.loads(template.text(topics)) == {
        "op": "go",
        "args": [{"c": "a", "s": ["x", "z"]}, {"c": "b", "s": ["y"]}],
        "n": [1, 2],
    }


def test_forms_read_names() -> None:
    form = Form("{channel}-{depth:number}:{symbol}", {"channel": ["book*"]})
    assert form.read("book-10:A:B") == {"channel": "book", "depth": "10", "symbol": "A:B"}
    assert form.read("book-x-5:A") == {"channel": "book-x", "depth": "5", "symbol": "A"}
    for name in ("book:A", "book-x:A", "trade-1:A", "-1:A", "book-1:", "", "book-1:A\n"[:7]):
        assert form.read(name) is None, name
    assert form.read("book-1:A\n") == {"channel": "book", "depth": "1", "symbol": "A\n"}
    assert Form("{{{a}}").read("{x}") == {"a": "x"}


@pytest.mark.parametrize("text", ["", "{a", "{}", "{a b}", "{a}{b}", "{a}:{a}", "{id}", "{a:x}"])
def test_bad_forms(text: str) -> None:
    with pytest.raises(TemplateError):
        Form(text)


@pytest.mark.parametrize("text", ["", "a", "{a}", "{/a", "{}", "{/a~}", "{/~2}", "{{/a}"])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(TemplateError):
        Pattern(text)
    with pytest.raises(TemplateError):
        check_topic_pattern(text)


@pytest.mark.parametrize(
    ("pattern", "payload"),
    [
        ("{/a}", b'{"a":"x"}'),
        ("{/a}:{/b/0}", b'{"b":[1.50e3],"a":"x"}'),
        ("{/a}", b'{"a":"one","a":"two"}'),
        ("{/}", b'{"":-0}'),
        ("{/a~1b/c~0d}", b'{"a/b":{"c~d":"\\u00e9\\n"}}'),
        ("{/a}", b'{"a":null}'),
        ("{/a}", b'{"a":true}'),
        ("{/a}", b'{"a":[]}'),
        ("{/0/1}", b'[["x",17470]]'),
        ("{/00}", b'["x"]'),
        ("{/1}", b'["x"]'),
        ("{/-}", b'["x"]'),
        ("{/00}", b'{"00":"x"}'),
        ("{{{/a}}", b'{"a":12345678901234567890}'),
        ("{/a/b}", b'{"a":"x"}'),
    ],
)
def test_patterns_find_what_the_oracle_finds(pattern: str, payload: bytes) -> None:
    assert Pattern(pattern).find(parse_json(payload)) == oracle.topic([pattern], payload)


def test_a_star_stands_for_each_index() -> None:
    message = parse_json(b'{"c":[{"n":"a","p":["x","y"]},{"n":"b","p":[]},{"n":"c","p":["z"]}]}')
    assert Pattern("{/c/*/n}:{/c/*/p/*}").find_all(message) == ["a:x", "a:y", "c:z"]
    assert Pattern("{/c/*/n}").find_all(message) == ["a", "b", "c"]
    assert Pattern("{/d/*}").find_all(message) == []
    assert Pattern("{/*}").find_all(parse_json(b'["x",5,null,{}]')) == ["x", "5"]

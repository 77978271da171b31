"""The map of names, the counters, topics by a Python function, and the hash of keys."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from ringcast.broker.topics import (
    Finder,
    Found,
    FunctionScanner,
    Scanner,
    What,
    load_function,
)
from ringcast.shm import hash_key


def message(name: str) -> bytes:
    return b'{"a":"%b"}' % name.encode()


def test_a_name_is_new_until_it_has_a_topic() -> None:
    scanner = Scanner(["{/a}"], names_max=2)
    assert scanner.scan(message("x")) == Found(What.NEW, b"x", 0, 0)
    assert scanner.scan(message("x")) == Found(What.NEW, b"x", 0, 0)
    scanner.name(b"x", 7, 1 << 63)
    assert scanner.scan(message("x")) == Found(What.KNOWN, b"x", 7, 1 << 63)
    scanner.name(b"x", 0, 0)
    assert scanner.scan(message("x")) == Found(What.KNOWN, b"x", 0, 0)


def test_a_full_map_has_no_room_for_other_names() -> None:
    scanner = Scanner(["{/a}"], names_max=2)
    for number, name in enumerate((b"x", b"y"), start=1):
        scanner.name(name, number, 0)
    assert scanner.scan(message("z")) == Found(What.OVERFLOWED, b"z", 0, 0)
    assert scanner.scan(message("y")).topic == 2
    with pytest.raises(RuntimeError, match="2 names"):
        scanner.name(b"z", 3, 0)
    scanner.name(b"y", 4, 0)
    assert (scanner.names_known, scanner.overflowed) == (2, 1)
    scanner.forget_names()
    assert scanner.names_known == 0
    assert [scanner.scan(message(name)).what for name in "xyz"] == [What.NEW] * 3


def test_many_names() -> None:
    count = 5_000
    scanner = Scanner(["{/a}"], names_max=count)
    for number in range(count):
        scanner.name(b"name %d" % number, number, number * 3)
    for number in range(count):
        found = scanner.scan(message(f"name {number}"))
        assert (found.topic, found.key) == (number, number * 3)
    assert scanner.scan(message("another")).what == What.OVERFLOWED


def test_names_have_1_to_127_bytes() -> None:
    scanner = Scanner(["{/a}"], names_max=2)
    for name in (b"", b"x" * 128):
        with pytest.raises(ValueError, match=f"{len(name)} bytes"):
            scanner.name(name, 1, 0)
    scanner.name(b"x" * 127, 1, 0)


def test_counters_tell_kinds_apart() -> None:
    scanner = Scanner(["{/a}"], control=["{/c}"], names_max=1)
    scanner.name(b"x", 1, 0)
    for payload in (
        b"{}",
        b"no",
        message(""),
        message("x"),
        message("y"),
        message("y"),
        b'{"c":1}',
    ):
        scanner.scan(payload)
    assert (scanner.unnamed, scanner.unusable, scanner.overflowed, scanner.failed) == (2, 1, 2, 0)


def test_any_buffer_is_a_payload() -> None:
    scanner = Scanner(["{/a}"], names_max=1)
    for payload in (bytearray(message("x")), memoryview(message("x"))):
        assert scanner.scan(payload).name == b"x"
    with pytest.raises(TypeError):
        scanner.scan("{}")  # type: ignore[arg-type]


def test_scanning_all_counts_names() -> None:
    scanner = Scanner(["{/a}"], names_max=1)
    assert scanner.scan_all([message("x"), b"{}", message("y")], repeat=3) == 6
    assert scanner.scan_all([]) == 0
    assert scanner.unnamed == 0


def test_a_finder_is_one_of_its_kinds() -> None:
    with pytest.raises(TypeError, match="Scanner"):
        Finder(names_max=1)  # type: ignore[call-arg]


# -- by a function


def finder(function: Callable[[memoryview], Any]) -> FunctionScanner:
    return FunctionScanner(function, names_max=2)


def test_a_function_names_topics() -> None:
    scanner = finder(lambda payload: bytes(payload).decode() or None)
    assert scanner.scan(b"x") == Found(What.NEW, b"x", 0, 0)
    scanner.name(b"x", 3, 4)
    assert scanner.scan(b"x") == Found(What.KNOWN, b"x", 3, 4)
    assert scanner.scan(b"") == Found(What.UNNAMED, None, 0, 0)
    assert scanner.first_error is None


@pytest.mark.parametrize("name", ["", "x" * 128, "\ud800"])
def test_a_function_may_return_what_is_no_name(name: str) -> None:
    scanner = finder(lambda _: name)
    assert scanner.scan(b"x") == Found(What.UNUSABLE, None, 0, 0)
    assert (scanner.unusable, scanner.failed) == (1, 0)


def test_errors_of_a_function_are_counted_and_the_first_is_kept() -> None:
    results = iter([7, b"x"])

    def function(_payload: memoryview) -> Any:
        return next(results)

    scanner = finder(function)
    for _ in range(3):
        assert scanner.scan(b"x") == Found(What.FAILED, None, 0, 0)
    assert scanner.failed == 3
    assert scanner.first_error == "TypeError: the topic function returned a int, not a str or None"

    def raising(_payload: memoryview) -> str:
        raise KeyError("symbol")

    scanner = finder(raising)
    assert scanner.scan(b"x").what == What.FAILED
    assert scanner.first_error == "KeyError: 'symbol'"


def test_an_interruption_of_a_function_comes_through() -> None:
    def function(_payload: memoryview) -> str:
        raise KeyboardInterrupt

    scanner = finder(function)
    with pytest.raises(KeyboardInterrupt):
        scanner.scan(b"x")


def test_the_view_is_read_only_and_released() -> None:
    kept: list[memoryview] = []

    def function(payload: memoryview) -> str:
        assert payload.readonly
        kept.append(payload)
        return "x"

    scanner = finder(function)
    assert scanner.scan(b"payload").name == b"x"
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


def test_part_of_a_view_that_is_kept_does_not_dangle() -> None:
    kept: list[memoryview] = []

    def function(payload: memoryview) -> str:
        kept.append(payload[3:])
        return "x"

    assert finder(function).scan(b"payload").name == b"x"
    assert bytes(kept[0]) == b"load"


def test_what_is_no_function() -> None:
    with pytest.raises(TypeError, match="str is no function"):
        FunctionScanner("json:loads", names_max=1)  # type: ignore[arg-type]


def test_functions_are_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("some_topics")
    module.of = lambda payload: bytes(payload).decode()  # type: ignore[attr-defined]
    module.deeper = types.SimpleNamespace(of=module.of)  # type: ignore[attr-defined]
    module.number = 5  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "some_topics", module)
    assert load_function("some_topics:of") is module.of
    assert load_function("some_topics:deeper.of") is module.of
    for text, what in {
        "some_topics": "write module:function",
        ":of": "write module:function",
        "some_topics:": "write module:function",
        "some_topics:missing": "nothing named 'missing'",
        "some_topics:number": "'number' is a int",
        "no_such_module:of": "no module 'no_such_module'",
        "json.no_such:of": "no module 'json.no_such'",
    }.items():
        with pytest.raises(ValueError, match=what):
            load_function(text)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import no_such_module", "importing 'broken_topics' failed: ModuleNotFoundError"),
        ("1 / 0", "importing 'broken_topics' failed: ZeroDivisionError"),
        ("def of(:", "importing 'broken_topics' failed: SyntaxError"),
    ],
)
def test_a_module_that_does_not_load(
    source: str, what: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_topics.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=what):
        load_function("broken_topics:of")


# -- the hash


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (bytes(range(3)), 0xE5C7BB4533BC65DD),
        (bytes(range(4)), 0xFFCED8604453CC1E),
        (bytes(range(7)), 0x14CC643F630C72D2),
        (bytes(range(8)), 0x884A173614B81B8D),
        (bytes(range(31)), 0xC346D2B59B4D8EE1),
        (bytes(range(32)), 0xCBF59C5116FF32B4),
        (bytes(range(33)), 0x0C535D1ACAFB8EAD),
        (bytes(range(64)), 0xF7C67301DB6713F0),
        (bytes(range(100)), 0x6AC1E58032166597),
        (bytes(range(127)), 0x464D085810CE0199),
    ],
)
def test_the_hash_is_hash_key(payload: bytes, value: int) -> None:
    """The first three are published; the others are what the reference implementation gives."""
    assert hash_key(payload) == value
    assert hash_key(memoryview(payload)) == value

"""Topics that a Python function finds, for payloads that are not JSON."""

from __future__ import annotations

import gzip
import json
import logging
import os
from typing import Final

import pytest

from ringcast import Config, ConfigError, Manager, attach
from ringcast.broker.manager import ManagerError
from tests.conftest import DEADLINE, eventually

from . import topic_functions
from .conftest import REPOSITORY
from .manager import listen, quick, running, sending, serving, url_of

MODULE: Final = "tests.integration.topic_functions"
SMALL: Final = {"slots": 1024, "capacity": 1 << 20, "max_topics": 8}


def zipped(channel: str | None, number: int) -> bytes:
    """A message of Huobi's."""
    message = {"ch": channel, "n": number} if channel else {"ping": number}
    return gzip.compress(json.dumps(message).encode())


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Managers in processes of their own find the module."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_gzipped_payloads(name: str) -> None:
    channels = ["market.btcusdt.trade.detail", "market.ethusdt.depth.step0", None]
    listener = listen()
    messages = [zipped(channels[number % 3], number) for number in range(300)]
    config = quick(name, url_of(listener), topic=f"{MODULE}:of_channel", **SMALL)
    with (
        Manager(config),
        attach(name, topics=["*depth*"]) as feed,
        attach(name, topics=["market.btcusdt.*"], others=True) as other,
        serving(sending(*messages), listener=listener),
    ):
        for each, numbers in (
            (feed, range(1, 300, 3)),
            (other, sorted([*range(0, 300, 3), *range(2, 300, 3)])),
        ):
            for number in numbers:
                message = each.read(DEADLINE)
                assert message is not None
                assert message.topic_name == channels[number % 3]
                assert bytes(message) == messages[number]
        assert {topic.name: topic.messages for topic in feed.topics} == dict.fromkeys(
            filter(None, channels), 100
        )


BAD: Final = (b"raise", b"write", b"number", b"bytes", b"none", b"empty", b"long", b"surrogate")


def test_a_function_that_does_everything_wrong(name: str, caplog: pytest.LogCaptureFixture) -> None:
    topic_functions.kept.clear()
    listener = listen()
    config = quick(name, url_of(listener), topic=f"{MODULE}:misuse", **SMALL)
    with (
        caplog.at_level(logging.WARNING, "ringcast"),
        running(config),
        attach(name) as feed,
        serving(sending(*BAD, b"good", *BAD, b"good"), listener=listener),
    ):
        for payload in (*BAD, b"good", *BAD, b"good"):
            message = feed.read(DEADLINE)
            assert message is not None
            assert bytes(message) == payload
            assert message.topic_name == ("good" if payload == b"good" else None)
        failures = "the topic function failed"
        eventually(lambda: failures in caplog.text, "it is reported")
        assert "LookupError: no such thing" in caplog.text
        assert caplog.text.count(failures) == 1
    assert len(topic_functions.kept) == 2 * len(BAD) + 2
    for view in topic_functions.kept:
        with pytest.raises(ValueError, match="released"):
            view.tobytes()


def test_more_topics_than_the_table_has(name: str, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"name{number}" for number in range(20)]
    listener = listen()
    config = quick(name, url_of(listener), topic=f"{MODULE}:misuse", **SMALL)
    with (
        caplog.at_level(logging.WARNING, "ringcast"),
        running(config),
        attach(name) as feed,
        serving(sending(*(n.encode() for n in names * 3)), listener=listener),
    ):
        for text in names * 3:
            message = feed.read(DEADLINE)
            assert message is not None
            assert bytes(message) == text.encode()
            assert message.topic_name == (text if text in names[:8] else None)
        assert [topic.name for topic in feed.topics] == names[:8]
    assert caplog.text.count("the topic table is full") == 1


def test_a_function_that_ends_the_program(name: str) -> None:
    """It may: so it can be interrupted."""
    listener = listen()
    config = quick(name, url_of(listener), topic=f"{MODULE}:misuse", **SMALL)
    with (
        serving(sending(b"good", b"exit"), listener=listener),
        pytest.raises(SystemExit, match="must not end"),
    ):
        Manager(config).run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topic": "no_such_module:of"}, "there is no module 'no_such_module'"),
        ({"topic": f"{MODULE}:nothing"}, "has nothing named 'nothing'"),
        ({"topic": f"{MODULE}:kept"}, "is a list, no function"),
        ({"venue": "okx", "subscribe": ["nonsense"]}, "'nonsense' is no topic of okx"),
        ({"venue": "./no-such.toml"}, "no-such.toml"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(
    options: dict[str, str | list[str]], words: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ManagerError, ConfigError)) as caught:
        Manager(Config(name=name, url="ws://127.0.0.1:1/", **{**SMALL, **options})).start()  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err

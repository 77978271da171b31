"""Topics of messages by a Python function, as the manager uses one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringcast import Config
from ringcast.broker.manager.naming import Naming
from ringcast.broker.topics.found import What
from ringcast.shm.broadcast import Writer

FUNCTION = """\
def topic_of(payload):
    return bytes(payload[1:]).decode() if payload[0] else None
"""


def test_a_python_function_finds_topics(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "topics_of_test_naming.py").write_text(FUNCTION, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    given = Config(name=writer.name, url="ws://h/", topic="topics_of_test_naming:topic_of")
    config = Config.from_json(given.as_json())  # as in a child process
    assert config.topic_function == "topics_of_test_naming:topic_of"
    naming = Naming(config, None, writer)
    assert naming.finder is not None
    found = naming.finder.scan(b"\x01trades")
    assert (found.what, found.name) == (What.NEW, b"trades")
    assert naming.resolve(b"trades")[0] == writer.topic("trades")
    assert naming.finder.scan(b"\x00").what is What.UNNAMED


def test_patterns_are_no_function() -> None:
    config = Config(name="md", url="ws://h/", topic=["{/a}:{/b}", "{/c}"])
    assert config.topic_function is None
    assert Config(name="md", url="ws://h/").topic_function is None

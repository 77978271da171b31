"""What the tests of the configuration share: a small one, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ringcast.broker.config import Config, ConfigError

URL = "wss://example.com/ws"


def make(**values: Any) -> Config:
    return Config(**{"name": "md", "url": URL} | values)


def refused(**values: Any) -> str:
    """The message that `values` are refused with."""
    with pytest.raises(ConfigError) as caught:
        make(**values)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "md.toml"


def write(file: Path, text: str) -> Path:
    file.write_text(f'name = "md"\nurl = "{URL}"\n{text}', "utf-8")
    return file

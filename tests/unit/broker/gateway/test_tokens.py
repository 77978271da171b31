"""Token files, and who is at the other end of a Unix socket."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringcast.broker.config import ConfigError
from ringcast.broker.gateway.access import PeerCredentials, peer_credentials, read_tokens

TOKEN = "Gz7-secret-token-Gz7"  # noqa: S105 - nobody's


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def write(path: Path, data: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(mode)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_tokens(path)
    assert caught.value.__cause__ is None
    assert TOKEN not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (TOKEN, (TOKEN,)),
        (f"{TOKEN}\n", (TOKEN,)),
        (f"# who\r\n  {TOKEN}\t\r\n\r\n#{'a' * 20}\r\n", (TOKEN,)),
        (f"{TOKEN}\n{'b' * 16}\n{TOKEN}\n", (TOKEN, "b" * 16)),
        ("a#" * 8, ("a#" * 8,)),
        ("!" * 5000, ("!" * 5000,)),
    ],
)
def test_tokens_are_read(path: Path, text: str, tokens: tuple[str, ...]) -> None:
    assert read_tokens(write(path, text)) == tokens
    assert read_tokens(str(write(path, text, 0o400))) == tokens


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("", "has no token"),
        ("\n\n# only words\n", "has no token"),
        (f"{TOKEN}\nshort-one-here-\n", "line 2: a token has 16 characters at least"),
        (f"{TOKEN} # who", "line 1: a token has visible ASCII characters only"),
        (f"\n{TOKEN}\u00e4", "line 2: a token has visible"),
        (f"{TOKEN}\0", "line 1: a token has visible"),
        (f"{TOKEN}\x0b{TOKEN}", "line 1: a token has visible"),
        (f"\ufeff{TOKEN}", "line 1: a token has visible"),
        (TOKEN.encode() + b"\xff", "is not UTF-8"),
        (TOKEN.encode("utf-16"), "is not UTF-8"),
        (f"{TOKEN}\n" * 60_000, "is longer than"),
    ],
)
def test_tokens_that_can_not_be(path: Path, data: str | bytes, part: str) -> None:
    said = refused(write(path, data))
    assert part in said
    assert "short-one" not in said


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_others_may_not_touch_the_file(path: Path, mode: int) -> None:
    assert "chmod 600" in refused(write(path, TOKEN, mode))


def test_it_belongs_to_this_user_or_root(path: Path) -> None:
    write(path, TOKEN)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)
    assert "belongs to another user" in refused(path)


def test_a_file_must_be_there(path: Path) -> None:
    assert "No such file" in refused(path)
    assert "Not a directory" in refused(write(path, TOKEN) / "x")
    assert "can't be the path" in refused(Path("/tmp/a\0b"))


def test_it_is_a_regular_file(path: Path) -> None:
    os.mkfifo(path, 0o600)  # and nobody writes it
    assert "no regular file" in refused(path)
    assert "no regular file" in refused(path.parent)
    link = path.with_name("link")
    link.symlink_to(write(path.with_name("real"), TOKEN))
    assert read_tokens(link) == (TOKEN,)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | st.text("ab#\r\n \t" + TOKEN).map(str.encode))
def test_reading_raises_nothing_else(path: Path, data: bytes) -> None:
    write(path, data)
    try:
        tokens = read_tokens(path)
    except ConfigError as error:
        said = str(error)
        assert all(line.decode("latin-1") not in said for line in data.split() if len(line) > 16)
        return
    assert tokens
    assert all(len(token) >= 16 for token in tokens)


def test_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        found = peer_credentials(ours)
    assert found == PeerCredentials(os.getpid(), os.getuid(), os.getgid())
    assert found.user == pwd.getpwuid(os.getuid()).pw_name
    assert str(found) == f"pid {os.getpid()} of user {found.user}"


@pytest.mark.parametrize("uid", [2_000_000_011, 2**32 - 1])
def test_a_user_without_a_name_has_a_number(uid: int) -> None:
    assert PeerCredentials(1, uid, 1).user == str(uid)

"""Secrets of a configuration: none shows, in a repr, a URL, a log or an error."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ringcast.broker.config import Config, ConfigError
from ringcast.broker.config.redaction import redact_target
from tests.unit.broker.config.conftest import make, refused, write


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("wss://h:1/a@b", "wss://h:1/a@b"),
        ("wss://user:pass@h/a", "wss://h/a"),
        ("wss://user@h", "wss://h"),
        ("wss://h/?key=abc&b=&c=d=e&bare", "wss://h/?key=***&b=&c=***&***"),
        ("wss://u:p@h/?", "wss://h/?"),
        ("wss://h/token-1?x=token-1", "wss://h/***?x=***"),
    ],
)
def test_shown_url(url: str, shown: str) -> None:
    config = make(url=url)
    assert config.shown_url == shown
    assert f"url={shown!r}" in repr(config)


@pytest.mark.parametrize(
    ("url", "environment", "shown"),
    [
        ("wss://h/${KEY}/x", {"KEY": "ab"}, "wss://h/***/x"),
        ("wss://${HOST}/x", {"HOST": "me:pw@secret.example"}, "wss://***/x"),
        ("wss://h${TAIL}", {"TAIL": "/x?a=b"}, "wss://h***"),
        ("${URL}", {"URL": "wss://u:p@h/?a=b"}, "***"),
        ("${START}:pw@h/x", {"START": "wss://me"}, "***h/x"),
        ("wss://h${MARK}=val", {"MARK": "?tok"}, "wss://h***=***"),
    ],
)
def test_shown_url_hides_what_came_from_the_environment(
    url: str,
    environment: Mapping[str, str],
    shown: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    file.write_text(f'name = "md"\nurl = "{url}"')
    config = Config.load(file)
    assert config.shown_url == shown
    assert Config.from_json(config.as_json()).shown_url == config.shown_url


def test_redact_takes_out_every_kind_of_secret() -> None:
    config = make(
        url="wss://user%40x:pass%2Fword@h/?key=query-value&short=abc",
        headers={"Authorization": "Bearer bearer-token", "X-Key": "header value"},
        cookie="a=cookie-one; b=cookie-two",
        proxy="http://proxy-user:proxy-pass@localhost:1",
        initial_messages=("a message of plain things",),
    )
    for secret in (
        *("user%40x", "user@x", "pass/word", "pass%2fword", "query-value", "bearer-token"),
        *("header value", "header%20value", "header+value", "cookie-one", "cookie-two"),
        *("proxy-user", "proxy-pass", "proxy-user:proxy-pass", "%70roxy-pass"),
    ):
        assert config.redact(f"<{secret}>") == "<***>"
        assert secret not in repr(config)
    assert config.redact("abc stays, and so does text") == "abc stays, and so does text"
    assert "plain things" not in repr(config)
    assert "proxy='http://localhost:1'" in repr(config)


def test_secrets_that_overlap_are_all_hidden() -> None:
    config = make(headers={"a": "abcdef", "b": "defghi", "c": "abcd"})
    assert config.redact("1abcdefghi2 abcdx") == "1***2 ***x"


def test_errors_of_a_file_do_not_show_its_variables(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S", "s3:cret")
    for text in ("origin = '${S}\\u0007'", "ca = '${S}'", "mode = '${S}'", "server_name = '${S}/'"):
        write(file, text.replace("'", '"'))
        with pytest.raises(ConfigError) as caught:
            Config.load(file)
        assert "s3" not in "".join(traceback.format_exception(caught.value))


SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x2FF), min_size=4, max_size=12)
AROUND = st.text(max_size=5)


def secretive(header: str, cookie: str, password: str, query: str) -> dict[str, Any]:
    """Values with each secret in its place, and where it may show by mistake."""
    user, word, value = (quote(text, safe="") for text in (cookie, password, query))
    return {
        "url": f"wss://{user}:{word}@example.com/?key={value}",
        "headers": {"X-Key": header},
        "cookie": cookie,
        "proxy": f"http://{user}:{word}@localhost:1",
        "origin": f"https://{header}/{cookie}/{password}/{query}",
        "initial_messages": (password,),
    }


def breakages(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What can be wrong with `values`, in ways that get secrets near an error's text."""
    url, proxy, origin = values["url"], values["proxy"], values["origin"]
    return [
        {"url": url.replace("wss", "http", 1)},
        {"url": url.replace("//", "/", 1)},
        {"url": url.replace("@example", "x/example")},
        {"url": url.replace("@example", "x#example")},
        {"url": url.replace("@", ":x@[")},
        {"url": url + "\r\n"},
        {"url": url + "#part"},
        {"proxy": proxy.replace("http", "ftp", 1)},
        {"proxy": proxy.replace("@localhost", "x/localhost")},
        {"proxy": proxy + "/?key=value"},
        {"proxy": proxy.replace("@", " @")},
        {"headers": {name: text + "\n" for name, text in values["headers"].items()}},
        {"headers": {f"a {text}": text for text in values["headers"].values()}},
        {"cookie": values["cookie"] + "\n"},
        {"cookie": values["cookie"].encode()},
        {"origin": origin + "\r"},
        {"server_name": origin},
        {"name": origin},
        {"ca": Path(origin)},
        {"subprotocols": (origin,)},
    ]


PROSE = repr(make(**secretive("", "c", "", ""))) + "".join(
    refused(**secretive("", "c", "", "") | broken)
    for broken in breakages(secretive("", "c", "", ""))
)


def assume_secret(*secrets: str) -> None:
    """A word of every error is no secret, nor is a piece of what stands in a secret's place."""
    assume(not any(secret in PROSE or "*" in secret for secret in secrets))


@given(SECRETS, SECRETS, SECRETS, SECRETS, AROUND, AROUND)
def test_no_secret_ever_shows(
    header: str, cookie: str, password: str, query: str, before: str, after: str
) -> None:
    secrets = (header, cookie, password, query)
    assume(not any("\x7f" in secret for secret in secrets))  # not a header's
    assume_secret(*secrets)
    config = make(**secretive(*secrets))
    shown = [repr(config), config.shown_url]
    for secret in secrets:
        for written in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret)):
            shown.append(config.redact(before + written + after))
            assert written not in shown[-1]
    for text in shown:
        for secret in secrets:
            assert secret not in text


@given(st.tuples(SECRETS, SECRETS, SECRETS, SECRETS), st.data())
def test_no_secret_shows_in_an_error(
    secrets: tuple[str, str, str, str], data: st.DataObject
) -> None:
    assume(not any("\x7f" in secret for secret in secrets))
    assume_secret(*secrets)
    values = secretive(*secrets)
    broken = data.draw(st.sampled_from(breakages(values)))
    with pytest.raises(ConfigError) as caught:
        make(**values | broken)
    shown = str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for secret in secrets:
        assert secret not in shown
        assert quote(secret, safe="") not in shown


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/", "/"),
        ("/a@b:c/%20?", "/a@b:c/%20?"),
        ("/?topics=a&token=b", "/?topics=***&token=***"),
        ("/?bare&=x&y=&z=1=2", "/?***&=***&y=&z=***"),
        ("/?a=b#token=c", "/?a=***"),
        ("/#?token=c", "/%23?token=***"),
        ("/a\r\nb \x1b[0m\u00e4", "/a%0D%0Ab%20%1B[0m%C3%A4"),
        ("//user:pw@h/", "//user:pw@h/"),
        ("", "***"),
        ("*", "***"),
        ("http://user:pw@h/?a=b", "***"),
    ],
)
def test_targets_of_requests(target: str, shown: str) -> None:
    assert redact_target(target) == shown


@given(st.text(), st.sampled_from("?&#"), st.text("abc=&%", max_size=9), st.text())
def test_no_target_shows_a_value_of_its_query(start: str, mark: str, name: str, end: str) -> None:
    shown = redact_target(f"/{start}?x{mark}{name}=SECRETVALUE{end}")
    assert "SECRETVALUE" not in shown
    assert shown.isascii()
    assert shown.isprintable()

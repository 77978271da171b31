"""The configuration of a manager: what is refused, how it is read, and that secrets stay secret."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import tomllib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ringcast.broker.config import KEYS, Config, ConfigError

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


# -- values ------------------------------------------------------------------------------------


def test_a_name_and_a_url_are_enough() -> None:
    config = Config(name="md", url=URL)
    assert config.reconnect
    assert config.verify
    assert config.ping_interval == 20.0
    assert config.idle_timeout is None
    assert (config.slots, config.capacity, config.mode) == (65536, 64 << 20, 0o600)


def test_nothing_can_be_changed_afterwards() -> None:
    headers = {"X-Key": "one"}
    config = make(headers=headers)
    headers["X-Key"] = "two\r\n"
    assert config.headers == {"X-Key": "one"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.headers["X-Key"] = "two"  # type: ignore[index]


@pytest.mark.parametrize(
    "url",
    [
        "ws://h",
        "wss://h:443/a?b=c&d",
        "wss://user:pass@h/btcusdt@trade",
        "ws://[::1]:8080/",
        "ws://10.0.0.1:1",
    ],
)
def test_urls_that_are_fine(url: str) -> None:
    assert make(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "http://h/",
        "WSS://h/",
        "wss:/h",
        "wss://",
        "wss://:443/",
        "wss://h:0/",
        "wss://h:99999/",
        "wss://h:port/",
        "wss://user:pa/ss@h/",
        "wss://[::1/",
        "wss://h/#part",
        "wss://h/a b",
        "wss://h/\r\nHost: x",
        "wss://h/é",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    assert refused(url=url).startswith("url")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "Not a name"}, "name='Not a name'"),
        ({"proxy": "https://h:1"}, "proxy='https://h:1'"),
        ({"proxy": "socks5://"}, "proxy"),
        ({"proxy": "http://h:1/path"}, "proxy"),
        ({"headers": {"X-A": "b\r\nC: d"}}, "'X-A'"),
        ({"headers": {"X A": "b"}}, "headers"),
        ({"headers": {"": "b"}}, "headers"),
        ({"headers": {"host": "b"}}, "'host'"),
        ({"headers": {"Upgrade": "b"}}, "'Upgrade'"),
        ({"headers": {"CONNECTION": "b"}}, "'CONNECTION'"),
        ({"headers": {"Sec-WebSocket-Key": "b"}}, "'Sec-WebSocket-Key'"),
        ({"headers": {"Cookie": "a=b"}, "cookie": "a=c"}, "cookie is given twice"),
        ({"cookie": "a\nb"}, "cookie"),
        ({"cookie": ""}, "cookie"),
        ({"origin": "https://h\r"}, "origin"),
        ({"subprotocols": ("a b",)}, "subprotocols=('a b',)"),
        ({"subprotocols": ("",)}, "subprotocols"),
        ({"subprotocols": ("a", "a")}, "subprotocols"),
        ({"initial_messages": ("\udc80",)}, "message 1 is not valid Unicode"),
        ({"server_name": "https://h"}, "server_name='https://h'"),
        ({"ca": Path("/nowhere/ca.pem")}, "ca='/nowhere/ca.pem'"),
        ({"ca": Path("long" * 100)}, "File name too long"),
        ({"private_key": Path("/etc/hostname")}, "private_key='/etc/hostname'"),
        ({"private_key_password": "pass"}, "private_key_password"),
        ({"url": "ws://h", "verify": False}, "verify=False"),
        ({"url": "ws://h", "server_name": "h"}, "server_name='h'"),
        ({"open_timeout": 0}, "open_timeout=0"),
        ({"open_timeout": float("inf")}, "open_timeout=inf"),
        ({"ping_interval": float("nan")}, "ping_interval=nan"),
        ({"ping_timeout": -1}, "ping_timeout=-1"),
        ({"drain_timeout": 10**400}, "drain_timeout"),
        ({"reconnect_reset_after": -0.1}, "reconnect_reset_after=-0.1"),
        ({"reconnect_delay": 5, "reconnect_delay_max": 1}, "reconnect_delay_max=1.0"),
        ({"demote_after": None}, "evict_after=5.0"),
        ({"close_timeout": 0}, "close_timeout=0"),
        ({"close_timeout": 1e7}, "close_timeout=10000000"),
        ({"max_in_flight": 0}, "max_in_flight=0: give a number, 1 or more"),
        ({"max_in_flight": -3}, "max_in_flight=-3"),
        ({"send_burst": 0}, "send_burst=0"),
        ({"send_rate": 0}, "send_rate=0"),
        ({"send_rate": 1e7}, "send_rate=10000000"),
        ({"offline_sends": "drop"}, 'offline_sends=\'drop\': it must be "buffer" or "reject"'),
    ],
)
def test_errors_name_the_key_and_the_value(values: dict[str, Any], expected: str) -> None:
    assert expected in refused(**values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("url", None),
        ("initial_messages", "text"),
        ("initial_messages", (5,)),
        ("headers", ["a"]),
        ("headers", {"a": 5}),
        ("subprotocols", "v1"),
        ("subprotocols", (b"v1",)),
        ("cookie", b"a=b"),
        ("ca", b"ca.pem"),
        ("ca", 5),
        ("verify", 1),
        ("reconnect", "yes"),
        ("drain_timeout", True),
        ("drain_timeout", "5"),
        ("drain_timeout", None),
        ("ping_interval", "20"),
        ("slots", 4.0),
        ("slots", True),
        ("mode", None),
        ("close_timeout", None),
        ("max_in_flight", 2.0),
        ("max_in_flight", True),
        ("offline_sends", 1),
        ("send_rate", "fast"),
    ],
)
def test_wrong_types_are_refused(key: str, value: Any) -> None:
    assert refused(**{key: value}).startswith(f"{key} must ")


def test_bounds_that_are_allowed() -> None:
    config = make(
        drain_timeout=0,
        reconnect_reset_after=0,
        reconnect_delay=1,
        reconnect_delay_max=1,
        ping_interval=None,
    )
    assert (config.drain_timeout, config.ping_interval) == (0.0, None)
    assert make(demote_after=None, evict_after=None).evict_after is None
    assert make(demote_after=1, evict_after=None).demote_after == 1.0


def test_settings_of_what_is_under_way() -> None:
    config = make()
    assert (config.close_timeout, config.max_in_flight) == (2.0, None)
    config = make(close_timeout=1, max_in_flight=1)
    assert (config.close_timeout, config.max_in_flight) == (1.0, 1)
    assert type(config.close_timeout) is float


def test_lists_are_kept_as_tuples() -> None:
    messages, subprotocols = ["one", b"two"], ["v2", "v1"]
    config = make(initial_messages=messages, subprotocols=subprotocols)
    messages.append("three")
    assert config.initial_messages == ("one", b"two")
    assert config.subprotocols == ("v2", "v1")
    assert config == make(initial_messages=("one", b"two"), subprotocols=("v2", "v1"))


def test_files_may_be_given_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.pem").touch()
    monkeypatch.chdir(tmp_path)
    config = make(ca="some.pem", certificate=str(tmp_path / "some.pem"), private_key="some.pem")
    assert config.ca == config.private_key == Path("some.pem")
    assert config.certificate == tmp_path / "some.pem"
    assert "no such file" in refused(ca="none.pem")


def test_replace_checks_again_and_keeps_the_rest() -> None:
    config = make(initial_messages=["one"], drain_timeout=1, ca=None)
    other = dataclasses.replace(config, drain_timeout=2, subprotocols=["v1"])
    assert (config.drain_timeout, other.drain_timeout) == (1.0, 2.0)
    assert (other.initial_messages, other.subprotocols) == (("one",), ("v1",))
    with pytest.raises(ConfigError, match="drain_timeout=-1"):
        dataclasses.replace(config, drain_timeout=-1)
    with pytest.raises(ConfigError, match="did you mean drain_timeout"):
        dataclasses.replace(config, drain=1)  # type: ignore[call-arg]


def test_a_copy_is_equal() -> None:
    config = make(headers={"a": "b"})
    assert copy.copy(config) == config


# -- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("conect_timeout", "open_timeout"),  # misspelt
        ("subprotocls", "subprotocols"),
        ("open-timeout", "open_timeout"),
        ("URL", "url"),
        ("drain", "drain_timeout"),  # a part of it
        ("initial", "initial_messages"),
        ("header", "headers"),
        ("ring_name", "name"),  # a longer form
        ("verify_ssl", "verify"),
        ("my_private_key", "private_key"),
        ("extra_headers", "headers"),  # another library's
        ("additional_headers", "headers"),
        ("http_proxy_host", "proxy"),
        ("connect_timeout", "open_timeout"),
        ("heartbeat", "ping_interval"),
        ("uri", "url"),
    ],
)
def test_the_nearest_key_is_named(wrong: str, right: str, file: Path) -> None:
    expected = f"there is no key {wrong!r}: did you mean {right}?"
    assert refused(**{wrong: 1}) == expected
    with pytest.raises(ConfigError) as caught:
        Config.load(write(file, f"{wrong} = 1"))
    assert str(caught.value) == expected
    with pytest.raises(ConfigError) as caught:
        Config.load(write(file, ""), **{wrong: 1})
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("wrong", "candidates"),
    [
        (
            "timeout",
            "open_timeout, close_timeout, ping_timeout, idle_timeout, drain_timeout",
        ),
        ("ping", "ping_interval, ping_timeout"),
        ("max_rea", "max_readers"),
        ("key", "private_key, private_key_password"),
        ("ssl", "ca, certificate, private_key, verify"),
    ],
)
def test_all_keys_that_may_be_meant_are_named(wrong: str, candidates: str) -> None:
    assert refused(**{wrong: 1}).endswith(f" {candidates}?")


def test_a_key_like_no_other() -> None:
    for wrong in ("xyzzy", "", "q"):
        assert refused(**{wrong: 1}).startswith(f"there is no key {wrong!r}: known are name, url, ")


def test_required_keys() -> None:
    with pytest.raises(ConfigError, match="name is missing"):
        Config(url=URL)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="url is missing"):
        Config(name="md")  # type: ignore[call-arg]


def test_each_key_is_written_once_and_explained() -> None:
    public = [part.name for part in dataclasses.fields(Config) if not part.name.startswith("_")]
    assert [*KEYS] == public
    assert Config.__doc__ is not None
    _, _, listed = Config.__doc__.partition("Attributes:\n")
    items = [line for line in listed.splitlines() if line.startswith("    ") and line[4] != " "]
    assert [item.split()[0] for item in items] == public
    assert max(map(len, Config.__doc__.splitlines())) <= 100
    config = make()
    for name, key in KEYS.items():
        assert key.name == name
        assert key.kind.summary.endswith("."), name
        assert key.is_required == (name in ("name", "url")), name
        if not key.is_required:
            assert getattr(config, name) == key.default, name
    assert list(inspect.signature(Config).parameters) == [*public, "_expanded"]


@pytest.mark.parametrize("name", KEYS)
def test_each_key_has_a_type(name: str) -> None:
    assert refused(**{name: object()}).startswith(f"{name} must be ")
    if not KEYS[name].is_optional:
        assert refused(**{name: None}).startswith(f"{name} must be ")


def test_tls_files_are_for_tls_and_must_be_readable(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    config = make(ca=pem, certificate=pem, private_key=pem, private_key_password="pass")  # noqa: S106
    assert config.ca == pem
    assert "wss://" in refused(url="ws://h", ca=pem)
    assert "wss://" in refused(url="ws://h", certificate=pem)
    assert "no such file" in refused(certificate=tmp_path)


# -- files -------------------------------------------------------------------------------------


def test_a_file_with_every_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "ca.pem").touch()
    monkeypatch.setenv("TOKEN", "abcdef")
    monkeypatch.setenv("SLOTS", "1024")
    write(
        file,
        """
        initial_messages = ['{"op":"${TOKEN}"}', "$${TOKEN}"]
        cookie = "a=b"
        origin = "https://example.com"
        subprotocols = ["v2", "v1"]
        proxy = "socks5h://user:pass@localhost:1080"
        ca = "ca.pem"
        certificate = "ca.pem"
        private_key = "ca.pem"
        private_key_password = "${TOKEN}"
        server_name = "example.org"
        verify = true
        open_timeout = 5
        reconnect = false
        reconnect_delay = 0.25
        reconnect_delay_max = 8
        reconnect_reset_after = 30
        ping_interval = "never"
        ping_timeout = 3
        idle_timeout = 90
        slots = "${SLOTS}"
        capacity = "1 MiB"
        max_readers = 8
        mode = "0640"
        demote_after = "never"
        evict_after = "never"
        drain_timeout = 0.5
        close_timeout = 1
        max_senders = "8"
        send_buffer_bytes = "4KiB"
        max_in_flight = 3
        offline_sends = "reject"
        send_rate = 10
        send_burst = 5
        [headers]
        Authorization = "Bearer ${TOKEN}"
        """,
    )
    ca = file.parent / "ca.pem"
    assert tomllib.loads(file.read_text("utf-8")).keys() == KEYS.keys()
    assert Config.load(file) == Config(
        name="md",
        url=URL,
        initial_messages=('{"op":"abcdef"}', "${TOKEN}"),
        headers={"Authorization": "Bearer abcdef"},
        cookie="a=b",
        origin="https://example.com",
        subprotocols=("v2", "v1"),
        proxy="socks5h://user:pass@localhost:1080",
        ca=ca,
        certificate=ca,
        private_key=ca,
        private_key_password="abcdef",  # noqa: S106
        server_name="example.org",
        open_timeout=5,
        reconnect=False,
        reconnect_delay=0.25,
        reconnect_delay_max=8,
        reconnect_reset_after=30,
        ping_interval=None,
        ping_timeout=3,
        idle_timeout=90,
        slots=1024,
        capacity=1 << 20,
        max_readers=8,
        mode=0o640,
        demote_after=None,
        evict_after=None,
        drain_timeout=0.5,
        close_timeout=1,
        max_senders=8,
        send_buffer_bytes=4096,
        max_in_flight=3,
        offline_sends="reject",
        send_rate=10,
        send_burst=5,
    )


def test_options_take_precedence_and_are_not_expanded(file: Path) -> None:
    write(file, 'cookie = "${MISSING}"\ndrain_timeout = 1')
    config = Config.load(str(file), cookie="${LITERAL}", drain_timeout=2, ping_interval=None)
    assert (config.cookie, config.drain_timeout, config.ping_interval) == ("${LITERAL}", 2.0, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conect_timeout = 1", "did you mean open_timeout?"),
        ("xyzzy = 1", "known are name, url"),
        ("_expanded = {}", "no key '_expanded'"),
        ("drain_timeout = '5'", "drain_timeout"),
        ("drain_timeout = true", "drain_timeout"),
        ("drain_timeout = 'never'", "drain_timeout"),
        ("ping_interval = 'often'", "ping_interval"),
        ("slots = 1.5", "slots"),
        ("slots = '64KiB'", "slots"),
        ("max_in_flight = 0", "max_in_flight=0"),
        ("max_in_flight = 'never'", "max_in_flight"),
        ("close_timeout = 'never'", "close_timeout"),
        ("offline_sends = 'never'", "offline_sends='never'"),
        ("capacity = '64 MB'", "capacity"),
        ("capacity = '-1'", "capacity"),
        ("mode = 'rw'", "mode"),
        ("initial_messages = 'text'", "initial_messages"),
        ("initial_messages = [1]", "initial_messages"),
        ("initial_messages = [{a = 'b'}]", "initial_messages"),
        ("headers = 'a'", "headers"),
        ("[headers]\na = 1", "headers"),
        ("cookie = 1979-05-27", "cookie"),
        ("ca = 5", "ca"),
        ("cookie = '${NOT_THERE}'", "cookie: the environment variable NOT_THERE is not set"),
        ("cookie = '${no good}'", "cookie: write ${NAME}"),
        ("cookie = ", "not valid TOML (at "),
        ("drain_timeout = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_files_that_are_refused(file: Path, text: str, expected: str) -> None:
    write(file, text)
    with pytest.raises(ConfigError) as caught:
        Config.load(file)
    assert expected in str(caught.value)


def test_what_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        Config.load(file)
    file.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 8"):
        Config.load(file)
    file.write_text("name = 'md'")
    with pytest.raises(ConfigError, match="url is missing"):
        Config.load(file)
    assert Config.load(file, url=URL).url == URL
    with pytest.raises(ConfigError, match="did you mean url"):
        Config.load(file, urls=URL)


def test_each_kind_of_dollar(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "${B}")
    monkeypatch.setenv("EMPTY", "")
    config = Config.load(
        write(file, "initial_messages = ['${A}', '$A $$ $', '$$${A}', '${EMPTY}']")
    )
    assert config.initial_messages == ("${B}", "$A $$ $", "$${A}", "")


# -- hand-over ---------------------------------------------------------------------------------


def test_a_child_gets_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "ca.pem").touch()
    monkeypatch.setenv("TOKEN", "abc-def")
    write(file, "origin = 'https://${TOKEN}'\nca = 'ca.pem'\nheaders = {a = 'b${TOKEN}'}")
    config = Config.load(
        file,
        initial_messages=("${X}", b"\x00\xff", ""),
        subprotocols=["v1"],
        idle_timeout=3,
        max_in_flight=4,
    )
    monkeypatch.delenv("TOKEN")
    child = Config.from_json(config.as_json())
    assert child == config
    assert repr(child) == repr(config)
    assert child.redact("got abc-def") == "got ***"


@pytest.mark.parametrize("text", ["", "5", "{}", '{"name": "md"}', '{"cookie": "secret'])
def test_a_child_refuses_anything_else(text: str) -> None:
    with pytest.raises(ConfigError, match="as_json"):
        Config.from_json(text)


# -- secrets -----------------------------------------------------------------------------------


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
        initial_messages=("subscribe to plain things",),
    )
    for secret in (
        *("user%40x", "user@x", "pass/word", "pass%2fword", "query-value", "bearer-token"),
        *("header value", "header%20value", "header+value", "cookie-one", "cookie-two"),
        *("proxy-user", "proxy-pass", "proxy-user:proxy-pass", "%70roxy-pass"),
    ):
        assert config.redact(f"<{secret}>") == "<***>"
        assert secret not in repr(config)
    assert config.redact("abc stays, and so does text") == "abc stays, and so does text"
    assert "subscribe" not in repr(config)
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

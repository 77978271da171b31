"""Fields of a configuration: what is refused, and which keys there are."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from ringcast.broker.config import KEYS, Config, ConfigError
from ringcast.broker.topics import venue_file
from tests.unit.broker.config.conftest import URL, make, refused, write

# ---- values --------------------------------------------------------------------------------


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
        ({"max_topics": 0}, "max_topics=0: give a number from 1 to 65536"),
        ({"max_topics": 65537}, "max_topics=65537"),
        ({"linger": -1}, "linger=-1"),
        ({"allow": ("",)}, "allow=('',): a text of it is empty"),
        ({"allow": ("a", "a")}, "name each one once"),
        ({"topic": ("stream",)}, "has no pointer"),
        ({"topic": ("{/a",)}, "a brace that is not closed"),
        ({"topic": ("{a}",)}, "'a' is no JSON pointer"),
        ({"topic": ("{/a~2}",)}, "'/a~2' is no JSON pointer"),
        ({"topic": ("{/a/*}",)}, "names one index"),
        ({"topic": ("{/a}", "mine:topic")}, "a function stands alone"),
        ({"request_id": "id"}, "'id' is no JSON pointer"),
        ({"request_id": "/i~d"}, "'/i~d' is no JSON pointer"),
        ({"request_id": "/i{d}"}, "a pointer names one place"),
        ({"request_id": "/*/id"}, "a pointer names one place"),
        ({"request_id": "/id\n"}, "it must be printable"),
        ({"request_id": "/" + 62 * "x"}, "64 characters at most"),
        ({"topic": "mine:topic", "request_id": "/id"}, "with a topic function there are none"),
        ({"key": "mine:topic"}, "key=('mine:topic',)"),
        ({"venue": "okex"}, "venue: there is no venue 'okex': did you mean okx?"),
        ({"venue": "/nowhere/mine.toml"}, "cannot read the venue file /nowhere/mine.toml"),
        ({"subscribe": ["a"]}, "subscribe=('a',): it needs venue"),
        ({"venue": "okx", "subscribe": ["BTC-USDT"]}, "write it as {channel}:{instId:upper}"),
        ({"venue": "binance", "subscribe": ["BTCUSDT@trade"]}, "write its symbol as 'btcusdt'"),
        ({"listen": ["9001"]}, "listen: can't listen on '9001': it has no port"),
        ({"listen": [":9001"]}, "say on which address: 127.0.0.1:9001"),
        ({"listen": ["unix:md.sock"]}, "a Unix socket's path starts with /"),
        ({"listen": ["ws://127.0.0.1:9001"]}, "leave scheme and slashes out"),
        ({"listen": ["0.0.0.0:9001"]}, "run `ringcast gateway` by itself"),
        ({"listen": ["md.example:9001"]}, "other machines reach md.example:9001"),
        ({"listen": ["localhost:1", "LocalHost:1"]}, "localhost:1 is there twice"),
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
        ("url", b"ws://h"),
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
        ("venue", 5),
        ("subscribe", "btcusdt@trade"),
        ("subscribe", (5,)),
        ("topic", 5),
        ("topic", ["{/a}", 5]),
        ("key", {"a": "b"}),
        ("allow", "*"),
        ("max_topics", "many"),
        ("listen", "127.0.0.1:9001"),
        ("listen", [9001]),
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


def test_a_venue_gives_what_the_configuration_does_not() -> None:
    config = Config(name="md", venue="okx", subscribe=["trades:BTC-USDT"])
    assert config.url == "wss://ws.okx.com:8443/ws/v5/public"
    assert config.topic[0] == "{/arg/channel}:{/arg/instId}"
    assert (config.key, config.subscribe) == ((), ("trades:BTC-USDT",))
    other = Config(name="md", venue="okx", url="ws://h", topic="{/a}", key=["{/b}"])
    assert (other.url, other.topic, other.key) == ("ws://h", ("{/a}",), ("{/b}",))
    assert (config.request_id, other.request_id) == ("/id", "/id")
    assert Config(name="md", venue="okx", request_id="/req").request_id == "/req"
    assert Config(name="md", venue="bitstamp").request_id is None
    assert Config.from_json(config.as_json()) == config


def test_a_venue_file_without_a_url(tmp_path: Path) -> None:
    text = (Path(venue_file.__file__).parent / "venues" / "bitstamp.toml").read_text("utf-8")
    file = tmp_path / "mine.toml"
    file.write_text(text.replace("url =", "documentation =", 1).replace("documentation", "#", 1))
    with pytest.raises(ConfigError, match="url is missing: give it, or a venue that has one"):
        Config(name="md", venue=str(file))
    assert Config(name="md", venue=str(file), url="ws://h").url == "ws://h"


def test_topics_without_a_venue() -> None:
    config = make()
    assert (config.venue, config.subscribe, config.topic, config.key) == (None, (), (), ())
    assert (config.max_topics, config.allow, config.linger) == (4096, ("*",), 5.0)
    for topic in ("mine:topic", "my.module:find_topic"):
        assert make(topic=topic).topic == (topic,)
    assert make(topic=["{/stream}", "{{{/e}:{/s}"]).topic == ("{/stream}", "{{{/e}:{/s}")
    assert make(max_topics=65536, linger=0, allow=[]).allow == ()


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


# ---- keys ----------------------------------------------------------------------------------


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
        ("private", "private_key, private_key_password"),
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
        Config(name="md")
    with pytest.raises(ConfigError, match="url is missing"):
        Config(name="md", url=None)  # type: ignore[arg-type]


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
        assert key.is_required == (name == "name"), name
        if name not in ("name", "url"):
            assert getattr(config, name) == key.default, name
    assert list(inspect.signature(Config).parameters) == [*public, "_expanded"]


@pytest.mark.parametrize("name", KEYS)
def test_each_key_has_a_type(name: str) -> None:
    assert refused(**{name: object()}).startswith(f"{name} must be ")
    if not KEYS[name].is_optional and name != "url":
        assert refused(**{name: None}).startswith(f"{name} must be ")


def test_tls_files_are_for_tls_and_must_be_readable(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    config = make(ca=pem, certificate=pem, private_key=pem, private_key_password="pass")  # noqa: S106
    assert config.ca == pem
    assert "wss://" in refused(url="ws://h", ca=pem)
    assert "wss://" in refused(url="ws://h", certificate=pem)
    assert "no such file" in refused(certificate=tmp_path)

"""A configuration from a file, the environment and options, and as a child process gets it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ringcast.broker.config import KEYS, Config, ConfigError
from ringcast.broker.topics import venue_file
from tests.unit.broker.config.conftest import URL, write

VENUES = Path(venue_file.__file__).parent / "venues"

# ---- files ---------------------------------------------------------------------------------


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
        venue = "binance"
        subscribe = ["btcusdt@trade"]
        topic = "{/stream}"
        key = ["{/data/s}"]
        max_topics = 16
        allow = ["btc*"]
        linger = 0.5
        request_id = "/id"
        listen = ["unix:/run/md.sock", "127.0.0.1:9001"]
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
        venue="binance",
        subscribe=["btcusdt@trade"],
        topic=["{/stream}"],
        key=["{/data/s}"],
        max_topics=16,
        allow=["btc*"],
        linger=0.5,
        request_id="/id",
        listen=["unix:/run/md.sock", "127.0.0.1:9001"],
    )


def test_a_venue_file_is_found_from_the_folder(file: Path) -> None:
    venue = file.parent / "mine.toml"
    venue.write_text((VENUES / "template.toml").read_text("utf-8"), "utf-8")
    config = Config.load(write(file, 'venue = "mine.toml"\nsubscribe = ["trades:BTC-USD"]'))
    assert (config.venue, config.url) == (str(venue), URL)
    file.write_text('name = "md"\nvenue = "binance"', "utf-8")
    assert Config.load(file).url == "wss://stream.binance.com:9443/stream"


def test_an_expanded_topic_is_not_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret-secret")
    write(file, 'venue = "okx"\nsubscribe = ["${TOKEN}"]')
    with pytest.raises(ConfigError) as caught:
        Config.load(file)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Config.load(write(file, 'venue = "${TOKEN}"'))
    assert "secret" not in str(caught.value)


def test_an_expanded_address_is_not_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, 'listen = ["${WHERE}"]')
    monkeypatch.setenv("WHERE", "unix:secret-secret")
    with pytest.raises(ConfigError, match=r"listen: an address \(not shown\) can't") as caught:
        Config.load(file)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("WHERE", "unix:/run/md.sock")
    assert Config.load(file).listen == ("unix:/run/md.sock",)


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


# ---- hand-over -----------------------------------------------------------------------------


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

"""Captures: what is read from a file, what is refused, and the digest of a sequence of messages."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from ringcast.broker.exchange import captures, market
from ringcast.broker.exchange.captures import CaptureError, Record

CAPTURES = Path(__file__).parents[4] / "shared" / "captures"
EXCHANGES = (
    *("binance-spot", "binance-usdm", "bitfinex", "bitmex", "bitstamp", "bybit", "coinbase"),
    *("deribit", "huobi-gzip", "kraken", "okx", "upbit-binary"),
)

LINES = b'1\tsent\t{"op":1}\n2\ttext\ta\tb \xc3\xa9\\n\n2\tbinary\tAP8K\n3\ttext\t\n'
RECORDS = [
    Record(1, "sent", b'{"op":1}'),
    Record(2, "text", b"a\tb \xc3\xa9\\n"),
    Record(2, "binary", b"\x00\xff\n"),
    Record(3, "text", b""),
]


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_plain_and_gzipped_files_are_read_alike(tmp_path: Path, ending: bytes) -> None:
    data = LINES.removesuffix(b"\n") + ending
    (tmp_path / "c.tsv").write_bytes(data)
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(data))
    assert list(captures.read(tmp_path / "c.tsv")) == RECORDS
    assert list(captures.read(str(tmp_path / "c.tsv.gz"))) == RECORDS


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").touch()
    assert list(captures.read(tmp_path / "c.tsv")) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"", "fields"),
        (b"2\ttext", "2 of the 3 fields"),
        (b"\ttext\ta", "time"),
        (b"-2\ttext\ta", "time"),
        (b"1_0\ttext\ta", "time"),
        (b"2.5\ttext\ta", "time"),
        (b"2\tjson\ta", "kind b'json'"),
        (b"2\tbinary\tAP8", "base64"),
        (b"2\tbinary\tAP 8K", "base64"),
        (b"2\ttext\t\xff", "UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, what: str) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(b"1\ttext\tfine\n" + line + b"\n3\ttext\tfine\n")
    records = captures.read(path)
    assert next(records).payload == b"fine"
    with pytest.raises(CaptureError, match=what) as caught:
        next(records)
    assert str(caught.value).startswith(f"{path}, line 2: ")


def test_broken_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"%d\ttext\t%d\n" % (n, n * n) for n in range(20_000)))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for data in (b"1\ttext\tplain\n", whole[: len(whole) // 2], bytes(flipped)):
        path = tmp_path / "c.tsv.gz"
        path.write_bytes(data)
        with pytest.raises(CaptureError, match=r"c\.tsv\.gz"):
            list(captures.read(path))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(captures.read(tmp_path / "none.tsv"))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_captures_of_exchanges(exchange: str) -> None:
    path = CAPTURES / f"{exchange}.tsv.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    records = list(captures.read(path))
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert len(records) == len(lines)
    for record, line in zip(records, lines, strict=True):
        binary = record.kind == "binary"
        payload = base64.b64encode(record.payload) if binary else record.payload
        assert b"%d\t%b\t%b" % (record.time_ns, record.kind.encode(), payload) == line


def test_the_digest_tells_order_kind_and_cuts_apart() -> None:
    sequences: list[list[tuple[bool, bytes]]] = [
        [],
        [(True, b"")],
        [(False, b"")],
        [(True, b"ab"), (True, b"c")],
        [(True, b"a"), (True, b"bc")],
        [(True, b"c"), (True, b"ab")],
        [(True, b"ab"), (False, b"c")],
        [(True, b"abc")],
    ]
    digests = []
    for sequence in sequences:
        digest = 0
        for is_text, payload in sequence:
            digest = captures.extend_digest(digest, is_text, payload)
            assert captures.extend_digest(
                digest, is_text, memoryview(payload)
            ) == captures.extend_digest(digest, is_text, payload)
        digests.append(digest)
    assert len(set(digests)) == len(digests)


def test_market_data_is_json_with_increasing_ids_and_the_promised_sizes() -> None:
    count = 40_000  # more than once forwards and backwards
    kinds: Counter[str] = Counter()
    prices: dict[str, float] = {}
    total = 0
    time_ms = 0
    for number, message in enumerate(itertools.islice(market.messages(), count), start=1):
        fields = json.loads(message)
        assert fields["id"] == number
        assert fields["time"] >= time_ms
        time_ms = fields["time"]
        kinds[fields["type"]] += 1
        total += len(message)
        if fields["type"] == "snapshot":
            assert 8_000 <= len(message) <= 12_000
        else:
            assert 100 <= len(message) <= 600
        if fields["type"] == "best":
            assert 0 < float(fields["bid"]) < float(fields["ask"])
            last = prices.get(fields["symbol"], float(fields["bid"]))
            assert abs(float(fields["bid"]) - last) <= 10, "a jump is no walk"
            prices[fields["symbol"]] = float(fields["bid"])
    assert set(kinds) == {"trade", "best", "depth", "snapshot"}
    assert 15 <= kinds["snapshot"] <= 25
    assert 170 <= total / count <= 230


def test_market_data_depends_on_the_seed_alone() -> None:
    def some(seed: int) -> list[bytes]:
        return list(itertools.islice(market.messages(seed), 100))

    assert some(1) == some(1)
    assert some(1) != some(2)

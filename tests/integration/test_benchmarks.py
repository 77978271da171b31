"""The benchmarks: each transport runs; what is reported; the commands."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ringcast.benchmarks import __main__ as command
from ringcast.benchmarks import flows, histograms, latency, plots, uplink
from ringcast.benchmarks.errors import RunFailedError
from ringcast.benchmarks.figures import Figure, figures_of, interleave, percentiles, ratio
from ringcast.benchmarks.report import Plan, Report
from ringcast.benchmarks.transports import TRANSPORTS, Transport, available
from ringcast.benchmarks.transports.rings import BatchedRing, LossyRing, Ring, SleepingRing, Uplink
from ringcast.benchmarks.transports.stdlib import UnixSeqpacket
from ringcast.benchmarks.websocket import clients
from ringcast.broker.cli import app

SIZE = 128
SECONDS = 0.02
BROADCASTING = [t for t in TRANSPORTS if t is not Uplink]
GATHERING = [t for t in TRANSPORTS if t.many_senders and t.item_messages == 1 and not t.lossy]


def present(transport: type[Transport]) -> None:
    if (why := transport.missing()) is not None:
        pytest.skip(why)


def title(transport: type[Transport]) -> str:
    return transport.name


# ---- every transport -----------------------------------------------------------------------


@pytest.mark.parametrize("transport", BROADCASTING, ids=title)
def test_each_transport_carries_a_flow_to_two(transport: type[Transport]) -> None:
    present(transport)
    wait = "block" if "block" in transport.waits else "spin"
    found = flows.broadcast(transport, SIZE, 2, SECONDS, wait)  # type: ignore[arg-type]
    assert found["rate"] > 0
    assert found["cpu"] > 0
    assert 0 <= found["lost"] < 1
    assert transport.lossy or found["lost"] == 0


@pytest.mark.parametrize("transport", GATHERING, ids=title)
def test_each_transport_for_many_carries_from_two_senders(transport: type[Transport]) -> None:
    present(transport)
    found = uplink.gather(transport, 2, SECONDS)
    assert found[f"rate: {transport.name} | 2 senders"] > 0


@pytest.mark.parametrize("transport", [Ring, BatchedRing, SleepingRing, Uplink], ids=title)
def test_round_trips_are_measured(transport: type[Transport]) -> None:
    found = latency.round_trips(transport, SIZE, SECONDS, "block")
    assert 0 < found["p50"] <= found.get("p99", math.inf)  # of few there is no p99


@pytest.mark.parametrize("transport", [Ring, BatchedRing, LossyRing, UnixSeqpacket], ids=title)
def test_latency_counts_from_when_a_message_was_due(transport: type[Transport]) -> None:
    found = latency.paced(transport, 0.05, "block", 64, 5_000_000)
    assert found["lost"] == 0
    assert found["p50"] > 0


def test_idle_readers_are_measured() -> None:
    found = flows.broadcast(Ring, SIZE, 2, SECONDS, idle_s=0.05)
    assert found["idle cpu"] >= 0
    assert found["memory"] > 64 << 20  # the ring's arena, once


# ---- what is reported ----------------------------------------------------------------------


def test_what_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "zmq" else find(name)
    )
    found, parameters = available()
    assert not [t for t in found if "zmq" in t.modules]
    assert "pip install 'ringcast[bench]'" in parameters["not measured"]["pyzmq PUSH/PULL"]


def test_a_client_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "picows" else find(name)
    )
    assert not clients.is_installed("picows")
    assert "pip install 'ringcast[bench]'" in clients.versions("picows")["picows"]


def test_a_histogram_keeps_durations_across_processes() -> None:
    pytest.importorskip("hdrh")
    one, other = histograms.Histogram(), histograms.Histogram()
    one.record(np.array([1000] * 30 + [2_000_000] * 30))
    other.add_text(one.as_text())
    other.record(np.array([1000] * 10))
    assert other.count == 70
    assert other.percentiles((50.0, 99.0)) == {"p50": pytest.approx(1.0, rel=0.001)}
    assert one.percentiles((75.0,)) == {"p75": pytest.approx(2000.0, rel=0.001)}


@pytest.mark.parametrize("duration_ns", [-1, 4 * 3_600_000_000_000])
def test_a_duration_out_of_range_fails_the_run(duration_ns: int) -> None:
    pytest.importorskip("hdrh")
    with pytest.raises(RunFailedError, match="out of range"):
        histograms.Histogram().record(np.array([duration_ns]))


def test_a_ratio_is_taken_round_by_round() -> None:
    figure = ratio("a / b", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0], floor=2.5)
    assert figure.values == (2.0, 3.0, 1.0)
    assert figure.median == 2.0
    assert not figure.met
    assert figure.as_cell() == "2.00 ±50% MISSED"


def test_figures_of_a_table_have_rows_and_columns() -> None:
    first, second = figures_of({"a | 1": [1.0], "b | 1": [2.0]}, "M/s", 10)
    assert (first.cell, second.cell) == (("a", "1"), ("b", "1"))
    assert second == Figure("b | 1", "M/s", (20.0,))


def test_a_percentile_beyond_which_fewer_than_ten_lie_is_not_reported() -> None:
    def reported(count: int) -> dict[str, float]:
        return percentiles((50.0, 99.0, 99.9), count, lambda q: q * 1000)

    assert reported(19) == {}
    assert reported(20) == reported(999) == {"p50": 50.0}
    assert reported(1000) == {"p50": 50.0, "p99": 99.0}
    assert reported(20_000) == {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


def test_values_missing_in_a_round_are_left_out() -> None:
    rounds = iter([{"a": 1.0, "b": 2.0}, {"a": 3.0}])
    assert interleave([lambda: next(rounds)], 2) == {"a": [1.0, 3.0]}


def test_a_rare_loss_is_reported() -> None:
    assert Figure("a | 1", "%", (0.0, 0.0, 0.0)).as_cell() == "0"
    assert Figure("a | 1", "%", (0.0, 0.0, 35.0)).as_cell() == "0 to 35.0"


def test_a_heading_without_figures_is_not_reported() -> None:
    report = Report("x", {}, {}, {"some": figures_of({"a | 1": [1.0]}, "us"), "none": []})
    assert "none" not in report.as_text()
    assert list(report.as_json()["groups"]) == ["some"]


def test_the_command_writes_figures_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    figures, pictures = tmp_path / "found.json", tmp_path / "pictures"
    arguments = ["growth", "--quick", "--seconds", "0.05", "--json", str(figures)]
    assert command.main([*arguments, "--plots", str(pictures)]) == 0
    assert "16 / 1, reading" in capsys.readouterr().out
    (report,) = json.loads(figures.read_text())["reports"]
    assert report["scenario"] == "growth"
    assert report["machine"]["cores"] >= 1
    drawn = sorted(path.stem for path in pictures.iterdir())
    assert drawn == ["growth-bandwidth", "growth-readers", "growth-ring", "growth-size"]
    for path in pictures.iterdir():
        assert path.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such"],
        ["growth", "--seconds", "0"],
        ["growth", "--repeat", "0"],
        ["replay", "--captures", "/no/such/folder"],
        ["growth", "--json", "/no/such/folder/figures.json"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2


def test_pictures_without_matplotlib_are_bad_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "pictures need matplotlib")
    with pytest.raises(SystemExit) as ended:
        command.main(["growth", "--plots", str(tmp_path)])
    assert ended.value.code == 2
    assert "pictures need matplotlib" in capsys.readouterr().err


def test_wrong_contents_exit_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_plan: object) -> Any:
        raise RunFailedError("message 3 is not what was sent")

    monkeypatch.setitem(command.SCENARIOS, "growth", fail)
    assert command.main(["growth"]) == 1
    assert capsys.readouterr().err == "growth: message 3 is not what was sent\n"


# ---- ringcast bench ------------------------------------------------------------------------


def a_report(plan: Plan) -> Report:
    figures = figures_of({"ringcast | 128 B": [5.0 * plan.repeat]}, "M/s")
    return Report("stand-in", plan.as_json(), {"cores": 2}, {"messages per second": figures})


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in command.SCENARIOS:
        monkeypatch.setitem(command.SCENARIOS, name, a_report)
    return monkeypatch


@pytest.mark.usefixtures("stand_ins")
def test_ringcast_bench_prints_tables() -> None:
    done = CliRunner().invoke(app, ["bench", "--seconds", "0.2"])
    assert done.exit_code == 0, done.output
    assert "scenario stand-in, seconds 0.2, repeat 1, brief True" in done.stdout
    assert "ringcast  5.00 ±0%" in done.stdout


@pytest.mark.usefixtures("stand_ins")
def test_ringcast_bench_prints_json_alone() -> None:
    done = CliRunner().invoke(app, ["bench", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [report["scenario"] for report in found["reports"]] == ["stand-in"] * 3
    assert found["copies"]["ringcast"]


def test_ringcast_bench_fails_with_wrong_contents(stand_ins: pytest.MonkeyPatch) -> None:
    def fail(_plan: Plan) -> Report:
        raise RunFailedError("message 3 is not what was sent")

    stand_ins.setitem(command.SCENARIOS, "latency", fail)
    done = CliRunner().invoke(app, ["bench"])
    assert done.exit_code == 1
    assert "ringcast bench: latency: message 3 is not what was sent" in done.stderr

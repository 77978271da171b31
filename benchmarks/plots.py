"""Pictures of the figures of scenarios, from their JSON, as SVG by matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

OURS: Final = "#c0392b"
"""The colour of ringcast."""
OTHERS: Final = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"),
    *("#17becf", "#393b79", "#637939", "#8c6d31", "#7b4173", "#3182bd", "#fd8d3c", "#74c476"),
)
OURS_UNNAMED: Final = {"bytes per second", "publish", "publish and read", "rate", "reading"}
"""Rows of ringcast that do not bear its name."""
WIDTH_INCHES: Final = 9.0
_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}

Found = Mapping[str, Any]
"""What `as_json` of the command returns."""


class Point(NamedTuple):
    """A column as a number, and the median and the range of its rounds."""

    x: float
    median: float
    least: float
    most: float


Series = dict[str, list[Point]]
"""The points of each row."""


def missing() -> str | None:
    """Why pictures cannot be drawn; None if they can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "pictures need matplotlib: pip install 'ringcast[bench]'"
    return None


# ---- what is drawn -------------------------------------------------------------------------


def _group(found: Found, scenario: str, heading: str) -> Sequence[Mapping[str, Any]]:
    """The figures under a heading; none if the scenario did not run."""
    for report in found["reports"]:
        if report["scenario"] == scenario:
            figures: Sequence[Mapping[str, Any]] = report["groups"].get(heading, ())
            return figures
    return ()


def _number(column: str) -> float:
    """The number in the name of a column: bytes, readers, slots, a percentile."""
    words = column.replace(",", "").split()
    if len(words) == 2 and words[1] in _UNITS:
        return float(words[0]) * _UNITS[words[1]]
    if words[0] == "1" and words[1:2] == ["to"]:
        return float(words[2])
    return float(words[0].removeprefix("p"))


def _series(figures: Sequence[Mapping[str, Any]]) -> Series:
    series: Series = {}
    for figure in figures:
        point = Point(_number(figure["column"]), figure["median"], figure["min"], figure["max"])
        series.setdefault(figure["row"], []).append(point)
    return series


# ---- how it is drawn -----------------------------------------------------------------------


def _axes(title: str, x: str, y: str, height: float = 4.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, which="major", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _style(row: str, number: int) -> dict[str, Any]:
    """The style of a line: ringcast's in one colour with different dashes, the others each in a
    colour of its own."""
    if row.startswith("ringcast") or row in OURS_UNNAMED:
        dashes = {
            ", batched": "--",
            ", lossy": ":",
            ", without spinning": "-.",
            ", 4 MiB": (0, (6, 1, 1, 1, 1, 1)),
        }
        style = next((d for end, d in dashes.items() if row.endswith(end)), "-")
        return {"color": OURS, "linestyle": style, "linewidth": 2.2, "zorder": 3}
    style = "--" if row.endswith(", batched") else "-"
    return {
        "color": OTHERS[number % len(OTHERS)],
        "linestyle": style,
        "linewidth": 1.1,
        "alpha": 0.9,
    }


def _lines(
    figures: Sequence[Mapping[str, Any]], title: str, x: str, y: str, *, log: tuple[bool, bool]
) -> Any:
    """A line per row, with the range of the rounds as a band."""
    figure, axes = _axes(title, x, y)
    for number, (row, points) in enumerate(_series(figures).items()):
        xs, medians, least, most = (list(values) for values in zip(*points, strict=True))
        style = _style(row, number)
        axes.plot(xs, medians, label=row, marker="o", markersize=3, **style)
        axes.fill_between(xs, least, most, color=style["color"], alpha=0.12, linewidth=0)
    if log[0]:
        axes.set_xscale("log", base=2)
        xs = sorted({point.x for points in _series(figures).values() for point in points})
        labels = {_number(f["column"]): f["column"] for f in figures}
        axes.set_xticks(xs, [labels[value].removeprefix("1 to ") for value in xs])
    if log[1]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    return figure


def _percentile_lines(figures: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Latency by percentile, as HdrHistogram plots it."""
    figure, axes = _axes(title, "percentile", "us since the message was due")
    columns = list(dict.fromkeys(f["column"] for f in figures))
    rows = list(dict.fromkeys(f["row"] for f in figures))
    for number, row in enumerate(rows):
        values = {f["column"]: f["median"] for f in figures if f["row"] == row}
        xs = [i for i, column in enumerate(columns) if column in values]
        ys = [values[columns[i]] for i in xs]
        axes.plot(xs, ys, label=row, marker="o", markersize=3, **_style(row, number))
    axes.set_xticks(range(len(columns)), [column.removeprefix("p") for column in columns])
    axes.set_yscale("log")
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    return figure


def _bars(figures: Sequence[Mapping[str, Any]], title: str, x: str, *, log: bool) -> Any:
    """A bar per figure, with the range of the rounds as a line on it."""
    figure, axes = _axes(title, x, "", height=1.2 + 0.26 * len(figures))
    names = [f.get("row", f["name"]) for f in figures]
    medians = [f["median"] for f in figures]
    spread = [
        [f["median"] - f["min"] for f in figures],
        [f["max"] - f["median"] for f in figures],
    ]
    colors = [OURS if name.startswith("ringcast") else "#8899aa" for name in names]
    axes.barh(names, medians, xerr=spread, color=colors, error_kw={"linewidth": 0.8})
    axes.invert_yaxis()
    for at, value in enumerate(medians):
        axes.text(value, at, f"  {value:,.3g}", va="center", fontsize=7)
    if log:
        axes.set_xscale("log")
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    return figure


# ---- the pictures --------------------------------------------------------------------------

_BY_SIZE: Final = "size of a message"


class Picture(NamedTuple):
    """A picture: the name of its file, the scenario and the heading of its figures, and the
    function that draws them."""

    name: str
    scenario: str
    heading: str
    draw: Callable[[Sequence[Mapping[str, Any]]], Any]


def _without_ratios(figures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [figure for figure in figures if figure["unit"] != "x"]


def _column(figures: Sequence[Mapping[str, Any]], column: str) -> list[Mapping[str, Any]]:
    return [figure for figure in figures if figure.get("column") == column]


_PICTURES: Final[tuple[Picture, ...]] = (
    Picture(
        "throughput",
        "throughput",
        "messages per second to each receiver",
        lambda f: _lines(f, "One sender, one receiver", _BY_SIZE, "M messages/s", log=(True, True)),
    ),
    Picture(
        "throughput-cpu",
        "throughput",
        "CPU time of all processes per message received",
        lambda f: _lines(f, "CPU time of both sides", _BY_SIZE, "us per message", log=(True, True)),
    ),
    Picture(
        "fan-out",
        "fan-out",
        "messages per second to each receiver",
        lambda f: _lines(
            f, "One sender, many receivers", "receivers", "M messages/s to each", log=(True, True)
        ),
    ),
    Picture(
        "latency-spinning",
        "latency",
        "one way, half a round trip, spinning, p50",
        lambda f: _bars(_column(f, "128 B"), "One way, both sides spinning, p50", "us", log=True),
    ),
    Picture(
        "latency-asleep",
        "latency",
        "one way, half a round trip, asleep, p50",
        lambda f: _bars(_column(f, "128 B"), "One way, both sides asleep, p50", "us", log=True),
    ),
    Picture(
        "latency-10000",
        "latency",
        "time since due, 10,000 per second, asleep",
        lambda f: _percentile_lines(f, "10,000 messages per second, receiver asleep"),
    ),
    Picture(
        "latency-100000",
        "latency",
        "time since due, 100,000 per second, spinning",
        lambda f: _percentile_lines(f, "100,000 messages per second, receiver spinning"),
    ),
    Picture(
        "bursts",
        "latency",
        "time since due, 1024 messages every 20 ms",
        lambda f: _percentile_lines(f, "Bursts of 1024 messages every 20 ms"),
    ),
    Picture(
        "ingest",
        "ingest",
        "frames received per second, without TLS",
        lambda f: _bars(_without_ratios(f), "WebSocket frames received", "M/s", log=True),
    ),
    Picture(
        "end-to-end",
        "end-to-end",
        "messages per second to each worker, flood",
        lambda f: _lines(
            _without_ratios(f),
            "From server to workers",
            "workers",
            "M messages/s to each",
            log=(True, True),
        ),
    ),
    Picture(
        "end-to-end-cpu",
        "end-to-end",
        "CPU time per message and worker, flood",
        lambda f: _lines(
            _without_ratios(f), "CPU time of all but the server", "workers", "us", log=(True, True)
        ),
    ),
    Picture(
        "uplink",
        "uplink",
        "messages per second, all senders together",
        lambda f: _lines(
            f, "Many senders, one receiver", "senders", "M messages/s in all", log=(True, True)
        ),
    ),
    Picture(
        "groups",
        "groups",
        "messages per second, all consumers together",
        lambda f: _bars(
            f, "One sender, four consumers that share the messages out", "M/s", log=True
        ),
    ),
    Picture(
        "growth-readers",
        "growth",
        "writer's CPU time per publish(), by number of readers",
        lambda f: _lines(
            f, "What readers cost the writer", "readers", "ns per message", log=(True, False)
        ),
    ),
    Picture(
        "growth-size",
        "growth",
        "time per message in one process, by size of the message",
        lambda f: _lines(f, "Publishing and reading", _BY_SIZE, "ns per message", log=(True, True)),
    ),
    Picture(
        "limits-copying",
        "limits",
        "copying, in one process",
        lambda f: _lines(_without_ratios(f), "Copying", _BY_SIZE, "GB/s", log=(True, False)),
    ),
    Picture(
        "growth-bandwidth",
        "growth",
        "bytes published and read in one process, by size of the message",
        lambda f: _lines(f, "Publishing and reading", _BY_SIZE, "GB/s", log=(True, False)),
    ),
    Picture(
        "growth-ring",
        "growth",
        "messages per second to one reader, by size of the ring",
        lambda f: _lines(
            f, "Rings from small to large", "slots", "M messages/s", log=(True, False)
        ),
    ),
)


def draw(found: Found, folder: Path) -> Iterator[Path]:
    """Draw every picture for which there are figures. Yields the files as they are written.

    Raises:
        OSError: a file cannot be written.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    # Text stays text, so files are smaller and searchable, and use the viewer's font. With a fixed
    # salt and no date, the same figures make the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ringcast"})
    for picture in _PICTURES:
        figures = _group(found, picture.scenario, picture.heading)
        if figures:
            path = folder / f"{picture.name}.svg"
            picture.draw(figures).savefig(path, metadata={"Date": None})
            yield path

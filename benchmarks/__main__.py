"""``python -m ringcast.benchmarks [SCENARIO ...]``: run some scenarios or all.

Prints tables, and writes JSON and pictures if asked to. The exit code is 0 if the contents of every
run were right; 1 if they were not, or if a floor was missed and ``--check`` was given; 2 for bad
usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from . import (
    endtoend,
    gateway,
    groups,
    growth,
    idle,
    ingest,
    latency,
    limits,
    native,
    plots,
    replay,
    throughput,
    topics,
    uplink,
)
from .errors import RunFailedError
from .report import Plan, Report
from .transports import available

SCENARIOS: Final[dict[str, Callable[[Plan], Report]]] = {
    "throughput": throughput.measure,
    "fan-out": throughput.measure_fan_out,
    "latency": latency.measure,
    "ingest": ingest.measure,
    "end-to-end": endtoend.measure,
    "uplink": uplink.measure,
    "replay": replay.measure,
    "idle": idle.measure,
    "growth": growth.measure,
    "topics": topics.measure,
    "groups": groups.measure,
    "gateway": gateway.measure,
    "limits": limits.measure,
    "native": native.measure,
}
QUICK: Final = Plan(seconds=0.1, repeat=1, brief=True)
SECONDS_LEAST: Final = 0.05
"""The shortest run: in less time, the slowest transport has no figures."""
SECONDS_MOST: Final = 600.0


def _seconds(text: str) -> float:
    value = float(text)
    if not SECONDS_LEAST <= value <= SECONDS_MOST:
        raise argparse.ArgumentTypeError(
            f"seconds are from {SECONDS_LEAST:g} to {SECONDS_MOST:g}, not {text}"
        )
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a count is 1 or more, not {text}")
    return value


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ringcast.benchmarks", description=__doc__)
    names = ", ".join(SCENARIOS)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{names}; all if none")
    parser.add_argument(
        "--quick", action="store_true", help="short runs of the main cases, within 3 minutes"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    parser.add_argument(
        "--plots", metavar="FOLDER", type=Path, help="write pictures (needs matplotlib)"
    )
    parser.add_argument("--seconds", type=_seconds, help="duration of each run (0.3; quick: 0.1)")
    parser.add_argument("--repeat", type=_count, help="number of rounds (5; quick: 1)")
    parser.add_argument(
        "--captures", metavar="FOLDER", type=Path, help="recorded messages to replay"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a floor is missed")
    options = parser.parse_args(arguments)
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name!r}; there are {names}")
    if options.plots is not None and (why := plots.missing()) is not None:
        parser.error(why)
    if options.captures is not None and not options.captures.is_dir():
        parser.error(f"there is no folder {options.captures}")
    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"there is no folder for {options.json}")
    return options


def _plan(options: argparse.Namespace) -> Plan:
    usual = QUICK if options.quick else Plan(0.3, 5)
    return Plan(
        options.seconds or usual.seconds,
        options.repeat or usual.repeat,
        usual.brief,
        options.captures,
    )


@contextlib.contextmanager
def _clean_up_on_signals() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that is closed, end all processes, as Ctrl-C does."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    # nohup ignores SIGHUP, and that stays.
    handled = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@_clean_up_on_signals()
def run(scenarios: Sequence[str], plan: Plan, show: Callable[[str], object]) -> list[Report]:
    """Run scenarios. Call this in the main thread, because it handles signals.

    Args:
        scenarios: their names; all if there are none.
        plan: how to run them.
        show: is called with who copies what, and then with the tables of each scenario.

    Raises:
        RunFailedError: what came is not what was sent, or a process failed.
    """
    present, _ = available()
    width = max(len(transport.name) for transport in present)
    show("\n".join(f"{t.name:<{width}}  {t.copies}" for t in present) + "\n")
    reports = []
    for name in scenarios or SCENARIOS:
        began = time.monotonic()
        try:
            report = SCENARIOS[name](plan)
        except RunFailedError as failure:
            raise RunFailedError(f"{name}: {failure}") from failure
        show(f"{report.as_text()}\n\n({time.monotonic() - began:.0f} s)\n")
        reports.append(report)
    return reports


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    """Reports as `plots.draw` reads them."""
    copies = {transport.name: transport.copies for transport in available()[0]}
    return {"copies": copies, "reports": [report.as_json() for report in reports]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    options = _arguments(arguments)
    to = sys.stderr if options.json == "-" else sys.stdout
    try:
        reports = run(
            options.scenarios, _plan(options), lambda text: print(text, file=to, flush=True)
        )
    except RunFailedError as failure:
        print(failure, file=sys.stderr)
        return 1
    found = as_json(reports)
    if options.json == "-":
        print(json.dumps(found))
    elif options.json:
        Path(options.json).write_text(json.dumps(found), encoding="utf-8")
    if options.plots is not None:
        for path in plots.draw(found, options.plots):
            print(path, file=to)
    missed = [f"{r.scenario}: {name}" for r in reports for name in r.missed]
    for name in missed:
        print(f"missed its floor: {name}", file=sys.stderr)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

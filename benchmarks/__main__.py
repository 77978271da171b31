"""``python -m benchmarks SCENARIO``: run one and print its table.

Exits with 0 when every run's contents were right, with 1 when they were not, or when a floor was
missed and ``--check`` was given, with 2 for bad usage.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from . import ingest, ring, uplink
from .method import Report, RunFailedError

SCENARIOS: Final[dict[str, Callable[[float, int], Report]]] = {
    "ring": ring.measure,
    "ingest": ingest.measure,
    "uplink": uplink.measure,
}


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError(f"seconds are above 0 and at most 600, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a count is 1 or more, not {text}")
    return value


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for stdout")
    parser.add_argument("--seconds", type=_seconds, default=0.3, help="of each run (%(default)s)")
    parser.add_argument("--repeat", type=_count, default=5, help="rounds (%(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a floor is missed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up, too
    try:
        report = SCENARIOS[options.scenario](options.seconds, options.repeat)
    except RunFailedError as failure:
        print(f"{options.scenario}: {failure}", file=sys.stderr)
        return 1
    print(report.as_text(), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json == "-":
        print(json.dumps(report.as_json(), indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")
    return 1 if options.check and not report.met else 0


if __name__ == "__main__":
    sys.exit(main())

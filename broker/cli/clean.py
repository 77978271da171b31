"""``ringcast clean``: remove rings that nobody writes any more, and what killed gateways left."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import typer

from ringcast import shm
from ringcast.shm.rosters import remove_stale_rosters

from .ls import list_ring, ring_table
from .output import AsJson, complete_name, new_console, print_json, print_notice, visible

__all__ = ["clean"]

_INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""
_VERBS: Final = {"removed": "removed", "removable": "would remove", "left": "left"}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What was done with one ring, or one file beside it; if it was left, why."""

    name: str
    state: str
    outcome: Literal["removed", "removable", "left"]
    reason: str | None


def clean(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Rings; all by default.", metavar="NAME", autocompletion=complete_name),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Don't ask, even where readers are attached.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the rings that nobody writes: those that ended, and those whose writer was killed.

    A ring with a living writer is left alone, but what killed gateways have left beside it is
    removed. The command asks before it removes a ring that can be
    resumed and that living readers are attached to."""
    rings = {entry.name: entry for entry in shm.list_rings()}
    chosen = [rings.get(name) or _missing(name) for name in names or rings]
    if not names and not as_json:
        _list_stale(chosen)
    ask = not yes and not as_json and sys.stdin.isatty()
    outcomes = []
    for entry in chosen:
        done = [
            _clean_one(entry, dry_run=dry_run, yes=yes, ask=ask),
            *_clean_rosters(entry, dry_run=dry_run),
        ]
        outcomes += done
        if not as_json:
            for outcome in done:
                _print_outcome(outcome)
    if as_json:
        print_json([dataclasses.asdict(outcome) for outcome in outcomes])
    if any(o.outcome == "left" and (names or o.state != "open") for o in outcomes):
        raise typer.Exit(1)


def _missing(name: str) -> shm.RingEntry:
    return shm.RingEntry(name, "missing", 0, f"there is no ring {name!r}: see `ringcast ls`")


def _list_stale(entries: list[shm.RingEntry]) -> None:
    stale = [list_ring(entry) for entry in entries if entry.state != "open"]
    if stale:
        new_console().print(ring_table(stale))
    elif not any(remove_stale_rosters(entry.name, dry_run=True) for entry in entries):
        print_notice("there is nothing to remove")


def _clean_one(entry: shm.RingEntry, *, dry_run: bool, yes: bool, ask: bool) -> _Outcome:
    def outcome(
        done: Literal["removed", "removable", "left"], reason: str | None = None
    ) -> _Outcome:
        return _Outcome(entry.name, entry.state, done, reason)

    if entry.state == "missing":
        return outcome("left", entry.detail)
    if entry.state == "open":
        return outcome("left", "it has a living writer: stop that process first")
    try:
        readers = _living_readers(entry.name) if entry.state == "orphaned" else 0
        attached = f"living readers are attached to it ({readers}) and its writer can be resumed"
        if dry_run:
            return outcome("removable", attached if readers else None)
        if readers and not yes:
            if not ask:
                return outcome("left", f"{attached}: --yes removes it all the same")
            if not _confirm(f"{entry.name}: {attached}. Remove it?"):
                return outcome("left", attached)
        shm.unlink(entry.name)
    except shm.RingNotFound:  # somebody else has removed it
        return outcome("removed")
    except shm.RingError as error:
        return outcome("left", str(error))
    return outcome("removed")


def _clean_rosters(entry: shm.RingEntry, *, dry_run: bool) -> list[_Outcome]:
    """Of a ring that is gone, nothing is left."""
    if entry.state == "missing":
        return []
    done: Literal["removed", "removable"] = "removable" if dry_run else "removed"
    removed = remove_stale_rosters(entry.name, dry_run=dry_run)
    return [_Outcome(file, "dead", done, "its gateway was killed") for file in removed]


def _confirm(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:  # Ctrl-C or Ctrl-D instead of an answer
        raise typer.Exit(_INTERRUPTED) from None


def _living_readers(name: str) -> int:
    try:
        readers = shm.status(name).readers
    except shm.RingNotFound:  # what is left is an uplink without a ring
        return 0
    return sum(reader.state != "dead" for reader in readers)


def _print_outcome(outcome: _Outcome) -> None:
    reason = f": {visible(outcome.reason)}" if outcome.reason else ""
    typer.echo(f"{_VERBS[outcome.outcome]} {visible(outcome.name)} ({outcome.state}){reason}")

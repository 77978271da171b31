"""Venue files: TOML that says how one exchange is talked to. `venues/template.toml` explains every
key. A file is read and checked whole before any of it is used."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

from .client_keys import read_clients
from .json_templates import JsonTemplate
from .rules import (
    AnswerRule,
    Condition,
    Done,
    Heartbeat,
    Naming,
    Outcome,
    Rename,
    Reply,
    RequestPair,
    Snapshot,
    SnapshotRule,
)
from .tables import COUNT_MAX, Table, VenueError, nearest, type_name
from .templates import Form, Pattern, TemplateError, check_topic_pattern, read_pointer
from .venue import Confirmation, Venue

__all__ = ["VenueError", "check_control_pattern", "list_venues", "load_venue", "venue_name"]

_FOLDER: Final = Path(__file__).parent / "venues"
_TEMPLATE: Final = "template"
"""The file that explains the others; it is no venue."""

_SECONDS_MAX: Final = 86_400.0
_ANSWER_TIMEOUT: Final = 10.0
"""Seconds, where a file does not say."""


def list_venues() -> list[str]:
    """The venues that come with this package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml") if path.stem != _TEMPLATE)


def venue_name(name_or_path: str) -> str:
    """What `load_venue` understands in any process, wherever that runs: a path is made absolute."""
    return str(Path(name_or_path).resolve()) if _is_path(name_or_path) else name_or_path


def _is_path(name_or_path: str) -> bool:
    return "/" in name_or_path or name_or_path.endswith(".toml")


def load_venue(name_or_path: str) -> Venue:
    """Read a venue.

    Args:
        name_or_path: one of `list_venues`, or the path of a file: it contains a slash or ends in
            ``.toml``.

    Raises:
        VenueError: there is none, or it can't be used.
    """
    if _is_path(name_or_path):
        path, shown = Path(name_or_path), name_or_path
    else:
        known = list_venues()
        if name_or_path not in known:
            raise VenueError(
                f"there is no venue {name_or_path!r}: {nearest(name_or_path, known)} (the path of a"
                " file of your own has a slash, or ends in .toml)"
            )
        path = _FOLDER / f"{name_or_path}.toml"
        shown = path.name
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise VenueError(f"cannot read the venue file {shown}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise VenueError(f"{shown} is not UTF-8 at byte {error.start}; save it as such") from None
    except ValueError as error:
        raise VenueError(f"{shown} is not valid TOML: {error}") from None
    return _venue(Table(values, shown), path.stem)


# ---- the venue -------------------------------------------------------------------------------


def _venue(file: Table, name: str) -> Venue:
    topics = file.table("topics", required=True)
    assert topics is not None
    limits = file.table("limits") or Table({}, "")
    requests = file.table("requests") or Table({}, "")
    clients = file.table("clients") or Table({}, "")
    namings = _namings(file, clients.conditions("optional"))
    venue = Venue(
        name=name,
        about=file.text("about") or "",
        documentation=file.text("documentation") or "",
        url=_url(file),
        topic=_patterns(topics, "patterns", check_topic_pattern, required=True),
        key=_patterns(topics, "key", check_topic_pattern),
        control=_patterns(topics, "control", check_control_pattern),
        only_learned=topics.flag("only_learned"),
        request_id=_pointer(requests, "id"),
        request_id_is_text=requests.flag("text"),
        confirmation=Confirmation(file.choice("confirmation", [*Confirmation])),
        topics_per_request=limits.count("topics_per_request"),
        topics_per_connection=limits.count("topics_per_connection"),
        messages_per_second=limits.number("messages_per_second", COUNT_MAX),
        burst=limits.count("burst") or 1,
        counts_everything=limits.choice("counts", ["requests", "everything"], "requests")
        == "everything",
        answer_timeout=limits.number("answer_timeout", _SECONDS_MAX) or _ANSWER_TIMEOUT,
        heartbeat=_heartbeat(file),
        initial=tuple(
            _message(file, "initial", value) for value in file.take("initial", "a list", list) or ()
        ),
        namings=namings,
        rules=_rules(file, namings),
        reply_rules=_replies(file),
        renames=_renames(file),
        snapshots=_snapshots(file, namings),
        clients=read_clients(clients, namings, only_learned=topics.flag("only_learned")),
    )
    for table in (topics, limits, requests, clients, file):
        table.finish()
    for naming, table in zip(namings, file.tables("names"), strict=True):
        try:
            venue.check_name(naming.example)
        except ValueError as error:
            raise table.error("example", str(error)) from None
    return venue


def _url(file: Table) -> str | None:
    url = file.text("url")
    if url is not None and not url.startswith(("ws://", "wss://")):
        raise file.error("url", f"is {url!r}; it must start with ws:// or wss://")
    return url


def _patterns(table: Table, key: str, check: Any, *, required: bool = False) -> tuple[str, ...]:
    patterns = table.texts(key, required=required)
    for pattern in patterns:
        table.parsed(key, check, pattern)
    return patterns


def _pointer(table: Table, key: str) -> str | None:
    pointer = table.text(key)
    if pointer is not None:
        table.parsed(key, read_pointer, pointer)
    return pointer


def check_control_pattern(text: str) -> None:
    """Check a pattern of control messages: ``{/event}`` or ``{/event}=bts:*``.

    Raises:
        TemplateError: it can't be used.
    """
    pattern, equals, _ = text.partition("=")
    if equals and "}" not in pattern:
        raise TemplateError(f"{text!r}: write a pointer in braces before the =")
    check_topic_pattern(pattern)


def _message(table: Table, key: str, value: Any) -> str:
    """A message without placeholders: a text as it is, a table as JSON."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict):
        return table.parsed(key, JsonTemplate, value).text()
    raise table.error(key, f"must be a text, or a table that becomes JSON, not {type_name(value)}")


def _heartbeat(file: Table) -> Heartbeat | None:
    table = file.table("heartbeat")
    if table is None:
        return None
    send = table.take("send", "a text or a table", str, dict, required=True)
    every = table.number("every", _SECONDS_MAX, required=True)
    table.finish()
    return Heartbeat(_message(table, "send", send), cast("float", every))


# ---- names and requests ----------------------------------------------------------------------


def _namings(file: Table, optional: Sequence[Condition]) -> tuple[Naming, ...]:
    common = {
        key: file.take(key, "a table that becomes JSON", dict)
        for key in ("subscribe", "unsubscribe")
    }
    namings = []
    for table in file.tables("names", required=True):
        only = table.table("only") or Table({}, "")
        text = table.text("form", required=True)
        globs = {part: only.texts(part, required=True) for part in only.free_keys()}
        form = table.parsed("form", functools.partial(Form, only=globs), text)
        templates = {
            key: _template(table, key, table.take(key, "a table", dict) or common[key], form)
            for key in ("subscribe", "unsubscribe")
        }
        naming = Naming(
            form,
            cast("str", table.text("example", required=True)),
            **templates,
            also=tuple(_request_pair(each, form) for each in table.tables("also")),
            optional=table.conditions("optional") or tuple(optional),
        )
        table.finish()
        namings.append(naming)
    if not namings:
        raise file.error("names", "is empty; give at least one [[names]]")
    return tuple(namings)


def _request_pair(table: Table, form: Form) -> RequestPair:
    what = "a table that becomes JSON"
    subscribe, unsubscribe = (
        _template(table, key, table.take(key, what, dict, required=True), form)
        for key in ("subscribe", "unsubscribe")
    )
    table.finish()
    return RequestPair(subscribe, unsubscribe)


def _template(table: Table, key: str, value: Any, form: Form) -> JsonTemplate:
    if value is None:
        raise table.error(key, "is missing: give a table that becomes JSON, here or for the file")
    known = [*form.parts, "name", "id", *(["raw"] if key == "unsubscribe" else [])]
    template: JsonTemplate = table.parsed(key, lambda value: JsonTemplate(value, known), value)
    if not template.used & {"name", "raw"}:
        for part in form.parts:
            if part not in template.used:
                raise table.error(
                    key, f"has no {{{part}}}: topics that differ in it would be asked for alike"
                )
    return template


# ---- answers ---------------------------------------------------------------------------------


def _when(table: Table) -> tuple[Condition, ...]:
    table.table("when", required=True)
    conditions = table.conditions("when")
    if not conditions:
        raise table.error("when", "is empty: it would match every message")
    return conditions


def _rules(file: Table, namings: Sequence[Naming]) -> tuple[AnswerRule, ...]:
    outcomes = [*Outcome, Done.DONE.value]
    parts = {part for naming in namings for part in naming.form.parts}
    rules = []
    for table in file.tables("answers", required=True):
        outcome = table.choice("outcome", outcomes)
        pointer = table.text("id")
        raw = table.text("raw")
        found = table.table("parts") or Table({}, "")
        pointers = {}
        for part in found.free_keys():
            if part not in parts:
                raise found.error(part, "is no part of a name; known are " + ", ".join(parts))
            pointers[part] = found.parsed(part, read_pointer, found.text(part, required=True))
        rules.append(
            AnswerRule(
                when=_when(table),
                outcome=Done.DONE if outcome == Done.DONE.value else Outcome(outcome),
                id=table.parsed("id", read_pointer, pointer) if pointer else None,
                names=tuple(table.parsed("names", Pattern, text) for text in table.texts("names")),
                parts=pointers,
                raw=table.parsed("raw", Pattern, raw) if raw else None,
                reason=tuple(
                    table.parsed("reason", Pattern, text) for text in table.texts("reason")
                ),
                refuses_rest=table.choice("rest", ["done", "refused"], "done") == "refused",
            )
        )
        table.finish()
    return tuple(rules)


def _replies(file: Table) -> tuple[Reply, ...]:
    replies = []
    for table in file.tables("replies"):
        send = table.take("send", "a text or a table", str, dict, required=True)
        replies.append(Reply(_when(table), _message(table, "send", send)))
        table.finish()
    return tuple(replies)


def _renames(file: Table) -> tuple[Rename, ...]:
    table = file.table("rename")
    if table is None:
        return ()
    renames = []
    for found in table.free_keys():
        topics = table.texts(found, required=True)
        for text in (found, *topics):
            if text.count("*") > 1 or ("*" in text and "*" not in found):
                raise table.error(found, f"{text!r}: one * on the left, and at most one beside it")
        renames.append(Rename(found, topics))
    return tuple(renames)


# ---- snapshots -------------------------------------------------------------------------------


def _snapshots(file: Table, namings: Sequence[Naming]) -> tuple[SnapshotRule, ...]:
    rules = []
    for table in file.tables("snapshots"):
        kind = table.choice("kind", ["none", "resubscribe", "request"])
        every = table.number("every", _SECONDS_MAX) or 0.0
        value = table.take("request", "a table that becomes JSON", dict, required=kind == "request")
        if kind == "resubscribe" and not every:
            raise table.error("every", "is missing: give the seconds between two resubscriptions")
        if value is not None and kind != "request":
            raise table.error("request", f"is for kind request, and kind is {kind!r}")
        request = None
        if value is not None:
            request = table.parsed("request", lambda v: JsonTemplate(v, _common(namings)), value)
        literal = cast("Literal['none', 'resubscribe', 'request']", kind)
        globs = table.texts("names", required=True)
        rules.append(SnapshotRule(globs, Snapshot(literal, every, request)))
        table.finish()
    return tuple(rules)


def _common(namings: Sequence[Naming]) -> list[str]:
    """The placeholders that every topic has."""
    parts = set(namings[0].form.parts).intersection(*(naming.form.parts for naming in namings))
    return [*sorted(parts), "name", "id"]

"""The keys of a venue file that say how the exchange answers its clients: its table [clients]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .answer_templates import AnswerTemplate
from .rules import ClientRules, Naming, Retort, UrlForm
from .tables import Table

__all__ = ["read_clients"]

_POINTERS: Final = ("/pointer", "null")
"""The placeholders of what is answered to a message at once."""
_NAMES: Final = "{names}"


def read_clients(table: Table, namings: Sequence[Naming], *, only_learned: bool) -> ClientRules:
    """Read [clients]; the caller finishes the table.

    Raises:
        VenueError: it can't be used.
    """
    parts = dict.fromkeys(part for naming in namings for part in naming.form.parts)
    known = (*parts, "name", "id", "null")
    templates = {
        key: _template(table, key, (*known, "reason") if key == "refused" else known)
        for key in ("subscribed", "unsubscribed", "refused")
    }
    given = [key for key, template in templates.items() if template is not None]
    if given:
        for key in templates:
            if key not in given:
                raise table.error(key, f"is missing: give a table, as for {given[0]}")
        if only_learned or any("raw" in naming.unsubscribe.used for naming in namings):
            raise table.error(
                given[0],
                "the messages of this exchange mean nothing without its own answers, so nobody can"
                " answer for it: leave it out",
            )
    login = table.table("login")
    urls, separator = _urls(table)
    return ClientRules(
        **templates,
        pings=tuple(_retort(each) for each in table.tables("pings")),
        login=_retort(login) if login is not None else None,
        urls=urls,
        separator=separator,
    )


def _template(table: Table, key: str, known: Sequence[str]) -> AnswerTemplate | None:
    value = table.take(key, "a table that becomes JSON", dict)
    if value is None:
        return None
    return table.parsed(key, lambda value: AnswerTemplate(value, known), value)


def _retort(table: Table) -> Retort:
    when = table.take("when", "a text or a table of JSON pointers", str, dict, required=True)
    conditions: Any = when if isinstance(when, str) else table.conditions("when")
    if not conditions:
        raise table.error("when", "is empty: give the whole message, or a table of JSON pointers")
    send = table.take("send", "a text or a table that becomes JSON", str, dict, required=True)
    if not send:
        raise table.error("send", "is empty: give the answer")
    answer = send if isinstance(send, str) else _template(table, "send", _POINTERS)
    assert answer is not None
    table.finish()
    return Retort(conditions, answer)


def _urls(clients: Table) -> tuple[tuple[UrlForm, ...], str]:
    table = clients.table("urls")
    if table is None:
        return (), ""
    forms = tuple(_url_form(table, text) for text in table.texts("forms", required=True))
    separator = table.text("separator", required=True)
    assert separator is not None
    table.finish()
    return forms, separator


def _url_form(table: Table, text: str) -> UrlForm:
    before, _, after = text.partition(_NAMES)
    path, question, query = before.partition("?")
    parameter = query.removesuffix("=")
    is_parameter = query.endswith("=") and parameter and not {*"=&"} & {*parameter}
    if not (path.startswith("/") and _NAMES in text and not after) or (
        question and not is_parameter
    ):
        raise table.error(
            "forms", f"{text!r}: write it as /path/{_NAMES} or /path?parameter={_NAMES}"
        )
    return UrlForm(path, parameter if question else None)

"""Requests and their answers: the id in a payload, replaced by another one and put back.

Only the bytes of the id change. Where it stands is found by the scanner that also finds it in what
is received, so both sides mean the same place.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from ._scan import Scanner, read_request_id
from .found import RequestId
from .templates import ABSENT, read_pointer, resolve

__all__ = ["FoundId", "IdPlace", "Readdressed"]

_OPENING: Final = b"{"


class Readdressed(NamedTuple):
    """A request that bears another id.

    Attributes:
        payload: the request.
        original: the id that it had, as it was spelled; None if it had none.
    """

    payload: bytes
    original: bytes | None


class FoundId(NamedTuple):
    """An id of a worker's request, found in an answer.

    Attributes:
        id: what it says.
        place: where it begins and ends in the payload.
    """

    id: RequestId
    place: tuple[int, int]

    def restored(self, payload: bytes, original: bytes | None) -> bytes:
        """The answer with the id that its request had; as it is, if that had none."""
        return payload if original is None else _spliced(payload, self.place, original)


class IdPlace:
    """Where requests and answers have their id.

    Args:
        pointer: a JSON pointer, such as "/id".
        as_text: an id that is added to a request is text, and not a number.

    Raises:
        ValueError: it is no pointer.
    """

    def __init__(self, pointer: str, *, as_text: bool = False) -> None:
        self.pointer = pointer
        self.as_text = as_text
        self._path = read_pointer(pointer)
        self._scanner = Scanner([f"{{{pointer}}}"], names_max=1)

    def readdress(self, payload: bytes, number: int) -> Readdressed:
        """Replace the id of a request by `number`: as a number if it is one, as text if it is text.
        If the request has none, it is added.

        Raises:
            ValueError: the payload is no JSON object; its id is neither a whole number nor text, or
                stands in it more than once; or it has none, and the pointer's object isn't there.
        """
        document = _object(payload)
        value = resolve(document, self._path)
        if value is ABSENT:
            return Readdressed(self._added(payload, document, number), None)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(  # noqa: TRY004 - of the payload, whatever its id is
                f"the id of a request, at {self.pointer}, is a whole number or text, not"
                f" {json.dumps(value)[:40]}"
            )
        place = self._scanner.locate(payload)
        original = b"" if place is None else payload[place[0] : place[1]]
        is_text = isinstance(value, str)
        changed = _spliced(payload, place, _spelled(number, as_text=is_text))
        # Parsers differ in which of equal keys counts: each is to see the new id.
        if resolve(_object(changed), self._path) != (str(number) if is_text else number):
            raise ValueError(f"the id of a request, at {self.pointer}, stands in it more than once")
        return Readdressed(changed, original)

    def find(self, payload: bytes) -> FoundId | None:
        """The id in an answer, and what it says; None if there is none, or none of ours."""
        place = self._scanner.locate(payload)
        if place is None:
            return None
        found = read_request_id(payload[slice(*place)].strip(b'"'))
        return None if found is None else FoundId(found, place)

    def _added(self, payload: bytes, document: dict[str, Any], number: int) -> bytes:
        if len(self._path) > 1:
            raise ValueError(
                f"the request has no id at {self.pointer}; one is added only at the top: give it"
                " one, to be replaced"
            )
        member = json.dumps(self._path[0]).encode() + b":" + _spelled(number, as_text=self.as_text)
        begin = payload.index(_OPENING) + 1
        return _spliced(payload, (begin, begin), member + (b"," if document else b""))


def _object(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a request is a JSON object; this is no JSON: {error}") from None
    if not isinstance(document, dict):
        shown = json.dumps(document)[:40]
        raise ValueError(f"a request is a JSON object, not {shown}")  # noqa: TRY004 - as above
    return document


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _spelled(number: int, *, as_text: bool) -> bytes:
    return b'"%d"' % number if as_text else b"%d" % number


def _spliced(payload: bytes, place: tuple[int, int] | None, piece: bytes) -> bytes:
    """The payload with `piece` at this place; as it is if there is no place."""
    return payload if place is None else payload[: place[0]] + piece + payload[place[1] :]

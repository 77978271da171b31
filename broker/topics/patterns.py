"""A topic that is found by a Python function: loading it from its name."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from typing import cast

__all__ = ["TopicFunction", "load_function"]

TopicFunction = Callable[[memoryview], str | None]
"""Takes a payload, as a read-only view that is released when the function returns; returns the
topic's name, or None."""


def load_function(text: str) -> TopicFunction:
    """The function that ``"module:function"`` names; its module is imported.

    Raises:
        ValueError: the text names no function, its module cannot be imported or has no such name,
            or what has the name cannot be called.
    """
    module_name, colon, function_name = text.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"{text!r} names no function: write module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, module_name):
            raise ValueError(
                f"{text!r}: there is no module {error.name!r}; is its folder in PYTHONPATH?"
            ) from error
        raise ValueError(
            f"{text!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    try:
        function = operator.attrgetter(function_name)(module)
    except AttributeError as error:
        raise ValueError(
            f"{text!r}: module {module_name!r} has nothing named {function_name!r}"
        ) from error
    if not callable(function):
        raise ValueError(  # noqa: TRY004 - of the text, whatever its module holds
            f"{text!r}: {function_name!r} is a {type(function).__name__}, no function"
        )
    return cast(TopicFunction, function)


def _is_part(missing: str | None, module_name: str) -> bool:
    """Whether a missing module is the one that was asked for, or a package it lies in."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")

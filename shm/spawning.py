"""Starting child processes of Python so that they import what their parent would."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

__all__ = ["safe_path"]

_VARIABLE: Final = "PYTHONSAFEPATH"


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Processes that `multiprocessing` spawns in this block do not look for modules in the working
    directory first (as with ``python -P``): a user's select.py there is not the library's."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before

"""Topics: what a message is about, and which topics are wanted.

What knows of names may enter: the patterns that find a topic's name in a payload, the native
scanner (pointer.h says its rules), the map from names to ids, and what venues call them. Nothing
here knows of sockets, of a ring or of the manager: the room is given bytes and answers with names.
`Scanner` finds names by patterns, `FunctionScanner` by a Python function that `load_function` has
loaded, and `xxh64` is the hash that keys are made with.
"""

from __future__ import annotations

from ._scan import Finder, FunctionScanner, Scanner, xxh64
from .found import Found, What
from .patterns import load_function

__all__ = ["Finder", "Found", "FunctionScanner", "Scanner", "What", "load_function", "xxh64"]

"""``python -m ringcast``: the command `ringcast`, and where the C interface is installed.

    python -m ringcast --includes            the folder of ringcast.h
    python -m ringcast --sources             ringcast.c, to be compiled into a C or C++ program
    python -m ringcast --pkgconfig cflags    what a compiler needs; and "libs", what a linker needs
    python -m ringcast --pkgconfig           a pkg-config file, for ringcast.pc

These load nothing but this module, so a build may ask before the native modules are built.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).resolve().parent / "shm" / "native" / "include"
_CFLAGS: Final = f"-I{_FOLDER}"
_LIBS: Final = "-pthread -lrt"

_QUESTIONS: Final = {
    ("--includes",): str(_FOLDER),
    ("--sources",): str(_FOLDER / "ringcast.c"),
    ("--pkgconfig", "cflags"): _CFLAGS,
    ("--pkgconfig", "libs"): _LIBS,
}


def _pkgconfig() -> str:
    return (
        f"sources={_FOLDER / 'ringcast.c'}\n\n"
        "Name: ringcast\n"
        "Description: Read a ringcast ring, and send through it, from C and C++\n"
        f"Version: {metadata.version('ringcast')}\n"
        f"Cflags: {_CFLAGS}\n"
        f"Libs: {_LIBS}"
    )


def main() -> None:
    """Answer where the C interface is, or run the command line."""
    asked = tuple(sys.argv[1:])
    if asked == ("--pkgconfig",):
        print(_pkgconfig())
    elif asked in _QUESTIONS:
        print(_QUESTIONS[asked])
    else:
        from .broker.cli import main as command

        command()


if __name__ == "__main__":
    main()

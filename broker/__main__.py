"""``python -m broker`` is the command `ringcast`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()

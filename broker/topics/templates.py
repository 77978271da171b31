"""Texts with placeholders."""

from __future__ import annotations


def glob_matches(pattern: str, text: str) -> bool:
    """Does `text` match `pattern`, in which ``*`` stands for any characters and nothing else is
    special? Takes time in proportion to the text, whatever the pattern."""
    first, *middle = pattern.split("*")
    if not middle:
        return first == text
    last = middle.pop()
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    position, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True

"""Text and numbers of others: the gateway, a clip's host, an image's host, S3.

What comes from outside passes through here before it reaches a message, an event, a log or a database. PostgreSQL's
JSONB has no NUL, UTF-8 has no lone surrogate, JSON has no NaN, a terminal obeys control characters, and a pattern takes
its time with 100 KB.
"""

from __future__ import annotations

import json
import math
from typing import Any

LONGEST_TEXT = 4096
"""Characters. Cut to this before any pattern is applied."""


def safe_text(value: object, limit: int = LONGEST_TEXT) -> str:
    """One line of printable text, at most ``limit`` characters and an ellipsis. Control characters become escapes.

    :param value: bytes count as UTF-8; of anything else its ``str`` counts.
    """
    if isinstance(value, bytes | bytearray):
        text = bytes(value[: 4 * limit + 4]).decode("utf-8", "replace")
    else:
        try:
            text = str(value)
        except Exception:  # an integer of 5,000 digits, for one
            text = f"<{type(value).__name__}>"
    return _cut("".join(map(_printable, text[:limit])), limit, is_cut=len(text) > limit)


def safe_lines(text: str, limit: int) -> str:
    """The same for a message of several lines."""
    if len(text) <= limit and all(line.isprintable() for line in text.split("\n")):
        return text
    shown = "\n".join("".join(map(_printable, line)) for line in text[:limit].split("\n"))
    return _cut(shown, limit, is_cut=len(text) > limit)


def finite(value: object) -> float | None:
    """A number of JSON that a float can hold; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _cut(shown: str, limit: int, *, is_cut: bool) -> str:
    return f"{shown[:limit]}…" if is_cut or len(shown) > limit else shown


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def read_json(text: str | bytes) -> Any:
    """The value of JSON that a person wrote. A field that is there twice is no silence.

    :raises ValueError: it is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("it has too many levels") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {doubled!r} is there twice")
    return values

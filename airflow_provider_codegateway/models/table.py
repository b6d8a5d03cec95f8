"""Rows of requests as people write them: CSV, or a JSON object a line."""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.foreign import read_json, safe_text
from airflow_provider_codegateway.models.build import PORTABLE, TERMS

ROW_FIELDS = ("id", "model", *PORTABLE, *TERMS)
"""What a row may set. Everything else, such as the connections, is set for the whole batch."""

FROM_JSON = ("parameters", "s3_extra_args")
"""Fields that a CSV cell holds as JSON."""

_LONGEST_CELL = 64 * 1024 * 1024
"""Characters of a CSV cell, which may be an image in base64."""
_MISSING: Any = object()
"""The value of a cell that is not there."""


class Unreadable(str):
    """Why a line is not a row."""


def json_rows(lines: Iterable[str]) -> Iterator[Any]:
    """Each line as it was written: a dict, or whatever else it is."""
    for line in lines:
        if line.strip():
            try:
                yield read_json(line)
            except ValueError as error:
                yield Unreadable(f"it is not JSON ({error}). Write one object a line.")


def csv_rows(text: Iterable[str]) -> Iterator[Any]:
    """Each line below the header as a dict of texts, or as ``Unreadable``.

    :raises InvalidRequest: the header is wrong.
    :raises csv.Error: the file is not CSV from some line on.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    # Strict: a quote that is never closed would make one prompt of all rows that follow.
    reader = csv.DictReader(text, strict=True, restval=_MISSING)
    names = reader.fieldnames or ()
    if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])):
        raise InvalidRequest(
            f"The header is one column, {safe_text(names[0], 100)!r}. Separate columns by commas, not by {other[0]!r}."
        )
    if doubled := [name for name in names if names.count(name) > 1]:
        raise InvalidRequest(f"The header names {doubled[0]!r} twice. Give each column a name of its own.")
    for row in reader:
        if None in row:
            yield Unreadable("it has more cells than the header. Put quotes around cells with commas.")
        elif _MISSING in row.values():
            yield Unreadable("it has fewer cells than the header: it may be cut off. Write empty cells, too.")
        else:
            yield row


def unknown_field(name: str) -> str:
    """What is wrong with a field that no row has."""
    close = difflib.get_close_matches(name, ROW_FIELDS, n=1)
    if close:
        return f"{name!r} is not a field of a row. Did you mean {close[0]!r}?"
    return (
        f"{name!r} is not a field of a row. Use {', '.join(ROW_FIELDS)}; put anything else that the model has into "
        "parameters."
    )


def is_set(value: object) -> bool:
    """Whether a cell has a value. The gaps of a data frame are NaN, NaT and NA."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return False
    value = plain(value)
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> Any:
    """A scalar of numpy or pandas as Python's own."""
    is_scalar = hasattr(value, "item") and hasattr(value, "dtype") and getattr(value, "shape", None) == ()
    return value.item() if is_scalar else value


def parse_json(name: str, arguments: dict[str, Any], problems: list[str]) -> None:
    """Replace a cell of ``FROM_JSON`` by what it says; one that is not an object is a problem, and left out."""
    value = arguments.get(name)
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
        arguments[name] = value
    if value is not None and not isinstance(value, Mapping):
        problems.append(f"{name} must be an object of names and values, not {type(value).__name__}.")
        del arguments[name]


def key_fields(template: object) -> list[str]:
    """The fields that a key's template names.

    :raises InvalidRequest: it has more than plain names in braces.
    """
    if not isinstance(template, str):
        return []
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidRequest(
            f"s3_key={template!r} is not a template ({error}). Use one such as '{{id}}.mp4'."
        ) from None
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in names)
    if not plain or any(spec or conversion for _, _, spec, conversion in parts):
        raise InvalidRequest(
            f"s3_key={template!r} is not supported. Use plain field names in braces, such as '{{id}}.mp4'."
        )
    return list(dict.fromkeys(names))

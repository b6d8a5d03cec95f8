"""What is wrong with a request, in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic_core import ErrorDetails

from airflow_provider_codegateway.inputs import describe
from airflow_provider_codegateway.models.known import MODELS
from airflow_provider_codegateway.models.request import VideoRequest, annotations_of


def problem_in_words(
    detail: ErrorDetails, request_class: type[VideoRequest], model: str, written: Mapping[str, Any]
) -> str:
    """One sentence or two: what is wrong with which value, and what to use.

    :param written: the portable values, as the author wrote them.
    """
    name = str(detail["loc"][0])
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing" | "blank":
            return f"{name} is required for {model}."
        case "extra_forbidden":
            return _no_such_parameter(name, request_class, model)
        case "string_too_long":
            length = len(cast("str", detail["input"]))
            return f"{name} has {length:,} characters, but {model} takes at most {context['max_length']:,}."
        case "value_error":
            where = "".join(f"[{part}]" for part in detail["loc"][1:] if isinstance(part, int))
            return f"{name}{where} of {model}: {context['error']}."
    shown = _shown(name, written.get(name, detail["input"]), request_class)
    supported = _supported(detail, name, request_class)
    if name == "duration" and name in written:
        supported = re.sub(r"'(\d+)s'", r"\1", supported)
    return f"{model} does not support {name}={shown}. Use {supported}."


def _supported(detail: ErrorDetails, name: str, request_class: type[VideoRequest]) -> str:
    match detail["type"]:
        case "literal_error":
            return str(detail["ctx"]["expected"])
        case "greater_than_equal" | "less_than_equal" | "int_type" | "int_from_float":
            constraints = list(annotations_of(request_class.model_fields[name].annotation))
            low, high = (
                next((getattr(item, bound) for item in constraints if hasattr(item, bound)), None)
                for bound in ("ge", "le")
            )
            if low is None or low == high:
                return "an integer" if low is None else str(low)
            return f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"
        case "bool_type":
            return "True or False"
        case "list_type":
            return "a list of images"
        case "string_type" | "string_unicode":
            return "text"
    return detail["msg"]


def _no_such_parameter(name: str, request_class: type[VideoRequest], model: str) -> str:
    own = sorted(request_class.model_fields.keys() - {"model"})
    if close := difflib.get_close_matches(name, own, n=1):
        return f"{model} has no parameter {name!r}. Did you mean {close[0]!r}?"
    others = [other for other, fields in MODELS.items() if name in fields.model_fields]
    elsewhere = (
        f" (only {one_of(others, 'and')} {'has' if len(others) == 1 else 'have'} it)" if others else ""
    )
    return f"{model} has no parameter {name!r}{elsewhere}. Leave it out, or use {one_of(own)}."


def given_twice(name: str, request_class: type[VideoRequest]) -> str:
    """A parameter that has an argument of its own was set by both."""
    argument = "image" if name == request_class.image_field else name
    return f"{name!r} is set in parameters and by the argument {argument!r}. Keep one of the two."


def placeholder(prompt: object) -> str:
    """A prompt that is only what a missing value becomes when a template renders it."""
    return (
        f"prompt={prompt!r} describes no video. A template renders to this when an XCom, a conf key or a table's "
        "cell has no value: check the task id, key or column that the prompt comes from."
    )


def _shown(name: str, value: Any, request_class: type[VideoRequest]) -> str:
    if isinstance(value, str) and name in request_class.media_fields():
        return describe(value)
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:60]}… ({type(value).__name__})"


def one_of(names: Iterable[str], word: str = "or") -> str:
    """Names in quotes, as a list in a sentence."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {word} {quoted[-1]}"

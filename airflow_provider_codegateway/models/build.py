"""From portable values, the same for every model, to the request of one model."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.models.known import MODELS, UnlistedRequest
from airflow_provider_codegateway.models.problems import given_twice, one_of, placeholder, problem_in_words
from airflow_provider_codegateway.models.request import VideoRequest

log = logging.getLogger(__name__)

PORTABLE = (
    "prompt",
    "image",
    "aspect_ratio",
    "duration",
    "resolution",
    "generate_audio",
    "seed",
    "parameters",
)
"""The arguments that every model shares: those of ``build_request``, besides the model."""

TERMS = (
    "s3_key",
    "s3_bucket",
    "if_exists",
    "max_renders",
    "max_cost",
    "fallbacks",
    "fallback_on",
    "on_mismatch",
    "ledger_prefix",
    "ledger_conn_id",
    "s3_extra_args",
)
"""The arguments of a clip that are not the request's."""


LONGEST_MODEL = 200
"""Characters: S3 keeps 2 KB beside a clip, and the name is there twice."""


def build_request(
    model: str,
    *,
    prompt: str | None = None,
    image: str | None = None,
    aspect_ratio: str | None = None,
    duration: float | str | None = None,
    resolution: str | None = None,
    generate_audio: bool | str | None = None,
    seed: float | str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> VideoRequest:
    """The validated request for one render.

    The named arguments are portable: the same for every model, and turned into what the model takes.
    ``None`` and the empty string (an empty cell of a table, say) mean "not set". A templated argument
    arrives as text and a table's number may be a float, so ``"6"``, ``6.0``, ``"true"`` and ``"42"`` are understood.

    :param model: such as ``google/veo-3.1-fast``. One that is not in ``MODELS`` is passed through.
    :param duration: whole seconds: ``6``, ``"6"``, ``"6s"`` or ``6.0``.
    :param resolution: such as ``"1080p"``, in either case.
    :param image: first frame: https URL, s3://, file://, base64 or data URI.
    :param parameters: further parameters, named and typed as the API has them, sent as they are.
    :raises InvalidRequest: listing every problem at once.
    """
    if not isinstance(model, str) or not model.strip():
        raise InvalidRequest(f"model={model!r} is not the name of a model. Use {one_of(MODELS)}.")
    model = model.strip()
    if len(model) > LONGEST_MODEL:
        raise InvalidRequest(
            f"model={model[:LONGEST_MODEL]!r}… is too long. Use a name of at most {LONGEST_MODEL} characters."
        )
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(
            f"parameters must be a dict of names and values, not {type(parameters).__name__}."
        )
    request_class = MODELS.get(model, UnlistedRequest)
    arguments = {
        "duration": _plain(duration),
        "resolution": resolution,
        "generate_audio": _plain(generate_audio),
        "seed": _plain(seed),
        "prompt": prompt,
        "aspect_ratio": aspect_ratio,
        request_class.image_field: image,
    }
    written = {name: value for name, value in arguments.items() if _is_set(value)}
    if request_class is UnlistedRequest:
        _warn_unlisted(model)
        portable = written
    else:
        portable = {name: _native(request_class, name, value) for name, value in written.items()}
    native = {name: value for name, value in (parameters or {}).items() if value is not None}

    problems = [given_twice(name, request_class) for name in native if name in portable or name == "model"]
    problems += [placeholder(text) for text in (prompt, native.get("prompt")) if _is_placeholder(text)]
    try:
        request = request_class.model_validate({**native, **portable, "model": model})
    except ValidationError as error:
        raise InvalidRequest(
            problems
            + [
                problem_in_words(detail, request_class, model, written)
                for detail in error.errors(include_url=False)
            ]
        ) from None
    problems += _unsendable(request)
    if problems:
        raise InvalidRequest(problems)
    return request


def _is_set(value: object) -> bool:
    return value is not None and not (isinstance(value, str) and not value)


def _plain(value: Any) -> Any:
    """A scalar of numpy or pandas as Python's own."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError):
        return value


def _native(request_class: type[VideoRequest], name: str, value: Any) -> Any:
    """A portable value as a model has it. What cannot be understood stays as written, for validation to name."""
    match name:
        case "duration":
            if isinstance(value, str):
                value = re.sub(r"(?<=[0-9.])\s*s\s*\Z", "", value)
            seconds = _integer(value)
            is_whole = isinstance(seconds, int) and not isinstance(seconds, bool)
            return request_class.native_duration(seconds) if is_whole else value
        case "resolution" if isinstance(value, str):
            return request_class.native_resolution(value)
        case "generate_audio" if isinstance(value, str):
            return {"true": True, "false": False}.get(value.strip().lower(), value)
        case "seed":
            return _integer(value)
    return value


def _integer(value: Any) -> Any:
    """Tables that have a gap in a column of integers make it one of floats."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(-?[0-9]{1,18})(?:\.0*)?\s*", value)):
        return int(match[1])
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Problems, in words.


_PLACEHOLDERS = frozenset(
    {
        *("", "none", "null", "nan", "nat", "na", "n/a", "nil", "<na>", "<null>", "(null)", "undefined"),
        *(
            "#n/a",
            "#n/d",
            "#na",
            "#ref!",
            "#value!",
            "#name?",
            "#div/0!",
            "#null!",
            "#num!",
            "[object object]",
        ),
    }
)


def _is_placeholder(prompt: object) -> bool:
    """Whether it is what a missing value becomes as text. Whitespace alone is nothing to show either."""
    if not isinstance(prompt, str) or not prompt:
        return False
    return prompt.strip().lower() in _PLACEHOLDERS


def _unsendable(request: VideoRequest) -> list[str]:
    """A request for an unlisted model may hold anything; what is not JSON cannot be sent."""
    try:
        json.dumps(request.body(), allow_nan=False)
    except (TypeError, ValueError) as error:
        return [f"parameters for {request.model} cannot be written as JSON: {error}."]
    return []


def _warn_unlisted(model: str) -> None:
    close = difflib.get_close_matches(model, MODELS, n=1)
    log.warning(
        "This version does not know the model %r, so its request is sent unchecked.%s",
        model,
        f" Did you mean {close[0]!r}?" if close else "",
    )

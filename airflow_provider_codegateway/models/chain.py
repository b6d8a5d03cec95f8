"""A chain: the request of the first model and those of its fallbacks, all of them checked before anything is bought."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.models.build import PORTABLE, build_request
from airflow_provider_codegateway.models.problems import one_of
from airflow_provider_codegateway.models.request import VideoRequest

Fallbacks = Sequence[str | Mapping[str, Any]] | str | None

MAX_FALLBACKS = 3
"""What a clip says of those passed over must fit into the 2 KB of its object's metadata."""
LONGEST_MODEL = 64
"""Characters, as JSON has them; the same."""


def build_chain(model: str, fallbacks: Fallbacks = None, **arguments: Any) -> tuple[VideoRequest, ...]:
    """The validated requests of a model and of its fallbacks, in their order.

    A fallback takes over every argument of the first model that it does not override; an override of None drops it.

    :param fallbacks: models, or dicts of a ``model`` and its overrides. Text is the JSON of them, or one model's name.
    :param arguments: see ``build_request``.
    :raises InvalidRequest: listing every problem at once, each with the fallback that it is of.
    """
    requests: list[VideoRequest] = []
    problems: list[str] = []
    try:
        requests.append(build_request(model, **arguments))
    except InvalidRequest as error:
        problems += error.problems
    for index, fallback in enumerate(_listed(fallbacks)):
        where = f"fallbacks[{index}]"
        try:
            request = _build(fallback, arguments)
        except InvalidRequest as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
            continue
        if request in requests:
            problems.append(
                f"{where}: {request.model} with the same values is already asked before. Remove it."
            )
        requests.append(request)
    if len(requests) > 1:
        problems += [
            f"model={each.model!r} is too long for a chain. Use a name of at most {LONGEST_MODEL} characters."
            for each in requests
            if len(json.dumps(each.model)) - 2 > LONGEST_MODEL
        ]
    if problems:
        raise InvalidRequest(problems)
    return tuple(requests)


def chain_fingerprint(requests: Sequence[VideoRequest]) -> str:
    """The fingerprint of a chain; of a single request, its own. See ``VideoRequest.fingerprint``."""
    each = [request.fingerprint() for request in requests]
    return each[0] if len(each) == 1 else hashlib.sha256(json.dumps(each).encode()).hexdigest()


def _listed(fallbacks: object) -> Sequence[object]:
    if isinstance(fallbacks, str):  # a template renders to text
        text = fallbacks.strip()
        try:
            fallbacks = json.loads(text) if text.startswith("[") else [text] if text else None
        except ValueError:
            raise InvalidRequest(
                "fallbacks is text, but not a JSON list. Render it with the tojson filter."
            ) from None
    if fallbacks is None:
        return ()
    if not isinstance(fallbacks, list | tuple):
        raise InvalidRequest(f"fallbacks must be a list of models, not {type(fallbacks).__name__}.")
    if len(fallbacks) > MAX_FALLBACKS:
        raise InvalidRequest(f"fallbacks has {len(fallbacks)} models. Use at most {MAX_FALLBACKS}.")
    return fallbacks


def _build(fallback: object, arguments: Mapping[str, Any]) -> VideoRequest:
    overrides = {"model": fallback} if isinstance(fallback, str) else fallback
    if not isinstance(overrides, Mapping):
        raise InvalidRequest(
            f'a fallback is a model, or a dict such as {{"model": "…", "resolution": "720p"}}, not '
            f"{type(fallback).__name__}."
        )
    if unknown := [str(name) for name in overrides if name not in ("model", *PORTABLE)]:
        raise InvalidRequest(
            f"{one_of(unknown, 'and')} cannot be overridden. Use {', '.join(PORTABLE)}; put anything else that the "
            "model has into parameters."
        )
    model = overrides.get("model")
    try:
        return build_request(**{"model": None, **arguments, **overrides})
    except InvalidRequest as error:
        taken_over = [name for name in arguments if arguments[name] is not None and name not in overrides]
        if not taken_over or not isinstance(model, str) or not model:
            raise
        *rest, last = error.problems
        hint = "A fallback takes over what it does not override; an override of None drops a value."
        raise InvalidRequest([*rest, f"{last} {hint}"]) from None

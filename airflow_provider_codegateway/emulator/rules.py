"""What the vendor's guide ("Video Generation API", 2026-06-06) says about each model's request.

Types are strict, unknown fields are refused, and the first problem is what the gateway answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .media import InvalidMedia, Kind, Media, read_media

MAX_PROMPT_CHARACTERS = 2000
_LONGEST_SHOWN = 4096

VEO = "google/veo-3.1-fast"
SEEDANCE = "bytedance/seedance-2.0"
HAILUO = "minimax/hailuo-2.3-fast"


class InvalidRequest(ValueError):
    """The gateway answers 400 with this message."""


@dataclass(frozen=True)
class VideoRequest:
    """A valid request."""

    model: str
    body: Mapping[str, Any]
    media: Mapping[str, tuple[Media, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal; same request, same clip."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()

    def __getitem__(self, name: str) -> Any:
        return self.body.get(name, self.defaults.get(name))

    def digest(self) -> dict[str, Any]:
        """The body, with a short digest in place of media bytes and no query in a URL."""
        shown = {
            name: [str(item) for item in items] if isinstance(self.body[name], list) else str(items[0])
            for name, items in self.media.items()
        }
        return {**{name: abridged(value) for name, value in self.body.items()}, **shown}


def abridged(value: Any) -> Any:
    """A value as it came, unless it is long enough to be media."""
    return f"({len(value)} characters)" if isinstance(value, str) and len(value) > _LONGEST_SHOWN else value


Rule = Callable[[Any], str | None]
"""Says what a value must be, or None where it is right."""


def _one_of(*values: Any) -> Rule:
    listed = ", ".join(json.dumps(value) for value in values)

    def rule(value: Any) -> str | None:
        right = any(type(value) is type(allowed) and value == allowed for allowed in values)
        return None if right else f"must be {'one of ' if len(values) > 1 else ''}{listed}"

    return rule


def _integer(low: int | None = None, high: int | None = None) -> Rule:
    def rule(value: Any) -> str | None:
        if type(value) is not int:
            return "must be an integer"
        if low is not None and high is not None and not low <= value <= high:
            return f"must be between {low} and {high}"
        return None

    return rule


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be a boolean"


@dataclass(frozen=True)
class _MediaField:
    kind: Kind = "image"
    urls: bool = True
    many: bool = False


@dataclass(frozen=True)
class _Model:
    prompt_required: bool
    rules: Mapping[str, Rule]
    media: Mapping[str, _MediaField]
    defaults: Mapping[str, Any]


_MODELS = {
    VEO: _Model(
        prompt_required=True,
        rules={
            "aspect_ratio": _one_of("16:9", "9:16", "1:1"),
            "duration": _one_of("4s", "6s", "8s"),
            "resolution": _one_of("720p", "1080p"),
            "generate_audio": _boolean,
        },
        media={"image_input": _MediaField(urls=False)},
        defaults={
            "aspect_ratio": "16:9",
            "duration": "6s",
            "resolution": "720p",
            "generate_audio": False,
        },
    ),
    SEEDANCE: _Model(
        prompt_required=True,
        rules={
            "aspect_ratio": _one_of("16:9", "4:3", "1:1", "3:4", "9:16", "21:9", "9:21"),
            "duration": _integer(4, 12),
            "resolution": _one_of("480p", "720p", "1080p"),
            "camera_fixed": _boolean,
            "watermark": _boolean,
            "fps": _one_of(24),
            "generate_audio": _boolean,
            "seed": _integer(),
        },
        # The guide says "URL or base64" of `image` alone, and "any image or video URL you pass in"
        # of the rest: taken here to mean the same for all of them.
        media={
            "image": _MediaField(),
            "last_frame_image": _MediaField(),
            "reference_images": _MediaField(many=True),
            "reference_video": _MediaField(kind="video"),
        },
        defaults={
            "aspect_ratio": "16:9",
            "duration": 5,
            "resolution": "720p",
            "generate_audio": False,
        },
    ),
    HAILUO: _Model(
        prompt_required=False,
        rules={
            # The guide calls it an enum and shows only 6: what it leaves open passes here.
            "duration": _integer(1, 60),
            "resolution": _one_of("768P", "1080P"),
            "fast_pretreatment": _boolean,
            "prompt_optimizer": _boolean,
        },
        media={"first_frame_image": _MediaField()},
        defaults={"duration": 6, "resolution": "768P"},
    ),
}


def check(body: object, extra_models: tuple[str, ...] = ()) -> VideoRequest:
    """Check a decoded JSON body as the gateway does.

    :param extra_models: names of further models, which take anything.
    :raises InvalidRequest: with the message to answer.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("request body must be a JSON object")
    name = body.get("model")
    if name is None:
        raise InvalidRequest("model is required")
    if not isinstance(name, str):
        raise InvalidRequest("model must be a string")
    if name in extra_models:
        return VideoRequest(name, body)
    if name not in _MODELS:
        raise InvalidRequest(f"unknown model: {name}")
    model = _MODELS[name]
    _check_prompt(name, model, body)
    for parameter, value in body.items():
        if parameter in model.rules:
            problem = model.rules[parameter](value)
            if problem is not None:
                raise InvalidRequest(f"{parameter} {problem} for {name}")
        elif parameter not in model.media and parameter not in ("model", "prompt"):
            raise InvalidRequest(f"unknown parameter for {name}: {parameter}")
    media = {
        parameter: _check_media(parameter, media_field, body[parameter])
        for parameter, media_field in model.media.items()
        if parameter in body
    }
    return VideoRequest(name, body, media, model.defaults)


def _check_prompt(name: str, model: _Model, body: Mapping[str, Any]) -> None:
    if "prompt" not in body and not model.prompt_required:
        return
    prompt = body.get("prompt", "")
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt must be a string")
    if model.prompt_required and not prompt.strip():
        raise InvalidRequest(f"prompt is required for {name}")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(f"prompt exceeds {MAX_PROMPT_CHARACTERS} chars")


def _check_media(parameter: str, media_field: _MediaField, value: object) -> tuple[Media, ...]:
    values = value if media_field.many else [value]
    if not isinstance(values, list):
        raise InvalidRequest(f"{parameter} must be a list")
    try:
        return tuple(read_media(item, media_field.kind, urls=media_field.urls) for item in values)
    except InvalidMedia as problem:
        raise InvalidRequest(f"{parameter} {problem}") from None

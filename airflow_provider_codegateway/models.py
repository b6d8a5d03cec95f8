"""The three models: what each takes, and how a portable value becomes its own.

Every parameter, type, default and limit is from the vendor's guide to ``POST /v1/video/generate``
(published 2026-06-06). What the guide rules out is refused here, for free; what it leaves open is let
through, because a 400 of the gateway is free as well.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from airflow_provider_codegateway import media
from airflow_provider_codegateway.exceptions import InvalidRequest

log = logging.getLogger(__name__)

MAX_PROMPT_CHARACTERS = 2000
"""The cap of all three models; over it the gateway answers 400."""


@dataclass(frozen=True)
class MediaField:
    """What a model takes in one media field, besides base64, which all of them take."""

    kind: Literal["image", "video"]
    accepts_url: bool


def _image(reference: str) -> str:
    media.check_reference(reference, kind="image")
    return reference


def _video(reference: str) -> str:
    media.check_reference(reference, kind="video")
    return reference


def _not_blank(prompt: str) -> str:
    if not prompt.strip():
        raise PydanticCustomError("blank", "blank")
    return prompt


Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS)]
RequiredPrompt = Annotated[
    str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS), AfterValidator(_not_blank)
]
Image = Annotated[str, AfterValidator(_image), MediaField("image", accepts_url=True)]
InlineImage = Annotated[str, AfterValidator(_image), MediaField("image", accepts_url=False)]
Video = Annotated[str, AfterValidator(_video), MediaField("video", accepts_url=True)]


class VideoRequest(BaseModel):
    """The JSON body of one render: only what the author set, typed as the model wants it.

    A field that is ``None`` was not set and is not sent, so that the model's own default holds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image_field: ClassVar[str] = "image"
    """The field that the portable ``image`` becomes."""

    model: str

    @classmethod
    def native_duration(cls, seconds: int) -> Any:
        """Whole seconds as this model writes them."""
        return seconds

    @classmethod
    def native_resolution(cls, resolution: str) -> str:
        """A resolution such as ``1080p`` as this model writes it."""
        return resolution.lower()

    @classmethod
    def media_fields(cls) -> dict[str, MediaField]:
        """The fields of this model that hold media."""
        return {
            name: item
            for name, field in cls.model_fields.items()
            for item in _annotations(field.annotation)
            if isinstance(item, MediaField)
        }

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # Requests are local variables of whatever fails, and error trackers show those.
        return list(media.hide(self.body()).items())

    def body(self) -> dict[str, Any]:
        """What is sent, and nothing that the author did not set."""
        return self.model_dump(exclude_none=True)

    async def content(self) -> bytes:
        """The body, encoded: see ``Gateway.generate``."""
        return json.dumps(self.body(), allow_nan=False).encode()

    def with_media(self, resolve: Callable[[str, MediaField], str]) -> Self:
        """The same request with every media reference replaced by what goes over the wire.

        :param resolve: turns one reference into a URL or base64; its ``ValueError`` says what is wrong.
        :raises InvalidRequest: listing every reference that could not be resolved.
        """
        resolved: dict[str, Any] = {}
        problems: list[str] = []
        for name, field in self.media_fields().items():
            value = getattr(self, name, None)
            if value is None:
                continue
            try:
                if isinstance(value, list):
                    resolved[name] = [resolve(reference, field) for reference in value]
                else:
                    resolved[name] = resolve(value, field)
            except ValueError as error:
                problems.append(f"{name} of {self.model}: {error}.")
        if problems:
            raise InvalidRequest(problems)
        return self.model_copy(update=resolved)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over model, prompt, parameters and media content: one request, one clip.

        Call it on a request whose media are resolved. Bytes count by content, wherever they were read
        from; a URL that the model fetches itself counts as written.
        """
        body = self.body()
        for name in self.media_fields():
            match body.get(name):
                case str(value):
                    body[name] = media.content_digest(value)
                case list(values):
                    body[name] = [media.content_digest(value) for value in values]
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


class VeoRequest(VideoRequest):
    """Google Veo 3.1, fast variant: optional audio. A duration is a string such as ``"6s"``."""

    image_field = "image_input"

    model: Literal["google/veo-3.1-fast"]
    prompt: RequiredPrompt
    aspect_ratio: Literal["16:9", "9:16", "1:1"] | None = None
    duration: Literal["4s", "6s", "8s"] | None = None
    resolution: Literal["720p", "1080p"] | None = None
    generate_audio: bool | None = None
    image_input: InlineImage | None = None

    @classmethod
    def native_duration(cls, seconds: int) -> str:
        """Veo's duration is a string with an ``s``."""
        return f"{seconds}s"


class SeedanceRequest(VideoRequest):
    """ByteDance Seedance 2.0: the richest controls of the three. A duration is an integer."""

    model: Literal["bytedance/seedance-2.0"]
    prompt: RequiredPrompt
    aspect_ratio: Literal["16:9", "4:3", "1:1", "3:4", "9:16", "21:9", "9:21"] | None = None
    duration: Annotated[int, Field(ge=4, le=12)] | None = None
    resolution: Literal["480p", "720p", "1080p"] | None = None
    camera_fixed: bool | None = None
    watermark: bool | None = None
    fps: Annotated[int, Field(ge=24, le=24)] | None = None  # a Literal would let 24.0 through
    generate_audio: bool | None = None
    image: Image | None = None
    last_frame_image: Image | None = None
    reference_images: list[Image] | None = None
    reference_video: Video | None = None
    seed: int | None = None


class HailuoRequest(VideoRequest):
    """MiniMax Hailuo 2.3, fast variant: the prompt is optional, and there is no aspect ratio."""

    image_field = "first_frame_image"

    model: Literal["minimax/hailuo-2.3-fast"]
    prompt: Prompt | None = None
    # The guide calls it an enum and does not say of which values ("examples use 6").
    duration: Annotated[int, Field(ge=1)] | None = None
    resolution: Literal["768P", "1080P"] | None = None
    first_frame_image: Image | None = None
    fast_pretreatment: bool | None = None
    prompt_optimizer: bool | None = None

    @classmethod
    def native_resolution(cls, resolution: str) -> str:
        """Hailuo writes its resolutions with an upper-case ``P``."""
        return resolution.upper()


class UnlistedRequest(VideoRequest):
    """A model that this version does not know: passed through, for the gateway to judge."""

    model_config = ConfigDict(extra="allow")

    image: Image | None = None


MODELS: dict[str, type[VideoRequest]] = {
    "google/veo-3.1-fast": VeoRequest,
    "bytedance/seedance-2.0": SeedanceRequest,
    "minimax/hailuo-2.3-fast": HailuoRequest,
}


def build_request(
    model: str,
    *,
    prompt: str | None = None,
    image: str | None = None,
    aspect_ratio: str | None = None,
    duration: int | str | None = None,
    resolution: str | None = None,
    generate_audio: bool | str | None = None,
    seed: int | str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> VideoRequest:
    """The validated request for one render.

    The named arguments are portable: the same for every model, and turned into what the model takes.
    ``None`` and the empty string (an empty cell of a table, say) mean "not set". A templated argument
    arrives as text, so ``"6"``, ``"true"`` and ``"42"`` are understood.

    :param model: such as ``google/veo-3.1-fast``. One that is not in ``MODELS`` is passed through.
    :param duration: seconds: ``6``, ``"6"`` or ``"6s"``.
    :param resolution: such as ``"1080p"``, in either case.
    :param image: first frame: https URL, s3://, file://, base64 or data URI.
    :param parameters: further parameters, named and typed as the API has them, sent as they are.
    :raises InvalidRequest: listing every problem at once.
    """
    if not isinstance(model, str) or not model.strip():
        raise InvalidRequest(f"model={model!r} is not the name of a model: use {_one_of(MODELS)}.")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(
            f"parameters is a {type(parameters).__name__}: use a dict of parameter names and values."
        )
    request_class = MODELS.get(model, UnlistedRequest)
    if request_class is UnlistedRequest:
        _warn_unlisted(model)
        portable: dict[str, Any] = {
            "duration": duration,
            "resolution": resolution,
            "generate_audio": generate_audio,
            "seed": seed,
        }
    else:
        portable = {
            "duration": _native_duration(request_class, duration),
            "resolution": _native_resolution(request_class, resolution),
            "generate_audio": _boolean(generate_audio),
            "seed": _integer(seed),
        }
    portable |= {"prompt": prompt, "aspect_ratio": aspect_ratio, request_class.image_field: image}
    portable = {name: value for name, value in portable.items() if value is not None and value != ""}
    native = {name: value for name, value in (parameters or {}).items() if value is not None}

    problems = [_given_twice(name, request_class) for name in native if name in portable or name == "model"]
    try:
        request = request_class.model_validate({**native, **portable, "model": model})
    except ValidationError as error:
        written = {"duration": duration, "resolution": resolution}
        details = [
            detail | {"input": written.get(str(detail["loc"][0])) or detail["input"]}
            for detail in error.errors(include_url=False)
        ]
        raise InvalidRequest(
            problems + [_problem(detail, request_class, model) for detail in details]
        ) from None
    problems += _unsendable(request)
    if problems:
        raise InvalidRequest(problems)
    return request


# Portable → native. What cannot be understood stays as written, for validation to name.


def _native_duration(request_class: type[VideoRequest], duration: int | str | None) -> Any:
    if isinstance(duration, str) and (match := re.fullmatch(r"\s*([0-9]{1,6})\s*s?\s*", duration)):
        return request_class.native_duration(int(match[1]))
    if isinstance(duration, int) and not isinstance(duration, bool):
        return request_class.native_duration(duration)
    return duration


def _native_resolution(request_class: type[VideoRequest], resolution: str | None) -> Any:
    return request_class.native_resolution(resolution) if isinstance(resolution, str) else resolution


def _boolean(value: bool | str | None) -> Any:
    return (
        {"true": True, "false": False}.get(value.strip().lower(), value) if isinstance(value, str) else value
    )


def _integer(value: int | str | None) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value) else value


# Problems, in words.


def _problem(detail: ErrorDetails, request_class: type[VideoRequest], model: str) -> str:
    name = str(detail["loc"][0])
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing" | "blank":
            return f"{name} is required for {model}."
        case "extra_forbidden":
            return _no_such_parameter(name, request_class, model)
        case "string_too_long":
            length = len(cast("str", detail["input"]))
            return f"{name} has {length:,} characters; {model} takes at most {context['max_length']:,}."
        case "value_error":
            where = "".join(f"[{part}]" for part in detail["loc"][1:] if isinstance(part, int))
            return f"{name}{where} of {model}: {context['error']}."
    shown = _shown(name, detail["input"], request_class)
    return f"{name}={shown} is not for {model}: use {_would_do(detail, name, request_class)}."


def _would_do(detail: ErrorDetails, name: str, request_class: type[VideoRequest]) -> str:
    match detail["type"]:
        case "literal_error":
            return str(detail["ctx"]["expected"])
        case "greater_than_equal" | "less_than_equal" | "int_type" | "int_from_float":
            constraints = list(_annotations(request_class.model_fields[name].annotation))
            low, high = (
                next((getattr(item, bound) for item in constraints if hasattr(item, bound)), None)
                for bound in ("ge", "le")
            )
            if low is None or low == high:
                return "a whole number" if low is None else str(low)
            return f"a whole number from {low} {'up' if high is None else f'to {high}'}"
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
        return f"{model} has no parameter {name!r}: did you mean {close[0]!r}?"
    others = [other for other, fields in MODELS.items() if name in fields.model_fields]
    elsewhere = (
        f" (only {_one_of(others, 'and')} {'has' if len(others) == 1 else 'have'} it)" if others else ""
    )
    return f"{model} has no parameter {name!r}{elsewhere}: leave it out, or use {_one_of(own)}."


def _given_twice(name: str, request_class: type[VideoRequest]) -> str:
    argument = "image" if name == request_class.image_field else name
    return (
        f"{name!r} stands in parameters and is set by the argument {argument!r} as well: keep one of the two."
    )


def _unsendable(request: VideoRequest) -> list[str]:
    """A request for an unlisted model may hold anything; what is no JSON cannot be sent."""
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


def _shown(name: str, value: Any, request_class: type[VideoRequest]) -> str:
    if isinstance(value, str) and name in request_class.media_fields():
        return media.describe(value)
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:60]}… ({type(value).__name__})"


def _one_of(names: Iterable[str], word: str = "or") -> str:
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {word} {quoted[-1]}"


def _annotations(annotation: Any) -> Iterable[Any]:
    """Every annotation inside a type such as ``list[Annotated[str, MediaField(…)]] | None``."""
    for item in getattr(annotation, "__metadata__", ()):
        yield item
        yield from getattr(item, "metadata", ())  # pydantic's Field keeps its constraints there
    for argument in getattr(annotation, "__args__", ()):
        yield from _annotations(argument)

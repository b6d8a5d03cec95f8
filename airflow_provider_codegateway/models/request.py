"""A request: the JSON body of one render, and what every model's request has in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict

from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.inputs import content_digest, describe, hide, show


@dataclass(frozen=True)
class MediaField:
    """What a model takes in one media field, besides base64, which all of them take."""

    kind: Literal["image", "video"]
    accepts_url: bool


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
            for item in annotations_of(field.annotation)
            if isinstance(item, MediaField)
        }

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # Requests are local variables of whatever fails, and error trackers show those.
        return list(hide(self.body()).items())

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
        canonical = json.dumps(
            self._with_media_as(content_digest), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    def shown(self) -> dict[str, Any]:
        """The body for people and records: media by their digest, and no query of a URL.

        Call it on a request whose media are resolved.
        """
        media = self.media_fields()
        return {
            name: value if name in media else show(hide(value))
            for name, value in self._with_media_as(_shown_media).items()
        }

    def _with_media_as(self, change: Callable[[str], str]) -> dict[str, Any]:
        body = self.body()
        for name in self.media_fields():
            match body.get(name):
                case str(value):
                    body[name] = change(value)
                case list(values):
                    body[name] = [change(value) for value in values]
        return body


def _shown_media(value: str) -> str:
    digest = content_digest(value)
    return digest if digest.startswith("sha256:") else describe(digest)


def annotations_of(annotation: Any) -> Iterable[Any]:
    """Every annotation inside a type such as ``list[Annotated[str, MediaField(…)]] | None``."""
    for item in getattr(annotation, "__metadata__", ()):
        yield item
        yield from getattr(item, "metadata", ())  # pydantic's Field keeps its constraints there
    for argument in getattr(annotation, "__args__", ()):
        yield from annotations_of(argument)

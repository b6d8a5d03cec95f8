"""The three models: what each takes.

Every parameter, type, default and limit is from the vendor's guide to ``POST /v1/video/generate``
(published 2026-06-06). What the guide rules out is refused here, for free; what it leaves open is let
through, because a 400 of the gateway is free as well.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from airflow_provider_codegateway.inputs import check_reference
from airflow_provider_codegateway.models.request import MediaField, VideoRequest

MAX_PROMPT_CHARACTERS = 2000
"""The cap of all three models; over it the gateway answers 400."""


def _image(reference: str) -> str:
    check_reference(reference, kind="image")
    return reference


def _video(reference: str) -> str:
    check_reference(reference, kind="video")
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

"""What was asked for, held against what came: pure.

The vendor's guide names aspect ratios, resolutions and seconds, and no sizes in pixels. So a resolution is met by a
short side of as many lines, or by as many pixels as 16:9 has with them: providers do either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_codegateway.clip import Facts
from airflow_provider_codegateway.limits import LIMITS, Limits

_DOCUMENTED: dict[str, dict[str, Any]] = {
    "google/veo-3.1-fast": {"aspect_ratio": "16:9", "duration": "6s", "resolution": "720p"},
    "bytedance/seedance-2.0": {"aspect_ratio": "16:9", "duration": 5, "resolution": "720p"},
    "minimax/hailuo-2.3-fast": {"resolution": "768P"},
}
"""The guide's defaults, for what a request leaves open. Sound that nobody asked for is no fault."""

_FIRST_FRAMES = ("image", "image_input", "first_frame_image")
_SHOWN_RATIOS = ((16, 9), (4, 3), (1, 1), (3, 4), (9, 16), (21, 9), (9, 21))


def wanted_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a clip's facts can be held against, in plain values: part of a trigger's arguments.

    :param body: the JSON body of the request.
    """
    names = ("aspect_ratio", "duration", "resolution", "generate_audio")
    asked = {name: body[name] for name in names if body.get(name) is not None}
    documented = dict(_DOCUMENTED.get(str(body.get("model")), {}))
    if any(body.get(name) for name in _FIRST_FRAMES):
        documented.pop("aspect_ratio", None)  # a model may follow the picture
    return {**documented, **asked}


def differences(facts: Facts, wanted: Mapping[str, Any], limits: Limits = LIMITS) -> tuple[str, ...]:
    """How a clip differs from what was asked for: one short sentence each; none, if it does not."""
    size = f"{facts.width}x{facts.height}"
    found = []
    ratio = _ratio(wanted.get("aspect_ratio"))
    if ratio and not _is_near(facts.width / facts.height, ratio, limits.aspect_tolerance):
        found.append(f"It is {_shown_ratio(facts)} ({size}), not {wanted['aspect_ratio']}.")
    if lines := _number(wanted.get("resolution"), r"(\d+)p"):
        short = min(facts.width, facts.height)
        as_many_pixels = math.sqrt(facts.width * facts.height * 9 / 16)
        if not any(_is_near(each, lines, limits.resolution_tolerance) for each in (short, as_many_pixels)):
            found.append(f"It has {short} lines ({size}), not {lines:.0f}.")
    seconds = _number(wanted.get("duration"), r"(\d+(?:\.\d+)?)s?")
    if seconds and facts.duration and abs(facts.duration - seconds) > limits.duration_tolerance:
        found.append(f"It lasts {facts.duration:g} s, not {seconds:g} s.")
    if wanted.get("generate_audio") is True and not facts.audio:
        found.append("It has no sound, and generate_audio is on.")
    if wanted.get("generate_audio") is False and facts.audio:
        found.append("It has sound, and generate_audio is off.")
    return tuple(found)


def _is_near(value: float, wanted: float, tolerance: float) -> bool:
    return abs(value / wanted - 1) <= tolerance


def _ratio(value: object) -> float | None:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", str(value), re.ASCII)
    return int(match[1]) / int(match[2]) if match and int(match[1]) and int(match[2]) else None


def _number(value: object, pattern: str) -> float | None:
    match = re.fullmatch(pattern, str(value).strip().lower(), re.ASCII)
    return float(match[1]) or None if match and len(match[1]) < 9 else None


def _shown_ratio(facts: Facts) -> str:
    ratio = facts.width / facts.height
    across, down = min(_SHOWN_RATIOS, key=lambda each: abs(math.log(ratio * each[1] / each[0])))
    is_near = _is_near(ratio, across / down, 0.03)
    return f"{across}:{down}" if is_near else f"{ratio:.2f}:1"

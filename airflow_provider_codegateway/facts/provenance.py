"""Where a clip comes from, as a JSON document to be kept beside it: pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_codegateway import __version__
from airflow_provider_codegateway.clip import Clip

_OF_THE_CLIP = (
    *("uri", "bytes", "sha256", "model", "fingerprint", "facts", "mismatches", "cost", "renders_bought"),
    *("render_seconds", "poster", "last_frame"),
)


def provenance(
    clip: Clip, *, request: Mapping[str, Any] | None, asked_by: Mapping[str, Any], bears_c2pa: bool | None
) -> dict[str, Any]:
    """What is known of a clip.

    :param request: the body that was sent, media by digest.
    :param asked_by: the task instance that asked for the clip.
    :param bears_c2pa: whether the file bears a C2PA manifest; None if that cannot be told.
    """
    values = clip.as_dict()
    return {
        **{name: values[name] for name in _OF_THE_CLIP},
        "request": None if request is None else dict(request),
        "created": None if clip.created is None else _time(clip.created),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "c2pa": bears_c2pa,
        "asked_by": dict(asked_by),
        "made_with": f"airflow-provider-codegateway {__version__}",
    }


def _time(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None

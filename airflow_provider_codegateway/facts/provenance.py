"""Where a clip comes from, as a JSON document to be kept beside it: pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_codegateway import __version__
from airflow_provider_codegateway.clip import Clip


def provenance(
    clip: Clip,
    *,
    request: Mapping[str, Any] | None,
    asked_by: Mapping[str, Any],
    bears_c2pa: bool | None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """What is known of a clip.

    :param request: the body that was sent, media by digest.
    :param asked_by: the task instance that asked for the clip.
    :param bears_c2pa: whether the file bears a C2PA manifest; None if that cannot be told.
    """
    created = None if clip.created is None else _time(clip.created)
    return {
        "uri": clip.uri,
        "bytes": clip.bytes,
        "sha256": clip.sha256,
        "model": clip.model,
        "request": None if request is None else dict(request),
        "fingerprint": clip.fingerprint,
        "facts": None if clip.facts is None else dict(clip.facts),
        "mismatches": list(clip.mismatches),
        "cost": None if clip.cost is None else dict(clip.cost),
        "renders_bought": clip.renders_bought,
        "created": created,
        "render_seconds": clip.render_seconds,
        "written": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        "c2pa": bears_c2pa,
        "poster": clip.poster,
        "last_frame": clip.last_frame,
        "asked_by": dict(asked_by),
        "made_with": f"airflow-provider-codegateway {__version__}",
    }


def _time(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None

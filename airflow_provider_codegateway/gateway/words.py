"""What somebody answered, in words that may be shown."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from airflow_provider_codegateway.foreign import safe_text
from airflow_provider_codegateway.redaction import redact_urls


def words_of(answer: bytes, api_key: str = "") -> str:
    """What the gateway said, in one short line with nothing secret in it.

    The video endpoint's error is a plain string, elsewhere it is an object, and a proxy answers HTML.
    """
    keys = {api_key, quote(api_key, safe="")} - {""}
    for key in keys:
        answer = answer.replace(key.encode(), b"***")  # before any cut, which could leave a part of it
    try:
        content: Any = json.loads(answer)
    except (ValueError, RecursionError):
        text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<[^<>]*>", " ", safe_text(answer.strip()))
    else:
        error = content.get("error", content) if isinstance(content, dict) else content
        if isinstance(error, dict):
            parts = [error.get("type"), error.get("message")]
            text = ": ".join(safe_text(part) for part in parts if part) or _as_json(error)
        else:
            text = error if isinstance(error, str) else _as_json(error)
    text = safe_text(text)
    for key in keys:
        text = text.replace(key, "***")
    text = " ".join(redact_urls(text).split()).rstrip(".")
    text = re.sub(r"\?\S+", "?…", text)  # the query of a link without a scheme
    text = re.sub(r"[A-Za-z0-9+/_=-]{80,}", "…", text)  # an echoed image
    return (f"{text[:300]}…" if len(text) > 300 else text) or "(an empty body)"


def _as_json(value: object) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return f"<{type(value).__name__}>"

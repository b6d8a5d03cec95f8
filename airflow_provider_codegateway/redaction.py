"""What may be shown of a URL, and of a text with URLs in it.

The query of a presigned URL is a password: no log line and no message may hold it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from airflow_provider_codegateway.foreign import LONGEST_TEXT, safe_text

# A match may begin within a word, as a scheme may follow one: and no more than 32 characters before "://" are looked
# at, so that a long text takes time in proportion to its length.
_URL = re.compile(r"[a-z][a-z0-9+.-]{0,31}://[^\s\"'<>?]+(?:\?[^\s\"<>]*)?", re.IGNORECASE)
_SECRETS = (
    # Of signatures, in a query, a header or JSON.
    re.compile(
        r"\b(x-(?:amz|goog|oss|ms)-[a-z0-9-]{1,40}|(?:aws|google|oss)access(?:key)?id|signature|sig|key-pair-id)"
        r"[\"']?\s{0,3}[=:]\s{0,3}[\"']?[^\s&;,\"'<>]{6,}",
        re.IGNORECASE,
    ),
    # Words of everyday, in a query alone.
    re.compile(
        r"\b(policy|(?:access|security|session)[_-]?token|token|api[_-]?key|password|secret)=[^\s&;,\"'<>]{6,}",
        re.IGNORECASE,
    ),
)
"""What is secret without the URL around it. Shorter values are words."""


def redact_url(url: object) -> str:
    """Return scheme, host, port and path of a URL: no user name, no password, no query, no fragment.

    :param url: a ``str`` or an ``httpx.URL``, well-formed or not.
    """
    try:
        parts = urlsplit(str(url)[:LONGEST_TEXT])
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a malformed URL"
    host = f"[{host}]" if ":" in host else host
    path = re.sub(r";.*", ";…", parts.path)  # such as ";jsessionid=…"
    return safe_text(f"{parts.scheme}://{host}{port}{path}")


def redact_urls(text: str) -> str:
    """Return a text, made safe and bounded, with every URL in it cut down by :func:`redact_url`.

    Parameters of a signature are hidden wherever they stand.
    """
    text = _URL.sub(_redact_match, safe_text(text))
    for secret in _SECRETS:
        text = secret.sub(r"\1=…", text)
    return text


def _redact_match(match: re.Match[str]) -> str:
    return redact_url(match[0]) + ("'" if match[0].endswith("'") else "")

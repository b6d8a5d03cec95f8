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
_SECRET = re.compile(
    r"\b(x-(?:amz|goog|oss|ms)-[a-z0-9-]{1,40}|(?:aws|google|oss)access(?:key)?id|signature|sig|policy|key-pair-id"
    r"|(?:access|security|session)[_-]?token|token|api[_-]?key|password|secret)=[^\s&;,\"'<>]+",
    re.IGNORECASE,
)
"""A parameter that is a secret, or belongs to a signature, without the URL around it."""


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
    return _SECRET.sub(r"\1=…", _URL.sub(lambda match: redact_url(match[0]), safe_text(text)))

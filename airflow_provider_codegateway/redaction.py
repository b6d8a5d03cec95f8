"""What may be shown of a URL, and of a text with URLs in it.

The query of a presigned URL is a password: no log line and no message may hold it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)


def redact_url(url: object) -> str:
    """Return scheme, host, port and path of a URL: no user name, no password, no query, no fragment.

    :param url: a ``str`` or an ``httpx.URL``, well-formed or not.
    """
    try:
        parts = urlsplit(str(url))
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a malformed URL"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{port}{parts.path}"


def redact_urls(text: str) -> str:
    """Return a text with every URL in it cut down by :func:`redact_url`."""
    return _URL.sub(lambda match: redact_url(match[0]), text)

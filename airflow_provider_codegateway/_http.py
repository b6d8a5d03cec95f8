"""What every HTTP client of this package shares: addresses without their secrets.

The query of a presigned URL is a password: no log line and no message may hold it.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)
# A logger's filters do not see the records of its children, so each of httpcore's is named.
_LOGGERS = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
)
_unlogged: ContextVar[bool] = ContextVar("codegateway_unlogged_requests", default=False)


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


@contextmanager
def unlogged_requests() -> Iterator[None]:
    """Silence httpx and httpcore for the requests made inside, in this thread or asyncio task only.

    httpx logs each request's whole URL at INFO, and httpcore each answer's headers at DEBUG.
    """
    token = _unlogged.set(True)
    try:
        yield
    finally:
        _unlogged.reset(token)


class _Unlogged(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _unlogged.get()


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_Unlogged())

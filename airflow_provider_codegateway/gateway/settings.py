"""Where the gateway is, and how long to wait for it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from airflow_provider_codegateway.exceptions import InvalidConnection

log = logging.getLogger(__name__)

DEFAULT_BASE_URL = "https://api.codegateway.dev"

GENERATE_PATH = "/v1/video/generate"

DEADLINE_FLOOR = 180.0
"""Seconds. The guide calls a read timeout of 180 s "a sensible floor": a render takes about two minutes."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Where the gateway is, and how long to wait for it.

    :param base_url: such as ``https://api.codegateway.dev``.
    :param api_key: sent as a bearer token; keys start with ``sk-cg-``.
    :param deadline: seconds for one whole POST. A render takes about 120 s.
    :param read_timeout: seconds of silence on the connection after which the answer is given up.
    :param connect_timeout: seconds to establish a connection.
    :param retries: how often one call repeats what provably bought nothing.
    """

    base_url: str = DEFAULT_BASE_URL
    api_key: str = field(repr=False)
    deadline: float = 300.0
    read_timeout: float = 300.0
    connect_timeout: float = 10.0
    retries: int = 3

    @property
    def render_time(self) -> float:
        """Seconds that a render must have left of the deadline to be worth sending."""
        return min(DEADLINE_FLOOR, 0.6 * self.deadline)

    @property
    def secure(self) -> bool:
        """Whether the gateway is reached by https; a clip's link may then not be less."""
        return self.base_url.lower().startswith("https://")


def checked_settings(
    *, api_key: str | None, base_url: str | None, where: str, **timeouts: float | int
) -> GatewaySettings:
    """Settings from what a person typed into a connection.

    :param where: how to name the connection in an error.
    :raises InvalidConnection: naming the field; the key itself is never shown.
    """
    # A trailing space in a pasted key is a common fault (the vendor's error guide).
    key = (api_key or "").strip()
    if not key:
        raise InvalidConnection(f"{where} has no API key: put it into the password field.")
    if not re.fullmatch(r"[!-~]+", key):
        raise InvalidConnection(
            f"The API key of {where} has white space or unprintable characters inside: paste it again."
        )
    if not key.startswith("sk-cg-"):
        log.warning("The API key of %s does not start with sk-cg-, as CodeGateway's keys do.", where)
    url = (base_url or "").strip() or DEFAULT_BASE_URL
    if "://" not in url:
        url = f"https://{url}"
    if not _is_base_url(url):
        raise InvalidConnection(
            f"The base URL of {where} is not usable: use a URL such as {DEFAULT_BASE_URL}, without a query."
        )
    url = url.rstrip("/")
    return GatewaySettings(api_key=key, base_url=url, **timeouts)  # type: ignore[arg-type]


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        return False
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and plain

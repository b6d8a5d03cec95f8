"""What an exchange with the gateway was: a receipt, or which error. Plain functions.

The rule: only what *provably* bought nothing may be sent again. Unlisted means unknown.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    GatewayUnavailable,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.gateway.settings import GatewaySettings
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.redaction import redact_urls

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds: a day. What asks for more is mistaken."""

REJECTED = frozenset({400, 401, 403, 404, 413, 422})
"""The same request will be refused again. This try bought nothing."""

UNAVAILABLE = frozenset({429, 503})
"""No render was started. This try bought nothing."""

NEVER_SENT: tuple[type[httpx.TransportError], ...] = (
    httpx.ConnectError,  # TLS handshakes included: httpcore maps their failures to it
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,  # raised when the proxy refuses the tunnel, before the request
    httpx.UnsupportedProtocol,
)
"""Errors that httpx raises before a byte of the request has left. This try bought nothing."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The gateway's answer to one paid render.

    :param url: where the clip is, for a while. A secret: whoever has it has the clip.
    :param expires_at: Unix seconds until which the link is good, if it expires.
    :param created: Unix seconds at which the gateway produced the clip.
    :param render_seconds: how long the POST took, in seconds.
    """

    url: str = field(repr=False)
    model: str
    render_seconds: float
    created: float | None = None
    serving: str | None = None
    expires_at: float | None = None


def retry_delay(
    attempt: int,
    retry_after: float | None,
    left: float,
    settings: GatewaySettings,
    limits: Limits = LIMITS,
) -> float | None:
    """Seconds to wait after the failed attempt number ``attempt``, or None if the call should give up.

    The vendor asks for exponential backoff; ``Retry-After`` is honoured. One deadline holds for the whole
    call, retries included, so that others know until when a render may be under way: a retry that would
    not leave a render its time is not made, and Airflow's own retries, which hold no worker slot, take over.

    :param left: seconds until the deadline of the call.
    """
    if attempt > settings.retries:
        return None
    backoff = min(2.0**attempt, limits.longest_backoff) * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing
    delay = backoff if retry_after is None else retry_after + random.uniform(0, 1)  # noqa: S311
    return delay if delay <= limits.longest_backoff and left - delay >= settings.render_time else None


def classify_error(error: Exception) -> CodeGatewayError:
    """The class of an exchange that ended without an answer."""
    why = str(root_cause(error)) or str(error)
    reason = f"{type(error).__name__}: {redact_urls(why)}" if why else type(error).__name__
    if isinstance(error, NEVER_SENT):
        return GatewayUnavailable(f"The gateway could not be reached ({reason}).")
    return RenderOutcomeUnknown(f"The request was sent and no whole answer came back ({reason}).")


def root_cause(error: BaseException) -> BaseException:
    """What lies below httpx's "All connection attempts failed"."""
    below = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None
    below = below or error.__cause__ or error.__context__
    # A handshake that waits for bytes is no failure of its own.
    return error if below is None or isinstance(below, ssl.SSLWantReadError) else root_cause(below)


def classify_answer(
    status: int,
    headers: Mapping[str, str],
    answer: bytes,
    *,
    settings: GatewaySettings,
    render_seconds: float,
) -> Receipt:
    """The receipt in an answer of the gateway, or the error that the answer is.

    :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see the table in ``exceptions``.
    """
    if 200 <= status < 300:
        return _receipt(answer, settings, render_seconds)
    said = f"The gateway answered {status}: {words_of(answer, settings.api_key)}."
    if status in REJECTED:
        raise RequestRejected(f"{said}{_ADVICE.get(status, '')}", status=status)
    if status in UNAVAILABLE:
        retry_after = _retry_after(headers.get("retry-after"))
        own_status = status if _is_own(answer) else 0
        raise GatewayUnavailable(said, retry_after=retry_after, status=own_status)
    raise RenderOutcomeUnknown(said)


def _is_own(answer: bytes) -> bool:
    """Whether an error is in CodeGateway's envelope, and not the words of a proxy."""
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("error"), str | dict)


_ADVICE = {
    401: " Check the API key in the connection's password: keys start with sk-cg- and are managed in your "
    "CodeGateway account.",
    403: " Check the balance and the state of your CodeGateway account.",
    404: " Check the connection's base URL: it ends before /v1.",
    413: " Send a smaller image or video, or pass an https URL where the model takes one.",
}


def _receipt(answer: bytes, settings: GatewaySettings, render_seconds: float) -> Receipt:
    try:
        content = json.loads(answer)  # leading white space, sent to keep a connection alive, is no matter
        url = content["data"][0]["url"]
        usable = _usable_url(url, settings)
    except (ValueError, LookupError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise RenderOutcomeUnknown(
            f"The gateway answered 200 without a usable clip URL: {words_of(answer, settings.api_key)}.",
            bought=Bought.YES,
        )
    return Receipt(
        url=url,
        model=str(content.get("model", "")),
        created=_number(content.get("created")),
        serving=content["serving"] if isinstance(content.get("serving"), str) else None,
        expires_at=_number(content.get("expires_at")),
        render_seconds=render_seconds,
    )


def _usable_url(url: object, settings: GatewaySettings) -> bool:
    if not isinstance(url, str):
        return False
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    # A clip's link may be no less secure than the gateway's own.
    return bool(parsed.host) and (
        parsed.scheme == "https" or (parsed.scheme == "http" and not settings.secure)
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _retry_after(value: str | None) -> float | None:
    """``Retry-After`` is seconds or an HTTP date (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(seconds) else None


def words_of(answer: bytes, api_key: str) -> str:
    """What the gateway said, in one short line with nothing secret in it.

    The video endpoint's error is a plain string, elsewhere it is an object, and a proxy answers HTML.
    """
    text = answer.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text)
    else:
        error = content.get("error", content) if isinstance(content, dict) else content
        if isinstance(error, dict):
            parts = [error.get("type"), error.get("message")]
            text = ": ".join(str(part) for part in parts if part) or json.dumps(error)
        else:
            text = error if isinstance(error, str) else json.dumps(error)
    text = " ".join(redact_urls(text).replace(api_key, "***").split()).rstrip(".")
    text = re.sub(r"\?\S+", "?…", text)  # the query of a link without a scheme
    text = re.sub(r"[A-Za-z0-9+/_=-]{80,}", "…", text)  # an echoed image
    return (f"{text[:300]}…" if len(text) > 300 else text) or "(an empty body)"

"""What an exchange with the gateway was: an answer, or which error. Plain functions.

The rule: only what *provably* bought nothing may be sent again. Proof is one of three things: CodeGateway's own error
envelope under a status of the tables below, a body that was not sent whole, or a connection that never stood. Whoever
stands between may answer in the gateway's place, after it has passed the request on. Unlisted means unknown.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpcore
import httpx

from airflow_provider_codegateway.exceptions import (
    CodeGatewayError,
    ContentRefused,
    GatewayUnavailable,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.foreign import LONGEST_TEXT, safe_text
from airflow_provider_codegateway.gateway.answers import names_a_clip
from airflow_provider_codegateway.gateway.settings import GENERATE_PATH, GatewaySettings
from airflow_provider_codegateway.gateway.words import words_of
from airflow_provider_codegateway.http_dates import retry_after
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.net import network_advice, network_reason, root_cause
from airflow_provider_codegateway.redaction import redact_url

REDIRECTED = frozenset(
    {
        301,  # Moved Permanently: the resource is elsewhere (RFC 9110, 15.4.2)
        307,  # Temporary Redirect: the same method is to be sent elsewhere, so it was not carried out here (15.4.8)
        308,  # Permanent Redirect: the same (15.4.9)
        # Not 302 and 303: they are also the answer to a POST that was carried out (15.4.3, 15.4.4).
        # Not 300, 304, 305 and 306: none of them answers a POST (15.4.1, 15.4.5 to 15.4.7).
    }
)

REJECTED = (
    REDIRECTED
    | frozenset(
        {
            400,  # Bad Request: "cannot or will not process the request" (RFC 9110, 15.5.1)
            401,  # Unauthorized: "has not been applied because it lacks valid authentication credentials" (15.5.2)
            402,  # Payment Required: reserved, and in use for "pay first" (15.5.3)
            403,  # Forbidden: "understood the request but refuses to fulfill it" (15.5.4)
            404,  # Not Found: there is nothing at this path that could render (15.5.5)
            405,  # Method Not Allowed: known and "not supported by the target resource" (15.5.6)
            406,  # Not Acceptable: we accept everything, so a filter refused, before anything was made (15.5.7)
            407,  # Proxy Authentication Required: the proxy passed nothing on (15.5.8)
            411,  # Length Required: "refuses to accept the request without a defined Content-Length" (15.5.12)
            413,  # Content Too Large: "refusing to process a request" (15.5.14)
            414,  # URI Too Long: "refusing to service the request" (15.5.15)
            415,  # Unsupported Media Type: "refusing to service the request" (15.5.16)
            416,  # Range Not Satisfiable: the request is refused for a header (15.5.17)
            417,  # Expectation Failed: the same (15.5.18)
            421,  # Misdirected Request: this server does not answer for the host (15.5.20)
            422,  # Unprocessable Content: "unable to process the contained instructions" (15.5.21)
            426,  # Upgrade Required: "refuses to perform the request using the current protocol" (15.5.22)
            428,  # Precondition Required: the request must be conditional first (RFC 6585, 3)
            431,  # Request Header Fields Too Large: "unwilling to process the request" (RFC 6585, 5)
            451,  # Unavailable For Legal Reasons: access is denied (RFC 7725, 3)
            511,  # Network Authentication Required: from the network on the way, never from the server (RFC 6585, 6)
            # Not 408: a proxy sends it for a connection that was quiet for long, and a render is quiet.
            # Not 409, 410, 412, 418, 423 to 425: nobody has documented them here, and unlisted means unknown.
        }
    )
)
"""The same request will be refused again, whoever refuses it. Nothing was bought.

But for one case: a page of somebody else that comes as late as an answer may have taken the place of one."""

UNAVAILABLE = frozenset(
    {
        429,  # Too Many Requests (RFC 6585, 4): the vendor documents it
        503,  # Service Unavailable (RFC 9110, 15.6.4): the same
    }
)
"""Nothing was begun, if CodeGateway itself says so, and a 503 is not so late that a render may have failed. From others
it proves nothing: Envoy and Heroku answer 503 for a request that they have passed on, and a rate limit may be one of
answers."""

NEVER_SENT: tuple[type[Exception], ...] = (
    httpcore.ConnectError,  # TLS handshakes included
    httpcore.ConnectTimeout,
    httpcore.PoolTimeout,
    httpcore.ProxyError,  # raised when the proxy refuses the tunnel, before the request
    httpcore.UnsupportedProtocol,
)
"""Errors that httpcore raises before a byte of the request has left. Nothing was bought."""


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


def classify_error(error: Exception, *, is_sent: bool = True) -> CodeGatewayError:
    """The class of an exchange that ended without an answer.

    :param is_sent: whether the last byte of the body was handed to the network. A render needs all of them.
    """
    reason = network_reason(error, root_cause(error))
    if isinstance(error, NEVER_SENT):
        return GatewayUnavailable(f"The gateway could not be reached ({reason}).{network_advice(error)}")
    if not is_sent:
        return GatewayUnavailable(f"The connection broke before the request was sent whole ({reason}).")
    return RenderOutcomeUnknown(f"The request was sent and no whole answer came back ({reason}).")


def classify_silence(settings: GatewaySettings, *, is_sent: bool) -> CodeGatewayError:
    """The class of an exchange that the deadline ended."""
    if not is_sent:
        return GatewayUnavailable(
            f"The request was not sent whole within the deadline of {settings.deadline:g} s."
        )
    return RenderOutcomeUnknown(
        f"The gateway gave no whole answer within the deadline of {settings.deadline:g} s."
    )


def classify_refusal(
    status: int,
    headers: Mapping[str, str],
    answer: bytes,
    *,
    settings: GatewaySettings,
    seconds: float | None = 0.0,
    limits: Limits = LIMITS,
) -> CodeGatewayError:
    """The error that an answer is whose status is not 2xx, or that came before the request was sent whole.

    :param seconds: from the end of the request to the beginning of the answer; None if it was not sent whole.
    """
    own = own_error(answer)
    who = "The gateway" if own is not None else "The gateway, or a proxy on the way to it,"
    said = f"{who} answered {status}: {words_of(answer, settings.api_key)}."
    if own is None and seconds is not None and names_a_clip(answer):
        return RenderOutcomeUnknown(f"{said} There is a link to a clip in it.")
    is_late = seconds is not None and seconds > limits.late_refusal
    if own is None and status in REJECTED and is_late:
        return RenderOutcomeUnknown(
            f"{said} It came {seconds:.0f} s after the request, so a filter may have sent it instead of the gateway's "
            "answer."
        )
    if status in REDIRECTED:
        return RequestRejected(f"{said} {_where_to(headers, settings)}", status=status)
    if status in REJECTED:
        if own is not None and own.kind in _CONTENT_REFUSALS:
            return ContentRefused(f"{said} Change the prompt or the input media.", status=status)
        advice = _ADVICE if own is not None else _FOREIGN_ADVICE
        return RequestRejected(f"{said}{advice.get(status, '')}", status=status)
    wait = retry_after(headers.get("retry-after"))
    is_begun = status == 503 and (is_late or (own is not None and own.is_of_a_render))
    if status in UNAVAILABLE and own is not None and not (is_begun and seconds is not None):
        return GatewayUnavailable(said, retry_after=wait, status=status)
    if seconds is None:
        return GatewayUnavailable(f"{said} The request had not been sent whole.", retry_after=wait)
    return RenderOutcomeUnknown(said)


@dataclass(frozen=True)
class OwnError:
    """CodeGateway's error envelope: ``{"error": "…"}``, or ``{"error": {"type": "…", "message": "…"}}``."""

    message: str
    kind: str = ""

    @property
    def is_of_a_render(self) -> bool:
        """Whether it says that something took too long, or broke: that was begun."""
        said = f"{self.kind} {self.message[:LONGEST_TEXT]}"
        return re.search(_BEGUN, said, re.IGNORECASE) is not None


def own_error(answer: bytes) -> OwnError | None:
    """The error in CodeGateway's envelope; None if somebody else wrote this."""
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.keys() != {"error"}:
        return None
    match content["error"]:
        case str(message) if message.strip():
            return OwnError(message)
        case {"type": str(kind), "message": str(message)}:
            return OwnError(message, kind.lower())
    return None


_BEGUN = (
    r"tim(e[sd]?|ing)[ _-]?out|deadline|took too long|upstream|disconnect|connection (reset|closed|terminat)"
)

_CONTENT_REFUSALS = frozenset(
    {
        "content_filter",
        "content_filtered",
        "content_policy",
        "content_policy_violation",
        "moderation_blocked",
        "safety_error",
    }
)
"""The guide documents no type for a prompt that a model's policy refuses; these are what such gateways say."""

_ADVICE = {
    401: " Check the API key in the connection's password: keys start with sk-cg- and are managed in your "
    "CodeGateway account.",
    403: " Check the balance and the state of your CodeGateway account.",
    404: " Check the connection's base URL: it ends before /v1.",
    405: " Check the connection's base URL: it ends before /v1.",
    413: " Send a smaller image or video, or pass an https URL where the model takes one.",
}

_FOREIGN_ADVICE = {
    **dict.fromkeys(
        (401, 403, 451, 511),
        " This is not CodeGateway's form of an error: let this machine's network pass POST requests to the gateway.",
    ),
    404: _ADVICE[404],
    405: _ADVICE[405],
    407: " A proxy asks for a user and a password: put them into HTTPS_PROXY or HTTP_PROXY.",
    413: _ADVICE[413],
}


def _where_to(headers: Mapping[str, str], settings: GatewaySettings) -> str:
    """Which base URL a redirect asks for."""
    location = headers.get("location", "").strip()
    is_usable = 0 < len(location) <= LONGEST_TEXT
    try:
        target = httpx.URL(settings.base_url + GENERATE_PATH).join(location) if is_usable else None
    except (httpx.InvalidURL, ValueError):
        target = None
    if target is None or not target.host:
        return "It does not say where to. Check the connection's base URL."
    shown = redact_url(target).replace(settings.api_key, "***")
    if not target.path.endswith(GENERATE_PATH):
        return f"It redirects to {shown}, which is not a CodeGateway's path. Check the connection's base URL."
    base_url = shown.removesuffix(GENERATE_PATH)
    return f"If you trust {safe_text(target.host)}, set the connection's base URL to {base_url}."


def is_whole_json(answer: bytes) -> bool:
    """Whether nothing is missing at the end."""
    try:
        json.loads(answer, parse_int=len)
    except (ValueError, RecursionError):
        return False
    return True

"""Who else answers on the way to a gateway, and in which words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Intermediary = Literal[
    "envoy", "heroku", "nginx", "cloudflare", "rate_limiter", "corporate_proxy", "captive_portal"
]


@dataclass(frozen=True)
class ForeignAnswer:
    """An answer that the gateway did not write.

    :param billed: whether the request usually reached the gateway, which went on with it.
    """

    code: int
    content_type: str
    text: str
    billed: bool


def _page(title: str, text: str) -> str:
    return (
        f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>"
        f"<body><h1>{title}</h1><p>{text}</p></body></html>\n"
    )


ANSWERS: dict[Intermediary, ForeignAnswer] = {
    "envoy": ForeignAnswer(
        503,
        "text/plain",
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        billed=True,
    ),
    "heroku": ForeignAnswer(
        503,
        "text/html; charset=utf-8",
        _page("Application error", "An error occurred in the application and your page could not be served."),
        billed=True,
    ),
    "nginx": ForeignAnswer(504, "text/html", _page("504 Gateway Time-out", "nginx"), billed=True),
    "cloudflare": ForeignAnswer(
        524,
        "text/html; charset=UTF-8",
        _page("A timeout occurred", "Error code 524. The origin web server timed out responding."),
        billed=True,
    ),
    "rate_limiter": ForeignAnswer(429, "text/plain", "local_rate_limited", billed=False),
    "corporate_proxy": ForeignAnswer(
        403,
        "text/html; charset=utf-8",
        _page("Access Denied", "This site is blocked by your organisation's policy. Contact the help desk."),
        billed=False,
    ),
    "captive_portal": ForeignAnswer(
        511,
        "text/html; charset=utf-8",
        _page("Network Authentication Required", "Sign in to this network to continue."),
        billed=False,
    ),
}

# Statuses by which whoever answers says that it did not do what was asked (RFC 9110, 6585, 7540, 7725).
REFUSALS = frozenset(
    {301, 307, 308, *range(400, 408), 411, *range(413, 418), 421, 422, 426, 428, 431, 451, 511}
)

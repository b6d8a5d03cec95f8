"""The gateway's answer to a paid render: kept as it came, read leniently, and read again by every later run.

Whatever is odd about an answer, the render is paid for. So nothing of it is made use of before it is in the ledger, and
what this version cannot read, a later one, or a person, still can.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from airflow_provider_codegateway.exceptions import Bought, RenderOutcomeUnknown
from airflow_provider_codegateway.foreign import finite, safe_text
from airflow_provider_codegateway.gateway.words import words_of
from airflow_provider_codegateway.limits import MIB

LONGEST_LINK = 8192
"""Characters. A presigned link has about 1,500."""

_LONGEST_LIFE = 366 * 86_400.0
"""Seconds from the answer to ``expires_at``. S3's links live for a week at most; what is later is another unit."""

_LATEST = 253_402_300_799.0
"""Unix seconds: the end of the year 9999."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A success of the gateway, as it came.

    :param body: all bytes, at most a MiB. Secret: there is a link in it.
    :param render_seconds: how long the POST took.
    :param received_at: Unix seconds.
    :param is_secure: whether the gateway was reached by https.
    :param base_url: of the gateway: a link may be relative to it.
    """

    status: int = 200
    body: bytes = field(repr=False)
    render_seconds: float
    received_at: float | None = None
    is_secure: bool = False
    base_url: str = ""

    @property
    def text(self) -> str:
        """The body as text, decoded and bounded."""
        return _text_of(self.body)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the ledger."""
        try:
            body = {"text": self.body.decode()}
        except UnicodeDecodeError:
            body = {"base64": base64.b64encode(self.body).decode()}
        return {
            "status": self.status,
            **body,
            "render_seconds": self.render_seconds,
            "received_at": self.received_at,
            "is_secure": self.is_secure,
            "base_url": self.base_url,
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``. A later version may have added fields.

        :raises ValueError: it is not an answer.
        """
        try:
            body = binascii.a2b_base64(kept["base64"]) if "base64" in kept else kept["text"].encode()
            return cls(
                status=int(kept.get("status", 200)),
                body=body,
                render_seconds=finite(kept.get("render_seconds")) or 0.0,
                received_at=finite(kept.get("received_at")),
                is_secure=kept.get("is_secure") is True,
                base_url=str(kept.get("base_url") or ""),
            )
        except (KeyError, TypeError, AttributeError, OverflowError):
            raise ValueError("it has no answer") from None

    @classmethod
    def of_receipt(cls, receipt: Mapping[str, Any]) -> Self:
        """What the first versions kept: not the answer, but what they had read in it.

        :raises ValueError: it is not a receipt.
        """
        if not isinstance(receipt, Mapping) or not isinstance(receipt.get("url"), str):
            raise ValueError("it has no answer")
        named = {name: receipt.get(name) for name in ("created", "model", "serving", "expires_at")}
        body = json.dumps({**named, "data": [{"url": receipt["url"]}]}).encode()
        return cls(body=body, render_seconds=finite(receipt.get("render_seconds")) or 0.0)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What an answer says of its clip.

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


def read_receipt(answer: Answer) -> Receipt:
    """What an answer says of its clip. Where it is odd, as much as can be understood.

    :raises RenderOutcomeUnknown: it has no link that can be used. One render was bought.
    """
    text = answer.text
    content = _first_object(text)
    base_url = answer.base_url or ("https:" if answer.is_secure else "http:")
    url = next(filter(None, (_usable(each, base_url) for each in _links_in(text))), None)
    if url is None:
        # Of what this failed on, nothing is to be shown by whoever reports local variables.
        del text, content
        raise _unusable(answer)
    return Receipt(
        url=url,
        model=safe_text(content.get("model") or "", 200),
        created=_timestamp(content.get("created")),
        serving=safe_text(content["serving"], 200) if isinstance(content.get("serving"), str) else None,
        expires_at=_expiry(
            content.get("expires_at"), answer.received_at or _timestamp(content.get("created"))
        ),
        render_seconds=answer.render_seconds,
    )


def names_a_clip(body: bytes) -> bool:
    """Whether an answer is whole, and has a link where the guide has it: what says that a render is under way may be
    whole as well, and have a link of another kind.
    """
    text = _text_of(body)
    try:
        content = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and any(_usable(each, "https:") for each in _links_of_data(content))


def link_over_https(url: str) -> str:
    """The same link, less its explicit port 80, over https."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(scheme="https", port=None if parsed.port == 80 else parsed.port))


def _unusable(answer: Answer) -> RenderOutcomeUnknown:
    said = words_of(answer.text.encode("utf-8", "replace"))
    # A login page is as likely to be of somebody who let nothing through.
    bought = Bought.PERHAPS if _PAGE.match(answer.text) else Bought.YES
    return RenderOutcomeUnknown(
        f"The gateway answered {answer.status} without a usable clip URL: {said}.", bought=bought
    )


_PAGE = re.compile(r"\s{0,999}<(?:!doctype html|html|head|body)\b", re.IGNORECASE)


# Text.


def _text_of(body: bytes) -> str:
    """At most a MiB of text, in whatever encoding and coding it came; compressed once or twice, too."""
    for _ in range(2):
        body = _unpacked(body)
    return body.decode(json.detect_encoding(body), "replace").lstrip("\ufeff")


def _unpacked(body: bytes) -> bytes:
    """What gzip or deflate packed, if that is what it is."""
    if body.lstrip()[:1] in (b"{", b"[", b""):
        return body
    for form in (31, zlib.MAX_WBITS, -zlib.MAX_WBITS):  # gzip, and deflate with and without the head of zlib
        try:
            unpacked = zlib.decompressobj(wbits=form).decompress(body, MIB)
        except zlib.error:
            continue
        if form == 31 or unpacked.lstrip().startswith((b"{", b"[")):
            return unpacked
    return body


def _first_object(text: str) -> dict[str, Any]:
    """The JSON object that a text begins with; empty if there is none."""
    content = _decoded(text.lstrip())
    return content if isinstance(content, dict) else {}


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= 32 else None


# The link.


def _links_in(text: str) -> Iterator[object]:
    """What may be the link: where the guide has it, or close by."""
    for content in _contents(text):
        yield from _links_of_data(content)
        if "error" not in content and "status" not in content:
            yield content.get("url")
    # An answer that is cut off, or is not JSON for another reason.
    for match in _LINK.finditer(text):
        with suppress(ValueError):
            yield json.loads(match[1], strict=False)


def _links_of_data(content: Mapping[str, Any]) -> Iterator[object]:
    data = content.get("data")
    items = data if isinstance(data, list) else [data]
    for each in sorted(items, key=_is_picture):
        if isinstance(each, dict):
            each = {name.lower(): value for name, value in each.items()}
            video = each.get("video")
            yield each.get("url")
            yield video.get("url") if isinstance(video, dict) else video
            yield each.get("video_url")
        else:
            yield each


def _is_picture(item: object) -> bool:
    """Whether an item says that it is one, such as a cover."""
    return isinstance(item, dict) and "image" in str(item.get("type", ""))[:100].lower()


_MOST_LINES = 1000


def _contents(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer: the first thing in it, and what begins a line, as in a stream of events."""
    yield from _objects_in(_decoded(text.lstrip()), depth=3)
    for line in text.split("\n", _MOST_LINES)[:_MOST_LINES]:
        if (line := line.strip().removeprefix("data:").lstrip()).startswith("{"):
            yield from _objects_in(_decoded(line), depth=3)


def _objects_in(value: object, depth: int) -> Iterator[dict[str, Any]]:
    """An object, those in a list, and one that is written as text, by itself or as the body of another answer."""
    if depth and isinstance(value, str):
        yield from _objects_in(_decoded(value.lstrip()), depth - 1)
    elif depth and isinstance(value, list):
        for each in value[:_MOST_LINES]:
            yield from _objects_in(each, depth - 1)
    elif isinstance(value, dict):
        value = {name.lower(): each for name, each in value.items()}
        yield value
        yield from _objects_in(value.get("body"), depth - 1) if depth else ()


def _decoded(text: str) -> object:
    """The value of JSON that a text begins with; None if there is none."""
    decoder = json.JSONDecoder(parse_int=_integer, parse_constant=lambda name: None, strict=False)
    try:
        return decoder.raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


# Bounded repetitions, and none that another can take over from: a MiB takes time in proportion to its length.
_LINK = re.compile(
    r'"data"\s{0,99}:\s{0,99}\[\s{0,99}\{[^{}\[\]]{0,1048576}?"url"\s{0,99}:\s{0,99}("(?:[^"\\]|\\.){1,8192}")'
)

_AROUND = "".join(map(chr, range(33))) + "<>\"'\xa0\u200b\u2060\ufeff"
"""What may stand around a link and is no part of one."""


def _usable(url: object, base_url: str) -> str | None:
    """A link as browsers read it.

    :param base_url: of one that begins with ``//`` or ``/``; its scheme at least.
    """
    if not isinstance(url, str) or len(url) > LONGEST_LINK:
        return None
    # White space around is cut, line breaks and tabs inside are left out.
    url = re.sub(r"[\r\n\t]", "", url.strip(_AROUND)).replace("&amp;", "&")
    try:
        if url.startswith("//"):
            url = f"{base_url.partition(':')[0]}:{url}"
        elif url.startswith("/"):
            url = str(httpx.URL(base_url).join(url))
        parsed = httpx.URL(url)
        usable = parsed.scheme in ("https", "http") and bool(parsed.host) and url.isprintable()
    except (httpx.InvalidURL, ValueError):
        return None
    return url if usable else None


# Times.


def _timestamp(value: object) -> float | None:
    """Unix seconds, from seconds, milli- or microseconds, or text; None for what is none of these."""
    if isinstance(value, str):
        return _timestamp_in(value.strip()[:64])
    number = finite(value)
    if number is None or number <= 0:
        return None
    for unit in (1.0, 1e3, 1e6):
        if number / unit < 1e11:  # the year 5138
            return number / unit
    return None


def _timestamp_in(text: str) -> float | None:
    try:
        return _timestamp(float(text))
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
        seconds = at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds <= _LATEST else None


def _expiry(value: object, since: float | None) -> float | None:
    """When the link runs out, if that is in reach of the answer: a link that came just now has not run out."""
    at = _timestamp(value)
    if at is None or since is None:
        return at
    return at if since < at <= since + _LONGEST_LIFE else None

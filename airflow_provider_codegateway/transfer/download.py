"""A clip's bytes in order, over as many connections as it takes."""

from __future__ import annotations

import logging
import random
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Protocol

import httpx

from airflow_provider_codegateway.exceptions import ClipExpired, ClipTransferError
from airflow_provider_codegateway.facts import Ending, Verdict
from airflow_provider_codegateway.http_dates import http_date, retry_after
from airflow_provider_codegateway.limits import LIMITS, MIB, Limits
from airflow_provider_codegateway.net import (
    NETWORK_ERRORS,
    Client,
    RedirectRefused,
    Response,
    TooSlow,
    network_advice,
    network_reason,
)
from airflow_provider_codegateway.redaction import redact_url

log = logging.getLogger(__name__)

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})
# What a presigned link that has run out is answered with: S3 and CloudFront 403, Google Cloud Storage 400,
# Azure 403, gateways of their own 401.
_REFUSALS = frozenset({400, 401, 403})
# In a store's own XML. The page of a web filter may say that a session has expired, and knows nothing of the link.
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<Error[\s>]", re.ASCII)
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body|!--)", re.ASCII | re.IGNORECASE)
_EXPIRED = re.compile(
    rb"<Code>(?:ExpiredToken|RequestExpired|ExpiredRequest|TokenRefreshRequired)</Code>"
    rb"|<Code>(?:AccessDenied|InvalidToken|AuthenticationFailed)</Code>\s*<Message>[^<]*\bexpired\b"
    rb"|Signature not valid in the specified time frame",
    re.IGNORECASE,
)
# As ByteDance's store says it.
_EXPIRED_JSON = re.compile(rb'\s*\{[^{}]*"Message"\s*:\s*"[^"]*\bexpired\b', re.ASCII | re.IGNORECASE)
_CODE_JSON = re.compile(rb'"Code"\s*:\s*"\w', re.ASCII)


_CLOCKS_APART = 86_400
"""Seconds. A host that is further from our own clock is not believed: a filter's clock may be years off."""


class _Broken(Exception):
    """This connection will bring no more; another one may."""

    def __init__(self, reason: str, *, retry_after: float = 0.0, advice: str = "") -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.advice = advice


class _Absent(_Broken):
    """The host says that there is no such clip: for good, or not yet."""


class _NotWhole(_Broken):
    """The host took the clip for whole, and it is not."""


class Sink(Protocol):
    """Where a download goes."""

    def room(self) -> memoryview:
        """Where the next bytes go, at least one. May wait."""

    def filled(self, count: int) -> None:
        """Take up so many bytes, which lie at the start of the room."""

    def ending(self) -> Ending:
        """What the bytes say of their end, if these were all."""

    def restart(self) -> None:
        """Forget all bytes: the stream begins anew."""


class Download:
    """The clip behind a URL.

    :param url: presigned or not.
    :param expires_at: Unix seconds at which the link runs out, where that is known.
    :param allows_http: whether a redirect from https to http is followed.
    :raises ClipTransferError: the URL is not http or https.
    """

    def __init__(
        self,
        url: str,
        *,
        expires_at: float | None = None,
        allows_http: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self._url = _require_http(url)
        self._shown = redact_url(url)
        self._expires_at = expires_at
        self._check_redirect = _require_url if allows_http else _require_no_less_secure
        self._limits = limits
        self._unzip: _Unzip | None = None
        self._client = Client(seconds=limits.transfer_timeout, limits=limits)
        self._offset = 0
        self._has_begun = False
        """Whether the connection in hand has brought an answer with the clip."""
        self._ended_at = -1
        self._total: int | None = None
        self._etag: str | None = None
        self._modified: str | None = None
        self._validator: str | None = None
        self._tail = b""
        """The last bytes that came, where no validator tells whether the rest is of the same clip."""
        self._overlap = b""
        """What the connection in hand has to bring first."""

    def stop(self) -> None:
        """End the download with ``net.Stopped``. From any thread."""
        self._client.stop()

    def into(self, sink: Sink) -> None:
        """Bring the whole clip.

        :raises ClipExpired: the clip's host refused the link, which has run out.
        :raises ClipTransferError: the clip cannot be had now.
        """
        failures, absences, best, not_whole_at = 0, 0, 0, -1
        while True:
            try:
                self._one_connection(sink)
            except _Broken as broken:
                if self._is_whole_all_the_same(sink):
                    return
                if isinstance(broken, _NotWhole):
                    if self._offset == not_whole_at:
                        self._give_up_for_good(broken)
                    not_whole_at = self._offset
                failures = 1 if self._offset > best else failures + 1
                absences = absences + 1 if isinstance(broken, _Absent) else 0
                best = max(best, self._offset)
                self._require_time()
                if absences > self._limits.max_absences:
                    raise ClipExpired(
                        f"The clip at {self._shown} is gone: its host {broken}, {absences} times. Only another render "
                        "gives another clip."
                    ) from None
                if failures > self._limits.max_failures and absences < failures:
                    self._give_up(broken, failures)
                log.info("The download of %s broke at byte %d: %s.", self._shown, self._offset, broken)
                jitter = random.uniform(0.5, 1)  # noqa: S311
                backoff = self._limits.first_backoff * 2 ** (failures - 1) * jitter
                self._client.pause(min(max(backoff, broken.retry_after), self._limits.max_backoff))
            else:
                return

    def _one_connection(self, sink: Sink) -> None:
        self._has_begun, self._overlap = False, b""
        with (
            self._network(),
            self._client.get(self._url, self._range(), check_redirect=self._check_redirect) as response,
        ):
            if self._is_at_its_end(response) and sink.ending().verdict is not Verdict.CUT:
                return
            self._begin(response, sink)
            self._has_begun = True
            for chunk in self._from_where_it_broke(
                _with_a_head(self._at_a_decent_speed(response.chunks)), sink
            ):
                if not self._offset and chunk.startswith(_GZIP):
                    self._unzip = _Unzip()
                for piece in (chunk,) if self._unzip is None else self._unzip(chunk):
                    _pour(piece, sink)
                self._offset += len(chunk)
                if self._validator is None:
                    self._tail = (self._tail + chunk)[-_OVERLAP:]
            if self._overlap:
                raise _Broken("ended before it came to where it broke before")
            is_announced = self._total is not None or _ends_where_it_says(response)
        if self._total is not None and self._offset != self._total:
            raise _Broken(f"ended at byte {self._offset} of {self._total}")
        if self._unzip is not None and not self._unzip.is_at_its_end:
            raise _NotWhole("it is not whole: it came compressed by gzip, whose end is missing")
        self._require_whole(sink.ending(), is_announced=is_announced)

    def _from_where_it_broke(self, chunks: Iterator[bytes], sink: Sink) -> Iterator[bytes]:
        """The chunks, less what came before the download broke.

        :raises _Broken: that was something else.
        """
        for chunk in chunks:
            if self._overlap:
                count = min(len(chunk), len(self._overlap))
                if chunk[:count] != self._overlap[:count]:
                    self._restart(sink)
                    raise _Broken("brought another clip than before")
                self._overlap, chunk = self._overlap[count:], chunk[count:]
            if chunk:
                yield chunk

    def _is_whole_all_the_same(self, sink: Sink) -> bool:
        """Whether the clip says that it is whole, where its host has ended it early twice, at the same byte."""
        if (
            not self._has_begun
            or self._overlap
            or (self._unzip is not None and not self._unzip.is_at_its_end)
        ):
            return False
        is_again, self._ended_at = self._ended_at == self._offset, self._offset
        if not is_again or not self._offset or sink.ending().verdict is not Verdict.WHOLE:
            return False
        log.warning(
            "The host of %s ended it early twice, at byte %d. The clip says that it is whole, so it is stored.",
            self._shown,
            self._offset,
        )
        return True

    def _is_at_its_end(self, response: Response) -> bool:
        """Whether the host, asked to go on, says that nothing follows."""
        end = response.headers.get("content-range", "")
        return bool(self._offset) and response.status == 416 and end == f"bytes */{self._offset}"

    def _require_whole(self, ending: Ending, *, is_announced: bool) -> None:
        """:raises _NotWhole: the container says so; or it says nothing, and neither did the host."""
        if ending.verdict is Verdict.CUT:
            self._total = None  # its host was wrong about it
            raise _NotWhole(f"it is not whole: {ending.words}")
        if ending.verdict is Verdict.SILENT and not is_announced:
            raise _NotWhole("neither its host nor the clip itself says whether these are all bytes")

    @contextmanager
    def _network(self) -> Iterator[None]:
        try:
            yield
        except RedirectRefused as error:
            raise ClipTransferError(f"{error}.") from None
        except TooSlow:
            self._give_up_slow()
        except NETWORK_ERRORS as error:
            raise _Broken(network_reason(error), advice=network_advice(error)) from None

    def _at_a_decent_speed(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, as long as they come faster than a host that would keep a thread busy for hours."""
        since, count = None, 0
        for chunk in chunks:
            since = since or time.monotonic()  # until its first bytes a host may take its time
            yield chunk
            count += len(chunk)
            if (seconds := time.monotonic() - since) >= self._limits.speed_window:
                if count < self._limits.slowest * seconds:
                    self._give_up_slow()
                since, count = time.monotonic(), 0

    def _give_up_slow(self) -> NoReturn:
        raise ClipTransferError(
            f"{self._shown} sends less than {self._limits.slowest // 1024} KiB a second; the download was given up at "
            f"byte {self._offset}. Retry the task: it downloads again, for free, while the link lives."
        ) from None

    def _range(self) -> dict[str, str]:
        if not self._offset:
            return {}
        if self._validator:
            return {"Range": f"bytes={self._offset}-", "If-Range": self._validator}
        return {"Range": f"bytes={self._offset - len(self._tail)}-"} if self._tail else {}

    def _begin(self, response: Response, sink: Sink) -> None:
        """Find out what this answer brings: the whole clip, or the rest of it."""
        if not 200 <= response.status < 300 and response.status != 416:
            self._refuse(response)
        if response.status == 206 and self._continues(response):
            return
        is_from_the_start = _is_from_the_start(response, asked_for_all=not self._range())
        if self._offset:
            self._restart(sink)
        if not is_from_the_start:
            raise _Broken(f"answered {response.status} with another range than asked for")
        self._total = _total_of(response)
        self._etag = response.headers.get("etag")
        self._modified = response.headers.get("last-modified")
        self._validator = _strong_validator(response.headers)

    def _continues(self, response: Response) -> bool:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
        overlap = b"" if self._validator else self._tail
        if not self._offset or not match or int(match[1]) != self._offset - len(overlap):
            return False
        etag, modified = response.headers.get("etag"), response.headers.get("last-modified")
        if etag is None and modified is None and (self._etag or self._modified):
            return False  # another server, which may have another clip
        if (etag is not None and etag != self._etag) or (modified is not None and modified != self._modified):
            return False
        total = None if match[2] == "*" else int(match[2])
        if None not in (total, self._total) and total != self._total:
            return False
        self._total = self._total if total is None else total
        self._overlap = overlap
        return True

    def _restart(self, sink: Sink) -> None:
        log.info(
            "The download of %s starts again: its host did not go on from byte %d.", self._shown, self._offset
        )
        self._offset, self._total, self._etag, self._modified, self._validator = 0, None, None, None, None
        self._unzip, self._tail, self._overlap = None, b"", b""
        sink.restart()

    def _refuse(self, response: Response) -> NoReturn:
        status, shown = response.status, redact_url(response.url)
        if status in _RETRIED:
            raise _Broken(
                f"answered {status}", retry_after=retry_after(response.headers.get("retry-after")) or 0.0
            )
        words = next(response.chunks, b"")[:4096]
        if (status in _GONE or status in _REFUSALS) and self._is_expired(response, words):
            raise ClipExpired(
                f"The link to the clip at {shown} has run out: its host answered {status}. It cannot be renewed; only "
                "another render gives another clip."
            )
        if status in _GONE and not _HTML.match(words):
            # A delivery network may not have a fresh clip yet: it is gone once that is said again and again.
            raise _Absent(f"answered {status}")
        raise ClipTransferError(
            f"{shown} answered {status} instead of the clip. Retry the task: it asks again, for free. If that goes on, "
            "ask CodeGateway about this clip."
        )

    def _is_expired(self, response: Response, words: bytes) -> bool:
        now, told = time.time(), http_date(response.headers.get("date"))
        if told is not None and abs(told - now) < _CLOCKS_APART:  # else it is the host whose clock is wrong
            now = told
        if self._expires_at is not None and now >= self._expires_at:
            return True
        if _EXPIRED_JSON.match(words) and _CODE_JSON.search(words):
            return True
        return bool(_XML.match(words) and _EXPIRED.search(words))

    def _give_up_for_good(self, broken: _Broken) -> NoReturn:
        raise ClipTransferError(
            f"The download of {self._shown} ended twice at byte {self._offset:,}, and {broken}. It was not stored. "
            "Retry the task: it downloads again, for free, while the link lives. If that goes on, ask CodeGateway "
            "about this clip."
        ) from None

    def _give_up(self, broken: _Broken, failures: int) -> NoReturn:
        of = "" if self._total is None else f" of {self._total}"
        raise ClipTransferError(
            f"The download of {self._shown} broke {failures} times in a row, the last time at byte "
            f"{self._offset}{of}: {broken}.{broken.advice} Retry the task: it downloads again, for free, while the "
            "link lives."
        ) from None

    def _require_time(self) -> None:
        if time.monotonic() > self._client.deadline:
            raise ClipTransferError(
                f"The download of {self._shown} took more than {self._limits.transfer_timeout:.0f} s and had come to "
                f"byte {self._offset}. Retry the task: it downloads again, for free, while the link lives."
            ) from None


def _is_from_the_start(response: Response, *, asked_for_all: bool) -> bool:
    """Whether an answer brings the clip from its first byte on. Some hosts say that all of it, or more, is a part."""
    if response.status != 206:
        return response.status != 416
    given = response.headers.get("content-range", "")
    return given.startswith("bytes 0-") or (
        asked_for_all and not given and "boundary=" not in response.headers.get("content-type", "")
    )


def _total_of(response: Response) -> int | None:
    """How many bytes the clip has, of which an answer may bring the first part only; None if it does not say."""
    given = response.headers.get("content-range", "")
    if response.status != 206 or not given:
        return response.length
    match = re.fullmatch(r"bytes 0-\d+/(\d+)", given)
    return None if match is None else int(match[1])


def _with_a_head(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, the first of which is long enough to tell what they are."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(_GZIP):
            yield head
            break
    else:
        yield from [head] if head else []
    yield from chunks


_OVERLAP = 4096
"""Bytes that are asked for again, and compared."""
_GZIP = b"\x1f\x8b\x08"


class _Unzip:
    """A clip that its host packed, though nobody asked for that."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)
        self._came, self._made = 0, 0

    @property
    def is_at_its_end(self) -> bool:
        """Whether what came has the end that gzip marks."""
        return self._decoder.eof

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        """What a chunk unpacks to, in pieces.

        :raises ClipTransferError: it is not what a video packs to.
        """
        self._came += len(chunk)
        while chunk:
            if self._decoder.eof:  # a second member follows the first
                self._decoder = zlib.decompressobj(wbits=31)
            try:
                piece = self._decoder.decompress(chunk, MIB)
            except zlib.error:
                raise ClipTransferError("The clip came compressed by gzip, and cannot be unpacked.") from None
            chunk = self._decoder.unconsumed_tail or self._decoder.unused_data
            self._made += len(piece)
            if self._made > _MOST_UNPACKED * (self._came + MIB):
                raise ClipTransferError(
                    "The clip came compressed by gzip, and unpacks to more than a video does."
                )
            yield piece


_MOST_UNPACKED = 50
"""Bytes that one byte of a video unpacks to: its pictures are packed already."""


def _ends_where_it_says(response: Response) -> bool:
    """Whether the body's end is known from its head, and is that of the clip."""
    if response.status == 206 and response.headers.get("content-range"):
        return False  # the end of a piece
    coding = response.headers.get("transfer-encoding", "").lower()
    return response.length is not None or coding.endswith("chunked")


def _pour(chunk: bytes, sink: Sink) -> None:
    left = memoryview(chunk)
    while left:
        room = sink.room()
        count = min(len(room), len(left))
        room[:count] = left[:count]
        sink.filled(count)
        left = left[count:]


def _require_http(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host)
        usable = usable and parsed.port != 0
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise ClipTransferError(f"The clip's URL, {redact_url(url)}, is not an http or https URL of a host.")
    return parsed


def _require_url(_: httpx.URL, target: httpx.URL) -> None:
    _require_http(str(target))


def _require_no_less_secure(url: httpx.URL, target: httpx.URL) -> None:
    _require_http(str(target))
    if url.scheme == "https" and target.scheme != "https":
        raise ClipTransferError(
            f"{redact_url(url)} redirects from https to {redact_url(target)}, which is not followed. To allow http, "
            'set {"http_links": "allow"} in the connection\'s extra.'
        )


def _strong_validator(headers: httpx.Headers) -> str | None:
    """What If-Range may hold (RFC 9110, 13.1.5): a strong ETag, or a date that is a second old."""
    etag = headers.get("etag")
    if etag is not None:
        return etag if etag.startswith('"') and etag.isascii() else None
    date = headers.get("last-modified", "")
    modified, now = http_date(date), http_date(headers.get("date"))
    return date if date.isascii() and modified and now and now - modified >= 1 else None

"""Clip URL → S3: in bounded memory, resumed where the download broke, verified before anybody can see it.

One thread (the caller's) downloads and cuts the clip into parts; three others upload them. The bytes live in
a fixed number of blocks that are used again and again, so the memory is the same for a clip of any length.

S3 shows an object when its ``PutObject`` or ``CompleteMultipartUpload`` has succeeded, not before. Neither is
sent until all bytes are there and are an MP4. Whatever ends a transfer early aborts its multipart upload.
(A killed process cannot: a lifecycle rule with ``AbortIncompleteMultipartUpload`` is the remedy for those.)
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import queue
import random
import re
import socket
import string
import threading
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_codegateway._http import redact_url, redact_urls
from airflow_provider_codegateway.exceptions import ClipExpired, ClipTransferError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping
    from email.message import Message
    from typing import Self

    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

PART_SIZE = 8 * 1024 * 1024
"""Bytes in each part but the last. A clip that fits in one part is stored by one ``PutObject``."""
MAX_PARTS = 10_000
"""S3's limit, so that the longest clip has 78 GiB."""
PARTS_IN_FLIGHT = 3
BLOCK_SIZE = 1024 * 1024
"""Bytes that are read, or sent, at a time. The read timeout of the S3 client is the time that each may take
to send, and a transfer stops between two of them."""
BLOCKS = 29
"""Blocks in memory at a time: the parts in flight, and the most of the next one."""
CONNECT_TIMEOUT = 10.0
"""Seconds, TLS handshake included."""
READ_TIMEOUT = 60.0
"""Seconds without a byte."""
TRANSFER_TIMEOUT = 3600.0
"""Seconds that the download of one clip may take with all its resumes."""
MAX_FAILURES = 5
"""Connections that may fail in a row without bringing a new byte."""
MAX_REDIRECTS = 5
BACKOFF = 0.5
"""Seconds before the first resume, doubled with each failure in a row; jitter takes up to half."""
MAX_BACKOFF = 30.0
"""Seconds; a longer ``Retry-After`` is cut to this."""

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What a presigned link that has run out is answered with: S3 and CloudFront 403, Google Cloud Storage 400,
# Azure 403, gateways of their own 401, 404 or 410.
_REFUSALS = frozenset({400, 401, 403, 404, 410})
_EXPIRED = rb"(?i)\bexpired\b|Signature not valid in the specified time frame"


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """A clip as it lies in S3.

    :param bytes: the size, as downloaded and as S3 confirmed it.
    :param sha256: of all bytes, in hexadecimal.
    """

    bucket: str
    key: str
    bytes: int
    sha256: str


def transfer_clip(
    url: str,
    *,
    s3: S3Client,
    bucket: str,
    key: str,
    metadata: Mapping[str, str],
    extra_args: Mapping[str, Any] | None = None,
    expires_at: float | None = None,
    cancelled: threading.Event | None = None,
) -> StoredClip:
    """Bring the clip behind a URL to S3.

    An object already at the key is replaced, in one step, when the new one is whole.

    :param url: the clip's URL, presigned or not. It is sent no credentials.
    :param s3: a boto3 client, as ``S3Hook(...).get_conn()`` gives it.
    :param metadata: the object's metadata, ASCII.
    :param extra_args: as ``S3Hook(extra_args=...)``: each goes to all calls that take it. Older Ceph servers
        drop ``Tagging`` from multipart uploads without a word.
    :param expires_at: Unix seconds at which the link runs out, where that is known.
    :param cancelled: when set, the transfer ends at once with a :class:`ClipTransferError`.
    :raises ClipExpired: the clip's host refused the link, which has run out.
    :raises ClipTransferError: anything else. Nothing was left in the bucket, unless the message says so.
    """
    return _transfer(
        _Download(url, expires_at=expires_at),
        _target(s3, bucket, key, metadata, extra_args),
        verify=require_mp4,
        cancelled=cancelled,
    )


def check_extra_args(s3: S3Client, extra_args: Mapping[str, Any]) -> None:
    """Refuse arguments that storing a clip cannot pass on. Makes no call.

    :raises ValueError: names each of them.
    """
    taken = _members(s3, "PutObject") | _members(s3, "CreateMultipartUpload")
    wrong = sorted(name for name in extra_args if name not in taken or name in _OURS)
    wrong += sorted(name for name in extra_args if name.startswith("Checksum") and name not in _CHECKSUM_ARGS)
    if wrong:
        raise ValueError(
            f"S3 extra_args {', '.join(wrong)}: not an argument of PutObject or CreateMultipartUpload that "
            "may be set here. ACL, ServerSideEncryption, SSEKMSKeyId, StorageClass, Tagging and the like are."
        )


def require_mp4(head: memoryview | bytes) -> None:
    """Refuse what does not begin as an MP4 does (ISO/IEC 14496-12: a ``ftyp`` box comes first).

    :raises ClipTransferError: it is empty, or something else.
    """
    if not head:
        raise ClipTransferError("The clip's host delivered no bytes at all.")
    if head[4:8] != b"ftyp":
        raise ClipTransferError(
            "What the clip's host delivered is not an MP4: it has no `ftyp` at byte 4. It was not stored."
        )


def _transfer(
    download: _Download,
    target: _Target,
    *,
    verify: Callable[[memoryview], None],
    cancelled: threading.Event | None = None,
) -> StoredClip:
    with _Upload(target, verify) as upload, _cancellable(cancelled, download, upload), download:
        download.into(upload)
        upload.finish()
    target.confirm(upload.size)
    return StoredClip(bucket=target.bucket, key=target.key, bytes=upload.size, sha256=upload.sha256)


@contextmanager
def _cancellable(cancelled: threading.Event | None, download: _Download, upload: _Upload) -> Iterator[None]:
    """Stop download and upload when the event is set, also while they wait for the network."""
    if cancelled is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if cancelled.wait(0.2):
                upload.stop()
                download.stop()
                return

    watcher = threading.Thread(target=watch, name="codegateway-cancel", daemon=True)
    watcher.start()
    try:
        yield
    except ClipTransferError as error:
        if cancelled.is_set():
            raise ClipTransferError("The transfer was cancelled.") from error
        raise
    finally:
        done.set()
        watcher.join()


class _Stopped(ClipTransferError):
    """The transfer that this belongs to is given up."""

    def __init__(self) -> None:
        super().__init__("The transfer was stopped.")


# --- download ---


class _Broken(Exception):
    """This connection will bring no more; another one may."""

    def __init__(self, reason: str, *, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Sink(Protocol):
    """Where a download goes."""

    def room(self) -> memoryview:
        """Return where the next bytes go, at least one. May wait."""

    def filled(self, count: int) -> None:
        """Take up so many bytes, which lie at the start of the room."""

    def restart(self) -> None:
        """Forget all bytes: the stream begins anew."""


class _Download:
    """The clip's bytes in order, over as many connections as it takes.

    It is the standard library's HTTP, not httpx: that takes more CPU time a byte (benchmarks/README.md) and
    logs whole URLs. The proxies of the environment and httpx's certificates apply.
    """

    def __init__(self, url: str, *, expires_at: float | None = None) -> None:
        self._url = _require_http(url)
        self._shown = redact_url(url)
        self._expires_at = expires_at
        self._deadline = time.monotonic() + TRANSFER_TIMEOUT
        self._socket: socket.socket | None = None
        self._stopped = threading.Event()
        self._offset = 0
        self._total: int | None = None
        self._etag: str | None = None
        self._validator: str | None = None
        self._opener = _opener(self._connected)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the download, from any thread."""
        self._stopped.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def into(self, sink: _Sink) -> None:
        """Bring the whole clip."""
        failures, best = 0, 0
        while True:
            try:
                self._one_connection(sink, BLOCK_SIZE >> 4 * failures)
            except _Broken as broken:
                failures = 1 if self._offset > best else failures + 1
                best = max(best, self._offset)
                if failures > MAX_FAILURES or time.monotonic() > self._deadline:
                    self._give_up(broken, failures)
                log.info("The download of %s broke at byte %d: %s.", self._shown, self._offset, broken)
                jitter = random.uniform(0.5, 1)  # noqa: S311
                self._pause(max(BACKOFF * 2 ** (failures - 1) * jitter, broken.retry_after))
            else:
                return

    def _one_connection(self, sink: _Sink, read_size: int) -> None:
        """Bring what one connection brings.

        :param read_size: at most so many bytes at a time. A reset takes the bytes of the unfinished read with
            it, so each failure in a row makes it smaller: what little a connection brings counts at last.
        """
        with self._network():
            response = self._open()
        with response:
            self._begin(response, sink)
            while self._offset != self._total:
                room = sink.room()[: max(1, read_size)]
                with self._network():
                    count = response.readinto(room)
                self._require_live()
                if not count:
                    break
                self._offset += count
                sink.filled(count)
        if self._total is not None and self._offset != self._total:
            raise _Broken(f"ended at byte {self._offset} of {self._total}")

    @contextmanager
    def _network(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: no host name
            self._require_live()
            reason = error.reason if isinstance(error, URLError) else error
            raise _Broken(redact_urls(f"{type(reason).__name__}: {reason}")) from None

    def _open(self) -> http.client.HTTPResponse:
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            self._require_live()
            request = urllib.request.Request(url, headers=self._headers())  # noqa: S310
            response: http.client.HTTPResponse = self._opener.open(request, timeout=CONNECT_TIMEOUT)
            if response.status not in _REDIRECTS:
                return response
            with response:
                url = self._redirected(url, response)
        raise ClipTransferError(f"{self._shown} redirected more than {MAX_REDIRECTS} times.")

    def _headers(self) -> dict[str, str]:
        headers = {
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": "airflow-provider-codegateway",
        }
        if self._offset and self._validator:
            headers |= {"Range": f"bytes={self._offset}-", "If-Range": self._validator}
        return headers

    def _redirected(self, url: str, response: http.client.HTTPResponse) -> str:
        location = response.headers.get("Location")
        if not location:
            raise ClipTransferError(f"{self._shown} answered {response.status} without a Location.")
        target = _require_http(urljoin(url, location))
        if url.startswith("https:") and not target.startswith("https:"):
            raise ClipTransferError(f"{self._shown} redirected from https to {redact_url(target)}: refused.")
        return target

    def _begin(self, response: http.client.HTTPResponse, sink: _Sink) -> None:
        """Find out what this answer brings: the whole clip, or the rest of it."""
        if response.status not in (200, 206, 416):
            self._refuse(response)
        if response.status == 206 and self._continues(response):
            return
        if self._offset:
            self._restart(sink)
        if response.status != 200:
            raise _Broken(f"answered {response.status} with another range than asked for")
        self._total = response.length
        self._etag = response.headers.get("ETag")
        self._validator = _strong_validator(response.headers)

    def _continues(self, response: http.client.HTTPResponse) -> bool:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not self._offset or not match or int(match[1]) != self._offset:
            return False
        if response.headers.get("ETag", self._etag) != self._etag:
            return False
        total = None if match[2] == "*" else int(match[2])
        if None not in (total, self._total) and total != self._total:
            return False
        self._total = self._total if total is None else total
        return True

    def _restart(self, sink: _Sink) -> None:
        log.info(
            "The download of %s starts again: its host did not go on from byte %d.", self._shown, self._offset
        )
        self._offset, self._total, self._etag, self._validator = 0, None, None, None
        sink.restart()

    def _refuse(self, response: http.client.HTTPResponse) -> NoReturn:
        status, shown = response.status, redact_url(response.url)
        if status in _RETRIED:
            raise _Broken(f"answered {status}", retry_after=_retry_after(response.headers))
        if status in _REFUSALS and self._is_expired(response):
            raise ClipExpired(
                f"The link to the clip at {shown} has run out: its host answered {status}. "
                "It cannot be renewed; only another render gives another clip."
            )
        raise ClipTransferError(
            f"{shown} answered {status} where the clip was expected. Retrying the task asks again and buys "
            f"nothing; if it goes on, ask CodeGateway about this clip."
        )

    def _is_expired(self, response: http.client.HTTPResponse) -> bool:
        now = _date(response.headers.get("Date")) or time.time()
        if self._expires_at is not None and now >= self._expires_at:
            return True
        return bool(re.search(_EXPIRED, self._words(response)))

    def _words(self, response: http.client.HTTPResponse) -> bytes:
        with suppress(OSError, http.client.HTTPException):
            return response.read(4096)
        return b""

    def _give_up(self, broken: _Broken, failures: int) -> NoReturn:
        of = "" if self._total is None else f" of {self._total}"
        raise ClipTransferError(
            f"The download of {self._shown} broke {failures} times in a row, the last time at byte "
            f"{self._offset}{of}: {broken}. Retrying the task downloads again and buys nothing, while "
            "the link lives."
        ) from None

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(min(seconds, MAX_BACKOFF))
        self._require_live()

    def _require_live(self) -> None:
        if self._stopped.is_set():
            raise _Stopped
        if time.monotonic() > self._deadline:
            raise ClipTransferError(
                f"The download of {self._shown} took more than {TRANSFER_TIMEOUT:.0f} s; it had come to byte "
                f"{self._offset}. Retrying the task downloads again and buys nothing, while the link lives."
            )

    def _connected(self, sock: socket.socket) -> None:
        sock.settimeout(READ_TIMEOUT)
        self._socket = sock


def _opener(connected: Callable[[socket.socket], None]) -> urllib.request.OpenerDirector:
    """Return an opener that knows http, https and proxies, and no files, redirects, cookies or passwords."""

    class Http(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    class Https(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            connected(self.sock)

    class HttpHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Http, req)

    class HttpsHandler(urllib.request.HTTPSHandler):
        context: ssl.SSLContext | None = None

        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            import httpx

            # Certificates are read once for all resumes, and not at all for http.
            self.context = self.context or httpx.create_ssl_context()
            return self.do_open(Https, req, context=self.context)

    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), HttpHandler(), HttpsHandler()):
        opener.add_handler(handler)
    return opener


def _require_http(url: str) -> str:
    """Return the URL in ASCII, as HTTP wants it."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        usable = usable and parts.port != 0  # reading the port checks it
    except ValueError:
        usable = False
    if not usable:
        raise ClipTransferError(f"The clip's URL, {redact_url(url)}, is not an http or https URL of a host.")
    return quote(url, safe=string.punctuation)


def _strong_validator(headers: Message) -> str | None:
    """Return what If-Range may hold (RFC 9110, 13.1.5): a strong ETag, or a date that is a second old."""
    etag = headers.get("ETag")
    if etag is not None:
        return etag if etag.startswith('"') else None
    modified, now = _date(headers.get("Last-Modified")), _date(headers.get("Date"))
    return headers["Last-Modified"] if modified and now and now - modified >= 1 else None


def _date(value: str | None) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp() if value else None
    except ValueError:
        return None


def _retry_after(headers: Message) -> float:
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    date = _date(value)
    return max(0.0, date - time.time()) if date else 0.0


# --- upload ---


class PartCutter:
    """Cuts a stream into parts, and parts into blocks.

    Each part has exactly ``blocks`` full blocks, except the last, which :meth:`rest` gives.

    :param take: gives an empty block. May wait for one.
    :param hand_on: takes a full part, for good.
    """

    def __init__(
        self, blocks: int, *, take: Callable[[], memoryview], hand_on: Callable[[list[memoryview]], None]
    ) -> None:
        self._part_blocks = blocks
        self._take = take
        self._hand_on = hand_on
        self._blocks: list[memoryview] = []
        self._filled = 0  # of the last block

    def room(self) -> memoryview:
        """Return where the stream's next bytes go. A part that is full is handed on first."""
        if not self._blocks or self._filled == len(self._blocks[-1]):
            if len(self._blocks) == self._part_blocks:
                full, self._blocks = self._blocks, []
                self._hand_on(full)
            self._blocks.append(self._take())
            self._filled = 0
        return self._blocks[-1][self._filled :]

    def filled(self, count: int) -> None:
        """Take up so many bytes, which lie at the start of the room."""
        self._filled += count

    def rest(self) -> list[memoryview]:
        """Return what was not handed on: at most one part."""
        if not self._blocks:
            return []
        return [*self._blocks[:-1], self._blocks[-1][: self._filled]]

    def restart(self) -> list[memoryview]:
        """Forget the rest: the stream begins anew. Return its blocks."""
        blocks, self._blocks = self._blocks, []
        return blocks


class _Blocks:
    """Up to :data:`BLOCKS` blocks, each made when it is first needed."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._made = 0

    def take(self) -> memoryview:
        if self._free.empty() and self._made < BLOCKS:
            self._made += 1
            return memoryview(bytearray(BLOCK_SIZE))
        return self._free.get()

    def give_back(self, blocks: list[memoryview]) -> None:
        for block in blocks:
            self._free.put(block)


class _Body:
    """A part as botocore's file-like body. It copies nothing; botocore reads it up to three times.

    :meth:`read` gives the rest of a block, also where botocore's connection asks for 16 KiB: it sends it all.
    """

    def __init__(self, blocks: list[memoryview], stopped: threading.Event) -> None:
        self._blocks = blocks
        self._size = sum(map(len, blocks))
        self._stopped = stopped
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def read(self, size: int | None = None) -> memoryview | bytes:
        if self._stopped.is_set():
            raise _Stopped
        if size is None or size < 0:
            rest = b"".join(self._blocks)[self._at :]
            self._at = self._size
            return rest
        if self._at >= self._size:
            return b""
        number, start = divmod(self._at, BLOCK_SIZE)
        piece = self._blocks[number][start:]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


@dataclass(frozen=True, eq=False, repr=False)  # the arguments may hold a customer's encryption key
class _Target:
    """One S3 object to be, and the calls that make it."""

    s3: S3Client
    bucket: str
    key: str
    object_args: Mapping[str, Any]
    extra_args: Mapping[str, Any]

    def put(self, body: _Body) -> None:
        self._call("PutObject", self.s3.put_object, Body=body, **self.object_args)

    def create(self) -> str:
        return str(
            self._call("CreateMultipartUpload", self.s3.create_multipart_upload, **self.object_args)[
                "UploadId"
            ]
        )

    def upload_part(self, upload_id: str, number: int, body: _Body) -> dict[str, Any]:
        """Return what ``CompleteMultipartUpload`` wants to know of the part."""
        answer = self._call(
            "UploadPart",
            self.s3.upload_part,
            UploadId=upload_id,
            PartNumber=number,
            Body=body,
            **self.extra_args,
        )
        checksums = {
            name: value
            for name, value in answer.items()
            if name.startswith("Checksum") and name != "ChecksumType"
        }
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

    def complete(self, upload_id: str, parts: list[dict[str, Any]]) -> None:
        self._call(
            "CompleteMultipartUpload",
            self.s3.complete_multipart_upload,
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
            **self.extra_args,
        )

    def abort(self, upload_id: str) -> None:
        self._call(
            "AbortMultipartUpload", self.s3.abort_multipart_upload, UploadId=upload_id, **self.extra_args
        )

    def confirm(self, size: int) -> None:
        """Ask S3 for the size of what it stored."""
        # Conditions are for writing: on reading, `IfNoneMatch="*"` means "answer 304".
        args = {name: value for name, value in self.extra_args.items() if not name.startswith("If")}
        stored = self._call("HeadObject", self.s3.head_object, **args)["ContentLength"]
        if stored != size:
            raise ClipTransferError(
                f"s3://{self.bucket}/{self.key} has {stored} bytes where {size} were stored: another writer "
                "replaced it, or the S3 server lost some. It was left as it is."
            )

    def _call(self, operation: str, method: Callable[..., Any], **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        taken = _members(self.s3, operation)
        arguments = {name: value for name, value in arguments.items() if name in taken}
        where = f"s3://{self.bucket}/{self.key}"
        try:
            return method(Bucket=self.bucket, Key=self.key, **arguments)
        except ParamValidationError as error:
            # Its report quotes values, and one of them may be a customer's encryption key.
            report = "; ".join(line.split(", value:")[0] for line in str(error.kwargs["report"]).splitlines())
            raise ClipTransferError(f"{operation} to {where} was not sent: {report}.") from None
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            said = redact_urls(error.response.get("Error", {}).get("Message") or "no message").rstrip(".")
            remedy = _remedy(operation, code) + _stored(operation)
            raise ClipTransferError(f"S3 refused {operation} of {where}: {code} ({said}).{remedy}") from error
        except BotoCoreError as error:
            reason = redact_urls(str(error)).rstrip(".")
            raise ClipTransferError(
                f"{operation} of {where} failed: {type(error).__name__}: {reason}.{_stored(operation)}"
            ) from error


_OURS = frozenset({"Bucket", "Key", "Body", "Metadata", "ContentLength", "ContentMD5"})
# The others are a checksum of the whole clip, which no single part has.
_CHECKSUM_ARGS = frozenset({"ChecksumAlgorithm", "ChecksumType"})
_PERMISSIONS = {"AbortMultipartUpload": "s3:AbortMultipartUpload", "HeadObject": "s3:GetObject"}


def _remedy(operation: str, code: str) -> str:
    if code not in ("AccessDenied", "403", "Forbidden"):
        return ""
    kms = "" if operation == "AbortMultipartUpload" else ", and the use of the KMS key if the bucket has one"
    return f" The AWS connection needs {_PERMISSIONS.get(operation, 's3:PutObject')} on this key{kms}."


def _stored(operation: str) -> str:
    return " The clip was stored, and only could not be confirmed." if operation == "HeadObject" else ""


def _members(s3: S3Client, operation: str) -> frozenset[str]:
    shape = s3.meta.service_model.operation_model(operation).input_shape
    return frozenset(shape.members)  # type: ignore[union-attr]  # none of these operations is without input


def _target(
    s3: S3Client, bucket: str, key: str, metadata: Mapping[str, str], extra_args: Mapping[str, Any] | None
) -> _Target:
    extra_args = extra_args or {}
    try:
        check_extra_args(s3, extra_args)
    except ValueError as error:
        raise ClipTransferError(str(error)) from None
    object_args = {"ContentType": "video/mp4", **extra_args, "Metadata": dict(metadata)}
    return _Target(s3, bucket, key, object_args, extra_args)


class _Attempt:
    """One attempt at the object: a ``PutObject``, or a multipart upload from its creation to its end.

    Every S3 call runs in a thread of its pool, never in the caller's, and keeps its result there. So an
    exception that a signal throws into the caller (a task's timeout, Ctrl-C) cannot fall between S3's answer
    and our keeping of it, and does not cut the abort short.
    """

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._pool = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="codegateway-upload")
        self._parts: list[Future[dict[str, Any]]] = []
        self._stopped = threading.Event()
        self._creation = threading.Lock()
        self._upload_id: str | None = None
        self._failure: BaseException | None = None

    @property
    def is_multipart(self) -> bool:
        """Whether a part was sent."""
        return bool(self._parts)

    def put(self, clip: list[memoryview]) -> Future[None]:
        """Begin to store the clip in one call."""
        return self._pool.submit(self._target.put, _Body(clip, self._stopped))

    def send(self, part: list[memoryview], *, sent: Callable[[], None]) -> None:
        """Send the next part, and call ``sent`` when it is sent, or has failed."""
        number = len(self._parts) + 1
        if number > MAX_PARTS:
            raise ClipTransferError(
                f"The clip is longer than {MAX_PARTS} parts of {PART_SIZE} bytes, S3's limit for one object."
            )
        self._parts.append(self._pool.submit(self._send, number, part, sent))

    def complete(self) -> None:
        """Wait for the parts and make them one object."""
        wait(self._parts)
        self.raise_failure()
        self._pool.submit(self._complete).result()

    def raise_failure(self) -> None:
        """Raise what the first failed part failed of."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let the parts in flight fail at their next read. From any thread."""
        self._stopped.set()

    def close(self) -> None:
        """End the attempt: when no call is in flight any more, what was not completed is aborted."""
        self.stop()
        # A thread, so that a signal's exception may end the wait for it and not the abort itself.
        closing = threading.Thread(target=self._close, name="codegateway-abort")
        closing.start()
        closing.join()

    def _send(self, number: int, part: list[memoryview], sent: Callable[[], None]) -> dict[str, Any]:
        try:
            return self._target.upload_part(self._created(), number, _Body(part, self._stopped))
        except BaseException as error:
            self._failure = self._failure or error
            self._stopped.set()
            raise
        finally:
            sent()

    def _created(self) -> str:
        with self._creation:
            if self._stopped.is_set():
                raise _Stopped
            if self._upload_id is None:
                self._upload_id = self._target.create()
            return self._upload_id

    def _complete(self) -> None:
        if self._stopped.is_set() or self._upload_id is None:
            raise _Stopped
        self._target.complete(self._upload_id, [part.result() for part in self._parts])
        self._upload_id = None

    def _close(self) -> None:
        self._pool.shutdown(wait=True)
        if self._upload_id is None:
            return
        try:
            self._target.abort(self._upload_id)
        except ClipTransferError as error:
            log.warning("The multipart upload %s could not be aborted: %s", self._upload_id, error)


class _Upload:
    """Bytes in, one object out; or none, if the ``with`` block is left before :meth:`finish` has returned."""

    def __init__(self, target: _Target, verify: Callable[[memoryview], None]) -> None:
        self._target = target
        self._verify = verify
        self._attempt = _Attempt(target)
        self._blocks = _Blocks()
        self._cutter = PartCutter(PART_SIZE // BLOCK_SIZE, take=self._take, hand_on=self._send)
        self._hash = hashlib.sha256()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that the object has."""
        return self._size

    @property
    def sha256(self) -> str:
        """Of the object's bytes, in hexadecimal."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._attempt.close()

    def stop(self) -> None:
        """Let the calls in flight fail, from any thread."""
        self._attempt.stop()

    def room(self) -> memoryview:
        """Return where the next bytes go. Waits while all blocks are in use."""
        return self._cutter.room()

    def filled(self, count: int) -> None:
        """Take up so many bytes, which lie at the start of the room."""
        self._cutter.filled(count)

    def restart(self) -> None:
        """Forget all bytes: the stream begins anew."""
        self._attempt.close()
        self._attempt = _Attempt(self._target)
        self._blocks.give_back(self._cutter.restart())
        self._hash, self._size = hashlib.sha256(), 0

    def finish(self) -> None:
        """Make the object visible."""
        last = self._cutter.rest()
        if self._attempt.is_multipart:
            if last:
                self._send(last)
            self._attempt.complete()
            return
        self._verify(last[0] if last else memoryview(b""))
        stored = self._attempt.put(last)
        self._count(last)
        stored.result()

    def _take(self) -> memoryview:
        block = self._blocks.take()
        self._attempt.raise_failure()
        return block

    def _send(self, part: list[memoryview]) -> None:
        if not self._attempt.is_multipart:
            self._verify(part[0])
        self._attempt.send(part, sent=partial(self._blocks.give_back, part))
        # Hashed while it is on its way: only this thread fills blocks, so they stay as they are till then.
        self._count(part)

    def _count(self, part: list[memoryview]) -> None:
        for block in part:
            self._hash.update(block)
            self._size += len(block)

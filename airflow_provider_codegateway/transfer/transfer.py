"""Clip URL → S3: in bounded memory, resumed where the download broke, verified before anybody can see it.

One thread (the caller's) downloads and cuts the clip into parts; three others upload them. The bytes live in
a fixed number of blocks that are used again and again, so the memory is the same for a clip of any length.

S3 shows an object when its ``PutObject`` or ``CompleteMultipartUpload`` has succeeded, not before. Neither is
sent until all bytes are there and are an MP4. Whatever ends a transfer early aborts its multipart upload.
(A killed process cannot: a lifecycle rule with ``AbortIncompleteMultipartUpload`` is the remedy for those.)
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import ClipTransferError
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.transfer.download import Download
from airflow_provider_codegateway.transfer.upload import Upload, UploadTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """A clip as it lies in S3.

    :param bytes: the size, as downloaded and as S3 confirmed it.
    :param sha256: of all bytes, in hexadecimal.
    """

    bytes: int
    sha256: str


def transfer_clip(
    url: str,
    *,
    s3: S3Client,
    target: S3Location,
    metadata: Mapping[str, str],
    upload_args: Mapping[str, Any] | None = None,
    expires_at: float | None = None,
    cancelled: threading.Event | None = None,
    limits: Limits = LIMITS,
) -> StoredClip:
    """Bring the clip behind a URL to S3.

    An object already at the key is replaced, in one step, when the new one is whole.

    :param url: the clip's URL, presigned or not. It is sent no credentials.
    :param s3: a boto3 client, as ``S3Hook(...).get_conn()`` gives it.
    :param metadata: the object's metadata, ASCII.
    :param upload_args: as ``S3Hook(extra_args=...)``: each goes to all calls that take it. Older Ceph servers
        silently drop ``Tagging`` from multipart uploads.
    :param expires_at: Unix seconds at which the link runs out, where that is known.
    :param cancelled: when set, the transfer ends at once with a :class:`ClipTransferError`.
    :raises ClipExpired: the clip's host refused the link, which has run out.
    :raises ClipTransferError: anything else. Nothing was left in the bucket, unless the message says so.
    """
    download = Download(url, expires_at=expires_at, limits=limits)
    del url  # error trackers show the local variables of whatever fails
    upload_target = UploadTarget(s3, target, metadata, upload_args or {})
    with (
        Upload(upload_target, require_mp4, limits) as upload,
        _cancellable(cancelled, download, upload),
        download,
    ):
        download.into(upload)
        upload.finish()
    upload_target.confirm(upload.size)
    return StoredClip(bytes=upload.size, sha256=upload.sha256)


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


@contextmanager
def _cancellable(cancelled: threading.Event | None, download: Download, upload: Upload) -> Iterator[None]:
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

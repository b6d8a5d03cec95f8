"""Clip URL → S3: in bounded memory, resumed where the download broke, checked before it can be seen.

One thread (the caller's) downloads and cuts the clip into parts; three others upload them. The bytes lie in a
fixed number of blocks that are used again and again, so the memory is the same for a clip of any length.

S3 shows an object when its ``PutObject`` or ``CompleteMultipartUpload`` has succeeded, not before. Neither is
sent until all bytes are there and their container is whole. Whatever ends a transfer early aborts its multipart upload.
(A killed process cannot: a lifecycle rule with ``AbortIncompleteMultipartUpload`` helps with those.)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Facts, S3Location
from airflow_provider_codegateway.exceptions import ClipTransferError
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.net import Stopped
from airflow_provider_codegateway.transfer.download import Download
from airflow_provider_codegateway.transfer.upload import StoredClip, Upload, UploadStopped, UploadTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)


class Transfer:
    """Brings the clip behind a URL to S3. An object already at the key is replaced, in one step.

    :param url: the clip's URL, presigned or not. It is sent no credentials but those that stand in it.
    :param s3: a boto3 client, as ``S3Hook(...).get_conn()`` gives it.
    :param metadata: makes the object's metadata, ASCII, of the clip's facts. A long clip's facts may be known only
        when its metadata are sent already; then it is told None.
    :param upload_args: as ``S3Hook(extra_args=...)``: each goes to all calls that take it. Older Ceph servers
        silently drop ``Tagging`` from multipart uploads.
    :param expires_at: Unix seconds at which the link runs out, where that is known.
    :param allows_http: whether a redirect from https to http is followed.
    :raises ClipTransferError: the URL is not http or https.
    """

    def __init__(
        self,
        url: str,
        *,
        s3: S3Client,
        target: S3Location,
        metadata: Callable[[Facts | None], Mapping[str, str]],
        upload_args: Mapping[str, Any] | None = None,
        expires_at: float | None = None,
        allows_http: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self._download = Download(url, expires_at=expires_at, allows_http=allows_http, limits=limits)
        self._target = UploadTarget(s3, target, metadata, upload_args or {})
        self._upload = Upload(self._target, limits)

    def run(self) -> StoredClip:
        """Bring the clip. Once only.

        :raises ClipExpired: the clip's host refused the link, which has run out.
        :raises ClipTransferError: anything else. Nothing was left in the bucket, unless the message says so.
        """
        try:
            with self._upload:
                self._download.into(self._upload)
                stored = self._upload.finish()
        except (Stopped, UploadStopped) as error:
            raise ClipTransferError("The transfer was cancelled.") from error
        self._target.confirm(stored.bytes)
        if stored.media_type != "video/mp4":
            log.warning("The clip is not an MP4. It was stored as it is, as %s.", stored.media_type)
        return stored

    def stop(self) -> None:
        """End it with an error, soon. From any thread."""
        self._upload.stop()
        self._download.stop()

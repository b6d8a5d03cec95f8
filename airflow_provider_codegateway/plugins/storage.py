"""Links to clips in S3, by the task's own connection.

Whoever may edit an XCom could name any object in it, with a fingerprint that they saw elsewhere. So a link is made
only for an object whose own metadata, which the operator wrote, says that the viewer may see it: it has the
fingerprint, and the task instance that stored it is this one, or one of a DAG whose clips the viewer may read.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow_provider_codegateway.clip import BESIDE, Marks, S3Location, split_uri
from airflow_provider_codegateway.plugins.clips import UNKNOWN, ConnId, runs_of
from airflow_provider_codegateway.s3 import Problem as S3Problem
from airflow_provider_codegateway.s3 import error_code, error_words, problem_of

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.plugins.clips import Entry

_MAX_POSTER = 4 * 1024 * 1024
LINK_SECONDS = 300
"""How long a link can be used."""

# A viewer waits, in a thread of the API server.
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 3, 6, 2
# Where S3 itself is asked, rather than a server that speaks its protocol.
_AWS = re.compile(r"s3[.-]([a-z0-9.-]+\.)?amazonaws\.[a-z.]+")
# A client takes a tenth of a second to build, and a page of still frames wants two dozen links. A connection
# that is changed is heeded after this time.
_CLIENT_SECONDS = 60

_signing = threading.local()
# At level DEBUG, botocore logs all that a signed link is made of.
logging.getLogger("botocore.auth").addFilter(lambda record: not getattr(_signing, "link", False))


class Problem(Enum):
    """Why there is no link. The value is the HTTP status."""

    FORGOTTEN = 404
    GONE = 410
    NOT_THE_CLIP = 409
    DENIED = 424
    UNREACHABLE = 503


class NoLink(Exception):
    """There is no link to this clip.

    :param words: S3's code, or the kind of failure; never a URL.
    """

    def __init__(self, problem: Problem, words: str = "") -> None:
        super().__init__(f"{problem.name} {words}")
        self.problem = problem
        self.words = words


@dataclass(frozen=True)
class Found:
    """An object that says it is a clip.

    :param is_own: whether the task itself stored it, as its metadata has it.
    """

    at: S3Location
    marks: Marks
    size: int
    stored: datetime
    is_own: bool
    s3: S3Client

    def poster(self, uri: str | None) -> tuple[bytes, str]:
        """Its first picture, and the picture's type.

        :raises NoLink: there is none, or what is there does not belong to the clip.
        """
        at = split_uri(uri or "")
        if at is None:
            raise NoLink(Problem.GONE)
        try:
            answer = self.s3.get_object(Bucket=at.bucket, Key=at.key)
            content = answer["Body"].read(_MAX_POSTER + 1)
        except Exception as error:
            raise no_link(error, place_is_known=False) from None
        kind = answer["ContentType"]
        is_ours = answer["Metadata"].get(BESIDE) == self.marks.fingerprint
        if not is_ours or kind not in ("image/jpeg", "image/png") or len(content) > _MAX_POSTER:
            raise NoLink(Problem.NOT_THE_CLIP)
        return content, kind

    def sign(self, *, download: bool = False) -> str:
        """A URL that shows it for ``LINK_SECONDS``. It is a secret: for the viewer alone, in no log.

        :param download: have the browser save it instead.
        """
        return sign(self.s3, self.at, download=download)


def look_at(entry: Entry) -> Found:
    """Look at the object of a task's clip.

    :raises NoLink: S3 does not answer, or what is there is not the clip of this task.
    """
    clip = entry.clip
    if clip is None:
        raise NoLink(Problem.GONE)
    at = S3Location(clip.bucket, clip.key)
    found = find(entry, at, place_is_known=entry.target == at)
    if found.marks.fingerprint != clip.fingerprint:
        raise NoLink(Problem.NOT_THE_CLIP)
    return found


def find(entry: Entry, at: S3Location, *, place_is_known: bool) -> Found:
    """What is at a place that a task names.

    :param place_is_known: see ``no_link``.
    :raises NoLink: S3 does not answer, or there is nothing.
    """
    if entry.aws_conn_id is UNKNOWN:
        raise NoLink(Problem.FORGOTTEN)
    try:
        s3 = client_for(entry.aws_conn_id, at.bucket)
        head = s3.head_object(Bucket=at.bucket, Key=at.key)
    except Exception as error:
        raise no_link(error, place_is_known=place_is_known) from None
    marks = Marks.from_metadata(head["Metadata"])
    is_own = marks.requester in runs_of(entry.task)
    return Found(at, marks, head["ContentLength"], head["LastModified"], is_own, s3)


def media_origin(aws_conn_id: ConnId, bucket: str) -> str | None:
    """Scheme, host and port of links into a bucket; None if that cannot be said."""
    return None if aws_conn_id is UNKNOWN else _media_origin(aws_conn_id, bucket, _period())


@functools.lru_cache(maxsize=256)
def _media_origin(aws_conn_id: str | None, bucket: str, period: int) -> str | None:
    """Also that it cannot be said is remembered: not every view of a page shall wait for an S3 that is down."""
    try:
        url = urlsplit(sign(client_for(aws_conn_id, bucket), S3Location(bucket, "any")))
    except Exception:
        return None  # the link, when asked for, will say why
    return f"{url.scheme}://{url.netloc}"


def no_link(error: Exception, *, place_is_known: bool) -> NoLink:
    """What S3's answer means for the viewer.

    :param place_is_known: whether the task's own arguments name the place.
    """
    code = error_code(error)
    is_server_error = code.startswith("5") or code in {"SlowDown", "InternalError", "ServiceUnavailable"}
    if code and not is_server_error and not place_is_known:
        # Nobody shall learn from an edited XCom which objects exist: S3 refuses what is there and may not be read,
        # and, to who may not list the bucket, what is not there.
        return NoLink(Problem.NOT_THE_CLIP)
    if problem_of(error) in (S3Problem.NOT_FOUND, S3Problem.NO_BUCKET):
        return NoLink(Problem.GONE)
    refused = code or problem_of(error) is S3Problem.NO_CREDENTIALS
    problem = Problem.DENIED if refused and not is_server_error else Problem.UNREACHABLE
    return NoLink(problem, error_words(error))


def client_for(aws_conn_id: str | None, bucket: str) -> S3Client:
    """A client for a bucket; of the last minute, at most."""
    return _client_in_region(aws_conn_id, bucket, _period())


def _period() -> int:
    return int(time.monotonic() // _CLIENT_SECONDS)


@functools.lru_cache(maxsize=64)
def _client_in_region(aws_conn_id: str | None, bucket: str, period: int) -> S3Client:
    """A client for a bucket, in the bucket's own region: botocore follows a bucket, but not when it signs a link."""
    s3 = make_client(aws_conn_id, None, period)
    if not _is_aws(s3) or bucket.startswith("arn:"):  # an ARN names its region
        return s3
    region = _region_of(s3, bucket)
    return s3 if region in (None, s3.meta.region_name) else make_client(aws_conn_id, region, period)


def _region_of(s3: S3Client, bucket: str) -> str | None:
    try:
        answer: Any = s3.head_bucket(Bucket=bucket)
    except Exception as error:
        answer = getattr(error, "response", None)
        if answer is None:
            raise
    region: str | None = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    return region


def _is_aws(s3: S3Client) -> bool:
    return _AWS.fullmatch(urlsplit(s3.meta.endpoint_url).hostname or "") is not None


@functools.lru_cache(maxsize=16)
def make_client(aws_conn_id: str | None, region: str | None, period: int) -> S3Client:
    """A client that gives up soon, and signs links as browsers need them.

    :param period: a new one is made when it changes.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    config = S3Hook(aws_conn_id=aws_conn_id).config.merge(
        Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"total_max_attempts": _ATTEMPTS},
        )
    )
    hook = S3Hook(aws_conn_id=aws_conn_id, config=config)  # the limits hold for asking STS for a role, too
    if getattr(config, "signature_version", None) is None:  # boto3 would sign links with version 2
        config = config.merge(Config(signature_version="s3v4"))
    client: S3Client = hook.get_client_type(region_name=region, config=config)
    if _is_aws(client):
        # Else botocore signs links for the global host, which does not serve the regions of 2019 and later.
        options: Any = {**(getattr(config, "s3", None) or {}), "addressing_style": "virtual"}
        style = Config(s3=options)
        client = hook.get_client_type(region_name=region, config=config.merge(style))
    return client


def sign(s3: S3Client, at: S3Location, *, download: bool = False) -> str:
    """A link to an object, which shows it as a video, or saves it under the last part of its key."""
    name = quote(at.key.rpartition("/")[2], safe="", errors="replace")
    _signing.link = True
    try:
        return s3.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": at.bucket,
                "Key": at.key,
                # Whatever the object says of itself, the browser shall take it for a video.
                "ResponseContentType": "video/mp4",
                "ResponseContentDisposition": f"attachment; filename*=UTF-8''{name}"
                if download
                else "inline",
                "ResponseCacheControl": "private, no-store",
            },
            ExpiresIn=LINK_SECONDS,
        )
    finally:
        _signing.link = False

"""Links to clips in S3, by the task's own connection.

Whoever may edit an XCom could name any object in it. So a link is made only for an object that proves to be
the clip: its metadata has the fingerprint, and the place is known from the task itself.
"""

from __future__ import annotations

import functools
import time
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_codegateway._s3 import NOT_FOUND, S3Location, error_code, error_words
from airflow_provider_codegateway.operators.video import _run_id

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.plugins.clips import Details
    from airflow_provider_codegateway.render import Clip

LINK_SECONDS = 300
"""How long a link can be used."""

# A viewer waits, in a thread of the API server.
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 3, 6, 2
# A client takes a tenth of a second to build, and a page of still frames wants two dozen links. A connection
# that is changed is heeded after this time.
_CLIENT_SECONDS = 60
_UNKNOWN_CONNECTION = frozenset({"AirflowNotFoundException", "NoCredentialsError", "PartialCredentialsError"})


class Problem(Enum):
    """Why there is no link. The value is the HTTP status."""

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


def link(details: Details) -> str:
    """A URL that shows the clip for ``LINK_SECONDS``. It is a secret: for the viewer alone, in no log.

    :raises NoLink: S3 does not answer, or what is there is not the clip of this task.
    """
    clip = details.clip
    if clip is None:
        raise NoLink(Problem.GONE)
    try:
        s3 = _client(details.aws_conn_id)
        head = s3.head_object(Bucket=clip.bucket, Key=clip.key)
        metadata = head["Metadata"]
    except Exception as error:
        raise _no_link(error, place_is_known=_place_is_known(details, clip)) from None
    if metadata.get("codegateway-fingerprint") != clip.fingerprint:
        raise NoLink(Problem.NOT_THE_CLIP)
    if not _place_is_known(details, clip) and metadata.get("codegateway-run") != _own_run(details):
        raise NoLink(Problem.NOT_THE_CLIP)
    return _sign(s3, S3Location(clip.bucket, clip.key))


def media_origin(aws_conn_id: str | None, bucket: str) -> str | None:
    """Scheme, host and port of links into a bucket, found without a call; None if that cannot be said."""
    try:
        url = urlsplit(_sign(_client(aws_conn_id), S3Location(bucket, "any")))
    except Exception:
        return None  # the link, when asked for, will say why
    return f"{url.scheme}://{url.netloc}"


def _place_is_known(details: Details, clip: Clip) -> bool:
    return details.target == S3Location(clip.bucket, clip.key)


def _own_run(details: Details) -> str:
    identity: Any = {"ti": details.task}  # it reads no more of a context than that
    return _run_id(identity)


def _no_link(error: Exception, *, place_is_known: bool) -> NoLink:
    code = error_code(error)
    if code in NOT_FOUND or code == "NoSuchBucket":
        # Nobody shall learn from an edited XCom which objects exist.
        return NoLink(Problem.GONE if place_is_known else Problem.NOT_THE_CLIP)
    refused = code or type(error).__name__ in _UNKNOWN_CONNECTION
    is_server_error = code.startswith("5") or code in {"SlowDown", "InternalError", "ServiceUnavailable"}
    problem = Problem.DENIED if refused and not is_server_error else Problem.UNREACHABLE
    return NoLink(problem, error_words(error))


def _client(aws_conn_id: str | None) -> S3Client:
    return _make_client(aws_conn_id, int(time.monotonic() // _CLIENT_SECONDS))


@functools.lru_cache(maxsize=8)
def _make_client(aws_conn_id: str | None, period: int) -> S3Client:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    hook = S3Hook(aws_conn_id=aws_conn_id)
    config = hook.config.merge(
        Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"total_max_attempts": _ATTEMPTS},
        )
    )
    if getattr(config, "signature_version", None) is None:  # boto3 would sign links with version 2
        config = config.merge(Config(signature_version="s3v4"))
    client: S3Client = hook.get_client_type(config=config)
    return client


def _sign(s3: S3Client, at: S3Location) -> str:
    return s3.generate_presigned_url(
        "get_object",
        Params={
            "Bucket": at.bucket,
            "Key": at.key,
            # Whatever the object says of itself, the browser shall take it for a video.
            "ResponseContentType": "video/mp4",
            "ResponseContentDisposition": "inline",
            "ResponseCacheControl": "private, no-store",
        },
        ExpiresIn=LINK_SECONDS,
    )

"""What S3 answers, classified once; the requests that need more than one call; a client that reads its connection anew.

botocore's classes are known here by their names: a DAG file that imports the operator must not load it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidTarget, StorageUnavailable
from airflow_provider_codegateway.foreign import safe_text
from airflow_provider_codegateway.redaction import redact_urls

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef


class Problem(Enum):
    """What an S3 call failed of."""

    NOT_FOUND = auto()
    NO_BUCKET = auto()
    EXISTS = auto()
    """A conditional write found the object there, or somebody else just creating it."""
    DENIED = auto()
    NO_CREDENTIALS = auto()
    BAD_CREDENTIALS = auto()
    WRONG_CLOCK = auto()
    """This machine's clock and the store's are too far apart."""
    UNSUPPORTED = auto()
    """The store does not know this kind of request."""
    CHECKSUM = auto()
    """The store does not know the checksum that boto3 adds to a request."""
    NOT_S3 = auto()
    """What answered does not speak S3."""
    REFUSED = auto()
    """The request itself is wrong: the same one will be refused again."""
    UNAVAILABLE = auto()
    """No answer, or one that may be another later."""


_CODES = {
    Problem.NOT_FOUND: "404 NoSuchKey NotFound NoSuchUpload",
    Problem.NO_BUCKET: "NoSuchBucket",
    Problem.EXISTS: "PreconditionFailed 412 NotModified 304 ConditionalRequestConflict OperationAborted Conflict 409",
    Problem.DENIED: "AccessDenied 403 Forbidden AllAccessDisabled",
    Problem.BAD_CREDENTIALS: (
        "InvalidAccessKeyId SignatureDoesNotMatch InvalidSecurity AuthorizationHeaderMalformed "
        "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired"
    ),
    Problem.WRONG_CLOCK: "RequestTimeTooSkewed",
    Problem.UNSUPPORTED: "NotImplemented 501 MethodNotAllowed 405",
    Problem.CHECKSUM: "XAmzContentSHA256Mismatch InvalidTrailer",
    Problem.UNAVAILABLE: "RequestTimeout SlowDown BadDigest IncompleteBody",
}
_CLASSES = {
    Problem.NO_CREDENTIALS: "NoCredentialsError PartialCredentialsError",
    Problem.REFUSED: "ParamValidationError",
    # botocore follows a redirect to the same place without end; the last three are of its parser, of a date for one.
    Problem.NOT_S3: "ResponseParserError RecursionError ValueError TypeError KeyError",
}
_BY_CODE = {code: problem for problem, codes in _CODES.items() for code in codes.split()}
_BY_CLASS = {name: problem for problem, names in _CLASSES.items() for name in names.split()}
_CHECKSUM_WORDS = ("checksum", "x-amz-trailer", "x-amz-sdk", "aws-chunked", "streaming-unsigned")
_CONDITION_WORDS = "at least one of the pre-conditions"
_MAX_WORDS = 300


def problem_of(error: Exception) -> Problem:
    """The kind of failure that a boto3 call raised."""
    code, status = error_code(error), _status(error)
    said = _said(error).lower()
    if status in (400, 411, 501) and any(words in said for words in _CHECKSUM_WORDS):
        return Problem.CHECKSUM
    if status == 412 or _CONDITION_WORDS in said:
        return Problem.EXISTS
    if known := _BY_CODE.get(code) or _BY_CLASS.get(type(error).__name__):
        return known
    if "Throttl" in code:
        return Problem.UNAVAILABLE
    return Problem.REFUSED if 400 <= status < 500 and status not in (408, 429) else Problem.UNAVAILABLE


def error_code(error: Exception) -> str:
    """The code that S3 answered with, or "" if it did not answer."""
    return _plain(_error(error).get("Code", ""))


def error_words(error: Exception) -> str:
    """The code that S3 answered with, or the kind of failure. Never a request's URL: it may be signed."""
    return error_code(error) or type(error).__name__


def error_text(error: Exception) -> str:
    """The code and the words that S3 answered with, safe to show."""
    said = redact_urls(_plain(_error(error).get("Message") or "")).rstrip(".")
    if _status(error) == 407:
        said = "a proxy asks for a user and a password, see HTTPS_PROXY"
    return f"{error_words(error)}: {said}" if said else error_words(error)


def storage_error(error: Exception, *, doing: str, at: S3Location, permission: str) -> CodeGatewayError:
    """The class of an S3 failure before a purchase: what a retry cannot help fails the task.

    :param doing: what was tried, such as "write the ledger".
    :param permission: the IAM action that it takes, such as "s3:PutObject".
    """
    code = error_words(error)
    match problem_of(error):
        case Problem.NO_BUCKET:
            return InvalidTarget(
                f"The bucket {at.bucket!r} does not exist (while trying to {doing}). Create it, or correct the name."
            )
        case Problem.DENIED:
            return InvalidTarget(
                f"S3 denied access while trying to {doing} at {at.uri}. "
                f"Give the AWS connection {permission} there."
            )
        case Problem.NO_CREDENTIALS:
            return InvalidTarget(
                f"There are no AWS credentials to {doing} at {at.uri}. Check that the AWS connection exists and has "
                "an access key."
            )
        case Problem.BAD_CREDENTIALS:
            return InvalidTarget(
                f"S3 refused the AWS connection's credentials ({error_text(error)}) while trying to {doing}. Correct "
                "the access key, the secret key or the session token."
            )
        case Problem.WRONG_CLOCK:
            return InvalidTarget(
                f"S3 refused to {doing}, because this machine's clock is wrong ({code}). Set the clock, for example "
                "with NTP."
            )
        case Problem.CHECKSUM:
            return InvalidTarget(
                f"The S3 server refused to {doing} at {at.uri} because of the checksum that boto3 sends "
                f"({error_text(error)}). {CHECKSUM_ADVICE}"
            )
        case Problem.NOT_S3:
            return not_s3(at, f"could not be read as S3's while trying to {doing}")
        case Problem.REFUSED | Problem.UNSUPPORTED:
            return InvalidTarget(f"S3 refused to {doing} at {at.uri} ({error_text(error)}).")
    return StorageUnavailable(f"S3 could not {doing} at {at.uri} ({code}).")


CHECKSUM_ADVICE = (
    'Add "config_kwargs": {"request_checksum_calculation": "when_required"} to the extra of the AWS '
    "connection."
)


def not_s3(at: S3Location, what: str) -> InvalidTarget:
    """The error for an endpoint that is something else, such as a console or a login page."""
    return InvalidTarget(
        f"The answer for {at.uri} {what}. The endpoint_url of the AWS connection may be that of a web console. Set it "
        "to the S3 API, which MinIO serves on another port."
    )


def head_object(s3: S3Client, at: S3Location, **arguments: Any) -> HeadObjectOutputTypeDef:
    """As boto3's, but says why it was refused, and what answers in place of S3.

    S3's answer to a HEAD has no body. So a refused one is asked again as a GET of one byte, which has words.

    :raises InvalidTarget: what answered is not S3.
    """
    try:
        answer = s3.head_object(Bucket=at.bucket, Key=at.key, **arguments)
    except Exception as error:
        if _status(error) not in (400, 403) or error_code(error) not in _WORDLESS:
            raise
        try:
            s3.get_object(Bucket=at.bucket, Key=at.key, Range="bytes=0-0", **arguments)["Body"].close()
        except Exception as told:
            if _status(told) != 416:  # an empty object has no first byte
                raise told from None
        answer = s3.head_object(Bucket=at.bucket, Key=at.key, **arguments)
    if "ETag" not in answer:
        kind = _plain(answer.get("ContentType", "of no type"))
        raise not_s3(at, f"is not S3's: it has no ETag ({kind})")
    return answer


def require_list(answer: Mapping[str, Any], at: S3Location) -> None:
    """:raises InvalidTarget: this is no answer of S3's to a LIST, such as an empty body or a page."""
    if not _LISTED & answer.keys():
        raise not_s3(at, "is not a list of objects from S3")


_LISTED = frozenset({"Name", "Prefix", "KeyCount", "MaxKeys", "IsTruncated", "Contents"})
"""Of which a list has at least one, also an empty one."""
_WORDLESS = frozenset({"", "400", "403", "Bad Request", "BadRequest", "Forbidden"})

_ACCESS = ("RequestPayer", "ExpectedBucketOwner")


def access_args(s3: S3Client, operation: str, upload_args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``s3_extra_args`` that every request to the bucket must have, as far as this one takes them."""
    taken = members(s3, operation)
    return {name: upload_args[name] for name in _ACCESS if name in upload_args and name in taken}


ENCRYPTION = ("ServerSideEncryption", "SSEKMSKeyId", "SSEKMSEncryptionContext", "BucketKeyEnabled")
_GRANTS = ("GrantFullControl", "GrantRead", "GrantReadACP", "GrantWriteACP")
DEMANDED = (*ENCRYPTION, "Tagging", *_ACCESS, "ACL", *_GRANTS)
"""What a bucket's policy may demand of every object in it."""
_CLOSED_ACLS = ("private", "bucket-owner-read", "bucket-owner-full-control")


def demanded_args(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``s3_extra_args`` that a policy may demand of every object, less those that publish it."""
    return {
        name: given[name]
        for name in DEMANDED
        if name in given
        and not (name == "ACL" and given[name] not in _CLOSED_ACLS)
        and not (name in _GRANTS and "uri=" in str(given[name]))
    }


def members(s3: S3Client, operation: str) -> frozenset[str]:
    """The arguments that an operation takes."""
    shape = s3.meta.service_model.operation_model(operation).input_shape
    return frozenset(() if shape is None else shape.members)


class Proofs:
    """What a client was seen to be allowed: proven once, and again when that was long ago."""

    def __init__(self) -> None:
        self._since: WeakKeyDictionary[S3Client, dict[str, float]] = WeakKeyDictionary()

    def hold(self, s3: S3Client, what: str, seconds: float) -> bool:
        """Whether it was proven within so many seconds."""
        since = self._since.get(s3, {}).get(what)
        return since is not None and time.monotonic() - since < seconds

    def add(self, s3: S3Client, what: str) -> None:
        """It was proven just now."""
        self._since.setdefault(s3, {})[what] = time.monotonic()


def read_object(s3: S3Client, at: S3Location, limit: int, **arguments: Any) -> bytes:
    """An input from S3: the object, or its first ``limit`` + 1 bytes if it is larger.

    :raises ValueError: there is no such object.
    :raises InvalidTarget, StorageUnavailable: see ``storage_error``.
    """
    try:
        return s3.get_object(Bucket=at.bucket, Key=at.key, **arguments)["Body"].read(limit + 1)
    except Exception as error:
        if problem_of(error) is Problem.NOT_FOUND:
            raise ValueError(f"{at.uri} does not exist") from None
        raise storage_error(error, doing="read an input", at=at, permission="s3:GetObject") from error


class RenewableClient:
    """A boto3 client that is built anew when its credentials have run out, and whose call is then repeated.

    A session token may expire while a render takes its two minutes.

    :param connect: builds a client of what the connection says now.
    :param connect_quickly: as ``connect``, with short time-outs and without retries.
    """

    def __init__(self, connect: Callable[[], S3Client], connect_quickly: Callable[[], S3Client]) -> None:
        self._connect = connect
        self._connect_quickly = connect_quickly
        self._client = connect()
        self._quick: S3Client | None = None
        self._renewing = threading.Lock()

    @classmethod
    def make(cls, connect: Callable[[], S3Client], connect_quickly: Callable[[], S3Client]) -> S3Client:
        """One, typed as what it behaves like."""
        return cast("S3Client", cls(connect, connect_quickly))

    def quick(self, after: S3Client | None = None) -> S3Client:
        """A client of short time-outs and without retries: another one, with new connections, than ``after``."""
        with self._renewing:
            if self._quick is None or self._quick is after:
                try:
                    self._quick = self._connect_quickly()
                except Exception:  # of Airflow, which looks its connection up; the old one may do
                    if self._quick is None:
                        raise
            return self._quick

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if name not in _CALLS:
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            client = self._client
            try:
                return getattr(client, name)(*args, **kwargs)
            except Exception as error:
                if problem_of(error) is not Problem.BAD_CREDENTIALS:
                    raise
                self._renew(client)
                body = kwargs.get("Body")
                if body is not None and hasattr(body, "seek"):
                    body.seek(0)
                return getattr(self._client, name)(*args, **kwargs)

        return call

    def _renew(self, stale: S3Client) -> None:
        with self._renewing:
            if self._client is stale:
                self._client = self._connect()


_CALLS = frozenset(
    {
        *("head_object", "get_object", "put_object", "delete_object", "delete_objects", "list_objects_v2"),
        *("create_multipart_upload", "upload_part", "complete_multipart_upload", "abort_multipart_upload"),
        "list_multipart_uploads",
    }
)


def quick_client(s3: S3Client, after: S3Client | None = None) -> S3Client:
    """A client for a write that must not hang; the same one, if that is all there is.

    :param after: the one with which that write has just failed.
    """
    return s3.quick(after) if isinstance(s3, RenewableClient) else s3


def _error(error: Exception) -> Mapping[str, Any]:
    response: Mapping[str, Mapping[str, Any]] = getattr(error, "response", None) or {}
    return response.get("Error", {})


def _status(error: Exception) -> int:
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _said(error: Exception) -> str:
    """All that the answer says: the header that it does not know stands beside its words."""
    return " ".join(str(value)[:_MAX_WORDS] for value in _error(error).values())


def _plain(text: object) -> str:
    return safe_text(text, _MAX_WORDS).strip()

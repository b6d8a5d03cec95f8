"""What S3 answers, classified once, and reading an object.

botocore's classes are known here by their names: a DAG file that imports the operator must not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidTarget, StorageUnavailable
from airflow_provider_codegateway.foreign import safe_text

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


class Problem(Enum):
    """What an S3 call failed of."""

    NOT_FOUND = auto()
    NO_BUCKET = auto()
    EXISTS = auto()
    """A conditional write found the object there, or somebody else just creating it."""
    DENIED = auto()
    NO_CREDENTIALS = auto()
    BAD_CREDENTIALS = auto()
    UNSUPPORTED = auto()
    """The store does not know this kind of request."""
    REFUSED = auto()
    """The request itself is wrong: the same one will be refused again."""
    UNAVAILABLE = auto()
    """No answer, or one that may be another later."""


_BY_CODE = {
    **dict.fromkeys(("404", "NoSuchKey", "NotFound", "NoSuchUpload"), Problem.NOT_FOUND),
    "NoSuchBucket": Problem.NO_BUCKET,
    **dict.fromkeys(
        ("PreconditionFailed", "412", "ConditionalRequestConflict", "OperationAborted", "409"),
        Problem.EXISTS,
    ),
    **dict.fromkeys(("AccessDenied", "403", "Forbidden", "AllAccessDisabled"), Problem.DENIED),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
        Problem.BAD_CREDENTIALS,
    ),
    **dict.fromkeys(("NotImplemented", "501"), Problem.UNSUPPORTED),
    **dict.fromkeys(("RequestTimeout", "RequestTimeTooSkewed", "SlowDown"), Problem.UNAVAILABLE),
}
_BY_CLASS = {
    "NoCredentialsError": Problem.NO_CREDENTIALS,
    "PartialCredentialsError": Problem.NO_CREDENTIALS,
    "ParamValidationError": Problem.REFUSED,
}


def problem_of(error: Exception) -> Problem:
    """The kind of failure that a boto3 call raised."""
    code = error_code(error)
    if known := _BY_CODE.get(code) or _BY_CLASS.get(type(error).__name__):
        return known
    if "Throttl" in code:
        return Problem.UNAVAILABLE
    answer: Mapping[str, Any] = getattr(error, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return Problem.REFUSED if 400 <= status < 500 and status not in (408, 429) else Problem.UNAVAILABLE


def error_code(error: Exception) -> str:
    """The code that S3 answered with, or "" if it did not answer."""
    response = getattr(error, "response", None) or {}
    return safe_text(response.get("Error", {}).get("Code", ""), 100)


def error_words(error: Exception) -> str:
    """The code that S3 answered with, or the kind of failure. Never a request's URL: it may be signed."""
    return error_code(error) or type(error).__name__


def storage_error(error: Exception, *, doing: str, at: S3Location, permission: str) -> CodeGatewayError:
    """The class of an S3 failure before a purchase: what a retry cannot help fails the task.

    :param doing: what was tried, such as "write the ledger".
    :param permission: the IAM action that it takes, such as "s3:PutObject".
    """
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
                f"S3 refused the AWS connection's credentials ({error_code(error)}) while trying to {doing}."
            )
    return StorageUnavailable(f"S3 could not {doing} at {at.uri} ({error_words(error)}).")


def read_object(s3: S3Client, at: S3Location, limit: int) -> bytes:
    """An input from S3: the object, or its first ``limit`` + 1 bytes if it is larger.

    :raises ValueError: there is no such object.
    :raises InvalidTarget, StorageUnavailable: see ``storage_error``.
    """
    try:
        return s3.get_object(Bucket=at.bucket, Key=at.key)["Body"].read(limit + 1)
    except Exception as error:
        if problem_of(error) is Problem.NOT_FOUND:
            raise ValueError(f"{at.uri} does not exist") from None
        raise storage_error(error, doing="read an input", at=at, permission="s3:GetObject") from error

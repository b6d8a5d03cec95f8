"""What S3 answers, in words, and where an ``s3://`` URI points.

botocore is imported inside the functions: a DAG file that imports the operator must not load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidTarget, StorageUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

DEFAULT_LEDGER_PREFIX = "_codegateway/"
"""Where the ledger is kept in the clip's bucket."""

ACCESS_DENIED = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled"})
NO_SUCH_BUCKET = frozenset({"NoSuchBucket"})
NOT_FOUND = frozenset({"404", "NoSuchKey", "NotFound"})
CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})


@dataclass(frozen=True)
class S3Location:
    """A bucket and a key (or a prefix) in it."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """Such as ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"


def split_uri(uri: str) -> S3Location | None:
    """The parts of an ``s3://`` URI, or None if it is not one. A key may hold ``?``, ``#`` and ``%``."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower() not in {"s3", "s3a", "s3n"}:
        return None
    bucket, _, key = rest.partition("/")
    return S3Location(bucket, key)


def metadata_of(head: HeadObjectOutputTypeDef) -> dict[str, str]:
    """An object's metadata. Their names are headers, which some servers write with capitals."""
    return {name.lower(): value for name, value in head["Metadata"].items()}


def error_code(error: Exception) -> str:
    """The code that S3 answered with, or "" if it did not answer."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def error_words(error: Exception) -> str:
    """The code that S3 answered with, or the kind of failure. Never a request's URL: it may be signed."""
    return error_code(error) or type(error).__name__


def storage_error(error: Exception, *, doing: str, at: S3Location, permission: str) -> CodeGatewayError:
    """The class of an S3 failure before a purchase: what a retry cannot mend fails the task.

    :param doing: what was tried, such as "write the ledger".
    :param permission: the IAM action that it takes, such as "s3:PutObject".
    """
    code = error_code(error)
    if code in NO_SUCH_BUCKET:
        return InvalidTarget(f"The bucket {at.bucket!r} does not exist (tried to {doing}).")
    if code in ACCESS_DENIED:
        return InvalidTarget(
            f"S3 denied access when trying to {doing} at {at.uri}: "
            f"the AWS connection needs {permission} there."
        )
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        return InvalidTarget(
            f"There are no AWS credentials to {doing} at {at.uri}: does the AWS connection exist, with a key in it?"
        )
    if code in CREDENTIALS:
        return InvalidTarget(f"S3 refused the AWS connection's credentials ({code}) when trying to {doing}.")
    return StorageUnavailable(f"S3 could not {doing} at {at.uri} ({error_words(error)}).")


def read_object(s3: S3Client, at: S3Location, limit: int) -> bytes:
    """An input from S3: the object, or its first ``limit`` + 1 bytes if it is larger.

    :raises ValueError: there is no such object.
    :raises InvalidTarget, StorageUnavailable: see ``storage_error``.
    """
    try:
        return s3.get_object(Bucket=at.bucket, Key=at.key)["Body"].read(limit + 1)
    except Exception as error:
        if error_code(error) in NOT_FOUND:
            raise ValueError(f"{at.uri} does not exist") from None
        raise storage_error(error, doing="read an input", at=at, permission="s3:GetObject") from error

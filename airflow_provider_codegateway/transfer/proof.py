"""Whether S3 will take a clip, found out for free; and uploads that are open and should not be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import (
    ClipTransferError,
    CodeGatewayError,
    InvalidRequest,
    InvalidTarget,
)
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.s3 import (
    Problem,
    Proofs,
    access_args,
    error_text,
    members,
    problem_of,
    storage_error,
)
from airflow_provider_codegateway.transfer.upload import UploadTarget, without_values

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

_OURS = frozenset({"Bucket", "Key", "Body", "Metadata", "ContentLength", "ContentMD5"})
# The others are a checksum of the whole clip, which no single part has.
_CHECKSUM_ARGS = frozenset({"ChecksumAlgorithm", "ChecksumType"})
_SAID_BY_UPLOAD = (Problem.REFUSED, Problem.NOT_FOUND, Problem.UNSUPPORTED)
_MAY_LIST, _MAY_ABORT = "s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload"

_uploads = Proofs()


def require_upload_args(s3: S3Client, upload_args: Mapping[str, Any]) -> None:
    """Refuse arguments that storing a clip cannot pass on. Makes no call.

    :raises InvalidRequest: names each of them.
    """
    taken = members(s3, "PutObject") | members(s3, "CreateMultipartUpload")
    wrong = sorted(
        name
        for name in upload_args
        if name not in taken or name in _OURS or (name.startswith("Checksum") and name not in _CHECKSUM_ARGS)
    )
    if wrong:
        raise InvalidRequest(
            f"s3_extra_args has {', '.join(wrong)}, which cannot be set here. Use arguments of PutObject and "
            "CreateMultipartUpload such as ACL, ServerSideEncryption, SSEKMSKeyId, StorageClass or Tagging."
        )
    from botocore.validate import ParamValidator  # a DAG file needs no botocore

    for operation in ("PutObject", "CreateMultipartUpload"):
        shape = s3.meta.service_model.operation_model(operation).input_shape
        assert shape is not None
        # boto3 encodes a customer's key of bytes by itself, before it checks.
        given = {
            name: value
            for name, value in upload_args.items()
            if name in shape.members and not (name == "SSECustomerKey" and isinstance(value, bytes))
        }
        report = ParamValidator().validate({"Bucket": "b", "Key": "k", **given}, shape)
        if report.has_errors():
            raise InvalidRequest(f"s3_extra_args: {without_values(report.generate_report())}.")


def prove_upload(s3: S3Client, at: S3Location, upload_args: Mapping[str, Any], limits: Limits) -> None:
    """Begin an upload, abort it and look for others: for free, that tells whether S3 will take the clip on these terms.

    Three requests, every ten minutes for each client, folder of the bucket and set of arguments.

    :raises InvalidTarget: it will not.
    :raises StorageUnavailable: S3 did not answer.
    """
    folder = f"{at.bucket}/{at.key.rpartition('/')[0]} {sorted(upload_args.items())!r}"
    if _uploads.hold(s3, folder, limits.proof_seconds):
        return
    target = UploadTarget(s3, at, lambda _: {}, upload_args)
    try:
        upload_id, is_alone = target.create(target.object_args("video/mp4", None))
    except ClipTransferError as error:
        cause = error.__cause__
        problem: CodeGatewayError = InvalidTarget(error.args[0])
        if isinstance(cause, Exception) and problem_of(cause) not in _SAID_BY_UPLOAD:
            problem = storage_error(cause, doing="begin an upload", at=at, permission="s3:PutObject")
        raise problem from cause
    _require_aborted(s3, at, upload_id, upload_args)
    if not is_alone:  # S3 was asked twice, and nobody else has begun anything here
        clear_uploads(s3, at, upload_args)
    try:
        s3.list_multipart_uploads(
            Bucket=at.bucket,
            Prefix=at.key,
            MaxUploads=1,
            **access_args(s3, "ListMultipartUploads", upload_args),
        )
    except Exception as error:
        if problem_of(error) is Problem.DENIED:
            raise storage_error(error, doing="list the open uploads", at=at, permission=_MAY_LIST) from error
        log.warning(
            "The open uploads of %s cannot be listed (%s): what a killed transfer leaves stays there.",
            at.uri,
            error_text(error),
        )
    _uploads.add(s3, folder)


def clear_uploads(s3: S3Client, at: S3Location, upload_args: Mapping[str, Any]) -> None:
    """Abort what is open at this key, before anything is bought.

    :raises InvalidTarget, StorageUnavailable: an upload may have remained.
    """
    try:
        uploads = _find_uploads(s3, at, upload_args)
    except Exception as error:
        if problem_of(error) is Problem.UNAVAILABLE:
            raise storage_error(error, doing="list the open uploads", at=at, permission=_MAY_LIST) from error
        return  # the proof says what it is
    for upload_id in uploads:
        _require_aborted(s3, at, upload_id, upload_args)


def _require_aborted(s3: S3Client, at: S3Location, upload_id: str, upload_args: Mapping[str, Any]) -> None:
    """:raises InvalidTarget, StorageUnavailable: the upload remains and could not be aborted."""
    try:
        _abort(s3, at, upload_id, upload_args)
    except Exception as error:
        failed = storage_error(error, doing="abort an upload", at=at, permission=_MAY_ABORT)
        if problem_of(error) in (Problem.DENIED, Problem.UNAVAILABLE):
            raise failed from error
        log.warning(
            "An upload was begun to test the permissions, and could not be aborted: %s", failed.args[0]
        )


def open_uploads(s3: S3Client, at: S3Location, upload_args: Mapping[str, Any]) -> list[str]:
    """The ids of what a killed transfer left at this key; none, and a warning, if S3 does not say."""
    try:
        return _find_uploads(s3, at, upload_args)
    except Exception as error:
        _warn(error, at, "look for", _MAY_LIST)
        return []


def abort_uploads(
    s3: S3Client, at: S3Location, upload_ids: list[str], upload_args: Mapping[str, Any]
) -> None:
    """Abort what a killed transfer left. A transfer that is alive after all fails, and is repeated for free."""
    for upload_id in upload_ids:
        try:
            _abort(s3, at, upload_id, upload_args)
        except Exception as error:
            _warn(error, at, "abort", _MAY_ABORT)


def _warn(error: Exception, at: S3Location, doing: str, permission: str) -> None:
    failed = storage_error(
        error, doing=f"{doing} uploads that a killed transfer left", at=at, permission=permission
    )
    log.warning("%s", failed.args[0])


def _find_uploads(s3: S3Client, at: S3Location, upload_args: Mapping[str, Any]) -> list[str]:
    """The ids of the multipart uploads to exactly this key that are neither completed nor aborted."""
    pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=at.bucket, Prefix=at.key, **access_args(s3, "ListMultipartUploads", upload_args)
    )
    uploads = [upload for page in pages for upload in page.get("Uploads", [])]
    return [upload["UploadId"] for upload in uploads if upload["Key"] == at.key]


def _abort(s3: S3Client, at: S3Location, upload_id: str, upload_args: Mapping[str, Any]) -> None:
    """Abort an upload, if it is still open."""
    access = access_args(s3, "AbortMultipartUpload", upload_args)
    try:
        s3.abort_multipart_upload(Bucket=at.bucket, Key=at.key, UploadId=upload_id, **access)
    except Exception as error:
        if problem_of(error) is not Problem.NOT_FOUND:
            raise

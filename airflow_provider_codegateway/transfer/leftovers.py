"""Multipart uploads that a killed transfer could not abort."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.s3 import Problem, access_args, problem_of, storage_error

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)


def open_uploads(s3: S3Client, target: S3Location, upload_args: Mapping[str, Any]) -> list[str]:
    """As ``find_uploads``; none, and a warning, if S3 does not say."""
    try:
        return find_uploads(s3, target, upload_args)
    except Exception as error:
        _warn(error, target, "look for", "s3:ListBucketMultipartUploads")
        return []


def find_uploads(s3: S3Client, target: S3Location, upload_args: Mapping[str, Any]) -> list[str]:
    """The ids of the multipart uploads to exactly this key that are neither completed nor aborted."""
    pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=target.bucket, Prefix=target.key, **access_args(s3, "ListMultipartUploads", upload_args)
    )
    return [
        upload["UploadId"]
        for page in pages
        for upload in page.get("Uploads", [])
        if upload["Key"] == target.key
    ]


def abort_uploads(
    s3: S3Client, target: S3Location, upload_ids: list[str], upload_args: Mapping[str, Any]
) -> None:
    """Abort what a killed transfer left. A transfer that is alive after all fails, and is repeated for free."""
    for upload_id in upload_ids:
        try:
            s3.abort_multipart_upload(
                Bucket=target.bucket,
                Key=target.key,
                UploadId=upload_id,
                **access_args(s3, "AbortMultipartUpload", upload_args),
            )
        except Exception as error:
            if problem_of(error) is not Problem.NOT_FOUND:
                _warn(error, target, "abort", "s3:AbortMultipartUpload")


def _warn(error: Exception, target: S3Location, doing: str, permission: str) -> None:
    failed = storage_error(
        error, doing=f"{doing} uploads that a killed transfer left", at=target, permission=permission
    )
    log.warning("%s", failed.args[0])

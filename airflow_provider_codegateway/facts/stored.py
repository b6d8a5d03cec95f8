"""The facts of a clip that is stored already, and says none in its metadata: read by ranges."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Facts, S3Location
from airflow_provider_codegateway.facts.container import Container
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.s3 import access_args

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

_RANGE = 64 * 1024
_MOST_READS = 16


def read_stored_facts(
    s3: S3Client, at: S3Location, *, size: int, upload_args: Mapping[str, Any], limits: Limits = LIMITS
) -> Facts | None:
    """What a stored clip measures: of an index at its front one request, of one at its end two or three.

    :param upload_args: what the clip was uploaded with.
    :return: None if that cannot be read, for whatever reason.
    """
    container = Container(limits)
    position = 0
    try:
        for _ in range(_MOST_READS):
            if position >= size or container.early_facts is not None:
                return container.facts
            last = min(position + _RANGE, size) - 1
            answer = s3.get_object(
                Bucket=at.bucket,
                Key=at.key,
                Range=f"bytes={position}-{last}",
                **access_args(s3, "GetObject", upload_args),
            )
            container.feed(memoryview(answer["Body"].read()))
            if not container.has_index:
                return None
            position = last + 1 + container.skip()
    except Exception as error:  # of botocore or urllib3, which are not loaded here
        log.warning("The facts of %s could not be read (%s).", at.uri, type(error).__name__)
    return None

"""S3 clients of Airflow's AWS connections: one for each connection, shared, and built anew when credentials run out."""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidTarget, StorageUnavailable
from airflow_provider_codegateway.limits import LIMITS
from airflow_provider_codegateway.redaction import redact_urls
from airflow_provider_codegateway.s3 import Problem, RenewableClient, error_text, problem_of
from airflow_provider_codegateway.threads import to_the_end

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

DEFAULT_CONNECTION_ID = "aws_default"
"""Where it does not exist, boto3's own credentials are used, as by every operator of the Amazon provider."""


def s3_client(conn_id: str | None) -> S3Client:
    """A client for an AWS connection.

    :raises InvalidTarget: there is no such connection, or no client can be made of it.
    :raises StorageUnavailable: whoever gives its credentials did not answer.
    """
    says = ""
    if conn_id is not None:
        try:
            says = BaseHook.get_connection(conn_id).get_uri()
        except AirflowNotFoundException:
            _require_default(conn_id)
    return _shared_client(conn_id, says)


async def as3_client(conn_id: str | None) -> S3Client:
    """As ``s3_client``, without holding up the event loop."""
    says = ""
    if conn_id is not None:
        try:
            connection = await get_async_connection(conn_id)
            says = await to_the_end("ledger", connection.get_uri)
        except AirflowNotFoundException:
            _require_default(conn_id)
    return await to_the_end("ledger", _shared_client, conn_id, says)


def _require_default(conn_id: str) -> None:
    if conn_id != DEFAULT_CONNECTION_ID:
        raise InvalidTarget(
            f"The AWS connection {conn_id!r} does not exist. Create it, or correct the name."
        ) from None


_making = threading.Lock()


def _shared_client(conn_id: str | None, says: str) -> S3Client:
    with _making:  # a thousand triggers that start at once need one client, not one each
        return _cached_client(conn_id, says, os.getpid())


# The first client reads botocore's description of S3: 0.1 to 0.4 s in which no other Python runs.
@functools.lru_cache(maxsize=16)
def _cached_client(conn_id: str | None, says: str, pid: int) -> S3Client:
    """:param says: what the connection says now: a changed one gets a new client. Threads do not survive a fork."""
    return RenewableClient.make(
        functools.partial(_connect, conn_id), functools.partial(_connect_quickly, conn_id)
    )


def _connect(conn_id: str | None) -> S3Client:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # half a second of imports

    with _Naming(conn_id):
        client: S3Client = S3Hook(aws_conn_id=conn_id).get_conn()
    return client


def _connect_quickly(conn_id: str | None) -> S3Client:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    hasty = Config(
        connect_timeout=LIMITS.receipt_connect,
        read_timeout=LIMITS.receipt_answer,
        retries={"total_max_attempts": 1},
    )
    with _Naming(conn_id):
        config = S3Hook(aws_conn_id=conn_id).config.merge(hasty)
        client: S3Client = S3Hook(aws_conn_id=conn_id, config=config).get_conn()
    return client


class _Naming:
    """Says of a failure to make a client which connection it was made of."""

    def __init__(self, conn_id: str | None) -> None:
        self._where = "boto3's own settings" if conn_id is None else f"the AWS connection {conn_id!r}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        if error is None or isinstance(error, CodeGatewayError):
            return
        if isinstance(error, HTTPClientError) or (
            isinstance(error, ClientError) and problem_of(error) is Problem.UNAVAILABLE
        ):
            raise StorageUnavailable(
                f"The credentials of {self._where} could not be fetched ({error_text(error)})."
            ) from error
        if isinstance(error, BotoCoreError | ClientError | ValueError | TypeError | KeyError):
            said = redact_urls(str(error)).rstrip(".")
            raise InvalidTarget(
                f"No S3 client can be made of {self._where} ({type(error).__name__}: {said}). Correct its extra."
            ) from error

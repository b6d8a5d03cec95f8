"""What our commands have of Airflow: its connections, wherever they are kept, and none of its log on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.spend import SpendSettings


def connect_ledger(conn_id: str) -> S3Client:
    """A client for an AWS connection."""
    with _airflow():
        from airflow_provider_codegateway.hooks.storage import s3_client  # seconds of imports

        return s3_client(conn_id)


def connect_spend(conn_id: str) -> tuple[SpendSettings, S3Client]:
    """The spend settings of a CodeGateway connection, and a client for their journal."""
    with _airflow():
        from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook

        return CodeGatewayVideoHook(conn_id).get_spend()


@contextmanager
def _airflow() -> Iterator[None]:
    # As Airflow's own commands do. Else Airflow 3 looks for connections in variables and secrets backends alone, and
    # not in its database.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    # It logs to the standard output, where the command's table, CSV or JSON goes.
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)

"""Run the command: ``python -m airflow_provider_codegateway.ledger``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_provider_codegateway.ledger.command import main

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

if __name__ == "__main__":

    def _connect(conn_id: str) -> S3Client:
        from airflow_provider_codegateway.hooks.storage import s3_client  # seconds of imports

        return s3_client(conn_id)

    sys.exit(main(None, _connect))

"""Run the command: ``python -m airflow_provider_codegateway.spend``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_provider_codegateway.spend.command import main
from airflow_provider_codegateway.spend.settings import SpendSettings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

if __name__ == "__main__":

    def _connect(conn_id: str) -> tuple[SpendSettings, S3Client]:
        from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook  # seconds of imports

        return CodeGatewayVideoHook(conn_id).get_spend()

    sys.exit(main(None, _connect))

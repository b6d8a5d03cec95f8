"""From the clip's URL to S3."""

from __future__ import annotations

from airflow_provider_codegateway.transfer.proof import (
    abort_uploads,
    clear_uploads,
    open_uploads,
    prove_upload,
    require_upload_args,
)
from airflow_provider_codegateway.transfer.transfer import Transfer
from airflow_provider_codegateway.transfer.upload import StoredClip

__all__ = [
    "StoredClip",
    "Transfer",
    "abort_uploads",
    "clear_uploads",
    "open_uploads",
    "prove_upload",
    "require_upload_args",
]

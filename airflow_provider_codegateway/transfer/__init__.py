"""From the clip's URL to S3."""

from __future__ import annotations

from airflow_provider_codegateway.transfer.leftovers import abort_uploads, open_uploads
from airflow_provider_codegateway.transfer.transfer import StoredClip, Transfer
from airflow_provider_codegateway.transfer.upload import clear_uploads, prove_upload, require_upload_args

__all__ = [
    "StoredClip",
    "Transfer",
    "abort_uploads",
    "clear_uploads",
    "open_uploads",
    "prove_upload",
    "require_upload_args",
]

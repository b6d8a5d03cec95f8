"""Many clips in one task: rows are checked whole, rendered side by side, and listed in a manifest."""

from airflow_provider_codegateway.batch.folder import mark_of, store_rows
from airflow_provider_codegateway.batch.lines import LineFile
from airflow_provider_codegateway.batch.result import (
    Summary,
    Tolerance,
    manifest_location,
    progress_beside,
    rows_location,
)
from airflow_provider_codegateway.batch.rows import Checked, check_rows, read_requests
from airflow_provider_codegateway.batch.run import Batch, Means, count_missing

__all__ = [
    "Batch",
    "Checked",
    "LineFile",
    "Means",
    "Summary",
    "Tolerance",
    "check_rows",
    "count_missing",
    "manifest_location",
    "mark_of",
    "progress_beside",
    "read_requests",
    "rows_location",
    "store_rows",
]

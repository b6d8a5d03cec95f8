"""The links "Clip" and "Batch" on a task instance: to its page, or to the S3 console where there are no pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom, conf
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS

from airflow_provider_codegateway.clip import split_uri

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

URL_PREFIX = "/codegateway"
"""Where Airflow's API server mounts our pages."""


def clip_pages_enabled() -> bool:
    """Whether this Airflow serves our pages: from 3.1 on, unless ``[codegateway] clip_pages`` says no."""
    return AIRFLOW_V_3_1_PLUS and conf.getboolean("codegateway", "clip_pages", fallback=True)


class ClipLink(BaseOperatorLink):
    """Leads to the clip that a task instance made.

    Airflow 3 asks for the link in the worker, when the task ends or defers, and keeps it as an XCom; 2.x asks
    in its web server, when the task is looked at.
    """

    name = "Clip"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The clip's page, also while there is no clip yet; without pages, the S3 console or ""."""
        return page_of(ti_key) if clip_pages_enabled() else _s3_console(ti_key)


class BatchLink(ClipLink):
    """Leads to the page of a task instance's batch; without pages, to its manifest in the S3 console."""

    name = "Batch"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The batch's page, also while it is under way."""
        return page_of(ti_key, "batch") if clip_pages_enabled() else _console_of_manifest(ti_key)


def page_of(ti_key: Any, page: str = "clip") -> str:
    """The URL of the page of a task instance's clip or batch, relative to Airflow's own base URL.

    A worker need not know that base URL, and Airflow's UI declares it as the base of every relative link.
    """
    identity = {
        "dag_id": ti_key.dag_id,
        "run_id": ti_key.run_id,
        "task_id": ti_key.task_id,
        "map_index": ti_key.map_index,
    }
    return f"{URL_PREFIX.lstrip('/')}/{page}?{urlencode(identity)}"


def _s3_console(ti_key: Any) -> str:
    match XCom.get_value(ti_key=ti_key, key="clip"):
        case {"bucket": str(bucket), "key": str(key)}:
            return _console_of(bucket, key)
    return ""


def _console_of_manifest(ti_key: Any) -> str:
    match XCom.get_value(ti_key=ti_key, key="batch"):
        case {"manifest": str(uri)} if (at := split_uri(uri)) is not None:
            return _console_of(at.bucket, at.key)
    return ""


def _console_of(bucket: str, key: str) -> str:
    return f"https://console.aws.amazon.com/s3/object/{bucket}?{urlencode({'prefix': key})}"

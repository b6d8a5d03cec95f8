"""One folder, one batch: mapped batches with one ``result_path`` would write over each other's manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.batch.lines import LineFile
from airflow_provider_codegateway.clip import S3Location, TaskRun
from airflow_provider_codegateway.exceptions import InvalidRequest, StorageUnavailable
from airflow_provider_codegateway.s3 import Problem, access_args, head_object, problem_of, storage_error

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_SHARD = "codegateway-shard"


def store_rows(
    rows: LineFile, s3: S3Client, at: S3Location, *, put_args: Mapping[str, Any], task: TaskRun
) -> None:
    """Store the rows of a batch: its first write, before anything is bought.

    :raises InvalidRequest: another map index of the same task run has its rows there.
    :raises InvalidTarget, StorageUnavailable: see ``s3.storage_error``.
    """
    if task.map_index is None or task.map_index < 0:
        rows.upload(s3, at, put_args=put_args)
        return
    names = json.dumps([task.dag_id, task.task_id, task.run_id]).encode()
    run = hashlib.sha256(names).hexdigest()[:16]
    mark = f"{run}-{task.map_index}"
    for _ in range(_ATTEMPTS):
        found = mark_of(s3, at, put_args)
        _require_own(found, mark, at)
        is_absent = found is None
        if not rows.upload(s3, at, put_args=put_args, metadata={_SHARD: mark}, only_if_absent=is_absent):
            continue  # another one has just created it: look whose it is
        if not is_absent:  # over the rows of an earlier run, which others may replace as well
            _require_own(mark_of(s3, at, put_args), mark, at)
        return
    raise StorageUnavailable(f"S3 could not write the batch at {at.uri} (it is there, and is not).")


_ATTEMPTS = 5


def _require_own(found: str | None, mark: str, at: S3Location) -> None:
    if found and found != mark and found.partition("-")[0] == mark.partition("-")[0]:
        raise InvalidRequest(
            f"{at.uri} has the rows of map index {found.rpartition('-')[2]} of this task. Give each mapped batch a "
            "result_path of its own, such as '…/{{ ti.map_index }}/'. If it has one, and the list is in another order "
            "since a clear, delete that file."
        )


def mark_of(s3: S3Client, at: S3Location, put_args: Mapping[str, Any]) -> str | None:
    """Whose rows are there; None if there are none."""
    try:
        head = head_object(s3, at, **access_args(s3, "HeadObject", put_args))
    except Exception as error:
        if problem_of(error) is Problem.NOT_FOUND:
            return None
        raise storage_error(error, doing="look at the batch", at=at, permission="s3:GetObject") from error
    found = {name.lower(): value for name, value in head["Metadata"].items()}
    return found.get(_SHARD, "")

"""The trigger of a batch: renders all rows in the triggerer, and writes the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from airflow_provider_codegateway.batch import Batch, LineFile, manifest_location, rows_location
from airflow_provider_codegateway.clip import Asker, TaskRun
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    InvalidTarget,
    RenderOutcomeUnknown,
)
from airflow_provider_codegateway.hooks.storage import as3_client
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.threads import to_the_end
from airflow_provider_codegateway.triggers.base import RenderingTrigger


class BatchTrigger(RenderingTrigger):
    """Renders the rows that the operator has checked and stored below ``result_path``.

    Its arguments are references only, whatever the number of rows: Airflow stores and shows them.

    It may run again at any time, in this triggerer or another: each row goes on where its ledger says. If its task is
    cleared, marked or out of time, no more rows are begun; renders that are under way go on to their end.

    :param result_path: the folder of rows and manifest.
    :param codegateway_conn_id: connection to the gateway.
    :param aws_conn_id: connection to S3.
    :param max_active: how many rows may be under way at a time.
    :param requester: see ``Asker``.
    :param put_args: boto3's further arguments for the manifest.
    :param rows_digest: of the rows as the operator stored them; None of an earlier version.
    """

    def __init__(
        self,
        *,
        result_path: str,
        codegateway_conn_id: str,
        aws_conn_id: str | None,
        max_active: int,
        requester: str,
        former_requester: str | None = None,
        asked_by: Mapping[str, Any] | None = None,
        put_args: Mapping[str, Any] | None = None,
        rows_digest: str | None = None,
    ) -> None:
        super().__init__(codegateway_conn_id=codegateway_conn_id, aws_conn_id=aws_conn_id)
        self.result_path = result_path
        self.max_active = max_active
        self.asker = Asker(
            requester=requester, former_requester=former_requester, task=TaskRun(**asked_by or {})
        )
        self.put_args = dict(put_args or {})
        self.rows_digest = rows_digest
        self._batch: Batch | None = None

    def _arguments(self) -> dict[str, Any]:
        return {
            "result_path": self.result_path,
            "max_active": self.max_active,
            "requester": self.asker.requester,
            "former_requester": self.asker.former_requester,
            "asked_by": asdict(self.asker.task),
            "put_args": self.put_args,
            "rows_digest": self.rows_digest,
        }

    async def _work(self) -> dict[str, Any]:
        try:
            s3 = await as3_client(self.aws_conn_id)
            hook = CodeGatewayVideoHook(self.codegateway_conn_id)
            means = await hook.ameans(s3=s3, max_active=self.max_active)
            at = rows_location(self.result_path)
            stored = await to_the_end("inputs", LineFile.download, s3, at, self.put_args)
            if self.rows_digest not in (None, stored.digest()):
                stored.close()
                raise InvalidTarget(
                    f"{at.uri} holds the rows of another batch by now. Give each batch a result_path of its own, "
                    "such as one with the run id in it, and run the task again."
                )
        except CodeGatewayError as error:  # what was there when the task deferred is gone or changed
            if error.bought is Bought.NO:
                error.bought = Bought.PERHAPS  # by a triggerer that ran the batch before
            raise
        with stored as rows:
            manifest = manifest_location(self.result_path)
            batch = Batch(rows, means, asker=self.asker, manifest=manifest, put_args=self.put_args)
            self._batch = batch
            if self._has_moved_on:
                batch.stop(_moved_on())
            summary = await batch.run()
        return {"status": "ended", "summary": summary.as_dict()}

    async def _leave_unattended(self) -> None:
        if self._batch is not None:
            self._batch.stop(_moved_on())
            await self._batch.write_manifest_so_far()


def _moved_on() -> CodeGatewayError:
    return RenderOutcomeUnknown(
        "The task was cleared, marked or out of time. Renders that are under way are brought to their end: they cannot "
        "be cancelled, and the task's next attempt will find their clips.",
        bought=Bought.NO,
    )

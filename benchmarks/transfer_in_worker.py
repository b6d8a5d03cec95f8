"""The other design: the trigger only buys and keeps the receipt; the worker transfers and settles."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.triggers.base import TriggerEvent

from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.ledger import Ledger
from airflow_provider_codegateway.limits import LIMITS
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.threads import to_the_end
from airflow_provider_codegateway.triggers.video import RenderTrigger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow.providers.common.compat.sdk import Context
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.clip import ClipSpec


class ReceiptTrigger(RenderTrigger):
    """Leaves the clip where the gateway put it."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        gateway = await CodeGatewayVideoHook(self.codegateway_conn_id).aget_conn()
        ledger = Ledger.of_clip(await to_the_end("ledger", s3_client, self.aws_conn_id), self.spec)

        async def load_request() -> bytes:
            (body,) = await to_the_end("ledger", ledger.requests)
            return json.dumps(body).encode()

        await to_the_end(
            "ledger", ledger.claim, 1, claim_seconds=gateway.settings.deadline + LIMITS.claim_margin
        )
        answer = await gateway.generate(load_request)
        await to_the_end("receipt", ledger.keep, 1, answer)
        yield TriggerEvent({"number": 1})  # type: ignore[no-untyped-call]


@functools.cache
def s3_client(conn_id: str | None) -> S3Client:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    client: S3Client = S3Hook(aws_conn_id=conn_id).get_conn()
    return client


class TransferInWorkerOperator(GenerateVideoOperator):
    """Takes the receipt from the ledger when a worker slot is free."""

    def _defer(self, spec: ClipSpec) -> NoReturn:
        trigger = ReceiptTrigger(
            codegateway_conn_id=self.codegateway_conn_id, aws_conn_id=self.aws_conn_id, **spec.as_arguments()
        )
        self.defer(trigger=trigger, method_name="execute_complete")
        raise AssertionError("defer does not return")

    def execute_complete(
        self, context: Context, event: dict[str, Any], deferred: dict[str, Any] | None = None
    ) -> str:
        self.deferrable = False
        self.hook.limits = replace(LIMITS, settle_grace=0.0)
        return self.execute(context)

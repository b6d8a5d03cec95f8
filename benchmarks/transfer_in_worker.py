"""The other design: the trigger only buys and keeps the receipt; the worker transfers and settles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from airflow.triggers.base import TriggerEvent

from airflow_provider_codegateway import render, triggers
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.triggers.video import RenderTrigger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow.providers.common.compat.sdk import Context
    from airflow_provider_codegateway.render import Order


class ReceiptTrigger(RenderTrigger):
    """Leaves the clip where the gateway put it."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        gateway = await triggers.video._gateway(self.codegateway_conn_id)
        connection = await triggers.video._aws_connection(self.aws_conn_id)
        async with triggers.video._s3_clients.lease(connection) as s3:
            ledger = self.order.ledger(s3)
            acquired = await render.acquire(
                ledger,
                gateway,
                request=None,
                max_renders=self.order.max_renders,
                claim_seconds=gateway.settings.deadline,
                in_place=lambda: render.clip_in_place(self.order, ledger, s3=s3) is not None,
                fresh=False,
            )
        assert acquired
        yield TriggerEvent({"number": acquired.number})  # type: ignore[no-untyped-call]


class TransferInWorkerOperator(GenerateVideoOperator):
    """Takes the receipt from the ledger when a worker slot is free."""

    def _defer(self, order: Order, *_: Any) -> NoReturn:
        trigger = ReceiptTrigger.for_order(
            order, codegateway_conn_id=self.codegateway_conn_id, aws_conn_id=self.aws_conn_id
        )
        self.defer(trigger=trigger, method_name="execute_complete")
        raise AssertionError("defer does not return")

    def execute_complete(
        self, context: Context, event: dict[str, Any], deferred: dict[str, Any] | None = None
    ) -> str:
        s3 = self.s3_hook.get_conn()
        order = self._order(self._request(), context)
        ledger = order.ledger(s3)
        receipt = ledger.receipt(event["number"])
        assert receipt
        acquired = render.Acquired(event["number"], receipt, bought_here=True)
        return self._hand_over(render.deliver(order, ledger, acquired, s3=s3), context)

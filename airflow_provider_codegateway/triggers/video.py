"""The trigger: buys a render, and brings the clip to S3, in the triggerer.

It does the transfer as well, a few clips at a time: a link lives for about an hour, and the task that
resumes may wait longer than that for a worker slot.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow_provider_codegateway.clip import ClipSpec
from airflow_provider_codegateway.exceptions import Bought, CodeGatewayError
from airflow_provider_codegateway.hooks.storage import as3_client, s3_client
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.ledger import Ledger, money
from airflow_provider_codegateway.purchase import Purchase
from airflow_provider_codegateway.threads import to_the_end
from airflow_provider_codegateway.triggers.base import RenderingTrigger

log = logging.getLogger(__name__)


class RenderTrigger(RenderingTrigger):
    """Renders the clip of a ledger entry that the operator opened.

    Its arguments are references only: no prompt, image, key or URL, as Airflow stores and shows them. The
    request is read from the ledger when it is sent.

    It may run again at any time, in this triggerer or another, and buys only under a claim of the ledger. If the
    entry is gone, the task has moved on, and the trigger does nothing.

    If its task is cleared, marked or out of time while a render is under way, the render goes on in the
    triggerer: the gateway cannot cancel it, so it is paid for anyway, and the next try finds its clip. Only a
    triggerer that stops gives a render up, and says so in the ledger.

    :param codegateway_conn_id: connection to the gateway.
    :param aws_conn_id: connection to S3.
    :param spec: the clip to be made, as ``ClipSpec.as_arguments`` has it.
    """

    def __init__(self, *, codegateway_conn_id: str, aws_conn_id: str | None, **spec: Any) -> None:
        super().__init__(codegateway_conn_id=codegateway_conn_id, aws_conn_id=aws_conn_id)
        self.spec = ClipSpec.from_arguments(spec)
        self._purchase: Purchase | None = None

    def _arguments(self) -> dict[str, Any]:
        return self.spec.as_arguments()

    async def _work(self) -> dict[str, Any]:
        try:
            s3 = await as3_client(self.aws_conn_id)
            self._purchase = await CodeGatewayVideoHook(self.codegateway_conn_id).apurchase(self.spec, s3=s3)
        except CodeGatewayError as error:  # a connection was deleted or changed since the task deferred
            error.bought = await to_the_end("ledger", self._bought_before)
            raise
        if self._has_moved_on:
            self._purchase.stop_buying()
        clip = await self._purchase.resume()
        return {"status": "gone"} if clip is None else {"status": "stored", "clip": clip.as_dict()}

    def _bought_before(self) -> Bought:
        try:
            s3 = s3_client(self.spec.ledger_conn_id or self.aws_conn_id)
            return money(Ledger.of_clip(s3, self.spec).read())
        except Exception:  # whatever it is, the first error is the one to be told
            return Bought.PERHAPS

    async def _leave_unattended(self) -> None:
        if self._purchase is not None:
            self._purchase.stop_buying()
        log.warning(
            "The task was cleared, marked or out of time. If a render for %s is under way, it is brought to its end: "
            "it cannot be cancelled, and the task's next try will find its clip.",
            self.spec.target.uri,
        )

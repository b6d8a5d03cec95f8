"""The trigger: buys a render, and brings the clip to S3, in the triggerer.

It does the transfer as well, a few clips at a time: a link lives for about an hour, and the task that
resumes may wait longer than that for a worker slot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_codegateway._s3 import S3Location
from airflow_provider_codegateway._threads import to_the_end
from airflow_provider_codegateway.exceptions import CodeGatewayError
from airflow_provider_codegateway.gateway import Gateway
from airflow_provider_codegateway.hooks.video import settings_of
from airflow_provider_codegateway.render import Clip, Order, render_open_entry
from airflow_provider_codegateway.triggers.clients import SharedClients

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


log = logging.getLogger(__name__)

EARLIEST_EVENT = 5.0
"""Seconds that a trigger runs at least.

A task that resumes before the scheduler has heard of its deferral is failed by Airflow, with words that say nothing
of our error (apache/airflow#67287, #71580, #72716). A refused key is known in a fraction of a second.
"""


class RenderTrigger(BaseTrigger):
    """Renders the clip of a ledger entry that the operator opened.

    Its arguments are references only: no prompt, image, key or URL, as Airflow stores and shows them. The
    request is read from the ledger when it is sent.

    It may be run again at any time, by this triggerer or another, and buys only under a claim of the
    ledger. If the entry is gone, the task has moved on, and it does nothing.

    If its task is cleared, marked or out of time while a render is under way, the render goes on in the
    triggerer: the gateway cannot cancel it, so it is paid anyway, and the next try finds its clip. Only a
    triggerer that stops gives a render up, and says so in the ledger.

    :param bucket: where the clip goes.
    :param key: where the clip goes.
    :param model: of the request.
    :param fingerprint: of the request.
    :param run: the task instance for which the clip is.
    :param if_exists: as in ``GenerateVideoOperator``; so are ``max_renders`` and ``ledger_prefix``.
    :param extra_args: the operator's ``s3_extra_args``.
    :param codegateway_conn_id: connection to the gateway.
    :param aws_conn_id: connection to S3.
    """

    def __init__(
        self,
        *,
        bucket: str,
        key: str,
        model: str,
        fingerprint: str,
        run: str,
        if_exists: str,
        max_renders: int,
        ledger_prefix: str,
        extra_args: dict[str, Any],
        codegateway_conn_id: str,
        aws_conn_id: str | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.order = Order(
            model=model,
            fingerprint=fingerprint,
            target=S3Location(bucket, key),
            run=run,
            if_exists=if_exists,  # type: ignore[arg-type]  # checked by the operator
            max_renders=max_renders,
            ledger_prefix=ledger_prefix,
            extra_args=extra_args,
        )
        self.codegateway_conn_id = codegateway_conn_id
        self.aws_conn_id = aws_conn_id

    @classmethod
    def for_order(cls, order: Order, *, codegateway_conn_id: str, aws_conn_id: str | None) -> RenderTrigger:
        """The trigger for an order whose ledger entry is open."""
        return cls(
            bucket=order.target.bucket,
            key=order.target.key,
            model=order.model,
            fingerprint=order.fingerprint,
            run=order.run,
            if_exists=order.if_exists,
            max_renders=order.max_renders,
            ledger_prefix=order.ledger_prefix,
            extra_args=dict(order.extra_args),
            codegateway_conn_id=codegateway_conn_id,
            aws_conn_id=aws_conn_id,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Path and arguments, for Airflow's database."""
        order = self.order
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "bucket": order.target.bucket,
                "key": order.target.key,
                "model": order.model,
                "fingerprint": order.fingerprint,
                "run": order.run,
                "if_exists": order.if_exists,
                "max_renders": order.max_renders,
                "ledger_prefix": order.ledger_prefix,
                "extra_args": dict(order.extra_args),
                "codegateway_conn_id": self.codegateway_conn_id,
                "aws_conn_id": self.aws_conn_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: the clip's facts, an error of ours, or that the entry is gone."""
        begun = time.monotonic()
        moved_on = asyncio.Event()
        rendering = asyncio.create_task(self._bring(wanted=lambda: not moved_on.is_set()))
        try:
            clip = await asyncio.shield(rendering)
        except asyncio.CancelledError:
            moved_on.set()
            if not rendering.cancelling():  # a triggerer that stops cancels both
                _unattended.add(rendering)
                rendering.add_done_callback(_log_unattended)
                log.warning(
                    "The task moved on. A render for %s that is under way goes on.", self.order.target.uri
                )
            raise
        except CodeGatewayError as error:
            event: dict[str, Any] = {"status": "failed", "error": error.as_dict()}
        else:
            event = {"status": "gone"} if clip is None else {"status": "stored", "clip": clip.as_dict()}
        if self.trigger_id is not None:  # of a triggerer: `dags test` has no scheduler to be ahead of
            await asyncio.sleep(EARLIEST_EVENT - (time.monotonic() - begun))
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _bring(self, wanted: Callable[[], bool]) -> Clip | None:
        gateway = await _gateway(self.codegateway_conn_id)
        async with _s3_clients.lease(await _aws_connection(self.aws_conn_id)) as s3:
            return await render_open_entry(
                self.order,
                s3=s3,
                gateway=gateway,
                claim_seconds=gateway.settings.deadline,
                wanted=wanted,
            )


_unattended: set[asyncio.Task[Clip | None]] = set()
"""Renders whose tasks have moved on; asyncio itself keeps no task alive."""


def _log_unattended(rendering: asyncio.Task[Clip | None]) -> None:
    _unattended.discard(rendering)
    if rendering.cancelled():
        return
    if error := rendering.exception():
        log.error("A render that no task waited for any more failed: %s", error)
    elif clip := rendering.result():
        log.info("A clip that no task waited for any more is at %s.", clip.uri)


async def _gateway(conn_id: str) -> Gateway:
    connection = await get_async_connection(conn_id)
    # `extra_dejson` masks secrets with a call to the supervisor, which must not be made from the loop.
    return await to_the_end("ledger", lambda: Gateway(settings_of(connection, f"connection {conn_id!r}")))


async def _aws_connection(conn_id: str | None) -> tuple[str | None, str]:
    """The connection's id, and what it says now: a changed one gets a new client."""
    if conn_id is None:
        return None, ""
    try:
        connection = await get_async_connection(conn_id)
    except AirflowNotFoundException:  # S3Hook takes boto3's own credentials then
        return conn_id, ""
    return conn_id, await to_the_end("ledger", connection.get_uri)


async def _make_s3_client(connection: tuple[str | None, str]) -> S3Client:
    def make() -> S3Client:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # half a second of imports

        client: S3Client = S3Hook(aws_conn_id=connection[0]).get_conn()
        return client

    return await to_the_end("ledger", make)


async def _close_s3_client(client: S3Client) -> None:
    await to_the_end("ledger", client.close)


# The first client reads botocore's description of S3, 0.1 to 0.4 s in which no other Python runs: kept over
# the pauses between the clips of one pipeline, so that this is once in a triggerer's life, or nearly.
_s3_clients: SharedClients[S3Client] = SharedClients(_make_s3_client, _close_s3_client, idle_seconds=600)

"""The trigger: buys a render, and brings the clip to S3, in the triggerer.

It does the transfer as well, a few clips at a time: a link lives for about an hour, and the task that
resumes may wait longer than that for a worker slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_codegateway._s3 import S3Location
from airflow_provider_codegateway._threads import to_the_end
from airflow_provider_codegateway.exceptions import CodeGatewayError
from airflow_provider_codegateway.gateway import Gateway, GatewaySettings
from airflow_provider_codegateway.hooks.video import settings_of
from airflow_provider_codegateway.render import Order, render_open_entry
from airflow_provider_codegateway.triggers.clients import SharedClients

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


class RenderTrigger(BaseTrigger):
    """Renders the clip of a ledger entry that the operator opened.

    Its arguments are references only: no prompt, image, key or URL, as Airflow stores and shows them. The
    request is read from the ledger when it is sent.

    It may be run again at any time, by this triggerer or another, and buys only under a claim of the
    ledger. If the entry is gone, the task has moved on, and it does nothing.

    :param bucket, key: where the clip goes.
    :param model, fingerprint: of the request.
    :param run: the task instance for which the clip is.
    :param if_exists, max_renders, ledger_prefix, extra_args: as in ``GenerateVideoOperator``.
    :param codegateway_conn_id, aws_conn_id: the connections.
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
        try:
            async with (
                _gateways.lease(await _settings(self.codegateway_conn_id)) as gateway,
                _s3_clients.lease(await _aws_connection(self.aws_conn_id)) as s3,
            ):
                clip = await render_open_entry(
                    self.order, s3=s3, gateway=gateway, claim_seconds=gateway.settings.deadline
                )
        except CodeGatewayError as error:
            event: dict[str, Any] = {"status": "failed", "error": error.as_dict()}
        else:
            event = {"status": "gone"} if clip is None else {"status": "stored", "clip": clip.as_dict()}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]


async def _settings(conn_id: str) -> GatewaySettings:
    connection = await get_async_connection(conn_id)
    # `extra_dejson` masks secrets with a call to the supervisor, which must not be made from the loop.
    return await to_the_end("ledger", settings_of, connection, conn_id)


async def _make_gateway(settings: GatewaySettings) -> Gateway:
    return await to_the_end("ledger", Gateway, settings)


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
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    def make() -> S3Client:
        client: S3Client = S3Hook(aws_conn_id=connection[0]).get_conn()
        return client

    return await to_the_end("ledger", make)


async def _close_s3_client(client: S3Client) -> None:
    await to_the_end("ledger", client.close)


_gateways: SharedClients[Gateway] = SharedClients(_make_gateway, Gateway.aclose)
_s3_clients: SharedClients[S3Client] = SharedClients(_make_s3_client, _close_s3_client)

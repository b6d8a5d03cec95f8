"""What the trigger of one clip and that of many have in common."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_codegateway.exceptions import CodeGatewayError
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook

log = logging.getLogger(__name__)

unattended: set[asyncio.Task[dict[str, Any]]] = set()
"""Work that no task waits for; asyncio itself keeps no task alive."""


class RenderingTrigger(BaseTrigger):
    """Yields one event. What is under way goes on to its end, although its task moved on."""

    def __init__(self, *, codegateway_conn_id: str, aws_conn_id: str | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.codegateway_conn_id = codegateway_conn_id
        self.aws_conn_id = aws_conn_id
        self._has_moved_on = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Path and arguments, for Airflow's database."""
        connections = {"codegateway_conn_id": self.codegateway_conn_id, "aws_conn_id": self.aws_conn_id}
        return f"{type(self).__module__}.{type(self).__qualname__}", {**self._arguments(), **connections}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: what was brought, or an error of ours."""
        begun = time.monotonic()
        working = asyncio.create_task(self._work())
        try:
            event = await asyncio.shield(working)
        except asyncio.CancelledError:
            if not working.cancelling():  # a triggerer that stops cancels both
                self._has_moved_on = True
                unattended.add(working)
                working.add_done_callback(_log_unattended)
                await self._leave_unattended()
            raise
        except CodeGatewayError as error:
            event = {"status": "failed", "error": error.as_dict()}
        if self.trigger_id is not None:  # of a triggerer: `dags test` has no scheduler to be ahead of
            earliest = CodeGatewayVideoHook.limits.earliest_event
            await asyncio.sleep(earliest - (time.monotonic() - begun))
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    def _arguments(self) -> dict[str, Any]:
        """Plain values, less the connections."""
        raise NotImplementedError

    async def _work(self) -> dict[str, Any]:
        """The event."""
        raise NotImplementedError

    async def _leave_unattended(self) -> None:
        """The task was cleared, marked or is out of time: begin nothing more."""
        raise NotImplementedError


def _log_unattended(working: asyncio.Task[dict[str, Any]]) -> None:
    unattended.discard(working)
    if working.cancelled():
        return
    if error := working.exception():
        log.error("What no task waited for failed: %s", error)
    else:
        event = working.result()
        where = f" at {event['clip']['uri']}" if "clip" in event else ""
        log.info("What no task waited for has ended: %s%s.", event["status"], where)

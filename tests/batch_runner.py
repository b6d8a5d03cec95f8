"""Runs the trigger of a batch to its end, as a triggerer does: arguments as JSON on stdin, the event on stdout."""

from __future__ import annotations

import asyncio
import json
import sys

from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.triggers.videos import BatchTrigger

HASTY = Limits(
    claim_margin=0.5,
    settle_grace=0.5,
    poll_interval=0.05,
    beat_interval=0.2,
    beat_patience=0.5,
    first_backoff=0,
)


async def main() -> None:
    CodeGatewayVideoHook.limits = HASTY
    async for event in BatchTrigger(**json.load(sys.stdin)).run():
        print(json.dumps(event.payload))


if __name__ == "__main__":
    asyncio.run(main())

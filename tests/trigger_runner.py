"""A triggerer with many triggers: their arguments as JSON on stdin, one each line; their events on stdout."""

from __future__ import annotations

import asyncio
import json
import sys

from airflow_provider_codegateway.triggers.video import RenderTrigger


async def event_of(trigger: RenderTrigger) -> None:
    async for event in trigger.run():
        print(f"event {json.dumps(event.payload)}", flush=True)  # beside what Airflow logs there


async def main() -> None:
    triggers = [RenderTrigger(**json.loads(line)) for line in sys.stdin]
    await asyncio.gather(*map(event_of, triggers))


if __name__ == "__main__":
    asyncio.run(main())

"""A batch in one process with one event loop, as in a triggerer: time, memory, and how long the loop stands still.

``python -m benchmarks.batch [--rows N] [--active N] [--render-seconds S]``

Each measurement is a fresh process that runs the trigger of a batch. The gateway is the emulator, the S3 moto's, all on
this machine; the clips have 300 kB. Before it, another fresh process checks the rows as a worker does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.clip_server import mp4_head

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "codegateway-benchmark"
CLIP = mp4_head(300_000).ljust(300_000, b"\0")
MEMORY_PROMISE = 200
"""KiB of growth for each render in flight."""
AIRFLOW_WARNS = 0.2
"""Seconds of a standing loop from which Airflow warns."""
DEFAULTS = {"model": "bytedance/seedance-2.0", "duration": 4, "s3_bucket": BUCKET}


def rows(count: int, folder: str) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"id": str(number), "prompt": f"A paper boat, number {number}, on a lake. " * 5} | {
            "s3_key": f"{folder}/{number}.mp4"
        }


# --- one measurement, in a process of its own ---


def check(count: int, folder: str, result_path: str) -> dict[str, float]:
    """What a worker does before it defers."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from airflow_provider_codegateway.batch import check_rows, rows_location
    from airflow_provider_codegateway.spend import Account

    s3 = S3Hook().get_conn()
    with check_rows(rows(1, folder), defaults=DEFAULTS, s3=s3, account=Account()).rows:
        gc.collect()
    before, begun = _resident(), time.monotonic()
    with (
        Peak() as peak,
        check_rows(rows(count, folder), defaults=DEFAULTS, s3=s3, account=Account()).rows as checked,
    ):
        checked.upload(s3, rows_location(result_path), put_args={})
    return {"check seconds": time.monotonic() - begun, "worker MiB": (peak.bytes - before) / 2**20}


def render(active: int, result_path: str, warm_up: str) -> dict[str, float]:
    """What a triggerer does."""
    asyncio.run(_event(_trigger(1, warm_up)))  # loads what all batches share
    gc.collect()
    return asyncio.run(_render(_trigger(active, result_path)))


def _trigger(active: int, result_path: str) -> Any:
    from airflow_provider_codegateway.triggers.videos import BatchTrigger

    return BatchTrigger(
        result_path=result_path,
        codegateway_conn_id="codegateway_default",
        aws_conn_id="aws_default",
        max_active=active,
        requester="benchmark",
    )


async def _render(trigger: Any) -> dict[str, float]:
    lags: list[float] = []
    watchdog = asyncio.create_task(_watch(lags))
    before = _resident()
    with Peak() as peak:
        summary = await _event(trigger)
    watchdog.cancel()
    return {
        "stored": summary["stored"],
        "triggerer MiB": (peak.bytes - before) / 2**20,
        "longest stand, s": max(lags),
        "warnings": sum(lag > AIRFLOW_WARNS for lag in lags),
        "processor seconds": time.process_time(),
        "ended": time.time(),
    }


async def _event(trigger: Any) -> dict[str, Any]:
    async for event in trigger.run():
        if event.payload["status"] != "ended":
            raise RuntimeError(f"The batch failed: {event.payload}")
        summary: dict[str, Any] = event.payload["summary"]
        return summary
    raise AssertionError("a trigger has one event")


async def _watch(lags: list[float]) -> None:
    while True:
        asleep = time.monotonic()
        await asyncio.sleep(0.1)
        lags.append(time.monotonic() - asleep - 0.1)


class Peak:
    """The most memory of this process, looked at five times a second."""

    def __init__(self) -> None:
        self.bytes = _resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.bytes = max(self.bytes, _resident())


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match
    return int(match[1]) * 1024


# --- all measurements ---


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000])
    parser.add_argument("--active", type=int, default=1000)
    parser.add_argument("--render-seconds", type=float, default=60)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        step, number, *names = options.one
        measured = check(int(number), *names) if step == "check" else render(int(number), *names)
        print(json.dumps(measured))
        return 0

    from airflow_provider_codegateway.emulator import RemoteEmulator
    from demo.sandbox import Sandbox

    broken = False
    with (
        tempfile.TemporaryDirectory() as home,
        Sandbox(Path(home) / "airflow", render_seconds=0) as sandbox,
        closing(RemoteEmulator(sandbox.emulator_url)) as emulator,
    ):
        sandbox.s3.create_bucket(Bucket=BUCKET)
        for count in options.rows:
            emulator.reset()
            emulator.serve_clip(CLIP)
            warm_up, folder = (uuid.uuid4().hex for _ in range(2))
            paths = [f"s3://{BUCKET}/results/{name}" for name in (folder, warm_up)]
            _in_a_process(sandbox.environment, "check", "1", warm_up, paths[1])
            figures = _in_a_process(sandbox.environment, "check", str(count), folder, paths[0])
            emulator.render_seconds = options.render_seconds
            figures |= _in_a_process(sandbox.environment, "render", str(options.active), *paths)
            renders = emulator.ledger[1:]
            in_flight = _most_at_once(renders)
            figures["billed"] = sum(render.state == "billed" for render in renders)
            figures["seconds from the first POST"] = figures.pop("ended") - renders[0].received_at
            figures["in flight at most"] = in_flight
            figures["KiB a render in flight"] = figures["triggerer MiB"] * 1024 / in_flight
            print(
                f"\n## {count:,} rows, max_active={options.active}, renders of {options.render_seconds:g} s\n"
            )
            for name, value in figures.items():
                print(f"| {name} | {value:,.4g} |", flush=True)
            broken |= figures["stored"] != count or figures["billed"] != count or in_flight > options.active
    return int(broken)


def _most_at_once(renders: Any) -> int:
    starts = [(render.received_at, +1) for render in renders]
    changes = sorted([*starts, *((render.billed_at, -1) for render in renders if render.billed_at)])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _in_a_process(environment: dict[str, str], *step: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.batch", "--one", *step],
        env={**environment, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{step}:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW_HOME", tempfile.gettempdir())
    sys.exit(main(sys.argv[1:]))

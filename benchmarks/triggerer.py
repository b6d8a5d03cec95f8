"""Memory and loop health of a triggerer, with renders in flight: our trigger beside the naive one.

``python -m benchmarks.triggerer [--renders 100 300 1000] [--rounds N]``

Each measurement is a fresh process with one event loop, on which all triggers are started at once: what a
triggerer does after a restart, and worse than what it does when tasks defer one after the other. A watchdog
like Airflow's own wakes up every 0.1 s and notes by how much it was late. The gateway is the emulator, which
holds all renders until every one of them is in flight; then the clips of 300 kB go to S3 (ours: by the trigger;
the naive trigger only brings the link).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.clip_server import mp4_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.triggers.base import BaseTrigger
    from mypy_boto3_s3 import S3Client

    from airflow_provider_codegateway.emulator import RemoteEmulator

MEMORY_PROMISE = 200
"""KiB of growth for each render in flight."""
AIRFLOW_WARNS = 0.2
"""Seconds of a standing loop from which Airflow warns."""
BUCKET = "codegateway-benchmark"
CLIP = mp4_head(300_000).ljust(300_000, b"\0")
REQUEST = {"model": "bytedance/seedance-2.0", "prompt": "a paper boat", "duration": 4}


def ours(url: str, s3: S3Client, number: int) -> BaseTrigger:
    """A trigger whose task has opened the ledger entry."""
    from airflow_provider_codegateway.clip import ClipSpec, S3Location
    from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
    from airflow_provider_codegateway.models import build_request
    from airflow_provider_codegateway.triggers.video import RenderTrigger

    request = build_request(**REQUEST)  # type: ignore[arg-type]
    spec = ClipSpec(
        model=request.model,
        fingerprint=request.fingerprint(),
        target=S3Location(BUCKET, f"{uuid.uuid4().hex}/{number}.mp4"),
        requester=str(number),
    )
    CodeGatewayVideoHook().purchase(spec, s3=s3).begin(request)
    return RenderTrigger(
        codegateway_conn_id="codegateway_default", aws_conn_id="aws_default", **spec.as_arguments()
    )


def naive(url: str, s3: S3Client, number: int) -> BaseTrigger:
    """A trigger as people write it."""
    from benchmarks.naive import NaiveTrigger

    return NaiveTrigger(url, "CODEGATEWAY_BENCHMARK_KEY", REQUEST)


TRIGGERS: dict[str, Callable[[str, S3Client, int], BaseTrigger]] = {"RenderTrigger": ours, "naive": naive}
OURS = "RenderTrigger"


# --- one measurement, in a process of its own ---


def measure(name: str, renders: int, emulator_url: str) -> dict[str, float]:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from airflow_provider_codegateway.emulator import RemoteEmulator

    s3: S3Client = S3Hook().get_conn()
    triggers = [TRIGGERS[name](emulator_url, s3, number) for number in range(renders + 1)]
    emulator = RemoteEmulator(emulator_url)
    emulator.reset()
    emulator.serve_clip(CLIP)
    # The first render of a process loads what all of them share.
    asyncio.run(_events(triggers.pop()))
    return asyncio.run(_measure(triggers, emulator))


async def _measure(triggers: list[BaseTrigger], emulator: RemoteEmulator) -> dict[str, float]:
    lags: list[float] = []
    watchdog = asyncio.create_task(_watch(lags))
    gc.collect()
    before = _resident()
    with emulator.holding():
        running = [asyncio.create_task(_events(trigger)) for trigger in triggers]
        await asyncio.to_thread(emulator.wait_for, rendering=len(triggers), timeout=600)
        await asyncio.sleep(1)  # the loop's own side of the last call
        growth = _resident() - before
        starting = list(lags)
        lags.clear()
    begun = time.monotonic()
    await asyncio.gather(*running)
    seconds = time.monotonic() - begun
    watchdog.cancel()
    return {
        "kib": growth / len(triggers) / 1024,
        "lag_starting": max(starting),
        "lag_ending": max(lags, default=0.0),
        "warnings": sum(lag > AIRFLOW_WARNS for lag in starting + lags),
        "ending": seconds,
    }


async def _events(trigger: BaseTrigger) -> None:
    async for event in trigger.run():
        if isinstance(event.payload, dict) and event.payload["status"] != "stored":
            raise RuntimeError(f"The trigger brought no clip: {event.payload}")


async def _watch(lags: list[float]) -> None:
    while True:
        asleep = time.monotonic()
        await asyncio.sleep(0.1)
        lags.append(time.monotonic() - asleep - 0.1)


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match
    return int(match[1]) * 1024


# --- all measurements ---


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triggerer", description=__doc__)
    parser.add_argument("--renders", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        name, url = options.one
        print(json.dumps(measure(name, options.renders[0], url)))
        return 0

    from demo.sandbox import Sandbox

    with tempfile.TemporaryDirectory() as home, Sandbox(Path(home) / "airflow", render_seconds=0) as sandbox:
        sandbox.s3.create_bucket(Bucket=BUCKET)
        broken = False
        for renders in options.renders:
            results: dict[str, list[dict[str, float]]] = defaultdict(list)
            for _ in range(options.rounds):
                for name in TRIGGERS:
                    results[name].append(
                        _in_a_process(name, renders, sandbox.emulator_url, sandbox.environment)
                    )
            broken |= _report(renders, results)
    return int(broken)


def _in_a_process(name: str, renders: int, url: str, environment: dict[str, str]) -> dict[str, float]:
    key = json.loads(environment["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])["password"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.triggerer", "--renders", str(renders), "--one", name, url],
        env={**environment, "CODEGATEWAY_BENCHMARK_KEY": key, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name}, {renders} renders:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _report(renders: int, results: dict[str, list[dict[str, float]]]) -> bool:
    medians = {
        name: {column: statistics.median(run[column] for run in runs) for column in runs[0]}
        for name, runs in results.items()
    }
    print(f"## {renders:,} renders in flight\n")
    print(
        "| trigger | KiB a render | of naive | longest stand, starting, s | ending, s | warnings of Airflow's |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, figures in medians.items():
        print(
            f"| {name} | {figures['kib']:.0f} | {figures['kib'] / medians['naive']['kib']:.2f} "
            f"| {figures['lag_starting']:.2f} | {figures['lag_ending']:.2f} | {figures['warnings']:.0f} |"
        )
    print(flush=True)
    return medians[OURS]["kib"] > MEMORY_PROMISE


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW_HOME", tempfile.gettempdir())
    sys.exit(main(sys.argv[1:]))

"""A whole Airflow making clips: worker-slot seconds, clips an hour, the triggerer's memory and its loop.

``python -m benchmarks.cluster [--ways …] [--clips N] [--render-seconds S] [--slots N] [--rounds N]``

Airflow runs as it does for its users (PostgreSQL, LocalExecutor, one triggerer); the gateway is the emulator, the S3
moto's, all on this machine. The ways take turns. A render of two minutes is scaled down to ``--render-seconds``.

Where we may (as root), the triggerer is scheduled before the others, as on a machine of its own: how long its loop
stands still is otherwise a measure of how many worker processes start beside it.

Slot seconds are the supervisor's own: from the start of a task's process to its end, for each part of a task.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_codegateway.emulator import RemoteEmulator
from benchmarks.clip_server import mp4_head
from demo.airflow_server import AirflowServer
from demo.postgres import postgres
from demo.sandbox import BUCKET, PROJECT, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable

WAYS = ("batch", "deferrable", "transfer_in_worker", "blocking", "naive_trigger", "quickstart")
OURS = ("batch", "deferrable")
CLIP = mp4_head(3_000_000).ljust(3_000_000, b"\0")
BLOCKED = "async thread was blocked"
_FINISHED = re.compile(
    r"^(\S+) .*Workload finished.*?duration=([\d.]+).*workload_type=ExecuteTask", re.MULTILINE
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def measure(
    airflow: AirflowServer, emulator: RemoteEmulator, way: str, run_id: str, clips: int
) -> dict[str, float]:
    """One run of one way's DAG, from its trigger to its end."""
    _forget_clips(airflow.sandbox, way)
    emulator.reset()
    emulator.serve_clip(CLIP)
    log = airflow.sandbox.log
    log_start = log.stat().st_size
    triggerer = airflow.processes["triggerer-1"].pid
    memory_before, peak = _memory(triggerer), _Peak(triggerer)
    begun = time.monotonic()
    with peak:
        airflow.trigger(way, run_id)
        state = airflow.wait_for_run(way, run_id, seconds=6 * 3600, every=max(0.2, clips / 100))
    seconds = time.monotonic() - begun
    with log.open("rb") as file:
        file.seek(log_start)
        said = _COLOURS.sub("", file.read().decode(errors="replace"))
    slots = [
        (datetime.fromisoformat(end).timestamp() - float(duration), float(duration))
        for end, duration in _FINISHED.findall(said)
    ]
    renders = emulator.ledger
    in_flight = _most_at_once(
        (render.received_at, render.billed_at - render.received_at) for render in renders if render.billed_at
    )
    stored = airflow.sandbox.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{way}/")
    result = {
        "succeeded": float(state == "success"),
        "stored": float(sum(page["KeyCount"] for page in stored)),
        "billed": float(emulator.billed),
        "seconds": seconds,
        "seconds from the first POST": time.time() - min(render.received_at for render in renders),
        "clips an hour": clips / seconds * 3600,
        "slot seconds a clip": sum(duration for _, duration in slots) / clips,
        "slots at once": float(_most_at_once(slots)),
        "renders at once": float(in_flight),
        "triggerer KiB a render": (peak.bytes - memory_before) / max(in_flight, 1) / 1024,
        "warnings of a blocked loop": float(said.count(BLOCKED)),
    }
    print(json.dumps({"way": way, "run": run_id, **result}), flush=True)
    return result


def _most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    changes = sorted(change for start, length in spans for change in ((start, +1), (start + length, -1)))
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


class _Peak:
    """The most memory that a process and its children had, in bytes, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.bytes = max(self.bytes, _memory(self._pid))


def _memory(pid: int) -> int:
    """Resident bytes of a process and its children; what they share is counted once."""
    kilobytes = 0
    for process in (pid, *_children(pid)):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        assert match
        kilobytes += int(match[1])
    return kilobytes * 1024


def _favour(pid: int) -> None:
    """Let a process, its children and all their threads go before others."""
    for process in (pid, *_children(pid)):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), -15)


def _children(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in _children(child)]


def _forget_clips(sandbox: Sandbox, way: str) -> None:
    for page in sandbox.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{way}/"):
        for item in page.get("Contents", []):
            sandbox.s3.delete_object(Bucket=BUCKET, Key=item["Key"])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--render-seconds", type=float, default=12)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing outlives us

    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home, postgres() as database:
        settings = {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "benchmarks" / "dags"),
            "AIRFLOW__CORE__PARALLELISM": str(options.slots),
            "CODEGATEWAY_BENCHMARK_CLIPS": str(options.clips),
        }
        with Sandbox(
            Path(home) / "airflow", render_seconds=options.render_seconds, settings=settings
        ) as sandbox:
            connection = json.loads(sandbox.environment["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
            patience = max(300.0, 3 * options.render_seconds)
            connection["extra"] = {"deadline": patience, "read_timeout": patience}
            server_settings = {
                "AIRFLOW__CORE__PARALLELISM": str(options.slots),
                "AIRFLOW_CONN_CODEGATEWAY_DEFAULT": json.dumps(connection),
                "CODEGATEWAY_BENCHMARK_KEY": connection["password"],
            }
            with AirflowServer(sandbox, settings=server_settings) as airflow:
                emulator = RemoteEmulator(sandbox.emulator_url)
                # The first task of a process, or of its parent, loads what all of them share.
                emulator.render_seconds = min(5, options.render_seconds)
                airflow.trigger("warm_up")
                airflow.wait_for_run("warm_up")
                _favour(airflow.processes["triggerer-1"].pid)
                for round_ in range(options.rounds):
                    for way in options.ways:
                        results[way].append(measure(airflow, emulator, way, f"round-{round_}", options.clips))
                emulator.close()
    _report(options, results)
    ours = [run for way in OURS for run in results.get(way, [])]
    return int(any(run["stored"] != options.clips or run["billed"] != options.clips for run in ours))


def _report(options: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> None:
    print(
        f"\n## {options.clips:,} clips, renders of {options.render_seconds:g} s, {options.slots} worker slots, "
        f"medians of {options.rounds}\n"
    )
    columns = list(next(iter(results.values()))[0])
    print("| way | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for way, runs in results.items():
        medians = [statistics.median(run[column] for run in runs) for column in columns]
        print(f"| {way} | " + " | ".join(f"{median:,.4g}" for median in medians) + " |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the ledger costs in time, and how long a paid render is in danger: ``python tests/measure_ledger.py``.

The only moment in which a paid render can be lost is between the gateway's last byte and S3's
acknowledgement of the receipt. Measured on moto's server, or on the one of CODEGATEWAY_TEST_S3_ENDPOINT.
"""

from __future__ import annotations

import functools
import logging
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import crash_runner
from crash_runner import Job
from media_samples import mp4_of
from moto.server import ThreadedMotoServer

from airflow_provider_codegateway.emulator import Emulator
from airflow_provider_codegateway.gateway import client
from airflow_provider_codegateway.ledger import Ledger
from airflow_provider_codegateway.purchase import Purchase

RENDER_SECONDS = 120.0


def timed(owner: Any, name: str, note: Callable[[float, float], None]) -> None:
    """Note when each call of a function began and ended."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            note(begun, time.perf_counter())

    setattr(owner, name, wrapper)


def measure(endpoint: str, credentials: dict[str, str], runs: int) -> None:
    answers: list[float] = []
    windows: list[float] = []
    overheads: list[float] = []
    spent: list[float] = []
    timed(client, "Answer", lambda begun, ended: answers.append(begun))
    timed(Ledger, "keep", lambda begun, ended: windows.append(ended - answers[-1]))
    for owner, name in (
        (Purchase, "find"),
        *((Ledger, each) for each in ("open", "claim", "keep", "settle")),
    ):
        timed(owner, name, lambda begun, ended: spent.append(ended - begun))
    with Emulator(api_key="sk-cg-measure") as emulator:
        emulator.serve_clip(mp4_of(300_000))
        job = Job(
            gateway_url=emulator.url,
            api_key=emulator.api_key,
            s3_endpoint=endpoint,
            s3_credentials=credentials,
            bucket=f"measure-{uuid.uuid4().hex[:8]}",
        )
        s3 = job.s3()
        s3.create_bucket(Bucket=job.bucket)
        for _ in range(runs):
            spent.clear()
            crash_runner.render_blocking(job, s3)
            overheads.append(sum(spent))
            s3.delete_object(Bucket=job.bucket, Key=job.key)
        s3.delete_bucket(Bucket=job.bucket)
    for what, seconds in (("last byte to receipt", windows), ("all ledger calls", overheads)):
        milliseconds = sorted(1000 * each for each in seconds)
        print(
            f"{what}: median {statistics.median(milliseconds):.1f} ms, "
            f"95 % below {milliseconds[int(0.95 * len(milliseconds))]:.1f} ms, {len(milliseconds)} runs"
        )
    share = statistics.median(overheads) / RENDER_SECONDS
    print(f"all ledger calls: {share:.4%} of a render of {RENDER_SECONDS:.0f} s")


def main() -> None:
    logging.disable()
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    if endpoint := os.environ.get("CODEGATEWAY_TEST_S3_ENDPOINT"):
        keys = {
            "aws_access_key_id": os.environ["CODEGATEWAY_TEST_S3_ACCESS_KEY"],
            "aws_secret_access_key": os.environ["CODEGATEWAY_TEST_S3_SECRET_KEY"],
        }
        measure(endpoint, keys, runs)
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    measure(
        f"http://{host}:{port}", {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}, runs
    )
    server.stop()


if __name__ == "__main__":
    main()

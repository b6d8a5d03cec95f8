"""Clip to S3: seconds and memory, beside five other ways to do it.

``python -m benchmarks.transfer [--endpoint URL --access-key K --secret-key S] [--rounds N] [--mib 16 512]``

Each measurement is a fresh process; the ways take turns, so that a busy machine is busy for all. Memory is
the highest resident size during the transfer (``VmHWM``, reset just before) less the resident size before
it. All imports are done, and the bucket was asked for, when the clock starts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from mypy_boto3_s3 import S3Client

MIB = 1024 * 1024
MEMORY_PROMISE = 32
"""MiB of growth, at any size."""
SLOWER_PROMISE, LONG_MIB = 1.25, 64
"""Of the fastest peer's seconds, for clips above so many MiB; up to them none is faster."""
OURS = "Transfer"
BUCKET = "codegateway-benchmark"
KEY = "clip.mp4"


# --- the ways: each prepares outside the clock and returns what the clock measures ---


def transfer(url: str, hook: S3Hook) -> Callable[[], object]:
    from airflow_provider_codegateway.clip import S3Location
    from airflow_provider_codegateway.transfer import Transfer

    s3 = hook.get_conn()
    target = S3Location(BUCKET, KEY)
    return Transfer(url, s3=s3, target=target, metadata=lambda _: {"model": "benchmark"}).run


def quickstart(url: str, hook: S3Hook) -> Callable[[], object]:
    import requests

    return lambda: hook.load_bytes(requests.get(url, timeout=120).content, KEY, BUCKET, replace=True)


def http_to_s3_operator(url: str, hook: S3Hook) -> Callable[[], object]:
    from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator

    parts = urlsplit(url)
    os.environ["AIRFLOW_CONN_CLIPS"] = json.dumps(
        {"conn_type": "http", "host": parts.hostname, "port": parts.port, "schema": parts.scheme}
    )
    operator = HttpToS3Operator(
        task_id="benchmark",
        http_conn_id="clips",
        endpoint=parts.path,
        s3_bucket=BUCKET,
        s3_key=KEY,
        replace=True,
        aws_conn_id="benchmark",
    )
    operator.s3_hook.get_conn()
    return lambda: operator.execute({})


def temporary_file(url: str, hook: S3Hook) -> Callable[[], object]:
    import requests

    def run() -> None:
        with tempfile.NamedTemporaryFile() as file, requests.get(url, stream=True, timeout=120) as response:
            for chunk in response.iter_content(MIB):
                file.write(chunk)
            file.flush()
            hook.load_file(file.name, KEY, BUCKET, replace=True)

    return run


def stream(url: str, hook: S3Hook) -> Callable[[], object]:
    import requests

    def run() -> None:
        with requests.get(url, stream=True, timeout=120) as response:
            hook.load_file_obj(response.raw, KEY, BUCKET, replace=True)

    return run


def multipart_loop(url: str, hook: S3Hook) -> Callable[[], object]:
    import httpx

    s3: Any = hook.get_conn()
    where = {"Bucket": BUCKET, "Key": KEY}

    def run() -> None:
        upload = {**where, "UploadId": s3.create_multipart_upload(**where)["UploadId"]}
        parts = []
        with httpx.stream("GET", url, timeout=120) as response:
            for number, chunk in enumerate(response.iter_bytes(8 * MIB), 1):
                etag = s3.upload_part(**upload, PartNumber=number, Body=chunk)["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
        s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    return run


WAYS: dict[str, Callable[[str, Any], Callable[[], object]]] = {
    OURS: transfer,
    "quickstart: requests + load_bytes": quickstart,
    "HttpToS3Operator": http_to_s3_operator,
    "temporary file + load_file": temporary_file,
    "requests stream + load_file_obj": stream,
    "sequential multipart loop, httpx": multipart_loop,
}


# --- one measurement, in its own process ---


def measure(way: str, url: str, size: int) -> None:
    """Print seconds, CPU seconds and MiB of growth as JSON."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook("benchmark")
    hook.check_for_bucket(BUCKET)
    run = WAYS[way](url, hook)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, started = _memory("VmRSS"), time.process_time(), time.perf_counter()
    run()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    growth = _memory("VmHWM") - before
    s3: S3Client = hook.get_conn()
    stored = s3.head_object(Bucket=BUCKET, Key=KEY)["ContentLength"]
    s3.delete_object(Bucket=BUCKET, Key=KEY)
    if stored != size:
        sys.exit(f"{way} stored {stored} bytes of {size}")
    print(json.dumps({"seconds": seconds, "cpu": cpu, "growth": growth}))


def _memory(field: str) -> float:
    """MiB that the kernel counts for this process."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 1024


# --- all measurements ---


@contextmanager
def child(*args: str, **options: Any) -> Iterator[int]:
    """Run a server that prints its port and lives until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(10)


MOTO = """
import sys, logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


def environment(endpoint: str, access_key: str, secret_key: str, home: str) -> dict[str, str]:
    connection = {
        "conn_type": "aws",
        "login": access_key,
        "password": secret_key,
        "extra": {"endpoint_url": endpoint, "region_name": "us-east-1"},
    }
    return os.environ | {
        "AIRFLOW_CONN_BENCHMARK": json.dumps(connection),
        "AIRFLOW_HOME": home,
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }


def measure_in_child(way: str, url: str, size: int, env: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.transfer", "--measure", way, url, str(size)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{way}, {size} bytes:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(mib: int, results: dict[str, list[dict[str, float]]]) -> bool:
    """Print the table of one size. Return whether the promise holds."""
    rows = {
        way: {field: statistics.median(one[field] for one in runs) for field in runs[0]}
        for way, runs in results.items()
    }
    peak = {way: max(one["growth"] for one in runs) for way, runs in results.items()}
    fastest = min((row["seconds"] for way, row in rows.items() if way != OURS), default=rows[OURS]["seconds"])
    print(f"\n### {mib} MiB\n")
    print("| way | seconds | of fastest peer | CPU seconds | memory growth, MiB (largest) |")
    print("|---|---:|---:|---:|---:|")
    for way, row in rows.items():
        print(
            f"| {way} | {row['seconds']:.2f} | {row['seconds'] / fastest:.2f} | {row['cpu']:.2f} "
            f"| {row['growth']:.1f} ({peak[way]:.1f}) |"
        )
    slower = SLOWER_PROMISE if mib > LONG_MIB else 1.0
    return rows[OURS]["seconds"] <= slower * fastest and peak[OURS] <= MEMORY_PROMISE


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    env = os.environ.get
    parser.add_argument(
        "--endpoint", default=env("CODEGATEWAY_TEST_S3_ENDPOINT"), help="default: moto's server, started here"
    )
    parser.add_argument("--access-key", default=env("CODEGATEWAY_TEST_S3_ACCESS_KEY", "testing"))
    parser.add_argument("--secret-key", default=env("CODEGATEWAY_TEST_S3_SECRET_KEY", "testing"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 16, 64, 512])
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        way, url, size = options.measure
        measure(way, url, int(size))
        return 0
    with ExitStack() as stack:
        endpoint = options.endpoint or f"http://127.0.0.1:{stack.enter_context(child('-c', MOTO))}"
        home = stack.enter_context(tempfile.TemporaryDirectory())
        child_env = environment(endpoint, options.access_key, options.secret_key, home)
        make_bucket(endpoint, options.access_key, options.secret_key)
        print(f"## Clip to S3, medians of {options.rounds}")
        kept = [run_size(mib, options, child_env) for mib in options.mib]
        return int(not all(kept))


def run_size(mib: int, options: argparse.Namespace, env: dict[str, str]) -> bool:
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    with child("-m", "benchmarks.clip_server", str(mib * MIB)) as port:
        for turn in range(options.rounds):
            # Each turn begins with another way, so that none is always the first after a pause.
            first = turn % len(options.only)
            for way in options.only[first:] + options.only[:first]:
                url = f"http://127.0.0.1:{port}/clip.mp4"
                results[way].append(measure_in_child(way, url, mib * MIB, env))
    return report(mib, {way: results[way] for way in options.only})


def make_bucket(endpoint: str, access_key: str, secret_key: str) -> None:
    import boto3

    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
    )
    if BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

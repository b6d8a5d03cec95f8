"""What importing an operator costs a DAG file, over ``airflow.sdk.BaseOperator``, which is loaded anyway.

``python -m benchmarks.import_cost [--rounds N]``. Each import has a fresh interpreter; the operators
take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from typing import Any

PROMISE = 25.0
"""Milliseconds for each of our operators, and no boto3."""
OURS = (
    "airflow_provider_codegateway.operators.video.GenerateVideoOperator",
    "airflow_provider_codegateway.operators.videos.GenerateVideosOperator",
)
OPERATORS = (
    *OURS,
    "airflow.providers.amazon.aws.transfers.http_to_s3.HttpToS3Operator",
    "airflow.providers.http.operators.http.HttpOperator",
)
IMPORT = """
import importlib, json, sys, time
from airflow.sdk import BaseOperator
BaseOperator  # airflow.sdk loads on use
module, _, name = sys.argv[1].rpartition(".")
started = time.perf_counter()
getattr(importlib.import_module(module), name)
milliseconds = (time.perf_counter() - started) * 1000
boto = [name for name in ("boto3", "botocore") if name in sys.modules]
print(json.dumps({"ms": milliseconds, "boto": boto}))
"""


def measure(operator: str, env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, operator],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{operator}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(argv).rounds
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home:
        # A deployed package has byte code: the first turn, which does not count, writes it.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env |= {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        for turn in range(rounds + 1):
            for operator in OPERATORS:
                result = measure(operator, env)
                if turn:
                    results[operator].append(result)
    medians = {name: statistics.median(one["ms"] for one in runs) for name, runs in results.items()}
    loaded = {name: runs[0]["boto"] for name, runs in results.items()}
    print(f"## Importing an operator, medians of {rounds}\n")
    print("| operator | ms over BaseOperator | loads |")
    print("|---|---:|---|")
    for name, milliseconds in medians.items():
        print(f"| {name.rpartition('.')[2]} | {milliseconds:.0f} | {', '.join(loaded[name]) or 'no boto3'} |")
    print(flush=True)
    return int(any(medians[name] > PROMISE or loaded[name] for name in OURS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

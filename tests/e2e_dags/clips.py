"""The DAGs of the end-to-end tests. How many clips the mapped ones make is told by the environment."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.operators.videos import GenerateVideosOperator
from benchmarks.naive import NaiveOperator

COUNT = int(os.environ["CODEGATEWAY_E2E_CLIPS"])
POISONS = int(os.environ.get("CODEGATEWAY_E2E_POISONS", "1"))
BUSY = Path(os.environ["CODEGATEWAY_E2E_BUSY"])
CLIP: dict[str, Any] = {
    "model": "bytedance/seedance-2.0",
    "prompt": "a paper boat",
    "duration": 4,
    "s3_bucket": "codegateway-examples",
}


HASTY = "codegateway_hasty"
RETRIED: dict[str, Any] = {"retries": 4, "retry_delay": timedelta(seconds=1)}


def mapped(name: str, count: int = COUNT, **options: Any) -> None:
    """A DAG ``name`` with one mapped task ``clip``."""
    with DAG(dag_id=name, schedule=None, max_active_tasks=1000):
        GenerateVideoOperator.partial(task_id="clip", **{**CLIP, **options}).expand(
            s3_key=[f"{name}/{{{{ run_id }}}}/{number:04}.mp4" for number in range(count)]
        )


def single(name: str, **options: Any) -> None:
    """A DAG ``name`` with one task ``clip``."""
    with DAG(dag_id=name, schedule=None):
        GenerateVideoOperator(task_id="clip", s3_key=f"{name}/{{{{ run_id }}}}.mp4", **{**CLIP, **options})


mapped("blocking", deferrable=False)
mapped("deferrable", deferrable=True)
mapped("survivors", deferrable=True, codegateway_conn_id=HASTY)
mapped("bought_once", deferrable=True, codegateway_conn_id=HASTY, max_renders=1)

mapped("poisoned", POISONS, model="minimax/hailuo-2.3-fast", duration=6, deferrable=True)


def batch(name: str, **options: Any) -> None:
    """A DAG ``name`` with one task ``clip``, a batch."""
    with DAG(dag_id=name, schedule=None):
        GenerateVideosOperator(
            task_id="clip",
            requests=[{"id": f"{number:04}"} for number in range(COUNT)],
            result_path=f"s3://{CLIP['s3_bucket']}/{name}-result/{{{{ run_id }}}}/",
            s3_key=f"{name}/{{{{ run_id }}}}/{{id}}.mp4",
            max_active=COUNT,
            codegateway_conn_id=HASTY,
            deferrable=True,
            **CLIP,
            **options,
        )


batch("batch")

# Of the tests with several workers, some of which are killed: Airflow retries what they were doing.
mapped("spread", deferrable=True, codegateway_conn_id=HASTY, **RETRIED)
mapped("spread_blocking", 2, deferrable=False, codegateway_conn_id=HASTY, **RETRIED)
batch("spread_batch", **RETRIED)

single("single", deferrable=True)
single("impatient", deferrable=True, execution_timeout=timedelta(seconds=30))

with DAG(dag_id="naive", schedule=None):
    body = {name: value for name, value in CLIP.items() if name != "s3_bucket"}
    NaiveOperator(task_id="clip", body=body, s3_bucket=CLIP["s3_bucket"], s3_key="naive.mp4")

with DAG(dag_id="busy", schedule=None):

    @task
    def work(number: int) -> None:
        """Take a worker slot until the file is gone."""
        (BUSY / str(number)).touch()
        while (BUSY / "busy").exists():
            time.sleep(0.2)

    work.expand(number=list(range(int(os.environ["CODEGATEWAY_E2E_SLOTS"]))))

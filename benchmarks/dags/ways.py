"""One mapped DAG for each way to make clips; the environment says how many clips."""

import os
from typing import Any

from airflow.providers.common.compat.sdk import DAG
from airflow.providers.standard.operators.python import PythonOperator

from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.operators.videos import GenerateVideosOperator
from benchmarks.naive import NaiveOperator, quickstart
from benchmarks.transfer_in_worker import TransferInWorkerOperator

COUNT = int(os.environ["CODEGATEWAY_BENCHMARK_CLIPS"])
BUCKET = "codegateway-examples"
BODY: dict[str, Any] = {"model": "bytedance/seedance-2.0", "prompt": "a paper boat", "duration": 4}


def keys(way: str) -> list[str]:
    return [f"{way}/{number:04}.mp4" for number in range(COUNT)]


def dag(way: str) -> DAG:
    return DAG(dag_id=way, schedule=None, max_active_tasks=1000)


with dag("warm_up"):
    GenerateVideoOperator(
        task_id="ours", deferrable=True, s3_bucket=BUCKET, s3_key="warm_up/{{ run_id }}-1.mp4", **BODY
    )
    NaiveOperator(task_id="naive", body=BODY, s3_bucket=BUCKET, s3_key="warm_up/{{ run_id }}-2.mp4")

with dag("deferrable"):
    GenerateVideoOperator.partial(task_id="clip", deferrable=True, s3_bucket=BUCKET, **BODY).expand(
        s3_key=keys("deferrable")
    )

with dag("batch"):
    GenerateVideosOperator(
        task_id="clip",
        requests=[{"s3_key": key} for key in keys("batch")],
        result_path=f"s3://{BUCKET}/batch-result/",
        max_active=COUNT,
        deferrable=True,
        s3_bucket=BUCKET,
        **BODY,
    )

with dag("transfer_in_worker"):
    TransferInWorkerOperator.partial(task_id="clip", deferrable=True, s3_bucket=BUCKET, **BODY).expand(
        s3_key=keys("transfer_in_worker")
    )

with dag("blocking"):
    GenerateVideoOperator.partial(task_id="clip", deferrable=False, s3_bucket=BUCKET, **BODY).expand(
        s3_key=keys("blocking")
    )

with dag("naive_trigger"):
    NaiveOperator.partial(task_id="clip", body=BODY, s3_bucket=BUCKET).expand(s3_key=keys("naive_trigger"))

with dag("quickstart"):
    PythonOperator.partial(task_id="clip", python_callable=quickstart).expand(
        op_args=[[BODY, BUCKET, key] for key in keys("quickstart")]
    )

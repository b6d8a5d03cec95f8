"""
### A catalogue in one task

Thirty rows (CSV in S3) become thirty clips and a manifest, in one task.

- The file has the columns `id`, `prompt` and `aspect_ratio`; an empty cell leaves the choice to the model. The rows are
  checked, all of them, before anything is bought.
- At most 8 clips render at a time. The task's log says how far it is.
- The manifest (JSONL in S3) has one line for each row: its status, where its clip is, what it cost.
- Clear the task, or run the DAG again: clips that are there cost nothing, and only what is missing is bought.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_codegateway.operators.videos import GenerateVideosOperator

with DAG(
    dag_id="codegateway_catalogue",
    schedule=None,
    catchup=False,
    max_active_runs=1,  # they share a result_path
    params={
        "bucket": Param("codegateway-examples", type="string", description="Bucket of rows and clips."),
        "rows": Param("input/catalogue.csv", type="string", description="Key of the rows."),
    },
    tags=["codegateway", "example"],
    doc_md=__doc__,
):
    render = GenerateVideosOperator(
        task_id="render",
        requests="s3://{{ params.bucket }}/{{ params.rows }}",
        result_path="s3://{{ params.bucket }}/catalogue/",
        model="bytedance/seedance-2.0",
        resolution="480p",
        duration=4,
        s3_bucket="{{ params.bucket }}",
        s3_key="catalogue/{id}.mp4",
        max_active=8,
        tolerated_failures="10%",
    )

    @task
    def count_by_status(manifest: str) -> dict[str, int]:
        """How many rows ended how, by the manifest."""
        import json
        from collections import Counter

        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        bucket, key = S3Hook.parse_s3_url(manifest)
        rows = map(json.loads, S3Hook().read_key(key, bucket).splitlines())
        return dict(Counter(row["status"] for row in rows))

    manifest: Any = render.output
    count_by_status(manifest)

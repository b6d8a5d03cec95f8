"""
### A person approves before money is spent

`ApprovalOperator` shows the prompt under *Required Actions* and waits, without a worker slot. If somebody approves it,
the clip is rendered; if somebody rejects it, the task is skipped and nothing is bought. Airflow 3.1 or newer.
"""

from airflow.providers.common.compat.sdk import DAG, Param
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if AIRFLOW_V_3_1_PLUS:
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    with DAG(
        dag_id="codegateway_approval",
        schedule=None,
        catchup=False,
        params={
            "bucket": Param("codegateway-examples", type="string", description="Bucket for the clip."),
            "prompt": Param(
                "A lighthouse keeper climbs the spiral stairs with a lantern.",
                type="string",
                description="What to show.",
            ),
        },
        tags=["codegateway", "example"],
        doc_md=__doc__,
    ):
        approve = ApprovalOperator(
            task_id="approve",
            subject="Render a clip of 8 s in 1080p?",
            body="{{ params.prompt }}",
        )
        render = GenerateVideoOperator(
            task_id="render",
            model="google/veo-3.1-fast",
            prompt="{{ params.prompt }}",
            duration=8,
            resolution="1080p",
            s3_bucket="{{ params.bucket }}",
            s3_key="clips/lighthouse-keeper.mp4",
        )
        approve >> render

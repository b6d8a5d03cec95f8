"""
### A person approves what costs much

`dry_run=True` makes every check, says what the clip would cost, and buys nothing. Up to one dollar the clip is rendered
at once. Above, or if no price is known, somebody is asked under *Required Actions*, with the amount in the question.
The prices are those of the connection's `spend` settings. Airflow 3.1 or newer.
"""

from decimal import Decimal
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param, task
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

FREE_HAND = Decimal("1.00")
"""What may be spent without asking."""

if AIRFLOW_V_3_1_PLUS:
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    with DAG(
        dag_id="codegateway_approval_above",
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
        clip: dict[str, Any] = {
            "model": "google/veo-3.1-fast",
            "prompt": "{{ params.prompt }}",
            "duration": 8,
            "resolution": "1080p",
            "s3_bucket": "{{ params.bucket }}",
            "s3_key": "clips/approved-above.mp4",
        }
        estimate = GenerateVideoOperator(task_id="estimate", dry_run=True, **clip)

        # The estimate's task is skipped, and no failure.
        @task.branch(trigger_rule="none_failed")
        def ask_or_render(ti: Any = None) -> str:
            """Whom to go to: a person, or the gateway."""
            found = ti.xcom_pull(task_ids="estimate", key="estimate")
            if found["renders"] == 0:
                return "render"  # the clip is there already
            cost = found["cost"]
            is_known = cost is not None and cost["at_most"] is not None
            return "render" if is_known and Decimal(cost["at_most"]) <= FREE_HAND else "approve"

        approve = ApprovalOperator(
            task_id="approve",
            subject="Spend {{ (ti.xcom_pull(task_ids='estimate', key='estimate').cost or {}).get('at_most') "
            "or 'an unknown amount' }} on a clip?",
            body="{{ params.prompt }}",
        )
        render = GenerateVideoOperator(task_id="render", trigger_rule="none_failed_min_one_success", **clip)

        estimate >> (asked := ask_or_render()) >> [approve, render]
        approve >> render

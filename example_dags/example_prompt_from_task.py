"""
### A prompt that another task writes

An upstream task writes the prompt, by a language model for instance, and the clip is rendered of it. Its result is kept
by Airflow: when the rendering task is tried again, the prompt is the same, so a clip that is paid is fetched and never
bought again. Were the prompt written in the rendering task, each try would have an idea of its own.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

with DAG(
    dag_id="codegateway_prompt_from_task",
    schedule=None,
    catchup=False,
    params={
        "bucket": Param("codegateway-examples", type="string", description="Bucket for the clip."),
        "product": Param("a folding umbrella", type="string", description="What the clip is about."),
    },
    tags=["codegateway", "example"],
    doc_md=__doc__,
):

    @task
    def write_prompt(product: str) -> str:
        """Put your language model here."""
        return f"A close-up of {product} in the rain, drops run off it, city lights in the background."

    GenerateVideoOperator(
        task_id="render",
        model="bytedance/seedance-2.0",
        prompt=write_prompt("{{ params.product }}"),
        duration=5,
        s3_bucket="{{ params.bucket }}",
        s3_key="clips/product.mp4",
        retries=2,
    )

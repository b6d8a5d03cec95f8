"""
### One prompt, three models

`duration`, `resolution` and `image` mean the same for every model: switching models is changing one string.
What only one model has goes into `parameters`, named as in the API.
"""

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

MODELS = {
    "veo": "google/veo-3.1-fast",
    "seedance": "bytedance/seedance-2.0",
    "hailuo": "minimax/hailuo-2.3-fast",
}

with DAG(
    dag_id="codegateway_three_models",
    schedule=None,
    catchup=False,
    params={"bucket": Param("codegateway-examples", type="string", description="Bucket for the clips.")},
    tags=["codegateway", "example"],
    doc_md=__doc__,
):
    for name, model in MODELS.items():
        GenerateVideoOperator(
            task_id=name,
            model=model,
            prompt="A paper boat sails down a gutter after the rain, close to the water.",
            duration=6,
            resolution="1080p",
            s3_bucket="{{ params.bucket }}",
            s3_key=f"clips/paper-boat-{name}.mp4",
        )

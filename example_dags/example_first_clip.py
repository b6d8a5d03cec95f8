"""
### The first clip

One operator, one clip in S3. The key is the task's XCom, so the next task can use it as it is.

Run it twice: the second run finds its clip at the key, and is free.
"""

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

with DAG(
    dag_id="codegateway_first_clip",
    schedule=None,
    catchup=False,
    params={"bucket": Param("codegateway-examples", type="string", description="Bucket for the clip.")},
    tags=["codegateway", "example"],
    doc_md=__doc__,
) as dag:
    GenerateVideoOperator(
        task_id="render",
        model="google/veo-3.1-fast",
        prompt="A hummingbird drinks from a red flower in slow motion, soft morning light.",
        aspect_ratio="9:16",
        duration=6,
        generate_audio=True,
        s3_bucket="{{ params.bucket }}",
        s3_key="clips/hummingbird.mp4",
    )

"""
### From an image in S3

`image` is the first frame. It may be an `s3://` key, which is read with the AWS connection; a public
`https://` URL; a `file://` path on the worker; or base64. The model gets it in the form that it takes.
"""

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

with DAG(
    dag_id="codegateway_image_to_video",
    schedule=None,
    catchup=False,
    params={
        "bucket": Param("codegateway-examples", type="string", description="Bucket of image and clip."),
        "image": Param("input/lighthouse.png", type="string", description="Key of the image."),
    },
    tags=["codegateway", "example"],
    doc_md=__doc__,
):
    GenerateVideoOperator(
        task_id="render",
        model="bytedance/seedance-2.0",
        prompt="The beam of the lighthouse sweeps over the sea, waves roll in.",
        image="s3://{{ params.bucket }}/{{ params.image }}",
        duration=5,
        aspect_ratio="4:3",
        seed=7,
        parameters={"camera_fixed": True},
        s3_bucket="{{ params.bucket }}",
        s3_key="clips/lighthouse.mp4",
    )

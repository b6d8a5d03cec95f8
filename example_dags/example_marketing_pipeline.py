"""
### Marketing pipeline

A product list (CSV in S3) becomes one clip for each product, and a manifest (JSON in S3) of where they are.

- The list has the columns `sku`, `prompt` and any of `image`, `aspect_ratio`, `duration`, `generate_audio`.
  An empty cell leaves the choice to the model. `image` is a key in the same bucket.
- The pool `codegateway` bounds how many renders run at a time, over all DAGs. Make it once:
  `airflow pools set codegateway 4 "CodeGateway renders"`, with `--include-deferred` if the tasks are deferrable.
  `max_active_tis_per_dagrun` bounds those of one run, so that a long list leaves room for others.
- Each clip is an event of the asset alias `codegateway-clips`, which `codegateway_publish_new_clips` waits for.
- Run it again with the same campaign: clips that are there cost nothing, and only new products are bought.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from airflow.providers.common.compat.sdk import DAG, AssetAlias, Param, XComArg, task

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

with DAG(
    dag_id="codegateway_marketing_pipeline",
    schedule=None,
    catchup=False,
    params={
        "bucket": Param("codegateway-examples", type="string", description="Bucket of list and clips."),
        "products": Param("input/products.csv", type="string", description="Key of the product list."),
        "campaign": Param("spring", type="string", description="Prefix of the clips and of the manifest."),
    },
    tags=["codegateway", "example"],
    doc_md=__doc__,
):

    @task
    def read_products(bucket: str, products: str, campaign: str) -> list[dict[str, Any]]:
        """The operator's arguments, for each product."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        rows = csv.DictReader(io.StringIO(S3Hook().read_key(products, bucket)))
        return [
            {
                "prompt": row["prompt"],
                "image": f"s3://{bucket}/{row['image']}" if row.get("image") else None,
                "aspect_ratio": row.get("aspect_ratio"),
                "duration": row.get("duration"),
                "generate_audio": row.get("generate_audio"),
                "s3_key": f"{campaign}/{row['sku']}.mp4",
            }
            for row in rows
        ]

    clips = GenerateVideoOperator.partial(
        task_id="render",
        model="bytedance/seedance-2.0",
        resolution="720p",
        s3_bucket="{{ params.bucket }}",
        pool="codegateway",
        max_active_tis_per_dagrun=3,
        outlets=[AssetAlias("codegateway-clips")],
        map_index_template="{{ task.s3_key }}",
    ).expand_kwargs(read_products("{{ params.bucket }}", "{{ params.products }}", "{{ params.campaign }}"))

    @task
    def write_manifest(clips: Any, bucket: str, campaign: str) -> str:
        """Store where the clips are, by the XCom `clip` of each, and return the manifest's key."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        key = f"{campaign}/manifest.json"
        manifest = [{name: clip[name] for name in ("key", "model", "bytes", "fingerprint")} for clip in clips]
        S3Hook().load_string(json.dumps(manifest, indent=2), key, bucket, replace=True)
        return key

    write_manifest(XComArg(clips, "clip"), "{{ params.bucket }}", "{{ params.campaign }}")

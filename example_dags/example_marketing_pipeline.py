"""
### Marketing pipeline

A product list (CSV in S3) becomes one clip for each product, and a manifest (JSON in S3) of where they are.

- The list has the columns `sku`, `prompt` and any of `image`, `aspect_ratio`, `duration`, `generate_audio`.
  An empty cell leaves the choice to the model. `image` is a key in the same bucket.
- The pool `codegateway` bounds how many renders run at a time, over all DAGs. Make it once:
  `airflow pools set codegateway 4 "CodeGateway renders"`, with `--include-deferred` if the tasks are deferrable.
  `max_active_tis_per_dagrun` bounds those of one run, so that a long list leaves room for others.
- The manifest is written also if single products have no clip, with the reason of each. The run fails then, and
  clearing its failed tasks renders what is missing.
- Posters, which the gallery shows, need PyAV on the workers: `airflow-provider-codegateway[media]`.
- Each clip is an event of the asset alias `codegateway-clips`, which `codegateway_publish_new_clips` waits for.
- Run it again with the same campaign: clips that are there cost nothing, and only new products are bought.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from typing import Any

from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AssetAlias, Param, task

POSTER = ".jpg" if importlib.util.find_spec("av") else None

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
    def read_products(bucket: str, products: str) -> list[dict[str, str]]:
        """The rows of the list."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        return list(csv.DictReader(io.StringIO(S3Hook().read_key(products, bucket))))

    # A function, and not `expand_kwargs`: Airflow would render the cells of the list as templates.
    @task.generate_video(
        model="bytedance/seedance-2.0",
        resolution="720p",
        s3_bucket="{{ params.bucket }}",
        poster_key=POSTER,
        pool="codegateway",
        max_active_tis_per_dagrun=3,
        outlets=[AssetAlias("codegateway-clips")],
        map_index_template="{{ task.s3_key }}",
    )
    def render(product: dict[str, str], bucket: str, campaign: str) -> dict[str, Any]:
        """The clip of one product."""
        choices = {name: product.get(name) for name in ("aspect_ratio", "duration", "generate_audio")}
        return {
            **choices,
            "prompt": product["prompt"],
            "image": f"s3://{bucket}/{product['image']}" if product.get("image") else None,
            "s3_key": f"{campaign}/{product['sku']}.mp4",
        }

    products: Any = read_products("{{ params.bucket }}", "{{ params.products }}")
    clips: Any = render.partial(bucket="{{ params.bucket }}", campaign="{{ params.campaign }}").expand(
        product=products
    )

    @task(trigger_rule="all_done")
    def write_manifest(products: Any, bucket: str, campaign: str, **context: Any) -> str:
        """Store where each product's clip is, or why there is none, and return the manifest's key."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        def pulled(key: str) -> list[dict[str, Any]]:
            # Of whichever of the mapped tasks left one.
            found = context["ti"].xcom_pull("render", key=key, map_indexes=range(len(products)))
            return [value for value in found or [] if value is not None]

        facts = ("key", "model", "bytes", "fingerprint", "poster")
        made = {clip["key"]: {name: clip[name] for name in facts} for clip in pulled("clip")}
        why = {error["key"]: f"{error['message']} {error['bought']}" for error in pulled("clip_error")}
        manifest = []
        for product in products:
            key = f"{campaign}/{product['sku']}.mp4"
            manifest.append(made.get(key) or {"key": key, "error": why.get(key, "see the task's log")})
        place = f"{campaign}/manifest.json"
        S3Hook().load_string(json.dumps(manifest, indent=2), place, bucket, replace=True)
        if missing := [row["key"] for row in manifest if "error" in row]:
            raise AirflowFailException(f"{len(missing)} products have no clip. {place} says why.")
        return place

    clips >> write_manifest(products, "{{ params.bucket }}", "{{ params.campaign }}")

"""
### A function that says what to show

`@task.generate_video` renders what its function returns: a prompt, or a dict of the request's arguments. The rest is
as in `GenerateVideoOperator`. Mapped over the seasons, it makes one clip for each.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param, task

with DAG(
    dag_id="codegateway_decorator",
    schedule=None,
    catchup=False,
    params={"bucket": Param("codegateway-examples", type="string", description="Bucket for the clips.")},
    tags=["codegateway", "example"],
    doc_md=__doc__,
):
    LIGHT = {"spring": "pale morning light", "autumn": "low golden light"}

    @task.generate_video(
        model="google/veo-3.1-fast",
        duration=4,
        s3_bucket="{{ params.bucket }}",
        map_index_template="{{ task.s3_key }}",
    )
    def render_season(season: str) -> dict[str, Any]:
        return {
            "prompt": f"An old orchard in {season}, {LIGHT[season]}, the camera glides between the trees.",
            "s3_key": f"seasons/{season}.mp4",
        }

    render_season.expand(season=sorted(LIGHT))

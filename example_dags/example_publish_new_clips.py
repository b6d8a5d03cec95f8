"""
### Publish each new clip

This DAG runs whenever a task has made clips for the asset alias `codegateway-clips`, such as the marketing pipeline. It
knows no key beforehand: each event says which clip it is about.

A clip may come twice: a task that finds its clip in place succeeds as well. Copying it again does no harm.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, AssetAlias, task

with DAG(
    dag_id="codegateway_publish_new_clips",
    schedule=AssetAlias("codegateway-clips"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),  # Airflow 3 needs none
    catchup=False,
    tags=["codegateway", "example"],
    doc_md=__doc__,
):

    @task
    def publish(**context: Any) -> list[str]:
        """Copy each new clip to where the web site reads, and return the copies' keys."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        # On Airflow 2 the events are in context["triggering_dataset_events"].
        events = [event for some in context["triggering_asset_events"].values() for event in some]
        # Each clip once: an event is there for the alias, and again for the asset that it became.
        clips = sorted({(event.extra["bucket"], event.extra["key"]) for event in events})
        for bucket, key in clips:
            S3Hook().copy_object(key, f"published/{key}", bucket, bucket)
        return [f"published/{key}" for _, key in clips]

    publish()

"""
### One story, three clips

Each clip begins with the last picture of the one before, and a task joins them without encoding anything anew.

`last_frame_key` needs the extra `media` on the workers: `pip install 'airflow-provider-codegateway[media]'`. Clips of
one model, resolution and aspect ratio have the same codec parameters, so their packets go into one file as they are.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_codegateway.operators.video import GenerateVideoOperator

SCENES = (
    "A paper boat sets out from a doorstep in the rain.",
    "The boat drifts down the gutter, past leaves and bottle caps.",
    "The boat reaches the river, and the sun comes out.",
)

with DAG(
    dag_id="codegateway_chain",
    schedule=None,
    catchup=False,
    params={"bucket": Param("codegateway-examples", type="string", description="Bucket of the clips.")},
    tags=["codegateway", "example"],
    doc_md=__doc__,
):

    @task
    def join(bucket: str, keys: list[str], key: str) -> str:
        """Put the clips one after the other into one file, and return its key."""
        import av
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        s3: Any = S3Hook().get_conn()
        with TemporaryDirectory() as folder:
            joined, scene = Path(folder, "joined.mp4"), Path(folder, "scene.mp4")
            streams: dict[str, Any] = {}
            begins = Fraction(0)
            with av.open(str(joined), "w", options={"movflags": "+faststart"}) as output:
                for each in keys:
                    s3.download_file(bucket, each, str(scene))
                    with av.open(str(scene)) as clip:
                        for stream in clip.streams:
                            if stream.type not in streams:
                                streams[stream.type] = output.add_stream_from_template(stream)
                        for packet in clip.demux():
                            if packet.dts is None or packet.pts is None:  # the end of a stream
                                continue
                            later = round(begins / packet.time_base)
                            packet.pts, packet.dts = packet.pts + later, packet.dts + later
                            packet.stream = streams[packet.stream.type]
                            output.mux(packet)
                        begins += Fraction(clip.duration or 0, av.time_base)
            s3.upload_file(str(joined), bucket, key, ExtraArgs={"ContentType": "video/mp4"})
        return key

    last: GenerateVideoOperator | None = None
    clips: list[Any] = []
    for number, prompt in enumerate(SCENES, start=1):
        begin = f"{{{{ ti.xcom_pull('{last.task_id}', key='clip')['last_frame'] }}}}" if last else None
        render = GenerateVideoOperator(
            task_id=f"scene_{number}",
            model="google/veo-3.1-fast",
            prompt=prompt,
            image=begin,
            duration=4,
            s3_bucket="{{ params.bucket }}",
            s3_key=f"chain/scene-{number}.mp4",
            last_frame_key=".png",
            on_mismatch="fail",
        )
        if last:
            last >> render
        last = render
        clips.append(render.output)

    join("{{ params.bucket }}", clips, "chain/story.mp4")

"""The example DAGs, run by Airflow; their clips, fetched from S3, decoded, compared with what was asked."""

from __future__ import annotations

import json
import shutil
import sqlite3
import textwrap
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.emulator import RemoteEmulator
from demo.clips import (
    LARGEST_DISTANCE,
    Shape,
    WrongClip,
    check,
    distance,
    first_picture,
    last_picture,
    measure,
)
from demo.sandbox import BUCKET, PROJECT, SET_UP, Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT = PROJECT / "demo-output"
DAGS = (
    "codegateway_first_clip",
    "codegateway_three_models",
    "codegateway_image_to_video",
    "codegateway_marketing_pipeline",
    "codegateway_catalogue",
    "codegateway_decorator",
    "codegateway_prompt_from_task",
    "codegateway_chain",
)
CLIPS = 15
"""How many clips these make, each in a task of its own."""
CATALOGUE = 30
"""How many the batch makes in one task."""
BATCH = "catalogue/manifest.jsonl"
MANIFEST = "spring/manifest.json"


@dataclass(frozen=True)
class Result:
    """A clip that a task made.

    :param asked: the operator's arguments, as Airflow rendered them.
    :param clip: XCom ``clip``.
    """

    asked: dict[str, Any]
    clip: dict[str, Any]


def run(sandbox: Sandbox) -> None:
    """Run every example DAG once.

    :raises SandboxError: a DAG failed.
    :raises WrongClip: a clip is missing, or is not what was asked for.
    """
    print(f"CodeGateway emulator  {sandbox.emulator_url}")
    print(f"S3 (moto)             {sandbox.s3_endpoint}")
    print(f"Log of Airflow        {sandbox.log.relative_to(PROJECT)}\n", flush=True)
    for command, seconds in sandbox.airflow(*SET_UP, *(f"dags test {dag_id}" for dag_id in DAGS)):
        print(f"{seconds:5.1f} s  airflow {command}", flush=True)

    results = _results(sandbox)
    if len(results) != CLIPS:
        raise WrongClip(f"The DAGs made {len(results)} clips instead of {CLIPS}.")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    shapes = [_fetch(sandbox, result) for result in results]
    _check_manifest(sandbox, results)
    _check_chain(sandbox)
    _check_batch(sandbox)
    with closing(RemoteEmulator(sandbox.emulator_url)) as emulator:
        billed = emulator.billed
    if billed != CLIPS + CATALOGUE:
        raise WrongClip(f"The gateway billed {billed} renders for {CLIPS + CATALOGUE} clips.")

    print(f"\n{_table(results, shapes)}\n")
    print(f"and {CATALOGUE} in one task, listed in {BATCH}.\n")
    print(f"{CLIPS + CATALOGUE} clips, {billed} renders. The emulator rendered them, so they cost nothing.")
    print(f"Each was decoded, and is what was asked for. Watch them: {OUTPUT.name}/")


def _results(sandbox: Sandbox) -> list[Result]:
    """The clips of all task instances, in the order in which they were made, from Airflow's own database."""
    query = """
        SELECT fields.rendered_fields, xcom.value
        FROM xcom JOIN rendered_task_instance_fields AS fields USING (dag_id, task_id, run_id, map_index)
        WHERE xcom.key = 'clip' ORDER BY xcom.timestamp
    """
    with closing(sqlite3.connect(sandbox.home / "airflow.db")) as database:
        return [Result(json.loads(asked), json.loads(clip)) for asked, clip in database.execute(query)]


def _fetch(sandbox: Sandbox, result: Result) -> Shape:
    path = OUTPUT / _file_name(result)
    sandbox.s3.download_file(result.clip["bucket"], result.clip["key"], str(path))
    if path.stat().st_size != result.clip["bytes"]:
        raise WrongClip(f"{path.name} has {path.stat().st_size:,} bytes instead of {result.clip['bytes']:,}.")
    return check(path, result.asked)


def _file_name(result: Result) -> str:
    """``spring/mug.mp4`` as ``spring-mug.mp4``; a folder is better looked through flat."""
    return "-".join(PurePosixPath(result.clip["key"]).parts)


def _check_manifest(sandbox: Sandbox, results: Sequence[Result]) -> None:
    path = OUTPUT / MANIFEST.replace("/", "-")
    sandbox.s3.download_file(BUCKET, MANIFEST, str(path))
    listed = {clip["key"] for clip in json.loads(path.read_text())}
    made = {result.clip["key"] for result in results if result.clip["key"].startswith("spring/")}
    if listed != made:
        raise WrongClip(f"{MANIFEST} lists {sorted(listed)} instead of {sorted(made)}.")


def _check_chain(sandbox: Sandbox) -> None:
    """Each scene begins with the last picture of the one before, and the story is all of them."""
    scenes = [OUTPUT / f"chain-scene-{number}.mp4" for number in (1, 2, 3)]
    for before, after in pairwise(scenes):
        if (apart := distance(last_picture(before), first_picture(after))) > LARGEST_DISTANCE:
            raise WrongClip(f"{after.name} begins {apart:.1f} of 255 away from the end of {before.name}.")
    story = OUTPUT / "chain-story.mp4"
    sandbox.s3.download_file(BUCKET, "chain/story.mp4", str(story))
    if (seconds := measure(story).seconds) != sum(measure(scene).seconds for scene in scenes):
        raise WrongClip(f"{story.name} lasts {seconds:g} s.")


def _check_batch(sandbox: Sandbox) -> None:
    """Each row of the batch has a clip in S3 that can be decoded and is what was asked for."""
    body = sandbox.s3.get_object(Bucket=BUCKET, Key=BATCH)["Body"].read()
    rows = [json.loads(line) for line in body.splitlines()]
    if [row["status"] for row in rows] != ["stored"] * CATALOGUE:
        raise WrongClip(f"{BATCH} has not {CATALOGUE} stored clips.")
    for row in rows:
        path = OUTPUT / f"catalogue-{row['id']}.mp4"
        sandbox.s3.download_file(BUCKET, row["uri"].removeprefix(f"s3://{BUCKET}/"), str(path))
        check(path, {"duration": 4, "resolution": "480p"})


def _table(results: Sequence[Result], shapes: Sequence[Shape]) -> str:
    rows = [("model", "prompt", "key", "clip", "size", "rendered in")]
    for result, shape in zip(results, shapes, strict=True):
        rows.append(
            (
                result.clip["model"],
                textwrap.shorten(result.asked["prompt"], 34, placeholder="…"),
                result.clip["key"],
                str(shape),
                f"{result.clip['bytes'] / 1024:,.0f} KiB",
                f"{result.clip['render_seconds']:.1f} s",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in [lines[0], "─" * len(lines[0]), *lines[1:]])

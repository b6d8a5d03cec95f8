"""How the author of a DAG tests it: an emulator in place of the gateway, moto in place of S3. Nothing is spent."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_codegateway.emulator import Emulator, Fault, run_task
from airflow_provider_codegateway.exceptions import RenderOutcomeUnknown

DAG = runpy.run_path(str(Path(__file__).parent.parent / "example_first_clip.py"))["dag"]


def test_the_clip_is_asked_for_and_stored(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    """The gateway gets what the DAG says, in its own words, and the clip is in the bucket."""
    codegateway_s3.create_bucket(Bucket="marketing")
    key = run_task(DAG.get_task("render"), params={"bucket": "marketing"}).result
    assert codegateway_s3.head_object(Bucket="marketing", Key=key)["ContentType"] == "video/mp4"
    sent = dict(codegateway_emulator.ledger[0].request)
    assert "hummingbird" in sent.pop("prompt")
    assert sent == {
        "model": "google/veo-3.1-fast",
        "aspect_ratio": "9:16",
        "duration": "6s",
        "generate_audio": True,
    }


def test_a_line_that_breaks_costs_one_render_more_and_no_third(
    codegateway_emulator: Emulator, codegateway_s3: Any
) -> None:
    """The next try renders again, within ``max_renders``; a clip in place is bought no more."""
    codegateway_s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(Fault.reset_after())
    with pytest.raises(RenderOutcomeUnknown):
        run_task(DAG.get_task("render"), params={"bucket": "marketing"})
    for _ in range(2):
        run_task(DAG.get_task("render"), params={"bucket": "marketing"})
    assert codegateway_emulator.billed == 2

"""The example of docs/emulator.md: what follows its mark stands there word for word, and runs here."""

# ruff: noqa: E402 - the example has its own imports

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "emulator.md"


def test_the_page_shows_the_example() -> None:
    """The page and this file have the same example."""
    example = Path(__file__).read_text(encoding="utf-8").partition("# The example\n")[2].strip()
    assert f"```python\n{example}\n```" in PAGE.read_text(encoding="utf-8")


# The example
from typing import Any

import pytest

from airflow_provider_codegateway.emulator import Emulator, Fault, run_task
from airflow_provider_codegateway.exceptions import GatewayUnavailable, RenderOutcomeUnknown
from airflow_provider_codegateway.operators.video import GenerateVideoOperator


def boat(model: str = "google/veo-3.1-fast") -> GenerateVideoOperator:
    return GenerateVideoOperator(
        task_id="clip",
        model=model,
        prompt="A paper boat drifting down a rain-filled gutter",
        s3_key="s3://marketing/{{ params.campaign }}/boat.mp4",
        deferrable=True,
    )


def test_a_busy_gateway_is_waited_for(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    codegateway_s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(Fault.status(429, retry_after=0))
    run = run_task(boat(), params={"campaign": "spring"})
    stored = codegateway_s3.head_object(Bucket="marketing", Key=run.result)
    assert stored["ContentLength"] == run.xcoms["clip"]["bytes"]
    assert codegateway_emulator.refused == 1
    assert codegateway_emulator.billed == 1


def test_veo_is_down(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    codegateway_s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(Fault.status(503, retry_after=0), times=None, model="google/veo-3.1-fast")
    with pytest.raises(GatewayUnavailable):
        run_task(boat(), params={"campaign": "spring"})
    run_task(boat("bytedance/seedance-2.0"), params={"campaign": "spring"})
    assert codegateway_emulator.billed == 1


def test_an_answer_that_is_lost_is_paid_for(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    codegateway_s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(Fault.foreign("cloudflare"))
    with pytest.raises(RenderOutcomeUnknown):
        run_task(boat(), params={"campaign": "spring"})
    run = run_task(boat(), params={"campaign": "spring"}, try_number=2)
    assert run.xcoms["clip"]["renders_bought"] == codegateway_emulator.billed == 2

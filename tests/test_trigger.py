"""The trigger, cancelled as a triggerer cancels: when its task moves on, and when the triggerer itself stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from media_samples import mp4

from airflow_provider_codegateway.clip import ClipSpec, S3Location
from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.models import build_request
from airflow_provider_codegateway.triggers import base as triggers
from airflow_provider_codegateway.triggers.video import RenderTrigger

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MP4 = mp4()
KEY = "x.mp4"

pytestmark = pytest.mark.usefixtures("airflow_database", "connections")


@pytest.fixture
def trigger(gateway: Emulator, s3: S3Client, bucket: str) -> RenderTrigger:
    """The trigger of a task that has deferred."""
    gateway.serve_clip(MP4)
    request = build_request("bytedance/seedance-2.0", prompt="p", duration=4)
    spec = ClipSpec(
        model=request.model,
        fingerprint=request.fingerprint(),
        target=S3Location(bucket, KEY),
        requester="run",
    )
    assert CodeGatewayVideoHook().purchase(spec, s3=s3).begin(request) is None
    return RenderTrigger(
        codegateway_conn_id="codegateway_default", aws_conn_id="aws_default", **spec.as_arguments()
    )


def keys(s3: S3Client, bucket: str) -> set[str]:
    return {
        item["Key"].removeprefix("_codegateway/")
        for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    }


@asynccontextmanager
async def cancelled_when(trigger: RenderTrigger, ready: Callable[[], object]) -> AsyncIterator[None]:
    """Run the trigger, and cancel it alone as soon as ``ready`` returns."""

    async def events() -> None:
        async for event in trigger.run():
            pytest.fail(f"the trigger fired {event}")

    running = asyncio.create_task(events())
    await asyncio.to_thread(ready)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    yield


async def nobody_renders_unattended() -> None:
    while triggers.unattended:
        await asyncio.wait(set(triggers.unattended))


def test_a_render_that_is_under_way_is_stored_although_its_task_moved_on(
    trigger: RenderTrigger, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """The gateway cannot cancel it: so it is paid, and the next try shall find it."""

    async def move_on() -> None:
        with gateway.holding():
            async with cancelled_when(trigger, lambda: gateway.wait_for(rendering=1)):
                assert triggers.unattended
        await nobody_renders_unattended()

    asyncio.run(move_on())
    assert keys(s3, bucket) == {KEY}
    assert gateway.billed == 1


def test_a_task_that_moved_on_while_the_gateway_was_busy_buys_nothing(
    trigger: RenderTrigger, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """What is asked for again after a 503 is a new purchase, and nobody wants it any more."""
    gateway.fail_next(Fault.status(503))

    async def move_on() -> None:
        async with cancelled_when(trigger, lambda: gateway.wait_for(refused=1)):
            pass
        await nobody_renders_unattended()

    asyncio.run(move_on())
    assert [render.state for render in gateway.ledger] == ["refused"]
    assert keys(s3, bucket) <= {f"{KEY}/request.json"}


def test_a_task_that_moved_on_before_its_claim_buys_nothing(
    trigger: RenderTrigger, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Marking a task as failed before its render was asked for costs nothing."""

    async def move_on() -> None:
        async with cancelled_when(trigger, lambda: None):
            pass
        await nobody_renders_unattended()

    asyncio.run(move_on())
    assert gateway.ledger == ()
    assert keys(s3, bucket) <= {f"{KEY}/request.json"}


def test_a_triggerer_that_stops_says_in_the_ledger_what_it_gave_up(
    trigger: RenderTrigger, gateway: Emulator, s3: S3Client, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its successor need not wait for a claim that nobody holds; and no log says that the render goes on."""

    async def events() -> list[object]:
        return [event async for event in trigger.run()]

    async def stop() -> None:
        running = asyncio.create_task(events())
        await asyncio.to_thread(gateway.wait_for, rendering=1)
        assert not running.done()

    with gateway.holding():
        asyncio.run(stop())
    assert {f"{KEY}/1.started", f"{KEY}/1.abandoned"} <= keys(s3, bucket)
    assert "Stopped while render 1 was under way" in caplog.text
    assert "is brought to its end" not in caplog.text


def test_a_trigger_does_not_fire_before_the_scheduler_has_heard_of_the_deferral(
    trigger: RenderTrigger, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow fails a task that resumes too early, with words that hide ours; `dags test` has no scheduler."""
    monkeypatch.setattr(CodeGatewayVideoHook, "limits", Limits(earliest_event=3600))
    gateway.fail_next(Fault.status(401))

    async def first_event() -> Any:
        return (await anext(trigger.run())).payload

    async def fire() -> None:
        trigger.trigger_id = 1
        in_triggerer = asyncio.create_task(first_event())
        await asyncio.to_thread(gateway.wait_for, refused=1)
        while asyncio.all_tasks() - {in_triggerer, asyncio.current_task()}:  # the render, a task of its own
            await asyncio.wait({in_triggerer}, timeout=0.01)
        await asyncio.wait({in_triggerer}, timeout=0.01)
        assert not in_triggerer.done()
        in_triggerer.cancel()
        await asyncio.wait({in_triggerer})

        trigger.trigger_id = None
        assert (await first_event())["status"] == "gone"

    asyncio.run(fire())

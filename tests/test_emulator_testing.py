"""What DAG authors test with: an S3 of their own, and a task that runs to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, task
from airflow_run import run_dag

from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault, run_task
from airflow_provider_codegateway.exceptions import BudgetExceeded, RenderOutcomeUnknown
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


def video(*, deferrable: bool = True, **arguments: Any) -> GenerateVideoOperator:
    settings: dict[str, Any] = {
        "task_id": "render",
        "model": "google/veo-3.1-fast",
        "prompt": "A paper boat",
        "s3_key": "s3://marketing/{{ ds }}/boat.mp4",
    }
    return GenerateVideoOperator(**settings | arguments, deferrable=deferrable)


@pytest.mark.parametrize("deferrable", [False, True])
def test_run_task(codegateway_emulator: Emulator, codegateway_s3: Any, *, deferrable: bool) -> None:
    """A task renders its templates and runs to its end, also where it defers on the way."""
    codegateway_s3.create_bucket(Bucket="marketing")
    operator = video(deferrable=deferrable)
    run = run_task(operator, at=datetime(2026, 6, 6, tzinfo=UTC))
    assert run.result == run.xcoms["return_value"] == "2026-06-06/boat.mp4"
    assert run.xcoms["clip"]["uri"] == "s3://marketing/2026-06-06/boat.mp4"
    assert len(run.events) == deferrable
    assert codegateway_emulator.billed == 1
    stored = codegateway_s3.get_object(Bucket="marketing", Key=run.result)
    assert stored["Body"].read(8)[4:] == b"ftyp"
    assert operator.s3_key == "s3://marketing/{{ ds }}/boat.mp4"


def test_run_task_raises_what_the_task_raises(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    """An error of the trigger comes out as the task's own, and the next attempt takes what was bought."""
    codegateway_s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(Fault.reset_after())
    with pytest.raises(RenderOutcomeUnknown):
        run_task(video())
    run = run_task(video(), try_number=2)
    assert run.xcoms["clip"]["renders_bought"] == 2
    assert codegateway_emulator.billed == 2


def test_the_third_clip_of_a_day_is_refused(
    codegateway_emulator: Emulator, codegateway_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of two renders a day, in a test of a DAG author's."""
    codegateway_s3.create_bucket(Bucket="marketing")
    connection = json.loads(os.environ["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
    spend = {"journal": "s3://marketing/journal", "budgets": [{"per": "day", "renders": 2}]}
    connection["extra"] = {"spend": spend}
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(connection))
    for number in (1, 2):
        run_task(video(s3_key=f"s3://marketing/{number}.mp4"))
    with pytest.raises(BudgetExceeded, match="2 renders per day"):
        run_task(video(s3_key="s3://marketing/3.mp4"))
    assert codegateway_emulator.billed == 2


def test_templates(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    """Templates see params, the run's configuration and what other tasks returned or pushed."""
    codegateway_s3.create_bucket(Bucket="marketing")
    codegateway_emulator.serve_clip(None)
    with DAG("ads", schedule=None, params={"bucket": "marketing", "season": "spring"}):
        operator = video(
            prompt="{{ ti.xcom_pull('write') }}, {{ ti.xcom_pull(task_ids='write', key='light') }}",
            s3_key="s3://{{ params.bucket }}/{{ dag_run.conf.folder }}/{{ params.season }}-{{ run_id }}.mp4",
        )
    run = run_task(
        operator,
        params={"season": "autumn"},
        conf={"folder": "seasons"},
        xcoms={"write": "An orchard", "write.light": "low light"},
        run_id="r1",
    )
    assert run.result == "seasons/autumn-r1.mp4"
    assert codegateway_emulator.ledger[0].prompt == "An orchard, low light"


def test_mapped_task(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    """Of a mapped task, and of a decorated one, each can be run."""
    codegateway_s3.create_bucket(Bucket="marketing")
    with DAG("seasons", schedule=None, params={"bucket": "marketing"}) as dag:

        @task.generate_video(
            model="minimax/hailuo-2.3-fast", s3_bucket="{{ params.bucket }}", deferrable=True
        )
        def render(season: str) -> dict[str, str]:
            return {"prompt": f"An orchard in {season}", "s3_key": f"seasons/{season}.mp4"}

        render.expand(season=["autumn", "spring"])

    results = [run_task(dag.get_task("render"), map_index=number).result for number in (0, 1)]
    assert results == ["seasons/autumn.mp4", "seasons/spring.mp4"]
    assert codegateway_emulator.billed == 2


@pytest.mark.usefixtures("airflow_database")
def test_a_dag_test_ends_after_a_mapped_task_was_run() -> None:
    """On Airflow 2.11, a session that was left open made it try the first task again without end."""

    class Nothing(BaseOperator):
        def __init__(self, *, word: str = "", **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.word = word

        def execute(self, context: Any) -> None:
            pass

    with DAG("after_run_task", schedule=None) as dag:
        Nothing.partial(task_id="mapped").expand(word=["a", "b"])
    run_task(dag.get_task("mapped"), map_index=1)
    with DAG("after_run_task_2", schedule=None) as second:
        Nothing(task_id="one")
    assert run_dag(second).state == "success"


def test_timeout_of_a_deferral(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    """A deferral that takes longer than the task may is resumed as failed, as Airflow does it."""
    codegateway_s3.create_bucket(Bucket="marketing")
    with (
        codegateway_emulator.holding(),
        pytest.raises(RenderOutcomeUnknown, match="deferral ended without a result"),
    ):
        run_task(video(execution_timeout=timedelta(seconds=1)))


def test_rehearsal_of_a_download(codegateway_emulator: Emulator, codegateway_s3: Any) -> None:
    """A clip host that breaks off is resumed, and the render is paid for once."""
    codegateway_s3.create_bucket(Bucket="marketing")
    codegateway_emulator.fail_next(ClipFault.break_after(1000))
    run_task(video())
    assert codegateway_emulator.billed == 1
    assert len(codegateway_emulator.clip_requests) >= 2


def test_other_operators(codegateway_emulator: Emulator) -> None:
    """The helper runs any operator."""

    class Say(BaseOperator):
        template_fields = ("word",)

        def __init__(self, word: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.word = word

        def execute(self, context: Context) -> str:
            return self.word

    assert run_task(Say(word="{{ run_id }}!", task_id="say")).result == "test!"


def test_each_s3_is_empty(codegateway_s3: Any) -> None:
    """Every test begins with an S3 of its own."""
    assert codegateway_s3.list_buckets()["Buckets"] == []


def test_without_moto() -> None:
    """Where moto is missing the fixture says what to install."""
    code = (
        "import sys; sys.modules['moto'] = None\n"
        "from airflow_provider_codegateway.emulator.s3_server import s3_server\n"
        "with s3_server(): pass"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'moto[s3,server]'" in result.stderr

"""What Airflow does after a failure: by the policy where there is one, else by the exception alone."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

import pytest
from airflow_run import run_dag

pytest.importorskip("airflow.sdk.definitions.retry_policy", reason="Airflow before 3.3 has no retry policies")

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import (
    ExceptionRetryPolicy,
    RetryAction,
    RetryRule,
)
from media_samples import mp4

from airflow_provider_codegateway import exceptions
from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.retry_policy import CodeGatewayRetryPolicy

CLIP: dict[str, Any] = {"model": "minimax/hailuo-2.3-fast", "s3_key": "s3://bucket/x.mp4"}


def test_retry_after_becomes_the_delay() -> None:
    """The gateway knows best when to come back."""
    error = exceptions.GatewayUnavailable("busy", retry_after=90)
    decision = CodeGatewayRetryPolicy().evaluate(error, 1, 3)
    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, timedelta(seconds=90))


def test_a_paid_clip_is_fetched_again_soon() -> None:
    """Its link expires while the usual retry delay passes."""
    decision = CodeGatewayRetryPolicy().evaluate(exceptions.ClipTransferError("broken"), 1, 3)
    assert decision.retry_delay == timedelta(seconds=30)


@pytest.mark.parametrize(
    "error", [exceptions.RenderOutcomeUnknown("?"), exceptions.GatewayUnavailable("?"), OSError()]
)
def test_everything_else_is_left_to_the_task(error: Exception) -> None:
    """Composable: a policy that has nothing to say says DEFAULT."""
    assert CodeGatewayRetryPolicy().evaluate(error, 1, 3).action is RetryAction.DEFAULT


def test_what_a_retry_cannot_help_fails_the_task_on_every_version() -> None:
    """No policy needed: these are fail exceptions."""
    failing = {
        name
        for name, item in vars(exceptions).items()
        if isinstance(item, type)
        and issubclass(item, exceptions.CodeGatewayError)
        and issubclass(item, AirflowFailException)
    }
    assert failing == {
        "BudgetExceeded",
        "BatchRefused",
        "ClipMismatch",
        "ContentRefused",
        "InvalidRequest",
        "InvalidConnection",
        "InvalidTarget",
        "LedgerConflict",
        "RequestRejected",
        "RenderLimitReached",
    }


def test_the_operator_uses_it_unless_the_author_says_otherwise() -> None:
    """Also from ``default_args`` and under ``.partial()``."""
    own = ExceptionRetryPolicy(rules=[RetryRule(exception=OSError)])
    with DAG("policies", schedule=None, default_args={"retry_policy": own}):
        assert GenerateVideoOperator(task_id="a", **CLIP).retry_policy is own
    with DAG("policies", schedule=None):
        assert isinstance(GenerateVideoOperator(task_id="a", **CLIP).retry_policy, CodeGatewayRetryPolicy)
        assert GenerateVideoOperator(task_id="b", retry_policy=own, **CLIP).retry_policy is own


@pytest.mark.usefixtures("airflow_database", "connections")
def test_airflow_retries_a_mapped_task_when_the_gateway_asked_for_it(
    gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through Airflow's task runner: after the gateway's second, and not after the task's hour."""
    gateway.serve_clip(mp4())
    connection = json.loads(os.environ["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
    monkeypatch.setenv(
        "AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps({**connection, "extra": {"retries": 0}})
    )
    gateway.fail_next(Fault.status(429, retry_after=1))
    with DAG("asked", schedule=None) as dag:
        GenerateVideoOperator.partial(
            task_id="clip",
            model="minimax/hailuo-2.3-fast",
            s3_bucket=bucket,
            retries=1,
            retry_delay=timedelta(hours=1),
        ).expand(s3_key=["a.mp4"])
    assert run_dag(dag).state == "success"
    assert "the gateway asked for 1 s" in capfd.readouterr().out
    assert (gateway.refused, gateway.billed) == (1, 1)

"""The link of a task where there are no pages: to the S3 console, on every version of Airflow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_codegateway.links import ClipLink
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

KEY: Any = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)


@pytest.mark.parametrize(
    ("xcom", "link"),
    [
        (
            {"bucket": "acme", "key": "clips/a b&c.mp4"},
            "https://console.aws.amazon.com/s3/object/acme?prefix=clips%2Fa+b%26c.mp4",
        ),
        (None, ""),
        ("clips/a.mp4", ""),
        ({"bucket": 1, "key": None}, ""),
    ],
)
def test_without_pages_the_link_is_the_console(monkeypatch: pytest.MonkeyPatch, xcom: Any, link: str) -> None:
    """The XCom ``clip`` says where the object is; a task without it has no link."""
    monkeypatch.setenv("AIRFLOW__CODEGATEWAY__CLIP_PAGES", "False")
    monkeypatch.setattr(
        "airflow_provider_codegateway.links.XCom.get_value", lambda *, ti_key, key: {"clip": xcom}[key]
    )
    operator = GenerateVideoOperator(task_id="t", model="m", s3_key="s3://b/k")
    assert ClipLink().get_link(operator, ti_key=KEY) == link


def test_operator_has_the_link() -> None:
    """The operator offers the link, and so does whatever is derived from it."""
    assert [link.name for link in GenerateVideoOperator.operator_extra_links] == ["Clip"]

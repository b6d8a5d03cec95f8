"""What a catalogue costs: operator, journal and command, against the emulator and a real S3 server."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pkgutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import crash_runner
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, TaskDeferred
from airflow_run import run_dag
from crash_runner import JOURNAL_POINTS, POINTS, Job
from media_samples import mp4
from s3_proxy import S3Proxy, S3Request, Verdict
from spend_runner import LIMITS

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.exceptions import (
    BudgetExceeded,
    ClipTransferError,
    CodeGatewayError,
    GatewayUnavailable,
    InvalidConnection,
    InvalidRequest,
    InvalidTarget,
    LedgerConflict,
    RenderLimitReached,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.spend.command import main
from airflow_provider_codegateway.spend.fold import Row
from airflow_provider_codegateway.spend.journal import Journal, Reserve
from airflow_provider_codegateway.spend.settings import parse_spend

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
MP4 = mp4()
PRICES = [
    {"model": VEO, "resolution": "1080p", "generate_audio": True, "per_second": "0.15"},
    {"model": VEO, "per_second": "0.11"},
    {"model": SEEDANCE, "per_second": "0.037"},
    {"model": HAILUO, "per_render": "0.30"},
]

TRIGGERERS = tuple(int(number) for number in os.environ.get("CODEGATEWAY_TEST_TRIGGERERS", "2 15 20").split())
"""Processes, clips in each, and the budget of renders: ``2 500 600`` is the full size."""

Spend = Any


@pytest.fixture
def spend(
    bucket: str, gateway: Emulator, connections: None, no_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> Spend:
    """Put spend settings into the connection."""
    gateway.serve_clip(MP4)

    def set_spend(*budgets: dict[str, Any], **further: Any) -> None:
        settings = {"currency": "USD", "journal": f"s3://{bucket}/ops/journal", "prices": PRICES, **further}
        extra = {"retries": 0, "spend": {**settings, "budgets": list(budgets)}}
        set_extra(monkeypatch, gateway, extra)

    return set_spend


def set_extra(monkeypatch: pytest.MonkeyPatch, gateway: Emulator, extra: dict[str, Any]) -> None:
    connection = {
        "conn_type": "codegateway",
        "host": gateway.url,
        "password": gateway.api_key,
        "extra": extra,
    }
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(connection))


@pytest.fixture(params=[False, True], ids=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def execute(bucket: str, key: str, *, run_id: str = "r", **arguments: Any) -> dict[str, Any]:
    """The operator without a scheduler around it; what it pushed."""
    operator = GenerateVideoOperator(task_id="clip", s3_bucket=bucket, s3_key=key, **arguments)
    pushed: dict[str, Any] = {}
    execute_operator(operator, pushed, run_id)
    return json.loads(json.dumps(pushed))  # type: ignore[no-any-return]


def execute_operator(operator: GenerateVideoOperator, pushed: dict[str, Any], run_id: str = "r") -> None:
    instance = SimpleNamespace(
        dag_id="d",
        task_id="clip",
        run_id=run_id,
        map_index=-1,
        xcom_push=lambda key, value: pushed.update({key: value}),
    )
    context: Any = {"ti": instance}
    try:
        operator.execute(context)
    except TaskDeferred as deferred:
        event = asyncio.run(first_event(deferred.trigger))
        getattr(operator, deferred.method_name)(context, event)
    except AirflowSkipException as skipped:
        pushed["skipped"] = str(skipped)


async def first_event(trigger: Any) -> Any:
    """What a triggerer would bring back: through the database, by another process."""
    path, arguments = json.loads(json.dumps(trigger.serialize()))
    events = [event.payload async for event in pkgutil.resolve_name(path)(**arguments).run()]
    return json.loads(json.dumps(events[0]))


def rows(s3: S3Client, bucket: str) -> list[Row]:
    journal = Journal(s3, S3Location(bucket, "ops/journal"), LIMITS)
    return [row for key in journal.objects() for row in journal.rows(key)]


def kinds(s3: S3Client, bucket: str) -> list[str]:
    return [row.kind for row in rows(s3, bucket)]


@pytest.fixture
def command(
    s3_endpoint: str,
    s3_credentials: dict[str, str],
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> Any:
    """Run the command on the journal, with boto3's own credentials: its status, output and errors."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_credentials["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_credentials["aws_secret_access_key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    place = ["--journal", f"s3://{bucket}/ops/journal", "--endpoint-url", s3_endpoint]

    def run(*arguments: str, place: list[str] = place) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*place, *arguments], lambda conn_id: CodeGatewayVideoHook(conn_id).get_spend())
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


class TestPurchase:
    def test_a_clip_says_what_it_cost(
        self, deferrable: bool, spend: Spend, s3: S3Client, bucket: str
    ) -> None:
        """In XCom and in the object's metadata, from where a run that reuses it reads it; the journal says who."""
        spend({"per": "day", "renders": 1})
        clip = execute(bucket, "x.mp4", model=VEO, prompt="p", duration=8, deferrable=deferrable)["clip"]
        assert clip["cost"] == {
            "amount": "0.88",
            "at_most": "0.88",
            "currency": "USD",
            "assumed": ["generate_audio", "resolution"],
            "price": {"model": VEO, "per_second": "0.11"},
        }
        reused = execute(bucket, "x.mp4", run_id="another", model=VEO, prompt="p", duration=8)["clip"]
        assert (reused["cost"], reused["renders_bought_here"]) == (clip["cost"], 0)
        reserved, bought = rows(s3, bucket)
        assert (reserved.kind, bought.kind) == ("reserved", "bought")
        assert (bought.dag_id, bought.task_id, bought.run_id, bought.map_index) == ("d", "clip", "r", -1)
        assert (bought.uri, bought.seconds, bought.cost) == (f"s3://{bucket}/x.mp4", "8", "0.88")

    def test_a_budget_that_is_used_up_buys_nothing_and_leaves_nothing(
        self, deferrable: bool, spend: Spend, gateway: Emulator, s3: S3Client, bucket: str
    ) -> None:
        """The claim is taken back, so that the next run with room buys at once."""
        spend({"per": "day", "renders": 1})
        execute(bucket, "a.mp4", model=VEO, prompt="p")
        with pytest.raises(BudgetExceeded, match="1 render per day has no room"):
            execute(bucket, "b.mp4", model=VEO, prompt="p", deferrable=deferrable)
        assert gateway.billed == 1
        keys = [
            item["Key"]
            for item in s3.list_objects_v2(Bucket=bucket, Prefix="_codegateway/").get("Contents", [])
        ]
        assert keys == []
        spend({"per": "day", "renders": 2})
        execute(bucket, "b.mp4", model=VEO, prompt="p", deferrable=deferrable)

    @pytest.mark.parametrize(
        ("fault", "error", "ends"),
        [
            (Fault.status(400), RequestRejected, "released"),
            (Fault.status(503), GatewayUnavailable, "released"),
            (Fault.status(500, billed=True), RenderOutcomeUnknown, "unknown"),
        ],
        ids=["refused", "busy", "unknown"],
    )
    def test_the_outcome_decides_what_counts(
        self,
        fault: Fault,
        error: type[Exception],
        ends: str,
        deferrable: bool,
        spend: Spend,
        gateway: Emulator,
        s3: S3Client,
        bucket: str,
    ) -> None:
        """What provably bought nothing gives its room back; what may have been bought keeps it."""
        spend({"per": "day", "renders": 2})
        gateway.fail_next(fault)
        with pytest.raises(error):
            execute(bucket, "a.mp4", model=VEO, prompt="p", deferrable=deferrable)
        assert kinds(s3, bucket) == ["reserved", ends]
        assert rows(s3, bucket)[-1].note == error.__name__

    def test_a_second_render_costs_at_most_both(
        self, spend: Spend, gateway: Emulator, s3: S3Client, bucket: str
    ) -> None:
        """The first one's outcome is unknown: one price is sure, two are possible."""
        spend()
        gateway.fail_next(Fault.status(500, billed=True))
        with pytest.raises(RenderOutcomeUnknown):
            execute(bucket, "a.mp4", model=HAILUO, prompt="p")
        cost = execute(bucket, "a.mp4", model=HAILUO, prompt="p")["clip"]["cost"]
        assert (cost["amount"], cost["at_most"]) == ("0.30", "0.60")

    def test_max_cost_is_a_bound_for_the_clip(self, spend: Spend, gateway: Emulator, bucket: str) -> None:
        """Too dear is refused for free; also a second render that would go beyond it."""
        spend()
        with pytest.raises(BudgetExceeded, match=r"costs 0.88 USD, more than max_cost='0.80' allows"):
            execute(bucket, "a.mp4", model=VEO, prompt="p", duration=8, max_cost="0.80")
        assert not gateway.ledger
        gateway.fail_next(Fault.status(500, billed=True))
        with pytest.raises(RenderOutcomeUnknown):
            execute(bucket, "a.mp4", model=VEO, prompt="p", duration=8, max_cost="0.88")
        with pytest.raises(BudgetExceeded, match=r"With render 2, the clip costs 1.76 USD"):
            execute(bucket, "a.mp4", model=VEO, prompt="p", duration=8, max_cost=Decimal("0.88"))
        assert gateway.billed == 1

    @pytest.mark.parametrize("value", [0.8, 1, True])
    def test_max_cost_is_no_float(self, value: Any) -> None:
        """It is refused when the DAG is parsed."""
        with pytest.raises(InvalidRequest, match=r"max_cost is .*Write amounts as strings"):
            GenerateVideoOperator(task_id="t", model=VEO, prompt="p", s3_key="s3://b/k", max_cost=value)

    def test_a_clip_that_is_paid_for_is_fetched_whatever_the_budget(
        self, spend: Spend, gateway: Emulator, bucket: str
    ) -> None:
        """A receipt in the ledger costs nothing more."""
        spend({"per": "day", "renders": 1})
        gateway.fail_next(ClipFault.status(500), times=None)
        with pytest.raises(ClipTransferError):
            execute(bucket, "a.mp4", model=VEO, prompt="p")
        gateway.clear_faults()
        spend({"per": "day", "renders": 1}, prices=[])
        clip = execute(bucket, "a.mp4", model=VEO, prompt="p", max_cost="0.01")["clip"]
        assert (clip["cost"], gateway.billed) == (None, 1)

    def test_without_the_journal_nothing_is_bought(
        self,
        deferrable: bool,
        spend: Spend,
        gateway: Emulator,
        bucket: str,
        s3_endpoint: str,
        s3_credentials: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """S3 refuses its write: no bill, and an error that says so."""

        def deny_journal(request: S3Request) -> Verdict:
            is_write = request.operation == "PutObject" and request.key.endswith(".jsonl")
            return Verdict.DENY if is_write else Verdict.PASS

        spend(journal_conn_id="aws_ops")
        with S3Proxy(s3_endpoint) as proxy, proxy.ruled(deny_journal):
            connection = {
                "conn_type": "aws",
                "login": s3_credentials["aws_access_key_id"],
                "password": s3_credentials["aws_secret_access_key"],
                "extra": {"endpoint_url": proxy.url, "region_name": "us-east-1"},
            }
            monkeypatch.setenv("AIRFLOW_CONN_AWS_OPS", json.dumps(connection))
            with pytest.raises(InvalidTarget, match="write the journal") as caught:
                execute(bucket, "a.mp4", model=VEO, prompt="p", deferrable=deferrable)
        assert str(caught.value).endswith("Nothing was bought.")
        assert not gateway.ledger

    def test_settings_may_be_a_file_in_s3(
        self, spend: Spend, gateway: Emulator, s3: S3Client, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then everybody who may use the connection sees the same, and a wrong file buys nothing."""
        settings = {"currency": "USD", "prices": PRICES, "journal": f"s3://{bucket}/ops/journal"}
        s3.put_object(Bucket=bucket, Key="ops/spend.json", Body=json.dumps(settings).encode())
        set_extra(monkeypatch, gateway, {"spend": f"s3://{bucket}/ops/spend.json"})
        assert execute(bucket, "a.mp4", model=HAILUO, prompt="p")["clip"]["cost"]["amount"] == "0.30"
        set_extra(
            monkeypatch, gateway, {"spend": json.dumps({"prices": [{"model": VEO, "per_second": 0.1}]})}
        )
        with pytest.raises(
            InvalidConnection, match=r"'spend' of connection 'codegateway_default'.*0\.1, not a string"
        ):
            execute(bucket, "b.mp4", model=HAILUO, prompt="p")
        assert gateway.billed == 1

    @pytest.mark.parametrize("point", [point for point in (*POINTS, *JOURNAL_POINTS) if "XCom" not in point])
    def test_a_run_that_is_killed_leaves_a_journal_that_never_says_too_little(
        self,
        point: str,
        gateway: Emulator,
        s3: S3Client,
        s3_endpoint: str,
        s3_credentials: dict[str, str],
        bucket: str,
    ) -> None:
        """At each step it counts at least the bill; the next run needs nobody, and says what is paid."""
        gateway.serve_clip(MP4)
        job = Job(
            gateway_url=gateway.url,
            api_key=gateway.api_key,
            s3_endpoint=s3_endpoint,
            s3_credentials=s3_credentials,
            bucket=bucket,
            spend={"journal": f"s3://{bucket}/ops/journal", "budgets": [{"per": "day", "renders": 5}]},
        )
        crash_runner.run(replace(job, kill_at=point))
        assert counted(s3, bucket) >= gateway.billed
        ended = crash_runner.resume(job)
        assert ended.clip, ended.message
        state, _ = Journal(s3, S3Location(bucket, "ops/journal"), LIMITS).state()
        assert counted(s3, bucket) >= gateway.billed
        bought = kinds(s3, bucket).count("bought")
        assert bought <= gateway.billed <= bought + len(state.open)


def counted(s3: S3Client, bucket: str) -> int:
    state, _ = Journal(s3, S3Location(bucket, "ops/journal"), LIMITS).state()
    return sum(tally.renders for tally in state.months.values())


@pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferrable"])
def test_a_failure_says_what_the_clip_cost_so_far(
    deferrable: bool, spend: Spend, gateway: Emulator, bucket: str
) -> None:
    """In its XCom, for the pages; with what earlier tries may have bought. What bought nothing cost nothing."""
    spend()
    clip: dict[str, Any] = {"model": VEO, "prompt": "p", "duration": 8, "deferrable": deferrable}
    told = []
    for fault in (Fault.status(400), Fault.reset_after(), ClipFault.html()):
        gateway.fail_next(fault, times=1 if isinstance(fault, Fault) else 9)
        operator = GenerateVideoOperator(task_id="clip", s3_bucket=bucket, s3_key="a.mp4", **clip)
        pushed: dict[str, Any] = {}
        with pytest.raises(CodeGatewayError):
            execute_operator(operator, pushed)
        error = json.loads(json.dumps(pushed["clip_error"]))
        assert (error["bucket"], error["key"]) == (bucket, "a.mp4")
        cost = error.get("cost")
        told.append((error["bought"], cost and cost["amount"], cost and cost["at_most"]))
    assert told == [
        ("Nothing was bought.", None, None),
        ("One render may have been bought.", "0.00", "0.88"),
        ("1 render was bought, and 1 more may have been.", "0.88", "1.76"),
    ]


class TestDryRun:
    def test_says_what_a_clip_would_cost_and_skips(
        self, spend: Spend, gateway: Emulator, s3: S3Client, bucket: str
    ) -> None:
        """Nothing is bought or written; what follows in the DAG has no clip to work on, so the task is skipped."""
        spend({"per": "day", "renders": 1})
        before = s3.list_objects_v2(Bucket=bucket).get("KeyCount")
        pushed = execute(bucket, "a.mp4", model=VEO, prompt="p", duration=8, dry_run=True)
        assert pushed["estimate"] | {"cost": pushed["estimate"]["cost"]["amount"]} == {
            "uri": f"s3://{bucket}/a.mp4",
            "model": VEO,
            "renders": 1,
            "cost": "0.88",
        }
        assert pushed["skipped"].endswith("would cost 0.88 USD. Nothing was bought.")
        assert not gateway.ledger
        clips = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
        assert [item["Key"] for item in clips] == ([] if before else ["ops/journal/checkpoint.json"])

    def test_refuses_what_a_purchase_would_refuse(self, spend: Spend, gateway: Emulator, bucket: str) -> None:
        """Its price, its budgets as they are now, and its target."""
        spend({"per": "day", "renders": 1})
        execute(bucket, "a.mp4", model=VEO, prompt="p")
        with pytest.raises(BudgetExceeded, match="1 render per day"):
            execute(bucket, "b.mp4", model=VEO, prompt="p", dry_run=True)
        with pytest.raises(BudgetExceeded, match="max_cost"):
            execute(bucket, "b.mp4", model=VEO, prompt="p", max_cost="0.01", dry_run=True)
        with pytest.raises(InvalidTarget, match="clip of another request"):
            execute(bucket, "a.mp4", model=VEO, prompt="q", dry_run=True)

    def test_a_clip_that_is_there_costs_nothing(self, spend: Spend, bucket: str) -> None:
        """The estimate has no render."""
        spend()
        execute(bucket, "a.mp4", model=VEO, prompt="p")
        pushed = execute(bucket, "a.mp4", model=VEO, prompt="p", dry_run=True)
        assert pushed["estimate"]["renders"] == 0
        assert "is paid for already" in pushed["skipped"]

    @pytest.mark.parametrize(
        ("fault", "tries", "terms", "renders"),
        [
            (Fault.early_expiry(0.0), 1, {}, 1),  # the link of a paid clip has run out
            (ClipFault.html(), 1, {}, 0),  # paid, not delivered
            (ClipFault.html(), 1, {"prompt": "q"}, LedgerConflict),
            (Fault.status(500), 1, {}, 1),
            (Fault.status(500), 1, {"prompt": "q"}, LedgerConflict),
            (Fault.status(500), 2, {}, RenderLimitReached),
            (Fault.status(500), 1, {"max_cost": "1.00"}, BudgetExceeded),  # with the first, it is 1.32
        ],
        ids=str,
    )
    def test_tells_what_the_next_run_would_do(
        self,
        fault: Any,
        tries: int,
        terms: dict[str, Any],
        renders: int | type[CodeGatewayError],
        spend: Spend,
        gateway: Emulator,
        bucket: str,
    ) -> None:
        """Whatever earlier runs have left: the same refusal, or as many renders."""
        spend({"per": "day", "renders": 9})
        gateway.fail_next(fault, times=8)
        clip: dict[str, Any] = {"model": VEO, "prompt": "p", "duration": 6, "max_cost": "9"}
        for _ in range(tries):
            with pytest.raises(CodeGatewayError):
                execute(bucket, "a.mp4", **clip)
        gateway.clear_faults()
        billed = gateway.billed
        if isinstance(renders, int):
            pushed = execute(bucket, "a.mp4", **{**clip, **terms}, dry_run=True)
            assert pushed["estimate"]["renders"] == renders
            execute(bucket, "a.mp4", **{**clip, **terms})
            assert gateway.billed - billed == renders
        else:
            for dry in (True, False):
                with pytest.raises(renders):
                    execute(bucket, "a.mp4", **{**clip, **terms}, dry_run=dry)
            assert gateway.billed == billed

    @pytest.mark.usefixtures("airflow_database")
    def test_airflow_skips_the_task(self, spend: Spend, gateway: Emulator, bucket: str) -> None:
        """In a DAG: the estimate is in XCom, and no clip."""
        spend()
        with DAG("dry", schedule=None) as dag:
            GenerateVideoOperator(
                task_id="clip", model=HAILUO, prompt="p", s3_key=f"s3://{bucket}/a.mp4", dry_run=True
            )
        result = run_dag(dag)["clip"]
        assert result.state == "skipped"
        assert result.xcoms["estimate"]["cost"]["amount"] == "0.30"
        assert not gateway.ledger


@pytest.fixture
def catalogue(spend: Spend, gateway: Emulator, s3: S3Client, bucket: str) -> Decimal:
    """20 clips on three models, one of unknown outcome and one refused: the emulator's bill."""
    spend({"per": "month", "amount": "500"})
    faults = {7: Fault.status(500, billed=True), 12: Fault.status(400)}
    for number in range(20):
        if number in faults:
            gateway.fail_next(faults[number])
        model = (VEO, SEEDANCE, HAILUO)[number % 3]
        loud: dict[str, Any] = (
            {"resolution": "1080p", "generate_audio": True} if model == VEO and number % 2 else {}
        )
        duration = {"duration": 8} if model == VEO else {}
        arguments = {
            "model": model,
            "prompt": f"clip {number}",
            "run_id": f"run {number % 2}",
            **loud,
            **duration,
        }
        if number in faults:
            with pytest.raises((RenderOutcomeUnknown, RequestRejected)):
                execute(bucket, f"{number}.mp4", **arguments)
        execute(bucket, f"{number}.mp4", **arguments)
    return sum(
        (price_of(render.request) for render in gateway.ledger if render.state == "billed"), Decimal(0)
    )


def price_of(body: Any) -> Decimal:
    """The price list once more, by hand."""
    match body["model"]:
        case "google/veo-3.1-fast":
            loud = body.get("resolution") == "1080p" and body.get("generate_audio")
            return 8 * Decimal("0.15" if loud else "0.11")
        case "bytedance/seedance-2.0":
            return 5 * Decimal("0.037")
    return Decimal("0.30")


class TestCommand:
    def test_the_total_is_the_bill_to_the_last_digit(
        self, catalogue: Decimal, gateway: Emulator, s3: S3Client, bucket: str, command: Any
    ) -> None:
        """Between what is known to be bought and what may have been besides; the ledger is empty by then."""
        assert s3.list_objects_v2(Bucket=bucket, Prefix="_codegateway/")["KeyCount"] == 0
        status, out, _ = command("report", "--by", "month", "--format", "json")
        (total,) = json.loads(out)
        assert status == 0
        assert (total["bought"], total["unknown"], total["released"], total["unresolved"]) == (20, 1, 1, 0)
        assert Decimal(total["cost"]) + Decimal(total["unknown_cost"]) == catalogue
        assert gateway.billed == 21
        _, out, _ = command("report", "--by", "model,dag", "--format", "csv")
        by_model = list(csv.DictReader(io.StringIO(out)))
        assert [row["model"] for row in by_model] == [SEEDANCE, VEO, HAILUO]
        assert sum(Decimal(row["cost"]) for row in by_model) == Decimal(total["cost"])
        _, out, _ = command("report", "--by", "run")
        assert out.splitlines()[0].split()[:3] == ["run", "currency", "bought"]
        assert "total" in out
        assert command("report", "--since", "2001-01", "--until", "2001-02")[1].endswith(
            "no renders in this time.\n"
        )

    def test_release_gives_back_what_was_not_bought(
        self, spend: Spend, gateway: Emulator, s3: S3Client, bucket: str, command: Any
    ) -> None:
        """It lists, asks for --yes, and says who did it; the budget has room again."""
        spend({"per": "day", "renders": 1})
        gateway.fail_next(Fault.status(500))
        with pytest.raises(RenderOutcomeUnknown):
            execute(bucket, "a.mp4", model=VEO, prompt="p")
        with pytest.raises(BudgetExceeded, match="0 bought, 0 in flight, 1 unknown or unresolved"):
            execute(bucket, "b.mp4", model=VEO, prompt="p")
        (row,) = json.loads(command("unresolved", "--format", "json")[1])
        assert (row["status"], row["note"], row["at_most"]) == ("unknown", "RenderOutcomeUnknown", "0.66")
        status, out, err = command("release")
        assert (status, row["id"] in out, "--yes" in err) == (1, True, True)
        assert command("release", row["id"], "--by", "ann", "--note", "not billed", "--yes")[0] == 0
        assert rows(s3, bucket)[-1].released_by == "ann"
        assert command("unresolved")[1].endswith("has nothing unresolved.\n")
        status, _, err = command("release", row["id"], "--yes")
        assert (status, "Nothing was released" in err) == (1, True)
        execute(bucket, "b.mp4", model=VEO, prompt="p")

    def test_says_what_counts_although_nothing_is_unresolved(
        self, spend: Spend, bucket: str, s3: S3Client, command: Any
    ) -> None:
        """A budget may be full of renders that are in flight: of processes that were killed, for one."""
        spend()
        reserved = Row(kind="reserved", written="", id="r-1", model=VEO, uri="s3://b/a.mp4")
        Journal(s3, S3Location(bucket, "ops/journal")).write(
            Reserve(render=reserved, budgets=(), cost=None, seconds=300.0)
        )
        for name, words in (("unresolved", "nothing unresolved."), ("release", "nothing to release.")):
            out = command(name)[1]
            assert f"{words} 1 render is in flight, until 20" in out
            assert "`unresolved --all` lists them." in out

    def test_estimates_a_chain_at_its_dearest(
        self, spend: Spend, tmp_path: Path, bucket: str, command: Any
    ) -> None:
        """The amount is that of the first model; a fallback without a price makes the worst unknown."""
        spend()
        rows = tmp_path / "rows.csv"
        rows.write_text(
            f"model,prompt,duration,fallbacks\n{SEEDANCE},one,8,{VEO}\n{SEEDANCE},two,8,acme/new\n"
        )
        status, out, _ = command("estimate", str(rows), "--format", "json", place=[])
        found = json.loads(out)
        assert (status, found["amount"], found["at_most"], found["unpriced"]) == (0, "0.592", None, 1)
        assert [(row["amount"], row["at_most"]) for row in found["rows"]] == [
            ("0.296", "0.88"),
            ("0.296", None),
        ]

    def test_estimates_a_file_of_rows(self, spend: Spend, tmp_path: Path, bucket: str, command: Any) -> None:
        """By the price list of the connection; every wrong row is listed at once."""
        spend()
        good = tmp_path / "rows.csv"
        good.write_text(f"model,prompt,duration,s3_key\n{VEO},one,8,a\n{SEEDANCE},two,,b\n")
        status, out, _ = command("estimate", str(good), "--format", "json", place=[])
        found = json.loads(out)
        assert (status, found["renders"], found["amount"], found["unpriced"]) == (0, 2, "1.065", 0)
        assert [row["assumed"] for row in found["rows"]] == ["generate_audio,resolution", "duration"]
        bad = tmp_path / "rows.jsonl"
        bad.write_text(
            "\n".join(
                json.dumps(row)
                for row in ({"model": VEO}, {"prompt": "p"}, {"model": VEO, "prompt": "p", "duration": 5})
            )
        )
        status, out, err = command("estimate", str(bad), place=[])
        assert (status, out) == (1, "")
        assert [line.partition(":")[0] for line in err.splitlines()] == [
            "3 problems",
            "- row 1",
            "- row 2",
            "- row 3",
        ]
        status, out, _ = command(
            "estimate",
            str(good),
            "--defaults",
            json.dumps({"model": VEO}),
            place=["--settings", settings_file(tmp_path)],
        )
        assert out.endswith("2 renders: not known, 1 without a price of every model.\n")

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("a.csv", "model;prompt\na;b\n", "Separate columns by commas"),
            ("a.csv", "model,prompt,prompt\na,b,c\n", "names 'prompt' twice"),
            ("a.csv", f"model,prompt\n{VEO}\n", "row 1: it has fewer cells than the header"),
            ("a.csv", f"model,prompt\n{VEO},a,b\n", "row 1: it has more cells than the header"),
            ("a.csv", f'model,prompt\n{VEO},"a\n', "is not CSV"),
            (
                "a.csv",
                f"model,promt\n{VEO},a\n",
                "row 1: 'promt' is not a field of a row. Did you mean 'prompt'?",
            ),
            ("a.csv", f"model,prompt,parameters\n{VEO},a,x\n", "row 1: parameters must be an object"),
            (
                "a.jsonl",
                f'{{"model": "{VEO}", "prompt": "a", "prompt": "b"}}',
                "the field 'prompt' is there twice",
            ),
            ("a.jsonl", '{"model"', "row 1: it is not JSON"),
            ("a.json", "[5]", "row 1: it is int, not an object"),
        ],
    )
    def test_estimate_reads_a_file_as_a_batch_does(
        self, name: str, text: str, words: str, command: Any, tmp_path: Path
    ) -> None:
        """What a batch would refuse is not estimated."""
        (tmp_path / name).write_text(text)
        status, out, err = command(
            "estimate", str(tmp_path / name), place=["--settings", settings_file(tmp_path)]
        )
        assert (status, out) == (1, "")
        assert words in err

    def test_estimate_takes_the_columns_of_the_key(self, command: Any, tmp_path: Path) -> None:
        """And a byte order mark, empty cells, and parameters as JSON."""
        rows = f"\ufeffsku,model,prompt,seed,parameters\n1,{VEO},a,,{{}}\n"
        (tmp_path / "rows.csv").write_text(rows)
        status, out, err = command(
            "estimate",
            str(tmp_path / "rows.csv"),
            "--defaults",
            json.dumps({"s3_key": "spring/{sku}.mp4", "duration": 4}),
            place=["--settings", settings_file(tmp_path)],
        )
        assert (status, err) == (0, "")
        assert out.endswith("1 render: 0.4 EUR.\n")
        status, _, err = command(
            "estimate", "-", "--defaults", "[]", place=["--settings", settings_file(tmp_path)]
        )
        assert (status, "is not an object of JSON" in err) == (1, True)

    @pytest.mark.parametrize("day", ["yesterday", "2026-13", "2026-11-26T00:00", "26.11.2026"])
    def test_report_takes_days_and_months_alone(self, day: str, command: Any, tmp_path: Path) -> None:
        """Any other text would leave out what it should not."""
        for option in ("--since", "--until"):
            with pytest.raises(SystemExit):
                command("report", option, day, place=["--settings", settings_file(tmp_path)])

    def test_names_what_is_wrong(self, command: Any, tmp_path: Path, bucket: str) -> None:
        """A missing file, a broken one, a journal that is not there."""
        assert (
            "cannot be read"
            in command("estimate", "no.csv", place=["--settings", settings_file(tmp_path)])[2]
        )
        (tmp_path / "broken.json").write_text("{")
        assert "is not JSON" in command("report", place=["--settings", str(tmp_path / "broken.json")])[2]
        assert "name no journal" in command("report", place=["--settings", settings_file(tmp_path)])[2]


def settings_file(folder: Path) -> str:
    path = folder / "spend.json"
    path.write_text(json.dumps({"currency": "EUR", "prices": [{"model": VEO, "per_second": "0.1"}]}))
    return str(path)


def test_a_misspelt_setting_or_model_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A setting is refused with those that there are; a model may be a new one, and is warned about."""
    with pytest.raises(
        InvalidConnection, match=r"journals is not a known setting. Use currency, journal, journal_conn_id"
    ):
        parse_spend({"journals": "s3://b/j"}, "x")
    with pytest.raises(
        InvalidConnection, match=r"budgets.0..rendrs is not a known setting. Use per, renders, amount"
    ):
        parse_spend({"journal": "s3://b/j", "budgets": [{"per": "day", "renders": 1, "rendrs": 2}]}, "x")
    for model in ("google/veo-3.1-fst", VEO, "acme/next"):
        parse_spend({"currency": "USD", "prices": [{"model": model, "per_render": "1"}]}, "x")
    assert [record.getMessage() for record in caplog.records] == [
        f"x has a price for 'google/veo-3.1-fst', which is not known. Did you mean '{VEO}'?"
    ]


def test_openlineage_is_told_the_cost(spend: Spend, bucket: str) -> None:
    """In a facet of its own, with a prefix, and not where there is no price."""
    pytest.importorskip("airflow.providers.openlineage.extractors.base")
    found = []
    for prices in (PRICES, []):
        spend(prices=prices)
        operator = GenerateVideoOperator(
            task_id="t", model=HAILUO, prompt="p", s3_key=f"s3://{bucket}/{len(prices)}.mp4"
        )
        operator.execute({})
        (output,) = operator.get_openlineage_facets_on_complete(None).outputs  # type: ignore[union-attr]
        found.append(output.outputFacets.get("codegateway_cost"))
    assert (found[0].amount, found[0].atMost, found[0].currency, found[1]) == ("0.30", "0.30", "USD", None)


def test_triggers_that_start_together_share_an_exact_budget(
    spend: Spend, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """In one triggerer, 30 deferred clips for a budget of 20: their rows go into few objects."""
    spend({"per": "day", "renders": 20})
    triggers = []
    for number in range(30):
        with pytest.raises(TaskDeferred) as deferred:
            execute_deferred(bucket, f"{number}.mp4")
        triggers.append(deferred.value.trigger)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(first_event(trigger) for trigger in triggers))

    events = asyncio.run(all_of_them())
    assert sum(event["status"] == "stored" for event in events) == gateway.billed == 20
    refused = [event["error"] for event in events if event["status"] == "failed"]
    assert {(error["class"], error["bought"]) for error in refused} == {("BudgetExceeded", "NO")}
    assert kinds(s3, bucket).count("bought") == 20
    assert len({row.written for row in rows(s3, bucket)}) <= 40


def test_triggerers_that_race_share_an_exact_budget(
    spend: Spend, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Each is a process of its own, with all of its clips under way at once."""
    triggerers, clips, budget = TRIGGERERS
    spend({"per": "day", "renders": budget})
    lines: list[list[str]] = [[] for _ in range(triggerers)]
    for number in range(triggerers * clips):
        with pytest.raises(TaskDeferred) as deferred:
            execute_deferred(bucket, f"{number}.mp4")
        lines[number % triggerers].append(json.dumps(deferred.value.trigger.serialize()[1]))
    with ThreadPoolExecutor(triggerers) as pool:
        told = "".join(pool.map(run_triggerer, lines))
    events = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("event ")]
    assert len(events) == triggerers * clips
    refused = [event["error"] for event in events if event["status"] == "failed"]
    assert Counter((error["class"], error["bought"]) for error in refused) == {
        ("BudgetExceeded", "NO"): triggerers * clips - budget
    }
    assert kinds(s3, bucket).count("bought") == gateway.billed == budget


def run_triggerer(lines: list[str]) -> str:
    runner = Path(__file__).with_name("trigger_runner.py")
    done = subprocess.run(
        [sys.executable, str(runner)], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    return done.stdout


def execute_deferred(bucket: str, key: str) -> None:
    operator = GenerateVideoOperator(
        task_id="clip", model=VEO, prompt="p", s3_bucket=bucket, s3_key=key, deferrable=True
    )
    instance = SimpleNamespace(dag_id="d", task_id="clip", run_id="r", map_index=-1)
    context: Any = {"ti": instance}
    operator.execute(context)

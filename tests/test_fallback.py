"""A chain of models: only what provably sold nothing reaches the next one, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import pkgutil
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import crash_runner
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, TaskDeferred
from airflow_run import run_dag
from crash_runner import FALLBACK_POINTS, KEY, Job
from hypothesis import given
from hypothesis import strategies as st
from media_samples import mp4_of, png
from s3_proxy import S3Proxy, S3Request, Verdict

from airflow_provider_codegateway import exceptions
from airflow_provider_codegateway.clip import Clip, Facts, Marks, S3Location
from airflow_provider_codegateway.decorators.video import generate_video_task
from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.emulator.faults import catalogue
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipExpired,
    ClipTransferError,
    CodeGatewayError,
    GatewayUnavailable,
    InvalidRequest,
    InvalidTarget,
    LedgerConflict,
    RenderLimitReached,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.gateway import FALLBACK_ON, BlockingCall, reason_to_fall_back
from airflow_provider_codegateway.ledger.command import main as ledger_main
from airflow_provider_codegateway.models import build_chain, build_request, chain_fingerprint
from airflow_provider_codegateway.models.chain import LONGEST_MODEL, MAX_FALLBACKS
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.spend.command import main
from airflow_provider_codegateway.spend.journal import Journal

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.purchase import Purchase

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
CHAIN = (VEO, SEEDANCE, HAILUO)
CLIP = mp4_of(4000)


# The requests of a chain.


def test_a_fallback_takes_over_what_it_does_not_override() -> None:
    """Portable values become those of its own model; an override replaces one, and None drops it."""
    veo, seedance, hailuo = build_chain(
        VEO,
        [SEEDANCE, {"model": HAILUO, "aspect_ratio": None, "resolution": "768p", "prompt": "other"}],
        prompt="p",
        aspect_ratio="16:9",
        duration=6,
        resolution="1080p",
    )
    assert veo.body() == {
        "model": VEO,
        "prompt": "p",
        "aspect_ratio": "16:9",
        "duration": "6s",
        "resolution": "1080p",
    }
    assert seedance.body() == {**veo.body(), "model": SEEDANCE, "duration": 6}
    assert hailuo.body() == {"model": HAILUO, "prompt": "other", "duration": 6, "resolution": "768P"}


def test_what_a_fallback_cannot_do_is_refused_with_its_name() -> None:
    """All problems of all models at once, and how to drop a value that is taken over."""
    with pytest.raises(InvalidRequest) as refused:
        build_chain(VEO, [SEEDANCE, HAILUO], prompt="p", aspect_ratio="1:2", duration=5)
    veo, veo_too, seedance, hailuo = refused.value.problems
    assert veo.startswith(f"{VEO} does not support aspect_ratio='1:2'")
    assert veo_too.startswith(f"{VEO} does not support duration=5")
    assert seedance.startswith(f"fallbacks[0]: {SEEDANCE} does not support aspect_ratio='1:2'")
    assert hailuo.startswith(f"fallbacks[1]: {HAILUO} has no parameter 'aspect_ratio'")
    assert hailuo.endswith("an override of None drops a value.")


@pytest.mark.parametrize(
    ("fallbacks", "words"),
    [
        ([{"resolution": "720p"}], "fallbacks[0]: model=None is not the name of a model"),
        ([{"model": SEEDANCE, "s3_key": "x"}], "fallbacks[0]: 's3_key' cannot be overridden"),
        ([42], "fallbacks[0]: a fallback is a model, or a dict"),
        ([VEO], f"fallbacks[0]: {VEO} with the same values is already asked before"),
        ([SEEDANCE, SEEDANCE], "fallbacks[1]:"),
        ([""], "fallbacks[0]: model='' is not the name of a model"),
        (["m" * 65], "is too long for a chain. Use a name of at most 64 characters"),
        ({"model": SEEDANCE}, "fallbacks must be a list of models, not dict"),
        ("[not json", "fallbacks is text, but not a JSON list"),
        ([f"acme/{n}" for n in range(4)], "fallbacks has 4 models. Use at most 3"),
    ],
)
def test_fallbacks_that_cannot_be_meant_are_refused(fallbacks: Any, words: str) -> None:
    """By their place in the list."""
    with pytest.raises(InvalidRequest) as refused:
        build_chain(VEO, fallbacks, prompt="p")
    assert words in str(refused.value)


@pytest.mark.parametrize("nothing", [None, [], (), "", "  ", "[]"])
def test_without_fallbacks_a_request_is_what_it_was(nothing: Any) -> None:
    """Its fingerprint too, so that clips and ledgers of before are found."""
    single = build_request(VEO, prompt="p")
    assert build_chain(VEO, nothing, prompt="p") == (single,)
    assert chain_fingerprint([single]) == single.fingerprint()


def test_fallbacks_may_be_text_of_a_template() -> None:
    """JSON, or the name of one model."""
    wanted = build_chain(VEO, [SEEDANCE], prompt="p")
    assert build_chain(VEO, SEEDANCE, prompt="p") == wanted
    assert build_chain(VEO, json.dumps([{"model": SEEDANCE}]), prompt="p") == wanted


@given(st.lists(st.sampled_from(CHAIN), unique=True, min_size=1), st.sampled_from(["p", "q"]))
def test_the_fingerprint_covers_the_whole_chain_and_its_order(models: list[str], prompt: str) -> None:
    """Another model, another order or another value is another request."""
    chain = build_chain(models[0], models[1:], prompt=prompt)
    others = [build_chain(models[0], models[1:], prompt=f"{prompt}!")]
    others += [build_chain(models[-1], models[:-1], prompt=prompt)] if len(models) > 1 else []
    others += [chain[:-1]] if len(chain) > 1 else []
    assert chain_fingerprint(chain) not in map(chain_fingerprint, others)


def test_what_a_clip_says_of_itself_fits_into_its_metadata() -> None:
    """S3 takes 2 KB: the longest chain, names, prices and list of buyers."""
    fingerprint, model = "f" * 64, "m" * LONGEST_MODEL
    amount = "123456789.123456789"
    price = {"model": model, "resolution": "1080p", "generate_audio": True, "per_second": amount}
    cost = {
        "amount": amount,
        "at_most": amount,
        "currency": "USD",
        "assumed": ["generate_audio"],
        "price": price,
    }
    marks = Marks(
        fingerprint=fingerprint,
        requester="r" * 32,
        model=model,
        created=1795702287.123456,
        render_seconds=120.123,
        renders_bought=100,
        buyers=("r" * 32,) * 30,
        unknown=("r" * 32,) * 30,
        claim="c" * 32,
        cost=cost,
        facts=Facts(width=3840, height=2160, duration=12.0416666, fps=23.9760239, codec="h264", audio=False),
        member=fingerprint,
        fallback=[{"model": model, "reason": "unknown model (404)"}] * MAX_FALLBACKS,
    )
    assert sum(len(name) + len(value) for name, value in marks.as_metadata().items()) <= 2048
    assert Marks.from_metadata(marks.as_metadata()).fallback == tuple(marks.fallback)


# When the next model is asked.


def every_error() -> Iterable[CodeGatewayError]:
    """Each class of ours, with each status that it may have, and each thing that it may have cost."""
    classes: list[Any] = [
        item
        for item in vars(exceptions).values()
        if isinstance(item, type) and issubclass(item, CodeGatewayError)
    ]
    for item in classes:
        has_status = issubclass(item, GatewayUnavailable | RequestRejected)
        for status in range(600) if has_status else (0,):
            for bought in Bought:
                error: CodeGatewayError = item("?", status=status) if has_status else item("?")
                error.bought = bought
                yield error


def told(error: CodeGatewayError) -> tuple[int, Bought]:
    return vars(error).get("status", 0), error.bought


@pytest.mark.parametrize("fallback_on", [(), *((each,) for each in FALLBACK_ON), FALLBACK_ON], ids="+".join)
def test_only_the_rows_of_the_table_reach_the_next_model(fallback_on: tuple[str, ...]) -> None:
    """Unlisted means: no other model."""
    reasons = {
        (RequestRejected if isinstance(error, RequestRejected) else type(error), *told(error)): reason
        for error in every_error()
        if (reason := reason_to_fall_back(error, fallback_on))
    }
    unavailable: dict[Any, str] = {
        (GatewayUnavailable, 429, Bought.NO): "unavailable (429)",
        (GatewayUnavailable, 503, Bought.NO): "unavailable (503)",
        (RequestRejected, 404, Bought.NO): "unknown model (404)",
    }
    rejected = {(RequestRejected, status, Bought.NO): f"rejected ({status})" for status in (400, 413, 422)}
    assert reasons == (unavailable if "unavailable" in fallback_on else {}) | (
        rejected if "rejected" in fallback_on else {}
    )


# Every fault, at every place of the chain, over real sockets.

_STATUSES = (400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504)
UNAVAILABLE = frozenset({404, 429, 503})
REJECTED = frozenset({400, 413, 422})
FAULTS: dict[str, Fault | ClipFault] = {
    **{f"status {code}": Fault.status(code) for code in _STATUSES},
    **{f"status {code}, billed": Fault.status(code, billed=True) for code in (500, 502, 504)},
    "foreign 503": Fault.foreign("envoy", billed=False),
    "foreign 429": Fault.foreign("rate_limiter"),
    "foreign 504": Fault.foreign("nginx"),
    "foreign 524": Fault.foreign("cloudflare"),
    "foreign 403": Fault.foreign("corporate_proxy"),
    "foreign 511": Fault.foreign("captive_portal"),
    "redirect": Fault.redirect(),
    "cut_upload": Fault.cut_upload(after=1),
    "reset_before": Fault.reset_before(),
    "reset_after": Fault.reset_after(),
    "hang": Fault.hang(),
    "slow_body": Fault.slow_body(100_000),
    "slow_head": Fault.slow_head(100_000),
    "truncated_body": Fault.truncated_body(),
    "whole_json": Fault.whole_json(),
    "html": Fault.html(),
    "html 502": Fault.html(502),
    "no_url": Fault.no_url(),
    "no_url error": Fault.no_url("error"),
    "odd_answer": Fault.odd_answer("expires_past"),
    "encoded": Fault.encoded("unknown"),
    "hostile_text": Fault.hostile_text("control", code=401),
    "leading_whitespace": Fault.leading_whitespace(),
    "early_expiry": Fault.early_expiry(0),
    "container": Fault.container("webm"),
    "wrong_clip": Fault.wrong_clip("small"),
    "clip.break_after": ClipFault.break_after(0),
    "clip.no_length": ClipFault.no_length(),
    "clip.slow": ClipFault.slow(1_000_000),
    "clip.hang": ClipFault.hang(),
    "clip.status": ClipFault.status(404),
    "clip.web_filter": ClipFault.web_filter(),
    "clip.wrong_length": ClipFault.wrong_length(),
    "clip.changed": ClipFault.changed(),
    "clip.no_ranges": ClipFault.no_ranges(),
    "clip.html": ClipFault.html(),
    "clip.json": ClipFault.json(),
    "clip.encoded": ClipFault.encoded("unknown"),
    "clip.redirect": ClipFault.redirect(),
    "clip.utf8_redirect": ClipFault.utf8_redirect(),
}


def test_the_table_has_every_fault_of_the_emulator() -> None:
    """So that a new one is tried as well."""
    named = {name.split(",")[0].split(" ")[0] for name in FAULTS}
    assert named == set(catalogue())


def no_connection(conn_id: str) -> S3Client:
    raise AssertionError(conn_id)


@pytest.fixture
def job(job: Job) -> Job:
    """A purchase with a chain of three; the gateway is asked once in each call."""
    limits = replace(crash_runner.HASTY, first_backoff=0, max_backoff=0)
    return replace(job, fallbacks=(SEEDANCE, HAILUO), retries=0, limits=limits)


def attempt(job: Job, s3: S3Client) -> Clip | CodeGatewayError:
    """One attempt of a task."""
    try:
        return crash_runner.render_blocking(job, s3)
    except CodeGatewayError as error:
        return error


def asked(gateway: Emulator) -> list[str | None]:
    """The models of all POSTs, in their order."""
    return [render.model for render in gateway.ledger]


def leftovers(s3: S3Client, bucket: str) -> list[str]:
    return [
        item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix="_codegateway/").get("Contents", [])
    ]


CASES = [
    *((fault, place, FALLBACK_ON) for fault in FAULTS for place in range(3)),
    *((fault, place, ("unavailable",)) for fault in FAULTS if "status" in fault for place in range(3)),
]


@pytest.mark.parametrize(
    ("fault", "place", "fallback_on"),
    [
        case for case in CASES if case[0] != "cut_upload" or not case[1]
    ],  # it strikes before the model is known
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_every_fault_at_every_place_of_the_chain(
    fault: str,
    place: int,
    fallback_on: tuple[str, ...],
    job: Job,
    gateway: Emulator,
    s3: S3Client,
    bucket: str,
) -> None:
    """Only a model that provably sold nothing is passed over; all else stays with its model, also in the retry."""
    code = {f"status {code}": code for code in _STATUSES}.get(fault, 413 if fault == "cut_upload" else 0)
    falls_back = code in UNAVAILABLE or (code in REJECTED and "rejected" in fallback_on)
    for model in CHAIN[:place]:
        gateway.fail_next(Fault.status(503), model=model)
    gateway.fail_next(FAULTS[fault], model=None if fault == "cut_upload" else CHAIN[place])
    impatient = replace(job.limits, read_timeout=1.0)
    deadline = 1.0 if "hang" in fault else 20.0
    job = replace(job, fallback_on=fallback_on, deadline=deadline, limits=impatient)

    first = attempt(job, s3)
    reached = list(CHAIN[: place + 1 + falls_back])
    assert [model or VEO for model in asked(gateway)] == reached
    assert gateway.billed <= 1
    if isinstance(first, Clip):
        passed = [each["model"] for each in first.fallback or ()]
        assert (first.model, passed) == (reached[-1], reached[:-1])
        assert (gateway.billed, leftovers(s3, bucket)) == (1, [])
        return
    assert not falls_back or place == 2
    if first.bought is Bought.NO:
        assert (gateway.billed, leftovers(s3, bucket)) == (0, [])
        # The task is tried again, and begins with the first model.
        assert isinstance(clip := attempt(job, s3), Clip)
        assert (clip.model, clip.fallback, gateway.billed) == (VEO, [], 1)
        return

    # It was, or may have been, bought: the same model is asked again, or its clip fetched.
    gateway.clear_faults()
    second = attempt(job, s3)
    assert set(asked(gateway)[len(reached) :]) <= {CHAIN[place]}
    assert gateway.billed <= (2 if isinstance(first, RenderOutcomeUnknown | ClipExpired) else 1)
    if isinstance(second, ClipTransferError):  # the bytes of the clip are at fault
        return
    assert isinstance(second, Clip), second
    assert second.model == CHAIN[place]
    assert [each["model"] for each in second.fallback or ()] == list(CHAIN[:place])
    assert leftovers(s3, bucket) == []


def test_after_a_render_of_unknown_outcome_a_busy_model_is_not_passed_over(
    job: Job, gateway: Emulator, s3: S3Client
) -> None:
    """It may have been bought: the clip stays with that model, whoever is asked how often."""
    gateway.fail_next(Fault.reset_after(), model=VEO)
    assert isinstance(attempt(job, s3), RenderOutcomeUnknown)
    gateway.fail_next(Fault.status(503), model=VEO, times=2)
    for _ in range(2):
        assert isinstance(error := attempt(job, s3), GatewayUnavailable)
        assert SEEDANCE not in str(error)
    assert isinstance(clip := attempt(job, s3), Clip)
    assert (clip.model, clip.renders_bought, clip.fallback) == (VEO, 2, [])
    assert set(asked(gateway)) == {VEO}


def test_max_renders_counts_the_renders_of_all_models_together(
    job: Job, gateway: Emulator, s3: S3Client
) -> None:
    """One that was passed over is none of them."""
    gateway.fail_next(Fault.status(503), model=VEO, times=None)
    gateway.fail_next(Fault.reset_after(), model=SEEDANCE, times=None)
    for _ in range(2):
        assert isinstance(attempt(job, s3), RenderOutcomeUnknown)
    assert isinstance(error := attempt(job, s3), RenderLimitReached)
    assert f"Render 2 ({SEEDANCE}), started" in str(error)
    assert asked(gateway) == [VEO, SEEDANCE, SEEDANCE]
    assert gateway.billed == 2


PRICED = {
    "currency": "USD",
    "prices": [{"model": VEO, "per_render": "1"}, {"model": SEEDANCE, "per_render": "7"}],
}


def priced(job: Job, s3: S3Client, **spend: Any) -> Purchase:
    """A purchase of the chain, with a price for each model."""
    job = replace(job, spend={**PRICED, **spend})
    spec = job.spec()
    members = tuple(replace(each, priced_by={}) for each in spec.fallbacks)
    return job.purchase_of(replace(spec, priced_by={}, fallbacks=members), s3)


def test_a_failure_is_priced_by_the_model_that_rendered(job: Job, gateway: Emulator, s3: S3Client) -> None:
    """And counts every render of the clip, in whichever process."""
    gateway.fail_next(Fault.status(503), model=VEO, times=None)
    gateway.fail_next(Fault.reset_after(), model=SEEDANCE, times=None)
    told = []
    for error_class in (RenderOutcomeUnknown, RenderOutcomeUnknown, RenderLimitReached):
        with pytest.raises(error_class) as error:
            BlockingCall().run(priced(job, s3).complete(*job.requests()))
        told.append((error.value.money, (error.value.cost or {})["at_most"]))
    assert told == [
        ("One render may have been bought.", "7"),
        ("2 renders may have been bought.", "14"),
        ("2 renders may have been bought.", "14"),
    ]


def test_a_run_that_is_stopped_while_it_passes_a_model_over_leaves_no_reservation(
    job: Job, gateway: Emulator, s3: S3Client, s3_endpoint: str, bucket: str
) -> None:
    """The model provably sold nothing: neither ledger nor journal counts it."""
    gateway.fail_next(Fault.status(503), model=VEO, times=None)
    releasing, go = threading.Event(), threading.Event()

    def rule(request: S3Request) -> Verdict:
        is_claimed = any(each.key.endswith("1.started") for each in proxy.requests)
        if request.operation == "DeleteObjects" and is_claimed:
            releasing.set()
            go.wait()
        return Verdict.PASS

    async def stop() -> None:
        task = asyncio.ensure_future(purchase.complete(*job.requests()))
        await asyncio.to_thread(releasing.wait)
        task.cancel()
        go.set()
        await task

    with S3Proxy(s3_endpoint) as proxy:
        proxied = replace(job, s3_endpoint=proxy.url).s3()
        purchase = priced(job, proxied, journal=f"s3://{bucket}/ops/journal")
        with proxy.ruled(rule), pytest.raises(asyncio.CancelledError):
            asyncio.run(stop())
    state, _ = Journal(s3, S3Location(bucket, "ops/journal")).state()
    assert state.open == {}
    assert gateway.billed == 0


def test_a_run_that_is_stopped_twice_tells_the_journal_that_its_render_may_have_been_bought(
    job: Job, gateway: Emulator, s3: S3Client, s3_endpoint: str, bucket: str
) -> None:
    """A triggerer that ends cancels again while the first end is written down."""
    gateway.fail_next(Fault.hang(), model=VEO)
    abandoning, go = threading.Event(), threading.Event()

    def rule(request: S3Request) -> Verdict:
        if request.method == "PUT" and request.key.endswith("1.abandoned"):
            abandoning.set()
            go.wait()
        return Verdict.PASS

    async def stop() -> None:
        task = asyncio.ensure_future(purchase.complete(*job.requests()))
        await asyncio.to_thread(gateway.wait_for, accepted=1)
        task.cancel()
        await asyncio.to_thread(abandoning.wait)
        task.cancel()
        go.set()
        await task

    with S3Proxy(s3_endpoint) as proxy:
        proxied = replace(job, s3_endpoint=proxy.url).s3()
        purchase = priced(job, proxied, journal=f"s3://{bucket}/ops/journal")
        with proxy.ruled(rule), pytest.raises(asyncio.CancelledError):
            asyncio.run(stop())
    state, _ = Journal(s3, S3Location(bucket, "ops/journal")).state()
    assert [row.kind for row in state.open.values()] == ["unknown"]


def test_a_gateway_that_cannot_be_reached_is_the_same_for_every_model(
    job: Job, gateway: Emulator, s3: S3Client, caplog: pytest.LogCaptureFixture
) -> None:
    """No fallback is tried."""
    with gateway.down():
        assert isinstance(attempt(job, s3), GatewayUnavailable)
    assert "Falling back" not in caplog.text


def test_the_ledgers_command_shows_the_chain_and_whose_render_it_is(
    job: Job,
    gateway: Emulator,
    s3_endpoint: str,
    s3_credentials: dict[str, str],
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The model that the entry stays with, why, and what each model would be sent."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_credentials["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_credentials["aws_secret_access_key"])
    gateway.fail_next(Fault.status(503), model=VEO)
    assert crash_runner.run(replace(job, kill_at="after the fallback's receipt")).killed
    entry, endpoint = f"s3://{bucket}/_codegateway/{KEY}", ["--endpoint-url", s3_endpoint]
    assert ledger_main([*endpoint, "list", f"s3://{bucket}"], no_connection) == 0
    assert f"1 begun  {SEEDANCE}" in capsys.readouterr().out
    assert ledger_main([*endpoint, "show", entry], no_connection) == 0
    shown = capsys.readouterr().out
    assert f"model: {VEO}\nprompt: p\nfallback 1:\n  model: {SEEDANCE}\n  prompt: p\nfallback 2:" in shown
    assert f"Render 1 ({SEEDANCE}), started" in shown
    assert ledger_main([*endpoint, "show", entry, "--json"], no_connection) == 0
    (render,) = json.loads(capsys.readouterr().out)["renders"]
    assert render["model"] == SEEDANCE
    assert render["passed_over"] == [{"model": VEO, "reason": "unavailable (503)"}]


def test_without_fallbacks_ledger_and_trigger_have_the_form_that_they_had(
    job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Older versions read them, and entries of older versions are read."""
    single = replace(job, fallbacks=())
    assert not {"fallbacks", "fallback_on"} & single.spec().as_arguments().keys()
    gateway.fail_next(Fault.reset_after())
    assert isinstance(attempt(single, s3), RenderOutcomeUnknown)
    markers = {
        key.rpartition("/")[2]: json.load(s3.get_object(Bucket=bucket, Key=key)["Body"]).keys()
        for key in leftovers(s3, bucket)
    }
    assert markers == {
        "request.json": {"fingerprint", "model", "body"},
        "1.started": {"fingerprint", "run", "owner", "claim_seconds"},
        "1.abandoned": {"fingerprint", "outcome"},
    }


def test_what_the_trigger_is_stored_with_is_read_back(job: Job) -> None:
    """The chain too, through Airflow's database."""
    spec = job.spec()
    assert type(spec).from_arguments(json.loads(json.dumps(spec.as_arguments()))) == spec


# What is raised if no model could be used.


def test_a_chain_that_is_busy_is_tried_again(job: Job, gateway: Emulator, s3: S3Client) -> None:
    """With the shortest wait that was asked for, and the reason of each model in the message."""
    gateway.fail_next(Fault.status(503, retry_after=300), model=VEO)
    gateway.fail_next(Fault.status(429, retry_after=90), model=SEEDANCE)
    gateway.fail_next(Fault.status(503), model=HAILUO)
    assert isinstance(error := attempt(job, s3), GatewayUnavailable)
    assert error.retry_after == 90
    assert str(error).startswith(
        f"No model could be used. {VEO}: unavailable (503); {SEEDANCE}: unavailable (429); {HAILUO}: The gateway"
    )
    assert str(error).endswith("Nothing was bought.")


def test_a_busy_model_is_tried_again_although_its_fallback_refuses_the_request(
    job: Job, gateway: Emulator, s3: S3Client
) -> None:
    """Without fallbacks the task would have been retried: with them it must not do worse."""
    gateway.fail_next(Fault.status(503), model=VEO)
    gateway.fail_next(Fault.status(400), model=SEEDANCE)
    error = attempt(job, s3)
    assert isinstance(error, GatewayUnavailable)
    assert not isinstance(error, AirflowFailException)
    assert f"{SEEDANCE}: The gateway answered 400" in str(error)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_fails_the_task_whatever_was_passed_over(
    code: int, job: Job, gateway: Emulator, s3: S3Client
) -> None:
    """Key and balance are the same for every model: no retry helps."""
    gateway.fail_next(Fault.status(503), model=VEO)
    gateway.fail_next(Fault.status(code), model=SEEDANCE)
    assert isinstance(error := attempt(job, s3), RequestRejected)
    assert error.status == code
    assert asked(gateway) == [VEO, SEEDANCE]


def test_a_request_that_every_model_refuses_fails_the_task(job: Job, gateway: Emulator, s3: S3Client) -> None:
    """The same request will be refused again."""
    for model in CHAIN:
        gateway.fail_next(Fault.status(400), model=model)
    assert isinstance(error := attempt(replace(job, fallback_on=FALLBACK_ON), s3), RequestRejected)
    assert f"{VEO}: rejected (400); {SEEDANCE}: rejected (400); {HAILUO}: The gateway" in str(error)


# Killed between the models, and races.


@pytest.mark.parametrize("is_up_again", [False, True], ids=["down", "up again"])
@pytest.mark.parametrize("point", FALLBACK_POINTS)
def test_a_run_that_is_killed_between_the_models_is_resumed_and_nothing_is_paid_twice(
    point: str, is_up_again: bool, job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Whether the first model is up again or not: what may have been bought of the fallback stays with it."""
    gateway.fail_next(Fault.status(503), model=VEO, times=None)
    assert crash_runner.run(replace(job, kill_at=point)).killed
    gateway.wait_for(rendering=0)
    billed_before = gateway.billed
    if is_up_again:
        gateway.clear_faults()
    resumed = crash_runner.resume(job)
    # Of a model that was killed before it gave its claim back, nobody can know that it sold nothing.
    if point == "before passing on" and not is_up_again:
        assert (resumed.error, set(asked(gateway)), gateway.billed) == ("GatewayUnavailable", {VEO}, 0)
        gateway.clear_faults()
        resumed = crash_runner.resume(job)
    assert resumed.clip, resumed.message
    assert leftovers(s3, bucket) == []
    may_have_been_bought = point not in {
        "before passing on",
        "after passing on",
        "before the fallback's claim",
    }
    stays_with_first = point == "before passing on" or (is_up_again and not may_have_been_bought)
    assert resumed.clip.model == (VEO if stays_with_first else SEEDANCE)
    passed = [] if stays_with_first else [{"model": VEO, "reason": "unavailable (503)"}]
    assert resumed.clip.fallback == passed
    assert gateway.billed == (2 if point == "before the fallback's receipt" else 1)
    assert billed_before <= 1


def test_two_runs_that_race_with_the_first_model_down_buy_one_clip(
    job: Job, gateway: Emulator, s3: S3Client, bucket: str
) -> None:
    """Whoever of them gets which claim; both return the fallback's clip."""
    gateway.fail_next(Fault.status(503), model=VEO, times=None)
    patient = replace(job.limits, settle_grace=15, claim_margin=60)
    with crash_runner.workers(2) as one_round:
        for number in range(crash_rounds()):
            one = replace(job, key=f"clips/{number}.mp4", claim_seconds=60, limits=patient)
            ended = one_round([replace(one, requester=f"run-{n}") for n in range(2)])
            assert [each.error for each in ended] == ["", ""], [each.message for each in ended]
            assert [each.clip and each.clip.model for each in ended] == [SEEDANCE, SEEDANCE]
            assert gateway.billed == number + 1
    assert leftovers(s3, bucket) == []
    assert {render.model for render in gateway.ledger if render.billed_at} == {SEEDANCE}


def crash_rounds() -> int:
    return 8


# The operator, in both modes.

PRICES = [
    {"model": VEO, "per_second": "0.15"},
    {"model": SEEDANCE, "per_second": "0.04"},
    {"model": HAILUO, "per_render": "0.30"},
]


@pytest.fixture(params=[False, True], ids=["blocking", "deferrable"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def connected(
    gateway: Emulator, bucket: str, connections: None, no_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections whose calls ask the gateway once, with prices and a journal."""
    gateway.serve_clip(CLIP)
    spend = {"currency": "USD", "journal": f"s3://{bucket}/ops/journal", "prices": PRICES}
    connection = {"conn_type": "codegateway", "host": gateway.url, "password": gateway.api_key}
    extra = {"retries": 0, "spend": spend}
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps({**connection, "extra": extra}))


def operator(bucket: str, key: str = KEY, **arguments: Any) -> GenerateVideoOperator:
    arguments = {"model": VEO, "prompt": "p", "fallbacks": [SEEDANCE], **arguments}
    return GenerateVideoOperator(task_id="clip", s3_bucket=bucket, s3_key=key, **arguments)


def execute(task: GenerateVideoOperator, *, run_id: str = "r") -> dict[str, Any]:
    """The operator without a scheduler around it; what it pushed."""
    pushed: dict[str, Any] = {}
    context = context_of(pushed, run_id)
    try:
        task.execute(context)
    except TaskDeferred as deferred:
        event = asyncio.run(first_event(deferred.trigger))
        getattr(task, deferred.method_name)(context, event)
    except AirflowSkipException as skipped:
        pushed["skipped"] = str(skipped)
    return json.loads(json.dumps(pushed))  # type: ignore[no-any-return]


def context_of(pushed: dict[str, Any], run_id: str = "r") -> Any:
    def push(key: str, value: Any) -> None:
        pushed[key] = value

    instance = SimpleNamespace(dag_id="d", task_id="clip", run_id=run_id, map_index=-1, xcom_push=push)
    return {"ti": instance}


async def first_event(trigger: Any) -> Any:
    """What a triggerer would bring back: through the database, by another process."""
    path, arguments = json.loads(json.dumps(trigger.serialize()))
    events = [event.payload async for event in pkgutil.resolve_name(path)(**arguments).run()]
    return json.loads(json.dumps(events[0]))


def renders(s3: S3Client, bucket: str) -> list[tuple[str | None, str]]:
    """The rows of the journal: model and kind."""
    journal = Journal(s3, S3Location(bucket, "ops/journal"))
    return [(row.model, row.kind) for key in journal.objects() for row in journal.rows(key)]


@pytest.mark.usefixtures("connected")
class TestOperator:
    def test_the_clip_says_who_rendered_it_and_who_was_passed_over(
        self, deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In XCom, and in the object's metadata, from where a run that reuses it reads it."""
        gateway.fail_next(Fault.status(503), model=VEO)
        with caplog.at_level(logging.INFO):
            clip = execute(operator(bucket, duration=4, deferrable=deferrable))["clip"]
        assert clip["model"] == SEEDANCE
        assert clip["fallback"] == [{"model": VEO, "reason": "unavailable (503)"}]
        assert (clip["cost"]["amount"], clip["renders_bought"]) == ("0.16", 1)
        assert f"Falling back from {VEO} to {SEEDANCE} for s3://{bucket}/{KEY}: The gateway" in caplog.text
        reused = execute(operator(bucket, duration=4), run_id="another")["clip"]
        assert reused["reused"]
        for name in ("model", "fallback", "cost", "fingerprint"):
            assert reused[name] == clip[name]
        assert renders(s3, bucket) == [
            (VEO, "reserved"),
            (VEO, "released"),
            (SEEDANCE, "reserved"),
            (SEEDANCE, "bought"),
        ]

    def test_the_first_model_renders_if_it_can(
        self, deferrable: bool, gateway: Emulator, bucket: str
    ) -> None:
        """Nobody was passed over; without fallbacks there is nothing to say."""
        clip = execute(operator(bucket, deferrable=deferrable))["clip"]
        assert (clip["model"], clip["fallback"]) == (VEO, [])
        clip = execute(operator(bucket, "single.mp4", fallbacks=None, deferrable=deferrable))["clip"]
        assert (clip["model"], clip["fallback"]) == (VEO, None)
        assert asked(gateway) == [VEO, VEO]

    def test_what_may_have_been_bought_stays_with_its_model(
        self, deferrable: bool, gateway: Emulator, bucket: str
    ) -> None:
        """The retry asks the fallback again, although the first model is up; its error crosses the triggerer."""
        gateway.fail_next(Fault.status(503), model=VEO)
        gateway.fail_next(Fault.reset_after(), model=SEEDANCE)
        with pytest.raises(RenderOutcomeUnknown):
            execute(operator(bucket, deferrable=deferrable))
        clip = execute(operator(bucket, deferrable=deferrable))["clip"]
        assert (clip["model"], clip["renders_bought"]) == (SEEDANCE, 2)
        assert clip["fallback"] == [{"model": VEO, "reason": "unavailable (503)"}]
        assert asked(gateway) == [VEO, SEEDANCE, SEEDANCE]

    def test_a_model_is_asked_as_often_as_the_connection_says_before_the_next(
        self, gateway: Emulator, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A short burst of 503 changes no model."""
        connection = {"conn_type": "codegateway", "host": gateway.url, "password": gateway.api_key}
        extra = {"retries": 1}
        monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps({**connection, "extra": extra}))
        gateway.fail_next(Fault.status(503, retry_after=0), model=VEO)
        assert execute(operator(bucket, "a.mp4"))["clip"]["model"] == VEO
        gateway.fail_next(Fault.status(503, retry_after=0), model=VEO, times=2)
        assert execute(operator(bucket, "b.mp4"))["clip"]["model"] == SEEDANCE
        assert asked(gateway) == [VEO, VEO, VEO, VEO, SEEDANCE]

    @pytest.mark.parametrize(
        "arguments",
        [
            {"fallbacks": [HAILUO], "aspect_ratio": "16:9"},
            {"fallbacks": [{"model": SEEDANCE, "duration": 20}]},
            {"fallbacks": [{"model": SEEDANCE, "image": "s3://no-such-bucket-here/x.png"}]},
            {"fallback_on": "whenever"},
            {"fallback_on": ()},
            {"max_cost": "0.50", "duration": 8, "model": SEEDANCE, "fallbacks": [VEO]},
        ],
        ids=["parameter", "value", "image", "unknown reason", "no reason", "price"],
    )
    def test_what_a_fallback_cannot_do_is_refused_before_anything_is_bought(
        self, arguments: dict[str, Any], deferrable: bool, gateway: Emulator, s3: S3Client, bucket: str
    ) -> None:
        """Nobody is asked, and nothing is left behind."""
        with pytest.raises(CodeGatewayError) as refused:
            execute(operator(bucket, deferrable=deferrable, **arguments))
        assert refused.value.bought is Bought.NO
        assert (asked(gateway), leftovers(s3, bucket)) == ([], [])

    def test_a_dry_run_says_the_cheapest_and_the_dearest_of_the_chain(
        self, gateway: Emulator, bucket: str
    ) -> None:
        """One that has no price makes both unknown."""
        task = operator(bucket, duration=6, fallbacks=[SEEDANCE, HAILUO], dry_run=True)
        pushed = execute(task)
        estimate = pushed["estimate"]
        assert (estimate["model"], estimate["cost"]["amount"]) == (VEO, "0.90")
        assert (estimate["cheapest"]["model"], estimate["cheapest"]["cost"]["amount"]) == (SEEDANCE, "0.24")
        assert (estimate["dearest"]["model"], estimate["dearest"]["cost"]["amount"]) == (VEO, "0.90")
        assert pushed["skipped"].endswith("would cost 0.24 to 0.90 USD. Nothing was bought.")
        unpriced = execute(operator(bucket, duration=6, fallbacks=["acme/new"], dry_run=True))["estimate"]
        assert (unpriced["cheapest"], unpriced["dearest"]) == (None, None)
        assert not gateway.ledger

    def test_a_fallback_beyond_the_budget_leaves_the_first_model_to_a_retry(
        self, gateway: Emulator, s3: S3Client, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be up by then, and there is room for it."""
        connection = json.loads(os.environ["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
        connection["extra"]["spend"]["budgets"] = [{"per": "day", "amount": "0.50"}]
        monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(connection))
        gateway.fail_next(Fault.status(503), model=SEEDANCE)
        task = operator(bucket, model=SEEDANCE, fallbacks=[VEO], duration=4)
        with pytest.raises(GatewayUnavailable, match=r"0\.50 USD per day"):
            execute(task)
        assert leftovers(s3, bucket) == []
        assert execute(task)["clip"]["model"] == SEEDANCE

    def test_an_image_is_read_once_for_all_models_that_take_its_bytes(
        self, gateway: Emulator, s3: S3Client, bucket: str
    ) -> None:
        """And its bytes are in no argument of the trigger."""
        s3.put_object(Bucket=bucket, Key="in.png", Body=png())
        task = operator(bucket, image=f"s3://{bucket}/in.png", fallbacks=[SEEDANCE, HAILUO], deferrable=True)
        gateway.fail_next(Fault.status(503), model=VEO)
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context_of({}))
        arguments = json.dumps(deferred.value.trigger.serialize())
        assert base64.b64encode(png()).decode()[:40] not in arguments
        assert "prompt" not in arguments
        event = asyncio.run(first_event(deferred.value.trigger))
        assert event["clip"]["model"] == SEEDANCE
        assert "image" in gateway.ledger[-1].request

    def test_two_tasks_with_one_key_never_pay_twice(
        self, deferrable: bool, gateway: Emulator, bucket: str
    ) -> None:
        """What the first may have bought, the second is told; what it has stored is not replaced."""
        gateway.fail_next(Fault.reset_after(), model=VEO)
        with pytest.raises(RenderOutcomeUnknown):
            execute(operator(bucket, fallbacks=None))
        second = operator(bucket, model=SEEDANCE, fallbacks=None, deferrable=deferrable)
        with pytest.raises(LedgerConflict, match=VEO):
            execute(second)
        execute(operator(bucket, fallbacks=None))
        with pytest.raises(InvalidTarget, match="the clip of another request"):
            execute(second)
        gateway.fail_next(Fault.status(503), model=VEO)
        with pytest.raises(GatewayUnavailable):
            execute(operator(bucket, "other.mp4", fallbacks=None))
        second.s3_key = "other.mp4"
        assert execute(second)["clip"]["model"] == SEEDANCE
        assert set(asked(gateway)) == {VEO, SEEDANCE}

    def test_a_stored_clip_stays_what_it_was_when_fallbacks_come_and_go(
        self, deferrable: bool, gateway: Emulator, bucket: str
    ) -> None:
        """It is the clip of the model that rendered it, alone or in any chain, and of no other model."""

        def run(*models: str, key: str = KEY) -> dict[str, Any]:
            task = operator(bucket, key, model=models[0], fallbacks=[*models[1:]], deferrable=deferrable)
            clip: dict[str, Any] = execute(task)["clip"]
            return clip

        alone = run(VEO)
        chained = run(VEO, SEEDANCE)
        assert (chained["reused"], chained["fingerprint"]) == (True, alone["fingerprint"])
        gateway.fail_next(Fault.status(503), model=VEO)
        chained = run(VEO, SEEDANCE, key="b.mp4")
        for models in [(VEO, HAILUO, SEEDANCE), (SEEDANCE, VEO), (SEEDANCE,)]:
            clip = run(*models, key="b.mp4")
            assert (clip["reused"], clip["model"]) == (True, SEEDANCE)
            assert clip["fingerprint"] == chained["fingerprint"]
        with pytest.raises(InvalidTarget, match="the clip of another request"):
            run(VEO, HAILUO, key="b.mp4")
        assert gateway.billed == 2

    def test_two_tasks_that_defer_for_one_clip_buy_it_once(
        self, gateway: Emulator, s3: S3Client, bucket: str
    ) -> None:
        """In one triggerer, with the first model down: one buys, the other waits, finds the clip, and buys nothing."""
        gateway.fail_next(Fault.status(503), model=VEO, times=None)
        tasks = [operator(bucket, deferrable=True) for _ in range(2)]
        deferrals = []
        for number, task in enumerate(tasks):
            with pytest.raises(TaskDeferred) as deferred:
                task.execute(context_of({}, f"r{number}"))
            deferrals.append(deferred.value)

        async def triggerer() -> list[Any]:
            return await asyncio.gather(*(first_event(each.trigger) for each in deferrals))

        events = asyncio.run(triggerer())
        for number, (task, event) in enumerate(zip(tasks, events, strict=True)):
            pushed: dict[str, Any] = {}
            task.execute_complete(context_of(pushed, f"r{number}"), event)
            assert pushed["clip"]["model"] == SEEDANCE
        assert sorted(event["status"] for event in events) in (["gone", "stored"], ["stored", "stored"])
        assert (gateway.billed, leftovers(s3, bucket)) == (1, [])

    def test_media_in_a_fallback_is_hidden(self, bucket: str) -> None:
        """In what Airflow stores and shows of the task."""
        image = base64.b64encode(png() * 20).decode()
        task = operator(bucket, fallbacks=[{"model": SEEDANCE, "image": image}])
        assert image[:40] not in str(task.fallbacks)

    @pytest.mark.usefixtures("airflow_database")
    def test_fallbacks_are_templates_and_a_decorated_function_may_return_them(
        self, deferrable: bool, gateway: Emulator, bucket: str
    ) -> None:
        """In a DAG run of Airflow's own."""
        gateway.fail_next(Fault.status(503), model=VEO, times=None)
        with DAG("chain", schedule=None, params={"next": SEEDANCE, "when": "unavailable"}) as dag:
            GenerateVideoOperator(
                task_id="listed",
                model=VEO,
                prompt="p",
                fallbacks=["{{ params.next }}"],
                fallback_on=["{{ params.when }}"],
                s3_key=f"s3://{bucket}/listed.mp4",
                deferrable=deferrable,
            )
            GenerateVideoOperator(
                task_id="text",
                model=VEO,
                prompt="p",
                fallbacks="{{ [params.next] | tojson }}",
                fallback_on="{{ params.when }}",
                s3_key=f"s3://{bucket}/text.mp4",
                deferrable=deferrable,
            )

            @generate_video_task(model=VEO, s3_key=f"s3://{bucket}/returned.mp4", deferrable=deferrable)
            def returned() -> dict[str, Any]:
                return {"prompt": "p", "fallbacks": [{"model": SEEDANCE, "duration": 4}]}

            returned()
        result = run_dag(dag)
        assert result.state == "success"
        for task_id in ("listed", "text", "returned"):
            assert result[task_id].xcoms["clip"]["model"] == SEEDANCE
        durations = [render.request.get("duration") for render in gateway.ledger if render.model == SEEDANCE]
        assert Counter(durations) == {None: 2, 4: 1}


@pytest.mark.usefixtures("connected")
def test_thirty_clips_with_the_first_model_down_are_stored_by_its_fallback(
    gateway: Emulator,
    s3: S3Client,
    s3_endpoint: str,
    s3_credentials: dict[str, str],
    bucket: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All in one triggerer; the report by model says who rendered what."""
    gateway.fail_next(Fault.status(503, retry_after=3600), model=VEO, times=None)
    tasks = [
        operator(bucket, f"spring/{number}.mp4", prompt=f"clip {number}", duration=4, deferrable=True)
        for number in range(30)
    ]
    deferrals = []
    for task in tasks:
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context_of({}))
        deferrals.append(deferred.value)

    async def triggerer() -> list[Any]:
        return await asyncio.gather(*(first_event(each.trigger) for each in deferrals))

    events = asyncio.run(triggerer())
    pushed: list[dict[str, Any]] = [{} for _ in tasks]
    for task, event, values in zip(tasks, events, pushed, strict=True):
        task.execute_complete(context_of(values), event)
    assert [values["clip"]["model"] for values in pushed] == [SEEDANCE] * 30
    stored = s3.list_objects_v2(Bucket=bucket, Prefix="spring/")["KeyCount"]
    billed = Counter(render.model for render in gateway.ledger if render.billed_at)
    assert (stored, billed, leftovers(s3, bucket)) == (30, {SEEDANCE: 30}, [])
    assert caplog.text.count(f"Falling back from {VEO} to {SEEDANCE}") == 30

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_credentials["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_credentials["aws_secret_access_key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    place = ["--journal", f"s3://{bucket}/ops/journal", "--endpoint-url", s3_endpoint]
    capsys.readouterr()
    assert main([*place, "report", "--by", "model", "--format", "json"], lambda conn_id: None) == 0  # type: ignore[arg-type, return-value]
    lines = {line["model"]: line for line in json.loads(capsys.readouterr().out)}
    assert (lines[SEEDANCE]["bought"], lines[SEEDANCE]["cost"]) == (30, "4.80")
    assert (lines[VEO]["bought"], lines[VEO]["released"]) == (0, 30)


# The page's examples.


@pytest.mark.usefixtures("airflow_database", "connected")
def test_the_chain_of_the_page_runs(gateway: Emulator, bucket: str) -> None:
    """Down to its last model, which has another resolution and no aspect ratio."""
    for model in (VEO, SEEDANCE):
        gateway.fail_next(Fault.status(503), model=model)
    with DAG("page_chain", schedule=None, params={"bucket": bucket}) as dag:
        GenerateVideoOperator(
            task_id="render",
            model="google/veo-3.1-fast",
            fallbacks=[
                "bytedance/seedance-2.0",
                {"model": "minimax/hailuo-2.3-fast", "resolution": "768p", "aspect_ratio": None},
            ],
            prompt="A paper boat sails down a gutter after the rain.",
            aspect_ratio="16:9",
            duration=6,
            resolution="720p",
            s3_key="s3://{{ params.bucket }}/clips/paper-boat.mp4",
        )
    clip = run_dag(dag)["render"].xcoms["clip"]
    assert clip["model"] == HAILUO
    assert [each["model"] for each in clip["fallback"]] == [VEO, SEEDANCE]


@pytest.mark.usefixtures("airflow_database", "connected")
@pytest.mark.parametrize("fault", [Fault.status(503), Fault.reset_after()], ids=["down", "unknown"])
def test_the_two_tasks_of_the_page_pay_once(fault: Fault, gateway: Emulator, bucket: str) -> None:
    """The second renders if the first sold nothing. If the first may have, the second is refused."""
    gateway.fail_next(fault, model=VEO)
    with DAG(f"page_tasks_{fault.kind}", schedule=None, params={"bucket": bucket}) as dag:
        veo = GenerateVideoOperator(
            task_id="veo",
            model="google/veo-3.1-fast",
            prompt="A paper boat sails down a gutter after the rain.",
            s3_key="s3://{{ params.bucket }}/clips/paper-boat.mp4",
        )
        seedance = GenerateVideoOperator(
            task_id="seedance",
            model="bytedance/seedance-2.0",
            prompt="A paper boat in a gutter, seen from a cat's height.",
            s3_key="s3://{{ params.bucket }}/clips/paper-boat.mp4",
            trigger_rule="all_failed",
        )
        veo >> seedance
    result = run_dag(dag)
    assert result["veo"].state == "failed"
    assert result["seedance"].state == ("success" if fault.refuses else "failed")
    assert gateway.billed == 1
    assert asked(gateway) == ([VEO, SEEDANCE] if fault.refuses else [VEO])

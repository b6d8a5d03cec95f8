"""A chain of models: only what provably sold nothing reaches the next one, and nothing is paid twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import crash_runner
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from clip_server import make_clip
from crash_runner import FALLBACK_POINTS, Job
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_codegateway import exceptions
from airflow_provider_codegateway.clip import Clip
from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.emulator.faults import catalogue
from airflow_provider_codegateway.exceptions import (
    Bought,
    ClipExpired,
    ClipTransferError,
    CodeGatewayError,
    GatewayUnavailable,
    InvalidRequest,
    RenderLimitReached,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.gateway import FALLBACK_ON, reason_to_fall_back
from airflow_provider_codegateway.models import build_chain, build_request, chain_fingerprint

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
CHAIN = (VEO, SEEDANCE, HAILUO)
CLIP = make_clip(2000)


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
    assert f'{{"model": "{HAILUO}", "…": None}} drops a value' in hailuo


@pytest.mark.parametrize(
    ("fallbacks", "words"),
    [
        ([{"resolution": "720p"}], "fallbacks[0]: model=None is not the name of a model"),
        ([{"model": SEEDANCE, "s3_key": "x"}], "fallbacks[0]: 's3_key' cannot be overridden"),
        ([42], "fallbacks[0]: a fallback is a model, or a dict"),
        ([VEO], f"fallbacks[0]: {VEO} with the same values is already asked before"),
        ([SEEDANCE, SEEDANCE], "fallbacks[1]:"),
        ([""], "fallbacks[0]: model='' is not the name of a model"),
        (["m" * 81], "fallbacks[0]: the name of the model is longer than 80 characters"),
        ({"model": SEEDANCE}, "fallbacks must be a list of models, not dict"),
        ("[not json", "fallbacks is text, but not a JSON list"),
        ([f"acme/{n}" for n in range(5)], "fallbacks has 5 models. Use at most 4"),
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


@pytest.mark.parametrize("fallback_on", [(), *((each,) for each in FALLBACK_ON), FALLBACK_ON], ids="+".join)
def test_only_the_rows_of_the_table_reach_the_next_model(fallback_on: tuple[str, ...]) -> None:
    """Unlisted means: no other model."""
    reasons = {
        (type(error), vars(error).get("status"), error.bought): reason
        for error in every_error()
        if (reason := reason_to_fall_back(error, fallback_on))
    }
    unavailable = {
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


@pytest.fixture
def job(gateway: Emulator, s3_endpoint: str, s3_credentials: dict[str, str], bucket: str) -> Job:
    """A purchase with a chain of three; the gateway is asked once in each call."""
    gateway.serve_clip(CLIP)
    return Job(
        gateway_url=gateway.url,
        api_key=gateway.api_key,
        s3_endpoint=s3_endpoint,
        s3_credentials=s3_credentials,
        bucket=bucket,
        fallbacks=(SEEDANCE, HAILUO),
        retries=0,
        limits=replace(crash_runner.HASTY, first_backoff=0, max_backoff=0),
    )


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


def test_a_gateway_that_cannot_be_reached_is_the_same_for_every_model(
    job: Job, gateway: Emulator, s3: S3Client, caplog: pytest.LogCaptureFixture
) -> None:
    """No fallback is tried."""
    with gateway.down():
        assert isinstance(attempt(job, s3), GatewayUnavailable)
    assert "Falling back" not in caplog.text


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

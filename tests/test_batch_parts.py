"""The parts of a batch that know nothing of clips: its lines on disk, its pace, what it tolerates."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_codegateway.batch import LineFile, Tolerance
from airflow_provider_codegateway.batch.pace import Pace, Stopped
from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import GatewayUnavailable, InvalidRequest, InvalidTarget
from airflow_provider_codegateway.limits import Limits

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), max_size=20)
HASTY = Limits(longest_backoff=0.0)


async def let_all_go_on() -> None:
    """Give every coroutine that can go on its turns."""
    for _ in range(10):
        await asyncio.sleep(0)


@given(values=VALUES)
def test_lines_are_found_again_by_their_numbers(values: list[dict[str, Any]]) -> None:
    """In any order, while others are added."""
    with LineFile() as lines:
        for number, value in enumerate(values):
            assert lines.append(value) == number
            assert lines[number // 2] == values[number // 2]
        assert list(lines) == values
        assert len(lines) == len(values)


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_lines_pass_through_s3(size: int, s3: S3Client, bucket: str) -> None:
    """Also one that is longer than what is read at a time."""
    values = [{"text": "x\n" * size}, {}, {"text": "ü"}]
    at = S3Location(bucket, "lines.jsonl")
    with LineFile() as lines:
        for value in values:
            lines.append(value)
        lines.upload(s3, at, put_args={})
    with LineFile.download(s3, at, {}) as found:
        assert list(found) == values
    body = s3.get_object(Bucket=bucket, Key="lines.jsonl")["Body"].read()
    assert [json.loads(line) for line in body.splitlines()] == values


def test_lines_that_were_deleted_are_missed(s3: S3Client, bucket: str) -> None:
    """With what to do."""
    with pytest.raises(InvalidTarget, match="was deleted"):
        LineFile.download(s3, S3Location(bucket, "none.jsonl"), {})


@given(
    most=st.integers(1, 5),
    outcomes=st.lists(st.sampled_from(["clip", "refused", "busy"]), min_size=1, max_size=40),
)
def test_no_more_are_under_way_than_allowed_and_none_is_forgotten(most: int, outcomes: list[str]) -> None:
    """Whatever they meet, and in whatever order."""
    under_way = highest = done = 0

    async def row(pace: Pace, outcome: str) -> None:
        nonlocal under_way, highest, done
        while True:
            await pace.begin()
            under_way += 1
            highest = max(highest, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            if outcome == "busy":
                outcome = "clip"
                assert pace.pause(GatewayUnavailable("It is busy."))
                pace.end()
                continue
            pace.end()
            pace.progress()
            done += 1
            return

    async def run() -> None:
        pace = Pace(most, retries=3, patience=math.inf, limits=HASTY)
        await asyncio.gather(*(row(pace, outcome) for outcome in outcomes))

    asyncio.run(run())
    assert done == len(outcomes)
    assert highest <= most


def test_a_pause_halves_what_may_be_under_way_and_each_clip_allows_one_more() -> None:
    """Rows that were begun before the pause do not halve it again."""

    async def free(pace: Pace) -> int:
        """How many turns there are now."""
        turns = [asyncio.create_task(pace.begin()) for _ in range(20)]
        await let_all_go_on()
        given = [turn for turn in turns if turn.done()]
        for turn in turns:
            turn.cancel()
        await asyncio.wait(turns)
        for _ in given:
            pace.end()
        return len(given)

    async def run() -> list[int]:
        pace = Pace(8, retries=0, patience=math.inf, limits=HASTY)
        seen = [await free(pace)]
        assert pace.pause(GatewayUnavailable("It is busy."))
        assert pace.pause(GatewayUnavailable("It is busy."))
        await let_all_go_on()
        seen.append(await free(pace))
        pace.progress()
        seen.append(await free(pace))
        return seen

    assert asyncio.run(run()) == [8, 4, 5]


def test_it_gives_up_when_nothing_goes_on_or_the_wait_is_too_long() -> None:
    """After the retries and the patience; and at once if it is asked to wait for hours."""

    async def run() -> None:
        pace = Pace(1, retries=1, patience=-1.0, limits=HASTY)
        assert pace.pause(GatewayUnavailable("It is busy."))
        await let_all_go_on()
        assert not pace.pause(GatewayUnavailable("It is busy."))
        pace = Pace(1, retries=1, patience=math.inf)
        assert not pace.pause(GatewayUnavailable("It is busy.", retry_after=86_400.0))

    asyncio.run(run())


def test_nobody_waits_for_a_turn_when_it_is_stopped() -> None:
    """Those who wait are told, and those who come later."""

    async def run() -> None:
        pace = Pace(1, retries=0, patience=0)
        await pace.begin()
        waiting = asyncio.create_task(pace.begin())
        await asyncio.sleep(0)
        pace.stop()
        with pytest.raises(Stopped):
            await waiting
        with pytest.raises(Stopped):
            await pace.begin()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("value", "failures", "rows", "is_allowed"),
    [
        (0, 0, 5, True),
        (0, 1, 5, False),
        ("3", 3, 5, True),
        ("10%", 3, 30, True),
        ("10%", 4, 30, False),
        (0.1, 3, 30, True),
        ("0.1", 4, 30, False),
        ("100 %", 5, 5, True),
        ("12.5%", 1, 8, True),
    ],
)
def test_tolerance_is_a_number_or_a_share(value: Any, failures: int, rows: int, is_allowed: bool) -> None:
    """Exactly: 10% of 30 rows is 3."""
    assert Tolerance.parse(value).allows(failures, rows) is is_allowed


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "101%", "", "x", [1], "1e-3"])
def test_another_tolerance_is_refused(value: Any) -> None:
    """With what would be right."""
    with pytest.raises(InvalidRequest, match="Use a number of rows such as 3, or a share"):
        Tolerance.parse(value)

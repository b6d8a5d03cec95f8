"""The journal over a real S3: budgets hold whoever writes, whatever is lost, and whoever dies."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_proxy import S3Proxy, S3Request, Verdict, deny, down, once
from spend_runner import BODY, LIMITS, MODEL, POINTS, Job, account, buyers, client, reserve, run

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import Bought, BudgetExceeded, InvalidTarget, StorageUnavailable
from airflow_provider_codegateway.spend.budgets import Budget, Tally
from airflow_provider_codegateway.spend.fold import Row, State, decode_rows, encode_rows
from airflow_provider_codegateway.spend.journal import Journal, Outcome

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PROCESSES, CLIPS, BUDGET, ROUNDS = (
    int(number) for number in os.environ.get("CODEGATEWAY_TEST_JOURNAL", "3 10 20 1").split()
)
"""Of the race: ``8 40 200 20`` is the full size."""


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_endpoint) as proxy:
        yield proxy


def journal(s3: S3Client, bucket: str) -> Journal:
    """The journal as a process sees it that has not looked at it before."""
    return Journal(s3, S3Location(bucket, "journal"), LIMITS)


def all_rows(s3: S3Client, bucket: str) -> list[Row]:
    """Every row, in its order, by nothing but the objects."""
    return [row for key in journal(s3, bucket).objects() for row in journal(s3, bucket).rows(key)]


def kinds(s3: S3Client, bucket: str) -> list[str]:
    return [row.kind for row in all_rows(s3, bucket)]


def is_row(request: S3Request) -> bool:
    """Whether an object of the log is written."""
    return request.operation == "PutObject" and request.key.endswith(".jsonl")


DAY = [{"per": "day", "renders": 2}]


class TestExactness:
    def test_processes_that_race_buy_exactly_the_budget(
        self, s3: S3Client, bucket: str, s3_endpoint: str, s3_credentials: dict[str, str], tmp_path: Path
    ) -> None:
        """However many want the last renders of the day, as many are bought as the budget has."""
        with buyers(PROCESSES) as one_round:
            for number in range(ROUNDS):
                name = f"{bucket}-{number}"
                s3.create_bucket(Bucket=name)
                bill = tmp_path / str(number)
                bill.mkdir()
                job = Job(
                    s3_endpoint,
                    s3_credentials,
                    name,
                    [{"per": "day", "renders": BUDGET}, {"per": "month", "amount": "9999"}],
                    str(bill),
                    clips=CLIPS,
                    threads=2,
                )
                assert one_round(job) == (BUDGET, PROCESSES * CLIPS - BUDGET)
                assert len(list(bill.iterdir())) == BUDGET
                rows = all_rows(s3, name)
                assert {row.id for row in rows if row.kind == "bought"} == {
                    path.name for path in bill.iterdir()
                }
                state, _ = journal(s3, name).state()
                assert (state.months[state.month], state.open) == (
                    Tally(BUDGET, (("USD", BUDGET * Decimal("0.60")),)),
                    {},
                )

    def test_a_budget_of_money_is_as_exact(
        self, s3: S3Client, bucket: str, s3_endpoint: str, s3_credentials: dict[str, str], tmp_path: Path
    ) -> None:
        """The last render that fits is bought, and not a hundredth more."""
        with buyers(2) as one_round:
            budgets = [{"per": "run", "amount": "3.65"}]
            job = Job(s3_endpoint, s3_credentials, bucket, budgets, str(tmp_path), clips=5, threads=1)
            assert one_round(job) == (6, 4)

    @pytest.mark.parametrize("point", POINTS)
    def test_a_process_that_is_killed_never_makes_the_journal_say_too_little(
        self,
        point: str,
        s3: S3Client,
        bucket: str,
        s3_endpoint: str,
        s3_credentials: dict[str, str],
        tmp_path: Path,
    ) -> None:
        """At each step, what counts is at least what was billed, and the next process needs nobody's help."""
        budgets = [{"per": "day", "renders": 3}]
        job = Job(s3_endpoint, s3_credentials, bucket, budgets, str(tmp_path))
        assert not run(Job(**{**vars(job), "kill_at": point}))
        state, _ = journal(s3, bucket).state()
        counted = sum(tally.renders for tally in state.days.values())
        billed = len(list(tmp_path.iterdir()))
        assert billed <= counted <= 1
        assert run(job)
        assert journal(s3, bucket).state()[0].days[state.at[:10] or _today()].renders == counted + 1


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


class TestBudgets:
    def test_a_refusal_says_what_is_used_and_when_it_opens_again(self, s3: S3Client, bucket: str) -> None:
        """Which budget, how much is bought, in flight and unresolved, and until when to wait."""
        ours = account(s3, bucket, [{"per": "day", "renders": 3}])
        ours.bought(reserve(ours))
        ours.unknown(reserve(ours), "RenderOutcomeUnknown")
        reserve(ours)
        with pytest.raises(BudgetExceeded) as caught:
            reserve(ours)
        today = datetime.now(UTC)
        assert (
            f"The budget of 3 renders per day has no room for another render: {today:%Y-%m-%d} has 1 bought, 1 in "
            f"flight, 1 unknown or unresolved. It opens again at {today + timedelta(days=1):%Y-%m-%d} 00:00 UTC."
        ) in caught.value.args[0]
        assert (
            "airflow_provider_codegateway.spend unresolved (with --conn-id before that"
            in caught.value.args[0]
        )
        assert str(caught.value).endswith("Nothing was bought.")

    def test_several_budgets_hold_at_once(self, s3: S3Client, bucket: str) -> None:
        """Every budget in the way is named; a run's does not open by itself."""
        budgets: list[dict[str, Any]] = [
            {"per": "run", "renders": 1},
            {"per": "month", "amount": "0.60"},
            {"per": "day", "renders": 9},
        ]
        ours = account(s3, bucket, budgets)
        reserve(ours)
        with pytest.raises(BudgetExceeded) as caught:
            reserve(ours)
        words = caught.value.args[0].splitlines()
        assert len(words) == 2
        assert "1 render per run" in words[0]
        assert "does not open again by itself" in words[0]
        assert "0.60 USD per month has no room for 0.60 USD" in words[1]
        with pytest.raises(BudgetExceeded, match="per month"):
            reserve(ours, run="another")

    def test_runs_have_budgets_of_their_own(self, s3: S3Client, bucket: str) -> None:
        """What one DAG run buys leaves the others theirs."""
        ours = account(s3, bucket, [{"per": "run", "renders": 1}])
        reserve(ours, run="one")
        reserve(ours, run="two")
        with pytest.raises(BudgetExceeded, match="the run one has 0 bought, 1 in flight"):
            reserve(ours, run="one")

    def test_two_connections_with_one_journal_share_its_budgets(self, s3: S3Client, bucket: str) -> None:
        """Each applies its own bounds to what all of them bought."""
        one, other = account(s3, bucket, DAY), account(s3, bucket, [{"per": "day", "renders": 3}])
        reserve(one)
        reserve(other)
        with pytest.raises(BudgetExceeded):
            reserve(one)
        reserve(other)
        with pytest.raises(BudgetExceeded):
            reserve(other)

    def test_what_has_no_price_is_refused_by_a_budget_of_money_only(self, s3: S3Client, bucket: str) -> None:
        """An unknown price is never 0; a budget of renders needs none."""
        body = {"model": "acme/new"}
        reserve(account(s3, bucket, DAY), body=body)
        with pytest.raises(BudgetExceeded, match="has no price"):
            reserve(account(s3, bucket, [{"per": "day", "amount": "5"}]), body=body)
        (row,) = all_rows(s3, bucket)
        assert (row.cost, row.at_most) == (None, None)

    def test_a_render_that_bought_nothing_gives_its_room_back(self, s3: S3Client, bucket: str) -> None:
        """Also to a process that was told of a full budget before."""
        one, other = account(s3, bucket, DAY), account(s3, bucket, DAY)
        first = reserve(one)
        reserve(one)
        with pytest.raises(BudgetExceeded):
            reserve(other)
        one.released(first, "RequestRejected")
        reserve(other)

    def test_saying_the_outcome_twice_changes_nothing(self, s3: S3Client, bucket: str) -> None:
        """Also from another process, and also if they contradict each other."""
        ours = account(s3, bucket, DAY)
        reservation = reserve(ours)
        ours.bought(reservation)
        ours.bought(reservation)
        other = account(s3, bucket, DAY)
        other.bought(reservation)
        other.released(reservation, "late")
        assert kinds(s3, bucket) == ["reserved", "bought"]

    def test_another_process_may_resolve_a_reservation(self, s3: S3Client, bucket: str) -> None:
        """A run that finds the receipt of one that died says that it was bought."""
        reservation = reserve(account(s3, bucket, DAY))
        account(s3, bucket, DAY).bought(reservation)
        assert journal(s3, bucket).state()[0].open == {}

    def test_what_a_person_released_counts_again_if_it_was_bought_after_all(
        self, s3: S3Client, bucket: str
    ) -> None:
        """The journal never says too little."""
        ours = account(s3, bucket, DAY)
        reservation = reserve(ours)
        journal(s3, bucket).write(Outcome(kind="released", id=reservation, by="ann", note="not on the bill"))
        assert journal(s3, bucket).state()[0].days[_today()].renders == 0
        ours.bought(reservation)
        ours.bought(reservation)
        assert kinds(s3, bucket) == ["reserved", "released", "corrected"]
        assert journal(s3, bucket).state()[0].days[_today()].renders == 1


class TestBadDays:
    @pytest.mark.parametrize("attempts", [1, 2])
    def test_a_lost_answer_counts_once(
        self, attempts: int, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """The writer finds its own rows at the number, whether it or its client asks again."""
        ours = account(client(proxy.url, s3_credentials, attempts), bucket, DAY)
        with proxy.ruled(once(Verdict.LOSE, is_row)):
            reservation = reserve(ours)
        with proxy.ruled(once(Verdict.LOSE, is_row)):
            ours.bought(reservation)
        assert kinds(s3, bucket) == ["reserved", "bought"]
        assert journal(s3, bucket).state()[0].days[_today()].renders == 1

    def test_what_cannot_be_recorded_is_not_bought(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """S3 is down, or refuses the write: an error, and not an open budget."""
        ours = account(client(proxy.url, s3_credentials), bucket, DAY)
        for rule, error in ((down, StorageUnavailable), (deny("PutObject"), InvalidTarget)):
            with proxy.ruled(rule), pytest.raises(error) as caught:
                reserve(ours)
            assert str(caught.value).endswith("Nothing was bought.")
        assert kinds(s3, bucket) == []
        reserve(ours)

    def test_a_reservation_whose_answer_never_came_is_given_back(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """It was written and nobody used it: the next write of the process releases it."""
        ours = account(client(proxy.url, s3_credentials, 1), bucket, DAY)
        ours.bought(reserve(ours))
        with (
            proxy.ruled(lambda request: Verdict.LOSE if is_row(request) else Verdict.DROP),
            pytest.raises(StorageUnavailable),
        ):
            reserve(ours)
        assert journal(s3, bucket).state()[0].days[_today()].renders == 2
        reserve(ours)
        assert kinds(s3, bucket) == ["reserved", "bought", "reserved", "released", "reserved"]

    def test_an_outcome_that_could_not_be_written_is_written_later(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """The render goes on; until then it counts as reserved."""
        ours = account(client(proxy.url, s3_credentials, 1), bucket, DAY)
        first = reserve(ours)
        with proxy.ruled(down):
            ours.bought(first)
        assert [row.kind for row in journal(s3, bucket).state()[0].open.values()] == ["reserved"]
        second = reserve(ours)
        assert list(journal(s3, bucket).state()[0].open) == [second]

    def test_a_store_that_ignores_conditions_is_refused(
        self, bucket: str, s3_endpoint: str, s3_credentials: dict[str, str]
    ) -> None:
        """Where two writers can get one number, no budget holds."""
        with S3Proxy(s3_endpoint, strip="if-none-match") as careless:
            ours = account(client(careless.url, s3_credentials), bucket, DAY)
            with pytest.raises(InvalidTarget, match="ignores If-None-Match"):
                reserve(ours)

    def test_a_missing_bucket_is_named(self, s3: S3Client) -> None:
        """Before anything is bought."""
        with pytest.raises(InvalidTarget, match="'no-such-bucket' does not exist"):
            reserve(account(s3, "no-such-bucket", DAY))

    def test_something_else_in_the_journals_place_is_an_error(self, s3: S3Client, bucket: str) -> None:
        """And not an empty journal."""
        s3.put_object(Bucket=bucket, Key="journal/checkpoint.json", Body=b"hello")
        with pytest.raises(InvalidTarget, match="was not written by this journal"):
            reserve(account(s3, bucket, DAY))

    @pytest.mark.parametrize(
        "damage",
        [
            {"day": None},
            {"day": "today"},
            {"written": None},
            {"written": "2026-11-27 00:00:00"},
            {"written": "9999-12-31T23:59:59Z"},
            {"due": "soon"},
            {"kind": "Reserved"},
            {"id": []},
            {"id": ""},
            {"render": "1"},
            {"at_most": 1.5},
            {"at_most": "1,00"},
            {"at_most": "NaN"},
            {"at_most": "-100"},
            "cut off",
            "empty",
        ],
        ids=str,
    )
    def test_a_damaged_object_is_refused_each_time(
        self, damage: dict[str, Any] | str, s3: S3Client, bucket: str
    ) -> None:
        """Its good rows count, too: a process that went on behind it would spend what they have spent."""
        ours = account(s3, bucket, DAY)
        reserve(ours)
        [key] = journal(s3, bucket).objects()
        good = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        rows = [{**good, "id": "other", **(damage if isinstance(damage, dict) else {})}, {**good, "id": "x"}]
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        body = {"cut off": body[:-20], "empty": b""}.get(str(damage), body)
        s3.put_object(Bucket=bucket, Key=key.replace("00000001", "00000002"), Body=body)
        for each in (ours, ours, account(s3, bucket, DAY), ours):
            with pytest.raises(
                InvalidTarget, match=r"00000002\.jsonl was not written by this journal"
            ) as refused:
                reserve(each)
            assert refused.value.bought is Bought.NO
            assert len(refused.value.args[0]) < 500

    @pytest.mark.parametrize(
        "change",
        [
            {"number": "1"},
            {"number": -1},
            {"month": "November"},
            {"at": "now"},
            {"days": {"2026-11-27": [1, {"USD": "many"}]}},
            {"open": [{"kind": "reserved"}]},
            {"runs": {"x": [1, {}]}},
        ],
        ids=str,
    )
    def test_a_damaged_checkpoint_is_refused_each_time(
        self, change: dict[str, Any], s3: S3Client, bucket: str
    ) -> None:
        """As a damaged object is."""
        reserve(account(s3, bucket, DAY))
        at = {"Bucket": bucket, "Key": "journal/checkpoint.json"}
        state = json.loads(s3.get_object(**at)["Body"].read())  # type: ignore[arg-type]
        s3.put_object(**at, Body=json.dumps({**state, **change}))  # type: ignore[arg-type]
        cold = account(s3, bucket, DAY)
        for _ in range(2):
            with pytest.raises(InvalidTarget, match=r"checkpoint\.json was not written by this journal"):
                reserve(cold)

    def test_without_checkpoint_and_archived_months_nothing_is_bought(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """Who counted the objects that are left would write beside those of the other writers."""
        now = [datetime(2026, 10, 20, tzinfo=UTC)]
        proxy.clock = lambda: now[0]
        s3_client = client(proxy.url, s3_credentials)
        for month in (10, 11):
            now[0] = datetime(2026, month, 20, tzinfo=UTC)
            ours = account(s3_client, bucket, DAY)
            ours.bought(reserve(ours))
        for key in [each for each in journal(s3, bucket).objects() if "/2026-10/" in each]:
            s3.delete_object(Bucket=bucket, Key=key)
        reserve(account(s3_client, bucket, DAY))  # the checkpoint has them
        s3.delete_object(Bucket=bucket, Key="journal/checkpoint.json")
        with pytest.raises(
            InvalidTarget, match=r"checkpoint\.json is missing, and so are objects"
        ) as refused:
            reserve(account(s3_client, bucket, DAY))
        assert refused.value.bought is Bought.NO

    def test_a_page_in_place_of_a_list_is_no_empty_journal(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """With the checkpoint lost, the list tells where the journal goes on."""
        reserve(account(s3, bucket, DAY))
        s3.delete_object(Bucket=bucket, Key="journal/checkpoint.json")
        proxy.edit = lambda request, headers, body: (
            headers,
            b"<html><body>blocked</body></html>" if request.operation == "ListObjects" else body,
        )
        with pytest.raises(InvalidTarget, match="is not a list of objects from S3"):
            reserve(account(client(proxy.url, s3_credentials), bucket, DAY))


class TestMonths:
    def test_a_new_month_opens_the_budget_in_a_new_folder(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """By the store's clock; a render counts where it was reserved, and a run's budget goes on."""
        now = [datetime(2026, 11, 30, 23, 59, 58, tzinfo=UTC)]
        proxy.clock = lambda: now[0]
        s3_client = client(proxy.url, s3_credentials)
        budgets = [{"per": "month", "renders": 1}, {"per": "run", "renders": 2}]
        ours, other = account(s3_client, bucket, budgets), account(s3_client, bucket, budgets)
        november = reserve(ours)
        with pytest.raises(
            BudgetExceeded, match=r"2026-11 has 0 bought, 1 in flight.*opens again at 2026-12-01 00:00"
        ):
            reserve(other)
        now[0] = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC)
        december = account(s3_client, bucket, budgets)
        reserve(december)
        ours.bought(november)
        with pytest.raises(BudgetExceeded, match=r"2 renders per run .* 1 bought, 1 in flight"):
            reserve(other)
        names = [key.removeprefix("journal/") for key in journal(s3, bucket).objects()]
        assert names == [
            "2026-11/00000001.jsonl",
            "2026-11/00000002.jsonl",
            "2026-12/00000003.jsonl",
            "2026-12/00000004.jsonl",
        ]
        rows = all_rows(s3, bucket)
        assert [row.kind for row in rows] == ["reserved", "month", "reserved", "bought"]
        assert rows[-1].day == "2026-11-30"

    def test_two_processes_that_disagree_on_the_month_begin_one_journal(
        self, s3: S3Client, s3_endpoint: str, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """The first one's month is the first folder."""
        with S3Proxy(s3_endpoint) as november, S3Proxy(s3_endpoint) as december:
            november.clock = lambda: datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
            december.clock = lambda: datetime(2026, 12, 1, 0, 0, 0, tzinfo=UTC)
            accounts = [
                account(client(each.url, s3_credentials), bucket, DAY) for each in (november, december)
            ]
            barrier = threading.Barrier(2)

            def buy(ours: Any) -> None:
                barrier.wait()
                reserve(ours)

            with ThreadPoolExecutor(2) as pool:
                list(pool.map(buy, accounts))
        numbers = [key[-14:] for key in journal(s3, bucket).objects()]
        assert numbers == [f"{number:08d}.jsonl" for number in range(1, len(numbers) + 1)]
        assert kinds(s3, bucket).count("reserved") == 2


class TestRequests:
    def test_a_new_process_reads_few_objects_of_a_long_journal(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """100,000 rows, 5,000 runs, a missed checkpoint: at most 20 requests and 64 MiB until it has reserved."""
        at = _today()
        state = State(month=at[:7])
        rows = [
            Row(
                kind=kind,
                written=f"{at}T00:00:00Z",
                id=f"{number:032x}",
                day=at,
                dag_id="catalogue",
                task_id="clip",
                run_id=f"scheduled__{number // 10}",
                model=MODEL,
                cost="0.60",
                at_most="0.60",
                currency="USD",
                due=f"{at}T00:05:00Z",
            )
            for number in range(50_000)
            for kind in (("reserved", "bought") if number % 100 else ("reserved", "unknown"))
        ]
        for row in rows[:-15]:
            state.take([row])
        s3.put_object(Bucket=bucket, Key="journal/checkpoint.json", Body=state.as_json().encode())
        for number, row in enumerate(rows[-15:], state.number + 1):
            key = f"journal/{at[:7]}/{number:08d}.jsonl"
            s3.put_object(Bucket=bucket, Key=key, Body=encode_rows([row]))
        s3.put_object(Bucket=bucket, Key="journal/conditional-writes.txt")
        ours = account(client(proxy.url, s3_credentials), bucket, [{"per": "day", "renders": 50_001}])
        tracemalloc.start()
        reserve(ours)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(proxy.requests) <= 20
        assert peak < 64 * 1024 * 1024
        with pytest.raises(BudgetExceeded, match="49500 bought, 1 in flight, 500 unknown or unresolved"):
            reserve(ours)

    def test_a_warm_process_takes_one_request_for_each_row(
        self, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """Two for a clip; a checkpoint once in a while is all that comes on top."""
        ours = account(client(proxy.url, s3_credentials), bucket, [])
        ours.bought(reserve(ours))
        proxy.requests.clear()
        for _ in range(8):
            ours.bought(reserve(ours))
        rows = [request for request in proxy.requests if is_row(request)]
        others = [request.key for request in proxy.requests if not is_row(request)]
        assert len(rows) == 16
        assert others == ["journal/checkpoint.json"] * 2

    def test_rows_that_wait_go_into_one_object(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """While one object is written, the renders of other threads gather for the next one."""
        ours = account(client(proxy.url, s3_credentials), bucket, [{"per": "day", "renders": 30}])
        reserve(ours)
        proxy.requests.clear()
        barrier = threading.Barrier(40)

        def buy(_: int) -> bool:
            barrier.wait()
            try:
                reserve(ours)
            except BudgetExceeded:
                return False
            return True

        first_is_slow = threading.Event()

        def slow_start(request: S3Request) -> Verdict:
            if is_row(request) and not first_is_slow.is_set():
                first_is_slow.wait(0.5)
                first_is_slow.set()
            return Verdict.PASS

        with proxy.ruled(slow_start), ThreadPoolExecutor(40) as pool:
            assert sum(pool.map(buy, range(40))) == 29
        assert len([request for request in proxy.requests if is_row(request)]) < 15
        assert kinds(s3, bucket) == ["reserved"] * 30

    def test_a_process_that_was_away_for_long_jumps_to_the_checkpoint(
        self, s3: S3Client, proxy: S3Proxy, bucket: str, s3_credentials: dict[str, str]
    ) -> None:
        """It does not read what others wrote meanwhile one by one."""
        away = account(client(proxy.url, s3_credentials), bucket, [{"per": "day", "renders": 61}])
        reserve(away)
        busy = account(s3, bucket, [])
        for _ in range(60):
            reserve(busy)
        proxy.requests.clear()
        with pytest.raises(BudgetExceeded):
            reserve(away)
        assert len(proxy.requests) <= 30

    def test_a_lost_checkpoint_costs_time_only(self, s3: S3Client, bucket: str) -> None:
        """All objects are read; an old checkpoint does no harm either."""
        ours = account(s3, bucket, [{"per": "day", "renders": 20}])
        old = (
            s3.get_object(Bucket=bucket, Key="journal/checkpoint.json")["Body"].read()
            if reserve(ours)
            else b""
        )
        for _ in range(19):
            reserve(ours)
        for lose in (
            lambda: s3.delete_object(Bucket=bucket, Key="journal/checkpoint.json"),
            lambda: s3.put_object(Bucket=bucket, Key="journal/checkpoint.json", Body=old),
        ):
            lose()
            with pytest.raises(BudgetExceeded):
                reserve(account(s3, bucket, [{"per": "day", "renders": 20}]))


_ids = st.sampled_from(["a", "b", "c", "d"])
_rows = st.lists(
    st.builds(
        lambda kind, name, cost, by: (kind, name, cost, by),
        st.sampled_from(["reserved", "bought", "unknown", "released", "corrected", "month"]),
        _ids,
        st.sampled_from([None, "0.10", "0.25"]),
        st.sampled_from([None, "ann"]),
    ),
    max_size=40,
)


def _as_rows(steps: list[tuple[Any, str, str | None, str | None]]) -> list[Row]:
    month, rows = 1, []
    for kind, name, cost, by in steps:
        month += kind == "month"
        day = f"{2026 + month // 12}-{month % 12 + 1:02d}-01"
        rows.append(
            Row(
                kind=kind,
                written=f"{day}T00:00:00Z",
                id=name,
                day=day,
                run_id=name,
                at_most=cost,
                currency="USD",
                released_by=by,
            )
        )
    return rows


class TestFold:
    @given(_rows, st.integers(0, 40))
    @settings(deadline=None)
    def test_a_checkpoint_anywhere_changes_nothing(
        self, steps: list[tuple[Any, str, str | None, str | None]], cut: int
    ) -> None:
        """The state of all rows is that of a checkpoint and the rows after it, through JSON and back."""
        rows = [decode_rows(encode_rows([row]))[0] for row in _as_rows(steps)]
        assert rows == _as_rows(steps)
        whole, first = State(month="2026-02"), State(month="2026-02")
        for row in rows:
            whole.take([row])
        for row in rows[:cut]:
            first.take([row])
        text = first.as_json()
        assert not any(isinstance(value, float) for value in _leaves(json.loads(text)))
        again = State.from_json(text)
        for row in rows[cut:]:
            again.take([row])
        assert again == whole

    @given(_rows)
    @settings(deadline=None)
    def test_what_counts_is_every_render_that_was_reserved_and_not_released(
        self, steps: list[tuple[Any, str, str | None, str | None]]
    ) -> None:
        """Against a count of each render by itself, within one month."""
        rows = _as_rows([step for step in steps if step[0] != "month"])
        state = State(month="2026-02")
        for row in rows:
            state.take([row])
        # Every row of one id in order, with the life cycle that the module's picture has.
        expected = 0
        for name in {row.id for row in rows}:
            is_open = was_given_back = False
            for row in (each for each in rows if each.id == name):
                if row.kind == "reserved" and not is_open:
                    is_open, expected = True, expected + 1
                elif row.kind == "bought":
                    is_open = False
                elif row.kind == "released" and is_open:
                    is_open, expected = False, expected - 1
                    was_given_back = was_given_back or row.released_by is not None
                elif row.kind == "corrected" and was_given_back:
                    was_given_back, expected = False, expected + 1
        assert sum(tally.renders for tally in state.months.values()) == expected
        assert sum(tally.renders for tally, _ in state.runs.values()) == expected
        budget = Budget(per="month", renders=1)
        if rows:
            used = state.used(budget, rows[0], now=datetime(2026, 2, 1, tzinfo=UTC))
            assert used.in_flight.renders + used.unresolved.renders == len(state.open) <= used.total.renders


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def test_rows_are_flat_json(s3: S3Client, bucket: str) -> None:
    """Every row has the same columns, amounts are strings, and nothing is nested."""
    ours = account(s3, bucket, DAY)
    ours.bought(reserve(ours, body={**BODY, "resolution": "1080p"}))
    contents = [
        s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode() for key in journal(s3, bucket).objects()
    ]
    rows = [json.loads(line) for content in contents for line in content.splitlines()]
    assert rows[0].keys() == rows[1].keys()
    assert not any(isinstance(value, dict | list | float) for row in rows for value in row.values())
    assert rows[1] | {"written": "", "due": "", "id": "", "day": ""} == {
        "kind": "bought",
        "written": "",
        "id": "",
        "day": "",
        "dag_id": "d",
        "task_id": "t",
        "run_id": "r",
        "map_index": -1,
        "model": MODEL,
        "uri": "s3://clips/x.mp4",
        "render": 1,
        "seconds": "6",
        "resolution": "1080p",
        "generate_audio": False,
        "price": "0.10",
        "per": "second",
        "cost": "0.60",
        "at_most": "0.60",
        "currency": "USD",
        "assumed": None,
        "due": "",
        "released_by": None,
        "note": None,
    }

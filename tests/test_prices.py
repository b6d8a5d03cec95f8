"""What a render costs, and what is wrong with a price list."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_codegateway.exceptions import BudgetExceeded, InvalidConnection
from airflow_provider_codegateway.spend import (
    Account,
    Cost,
    SpendSettings,
    parse_amount,
    parse_spend,
    read_spend,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"


def settings(*prices: dict[str, Any], **further: Any) -> SpendSettings:
    return parse_spend({"currency": "USD", "prices": list(prices), **further}, "the settings")


def cost(body: dict[str, Any], *prices: dict[str, Any]) -> dict[str, Any] | None:
    found = settings(*prices).cost(body)
    return None if found is None else found.as_dict()


class TestCost:
    def test_is_seconds_times_price_or_a_price_per_render(self) -> None:
        """A price per second is multiplied without rounding; one per render is taken as it is."""
        assert cost({"model": VEO, "duration": "8s"}, {"model": VEO, "per_second": "0.15"}) == {
            "amount": "1.20",
            "at_most": "1.20",
            "currency": "USD",
            "assumed": [],
            "price": {"model": VEO, "per_second": "0.15"},
        }
        found = cost({"model": HAILUO}, {"model": HAILUO, "per_render": "0.30"})
        assert found is not None
        assert found["amount"] == "0.30"

    def test_the_first_line_that_matches_counts(self) -> None:
        """A line that names less than an earlier one is for whatever that one leaves."""
        lines = (
            {"model": VEO, "resolution": "1080P", "generate_audio": True, "per_second": "0.4"},
            {"model": VEO, "resolution": "1080p", "per_second": "0.3"},
            {"model": VEO, "per_second": "0.1"},
        )
        body = {"model": VEO, "duration": "4s"}
        for asked, amount in (
            ({"resolution": "1080p", "generate_audio": True}, "1.6"),
            ({"resolution": "1080p"}, "1.2"),
            ({"resolution": "720p", "generate_audio": True}, "0.4"),
        ):
            found = cost({**body, **asked}, *lines)
            assert found is not None
            assert found["amount"] == amount

    @pytest.mark.parametrize(
        ("model", "assumed", "amount"),
        [
            (VEO, ["duration", "generate_audio", "resolution"], "0.6"),
            (SEEDANCE, ["duration", "generate_audio", "resolution"], "0.5"),
        ],
    )
    def test_what_is_left_open_counts_as_the_documented_default_and_is_named(
        self, model: str, assumed: list[str], amount: str
    ) -> None:
        """Six seconds on Veo and five on Seedance, 720p, without sound."""
        line = {"model": model, "resolution": "720p", "generate_audio": False, "per_second": "0.1"}
        found = cost({"model": model}, line)
        assert found is not None
        assert (found["amount"], found["assumed"]) == (amount, assumed)

    def test_only_what_the_price_depends_on_is_assumed(self) -> None:
        """A price per render of any resolution assumes nothing."""
        found = cost({"model": VEO}, {"model": VEO, "per_render": "0.30"})
        assert found is not None
        assert found["assumed"] == []

    def test_hailuo_has_no_documented_duration(self) -> None:
        """A price per second is not multiplied with a guess: the amount is null, and not 0."""
        found = cost({"model": HAILUO}, {"model": HAILUO, "per_second": "0.05"})
        assert found is not None
        assert (found["amount"], found["at_most"]) == (None, None)

    def test_no_price_is_null(self) -> None:
        """Neither another model nor another resolution lends its price."""
        assert cost({"model": HAILUO}, {"model": VEO, "per_second": "0.05"}) is None
        assert cost({"model": VEO}, {"model": VEO, "resolution": "1080p", "per_second": "0.05"}) is None

    def test_an_unknown_parameter_costs_at_most_the_dearest_line_that_is_possible(self) -> None:
        """Nobody knows the default resolution of a model that is not listed."""
        lines = (
            {"model": "acme/new", "resolution": "720p", "per_render": "0.10"},
            {"model": "acme/new", "resolution": "4k", "per_render": "0.90"},
            {"model": "acme/new", "per_render": "0.20"},
        )
        found = cost({"model": "acme/new"}, *lines)
        assert found is not None
        assert (found["amount"], found["at_most"]) == (None, "0.90")
        assert found["price"] == lines[1]
        assert cost({"model": "acme/new"}, *lines[:2]) is None

    def test_of_several_renders_names_what_is_sure_and_what_is_possible(self) -> None:
        """Two renders, one of unknown outcome: bought once for sure, twice at most."""
        one = Cost(amount=Decimal("0.90"), at_most=Decimal("0.90"), currency="USD")
        both = one.of_renders(bought=1, perhaps=1)
        assert (both.as_dict()["amount"], both.as_dict()["at_most"]) == ("0.90", "1.80")


_money = st.decimals(min_value="0.000000001", max_value="999999999", places=9).filter(bool)
_lines = st.lists(
    st.builds(
        lambda model, resolution, audio, rate, per: {
            name: value
            for name, value in {
                "model": model,
                "resolution": resolution,
                "generate_audio": audio,
                f"per_{per}": format(rate, "f"),
            }.items()
            if value is not None
        },
        st.sampled_from([VEO, "acme/new"]),
        st.sampled_from([None, "720p", "1080p"]),
        st.sampled_from([None, True, False]),
        _money,
        st.sampled_from(["second", "render"]),
    ),
    max_size=6,
)
_bodies = st.fixed_dictionaries(
    {"model": st.sampled_from([VEO, "acme/new"])},
    optional={
        "resolution": st.sampled_from(["720p", "1080p"]),
        "generate_audio": st.booleans(),
        "duration": st.sampled_from(["4s", "8s", 5]),
    },
)


class TestProperties:
    @given(_bodies, _lines)
    def test_a_cost_holds_for_everything_that_an_open_parameter_may_be(
        self, body: dict[str, Any], lines: list[dict[str, Any]]
    ) -> None:
        """An amount is what every completion of the request costs; ``at_most`` is the dearest of them."""
        spend = settings(*lines)
        found = spend.cost(body)
        defaults = (
            {"duration": "6s", "resolution": "720p", "generate_audio": False} if body["model"] == VEO else {}
        )
        body = {**defaults, **body}
        resolutions = [body["resolution"]] if "resolution" in body else ["720p", "1080p", "4k"]
        sounds = [body["generate_audio"]] if "generate_audio" in body else [True, False]
        every = [
            spend.cost({**body, "resolution": resolution, "generate_audio": sound})
            for resolution in resolutions
            for sound in sounds
        ]
        if found is None:
            # Two lines, one with and one without sound, are no line for an unknown model: it is asked to say.
            assert None in every or len(sounds) == 2
            return
        amounts = [None if each is None else each.at_most for each in every]
        if found.at_most is None:
            assert None in amounts
        else:
            known = [amount for amount in amounts if amount is not None]
            assert known == amounts
            assert found.at_most >= max(known)
            assert found.amount is None or {found.amount} == set(known)

    @given(st.lists(_money, max_size=30), st.integers(1, 99999))
    def test_money_is_exact_and_survives_json(self, amounts: list[Decimal], seconds: int) -> None:
        """No digit is lost or made, and no float appears."""
        total = 0
        for amount in amounts:
            priced = settings({"model": VEO, "per_second": format(amount, "f")}).cost(
                {"model": VEO, "duration": seconds}
            )
            assert priced is not None
            text = json.dumps(priced.as_dict())
            assert not any(isinstance(value, float) for value in json.loads(text).values())
            assert Cost.from_dict(json.loads(text)) == priced
            assert priced.amount is not None
            total += int(priced.amount.scaleb(9))
        assert total == sum(int(amount.scaleb(9)) * seconds for amount in amounts)

    @given(st.text() | st.floats() | st.integers() | st.booleans() | st.none())
    def test_an_amount_is_a_plain_positive_decimal_or_refused(self, value: object) -> None:
        """Whatever is taken is written back as it was."""
        try:
            amount = parse_amount(value)
        except ValueError:
            return
        assert isinstance(value, str)
        assert format(amount, "f") == str(Decimal(value.strip()))
        assert amount > 0


class TestSettings:
    @pytest.mark.parametrize(
        ("spend", "words"),
        [
            ({"prices": [{"model": VEO, "per_second": 0.15}]}, 'is 0.15, not a string. Write amounts as strings'),
            ({"prices": [{"model": VEO, "per_second": 1}]}, 'such as "1"'),
            ({"prices": [{"model": VEO, "per_second": "0.15 $"}]}, "prices[0].per_second is '0.15 $'"),
            ({"prices": [{"model": VEO, "per_second": "0"}]}, "above 0"),
            ({"prices": [{"model": VEO, "per_second": "NaN"}]}, "plain digits"),
            ({"prices": [{"model": VEO, "per_second": "1e3"}]}, "plain digits"),
            ({"prices": [{"model": VEO}]}, "prices[0] needs either per_second or per_render"),
            ({"prices": [{"per_second": "1"}]}, "prices[0].model is missing"),
            ({"prices": [{"model": VEO, "per_second": "1", "audio": True}]}, "prices[0].audio is not a known setting"),
            ({"prices": [{"model": VEO, "per_second": "1", "generate_audio": "yes"}]}, "is 'yes'. Use true or false"),
            ({"prices": {"model": VEO}}, "not a list"),
            ({"currency": "Dollar"}, 'currency is \'Dollar\'. Use a code of three capital letters, such as "USD"'),
            ({"journal": "acme/journal"}, "journal is 'acme/journal'"),
            ({"journal": "s3://acme"}, "bucket and a prefix"),
            ({"budgets": [{"per": "week", "renders": 3}]}, "budgets[0].per is 'week'. Use 'run', 'day' or 'month'"),
            ({"budgets": [{"per": "day", "renders": 0}]}, "budgets[0].renders is 0. Use a whole number of 1 or more"),
            ({"budgets": [{"per": "day"}]}, "budgets[0] needs either renders or amount"),
            ({"budgets": [{"per": "day", "renders": 3}]}, "has budgets, but no journal"),
            ({"budget": []}, "budget is not a known setting"),
            ("none", "is str, not an object"),
        ],
    )  # fmt: skip
    def test_each_fault_is_named_with_its_place(self, spend: Any, words: str) -> None:
        """The message says which field is wrong, its value as written, and what to use."""
        value = {"currency": "USD", **spend} if isinstance(spend, dict) else spend
        with pytest.raises(InvalidConnection) as caught:
            parse_spend(value, "the extra 'spend' of connection 'x'")
        assert words in caught.value.args[0]
        assert caught.value.args[0].startswith("the extra 'spend' of connection 'x'")
        assert str(caught.value).endswith("Nothing was bought.")

    def test_amounts_need_a_currency(self) -> None:
        """Prices without one are refused; a budget of renders needs none."""
        with pytest.raises(InvalidConnection, match="no currency"):
            parse_spend({"prices": [{"model": VEO, "per_render": "1"}]}, "it")
        parse_spend({"journal": "s3://a/b", "budgets": [{"per": "day", "renders": 20}]}, "it")

    def test_every_fault_is_listed_at_once(self) -> None:
        """Nobody has to correct a file line by line."""
        with pytest.raises(InvalidConnection) as caught:
            settings({"model": VEO, "per_second": 0.1}, {"per_render": "1"})
        assert caught.value.args[0].startswith("the settings has 2 problems:\n- prices[0].per_second")

    def test_a_file_in_s3_is_read_and_checked(self, s3: S3Client, bucket: str) -> None:
        """What is no such file, or no JSON, or no settings, is named with its URI."""
        uri = f"s3://{bucket}/spend.json"
        with pytest.raises(InvalidConnection, match="does not exist"):
            read_spend(uri, s3, "it")
        s3.put_object(Bucket=bucket, Key="spend.json", Body=b"{'currency'}")
        with pytest.raises(InvalidConnection, match=r"spend\.json is not JSON"):
            read_spend(uri, s3, "it")
        s3.put_object(
            Bucket=bucket,
            Key="spend.json",
            Body=b'{"currency": "USD", "prices": [{"model": "m", "per_render": 1.5}]}',
        )
        with pytest.raises(InvalidConnection, match=r"spend\.json\): prices\[0\].per_render is 1.5"):
            read_spend(uri, s3, "it")
        s3.put_object(Bucket=bucket, Key="spend.json", Body=b'{"currency": "EUR"}')
        assert read_spend(uri, s3, "it").currency == "EUR"


class TestMaxCost:
    def test_refuses_a_clip_that_may_cost_more(self) -> None:
        """The bound is for the clip: a second render counts with the first."""
        account = Account(settings({"model": VEO, "per_second": "0.10"}))
        body = {"model": VEO, "duration": "8s"}
        account.check(body, max_cost=Decimal("0.80"))
        with pytest.raises(
            BudgetExceeded, match=r"This render costs 0.80 USD, more than max_cost='0.79' allows"
        ):
            account.check(body, max_cost=Decimal("0.79"))
        with pytest.raises(BudgetExceeded, match=r"With render 2, the clip costs 1.60 USD"):
            account.check(body, max_cost=Decimal("0.80"), renders=2)

    def test_refuses_what_has_no_price(self) -> None:
        """An unknown price is not 0."""
        with pytest.raises(BudgetExceeded, match="without a price"):
            Account(settings()).check({"model": VEO}, max_cost=Decimal(1))
        with pytest.raises(BudgetExceeded, match="without a price"):
            Account().check({"model": VEO}, max_cost=Decimal(1))

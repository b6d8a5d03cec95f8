"""The owner's spend settings: currency, price list, budgets, and where the journal is."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from airflow_provider_codegateway.clip import S3Location, split_uri
from airflow_provider_codegateway.exceptions import InvalidConnection
from airflow_provider_codegateway.foreign import read_json
from airflow_provider_codegateway.models import MODELS
from airflow_provider_codegateway.s3 import DEMANDED, demanded_args, read_object
from airflow_provider_codegateway.spend.budgets import Budget
from airflow_provider_codegateway.spend.prices import Cost, Currency, Price, PricedRender, cost_of

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1024 * 1024


class SpendSettings(BaseModel):
    """What the connection's extra ``spend`` holds.

    :param currency: of every price and amount, such as ``"USD"``.
    :param journal: ``s3://bucket/prefix`` of the journal. Connections with the same one share their budgets.
    :param journal_conn_id: AWS connection of the journal.
    :param journal_extra_args: boto3's further arguments for the journal's objects, if its bucket's policy demands any.
    :param prices: the price list; the first line that matches counts.
    :param budgets: all of them hold at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    currency: Currency | None = None
    journal: str | None = None
    journal_conn_id: str | None = "aws_default"
    journal_extra_args: dict[str, str | bool] = {}
    prices: tuple[Price, ...] = ()
    budgets: tuple[Budget, ...] = ()

    @field_validator("prices", "budgets", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("journal")
    @classmethod
    def _is_location(cls, value: str | None) -> str | None:
        location = None if value is None else split_uri(value.strip())
        if value is not None and (location is None or not location.bucket or not location.key.strip("/")):
            raise ValueError(
                f'is {value!r}. Use a bucket and a prefix, such as "s3://acme-ops/codegateway/journal"'
            )
        return value and value.strip().rstrip("/")

    @field_validator("journal_extra_args")
    @classmethod
    def _may_be_demanded(cls, value: dict[str, str | bool]) -> dict[str, str | bool]:
        if refused := [name for name in value if name not in demanded_args(value)]:
            raise ValueError(
                f"has {refused[0]}={value[refused[0]]!r}. Use {', '.join(DEMANDED)}; nothing that publishes the journal"
            )
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.currency is None and (self.prices or any(budget.amount for budget in self.budgets)):
            raise ValueError('has amounts, but no currency. Add one, such as "currency": "USD"')
        if self.budgets and self.journal is None:
            raise ValueError('has budgets, but no journal to count in. Add "journal": "s3://bucket/prefix"')
        return self

    @property
    def journal_location(self) -> S3Location | None:
        """Where the journal is."""
        return None if self.journal is None else split_uri(self.journal)

    def cost(self, body: Mapping[str, Any]) -> Cost | None:
        """What one render of a request costs; None if the price list has no price for it.

        :param body: the JSON body that is sent.
        """
        return cost_of(PricedRender.of(body), self.prices, self.currency or "")


def parse_spend(value: object, where: str) -> SpendSettings:
    """The spend settings, checked.

    :param value: a dict, as JSON has it.
    :param where: how to name it in an error, such as "the extra 'spend' of connection 'x'".
    :raises InvalidConnection: listing everything that is wrong with it.
    """
    if not isinstance(value, Mapping):
        raise InvalidConnection(
            f"{where} is {type(value).__name__}, not an object. Use an object with currency, prices, budgets and "
            "journal, or the s3:// URI of a JSON file that holds one."
        )
    try:
        settings = SpendSettings.model_validate(dict(value))
        for price in settings.prices:
            _warn_of_misspelling(price.model, where)
        return settings
    except ValidationError as error:
        problems = [_words(each) for each in error.errors(include_url=False)]
    if len(problems) == 1:
        raise InvalidConnection(f"{where}: {problems[0]}.")
    raise InvalidConnection(
        "\n".join([f"{where} has {len(problems)} problems:", *(f"- {each}." for each in problems)])
    )


@cache
def _warn_of_misspelling(model: str, where: str) -> None:
    close = difflib.get_close_matches(model, MODELS, n=1, cutoff=0.8)
    if close and model not in MODELS:
        log.warning("%s has a price for %r, which is not known. Did you mean %r?", where, model, close[0])


def read_spend(uri: str, s3: S3Client, where: str) -> SpendSettings:
    """The spend settings in a JSON file in S3.

    :raises InvalidConnection: there is no such file, or it is wrong.
    :raises InvalidTarget, StorageUnavailable: see ``s3.storage_error``.
    """
    location = split_uri(uri.strip())
    if location is None or not location.bucket or not location.key:
        raise InvalidConnection(f"{where} is {uri!r}. Use the s3:// URI of a JSON file, or an object.")
    try:
        content = read_object(s3, location, _MAX_FILE_BYTES)
    except ValueError as error:
        raise InvalidConnection(f"{where}: {error}. Correct the URI, or upload the file.") from None
    if len(content) > _MAX_FILE_BYTES:
        raise InvalidConnection(f"{location.uri} is larger than 1 MiB. It is not a file of spend settings.")
    try:
        value = read_json(content)
    except ValueError as error:
        raise InvalidConnection(f"{location.uri} is not JSON ({error}). Correct the file.") from None
    return parse_spend(value, f"{where} ({location.uri})")


def _settings_at(place: Sequence[int | str]) -> str:
    """Which settings there are, at the top, in a price or in a budget."""
    below: dict[str, type[BaseModel]] = {"prices": Price, "budgets": Budget}
    known = below.get(str(place[0]), SpendSettings) if len(place) > 1 else SpendSettings
    return f". Use {', '.join(known.model_fields)}"


def _words(problem: Any) -> str:
    """One of pydantic's errors as the end of a sentence that begins with its place."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(
        "."
    )
    given = problem.get("input")
    match problem["type"]:
        case "missing":
            return f"{place} is missing"
        case "extra_forbidden":
            return f"{place} is not a known setting{_settings_at(problem['loc'])}"
        case "value_error":
            return f"{place} {problem['ctx']['error']}".strip()
        case "bool_type":
            return f"{place} is {given!r}. Use true or false"
        case "int_type" | "greater_than_equal":
            return f"{place} is {given!r}. Use a whole number of 1 or more"
        case "string_type":
            return f"{place} is {given!r}, not a string"
        case "literal_error":
            return f"{place} is {given!r}. Use {problem['ctx']['expected']}"
        case "tuple_type":
            return f"{place} is {given!r}, not a list"
    return f"{place}: {problem['msg']}"

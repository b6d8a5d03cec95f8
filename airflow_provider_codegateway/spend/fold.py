"""What the journal's rows add up to. Pure: the same rows give every process the same state.

A render is reserved before it is requested, and counts from then on. It stops counting only with ``released``::

    reserved ──> bought        known to be paid
        ├──────> unknown       sent, and no answer: counts, until somebody releases it
        └──────> released      provably not bought, or a person says so
    released by a person ──> corrected      it was bought after all: counts again

Each row repeats all that is known of its render, so that a query needs no join.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter

from airflow_provider_codegateway.spend.budgets import Budget, Tally, Used
from airflow_provider_codegateway.spend.prices import Cost, show_amount

Kind = Literal["reserved", "bought", "unknown", "released", "corrected", "month"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the journal; its fields are the columns.

    :param written: when it was written, by the store's clock.
    :param id: of the render; see ``Account.reserve``.
    :param day: on which the render was reserved, UTC. It counts against the budgets of this day and its month.
    :param render: its number among the clip's renders.
    :param price: per second or per render, as ``per`` says.
    :param cost: what it costs, None if that is not known.
    :param at_most: its worst cost: what counts against budgets.
    :param assumed: parameters that count as the model's defaults, separated by commas.
    :param due: until when its outcome should be known.
    :param released_by: who released it, if a person did.
    :param note: why it ended so.
    """

    kind: Kind
    written: str
    id: str = ""
    day: str = ""
    dag_id: str | None = None
    task_id: str | None = None
    run_id: str | None = None
    map_index: int | None = None
    model: str | None = None
    uri: str | None = None
    render: int | None = None
    seconds: str | None = None
    resolution: str | None = None
    generate_audio: bool | None = None
    price: str | None = None
    per: str | None = None
    cost: str | None = None
    at_most: str | None = None
    currency: str | None = None
    assumed: str | None = None
    due: str | None = None
    released_by: str | None = None
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, by column."""
        return {name: getattr(self, name) for name in COLUMNS}

    @property
    def charge(self) -> Decimal | None:
        """What counts against budgets of money."""
        return None if self.at_most is None else Decimal(self.at_most)

    @property
    def run(self) -> str:
        """The DAG run, short."""
        return run_key(self.dag_id, self.run_id)


COLUMNS = tuple(each.name for each in fields(Row))


def encode_rows(rows: Iterable[Row]) -> bytes:
    """The content of an object: one line of JSON for each row."""
    return "".join(json.dumps(row.as_dict(), separators=(",", ":")) + "\n" for row in rows).encode()


def decode_rows(content: bytes) -> list[Row]:
    """The inverse of ``encode_rows``. Columns of a later version are left out.

    :raises ValueError: it is something else. Damage that would be skipped would be money that no budget counts.
    """
    rows = [_checked(_row().validate_json(line, strict=True)) for line in content.splitlines()]
    if not rows:
        raise ValueError("it is empty")
    return rows


@cache
def _row() -> TypeAdapter[Row]:
    return TypeAdapter(Row)


def _checked(row: Row) -> Row:
    """:raises ValueError: a text of the row is none that it could have."""
    moments = [moment_of(each) for each in (row.written, row.due) if each is not None]
    if not all(each.year < _LAST_YEAR for each in (date.fromisoformat(row.day), *moments)):
        raise ValueError("it is of a time to come")
    if row.kind != "month" and not row.id:
        raise ValueError("a row has no id")
    for amount in (row.cost, row.at_most):
        if amount is not None and not _AMOUNT.fullmatch(amount):
            raise ValueError(f"{amount[:40]!r} is no amount")
    return row


_AMOUNT = re.compile(r"[0-9]+(\.[0-9]+)?")
_LAST_YEAR = 9000


def run_key(dag_id: str | None, run_id: str | None) -> str:
    """What a DAG run is counted under."""
    return hashlib.sha256(json.dumps([dag_id, run_id]).encode()).hexdigest()[:20]


def cost_columns(cost: Cost | None) -> dict[str, Any]:
    """A cost, flat."""
    if cost is None:
        return {}
    price = cost.price or {}
    per = next((name for name in ("second", "render") if f"per_{name}" in price), None)
    return {
        "price": price.get(f"per_{per}"),
        "per": per,
        "cost": show_amount(cost.amount),
        "at_most": show_amount(cost.at_most),
        "currency": cost.currency,
        "assumed": ",".join(cost.assumed) or None,
    }


def timestamp(moment: datetime) -> str:
    """A moment as rows have it: of fixed length, so that text sorts as time does."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def moment_of(text: str) -> datetime:
    """The inverse of ``timestamp``."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@dataclass
class State:
    """What all rows up to an object add up to. Its size is that of what is open, and of two months' runs.

    :param number: of the last object.
    :param month: in whose folder the next object goes.
    :param at: the latest time in a row.
    :param open: rows of renders whose outcome is not known, by id.
    :param given_back: rows of renders that a person released, by id: one may turn out to be bought.
    :param runs: the tally of each DAG run, with the last month in which it reserved something.
    """

    number: int = 0
    month: str = ""
    at: str = ""
    open: dict[str, Row] = field(default_factory=dict)
    given_back: dict[str, Row] = field(default_factory=dict)
    days: dict[str, Tally] = field(default_factory=dict)
    months: dict[str, Tally] = field(default_factory=dict)
    runs: dict[str, tuple[Tally, str]] = field(default_factory=dict)

    def copy(self) -> State:
        """A state that can be changed without changing this one."""
        return replace(
            self,
            open=dict(self.open),
            given_back=dict(self.given_back),
            days=dict(self.days),
            months=dict(self.months),
            runs=dict(self.runs),
        )

    def take(self, rows: Iterable[Row]) -> None:
        """Add up the rows of the next object."""
        self.number += 1
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Add one row. A row that says again what is known changes nothing."""
        self.at = max(self.at, row.written)
        match row.kind:
            case "month":
                self._begin_month(row.day[:7])
            case "reserved" if row.id not in self.open:
                self.open[row.id] = row
                self._count(row, 1)
            case "bought":
                self.open.pop(row.id, None)
            case "unknown" if row.id in self.open:
                self.open[row.id] = row
            case "released" if row.id in self.open:
                del self.open[row.id]
                self._count(row, -1)
                if row.released_by is not None:
                    self.given_back[row.id] = row
            case "corrected" if row.id in self.given_back:
                del self.given_back[row.id]
                self._count(row, 1)

    def _count(self, row: Row, renders: int) -> None:
        charge = row.charge if renders > 0 or row.charge is None else -row.charge

        month = row.day[:7]
        for tallies, key in ((self.days, row.day), (self.months, month)):
            if renders > 0 or key in tallies:  # else it is too long ago for any budget
                tallies[key] = tallies.get(key, Tally()).plus(renders, charge, row.currency)
        if renders > 0 or row.run in self.runs:
            tally, last_month = self.runs.get(row.run, (Tally(), month))
            self.runs[row.run] = tally.plus(renders, charge, row.currency), max(last_month, month)

    def _begin_month(self, month: str) -> None:
        """Forget what no budget needs. A run is remembered for a whole month without a render."""
        before = self.month
        self.month = month
        self.days = {day: tally for day, tally in self.days.items() if day[:7] >= before}
        self.months = {each: tally for each, tally in self.months.items() if each >= before}
        self.given_back = {key: row for key, row in self.given_back.items() if row.day[:7] >= before}
        in_use = {row.run for row in (*self.open.values(), *self.given_back.values())}
        self.runs = {run: value for run, value in self.runs.items() if value[1] >= before or run in in_use}

    def tally(self, budget: Budget, row: Row) -> Tally:
        """What counts against a budget in the period that a new row belongs to."""
        match budget.per:
            case "day":
                return self.days.get(row.day, Tally())
            case "month":
                return self.months.get(row.day[:7], Tally())
        return self.runs.get(row.run, (Tally(), ""))[0]

    def used(self, budget: Budget, row: Row, *, now: datetime) -> Used:
        """The same in detail, which takes a look at every open row."""
        run = "what no DAG run asked for" if row.run_id is None else f"the run {row.run_id}"
        name = {"day": row.day, "month": row.day[:7], "run": run}[budget.per]
        in_flight = unresolved = Tally()
        for each in self.open.values():
            if _same_period(budget, each, row):
                if is_unresolved(each, now):
                    unresolved = unresolved.plus(1, each.charge, each.currency)
                else:
                    in_flight = in_flight.plus(1, each.charge, each.currency)
        return Used(name=name, total=self.tally(budget, row), in_flight=in_flight, unresolved=unresolved)

    # A checkpoint is this state as JSON.

    def as_json(self) -> str:
        """The whole state."""
        values = {
            "number": self.number,
            "month": self.month,
            "at": self.at,
            "open": [row.as_dict() for row in self.open.values()],
            "given_back": [row.as_dict() for row in self.given_back.values()],
            "days": {day: _plain(tally) for day, tally in self.days.items()},
            "months": {month: _plain(tally) for month, tally in self.months.items()},
            "runs": {run: [*_plain(tally), last] for run, (tally, last) in self.runs.items()},
        }
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, content: str | bytes) -> Self:
        """The inverse of ``as_json``.

        :raises ValueError: it is not a state.
        """
        read = _checkpoint().validate_json(content, strict=True)
        return cls(
            number=read.number,
            month=read.month,
            at=read.at,
            open={row.id: _checked(row) for row in read.open},
            given_back={row.id: _checked(row) for row in read.given_back},
            days={day: _tally(*plain) for day, plain in read.days.items()},
            months={month: _tally(*plain) for month, plain in read.months.items()},
            runs={
                run: (_tally(renders, amounts), last) for run, (renders, amounts, last) in read.runs.items()
            },
        )


_Month = Annotated[str, Field(pattern=r"^\d{4}-\d{2}$")]
_Amounts = dict[str, Decimal]


@dataclass
class _Checkpoint:
    number: Annotated[int, Field(ge=0)]
    month: _Month
    at: Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z)?$")]
    open: list[Row]
    given_back: list[Row]
    days: dict[str, tuple[int, _Amounts]]
    months: dict[str, tuple[int, _Amounts]]
    runs: dict[str, tuple[int, _Amounts, _Month]]


@cache
def _checkpoint() -> TypeAdapter[_Checkpoint]:
    return TypeAdapter(_Checkpoint)


def is_unresolved(row: Row, now: datetime) -> bool:
    """Whether an open row's outcome is overdue, or known to be unknown."""
    return row.kind == "unknown" or row.due is None or moment_of(row.due) < now


def due_at(reserved: datetime, seconds: float) -> str:
    """Until when the outcome of a render should be known."""
    return timestamp(reserved + timedelta(seconds=seconds))


def _same_period(budget: Budget, one: Row, other: Row) -> bool:
    match budget.per:
        case "day":
            return one.day == other.day
        case "month":
            return one.day[:7] == other.day[:7]
    return one.run == other.run


def _plain(tally: Tally) -> list[Any]:
    return [tally.renders, {currency: show_amount(amount) for currency, amount in tally.amounts}]


def _tally(renders: int, amounts: Mapping[str, Decimal]) -> Tally:
    return Tally(renders, tuple(sorted(amounts.items())))

"""What was bought, by DAG, task, model, day or month; and what requests would cost."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, get_args

from airflow_provider_codegateway.spend.fold import Row, is_unresolved, timestamp
from airflow_provider_codegateway.spend.journal import Journal
from airflow_provider_codegateway.spend.prices import Cost, show_amount

By = Literal["dag", "task", "run", "model", "day", "month", "clip"]
DIMENSIONS: tuple[By, ...] = get_args(By)
Format = Literal["table", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)

_READERS = 16
_STATUSES = ("bought", "unknown", "unresolved", "in_flight", "released")


def read_renders(journal: Journal, *, since: str = "", until: str = "9") -> dict[str, Row]:
    """The last row of every render that was reserved on these days, by id.

    :param since: the first day, such as ``2026-11-01``, or a month.
    :param until: the last day, or a month.
    """
    last_day = until if len(until) == len("2026-11-01") else f"{until}-99"
    keys = list(journal.objects(lambda month: month >= since[:7]))
    renders: dict[str, Row] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for rows in pool.map(journal.rows, keys):
            for row in rows:
                if (
                    row.kind != "month"
                    and since <= row.day <= last_day
                    and _is_news(renders.get(row.id), row)
                ):
                    renders[row.id] = row
    return renders


def _is_news(known: Row | None, row: Row) -> bool:
    """Whether a row changes what is known of its render. A released one that is said to be bought is ``corrected``."""
    return known is None or known.kind in ("reserved", "unknown") or row.kind == "corrected"


def status_of(row: Row, now: datetime) -> str:
    """What a render's last row says of it."""
    match row.kind:
        case "bought" | "corrected":
            return "bought"
        case "reserved":
            return "unresolved" if is_unresolved(row, now) else "in_flight"
    return row.kind


@dataclass(frozen=True)
class Line:
    """One line of a report: renders and money by status.

    :param key: the values that the report is grouped by.
    :param unpriced: renders that were bought, and whose cost is not known.
    """

    key: tuple[str, ...]
    currency: str | None
    renders: Mapping[str, int]
    amounts: Mapping[str, Decimal | None]
    unpriced: int

    def as_dict(self, by: Sequence[By]) -> dict[str, Any]:
        """Plain values; amounts are strings, and null where no cost is known."""
        return {
            **dict(zip(by, self.key, strict=True)),
            "currency": self.currency,
            "bought": self.renders["bought"],
            "cost": show_amount(self.amounts["bought"]),
            "unpriced": self.unpriced,
            "unknown": self.renders["unknown"],
            "unknown_cost": show_amount(self.amounts["unknown"]),
            "unresolved": self.renders["unresolved"],
            "unresolved_cost": show_amount(self.amounts["unresolved"]),
            "in_flight": self.renders["in_flight"],
            "in_flight_cost": show_amount(self.amounts["in_flight"]),
            "released": self.renders["released"],
        }


def summarise(rows: Iterable[Row], by: Sequence[By], now: datetime) -> list[Line]:
    """One line for each group, and each currency in it, in their order."""
    groups: dict[tuple[tuple[str, ...], str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((tuple(_value(row, name) for name in by), row.currency), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    return [_line(key, currency, members, now) for (key, currency), members in ordered]


def _line(key: tuple[str, ...], currency: str | None, rows: list[Row], now: datetime) -> Line:
    by_status: dict[str, list[Row]] = {status: [] for status in _STATUSES}
    for row in rows:
        by_status[status_of(row, now)].append(row)
    return Line(
        key,
        currency,
        renders={status: len(members) for status, members in by_status.items()},
        # What may have been bought counts at its worst; what was, at what it cost.
        amounts={
            status: _total(row.cost if status == "bought" else row.at_most for row in members)
            for status, members in by_status.items()
        },
        unpriced=sum(row.cost is None for row in by_status["bought"]),
    )


def _total(amounts: Iterable[str | None]) -> Decimal | None:
    known = [Decimal(amount) for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if known else None


def _value(row: Row, by: By) -> str:
    match by:
        case "dag":
            return row.dag_id or ""
        case "task":
            return f"{row.dag_id or ''}.{row.task_id or ''}"
        case "run":
            return f"{row.dag_id or ''} {row.run_id or ''}"
        case "model":
            return row.model or ""
        case "clip":
            return row.uri or ""
        case "day":
            return row.day
    return row.day[:7]


def render_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: Format) -> str:
    """Rows as a table for people, as CSV, or as JSON."""
    match form:
        case "json":
            return json.dumps([{name: row[name] for name in columns} for row in rows], indent=2)
        case "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_cell(row[name]) for name in columns] for row in rows)
            return text.getvalue().rstrip("\n")
    cells = [list(columns), *([_shown(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return "".join(char if char.isprintable() else "?" for char in str(value))


# Estimates.


@dataclass(frozen=True)
class Estimate:
    """What several renders would cost together.

    :param amount: None if the cost of one of them is not known.
    :param at_most: None if the worst cost of one of them is not known.
    """

    renders: int
    unpriced: int
    amount: Decimal | None
    at_most: Decimal | None
    currency: str | None
    assumed: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; amounts are strings."""
        return {
            "renders": self.renders,
            "amount": show_amount(self.amount),
            "at_most": show_amount(self.at_most),
            "currency": self.currency,
            "unpriced": self.unpriced,
            "assumed": list(self.assumed),
        }


def estimate(costs: Iterable[Cost | None]) -> Estimate:
    """Add up costs. One that is not known makes the sum unknown, and is counted."""
    found = list(costs)
    known = [cost for cost in found if cost is not None]
    return Estimate(
        renders=len(found),
        unpriced=sum(cost is None or cost.at_most is None for cost in found),
        amount=_sum([None if cost is None else cost.amount for cost in found]),
        at_most=_sum([None if cost is None else cost.at_most for cost in found]),
        currency=known[0].currency if known else None,
        assumed=tuple(sorted({name for cost in known for name in cost.assumed})),
    )


def _sum(amounts: Sequence[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if known and len(known) == len(amounts) else None


def open_rows(journal: Journal) -> Iterator[dict[str, Any]]:
    """The renders whose outcome is not known, oldest first, with how long ago each was reserved."""
    state, now = journal.state()
    for row in sorted(state.open.values(), key=lambda row: (row.day, row.written)):
        yield {**row.as_dict(), "status": status_of(row, now), "now": timestamp(now)}

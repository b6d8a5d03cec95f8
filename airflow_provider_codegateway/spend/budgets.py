"""Budgets: how much may be bought per run, day or month, and what a refusal says. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from airflow_provider_codegateway.exceptions import BudgetExceeded
from airflow_provider_codegateway.spend.prices import Amount, Cost, show_amount

Period = Literal["run", "day", "month"]


class Budget(BaseModel):
    """How many renders, or how much money, may be spent in one period. Days and months are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    per: Period
    renders: Annotated[int, Field(ge=1)] | None = None
    amount: Amount | None = None

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.renders is None) == (self.amount is None):
            raise ValueError("needs either renders or amount")
        return self


@dataclass(frozen=True)
class Tally:
    """Renders, and what they cost at most.

    :param amounts: by currency, as two connections with different ones may share a journal. Renders without a price
        are not in it.
    """

    renders: int = 0
    amounts: tuple[tuple[str, Decimal], ...] = ()

    def plus(self, renders: int, amount: Decimal | None, currency: str | None) -> Tally:
        """Add renders, or take them off again."""
        amounts = dict(self.amounts)
        if amount is not None and currency is not None:
            amounts[currency] = amounts.get(currency, Decimal(0)) + amount
        return Tally(self.renders + renders, tuple(sorted(amounts.items())))

    def amount(self, currency: str) -> Decimal:
        """What is known to be spent in a currency."""
        return dict(self.amounts).get(currency, Decimal(0))


@dataclass(frozen=True, kw_only=True)
class Used:
    """What counts against the budgets of one period.

    :param name: the period in words, such as ``2026-11-26``.
    :param total: everything that counts.
    :param in_flight: of it, reserved by renders that may be under way.
    :param unresolved: of it, renders that may have been bought: nobody knows, or nobody said.
    """

    name: str
    total: Tally
    in_flight: Tally
    unresolved: Tally


def has_room(budget: Budget, total: Tally, cost: Cost | None) -> bool:
    """Whether one more render fits.

    :param total: everything that counts in the budget's period.
    :param cost: of the render; None if it has no price, which fits into no budget of money.
    """
    if budget.renders is not None:
        return total.renders + 1 <= budget.renders
    assert budget.amount is not None
    if cost is None or cost.at_most is None:
        return False
    return total.amount(cost.currency) + cost.at_most <= budget.amount


def refusal(full: Sequence[tuple[Budget, Used]], cost: Cost | None, *, now: datetime) -> BudgetExceeded:
    """The error that names each budget in the way."""
    lines = [_refusal(budget, used, cost, now) for budget, used in full]
    if any(used.unresolved.renders for _, used in full):
        lines.append(
            "To see what is unknown or unresolved, and to give back what was not bought: "
            "python -m airflow_provider_codegateway.spend unresolved (with --conn-id before that, if the connection is "
            "not codegateway_default)"
        )
    return BudgetExceeded("\n".join(lines))


def _refusal(budget: Budget, used: Used, cost: Cost | None, now: datetime) -> str:
    if budget.renders is not None:
        bought = used.total.renders - used.in_flight.renders - used.unresolved.renders
        return (
            f"The budget of {_renders(budget.renders)} per {budget.per} has no room for another render: "
            f"{used.name} has {bought} bought, {used.in_flight.renders} in flight, {used.unresolved.renders} "
            f"unknown or unresolved. {_opens(budget, now)}"
        )
    if cost is None or cost.at_most is None:
        return (
            f"The budget of {show_amount(budget.amount)} per {budget.per} refuses a render without a price: the price "
            "list has none for this request. Add a price for it, or set the parameters that its price depends on."
        )
    unit = cost.currency
    total, in_flight, unresolved = (
        each.amount(unit) for each in (used.total, used.in_flight, used.unresolved)
    )
    return (
        f"The budget of {show_amount(budget.amount)} {unit} per {budget.per} has no room for "
        f"{show_amount(cost.at_most)} {unit}: {used.name} has {show_amount(total - in_flight - unresolved)} {unit} "
        f"bought, {show_amount(in_flight)} in flight, {show_amount(unresolved)} unknown or unresolved. "
        f"{_opens(budget, now)}"
    )


def _renders(count: int) -> str:
    return "1 render" if count == 1 else f"{count:,} renders"


def _opens(budget: Budget, now: datetime) -> str:
    match budget.per:
        case "day":
            day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        case "month":
            first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            day = (first + timedelta(days=32)).replace(day=1)
        case _:
            return "It does not open again by itself: start a new run, or raise the budget."
    return f"It opens again at {day:%Y-%m-%d %H:%M} UTC."


def batch_refusal(
    budget: Budget, total: Tally, renders: int, at_most: Decimal | None, currency: str
) -> str | None:
    """Why a budget has no room for so many renders; None if it has.

    :param total: everything that counts in the budget's period.
    :param at_most: what the renders cost together; None if one of them has no price.
    """
    if budget.renders is not None:
        left = max(0, budget.renders - total.renders)
        if renders <= left:
            return None
        return (
            f"The batch needs {_renders(renders)}, and the budget of {_renders(budget.renders)} per {budget.per} has "
            f"room for {left:,}. Make the batch smaller, or raise the budget."
        )
    assert budget.amount is not None
    room = max(Decimal(0), budget.amount - total.amount(currency))
    if at_most is not None and at_most <= room:
        return None
    needs = "an amount that is not known" if at_most is None else f"up to {show_amount(at_most)} {currency}"
    return (
        f"The batch costs {needs}, and the budget of {show_amount(budget.amount)} {currency} per {budget.per} has "
        f"{show_amount(room)} {currency} left. Make the batch smaller, or raise the budget."
    )


def require_max_cost(cost: Cost | None, max_cost: Decimal | None, *, renders: int = 1) -> None:
    """Refuse a clip that may cost more than its author allows.

    :param cost: of one render, at its worst.
    :param renders: how many the clip takes with this one, those of unknown outcome included.
    :raises BudgetExceeded: it may, or it has no price.
    """
    if max_cost is None:
        return
    if cost is None or cost.at_most is None:
        raise BudgetExceeded(
            f"max_cost={show_amount(max_cost)!r} refuses a render without a price: the price list has none for this "
            "request. Add a price for it to the connection's extra 'spend', or leave max_cost out."
        )
    total = cost.at_most * renders
    if total > max_cost:
        what = "This render" if renders == 1 else f"With render {renders}, the clip"
        raise BudgetExceeded(
            f"{what} costs {show_amount(total)} {cost.currency}, more than max_cost={show_amount(max_cost)!r} allows."
        )

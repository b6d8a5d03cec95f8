"""The account: what the purchase of a clip asks of price list, budgets and journal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_codegateway.clip import TaskRun
from airflow_provider_codegateway.exceptions import BudgetExceeded, CodeGatewayError
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.spend.budgets import batch_refusal, require_max_cost
from airflow_provider_codegateway.spend.fold import Kind, Row, cost_columns, timestamp
from airflow_provider_codegateway.spend.journal import Journal, Outcome, Reserve, open_journal
from airflow_provider_codegateway.spend.prices import Cost, PricedRender, show_amount
from airflow_provider_codegateway.spend.settings import SpendSettings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)


class Account:
    """Prices, budgets and journal of one connection. Without spend settings it allows everything and keeps nothing.

    :param journal: where renders are recorded; None if the owner keeps no journal.
    """

    def __init__(self, settings: SpendSettings | None = None, journal: Journal | None = None) -> None:
        self.settings = settings or SpendSettings()
        self._journal = journal

    @classmethod
    def open(cls, settings: SpendSettings, s3: S3Client | None, limits: Limits = LIMITS) -> Self:
        """The account of these settings.

        :param s3: a boto3 client for the journal; None if there is no journal.
        """
        location = settings.journal_location
        if location is None:
            return cls(settings)
        assert s3 is not None
        return cls(settings, open_journal(s3, location, settings.journal_extra_args, limits))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to look up and nothing to record."""
        return self._journal is None and not self.settings.prices

    def cost(self, body: Mapping[str, Any]) -> Cost | None:
        """What one render of a request costs; see ``SpendSettings.cost``."""
        return self.settings.cost(body)

    def check(
        self, body: Mapping[str, Any], *, max_cost: Decimal | None = None, renders: int = 1
    ) -> Cost | None:
        """Refuse for free what no price allows, without a look at the journal.

        :param renders: how many the clip takes with this one.
        :return: the cost of one render.
        :raises BudgetExceeded: it costs too much, or has no price although one is needed.
        """
        cost = self.cost(body)
        require_max_cost(cost, max_cost, renders=renders)
        amounts = [budget for budget in self.settings.budgets if budget.amount is not None]
        if not amounts:
            return cost
        if cost is None or cost.at_most is None:
            raise BudgetExceeded(
                f"The price list has no price for this request of {body.get('model')}, and there is a budget of "
                f"{show_amount(amounts[0].amount)} {self.settings.currency} per {amounts[0].per}. Add a price to the "
                "connection's spend settings, or set the parameters that the price depends on."
            )
        return cost

    def reserve(
        self,
        body: Mapping[str, Any],
        *,
        reservation: str,
        asked_by: TaskRun,
        uri: str,
        render: int,
        seconds: float,
        max_cost: Decimal | None = None,
    ) -> None:
        """Record a render that is about to be requested, if every budget has room for it.

        :param body: the JSON body that is sent.
        :param reservation: an id that no other render has. The same one may be reserved again, and counts once.
        :param uri: where the clip goes.
        :param render: its number among the clip's renders.
        :param seconds: for how long it may be under way.
        :raises BudgetExceeded: there is no room; nothing was recorded.
        :raises StorageUnavailable, InvalidTarget: the journal cannot be written; nothing may be bought.
        """
        cost = self.check(body, max_cost=max_cost, renders=render)
        if self._journal is None:
            return
        facts = PricedRender.of(body)
        row = Row(
            kind="reserved",
            written="",
            id=reservation,
            dag_id=asked_by.dag_id,
            task_id=asked_by.task_id,
            run_id=asked_by.run_id,
            map_index=asked_by.map_index,
            model=facts.model,
            uri=uri,
            render=render,
            seconds=None if facts.seconds is None else format(facts.seconds, "f"),
            resolution=facts.resolution,
            generate_audio=facts.generate_audio,
            **cost_columns(cost),
        )
        self._journal.write(Reserve(render=row, cost=cost, budgets=self.settings.budgets, seconds=seconds))

    def require_room(self, body: Mapping[str, Any], *, asked_by: TaskRun) -> None:
        """Refuse a render that would not fit into the budgets now. Nothing is recorded.

        :raises BudgetExceeded, StorageUnavailable, InvalidTarget: as ``reserve``.
        """
        if self._journal is not None:
            row = Row(kind="reserved", written="", dag_id=asked_by.dag_id, run_id=asked_by.run_id)
            cost = self.cost(body)
            self._journal.try_out(Reserve(render=row, cost=cost, budgets=self.settings.budgets, seconds=0))

    def require_room_for(self, renders: int, at_most: Decimal | None, *, asked_by: TaskRun) -> None:
        """Refuse a batch that would not fit into the budgets now. Nothing is recorded.

        :param at_most: what the renders cost together, at their worst; None if one of them has no price.
        :raises BudgetExceeded, StorageUnavailable, InvalidTarget: as ``reserve``.
        """
        if self._journal is None or not self.settings.budgets or not renders:
            return
        state, now = self._journal.state()
        at = timestamp(now)
        row = Row(kind="reserved", written=at, day=at[:10], dag_id=asked_by.dag_id, run_id=asked_by.run_id)
        currency = self.settings.currency or ""
        problems = [
            batch_refusal(budget, state.tally(budget, row), renders, at_most, currency)
            for budget in self.settings.budgets
        ]
        if words := [problem for problem in problems if problem is not None]:
            raise BudgetExceeded("\n".join(words))

    def bought(self, reservation: str) -> None:
        """The render was answered: it is paid for. Saying so twice changes nothing."""
        self._end("bought", reservation, None)

    def unknown(self, reservation: str, why: str) -> None:
        """The render may have been bought. It counts until somebody releases it."""
        self._end("unknown", reservation, why)

    def released(self, reservation: str, why: str) -> None:
        """The render provably bought nothing, so it no longer counts."""
        self._end("released", reservation, why)

    def _end(self, kind: Kind, reservation: str, why: str | None) -> None:
        if self._journal is None or not reservation:
            return
        try:
            self._journal.write(Outcome(kind=kind, id=reservation, note=why and why[:200]))
        except CodeGatewayError as error:
            # How the render ended matters more. What is reserved counts, so nothing is lost but precision.
            log.warning(
                "The journal could not be told that a render was %s; it counts as reserved: %s",
                kind,
                error.args[0],
            )

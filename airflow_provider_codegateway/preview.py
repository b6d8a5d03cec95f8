"""What a purchase would do, and what it would cost."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from airflow_provider_codegateway.clip import Clip
from airflow_provider_codegateway.spend import Cost


@dataclass(frozen=True)
class Offer:
    """One render of one model.

    :param cost: None if no price is known.
    """

    model: str
    cost: Cost | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for XCom."""
        return {"model": self.model, "cost": None if self.cost is None else self.cost.as_dict()}


@dataclass(frozen=True)
class Preview:
    """What a purchase would do.

    :param clip: the clip, if it is in place already.
    :param is_paid: whether nothing would be bought: the clip is in place, or paid for and not yet delivered.
    :param offers: one render of each model that may be asked.
    """

    clip: Clip | None
    is_paid: bool
    offers: tuple[Offer, ...]

    @property
    def cheapest(self) -> Offer | None:
        """The one that costs least; None if it is not known what one of them costs."""
        priced = [
            (each.cost.amount, each) for each in self.offers if each.cost and each.cost.amount is not None
        ]
        return min(priced, key=itemgetter(0))[1] if len(priced) == len(self.offers) else None

    @property
    def dearest(self) -> Offer | None:
        """The one that may cost most; None if it is not known what one of them may cost."""
        priced = [
            (each.cost.at_most, each) for each in self.offers if each.cost and each.cost.at_most is not None
        ]
        return max(priced, key=itemgetter(0))[1] if len(priced) == len(self.offers) else None

"""What a render costs, by the owner's price list.

Amounts are ``Decimal``, made from strings only: a float has no exact cents. Nothing is rounded. What is not known is
None, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, field_validator, model_validator

_PLAIN_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
"""Few enough digits that no sum of a journal leaves the 28 of Python's decimal context."""

_PRICED = ("duration", "resolution", "generate_audio")

_DEFAULTS: dict[str, dict[str, Any]] = {
    "google/veo-3.1-fast": {"duration": 6, "resolution": "720p", "generate_audio": False},
    "bytedance/seedance-2.0": {"duration": 5, "resolution": "720p", "generate_audio": False},
    "minimax/hailuo-2.3-fast": {"resolution": "768p", "generate_audio": False},
}
"""What the vendor's guide documents for a parameter that is left open. It has no default duration for Hailuo."""


def parse_amount(value: object) -> Decimal:
    """An amount of money.

    :param value: a string such as ``"0.15"``, or a ``Decimal``.
    :raises ValueError: anything else; in words that follow the name of the field.
    """
    if isinstance(value, Decimal):
        value = format(value, "f")
    if isinstance(value, bool) or not isinstance(value, str):
        hint = f"{value}" if isinstance(value, int | float) and not isinstance(value, bool) else "0.15"
        raise ValueError(f'is {value!r}, not a string. Write amounts as strings, such as "{hint}"')
    if not _PLAIN_DECIMAL.fullmatch(value.strip()):
        raise ValueError(
            f'is {value!r}. Use plain digits such as "0.15": at most 9 before and 9 after the decimal point'
        )
    amount = Decimal(value.strip())
    if not amount:
        raise ValueError(f"is {value!r}. Use an amount above 0; what has no price is left out")
    return amount


def show_amount(amount: Decimal | None) -> str | None:
    """The amount as it is written everywhere: plain digits, none added, none dropped."""
    return None if amount is None else format(amount, "f")


Amount = Annotated[Decimal, BeforeValidator(parse_amount)]


def _currency(value: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise ValueError(f'is {value!r}. Use a code of three capital letters, such as "USD"')
    return value


Currency = Annotated[str, AfterValidator(_currency)]


_RESOLUTION = re.compile(r"\d{1,5}[pPkK]")


class Price(BaseModel):
    """One line of the price list. What a line leaves open, it leaves to every request."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str
    resolution: str | None = None
    generate_audio: bool | None = None
    per_second: Amount | None = None
    per_render: Amount | None = None

    @field_validator("resolution")
    @classmethod
    def _is_resolution(cls, value: str | None) -> str | None:
        # One that never matches would leave its renders to the next, perhaps cheaper, line.
        if value is not None and not _RESOLUTION.fullmatch(value):
            raise ValueError(f'is {value!r}. Write it as a request does, such as "1080p"')
        return value

    @model_validator(mode="after")
    def _has_one_rate(self) -> Self:
        if (self.per_second is None) == (self.per_render is None):
            raise ValueError("needs either per_second or per_render")
        return self

    def matches(self, render: PricedRender) -> bool | None:
        """Whether the line is for this render; None if that depends on what is not known."""
        if self.model != render.model:
            return False
        verdicts = [
            None if actual is None else wanted == actual
            for wanted, actual in (
                (self.resolution and self.resolution.lower(), render.resolution),
                (self.generate_audio, render.generate_audio),
            )
            if wanted is not None
        ]
        return False if False in verdicts else None if None in verdicts else True

    def asks_about(self) -> set[str]:
        """The parameters that the line looks at."""
        asked = {
            "resolution": self.resolution,
            "generate_audio": self.generate_audio,
            "duration": self.per_second,
        }
        return {name for name, value in asked.items() if value is not None}

    def amount(self, seconds: Decimal | None) -> Decimal | None:
        """What a render of so many seconds costs; None if it depends on seconds that are not known."""
        if self.per_render is not None:
            return self.per_render
        assert self.per_second is not None
        return None if seconds is None else self.per_second * seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without what the line leaves open."""
        return {
            name: show_amount(value) if isinstance(value, Decimal) else value
            for name, value in self
            if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class PricedRender:
    """What a price can depend on.

    :param seconds: the clip's duration, None if neither the request nor the vendor's guide says it.
    :param assumed: the parameters that the request left open and the guide has a default for.
    """

    model: str
    seconds: Decimal | None
    resolution: str | None
    generate_audio: bool | None
    assumed: frozenset[str]

    @staticmethod
    def parameters(body: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a request that its price depends on, as they are."""
        return {name: body[name] for name in _PRICED if body.get(name) is not None}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """What the price of a request depends on.

        :param body: the JSON body that is sent, as ``VideoRequest.body`` has it.
        """
        model = str(body.get("model"))
        defaults = _DEFAULTS.get(model, {})
        is_open = {name for name in _PRICED if body.get(name) is None}
        values = {**defaults, **{name: value for name, value in body.items() if name not in is_open}}
        resolution, audio = values.get("resolution"), values.get("generate_audio")
        return cls(
            model=model,
            seconds=_seconds(values.get("duration")),
            resolution=resolution.lower() if isinstance(resolution, str) else None,
            generate_audio=audio if isinstance(audio, bool) else None,
            assumed=frozenset(is_open & defaults.keys()),
        )


def _seconds(duration: object) -> Decimal | None:
    if isinstance(duration, bool) or not isinstance(duration, int | float | str):
        return None
    text = str(duration).strip().lower().removesuffix("s").strip()
    return Decimal(text) if _PLAIN_DECIMAL.fullmatch(text) and Decimal(text) else None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What something costs.

    :param amount: None if it is not known.
    :param at_most: the worst price that is possible, if there is one. Of a single render the same as ``amount`` where
        that is known.
    :param assumed: parameters that the request left open, counted as the model's documented defaults.
    :param price: the line of the price list; of several that are possible, the dearest.
    """

    amount: Decimal | None
    at_most: Decimal | None
    currency: str
    assumed: tuple[str, ...] = ()
    price: Mapping[str, Any] | None = None

    def of_renders(self, *, bought: int, perhaps: int = 0) -> Self:
        """The cost of several such renders.

        :param perhaps: further ones, of which it is not known whether they were bought.
        """
        return type(self)(
            amount=None if self.amount is None else self.amount * bought,
            at_most=None if self.at_most is None else self.at_most * (bought + perhaps),
            currency=self.currency,
            assumed=self.assumed,
            price=self.price,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: amounts are strings."""
        return {
            "amount": show_amount(self.amount),
            "at_most": show_amount(self.at_most),
            "currency": self.currency,
            "assumed": list(self.assumed),
            "price": None if self.price is None else dict(self.price),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``."""
        amounts = {
            name: None if values.get(name) is None else Decimal(values[name])
            for name in ("amount", "at_most")
        }
        return cls(
            currency=values["currency"],
            assumed=tuple(values.get("assumed") or ()),
            price=values.get("price"),
            **amounts,
        )


def cost_of_chain(costs: Sequence[Cost | None]) -> Cost | None:
    """What one render of a chain costs: as the first model, and at most as the dearest.

    :return: None if the first model has no price; ``at_most`` is None if another has none.
    """
    first = costs[0]
    known = [each.at_most for each in costs if each is not None and each.at_most is not None]
    if first is None or len(costs) == 1:
        return first
    return replace(first, at_most=max(known) if len(known) == len(costs) else None)


def cost_of(render: PricedRender, prices: Iterable[Price], currency: str) -> Cost | None:
    """What a render costs: the first line that matches. None if the list has no price for it.

    Where it is not known whether a line matches, each line down to the first sure one is possible.
    """
    possible: list[Price] = []
    asked: set[str] = set()
    for price in prices:
        if price.model != render.model:
            continue
        matches = price.matches(render)
        asked |= price.asks_about() - ({"duration"} if matches is False else set())
        if matches is not False:
            possible.append(price)
        if matches:
            break
    else:
        return None
    amounts = [price.amount(render.seconds) for price in possible]
    known = [amount for amount in amounts if amount is not None]
    at_most = max(known) if len(known) == len(amounts) else None
    is_sure = len(possible) == 1 or (at_most is not None and min(known) == at_most)
    return Cost(
        amount=at_most if is_sure else None,
        at_most=at_most,
        currency=currency,
        assumed=tuple(sorted(asked & render.assumed)),
        price=possible[amounts.index(at_most) if at_most is not None else -1].as_dict(),
    )

"""Everything that can go wrong, and whether it cost money.

::

    CodeGatewayError                    an AirflowException; `bought` says whether money was spent
    ├── InvalidRequest        no       our own validation                      fails the task, a ValueError
    ├── InvalidConnection     no       no or malformed API key, base URL       fails the task
    ├── InvalidTarget         no       S3 key taken, bucket missing            fails the task
    ├── BudgetExceeded        no       a budget or max_cost has no room        fails the task
    ├── MediaUnavailable      no       an input's host did not answer          retried by Airflow
    ├── StorageUnavailable    no       S3 did not answer a free check          retried by Airflow
    ├── LedgerConflict        perhaps  the key's ledger is another request's   fails the task
    ├── RequestRejected       no       refused before anything handled it      fails the task
    │   └── ContentRefused    no       the model's policy refused the content  fails the task
    ├── GatewayUnavailable    no       not sent whole, or its own 429 or 503   retried, then by Airflow
    ├── RenderOutcomeUnknown  perhaps  sent, and no whole answer               retried by Airflow
    ├── ClipTransferError     yes      download or upload failed               retried by Airflow
    ├── ClipExpired           yes      the link expired before storing         retried by Airflow
    ├── ClipMismatch          yes      stored, and not what was asked for      fails the task
    ├── RenderLimitReached    yes      max_renders is used up                  fails the task
    └── BatchIncomplete       by rows  more rows failed than tolerated         retried by Airflow
        └── BatchRefused      by rows  the same, and a retry cannot help       fails the task

"Fails the task" means an ``AirflowFailException``: Airflow does not retry what a retry cannot help.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Self

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_codegateway.foreign import safe_lines


class Bought(Enum):
    """Whether a render was bought. The value is the last line of every message."""

    NO = "Nothing was bought."
    PERHAPS = "One render may have been bought."
    YES = "One render was bought."


_FACTS = ("status", "retry_after", "renders", "perhaps", "cost")

LONGEST_MESSAGE = 20_000
"""Characters. A message may have words of others in it, and goes into Airflow's database with a trigger's event."""


class CodeGatewayError(AirflowException):
    """Base of every error of this provider.

    :param message: what was wrong, with which value, and what to do. Never holds the API key, the query of a
        presigned URL, or media bytes.
    :param bought: whether money was spent, where the class alone does not say.
    """

    bought: Bought = Bought.PERHAPS
    renders: int = 0
    """How many renders were bought, where that is counted."""
    perhaps: int = 0
    """How many more may have been, where that is counted."""
    cost: Mapping[str, Any] | None = None
    """What the renders of the clip cost so far, as ``spend.Cost.as_dict``; None if nothing was bought, or no price is
    known."""

    def __init__(self, message: str, *, bought: Bought | None = None) -> None:
        super().__init__(safe_lines(str(message), LONGEST_MESSAGE))
        if bought is not None:
            self.bought = bought

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.money}"

    @property
    def money(self) -> str:
        """Whether anything was bought, in a sentence."""
        if self.renders + self.perhaps < 2:
            return self.bought.value
        known = "1 render was bought" if self.renders == 1 else f"{self.renders:,} renders were bought"
        if not self.renders:
            return f"{self.perhaps:,} renders may have been bought."
        return f"{known}, and {self.perhaps:,} more may have been." if self.perhaps else f"{known}."

    def count(self, renders: int, perhaps: int) -> Self:
        """Say how many renders were bought, and how many more may have been."""
        self.renders, self.perhaps = renders, perhaps
        self.bought = Bought.YES if renders else Bought.PERHAPS if perhaps else Bought.NO
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the way from the triggerer to the worker; see ``from_dict``."""
        facts: dict[str, Any] = {name: vars(self)[name] for name in _FACTS if name in vars(self)}
        ours = [item.__name__ for item in type(self).__mro__ if issubclass(item, CodeGatewayError)]
        if bases := ours[1:-1]:
            facts["bases"] = bases
        return {"class": type(self).__name__, "message": self.args[0], "bought": self.bought.name, **facts}


class InvalidRequest(CodeGatewayError, AirflowFailException, ValueError):
    """The request breaks a rule of its model. Lists every problem at once.

    :param problems: one sentence for each problem.
    """

    bought = Bought.NO

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(
            self.problems[0]
            if len(self.problems) == 1
            else "\n".join(
                [f"{len(self.problems)} problems:", *(f"- {problem}" for problem in self.problems)]
            )
        )


class InvalidConnection(CodeGatewayError, AirflowFailException):
    """The Airflow connection cannot be used as it stands: no API key, or a malformed field."""

    bought = Bought.NO


class InvalidTarget(CodeGatewayError, AirflowFailException):
    """The clip cannot go to its key: the key is taken, or the bucket is missing or closed to us."""

    bought = Bought.NO


class BudgetExceeded(CodeGatewayError, AirflowFailException):
    """A budget of the connection, or the author's ``max_cost``, has no room for this render."""

    bought = Bought.NO


class MediaUnavailable(CodeGatewayError):
    """The host of an input image or video could not be reached, or did not answer in full. Later it may."""

    bought = Bought.NO


class StorageUnavailable(CodeGatewayError):
    """S3 did not answer a check that precedes the purchase. Later it may."""

    bought = Bought.NO


class LedgerConflict(CodeGatewayError, AirflowFailException):
    """The ledger entry of this clip belongs to another request, or was not written by this provider."""

    bought = Bought.PERHAPS


class RequestRejected(CodeGatewayError, AirflowFailException):
    """The gateway, or a proxy on the way, refused the request: the same one will be refused again.

    :param status: the HTTP status.
    """

    bought = Bought.NO

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ContentRefused(RequestRejected):
    """The model's policy refused the prompt or the input media."""


class GatewayUnavailable(CodeGatewayError):
    """The gateway could not be reached, was not sent the whole request, or began nothing (its own 429 or 503).

    :param retry_after: seconds after which the gateway asked to be tried again, if it said so.
    :param status: the HTTP status of CodeGateway's own answer; 0 if another answered in its place, or nobody.
    """

    bought = Bought.NO

    def __init__(self, message: str, *, retry_after: float | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class RenderOutcomeUnknown(CodeGatewayError):
    """The request was sent and no whole, usable answer came back.

    ``bought`` is ``PERHAPS``, or ``YES`` where the gateway answered 200 without a usable clip URL.
    """

    bought = Bought.PERHAPS


class ClipTransferError(CodeGatewayError):
    """The clip was rendered and could not be brought to S3. Nothing was left in the bucket."""

    bought = Bought.YES


class ClipExpired(CodeGatewayError):
    """The clip was rendered, and its link ran out before the clip was stored."""

    bought = Bought.YES


class ClipMismatch(CodeGatewayError, AirflowFailException):
    """The clip is stored, kept, and not what was asked for. It is never bought again by itself.

    Raised with ``on_mismatch="fail"`` only. The differences are in the XCom ``clip`` as well, as ``mismatches``.
    """

    bought = Bought.YES


class RenderLimitReached(CodeGatewayError, AirflowFailException):
    """As many renders as ``max_renders`` allows were begun, and none of them became a clip.

    The message says when each was begun, with what outcome, and how to allow another.
    """

    bought = Bought.YES


class BatchIncomplete(CodeGatewayError):
    """More rows of a batch ended without a clip than ``tolerated_failures`` allows. The manifest names each.

    :param renders: how many renders this DAG run has bought for the batch.
    :param perhaps: how many more it may have bought.
    """

    def __init__(self, message: str, *, renders: int = 0, perhaps: int = 0) -> None:
        super().__init__(message)
        self.renders, self.perhaps = renders, perhaps
        self.bought = Bought.PERHAPS if perhaps else Bought.YES if renders else Bought.NO


class BatchRefused(BatchIncomplete, AirflowFailException):
    """As ``BatchIncomplete``, and another attempt would end the same way: there is something to change first."""


def from_dict(error: dict[str, Any]) -> CodeGatewayError:
    """The error that ``CodeGatewayError.as_dict`` described, perhaps in another version.

    A class that this version does not know becomes the nearest one that it knows.
    """
    names = (error.get("class"), *error.get("bases", ()))
    error_class = next((_CLASSES[name] for name in names if name in _CLASSES), CodeGatewayError)
    made = error_class(str(error.get("message", "The trigger did not say what failed.")))
    made.bought = Bought.__members__.get(str(error.get("bought")), Bought.PERHAPS)
    for name in _FACTS:
        if name in error and hasattr(made, name):
            setattr(made, name, error[name])
    return made


_CLASSES: dict[str, type[CodeGatewayError]] = {
    name: item
    for name, item in list(globals().items())
    if isinstance(item, type) and issubclass(item, CodeGatewayError)
}

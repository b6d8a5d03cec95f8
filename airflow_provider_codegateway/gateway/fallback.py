"""When another model may be asked. A plain function of the error and of what the author allows.

The rule: only what *provably* sold nothing, and for a reason that another model may not have.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from airflow_provider_codegateway.clip import PassedOver
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    GatewayUnavailable,
    RequestRejected,
)

FALLBACK_ON = ("unavailable", "rejected")
"""``unavailable``: the model is down, busy or not known to the gateway. ``rejected``: it refuses this request."""

_UNAVAILABLE = frozenset({429, 503})
_UNKNOWN_MODEL = 404
_REJECTED = frozenset({400, 413, 422})


def reason_to_fall_back(error: CodeGatewayError, fallback_on: Collection[str]) -> str | None:
    """Why the next model of a chain may be asked after this error, in a few words; None if it may not.

    A key or balance that is refused, and a gateway that cannot be reached, are the same for every model. After a render
    that was or may have been bought, no other model is ever asked.

    :param fallback_on: see ``FALLBACK_ON``.
    """
    if error.bought is not Bought.NO:
        return None
    match error:
        case GatewayUnavailable(status=status) if status in _UNAVAILABLE and "unavailable" in fallback_on:
            return f"unavailable ({status})"
        case RequestRejected(status=status) if status == _UNKNOWN_MODEL and "unavailable" in fallback_on:
            return f"unknown model ({status})"
        case RequestRejected(status=status) if status in _REJECTED and "rejected" in fallback_on:
            return f"rejected ({status})"
    return None


def error_of_chain(
    turned_down: Sequence[tuple[PassedOver, CodeGatewayError]], model: str, error: CodeGatewayError
) -> CodeGatewayError:
    """What to raise where other models were asked before in vain: it says what each of them said.

    :param turned_down: the models before, and their errors.
    :param model: the last one.
    :param error: its error.
    """
    passed = "; ".join(f"{each['model']}: {each['reason']}" for each, _ in turned_down)
    words = f"No model could be used. {passed}; {model}: {error.args[0]}"
    errors = (*(each for _, each in turned_down), error)
    busy = [each for each in errors if isinstance(each, GatewayUnavailable)]
    is_for_all = isinstance(error, RequestRejected) and error.status in (401, 403)
    if busy and not is_for_all:
        # A retry may find it free. Without its fallbacks the task would be retried, too.
        waits = [each.retry_after for each in busy if each.retry_after is not None]
        return GatewayUnavailable(words, retry_after=min(waits, default=None), status=busy[0].status)
    error.args = (words,)
    return error

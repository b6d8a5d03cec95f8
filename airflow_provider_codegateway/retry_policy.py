"""When Airflow should try again, for Airflow 3.3 and later.

Older versions have no retry policies; there the exceptions alone do the right thing: what a retry cannot
help is an ``AirflowFailException``, everything else waits for the task's ``retry_delay``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from airflow_provider_codegateway.exceptions import ClipTransferError, GatewayUnavailable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

TRANSFER_RETRY_DELAY = timedelta(seconds=30)
"""A paid clip waits behind a link that expires: the usual five minutes would be a waste of its time."""


class CodeGatewayRetryPolicy(RetryPolicy):
    """Retries when the gateway asked for it, and a paid clip's transfer soon; all else as the task says.

    It never retries more often than the task's ``retries``. ``GenerateVideoOperator`` uses it unless the
    author sets ``retry_policy``; to combine it with others, put it into a ``ChainRetryPolicy``.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide by the class of the exception; see ``exceptions``."""
        if isinstance(exception, GatewayUnavailable) and exception.retry_after is not None:
            return RetryDecision.retry(
                timedelta(seconds=exception.retry_after),
                f"the gateway asked for {exception.retry_after:g} s",
            )
        if isinstance(exception, ClipTransferError):
            return RetryDecision.retry(TRANSFER_RETRY_DELAY, "the clip is paid, and its link expires")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """No settings, so nothing to keep."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> CodeGatewayRetryPolicy:
        """The inverse of ``serialize``."""
        return cls()

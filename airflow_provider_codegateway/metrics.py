"""What was bought, reused and refused, in Airflow's own metrics (StatsD, DogStatsD, OpenTelemetry).

The names are documented in docs/metrics.md. No metric ever fails a task, or holds up an event loop.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.exceptions import Bought, CodeGatewayError
from airflow_provider_codegateway.gateway import StoppedUnsent

if TYPE_CHECKING:
    from airflow_provider_codegateway.clip import Clip
    from airflow_provider_codegateway.gateway import Answer, Buyer, LoadContent
    from airflow_provider_codegateway.spend import Cost

log = logging.getLogger(__name__)

BEGUN = "codegateway.renders.begun"
BOUGHT = "codegateway.renders.bought"
UNKNOWN = "codegateway.renders.unknown"
SPENT = "codegateway.renders.cost"
REFUSED = "codegateway.renders.refused"
REUSED = "codegateway.renders.reused"
FALLBACK = "codegateway.renders.fallback"
IN_FLIGHT = "codegateway.renders.in_flight"
DURATION = "codegateway.render.duration"
CLIP_BYTES = "codegateway.clip.bytes"

LONGEST_TAG = 64
"""Characters."""


class MeteredBuyer:
    """A buyer whose renders are counted.

    :param buyer: what buys.
    :param model: for the metrics' tag.
    :param cost: of one render, if it is known.
    """

    def __init__(self, buyer: Buyer, model: str, cost: Cost | None = None) -> None:
        self._buyer = buyer
        self._model = model
        self._cost = cost

    async def generate(self, content: LoadContent) -> Answer:
        """Buy one render."""
        _aside(_begin, self._model)
        bought, seconds = Bought.PERHAPS, None  # also when we are cancelled, or something of ours breaks
        try:
            answer = await self._buyer.generate(content)
            bought, seconds = Bought.YES, answer.render_seconds
            return answer
        except CodeGatewayError as error:
            bought = error.bought
            raise
        except StoppedUnsent:
            bought = Bought.NO
            raise
        finally:
            # Handed to a thread: nothing may come between an answer and its way into the ledger.
            _aside(_end, self._model, bought, seconds)
            if bought is Bought.YES and self._cost is not None and self._cost.amount is not None:
                # Counters are whole numbers: millionths, of which a price per second has some.
                millionths = int(self._cost.amount * 1_000_000)
                _aside(_spend, millionths, self._model, self._cost.currency)


def failed(error: CodeGatewayError, model: object) -> None:
    """Count an error that bought nothing; what others bought is counted when it is bought."""
    if error.bought is Bought.NO:
        _count(REFUSED, model=model, error=type(error).__name__)


def clip_delivered(clip: Clip) -> None:
    """Count a clip that a task hands over."""
    if clip.reused:
        _count(REUSED, model=clip.model)
        return
    _count(CLIP_BYTES, clip.bytes, model=clip.model)
    for passed in clip.fallback or ():
        reason = passed["reason"].partition(" (")[0]
        _count(FALLBACK, model=clip.model, instead_of=passed["model"], reason=reason)


def clip_delivered_aside(clip: Clip) -> None:
    """As ``clip_delivered``, without holding up an event loop."""
    _aside(clip_delivered, clip)


_in_flight = 0


def _begin(model: str) -> None:
    _count(BEGUN, model=model)
    _change_in_flight(+1)


def _end(model: str, bought: Bought, seconds: float | None) -> None:
    _change_in_flight(-1)
    if bought is not Bought.NO:
        _count(BOUGHT if bought is Bought.YES else UNKNOWN, model=model)
    if seconds is not None:
        # A timedelta: each backend has its own idea of the unit of a plain number.
        _send("timing", DURATION, timedelta(seconds=seconds), model=model)


def _spend(millionths: int, model: str, currency: str) -> None:
    _count(SPENT, millionths, model=model, currency=currency)


def _change_in_flight(change: int) -> None:
    """Only ever called in the metrics' own thread, so that nothing is lost."""
    global _in_flight
    _in_flight += change
    _send("gauge", IN_FLIGHT, _in_flight, host=socket.gethostname())


def _count(name: str, number: int = 1, **tags: object) -> None:
    _send("incr", name, number, **tags)


def _send(kind: str, name: str, value: object, **tags: object) -> None:
    try:
        from airflow.providers.common.compat.sdk import Stats

        getattr(Stats, kind)(name, value, tags={tag: _tag(text) for tag, text in tags.items()})
    except Exception:
        log.debug("The metric %s could not be sent.", name, exc_info=True)


def _tag(value: object) -> str:
    text = value if isinstance(value, str) else "unknown"
    return re.sub(r"[^\w./:-]", "_", text)[:LONGEST_TAG]


def _aside(function: Callable[..., None], *args: Any) -> None:
    """Run ``function`` in the metrics' own thread, after what was handed to it before. Nobody waits."""
    try:
        _thread(os.getpid()).submit(function, *args)
    except RuntimeError:  # the process is ending
        log.debug("A metric came too late to be sent.")


@functools.cache
def _thread(pid: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork, and Airflow forks.
    return ThreadPoolExecutor(1, thread_name_prefix="codegateway-metrics")

"""How many rows may be under way, and when. One back-off for all of them: they meet the same rate limit."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque

from airflow_provider_codegateway.exceptions import CodeGatewayError, GatewayUnavailable
from airflow_provider_codegateway.limits import LIMITS, Limits

log = logging.getLogger(__name__)


class Stopped(Exception):
    """No more rows are begun."""


class Pace:
    """Lets rows begin: as many at a time as are allowed, and none during a pause.

    Each pause halves how many may be under way, and each clip allows one more, up to ``most``.

    :param most: rows at a time.
    :param retries: pauses in a row after which it may be time to give up.
    :param patience: seconds without progress after which it is. A render that is under way ends within them.
    """

    def __init__(self, most: int, *, retries: int, patience: float, limits: Limits = LIMITS) -> None:
        self._most = self._allowed = most
        self._retries = retries
        self._patience = patience
        self._limits = limits
        self._active = 0
        self._pauses = 0
        self._is_paused = False
        self._progress_at = time.monotonic()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_stopped = False

    async def begin(self) -> None:
        """Wait for a turn, which ``end`` gives back.

        :raises Stopped: no more rows may begin.
        """
        if self._is_stopped:
            raise Stopped
        if not self._waiting and self._has_room():
            self._active += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def end(self) -> None:
        """The row has ended."""
        self._active -= 1
        self._admit()

    def progress(self) -> None:
        """Somebody got an answer: the gateway and S3 are there."""
        self._progress_at = time.monotonic()
        self._pauses = 0
        self._allowed = min(self._most, self._allowed + 1)
        self._admit()

    def pause(self, error: CodeGatewayError) -> bool:
        """Hold everybody up, as the gateway or S3 asked for it; False if it is time to give up."""
        if self._is_paused:
            return True  # what was refused had begun before the pause
        if self._pauses >= self._retries and time.monotonic() - self._progress_at > self._patience:
            return False
        self._pauses += 1
        asked = error.retry_after if isinstance(error, GatewayUnavailable) else None
        backoff = min(2.0**self._pauses, self._limits.longest_backoff) * random.uniform(0.5, 1)  # noqa: S311
        delay = backoff if asked is None else asked + random.uniform(0, 1)  # noqa: S311
        if delay > self._limits.longest_pause:
            return False
        self._allowed = max(1, self._allowed // 2)
        self._is_paused = True
        asyncio.get_running_loop().call_later(delay, self._go_on)
        log.warning(
            "%s Trying again in %.1f s, with at most %d at a time.", error.args[0], delay, self._allowed
        )
        return True

    def stop(self) -> None:
        """Let no more rows begin."""
        self._is_stopped = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Stopped())

    def _has_room(self) -> bool:
        return self._active < self._allowed and not self._is_paused

    def _go_on(self) -> None:
        self._is_paused = False
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():
                self._active += 1
                turn.set_result(None)

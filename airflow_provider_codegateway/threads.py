"""Blocking work beside an event loop, in threads of our own.

asyncio's default threads are few and everybody's: there, a receipt would queue behind whole transfers, and
behind other people's triggers.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, TypeVar

Result = TypeVar("Result")
Work = Literal["ledger", "receipt", "transfer", "journal", "inputs"]

# A transfer has about 30 MiB in memory. More threads than these are not faster, as Python runs one at a time,
# and hold up the event loop: 600 renders that ended at once held it for up to 0.7 s with 8 and 16, 0.4 s so.
# Of the journal's threads one writes for all of them, and the others only wait: with fewer, 500 claims became too old
# before their turn came.
_THREADS: dict[Work, int] = {"ledger": 4, "receipt": 6, "transfer": 3, "journal": 128, "inputs": 4}


async def to_the_end(
    work: Work,
    function: Callable[..., Result],
    *args: Any,
    on_cancel: Callable[[], None] | None = None,
    **kwargs: Any,
) -> Result:
    """Run ``function`` in a thread, to its end even if we are cancelled: a marker half written is a lie.

    :param on_cancel: called first when we are cancelled, to tell the function.
    """
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    # A future and no task: when its loop ends, asyncio cancels every task, shielded or not.
    running = asyncio.wrap_future(_pool(work, os.getpid()).submit(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # seen; the cancellation is what is raised
        raise


@functools.cache
def _pool(work: Work, pid: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork, and Airflow forks.
    return ThreadPoolExecutor(_THREADS[work], thread_name_prefix=f"codegateway-{work}")

"""One coroutine, run to its end on a loop of its own while the caller waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class BlockingCall:
    """Runs one coroutine on a loop of its own, in a thread of its own.

    The caller's thread stays free for signals, and ``cancel`` may come from a signal handler: that is
    how ``on_kill`` closes the connection of a running render.
    """

    def __init__(self) -> None:
        self._is_cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result; whatever interrupts the wait cancels it first."""
        loop = asyncio.new_event_loop()
        task = loop.create_task(main)
        self._loop, self._task = loop, task
        if self._is_cancelled:
            task.cancel()
        with ThreadPoolExecutor(1, thread_name_prefix="codegateway") as thread:
            future = thread.submit(loop.run_until_complete, task)
            try:
                return future.result()
            except BaseException:
                self.cancel()
                raise
            finally:
                thread.submit(loop.run_until_complete, loop.shutdown_asyncgens()).result()
                self._loop = self._task = None
                thread.submit(loop.close).result()

    def cancel(self) -> bool:
        """Cancel what runs, or what is about to; True if something ran."""
        self._is_cancelled = True
        loop, task = self._loop, self._task
        if loop is None or task is None or task.done():
            return False
        loop.call_soon_threadsafe(task.cancel)
        return True

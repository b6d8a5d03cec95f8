"""One client for each connection, shared by all triggers of a process.

A client of its own costs a trigger most of a megabyte, and the event loop the time to build it; a triggerer
holds a thousand triggers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Client = TypeVar("Client")


@dataclass
class _Shared(Generic[Client]):
    client: asyncio.Task[Client]
    users: int = field(default=0)


class SharedClients(Generic[Client]):
    """Clients by key: made by the first that asks, closed when the last leaves.

    :param make: makes a client for a key.
    :param close: closes one.
    """

    def __init__(
        self, make: Callable[[Any], Awaitable[Client]], close: Callable[[Client], Awaitable[None]]
    ) -> None:
        self._make = make
        self._close = close
        self._shared: dict[Hashable, _Shared[Client]] = {}

    @asynccontextmanager
    async def lease(self, key: Hashable) -> AsyncIterator[Client]:
        """The client for ``key``, for the length of a ``with`` block.

        Clients belong to an event loop, so each loop has its own.
        """
        place = (asyncio.get_running_loop(), key)
        shared = self._shared.get(place)
        if shared is None:
            shared = _Shared(asyncio.ensure_future(self._make(key)))
            self._shared[place] = shared
        shared.users += 1
        try:
            # Shielded: one trigger that is cancelled must not take the client from the others.
            yield await asyncio.shield(shared.client)
        finally:
            shared.users -= 1
            if not shared.users:
                del self._shared[place]
                await self._discard(shared.client)

    async def _discard(self, making: asyncio.Task[Client]) -> None:
        if not making.done():
            making.cancel()
        elif not making.cancelled() and making.exception() is None:
            await self._close(making.result())

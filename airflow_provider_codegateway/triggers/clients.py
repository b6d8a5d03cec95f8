"""One client for each connection, shared by all triggers of a process.

A client of its own costs a trigger most of a megabyte, and the event loop the time to build it; a triggerer
holds a thousand triggers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Client = TypeVar("Client")


@dataclass
class _Shared(Generic[Client]):
    client: asyncio.Task[Client]
    users: int = 0
    expiry: asyncio.TimerHandle | None = None


class SharedClients(Generic[Client]):
    """Clients by key: made by the first that asks, closed some time after the last has left.

    :param make: makes a client for a key.
    :param close: closes one.
    :param idle_seconds: for how long a client without users is kept, as making one holds up the loop.
    """

    def __init__(
        self,
        make: Callable[[Any], Awaitable[Client]],
        close: Callable[[Client], Awaitable[None]],
        *,
        idle_seconds: float = 0,
    ) -> None:
        self._make = make
        self._close = close
        self._idle_seconds = idle_seconds
        self._shared: dict[tuple[asyncio.AbstractEventLoop, Hashable], _Shared[Client]] = {}
        self._closing: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task alive

    @asynccontextmanager
    async def lease(self, key: Hashable) -> AsyncIterator[Client]:
        """The client for ``key``, for the length of a ``with`` block.

        Clients belong to an event loop, so each loop has its own.
        """
        self._forget_ended_loops()
        place = (asyncio.get_running_loop(), key)
        shared = self._shared.get(place)
        if shared is None:
            shared = _Shared(asyncio.ensure_future(self._make(key)))
            self._shared[place] = shared
        if shared.expiry is not None:
            shared.expiry.cancel()
        shared.users += 1
        try:
            # Shielded: one trigger that is cancelled must not take the client from the others.
            yield await asyncio.shield(shared.client)
        finally:
            shared.users -= 1
            if not shared.users:
                if self._idle_seconds and _made(shared.client):
                    shared.expiry = place[0].call_later(self._idle_seconds, self._expire, place)
                else:
                    del self._shared[place]
                    await self._discard(shared.client)

    def _expire(self, place: tuple[asyncio.AbstractEventLoop, Hashable]) -> None:
        closing = place[0].create_task(self._discard(self._shared.pop(place).client))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _discard(self, making: asyncio.Task[Client]) -> None:
        if _made(making):
            await self._close(making.result())
        else:
            making.cancel()

    def _forget_ended_loops(self) -> None:
        for place in [place for place in self._shared if place[0].is_closed()]:
            del self._shared[place]


def _made(client: asyncio.Task[Client]) -> bool:
    return client.done() and not client.cancelled() and client.exception() is None

"""Clients that the triggers of a process share."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_codegateway.triggers.clients import SharedClients


class Client:
    """Something to share, which says when it is closed."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.closed = asyncio.Event()


async def make(key: str) -> Client:
    return Client(key)


async def close(client: Client) -> None:
    client.closed.set()


def test_those_that_come_together_share_one_client_for_each_key() -> None:
    """Who comes while others wait for the client to be made waits for the same one."""

    async def use() -> None:
        clients = SharedClients(make, close)
        everyone_in = asyncio.Barrier(3)

        async def user(key: str) -> Client:
            async with clients.lease(key) as client:
                await everyone_in.wait()
                assert not client.closed.is_set()
                return client

        first, second, other = await asyncio.gather(user("a"), user("a"), user("b"))
        assert first is second
        assert other.key == "b"
        assert first.closed.is_set()

    asyncio.run(use())


def test_a_client_outlives_its_last_user_for_the_next_one() -> None:
    """Making it again would hold up the loop; after a while without users it is closed all the same."""

    async def use() -> None:
        patient, hasty = (SharedClients(make, close, idle_seconds=seconds) for seconds in (3600, 0.001))
        for clients in (patient, hasty):
            async with clients.lease("a") as first:
                pass
            if clients is patient:
                async with clients.lease("a") as second:
                    assert second is first
                    assert not first.closed.is_set()
            else:
                await asyncio.wait_for(first.closed.wait(), 60)
                async with clients.lease("a") as second:
                    assert second is not first

    asyncio.run(use())


def test_a_client_belongs_to_its_loop() -> None:
    """A loop that has ended left a client that nobody can use any more."""
    clients = SharedClients(make, close, idle_seconds=3600)

    async def lease() -> Client:
        async with clients.lease("a") as client:
            return client

    assert asyncio.run(lease()) is not asyncio.run(lease())
    assert len(clients._shared) == 1


def test_a_client_that_cannot_be_made_is_tried_anew_by_the_next_user() -> None:
    """Its error reaches whoever wanted it, and is not kept."""
    failures = [OSError("no such host")]

    async def make_at_last(key: str) -> Client:
        if failures:
            raise failures.pop()
        return Client(key)

    async def use() -> None:
        clients = SharedClients(make_at_last, close, idle_seconds=3600)
        with pytest.raises(OSError, match="no such host"):
            async with clients.lease("a"):
                pass
        async with clients.lease("a") as client:
            assert client.key == "a"

    asyncio.run(use())


def test_a_cancelled_user_takes_the_client_from_nobody() -> None:
    """Its task may be cleared while the client is being made."""

    async def use() -> None:
        ready = asyncio.Event()

        async def make_when_ready(key: str) -> Client:
            await ready.wait()
            return Client(key)

        clients = SharedClients(make_when_ready, close)

        async def user() -> str:
            async with clients.lease("a") as client:
                return client.key

        cancelled, other = asyncio.create_task(user()), asyncio.create_task(user())
        await asyncio.sleep(0)
        cancelled.cancel()
        ready.set()
        assert await other == "a"
        assert cancelled.cancelled()

    asyncio.run(use())

"""Uvicorn's HTTP protocol in a thread, on a socket of our own that can be closed and opened again."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .responses import abort

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from starlette.types import ASGIApp

_BACKLOG = 2048
_IDLE_SECONDS = 75

T = TypeVar("T")


class _Protocol(H11Protocol):
    """Tells the application which connection it is on, and never logs a URL: its query is a key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport, "drain": self.flow.drain}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


class Server:
    """Runs an application in a thread.

    :param certificate: a PEM file with its key, to speak TLS.
    """

    def __init__(self, host: str, port: int, certificate: Path | None = None) -> None:
        self.host, self.port = host, port
        self._tls = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate)
        self._state = ServerState()
        self._started: Future[None] = Future()

    def start(self, app: ASGIApp, close: Callable[[], Awaitable[None]]) -> None:
        """Listen. The port is bound on return.

        :param close: called on the server's loop when it ends, also where it never began to listen.
        :raises OSError: the port is taken.
        """
        self._thread = threading.Thread(
            target=self._run, args=(app, close), name="codegateway-emulator", daemon=True
        )
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Drop every connection and end the thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def listen(self) -> None:
        """Open the listening socket."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # The protocol is named because asyncio sets TCP_NODELAY only where it is: else an answer costs 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            self.port = listener.getsockname()[1]
            self._server = await self._loop.create_server(
                self._new_protocol, sock=listener, backlog=_BACKLOG, ssl=self._tls
            )
        except OSError:
            listener.close()
            raise
        self._listener = listener

    async def stop_listening(self) -> None:
        """Close the listening socket and the idle connections. What is in progress goes on."""
        # A process that was forked meanwhile may hold the socket too: closing ours would not end it.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        await self._stop_accepting()
        for connection in self._connections:
            connection.shutdown()
        # Only a client that has seen the close will not try such a connection again.
        for connection in list(self._connections):
            if connection.transport.is_closing():
                await connection.lost.wait()

    @property
    def _connections(self) -> list[_Protocol]:
        return [connection for connection in self._state.connections if isinstance(connection, _Protocol)]

    async def _stop_accepting(self) -> None:
        if not self._server.is_serving():
            return
        # A connection that is only half accepted when its server closes would be left open for good.
        self._loop.remove_reader(self._listener.fileno())
        await _turns(3)
        self._server.close()

    def _run(self, app: ASGIApp, close: Callable[[], Awaitable[None]]) -> None:
        try:
            asyncio.run(self._serve(app, close))
        except BaseException as problem:
            if self._started.done():
                raise
            self._started.set_exception(problem)

    async def _serve(self, app: ASGIApp, close: Callable[[], Awaitable[None]]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=_IDLE_SECONDS,
        )
        config.load()
        self._new_protocol = functools.partial(
            _Protocol, config=config, server_state=self._state, app_state={}
        )
        try:
            await self.listen()
            self._started.set_result(None)
            await self._stop.wait()
            await self._stop_accepting()
            for connection in self._connections:
                abort(connection.transport)
            await _turns(2)  # in which the requests learn that their clients are gone
        finally:
            await close()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)

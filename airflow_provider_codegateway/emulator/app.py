"""The emulator as an ASGI application: the gateway's endpoint, the clips' links, and the controls."""

from __future__ import annotations

import asyncio
import contextlib
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .calls import generate
from .control_endpoints import control_routes
from .downloads import clip

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .gateway import Gateway
    from .server import Server


def create_app(gateway: Gateway, server: Server) -> ASGIApp:
    """The whole emulator.

    :param server: what stops listening, and listens again, where a test wants the gateway down.
    """
    app = Starlette(
        routes=[
            Route("/v1/video/generate", generate, methods=["POST"]),
            Route("/clips/{id}.mp4", clip, methods=["GET"]),
            Route("/clips/{id}/{name}", clip, methods=["GET"]),
            *control_routes(),
        ],
        exception_handlers={HTTPException: _no_such_thing},
    )
    app.state.gateway = gateway
    app.state.server = server
    return _dated(app)


async def _no_such_thing(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    return JSONResponse({"error": problem.detail.lower()}, problem.status_code, problem.headers)


def _dated(app: ASGIApp) -> ASGIApp:
    """Give every answer its Date, and end quietly when the client leaves or the emulator stops."""

    async def dated(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect, asyncio.CancelledError):
            await app(scope, receive, partial(_send_dated, send))

    return dated


async def _send_dated(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        date = formatdate(usegmt=True).encode()
        message = {**message, "headers": [*message["headers"], (b"date", date)]}
    await send(message)

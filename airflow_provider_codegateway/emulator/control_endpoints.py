"""The controls under ``/_emulator``, for an emulator in another process."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .answers import plain_error
from .faults import fault_from_json
from .responses import Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from .gateway import Gateway
    from .server import Server


def control_routes() -> list[Route]:
    """Where the controls are."""
    controls = {
        "state": (_state, "GET"),
        "settings": (_settings, "PATCH"),
        "faults": (_faults, "POST"),
        "clear": (_clear, "POST"),
        "clip": (_served_clip, "PUT"),
        "wait": (_wait, "POST"),
        "reset": (_reset, "POST"),
        "down": (_down, "POST"),
    }
    return [Route(f"/_emulator/{name}", run, methods=[method]) for name, (run, method) in controls.items()]


async def _state(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return JSONResponse(
        {
            "api_key": gateway.api_key,
            "settings": dataclasses.asdict(gateway.settings),
            "ledger": [dataclasses.asdict(render) for render in gateway.ledger],
            "clip_requests": [dataclasses.asdict(clip_request) for clip_request in gateway.clip_requests],
        }
    )


async def _settings(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    try:
        gateway.change(**await request.json())
    except (TypeError, ValueError) as problem:
        return plain_error(400, str(problem))
    return Response(status_code=204)


async def _faults(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    order = await request.json()
    try:
        gateway.fail_next(fault_from_json(order["fault"]), order.get("times", 1), order.get("model"))
    except ValueError as problem:
        return plain_error(400, str(problem))
    return Response(status_code=204)


async def _clear(request: Request) -> Response:
    request.app.state.gateway.clear_faults()
    return Response(status_code=204)


async def _served_clip(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    if request.query_params.get("real") == "true":
        gateway.serve(None)
        return Response(status_code=204)
    path = gateway.new_file()
    with await run_in_threadpool(path.open, "wb") as file:
        async for chunk in request.stream():
            await run_in_threadpool(file.write, chunk)
    gateway.serve(Source.of(path))
    return Response(status_code=204)


async def _wait(request: Request) -> Response:
    order = await request.json()
    try:
        await request.app.state.gateway.wait_for(order["wanted"], order["timeout"])
    except TimeoutError as problem:
        return plain_error(408, str(problem))
    except ValueError as problem:
        return plain_error(400, str(problem))
    return Response(status_code=204)


async def _reset(request: Request) -> Response:
    request.app.state.gateway.reset()
    return Response(status_code=204)


async def _down(request: Request) -> Response:
    """Stay down for as long as this answer is being read: a test that dies brings the gateway back."""
    server: Server = request.app.state.server

    async def while_open() -> AsyncIterator[bytes]:
        await server.stop_listening()
        try:
            yield b"down\n"
            await asyncio.Event().wait()
        finally:
            # In a task of its own, because this one is being cancelled.
            await asyncio.shield(asyncio.ensure_future(server.listen()))

    return StreamingResponse(while_open(), media_type="text/plain")

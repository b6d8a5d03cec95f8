"""The endpoint that renders: reads a call, takes it on or refuses it, and answers."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from .answers import answer, answer_body, cut_short, error, json_source, plain_error, refusal, status
from .responses import Hang, disconnected
from .rules import InvalidRequest, VideoRequest, check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from .faults import Fault
    from .gateway import Accepted, Gateway

MAX_BODY_BYTES = 64 * 1024 * 1024
_KEEP_ALIVE_SECONDS = 1.0
_MALFORMED = object()


async def generate(request: Request) -> Response:
    """Render a clip, or do what the fault says whose turn it is."""
    gateway: Gateway = request.app.state.gateway
    arrival = gateway.arrive()
    cut = gateway.take_upload_fault()
    if cut is not None:
        await _read_some(request, cut.size)
        gateway.refuse(arrival, None, cut.code or None)
        return cut_short(cut)
    raw = await _read_body(request)
    body = None if raw is None else await run_in_threadpool(_decode, raw)
    fault = gateway.take_fault(_model_of(body))

    if fault is not None and fault.refuses:
        gateway.refuse(arrival, body, None if fault.kind == "reset" else fault.code)
        return await refusal(fault, request)
    if not _authorized(request, gateway.api_key):
        gateway.refuse(arrival, body, 401)
        return error(401)
    if raw is None:
        gateway.refuse(arrival, body, 413)
        return plain_error(413, f"request body exceeds {MAX_BODY_BYTES} bytes")
    try:
        if body is _MALFORMED:
            raise InvalidRequest("malformed JSON")
        video_request = await run_in_threadpool(_check, body, gateway.extra_models)
    except InvalidRequest as problem:
        gateway.refuse(arrival, body, 400)
        return plain_error(400, str(problem))

    accepted = gateway.accept(
        arrival,
        video_request,
        early_expiry=fault.seconds if fault is not None and fault.kind == "early_expiry" else None,
        container=fault.shape if fault is not None and fault.kind == "container" else None,
        wrong=fault.shape if fault is not None and fault.kind == "wrong_clip" else None,
    )
    del raw, body, video_request  # a render may take long, and a body may be large
    return await _accepted(accepted, fault, request)


async def _accepted(accepted: Accepted, fault: Fault | None, request: Request) -> Response:
    if fault is not None and fault.kind == "leading_whitespace":
        return StreamingResponse(_kept_alive(accepted, request), media_type="application/json")
    hung_up = asyncio.ensure_future(disconnected(request.receive))
    try:
        patience = None if fault is None else fault.gives_up_after
        await asyncio.wait({accepted.render, hung_up}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        is_gone = hung_up.done()
    finally:
        hung_up.cancel()
    if is_gone:
        accepted.amend(answered=False)
        return Hang()
    if not accepted.render.done():
        assert fault is not None
        accepted.amend(answered=True, status=fault.code)
        return status(fault)
    try:
        result = accepted.render.result()
    except Exception:  # logged where it happened
        return error(500)
    return await answer(fault, accepted, answer_body(result, request))


async def _kept_alive(accepted: Accepted, request: Request) -> AsyncIterator[bytes]:
    try:
        yield b"\n"
        while not (await asyncio.wait({accepted.render}, timeout=_KEEP_ALIVE_SECONDS))[0]:
            yield b" \n"
        body = answer_body(accepted.render.result(), request)
    except (asyncio.CancelledError, GeneratorExit):
        accepted.amend(answered=False)
        raise
    accepted.amend(answered=True, status=200)
    yield b" \n" + json_source(body).content_bytes


async def _read_some(request: Request, size: int) -> None:
    """Read at least `size` bytes of the body, if there are so many."""
    left = size
    if left <= 0:
        return
    async for chunk in request.stream():
        left -= len(chunk)
        if left <= 0:
            return


async def _read_body(request: Request) -> bytes | None:
    """The body; None where it is too large, and was read to its end so that the client reads the answer."""
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            body += chunk
    return bytes(body) if size <= MAX_BODY_BYTES else None


def _decode(raw: bytes) -> object:
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
        json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError):
        return _MALFORMED
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _model_of(body: Any) -> str | None:
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


def _check(body: object, extra_models: tuple[str, ...]) -> VideoRequest:
    """Check it, with all that takes long where a body holds images, so that a thread can do it."""
    request = check(body, extra_models)
    _ = request.fingerprint
    return request


def _authorized(request: Request, api_key: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {api_key}".encode())

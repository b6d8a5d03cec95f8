"""The gateway's endpoints, the clips' links, and the controls under ``/_emulator``."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import time
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from xml.sax.saxutils import escape

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from .faults import ClipFault, Fault, fault_from_json
from .ledger import ClipRequest
from .links import RangeNotSatisfiable, parse_range
from .responses import Body, Hang, Reset, Source, disconnected
from .rules import InvalidRequest, VideoRequest, check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .gateway import Accepted, Answer, Gateway, StoredClip
    from .server import Server

MAX_BODY_BYTES = 64 * 1024 * 1024
_KEEP_ALIVE_SECONDS = 1.0

_ERRORS: dict[int, tuple[str, str]] = {
    401: ("authentication_error", "invalid API key"),
    403: ("permission_denied", "insufficient balance"),
    429: ("rate_limit_error", "rate limit exceeded"),
    500: ("internal_error", "internal error"),
    502: ("upstream_error", "bad gateway"),
    503: ("overloaded_error", "no capacity, try again"),
    504: ("upstream_error", "upstream timed out"),
}


def create_app(gateway: Gateway, server: Server) -> ASGIApp:
    """The whole emulator as an ASGI application."""
    controls = {
        "state": (_state, "GET"),
        "settings": (_settings, "PATCH"),
        "faults": (_faults, "POST"),
        "clip": (_served_clip, "PUT"),
        "wait": (_wait, "POST"),
        "reset": (_reset, "POST"),
        "down": (_down, "POST"),
    }
    app = Starlette(
        routes=[
            Route("/v1/video/generate", _generate, methods=["POST"]),
            Route("/clips/{id}.mp4", _clip, methods=["GET"]),
            *(Route(f"/_emulator/{name}", run, methods=[method]) for name, (run, method) in controls.items()),
        ],
        exception_handlers={HTTPException: _no_such_thing},
    )
    app.state.gateway = gateway
    app.state.server = server
    return _dated(app)


# The gateway.


async def _generate(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    arrival = gateway.arrive()
    raw = await _read_body(request)
    fault = gateway.take_fault()
    body = None if raw is None else await run_in_threadpool(_decode, raw)

    if fault is not None and fault.refuses:
        gateway.refuse(arrival, body, None if fault.kind == "reset" else fault.code)
        return Reset() if fault.kind == "reset" else _status(fault)
    if not _authorized(request, gateway.api_key):
        gateway.refuse(arrival, body, 401)
        return _error(401)
    if raw is None:
        gateway.refuse(arrival, body, 413)
        return _plain_error(413, f"request body exceeds {MAX_BODY_BYTES} bytes")
    try:
        if body is _MALFORMED:
            raise InvalidRequest("malformed JSON")
        video_request = await run_in_threadpool(_check, body, gateway.extra_models)
    except InvalidRequest as problem:
        gateway.refuse(arrival, body, 400)
        return _plain_error(400, str(problem))

    early_expiry = fault.seconds if fault is not None and fault.kind == "early_expiry" else None
    accepted = gateway.accept(arrival, video_request, early_expiry=early_expiry)
    del raw, body, video_request  # a render may take long, and a body may be large
    if fault is not None and fault.kind == "leading_whitespace":
        return StreamingResponse(_kept_alive(accepted, request), media_type="application/json")
    if not await _finished_before_hang_up(accepted, request):
        accepted.amend(answered=False)
        return Hang()
    try:
        answer = accepted.render.result()
    except Exception:  # logged where it happened
        return _error(500)
    return _answer(fault, accepted, _answer_body(answer, request))


_MALFORMED = object()


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


def _check(body: object, extra_models: tuple[str, ...]) -> VideoRequest:
    """Check it, with all that takes long where a body holds images, so that a thread can do it."""
    request = check(body, extra_models)
    _ = request.fingerprint
    return request


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _authorized(request: Request, api_key: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {api_key}".encode())


async def _finished_before_hang_up(accepted: Accepted, request: Request) -> bool:
    hung_up = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({accepted.render, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        return not hung_up.done()
    finally:
        hung_up.cancel()


def _answer_body(answer: Answer, request: Request) -> dict[str, Any]:
    gateway: Gateway = request.app.state.gateway
    url = f"{request.url.scheme}://{request.url.netloc}{answer.path}"
    body: dict[str, Any] = {"created": answer.created, "model": answer.model, "serving": answer.serving}
    if answer.expires_at is not None:
        url += f"?{gateway.signer.query(answer.path, answer.expires_at)}"
        body["expires_at"] = answer.expires_at
    return {**body, "data": [{"url": url}]}


def _answer(fault: Fault | None, accepted: Accepted, body: dict[str, Any]) -> Response:
    """Answer a finished, billed render, or do to the answer what the fault says."""
    kind = fault.kind if fault is not None else None
    match fault, kind:
        case Fault(), "reset" | "hang":
            accepted.amend(answered=False)
            return Reset() if kind == "reset" else Hang()
        case Fault(), "truncated_body":
            accepted.amend(answered=False, status=200)
            source = _json_source(body)
            return Body(source, headers=_JSON, break_after=source.size // 2)
        case Fault(), "status":
            accepted.amend(answered=True, status=fault.code)
            return _status(fault)
        case Fault(), "html":
            accepted.amend(answered=True, status=fault.code)
            return _html(fault.code)
    accepted.amend(answered=True, status=200)
    match fault, kind:
        case Fault(), "slow_body":
            return Body(_json_source(body), headers=_JSON, bytes_per_second=fault.bytes_per_second)
        case Fault(), "no_url":
            return _without_url(body, fault.shape)
    return JSONResponse(body)


async def _kept_alive(accepted: Accepted, request: Request) -> AsyncIterator[bytes]:
    try:
        yield b"\n"
        while not (await asyncio.wait({accepted.render}, timeout=_KEEP_ALIVE_SECONDS))[0]:
            yield b" \n"
        body = _answer_body(accepted.render.result(), request)
    except (asyncio.CancelledError, GeneratorExit):
        accepted.amend(answered=False)
        raise
    accepted.amend(answered=True, status=200)
    yield b" \n" + _json_source(body).content_bytes


_JSON = {"content-type": "application/json"}


def _json_source(body: object) -> Source:
    return Source.of(json.dumps(body).encode())


def _without_url(body: dict[str, Any], shape: str) -> Response:
    rest = {name: value for name, value in body.items() if name != "data"}
    match shape:
        case "empty":
            return JSONResponse({**rest, "data": []})
        case "null":
            return JSONResponse({**rest, "data": None})
        case "no_item_url":
            return JSONResponse({**rest, "data": [{}]})
        case "blank":
            return JSONResponse({**rest, "data": [{"url": ""}]})
        case "error":
            error = {"error": {"type": "content_filtered", "message": "the prompt was filtered"}}
            return Response(f"\n \n  {json.dumps(error)}", media_type="application/json")
    return JSONResponse(rest)


def _status(fault: Fault) -> Response:
    headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after}"}
    if fault.as_html:
        return _html(fault.code, headers)
    if isinstance(fault.body, str):
        return Response(fault.body, fault.code, headers, media_type="text/plain")
    if fault.body is not None:
        return JSONResponse(fault.body, fault.code, headers)
    return _error(fault.code, headers)


def _error(code: int, headers: dict[str, str] | None = None) -> Response:
    if code == 400:
        return JSONResponse({"error": "bad request"}, code, headers)
    type_, message = _ERRORS.get(code, ("error", f"status {code}"))
    return JSONResponse({"error": {"type": type_, "message": message}}, code, headers)


def _plain_error(code: int, message: str) -> Response:
    return JSONResponse({"error": message}, code)


def _html(code: int, headers: dict[str, str] | None = None) -> Response:
    page = f"<html><head><title>{code}</title></head><body><h1>{code}</h1></body></html>"
    return HTMLResponse(page, code, headers)


# The clips.


async def _clip(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    clip = gateway.clips.get(request.path_params["id"])
    response = _refusal(request, gateway, clip)
    if response is None:
        assert clip is not None
        fault = gateway.take_clip_fault() if request.method == "GET" else None
        response = _clip_response(request, clip, fault)
    gateway.note_clip_request(
        ClipRequest(
            method=request.method,
            path=request.url.path,
            status=None if isinstance(response, Hang) else response.status_code,
            range=request.headers.get("range"),
            if_range=request.headers.get("if-range"),
            authorization="authorization" in request.headers,
        )
    )
    return response


def _clip_response(request: Request, clip: StoredClip, fault: ClipFault | None) -> Response:
    kind = fault.kind if fault is not None else None
    if fault is not None:
        match kind:
            case "status":
                code, message = _S3_ERRORS.get(
                    fault.code, ("InternalError", "We encountered an internal error.")
                )
                return _s3_error(fault.code, code, message)
            case "hang":
                return Hang()
            case "html":
                return _html(200)
            case "redirect":
                return RedirectResponse(
                    fault.location or request.url.include_query_params(redirected=1), fault.code
                )
            case "changed":
                clip.source = clip.source.changed()
    return _ranged(request, clip.source, fault)


def _refusal(request: Request, gateway: Gateway, clip: StoredClip | None) -> Response | None:
    if "authorization" in request.headers:
        # As S3 does. It also keeps a gateway's key from going unnoticed where it does not belong.
        return _s3_error(400, "InvalidArgument", "Only one auth mechanism allowed.")
    path, query = request.url.path, request.query_params
    signature, expires = query.get("Signature", ""), query.get("Expires", "")
    if clip is None or clip.signed:
        if not signature:
            return _s3_error(403, "AccessDenied", "Access Denied")
        if not gateway.signer.signed(path, expires, signature):
            return _s3_error(403, "SignatureDoesNotMatch", "The request signature does not match.")
        if time.time() >= int(expires):
            return _s3_error(403, "AccessDenied", "Request has expired")
    if clip is None:
        return _s3_error(404, "NoSuchKey", "The specified key does not exist.")
    if time.time() >= clip.expires_at:
        return _s3_error(403, "AccessDenied", "Request has expired")
    return None


def _ranged(request: Request, source: Source, fault: ClipFault | None) -> Response:
    kind = fault.kind if fault is not None else None
    etag = f'"{source.etag}"'
    headers = {"content-type": "video/mp4", "etag": etag, "accept-ranges": "bytes"}
    wanted = request.headers.get("range")
    if kind == "no_ranges":
        del headers["accept-ranges"]
        wanted = None
    if request.headers.get("if-range", etag) != etag:
        wanted = None
    try:
        part = parse_range(wanted, source.size)
    except RangeNotSatisfiable as problem:
        return _s3_error(
            416, "InvalidRange", "The requested range is not satisfiable", {"content-range": str(problem)}
        )
    start, stop = part or (0, source.size)
    if part is not None:
        headers["content-range"] = f"bytes {start}-{stop - 1}/{source.size}"
    return Body(
        source,
        status=200 if part is None else 206,
        headers=headers,
        start=start,
        stop=stop,
        extra_length=fault.bytes if fault is not None and kind == "wrong_length" else 0,
        break_after=fault.bytes if fault is not None and kind == "break_after" else None,
        reset=fault is not None and fault.reset,
        bytes_per_second=fault.bytes_per_second if fault is not None else None,
    )


_S3_ERRORS = {
    403: ("AccessDenied", "Access Denied"),
    404: ("NoSuchKey", "The specified key does not exist."),
    503: ("SlowDown", "Please reduce your request rate."),
}


def _s3_error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    )
    return Response(xml, status, headers, media_type="application/xml")


# The controls.


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
        return _plain_error(400, str(problem))
    return Response(status_code=204)


async def _faults(request: Request) -> Response:
    order = await request.json()
    request.app.state.gateway.fail_next(fault_from_json(order["fault"]), order["times"])
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
        return _plain_error(408, str(problem))
    except ValueError as problem:
        return _plain_error(400, str(problem))
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

"""What a POST is answered with, as it should be and as the faults have it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from .encodings import encode
from .responses import Body, Hang, Raw, Reset, Source, html_page, in_chunks, raw_head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from .faults import Fault
    from .gateway import Accepted, Answer, Gateway

_JSON = {"content-type": "application/json"}
_DEEP = 100_000
_LONG = 100_000

_ERRORS: dict[int, tuple[str, str]] = {
    401: ("authentication_error", "invalid API key"),
    403: ("permission_denied", "insufficient balance"),
    429: ("rate_limit_error", "rate limit exceeded"),
    500: ("internal_error", "internal error"),
    502: ("upstream_error", "bad gateway"),
    503: ("overloaded_error", "no capacity, try again"),
    504: ("upstream_error", "upstream timed out"),
}

_HOSTILE_TEXTS = {
    "nul": "prompt is not allowed: paper\0boat",
    "surrogate": "prompt is not allowed: paper boat \ud83d",
    "control": "prompt is not allowed:\r\n\x1b[2J\x1b[31m\x07\x85\u2028\u202e\u2066paper boat\x7f",
    "dotted": "a." * (_LONG // 2),
    "markup": "<script>" * (_LONG // 8),
    "not_utf8": "prompt is not allowed: \udcff\udcfe\udc80",
}


def answer_body(answer: Answer, request: Request) -> dict[str, Any]:
    """The guide's answer to a finished render."""
    gateway: Gateway = request.app.state.gateway
    url = f"{request.url.scheme}://{request.url.netloc}{answer.path}"
    body: dict[str, Any] = {"created": answer.created, "model": answer.model, "serving": answer.serving}
    if answer.expires_at is not None:
        url += f"?{gateway.signer.query(answer.path, answer.expires_at)}"
        body["expires_at"] = answer.expires_at
    return {**body, "data": [{"url": url}]}


async def answer(fault: Fault | None, accepted: Accepted, body: dict[str, Any]) -> Response:
    """Answer a finished, billed render, or do to the answer what the fault says."""
    if fault is None:
        accepted.amend(answered=True, status=200)
        return JSONResponse(body)
    match fault.kind:
        case "reset" | "hang":
            accepted.amend(answered=False)
            return Reset() if fault.kind == "reset" else Hang()
        case "truncated_body":
            accepted.amend(answered=False, status=200)
            source = json_source(body)
            return Body(source, headers=_JSON, break_after=source.size // 2)
        case "whole_json":
            accepted.amend(answered=False, status=200)
            return _unfinished(json_source(body).content_bytes, fault.shape)
    accepted.amend(answered=True, status=fault.code)
    match fault.kind:
        case "status":
            return status(fault)
        case "html":
            return html_page(fault.code)
        case "encoded":
            return await encoded(fault, body)
        case "slow_body":
            return Body(json_source(body), headers=_JSON, bytes_per_second=fault.bytes_per_second)
        case "slow_head":
            content = json_source(body).content_bytes
            return _raw(content, bytes_per_second=fault.bytes_per_second)
        case "no_url":
            return _without_url(body, fault.shape, fault.code)
        case "odd_answer":
            return Response(_odd(body, fault.shape), headers=_JSON)
    return JSONResponse(body)


async def refusal(fault: Fault, request: Request) -> Response:
    """What a fault answers before anything is rendered."""
    match fault.kind:
        case "reset":
            return Reset()
        case "redirect":
            location = fault.location or f"https://{request.url.netloc}{request.url.path}"
            return html_page(fault.code, {"location": location})
        case "hostile_text":
            return _hostile(fault.shape, fault.code)
        case "encoded":
            return await encoded(fault, _envelope(fault.code))
    return status(fault)


def cut_short(fault: Fault) -> Response:
    """What a fault answers to a request that is still being sent."""
    if not fault.code:
        return Reset()
    page = bytes(html_page(fault.code).body)
    return _raw(page, code=fault.code, headers={"content-type": "text/html", "server": "nginx"})


def status(fault: Fault) -> Response:
    """An error answer: the guide's envelope, or what the fault has."""
    headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after}"}
    if fault.as_html:
        return html_page(fault.code, headers)
    if isinstance(fault.body, str):
        return Response(fault.body, fault.code, headers, media_type=fault.content_type)
    if fault.body is not None:
        return JSONResponse(fault.body, fault.code, headers)
    return error(fault.code, headers)


def error(code: int, headers: dict[str, str] | None = None) -> Response:
    """The guide's envelope of an error."""
    return JSONResponse(_envelope(code), code, headers)


def plain_error(code: int, message: str) -> Response:
    """The guide's envelope of an error that the video endpoint itself finds."""
    return JSONResponse({"error": message}, code)


def json_source(body: object) -> Source:
    """JSON in ASCII, whatever text is in it."""
    return Source.of(json.dumps(body).encode())


async def encoded(fault: Fault, body: dict[str, Any]) -> Response:
    """JSON in a content coding that nobody asked for."""
    content = json_source(body).content_bytes
    # A bomb takes a second to pack.
    data, headers = await run_in_threadpool(encode, content, fault.shape, size=fault.size, filler=b" ")
    return Response(data, fault.code, {**_JSON, **headers})


def _envelope(code: int) -> dict[str, Any]:
    if code == 400:
        return {"error": "bad request"}
    type_, message = _ERRORS.get(code, ("error", f"status {code}"))
    return {"error": {"type": type_, "message": message}}


def _raw(
    content: bytes,
    *,
    code: int = 200,
    headers: Mapping[str, str] = _JSON,
    reason: str | None = None,
    bytes_per_second: float | None = None,
) -> Raw:
    fields = {**headers, "content-length": str(len(content)), "connection": "close"}
    head = raw_head(code, fields, reason=reason)
    return Raw(head, [content], status=code, bytes_per_second=bytes_per_second)


def _unfinished(content: bytes, end: str) -> Raw:
    if end == "length":
        head = raw_head(200, {**_JSON, "content-length": str(len(content) + 2)})
        return Raw(head, [content], status=200)
    head = raw_head(200, {**_JSON, "transfer-encoding": "chunked"})
    chunks = in_chunks([content])
    match end:
        case "reset":
            return Raw(head, chunks, status=200, then="reset")
        case "held":
            return Raw(head, chunks, status=200, then="hold")
    return Raw(head, chunks, status=200)


def _without_url(body: dict[str, Any], shape: str, code: int) -> Response:
    rest = {name: value for name, value in body.items() if name != "data"}
    url: str = body["data"][0]["url"]
    if shape == "nothing" or code in (204, 205):
        return Response(status_code=code, headers=_JSON)
    if shape == "error":
        error = {"error": {"type": "content_filtered", "message": "the prompt was filtered"}}
        return Response(f"\n \n  {json.dumps(error)}", code, media_type="application/json")
    data: dict[str, Any] = {
        "empty": {"data": []},
        "missing": {},
        "null": {"data": None},
        "no_item_url": {"data": [{}]},
        "blank": {"data": [{"url": ""}]},
        "job": {"id": "job_5f1c", "status": "queued"},
        "relative": {"data": [{"url": f"/{url.split('/', 3)[3]}"}]},
        "other_scheme": {"data": [{"url": f"ftp:{url.partition(':')[2]}"}]},
        "not_text": {"data": [{"url": {"href": url}}]},
    }
    return JSONResponse({**rest, **data[shape]}, code)


def _odd(body: dict[str, Any], shape: str) -> bytes:
    url = body["data"][0]["url"]
    expires_at = body.get("expires_at", body["created"] + 3600)
    changes: dict[str, dict[str, Any]] = {
        "url_padded": {"data": [{"url": f" \r\n\t{url}\n\n "}]},
        "url_http": {"data": [{"url": f"http:{url.partition(':')[2]}"}]},
        "expires_ms": {"expires_at": expires_at * 1000},
        "expires_iso": {"expires_at": datetime.fromtimestamp(expires_at, UTC).isoformat()},
        "expires_past": {"expires_at": body["created"] - 86400},
        "expires_absurd": {"expires_at": 10**400},
        "expires_text": {"expires_at": "in an hour"},
        "expires_null": {"expires_at": None},
        "created_huge": {"created": 10**400},
        "created_nan": {"created": float("nan")},
        "created_text": {"created": "just now"},
        "model_hostile": {"model": f"{body['model']}\0\ud83d"},
    }
    changed = {**body, **changes.get(shape, {})}
    match shape:
        case "created_missing":
            del changed["created"]
        case "created_endless":  # more digits than Python turns into a number
            return _with_first_field(changed, "created", "9" * 5000)
        case "nested":
            return _with_first_field(changed, "extra", "[" * _DEEP + "]" * _DEEP)
    text = json.dumps(changed)
    match shape:
        case "bom":
            return text.encode("utf-8-sig")
        case "utf16":
            return text.encode("utf-16")
        case "trailing_text":
            text += "\n<!-- cache-7 -->\n"
    return text.encode()


def _with_first_field(body: dict[str, Any], name: str, value: str) -> bytes:
    rest = json.dumps({key: kept for key, kept in body.items() if key != name})
    return f'{{"{name}": {value}, {rest[1:]}'.encode()


def _hostile(shape: str, code: int) -> Response:
    body = json_source(_envelope(code)).content_bytes
    match shape:
        case "status_line":
            return _raw(body, code=code, reason="a." * 32768)
        case "header":
            return _raw(body, code=code, headers={**_JSON, "x-request-id": "a." * 32768})
        case "nested":
            content = b'{"error": ' + b"[" * _DEEP + b"]" * _DEEP + b"}"
        case "not_utf8":
            text = json.dumps(_in_envelope(_HOSTILE_TEXTS[shape], code), ensure_ascii=False)
            content = text.encode(errors="surrogateescape")
        case _:
            content = json_source(_in_envelope(_HOSTILE_TEXTS[shape], code)).content_bytes
    return Response(content, code, _JSON)


def _in_envelope(text: str, code: int) -> dict[str, Any]:
    if code == 400:
        return {"error": text}
    return {"error": {"type": _ERRORS.get(code, ("error", ""))[0], "message": text}}

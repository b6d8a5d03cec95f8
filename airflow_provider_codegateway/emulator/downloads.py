"""The clips' links."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from .encodings import encode
from .ledger import ClipRequest
from .links import RangeNotSatisfiable, parse_range
from .responses import CHUNK, LAST_CHUNK, Body, Hang, Raw, Source, html_page, in_chunks, raw_head

if TYPE_CHECKING:
    from starlette.requests import Request

    from .faults import ClipFault
    from .gateway import Gateway, StoredClip

UTF8_NAME = "résumé-日本.mp4"
"""The one other name of each clip, to which a fault redirects."""
_BOMB_BYTES = 256 * 1024 * 1024

_S3_ERRORS = {
    403: ("AccessDenied", "Access Denied"),
    404: ("NoSuchKey", "The specified key does not exist."),
    410: ("Gone", "The object is no longer available."),
    503: ("SlowDown", "Please reduce your request rate."),
}
_WEB_FILTER_PAGE = (
    "<!DOCTYPE html>\n<html><head><title>Web Filter</title></head>"
    "<body><h1>Your session has expired</h1><p>Sign in again to browse the web.</p></body></html>\n"
)


async def clip(request: Request) -> Response:
    """Serve a clip, or do what the fault says whose turn it is."""
    gateway: Gateway = request.app.state.gateway
    stored = gateway.clips.get(request.path_params["id"])
    response = _refusal(request, gateway, stored)
    if response is None:
        assert stored is not None
        fault = gateway.take_clip_fault(stored.model) if request.method == "GET" else None
        response = _response(request, stored, fault)
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


def _response(request: Request, stored: StoredClip, fault: ClipFault | None) -> Response:
    if fault is not None:
        match fault.kind:
            case "status":
                code, message = _S3_ERRORS.get(
                    fault.code, ("InternalError", "We encountered an internal error.")
                )
                return _s3_error(fault.code, code, message)
            case "hang":
                return Hang()
            case "html":
                return html_page(200)
            case "json":
                return JSONResponse({"error": "the clip is not available"})
            case "web_filter":
                return HTMLResponse(_WEB_FILTER_PAGE, fault.code)
            case "encoded":
                return _encoded(stored.source, fault.shape)
            case "redirect":
                return RedirectResponse(
                    fault.location or request.url.include_query_params(redirected=1), fault.code
                )
            case "utf8_redirect":
                return _utf8_redirect(request, fault.code)
            case "changed":
                stored.source = stored.source.changed()
    return _ranged(request, stored.source, fault)


def _refusal(request: Request, gateway: Gateway, stored: StoredClip | None) -> Response | None:
    if "authorization" in request.headers:
        # As S3 does. It also keeps a gateway's key from going unnoticed where it does not belong.
        return _s3_error(400, "InvalidArgument", "Only one auth mechanism allowed.")
    path, query = f"/clips/{request.path_params['id']}.mp4", request.query_params
    signature, expires = query.get("Signature", ""), query.get("Expires", "")
    if stored is None or stored.signed:
        if not signature:
            return _s3_error(403, "AccessDenied", "Access Denied")
        if not gateway.signer.signed(path, expires, signature):
            return _s3_error(403, "SignatureDoesNotMatch", "The request signature does not match.")
        if time.time() >= int(expires):
            return _s3_error(403, "AccessDenied", "Request has expired")
    if stored is None or request.path_params.get("name", UTF8_NAME) != UTF8_NAME:
        return _s3_error(404, *_S3_ERRORS[404])
    if time.time() >= stored.expires_at:
        return _s3_error(403, "AccessDenied", "Request has expired")
    return None


def _ranged(request: Request, source: Source, fault: ClipFault | None) -> Response:
    kind = fault.kind if fault is not None else None
    etag = f'"{source.etag}"'
    headers = {"content-type": _media_type(source), "etag": etag, "accept-ranges": "bytes"}
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
    status = 200 if part is None else 206
    if part is not None:
        headers["content-range"] = f"bytes {start}-{stop - 1}/{source.size}"
    if fault is not None and fault.kind == "no_length":
        return _without_length(source, start, stop, status, headers, fault)
    return Body(
        source,
        status=status,
        headers=headers,
        start=start,
        stop=stop,
        extra_length=(fault.bytes or 0) if fault is not None and kind == "wrong_length" else 0,
        break_after=fault.bytes if fault is not None and kind == "break_after" else None,
        reset=fault is not None and fault.reset,
        bytes_per_second=fault.bytes_per_second if fault is not None else None,
    )


def _without_length(
    source: Source, start: int, stop: int, status: int, headers: dict[str, Any], fault: ClipFault
) -> Raw:
    end = stop if fault.bytes is None else min(stop, start + fault.bytes)
    pieces = source.chunks(start, end, CHUNK)
    version = "HTTP/1.0" if fault.shape == "http_1_0" else "HTTP/1.1"
    if fault.shape == "chunked":
        headers = {**headers, "transfer-encoding": "chunked"}
        pieces = itertools.chain(in_chunks(pieces), [LAST_CHUNK] if end == stop else [])
    head = raw_head(status, {**headers, "connection": "close"}, version=version)
    return Raw(head, pieces, status=status)


def _encoded(source: Source, encoding: str) -> Response:
    data, headers = encode(source.content_bytes, encoding, size=_BOMB_BYTES, filler=b"\0")
    return Response(data, headers={"content-type": _media_type(source), **headers})


def _utf8_redirect(request: Request, code: int) -> Response:
    location = f"/clips/{request.path_params['id']}/{UTF8_NAME}?{request.url.query}"
    response = Response(status_code=code)
    response.raw_headers.append((b"location", location.encode()))
    return response


def _media_type(source: Source) -> str:
    is_webm = next(source.chunks(0, min(4, source.size), 4), b"") == b"\x1a\x45\xdf\xa3"
    return "video/webm" if is_webm else "video/mp4"


def _s3_error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    )
    return Response(xml, status, headers, media_type="application/xml")

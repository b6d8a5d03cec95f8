"""Answers, well-behaved and otherwise."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
import struct
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from starlette.responses import HTMLResponse, Response

from .containers import media_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

CHUNK = 512 * 1024
_TICKS_PER_SECOND = 20
_INVERT = bytes(255 - value for value in range(256))
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Source:
    """The bytes of a clip: in memory, or a file that is read as it is sent."""

    content: bytes | Path
    size: int
    etag: str
    inverted: tuple[tuple[int, int], ...] = ()
    """Where other bytes are served than there are: in the media and the padding of an MP4, so that it stays one."""

    @classmethod
    def of(cls, content: bytes | Path) -> Source:
        """A source of bytes or a file, under an ETag that follows the content."""
        if isinstance(content, bytes):
            return cls(content, len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())
        stat = content.stat()
        mark = f"{content}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ino}"
        return cls(content, stat.st_size, hashlib.md5(mark.encode(), usedforsecurity=False).hexdigest())

    def changed(self) -> Source:
        """A source of the same size with other bytes and another ETag."""
        etag = hashlib.md5(self.etag.encode(), usedforsecurity=False).hexdigest()
        inverted = () if self.inverted else media_of(self._read, self.size) or ((32, self.size),)
        return Source(self.content, self.size, etag, inverted)

    def _read(self, start: int, size: int) -> bytes:
        return b"".join(self.chunks(start, min(start + size, self.size), size))

    def chunks(self, start: int, stop: int, size: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop`, in pieces of at most `size`."""
        if isinstance(self.content, bytes):
            for offset in range(start, stop, size):
                yield self._altered(self.content[offset : min(offset + size, stop)], offset)
            return
        with self.content.open("rb") as file:
            file.seek(start)
            offset = start
            while offset < stop and (chunk := file.read(min(size, stop - offset))):
                yield self._altered(chunk, offset)
                offset += len(chunk)

    @property
    def content_bytes(self) -> bytes:
        """All of it."""
        return b"".join(self.chunks(0, self.size, self.size or 1))

    def _altered(self, chunk: bytes, offset: int) -> bytes:
        for start, stop in self.inverted:
            first, last = max(start - offset, 0), max(stop - offset, 0)
            chunk = chunk[:first] + chunk[first:last].translate(_INVERT) + chunk[last:]
        return chunk


class Body(Response):
    """Sends a part of a source: at a pace, or only so far."""

    def __init__(
        self,
        source: Source,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        start: int = 0,
        stop: int | None = None,
        extra_length: int = 0,
        break_after: int | None = None,
        reset: bool = False,
        bytes_per_second: float | None = None,
    ) -> None:
        stop = source.size if stop is None else stop
        self.status_code = status
        self.background = None
        self.source, self.start = source, start
        announced = max(0, stop - start + extra_length)
        self.stop = start + min(stop - start, announced, announced if break_after is None else break_after)
        self.breaks = self.stop - start < announced
        self.reset = reset
        self.bytes_per_second = bytes_per_second
        self.init_headers({**(headers or {}), "content-length": str(announced)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            transport = transport_of(scope)
            async for chunk in self._paced():
                if transport.is_closing():
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if self.breaks:
                await _leave(transport, receive, reset=self.reset)
                return
        await send({"type": "http.response.body", "body": b""})

    async def _paced(self) -> AsyncIterator[bytes]:
        if self.bytes_per_second is None:
            # Read on the event loop: the file is in the page cache, and a thread's round trip costs more.
            for chunk in self.source.chunks(self.start, self.stop, CHUNK):
                yield chunk
            return
        size = max(1, round(self.bytes_per_second / _TICKS_PER_SECOND))
        for chunk in self.source.chunks(self.start, self.stop, size):
            await asyncio.sleep(len(chunk) / self.bytes_per_second)
            yield chunk


class Raw(Response):
    """Writes to the connection itself, for what no server library sends.

    :param head: see ``raw_head``; it counts as the first of the pieces.
    :param then: what becomes of the connection after the last piece: closed, reset, or held open.
    """

    def __init__(
        self,
        head: bytes,
        pieces: Iterable[bytes],
        *,
        status: int,
        then: Literal["close", "reset", "hold"] = "close",
        bytes_per_second: float | None = None,
    ) -> None:
        self.status_code = status
        self.background = None
        self.head, self.pieces = head, pieces
        self.then = then
        self.bytes_per_second = bytes_per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it."""
        transport = transport_of(scope)
        drain: Callable[[], Awaitable[None]] = scope["state"]["drain"]
        for piece in itertools.chain([self.head], self.pieces):
            async for part in self._paced(piece):
                if transport.is_closing():
                    return
                transport.write(part)
                await drain()
        if self.then != "hold":
            await _leave(transport, receive, reset=self.then == "reset")
        await disconnected(receive)

    async def _paced(self, piece: bytes) -> AsyncIterator[bytes]:
        if self.bytes_per_second is None:
            yield piece
            return
        size = max(1, round(self.bytes_per_second / _TICKS_PER_SECOND))
        for at in range(0, len(piece), size):
            part = piece[at : at + size]
            await asyncio.sleep(len(part) / self.bytes_per_second)
            yield part


def raw_head(
    status: int, headers: Mapping[str, str], *, version: str = "HTTP/1.1", reason: str | None = None
) -> bytes:
    """A status line and headers as they stand on the wire, in UTF-8."""
    if reason is None:
        reason = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
    lines = [f"{version} {status} {reason}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def in_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces in the framing of chunked transfer coding, without the last chunk."""
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_CHUNK = b"0\r\n\r\n"


def html_page(code: int, headers: Mapping[str, str] | None = None) -> Response:
    """The page of a proxy that has nothing but a status to say."""
    page = f"<html><head><title>{code}</title></head><body><h1>{code}</h1></body></html>"
    return HTMLResponse(page, code, headers)


class Reset(Response):
    """Resets the connection in place of an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do it."""
        await _leave(transport_of(scope), receive, reset=True)


class Hang(Response):
    """Never answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait until the client gives up."""
        await disconnected(receive)


async def disconnected(receive: Receive) -> None:
    """Wait until the client has hung up. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def transport_of(scope: Scope) -> asyncio.Transport:
    """The connection that a request came on."""
    transport: asyncio.Transport = scope["state"]["transport"]
    return transport


def abort(transport: asyncio.Transport) -> None:
    """Close a connection with a TCP reset."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


async def _leave(transport: asyncio.Transport, receive: Receive, *, reset: bool) -> None:
    if reset:
        abort(transport)
    else:
        transport.close()  # once everything that was sent has left
    await disconnected(receive)

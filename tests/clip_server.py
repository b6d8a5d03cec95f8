"""A clip host that misbehaves to order: cuts and resets connections, ignores ranges, lies."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Answer:
    """How one request is answered. Everything not given is as a good server does it.

    :param body: what is there from now on, in place of the clip.
    :param cut: end the connection after so many bytes of the body.
    :param reset: end it by a reset (RST), where it ends early.
    :param length: the Content-Length that is claimed, or ``None`` for none at all.
    :param chunked: send with chunked coding.
    :param ignore_range: answer 200 with everything.
    :param content_range: the Content-Range that is claimed.
    :param etag: the ETag from now on; empty for none.
    :param hold: wait for this before each send.
    :param trickle: send a byte now and then, from the ``head`` or the ``body`` on; or so many bytes after the head, the
        last of them for ever, such as a chunk's extension.
    :param pause: seconds between the head and the body.
    :param raw: sent as it is, in place of all that, or before what trickles.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    reset: bool = False
    length: int | str | None = "true"
    chunked: bool = False
    ignore_range: bool = False
    content_range: str | None = None
    etag: str | None = None
    hold: threading.Event | None = None
    trickle: str | bytes = ""
    raw: bytes | None = None
    pause: float = 0.0


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]


class ClipServer:
    """Serves one clip at every path. ``answers`` are used up one a request; after them all is well.

    :param writes: sizes of the writes to the socket, in turn.
    :param certificate: with its key; for https.
    """

    def __init__(
        self,
        clip: bytes,
        *answers: Answer,
        etag: str = '"one"',
        writes: tuple[int, ...] = (65536,),
        certificate: Path | None = None,
    ):
        self.clip = clip
        self.etag = etag
        self.last_modified: str | None = None
        self.answers = deque(answers)
        self.requests: list[Request] = []
        self.asked = threading.Event()
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._writes = writes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        origin = "https://localhost" if self._tls else "http://127.0.0.1"
        return f"{origin}:{self._port}/clips/one.mp4?X-Signature=topsecret"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._secured, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _secured(self, connection: socket.socket) -> None:
        try:
            self._serve(self._tls.wrap_socket(connection, server_side=True) if self._tls else connection)
        except OSError:
            connection.close()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            target = lines.readline().split()
            if len(target) != 3:
                return
            headers = {}
            while line := lines.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            request = Request(target[1].decode(), headers)
            self.requests.append(request)
            self.asked.set()
            answer = self.answers.popleft() if self.answers else Answer()
            try:
                self._answer(connection, request, answer)
            except OSError:
                return

    def _answer(self, connection: socket.socket, request: Request, answer: Answer) -> None:
        self.clip = self.clip if answer.body is None else answer.body
        self.etag = self.etag if answer.etag is None else answer.etag
        start = 0 if answer.ignore_range else self._start(request)
        status = answer.status or (200 if start is None or answer.ignore_range else 206)
        body = self.clip[start or 0 :]
        headers = {"Date": formatdate(usegmt=True), "Connection": "close", "Content-Type": "video/mp4"}
        if start is not None and start >= len(self.clip) and start:
            status, body = 416, b""
        if self.etag:
            headers["ETag"] = self.etag
        if self.last_modified:
            headers["Last-Modified"] = self.last_modified
        if status == 206:
            end = len(self.clip) - 1
            headers["Content-Range"] = answer.content_range or f"bytes {start}-{end}/{len(self.clip)}"
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif answer.length is not None:
            headers["Content-Length"] = str(len(body) if answer.length == "true" else answer.length)
        headers |= answer.headers
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()) + "\r\n"
        if answer.raw is not None:
            connection.sendall(answer.raw)
            if not answer.trickle:
                return
        if isinstance(answer.trickle, bytes):
            connection.sendall(head.encode() + answer.trickle)
            self._trickle(connection, answer.trickle[-1:] * 10_000)
            return
        if answer.trickle:
            slow = len(head) if answer.trickle == "body" else 0
            connection.sendall(head[:slow].encode())
            self._trickle(connection, head[slow:].encode() + body)
            return
        connection.sendall(head.encode())
        self._stopped.wait(answer.pause)
        self._send_body(connection, body[: answer.cut], answer)
        if answer.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif answer.chunked and answer.cut is None:
            connection.sendall(b"0\r\n\r\n")

    def _trickle(self, connection: socket.socket, data: bytes) -> None:
        """Until the client hangs up."""
        for byte in data:
            connection.sendall(bytes([byte]))
            connection.settimeout(0.02)
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return

    def _send_body(self, connection: socket.socket, body: bytes, answer: Answer) -> None:
        at, turn = 0, 0
        while at < len(body):
            if answer.hold is not None:
                answer.hold.wait(10)
            piece = body[at : at + self._writes[turn % len(self._writes)]]
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
            at, turn = at + len(piece), turn + 1

    def _start(self, request: Request) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        condition = request.headers.get("if-range")
        if not match or (condition is not None and condition not in (self.etag, self.last_modified)):
            return None
        return int(match[1])

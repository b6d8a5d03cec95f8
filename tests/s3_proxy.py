"""A real HTTP proxy before an S3 server: it denies, answers by itself, loses answers, drops connections, and counts."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class S3Request:
    """One request, as it arrived."""

    method: str
    path: str
    query: frozenset[str]
    headers: Mapping[str, str] = field(default_factory=dict)
    """With names in lower case."""

    @property
    def key(self) -> str:
        """The key in the bucket; empty for requests to the bucket itself."""
        return self.path.lstrip("/").partition("/")[2]

    @property
    def operation(self) -> str:
        """What S3 calls it, for the few that a clip takes."""
        if self.method == "PUT":
            return "UploadPart" if "uploadId" in self.query else "PutObject"
        if self.method == "POST":
            named = {"delete": "DeleteObjects", "uploads": "CreateMultipartUpload"}
            return next((named[name] for name in self.query if name in named), "CompleteMultipartUpload")
        if self.method == "GET":
            if "uploads" in self.query:
                return "ListMultipartUploads"
            return "GetObject" if self.key else "ListObjects"
        if self.method == "DELETE":
            return "AbortMultipartUpload" if "uploadId" in self.query else "DeleteObject"
        return "HeadObject"


class Verdict(Enum):
    PASS = "pass"
    DENY = "deny"
    """Answer 403 AccessDenied, without asking the server."""
    REFUSE = "refuse"
    """Answer 400 InvalidStorageClass, without asking the server."""
    DROP = "drop"
    """Close the connection, without asking the server."""
    LOSE = "lose"
    """Let the server do it, and close the connection in place of its answer."""


@dataclass(frozen=True)
class Answer:
    """What to answer, without asking the server."""

    status: int
    body: bytes = b""
    content_type: str = "application/xml"


Edit = Callable[[S3Request, dict[str, str], bytes], tuple[dict[str, str], bytes]]
"""The headers and the body of a good answer; those to be sent instead."""
Rule = Callable[[S3Request], "Verdict | Answer"]


def says(status: int, code: str, message: str = "Not today.") -> Answer:
    """S3's error answer."""
    xml = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, xml.encode())


_ANSWERS = {
    Verdict.DENY: says(403, "AccessDenied", "Access Denied"),
    Verdict.REFUSE: says(400, "InvalidStorageClass", "Not valid"),
}
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class S3Proxy:
    """Passes everything on to ``endpoint``, unless ``rule`` says otherwise.

    :param strip: a request header that never reaches the server.
    """

    def __init__(self, endpoint: str, *, strip: str | None = None) -> None:
        self.requests: list[S3Request] = []
        self.rule: Rule = lambda request: Verdict.PASS
        self.clock: Callable[[], datetime] | None = None
        """What the store says that it is, instead of the time."""
        self.edit: Edit | None = None
        """What becomes of an answer of the server's, such as that of a filter between."""
        self.tells_time = True
        """Whether answers have a ``Date``."""
        self._server = _Server(("127.0.0.1", 0), _handler(self, endpoint, strip))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def operations(self) -> list[str]:
        """What was asked for, in order."""
        return [request.operation for request in self.requests]

    @contextmanager
    def ruled(self, rule: Rule) -> Iterator[None]:
        """Apply a rule for the length of a ``with`` block."""
        before, self.rule = self.rule, rule
        try:
            yield
        finally:
            self.rule = before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def down(request: S3Request) -> Verdict:
    """The rule of an S3 that cannot be reached."""
    return Verdict.DROP


def once(verdict: Verdict | Answer, when: Callable[[S3Request], bool]) -> Rule:
    """A rule that strikes the first request of its kind only."""
    left: list[Verdict | Answer] = [verdict]
    return lambda request: left.pop() if left and when(request) else Verdict.PASS


def deny(*operations: str) -> Rule:
    """The rule of credentials that may not do these."""
    return answer(Verdict.DENY, *operations)


def answer(verdict: Verdict | Answer, *operations: str) -> Rule:
    """The rule of a store that answers these operations so."""
    return lambda request: verdict if request.operation in operations else Verdict.PASS


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


def _handler(proxy: S3Proxy, endpoint: str, strip: str | None) -> type[BaseHTTPRequestHandler]:
    upstream = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            query = frozenset(parse_qs(url.query, keep_blank_values=True))
            named = {name.lower(): value for name, value in self.headers.items()}
            request = S3Request(self.command, unquote(url.path), query, named)
            proxy.requests.append(request)
            verdict = proxy.rule(request)
            if isinstance(verdict, Verdict):
                verdict = _ANSWERS.get(verdict, verdict)
            if isinstance(verdict, Answer):
                self._answer(verdict.status, {"Content-Type": verdict.content_type}, verdict.body)
            elif verdict is Verdict.DROP:
                self.close_connection = True
            else:
                status, headers, answer = self._ask(body)
                if proxy.edit is not None and status < 300:
                    headers, answer = proxy.edit(request, headers, answer)
                if verdict is Verdict.LOSE:
                    self.close_connection = True
                else:
                    self._answer(status, headers, answer)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(upstream, timeout=60)
            skipped = {"connection", "expect", (strip or "").lower()}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
            if self.command == "HEAD":
                kept["Content-Length"] = response.headers.get("Content-Length", "0")
            if not proxy.tells_time:
                kept = {name: value for name, value in kept.items() if name.lower() != "date"}
            elif proxy.clock is not None:
                kept = {name: value for name, value in kept.items() if name.lower() != "date"}
                kept["Date"] = format_datetime(proxy.clock(), usegmt=True)
            connection.close()
            return response.status, kept, content

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command == "HEAD":
                body = b""
            if "Content-Length" not in headers and status != 204:
                self.send_header("Content-Length", str(len(body)))
            self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]
            self.flush_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler

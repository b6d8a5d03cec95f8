"""Paid answers as no specification allows them: over a socket, and read all the same."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import threading
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    GatewayUnavailable,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.gateway import Answer, BlockingCall, Gateway, GatewaySettings, read_receipt
from airflow_provider_codegateway.gateway.raw import raw_answer
from airflow_provider_codegateway.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

LINK = "http://x.example.com/clips/a.mp4?X-Amz-Signature=abc&b=1"
OBJECT = {"created": 1749200000, "model": "google/veo-3.1-fast", "data": [{"url": LINK}]}
JSON = json.dumps(OBJECT).encode()
QUICK = Limits(answer_silence=0.1)
HEAD = b"HTTP/1.1 200 OK\r\n"


def whole(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer as HTTP has it, but for what ``headers`` add."""
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), b"Connection: close", *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chunked(*pieces: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in pieces)
    return chunks + b"0" + extension + b"\r\n" + trailers + b"\r\n"


def with_link(link: str) -> bytes:
    return whole(json.dumps({"data": [{"url": link}]}).encode())


HTTP = {
    "100 before": b"HTTP/1.1 100 Continue\r\n\r\n" + whole(JSON),
    "many 1xx before": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 50 + whole(JSON),
    "chunk extensions": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + chunked(JSON[:7], JSON[7:], extension=b";a=b"),
    "trailers": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(JSON, trailers=b"X-Sum: 1\r\n"),
    "chunks with LF": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\n%b\n0\n\n" % (len(JSON), JSON),
    "two chunks with LF": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"%x\n%b\n%x\n%b\n0\n\n" % (9, JSON[:9], len(JSON) - 9, JSON[9:]),
    "head with LF": whole(JSON).replace(b"\r\n", b"\n"),
    "chunked twice": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked(JSON),
    "chunked, chunked": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + chunked(JSON),
    "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked(gzip.compress(JSON)),
    "identity": HEAD + b"Transfer-Encoding: identity\r\nConnection: close\r\n\r\n" + JSON,
    "chunked and is not": HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + JSON,
    "chunked with a length": HEAD
    + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
    + chunked(JSON),
    "two lengths": whole(JSON, b"Content-Length: 5"),
    "a list of lengths": HEAD + b"Content-Length: %d, %d\r\n\r\n" % (len(JSON), len(JSON)) + JSON,
    "no number for a length": HEAD + b"Content-Length: none\r\n\r\n" + JSON,
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + JSON,
    "signed length": HEAD + b"Content-Length: +%d\r\n\r\n" % len(JSON) + JSON,
    "length too short": HEAD + b"Content-Length: %d\r\n\r\n" % (len(JSON) - 20) + JSON,
    "length too short for the link": HEAD + b"Content-Length: 30\r\n\r\n" + JSON,
    "length too long": HEAD + b"Content-Length: %d\r\n\r\n" % (len(JSON) + 50) + JSON,
    "length zero": HEAD + b"Content-Length: 0\r\n\r\n" + JSON,
    "header with a space": whole(JSON, b"X Bad Header: 1"),
    "header without a colon": whole(JSON, b"garbage line"),
    "space before the colon": whole(JSON, b"X-Foo : 1"),
    "header in Latin-1": whole(JSON, "X-Foo: größe".encode("latin-1")),
    "NUL in a header": whole(JSON, b"X-Foo: a\x00b"),
    "escape in a header": whole(JSON, b"X-Foo: a\x1b[31mb"),
    "folded header": whole(JSON, b"X-Foo: a\r\n b"),
    "header of 120 KB": whole(JSON, b"X-Foo: " + b"a" * 120_000),
    "header without a name": whole(JSON, b": x"),
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + JSON,
    "no reason": whole(JSON, status=b"200"),
    "HTTP/2": whole(JSON).replace(b"HTTP/1.1", b"HTTP/2"),
    "HTTP/1.2": whole(JSON).replace(b"HTTP/1.1", b"HTTP/1.2"),
    "NUL in the reason": whole(JSON, status=b"200 O\x00K"),
    **{
        f"{status}": whole(JSON, status=b"%d X" % status)
        for status in (201, 202, 203, 204, 205, 206, 226, 299)
    },
}
BODY = {
    "utf-8-sig": whole(b"\xef\xbb\xbf" + JSON),
    "utf-16": whole(JSON.decode().encode("utf-16")),
    "a later data": whole(JSON[:-1] + b', "data": null}'),
    "two urls": whole(JSON.replace(b'"url":', b'"url": null, "url":')),
    "nested": whole(b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"," + JSON[1:]),
    "after a guard": whole(b")]}'\n" + JSON),
    "an event stream": whole(b": keep\n\ndata: " + JSON + b"\n\ndata: [DONE]\n\n"),
    "lines": whole(b'{"status":"processing"}\n' * 2 + JSON + b"\n"),
    "error after it": whole(JSON + b'{"error":"late"}'),
    "gzip": whole(gzip.compress(JSON), b"Content-Encoding: gzip"),
    "deflate": whole(zlib.compress(JSON), b"Content-Encoding: deflate"),
    "raw deflate": whole(zlib.compress(JSON)[2:-4], b"Content-Encoding: deflate"),
    "in a list": whole(b"[" + JSON + b"]"),
    "second item": whole(JSON.replace(b'[{"url"', b'[{"url": null}, {"url"')),
    "empty item first": whole(JSON.replace(b'[{"url"', b'[{}, {"url"')),
    "null first": whole(JSON.replace(b'[{"url"', b'[null, {"url"')),
    "no list": whole(JSON.replace(b"[{", b"{").replace(b"}]", b"}")),
    "links in a list": whole(json.dumps({"data": [LINK]}).encode()),
    "the item alone": whole(json.dumps({"url": LINK}).encode()),
    "capitals": whole(JSON.replace(b'"data"', b'"Data"').replace(b'"url"', b'"URL"')),
    "JSON in a string": whole(json.dumps(JSON.decode()).encode()),
    "JSON in JSON": whole(json.dumps({"statusCode": 200, "body": JSON.decode()}).encode()),
    "a warning beside it": whole(JSON[:-1] + b', "error": "low quality"}'),
}
LINKS = {
    "zero-width space": with_link("\u200b" + LINK),
    "byte order mark": with_link("\ufeff" + LINK),
    "no-break space": with_link("\xa0" + LINK),
    "angle brackets": with_link(f"<{LINK}>"),
    "NUL at its end": with_link(LINK + "\0"),
    "HTML": with_link(LINK.replace("&", "&amp;")),
    "without a scheme": with_link(LINK.removeprefix("http:")),
    "second of two, the first a picture": whole(
        json.dumps(
            {"data": [{"type": "image", "url": "https://x/a.jpg"}, {"type": "video", "url": LINK}]}
        ).encode()
    ),
    "by another name": whole(json.dumps({"data": [{"video_url": LINK}]}).encode()),
    "after 2 MB of blanks": HEAD + b"\r\n" + b" \n" * 1_000_000 + JSON,
    "after a long field, and cut": HEAD
    + b"\r\n"
    + b'{"data": [{"thumbnail": "'
    + b"QUJD" * 50_000
    + b'", "url": "'
    + LINK.encode()
    + b'"',
}


@contextmanager
def gateway_that_sends(answer: bytes, *, read_all: bool = True) -> Iterator[Gateway]:
    """A gateway of one request."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            body = b""
            while read_all and not body.endswith(b"}"):
                body += connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Gateway(GatewaySettings(base_url=url, api_key="sk-cg-x", retries=0), limits=QUICK)
        thread.join()


def post(gateway: Gateway, content: bytes = b'{"model": "google/veo-3.1-fast"}') -> Answer:
    async def load() -> bytes:
        return content

    return BlockingCall().run(gateway.generate(load))


@pytest.mark.parametrize(
    "answer", [*HTTP.values(), *BODY.values(), *LINKS.values()], ids=[*HTTP, *BODY, *LINKS]
)
def test_an_answer_with_a_link_is_an_answer(answer: bytes) -> None:
    """Whatever HTTP, JSON and URLs are meant to look like."""
    with gateway_that_sends(answer) as gateway:
        assert read_receipt(post(gateway)).url == LINK


@pytest.mark.parametrize("answer", [HTTP["chunked twice"], HTTP["two lengths"], HTTP["HTTP/2"]])
def test_what_no_parser_reads_is_read_though_it_comes_in_pieces(answer: bytes) -> None:
    """The parser gives up at the head; the rest comes later."""
    head, _, body = answer.partition(b"\r\n\r\n")

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(65536)
            for piece in (head + b"\r\n\r\n", body[:20], body[20:]):
                connection.sendall(piece)
                pause.wait(0.3)

    pause = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        gateway = Gateway(GatewaySettings(base_url=url, api_key="sk-cg-x", retries=0), limits=QUICK)
        assert read_receipt(post(gateway)).url == LINK
        thread.join()


@pytest.mark.parametrize(
    ("answer", "error", "bought"),
    [
        (whole(b'{"error": "prompt was filtered"}'), RenderOutcomeUnknown, Bought.YES),
        (whole(b'{"error": "see", "url": "https://docs.example.com"}'), RenderOutcomeUnknown, Bought.YES),
        (whole(b"null"), RenderOutcomeUnknown, Bought.YES),
        (whole(b"", status=b"204 No Content"), RenderOutcomeUnknown, Bought.YES),
        (whole(b"<html><title>Login</title>Sign in</html>"), RenderOutcomeUnknown, Bought.PERHAPS),
        (b"HTTP/1.1 200 OK\r\nX: 1\r\n", RenderOutcomeUnknown, Bought.PERHAPS),
        (whole(JSON, status=b"500 No"), RenderOutcomeUnknown, Bought.PERHAPS),
        (whole(b'{"error": "no"}', b"Bad Header: 1", status=b"402 No"), RequestRejected, Bought.NO),
        (whole(b"<html>No</html>", b"Bad Header: 1", status=b"503 No"), RenderOutcomeUnknown, Bought.PERHAPS),
        (whole(b'{"error": "timeout of the limit"}', status=b"429 No"), GatewayUnavailable, Bought.NO),
        (whole(b'{"error": "upstream timing out"}', status=b"503 No"), RenderOutcomeUnknown, Bought.PERHAPS),
        (b"SSH-2.0-OpenSSH_9.6\r\n", RenderOutcomeUnknown, Bought.PERHAPS),
        (
            whole(b'{"error": "upstream request timeout"}', status=b"503 No"),
            RenderOutcomeUnknown,
            Bought.PERHAPS,
        ),
        (
            whole(b'{"error": {"type": "timeout_error", "message": "x"}}', status=b"503 No"),
            RenderOutcomeUnknown,
            Bought.PERHAPS,
        ),
        (whole(b'{"error": "no capacity"}', status=b"503 No"), GatewayUnavailable, Bought.NO),
        (
            whole(
                b'{"error": "upstream connect error or disconnect/reset before headers"}', status=b"503 No"
            ),
            RenderOutcomeUnknown,
            Bought.PERHAPS,
        ),
        (whole(JSON, status=b"400 No"), RenderOutcomeUnknown, Bought.PERHAPS),
        (whole(b'{"error": "timeout_s is unknown"}', status=b"400 No"), RequestRejected, Bought.NO),
    ],
)
def test_an_answer_without_a_link_says_no_more_than_it_knows(
    answer: bytes, error: type[CodeGatewayError], bought: Bought
) -> None:
    """A login page is not proof of a render, and a gateway that speaks of a time-out has begun one."""
    with gateway_that_sends(answer) as gateway, pytest.raises(CodeGatewayError) as outcome:
        read_receipt(post(gateway))
    assert (type(outcome.value), outcome.value.bought) == (error, bought)


def test_a_link_may_be_relative_to_the_gateway() -> None:
    """As browsers have it."""
    with gateway_that_sends(with_link("/v1/files/a.mp4?sig=1")) as gateway:
        answer = post(gateway)
    assert read_receipt(answer).url == f"{gateway.settings.base_url}/v1/files/a.mp4?sig=1"
    assert read_receipt(Answer.from_dict(answer.as_dict())).url == read_receipt(answer).url


ECHO = "https://example.com/input.mp4"


@pytest.mark.parametrize(
    "content",
    [
        {"data": [], "request": {"reference_video": {"url": ECHO}}},
        {"data": [], "input": [{"url": ECHO}]},
        {"error": "no", "data": {"input": {"video": {"url": ECHO}}}},
        {"error": "no", "url": ECHO},
        {"status": "queued", "url": ECHO},
        {"data": [{"thumbnail": {"url": ECHO}}]},
    ],
)
def test_a_link_to_something_else_is_not_the_clips(content: dict[str, Any]) -> None:
    """An echo of what was sent, a picture, the address of a queue."""
    body = json.dumps(content).encode()
    with gateway_that_sends(whole(body)) as gateway, pytest.raises(RenderOutcomeUnknown):
        read_receipt(post(gateway))


def test_the_video_is_taken_and_not_its_cover() -> None:
    """Where both have a link."""
    body = json.dumps({"data": [{"cover": {"url": ECHO}, "video": {"url": LINK}}]}).encode()
    with gateway_that_sends(whole(body)) as gateway:
        assert read_receipt(post(gateway)).url == LINK


@contextmanager
def gateway_that_goes_on(*pieces: bytes, held: bool = False) -> Iterator[Gateway]:
    """A gateway that sends its answer in pieces, a third of a second apart, and may hold the connection open."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(65536)
            with suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
                    done.wait(0.3)
                if held:
                    done.wait(60)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield Gateway(GatewaySettings(base_url=url, api_key="sk-cg-x", retries=0), limits=QUICK)
        finally:
            done.set()
            thread.join()


def test_what_says_that_a_render_is_under_way_does_not_end_the_wait() -> None:
    """The clip's link comes in a second line."""
    queued = json.dumps({"status": "queued", "url": ECHO}).encode() + b"\n"
    with gateway_that_goes_on(HEAD + b"\r\n" + queued, b"", JSON) as gateway:
        assert read_receipt(post(gateway)).url == LINK


def test_a_refusal_that_no_parser_reads_is_not_waited_for() -> None:
    """Though its connection is held open: the rest of the deadline would bring nothing."""
    refusal = whole(b'{"error": "no"}', b"Bad Header: 1", status=b"402 No").replace(
        b"Connection: close", b"X: 1"
    )
    with gateway_that_goes_on(refusal, held=True) as gateway, pytest.raises(RequestRejected, match="402"):
        post(gateway)


def test_an_answer_that_no_parser_reads_is_kept_when_the_task_is_stopped() -> None:
    """At once, and not only after a second of silence."""

    async def stopped(gateway: Gateway) -> Answer:
        async def load() -> bytes:
            return b'{"model": "google/veo-3.1-fast"}'

        buying = asyncio.create_task(gateway.generate(load))
        await asyncio.sleep(0.15)  # the answer is there by then; it is not whole before its link is
        buying.cancel()
        return await buying

    with gateway_that_goes_on(HTTP["header with a space"], held=True) as gateway:
        patient = Gateway(gateway.settings, limits=Limits(answer_silence=30.0))
        assert read_receipt(asyncio.run(stopped(patient))).url == LINK


def test_a_parser_s_quotation_of_a_link_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the answer was rescued, and nobody asked what the parser said."""
    with gateway_that_sends(HTTP["chunked and is not"]) as gateway:
        post(gateway)
    gc.collect()
    assert "X-Amz-Signature" not in caplog.text


@pytest.mark.parametrize("size", [250_000, 1_000_000])
def test_a_long_head_takes_time_in_proportion(size: int) -> None:
    """It is read on the event loop. One that took its square would not come to an end here."""
    head = HEAD + b"X: " + b"transfer-encoding:" * (size // 18) + b"\r\nBad Header: 1\r\n\r\n"
    assert raw_answer(head + JSON) == (200, JSON)


def test_a_success_before_the_request_was_sent_whole_bought_nothing() -> None:
    """A login page that answers at once and closes has passed nothing on."""
    page = whole(b"<html>Sign in</html>")
    with gateway_that_sends(page, read_all=False) as gateway, pytest.raises(GatewayUnavailable) as outcome:
        post(gateway, b"x" * 30_000_000)
    assert outcome.value.bought is Bought.NO


@pytest.mark.parametrize("status", [302, 307, 400, 401, 403, 404, 451, 503, 511])
def test_a_page_of_others_that_comes_as_late_as_an_answer_may_have_replaced_one(status: int) -> None:
    """A filter that reads answers puts its own page in their place. CodeGateway's own refusal is one at any time."""
    late = Limits(late_refusal=-1.0)
    for body, bought in ((b"<html>Blocked</html>", Bought.PERHAPS), (b'{"error": "no"}', Bought.NO)):
        with gateway_that_sends(whole(body, status=b"%d No" % status)) as gateway:
            gateway = Gateway(gateway.settings, limits=late)
            with pytest.raises(CodeGatewayError) as outcome:
                post(gateway)
        assert outcome.value.bought is (bought if status not in (302, 503) else Bought.PERHAPS)

"""Whatever others send, what becomes of it is safe text and finite numbers, of bounded length."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import httpcore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_codegateway.exceptions import LONGEST_MESSAGE, CodeGatewayError, from_dict
from airflow_provider_codegateway.foreign import LONGEST_TEXT, finite, safe_lines, safe_text
from airflow_provider_codegateway.gateway import Answer, BlockingCall, Gateway, GatewaySettings, read_receipt
from airflow_provider_codegateway.gateway.outcomes import classify_error, classify_refusal
from airflow_provider_codegateway.gateway.words import words_of
from airflow_provider_codegateway.http_dates import http_date, retry_after
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.redaction import redact_url, redact_urls

SETTINGS = GatewaySettings(base_url="https://api.example.com", api_key="sk-cg-secret", retries=0)
MIB = 1024 * 1024
HOSTILE = {
    "dotted": "a." * (MIB // 2),
    "words": "a" * MIB,
    "markup": "<script>" * (MIB // 8),
    "open tags": "<" * MIB,
    "urls": "https://x/?a=b " * (MIB // 15),
    "one url": "https://x/?" + "a" * MIB,
    "links": '"data":[{"url":"' * (MIB // 16),
    "spaces": '"data"' + " " * MIB,
    "quotes": '{"data": [{' + '"x":"y",' * (MIB // 8),
    "slashes": "://" * (MIB // 3),
    "questions": "?" * MIB,
    "nul": "\0" * MIB,
    "surrogates": "\ud83d" * MIB,
    "deep": "[" * MIB,
    "digits": "9" * MIB,
}

any_text = st.text(st.characters(exclude_categories=()), max_size=300)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "type", "message", "data", "url", "expires_at", "x"]), inner
        )
    ),
    max_leaves=8,
)
any_body = (
    st.binary(max_size=600)
    | any_json.map(lambda value: json.dumps(value).encode())
    | any_text.map(lambda text: text.encode("utf-8", "surrogatepass"))
)


def require_storable(value: Any) -> None:
    """PostgreSQL's JSONB, SQLite and UTF-8 take it."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    assert "\0" not in text
    # A NUL, and not a backslash that somebody wrote before "u0000".
    assert re.search(r"(?<!\\)(?:\\\\)*\\u0000", text) is None
    text.encode()
    assert len(text) < 6 * LONGEST_MESSAGE


def event_of(error: CodeGatewayError) -> dict[str, Any]:
    event = {"status": "failed", "error": error.as_dict()}
    assert str(from_dict(event["error"])) == str(error)  # type: ignore[arg-type]
    return event


@given(st.integers(300, 599), any_body, any_text, any_text)
def test_any_refusal_makes_an_event_that_can_be_stored(
    status: int, body: bytes, location: str, wait: str
) -> None:
    """Whatever is in its body, its Location and its Retry-After."""
    headers = {"location": location, "retry-after": wait}
    require_storable(event_of(classify_refusal(status, headers, body, settings=SETTINGS)))


@given(any_body)
def test_any_answer_makes_a_receipt_or_an_event_that_can_be_stored(body: bytes) -> None:
    """And can be kept and read again."""
    answer = Answer(body=body, render_seconds=1, received_at=1_749_200_000.0)
    assert Answer.from_dict(json.loads(json.dumps(answer.as_dict(), allow_nan=False))) == answer
    try:
        require_storable(asdict(read_receipt(answer)))
    except CodeGatewayError as error:
        require_storable(event_of(error))


@given(any_json, any_json)
def test_any_value_beside_a_link_is_understood_or_absent(created: Any, expires_at: Any) -> None:
    """The link is what was paid for."""
    content = {"created": created, "expires_at": expires_at, "data": [{"url": "https://x.example.com/a.mp4"}]}
    receipt = read_receipt(Answer(body=json.dumps(content).encode(), render_seconds=1))
    assert receipt.url == "https://x.example.com/a.mp4"
    require_storable(asdict(receipt))


@given(any_text)
def test_any_error_of_httpcore_makes_an_event_that_can_be_stored(text: str) -> None:
    """It quotes what the server sent."""
    require_storable(event_of(classify_error(httpcore.RemoteProtocolError(text))))


@given(st.text(max_size=40), st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=40))
def test_no_query_is_left_whatever_stands_before_a_url(before: str, secret: str) -> None:
    """A word that runs into the scheme hides nothing."""
    assert f"sig={secret}Z" not in redact_urls(f"{before}https://user:pw@x.example.com/a?sig={secret}Z")


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_mebibyte_of_anything_becomes_a_short_text(kind: str) -> None:
    """It is cut before any pattern sees it."""
    text = HOSTILE[kind]
    body = text.encode("utf-8", "surrogatepass")
    assert len(safe_text(text)) <= LONGEST_TEXT + 1
    assert len(safe_text(body)) <= LONGEST_TEXT + 1
    assert len(redact_urls(text)) <= LONGEST_TEXT + 40
    assert len(redact_url(text)) <= LONGEST_TEXT + 1
    assert len(safe_lines(text, LONGEST_MESSAGE)) <= LONGEST_MESSAGE + 1
    assert len(words_of(body)) <= 301
    assert http_date(text) is None
    assert retry_after(text) is None
    require_storable(event_of(classify_refusal(400, {"location": text}, body, settings=SETTINGS)))
    with pytest.raises(CodeGatewayError) as unusable:
        read_receipt(Answer(body=body[:MIB], render_seconds=1))
    require_storable(event_of(unusable.value))


def test_words_of_everyday_are_shown() -> None:
    """They are what a person needs."""
    for text in (
        "policy=none of that",
        "max_tokens=1024, token=1024",
        "content policy: violation",
        "it's 'https://h/a?b' ok",
    ):
        assert redact_urls(text).replace("?b", "") == text.replace("?b", "")


@pytest.mark.parametrize(
    "text",
    [
        "https://x.example.com/a?x='1'&sig=SECRET",
        "GET /a;jsessionid=SECRET at https://x.example.com/a;jsessionid=SECRET",
        "X-Amz-Signature=SECRET&X-Amz-Date=1",
        "x-amz-security-token=SECRET, Signature=SECRET; token=SECRET",
        "AWSAccessKeyId=SECRET&Expires=1",
        "x-goog-signature: SECRET",
        '{"signature": "SECRET", "X-Amz-Credential":"SECRET"}',
    ],
)
def test_a_signature_is_hidden_wherever_it_stands(text: str) -> None:
    """With a quotation mark before it, in the path, or without a URL around it."""
    assert "SECRET" not in redact_urls(text).replace("GET /a;jsessionid=SECRET", "")


def test_numbers_are_finite_or_absent() -> None:
    """JSON has neither NaN nor infinity, and a float no 400 digits."""
    assert [finite(value) for value in (1, 1.5, float("nan"), float("inf"), 10**400, True, "1", None)] == [
        *(1.0, 1.5),
        *([None] * 6),
    ]


# Over a socket.


class Parrot:
    """A server that answers each request with the bytes it was given last."""

    def __init__(self, listener: socket.socket) -> None:
        self.answer = b""
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._listener = listener

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                seen = b""
                while not seen.endswith(b"}") and (chunk := connection.recv(65536)):
                    seen += chunk
                if seen == b"}":
                    return
                with suppress(OSError):  # the client need not read all of it
                    connection.sendall(self.answer)


@contextmanager
def parrot() -> Iterator[Parrot]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Parrot(listener)
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        with socket.create_connection(listener.getsockname()) as last:
            last.sendall(b"}")
        thread.join()


def head(status: bytes, reason: bytes, name: bytes, value: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b %b\r\n%b: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        reason,
        name,
        value,
        len(body),
        body,
    )


any_answer = st.binary(max_size=400) | st.builds(
    head,
    st.sampled_from([b"200", b"204", b"301", b"400", b"429", b"503", b"599"]) | st.binary(max_size=4),
    st.binary(max_size=60),
    st.sampled_from([b"Location", b"Retry-After", b"Content-Encoding", b"X"]) | st.binary(max_size=10),
    st.binary(max_size=60),
    any_body,
)


async def load() -> bytes:
    return b'{"model": "google/veo-3.1-fast"}'


def test_any_bytes_on_the_wire_make_an_answer_or_an_event_that_can_be_stored() -> None:
    """Whatever stands where the status line, a header or the body should."""
    with parrot() as server:
        gateway = Gateway(
            GatewaySettings(base_url=server.url, api_key="sk-cg-secret", retries=0),
            limits=Limits(answer_silence=0.05),
        )

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(any_answer)
        def fuzz(answer: bytes) -> None:
            server.answer = answer
            try:
                require_storable(asdict(read_receipt(BlockingCall().run(gateway.generate(load)))))
            except CodeGatewayError as error:
                require_storable(event_of(error))

        fuzz()


@pytest.mark.parametrize("kind", sorted(HOSTILE))
@pytest.mark.parametrize("where", ["status line", "header", "body"])
def test_a_mebibyte_on_the_wire_makes_an_event_that_can_be_stored(kind: str, where: str) -> None:
    """Wherever it stands."""
    text = HOSTILE[kind].encode("utf-8", "surrogatepass")
    parts = {"reason": b"No", "value": b"x", "body": b""}
    parts[{"status line": "reason", "header": "value", "body": "body"}[where]] = text
    with parrot() as server:
        server.answer = head(b"400", parts["reason"], b"Location", parts["value"], parts["body"])
        gateway = Gateway(GatewaySettings(base_url=server.url, api_key="sk-cg-secret", retries=0))
        with pytest.raises(CodeGatewayError) as outcome:
            BlockingCall().run(gateway.generate(load))
    require_storable(event_of(outcome.value))


@pytest.mark.parametrize("shown", range(1, 32, 3))
def test_a_key_that_is_echoed_across_a_cut_is_hidden_whole(shown: int) -> None:
    """What comes before it is shortened, so that the cut is in the middle of the key and near the start of the line."""
    key = "sk-cg-SecretOfTheTests0123456789"
    before = LONGEST_TEXT - shown
    answer = b"".join(b"A" * 99 + b" " for _ in range(before // 100)) + b" " * (before % 100) + key.encode()
    said = words_of(answer, key)
    assert key[: min(shown, 6)] not in said.split()[-1]
    assert len(said) < 300


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX-Echo Authorization: Bearer %s\r\n\r\n",
        b"HTTP/1.1 20X Bearer %s\r\n\r\n",
        b"HTTP/1.1 308 Moved\r\nLocation: https://elsewhere.example/%s/v1/video/generate\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["header", "status line", "redirect"],
)
def test_a_key_in_a_head_that_cannot_be_read_is_shown_nowhere(answer: bytes) -> None:
    """The parser quotes what it does not understand."""
    key = "sk-cg-SecretOfTheTests0123456789"
    with parrot() as server:
        server.answer = answer % key.encode()
        gateway = Gateway(GatewaySettings(base_url=server.url, api_key=key, retries=0))
        with pytest.raises(CodeGatewayError) as outcome:
            BlockingCall().run(gateway.generate(load))
    assert "SecretOf" not in str(event_of(outcome.value)) + str(outcome.value)

"""The class of every outcome, over real sockets wherever a socket can produce it."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import httpcore
import httpx
import pytest
from media_samples import png_base64

from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.emulator.faults import OddShape
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    ContentRefused,
    GatewayUnavailable,
    InvalidConnection,
    RenderOutcomeUnknown,
    RequestRejected,
)
from airflow_provider_codegateway.gateway import (
    Answer,
    BlockingCall,
    Gateway,
    GatewaySettings,
    Receipt,
    checked_settings,
    read_receipt,
)
from airflow_provider_codegateway.gateway.outcomes import (
    NEVER_SENT,
    classify_error,
    classify_refusal,
    retry_delay,
)
from airflow_provider_codegateway.gateway.words import words_of
from airflow_provider_codegateway.http_dates import retry_after
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.models import build_request

REQUEST = build_request("google/veo-3.1-fast", prompt="a lighthouse")
SETTINGS = GatewaySettings(base_url="https://api.example.com", api_key="sk-cg-secret")


@pytest.fixture(autouse=True)
def _tiny_clip(gateway: Emulator) -> None:
    gateway.serve_clip(b"\0\0\0\x18ftypmp42")


def settings_for(gateway: Emulator, **changes: Any) -> GatewaySettings:
    return replace(GatewaySettings(base_url=gateway.url, api_key=gateway.api_key, retries=0), **changes)


def generate(settings: GatewaySettings, limits: Limits = LIMITS) -> Receipt:
    return read_receipt(BlockingCall().run(Gateway(settings, limits=limits).generate(REQUEST.content)))


# The table.


def test_every_error_of_httpcore_has_one_class_and_only_the_never_sent_ones_bought_nothing() -> None:
    """The list is complete for the installed httpcore: whatever it does not name counts as unknown."""
    errors = [
        each for each in vars(httpcore).values() if isinstance(each, type) and issubclass(each, Exception)
    ]
    assert len(errors) > 10
    for error in errors:
        classified = classify_error(error("broken"))
        if issubclass(error, NEVER_SENT):
            assert type(classified) is GatewayUnavailable
            assert classified.bought is Bought.NO
        else:
            assert type(classified) is RenderOutcomeUnknown
            assert classified.bought is Bought.PERHAPS
    assert {error.__name__ for error in errors if issubclass(error, NEVER_SENT)} == {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
    }


@pytest.mark.parametrize(
    "error", [ValueError("?"), RuntimeError("?"), httpcore.ConnectionNotAvailable(), OSError(5, "io")]
)
def test_an_error_that_nobody_expected_counts_as_unknown(error: Exception) -> None:
    """Unlisted means unknown, never "nothing was bought"."""
    assert type(classify_error(error)) is RenderOutcomeUnknown


REFUSED = {
    *(301, 307, 308),
    *(400, 401, 402, 403, 404, 405, 406, 407),
    *(411, 413, 414, 415, 416, 417, 421, 422, 426, 428, 431, 451, 511),
}
OWN = {
    "plain": b'{"error": "no"}',
    "object": b'{"error": {"type": "error", "message": "no"}}',
}
NOT_OWN = {
    "none": b"",
    "html": b"<html><body><h1>no</h1></body></html>",
    "text": b"upstream connect error or disconnect/reset before headers",
    "null": b'{"error": null}',
    "blank": b'{"error": " "}',
    "spring": b'{"timestamp": 1, "status": 503, "error": "Service Unavailable", "path": "/v1/video/generate"}',
    "kong": b'{"message": "API rate limit exceeded"}',
    "half": b'{"error": {"type": "overloaded_error", "mess',
    "list": b'[{"error": "no"}]',
}


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_has_the_class_of_the_table(status: int) -> None:
    """With CodeGateway's envelope, a body of others, and none: what bought nothing is the table's list."""
    unknown = (RenderOutcomeUnknown, Bought.PERHAPS)
    for body in (*OWN.values(), *NOT_OWN.values()):
        error = classify_refusal(status, {}, body, settings=SETTINGS)
        expected: tuple[type[CodeGatewayError], Bought] = unknown
        if status in REFUSED:
            expected = (RequestRejected, Bought.NO)
        elif status in {429, 503} and body in OWN.values():
            expected = (GatewayUnavailable, Bought.NO)
        assert (type(error), error.bought) == expected, body
        assert str(status) in str(error)


@pytest.mark.parametrize("status", range(300, 600))
def test_whoever_answers_a_request_that_was_not_sent_whole_nothing_was_bought(status: int) -> None:
    """The gateway cannot render half a request."""
    for body in (*OWN.values(), *NOT_OWN.values()):
        error = classify_refusal(status, {}, body, settings=SETTINGS, seconds=None)
        assert error.bought is Bought.NO
        assert isinstance(error, RequestRejected if status in REFUSED else GatewayUnavailable)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504, 302, 418])
def test_the_gateways_statuses_arrive_as_their_classes(status: int, gateway: Emulator) -> None:
    """Over a socket, with the body of the guide and with a proxy's HTML."""
    for html in (False, True):
        gateway.fail_next(Fault.status(status, html=html))
        with pytest.raises(CodeGatewayError) as outcome:
            generate(settings_for(gateway))
        assert f"answered {status}" in str(outcome.value)
        assert "<" not in str(outcome.value)
    assert gateway.billed == 0


@pytest.mark.parametrize("who", ["envoy", "heroku", "nginx", "cloudflare", "rate_limiter"])
def test_the_answer_of_somebody_between_proves_nothing_and_is_not_sent_again(
    who: Any, gateway: Emulator
) -> None:
    """Envoy and Heroku answer 503 for a request that the gateway goes on with."""
    gateway.fail_next(Fault.foreign(who))
    with pytest.raises(RenderOutcomeUnknown) as outcome:
        generate(settings_for(gateway, retries=3))
    assert outcome.value.bought is Bought.PERHAPS
    assert len(gateway.ledger) == 1


def test_only_codegateway_itself_speaks_of_the_balance(gateway: Emulator) -> None:
    """A corporate proxy's 403 has nothing to do with it."""
    gateway.fail_next(Fault.foreign("corporate_proxy"))
    with pytest.raises(RequestRejected, match="let this machine's network pass"):
        generate(settings_for(gateway))
    gateway.fail_next(Fault.status(403))
    with pytest.raises(RequestRejected, match="Check the balance"):
        generate(settings_for(gateway))


@pytest.mark.parametrize("code", [301, 307, 308])
def test_a_redirect_names_the_base_url_to_use(code: int, gateway: Emulator) -> None:
    """It is not followed: a POST with a key and a price goes where it was sent, or nowhere."""
    gateway.fail_next(Fault.redirect(code=code))
    with pytest.raises(RequestRejected) as outcome:
        generate(settings_for(gateway))
    assert f"set the connection's base URL to {gateway.url.replace('http:', 'https:')}." in str(outcome.value)
    assert len(gateway.ledger) == 1


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "It does not say where to"),
        ("http://[::1", "It does not say where to"),
        (
            "https://login.example.com/?next=secret",
            "It redirects to https://login.example.com/, which is not",
        ),
        ("/v2/v1/video/generate?x=secret", "set the connection's base URL to https://api.example.com/v2."),
    ],
)
def test_a_redirect_elsewhere_is_named_as_well(location: str, words: str) -> None:
    """Without its query."""
    error = classify_refusal(308, {"location": location}, b"", settings=SETTINGS)
    assert words in str(error)
    assert "secret" not in str(error)


def test_a_refused_prompt_has_a_class_of_its_own() -> None:
    """Where the envelope's type says that the content was refused."""
    body = b'{"error": {"type": "content_policy_violation", "message": "no violence"}}'
    error = classify_refusal(400, {}, body, settings=SETTINGS)
    assert type(error) is ContentRefused
    assert error.status == 400


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"error": "prompt is required"}', "answered 400: prompt is required."),
        (
            b'{"error": {"type": "permission_denied", "message": "insufficient balance"}}',
            "insufficient balance",
        ),
        (b'  \n {"error": "late"}', "answered 400: late."),
        (b"<html><head><title>no</title></head><body><h1>Bad &amp; sad</h1></body></html>", "Bad"),
        (b"", "(an empty body)"),
        (b"\xff\xfe\x00", "answered 400"),
        (b'["what"]', "what"),
        (b'{"error": null}', "null"),
        (b"[" * 100_000, "answered 400"),
    ],
)
def test_both_envelopes_html_and_noise_become_words(answer: bytes, words: str) -> None:
    """Whatever a gateway or a proxy says, the error says it in one line."""
    outcome = classify_refusal(400, {}, answer, settings=SETTINGS)
    assert words in str(outcome)
    assert len(str(outcome)) < 500


def test_the_gateways_words_are_stripped_of_secrets() -> None:
    """A gateway that echoes the key, a signed URL or an image does not put them into our logs."""
    echo = {
        "error": f"bad key sk-cg-secret for https://x.example.com/a.png?X-Amz-Signature=abc {'QUJD' * 50}"
    }
    outcome = classify_refusal(400, {}, json.dumps(echo).encode(), settings=SETTINGS)
    for secret in ("sk-cg-secret", "Signature", "QUJDQUJD"):
        assert secret not in str(outcome)
    assert "sk-cg" not in words_of(b"no key sk-cg-a%2Fb%2B", "sk-cg-a/b+")


# Receipts.


def test_a_render_is_answered_with_a_receipt(gateway: Emulator) -> None:
    """The answer's fields arrive; the link is in no repr."""
    receipt = generate(settings_for(gateway))
    assert receipt.model == REQUEST.model
    assert receipt.expires_at is not None
    assert receipt.created is not None
    assert receipt.render_seconds > 0
    assert httpx.get(receipt.url).content == b"\0\0\0\x18ftypmp42"
    assert "Signature" not in repr(receipt)


def test_a_raw_link_has_no_expiry(gateway: Emulator) -> None:
    """Without storage credentials the gateway answers a raw URL and no ``expires_at``."""
    gateway.serving = "raw"
    receipt = generate(settings_for(gateway))
    assert (receipt.serving, receipt.expires_at) == ("raw", None)


def test_white_space_before_the_answer_is_no_matter(gateway: Emulator) -> None:
    """Some gateways keep the connection alive that way."""
    gateway.fail_next(Fault.leading_whitespace())
    assert generate(settings_for(gateway)).url


@pytest.mark.parametrize("shape", ["empty", "missing", "null", "no_item_url", "blank", "error"])
def test_200_without_a_usable_url_was_bought_and_says_so(shape: Any, gateway: Emulator) -> None:
    """Filtered prompts and the like: the gateway's words, and that money was spent."""
    gateway.fail_next(Fault.no_url(shape))
    with pytest.raises(RenderOutcomeUnknown) as outcome:
        generate(settings_for(gateway))
    assert outcome.value.bought is Bought.YES
    assert "One render was bought." in str(outcome.value)


LINK = "https://x.example.com/a.mp4?X-Amz-Signature=abc"
NOW = 1_749_200_000.0


def receipt_of(body: bytes | dict[str, Any]) -> Receipt:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_receipt(Answer(body=body, render_seconds=1, received_at=NOW))


@pytest.mark.parametrize(
    "url", ["ftp://x/a", "a.mp4", "https://", 7, "https://[::1", "", None, "\ud83d", "x" * 9000]
)
def test_an_answer_without_a_link_was_bought_and_says_so(url: object) -> None:
    """What is no link of the web is not one."""
    with pytest.raises(RenderOutcomeUnknown) as outcome:
        receipt_of({"data": [{"url": url}]})
    assert outcome.value.bought is Bought.YES


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"data": [{"url": f" \r\n\t{LINK[:20]}\n{LINK[20:]} \n"}]}).encode(),
        json.dumps({"data": [{"url": LINK}]}).encode()[:-3],
        json.dumps({"data": [{"url": LINK}]}).encode("utf-16"),
        json.dumps({"data": [{"url": LINK}]}).encode("utf-8-sig"),
        json.dumps({"data": [{"url": LINK}]}).encode() + b"\n<!-- cache -->",
        gzip.compress(json.dumps({"data": [{"url": LINK}]}).encode(), mtime=0),
        gzip.compress(gzip.compress(json.dumps({"data": [{"url": LINK}]}).encode(), mtime=0), mtime=0),
        b'{"created": ' + b"9" * 5000 + b', "data": [{"url": "' + LINK.encode() + b'"}]}',
        b'{"created": NaN, "expires_at": 1e999, "data": [{"url": "' + LINK.encode() + b'"}]}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "data": [{"url": "' + LINK.encode() + b'"}]}',
        b'  \n {"model": "\\u0000\\ud83d", "data": [{"url": "' + LINK.encode() + b'", "n": -1}, 7]}',
    ],
)
def test_an_odd_answer_with_a_link_is_an_answer(body: bytes) -> None:
    """The render is paid for: as much is understood as can be."""
    receipt = receipt_of(body)
    assert receipt.url == LINK
    assert (receipt.created, receipt.expires_at) == (None, None)
    receipt.model.encode()


@pytest.mark.parametrize(
    ("value", "understood"),
    [
        (NOW + 3600, NOW + 3600),
        (int(NOW + 3600) * 1000, NOW + 3600),
        (int(NOW + 3600) * 1_000_000, NOW + 3600),
        (str(int(NOW + 3600)), NOW + 3600),
        ("2025-06-06T09:53:20Z", NOW + 3600),
        ("2025-06-06T09:53:20", NOW + 3600),
        ("2025-06-06T11:53:20+02:00", NOW + 3600),
        *((odd, None) for odd in (NOW - 1, NOW, 0, -1, 10**400, 1e300, "in an hour", "", None, True, 3600)),
    ],
)
def test_expires_at_is_understood_or_absent(value: object, understood: float | None) -> None:
    """Whatever its unit; a time that a fresh link cannot have is none."""
    assert receipt_of({"expires_at": value, "data": [{"url": LINK}]}).expires_at == understood


def test_a_compressed_bomb_is_not_unpacked() -> None:
    """Each layer gives a MiB at most."""
    bomb = gzip.compress(gzip.compress(b" " * 200_000_000, 9), 9, mtime=0)
    with pytest.raises(RenderOutcomeUnknown):
        receipt_of(bomb)


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault.whole_json(then) for then in ("length", "chunk", "reset", "held")),
        *(Fault.odd_answer(shape) for shape in get_args(OddShape)),
        Fault.encoded("gzip"),
        Fault.encoded("gzip_unlabelled"),
        Fault.encoded("unknown"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.shape}",
)
def test_an_answer_that_http_or_json_does_not_allow_is_used_all_the_same(
    fault: Fault, gateway: Emulator
) -> None:
    """Over a socket: the link works, and one render was billed."""
    gateway.fail_next(fault)
    receipt = generate(settings_for(gateway))
    assert httpx.get(receipt.url).status_code == 200
    assert gateway.billed == 1


def test_a_bomb_over_a_socket_costs_its_own_render_alone(gateway: Emulator) -> None:
    """It is kept as it came, and not unpacked."""
    gateway.fail_next(Fault.encoded("bomb"))
    answer = BlockingCall().run(Gateway(settings_for(gateway)).generate(REQUEST.content))
    assert len(answer.body) < 1024 * 1024
    with suppress(RenderOutcomeUnknown):
        read_receipt(answer)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\x00", "paper \u2028".encode(), b"sk-cg-x"])
def test_an_answer_is_kept_byte_for_byte(body: bytes) -> None:
    """Through JSON and back."""
    answer = Answer(status=201, body=body, render_seconds=1.5, received_at=NOW, is_secure=True)
    assert Answer.from_dict(json.loads(json.dumps(answer.as_dict()))) == answer


def test_the_receipts_of_the_first_versions_are_read() -> None:
    """They held what had been read, in place of the answer."""
    old = {
        "url": LINK,
        "model": "m",
        "render_seconds": 2.5,
        "created": NOW - 9,
        "serving": "raw",
        "expires_at": NOW,
    }
    assert asdict(read_receipt(Answer.of_receipt(old))) == old


# Broken connections.


def test_a_refused_connection_bought_nothing(gateway: Emulator) -> None:
    """Nobody listens: the gateway was never reached."""
    with gateway.down(), pytest.raises(GatewayUnavailable, match="could not be reached"):
        generate(settings_for(gateway))


def test_a_failed_tls_handshake_bought_nothing(gateway: Emulator) -> None:
    """The request is sent only after the handshake."""
    with pytest.raises(GatewayUnavailable):
        generate(settings_for(gateway, base_url=gateway.url.replace("http://", "https://")))
    assert gateway.accepted == 0


def test_an_unknown_host_bought_nothing(gateway: Emulator) -> None:
    """A name that does not resolve was never reached."""
    with pytest.raises(GatewayUnavailable):
        generate(settings_for(gateway, base_url="https://nowhere.invalid"))


@pytest.mark.parametrize(
    ("fault", "billed"),
    [
        (Fault.reset_before(), 0),
        (Fault.reset_after(), 1),
        (Fault.truncated_body(), 1),
        (Fault.html(200), 1),
        (Fault.status(500, billed=True), 1),
        (Fault.status(502), 0),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_what_was_sent_and_not_wholly_answered_is_unknown_and_not_sent_again(
    fault: Fault, billed: int, gateway: Emulator
) -> None:
    """The caller cannot tell these apart, so none of them is repeated by the call itself."""
    gateway.fail_next(fault)
    with pytest.raises(RenderOutcomeUnknown):
        generate(settings_for(gateway, retries=3))
    assert len(gateway.ledger) == 1
    assert gateway.billed == billed


def test_a_silent_gateway_is_given_up_at_the_read_timeout(gateway: Emulator) -> None:
    """Silence is an unknown outcome, not a free one."""
    gateway.fail_next(Fault.hang())
    with pytest.raises(RenderOutcomeUnknown, match="ReadTimeout"):
        generate(settings_for(gateway, read_timeout=0.2))


def test_a_trickling_gateway_is_given_up_at_the_deadline(gateway: Emulator) -> None:
    """Bytes that keep coming do not keep the call alive for ever."""
    gateway.fail_next(Fault.slow_body(1))
    with pytest.raises(RenderOutcomeUnknown, match=r"deadline of 0\.5 s"):
        generate(settings_for(gateway, deadline=0.5))


@contextmanager
def answering(answer: bytes, *, reads: int, hard: bool = False) -> Iterator[str]:
    """A server that reads so many bytes of one request, answers, and closes; as a URL."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            seen, chunk = 0, b""
            while seen < reads and not chunk.endswith(b"}"):  # the end of a small request
                chunk = connection.recv(min(65536, reads - seen))
                seen += len(chunk)
            connection.sendall(answer)
            if hard:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_an_error_whose_body_breaks_off_is_nobodys_envelope() -> None:
    """Half a 429 may be anybody's."""
    answer = b'HTTP/1.1 429 Slow\r\nContent-Length: 100\r\n\r\n{"error": '
    with answering(answer, reads=100_000) as url, pytest.raises(RenderOutcomeUnknown, match="answered 429"):
        generate(GatewaySettings(base_url=url, api_key="sk-cg-x"))


# A body that was not sent whole.

LARGE = b"x" * 19_000_000


def post(settings: GatewaySettings, content: bytes) -> Receipt:
    async def load() -> bytes:
        return content

    return read_receipt(BlockingCall().run(Gateway(settings).generate(load)))


def test_a_413_during_the_upload_is_read_and_bought_nothing(gateway: Emulator) -> None:
    """A proxy answers and closes while 19 MB are still being sent."""
    gateway.fail_next(Fault.cut_upload(413))
    with pytest.raises(RequestRejected, match="answered 413") as outcome:
        post(settings_for(gateway), LARGE)
    assert outcome.value.status == 413
    assert gateway.billed == 0


def test_a_reset_during_the_upload_bought_nothing(gateway: Emulator) -> None:
    """The last bytes never left this machine."""
    gateway.fail_next(Fault.cut_upload(None))
    with pytest.raises(GatewayUnavailable, match="before the request was sent whole"):
        post(settings_for(gateway), LARGE)


@pytest.mark.parametrize("hard", [False, True])
def test_a_foreign_503_during_the_upload_bought_nothing(hard: bool) -> None:
    """Who has not read the whole request cannot have passed it on."""
    answer = b"HTTP/1.1 503 No\r\nContent-Length: 4\r\nRetry-After: 5\r\n\r\nbusy"
    with answering(answer, reads=100_000, hard=hard) as url, pytest.raises(GatewayUnavailable):
        post(GatewaySettings(base_url=url, api_key="sk-cg-x", retries=0), LARGE)


def test_a_refusal_ends_the_upload_also_where_the_connection_stays_open() -> None:
    """The rest is not sent: nobody reads it."""
    hung_up = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
            hung_up.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RequestRejected, match="answered 413"):
            post(GatewaySettings(base_url=url, api_key="sk-cg-x"), LARGE)
        hung_up.set()
        thread.join()


def test_a_large_body_arrives_whole(gateway: Emulator) -> None:
    """In pieces, while the connection is read."""
    request = {"model": "google/veo-3.1-fast", "prompt": "x", "image_input": png_base64()}
    assert post(settings_for(gateway), json.dumps(request).encode() + b" " * 9_000_000).url
    assert gateway.billed == 1


TCP = Path("/proc/self/net/tcp")


@pytest.mark.skipif(not TCP.exists(), reason="only Linux tells of its sockets' timers in /proc")
def test_a_silent_connection_is_kept_alive(gateway: Emulator) -> None:
    """A NAT forgets a connection over which nothing passes for two minutes."""
    port = f"{httpx.URL(gateway.url).port:04X}"
    with ThreadPoolExecutor(1) as thread, gateway.holding():
        running = thread.submit(generate, settings_for(gateway))
        gateway.wait_for(rendering=1)
        rows = [line.split() for line in TCP.read_text().splitlines()[1:]]
        timers = {row[5].partition(":")[0] for row in rows if row[2].endswith(f":{port}") and row[3] == "01"}
    assert timers == {"02"}
    assert running.result().url


# Retries of what bought nothing.


def test_what_bought_nothing_is_tried_again_within_the_call(gateway: Emulator) -> None:
    """Two busy answers and a render: one bill."""
    gateway.fail_next(Fault.status(429))
    gateway.fail_next(Fault.status(503))
    assert generate(settings_for(gateway, retries=3), Limits(longest_backoff=0.0)).url
    assert (gateway.refused, gateway.billed) == (2, 1)


def test_retries_are_bounded(gateway: Emulator) -> None:
    """After the last one the error goes to Airflow, with what the gateway asked for."""
    gateway.fail_next(Fault.status(429, retry_after=0), times=9)
    with pytest.raises(GatewayUnavailable) as outcome:
        generate(settings_for(gateway, retries=2))
    assert outcome.value.retry_after == 0
    assert len(gateway.ledger) == 3


@pytest.mark.parametrize(
    ("attempt", "retry_after", "left", "waits"),
    [
        (1, None, 300, True),
        (3, None, 300, True),
        (4, None, 300, False),  # retries=3
        (1, 30, 300, True),
        (1, 61, 300, False),  # longer than a worker slot should be held for nothing
        (1, 30, 200, False),  # would leave less than 180 s for a render
    ],
)
def test_a_retry_is_made_only_if_it_leaves_a_render_its_time(
    attempt: int, retry_after: float | None, left: float, waits: bool
) -> None:
    """One deadline holds for the whole call, retries included."""
    delay = retry_delay(attempt, retry_after, left, SETTINGS)
    assert (delay is not None) == waits
    if delay is not None and retry_after is not None:
        assert delay >= retry_after


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("-3", 0.0),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("9" * 5000, None),
        ("1e400", None),
    ],
)
def test_retry_after_in_seconds(header: str, seconds: float | None) -> None:
    """A number of seconds; nonsense is no wish."""
    assert retry_after(header) == seconds
    error = classify_refusal(503, {"retry-after": header}, OWN["plain"], settings=SETTINGS)
    assert isinstance(error, GatewayUnavailable)
    assert error.retry_after == seconds


def test_retry_after_as_a_date() -> None:
    """An HTTP date is the other form that the standard allows."""
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    seconds = retry_after(date)
    assert seconds is not None
    assert 90 < seconds <= 100


# While it renders.


def test_the_log_says_that_it_renders(gateway: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Two silent minutes look like a hang: one line an interval, with the elapsed time."""
    gateway.render_seconds = 0.3
    with caplog.at_level(logging.INFO):
        generate(settings_for(gateway), Limits(progress_interval=0.05))
    assert sum("Rendering for" in record.message for record in caplog.records) >= 2


def test_cancelling_closes_the_connection(gateway: Emulator) -> None:
    """``on_kill`` ends the wait at once; the gateway sees the client hang up."""
    gateway.render_seconds = 0.5
    call = BlockingCall()

    def stop() -> None:
        gateway.wait_for(rendering=1)
        assert call.cancel()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(asyncio.CancelledError):
        call.run(Gateway(settings_for(gateway)).generate(REQUEST.content))
    stopper.join()
    gateway.wait_for(hung_up=1)
    assert not call.cancel()


def test_the_key_and_the_signature_are_in_no_log(gateway: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """httpx and httpcore log requests; not with our secrets in them."""
    with caplog.at_level(logging.DEBUG):
        generate(settings_for(gateway))
    assert gateway.api_key not in caplog.text
    assert "Signature=" not in caplog.text


# Settings from a connection.


@pytest.mark.parametrize("key", [" sk-cg-x", "sk-cg-x \n", "\tsk-cg-x"])
def test_white_space_around_a_pasted_key_is_stripped(key: str) -> None:
    """A trailing space in a pasted key is a common fault."""
    assert checked_settings(api_key=key, base_url=None, where="c").api_key == "sk-cg-x"


@pytest.mark.parametrize("key", [None, "", "  ", "sk-cg-a b", "sk-cg-ä", "sk-cg-a\nb"])
def test_an_unusable_key_is_refused_without_being_shown(key: str | None) -> None:
    """A key with white space inside is never sent, and no key is ever quoted."""
    with pytest.raises(InvalidConnection) as refusal:
        checked_settings(api_key=key, base_url=None, where="connection 'c'")
    assert "connection 'c'" in str(refusal.value)
    assert "sk-cg-a" not in str(refusal.value)


@pytest.mark.parametrize("url", ["ftp://x", "https://", "https://u:p@x", "https://x/?q=1", "http://[", "://"])
def test_an_unusable_base_url_is_refused(url: str) -> None:
    """What would fail at every call fails when the connection is read."""
    with pytest.raises(InvalidConnection, match="base URL"):
        checked_settings(api_key="sk-cg-x", base_url=url, where="c")


def test_a_short_deadline_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """Below 180 s a render is cut off and may be billed all the same."""
    Gateway(replace(SETTINGS, deadline=60))
    assert "deadline of 60 s is below 180 s" in caplog.text

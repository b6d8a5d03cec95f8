"""The connection: how it may be written, what its test answers, and where that test runs."""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from airflow_run import AIRFLOW

from airflow_provider_codegateway.emulator import Emulator, Fault
from airflow_provider_codegateway.exceptions import InvalidConnection
from airflow_provider_codegateway.gateway import Gateway, GatewaySettings
from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
from airflow_provider_codegateway.net import tls_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "sk-cg-SecretOfTheConnection01"
NOTHING_BOUGHT = "Nothing was bought by this test."
SURELY = "this test should have cost nothing."
FOREIGN = "This is not how CodeGateway answers"
PORTAL = "<html><head><title>Guests</title></head><body>Please log in.</body></html>"

pytestmark = pytest.mark.usefixtures("airflow_database")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)


def hook_of(monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any] | str) -> CodeGatewayVideoHook:
    """The hook of a connection in the environment, as JSON or as a URI."""
    text = connection if isinstance(connection, str) else json.dumps(connection)
    monkeypatch.setenv("AIRFLOW_CONN_TESTED", text)
    return CodeGatewayVideoHook("tested")


def answer_of_test(
    monkeypatch: pytest.MonkeyPatch, host: str, key: str = KEY, **extra: Any
) -> tuple[bool, str]:
    """What the test of a connection answers; in no case with the key."""
    connection = {"conn_type": "codegateway", "host": host, "password": key, "extra": extra}
    passed, words = hook_of(monkeypatch, connection).test_connection()
    assert key not in words
    assert len(words) <= 2000  # Airflow's limit for what a worker reports
    return passed, words


# What the gateway, or something in its place, answers.


def test_a_good_connection_passes_and_costs_nothing(
    gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request, to Veo, without a prompt: what the gateway must refuse."""
    passed, words = answer_of_test(monkeypatch, gateway.url, gateway.api_key)
    assert passed
    assert "accepts the API key" in words
    assert words.endswith(NOTHING_BOUGHT)
    (asked,) = gateway.ledger
    assert (asked.model, asked.prompt, asked.status) == ("google/veo-3.1-fast", None, 400)
    assert gateway.billed == 0


ANSWERS: list[tuple[Fault, list[str]]] = [
    (Fault.status(400, html=True), ["answered 400", FOREIGN, NOTHING_BOUGHT]),
    (
        Fault.status(400, body="The plain HTTP request was sent to HTTPS port"),
        ["plain HTTP request", FOREIGN],
    ),
    (Fault.status(400, body='{"error": {"code": 1}}'), ["answered 400", FOREIGN, NOTHING_BOUGHT]),
    (Fault.status(401), ["answered 401", "does not take the API key", NOTHING_BOUGHT]),
    (Fault.status(401, html=True), ["answered 401", FOREIGN]),
    (Fault.status(403), ["answered 403", "check the balance", NOTHING_BOUGHT]),
    (Fault.status(403, html=True), ["answered 403", FOREIGN]),
    (Fault.status(404, html=True), ["answered 404", "base URL: it ends before /v1", FOREIGN]),
    (Fault.status(405), ["answered 405", "base URL"]),
    (Fault.status(407, html=True), ["answered 407", "A proxy asks for a user", FOREIGN]),
    (
        Fault.status(429, retry_after=0),
        ["answered 429", "is busy", "whether it takes the API key", NOTHING_BOUGHT],
    ),
    (Fault.status(503), ["answered 503", "is busy", NOTHING_BOUGHT]),
    (Fault.status(500), ["answered 500", "Whether it takes the API key it did not say", SURELY]),
    (Fault.status(502, html=True), ["answered 502", FOREIGN, SURELY]),
    (Fault.status(200, html=True), ["answered 200", "So another server answered", NOTHING_BOUGHT]),
    (Fault.status(200, body=PORTAL), ["Please log in", "login page", NOTHING_BOUGHT]),
    (Fault.status(200, body={"status": "ok"}), ["So another server answered", NOTHING_BOUGHT]),
    (
        Fault.status(200, body={"data": [{"url": "https://x.example/a.mp4?signed"}]}),
        ["rendered a request without a prompt", "One render was bought."],
    ),
    (Fault.reset_before(), ["gave no whole answer", SURELY]),
]


@pytest.mark.parametrize(("fault", "words"), ANSWERS, ids=lambda value: getattr(value, "code", None))
def test_an_answer_is_worded_as_what_it_is(
    fault: Fault, words: list[str], gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a refusal of the request itself passes; nothing is asked twice."""
    gateway.fail_next(fault)
    passed, said = answer_of_test(monkeypatch, gateway.url, gateway.api_key)
    assert not passed
    assert [piece for piece in words if piece not in said] == [], said
    assert "<" not in said
    assert len(gateway.ledger) == 1


def test_a_wrong_key_is_worded_as_one(gateway: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the gateway itself, before it looks at the request."""
    passed, said = answer_of_test(monkeypatch, gateway.url, "sk-cg-NobodysKey0123456789")
    assert not passed
    assert "does not take the API key" in said


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/video", "/v1/video/generate"])
def test_a_base_url_with_a_path_too_many_is_named(
    path: str, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the URL that was asked."""
    passed, said = answer_of_test(monkeypatch, gateway.url + path, gateway.api_key)
    assert not passed
    assert f"{gateway.url}{path.rstrip('/')}/v1/video/generate answered 404" in said
    assert "it ends before /v1" in said


@contextmanager
def serving(answer: bytes | None, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that answers any request with these bytes, or with silence; its port."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connections.append(connection)
                connection.settimeout(10)
                if tls is not None:
                    connection = tls.wrap_socket(connection, server_side=True)
                    connections.append(connection)
                connection.recv(65536)
                if answer is not None:
                    connection.sendall(answer)
                    connection.shutdown(
                        socket.SHUT_WR
                    )  # closed, it may reset what is not read of the request
            except OSError:  # a client that does not trust us, or the end
                if listener.fileno() < 0:
                    return

    connections: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()
        thread.join()


def test_a_redirect_says_where_it_leads_without_its_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http in place of https, or the login page of a network; it is not followed."""
    moved = (
        b"HTTP/1.1 302 Found\r\nLocation: https://login.example/guests?token=abc\r\nContent-Length: 0\r\n\r\n"
    )
    with serving(moved) as port:
        passed, said = answer_of_test(monkeypatch, f"http://127.0.0.1:{port}")
    assert not passed
    assert "It leads to https://login.example/guests: if that is a CodeGateway" in said
    assert "token" not in said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "gave no whole answer within 1 s"),
        (b"220 mail.example ESMTP\r\n", "gave no whole answer (RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{", "gave no whole answer (RemoteProtocolError"),
    ],
)
def test_no_whole_answer_is_worded_as_that(
    answer: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, another protocol, half an answer: all of them after the request was sent."""
    with serving(answer) as port:
        passed, said = answer_of_test(monkeypatch, f"http://127.0.0.1:{port}", read_timeout=1)
    assert not passed
    assert words in said
    assert said.endswith(SURELY)


def test_a_render_is_waited_for_longer_than_a_test() -> None:
    """A person waits for the test, and a thread of the API server; Airflow ends one on a worker after 60 s."""
    from airflow_provider_codegateway.gateway.probe import ANSWER_SECONDS, CONNECT_SECONDS

    assert CONNECT_SECONDS + ANSWER_SECONDS < 60


# The way to the gateway.


def test_a_name_that_dns_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """``.invalid`` resolves nowhere (RFC 2606)."""
    passed, said = answer_of_test(monkeypatch, "https://api.codegateway.invalid")
    assert not passed
    assert "DNS does not know api.codegateway.invalid here" in said
    assert said.endswith(NOTHING_BOUGHT)


def test_a_refused_connection_is_named(gateway: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there."""
    with gateway.down():
        passed, said = answer_of_test(monkeypatch, gateway.url)
    assert not passed
    assert "127.0.0.1 refuses connections" in said
    assert said.endswith(NOTHING_BOUGHT)


def test_a_connection_that_nobody_accepts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall that drops packets: here, a queue that is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        passed, said = answer_of_test(monkeypatch, host, connect_timeout=0.2)
    assert not passed
    assert "127.0.0.1 did not answer within 0.2 s" in said
    assert said.endswith(NOTHING_BOUGHT)


def test_tls_to_a_port_of_plain_http_is_named(gateway: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake fails, and nothing is sent."""
    passed, said = answer_of_test(monkeypatch, gateway.url.replace("http://", "https://"))
    assert not passed
    assert "The TLS handshake with 127.0.0.1 failed (WRONG_VERSION_NUMBER)" in said
    assert said.endswith(NOTHING_BOUGHT)
    assert gateway.ledger == ()


def test_a_certificate_that_is_not_trusted_is_named(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a proxy that looks into TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(None, context) as port:
        passed, said = answer_of_test(monkeypatch, f"https://127.0.0.1:{port}")
    assert not passed
    assert "The certificate of 127.0.0.1 is not trusted (self-signed certificate)" in said
    assert "SSL_CERT_FILE" in said
    assert said.endswith(NOTHING_BOUGHT)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task would fail of the same, before it buys."""
    certificates = tmp_path / "certificates.pem"
    certificates.write_text("of no format at all")  # one that is missing is as if unset, before httpx 0.28
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    tls_context.cache_clear()
    try:
        passed, said = answer_of_test(monkeypatch, "https://api.codegateway.invalid")
    finally:
        tls_context.cache_clear()
    assert not passed
    assert "SSL_CERT_FILE" in said


# Proxies.


def test_a_proxy_that_asks_for_a_password_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses the tunnel; the password in its own URL is not shown."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with serving(refusal) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hidden@127.0.0.1:{port}")
        passed, said = answer_of_test(monkeypatch, "https://api.codegateway.invalid")
    assert not passed
    assert f"the proxy of the environment (http://127.0.0.1:{port}), let nothing pass to" in said
    assert "the proxy answered 407" in said
    assert "hidden" not in said


def test_a_proxy_that_is_not_reached_is_named_in_place_of_the_gateway(
    gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a person would look for the fault at the gateway."""
    with gateway.down():
        monkeypatch.setenv("HTTPS_PROXY", gateway.url)
        passed, said = answer_of_test(monkeypatch, "https://api.codegateway.invalid")
    assert not passed
    assert f"127.0.0.1, the proxy of the environment ({gateway.url}), refuses connections" in said


@pytest.mark.parametrize("proxy", ["ftp://user:hidden@proxy.example:21", "socks4://proxy:1080"])
def test_a_proxy_that_cannot_be_used_is_refused_for_free(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is claimed or sent; by a task as well as by a test."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    passed, said = answer_of_test(monkeypatch, "https://api.codegateway.invalid")
    assert not passed
    assert "The proxy of the environment" in said
    assert "hidden" not in said
    with pytest.raises(InvalidConnection):
        Gateway(GatewaySettings(base_url="https://api.codegateway.invalid", api_key=KEY))


# How it may be written.


def settings_of(monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any] | str) -> GatewaySettings:
    return hook_of(monkeypatch, connection).get_settings()


@pytest.mark.parametrize(
    ("connection", "base_url"),
    [
        (f"codegateway://:{KEY}@", "https://api.codegateway.dev"),
        (f"codegateway://:{KEY}@gw.example.com", "https://gw.example.com"),
        (f"codegateway://:{KEY}@gw.example.com:8443", "https://gw.example.com:8443"),
        (f"codegateway://:{KEY}@127.0.0.1:8787/http", "http://127.0.0.1:8787"),
        (f"codegateway://https://:{KEY}@gw.example.com", "https://gw.example.com"),
        (f"codegateway://http://:{KEY}@gw.example.com:8787", "http://gw.example.com:8787"),
        (f"codegateway://:{KEY}@{quote('https://gw.example.com/cg', safe='')}", "https://gw.example.com/cg"),
        ({"password": KEY}, "https://api.codegateway.dev"),
        ({"password": KEY, "host": "gw.example.com/cg/"}, "https://gw.example.com/cg"),
        ({"password": KEY, "host": "https://gw.example.com", "port": 8443}, "https://gw.example.com:8443"),
        ({"password": KEY, "host": "gw.example.com", "schema": "http"}, "http://gw.example.com"),
        ({"password": f" {KEY}\n", "host": " https://gw.example.com "}, "https://gw.example.com"),
    ],
)
def test_a_connection_by_uri_or_json_is_what_it_says(
    connection: dict[str, Any] | str, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheme, port and path arrive wherever Airflow has put them."""
    if isinstance(connection, dict):
        connection = {"conn_type": "codegateway", **connection}
    settings = settings_of(monkeypatch, connection)
    assert (settings.base_url, settings.api_key) == (base_url, KEY)


@pytest.mark.parametrize(
    "connection",
    [
        f"codegateway://:{KEY}@/?deadline=200&retries=1&connect_timeout=2.5",
        {
            "conn_type": "codegateway",
            "password": KEY,
            "extra": {"deadline": 200, "retries": 1, "connect_timeout": 2.5},
        },
        {
            "conn_type": "codegateway",
            "password": KEY,
            "extra": '{"deadline": "200", "retries": "1", "connect_timeout": "2.5", "read_timeout": null}',
        },
    ],
    ids=["uri", "json", "form"],
)
def test_the_fields_of_the_extra_arrive_from_each_form(
    connection: dict[str, Any] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numbers or as text; a field that is left empty is not set."""
    settings = settings_of(monkeypatch, connection)
    assert (settings.deadline, settings.retries, settings.connect_timeout) == (200, 1, 2.5)
    assert settings.read_timeout == 300


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        (f"codegateway://:{KEY}@gw.example.com/cg", "The schema of connection 'tested' is 'cg'"),
        (f"codegateway://:{KEY}@/?dedline=200", "an unknown extra 'dedline'. Use deadline"),
        (
            f"codegateway://:{KEY}@/?deadline=soon",
            "The extra 'deadline' of connection 'tested' must be a number",
        ),
        (f"codegateway://:{KEY}@/?deadline=90000", "a number of seconds from 1 to 86,400, not '90000'"),
        (f"codegateway://:{KEY}@/?retries=0.5", "must be an integer from 0 to 86,400, not '0.5'"),
        (f"codegateway://:{KEY}@/?http_links=Allow", "is 'Allow'. Use 'allow', or leave it out."),
        (f"codegateway://{KEY}@", "has no API key"),
        (f"http://:{KEY}@gw.example.com", "has type 'http'"),
    ],
)
def test_what_means_nothing_is_named(connection: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow would pass over it in silence."""
    with pytest.raises(InvalidConnection) as refusal:
        settings_of(monkeypatch, connection)
    assert words in str(refusal.value)
    assert KEY not in str(refusal.value)


@pytest.mark.parametrize("extra", ["deadline=200", "[200]"])
def test_an_extra_that_is_no_json_object_is_no_silence(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow 3's core says so itself, elsewhere it is dropped: a deadline that nobody heeds."""
    connection = {"conn_type": "codegateway", "password": KEY, "extra": extra}
    # Airflow 3.0 and 3.1 take a connection that they cannot read for none.
    words = "connection 'tested' does not exist" if (3, 0) <= AIRFLOW < (3, 2) else "extra"
    with pytest.raises((InvalidConnection, ValueError), match=words):
        settings_of(monkeypatch, connection)


def test_a_connection_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to make."""
    passed, said = CodeGatewayVideoHook("nowhere").test_connection()
    assert not passed
    assert "The connection 'nowhere' does not exist. Create it with type 'codegateway'" in said


def test_the_test_speaks_of_this_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's UI tests what is in the form under an id that it makes up, which would mislead."""
    passed, said = hook_of(monkeypatch, "codegateway://").test_connection()
    assert (passed, said) == (False, "This connection has no API key: put it into the password field.")


# Where the test runs: in Airflow's API server, and from 3.3 on a worker.


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, airflow_database: None
) -> Iterator[tuple[httpx.Client, str]]:
    """Airflow's API server, for an admin; and the secret that it signs tokens with."""
    if AIRFLOW < (3, 1):
        pytest.skip("These tests start the API server of Airflow 3.1 and later.")
    from clip_pages import api_server

    secret = secrets.token_hex(32)
    settings = {"AIRFLOW__API_AUTH__JWT_SECRET": secret, "AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}
    with api_server(tmp_path_factory.mktemp("api-server"), **settings) as (url, tokens):
        headers = {"Authorization": f"Bearer {tokens['admin']}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
            yield client, secret


def form(gateway: Emulator, **changes: Any) -> dict[str, Any]:
    """What the browser sends of the connection's form; fields that were left empty are null."""
    extra = {"deadline": None, "read_timeout": None, "connect_timeout": None, "retries": None}
    filled = {
        "conn_type": "codegateway",
        "host": gateway.url,
        "password": gateway.api_key,
        "extra": json.dumps(extra),
    }
    return {"connection_id": "of_the_form", **filled, **changes}


def test_the_form_can_be_tested_in_the_api_server(
    server: tuple[httpx.Client, str], gateway: Emulator
) -> None:
    """Before it is saved, with what the form sends; nothing is bought."""
    client, _ = server
    good = client.post("/api/v2/connections/test", json=form(gateway)).json()
    assert (good["status"], "accepts the API key" in good["message"]) == (True, True)
    wrong = client.post("/api/v2/connections/test", json=form(gateway, password="sk-cg-Nobodys01")).json()
    assert (wrong["status"], "does not take the API key" in wrong["message"]) == (False, True)
    path = client.post("/api/v2/connections/test", json=form(gateway, host=f"{gateway.url}/v1")).json()
    assert (path["status"], "it ends before /v1" in path["message"]) == (False, True)
    odd = client.post("/api/v2/connections/test", json=form(gateway, extra='{"dedline": 1}')).json()
    assert odd["message"].startswith("This connection has an unknown extra 'dedline'")
    assert gateway.billed == 0


ON_A_WORKER = """
import sys, uuid
from airflow.executors.local_executor import LocalExecutor
from airflow.executors.workloads import TestConnection
assert LocalExecutor.supports_connection_test
workload = TestConnection.make(
    connection_test_id=uuid.UUID(sys.argv[1]),
    connection_id="of_the_form",
    timeout=60,
    generator=LocalExecutor().jwt_generator,
)
LocalExecutor.run_workload(workload, server=sys.argv[2] + "/execution/")
"""


def asked_on_a_worker(client: httpx.Client, secret: str, form: dict[str, Any]) -> dict[str, Any]:
    """What came of one test of a form."""
    from airflow.models.connection_test import ConnectionTestRequest
    from airflow.utils.session import create_session
    from sqlalchemy import select

    enqueued = client.post("/api/v2/connections/enqueue-test", json=form)
    assert enqueued.status_code == 202, enqueued.text
    token = enqueued.json()["token"]
    with create_session() as session:
        waiting = session.scalars(
            select(ConnectionTestRequest.id).where(ConnectionTestRequest.token == token)
        ).one()
    subprocess.run(
        [sys.executable, "-c", ON_A_WORKER, str(waiting), str(client.base_url)],
        env={**os.environ, "AIRFLOW__API_AUTH__JWT_SECRET": secret},
        check=True,
        capture_output=True,
    )
    headers = {"Airflow-Connection-Test-Token": token}
    result: dict[str, Any] = client.get("/api/v2/connections/enqueue-test", headers=headers).json()
    return result


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="Before Airflow 3.3 no worker tests a connection")
@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "success", "accepts the API key"),
        ({"host": "https://gw.invalid"}, "failed", "DNS does not know gw.invalid here"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_form_can_be_tested_on_a_worker(
    changes: dict[str, Any], state: str, words: str, server: tuple[httpx.Client, str], gateway: Emulator
) -> None:
    """As the scheduler hands it to an executor that says so: the worker asks, and reports to the API server."""
    client, secret = server
    for _ in range(3):
        result = asked_on_a_worker(client, secret, form(gateway, **changes))
        # A database of SQLite that is locked for a moment fails a call that Airflow's worker does not repeat.
        if "ServerResponseError" not in result["result_message"]:
            break
    assert (result["state"], words in result["result_message"]) == (state, True), result
    assert gateway.billed == 0

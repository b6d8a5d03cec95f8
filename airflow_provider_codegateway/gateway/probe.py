"""Whether a connection works, found out without spending.

What is asked for is what the gateway must refuse: a Veo clip without a prompt. It refuses with 400, and a wrong key
with 401; that it looks at the key first is taken for granted, as its guide does not say. Never Hailuo, which takes a
request without a prompt.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from dataclasses import replace
from typing import Any

import httpcore
import httpx

from airflow_provider_codegateway.exceptions import Bought
from airflow_provider_codegateway.gateway.client import Exchange, Gateway
from airflow_provider_codegateway.gateway.outcomes import NEVER_SENT, own_error
from airflow_provider_codegateway.gateway.settings import GENERATE_PATH, GatewaySettings
from airflow_provider_codegateway.gateway.words import words_of
from airflow_provider_codegateway.net import NETWORK_ERRORS, network_advice, network_reason, root_cause
from airflow_provider_codegateway.redaction import redact_url

REQUEST = {"model": "google/veo-3.1-fast"}

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 20.0
"""At most, whatever the connection allows a render: a person waits, and so does a thread of the API server."""

_NOTHING_BOUGHT = "Nothing was bought by this test."
_SURELY_NOTHING_BOUGHT = "CodeGateway refuses what was asked for, so this test should have cost nothing."
_NOT_ITS_FORM = " This is not how CodeGateway answers: a proxy, a firewall or another server may have."


async def probe(settings: GatewaySettings) -> tuple[bool, str]:
    """Whether the gateway is reached and takes the API key, and in words what was seen. Asks once."""
    connect_timeout = min(settings.connect_timeout, CONNECT_SECONDS)
    read_timeout = min(settings.read_timeout, ANSWER_SECONDS)
    gateway = Gateway(replace(settings, connect_timeout=connect_timeout, read_timeout=read_timeout))
    url = settings.base_url + GENERATE_PATH
    seen = Exchange()
    try:
        async with asyncio.timeout(connect_timeout + read_timeout):
            await gateway.exchange([json.dumps(REQUEST).encode()], seen)
    except (TimeoutError, httpcore.ReadTimeout):
        return False, f"{url} gave no whole answer within {read_timeout:g} s. {_SURELY_NOTHING_BOUGHT}"
    except NETWORK_ERRORS as error:
        return False, _broken(error, gateway, url)
    status, headers, answer = seen.status, seen.headers, bytes(seen.body)
    said = words_of(answer, settings.api_key)
    content = _content(answer)
    if status == 400 and own_error(answer) is not None:
        return True, (
            f"{settings.base_url} accepts the API key. It was asked for a clip without a prompt and refused "
            f"({said}). {_NOTHING_BOUGHT}"
        )
    if 200 <= status < 300:
        return False, _accepted(url, status, said, content)
    is_own = own_error(answer) is not None
    hint = _hint(status, headers) if is_own or status not in (401, 403) else ""
    foreign = "" if is_own else _NOT_ITS_FORM
    bought = _SURELY_NOTHING_BOUGHT if status >= 500 and status != 503 else _NOTHING_BOUGHT
    return False, f"{url} answered {status}: {said}.{hint}{foreign} {bought}"


def _content(answer: bytes) -> dict[str, Any]:
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _accepted(url: str, status: int, said: str, content: dict[str, Any]) -> str:
    if "data" in content:
        return (
            f"{url} rendered a request without a prompt, which it should have refused: this is not CodeGateway, "
            f"or no longer the one of the guide. {Bought.YES.value}"
        )
    return (
        f"{url} answered {status} to a request that CodeGateway refuses: {said}. So another server answered, such as "
        f"the login page of a network or a proxy: check the base URL. {_NOTHING_BOUGHT}"
    )


def _hint(status: int, headers: httpx.Headers) -> str:
    match status:
        case 401:
            return (
                " It is reached, and does not take the API key: check the connection's password. Keys start with "
                "sk-cg- and are managed in your CodeGateway account."
            )
        case 403:
            return " It is reached, and serves nothing: check the balance and the state of your CodeGateway account."
        case 404 | 405:
            return " Check the connection's base URL: it ends before /v1."
        case 407:
            return " A proxy asks for a user and a password: see HTTPS_PROXY."
        case 429 | 503:
            return (
                " It is reached, and is busy; whether it takes the API key it did not say. Try again later."
            )
    if 300 <= status < 400 and "location" in headers:
        return (
            f" It leads to {redact_url(headers['location'])}: if that is a CodeGateway, use its address as the base "
            "URL."
        )
    return " Whether it takes the API key it did not say."


def _broken(error: Exception, gateway: Gateway, url: str) -> str:
    """An exchange that ended without an answer, by what lies below its error."""
    if not isinstance(error, NEVER_SENT):
        why = f"{type(error).__name__}: {_why(error)}"
        return f"{url} gave no whole answer ({why}). {_SURELY_NOTHING_BOUGHT}"
    host = httpx.URL(url).host
    # Through a proxy it is the proxy that is looked up and connected to.
    at = httpx.URL(gateway.proxy).host if gateway.proxy else host
    check = "HTTPS_PROXY" if gateway.proxy else "the base URL"
    via = f", the proxy of the environment ({redact_url(gateway.proxy)})," if gateway.proxy else ""
    match root_cause(error):
        case socket.gaierror() as cause:
            words = (
                f"DNS does not know {at}{via} here ({cause.strerror}): check {check}, or DNS on this machine."
            )
        case ssl.SSLCertVerificationError() as cause:
            words = (
                f"The certificate of {host} is not trusted ({cause.verify_message}).{network_advice(error)}"
            )
        case ssl.SSLError() as cause:
            words = (
                f"The TLS handshake with {host} failed ({cause.reason}): a firewall or a proxy may cut it off. If it "
                "is a gateway on plain http, write http://."
            )
        case _ if isinstance(error, httpcore.ProxyError):
            words = (
                f"{at}{via} let nothing pass to {host} ({_why(error)}): check HTTPS_PROXY, or set NO_PROXY."
            )
        case ConnectionRefusedError():
            words = f"{at}{via} refuses connections: check {check} and its port, or a firewall."
        case _ if isinstance(error, httpcore.ConnectTimeout):
            words = (
                f"{at}{via} did not answer within {gateway.settings.connect_timeout:g} s: a firewall may be in the "
                "way, or a proxy be needed (HTTPS_PROXY)."
            )
        case _:
            words = f"{at}{via} could not be reached ({type(error).__name__}: {_why(error)})."
    return f"{words} {_NOTHING_BOUGHT}"


def _why(error: Exception) -> str:
    name = f"{type(error).__name__}: "
    return network_reason(error, root_cause(error)).removeprefix(name) or "no more is known"

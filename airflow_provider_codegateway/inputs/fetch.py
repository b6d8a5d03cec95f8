"""Fetching an input image or video from the public internet."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import httpx

from airflow_provider_codegateway.exceptions import MediaUnavailable
from airflow_provider_codegateway.inputs.formats import Kind, shown_size
from airflow_provider_codegateway.inputs.public import is_public, parse_url
from airflow_provider_codegateway.inputs.words import describe
from airflow_provider_codegateway.net import (
    NETWORK_ERRORS,
    Addresses,
    Client,
    RedirectRefused,
    Response,
    network_advice,
    network_reason,
    root_cause,
)


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class Fetcher:
    """Fetches https URLs from public addresses only, and nothing larger than allowed.

    A host is looked up once, every address of it must be public, and one of *these* is connected to: a second
    look-up could answer otherwise (DNS rebinding). Each redirect is checked in the same way. Through a proxy of the
    environment the host's name is checked, and its addresses where DNS knows them here: the proxy itself looks up
    and connects, by rules of its own.

    The fields are for tests, which run on loopback.

    :param addresses: host and port → its IP addresses.
    :param is_public: whether an IP address may be connected to.
    :param ssl_context: verifies the host's certificate; by default as for the gateway.
    :param deadline: seconds for one fetch from beginning to end, redirects included; a DNS look-up that has
        begun is not cut short.
    """

    addresses: Addresses = _look_up
    is_public: Callable[[str], bool] = is_public
    ssl_context: ssl.SSLContext | None = None
    deadline: float = 60.0

    def fetch(self, url: httpx.URL, *, kind: Kind, max_bytes: int) -> bytes:
        """The body of the answer, at most ``max_bytes`` long.

        :raises ValueError: the host is internal, the answer is not 200, too large, or redirects elsewhere.
        :raises MediaUnavailable: no whole answer within the deadline, or one that asks for a later attempt.
        """
        shown = describe(str(url))
        client = Client(
            seconds=self.deadline,
            addresses=partial(self._public_addresses, shown),
            ssl_context=self.ssl_context,
        )
        try:
            with client.get(
                url, {"Accept": f"{kind}/*"}, check_redirect=partial(_require_public, shown)
            ) as response:
                return _read(response, shown, max_bytes)
        except RedirectRefused as error:
            raise ValueError(str(error)) from None
        except NETWORK_ERRORS as error:
            why = f"{network_reason(error, root_cause(error))}.{network_advice(error)}"
            raise MediaUnavailable(f"{shown} could not be fetched: {why}") from None

    def _public_addresses(self, shown: str, host: str, port: int) -> list[str]:
        addresses = self.addresses(host, port)
        if not addresses or not all(map(self.is_public, addresses)):
            raise ValueError(f"{shown} points at an internal address; give a public URL, or an s3:// key")
        return addresses


def _require_public(shown: str, url: httpx.URL, target: httpx.URL) -> None:
    try:
        parse_url(str(target))
    except ValueError as error:
        raise ValueError(f"{shown} redirects: {error}") from None


def _read(response: Response, shown: str, max_bytes: int) -> bytes:
    if response.status in (408, 425, 429) or response.status >= 500:
        raise OSError(f"the host answered {response.status}")
    if response.status != 200:
        raise ValueError(f"{shown} cannot be fetched: the host answered {response.status}")
    body = bytearray()
    if (response.length or 0) <= max_bytes:
        for chunk in response.chunks:
            body += chunk
            if len(body) > max_bytes:
                break
        else:
            return bytes(body)
    raise ValueError(f"{shown} is larger than {shown_size(max_bytes)}")

"""Fetching an input image or video from the public internet."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httpx

from airflow_provider_codegateway import __version__
from airflow_provider_codegateway.exceptions import MediaUnavailable
from airflow_provider_codegateway.inputs.formats import Kind, shown_size
from airflow_provider_codegateway.inputs.public import is_public, parse_url
from airflow_provider_codegateway.inputs.words import describe

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0


class _DeadlineSocket(ssl.SSLSocket):
    """A TLS socket of which no read waits past ``deadline``: a trickle of bytes cannot hold a worker."""

    deadline: float

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(_seconds_until(self.deadline))
        return super().recv_into(buffer, nbytes, flags)


def _addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class Fetcher:
    """Fetches https URLs from public addresses only, and nothing larger than allowed.

    A host is looked up once, every address of it must be public, and one of *these* is connected to: a second
    look-up could answer otherwise (DNS rebinding). Each redirect is checked in the same way.

    It is ``http.client`` over a socket made here, not httpx, which offers no say in what address is connected
    to. The environment's proxies are not used: a proxy looks up and connects by itself, out of reach of the
    check. And nothing is logged, where httpx logs whole URLs.

    The fields are for tests, which run on loopback.

    :param addresses: host and port → its IP addresses.
    :param is_public: whether an IP address may be connected to.
    :param ssl_context: verifies the host's certificate.
    :param deadline: seconds for one fetch from beginning to end, redirects included; a DNS look-up that has
        begun is not cut short.
    """

    addresses: Callable[[str, int], list[str]] = _addresses
    is_public: Callable[[str], bool] = is_public
    ssl_context: ssl.SSLContext = field(default_factory=httpx.create_ssl_context)
    deadline: float = 60.0

    def __post_init__(self) -> None:
        self.ssl_context.sslsocket_class = _DeadlineSocket

    def fetch(self, url: httpx.URL, *, kind: Kind, max_bytes: int) -> bytes:
        """The body of the answer, at most ``max_bytes`` long.

        :raises ValueError: the host is internal, the answer is not 200, too large, or redirects elsewhere.
        :raises MediaUnavailable: no whole answer within the deadline, or one that asks for a later try.
        """
        shown = describe(str(url))
        deadline = time.monotonic() + self.deadline
        try:
            for _ in range(1 + MAX_REDIRECTS):
                answer = self._get(url, shown, deadline, kind=kind, max_bytes=max_bytes)
                if isinstance(answer, bytes):
                    return answer
                url = self._redirected(url, answer, shown)
        except (OSError, http.client.HTTPException) as error:
            # Of a protocol error only its name: its text quotes what the server sent.
            why = str(error) if isinstance(error, OSError) else type(error).__name__
            raise MediaUnavailable(f"{shown} could not be fetched: {why}") from None
        raise ValueError(f"{shown} redirects more than {MAX_REDIRECTS} times")

    def _redirected(self, url: httpx.URL, location: str, shown: str) -> httpx.URL:
        try:
            return parse_url(str(url.join(location)))
        except httpx.InvalidURL:
            raise ValueError(f"{shown} redirects to no valid URL") from None
        except ValueError as error:
            raise ValueError(f"{shown} redirects: {error}") from None

    def _get(self, url: httpx.URL, shown: str, deadline: float, *, kind: Kind, max_bytes: int) -> bytes | str:
        """One request: the body, or the location of a redirect."""
        host, port = url.raw_host.decode("ascii"), url.port or 443
        connection = http.client.HTTPSConnection(host, port, context=self.ssl_context)
        connection.auto_open = 0  # It would look the host up again.
        connection.sock = self._connect(host, port, shown, deadline)
        with closing(connection):
            connection.request(
                "GET",
                url.raw_path.decode("ascii"),
                headers={
                    "Accept": f"{kind}/*",
                    "Connection": "close",
                    "User-Agent": f"airflow-provider-codegateway/{__version__}",
                },
            )
            with connection.getresponse() as response:
                location = response.getheader("Location")
                if response.status in (301, 302, 303, 307, 308) and location:
                    return location
                if response.status in (408, 425, 429) or response.status >= 500:
                    raise OSError(f"the host answered {response.status}")
                if response.status != 200:
                    raise ValueError(f"{shown} cannot be fetched: the host answered {response.status}")
                if response.length is not None and response.length > max_bytes:
                    raise ValueError(f"{shown} is larger than {shown_size(max_bytes)}")
                body = response.read(max_bytes + 1)
                if len(body) > max_bytes:
                    raise ValueError(f"{shown} is larger than {shown_size(max_bytes)}")
                if response.length:
                    raise OSError(f"the answer broke off, {response.length:,} bytes short")
                return body

    def _connect(self, host: str, port: int, shown: str, deadline: float) -> _DeadlineSocket:
        addresses = self.addresses(host, port)
        if not addresses or not all(map(self.is_public, addresses)):
            raise ValueError(f"{shown} points at an internal address; give a public URL, or an s3:// key")
        for index, address in enumerate(addresses):
            try:
                plain = socket.create_connection(
                    (address, port), timeout=min(CONNECT_SECONDS, _seconds_until(deadline))
                )
                break
            except OSError:
                if index == len(addresses) - 1:
                    raise
        with plain:  # Wrapping takes the socket over; this closes it where the handshake fails.
            plain.settimeout(_seconds_until(deadline))
            secured = cast("_DeadlineSocket", self.ssl_context.wrap_socket(plain, server_hostname=host))
        secured.deadline = deadline
        return secured


def _seconds_until(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left

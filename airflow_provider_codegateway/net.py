"""What every HTTP client of this package shares: proxies, certificates, keep-alive."""

from __future__ import annotations

import functools
import socket
import ssl
import urllib.request

import httpx

from airflow_provider_codegateway.exceptions import InvalidConnection


@functools.cache
def tls_context() -> ssl.SSLContext:
    """One for the process: it takes most of a megabyte, and a while to make."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise InvalidConnection(
            f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({error}): mend the "
            "variable on this machine, or unset it."
        ) from None


def environment_proxy(base_url: str) -> str | None:
    """httpx reads the proxy variables only for a transport that it makes itself."""
    parsed = httpx.URL(base_url)
    if urllib.request.proxy_bypass(parsed.host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parsed.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


# Nothing passes over the connection for two minutes; a NAT forgets it sooner than that.
KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)  # macOS names the first one otherwise
]

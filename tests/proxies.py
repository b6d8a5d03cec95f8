"""Small real proxies: HTTP (CONNECT and absolute URLs), the same behind TLS, and SOCKS 5."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Passes on what it is asked for, to the address that ``route`` gives for a host.

    :param kind: ``http``, ``https`` or ``socks5``.
    :param route: host → the host to connect to; others are connected to as they are asked for.
    """

    def __init__(
        self, kind: str, *, certificate: Path | None = None, route: dict[str, str] | None = None
    ) -> None:
        self.asked_for: list[str] = []
        """``host:port`` of each connection."""
        self._kind = kind
        self._route = route or {}
        self._tls: ssl.SSLContext | None = None
        if kind == "https":
            assert certificate is not None
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        host = "localhost" if self._tls else "127.0.0.1"
        return f"{self._kind}://{host}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
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
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError), self._secured(plain) as client:
            upstream = self._socks(client) if self._kind == "socks5" else self._http(client)
            with upstream:
                back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
                back.start()
                _pump(client, upstream)
                back.join(10)

    def _secured(self, plain: socket.socket) -> socket.socket:
        return self._tls.wrap_socket(plain, server_side=True) if self._tls else plain

    def _connect(self, host: str, port: int) -> socket.socket:
        self.asked_for.append(f"{host}:{port}")
        return socket.create_connection((self._route.get(host, host), port), timeout=10)

    def _http(self, client: socket.socket) -> socket.socket:
        head = b""
        while b"\r\n\r\n" not in head and (piece := client.recv(65536)):
            head += piece
        method, target, rest = head.split(b" ", 2)
        if method == b"CONNECT":
            host, _, port = target.decode().rpartition(":")
            upstream = self._connect(host.strip("[]"), int(port))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            return upstream
        url = urlsplit(target.decode())
        upstream = self._connect(url.hostname or "", url.port or 80)
        path = f"{url.path}?{url.query}" if url.query else url.path
        upstream.sendall(b" ".join((method, path.encode(), rest)))
        return upstream

    def _socks(self, client: socket.socket) -> socket.socket:
        """RFC 1928, without authentication."""
        _, methods = client.recv(2)
        client.recv(methods)
        client.sendall(b"\x05\x00")
        _, _, _, kind = client.recv(4)
        host = socket.inet_ntoa(client.recv(4)) if kind == 1 else client.recv(client.recv(1)[0]).decode()
        upstream = self._connect(host, int.from_bytes(client.recv(2)))
        client.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return upstream


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)

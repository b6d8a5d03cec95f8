"""Proxies and certificates: one rule for the POST, the clip and input images."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from clip_server import ClipServer
from media_samples import mp4, mp4_of, png
from proxies import Proxy

from airflow_provider_codegateway import inputs
from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.emulator import Emulator
from airflow_provider_codegateway.exceptions import CodeGatewayError, GatewayUnavailable, InvalidConnection
from airflow_provider_codegateway.gateway import BlockingCall, Gateway, GatewaySettings, read_receipt
from airflow_provider_codegateway.inputs.fetch import Fetcher
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.models import build_request
from airflow_provider_codegateway.net import proxy_for, tls_context
from airflow_provider_codegateway.transfer import Transfer

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
HASTY = Limits(first_backoff=0.0, max_backoff=0.0)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The certificate of the tests, trusted by this process."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls_context.cache_clear()
    yield certificate
    tls_context.cache_clear()


def buy(gateway: Emulator, host: str) -> str:
    url = httpx.URL(gateway.url).copy_with(host=host)
    return buy_at(str(url), gateway.api_key)


def buy_at(url: str, api_key: str = "sk-cg-x") -> str:
    settings = GatewaySettings(base_url=url, api_key=api_key, retries=0)
    request = build_request("google/veo-3.1-fast", prompt="p")
    return read_receipt(BlockingCall().run(Gateway(settings).generate(request.content))).url


def store(url: str, s3: S3Client, bucket: str) -> int:
    target = S3Location(bucket, "a.mp4")
    return Transfer(url, s3=s3, target=target, metadata=lambda facts: {}, limits=HASTY).run().bytes


# Every proxy, for every use.


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY"])
@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
def test_a_render_is_bought_and_its_clip_stored_through_a_proxy(
    kind: str,
    variable: str,
    gateway: Emulator,
    s3: S3Client,
    bucket: str,
    trusted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the gateway nor the clip's host is known here: the proxy alone can reach them."""
    clip = mp4_of(9_000_000)
    route = {"gateway.example": "127.0.0.1", "clips.example": "127.0.0.1"}
    with Proxy(kind, certificate=trusted, route=route) as proxy, ClipServer(clip) as server:
        monkeypatch.setenv(variable, proxy.url)
        monkeypatch.setenv("NO_PROXY", httpx.URL(s3.meta.endpoint_url).netloc.decode())
        assert buy(gateway, "gateway.example")
        assert store(server.url.replace("127.0.0.1", "clips.example"), s3, bucket) == len(clip)
    assert [each.partition(":")[0] for each in proxy.asked_for] == ["gateway.example", "clips.example"]


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTPS_PROXY"])
@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
def test_a_clip_and_an_image_come_over_tls_through_a_proxy(
    kind: str, variable: str, s3: S3Client, bucket: str, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tunnel's end proves to be the host, and not the proxy."""
    clip, image = mp4_of(300_000), png()
    with (
        Proxy(kind, certificate=trusted, route={"media.example": "127.0.0.1"}) as proxy,
        ClipServer(clip, certificate=trusted) as clips,
        ClipServer(image, certificate=trusted) as images,
    ):
        monkeypatch.setenv(variable, proxy.url)
        assert store(clips.url.replace("localhost", "media.example"), s3, bucket) == len(clip)
        fetched = inputs.resolve(
            images.url.replace("localhost", "media.example"),
            kind="image",
            accepts_url=False,
            read_s3=lambda *_: b"",
            fetcher=Fetcher(),
        )
    assert base64.b64decode(fetched) == image
    assert len(proxy.asked_for) == 2


def test_an_image_that_is_internal_by_dns_is_refused_before_the_proxy_is_asked(
    trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy inside the network may reach what a feed has no business to name."""
    with Proxy("http") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        fetcher = Fetcher(addresses=lambda host, port: ["10.0.0.1"])
        with pytest.raises(ValueError, match="internal address"):
            fetcher.fetch(httpx.URL("https://media.example/a.png"), kind="image", max_bytes=1000)
    assert proxy.asked_for == []


@pytest.mark.parametrize(
    "proxy", ["ftp://proxy.example:21", "socks4://proxy.example", "http://", "http://proxy.example:99999"]
)
def test_a_proxy_that_could_not_be_used_is_refused_before_anything_is_bought(
    proxy: str, gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variables that would help."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(InvalidConnection, match="ALL_PROXY"):
        buy(gateway, "gateway.example")
    assert gateway.ledger == ()


def test_a_certificate_file_that_cannot_be_read_is_refused(
    gateway: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fault of the machine's settings, whatever needs it first."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    tls_context.cache_clear()
    try:
        with pytest.raises(InvalidConnection, match="SSL_CERT_FILE"):
            buy(gateway, "127.0.0.1")
        with pytest.raises(InvalidConnection, match="SSL_CERT_FILE"):
            Fetcher().fetch(httpx.URL("https://media.example/a.png"), kind="image", max_bytes=1000)
    finally:
        tls_context.cache_clear()
    assert gateway.ledger == ()


@pytest.mark.parametrize("who", ["gateway", "clip", "image"])
def test_a_certificate_that_is_not_trusted_names_the_variable(
    who: str, certificate: Path, s3: S3Client, bucket: str
) -> None:
    """The one that is read: those of other programs are set in many images, and do nothing here."""
    fetcher = Fetcher(addresses=lambda *_: ["127.0.0.1"], is_public=lambda _: True)
    with ClipServer(mp4(), certificate=certificate) as server:
        image = httpx.URL(server.url.replace("localhost", "a.example"))
        asks: dict[str, Callable[[], object]] = {
            "gateway": lambda: buy_at(server.url.partition("/clips")[0]),
            "clip": lambda: store(server.url, s3, bucket),
            "image": lambda: fetcher.fetch(image, kind="image", max_bytes=1000),
        }
        with pytest.raises(CodeGatewayError) as error:
            asks[who]()
    assert "name its CA in SSL_CERT_FILE on this machine" in str(error.value)


@pytest.mark.parametrize(
    ("status", "words"), [(407, "put them into HTTPS_PROXY"), (403, "Let the proxy of HTTPS_PROXY")]
)
def test_a_tunnel_that_a_proxy_refuses_says_what_to_do(
    status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was bought, and nothing was sent."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(GatewayUnavailable) as error:
            buy_at("https://gateway.example")
    assert words in str(error.value)
    assert "Nothing was bought." in str(error.value)


# Who is exempt.


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_exempt"),
    [
        ("*", "https://a.example/", True),
        ("a.example", "https://a.example/", True),
        ("a.example", "https://b.a.example/", True),
        (".a.example", "https://b.a.example/", True),
        (".a.example", "https://a.example/", True),
        ("*.a.example", "https://b.a.example/", True),
        ("a.example", "https://ba.example/", False),
        ("a.example:8443", "https://a.example:8443/", True),
        ("a.example:8443", "https://a.example/", False),
        ("a.example:443", "https://a.example/", True),
        ("A.Example", "https://a.example./", True),
        ("x.example, a.example", "https://a.example/", True),
        ("x.example a.example", "https://a.example/", True),
        ("127.0.0.1", "http://127.0.0.1:9/", True),
        ("127.0.0.1:9", "http://127.0.0.1:9/", True),
        ("127.0.0.1:8", "http://127.0.0.1:9/", False),
        ("10.0.0.0/8", "https://10.1.2.3/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("::1", "http://[::1]:9/", True),
        ("[::1]:9", "http://[::1]:9/", True),
        ("[::1]:8", "http://[::1]:9/", False),
        ("fd00::/8", "http://[fd00::1]/", True),
        ("[fd00::]/8", "http://[fd00::1]/", True),
        ("bücher.example", "https://xn--bcher-kva.example/", True),
        ("xn--bcher-kva.example", "https://bücher.example/", True),
        ("", "https://a.example/", False),
    ],
)
def test_no_proxy_is_read_as_curl_does(
    no_proxy: str, url: str, is_exempt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts with their subdomains, addresses and networks, each with or without a port."""
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(httpx.URL(url)) == (None if is_exempt else "http://proxy.example:3128")


def test_a_proxy_of_the_scheme_goes_before_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one without a scheme is an HTTP proxy."""
    monkeypatch.setenv("ALL_PROXY", "http://all.example:1")
    monkeypatch.setenv("HTTPS_PROXY", "secure.example:2")
    assert proxy_for(httpx.URL("https://a.example/")) == "http://secure.example:2"
    assert proxy_for(httpx.URL("http://a.example/")) == "http://all.example:1"

"""Media inputs: what is refused for free, what goes to the gateway, and what may be shown of them."""

from __future__ import annotations

import base64
import copy
import hashlib
import ipaddress
import json
import logging
import os
import pickle
import socket
import ssl
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import BaseOperator
from airflow.serialization.helpers import serialize_template_field
from airflow_run import AIRFLOW
from hypothesis import given
from hypothesis import strategies as st
from media_samples import image, mp4, png

from airflow_provider_codegateway import inputs
from airflow_provider_codegateway.exceptions import MediaUnavailable
from airflow_provider_codegateway.inputs import HiddenMedia
from airflow_provider_codegateway.inputs.fetch import Fetcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PNG = png(64, 64)
MP4 = mp4()
SECRET = "X-Amz-Signature=5f2c9d0e7a4b1c8365f2c9d0e7a4b1c8"

IMAGES = {
    "image/png": PNG,
    "image/jpeg": image("mjpeg", "yuvj420p"),
    "image/gif": image("gif", "rgb8"),
    "image/webp": b"RIFF\x0e\x00\x00\x00WEBPVP8 \x02\x00\x00\x00ab",
    "image/bmp": image("bmp", "bgr24"),
    "image/tiff": image("tiff", "rgb24"),
    "image/heic": b"\x00\x00\x00\x10ftypheic\x00\x00\x00\x00\x00\x00\x00\x0cmeta\x00\x00\x00\x00\x00\x00\x00\x0amdatab",
    "image/avif": b"\x00\x00\x00\x10ftypavif\x00\x00\x00\x00\x00\x00\x00\x0cmeta\x00\x00\x00\x00\x00\x00\x00\x0amdatab",
}
SEGMENT = b"\x18\x53\x80\x67\x82ab"
VIDEOS = {
    "video/mp4": MP4,
    "video/quicktime": MP4.replace(b"ftypisom", b"ftypqt  "),
    "video/webm": b"\x1a\x45\xdf\xa3\x8f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\x82\x84webm" + SEGMENT,
    "video/x-matroska": b"\x1a\x45\xdf\xa3\x8f\x42\x86\x81\x01\x42\x82\x88matroska" + SEGMENT,
    "video/x-msvideo": b"RIFF\x08\x00\x00\x00AVI LIST",
}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unread(bucket: str, key: str, limit: int) -> bytes:
    raise AssertionError("S3 was read")


def resolve(reference: str, **changes: Any) -> str:
    options: dict[str, Any] = {"kind": "image", "accepts_url": True, "read_s3": unread}
    return inputs.resolve(reference, **options | changes)


# ------------------------------------------------------------------------------------------------
# Whole or not

ENCODERS = {
    "png": "rgb24",
    "mjpeg": "yuvj420p",
    "bmp": "bgr24",
    "gif": "rgb8",
    "tiff": "rgb24",
    "libwebp": "yuv420p",
}


@pytest.mark.parametrize("encoder", ENCODERS)
@given(part=st.floats(0.02, 0.999))
def test_half_an_image_is_refused(encoder: str, part: float) -> None:
    """Wherever it was cut, it is no image that a render should be paid for."""
    whole = image(encoder, ENCODERS[encoder])
    half = whole[: max(32, int(len(whole) * part))]
    for kind in (whole, whole + b"trailing bytes"):
        resolve(b64(kind))
    with pytest.raises(ValueError, match="not whole"):
        resolve(b64(half))


@pytest.mark.parametrize("media_type", ["image/webp", "image/heic", "image/avif"])
def test_half_an_image_of_boxes_is_refused(media_type: str) -> None:
    """The size that it names is the size that it has."""
    with pytest.raises(ValueError, match="not whole"):
        resolve(f"data:{media_type};base64,{b64(IMAGES[media_type][:-1])}")


@pytest.mark.parametrize(
    "data",
    [
        PNG[:33] + PNG[-12:],
        b"\xff\xd8\xff\xe0\x00\x04ab\xff\xd9",
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00\x3b",
        b"RIFF\x0c\x00\x00\x00WEBPVP8 \x00\x00\x00\x00",
        image("bmp", "bgr24")[:54],
        b"II*\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\x00\x00\x00\x10ftypheic\x00\x00\x00\x00",
        IMAGES["image/heic"][:28],
    ],
    ids=["png", "jpeg", "gif", "webp", "bmp", "tiff", "heic", "heic before its data"],
)
def test_a_head_alone_is_not_an_image(data: bytes) -> None:
    """It ends as its format has it, and there is no picture in it."""
    with pytest.raises(ValueError, match="not whole"):
        resolve(b64(data))


@given(part=st.floats(0.02, 0.999), movflags=st.sampled_from(["faststart", ""]))
def test_half_a_reference_video_is_refused(part: float, movflags: str) -> None:
    """By the same rule as a clip that is stored."""
    whole = mp4(movflags=movflags)
    resolve(b64(whole), kind="video")
    with pytest.raises(ValueError, match="not whole"):
        resolve(b64(whole[: max(32, int(len(whole) * part))]), kind="video")


def tiff(*entries: tuple[int, int, int, int], at: int = 8) -> bytes:
    """A little TIFF with one directory, and 100 bytes after it."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0" + struct.pack("<I", at) + directory + bytes(4) + bytes(100)


BMP = image("bmp", "bgr24")
GIF = image("gif", "rgb8")


@pytest.mark.parametrize(
    "data",
    [
        *(BMP[:2] + struct.pack("<I", size) + BMP[6:] for size in (0, 54, 40, 2**31)),
        tiff((273, 4, 1, 60)),
        tiff((330, 4, 1, 8)) + b"",
        GIF[:-1] + b"\0" + GIF[-1:],
        *(IMAGES["image/avif"] + tail for tail in (b"\0", b"\n", b"<!-- cached -->", bytes(4096))),
        b"II+\0\x08\0\0\0" + bytes(20),
    ],
    ids=[
        *("bmp 0", "bmp 54", "bmp 40", "bmp huge", "tiff without sizes", "tiff below", "gif with a zero"),
        *("avif 0", "avif n", "avif comment", "avif zeros", "big tiff"),
    ],
)
def test_what_readers_read_is_whole(data: bytes) -> None:
    """Heads are often wrong about sizes that no reader looks at."""
    if data == tiff((330, 4, 1, 8)):  # a directory that is below itself, and no picture
        with pytest.raises(ValueError, match="not whole"):
            resolve(b64(data))
    else:
        resolve(b64(data))


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"\xff\xd8\xff" + b"\xff" * 5_000_000,
        tiff(*[(40_000 + n, 4, 500_000, 200) for n in range(3_000)]) + bytes(2_100_000),
        tiff(*[(330, 4, 500_000, 200)] * 3_000) + bytes(2_100_000),
    ],
    ids=["webp", "jpeg", "tiff", "tiff below"],
)
def test_no_image_takes_more_than_its_size(data: bytes) -> None:
    """Neither time nor memory: a check that took them by what a head says would not come to an end here."""
    with pytest.raises(ValueError, match="not whole"):
        resolve(b64(data))


def test_the_preview_in_a_photo_does_not_end_it() -> None:
    """A camera puts a small JPEG, with an end of its own, into a segment of the photo."""
    photo = IMAGES["image/jpeg"]
    preview = b"\xff\xe1" + (len(photo) + 2).to_bytes(2, "big") + photo
    whole = photo[:2] + preview + photo[2:]
    resolve(b64(whole))
    with pytest.raises(ValueError, match="not whole"):
        resolve(b64(whole[:-400]))


# ------------------------------------------------------------------------------------------------
# Refused for free


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("http://example.com/a.png", "not https"),
        ("ftp://example.com/a.png", "scheme"),
        ("https:///a.png", "host name"),
        ("https://example.com:99999/a.png", "port"),
        ("https://exa mple.com/a.png", "white space"),
        ("https://example.com\\@10.0.0.1/a.png", "backslash"),
        ("https://user:password@example.com/a.png", "user or password"),
        ("https://localhost/a.png", "internal host"),
        ("https://LOCALHOST./a.png", "internal host"),
        ("https://a.localhost/a.png", "internal host"),
        ("https://metadata.google.internal/a.png", "internal host"),
        ("https://printer.local/a.png", "internal host"),
        ("https://intranet/a.png", "internal host"),
        ("https://example..com/a.png", "host name"),
        ("https://168.63.129.16/a.png", "internal address"),
        ("https://[::ffff:10.0.0.1]/a.png", "internal address"),
        ("https://2130706433/a.png", "unusual"),
        ("https://0x7f.1/a.png", "unusual"),
        ("https://127.1/a.png", "unusual"),
        ("https://010.0.0.1/a.png", "valid URL"),
        ("s3://", "bucket or a key"),
        ("s3://bucket", "bucket or a key"),
        ("s3://bucket/", "bucket or a key"),
        ("s3:///key.png", "bucket or a key"),
        ("file://photo.png", "absolute"),
        ("file://server/photo.png", "absolute"),
        ("file:///a%00.png", "absolute"),
        ("photo.png", "s3:// key"),
        ("/opt/data/photo.png", "file:// path"),
        ("a lone lighthouse, on a cliff", "base64"),
        ("iVBORw0KGgo=A", "base64"),
        ("data:image/png,iVBORw0KGgo", "must be base64"),
        ("data:image/png;base64," + b64(MP4), "video/mp4; an image is needed"),
        ("data:image/png;base64,!!!!", "not base64"),
        ("data:image/png;base64,", "empty"),
        (b64(MP4), "video/mp4; an image is needed"),
        (b64(b"<html>not found</html>"), "not base64 of an image"),
    ],
)
def test_refused(reference: str, why: str) -> None:
    """Each malformed, internal or unknown reference is refused with its reason and what to use instead."""
    with pytest.raises(ValueError, match=why):
        inputs.check_reference(reference, kind="image")


@pytest.mark.parametrize(
    "reference",
    [
        "https://example.com/a.png",
        "HTTPS://EXAMPLE.COM:8443/a.png",
        "https://8.8.8.8/a.png",
        "https://[2606:4700:4700::1111]/a.png",
        "https://[64:ff9b::8.8.8.8]/a.png",
        "https://bücher.example/bild ü.png".replace(" ", "%20"),
        "https://my_bucket.s3.amazonaws.com/a%20b.png?" + SECRET,
        "https://internal.example.com/a.png",
        "s3://bucket/a?b#c%20d.png",
        "file:///opt/data/photo%20one.png",
        b64(PNG),
        "data:image/png;base64," + b64(PNG),
        "DATA:image/png;charset=x;BASE64," + b64(PNG),
        "data:;base64," + b64(PNG),
        "data:application/octet-stream;base64," + b64(PNG),
        "data:video/mp4;base64," + b64(PNG),
        "https://example.com/a.png\n",
        " s3://bucket/a.png ",
        "s3a://bucket/a.png",
        "S3N://bucket/a.png",
        "data:image/png;base64," + quote(b64(PNG), safe=""),
    ],
)
def test_accepted(reference: str) -> None:
    """Well-formed references of every form pass."""
    inputs.check_reference(reference, kind="image")


@pytest.mark.parametrize(("media_type", "data"), [*IMAGES.items(), *VIDEOS.items()])
def test_formats(media_type: str, data: bytes) -> None:
    """Every format is known by its first bytes, and passes as its own kind only."""
    kind, other = ("image", "video") if media_type in IMAGES else ("video", "image")
    assert media_type in inputs.describe(b64(data))
    resolve(b64(data), kind=kind)
    with pytest.raises(ValueError, match=f"is {media_type}; an? {other} is needed"):
        resolve(b64(data), kind=other)


def test_inline_limit_is_exact() -> None:
    """Inline data of exactly the limit passes, and one byte more is refused."""
    inputs.check_reference(b64(PNG), kind="image", max_bytes=len(PNG))
    for size in (1, 10 * len(PNG)):
        with pytest.raises(ValueError, match=f"larger than {len(PNG):,} bytes"):
            inputs.check_reference(b64(PNG + bytes(size)), kind="image", max_bytes=len(PNG))


INTERNAL_IPV4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
INTERNAL_IPV6 = [
    "::/128",
    "::1/128",
    "::/96",
    "100::/64",
    "2001:db8::/32",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
FULL_WIDTH = str.maketrans("0123456789", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19")


def spell_ipv4(draw: st.DrawFn, ip: ipaddress.IPv4Address) -> str:
    """One of the spellings that inet_aton, browsers, or IPv6 have for an IPv4 address."""
    style = draw(st.sampled_from(["parts", "mapped", "compatible", "nat64", "6to4", "teredo"]))
    number = int(ip)
    if style == "parts":
        count = draw(st.integers(1, 4))
        parts = [*ip.packed[: count - 1], number % 256 ** (5 - count)]
        spellings: list[Callable[[int], str]] = [str, hex, lambda n: hex(n).upper(), lambda n: f"0{n:o}"]
        host = ".".join(draw(st.sampled_from(spellings))(part) for part in parts)
        changes: list[Callable[[str], str]] = [
            lambda host: host,
            lambda host: host + ".",
            lambda host: host.translate(FULL_WIDTH),
            lambda host: host.replace(".", "\u3002"),
            lambda host: host.replace(".", "\uff0e"),
            lambda host: f"%{ord(host[0]):02x}{host[1:]}",
            lambda host: host + "\u00ad",
            lambda host: host[0] + "\t" + host[1:],
        ]
        return draw(st.sampled_from(changes))(host)
    high, low = number >> 16, number & 0xFFFF
    return {
        "mapped": draw(st.sampled_from([f"[::ffff:{ip}]", f"[0:0:0:0:0:FFFF:{high:X}:{low:X}]"])),
        "compatible": f"[::{ip}]",
        "nat64": f"[64:ff9b::{ip}]",
        "6to4": f"[2002:{high:x}:{low:x}::1]",
        "teredo": f"[2001:0:808:808::{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}]",
    }[style]


@st.composite
def internal_hosts(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        v4 = ipaddress.IPv4Network(draw(st.sampled_from(INTERNAL_IPV4)))
        return spell_ipv4(draw, v4[draw(st.integers(0, v4.num_addresses - 1))])
    v6 = ipaddress.IPv6Network(draw(st.sampled_from(INTERNAL_IPV6)))
    ip = v6[draw(st.integers(0, v6.num_addresses - 1))]
    return f"[{draw(st.sampled_from([ip.compressed, ip.exploded, ip.exploded.upper(), f'{ip}%25eth0']))}]"


@given(host=internal_hosts(), port=st.sampled_from(["", ":443", ":8443"]))
def test_no_internal_address_passes(host: str, port: str) -> None:
    """No internal IPv4 or IPv6 address passes, however it is spelled."""
    with pytest.raises(ValueError, match="https://"):
        inputs.check_reference(f"https://{host}{port}/a.png", kind="image")


@given(st.text() | st.text().map(lambda text: "https://" + text) | st.text().map(lambda text: "data:" + text))
def test_any_text_is_judged_and_described(text: str) -> None:
    """No string makes the check or the description fail in any other way than a ValueError of the check."""
    assert inputs.describe(text).isprintable()
    assert inputs.reveal(inputs.hide(text)) == text
    with suppress(ValueError):
        inputs.check_reference(text, kind="image")


# ------------------------------------------------------------------------------------------------
# What goes to the gateway


def test_url_is_passed_on_untouched() -> None:
    """A model that takes URLs gets the URL as it was written."""
    url = f"https://example.com/%7Ea.png?b=%2F+c&{SECRET}"
    assert resolve(url) == resolve(f" {url}\n") == url


@given(st.binary(max_size=400), st.sampled_from(["plain", "url-safe", "unpadded", "wrapped", "data"]))
def test_base64_round_trip(tail: bytes, style: str) -> None:
    """Base64 in every accepted spelling becomes the one canonical spelling of the same bytes."""
    data = PNG + tail
    spelled = {
        "plain": b64(data),
        "url-safe": base64.urlsafe_b64encode(data).decode(),
        "unpadded": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "wrapped": "\n " + base64.encodebytes(data).decode().replace("\n", "\r\n"),
        "data": f"data:image/png;base64,{b64(data)}",
    }[style]
    wire = resolve(spelled)
    assert wire == b64(data)
    assert inputs.content_digest(wire) == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_s3_key_is_taken_literally() -> None:
    """In an S3 key '?', '#', '%' and blanks are characters like any other, and the limit is handed on."""
    asked: list[tuple[str, str, int]] = []

    def read_s3(bucket: str, key: str, limit: int) -> bytes:
        asked.append((bucket, key, limit))
        return PNG

    assert resolve("s3://bucket/a b/c?d#e%20f.png", read_s3=read_s3, max_bytes=5000) == b64(PNG)
    assert resolve(" s3a://bucket/a.png\n", read_s3=read_s3) == b64(PNG)
    assert [each[:2] for each in asked] == [("bucket", "a b/c?d#e%20f.png"), ("bucket", "a.png")]
    assert asked[0][2] == 5000


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (PNG + bytes(5000), "s3://b/k is larger than 5,000 bytes"),
        (b"<Error/>", "s3://b/k is of no known format; an image is needed: PNG"),
        (b"", "s3://b/k is empty"),
        (MP4, "s3://b/k is video/mp4"),
    ],
)
def test_s3_object_that_is_no_image(stored: bytes, why: str) -> None:
    """An object that is too large or no image is refused by its name."""
    with pytest.raises(ValueError, match=why):
        resolve("s3://b/k", read_s3=lambda bucket, key, limit: stored[: limit + 1], max_bytes=5000)


def test_errors_of_s3_pass_through() -> None:
    """What the S3 reader raises reaches the caller as it is."""

    def read_s3(bucket: str, key: str, limit: int) -> bytes:
        raise PermissionError(key)

    with pytest.raises(PermissionError, match="k"):
        resolve("s3://b/k", read_s3=read_s3)


def test_file_is_read(tmp_path: Path) -> None:
    """A file:// path is percent-decoded and read."""
    (tmp_path / "a b#ü.png").write_bytes(PNG)
    assert resolve(f"file://{tmp_path}/a%20b#%C3%BC.png") == b64(PNG)


def test_file_that_cannot_be_used(tmp_path: Path) -> None:
    """A missing file, a directory, a FIFO and a file that is too large are refused without blocking."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large.png").write_bytes(PNG)
    for name in ("missing.png", "", "fifo"):
        with pytest.raises(ValueError, match="is not a file on this worker"):
            resolve(f"file://{tmp_path}/{name}")
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        resolve(f"file://{tmp_path}/large.png", max_bytes=100)
    with pytest.raises(ValueError, match="cannot be read"):
        resolve(f"file:///{'a' * 300}.png")


# ------------------------------------------------------------------------------------------------
# Fetching, from a real TLS server on loopback


@dataclass
class Site:
    """A TLS server for media.example; ``answers`` maps a path to what writes its answer."""

    port: int
    authority: ssl.SSLContext
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    connections: int = 0

    def url(self, path: str, host: str = "media.example") -> str:
        return f"https://{host}:{self.port}{path}"

    def fetcher(self, **changes: Any) -> Fetcher:
        """One that takes every host to be on loopback, and loopback to be public."""
        options: dict[str, Any] = {
            "addresses": lambda host, port: ["127.0.0.1"],
            "is_public": lambda address: True,
            "ssl_context": self.authority,
        }
        return Fetcher(**options | changes)

    def get(self, path: str, *, host: str = "media.example", max_bytes: int = 5000, **changes: Any) -> str:
        return resolve(
            self.url(path, host), accepts_url=False, max_bytes=max_bytes, fetcher=self.fetcher(**changes)
        )


@pytest.fixture(name="site")
def _site(certificate: Path) -> Iterator[Site]:
    with serve(certificate) as running:
        yield running


@contextmanager
def serve(certificate: Path) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(self.path)
            site.answers[self.path](self)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            site.connections += 1
            return super().get_request()

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # A client that hangs up on a body that is too large.

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    site = Site(server.server_port, ssl.create_default_context(cafile=str(certificate)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(
    status: int = 200, body: bytes = b"", length: int | None = -1, **headers: str
) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer; ``length`` is what Content-Length says, None for none."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if length is not None:
            handler.send_header("Content-Length", str(len(body) if length == -1 else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return write


def test_fetched(site: Site) -> None:
    """Where a model takes only base64, an https URL is fetched with its query."""
    site.answers[f"/a%20b.png?{SECRET}&c=%2F"] = answer(body=PNG)
    assert site.get(f"/a%20b.png?{SECRET}&c=%2F#part") == b64(PNG)


@pytest.mark.parametrize("length", [None, -1])
def test_fetched_with_and_without_a_length(site: Site, length: int | None) -> None:
    """A body of exactly the limit is taken whether or not its length was announced."""
    site.answers["/a.png"] = answer(body=PNG, length=length)
    assert site.get("/a.png", max_bytes=len(PNG)) == b64(PNG)


def test_fetched_in_chunks(site: Site) -> None:
    """A chunked body is put together."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (PNG[:7], PNG[7:])) + b"0\r\n\r\n"
    site.answers["/a.png"] = answer(body=body, length=None, Transfer_Encoding="chunked")
    assert site.get("/a.png") == b64(PNG)


def test_redirect_is_followed(site: Site) -> None:
    """A relative redirect and one to another host name are followed."""
    site.answers["/1"] = answer(302, Location="/2?x=y")
    site.answers["/2?x=y"] = answer(307, Location=site.url("/3"))
    site.answers["/3"] = answer(body=PNG)
    assert site.get("/1") == b64(PNG)
    assert site.requests == ["/1", "/2?x=y", "/3"]


@pytest.mark.parametrize(
    "location",
    [
        "https://10.0.0.1/a.png?",
        "https://169.254.169.254/latest/meta-data/?",
        "https://localhost/a.png?",
        "https://0x7f.1/?",
        "http://media.example/a.png?",
        "file:///etc/passwd?",
        "//[::1]/a.png?",
        "https://user:pass@media.example/?",
        "https://[/?",
    ],
)
def test_redirect_to_elsewhere_is_refused(site: Site, location: str) -> None:
    """A redirect to an internal host or away from https is refused, without its query in the message."""
    site.answers["/1"] = answer(302, Location=location + SECRET)
    with pytest.raises(ValueError, match=r"media\.example:\d+/1 redirects") as raised:
        site.get("/1")
    assert SECRET[-12:] not in str(raised.value)
    assert site.connections == 1


def test_redirect_to_a_host_that_resolves_to_an_internal_address(site: Site) -> None:
    """Each hop's addresses are checked anew: a public name that leads inside is not connected to."""
    site.answers["/1"] = answer(302, Location=site.url("/2", "inside.example"))
    with pytest.raises(ValueError, match="/1 points at an internal address"):
        site.get(
            "/1",
            addresses=lambda host, port: ["127.0.0.1" if host == "media.example" else "127.0.0.2"],
            is_public=lambda address: address == "127.0.0.1",
        )
    assert site.requests == ["/1"]
    assert site.connections == 1


def test_endless_redirects_end(site: Site) -> None:
    """After five redirects the fetch is given up."""
    site.answers["/1"] = answer(301, Location="/1")
    with pytest.raises(ValueError, match="redirects more than 5 times"):
        site.get("/1")
    assert len(site.requests) == 6


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], []])
def test_host_that_resolves_to_loopback(site: Site, addresses: list[str]) -> None:
    """A host of which any address is internal is refused, and no connection is made."""
    with pytest.raises(ValueError, match="internal address"):
        resolve(
            site.url("/a.png"),
            accepts_url=False,
            fetcher=Fetcher(addresses=lambda host, port: addresses, ssl_context=site.authority),
        )
    site.answers["/a.png"] = answer(body=PNG)
    site.get("/a.png")
    assert site.connections == 1  # This one; connections are counted in their order.


def test_checked_address_is_the_one_connected_to(site: Site) -> None:
    """The host is looked up once: a second answer (DNS rebinding) has nowhere to slip in."""
    lookups: list[str] = []

    def addresses(host: str, port: int) -> list[str]:
        lookups.append(host)
        return ["127.0.0.1"] if len(lookups) == 1 else ["127.0.0.99"]

    site.answers["/a.png"] = answer(body=PNG)
    assert site.get("/a.png", addresses=addresses) == b64(PNG)
    assert lookups == ["media.example"]


def test_next_address_is_tried(site: Site) -> None:
    """Where the first address refuses the connection, the next one is tried."""
    site.answers["/a.png"] = answer(body=PNG)
    assert site.get("/a.png", addresses=lambda host, port: ["127.0.0.9", "127.0.0.1"]) == b64(PNG)


def test_certificate_is_verified_against_the_host(site: Site) -> None:
    """A server that cannot prove to be the host in the URL gets no request."""
    with pytest.raises(MediaUnavailable, match="certificate verify failed"):
        site.get("/a.png", host="other.example")
    with pytest.raises(MediaUnavailable, match="certificate verify failed"):
        site.get("/a.png", ssl_context=Fetcher().ssl_context)
    assert site.requests == []


def test_announced_length_over_the_limit(site: Site) -> None:
    """A body that says it is too large is refused before any of it is read."""
    site.answers["/a.png"] = answer(body=b"", length=5001)
    with pytest.raises(ValueError, match="larger than 5,000 bytes"):
        site.get("/a.png")


def test_reading_stops_at_the_limit(site: Site) -> None:
    """A body without a length is read no further than the limit, were it endless."""

    def endless(handler: BaseHTTPRequestHandler) -> None:
        answer(length=None)(handler)
        while True:
            handler.wfile.write(PNG)

    site.answers["/a.png"] = endless
    with pytest.raises(ValueError, match="larger than 5,000 bytes"):
        site.get("/a.png")


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410])
def test_answer_that_is_final(site: Site, status: int) -> None:
    """An answer that a later try will not change is a fault of the value."""
    site.answers["/a.png"] = answer(status)
    with pytest.raises(ValueError, match=f"answered {status}"):
        site.get("/a.png")


@pytest.mark.parametrize(
    "write",
    [
        answer(503),
        answer(429),
        answer(500),
        answer(body=PNG[:-1], length=len(PNG)),
        answer(body=b"100\r\nabc", length=None, Transfer_Encoding="chunked"),
        lambda handler: handler.wfile.write(f"no HTTP {SECRET}\r\n\r\n".encode()),
        lambda handler: None,
    ],
)
def test_answer_that_may_change(site: Site, write: Callable[[BaseHTTPRequestHandler], None]) -> None:
    """A broken or busy answer is no fault of the value, and tells nothing of the query or the content."""
    site.answers[f"/a.png?{SECRET}"] = write
    with pytest.raises(MediaUnavailable, match=r"media\.example:\d+/a\.png could not be fetched") as raised:
        site.get(f"/a.png?{SECRET}")
    assert SECRET[-12:] not in str(raised.value)


def test_page_instead_of_an_image(site: Site) -> None:
    """A page that answers 200 in place of an image is refused."""
    site.answers["/a.png"] = answer(body=b"<!doctype html><title>Log in</title>")
    with pytest.raises(ValueError, match="of no known format"):
        site.get("/a.png")


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n\x89PNG"])
def test_deadline_ends_a_silent_answer(site: Site, sent: bytes) -> None:
    """A host that stops talking, in the head or in the body, is given up at the deadline."""
    done = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(sent)
        done.wait()

    site.answers["/a.png"] = stall
    try:
        with pytest.raises(MediaUnavailable, match=r"timed out|too long"):
            site.get("/a.png", deadline=0.3)
    finally:
        done.set()


def test_deadline_ends_a_trickle(site: Site) -> None:
    """A host that sends a little now and then, for ever, is given up at the deadline."""

    done = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        while not done.wait(0.01):
            handler.wfile.write(b"H")

    site.answers["/a.png"] = trickle
    try:
        with pytest.raises(MediaUnavailable, match=r"timed out|too long"):
            site.get("/a.png", deadline=0.3)
    finally:
        done.set()


def test_unknown_host(site: Site) -> None:
    """A host name that does not resolve may resolve later."""

    def addresses(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(MediaUnavailable, match=r"/a\.png could not be fetched: .*Name or service not known"):
        site.get(f"/a.png?{SECRET}", addresses=addresses)


def test_fetching_logs_nothing_of_the_query(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative log level, no query is logged, be it of the URL or of a redirect."""
    caplog.set_level(logging.DEBUG)
    site.answers[f"/1?{SECRET}"] = answer(302, Location=f"/2?{SECRET}")
    site.answers[f"/2?{SECRET}"] = answer(body=PNG)
    site.get(f"/1?{SECRET}")
    assert SECRET[-12:] not in caplog.text


# ------------------------------------------------------------------------------------------------
# What may be shown


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        (f"https://user:pass@example.com:8443/a.png?{SECRET}#x", "https://example.com:8443/a.png"),
        (f"HTTP://example.com?{SECRET}", "http://example.com"),
        ("https://user:p/ss@example.com/a.png", "https://… (malformed)"),
        ("ftp://user:pass@example.com/a", "ftp://…"),
        ("s3://bucket/a?b#c.png", "s3://bucket/a?b#c.png"),
        ("file:///a%20b.png", "file:///a%20b.png"),
        ("photo.png", "photo.png"),
        ("/opt/data/photo.png", "/opt/data/photo.png"),
        ("A long sentence that is no reference at all.", "<text, 44 characters>"),
        ("https://example.com/a\nERROR forged", "https://example.com/a\ufffdERROR forged"),
    ],
)
def test_described(reference: str, shown: str) -> None:
    """A description names the value and leaves out what is secret."""
    assert inputs.describe(reference) == shown


def test_inline_data_described() -> None:
    """Inline data is described by type, size and digest."""
    digest = hashlib.sha256(PNG).hexdigest()[:8]
    assert (
        inputs.describe(f"data:image/png;base64,{b64(PNG)}")
        == f"<image/png, {len(PNG):,} bytes, sha256 {digest}…>"
    )
    assert inputs.describe(b64(PNG)) == f"<image/png, {len(PNG):,} bytes, sha256 {digest}…>"


def has_run_of(secret: str, shown: str, length: int = 12) -> bool:
    return any(secret[at : at + length] in shown for at in range(len(secret) - length + 1))


secrets = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~=&%/", min_size=12)
presigned = st.builds(
    lambda head, secret: (f"{head}{secret}", secret),
    st.sampled_from(
        ["https://example.com/a.png?", "https://example.com?", "http://x/?", "https://?", "a://b?"]
    ),
    secrets,
)
inline = st.builds(
    lambda head, tail, spoiled: (f"{head}{tail}{spoiled}", tail),
    st.sampled_from(
        ["", " ", "data:image/png;base64,", "data:image/png,", "data:,", "data:image/png;base64;"]
    ),
    st.binary(min_size=60).map(lambda tail: b64(PNG[:8] + tail)),
    st.sampled_from(["", "=", "!", "\n", ".png", "?"]),
)


@given(presigned | inline)
def test_nothing_secret_is_ever_shown(case: tuple[str, str]) -> None:
    """No description, refusal or hidden value holds 12 characters in a row of a query or of inline data."""
    reference, secret = case
    hidden = inputs.hide({"image": reference, "reference_images": [reference, (reference,)]})
    shown = [
        inputs.describe(reference),
        str(hidden),
        json.dumps(serialize_template_field(hidden, "parameters")),
    ]
    try:
        inputs.check_reference(reference, kind="video")
    except ValueError as error:
        shown.append(str(error))
    assert not any(has_run_of(secret, text) for text in shown)
    assert inputs.reveal(hidden) == {"image": reference, "reference_images": [reference, (reference,)]}


@pytest.mark.parametrize(
    "value",
    [
        "A paper boat drifting down a rain-filled gutter: shallow depth of field",
        "a lone lighthouse on a cliff " * 60,
        "data: a chart, rising",
        "https://example.com/a.png",
        "s3://bucket/" + "folder/" * 30 + "a?b.png",
        "file:///opt/a.png",
        "16:9",
        6,
        None,
        True,
        {"duration": 6, "list": [1, ("a", None)]},
        b"bytes",
    ],
)
def test_the_rest_is_left_alone(value: Any) -> None:
    """Prompts, plain URLs, S3 keys and values of other types are not hidden."""
    assert inputs.hide(value) == value


@pytest.mark.parametrize("data", [*IMAGES.values(), *VIDEOS.values()])
def test_small_media_are_hidden(data: bytes) -> None:
    """Inline media are hidden, were they a few bytes long or wrapped with blanks."""
    assert isinstance(inputs.hide(b64(data)), HiddenMedia)
    assert isinstance(inputs.hide(" ".join(b64(data))), HiddenMedia)


def test_hiding_leaves_templates_to_airflow() -> None:
    """Before rendering, a URL with Jinja in it can be left for Airflow to render."""
    template = "https://example.com/{{ ds }}.png?{{ params.query }}"
    assert inputs.hide(template, keep_templates=True) == template
    assert isinstance(inputs.hide(template), HiddenMedia)
    assert isinstance(inputs.hide(b64(PNG), keep_templates=True), HiddenMedia)


def test_hidden_media_are_copied_and_compared() -> None:
    """A hidden value survives copying and pickling, and equals another of the same string."""
    hidden = inputs.hide({"a": [b64(PNG)]})
    for twin in (copy.deepcopy(hidden), pickle.loads(pickle.dumps(hidden)), copy.copy(hidden)):
        assert twin == hidden
        assert inputs.reveal(twin) == {"a": [b64(PNG)]}
    assert len({HiddenMedia("a"), HiddenMedia("a"), HiddenMedia("b")}) == 2
    assert HiddenMedia("a") != "a"


@pytest.mark.skipif(AIRFLOW < (3, 0), reason="Airflow 2 stores their str")
def test_hidden_media_in_rendered_templates() -> None:
    """Airflow stores and shows the description, at the top and in containers."""
    url = f"https://example.com/a.png?{SECRET}"
    shown = "https://example.com/a.png"
    assert serialize_template_field(inputs.hide(url), "image") == shown
    container = serialize_template_field(inputs.hide({"image": url, "list": [(url,)]}), "parameters")
    if AIRFLOW >= (3, 2):
        assert container == {"image": shown, "list": [[shown]]}
    else:  # its str, as Airflow 2 does
        assert container == f"{{'image': {shown}, 'list': [({shown},)]}}"


def test_hidden_media_in_rendered_templates_of_airflow_2() -> None:
    """What Airflow 2 stores of a field that JSON cannot encode, its str, is the description too."""
    hidden = inputs.hide({"list": [f"https://example.com/a.png?{SECRET}"]})
    with pytest.raises(TypeError):
        json.dumps(hidden)
    assert str(hidden) == "{'list': [https://example.com/a.png]}"


def test_hidden_media_pass_through_rendering() -> None:
    """Rendering templates leaves a hidden value as it is, beside values that are rendered."""
    hidden = inputs.hide({"image": b64(PNG), "prompt": "on {{ ds }}"})
    rendered = BaseOperator(task_id="a").render_template(hidden, {"ds": "2026-06-06"})
    assert rendered == {"image": hidden["image"], "prompt": "on 2026-06-06"}

"""Media inputs: what may be sent, and what it looks like."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import ipaddress
import socket
import unicodedata
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import av

Kind = Literal["image", "video"]

# ffmpeg is to try these and nothing else: some of its demuxers fetch what a playlist names.
_FORMATS: dict[Kind, str] = {
    "image": "png_pipe,jpeg_pipe,webp_pipe,gif,bmp_pipe,tiff_pipe",
    "video": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm",
}
_INTERNAL_NAMES = ("localhost", "internal", "local")


class InvalidMedia(ValueError):
    """A media input that the gateway refuses. The message completes "image_input ..."."""


@dataclass(frozen=True)
class MediaUrl:
    """A public https address. The emulator never fetches it."""

    url: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"https://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class MediaBytes:
    """An image or a video that came along in the body."""

    data: bytes

    def __str__(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()[:16]} ({len(self.data)} bytes)"


Media = MediaUrl | MediaBytes


def read_media(value: object, kind: Kind, *, urls: bool = True) -> Media:
    """Take a media field's value apart.

    :param urls: whether the field takes an https URL besides base64.
    :raises InvalidMedia: it is neither, or not what it should be.
    """
    takes = "an https URL or a base64 string" if urls else "a base64 string"
    if not isinstance(value, str) or not value:
        raise InvalidMedia(f"must be {takes}")
    if value[:5].lower() == "data:":
        raise InvalidMedia(f"must be {takes}: bare base64, without the data URI prefix")
    if ":" in value:  # never in base64
        if not urls:
            raise InvalidMedia(f"must be {takes}, not a URL")
        _check_public(value)
        return MediaUrl(value)
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidMedia(f"must be {takes}") from None
    if not data:
        raise InvalidMedia(f"must be {takes}")
    first_frame(data, kind)
    return MediaBytes(data)


def first_frame(data: bytes, kind: Kind) -> av.VideoFrame:
    """Decode an image, or the first picture of a video.

    :raises InvalidMedia: it is no such thing.
    """
    try:
        with av.open(io.BytesIO(data), "r", options={"format_whitelist": _FORMATS[kind]}) as container:
            return next(container.decode(video=0))
    except (av.FFmpegError, StopIteration, IndexError, ValueError):
        raise InvalidMedia(f"is not a decodable {kind}") from None


def _check_public(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidMedia("is not a valid URL") from None
    if parts.scheme.lower() != "https":
        raise InvalidMedia("must be an HTTPS URL")
    if not host or any(character.isspace() or not character.isprintable() for character in url):
        raise InvalidMedia("is not a valid URL")
    if _is_internal(host):
        raise InvalidMedia("must not point at an internal address")


def _is_internal(host: str) -> bool:
    # Compatibility forms such as full-width digits resolve like the plain ones.
    host = unicodedata.normalize("NFKC", host).replace("\u3002", ".").lower().removesuffix(".")
    address = _literal_address(host)
    if address is not None:
        return not _is_public(address)
    labels = host.split(".")
    return len(labels) == 1 or labels[-1] in _INTERNAL_NAMES


def _literal_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            return ipaddress.IPv6Address(0)  # no name has a colon: refuse it like an unusable address
    try:
        # Also 127.1, 0x7f.0.0.1, 0177.0.0.1 and 2130706433, as every resolver reads them.
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(address.packed[-4:])
        if embedded is not None:
            return _is_public(embedded)
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

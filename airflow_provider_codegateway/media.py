"""Image and video inputs: what an author names, and what the model takes.

A reference is an ``https://`` URL, an ``s3://`` key, a ``file://`` path, base64, or a base64 data URI.
:func:`check_reference` refuses for free what can be refused, :func:`resolve` makes the value that goes to the
gateway, :func:`describe` and :func:`hide` keep bytes and presigned queries out of everything that is shown.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast
from urllib.parse import unquote, unquote_to_bytes

import httpx

from airflow_provider_codegateway import __version__
from airflow_provider_codegateway.exceptions import MediaUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

Kind: TypeAlias = Literal["image", "video"]

MIB = 1024 * 1024
MAX_BYTES = 20 * MIB
"""Bytes of one input at most, by default, before base64."""

_MAX_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
_FORMS = "an https:// URL, an s3:// key, a file:// path on the worker, base64, or a base64 data URI"
_FORMATS: dict[Kind, str] = {
    "image": "PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC, AVIF",
    "video": "MP4, MOV, WebM, MKV, AVI",
}


# ----------------------------------------------------------------------------------------------------
# Public interface


def check_reference(reference: str, *, kind: Kind, max_bytes: int = MAX_BYTES) -> None:
    """Refuse what can be refused without any I/O.

    :param max_bytes: bytes that inline data may have, decoded.
    :raises ValueError: what is wrong with the value, shown as :func:`describe` does, and what would do.
    """
    _parse(reference, kind=kind, max_bytes=max_bytes)


def resolve(
    reference: str,
    *,
    kind: Kind,
    accepts_url: bool,
    read_s3: Callable[[str, str, int], bytes],
    max_bytes: int = MAX_BYTES,
    fetcher: Fetcher | None = None,
) -> str:
    """The value that goes to the gateway: an https URL as it was written, or base64 without a prefix.

    :param accepts_url: whether the model takes URLs in this field. Where it does not, the URL is fetched.
    :param read_s3: called with bucket, key and a limit; returns the object, or its first ``limit`` + 1 bytes.
        Its errors pass through.
    :param max_bytes: bytes that the input may have, decoded.
    :param fetcher: what fetches https URLs; by default one that connects to public addresses only.
    :raises ValueError: the input is missing, too large, or no image or video.
    :raises MediaUnavailable: an https URL could not be fetched now.
    """
    source = _parse(reference, kind=kind, max_bytes=max_bytes)
    match source:
        case _Url() if accepts_url:
            return reference
        case _Url(url):
            data = (fetcher or Fetcher()).fetch(url, kind=kind, max_bytes=max_bytes)
        case _Object(bucket, key):
            data = read_s3(bucket, key, max_bytes)
        case _File(path):
            data = _read_file(path, describe(reference), max_bytes)
        case _Inline(data):
            return _encode(data)
    _check_bytes(data, reference, kind=kind, max_bytes=max_bytes)
    return _encode(data)


def content_digest(wire_value: str) -> str:
    """What stands for a resolved input in the fingerprint: ``sha256:`` and its bytes' hex, or its URL."""
    if _SCHEME.match(wire_value):
        return wire_value
    return f"sha256:{hashlib.sha256(binascii.a2b_base64(wire_value)).hexdigest()}"


def describe(reference: str) -> str:
    """What may be shown of any string given as a reference, well-formed or not.

    A URL without user, query and fragment; ``s3://`` and ``file://`` as they are; ``<image/png, 12,345 bytes,
    sha256 ab12cd34…>`` for inline data; a short file name as it is; of anything else only its length.
    """
    text = reference.strip()
    if url := _SCHEME.match(text):
        return _printable(_describe_url(url[1].lower(), text, url.end()))
    # A long run without a break may be the start of somebody's bytes, whatever ending it has.
    stem = text.rsplit(".", 1)[0]
    is_plain = re.fullmatch(r"[a-z/. ~_-]*", stem) or not re.search(r"[\w+/=-]{12}", stem)
    if is_plain and _FILE_NAME.fullmatch(text):
        return _printable(text)
    try:
        data = _decode_inline(text)
    except ValueError:
        return f"<text, {len(reference):,} characters>"
    digest = hashlib.sha256(data).hexdigest()[:8]
    return f"<{_media_type(data) or 'no known media'}, {len(data):,} bytes, sha256 {digest}…>"


class HiddenMedia:
    """A string that shows as :func:`describe` has it, wherever it is printed, rendered or serialized.

    Airflow stores template fields in its database and shows them in its UI. 3.x asks a value for
    ``serialize()``, 2.x takes the ``str`` of what JSON cannot encode; in a container that is the ``repr``.
    This class is deliberately no ``str``, which both would store whole, and no dataclass, whose fields
    serializers walk into.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself."""
        return self._value

    def serialize(self) -> str:
        """What Airflow 3 stores and shows of it."""
        return describe(self._value)

    def __str__(self) -> str:
        return describe(self._value)

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, HiddenMedia) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)


def hide(value: Any, *, keep_templates: bool = False, copies: dict[int, int] | None = None) -> Any:
    """``value`` with every string that must not be shown wrapped, in dicts, lists, tuples and sets at any depth.

    Those are inline media, long runs of base64, and URLs with a query or a user.

    :param keep_templates: leave strings with Jinja in them alone, so that Airflow still renders them.
        For use before rendering; hide again afterwards.
    :param copies: takes the ``id`` of each container that is made, with that of the one it stands for.
    """
    if isinstance(value, str):
        is_kept = keep_templates and _JINJA.search(value)
        return HiddenMedia(value) if not is_kept and _must_hide(value) else value
    hidden = _map(value, lambda item: hide(item, keep_templates=keep_templates, copies=copies))
    if copies is not None and hidden is not value:
        copies[id(hidden)] = id(value)
    return hidden


def reveal(value: Any) -> Any:
    """``value`` as it was before :func:`hide`."""
    return value.reveal() if isinstance(value, HiddenMedia) else _map(value, reveal)


def show(value: Any) -> Any:
    """``value`` in plain types, with :func:`describe`'s words for what :func:`hide` wrapped."""
    return str(value) if isinstance(value, HiddenMedia) else _map(value, show)


# ----------------------------------------------------------------------------------------------------
# Reading a reference


@dataclass(frozen=True)
class _Url:
    url: httpx.URL


@dataclass(frozen=True)
class _Object:
    bucket: str
    key: str


@dataclass(frozen=True)
class _File:
    path: Path


@dataclass(frozen=True)
class _Inline:
    data: bytes = field(repr=False)


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def _parse(reference: str, *, kind: Kind, max_bytes: int) -> _Url | _Object | _File | _Inline:
    """Where the bytes are, or for inline data, the bytes."""
    if not reference.strip():
        raise ValueError(f"it is empty; give {_FORMS}")
    if not (match := _SCHEME.match(reference)):
        return _Inline(_parse_inline(reference, kind=kind, max_bytes=max_bytes))
    rest = reference[match.end() :]
    # By hand: in a key or a path, '?', '#' and '%' are characters like any other, and URL parsers cut there.
    match match[1].lower():
        case "https" | "http":
            return _Url(_parse_url(reference))
        case "s3":
            bucket, _, key = rest.partition("/")
            if not bucket or not key:
                raise ValueError(f"{describe(reference)} lacks a bucket or a key; write s3://bucket/key")
            return _Object(bucket, key)
        case "file":
            path = os.fsdecode(unquote_to_bytes(rest))
            if not path.startswith("/") or "\0" in path:
                raise ValueError(
                    f"{describe(reference)} is no absolute path on the worker; write file:///folder/name, "
                    "with three slashes"
                )
            return _File(Path(path))
        case _:
            raise ValueError(f"{describe(reference)} has a scheme that is not known here; give {_FORMS}")


def _parse_inline(reference: str, *, kind: Kind, max_bytes: int) -> bytes:
    if header := _DATA_URI.match(reference.strip()):
        media_type, *options = header[1].lower().split(";")
        if "base64" not in (option.strip() for option in options):
            raise ValueError(
                f"{describe(reference)}: a data URI must be base64, as in data:{kind}/…;base64,…"
            )
        if media_type and not media_type.startswith(f"{kind}/"):
            raise ValueError(f"{describe(reference)}: the media type of the data URI is not {kind}/…")
    # What is far too large (base64 takes 4/3) is not decoded at all; _check_bytes is exact.
    if len(reference) > 2 * max_bytes + 1024:
        raise ValueError(f"<text, {len(reference):,} characters> is larger than {_size(max_bytes)}")
    try:
        data = _decode_inline(reference)
    except ValueError:
        raise ValueError(f"{describe(reference)} is no base64; give {_FORMS}") from None
    if not header and not _media_type(data):
        raise ValueError(f"{describe(reference)} is no base64 of {_article(kind)}; give {_FORMS}")
    _check_bytes(data, reference, kind=kind, max_bytes=max_bytes)
    return data


_DATA_URI = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")


def _decode_inline(text: str) -> bytes:
    """The bytes of base64 or of a data URI. White space, URL-safe letters, missing padding are accepted."""
    text = text.strip()
    if header := _DATA_URI.match(text):
        text = unquote(text[header.end() :])
    text = "".join(text.split())
    if "-" in text or "_" in text:
        text = text.translate(_URL_SAFE)
    return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _read_file(path: Path, shown: str, max_bytes: int) -> bytes:
    try:
        # Anything but a regular file may block for ever (a FIFO) or never end (a device).
        if not path.is_file():
            raise ValueError(f"{shown} is no file on this worker; put it in S3 and give its s3:// key")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None


def _check_bytes(data: bytes, reference: str, *, kind: Kind, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise ValueError(f"{describe(reference)} is larger than {_size(max_bytes)}")
    found = _media_type(data)
    if not found or not found.startswith(f"{kind}/"):
        what = f"is {found}" if found else "is empty" if not data else "is of no known format"
        raise ValueError(f"{describe(reference)} {what}; {_article(kind)} is needed: {_FORMATS[kind]}")


# ----------------------------------------------------------------------------------------------------
# What the bytes are

_MAGIC: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), media_type)
    for pattern, media_type in (
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBP", "image/webp"),
        # "BM" alone would be found in much text: also the reserved zeros, and the size of a known header.
        (rb"BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "image/bmp"),
        (rb"II\*\0|MM\0\*", "image/tiff"),
        (rb"....ftypavi[fs]", "image/avif"),
        (rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", "image/heic"),
        (rb"....ftypM4[ABP] ", "audio/mp4"),
        (rb"....ftypqt  ", "video/quicktime"),
        (rb"....ftyp", "video/mp4"),
        (rb"\x1a\x45\xdf\xa3.{,60}?webm", "video/webm"),
        (rb"\x1a\x45\xdf\xa3", "video/x-matroska"),
        (rb"RIFF....AVI ", "video/x-msvideo"),
    )
)


def _media_type(data: bytes) -> str | None:
    return next((media_type for magic, media_type in _MAGIC if magic.match(data)), None)


# ----------------------------------------------------------------------------------------------------
# Public addresses only

_IPV4_NOT_PUBLIC = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "192.0.0.0/24",  # RFC 6890; Python before 3.11.10 knows only parts of it
        "168.63.129.16/32",  # Azure's host agent, reachable from every virtual machine there
    )
)
_IPV6_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_IPV6_NOT_PUBLIC = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, with Teredo, which embeds an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds an IPv4 address
        "3fff::/20",  # documentation
    )
)
# What DNS64 answers for a host that has IPv4 only, as in an IPv6-only subnet.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_INTERNAL_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def _is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, by the IANA registries."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip not in _NAT64:
            return ip in _IPV6_GLOBAL_UNICAST and not any(ip in network for network in _IPV6_NOT_PUBLIC)
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _IPV4_NOT_PUBLIC)


def _parse_url(reference: str) -> httpx.URL:
    """An https URL whose host is not internal by what it says.

    Only the plain spelling of a host passes. Parsers differ on the others (white space that some drop,
    ``%31``, ``0x7f.1``), and the gateway's may read an address where this one reads a name.
    """
    shown = describe(reference)
    if re.search(r"[\s\\]", reference) or not reference.isprintable():
        raise ValueError(f"{shown} has white space or a backslash in it; percent-encode it")
    try:
        url = httpx.URL(reference)
    except httpx.InvalidURL:
        raise ValueError(f"{shown} is no valid URL") from None
    if url.scheme != "https":
        raise ValueError(f"{shown} is not https; give {_FORMS}")
    if url.userinfo:
        raise ValueError(f"{shown} has a user or password in it; give a URL that needs none, or an s3:// key")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError(f"{shown} has no valid port")

    host = url.raw_host.decode("ascii").lower()
    if ":" in host:
        if not _is_public(host):
            raise ValueError(f"{shown} points at an internal address; give a public URL, or an s3:// key")
        return url
    name = host.removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{shown} has no valid host name")
    if _ENDS_IN_A_NUMBER.fullmatch(name):
        try:
            address = str(ipaddress.IPv4Address(name))
        except ValueError:
            raise ValueError(f"{shown} spells its address unusually; write four decimal numbers") from None
        if not _is_public(address):
            raise ValueError(f"{shown} points at an internal address; give a public URL, or an s3:// key")
    elif "." not in name or any(f".{name}".endswith(f".{internal}") for internal in _INTERNAL_NAMES):
        raise ValueError(f"{shown} points at an internal host; give a public URL, or an s3:// key")
    return url


# ----------------------------------------------------------------------------------------------------
# Fetching


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
    is_public: Callable[[str], bool] = _is_public
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
            for _ in range(1 + _MAX_REDIRECTS):
                answer = self._get(url, shown, deadline, kind=kind, max_bytes=max_bytes)
                if isinstance(answer, bytes):
                    return answer
                url = self._redirected(url, answer, shown)
        except (OSError, http.client.HTTPException) as error:
            # Of a protocol error only its name: its text quotes what the server sent.
            why = str(error) if isinstance(error, OSError) else type(error).__name__
            raise MediaUnavailable(f"{shown} could not be fetched: {why}") from None
        raise ValueError(f"{shown} redirects more than {_MAX_REDIRECTS} times")

    def _redirected(self, url: httpx.URL, location: str, shown: str) -> httpx.URL:
        try:
            return _parse_url(str(url.join(location)))
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
                    raise ValueError(f"{shown} is larger than {_size(max_bytes)}")
                body = response.read(max_bytes + 1)
                if len(body) > max_bytes:
                    raise ValueError(f"{shown} is larger than {_size(max_bytes)}")
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
                    (address, port), timeout=min(_CONNECT_SECONDS, _seconds_until(deadline))
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


# ----------------------------------------------------------------------------------------------------
# What may be shown

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]{1,64}\]|[^\s:@\[\]]{0,253})(:[0-9]{0,5})?")
# A name with an extension, which no base64 has, or one too short to tell anything.
_FILE_NAME = re.compile(r"[\w./~ -]{1,11}|[\w./~ -]{1,100}\.\w{1,5}")
_JINJA = re.compile(r"\{[{%#]")
# The look-behind lets a match begin only where a run does, which keeps the search linear.
_BASE64_RUN = re.compile(r"(?<![A-Za-z0-9+/_\r\n-])[A-Za-z0-9+/_\r\n-]{64}")


def _describe_url(scheme: str, text: str, start: int) -> str:
    if scheme in ("s3", "file"):
        return _shorten(text, 1100)  # An S3 key has 1,024 bytes at most.
    if scheme not in ("https", "http"):
        return f"{_shorten(scheme, 10)}://…"
    authority, rest = _split_authority(text[start:])
    host = authority.rpartition("@")[2]
    if not _HOST_AND_PORT.fullmatch(host):
        # A password with a slash in it ends the authority early.
        return f"{scheme}://… (malformed)"
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}://{host}{_shorten(path, 200)}"


def _split_authority(text: str) -> tuple[str, str]:
    authority = re.split(r"[/?#\\]", text, maxsplit=1)[0]
    return authority, text[len(authority) :]


def _must_hide(text: str) -> bool:
    text = text.lstrip()
    if url := _SCHEME.match(text):
        if url[1].lower() in ("s3", "file"):
            return False
        return "?" in text or "@" in _split_authority(text[url.end() :])[0]
    if re.match(r"data:[^\s,]*,", text, re.IGNORECASE) or _BASE64_RUN.search(text):
        return True
    # Small or oddly wrapped media: enough of it to know what it is.
    head = "".join(text[:400].split()).translate(_URL_SAFE)
    try:
        return _media_type(binascii.a2b_base64(head[: len(head) // 4 * 4])) is not None
    except ValueError:
        return False


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a dict, list, tuple or set with its items changed; anything else as it is."""
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(change(item) for item in value)
    return value


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _printable(text: str) -> str:
    """``text`` with line breaks and the like replaced, so that it cannot forge a log line."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    )


def _size(count: int) -> str:
    return f"{count / MIB:g} MiB" if count >= MIB else f"{count:,} bytes"


def _article(kind: Kind) -> str:
    return "an image" if kind == "image" else "a video"

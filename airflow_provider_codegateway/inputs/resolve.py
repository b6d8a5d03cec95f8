"""From what an author names to what the gateway takes."""

from __future__ import annotations

import binascii
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_codegateway.inputs.formats import MAX_BYTES, Kind, is_whole
from airflow_provider_codegateway.inputs.inline import encode
from airflow_provider_codegateway.inputs.reference import (
    InlineData,
    S3Object,
    WebAddress,
    WorkerFile,
    check_bytes,
    parse,
)
from airflow_provider_codegateway.inputs.words import SCHEME, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_codegateway.inputs.fetch import Fetcher


def check_reference(reference: str, *, kind: Kind, max_bytes: int = MAX_BYTES) -> None:
    """Refuse what can be refused without any I/O.

    :param max_bytes: bytes that inline data may have, decoded.
    :raises ValueError: what is wrong with the value, shown as :func:`describe` does, and what to use instead.
    """
    parse(reference, kind=kind, max_bytes=max_bytes)


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
    source = parse(reference, kind=kind, max_bytes=max_bytes)
    match source:
        case WebAddress() if accepts_url:
            return reference.strip()
        case WebAddress(url):
            data = (fetcher or _public_fetcher()).fetch(url, kind=kind, max_bytes=max_bytes)
        case S3Object(bucket, key):
            data = read_s3(bucket, key, max_bytes)
        case WorkerFile(path):
            data = _read_file(path, describe(reference), max_bytes)
        case InlineData(data):
            pass
    check_bytes(data, reference, kind=kind, max_bytes=max_bytes)
    if not is_whole(data):
        raise ValueError(f"{describe(reference)} is not whole: a part of it is missing; give the whole file")
    return encode(data)


def content_digest(wire_value: str) -> str:
    """What counts of a resolved input in the fingerprint: ``sha256:`` and its bytes' hex, or its URL, unsigned."""
    if SCHEME.match(wire_value):
        return without_signature(wire_value)
    return f"sha256:{hashlib.sha256(binascii.a2b_base64(wire_value)).hexdigest()}"


_SIGNATURES = {
    # The parameter that gives a scheme away, and all that belong to it, in lower case.
    "x-amz-signature": r"x-amz-.*",
    "x-goog-signature": r"x-goog-.*",
    "x-oss-signature": r"x-oss-.*",
    # Versions 1 and 2 of S3, Google and OSS, and CloudFront.
    "signature": r"signature|expires|(aws|oss)accesskeyid|(x-amz-)?security-token|googleaccessid|policy|key-pair-id",
    # Azure's shared access signatures.
    "sig": r"sig|s[virpest]|ss|srt|spr|sip|sk(oid|tid|[test]|v)|s[au]oid|scid",
}


def without_signature(url: str) -> str:
    """The URL less its signature. The same object is the same input, however often its link is signed anew."""
    base, _, query = url.partition("?")
    parameters = query.split("&") if query else []
    names = {_name(parameter) for parameter in parameters}
    for sign, belonging in _SIGNATURES.items():
        if sign in names:
            parameters = [each for each in parameters if not re.fullmatch(belonging, _name(each))]
    return f"{base}?{'&'.join(parameters)}" if parameters else base


def _name(parameter: str) -> str:
    return parameter.partition("=")[0].lower()


def _read_file(path: Path, shown: str, max_bytes: int) -> bytes:
    try:
        # Anything but a regular file may block for ever (a FIFO) or never end (a device).
        if not path.is_file():
            raise ValueError(f"{shown} is not a file on this worker; put it in S3 and give its s3:// key")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None


def _public_fetcher() -> Fetcher:
    from airflow_provider_codegateway.inputs.fetch import Fetcher  # a DAG file needs no HTTP client

    return Fetcher()

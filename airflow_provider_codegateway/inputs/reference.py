"""Reading a reference: where its bytes are, or the bytes themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httpx

from airflow_provider_codegateway.inputs.formats import (
    FORMATS,
    Kind,
    article,
    media_type,
    shown_size,
)
from airflow_provider_codegateway.inputs.inline import DATA_URI, decode_inline
from airflow_provider_codegateway.inputs.public import FORMS, parse_url
from airflow_provider_codegateway.inputs.words import SCHEME, describe


@dataclass(frozen=True)
class WebAddress:
    """An https URL."""

    url: httpx.URL


@dataclass(frozen=True)
class S3Object:
    """An object in S3."""

    bucket: str
    key: str


@dataclass(frozen=True)
class WorkerFile:
    """A file on the worker."""

    path: Path


@dataclass(frozen=True)
class InlineData:
    """Base64, decoded."""

    data: bytes = field(repr=False)


def parse(reference: str, *, kind: Kind, max_bytes: int) -> WebAddress | S3Object | WorkerFile | InlineData:
    """Where the bytes are, or for inline data, the bytes."""
    reference = reference.strip()
    if not reference:
        raise ValueError(f"it is empty; give {FORMS}")
    if not (match := SCHEME.match(reference)):
        return InlineData(_parse_inline(reference, kind=kind, max_bytes=max_bytes))
    rest = reference[match.end() :]
    # By hand: in a key or a path, '?', '#' and '%' are characters like any other, and URL parsers cut there.
    match match[1].lower():
        case "https" | "http":
            return WebAddress(parse_url(reference))
        case "s3" | "s3a" | "s3n":
            bucket, _, key = rest.partition("/")
            if not bucket or not key:
                raise ValueError(f"{describe(reference)} lacks a bucket or a key; write s3://bucket/key")
            return S3Object(bucket, key)
        case "file":
            path = os.fsdecode(unquote_to_bytes(rest))
            if not path.startswith("/") or "\0" in path:
                raise ValueError(
                    f"{describe(reference)} is not an absolute path on the worker; write file:///folder/name, "
                    "with three slashes"
                )
            return WorkerFile(Path(path))
        case _:
            raise ValueError(f"{describe(reference)} has a scheme that is not known here; give {FORMS}")


def _parse_inline(reference: str, *, kind: Kind, max_bytes: int) -> bytes:
    if header := DATA_URI.match(reference):
        _, *options = header[1].lower().split(";")
        if "base64" not in (option.strip() for option in options):
            raise ValueError(
                f"{describe(reference)}: a data URI must be base64, as in data:{kind}/…;base64,…"
            )
    # What is far too large (base64 takes 4/3) is not decoded at all; check_bytes is exact.
    if len(reference) > 2 * max_bytes + 1024:
        raise ValueError(f"<text, {len(reference):,} characters> is larger than {shown_size(max_bytes)}")
    try:
        data = decode_inline(reference)
    except ValueError:
        raise ValueError(f"{describe(reference)} is not base64; give {FORMS}") from None
    if not header and not media_type(data):
        raise ValueError(f"{describe(reference)} is not base64 of {article(kind)}; give {FORMS}")
    check_bytes(data, reference, kind=kind, max_bytes=max_bytes)
    return data


def check_bytes(data: bytes, reference: str, *, kind: Kind, max_bytes: int) -> None:
    """Refuse bytes that are too many, or not of the kind.

    :raises ValueError: what is wrong, and what is needed.
    """
    if len(data) > max_bytes:
        raise ValueError(f"{describe(reference)} is larger than {shown_size(max_bytes)}")
    found = media_type(data)
    if not found or not found.startswith(f"{kind}/"):
        what = f"is {found}" if found else "is empty" if not data else "is of no known format"
        raise ValueError(f"{describe(reference)} {what}; {article(kind)} is needed: {FORMATS[kind]}")

"""Media written into the DAG itself: base64, with or without a data URI around it."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

DATA_URI = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
URL_SAFE = str.maketrans("-_", "+/")


def decode_inline(text: str) -> bytes:
    """The bytes of base64 or of a data URI. White space, URL-safe letters, missing padding are accepted."""
    text = text.strip()
    if header := DATA_URI.match(text):
        text = unquote(text[header.end() :])
    text = "".join(text.split())
    if "-" in text or "_" in text:
        text = text.translate(URL_SAFE)
    return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)


def encode(data: bytes) -> str:
    """Base64, as the gateway takes it."""
    return base64.b64encode(data).decode("ascii")

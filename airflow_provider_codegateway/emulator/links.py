"""Links to clips: presigned ones in the manner of S3, and the ranges that clients ask for."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Signer:
    """Signs and checks ``Expires`` and ``Signature`` of a path."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def query(self, path: str, expires: int) -> str:
        """The query that makes a path a link until `expires` (Unix seconds)."""
        return f"Expires={expires}&Signature={self._signature(path, str(expires))}"

    def signed(self, path: str, expires: str, signature: str) -> bool:
        """Whether this signer made the query."""
        return hmac.compare_digest(self._signature(path, expires).encode(), signature.encode())

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self.key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


class RangeNotSatisfiable(ValueError):
    """The range begins behind the last byte: 416."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and stop of a single byte range; None where the whole is to be served.

    Several ranges, other units and malformed headers are ignored, as RFC 9110 allows.

    :raises RangeNotSatisfiable: no byte of it exists.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip()) if header else None
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise RangeNotSatisfiable(f"bytes */{size}")
    return start, stop

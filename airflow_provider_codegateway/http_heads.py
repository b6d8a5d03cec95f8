"""The head of an answer, read leniently: what comes after it is paid for, however its host writes headers.

What has no meaning here, and is not as RFC 9112 has it, is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

END = re.compile(rb"\r?\n\r?\n")
"""Of a head."""

_STATUS = re.compile(rb"HTTP/([0-9])(?:\.([0-9]))?[ \t]+([0-9]{3})(?![0-9])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*([\t\x20-\x7e\x80-\xff]*)")


@dataclass(frozen=True)
class Head:
    """A head.

    :param headers: those that are well-formed, with their names in lower case.
    """

    is_http_1_0: bool
    status: int
    headers: list[tuple[bytes, bytes]]

    @property
    def is_interim(self) -> bool:
        """Whether another head follows: this one is a 1xx."""
        return 100 <= self.status < 200 and self.status != 101

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return any(
            name == b"transfer-encoding" and b"chunked" in value.lower() for name, value in self.headers
        )

    @property
    def length(self) -> bytes | None:
        """Of the body. None if it is not said, is no number, or is said in two ways: the body says where it ends."""
        said = [value for name, value in self.headers if name == b"content-length"]
        lengths = {each.strip() for value in said for each in value.split(b",")}
        length = lengths.pop() if len(lengths) == 1 else b""
        return length if length.isdigit() and len(length) <= 15 else None

    def as_bytes(self) -> bytes:
        """As a parser takes it."""
        kept = [each for each in self.headers if each[0] not in (b"content-length", b"transfer-encoding")]
        if self.is_chunked:
            kept.append((b"transfer-encoding", b"chunked"))
        elif self.length is not None:
            kept.append((b"content-length", self.length))
        first = b"HTTP/1.%d %d " % (not self.is_http_1_0, self.status)
        return b"\r\n".join((first, *(b"%b: %b" % each for each in kept), b"", b""))


def read(head: bytes) -> Head | None:
    """A head, less what is malformed; None if it is not one of HTTP."""
    first, *lines = re.split(rb"\r?\n", head.strip())
    status = _STATUS.match(first)
    if status is None:
        return None
    headers = [(match[1].lower(), match[2].strip()) for line in lines if (match := _HEADER.fullmatch(line))]
    return Head((status[1], status[2]) == (b"1", b"0"), int(status[3]), headers)

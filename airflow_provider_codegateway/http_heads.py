"""The head of an answer, so that a parser of HTTP takes it: a clip is paid for, however its host writes headers.

What has no meaning here, and is not as RFC 9112 has it, is left out.
"""

from __future__ import annotations

import re

END = re.compile(rb"\r?\n\r?\n")
"""Of a head."""

_STATUS = re.compile(rb"HTTP/([0-9])(?:\.([0-9]))?[ \t]+([0-9]{3})(?![0-9])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*([\t\x20-\x7e\x80-\xff]*)")


def is_interim(head: bytes) -> bool:
    """Whether another head follows: this one is a 1xx."""
    status = _STATUS.match(head)
    return status is not None and status[3].startswith(b"1") and status[3] != b"101"


def mended(head: bytes) -> bytes:
    """A head with its status, and with the headers that are well-formed. One that is not of HTTP stays as it is.

    Lengths that contradict each other, or are no numbers, are left out: the clip itself says where it ends.
    """
    first, *lines = re.split(rb"\r?\n", head.strip())
    status = _STATUS.match(first)
    if status is None:
        return head
    headers = [(match[1].lower(), match[2].strip()) for line in lines if (match := _HEADER.fullmatch(line))]
    lengths = {
        length
        for name, each in headers
        if name == b"content-length"
        for length in re.split(rb"\s*,\s*", each)
    }
    codings = b",".join(each.lower() for name, each in headers if name == b"transfer-encoding")
    kept = [(name, each) for name, each in headers if name not in (b"content-length", b"transfer-encoding")]
    if b"chunked" in codings:
        kept.append((b"transfer-encoding", b"chunked"))
    elif len(lengths) == 1 and (length := lengths.pop()).isdigit() and len(length) <= 15:
        kept.append((b"content-length", length))
    version = b"1.0" if (status[1], status[2]) == (b"1", b"0") else b"1.1"
    return b"\r\n".join(
        (b"HTTP/%b %b " % (version, status[3]), *(b"%b: %b" % each for each in kept), b"", b"")
    )

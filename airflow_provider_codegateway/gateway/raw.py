"""What came over a connection, read as leniently as a person would read it.

A parser of HTTP refuses an answer with two Transfer-Encodings, an odd Content-Length or a header that it does not like.
The render is paid for all the same.
"""

from __future__ import annotations

import re

_HEAD = re.compile(rb"HTTP/[0-9](?:\.[0-9])?[ \t]+([0-9]{3})[^\n]*\n((?:[^\r\n][^\n]*\n)*)\r?\n")
_CHUNKED = re.compile(rb"transfer-encoding:[^\n]*chunked", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"[ \t\r\n]{0,9}([0-9a-f]{1,8})[ \t]*(?:;[^\n]*)?\r?\n", re.IGNORECASE)


def raw_answer(received: bytes) -> tuple[int, bytes] | None:
    """Status and body, without any 1xx before them; None if the head is not whole, or not one of HTTP."""
    head = _HEAD.match(received)
    while head is not None and head[1].startswith(b"1"):
        head = _HEAD.match(received, head.end())
    if head is None:
        return None
    body = received[head.end() :]
    if _CHUNKED.search(head[2]):
        body = _unchunked(body) or body
    return int(head[1]), body


def _unchunked(body: bytes) -> bytes:
    chunks, size = [], _CHUNK_SIZE.match(body)
    while size is not None and (length := int(size[1], 16)):
        chunks.append(body[size.end() : size.end() + length])
        size = _CHUNK_SIZE.match(body, size.end() + length)
    return b"".join(chunks)

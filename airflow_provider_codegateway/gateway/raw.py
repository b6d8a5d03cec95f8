"""What came over a connection, read as leniently as a person would read it.

A parser of HTTP refuses an answer with two Transfer-Encodings, an odd Content-Length or a header that it does not like.
The render is paid for all the same.
"""

from __future__ import annotations

import re

from airflow_provider_codegateway import http_heads

_CHUNK_SIZE = re.compile(rb"[ \t\r\n]{0,9}([0-9a-f]{1,8})[ \t]{0,9}(?:;[^\n]{0,4096})?\r?\n", re.IGNORECASE)


def raw_answer(received: bytes) -> tuple[int, bytes] | None:
    """Status and body, without any 1xx before them; None if the head is not whole, or not one of HTTP."""
    begin = 0
    while end := http_heads.END.search(received, begin):
        head = http_heads.read(received[begin : end.start()])
        if head is None:
            return None
        if not head.is_interim:
            body = received[end.end() :]
            return head.status, (_unchunked(body) or body) if head.is_chunked else body
        begin = end.end()
    return None


def _unchunked(body: bytes) -> bytes:
    chunks, size = [], _CHUNK_SIZE.match(body)
    while size is not None and (length := int(size[1], 16)):
        chunks.append(body[size.end() : size.end() + length])
        size = _CHUNK_SIZE.match(body, size.end() + length)
    return b"".join(chunks)

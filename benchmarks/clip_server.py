"""A clip host for benchmarks, in a process of its own: one file of a given size, sent by the kernel.

``python -m benchmarks.clip_server BYTES`` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

FRONT = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + b"\x00\x00\x00\x08moov"


def mp4_head(size: int) -> bytes:
    """How an MP4 of so many bytes begins: an index without tracks, and the head of its media."""
    return FRONT + (size - len(FRONT)).to_bytes(4, "big") + b"mdat"


def make_clip(file: IO[bytes], size: int) -> None:
    """Write the boxes of an MP4 with random media in it: neither server nor client may compress it away."""
    head = mp4_head(size)
    file.write(head)
    left = size - len(head)
    while left:
        left -= file.write(os.urandom(min(left, 1024 * 1024)))
    file.flush()


class ClipHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    clip: IO[bytes]
    size: int

    def do_GET(self) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(self.size - start))
        self.send_header("ETag", '"clip"')
        if match:
            self.send_header("Content-Range", f"bytes {start}-{self.size - 1}/{self.size}")
        self.end_headers()
        self.wfile.flush()
        while start < self.size:
            start += os.sendfile(self.connection.fileno(), self.clip.fileno(), start, self.size - start)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def main(size: int) -> None:
    with tempfile.TemporaryFile() as clip:
        make_clip(clip, size)
        ClipHandler.clip, ClipHandler.size = clip, size
        with ThreadingHTTPServer(("127.0.0.1", 0), ClipHandler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(server.server_port, flush=True)
            sys.stdin.read()
            server.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""An S3 on loopback: moto's server, with the one thing of S3 that it lacks."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 in a thread of this process, with its objects in memory: its URL.

    :raises ModuleNotFoundError: moto's server is not installed.
    """
    try:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(
            f"The S3 server needs {problem.name!r}: pip install 'moto[s3,server]'", name=problem.name
        ) from problem
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = _AtomicCreates(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="codegateway-s3")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _AtomicCreates:
    """moto looks whether an object exists and then writes it, in two steps; S3 does it in one."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Answer one request; those that create an object only if it is absent, one after the other."""
        with self._lock if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
            return self._app(environ, start_response)

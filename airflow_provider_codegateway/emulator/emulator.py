"""The emulator in a thread of this process."""

# ruff: noqa: D102 - the methods are documented in Controls

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .controls import Controls, Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .faults import ClipFault, Fault
    from .gateway import Gateway
    from .ledger import ClipRequest, Render
    from .server import Server

DEFAULT_API_KEY = "sk-cg-emulator"


class Emulator(Controls):
    """A CodeGateway on this machine, for the length of a ``with`` block.

    :param port: 0 for any free one.
    :param render_seconds: how long a render takes at least; encoding may take longer.
    :param link_lifetime: seconds that a presigned link works.
    :param serving: ``presigned`` links expire; ``raw`` ones do not and come without ``expires_at``.
    :param certificate: a PEM file with its key: the gateway and the clips' links speak TLS.
    :param extra_models: names of models beyond the guide's, which take anything.
    """

    def __init__(
        self,
        port: int = 0,
        api_key: str = DEFAULT_API_KEY,
        render_seconds: float = 0.0,
        link_lifetime: float = 3600.0,
        serving: Serving = "presigned",
        *,
        host: str = "127.0.0.1",
        certificate: Path | str | None = None,
        extra_models: tuple[str, ...] = (),
    ) -> None:
        self._host, self._port, self._api_key = host, port, api_key
        self._settings = (render_seconds, link_lifetime, serving)
        self._extra_models = extra_models
        self._certificate = None if certificate is None else Path(certificate)
        self._server: Server | None = None
        self._gateway: Gateway | None = None

    def start(self) -> Self:
        """Start listening.

        :raises OSError: the port is taken, or the certificate cannot be read.
        :raises ModuleNotFoundError: the extra ``emulator`` is not installed.
        """
        try:
            from .app import create_app
            from .gateway import Gateway, Settings
            from .server import Server
        except ModuleNotFoundError as problem:
            raise ModuleNotFoundError(
                f"The emulator needs {problem.name!r}: pip install 'airflow-provider-codegateway[emulator]'",
                name=problem.name,
            ) from problem
        gateway = Gateway(self._api_key, Settings(*self._settings), self._extra_models)
        server = Server(self._host, self._port, self._certificate)
        server.start(create_app(gateway, server), gateway.close)
        self._gateway, self._server, self._port = gateway, server, server.port
        return self

    def stop(self) -> None:
        """Drop every connection and remove the clips. The ledger can still be read."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://{host}:{self._port}"

    @property
    def api_key(self) -> str:
        return self._api_key

    @property
    def ledger(self) -> tuple[Render, ...]:
        return self._running.ledger

    @property
    def clip_requests(self) -> tuple[ClipRequest, ...]:
        return self._running.clip_requests

    def fail_next(self, fault: Fault | ClipFault, *, times: int | None = 1, model: str | None = None) -> None:
        self._running.fail_next(fault, times, model)

    def clear_faults(self) -> None:
        self._running.clear_faults()

    def serve_clip(self, clip: bytes | Path | str | None) -> None:
        from .responses import Source

        content = Path(clip) if isinstance(clip, str) else clip
        self._running.serve(None if content is None else Source.of(content))

    @contextmanager
    def down(self) -> Iterator[None]:
        server = self._listening
        server.call(server.stop_listening())
        try:
            yield
        finally:
            server.call(server.listen())

    def reset(self) -> None:
        self._call(self._running.reset)

    def wait_for(self, *, timeout: float = 30.0, **wanted: int) -> None:
        self._listening.call(self._running.wait_for(wanted, timeout))

    def _get(self, setting: str) -> Any:
        return getattr(self._running.settings, setting)

    def _set(self, setting: str, value: Any) -> None:
        self._call(partial(self._running.change, **{setting: value}))

    def _call(self, function: Callable[[], None]) -> None:
        async def on_loop() -> None:
            function()

        self._listening.call(on_loop())

    @property
    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("The emulator was never started: use it in a with block.")
        return self._gateway

    @property
    def _listening(self) -> Server:
        if self._server is None:
            raise RuntimeError("The emulator is not running: use it in a with block.")
        return self._server

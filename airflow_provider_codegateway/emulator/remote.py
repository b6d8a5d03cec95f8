"""The controls of an emulator that runs in another process."""

# ruff: noqa: D102 - the methods are documented in Controls

from __future__ import annotations

import ssl
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from .controls import Controls
from .ledger import ClipRequest, Render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .faults import ClipFault, Fault

_COMES_BACK_WITHIN = 10.0


class RemoteEmulator(Controls):
    """Controls over HTTP.

    :param url: the emulator's base URL.
    :param certificate: its certificate, where it speaks TLS with one that nobody else knows.
    """

    def __init__(self, url: str, certificate: Path | str | None = None) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=f"{self._url}/_emulator",
            timeout=30.0,
            trust_env=False,
            verify=True if certificate is None else ssl.create_default_context(cafile=certificate),
        )

    @property
    def url(self) -> str:
        return self._url

    @property
    def api_key(self) -> str:
        return str(self._state()["api_key"])

    @property
    def ledger(self) -> tuple[Render, ...]:
        return tuple(Render(**entry) for entry in self._state()["ledger"])

    @property
    def clip_requests(self) -> tuple[ClipRequest, ...]:
        return tuple(ClipRequest(**entry) for entry in self._state()["clip_requests"])

    def fail_next(self, fault: Fault | ClipFault, *, times: int | None = 1, model: str | None = None) -> None:
        self._send("POST", "/faults", json={"fault": fault.as_json(), "times": times, "model": model})

    def clear_faults(self) -> None:
        self._send("POST", "/clear")

    def serve_clip(self, clip: bytes | Path | str | None) -> None:
        if clip is None:
            self._send("PUT", "/clip", params={"real": "true"})
        elif isinstance(clip, bytes):
            self._send("PUT", "/clip", content=clip)
        else:
            with Path(clip).open("rb") as file:
                self._send("PUT", "/clip", content=file)

    @contextmanager
    def down(self) -> Iterator[None]:
        try:
            with self._client.stream("POST", "/down") as response:
                answer = response.iter_bytes()  # kept, because the connection is closed when it goes
                next(answer)
                yield
        finally:
            self._wait_until_back()

    def reset(self) -> None:
        self._send("POST", "/reset")

    def wait_for(self, *, timeout: float = 30.0, **wanted: int) -> None:
        order = {"wanted": wanted, "timeout": timeout}
        response = self._client.post("/wait", json=order, timeout=timeout + 10.0)
        if response.status_code == httpx.codes.REQUEST_TIMEOUT:
            raise TimeoutError(response.json()["error"])
        _check(response)

    def close(self) -> None:
        """Close the connection to the emulator, which goes on."""
        self._client.close()

    def _get(self, setting: str) -> Any:
        return self._state()["settings"][setting]

    def _set(self, setting: str, value: Any) -> None:
        self._send("PATCH", "/settings", json={setting: value})

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._send("GET", "/state").json()
        return state

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        return _check(self._client.request(method, path, **content))

    def _wait_until_back(self) -> None:
        deadline = time.monotonic() + _COMES_BACK_WITHIN
        while True:
            try:
                self._state()
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


def _check(response: httpx.Response) -> httpx.Response:
    if response.status_code == httpx.codes.BAD_REQUEST:
        raise ValueError(response.json()["error"])
    return response.raise_for_status()

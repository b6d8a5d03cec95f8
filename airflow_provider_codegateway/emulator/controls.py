"""What a test can do with an emulator, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from .ledger import ClipRequest, Render, counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from .faults import ClipFault, Fault

Serving = Literal["presigned", "raw"]


class Controls(ABC):
    """The controls that `Emulator` and `RemoteEmulator` share."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Base URL, as an Airflow connection's host takes it."""

    @property
    @abstractmethod
    def api_key(self) -> str:
        """The one key that it accepts."""

    @property
    @abstractmethod
    def ledger(self) -> tuple[Render, ...]:
        """Every POST so far, in order of arrival: a snapshot."""

    @property
    @abstractmethod
    def clip_requests(self) -> tuple[ClipRequest, ...]:
        """Every request for a clip so far, in order of arrival: a snapshot."""

    @abstractmethod
    def fail_next(self, fault: Fault | ClipFault, *, times: int | None = 1, model: str | None = None) -> None:
        """Queue a fault for the next `times` POSTs (`Fault`) or clip GETs (`ClipFault`).

        :param times: None for all of them, until ``clear_faults`` or ``reset``.
        :param model: strike only what is for this model; others go on as if there were no such fault.
        :raises ValueError: `times` is below 1, or a model was given for ``cut_upload``, which strikes before the
            model is known.
        """

    @abstractmethod
    def clear_faults(self) -> None:
        """Forget the faults that are still queued."""

    @abstractmethod
    def serve_clip(self, clip: bytes | Path | str | None) -> None:
        """Answer every next render with exactly these bytes, or this file's; None: with real clips again."""

    @abstractmethod
    def down(self) -> AbstractContextManager[None]:
        """Refuse connections for the length of a ``with`` block.

        Calls in progress go on; the port stays the same.
        """

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep every render from finishing for the length of a ``with`` block."""
        self._set("held", True)
        try:
            yield
        finally:
            self._set("held", False)

    @abstractmethod
    def reset(self) -> None:
        """Forget everything and go back to the settings of the start.

        Renders in progress go on unseen and their links are void.
        """

    @abstractmethod
    def wait_for(self, *, timeout: float = 30.0, **wanted: int) -> None:
        """Block until there are at least as many as `wanted`.

        :param timeout: seconds.
        :param wanted: any of ``accepted``, ``billed``, ``refused``, ``hung_up`` (accepted calls whose client
            did not get a whole answer), ``clip_requests``, and ``rendering``: renders in progress, where 0
            waits for none.
        :raises TimeoutError: it did not come to that; the message has the counts.
        """

    @abstractmethod
    def _get(self, setting: str) -> Any: ...

    @abstractmethod
    def _set(self, setting: str, value: Any) -> None: ...

    @property
    def render_seconds(self) -> float:
        """Seconds that a render takes at least. May be set; calls in progress keep theirs."""
        return float(self._get("render_seconds"))

    @render_seconds.setter
    def render_seconds(self, seconds: float) -> None:
        self._set("render_seconds", seconds)

    @property
    def link_lifetime(self) -> float:
        """Seconds that a presigned link works. May be set."""
        return float(self._get("link_lifetime"))

    @link_lifetime.setter
    def link_lifetime(self, seconds: float) -> None:
        self._set("link_lifetime", seconds)

    @property
    def serving(self) -> Serving:
        """``presigned`` links expire; ``raw`` ones do not and come without ``expires_at``. May be set."""
        serving: Serving = self._get("serving")
        return serving

    @serving.setter
    def serving(self, serving: Serving) -> None:
        self._set("serving", serving)

    @property
    def accepted(self) -> int:
        """Number of calls that were taken on."""
        return counts(self.ledger, ())["accepted"]

    @property
    def billed(self) -> int:
        """Number of renders that were paid for."""
        return counts(self.ledger, ())["billed"]

    @property
    def refused(self) -> int:
        """Number of calls that cost nothing."""
        return counts(self.ledger, ())["refused"]

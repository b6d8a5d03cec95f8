"""The gateway's memory and its renders. Everything here runs on one event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import clips, containers
from .faults import ClipFault, Fault
from .ledger import ClipRequest, Render, counts
from .links import Signer
from .responses import Source
from .rules import abridged

if TYPE_CHECKING:
    from collections.abc import Callable

    from .rules import VideoRequest

log = logging.getLogger(__name__)

_ENCODERS = 2


@dataclass(frozen=True)
class Settings:
    """What may be set while the emulator runs."""

    render_seconds: float = 0.0
    link_lifetime: float = 3600.0
    serving: str = "presigned"
    held: bool = False
    """Whether renders wait, however long they have taken."""

    def __post_init__(self) -> None:
        if self.serving not in ("presigned", "raw"):
            raise ValueError(f"serving must be 'presigned' or 'raw', not {self.serving!r}")
        if self.render_seconds < 0:
            raise ValueError(f"render_seconds must not be negative, but is {self.render_seconds}")


@dataclass
class StoredClip:
    """A clip behind a link."""

    model: str
    source: Source
    signed: bool
    expires_at: float
    """Unix seconds; infinity for never."""


@dataclass(frozen=True)
class Answer:
    """What a finished render is answered with."""

    created: int
    model: str
    path: str
    serving: str
    expires_at: int | None


@dataclass
class _Queued:
    """A fault that waits for its turn."""

    fault: Fault | ClipFault
    left: int | None
    """How often it still strikes; None for always."""
    model: str | None


@dataclass(frozen=True)
class Arrival:
    """A call as it came in."""

    number: int
    at: float
    id: str


@dataclass(frozen=True)
class Accepted:
    """A render that was taken on."""

    render: asyncio.Task[Answer]
    amend: Callable[..., None]


class Gateway:
    """Takes renders on, encodes them, bills them, and keeps the books."""

    def __init__(self, api_key: str, settings: Settings, extra_models: tuple[str, ...] = ()) -> None:
        self.api_key = api_key
        self.extra_models = extra_models
        self.signer = Signer()
        self._initial = self.settings = settings
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        self._released.set()
        self._folder = Path(tempfile.mkdtemp(prefix="codegateway-emulator-"))
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="codegateway-encoder")
        self._arrivals = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._encoded: dict[str, asyncio.Future[Source]] = {}
        self._forget()

    def _forget(self) -> None:
        self._ledger: dict[int, Render] = {}
        self._clip_requests: list[ClipRequest] = []
        self._faults: tuple[_Queued, ...] = ()
        self._served: Source | None = None
        self.clips: dict[str, StoredClip] = {}

    # What a test controls.

    @property
    def ledger(self) -> tuple[Render, ...]:
        """Every POST, in order of arrival."""
        return tuple(render for _, render in sorted(self._ledger.copy().items()))

    @property
    def clip_requests(self) -> tuple[ClipRequest, ...]:
        """Every request for a clip, in order of arrival."""
        return tuple(self._clip_requests)

    def fail_next(self, fault: Fault | ClipFault, times: int | None, model: str | None) -> None:
        """Queue a fault.

        :raises ValueError: it can never strike.
        """
        if times is not None and times < 1:
            raise ValueError(f"times must be 1 or more, or None for until cleared, not {times}")
        if model is not None and fault.kind == "cut_upload":
            raise ValueError("cut_upload takes no model: it strikes before the model is known")
        self._faults += (_Queued(fault, times, model),)

    def clear_faults(self) -> None:
        """Forget the faults that are still queued."""
        self._faults = ()

    def serve(self, source: Source | None) -> None:
        """Answer renders with these bytes, or with real clips again."""
        self._served = source

    def new_file(self) -> Path:
        """A path for a clip of the emulator's own."""
        return self._folder / f"{secrets.token_hex(8)}.mp4"

    def change(self, **settings: Any) -> None:
        """Change settings.

        :raises TypeError: there is no such setting.
        :raises ValueError: the value does not do.
        """
        self._apply(replace(self.settings, **settings))

    def reset(self) -> None:
        """Forget everything but the clips that were encoded."""
        self._forget()
        self._apply(self._initial)
        self._note()

    def _apply(self, settings: Settings) -> None:
        self.settings = settings
        if settings.held:
            self._released.clear()
        else:
            self._released.set()

    async def wait_for(self, wanted: dict[str, int], timeout: float) -> None:  # noqa: ASYNC109
        """Wait until there are at least as many as wanted.

        :raises TimeoutError: it did not come to that in time.
        """

        def reached() -> bool:
            there = counts(self._ledger.values(), self._clip_requests)
            return all(
                there[name] == 0 if name == "rendering" and number == 0 else there[name] >= number
                for name, number in wanted.items()
            )

        unknown = wanted.keys() - counts((), ()).keys()
        if unknown:
            raise ValueError(
                f"cannot wait for {', '.join(sorted(unknown))}; only for {', '.join(counts((), ()))}"
            )
        try:
            async with asyncio.timeout(timeout):
                while not reached():
                    await self._changed.wait()
        except TimeoutError:
            there = counts(self._ledger.values(), self._clip_requests)
            raise TimeoutError(f"waited {timeout:g} s for {wanted}, but there are {there}") from None

    # What a call does.

    def take_upload_fault(self) -> Fault | None:
        """The fault that strikes a POST that has just begun to arrive, if that is next."""
        for queued in self._faults:
            if isinstance(fault := queued.fault, Fault):
                if fault.kind != "cut_upload":
                    return None
                self._strike(queued)
                return fault
        return None

    def take_fault(self, model: str | None) -> Fault | None:
        """The fault that strikes this POST."""
        for queued in self._faults:
            fault = queued.fault
            if not isinstance(fault, Fault) or fault.kind == "cut_upload":
                continue
            if queued.model in (None, model):
                self._strike(queued)
                return fault
        return None

    def take_clip_fault(self, model: str) -> ClipFault | None:
        """The fault that strikes this GET."""
        for queued in self._faults:
            if isinstance(fault := queued.fault, ClipFault) and queued.model in (None, model):
                self._strike(queued)
                return fault
        return None

    def _strike(self, queued: _Queued) -> None:
        if queued.left is None:
            return
        queued.left -= 1
        if queued.left == 0:
            self._faults = tuple(other for other in self._faults if other is not queued)

    def arrive(self) -> Arrival:
        """Note when a call came."""
        return Arrival(next(self._arrivals), time.time(), secrets.token_hex(8))

    def refuse(self, arrival: Arrival, body: object, status: int | None) -> None:
        """Write down a call that bought nothing.

        :param status: what is answered; None where the connection is reset.
        """
        fields = body if isinstance(body, dict) else {}
        model, prompt = (
            value if isinstance(value, str) else None for value in map(fields.get, ("model", "prompt"))
        )
        entry = Render(
            id=arrival.id,
            received_at=arrival.at,
            model=model,
            prompt=prompt,
            request={name: abridged(value) for name, value in fields.items()},
            state="refused",
            status=status,
            answered=status is not None,
        )
        self._put(arrival.number, entry)

    def accept(
        self,
        arrival: Arrival,
        request: VideoRequest,
        *,
        early_expiry: float | None = None,
        container: str | None = None,
        wrong: str | None = None,
    ) -> Accepted:
        """Take a render on. It goes on, and is billed, whatever becomes of the client.

        :param early_expiry: seconds after which the link stops working, whatever it says.
        :param container: what the clip is in, where it is not a usual MP4.
        :param wrong: how the clip differs from what was asked for, if it does.
        """
        entry = Render(
            id=arrival.id,
            received_at=arrival.at,
            model=request.model,
            prompt=request["prompt"] if isinstance(request["prompt"], str) else None,
            request=request.digest(),
            state="rendering",
        )
        self._put(arrival.number, entry)
        amend = partial(self._amend, self._ledger, arrival.number)
        encoding = self._source(request, container, wrong)
        # Without the request: a render may wait long, and images are large.
        task = asyncio.ensure_future(self._render(entry.id, request.model, encoding, early_expiry, amend))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Accepted(task, amend)

    async def _render(
        self,
        id_: str,
        model: str,
        encoding: asyncio.Future[Source],
        early_expiry: float | None,
        amend: Callable[..., None],
    ) -> Answer:
        settings, stored = self.settings, self.clips
        await asyncio.sleep(settings.render_seconds)
        await self._released.wait()
        try:
            source = await asyncio.shield(encoding)
        except Exception:
            log.exception("render %s failed", id_)
            amend(state="refused", status=500)
            raise
        now = time.time()
        path = f"/clips/{id_}.mp4"
        signed = settings.serving == "presigned"
        lifetime = settings.link_lifetime if signed else math.inf
        if early_expiry is not None:
            lifetime = early_expiry
        stored[id_] = StoredClip(model, source, signed, now + lifetime)
        amend(state="billed", billed_at=now, clip=path)
        expires_at = int(now + settings.link_lifetime) if signed else None
        return Answer(int(now), model, path, settings.serving, expires_at)

    def _source(
        self, request: VideoRequest, container: str | None, wrong: str | None
    ) -> asyncio.Future[Source]:
        if container in containers.ENCODED or wrong:
            return self._encode(request, container, wrong)
        whole = self._encode(request) if self._served is None else _done(self._served)
        return whole if container is None else asyncio.ensure_future(_in_container(whole, container))

    def _encode(
        self, request: VideoRequest, container: str | None = None, wrong: str | None = None
    ) -> asyncio.Future[Source]:
        """Encode a request's clip, once for all that are the same."""
        key = f"{request.fingerprint} {container} {wrong}"
        if key not in self._encoded or (self._encoded[key].done() and self._encoded[key].exception()):
            self._encoded[key] = asyncio.ensure_future(self._encode_file(request, container, wrong))
        return self._encoded[key]

    async def _encode_file(self, request: VideoRequest, container: str | None, wrong: str | None) -> Source:
        path = self.new_file()
        render = partial(clips.render, request, path, container, wrong)
        await asyncio.get_running_loop().run_in_executor(self._encoders, render)
        return Source.of(path)

    def note_clip_request(self, request: ClipRequest) -> None:
        """Write down a request for a clip."""
        self._clip_requests.append(request)
        self._note()

    def _put(self, number: int, entry: Render) -> None:
        self._ledger[number] = entry
        log.info("render %s of %s: %s %s", entry.id, entry.model, entry.state, entry.status or "")
        self._note()

    def _amend(self, ledger: dict[int, Render], number: int, **changes: Any) -> None:
        ledger[number] = replace(ledger[number], **changes)
        if ledger is self._ledger:  # else it was reset since
            log.info("render %s: %s", ledger[number].id, changes)
            self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """Stop rendering and remove the clips."""
        for task in self._tasks:
            task.cancel()
        self._encoders.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)


async def _in_container(whole: asyncio.Future[Source], container: str) -> Source:
    source = await asyncio.shield(whole)
    return Source.of(containers.beginning_with(container, source.content_bytes))


def _done(source: Source) -> asyncio.Future[Source]:
    future: asyncio.Future[Source] = asyncio.get_running_loop().create_future()
    future.set_result(source)
    return future

"""What the emulator remembers of each call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

State = Literal["refused", "rendering", "billed"]


@dataclass(frozen=True)
class Render:
    """One POST, as far as it has come. A new entry replaces it when it changes."""

    id: str
    received_at: float
    """Unix seconds."""
    model: str | None
    prompt: str | None
    request: Mapping[str, Any] = field(repr=False)
    """The body. Of media there is a digest, of a URL no query."""
    state: State
    status: int | None = None
    """What was answered; None where nothing was, or not yet."""
    billed_at: float | None = None
    """Unix seconds."""
    answered: bool | None = None
    """Whether a whole answer went to a client that still listened; None while that is open."""
    clip: str | None = None
    """Path of the clip's link, without its query."""


@dataclass(frozen=True)
class ClipRequest:
    """One request for a clip."""

    method: str
    path: str
    status: int | None
    """None where the connection was left without an answer."""
    range: str | None
    if_range: str | None
    authorization: bool
    """Whether an Authorization header came along, which must never happen: the link is its own key."""


def counts(ledger: Collection[Render], clip_requests: Collection[ClipRequest]) -> dict[str, int]:
    """What ``wait_for`` can wait for."""
    states = [render.state for render in ledger]
    return {
        "accepted": len(states) - states.count("refused"),
        "rendering": states.count("rendering"),
        "billed": states.count("billed"),
        "refused": states.count("refused"),
        "hung_up": sum(render.answered is False for render in ledger if render.state != "refused"),
        "clip_requests": len(clip_requests),
    }

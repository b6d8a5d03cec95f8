"""A local CodeGateway: real MP4s, no key, no spend.

Written from the vendor's guide alone, so that it can disagree with the rest of the package.
Needs the extra ``emulator``. Importing this package costs nothing: the pytest plugin does so in every run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .controls import Controls as Controls
    from .emulator import Emulator as Emulator
    from .faults import ClipFault as ClipFault
    from .faults import Fault as Fault
    from .ledger import ClipRequest as ClipRequest
    from .ledger import Render as Render
    from .remote import RemoteEmulator as RemoteEmulator
    from .testing import TaskRun as TaskRun
    from .testing import run_task as run_task

_HOMES = {
    "ClipFault": "faults",
    "ClipRequest": "ledger",
    "Controls": "controls",
    "Emulator": "emulator",
    "Fault": "faults",
    "RemoteEmulator": "remote",
    "Render": "ledger",
    "TaskRun": "testing",
    "run_task": "testing",
}

__all__ = [
    "ClipFault",
    "ClipRequest",
    "Controls",
    "Emulator",
    "Fault",
    "RemoteEmulator",
    "Render",
    "TaskRun",
    "run_task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

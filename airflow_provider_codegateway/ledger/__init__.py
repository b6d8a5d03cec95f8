"""What was bought for a clip that is under way: its ledger entry, and the command that shows it."""

from __future__ import annotations

from airflow_provider_codegateway.ledger.entry import (
    Claim,
    Entry,
    Gone,
    Take,
    Turn,
    Wait,
    describe_attempts,
    entry_location,
    money,
    next_step,
)
from airflow_provider_codegateway.ledger.store import Ledger

__all__ = [
    "Claim",
    "Entry",
    "Gone",
    "Ledger",
    "Take",
    "Turn",
    "Wait",
    "describe_attempts",
    "entry_location",
    "money",
    "next_step",
]

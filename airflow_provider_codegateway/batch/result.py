"""What a batch came to: its summary, and how much of it may fail. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from typing import Any, Literal, Self

from airflow_provider_codegateway.clip import S3Location, split_uri
from airflow_provider_codegateway.exceptions import (
    Bought,
    BudgetExceeded,
    CodeGatewayError,
    InvalidConnection,
    InvalidRequest,
    InvalidTarget,
    RequestRejected,
)

Status = Literal["stored", "reused", "refused", "failed", "unknown", "not_begun"]

_REFUSALS = (InvalidRequest, InvalidConnection, InvalidTarget, BudgetExceeded, RequestRejected)


def status_of(error: CodeGatewayError) -> Status:
    """How a row ended that has no clip: for free and for good, known to have failed, or nobody knows."""
    if error.bought is Bought.PERHAPS:
        return "unknown"
    return "refused" if error.bought is Bought.NO and isinstance(error, _REFUSALS) else "failed"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the XCom ``batch`` holds: counts, cost and where the manifest is.

    :param requests: how many rows there are; the counts after it add up to them.
    :param stored: clips that this DAG run has made, in whichever attempt.
    :param reused: clips that were there before.
    :param skipped: of the refused rows, those that were invalid and skipped as ``skip_invalid`` asks.
    :param renders_bought: by this DAG run, known to be paid.
    :param renders_unknown: by this DAG run, which may have been paid.
    :param cost: of those renders, ``{"amount", "at_most", "currency"}`` with amounts as strings; None without prices.
    :param stopped: why no more rows were begun.
    :param errors: the first of them, each with its row.
    :param digest: SHA-256 of the manifest; None if it was not written, or by an earlier version.
    """

    manifest: str
    requests: int
    stored: int = 0
    reused: int = 0
    refused: int = 0
    failed: int = 0
    unknown: int = 0
    not_begun: int = 0
    skipped: int = 0
    renders_bought: int = 0
    renders_unknown: int = 0
    cost: Mapping[str, Any] | None = None
    stopped: str | None = None
    errors: Sequence[str] = ()
    digest: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``. Values that this version does not know are left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def without_clip(self) -> int:
        """Rows that have no clip and should have one."""
        return self.refused + self.failed + self.unknown + self.not_begun - self.skipped

    @property
    def may_help_to_retry(self) -> bool:
        """Whether another attempt may bring a clip that this one did not."""
        return bool(self.failed or self.unknown or (self.not_begun and self.stopped is None))

    def __str__(self) -> str:
        counts = [
            f"{count} {name.replace('_', ' ')}"
            for name in ("stored", "reused", "refused", "failed", "unknown", "not_begun")
            if (count := getattr(self, name))
        ]
        return ", ".join(counts) or "no rows"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a batch is.

    :param failed: rows that ended without a clip.
    :param spent: an amount or a number of renders, in words.
    :param seconds_left: an estimate; None while there is nothing to estimate by.
    """

    stored: int
    failed: int
    in_flight: int
    waiting: int
    spent: str
    seconds_left: float | None

    def __str__(self) -> str:
        words = (
            f"{self.stored:,} stored, {self.failed:,} failed, {self.in_flight:,} in flight, {self.waiting:,} waiting; "
            f"{self.spent} spent"
        )
        if self.seconds_left is None:
            return f"{words}."
        left = self.seconds_left
        return f"{words}; about {f'{left:.0f} s' if left < 90 else f'{left / 60:.0f} min'} left."


@dataclass(frozen=True)
class Tolerance:
    """How many rows may end without a clip.

    :param bound: a number of rows, or a share of them below 1.
    """

    bound: int | Decimal

    @classmethod
    def parse(cls, value: object) -> Self:
        """From ``3``, ``"3"``, ``0.1`` or ``"10%"``.

        :raises InvalidRequest: it is something else.
        """
        text = "" if isinstance(value, bool) else str(value).strip()
        if re.fullmatch(r"\d{1,9}", text):
            return cls(int(text))
        if match := re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", text):
            share = Decimal(match[1]) / 100
        elif re.fullmatch(r"0\.\d{1,8}", text):
            share = Decimal(text)
        else:
            share = Decimal(2)
        if share > 1:
            raise InvalidRequest(
                f"tolerated_failures={value!r} is not supported. Use a number of rows such as 3, or a share such as "
                "'10%' or 0.1."
            )
        return cls(share)

    def allows(self, failures: int, rows: int) -> bool:
        """Whether so many of the rows may fail."""
        return failures <= (self.bound if isinstance(self.bound, int) else self.bound * rows)


def manifest_location(result_path: object) -> S3Location:
    """Where the manifest goes.

    :raises InvalidRequest: ``result_path`` is not an ``s3://`` URI.
    """
    return _below(result_path, "manifest.jsonl")


def rows_location(result_path: object) -> S3Location:
    """Where the checked rows are, from which a trigger reads them."""
    return _below(result_path, "requests.jsonl")


def progress_beside(manifest: S3Location) -> S3Location:
    """Where a batch that is under way says how far it is."""
    return S3Location(manifest.bucket, manifest.key.removesuffix("manifest.jsonl") + "progress.json")


def _below(result_path: object, name: str) -> S3Location:
    location = split_uri(result_path.strip()) if isinstance(result_path, str) else None
    if location is None or not location.bucket:
        raise InvalidRequest(
            f"result_path={result_path!r} is not a folder in S3. Use a URI such as 's3://bucket/spring/'."
        )
    folder = location.key.strip("/")
    return S3Location(location.bucket, f"{folder}/{name}" if folder else name)

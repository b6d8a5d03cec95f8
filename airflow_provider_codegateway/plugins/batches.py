"""What a batch tells of itself: counts, cost, where the manifest is, and how far it is while it is under way.

All of it is checked for its form here, as the XCom of a single clip is in ``clips``. Manifest and progress must also
say by their own metadata whose they are, before anything of them is shown (``manifests``).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from airflow_provider_codegateway.clip import S3Location, split_uri

COUNTS = ("stored", "reused", "refused", "failed", "unknown", "not_begun")
"""The ways in which a row can end."""
_MOST = 2**53


Amount = Annotated[str, Field(max_length=40, pattern=r"^[0-9]+(\.[0-9]+)?$")]


class Spent(BaseModel):
    """What a batch cost. An amount is None if it is not known."""

    model_config = ConfigDict(strict=True)

    amount: Amount | None = None
    at_most: Amount | None = None
    currency: str = Field(pattern=r"^[A-Z]{3}$")


def cost_of(value: object) -> dict[str, Any] | None:
    """A cost that a page can add up, or None."""
    try:
        return Spent.model_validate(value).model_dump()
    except ValidationError:
        return None


class Batch(BaseModel):
    """The counts of a batch.

    :param manifest: its URI.
    :param stopped: why no more rows were begun.
    """

    model_config = ConfigDict(strict=True)

    manifest: str = Field(max_length=2000)
    requests: int = Field(ge=0, lt=_MOST)
    stored: int = Field(0, ge=0, lt=_MOST)
    reused: int = Field(0, ge=0, lt=_MOST)
    refused: int = Field(0, ge=0, lt=_MOST)
    failed: int = Field(0, ge=0, lt=_MOST)
    unknown: int = Field(0, ge=0, lt=_MOST)
    not_begun: int = Field(0, ge=0, lt=_MOST)
    renders_bought: int = Field(0, ge=0, lt=_MOST)
    renders_unknown: int = Field(0, ge=0, lt=_MOST)
    cost: Annotated[Spent | None, BeforeValidator(cost_of)] = None
    stopped: str | None = Field(None, max_length=10_000)

    @property
    def location(self) -> S3Location | None:
        """Where the manifest is; None if what is said cannot be a place in S3."""
        return object_at(self.manifest)


def object_at(uri: str) -> S3Location | None:
    """Where an object is; None if what is said cannot be the place of one."""
    location = split_uri(uri)
    return location if location and location.bucket and location.key else None


def parse_batch(value: str) -> Batch | None:
    """The XCom ``batch``, or None if the JSON is not one of ours."""
    try:
        batch = Batch.model_validate_json(value)
    except ValidationError:
        return None
    return batch if batch.location else None


class Progress(BaseModel):
    """How far a batch is, as ``batch.result.Progress`` wrote it."""

    model_config = ConfigDict(strict=True)

    stored: int = Field(ge=0, lt=_MOST)
    failed: int = Field(ge=0, lt=_MOST)
    in_flight: int = Field(ge=0, lt=_MOST)
    waiting: int = Field(ge=0, lt=_MOST)
    spent: str = Field(max_length=80)
    seconds_left: float | None = Field(ge=0, lt=_MOST, allow_inf_nan=False)


def below(result_path: str, name: str) -> S3Location | None:
    """Where a file of a batch goes; None if ``result_path`` is not a place in S3."""
    folder = split_uri(result_path.strip())
    if folder is None or not folder.bucket:
        return None
    key = folder.key.strip("/")
    return S3Location(folder.bucket, f"{key}/{name}" if key else name)

"""What a task tells of its batch: counts, cost, and where the manifest is.

An XCom ``batch`` is checked for its form here, as one of a single clip is in ``clips``; and the manifest that it names
by its own metadata, before anything of it is shown (``manifests``).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_codegateway.clip import S3Location, split_uri

COUNTS = ("stored", "reused", "refused", "failed", "unknown", "not_begun")
"""The ways in which a row can end."""
_MOST = 2**53


class Spent(BaseModel):
    """What a batch cost. An amount is None if it is not known."""

    model_config = ConfigDict(strict=True)

    amount: str | None = Field(None, max_length=40)
    at_most: str | None = Field(None, max_length=40)
    currency: str = Field(max_length=3)


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
    cost: Spent | None = None
    stopped: str | None = Field(None, max_length=10_000)

    @property
    def location(self) -> S3Location | None:
        """Where the manifest is; None if what is said cannot be a place in S3."""
        location = split_uri(self.manifest)
        return location if location and location.bucket and location.key else None


def parse_batch(value: str) -> Batch | None:
    """The XCom ``batch``, or None if the JSON is not one of ours."""
    try:
        batch = Batch.model_validate_json(value)
    except ValidationError:
        return None
    return batch if batch.location else None


def progress_location(result_path: str) -> S3Location | None:
    """Where a batch that is under way says how far it is; None if its ``result_path`` is not known."""
    folder = split_uri(result_path)
    if folder is None or not folder.bucket:
        return None
    key = folder.key.strip("/")
    return S3Location(folder.bucket, f"{key}/progress.json" if key else "progress.json")

"""Lines of JSON in a temporary file, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidTarget
from airflow_provider_codegateway.s3 import Problem, access_args, problem_of, storage_error

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_BLOCK = 1024 * 1024


class LineFile:
    """Lines of JSON, each found again by its number. Any thread may read while another appends."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        self._starts = array("q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self)):
            yield self[number]

    def __getitem__(self, number: int) -> dict[str, Any]:
        start, end = self._starts[number], self._starts[number + 1]
        value: dict[str, Any] = json.loads(os.pread(self._file.fileno(), end - start, start))
        return value

    def append(self, value: Mapping[str, Any]) -> int:
        """Add a line; its number."""
        line = json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        return len(self) - 1

    def digest(self) -> str:
        """SHA-256 of all lines."""
        digest, size, position = hashlib.sha256(), self._starts[-1], 0
        while position < size:
            block = os.pread(self._file.fileno(), min(_BLOCK, size - position), position)
            digest.update(block)
            position += len(block)
        return digest.hexdigest()

    def upload(
        self,
        s3: S3Client,
        at: S3Location,
        *,
        put_args: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        only_if_absent: bool = False,
    ) -> bool:
        """Store the file as one object. Whether it was stored: False if there is one, and there must not be.

        :raises InvalidTarget, StorageUnavailable: see ``s3.storage_error``.
        """
        self._file.seek(0)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            s3.put_object(
                Bucket=at.bucket,
                Key=at.key,
                Body=self._file,
                ContentType="application/x-ndjson",
                Metadata=dict(metadata or {}),
                **condition,
                **put_args,
            )
        except Exception as error:
            if only_if_absent and problem_of(error) is Problem.EXISTS:
                return False
            if only_if_absent and problem_of(error) is Problem.UNSUPPORTED:
                return self.upload(s3, at, put_args=put_args, metadata=metadata)
            raise storage_error(error, doing="write the batch", at=at, permission="s3:PutObject") from error
        return True

    @classmethod
    def download(cls, s3: S3Client, at: S3Location, upload_args: Mapping[str, Any]) -> Self:
        """The inverse of ``upload``.

        :param upload_args: what the object was uploaded with.
        :raises InvalidTarget: there is no such object, or it is closed to us.
        :raises StorageUnavailable: S3 did not answer.
        """
        lines = cls()
        try:
            fetch(
                s3,
                at,
                lines._take,
                doing="read the batch",
                missing=InvalidTarget(f"{at.uri} does not exist: it was deleted. Clear the task."),
                args=access_args(s3, "GetObject", upload_args),
            )
        except BaseException:
            lines.close()
            raise
        return lines

    def _take(self, block: bytes) -> None:
        begun = self._file.tell()
        self._file.write(block)
        at = -1
        while (at := block.find(b"\n", at + 1)) >= 0:
            self._starts.append(begun + at + 1)


def fetch(
    s3: S3Client,
    at: S3Location,
    take: Callable[[bytes], object],
    *,
    doing: str,
    missing: CodeGatewayError,
    args: Mapping[str, Any],
) -> None:
    """Take an object, block by block.

    :param doing: see ``s3.storage_error``.
    :param missing: what to raise if there is none.
    """
    try:
        body = s3.get_object(Bucket=at.bucket, Key=at.key, **args)["Body"]
        while block := body.read(_BLOCK):
            take(block)
    except Exception as error:
        if problem_of(error) is Problem.NOT_FOUND:
            raise missing from None
        raise storage_error(error, doing=doing, at=at, permission="s3:GetObject") from error

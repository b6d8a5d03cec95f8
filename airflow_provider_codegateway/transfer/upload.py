"""Bytes in, one S3 object out: in parts, in bounded memory, visible only when it is whole."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import Facts, S3Location
from airflow_provider_codegateway.exceptions import ClipTransferError, InvalidTarget
from airflow_provider_codegateway.facts import Container, Ending
from airflow_provider_codegateway.foreign import safe_text
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.redaction import redact_urls
from airflow_provider_codegateway.s3 import (
    CHECKSUM_ADVICE,
    Problem,
    error_text,
    head_object,
    members,
    problem_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn, Self

    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

_PERMISSIONS = {"AbortMultipartUpload": "s3:AbortMultipartUpload", "HeadObject": "s3:GetObject"}


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """A clip as it lies in S3.

    :param bytes: the size, as downloaded and as S3 confirmed it.
    :param sha256: of all bytes, in hexadecimal.
    :param media_type: such as ``video/mp4``.
    :param facts: what it measures, where its container says so.
    :param may_leave_uploads: whether this transfer may have left open uploads in S3.
    """

    bytes: int
    sha256: str
    media_type: str
    facts: Facts | None
    may_leave_uploads: bool


class UploadStopped(ClipTransferError):
    """The transfer that this belongs to is given up."""

    def __init__(self) -> None:
        super().__init__("The transfer was stopped.")


class PartCutter:
    """Cuts a stream into parts, and parts into blocks.

    Each part has exactly ``blocks`` full blocks, except the last, which :meth:`rest` gives.

    :param take: gives an empty block. May wait for one.
    :param hand_on: takes a full part, for good.
    """

    def __init__(
        self, blocks: int, *, take: Callable[[], memoryview], hand_on: Callable[[list[memoryview]], None]
    ) -> None:
        self._part_blocks = blocks
        self._take = take
        self._hand_on = hand_on
        self._blocks: list[memoryview] = []
        self._filled = 0  # of the last block

    def room(self) -> memoryview:
        """Return where the stream's next bytes go. A part that is full is handed on first."""
        if not self._blocks or self._filled == len(self._blocks[-1]):
            if len(self._blocks) == self._part_blocks:
                full, self._blocks = self._blocks, []
                self._hand_on(full)
            self._blocks.append(self._take())
            self._filled = 0
        return self._blocks[-1][self._filled :]

    def filled(self, count: int) -> memoryview:
        """Take up so many bytes, which lie at the start of the room, and return them."""
        self._filled += count
        return self._blocks[-1][self._filled - count : self._filled]

    def rest(self) -> list[memoryview]:
        """Return what was not handed on: at most one part."""
        if not self._blocks:
            return []
        return [*self._blocks[:-1], self._blocks[-1][: self._filled]]

    def restart(self) -> list[memoryview]:
        """Forget the rest: the stream begins anew. Return its blocks."""
        blocks, self._blocks = self._blocks, []
        return blocks


class PartBody:
    """A part as botocore's file-like body. It copies nothing; botocore reads it up to three times.

    :meth:`read` gives the rest of a block, also where botocore's connection asks for 16 KiB: it sends it all.
    """

    def __init__(self, blocks: list[memoryview], stopped: threading.Event) -> None:
        # All blocks but the last have one size.
        self._block_size = len(blocks[0]) if blocks else 1
        self._blocks = blocks
        self._size = sum(map(len, blocks))
        self._stopped = stopped
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def read(self, size: int | None = None) -> memoryview | bytes:
        """The rest of a block, or of everything."""
        if self._stopped.is_set():
            raise UploadStopped
        if size is None or size < 0:
            rest = b"".join(self._blocks)[self._at :]
            self._at = self._size
            return rest
        if self._at >= self._size:
            return b""
        number, start = divmod(self._at, self._block_size)
        piece = self._blocks[number][start:]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at


@dataclass(frozen=True, eq=False, repr=False)  # the arguments may hold a customer's encryption key
class UploadTarget:
    """One S3 object to be, and the calls that make it.

    :param metadata: the object's, ASCII; made of the clip's facts, as far as they are known when it is sent.
    :param upload_args: each goes to all calls that take it.
    """

    s3: S3Client
    at: S3Location
    metadata: Callable[[Facts | None], Mapping[str, str]]
    upload_args: Mapping[str, Any]

    def object_args(self, media_type: str, facts: Facts | None) -> dict[str, Any]:
        """What the object says of itself: its type, unless the author gave it one, and its metadata."""
        return {"ContentType": media_type, "Metadata": dict(self.metadata(facts))}

    def create(self, object_args: Mapping[str, Any]) -> tuple[str, bool]:
        """Begin a multipart upload: its id, and whether it is alone.

        It is not if botocore had to ask twice: the first answer may have been lost, and its upload be open.
        """
        answer = self.call("CreateMultipartUpload", **object_args)
        is_alone = not answer.get("ResponseMetadata", {}).get("RetryAttempts")
        return self._said(answer, "UploadId", "CreateMultipartUpload"), is_alone

    def upload_part(self, upload_id: str, number: int, body: PartBody) -> dict[str, Any]:
        """Return what ``CompleteMultipartUpload`` wants to know of the part."""
        answer = self.call("UploadPart", UploadId=upload_id, PartNumber=number, Body=body)
        checksums = {
            name: value
            for name, value in answer.items()
            if name.startswith("Checksum") and name != "ChecksumType"
        }
        return {"PartNumber": number, "ETag": self._said(answer, "ETag", "UploadPart"), **checksums}

    def _said(self, answer: Mapping[str, Any], name: str, operation: str) -> str:
        """:raises ClipTransferError: what answered does not speak S3, such as a login page."""
        if not answer.get(name):
            raise ClipTransferError(
                f"{operation} of {self.at.uri} was answered without {name}, so not by S3. Check the endpoint_url of "
                "the AWS connection, and what is between."
            )
        return str(answer[name])

    def confirm(self, size: int) -> None:
        """Ask S3 for the size of what it stored."""
        stored = self.call("HeadObject")["ContentLength"]
        if stored != size:
            raise ClipTransferError(
                f"{self.at.uri} has {stored} bytes, but {size} were stored: another writer replaced it, or the S3 "
                "server lost some. It was left as it is."
            )

    def call(self, operation: str, **arguments: Any) -> Any:
        """Make one call of S3's about this object, with those of the ``upload_args`` that it takes.

        :raises ClipTransferError: it failed.
        """
        from botocore import xform_name
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        taken = members(self.s3, operation)
        given = {**arguments, **self.upload_args}
        arguments = {name: value for name, value in given.items() if name in taken}
        where = self.at.uri
        after = " The clip was stored, and only could not be confirmed." if operation == "HeadObject" else ""
        try:
            if operation == "HeadObject":
                # Conditions are for writing: on reading, `IfNoneMatch="*"` means "answer 304".
                read = {name: value for name, value in arguments.items() if not name.startswith("If")}
                return head_object(self.s3, self.at, **read)
            return getattr(self.s3, xform_name(operation))(
                Bucket=self.at.bucket, Key=self.at.key, **arguments
            )
        except InvalidTarget as error:  # the clip is paid for
            raise ClipTransferError(error.args[0] + after) from error
        except ParamValidationError as error:
            report = without_values(str(error.kwargs["report"]))
            raise ClipTransferError(f"{operation} to {where} was not sent: {report}.") from None
        except ClientError as error:
            remedy = _remedy(operation, error)
            raise ClipTransferError(
                f"S3 refused {operation} of {where} ({error_text(error)}).{remedy}{after}"
            ) from error
        except (BotoCoreError, ValueError, TypeError, KeyError) as error:  # its parser raises the latter
            reason = safe_text(redact_urls(str(error)), 300).rstrip(".")
            raise ClipTransferError(
                f"{operation} of {where} failed: {type(error).__name__}: {reason}.{after}"
            ) from error


def without_values(report: str) -> str:
    """A report of botocore's, less the values that it quotes: one of them may be a customer's encryption key."""
    return safe_text("; ".join(line.split(", value:")[0] for line in report.splitlines()), 500)


def _remedy(operation: str, error: Exception) -> str:
    if problem_of(error) is Problem.CHECKSUM:
        return f" {CHECKSUM_ADVICE}"
    if problem_of(error) is not Problem.DENIED:
        return ""
    kms = "" if operation == "AbortMultipartUpload" else ", and the use of the KMS key if the bucket has one"
    return f" The AWS connection needs {_PERMISSIONS.get(operation, 's3:PutObject')} on this key{kms}."


class _Attempt:
    """One attempt at the object: a ``PutObject``, or a multipart upload from its creation to its end.

    Every S3 call runs in a thread of its pool, never in the caller's, and keeps its result there. So an
    exception that a signal throws into the caller (a task's timeout, Ctrl-C) cannot fall between S3's answer
    and our keeping of it, and does not cut the abort short.
    """

    def __init__(self, target: UploadTarget, limits: Limits) -> None:
        self._target = target
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.parts_in_flight, thread_name_prefix="codegateway-upload")
        self._creation: Future[str] | None = None
        self._parts: list[Future[dict[str, Any]]] = []
        self._stopped = threading.Event()
        self._upload_id: str | None = None
        self._failure: BaseException | None = None
        self.may_leave_uploads = False
        """Whether S3 may have an open upload of ours that this attempt does not end."""

    @property
    def is_multipart(self) -> bool:
        """Whether a part was sent."""
        return bool(self._parts)

    def put(self, clip: list[memoryview], object_args: Mapping[str, Any]) -> Future[Any]:
        """Begin to store the clip in one call."""
        body = PartBody(clip, self._stopped)
        return self._pool.submit(self._target.call, "PutObject", Body=body, **object_args)

    def send(self, part: list[memoryview], object_args: Mapping[str, Any], sent: Callable[[], None]) -> None:
        """Send the next part, and call ``sent`` when it is sent, or has failed.

        :param object_args: those of the first part are the object's.
        """
        number = len(self._parts) + 1
        if number > self._limits.max_parts:
            raise ClipTransferError(
                f"The clip is longer than {self._limits.max_parts} parts of {self._limits.part_size} bytes, S3's limit "
                "for one object."
            )
        if self._creation is None:
            self._creation = self._pool.submit(self._create, object_args)
        self._parts.append(self._pool.submit(self._send, number, part, self._creation, sent))

    def complete(self) -> None:
        """Wait for the parts and make them one object."""
        wait(self._parts)
        self.raise_failure()
        self._pool.submit(self._complete).result()

    def raise_failure(self) -> None:
        """Raise what the first failed part failed of."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let the parts in flight fail at their next read. From any thread."""
        self._stopped.set()

    def close(self) -> None:
        """End the attempt: once no call is in flight, abort what was not completed."""
        self.stop()
        # A thread, so that a signal's exception may end the wait for it and not the abort itself.
        closing = threading.Thread(target=self._close, name="codegateway-abort")
        closing.start()
        closing.join()

    def _create(self, object_args: Mapping[str, Any]) -> str:
        self._require_wanted()
        self._upload_id, is_alone = self._target.create(object_args)
        self.may_leave_uploads = not is_alone
        return self._upload_id

    def _send(
        self, number: int, part: list[memoryview], creation: Future[str], sent: Callable[[], None]
    ) -> dict[str, Any]:
        try:
            upload_id = creation.result()
            self._require_wanted()
            return self._target.upload_part(upload_id, number, PartBody(part, self._stopped))
        except BaseException as error:
            self._failure = self._failure or error
            self._stopped.set()
            raise
        finally:
            sent()

    def _complete(self) -> None:
        self._require_wanted()
        parts = [part.result() for part in self._parts]
        self._target.call(
            "CompleteMultipartUpload", UploadId=self._upload_id, MultipartUpload={"Parts": parts}
        )
        self._upload_id = None

    def _require_wanted(self) -> None:
        if self._stopped.is_set():
            raise UploadStopped

    def _close(self) -> None:
        self._pool.shutdown(wait=True)
        if self._upload_id is None:
            return
        try:
            self._target.call("AbortMultipartUpload", UploadId=self._upload_id)
        except ClipTransferError as error:
            self.may_leave_uploads = True
            log.warning("The multipart upload %s could not be aborted: %s", self._upload_id, error)


class Upload:
    """Bytes in, one object out; or none, if the ``with`` block is left before :meth:`finish` has returned."""

    def __init__(self, target: UploadTarget, limits: Limits) -> None:
        self._target = target
        self._limits = limits
        self._cutter = PartCutter(limits.part_size // limits.block_size, take=self._take, hand_on=self._send)
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._blocks_made = 0
        self._may_leave_uploads = False
        self._begin()

    def _begin(self) -> None:
        self._attempt = _Attempt(self._target, self._limits)
        self._container = Container(self._limits)
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._attempt.close()
        # Now, and not when Python next looks for cycles, of which this object is part: in a triggerer full of
        # renders that may be hundreds of clips later.
        self._cutter.restart()
        self._free = queue.SimpleQueue()

    def stop(self) -> None:
        """Let the calls in flight fail, from any thread."""
        self._attempt.stop()

    def room(self) -> memoryview:
        """Return where the next bytes go. Waits while all blocks are in use."""
        return self._cutter.room()

    def filled(self, count: int) -> None:
        """Take up so many bytes, which lie at the start of the room.

        :raises ClipTransferError: they are not those of a video.
        """
        self._container.feed(self._cutter.filled(count))
        if self._container.is_refused:
            self._refuse()

    def ending(self) -> Ending:
        """What the container says, if these were all bytes.

        :raises ClipTransferError: there are none, or not those of a video.
        """
        if self._container.media_type is None:
            self._refuse()
        return self._container.ending()

    def _refuse(self) -> NoReturn:
        if self._container.is_empty:
            raise ClipTransferError("The clip's host sent no bytes at all.")
        raise ClipTransferError(
            f"What the clip's host sent is not a video: it is {self._container.looks_like}. It was not stored. Retry "
            "the task: it asks again, for free. If that goes on, ask CodeGateway about this clip."
        )

    def restart(self) -> None:
        """Forget all bytes: the stream begins anew."""
        self._attempt.close()
        self._may_leave_uploads |= self._attempt.may_leave_uploads
        self._give_back(self._cutter.restart())
        self._begin()

    def finish(self) -> StoredClip:
        """Make the object visible. Whether it is whole was asked for before; see ``ending``."""
        last = self._cutter.rest()
        facts = self._container.facts
        if self._attempt.is_multipart:
            self._send(last)
            self._attempt.complete()
        else:
            storing = self._attempt.put(last, self._object_args(facts))
            self._count(last)
            storing.result()
        return StoredClip(
            bytes=self._size,
            sha256=self._hash.hexdigest(),
            media_type=self._media_type,
            facts=facts,
            may_leave_uploads=self._may_leave_uploads or self._attempt.may_leave_uploads,
        )

    def _take(self) -> memoryview:
        if self._free.empty() and self._blocks_made < self._limits.blocks:
            self._blocks_made += 1
            block = memoryview(bytearray(self._limits.block_size))
        else:
            block = self._free.get()
        self._attempt.raise_failure()
        return block

    def _give_back(self, blocks: list[memoryview]) -> None:
        for block in blocks:
            self._free.put(block)

    def _send(self, part: list[memoryview]) -> None:
        # A callback of the part's future would keep the blocks for as long as the future is kept.
        sent = partial(self._give_back, part)
        self._attempt.send(part, self._object_args(self._container.early_facts), sent)
        # Hashed while it is on its way: only this thread fills blocks, so they stay as they are till then.
        self._count(part)

    @property
    def _media_type(self) -> str:
        return self._container.media_type or "application/octet-stream"

    def _object_args(self, facts: Facts | None) -> dict[str, Any]:
        return self._target.object_args(self._media_type, facts)

    def _count(self, part: list[memoryview]) -> None:
        for block in part:
            self._hash.update(block)
            self._size += len(block)

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
from airflow_provider_codegateway.exceptions import (
    ClipTransferError,
    CodeGatewayError,
    InvalidRequest,
    InvalidTarget,
)
from airflow_provider_codegateway.facts import Container, Ending
from airflow_provider_codegateway.foreign import safe_text
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.redaction import redact_urls
from airflow_provider_codegateway.s3 import (
    CHECKSUM_ADVICE,
    Problem,
    Proofs,
    access_args,
    error_text,
    head_object,
    members,
    problem_of,
    storage_error,
)
from airflow_provider_codegateway.transfer.leftovers import find_uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn, Self

    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

_OURS = frozenset({"Bucket", "Key", "Body", "Metadata", "ContentLength", "ContentMD5"})
# The others are a checksum of the whole clip, which no single part has.
_CHECKSUM_ARGS = frozenset({"ChecksumAlgorithm", "ChecksumType"})
_PERMISSIONS = {"AbortMultipartUpload": "s3:AbortMultipartUpload", "HeadObject": "s3:GetObject"}


def require_upload_args(s3: S3Client, upload_args: Mapping[str, Any]) -> None:
    """Refuse arguments that storing a clip cannot pass on. Makes no call.

    :raises InvalidRequest: names each of them.
    """
    taken = members(s3, "PutObject") | members(s3, "CreateMultipartUpload")
    wrong = sorted(
        name
        for name in upload_args
        if name not in taken or name in _OURS or (name.startswith("Checksum") and name not in _CHECKSUM_ARGS)
    )
    if wrong:
        raise InvalidRequest(
            f"s3_extra_args has {', '.join(wrong)}, which cannot be set here. Use arguments of PutObject and "
            "CreateMultipartUpload such as ACL, ServerSideEncryption, SSEKMSKeyId, StorageClass or Tagging."
        )
    from botocore.validate import ParamValidator  # a DAG file needs no botocore

    for operation in ("PutObject", "CreateMultipartUpload"):
        shape = s3.meta.service_model.operation_model(operation).input_shape
        assert shape is not None
        # boto3 encodes a customer's key of bytes by itself, before it checks.
        given = {
            name: value
            for name, value in upload_args.items()
            if name in shape.members and not (name == "SSECustomerKey" and isinstance(value, bytes))
        }
        report = ParamValidator().validate({"Bucket": "b", "Key": "k", **given}, shape)
        if report.has_errors():
            raise InvalidRequest(f"s3_extra_args: {_without_values(report.generate_report())}.")


def _without_values(report: str) -> str:
    """A report of botocore's, less the values that it quotes: one of them may be a customer's encryption key."""
    return safe_text("; ".join(line.split(", value:")[0] for line in report.splitlines()), 500)


_uploads = Proofs()


def prove_upload(
    s3: S3Client, at: S3Location, upload_args: Mapping[str, Any], limits: Limits = LIMITS
) -> None:
    """Begin an upload, abort it and look for others: for free, that tells whether S3 will take the clip on these terms.

    Three requests, every ten minutes for each client, folder of the bucket and set of arguments.

    :raises InvalidTarget: it will not.
    :raises StorageUnavailable: S3 did not answer.
    """
    folder = f"{at.bucket}/{at.key.rpartition('/')[0]} {sorted(upload_args.items())!r}"
    if not _uploads.hold(s3, folder, limits.proof_seconds):
        _prove_upload(s3, at, upload_args)
        _uploads.add(s3, folder)


def _prove_upload(s3: S3Client, at: S3Location, upload_args: Mapping[str, Any]) -> None:
    target = UploadTarget(s3, at, lambda _: {}, upload_args)
    try:
        begun = target.create(target.object_args("video/mp4", None))
    except ClipTransferError as error:
        cause = error.__cause__
        problem: CodeGatewayError = InvalidTarget(error.args[0])
        if isinstance(cause, Exception) and problem_of(cause) not in _SAID_BY_UPLOAD:
            problem = storage_error(cause, doing="begin an upload", at=at, permission="s3:PutObject")
        raise problem from cause
    try:
        target.abort(begun.id)
    except ClipTransferError as error:
        _require_aborted(error, at)
    if not begun.is_alone:  # S3 was asked twice, and nobody else has begun anything here
        clear_uploads(s3, at, upload_args)
    try:
        s3.list_multipart_uploads(
            Bucket=at.bucket,
            Prefix=at.key,
            MaxUploads=1,
            **access_args(s3, "ListMultipartUploads", upload_args),
        )
    except Exception as error:
        if problem_of(error) is Problem.DENIED:
            raise storage_error(
                error, doing="list the open uploads", at=at, permission="s3:ListBucketMultipartUploads"
            ) from error
        log.warning(
            "The open uploads of %s cannot be listed (%s): what a killed transfer leaves stays there.",
            at.uri,
            error_text(error),
        )


def clear_uploads(s3: S3Client, at: S3Location, upload_args: Mapping[str, Any]) -> None:
    """Abort what is open at this key, before anything is bought.

    :raises InvalidTarget, StorageUnavailable: an upload may have remained.
    """
    try:
        uploads = find_uploads(s3, at, upload_args)
    except Exception as error:
        if problem_of(error) is Problem.UNAVAILABLE:
            raise storage_error(
                error, doing="list the open uploads", at=at, permission="s3:ListBucketMultipartUploads"
            ) from error
        return  # the proof says what it is
    target = UploadTarget(s3, at, lambda _: {}, upload_args)
    for upload_id in uploads:
        try:
            target.abort(upload_id)
        except ClipTransferError as error:
            _require_aborted(error, at)


def _require_aborted(error: ClipTransferError, at: S3Location) -> None:
    """:raises InvalidTarget, StorageUnavailable: an upload remains that could not be aborted."""
    cause = error.__cause__
    problem = problem_of(cause) if isinstance(cause, Exception) else None
    if isinstance(cause, Exception) and problem in (Problem.DENIED, Problem.UNAVAILABLE):
        raise storage_error(
            cause, doing="abort an upload", at=at, permission="s3:AbortMultipartUpload"
        ) from cause
    if problem is not Problem.NOT_FOUND:
        log.warning(
            "An upload was begun to test the permissions, and could not be aborted: %s", error.args[0]
        )


_SAID_BY_UPLOAD = (Problem.REFUSED, Problem.NOT_FOUND, Problem.UNSUPPORTED)


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


class _Blocks:
    """The blocks of one transfer, each made when it is first needed."""

    def __init__(self, limits: Limits) -> None:
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._limits = limits
        self._made = 0

    def take(self) -> memoryview:
        if self._free.empty() and self._made < self._limits.blocks:
            self._made += 1
            return memoryview(bytearray(self._limits.block_size))
        return self._free.get()

    def give_back(self, blocks: list[memoryview]) -> None:
        for block in blocks:
            self._free.put(block)


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


@dataclass(frozen=True)
class BegunUpload:
    """A multipart upload.

    :param is_alone: False if botocore had to ask twice: the first answer may have been lost, and its upload be open.
    """

    id: str
    is_alone: bool


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

    def object_args(self, media_type: str | None, facts: Facts | None) -> dict[str, Any]:
        """What the object says of itself: its type, unless the author gave it one, and its metadata."""
        type_ = {} if media_type is None else {"ContentType": media_type}
        return {**type_, **self.upload_args, "Metadata": dict(self.metadata(facts))}

    def put(self, body: PartBody, object_args: Mapping[str, Any]) -> None:
        """Store the clip in one call."""
        self._call("PutObject", self.s3.put_object, Body=body, **object_args)

    def create(self, object_args: Mapping[str, Any]) -> BegunUpload:
        """Begin a multipart upload."""
        answer = self._call("CreateMultipartUpload", self.s3.create_multipart_upload, **object_args)
        return BegunUpload(
            self._said(answer, "UploadId", "CreateMultipartUpload"),
            is_alone=not answer.get("ResponseMetadata", {}).get("RetryAttempts"),
        )

    def upload_part(self, upload_id: str, number: int, body: PartBody) -> dict[str, Any]:
        """Return what ``CompleteMultipartUpload`` wants to know of the part."""
        answer = self._call(
            "UploadPart",
            self.s3.upload_part,
            UploadId=upload_id,
            PartNumber=number,
            Body=body,
            **self.upload_args,
        )
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

    def complete(self, upload_id: str, parts: list[dict[str, Any]]) -> None:
        """Make the parts one object."""
        self._call(
            "CompleteMultipartUpload",
            self.s3.complete_multipart_upload,
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
            **self.upload_args,
        )

    def abort(self, upload_id: str) -> None:
        """Drop a multipart upload and its parts."""
        self._call(
            "AbortMultipartUpload", self.s3.abort_multipart_upload, UploadId=upload_id, **self.upload_args
        )

    def confirm(self, size: int) -> None:
        """Ask S3 for the size of what it stored."""
        # Conditions are for writing: on reading, `IfNoneMatch="*"` means "answer 304".
        args = {name: value for name, value in self.upload_args.items() if not name.startswith("If")}
        stored = self._call("HeadObject", self._head, **args)["ContentLength"]
        if stored != size:
            raise ClipTransferError(
                f"{self.at.uri} has {stored} bytes, but {size} were stored: another writer replaced it, or the S3 "
                "server lost some. It was left as it is."
            )

    def _head(self, **arguments: Any) -> Any:
        del arguments["Bucket"], arguments["Key"]
        try:
            return head_object(self.s3, self.at, **arguments)
        except InvalidTarget as error:  # the clip is paid for
            raise ClipTransferError(error.args[0] + _stored("HeadObject")) from error

    def _call(self, operation: str, method: Callable[..., Any], **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        taken = members(self.s3, operation)
        arguments = {name: value for name, value in arguments.items() if name in taken}
        where = self.at.uri
        try:
            return method(Bucket=self.at.bucket, Key=self.at.key, **arguments)
        except ParamValidationError as error:
            report = _without_values(str(error.kwargs["report"]))
            raise ClipTransferError(f"{operation} to {where} was not sent: {report}.") from None
        except ClientError as error:
            remedy = _remedy(operation, error) + _stored(operation)
            raise ClipTransferError(
                f"S3 refused {operation} of {where} ({error_text(error)}).{remedy}"
            ) from error
        except (BotoCoreError, ValueError, TypeError, KeyError) as error:  # its parser raises the latter
            reason = safe_text(redact_urls(str(error)), 300).rstrip(".")
            raise ClipTransferError(
                f"{operation} of {where} failed: {type(error).__name__}: {reason}.{_stored(operation)}"
            ) from error


def _remedy(operation: str, error: Exception) -> str:
    if problem_of(error) is Problem.CHECKSUM:
        return f" {CHECKSUM_ADVICE}"
    if problem_of(error) is not Problem.DENIED:
        return ""
    kms = "" if operation == "AbortMultipartUpload" else ", and the use of the KMS key if the bucket has one"
    return f" The AWS connection needs {_PERMISSIONS.get(operation, 's3:PutObject')} on this key{kms}."


def _stored(operation: str) -> str:
    return " The clip was stored, and only could not be confirmed." if operation == "HeadObject" else ""


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
        self._parts: list[Future[dict[str, Any]]] = []
        self._stopped = threading.Event()
        self._creation = threading.Lock()
        self._upload_id: str | None = None
        self._failure: BaseException | None = None
        self.may_leave_uploads = False
        """Whether S3 may have an open upload of ours that this attempt does not end."""

    @property
    def is_multipart(self) -> bool:
        """Whether a part was sent."""
        return bool(self._parts)

    def put(self, clip: list[memoryview], object_args: Mapping[str, Any]) -> Future[None]:
        """Begin to store the clip in one call."""
        return self._pool.submit(self._target.put, PartBody(clip, self._stopped), object_args)

    def send(
        self, part: list[memoryview], *, object_args: Mapping[str, Any], sent: Callable[[], None]
    ) -> None:
        """Send the next part, and call ``sent`` when it is sent, or has failed.

        :param object_args: those of the first part are the object's.
        """
        number = len(self._parts) + 1
        if number > self._limits.max_parts:
            raise ClipTransferError(
                f"The clip is longer than {self._limits.max_parts} parts of {self._limits.part_size} bytes, S3's limit "
                "for one object."
            )
        self._parts.append(self._pool.submit(self._send, number, part, object_args, sent))

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

    def _send(
        self,
        number: int,
        part: list[memoryview],
        object_args: Mapping[str, Any],
        sent: Callable[[], None],
    ) -> dict[str, Any]:
        try:
            upload_id = self._created(object_args)
            return self._target.upload_part(upload_id, number, PartBody(part, self._stopped))
        except BaseException as error:
            self._failure = self._failure or error
            self._stopped.set()
            raise
        finally:
            sent()

    def _created(self, object_args: Mapping[str, Any]) -> str:
        with self._creation:
            if self._stopped.is_set():
                raise UploadStopped
            if self._upload_id is None:
                begun = self._target.create(object_args)
                self._upload_id, self.may_leave_uploads = begun.id, not begun.is_alone
            return self._upload_id

    def _complete(self) -> None:
        if self._stopped.is_set() or self._upload_id is None:
            raise UploadStopped
        self._target.complete(self._upload_id, [part.result() for part in self._parts])
        self._upload_id = None

    def _close(self) -> None:
        self._pool.shutdown(wait=True)
        if self._upload_id is None:
            return
        try:
            self._target.abort(self._upload_id)
        except ClipTransferError as error:
            self.may_leave_uploads = True
            log.warning("The multipart upload %s could not be aborted: %s", self._upload_id, error)


class Upload:
    """Bytes in, one object out; or none, if the ``with`` block is left before :meth:`finish` has returned."""

    def __init__(self, target: UploadTarget, limits: Limits = LIMITS) -> None:
        self._target = target
        self._limits = limits
        self._attempt = _Attempt(target, limits)
        self._blocks = _Blocks(limits)
        self._cutter = PartCutter(limits.part_size // limits.block_size, take=self._take, hand_on=self._send)
        self._hash = hashlib.sha256()
        self._size = 0
        self._container = Container(limits)
        self._may_leave_uploads = False

    @property
    def may_leave_uploads(self) -> bool:
        """Whether this upload may have left others open in S3."""
        return self._may_leave_uploads or self._attempt.may_leave_uploads

    @property
    def size(self) -> int:
        """Bytes that the object has."""
        return self._size

    @property
    def sha256(self) -> str:
        """Of the object's bytes, in hexadecimal."""
        return self._hash.hexdigest()

    @property
    def media_type(self) -> str:
        """Of the object, such as ``video/mp4``."""
        return self._container.media_type or "application/octet-stream"

    @property
    def facts(self) -> Facts | None:
        """Of the clip, if its container says them."""
        return self._container.facts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._attempt.close()
        # Now, and not when Python next looks for cycles, of which this object is part: in a triggerer full of
        # renders that may be hundreds of clips later.
        self._cutter.restart()
        self._blocks = _Blocks(self._limits)

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
        self._container = Container(self._limits)
        self._attempt.close()
        self._may_leave_uploads |= self._attempt.may_leave_uploads
        self._attempt = _Attempt(self._target, self._limits)
        self._blocks.give_back(self._cutter.restart())
        self._hash, self._size = hashlib.sha256(), 0

    def finish(self) -> None:
        """Make the object visible. Whether it is whole was asked for before; see ``ending``."""
        last = self._cutter.rest()
        if self._attempt.is_multipart:
            if last:
                self._send(last)
            self._attempt.complete()
            return
        stored = self._attempt.put(last, self._object_args(self._container.facts))
        self._count(last)
        stored.result()

    def _take(self) -> memoryview:
        block = self._blocks.take()
        self._attempt.raise_failure()
        return block

    def _send(self, part: list[memoryview]) -> None:
        sent = partial(self._blocks.give_back, part)
        self._attempt.send(part, object_args=self._object_args(self._container.early_facts), sent=sent)
        # Hashed while it is on its way: only this thread fills blocks, so they stay as they are till then.
        self._count(part)

    def _object_args(self, facts: Facts | None) -> dict[str, Any]:
        return self._target.object_args(self._container.media_type, facts)

    def _count(self, part: list[memoryview]) -> None:
        for block in part:
            self._hash.update(block)
            self._size += len(block)

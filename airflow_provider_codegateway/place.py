"""A clip's place: what is at its key, and which clip that is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow_provider_codegateway.clip import Clip, ClipSpec, Facts, Marks, PassedOver
from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidTarget
from airflow_provider_codegateway.facts import differences, read_stored_facts
from airflow_provider_codegateway.ledger.entry import SHOWN
from airflow_provider_codegateway.limits import Limits
from airflow_provider_codegateway.s3 import Problem, access_args, head_object, problem_of, storage_error

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

    from airflow_provider_codegateway.transfer import StoredClip


class Place:
    """The key of one clip.

    :param spec: the clip that is wanted.
    :param s3: a boto3 client.
    """

    def __init__(self, spec: ClipSpec, s3: S3Client, limits: Limits) -> None:
        self._spec = spec
        self._s3 = s3
        self._limits = limits

    def head(self) -> HeadObjectOutputTypeDef | None:
        """What S3 says of the object; None if there is none.

        :raises InvalidTarget: the bucket is closed to us.
        :raises StorageUnavailable: S3 did not answer.
        """
        target, access = self._spec.target, access_args(self._s3, "HeadObject", self._spec.upload_args)
        try:
            return head_object(self._s3, target, **access)
        except CodeGatewayError:
            raise
        except Exception as error:
            # A 404 may mean the bucket as well: the next request tells.
            if problem_of(error) is Problem.NOT_FOUND:
                return None
            raise storage_error(
                error, doing="look for the clip", at=target, permission="s3:GetObject and s3:ListBucket"
            ) from error

    def find(self) -> Clip | None:
        """The clip, if it is stored already and may be reused; None if one may be bought. Only looks.

        :raises InvalidTarget: the key is taken, or the bucket is closed to us.
        :raises StorageUnavailable: S3 did not answer.
        """
        head = self.head()
        if head is None:
            return None
        marks = Marks.from_metadata(head["Metadata"])
        is_same_request = self._spec.is_request_of(marks)
        # What this DAG run stored before is its own work, also with if_exists="replace".
        is_own = is_same_request and self._spec.is_requested_by(marks.requester)
        if is_own or (is_same_request and self._spec.if_exists == "reuse"):
            return self._found(head, marks)
        if self._spec.if_exists == "replace":
            return None
        raise self._taken(marks)

    def _found(self, head: HeadObjectOutputTypeDef, marks: Marks) -> Clip:
        facts = marks.facts or read_stored_facts(
            self._s3,
            self._spec.target,
            size=head["ContentLength"],
            upload_args=self._spec.upload_args,
            limits=self._limits,
        )
        model = marks.model if self._spec.fallbacks and marks.model else self._spec.model
        fingerprint = marks.fingerprint or self._spec.fingerprint
        return self._clip(
            marks, facts, model=model, fingerprint=fingerprint, size=head["ContentLength"], sha256=None
        )

    def _taken(self, marks: Marks) -> InvalidTarget:
        uri = self._spec.target.uri
        if self._spec.if_exists == "fail":
            return InvalidTarget(f"{uri} already exists, and if_exists='fail'. Choose another s3_key.")
        owner = (
            f"the clip of another request (fingerprint {marks.fingerprint[:SHOWN]}…)"
            if marks.fingerprint
            else "an object that this provider did not create"
        )
        return InvalidTarget(
            f"{uri} already holds {owner}. Choose another s3_key, or set if_exists='replace'."
        )

    def stored(self, stored: StoredClip, marks: Marks) -> Clip:
        """The clip that was stored here just now, under these marks."""
        return self._clip(
            marks,
            stored.facts,
            model=marks.model or self._spec.model,
            fingerprint=self._spec.fingerprint,
            size=stored.bytes,
            sha256=stored.sha256,
        )

    def _clip(
        self,
        marks: Marks,
        facts: Facts | None,
        *,
        model: str,
        fingerprint: str,
        size: int,
        sha256: str | None,
    ) -> Clip:
        target = self._spec.target
        return Clip(
            bucket=target.bucket,
            key=target.key,
            uri=target.uri,
            model=model,
            bytes=size,
            sha256=sha256,
            created=marks.created,
            render_seconds=marks.render_seconds,
            renders_bought=marks.renders_bought,
            renders_bought_here=self._count_own(marks.buyers),
            renders_unknown_here=self._count_own(marks.unknown),
            fingerprint=fingerprint,
            reused=sha256 is None,
            cost=marks.cost,
            facts=None if facts is None else facts.as_dict(),
            mismatches=self._differences(facts, marks),
            fallback=self._fallback(marks),
        )

    def _count_own(self, requesters: Iterable[str]) -> int:
        return sum(map(self._spec.is_requested_by, requesters))

    def _differences(self, facts: Facts | None, marks: Marks) -> tuple[str, ...]:
        wanted = self._spec.wanted_of(marks)
        return () if facts is None or wanted is None else differences(facts, wanted, self._limits)

    def _fallback(self, marks: Marks) -> list[PassedOver] | None:
        return [*marks.fallback] if self._spec.fallbacks else None

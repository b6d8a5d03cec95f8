"""From the arguments of an operator, or of a row of a batch, to the ``ClipSpec`` of its purchase."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import (
    DEFAULT_LEDGER_PREFIX,
    Asker,
    Clip,
    ClipSpec,
    Member,
    S3Location,
    clip_location,
)
from airflow_provider_codegateway.exceptions import Bought, ClipMismatch, InvalidRequest
from airflow_provider_codegateway.inputs import resolve
from airflow_provider_codegateway.models import chain_fingerprint
from airflow_provider_codegateway.s3 import read_object

# A DAG file is parsed every half minute: what only a running task needs is imported where it runs.
if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.models import MediaField, VideoRequest


def clip_spec(requests: Sequence[VideoRequest], terms: Mapping[str, Any], asker: Asker) -> ClipSpec:
    """The clip that is asked for.

    :param requests: the request and its fallbacks, with their media resolved.
    :param terms: those of ``TERMS`` that are set.
    :raises InvalidRequest: an argument is wrong.
    """
    from airflow_provider_codegateway.facts import wanted_of
    from airflow_provider_codegateway.spend.prices import PricedRender

    given = {name: value for name, value in terms.items() if value is not None}
    first, *fallbacks = [
        Member(
            model=each.model,
            priced_by=PricedRender.parameters(each.body()),
            fingerprint=each.fingerprint(),
            wanted=wanted_of(each.body()),
        )
        for each in requests
    ]
    return ClipSpec(
        model=first.model,
        fingerprint=chain_fingerprint(requests),
        target=clip_location(given.get("s3_key", ""), given.get("s3_bucket")),
        requester=asker.requester,
        former_requester=asker.former_requester,
        if_exists=given.get("if_exists", "reuse"),
        max_renders=given.get("max_renders", 2),
        ledger_prefix=given.get("ledger_prefix", DEFAULT_LEDGER_PREFIX),
        ledger_conn_id=given.get("ledger_conn_id") or None,
        upload_args=given.get("s3_extra_args", {}),
        asked_by=asker.task,
        priced_by=first.priced_by,
        max_cost=checked_max_cost(given.get("max_cost")),
        wanted=first.wanted,
        first_fingerprint=first.fingerprint if fallbacks else None,
        fallbacks=tuple(fallbacks),
        fallback_on=checked_fallback_on(given.get("fallback_on", "unavailable")) if fallbacks else (),
    )


# Terms, each checked in one way, whoever gave them.


def checked_if_exists(value: object) -> Any:
    """
    :raises InvalidRequest: it is none of the three.
    """
    if value not in ("reuse", "replace", "fail"):
        raise InvalidRequest(f"if_exists={value!r} is not supported. Use 'reuse', 'replace' or 'fail'.")
    return value


def checked_on_mismatch(value: object) -> Any:
    """
    :raises InvalidRequest: it is neither of the two.
    """
    if value not in ("warn", "fail"):
        raise InvalidRequest(f"on_mismatch={value!r} is not supported. Use 'warn' or 'fail'.")
    return value


def checked_count(name: str, value: object) -> int:
    """A number, also as text.

    :raises InvalidRequest: it is not an integer, or less than 1.
    """
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*", value) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InvalidRequest(f"{name} must be an integer of 1 or more, not {value!r}.")
    return number


def checked_max_cost(value: Any) -> str | None:
    """An amount as text; None if there is none.

    :raises InvalidRequest: it is a float, or no amount.
    """
    from airflow_provider_codegateway.spend.prices import parse_amount, show_amount

    if value is None or value == "":
        return None
    try:
        return show_amount(parse_amount(value))
    except ValueError as error:
        raise InvalidRequest(f"max_cost {error}.") from None


def checked_fallback_on(value: Any) -> tuple[str, ...]:
    """The reasons to ask a fallback, also as text with commas.

    :raises InvalidRequest: there is none, or an unknown one.
    """
    from airflow_provider_codegateway.gateway import FALLBACK_ON

    given = value.split(",") if isinstance(value, str) else value
    is_list = isinstance(given, list | tuple | set | frozenset)
    reasons = tuple(each.strip() if isinstance(each, str) else each for each in given) if is_list else ()
    if not reasons or any(each not in FALLBACK_ON for each in reasons):
        raise InvalidRequest(
            f"fallback_on={value!r} is not supported. Use 'unavailable', 'rejected' or both."
        )
    return reasons


def clip_mismatch(clip: Clip) -> ClipMismatch:
    """The error of a clip that is not what was asked for."""
    return ClipMismatch(
        f"The clip at {clip.uri} is not what was asked for. {' '.join(clip.mismatches)} It is kept, and will not be "
        "bought again. To take it as it is, set on_mismatch='warn'; to render anew, delete it.",
        bought=Bought.YES if clip.renders_bought_here else Bought.NO,
    )


# Media.


def with_media(
    requests: Iterable[VideoRequest],
    s3: S3Client,
    upload_args: Mapping[str, Any],
    *,
    on_read: Callable[[str], object] = lambda reference: None,
) -> tuple[VideoRequest, ...]:
    """The requests with every image and video read, each once.

    :param upload_args: the clip's ``s3_extra_args``: who pays for it pays for the inputs.
    :param on_read: is told of each reference.
    :raises InvalidRequest: listing every one that cannot be used.
    :raises MediaUnavailable, StorageUnavailable, InvalidTarget: one could not be read.
    """
    found: dict[tuple[str, MediaField], str] = {}

    def read(reference: str, field: MediaField) -> str:
        if (reference, field) not in found:
            on_read(reference)
            found[reference, field] = read_media(reference, field, s3, upload_args)
        return found[reference, field]

    return tuple(request.with_media(read) for request in requests)


def read_media(reference: str, field: MediaField, s3: S3Client, upload_args: Mapping[str, Any]) -> str:
    """One image or video, as its model takes it.

    :raises ValueError: it cannot be used.
    :raises MediaUnavailable, StorageUnavailable, InvalidTarget: it could not be read.
    """
    pays = paying_for(upload_args)
    return resolve(
        reference,
        kind=field.kind,
        accepts_url=field.accepts_url,
        read_s3=lambda bucket, key, limit: read_object(s3, S3Location(bucket, key), limit, **pays),
    )


def paying_for(upload_args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``s3_extra_args`` that hold for inputs as well, though they may be in another bucket."""
    return {name: value for name, value in upload_args.items() if name == "RequestPayer"}

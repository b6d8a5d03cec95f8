"""The rows of a batch: read, completed with defaults, and checked, all of them, before anything is bought."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

from airflow_provider_codegateway.batch.lines import LineFile, fetch
from airflow_provider_codegateway.clip import Asker, ClipSpec, S3Location, clip_location, split_uri
from airflow_provider_codegateway.exceptions import BudgetExceeded, InvalidRequest, InvalidTarget
from airflow_provider_codegateway.ledger import Ledger
from airflow_provider_codegateway.models import (
    PORTABLE,
    MediaField,
    VideoRequest,
    build_chain,
)
from airflow_provider_codegateway.models.table import (
    FROM_JSON,
    ROW_FIELDS,
    Unreadable,
    csv_rows,
    is_set,
    json_rows,
    key_fields,
    parse_json,
    plain,
    unknown_field,
)
from airflow_provider_codegateway.spec import (
    checked_count,
    checked_fallback_on,
    checked_if_exists,
    checked_max_cost,
    checked_on_mismatch,
    clip_spec,
    paying_for,
    read_media,
)
from airflow_provider_codegateway.spend import Account
from airflow_provider_codegateway.spend.prices import PricedRender, cost_of_chain
from airflow_provider_codegateway.transfer import require_upload_args

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

_READERS = 8
"""Threads that look at rows."""
_TOGETHER = 64
"""Rows that they look at together: a pool would take all of them at once."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row, complete.

    :param index: its place in the list, from 0.
    :param id: what the author calls it.
    :param arguments: those of ``ROW_FIELDS`` that are set, the batch's defaults included.
    :param uri: where the clip goes, if that is known.
    :param priced_by: what of the request its price depends on; see ``ClipSpec``.
    :param chain: the same of every model that may be asked, each with its ``model``.
    :param problems: why nothing can be rendered for it.
    """

    index: int
    id: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    uri: str | None = None
    priced_by: Mapping[str, Any] = field(default_factory=dict)
    chain: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``. What a later version has beyond it is left out."""
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})

    @property
    def model(self) -> str | None:
        """The model, if the row has one."""
        return self.arguments.get("model")

    @property
    def on_mismatch(self) -> str:
        """What to do if the clip is not what was asked for."""
        return str(self.arguments.get("on_mismatch", "warn"))

    @property
    def priced_body(self) -> dict[str, Any]:
        """As much of the request as its price depends on."""
        return {"model": self.model, **self.priced_by}

    def body_of(self, model: str | None) -> dict[str, Any]:
        """The same of one of its models."""
        return next((dict(each) for each in self.chain if each["model"] == model), self.priced_body)

    def without_request(self) -> Row:
        """As much of the row as is needed while it renders: its media may be large."""
        return replace(self, arguments={"model": self.model, "on_mismatch": self.on_mismatch})

    @property
    def name(self) -> str:
        """The row in a message."""
        return f"Row {self.index + 1}" + ("" if self.id is None else f" (id {self.id!r})")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a line of JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def upload_args(self) -> Mapping[str, Any]:
        """boto3's further arguments for the clip."""
        args: Mapping[str, Any] = self.arguments.get("s3_extra_args", {})
        return args

    def requests(self) -> tuple[VideoRequest, ...]:
        """What is to be rendered, and its fallbacks, with their media as they are named.

        :raises InvalidRequest: listing every problem at once.
        """
        arguments = {name: self.arguments.get(name) for name in PORTABLE}
        return build_chain(self.model or "", self.arguments.get("fallbacks"), **arguments)


# Reading.


def read_requests(requests: object, s3: S3Client, upload_args: Mapping[str, Any]) -> Iterator[Any]:
    """Each row as it was written: a dict, or whatever else it is.

    :param requests: a list of dicts, or the ``s3://`` URI of a ``.jsonl`` or ``.csv`` object.
    :param upload_args: the clips' ``s3_extra_args``: who pays for them pays for the object, too.
    :raises InvalidRequest: it is neither, or cannot be read.
    """
    if isinstance(requests, str):
        yield from _read_object(requests, s3, upload_args)
    elif hasattr(requests, "to_dict"):
        raise InvalidRequest("requests is a data frame. Use its rows: requests=frame.to_dict('records').")
    elif isinstance(requests, Iterable) and not isinstance(requests, Mapping | bytes):
        yield from requests
    else:
        raise InvalidRequest(
            f"requests must be a list of dicts, or the s3:// URI of a .jsonl or .csv object, not "
            f"{type(requests).__name__}."
        )


def _read_object(uri: str, s3: S3Client, upload_args: Mapping[str, Any]) -> Iterator[Any]:
    at = split_uri(uri.strip())
    kind = uri.strip().lower().rpartition(".")[2]
    if at is None or not at.bucket or not at.key or kind not in ("jsonl", "ndjson", "csv"):
        raise InvalidRequest(
            f"requests={uri.strip()[:200]!r} is not the s3:// URI of a .jsonl or .csv object. Use one such as "
            "'s3://bucket/rows.jsonl', or a list of dicts."
        )
    with tempfile.TemporaryFile() as file:
        fetch(
            s3,
            at,
            file.write,
            doing="read the requests",
            missing=InvalidRequest(
                f"requests={at.uri!r} does not exist. Correct the URI, or upload the file."
            ),
            args=paying_for(upload_args),
        )
        file.seek(0)
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            yield from csv_rows(text) if kind == "csv" else json_rows(text)
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{at.uri} is not UTF-8 ({error.reason}). Store it as UTF-8.") from None
        except csv.Error as error:
            raise InvalidRequest(f"{at.uri} is not CSV ({error}). Correct the file.") from None


def look_at_each(look: Callable[[Row], T], rows: Iterator[Row]) -> Iterator[T]:
    """What is seen of each row, in their order, by a few threads."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="codegateway-look") as pool:
        while some := list(islice(rows, _TOGETHER)):
            yield from pool.map(look, some)


# Checking.


@dataclass
class Checked:
    """All rows, checked.

    :param rows: each as ``Row.as_dict``; close it in the end.
    :param problems: one sentence or more for each row that is wrong.
    :param renders: how many clips the others are.
    :param at_most: what these cost at most; None if one has no price, or there are no prices.
    """

    rows: LineFile
    problems: list[str] = field(default_factory=list)
    invalid: int = 0
    renders: int = 0
    at_most: Decimal | None = None
    unpriced: int = 0

    def priced(self, at_most: Decimal | None) -> None:
        """Count one render."""
        self.renders += 1
        if at_most is None:
            self.unpriced += 1
        else:
            self.at_most = (self.at_most or Decimal(0)) + at_most


def check_rows(
    raw: Iterable[Any],
    *,
    defaults: Mapping[str, Any],
    s3: S3Client,
    account: Account,
    own: Collection[S3Location] = (),
    connect: Callable[[str], object] = lambda _: None,
) -> Checked:
    """Complete and check every row, media included. Nothing is bought.

    :param defaults: arguments for all rows. ``s3_key`` may name fields of the row, as in ``"{id}.mp4"``.
    :param own: the files that the batch itself writes: no clip may take their place.
    :param connect: makes a client of an AWS connection, as of a row's ``ledger_conn_id``; raises ``InvalidTarget``.
    :raises MediaUnavailable, StorageUnavailable: an input could not be read now.
    """
    checker = _Checker(defaults, s3, account, own, connect)
    checked = Checked(LineFile())
    begun = (checker.begin(index, values) for index, values in enumerate(raw))
    try:
        for row, cost in look_at_each(checker.finish, begun):
            checked.rows.append(row.as_dict())
            if row.problems:
                checked.invalid += 1
                checked.problems += [f"{row.name}: {problem}" for problem in row.problems]
            else:
                checked.priced(cost)
    except BaseException:
        checked.rows.close()
        raise
    return checked


class _Checker:
    def __init__(
        self,
        defaults: Mapping[str, Any],
        s3: S3Client,
        account: Account,
        own: Collection[S3Location],
        connect: Callable[[str], object],
    ) -> None:
        self._own = own
        self._connect = connect
        self._connected: dict[str, str | None] = {}
        self._defaults = {name: value for name, value in defaults.items() if is_set(value)}
        self._key_template = self._defaults.pop("s3_key", None)
        self._key_fields = key_fields(self._key_template)
        self._s3 = s3
        self._account = account
        self._ids: dict[str, int] = {}
        self._targets: dict[S3Location, int] = {}
        self._media: dict[tuple[Any, ...], str | None] = {}

    def begin(self, index: int, values: Any) -> Row:
        """The row, with all problems that its values alone have, and what it shares with others."""
        if isinstance(values, Unreadable):
            return Row(index=index, id=None, problems=[str(values)])
        if not isinstance(values, Mapping):
            return Row(
                index=index,
                id=None,
                problems=[
                    f"it is {type(values).__name__}, not an object with fields such as prompt and s3_key."
                ],
            )
        given = {str(name): plain(value) for name, value in values.items() if is_set(value)}
        problems = [
            unknown_field(name) for name in given if name not in ROW_FIELDS and name not in self._key_fields
        ]
        id_ = _as_id(given.get("id"))
        arguments = {**self._defaults, **{name: given[name] for name in ROW_FIELDS if name in given}}
        arguments.pop("id", None)
        for name in FROM_JSON:
            parse_json(name, arguments, problems)
        _check_terms(arguments, problems)
        if "s3_key" not in arguments and self._key_template is not None:
            self._make_key({**given, "id": id_}, arguments, problems)
        if "id" in given and id_ is None:
            problems.append(f"id={given['id']!r} is not text or an integer.")
        if id_ is not None and self._ids.setdefault(id_, index) != index:
            problems.append(
                f"id={id_!r} is that of row {self._ids[id_] + 1}, too. Give each row an id of its own."
            )
        try:
            json.dumps(arguments, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(
                f"it has a value that JSON cannot hold ({error}). Use text, numbers and booleans."
            )
            arguments = {}
        uri = self._check_target(index, arguments, problems) if arguments else None
        return Row(index=index, id=id_, arguments=arguments, uri=uri, problems=problems)

    def finish(self, row: Row) -> tuple[Row, Decimal | None]:
        """The row with all of its problems, and what its render costs at most."""
        problems = list(row.problems)
        priced_by: Mapping[str, Any] = {}
        chain: Sequence[Mapping[str, Any]] = ()
        cost = None
        if not row.arguments:
            return row, None
        try:
            requests = row.requests()
        except InvalidRequest as error:
            problems += error.problems
        else:
            try:
                chain = [{"model": each.model, **PricedRender.parameters(each.body())} for each in requests]
                priced_by = {name: value for name, value in chain[0].items() if name != "model"}
                look_at = partial(self._look_at, row.upload_args)
                requests = tuple(request.with_media(look_at) for request in requests)
                if problem := self._problem_of_connection(row.arguments.get("ledger_conn_id")):
                    problems.append(problem)
                if not problems:
                    spec = clip_spec(requests, row.arguments, Asker(requester=""))
                    Ledger.of_clip(self._s3, spec)
                    require_upload_args(self._s3, spec.upload_args)
                    cost = self._worst_cost(requests, spec)
            except InvalidRequest as error:
                problems += error.problems
            except BudgetExceeded as error:
                problems.append(error.args[0])
        return replace(row, priced_by=priced_by, chain=chain, problems=problems), cost

    def _problem_of_connection(self, name: object) -> str | None:
        """Why there is no ledger by this connection; looked at once for all rows."""
        if name is None:
            return None
        if not isinstance(name, str):
            return f"ledger_conn_id={name!r} is not the name of an AWS connection."
        if name not in self._connected:
            try:
                self._connect(name)
                self._connected[name] = None
            except InvalidTarget as error:
                self._connected[name] = f"ledger_conn_id={name!r}: {error.args[0]}"
        return self._connected[name]

    def _worst_cost(self, requests: Sequence[VideoRequest], spec: ClipSpec) -> Decimal | None:
        """What the render costs at most, by whichever model of the chain; None if one has no price."""
        max_cost = None if spec.max_cost is None else Decimal(spec.max_cost)
        cost = cost_of_chain([self._account.check(request.body(), max_cost=max_cost) for request in requests])
        return None if cost is None else cost.at_most

    def _make_key(self, given: Mapping[str, Any], arguments: dict[str, Any], problems: list[str]) -> None:
        values = {name: _as_id(given.get(name, arguments.get(name))) for name in self._key_fields}
        if missing := [name for name, value in values.items() if value is None]:
            problems.append(
                f"s3_key={self._key_template!r} uses {{{missing[0]}}}, and the row has no {missing[0]}. Set it to text "
                "or an integer, or give the row an s3_key."
            )
            return
        arguments["s3_key"] = str(self._key_template).format_map(values)

    def _check_target(self, index: int, arguments: Mapping[str, Any], problems: list[str]) -> str | None:
        if any("s3_key=" in problem for problem in problems):
            return None  # its template was named already
        try:
            target = clip_location(arguments.get("s3_key", ""), arguments.get("s3_bucket"))
        except InvalidRequest as error:
            problems += error.problems
            return None
        if target in self._own:
            problems.append(
                f"s3_key: {target.uri} is a file of the batch itself. Choose another key, or another result_path."
            )
        if self._targets.setdefault(target, index) != index:
            problems.append(
                f"s3_key: {target.uri} is the key of row {self._targets[target] + 1}, too. Give each row a key of its "
                "own."
            )
        return target.uri

    def _look_at(self, upload_args: Mapping[str, Any], reference: str, field: MediaField) -> str:
        """Read an image or a video once for all rows, to see that it can be used."""
        known = (reference, field.kind, field.accepts_url, upload_args.get("RequestPayer"))
        scheme = reference.strip().lower().partition("://")[0]
        if scheme == "file":
            raise ValueError(
                f"{reference.strip()[:200]} is on one machine, and a batch may render on another; put it in S3 and "
                "give its s3:// key"
            )
        if scheme not in ("s3", "http", "https"):
            return read_media(reference, field, self._s3, upload_args)  # inline: nothing is fetched
        if known not in self._media:
            self._media[known] = self._problem_of(reference, field, upload_args)
        if problem := self._media[known]:
            raise ValueError(problem)
        return reference

    def _problem_of(self, reference: str, field: MediaField, upload_args: Mapping[str, Any]) -> str | None:
        try:
            read_media(reference, field, self._s3, upload_args)
        except ValueError as error:
            return str(error)
        except InvalidTarget as error:
            return str(error.args[0]).rstrip(".")
        return None


def _as_id(value: object) -> str | None:
    """Text or an integer as text; None for anything else."""
    if isinstance(value, str) and value.strip():
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "if_exists": checked_if_exists,
    "max_renders": partial(checked_count, "max_renders"),
    "max_cost": checked_max_cost,
    "fallback_on": checked_fallback_on,
    "on_mismatch": checked_on_mismatch,
}


def _check_terms(arguments: dict[str, Any], problems: list[str]) -> None:
    for name, checked in _CHECKS.items():
        try:
            if name in arguments:
                arguments[name] = checked(arguments[name])
        except InvalidRequest as error:
            problems += error.problems

"""The operator for many clips in one task: a list in, a manifest out."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from airflow.providers.common.compat.sdk import conf

from airflow_provider_codegateway import lineage
from airflow_provider_codegateway.clip import (
    DEFAULT_LEDGER_PREFIX,
    Asker,
    IfExists,
    OnMismatch,
    S3Location,
    ledger_around,
    split_uri,
)
from airflow_provider_codegateway.exceptions import (
    BatchIncomplete,
    BatchRefused,
    Bought,
    BudgetExceeded,
    CodeGatewayError,
    InvalidRequest,
    InvalidTarget,
    RenderOutcomeUnknown,
)
from airflow_provider_codegateway.get_provider_info import DEFAULT_CONNECTION_ID
from airflow_provider_codegateway.inputs import hide, reveal
from airflow_provider_codegateway.limits import LIMITS
from airflow_provider_codegateway.links import BatchLink
from airflow_provider_codegateway.models import PORTABLE, TERMS, Fallbacks
from airflow_provider_codegateway.operators.base import (
    HidesMedia,
    RenderingOperator,
    asker_of,
)
from airflow_provider_codegateway.s3 import demanded_args
from airflow_provider_codegateway.spec import checked_count

# A DAG file is parsed every half minute: what only a running task needs is imported where it runs.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_codegateway.batch import Checked, LineFile, Means, Summary

DEFAULT_FIELDS = ("model", *PORTABLE, *TERMS)
"""Arguments that are defaults for the rows."""


class GenerateVideosOperator(RenderingOperator):
    """Renders many clips with CodeGateway in one task, and stores them and a manifest in S3.

    Every row is checked before anything is bought. Each goes through the same purchase as a clip of
    ``GenerateVideoOperator``: no crash, retry or clear buys a render again, and a task that is cleared renders what is
    missing. Pushes the manifest's URI as ``return_value``, and counts and cost as XCom ``batch``; see
    ``batch.Summary``.

    :param requests: a list of dicts, or the ``s3://`` URI of a ``.jsonl`` or ``.csv`` object. A row may set ``id`` and
        every argument below that is a default for rows. What rows hold is data, and never a template.
    :param result_path: a folder in S3, for ``manifest.jsonl`` (one row a request) and ``requests.jsonl``.
    :param max_active: how many clips may be under way at a time.
    :param tolerated_failures: how many rows may end without a clip: a number, or a share such as ``"10%"`` or ``0.1``.
    :param skip_invalid: leave out rows that are invalid, and name them in the manifest, instead of refusing the batch.
    :param asset_events: ``"batch"``: one event for each outlet, an ``AssetAlias`` becomes the manifest's URI.
        ``"clip"``: an ``AssetAlias`` becomes each clip's URI.
    :param model: default for rows, as are all of the following up to ``s3_extra_args``; see ``GenerateVideoOperator``.
    :param s3_key: may name fields of the row in braces, as in ``"spring/{id}.mp4"``.
    :param codegateway_conn_id: connection to the gateway.
    :param aws_conn_id: connection to S3.
    :param dry_run: make all checks, push what the batch would cost as XCom ``estimate``, and skip the task. Nothing is
        bought.
    :param deferrable: wait in the triggerer, and hold no worker slot for the renders.
    """

    template_fields: Sequence[str] = (
        "requests",
        "result_path",
        *DEFAULT_FIELDS,
        "max_active",
        "tolerated_failures",
        "codegateway_conn_id",
        "aws_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "requests": "json",
        **RenderingOperator.template_fields_renderers,
    }
    ui_color = "#e8e4f3"
    operator_extra_links = (BatchLink(),)

    requests = HidesMedia()
    returns = "the manifest's URI; the counts are in the XCom 'batch'"

    def __init__(
        self,
        *,
        requests: Any,
        result_path: str,
        max_active: int = 32,
        tolerated_failures: float | str = 0,
        skip_invalid: bool = False,
        asset_events: Literal["batch", "clip"] = "batch",
        model: str | None = None,
        prompt: str | None = None,
        image: str | None = None,
        aspect_ratio: str | None = None,
        duration: float | str | None = None,
        resolution: str | None = None,
        generate_audio: bool | str | None = None,
        seed: float | str | None = None,
        parameters: dict[str, Any] | None = None,
        s3_key: str | None = None,
        s3_bucket: str | None = None,
        if_exists: IfExists = "reuse",
        max_renders: int = 2,
        max_cost: str | Decimal | None = None,
        fallbacks: Fallbacks = None,
        fallback_on: Sequence[str] | str = ("unavailable",),
        on_mismatch: OnMismatch = "warn",
        ledger_prefix: str = DEFAULT_LEDGER_PREFIX,
        ledger_conn_id: str | None = None,
        s3_extra_args: dict[str, Any] | None = None,
        codegateway_conn_id: str = DEFAULT_CONNECTION_ID,
        aws_conn_id: str | None = "aws_default",
        dry_run: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Hidden at once, also where it has braces: rows are never rendered.
        self.requests = requests if isinstance(requests, str) else hide(requests)
        self.result_path = result_path
        self.max_active = max_active
        self.tolerated_failures = tolerated_failures
        self.skip_invalid = skip_invalid
        self.asset_events = asset_events
        self.model = model
        self.prompt = prompt
        self.image = image
        self.aspect_ratio = aspect_ratio
        self.duration = duration
        self.resolution = resolution
        self.generate_audio = generate_audio
        self.seed = seed
        self.parameters = parameters
        self.s3_key = s3_key
        self.s3_bucket = s3_bucket
        self.if_exists = if_exists
        self.max_renders = max_renders
        self.max_cost = max_cost
        self.fallbacks = fallbacks
        self.fallback_on = fallback_on
        self.on_mismatch = on_mismatch
        self.ledger_prefix = ledger_prefix
        self.ledger_conn_id = ledger_conn_id
        self.s3_extra_args = s3_extra_args
        self.codegateway_conn_id = codegateway_conn_id
        self.aws_conn_id = aws_conn_id
        self.dry_run_only = dry_run
        self.deferrable = deferrable
        if asset_events not in ("batch", "clip"):
            raise InvalidRequest(f"asset_events={asset_events!r} is not supported. Use 'batch' or 'clip'.")

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: Any,
        seen_oids: set[int],
    ) -> None:
        if isinstance(parent, GenerateVideosOperator) and isinstance(parent.requests, list | tuple):
            # Rows are data: outputs of other tasks are put in, and nothing is rendered.
            parent.requests = _resolved(parent.requests, context)
            template_fields = [name for name in template_fields if name != "requests"]
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)

    def _run(self, context: Context) -> str:
        from airflow_provider_codegateway.batch import (
            Batch,
            Tolerance,
            manifest_location,
            rows_location,
            store_rows,
        )

        manifest = manifest_location(self.result_path)
        Tolerance.parse(self.tolerated_failures)
        max_active = checked_count("max_active", self.max_active)
        means = self.hook.means(s3=self._s3, max_active=max_active)
        lineage.require_assets(self.outlets, manifest)
        asker = asker_of(context)
        own = self._own_files()
        checked = self._checked(means, own)
        with checked.rows as rows:
            self._require_room(checked, means, asker)
            if self.dry_run_only:
                self._estimate(rows, means, asker, context)
            # The first write below result_path, before anything is bought: the manifest goes there, too.
            store_rows(
                rows, self._s3, rows_location(self.result_path), put_args=self._put_args, task=asker.task
            )
            self.log.info(
                "Rendering %s rows, at most %d at a time. The manifest will be at %s.",
                f"{len(rows):,}",
                max_active,
                manifest.uri,
            )
            self._require_not_killed("the batch was begun")
            if self._can_resume(context):
                self._defer(max_active, asker, rows.digest())
            batch = Batch(rows, means, asker=asker, manifest=manifest, put_args=self._put_args)
            try:
                summary = self._render_here(batch.run, "the batch was begun")
            except asyncio.CancelledError:
                raise self._incomplete(batch.summary, "The task was stopped from outside.") from None
        return self._hand_over(summary, context)

    def _own_files(self) -> list[S3Location]:
        """What the batch writes.

        :raises InvalidRequest: its folder is in the ledger, or has the requests under a name that is written.
        """
        from airflow_provider_codegateway.batch import manifest_location, progress_beside, rows_location

        manifest = manifest_location(self.result_path)
        own = [manifest, rows_location(self.result_path), progress_beside(manifest)]
        bucket = self.s3_bucket if isinstance(self.s3_bucket, str) and self.s3_bucket else manifest.bucket
        if (prefix := ledger_around(manifest, self.ledger_prefix, bucket)) is not None:
            raise InvalidRequest(
                f"result_path={self.result_path!r} is in the ledger ({prefix!r}), whose objects it could overwrite. "
                "Choose another folder."
            )
        requests = reveal(self.requests)
        if isinstance(requests, str) and split_uri(requests.strip()) in own:
            raise InvalidRequest(
                f"requests={requests.strip()!r} is where the batch writes its own files, so it would be overwritten. "
                "Move it, or choose another result_path."
            )
        return own

    def _checked(self, means: Means, own: Collection[S3Location]) -> Checked:
        """All rows, checked.

        :raises InvalidRequest: rows are wrong; all of them are named.
        """
        from airflow_provider_codegateway.batch import check_rows, read_requests
        from airflow_provider_codegateway.hooks.storage import s3_client

        defaults = {name: reveal(getattr(self, name)) for name in DEFAULT_FIELDS}
        raw = read_requests(reveal(self.requests), self._s3, self.s3_extra_args or {})
        checked = check_rows(
            raw, defaults=defaults, s3=self._s3, account=means.account, own=own, connect=s3_client
        )
        try:
            self._refuse_invalid(checked)
            if self.asset_events == "clip":
                for values in checked.rows:
                    if location := split_uri(values["uri"] or ""):
                        lineage.require_assets(self.outlets, location)
        except BaseException:
            checked.rows.close()
            raise
        return checked

    def _refuse_invalid(self, checked: Checked) -> None:
        if not checked.problems:
            return
        for problem in checked.problems:
            self.log.error("%s", problem)
        shown = checked.problems[: LIMITS.problems_shown]
        if more := len(checked.problems) - len(shown):
            shown.append(f"… and {more:,} more, which the log above names.")
        if not self.skip_invalid or checked.invalid == len(checked.rows):
            raise InvalidRequest(shown)
        self.log.warning(
            "skip_invalid=True: %d of %d rows are left out. The manifest names them.",
            checked.invalid,
            len(checked.rows),
        )

    def _require_room(self, checked: Checked, means: Means, asker: Asker) -> None:
        """Refuse what the budgets have no room for. Clips that are in place or paid for cost nothing."""
        from airflow_provider_codegateway.batch import count_missing
        from airflow_provider_codegateway.spend.prices import show_amount

        account = means.account
        at_most = None if checked.unpriced else checked.at_most
        try:
            account.require_room_for(checked.renders, at_most, asked_by=asker.task)
        except BudgetExceeded:
            missing, cost = count_missing(checked.rows, means, asker)
            account.require_room_for(missing, cost, asked_by=asker.task)
        if checked.at_most is not None:
            unpriced = f", and {checked.unpriced:,} rows have no price" if checked.unpriced else ""
            self.log.info(
                "%s renders cost at most %s %s%s.",
                f"{checked.renders:,}",
                show_amount(checked.at_most),
                account.settings.currency,
                unpriced,
            )

    def _estimate(self, rows: LineFile, means: Means, asker: Asker, context: Context) -> NoReturn:
        from airflow_provider_codegateway.batch import count_missing
        from airflow_provider_codegateway.spend.prices import show_amount

        renders, cost = count_missing(rows, means, asker)
        currency = means.account.settings.currency
        at_most = None if currency is None else show_amount(cost)
        estimate = {"renders": renders, "at_most": at_most, "currency": currency}
        words = (
            "an amount that the price list does not tell"
            if at_most is None
            else f"at most {at_most} {currency}"
        )
        count = "1 render" if renders == 1 else f"{renders:,} renders"
        self._push_estimate(estimate, f"{count} would cost {words}", context)

    @property
    def _put_args(self) -> dict[str, Any]:
        return demanded_args(self.s3_extra_args or {})

    def _defer(self, max_active: int, asker: Asker, rows_digest: str) -> NoReturn:
        from airflow_provider_codegateway.triggers.videos import BatchTrigger

        trigger = BatchTrigger(
            result_path=self.result_path,
            codegateway_conn_id=self.codegateway_conn_id,
            aws_conn_id=self.aws_conn_id,
            max_active=max_active,
            requester=asker.requester,
            former_requester=asker.former_requester,
            asked_by=asdict(asker.task),
            put_args=self._put_args,
            rows_digest=rows_digest,
        )
        self._defer_to(trigger, {"result_path": self.result_path})

    def _resume(self, deferred: dict[str, Any]) -> None:
        self.result_path = deferred.get("result_path", self.result_path)

    def _take_over(self, context: Context, event: dict[str, Any], deferred: dict[str, Any]) -> str:
        from airflow_provider_codegateway.batch import Summary

        match event:
            case {"status": "ended", "summary": {"manifest": str(), "requests": int()} as summary}:
                return self._hand_over(Summary.from_dict(summary), context)
        raise self._not_understood(context)

    def _unknown_outcome(self, reason: str, context: Context) -> RenderOutcomeUnknown:
        from airflow_provider_codegateway.batch import manifest_location

        return RenderOutcomeUnknown(
            f"{reason} What was stored until then is in {manifest_location(self.result_path).uri}. Run the task again: "
            "it fetches what was bought, and renders what is missing."
        )

    def _tell_what_was_bought_before(self, error: CodeGatewayError, context: Context) -> None:
        """By whether an earlier try stored its rows, which it does before anything is bought."""
        from airflow_provider_codegateway.batch import manifest_location, mark_of, rows_location

        try:
            has_rows = mark_of(self._s3, rows_location(self.result_path), self._put_args) is not None
        except InvalidRequest:  # there is no such place
            has_rows = False
        except Exception:  # whatever it is, the error that is reported matters more
            has_rows = True
        if not has_rows:
            return
        error.bought = Bought.PERHAPS
        manifest = manifest_location(self.result_path)
        error.args = (f"{error.args[0]} What was bought before is in {manifest.uri}, or the journal.",)

    def _hand_over(self, summary: Summary, context: Context) -> str:
        from airflow_provider_codegateway.batch import Tolerance

        self.log.info(
            "%s rows: %s. The manifest is at %s.", f"{summary.requests:,}", summary, summary.manifest
        )
        # The connection too: Airflow keeps the rendered arguments of the last runs only.
        self._push("batch", {**summary.as_dict(), "aws_conn_id": self.aws_conn_id}, context)
        tolerance = Tolerance.parse(self.tolerated_failures)
        if not tolerance.allows(summary.without_clip, summary.requests):
            raise self._incomplete(summary, f"tolerated_failures={self.tolerated_failures} allows fewer.")
        try:
            self._announce(summary, context)
        except CodeGatewayError as error:
            if summary.renders_bought or summary.renders_unknown:
                error.count(summary.renders_bought, summary.renders_unknown)
            raise
        return summary.manifest

    def _incomplete(self, summary: Summary, reason: str) -> BatchIncomplete:
        error_class = BatchIncomplete if summary.may_help_to_retry else BatchRefused
        lines = [
            f"{summary.without_clip:,} of {summary.requests:,} rows have no clip ({summary}). {reason}",
            *([f"No more rows were begun: {summary.stopped}"] if summary.stopped else []),
            *summary.errors,
            f"The manifest at {summary.manifest} names every row. Run the task again to render what is missing.",
        ]
        return error_class("\n".join(lines), renders=summary.renders_bought, perhaps=summary.renders_unknown)

    def _announce(self, summary: Summary, context: Context) -> None:
        """Send the asset events.

        :raises InvalidTarget: the manifest is another batch's by now, so nobody may be sent to it.
        """
        from airflow_provider_codegateway.batch import LineFile

        location = split_uri(summary.manifest)
        assert location is not None
        with LineFile.download(self._s3, location, self._put_args) as rows:
            if summary.digest not in (None, rows.digest()):
                raise InvalidTarget(
                    f"{location.uri} is the manifest of another batch by now. The clips of this one are stored. Give "
                    "each batch a result_path of its own, such as one with the run id in it, and run the task again."
                )
            if self.asset_events == "batch" or not self.outlets:
                lineage.add_batch_events(self.outlets, context, [(location, summary.as_dict())])
                return
            events = (
                (clip, row)
                for row in rows
                if row["status"] in ("stored", "reused") and (clip := split_uri(row["uri"]))
            )
            lineage.add_batch_events(self.outlets, context, events, summary=summary.as_dict())


def _resolved(value: Any, context: Context) -> Any:
    """The rows with outputs of other tasks put in, at any depth."""
    if callable(resolve := getattr(value, "resolve", None)):
        return resolve(context)
    if isinstance(value, Mapping):
        return {name: _resolved(each, context) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(each, context) for each in value]
    return value

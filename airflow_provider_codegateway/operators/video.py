"""The operator: one clip in S3, its key in XCom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import conf

from airflow_provider_codegateway import lineage, metrics
from airflow_provider_codegateway.clip import (
    DEFAULT_LEDGER_PREFIX,
    Clip,
    ClipSpec,
    IfExists,
    OnMismatch,
    checked_target,
    clip_location,
)
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    InvalidRequest,
    RenderOutcomeUnknown,
)
from airflow_provider_codegateway.get_provider_info import DEFAULT_CONNECTION_ID
from airflow_provider_codegateway.inputs import reveal
from airflow_provider_codegateway.links import ClipLink
from airflow_provider_codegateway.models import (
    PORTABLE,
    TERMS,
    Fallbacks,
    build_chain,
    placeholder,
)
from airflow_provider_codegateway.operators.base import RenderingOperator, asker_of
from airflow_provider_codegateway.spec import (
    checked_count,
    checked_if_exists,
    checked_max_cost,
    checked_on_mismatch,
    clip_mismatch,
    clip_spec,
    with_media,
)

# A DAG file is parsed every half minute: what only a running task needs is imported where it runs.
if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_codegateway.clip import S3Location
    from airflow_provider_codegateway.facts import Beside
    from airflow_provider_codegateway.ledger import Entry
    from airflow_provider_codegateway.models import VideoRequest
    from airflow_provider_codegateway.preview import Preview


class GenerateVideoOperator(RenderingOperator):
    """Renders one clip with CodeGateway and stores it in S3.

    Pushes the clip's S3 key as ``return_value`` and the clip's facts as XCom ``clip``: a dict of ``bucket,
    key, uri, model, bytes, sha256, created, render_seconds, renders_bought, renders_bought_here, fingerprint,
    reused, cost, facts, mismatches, fallback``. The same facts are the extra of the asset events of its ``outlets``; an
    ``AssetAlias`` there becomes the clip's URI.

    What can be refused for free is refused before any money is spent. Once the gateway has answered, no
    crash, retry, clear or duplicate run buys the same render again.

    ``execute({})`` renders as well outside a DAG run, in a unit test or inside another task, without XComs, asset
    events or a deferral.

    :param model: such as ``google/veo-3.1-fast``, ``bytedance/seedance-2.0``, ``minimax/hailuo-2.3-fast``.
    :param prompt: what to show; 2,000 characters at most. Optional on Hailuo only.
    :param image: first frame: https URL, ``s3://`` key, ``file://`` path on the worker, base64 or data URI.
    :param aspect_ratio: such as ``"16:9"``. Hailuo has none.
    :param duration: whole seconds: ``6``, ``"6"``, ``"6s"`` or ``6.0``, whichever the model.
    :param resolution: such as ``"1080p"``, whichever the model.
    :param generate_audio: whether the clip has sound; off by default on every model.
    :param seed: for a repeatable clip, on Seedance.
    :param parameters: any further parameter of the model, named and typed as the API has it.
    :param s3_key: where the clip goes: a key, or a whole ``s3://bucket/key``.
    :param s3_bucket: the bucket, unless ``s3_key`` names it.
    :param if_exists: what to do if the key is taken. ``reuse``: return it if it is the clip of this very
        request, else fail. ``replace``: render anew, though never a second time for the same request of the
        same DAG run. ``fail``.
    :param max_renders: how many renders may be begun at most, should the outcome of one remain unknown.
    :param codegateway_conn_id: connection to the gateway.
    :param aws_conn_id: connection to S3.
    :param ledger_prefix: where the record of what was bought is kept meanwhile: a prefix in the clip's
        bucket, or a whole ``s3://bucket/prefix``.
    :param ledger_conn_id: AWS connection of the ledger, if that is on another store or account than the clip.
    :param s3_extra_args: for the upload, as S3Hook's ``extra_args``: ``ServerSideEncryption``,
        ``SSEKMSKeyId``, ``ACL``, ``StorageClass`` and the like. What a bucket's policy may demand goes to the ledger
        as well, if that is in the same bucket.
    :param max_cost: what the clip may cost at most, in the price list's currency: ``"0.80"``, never a float.
    :param fallbacks: models to ask, in this order, if the first provably sold nothing. Each is a model, or a dict of a
        ``model`` and overrides; all else it takes over. After a render that may have been bought, none is ever asked.
    :param fallback_on: when: ``"unavailable"`` (a model is down, busy or unknown to the gateway), ``"rejected"`` (it
        refuses this request), or both.
    :param dry_run: make all checks, push what the clip would cost as XCom ``estimate``, and skip the task. Nothing is
        bought.
    :param on_mismatch: what to do if the clip is not what was asked for: another shape, length or resolution, or no
        sound. ``warn``: say so in the log and in the XCom ``clip``. ``fail``: fail the task as well. The clip is kept
        either way, and never bought again by itself.
    :param poster_key: where the first picture of the clip goes: a key in the clip's bucket, a whole
        ``s3://bucket/key``, or a suffix of ``s3_key`` such as ``.jpg``; JPEG or PNG, by how it ends. Needs the extra
        ``media`` on the workers.
    :param last_frame_key: the same for its last picture, for a next clip to go on from.
    :param sidecar_key: the same for a JSON document that says where the clip comes from.
    :param check_content: look for a black picture, one that never moves, and sound that is silent. Needs the extra
        ``media``.
    :param deferrable: wait in the triggerer, and hold no worker slot for the render.
    """

    template_fields: Sequence[str] = (
        "model",
        *PORTABLE,
        "s3_key",
        "s3_bucket",
        "codegateway_conn_id",
        "aws_conn_id",
        "ledger_prefix",
        "ledger_conn_id",
        "s3_extra_args",
        "max_cost",
        "poster_key",
        "last_frame_key",
        "sidecar_key",
        "fallbacks",
        "fallback_on",
    )
    ui_color = "#e8e4f3"
    operator_extra_links = (ClipLink(),)

    model: str
    returns = "a key; the clip's facts are in the XCom 'clip'"

    def __init__(
        self,
        *,
        model: str,
        prompt: str | None = None,
        image: str | None = None,
        aspect_ratio: str | None = None,
        duration: float | str | None = None,
        resolution: str | None = None,
        generate_audio: bool | str | None = None,
        seed: float | str | None = None,
        parameters: dict[str, Any] | None = None,
        s3_key: str,
        s3_bucket: str | None = None,
        if_exists: IfExists = "reuse",
        max_renders: int = 2,
        codegateway_conn_id: str = DEFAULT_CONNECTION_ID,
        aws_conn_id: str | None = "aws_default",
        ledger_prefix: str = DEFAULT_LEDGER_PREFIX,
        ledger_conn_id: str | None = None,
        s3_extra_args: dict[str, Any] | None = None,
        max_cost: str | Decimal | None = None,
        fallbacks: Fallbacks = None,
        fallback_on: Sequence[str] | str = ("unavailable",),
        dry_run: bool = False,
        on_mismatch: OnMismatch = "warn",
        poster_key: str | None = None,
        last_frame_key: str | None = None,
        sidecar_key: str | None = None,
        check_content: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
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
        self.max_renders = checked_count("max_renders", max_renders)
        self.codegateway_conn_id = codegateway_conn_id
        self.aws_conn_id = aws_conn_id
        self.ledger_prefix = ledger_prefix
        self.ledger_conn_id = ledger_conn_id
        self.s3_extra_args = s3_extra_args
        self.max_cost = max_cost
        self.fallbacks = fallbacks
        self.fallback_on = fallback_on
        self.dry_run_only = dry_run
        self.on_mismatch = on_mismatch
        self.poster_key = poster_key
        self.last_frame_key = last_frame_key
        self.sidecar_key = sidecar_key
        self.check_content = check_content
        self.deferrable = deferrable
        checked_if_exists(if_exists)
        checked_on_mismatch(on_mismatch)
        if not isinstance(max_cost, str):
            checked_max_cost(max_cost)
        self._prompt_is_given = prompt is not None and prompt != ""
        self._inputs: list[str] = []
        self._shown_requests: dict[str, Any] = {}
        self._clip: Clip | None = None

    def _run(self, context: Context) -> str:
        self.hook.get_settings()  # before any image is fetched
        requests = self._requests()
        spec = clip_spec(requests, {name: getattr(self, name) for name in TERMS}, asker_of(context))
        lineage.require_assets(self.outlets, spec.target)
        self._beside()  # refuses for free
        self._shown_requests = {each.model: each.shown() for each in requests}
        if len(self._shown_requests) < len(requests):  # a model is asked twice, with other parameters
            self._shown_requests = {str(index): each.shown() for index, each in enumerate(requests)}
        purchase = self.hook.purchase(spec, s3=self._s3)
        if self.dry_run_only:
            self._estimate(purchase.preview(*requests), spec, context)
        buying = f"it bought a clip for {spec.target.uri}"
        if self._can_resume(context):
            clip = purchase.begin(*requests)
            if clip is None:
                self._require_not_killed(buying)
                self._defer(spec)
            return self._hand_over(clip, context)

        try:
            clip = self._render_here(lambda: purchase.complete(*requests), buying)
        except asyncio.CancelledError:
            raise RenderOutcomeUnknown(
                f"The task was stopped from outside while working on {spec.target.uri}. The ledger at "
                f"{purchase.ledger.location.uri} says what was begun."
            ) from None
        return self._hand_over(clip, context)

    def _estimate(self, preview: Preview, spec: ClipSpec, context: Context) -> NoReturn:
        from airflow_provider_codegateway.spend.prices import show_amount

        cheapest, dearest = preview.cheapest, preview.dearest
        estimate: dict[str, Any] = {
            "uri": spec.target.uri,
            "model": self.model,
            "renders": 0 if preview.is_paid else 1,
            "cost": preview.offers[0].as_dict()["cost"],
        }
        if spec.fallbacks:
            estimate["cheapest"] = cheapest and cheapest.as_dict()
            estimate["dearest"] = dearest and dearest.as_dict()
        if preview.is_paid:
            words = "nothing: the clip is paid for already"
        elif cheapest is None or dearest is None or cheapest.cost is None or dearest.cost is None:
            words = "an amount that the price list does not tell"
        else:
            amounts = dict.fromkeys(map(show_amount, (cheapest.cost.amount, dearest.cost.at_most)))
            words = f"{' to '.join(map(str, amounts))} {cheapest.cost.currency}"
        self._push_estimate(estimate, f"a clip for {spec.target.uri} would cost {words}", context)

    def _take_over(self, context: Context, event: dict[str, Any], deferred: dict[str, Any]) -> str:
        match event:
            case {"status": "stored", "clip": dict(clip)} if Clip.is_dict_of(clip):
                return self._hand_over(Clip.from_dict(clip), context)
            case {"status": "gone"}:
                self.log.info("Another run settled the ledger entry. Looking for the clip.")
                if found := self._find(deferred):
                    return self._hand_over(found, context)
                return self._run(context)
        if found := self._find(deferred):
            return self._hand_over(found, context)
        raise self._not_understood(context)

    def _read_ledger(self) -> tuple[S3Location, Entry]:
        from airflow_provider_codegateway.hooks.storage import s3_client
        from airflow_provider_codegateway.ledger import Ledger, entry_location

        at = entry_location(clip_location(self.s3_key, self.s3_bucket), self.ledger_prefix)
        return at, Ledger(s3_client(self.ledger_conn_id or self.aws_conn_id), at).read()

    def _place_of_failure(self) -> dict[str, str]:
        try:
            target = clip_location(self.s3_key, self.s3_bucket)
        except InvalidRequest:
            return {}
        return {"bucket": target.bucket, "key": target.key}

    def _tell_what_was_bought_before(self, error: CodeGatewayError, context: Context) -> None:
        from airflow_provider_codegateway.ledger import money

        try:
            _, entry = self._read_ledger()
        except Exception:  # whatever it is, the error that is reported matters more
            error.bought = Bought.PERHAPS
            return
        if _is_of_task(entry, context):
            error.bought = money(entry)

    def _unknown_outcome(self, reason: str, context: Context) -> RenderOutcomeUnknown:
        """What became of a render whose trigger reported nothing of use: by the ledger, for nobody else can tell."""
        from airflow_provider_codegateway.ledger import describe_attempts, money

        try:
            at, entry = self._read_ledger()
        except Exception as unread:  # whatever it is, the deferral's end matters more
            why = unread.args[0] if isinstance(unread, CodeGatewayError) else type(unread).__name__
            return RenderOutcomeUnknown(f"{reason} The ledger could not be read: {why}")
        # What others began at this key is theirs.
        if not _is_of_task(entry, context):
            return RenderOutcomeUnknown(
                f"{reason} The ledger at {at.uri} has no render of this task: its clip is in S3, or at another key, or "
                "no render was begun."
            )
        return RenderOutcomeUnknown(
            f"{reason} The ledger at {at.uri} says: {describe_attempts(entry)} "
            "Run the task again: it fetches what was bought.",
            bought=money(entry),
        )

    def _defer(self, spec: ClipSpec) -> NoReturn:
        from airflow_provider_codegateway.triggers.video import RenderTrigger

        trigger = RenderTrigger(
            codegateway_conn_id=self.codegateway_conn_id,
            aws_conn_id=self.aws_conn_id,
            **spec.as_arguments(),
        )
        self.log.info("Rendering %s for %s. No worker slot is used.", spec.model, spec.target.uri)
        self._defer_to(trigger, {**self._to_remember(), "trigger": trigger.serialize()[1]})

    def _to_remember(self) -> dict[str, Any]:
        """See ``_defer_to``."""
        remembered: dict[str, Any] = {"inputs": self._inputs}
        if self.sidecar_key:
            remembered["requests"] = self._shown_requests
        return remembered

    def _resume(self, deferred: dict[str, Any]) -> None:
        self._inputs = deferred.get("inputs", [])
        self._shown_requests = deferred.get("requests", {})

    def _find(self, deferred: dict[str, Any]) -> Clip | None:
        """The clip that this task deferred for, if it is in place."""
        from airflow_provider_codegateway.triggers.video import RenderTrigger

        try:
            spec = RenderTrigger(**deferred["trigger"]).spec
        except (KeyError, TypeError):  # deferred by another version
            return None
        return self.hook.purchase(spec, s3=self._s3).find()

    def _requests(self) -> tuple[VideoRequest, ...]:
        """What is to be rendered, and the fallbacks: validated, and every image and video read. All of it for free."""
        if self._prompt_is_given and (self.prompt is None or self.prompt == ""):
            raise InvalidRequest(placeholder(self.prompt))
        arguments = {name: reveal(getattr(self, name)) for name in PORTABLE}
        requests = build_chain(self.model, reveal(self.fallbacks), **arguments)
        # Refused before an image is fetched in vain.
        checked_target(
            clip_location(self.s3_key, self.s3_bucket), self.ledger_prefix, self.s3_extra_args or {}
        )
        self._inputs = []

        def note(reference: str) -> None:
            if (uri := lineage.input_uri(reference)) and uri not in self._inputs:
                self._inputs.append(uri)

        return with_media(requests, self._s3, self.s3_extra_args or {}, on_read=note)

    def _hand_over(self, clip: Clip, context: Context) -> str:
        self.log.info("The clip is at %s (%s bytes).", clip.uri, f"{clip.bytes:,}")
        clip = self._put_beside(clip, context)
        if clip.fallback:
            passed = ", ".join(f"{each['model']}: {each['reason']}" for each in clip.fallback)
            self.log.warning("It was rendered by the fallback %s (%s).", clip.model, passed)
        self._clip = clip
        metrics.clip_delivered(clip)
        lineage.collect_hook_lineage(self, self._inputs, clip)
        # The connection too: Airflow keeps the rendered arguments of the last runs only.
        self._push("clip", {**clip.as_dict(), "aws_conn_id": self.aws_conn_id}, context)
        self._require_match(clip)
        lineage.add_asset_events(self.outlets, context, clip)
        return clip.key

    def _beside(self) -> Beside:
        """What is wanted beside the clip.

        :raises InvalidRequest: it cannot be had.
        """
        from airflow_provider_codegateway.facts import Beside

        return Beside.of(
            clip_location(self.s3_key, self.s3_bucket),
            poster_key=self.poster_key,
            last_frame_key=self.last_frame_key,
            sidecar_key=self.sidecar_key,
            looks_inside=self.check_content,
            ledger_prefix=self.ledger_prefix,
        )

    def _put_beside(self, clip: Clip, context: Context) -> Clip:
        from airflow_provider_codegateway.facts import put_beside

        try:
            beside = self._beside()
        except InvalidRequest as error:  # resumed on a worker where it cannot be had
            self.log.warning("The clip is stored without what was wanted beside it: %s", error.args[0])
            return clip
        return put_beside(
            self._s3,
            clip,
            beside,
            request=self._shown_requests.get(clip.model)
            or self._shown_requests.get(str(len(clip.fallback or ()))),
            asked_by=asdict(asker_of(context).task),
            upload_args=self.s3_extra_args or {},
            limits=self.hook.limits,
        )

    def _require_match(self, clip: Clip) -> None:
        """:raises ClipMismatch: the clip is not what was asked for, and that is to fail the task."""
        if clip.facts is None:
            self.log.warning("What %s measures could not be read: it was not compared.", clip.uri)
        if not clip.mismatches:
            return
        if self.on_mismatch == "fail":
            raise clip_mismatch(clip)
        self.log.warning("The clip at %s is not what was asked for. %s", clip.uri, " ".join(clip.mismatches))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """What the OpenLineage provider asks for when the task has succeeded."""
        return None if self._clip is None else lineage.openlineage(self._inputs, self._clip)


def _is_of_task(entry: Entry, context: Context) -> bool:
    """Whether a render of an entry was begun by this task."""
    asker = asker_of(context)
    return any(each.requester in (asker.requester, asker.former_requester) for each in entry.attempts)

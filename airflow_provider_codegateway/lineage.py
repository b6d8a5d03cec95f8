"""Where a clip comes from and where it goes: asset events, hook lineage, OpenLineage.

Nothing here holds the query of a URL, a user in it, or inline media.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_codegateway.clip import S3Location, split_uri
from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.inputs import describe

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_codegateway.clip import Clip

log = logging.getLogger(__name__)

# Printable ASCII but '?' and '#', where Airflow would cut. '%' stays: Airflow does not decode, and S3Hook's
# own lineage has keys as they are.
_KEPT = "".join(map(chr, range(0x21, 0x7F))).replace("?", "").replace("#", "")


def asset_uri(location: S3Location) -> str:
    """The URI of an object as an asset: ``s3://bucket/key``, with only what a URI cannot hold quoted."""
    return f"s3://{location.bucket}/{quote(location.key, safe=_KEPT + ' ')}"


def input_uri(reference: str) -> str | None:
    """The URI of an input image or video, without query and user. None for inline media, which have none."""
    if location := split_uri(reference.strip()):
        return asset_uri(location)
    shown = describe(reference)
    return quote(shown, safe=_KEPT + " ") if shown.startswith(("https://", "file://")) else None


def require_assets(outlets: Iterable[Any], target: S3Location) -> None:
    """Check that Airflow takes the clip as an asset, before it is bought.

    :raises InvalidRequest: there is an alias among the outlets, and Airflow refuses the URI that it would become.
    """
    from airflow.providers.common.compat.sdk import Asset, AssetAlias

    if any(isinstance(outlet, AssetAlias) for outlet in outlets):
        uri = asset_uri(target)
        try:
            Asset(uri)
        except ValueError as error:
            raise InvalidRequest(
                f"The clip's URI as an asset has {len(uri):,} characters, and Airflow refuses it ({error}). Choose a "
                "shorter s3_key, in ASCII, or no AssetAlias."
            ) from None


def add_asset_events(outlets: Collection[Any], context: Context, clip: Clip) -> None:
    """Give the events of the task's outlets the clip's facts, and resolve its aliases to the clip's URI.

    Airflow emits an event for each asset among the outlets when the task succeeds. What somebody else
    put into an event's extra stays.
    """
    from airflow.providers.common.compat.sdk import Asset, AssetAlias

    if outlets and "outlet_events" not in context:
        log.warning(
            "There are no asset events for %s: the operator was run without Airflow's context.", clip.uri
        )
        return
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            uri = asset_uri(S3Location(clip.bucket, clip.key))
            context["outlet_events"][outlet].add(Asset(uri), extra=_extra(clip.as_dict()))
        elif isinstance(outlet, (Asset, *_asset_references())):
            extra = context["outlet_events"][outlet].extra  # type: ignore[index]
            extra.update({**_extra(clip.as_dict()), **extra})


def add_batch_events(
    outlets: Collection[Any],
    context: Context,
    events: Iterable[tuple[S3Location, Mapping[str, Any]]],
    *,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Resolve the aliases among a batch's outlets, and give its other events the summary.

    :param events: what each alias becomes: an object, and the extra of its event.
    :param summary: the extra of the events of all other outlets; by default, that of the first alias event.
    """
    from airflow.providers.common.compat.sdk import Asset, AssetAlias

    if not outlets:
        return
    if "outlet_events" not in context:
        log.warning("There are no asset events: the operator was run without Airflow's context.")
        return
    aliases = [outlet for outlet in outlets if isinstance(outlet, AssetAlias)]
    for location, extra in events:
        summary = extra if summary is None else summary
        for alias in aliases:
            context["outlet_events"][alias].add(Asset(asset_uri(location)), extra=_extra(extra))
    for outlet in outlets:
        if isinstance(outlet, (Asset, *_asset_references())):
            own = context["outlet_events"][outlet].extra  # type: ignore[index]
            own.update({**_extra(summary or {}), **own})


def _extra(values: Mapping[str, Any]) -> dict[str, Any]:
    """The extra of an event. Before Airflow 3.1, an alias with lists or objects fails the task: they are JSON there."""
    from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS

    if AIRFLOW_V_3_1_PLUS:
        return dict(values)
    return {
        name: json.dumps(value) if isinstance(value, Mapping | list | tuple) else value
        for name, value in values.items()
    }


def _asset_references() -> tuple[type, ...]:
    try:
        from airflow.sdk.definitions.asset import AssetRef
    except ImportError:  # Airflow 2 has none
        return ()
    return (AssetRef,)


def collect_hook_lineage(operator: Any, inputs: Sequence[str], clip: Clip) -> None:
    """Tell Airflow's collector what was read and written, for whoever listens to it."""
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    try:
        collector = get_hook_lineage_collector()  # type: ignore[no-untyped-call]
        for uri in inputs:
            collector.add_input_asset(context=operator, uri=uri)
        collector.add_output_asset(context=operator, uri=asset_uri(S3Location(clip.bucket, clip.key)))
    except Exception:  # a clip is worth more than its lineage
        log.warning("The lineage of %s could not be collected.", clip.uri, exc_info=True)


def openlineage(inputs: Sequence[str], clip: Clip) -> OperatorLineage[Any, Any] | None:
    """What OpenLineage is told: the inputs, and the clip with size, format and version.

    The version is the request's fingerprint: the same request, the same version.

    :return: None where the OpenLineage provider is not installed.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from attr import define
        from openlineage.client.event_v2 import InputDataset, OutputDataset
        from openlineage.client.facet_v2 import (
            OutputDatasetFacet,
            dataset_version_dataset,
            output_statistics_output_dataset,
            storage_dataset,
        )
    except ImportError:
        return None

    @define
    class CodeGatewayCostOutputDatasetFacet(OutputDatasetFacet):
        """What the clip cost, as in the XCom ``clip``."""

        amount: str | None
        atMost: str | None
        currency: str
        assumed: list[str]

    @define
    class CodeGatewayFactsOutputDatasetFacet(OutputDatasetFacet):
        """What the clip measures, as in the XCom ``clip``."""

        width: int
        height: int
        duration: float | None
        fps: float | None
        codec: str
        audio: bool

    cost = {}
    if clip.cost is not None:
        cost["codegateway_cost"] = CodeGatewayCostOutputDatasetFacet(
            amount=clip.cost["amount"],
            atMost=clip.cost["at_most"],
            currency=clip.cost["currency"],
            assumed=list(clip.cost["assumed"]),
        )
    facts = {}
    if clip.facts is not None:
        facts["codegateway_facts"] = CodeGatewayFactsOutputDatasetFacet(**clip.facts)
    output = OutputDataset(
        namespace=f"s3://{clip.bucket}",
        name=clip.key,
        facets={
            "storage": storage_dataset.StorageDatasetFacet(storageLayer="s3", fileFormat="mp4"),
            "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=clip.fingerprint),
        },
        outputFacets={
            "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                size=clip.bytes, fileCount=1
            ),
            **cost,
            **facts,
        },
    )
    return OperatorLineage(
        inputs=[InputDataset(namespace=namespace, name=name) for namespace, name in map(_dataset, inputs)],
        outputs=[output],
    )


def _dataset(uri: str) -> tuple[str, str]:
    """Namespace and name, as OpenLineage names datasets."""
    scheme, _, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    return ("file", f"/{path}") if scheme == "file" else (f"{scheme}://{host}", path or "/")

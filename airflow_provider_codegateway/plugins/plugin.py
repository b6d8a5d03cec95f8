"""The plugin: tells Airflow of the pages.

Every process of Airflow loads it, by the entry point ``airflow.plugins``. So this module imports nothing of the
pages: a property does, when the API server asks. (The manifest's ``plugins`` would not do: Airflow reads that
only with ``[core] lazy_discover_providers = False``, takes the class instead of an instance, and reports the
entry point beside it as a duplicate.)
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.providers.common.compat.sdk import conf

from airflow_provider_codegateway.links import URL_PREFIX, BatchLink, ClipLink, clip_pages_enabled

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

log = logging.getLogger(__name__)


class CodeGatewayPlugin(AirflowPlugin):
    """The pages of a clip and of a batch, the gallery "CodeGateway clips" under Browse, and the links to the pages."""

    name = "codegateway"

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The app with the pages, for the API server."""
        if not clip_pages_enabled():
            return []
        try:
            from airflow_provider_codegateway.plugins.app import create_app

            app = create_app()
        except Exception:  # Airflow would not start its API server for it
            log.exception("The CodeGateway clip pages do not run with this version of Airflow.")
            return []
        return [{"app": app, "url_prefix": URL_PREFIX, "name": "CodeGateway clips"}]

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The entry in the menu."""
        if not self.fastapi_apps:
            return []
        # Airflow's UI takes this URL as it is.
        root = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
        return [
            {
                "name": "CodeGateway clips",
                "href": f"{root}{URL_PREFIX}/clips",
                "icon": f"{root}{URL_PREFIX}/static/icon.svg",
                "icon_dark_mode": f"{root}{URL_PREFIX}/static/icon-dark.svg",
                "url_route": "codegateway-clips",
                "destination": "nav",
                "category": "browse",
            }
        ]

    @cached_property
    def operator_extra_links(self) -> list[Any]:  # type: ignore[override]
        """The links, given by the API server: so they are there while the first try runs, too."""
        return [_ServedClipLink(), _ServedBatchLink()] if self.fastapi_apps else []


class _ServedClipLink(ClipLink):
    @property
    def operators(self) -> list[type[BaseOperator]]:  # type: ignore[override]
        from airflow_provider_codegateway.operators.video import GenerateVideoOperator

        return [GenerateVideoOperator]


class _ServedBatchLink(BatchLink):
    @property
    def operators(self) -> list[type[BaseOperator]]:  # type: ignore[override]
        from airflow_provider_codegateway.operators.videos import GenerateVideosOperator

        return [GenerateVideosOperator]

"""A real browser for the tests of the pages: Chromium, headless."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_pages import World
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000
"""Milliseconds after which a test gives up."""


@contextmanager
def browsing(
    browser: Browser, world: World, user: str, *, refused_media: bool = False, **options: Any
) -> Iterator[Page]:
    """A page of a browser in which the user is logged in. It may send requests to Airflow and S3 alone.

    :param refused_media: whether it may reach for videos that the page's policy does not name yet.
    """
    context = browser.new_context(base_url=world.url, **options)
    context.set_default_timeout(PATIENCE)
    context.add_cookies([{"name": "_token", "value": world.tokens[user], "url": world.url}])
    page = context.new_page()
    page_errors: list[str] = []
    violations: list[str] = []
    page.on("pageerror", lambda error: page_errors.append(str(error)))
    page.on("console", lambda message: violations.append(message.text) if "Policy" in message.text else None)
    yield page
    context.close()
    if refused_media:
        violations = [words for words in violations if "media-src" not in words]
    assert (page_errors, violations) == ([], [])

"""What axe-core finds on the pages, in light, in dark and on a phone: nothing serious."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow_run import AIRFLOW

if AIRFLOW < (3, 1):
    pytest.skip("Airflow before 3.1 has no room for the pages.", allow_module_level=True)

from clip_browser import browsing
from clip_pages import DAG_A, Copy, copy_tasks

axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed.")

if TYPE_CHECKING:
    from clip_pages import Catalogue, World
    from playwright.sync_api import Browser, Page

pytest_plugins = ("clip_world", "clip_browser")

VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
}


def require_accessible(page: Page) -> None:
    """By WCAG 2.2 AA, as far as a machine can tell; and nothing is wider than the window."""
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], each["help"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("view", VIEWS)
def test_the_pages_of_clips(view: str, browser: Browser, world: World) -> None:
    """A stored clip, a failed one, one under way, one that is gone; the gallery; the page of a refusal."""
    clip = {**world.clips[DAG_A], "key": "gone.mp4"}
    copy_tasks(
        DAG_A,
        [
            Copy(map_index=940, clip=..., task={"state": "failed"}),
            Copy(map_index=941, clip=..., task={"state": "running"}),
            Copy(map_index=942, clip=clip, rendered={"s3_key": "gone.mp4"}),
        ],
    )
    with browsing(browser, world, "anna", **VIEWS[view]) as page:
        for map_index in ("-1", "940", "941", "942"):
            page.goto(f"{world.page(DAG_A).removesuffix('-1')}{map_index}")
            page.locator("#tries .state").wait_for()
            if map_index == "942":
                page.get_by_role("button", name="Play the clip").click()
                page.get_by_role("alert").get_by_text("The clip is no longer in S3").wait_for()
            require_accessible(page)
        page.goto("/codegateway/clips")
        page.locator(".tile").first.wait_for()
        require_accessible(page)
    with browsing(browser, world, "nora", **VIEWS[view]) as page:
        page.goto(world.page(DAG_A))
        require_accessible(page)


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_of_a_batch(view: str, browser: Browser, catalogue: Catalogue) -> None:
    """What failed comes first; by the keyboard alone one chooses rows, loads more of them and plays a clip."""
    with browsing(browser, catalogue.world, "admin", **VIEWS[view]) as page:
        page.goto("/codegateway/clips")
        page.get_by_text("Batch videos").click()
        page.locator("#rows").get_by_text("RequestRejected").wait_for()
        assert page.locator("#rows tr").count() == 1
        require_accessible(page)
        page.get_by_label("Status").focus()
        page.keyboard.press("Home")
        page.get_by_role("button", name="More rows").wait_for()
        assert page.locator("#rows tr").count() == 50
        page.get_by_role("button", name="More rows").focus()
        page.keyboard.press("Enter")
        page.locator("#rows tr").nth(99).wait_for()
        page.get_by_label("Id, key or error").fill("sku-7.mp4")
        page.keyboard.press("Enter")
        play = page.get_by_role("button", name="Play sku-7", exact=True)
        play.wait_for()
        play.focus()
        page.keyboard.press("Enter")
        page.locator("#player h2").get_by_text("sku-7").wait_for()
        page.wait_for_function("document.activeElement.id === 'video'")
        require_accessible(page)

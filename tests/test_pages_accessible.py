"""What axe-core finds on the pages, in light, in dark and on a phone: nothing serious. And the keyboard suffices."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from airflow_run import AIRFLOW

if AIRFLOW < (3, 1):
    pytest.skip("Airflow before 3.1 has no room for the pages.", allow_module_level=True)

from clip_browser import browsing
from clip_pages import BATCH_ROWS, DAG_A, Copy, copy_tasks

axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed.")

if TYPE_CHECKING:
    from clip_pages import Catalogue, World
    from playwright.sync_api import Browser, Page, Route

pytest_plugins = ("clip_world",)

VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
}
LONG_KEY = "campaigns/spring-summer-2027/product-catalogue/umbrella-yellow-large-v2-final.mp4"


def require_accessible(page: Page) -> None:
    """By WCAG 2.2 AA, as far as a machine can tell; and nothing is wider than the window."""
    # With its own style sheets: a transition would be caught half way.
    page.emulate_media(reduced_motion="reduce")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], each["help"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("view", VIEWS)
def test_the_pages_of_clips(view: str, browser: Browser, world: World) -> None:
    """A stored clip, a failed one, one under way, one that is gone; the gallery; the page of a refusal."""
    clip = {**world.clips[DAG_A], "key": LONG_KEY}
    copy_tasks(
        DAG_A,
        [
            Copy(map_index=940, clip=..., task={"state": "failed"}),
            Copy(map_index=941, clip=..., task={"state": "running"}),
            Copy(map_index=942, clip=clip, rendered={"s3_key": LONG_KEY}),
        ],
    )
    with browsing(browser, world, "anna", **VIEWS[view]) as page:
        for map_index in ("-1", "940", "941", "942"):
            page.goto(f"{world.page(DAG_A).removesuffix('-1')}{map_index}")
            page.locator("#tries .state").wait_for()
            if map_index == "942":
                page.get_by_text("Technical").click()
                page.get_by_role("button", name="Play the clip").click()
                page.get_by_role("alert").get_by_text("The clip is no longer in S3").wait_for()
            require_accessible(page)
        page.goto("/codegateway/clips")
        page.locator(".tile").first.wait_for()
        require_accessible(page)
    with browsing(browser, world, "nora", **VIEWS[view]) as page:
        page.goto(world.page(DAG_A))
        require_accessible(page)


@pytest.mark.usefixtures("copies")
def test_keys_break_between_words(browser: Browser, world: World) -> None:
    """On a phone a long key goes on in the next line after a separator, and not within a word."""
    clip = {**world.clips[DAG_A], "key": LONG_KEY}
    copy_tasks(DAG_A, [Copy(map_index=942, clip=clip, rendered={"s3_key": LONG_KEY})])
    with browsing(browser, world, "anna", **VIEWS["phone"]) as page:
        page.goto(f"{world.page(DAG_A).removesuffix('-1')}942")
        code = page.locator("#facts code")
        code.wait_for()
        lines = code.evaluate(
            """code => {
                const lines = [];
                let top = null;
                for (const node of code.childNodes) {
                    for (let at = 0; at < (node.data ?? "").length; at += 1) {
                        const range = document.createRange();
                        range.setStart(node, at);
                        range.setEnd(node, at + 1);
                        const next = range.getBoundingClientRect().top;
                        if (top === null || Math.abs(next - top) > 2) lines.push("");
                        top = next;
                        lines[lines.length - 1] += node.data[at];
                    }
                }
                return lines;
            }"""
        )
        assert "".join(lines).endswith(LONG_KEY)
        assert len(lines) > 1
        assert [line for line in lines[:-1] if line[-1] not in "/_=-"] == []


@pytest.mark.parametrize("view", VIEWS)
def test_the_pages_of_a_batch(view: str, browser: Browser, catalogue: Catalogue) -> None:
    """The rows without a clip come first; a row's own page, with and without a clip; the page of a refusal."""
    with browsing(browser, catalogue.world, "admin", **VIEWS[view]) as page:
        page.goto("/codegateway/clips")
        page.get_by_text("Batch videos").click()
        page.locator("#rows").get_by_text("RequestRejected").wait_for()
        assert page.locator("#rows tr").count() == 1
        require_accessible(page)
        page.locator("#rows a").click()
        page.locator("#why").get_by_text("RequestRejected").wait_for()
        require_accessible(page)
        page.get_by_role("link", name="Batch").click()
        page.get_by_label("Status").select_option("stored")
        page.locator("#rows tr").nth(49).wait_for()
        require_accessible(page)
        page.locator("#rows a").first.click()
        page.get_by_role("button", name="Play the clip").wait_for()
        require_accessible(page)
    with browsing(browser, catalogue.world, "nora", **VIEWS[view]) as page:
        page.goto(f"/codegateway/batch?{catalogue.query}")
        page.get_by_role("heading", name="Nothing to see here").wait_for()
        require_accessible(page)


@pytest.mark.usefixtures("under_way")
@pytest.mark.parametrize("view", VIEWS)
def test_the_page_of_a_batch_under_way(view: str, browser: Browser, catalogue: Catalogue) -> None:
    """It says how far it is, and since when."""
    with browsing(browser, catalogue.world, "admin", **VIEWS[view]) as page:
        page.goto(f"/codegateway/batch?{catalogue.query}")
        page.locator("#progress-words").get_by_text("As of").wait_for()
        assert page.locator("progress").evaluate("bar => [bar.value, bar.max]") == [41, 120]
        assert "71" in page.locator("#counts").inner_text()
        require_accessible(page)


def test_a_batch_by_the_keyboard(browser: Browser, catalogue: Catalogue) -> None:
    """By the keyboard alone one chooses rows, loads more of them, plays a clip, and opens its page."""
    with browsing(browser, catalogue.world, "admin") as page:
        page.goto(f"/codegateway/batch?{catalogue.query}")
        page.locator("#rows tr").wait_for()
        page.get_by_label("Status").focus()
        page.keyboard.press("Home")
        page.locator("#rows tr").nth(49).wait_for()
        for shown, more in ((50, 100), (100, BATCH_ROWS)):
            page.get_by_role("button", name="More rows").focus()
            page.keyboard.press("Enter")
            page.locator("#rows tr").nth(more - 1).wait_for()
            # On the first of the new rows: the button is below them by now, or gone.
            page.locator(f"#rows tr:nth-child({shown + 1}) a:focus").wait_for()
        page.get_by_label("Id, key or error").fill("sku-7.mp4")
        page.keyboard.press("Enter")
        page.locator("#rows-shown").get_by_text("1 row shown.").wait_for()
        page.get_by_role("button", name="Play sku-7", exact=True).focus()
        page.keyboard.press("Enter")
        page.locator("#player h2").get_by_text("sku-7").wait_for()
        page.locator("#video:focus").wait_for()
        page.locator("#rows a").focus()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="sku-7").wait_for()


def test_focus_is_seen_wherever_it_goes(browser: Browser, catalogue: Catalogue) -> None:
    """Tab reaches everything that can be used, from the first to the last, and each looks different with the focus."""
    with browsing(browser, catalogue.world, "admin") as page:
        for path in ("clips", f"batch?{catalogue.query}"):
            page.goto(f"/codegateway/{path}")
            page.locator(".tile, #rows tr").first.wait_for()
            page.wait_for_load_state("networkidle")
            usable = page.locator("a:visible, button:visible, select:visible, input:visible, summary:visible")
            count = usable.count()
            reached: set[str] = set()
            for _ in range(2 * count):
                page.keyboard.press("Tab")
                at = page.evaluate(
                    """() => {
                        const style = getComputedStyle(document.activeElement);
                        const all = [...document.querySelectorAll("a, button, select, input, summary")];
                        return [all.indexOf(document.activeElement), style.outlineStyle, style.outlineWidth];
                    }"""
                )
                if at[0] < 0:
                    continue
                assert at[1:] == ["solid", "3px"], page.evaluate("document.activeElement.outerHTML")
                reached.add(at[0])
                if len(reached) == count:
                    break
            assert len(reached) == count


def test_choice_in_the_gallery_keeps_the_focus(browser: Browser, catalogue: Catalogue) -> None:
    """Who chooses by the keyboard goes on where they were, though the page is loaded anew."""
    with browsing(browser, catalogue.world, "admin") as page:
        page.goto("/codegateway/clips")
        page.get_by_label("State").focus()
        page.keyboard.press("ArrowDown")
        page.wait_for_url("**/clips?state=success")
        page.locator("#state:focus").wait_for()


def test_dates_are_those_of_airflow(browser: Browser, catalogue: Catalogue) -> None:
    """In the form of Airflow's UI, and in the time zone that its viewer chose there."""
    with browsing(browser, catalogue.world, "admin", timezone_id="UTC") as page:
        page.goto(f"/codegateway/batch?{catalogue.query}")
        page.locator("#facts time").wait_for()
        iso = page.locator("#facts time").get_attribute("datetime")
        assert iso is not None
        assert page.locator("#facts time").inner_text() == iso[:19].replace("T", " ")
        page.evaluate("localStorage.setItem('timezone', JSON.stringify('Asia/Kolkata'))")
        page.reload()
        page.locator("#facts time").wait_for()
        local = datetime.fromisoformat(iso).astimezone(ZoneInfo("Asia/Kolkata"))
        assert page.locator("#facts time").inner_text() == local.strftime("%Y-%m-%d %H:%M:%S")
        page.evaluate("localStorage.setItem('timezone', 'no zone')")
        page.reload()
        page.locator("#facts time").wait_for()


def test_long_manifest_is_looked_through(browser: Browser, catalogue: Catalogue) -> None:
    """A search goes on by itself through the parts of a manifest; what was chosen last is what is shown."""
    with browsing(browser, catalogue.world, "admin") as page:
        asked: list[str] = []

        def in_parts(route: Route) -> None:
            asked.append(route.request.url)
            if "sku-9" in route.request.url and "at=0" in route.request.url:
                route.fulfill(json={"rows": [], "next": 1})
            else:
                route.continue_()

        page.route("**/api/batch/rows?*", in_parts)
        page.goto(f"/codegateway/batch?{catalogue.query}")
        page.locator("#rows tr").wait_for()
        page.get_by_label("Status").select_option("stored")
        page.locator("#rows-shown").get_by_text("50 rows shown").wait_for()
        page.get_by_label("Id, key or error").fill("sku-9.mp4")
        page.keyboard.press("Enter")
        page.locator("#rows-shown").get_by_text("1 row shown.").wait_for()
        assert page.locator("#rows a").inner_text() == "sku-9"
        assert any("at=1" in url for url in asked)


def test_clip_is_downloaded(browser: Browser, catalogue: Catalogue) -> None:
    """Also within Airflow's own frame, the button saves the clip under its name."""
    [row] = catalogue.get("api/batch/rows", words="sku-7.mp4").json()["rows"]
    with browsing(browser, catalogue.world, "admin") as page:
        page.goto("/")
        page.get_by_role("button", name="Browse").click()
        page.get_by_text("CodeGateway clips").click()
        frame = page.frame_locator("iframe")
        frame.get_by_text("Batch videos").click()
        frame.get_by_label("Status").select_option("stored")
        frame.get_by_role("link", name="sku-7", exact=True).click()
        with page.expect_download() as download:
            frame.get_by_role("button", name="Download").click()
        assert download.value.suggested_filename == "sku-7.mp4"
        assert download.value.path().read_bytes() == catalogue.clip
        assert row["has_clip"]


def test_link_of_the_batch(browser: Browser, catalogue: Catalogue) -> None:
    """In Airflow's UI the task has a link "Batch", which leads to its page."""
    task = catalogue.task
    with browsing(browser, catalogue.world, "admin") as page:
        page.goto(f"/dags/{task['dag_id']}/runs/{task['run_id']}/tasks/{task['task_id']}/details")
        link = page.get_by_role("link", name="Batch", exact=True)
        link.wait_for()
        link.evaluate("link => link.target = '_self'")  # Airflow 3.1 opens a tab of its own
        link.click()
        page.locator("#rows").get_by_text("RequestRejected").wait_for()

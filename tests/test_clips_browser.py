"""The pages in a real browser: Chromium, headless."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow_run import AIRFLOW

if AIRFLOW < (3, 1):
    pytest.skip("Airflow before 3.1 has no room for the pages.", allow_module_level=True)

from clip_browser import browsing
from clip_pages import DAG_A, DAG_B, PROMPT_A, SECRET, Copy, copy_tasks, set_state

if TYPE_CHECKING:
    from clip_pages import World
    from playwright.sync_api import Browser, Locator, Page, Route

pytest_plugins = ("clip_world",)


def wait_until_it_plays(video: Locator) -> None:
    video.evaluate(
        """video => new Promise(done => {
            const check = () => video.currentTime > 0.5 && done();
            video.addEventListener("timeupdate", check);
            check();
        })"""
    )


def test_clip_plays(browser: Browser, world: World) -> None:
    """A click plays the clip, straight from S3; before the click S3 is not asked for anything."""
    with browsing(browser, world, "anna") as page:
        hosts: list[str] = []
        page.on("request", lambda request: hosts.append(request.url.split("/")[2]))
        page.goto(world.page(DAG_A))
        page.get_by_text(PROMPT_A).wait_for()
        assert {f"http://{host}" for host in hosts} == {world.url}
        page.get_by_role("button", name="Play the clip").click()
        wait_until_it_plays(page.locator("video"))
        assert {f"http://{host}" for host in hosts} == {world.url, world.s3_endpoint}


def test_focus_is_seen_on_the_button(browser: Browser, world: World) -> None:
    """The ring is over the picture, not below it."""
    with browsing(browser, world, "anna") as page:
        page.goto(world.page(DAG_A))
        button = page.get_by_role("button", name="Play the clip")
        button.wait_for()
        before = button.screenshot()
        while page.evaluate("document.activeElement.id") != "play":
            page.keyboard.press("Tab")
        assert button.screenshot() != before


@pytest.mark.parametrize(
    ("status", "words"),
    [(None, "Airflow did not answer"), (401, "You are logged out"), (403, "Nothing to see here")],
)
def test_play_without_an_answer_says_why(
    browser: Browser, world: World, status: int | None, words: str
) -> None:
    """A click is never without effect: also if Airflow cannot be reached, or the login has ended."""
    with browsing(browser, world, "anna") as page:
        page.goto(world.page(DAG_A))
        page.route(
            "**/api/link?*", lambda it: it.abort() if status is None else it.fulfill(status=status, json={})
        )
        page.get_by_role("button", name="Play the clip").click()
        page.get_by_role("alert").get_by_text(words).wait_for()


def test_filter_stays_when_its_choices_do_not_come(browser: Browser, world: World) -> None:
    """What the list is narrowed to can be seen, and is kept by the button, also without an answer."""
    with browsing(browser, world, "anna") as page:
        page.route("**/api/filters?*", lambda it: it.abort())
        page.goto(f"/codegateway/clips?dag_id={DAG_A}")
        page.get_by_role("link", name=PROMPT_A).wait_for()
        assert page.get_by_label("DAG").input_value() == DAG_A
        page.get_by_label("Still frames").check()
        page.wait_for_url(f"**/codegateway/clips?dag_id={DAG_A}&stills=true")


def test_keyboard_suffices(browser: Browser, world: World) -> None:
    """Tab and Enter start the clip, Space stops it, and the focus is where one sees it."""
    with browsing(browser, world, "anna") as page:
        page.goto(world.page(DAG_A))
        page.get_by_role("button", name="Play the clip").wait_for()
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "play":
                break
        page.keyboard.press("Enter")
        video = page.locator("video")
        wait_until_it_plays(video)
        assert page.evaluate("document.activeElement.id") == "video"
        page.keyboard.press("Space")
        assert video.evaluate("video => video.paused")


@pytest.mark.parametrize("user", ["ben", "nora"])
def test_viewer_without_access_is_refused(browser: Browser, world: World, user: str) -> None:
    """Who may not read the DAG's XComs gets a 403, in words, without a player."""
    with browsing(browser, world, user) as page:
        answer = page.goto(world.page(DAG_A))
        assert answer is not None
        assert answer.status == 403
        assert page.get_by_role("heading").inner_text() == "Nothing to see here"
        assert page.locator("video").count() == 0


def test_gallery_shows_what_one_may_read(browser: Browser, world: World) -> None:
    """Anna's gallery has the clip of DAG A, which leads to its page, and no word of DAG B."""
    with browsing(browser, world, "anna") as page:
        page.goto("/codegateway/clips")
        page.get_by_role("link", name=PROMPT_A).wait_for()
        page.get_by_label("DAG").locator("option", has_text=DAG_A).wait_for(state="attached")
        assert SECRET not in page.content()
        page.get_by_role("link", name=PROMPT_A).press("Enter")
        page.get_by_role("button", name="Play the clip").wait_for()


def test_gallery_is_filtered(browser: Browser, world: World) -> None:
    """Choosing a DAG shows that DAG's clips at once, and the address says so."""
    with browsing(browser, world, "admin") as page:
        page.goto("/codegateway/clips")
        page.locator(".tile").nth(1).wait_for()
        page.get_by_label("DAG").locator("option", has_text=DAG_B).wait_for(state="attached")
        page.get_by_label("DAG").select_option(DAG_B)
        page.wait_for_url(f"**/codegateway/clips?dag_id={DAG_B}")
        page.get_by_role("link", name=SECRET).wait_for()
        assert page.locator(".tile").count() == 1


def test_still_frames_on_demand(browser: Browser, world: World) -> None:
    """Still frames are shown only if asked for, and do not play."""
    with browsing(browser, world, "anna", refused_media=True) as page:
        page.goto("/codegateway/clips")
        page.locator(".tile").wait_for()
        assert page.locator("video").count() == 0
        page.get_by_label("Still frames").click()  # not `check`: the page is another one before it can look
        page.locator(".has-still video").wait_for()
        assert page.locator("video").evaluate("video => video.paused")


@pytest.mark.parametrize("times", [1, 1000])
def test_gallery_sent_before_its_origins_reloads_once(browser: Browser, world: World, times: int) -> None:
    """A gallery whose policy names no S3 yet is asked for once more, and shows its frames if that knows better."""

    def send_early(route: Route) -> None:
        answer = route.fetch()
        policy = re.sub("media-src [^;]+", "media-src 'none'", answer.headers["content-security-policy"])
        route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": policy})

    with browsing(browser, world, "anna", refused_media=True) as page:
        asked: list[str] = []
        page.on("request", lambda it: asked.append(it.url) if it.is_navigation_request() else None)
        page.route("**/clips?stills=true", send_early, times=times)
        refused = itertools.count(1)
        if times == 1:
            page.goto("/codegateway/clips?stills=true")
            page.locator(".has-still video").wait_for()
        else:
            with page.expect_console_message(lambda it: "media-src" in it.text and next(refused) == 2):
                page.goto("/codegateway/clips?stills=true")
            page.wait_for_load_state("networkidle")
        assert len(asked) == 2


@pytest.mark.usefixtures("copies")
def test_text_of_strangers_stays_text(browser: Browser, world: World) -> None:
    """Markup in a prompt or a model's name is shown as it was written, on both pages."""
    markup = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    clip = {**world.clips[DAG_A], "model": markup}
    copy_tasks(DAG_A, [Copy(map_index=900, clip=clip, rendered={"prompt": markup})])
    with browsing(browser, world, "anna") as page:
        for path in (f"{world.page(DAG_A).removesuffix('-1')}900", "/codegateway/clips"):
            page.goto(path)
            page.locator("main").get_by_text(markup).first.wait_for()
            assert page.title() != "owned"
            assert page.locator("main img, main script").count() == 0


@pytest.mark.usefixtures("copies")
def test_clip_that_is_gone(browser: Browser, world: World) -> None:
    """A click on a clip that is gone from S3 says so, where a screen reader hears it."""
    clip = {**world.clips[DAG_A], "key": "gone.mp4"}
    copy_tasks(DAG_A, [Copy(map_index=901, clip=clip, rendered={"s3_key": "gone.mp4"})])
    with browsing(browser, world, "anna") as page:
        page.goto(f"{world.page(DAG_A).removesuffix('-1')}901")
        page.get_by_role("button", name="Play the clip").click()
        page.get_by_role("alert").get_by_text("The clip is no longer in S3").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system(browser: Browser, world: World, scheme: Any) -> None:
    """Outside of Airflow's UI the page is light or dark as the system is."""
    with browsing(browser, world, "anna", color_scheme=scheme) as page:
        page.goto("/codegateway/clips")
        assert page.locator("html").get_attribute("data-theme") == scheme


# The text nodes that one sees: their colour, and what is painted under them.
CONTRASTS = """() => {
    const parse = (color) => {
        const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
        return { rgb: [r, g, b], alpha: a / 255 };
    };
    const luminance = (rgb) => {
        const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = rgb.map((byte) => linear(byte / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const { rgb, alpha } = parse(getComputedStyle(at).backgroundColor);
            if (alpha === 1) return rgb;
            if (alpha > 0) throw new Error(`half transparent: ${at.className}`);
        }
        return [255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
        const [text, under] = [parse(getComputedStyle(element).color).rgb, ground(element)].map(luminance);
        const ratio = (Math.max(text, under) + 0.05) / (Math.min(text, under) + 0.05);
        found.push([walker.currentNode.data.trim(), ratio]);
    }
    return found;
}"""


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(browser: Browser, world: World, scheme: Any) -> None:
    """Every text on both pages has the contrast to its ground that WCAG asks for (AA, 4.5:1), light and dark."""
    states = ["success", "failed", "running", "skipped"]
    clip = {**world.clips[DAG_A], "key": "gone.mp4"}
    copy_tasks(
        DAG_A,
        [Copy(map_index=910 + n, clip=..., task={"state": state}) for n, state in enumerate(states)]
        + [Copy(map_index=920, clip=clip, rendered={"s3_key": "gone.mp4"})],
    )
    with browsing(browser, world, "anna", color_scheme=scheme) as page:
        for map_index in ("-1", "910", "911", "912", "913", "920"):
            page.goto(f"{world.page(DAG_A).removesuffix('-1')}{map_index}")
            page.locator("#tries .state").wait_for()
            if map_index == "920":
                page.get_by_role("button", name="Play the clip").click()
                page.get_by_role("alert").get_by_text("The clip is no longer in S3").wait_for()
            require_contrast(page)
        page.goto("/codegateway/clips")
        page.locator(".tile").first.wait_for()
        require_contrast(page)


def require_contrast(page: Page) -> None:
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 5
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []


@pytest.mark.usefixtures("copies")
def test_waiting_page_keeps_the_focus_and_ends_with_the_login(browser: Browser, world: World) -> None:
    """A page that waits for its clip takes no focus away, and asks no more once its viewer is logged out."""
    copy_tasks(DAG_A, [Copy(map_index=930, clip=..., task={"state": "running"})])
    with browsing(browser, world, "anna") as page:
        page.clock.install()
        page.goto(f"{world.page(DAG_A).removesuffix('-1')}930")
        link = page.locator("#task").get_by_role("link", name="render", exact=True)
        link.focus()
        with page.expect_response("**/api/clip?*"):
            page.clock.run_for(5_000)
        page.locator("a:focus", has_text="render").wait_for()
        page.context.clear_cookies()
        with page.expect_response("**/api/clip?*") as refused:
            page.clock.run_for(5_000)
        assert refused.value.status == 401
        page.get_by_role("heading", name="You are logged out").wait_for()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.clock.run_for(60_000)
        assert asked == []


@pytest.mark.usefixtures("copies")
def test_what_is_under_way_shows_for_how_long_and_the_gallery_when_it_ends(
    browser: Browser, world: World
) -> None:
    """Without a reload, and not while somebody's focus is among the cards."""
    begun = datetime.now(UTC) - timedelta(seconds=90)
    running = {"state": "running", "start_date": begun, "end_date": None}
    copy_tasks(DAG_A, [Copy(map_index=932, clip=..., task=running)])
    with browsing(browser, world, "anna") as page:
        page.clock.install()
        page.goto(f"{world.page(DAG_A).removesuffix('-1')}932")
        page.locator(
            "strong", has_text=re.compile(r"Rendering for (9\d\.\d\u00a0s|\d min \d+ s)\.")
        ).wait_for()
        page.goto(f"/codegateway/clips?dag_id={DAG_A}")
        card = page.locator(".tile", has=page.locator("[data-state=running]"))
        card.focus()
        set_state(DAG_A, 932, "failed")
        page.clock.run_for(5_000)
        assert card.is_visible()
        card.blur()
        page.clock.run_for(5_000)
        page.locator(".tile [data-state=failed]").wait_for()
        assert card.count() == 0


FAILURE = {
    "class": "ClipMismatch",
    "message": "It lasts 2 s, not 4 s. It is kept.",
    "bought": "One render was bought.",
    "cost": {"amount": "0.90", "at_most": "0.90", "currency": "USD"},
}


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("clip", [None, ...], ids=["with a clip", "without"])
def test_a_failure_says_first_why_and_what_was_paid(clip: Any, browser: Browser, world: World) -> None:
    """On its card, in the sum above the cards, and on its page, also if there is a clip."""
    copy_tasks(DAG_A, [Copy(map_index=931, clip=clip, error=FAILURE, task={"state": "failed"})])
    with browsing(browser, world, "anna") as page:
        page.goto("/codegateway/clips?state=failed")
        card = page.locator(".tile", has_text="ClipMismatch: It lasts 2 s, not 4 s.")
        card.get_by_text("One render was bought: 0.90\u00a0USD.").wait_for()
        if clip is ...:
            page.locator("#totals", has_text="1 task on this page cost 0.90 USD.").wait_for()
        card.click()
        why = page.locator("#why")
        why.get_by_text("It lasts 2 s, not 4 s. It is kept.").wait_for()
        why.get_by_text("One render was bought: 0.90\u00a0USD.").wait_for()
        why.get_by_role("link", name="Log of try").wait_for()
        assert page.get_by_role("button", name="Play the clip").is_visible() == (clip is None)
        trail = page.get_by_role("navigation", name="Breadcrumb")
        assert trail.get_by_role("link").all_inner_texts()[:2] == ["Airflow", DAG_A]


@pytest.mark.usefixtures("copies")
def test_a_long_prompt_unfolds(browser: Browser, world: World) -> None:
    """What the clip cost and its buttons stay in sight; a short prompt has nothing to unfold."""
    prompt = "A yellow umbrella opens in the rain. " * 60
    copy_tasks(DAG_A, [Copy(map_index=932, rendered={"prompt": prompt})])
    with browsing(browser, world, "anna") as page:
        page.goto(f"{world.page(DAG_A).removesuffix('-1')}932")
        page.get_by_role("button", name="Show all").wait_for()
        folded = page.locator("#prompt").bounding_box()
        page.get_by_role("button", name="Show all").press("Enter")
        page.get_by_role("button", name="Show less", expanded=True).wait_for()
        unfolded = page.locator("#prompt").bounding_box()
        assert folded is not None
        assert unfolded is not None
        assert unfolded["height"] > 2 * folded["height"]
        page.goto(world.page(DAG_A))
        page.locator("#tries .state").wait_for()
        assert page.locator("#unfold").is_hidden()


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize(
    "odd", [{"cost": {"amount": "many", "currency": "USD"}}, {"facts": {"duration": "long"}}]
)
def test_one_odd_clip_does_not_take_the_gallery_away(odd: Any, browser: Browser, world: World) -> None:
    """Whoever may write XComs may write anything: what is no number is not shown."""
    copy_tasks(DAG_A, [Copy(map_index=933, clip={**world.clips[DAG_A], **odd})])
    with browsing(browser, world, "anna") as page:
        page.goto("/codegateway/clips")
        page.locator(".tile").nth(1).wait_for()


def test_gallery_in_airflow(browser: Browser, world: World) -> None:
    """Under Browse in Airflow's own UI: the gallery, the clip, which plays there, its theme, and the way back."""
    with browsing(browser, world, "anna", color_scheme="light") as page:
        page.goto("/")
        page.get_by_role("button", name="Browse").click()
        page.get_by_text("CodeGateway clips").click()
        gallery = page.frame_locator("iframe")
        gallery.get_by_role("link", name=PROMPT_A).last.click()
        gallery.get_by_role("button", name="Play the clip").click()
        wait_until_it_plays(gallery.locator("video"))
        page.evaluate("document.documentElement.className = 'dark'")
        gallery.locator("html[data-theme=dark]").wait_for()
        gallery.locator("#task").get_by_role("link", name="render", exact=True).click()
        page.wait_for_url("**/dags/dag_a/runs/**/tasks/render")


def test_link_of_the_task(browser: Browser, world: World) -> None:
    """In Airflow's UI the task has a link "Clip", which leads to its page."""
    task = world.task(DAG_A)
    with browsing(browser, world, "anna") as page:
        page.goto(f"/dags/{DAG_A}/runs/{task['run_id']}/tasks/render/details")
        link = page.get_by_role("link", name="Clip", exact=True)
        link.wait_for()
        link.evaluate("link => link.target = '_self'")  # Airflow 3.1 opens a tab of its own
        link.click()
        page.get_by_text(PROMPT_A).wait_for()

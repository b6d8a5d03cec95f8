"""The pictures of docs/screenshots, taken of a running Airflow by an installed Chromium: ``make screenshots``.

Airflow, S3 and the gateway are those of ``make up``: all on loopback, and nothing is spent.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

import av
import av.filter
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import expect, sync_playwright

from airflow_provider_codegateway.emulator import Fault
from airflow_provider_codegateway.emulator.emulator import DEFAULT_API_KEY
from airflow_provider_codegateway.emulator.remote import RemoteEmulator
from demo.airflow_server import AirflowServer
from demo.postgres import postgres
from demo.sandbox import BUCKET, PRICES, PROJECT, Sandbox, SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Literal

    from playwright.sync_api import Browser, Locator, Page

    Theme = Literal["light", "dark"]

HOME = PROJECT / ".airflow" / "screenshots"
PICTURES = PROJECT / "docs" / "screenshots"
WIDTH, HEIGHT = 1280, 800
"""Of a picture, in pixels."""
LIST_HEIGHT, FORM_HEIGHT, GALLERY_HEIGHT, BATCH_HEIGHT = 580, 1400, 1900, 1060
"""So that all of the form or the gallery is to be seen, and of a list no more than there is, or is of use."""
PATIENCE = 300_000
"""Milliseconds after which a step is given up."""
RENDER_SECONDS = 1.0

CONNECTION, CONNECTION_VARIABLE = "codegateway_default", "AIRFLOW_CONN_CODEGATEWAY_DEFAULT"
PIPELINE, FIRST_CLIP, CATALOGUE = (
    "codegateway_marketing_pipeline",
    "codegateway_first_clip",
    "codegateway_catalogue",
)
# The run's id is in some of the pictures.
RUN = "spring-campaign"
PRODUCTS = {
    "teapot": ("A red enamel teapot pours steaming tea, the camera moves closer.", "1:1"),
    "mug": ("A stoneware mug turns slowly on a potter's wheel, wet clay shines.", "9:16"),
    "lamp": ("A paper lamp lights up in a dark room, dust floats in its glow.", "16:9"),
    "bag": ("A canvas bag swings from the handlebar of a bicycle in summer light.", "21:9"),
    "umbrella": ("A yellow umbrella opens in the rain, drops run off it in slow motion.", "16:9"),
    "kettle": ("A copper kettle begins to whistle on a gas stove, early morning.", "4:3"),
    "scarf": ("A woollen scarf flies in the wind above a grey sea.", "16:9"),
    "knife": ("A kitchen knife slices a tomato, close to the board, very sharp light.", "16:9"),
    "chair": ("A bentwood chair turns in an empty studio, its shadow follows.", "1:1"),
    "clock": ("A wall clock swings its pendulum, the light of a whole day passes over it.", "9:16"),
    "boots": ("Rubber boots jump into a puddle, the splash hangs in the air.", "16:9"),
    "candle": ("A candle is lit and smoke rises in front of a dark window.", "3:4"),
    "bowl": ("Oranges roll into a wooden bowl, one after the other.", "16:9"),
    "pen": ("A fountain pen writes a line of blue ink, macro shot of the nib.", "16:9"),
    "blanket": ("A linen blanket is spread on a meadow and settles slowly.", "4:3"),
    "radio": ("The dial of an old radio glows and turns, a cat listens beside it.", "16:9"),
    "skates": ("Ice skates draw a long curve on a frozen lake, seen from above.", "16:9"),
    "pan": ("An iron pan tosses pancakes, the last one lands on its edge.", "1:1"),
    "globe": ("A globe spins and stops at an island, a finger points to it.", "16:9"),
    "kite": ("A paper kite climbs above the dunes, the camera follows it into the sun.", "16:9"),
}
"""Of the pipeline, each a clip: its prompt and aspect ratio."""


def main() -> int:
    """Take all of them anew; the old ones stay where one fails."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print(
            "No Chromium is installed: install one, or name one as in CHROMIUM=/opt/chrome.", file=sys.stderr
        )
        return 1
    try:
        with running_airflow() as airflow, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            with browsing(browser, airflow, "light") as page:
                make_the_connection(page, airflow)
                test_the_connection(page, airflow)
            set_prices(airflow)
            make_clips(airflow)
            with browsing(browser, airflow, "light") as page:
                show_the_link(page)
            themes: tuple[Theme, ...] = ("light", "dark")
            for theme in themes:
                with browsing(browser, airflow, theme) as page:
                    show_the_gallery(page, named("gallery", theme))
                    play_a_clip(page, named("clip-page", theme))
                    show_the_batch(page, named("batch-page", theme))
    except (SandboxError, BrowserError, AssertionError) as problem:
        print(f"\nFAILED: {problem}\nAirflow's log is {HOME / 'airflow.log'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def running_airflow() -> Iterator[AirflowServer]:
    """Airflow, on a database that a busy machine does not lock it out of, and without a connection to the gateway."""
    with postgres() as database:
        settings = {
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        }
        with Sandbox(HOME, render_seconds=RENDER_SECONDS, settings=settings) as sandbox:
            del sandbox.environment[CONNECTION_VARIABLE]
            with AirflowServer(sandbox, triggerers=0) as airflow:
                yield airflow


def set_prices(airflow: AirflowServer) -> None:
    """So that the pages know what a clip costs."""
    change_the_connection(airflow, extra=json.dumps({"spend": {"currency": "USD", "prices": PRICES}}))


def make_clips(airflow: AirflowServer) -> None:
    """Run the marketing pipeline with all products, the first clip, and the catalogue: two of its rows are refused."""
    rows = io.StringIO()
    csv.writer(rows).writerows(
        [
            ("sku", "prompt", "aspect_ratio", "duration"),
            *((sku, prompt, ratio, 4) for sku, (prompt, ratio) in PRODUCTS.items()),
        ]
    )
    airflow.sandbox.s3.put_object(Bucket=BUCKET, Key="input/products.csv", Body=rows.getvalue().encode())
    airflow.trigger(PIPELINE, RUN, products="input/products.csv")
    airflow.trigger(FIRST_CLIP, RUN)
    wait_for(airflow, PIPELINE, FIRST_CLIP)
    RemoteEmulator(airflow.sandbox.emulator_url).fail_next(Fault.status(400), times=2)
    airflow.trigger(CATALOGUE, RUN)
    wait_for(airflow, CATALOGUE)


def wait_for(airflow: AirflowServer, *dag_ids: str) -> None:
    """Until the runs have succeeded."""
    for dag_id in dag_ids:
        if airflow.wait_for_run(dag_id, RUN, seconds=1200, every=2) != "success":
            raise SandboxError(f"{dag_id} failed: {airflow.states(dag_id, RUN)}.")


def named(picture: str, theme: Theme) -> str:
    """The file of a picture in a theme."""
    return f"{picture}.png" if theme == "light" else f"{picture}-{theme}.png"


@contextmanager
def browsing(browser: Browser, airflow: AirflowServer, theme: Theme) -> Iterator[Page]:
    """A page of a browser that knows nothing yet."""
    context = browser.new_context(
        base_url=airflow.url,
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme=theme,
        reduced_motion="reduce",
        locale="en-US",
        timezone_id="UTC",
    )
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def make_the_connection(page: Page, airflow: AirflowServer) -> None:
    """By the form, as a new user does."""
    page.goto("/connections")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Connection ID").fill(CONNECTION)
    form.get_by_role("combobox", name="Connection Type").fill("CodeGateway")
    page.get_by_role("option", name="CodeGateway").click()
    form.get_by_label("Base URL").fill(airflow.sandbox.emulator_url)
    form.get_by_label("API key").fill(DEFAULT_API_KEY)
    take(page, "connection-form.png")
    # Only one section of the form is open at a time.
    page.set_viewport_size({"width": WIDTH, "height": FORM_HEIGHT})
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    form.get_by_label("Retries").wait_for()
    take(form, "connection-form-extra.png")
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    form.get_by_role("button", name="Save").click()
    form.wait_for(state="hidden")


def test_the_connection(page: Page, airflow: AirflowServer) -> None:
    """With the key that it has, and with another one, which is taken back."""
    # The button of Airflow 3.3.1 and 3.3.2 fails for every connection without a port: apache/airflow#73298.
    host, _, port = airflow.sandbox.emulator_url.rpartition(":")
    change_the_connection(airflow, host=host, port=int(port))
    page.set_viewport_size({"width": WIDTH, "height": LIST_HEIGHT})
    test = page.get_by_role("button", name="Test Connection")
    page.goto("/connections")
    test.click()
    page.get_by_text("Test Connection Successful").wait_for()
    take(page, "connection-test-passed.png")
    change_the_connection(airflow, password="sk-cg-mistyped")
    page.goto("/connections")
    test.click()
    page.get_by_text("Test Connection Failed").wait_for()
    take(page, "connection-test-failed.png")
    change_the_connection(airflow, password=DEFAULT_API_KEY)


def change_the_connection(airflow: AirflowServer, **fields: str | int) -> None:
    """Set some of its fields."""
    identity = {"connection_id": CONNECTION, "conn_type": "codegateway"}
    path = f"/api/v2/connections/{CONNECTION}"
    airflow.call("PATCH", path, params={"update_mask": [*fields]}, json={**identity, **fields})


def show_the_link(page: Page) -> None:
    """On the task's own page."""
    page.goto(f"/dags/{FIRST_CLIP}/runs/{RUN}/tasks/render/details")
    page.get_by_role("link", name="Clip", exact=True).wait_for()
    take(page, "task-link.png")


def show_the_gallery(page: Page, file: str) -> None:
    """The clips of the pipeline, by the menu."""
    page.goto("/")
    page.get_by_role("button", name="Browse").click()
    page.get_by_text("CodeGateway clips").click()
    page.set_viewport_size({"width": WIDTH, "height": GALLERY_HEIGHT})
    gallery = page.frame_locator("iframe")
    gallery.get_by_label("DAG").select_option(PIPELINE)
    expect(gallery.locator(".tile")).to_have_count(len(PRODUCTS), timeout=PATIENCE)
    gallery.get_by_label("DAG").blur()
    page.mouse.move(0, 0)
    take(page, file)


def play_a_clip(page: Page, file: str) -> None:
    """One of the gallery's."""
    prompt, _ = PRODUCTS["umbrella"]
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    clips = page.frame_locator("iframe")
    clips.get_by_role("link", name=prompt).click()
    clips.get_by_role("button", name="Play the clip").click()
    video = clips.locator("video")
    # It goes on, so that the picture is of a clip that plays; but slowly, so that it always shows the same.
    video.evaluate(
        """video => new Promise(done => {
            const check = () => video.currentTime > 1 && done(video.playbackRate = 0.0625);
            video.addEventListener("timeupdate", check);
            check();
        })"""
    )
    video.hover()  # for its controls
    take(page, file)


def show_the_batch(page: Page, file: str) -> None:
    """By its card in the gallery: what it came to, the rows that were refused first."""
    page.set_viewport_size({"width": WIDTH, "height": BATCH_HEIGHT})
    pages = page.frame_locator("iframe")
    pages.get_by_role("link", name="All clips").click()
    pages.get_by_label("DAG").select_option(CATALOGUE)
    pages.get_by_role("link", name="Batch render").click()
    pages.locator("#rows").get_by_text("RequestRejected").last.wait_for()
    page.mouse.move(0, 0)
    take(page, file)


def take(what: Page | Locator, file: str) -> None:
    """Write one picture."""
    picture = reduced(what.screenshot(animations="disabled", caret="hide"))
    (PICTURES / file).write_bytes(picture)
    print(f"{file:28} {len(picture) / 1000:4.0f} kB", flush=True)


def reduced(png: bytes) -> bytes:
    """The picture in 256 colours, which takes a third of the bytes: they stay in the repository's history."""
    with av.open(io.BytesIO(png), "r") as source:
        frame = next(source.decode(video=0))
    frame.pts = 0
    graph = av.filter.Graph()
    start = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    split = graph.add("split")
    palette = graph.add("palettegen", "reserve_transparent=0")
    use = graph.add("paletteuse", "dither=sierra2_4a")
    end = graph.add("buffersink")
    start.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1)
    palette.link_to(use, 0, 1)
    use.link_to(end)
    graph.configure()
    graph.push(frame)
    graph.push(None)
    few_colours = graph.pull()
    assert isinstance(few_colours, av.VideoFrame)
    encoder = av.VideoCodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, few_colours.format.name
    encoder.time_base = Fraction(1)
    encoder.options = {"compression_level": "9", "pred": "none"}
    return b"".join(bytes(packet) for packet in (*encoder.encode(few_colours), *encoder.encode(None)))


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # So that what was started is stopped.
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

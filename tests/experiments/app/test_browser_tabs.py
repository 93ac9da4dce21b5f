"""The tabs Seeds, Rare concept and Compare of the web page, in a headless Chromium, on a wide and a narrow screen."""

import io
import shutil
import socket
import subprocess
import sys
import time

import av
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tests.experiments.app.runs import finished_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
]
TIMEOUT_MS = 600_000  # other tests may use the CPU at the same time
WIDTHS = (1280, 390)
FOX = "a drawing of a fox on a white background"
OWL = "a drawing of an owl on a white background"


@pytest.fixture(scope="module")
def start_server(tmp_path_factory):
    """A function that starts the page with some settings and returns its address."""
    processes = []

    def start(*overrides: str) -> str:
        log_path = tmp_path_factory.mktemp("page") / "log"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [sys.executable, "-m", "experiments.app", "steps=2", "method=accelerated", *overrides, f"port={port}"]
        with log_path.open("w") as log:
            processes.append((subprocess.Popen(command, stdout=log, stderr=log), log_path))
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 600
        while address not in log_path.read_text():
            assert processes[-1][0].poll() is None and time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.2)
        return address

    yield start
    for process, log_path in processes:
        process.terminate()
        process.wait(600)
        assert "Traceback" not in log_path.read_text(), log_path.read_text()


@pytest.fixture(scope="module")
def server(start_server, tmp_path_factory):
    """Address of a page with a run of three methods, whose results visitors do not see."""
    folder = tmp_path_factory.mktemp("run")
    run = finished_run(folder / "run", methods={"plain": 40, "seedselect": 200, "best": 120})
    return start_server(f"run={run}", f"ratings={folder / 'ratings'}")


@pytest.fixture(scope="module")
def example_server(start_server, tmp_path_factory):
    """Address of a page without a run, which shows the example run."""
    return start_server(f"ratings={tmp_path_factory.mktemp('ratings')}")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(server, browser):
    """A function that opens a tab as a new visitor; the test fails on any JavaScript error."""
    contexts = []
    js_errors = []

    def open_page(tab: str, width: int = 1280, address: str = server):
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: js_errors.append(str(error)))
        page.goto(address)
        open_tab(page, tab)
        contexts.append(context)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not js_errors


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name="Edit").wait_for()
    if page.get_by_role("tab", name=name).locator("visible=true").count():
        page.get_by_role("tab", name=name).click()
    else:
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()


def visible(page, selector: str, count: int):
    """Wait for ``count`` visible elements."""
    elements = page.locator(selector)
    expect(elements).to_have_count(count, timeout=TIMEOUT_MS)
    for k in range(count):
        expect(elements.nth(k)).to_be_visible(timeout=TIMEOUT_MS)
    return elements


def expect_text(page, selector: str, text: str) -> None:
    expect(page.locator(selector)).to_contain_text(text, timeout=TIMEOUT_MS)


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("width", WIDTHS)
def test_path_between_two_concepts_ends_at_the_second_image(visit, width, tmp_path):
    page = visit("Seeds", width)
    expect(page.locator("#seeds-results")).to_be_hidden()
    page.locator(".seeds-pair", has_text="fox to owl").click()
    expect(page.locator("#seeds-prompt textarea")).to_have_value(f"{FOX}\n{OWL}", timeout=TIMEOUT_MS)
    page.click("#seeds-interpolate")
    visible(page, "#seeds-strip img", 9)
    averages = visible(page, "#seeds-averages figure", 3)
    for k, name in enumerate(("Mean", "Spherical mean", "NAO centroid")):
        expect(averages.nth(k)).to_contain_text(f"{name}")
        expect(averages.nth(k)).to_contain_text("% of the typical norm")
    expect_text(page, "#seeds-status", "the text embeddings are interpolated linearly")
    assert fits(page)
    image = page.locator("#seeds-image img")
    before = image.get_attribute("src")
    page.locator("#seeds-point input[type=range]").fill("9")
    expect(image).not_to_have_attribute("src", before, timeout=TIMEOUT_MS)
    with page.expect_download() as download:
        page.click("#seeds-gif")
    download.value.save_as(tmp_path / "path.gif")
    with Image.open(io.BytesIO((tmp_path / "path.gif").read_bytes())) as gif:
        assert gif.n_frames == 16 and gif.size == (384, 384)
    with page.expect_download() as download:
        page.click("#seeds-mp4")
    download.value.save_as(tmp_path / "path.mp4")
    with av.open(str(tmp_path / "path.mp4")) as video:
        assert video.streams.video[0].codec_context.name == "h264" and video.duration > 3e6  # in microseconds
    page.locator(".seeds-pair", has_text="two drawings: fox").click()
    expect(page.locator("#seeds-results")).to_be_hidden(timeout=TIMEOUT_MS)  # it was of other images


def test_captions_do_not_cover_the_images(visit):
    page = visit("Seeds")
    visible(page, "#seeds-chosen img", 2)  # the first pair is chosen
    page.click("#seeds-interpolate")
    for figure in visible(page, "#seeds-averages figure", 3).all():
        image, caption = figure.locator("img").bounding_box(), figure.locator("figcaption").bounding_box()
        assert image["width"] > 50 and abs(image["width"] - image["height"]) < 1
        assert caption["y"] >= image["y"] + image["height"]


def test_uploaded_image_without_a_prompt_is_an_error(visit, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "mine.png")
    page = visit("Seeds")
    page.click("#seeds-clear")
    expect(page.locator("#seeds-chosen img")).to_have_count(0, timeout=TIMEOUT_MS)
    page.locator("#seeds-inputs").get_by_text("Your own images").first.click()
    page.locator("#seeds-upload input[type=file]").set_input_files(tmp_path / "mine.png")
    visible(page, "#seeds-chosen img", 1)
    page.locator("[role=tabpanel]:visible .examples button").nth(5).click()
    prompt = page.locator("#seeds-prompt textarea")
    expect(prompt).to_have_value(f"\n{FOX}", timeout=TIMEOUT_MS)
    page.click("#seeds-interpolate")
    expect(page.get_by_text("1 prompt for 2 images (line 1 is empty)").first).to_be_visible(timeout=TIMEOUT_MS)
    prompt.fill(f"a red square\n{FOX}")
    page.click("#seeds-interpolate")
    visible(page, "#seeds-averages img", 3)


@pytest.mark.parametrize("width", WIDTHS)
def test_plain_samples_are_next_to_seedselect_until_it_is_stopped(visit, width):
    page = visit("Rare concept", width)
    visible(page, "#rare-plain img", 3)  # of the first set, before anything is pressed
    before = page.locator("#rare-plain img").first.get_attribute("src")
    page.locator(".rare-set", has_text="steaming bowl").click()
    expect(page.locator("#rare-plain img").first).not_to_have_attribute("src", before, timeout=TIMEOUT_MS)
    visible(page, "#rare-chosen img", 3)
    visible(page, "#rare-plain img", 3)
    expect(page.locator("#rare-ours img")).to_have_count(0)
    page.click("#rare-start")
    expect_text(page, "#rare-status", "Start: loss ")
    expect_text(page, "#rare-ours", "Start (NAO centroid)")
    expect_text(page, "#rare-plain", "loss ")
    expect_text(page, "#rare-plain", "reference ")
    expect_text(page, "#rare-status", "Update 2 of 20")
    page.click("#rare-stop")
    expect_text(page, "#rare-stopped", "the best seed is kept")
    expect_text(page, "#rare-ours", "Current (update ")
    visible(page, "#rare-curve img", 1)
    ours = page.inner_text("#rare-ours")
    assert "copy of reference " in ours or "new; nearest is reference " in ours
    assert "update 0" not in ours.lower()
    assert fits(page)
    status = page.inner_text("#rare-status")
    expect(page.locator("#rare-start")).to_be_enabled(timeout=TIMEOUT_MS)
    expect(page.locator("#rare-stop")).to_be_disabled()
    assert page.inner_text("#rare-status") == status and "20 of 20" not in status
    page.locator("#rare-best").get_by_text("Best seed", exact=True).first.click()
    assert page.locator("#rare-seed textarea").input_value().startswith("seed ")
    page.click("#rare-start")  # a second run
    expect(page.locator("#rare-stopped")).not_to_contain_text("the best seed is kept", timeout=TIMEOUT_MS)
    expect_text(page, "#rare-status", "Start: loss ")
    page.click("#rare-stop")
    expect_text(page, "#rare-stopped", "the best seed is kept")
    page.locator(".rare-set", has_text="tram").click()
    expect_text(page, "#rare-status", "")
    expect(page.locator("#rare-ours img")).to_have_count(0, timeout=TIMEOUT_MS)  # the results were of other images
    assert "Error" not in page.inner_text("body")


def test_seedselect_without_images_is_an_error_and_can_be_started_again(visit):
    page = visit("Rare concept")
    visible(page, "#rare-plain img", 3)
    page.click("#rare-clear")
    expect(page.locator("#rare-chosen img")).to_have_count(0, timeout=TIMEOUT_MS)
    page.locator("#rare-prompt textarea, #rare-prompt input").first.fill("a fox")
    page.click("#rare-start")
    expect(page.get_by_text("got 0 reference images: choose 1 to 5").first).to_be_visible(timeout=TIMEOUT_MS)
    expect(page.locator("#rare-start")).to_be_enabled(timeout=TIMEOUT_MS)
    expect(page.locator("#rare-stop")).to_be_disabled(timeout=TIMEOUT_MS)


@pytest.mark.parametrize("width", WIDTHS)
def test_images_of_a_question_have_equal_sizes(visit, width):
    page = visit("Compare", width)
    start_rating(page, f"size {width}")
    boxes = [image.bounding_box() for image in visible(page, "#compare-images img", 3).all()]
    assert len({(round(box["width"]), round(box["height"]), round(box["y"])) for box in boxes}) == 1
    assert boxes[0]["width"] > 80 and fits(page)


def test_answers_can_be_undone_and_continued_and_results_are_hidden(visit):
    page = visit("Compare")
    start_rating(page, "ada")
    expect(page.locator("#compare-undo")).to_be_disabled()
    press(page, "1", "2 of 4")
    press(page, "0", "3 of 4")
    press(page, "Backspace", "2 of 4")
    page.click("#compare-undo")
    expect_text(page, "#compare-status", "1 of 4")
    expect(page.locator("#compare-undo")).to_be_disabled(timeout=TIMEOUT_MS)
    press(page, "3", "2 of 4")
    again = visit("Compare")
    start_rating(again, "ada", "2 of 4")
    for message in ("3 of 4", "4 of 4", "All 4 questions are answered"):
        press(again, "2", message)
    assert not again.locator("#compare-results").count() and "Krippendorff" not in again.inner_text("body")


def test_methods_can_be_chosen(visit):
    page = visit("Compare")
    page.locator("#compare-settings").get_by_text("Methods", exact=True).first.click()
    page.locator("#compare-methods").get_by_label("best").uncheck()
    start_rating(page, "grace")
    visible(page, "#compare-images img", 2)
    expect(page.locator("#compare-answer-3")).to_be_hidden(timeout=TIMEOUT_MS)
    page.locator("#compare-methods").get_by_label("plain").uncheck()
    page.click("#compare-start")
    expect(page.get_by_text("must be two or three methods, got 1").first).to_be_visible(timeout=TIMEOUT_MS)


def test_example_run_has_references_and_results(visit, example_server, tmp_path):
    page = visit("Compare", address=example_server)
    expect_text(page, "#compare-example", "example run")
    start_rating(page, "ada", "1 of 5")
    visible(page, "#compare-references img", 3)
    for k in range(2, 6):
        press(page, "1", f"{k} of 5")
    press(page, "0", "All 5 questions are answered")
    page.locator("#compare-results").get_by_text("Results", exact=True).first.click()
    page.click("#compare-show")
    expect_text(page, "#compare-table", "between_ours")
    expect_text(page, "#compare-table", "Krippendorff")
    expect(page.locator("#compare-export")).to_be_enabled(timeout=TIMEOUT_MS)
    with page.expect_download() as download:
        page.click("#compare-export")
    download.value.save_as(tmp_path / "ratings.parquet")
    table = pd.read_parquet(tmp_path / "ratings.parquet")
    assert len(table) == 5 and list(table["choice"]).count("tie") == 1 and set(table["rater"]) == {"ada"}


@pytest.mark.parametrize("width", WIDTHS)
def test_all_tabs_have_one_width(visit, width):
    page = visit("Edit", width)
    widths = set()
    for name in ("Seeds", "Rare concept", "Compare"):
        open_tab(page, name)
        panel = page.locator("[role=tabpanel]:visible")
        expect(panel).to_be_visible()
        widths.add(round(panel.bounding_box()["width"]))
        assert fits(page), name
    assert len(widths) == 1


def start_rating(page, name: str, message: str = "1 of 4") -> None:
    page.locator("#compare-name textarea, #compare-name input").first.fill(name)
    page.click("#compare-start")
    expect_text(page, "#compare-status", message)
    page.locator("h1").first.click()  # leave the text box, so that keys are answers


def press(page, key: str, message: str) -> None:
    expect(page.locator("#compare-answer-1")).to_be_enabled(timeout=TIMEOUT_MS)
    page.keyboard.press(key)
    expect_text(page, "#compare-status", message)

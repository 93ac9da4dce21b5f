"""The web page, started by its command, in a headless Chromium."""

import re
import shutil
import socket
import subprocess
import sys
import time

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
TIMEOUT_MS = 600_000  # a limit for a test that fails; other processes may use the CPU
FOX = "a drawing of a fox on a white background"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a page with the bundled few-step model and a run of two methods to rate."""
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    overrides = ["steps=2", "method=accelerated", "method=accelerated", "select.iterations=20"]
    overrides += ["max_upload_mb=1", "max_upload_pixels=1_000_000"]
    overrides += [f"run={finished_run(folder / 'run')}", f"ratings={folder / 'ratings'}", f"port={port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "experiments.app", *overrides], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while address not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
        assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(600)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(server, browser):
    """A function that opens the page as a new visitor; the test fails on any JavaScript error."""
    contexts, js_errors = [], []

    def open_page(tab: str = "Edit", width: int = 1200):
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: js_errors.append(str(error)))
        page.goto(server)
        page.get_by_role("tab", name=tab).click()
        contexts.append(context)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not js_errors


def choose_example(page, number: int) -> None:
    page.locator(".examples button").locator("visible=true").nth(number).click()


def invert_example(page, number: int):
    """Invert an example; return the text box with the summary of its seed."""
    choose_example(page, number)
    expect(page.locator("#edit-chosen img")).to_be_visible(timeout=TIMEOUT_MS)
    page.click("#edit-invert")
    expect(page.locator("#edit-status")).to_contain_text("Reconstruction: ", timeout=TIMEOUT_MS)
    expect(page.locator("#edit-both img")).to_have_count(2, timeout=TIMEOUT_MS)
    page.locator("#edit-seed").get_by_text("Seed", exact=True).first.click()
    return page.locator("#edit-seed-summary textarea")


def image_sources(page) -> list[str]:
    return [image.get_attribute("src") for image in page.locator("#edit-both img").all()]


def wait_for_change(page, before: list[str]) -> None:
    page.wait_for_function(
        "old => String([...document.querySelectorAll('#edit-both img')].map(i => i.getAttribute('src'))) !== old",
        arg=",".join(before),
    )


def test_edit_follows_the_prompt_and_the_seed_can_be_reloaded(visit, tmp_path):
    page = visit()
    summary = invert_example(page, 5)
    prompt = page.locator("#edit-prompt textarea")
    expect(prompt).to_have_value(FOX)
    before = image_sources(page)
    prompt.fill(FOX.replace("white", "pink"))
    wait_for_change(page, before)
    page.locator("#edit-weights textarea, #edit-weights input").first.fill("zebra=2")
    expect(page.locator("#edit-error")).to_contain_text("'zebra'", timeout=TIMEOUT_MS)
    seed = summary.input_value()
    assert re.match(r"seed [0-9a-f]{16}, norm .* shape 4 x 16 x 16", seed)

    with page.expect_download() as download:
        page.click("#edit-download")
    download.value.save_as(tmp_path / "seed.safetensors")
    other = visit()  # another visitor loads the seed
    other.locator("#edit-seed").get_by_text("Seed", exact=True).first.click()
    other.locator("#edit-load input[type=file]").set_input_files(tmp_path / "seed.safetensors")
    expect(other.locator("#edit-seed-summary textarea")).to_have_value(seed, timeout=TIMEOUT_MS)
    expect(other.locator("#edit-both img")).to_have_count(2, timeout=TIMEOUT_MS)


def test_invalid_uploads_show_a_message(visit, tmp_path):
    (tmp_path / "text.png").write_text("this is not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "long.png").write_bytes(b"x" * 1_100_000)
    Image.new("1", (2000, 2000)).save(tmp_path / "giant.png")
    page = visit()
    page.click("#edit-invert")
    expect(page.get_by_text("there is no image yet")).to_be_visible(timeout=TIMEOUT_MS)
    for name, message in (
        ("text", "text.png is not a readable image"),
        ("giant", "giant.png has 2000 x 2000 pixels"),
        ("empty", "empty"),
        ("long", "at most 1 MB"),
    ):
        page = visit()
        page.locator("#edit-upload input[type=file]").set_input_files(tmp_path / f"{name}.png")
        expect(page.get_by_text(re.compile(message, re.IGNORECASE)).first).to_be_visible(timeout=TIMEOUT_MS)
        assert "Traceback" not in page.inner_text("body")


def test_visitors_have_separate_states(visit):
    first, second = visit(), visit()
    choose_example(first, 0)
    choose_example(second, 1)
    for page in (first, second):
        expect(page.locator("#edit-chosen img")).to_be_visible(timeout=TIMEOUT_MS)
        page.click("#edit-invert")
    for page, name in ((first, "glasses"), (second, "a violin")):
        prompt = f"a drawing of {name} on a white background"
        expect(page.locator("#edit-prompt textarea")).to_have_value(prompt, timeout=TIMEOUT_MS)
    for page in (first, second):
        page.locator("#edit-seed").get_by_text("Seed", exact=True).first.click()
    seeds = [page.locator("#edit-seed-summary textarea").input_value() for page in (first, second)]
    assert seeds[0] != seeds[1] and all(seeds)


def test_slider_shows_the_images_of_the_path(visit):
    page = visit("Seeds")
    for number in (0, 1):
        choose_example(page, number)
        expect(page.locator("#seeds-chosen img")).to_have_count(number + 1, timeout=TIMEOUT_MS)
    page.click("#seeds-interpolate")
    expect(page.locator("#seeds-averages img")).to_have_count(4, timeout=TIMEOUT_MS)
    expect(page.locator("#seeds-norms img")).to_be_visible(timeout=TIMEOUT_MS)
    image = page.locator("#seeds-image img")
    before = image.get_attribute("src")
    page.locator("#seeds-point input[type=range]").fill("5")
    expect(image).not_to_have_attribute("src", before, timeout=TIMEOUT_MS)


def test_uploaded_image_does_not_get_the_prompt_of_an_example(visit, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "mine.png")
    page = visit("Seeds")
    page.locator("#seeds-upload input[type=file]").set_input_files(tmp_path / "mine.png")
    expect(page.locator("#seeds-chosen img")).to_have_count(1, timeout=TIMEOUT_MS)
    choose_example(page, 5)
    expect(page.locator("#seeds-prompt textarea")).to_have_value(f"\n{FOX}", timeout=TIMEOUT_MS)
    page.click("#seeds-interpolate")
    expect(page.get_by_text("1 prompt for 2 images (line 1 is empty)")).to_be_visible(timeout=TIMEOUT_MS)
    page.locator("#seeds-prompt textarea").fill(f"a red square\n{FOX}")
    page.click("#seeds-interpolate")
    expect(page.locator("#seeds-averages img")).to_have_count(4, timeout=TIMEOUT_MS)


def test_seedselect_runs_until_it_is_stopped(visit):
    page = visit("Rare concept")
    choose_example(page, 0)
    expect(page.locator("#rare-chosen img")).to_have_count(1, timeout=TIMEOUT_MS)
    page.click("#rare-start")
    expect(page.locator("#rare-status")).to_contain_text("Iteration 1 of 20", timeout=TIMEOUT_MS)
    page.click("#rare-stop")
    expect(page.locator("#rare-stopped")).to_contain_text("the best seed is kept", timeout=TIMEOUT_MS)
    expect(page.locator("#rare-best img")).to_be_visible()
    assert page.locator("#rare-seed textarea").input_value().startswith("seed ")
    status = page.inner_text("#rare-status")
    expect(page.locator("#rare-start")).to_be_enabled(timeout=TIMEOUT_MS)
    expect(page.locator("#rare-stop")).to_be_disabled()
    page.wait_for_timeout(1500)
    assert page.inner_text("#rare-status") == status and "20 of 20" not in status
    assert "Error" not in page.inner_text("body")
    page.click("#rare-start")  # a second run
    expect(page.locator("#rare-stopped")).not_to_contain_text("the best seed is kept", timeout=TIMEOUT_MS)
    page.click("#rare-stop")
    expect(page.locator("#rare-stopped")).to_contain_text("the best seed is kept", timeout=TIMEOUT_MS)
    assert "Error" not in page.inner_text("body")


def test_rating_by_keyboard_can_be_continued_and_exported(visit, tmp_path):
    page = visit("Compare")
    start_rating(page, "ada")
    assert "seedselect" not in page.inner_text("body")  # the names of the methods are hidden
    press(page, "1", "2 of 4")
    press(page, "0", "3 of 4")
    again = visit("Compare")
    start_rating(again, "ada", "3 of 4")
    press(again, "2", "4 of 4")
    press(again, "1", "All 4 are rated")
    again.locator("#compare-results").get_by_text("Results", exact=True).first.click()
    again.click("#compare-show")
    expect(again.locator("#compare-table")).to_contain_text("seedselect", timeout=TIMEOUT_MS)
    expect(again.locator("#compare-table")).to_contain_text("Krippendorff")
    expect(again.locator("#compare-export")).to_be_enabled(timeout=TIMEOUT_MS)
    with again.expect_download() as download:
        again.click("#compare-export")
    download.value.save_as(tmp_path / "ratings.parquet")
    table = pd.read_parquet(tmp_path / "ratings.parquet")
    assert len(table) == 4 and list(table["choice"]).count("tie") == 1 and set(table["rater"]) == {"ada"}


def start_rating(page, name: str, message: str = "1 of 4") -> None:
    page.locator("#compare-name textarea, #compare-name input").first.fill(name)
    page.click("#compare-start")
    expect(page.locator("#compare-status")).to_contain_text(message, timeout=TIMEOUT_MS)
    page.locator("h1").click()  # leave the text box, so that keys are answers


def press(page, key: str, message: str) -> None:
    expect(page.locator("#compare-answer-1")).to_be_enabled(timeout=TIMEOUT_MS)
    page.keyboard.press(key)
    expect(page.locator("#compare-status")).to_contain_text(message, timeout=TIMEOUT_MS)


def test_narrow_screen_does_not_scroll_horizontally(visit):
    page = visit(width=360)
    for tab in ("Edit", "Seeds", "Rare concept", "Compare"):
        if not page.get_by_role("tab", name=tab).locator("visible=true").count():
            page.locator(".overflow-menu button").first.click()
            page.locator(".overflow-dropdown button", has_text=tab).click()
        else:
            page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab

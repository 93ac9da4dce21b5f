"""The page in a real browser: the distribution's Chromium, headless, against the command that people start."""

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
WAIT = 20_000  # milliseconds: other tests may have the processor
FOX = "a drawing of a fox on a white background"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a page of the embedded few-step model, with a run of two methods to rate."""
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["steps=2", "method.nfe_per_step=2", "select.iterations=20", "megabytes=1", "pixels=1_000_000"]
    given += [f"run={finished_run(folder / 'run')}", f"ratings={folder / 'ratings'}", f"port={port}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "experiments.app", *given], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while address not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
        assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(server, browser):
    """Opens the page as another visitor; no script of it may fail."""
    opened, faults = [], []

    def open_page(tab: str = "Edit", width: int = 1200):
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server)
        page.get_by_role("tab", name=tab).click()
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not faults


def example(page, number: int) -> None:
    page.locator(".examples button").locator("visible=true").nth(number).click()


def inverted(page, number: int):
    """An example's inversion; what the page says of it."""
    example(page, number)
    expect(page.locator("#edit-chosen img")).to_be_visible(timeout=WAIT)
    page.click("#edit-invert")
    expect(page.locator("#edit-said")).to_contain_text("onverged", timeout=WAIT)
    expect(page.locator("#edit-both img")).to_have_count(2, timeout=WAIT)
    page.locator("#edit-seed").get_by_text("Seed", exact=True).first.click()
    return page.locator("#edit-seed-words textarea")


def sources(page) -> list[str]:
    return [image.get_attribute("src") for image in page.locator("#edit-both img").all()]


def changes(page, before: list[str]) -> None:
    page.wait_for_function(
        "old => String([...document.querySelectorAll('#edit-both img')].map(i => i.getAttribute('src'))) !== old",
        arg=",".join(before),
    )


def test_an_image_is_inverted_once_and_follows_its_prompt(visit, tmp_path):
    page = visit()
    words = inverted(page, 5)
    prompt = page.locator("#edit-prompt textarea")
    expect(prompt).to_have_value(FOX)
    before = sources(page)
    prompt.fill(FOX.replace("white", "pink"))
    changes(page, before)
    page.locator("#edit-weights textarea, #edit-weights input").first.fill("zebra=2")
    expect(page.locator("#edit-fault")).to_contain_text("'zebra'", timeout=WAIT)
    seed = words.input_value()
    assert re.match(r"seed [0-9a-f]{16}, norm .* shape 4 x 16 x 16", seed)

    with page.expect_download() as found:
        page.click("#edit-download")
    found.value.save_as(tmp_path / "kept.safetensors")
    other = visit()  # the seed serves another visitor
    other.locator("#edit-seed").get_by_text("Seed", exact=True).first.click()
    other.locator("#edit-load input[type=file]").set_input_files(tmp_path / "kept.safetensors")
    expect(other.locator("#edit-seed-words textarea")).to_have_value(seed, timeout=WAIT)
    expect(other.locator("#edit-both img")).to_have_count(2, timeout=WAIT)


def test_bad_uploads_are_one_sentence(visit, tmp_path):
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "long.png").write_bytes(b"x" * 1_100_000)
    Image.new("1", (2000, 2000)).save(tmp_path / "giant.png")
    page = visit()
    page.click("#edit-invert")
    expect(page.get_by_text("there is no image yet")).to_be_visible(timeout=WAIT)
    for name, says in (
        ("text", "text.png is no image"),
        ("giant", "giant.png has 2000 x 2000 pixels"),
        ("empty", "empty"),
        ("long", "at most 1 MB"),
    ):
        page = visit()
        page.locator("#edit-upload input[type=file]").set_input_files(tmp_path / f"{name}.png")
        expect(page.get_by_text(re.compile(says, re.IGNORECASE)).first).to_be_visible(timeout=WAIT)
        assert "Traceback" not in page.inner_text("body")


def test_two_visitors_do_not_mix(visit):
    first, second = visit(), visit()
    example(first, 0)
    example(second, 1)
    for page in (first, second):
        expect(page.locator("#edit-chosen img")).to_be_visible(timeout=WAIT)
        page.click("#edit-invert")
    for page, name in ((first, "glasses"), (second, "a violin")):
        prompt = f"a drawing of {name} on a white background"
        expect(page.locator("#edit-prompt textarea")).to_have_value(prompt, timeout=WAIT)
    for page in (first, second):
        page.locator("#edit-seed").get_by_text("Seed", exact=True).first.click()
    words = [page.locator("#edit-seed-words textarea").input_value() for page in (first, second)]
    assert words[0] != words[1] and all(words)


def test_seeds_are_joined(visit):
    page = visit("Seeds")
    for number in (0, 1):
        example(page, number)
        expect(page.locator("#seeds-chosen img")).to_have_count(number + 1, timeout=WAIT)
    page.click("#seeds-join")
    expect(page.locator("#seeds-averages img")).to_have_count(4, timeout=WAIT)
    expect(page.locator("#seeds-norms img")).to_be_visible(timeout=WAIT)
    picture = page.locator("#seeds-picture img")
    before = picture.get_attribute("src")
    page.locator("#seeds-place input[type=range]").fill("5")
    expect(picture).not_to_have_attribute("src", before, timeout=WAIT)


def test_a_seed_is_optimized_until_one_stops(visit):
    page = visit("Rare concept")
    example(page, 0)
    expect(page.locator("#rare-chosen img")).to_have_count(1, timeout=WAIT)
    page.click("#rare-start")
    expect(page.locator("#rare-said")).to_contain_text("Iteration 1 of 20", timeout=WAIT)
    page.click("#rare-stop")
    expect(page.locator("#rare-stopped")).to_contain_text("the best is kept", timeout=WAIT)
    expect(page.locator("#rare-best img")).to_be_visible()
    assert page.locator("#rare-seed textarea").input_value().startswith("seed ")
    said = page.inner_text("#rare-said")
    expect(page.locator("#rare-start")).to_be_enabled(timeout=WAIT)
    expect(page.locator("#rare-stop")).to_be_disabled()
    page.wait_for_timeout(1500)
    assert page.inner_text("#rare-said") == said and "20 of 20" not in said
    assert "Error" not in page.inner_text("body")
    page.click("#rare-start")  # and once more
    expect(page.locator("#rare-stopped")).not_to_contain_text("the best is kept", timeout=WAIT)
    page.click("#rare-stop")
    expect(page.locator("#rare-stopped")).to_contain_text("the best is kept", timeout=WAIT)
    assert "Error" not in page.inner_text("body")


def test_images_are_rated_by_keys_and_a_rater_goes_on(visit, tmp_path):
    page = visit("Compare")
    begin(page, "ada")
    assert "seedselect" not in page.inner_text("body")  # raters see no names
    press(page, "1", "2 of 4")
    press(page, "0", "3 of 4")
    again = visit("Compare")
    begin(again, "ada", "3 of 4")
    press(again, "2", "4 of 4")
    press(again, "1", "All 4 are rated")
    again.locator("#compare-results").get_by_text("Results", exact=True).first.click()
    again.click("#compare-show")
    expect(again.locator("#compare-table")).to_contain_text("seedselect", timeout=WAIT)
    expect(again.locator("#compare-table")).to_contain_text("Krippendorff")
    expect(again.locator("#compare-export")).to_be_enabled(timeout=WAIT)
    with again.expect_download() as found:
        again.click("#compare-export")
    found.value.save_as(tmp_path / "ratings.parquet")
    table = pd.read_parquet(tmp_path / "ratings.parquet")
    assert len(table) == 4 and list(table["choice"]).count("tie") == 1 and set(table["rater"]) == {"ada"}


def begin(page, name: str, says: str = "1 of 4") -> None:
    page.locator("#compare-name textarea, #compare-name input").first.fill(name)
    page.click("#compare-begin")
    expect(page.locator("#compare-said")).to_contain_text(says, timeout=WAIT)
    page.locator("h1").click()  # out of the box: keys are answers


def press(page, key: str, says: str) -> None:
    expect(page.locator("#compare-answer-1")).to_be_enabled(timeout=WAIT)
    page.keyboard.press(key)
    expect(page.locator("#compare-said")).to_contain_text(says, timeout=WAIT)


def test_a_narrow_screen_needs_no_scrolling_sideways(visit):
    page = visit(width=360)
    for tab in ("Edit", "Seeds", "Rare concept", "Compare"):
        if not page.get_by_role("tab", name=tab).locator("visible=true").count():
            page.locator(".overflow-menu button").first.click()
            page.locator(".overflow-dropdown button", has_text=tab).click()
        else:
            page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab

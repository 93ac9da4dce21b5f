"""The tab Edit of the web page, started by its command, in a headless Chromium, on a wide and a narrow screen."""

import re
import shutil
import socket
import subprocess
import sys
import time

import pillow_heif
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import rnri
from tests.experiments.app.runs import finished_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
]
pillow_heif.register_heif_opener()
TIMEOUT_MS = 600_000  # a limit for a test that fails; other processes may use the CPU
WIDTHS = (1280, 390)
TULIP = "a drawing of a tulip on a white background"
SUNFLOWER = "a drawing of a sunflower on a white background"
HOTDOG = "a drawing of a hotdog on a white background"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a page with the embedded few-step model."""
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    overrides = ["steps=2", "method=accelerated", "max_upload_mb=1", "max_upload_pixels=1_000_000"]
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
    contexts = []
    js_errors = []

    def open_page(width: int = 1280):
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: js_errors.append(str(error)))
        page.goto(server)
        expect(page.locator("#edit-right img")).to_be_visible(timeout=TIMEOUT_MS)
        contexts.append(context)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not js_errors


def text_box(page, name: str):
    return page.locator(f"#{name} textarea, #{name} input").first


def expect_value(page, name: str, value: str) -> None:
    expect(text_box(page, name)).to_have_value(value, timeout=TIMEOUT_MS)


def expect_text(page, selector: str, text) -> None:
    expect(page.locator(selector)).to_contain_text(text, timeout=TIMEOUT_MS)


def expect_count(page, selector: str, count: int) -> None:
    expect(page.locator(selector)).to_have_count(count, timeout=TIMEOUT_MS)


def after_change(page, action) -> None:
    """Run ``action`` and wait until another edited image is displayed."""
    image = page.locator("#edit-right img")
    before = image.get_attribute("src")
    action()
    expect(image).not_to_have_attribute("src", before, timeout=TIMEOUT_MS)


def choose_example(page, number: int) -> None:
    page.locator("#edit-examples button img").nth(number).click()


def upload(page, path) -> None:
    page.locator("#edit-upload input[type=file]").set_input_files(path)


def open_accordion(page, name: str) -> None:
    page.locator(f"#{name} button").first.click()


@pytest.mark.parametrize("width", WIDTHS)
def test_first_screen_shows_a_finished_edit_three_steps_and_the_model(visit, width):
    page = visit(width)
    expect_value(page, "edit-source-prompt", TULIP)
    expect_value(page, "edit-prompt", SUNFLOWER)
    for selector in ("#edit-left img", "#edit-right img"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 900
    assert page.locator(".step b").all_inner_texts() == ["1", "2", "3"]
    expect_text(page, "body", "Model: emoji with the LoRA emoji_lcm")
    expect_text(page, "body", "photos are outside of what it can draw")
    expect_count(page, "#edit-message p.error", 0)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for name in ("guide", "citation"):
        open_accordion(page, name)
    expect_text(page, "#citation", "arXiv:2312.12540")
    expect_text(page, "#guide", "Change the prompt")
    assert page.locator("a[href='https://arxiv.org/abs/2312.12540']").first.is_visible()


def test_images_stay_visible_on_a_phone(visit):
    page = visit(390)
    page.locator("#edit-prompt").scroll_into_view_if_needed()
    box = page.locator("#edit-right img").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= page.locator("#edit-prompt").bounding_box()["y"]


@pytest.mark.parametrize("width", WIDTHS)
def test_edits_can_be_suggested_typed_and_undone(visit, width):
    page = visit(width)
    expect_count(page, "#edit-history img", 2)
    after_change(page, lambda: page.click("#edit-suggestion-1"))
    expect_value(page, "edit-prompt", TULIP.replace("white", "purple"))
    expect_count(page, "#edit-history img", 3)
    after_change(page, lambda: text_box(page, "edit-prompt").fill(TULIP.replace("white", "green")))
    expect_count(page, "#edit-history img", 3)  # the visitor is still typing
    page.keyboard.press("Enter")
    expect_count(page, "#edit-history img", 4)
    after_change(page, lambda: page.click("#edit-undo"))
    expect_value(page, "edit-prompt", TULIP.replace("white", "purple"))
    expect_count(page, "#edit-history img", 3)
    after_change(page, lambda: page.locator("#edit-history button img").first.click())
    expect_value(page, "edit-prompt", TULIP)
    page.locator("#edit-comparison label", has_text="Difference").click()
    expect_text(page, "#edit-left", "Difference")


def test_variants_and_image_can_be_downloaded(visit, tmp_path):
    page = visit()
    page.click("#edit-vary")
    expect_count(page, "#edit-variants img", 3)
    after_change(page, lambda: page.locator("#edit-variants button img").first.click())
    expect_count(page, "#edit-history img", 3)
    open_accordion(page, "edit-settings")
    expect(page.locator("#edit-settings input[type=number]").first).to_have_value("0.8", timeout=TIMEOUT_MS)
    with page.expect_download() as download:
        page.click("#edit-png")
    assert download.value.suggested_filename == "a-drawing-of-a-sunflower-on-a-white-background.png"
    download.value.save_as(tmp_path / "edit.png")
    assert Image.open(tmp_path / "edit.png").size == (64, 64)


def test_seed_can_be_loaded_by_another_visitor_and_by_the_library(visit, tmp_path):
    page = visit()
    choose_example(page, 1)
    expect_value(page, "edit-prompt", HOTDOG)
    open_accordion(page, "edit-seed")
    seed = text_box(page, "edit-seed-summary").input_value()
    assert re.match(r"seed [0-9a-f]{16}, norm .* shape 4 x 16 x 16", seed)
    with page.expect_download() as download:
        page.click("#edit-download")
    download.value.save_as(tmp_path / "seed.safetensors")
    assert rnri.load(tmp_path / "seed.safetensors").prompts == ("a drawing of a hamburger on a white background",)
    other = visit()
    open_accordion(other, "edit-seed")
    other.locator("#edit-load input[type=file]").set_input_files(tmp_path / "seed.safetensors")
    expect_value(other, "edit-seed-summary", seed)
    expect_value(other, "edit-prompt", "a drawing of a hamburger on a white background")
    expect_text(other, "#edit-status", "Reconstruction: ")


@pytest.mark.parametrize("width", WIDTHS)
def test_new_image_clears_what_belonged_to_the_old_image(visit, width, tmp_path):
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / "photo.heic")
    page = visit(width)
    page.click("#edit-vary")
    expect_count(page, "#edit-variants img", 3)
    upload(page, tmp_path / "photo.heic")
    for name in ("edit-source-prompt", "edit-prompt"):
        expect_value(page, name, "")
    for selector in ("#edit-history img", "#edit-variants img", "#edit-right img"):
        expect_count(page, selector, 0)
    expect(page.locator("#edit-status")).to_have_text("", timeout=TIMEOUT_MS)
    expect(page.locator("#edit-suggestion-0")).not_to_be_visible()
    text_box(page, "edit-source-prompt").fill("a drawing of a cat with sunglasses on a pink background")
    expect_text(page, "#edit-source-words mark", "sunglasses")
    page.keyboard.press("Enter")
    expect_text(page, "#edit-status", re.compile(r"Reconstruction: [\d.]+ of [\d.]+ dB"))
    expect_text(page, "#edit-suggestion-0", "white background")
    choose_example(page, 1)
    expect_value(page, "edit-prompt", HOTDOG)
    assert "photo" not in page.inner_text("#edit-upload")


def test_errors_are_in_one_place_and_do_not_stay(visit, tmp_path):
    page = visit()
    text_box(page, "edit-prompt").fill("")
    expect_text(page, "#edit-message .error", "the prompt is empty")
    page.click("#edit-suggestion-1")
    expect_count(page, "#edit-message .error", 0)
    open_accordion(page, "edit-settings")
    text_box(page, "edit-weights").fill("zebra=2")
    expect_text(page, "#edit-message .error", "'zebra'")
    (tmp_path / "text.png").write_text("this is not an image")
    (tmp_path / "long.png").write_bytes(b"x" * 1_100_000)
    Image.new("1", (2000, 2000)).save(tmp_path / "giant.png")
    for name, message in (
        ("text", "text.png is not a readable image"),
        ("giant", "giant.png has 2000 x 2000 pixels"),
        ("long", "at most 1 MB"),
    ):
        page = visit()
        upload(page, tmp_path / f"{name}.png")
        expect_text(page, "#edit-message .error", message)
        assert page.locator("#edit-right img").is_visible()
        assert page.get_by_text("Error", exact=True).count() == 0
        choose_example(page, 1)
        expect_count(page, "#edit-message .error", 0)


def test_slider_shows_both_images(visit):
    page = visit()
    page.locator("#edit-view label", has_text="Slider").click()
    expect_count(page, "#edit-slider img", 2)
    expect(page.locator("#edit-both")).to_be_hidden(timeout=TIMEOUT_MS)
    page.locator("#edit-comparison label", has_text="Reconstruction").click()
    expect_text(page, "#edit-slider", "Reconstruction (left) and edit (right)")
    page.locator("#edit-view label", has_text="Side by side").click()
    expect(page.locator("#edit-right img")).to_be_visible(timeout=TIMEOUT_MS)
    expect_text(page, "#edit-left", "Reconstruction")


def test_settings_and_seed_remain_after_a_reload(visit, tmp_path):
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    page = visit()
    open_accordion(page, "edit-settings")
    after_change(page, lambda: text_box(page, "edit-weights").fill("sunflower=0.5"))
    after_change(page, lambda: text_box(page, "edit-prompt").fill("a drawing of a sunflower on a pink background"))
    page.reload()
    expect_value(page, "edit-prompt", "a drawing of a sunflower on a pink background")
    open_accordion(page, "edit-settings")
    expect_value(page, "edit-weights", "sunflower=0.5")
    expect_value(page, "edit-source-prompt", TULIP)
    expect_text(page, "#edit-suggestion-0", "sunflower")
    text_box(page, "edit-weights").fill("")
    upload(page, tmp_path / "photo.png")
    expect_value(page, "edit-source-prompt", "")
    text_box(page, "edit-source-prompt").fill("a drawing of a moon on a white background")
    page.keyboard.press("Enter")
    expect_text(page, "#edit-status", re.compile(r"Reconstruction: [\d.]+ of [\d.]+ dB"))
    open_accordion(page, "edit-seed")
    seed = text_box(page, "edit-seed-summary").input_value()
    page.reload()
    expect_value(page, "edit-source-prompt", "a drawing of a moon on a white background")
    open_accordion(page, "edit-seed")
    expect_value(page, "edit-seed-summary", seed)
    expect(page.locator("#edit-left img")).to_be_visible(timeout=TIMEOUT_MS)


def test_visitors_have_separate_states(visit):
    first, second = visit(), visit()
    choose_example(first, 1)
    choose_example(second, 2)
    expect_value(first, "edit-prompt", HOTDOG)
    expect_value(second, "edit-prompt", "a drawing of a red apple on a white background")
    for page in (first, second):
        open_accordion(page, "edit-seed")
    seeds = [text_box(page, "edit-seed-summary").input_value() for page in (first, second)]
    assert seeds[0] != seeds[1] and all(seeds)

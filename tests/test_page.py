"""The server's page in a real browser."""

import io
import shutil
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from skimage import data

from .test_serve import Server

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def address():
    server = Server("r3_fast.photo", "--slo", "5s")
    yield server.url.rstrip("/")
    server.end()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = opened(browser, address)
    yield page
    page.close()


def opened(browser, address):
    """The page at an address; `errors` are what its console says is wrong, and what it asks of elsewhere."""
    page, errors = browser.new_page(viewport={"width": 1100, "height": 900}), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request", lambda request: errors.append(request.url) if not request.url.startswith((address, "blob:", "data:")) else None
    )
    page.goto(address)
    page.errors = errors
    return page


def says_what_is_no_image(page, folder):
    (folder / "b.png").write_text("no image")
    page.set_input_files("#file", folder / "b.png")
    page.wait_for_selector("#message.error")
    assert "no image that the browser can show" in page.locator("#message").inner_text()


def settled(page, setting=None):
    """Waits for an answer, of that setting if it is given, and gives the facts."""
    wanted = f"document.querySelector('dd').textContent === '{setting}'" if setting else "true"
    ready = "!document.getElementById('after').hidden && document.getElementById('message').textContent === ''"
    page.wait_for_function(f"() => {ready} && document.querySelector('dd') && {wanted}", timeout=60000)
    return dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))


def test_the_sample_dial_and_slider(page):
    facts = settled(page)
    before, after = (float(part.split()[0]) for part in facts["PSNR"].split("→"))
    assert after > before + 5
    costs = []
    for place, setting in enumerate(("1", "2", "3")):
        page.locator("#dial").fill(str(place))
        costs.append(float(settled(page, setting)["MACs"].split()[0]))
    assert costs == sorted(costs)
    assert costs[2] > 2 * costs[0]
    assert [page.get_by_role("slider", name=name).count() for name in ("Setting", "Strength", "Add noise of sigma")] == [1, 1, 1]
    page.locator("#compare").focus()
    page.keyboard.press("Home")
    assert "0%" in page.locator("#after").evaluate("e => e.style.clipPath")
    assert not page.errors


def test_an_image_of_ones_own_and_an_error_as_a_sentence(page, tmp_path):
    Image.fromarray(data.astronaut()[:96, :128]).save(tmp_path / "a.png")
    settled(page)
    page.set_input_files("#file", tmp_path / "a.png")
    page.wait_for_function("() => document.getElementById('before').naturalWidth === 128")
    assert "PSNR" not in settled(page)
    says_what_is_no_image(page, tmp_path)


def test_a_whole_photograph_goes_part_by_part_and_can_be_saved(page, address, tmp_path):
    Image.fromarray(data.astronaut()).resize((1300, 900)).save(tmp_path / "phone.png")
    page.locator("#dial").fill("0")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_input_files("#file", tmp_path / "phone.png")
    page.wait_for_function("() => document.getElementById('message').textContent.startsWith('Part 2 of 6')", timeout=60000)
    assert page.locator("#progress").is_visible()
    page.wait_for_function("() => !document.getElementById('download').hidden", timeout=120000)
    page.wait_for_function("() => document.getElementById('progress').hidden", timeout=10000)
    assert page.locator("#after").get_attribute("alt") == "The picture without its noise, at setting 1"
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "phone-denoised.png"
    parts = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    levels = {parse_qs(urlsplit(url).query).get("levels", [""])[0] for url in asked if "/v1/denoise" in url} - {""}
    assert len(levels) == 1  # all parts are told what the first was told
    url = f"{address}/v1/denoise?steps=1&deadline_ms=60000&levels={levels.pop()}"
    whole = httpx.post(url, content=(tmp_path / "phone.png").read_bytes(), timeout=120)
    assert np.abs(parts - np.asarray(Image.open(io.BytesIO(whole.content)))).max() <= 1


def test_the_page_says_that_the_server_is_gone(browser):
    server = Server("r3_fast.photo", "--slo", "5s")
    page = opened(browser, server.url.rstrip("/"))
    settled(page)
    server.end()
    page.wait_for_function("() => document.getElementById('message').textContent.startsWith('The server does not answer')")
    assert "may have been stopped" in page.locator("#busy").inner_text()
    page.close()


def test_with_a_token_there_is_no_link_that_cannot_work(browser):
    server = Server("r3_fast.photo", "--slo", "5s", RCNET_TOKEN="s3cret")
    page = opened(browser, server.url.rstrip("/"))
    page.fill("#token", "s3cret")
    page.keyboard.press("Tab")
    settled(page)
    assert page.locator("#metrics").is_hidden()
    page.close()
    server.end()


def test_what_takes_longer_than_the_objective_is_shown_too(browser):
    server = Server("r3_fast.photo", "--slo", "1ms")
    page = opened(browser, server.url.rstrip("/"))
    late = "() => document.getElementById('message').textContent === 'It takes longer than the server\\'s objective.'"
    page.wait_for_function(late, timeout=60000)
    assert "PSNR" in page.locator("#facts").inner_text()
    assert len(page.errors) == 1  # the browser's own line on the first answer, 413
    page.close()
    server.end()


@pytest.mark.parametrize("width", [1100, 380])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = np.frombuffer(page.screenshot(), np.uint8)
    assert len(shown) > 10_000

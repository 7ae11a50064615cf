"""The server's page in a real browser."""

import shutil

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


def test_of_a_photograph_of_a_phone_the_middle_is_shown(page, tmp_path):
    whole = Image.fromarray(data.astronaut()).resize((4000, 3000))
    whole.save(tmp_path / "phone.jpg", quality=95)
    page.set_input_files("#file", tmp_path / "phone.jpg")
    part = "() => document.getElementById('message').textContent.startsWith('The middle 816x612 of 4000x3000 pixels.')"
    page.wait_for_function(part, timeout=60000)
    shown = np.array(page.evaluate("Array.from(state.clean.data.slice(0, 3))"))
    expected = np.asarray(Image.open(tmp_path / "phone.jpg"))[1194, 1592]
    assert np.abs(shown - expected).max() < 8
    assert page.locator("#after").is_visible()
    assert not [line for line in page.errors if "413" not in line]  # the first answer on a busy machine


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

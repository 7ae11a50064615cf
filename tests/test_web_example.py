"""The page of examples/web in a real browser: what it gives is what the network gives."""

import base64
import importlib.util
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import rcnet
from rcnet.deploy.denoise import denoise_pixels
from rcnet.models.judge import attach_judge

from .conftest import IMAGES, random_model, two_levels
from .test_page import CHROMIUM, browser, opened, says_what_is_no_image, sync_api  # noqa: F401

WEB = IMAGES.parent.parent / "examples" / "web"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here"),
    pytest.mark.skipif(
        not (WEB / "onnxruntime-web").is_dir(),
        reason="onnxruntime-web is not here: python examples/web/build.py fetches it",
    ),
]
TILES = """async ([planes, width, height, place, level, strength]) => {
  const { denoise } = await import("./denoise.js");
  const bytes = Uint8Array.from(atob(planes), (c) => c.charCodeAt(0));
  const out = [];
  const keep = (tile) => out.push({ ...tile, data: [...tile.data] });
  await denoise(new Float32Array(bytes.buffer), width, height, place, level, keep, strength);
  return out;
}"""

DROPPED = """(content) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], "rocket.png", { type: "image/png" }));
  return dropped;
}"""


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build", WEB / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def address(build, tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    build.build("r3_fast.photo", site)
    with build.server(site, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture
def page(browser, address):  # noqa: F811
    page = opened(browser, address)
    yield page
    page.close()
    assert not page.errors


def settled(page, setting="3"):
    """Waits for an answer of that setting and gives the facts."""
    page.wait_for_function(
        f"() => document.getElementById('save').href && document.querySelector('dd').textContent === '{setting}'", timeout=60000
    )
    return dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))


def shown(page, name):
    """The pixels of a canvas, [height, width, 3]."""
    url = page.evaluate(f"document.getElementById('{name}').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def denoised(page, x, place, level, strength=1):
    """What the page's network gives for [1, 3, H, W], put together from its tiles, and how many there were."""
    planes = base64.b64encode(x.numpy().tobytes()).decode()
    tiles = page.evaluate(TILES, [planes, x.shape[3], x.shape[2], place, level, strength])
    out = torch.full_like(x, torch.nan)
    for tile in tiles:
        rows, columns = (slice(tile[a], tile[a] + tile[b]) for a, b in (("top", "height"), ("left", "width")))
        out[0, :, rows, columns] = torch.tensor(tile["data"]).reshape(3, tile["height"], tile["width"])
    return out, len(tiles)


@torch.inference_mode()
def test_the_numbers_are_those_of_the_network_at_each_setting(page):
    settled(page)
    model = rcnet.load("r3_fast.photo")
    photo = torch.from_numpy(np.asarray(Image.open(IMAGES / "rocket.png").convert("RGB")) / np.float32(255))
    x = photo.permute(2, 0, 1)[None, :, :75, :91].contiguous()
    for place, n in enumerate(model.steps):
        for level in (-1, 20):
            answer, _ = denoised(page, x, place, level)
            torch.testing.assert_close(answer, model(x, n, sigma=level if level > 0 else None), atol=1e-3, rtol=0)
    assert (answer - x).abs().max() > 0.02
    wide = torch.rand(1, 3, 8, 530)
    answer, tiles = denoised(page, wide, 0, -1)
    assert tiles == 2
    torch.testing.assert_close(answer, model(wide, 1), atol=1e-3, rtol=0)


@torch.inference_mode()
def test_the_sample_dial_strength_and_slider(page):
    facts, costs = settled(page), []
    before, after = (float(part.split()[0]) for part in facts["PSNR"].split("→"))
    assert after > before + 5
    noisy = shown(page, "before")
    model, x = rcnet.load("r3_fast.photo"), torch.from_numpy(noisy / np.float32(255)).permute(2, 0, 1)[None]
    for place, n in enumerate(model.steps):
        page.locator("#dial").focus()
        page.keyboard.press("Home" if place == 0 else "ArrowRight")
        costs.append(float(settled(page, str(n))["MACs"].split()[0]))
        expected = (255 * model(x, n)[0].permute(1, 2, 0)).round().clamp(0, 255).numpy()
        assert np.abs(shown(page, "after") - expected).max() <= 1
    assert costs == sorted(costs)
    assert costs[2] > 2 * costs[0]
    page.locator("#strength").fill("0")
    page.wait_for_timeout(500)  # longer than the page waits before it asks again
    settled(page)
    assert np.array_equal(shown(page, "after"), noisy)
    page.locator("#compare").focus()
    page.keyboard.press("Home")
    assert "0%" in page.locator("#after").evaluate("e => e.style.clipPath")


def test_a_dropped_image_and_an_error_as_a_sentence(page, tmp_path):
    settled(page)
    content = base64.b64encode((IMAGES / "rocket.png").read_bytes()).decode()
    page.dispatch_event("#stage", "drop", {"dataTransfer": page.evaluate_handle(DROPPED, content)})
    page.wait_for_function(f"() => document.getElementById('before').width === {Image.open(IMAGES / 'rocket.png').width}")
    assert "PSNR" not in settled(page)
    with page.expect_download() as saved:
        page.locator("#save").click()
    assert np.array_equal(np.asarray(Image.open(saved.value.path()).convert("RGB")), shown(page, "after"))
    says_what_is_no_image(page, tmp_path)


@pytest.mark.parametrize("width", [1100, 380])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture = page.locator("#stage").bounding_box()
    page.mouse.click(picture["x"] + picture["width"] / 4, picture["y"] + picture["height"] / 2)
    assert page.locator("#compare").input_value() == "25"


def test_gray_weights_of_any_settings(build, browser, tmp_path):  # noqa: F811
    """A network of one channel and no noise level, whose settings are one number a cell."""
    net = random_model("r3_fast", steps=(1, 2), width=16)
    net.offer([(1, 0, 0), (1, 1, 1)])
    torch.nn.init.normal_(net.head.weight, std=0.02)
    rcnet.save(net, tmp_path / "gray.safetensors")
    build.build(str(tmp_path / "gray.safetensors"), tmp_path / "site")
    with build.server(tmp_path / "site", 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{serving.server_port}")
        settled(page, "1")
        x = torch.rand(1, 3, 20, 33)
        with torch.inference_mode():
            expected = net.eval()(x.transpose(0, 1), (1, 0, 0)).transpose(0, 1)
        torch.testing.assert_close(denoised(page, x, 0, -1)[0], expected, atol=1e-3, rtol=0)
        page.close()
        serving.shutdown()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_judge_says_what_the_network_is_told(build, browser, tmp_path, channels):  # noqa: F811
    """Of a whole picture, for each of its tiles, and of parts of a large one; strength multiplies it."""
    net = two_levels(channels)
    rcnet.save(net, tmp_path / "judged.safetensors")
    build.build(str(tmp_path / "judged.safetensors"), tmp_path / "site")
    with build.server(tmp_path / "site", 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{serving.server_port}")
        settled(page, "2")
        for x, strength in ((torch.rand(1, 3, 40, 61), 0.5), (torch.rand(1, 3, 24, 530), 1), (torch.rand(1, 3, 1100, 1000), 1)):
            answer, _ = denoised(page, x, 0, -1, strength)
            expected, _ = denoise_pixels(net, x[0].permute(1, 2, 0).numpy(), 1, strength=strength)
            np.testing.assert_allclose(answer[0].permute(1, 2, 0).clamp(0, 1).numpy(), expected, atol=1e-3)
        before = shown(page, "after")
        page.locator("#strength").fill("2")
        page.wait_for_timeout(500)
        settled(page, "2")
        assert not np.array_equal(shown(page, "after"), before)
        page.close()
        serving.shutdown()


def test_a_network_that_nobody_tells_is_refused(build, tmp_path):
    net = two_levels(3)
    attach_judge(net, None)
    rcnet.save(net, tmp_path / "untold.safetensors")
    with pytest.raises(SystemExit, match="no judge"):
        build.write_network(str(tmp_path / "untold.safetensors"), tmp_path)

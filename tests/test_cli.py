import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import torch
from PIL import Image

from rcnet.cli.text import count, table
from rcnet.models import bundled, create_model, load, save

from .conftest import IMAGES, snapshot

BSD = IMAGES / "bsd"


def noisy_cat(path, sigma=25):
    pixels = np.asarray(Image.open(IMAGES / "cat.png"))[:120, :160] / 255
    noisy = pixels + np.random.default_rng(0).normal(0, sigma / 255, pixels.shape)
    Image.fromarray(np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)).save(path)
    return pixels


def error_of(path, clean):
    return float(np.mean((np.asarray(Image.open(path)) / 255 - clean) ** 2))


def test_denoise_writes_beside_the_input(run, tmp_path):
    clean = noisy_cat(tmp_path / "cat.png")
    status, out, _ = run("denoise", "cat.png")
    assert status == 0
    assert out.strip() == "cat-denoised.png"
    assert error_of("cat-denoised.png", clean) < 0.35 * error_of("cat.png", clean)


def test_steps_are_a_dial(run, tmp_path):
    clean = noisy_cat(tmp_path / "cat.png")
    for steps in ("1", "3"):
        assert run("denoise", "cat.png", "-o", f"{steps}.png", "--steps", steps)[0] == 0
    assert error_of("3.png", clean) < error_of("1.png", clean)


def test_tiles_do_not_change_the_file(run, tmp_path):
    noisy_cat(tmp_path / "cat.png")
    for tile in ("0", "48"):
        assert run("denoise", "cat.png", "-o", f"{tile}.png", "--tile", tile)[0] == 0
    whole, tiled = (np.asarray(Image.open(f"{tile}.png")).astype(int) for tile in ("0", "48"))
    assert np.abs(whole - tiled).max() <= 1  # rounding to a level
    assert (whole != tiled).mean() < 1e-3


def test_formats_depths_orientation_and_alpha_are_kept(run, tmp_path):
    noisy_cat(tmp_path / "cat.png")
    image = Image.open("cat.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save("cat.jpg", exif=exif, quality=95)
    image.save("cat.webp", lossless=True)
    image.save("cat.tif")
    rgba = image.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(image.size))
    rgba.save("alpha.png")
    gray16 = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray16).save("deep.png")
    names = ("cat.jpg", "cat.webp", "cat.tif", "alpha.png", "deep.png")
    status, out, err = run("denoise", *names, "--out-dir", "out", "--steps", "1")
    assert status == 0, err
    assert out.split() == [f"out/{name}" for name in names]
    assert Image.open("out/cat.jpg").getexif()[0x0112] == 6
    assert Image.open("out/cat.jpg").size == image.size
    for name, kind in (("cat.jpg", "JPEG"), ("cat.webp", "WEBP"), ("cat.tif", "TIFF"), ("alpha.png", "PNG"), ("deep.png", "PNG")):
        assert Image.open(f"out/{name}").format == kind
    alpha = Image.open("out/alpha.png")
    assert alpha.mode == "RGBA"
    assert alpha.getchannel("A").tobytes() == rgba.getchannel("A").tobytes()
    deep = Image.open("out/deep.png")
    assert deep.mode == "I;16"
    assert len(np.unique(np.asarray(deep) % 257)) > 100  # more than 8 bits are used


def test_compare_shows_the_input_and_every_step(run, tmp_path):
    noisy_cat(tmp_path / "cat.png")
    status, out, _ = run("denoise", "cat.png", "--compare")
    assert status == 0
    assert out.split() == ["cat-denoised.png", "cat-compare.png"]
    assert Image.open("cat-compare.png").size[0] >= 4 * 160


def test_a_phone_photograph_is_shown_upright(run, tmp_path):
    noisy_cat(tmp_path / "cat.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("cat.png").save("phone.jpg", exif=exif, quality=95)
    assert run("denoise", "phone.jpg", "--compare")[0] == 0
    width, height = Image.open("phone-compare.png").size
    assert height > 160 > 120
    assert width < 4 * 160  # panels are 120 wide now


def test_results_in_a_folder_are_not_inputs_of_the_next_run(run, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    noisy_cat(tmp_path / "in" / "a.png")
    noisy_cat(tmp_path / "in" / "sub" / "a.png")
    first = run("denoise", "in", "--compare", "--steps", "1")
    assert first[0] == 0
    again = run("denoise", "in", "--compare", "--steps", "1")
    assert again[:2] == first[:2]
    assert "in: skipped 4 earlier results" in again[2]
    status, out, _ = run("denoise", "in", "--out-dir", "out", "--steps", "1")
    assert status == 0
    assert out.split() == ["out/a.png", "out/sub/a.png"]


def test_a_folder_with_a_bad_file_does_the_others(run, tmp_path):
    (tmp_path / "in").mkdir()
    noisy_cat(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_text("not an image")
    noisy_cat(tmp_path / "in" / "c.png")
    status, out, err = run("denoise", "in", "--out-dir", "out", "--steps", "1")
    assert status == 2
    assert out.split() == ["out/a.png", "out/c.png"]
    assert "b.png" in err
    assert "1 of 3" in err
    assert "Traceback" not in err
    assert sorted(os.listdir("out")) == ["a.png", "c.png"]


def test_bad_images_are_one_line_and_touch_nothing(refused, tmp_path):
    noisy_cat(tmp_path / "cat.png")
    (tmp_path / "letter.png").write_text("dear reader")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cat.png").read_bytes()[:2000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.png").write_bytes(b"precious")
    assert "nowhere.png" in refused("denoise", "nowhere.png", "-o", "old.png")
    assert "letter.png" in refused("denoise", "letter.png", "-o", "old.png")
    assert "cut.png" in refused("denoise", "cut.png", "-o", "old.png")
    assert "holds no images" in refused("denoise", "empty")
    assert "overwrite an input" in refused("denoise", "cat.png", "-o", "cat.png")
    assert ".png" in refused("denoise", "cat.png", "-o", "cat.xyz")
    assert "no image given" in refused("denoise")
    assert "both be written" in refused("denoise", "cat.png", IMAGES / "cat.png", "--out-dir", "out")
    noisy_cat(tmp_path / "cat-compare.png")
    assert "overwrite an input" in refused("denoise", "cat.png", "cat-compare.png", "--compare")
    assert "is a folder" in refused("denoise", "cat.png", "-o", "empty")
    assert "existing folder" in refused("denoise", "cat.png", "-o", "nowhere/cat.png")
    assert "letter.png" in refused("denoise", "cat.png", "--out-dir", "letter.png")
    assert "letter.png" in refused("denoise", "letter.png", "--out-dir", "new")
    assert "-o" in refused("denoise", "--demo", "--steps", "1")
    assert "-o" in refused("denoise", "--demo", "--sigma", "50")
    assert "-o" in refused("denoise", "--demo", "--threads", "-3")
    assert "folder" in refused("denoise", "--demo", "-o", "nowhere/demo.png")
    assert "--out-dir" in refused("denoise", "cat.png", "letter.png", "-o", "one.png")
    assert (tmp_path / "old.png").read_bytes() == b"precious"


def test_a_decompression_bomb_is_refused(refused, tmp_path, monkeypatch):
    noisy_cat(tmp_path / "cat.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "cat.png" in refused("denoise", "cat.png")


def test_bad_choices_name_the_valid_ones(refused, tmp_path):
    noisy_cat(tmp_path / "cat.png")
    assert "valid: 1, 2, 3" in refused("denoise", "cat.png", "--steps", "7")
    assert "not trained at it" in refused("denoise", "cat.png", "--steps", "3,2,1")
    assert "steps few is not valid" in refused("denoise", "cat.png", "--steps", "few")
    assert "did you mean 'r3_fast.bsd-gray-25'" in refused("denoise", "cat.png", "--model", "r3_fast.bsd-gray-52")
    assert "no file of weights" in refused("denoise", "cat.png", "--model", "mine.safetensors")
    assert "tile" in refused("denoise", "cat.png", "--tile", "-3")
    assert "auto, fp32, bf16" in refused("denoise", "cat.png", "--precision", "fp64")
    assert "--steps" in refused("denoise", "cat.png", "--stepz", "2")
    assert "denoise" in refused("denois", "cat.png")
    broken = create_model("r3_fast")
    torch.nn.init.constant_(broken.get_parameter("head.bias"), float("nan"))
    save(broken, tmp_path / "nan.safetensors")
    assert "non-finite" in refused("denoise", "cat.png", "--model", "nan.safetensors")
    (tmp_path / "mine.safetensors").write_text("no")
    assert "safetensors" in refused("denoise", "cat.png", "--model", "mine.safetensors")
    save(create_model("r2"), tmp_path / "r2.safetensors")
    assert "gives no images" in refused("denoise", "cat.png", "--model", "r2.safetensors")
    assert "do not name their classes" in refused("eval", "r2.safetensors", "--data", BSD)


def test_eval_prints_json_and_records(run, tmp_path):
    shutil.copy(bundled()["r3_fast.bsd-gray-25"], tmp_path / "w.safetensors")
    status, out, _ = run("eval", "w.safetensors", "--data", BSD, "--sigma", "25", "--json", "--record")
    result = json.loads(out)
    assert status == 0
    assert [row["steps"] for row in result["rows"]] == [[1, 0, 0], [1, 1, 0], 1, [2, 1, 1], [2, 2, 1], 2, [3, 2, 2], [3, 3, 2], 3]
    assert result["images"] == 3
    assert load("w.safetensors").metadata["results"][-1]["rows"] == result["rows"]
    assert run("eval", "w.safetensors", "--data", BSD, "--sigma", "25", "--steps", "1", "--record")[0] == 0
    assert load("w.safetensors").metadata["results"][-1]["rows"] == result["rows"]
    again = run("eval", "w.safetensors", "--data", BSD / "test", "--steps", "2")[1]
    assert f"{result['rows'][5]['psnr']:.3f}" in again


def test_eval_of_clean_pictures_and_of_pairs(run, refused, tmp_path):
    weights = ("eval", "r3_fast.gray", "--steps", "1", "--json")
    status, out, err = run(*weights, "--data", BSD, "--harm")
    assert status == 0, err
    drawn = ("flat", "flat_noisy", "page", "screen", "texture", "night")
    blind, told = json.loads(out), json.loads(run(*weights, "--data", BSD, "--harm", "--sigma", "0")[1])
    assert (blind["blind"], blind["data"], told["told"]) == (True, "test without noise", 0)
    assert blind["rows"][0].keys() == {"steps", "clean", "clean_worst", "cards", *drawn}
    assert told["rows"][0]["clean"] == 99 > blind["rows"][0]["clean"] > 30  # told of no noise, it changes nothing
    for name in ("noisy", "clean"):
        (tmp_path / name).mkdir()
    noisy_cat(tmp_path / "noisy" / "cat.png")
    noisy_cat(tmp_path / "clean" / "tom.png", sigma=0)
    status, out, err = run(*weights, "--noisy", "noisy", "--clean", "clean")
    before, after = json.loads(out)["rows"]
    assert (before["steps"], after["steps"]) == (0, 1)
    assert after["psnr"] > before["psnr"] + 4
    assert "images are paired in order: the first pair is cat.png, tom.png" in err
    assert "pairs need as many of each" in refused("eval", "r3_fast.gray", "--noisy", BSD / "test", "--clean", "clean")
    assert "take no noise level" in refused("eval", "r3.bsd-gray-25", "--data", BSD, "--harm", "--sigma", "0")
    assert "use only one of them" in refused("eval", "r3_fast.gray", "--noisy", "noisy", "--clean", "clean", "--harm")
    assert "blind and sigma exclude each other" in refused(
        "eval", "r3_fast.gray", "--data", BSD, "--harm", "--sigma", "5", "--blind"
    )


def test_too_little_memory_is_no_fault_of_ours(refused, monkeypatch):
    def fill(*_, **__):
        torch.empty(1 << 56)

    monkeypatch.setattr("rcnet.models.load", fill)
    assert "out of memory: use a smaller batch" in refused("eval", "r3_fast.gray", "--data", BSD)


def test_bad_data(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no folder of images" in refused("eval", "r3_fast.bsd-gray-25", "--data", "nowhere")
    assert "contains no images" in refused("eval", "r3_fast.bsd-gray-25", "--data", "empty")
    assert "0 to 255" in refused("eval", "r3_fast.bsd-gray-25", "--data", BSD, "--sigma", "-2")
    assert "no folder of images" in refused("train", "r3", "--data", "nowhere")
    assert "r3 with batchh=3: unknown key" in refused("train", "r3", "batchh=3", "--data", BSD)
    assert "r3_fast" in refused("train", "r3_fats", "--data", BSD)
    assert "1" in refused("train", "r3", "--data", BSD, "model.steps=0")
    for override in ("model.name=[1]", "model.channels=2", "model.steps=true", "minutes=inf", "batch=0", "optimizer.lr=nan"):
        refused("train", "r3", "--data", BSD, override)
    Image.new("L", (5, 5)).save(tmp_path / "empty" / "small.png")
    assert "too small to measure" in refused("eval", "r3_fast.bsd-gray-25", "--data", "empty")
    (tmp_path / "file").write_text("x")
    assert "file" in refused("train", "r3", "--data", BSD, "--out", "file")


def test_train_and_resume(run, refused, tmp_path):
    arguments = ("train", "r3_fast", "model.width=8", "iterations=3", "minutes=0", "batch=2", "denoising.patch=24")
    status, out, err = run(*arguments, "--data", BSD, "--out", "run")
    assert status == 0, err
    assert out.endswith("next: rcnet denoise IN --model run/weights.safetensors\n")
    assert "the weights of this run are run/weights.safetensors" in refused("denoise", BSD, "--model", "run")
    assert "already contains a run" in refused(*arguments, "--data", BSD, "--out", "run")
    before = snapshot()
    assert run("train", "r3_fast", "--data", BSD, "--out", "run", "--resume", *arguments[2:])[0] == 0
    assert snapshot() == before  # a finished run is left as it is
    wider = [argument.replace("width=8", "width=16") for argument in arguments]
    assert "another run" in refused(*wider, "--data", BSD, "--out", "run", "--resume")
    assert json.loads(run(*arguments, "--data", BSD, "--out", "other", "--json")[1])["iterations"] == 3


def test_models_lists_exact_parameters(run):
    rows = {row["name"]: row for row in json.loads(run("models", "--json")[1])}
    assert [step["parameters"] for step in rows["r2"]["steps"]] == [1258954, 1260234, 1261514, 1262794]
    assert [step["parameters"] for step in rows["s2"]["steps"]][1:] == [2513610, 3768266, 5022922]
    assert [step["parameters"] for step in rows["s4"]["steps"]] == [11217316, 17488036, 23758756]
    assert rows["r4"]["parameters"] == 11241124
    for name in bundled():
        unified = [step for step in rows[name]["steps"] if isinstance(step["steps"], int)]
        results = [max(step["results"].values()) for step in unified if step["results"]]
        assert results == sorted(results, reverse=rows[name]["task"] == "classify")  # errors fall, PSNR grows
        assert len(set(results)) == len(results)
    text = run("models")[1]
    assert all(name in text for name in (*rows, "1,262,794"))


def test_demo(run, tmp_path):
    status, out, err = run("denoise", "--demo", "-o", "picture.png")
    assert status == 0, err
    lines = [line.split() for line in out.splitlines() if line.startswith(("r3.", "r3_fast."))]
    settings = ["1,0,0", "1,1,0", "1", "2,1,1", "2,2,1", "2", "3,2,2", "3,3,2", "3"]
    assert [line[1] for line in lines] == ["1", "2", "3", "4", *settings]
    for family in (lines[:4], lines[4:]):
        gains = [float(line[-1]) for line in family]
        # one image, not the mean of 68
        assert all(after > before - 0.1 for before, after in itertools.pairwise(gains))
        assert gains[-1] > gains[0] + 0.1
        assert gains[0] > 27
    assert Image.open("picture.png").size[0] > 1000


def test_help_answers_without_torch():
    code = "import sys, rcnet.cli\ntry: rcnet.cli.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in ("denoise", "models", "eval", "train"))


def test_bundled_weights_grow_with_the_steps_as_recorded():
    for name in bundled():
        for result in load(name).metadata["results"]:
            figures = [
                row.get("psnr", -row.get("error", 0))  # neither of clean pictures
                for row in sorted(result["rows"], key=lambda row: np.mean(row["steps"]))
            ]
            assert all(after > before - 0.05 for before, after in itertools.pairwise(figures))


def test_text():
    assert table(("name", "n"), [("a", 1), ("bb", 20)]) == "name   n\n----  --\na      1\nbb    20"
    assert [count(n) for n in (12, 1234, 1.26e6, 17.4e9)] == ["12", "1.23k", "1.26M", "17.4G"]


def test_weights_are_small_and_hold_each_kernel_once():
    for name, path in bundled().items():
        model = load(name)
        held = sum(t.numel() for t in model.state_dict().values())
        assert path.stat().st_size < 4.2 * held + 60_000
        size = (32, 32) if model.about.classes else (17, 23)
        assert torch.all(torch.isfinite(model(torch.rand(1, model.about.channels, *size))))

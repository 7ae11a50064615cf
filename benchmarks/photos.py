"""Photographs and pages as files hold them: PSNR and time of a network beside denoisers that people use today.

    pip install 'rcnet[bench]'
    python -m benchmarks.photos --bsd BSD/test [--images N] [--pairs DIR] [--model NAME_OR_FILE] [--threads N]
    python -m benchmarks.photos --large      # only 24 megapixels from file to file: time and memory; added to the results
    python -m benchmarks.photos --picture    # only draws the picture again, and
    python -m benchmarks.photos --render     # only the table, from results/photos.json

Every picture is 8-bit RGB before and after. The network is told nothing of the noise. Non-local means and total variation run at
many strengths, and the best for a row of the table counts; the wavelets and CBM3D are told sigma where the noise is Gaussian, and
get scikit-image's estimate elsewhere. One picture after the other goes through all of them in turns, with the same number of
threads. results/photos.json is written after each; Ctrl-C keeps what is there.

DIR of --pairs holds pairs NAME_real.JPG and NAME_mean.JPG, the same scene with a camera's noise and without, as the PolyU set has
them.
"""

import argparse
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import rcnet
from benchmarks import classical
from benchmarks.classical import NLM_STRENGTHS, SHORT, TV_WEIGHTS, Array, evenly, timed
from rcnet.data.drawn import draw_page
from rcnet.data.images import list_images, read_image, to_tensor
from rcnet.data.noise import protocol_noise
from rcnet.device import hardware, resolve_precision
from rcnet.errors import InputError
from rcnet.evaluation.denoise import psnr
from rcnet.figures.side_by_side import save_picture, side_by_side
from rcnet.models.files import find
from rcnet.replacing import replacing
from rcnet.training.provenance import commit

RESULTS = Path(__file__).parent.parent / "results"
SHIPPED = ("astronaut", "chelsea", "coffee", "rocket")  # in scikit-image's package itself, CC0 or of the public domain
PAGES, PAGE = 4, (480, 640)  # so many; rows and columns
LARGE = (4000, 6000)  # rows and columns of 24 megapixels


class Noise(NamedTuple):
    """Gaussian noise of `sigma` levels, clipped and rounded, then JPEG of that quality."""

    name: str
    sigma: float
    quality: int | None = None


CLEAN = Noise("none", 0)
PHOTO_NOISES = (CLEAN, *(Noise(f"sigma {s}", s) for s in (5, 10, 25, 50)), Noise("sigma 15, JPEG 85", 15, 85))
PAGE_NOISES = (CLEAN, Noise("sigma 10", 10))
CAMERA = "a camera's"
# What the picture shows: group, picture, noise, and the corner of the part that is enlarged.
SHOWN = (
    ("scikit-image", "coffee", "sigma 25", (180, 330)),
    ("scikit-image", "astronaut", "sigma 50", (60, 160)),
    ("scikit-image", "chelsea", "sigma 15, JPEG 85", (60, 120)),
    ("pages", "page 1", "sigma 10", (40, 60)),
)
SIDE = 128  # pixels of that part


class Case(NamedTuple):
    """A picture with noise: uint8 [H, W, 3] both. `sigma` is its level, or None where nobody can know it."""

    group: str
    noise: str
    picture: str
    clean: Array
    noisy: Array
    sigma: float | None


class Method(NamedTuple):
    """Denoises float32 [H, W, 3] in [0, 1]: call(x, setting, sigma); `unit` names the setting, of which the best counts."""

    name: str
    call: Callable[[Array, Any, float], Array]
    settings: tuple[float | None, ...] = (None,)
    unit: str = ""


def network(model: rcnet.RecurrentNet, precision: str) -> list[Method]:
    """One method a step count, each picture whole; a gray network takes the channels one by one."""
    session = rcnet.optimize(model, precision=precision)

    def call(x: Array, _: None, __: float, steps: int) -> Array:
        image = torch.from_numpy(x).permute(2, 0, 1)[None]
        return rcnet.denoise(session, image, steps, tile=0)[0].permute(1, 2, 0).numpy()

    return [Method(step_label(n), partial(call, steps=n)) for n in model.steps]


def step_label(steps: int) -> str:
    return f"rcnet, {steps} step{'s' * (steps > 1)}"


CLASSICAL = (
    Method("NLM, OpenCV", lambda x, h, _: classical.opencv_nlm(x, h), NLM_STRENGTHS, "h"),
    Method("TV", lambda x, weight, _: classical.total_variation(x, weight), TV_WEIGHTS, "weight"),
    Method("wavelets", lambda x, _, sigma: classical.wavelet(x, sigma)),
    Method("CBM3D", lambda x, _, sigma: classical.bm3d(x, sigma)),
)


def spoiled(image: Array, noise: Noise) -> Array:
    """uint8 [H, W, 3] with that noise; the same for the same image."""
    if noise.sigma:
        noisy = protocol_noise(image, noise.sigma, as_8bit=True)
        image = np.rint(noisy[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    if noise.quality:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=noise.quality)
        image = np.asarray(Image.open(file))
    return image


def with_noises(group: str, picture: str, image: Array, noises: Sequence[Noise]) -> Iterator[Case]:
    for noise in noises:
        gaussian = noise.sigma if noise.sigma and noise.quality is None else None
        yield Case(group, noise.name, picture, image, spoiled(image, noise), gaussian)


def shipped(name: str) -> Array:
    from skimage import data

    return getattr(data, name)()


def page(number: int) -> Array:
    return draw_page(*PAGE, 3, np.random.default_rng([7, number]), on_white=True)


def pairs_in(folder: Path) -> list[tuple[Path, Path]]:
    """Files with a camera's noise and without. Raises `InputError` where there are none, or one has no other."""
    noisy = [path for path in list_images(folder) if path.stem.endswith("_real")]
    pairs = [(path, path.with_name(f"{path.stem.removesuffix('_real')}_mean{path.suffix}")) for path in noisy]
    if not pairs or not all(clean.is_file() for _, clean in pairs):
        raise InputError(f"{folder} does not hold pairs of NAME_real.JPG and NAME_mean.JPG")
    return pairs


def cases(bsd: list[Path], pairs: list[tuple[Path, Path]]) -> Iterator[Case]:
    """All pictures in order, read and made as they are asked for."""
    for name in SHIPPED:
        yield from with_noises("scikit-image", name, shipped(name), PHOTO_NOISES)
    for path in bsd:
        yield from with_noises("BSD", path.stem, read_image(path, 3), PHOTO_NOISES)
    for k in range(PAGES):
        yield from with_noises("pages", f"page {k + 1}", page(k), PAGE_NOISES)
    for noisy, clean in pairs:
        yield Case("pairs", CAMERA, noisy.stem.removesuffix("_real"), read_image(clean, 3), read_image(noisy, 3), None)


def count_cases(bsd: list[Path], pairs: list[tuple[Path, Path]]) -> int:
    return len(PHOTO_NOISES) * (len(SHIPPED) + len(bsd)) + len(PAGE_NOISES) * PAGES + len(pairs)


def to_8bit(x: Array) -> Array:
    return np.rint(x.clip(0, 1) * 255).astype(np.uint8)


def quality(image: Array, clean: Array) -> float:
    """PSNR in dB of uint8 [H, W, 3], over all three channels."""
    return psnr(to_tensor(image), to_tensor(clean))


class Row(NamedTuple):
    """What was measured of one group and noise, picture by picture; by method and setting: PSNR in dB, seconds."""

    pictures: list[str]
    before: list[float]
    measured: dict[tuple[str, float | None], list[tuple[float, float]]]


def measure_case(case: Case, methods: Sequence[Method], row: Row) -> None:
    x = np.float32(case.noisy) / 255
    sigma = classical.estimated_sigma(x) if case.sigma is None else case.sigma
    row.pictures.append(case.picture)
    row.before.append(quality(case.noisy, case.clean))
    for method in methods:
        twice = method.name.startswith("rcnet")
        for setting in method.settings:
            found = row.measured[method.name, setting]
            known = [seconds for _, seconds in found]
            short = twice and statistics.median(known or [0]) < SHORT
            output, seconds = timed(lambda method=method, setting=setting: method.call(x, setting, sigma), short)
            if not np.isfinite(output).all():
                raise FloatingPointError(f"{method.name} gives numbers that are not finite: {case.picture}, {case.noise}")
            found.append((quality(to_8bit(output), case.clean), seconds))


def summary(key: tuple[str, str], row: Row, methods: Sequence[Method]) -> dict[str, Any]:
    """A row of the table; an infinite PSNR is None."""

    def finite(value: float) -> float | None:
        return round(value, 3) if math.isfinite(value) else None

    results = {}
    for method in methods:
        of = {setting: row.measured[method.name, setting] for setting in method.settings}
        best = max(of, key=lambda setting: float(np.mean([score for score, _ in of[setting]])))
        scores, seconds = zip(*of[best], strict=True)
        results[method.name] = {
            "psnr": finite(float(np.mean(scores))),
            "ms": round(1000 * statistics.median(seconds), 2),
            "setting": best,
            "unit": method.unit,
            "each": [finite(score) for score in scores],
        }
    return {
        "group": key[0],
        "noise": key[1],
        "pictures": row.pictures,
        "input": finite(float(np.mean(row.before))),
        "methods": results,
    }


def write(result: dict[str, Any], out: Path) -> None:
    """The results, and the page of them."""
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "photos.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    (out / "photos.md").write_text(render(result))


def measure(methods: Sequence[Method], args: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """All rows, written after each picture; what there is so far after Ctrl-C, and then `complete` is false."""
    files, pairs = list_images(args.bsd) if args.bsd else [], pairs_in(args.pairs) if args.pairs else []
    chosen, chosen_pairs = evenly(files, args.images), evenly(pairs, args.pair_images)
    of = {"scikit-image": len(SHIPPED), "BSD": len(files), "pages": PAGES, "pairs": len(pairs)}
    names = {"scikit-image": "scikit-image's", "BSD": "BSD test images", "pages": "drawn pages", "pairs": args.pairs_name}
    result = {**about, "of": of, "names": names, "complete": False, "rows": []}
    rows: dict[tuple[str, str], Row] = defaultdict(lambda: Row([], [], defaultdict(list)))
    warm_up = np.random.default_rng(0).random((64, 64, 3), np.float32)
    for method in methods:
        method.call(warm_up, method.settings[-1], 25.0)
    try:
        with tqdm(total=count_cases(chosen, chosen_pairs), unit="picture", disable=None) as bar:
            for case in cases(chosen, chosen_pairs):
                bar.set_postfix_str(f"{case.picture}, {case.noise}")
                row = Row([], [], defaultdict(list))
                measure_case(case, methods, row)
                merge(rows[case.group, case.noise], row)
                result["rows"] = [summary(key, row, methods) for key, row in rows.items()]
                write(result, args.out)
                bar.update()
        result["complete"] = True
        write(result, args.out)
    except KeyboardInterrupt:
        print("stopped: the results hold what was measured", file=sys.stderr)
    return result


def merge(row: Row, new: Row) -> None:
    """Adds a picture that is wholly measured."""
    row.pictures.extend(new.pictures)
    row.before.extend(new.before)
    for key, found in new.measured.items():
        row.measured[key].extend(found)


def title(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Which pictures, and how many of how many."""
    count, of = len(row["pictures"]), result["of"][row["group"]]
    return f"{result['names'][row['group']]}, {count if count == of else f'{count} of {of}'}"


def decibels(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def above(result: dict[str, Any]) -> Iterator[str]:
    """In how many rows each step count is above each classical denoiser."""
    rows = [{name: m["psnr"] or math.inf for name, m in row["methods"].items()} for row in result["rows"]]
    for name in (name for name in rows[0] if name.startswith("rcnet")):
        counts = [
            f"{other} in {sum(row[name] > row[other] for row in rows)}" for other in rows[0] if not other.startswith("rcnet")
        ]
        yield f"{name}: above {', '.join(counts)} of {len(rows)} rows."


def render(result: dict[str, Any]) -> str:
    weights = result["weights"]
    packages = ", ".join(f"{name} {number}" for name, number in result["packages"].items())
    lines = [
        "# Photographs and pages, as files hold them",
        "",
        f"Rendered by `python -m benchmarks.photos`: weights `{weights['name']}` (crc32 {weights['crc32']}),",
        f"{result['precision']}; {result['hardware']}, torch {result['torch']}, {packages}; commit {result['commit']}.",
        "",
        "8-bit RGB pictures; Gaussian noise is clipped and rounded. PSNR in dB of the 8-bit result over all channels, mean over",
        "the pictures; ∞: exactly the original. rcnet is told nothing of the noise. NLM (OpenCV) and TV (scikit-image) have the",
        "strength that is best for the row, which only who holds the original can know; CBM3D (bm3d) and wavelets (scikit-image)",
        "are told sigma where the noise is Gaussian, and take scikit-image's estimate of it elsewhere.",
        "",
    ]
    if not result["complete"]:
        lines += ["Stopped before all pictures were measured.", ""]
    if result.get("picture"):
        lines += ["![Parts of pictures with noise, denoised by rcnet, NLM and CBM3D](photos.png)", ""]
    if result["rows"]:
        names = list(result["rows"][0]["methods"])
        head = f"| pictures | noise | input | {' | '.join(names)} |"
        lines += [head, f"|---|---|{'---|' * (len(names) + 1)}"]
        for row in result["rows"]:
            cells = [title(result, row), row["noise"], decibels(row["input"])]
            for found in row["methods"].values():
                setting = f" ({found['unit']} {found['setting']:g})" if found["unit"] else ""
                cells.append(decibels(found["psnr"]) + setting)
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *(f"- {line}" for line in above(result))]
        lines += ["", "## Milliseconds a picture, medians", ""]
        lines += [f"| pictures | noise | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
        for row in result["rows"]:
            cells = [title(result, row), row["noise"], *(f"{found['ms']:.0f}" for found in row["methods"].values())]
            lines.append(f"| {' | '.join(cells)} |")
    if result.get("large"):
        large = result["large"]
        height, width = large["size"]
        lines += [
            "",
            f"## A photograph of {height * width / 1e6:.0f} megapixels, from file to file",
            "",
            f"{width}x{height}, a tiled photograph with noise of sigma {large['sigma']}, JPEG in and out, each in a process",
            f"of its own, from its start to its end: {large['hardware']}, {large['precision']}, weights `{large['weights']}`,",
            f"commit {large['commit']}. NLM with the h of above, {large['h']:g}.",
            "",
            "| | seconds of processor | seconds | peak memory, MB | PSNR dB |",
            "|---|---|---|---|---|",
        ]
        for name, row in large["rows"].items():
            lines.append(f"| {name} | {row['cpu']:.1f} | {row['wall']:.1f} | {row['peak'] / 1e6:.0f} | {row['psnr']:.2f} |")
    return "\n".join([*lines, ""])


def draw(methods: Sequence[Method], result: dict[str, Any], path: Path) -> None:
    """Parts of pictures, each as it came, denoised and clean; PSNR of the whole picture."""
    steps = [method for method in methods if method.name.startswith("rcnet")]
    others = [method for method in methods if method.name in ("NLM, OpenCV", "CBM3D")]
    shown = [*dict.fromkeys((steps[0], steps[-1])), *others]
    rows = {(row["group"], row["noise"]): row["methods"] for row in result["rows"]}
    panels = []
    wanted = [place for place in SHOWN if (place[0], place[2]) in rows]
    for group, picture, noise, (top, left) in tqdm(wanted, unit="picture", disable=None):
        image = page(int(picture.split()[1]) - 1) if group == "pages" else shipped(picture)
        kinds = PAGE_NOISES if group == "pages" else PHOTO_NOISES
        case = next(case for case in with_noises(group, picture, image, kinds) if case.noise == noise)
        x = np.float32(case.noisy) / 255
        sigma = classical.estimated_sigma(x) if case.sigma is None else case.sigma
        outputs = {f"{noise}:": case.noisy}
        for method in shown:
            setting = rows[group, noise][method.name]["setting"]
            strength = f", {method.unit} {setting:g}" if method.unit else ""
            outputs[f"{method.name}{strength}:"] = to_8bit(method.call(x, setting, sigma))

        def part(pixels: Array, top: int = top, left: int = left) -> Array:
            return pixels[top : top + SIDE, left : left + SIDE].repeat(2, 0).repeat(2, 1) / 255

        row = [(f"{label} {decibels(quality(output, image))} dB", part(output)) for label, output in outputs.items()]
        panels.append([*row, ("clean", part(image))])
    save_picture(path, side_by_side(panels))


# Programs of their own: a child of this process would begin with its memory.
PROGRAMS = {
    "rcnet, 1 step": "from rcnet.cli import app\n"
    "words = ['--steps', '1', '--model', model, '--precision', precision, '--threads', threads]\n"
    "app(['denoise', source, '-o', target, *words], result_action='return_value')",
    "NLM, OpenCV": "import cv2\n"
    "cv2.setNumThreads(int(threads))\n"
    "image = cv2.fastNlMeansDenoisingColored(cv2.imread(source), None, float(h), float(h))\n"
    "cv2.imwrite(target, image, [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111])",
}
BEFORE = "import sys, time\nstarted = time.perf_counter()\nsource, target, model, precision, threads, h = sys.argv[1:]\n"
# ru_maxrss of a child is at least what its parent held; VmHWM, where there is one, is the program's own.
AFTER = """
import json, pathlib, resource
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"cpu": time.process_time(), "wall": time.perf_counter() - started, "peak": peak}))
"""


def measure_large(args: argparse.Namespace, precision: str, h: float) -> dict[str, Any]:
    """Seconds of processor and of the clock, peak memory in bytes and PSNR of each program; `h` of non-local means."""
    sigma, (height, width) = 10, LARGE
    image = shipped("astronaut")
    times = [-(-side // there) for side, there in zip(LARGE, image.shape[:2], strict=True)]
    clean = np.tile(image, (*times, 1))[:height, :width]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "photo.jpg", Path(folder) / "denoised.jpg"
        noise = np.random.default_rng(0).standard_normal(clean.shape, np.float32)
        noisy = np.rint((clean + sigma * noise).clip(0, 255)).astype(np.uint8)
        Image.fromarray(noisy).save(source, quality=95, subsampling=0)
        del noise, noisy
        words = [str(source), str(target), str(find(args.model)), precision, str(args.threads), str(h)]
        for name, program in tqdm(PROGRAMS.items(), unit="program", disable=None):
            command = [sys.executable, "-c", BEFORE + program + AFTER, *words]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows[name] = {**found, "psnr": quality(np.asarray(Image.open(target)), clean)}
    about = {"hardware": hardware(torch.device("cpu")), "precision": precision, "commit": commit()}
    return {**about, "weights": weights_name(args.model), "size": LARGE, "sigma": sigma, "h": h, "rows": rows}


def weights_name(model: str) -> str:
    return Path(model).name.removesuffix(".safetensors")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsd", type=Path, help="folder of the 68 colour test images of BSD")
    parser.add_argument("--images", type=int, default=8, help="so many of them, evenly spread")
    parser.add_argument("--pairs", type=Path, help="folder of pairs of a camera's noise")
    parser.add_argument("--pair-images", type=int, default=1000, help="at most so many of them, evenly spread")
    parser.add_argument("--pairs-name", default="pairs of one scene", help="what the table calls them")
    parser.add_argument("--model", default="r3_fast.photo", help="bundled weights or a file of weights")
    parser.add_argument("--precision", default="auto", help="fp32, bf16 or auto: bf16 where the processor has it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without", nargs="*", default=[], help="methods to leave out, e.g. CBM3D, which takes most of the time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    for mode, what in (
        ("render", "write the table of the results that are there"),
        ("picture", "draw the picture of the results that are there"),
        ("large", "measure 24 megapixels, and add them to the results that are there"),
    ):
        parser.add_argument(f"--{mode}", action="store_true", help=f"only {what}")
    return parser


def main() -> None:
    args = parser().parse_args()
    there = args.out / "photos.json"
    if args.render or args.picture or args.large:
        result = json.loads(there.read_text())
    if args.render:
        write(result, args.out)
        return
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    import cv2

    cv2.setNumThreads(args.threads)
    precision = resolve_precision(args.precision, torch.device("cpu"))
    if args.large:
        usual = next(row for row in result["rows"] if (row["group"], row["noise"]) == ("scikit-image", "sigma 10"))
        h = usual["methods"]["NLM, OpenCV"]["setting"]
        write({**result, "large": measure_large(args, precision, h)}, args.out)
        return
    model = rcnet.load(args.model)
    methods = [method for method in (*network(model, precision), *CLASSICAL) if method.name not in args.without]
    if not args.picture:
        about = {
            "hardware": hardware(torch.device("cpu")),
            "torch": torch.__version__,
            "packages": {"OpenCV": cv2.__version__, **{name: version(name) for name in ("scikit-image", "bm3d")}},
            "commit": commit(),
            "precision": precision,
            "weights": {
                "name": weights_name(args.model),
                "crc32": f"{zlib.crc32(find(args.model).read_bytes()):08x}",
            },
        }
        result = measure(methods, args, about)
    if args.picture or result["complete"]:
        draw(methods, result, args.out / "photos.png")
        result["picture"] = True
        write(result, args.out)
    print(render(result))


if __name__ == "__main__":
    main()

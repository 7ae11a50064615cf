"""Photographs and pages as files hold them: PSNR and time of a network beside denoisers that people use today.

    pip install 'rcnet[bench]'
    python -m benchmarks.photos --bsd BSD/test [--images N] [--pairs DIR] [--model NAME_OR_FILE] [--threads N] [--side N]
    python -m benchmarks.photos --without CBM3D     # hours less: what it leaves out can be measured later
    python -m benchmarks.photos --quick             # minutes: one picture per group, 128 pixels a side, fewer strengths
    python -m benchmarks.photos --large      # only 12 and 24 megapixels from file to file: time and memory; added to the results
    python -m benchmarks.photos --picture    # only draws the picture again, and
    python -m benchmarks.photos --render     # only the tables, from results/photos.json

Every picture is 8-bit RGB before and after. All run twice: as they come, told nothing (`automatic`), and at several strengths, of
which the best for a row of the table counts (`best`). The network is told nothing, then the sigmas of a short list. CBM3D,
wavelets and non-local means get scikit-image's estimate of the noise, total variation what scikit-image calibrates, then the
strengths of `benchmarks.classical`. One picture after the other goes through all of them in turns, with the same number of
threads. What was measured before is kept, of the network only with the same weights: results/photos.json is written after each
picture, Ctrl-C loses nothing, and the next run goes on. CBM3D takes most of the time, so `--side` takes the middle of pictures.

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
from benchmarks.classical import Array, evenly, timed
from benchmarks.colourings import COLOURINGS, recoloured
from benchmarks.page import RESULTS, kept
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

SHIPPED = ("astronaut", "chelsea", "coffee", "rocket")  # in scikit-image's package itself, CC0 or of the public domain
COLOURED = SHIPPED[:3:2]  # in four colourings each
PAGES, PAGE = 4, (480, 640)  # so many; rows and columns
LARGE = ((3000, 4000), (4000, 6000))  # rows and columns of 12 and 24 megapixels
SIGMAS = (3, 5, 10, 15, 25, 50)  # that the network is told, in levels of 255
QUICK = 128  # pixels a side of the quick mode's pictures
NETWORK = ("rcnet, 1 step", "rcnet, 2 steps", "rcnet, 3 steps")
METHODS = dict.fromkeys(NETWORK, "told") | {"NLM, OpenCV": "h", "TV": "weight", "wavelets": "RMS x", "CBM3D": "RMS x"}  # units


class Noise(NamedTuple):
    """`sigma` levels of noise of a kind, clipped and rounded, then JPEG of that quality.

    `white`: Gaussian. `gray`: the same in all channels. `coarse`: smoothed, so that neighbours are alike. `grain`: a film's,
    coarse, nearly the same in all channels, strongest in middle tones. `night`: shot and read noise of a dark exposure, which
    has no `sigma`.
    """

    name: str
    sigma: float
    quality: int | None = None
    kind: str = "white"


CLEAN = Noise("none", 0)
PHOTO_NOISES = (
    CLEAN,
    *(Noise(f"sigma {s}", s) for s in (5, 10, 25, 50)),
    Noise("sigma 15, JPEG 85", 15, 85),
    Noise("gray, sigma 15", 15, kind="gray"),
    Noise("coarse, sigma 10", 10, kind="coarse"),
    Noise("grain", 15, kind="grain"),
)
COLOUR_NOISES = (CLEAN, Noise("sigma 10", 10), Noise("sigma 25", 25))
PAGE_NOISES = (CLEAN, Noise("sigma 10", 10))
NIGHT = Noise("a sensor's", 0, kind="night")
CAMERA = "a camera's"
# What the picture shows: group, picture, noise, and the corner of the part that is enlarged.
SHOWN = {
    ("scikit-image", "coffee", "sigma 25"): (180, 330),
    ("colourings", "astronaut, all", "sigma 25"): (60, 160),
    ("scikit-image", "chelsea", "grain"): (60, 120),
    ("pages", "page 1", "sigma 10"): (40, 60),
}
SIDE = 128  # pixels of that part


class Case(NamedTuple):
    """A picture with noise: uint8 [H, W, 3] both."""

    clean: Array
    noisy: Array


class Method(NamedTuple):
    """Denoises float32 [H, W, 3] in [0, 1]: call(x, strength), or call(x, None) by itself; `unit` names the strength.

    Where `relative`, `strengths` are multiples of the root mean square of the noise, and `call` takes levels of 255.
    """

    name: str
    call: Callable[[Array, float | None], Array]
    strengths: tuple[float, ...] = ()
    unit: str = ""
    relative: bool = False


def network(model: rcnet.RecurrentNet, precision: str) -> list[Method]:
    """One method per step count, each picture whole; a gray network takes the channels one by one."""
    session = rcnet.optimize(model, precision=precision)

    def call(x: Array, sigma: float | None, steps: int) -> Array:
        image = torch.from_numpy(x).permute(2, 0, 1)[None]
        return rcnet.denoise(session, image, steps, sigma=sigma, tile=0)[0].permute(1, 2, 0).numpy()

    sigmas = SIGMAS if model.about.takes_level else ()
    return [Method(step_label(n), partial(call, steps=n), sigmas, "told") for n in model.steps]


def step_label(steps: int) -> str:
    return f"rcnet, {steps} step{'s' * (steps > 1)}"


def either(call: Callable[[Array, float], Array], automatic: Callable[[Array], float]) -> Callable[[Array, float | None], Array]:
    """The denoiser at a strength, or at the one that `automatic` finds."""
    return lambda x, strength: call(x, automatic(x) if strength is None else strength)


CLASSICAL = (
    Method("NLM, OpenCV", either(classical.opencv_nlm, classical.automatic_h), classical.NLM_STRENGTHS, "h"),
    Method("TV", either(classical.total_variation, classical.automatic_weight), classical.TV_WEIGHTS, "weight"),
    Method("wavelets", either(classical.wavelet, classical.estimated_sigma), classical.WAVELET_MULTIPLES, "RMS x", relative=True),
    Method("CBM3D", either(classical.bm3d, classical.estimated_sigma), classical.BM3D_MULTIPLES, "RMS x", relative=True),
)


def spoiled(image: Array, noise: Noise) -> Array:
    """uint8 [H, W, 3] with that noise; the same for the same image."""
    if noise.kind == "night":
        image = sensed(image)
    elif noise.sigma and noise.kind == "white":
        image = rounded(255 * protocol_noise(image, noise.sigma, as_8bit=True)[0].permute(1, 2, 0).numpy())
    elif noise.sigma:
        image = rounded(image + noise.sigma * unit_noise(image, noise.kind))
    if noise.quality:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=noise.quality)
        image = np.asarray(Image.open(file))
    return image


def unit_noise(image: Array, kind: str) -> Array:
    """Noise of a kind, float [H, W, 3], of unit variance; `grain` where it is strongest."""
    from scipy.ndimage import gaussian_filter

    rng, (height, width, _) = np.random.default_rng(0), image.shape
    if kind == "gray":
        return rng.standard_normal((height, width, 1)).repeat(3, 2)
    # Blurred by these pixels, neighbours correlate by 0.84 (coarse) and 0.6 (grain), as in pictures of phones and scans of film.
    blur = 1.2 if kind == "coarse" else 0.7
    noise = gaussian_filter(rng.standard_normal((height, width, 4)), (blur, blur, 0), mode="wrap")
    noise /= noise.std((0, 1))
    if kind == "coarse":
        return noise[:, :, :3]
    tone = image.mean(2, keepdims=True) / 255
    return (math.sqrt(0.95) * noise[:, :, 3:] + math.sqrt(0.05) * noise[:, :, :3]) * np.sqrt(4 * tone * (1 - tone))


def exposed(image: Array) -> Array:
    """The same scene with a twelfth of the light: uint8 [H, W, 3], by sRGB's curve."""
    return encoded(linear(image) / 12)


def sensed(image: Array) -> Array:
    """With a sensor's noise at high gain: of variance 0.001 per light, of which white is 1, and of a reading's 0.0015."""
    light = linear(image)
    return encoded(light + np.random.default_rng(0).standard_normal(light.shape) * np.sqrt(0.001 * light + 0.0015**2))


def linear(image: Array) -> Array:
    """Light in [0, 1] of uint8 in sRGB (IEC 61966-2-1)."""
    x = image / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def encoded(light: Array) -> Array:
    """The other way, clipped and rounded."""
    light = light.clip(0, 1)
    return rounded(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def rounded(levels: Array) -> Array:
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


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


Plan = dict[tuple[str, str, str], Callable[[], Case]]


def plan(bsd: Sequence[Path], pairs: Sequence[tuple[Path, Path]], side: int, number: int | None = None) -> Plan:
    """How to make each case, by group, picture and noise, in order: `number` pictures per group, of each the middle."""
    coloured = {f"{name}, {version}": partial(in_colours, name, version) for name in COLOURED for version in COLOURINGS}
    groups: dict[str, tuple[dict[str, Callable[[], Array]], Sequence[Noise]]] = {
        "scikit-image": ({name: partial(shipped, name) for name in SHIPPED}, PHOTO_NOISES),
        "BSD": ({path.stem: partial(read_image, path, 3) for path in bsd}, PHOTO_NOISES),
        "colourings": (coloured, COLOUR_NOISES),
        "night": ({name: partial(dark, name) for name in SHIPPED}, [NIGHT]),
        "pages": ({f"page {k + 1}": partial(page, k) for k in range(PAGES)}, PAGE_NOISES),
    }
    made: Plan = {
        (group, picture, noise.name): partial(with_noise, load, noise, side)
        for group, (pictures, noises) in groups.items()
        for picture, load in list(pictures.items())[:number]
        for noise in noises
    }
    for noisy, clean in pairs[:number]:
        made["pairs", noisy.stem.removesuffix("_real"), CAMERA] = partial(pair, noisy, clean, side)
    return made


def in_colours(name: str, version: str) -> Array:
    return recoloured(shipped(name), version)


def dark(name: str) -> Array:
    return exposed(shipped(name))


def with_noise(load: Callable[[], Array], noise: Noise, side: int) -> Case:
    image = middle(load(), side)
    return Case(image, spoiled(image, noise))


def pair(noisy: Path, clean: Path, side: int) -> Case:
    return Case(*(middle(read_image(path, 3), side) for path in (clean, noisy)))


def middle(image: Array, side: int) -> Array:
    """The middle of a picture, `side` pixels a side; all of it where `side` is 0."""
    top, left = (max(there - side, 0) // 2 for there in image.shape[:2])
    return image[top : top + side, left : left + side] if side else image


def to_8bit(x: Array) -> Array:
    return np.rint(x.clip(0, 1) * 255).astype(np.uint8)


def quality(image: Array, clean: Array) -> float:
    """PSNR in dB of uint8 [H, W, 3], over all three channels."""
    return psnr(to_tensor(image), to_tensor(clean))


def measure_case(case: Case, method: Method) -> list[tuple[float | None, float | None, float]]:
    """What a method makes of a picture: strength (None: automatic), PSNR in dB (None: infinite) and seconds."""
    x = np.float32(case.noisy) / 255
    # Where there is no noise, half a level, the error of rounding.
    noise = max(0.5, math.sqrt(np.square(case.noisy - np.float64(case.clean)).mean()))
    found = []
    for strength in (None, *method.strengths):
        level = strength * noise if method.relative and strength is not None else strength
        output, seconds = timed(lambda level=level: method.call(x, level), strength is None and method.name in NETWORK)
        if not np.isfinite(output).all():
            raise FloatingPointError(f"{method.name} gives numbers that are not finite")
        found.append((strength, finite(quality(to_8bit(output), case.clean)), round(seconds, 4)))
    return found


def finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of the tables, of the methods that have measured all its pictures."""
    results = {}
    for name in METHODS:
        if not all(name in case["measured"] for case in cases):
            continue
        tried = {}
        for found in zip(*(case["measured"][name]["found"] for case in cases), strict=True):
            psnr = finite(float(np.mean([comparable(score) for _, score, _ in found])))
            tried[found[0][0]] = {"psnr": psnr, "ms": round(1000 * statistics.median(seconds for *_, seconds in found), 2)}
        best = max(tried, key=lambda strength: comparable(tried[strength]["psnr"]))
        results[name] = {"automatic": tried[None], "best": {"strength": best, "unit": METHODS[name], **tried[best]}}
    group, _, noise = cases[0]["key"]
    before = finite(float(np.mean([comparable(case["before"]) for case in cases])))
    pictures = [case["key"][1] for case in cases]
    return {"group": group, "noise": noise, "pictures": pictures, "input": before, "methods": results}


def comparable(psnr: float | None) -> float:
    return math.inf if psnr is None else psnr


def write(result: dict[str, Any], out: Path) -> None:
    """The results, and the page of them."""
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "photos.json") as temporary:
        temporary.write_text(json.dumps(result) + "\n")
    (out / "photos.md").write_text(render(result))


def measure(methods: Sequence[Method], args: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """All cases, written after each; what there is so far after Ctrl-C, and then `complete` is false."""
    files, pairs, planned = inputs(args)
    of = {"scikit-image": len(SHIPPED), "BSD": len(files), "colourings": len(COLOURED) * len(COLOURINGS), "night": len(SHIPPED)}
    of |= {"pages": PAGES, "pairs": len(pairs)}
    names = {"scikit-image": "scikit-image's", "BSD": "BSD test images", "colourings": "other colours", "night": "dark exposures"}
    names |= {"pages": "drawn pages", "pairs": args.pairs_name}
    result = kept(args.out / "photos.json")
    known = {tuple(case["key"]): case for case in result.get("cases", ()) if result.get("side") == args.side}
    weights = about["weights"]["crc32"]
    for case in known.values():
        case["measured"] = {k: v for k, v in case["measured"].items() if v["weights"] in (None, weights)}
    result = {**about, "of": of, "names": names, "side": args.side, "large": result.get("large", []), "complete": False}
    for method in methods:
        method.call(np.random.default_rng(0).random((64, 64, 3), np.float32), None)
    try:
        with tqdm(total=len(planned), unit="picture", disable=None) as bar:
            for key, make in planned.items():
                bar.set_postfix_str(f"{key[1]}, {key[2]}")
                made = make()
                case = known.setdefault(key, {"key": key, "before": finite(quality(made.noisy, made.clean)), "measured": {}})
                for method in methods:
                    there = case["measured"].get(method.name, {"found": []})
                    if [strength for strength, *_ in there["found"]] != [None, *method.strengths]:
                        case["measured"][method.name] = {
                            "hardware": about["hardware"],
                            "commit": about["commit"],
                            "weights": weights if method.name in NETWORK else None,
                            "found": measure_case(made, method),
                        }
                write(result | tabled(known, planned), args.out)
                bar.update()
        result["complete"] = True
    except KeyboardInterrupt:
        print("stopped: the results hold what was measured, and the same command goes on", file=sys.stderr)
    result |= tabled(known, planned)
    write(result, args.out)
    return result


def tabled(known: dict[tuple[str, ...], dict[str, Any]], planned: Plan) -> dict[str, Any]:
    """Everything measured, and the rows of the planned cases that are."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for key in planned:
        if known.get(key, {}).get("measured"):
            rows[key[0], key[2]].append(known[key])
    return {"rows": [summary(cases) for cases in rows.values()], "cases": list(known.values())}


def inputs(args: argparse.Namespace) -> tuple[list[Path], list[tuple[Path, Path]], Plan]:
    """All images of BSD, all pairs, and the plan of those that are measured."""
    files, pairs = list_images(args.bsd) if args.bsd else [], pairs_in(args.pairs) if args.pairs else []
    return files, pairs, plan(evenly(files, args.images), evenly(pairs, args.pair_images), args.side, 1 if args.quick else None)


def title(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Which pictures, and how many of how many."""
    count, of = len(row["pictures"]), result["of"][row["group"]]
    return f"{result['names'][row['group']]}, {count if count == of else f'{count} of {of}'}"


def decibels(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def above(result: dict[str, Any], kind: str) -> Iterator[str]:
    """In how many rows each step count is above each classical denoiser, of those that were measured so."""
    names = [name for name in METHODS if any(name in row["methods"] for row in result["rows"])]
    for name in (name for name in names if name.startswith("rcnet")):
        counts = []
        for other in (other for other in names if not other.startswith("rcnet")):
            both = [[row["methods"].get(n, {}).get(kind) for n in (name, other)] for row in result["rows"]]
            won = [comparable(ours["psnr"]) > comparable(theirs["psnr"]) for ours, theirs in both if ours and theirs]
            counts += [f"{other} in {sum(won)} of {len(won)}"] if won else []
        if counts:
            yield f"{name}: above {', '.join(counts)}."


def cell(found: dict[str, Any]) -> str:
    """PSNR, and the strength if it is the best of several."""
    if "strength" not in found:
        return decibels(found["psnr"])
    strength = "automatic" if found["strength"] is None else f"{found['unit']} {found['strength']:g}"
    return f"{decibels(found['psnr'])} ({strength})"


def table(result: dict[str, Any], kind: str, text: Callable[[dict[str, Any]], str], before: bool = True) -> Iterator[str]:
    """A line per row, a column per method; a dash where a method was not measured so."""
    names = [name for name in METHODS if any(name in row["methods"] for row in result["rows"])]
    yield f"| pictures | noise |{' input |' * before} {' | '.join(names)} |"
    yield f"|---|---|{'---|' * (len(names) + before)}"
    for row in result["rows"]:
        cells = [title(result, row), row["noise"], *[decibels(row["input"])] * before]
        found = [row["methods"].get(name, {}).get(kind) for name in names]
        cells += [text(values) if values else "-" for values in found]
        yield f"| {' | '.join(cells)} |"


def made(result: dict[str, Any]) -> str:
    """The hardware and the commits of what is shown."""
    if "cases" not in result:  # measured before results were kept picture by picture
        return f"{result['hardware']}; commit {result['commit']}"
    entries = [entry for case in result["cases"] for entry in case["measured"].values()]
    hardware, commits = ("; ".join(sorted({entry[key] for entry in entries})) for key in ("hardware", "commit"))
    return f"{hardware}; commit {commits}"


def render(result: dict[str, Any]) -> str:
    weights = result["weights"]
    packages = ", ".join(f"{name} {release}" for name, release in result["packages"].items())
    lines = [
        "# Photographs and pages, as files hold them",
        "",
        f"Rendered by `python -m benchmarks.photos`: weights `{weights['name']}` (crc32 {weights['crc32']}),",
        f"{result['precision']}; torch {result['torch']}, {packages}; {made(result)}.",
        "",
        "8-bit RGB pictures; noise is clipped and rounded. PSNR in dB of the 8-bit result over all channels, mean over the",
        "pictures; ∞: exactly the original; -: not measured so. NLM is OpenCV's, TV and wavelets are scikit-image's, CBM3D is",
        "bm3d's.",
        "",
    ]
    if result.get("side"):
        lines += [f"Of each picture the middle, {result['side']} pixels a side.", ""]
    if not result["complete"]:
        lines += ["Stopped before all pictures were measured.", ""]
    if result.get("picture"):
        lines += ["![Parts of pictures with noise, denoised by rcnet, NLM and CBM3D](photos.png)", ""]
    if result["rows"]:
        lines += [
            "## Automatic",
            "",
            "Nothing is known of the noise. rcnet is told nothing; CBM3D and wavelets are told scikit-image's estimate of sigma,",
            "NLM has 0.8 of it as its h, and TV has the weight that scikit-image's calibration finds.",
            "",
            *table(result, "automatic", cell),
            "",
            *(f"- {line}" for line in above(result, "automatic")),
            "",
            "## At its best",
            "",
            "Each has the best of several strengths for the row, in brackets; only who has the original can know it. They are",
            "the sigma that rcnet is told, NLM's h, TV's weight, and the sigma that wavelets and CBM3D are told, as a multiple",
            "of the root mean square (RMS) of the noise.",
            "",
            *table(result, "best", cell),
            "",
            *(f"- {line}" for line in above(result, "best")),
            "",
            "## Milliseconds per picture, automatic, medians",
            "",
            *table(result, "automatic", lambda found: f"{found['ms']:.0f}", before=False),
        ]
    for large in result.get("large", []):
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


def draw(methods: Sequence[Method], planned: Plan, path: Path) -> None:
    """Parts of pictures, each as it came, denoised automatically and clean; PSNR of the whole picture."""
    steps = [method for method in methods if method.name.startswith("rcnet")]
    others = [method for method in methods if method.name in ("NLM, OpenCV", "CBM3D")]
    shown = [*dict.fromkeys((steps[0], steps[-1])), *others]
    panels = []
    for key in tqdm([key for key in SHOWN if key in planned], unit="picture", disable=None):
        case = planned[key]()
        x = np.float32(case.noisy) / 255
        outputs = {key[2]: case.noisy, **{method.name: to_8bit(method.call(x, None)) for method in shown}}
        top, left = (min(corner, side - SIDE) for corner, side in zip(SHOWN[key], case.clean.shape[:2], strict=True))

        def part(pixels: Array, top: int = top, left: int = left) -> Array:
            return pixels[top : top + SIDE, left : left + SIDE].repeat(2, 0).repeat(2, 1) / 255

        row = [(f"{label}: {decibels(quality(output, case.clean))} dB", part(output)) for label, output in outputs.items()]
        panels.append([*row, ("clean", part(case.clean))])
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


def measure_large(args: argparse.Namespace, precision: str, h: float, size: tuple[int, int]) -> dict[str, Any]:
    """Seconds of processor and of the clock, peak memory in bytes and PSNR of each program; `h` of non-local means."""
    sigma, (height, width) = 10, size
    image = shipped("astronaut")
    times = [-(-side // there) for side, there in zip(size, image.shape[:2], strict=True)]
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
    return {**about, "weights": weights_name(args.model), "size": size, "sigma": sigma, "h": h, "rows": rows}


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
    parser.add_argument("--side", type=int, default=0, help="of each picture the middle, so many pixels a side; all unless given")
    parser.add_argument("--quick", action="store_true", help=f"one picture per group, {QUICK} pixels a side, fewer strengths")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    for mode, what in (
        ("render", "write the table of the results that are there"),
        ("picture", "draw the picture of the results that are there"),
        ("large", "measure 12 and 24 megapixels, and add them to the results that are there"),
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
        h = usual["methods"]["NLM, OpenCV"]["best"]["strength"] or 8  # 0.8 sigma
        write({**result, "large": [measure_large(args, precision, h, size) for size in LARGE]}, args.out)
        return
    model = rcnet.load(args.model)
    methods = [method for method in (*network(model, precision), *CLASSICAL) if method.name not in args.without]
    if args.quick:
        args.side = args.side or QUICK
        methods = [method._replace(strengths=tuple(method.strengths[1::3])) for method in methods]
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
        draw(methods, inputs(args)[2], args.out / "photos.png")
        result["picture"] = True
        write(result, args.out)
    print(render(result))


if __name__ == "__main__":
    main()

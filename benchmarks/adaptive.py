"""Does it pay to choose the setting by the content? Of each image, for a classifier; of each tile, for a denoiser.

    python -m benchmarks.adaptive [--cifar data/] [--bsd BSD68/gray --calibration BSD/train] [--images N]

Classifying, r2.cifar10: `rcnet eval --risk 0.5`, on all test images, one half to calibrate. Denoising, r3_fast.bsd-gray-25 at
sigma 25: every setting on every image, cut into tiles as `rcnet.denoise` cuts them. The settings of the tiles are chosen

    oracle: knowing the truth: what no choice can surpass;
    texture: by the differences of neighbours in the noisy tile, which cost nothing;
    change: by the difference of the two least settings' outputs, both of which run for it and are counted.

The two last look up a table of 16 ranges of the content, each with the setting that is best there on the calibration images for
some price of a MAC; prices from low to high give a curve. Compared is the mean PSNR over whole images at equal mean MACs. What
is not measured again stays in results/adaptive.json; the page and the picture, results/adaptive.md and .png, are made of that.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import rcnet
from benchmarks.classical import evenly
from benchmarks.page import RESULTS, kept, options, record, table
from rcnet.calling import ready
from rcnet.cost import macs
from rcnet.data.images import list_images, read_image
from rcnet.data.noise import protocol_noise
from rcnet.evaluation.adaptive import adaptive_results
from rcnet.evaluation.denoise import to_uint8_levels
from rcnet.network import RecurrentNet
from rcnet.runtime.tiles import size_of, tiles
from rcnet.setting import Setting, Steps
from rcnet.tasks.classify import read_matching
from rcnet.training.provenance import commit, made_here

CLASSIFIER, RISK = "r2.cifar10", 0.005
DENOISER, SIGMA = "r3_fast.bsd-gray-25", 25
SIDES = (82, 162, 0)  # pixels: 4x6 and 2x3 tiles of about equal size in an image of 321x481, and the whole image
RANGES = 16
PRICES = np.geomspace(1e-4, 0.3, 21)  # of a GMAC, in parts of an image's squared error at the most steps
AT = (1, 2, 3)  # fixed settings at whose cost the table compares


class Tiles(NamedTuple):
    """A row a tile: its image; squared error, GMAC and GMAC without overlap at each setting; its content by two measures."""

    image: np.ndarray
    errors: np.ndarray
    work: np.ndarray
    bare: np.ndarray
    texture: np.ndarray
    change: np.ndarray


@cache
def gmac(model: RecurrentNet, n: Steps, size: tuple[int, int]) -> float:
    return macs(model, n, size) / 1e9


def texture(noisy: np.ndarray) -> float:
    """Mean square difference of neighbours among the means of 2x2 pixels, which have half the noise."""
    height, width = (side // 2 for side in noisy.shape)
    means = noisy[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
    return float(np.square(np.diff(means, axis=0)).mean() + np.square(np.diff(means, axis=1)).mean())


def cut(model: RecurrentNet, images: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], side: int) -> Tiles:
    """The tiles of images: clean and noisy [H, W] and outputs [settings, H, W]; a tile with its overlap gives the same."""
    rows: list[tuple[Any, ...]] = []
    for k, (clean, noisy, outputs) in enumerate(images):
        whole = np.array([gmac(model, n, clean.shape) for n in model.settings])
        for places in zip(*(tiles(model.about, n, side, *clean.shape) for n in model.settings), strict=True):
            at = places[0][:2]
            work = [gmac(model, n, size_of(seen)) for n, (_, _, seen, _) in zip(model.settings, places, strict=True)]
            parts = outputs[:, *at]
            errors = np.square(parts - clean[at]).sum((1, 2))
            change = float(np.square(parts[1] - parts[0]).mean())
            rows.append((k, errors, work, whole * clean[at].size / clean.size, texture(noisy[at]), change))
    return Tiles(*map(np.array, zip(*rows, strict=True)))


def weighted(of: Tiles) -> np.ndarray:
    """Squared errors in parts of the image's at the most steps, so that a decibel counts the same in each."""
    return of.errors / np.bincount(of.image, of.errors[:, -1])[of.image, None]


def chosen(of: Tiles, work: np.ndarray, price: float, by: str, seen: Tiles, seen_work: np.ndarray) -> np.ndarray:
    """The place of each tile's setting; `seen`: the calibration images."""
    if by == "oracle":
        return (weighted(of) + price * work).argmin(1)
    edges = np.quantile(getattr(seen, by), np.arange(1, RANGES) / RANGES)
    ranges = np.searchsorted(edges, getattr(seen, by))
    loss = weighted(seen) + price * seen_work
    table = np.array([loss[ranges == k].sum(0).argmin() for k in range(RANGES)])
    return table[np.searchsorted(edges, getattr(of, by))]


def reached(of: Tiles, work: np.ndarray, pick: np.ndarray, pixels: np.ndarray, by: str = "") -> dict[str, float]:
    """Mean GMAC an image, and mean PSNR in dB, of tiles at these settings."""
    each = np.arange(len(pick))
    spent = work[each, pick]
    if by == "change":  # the two least ran before
        spent = spent * (pick > 1) + work[:, :2].sum(1)
    errors = np.bincount(of.image, of.errors[each, pick])
    psnr = 10 * np.log10(pixels / errors)
    return {"gmac": round(float(spent.sum() / len(pixels)), 3), "psnr": round(float(psnr.mean()), 4)}


def run(model: RecurrentNet, files: Sequence[Path]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Clean, noisy and denoised images at every setting, in [0, 1], the last rounded to 8 bits."""
    calls, found = [ready(model, n) for n in model.settings], []
    for path in tqdm(files, unit="image", disable=None):
        image = read_image(path, 1)
        noisy = protocol_noise(image, SIGMA)
        with torch.inference_mode():
            outputs = torch.cat([to_uint8_levels(call(noisy)) for call in calls])
        found.append((image[:, :, 0] / 255, noisy[0, 0].numpy(), outputs[:, 0].numpy()))
    return found


def denoising(test: Sequence[Path], training: Sequence[Path]) -> dict[str, Any]:
    """`fixed`: a row a setting; `curves`: of each size of tiles, each choice, with overlap counted and not."""
    model = rcnet.load(DENOISER)
    images, others = run(model, test), run(model, training)
    pixels = np.array([clean.size for clean, _, _ in images])
    whole = cut(model, images, 0)
    fixed = [
        {"steps": n.to_json(), **reached(whole, whole.work, np.full(len(images), k), pixels)}
        for k, n in enumerate(model.settings)
    ]
    curves = []
    for side in SIDES:
        of, seen = cut(model, images, side), cut(model, others, side)
        for overlap in (True, False) if side else (True,):
            work, seen_work = (part.work if overlap else part.bare for part in (of, seen))
            for by in ("oracle", "texture", "change"):
                picks = [chosen(of, work, price, by, seen, seen_work) for price in PRICES]
                points = [reached(of, work, pick, pixels, by) for pick in picks]
                curves.append({"side": side, "overlap": overlap, "by": by, "points": points})
    about = {"images": len(images), "calibrated_on": len(others), **made_here(torch.device("cpu")), "commit": commit()}
    return {"weights": DENOISER, "sigma": SIGMA, **about, "fixed": fixed, "curves": curves}


def classifying(data: Path) -> dict[str, Any]:
    model = rcnet.load(CLASSIFIER)
    test = read_matching(data, "test", model)
    with tqdm(total=len(model.settings) * len(test.labels), unit="image", disable=None) as bar:
        result = adaptive_results(model, test.images, test.labels, RISK, each=bar.update)
    about = {"data": test.name, **made_here(torch.device("cpu")), "commit": commit()}
    return {"weights": CLASSIFIER, **about, **result}


def gains(part: dict[str, Any], curve: dict[str, Any]) -> list[float]:
    """PSNR above that of the fixed settings `AT`, at their cost, in dB; NaN where the curve begins above it."""
    points = sorted((point["gmac"], point["psnr"]) for point in curve["points"])
    at = [row for n in AT for row in part["fixed"] if row["steps"] == n]
    return [float(np.interp(row["gmac"], *zip(*points, strict=True), left=np.nan)) - row["psnr"] for row in at]


def render(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            "# Cost by the content",
            "",
            "Rendered by `python -m benchmarks.adaptive`: the setting chosen for each image by a classifier's confidence, and",
            "for each tile of an image by its content, against fixed settings at equal mean MACs. All that runs is counted.",
            "",
            "![Error and PSNR against mean MACs, of fixed settings and of choices by the content](adaptive.png)",
            "",
            *classifying_lines(result["classify"]),
            "",
            *denoising_lines(result["denoise"]),
            "",
        ]
    )


def classifying_lines(part: dict[str, Any]) -> list[str]:
    *fixed, own = part["rows"]
    rows = [
        *((str(Setting.of(row["steps"])), row) for row in fixed),
        (" then ".join(str(Setting.of(n)) for n in own["steps"]), own),
    ]
    lines = [
        f"## Classifying, by the image: it {'pays' if part['pays'] else 'does not pay'}",
        "",
        f"`{part['weights']}` on {part['images']:,} of the test images of {part['data']}, calibrated on the",
        f"{part['calibrated_on']:,} others for a risk of {100 * part['risk']:g} points; {made_of(part)}.",
        "",
        *table(
            ["steps", "MMAC an image", "error %"],
            [[steps, f"{row['macs'] / 1e6:.0f}", f"{row['error']:.2f}"] for steps, row in rows],
        ),
        "",
        f"The cascade takes an answer from a probability of {own['confidence']:.4f} on; {100 * own['ends'][0]:.0f}% of the",
        f"images end at its first setting. Fixed settings reach {part['fixed']:.2f}% at its mean cost, between two by drawing.",
    ]
    return lines


def denoising_lines(part: dict[str, Any]) -> list[str]:
    best = {by: max(max(gains(part, c)) for c in part["curves"] if c["by"] == by) for by in ("oracle", "texture")}
    pays = any(min(gains(part, c)) > 0 for c in part["curves"] if c["by"] != "oracle" and c["overlap"])
    lines = [
        f"## Denoising, by the tile: it {'pays' if pays else 'does not pay'}",
        "",
        f"`{part['weights']}` at sigma {part['sigma']} on {part['images']} images of BSD68, calibrated on",
        f"{part['calibrated_on']} training images of BSD; {made_of(part)}.",
        "",
        *table(
            ["fixed steps, whole images", "GMAC an image", "PSNR dB"],
            [[str(Setting.of(row["steps"])), f"{row['gmac']:.2f}", f"{row['psnr']:.2f}"] for row in part["fixed"]],
        ),
        "",
        "The settings are chosen by an *oracle*, which knows the truth and bounds all others; by *texture*, the differences of",
        "neighbours in the noisy tile, which cost nothing; by *change*, the difference of the two least settings' outputs, which",
        "are computed for it. A tile is computed with the pixels around it that its setting sees. Not to count these bounds what",
        "any way to share them between tiles could gain, and shows about what pictures would that are cut into tiles anyway.",
        "Figures are PSNR above the fixed setting's, at its cost; none where even the least choice costs more.",
        "",
    ]
    rows = []
    for curve in part["curves"]:
        side = f"{curve['side']} pixels a side" if curve["side"] else "whole images"
        overlap = ("counted" if curve["overlap"] else "not counted") if curve["side"] else "none"
        cells = ["" if np.isnan(gain) else f"{gain:+.3f}" for gain in gains(part, curve)]
        rows.append([side, overlap, curve["by"], *cells])
    lines += table(["tiles", "overlap", "chosen by", *(f"dB at the cost of steps {n}" for n in AT)], rows)
    if not pays:
        lines += [
            "",
            f"With overlap for nothing, the oracle gains {best['oracle']:.3f} dB at most there, and a choice by texture",
            f"{best['texture']:.3f}. So `rcnet denoise` has no such option: a fixed setting is the better use of the same MACs.",
        ]
    return lines


def made_of(part: dict[str, Any]) -> str:
    return f"{part['hardware']}, torch {part['torch']}, commit {part['commit']}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Error and PSNR against mean MACs."""
    from rcnet.figures.plots import page, style, to_image

    with page(3.4) as figure:
        left, right = figure.subplots(1, 2)
        part = result["classify"]
        *fixed, own = part["rows"]
        curve = [row for row in part["curve"] if row["macs"] <= 1.3 * fixed[-1]["macs"]]
        for place, (rows, label, size) in enumerate(((fixed, "fixed settings", 5), (curve, "by confidence", 0))):
            x, y = [row["macs"] / 1e6 for row in rows], [row["error"] for row in rows]
            left.plot(x, y, label=label, markersize=size, **style(place))
        left.plot(own["macs"] / 1e6, own["error"], "k*", markersize=9, label="calibrated")
        left.set(xlabel="mean MMAC an image", ylabel="error, %", title="r2.cifar10, by the image")
        part = result["denoise"]
        most = part["fixed"][-1]["gmac"]
        x, y = ([row[key] for row in part["fixed"]] for key in ("gmac", "psnr"))
        right.plot(x, y, label="fixed settings", markersize=4, **style(0))
        place = 1
        for curve in part["curves"]:
            if curve["side"] and curve["overlap"] and curve["by"] in ("oracle", "texture"):
                points = sorted((p["gmac"], p["psnr"]) for p in curve["points"] if p["gmac"] <= 1.3 * most)
                label = f"tiles of {curve['side']}, {curve['by']}"
                right.plot(*zip(*points, strict=True), label=label, markersize=3, **style(place))
                place += 1
        right.set(xlabel="mean GMAC an image", ylabel="PSNR, dB", title="r3_fast.bsd-gray-25, by the tile")
        for axes in (left, right):
            axes.legend(fontsize=8)
        to_image(figure).save(path)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--bsd", type=Path, help="folder of the gray BSD68 images")
    parser.add_argument("--calibration", type=Path, help="folder of BSD's training images")
    parser.add_argument("--images", type=int, default=68, help="so many of each, evenly spread")
    args = parser.parse_args()
    if bool(args.bsd) != bool(args.calibration):
        parser.error("--bsd and --calibration go together")
    path = RESULTS / "adaptive.json"
    result = kept(path)
    if args.cifar:
        result["classify"] = classifying(args.cifar)
    if args.bsd:
        result["denoise"] = denoising(*(evenly(list_images(folder), args.images) for folder in (args.bsd, args.calibration)))
    path.write_text(json.dumps(result, indent=1) + "\n")
    if missing := {"classify", "denoise"} - set(result):
        parser.error(f"{path} holds nothing of {missing.pop()} yet: give its folders")
    draw(result, path.with_suffix(".png"))
    print(record(path, result, render))


if __name__ == "__main__":
    main()

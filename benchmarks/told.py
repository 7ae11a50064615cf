"""What a denoiser makes of being told: PSNR against the noise level that it is told, and against the strength of its judge.

    pip install 'rcnet[plots]'
    python -m benchmarks.told --bsd BSD/test [--pairs DIR] [--model r3_fast.photo] [--images N]

8-bit pictures, middles of 240x240 pixels: white noise and gray noise (the same in all channels) of sigma 5, 15 and 50, and a
camera's noise, where pairs NAME_real.JPG and NAME_mean.JPG are given. The network is told each level as the kind of noise that
its judge finds; then what the judge says, times a strength. At 0 it returns its input. Results go to results/told.json, the
tables to results/told.md and the curves to results/told.png.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import rcnet
from benchmarks.classical import evenly
from benchmarks.page import RESULTS, options, record, table
from rcnet.data.images import list_images, read_image, read_pair
from rcnet.deploy.torch_session import TorchSession
from rcnet.figures.plots import page, style
from rcnet.runtime.denoise import Work, denoise_pixels
from rcnet.training.provenance import commit, made_here

TOLD = (0, 2, 4, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80)  # levels of 255
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
SIGMAS = (5, 15, 50)
SIDE = 240
Pair = tuple[np.ndarray, np.ndarray]


def middle(image: np.ndarray) -> np.ndarray:
    top, left = (max(side - SIDE, 0) // 2 for side in image.shape[:2])
    return image[top : top + SIDE, left : left + SIDE]


def with_noise(clean: np.ndarray, sigma: float, gray: bool) -> np.ndarray:
    """uint8 [H, W, C] with the same white noise at every call; `gray`: the same in all channels."""
    shape = (*clean.shape[:2], 1) if gray else clean.shape
    return np.rint((clean + np.random.RandomState(0).normal(0, sigma, shape)).clip(0, 255)).astype(np.uint8)


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(max(np.square(image.astype(float) - clean).mean() / 255**2, 1e-10)))


def measure(model: rcnet.RecurrentNet, sets: dict[str, list[Pair]]) -> dict[str, Any]:
    """For each set the mean PSNR at each level and at each strength, at the most steps."""
    session = TorchSession(rcnet.optimize(model, precision="fp32"))
    setting, curves = model.settings[-1], {}
    with tqdm(total=sum(map(len, sets.values())) * (len(TOLD) + len(STRENGTHS)), unit="picture") as bar:

        def mean(pairs: list[Pair], work: Callable[[np.ndarray], Work]) -> float:
            values = [
                psnr(denoise_pixels(session, work(noisy), setting, each=bar.update).pixels, clean) for noisy, clean in pairs
            ]
            return round(float(np.mean(values)), 3)

        for name, pairs in sets.items():
            curves[name] = {
                "noisy": round(float(np.mean([psnr(*pair) for pair in pairs])), 3),
                "told": [mean(pairs, lambda pixels, level=level: Work(pixels, float(level))) for level in TOLD],
                "strength": [mean(pairs, lambda pixels, s=s: Work(pixels, strength=s)) for s in STRENGTHS],
            }
    return {"steps": str(setting), "told": TOLD, "strengths": STRENGTHS, "curves": curves}


def render(result: dict[str, Any]) -> str:
    curves = result["curves"]
    pictures = f"{result['images']} middles of CBSD68, {SIDE}x{SIDE} pixels"
    if result["pairs"]:
        pictures += f", and {result['pairs']} of camera pairs, the development set"
    lines = [
        "# What a denoiser is told",
        "",
        f"`{result['model']}` at {result['steps']} steps, mean PSNR in dB of 8-bit pictures: {pictures}.",
        f"{result['made']['hardware']}, torch {result['made']['torch']}, commit {result['commit']}.",
        "",
        "![PSNR against the level that is told, and against the strength](told.png)",
        "",
        "## Told a level, of the kind of noise that the judge finds",
        "",
        *table(
            ["told", *curves],
            [[level, *(f"{c['told'][i]:.2f}" for c in curves.values())] for i, level in enumerate(result["told"])],
        ),
        "",
        "## Told what the judge says, times a strength",
        "",
        *table(
            ["strength", *curves],
            [[s, *(f"{c['strength'][i]:.2f}" for c in curves.values())] for i, s in enumerate(result["strengths"])],
        ),
        "",
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Both curves of each set, as the gain over the noisy picture."""
    with page(3.4) as figure:
        for axes, key, at, name in zip(
            figure.subplots(1, 2, sharey=True),
            ("told", "strength"),
            ("told", "strengths"),
            ("told sigma", "--strength"),
            strict=True,
        ):
            for place, (label, curve) in enumerate(result["curves"].items()):
                look = style(place) if place < 6 else {"color": "black", "marker": "x"}  # there are six styles
                axes.plot(result[at], np.array(curve[key]) - curve["noisy"], label=label, markersize=3, **look)
            axes.set_xlabel(name)
            axes.axhline(0, color="black", linewidth=0.8)
        figure.axes[0].set_ylabel("gain over the noisy picture, dB")
        figure.axes[0].set_ylim(bottom=-6)
        figure.axes[1].legend(fontsize=7)
        figure.savefig(path)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--bsd", type=Path, required=True, help="folder of the 68 colour images")
    parser.add_argument("--pairs", type=Path, help="folder of pairs")
    parser.add_argument("--model", default="r3_fast.photo", help="bundled weights or a file of weights")
    parser.add_argument("--images", type=int, default=12, help="how many of the images, and of the pairs, evenly spread")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    model = rcnet.load(args.model)
    channels = model.about.channels
    images = [middle(read_image(file, channels)) for file in evenly(list_images(args.bsd), args.images)]
    kinds = {"white": False, **({"gray": True} if channels == 3 else {})}
    sets = {f"{kind} {s}": [(with_noise(x, s, gray), x) for x in images] for kind, gray in kinds.items() for s in SIGMAS}
    if args.pairs:
        noisy = evenly(sorted(args.pairs.glob("*_real.*")), args.images)
        pairs = [read_pair(file, file.with_name(file.name.replace("_real.", "_mean.")), channels) for file in noisy]
        sets["a camera's"] = [(middle(a), middle(b)) for a, b in pairs]
    result = measure(model, sets)
    result |= {"model": args.model, "images": len(images), "pairs": len(sets.get("a camera's", [])), "commit": commit()}
    result["made"] = made_here(torch.device("cpu"))
    args.out.mkdir(parents=True, exist_ok=True)
    draw(result, args.out / "told.png")
    print(record(args.out / "told.json", result, render))


if __name__ == "__main__":
    main()

"""The dial: which setting of a network fits a budget of time or of arithmetic, and what it reaches.

    python examples/budget.py photos/ 200ms [r3_fast.bsd-gray-25]
    python examples/budget.py photos/ 2GMAC

A setting is the number of steps of each cell. Measures the PSNR of each setting on the folder, with noise of sigma 25, and its
cost on this machine. Marks the best that fits, and denoises the first image with it.
"""

import sys

import rcnet
from rcnet.data.images import read_folder
from rcnet.data.noise import protocol_noise


def main(folder: str, budget: str, weights: str = "r3_fast.bsd-gray-25") -> None:
    model = rcnet.load(weights)
    images = read_folder(folder, model.about.channels)
    size = images[0].shape[:2]
    rows = rcnet.best_settings(model, images, budget=budget, size=size)
    for row in rows:
        time = f", {row['ms']:.1f} ms" if "ms" in row else ""
        note = " <- the best within the budget" * row["best"] + " (another is better, and no dearer)" * (not row["front"])
        print(f"steps {row['steps']}: {row['psnr']:.2f} dB, {row['macs'] / 1e9:.2f} GMAC{time}{note}")
    steps = next(row["steps"] for row in rows if row["best"])
    rcnet.denoise(model, protocol_noise(images[0], 25), steps)
    print(f"by the results in its file alone: steps {rcnet.steps_for(model, budget, size)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

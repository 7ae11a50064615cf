"""Writes the table of results of README.md, and results/weights/NAME.json, from the metadata of the bundled weights.

rcnet eval r3.bsd-gray-25 --data BSD68/ --sigma 25 --record         # measures and records, for each set of weights
python -m benchmarks.readme                                          # renders
"""

import json
import re
from pathlib import Path

from rcnet.cli.text import count
from rcnet.cost.catalogue import describe_weights
from rcnet.models import bundled, read_metadata

README = Path(__file__).parent.parent / "README.md"
RECORDS = README.parent / "results" / "weights"
MARKS = ("<!-- rendered by python -m benchmarks.readme -->", "<!-- end -->")
# On the same 68 images at sigma 25, as published: Zhang & Jung 2019 (R3 and BM3D), Zhang et al. 2017 (DnCNN), 2018 (FFDNet).
PUBLISHED = {"BM3D": 28.57, "R3^4, the paper's": 29.07, "FFDNet": 29.19, "DnCNN-S": 29.23}


def render() -> str:
    """The table and what the figures come from."""
    lines = ["| weights | steps | parameters | MACs, 321x481 | PSNR dB, BSD68, sigma 25 |", "|---|---|---|---|---|"]
    notes = []
    for name in bundled():
        row, training = describe_weights(name), read_metadata(name)["training"]
        runs = [training]
        while runs[-1].get("before"):
            runs.append(runs[-1]["before"])
        iterations, minutes = sum(run["iterations"] for run in runs), sum(run["minutes"] for run in runs)
        for step in row["steps"]:
            psnr = step["results"]["BSD68 sigma 25"]
            lines.append(f"| `{name}` | {step['steps']} | {step['parameters']:,} | {count(step['macs'])} | {psnr:.2f} |")
        notes.append(
            f"`{name}`: {iterations:,} iterations in {minutes:.0f} minutes on {training['hardware']} ({training['precision']}), "
            f"seed {training['seed']}, the {training['data']['images']} training images of BSD."
        )
    published = ", ".join(f"{name} {value:.2f}" for name, value in PUBLISHED.items())
    return "\n".join([*lines, "", f"Published on the same images: {published}.", "", *notes])


def main() -> None:
    for name in bundled():
        (RECORDS / f"{name}.json").write_text(json.dumps(read_metadata(name), indent=1) + "\n")
    text = README.read_text()
    block = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    README.write_text(block.sub(lambda _: f"{MARKS[0]}\n{render()}\n{MARKS[1]}", text))


if __name__ == "__main__":
    main()

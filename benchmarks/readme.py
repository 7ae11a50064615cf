"""Writes the tables of results of docs/, and results/weights/NAME.json, from the metadata of the bundled weights.

rcnet eval r3.bsd-gray-25 --data BSD68/ --sigma 25 --record         # measures and records, for each set of weights
rcnet eval r3_fast.photo --data CBSD68/ --sigma 25 --record          # and 15, 50; --blind; --as-8bit; --harm; --noisy --clean
rcnet eval r2.cifar10 --data data/ --record
python -m benchmarks.readme                                          # renders; --pictures: draws those of docs/ again, too
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.page import table
from rcnet.cli import app
from rcnet.cli.text import count
from rcnet.models import bundled, read_metadata
from rcnet.models.files import trainings
from rcnet.models.registry import entry
from rcnet.setting import Setting
from rcnet.tasks.catalogue import describe_weights

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "results" / "study" / "lite"
DIAL, R3 = "r3_fast.bsd-gray-25", "r3.bsd-gray-25"
RECORDS = ROOT / "results" / "weights"
# On the same 68 images at sigma 25, as published: Zhang & Jung 2019 (R3 and BM3D), Zhang et al. 2017 (DnCNN), 2018 (FFDNet).
DENOISERS = {"BM3D": 28.57, "R3^4, the paper's": 29.07, "FFDNet": 29.19, "DnCNN-S": 29.23}
# The same at sigma 15, 25, 50, gray (BSD68) and the 68 colour images.
ANY_LEVEL = {
    "BM3D": "31.07, 28.57, 25.62",
    "FFDNet, gray": "31.63, 29.19, 26.29",
    "CBM3D": "33.52, 30.71, 27.38",
    "FFDNet, colour": "33.87, 31.21, 27.96",
}
# Published errors in % on CIFAR-10: Zhang & Jung 2019, mean of three runs.
CLASSIFIERS = {"cost-adjustable R2, the paper's, steps 2, 3, 4": "8.46, 8.08, 7.87"}
# Published by the authors of airbench (github.com/KellerJordan/cifar10-airbench), with test-time augmentation for their own:
# epochs, error in %, PFLOP.
FAST = {"airbench94, with Muon": (8, 5.99, 0.29), "airbench96": (None, 3.97, 4.9), "ResNet-18, usual training": (None, 4.0, 32.3)}


def names_of(task: str) -> list[str]:
    return [name for name in bundled() if entry(read_metadata(name)["architecture"]["name"]).task == task]


def parts(name: str) -> list[dict[str, Any]]:
    """The runs that made these weights, the last first."""
    return trainings(read_metadata(name))


def origin(name: str, images: str) -> str:
    """Where the weights come from, in a sentence."""
    runs = parts(name)
    minutes: dict[str, float] = {}
    for run in reversed(runs):
        processes = f"{run['processes']} processes of " if run.get("processes", 1) > 1 else ""
        where = f"{processes}{run['hardware']} ({run['precision']})"
        minutes[where] = minutes.get(where, 0.0) + run["minutes"]
    data = runs[0]["data"]
    # Some of those of r3_fast.photo and r3_fast.gray are the test images of BSDS500, which none of these figures is of.
    kind = "training images of" if data["images"] in (232, 50000) else "images of the data set of"
    pairs = f" and {data['pairs']} pairs of photographs of PolyU" if data.get("pairs") else ""
    return (
        f"`{name}`: {sum(run['iterations'] for run in runs):,} iterations in "
        f"{' and '.join(f'{time:.0f} minutes on {where}' for where, time in minutes.items())}, "
        f"seed {runs[0]['seed']}, {data['images']:,} {kind} {images}{pairs}."
    )


def one_level() -> list[str]:
    """The denoisers that take no noise level."""
    return [name for name in names_of("denoise") if name not in any_level()]


def any_level() -> list[str]:
    """The denoisers that take the noise level."""
    return [name for name in names_of("denoise") if read_metadata(name)["architecture"]["config"].get("noise_level")]


def recorded(name: str, steps: int, key: str, **about: Any) -> str:
    """A figure of the results in the file whose description holds all of `about`, or a dash."""
    for result in read_metadata(name)["results"]:
        if all(result.get(word) == value for word, value in about.items()):
            for row in result["rows"]:
                if row["steps"] == steps and key in row:
                    return f"{row[key]:.2f}"
    return "-"


def photos() -> str:
    """The denoisers of any noise level: PSNR told and blind, and what they do to pictures without noise."""
    rows = []
    for name in any_level():
        images = "CBSD68" if read_metadata(name)["preprocessing"]["channels"] == 3 else "BSD68"
        for step in describe_weights(name)["steps"]:
            told = {"data": images, "as_8bit": False, "blind": False, "precision": "fp32"}
            columns = [recorded(name, step["steps"], "psnr", sigma=sigma, **told) for sigma in (15.0, 25.0, 50.0)]
            columns.append(recorded(name, step["steps"], "psnr", sigma=25.0, **{**told, "blind": True}))
            columns.append(recorded(name, step["steps"], "psnr", sigma=25.0, **{**told, "as_8bit": True}))
            harm = {"data": f"{images} without noise", "blind": True}
            columns += [recorded(name, step["steps"], key, **harm) for key in ("clean", "page", "flat")]
            rows.append([*cost_cells(name, step), *columns])
    heads = ["sigma 15", "25", "50", "25, blind", "25, 8-bit", "clean", "page", "flat"]
    lines = table(["weights", "steps", "parameters", "MACs, 321x481", *heads], rows)
    published = "; ".join(f"{name} {values}" for name, values in ANY_LEVEL.items())
    real = [
        f"{name}, {result['data'].removesuffix(', pairs')} ({result['images']} pairs) "
        f"{', '.join(recorded(name, row['steps'], 'psnr', **about) for row in result['rows'])}"
        for name in any_level()
        for result in read_metadata(name)["results"]
        if (about := {"data": result["data"], "blind": True}).items() <= result.items() and result["data"].endswith("pairs")
    ]
    said = f"Pairs of real camera noise ([the development set](method.md)), blind, noisy and at each step: {'; '.join(real)} dB."
    pairs = [said, ""] if real else []
    return "\n".join([*lines, "", f"Published at 15, 25, 50: {published}.", "", *pairs, *(origin(n, "BSD") for n in any_level())])


def cost_cells(name: str, step: dict[str, Any]) -> list[str]:
    """The first cells of a row: weights, steps, parameters, MACs."""
    return [f"`{name}`", str(Setting.of(step["steps"])), f"{step['parameters']:,}", count(step["macs"])]


def denoisers() -> str:
    rows = [
        [*cost_cells(name, step), f"{step['results']['BSD68 sigma 25']:.2f}"]
        for name in one_level()
        for step in describe_weights(name)["steps"]
    ]
    lines = table(["weights", "steps", "parameters", "MACs, 321x481", "PSNR dB, BSD68, sigma 25"], rows)
    published = ", ".join(f"{name} {value:.2f}" for name, value in DENOISERS.items())
    notes = [origin(name, "BSD") for name in one_level()]
    return "\n".join([*lines, "", f"Published on the same images: {published}.", "", *notes])


def classifiers() -> str:
    rows = [
        [*cost_cells(name, step), f"{step['results']['cifar10']:.2f}"]
        for name in names_of("classify")
        for step in describe_weights(name)["steps"]
    ]
    lines = table(["weights", "steps", "parameters", "MACs, 32x32", "error %, CIFAR-10 test"], rows)
    published = "; ".join(f"{name}: {value}" for name, value in CLASSIFIERS.items())
    notes = [origin(name, "CIFAR-10") for name in names_of("classify")]
    return "\n".join([*lines, "", f"Published: {published}.", "", *notes])


def fast() -> str:
    """Weights of classifiers beside other fast trainings."""
    rows = []
    for name in names_of("classify"):
        runs = parts(name)
        step = describe_weights(name)["steps"][-1]
        epochs, pflop = (sum(run[key] for run in runs) for key in ("epochs", "pflop"))
        error = step["results"]["cifar10"]
        label = f"`{name}`, steps {Setting.of(step['steps'])}, by the recipe `r2`"
        rows.append([label, f"{epochs:.1f}", f"{error:.2f}", f"{pflop:.2g}"])
    for name, (epochs_there, error, pflop) in FAST.items():
        rows.append([f"{name}, as published", epochs_there or "", f"{error:.2f}", f"{pflop:g}"])
    return "\n".join(table(["training", "epochs", "error %, CIFAR-10 test", "PFLOP"], rows))


def norms() -> str:
    """What batch norms for each step are worth, from the study."""
    rows = []
    for label, mode in (("one for each step", ""), ("none", "-none"), ("one, shared by all steps", "-shared")):
        r2, r3 = (
            json.loads((STUDY / f"{network}-4{mode}.{data}-seed0.json").read_text())["rows"][-1]
            for network, data in (("r2", "cifar10"), ("r3", "bsd25"))
        )
        rows.append([label, f"{r2['error']:.2f}", f"{r3['psnr']:.2f}"])
    return "\n".join(table(["batch norms", "error %, R2^4", "PSNR dB, R3^4"], rows))


def dial() -> str:
    """The picture of the dial, and what it shows."""
    steps = describe_weights(DIAL)["steps"]
    (low, cheap), (high, dear) = ((step["results"]["BSD68 sigma 25"], step["macs"] / 1e9) for step in (steps[0], steps[-1]))
    return "\n".join(
        [
            f"![PSNR against GMAC of the {len(steps)} settings of {DIAL}](pictures/dial.png)",
            "",
            f"*One file of {steps[0]['parameters'] / 1e6:.2f} million parameters, {len(steps)} settings: on BSD68 at sigma 25 "
            f"from {low:.2f} dB at {cheap:.1f} GMAC to {high:.2f} dB at {dear:.1f}. BM3D reaches {DENOISERS['BM3D']:.2f} dB.*",
        ]
    )


def beside() -> str:
    """r3_fast beside other denoisers, from what `benchmarks.denoise` recorded; published PSNR beside."""
    result = json.loads((ROOT / "results" / "denoise.json").read_text())
    rows = {
        (row["name"], row["steps"], row["precision"], row["path"]): row for row in result["rows"] if row["steps"] in (None, 1, 3)
    }
    last = "bf16" if ("r3_fast", 1, "bf16", "optimize") in rows else "fp32"
    bm3d, quick = rows["BM3D", None, "", "bm3d"], rows["r3_fast", 1, last, "optimize"]
    part = [
        f"{rows['r3_fast', 3, kind, 'optimize']['seconds'] / rows['FFDNet', None, kind, 'optimize']['seconds']:.2f} in {kind}"
        for kind in dict.fromkeys(("fp32", last))
    ]
    return (
        f"In short, from that page (sigma {result['sigma']:g}, {result['images']} of the {result['of']} images of BSD68, "
        f"{result['hardware']}): r3_fast at one step is {quick['psnr'] - bm3d['psnr']:.2f} dB above BM3D in "
        f"1/{bm3d['seconds'] / quick['seconds']:.0f} of its time in {last}; at three steps, of the time of FFDNet's "
        f"graph, {', '.join(part)}. DnCNN ({DENOISERS['DnCNN-S']:.2f} dB as published) and "
        f"FFDNet ({DENOISERS['FFDNet']:.2f}) are better than what our weights reach so far ([the table](use.md))."
    )


def conversion() -> str:
    """What a converted ResNet loses and gets back, from what `benchmarks.conversion` recorded."""
    found = json.loads((ROOT / "results" / "conversion.json").read_text())
    return "\n".join(converted(name, parts) for name, parts in found.items())


def converted(name: str, parts: dict[str, Any]) -> str:
    """Of one set of images."""
    first = parts["ResNet-38"]["rows"][0]

    def errors(part: str) -> list[float]:
        return [row["error"] for row in parts[part]["rows"]]

    def best(part: str) -> str:
        row = next(row for row in parts[part]["rows"] if row["error"] == min(errors(part)))
        return (
            f"{row['error']:.2f} % at {row['steps']} steps with {row['parameters'] / first['parameters']:.2f} of the parameters"
        )

    after = errors("converted, rank 0")
    scratch = " and ".join(
        f"{min(errors(part)):.2f} % in {parts[part]['epochs']:g} epochs"
        for part in ("from scratch", "from scratch, as long as both")
        if part in parts
    )
    return (
        f"- {name.upper().replace('CIFAR', 'CIFAR-')}: a ResNet-38 of {first['parameters']:,} parameters has an error of "
        f"{first['error']:.2f} % after {parts['ResNet-38']['epochs']:g} epochs; converted, {min(after):.0f} to "
        f"{max(after):.0f} %; after {parts['fine-tuned, rank 0']['epochs']:g} epochs of fine-tuning "
        f"{best('fine-tuned, rank 0')}, and with differences of rank 8 {best('fine-tuned, rank 8')}. "
        f"The same shape from scratch: {scratch}."
    )


PICTURES = {"dial": DIAL, "bn-steps": R3, "bn-upstream": R3, "features": DIAL, "denoised": R3}


def picture(name: str) -> Path:
    return ROOT / "docs" / "pictures" / f"{name}.png"


def version(weights: str) -> str:
    """As the pictures of docs/ say it, in the text `weights` of the PNG."""
    return f"{weights} {read_metadata(weights)['weights']}"


def draw() -> None:
    """The pictures of docs/ again."""
    for name, weights in PICTURES.items():
        app(["figures", name, weights, "-o", str(picture(name))], result_action="return_value")
        about = PngInfo()
        about.add_text("weights", version(weights))
        with Image.open(picture(name)) as image:
            image.save(picture(name), pnginfo=about)


TABLES = {
    ("docs/index.md", "dial"): dial,
    ("docs/idea.md", "norms"): norms,
    ("docs/compare.md", "beside"): beside,
    ("docs/convert.md", "conversion"): conversion,
    ("docs/use.md", "photos"): photos,
    ("docs/use.md", "denoisers"): denoisers,
    ("docs/use.md", "classifiers"): classifiers,
    ("docs/training.md", "fast"): fast,
}


def insert(text: str, name: str, table: str) -> str:
    """The text with the table between the marks of that name."""
    mark = f"<!-- {name}: rendered by python -m benchmarks.readme -->"
    block = re.compile(f"{re.escape(mark)}.*?<!-- end -->", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"no place marked {mark!r}")
    return block.sub(lambda _: f"{mark}\n{table}\n<!-- end -->", text)


def main() -> None:
    if "--pictures" in sys.argv:
        draw()
    for name in bundled():
        (RECORDS / f"{name}.json").write_text(json.dumps(read_metadata(name), indent=1) + "\n")
    for (file, name), render in TABLES.items():
        path = ROOT / file
        path.write_text(insert(path.read_text(), name, render()))


if __name__ == "__main__":
    main()

"""RESULTS/STUDY.md: every table and figure beside the paper's, rendered from the result files."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcnet.cell import RecurrentNet
from rcnet.cost.catalogue import SIZES
from rcnet.data.images import read_folder
from rcnet.data.labelled import read_labelled
from rcnet.errors import InputError
from rcnet.figures.bn_steps import bn_steps
from rcnet.figures.bn_upstream import bn_upstream
from rcnet.figures.denoised import denoised
from rcnet.figures.features import features
from rcnet.figures.psnr_steps import psnr_steps
from rcnet.figures.relative import relative_accuracy
from rcnet.figures.side_by_side import save_picture
from rcnet.models.files import load
from rcnet.replacing import replacing
from rcnet.study.claims import CURVES, relative, verdicts
from rcnet.study.paper import BSD, CIFAR, DATA, FIGURES, NETWORKS, R3, S3, TABLES, Key, metric, published
from rcnet.study.plan import Folders, Run, costs, declared, kept_result, parameters_of
from rcnet.study.profiles import PROFILES, find_profile

MISSING = "not yet measured"
PAGE = """# The paper, checked

Zhang & Jung, *Recurrent Convolution for Compact and Cost-Adjustable Neural Networks*: its claims, tables and figures beside what
was measured here. Rendered by `rcnet study report` from the result files in `study/`, each of which names its recipe, hardware,
time and commit; `rcnet study run` makes those that are missing. Errors and accuracies are those of the 10,000 test images of
CIFAR, PSNR is that of BSD68; means over seeds, "sd" is the standard deviation between them.
"""


@dataclass(frozen=True)
class Measured:
    """The results of a profile: those of each seed by key, and all files."""

    profile: str
    seeds: dict[Key, list[float]]
    results: list[dict[str, Any]]

    def values(self) -> dict[Key, float]:
        """The mean of each key over the seeds there are."""
        return {key: statistics.fmean(values) for key, values in self.seeds.items()}

    def cost(self, key: Key) -> float:
        """MACs of a key, for an image of its data set."""
        return costs(key.network, key.data, self.profile, SIZES["classify" if key.data in CIFAR else "denoise"])[key.steps]


def results_of(profile: str, folders: Folders) -> Measured:
    """What the result files of a profile hold; a run that diverged is nan at each of its steps."""
    seeds: dict[Key, list[float]] = {}
    results = []
    for run in declared(profile):
        result = kept_result(run.result(folders))
        if result is None:
            continue
        results.append(result)
        rows = {row["steps"]: float(row[metric(run.data)]) for row in result["rows"]}
        taken = NETWORKS[run.network].model["steps"]
        for n in taken if isinstance(taken, list) else [taken]:
            value = rows.get(n, math.nan) if result["status"] == "done" else math.nan
            seeds.setdefault(Key(run.network, run.data, n), []).append(value if math.isfinite(value) else math.nan)
    return Measured(profile, seeds, results)


def write(folders: Folders, profiles: Sequence[str] = ()) -> list[Path]:
    """Renders the page and the figures that can be drawn; returns their files.

    Args:
        profiles: the columns; those of full and lite that have results unless given, full if neither has.

    Raises:
        InputError: an unknown profile, a damaged result file, or matplotlib is not installed.
    """
    for name in profiles:
        find_profile(name)
    all_measured = {name: results_of(name, folders) for name in profiles or ("full", "lite")}
    shown = [m for m in all_measured.values() if m.results or profiles] or [all_measured["full"]]
    folder = folders.results / "study" / "figures"
    written, notes = [], {}
    for m in shown:
        for number in FIGURES:
            path = folder / f"figure{number}-{m.profile}.png"
            picture = draw(number, m, folders)
            if isinstance(picture, Image.Image):
                folder.mkdir(parents=True, exist_ok=True)
                save_picture(path, picture)
                written.append(path)
            elif not path.exists():  # one that was drawn where the weights were is kept
                notes[path] = picture
    page = folders.results / "STUDY.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as temporary:
        temporary.write_text(render(shown, folder, notes))
    return [page, *written]


def render(shown: Sequence[Measured], figures: Path, notes: dict[Path, str]) -> str:
    """The page; `notes` says why a figure is not there."""
    parts = [PAGE, "## Profiles\n", *(f"- **{m.profile}**: {PROFILES[m.profile].about}. {work(m)}" for m in shown), ""]
    parts += ["## Claims\n", claims_table(shown), ""]
    for number, table in TABLES.items():
        parts += [f"## Table {number}. {table.title}\n", results_table(number, shown), ""]
    for number, figure in FIGURES.items():
        parts += [f"## Figure {number}. {figure.title}\n"]
        for m in shown:
            path = figures / f"figure{number}-{m.profile}.png"
            text = notes.get(path)
            parts += [
                f"{m.profile}: {text}\n" if text else f"![Figure {number}, profile {m.profile}](study/figures/{path.name})\n"
            ]
    return "\n".join(parts)


def work(m: Measured) -> str:
    """What has been done, in a sentence or two."""
    count = f"{len(m.results)} of {len(declared(m.profile))} runs done"
    if not m.results:
        return f"{count}."
    hours = sum(result["minutes"] or 0 for result in m.results) / 60
    pflop = sum(result["pflop"] or 0 for result in m.results)
    hardware = sorted({result["hardware"] for result in m.results})
    commits = sorted({str(result["commit"]) for result in m.results})
    return f"{count}: {hours:.1f} hours, {pflop:.3g} PFLOP on {'; '.join(hardware)}; commits {', '.join(commits)}."


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def claims_table(shown: Sequence[Measured]) -> str:
    """A line a claim: what the paper's own tables say of it, and what was measured here."""
    paper = [verdict for _, verdict in verdicts(published(), Measured("full", {}, []).cost)]
    ours = [verdicts(m.values(), m.cost) for m in shown]
    rows = []
    for i, own in enumerate(paper):
        claim = ours[0][i][0]
        cells = [f"*{v.text}*" + (f": {v.figures}" if v.holds is not None else "") for v in (judged[i][1] for judged in ours)]
        rows.append([claim.text, claim.where, "in a figure only" if own.holds is None else f"{own.text}: {own.figures}", *cells])
    return markdown(["claim", "where", "the paper's figures", *(m.profile for m in shown)], rows)


def results_table(number: int, shown: Sequence[Measured]) -> str:
    """A line a cell of the paper's table."""
    table = TABLES[number]
    header = ["", "data", *(["parameters: the paper", "here"] if table.parameters else []), "the paper"]
    for m in shown:
        header += [m.profile, "difference", "sd", "seeds"]
    rows = []
    for cell in table.cells:
        row = [cell.row, cell.column]
        if table.parameters:
            row += [f"{table.parameters[cell.row]:.3f}M", f"{parameters_of(cell.key.network, cell.key.data, 'full'):,}"]
        row.append("diverged" if math.isnan(cell.paper) else f"{cell.paper:.2f}")
        for m in shown:
            row += measured_cells(m, cell.key, cell.paper)
        rows.append(row)
    return markdown(header, rows)


def measured_cells(m: Measured, key: Key, paper: float) -> list[str]:
    """The value, its difference from the paper's, the standard deviation and the number of seeds."""
    values, of = m.seeds.get(key, []), len(PROFILES[m.profile].seeds)
    if not values:
        return [MISSING, "", "", f"0 of {of}"]
    mean, count = statistics.fmean(values), f"{len(values)} of {of}"
    if math.isnan(mean):
        return [f"diverged ({sum(map(math.isnan, values))} of {len(values)})", "", "", count]
    difference = "" if math.isnan(paper) else f"{mean - paper:+.2f}"
    return [f"{mean:.2f}", difference, f"{statistics.stdev(values):.2f}" if len(values) > 1 else "", count]


# Figures: a picture, or the sentence that says why there is none


def draw(number: int, m: Measured, folders: Folders) -> Image.Image | str:
    """A figure from the results and weights of a profile."""
    return DRAW[number](m, folders)


def weights(m: Measured, folders: Folders, network: str, data: str) -> RecurrentNet | None:
    """The trained network of the first seed whose weights are here, None if there are none."""
    for seed in PROFILES[m.profile].seeds:
        run = Run(network, data, seed, m.profile)
        path = run.work(folders) / "weights.safetensors"
        if Key(network, data, _last(network)) in m.seeds and path.exists():
            return load(path)
    return None


def _last(network: str) -> int:
    taken = NETWORKS[network].model["steps"]
    return int(taken[-1] if isinstance(taken, list) else taken)


def of_network(
    network: str, data: str, figure: Callable[..., Image.Image], title: str, m: Measured, folders: Folders
) -> Image.Image | str:
    """Figures 2 and 3."""
    model = weights(m, folders, network, data)
    return MISSING if model is None else figure(model, f"{title} (profile {m.profile})")


def figure4(m: Measured, folders: Folders) -> Image.Image | str:
    models = {network: weights(m, folders, network, "bsd25") for network in R3}
    networks = {NETWORKS[name].label: (model, _last(name)) for name, model in models.items() if model is not None}
    if len(networks) < len(models):
        return MISSING
    if not (folders.bsd / "test").is_dir():
        return f"not drawn: no test images in {folders.bsd}"
    return denoised(networks, read_folder(folders.bsd / "test", 1)[:2], 25.0)


def figure5(m: Measured, folders: Folders) -> Image.Image | str:
    values, paper = m.values(), published()
    levels = {}
    for data in BSD:
        series = {}
        for label, networks in (("R3 here", R3), ("S3 here", S3)):
            points = {n: values.get(Key(name, data, _last(name)), math.nan) for n, name in enumerate(networks, start=1)}
            if not all(map(math.isnan, points.values())):
                series[label] = points
        if not series:
            return MISSING
        levels[DATA[data]] = {**series, "R3^4, the paper": {4: paper[Key("r3-4", data, 4)]}}
    return psnr_steps(levels, f"R3 and S3 over steps (profile {m.profile})")


def figure6(m: Measured, folders: Folders) -> Image.Image | str:
    model = weights(m, folders, "r4-123", "cifar100")
    if model is None:
        return MISSING
    recipe = Run("r4-123", "cifar100", PROFILES[m.profile].seeds[0], m.profile).recipe(folders).classification
    try:
        test = read_labelled(folders.cifar, "test", recipe.dataset, recipe.size)
    except InputError as error:
        return f"not drawn: {error}"
    places = np.linspace(0, len(test.labels) - 1, 4).astype(int)
    images = [np.ascontiguousarray(image) for image in test.images[places].numpy().transpose(0, 2, 3, 1)]
    return features(model, images, ("cell2", "cell3"), f"Features of R4 over steps (profile {m.profile})")


def figure7(m: Measured, folders: Folders) -> Image.Image | str:
    curves = {label: relative(keys, m.values(), m.cost) for label, keys in CURVES.items()}
    drawn = {label: points for label, points in curves.items() if points}
    first = next(iter(CURVES))
    return relative_accuracy(drawn, f"CIFAR-100 (profile {m.profile})") if first in drawn and len(drawn) > 1 else MISSING


DRAW: dict[int, Callable[[Measured, Folders], Image.Image | str]] = {
    2: partial(of_network, "r2-4", "cifar10", bn_steps, "First batch norm of C1 of R2^4 at each step, CIFAR-10"),
    3: partial(of_network, "r4-123", "cifar100", bn_upstream, "First batch norm of T2 of R4 by the steps of C1, CIFAR-100"),
    4: figure4,
    5: figure5,
    6: figure6,
    7: figure7,
}

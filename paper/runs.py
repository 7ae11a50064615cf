"""The runs that tables, figures and the text need, and the result files that they leave."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper.scales import Scale, find_scale, recipe_of
from paper.tables import CHECKS, CIFAR, DATA, FIGURES, NETWORKS, TABLES, TEXT, metric
from rcnet.data.cifar import cifar_sets
from rcnet.errors import InputError, unknown
from rcnet.training.recipe import Recipe


@dataclass(frozen=True)
class Folders:
    """Where things are.

    Attributes:
        cifar: folder with CIFAR-10 and CIFAR-100 (see rcnet data).
        bsd: folder with the train and test images of BSD (see rcnet data).
        results: folder of what is kept: the report STUDY.md, study/ with the result files and pictures.
        runs: folder of checkpoints and weights.
    """

    cifar: Path = Path("data")
    bsd: Path = Path("data/bsd")
    results: Path = Path("results")
    runs: Path = Path("runs/study")


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    network: str
    data: str
    seed: int
    scale: str

    @property
    def name(self) -> str:
        return f"{self.network}.{self.data}-seed{self.seed}"

    @property
    def label(self) -> str:
        """For people: R2^4 on CIFAR-10, seed 0."""
        return f"{NETWORKS[self.network].label} on {DATA[self.data]}, seed {self.seed}"

    @property
    def classifies(self) -> bool:
        return self.data in CIFAR

    def result(self, folders: Folders) -> Path:
        return folders.results / "study" / self.scale / f"{self.name}.json"

    def outcomes(self, folders: Folders) -> Path:
        """The file of what it gives for each test image (see `measure`)."""
        return self.result(folders).with_suffix(".npz")

    def work(self, folders: Folders) -> Path:
        return folders.runs / self.scale / self.name

    def weights(self, folders: Folders) -> Path:
        return self.work(folders) / "weights.safetensors"

    def recipe(self, folders: Folders) -> Recipe:
        return recipe_of(self.network, self.data, self.seed, find_scale(self.scale), folders.cifar)

    def source(self, folders: Folders) -> Path:
        """The folder of its data."""
        return folders.cifar if self.classifies else folders.bsd


Runs = Mapping[Run, tuple[str, ...]]  # each with the places of the paper that need it


def places_of(
    tables: Sequence[int] = (), figures: Sequence[int] = (), scale: Scale | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    """(network, data) -> the tables, figures, sections and checks that need it; all that the scale is for unless some are named.

    Raises:
        InputError: a table or figure that the study does not have.
    """
    for what, asked, known in (("table", tables, TABLES), ("figure", figures, FIGURES)):
        for number in asked:
            if number not in known:
                raise unknown(what, number, known)
    everything = not tables and not figures
    needs = {f"Table {n}": [cell.key[:2] for cell in TABLES[n].cells] for n in (TABLES if everything else tables)}
    needs |= {f"Figure {n}": FIGURES[n].shows for n in (FIGURES if everything else figures)}
    if everything:
        needs |= TEXT | (CHECKS if scale and scale.checks else {})
    if scale and scale.places:
        needs = {place: shown for place, shown in needs.items() if place in scale.places}
    places: dict[tuple[str, str], dict[str, None]] = {}
    for place, shown in needs.items():
        for pair in shown:
            places.setdefault(pair, {})[place] = None
    return {pair: tuple(names) for pair, names in places.items()}


def declared(
    scale: str, tables: Sequence[int] = (), figures: Sequence[int] = (), only: Sequence[str] = ()
) -> dict[Run, tuple[str, ...]]:
    """Each run once, with the places that need it, the first seed of all before the second of any.

    Raises:
        InputError: an unknown scale, table, figure or name in `only`.
    """
    seeds = find_scale(scale).seeds
    runs = {
        Run(*shown, seed, scale): names
        for seed in seeds
        for shown, names in places_of(tables, figures, find_scale(scale)).items()
    }
    if unheard := [name for name in only if name not in {run.name for run in runs}]:
        raise InputError(f"{unknown('run', unheard[0], [run.name for run in runs])} (python -m paper list lists them)")
    return {run: names for run, names in runs.items() if not only or run.name in only}


def missing_data(runs: Iterable[Run], folders: Folders) -> dict[str, str]:
    """Data set -> what is wrong, for those that the runs need and that are not there."""
    problems = {}
    for run in {run.data: run for run in runs}.values():
        if run.classifies:
            stands_in = not find_scale(run.scale).official and (folders.cifar / "train").is_dir()
            if run.data not in cifar_sets(folders.cifar) and not stands_in:
                problems[run.data] = (
                    f"no {DATA[run.data]} in {folders.cifar}: rcnet data {run.data} --out {folders.cifar}, or name it by --cifar"
                )
        elif not all((folders.bsd / split).is_dir() for split in ("train", "test")):
            problems[run.data] = f"no BSD in {folders.bsd} (train and test): rcnet data bsds500, or name it by --bsd"
    return problems


def kept_result(run: Run, folders: Folders) -> dict[str, Any] | None:
    """What the result file of a run holds, None if there is none, or `InputError` if it is not one."""
    path = run.result(folders)
    try:
        result = json.loads(path.read_text())
        if result["status"] not in ("done", "diverged") or not {"minutes", "pflop", "hardware", "commit"} <= result.keys():
            raise ValueError
        for row in result["rows"]:
            float(row[metric(run.data)]), int(row["steps"])
        return dict(result)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a result of the study: delete it, and python -m paper run makes it again") from error


def result_text(result: Mapping[str, Any] | None) -> str:
    """The figures of a result, by step count: 8.46, 8.08, 7.87 % error."""
    if result is None:
        return ""
    if result["status"] != "done":
        return str(result["status"])
    key = metric(result["data"])
    figures = ", ".join(f"{row[key]:.2f}" for row in result["rows"])
    return f"{figures} {'% error' if key == 'error' else 'dB'}"

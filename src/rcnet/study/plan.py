"""The runs that tables and figures need, how far each is, and what it costs."""

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rcnet.cost.counting import macs, parameters
from rcnet.data.cifar import RECORDS, cifar_sets
from rcnet.device import autocast, best_device, channels_last, hardware, resolve_precision
from rcnet.errors import InputError, unknown
from rcnet.models.registry import create_model
from rcnet.study.paper import CIFAR, DATA, FIGURES, NETWORKS, TABLES, metric
from rcnet.study.profiles import find_profile, model_config, recipe_of
from rcnet.training.recipe import Recipe
from rcnet.training.steps import check_probabilities, expected_cost

try:
    import fcntl
except ImportError:  # not on Windows: two studies at once would then disturb each other
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Folders:
    """Where things are: `results` holds what is kept (STUDY.md, study/), `runs` checkpoints and weights."""

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
    profile: str

    @property
    def name(self) -> str:
        return f"{self.network}.{self.data}-seed{self.seed}"

    def result(self, folders: Folders) -> Path:
        return folders.results / "study" / self.profile / f"{self.name}.json"

    def work(self, folders: Folders) -> Path:
        return folders.runs / self.profile / self.name

    def recipe(self, folders: Folders) -> Recipe:
        return recipe_of(self.network, self.data, self.seed, find_profile(self.profile), folders.cifar)

    def source(self, folders: Folders) -> Path:
        """The folder of its data."""
        return folders.cifar if self.data in CIFAR else folders.bsd


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        places: the tables and figures that need it.
        done: the part that its checkpoint holds, in [0, 1]; 1 also where only the measurement is missing.
        busy: a process is at it.
        result: what its result file holds.
        pflop: of the whole run, convolutions and linear layers, forward and backward.
    """

    run: Run
    places: tuple[str, ...]
    done: float
    busy: bool
    result: dict[str, Any] | None
    pflop: float

    @property
    def text(self) -> str:
        if self.result is not None:
            return "done" if self.result["status"] == "done" else self.result["status"]
        begun = f"at {100 * self.done:.0f}%" if self.done else "not started"
        return f"running, {begun}" if self.busy else begun


def places_of(tables: Sequence[int] = (), figures: Sequence[int] = ()) -> dict[tuple[str, str], tuple[str, ...]]:
    """(network, data) -> the tables and figures that need it; all of the paper's unless some are named.

    Raises:
        InputError: a table or figure that the study does not have.
    """
    for what, asked, known in (("table", tables, TABLES), ("figure", figures, FIGURES)):
        for number in asked:
            if number not in known:
                raise unknown(what, number, known)
    if not tables and not figures:
        tables, figures = tuple(TABLES), tuple(FIGURES)
    places: dict[tuple[str, str], dict[str, None]] = {}
    for number in tables:
        for cell in TABLES[number].cells:
            places.setdefault((cell.key.network, cell.key.data), {})[f"Table {number}"] = None
    for number in figures:
        for shown in FIGURES[number].shows:
            places.setdefault(shown, {})[f"Figure {number}"] = None
    return {shown: tuple(names) for shown, names in places.items()}


def declared(
    profile: str, tables: Sequence[int] = (), figures: Sequence[int] = (), only: Sequence[str] = ()
) -> dict[Run, tuple[str, ...]]:
    """Each run once, with the places that need it, the first seed of all before the second of any.

    Raises:
        InputError: an unknown profile, table, figure or name in `only`.
    """
    seeds = find_profile(profile).seeds
    runs = {Run(*shown, seed, profile): names for seed in seeds for shown, names in places_of(tables, figures).items()}
    if unheard := [name for name in only if name not in {run.name for run in runs}]:
        raise unknown("run", unheard[0], [run.name for run in runs])
    return {run: names for run, names in runs.items() if not only or run.name in only}


def survey(runs: Mapping[Run, tuple[str, ...]], folders: Folders) -> list[State]:
    """The state of each run."""
    states = []
    for run, places in runs.items():
        recipe, result = run.recipe(folders), kept_result(run.result(folders))
        done = 1.0 if result else progress_of(run, recipe, folders)
        busy = not result and is_busy(run.work(folders))
        states.append(State(run, places, done, busy, result, training_flop(run, recipe) / 1e15))
    return states


def seconds_here(states: Sequence[State], folders: Folders) -> list[float]:
    """The time of each whole run on this machine, by the speed of those finished on it, else by one measured for a second."""
    here = hardware(best_device()).partition(",")[0]
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for state in states:
        result = state.result
        if result and result["minutes"] and result["hardware"].partition(",")[0] == here:
            speeds[state.run.data in CIFAR].append(1e15 * result["pflop"] / (60 * result["minutes"]))

    @cache
    def speed(classifies: bool, precision: str) -> float:
        known = speeds[classifies]
        return statistics.median(known) if known else measured_speed(classifies, precision)

    return [1e15 * s.pflop / speed(s.run.data in CIFAR, s.run.recipe(folders).precision) for s in states]


def training_flop(run: Run, recipe: Recipe) -> float:
    """Floating-point operations of a run as `training.loop` counts them: six a MAC, steps as they are drawn."""
    side = recipe.classification.size if run.data in CIFAR else recipe.denoising.patch
    cost = {n: 6.0 * value for n, value in costs(run.network, run.data, run.profile, (side, side)).items()}
    probabilities = check_probabilities(recipe.probabilities, tuple(cost))
    return planned_iterations(recipe) * recipe.batch * expected_cost(list(cost.values()), probabilities, recipe.objective)


def planned_iterations(recipe: Recipe) -> int:
    """The iterations of a recipe of the study: those that it names, or epochs of CIFAR."""
    return max(1, round(recipe.epochs * RECORDS["train"] / recipe.batch)) if recipe.epochs else recipe.iterations


def costs(network: str, data: str, profile: str, size: tuple[int, int]) -> dict[int, int]:
    """MACs of a network, as a profile builds it, at each of its steps, for an input of `size` pixels."""
    return dict(_costs(json.dumps(model_config(network, data, find_profile(profile))), size))


@cache
def _costs(config: str, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    with torch.device("meta"):
        model = create_model(**json.loads(config))
    return tuple((n, macs(model, n, size)) for n in model.steps)


@cache
def parameters_of(network: str, data: str, profile: str) -> int:
    """Trainable parameters of a network as a profile builds it."""
    with torch.device("meta"):
        return parameters(create_model(**model_config(network, data, find_profile(profile))))


def progress_of(run: Run, recipe: Recipe, folders: Folders) -> float:
    """The part of a run that its checkpoint holds; 0 without a readable one."""
    try:
        state = torch.load(run.work(folders) / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)
        return min(1.0, int(state["iteration"]) / planned_iterations(recipe))
    except Exception:  # torch.load raises almost anything on a broken file; the run itself will say what is wrong
        return 0.0


def kept_result(path: Path) -> dict[str, Any] | None:
    """What a result file holds, None if there is none, or `InputError` if it is damaged."""
    try:
        result = json.loads(path.read_text())
        if result["status"] not in ("done", "diverged") or not isinstance(result["rows"], list):
            raise TypeError
        return dict(result)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a result of the study: delete it, and rcnet study run makes it again") from error


def result_text(result: dict[str, Any] | None) -> str:
    """The figures of a result, by step count: 8.46, 8.08, 7.87 % error."""
    if result is None:
        return ""
    if result["status"] != "done":
        return str(result["status"])
    key = metric(result["data"])
    figures = ", ".join(f"{row[key]:.2f}" for row in result["rows"])
    return f"{figures} {'% error' if key == 'error' else 'dB'}"


def measured_speed(classifies: bool, precision: str) -> float:
    """FLOP/s of training here, from about a second of forward and backward of a small network of the kind."""
    device = best_device()
    name, shape = ("r2", (32, 3, 32, 32)) if classifies else ("r3", (4, 1, 48, 48))
    model = channels_last(create_model(name, steps=2).to(device))
    x = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with autocast(resolve_precision(precision, device), device):
            loss = model(x).float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()
        times.append(time.perf_counter() - start)
    return 6 * shape[0] * macs(model, 2, (shape[2], shape[3])) / min(times)


def missing_data(runs: Iterable[Run], folders: Folders) -> dict[str, str]:
    """Data set -> what is wrong, for those that the runs need and that are not there."""
    problems = {}
    for data in dict.fromkeys(run.data for run in runs):
        profile = next(find_profile(run.profile) for run in runs if run.data == data)
        if data in CIFAR:
            if data not in cifar_sets(folders.cifar) and (profile.official or not (folders.cifar / "train").is_dir()):
                problems[data] = (
                    f"no {DATA[data]} in {folders.cifar}: rcnet data {data} --out {folders.cifar}, or name it by --cifar"
                )
        elif not all((folders.bsd / split).is_dir() for split in ("train", "test")):
            problems[data] = f"no BSD in {folders.bsd} (train and test): rcnet data bsds500, or name it by --bsd"
    return problems


@contextmanager
def held(work: Path, tries: int = 10) -> Iterator[None]:
    """Keeps a run to one process, or `InputError` after so many tries. The lock goes with the process, however that ends."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a") as file:
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                tries -= 1
                if tries < 1:
                    raise InputError(f"another process is at {work}: wait for it or stop it") from error
                time.sleep(0.1)  # it may only have looked, as `is_busy` does
        yield


def is_busy(work: Path) -> bool:
    """Whether a process holds the run."""
    if not (work / "lock").exists():
        return False
    try:
        with held(work, tries=1):
            return False
    except InputError:
        return True


def label(run: Run) -> str:
    """A run for people: R2^4 on CIFAR-10, seed 0."""
    return f"{NETWORKS[run.network].label} on {DATA[run.data]}, seed {run.seed}"

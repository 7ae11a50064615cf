"""Publishing: the weights and a model card with their measured results, in a folder or a repository on the Hugging Face hub."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rcnet.cost import macs, parameters
from rcnet.errors import InputError, unknown
from rcnet.figures.dial import dial
from rcnet.figures.side_by_side import save_picture
from rcnet.models.files import load, save, trainings
from rcnet.models.huggingface import PREFIX, WEIGHTS, hub
from rcnet.models.judge import needs_level
from rcnet.network import RecurrentNet
from rcnet.replacing import replacing
from rcnet.runtime.results import result_name, rows_of
from rcnet.tasks import TASKS, usual_size
from rcnet.tasks.dial import best_settings
from rcnet.tasks.task import Kind

CARD, PICTURE = "README.md", "dial.png"
ENTRIES = ("license", "data", "limits", "about")  # of a card: what only its author knows
PAPER = "https://arxiv.org/abs/1902.09809"


def from_pretrained(name: str | Path) -> RecurrentNet:
    """A trained network from a folder, a name or the hub; otherwise as `rcnet.load`.

    Args:
        name: a folder with one file of weights, e.g. from `save_pretrained` or `rcnet train`; bundled weights or a file; or
            `user/name` on the Hugging Face hub, which is downloaded.

    Raises:
        InputError: a folder with no file of weights or with several; what `rcnet.load` raises.

    Example:
        >>> import rcnet
        >>> rcnet.from_pretrained("r2.cifar10").about.task
        'classify'
    """
    if Path(name).is_dir():
        files = sorted(Path(name).glob("*.safetensors"))
        if len(files) != 1:
            raise InputError(f"{name} contains {len(files)} files of weights (*.safetensors), not 1: use rcnet.load(FILE)")
        return load(files[0])
    if str(name).startswith(PREFIX) or Path(name).is_file() or Path(name).suffix == ".safetensors" or str(name).count("/") != 1:
        return load(name)
    try:
        return load(f"{PREFIX}{name}")
    except InputError as error:
        raise InputError(f"there is no folder {name}, and {error}") from error


def save_pretrained(model: RecurrentNet, folder: str | Path, **card: str) -> None:
    """Writes the weights and a model card to a folder: `model.safetensors`, `README.md`, and `dial.png`, a plot of quality
    against cost, if the file has measured results and matplotlib is installed.

    Args:
        card: what only you know, for the card and the file: `license`, e.g. `"apache-2.0"`; `data`, the training data;
            `limits`, what it should not be used for; `about`, a sentence or two.

    Raises:
        InputError: an unknown entry of the card; what `rcnet.save` raises.

    Example:
        >>> import rcnet, tempfile, os
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rcnet.save_pretrained(rcnet.create_model("r3"), folder, license="apache-2.0")
        ...     sorted(os.listdir(folder))
        ['README.md', 'model.safetensors']
    """
    _write(model, Path(folder), str(folder), card)


def push_to_hub(model: RecurrentNet, name: str, *, private: bool = False, **card: str) -> str:
    """Uploads what `save_pretrained` writes to the repository `user/name`, which is created if needed; returns the commit's URL.

    Needs `pip install 'rcnet[hub]'` and a token of the hub (`hf auth login`, or the environment variable HF_TOKEN).

    Raises:
        InputError: what `save_pretrained` raises; huggingface_hub is not installed, or the hub refuses or cannot be reached.

    Example:
        >>> import rcnet
        >>> net = rcnet.load("r2.cifar10")
        >>> rcnet.push_to_hub(net, "user/name", license="apache-2.0")  # doctest: +SKIP
        'https://huggingface.co/user/name/commit/...'
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(model, Path(folder), name, card)
        with hub(name) as api:
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Weights and card by rcnet").commit_url)


def _write(model: RecurrentNet, folder: Path, name: str, card: dict[str, str]) -> None:
    for key in card:
        if key not in ENTRIES:
            raise unknown("entry of a card", key, ENTRIES)
    known = {**model.metadata.get("card", {}), **card}
    about: dict[str, Any] = {"card": known} if known else {}
    save(model, folder / WEIGHTS, **about)
    saved = load(folder / WEIGHTS)  # without the results of weights that have changed since
    try:
        save_picture(folder / PICTURE, dial(best_settings(saved)))
    except InputError:  # no matplotlib, or nothing was measured
        (folder / PICTURE).unlink(missing_ok=True)
    with replacing(folder / CARD) as temporary:
        temporary.write_text(model_card(saved, name, (folder / PICTURE).exists()), encoding="utf-8")


def model_card(model: RecurrentNet, name: str, pictured: bool = False) -> str:
    """The card of a network that was loaded from its file, in Markdown with the hub's header: what it is, use, cost and measured
    quality of each setting, training, limits, licence.

    Args:
        name: what `from_pretrained` takes.
        pictured: show `dial.png`.
    """
    about, card, quick = model.about, model.metadata.get("card", {}), model.settings[0].to_json()
    task = TASKS.get(about.task)
    header = {"library_name": "rcnet", "pipeline_tag": task.pipeline if task else "", "license": card.get("license")}
    call = (task or Kind).use
    told = ", sigma=25" * needs_level(model)
    what = f"`{model.metadata['architecture']['name']}`" + f", made to {about.task}" * bool(about.task)
    sections = {
        f"# {Path(name).name}": [
            *([card["about"] + "\n"] if "about" in card else []),
            f"A [recurrent-convolution network]({PAPER}) of the library rcnet: {what}, {parameters(model):,} parameters. Its "
            "cells are applied again and again with the same kernels; how often is chosen in each call.",
        ],
        "## Use": [
            "    pip install 'rcnet[hub]'\n\n```python\nimport rcnet\n",
            f'model = rcnet.from_pretrained("{name}")  # images are float [B, {about.channels}, H, W] in [0, 1]',
            call.format(steps=told),
            *([call.format(steps=f", steps={quick}{told}") + "  # the cheapest"] if len(model.settings) > 1 else []),
            "```",
        ],
        "## Cost and quality": [*["![What each setting costs and reaches](dial.png)\n"] * pictured, *_table(model)],
        "## Training": [*filter(None, [card.get("data")]), *_runs(model), *_judge(model)],
        "## Limits": [*filter(None, [card.get("limits")]), *_limits(model)],
        "## Licence": [card.get("license", "None is stated.")],
    }
    lines = ["---", *(f"{key}: {value}" for key, value in header.items() if value), "tags:", "- recurrent-convolution", "---"]
    for title, body in sections.items():
        lines += ["", title, "", *(body or ["The file does not say."])]
    return "\n".join(lines) + "\n"


def _table(model: RecurrentNet) -> Iterator[str]:
    """A line for each measurement, a column for each setting."""
    size = model.about.size or usual_size(model.about.task)
    yield f"| | {' | '.join(f'steps {n}' for n in model.settings)} |"
    yield "|---" * (len(model.settings) + 1) + "|"
    costs = (f"{macs(model, n, size) / 1e9:.3g}" for n in model.settings)
    yield f"| GMAC, {size[1]}x{size[0]} pixels | {' | '.join(costs)} |"
    results, task = model.metadata.get("results", []), TASKS.get(model.about.task)
    for result in results:
        rows = rows_of(model, result)
        for label, (metric, digits) in task.columns.items() if task else ():
            values = [f"{rows[n][metric]:.{digits}f}" if metric in rows.get(n, {}) else "" for n in model.settings]
            if any(values):
                yield f"| {result_name(result)}: {label} | {' | '.join(values)} |"
    if not results:
        yield f"\nNothing was measured: `rcnet eval {WEIGHTS} --data FOLDER --record` measures, and writes it into the file."


def _runs(model: RecurrentNet) -> Iterator[str]:
    """A line for each training run that made the weights, the first first."""
    for training in (run for run in reversed(trainings(model.metadata)) if "iterations" in run):
        data = training.get("data") or {}
        images = f" on {data['images']:,} images of a folder `{data['folder']}`" if {"images", "folder"} <= data.keys() else ""
        known = {key: training.get(key) for key in ("minutes", "hardware", "precision", "torch", "seed", "commit")}
        rest = (f", {key} {value}" for key, value in known.items() if value is not None)
        yield f"- {training['iterations']:,} iterations{images}{''.join(rest)}"


def _judge(model: RecurrentNet) -> Iterator[str]:
    """A line for the judge of a denoiser."""
    if model.judge is not None:
        about = model.metadata.get("judge", {})
        trained = f", trained in {about['iterations']:,} iterations" if "iterations" in about else ""
        yield f"- A judge of noise, which tells it how much a picture has: {parameters(model.judge):,} parameters{trained}"


def _limits(model: RecurrentNet) -> Iterator[str]:
    about = model.about
    images = {1: "gray images", 3: "RGB images"}.get(about.channels, f"images of {about.channels} channels")
    yield f"- It takes {images}" + (f", and was trained on {about.size[1]}x{about.size[0]} pixels." if about.size else ".")
    if about.noise:
        low, high = about.noise.sigma if isinstance(about.noise.sigma, tuple) else (about.noise.sigma,) * 2
        noise = f"Gaussian noise of sigma {low:g}" + f" to {high:g}" * (high > low) + ", in levels of 255"
        noise += ", clipped and rounded" * about.noise.as_8bit + ", and a simulated camera's" * bool(about.noise.camera)
        yield f"- It was made for {noise}, and may harm images with other noise" + " or with none" * (low > 0) + "."
    if about.task in TASKS and TASKS[about.task].limit:
        yield f"- {TASKS[about.task].limit}"
    if about.classes:
        yield f"- It knows {len(about.classes)} classes: {', '.join(about.classes[:20])}" + ", ..." * (len(about.classes) > 20)
    yield "- It was trained at the settings above, and takes no others."

"""The tasks of networks, one file per task. `TASKS` lists them by the name in `About.task`."""

from collections.abc import Mapping
from typing import Any

from rcnet.errors import InputError, unknown
from rcnet.models.registry import create_model, find_builder
from rcnet.tasks.classify import CLASSIFY
from rcnet.tasks.denoise import DENOISE
from rcnet.tasks.task import Gives, Kind

TASKS = {"classify": CLASSIFY, "denoise": DENOISE}
OTHER = (64, 64)  # height and width in pixels of an image of any other task


def find_task(name: str) -> Kind:
    """The task of that name, or `InputError` that names the valid ones.

    Example:
        >>> find_task("denoise").metric
        'psnr'
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def task_of(model: Mapping[str, Any]) -> Kind:
    """The task of a recipe's `[model]`, or `InputError` if it names no network.

    Example:
        >>> task_of({"name": "r3_fast", "width": 16}).key
        'denoising'
    """
    if "name" not in model:
        raise InputError("the recipe's [model] has no name, e.g. name = 'r3', and there is no init that has one")
    return find_task(find_builder(model["name"]).task or create_model(**model).about.task)


def gives(task: str) -> Gives:
    """What a network of a task returns for a file (`Kind.gives`); the empty string for any other task.

    Example:
        >>> gives("denoise"), gives("classify"), gives("audio")
        ('image', 'classes', '')
    """
    return TASKS[task].gives if task in TASKS else ""


def usual_size(task: str) -> tuple[int, int]:
    """Height and width in pixels of a usual image of a task.

    Example:
        >>> usual_size("denoise"), usual_size("classify")
        ((321, 481), (32, 32))
    """
    return TASKS[task].size if task in TASKS else OTHER

"""rcnet study"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rcnet.cli.text import Json
from rcnet.errors import InputError

Several = Parameter(consume_multiple=True)


def study(
    action: Literal["list", "run", "report"],
    /,
    *,
    table: Annotated[list[int] | None, Several] = None,
    figure: Annotated[list[int] | None, Several] = None,
    only: Annotated[list[str] | None, Several] = None,
    scale: Annotated[list[str] | None, Several] = None,
    cifar: Path = Path("data"),
    bsd: Path = Path("data/bsd"),
    results: Path = Path("results"),
    runs: Path = Path("runs/study"),
    jobs: int = 1,
    max_minutes: float | None = None,
    json_output: Json = False,
) -> None:
    """Check the paper: its tables, figures and claims, run here and set beside its own.

    list     each run's state, cost and result
    run      do what is missing, the cheapest information first
    report   render RESULTS/STUDY.md and RESULTS/study/figures

    Stop run at any moment, or kill it: the same command goes on and repeats
    nothing. Results of lite and long are made by a commit: commit your changes.

    Examples::

      rcnet study list
      rcnet study run --table 1 2 --max-minutes 60
      rcnet study run --scale long --jobs 4 --cifar data/ --bsd data/bsd
      rcnet study report

    Parameters
    ----------
    action
        list, run or report.
    table
        The runs of these tables, 1 to 5.
    figure
        The runs of these figures, 2 to 7.
    only
        These runs, by the names that list prints.
    scale
        How much is trained: lite (one seed, short, the default), long (three seeds, 200 epochs) or smoke (a test of the
        machinery). Report takes several, and those that are measured unless given.
    cifar
        Folder with CIFAR-10 and CIFAR-100 (see rcnet data).
    bsd
        Folder with the train and test images of BSD (see rcnet data).
    results
        Folder of the result files and the report.
    runs
        Folder of checkpoints and weights.
    jobs
        Runs side by side: one large GPU takes several; on a CPU they divide the threads.
    max_minutes
        Stop, at checkpoints, after so many minutes.
    json_output
        Print the list as JSON.
    """
    from rcnet.study.command import Chosen, list_runs, run_missing, write_report
    from rcnet.study.runs import Folders

    folders, scales = Folders(cifar, bsd, results, runs), scale or []
    if action == "report":
        write_report(folders, scales)
        return
    if len(scales) > 1:
        raise InputError(f"{action} takes one scale, not {', '.join(scales)}")
    chosen = Chosen(scales[0] if scales else "lite", table or (), figure or (), only or ())
    if action == "list":
        list_runs(folders, chosen, json_output)
    else:
        run_missing(folders, chosen, jobs, max_minutes)

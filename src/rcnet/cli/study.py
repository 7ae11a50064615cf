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
    profile: Annotated[list[str] | None, Several] = None,
    cifar: Path = Path("data"),
    bsd: Path = Path("data/bsd"),
    results: Path = Path("results"),
    runs: Path = Path("runs/study"),
    jobs: int = 1,
    max_minutes: float | None = None,
    json_output: Json = False,
) -> None:
    """Check the paper: its tables and figures, run here and set beside its own.

    list     each run's state, cost and result
    run      do what is missing, the cheapest information first
    report   render RESULTS/STUDY.md and RESULTS/study/figures

    Stop run at any moment, or kill it: the same command goes on and repeats
    nothing. python -m rcnet.study is the same where cyclopts is not installed.

    Examples::

      rcnet study list --profile lite
      rcnet study run --profile lite --table 1 2 --max-minutes 60
      rcnet study run --jobs 4 --cifar data/ --bsd data/bsd
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
    profile
        full (the paper's setting, the default), lite (one seed, short) or smoke (a test of the machinery). Report takes
        several, and those of full and lite that are measured unless given.
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
    from rcnet.study.command import list_runs, run_missing, write_report
    from rcnet.study.plan import Folders

    folders, profiles = Folders(cifar, bsd, results, runs), profile or []
    if action == "report":
        write_report(folders, profiles)
        return
    if len(profiles) > 1:
        raise InputError(f"{action} takes one profile, not {', '.join(profiles)}")
    chosen = (profiles[0] if profiles else "full", table or (), figure or (), only or ())
    if action == "list":
        list_runs(folders, *chosen, json_output)
    else:
        run_missing(folders, *chosen, jobs, max_minutes)

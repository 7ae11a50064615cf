"""python -m paper"""

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from paper.command import Chosen, list_runs, run_missing, write_report
from paper.runs import Folders
from rcnet.errors import InputError

HELP = """Check the paper: its tables, figures and claims, run here and set beside its own.

Stop run at any moment, or kill it: the same command goes on and repeats nothing. Results of lite and long are made by a commit:
commit your changes."""
GUIDE = "Guide: docs/study.md"
app = App(
    name="python -m paper",
    help=HELP,
    help_epilogue=GUIDE,
    help_format="plaintext",
    version_flags=[],
    default_parameter=Parameter(negative=(), consume_multiple=True),
)
FLAT = Parameter(name="*")  # each field is an option
HERE, ALL = Folders(), Chosen()


@app.command(name="list")
def list_(*, chosen: Annotated[Chosen, FLAT] = ALL, folders: Annotated[Folders, FLAT] = HERE, json: bool = False) -> None:
    """Each run's state, cost and result, e.g. python -m paper list --table 1 2

    Args:
        json: print the list as JSON.
    """
    list_runs(folders, chosen, json)


@app.command
def run(
    *,
    chosen: Annotated[Chosen, FLAT] = ALL,
    folders: Annotated[Folders, FLAT] = HERE,
    jobs: int = 1,
    max_minutes: float | None = None,
) -> None:
    """Do what is missing, the cheapest information first, e.g. python -m paper run --scale long --jobs 4

    Args:
        jobs: runs side by side: one large GPU takes several; on a CPU they divide the threads.
        max_minutes: stop, at checkpoints, after so many minutes.
    """
    run_missing(folders, chosen, jobs, max_minutes)


@app.command
def report(*, scale: tuple[str, ...] = (), folders: Annotated[Folders, FLAT] = HERE) -> None:
    """Render RESULTS/STUDY.md and the pictures beside it.

    Args:
        scale: the columns; those that are measured unless given.
    """
    write_report(folders, scale)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (InputError, CycloptsError) as error:
        print(f"paper: {' '.join(str(error).split())} (see python -m paper --help, docs/study.md)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("paper: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

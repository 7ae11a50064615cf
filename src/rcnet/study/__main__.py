"""`python -m rcnet.study list|run|report`: rcnet study without the packages of the rcnet command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rcnet.errors import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one action and exits: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    args = parser().parse_args(arguments)
    from rcnet.study.command import list_runs, run_missing, write_report
    from rcnet.study.plan import Folders

    folders = Folders(args.cifar, args.bsd, args.results, args.runs)
    try:
        if args.action == "report":
            write_report(folders, args.profile or ())
        elif args.action == "list":
            list_runs(folders, args.profile, args.table, args.figure, args.only, args.json)
        else:
            run_missing(folders, args.profile, args.table, args.figure, args.only, args.jobs, args.max_minutes)
    except InputError as error:
        print(f"rcnet: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("rcnet: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    """The arguments of the three actions."""
    whole = argparse.ArgumentParser(prog="python -m rcnet.study", description="The paper's tables and figures, run and rendered.")
    actions = whole.add_subparsers(dest="action", required=True)
    for name, about in (
        ("list", "each run's state, cost and result"),
        ("run", "do what is missing, the cheapest information first; Ctrl-C stops, the same command goes on"),
        ("report", "render RESULTS/STUDY.md and the figures"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        action.add_argument("--cifar", type=Path, default=Path("data"), help="folder with CIFAR-10 and CIFAR-100 (data)")
        action.add_argument("--bsd", type=Path, default=Path("data/bsd"), help="folder with BSD's train and test (data/bsd)")
        action.add_argument(
            "--results", type=Path, default=Path("results"), help="folder of result files and the report (results)"
        )
        action.add_argument(
            "--runs", type=Path, default=Path("runs/study"), help="folder of checkpoints and weights (runs/study)"
        )
        if name == "report":
            action.add_argument("--profile", nargs="+", help="full, lite or smoke; full and lite, where measured, unless given")
            continue
        action.add_argument("--profile", default="full", help="full (the paper's setting), lite or smoke")
        action.add_argument("--table", type=int, nargs="+", default=(), metavar="N", help="these tables")
        action.add_argument("--figure", type=int, nargs="+", default=(), metavar="N", help="these figures")
        action.add_argument("--only", nargs="+", default=(), metavar="RUN", help="these runs, by the names that list prints")
        if name == "list":
            action.add_argument("--json", action="store_true", help="print JSON")
        else:
            action.add_argument("--jobs", type=int, default=1, help="runs side by side")
            action.add_argument("--max-minutes", type=float, help="stop after so many minutes")
    return whole


if __name__ == "__main__":
    main()

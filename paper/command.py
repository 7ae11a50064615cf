"""The three actions of `python -m paper`: they print."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from paper.costs import seconds_here
from paper.runner import execute
from paper.runs import Folders, Run, declared, kept_result, missing_data, result_text
from paper.states import State, survey
from rcnet.errors import InputError


@dataclass(frozen=True)
class Chosen:
    """Which runs; all of the scale unless some are named.

    Attributes:
        table: the runs of these tables, 1 to 5.
        figure: the runs of these figures, 2 to 7.
        only: these runs, by the names that list prints.
        scale: how much is trained: a name of `scales.SCALES`, e.g. lite (one seed, short) or long (three seeds, 200 epochs).
    """

    scale: str = "lite"
    table: Sequence[int] = ()
    figure: Sequence[int] = ()
    only: Sequence[str] = ()

    def runs(self) -> dict[Run, tuple[str, ...]]:
        return declared(self.scale, self.table, self.figure, self.only)


def list_runs(folders: Folders, chosen: Chosen, json_output: bool = False) -> None:
    """Prints the state, cost and result of each run, in the order of `tables`; what is wrong with result files on stderr."""
    states = survey(chosen.runs(), folders)
    times = seconds_here([(state.run, state.pflop, state.result) for state in states], folders)
    seconds = dict(zip((state.run for state in states), times, strict=True))
    for state in states:
        if state.problem:
            print(f"paper: {state.problem}", file=sys.stderr)
    if json_output:
        print(json.dumps([row(state, seconds[state.run]) for state in states], indent=1))
        return
    lines = [("run", "for", "state", "PFLOP", "time here", "result")]
    lines += [
        (s.run.name, short(s.places), s.text, f"{s.pflop:.3g}", duration(seconds[s.run]), result_text(s.result)) for s in states
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    for line in lines:
        cells = [
            cell.rjust(width) if i in (3, 4) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    left = [state for state in states if state.result is None]
    pflop = sum(state.pflop * (1 - state.done) for state in left)
    time = sum(seconds[state.run] * (1 - state.done) for state in left)
    print(
        f"scale {chosen.scale}: {len(states) - len(left)} of {len(states)} runs done; "
        f"left: {pflop:.3g} PFLOP, about {duration(time)} here, one after the other"
    )


def run_missing(folders: Folders, chosen: Chosen, jobs: int = 1, minutes: float | None = None) -> None:
    """Runs what is missing of the data that there is, and says what it left out."""
    runs = chosen.runs()
    problems = missing_data(runs, folders)
    possible = {run: places for run, places in runs.items() if run.data not in problems}
    if problems and not possible:
        raise InputError(next(iter(problems.values())))
    for data, problem in problems.items():
        count = sum(run.data == data for run in runs)
        print(f"paper: {count} runs left out: {problem}", file=sys.stderr)
    done = execute(survey(possible, folders), folders, jobs=jobs, minutes=minutes, say=lambda line: print(line, flush=True))
    if not done:
        print(f"stopped after {minutes:g} minutes; the same command goes on")
    elif not all(kept_result(run, folders) for run in possible):
        print("what is not done is left to the processes that are at it")
    else:
        which = "all runs whose data is there" if problems else "all runs"
        print(f"{which} are done: python -m paper report renders them")


def write_report(folders: Folders, scales: Sequence[str] = ()) -> None:
    """Renders STUDY.md and the figures, and prints their files; what is wrong with result files on stderr."""
    from paper.page import write

    written, problems = write(folders, scales)
    for problem in problems:
        print(f"paper: {problem}", file=sys.stderr)
    for path in written:
        print(path)


def row(state: State, seconds: float) -> dict[str, object]:
    """A state as JSON values."""
    run = state.run
    return {
        "run": run.name,
        "network": run.network,
        "data": run.data,
        "seed": run.seed,
        "scale": run.scale,
        "places": list(state.places),
        "state": state.text,
        "done": round(state.done, 4),
        "pflop": state.pflop,
        "seconds": seconds,
        "result": state.result and {"status": state.result["status"], "rows": state.result["rows"]},
    }


def short(places: Sequence[str]) -> str:
    """T1 T2 F5 S4.1 for Table 1, Table 2, Figure 5, Sec. 4.1."""
    return " ".join(f"{place[0]}{place.split()[1]}" for place in places)


def duration(seconds: float) -> str:
    """40 s, 12 min, 3.4 h or 2.1 days."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

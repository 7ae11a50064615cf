"""The three actions of `rcnet study`, as both command lines call them: they print."""

import json
import sys
from collections.abc import Sequence

from rcnet.errors import InputError
from rcnet.study.plan import Folders, State, declared, missing_data, result_text, seconds_here, survey
from rcnet.study.runner import execute


def list_runs(
    folders: Folders, profile: str, tables: Sequence[int], figures: Sequence[int], only: Sequence[str], json_output: bool
) -> None:
    """Prints the state, cost and result of each run, in the order of `paper`."""
    states = survey(declared(profile, tables, figures, only), folders)
    seconds = dict(zip((state.run for state in states), seconds_here(states, folders), strict=True))
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
        f"profile {profile}: {len(states) - len(left)} of {len(states)} runs done; "
        f"left: {pflop:.3g} PFLOP, about {duration(time)} here, one after the other"
    )


def run_missing(
    folders: Folders,
    profile: str,
    tables: Sequence[int],
    figures: Sequence[int],
    only: Sequence[str],
    jobs: int,
    minutes: float | None,
) -> None:
    """Runs what is missing of the data that there is, and says what it left out."""
    runs = declared(profile, tables, figures, only)
    problems = missing_data(runs, folders)
    possible = {run: places for run, places in runs.items() if run.data not in problems}
    if problems and not possible:
        raise InputError(next(iter(problems.values())))
    for data, problem in problems.items():
        count = sum(run.data == data for run in runs)
        print(f"rcnet: {count} runs left out: {problem}", file=sys.stderr)
    done = execute(survey(possible, folders), folders, jobs=jobs, minutes=minutes, say=lambda line: print(line, flush=True))
    if done:
        which = "all runs whose data is there" if problems else "all runs"
        print(f"{which} are done: rcnet study report renders them")
    else:
        print(f"stopped after {minutes:g} minutes; the same command goes on")


def write_report(folders: Folders, profiles: Sequence[str]) -> None:
    """Renders STUDY.md and the figures, and prints their files."""
    from rcnet.study.report import write

    for path in write(folders, profiles):
        print(path)


def row(state: State, seconds: float) -> dict[str, object]:
    """A state as JSON values."""
    run = state.run
    return {
        "run": run.name,
        "network": run.network,
        "data": run.data,
        "seed": run.seed,
        "profile": run.profile,
        "places": list(state.places),
        "state": state.text,
        "done": round(state.done, 4),
        "pflop": state.pflop,
        "seconds": seconds,
        "result": state.result and {"status": state.result["status"], "rows": state.result["rows"]},
    }


def short(places: Sequence[str]) -> str:
    """T1 T2 F5 for Table 1, Table 2, Figure 5."""
    return " ".join(f"{place[0]}{place.split()[1]}" for place in places)


def duration(seconds: float) -> str:
    """40 s, 12 min, 3.4 h or 2.1 days."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

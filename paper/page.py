"""RESULTS/STUDY.md: every claim, table and figure beside the paper's, rendered from the result files."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from paper.claims import CHECK_CLAIMS, Claim, Verdict, judge, of_the_paper, verdicts
from paper.compare import LEVEL
from paper.costs import depth_of, parameters_of
from paper.measure import MARKS, SETTLED, SIDE
from paper.pictures import MISSING, draw_all, picture_file, read_distances
from paper.results import Measured, results_of
from paper.runs import Folders, Run, declared, places_of
from paper.scales import SCALES, find_scale
from paper.tables import BSD, DATA, FIGURES, GAPS, NETWORKS, TABLES, TEXT, Key, published
from paper.ways import SHARED, WAYS_OF
from paper.words import BEFORE, BRACKETS, CHECKED, DISTANCES, FAMILY, HEADS, NORM_GROUPS, OPEN, PAGE, VERDICTS, WAYS, WITHHELD
from rcnet.replacing import replacing

USUAL = ("long", "lite", "half")


def write(folders: Folders, scales: Sequence[str] = ()) -> tuple[list[Path], list[str]]:
    """Renders the page and the figures that can be drawn; returns their files, and what is wrong with files that are no results.

    Args:
        scales: the columns; those that have results unless given, long if none has.

    Raises:
        InputError: an unknown scale, or matplotlib is not installed.
    """
    for name in scales:
        find_scale(name)
    every = [results_of(name, folders) for name in scales or USUAL]
    shown = [m for m in every if m.results or m.problems or scales] or every[:1]
    written, notes = [], {}
    for m in shown:
        files, notes[m.scale] = draw_all(m, folders)
        written += files
    page = folders.results / "STUDY.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as temporary:
        temporary.write_text(render(shown, folders, notes))
    return [page, *written], [problem for m in shown for problem in m.problems]


def render(shown: Sequence[Measured], folders: Folders, notes: Mapping[str, Mapping[int, str]]) -> str:
    """The page; `notes` says of each scale why a figure is not there."""
    parts = [PAGE, "## Scales\n", *(f"- **{m.scale}**: {SCALES[m.scale].about}. {work(m)}" for m in shown), ""]
    if problems := [Path(problem.partition(" is not ")[0]).name for m in shown for problem in m.problems]:
        parts += [f"Files that are no results, and count as not yet measured: {', '.join(problems)}.\n"]
    parts += ["## Claims\n", VERDICTS, *(family(m) for m in shown), "", claims_table(shown), ""]
    for number, table in TABLES.items():
        of = [m for m in shown if is_for(m.scale, f"Table {number}")]
        parts += [f"## Table {number}. {table.title}\n", results_table(number, of), "", *remarks(number, of)]
    of = [m for m in shown if is_for(m.scale, "Sec. 4.2")]
    parts += ["## What the text says without a table\n", text_table(of), ""]
    for number, figure in FIGURES.items():
        parts += [f"## Figure {number}. {figure.title}\n"]
        for m in shown:
            if is_for(m.scale, f"Figure {number}"):
                parts += figure_parts(number, m, folders, notes[m.scale].get(number))
    if of := [m for m in shown if SCALES[m.scale].checks]:
        parts += ["## What else could explain it\n", CHECKED, checks_table(of), "", WAYS, ways_table(of), ""]
    parts += ["## What the paper leaves open\n", OPEN, recipes_table(shown), "", "## Those who came before\n", BEFORE]
    return "\n".join(parts)


def work(m: Measured) -> str:
    """What has been done, in a few sentences."""
    count = f"{len(m.files)} of {len(declared(m.scale))} runs done"
    if not m.files:
        return f"{count}."
    hours = sum(result["minutes"] or 0 for result in m.files) / 60
    pflop = sum(result["pflop"] or 0 for result in m.files)
    hardware = sorted({result["hardware"] for result in m.files})
    commits = sorted({str(result["commit"]) for result in m.files})
    dirty = sum("-dirty" in str(result["commit"]) for result in m.files)
    remark = f" Made by sources with changes that no commit holds: {dirty}." if dirty else ""
    return f"{count}: {hours:.1f} hours, {pflop:.3g} PFLOP on {'; '.join(hardware)}; commits {', '.join(commits)}.{remark}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def is_for(scale: str, place: str) -> bool:
    """Whether a scale has the runs of a table, figure or section."""
    return not SCALES[scale].places or place in SCALES[scale].places


def family(m: Measured) -> str:
    """What so many claims give by chance, and which of the verdicts of a scale are beyond that."""
    judged = [verdict for _, verdict in verdicts(m.seeds, m.cost)]
    made = [comparison for verdict in judged for comparison in verdict.comparisons]
    if not made:
        return ""
    level = LEVEL / len(made)
    decided = sum(comparison.outcome() is not None for comparison in made)
    strict = sum(comparison.outcome(level) is not None for comparison in made)
    return FAMILY.format(
        scale=m.scale, claims=len(judged), chance=LEVEL * len(judged), made=len(made), by_chance=LEVEL * len(made),
        decided=decided, level=level, strict=strict, unpaired=sum(comparison.how == "unpaired" for comparison in made),
    )  # fmt: skip


def verdict_cell(verdict: Verdict) -> str:
    return f"*{verdict.text}*" + (f": {verdict.figures}" if verdict.figures else "")


def has(m: Measured, claim: Claim) -> bool:
    """Whether a scale has runs that a claim is judged by."""
    known = places_of(scale=SCALES[m.scale])
    return not claim.chains or any(key[:2] in known for chain in claim.chains for key in chain)


def checks_table(shown: Sequence[Measured]) -> str:
    """A line a check, judged as a claim."""
    rows = [[claim.where, claim.text, *(verdict_cell(judge(claim, m.seeds)) for m in shown)] for claim in CHECK_CLAIMS]
    return markdown(["", "it would be so if", *(m.scale for m in shown)], rows)


def ways_table(shown: Sequence[Measured]) -> str:
    """A line a network with shared norms: its error by how it is evaluated."""
    rows = []
    for m in shown:
        for network in SHARED:
            for result in m.results.get((network, "cifar10"), []):
                if ways := result.get("ways"):
                    rows.append([m.scale, NETWORKS[network].label, *(f"{ways[way]:.2f}" for way in WAYS_OF)])
    return markdown(["scale", "network", *WAYS_OF], rows or [["", MISSING, *[""] * len(WAYS_OF)]])


def claims_table(shown: Sequence[Measured]) -> str:
    """A line a claim: what the paper's own tables say of it, and what was measured here."""
    paper = of_the_paper(Measured("long").cost)
    ours = [(m, verdicts(m.seeds, m.cost)) for m in shown]
    rows = []
    for i, (claim, own) in enumerate(paper):
        cells = [verdict_cell(judged[i][1]) if has(m, claim) else "" for m, judged in ours]
        where = "a figure" if "Figure" in claim.where else "words"
        said = f"in {where} only" if own.holds is None else f"{'so' if own.holds else 'not so'}: {own.figures}"
        rows.append([claim.text, claim.where, said, *cells])
    return markdown(["claim", "where", "the paper's figures", *(m.scale for m in shown)], rows)


def results_table(number: int, shown: Sequence[Measured]) -> str:
    """A line a cell of the paper's table."""
    table = TABLES[number]
    header = ["", "data"]
    header += ["depth: the paper", "here", "parameters: the paper", "here"] if table.parameters else []
    header += ["the paper"]
    for m in shown:
        header += [m.scale, *(["a noise per image"] if number == 3 else []), "difference", "sd", "seeds"]
    rows = []
    for cell in table.cells:
        row = [cell.row, cell.column]
        if table.parameters:
            row += [f"{table.depth[cell.row]}", f"{depth_of(*cell.key)}"]
            row += [f"{table.parameters[cell.row]:.3f}M", f"{parameters_of(cell.key.network, cell.key.data):,}"]
        row.append("not convergent" if math.isnan(cell.paper) else f"{cell.paper:.2f}")
        for m in shown:
            row += measured_cells(m, cell.key, cell.paper)
        rows.append(row)
    return markdown(header, rows)


def measured_cells(m: Measured, key: Key, paper: float) -> list[str]:
    """The value, its difference from the paper's, the standard deviation and the number of seeds."""
    values, of = m.values(key), len(SCALES[m.scale].seeds)
    own = list(m.own_noise.get(key, {}).values())
    noise = [f"{statistics.fmean(own):.2f}" if own else ""] if key.data in BSD else []
    if not values:
        return [MISSING, *noise, "", "", f"0 of {of}"]
    mean, count = statistics.fmean(values), f"{len(values)} of {of}"
    if math.isnan(mean):
        at_end = ", ".join("diverged" if math.isnan(value) else f"{value:.2f} at the end" for value in m.last[key])
        return [f"not convergent ({len(m.last[key])} of {len(values)}: {at_end})", *noise, "", "", count]
    difference = "" if math.isnan(paper) else f"{mean - paper:+.2f}"
    return [f"{mean:.2f}", *noise, difference, f"{statistics.stdev(values):.2f}" if len(values) > 1 else "", count]


def remarks(number: int, shown: Sequence[Measured]) -> list[str]:
    """What has to be said of a table of the paper."""
    if number == 1:
        more, half = (parameters_of(name, "cifar100") - parameters_of(name, "cifar10") for name in ("r2-4", "s2-4-half"))
        return [HEADS.format(more=more, half=half)]
    if number == 3:
        return [WITHHELD.format(side=SIDE, marks=MARKS, settled=SETTLED), along_table(shown), ""]
    if number == 4:
        return [BRACKETS, gaps_table(shown), ""]
    if number == 5:
        groups = unreachable_groups()
        return [NORM_GROUPS.format(groups=groups, whole=parameters_of("r4-123", "cifar100") + groups)]
    return []


def unreachable_groups() -> int:
    """The parameters of R4's norms that six groups a cell and a transition would add to those that steps 1 to 3 can reach."""
    widths = (64, 128, 256, 512)
    of_cell = 2 * 2 * widths[0]  # two norms, scale and shift
    of_transitions = sum(2 * (before + after) for before, after in pairwise(widths))
    return 3 * (of_cell + of_transitions)


def along_table(shown: Sequence[Measured]) -> str:
    """A line a run of Table 3: its test PSNR along the way."""
    rows = []
    for m in shown:
        for network, data in dict.fromkeys(cell.key[:2] for cell in TABLES[3].cells):
            for result in m.results.get((network, data), []):
                along, raw = (
                    ", ".join(f"{psnr:.2f}" for _, psnr in result.get(of, ())) or "not recorded" for of in ("along", "along_raw")
                )
                verdict = {True: "yes", False: "no", None: "not known"}[result.get("settled")]
                label = f"{NETWORKS[network].label}, {DATA[data]}, seed {result['seed']}"
                rows.append([m.scale, label, along, raw, "no" if result["status"] == "diverged" else verdict])
    header = ["scale", "run", "test PSNR along it, dB, of the average", "of the last weights", "convergent"]
    return markdown(header, rows or [["", MISSING, "", "", ""]])


def gaps_table(shown: Sequence[Measured]) -> str:
    """A line a cell of Table 4: the gap to the network of fixed steps."""
    paper, rows = published(), []
    for key, (fixed, printed) in GAPS.items():
        gaps = [paper[key] - paper[fixed], *(m.mean(key) - m.mean(fixed) for m in shown)]
        known = [MISSING if math.isnan(gap) else f"{gap:+.2f}" for gap in gaps]
        rows.append([f"steps {key.steps}", DATA[key.data], f"{printed:+.2f}", *known])
    return markdown(["gap", "data", "the paper's brackets", "the paper's tables", *(m.scale for m in shown)], rows)


def text_table(shown: Sequence[Measured]) -> str:
    """A line a network of the sections that have no table: its values by step count, their mean, and the cost of training it."""
    rows = []
    for where, pairs in TEXT.items():
        for network, data in pairs:
            row = [where, NETWORKS[network].label, DATA[data]]
            for m in shown:
                means = [m.mean(Key(network, data, n)) for n in NETWORKS[network].taken]
                pflop = m.pflop(network, data)
                if any(map(math.isnan, means)):
                    row += [MISSING, "", ""]
                else:
                    row += [", ".join(f"{mean:.2f}" for mean in means), f"{statistics.fmean(means):.2f}", f"{pflop or 0:.3g}"]
            rows.append(row)
    header = ["where", "network", "data"]
    for m in shown:
        header += [f"{m.scale}: error in % at each step count", "mean", "PFLOP of training"]
    return markdown(header, rows)


def figure_parts(number: int, m: Measured, folders: Folders, note: str | None) -> list[str]:
    """A picture with the distances that it shows, or why there is none."""
    if note:
        return [f"{m.scale}: {note}\n"]
    path = picture_file(number, m.scale, folders)
    parts = [f"![Figure {number}, scale {m.scale}](study/figures/{path.name})\n"]
    if distances := read_distances(number, m.scale, folders):
        names = list(next(iter(distances.values())))
        rows = [[between, *(f"{values[name]:.3f}" for name in names)] for between, values in distances.items()]
        parts += [DISTANCES, markdown(["", *names], rows), ""]
    elif number in (2, 3, 6):
        parts += ["Without distances: it was drawn before they were measured, and its weights are not here.\n"]
    return parts


def recipes_table(shown: Sequence[Measured]) -> str:
    """How R2^4 on CIFAR-10 and R3^4 at sigma 25 are trained at each scale."""
    rows = []
    for m in shown:
        for network, data in (("r2-4", "cifar10"), ("r3-4", "bsd25")):
            kept = m.results.get((network, data), [])
            recipe = kept[0]["recipe"] if kept else Run(network, data, 0, m.scale).recipe(Folders()).to_dict()
            rows.append([m.scale, NETWORKS[network].label, *recipe_cells(recipe)])
    header = ["length", "batch", "optimizer", "learning rate", "of shared kernels", "of norms", "clip", "weight decay", "average"]
    return markdown(["scale", "network", *header], rows)


def recipe_cells(recipe: Mapping[str, Any]) -> list[str]:
    how = recipe["optimizer"]
    length = f"{recipe['epochs']:g} epochs" if recipe["epochs"] else f"{recipe['iterations']:,} iterations"
    muon = how["name"] == "muon"
    rate = f"{how['muon_lr']:g}; {how['lr']:g} of the rest" if muon else f"{how['lr']:g}"
    name = "Muon for kernels of cells, Adam for the rest" if muon else {"sgd": "SGD", "adam": "Adam"}[how["name"]]
    cells = [length, str(recipe["batch"]), name, f"{rate}, along a half cosine to zero", f"x {how['shared_lr']:g}"]
    return [*cells, f"x {how.get('norm_lr', 1):g}", f"{how['clip']:g}", f"{how['weight_decay']:g}", f"{recipe['ema']:g}"]

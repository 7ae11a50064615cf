"""Which changes of the code no test notices: small wrong versions (mutants), each in turn against the nearest tests.

python tools/mutants.py [MODULE ...]     e.g. training/steps; all unless named

It changes comparisons, arithmetic, `and` and `or`, conditions, numbers, True and False, min and max, and leaves out calls whose
result is not used; also in constants, defaults and decorated functions, which mutmut leaves alone. Each mutant runs in a process
forked from one that has imported the tests, and takes over the code of the module there; processes that tests start import it.
What runs for ten times as long as the tests alone has been noticed. Counts and survivors: results/mutants.json and .md.
"""

import ast
import contextlib
import copy
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
# Module: the nearest tests, as pytest takes them.
NEAREST = {
    "cell": ["tests/test_cell.py", "-m", "not slow"],
    "network": ["tests/test_cell.py", "-m", "not slow"],
    "calling": ["tests/test_denoise.py", "tests/test_evaluation.py", "tests/test_cell.py", "-m", "not slow"],
    "training/steps": [
        "tests/test_training.py",
        "-k",
        "drawn_with or probabilities_may or settings_to_train or free_settings or staircase_of",
    ],
    "evaluation/adaptive": [
        "tests/test_classify.py",
        "-k",
        "cascade_stops or cascades or cheapest or clopper or stated_risk or gains",
    ],
    "evaluation/denoise": ["tests/test_evaluation.py", "-k", "not bundled and not little"],
    "evaluation/classify": ["tests/test_evaluation.py", "tests/test_dial.py", "-k", "classif"],
    "evaluation/harmless": ["tests/test_harmless.py", "tests/test_evaluation.py", "tests/test_cli.py", "-k", "harm or clean"],
    "evaluation/recalibrate": ["tests/test_classify.py", "-k", "recalibrat"],
    "evaluation/record": ["tests/test_evaluation.py", "-k", "record"],
    "serve/scheduler": ["tests/test_scheduler.py"],
    "serve/demand": ["tests/test_scheduler.py"],
    "serve/policies": ["tests/test_scheduler.py", "-k", "not flood and not peak and not far_past and not workers"],
    "serve/costs": ["tests/test_scheduler.py", "-k", "costs or hung"],
}
# What computes the same, or the same but for rounding or time: module, then the change, then why.
EQUAL: dict[str, dict[str, str]] = {
    "serve/policies": {
        "return (dial.quality[higher] - dial.quality[setting]) / max(extra, 1e-9) :: 1e-09 → 2e-09": "no call takes nanoseconds"
    },
}
SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
OTHERS = {"min": "max", "max": "min", "any": "all", "all": "any"}


def changes(node: ast.AST) -> Iterator[Callable[[Any], ast.AST]]:
    """The ways to change a node, each a function of a copy of it."""

    def swapped(field: str, place: int | None = None) -> Callable[[Any], ast.AST]:
        def change(own: Any) -> ast.AST:
            if place is None:
                setattr(own, field, SWAPPED[type(getattr(own, field))]())
            else:
                getattr(own, field)[place] = SWAPPED[type(getattr(own, field)[place])]()
            return own  # type: ignore[no-any-return]

        return change

    def negated(own: Any) -> ast.AST:
        own.test = ast.UnaryOp(ast.Not(), own.test)
        return own  # type: ignore[no-any-return]

    match node:
        case ast.Compare(ops=ops):
            yield from (swapped("ops", place) for place, op in enumerate(ops) if type(op) in SWAPPED)
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPPED:
            yield swapped("op")
        case ast.If() | ast.IfExp():
            yield negated
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield lambda own: own.operand
        case ast.Constant(value=bool(value)):
            yield lambda _: ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield lambda _: ast.Constant(value + 1 if isinstance(value, int) else value * 2 or 1.0)
        case ast.Name(id=name) if name in OTHERS:
            yield lambda _: ast.Name(OTHERS[name], ast.Load())
        case ast.Expr(value=ast.Call()):
            yield lambda _: ast.Pass()


def places(tree: ast.AST) -> list[ast.AST]:
    """What may change: not annotations, messages of errors or type parameters."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        found.append(node)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "type_params") or isinstance(node, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":  # a guard against ourselves
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(tree)
    return found


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """The change in words, and the source of each mutant."""
    tree = ast.parse(source)
    nodes = places(tree)
    for number, node in enumerate(nodes):
        for change in changes(node):
            other = copy.deepcopy(tree)
            own = places(other)[number]
            new = change(own)
            _Replace(own, new).visit(other)
            around = source.splitlines()[node.lineno - 1].strip()  # type: ignore[attr-defined]
            if isinstance(node, ast.If | ast.IfExp):
                words = f"not {ast.unparse(node.test)}"
            else:
                words = f"{ast.unparse(node)} → {ast.unparse(ast.fix_missing_locations(new))}"
            yield f"{around} :: {words}", ast.unparse(ast.fix_missing_locations(other))


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old and self.new is not self.old else super().generic_visit(node)


def take_over(module: ModuleType, source: str) -> None:
    """Gives a module that is imported, and what others hold of it, the code of another source."""
    new = {"__name__": module.__name__, "__file__": module.__file__, "__package__": module.__package__}
    exec(compile(source, str(module.__file__), "exec"), new)
    for table in [value for value in new.values() if isinstance(value, dict) and value is not new.get("__builtins__")]:
        for key, value in table.items():  # functions in tables are those of the module, which take over the code below
            if isinstance(value, FunctionType) and value is new.get(value.__name__):
                table[key] = vars(module).get(value.__name__, value)
    for name, value in new.items():
        old = vars(module).get(name)
        if isinstance(value, type) and value.__module__ == module.__name__:
            for field, own in vars(value).items():
                if not _give(vars(old).get(field), own) and field not in ("__dict__", "__weakref__", "__module__", "__doc__"):
                    with contextlib.suppress(AttributeError, TypeError):
                        setattr(old, field, own)
        elif getattr(value, "__module__", module.__name__) == module.__name__ and not _give(old, value):
            for other in [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]:
                if other is module or (name in vars(other) and vars(other)[name] is old and not name.startswith("__")):
                    setattr(other, name, value)


def _give(old: Any, new: Any) -> bool:
    """Whether a function, or what holds one, took over the code of another."""
    for inner in ("__wrapped__", "__func__", "fget", "func"):
        if getattr(old, inner, None) is not None and hasattr(new, inner):
            return _give(getattr(old, inner), getattr(new, inner))
    if not isinstance(old, FunctionType) or not isinstance(new, FunctionType) or old.__code__.co_filename.startswith("<"):
        return False  # what a dataclass makes holds its defaults, and is replaced as a whole
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
    return True


def passes(module: str, mutant: str, source: Path, limit: float) -> tuple[bool, float]:
    """Whether the tests pass with the package in `source` and this text of the module, and the seconds of the processor."""
    path = source / "rcnet" / f"{module}.py"
    original = path.read_text()
    path.write_text(mutant)
    child = os.fork()
    if child == 0:
        os.setsid()  # what tests start ends with it
        os.nice(10)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            take_over(sys.modules[f"rcnet.{module.replace('/', '.')}"], mutant)
        except BaseException:
            os._exit(1)
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *NEAREST[module]])))
    started = time.monotonic()
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - started > 60 * limit:  # it waits for something
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    path.write_text(original)
    return status == 0, usage.ru_utime + usage.ru_stime


def measure(module: str, source: Path) -> dict[str, Any]:
    """The mutants of a module: how many, and who survived."""
    original, tests = (source / "rcnet" / f"{module}.py").read_text(), NEAREST[module]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-p", "no:cacheprovider", *tests])  # imports them, and the plug-ins
    well, seconds = passes(module, ast.unparse(ast.parse(original)), source, 600)
    if not well:
        raise SystemExit(f"{module}: pytest {' '.join(tests)} fails without a mutant")
    count, survivors = 0, []
    for words, mutant in mutants(original):
        count += 1
        if passes(module, mutant, source, 10 * seconds + 5)[0]:
            survivors.append(words)
            print(f"{module}: survived: {words}", flush=True)
    print(f"{module}: {count - len(survivors)} of {count} killed, {seconds:.1f} s for each", flush=True)
    return {"mutants": count, "survivors": survivors, "tests": " ".join(tests)}


def render(measured: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Mutants",
        "",
        "Small wrong versions of a module, and how many of them the nearest tests notice: `make mutants`; `tools/mutants.py`",
        "says which changes it makes. Some that survive compute the same: they are explained, and do not count.",
        "",
        "| module | mutants | killed | compute the same | killed of the rest |",
        "|---|---|---|---|---|",
    ]
    for module, row in measured.items():
        same = sum(words in EQUAL.get(module, {}) for words in row["survivors"])
        killed = row["mutants"] - len(row["survivors"])
        lines.append(f"| {module} | {row['mutants']} | {killed} | {same} | {100 * killed / (row['mutants'] - same):.0f} % |")
    for module, row in measured.items():
        if row["survivors"]:
            lines += ["", f"## {module}", ""]
            reasons = EQUAL.get(module, {})
            lines += [f"- `{words}`" + (f": {reasons[words]}" if words in reasons else "") for words in row["survivors"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    wanted = sys.argv[1:] or list(NEAREST)
    if unknown := set(wanted) - set(NEAREST):
        raise SystemExit(f"no tests are known for {', '.join(sorted(unknown))}; known: {', '.join(NEAREST)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        os.chdir(ROOT)
        sys.path[:0] = [str(source), str(ROOT)]
        os.environ["PYTHONPATH"] = str(source)  # of processes that tests start
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for module in wanted:
            row = measure(module, source)
            page = RESULTS / "mutants.json"
            kept = json.loads(page.read_text()) if page.exists() else {}
            kept = {name: row if name == module else kept[name] for name in NEAREST if name in kept or name == module}
            page.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            page.with_suffix(".md").write_text(render(kept))


if __name__ == "__main__":
    main()

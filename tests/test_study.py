"""The study from end to end on real slices, killed and continued, and what it concludes from made-up figures."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from rcnet.errors import InputError
from rcnet.models import create_model
from rcnet.study import claims, paper, plan, runner
from rcnet.study.__main__ import main
from rcnet.study.claims import CLAIMS, EXITS_CLAIM, SLACK, judge, judge_exits
from rcnet.study.paper import FIGURES, NETWORKS, TABLES, Key, published
from rcnet.study.plan import Folders, Run, declared, held, is_busy
from rcnet.study.profiles import PROFILES, recipe_of

from .conftest import IMAGES

BSD = IMAGES / "bsd"
RESULTS = IMAGES.parent.parent / "results"
ADJUSTABLE = "r2-234.cifar10-seed0"
# What a bare machine does not have, and a profile that takes a while and keeps a checkpoint an iteration.
BARE = """
import dataclasses, sys
sys.modules.update(dict.fromkeys(("tqdm", "cyclopts", "matplotlib")))
from rcnet.study.profiles import PROFILES
from rcnet.study.__main__ import main
base, changes = PROFILES["smoke"].classify
changes = (*changes, "iterations=40", "checkpoint_minutes=0")
PROFILES["smoke"] = dataclasses.replace(PROFILES["smoke"], classify=(base, changes))
main()
"""


def slow(iterations):
    base, changes = PROFILES["smoke"].classify
    changes = (*changes, f"iterations={iterations}", "checkpoint_minutes=0")
    return dataclasses.replace(PROFILES["smoke"], classify=(base, changes))


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch):
    monkeypatch.setattr(plan, "measured_speed", lambda classifies, precision: 1e11 if classifies else 5e10)


@pytest.fixture
def at(tmp_path, cifar_folder):
    """The folders of a study, and the arguments that name them."""
    return where(tmp_path, cifar_folder)


def where(folder, cifar):
    folders = Folders(cifar, BSD, folder / "results", folder / "runs")
    return folders, [word for name in ("cifar", "bsd", "results", "runs") for word in (f"--{name}", str(getattr(folders, name)))]


@pytest.fixture(scope="module")
def done(tmp_path_factory, cifar_folder):
    """The whole study, by the profile smoke."""
    folders, places = where(tmp_path_factory.mktemp("study"), cifar_folder)
    main(["run", "--profile", "smoke", *places])
    return folders, places


@pytest.fixture
def copied(done, tmp_path, cifar_folder):
    """A copy of its results, to change; the weights are those of `done`."""
    folders = dataclasses.replace(done[0], results=tmp_path / "results")
    shutil.copytree(done[0].results, folders.results)
    return folders, [*done[1], "--results", str(folders.results)]


def listed(capsys, *arguments):
    capsys.readouterr()
    main(["list", "--json", "--profile", "smoke", *arguments])
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}


def page(folders):
    return (folders.results / "STUDY.md").read_text()


def line(folders, *words):
    """The one line of the page that holds all the words."""
    found = [text for text in page(folders).splitlines() if all(word in text for word in words)]
    assert len(found) == 1, (words, found)
    return found[0]


# End to end


def test_every_run_leaves_a_result(done):
    folders, _ = done
    runs = declared("smoke")
    files = {path.name for path in (folders.results / "study" / "smoke").iterdir()}
    assert files == {f"{run.name}.json" for run in runs}
    for run in runs:
        result = json.loads(run.result(folders).read_text())
        assert (result["network"], result["data"], result["seed"], result["profile"]) == dataclasses.astuple(run)
        assert result["status"] == "done"
        assert result["iterations"] == 2
        assert {"recipe", "epochs", "hardware", "minutes", "commit", "pflop"} <= result.keys()
        steps = NETWORKS[run.network].model["steps"]
        assert [row["steps"] for row in result["rows"]] == (steps if isinstance(steps, list) else [steps])
        for row in result["rows"]:
            assert math.isfinite(row[paper.metric(run.data)])


def test_the_estimate_is_what_the_loop_counts(done):
    folders, _ = done
    for run in declared("smoke"):
        result = json.loads(run.result(folders).read_text())
        assert plan.training_flop(run, run.recipe(folders)) / 1e15 == pytest.approx(result["pflop"], rel=0.05), (
            run.name
        )  # its head has 100 classes


def test_the_report_holds_every_figure(done, capsys):
    folders, places = done
    main(["report", "--profile", "smoke", *places])
    text = page(folders)
    assert "not yet measured" not in text
    for number in TABLES:
        assert f"## Table {number}." in text
    for number in FIGURES:
        path = folders.results / "study" / "figures" / f"figure{number}-smoke.png"
        assert f"study/figures/{path.name}" in text
        assert str(path) in capsys.readouterr().out or path.exists()
        assert len(Image.open(path).convert("L").histogram()) == 256
    result = json.loads(Run("r2-4", "cifar10", 0, "smoke").result(folders).read_text())
    error = result["rows"][0]["error"]
    cell = line(folders, "| R2^4 | CIFAR-10 |")
    assert f"| 7.65 | {error:.2f} | {error - 7.65:+.2f} |  | 1 of 1 |" in cell
    assert "1,262,794" in cell
    assert "| diverged |" in line(folders, "| shared | BSD68, sigma 15 |")  # the paper's '-'
    for claim in (*CLAIMS, EXITS_CLAIM):
        verdict = line(folders, f"| {claim.text} |")
        assert "*holds*" in verdict or "*does not hold*" in verdict


def test_what_is_done_is_not_done_again(done, monkeypatch, capsys):
    folders, places = done
    before = {path: path.stat().st_mtime_ns for path in folders.results.rglob("*.json")}
    monkeypatch.setattr(runner, "train", lambda *_, **__: pytest.fail("trained again"))
    main(["run", "--profile", "smoke", *places])
    assert "all runs are done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folders.results.rglob("*.json")}


def test_a_deleted_result_is_not_yet_measured_and_comes_back(copied, capsys, monkeypatch):
    folders, places = copied
    run = Run("r2-3", "cifar100", 0, "smoke")
    kept = run.result(folders).read_text()
    run.result(folders).unlink()
    main(["report", "--profile", "smoke", *places])
    assert "| not yet measured |" in line(folders, "| R2^3 | CIFAR-100 |")
    assert "0 of 1" in line(folders, "| R2^3 | CIFAR-100 |")
    assert "not yet measured" not in line(folders, "| R2^3 | CIFAR-10 |")
    state = listed(capsys, "--only", run.name, *places)[run.name]
    assert (state["state"], state["done"], state["result"]) == ("at 100%", 1, None)
    monkeypatch.setattr("rcnet.training.loop.Run.step", lambda *_: pytest.fail("trained again"))
    main(["run", "--profile", "smoke", "--only", run.name, *places])
    assert json.loads(run.result(folders).read_text()) == json.loads(kept)


def test_the_page_of_the_repository_is_rendered_from_its_results(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    page = tmp_path / "results" / "STUDY.md"
    page.unlink()
    main(["report", "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "none")])
    assert page.read_text() == (RESULTS / "STUDY.md").read_text()


def test_a_report_without_weights_keeps_the_figures(copied, tmp_path):
    folders, places = copied
    elsewhere = [*places, "--runs", str(tmp_path / "none")]
    figures = folders.results / "study" / "figures"
    shutil.rmtree(figures, ignore_errors=True)
    main(["report", "--profile", "smoke", *elsewhere])
    assert sorted(path.name for path in figures.iterdir()) == ["figure5-smoke.png", "figure7-smoke.png"]
    assert "smoke: not yet measured" in page(folders)
    shutil.copy(figures / "figure5-smoke.png", figures / "figure2-smoke.png")
    main(["report", "--profile", "smoke", *elsewhere])
    assert "study/figures/figure2-smoke.png" in page(folders)


# Interruptions


def test_a_killed_run_goes_on_where_it_stood(at, capsys, monkeypatch):
    folders, places = at
    log = Run("r2-234", "cifar10", 0, "smoke").work(folders) / "log.jsonl"
    command = [sys.executable, "-c", BARE, "run", "--profile", "smoke", "--table", "4", *places]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 4)
        process.kill()
    before = log.read_text().splitlines()
    monkeypatch.setitem(PROFILES, "smoke", slow(40))
    states = listed(capsys, "--table", "4", *places)
    begun, other = states[ADJUSTABLE], states["r2-234.cifar100-seed0"]
    assert begun["state"] == f"at {100 * begun['done']:.0f}%"
    assert 0.1 <= begun["done"] < 1
    assert (other["state"], other["done"]) == ("not started", 0)
    main(["run", "--profile", "smoke", "--only", ADJUSTABLE, *places])
    after = log.read_text().splitlines()
    kept = round(40 * begun["done"])
    assert after[:kept] == before[:kept]
    assert kept >= len(before) - 1
    assert [json.loads(text)["iteration"] for text in after] == list(range(1, 41))
    assert listed(capsys, "--table", "4", *places)[ADJUSTABLE]["state"] == "done"


def test_max_minutes_stops_at_a_checkpoint(at, capsys, monkeypatch):
    _, places = at
    monkeypatch.setitem(PROFILES, "smoke", slow(100_000))
    done = 0
    for _ in range(20):  # a busy machine may not come to the first iteration
        main(["run", "--profile", "smoke", "--only", ADJUSTABLE, "--max-minutes", "0.02", *places])
        assert "stopped after 0.02 minutes" in capsys.readouterr().out
        if done := listed(capsys, "--only", ADJUSTABLE, *places)[ADJUSTABLE]["done"]:
            break
    assert 0 < done < 1


def test_sigterm_stops_all_jobs_at_checkpoints(at):
    folders, places = at
    runs = [Run("r3-1", data, 0, "lite") for data in ("bsd15", "bsd25")]
    names = [run.name for run in runs]
    command = [sys.executable, "-m", "rcnet.study", "run", "--profile", "lite", "--only", *names, "--jobs", "2", *places]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: all((run.work(folders) / "log.jsonl").exists() for run in runs))
            assert all(is_busy(run.work(folders)) for run in runs)
            time.sleep(0.5)
        finally:
            process.terminate()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    for run in runs:
        assert plan.progress_of(run, run.recipe(folders), folders) > 0
        assert not is_busy(run.work(folders))


def test_jobs_leave_what_one_process_leaves(at, capsys):
    folders, places = at
    run = Run("r2-1", "cifar10", 0, "smoke")
    main(["run", "--profile", "smoke", "--only", run.name, "--jobs", "2", *places])
    assert "all runs are done" in capsys.readouterr().out
    by_job = json.loads(run.result(folders).read_text())
    run.result(folders).unlink()
    shutil.rmtree(run.work(folders))
    main(["run", "--profile", "smoke", "--only", run.name, *places])
    assert json.loads(run.result(folders).read_text())["rows"] == by_job["rows"]


def test_a_run_of_another_process_is_left_to_it(at, capsys, monkeypatch):
    folders, places = at
    work = Run("r2-1", "cifar10", 0, "smoke").work(folders)
    monkeypatch.setattr(runner, "train", lambda *_, **__: pytest.fail("disturbed"))
    with held(work):
        assert listed(capsys, "--only", work.name, *places)[work.name]["state"] == "running, not started"
        main(["run", "--profile", "smoke", "--only", work.name, *places])
        assert "left to the process that is at it" in capsys.readouterr().out
        with pytest.raises(InputError, match="another process is at"), held(work, tries=2):
            pass
    assert not is_busy(work)


def wait_for(condition):
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened for two minutes")


# What goes wrong


def test_a_run_that_diverges_is_recorded(at, capsys, monkeypatch):
    folders, places = at

    def diverge(*_, **__):
        raise InputError("the loss is nan at iteration 3: lower the learning rate or the clip")

    monkeypatch.setattr(runner, "train", diverge)
    name = "r3-4-shared.bsd15-seed0"
    main(["run", "--profile", "smoke", "--only", name, *places])
    assert listed(capsys, "--only", name, *places)[name]["state"] == "diverged"
    main(["report", "--profile", "smoke", *places])
    assert "diverged (1 of 1)" in line(folders, "| shared | BSD68, sigma 15 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--profile", "lit"], "unknown profile 'lit': did you mean 'lite'"),
        (["run", "--table", "6"], "unknown table '6'"),
        (["run", "--figure", "1"], "unknown figure '1'.*2, 3, 4, 5, 6, 7"),
        (["run", "--profile", "smoke", "--only", "r2-1.cifar10"], "did you mean 'r2-1.cifar10-seed0'"),
        (["run", "--table", "4"], "no CIFAR-10 in .*rcnet data cifar10"),
        (["run", "--profile", "smoke", "--table", "3", "--bsd", "nowhere"], "no BSD in nowhere.*rcnet data bsds500"),
        (["run", "--profile", "smoke", "--table", "4", "--jobs", "0"], "jobs from 1"),
        (["report", "--profile", "big"], "unknown profile 'big'"),
    ],
)
def test_bad_input_says_what_is_valid(arguments, message, at, capsys):
    with pytest.raises(SystemExit) as stop:
        main([arguments[0], *at[1], *arguments[1:]])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_what_has_no_data_is_left_out(at, capsys):
    folders, places = at
    names = ["r2-1.cifar10-seed0", "r3-1.bsd50-seed0"]
    main(["run", "--profile", "smoke", "--only", *names, *places, "--bsd", "nowhere"])
    assert "1 runs left out: no BSD in nowhere" in capsys.readouterr().err
    assert [run.result(folders).exists() for run in declared("smoke", only=names)] == [True, False]


def test_a_damaged_result_is_named(at, capsys):
    folders, places = at
    path = Run("r2-1", "cifar10", 0, "smoke").result(folders)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(SystemExit):
        main(["report", "--profile", "smoke", *places])
    assert f"{path} is not a result of the study: delete it" in capsys.readouterr().err


# The plan


def test_runs_shared_between_tables_are_declared_once():
    runs = declared("full")
    assert len(runs) == 3 * 54 == len({run.name for run in runs})
    assert runs[Run("r2-4", "cifar10", 2, "full")] == ("Table 1", "Table 2", "Figure 2")
    assert {run.seed for run in list(runs)[:54]} == {0}
    assert {run.network for run in runs} == NETWORKS.keys()
    assert len(declared("lite", tables=[4])) == 2
    assert len(declared("lite", figures=[7], tables=[5])) == 5


@pytest.mark.parametrize("profile", PROFILES)
def test_recipes_are_what_the_profile_says(profile, tmp_path):
    for run in list(declared(profile))[:54]:
        recipe = recipe_of(run.network, run.data, run.seed, PROFILES[profile], tmp_path)
        assert recipe.seed == run.seed
        assert recipe.minutes == 0
        with torch.device("meta"):
            model = create_model(**recipe.model)
        if run.network == "s4-exits":
            assert recipe.objective == "aggregated"
        if run.network.endswith("-234"):
            assert recipe.probabilities == (0.2, 0.3, 0.5)
        if profile == "full":
            assert recipe.epochs == 200 if run.data in paper.CIFAR else recipe.iterations == 80_000
            if run.data in paper.CIFAR:
                assert model.get_submodule("classifier").out_features == paper.CLASSES[run.data]
            else:
                assert recipe.denoising.sigma == float(run.data[3:])


def test_times_are_those_of_the_machine(done, capsys, monkeypatch):
    folders, places = done
    states = plan.survey(declared("smoke", tables=[2, 3]), folders)
    speeds = {1e15 * s.pflop / t for s, t in zip(states, plan.seconds_here(states, folders), strict=True)}
    assert len(speeds) <= 2  # that of its classifiers and that of its denoisers, whose minutes may round to 0
    rows = listed(capsys, "--table", "1", *places, "--results", "nowhere").values()
    assert all(row["seconds"] == pytest.approx(row["pflop"] * 1e4) for row in rows)
    monkeypatch.undo()
    assert 1e6 < plan.measured_speed(False, "fp32") < 1e16


def test_the_cheapest_information_comes_first():
    def state(name, pflop, places, seed=0, done=0.0, result=None):
        return plan.State(Run(name, "cifar10", seed, "full"), places, done, False, result, pflop)

    states = [
        state("later seed", 0.1, ("Table 1",), seed=1),
        state("dear", 8, ("Table 1",)),
        state("dear, nearly done", 8, ("Table 1",), done=0.9),
        state("dear, for four", 8, ("Table 1", "Table 2", "Figure 2", "Figure 3")),
        state("cheap", 1, ("Table 1",)),
        state("done", 0.01, ("Table 1",), result={}),
    ]
    names = [s.run.network for s in runner.cheapest_first(states)]
    assert names == ["dear, nearly done", "cheap", "dear, for four", "dear", "later seed"]


# Claims


def key(network, steps, data="cifar10"):
    return Key(network, data, steps)


def claim(text):
    (found,) = [c for c in CLAIMS if c.text.endswith(text)]
    return found


def test_the_papers_own_figures_support_its_claims():
    for c in CLAIMS:
        assert judge(c, published()).holds is (None if "R3" in c.text else True), c.text


@pytest.mark.parametrize(
    ("errors", "holds"),
    [
        ((14, 9, 8, 7), True),
        ((14, 9, 9, 7), False),
        ((14, 9, 8, math.nan), False),
        ((14, 9, 8, None), None),
        ((9, 14, None, None), False),
        ((math.nan, 14, 13, 12), True),
        ((None, None, None, None), None),
    ],
)
def test_more_steps_help(errors, holds):
    values = {key(f"r2-{n}", n): error for n, error in enumerate(errors, start=1) if error is not None}
    verdict = judge(claim("More steps help R2, CIFAR-10"), values)
    assert verdict.holds is holds
    assert verdict.text == {True: "holds", False: "does not hold", None: "not yet measured"}[holds]
    assert ("?" in verdict.figures) == (None in errors)


@pytest.mark.parametrize(("psnr", "holds"), [((15, 25, 31), True), ((math.nan, 31, 31.2), True), ((31, 30, 31.5), False)])
def test_higher_psnr_is_better(psnr, holds):
    networks = ("r3-4-shared", "r3-4-none", "r3-4")
    values = {key(network, 4, "bsd25"): value for network, value in zip(networks, psnr, strict=True)}
    assert judge(claim("none beats shared, BSD68, sigma 25"), values).holds is holds


@pytest.mark.parametrize(("gap", "holds"), [(-1.0, True), (SLACK / 2, True), (2 * SLACK, False)])
def test_matching_has_a_limit(gap, holds):
    values = {key(f"r2-{n}", n): 8.0 for n in (2, 3, 4)} | {key("r2-234", n): 8.0 for n in (2, 3)} | {key("r2-234", 4): 8.0 + gap}
    assert judge(claim("Cost-adjustable R2 matches fixed R2, within 0.5 points, CIFAR-10"), values).holds is holds


@pytest.mark.parametrize(
    ("rc", "exits", "holds"),
    [((26, 25.5, 25), (45, 30, 25), True), ((26, 25.5, 25), (25.1, 25.1, 25), False), ((26, 25.5), (45, 30, 25), None)],
)
def test_early_exits_are_compared_at_the_same_relative_cost(rc, exits, holds):
    costs = {key("r4-123", n, "cifar100"): c for n, c in ((1, 48), (2, 74), (3, 100))}
    costs |= {key("s4-exits", n, "cifar100"): c for n, c in ((1, 51), (2, 75), (3, 100))}
    values = {key("r4-123", n, "cifar100"): e for n, e in enumerate(rc, start=1)}
    values |= {key("s4-exits", n, "cifar100"): e for n, e in enumerate(exits, start=1)}
    assert judge_exits(values, costs.__getitem__).holds is holds


def test_relative_accuracy_is_that_of_the_largest():
    keys = claims.CURVES["R4, cost-adjustable"]
    points = claims.relative(keys, dict(zip(keys, (60, 55, 50), strict=True)), lambda k: 10.0 * k.steps)
    assert points == [(pytest.approx(100 / 3), 80), (pytest.approx(200 / 3), 90), (100, 100)]


# The network of Figure 7


def test_an_early_exit_computes_nothing_after_it():
    model = create_model("s4_exits").eval()
    ran = []
    for name, module in model.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    for steps, last in ((1, "cell2"), (2, "cell3"), (3, "cell4")):
        ran.clear()
        model(torch.rand(1, 3, 8, 8), steps=steps)
        names = [name for name in model._modules if not name.startswith("exit")]
        assert ran == [*names[: names.index(last) + 1], "classifier" if steps == 3 else f"exit{steps}"]
    with pytest.raises(InputError, match="valid: 1, 2, 3"):
        model(torch.rand(1, 3, 8, 8), steps=4)
    with pytest.raises(InputError, match="the exits are 1, 2 and 3"):
        create_model("s4_exits", steps=4)


def test_rcnet_study_is_the_same(at, capsys):
    from rcnet.cli.study import study

    folders, places = at
    main(["list", "--profile", "smoke", "--table", "4", "--json", *places])
    expected = json.loads(capsys.readouterr().out)
    study("list", profile=["smoke"], table=[4], json_output=True, **dataclasses.asdict(folders))
    rows = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["pflop"]) for row in rows] == [(row["run"], row["pflop"]) for row in expected]
    study("list", profile=["smoke"], table=[4], **dataclasses.asdict(folders))
    printed = capsys.readouterr().out
    assert "r2-234.cifar10-seed0" in printed
    assert "0 of 2 runs done" in printed
    with pytest.raises(InputError, match="takes one profile"):
        study("run", profile=["lite", "full"])

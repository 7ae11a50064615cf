"""The study from end to end on real slices, killed and continued, and what it concludes from made-up figures."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from paper import claims, costs, results, runner, states, tables
from paper.__main__ import main
from paper.claims import CHECK_CLAIMS, CLAIMS, judge, judge_exits, of_the_paper
from paper.command import Chosen, list_runs, run_missing, write_report
from paper.compare import Outcomes, bootstrap, compare, mcnemar, t_test, welch
from paper.measure import MARKS, bsd_test, network_at, psnr_rows, read_along, read_outcomes, settled
from paper.page import unreachable_groups
from paper.runs import Folders, Run, declared, kept_result
from paper.scales import SCALES, recipe_of
from paper.states import LOCK, is_taken
from paper.tables import CHECKS, FIGURES, NETWORKS, TABLES, Key
from paper.training import ExitsTrainer
from paper.ways import WAYS_OF, with_own_statistics
from rcnet.data.labelled import read_labelled
from rcnet.errors import InputError
from rcnet.evaluation.classify import classification_results
from rcnet.figures.plots import DPI, WIDTH
from rcnet.models import create_model, load, save
from rcnet.training.checkpoint import locked
from rcnet.training.loop import Trainer

from .conftest import IMAGES

BSD = IMAGES / "bsd"
RESULTS = IMAGES.parent.parent / "results"
ADJUSTABLE = "r2-234.cifar10-seed0"
# One run a kind: fixed, adjustable with and without mixtures, with transitions, with exits; and the denoisers of Figures 4 and 5.
KINDS = [
    f"{run}-seed0"
    for run in (
        "r2-4.cifar10", "r2-234.cifar10", "r2-234-mixed.cifar10", "r4-123.cifar100", "r4-exits.cifar100", "r3-1.bsd25",
        "r3-2.bsd25", "r3-3.bsd25", "r3-4.bsd25",
    )
]  # fmt: skip
# A process where runs of the scale smoke take a while and keep a checkpoint an iteration.
SLOW = """
import dataclasses
from paper import scales

smoke = scales.SCALES["smoke"]
more = ("iterations=40", "checkpoint_minutes=0")
changed = {kind: (getattr(smoke, kind)[0], (*getattr(smoke, kind)[1], *more)) for kind in ("classify", "denoise")}
scales.SCALES["smoke"] = dataclasses.replace(smoke, **changed)
"""
# What a bare machine does not have.
BARE = """
import sys
sys.modules.update(dict.fromkeys(("tqdm", "cyclopts", "matplotlib")))
from pathlib import Path
from paper.command import Chosen, run_missing
from paper.runs import Folders
run_missing(Folders(*map(Path, sys.argv[1:5])), Chosen("smoke", only=sys.argv[6:]), jobs=int(sys.argv[5]))
"""


def slow(*more):
    """The scale smoke with changes."""
    smoke = SCALES["smoke"]
    changed = {kind: (getattr(smoke, kind)[0], (*getattr(smoke, kind)[1], *more)) for kind in ("classify", "denoise")}
    return dataclasses.replace(smoke, **changed)


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch):
    monkeypatch.setattr(costs, "measured_speed", lambda classifies, precision: 1e11 if classifies else 5e10)


@pytest.fixture
def at(tmp_path, cifar_folder):
    """The folders of a study."""
    return Folders(cifar_folder, BSD, tmp_path / "results", tmp_path / "runs")


def perform(folders, *names):
    run_missing(folders, Chosen("smoke", only=names))


@pytest.fixture(scope="module")
def done(tmp_path_factory, cifar_folder):
    """One run of each kind."""
    folder = tmp_path_factory.mktemp("study")
    folders = Folders(cifar_folder, BSD, folder / "results", folder / "runs")
    perform(folders, *KINDS)
    return folders


@pytest.fixture(scope="module")
def rendered(done):
    """The same with its report; what that printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        write_report(done, ["smoke"])
    return done, printed.getvalue().split()


@pytest.fixture
def copied(done, tmp_path):
    """A copy of its results, to change; the weights are those of `done`."""
    folders = dataclasses.replace(done, results=tmp_path / "results")
    shutil.copytree(done.results, folders.results)
    return folders


def render(folders):
    """The page alone: what weights would show is not drawn."""
    write_report(dataclasses.replace(folders, runs=folders.results / "none"), ["smoke"])


def listed(capsys, folders, **chosen):
    capsys.readouterr()
    list_runs(folders, Chosen("smoke", **chosen), json_output=True)
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}


def page(folders):
    return (folders.results / "STUDY.md").read_text()


def line(folders, *words):
    """The one line of the page that holds all the words."""
    found = [text for text in page(folders).splitlines() if all(word in text for word in words)]
    assert len(found) == 1, (words, found)
    return found[0]


def kinds():
    return list(declared("smoke", only=KINDS))


# End to end


def test_every_run_leaves_a_result(done):
    files = {f"{name}.{ending}" for name in KINDS for ending in ("json", "npz")}
    assert {path.name for path in (done.results / "study" / "smoke").iterdir()} == files
    for run in kinds():
        result = kept_result(run, done)
        assert (result["network"], result["data"], result["seed"], result["scale"]) == dataclasses.astuple(run)
        assert (result["status"], result["iterations"], result["evaluated_in"]) == ("done", 2, "fp32")
        assert {"recipe", "epochs", "hardware", "minutes", "commit", "pflop"} <= result.keys()
        assert [row["steps"] for row in result["rows"]] == NETWORKS[run.network].taken
        for row in result["rows"]:
            assert math.isfinite(row[tables.metric(run.data)])
        assert ("along" in result) == ("along_raw" in result) == (not run.classifies)


def test_what_a_network_gives_for_each_test_image_is_kept(done):
    for run in kinds():
        rows, kept = kept_result(run, done)["rows"], read_outcomes(run, done)
        assert list(kept) == [row["steps"] for row in rows]
        for row in rows:
            each, labels = kept[row["steps"]]
            assert each.mean() == pytest.approx(row[tables.metric(run.data)], abs=6e-4)
            assert len(labels) == (len(each) if run.classifies else 0)
        if not run.classifies:
            assert rows[0]["psnr_own_noise"] != rows[0]["psnr"]
            assert rows[0]["psnr_own_noise"] == pytest.approx(rows[0]["psnr"], abs=0.5)


def test_the_estimate_is_what_the_loop_counts(done):
    for run in kinds():
        counted = kept_result(run, done)["pflop"]
        estimate = costs.training_flop(run, run.recipe(done)) / 1e15
        assert estimate == pytest.approx(counted, rel=0.05), run.name  # its head has 100 classes


def test_the_report_holds_every_figure(rendered):
    done, printed = rendered
    for number in TABLES:
        assert f"## Table {number}." in page(done)
    for number in FIGURES:
        path = done.results / "study" / "figures" / f"figure{number}-smoke.png"
        assert f"study/figures/{path.name}" in page(done)
        assert str(path) in printed
        picture = Image.open(path)
        assert np.asarray(picture.convert("L")).std() > 10  # it shows something
        assert number == 4 or picture.width == WIDTH * DPI
    error = kept_result(Run("r2-4", "cifar10", 0, "smoke"), done)["rows"][0]["error"]
    cell = line(done, "| R2^4 | CIFAR-10 | 18 | 18 |")
    assert f"| 1.263M | 1,262,794 | 7.65 | {error:.2f} | {error - 7.65:+.2f} |  | 1 of 1 |" in cell
    assert "| not convergent | not yet measured |" in line(done, "| shared | BSD68, sigma 15 |")  # the paper's '-'
    verdict = r"\(bootstrap, p . [\d.]+\)\*: [\d.]+ → [\d.]+ → [\d.]+ → [\d.]+"
    assert re.search(verdict, line(done, "| More steps help R3, BSD68, sigma 25 |"))
    assert re.search(r"smoke \| R3\^4, BSD68, sigma 25, seed 0 \| [\d.]+", page(done))
    drawn = r"\| R2, each cell draws its own steps \| CIFAR-10 \| [\d.]+, [\d.]+, [\d.]+ \| [\d.]+ \|"
    assert re.search(drawn, page(done))


def test_distances_between_steps_stand_beside_the_pictures(rendered):
    done, _ = rendered
    norms = list(load(Run("r2-4", "cifar10", 0, "smoke").weights(done)).get_submodule("cell1").norms[0])
    a, b = (norms[t][0].running_mean.numpy() for t in (0, 1))
    expected = np.linalg.norm(a - b) / np.sqrt((a**2 + b**2).sum() / 2)
    cells = line(done, "| step 1 to step 2 |").split("|")
    assert float(cells[4]) == pytest.approx(expected, abs=6e-4)
    assert "| 1 step upstream to 2 steps upstream |" in page(done)
    for between in ("cell2, step 1 to 2", "cell2, step 2 to 3", "cell3, step 1 to 2", "cell3, step 2 to 3"):
        every, shown = map(float, line(done, f"| {between} |").split("|")[2:4])
        assert 0 <= every < 1.5
        assert 0 <= shown < 1.5


def test_what_is_done_is_not_done_again(done, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in done.results.rglob("*.json")}
    monkeypatch.setattr(runner, "train", lambda *_, **__: pytest.fail("trained again"))
    perform(done, *KINDS)
    assert "all runs are done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in done.results.rglob("*.json")}


def test_a_deleted_result_is_not_yet_measured_and_comes_back(copied, capsys, monkeypatch):
    run = Run("r2-4", "cifar10", 0, "smoke")
    kept = run.result(copied).read_text()
    run.result(copied).unlink()
    render(copied)
    assert "| not yet measured |  |  | 0 of 1 |" in line(copied, "| R2^4 | CIFAR-10 | 18 |")
    state = listed(capsys, copied, only=[run.name])[run.name]
    assert (state["state"], state["done"], state["result"]) == ("at 100%", 1, None)
    monkeypatch.setattr("rcnet.training.loop.Trainer.step", lambda *_: pytest.fail("trained again"))
    perform(copied, run.name)
    assert json.loads(run.result(copied).read_text()) == json.loads(kept)


def test_the_page_of_the_repository_is_rendered_from_its_results(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    page = tmp_path / "results" / "STUDY.md"
    page.unlink()
    write_report(Folders(results=tmp_path / "results", runs=tmp_path / "none"))
    assert page.read_text() == (RESULTS / "STUDY.md").read_text()


def test_a_report_without_weights_keeps_the_figures(copied, tmp_path):
    elsewhere = dataclasses.replace(copied, runs=tmp_path / "none")
    figures = copied.results / "study" / "figures"
    shutil.rmtree(figures, ignore_errors=True)
    write_report(elsewhere, ["smoke"])
    assert sorted(path.name for path in figures.iterdir()) == ["figure5-smoke.png", "figure7-smoke.png"]
    assert "smoke: not yet measured" in page(copied)
    shutil.copy(figures / "figure5-smoke.png", figures / "figure2-smoke.png")
    write_report(elsewhere, ["smoke"])
    assert "study/figures/figure2-smoke.png" in page(copied)
    assert "Without distances" in page(copied)


def test_results_of_changed_sources_are_counted(copied):
    for path in (copied.results / "study" / "smoke").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "abc1234"}))
    path = Run("r2-4", "cifar10", 0, "smoke").result(copied)
    old = json.loads(path.read_text())
    path.write_text(json.dumps({**old, "commit": "694021c-dirty"}))
    render(copied)
    about = line(copied, "- **smoke**:")
    assert "Made by sources with changes that no commit holds: 1." in about
    assert f"| {old['rows'][0]['error']:.2f} |" in line(copied, "| R2^4 | CIFAR-10 | 18 |")


def test_classifiers_are_evaluated_in_fp32_whatever_they_train_in(at, monkeypatch):
    monkeypatch.setitem(SCALES, "smoke", slow("precision=bf16"))
    run = Run("r2-1", "cifar10", 0, "smoke")
    perform(at, run.name)
    result = kept_result(run, at)
    assert (result["precision"], result["evaluated_in"]) == ("bf16", "fp32")
    model, test = load(run.weights(at)), read_labelled(at.cifar, "test", "folder", 8)
    exact, rough = (
        classification_results(model, test.images, test.labels, [1], precision=precision)[0]["loss"]
        for precision in ("fp32", "bf16")
    )
    assert result["rows"][0]["loss"] == exact != rough


def test_test_psnr_is_recorded_along_a_denoisers_run(at, monkeypatch):
    monkeypatch.setitem(SCALES, "smoke", slow("iterations=120"))
    monkeypatch.setattr("paper.measure.SIDE", 16)
    run = Run("r3-1", "bsd25", 0, "smoke")
    perform(at, run.name)
    along = kept_result(run, at)["along"]
    iterations = [iteration for iteration, _ in along]
    assert iterations[-1] == 120
    assert len(along) > 1
    assert all(b - a >= 120 / MARKS or b == 120 for a, b in itertools.pairwise([0, *iterations]))
    images = [image[8:24, 8:24] for image in bsd_test(run, at)]  # the centre of the 32x32 pixels that the scale takes
    assert along[-1][1] == psnr_rows(load(run.weights(at)), run, images)[0]["psnr"]
    assert [tuple(entry) for entry in along] == read_along(run.work(at) / "along.jsonl")


def test_the_last_weights_are_recorded_beside_their_average(at, monkeypatch):
    monkeypatch.setitem(SCALES, "smoke", slow("iterations=40", "ema=0.9"))
    monkeypatch.setattr("paper.measure.SIDE", 16)
    run = Run("r3-1", "bsd25", 0, "smoke")
    perform(at, run.name)
    result = kept_result(run, at)
    assert [at for at, _ in result["along_raw"]] == [at for at, _ in result["along"]]
    assert result["along_raw"][-1] != result["along"][-1]
    images = [image[8:24, 8:24] for image in bsd_test(run, at)]
    state = torch.load(run.work(at) / "checkpoint.pt", weights_only=True)
    raw = network_at(state, run.recipe(at).model, averaged=False)
    assert result["along_raw"][-1][1] == psnr_rows(raw, run, images)[0]["psnr"]
    assert result["settled"] == settled(result["along_raw"])


def test_shared_norms_are_evaluated_in_four_ways(at):
    run = Run("r2-4-shared", "cifar10", 0, "smoke")
    perform(at, run.name)
    result = kept_result(run, at)
    assert list(result["ways"]) == list(WAYS_OF)
    assert result["ways"]["averaged"] == result["rows"][0]["error"]
    render(at)
    shown = " | ".join(f"{error:.2f}" for error in result["ways"].values())
    assert f"| {shown} |" in line(at, "| smoke | R2^4, shared norms | ")


def test_a_norm_a_step_has_the_scales_that_all_steps_shared():
    config = {"name": "r2", "steps": 3, "norm_mode": "shared", "width": 0.25}
    shared = create_model(**config).eval()
    for norm in shared.cell2.norms[0][0]:
        torch.nn.init.uniform_(norm.weight)
    own = with_own_statistics(shared, config)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(own(x), shared(x))
    assert [len(row) for row in own.cell2.norms] == [3]


@pytest.mark.parametrize(
    ("late", "expected"),
    [((20.0, 20.4, 20.9), True), ((20.0, 17.0, 20.0), False), ((20.0, math.nan, 20.0), False), ((20.0,), None)],
)
def test_a_run_converges_where_its_last_third_keeps_still(late, expected):
    along = [(10, 5.0), (20, 25.0), *zip((70, 90, 100) if len(late) > 1 else (100,), late, strict=True)]
    assert settled(along) is expected


def test_what_does_not_converge_on_the_test_images_says_so(copied):
    path = Run("r3-4", "bsd25", 0, "smoke").result(copied)
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "settled": False}))
    render(copied)
    cell = line(copied, "| independent | BSD68, sigma 25 |")
    assert f"not convergent (1 of 1: {result['rows'][0]['psnr']:.2f} at the end)" in cell
    assert "→ not convergent" in line(copied, "| More steps help R3, BSD68, sigma 25 |")


# Interruptions


def process(folders, *names, jobs=1, path=None):
    """The runs of these names in a process that has nothing but the least."""
    command = [sys.executable, "-c", BARE, *(str(getattr(folders, f.name)) for f in dataclasses.fields(folders)), str(jobs)]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), *sys.path])}
    return subprocess.Popen([*command, *names], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables)


@pytest.fixture
def slowly(tmp_path, monkeypatch):
    """The folder that makes the runs of other processes slow; those of this one are, too."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    monkeypatch.setitem(SCALES, "smoke", slow("iterations=40", "checkpoint_minutes=0"))
    return tmp_path


def test_a_killed_run_goes_on_where_it_stood(at, capsys, slowly):
    log = Run("r2-234", "cifar10", 0, "smoke").work(at) / "log.jsonl"
    with process(at, ADJUSTABLE, path=slowly) as running:
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 4)
        running.kill()
    before = log.read_text().splitlines()
    rows = listed(capsys, at, table=[4])
    begun, other = rows[ADJUSTABLE], rows["r2-234.cifar100-seed0"]
    assert begun["state"] == f"at {100 * begun['done']:.0f}%"
    assert 0.1 <= begun["done"] < 1
    assert (other["state"], other["done"]) == ("not started", 0)
    perform(at, ADJUSTABLE)
    after = log.read_text().splitlines()
    kept = round(40 * begun["done"])
    assert after[:kept] == before[:kept]
    assert kept >= len(before) - 1
    assert [json.loads(text)["iteration"] for text in after] == list(range(1, 41))
    assert listed(capsys, at, table=[4])[ADJUSTABLE]["state"] == "done"


def test_max_minutes_stops_at_a_checkpoint(at, capsys, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    monkeypatch.setitem(SCALES, "smoke", slow("iterations=100000", "checkpoint_minutes=0"))
    done = 0
    for _ in range(20):  # a busy machine may not come to the first iteration
        run_missing(at, Chosen("smoke", only=[ADJUSTABLE]), minutes=0.02)
        assert "stopped after 0.02 minutes" in capsys.readouterr().out
        if done := listed(capsys, at, only=[ADJUSTABLE])[ADJUSTABLE]["done"]:
            break
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
    assert 0 < done < 1


def test_sigterm_stops_the_jobs_at_checkpoints(at, slowly):
    (slowly / "sitecustomize.py").write_text(SLOW.replace("=40", "=100000"))
    run = Run("r3-1", "bsd15", 0, "smoke")
    with process(at, run.name, jobs=2, path=slowly) as running:
        try:
            wait_for(lambda: (run.work(at) / "log.jsonl").exists())
            assert is_taken(run.work(at))
        finally:
            running.send_signal(signal.SIGTERM)
        running.communicate(timeout=120)
    assert states.progress_of(run, run.recipe(at), at) > 0
    assert not is_taken(run.work(at))


def test_jobs_leave_what_one_process_leaves(at, capsys, done):
    run = Run("r2-4", "cifar10", 0, "smoke")
    run_missing(at, Chosen("smoke", only=[run.name]), jobs=2)
    assert "all runs are done" in capsys.readouterr().out
    assert kept_result(run, at)["rows"] == kept_result(run, done)["rows"]


def test_a_run_of_another_process_is_left_to_it(at, capsys, monkeypatch):
    work = Run("r2-1", "cifar10", 0, "smoke").work(at)
    monkeypatch.setattr(runner, "train", lambda *_, **__: pytest.fail("disturbed"))
    with locked(work, LOCK):
        assert listed(capsys, at, only=[work.name])[work.name]["state"] == "running, not started"
        perform(at, work.name)
        assert "left to the process that is at it" in capsys.readouterr().out
        with pytest.raises(InputError, match="another process is using"), locked(work, LOCK, tries=2):
            pass
    assert not is_taken(work)


def wait_for(condition):
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened for two minutes")


# What goes wrong


def test_a_run_that_diverges_is_recorded(at, capsys, monkeypatch):
    def diverge(*_, **__):
        raise InputError("the loss is nan at iteration 3: lower the learning rate or the clip")

    monkeypatch.setattr(runner, "train", diverge)
    name = "r3-4-shared.bsd15-seed0"
    perform(at, name)
    assert listed(capsys, at, only=[name])[name]["state"] == "diverged"
    render(at)
    assert "not convergent (1 of 1: diverged)" in line(at, "| shared | BSD68, sigma 15 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--scale", "lit"], "unknown scale 'lit': did you mean 'lite'"),
        (["list", "--scale", "lite", "long"], "Unused Tokens: .*long"),
        (["run", "--table", "6"], "unknown table '6'"),
        (["run", "--figure", "1"], "unknown figure '1'.*2, 3, 4, 5, 6, 7"),
        (["run", "--scale", "smoke", "--only", "r2-1.cifar10"], "did you mean 'r2-1.cifar10-seed0'.*python -m paper list"),
        (["run", "--table", "4"], "no CIFAR-10 in .*rcnet data cifar10"),
        (["run", "--scale", "smoke", "--table", "3", "--bsd", "nowhere"], "no BSD in nowhere.*rcnet data bsds500"),
        (["run", "--scale", "smoke", "--jobs", "0", "--only", "r3-1.bsd25-seed0", "--bsd", str(BSD)], "jobs from 1"),
        (["report", "--scale", "big"], "unknown scale 'big'"),
    ],
)
def test_bad_input_says_what_is_valid(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.search(f"^paper: .*{message}", err)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_data_is_left_out(at, capsys):
    names = ["r2-1.cifar10-seed0", "r3-1.bsd50-seed0"]
    perform(dataclasses.replace(at, bsd=at.bsd / "nowhere"), *names)
    assert "1 runs left out: no BSD in" in capsys.readouterr().err
    assert [run.result(at).exists() for run in declared("smoke", only=names)] == [True, False]


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "done"}', '{"status": "done", "rows": [{"error": "low"}]}'])
def test_a_file_that_is_no_result_is_named(text, at):
    run = Run("r2-4", "cifar10", 0, "smoke")
    run.result(at).parent.mkdir(parents=True)
    run.result(at).write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{run.result(at)} is not a result of the study: delete it")):
        kept_result(run, at)


def test_a_file_that_is_no_result_stops_nothing(copied, capsys):
    broken, whole, other = "r2-4.cifar10-seed0", "r2-234.cifar10-seed0", Run("r3-1", "bsd15", 0, "smoke")
    file = copied.results / "study" / "smoke" / f"{broken}.json"
    file.write_text("{")
    message = f"paper: {file} is not a result of the study"
    list_runs(copied, Chosen("smoke", only=[broken, whole]), json_output=True)
    out, err = capsys.readouterr()
    assert [row["state"] for row in json.loads(out)] == ["invalid result", "done"]
    assert message in err
    render(copied)
    assert message in capsys.readouterr().err
    assert f"count as not yet measured: {broken}.json" in page(copied)
    assert "1 of 1" in line(copied, "| steps 2 | CIFAR-10 | 8.46 |")
    with pytest.raises(InputError, match="is not a result of the study"):
        perform(copied, broken, other.name)
    assert other.result(copied).exists()
    assert file.read_text() == "{"


def test_results_that_are_kept_name_the_commit_of_their_code(tmp_path, monkeypatch):
    run = Run("r3-1", "bsd25", 0, "lite")
    monkeypatch.setattr(runner, "commit", lambda: "abc1234-dirty")
    with pytest.raises(InputError, match="changes that no commit holds"):
        runner.sign(run, tmp_path)
    for now in ("abc1234", "def5678", "def5678"):
        monkeypatch.setattr(runner, "commit", lambda now=now: now)
        signed = runner.sign(run, tmp_path)
    assert signed == "abc1234, def5678"


# The plan


def test_runs_shared_between_tables_are_declared_once():
    runs = declared("long")
    assert len(runs) == 3 * 64 == len({run.name for run in runs})
    assert runs[Run("r2-4", "cifar10", 2, "long")] == ("Table 1", "Table 2", "Figure 2", "Sec. 3.3")
    assert {run.seed for run in list(runs)[:64]} == {0}
    assert {run.network for run in declared("lite")} == NETWORKS.keys()
    assert {key.network for c in CHECK_CLAIMS for chain in c.chains for key in chain} <= {
        network for shown in CHECKS.values() for network, _ in shown
    }
    half = {(run.network, run.data) for run in declared("half")}
    assert half == {
        pair
        for place in SCALES["half"].places
        for pair in (
            CHECKS.get(place)
            or [cell.key[:2] for cell in TABLES[5].cells if place == "Table 5"]
            or FIGURES[int(place.split()[1])].shows
        )
    }
    assert len(declared("lite", tables=[4])) == 2
    assert len(declared("lite", figures=[7], tables=[5])) == 6


@pytest.mark.parametrize("scale", SCALES)
def test_recipes_are_what_the_scale_says(scale, tmp_path):
    for run in dict.fromkeys(dataclasses.replace(run, seed=0) for run in declared(scale)):
        recipe = recipe_of(run.network, run.data, run.seed, SCALES[scale], tmp_path)
        assert recipe.minutes == 0
        with torch.device("meta"):
            model = create_model(**recipe.model)
        if run.network.endswith("-exits"):
            assert recipe.objective == "aggregated"
        if run.network in ("r2-234", "r2-234-plain", "r2-234-all", "r2-234-long", "r4-123"):
            assert recipe.probabilities == (0.2, 0.3, 0.5)
        if scale == "long":
            length = NETWORKS[run.network].length
            assert recipe.epochs == pytest.approx(200 * length) if run.classifies else recipe.iterations == 80_000
            if not run.classifies:
                assert recipe.denoising.sigma == float(run.data[3:])
            elif not run.network.endswith("-exits"):
                assert model.get_submodule("classifier").out_features == tables.CLASSES[run.data]
        if scale == "lite" and run.classifies:
            usual = "sgd" not in run.network and run.network != "r2-4-shared-slow"
            assert recipe.epochs == pytest.approx(5 * NETWORKS[run.network].length)
            assert recipe.optimizer.norm_lr == (16 if usual else 1)
            assert costs.training_flop(run, recipe) > 1e13


def test_variants_change_what_their_name_says():
    recipes = {n: recipe_of(n, "cifar10", 0, SCALES["long"], Folders().cifar) for n in NETWORKS if n.startswith("r2")}
    assert (recipes["r2-4"].optimizer.shared_lr, recipes["r2-4-full-rate"].optimizer.shared_lr) == (0.5, 1.0)
    assert recipes["r2-234-even"].probabilities == ()
    assert recipes["r2-234-small"].probabilities == (0.5, 0.3, 0.2)
    assert recipes["r2-234-all"].objective == "aggregated"
    mixed = recipes["r2-234-mixed"]
    own = dict(zip(((2, 2), (2, 3), (3, 2), (2, 4), (3, 3), (4, 2), (3, 4), (4, 3), (4, 4)), mixed.probabilities, strict=True))
    assert mixed.settings == "free"
    assert [sum(p for steps, p in own.items() if steps[1] == n) for n in (2, 3, 4)] == pytest.approx([0.2, 0.3, 0.5])
    plain, double = (create_model(**recipes[name].model).get_submodule("cell2") for name in ("r2-234-plain", "r2-234"))
    assert [len(row) for row in plain.norms] == [4]
    assert sum(len(row) > 0 for row in double.norms) == 3


@pytest.mark.parametrize(
    ("one", "other"), [("r2-234-even-equal", "r2-234"), ("r2-234-small-equal", "r2-234"), ("r2-234-long", "r2-234-all")]
)
@pytest.mark.parametrize("scale", ["lite", "half"])
def test_runs_for_equal_flop_take_as_many(one, other, scale):
    flop = [costs.training_flop(run, run.recipe(Folders())) for run in (Run(n, "cifar10", 0, scale) for n in (one, other))]
    assert flop[0] == pytest.approx(flop[1], rel=2e-3)


def test_biases_take_the_place_of_norms():
    net = create_model("r2_biased", steps=4, width=0.25)
    assert [p.shape[0] for name, p in net.named_parameters() if name.endswith("conv1.bias")] == [16, 64]
    assert not [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_parameters_and_depth_are_those_of_the_paper():
    for table in TABLES.values():
        for cell in table.cells if table.parameters else ():
            assert costs.depth_of(*cell.key) == table.depth[cell.row]
            extra = unreachable_groups() if cell.row.startswith("R4") else 0
            if cell.column == "CIFAR-10" or table is TABLES[5]:
                counted = (costs.parameters_of(cell.key.network, cell.key.data) + extra) / 1e6
                assert counted == pytest.approx(table.parameters[cell.row], abs=6e-4), cell.row


def test_times_are_those_of_the_machine(done, capsys, monkeypatch):
    surveyed = states.survey(declared("smoke", only=KINDS), done)
    runs = [(state.run, state.pflop, state.result) for state in surveyed if state.run.classifies]
    own = dict(runs[0][2], minutes=2.0)  # the minutes of the others may round to 0
    known = [(runs[0][0], runs[0][1], own), *((run, pflop, None) for run, pflop, _ in runs[1:3])]
    assert costs.seconds_here(known, done) == pytest.approx([120 * pflop / own["pflop"] for _, pflop, _ in known])
    rows = listed(capsys, dataclasses.replace(done, results=done.results / "none"), only=KINDS).values()
    rates = {row["data"][:3]: row["seconds"] / row["pflop"] for row in rows}
    assert rates == {"cif": pytest.approx(1e4), "bsd": pytest.approx(2e4)}
    monkeypatch.undo()
    assert 1e6 < costs.measured_speed(False, "fp32") < 1e16


def test_the_cheapest_information_comes_first():
    def state(name, pflop, places, seed=0, done=0.0, result=None, data="cifar100"):
        return states.State(Run(name, data, seed, "lite"), places, done, False, result, pflop)

    surveyed = [
        state("later seed", 0.1, ("Table 1",), seed=1),
        state("dear", 8, ("Table 1",)),
        state("dear, nearly done", 8, ("Table 1",), done=0.9),
        state("dear, for four", 8, ("Table 1", "Table 2", "Figure 2", "Figure 3")),
        state("cheap", 1, ("Table 1",)),
        state("done", 0.01, ("Table 1",), result={}),
        state("first of all", 9, ("Table 4",), data="cifar10"),
        state("only said", 5, ("Sec. 4.2",), data="cifar10"),
    ]
    names = [s.run.network for s in runner.in_order(surveyed)]
    assert names == ["first of all", "dear, nearly done", "cheap", "dear, for four", "only said", "dear", "later seed"]


# Claims


def key(network, steps, data="cifar10"):
    return Key(network, data, steps)


def claim(text):
    (found,) = [c for c in CLAIMS if re.match(re.escape(text) + r"(?!\d)", c.text)]
    return found


def single(values):
    """One seed each, of which no outcomes per image are kept."""
    return {cell: {0: Outcomes(value)} for cell, value in values.items()}


def wrong(count, start=0, of=10_000, labels=b"ten"):
    """A network that errs on so many images, from a place on."""
    each = np.zeros(of)
    each[start : start + count] = 100
    return Outcomes(100 * count / of, each, labels)


def test_the_papers_own_figures_support_its_claims():
    judged = of_the_paper(lambda k: 1.0)
    assert len(judged) == 38
    for c, verdict in judged:
        only_said = c.where in ("Sec. 3.1", "Sec. 3.3", "Sec. 4.1", "Sec. 4.2") or c.where.endswith(("Figure 5", "Figure 7"))
        assert verdict.holds is (None if only_said else True), c.text


def test_the_papers_brackets_contradict_its_tables():
    values = tables.published()
    own = {cell: round(values[cell] - values[fixed], 2) for cell, (fixed, _) in tables.GAPS.items()}
    differing = {cell: gap for cell, gap in own.items() if gap != tables.GAPS[cell][1]}
    assert differing == {key("r2-234", 4): 0.22, key("r2-234", 2, "cifar100"): -0.67, key("r2-234", 4, "cifar100"): 0.34}


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ((20, 15, 11, 8), "holds (unpaired, p < 0.0001)"),
        ((14, 9, 8, 7.9), "not decided (unpaired, p = 0.79)"),
        ((14, 9, 12, 7), "contradicted (unpaired, p < 0.0001)"),
        ((14, 9, 8, math.nan), "contradicted"),
        ((14, 11, 8, None), "holds so far (2 of 3 comparisons, unpaired, p < 0.0001)"),
        ((14, None, None, 8), "holds so far (1 of 3 comparisons, unpaired, p < 0.0001)"),
        ((9, 14, None, None), "contradicted so far (1 of 3 comparisons, unpaired, p < 0.0001)"),
        ((math.nan, 14, 11, 8), "holds (unpaired, p < 0.0001)"),
        ((None, None, None, 8), "not yet measured"),
        ((None, None, None, None), "not yet measured"),
    ],
)
def test_runs_without_outcomes_per_image_decide_large_differences_only(errors, text):
    values = single({key(f"r2-{n}", n): error for n, error in enumerate(errors, start=1) if error is not None})
    verdict = judge(claim("More steps help R2, CIFAR-10"), values)
    assert verdict.text == text
    assert verdict.figures.count("?") == (sum(error is None for error in errors) if values else 0)


def test_one_seed_is_judged_on_the_same_images():
    c = claim("R2^4 beats the deeper S2^2, CIFAR-10")

    def judged(ours):
        return judge(c, {key("s2-2", 2): {0: wrong(940)}, key("r2-4", 4): {0: ours}})

    assert judged(wrong(938)).text == "not decided (McNemar, p = 0.5)"  # two images of 10,000
    assert judged(wrong(900)).text == "holds (McNemar, p < 0.0001)"  # errs on a part of those images
    assert judged(wrong(900, 5000)).text == "not decided (McNemar, p = 0.36)"  # on others
    assert judged(wrong(900, labels=b"other order")).text == "not decided (unpaired, p = 0.33)"
    assert judged(wrong(980)).text == "contradicted (McNemar, p < 0.0001)"


def test_mcnemar_is_the_exact_binomial_of_the_images_that_differ():
    assert mcnemar(9, 1, 0.08).p == pytest.approx(2 * 11 / 1024)
    assert mcnemar(5, 5, 0.0).p == 1
    assert mcnemar(700, 600, 1.0).p == pytest.approx(0.0060158, abs=1e-7)  # of scipy


@pytest.mark.parametrize(("t", "freedom", "p"), [(2.776445, 4, 0.05), (12.7062, 1, 0.05), (0.0, 3, 1.0), (3.17, 10, 0.01)])
def test_the_p_of_t(t, freedom, p):
    assert t_test(t, freedom) == pytest.approx(p, rel=3e-3)
    assert t_test(-t, freedom) == t_test(t, freedom)


def test_welch_is_of_unequal_variances():
    found = welch([27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2])
    assert found.gain == pytest.approx(2.3)
    assert found.p == pytest.approx(0.23304, abs=1e-5)  # of scipy 1.16


def test_a_bootstrap_knows_how_images_spread():
    spread = np.random.default_rng(1).normal(0, 1, 68)
    near, far = bootstrap(spread - spread.mean() + 0.05), bootstrap(spread - spread.mean() + 0.5)
    assert near.p > 0.5
    assert far.p < 0.001
    psnr = {0: Outcomes(28.0, 28 + spread, b"")}, {0: Outcomes(28.1, 28.1 + spread, b"")}
    assert compare(*psnr, key("r3-4", 4, "bsd25"), 0.0).p < 0.001  # 0.1 dB in every image
    assert compare(*({0: seeds[0]._replace(each=None)} for seeds in psnr), key("r3-4", 4, "bsd25"), 0.0).p > 0.5


@pytest.mark.parametrize(
    ("worse", "better", "text"),
    [
        ((8.0, 8.1, 8.3), (7.0, 7.1, 7.3), "holds (Welch, p = 0.0013)"),
        ((7.0, 7.1, 7.3), (8.0, 8.1, 8.3), "contradicted (Welch, p = 0.0013)"),
        ((8.0, 8.4, 8.8), (7.8, 8.2, 8.6), "not decided (Welch, p = 0.57)"),
        ((8.0, 8.2), (7.0, 7.2), "holds (Welch, p = 0.019)"),
        ((8.0, 8.6), (7.0, 7.6), "not decided (Welch, p = 0.14)"),  # 3.3 standard errors apart
        ((8.0, 8.1, math.nan), (7.0, 7.1, 7.2), "not decided (partly not convergent, p = 1)"),
        ((8.0, 8.1, 8.2), (7.0, 7.1, math.nan), "contradicted"),
        ((math.nan, math.nan), (7.0, 7.1), "holds"),
    ],
)
def test_seeds_decide_by_their_spread(worse, better, text):
    values = {
        place: {seed: Outcomes(value) for seed, value in enumerate(each)}
        for place, each in ((key("s2-2", 2), worse), (key("r2-4", 4), better))
    }
    assert judge(claim("R2^4 beats the deeper S2^2, CIFAR-10"), values).text == text


def test_a_single_seed_is_compared_with_that_of_its_number():
    ours, theirs = {2: wrong(940)}, {0: wrong(10), 2: wrong(900)}
    assert compare(ours, theirs, key("r2-4", 4), 0.0).gain == pytest.approx(0.4)


def test_one_comparison_against_a_claim_is_not_enough_where_it_makes_many():
    better = {n: wrong(900) for n in (2, 3, 4)}

    def judged(name, more):
        values = {key(f"r2-{n}", n): {0: better[n]} for n in better} | {key(f"s2-{n}", n): {0: better[n]} for n in better}
        values[key("s2-4", 4)] = {0: wrong(900 + more)}
        return judge(claim(name), values).text

    assert judged("R2 cannot match S2 of the same graph, CIFAR-10", 6) == "not decided (McNemar, p = 1)"
    # six images of six are 0.031, not below 0.05 / 3; eight are
    assert judged("R2 cannot match S2 of the same graph, CIFAR-10", 8) == "contradicted (McNemar, p = 0.0078)"


@pytest.mark.parametrize(("psnr", "holds"), [((15, 25, 31), True), ((math.nan, 29, 31.2), True), ((31, 28, 31.5), False)])
def test_higher_psnr_is_better(psnr, holds):
    networks = ("r3-4-shared", "r3-4-none", "r3-4")
    values = single({key(network, 4, "bsd25"): value for network, value in zip(networks, psnr, strict=True)})
    assert judge(claim("Independent norms beat none, and none beats shared, BSD68, sigma 25"), values).holds is holds


@pytest.mark.parametrize(("gap", "holds"), [(-100, True), (10, True), (49, None), (51, None), (90, False)])
def test_competitive_is_a_margin_that_is_stated_beside_the_papers_own_gap(gap, holds):
    values = {key(f"r2-{n}", n): {0: wrong(800)} for n in (2, 3, 4)} | {key("r2-234", n): {0: wrong(800)} for n in (2, 3)}
    values[key("r2-234", 4)] = {0: wrong(800 + gap)}
    c = claim(
        "Cost-adjustable R2 is competitive with fixed R2, CIFAR-10 (at most 0.5 points worse; the paper's own largest gap is 0.22"
    )
    verdict = judge(c, values)
    assert verdict.holds is holds
    assert f"({gap / 100:+.2f})" in verdict.figures


def test_drawing_larger_steps_more_often_is_judged_at_each_step():
    def values(usual):
        each = {"r2-234-small-equal": (8, 8, 9), "r2-234-even-equal": (8, 8, 8), "r2-234": usual}
        return single({key(network, n): e for network, errors in each.items() for n, e in zip((2, 3, 4), errors, strict=True)})

    c = claim("Larger probabilities for larger steps are better at the same cost")
    assert judge(c, values((5, 5, 5))).holds is True
    assert judge(c, values((11, 3, 3))).holds is False  # although the mean over steps is better


def test_what_a_family_of_claims_gives_by_chance_is_said(rendered):
    done, _ = rendered
    assert "of 38 claims, were each one comparison between equals, 1.9 would be decided" in page(done)


@pytest.mark.parametrize(
    ("rc", "exits", "holds"),
    [((26, 25.5, 25), (45, 30, 25), True), ((35, 30, 25), (25.1, 25.1, 25), False), ((26, 25.5), (45, 30, 25), None)],
)
def test_early_exits_are_compared_at_the_same_relative_cost(rc, exits, holds):
    macs = {key("r4-123", n, "cifar100"): c for n, c in ((1, 48), (2, 74), (3, 100))}
    macs |= {key("s4-exits", n, "cifar100"): c for n, c in ((1, 51), (2, 75), (3, 100))}
    values = {
        key(network, n, "cifar100"): {0: wrong(round(100 * e))}
        for network, errors in (("r4-123", rc), ("s4-exits", exits))
        for n, e in enumerate(errors, start=1)
    }
    verdict = judge_exits("S4^3 with early exits", values, macs.__getitem__)
    assert verdict.holds is holds
    without = {k: {seed: o._replace(each=None) for seed, o in seeds.items()} for k, seeds in values.items()}
    assert judge_exits("S4^3 with early exits", without, macs.__getitem__).holds is None
    elsewhere = {k: {1 if k.network == "r4-123" else 0: seeds[0]} for k, seeds in values.items()}
    assert judge_exits("S4^3 with early exits", elsewhere, macs.__getitem__).comparisons == ()  # seeds of other numbers


def test_relative_accuracy_is_that_of_the_largest():
    keys = claims.CURVES["R4, cost-adjustable"]
    points = claims.relative(keys, (60, 55, 50), lambda k: 10.0 * k.steps)
    assert points == [(pytest.approx(100 / 3), 80), (pytest.approx(200 / 3), 90), (100, 100)]


# The networks of Figure 7


@pytest.mark.parametrize("name", ["s4_exits", "r4_exits"])
def test_an_early_exit_computes_nothing_after_it(name):
    model = create_model(name, width=0.25).eval()
    ran = []
    for child, module in model.named_children():
        module.register_forward_hook(lambda *_, child=child: ran.append(child))
    x = torch.rand(2, 3, 8, 8)
    at_each = {}
    for steps, last in ((1, "cell2"), (2, "cell3"), (3, "cell4")):
        ran.clear()
        at_each[steps] = model(x, steps=steps)
        names = [child for child in model._modules if not child.startswith("exit")]
        assert ran == [*names[: names.index(last) + 1], "classifier" if steps == 3 else f"exit{steps}"]
    ran.clear()
    together = model.exits(x)
    assert sorted(ran) == sorted(model._modules)  # each once
    assert together.keys() == at_each.keys()
    for steps, output in together.items():
        torch.testing.assert_close(output, at_each[steps])
    with pytest.raises(InputError, match="valid: 1, 2, 3"):
        model(torch.rand(1, 3, 8, 8), steps=4)
    with pytest.raises(InputError, match="the exits are 1, 2 and 3"):
        create_model(name, steps=4)


def test_exits_are_trained_from_one_pass(at):
    recipe = recipe_of("r4-exits", "cifar100", 0, SCALES["smoke"], at.cifar)
    found, ran = {}, {}
    for kind in (ExitsTrainer, Trainer):
        trainer, ran[kind] = kind(recipe, at.cifar, at.runs, False), []
        weights = dict(zip(trainer.model.settings, (0.2, 0.3, 0.5), strict=True))
        trainer.model.eval()  # batch norms then do not depend on how often they are called
        trainer.model.get_submodule("cell1").register_forward_hook(lambda *_, kind=kind: ran[kind].append(1))
        loss = trainer.backward(trainer.task.batch(np.random.default_rng(0), 0), weights)
        found[kind] = loss, {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    torch.testing.assert_close(found[ExitsTrainer], found[Trainer])
    assert (len(ran[ExitsTrainer]), len(ran[Trainer])) == (1, 3)


def test_the_cells_of_r4_with_exits_take_three_steps():
    whole, cut = create_model("r4", steps=3, width=0.25).eval(), create_model("r4_exits", width=0.25).eval()
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("classifier")}, strict=False)
    x = torch.rand(2, 3, 8, 8)
    held = {}
    for label, net in (("whole", whole), ("cut", cut)):
        net.cell4.register_forward_hook(lambda _, __, output, label=label: held.setdefault(label, output))
        net(x)
    torch.testing.assert_close(held["cut"], held["whole"])


def test_the_command_lists_and_renders(at, capsys):
    folders = [word for name, folder in dataclasses.asdict(at).items() for word in (f"--{name}", str(folder))]
    main(["list", "--scale", "smoke", "--table", "4", "--json", *folders])
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == [ADJUSTABLE, "r2-234.cifar100-seed0"]
    main(["list", "--scale", "smoke", "--table", "4", *folders])
    printed = capsys.readouterr().out
    assert ADJUSTABLE in printed
    assert "0 of 2 runs done" in printed
    main(["report", *folders])
    assert "- **long**" in page(at)
    assert results.results_of("long", at).files == []


def test_the_help_names_every_option_of_a_command():
    root = IMAGES.parent.parent
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-m", "paper", "run", "--help"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    for option in ("table", "figure", "only", "scale", "cifar", "bsd", "results", "runs", "jobs", "max-minutes"):
        assert f"--{option} " in done.stdout
    assert "Guide: docs/study.md" in done.stdout


def test_weights_of_networks_with_exits_load_where_the_package_is_trusted(tmp_path):
    save(create_model("r4_exits", width=0.125), tmp_path / "exits.safetensors")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys, rcnet; print(type(rcnet.load(sys.argv[1])).__name__)"
    command = [sys.executable, "-c", code, str(tmp_path / "exits.safetensors")]
    done = subprocess.run(command, env=environment | {"RCNET_MODULES": "paper"}, capture_output=True, text=True)
    assert done.stdout == "EarlyExitNet\n", done.stderr
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "unknown model 'r4_exits'" in done.stderr

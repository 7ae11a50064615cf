"""Classification from end to end on real CIFAR images: train, recalibrate, evaluate, classify."""

import copy
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rcnet.cell import batch_norms, norms_of
from rcnet.cost import macs
from rcnet.data.labelled import read_labelled, to_float
from rcnet.deploy.classify import classify, classify_adaptively
from rcnet.deploy.torch_session import TorchSession
from rcnet.errors import InputError
from rcnet.evaluation import adaptive, classification_results, recalibrate
from rcnet.evaluation.adaptive import Answers, Cascade
from rcnet.models import create_model, load, save
from rcnet.runtime.classify import adaptive_macs
from rcnet.tasks.classify import read_matching
from rcnet.training import read_recipe, train
from rcnet.training.loop import Trainer
from rcnet.training.teaching import make_teacher

from .cifar import load as load_slice
from .conftest import IMAGES

SMALL = ["model.width=0.125", "batch=20", "precision=fp32", "epochs=0", "warmup=0.1", "log_every=1", "ema=0.5"]


def small(*overrides, iterations=4):
    return read_recipe("cifar_fast", [*SMALL, f"iterations={iterations}", *overrides])


@pytest.fixture(scope="session")
def weights(cifar_folder, tmp_path_factory):
    """A small classifier that knows the 100 training images."""
    out = tmp_path_factory.mktemp("run") / "run"
    overrides = ["classification.flip=none", "classification.crop=0", "recalibrate=5", "model.width=0.25"]
    train(small(*overrides, iterations=100), cifar_folder, out, progress=False)
    return out / "weights.safetensors"


def test_training_learns_and_records_itself(cifar_folder, weights):
    model = load(weights)
    training, test = (read_labelled(cifar_folder, split) for split in ("train", "test"))
    assert model.metadata["preprocessing"] == {
        "range": [0, 1], "channels": 3, "layout": "RGB", "size": [32, 32], "classes": list(training.classes),
        "task": "classify", "multiple": 4,
    }  # fmt: skip
    for row in classification_results(model, training.images, training.labels, model.steps):
        assert row["error"] < 20  # 90 untrained
    result = json.loads((weights.parent / "result.json").read_text())
    assert result["data"]["images"] == 100
    assert result["epochs"] == 20
    assert [row["steps"] for row in result["validation"]] == [2, 3, 4]
    assert result["validation"] == result["recalibrated"]["after"] != result["recalibrated"]["before"]
    for row in classification_results(model, test.images, test.labels, model.steps):
        assert row in [{key: value for key, value in r.items() if key != "data"} for r in result["validation"]]


def test_mean_and_deviation_are_those_of_the_data(cifar_folder, tmp_path):
    job = Trainer(small(), cifar_folder, tmp_path / "run", False)
    pixels = to_float(read_labelled(cifar_folder, "train").images).double()
    normalize = job.model.get_submodule("normalize")
    torch.testing.assert_close(normalize.mean.flatten().double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalize.std.flatten().double(), pixels.transpose(0, 1).flatten(1).std(1, correction=0))


def test_whitening_decorrelates_the_patches(cifar_folder, tmp_path):
    job = Trainer(small("classification.whitening=true", "model.width=1.0"), cifar_folder, tmp_path / "run", False)
    images = to_float(read_labelled(cifar_folder, "train").images)
    with torch.no_grad():
        answers = job.model.get_submodule("stem")(job.model.get_submodule("normalize")(images))[..., 1:-1, 1:-1]
    covariance = answers.transpose(0, 1).flatten(1)[:27].cov()
    strong = covariance.diagonal() > 0.9  # the directions with much variance
    assert strong.sum() > 5
    core = covariance[strong][:, strong]
    torch.testing.assert_close(core, torch.eye(len(core)), atol=0.1, rtol=0)
    torch.testing.assert_close(answers[:, :27], -answers[:, 27:54])


def test_an_epoch_sees_every_image_once(cifar_folder, tmp_path):
    task = Trainer(small("classification.flip=none", "classification.crop=0"), cifar_folder, tmp_path / "run", False).task
    everything = to_float(read_labelled(cifar_folder, "train").images)
    orders = []
    for epoch in range(2):
        batches = [task.batch(np.random.default_rng(0), 5 * epoch + i) for i in range(5)]
        images = torch.cat([batch.x for batch in batches])
        match = (images.flatten(1)[:, None] == everything.flatten(1)[None]).all(2)
        assert (match.sum(0) == 1).all()
        orders.append(match.int().argmax(1).tolist())
    assert orders[0] != orders[1]


def test_images_held_out_are_not_trained_on(cifar_folder, tmp_path):
    job = Trainer(small("classification.holdout=10"), cifar_folder, tmp_path / "run", False)
    assert job.task.data["images"] == 90
    assert {row["data"] for row in job.task.evaluate(job.model)} == {"photos held out"}
    with pytest.raises(InputError, match="leaves none of the 100"):
        Trainer(small("classification.holdout=100"), cifar_folder, tmp_path / "run", False)
    with pytest.raises(InputError, match="more than the 100 training images"):
        Trainer(small("batch=101"), cifar_folder, tmp_path / "run", False)


def test_recipes_name_every_network_of_the_paper(cifar_folder, tmp_path):
    for number, model in enumerate(
        [
            ["model.steps=1"],
            ["model.steps=4", "model.norm_mode=none"],
            ["model.steps=4", "model.norm_mode=shared"],
            ["model.name=s2", "model.steps=4"],
            ["model.name=s2", "model.steps=4", "model.width=0.0625"],
        ]
    ):
        for recipe in ("cifar_fast", "cifar_paper"):
            job = Trainer(
                read_recipe(recipe, [*SMALL, "iterations=1", *model]), cifar_folder, tmp_path / f"{recipe}{number}", False
            )
            assert np.isfinite(job.step())
    large = read_recipe("cifar_fast", [*SMALL, "iterations=1", "batch=4", "model.name=r4", "model.steps=[1,2,3]"])
    assert np.isfinite(Trainer(large, cifar_folder, tmp_path / "r4", False).step())


def test_the_sandwich_rule_teaches_the_others_by_the_largest(cifar_folder, tmp_path):
    recipe = small("objective=sandwich", "optimizer.clip=0.0", "model.steps=[1,2,3,4]", "probabilities=[]")
    job = Trainer(recipe, cifar_folder, tmp_path / "run", False)
    model = copy.deepcopy(job.model).train()
    rng = np.random.default_rng([0, 0])
    middle = int(rng.choice([2, 3]))
    batch = job.task.batch(rng, 0)
    largest = model(batch.x, 4)
    taught = largest.softmax(1).detach()
    expected = job.task.loss(largest, batch)
    for n in (1, middle):
        expected = expected - (taught * model(batch.x, n).log_softmax(1)).sum(1).mean()
    assert job.step() == pytest.approx(expected.item() / 3, rel=1e-4)


def test_accumulation_gives_the_gradient_of_the_whole_batch(cifar_folder, tmp_path):
    overrides = ["model.norm_mode=none", "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.clip=0.0", "warmup=0.0"]
    whole = Trainer(small(*overrides), cifar_folder, tmp_path / "whole", False)
    parts = Trainer(small(*overrides, "accumulate=4"), cifar_folder, tmp_path / "parts", False)
    assert whole.step() == pytest.approx(parts.step(), rel=1e-5)
    for ours, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    with pytest.raises(InputError, match="batch = 20 cannot be divided evenly among 1 processes x 3 parts"):
        Trainer(small("accumulate=3"), cifar_folder, tmp_path / "third", False)


def test_sizes_that_a_network_cannot_train_on_are_one_line(cifar_folder, tmp_path):
    with pytest.raises(InputError, match="r2 cannot train on batches of 20x3x30x30 at 2 steps"):
        Trainer(small("classification.size=30"), cifar_folder, tmp_path / "run", False)
    with pytest.raises(InputError, match="r2 cannot train on batches of 1x3x8x8"):
        Trainer(small("classification.size=8", "batch=1"), cifar_folder, tmp_path / "run", False)


def test_a_short_run_forgets_its_start(cifar_folder, tmp_path):
    job = Trainer(small("ema=0.9999", "model.steps=2", iterations=30), cifar_folder, tmp_path / "run", False)
    start = job.model.get_parameter("classifier.weight").detach().clone()
    for _ in range(30):
        job.step()
    moved = (job.model.get_parameter("classifier.weight") - start).norm()
    assert (job.average.module.get_parameter("classifier.weight") - start).norm() > 0.5 * moved


def test_weights_are_measured_on_any_folder_of_their_classes(run, cifar_folder, weights, tmp_path):
    (tmp_path / "cifar10").symlink_to(cifar_folder)
    first = json.loads(run("eval", weights, "--data", "cifar10", "--json")[1])
    assert first["rows"] == json.loads(run("eval", weights, "--data", cifar_folder, "--json")[1])["rows"]


def test_tensorboard(cifar_folder, tmp_path):
    train(small(), cifar_folder, tmp_path / "run", progress=False, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert len(events.Scalars("loss")) == 4
    assert "validation/error, steps 4" in events.Tags()["scalars"]


@pytest.mark.parametrize("unified", [True, False])
def test_recalibration_measures_every_norm_that_is_reached(unified):
    torch.manual_seed(1)
    model = create_model("r2", steps=(2, 3, 4), width=0.125, unified=unified)
    model.offer(model.possible_settings())
    x = torch.rand(16, 3, 32, 32)
    for norm in batch_norms(model):
        norm.running_var.fill_(7.0)
    recalibrate(model, [x, x])
    assert all((norm.running_var != 7).all() for norm in batch_norms(model))
    assert all(norm.momentum == 0.1 for norm in batch_norms(model))
    assert model.training
    fixed = create_model("r2", steps=3, width=0.125)
    recalibrate(fixed, [x])
    in_training = copy.deepcopy(fixed).train()(x)
    torch.testing.assert_close(fixed.eval()(x), in_training, atol=0.02, rtol=0.02)  # but for n / (n - 1) in the variance


def test_recalibration_weighs_what_steps_share_and_spares_what_they_do_not_reach():
    torch.manual_seed(1)
    model = create_model("r2", steps=(2, 3, 4), width=0.125, pooled_rows=False)
    x = torch.rand(16, 3, 32, 32)
    statistics = {}
    for n, probabilities in {2: (1, 0, 0), 4: (0, 0, 1), 24: (0.25, 0, 0.75)}.items():
        net = copy.deepcopy(model)
        recalibrate(net, [x], probabilities)
        statistics[n] = net.get_submodule("cell1.norms.0.1.0").running_var  # pooled before it with 2 steps, not with 4
        untouched = net.get_submodule("cell2.norms.3.0.0").running_mean
        assert torch.equal(untouched, torch.zeros_like(untouched))
    assert (statistics[2] - statistics[4]).abs().max() > 0.01
    torch.testing.assert_close(statistics[24], 0.25 * statistics[2] + 0.75 * statistics[4])


@pytest.mark.parametrize("unified", [True, False])
def test_no_norm_of_a_pooling_cell_sees_two_sizes(unified):
    model = create_model("r2", steps=(1, 2, 3, 4), width=0.125, unified=unified)
    seen = {}

    def note(norm, inputs):
        seen.setdefault(norm, set()).add(tuple(inputs[0].shape[-2:]))

    for norm in norms_of(model):
        norm.register_forward_pre_hook(note)
    model.offer(list(model.possible_settings()))
    for setting in model.settings:
        model.eval()(torch.rand(1, 3, 32, 32), setting)
    assert len(model.settings) == (4 if unified else 16)
    assert len(seen) == len(norms_of(model))  # and each is used
    assert {len(sizes) for sizes in seen.values()} == {1}


def test_rows_of_a_pooling_cell_are_named_by_its_own_steps():
    names = create_model("r2", steps=(2, 3, 4), unified=False).state_dict()
    assert {name.rpartition(".")[0] for name in names if "cell1.norms.3." in name} == {
        f"cell1.norms.3.{t}.{i}" for t in range(3) for i in range(2)
    }
    assert "cell2.norms.24.3.0.weight" in names  # the last of four steps after two
    assert not any(name.startswith("cell2.norms.22.2") for name in names)


def test_a_run_may_be_fine_tuned_to_other_classes(cifar_folder, weights, tmp_path, capsys):
    shutil.copytree(cifar_folder, tmp_path / "nine")
    shutil.rmtree(tmp_path / "nine" / "train" / "ship")
    shutil.rmtree(tmp_path / "nine" / "test" / "ship")
    run = Trainer(small(f"init={weights}", "model.width=0.25"), tmp_path / "nine", tmp_path / "run", False)
    assert capsys.readouterr().err.endswith("has no weights for classifier, which start from fresh weights\n")
    kernel = "cell2.body.conv1.weight"
    assert torch.equal(run.model.state_dict()[kernel], load(weights).state_dict()[kernel])
    assert run.model.classifier.out_features == 9
    with pytest.raises(InputError, match="does not fit; the kernels of all cells must fit"):
        Trainer(small(f"init={weights}", "model.width=0.125"), cifar_folder, tmp_path / "run", False)


def test_eval_and_record(run, cifar_folder, weights, tmp_path):
    shutil.copy(weights, tmp_path / "w.safetensors")
    status, out, err = run("eval", "w.safetensors", "--data", cifar_folder, "--json", "--record")
    assert status == 0, err
    result = json.loads(out)
    assert [row["steps"] for row in result["rows"]] == [2, 3, 4]
    assert result["images"] == 100
    assert load("w.safetensors").metadata["results"][-1]["rows"] == result["rows"]
    table = run("eval", "w.safetensors", "--data", cifar_folder, "--steps", "3")[1]
    assert f"{result['rows'][1]['error']:.2f}" in table


def test_classify_names_what_real_images_show(run, cifar_folder, weights, tmp_path):
    known = sorted((cifar_folder / "train" / "ship").iterdir())
    status, out, err = run("classify", cifar_folder / "train" / "ship", "--model", weights, "--json", "--top", "3")
    assert status == 0, err
    rows = json.loads(out)
    assert [row["file"] for row in rows] == [str(path) for path in known]
    assert all(len(row["classes"]) == 3 for row in rows)
    assert sum(row["classes"][0]["class"] == "ship" for row in rows) >= 7
    photo = Image.open(IMAGES / "cat.png").convert("RGB")
    for name, picture in {"gray.png": photo.convert("L"), "alpha.webp": photo.convert("RGBA"), "big.jpg": photo}.items():
        picture.save(tmp_path / name)
        status, out, err = run("classify", name, "--model", weights, "--steps", "2")
        assert status == 0, err
        assert name in out
        assert "%" in out


def test_the_bundled_weights_know_real_images(run):
    model = load("r2.cifar10")
    pixels, labels, classes = load_slice("cifar10", "test")
    assert model.metadata["preprocessing"]["classes"] == list(classes)
    recorded = {row["steps"]: row["error"] for result in model.metadata["results"] for row in result["rows"]}
    for row in classification_results(model, torch.tensor(pixels), torch.tensor(labels).long(), model.steps):
        assert row["error"] == pytest.approx(recorded[row["steps"]], abs=8)  # 100 images stand for 10,000
    rows = json.loads(run("classify", IMAGES / "cat.png", "--json")[1])
    assert rows[0]["classes"][0]["class"] == "cat"


def test_classify_reads_photographs_upright(run, weights, tmp_path):
    photo = Image.open(IMAGES / "cat.png").convert("RGB")
    photo.save(tmp_path / "upright.png")
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    rows = json.loads(run("classify", "upright.png", "turned.png", "--model", weights, "--top", "10", "--json")[1])
    assert rows[0]["classes"] == rows[1]["classes"]


def test_classify_takes_uint8_and_float(weights, cifar_folder):
    model = load(weights)
    images = read_labelled(cifar_folder, "test").images[:4]
    probabilities = classify(model, images, 3)
    torch.testing.assert_close(probabilities, classify(model, to_float(images), 3))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    with pytest.raises(InputError, match=r"\[B, 3, H, W\]"):
        classify(model, images[:, :1])


def test_a_folder_without_test_images_is_measured_with_a_warning(run, weights, tmp_path):
    for name in load(weights).about.classes:
        (tmp_path / "pets" / name).mkdir(parents=True)
        shutil.copy(IMAGES / "cat.png", tmp_path / "pets" / name)
    status, out, err = run("eval", weights, "--data", "pets", "--steps", "2")
    assert status == 0, err
    assert "on 10 images of pets" in out
    assert "pets has no folder named test" in err


def test_bad_requests_are_one_line(refused, run, cifar_folder, weights, tmp_path):
    cat = IMAGES / "cat.png"
    assert "no image given" in refused("classify")
    assert "whole number from 1" in refused("classify", cat, "--top", "0", "--model", weights)
    assert "valid: 2, 3, 4" in refused("classify", cat, "--steps", "7", "--model", weights)
    assert "does not classify" in refused("classify", cat, "--model", "r3.bsd-gray-25")
    assert "nowhere.png does not exist" in refused("classify", "nowhere.png", "--model", weights)
    assert "precision" in refused("classify", cat, "--precision", "int3", "--model", weights)
    for options in (("--sigma", "25"), ("--harm",)):
        assert f"made to classify: {options[0]} does not apply" in refused("eval", weights, "--data", cifar_folder, *options)
    assert "--noisy does not apply" in refused("eval", weights, "--noisy", cifar_folder, "--clean", cifar_folder)
    assert "no folder of labelled images" in refused("eval", weights, "--data", "nowhere")
    assert "no folder of labelled images" in refused("train", "cifar_fast", "--data", "nowhere")
    assert "cifar10, cifar100, folder" in refused("train", "cifar_fast", "--data", cifar_folder, "classification.dataset=mnist")
    assert "a number above 0" in refused("train", "cifar_fast", "--data", cifar_folder, "--max-minutes", "0")
    assert "from 0 to 1" in refused("train", "cifar_fast", "--data", cifar_folder, "classification.label_smoothing=2")
    (tmp_path / "two" / "cat").mkdir(parents=True)
    (tmp_path / "two" / "dog").mkdir()
    shutil.copy(cat, tmp_path / "two" / "cat")
    shutil.copy(cat, tmp_path / "two" / "dog")
    assert "than these weights know: airplane" in refused("eval", weights, "--data", "two")
    (tmp_path / "two" / "cat" / "broken.png").write_bytes(cat.read_bytes()[:500])
    status, out, err = run("classify", "two", "--model", weights)
    assert status == 2
    assert out.count("cat.png") == 2
    assert "1 of 3 images could not be read" in err


# Cost by the image


@pytest.fixture(scope="session")
def given(cifar_folder):
    """What the bundled classifier answers to images that it was not trained on."""
    model = load("r2.cifar10")
    test = read_matching(cifar_folder, "test", model)
    return adaptive.answers(model, test.images), test.labels.numpy()


def test_a_cascade_stops_where_it_is_sure(given):
    answers, _ = given
    two, three, four = answers.steps
    assert (two, three, four) == ((2, 2), (3, 3), (4, 4))
    answer, ran = adaptive.choose(answers, Cascade((two, four), 0.6))
    sure = answers.sure[0] >= 0.6
    assert 0 < sure.sum() < len(sure)
    assert np.array_equal(ran, np.where(sure, 1, 2))
    assert np.array_equal(answer, np.where(sure, answers.best[0], answers.best[2]))
    cost = {two: 10, three: 20, four: 40}
    assert adaptive.mean_macs(ran, Cascade((two, four), 0.6), cost) == pytest.approx(10 + 40 * (~sure).mean())
    assert np.array_equal(adaptive.choose(answers, Cascade((two, four), 1.1))[0], answers.best[2])


def test_the_test_is_that_of_clopper_and_pearson():
    """Their upper limits at 5 %: 2.951 % for 0 of 100, 7.571 % for 3 of 100."""
    for bad, limit in ((0, 0.02951), (3, 0.07571)):
        assert adaptive.chance_of(bad, 100, limit) == pytest.approx(0.05, abs=2e-4)
    assert adaptive.chance_of(5, 5, 0.1) == pytest.approx(1)


def test_the_stated_risk_holds_with_its_chance():
    """A hundred calibrations on answers whose true risk is known: at most one in ten is worse than stated."""
    rng = np.random.default_rng(0)
    cost, risk, count, worse, cheaper = {1: 1, 2: 4}, 0.05, 500, 0, 0
    for _ in range(100):

        def draw(count):
            sure = rng.uniform(0.2, 1, count)
            right = np.array([rng.random(count) < sure, rng.random(count) < 0.97])
            return Answers((1, 2), np.where(right, 0, 1), np.stack([sure, np.ones(count)]))

        cascade = adaptive.calibrate(draw(count), np.zeros(count, int), cost, risk)
        large = draw(10_000)
        answer, ran = adaptive.choose(large, cascade)
        cheaper += adaptive.mean_macs(ran, cascade, cost) < 4
        worse += (answer != 0).mean() - (large.best[1] != 0).mean() > risk
    assert worse <= 10
    assert cheaper > 50


def test_calibration_takes_the_cheapest_that_is_safe(given):
    answers, labels = given
    cost = dict(zip(answers.steps, (10, 20, 40), strict=True))
    safe, bold = (adaptive.calibrate(answers, labels, cost, risk) for risk in (1e-6, 0.9))
    assert safe == Cascade(answers.steps[-1:], 1.0)
    assert bold.steps[0] == answers.steps[0]
    assert bold.confidence < 0.5
    for risk in (0, 1):
        with pytest.raises(InputError, match="a fraction between 0 and 1"):
            adaptive.calibrate(answers, labels, cost, risk)


def test_cascades_share_the_chance():
    """That none of 60 images is wrong has a chance of 0.046 at a rate of 5 %: enough for one cascade, not for each of six."""
    count, cost = 60, {1: 1, 2: 2, 3: 3, 4: 4}
    right = Answers((1, 4), np.zeros((2, count), int), np.ones((2, count)))
    labels = np.zeros(count, int)
    assert adaptive.calibrate(right, labels, cost, 0.05).steps == (1, 4)
    more = Answers((1, 2, 3, 4), np.zeros((4, count), int), np.ones((4, count)))
    assert adaptive.calibrate(more, labels, cost, 0.05) == Cascade((4,), 1.0)
    assert adaptive.calibrate(more, labels, cost, 0.08).steps == (1, 4)


def test_what_a_cascade_gains_is_measured_on_the_images_that_it_was_not_calibrated_on(given, cifar_folder):
    answers, labels = given
    model = load("r2.cifar10")
    images = read_matching(cifar_folder, "test", model).images
    seen = []
    found = adaptive.adaptive_results(model, images, torch.from_numpy(labels), 0.5, each=seen.append)
    assert sum(seen) == 3 * len(images) == 300
    assert (found["calibrated_on"], found["images"], found["risk"], found["chance"]) == (50, 50, 0.5, 0.1)
    cost = {n: macs(model, n, (32, 32)) for n in answers.steps}
    first, rest = (adaptive.Answers(answers.steps, answers.best[:, k::2], answers.sure[:, k::2]) for k in (0, 1))
    cascade = adaptive.calibrate(first, labels[0::2], cost, 0.5)
    assert found["steps"] == tuple(n.to_json() for n in cascade.steps)
    assert found["confidence"] == cascade.confidence
    *fixed, own = found["rows"]
    wrong = [100 * float((best != labels[1::2]).mean()) for best in rest.best]
    assert [row["steps"] for row in fixed] == [2, 3, 4]
    assert [row["macs"] for row in fixed] == list(cost.values())
    assert [row["error"] for row in fixed] == pytest.approx(wrong)
    answer, ran = adaptive.choose(rest, cascade)
    assert own["macs"] == round(adaptive.mean_macs(ran, cascade, cost))
    assert own["error"] == pytest.approx(100 * float((answer != labels[1::2]).mean()), abs=1e-3)
    assert own["ends"] == [pytest.approx(float((ran == k + 1).mean()), abs=1e-4) for k in range(len(cascade.steps))]
    assert len(found["curve"]) == len(adaptive.DOUBTS)
    assert [row["confidence"] for row in found["curve"]] == pytest.approx([1 - doubt for doubt in adaptive.DOUBTS])
    assert found["fixed"] == pytest.approx(np.interp(own["macs"], list(cost.values()), wrong), abs=1e-3)
    assert found["pays"] is (own["error"] < found["fixed"])
    with pytest.raises(InputError, match="one setting"):
        adaptive.adaptive_results(create_model("r2", steps=2), images, torch.from_numpy(labels), 0.5)


def test_cascades_have_three_settings_where_there_are_few():
    """Of four settings the first is sure of a half, the second of nine tenths of the rest, and the last of all: all three pay."""
    rng, count = np.random.default_rng(0), 2000
    sure = np.zeros((4, count))
    sure[0, rng.random(count) < 0.5] = 1
    sure[1:3] = np.maximum(sure[0], rng.random(count) < 0.9)
    sure[3] = 1
    right = Answers((1, 2, 3, 4), np.where(sure == 1, 0, 1), sure)
    cost = {1: 1, 2: 2, 3: 3, 4: 100}
    assert adaptive.calibrate(right, np.zeros(count, int), cost, 0.01).steps == (1, 2, 4)
    assert adaptive.mean_macs(np.array([1, 2, 3]), Cascade((1, 2, 4), 0.5), cost) == pytest.approx((1 + 3 + 103) / 3)
    more = Answers((1, 2, 3, 4, 5, 6), right.best[[0, 1, 1, 1, 2, 3]], sure[[0, 1, 1, 1, 2, 3]])
    many = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 100}
    assert len(adaptive.calibrate(more, np.zeros(count, int), many, 0.01).steps) == 2
    with pytest.raises(InputError, match="no images"):
        adaptive.calibrate(right, np.zeros(0, int), cost, 0.01)
    with pytest.raises(InputError, match="chance=1 "):
        adaptive.calibrate(right, np.zeros(count, int), cost, 0.01, chance=1)


def test_adaptive_classification_is_the_cascade(weights, cifar_folder):
    model, images = load(weights), read_labelled(cifar_folder, "test").images
    probabilities, steps = classify_adaptively(model, images, 0.6, (2, 4))
    two, four = map(model.per_cell, (2, 4))
    answer, ran = adaptive.choose(adaptive.answers(model, images), Cascade((two, four), 0.6))
    assert [two if n == 1 else four for n in ran] == [model.per_cell(n) for n in steps]
    assert np.array_equal(probabilities.argmax(1).numpy(), answer)
    for n in (two, four):
        here = [k for k, taken in enumerate(steps) if taken == n]
        torch.testing.assert_close(probabilities[here], classify(model, images[here], n), atol=1e-5, rtol=0)
    cost = {n: macs(model, n, (32, 32)) for n in model.settings}
    expected = adaptive.mean_macs(ran, Cascade((two, four), 0.6), cost)
    assert adaptive_macs(TorchSession(model), (two, four), steps, (32, 32)) == pytest.approx(expected)
    with pytest.raises(InputError, match="confidence=2 is not valid"):
        classify_adaptively(model, images, 2)


def test_eval_calibrates_and_classify_uses_it(run, refused, weights, cifar_folder, tmp_path):
    file = shutil.copy(weights, tmp_path / "w.safetensors")
    picture = next((cifar_folder / "test").rglob("*.png"))
    assert "these weights hold no calibration" in refused("classify", picture, "--model", file, "--confidence", "calibrated")
    status, out, err = run("eval", file, "--data", cifar_folder, "--risk", "60", "--record")
    assert status == 0, err
    assert "on 50 images of photos, calibrated on 50 others" in out
    assert re.search(r"adaptive cost (pays|does not pay) off", out)
    found = load(file).metadata["adaptive"]
    assert found["steps"][-1] == 4
    assert load(file).metadata["results"] == load(weights).metadata["results"]
    status, out, err = run("classify", cifar_folder / "test", "--model", file, "--confidence", "calibrated", "--json")
    assert status == 0, err
    taken = {row["steps"] for row in json.loads(out)}
    assert taken <= set(found["steps"])
    assert re.search(r"MACs per image; .* at the largest setting", err)
    status, out, err = run("classify", picture, "--model", file, "--confidence", "0.9")
    assert out.splitlines()[0].split() == ["file", "class", "probability", "steps"]
    assert "--confidence sure is not valid" in refused("classify", picture, "--model", file, "--confidence", "sure")
    assert "give one of" in refused("classify", picture, "--model", file, "--confidence", "0.5", "--steps", "2")
    assert "does not classify" in refused("eval", "r3_fast.gray", "--data", IMAGES / "bsd", "--risk", "1")
    assert "--risk needs --data" in refused("eval", file, "--data", cifar_folder, "--risk", "1", "--steps", "2")
    assert "--risk 150 is not valid: give percentage points" in refused("eval", file, "--data", cifar_folder, "--risk", "150")


def test_weights_go_on_with_the_classes_of_other_images(weights, cifar_folder, tmp_path):
    few = tmp_path / "three"
    for part in ("train", "test"):
        for folder in sorted((cifar_folder / part).iterdir())[:3]:
            shutil.copytree(folder, few / part / folder.name)
    recipe = read_recipe("finetune", [f"init={weights}", "iterations=2", "epochs=0", "batch=10", "precision=fp32"])
    train(recipe, few, tmp_path / "run", progress=False)
    model = load(tmp_path / "run" / "weights.safetensors")
    assert model(torch.rand(1, 3, 32, 32)).shape[1] == len(model.about.classes) == 3
    fixed = read_recipe("finetune", [f"init={weights}", "model.num_classes=12", "iterations=2", "epochs=0", "batch=10"])
    with pytest.raises(InputError, match="the network has 12 outputs and three 3 classes"):
        train(fixed, few, tmp_path / "other", progress=False)


def test_whitening_needs_a_stem(weights, cifar_folder, tmp_path):
    recipe = small("model={name='tests.test_classify:headless'}", "classification.whitening=true")
    with pytest.raises(InputError, match=r"classification\.whitening=false"):
        train(recipe, cifar_folder, tmp_path / "run", progress=False)


def headless(steps=(1, 2), num_classes=10):
    """A classifier whose first convolution has another name."""
    from rcnet import About, RecurrentCell, RecurrentNet
    from rcnet.models.layers import ConvBody

    cell = RecurrentCell(ConvBody(8), lambda: [nn.BatchNorm2d(8)], steps)
    parts = {"first": nn.Conv2d(3, 8, 3), "cell": cell, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    net = RecurrentNet(**parts, head=nn.Linear(8, num_classes))
    net.about = About("classify")
    return net


def test_weights_go_on_at_their_size_and_with_their_order_of_classes(cifar_folder, tmp_path):
    names = sorted(folder.name for folder in (cifar_folder / "train").iterdir())
    model = create_model("r2", width=0.125)
    model.about = model.about.completed({"size": [16, 16], "classes": names[::-1]})
    save(model, tmp_path / "init.safetensors")
    recipe = read_recipe("finetune", [f"init={tmp_path / 'init.safetensors'}", "iterations=2", "epochs=0", "batch=10"])
    trainer = Trainer(recipe, cifar_folder, tmp_path / "run", False)
    assert trainer.model.about.size == (16, 16)
    assert trainer.recipe.classification.size == 16  # which a resumed run compares
    assert Trainer(small(), cifar_folder, tmp_path / "usual", False).recipe.classification.size == 32
    assert trainer.model.about.classes == tuple(names[::-1])
    everything = read_labelled(cifar_folder, "train")
    counts = torch.bincount(torch.cat([trainer.task.batch(np.random.default_rng(0), i).target for i in range(10)]), minlength=10)
    assert counts.tolist() == torch.bincount(everything.labels, minlength=10).flip(0).tolist()
    trainer = Trainer(
        dataclasses.replace(recipe, teacher=str(tmp_path / "init.safetensors")), cifar_folder, tmp_path / "run", False
    )
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(trainer.teacher(x), model.eval()(x))
    teach, _ = make_teacher(str(tmp_path / "init.safetensors"), x, torch.Size((2, 10)), tuple(names))
    torch.testing.assert_close(teach(x), model(x).flip(1))
    with pytest.raises(InputError, match=r"classification\.size = 4 is not valid: at least 8"):
        train(small("classification.size=4"), cifar_folder, tmp_path / "four", progress=False)


@torch.no_grad()
def test_recalibrate_takes_the_mean_of_all_uses_of_a_norm():
    model = create_model("r2", steps=3, width=0.125, norm_mode="shared")
    norm, seen = batch_norms(model.recurrent_cells()[0])[0], []
    tracked = norm.num_batches_tracked.clone()
    handle = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean((0, 2, 3))))
    recalibrate(model, [torch.rand(8, 3, 32, 32)])
    handle.remove()
    assert len(seen) > 1
    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0))
    assert norm.num_batches_tracked == tracked

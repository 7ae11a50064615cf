"""Fast sessions and exported files answer as the network does."""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import paper  # noqa: F401 (registers the networks with exits)
import rcnet
from rcnet.cell import batch_norms
from rcnet.data.images import read_folder
from rcnet.deploy.export import FORMATS, export, load_exported, load_judge, read_exported
from rcnet.deploy.graphs import cut
from rcnet.deploy.int8 import Convolution, calibration_images, windows_read
from rcnet.deploy.optimize import optimize
from rcnet.deploy.running import openvino_compiled
from rcnet.errors import InputError
from rcnet.evaluation import denoising_results, denoising_scores
from rcnet.models import judge as of_torch
from rcnet.models.judge import KNOTS, attach_judge
from rcnet.runtime.levels import level_map, sigma_input
from rcnet.tasks.classify import read_matching

from .conftest import IMAGES, random_model, two_levels

CLASSIFIERS = [("r2", (2, 3)), ("r4", (1, 2)), ("s2", 2), ("s4_exits", (1, 3))]
SIZES = {name: {"width": 0.125} for name, _ in CLASSIFIERS}


def trained(name, **config):
    """A network whose batch norms have something to say, and a denoiser's last convolution, too."""
    model = random_model(name, **config)
    if "head" in dict(model.named_children()):
        nn.init.normal_(model.head.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def denoiser():
    return rcnet.load("r3_fast.bsd-gray-25")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["r3.bsd-gray-25", "r3_fast.bsd-gray-25"])
def test_sessions_of_denoisers_answer_as_the_network(name):
    model, x = rcnet.load(name), torch.rand(2, 1, 33, 46)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact, fast = optimize(model, precision="fp32"), optimize(model, precision="bf16")
    for n in model.steps:
        torch.testing.assert_close(exact(x, n), model(x, n), atol=1e-4, rtol=0)
        assert fast(x, n).dtype == torch.float32
        assert (fast(x, n) - model(x, n)).abs().max() < 0.03
    torch.testing.assert_close(exact(x), model(x), atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.offer(model.possible_settings())
    mixed = optimize(model, [(3, 2, 2)], precision="fp32")
    torch.testing.assert_close(mixed(x, (3, 2, 2)), model(x, (3, 2, 2)), atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "steps"), CLASSIFIERS)
def test_sessions_of_classifiers_answer_as_the_network(name, steps):
    model, x = trained(name, steps=steps, **SIZES.get(name, {})), torch.rand(2, 3, 32, 32)
    exact, fast = optimize(model, precision="fp32"), optimize(model, precision="bf16")
    for n in model.steps:
        expected = model(x, n)
        torch.testing.assert_close(exact(x, n), expected, atol=1e-4, rtol=1e-4)
        assert (fast(x, n) - expected).abs().max() < 0.1 * expected.abs().max()


def test_batch_norms_behind_convolutions_are_folded(denoiser):
    for n in denoiser.steps:
        assert not any(
            isinstance(module, nn.BatchNorm2d) for module in optimize(denoiser, n).sessions[denoiser.per_cell(n)].modules()
        )


def test_sessions_refuse_what_they_do_not_hold(denoiser):
    session = optimize(denoiser, [1, 3])
    with pytest.raises(InputError, match="steps=2 is not optimized: valid: 1, 3"):
        session(torch.rand(1, 1, 16, 16), 2)
    with pytest.raises(InputError, match=r"valid: 1,0,0; 1,1,0; 1; "):
        optimize(denoiser, 7)
    with pytest.raises(InputError, match="precision"):
        optimize(denoiser, precision="int3")


@pytest.fixture(scope="module")
def exported(denoiser, tmp_path_factory):
    """The denoiser with two step counts in every format."""
    folder = tmp_path_factory.mktemp("exported")
    return {to: export(denoiser, folder / f"x{suffix}", steps=[1, 2]) for to, suffix in (("onnx", ".onnx"), ("openvino", ".xml"))}


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_session_answers_each_thread_with_its_own_image(exported, to):
    session = load_exported(exported[to], 1, threads=1)
    images = [torch.rand(1, 1, 32, 32 + k).numpy() for k in range(4)]
    alone = [session(x) for x in images]

    def ask(k):
        return all(np.array_equal(session(images[k]), alone[k]) for _ in range(40))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))


@torch.inference_mode()
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_exported_files_answer_as_the_network_at_any_size_and_batch(exported, denoiser, to):
    for steps in (1, 2):
        session = load_exported(exported[to], steps, threads=1)
        for shape in ((1, 1, 33, 47), (3, 1, 64, 48), (1, 1, 16, 129), (1, 1, 1, 1), (2, 1, 1, 5), (1, 1, 3, 1)):
            x = torch.rand(*shape)
            np.testing.assert_allclose(session(x.numpy()), denoiser(x, steps).numpy(), atol=1e-5)
    assert read_exported(exported[to])["results"] == denoiser.metadata["results"]
    with pytest.raises(InputError, match=r"steps=3 is not in .*: valid: 1, 2"):
        load_exported(exported[to], 3)
    assert read_exported(exported[to])["inputs"] == ["image"]
    with pytest.raises(InputError, match="takes no noise level"):
        load_exported(exported[to], 1)(x.numpy(), 25)


@torch.inference_mode()
def test_openvino_also_runs_in_bf16(exported, denoiser):
    x = torch.rand(1, 1, 33, 47)
    answer = load_exported(exported["openvino"], 1, threads=1, precision="bf16")(x.numpy())
    np.testing.assert_allclose(answer, denoiser(x, 1).numpy(), atol=0.03)
    with pytest.raises(InputError, match="valid: fp32"):
        load_exported(exported["onnx"], 1, precision="bf16")


def test_each_kernel_is_stored_once(exported, denoiser):
    weights = 4 * sum(p.numel() for p in denoiser.parameters())
    assert exported["openvino"].with_suffix(".bin").stat().st_size < 1.1 * weights
    stored = sum(onnx.numpy_helper.to_array(t).nbytes for t in onnx.load(exported["onnx"]).graph.initializer)
    assert stored < 1.1 * weights
    part = onnx.load_from_string(cut(exported["onnx"], "steps1"))
    assert [output.name for output in part.graph.output] == ["steps1"]
    assert sum(node.op_type == "Conv" for node in part.graph.node) == 8  # the stem, two in each of three cells, once, the head


@torch.inference_mode()
def test_pt2(denoiser, tmp_path):
    path = export(denoiser, tmp_path / "x.pt2", steps=[1])
    for shape in ((3, 1, 32, 50), (1, 1, 3, 7)):
        x = torch.rand(shape)
        (answer,) = torch.export.load(path).module()(x)
        torch.testing.assert_close(answer, denoiser(x, 1), atol=1e-5, rtol=0)
    assert read_exported(path)["outputs"] == {"steps1": 1}


@torch.inference_mode()
def test_a_pt2_file_of_a_plain_denoiser_takes_one_pixel(tmp_path):
    model, x = trained("r3", steps=2), torch.rand(1, 1, 1, 1)
    (answer,) = torch.export.load(export(model, tmp_path / "x.pt2")).module()(x)
    torch.testing.assert_close(answer, model(x), atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "steps", "multiple"), [("r2", (2, 3), 4), ("r4", 1, 1)])
def test_files_of_classifiers_say_of_what_sides_have_to_be_multiples(tmp_path, name, steps, multiple):
    model, x = trained(name, steps=steps, width=0.125), torch.rand(3, 3, 5 * multiple, 7 * multiple)
    path = export(model, tmp_path / "x.onnx")
    assert (read_exported(path)["multiple"], read_exported(path)["task"]) == (multiple, "classify")
    first = model.choices[0]
    np.testing.assert_allclose(load_exported(path, first)(x.numpy()), model(x, first).numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def told():
    """A small network that takes the noise level."""
    torch.manual_seed(0)
    model = trained("r3_fast", steps=(1, 2), in_chans=3, width=16, noise_level=True)
    model.about = model.about.completed({"noise": {"sigma": [0.0, 50.0], "as_8bit": True, "camera": 0.5}})
    return model


@pytest.fixture(scope="module")
def told_files(told, tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    return {suffix: export(told, folder / f"x{suffix}") for suffix in (".onnx", ".xml", ".pt2")}


def runner(path, steps):
    """As `load_exported`, of .pt2 files too."""
    if path.suffix != ".pt2":
        return load_exported(path, steps, threads=1)
    module, place = torch.export.load(path).module(), list(read_exported(path)["outputs"].values()).index(steps)
    return lambda x, sigma=None: module(torch.from_numpy(x), torch.from_numpy(sigma_input(x.shape, sigma)))[place].numpy()


def levels(shape):
    """Every way to tell the noise level of such images."""
    batch, _, height, width = shape
    maps = torch.rand(batch, 1, height, width) * 80 - 20  # here and there unknown
    return [None, -1, 25, torch.linspace(5, 60, batch), maps, maps[:1], maps[0, 0]]


@torch.inference_mode()
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_exported_networks_take_the_noise_level(told, told_files, suffix):
    sizes = [(1, 3, 33, 46), (2, 3, 16, 21), (2, 3, 3, 4)]
    smallest = [(1, 3, 1, 1), (2, 3, 1, 5), (1, 3, 2, 1)] if suffix != ".pt2" else []
    assert read_exported(told_files[suffix])["inputs"] == ["image", "sigma"]
    for n in told.steps:
        run = runner(told_files[suffix], n)
        for shape in sizes + smallest:
            x = torch.rand(shape)
            for sigma in levels(shape):
                answer = run(x.numpy(), sigma if sigma is None else np.asarray(sigma))
                np.testing.assert_allclose(answer, told(x, n, sigma=sigma).numpy(), atol=1e-5)
    assert np.abs(run(x.numpy(), 25) - run(x.numpy())).max() > 1e-3
    assert np.array_equal(run(x.numpy(), -1), run(x.numpy()))


def test_a_noise_level_of_another_shape_is_refused(told_files):
    run, x = load_exported(told_files[".onnx"]), np.zeros((2, 3, 8, 9), np.float32)
    for sigma in (np.ones(3), np.ones((8, 8)), np.ones((3, 1, 8, 9)), np.ones((2, 3, 8, 9)), np.ones((1, 2, 1, 8, 9))):
        with pytest.raises(InputError, match=r"sigma of shape .* does not fit images \[2, 3, 8, 9\]"):
            run(x, sigma)


def test_files_say_nothing_of_the_machine_that_wrote_them(told_files):
    onnx_file, archive = told_files[".onnx"], zipfile.ZipFile(told_files[".pt2"])
    for content in (onnx_file.read_bytes(), told_files[".xml"].read_bytes(), *map(archive.read, archive.namelist())):
        assert b".py" not in content
        assert str(Path(rcnet.__file__).parent).encode() not in content
    free = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(onnx_file).graph.input]
    assert free == [["batch", 3, "height", "width"], ["batch", 1, "sigma_height", "sigma_width"]]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_int8_networks_take_the_noise_level(told, tmp_path, name):
    seen = list(calibration_images(told, IMAGES / "bsd"))
    for image, sigma in seen:
        half = image.shape[-1] // 2
        assert 0 <= sigma[..., :half].min() == sigma[..., :half].max() < 80
        assert (sigma[..., half:] == -1).all()
        assert np.array_equal(image, (image * 255).round() / 255)
    run = load_exported(export(told, tmp_path / name, calibration=seen), 2)
    x = torch.from_numpy(np.concatenate([image for image, _ in seen[:2]])[..., :65, :64])
    for sigma in (None, 30, torch.tensor([5.0, 45.0])):
        expected = told(x, 2, sigma=sigma)
        answer = torch.from_numpy(run(x.numpy(), sigma if sigma is None else np.asarray(sigma)))
        error, change = (answer - expected).square().mean().sqrt(), (expected - x).square().mean().sqrt()
        assert error < 0.1 * change
    unknown, known = told(x, 2), told(x, 2, sigma=30)
    assert (unknown - known).square().mean().sqrt() > 0.1 * change


@pytest.fixture(scope="module")
def judged():
    """A small network that takes both noise levels, and its judge."""
    torch.manual_seed(0)
    model = trained("r3_fast", steps=(1, 2), in_chans=3, width=16, noise_level=True, coarse_level=True)
    attach_judge(model, two_levels().judge)
    model.about = model.about.completed({"noise": {"sigma": [0.0, 50.0], "as_8bit": True, "camera": 0.5}})
    return model


@pytest.fixture(scope="module")
def judged_files(judged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    return {suffix: export(judged, folder / f"x{suffix}") for suffix in (".onnx", ".xml", ".pt2")}


SHAPES = [(1, 3, 33, 46), (2, 3, 16, 21), (2, 3, 3, 4), (1, 3, 1, 1), (2, 3, 1, 5), (1, 3, 8, 7)]


@torch.inference_mode()
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_exported_networks_take_two_levels_and_ask_their_judge(judged, judged_files, suffix):
    path = judged_files[suffix]
    about, say = read_exported(path), load_judge(path, threads=1)
    assert (about["inputs"], about["levels"], list(about["outputs"])) == (["image", "sigma"], 2, ["steps1", "steps2"])
    assert about["level_map"] == {"output": "levels", "knots": KNOTS, "smoothing": of_torch.SMOOTH}
    for n in judged.steps:
        run = load_exported(path, n, threads=1)
        for shape in SHAPES:
            x, batch = torch.rand(shape), shape[0]
            levels = judged.judge(x)
            assert levels.min() > 1
            np.testing.assert_allclose(say(x.numpy()), levels.numpy(), atol=1e-4, rtol=1e-4)
            white, both = 60 * torch.rand(batch, 1, *shape[2:]), 60 * torch.rand(batch, 2, *shape[2:])
            for sigma in (None, 25, -1, torch.linspace(5, 60, batch), white[0, 0], white, both, both[:1, :, :1, :1]):
                answer = run(x.numpy(), sigma if sigma is None else np.asarray(sigma))
                np.testing.assert_allclose(answer, judged(x, n, sigma=sigma).numpy(), atol=1e-4)
    assert np.abs(run(x.numpy(), 25) - run(x.numpy())).max() > 1e-3
    assert np.abs(run(x.numpy(), both.numpy()) - run(x.numpy(), both[:, :1].numpy())).max() > 1e-3


def test_levels_are_read_off_in_numpy_as_in_torch():
    for shape in SHAPES:
        levels, x = torch.rand(shape[0], 2, KNOTS) * 50, torch.rand(shape) * 1.4 - 0.2
        found = level_map(levels.numpy(), x.numpy(), of_torch.SMOOTH)
        np.testing.assert_allclose(found, of_torch.level_map(levels, x).numpy(), atol=1e-4, rtol=1e-5)


def test_a_judge_is_computed_without_the_network(judged, judged_files):
    part = onnx.load_from_string(cut(judged_files[".onnx"], "levels"))
    assert [value.name for value in (*part.graph.input, *part.graph.output)] == ["image", "levels"]
    assert sum(node.op_type == "Conv" for node in part.graph.node) == sum(
        isinstance(m, nn.Conv2d) for m in judged.judge.modules()
    )
    part = onnx.load_from_string(cut(judged_files[".onnx"], "steps1"))
    assert sum(node.op_type == "Conv" for node in part.graph.node) == 8


@torch.inference_mode()
def test_without_a_judge_in_the_file_a_level_is_asked_for(judged, judged_files, tmp_path, run):
    alone = rcnet.create_model("r3_fast", steps=(1, 2), in_chans=3, width=16, noise_level=True, coarse_level=True).eval()
    call, x = load_exported(export(alone, tmp_path / "x.onnx"), 1), torch.rand(1, 3, 8, 8)
    np.testing.assert_allclose(call(x.numpy(), 25), alone(x, 1, sigma=25).numpy(), atol=1e-5)
    with pytest.raises(InputError, match=r"has no judge of noise: say how much there is, sigma="):
        call(x.numpy())
    assert "level_map" not in read_exported(judged_files[".pt2"])
    for path in (tmp_path / "x.onnx", judged_files[".pt2"]):
        with pytest.raises(InputError, match="has no judge"):
            load_judge(path)
    answer = torch.export.load(judged_files[".pt2"]).module()(x, torch.full((1, 2, 1, 1), 9.0))
    torch.testing.assert_close(answer[1], judged(x, 2, sigma=torch.full((1, 2, 1, 1), 9.0)), atol=1e-5, rtol=0)
    rcnet.save(judged, tmp_path / "w.safetensors")
    for name, told in (("y.pt2", True), ("y.onnx", False)):
        status, _, err = run("export", "w.safetensors", "-o", name, "--steps", "1")
        assert status == 0, err
        assert ("leaves out the judge" in err) == told


@torch.inference_mode()
@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_int8_networks_take_two_levels(judged, tmp_path, name):
    seen = list(calibration_images(judged, IMAGES / "bsd"))
    kinds = {tuple(bool(sigma[0, kind].any()) for kind in (0, 1)) for _, sigma in seen}
    assert kinds == {(True, False), (False, True)}
    assert all(sigma.shape == (1, 2, *image.shape[-2:]) and sigma.min() >= 0 for image, sigma in seen)
    path = export(judged, tmp_path / name, calibration=seen)
    run = load_exported(path, 2)
    x = torch.from_numpy(np.concatenate([image for image, _ in seen[:2]])[..., :65, :64])
    np.testing.assert_allclose(load_judge(path)(x.numpy()), judged.judge(x).numpy(), atol=1e-4)
    for sigma in (None, 30, torch.tensor([[5.0, 0.0], [0.0, 20.0]])[:, :, None, None]):
        expected = judged(x, 2, sigma=sigma)
        answer = torch.from_numpy(run(x.numpy(), sigma if sigma is None else np.asarray(sigma)))
        error, change = (answer - expected).square().mean().sqrt(), (expected - x).square().mean().sqrt()
        assert error < 0.1 * change
    if path.suffix == ".onnx":
        assert int8_kernels(path) == deep_kernels(judged)


@pytest.fixture(scope="module")
def in_int8(denoiser, tmp_path_factory):
    """The denoiser with two step counts in int8, for ONNX Runtime and for OpenVINO."""
    folder = tmp_path_factory.mktemp("int8")
    paths = folder / "x.onnx", folder / "x.xml"
    return [export(denoiser, path, steps=[1, 3], calibration=calibration_images(denoiser, IMAGES / "bsd")) for path in paths]


def test_int8_loses_little(in_int8, denoiser):
    images = read_folder(IMAGES / "bsd" / "test", 1)
    exact = {row["steps"]: row["psnr"] for row in denoising_results(denoiser, images, 25, [1, 3])}
    for path, most in zip(in_int8, ({1: 0.3, 3: 0.6}, {1: 0.1, 3: 0.2}), strict=True):
        for n in (1, 3):
            session = load_exported(path, n, threads=1)
            psnr, _ = denoising_scores(lambda x, session=session: torch.from_numpy(session(x.numpy())), images, 25)
            assert exact[n] - most[n] < psnr < exact[n]
        assert read_exported(path)["precision"] == "int8"


def test_int8_kernels_run_and_are_stored_once(in_int8, denoiser, tmp_path):
    to_onnx, to_openvino = in_int8
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(cut(to_onnx, "steps3"), options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node if "Conv" in node.op_type]
    assert run == ["Conv"] + ["QLinearConv"] * 19  # the stem in fp32; two in each of three cells, three times, and the head
    compiled = openvino_compiled(to_openvino, "steps3", 1, FORMATS["openvino"].precisions["fp32"])
    told = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    run = [about for about in told if "layerType" in about and about["layerType"].astype(str) == "Convolution"]
    convolutions = [str(about["primitiveType"].astype(str)) for about in run]
    assert sorted(kind[-2:] for kind in convolutions) == ["32"] + ["I8"] * 19
    assert int8_kernels(to_onnx) == deep_kernels(denoiser)
    assert to_openvino.with_suffix(".bin").stat().st_size < 2 * int8_kernels(to_onnx)


def deep_kernels(model):
    """How many numbers the kernels hold that are not the stem's."""
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim == 4 and not name.startswith("stem"))


def int8_kernels(path):
    """How many numbers the int8 kernels of a file hold."""
    tensors = onnx.load(path).graph.initializer
    return sum(np.prod(t.dims) for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_norms_that_turn_the_sign_of_a_channel_share_their_int8_kernel(tmp_path, name):
    model, x = trained("r3_fast", steps=(1, 2), width=16), torch.rand(1, 1, 32, 32)
    for norm in batch_norms(model):
        norm.weight *= torch.where(torch.rand(16) < 0.3, -1, 1)
    seen = list(calibration_images(model, IMAGES / "bsd"))
    path = export(model, tmp_path / name, calibration=seen)
    expected, answer = model(x, 2), torch.from_numpy(load_exported(path, 2)(x.numpy()))
    torch.testing.assert_close(answer, expected, rtol=0, atol=0.1 * float((expected - x).abs().max()))
    if path.suffix == ".onnx":
        assert int8_kernels(path) == deep_kernels(model)


@torch.inference_mode()
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_dead_channel_keeps_its_bias_in_int8(tmp_path):
    model, x = trained("r3_fast", steps=1, width=16), torch.rand(1, 1, 32, 32)
    for norm in batch_norms(model):
        norm.weight[:4], norm.bias[:4] = 1e-14, 0.5  # what such a channel reads is nothing, and what it gives is all bias
    path = export(model, tmp_path / "x.onnx", calibration=list(calibration_images(model, IMAGES / "bsd")))
    expected, answer = model(x), torch.from_numpy(load_exported(path)(x.numpy()))
    torch.testing.assert_close(answer, expected, rtol=0, atol=0.1 * float((expected - x).abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize(("bias", "mean"), [(-1, 0), (-1, 1), (1000, 1)])
@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_what_reads_nothing_but_a_constant_keeps_its_bias_in_int8(tmp_path, name, bias, mean):
    model, x = trained("r3_fast", steps=1, width=16), torch.rand(1, 1, 32, 32)
    first, second = batch_norms(model)[:2]
    first.weight *= 0
    first.bias.fill_(bias)  # the ReLU behind it gives zeros or this, whatever the image
    second.running_mean *= mean  # where it is not 0, what the third reads is far from 0
    second.running_var.fill_(1e-8)  # as training leaves it then: folded, its kernel is a thousand times as large
    second.weight *= 30
    second.bias.fill_(2)
    path = export(model, tmp_path / name, calibration=list(calibration_images(model, IMAGES / "bsd")))
    expected, answer = model(x), torch.from_numpy(load_exported(path)(x.numpy()))
    torch.testing.assert_close(answer, expected, rtol=0, atol=0.1 * float((expected - x).abs().max()))


def test_what_convolutions_read_is_sampled_as_they_read_it():
    x, rng = torch.rand(2, 6, 9, 11), np.random.default_rng(0)
    node = {"groups": 2, "pads": (1, 2, 0, 2), "strides": (2, 1), "dilations": (1, 2)}
    one = Convolution("conv", "x", kernel=np.zeros((4, 3, 3, 2)), bias=None, **node)
    padded = nn.functional.pad(x, (2, 2, 1, 0))
    windows = nn.functional.unfold(padded, (3, 2), dilation=(1, 2), stride=(2, 1))  # [2, in x kh x kw, places]
    every = {tuple(window.tolist()) for window in windows.transpose(1, 2).flatten(0, 1)}
    drawn = windows_read(x.numpy(), one, 4000, rng)
    assert drawn.shape == (2, 18, 4000)
    assert {tuple(window) for window in drawn.reshape(36, 4000).T.tolist()} == every


def test_kernels_of_half_the_precision_are_stored_once(tmp_path):
    model = trained("r3_fast", steps=(1, 2, 3), width=32)
    for p in model.parameters():
        p.data = p.data.bfloat16().float() if p.ndim == 4 else p.data  # many then lie halfway between two numbers of int8
    seen = list(calibration_images(model, IMAGES / "bsd"))
    path = export(model, tmp_path / "x.onnx", calibration=seen, kernel_bits=7)
    assert int8_kernels(path) == deep_kernels(model)


@torch.inference_mode()
def test_kernels_have_7_bits_where_8_would_saturate(tmp_path, monkeypatch):
    model, kernels = trained("r3_fast", steps=1, width=16), {}
    seen = list(calibration_images(model, IMAGES / "bsd"))
    for exact in (True, False):
        monkeypatch.setattr("rcnet.deploy.export.sums_8_bits", lambda exact=exact: exact)
        tensors = onnx.load(export(model, tmp_path / f"{exact}.onnx", calibration=seen)).graph.initializer
        arrays = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
        kernels[exact] = max(np.abs(array.astype(int)).max() for array in arrays)
    assert kernels == {True: 127, False: 64}
    load_exported(tmp_path / "False.onnx")
    with pytest.warns(UserWarning, match="kernel_bits=7"):
        load_exported(tmp_path / "True.onnx")


@torch.inference_mode()
def test_a_classifier_in_int8_answers_as_in_fp32(tmp_path, cifar_folder):
    model = rcnet.load("r2.cifar10")
    test = read_matching(cifar_folder, "test", model)
    x = test.images.float() / 255
    expected = model(x, 2).argmax(1).numpy()
    for name in ("x.onnx", "x.xml"):
        path = export(model, tmp_path / name, steps=[2], calibration=calibration_images(model, cifar_folder))
        assert (load_exported(path, 2)(x.numpy()).argmax(1) == expected).mean() > 0.97


def test_export_on_the_command_line(run, refused, tmp_path):
    status, out, err = run("export", "r3_fast.bsd-gray-25", "-o", "fast.onnx", "--steps", "1")
    assert status == 0, err
    assert out.startswith("fast.onnx (0.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.onnx"]
    assert "onnx, openvino, pt2" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.tflite")
    assert "int8" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.onnx", "--kernel-bits", "7")
    assert "does not end in .onnx" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.pt2", "--to", "onnx")
    assert "no folder of images" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.onnx", "--int8", "nowhere")
    assert "not for pt2" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.pt2", "--int8", IMAGES / "bsd")
    assert "there is no folder" in refused("export", "r3_fast.bsd-gray-25", "-o", "nowhere/x.onnx")
    assert "1,1,0; 1; 2,1,1" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.onnx", "--steps", "9")
    (tmp_path / "broken.onnx").write_bytes((tmp_path / "fast.onnx").read_bytes()[:1000])
    for path in (tmp_path / "broken.onnx", tmp_path / "nowhere.onnx", IMAGES / "cat.png"):
        with pytest.raises(InputError):
            load_exported(path)

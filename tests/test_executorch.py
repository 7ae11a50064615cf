"""Files for ExecuTorch answer as the network does."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from rcnet.deploy.export import export, load_exported, read_exported
from rcnet.deploy.writing import SIDE
from rcnet.errors import InputError

from .conftest import IMAGES
from .test_with_runtimes import trained

HERE = find_spec("executorch") is not None
needs = pytest.mark.skipif(not HERE, reason="executorch is not installed: pip install 'rcnet[executorch]'")


@needs
@torch.inference_mode()
def test_a_method_a_setting_for_images_of_any_size(tmp_path):
    model = trained("r3_fast", steps=(1, 2), in_chans=3, width=16, noise_level=True)
    path = export(model, tmp_path / "x.pte")
    assert read_exported(path)["outputs"] == {"steps1": 1, "steps2": 2}
    for n in model.steps:
        session = load_exported(path, n)
        for shape in ((1, 3, 33, 46), (1, 3, 1, 1), (1, 3, 8, 130)):
            x = torch.rand(shape)
            for sigma in (None, 25, 60 * torch.rand(shape[2:])):
                answer = session(x.numpy(), sigma if sigma is None else np.asarray(sigma))
                np.testing.assert_allclose(answer, model(x, n, sigma=sigma).numpy(), atol=1e-5)
    assert np.abs(answer - session(x.numpy())).max() > 1e-3
    with pytest.raises(InputError, match="one image a call, of sides up to"):
        session(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="one image a call, of sides up to"):
        session(np.zeros((1, 3, 8, SIDE + 2), np.float32))
    with pytest.raises(InputError, match="steps=3 is not in"):
        load_exported(path, 3)
    (tmp_path / "broken.pte").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a network that rcnet exported"):
        load_exported(tmp_path / "broken.pte")


@needs
@torch.inference_mode()
def test_a_classifier(tmp_path):
    model, x = trained("r2", steps=2, width=0.125), torch.rand(1, 3, 32, 32)
    session = load_exported(export(model, tmp_path / "x.pte"))
    np.testing.assert_allclose(session(x.numpy()), model(x).numpy(), rtol=1e-4, atol=1e-4)


def test_what_the_command_refuses(refused):
    assert "not for executorch" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.pte", "--int8", IMAGES / "bsd")
    if not HERE:
        assert "pip install 'rcnet[executorch]'" in refused("export", "r3_fast.bsd-gray-25", "-o", "x.pte", "--steps", "1")

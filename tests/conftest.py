from pathlib import Path

import pytest
import torch

IMAGES = Path(__file__).parent / "images"


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)

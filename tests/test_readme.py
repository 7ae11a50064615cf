import re

import pytest
import torch

from benchmarks.readme import README, render


def test_the_table_of_results_is_rendered_from_the_weights():
    assert render() in README.read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_the_python_of_the_readme_runs(code):
    names = {"noisy": torch.rand(1, 1, 20, 20), "photo": torch.rand(1, 3, 40, 50), "x": torch.rand(2, 3, 16, 16)}
    exec(code, names)
    outputs = [value for name, value in names.items() if isinstance(value, torch.Tensor)]
    assert len(outputs) > 3
    assert all(torch.isfinite(value).all() for value in outputs)

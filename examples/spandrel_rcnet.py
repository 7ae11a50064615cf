"""rcnet's denoisers in spandrel, by which chaiNNer and ComfyUI load models: after `register()` its ModelLoader knows our files.

spandrel sees only names and shapes of tensors, so the architecture (r3 or r3_fast) is read from those. The steps are set once:

    import spandrel_rcnet, spandrel
    spandrel_rcnet.register(steps=1)
    model = spandrel.ModelLoader().load_from_file("r3_fast.photo.safetensors")    # an ImageModelDescriptor

    python examples/spandrel_rcnet.py [WEIGHTS.safetensors]
"""

import re
import sys
from typing import Any

import spandrel
import torch

import rcnet
from rcnet.models import bundled
from rcnet.models.judge import Judge, attach_judge


def architecture(state: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and options that `rcnet.create_model` takes, by the tensors of r3 or r3_fast."""
    rows = sorted({int(row) for row in re.findall(r"cell2\.norms\.(\d+)\.", " ".join(state))} - {0})  # one per step count
    columns = {int(step) for step in re.findall(r"cell1\.norms\.0\.(\d+)\.", " ".join(state))}
    (width, planes), head = state["stem.weight"].shape[:2], state["head.weight"].shape[0]
    options = {"steps": rows or len(columns), "in_chans": head}
    if head in (1, 3):  # r3_fast has four planes per channel
        return "r3", options
    convs = len([name for name in state if name.startswith("cell1.body.convs.")])
    levels = {"noise_level": planes > head, "coarse_level": planes > head + 4}
    return "r3_fast", options | {"in_chans": head // 4, "width": width, "convs": convs, **levels}


class Rcnet(spandrel.Architecture[rcnet.RecurrentNet]):
    """Any r3 or r3_fast, at `steps`, one of its step counts; the largest unless given."""

    def __init__(self, steps: int | None = None) -> None:
        parts = {"stem.weight", "cell1.norms.0.0.0.weight", "cell3.body.convs.0.weight", "head.bias"}
        super().__init__(id="rcnet", detect=lambda state: parts <= state.keys())
        self.steps = steps

    def load(self, state_dict: dict[str, Any]) -> spandrel.ImageModelDescriptor[rcnet.RecurrentNet]:
        name, options = architecture(state_dict)
        model = rcnet.create_model(name, **options)
        judge = {key.removeprefix("judge."): tensor for key, tensor in state_dict.items() if key.startswith("judge.")}
        if judge:  # of the noise, for who is asked for no level
            attach_judge(model, Judge(options["in_chans"], width=len(judge["fine.0.bias"])).eval())
            model.judge.load_state_dict(judge)
        network = {key: tensor for key, tensor in state_dict.items() if not key.startswith("judge.")}
        return spandrel.ImageModelDescriptor(
            model, network, architecture=self, purpose="Restoration", tags=[name, f"steps {model.choices}"],
            supports_half=False, supports_bfloat16=True, scale=1,
            input_channels=model.about.channels, output_channels=model.about.channels,
            call_fn=lambda net, image: net(image, self.steps),
        )  # fmt: skip


def register(steps: int | None = None) -> None:
    """Makes spandrel's main registry know rcnet's files."""
    spandrel.MAIN_REGISTRY.add(spandrel.ArchSupport.from_architecture(Rcnet(steps)))


if __name__ == "__main__":
    register()
    model = spandrel.ModelLoader().load_from_file(sys.argv[1] if len(sys.argv) > 1 else bundled()["r3_fast.photo"])
    print(model.architecture.name, model.tags, model(torch.rand(1, model.input_channels, 65, 64)).shape)

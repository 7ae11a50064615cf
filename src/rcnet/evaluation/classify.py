"""Error rate of a classifier at each step count."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rcnet.calling import device_of, ready
from rcnet.network import RecurrentNet
from rcnet.setting import Steps


@torch.inference_mode()
def classification_results(
    model: RecurrentNet,
    images: Tensor,
    labels: Tensor,
    steps: Sequence[Steps],
    *,
    precision: str = "fp32",
    batch: int = 250,
    each: Callable[[int], object] = lambda images: None,
    keep: Callable[[Any, Tensor], object] = lambda steps, classes: None,
) -> list[dict[str, Any]]:
    """One row per setting: `steps`, `error` in %, `top5_error` in % (with more than five classes), and `loss`, the mean
    cross-entropy. No augmentation.

    Args:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
        each: called with the number of images after each batch, for a progress bar.
        keep: is given the steps of each row, as they stand in it, and the class that each image got, int64 [N].

    Raises:
        InputError: steps that the model does not support.

    Example:
        >>> import rcnet, torch
        >>> net = rcnet.create_model("r2", steps=(1, 2), width=0.125).eval()
        >>> images, labels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20) % 10
        >>> [row["steps"] for row in classification_results(net, images, labels, steps=[1, 2])]
        [1, 2]
    """
    device = device_of(model)
    rows = []
    for n in map(model.per_cell, steps):
        call = ready(model, n, precision)
        wrong, wrong5, loss, given = 0, 0, 0.0, []
        for pixels, target in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
            logits, target = call(pixels.to(device, memory_format=torch.channels_last).float() / 255), target.to(device)
            classes = logits.topk(min(5, logits.shape[1])).indices
            best = classes == target[:, None]
            given.append(classes[:, 0].cpu())
            wrong += int((~best[:, 0]).sum())
            wrong5 += int((~best.any(1)).sum())
            loss += F.cross_entropy(logits, target, reduction="sum").item()
            each(len(target))
        count = len(labels)
        keep(n.to_json(), torch.cat(given))
        top5 = {"top5_error": round(100 * wrong5 / count, 3)} if logits.shape[1] > 5 else {}
        rows.append({"steps": n.to_json(), "error": round(100 * wrong / count, 3), **top5, "loss": round(loss / count, 5)})
    return rows

"""Many processes under `torchrun`: each takes its share of every batch, and one all-reduce per iteration averages gradients.

DistributedDataParallel is not used: it would search for the batch norms that the drawn steps left unused, and it is wrong for
more than one step count per iteration. All processes draw the same steps, so the same gradients exist on each.
"""

import os
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from rcnet.cell import batch_norms
from rcnet.errors import InputError


class World(NamedTuple):
    """The `rank` of this process, from 0, among `size` processes. Rank 0 writes."""

    rank: int = 0
    size: int = 1


def join(device: torch.device) -> World:
    """The world that `torchrun` started this process in, or that of one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"WORLD_SIZE is set, but the processes cannot connect; start them with torchrun: {reason}"
            ) from error
    return World(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share(value: Any, world: World) -> Any:
    """The `value` of rank 0, on every process."""
    if world.size == 1:
        return value
    box = [value]
    try:
        dist.broadcast_object_list(box, src=0)
    except RuntimeError as error:
        raise _lost() from error
    return box[0]


def average(model: nn.Module, world: World, totals: list[float]) -> list[float]:
    """Averages over all processes the gradients and the running statistics of `model`, in place; returns the sums of `totals`.

    Raises:
        InputError: another process has exited.
    """
    if world.size == 1:
        return totals
    tensors = [p.grad for p in model.parameters() if p.grad is not None]
    for norm in batch_norms(model):
        tensors += [statistic for statistic in (norm.running_mean, norm.running_var) if statistic is not None]
    device = tensors[0].device
    flat = torch.cat([*(tensor.flatten() for tensor in tensors), torch.tensor(totals, device=device)])
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        raise _lost() from error
    pieces = torch.split(flat, [*(tensor.numel() for tensor in tensors), len(totals)])
    for tensor, piece in zip(tensors, pieces[:-1], strict=True):
        tensor.copy_(piece.view_as(tensor) / world.size)
    return pieces[-1].tolist()


def _lost() -> InputError:
    return InputError("another process of this run has exited: restart with --resume and as many processes as are available")

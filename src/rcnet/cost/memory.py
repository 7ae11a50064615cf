"""Peak memory of a call: the largest total size of tensors alive at the same time."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operation returns, until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count((args, kwargs), new=False)
        result = function(*args, **(kwargs or {}))
        self._count(result, new=True)
        return result

    def _count(self, values: Any, new: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                self._add(tensor.untyped_storage(), new)

    def _add(self, storage: torch.UntypedStorage, new: bool) -> None:
        key = storage._cdata
        size = self.alive[key] = storage.nbytes() if new else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def peak_memory(call: Callable[[], object]) -> int:
    """Peak bytes of the tensors that `call` creates, without tensors that existed before and without workspaces of operations.

    Example:
        >>> import torch
        >>> peak_memory(lambda: torch.zeros(1024) + 1)  # both are alive at the same time
        8192
    """
    with torch.inference_mode(), _Living() as living:
        call()
    return living.peak

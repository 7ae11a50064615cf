"""What a step count costs: parameters and multiply-accumulates."""

from rcnet.cost.macs import macs, parameters

__all__ = ["macs", "parameters"]

"""The cost of a setting: parameters, multiply-accumulates, memory, latency; and the setting that fits a budget."""

from rcnet.cost.budget import latencies, steps_for
from rcnet.cost.counting import macs, parameters
from rcnet.cost.profiling import profile
from rcnet.runtime.budget import parse_budget

__all__ = ["latencies", "macs", "parameters", "parse_budget", "profile", "steps_for"]

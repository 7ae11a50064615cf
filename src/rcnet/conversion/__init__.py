"""Conversion of ordinary networks: each run of repeated blocks is replaced by one recurrent cell."""

from rcnet.conversion.convert import Init, block_outputs, convert
from rcnet.conversion.record import first_tensor
from rcnet.conversion.report import Conversion, ConvertedNet, Kept, Replaced

__all__ = ["Conversion", "ConvertedNet", "Init", "Kept", "Replaced", "block_outputs", "convert", "first_tensor"]

"""Conversion of ordinary networks: each run of repeated blocks is replaced by one recurrent cell."""

from rcnet.conversion.convert import Conversion, ConvertedNet, Init, Kept, Replaced, convert
from rcnet.conversion.record import first_tensor

__all__ = ["Conversion", "ConvertedNet", "Init", "Kept", "Replaced", "convert", "first_tensor"]

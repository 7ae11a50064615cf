"""An ordinary network made recurrent: its repeated blocks found, and each run of them replaced by a cell."""

from rcnet.conversion.convert import Conversion, ConvertedNet, Init, Kept, Replaced, convert
from rcnet.conversion.record import first_tensor

__all__ = ["Conversion", "ConvertedNet", "Init", "Kept", "Replaced", "convert", "first_tensor"]

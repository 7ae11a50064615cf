"""An ordinary network made recurrent: its repeated blocks found, and each run of them replaced by a cell."""

from rcnet.conversion.convert import Conversion, Kept, Replaced, convert

__all__ = ["Conversion", "Kept", "Replaced", "convert"]

"""What `convert` did."""

from dataclasses import dataclass

from rcnet.network import RecurrentNet


@dataclass(frozen=True)
class Replaced:
    """A run that became a cell, with its parameters before and after.

    Attributes:
        shared: layers whose weights all steps share even at full rank, so that the cell is not exact.
    """

    cell: str
    name: str
    what: str
    blocks: int
    before: int
    after: int
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A part that was not converted, and why."""

    name: str
    what: str
    parameters: int
    reason: str


@dataclass(frozen=True)
class Conversion:
    """A report of `convert`; its text is a table.

    Attributes:
        before, after: parameters of the whole network; `after` includes all norms and differences.
        difference: relative difference of the outputs for the example, between the most steps and the original network.
        notes: what else the converted network does not do as the original does.
    """

    replaced: tuple[Replaced, ...]
    kept: tuple[Kept, ...]
    before: int
    after: int
    difference: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{r.cell}: {r.blocks} x {r.what} at {r.name}, {r.before:,} -> {r.after:,} parameters" for r in self.replaced]
        lines += [f"kept: {k.name}, {k.what}, {k.parameters:,} parameters: {k.reason}" for k in self.kept]
        return "\n".join([*lines, *self.remarks(), f"in all {self.before:,} -> {self.after:,} parameters"])

    def remarks(self) -> list[str]:
        """One line each: the notes, how far the outputs are from the original's, and whether conversion saves little."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"note: {r.cell} shares {name}, whatever the rank" for r in self.replaced for name in r.shared]
        if self.after > 0.9 * self.before:
            lines.append(f"note: this saves {max(0.0, 1 - self.after / self.before):.0%} of the parameters, less than a tenth")
        return [*lines, f"at the most steps, outputs differ by {self.difference:.2g} of their size before training"]


class ConvertedNet(RecurrentNet):
    """A network that `convert` made; `conversion` says how.

    Attributes:
        ranks: of the differences of each cell: for each step, of each layer.
    """

    conversion: Conversion
    ranks: tuple[tuple[tuple[int, ...], ...], ...] = ()

"""Tables 1 to 5, Figures 2 to 7 and the text of Zhang & Jung: the networks that each needs, on which data, and the figures
published."""

import itertools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

UNSETTLED = math.nan  # the '-' of Table 3: not convergent on the test set
CIFAR = ("cifar10", "cifar100")
SIGMAS = (15, 25, 50)
BSD = tuple(f"bsd{sigma}" for sigma in SIGMAS)
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"} | {f"bsd{sigma}": f"BSD68, sigma {sigma}" for sigma in SIGMAS}
CLASSES = {"cifar10": 10, "cifar100": 100}
SGD = (  # that of cifar_paper; Muon's step does not depend on the size of the gradient, which Sec. 3.3 is about
    "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9", "optimizer.weight_decay=5e-4", "optimizer.clip=1.0",
    "optimizer.norm_lr=1",
)  # fmt: skip
SLOW = ("optimizer.muon_lr=0.02",)  # the rate at which the kernels of R networks train: half of that of kernels used once
EXITS = ("objective=aggregated", "probabilities=[]")
DRAWN = (0.2, 0.3, 0.5)  # Table 4's distribution over three step counts


class Network(NamedTuple):
    """A network of the paper: its name there, the arguments of `create_model`, and what else its recipe takes.

    Attributes:
        length: how long it is trained, as a multiple of what the scale says.
    """

    label: str
    model: dict[str, Any]
    recipe: tuple[str, ...] = ()
    length: float = 1.0

    @property
    def last(self) -> int:
        """Its most steps."""
        return self.taken[-1]

    @property
    def taken(self) -> list[int]:
        """Its steps."""
        steps = self.model["steps"]
        return steps if isinstance(steps, list) else [steps]


def _fixed(name: str, steps: Iterable[int]) -> dict[str, Network]:
    family = f"{name[0].upper()}{name[1:]}"
    return {f"{name}-{n}": Network(f"{family}^{n}", {"name": name, "steps": n}) for n in steps}


def _adjustable(name: str, steps: list[int], label: str, *recipe: str, length: float = 1.0, **options: Any) -> Network:
    chosen = recipe or (f"probabilities={list(DRAWN)}",)
    return Network(f"{name.upper()}, {label}", {"name": name, "steps": steps, **options}, chosen, length)


def _each_by_itself(probabilities: Iterable[float], cells: int) -> list[float]:
    """Of every mixture, fewest steps first, where each cell draws its own steps."""
    drawn = dict(enumerate(probabilities))
    mixtures = sorted(itertools.product(drawn, repeat=cells), key=lambda own: (sum(own), own))
    return [round(math.prod(drawn[n] for n in own), 9) for own in mixtures]


NETWORKS: dict[str, Network] = {
    **_fixed("r2", (1, 2, 3, 4)),
    **_fixed("s2", (2, 3, 4)),
    "s2-4-half": Network("S2^4 x0.5", {"name": "s2", "steps": 4, "width": 0.5}),
    "r2-4-none": Network("R2^4, no norms", {"name": "r2", "steps": 4, "norm_mode": "none"}),
    "r2-4-shared": Network("R2^4, shared norms", {"name": "r2", "steps": 4, "norm_mode": "shared"}),
    "r2-4-full-rate": Network("R2^4, full rate for shared kernels", {"name": "r2", "steps": 4}, ("optimizer.shared_lr=1.0",)),
    "r2-234": _adjustable("r2", [2, 3, 4], "cost-adjustable"),
    "r2-234-plain": _adjustable("r2", [2, 3, 4], "n groups of norms", norm_mode="independent"),
    "r2-234-even": _adjustable("r2", [2, 3, 4], "steps drawn evenly", "probabilities=[]"),
    "r2-234-small": _adjustable("r2", [2, 3, 4], "smaller steps drawn more often", f"probabilities={list(DRAWN[::-1])}"),
    # As many FLOP as r2-234 takes, which draws the larger steps more often
    "r2-234-even-equal": _adjustable("r2", [2, 3, 4], "steps drawn evenly, for equal FLOP", "probabilities=[]", length=1.087),
    "r2-234-small-equal": _adjustable(
        "r2", [2, 3, 4], "smaller steps drawn more often, for equal FLOP", f"probabilities={list(DRAWN[::-1])}", length=1.207
    ),
    "r2-234-all": _adjustable("r2", [2, 3, 4], "aggregated loss", f"probabilities={list(DRAWN)}", "objective=aggregated"),
    "r2-234-mixed": _adjustable(
        "r2", [2, 3, 4], "each cell draws its own steps", "settings=free", f"probabilities={_each_by_itself(DRAWN, 2)}",
        unified=False,
    ),
    "r2-234-long": _adjustable("r2", [2, 3, 4], "cost-adjustable, as many FLOP as the aggregated loss", length=2.76),
    "r2-234-unpooled": _adjustable("r2", [2, 3, 4], "double norms without rows for pooling", pooled_rows=False),
    "r2-4-sgd": Network("R2^4, SGD", {"name": "r2", "steps": 4}, SGD),
    "r2-4-full-rate-sgd": Network(
        "R2^4, SGD, full rate for shared kernels", {"name": "r2", "steps": 4}, (*SGD, "optimizer.shared_lr=1.0")
    ),
    "r2-1-slow": Network("R2^1, half the rate for kernels of cells", {"name": "r2", "steps": 1}, SLOW),
    **{
        f"s2-{n}-slow": Network(f"S2^{n}, half the rate for kernels of cells", {"name": "s2", "steps": n}, SLOW)
        for n in (2, 3, 4)
    },
    "r2-4-biased": Network("R2^4, biases in place of norms", {"name": "r2_biased", "steps": 4}),
    "r2-4-biased-slow": Network(
        "R2^4, biases in place of norms, a quarter of the rates", {"name": "r2_biased", "steps": 4},
        ("optimizer.lr=2.5e-4", "optimizer.muon_lr=0.01"),
    ),
    "r2-4-shared-slow": Network(
        "R2^4, shared norms at the rate of the rest", {"name": "r2", "steps": 4, "norm_mode": "shared"}, ("optimizer.norm_lr=1",)
    ),
    "r4-123": _adjustable("r4", [1, 2, 3], "cost-adjustable"),
    **_fixed("s4", (1, 2, 3)),
    **{
        f"{name}-exits": Network(f"{name.upper()}^3 with early exits", {"name": f"{name}_exits", "steps": [1, 2, 3]}, EXITS)
        for name in ("r4", "s4")
    },
    **_fixed("r3", (1, 2, 3, 4)),
    **_fixed("s3", (2, 3, 4)),  # S3^1 is R3^1: one step shares nothing
    "r3-4-none": Network("R3^4, no norms", {"name": "r3", "steps": 4, "norm_mode": "none"}),
    "r3-4-shared": Network("R3^4, shared norms", {"name": "r3", "steps": 4, "norm_mode": "shared"}),
}  # fmt: skip


class Key(NamedTuple):
    """What a cell of a table measures: a network, its data, and the steps that it takes."""

    network: str
    data: str
    steps: int


class Published(NamedTuple):
    """A cell: where it stands, what it measures, what the paper has there."""

    row: str
    column: str
    key: Key
    paper: float


class Table(NamedTuple):
    """A table of the paper."""

    title: str
    cells: list[Published]
    parameters: Mapping[str, float] = MappingProxyType({})  # row -> millions, where the table has them
    depth: Mapping[str, int] = MappingProxyType({})  # row -> unrolled depth, where the table has it


def _cells(rows: Mapping[str, tuple[str, int, tuple[float, ...]]], data: tuple[str, ...]) -> list[Published]:
    """The cells of rows: name -> network, steps and its figures on each of `data`."""
    return [
        Published(row, DATA[d], Key(network, d, steps), figure)
        for row, (network, steps, figures) in rows.items()
        for d, figure in zip(data, figures, strict=True)
    ]


TABLES: dict[int, Table] = {
    1: Table(
        "RC networks and standard networks on CIFAR: test error in %",
        _cells(
            {
                "R2^1": ("r2-1", 1, (14.46, 40.30)),
                "R2^2": ("r2-2", 2, (8.53, 32.22)),
                "R2^3": ("r2-3", 3, (8.44, 31.78)),
                "R2^4": ("r2-4", 4, (7.65, 30.33)),
                "S2^2": ("s2-2", 2, (7.93, 30.89)),
                "S2^3": ("s2-3", 3, (7.41, 30.26)),
                "S2^4": ("s2-4", 4, (6.86, 28.35)),
                "S2^4 x0.5": ("s2-4-half", 4, (8.32, 31.54)),
            },
            CIFAR,
        ),
        {
            "R2^1": 1.259, "R2^2": 1.260, "R2^3": 1.262, "R2^4": 1.263,
            "S2^2": 2.514, "S2^3": 3.768, "S2^4": 5.023, "S2^4 x0.5": 1.258,
        },
        {"R2^1": 6, "R2^2": 10, "R2^3": 14, "R2^4": 18, "S2^2": 10, "S2^3": 14, "S2^4": 18, "S2^4 x0.5": 18},
    ),
    2: Table(
        "R2^4 by its use of BN: test error in %",
        _cells(
            {
                "no": ("r2-4-none", 4, (10.37, 38.56)),
                "shared": ("r2-4-shared", 4, (21.00, 54.52)),
                "independent": ("r2-4", 4, (7.65, 30.33)),
            },
            CIFAR,
        ),
    ),
    3: Table(
        "R3^4 (R2^4 in the paper's caption) by its use of BN: PSNR in dB",
        _cells(
            {
                "no": ("r3-4-none", 4, (31.36, 28.78, 25.77)),
                "shared": ("r3-4-shared", 4, (UNSETTLED, UNSETTLED, 17.54)),
                "independent": ("r3-4", 4, (31.61, 29.07, 26.06)),
            },
            BSD,
        ),
    ),
    4: Table(
        "Cost-adjustable R2: test error in %",
        _cells(
            {
                "steps 2": ("r2-234", 2, (8.46, 31.55)),
                "steps 3": ("r2-234", 3, (8.08, 31.21)),
                "steps 4": ("r2-234", 4, (7.87, 30.67)),
            },
            CIFAR,
        ),
    ),
    5: Table(
        "Cost-adjustable R4 and standard networks on CIFAR-100: test error in %",
        _cells(
            {
                "R4^1": ("r4-123", 1, (25.83,)),
                "R4^2": ("r4-123", 2, (25.54,)),
                "R4^3": ("r4-123", 3, (25.29,)),
                "S4^1": ("s4-1", 1, (26.45,)),
                "S4^2": ("s4-2", 2, (25.59,)),
                "S4^3": ("s4-3", 3, (25.22,)),
            },
            ("cifar100",),
        ),
        {"R4^1": 11.250, "R4^2": 11.250, "R4^3": 11.250, "S4^1": 11.217, "S4^2": 17.488, "S4^3": 23.759},
        {"R4^1": 18, "R4^2": 26, "R4^3": 34, "S4^1": 18, "S4^2": 26, "S4^3": 34},
    ),
}  # fmt: skip


# Table 4's cells, the fixed network that each is compared with, and the gap that the paper prints in brackets.
GAPS: dict[Key, tuple[Key, float]] = {
    Key("r2-234", data, n): (Key(f"r2-{n}", data, n), gap)
    for data, gaps in (("cifar10", (-0.07, -0.36, 0.02)), ("cifar100", (-0.34, -0.57, 0.12)))
    for n, gap in zip((2, 3, 4), gaps, strict=True)
}


class Figure(NamedTuple):
    """A figure of the paper and the (network, data) that it shows."""

    title: str
    shows: list[tuple[str, str]]


R3 = tuple(f"r3-{n}" for n in (1, 2, 3, 4))
S3 = ("r3-1", "s3-2", "s3-3", "s3-4")
S4 = tuple(f"s4-{n}" for n in (1, 2, 3))
FIGURES: dict[int, Figure] = {
    2: Figure("The first independent BN of R2^4 over its steps, CIFAR-10", [("r2-4", "cifar10")]),
    3: Figure("The first BN of T2 of R4 when C1 takes 1 to 3 steps, CIFAR-100", [("r4-123", "cifar100")]),
    4: Figure("Denoised by R3^1 to R3^4, sigma 25", [(network, "bsd25") for network in R3]),
    5: Figure("PSNR over steps, R3 and S3", [(network, data) for data in BSD for network in (*R3, *S3[1:])]),
    6: Figure("Features at the end of C2 and C3 of R4 over steps, CIFAR-100", [("r4-123", "cifar100")]),
    7: Figure(
        "Relative accuracy over relative FLOPs",
        [(network, "cifar100") for network in ("r4-123", "r4-exits", "s4-exits", *S4)],
    ),
}
# What the text says without a table or figure: section -> the networks, on which data, that it compares.
TEXT: dict[str, list[tuple[str, str]]] = {
    "Sec. 3.3": [(network, "cifar10") for network in ("r2-4", "r2-4-full-rate")],
    "Sec. 4.1": [(network, data) for data in CIFAR for network in ("r2-234", "r2-234-plain")],
    "Sec. 4.2": [
        (f"r2-234{variant}", "cifar10")
        for variant in ("", "-even", "-small", "-even-equal", "-small-equal", "-all", "-mixed")
    ],
}  # fmt: skip
# What else could explain a verdict, each with the runs that it is compared with; at the scales that say so.
CHECKS: dict[str, list[tuple[str, str]]] = {
    "Check a": [(network, data) for data in CIFAR for network in ("r2-234-plain", "r2-234-unpooled", "r2-234")],
    "Check b": [
        (network, "cifar10")
        for network in (
            "r2-4-full-rate-sgd", "r2-4-sgd", "r2-1", "r2-1-slow", *(f"s2-{n}{how}" for n in (2, 3, 4) for how in ("", "-slow")),
        )
    ],
    "Check c": [(network, "cifar10") for network in ("r2-4-none", "r2-4-biased", "r2-4-biased-slow", "r2-4")],
    "Check d": [(network, "cifar10") for network in ("r2-4-shared-slow", "r2-4-shared", "r2-4-none", "r2-1")],
    "Check e": [(network, "cifar10") for network in ("r2-234", "r2-234-long", "r2-234-all", "r2-2", "r2-3", "r2-4")],
}  # fmt: skip


def metric(data: str) -> str:
    """The key of a result's rows: `error` in % or `psnr` in dB."""
    return "error" if data in CIFAR else "psnr"


def published() -> dict[Key, float]:
    """What the paper's tables say of each key."""
    return {cell.key: cell.paper for table in TABLES.values() for cell in table.cells}

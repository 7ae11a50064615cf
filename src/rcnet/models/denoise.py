"""R3 and S3, the denoisers of the paper (Eq. 9), and r3_fast, ours, with residual cells on 2x2 sub-images."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rcnet.about import INPUTS, SMOOTH, About
from rcnet.calling import Call
from rcnet.cell import NormMode, RecurrentCell, supported_steps
from rcnet.errors import InputError
from rcnet.models.judge import level_map
from rcnet.models.layers import ConvBody, conv3x3, init_weights
from rcnet.models.registry import register
from rcnet.network import RecurrentNet, untie
from rcnet.setting import Steps

UNKNOWN = -0.25  # an unknown noise level in the input plane: outside the known levels, [0, 1], and of their magnitude
# Below this level the change is scaled down: noise of sigma 2 is 42 dB, and blind networks change some clean photographs as much
# (40 dB for the worst of CBSD68 with r3_fast.photo, 38 to 44 dB with r3_fast.gray: results/weights).
SLIGHT = 2 / 255
Sigma = float | Tensor | None


@fx.wrap
def level_planes(x: Tensor, sigma: Sigma, count: int = 1) -> Tensor:
    """The input planes of the noise levels, [B, count, H, W] in [0, 1]; `UNKNOWN` where `sigma` is None or negative.

    Args:
        x: the images, [B, C, H, W].
        sigma: levels of 255: one number, one value per image [B], or a map [H, W], [1, H, W], [B, 1, H, W] or [B, count, H, W].
            The first of two planes is white noise, the second coarse noise, which is 0 unless given.

    Raises:
        InputError: a tensor of another shape.
    """
    batch, _, height, width = x.shape
    if sigma is None:
        return x.new_full((batch, count, height, width), UNKNOWN)
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    shape = (-1, 1, 1, 1) if level.ndim == 1 else (1,) * (4 - level.ndim) + tuple(level.shape)
    level = level.reshape(shape)
    try:
        level = level.expand(batch, level.shape[1] if level.shape[1] == count else 1, height, width)
    except RuntimeError as error:
        raise InputError(
            f"sigma of shape {list(torch.as_tensor(sigma).shape)} does not fit images {list(x.shape)}: give one number, "
            f"one value per image [B], or a map [H, W] or [B, {count}, H, W]"
        ) from error
    level = torch.where(level < 0, torch.full_like(level, UNKNOWN), level / 255)
    return F.pad(level, (0, 0, 0, 0, 0, count - level.shape[1]))


def filling(call: Call, multiple: int) -> Call:
    """`call(x)`, or `call(x, sigma=...)`, for images of any size: they are padded to a multiple, and the output is cropped."""
    if multiple == 1:
        return call

    def fill(x: Tensor, sigma: Sigma = None) -> Tensor:
        if isinstance(sigma, Tensor) and sigma.ndim > 2 and sigma.shape[-2:] == x.shape[-2:]:  # a map
            sigma = filled(sigma, multiple)
        kwargs = {} if sigma is None else {"sigma": sigma}
        return call(filled(x, multiple), **kwargs)[..., : x.shape[-2], : x.shape[-1]]

    return fill


@fx.wrap
def filled(x: Tensor, sub: int) -> Tensor:
    """x, padded to multiples of `sub` by reflection at the right and the bottom."""
    height, width = x.shape[-2:]
    # Reflection needs sides longer than the padding; shorter ones repeat the last pixel.
    mode = "reflect" if min(height, width) >= sub else "replicate"
    return F.pad(x, (0, -width % sub, 0, -height % sub), mode=mode)


class Denoiser(RecurrentNet):
    """A chain whose output is added to the input image (Eq. 7: the network learns the noise). [B, C, H, W] in [0, 1].

    With `about.sub` > 1 the chain works on sub x sub sub-images: other sizes are padded by reflection at the right and the
    bottom, and the output is cropped. If `about.inputs` contains `sigma`, the chain has another input plane, the noise level of
    each pixel or `UNKNOWN` (FFDNet, Zhang et al. 2018, has such a plane, but no unknown level); with `coarse`, a further one for
    the coarse noise of cameras.
    """

    def __init__(self, about: About, **modules: nn.Module) -> None:
        super().__init__(**modules)
        self.about = about

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Denoiser":
        if self.judge is not None:
            self.judge._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def forward(self, x: Tensor, steps: Steps = None, sigma: Sigma = None) -> Tensor:  # type: ignore[override]
        """x: [B, C, H, W] in [0, 1].

        Args:
            sigma: the noise level in levels of 255, for networks that take one: a number, one value per image [B], or a map
                [H, W] or [B, 1, H, W]. Negative: unknown. None: the estimate of the network's judge if it has one, else
                unknown, as in a trace of `torch.fx`. Networks that also take the level of coarse noise accept a map
                [B, 2, H, W], white and coarse; the other forms mean white noise only.

        Raises:
            InputError: unsupported steps, a sigma for a network that takes none, or a sigma of another shape.
        """
        if isinstance(sigma, fx.Proxy) and not self.about.takes_level:
            sigma = None
        if sigma is not None and not self.about.takes_level:
            raise InputError("these weights take no noise level: leave sigma out, or take weights that do, e.g. r3_fast.photo")
        if sigma is None and self.judge is not None:
            sigma = level_map(self.judge(x), x)
        planes = level_planes(x, sigma, self.about.levels) if self.about.takes_level else None
        seen = x if planes is None else torch.cat([x, planes], 1)
        if self.about.sub > 1:
            seen = filled(seen, self.about.sub)
        change = super().forward(seen, steps)[..., : x.shape[-2], : x.shape[-1]]
        if planes is not None:  # little noise, little change: an image without noise stays as it is
            most = planes.amax(1, keepdim=True)
            unknown = planes.amin(1, keepdim=True) < 0
            change = change * torch.where(unknown, 1.0, (most / SLIGHT).clamp(max=1))
        return x + change

    def radius(self, steps: Steps = None) -> int:
        """The largest distance in pixels at which an input pixel can change the output: the halo of a tile.

        It is a multiple of `sub`, so that tiles that start at a multiple keep their sub-images.
        """
        return self.about.radius(self.per_cell(steps))


def _denoiser(
    steps: int | Iterable[int],
    norm_mode: NormMode | None,
    in_chans: int,
    width: int,
    convs: int,
    residual: bool,
    sub: int,
    unified: bool,
    levels: int = 0,
) -> Denoiser:
    steps = supported_steps(steps)
    mode = norm_mode or ("double" if len(steps) > 1 else "independent")

    def cell(upstream: tuple[int, ...]) -> RecurrentCell:
        return RecurrentCell(
            ConvBody(width, convs, residual),
            lambda: [nn.BatchNorm2d(width) for _ in range(convs)],
            steps,
            norm_mode=mode,
            upstream=upstream,
            unified=unified,
        )

    modules: dict[str, nn.Module] = {} if sub == 1 else {"unshuffle": nn.PixelUnshuffle(sub)}
    modules |= {
        "stem": conv3x3((in_chans + levels) * sub**2, width, bias=True),
        "relu": nn.ReLU(),
        "cell1": cell(()),
        "cell2": cell(steps),
        "cell3": cell(steps),
        "head": conv3x3(width, in_chans * sub**2, bias=True),
    }
    if sub > 1:
        modules["shuffle"] = nn.PixelShuffle(sub)
    blurred = SMOOTH // 2 if levels == 2 else 0  # a judge's map is read off the brightness around a pixel
    about = About("denoise", in_chans, INPUTS[: 1 + levels], sub=sub, reach=(sub * (2 + (sub > 1)) + blurred, sub * convs))
    net = Denoiser(about, **modules)
    _init_denoiser(net)
    return net


def _init_denoiser(net: Denoiser) -> None:
    init_weights(net)
    nn.init.zeros_(net.get_parameter("head.weight"))  # training starts from the identity


@register(task="denoise", steps=(1, 2, 3, 4))
def r3(
    steps: int | Iterable[int] = (1, 2, 3, 4), norm_mode: NormMode | None = None, in_chans: int = 1, unified: bool = True
) -> Denoiser:
    """R3 (Eq. 9): convolution and ReLU to 64 channels, three cells of convolution, BN and ReLU, convolution to the image.

    Args:
        steps, norm_mode, unified: as for `r2`.
        in_chans: channels of the image: 1 gray, 3 colour.
    """
    return _denoiser(steps, norm_mode, in_chans, 64, 1, residual=False, sub=1, unified=unified)


@register(task="denoise", steps=(1, 2, 3, 4), adjustable=False)
def s3(steps: int = 4, norm_mode: NormMode = "independent", in_chans: int = 1) -> Denoiser:
    """S3: the graph of R3 unrolled for `steps`, kernels not shared."""
    net = untie(_denoiser(steps, norm_mode, in_chans, 64, 1, residual=False, sub=1, unified=True))
    _init_denoiser(net)
    return net


@register(task="denoise", steps=(1, 2, 3))
def r3_fast(
    steps: int | Iterable[int] = (1, 2, 3),
    norm_mode: NormMode | None = None,
    in_chans: int = 1,
    width: int = 48,
    convs: int = 2,
    residual: bool = True,
    noise_level: bool = False,
    coarse_level: bool = False,
    unified: bool = True,
) -> Denoiser:
    """R3 for practical use: three residual cells of two convolutions on 2x2 sub-images, at 0.29 of R3's cost per pixel and step.

    Args: as for `r3`, and
        width: channels of the cells.
        convs: convolutions per cell.
        residual: x = relu(x + f(x)) instead of relu(f(x)), where f is convolution and norm, `convs` times, with ReLU between.
        noise_level: the noise level is an input, `model(x, steps, sigma=25)`; it may be unknown.
        coarse_level: the level of coarse noise, as in files of cameras, is also an input: `sigma` [B, 2, H, W].
    """
    if coarse_level and not noise_level:
        raise InputError("coarse_level needs noise_level: the level of white noise is the first input")
    return _denoiser(
        steps, norm_mode, in_chans, width, convs, residual, sub=2, unified=unified, levels=noise_level + coarse_level
    )

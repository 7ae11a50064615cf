"""Denoising images of any size and number of channels: tiles of bounded memory, colour through gray weights."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from rcnet.deploy.sessions import COLOUR, GRAY, session_of
from rcnet.errors import InputError
from rcnet.runtime.denoise import Denoised, Work, check_gives_images, check_range, denoise_images
from rcnet.runtime.denoise import denoise_pixels as on_pixels
from rcnet.runtime.picture import Curve
from rcnet.runtime.tiles import TILE
from rcnet.setting import Steps

if TYPE_CHECKING:
    from torch import Tensor

    from rcnet.deploy.sessions import Model

    Sigma = float | np.ndarray | Tensor | None

Images = TypeVar("Images", "Tensor", np.ndarray)


@overload
def denoise(
    model: "Model",
    images: Images,
    steps: Steps = None,
    *,
    sigma: "Sigma" = None,
    strength: float = 1.0,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
) -> Images: ...
@overload
def denoise(
    images: Images,
    /,
    *,
    model: "Model | None" = None,
    steps: Steps = None,
    sigma: "Sigma" = None,
    strength: float = 1.0,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
) -> Images: ...
def denoise(  # type: ignore[misc]
    *given: Any,
    model: Any = None,
    images: Any = None,
    steps: Steps = None,
    sigma: Any = None,
    strength: float = 1.0,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
) -> Any:
    """`denoise(images, model="r3_fast.photo")` or `denoise(model, images, steps)`: the denoised images, in their type.

    Tiles overlap by the network's receptive field, so that the result equals the untiled one (to 1e-5 in fp32) and memory
    does not grow with the image. Names of bundled weights and .onnx files run in ONNX Runtime, and torch is not imported.

    Args:
        model: the name of bundled weights, a .onnx file that `rcnet export` wrote or a file of weights; a denoiser, e.g.
            `rcnet.load("r3_fast.photo")`, or another network that gives images; or fast sessions of one (`rcnet.optimize`).
            r3_fast.photo unless given, and r3_fast.gray for gray images.
        images: an array of a picture, [H, W] or [H, W, C], uint8, uint16 or float in [0, 1]; or an array or a tensor, float of
            any type [B, C, H, W] in [0, 1]. A gray network takes the channels of a colour image one by one; a colour network
            takes a gray image three times, and the mean of what it gives. Gradients pass through networks of torch to tensors
            that require them.
        steps: the cost: any step count that the model supports; the largest unless given.
        sigma: the noise level, in levels of 255, for networks that take one: a number, one value per image [B] or a map [H, W] or
            [B, 1, H, W]; None: what the network's judge says of each image, or unknown. With a judge, a level is of the kind
            of noise that it finds, white or coarse; [B, 2, H, W] gives both.
        strength: multiplies the level that the network is told, from 0, nothing is removed, to 2. For networks without a level
            for coarse noise it multiplies what is removed.
        tile: side of a tile in pixels, without its overlap; 0 takes the whole image at once.
        precision: `fp32`, or of torch `bf16` or `auto`; sessions have their own.
        each: called after each tile, for a progress bar; see `count_tiles`.

    Raises:
        InputError: a network that gives no images, unsupported steps, a tile too small, an unknown precision, images of another
            type, shape, range or number of channels, a sigma for weights that take none, or weights that need torch without it.

    Example:
        >>> import numpy as np, rcnet
        >>> rcnet.denoise(np.zeros((48, 64, 3), np.uint8), steps=1).shape
        (48, 64, 3)
    """
    for value in given:
        if images is None and _is_images(value):
            images = value
        elif model is None and images is None:
            model = value
        elif steps is None and model is not None:
            steps = value
        else:
            raise InputError("give denoise(images, model=..., steps=...) or denoise(model, images, steps)")
    torch = sys.modules.get("torch")
    tensor = torch is not None and isinstance(images, torch.Tensor)
    floats = images.is_floating_point() if tensor else isinstance(images, np.ndarray) and images.dtype.kind == "f"
    picture = isinstance(images, np.ndarray) and images.ndim in (2, 3) and (floats or images.dtype in (np.uint8, np.uint16))
    if not picture and (images is None or not floats or images.ndim != 4 or (not tensor and images.dtype.itemsize > 8)):
        found = f"{images.dtype} {list(images.shape)}" if _is_images(images) else type(images).__name__
        raise InputError(
            f"images are float [B, C, H, W] in [0, 1], or an array [H, W] or [H, W, C] of uint8, uint16 or floats, not {found}"
        )
    channels = images.shape[1] if not picture else images.shape[2] if images.ndim == 3 else 1
    session = session_of(model if model is not None else GRAY if channels == 1 else COLOUR, precision)
    check_gives_images(session)
    options: dict[str, Any] = {"strength": strength, "tile": tile, "each": each}
    setting = session.per_cell(steps)
    if tensor:
        from rcnet.deploy.torch_session import denoise_tensor

        return denoise_tensor(session, images, setting, sigma, **options)
    images = np.ascontiguousarray(images, images.dtype.newbyteorder("="))
    if floats:
        check_range(images)
    if torch is not None and isinstance(sigma, torch.Tensor):
        sigma = sigma.numpy(force=True)
    if picture:
        pixels = images if images.ndim == 3 else images[:, :, None]
        work = Work(pixels, sigma, strength)
        return on_pixels(session, work, setting, tile=tile, each=each).pixels.reshape(images.shape)
    return denoise_images(session, images, setting, sigma=sigma, **options)


def _is_images(value: object) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "ndim")


def denoise_pixels(
    model: "Model",
    pixels: np.ndarray,
    steps: Steps = None,
    *,
    white: float | Curve | None = None,
    tile: int = TILE,
    precision: str = "fp32",
    each: Callable[[], Any] = lambda: None,
    **work: Any,
) -> Denoised:
    """As `runtime.denoise.denoise_pixels`, of a network at these steps.

    Args:
        white: the value of the pixels that stands for 1, or the curve to it.
        work: the other fields of `runtime.denoise.Work`.
    """
    session = session_of(model, precision)
    curve = white if white is None or isinstance(white, Curve) else Curve(white)
    return on_pixels(session, Work(pixels, curve=curve, **work), session.per_cell(steps), tile=tile, each=each)

"""Denoising: patches of images with noise; PSNR and SSIM by the protocol of BSD68."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rcnet.about import Noise
from rcnet.data.camera import camera_file, through_jpeg
from rcnet.data.colours import vary_colours
from rcnet.data.drawn import SIDE as DRAWN
from rcnet.data.drawn import draw_pictures
from rcnet.data.images import list_images, pixels_of, random_patches, read_folder, read_image, read_pair, split_folder, to_tensor
from rcnet.data.noise import add_noise, check_sigma, draw_levels
from rcnet.errors import InputError
from rcnet.evaluation.denoise import check_sizes, denoising_results, pair_results
from rcnet.evaluation.harmless import harm_results
from rcnet.network import RecurrentNet
from rcnet.setting import Steps
from rcnet.tasks.task import Batch, CalibrationBatch, Kind, Measuring, Rows, Setup, Task, checksum, held_out, number, spread

MEASURED_AT = (15.0, 25.0, 50.0)  # noise levels, if the recipe's range contains them
IMAGES, CROP = 16, 128  # images for calibration, and the side in pixels of their middle; also for measuring along a run
SMALLEST = 16  # side in pixels of the smallest picture that a camera is simulated for


@dataclass(frozen=True)
class Denoising:
    """Patches and noise. Numbers up to 1 are fractions."""

    patch: int = number(64, 1)  # side in pixels
    sigma: float | tuple[float, float] = number(25.0, 0, 255)  # in levels of 255; [low, high] draws one per patch
    as_8bit: bool | float = number(False, 0, 1)  # of batches that are clipped and rounded with their noise, as files are
    jpeg: float = number(0.0, 0, 1)  # of batches that go through JPEG with their noise
    clean: float = number(0.0, 0, 1)  # of patches without noise
    camera: float = number(0.0, 0, 1)  # of batches with the noise of a simulated camera's file (data/camera.py) instead
    # Of batches with pairs of noisy and clean photographs, from `pairs/noisy` and `pairs/clean` beside `train`, or with the noise
    # of such pairs on other pictures.
    pairs: float = number(0.0, 0, 1)
    gray: float = number(0.0, 0, 1)  # of the other batches that have the same noise in all channels
    colours: float = number(0.0, 0, 1)  # of patches with other colours, some dark (data/colours.py)
    drawn: float = number(0.0, 0, 0.9)  # of images that are drawn: flat areas, ramps and text
    unknown: float = number(0.5, 0, 1)  # of patches whose level is not given to a network that takes one
    overstated: float = number(0.0, 0, 1)  # of given levels that are 1 to 2.5 times too large, plus up to 3 levels
    one_level: bool = False  # all patches of a batch have the same level
    # squared: half the squared error; weighted: that of each patch, divided by about its noise level (1 at sigma 25), so that
    # weak noise counts too; charbonnier: sqrt(error^2 + 0.001^2).
    loss: Literal["squared", "weighted", "charbonnier"] = "squared"
    # Images, evenly spaced, that are held out from training to measure on; -1: a tenth, at most 16, in a run that measures along
    # its way (then on the middle of each), else none.
    holdout: int = number(-1, -1)


def begin(config: Denoising, setup: Setup) -> Task:
    """Random patches of a folder of images, with noise; the loss is summed over pixels and colours.

    Validation: PSNR and SSIM of the images held out.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from rcnet import About
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (64, 64)).save(f"{folder}/1.png")
        ...     setup = Setup(Path(folder), torch.device("cpu"), About(channels=1), batch=4, seed=0, precision="fp32")
        ...     task = begin(Denoising(patch=32), setup)
        >>> task.batch(np.random.default_rng(0), 0).x.shape
        torch.Size([4, 1, 32, 32])
    """
    data, device, sigma = setup.data, setup.device, check_sigma(config.sigma)
    channels = setup.about.channels
    if channels not in (1, 3):
        raise InputError(f"this network takes images of {channels} channels; training images are gray (1) or colour (3)")
    folder = split_folder(data, "train")
    images = read_folder(folder, channels)
    held = held_out(len(images), config.holdout, setup.measures)
    training = [image for i, image in enumerate(images) if i not in held]
    validation = [images[i] if config.holdout > 0 else middle(images[i]) for i in sorted(held)]
    check_sizes(validation)
    smallest = min(min(image.shape[:2]) for image in training)
    if smallest < config.patch:
        raise InputError(
            f"{folder} contains an image smaller than the training patch of {config.patch} pixels: leave it out, or "
            f"denoising.patch is at most {smallest}"
        )
    if config.drawn and config.patch > DRAWN:
        raise InputError(f"drawn pictures have {DRAWN} pixels a side: denoising.patch is at most {DRAWN}, or denoising.drawn=0")
    drawn = draw_pictures(round(len(training) * config.drawn / (1 - config.drawn)), channels, setup.seed)
    seen = {"images": len(training)} | ({"drawn": len(drawn)} if drawn else {})
    training += drawn
    pixels = pixels_of(training, device)
    pairs = _training_pairs(data, folder, channels, config.patch) if config.pairs else []
    photographs = pixels_of(pairs, device) if pairs else None
    seen |= {"pairs": len(pairs)} if pairs else {}

    def batch(rng: np.random.Generator, iteration: int) -> Batch:
        clean = vary_colours(random_patches(pixels, config.patch, setup.batch, rng), rng, config.colours)
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        if photographs is not None and rng.random() < config.pairs:
            noisy, target = real_noise(random_patches(photographs, config.patch, setup.batch, rng), clean, rng)
            level, coarse = level_between(noisy, target), torch.ones(len(clean), dtype=torch.bool, device=device)
        else:
            noisy, target, level, coarse = noisy_patches(clean, config, rng, generator)
        if not setup.about.takes_level:
            return Batch(noisy, target, None, level)
        unknown, overstated = (
            torch.rand(len(level), generator=generator, device=device) < part for part in (config.unknown, config.overstated)
        )
        more, extra = torch.rand((2, len(level)), generator=generator, device=device)
        given = torch.where(unknown, -1.0, torch.where(overstated, level * (1 + 1.5 * more) + 3 * extra, level))
        if setup.about.levels == 2:
            both = torch.stack([given * ~coarse, given * coarse], 1)
            return Batch(noisy, target, both[:, :, None, None], level)
        return Batch(noisy, target, given, level)

    def loss(output: Tensor, batch: Batch) -> Tensor:
        error = output.float() - batch.target
        if config.loss == "charbonnier":
            return 0.03 * ((error.square() + 1e-6).sqrt() - 1e-3).sum() / len(error)  # gradients as large as those of the square
        squared = error.square().sum((1, 2, 3)) / 2
        if config.loss == "weighted" and batch.level is not None:
            squared = squared * ((25**2 + 4**2) / (batch.level.square() + 4**2)).sqrt()
        return squared.mean()

    def evaluate(model: RecurrentNet) -> Rows:
        low, high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        levels = [level for level in MEASURED_AT if low <= level <= high] or [(low + high) / 2]
        levels = levels if isinstance(sigma, tuple) else [sigma]
        as_8bit = config.as_8bit > 0.5
        results = [(at, denoising_results(model, validation, at, model.settings, as_8bit=as_8bit)) for at in levels if validation]
        return [{"sigma": at, **row} for at, rows in results for row in rows]

    return Task(
        batch,
        loss,
        lambda output: output.float(),
        evaluate,
        {"folder": folder.resolve().name, **seen, "crc32": checksum(image.tobytes() for image in [*training, *pairs])},
        {"noise": {"sigma": config.sigma, "as_8bit": config.as_8bit > 0.5, "camera": config.camera}},
        held=len(held),
    )


def middle(image: np.ndarray, side: int = CROP) -> np.ndarray:
    """The middle of an image [H, W, C], at most `side` pixels high and wide.

    Example:
        >>> middle(np.zeros((321, 100, 3))).shape
        (128, 100, 3)
    """
    top, left = (max(length - side, 0) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def noisy_patches(
    clean: Tensor, config: Denoising, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy patches and their targets, [B, C, H, W]; the levels of their noise, [B] in levels of 255; and whether it is coarse,
    [B]: a camera's, or compressed.

    Example:
        >>> clean, draws = torch.rand(4, 1, 32, 32), torch.Generator().manual_seed(0)
        >>> noisy, target, level, coarse = noisy_patches(clean, Denoising(sigma=25.0), np.random.default_rng(0), draws)
        >>> noisy.shape, level.tolist(), coarse.any().item()
        (torch.Size([4, 1, 32, 32]), [25.0, 25.0, 25.0, 25.0], False)
    """
    by_camera, as_8bit, by_jpeg, in_gray = (
        rng.random() < part for part in (config.camera, config.as_8bit, config.jpeg, config.gray)
    )
    if by_camera:
        noisy, target = (
            picture.to(clean.device)
            for picture in camera_file(clean.cpu(), rng, torch.Generator().manual_seed(int(rng.integers(2**62))))
        )
    else:
        levels = draw_levels(config.sigma, len(clean), generator)
        levels = levels[:1].expand(len(clean)) if config.one_level else levels
        if config.clean:
            levels = torch.where(torch.rand(len(clean), generator=generator, device=clean.device) < config.clean, 0.0, levels)
        noisy, target = add_noise(clean, levels, generator, as_8bit, in_gray), clean
        if by_jpeg:
            noisy = through_jpeg(noisy.cpu(), rng).to(clean.device)
    coarse = torch.full((len(clean),), by_camera or by_jpeg, device=clean.device)
    if by_camera or by_jpeg:
        levels = level_between(noisy, target)
    return noisy, target, levels, coarse


def level_between(noisy: Tensor, target: Tensor) -> Tensor:
    """The root mean square difference, [B] in levels of 255, of pictures [B, C, H, W] in [0, 1].

    Example:
        >>> level_between(torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 25 / 255)).round(decimals=3).item()
        25.0
    """
    return 255 * (noisy - target).square().mean((1, 2, 3)).sqrt()


def real_noise(pairs: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy patches and their targets, [B, C, H, W] in [0, 1], from patches of pairs.

    In half of the calls they are the photographs themselves; otherwise their noise, 0.5 to 2 times as strong, is added to clean
    patches, rounded to 8 bits. Two exposures of one scene differ a little in brightness, which is no noise: each channel of the
    clean photograph gets the mean of the noisy one.

    Args:
        pairs: [B, 2 C, H, W], noisy and clean.
        clean: [B, C, H, W].

    Example:
        >>> noisy, target = real_noise(torch.rand(2, 6, 16, 16), torch.rand(2, 3, 16, 16), np.random.default_rng(0))
        >>> noisy.shape == target.shape == (2, 3, 16, 16)
        True
    """
    noisy, target = pairs.chunk(2, 1)
    if rng.random() < 0.5:  # other colours of the same light: any order of the channels
        order = torch.from_numpy(rng.permutation(noisy.shape[1])).to(noisy.device)
        noisy, target = noisy[:, order], target[:, order]
    target = target + (noisy - target).mean((2, 3), keepdim=True)
    if rng.random() < 0.5:
        return noisy, target
    strength = torch.from_numpy(2 ** rng.uniform(-1, 1, (len(clean), 1, 1, 1))).to(noisy)
    return ((clean + strength * (noisy - target)).clamp(0, 1) * 255).round() / 255, clean


def _training_pairs(data: Path, folder: Path, channels: int, patch: int) -> list[np.ndarray]:
    """Noisy and clean photographs of `data/pairs`, uint8 [H, W, 2 channels]."""
    pairs_folder = data / "pairs"
    if not pairs_folder.is_dir() or folder == data:
        raise InputError(f"denoising.pairs needs {pairs_folder}/noisy and {pairs_folder}/clean beside {data / 'train'}")
    files = list_images(pairs_folder / "noisy"), list_images(pairs_folder / "clean")
    if [file.stem for file in files[0]] != [file.stem for file in files[1]]:
        raise InputError(f"{pairs_folder}/noisy and {pairs_folder}/clean contain different names: a pair has one name in both")
    pairs = [np.concatenate(read_pair(a, b, channels), 2) for a, b in zip(*files, strict=True)]
    if min(min(pair.shape[:2]) for pair in pairs) < patch:
        raise InputError(f"{pairs_folder} contains an image smaller than the training patch of {patch} pixels")
    return pairs


def measuring(
    model: RecurrentNet,
    data: str | Path | Sequence[np.ndarray] | None = None,
    *,
    sigma: float | None = None,
    as_8bit: bool = False,
    blind: bool = False,
    harm: bool = False,
    noisy: str | Path | None = None,
    clean: str | Path | None = None,
) -> Measuring:
    """Clean images with the noise of the protocol of BSD68, or with none; or pairs of noisy and clean images.

    Args:
        data: a folder of clean images (or `test` in it), or uint8 arrays [H, W, C].
        sigma: noise level in levels of 255, default 25; a network that takes a level is given it, unless `blind`. With `harm` and
            pairs, which add no noise: the level that the network is given, default none.
        as_8bit: the noisy images are clipped and rounded, as files are.
        harm: no noise is added: how the network changes these images and the cards of `evaluation.harmless`.
        noisy, clean: folders of pairs instead of data, matched by name, else by order.

    Example:
        >>> from rcnet import load
        >>> on = measuring(load("r3.bsd-gray-25"), [np.full((16, 16, 1), 128, np.uint8)])
        >>> on.about["sigma"], on.size, sorted(on.rows([1])[0])
        (25.0, (16, 16), ['psnr', 'ssim', 'steps'])
    """
    if sigma is not None:
        check_sigma(sigma)
    if harm or noisy is not None:
        if blind and sigma is not None:
            raise InputError("blind and sigma exclude each other")
        if as_8bit or (harm and noisy is not None):
            raise InputError("harm and pairs add no noise, so as_8bit does not apply; use only one of them")
        if sigma is not None and not model.about.takes_level:
            raise InputError("these weights take no noise level: leave out sigma")
    if noisy is not None and clean is not None:
        return _pairs(model, Path(noisy), Path(clean), sigma)
    if data is None:
        raise InputError("a denoiser is measured on images, or on pairs of noisy and clean images")
    name = ""
    if isinstance(data, str | Path):
        folder = split_folder(data, "test")
        data, name = read_folder(folder, model.about.channels), folder.name or folder.resolve().name
    images, level = list(data), 25.0 if sigma is None else sigma

    def rows(steps: Sequence[Steps], *, precision: str = "fp32", each: Callable[..., object] = lambda *_: None) -> Rows:
        if harm:
            return harm_results(model, images, steps, sigma=sigma, precision=precision, each=each)
        return denoising_results(model, images, level, steps, as_8bit=as_8bit, blind=blind, precision=precision, each=each)

    if harm:
        about = {
            "data": f"{name} without noise",
            "images": len(images),
            **({"blind": True} if sigma is None else {"told": sigma}),
        }
    else:
        about = {"data": name, "images": len(images), "sigma": level, "as_8bit": as_8bit}
        about |= {"blind": blind} if model.about.takes_level else {}
    return Measuring(about, _largest(images), rows)


def _pairs(model: RecurrentNet, noisy: Path, clean: Path, sigma: float | None) -> Measuring:
    files = list_images(noisy), list_images(clean)
    names = [[file.stem for file in part] for part in files]
    if len(names[0]) != len(names[1]):
        raise InputError(f"{noisy} contains {len(names[0])} images and {clean} {len(names[1])}: pairs need as many of each")
    by_order = f"names differ, so images are paired in order: the first pair is {files[0][0].name}, {files[1][0].name}"
    pairs = [read_pair(a, b, model.about.channels) for a, b in zip(*files, strict=True)]

    def rows(steps: Sequence[Steps], *, precision: str = "fp32", each: Callable[..., object] = lambda *_: None) -> Rows:
        return pair_results(model, pairs, steps, sigma=sigma, precision=precision, each=each)

    about = {"data": f"{noisy.resolve().name}, pairs", "images": len(pairs)}
    if model.about.takes_level:
        about |= {"blind": True} if sigma is None else {"blind": False, "told": sigma}
    return Measuring(about, _largest([image for image, _ in pairs]), rows, by_order if names[0] != names[1] else "")


def _largest(images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Height and width of the image with the most pixels."""
    height, width = max((image.shape[:2] for image in images), key=math.prod)
    return height, width


def calibration(model: RecurrentNet, folder: str | Path) -> Iterator[CalibrationBatch]:
    """The middle of 16 images of a folder (or of `train` in it), with noise as the network was made for, cameras' too.

    A network that takes the noise level gets pairs: images and maps `sigma` [B, 1, H, W]. The left half of a map holds the level
    and the right half -1 for unknown, so that the range covers both. For a network that takes two levels the maps, [B, 2, H, W],
    hold both everywhere.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from rcnet import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (300, 200)).save(f"{folder}/1.png")
        ...     [batch.shape for batch in calibration(load("r3.bsd-gray-25"), folder)]
        [(1, 1, 128, 128)]
    """
    return _noisy(model, list_images(split_folder(folder, "train")))


def _noisy(model: RecurrentNet, files: Sequence[Path]) -> Iterator[CalibrationBatch]:
    sigma, as_8bit, camera = model.about.noise or Noise()
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for index in spread(len(files), IMAGES):
        clean = to_tensor(middle(read_image(files[index], model.about.channels)))
        coarse = rng.random() < camera and min(clean.shape[-2:]) >= SMALLEST
        if coarse:
            noisy, target = camera_file(clean, rng, generator)
            level = level_between(noisy, target)
        else:
            level = draw_levels(sigma, 1, generator) if isinstance(sigma, tuple) else torch.tensor([sigma])
            noisy = add_noise(clean, level, generator, as_8bit)
        levels = noisy.new_zeros(1, model.about.levels, *noisy.shape[-2:])
        levels[:, int(coarse and model.about.levels == 2) :][:, :1] = float(level)
        if model.about.levels == 1:
            levels[..., levels.shape[-1] // 2 :] = -1
        yield (noisy.numpy(), levels.numpy()) if model.about.takes_level else noisy.numpy()


DENOISE = Kind(
    Denoising,
    (321, 481),
    {
        "PSNR dB": ("psnr", 3),
        "SSIM": ("ssim", 4),
        "clean dB": ("clean", 2),
        "worst dB": ("clean_worst", 2),
        "page dB": ("page", 2),
        "screen dB": ("screen", 2),
        "texture dB": ("texture", 2),
        "night dB": ("night", 2),
        "flat, levels": ("flat", 2),
        "bias, levels": ("flat_noisy", 2),
    },
    begin,
    measuring,
    calibration,
    gives="image",
    pipeline="image-to-image",
    use="clean = rcnet.denoise(model, images{steps})",
    limit="It does not sharpen, deblur or enlarge, and what it leaves is no evidence of fine detail.",
    command="denoise IN --model {weights}",
    finetune="finetune_denoiser",
)

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
from rcnet.tasks.task import Batch, Fed, Kind, Measuring, Rows, Setup, Task, checksum, held_out, number, spread

MEASURED_AT = (15.0, 25.0, 50.0)  # levels of 255, of those that a range holds
IMAGES, CROP = 16, 128  # taken of a folder to calibrate on; pixels a side
SMALLEST = 16  # pixels a side that a camera photographs


@dataclass(frozen=True)
class Denoising:
    """Patches and noise."""

    patch: int = number(64, 1)  # pixels, a side
    sigma: float | tuple[float, float] = number(25.0, 0, 255)  # in levels of 255; [low, high] draws one for each patch
    as_8bit: bool | float = number(False, 0, 1)  # noisy patches are clipped and rounded, as files are; or this part of batches
    jpeg: float = number(0.0, 0, 1)  # this part of the batches goes through JPEG with its noise
    clean: float = number(0.0, 0, 1)  # this part of the patches has no noise
    camera: float = number(0.0, 0, 1)  # this part of the batches has the noise of a camera's file (data/camera.py) instead
    # This part of the batches holds pairs of noisy and clean photographs, from `pairs/noisy` and `pairs/clean` beside `train`, or
    # the noise of such pairs on other pictures.
    pairs: float = number(0.0, 0, 1)
    gray: float = number(0.0, 0, 1)  # this part of the other batches has the same noise in all channels
    colours: float = number(0.0, 0, 1)  # this part of the patches has other colours, darks too (data/colours.py)
    drawn: float = number(0.0, 0, 0.9)  # this part of the images is drawn: flat areas, ramps and text
    unknown: float = number(0.5, 0, 1)  # this part of the patches does not tell its level to a network that takes it
    overstated: float = number(0.0, 0, 1)  # this part of those that tell it tell 1 to 2.5 times as much, and up to 3 levels more
    one_level: bool = False  # all patches of a batch have one level
    # Half the squared error; the same, each patch's divided by the square root of its noise's variance (and of 4 levels, at
    # sigma 25 by 1), so that weak noise counts too; or Charbonnier's, sqrt(error^2 + 0.001^2).
    loss: Literal["squared", "weighted", "charbonnier"] = "squared"
    holdout: int = number(0, 0)  # this many of the training images, evenly spaced, are kept for validation


def begin(config: Denoising, setup: Setup) -> Task:
    """Random patches of a folder of images, with noise; the loss is summed over pixels and colours.

    Validation, where `holdout` images are kept from training: PSNR and SSIM of those.
    """
    data, device, sigma = setup.data, setup.device, check_sigma(config.sigma)
    channels, told = setup.about.channels, setup.about.takes_level
    if channels not in (1, 3):
        raise InputError(f"this network takes images of {channels} channels, and there are gray (1) and colour (3) to train on")
    folder = split_folder(data, "train")
    images = read_folder(folder, channels)
    if config.holdout >= len(images):
        raise InputError(f"holdout = {config.holdout} leaves none of the {len(images)} images in {data} to train on")
    kept = held_out(len(images), config.holdout)
    training = [image for i, image in enumerate(images) if i not in kept]
    validation = [image for i, image in enumerate(images) if i in kept]
    check_sizes(validation)
    smallest = min(min(image.shape[:2]) for image in training)
    if smallest < config.patch:
        raise InputError(
            f"{folder} holds an image smaller than the training patch of {config.patch} pixels: leave it out, or "
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
        if not told:
            return Batch(noisy, target, None, level)
        silent, over = (
            torch.rand(len(level), generator=generator, device=device) < part for part in (config.unknown, config.overstated)
        )
        more, extra = torch.rand((2, len(level)), generator=generator, device=device)
        tells = torch.where(silent, -1.0, torch.where(over, level * (1 + 1.5 * more) + 3 * extra, level))
        if setup.about.levels == 2:
            both = torch.stack([tells * ~coarse, tells * coarse], 1)
            return Batch(noisy, target, both[:, :, None, None], level)
        return Batch(noisy, target, tells, level)

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
    )


def noisy_patches(
    clean: Tensor, config: Denoising, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy patches and their targets, [B, C, H, W], and of their noise the levels, [B] in levels of 255, and whether it is
    coarse, [B]: a camera's, or compressed."""
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
    """The root mean square of what differs, [B] in levels of 255, of pictures [B, C, H, W] in [0, 1]."""
    return 255 * (noisy - target).square().mean((1, 2, 3)).sqrt()


def real_noise(pairs: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy patches and their targets, [B, C, H, W] in [0, 1], from patches of pairs.

    In half of the calls they are the photographs themselves; otherwise their noise, 0.5 to 2 times as strong, is added to clean
    patches, rounded to 8 bits. Two exposures of one scene differ a little in brightness, which is no noise: each channel of the
    clean photograph gets the mean of the noisy one.

    Args:
        pairs: [B, 2 C, H, W], noisy and clean.
        clean: [B, C, H, W].
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


def _training_pairs(data: str | Path, folder: Path, channels: int, patch: int) -> list[np.ndarray]:
    """Noisy and clean photographs of `data/pairs`, uint8 [H, W, 2 channels]."""
    place = Path(data) / "pairs"
    if not place.is_dir() or folder == Path(data):
        raise InputError(f"denoising.pairs asks for {place}/noisy and {place}/clean beside {Path(data) / 'train'}; or it is 0")
    files = list_images(place / "noisy"), list_images(place / "clean")
    if [file.stem for file in files[0]] != [file.stem for file in files[1]]:
        raise InputError(f"{place}/noisy and {place}/clean hold files of different names: a pair has one name in both")
    pairs = [np.concatenate(read_pair(a, b, channels), 2) for a, b in zip(*files, strict=True)]
    if min(min(pair.shape[:2]) for pair in pairs) < patch:
        raise InputError(f"{place} holds an image smaller than the training patch of {patch} pixels")
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
        sigma: of the noise, in levels of 255, 25 unless given; a network that takes the level is told it, unless `blind`. Where
            no noise is added: what it is told, nothing unless given.
        as_8bit: the noisy images are clipped and rounded first, as files are.
        harm: no noise is added: what becomes of these images and of the cards of `evaluation.harmless`.
        noisy, clean: folders of pairs, matched by name, else by order, instead of data.
    """
    if sigma is not None:
        check_sigma(sigma)
    if harm or noisy is not None:
        if blind and sigma is not None:
            raise InputError("blind or sigma: the network is told the level or not")
        if as_8bit or (harm and noisy is not None):
            raise InputError("clean images and pairs get no noise, so that it is not clipped, and are measured one or the other")
        if sigma is not None and not model.about.takes_level:
            raise InputError("these weights take no noise level: leave out sigma")
    if noisy is not None and clean is not None:
        return _pairs(model, Path(noisy), Path(clean), sigma)
    if data is None:
        raise InputError("a denoiser is measured on images, or on pairs of noisy and clean ones")
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
        raise InputError(f"{noisy} holds {len(names[0])} images and {clean} {len(names[1])}: pairs need as many of each")
    by_order = f"names differ, so pairs go by order: the first is {files[0][0].name}, {files[1][0].name}"
    pairs = [read_pair(a, b, model.about.channels) for a, b in zip(*files, strict=True)]

    def rows(steps: Sequence[Steps], *, precision: str = "fp32", each: Callable[..., object] = lambda *_: None) -> Rows:
        return pair_results(model, pairs, steps, sigma=sigma, precision=precision, each=each)

    about = {"data": f"{noisy.resolve().name}, pairs", "images": len(pairs)}
    if model.about.takes_level:
        about |= {"blind": True} if sigma is None else {"blind": False, "told": sigma}
    return Measuring(about, _largest([image for image, _ in pairs]), rows, by_order if names[0] != names[1] else "")


def _largest(images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Height and width of the one of most pixels."""
    height, width = max((image.shape[:2] for image in images), key=math.prod)
    return height, width


def calibration(model: RecurrentNet, folder: str | Path) -> Iterator[Fed]:
    """The middle of 16 images of a folder (or of `train` in it), with the noise that the network was made for, of cameras too.

    A network that takes the noise level gets pairs, images and maps `sigma` [B, 1, H, W], which tell it in the left half and say
    in the right that it is unknown, so that the range of each holds what stands for that. One that takes two levels is told
    both, [B, 2, H, W], everywhere.
    """
    return _noisy(model, list_images(split_folder(folder, "train")))


def _noisy(model: RecurrentNet, files: Sequence[Path]) -> Iterator[Fed]:
    sigma, as_8bit, camera = model.about.noise or Noise()
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for place in spread(len(files), IMAGES):
        image = read_image(files[place], model.about.channels)
        top, left = (max(side - CROP, 0) // 2 for side in image.shape[:2])
        clean = to_tensor(image[top : top + CROP, left : left + CROP])
        coarse = rng.random() < camera and min(clean.shape[-2:]) >= SMALLEST
        if coarse:
            noisy, target = camera_file(clean, rng, generator)
            level = level_between(noisy, target)
        else:
            level = draw_levels(sigma, 1, generator) if isinstance(sigma, tuple) else torch.tensor([sigma])
            noisy = add_noise(clean, level, generator, as_8bit)
        told = noisy.new_zeros(1, model.about.levels, *noisy.shape[-2:])
        told[:, int(coarse and model.about.levels == 2) :][:, :1] = float(level)
        if model.about.levels == 1:
            told[..., told.shape[-1] // 2 :] = -1
        yield (noisy.numpy(), told.numpy()) if model.about.takes_level else noisy.numpy()


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

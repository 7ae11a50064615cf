"""Simulated camera noise: a clean picture is converted back to sensor data, gets noise there, and is developed again.

After Brooks et al. 2019, "Unprocessing images for learned raw denoising", and Guo et al. 2019, "CBDNet": inverse gamma, colour
matrix and white balance, a Bayer mosaic, shot and read noise, then demosaicing and the forward pipeline, with the smoothing and
resampling that make the noise of cameras coarse, and JPEG. The target is the output of the same camera without noise.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rcnet.data.colours import gray_of

# Malvar, He & Cutler 2004, "High-quality linear interpolation for demosaicing of Bayer-patterned color images", in eighths:
# green at red or blue; red at green in a row of reds; red at green in a column of reds (its transpose); red at blue.
_GREEN = [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]
_ROW = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
_ACROSS = [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]

# Columns: lightness, red against blue, green against both; orthonormal.
_OPPONENT = torch.tensor([[1, 1, -1], [1, 0, 2], [1, -1, -1]]) / torch.tensor([3.0, 2.0, 6.0]).sqrt()


class Camera(NamedTuple):
    """A camera with one exposure.

    Attributes:
        gamma: of the tone curve, out = linear ** (1 / gamma).
        gains: of the white balance, [3]; that of green is 1.
        mixing: [3, 3], the response of the sensor's colours to linear RGB; its rows sum to 1.
        exposure: the fraction of the sensor's range that white reaches, before the white balance.
        shot: variance of the noise is shot * signal + read, for a signal in [0, 1].
        read: see `shot`.
        phase: row and column, 0 or 1, of the first red pixel of the mosaic.
    """

    gamma: float
    gains: Tensor
    mixing: Tensor
    exposure: float
    shot: float
    read: float
    phase: tuple[int, int]


def draw_camera(rng: np.random.Generator) -> Camera:
    """Draws a camera, with gains, crosstalk and shot and read noise in the ranges measured by Brooks et al."""
    mixing = np.eye(3) + 0.25 * rng.random((3, 3))
    shot = math.exp(rng.uniform(math.log(3e-5), math.log(8e-3)))
    read = math.exp(2.18 * math.log(shot) + 1.2 + 0.26 * rng.standard_normal())
    return Camera(
        gamma=rng.uniform(1.8, 2.4),
        gains=torch.tensor([rng.uniform(1.5, 2.4), 1.0, rng.uniform(1.4, 2.2)], dtype=torch.float32),
        mixing=torch.from_numpy(mixing / mixing.sum(1, keepdims=True)).float(),
        exposure=rng.uniform(0.6, 1.0),
        shot=shot,
        read=read,
        phase=(int(rng.integers(2)), int(rng.integers(2))),
    )


def expose(clean: Tensor, camera: Camera) -> Tensor:
    """The noise-free sensor mosaic [B, H, W] for pictures [B, 3, H, W] in [0, 1]."""
    linear = clean.clamp(0, 1) ** camera.gamma
    sensor = torch.einsum("ij,njhw->nihw", camera.mixing, linear) / camera.gains.view(3, 1, 1) * camera.exposure
    return (sensor * mosaic(clean.shape[-2], clean.shape[-1], camera.phase)).sum(1)


def sensor_noise(raw: Tensor, camera: Camera, generator: torch.Generator) -> Tensor:
    """The mosaic with shot and read noise, clipped to the sensor's range."""
    deviation = (camera.shot * raw.clamp(min=0) + camera.read).sqrt()
    return (raw + torch.randn(raw.shape, generator=generator) * deviation).clamp(0, 1)


def develop(raw: Tensor, camera: Camera) -> Tensor:
    """Develops mosaics [B, H, W] to pictures [B, 3, H, W] in [0, 1]: demosaicing, white balance, colour matrix, gamma."""
    rgb = demosaic(raw, camera.phase) * camera.gains.view(3, 1, 1) / camera.exposure
    linear = torch.einsum("ij,njhw->nihw", torch.linalg.inv(camera.mixing), rgb)
    return linear.clamp(1e-8, 1) ** (1 / camera.gamma)


def mosaic(height: int, width: int, phase: tuple[int, int]) -> Tensor:
    """Which pixels are red, green and blue, [3, H, W] of 0 and 1, in the Bayer pattern."""
    y, x = torch.arange(height)[:, None] + phase[0], torch.arange(width)[None] + phase[1]
    red, blue = ((y % 2 == k) & (x % 2 == k) for k in (0, 1))
    return torch.stack([red, ~red & ~blue, blue]).float()


def demosaic(raw: Tensor, phase: tuple[int, int]) -> Tensor:
    """RGB [B, 3, H, W] from a Bayer mosaic [B, H, W], by the gradient-corrected linear filters of Malvar et al."""
    row = torch.tensor(_ROW)
    kernels = torch.stack([torch.tensor(_GREEN), row, row.T, torch.tensor(_ACROSS)])[:, None] / 8
    green, in_row, in_column, across = F.conv2d(F.pad(raw[:, None], (2,) * 4, mode="reflect"), kernels).unbind(1)
    red, at_green, blue = mosaic(raw.shape[-2], raw.shape[-1], phase)
    rows_of_red = (red.sum(1, keepdim=True) > 0).float()
    beside_red = rows_of_red * in_row + (1 - rows_of_red) * in_column
    beside_blue = rows_of_red * in_column + (1 - rows_of_red) * in_row
    return torch.stack(
        [
            red * raw + at_green * beside_red + blue * across,
            at_green * raw + (1 - at_green) * green,
            blue * raw + at_green * beside_blue + red * across,
        ],
        1,
    )


def coarsen(noise: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise [B, 3, H, W] after a camera's smoothing or resampling: neighbours are correlated, the strength is unchanged.

    In three of four cases it is smoothed, lightness a little (some noise of a larger scale remains) and colour a lot, and the
    colour noise is weaker. JPEGs of a camera at ISO 3200 have correlations between neighbours of 0.6 to 0.8 in lightness and 0.9
    in colour (0.5 at four pixels), and half as much colour noise as lightness noise. Otherwise the noise is enlarged up to
    twofold.
    """
    before = _strength(noise)
    if rng.random() < 0.75:
        lightness = noise.mean(1, keepdim=True)
        fine, broad = _blur(lightness, rng.uniform(0.4, 1.3)), _blur(lightness, rng.uniform(1.5, 3.5))
        grain = fine / _strength(fine) + rng.uniform(0, 0.6) * broad / _strength(broad)
        colour = _blur(noise - lightness, rng.uniform(1.0, 2.8))
        coarse = grain / _strength(grain) + rng.uniform(0.25, 1.0) * colour / _strength(colour)
    else:
        height, width = noise.shape[-2:]
        small = [math.ceil(side / rng.uniform(1.0, 2.0)) for side in (height, width)]
        coarse = F.interpolate(noise[..., : small[0], : small[1]], (height, width), mode="bicubic", align_corners=False)
    return coarse * before / _strength(coarse)


def shaped_noise(clean: Tensor, rng: np.random.Generator, generator: torch.Generator, gray: float = 0.15) -> Tensor:
    """Noise [B, C, H, W] as in JPEGs of cameras, with a random spectrum, which differs between colour and lightness, and a
    strength that depends on the brightness. The scale is arbitrary.

    The lightness spectrum is (f + 0.01)^-p exp(-(f / cut)^q) for the frequency f in cycles per pixel: some noise at the scale of
    leaves, little above the cut-off of the camera's smoothing. Colour is coarser. The parameters are drawn per picture. Their
    ranges include the values of 19 pairs of one camera at ISO 3200 and 6400 (five scenes of the development set; lightness p 0.3
    to 0.7, cut 0.2 to 0.45, q 2 to 3; colour cut 0.06 to 0.12, at f = 0.05 with 0.6 to 1 of the lightness) and extend to nearly
    white noise. The strength is l^a (1 - l)^b for brightness l: a tone curve weakens noise near black and white (to 0.4 there).

    Args:
        clean: the pictures to be made noisy, [B, C, H, W] in [0, 1].
        gray: the fraction of pictures without colour noise, as film grain and scans of gray pictures.
    """
    count, channels, height, width = clean.shape

    def drawn(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1))).float()

    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    stretch = torch.exp(drawn(-0.35, 0.35))  # anisotropic, as some cameras smooth along rows or columns
    f = ((down * stretch).square() + (across / stretch).square()).sqrt()
    cut, cut_colour = torch.exp(drawn(math.log(0.15), math.log(0.7))), torch.exp(drawn(math.log(0.05), math.log(0.35)))
    lightness = (f + 0.01) ** -drawn(0, 0.9) * torch.exp(-((f / cut) ** drawn(1.5, 3)))
    colour = torch.exp(-((f / cut_colour) ** drawn(1.5, 3)))
    reference = ((0.06) ** -0.5) * drawn(0.2, 1.3)  # of colour relative to lightness at f = 0.05
    if channels == 3:
        without = torch.from_numpy(rng.random((count, 1, 1, 1)) < gray)
        colour = torch.where(without, 0.0, colour * reference)
    white = torch.fft.rfft2(torch.randn((count, channels, height, width), generator=generator))
    if channels == 1:
        noise = torch.fft.irfft2(white * lightness, s=(height, width))
    else:
        parts = torch.cat([white[:, :1] * lightness, white[:, 1:] * colour], 1)
        noise = torch.einsum("ij,njhw->nihw", _OPPONENT, torch.fft.irfft2(parts, s=(height, width)))
    level = clean.mean(1, keepdim=True).clamp(0, 1)
    shape = (level + 0.02) ** drawn(0, 0.5) * (1.02 - level) ** drawn(0, 0.6) + drawn(0, 0.3)
    return noise * shape


def _strength(noise: Tensor) -> Tensor:
    """The root mean square of each image, [B, 1, 1, 1]."""
    return noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-8)


def _scaled(noise: Tensor, rng: np.random.Generator, most: float) -> Tensor:
    """The noise with a strength drawn per image, from 1 to `most` levels of 255, evenly in the logarithm."""
    wanted = torch.from_numpy(np.exp(rng.uniform(0, math.log(most), (len(noise), 1, 1, 1))) / 255).float()
    return noise * wanted / _strength(noise)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur; `sigma` in pixels."""
    radius = max(1, math.ceil(2.5 * sigma))
    axis = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-axis.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = F.pad(x.flatten(0, 1)[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(flat, kernel), kernel.transpose(2, 3)).view_as(x)


def photograph(
    clean: Tensor, rng: np.random.Generator, generator: torch.Generator, coarse: float = 0.75
) -> tuple[Tensor, Tensor]:
    """Simulated photographs of clean pictures by one camera: noisy and noise-free, both [B, C, H, W] in [0, 1], not rounded.

    Args:
        clean: [B, C, H, W] in [0, 1]. Gray pictures are processed in colour and converted back.
        coarse: the probability that the noise is coarsened and then scaled to a random strength of 1 to 14 levels.
    """
    camera = draw_camera(rng)
    blur = math.exp(rng.uniform(math.log(0.25), math.log(1.8)))  # lenses are less sharp than a pixel, except in reduced pictures
    raw = expose(_blur(clean.expand(-1, 3, -1, -1), blur), camera)
    target = develop(raw, camera)
    noise = develop(sensor_noise(raw, camera, generator), camera) - target
    if rng.random() < coarse:
        noise = coarsen(noise, rng)
        noise = _scaled(noise, rng, 14)
    noisy = target + noise
    if clean.shape[1] == 1:
        noisy, target = gray_of(noisy), gray_of(target)
    return noisy, target


def camera_file(
    clean: Tensor, rng: np.random.Generator, generator: torch.Generator, shaped: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Noisy and noise-free pictures, both [B, C, H, W] in [0, 1]. The noisy ones have 8 bits, as in a camera's file.

    With probability `shaped` the noise is drawn by its spectrum (`shaped_noise`, 1 to 16 levels; every third picture is also
    blurred as by a lens), otherwise sensor and development are simulated (`photograph`). Half of the calls end with a JPEG.
    """
    if rng.random() < shaped:
        target = clean
        if rng.random() < 0.35:
            target = _blur(clean, rng.uniform(0.3, 0.9))
        noise = shaped_noise(target, rng, generator)
        noisy = target + _scaled(noise, rng, 16)
        if rng.random() < 0.2:  # additional white noise, as from a scanner
            noisy = noisy + torch.randn(noisy.shape, generator=generator) * rng.uniform(0, 6) / 255
    else:
        noisy, target = photograph(clean, rng, generator)
    noisy = (noisy.clamp(0, 1) * 255).round() / 255
    return (through_jpeg(noisy, rng, (70, 100)) if rng.random() < 0.5 else noisy), target


def through_jpeg(pictures: Tensor, rng: np.random.Generator, qualities: tuple[int, int] = (50, 100)) -> Tensor:
    """Pictures [B, 1 or 3, H, W] after JPEG compression, each with a random quality in the range and a random subsampling."""
    results = []
    for pixels in (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        options = {"quality": int(rng.integers(qualities[0], qualities[1] + 1)), "subsampling": int(rng.integers(3))}
        Image.fromarray(np.ascontiguousarray(pixels.squeeze())).save(file, "JPEG", **options)
        results.append(np.asarray(Image.open(file)).reshape(pixels.shape))
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).float() / 255

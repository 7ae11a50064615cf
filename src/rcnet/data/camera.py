"""Camera noise, simulated: a clean picture goes back to the sensor, gets its noise there, and is developed again.

After Brooks et al. 2019, "Unprocessing images for learned raw denoising", and Guo et al. 2019, "CBDNet": inverse gamma, colour
matrix and white balance backwards, a Bayer mosaic, shot and read noise, demosaicing, all of it forwards, the smoothing and
resampling by which cameras make their noise coarse, JPEG. The target is what the same camera makes of the same light without
noise.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Malvar, He & Cutler 2004, "High-quality linear interpolation for demosaicing of Bayer-patterned color images", in eighths:
# green at red or blue; red at green in a row of reds; red at green in a column of reds (its transpose); red at blue.
_GREEN = [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]
_ROW = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
_ACROSS = [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]

# Columns: lightness, red against blue, green against both; orthonormal.
_OPPONENT = torch.tensor([[1, 1, -1], [1, 0, 2], [1, -1, -1]]) / torch.tensor([3.0, 2.0, 6.0]).sqrt()


class Camera(NamedTuple):
    """One camera and exposure.

    Attributes:
        gamma: of the tone curve, out = linear ** (1 / gamma).
        gains: of the white balance, [3]; that of green is 1.
        mixing: [3, 3], what the sensor's colours see of linear RGB; its rows sum to 1.
        exposure: the part of the sensor's range that white reaches, before the white balance.
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
    """A camera: gains, crosstalk and the range of shot and read noise as Brooks et al. measured them."""
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
    """The mosaic that the sensor holds, [B, H, W], without noise, of pictures [B, 3, H, W] in [0, 1]."""
    linear = clean.clamp(0, 1) ** camera.gamma
    sensor = torch.einsum("ij,njhw->nihw", camera.mixing, linear) / camera.gains.view(3, 1, 1) * camera.exposure
    return (sensor * mosaic(clean.shape[-2], clean.shape[-1], camera.phase)).sum(1)


def sensor_noise(raw: Tensor, camera: Camera, generator: torch.Generator) -> Tensor:
    """The mosaic with shot and read noise, clipped to the sensor's range."""
    deviation = (camera.shot * raw.clamp(min=0) + camera.read).sqrt()
    return (raw + torch.randn(raw.shape, generator=generator) * deviation).clamp(0, 1)


def develop(raw: Tensor, camera: Camera) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] of mosaics [B, H, W]: demosaicing, white balance, colour matrix, gamma."""
    rgb = demosaic(raw, camera.phase) * camera.gains.view(3, 1, 1) / camera.exposure
    linear = torch.einsum("ij,njhw->nihw", torch.linalg.inv(camera.mixing), rgb)
    return linear.clamp(1e-8, 1) ** (1 / camera.gamma)


def mosaic(height: int, width: int, phase: tuple[int, int]) -> Tensor:
    """Which pixels are red, green and blue, [3, H, W] of 0 and 1, in the Bayer pattern."""
    y, x = torch.arange(height)[:, None] + phase[0], torch.arange(width)[None] + phase[1]
    red, blue = ((y % 2 == k) & (x % 2 == k) for k in (0, 1))
    return torch.stack([red, ~red & ~blue, blue]).float()


def demosaic(raw: Tensor, phase: tuple[int, int]) -> Tensor:
    """RGB [B, 3, H, W] of a Bayer mosaic [B, H, W], by the gradient-corrected linear filters of Malvar et al."""
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
    """Noise [B, 3, H, W] as a camera's own smoothing or resampling leaves it: neighbours alike, its strength as it was.

    Mostly it is smoothed, lightness a little (with some noise of a larger scale left) and colour a lot, and what remains of
    colour is weaker: JPEGs of a camera at ISO 3200 have neighbours in lightness that correlate by 0.6 to 0.8, in colour by 0.9
    and four pixels on by 0.5, and half as much colour noise as lightness noise. One time in four it is enlarged up to twofold.
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
    """Noise [B, C, H, W] as it is in a camera's JPEGs: of a drawn spectrum, other for colour than for lightness, and of a
    strength that depends on the brightness; its scale is arbitrary.

    Lightness falls with the frequency f (cycles per pixel) as (f + 0.01)^-p exp(-(f / cut)^q): some noise as large as leaves,
    little above the smoothing of the camera. Colour is coarser still. Each picture draws its own. The ranges lie around what
    19 pairs of one camera at ISO 3200 and 6400 have (five scenes of the development set; lightness p 0.3 to 0.7, cut 0.2 to
    0.45, q 2 to 3; colour cut 0.06 to 0.12, and at f = 0.05 0.6 to 1 of the lightness), and reach to noise that is almost white.
    The brightness follows l^a (1 - l)^b: a tone curve weakens noise near black and near white (there 0.4 of that in between).

    Args:
        clean: the pictures that it is for, [B, C, H, W] in [0, 1].
        gray: this part has no noise of colour, as film's grain and scans of gray pictures.
    """
    count, channels, height, width = clean.shape

    def drawn(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1))).float()

    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    stretch = torch.exp(drawn(-0.35, 0.35))  # rows and columns are not alike where a camera smooths along one of them
    f = ((down * stretch).square() + (across / stretch).square()).sqrt()
    cut, cut_colour = torch.exp(drawn(math.log(0.15), math.log(0.7))), torch.exp(drawn(math.log(0.05), math.log(0.35)))
    lightness = (f + 0.01) ** -drawn(0, 0.9) * torch.exp(-((f / cut) ** drawn(1.5, 3)))
    colour = torch.exp(-((f / cut_colour) ** drawn(1.5, 3)))
    reference = ((0.06) ** -0.5) * drawn(0.2, 1.3)  # of colour, beside lightness at f = 0.05
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
    """The root of the mean square of each image, [B, 1, 1, 1]."""
    return noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-8)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of that many pixels."""
    radius = max(1, math.ceil(2.5 * sigma))
    axis = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-axis.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = F.pad(x.flatten(0, 1)[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(flat, kernel), kernel.transpose(2, 3)).view_as(x)


def photograph(
    clean: Tensor, rng: np.random.Generator, generator: torch.Generator, coarse: float = 0.75
) -> tuple[Tensor, Tensor]:
    """What one camera makes of clean pictures: noisy and noise-free, both [B, C, H, W] in [0, 1], not yet rounded.

    Args:
        clean: [B, C, H, W] in [0, 1], colour or gray, which is photographed in colour and turned gray again.
        coarse: how often the noise is coarsened, and then, for a strength of its own, scaled to 1 to 14 levels.
    """
    camera = draw_camera(rng)
    blur = math.exp(rng.uniform(math.log(0.25), math.log(1.8)))  # no lens is as sharp as a pixel; a reduced picture almost is
    raw = expose(_blur(clean.expand(-1, 3, -1, -1), blur), camera)
    target = develop(raw, camera)
    noise = develop(sensor_noise(raw, camera, generator), camera) - target
    if rng.random() < coarse:
        noise = coarsen(noise, rng)
        wanted = torch.from_numpy(np.exp(rng.uniform(0, math.log(14), (len(clean), 1, 1, 1))) / 255).float()
        noise = noise * wanted / _strength(noise)
    noisy = target + noise
    if clean.shape[1] == 1:
        luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        noisy, target = ((picture * luma).sum(1, keepdim=True) for picture in (noisy, target))
    return noisy, target


def camera_file(
    clean: Tensor, rng: np.random.Generator, generator: torch.Generator, shaped: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Noisy and noise-free pictures, both [B, C, H, W] in [0, 1], the noisy ones in 8 bits as a camera's file holds them.

    `shaped` of the calls draw their noise by its spectrum (`shaped_noise`, 1 to 16 levels; one time in three the picture itself
    is as soft as a camera's), the others simulate sensor and development (`photograph`). Half of the calls end in a JPEG.
    """
    if rng.random() < shaped:
        target = clean
        if rng.random() < 0.35:
            target = _blur(clean, rng.uniform(0.3, 0.9))
        noise = shaped_noise(target, rng, generator)
        wanted = torch.from_numpy(np.exp(rng.uniform(0, math.log(16), (len(clean), 1, 1, 1))) / 255).float()
        noisy = target + noise * wanted / _strength(noise)
        if rng.random() < 0.2:  # some white noise as well: a scanner's, or a film's
            noisy = noisy + torch.randn(noisy.shape, generator=generator) * rng.uniform(0, 6) / 255
    else:
        noisy, target = photograph(clean, rng, generator)
    noisy = (noisy.clamp(0, 1) * 255).round() / 255
    return (through_jpeg(noisy, rng, (70, 100)) if rng.random() < 0.5 else noisy), target


def through_jpeg(pictures: Tensor, rng: np.random.Generator, qualities: tuple[int, int] = (50, 100)) -> Tensor:
    """Pictures [B, 1 or 3, H, W] as JPEG files hold them, each of a quality drawn from the range and any subsampling."""
    results = []
    for pixels in (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        options = {"quality": int(rng.integers(qualities[0], qualities[1] + 1)), "subsampling": int(rng.integers(3))}
        Image.fromarray(np.ascontiguousarray(pixels.squeeze())).save(file, "JPEG", **options)
        results.append(np.asarray(Image.open(file)).reshape(pixels.shape))
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).float() / 255

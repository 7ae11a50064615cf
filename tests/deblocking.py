"""A task of a user's own, as a process finds it by RCNET_MODULES=tests.deblocking: pictures without the blocks of their JPEG."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from rcnet import create_model, register
from rcnet.data.camera import through_jpeg
from rcnet.data.images import pixels_of, random_patches, read_folder, split_folder, to_tensor
from rcnet.evaluation.denoise import pair_results
from rcnet.tasks import TASKS
from rcnet.tasks.task import Batch, Kind, Measuring, Task, checksum, number

QUALITY = 5


@dataclass(frozen=True)
class Deblocking:
    """Patches and their JPEG."""

    patch: int = number(32, 16)
    quality: int = number(QUALITY, 1, 100)


def compressed(clean, quality, rng):
    return through_jpeg(clean, rng, (quality, quality))


def begin(config, setup):
    images = read_folder(split_folder(setup.data, "train"), setup.about.channels)
    pixels = pixels_of(images)

    def batch(rng, iteration):
        clean = random_patches(pixels, config.patch, setup.batch, rng)
        return Batch(compressed(clean, config.quality, rng).to(setup.device), clean.to(setup.device))

    return Task(
        batch,
        loss=lambda output, batch: (output.float() - batch.target).square().sum((1, 2, 3)).mean() / 2,
        teach=lambda output: output.float(),
        evaluate=lambda model: [],
        data={"folder": setup.data.name, "images": len(images), "crc32": checksum(image.tobytes() for image in images)},
        preprocessing={},
    )


def pairs(model, folder, split):
    rng = np.random.default_rng(0)
    for clean in read_folder(split_folder(folder, split), model.about.channels):
        blocked = compressed(to_tensor(clean), QUALITY, rng)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
        yield blocked, clean


def measuring(model, data):
    found = list(pairs(model, data, "test"))

    def rows(steps, *, precision="fp32", each=lambda *_: None):
        return pair_results(model, found, steps, precision=precision, each=each)

    return Measuring({"data": str(data), "images": len(found)}, found[0][0].shape[:2], rows)


def calibration(model, folder):
    return (to_tensor(blocked[:64, :64]).numpy() for blocked, _ in pairs(model, folder, "train"))


TASKS["deblock"] = Kind(
    Deblocking,
    (321, 481),
    {"PSNR dB": ("psnr", 3), "SSIM": ("ssim", 4)},
    begin,
    measuring,
    calibration,
    gives="image",
    command="run IN --model {weights}",
)


@register("deblock", steps=(1, 2))
def deblocker(steps: int | tuple[int, ...] = (1, 2), width: int = 16):
    net = create_model("r3_fast", steps=steps, in_chans=1, width=width, norm_mode="none")
    net.about = dataclasses.replace(net.about, task="deblock")
    return net

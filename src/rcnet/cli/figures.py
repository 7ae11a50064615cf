"""rcnet figures"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rcnet.errors import InputError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

    from rcnet.network import RecurrentNet

ALONE = ("bn-steps", "bn-upstream")  # of a network alone, each by the function of its name in the file of its name
NAMES = (*ALONE, "denoised", "features", "dial")


def figures(
    name: str,
    model: str,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    image: Annotated[list[Path] | None, Parameter(name="--image", consume_multiple=True)] = None,
    sigma: float | None = None,
    data: Path | None = None,
    timed: bool = False,
) -> None:
    """Draw a figure of the paper for one network.

    bn-steps      the variables of a batch norm at each step of a cell (Fig. 2)
    bn-upstream   the same for each step count of the cell upstream (Fig. 3)
    denoised      an image with noise, denoised at each step count (Fig. 4)
    features      the features of two cells over their steps (Fig. 6)
    dial          quality against cost of each setting

    For the figures of several networks (5 and 7), see docs/study.md.
    All but denoised need matplotlib (pip install 'rcnet[plots]').

    Examples::

      rcnet figures bn-steps r3.bsd-gray-25 -o norms.png
      rcnet figures denoised r3_fast.bsd-gray-25 --image photo.png --sigma 25
      rcnet figures dial r3_fast.bsd-gray-25 --timed
      rcnet figures features runs/cifar/weights.safetensors --image a.jpg b.jpg

    Parameters
    ----------
    name
        bn-steps, bn-upstream, denoised, features or dial.
    model
        Bundled weights (see rcnet models) or a file of weights.
    output
        The PNG file; default: NAME.png.
    image
        Images for denoised and features; default: a bundled photograph.
    sigma
        Noise level, in levels of 255; default: that of the training (denoised), or 25 (dial --data).
    data
        Images for dial to measure on; default: use the results in the file of weights.
    timed
        Plot the dial against milliseconds on this machine instead of MACs.
    """
    if name not in NAMES:
        raise unknown("figure", name, NAMES)
    path = output or Path(f"{name}.png")
    if path.suffix.lower() != ".png":
        raise InputError(f"figures are PNG files, and {path} does not end in .png")
    if not path.parent.is_dir() or path.is_dir():
        raise InputError(f"cannot write {path}: its folder does not exist, or it is a folder")
    if image and name not in ("denoised", "features"):
        raise InputError(f"{name} shows no images: --image is only for denoised and features")
    if sigma is not None and not (name == "denoised" or (name == "dial" and data)):
        raise InputError(f"{name} adds no noise: --sigma is only for denoised, and for dial with --data")
    if (data or timed) and name != "dial":
        raise InputError(f"{name} measures nothing: --data and --timed are only for dial")
    import importlib

    from rcnet.figures.side_by_side import save_picture
    from rcnet.models import load

    network = load(model)
    if name in ALONE:
        function = name.replace("-", "_")
        picture = getattr(importlib.import_module(f"rcnet.figures.{function}"), function)(network)
    elif name == "dial":
        picture = _dial(network, model, data, sigma, timed)
    else:
        from importlib import resources

        files = image or [Path(str(resources.files("rcnet") / "assets" / "cameraman.png"))]
        picture = _with_images(name, network, files, sigma)
    save_picture(path, picture)
    print(path)


def _dial(network: "RecurrentNet", name: str, data: Path | None, sigma: float | None, timed: bool) -> "Image":
    from tqdm import tqdm

    from rcnet.device import best_device
    from rcnet.figures.dial import dial
    from rcnet.runtime.results import complete_result, result_name
    from rcnet.tasks.dial import best_settings

    network = network.to(best_device())
    with tqdm(unit="image", disable=None if data else True, leave=False) as bar:
        rows = best_settings(network, data, sigma=25.0 if sigma is None else sigma, timed=timed, each=bar.update)
    measured = f"{data.name}" if data else result_name(complete_result(network)[1])
    return dial(rows, f"{Path(name).stem if Path(name).suffix == '.safetensors' else name}, {measured}")


def _with_images(name: str, network: "RecurrentNet", files: list[Path], sigma: float | None) -> "Image":
    """The figures that show images."""
    from rcnet.about import Noise
    from rcnet.data.images import fit, read_image
    from rcnet.data.noise import check_sigma
    from rcnet.figures.denoised import denoised_by_steps
    from rcnet.figures.features import features

    about = network.about
    images = [read_image(file, about.channels) for file in files]
    if name == "denoised":
        level = (about.noise or Noise()).level if sigma is None else sigma
        check_sigma(level)
        return denoised_by_steps(network, images, level)
    if about.size:
        images = [fit(pixels, about.size[0]) for pixels in images]
    return features(network, images)

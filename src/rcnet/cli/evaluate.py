"""rcnet eval"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rcnet.cli.text import Budget, Json
from rcnet.errors import InputError

if TYPE_CHECKING:
    from rcnet.network import RecurrentNet


def evaluate(
    model: str,
    /,
    *,
    data: Path | None = None,
    noisy: Path | None = None,
    clean: Path | None = None,
    sigma: float | None = None,
    blind: bool = False,
    harm: bool = False,
    risk: float | None = None,
    steps: str = "all",
    budget: Budget = None,
    as_8bit: bool = False,
    precision: str = "fp32",
    json_output: Json = False,
    record: bool = False,
) -> None:
    """Measure trained weights: PSNR and SSIM of a denoiser, error rate of a classifier.

    Denoisers are measured on a folder of clean images by the BSD68 protocol:
    the noise of each image is np.random.RandomState(0).normal(0, sigma/255),
    neither clipped nor rounded; the output is clamped and rounded to 8 bits;
    PSNR is computed on the whole image and averaged over images.

    Or they are measured on pairs of real pictures, --noisy and --clean, with
    equal names or in the same order; the row of 0 steps is the noisy picture.

    Classifiers are measured on the test images of CIFAR-10 or CIFAR-100 (see
    rcnet data) or of a folder of images by class, without augmentation.

    Examples::

      rcnet eval r3_fast.bsd-gray-25 --data BSD68/ --sigma 25
      rcnet eval runs/mine/weights.safetensors --data photos/ --steps 2
      rcnet eval r3_fast.photo --noisy real/ --clean truth/
      rcnet eval r3_fast.photo --data photos/ --harm
      rcnet eval r2.cifar10 --data data/ --json
      rcnet eval r2.cifar10 --data data/ --risk 0.5 --record

    Parameters
    ----------
    model
        Bundled weights (see rcnet models) or a file of weights.
    data
        Folder of images, or one that contains a folder named test; for classifiers, CIFAR from rcnet data, or
        CLASS/NAME.png.
    noisy, clean
        Folders of image pairs, instead of --data.
    sigma
        Standard deviation of the added noise, in levels of 255; default: 25. With pairs: the noise level for weights that take
        one; default: unknown.
    blind
        Leave the noise level unknown to weights that take it.
    harm
        Add no noise, and measure the change of clean photographs and drawn pictures (PSNR against the input, at most 99): page,
        a page of text; screen, the lower of coloured and subpixel text; texture, the lowest of a halftone, a checkerboard and
        grass; night, a dark scene. flat: the largest mean change of flat grays, flat hues and a ramp, in levels of 255. bias: the
        largest error of the mean of black, white and gray areas with clipped noise of sigma 10. --json prints each value. The
        noise level is unknown, or that of --sigma, e.g. 0 (10 for the areas with noise).
    risk
        For a classifier: calibrate the adaptive cost (rcnet classify --confidence calibrated) on every other image, so that with
        90% probability the error is at most this many percentage points above that of the largest setting; then measure it on
        the remaining images and compare it with the fixed settings.
    steps
        A step count of the model, or all.
    budget
        Instead of --steps: maximum time or MACs per image (for the largest image), e.g. 50ms or 2GMAC; uses the best setting that
        fits.
    as_8bit
        Clip and round the noisy images first, as in 8-bit files.
    precision
        fp32, bf16 or auto.
    json_output
        Print JSON.
    record
        Also write the results into the metadata of the file of weights. Bundled weights are copied to the current folder first;
        to change the original, give its file.
    """
    from tqdm import tqdm

    from rcnet.cli.text import check_cost, read_steps, table
    from rcnet.cost.budget import setting_for
    from rcnet.device import best_device, resolve_precision
    from rcnet.evaluation.record import record_result
    from rcnet.models import load
    from rcnet.setting import Setting
    from rcnet.tasks import find_task

    if (data is None) == (noisy is None and clean is None) or (noisy is None) != (clean is None):
        raise InputError("give --data FOLDER, or --noisy FOLDER and --clean FOLDER")
    network = load(model)
    check_cost(None if steps == "all" else steps, budget)
    settings = network.settings if steps == "all" else (read_steps(steps, network),)
    precision = resolve_precision(precision, best_device())
    network.to(best_device())
    task = find_task(network.about.task)
    options = {"sigma": sigma, "as_8bit": as_8bit, "blind": blind, "harm": harm, "noisy": noisy, "clean": clean}
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if foreign := [name for name in given if name not in task.options]:
        raise InputError(f"{model} was made to {network.about.task}: --{foreign[0].replace('_', '-')} does not apply")
    if risk is not None:
        if data is None or given or budget or steps != "all":
            raise InputError("--risk needs --data, and excludes options for other images, noise or cost")
        if not 0 < risk < 100:
            raise InputError(f"--risk {risk:g} is not valid: give percentage points of error between 0 and 100, e.g. 0.5")
        measure_adaptive(network, model, data, risk, precision, json_output, record)
        return
    on = task.measuring(network, data, **given)
    if on.note:
        print(f"rcnet: {on.note}", file=sys.stderr)
    if budget is not None:
        settings = (setting_for(network, budget, on.size, precision=precision),)
    with tqdm(total=len(settings) * on.about["images"], unit="image", disable=None, leave=False) as bar:
        rows = on.rows(settings, precision=precision, each=bar.update)
    result = {**on.about, "precision": precision, "rows": rows}
    if json_output:
        print(json.dumps({"model": model, **result}, indent=1))
    else:
        about = (f", sigma {result['sigma']:g}" if "sigma" in result else "") + ", blind" * result.get("blind", False)
        print(f"{model} on {result['images']} images of {result['data']}{about}")
        columns = {name: column for name, column in task.columns.items() if column[0] in rows[0]}
        lines = [(Setting.of(row["steps"]), *(f"{row[key]:.{digits}f}" for key, digits in columns.values())) for row in rows]
        print(table(("steps", *columns), lines))
    if record:
        print(f"recorded in {record_result(network, model, result)}", file=sys.stderr)


def measure_adaptive(
    network: "RecurrentNet", model: str, data: Path, risk: float, precision: str, json_output: bool, record: bool
) -> None:
    """Calibrates the adaptive cost and prints its results."""
    from tqdm import tqdm

    from rcnet.cli.text import count, table
    from rcnet.evaluation.adaptive import adaptive_results
    from rcnet.evaluation.record import record_cascade
    from rcnet.setting import Setting
    from rcnet.tasks.classify import read_matching

    test = read_matching(data, "test", network)
    with tqdm(total=len(network.settings) * len(test.labels), unit="image", disable=None, leave=False) as bar:
        result = adaptive_results(network, test.images, test.labels, risk / 100, precision=precision, each=bar.update)
    result = {"data": test.name, "precision": precision, **result}
    if json_output:
        print(json.dumps({"model": model, **result}, indent=1))
    else:
        *fixed, cascade = result["rows"]
        ran = [Setting.of(n) for n in cascade["steps"]]
        lines = [(str(Setting.of(row["steps"])), count(row["macs"]), f"{row['error']:.2f}") for row in fixed]
        lines.append((" then ".join(map(str, ran)), count(cascade["macs"]), f"{cascade['error']:.2f}"))
        print(f"{model} on {result['images']} images of {test.name}, calibrated on {result['calibrated_on']} others")
        print(table(("steps", "MACs per image", "error %"), lines))
        shares = ", ".join(f"{100 * share:.0f}% end at {n}" for n, share in zip(ran, cascade["ends"], strict=True))
        print(f"accepted from a probability of {result['confidence']:.5f}: {shares}")
        verdict = "adaptive cost pays off" if result["pays"] else "adaptive cost does not pay off"
        print(f"fixed settings at the same mean cost: {result['fixed']:.2f}%: {verdict}")
    if record:
        print(f"recorded in {record_cascade(network, model, result)}", file=sys.stderr)

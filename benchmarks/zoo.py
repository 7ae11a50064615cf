"""40 known networks, converted: parameters before and after, exact at full rank or not, exported or why not.

    make zoo                                    # in an environment of its own
    python -m benchmarks.zoo [--only NAME ...] [--again]

Each network has fresh weights (nothing is downloaded) and norms as after training. It is converted twice: at 1 and 2 steps
without differences, for the parameters; and at all steps with differences of full rank, whose outputs must be those of the
original. The first is exported to ONNX at 2 steps; ONNX Runtime's output is compared with the network's. Images are small, of at
most 64x64 pixels. A network that is measured is not measured again without --again. Results go to results/zoo.json, the table to
results/zoo.md.
"""

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rcnet
from benchmarks.page import RESULTS, kept, options, record, table
from rcnet.conversion import first_tensor
from rcnet.deploy.export import load_exported, read_exported
from rcnet.models.converted import build_source
from rcnet.training.provenance import commit

ONE_SIZE = ("torchvision swin_t", "timm swinv2_tiny_window8_256")  # tracing these for free sizes takes many minutes
CLOSE = 1e-4  # relative difference of outputs that counts as exact, and of ONNX Runtime's
SIZE, FULL = 64, 10**6
TRANSFORMERS = {"num_labels": 10, "image_size": SIZE}
SMALL_NAF = {"width": 16, "middle_blk_num": 4, "enc_blk_nums": [2, 2], "dec_blk_nums": [2, 2]}
SMALL_SWINIR = {"img_size": 32, "depths": [4, 4], "embed_dim": 48, "num_heads": [4, 4], "window_size": 8}
VIT = {
    **TRANSFORMERS,
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "patch_size": 16,
}


class Edsr(nn.Module):
    """EDSR (Lim et al. 2017), the baseline of 16 blocks: convolutions without norms, and a sum around all blocks."""

    def __init__(self, channels: int = 64, blocks: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, 1, 1)
        self.body = nn.Sequential(*(EdsrBlock(channels) for _ in range(blocks)), nn.Conv2d(channels, channels, 3, 1, 1))
        self.tail = nn.Sequential(
            nn.Conv2d(channels, channels * scale**2, 3, 1, 1), nn.PixelShuffle(scale), nn.Conv2d(channels, 3, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(x + self.body(x))


class EdsrBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Ffdnet(nn.Module):
    """FFDNet (Zhang et al. 2018) for colour, told one noise level: 12 convolutions on images folded by 2."""

    def __init__(self, channels: int = 96, convs: int = 12, level: float = 25 / 255) -> None:
        super().__init__()
        middle: list[nn.Module] = []
        for _ in range(convs - 2):
            middle += [nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        first = [nn.Conv2d(13, channels, 3, 1, 1), nn.ReLU(inplace=True)]
        self.model, self.level = nn.Sequential(*first, *middle, nn.Conv2d(channels, 12, 3, 1, 1)), level

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pixel_unshuffle(x, 2)
        level = torch.full((x.shape[0], 1, *x.shape[2:]), self.level, device=x.device)
        return nn.functional.pixel_shuffle(self.model(torch.cat([x, level], 1)), 2)


def of_spandrel(name: str, **config: Any) -> nn.Module:
    import importlib

    return getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)(**config)


def of_smp(name: str, **config: Any) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)(encoder_weights=None, **config)


def configured(name: str, **config: Any) -> Callable[[], nn.Module]:
    """A network of transformers, by the name of its family."""

    def build() -> nn.Module:
        import transformers

        return getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**config))

    return build


def built(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: build_source(name, config)


# name -> how it is built, and the side of its images in pixels
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{
        f"torchvision {name}": (built(f"torchvision:{name}", num_classes=10, **config), side)
        for name, side, config in (
            ("resnet50", 64, {}), ("resnext50_32x4d", 64, {}), ("densenet121", 64, {}), ("mobilenet_v2", 64, {}),
            ("mobilenet_v3_large", 64, {}), ("efficientnet_b0", 64, {}), ("regnet_y_400mf", 64, {}), ("convnext_tiny", 64, {}),
            ("swin_t", 64, {}), ("vit_b_16", 64, {"image_size": 64}), ("shufflenet_v2_x1_0", 64, {}),
        )
    },
    **{
        f"timm {name}": (built(f"timm:{name}", num_classes=10, **config), side)
        for name, side, config in (
            ("resnetv2_50", 64, {}), ("vit_tiny_patch16_224", 64, {"img_size": 64}), ("mixer_s16_224", 64, {"img_size": 64}),
            ("convnextv2_atto", 64, {}), ("poolformer_s12", 64, {}), ("nf_resnet50", 64, {}), ("swinv2_tiny_window8_256", 64,
            {"img_size": 64}), ("xcit_nano_12_p16_224", 64, {"img_size": 64}), ("repvgg_a0", 64, {}), ("coatnet_nano_rw_224", 64,
            {"img_size": 64}),
        )
    },
    "transformers ViT": (configured("ViT", **VIT), SIZE),
    "transformers DeiT": (configured("DeiT", **VIT), SIZE),
    "transformers BEiT": (configured("Beit", **VIT), SIZE),
    "transformers DINOv2": (configured("Dinov2", **{**VIT, "mlp_ratio": 4}), SIZE),
    "transformers ViT-MSN": (configured("ViTMSN", **VIT), SIZE),
    "transformers Swin": (configured("Swin", **TRANSFORMERS, embed_dim=48, depths=[2, 2, 6, 2], window_size=2), SIZE),
    "transformers SegFormer": (configured("Segformer", num_labels=10), SIZE),
    "transformers ResNet-50": (configured("ResNet", num_labels=10), SIZE),
    "smp Unet of resnet34": (lambda: of_smp("Unet", encoder_name="resnet34"), SIZE),
    "smp FPN of resnet50": (lambda: of_smp("FPN", encoder_name="resnet50"), SIZE),
    "smp DeepLabV3+ of mobilenet_v2": (lambda: of_smp("DeepLabV3Plus", encoder_name="mobilenet_v2"), SIZE),
    "smp Segformer of mit_b0": (lambda: of_smp("Segformer", encoder_name="mit_b0"), SIZE),
    "spandrel DnCNN": (lambda: of_spandrel("DnCNN", in_nc=3, out_nc=3, nb=20), SIZE),
    "FFDNet": (Ffdnet, SIZE),
    "EDSR": (Edsr, SIZE),
    "spandrel RCAN": (lambda: of_spandrel("RCAN", scale=2, n_resgroups=3, n_resblocks=8), 32),
    "spandrel NAFNet": (lambda: of_spandrel("NAFNet", **SMALL_NAF), SIZE),
    "spandrel DRUNet": (lambda: of_spandrel("DRUNet", in_nc=3, out_nc=3, nc=[32, 64, 128, 256]), SIZE),
    "spandrel SwinIR": (lambda: of_spandrel("SwinIR", **SMALL_SWINIR), 32),
}  # fmt: skip


def allow_torchvision() -> None:
    """Lets torchvision be imported where its compiled operators do not load: those for CUDA, beside a torch for processors."""
    for operator in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # it is there
            return


@torch.no_grad()
def as_trained(model: nn.Module) -> nn.Module:
    """Norms, scales and biases that differ from block to block, so that sharing them would be noticed."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    for parameter in model.parameters():
        if not parameter.any() and parameter.ndim > 1:  # a head that begins at zero would hide every difference
            parameter.normal_(0, 0.02)
        if parameter.numel() == max((1, *parameter.shape)):  # one value per channel, whatever its shape
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def away(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))


def measure(name: str) -> dict[str, Any]:
    """The row of a network."""
    torch.manual_seed(0)
    build, side = NETWORKS[name]
    model, row, started = as_trained(build()), {"side": side}, time.perf_counter()
    row["before"] = sum(p.numel() for p in model.parameters())
    about = rcnet.About(size=(side, side))
    try:
        net = rcnet.convert(model, (1, 2), about=about).eval()
    except rcnet.InputError as error:
        return {**row, "refused": str(error)[:300]}
    done = net.conversion
    row |= {"after": done.after, "notes": list(done.notes), "cells": [f"{r.blocks} x {r.what}" for r in done.replaced]}
    with torch.no_grad():
        x = torch.rand(3, 3, side, side)
        full = rcnet.convert(model, "all", rank=FULL, about=about).eval()
        row["exact"] = away(first_tensor(model(x.clone())), full(x.clone()))
        row["shared"] = [layer for r in full.conversion.replaced for layer in r.shared]
        del full, model
        gc.collect()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            try:
                rcnet.export(net, path, steps=net.choices[-1:], size=(side, side) if name in ONE_SIZE else None)
                about_file = read_exported(path)
                row |= {"multiple": about_file["multiple"], "fixed": about_file.get("size")}
                row["onnxruntime"] = away(net(x.clone()), torch.from_numpy(load_exported(path, threads=1)(np.asarray(x))))
            except Exception as error:  # of ONNX Runtime, too
                row["not_exported"] = " ".join(str(error).split())[:200]
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def render(found: dict[str, Any]) -> str:
    """The page."""
    rows = found["networks"]
    converted = {name: row for name, row in rows.items() if "after" in row}
    exact = [name for name, row in converted.items() if row.get("exact", 1) < CLOSE]
    exported = [name for name, row in converted.items() if row.get("onnxruntime", 1) < CLOSE]
    lines = [
        "# Known networks converted",
        "",
        "Rendered by `python -m benchmarks.zoo`. Fresh weights, with norms as after training. Parameters: at 1 and 2 steps",
        "without differences. Full rank: the largest difference of an output from the original's, relative to the largest",
        "output, at all steps with differences of full rank. ONNX Runtime: the same between the exported file and the converted",
        "network, at 2 steps. Sizes: what the sides of images of the file are multiples of, or the one size that it takes",
        f"({' and '.join(ONE_SIZE)}: the one asked for, as tracing them for free sizes takes many minutes).",
        "",
        f"{len(converted)} of {len(rows)} converted, {len(exact)} exact at full rank (below {CLOSE:g}), {len(exported)} exported",
        f"with ONNX Runtime's output within {CLOSE:g}.",
        "",
    ]
    body = []
    for name, row in rows.items():
        if "after" not in row:
            reason = row.get("refused") or row.get("failed", "")
            body.append([name, f"{row.get('before', 0):,}", "", "", "not converted: " + reason.replace("|", "/"), "", "", ""])
            continue
        size = "x".join(map(str, row["fixed"])) if row.get("fixed") else row.get("multiple", "")
        why = row.get("not_exported", "").replace("|", "/")
        done = f"{row['onnxruntime']:.0e}" if "onnxruntime" in row else why
        body.append(
            [
                name, f"{row['before']:,}", f"{row['after']:,}", f"{row['after'] / row['before']:.2f}", ", ".join(row["cells"]),
                f"{row['exact']:.0e}", size, done,
            ]
        )  # fmt: skip
    heads = ["network", "parameters", "after", "part", "blocks of each cell", "full rank", "sizes", "ONNX Runtime"]
    lines += table(heads, body)
    notes = {note: None for row in converted.values() for note in row["notes"] if "training mode" not in note}
    lines += ["", "Notes of the conversions, beside code that only runs in training:", ""] if notes else []
    lines += [f"- {name}: {note}" for name, row in converted.items() for note in row["notes"] if "training mode" not in note]
    return "\n".join([*lines, "", f"torch {found['torch']}; {', '.join(found['libraries'])}; commit {found['commit']}.", ""])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="networks whose names contain one of these")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    allow_torchvision()
    import importlib.metadata

    libraries = ("torchvision", "timm", "transformers", "segmentation_models_pytorch", "spandrel", "onnxruntime")
    path = args.out / "zoo.json"
    found = {"networks": {}, **kept(path)}
    for name in NETWORKS:
        if (args.only and not any(part in name for part in args.only)) or (name in found["networks"] and not args.again):
            continue
        print(name, flush=True)
        try:
            row = measure(name)
        except Exception as error:  # of any library
            traceback.print_exc()
            row = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
        print("  ", row, flush=True)
        found["networks"] = {each: row if each == name else found["networks"].get(each) for each in NETWORKS}
        found["networks"] = {each: value for each, value in found["networks"].items() if value}
        found |= {"torch": torch.__version__, "commit": commit()}
        found["libraries"] = [f"{library} {importlib.metadata.version(library)}" for library in libraries]
        record(path, found, render)
    print(render(found))


if __name__ == "__main__":
    main()

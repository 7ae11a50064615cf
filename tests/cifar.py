"""CIFAR in its official layouts, made of the slices in `images`: a few real records, repeated to the official number.

`images/cifar10-train.webp` holds 30 images of each class of CIFAR-10 and `cifar10-test.webp` 10; `cifar100-train.webp` and
`cifar100-test.webp` hold one of each class of CIFAR-100. They are the pixels of the original (Krizhevsky, 2009), 32 wide, one
below the other, with the name of an image's class in a line of the .txt beside it.
"""

import functools
import io
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image

from .conftest import IMAGES

COUNT = {"train": 50_000, "test": 10_000}
FOLDERS = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}


@functools.cache
def load(dataset, split):
    """The slice: pixels uint8 [N, 3, 32, 32], labels uint8 [N], the class names."""
    names = (IMAGES / f"{dataset}-{split}.txt").read_text().split()
    pixels = np.asarray(Image.open(IMAGES / f"{dataset}-{split}.webp")).reshape(-1, 32, 32, 3)
    classes = sorted(set(names))
    return pixels.transpose(0, 3, 1, 2), np.array([classes.index(name) for name in names], np.uint8), classes


def batches(dataset, split):
    """Labels [n] and pixels [n, 3072] of each file of a split: the slice, repeated from file to file."""
    pixels, labels, _ = load(dataset, split)
    order = np.arange(COUNT[split]) % len(labels)
    parts = 5 if (dataset, split) == ("cifar10", "train") else 1
    return [(labels[part], pixels.reshape(-1, 3072)[part]) for part in np.split(order, parts)]


def files_of(dataset, split):
    """The names of the files of a split, without suffix."""
    if dataset == "cifar100":
        return [split]
    return [f"data_batch_{k}" for k in range(1, 6)] if split == "train" else ["test_batch"]


def write_binary(dest, dataset="cifar10", splits=("train", "test")):
    """The extracted binary version below `dest`; returns its folder."""
    folder = dest / FOLDERS[dataset, "binary"]
    folder.mkdir(parents=True)
    for split in splits:
        for name, (labels, pixels) in zip(files_of(dataset, split), batches(dataset, split), strict=True):
            columns = [labels[:, None], pixels] if dataset == "cifar10" else [labels[:, None] // 5, labels[:, None], pixels]
            np.concatenate(columns, axis=1).tofile(folder / f"{name}.bin")
    meta = "batches.meta.txt" if dataset == "cifar10" else "fine_label_names.txt"
    (folder / meta).write_text("\n".join(load(dataset, "test")[2]) + "\n\n")
    return folder


def write_python(dest, dataset="cifar10", splits=("train", "test")):
    """The extracted python version below `dest`, pickled as by Python 2; returns its folder."""
    folder = dest / FOLDERS[dataset, "python"]
    folder.mkdir(parents=True)
    kind = "" if dataset == "cifar10" else "fine_"
    for split in splits:
        for name, (labels, pixels) in zip(files_of(dataset, split), batches(dataset, split), strict=True):
            batch = {"batch_label": name, f"{kind}labels": labels.tolist(), "data": pixels, "filenames": ["leopard_s_000001.png"]}
            (folder / name).write_bytes(python2_pickle(batch))
    meta = {f"{kind}label_names": load(dataset, "test")[2], "num_vis": 3072}
    (folder / ("batches.meta" if dataset == "cifar10" else "meta")).write_bytes(python2_pickle(meta))
    return folder


def write_folder(dest, count):
    """An image folder of CIFAR-10 below `dest`: `count` PNGs (at most 10) of each class in train and in test; returns `dest`."""
    for split in ("train", "test"):
        pixels, labels, classes = load("cifar10", split)
        for label, name in enumerate(classes):
            (dest / split / name).mkdir(parents=True)
            for k, image in enumerate(pixels[labels == label][:count]):
                Image.fromarray(image.transpose(1, 2, 0)).save(dest / split / name / f"{k}.png")
    return dest


def pack(folder, name, order=None):
    """The archive `name` beside an extracted folder, with that folder in it; not compressed, which takes too long."""
    archive = folder.parent / name
    with tarfile.open(archive, "w:gz", compresslevel=0) as file:
        for path in order or sorted(folder.iterdir()):
            file.add(path, f"{folder.name}/{path.name}")
    return archive


def python2_pickle(value):
    """A pickle as Python 2 writes it: its strings are bytes, and NumPy's modules have their old names."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


class _Python2Pickler(pickle._Pickler):
    def save_string(self, value):
        value = value.encode() if isinstance(value, str) else value
        head = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        self.write(head + value)


_Python2Pickler.dispatch = {**pickle._Pickler.dispatch, **dict.fromkeys((bytes, str), _Python2Pickler.save_string)}

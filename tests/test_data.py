import functools
import gzip
import hashlib
import http.server
import io
import json
import pickle
import re
import shutil
import socket
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from rcnet.cli.data import data as command
from rcnet.data import download
from rcnet.data.cifar import cifar_sets, read_cifar
from rcnet.data.download import Archive, extract_bsd, fetch, get
from rcnet.data.images import list_images
from rcnet.data.labelled import GRAY, Labelled, augment, fit, read_labelled, to_float
from rcnet.errors import InputError

from . import cifar
from .cifar import FOLDERS, files_of, load, pack, python2_pickle, write_binary, write_folder, write_python


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """The official distributions, extracted, in a folder each; of all but the first only the test split. Deleted at the end."""
    root = tmp_path_factory.mktemp("official")
    for dataset in ("cifar10", "cifar100"):
        splits = ("train", "test") if dataset == "cifar10" else ("test",)
        write_binary(root / f"{dataset}-binary", dataset, splits)
        write_python(root / f"{dataset}-python", dataset, ["test"])
    yield root
    shutil.rmtree(root)


@pytest.fixture
def linked(official, tmp_path):
    """A folder like one of `official`, whose files can be replaced."""

    def make(dataset, version, without=()):
        folder = tmp_path / FOLDERS[dataset, version]
        folder.mkdir()
        for path in (official / f"{dataset}-{version}" / folder.name).iterdir():
            if path.name not in without:
                (folder / path.name).symlink_to(path)
        return folder

    return make


def refused(call, *words):
    """The one line of the `InputError` that the call raises, which holds these words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message


def is_slice(images, labels, dataset, split):
    """Whether these are the records of the slice, over and over."""
    pixels, expected, _ = load(dataset, split)
    starts = range(0, len(labels), len(expected))
    same = (np.array_equal(images[k : k + len(expected)], pixels[: len(images) - k]) for k in starts)
    return len(images) == len(labels) and all(same) and np.array_equal(labels, np.resize(expected, len(labels)))


# CIFAR


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_the_official_distributions_are_read(official, dataset, version):
    images, labels, classes = read_cifar(official / f"{dataset}-{version}", dataset, "test")
    assert images.shape == (10_000, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert is_slice(images, labels, dataset, "test")
    assert list(classes) == load(dataset, "test")[2]


def test_the_training_batches_are_joined_in_order(official, linked):
    images, labels, _ = read_cifar(official / "cifar10-binary", "cifar10", "train")
    assert images.shape == (50_000, 3, 32, 32)
    assert is_slice(images, labels, "cifar10", "train")
    folder = linked("cifar10", "python")
    for k in range(1, 6):
        (folder / f"data_batch_{k}").symlink_to(folder / "test_batch")
    images, labels, _ = read_cifar(folder, "cifar10", "train")
    assert images.shape == (50_000, 3, 32, 32)
    assert is_slice(images, labels, "cifar10", "test")


def test_the_folder_may_be_the_extracted_one_under_any_name(official, tmp_path):
    folder = official / "cifar100-python" / "cifar-100-python"
    assert cifar_sets(folder) == ["cifar100"]
    (tmp_path / "mine").symlink_to(folder)
    images, labels, _ = read_cifar(tmp_path / "mine", "cifar100", "test")
    assert is_slice(images, labels, "cifar100", "test")


@pytest.mark.parametrize(
    ("dataset", "version", "name"),
    [("cifar10", "binary", "cifar-10-binary.tar.gz"), ("cifar100", "python", "cifar-100-python.tar.gz")],
)
def test_archives_are_read_without_extracting_them(official, tmp_path, dataset, version, name):
    folder = official / f"{dataset}-{version}" / FOLDERS[dataset, version]
    files = [path for path in folder.iterdir() if not path.name.startswith("data_batch")]
    archive = pack(folder, name, sorted(files, reverse=True)).rename(tmp_path / name)
    for place in (tmp_path, archive):
        assert cifar_sets(place) == [dataset]
        images, labels, classes = read_cifar(place, dataset, "test")
        assert is_slice(images, labels, dataset, "test")
        assert list(classes) == load(dataset, "test")[2]
    assert list(tmp_path.iterdir()) == [archive]
    refused(lambda: read_cifar(archive, dataset, "train"), f"{archive}: {files_of(dataset, 'train')[0]}", "is missing; delete")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    refused(lambda: read_cifar(tmp_path, dataset, "test"), archive, "cannot be read", "CRC", f"rcnet data {dataset}")
    archive.write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_cifar(tmp_path, dataset, "test"), archive, "cannot be read", f"delete {archive}")


def small_archive(tmp_path, members, name="cifar-10-binary.tar.gz"):
    archive = tmp_path / name
    with tarfile.open(archive, "w:gz") as file:
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return archive


def test_archives_that_are_not_what_they_should_be_are_refused(tmp_path):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    for content in (b"", b"<html>404</html>", gzip.compress(b"no tar"), gzip.compress(b"x" * 2000)):
        archive.write_bytes(content)
        refused(lambda: read_cifar(tmp_path, "cifar10", "test"), archive, f"rcnet data cifar10 --out {tmp_path}")
    link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    small_archive(tmp_path, [link, ("../cifar-10-batches-bin/test_batch.bin", b"x"), ("batches.meta.txt", b"x")])
    refused(lambda: read_cifar(tmp_path, "cifar10", "test"), archive, "is missing")
    small_archive(tmp_path, [("cifar-10-batches-bin/batches.meta.txt", bytes(2_000_000))])
    refused(lambda: read_cifar(tmp_path, "cifar10", "test"), "batches.meta.txt is too large: 2,000,000 bytes")


@pytest.mark.parametrize(
    ("dataset", "version"), [("cifar10", "binary"), ("cifar10", "python"), ("cifar100", "binary"), ("cifar100", "python")]
)
def test_a_file_that_is_missing_short_or_damaged_is_named_with_the_remedy(official, linked, dataset, version):
    suffix = ".bin" if version == "binary" else ""
    name = files_of(dataset, "test")[0] + suffix
    folder = linked(dataset, version, without=[name])
    file = folder / name
    remedy = f"delete {folder} and run: rcnet data {dataset} --out {folder.parent}"

    def read():
        return read_cifar(folder.parent, dataset, "test")

    refused(read, f"{file} is missing; {remedy}")
    whole = (official / f"{dataset}-{version}" / folder.name / name).read_bytes()
    file.write_bytes(whole[:-1])
    refused(read, f"{file} ", remedy)
    file.write_bytes(b"")
    refused(read, f"{file} ", remedy)
    file.unlink()
    file.mkdir()
    refused(read, f"{file} cannot be read: Is a directory", remedy)


@pytest.mark.parametrize("version", ["binary", "python"])
def test_the_test_images_are_not_taken_for_the_training_ones(linked, version):
    folder = linked("cifar100", version)
    suffix = ".bin" if version == "binary" else ""
    (folder / f"train{suffix}").symlink_to(folder / f"test{suffix}")
    refused(lambda: read_cifar(folder, "cifar100", "train"), folder / f"train{suffix}", "50,000")


def test_labels_out_of_range_are_refused(linked):
    for dataset, width, place, wrong in (("cifar10", 3073, 0, 10), ("cifar100", 3074, 1, 100)):
        name = files_of(dataset, "test")[0] + ".bin"
        folder = linked(dataset, "binary", without=[name])
        content = np.zeros((10_000, width), np.uint8)
        content[77, place] = wrong
        content.tofile(folder / name)
        read = functools.partial(read_cifar, folder, dataset, "test")
        refused(read, folder / name, f"has the label {wrong}, not one from 0 to {wrong - 1}")
        content[77, place] = wrong - 1
        content.tofile(folder / name)
        assert read()[1][77] == wrong - 1


PIXELS = np.zeros((10_000, 3072), np.uint8)
LABELS = [0] * 10_000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "is a pickle, but not of a dictionary"),
        ({"labels": LABELS}, "contains no CIFAR images"),
        ({"labels": LABELS, "data": PIXELS[:, 1:]}, "contains no CIFAR images"),
        ({"labels": LABELS, "data": PIXELS.astype(np.int16)[:1]}, "is a pickle of an array of b'i2'"),
        ({"data": PIXELS}, "contains no CIFAR labels"),
        ({"data": PIXELS, "labels": ["0"] * 10_000}, "contains no CIFAR labels"),
        ({"data": PIXELS, "labels": LABELS[1:]}, "has 10,000 images and 9,999 labels, not 10,000"),
        ({"data": PIXELS, "labels": [*LABELS[1:], -1]}, "has the label -1"),
    ],
)
def test_pickles_of_something_else_are_refused(linked, content, problem):
    folder = linked("cifar10", "python", without=["test_batch"])
    (folder / "test_batch").write_bytes(python2_pickle(content))
    refused(lambda: read_cifar(folder, "cifar10", "test"), folder / "test_batch", problem, "rcnet data cifar10")


def test_pickles_of_python_3_for_python_2_are_read(linked):
    folder = linked("cifar10", "python", without=["test_batch"])
    pixels = PIXELS.copy()
    pixels[5] = 200
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": pixels, b"labels": LABELS}, protocol=2))
    assert np.array_equal(read_cifar(folder, "cifar10", "test")[0].reshape(10_000, 3072), pixels)


class Malicious:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_malicious_pickle_runs_nothing(linked, tmp_path, name):
    folder = linked("cifar10", "python", without=[name])
    victim = tmp_path / "victim"
    for protocol in range(6):
        for call, arguments in ((open, (str(victim), "w")), (eval, (f"open({str(victim)!r}, 'w')",)), (np.load, ("x",))):
            content = pickle.dumps({b"data": Malicious(call, *arguments)}, protocol=protocol)
            (folder / name).write_bytes(content)
            read = functools.partial(read_cifar, folder, "cifar10", "test")
            refused(read, folder / name, "is a pickle that asks for", "it was not executed")
    assert not victim.exists()
    pickle.loads(pickle.dumps(Malicious(open, str(victim), "w"))).close()
    assert victim.exists()  # such a pickle works where it is trusted


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray\n((I1\ntS'O'\ntR.",  # calls ndarray itself
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",  # arrays of pointers
        b"c_codecs\nencode\n(Vx\nVzlib\ntR.",
        b"(dp0\ncnumpy\nndarray.__new__\ns.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.path\x93.",
        b"P0\n.",  # a persistent id
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"(",
    ],
)
def test_crafted_pickles_are_refused(linked, content):
    folder = linked("cifar10", "python", without=["test_batch"])
    (folder / "test_batch").write_bytes(content)
    refused(lambda: read_cifar(folder, "cifar10", "test"), folder / "test_batch", "pickle")


def test_class_names_are_checked(linked):
    for version, name, contents in (
        ("binary", "batches.meta.txt", (b"", b"a b c", b"\xff " * 10, b"a " * 10, b"a b c d e f g h i j j", b"x" * 2_000_000)),
        (
            "python",
            "batches.meta",
            (b"", python2_pickle({}), python2_pickle({"label_names": ["a"]}), python2_pickle({"label_names": [["a"]] * 10})),
        ),
    ):
        folder = linked("cifar10", version, without=[name])
        read = functools.partial(read_cifar, folder, "cifar10", "test")
        refused(read, folder / name, "is missing")
        for content in contents:
            (folder / name).write_bytes(content)
            refused(read, folder / name, "rcnet data cifar10")


def test_what_is_not_there_is_said_with_where_it_was_looked_for(tmp_path):
    for dataset, names in (("cifar10", "cifar-10-batches-bin, cifar-10-binary.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")):
        refused(lambda d=dataset: read_cifar(tmp_path, d, "test"), names, f"rcnet data {dataset} --out {tmp_path}")
    file = tmp_path / "other.tar.gz"
    file.touch()
    refused(lambda: read_cifar(file, "cifar10", "test"), f"no cifar10 in {file}", f"--out {tmp_path}")
    refused(lambda: read_cifar(tmp_path, "cifar", "test"), "did you mean 'cifar10'?")
    refused(lambda: read_cifar(tmp_path, "cifar10", "val"), "unknown split 'val'", "train, test")


# Labelled images


def test_read_labelled_finds_the_cifar_that_is_there(official):
    test = read_labelled(official / "cifar100-binary", "test")
    assert isinstance(test, Labelled)
    assert (test.name, len(test.classes), test.labels.dtype, test.images.dtype) == ("cifar100", 100, torch.int64, torch.uint8)
    assert is_slice(test.images.numpy(), test.labels.numpy(), "cifar100", "test")


def test_two_cifars_have_to_be_told_apart(tmp_path, official):
    for name in ("cifar10-binary/cifar-10-batches-bin", "cifar100-python/cifar-100-python"):
        (tmp_path / name.split("/")[1]).symlink_to(official / name)
    refused(
        lambda: read_labelled(tmp_path, "test"),
        f"{tmp_path} contains cifar10 and cifar100: choose one",
        "classification.dataset=cifar10",
    )
    assert read_labelled(tmp_path, "test", "cifar100").name == "cifar100"
    assert read_labelled(tmp_path, "test", "cifar10").name == "cifar10"


def test_cifar_of_another_size_goes_through_fit(monkeypatch, tmp_path):
    pixels, labels, classes = load("cifar10", "test")
    monkeypatch.setattr("rcnet.data.labelled.read_cifar", lambda *_: (pixels.copy(), labels.astype(np.int64), tuple(classes)))
    larger = read_labelled(tmp_path, "test", "cifar10", size=48).images
    assert larger.shape == (100, 3, 48, 48)
    assert np.array_equal(larger[7].numpy().transpose(1, 2, 0), fit(pixels[7].transpose(1, 2, 0), 48))
    assert np.array_equal(read_labelled(tmp_path, "test", "cifar10", size=32).images.numpy(), pixels)


def test_an_image_folder_is_read_by_class(tmp_path):
    write_folder(tmp_path / "photos", 3)
    test = read_labelled(tmp_path / "photos", "test")
    assert (test.name, len(test.classes), test.images.shape) == ("photos", 10, (30, 3, 32, 32))
    pixels, labels, classes = load("cifar10", "test")
    assert list(test.classes) == classes
    assert test.labels.tolist() == [k for k in range(10) for _ in range(3)]
    expected = np.concatenate([pixels[labels == label][:3] for label in range(10)])
    assert np.array_equal(test.images.numpy(), expected)
    assert not torch.equal(test.images, read_labelled(tmp_path / "photos", "train").images)
    flat = read_labelled(tmp_path / "photos" / "test", "train", "folder", size=20)
    assert (flat.name, flat.images.shape) == ("test", (30, 3, 20, 20))


def test_a_folder_of_images_of_any_size_and_mode_is_read(tmp_path):
    pixels, _, _ = load("cifar10", "train")
    image = Image.fromarray(pixels[0].transpose(1, 2, 0))
    for name in ("a", "b", ".hidden"):
        (tmp_path / name / "deep").mkdir(parents=True)
    image.convert("L").resize((50, 90)).save(tmp_path / "a" / "gray.jpg")
    image.convert("RGBA").resize((31, 8)).save(tmp_path / "a" / "deep" / "alpha.webp")
    image.convert("P").save(tmp_path / "b" / "palette.PNG")
    (tmp_path / "notes.txt").touch()
    found = read_labelled(tmp_path, "test")
    assert found.classes == ("a", "b")
    assert (found.images.shape, found.labels.tolist()) == ((3, 3, 32, 32), [0, 0, 1])
    assert (found.images[1, 0] == found.images[1, 1]).all()  # a/gray.jpg


def test_image_folders_with_something_wrong_are_refused(tmp_path):
    def read(split="train"):
        return read_labelled(tmp_path, split)

    refused(lambda: read_labelled(tmp_path / "none", "train"), f"no folder of labelled images at {tmp_path / 'none'}")
    refused(read, f"{tmp_path} contains 0 class folders", "valid:", "CLASS")
    write_folder(tmp_path, 1)
    for extra in ("train", "test"):
        (tmp_path / extra / "zebra").mkdir()
        other = "test" if extra == "train" else "train"
        for split in ("train", "test"):
            refused(lambda s=split: read(s), f"zebra only in {extra}")
        (tmp_path / other / "yak").mkdir()
        refused(read, f"zebra only in {extra}", f"yak only in {other}")
        (tmp_path / other / "yak").rmdir()
        (tmp_path / extra / "zebra").rmdir()
    (tmp_path / "train" / "cat" / "0.png").rename(tmp_path / "train" / "stray.png")
    refused(read, f"{tmp_path / 'train' / 'stray.png'} is outside the class folders (1 such images)")
    (tmp_path / "train" / "stray.png").unlink()
    refused(read, f"{tmp_path / 'train' / 'cat'} contains no images")
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
    refused(read, f"{tmp_path / 'train' / 'cat' / '0.png'} is not a readable image")
    shutil.rmtree(tmp_path / "test")
    refused(lambda: read("test"), f"{tmp_path} contains a folder named train but none named test")
    refused(lambda: read("val"), "unknown split 'val'")
    refused(lambda: read_labelled(tmp_path, "train", "cifar1"), "unknown data set 'cifar1'")
    refused(lambda: read_labelled(tmp_path / "train", "train", "folder", size=-1), "size = -1 is not valid")


def test_fit_is_resize_of_the_shorter_side_and_centre_crop():
    image = load("cifar10", "train")[0][:4].transpose(0, 2, 3, 1).reshape(128, 32, 3)  # four images below each other
    assert np.array_equal(fit(image, 32), image[48:80])
    assert np.array_equal(fit(image.transpose(1, 0, 2), 32), image.transpose(1, 0, 2)[:, 48:80])
    small = np.asarray(Image.fromarray(image).resize((20, 80), Image.Resampling.BICUBIC))
    assert np.array_equal(fit(image, 20), small[30:50])
    assert fit(image[:33, :32], 32).shape == (32, 32, 3)
    assert fit(image[:1, :7], 5).shape == (5, 5, 3)
    for size in (0, -1):
        refused(lambda s=size: fit(image, s), f"size = {size} is not valid")


# Augmentation


@pytest.fixture
def batch():
    return torch.from_numpy(np.ascontiguousarray(load("cifar10", "train")[0][:64]))


def generator(seed=0):
    return np.random.default_rng(seed)


def naive(images, rng, crop, flip, cutout):
    """Each image by itself: pad, cut a window, mirror, hide a square."""
    count, side = len(images), images.shape[-1]
    ys, xs = rng.integers(-crop, crop + 1, size=(count, 1)), rng.integers(-crop, crop + 1, size=(count, 1))
    mirrored = rng.integers(2, size=count) if flip == "random" else np.zeros(count)
    if cutout:
        tops, lefts = (rng.integers(side - cutout + 1, size=(count, 1)) for _ in range(2))
    out = []
    for i, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), mode="reflect")
        y, x = crop + ys[i, 0], crop + xs[i, 0]
        window = padded[:, y : y + side, x : x + side].copy()
        window = window[:, :, ::-1].copy() if mirrored[i] else window
        if cutout:
            top, left = tops[i, 0], lefts[i, 0]
            window[:, top : top + cutout, left : left + cutout] = np.array(GRAY)[:, None, None]
        out.append(window)
    return np.stack(out)


@pytest.mark.parametrize("crop", [0, 1, 4, 31])
@pytest.mark.parametrize("flip", ["random", "none"])
@pytest.mark.parametrize("cutout", [0, 7, 32])
def test_augment_is_what_a_loop_over_the_images_gives(batch, crop, flip, cutout):
    out = augment(batch, generator(), crop=crop, flip=flip, cutout=cutout)
    assert out.dtype == torch.uint8
    assert np.array_equal(out.numpy(), naive(batch.numpy(), generator(), crop, flip, cutout))


def test_augment_draws_every_window_and_both_sides(batch):
    marks = torch.arange(32 * 32, dtype=torch.int64).view(1, 1, 32, 32).expand(4000, 1, 32, 32)
    out = augment(marks.clone(), generator(), crop=2)
    corners = {(int(image[0, 10, 10]), int(image[0, 10, 11] - image[0, 10, 10])) for image in out}
    # the pixel that comes to (10, 10), and the direction of the row: 25 windows, each in two directions
    assert corners == {
        (y * 32 + (x if step == 1 else 31 - x), step) for y in range(8, 13) for x in range(8, 13) for step in (1, -1)
    }


def test_augment_repeats_itself_with_the_same_generator_and_leaves_its_input_alone(batch):
    before = batch.clone()
    rng = generator(5)
    first = augment(batch, rng, cutout=8)
    assert torch.equal(first, augment(batch, generator(5), cutout=8))
    assert not torch.equal(first, augment(batch, rng, cutout=8))
    assert torch.equal(batch, before)
    assert torch.equal(augment(batch, generator(), crop=0, flip="none"), batch)


def test_the_alternating_flip_alternates(batch):
    index = torch.arange(1000, 1064)

    def at(epoch, places=slice(None), **options):
        return augment(batch[places], generator(epoch), crop=0, flip="alternating", epoch=epoch, index=index[places], **options)

    first = at(0)
    mirrored = (first == batch.flip(3)).flatten(1).all(1)
    assert torch.equal(first[~mirrored], batch[~mirrored])
    assert 16 < mirrored.sum() < 48
    for epoch in range(1, 5):
        assert torch.equal(at(epoch), first if epoch % 2 == 0 else first.flip(3))
    order = torch.randperm(64)
    assert torch.equal(at(0, order), first[order])  # by the index, not by the place in the batch
    assert not torch.equal(at(0, seed=1), first)


def test_the_alternating_flip_begins_evenly_and_without_pattern():
    index = torch.arange(10_000)
    images = torch.tensor([[[[0, 1]]]], dtype=torch.uint8).expand(10_000, 1, 1, 2)
    starts = []
    for seed in (0, 1, 2, 10**12):
        out = augment(images, generator(), crop=0, flip="alternating", epoch=0, index=index, seed=seed)
        starts.append(out[:, 0, 0, 0].double() * 2 - 1)
    starts = torch.stack(starts)
    assert starts.mean(1).abs().max() < 0.05  # five standard deviations
    agreement = starts @ starts.T / 10_000 - torch.eye(4)
    assert agreement.abs().max() < 0.05
    for lag in (1, 2, 3, 10, 256):
        assert (starts[:, lag:] * starts[:, :-lag]).mean(1).abs().max() < 0.05


@pytest.mark.parametrize("options", [{"crop": 32}, {"crop": -1}, {"cutout": 33}, {"cutout": -1}])
def test_crops_and_cutouts_that_do_not_fit_are_refused(batch, options):
    refused(lambda: augment(batch, generator(), **options), "crop < 32, cutout <= 32")


def test_unknown_flips_are_refused(batch):
    refused(lambda: augment(batch, generator(), flip="alternate"), "did you mean 'alternating'?")
    refused(lambda: augment(batch, generator(), flip="alternating"), "needs the index")


def test_to_float_is_the_fraction_of_255(batch):
    assert torch.equal(to_float(batch), batch / 255)
    assert to_float(batch).dtype == torch.float32


# Downloads

CONTENT = np.random.default_rng(0).integers(256, size=300_000, dtype=np.uint8).tobytes()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` and notes the Range header of each request."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.behaviour = content, [], "ranges"
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        asked, behaviour, content = self.headers.get("Range"), self.server.behaviour, self.server.content
        self.server.ranges.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and behaviour != "no ranges" else 0
        if behaviour == "missing":
            return self.send_error(404)
        if start >= len(content) > 0 and asked:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            shown = start + 1 if behaviour == "wrong range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        if behaviour != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: len(rest) // 2] if behaviour == "drop" else rest)
        return None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server(CONTENT)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "file.bin"


def part_of(path):
    return path.with_name(path.name + ".part")


def download_to(target, server, content=CONTENT):
    fetch(server.url, target, md5(content), progress=False)
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def test_a_download_is_whole_and_is_not_repeated(server, target):
    download_to(target, server)
    download_to(target, server)
    assert server.ranges == [None]
    target.write_bytes(b"damaged")
    download_to(target, server)


def test_a_broken_download_goes_on_where_it_broke(server, target):
    server.behaviour = "drop"
    part = part_of(target)
    line = refused(lambda: download_to(target, server), server.url, "broke after 150,000 of 300,000 bytes")
    assert f"150,000 bytes are kept in {part}; run again to continue" in line
    assert part.read_bytes() == CONTENT[:150_000]
    assert not target.exists()
    refused(lambda: download_to(target, server), "broke after 225,000 of 300,000 bytes")
    server.behaviour = "ranges"
    download_to(target, server)
    assert server.ranges == [None, "bytes=150000-", "bytes=225000-"]


@pytest.mark.parametrize(
    ("behaviour", "kept", "requests"),
    [
        ("no ranges", CONTENT[:1000], 1),
        ("wrong range", CONTENT[:1000], 2),
        ("no length", CONTENT[:1000], 1),
        ("ranges", CONTENT, 1),  # 416: it is complete
        ("ranges", CONTENT[:-1] + b"?", 2),
        ("ranges", CONTENT + b"more", 2),
        ("no ranges", CONTENT, 1),
    ],
)
def test_what_is_left_of_a_download_is_used_or_replaced(server, target, behaviour, kept, requests):
    server.behaviour = behaviour
    target.parent.mkdir()
    part_of(target).write_bytes(kept)
    download_to(target, server)
    assert len(server.ranges) == requests
    assert server.ranges[0] == f"bytes={len(kept)}-"


def test_a_file_with_another_checksum_is_deleted(server, target):
    target.parent.mkdir()
    target.write_bytes(b"older")
    line = refused(lambda: fetch(server.url, target, md5(b"other"), False), server.url, md5(CONTENT), md5(b"other"))
    assert "it was deleted" in line
    assert target.read_bytes() == b"older"
    assert not part_of(target).exists()
    part_of(target).write_bytes(b"?" * 10)  # of another file
    refused(lambda: download_to(target, server), "it was deleted")
    assert not part_of(target).exists()


def test_network_errors_are_one_line(server, target, monkeypatch):
    server.behaviour = "missing"
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:10])
    refused(lambda: download_to(target, server), server.url, "404 Not Found", "10 bytes are kept")
    part_of(target).unlink()
    refused(lambda: download_to(target, server), "404 Not Found")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        refused(lambda: fetch(url, target, "", False), url, "refused", "run again")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(download, "TIMEOUT", 0.1)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        refused(lambda: fetch(url, target, "", False), url, "timed out")
    for url in ("file:///etc/passwd", "cifar-10-binary.tar.gz"):
        refused(lambda u=url: fetch(u, target, "", False), url, "http://")
    for url in ("http://", "http://[x", "http://a b/c"):
        refused(lambda u=url: fetch(u, target, "", False), f"{url} cannot be downloaded")


def test_an_interrupted_download_is_kept(server, target, monkeypatch):
    class Interrupted(download.tqdm):
        def update(self, count=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_to(target, server)
    assert 0 < part_of(target).stat().st_size < len(CONTENT)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    download_to(target, server)
    assert server.ranges[1].startswith("bytes=")


def test_the_progress_bar_counts_what_was_there(server, target, capsys):
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:100_000])
    fetch(server.url, target, md5(CONTENT), progress=True)
    shown = capsys.readouterr()
    assert "file.bin:  33%" in shown.err
    assert "300k/300k" in shown.err
    assert shown.out == ""


# BSDS500

BSD68 = (cifar.IMAGES.parents[1] / "src" / "rcnet" / "data" / "bsd68.txt").read_text().split()


def bsd_members(val=(*BSD68, *range(500_001, 500_033)), train=range(600_001, 600_201)):
    """The names in BSR_bsds500.tgz, with its own junk, and a small JPEG for each image."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(file, "JPEG")
    root = "BSR/BSDS500/data"
    folder = tarfile.TarInfo(f"{root}/images/train")
    folder.type = tarfile.DIRTYPE
    members = [folder, (f"{root}/images/train/Thumbs.db", b"x"), (f"{root}/groundTruth/val/101085.mat", b"x")]
    for split, names in (("train", train), ("val", val), ("test", range(700_001, 700_201))):
        members += [(f"{root}/images/{split}/{name}.jpg", file.getvalue()) for name in names]
    return members


@pytest.fixture
def served_bsd(server, monkeypatch, tmp_path):
    """Serves an archive of these members as bsds500."""

    def serve(members):
        content = small_archive(tmp_path, members, "BSR_bsds500.tgz").read_bytes()
        (tmp_path / "BSR_bsds500.tgz").unlink()
        server.content = content
        monkeypatch.setitem(download.SETS, "bsds500", Archive(server.url, "BSR_bsds500.tgz", md5(content)))
        return tmp_path / "data"

    return serve


def test_bsds500_becomes_the_split_of_the_paper(served_bsd, server, capsys):
    out = served_bsd(bsd_members())
    command("bsds500", out=out)
    assert sorted(path.name for path in out.iterdir()) == ["BSR_bsds500.tgz", "bsd"]
    test = {path.stem for path in list_images(out / "bsd" / "test")}
    train = {path.stem for path in list_images(out / "bsd" / "train")}
    assert test == set(BSD68)
    assert train == {str(name) for name in (*range(500_001, 500_033), *range(600_001, 600_201))}
    assert (len(test), len(train)) == (68, 232)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(out / "bsd"), f"next: rcnet train r3_fast --data {out / 'bsd'}"]
    (out / "BSR_bsds500.tgz").unlink()
    assert get("bsds500", out, progress=False) == out / "bsd"
    assert len(server.ranges) == 1


def test_half_a_bsds500_is_never_left(served_bsd, monkeypatch):
    out = served_bsd(bsd_members(val=BSD68[1:]))
    refused(lambda: get("bsds500", out, progress=False), "is not BSDS500: instead of 232 and 68 images it contains 200 and 67")
    assert [path.name for path in out.iterdir()] == ["BSR_bsds500.tgz"]
    archive = out / "BSR_bsds500.tgz"
    archive.write_bytes(archive.read_bytes()[:-2000])
    refused(lambda: extract_bsd(archive, out / "bsd"), f"{archive} is damaged")
    assert [path.name for path in out.iterdir()] == ["BSR_bsds500.tgz"]
    served_bsd(bsd_members())
    (out / "bsd" / "train").mkdir(parents=True)
    refused(lambda: get("bsds500", out, progress=False), f"{out / 'bsd'} already exists", "move or delete it")
    shutil.rmtree(out / "bsd")
    get("bsds500", out, progress=False)
    assert len(list_images(out / "bsd")) == 300


def test_bsds500_takes_no_member_from_elsewhere(served_bsd):
    evil = tarfile.TarInfo("BSR/BSDS500/data/images/val/101085.jpg")
    evil.type, evil.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = bsd_members(val=[*BSD68, *range(500_001, 500_033)])
    members = [member for member in members if isinstance(member, tarfile.TarInfo) or member[0] != evil.name]
    out = served_bsd([evil, ("../evil.jpg", b"x"), ("BSR/BSDS500/data/images/val/../../x.jpg", b"x"), *members])
    refused(lambda: get("bsds500", out, progress=False), "is not BSDS500")
    assert not list(out.parent.rglob("*.jpg"))


def test_the_table_of_downloads_is_complete():
    for name, archive in download.SETS.items():
        assert archive.url.endswith(archive.file), name
        assert re.fullmatch(r"[0-9a-f]{32}", archive.md5)
    assert len(BSD68) == len(set(BSD68)) == 68
    assert all(name.isdigit() for name in BSD68)


# The command


def test_rcnet_data_prints_where_it_lies_and_what_is_next(server, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(download.SETS, "cifar10", Archive("http://127.0.0.1:9/none", "cifar-10-binary.tar.gz", md5(CONTENT)))
    command("cifar10", url=server.url)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "data/cifar-10-binary.tar.gz",
        "next: rcnet train cifar_fast classification.dataset=cifar10 --data data",
    ]
    assert "cifar-10-binary.tar.gz: 100%" in printed.err
    command("cifar10", out=tmp_path / "my data", url=server.url, json_output=True)
    printed = capsys.readouterr()
    path = tmp_path / "my data" / "cifar-10-binary.tar.gz"
    result = json.loads(printed.out)
    assert result == {
        "name": "cifar10",
        "path": str(path),
        "next": f"rcnet train cifar_fast classification.dataset=cifar10 --data '{tmp_path}/my data'",
    }
    assert printed.err == ""
    refused(lambda: command("cifar", out=tmp_path), "unknown data set 'cifar'", "did you mean 'cifar10'?", "bsds500")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "my data"]

"""Downloads of the data sets: resumed after an interruption and verified before use."""

import hashlib
import http.client
import os
import re
import secrets
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rcnet.errors import InputError, unknown

TIMEOUT = 30.0  # seconds without data, after which a connection counts as broken
_CHUNK = 1 << 16
_BSD_IMAGE = re.compile(r"BSR/BSDS500/data/images/(train|val)/(\d+)\.jpg")
_BSD_SPLIT = {"train": 232, "test": 68}


@dataclass(frozen=True)
class Archive:
    """The URL of a data set's archive, its local file name and its MD5."""

    url: str
    file: str
    md5: str


SETS = {
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
    ),
    "cifar100": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"
    ),
    "bsds500": Archive(  # Berkeley publishes no checksum; this one is from a public loader of the archive
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
        "BSR_bsds500.tgz",
        "0b17383ff0b21fe43d2f28e624203169",
    ),
}


def get(name: str, out: Path, url: str | None = None, progress: bool = True) -> Path:
    """Downloads a data set into a folder, unless it exists, and returns its path.

    The CIFAR sets stay archives, which `read_labelled` reads directly. From bsds500 the images of the paper's split are
    extracted, see `extract_bsd`; the archive is kept.

    Args:
        name: "cifar10", "cifar100" or "bsds500".
        url: another URL of the same archive.

    Raises:
        InputError: an unknown name, or what `fetch` and `extract_bsd` raise.
    """
    if name not in SETS:
        raise unknown("data set", name, SETS)
    archive = SETS[name]
    path = out / archive.file
    if name != "bsds500":
        fetch(url or archive.url, path, archive.md5, progress)
        return path
    if not _has_bsd(out / "bsd"):
        _check_free(out / "bsd")
        fetch(url or archive.url, path, archive.md5, progress)
        extract_bsd(path, out / "bsd")
    return out / "bsd"


def fetch(url: str, path: Path, md5: str, progress: bool) -> None:
    """Downloads a file, unless it exists with the right checksum.

    Until it is complete and verified, its name is `path` with ".part" appended; an interrupted download is resumed.

    Args:
        url: http or https.
        md5: of the file, in hexadecimal.
        progress: show a bar.

    Raises:
        InputError: another type of URL, no answer within 30 seconds, an error from the server, a broken connection (the part
            received is kept), or a wrong checksum (the file is deleted).
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url} is not valid: a URL starts with http:// or https://")
    if path.is_file() and _md5(path) == md5:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        if not _download(url, part, md5, progress):
            part.unlink()
            _download(url, part, md5, progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url} cannot be downloaded: the server answered {error.code} {error.reason}{_kept(part)}") from error
    except _Broken as error:
        raise InputError(f"{url} cannot be downloaded: {error}{_kept(part)}; run again to continue") from error
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise InputError(
            f"{url} is not the expected file: its MD5 is {found}, not {md5}; it was deleted; run again, or give another URL"
        )
    os.replace(part, path)


def extract_bsd(archive: Path, folder: Path) -> None:
    """Writes `folder/test`, the 68 images of BSD68, and `folder/train`, the 232 others of BSDS300, from BSR_bsds500.tgz.

    BSDS300 is the splits train and val of BSDS500 (200 and 100 images); BSD68 is 68 images of val. The folder is created
    atomically.

    Raises:
        InputError: the folder exists, the archive is damaged, or images are missing.
    """
    _check_free(folder)
    test = set(Path(__file__).with_name("bsd68.txt").read_text().split())
    temporary = folder.with_name(f".rcnet-{secrets.token_hex(8)}.tmp")
    try:
        for split in _BSD_SPLIT:
            (temporary / split).mkdir(parents=True)
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                image = _BSD_IMAGE.fullmatch(member.name)
                if image and member.isreg():
                    file = members.extractfile(member)
                    assert file is not None
                    number = image[2]
                    split = "test" if image[1] == "val" and number in test else "train"
                    (temporary / split / f"{number}.jpg").write_bytes(file.read())
        found = {split: len(list((temporary / split).iterdir())) for split in _BSD_SPLIT}
        if found != _BSD_SPLIT:
            raise InputError(
                f"{archive} is not BSDS500: instead of 232 and 68 images it contains {found['train']} and {found['test']}"
            )
        os.replace(temporary, folder)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is damaged: {error}; delete it and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Broken(Exception):
    """Why a download was interrupted."""


def _download(url: str, part: Path, md5: str, progress: bool) -> bool:
    """Appends the rest of the file to `part`; False if the server cannot resume there and the file is incomplete."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "rcnet", **({"Range": f"bytes={size}-"} if size else {})}
    try:
        request = _within(urllib.request.Request, url, headers=headers)
        response = _within(urllib.request.urlopen, request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if not size or error.code != 416:  # 416: the file ends there
            raise
        return _md5(part) == md5
    with response:
        start = 0
        if size and response.status == 206:
            found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            start = int(found[1]) if found else -1
            if start != size:
                return False
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=not progress)
        with bar, part.open("ab" if start else "wb") as file:
            while chunk := _within(response.read, _CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise _Broken(f"the connection broke after {part.stat().st_size:,} of {total:,} bytes")
    return True


def _within(call: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a network call. Its many exceptions become `_Broken`, except for `HTTPError`."""
    try:
        return call(*arguments, **options)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise _Broken(getattr(error.reason, "strerror", None) or error.reason) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _Broken(f"{type(error).__name__} {error}".strip()) from error


def _kept(part: Path) -> str:
    return f"; {part.stat().st_size:,} bytes are kept in {part}" if part.exists() else ""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _has_bsd(folder: Path) -> bool:
    return all(len(list((folder / split).glob("*.jpg"))) == count for split, count in _BSD_SPLIT.items())


def _check_free(folder: Path) -> None:
    if folder.exists():
        raise InputError(f"{folder} already exists and is not the complete data set: move or delete it, then run again")

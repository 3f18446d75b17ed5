"""CIFAR-10, image folders and augmentation. Knows files and torchvision, nothing of networks."""

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from normlib import files
from normlib.data.datasets import Dataset
from normlib.validation import checked_kind, kind, whole_number

SPLITS = ("train", "test")


@attrs.frozen
class Augmentation:
    """Random mirror images and shifts of a minibatch, made where the images are."""

    flip: bool = attrs.field(validator=kind(bool, "True or False"))
    shift: int = attrs.field(validator=whole_number(0))

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Changed copies of `images` (N, C, H, W).

        The random numbers come from `generator` on the CPU, so that every device makes the same
        changes; only they travel, the images stay where they are.
        """
        n, _, height, width = images.shape
        device, pad = images.device, self.shift
        down, right = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator).to(device)
        mirrored = torch.rand(n, 1, generator=generator).to(device) < 0.5
        columns = torch.arange(width, device=device).expand(n, -1)
        if self.flip:
            columns = torch.where(mirrored, width - 1 - columns, columns)
        rows = torch.arange(height, device=device) + down
        padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
        which = torch.arange(n, device=device)[:, None, None]
        changed = padded[which, rows[:, :, None], (columns + right)[:, None, :]]
        return changed.permute(0, 3, 1, 2)


def flip_and_shift(flip: bool = True, shift: int = 4) -> Augmentation:
    """Mirror images with probability 1/2, shifted by up to `shift` pixels each way.

    Parameters
    ----------
    flip : bool
    shift : int
        Pixels; what comes in from outside is 0, the mean of standardised images.

    Raises
    ------
    TypeError, ValueError
        For other values.

    Notes
    -----
    The usual augmentation of CIFAR-10. Chapter 10 offers it on a GPU.

    >>> images = torch.arange(12.0).reshape(1, 1, 3, 4)
    >>> changed = flip_and_shift(shift=1)(images, Generator().manual_seed(0))
    >>> changed.shape == images.shape
    True
    """
    return Augmentation(flip, shift)


def cifar10(root: str | Path, download: bool = True) -> Dataset:
    """CIFAR-10 as its authors published it: 50,000 training and 10,000 test images, ten classes.

    Parameters
    ----------
    root : str or Path
        The folder that holds the data or shall hold them (170 MB to download).
    download : bool
        Whether to download what is not there.

    Returns
    -------
    Dataset
        Images are (3, 32, 32).

    Raises
    ------
    ValueError
        If `root` is a file.
    RuntimeError
        If torchvision is missing, or the data are not there and could not be had.

    Notes
    -----
    Source: A. Krizhevsky, *Learning multiple layers of features from tiny images*, 2009, read by
    torchvision. Chapter 10.

    >>> data = cifar10("data")  # doctest: +SKIP
    """
    folder = _path("root", root)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"root must be a folder, but {folder} is a file")
    vision = _torchvision()
    arrays = {}
    try:
        for split in SPLITS:
            with warnings.catch_warnings():  # numpy's remarks on how the files were pickled
                warnings.simplefilter("ignore")
                read = vision.datasets.CIFAR10(folder, train=split == "train", download=download)
            images = torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous()
            arrays[split] = images, torch.tensor(read.targets)
    except (OSError, RuntimeError, EOFError) as error:
        todo = (
            "is there a network? Or put cifar-10-python.tar.gz there"
            if download
            else "call it with download=True, or put the folder cifar-10-batches-py there"
        )
        raise RuntimeError(f"CIFAR-10 could not be read from {folder} ({error}); {todo}") from None
    return _dataset(arrays, 10, "CIFAR-10")


def image_folder(
    path: str | Path, *, source: str | None = None, cache: str | Path | None = None
) -> Dataset:
    """Images in folders ``train/<class>/`` and ``test/<class>/``, all of one size.

    Files are decoded once and kept as uint8 in a cache; they are decoded again when a name, a size
    or a time of change differs.

    Parameters
    ----------
    path : str or Path
    source : str or None
        Where the images come from, in words (None: the folder's name).
    cache : str, Path or None
        A folder for decoded images (None: ``normlib`` in the user's cache folder).

    Returns
    -------
    Dataset
        Images are (3, H, W), whatever their files hold; classes in the order of their names;
        training images in a random order that depends on their number alone.

    Raises
    ------
    ValueError
        If the folder, a split or a class is missing or empty, if sizes differ, or if a file is
        damaged; the message names it.
    RuntimeError
        If torchvision is missing.

    Notes
    -----
    Chapter 10 was recorded on a folder of CIFAR-10 images that were saved as JPEG.

    >>> image_folder("nowhere")
    Traceback (most recent call last):
    ...
    ValueError: there is no folder nowhere
    """
    root = _path("path", path)
    if not root.is_dir():
        raise ValueError(f"{root} is a file, not a folder" if root.exists()
                         else f"there is no folder {root}")  # fmt: skip
    names = _classes(root)
    found = {split: _torchvision().datasets.ImageFolder(root / split) for split in SPLITS}
    states = [(file, os.stat(file)) for split in SPLITS for file, _ in found[split].samples]
    listing = files.fingerprint(
        [(os.path.relpath(file, root), state.st_size, state.st_mtime_ns) for file, state in states]
    )
    cached = _cache(cache) / f"{files.digest(str(root.resolve()).encode())}.npz"
    decoded = _read_cache(cached, listing)
    if decoded is None:
        decoded = _decode(found)
        _write_cache(cached, listing, decoded)
    arrays = {
        split: (torch.from_numpy(decoded[split]), torch.tensor(found[split].targets))
        for split in SPLITS
    }
    images, labels = arrays["train"]
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    arrays["train"] = images[order], labels[order]
    return _dataset(arrays, len(names), source or f"images in {root.resolve().name}")


def _path(name: str, value: str | Path) -> Path:
    checked_kind(name, value, (str, Path), "the path of a folder")
    return Path(value)


def _torchvision() -> Any:
    try:
        import torchvision  # an extra: only this needs it
    except ImportError:
        raise RuntimeError("reading images needs torchvision: pip install torchvision") from None
    except (RuntimeError, AttributeError, OSError) as error:
        raise RuntimeError(
            f"torchvision does not fit torch {torch.__version__} ({error}); install the one that "
            "was made for it"
        ) from None
    return torchvision


def _classes(root: Path) -> list[str]:
    """Names of the classes, the same in both splits, none of them empty."""
    names = {}
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            raise ValueError(
                f"there is no folder {folder}; expected are {root}/train/<class>/ and "
                f"{root}/test/<class>/"
            )
        names[split] = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        extensions = _torchvision().datasets.folder.IMG_EXTENSIONS
        for name in names[split]:
            files = (f for f in (folder / name).rglob("*") if f.suffix.lower() in extensions)
            if not any(f.is_file() for f in files):
                raise ValueError(f"class {folder / name} holds no image ({', '.join(extensions)})")
    if not names["train"]:
        raise ValueError(f"{root / 'train'} holds no folder of a class")
    only = set(names["train"]) ^ set(names["test"])
    if only:
        raise ValueError(f"classes in one of {root}/train and {root}/test only: {sorted(only)}")
    return names["train"]


def _decode(folders: dict[str, Any]) -> dict[str, np.ndarray]:
    """(N, 3, H, W) uint8 of all files of each torchvision ImageFolder."""
    decoded: dict[str, np.ndarray] = {}
    first, size = "", ()
    for split, folder in folders.items():
        pictures = []
        for file, _ in folder.samples:
            try:
                image = np.asarray(folder.loader(file))
            except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for damaged files
                raise ValueError(f"{file} cannot be read as an image: {error}") from None
            first, size = first or file, size or image.shape[:2]
            if image.shape[:2] != size:
                raise ValueError(
                    f"all images must have one size (height, width): {file} has "
                    f"{image.shape[:2]}, {first} has {size}"
                )
            pictures.append(image.transpose(2, 0, 1))
        decoded[split] = np.stack(pictures)
    return decoded


def _cache(folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normlib"


def _read_cache(path: Path, listing: str) -> dict[str, np.ndarray] | None:
    """Decoded images, if they are there, whole, and of these files."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            if str(arrays["listing"]) == listing:
                return {split: arrays[split] for split in SPLITS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged: decode
    return None


def _write_cache(path: Path, listing: str, decoded: dict[str, np.ndarray]) -> None:
    contents: dict[str, Any] = {"listing": np.array(listing), **decoded}
    try:
        with files.whole(path, f".{os.getpid()}.tmp") as file:
            np.savez(file, **contents)
    except OSError as error:
        warnings.warn(
            f"decoded images could not be kept in {path.parent} ({error}); they will be decoded "
            "again next time",
            stacklevel=3,
        )


def _dataset(arrays: dict[str, tuple[Tensor, Tensor]], classes: int, source: str) -> Dataset:
    """A dataset from uint8 images, each colour standardised with the training set's moments."""
    train = arrays["train"][0]
    count = train.numel() // train.shape[1]
    # Whole numbers add up exactly, so the moments are the same on every machine.
    sums = torch.stack([colour.sum(dtype=torch.int64) for colour in train.unbind(1)]).double()
    squares = torch.stack([_squares(colour) for colour in train.unbind(1)]).double()
    mean = sums / count
    std = (squares / count - mean**2).clamp(min=1.0).sqrt()

    def standardised(images: Tensor) -> Tensor:
        result = images.float()
        result -= mean.float().view(-1, 1, 1)
        result /= std.float().view(-1, 1, 1)
        return result

    (x, y), (x_test, y_test) = (arrays[split] for split in SPLITS)
    return Dataset(standardised(x), y, standardised(x_test), y_test, classes, source)


def _squares(colour: Tensor) -> Tensor:
    """The sum of squares of uint8 values, from how often each occurs."""
    values = torch.arange(256)
    return (colour.flatten().bincount(minlength=256) * values**2).sum()

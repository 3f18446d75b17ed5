"""Data as tensors. Knows where data come from and how they are checked, nothing of networks."""

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from normlib import files
from normlib.validation import checked_whole


@attrs.frozen
class Identity:
    """What data are, without the data: enough to recognise them by.

    Attributes
    ----------
    source : str
        Where the data come from, in words.
    sizes : (int, int)
        Training and test images.
    shape : (int, int, int)
        (C, H, W) of one image.
    classes : int
    labels : str
        A digest of all labels.
    images : str or (float, float)
        A digest of all pixels. For generated data, whose last bits differ between processors, a
        number that depends on every pixel of the training images, and one of the test images.
    """

    source: str
    sizes: tuple[int, int]
    shape: tuple[int, int, int]
    classes: int
    labels: str
    images: str | tuple[float, float]

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON can hold it, for the record of an experiment."""
        return attrs.asdict(self)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Identity":
        """The inverse of `settings`, after a journey through JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
        return cls(**fields)

    def matches(self, other: "Identity") -> bool:
        """Whether these are the same data, generated ones up to rounding.

        >>> here = mnist1d().identity
        >>> there = attrs.evolve(here, images=tuple(number + 1e-7 for number in here.images))
        >>> here == there, here.matches(there)
        (False, True)
        """
        return files.agree(self.settings, other.settings)


@dataclass(frozen=True)
class Dataset:
    """Images in memory, split for training and testing.

    Attributes
    ----------
    x_train, x_test : Tensor
        (N, C, H, W) float32, standardised with the training set's mean and standard deviation
        (colours one by one).
    y_train, y_test : Tensor
        (N,) int64 labels in 0 … classes − 1.
    classes : int
    source : str
        Where the data come from, in words.
    generated : bool
        Whether the images were computed here, so that their last bits depend on the processor.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    source: str
    generated: bool = False

    def __post_init__(self) -> None:
        for x, y, name in (
            (self.x_train, self.y_train, "train"),
            (self.x_test, self.y_test, "test"),
        ):
            if x.ndim != 4 or y.ndim != 1 or len(x) != len(y) or len(x) == 0:
                raise ValueError(
                    f"x_{name} must be (N, C, H, W) and y_{name} (N,) with N ≥ 1; "
                    f"got {tuple(x.shape)} and {tuple(y.shape)}"
                )
            if not x.is_floating_point() or not x.isfinite().all():
                raise ValueError(f"x_{name} must hold finite floating point numbers, got {x.dtype}")
            if y.dtype != torch.int64 or y.min() < 0 or y.max() >= self.classes:
                raise ValueError(
                    f"y_{name} must be int64 labels from 0 to {self.classes - 1}; "
                    f"got {y.dtype} from {int(y.min())} to {int(y.max())}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"x_test's images are {tuple(self.x_test.shape[1:])}, x_train's "
                f"{tuple(self.x_train.shape[1:])}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of training and of test images."""
        return len(self.x_train), len(self.x_test)

    @functools.cached_property
    def identity(self) -> Identity:
        """What these data are, without the data; reads every pixel, once.

        >>> mnist1d().identity.sizes
        (4000, 1000)
        """
        arrays = [x.detach().cpu().contiguous().numpy() for x in (self.x_train, self.x_test)]
        if self.generated:
            images: str | tuple[float, float] = (
                files.projection(arrays[0]),
                files.projection(arrays[1]),
            )
        else:
            images = files.digest(*(array.tobytes() for array in arrays))
        labels = files.fingerprint([self.y_train.tolist(), self.y_test.tolist()])
        return Identity(self.source, self.sizes, self.shape, self.classes, labels, images)

    def held_out(self, count: int) -> "Dataset":
        """The last `count` training images in place of the test images, to choose settings by.

        Chapter 07 chooses on them and reports on the test images.

        >>> chosen = mnist1d().held_out(800)
        >>> len(chosen.x_train), len(chosen.x_test)
        (3200, 800)
        """
        count = checked_whole("count", count, 1, len(self.x_train) - 1)
        return replace(
            self,
            x_train=self.x_train[:-count],
            y_train=self.y_train[:-count],
            x_test=self.x_train[-count:],
            y_test=self.y_train[-count:],
            source=f"{self.source}; the last {count} training images held out",
        )

    def balanced(self, count: int) -> "Dataset":
        """The first `count` training images of every class, and all test images.

        The images stay standardised as they were. Chapter 10 trains on a part of CIFAR-10.

        >>> part = mnist1d().balanced(100)
        >>> len(part.x_train), part.y_train.bincount().tolist()
        (1000, [100, 100, 100, 100, 100, 100, 100, 100, 100, 100])
        """
        fewest = int(self.y_train.bincount(minlength=self.classes).min())
        count = checked_whole("count", count, 1, fewest)
        first = [(self.y_train == label).nonzero()[:count, 0] for label in range(self.classes)]
        chosen = torch.cat(first).sort().values
        return replace(
            self,
            x_train=self.x_train[chosen],
            y_train=self.y_train[chosen],
            source=f"{self.source}; the first {count:,} training images of each class",
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Dataset":
        """The same data on `device`, images as `dtype`; themselves, if they are so already."""
        if self.x_train.device == torch.device(device) and self.x_train.dtype == dtype:
            return self
        return replace(
            self,
            x_train=self.x_train.to(device, dtype),
            y_train=self.y_train.to(device),
            x_test=self.x_test.to(device, dtype),
            y_test=self.y_test.to(device),
        )


# What the generator makes, rounded: the last bits differ between processors.
_MNIST1D_FIRST = (-0.3320, -0.4719, -0.7787, -1.0097, -0.8824, 0.1039)
_MNIST1D_LABELS = (2, 6, 4, 5, 6, 6, 6, 0, 3, 1)
_MNIST1D_MOMENTS = (-0.00032, 0.99765)  # mean and standard deviation of the training set


@functools.cache
def mnist1d() -> Dataset:
    """MNIST-1D: 4,000 training and 1,000 test signals of length 40, ten classes.

    Generated on this machine by the package of its authors (about two seconds, once a process);
    no network is used and the global random states are left as they were.

    Returns
    -------
    Dataset
        Images are (1, 1, 40).

    Raises
    ------
    RuntimeError
        If the installed generator makes other data than the known ones.

    Notes
    -----
    Source: S. Greydanus and D. Kobak, *Scaling down deep learning with MNIST-1D*, 2024. Every
    chapter uses it.

    >>> data = mnist1d()
    >>> data.shape, len(data.x_train), len(data.x_test), data.classes
    ((1, 1, 40), 4000, 1000, 10)
    """
    from mnist1d import data as generator  # slow to import, and few need it

    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        arrays = generator.make_dataset(generator.get_dataset_args())
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
    x, x_test = arrays["x"], arrays["x_test"]
    if not (
        np.allclose(x[0, :6], _MNIST1D_FIRST, atol=1e-3)
        and tuple(arrays["y"][:10]) == _MNIST1D_LABELS
        and np.allclose((x.mean(), x.std()), _MNIST1D_MOMENTS, atol=1e-4)
    ):
        raise RuntimeError(
            "the installed mnist1d package generates other data than this book was made with; "
            "install mnist1d 0.0.2.post1"
        )
    mean, std = x.mean(), x.std()

    def images(values: np.ndarray) -> Tensor:
        return torch.from_numpy((values - mean) / std).float()[:, None, None, :]

    return Dataset(
        x_train=images(x),
        y_train=torch.from_numpy(arrays["y"]),
        x_test=images(x_test),
        y_test=torch.from_numpy(arrays["y_test"]),
        classes=10,
        source="MNIST-1D, generated with seed 42",
        generated=True,
    )


@functools.cache
def digits() -> Dataset:
    """Handwritten digits, 8 × 8 pixels, as scikit-learn ships them: 1,000 to train, 797 to test.

    No network is used. The images are in the order of their source, so most test images are by
    writers whom the training set does not have.

    Returns
    -------
    Dataset
        Images are (1, 8, 8).

    Notes
    -----
    Source: E. Alpaydin and C. Kaynak, *Optical recognition of handwritten digits*, UCI, 1998; its
    test part. Chapters 02 and 04 use it.

    >>> data = digits()
    >>> data.shape, len(data.x_train), len(data.x_test), data.classes
    ((1, 8, 8), 1000, 797, 10)
    """
    from sklearn.datasets import load_digits  # slow to import, and few need it

    loaded = load_digits()
    images = torch.from_numpy(loaded.images).float()[:, None]
    labels = torch.from_numpy(loaded.target).long()
    mean, std = images[:1000].mean(), images[:1000].std()
    images = (images - mean) / std
    return Dataset(
        x_train=images[:1000],
        y_train=labels[:1000],
        x_test=images[1000:],
        y_test=labels[1000:],
        classes=10,
        source="UCI digits as in scikit-learn, the first 1,000 to train",
        generated=True,  # the mean and the standard deviation are
    )

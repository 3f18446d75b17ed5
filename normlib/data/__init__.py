"""Data as tensors. Knows where data come from and how they are checked, nothing of networks."""

from normlib.data.datasets import Dataset, Identity, digits, mnist1d
from normlib.data.images import Augmentation, cifar10, flip_and_shift, image_folder

__all__ = [
    "Augmentation",
    "Dataset",
    "Identity",
    "cifar10",
    "digits",
    "flip_and_shift",
    "image_folder",
    "mnist1d",
]

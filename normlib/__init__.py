"""normlib: what weight decay does in normalized networks, measured."""

from normlib.book import check, interval, scrubber, show, style
from normlib.datasets import Dataset, mnist1d
from normlib.nets import convnet, mlp
from normlib.rules import momentum, nesterov, sgd
from normlib.sweeps import sweep

__version__ = "0.1.0"

__all__ = [
    "Dataset",
    "check",
    "convnet",
    "interval",
    "mlp",
    "mnist1d",
    "momentum",
    "nesterov",
    "scrubber",
    "sgd",
    "show",
    "style",
    "sweep",
]

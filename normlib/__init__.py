"""normlib: what weight decay does in normalized networks, measured."""

from normlib.audits import Audit, audit
from normlib.book import check, furthest, heat, interval, scrubber, show, style
from normlib.datasets import Dataset, digits, mnist1d
from normlib.images import cifar10, flip_and_shift, image_folder
from normlib.invariance import euler, rescaled
from normlib.nets import convnet, mlp
from normlib.recordings import Recording, recorded
from normlib.ridges import Ridge, arrived, ridge
from normlib.rules import (
    adadelta,
    adagrad,
    adam,
    adamw,
    lion,
    momentum,
    nesterov,
    radial_free,
    rmsprop,
    sgd,
    unit_norm,
)
from normlib.sweeps import estimate, fast_precision, sweep
from normlib.tracking import Tracker, scale_exponent, track

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Dataset",
    "Recording",
    "Ridge",
    "Tracker",
    "adadelta",
    "adagrad",
    "adam",
    "adamw",
    "arrived",
    "audit",
    "check",
    "cifar10",
    "convnet",
    "digits",
    "estimate",
    "euler",
    "fast_precision",
    "flip_and_shift",
    "furthest",
    "heat",
    "image_folder",
    "interval",
    "lion",
    "mlp",
    "mnist1d",
    "momentum",
    "nesterov",
    "radial_free",
    "recorded",
    "rescaled",
    "ridge",
    "rmsprop",
    "scale_exponent",
    "scrubber",
    "sgd",
    "show",
    "style",
    "sweep",
    "track",
    "unit_norm",
]

"""What each recording is, as a sweep. Knows sweeps and data; reads no file."""

from collections.abc import Callable
from typing import Any

import xarray as xr

from normlib.data import Dataset, Identity, digits, mnist1d
from normlib.networks import convnet
from normlib.optimizers import (
    Optimizer,
    adam,
    adamw,
    momentum,
    nesterov,
    projected,
    sgd,
    unit_norm,
)
from normlib.sweeps import Sweep

# 1,000 images a class of a JPEG copy of CIFAR-10, and its whole test set. JPEG loses something:
# these are not the published images.
CIFAR10_JPEG = Identity(
    source="CIFAR-10, a JPEG copy; the first 1,000 training images of each class",
    sizes=(10000, 10000),
    shape=(3, 32, 32),
    classes=10,
    labels="085a88a5ff422c6a",
    images="7d5df87323899479",
)


def linear_end(step: int, steps: int) -> float:
    """A constant learning rate that falls to 0 in a straight line over the last 30 % of the steps.

    >>> [linear_end(step, 10) for step in (0, 7, 9)]
    [1.0, 1.0, 0.3333333333333333]
    """
    return min(1.0, (steps - step) / (0.3 * steps))


def _grid(optimizer: Optimizer, **changes: Any) -> Sweep:
    """What all grids of MNIST-1D share."""
    return Sweep(
        net=convnet(width=25, depth=3, norm="batch"),
        data=changes.pop("data", None) or mnist1d(),
        optimizer=optimizer,
        **{
            "seed": range(5),
            "epochs": 40,
            "schedule": linear_end,
            "record_every": 100,
            "device": "cpu",  # a recording is what it is, wherever it is read
            **changes,
        },
    )


def _nesterov(**changes: Any) -> Sweep:
    lr = [0.01, 0.03, 0.1, 0.3, 1, 3]
    weight_decay = [0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3]
    return _grid(nesterov(0.9), **{"lr": lr, "weight_decay": weight_decay, **changes})


def _adam(optimizer: Optimizer, weight_decay: list[float], **changes: Any) -> Sweep:
    lr = [3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1]
    return _grid(optimizer, lr=lr, weight_decay=weight_decay, epochs=60, **changes)


def _unit_norm(**changes: Any) -> Sweep:
    lr = [1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3]
    weight_decay = [0, 1e-3, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]
    return _grid(unit_norm(nesterov(0.9)), **{"lr": lr, "weight_decay": weight_decay, **changes})


def _near_limit(lr: float) -> Sweep:
    """A row of λ around the limit where the momentum of normalized Nesterov reaches 1.

    There ηλ = (1−μ)²/(1−μ+μ²). λ goes in steps of a factor 1.17, with the limit between two of
    them. The rate is constant: if it fell, ηλ would fall below the limit in the end.
    """
    limit = 0.1**2 / (1 - 0.1 * 0.9)
    steps = [k + 0.5 for k in range(-6, 6)]
    weight_decay = [0.0, *(float(f"{limit * 1.17**step / lr:.4g}") for step in steps)]
    return _unit_norm(
        lr=lr, weight_decay=weight_decay, lr_other=0.05, schedule="constant", record_every=50
    )


def _reported(spec: Sweep, lr: float, weight_decay: float) -> Sweep:
    """One cell, with seeds that had no part in choosing it."""
    return spec.replace(lr=lr, weight_decay=weight_decay, seed=range(5, 45))


def _decay_on(decay_on: str, **changes: Any) -> Sweep:
    weight_decay = [1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1]
    shared = {"lr": 0.1, "weight_decay": weight_decay, "seed": range(10), "decay_on": decay_on}
    return _nesterov(**shared | changes)


def _again(decay_on: str) -> Sweep:
    """The λ that one would use, with seeds that had no part in the question they answer."""
    weight_decay = [1e-4, 1e-3, 3e-3, 0.01]
    return _decay_on(decay_on, weight_decay=weight_decay, seed=range(10, 30), record_every=800)


def _group(decay_on: str) -> Sweep:
    """The λ at which decay on everything raised the training loss, and then the test error."""
    weight_decay = [1e-3, 3e-3, 0.01, 0.03]
    return _decay_on(decay_on, weight_decay=weight_decay, record_every=800)


ON_THE_CIRCLE: dict[str, Any] = {"optimizer": unit_norm(nesterov(0.9)), "seed": range(5, 15)}


def _first_steps(factor: float, **changes: Any) -> Sweep:
    """The learning rate of the hidden weights multiplied in the first 100 steps."""

    def schedule(step: int, steps: int) -> float:
        return linear_end(step, steps) * (factor if step < 100 else 1.0)

    # Seeds 0 to 4 raised the questions that these answer.
    shared = {"lr": 0.03, "lr_other": 0.05, "weight_decay": [0, 0.01], "seed": range(5, 25)}
    shared |= {"schedule": schedule, "schedule_other": linear_end}
    return _grid(changes.pop("optimizer", nesterov(0.9)), **shared | changes)


def linear(step: int, steps: int) -> float:
    """A learning rate that falls to 0 in a straight line.

    >>> [linear(step, 4) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return 1 - step / steps


def _course(held: bool, lr: float | list[float], **changes: Any) -> Sweep:
    """No decay; the norm is free to grow, or held at 1, where the effective rate is η.

    γ, β and the head keep one constant rate: only that of the hidden weights differs.
    """
    optimizer = unit_norm(nesterov(0.9)) if held else nesterov(0.9)
    own = {"lr_other": 0.05, "schedule": "constant", "schedule_other": "constant"}
    return _grid(optimizer, lr=lr, weight_decay=0.0, **own | changes)


def _falling(optimizer: Optimizer, weight_decay: float) -> Sweep:
    """A tenth of the steps at a constant rate, then in a straight line to 0, with decay."""

    def schedule(step: int, steps: int) -> float:
        return min(1.0, (steps - step) / (0.9 * steps))

    return _grid(
        optimizer, lr=0.1, weight_decay=weight_decay, lr_other=0.03, schedule=schedule,
        schedule_other="constant", epochs=100, record_every=10,
    )  # fmt: skip


def _to(fraction: float, **changes: Any) -> Sweep:
    """AdamW under a learning rate that falls in a straight line to a fraction of its first."""

    def schedule(step: int, steps: int) -> float:
        return 1 - (1 - fraction) * step / steps

    shared: dict[str, Any] = {
        "lr": [0.003, 0.01, 0.03, 0.1], "weight_decay": [0.03, 0.1, 0.3, 1, 3, 10]
    }  # fmt: skip
    shared |= {"lr_other": 0.003, "record_every": 400}
    return _grid(adamw(), schedule=schedule, **shared | changes)


def _repeated(per_class: int, decay_on: str) -> Sweep:
    """The first images of each class, again and again for 1,200 steps, and what decays."""
    return _grid(
        nesterov(0.9), data=mnist1d().balanced(per_class), lr=0.1, lr_other=None,
        weight_decay=[0, 1e-3, 3e-3, 0.01, 0.03, 0.1], decay_on=decay_on, schedule=linear,
        epochs=12_000 // per_class, seed=range(10), record_every=400,
    )  # fmt: skip


def _wide(width: int) -> Sweep:
    """AdamW on a network of some width: which η and λ are best?"""
    spec = _to(0.0, lr=[0.003, 0.01, 0.03], weight_decay=[0.1, 0.3, 1, 3, 10], seed=range(8))
    return spec.replace(net=convnet(width=width, depth=3, norm="batch"))


def _scaled(**changes: Any) -> Sweep:
    """AdamW at one rate and seven λ; what changes is the batch or the number of images."""
    decays = [0.1, 0.3, 1, 3, 10, 30, 100]
    return _to(0.0, **{"lr": 0.003, "weight_decay": decays, "seed": range(10), **changes})


def _undecayed(optimizer: Optimizer, **changes: Any) -> Sweep:
    """A row of learning rates without decay."""
    row: dict[str, Any] = {"lr": [0.003, 0.01, 0.03, 0.1, 0.3, 1, 3], "weight_decay": 0.0}
    shared = {"lr_other": 0.05, "schedule": linear, "seed": range(10), "record_every": 400}
    return _grid(optimizer, **row | shared | changes)


def _pushed(
    optimizer: Optimizer, weight_decay: float, norms: tuple[float, float, float], factor: float
) -> Sweep:
    """The layers' norms become `factor` times `norms` after 160 steps; until then all are one.

    The relaxation time is 40 steps, and `norms` are about those that a network has by then.
    """
    layers = convnet(width=25, depth=3, norm="batch").layers
    imposed = xr.DataArray(
        [[factor * norm] for norm in norms], coords={"layer": list(layers), "step": [160]}
    )
    return _grid(
        optimizer, lr=0.1, weight_decay=weight_decay, lr_other=0.03, schedule="constant",
        imposed_norms=imposed, epochs=6, record_every=5, seed=range(10, 50),
    )  # fmt: skip


def _held_out() -> Dataset:
    return mnist1d().held_out(800)


def _cifar10(
    optimizer: Optimizer, lr: list[float], weight_decay: list[float], **changes: Any
) -> Sweep:
    """What the grids of CIFAR-10 share; γ, β and the head at a learning rate of their own."""
    shared = {"data": CIFAR10_JPEG, "lr_other": 0.05, "seed": range(3), "epochs": 10}
    spec = _grid(optimizer, lr=lr, weight_decay=weight_decay, **shared | changes)
    return spec.replace(net=convnet(width=32, depth=3, norm="batch"))


_OTHERS = range(10, 30)
_L2 = [0, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1]
_DECOUPLED = [0, 0.03, 0.1, 0.3, 1, 3, 10, 30]

DEFINITIONS: dict[str, Callable[[], Sweep]] = {
    # The Nesterov grid, the paper's way: one learning rate for every parameter.
    "nesterov": _nesterov,
    # The same, with γ, β and the head at a learning rate of their own.
    "nesterov_other": lambda: _nesterov(lr_other=0.05),
    # The same on a second data set; ten steps an epoch.
    "digits_other": lambda: _nesterov(data=digits(), lr_other=0.05, epochs=100),
    # The Adam grid, the paper's way and with a learning rate of their own.
    "adam": lambda: _adam(adam(), _L2),
    "adam_other": lambda: _adam(adam(), _L2, lr_other=0.003),
    "adamw_other": lambda: _adam(adamw(), _DECOUPLED, lr_other=0.003),
    # The normalized grid, the paper's way and with a learning rate of their own for the rest.
    "unit_norm": _unit_norm,
    "unit_norm_other": lambda: _unit_norm(lr_other=0.05),
    # Two fine rows of it at a constant rate, around the λ where the momentum reaches 1; and
    # without decay every rate that a faster training could be compared with.
    "unit_norm_near_limit_small": lambda: _near_limit(0.01),
    "unit_norm_near_limit_large": lambda: _near_limit(0.1),
    "unit_norm_undecayed": lambda: _near_limit(0.1).replace(
        lr=[0.01, 0.018, 0.03, 0.056, 0.1, 0.18, 0.3, 0.56, 1, 1.8, 3], weight_decay=0.0
    ),
    # To choose the best cell by, on images held out: a plane of 56 cells that has its optimum
    # inside, and one line of the normalized grid.
    "nesterov_validation": lambda: _nesterov(
        lr=[1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1],
        weight_decay=[0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1],
        data=mnist1d().held_out(800),
    ),
    "unit_norm_validation": lambda: _unit_norm(data=mnist1d().held_out(800), weight_decay=0.0),
    # What they chose, with other seeds and the test images: the plane's best cell, the best of
    # its line λ = 0, and the best of the normalized line.
    "nesterov_report": lambda: _reported(_nesterov(), 0.03, 0.03),
    "nesterov_line_report": lambda: _reported(_nesterov(), 0.3, 0.0),
    "unit_norm_report": lambda: _reported(_unit_norm(), 0.1, 0.0),
    # Decay on all weights, and on γ, β and the head's bias too.
    "decay_weights": lambda: _decay_on("weights"),
    "decay_all": lambda: _decay_on("all"),
    "decay_weights_again": lambda: _again("weights"),
    "decay_all_again": lambda: _again("all"),
    # One group at a time: the head less, the hidden γ and β or the last ones more.
    "decay_invariant": lambda: _group("invariant"),
    "decay_invariant_hidden": lambda: _group("invariant+hidden_pairs"),
    "decay_invariant_last": lambda: _group("invariant+last_pair"),
    "decay_weights_last": lambda: _group("weights+last_pair"),
    # The first 100 steps with another learning rate.
    "first_tenth": lambda: _first_steps(0.1),
    "first_same": lambda: _first_steps(1.0),
    "first_tenfold": lambda: _first_steps(10.0),
    "first_same_unit_norm": lambda: _first_steps(1.0, **ON_THE_CIRCLE),
    "first_tenfold_unit_norm": lambda: _first_steps(10.0, **ON_THE_CIRCLE),
    # No decay: an effective rate that falls by itself, a constant one, and two schedules. To
    # choose η by, on images held out; and what they chose, with other seeds and the test images.
    "fall_free_validation": lambda: _course(False, [0.01, 0.03, 0.1, 0.3, 1, 3], data=_held_out()),
    "fall_constant_validation": lambda: _course(
        True, [1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3], data=_held_out()
    ),
    "fall_linear_validation": lambda: _course(
        True, [3e-3, 0.01, 0.03, 0.1, 0.3, 1], data=_held_out(), schedule=linear
    ),
    "fall_cosine_validation": lambda: _course(
        True, [3e-3, 0.01, 0.03, 0.1, 0.3, 1], data=_held_out(), schedule="cosine"
    ),
    "fall_free_report": lambda: _course(False, 0.3, seed=range(5, 15)),
    "fall_constant_report": lambda: _course(True, 0.03, seed=range(5, 15)),
    "fall_linear_report": lambda: _course(True, 0.3, seed=range(5, 15), schedule=linear),
    # AdamW to zero and to a tenth: to choose η and λ by, on images held out; and what they chose.
    "to_zero_validation": lambda: _to(0.0, data=_held_out()),
    "to_tenth_validation": lambda: _to(0.1, data=_held_out()),
    "to_zero_report": lambda: _reported(_to(0.0), 0.01, 1.0),
    "to_tenth_report": lambda: _reported(_to(0.1), 0.003, 3.0),
    # 400 and 1,000 images seen many times, and what decays.
    "few_invariant": lambda: _repeated(40, "invariant"),
    "few_weights": lambda: _repeated(40, "weights"),
    "few_all": lambda: _repeated(40, "all"),
    "some_invariant": lambda: _repeated(100, "invariant"),
    "some_all": lambda: _repeated(100, "all"),
    "many_all": lambda: _repeated(394, "all"),
    # The same data, and networks that grow wider.
    "width_8": lambda: _wide(8),
    "width_16": lambda: _wide(16),
    "width_32": lambda: _wide(32),
    "width_64": lambda: _wide(64),
    # The same number of epochs in larger batches, and on fewer images.
    "batch_25": lambda: _scaled(batch_size=25),
    "batch_50": lambda: _scaled(batch_size=50),
    "batch_100": lambda: _scaled(batch_size=100),
    "batch_200": lambda: _scaled(batch_size=200),
    "batch_400": lambda: _scaled(batch_size=400),
    "images_500": lambda: _scaled(data=mnist1d().balanced(50), epochs=80),
    "images_1000": lambda: _scaled(data=mnist1d().balanced(100), epochs=80),
    "images_2000": lambda: _scaled(data=mnist1d().balanced(200), epochs=80),
    "images_3900": lambda: _scaled(data=mnist1d().balanced(390), epochs=80),
    # Momentum that lengthens weights or not, or decays; and, with other seeds, what they chose.
    "lengthened": lambda: _undecayed(momentum(0.9)),
    "projected": lambda: _undecayed(projected(momentum(0.9))),
    "shortened": lambda: _undecayed(momentum(0.9), lr=0.1, weight_decay=[1e-3, 3e-3, 0.01, 0.03]),
    "lengthened_report": lambda: _undecayed(momentum(0.9), lr=0.03, seed=_OTHERS),
    "projected_report": lambda: _undecayed(projected(momentum(0.9)), lr=0.3, seed=_OTHERS),
    "shortened_report": lambda: _undecayed(momentum(0.9), lr=0.1, weight_decay=0.01, seed=_OTHERS),
    # The gradient's norm over the weights' while the rate falls, slowly; (1−μ)/(4ηλ) is 25 steps
    # at first in both.
    "falling_sgd": lambda: _falling(sgd(), 0.1),
    "falling_momentum": lambda: _falling(momentum(0.9), 0.01),
    # Norms pushed 20 % apart, to see how long the difference lasts; (1−μ)/(4ηλ) is 40 steps.
    "longer_sgd": lambda: _pushed(sgd(), 0.0625, (1.3, 1.4, 1.35), 1.2**0.5),
    "shorter_sgd": lambda: _pushed(sgd(), 0.0625, (1.3, 1.4, 1.35), 1.2**-0.5),
    "longer_momentum": lambda: _pushed(momentum(0.9), 0.00625, (3.6, 4.4, 4.1), 1.2**0.5),
    "shorter_momentum": lambda: _pushed(momentum(0.9), 0.00625, (3.6, 4.4, 4.1), 1.2**-0.5),
    # The weights four times smaller or larger at the start, and the same start many times.
    "start_quarter": lambda: _first_steps(1.0, init_scale=0.25),
    "start_fourfold": lambda: _first_steps(1.0, init_scale=4.0),
    "repeats": lambda: _first_steps(1.0, seed=range(25, 65), record_every=500),
    # The three grids on CIFAR-10.
    "cifar10_nesterov": lambda: _cifar10(
        nesterov(0.9),
        lr=[0.01, 0.03, 0.1, 0.3, 1],
        weight_decay=[0, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1],
        seed=range(5),
    ),
    "cifar10_adam": lambda: _cifar10(
        adam(),
        lr=[1e-3, 3e-3, 0.01, 0.03, 0.1],
        weight_decay=[0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3],
        lr_other=0.003,
    ),
    "cifar10_unit_norm": lambda: _cifar10(
        unit_norm(nesterov(0.9)),
        lr=[1e-3, 3e-3, 0.01, 0.03, 0.1],
        weight_decay=[0, 1e-3, 0.01, 0.03, 0.1, 0.3, 1],
    ),
    # The first with one learning rate for every parameter, where cells reach equilibrium.
    "one_rate_cifar10_nesterov": lambda: _cifar10(
        nesterov(0.9),
        lr=[0.01, 0.03, 0.1, 0.3, 1],
        weight_decay=[1e-3, 3e-3, 0.01, 0.03, 0.1],
        lr_other=None,
        seed=range(5),
    ),
    "one_rate_cifar10_adam": lambda: _cifar10(
        adam(),
        lr=[1e-3, 3e-3, 0.01, 0.03],
        weight_decay=[3e-3, 0.01, 0.03, 0.1, 0.3],
        lr_other=None,
        seed=range(5),
    ),
}


# On the published images, whole, for a CUDA device; `recorded` finds those that somebody ran.
FULL_SIZE = {f"full_{name}": name for name in DEFINITIONS if name.startswith("cifar10_")}


def definition(name: str) -> Sweep:
    """The sweep that a recording was made by.

    Raises
    ------
    ValueError
        If none has this name.
    """
    if name in FULL_SIZE:
        raise ValueError(f'"{name}" is made by chapter 10 on a CUDA device: make gpu')
    if name not in DEFINITIONS:
        known = ", ".join([*DEFINITIONS, *FULL_SIZE])
        raise ValueError(f'no recording is named "{name}"; there are {known}')
    return DEFINITIONS[name]()

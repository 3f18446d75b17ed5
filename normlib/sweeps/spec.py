"""Everything that a sweep's results depend on, checked once. Knows networks, data, optimizers.

A sweep trains one network for every cell of a grid of hyperparameters and every seed. A *part* of
it is one seed and a range of cells: one wide network.
"""

import numbers
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from types import NoneType
from typing import Any, Self

import attrs
import numpy as np
import torch
import xarray as xr
from attrs import field, frozen

from normlib import files
from normlib.data import Augmentation, Dataset, Identity
from normlib.networks import Net, Parameter
from normlib.optimizers import Optimizer, UnitNorm
from normlib.sweeps.parts import Part, cut
from normlib.validation import checked_kind, checked_whole, checked_word, kind, whole_number

# Counts the changes to what is computed from the same arguments, rounding apart. Parts and
# recordings say which version made them, and versions are never mixed.
ALGORITHM = 1

Arrays = dict[str, np.ndarray]
Schedule = str | Callable[[int, int], float]
Values = float | Sequence[float] | tuple[str, Sequence[float]] | np.ndarray | xr.DataArray

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
DECAY_ON = ("invariant", "weights", "all", "hidden_pairs", "last_pair")
SCHEDULES = ("constant", "step", "cosine")
EARLY = (1, 10, 50)  # steps after which loss and norms are kept, to recognise the same training
RESULTS = (
    "train_loss", "train_error", "test_loss", "test_error", "loss", "weight_norm",
    "gradient_norm", "effective_lr", "angle", "early_loss", "early_norm",
)  # fmt: skip
RESERVED = {"seed", "layer", "size", "step", "early", *RESULTS}


# Arguments as they are kept ---------------------------------------------------------------------


def _values(name: str, values: Any, positive: bool = False) -> xr.DataArray:
    """Numbers as an array over their dimension."""
    if isinstance(values, xr.DataArray):
        array = values
    else:
        dim = name
        if isinstance(values, tuple) and values and isinstance(values[0], str):
            if len(values) != 2:
                raise ValueError(f"{name} must be (dim, values), got {values!r}")
            dim, values = values
        listed = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
        for item in np.ravel(np.array(values, object)) if listed else [values]:
            if isinstance(item, bool | np.bool_) or not isinstance(item, numbers.Real):
                raise TypeError(
                    f"{name} must be a number or a sequence of numbers, got {item!r} "
                    f"({type(item).__name__})"
                )
        try:
            found = np.asarray(values, float)
        except OverflowError:
            raise ValueError(f"{name} holds a number that is too large") from None
        array = xr.DataArray(found, dims=[dim] if found.ndim else [])
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    if array.dims == (name,):
        array = array.assign_coords({name: array.values.astype(float)})
    if array.size == 0:
        raise ValueError(f"{name} is empty: the grid needs at least one value")
    array = array.astype(float)
    low = "greater than 0" if positive else "at least 0"
    good = np.isfinite(array.values) & (array.values > 0 if positive else array.values >= 0)
    if not good.all():
        bad = float(np.ravel(array.values)[~np.ravel(good)][0])
        raise ValueError(f"{name} must be finite and {low}, got {bad:g}")
    if name in array.coords and len(np.unique(array)) < array.size:
        raise ValueError(f"{name} lists a value twice: {list(array.values)}")
    return array


def _seeds(seed: Any) -> xr.DataArray:
    """Seeds as an array, with a dimension if they were listed."""
    listed = isinstance(seed, Sequence) and not isinstance(seed, str)
    listed = listed or (isinstance(seed, np.ndarray) and seed.ndim == 1)
    items = [checked_whole("seed", item, 0) for item in (seed if listed else [seed])]
    if not items:
        raise ValueError("seed is empty: the sweep needs at least one")
    if len(set(items)) < len(items):
        raise ValueError(f"seed lists a value twice: {items}")
    if listed:
        return xr.DataArray(items, dims="seed", coords={"seed": items})
    return xr.DataArray(items[0])


def device_of(device: Any) -> torch.device:
    """The device that is meant; None: CUDA where there is one, else the CPU.

    Raises
    ------
    TypeError, ValueError
        If it names no device, or none that torch sees here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device must name a torch device, got {device!r}")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must name a torch device, got {device!r}") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be a CPU, CUDA or MPS device, got {device}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f'device="{device}" was asked for, but torch sees none here') from None
    return device


def _factors(name: str, schedule: Schedule, steps: int) -> np.ndarray:
    """The factor on the learning rate at every step."""
    done = np.arange(steps) / steps
    if schedule == "constant":
        return np.ones(steps)
    if schedule == "step":
        return 0.1 ** ((done >= 0.5).astype(float) + (done >= 0.75))
    if schedule == "cosine":
        return 0.5 * (1 + np.cos(np.pi * done))
    wanted = f"{name} must be one of {', '.join(SCHEDULES)}, or a function of (step, steps)"
    if isinstance(schedule, str):
        raise ValueError(f"{wanted}; got {schedule!r}")
    try:
        factors = np.array([float(schedule(step, steps)) for step in range(steps)])
    except TypeError as error:
        raise TypeError(f"{wanted} to a number: {error}") from None
    if not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError(f"{name} must return finite factors of at least 0")
    return factors


def _precision(_: Any, argument: "attrs.Attribute[Any]", value: Any) -> None:
    if "float16" in str(value).split("."):
        raise ValueError(
            f"precision must be one of {', '.join(DTYPES)}; got {value!r} (float16 needs loss "
            "scaling, which would couple the networks)"
        )
    checked_word(argument.name, value, tuple(DTYPES))


def _words(_: Any, argument: "attrs.Attribute[Any]", value: Any) -> None:
    wanted = f"one of {', '.join(DECAY_ON)}, or several joined by +"
    checked_kind(argument.name, value, str, wanted)
    if not set(words := value.split("+")) <= set(DECAY_ON) or len(set(words)) < len(words):
        raise ValueError(f"{argument.name} must be {wanted}; got {value!r}")


@frozen(eq=False, slots=False, kw_only=True)
class Spec:
    """What is trained; the fields are the arguments of `nl.sweep`, which describes them."""

    net: Net = field(validator=kind(Net, "a network such as nl.convnet()"), kw_only=False)
    data: Dataset | Identity = field(
        validator=kind((Dataset, Identity), "data such as nl.mnist1d()"), repr=False, kw_only=False
    )
    optimizer: Optimizer = field(
        validator=kind(Optimizer, "an optimizer such as nl.nesterov()"), kw_only=False
    )
    lr: Values
    weight_decay: Values = 0.0
    seed: int | Sequence[int] | np.ndarray = 0
    epochs: int = field(default=40, validator=whole_number())
    batch_size: int = field(default=100, validator=whole_number())
    schedule: Schedule = "constant"
    lr_other: Values | None = None
    schedule_other: Schedule | None = None
    init_scale: Values = 1.0
    imposed_norms: xr.DataArray | None = None
    augment: Augmentation | None = field(
        default=None,
        validator=kind((Augmentation, NoneType), "nl.flip_and_shift() or None"),
    )
    decay_on: str = field(default="invariant", validator=_words)
    precision: str = field(default="float32", validator=_precision)
    record_every: int = field(default=10, validator=whole_number())
    chunk_size: int | None = field(
        default=None, validator=attrs.validators.optional(whole_number())
    )
    device: str | torch.device | None = None

    def __attrs_post_init__(self) -> None:
        """What concerns several arguments; looking at what follows from them checks the rest."""
        images, _ = self.data.sizes
        if not 2 <= self.batch_size <= images:
            raise ValueError(
                f"batch_size must lie between 2 and the {images} training images, got "
                f"{self.batch_size}"
            )
        per = self.optimizer.per if isinstance(self.optimizer, UnitNorm) else None
        if per and (self.net.norm == "none" or (self.net.norm == "layer" and per == "channel")):
            raise ValueError(
                f'optimizer {self.optimizer} normalizes each {per}, but with '
                f'norm="{self.net.norm}" '
                + ("no weight is scale-invariant" if self.net.norm == "none" else
                   'only whole layers are scale-invariant: use per="layer"')
            )  # fmt: skip
        decayed = bool((self.grid["weight_decay"] > 0).any())
        parameters = self.net.parameters(self.data.shape, self.data.classes)
        if decayed and not any(self.decays(p) for p in parameters):
            raise ValueError(
                f'decay_on="{self.decay_on}" decays nothing in {self.net}: it has no such '
                'parameters; use decay_on="weights" or decay_on="all"'
            )
        _ = self.seeds, self.factors, self.norms_by_cell, self.place

    def replace(self, **changes: Any) -> Self:
        """The same with other arguments, checked anew."""
        return attrs.evolve(self, **changes)

    # What follows from the arguments

    def decays(self, parameter: Parameter) -> bool:
        """Whether a parameter decays: it is in one of the groups that `decay_on` names."""
        layer = parameter.name.partition(".")[0]
        groups = {
            "invariant": parameter.invariant is not None,
            "weights": parameter.kind == "weight",
            "all": True,
            "hidden_pairs": layer in {f"norm{i}" for i in range(1, self.net.depth)},
            "last_pair": layer == f"norm{self.net.depth}",
        }
        return any(groups[word] for word in self.decay_on.split("+"))

    @cached_property
    def grid(self) -> dict[str, xr.DataArray]:
        """lr, weight_decay, init_scale and lr_other of every cell, over the grid's dimensions."""
        given = {
            "lr": _values("lr", self.lr, positive=True),
            "weight_decay": _values("weight_decay", self.weight_decay),
            "init_scale": _values("init_scale", self.init_scale, positive=True),
        }
        other = self.lr_other
        given["lr_other"] = given["lr"] if other is None else _values("lr_other", other)
        for dim in {dim for values in given.values() for dim in values.dims}:
            if dim in RESERVED or (dim in given and given[dim].dims != (dim,)):
                raise ValueError(f'nothing can vary along "{dim}": the results use that name')
        try:
            aligned = xr.broadcast(*xr.align(*given.values(), join="exact"))
        except ValueError as error:
            raise ValueError(
                f"hyperparameters along one dimension differ in length or labels: {error}"
            ) from None
        return dict(zip(given, aligned, strict=True))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The hyperparameters of every cell, one value a network."""
        return {name: values.values.reshape(-1) for name, values in self.grid.items()}

    @cached_property
    def seeds(self) -> xr.DataArray:
        """The seeds; with a dimension if they were listed."""
        return _seeds(self.seed)

    @cached_property
    def place(self) -> torch.device:
        """The device that is computed on."""
        return device_of(self.device)

    @property
    def steps(self) -> int:
        return self.epochs * (self.data.sizes[0] // self.batch_size)

    @property
    def work(self) -> int:
        """Network-steps of the whole sweep."""
        return len(self.columns["lr"]) * self.seeds.size * self.steps

    @property
    def recorded_steps(self) -> list[int]:
        """Steps at which traces are recorded, every `record_every`-th and the last."""
        return sorted({*range(0, self.steps, self.record_every), self.steps - 1})

    @property
    def early(self) -> list[int]:
        return [step for step in EARLY if step < self.steps]

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """The factor on `lr` and that on `lr_other` at every step."""
        own = _factors("schedule", self.schedule, self.steps)
        if self.schedule_other is None:
            return own, own
        return own, _factors("schedule_other", self.schedule_other, self.steps)

    @cached_property
    def norms_by_cell(self) -> xr.DataArray | None:
        """The imposed norms of every seed, cell and layer at every step that they name."""
        norms, cells, seeds = self.imposed_norms, self.grid["lr"], self.seeds
        if norms is None:
            return None
        if not isinstance(norms, xr.DataArray):
            raise TypeError(
                f"imposed_norms must be a DataArray such as runs.weight_norm, got {norms!r}"
            )
        own, possible = {"layer", "step"}, {"layer", "step", *cells.dims, *seeds.dims}
        if not own <= set(norms.dims) <= possible or not own <= set(norms.coords):
            raise ValueError(
                "imposed_norms must have the dimensions layer and step with their labels, and may "
                f"have {', '.join(map(str, sorted(possible - own, key=str))) or 'no others'}; it "
                f"has {', '.join(map(str, norms.dims))}"
            )
        if tuple(norms.layer.values) != self.net.layers:
            raise ValueError(
                f"imposed_norms must name the layers {', '.join(self.net.layers)} in this order"
            )
        at, steps = norms.step.values, self.steps
        if at.dtype.kind not in "iu" or at.min(initial=0) < 0 or at.max(initial=0) >= steps:
            raise ValueError(f"imposed_norms must name steps from 0 to {steps - 1}, got {at}")
        if not bool((np.isfinite(norms) & (norms > 0)).all()):
            raise ValueError(
                "imposed_norms must be finite and greater than 0; did a network diverge?"
            )
        try:
            norms, cells, seeds = xr.align(norms, cells, seeds, join="exact")
        except ValueError as error:
            raise ValueError(
                f"imposed_norms are of other cells or seeds than this sweep: {error}"
            ) from None
        full = norms.broadcast_like(xr.broadcast(cells, seeds)[0])
        return full.transpose(*seeds.dims, *cells.dims, "layer", "step")

    def parts(self, chunk_size: int, finished: Collection[Part] = ()) -> Iterator[Part]:
        """Every wide network to train, of nearly equal sizes; pieces that are finished stay."""
        yield from cut(np.ravel(self.seeds), len(self.columns["lr"]), chunk_size, finished)

    @cached_property
    def identity(self) -> Identity:
        """What the data are."""
        return self.data.identity if isinstance(self.data, Dataset) else self.data

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on but the seed, as JSON can hold it.

        The device, the number of threads and how many networks stand side by side change results
        by rounding only; each part says what it was made with. Numbers that another machine may
        round differently are compared by `files.agree`.
        """
        settings: dict[str, Any] = {
            "algorithm": ALGORITHM,
            "net": self.net.settings,
            "data": self.identity.settings,
            "optimizer": repr(self.optimizer),
            "grid": {name: column.tolist() for name, column in self.columns.items()},
            "factors": [files.projection(factors) for factors in self.factors],
        }
        for name in ("epochs", "batch_size", "decay_on", "precision", "record_every"):
            settings[name] = getattr(self, name)
        if (norms := self.norms_by_cell) is not None:
            at = norms.step.values.tolist()
            settings["imposed_norms"] = {"steps": at, "norms": files.projection(norms.values)}
        if self.augment is not None:
            settings["augment"] = repr(self.augment)
        return settings

    @property
    def fingerprint(self) -> str:
        """A short name of all that the results depend on but the seed, and of the algorithm."""
        return files.fingerprint(self.settings)

"""Sweeps as a reader runs them. Knows training and the folder of parts; no plots."""

import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import joblib
import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from normlib.data import Augmentation, Dataset
from normlib.networks import Net
from normlib.optimizers import Optimizer
from normlib.sweeps import store, training, workers
from normlib.sweeps.parts import Part
from normlib.sweeps.spec import DTYPES, Arrays, Schedule, Spec, Values, device_of
from normlib.validation import checked_kind

_DESCRIPTIONS = {
    "train_loss": "training loss, cross-entropy in nats",
    "train_error": "training error, fraction of images",
    "test_loss": "test loss, cross-entropy in nats",
    "test_error": "test error, fraction of images",
    "weight_norm": "norm of the layer's weights before the step",
    "gradient_norm": "norm of the loss gradient there, without decay",
    "effective_lr": "effective learning rate, lr / norm^p",
    "angle": "angle that the layer's weights turn in the step, radians",
    "loss": "loss on the step's minibatch, nats",
    "early_loss": "minibatch loss after a few steps, a fingerprint",
    "early_norm": "norm of the weights after a few steps",
}
_DIMENSIONS = {
    **dict.fromkeys(training.FINAL, ()),
    "loss": ("step",),
    "early_loss": ("early",),
    "early_norm": ("layer", "early"),
}


@attrs.frozen(eq=False, slots=False, kw_only=True, repr=False)
class Sweep(Spec):
    """A grid of trainings, checked and ready to run; the arguments are those of `nl.sweep`.

    A frozen value: ``spec.replace(lr=[0.1, 0.2])`` is another one. What a result depends on is
    checked here, before any work.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type, or with a wrong value.

    Notes
    -----
    Chapter 00 sweeps first; chapter 10 makes a spec, asks how long it takes, and runs it.

    >>> spec = nl.Sweep(nl.convnet(width=4), nl.mnist1d(), nl.sgd(), lr=[0.01, 0.1], epochs=1)
    >>> spec.run().test_error.dims
    ('lr',)
    >>> spec.replace(epochs=2).steps
    80
    """

    def run(
        self,
        checkpoint_dir: str | Path | None = None,
        n_jobs: int | None = None,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """Train all networks; parameters, result and notes as for `nl.sweep`."""
        start = time.perf_counter()
        data, folder = self._images(), _folder(checkpoint_dir)
        chunk_size, threads, results = self._resumed(folder)
        todo = [part for part in self.parts(chunk_size, results) if part not in results]
        lost: dict[str, str] = {}
        about = {} if folder is None else self._provenance(chunk_size, threads)
        hidden = not _watched(progress)
        jobs = workers.processes(self, len(todo), n_jobs)
        with tqdm(total=self.steps * len(todo), unit="step", disable=hidden, leave=False) as bar:
            for done in workers.computed(
                self, todo, data, threads, jobs, folder, about, bar.update
            ):
                results[done.part] = done.results
                if done.problem is not None:
                    lost[done.part.label] = done.problem
        if lost:
            warnings.warn(
                f"{len(lost)} of {len(todo)} parts could not be kept in {folder} "
                f"({next(iter(lost.values()))}): {', '.join(sorted(lost))}. Their results are "
                "returned; another run would compute them again.",
                stacklevel=2,
            )
        runs = self.assemble(results[part] for part in self.parts(chunk_size, results))
        return runs.assign_attrs(threads=threads, seconds=time.perf_counter() - start)

    def estimate(
        self, checkpoint_dir: str | Path | None = None, n_jobs: int | None = None
    ) -> float:
        """How long `run` would take, in seconds, from some steps of its first part.

        Nothing is written, and nothing is set aside.

        Parameters
        ----------
        checkpoint_dir, n_jobs
            As for `run`; parts that are finished there cost nothing.

        Notes
        -----
        Chapter 10 says it before a long sweep.

        >>> spec = nl.Sweep(nl.convnet(width=4), nl.mnist1d(), nl.sgd(), lr=0.1)
        >>> 0 < spec.estimate() < 600
        True
        """
        data, folder = self._images(), _folder(checkpoint_dir)
        chunk_size, threads, found = self._resumed(folder, tidy=False)
        missing = [part for part in self.parts(chunk_size, found) if part not in found]
        if not missing:
            return 0.0

        def seconds(steps: int) -> float:
            start = time.perf_counter()
            training.train(self, missing[0], data, stop=steps)
            return time.perf_counter() - start

        few, many = min(5, self.steps), min(25, self.steps)
        with training.threads(threads):
            seconds(few)  # what happens once, such as a library's choice of algorithms
            start = seconds(few)
            step = start / few if many == few else max(seconds(many) - start, 0.0) / (many - few)
        # An image that is only looked at costs about a third of one that is trained on.
        looks = sum(math.ceil(size / self.batch_size) for size in self.data.sizes) / 3
        jobs = workers.processes(self, len(missing), n_jobs)
        rounds = math.ceil(len(missing) / min(len(missing), joblib.effective_n_jobs(jobs)))
        return rounds * step * (self.steps + looks)

    def assemble(self, results: Iterable[Arrays]) -> xr.Dataset:
        """The dataset of a sweep from the results of its parts, in their order."""
        lr = self.grid["lr"]
        dims, seeds = tuple(map(str, lr.dims)), self.seeds
        coords: dict[Any, Any] = dict(lr.coords)
        for name in self.grid.keys() - set(dims):
            # Constant, or along a dimension of another name: a coordinate that holds its values.
            values = self.grid[name]
            same = [d for d in dims if bool((values == values.isel({d: 0})).all())]
            coords[name] = values.isel(dict.fromkeys(same, 0), drop=True)
        shapes = {p.name: p.shape for p in self.net.parameters(self.data.shape, self.data.classes)}
        size = [math.prod(shapes[f"{layer}.weight"]) for layer in self.net.layers]
        coords |= {"seed": seeds, "layer": list(self.net.layers), "size": ("layer", size)}
        runs = xr.Dataset(coords=coords | {"step": self.recorded_steps, "early": self.early})
        results = list(results)
        for name, description in _DESCRIPTIONS.items():
            # parts come seed by seed, cells in order within a seed
            joined = np.concatenate([result[name] for result in results])
            joined = joined.reshape(seeds.size, *lr.shape, *joined.shape[1:])
            extra = _DIMENSIONS.get(name, ("layer", "step"))
            array = xr.DataArray(np.moveaxis(joined, 0, lr.ndim), dims=(*dims, "seed", *extra))
            array = array if seeds.dims else array.isel(seed=0)
            runs[name] = array.assign_attrs(long_name=description)
        settings = ("epochs", "batch_size", "steps", "decay_on", "precision")
        return runs.assign_attrs(
            net=json.dumps(self.net.settings),
            data=self.data.source,
            optimizer=repr(self.optimizer),
            **{name: getattr(self, name) for name in settings},
            device=str(self.place),
            torch=str(torch.__version__),  # torch's own type is no plain string
        )

    def _images(self) -> Dataset:
        """The data where and as they are computed with."""
        if not isinstance(self.data, Dataset):
            raise ValueError(
                f'the images of "{self.data.source}" are not here, only what identifies them; '
                "give the data set itself"
            )
        return self.data.to(self.place, DTYPES[self.precision])

    def _resumed(
        self, folder: Path | None, tidy: bool = True
    ) -> tuple[int, int, dict[Part, Arrays]]:
        """Chunk size and threads that the sweep was begun with, and the results kept so far."""
        # One thread a part on a CPU: parts side by side would spin against each other with more.
        threads = 1 if self.place.type == "cpu" else torch.get_num_threads()
        found: dict[Part, Arrays] = {}
        begun: dict[str, Any] = {"chunk_size": self.chunk_size or workers.side_by_side(self)}
        if folder is not None and folder.exists():
            if not folder.is_dir():
                raise ValueError(f"checkpoint_dir must be a folder, but {folder} is a file")
            for arrays, about in store.usable(folder, self.settings, tidy):
                found[Part(about["seed"], about["first"], about["stop"])] = arrays
                begun = about
        if self.chunk_size not in (None, begun["chunk_size"]):
            raise ValueError(
                f"{folder} was begun with chunk_size={begun['chunk_size']}; leave chunk_size out, "
                "or use another folder"
            )
        if found and begun["threads"] != threads and tidy:
            warnings.warn(
                f"{folder} was begun with {begun['threads']} threads and goes on with as many, "
                f"not {threads}: otherwise results would be rounded differently",
                stacklevel=3,
            )
        return begun["chunk_size"], begun.get("threads", threads), found

    def _provenance(self, chunk_size: int, threads: int) -> dict[str, Any]:
        """What each part of a sweep says about itself."""
        cuda = self.place.type == "cuda"
        return {
            "settings": self.settings,
            "chunk_size": chunk_size,
            "threads": threads,
            "device": torch.cuda.get_device_name(self.place) if cuda else self.place.type,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }


def sweep(
    net: Net,
    data: Dataset,
    optimizer: Optimizer,
    *,
    lr: Values,
    weight_decay: Values = 0.0,
    seed: int | Sequence[int] | np.ndarray = 0,
    epochs: int = 40,
    batch_size: int = 100,
    schedule: Schedule = "constant",
    lr_other: Values | None = None,
    schedule_other: Schedule | None = None,
    init_scale: Values = 1.0,
    imposed_norms: xr.DataArray | None = None,
    augment: Augmentation | None = None,
    decay_on: str = "invariant",
    precision: str = "float32",
    record_every: int = 10,
    chunk_size: int | None = None,
    device: str | torch.device | None = None,
    checkpoint_dir: str | Path | None = None,
    n_jobs: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train one network for every combination of hyperparameters and seeds; measure all of them.

    Networks of one seed start from the same weights and see the same minibatches, so points of a
    grid are paired. A network that diverges becomes NaN and changes no bit of another.

    Parameters
    ----------
    net : Net
        E.g. ``nl.convnet(width=25)``.
    data : Dataset
        E.g. ``nl.mnist1d()``.
    optimizer : Optimizer
        E.g. ``nl.nesterov(momentum=0.9)``.
    lr, weight_decay, init_scale, lr_other : number, sequence, (dim, sequence) or DataArray
        A number makes no dimension, a sequence makes a dimension of the argument's name, and
        ``("line", [...])`` makes the dimension "line"; arguments that name the same dimension
        vary together along it. `init_scale` multiplies the hidden layers' weights at the start.
        `lr_other` is the learning rate of all other parameters (None: `lr` for every parameter,
        as in the paper).
    seed : int or sequence of int
        Initial weights and order of minibatches.
    epochs, batch_size : int
        The last, incomplete batch of an epoch is left out.
    schedule : {"constant", "step", "cosine"} or callable
        Factor on the learning rates: "step" divides by 10 at 50 % and at 75 % of the steps,
        "cosine" goes to 0; a callable gets (step, steps) and returns the factor.
    schedule_other : as `schedule`, or None
        The factor on the learning rate of parameters that are not scale-invariant (None: as
        `schedule`).
    imposed_norms : DataArray or None
        Norms to put the hidden layers' weights back to, such as another sweep's ``weight_norm``.
        It has the dimensions layer and step, and where norms differ, seed and those of the grid.
        At every step it names, before the gradient is taken, each layer's weights get that norm;
        their direction and the optimizer's buffers stay.
    augment : Augmentation or None
        Changes to every minibatch of training, e.g. ``nl.flip_and_shift()``; all networks of a
        seed see the same ones.
    decay_on : {"invariant", "weights", "all", "hidden_pairs", "last_pair"}, or several with +
        What decays: the scale-invariant weights, all weights (the head's too), every parameter, γ
        and β of all hidden layers but the last, or those of the last; "weights+last_pair" is both.
    precision : {"float32", "float64", "bfloat16"}
        "bfloat16" runs the network in autocast and keeps the weights in float32.
    record_every : int
        Traces hold every `record_every`-th step and the last.
    chunk_size : int or None
        How many networks to train as one (None: a choice for the images, the device, and the
        number of cores).
    device : str or None
        None: CUDA where there is one, else the CPU.
    checkpoint_dir : str, Path or None
        A folder of this sweep's own. Finished parts (one seed, one chunk) are written there, and
        a later call with the same arguments computes only what is missing, on a CPU to the same
        bits; seeds may be added. Parts that are damaged or of another sweep are set aside with a
        warning. If a part cannot be written, its results are returned all the same, and a warning
        says what was not kept.
    n_jobs : int or None
        How many processes compute parts side by side, each with one thread (-1: one a core). The
        results do not depend on it. None: one a core for a sweep on a CPU that takes longer than
        starting them, or what a ``with joblib.parallel_config(...)`` around the call says.
    progress : bool or None
        A progress bar; None: only where a person watches.

    Returns
    -------
    xarray.Dataset
        ``train_loss``, ``train_error``, ``test_loss``, ``test_error`` at the end, over the
        dimensions of the grid and the seed; ``loss`` (minibatch) over step too; ``weight_norm``,
        ``gradient_norm``, ``effective_lr``, ``angle`` over layer and step too. A trace at step t
        holds the weights before that step. Errors are fractions, angles radians. ``early_loss``
        and ``early_norm``, after 1, 10 and 50 steps, are a fingerprint of the training. The
        coordinate ``size`` is the number of entries of each layer's weights.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong type, or with a wrong value, before any work.

    Notes
    -----
    The one-line way of ``nl.Sweep(...).run(...)``. Chapter 00 uses it first; every later chapter
    stands on it.

    >>> runs = nl.sweep(
    ...     nl.convnet(width=4), nl.mnist1d(), nl.sgd(),
    ...     lr=[0.01, 0.1], weight_decay=[0, 1e-3], epochs=1,
    ... )
    >>> runs.test_error.dims
    ('lr', 'weight_decay')
    """
    arguments = dict(locals())
    for name in ("checkpoint_dir", "n_jobs", "progress"):
        del arguments[name]
    return Sweep(**arguments).run(checkpoint_dir, n_jobs, progress)


def fast_precision(device: str | torch.device | None = None) -> str:
    """The precision for speed: bfloat16 where a CUDA device computes with it, else float32.

    Parameters
    ----------
    device : str or None
        None: the device that a sweep takes.

    Notes
    -----
    A CUDA device without bfloat16 can imitate it, slowly; that does not count. Chapter 10.

    >>> nl.fast_precision("cpu")
    'float32'
    """
    device = device_of(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bfloat16"
    return "float32"


def _folder(checkpoint_dir: str | Path | None) -> Path | None:
    if checkpoint_dir is None:
        return None
    checked_kind("checkpoint_dir", checkpoint_dir, (str, Path), "the path of a folder")
    return Path(checkpoint_dir)


def _watched(progress: bool | None) -> bool:
    """Whether to show progress: where a person sits, unless ``NORMLIB_PROGRESS=0``."""
    if progress is not None:
        return progress
    if os.environ.get("NORMLIB_PROGRESS") == "0":
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules

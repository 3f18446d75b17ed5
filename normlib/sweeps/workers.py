"""Parts of a sweep computed one after another or side by side. Knows joblib and where they go."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import joblib
from joblib.parallel import get_active_backend

from normlib.data import Dataset
from normlib.sweeps import store, training
from normlib.sweeps.spec import Arrays, Part, Spec
from normlib.validation import checked_whole

WORTH = 20_000  # network-steps from which workers earn the seconds that they take to start


class Done(NamedTuple):
    """A finished part, and why it could not be kept, if it could not."""

    part: Part
    results: Arrays
    problem: str | None


def side_by_side(spec: Spec) -> int:
    """How many networks to train at once where nobody says.

    On a GPU 128. On a CPU as many as are fastest together: 32, or 4 if images are large, whose
    activations fill the memory; fewer, so that every core has a part, in a sweep that is worth it.
    """
    if spec.place.type != "cpu":
        return 128
    largest = 32 if math.prod(spec.data.shape) <= 256 else 4
    cells, seeds = len(spec.columns["lr"]), spec.seeds.size
    parts = math.ceil(cores() / seeds) if spec.work >= WORTH else 1
    return max(1, min(largest, math.ceil(cells / parts)))


def processes(spec: Spec, parts: int, n_jobs: int | None) -> int | None:
    """How many processes to use; None: those of the ``joblib.parallel_config`` around the call."""
    if n_jobs is not None and checked_whole("n_jobs", n_jobs, -1) == 0:
        raise ValueError("n_jobs must be -1, for one process a core, or at least 1; got 0")
    backend, chosen = get_active_backend()
    if (backend.nesting_level or 0) > 0 or parts <= 1:
        return 1
    if n_jobs is not None or chosen is not None:
        return n_jobs
    if spec.place.type != "cpu" or spec.work < WORTH or os.environ.get("NORMLIB_JOBS") == "1":
        return 1
    return min(cores(), parts)


def cores() -> int:
    return int(joblib.cpu_count(only_physical_cores=False))


def computed(
    spec: Spec,
    parts: Sequence[Part],
    data: Dataset,
    threads: int,
    n_jobs: int | None,
    folder: Path | None,
    about: dict[str, Any],
    tick: Callable[[int], object],
) -> Iterator[Done]:
    """Every part when it is finished and kept; `tick` is told how many steps were made.

    Raises
    ------
    RuntimeError
        If a worker was killed. What was finished is kept, if there is a folder.
    """
    if n_jobs == 1:
        for part in parts:
            yield _compute(spec, part, data, threads, folder, about, lambda: tick(1))
        return
    finished = 0
    tasks = (joblib.delayed(_compute)(spec, part, data, threads, folder, about) for part in parts)
    try:
        for done in joblib.Parallel(n_jobs, return_as="generator_unordered")(tasks):
            finished += 1
            tick(spec.steps)
            yield done
    except BrokenProcessPool as error:
        kept = (
            f"they are kept in {folder}; the same call computes the rest"
            if folder
            else "give checkpoint_dir=… to keep what is finished"
        )
        raise RuntimeError(
            f"a worker process was killed, perhaps for want of memory, when at least {finished} of "
            f"{len(parts)} parts were finished; {kept}"
        ) from error


def _compute(
    spec: Spec,
    part: Part,
    data: Dataset,
    threads: int,
    folder: Path | None,
    about: dict[str, Any],
    tick: Callable[[], object] = lambda: None,
) -> Done:
    """Train one part here, and keep it."""
    began = time.perf_counter()
    with training.threads(threads):
        results = training.train(spec, part, data, tick)
    if folder is not None:
        seconds = round(time.perf_counter() - began, 2)
        try:
            about = {**attrs.asdict(part), **about, "seconds": seconds}
            store.write(folder, part.label, results, about)
        except OSError as error:
            return Done(part, results, str(error))
    return Done(part, results, None)

"""Parts of a sweep computed one after another or side by side. Knows joblib and where they go."""

import contextlib
import ctypes
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import joblib
import torch
from joblib.parallel import LokyBackend, get_active_backend

from normlib.data import Dataset
from normlib.sweeps import store, training
from normlib.sweeps.parts import Part
from normlib.sweeps.spec import Arrays, Spec
from normlib.validation import checked_whole

# Threads, the folder and what a part says of itself there, and whom to tell of a step.
Kept = tuple[int, Path | None, dict[str, Any], Callable[[], object]]

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
        kept_as = (threads, folder, about, lambda: tick(1))
        places = devices(spec)
        if len(places) == 1:
            yield from _in_turn(spec, parts, data, kept_as)
        else:
            yield from _on_each(places, spec, parts, data, kept_as)
        return
    finished = 0
    ours = isinstance(get_active_backend()[0], LokyBackend)  # not workers of somebody's cluster
    compute = joblib.delayed(_in_worker if ours else _compute)
    tasks = (compute(spec, part, data, threads, folder, about) for part in parts)
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


def devices(spec: Spec) -> list[torch.device]:
    """The spec's device; all CUDA devices, if there are several and it names none of them."""
    if spec.place.type == "cuda" and spec.place.index is None and torch.cuda.device_count() > 1:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [spec.place]


def _in_turn(spec: Spec, parts: Sequence[Part], data: Dataset, kept_as: Kept) -> Iterator[Done]:
    """One part after the other; smaller ones where memory is too small."""
    waiting = deque(parts)
    while waiting:
        part = waiting.popleft()
        try:
            done = _compute(spec, part, data, *kept_as)
        except torch.OutOfMemoryError:
            done = None
        if done is None:  # here, where the error and what it holds are gone
            waiting = _smaller(part, waiting)
        else:
            yield done


def _on_each(
    places: Sequence[torch.device], spec: Spec, parts: Sequence[Part], data: Dataset, kept_as: Kept
) -> Iterator[Done]:
    """Several devices get parts in turn, each from a thread of its own."""
    dtype = data.x_train.dtype
    own = {place: (spec.replace(device=str(place)), data.to(place, dtype)) for place in places}
    waiting = deque(parts)
    running: dict[Future[Done], tuple[torch.device, Part]] = {}
    with ThreadPoolExecutor(len(places)) as pool:
        idle = list(places)
        while waiting or running:
            while idle and waiting:
                place, part = idle.pop(0), waiting.popleft()
                there, images = own[place]
                running[pool.submit(_compute, there, part, images, *kept_as)] = place, part
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                place, part = running.pop(task)
                idle.append(place)
                if isinstance(task.exception(), torch.OutOfMemoryError):
                    waiting = _smaller(part, waiting)
                else:
                    yield task.result()


def _smaller(part: Part, waiting: Iterable[Part]) -> deque[Part]:
    """A part that memory was too small for, and those not yet started, in halves."""
    size = part.stop - part.first
    if size == 1:
        raise RuntimeError(
            "memory is too small for one network of this sweep; take a smaller batch_size or width"
        )
    torch.cuda.empty_cache()
    largest = (size + 1) // 2
    warnings.warn(
        f"memory is too small for {size} networks side by side; what has not been started trains "
        f"at most {largest} at a time, which changes results by rounding only",
        stacklevel=2,
    )
    found: deque[Part] = deque()
    for one in (part, *waiting):
        found.extend(one.halves() if one.stop - one.first > largest else (one,))
    return found


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Let this process keep what it frees, and hand it back at the end. Linux's C library only.

    A step frees what the next one takes. Handed back to the system in between it returns as pages
    of zeros, which costs a tenth to a quarter of a step.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        option, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    thresholds = (-1, -3)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    for threshold in thresholds:
        option(threshold, 2**30)
    try:
        yield
    finally:
        for threshold in thresholds:
            option(threshold, 2**17)  # what the library starts with
        trim(0)


def _in_worker(*arguments: Any) -> Done:
    """In a process of our own, which may allocate as it likes while it computes."""
    with keeping_memory():
        return _compute(*arguments)


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

"""The same sweep in other hands: Dask, Ray, several devices, too little memory."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import joblib
import pytest
import torch

import normlib as nl
from normlib.sweeps import training, workers
from normlib.sweeps.parts import Part, cut
from tests.test_workers import ARGUMENTS, same_bits


@pytest.fixture(scope="module")
def spec(data):
    return nl.Sweep(nl.convnet(width=8, depth=2), data, nl.nesterov(), **ARGUMENTS)


@pytest.fixture(scope="module")
def alone(spec):
    return spec.run(n_jobs=1)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def kill_one(client, folder, stop):
    """Kill a worker of Dask when two parts are finished."""
    while len(list(folder.glob("*.npz"))) < 2:
        if stop.wait(0.01):
            return
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)


def test_dask_computes_the_same_bits_though_a_worker_is_killed(spec, alone, cluster, tmp_path):
    stop = threading.Event()
    killer = threading.Thread(target=kill_one, args=(cluster, tmp_path, stop))
    killer.start()
    with joblib.parallel_config(backend="dask"):
        runs = spec.run(tmp_path)
    stop.set()
    killer.join()
    same_bits(runs, alone)
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_dask_computes_only_the_rest(spec, alone, cluster, tmp_path):
    spec.run(tmp_path, n_jobs=1)
    for path in sorted(tmp_path.glob("*.npz"))[:2]:
        path.unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    with joblib.parallel_config(backend="dask"):
        same_bits(spec.run(tmp_path), alone)
    now = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert len(now) == 6
    assert kept.items() <= now.items()


def test_two_runs_on_one_folder_do_not_harm_each_other(spec, alone, tmp_path):
    found, start = [], threading.Barrier(2)

    def run():
        start.wait()
        found.append(spec.run(tmp_path, n_jobs=1))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for runs in [*found, spec.run(tmp_path, n_jobs=1)]:
        same_bits(runs, alone)
    assert not list(tmp_path.glob("*.aside"))


def test_ray_computes_the_same_bits(spec, alone, tmp_path):
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        register_ray()
        with joblib.parallel_config(backend="ray"):
            same_bits(spec.run(tmp_path), alone)
    finally:
        ray.shutdown()
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_several_devices_get_parts_in_turn(spec, alone, monkeypatch, tmp_path):
    """As if there were two GPUs."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(workers, "devices", lambda _: [cpu, torch.device("cpu", 0)])
    used, compute = [], workers._compute

    def note(spec, *rest):
        used.append(str(spec.place))
        time.sleep(0.05)
        return compute(spec, *rest)

    monkeypatch.setattr(workers, "_compute", note)
    same_bits(spec.run(tmp_path, n_jobs=1), alone)
    assert sorted(set(used)) == ["cpu", "cpu:0"]
    assert len(used) == 6


@pytest.mark.parametrize(("device", "count"), [("cuda", 3), ("cuda:1", 1), ("cpu", 1)])
def test_all_gpus_are_used_unless_one_is_named(monkeypatch, device, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    asked = SimpleNamespace(place=torch.device(device))
    assert len(workers.devices(asked)) == count


@pytest.fixture
def little_memory(monkeypatch):
    """Memory for so many networks side by side, and no more."""
    room, train, trained = [2], training.train, []

    def limited(spec, part, *rest, **keywords):
        if part.stop - part.first > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        trained.append(part)
        return train(spec, part, *rest, **keywords)

    monkeypatch.setattr(training, "train", limited)
    limited.room, limited.trained = room, trained
    return limited


def test_too_little_memory_halves_what_has_not_been_started(
    spec, alone, little_memory, tmp_path, data
):
    large = spec.replace(chunk_size=6)
    with pytest.warns(UserWarning, match="memory is too small for .* networks side by side"):
        runs = large.run(tmp_path, n_jobs=1)
    sizes = [part.stop - part.first for part in little_memory.trained]
    assert max(sizes) <= 2
    assert sum(sizes) == 12
    assert bool((abs(runs.early_loss / alone.early_loss - 1) < 1e-5).all())
    # what is there is used, in whatever sizes it was made
    little_memory.trained.clear()
    next(iter(sorted(tmp_path.glob("*.npz")))).unlink()
    same_bits(large.run(tmp_path, n_jobs=1), runs)
    assert len(little_memory.trained) == 1


def test_memory_for_not_even_one_network_is_said(spec, little_memory):
    little_memory.room[0] = 0
    with (
        pytest.warns(UserWarning, match="memory is too small"),
        pytest.raises(RuntimeError, match="memory is too small for one network"),
    ):
        spec.run(n_jobs=1)


def test_parts_around_finished_ones_cover_every_cell_once():
    finished = [Part(0, 0, 3), Part(1, 9, 11)]  # of 0 to 6 and 6 to 13
    found = list(cut([0, 1], 13, 7, finished))
    assert set(finished) <= set(found)
    for seed in (0, 1):
        cells = [i for p in found if p.seed == seed for i in range(p.first, p.stop)]
        assert cells == list(range(13))

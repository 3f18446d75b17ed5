"""Parts side by side: the same bits, whatever happens to a worker."""

import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time

import joblib
import numpy as np
import psutil
import pytest

import normlib as nl
from normlib.sweeps import workers

# Six parts of about half a second.
ARGUMENTS = dict(
    lr=[0.01, 0.03, 0.1], weight_decay=[0, 1e-2], seed=range(2), epochs=8, chunk_size=2
)


@pytest.fixture(scope="module")
def spec(data):
    return nl.Sweep(nl.convnet(width=8, depth=2), data, nl.nesterov(), **ARGUMENTS)


@pytest.fixture(scope="module")
def alone(spec):
    return spec.run(n_jobs=1)


def same_bits(one, other):
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=name)


def test_results_do_not_depend_on_the_number_of_workers(spec, alone, tmp_path):
    same_bits(spec.run(n_jobs=3), alone)
    same_bits(spec.run(tmp_path, n_jobs=2), alone)
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_another_engine_can_be_chosen_around_the_call(spec, alone):
    used = []

    class Watched(joblib._parallel_backends.ThreadingBackend):
        def submit(self, *arguments, **keywords):
            used.append(1)
            return super().submit(*arguments, **keywords)

    joblib.register_parallel_backend("watched", Watched)
    with joblib.parallel_config(backend="watched", n_jobs=2):
        same_bits(spec.run(), alone)
    assert len(used) == 6


def workers_of_this_process():
    found = [(p, " ".join(p.cmdline())) for p in psutil.Process().children()]
    return [p for p, line in found if "loky" in line and "resource_tracker" not in line]


def kill_a_worker(folder, parts, delay, stop):
    """Kill one worker some moments after so many parts are finished."""
    while len(list(folder.glob("*.npz"))) < parts or not workers_of_this_process():
        if stop.wait(0.01):
            return
    time.sleep(delay)
    for worker in workers_of_this_process()[:1]:
        worker.send_signal(signal.SIGKILL)


def test_a_killed_worker_loses_nothing_that_was_finished(spec, alone, tmp_path):
    """Killed again and again at random moments; more often with NORMLIB_KILLS=20."""
    chance, said = random.Random(0), []
    for _ in range(int(os.environ.get("NORMLIB_KILLS", 3))):
        for path in tmp_path.glob("*.npz"):
            path.unlink()
        stop = threading.Event()
        moment = chance.randrange(4), chance.uniform(0, 0.3)
        killer = threading.Thread(target=kill_a_worker, args=(tmp_path, *moment, stop))
        killer.start()
        try:
            runs = spec.run(tmp_path, n_jobs=2)
        except RuntimeError as error:
            said.append(str(error))
            finished = {path.name for path in tmp_path.glob("*.npz")}
            runs = spec.run(tmp_path, n_jobs=2)
            assert finished <= {path.name for path in tmp_path.glob("*.npz")}
        stop.set()
        killer.join()
        same_bits(runs, alone)
    assert not list(tmp_path.glob("*.aside"))
    assert said
    assert all(f"they are kept in {tmp_path}; the same call computes the rest" in s for s in said)


def test_an_interrupt_leaves_no_orphan(tmp_path):
    code = (
        "import normlib as nl\n"
        "spec = nl.Sweep(nl.convnet(width=8), nl.mnist1d(), nl.nesterov(), lr=[0.01, 0.03],"
        " seed=range(8), epochs=40, chunk_size=1)\n"
        f"spec.run({str(tmp_path)!r}, n_jobs=2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    watched, end = psutil.Process(process.pid), time.monotonic() + 60
    while len(list(tmp_path.glob("*.npz"))) < 1:
        assert time.monotonic() < end
        time.sleep(0.05)
    family = watched.children(recursive=True)
    assert len(family) >= 2
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def nested(spec):
    return workers.processes(spec, 6, 2), workers.processes(spec, 6, None)


FAULTS = """
import resource, torch
from normlib.sweeps.workers import keeping_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
with keeping_memory():
    faults()
    kept = faults()
print(plain, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks the C library of Linux")
def test_a_worker_keeps_its_memory_from_step_to_step_and_hands_it_back():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept, after = map(int, run.stdout.split())
    assert kept < plain / 20
    assert after > plain / 2


def test_no_workers_of_workers(spec):
    (found,) = joblib.Parallel(n_jobs=2)([joblib.delayed(nested)(spec)])
    assert found == (1, 1)


def test_workers_are_started_only_where_they_earn_it(spec, monkeypatch):
    monkeypatch.delenv("NORMLIB_JOBS")
    monkeypatch.setattr(workers, "cores", lambda: 4)
    large = spec.replace(epochs=400)
    assert workers.processes(spec, 6, None) == 1
    assert workers.processes(large, 6, None) == 4
    assert workers.processes(large, 3, None) == 3
    assert workers.processes(large, 1, 8) == 1
    with joblib.parallel_config(n_jobs=2):
        assert workers.processes(spec, 6, None) is None  # joblib's own default holds
    monkeypatch.setenv("NORMLIB_JOBS", "1")
    assert workers.processes(large, 6, None) == 1


def test_every_core_gets_a_part_of_a_large_sweep(data, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 4)
    rates = list(np.geomspace(0.01, 0.1, 40))
    spec = nl.Sweep(nl.convnet(), data, nl.sgd(), lr=rates)
    assert workers.side_by_side(spec) == 10
    assert workers.side_by_side(spec.replace(seed=range(4))) == 32
    assert workers.side_by_side(spec.replace(epochs=1)) == 32


@pytest.mark.parametrize(("error", "n_jobs"), [(TypeError, 1.5), (ValueError, 0), (ValueError, -2)])
def test_a_wrong_number_of_workers_is_named(spec, error, n_jobs):
    with pytest.raises(error, match="n_jobs"):
        spec.run(n_jobs=n_jobs)

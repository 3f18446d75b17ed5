"""The benchmark trains what it says and counts the arithmetic right."""

import numpy as np

import normlib as nl
from normlib.sweeps import training
from tools import bench


def test_arithmetic_of_a_step_is_counted_by_hand():
    # multiply-adds of a sample: 20 · 25 · 5, 10 · 25 · 75, 5 · 25 · 75 and, for the head, 125 · 10
    forward = 2 * 100 * (2500 + 18750 + 9375 + 1250)
    first = 2 * 100 * 2500
    assert bench.arithmetic(nl.convnet(), (1, 1, 40)) == 3 * forward - first


def test_the_sweep_that_is_timed_trains_every_network_for_its_steps(monkeypatch):
    trained, train = [], training.train

    def note(spec, part, data, stop):
        results = train(spec, part, data, stop=stop)
        trained.append((part.stop - part.first, np.count_nonzero(results["loss"][0])))

    monkeypatch.setattr(training, "train", note)
    images = bench.random_images((1, 1, 8), 400)
    bench.sweep(nl.convnet(width=4, depth=2), images, 3, 2, record_every=1)
    assert trained == [(3, 2)]


def test_importing_is_measured_in_a_process_without_normlib():
    assert bench.importing("import sys; assert 'normlib' not in sys.modules") < 1
    assert bench.importing("time.sleep(0.2)") > 0.2


def test_ratios_are_of_paired_runs():
    times = {"sweep": [1.0, 2.0, 4.0], "loop": [3.0, 6.0, 40.0]}
    assert bench.ratio(times, "loop") == 3.0

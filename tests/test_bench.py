"""The benchmark trains what it says and counts the arithmetic right."""

import pytest
import torch

import normlib as nl
from tools import bench


def test_arithmetic_of_a_step_is_counted_by_hand():
    # multiply-adds of a sample: 20 · 25 · 5, 10 · 25 · 75, 5 · 25 · 75 and, for the head, 125 · 10
    forward = 2 * 100 * (2500 + 18750 + 9375 + 1250)
    first = 2 * 100 * 2500
    assert bench.arithmetic(nl.convnet(), (1, 1, 40)) == 3 * forward - first


@pytest.mark.parametrize("method", [bench.sweep, bench.loop, bench.vmap])
def test_every_method_trains(method):
    torch.manual_seed(0)
    assert method(nl.convnet(width=4, depth=2), bench.random_images((1, 1, 8), 400), 3, 2) > 0


def test_what_a_tracker_adds_is_measured_too():
    pytest.importorskip("torchvision")
    plain, added = bench.tracked(2, size=32)
    assert plain > 0
    assert abs(added) < 10 * plain


def test_ratios_are_of_paired_runs():
    times = {"sweep": [1.0, 2.0, 4.0], "loop": [3.0, 6.0, 40.0]}
    assert bench.ratio(times, "loop") == 3.0

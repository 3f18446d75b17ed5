"""MNIST-1D is the known one, and making it leaves no trace."""

import dataclasses
import json
import random
import socket

import numpy as np
import pytest
import torch
from mnist1d import data as generator

import normlib as nl
from tests.conftest import noise


def test_mnist1d_is_the_known_data(data):
    assert data.x_train.shape == (4000, 1, 1, 40)
    assert data.x_test.shape == (1000, 1, 1, 40)
    assert data.x_train.dtype == torch.float32
    assert data.y_train.dtype == torch.int64
    assert data.y_train[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]
    assert data.y_train.bincount().tolist() == [398, 396, 411, 394, 394, 402, 401, 404, 402, 398]
    assert data.y_test.bincount().tolist() == [102, 104, 89, 106, 106, 98, 99, 96, 98, 102]
    first = data.x_test[0, 0, 0, :5] * 0.99765 - 0.00032  # undo the standardisation
    assert first.tolist() == pytest.approx([-0.0788, -0.2107, -0.0918, 0.2827, 0.3261], abs=1e-3)


def test_mnist1d_is_standardised_by_its_training_set(data):
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.x_train.std()) == pytest.approx(1, abs=1e-4)


def test_mnist1d_needs_no_network_and_restores_random_states(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    nl.mnist1d.cache_clear()
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    nl.mnist1d()
    assert (random.random(), np.random.rand()) == expected


def test_another_generator_is_noticed(monkeypatch):
    make = generator.make_dataset

    def other(arguments):
        arguments.seed += 1
        return make(arguments)

    monkeypatch.setattr(generator, "make_dataset", other)
    nl.mnist1d.cache_clear()
    with pytest.raises(RuntimeError, match="other data"):
        nl.mnist1d()


def test_a_wrong_shape_is_named():
    images, labels = torch.zeros(3, 1, 1, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="x_test"):
        nl.Dataset(images, labels, images[:2], labels, 10, "test")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("y_train", dict(y_train=torch.tensor([0, 1, 9]))),
        ("y_test", dict(y_test=torch.tensor([0, 1, -1]))),
        ("int64", dict(y_train=torch.zeros(3, dtype=torch.int32))),
        ("finite", dict(x_train=torch.full((3, 1, 1, 4), float("nan")))),
        ("images", dict(x_test=torch.zeros(3, 1, 1, 5))),
    ],
)
def test_wrong_contents_are_named(name, wrong):
    images, labels = torch.zeros(3, 1, 1, 4), torch.tensor([0, 1, 2])
    right = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
    nl.Dataset(**right, classes=3, source="test")
    with pytest.raises(ValueError, match=name):
        nl.Dataset(**right | wrong, classes=3, source="test")


def test_identity_tells_data_apart(data):
    assert data.identity.sizes == (4000, 1000)
    moved = dataclasses.replace(data, x_train=data.x_train.roll(1, 3))
    swapped = dataclasses.replace(data, y_train=data.y_train.flip(0))
    for other in (moved, swapped, dataclasses.replace(data, classes=12)):
        assert not other.identity.matches(data.identity)


def test_generated_data_are_recognised_in_spite_of_another_processors_rounding(data):
    """Also on the edge between two digits; exact data must be the same to the bit."""
    for shift in np.linspace(-1e-6, 1e-6, 9):
        rounded = dataclasses.replace(data, x_train=data.x_train + np.float32(shift))
        assert rounded.identity.matches(data.identity)
        exact = dataclasses.replace(rounded, generated=False)
        same = torch.equal(rounded.x_train, data.x_train)
        assert exact.identity.matches(dataclasses.replace(data, generated=False).identity) == same


def test_an_identity_survives_json(data):
    for known in (data.identity, noise(20, 10).identity):
        assert type(known).of(json.loads(json.dumps(known.settings))) == known


def test_data_that_are_already_so_are_not_converted_again(data):
    assert data.to("cpu", torch.float32) is data
    assert data.to("cpu", torch.float64).x_test.dtype == torch.float64


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (1000, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_wrong_count_of_balanced_images_is_named(data, count, error):
    with pytest.raises(error, match="count"):
        data.balanced(count)


def test_balanced_images_are_the_first_of_each_class(data):
    part = data.balanced(20)
    assert part.sizes == (200, 1000)
    assert "the first 20 training images of each class" in part.source
    for label in range(10):
        expected = data.x_train[data.y_train == label][:20]
        assert torch.equal(part.x_train[part.y_train == label], expected)

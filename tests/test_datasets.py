"""MNIST-1D is the known one, and making it leaves no trace."""

import dataclasses
import random
import socket

import numpy as np
import pytest
import torch

import normlib as nl
from normlib.data import datasets, generator_placeholder


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
    make = datasets.generator.make_dataset

    def other(arguments):
        arguments.seed += 1
        return make(arguments)

    monkeypatch.setattr(datasets.generator, "make_dataset", other)
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


def test_identity_tells_data_apart_and_not_their_device_or_slices(data, monkeypatch):
    assert data.identity.settings["shape"] == [4000, 1000, 1, 1, 40]
    moved = dataclasses.replace(data, x_train=data.x_train.roll(1, 3))
    assert moved.identity != data.identity
    swapped = dataclasses.replace(data, y_train=data.y_train.flip(0))
    assert swapped.identity != data.identity
    whole = datasets._projection(data.x_train)
    assert datasets._projection(data.x_train, at_once=7) == whole


@pytest.mark.parametrize("count", [0, 1000, 1.5, True])
def test_a_wrong_count_of_balanced_images_is_named(data, count):
    with pytest.raises(ValueError, match="count"):
        data.balanced(count)


def test_balanced_images_are_the_first_of_each_class(data):
    part = data.balanced(20)
    assert part.sizes == (200, 1000)
    assert "the first 20 training images of each class" in part.source
    for label in range(10):
        expected = data.x_train[data.y_train == label][:20]
        assert torch.equal(part.x_train[part.y_train == label], expected)

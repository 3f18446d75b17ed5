"""K wide networks equal K ordinary torch trainings."""

import itertools

import numpy as np
import pytest
import torch

import normlib as nl
from normlib.sweeps import training
from tests import reference

# Learning rates of each rule's own range: rounding grows where training is wild.
LRS, ADAPTIVE, DECAYS = (0.003, 0.03, 0.1), (1e-4, 1e-3, 1e-2), (1e-3, 5e-2)
RULES = {
    "sgd": (nl.sgd(), torch.optim.SGD, {}),
    "momentum": (nl.momentum(0.9), torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (nl.nesterov(0.9), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (nl.adam(), torch.optim.Adam, {}),
    "adamw": (nl.adamw(), torch.optim.AdamW, {}),
    "rmsprop": (nl.rmsprop(), torch.optim.RMSprop, {}),
    "adagrad": (nl.adagrad(), torch.optim.Adagrad, {}),
    "adadelta": (nl.adadelta(), torch.optim.Adadelta, {}),
}


def trained_wide(monkeypatch, *arguments, **settings):
    """The wide network that a sweep trained, beside the sweep's result."""
    kept = []
    evaluate = training.evaluate

    def keep(spec, wide, x, y):
        kept.append(wide)
        return evaluate(spec, wide, x, y)

    monkeypatch.setattr(training, "evaluate", keep)
    return nl.sweep(*arguments, **settings), kept[-1]


def largest_difference(state, other):
    """Largest ‖Δ‖/‖w‖ over parameters and buffers."""
    worst = 0.0
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            difference = (value - other[key]).norm()
            worst = max(worst, float(difference / other[key].norm().clamp_min(1e-8)))
    return worst


@pytest.fixture(scope="module")
def small(data):
    """2,500 images in double precision: 50 steps are two epochs."""
    part = data.to("cpu", torch.float64)
    return nl.Dataset(part.x_train[:2500], part.y_train[:2500], part.x_test, part.y_test, 10, "")


def assert_six_wide_networks_equal_six_torch_trainings(monkeypatch, data, net, name, decay):
    rule, optimizer, settings = RULES[name]
    lrs = ADAPTIVE if name in ("adam", "adamw", "rmsprop", "adagrad") else LRS
    initial = net.wide(1, data.shape, data.classes, seed=3, dtype=torch.float64)
    runs, wide = trained_wide(
        monkeypatch, net, data, rule, lr=lrs, weight_decay=DECAYS, seed=3, epochs=2,
        decay_on=decay, precision="float64", record_every=1,
    )  # fmt: skip
    assert runs.sizes["step"] == 50
    for k, (lr, weight_decay) in enumerate(itertools.product(lrs, DECAYS)):
        model = reference.train(
            net, data, initial, 0, lambda groups, lr=lr: optimizer(groups, lr, **settings),
            weight_decay, decay, reference.minibatches(data, 3, 2),
        )  # fmt: skip
        assert largest_difference(wide.state_dict(k), model.state_dict()) <= 1e-9
        model.eval()
        with torch.no_grad():
            outputs, ours = model(data.x_test), wide(data.x_test)[k]
        assert float((outputs - ours).norm() / outputs.norm()) <= 1e-9
        error = float((outputs.argmax(1) != data.y_test).double().mean())
        assert float(runs.test_error.sel(lr=lr, weight_decay=weight_decay)) == error


@pytest.mark.parametrize("decay", ["weights", "invariant", "all"])
@pytest.mark.parametrize("name", RULES)
def test_six_wide_networks_equal_six_torch_trainings(monkeypatch, small, name, decay):
    net = nl.convnet(width=8, depth=3)
    assert_six_wide_networks_equal_six_torch_trainings(monkeypatch, small, net, name, decay)


@pytest.mark.parametrize("decay", ["hidden_pairs", "last_pair", "invariant+last_pair"])
@pytest.mark.parametrize("norm", ["batch", "weight"])
def test_groups_that_decay_are_those_that_are_named(monkeypatch, small, norm, decay):
    net = nl.convnet(width=8, depth=3, norm=norm)
    assert_six_wide_networks_equal_six_torch_trainings(monkeypatch, small, net, "nesterov", decay)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
@pytest.mark.parametrize("make", [nl.convnet, nl.mlp])
def test_every_network_trains_like_torchs_own(monkeypatch, small, make, norm, name):
    net = make(width=8, depth=2, norm=norm)
    assert_six_wide_networks_equal_six_torch_trainings(monkeypatch, small, net, name, "weights")


@pytest.mark.parametrize("eps", [1e-3, 0.3])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("make", [nl.convnet, nl.mlp])
def test_epsilon_is_the_ordinary_networks(monkeypatch, small, make, norm, eps):
    """In training and in evaluation; torch's default would hide another value."""
    net = make(width=8, depth=2, norm=norm, eps=eps)
    assert_six_wide_networks_equal_six_torch_trainings(
        monkeypatch, small, net, "momentum", "weights"
    )


@pytest.mark.parametrize("shape", [(1, 1, 40), (3, 9, 12)])
@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
@pytest.mark.parametrize("make", [nl.convnet, nl.mlp])
@pytest.mark.parametrize("width", [1, 6])
def test_outputs_equal_the_ordinary_network(make, norm, shape, width):
    net = make(width=width, depth=2, norm=norm)
    wide = net.wide(3, shape, classes=4, seed=1, dtype=torch.float64)
    random = torch.Generator().manual_seed(2)
    for value in wide.values.values():  # three different networks
        value.data += 0.3 * torch.randn(value.shape, dtype=value.dtype, generator=random)
    x = torch.randn(20, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for training_mode, k in itertools.product((True, False), range(3)):
        model = net.module(shape, classes=4).double().train(training_mode)
        model.load_state_dict(wide.state_dict(k))
        with torch.no_grad():
            torch.testing.assert_close(wide(x, training_mode)[k], model(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
@pytest.mark.parametrize("make", [nl.convnet, nl.mlp])
def test_a_cell_is_the_same_to_the_bit_whether_or_not_a_neighbour_diverges(data, make, norm):
    def run(weight_decay):
        return nl.sweep(
            make(width=5, depth=2, norm=norm), data, nl.nesterov(),
            lr=0.1, weight_decay=("cell", [1e-3, weight_decay, 1e-2]), decay_on="weights", epochs=1,
        )  # fmt: skip

    calm, wild = run(1e-3), run(1e6)
    assert np.isfinite(calm.test_loss).all()
    assert np.isnan(wild.test_loss[1])
    for name in calm.data_vars:
        np.testing.assert_array_equal(calm[name][[0, 2]], wild[name][[0, 2]], err_msg=name)


def test_a_diverged_network_is_nan(data):
    runs = nl.sweep(
        nl.convnet(width=5, depth=2), data, nl.sgd(), lr=0.1, weight_decay=[0, 1e6], epochs=1
    )
    for name in ("train_loss", "train_error", "test_loss", "test_error"):
        assert np.isfinite(runs[name][0])
        assert np.isnan(runs[name][1])
    last = runs.isel(weight_decay=1, step=-1)
    assert np.isnan(last.weight_norm).all()
    assert np.isnan(last.loss)

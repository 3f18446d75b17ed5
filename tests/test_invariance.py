"""Which weights are scale-invariant, found by Euler's identity and by rescaling; symmetries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import normlib as nl

MAKERS = {"convnet": nl.convnet, "mlp": nl.mlp}
EXACT = {"batch": 1e-30, "layer": 0.0, "weight": 1e-5, "none": 1e-5}


def generic(net, data, seed):
    """An ordinary float64 network at a point where nothing is zero, and a loss of it."""
    torch.manual_seed(seed)
    model = net.module(data.shape, data.classes).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    batch = torch.randint(len(data.x_train), (64,))
    x, y = data.x_train[batch].double(), data.y_train[batch]
    return model, lambda: F.cross_entropy(model(x), y)


@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
@pytest.mark.parametrize("make", MAKERS)
def test_the_description_names_exactly_the_invariant_groups(data, make, norm):
    """By Euler's identity at random points, knowing nothing of the architecture."""
    net = MAKERS[make](width=6, depth=2, norm=norm, eps=EXACT[norm])
    parameters = {p.key: p for p in net.parameters(data.shape, data.classes)}
    largest = {}
    for seed in range(3):
        model, loss = generic(net, data, seed)
        named = dict(model.named_parameters())
        whole = nl.euler(loss(), list(named.values()))
        channels = nl.euler(loss(), list(named.values()), dims=1)
        for key, one, each in zip(named, whole, channels, strict=True):
            each = each[each.isfinite()]  # a channel that is dead on this batch decides nothing
            found = largest.setdefault(key, [0.0, 0.0])
            found[0] = max(found[0], float(one.abs()))
            found[1] = max(found[1], float(each.abs().max()))
    for key, (whole, channel) in largest.items():
        derived = "channel" if channel < 1e-9 else "layer" if whole < 1e-9 else None
        assert derived == parameters[key].invariant, key
        # the gap between the two kinds is wide
        assert whole < 1e-9 or whole > 1e-5


@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
@pytest.mark.parametrize("make", MAKERS)
def test_rescaling_an_invariant_group_leaves_the_loss(data, make, norm):
    net = MAKERS[make](width=6, depth=2, norm=norm, eps=EXACT[norm])
    for p in net.parameters(data.shape, data.classes):
        model, loss = generic(net, data, 0)
        before = loss().item()
        with nl.rescaled(model, {p.key: 7.0}):
            change = abs(loss().item() - before)
        assert (change < 1e-12) == (p.invariant is not None), p.name
        factors = torch.linspace(0.5, 3, p.shape[0], dtype=torch.float64)
        with nl.rescaled(model, {p.key: factors.view(-1, *[1] * (len(p.shape) - 1))}):
            change = abs(loss().item() - before)
        assert (change < 1e-12) == (p.invariant == "channel"), p.name


def test_gradient_is_orthogonal_to_scale_invariant_weights(data):
    model, loss = generic(nl.convnet(width=6, eps=1e-30), data, 0)
    for cosines in nl.euler(loss(), [model.conv1.weight, model.conv2.weight], dims=1):
        assert float(cosines.abs().max()) < 1e-12


def test_gradient_is_inversely_proportional_to_the_scale(data):
    model, loss = generic(nl.convnet(width=6, eps=1e-30), data, 0)
    (gradient,) = torch.autograd.grad(loss(), [model.conv1.weight])
    for a in 10.0 ** np.arange(-3, 4):
        with nl.rescaled(model, {"conv1.weight": a}):
            (scaled,) = torch.autograd.grad(loss(), [model.conv1.weight])
        torch.testing.assert_close(a * scaled, gradient, rtol=1e-9, atol=1e-12)


def test_rescaled_restores_the_bits_even_after_an_error(data):
    model, _ = generic(nl.convnet(width=6), data, 0)
    before = model.conv1.weight.detach().clone()
    with pytest.raises(KeyError), nl.rescaled(model, {"conv1.weight": 1 / 3}):
        raise KeyError
    assert torch.equal(model.conv1.weight, before)


def test_rescaled_multiplies_in_double_precision(data):
    model, _ = generic(nl.convnet(width=6), data, 0)
    expected = model.conv1.weight.detach() * (1 / 3)
    with nl.rescaled(model, {"conv1.weight": 1 / 3}):
        assert torch.equal(model.conv1.weight, expected)


def test_rescaled_names_what_it_does_not_know(data):
    model, _ = generic(nl.convnet(width=6), data, 0)
    with pytest.raises(ValueError, match="conv9"), nl.rescaled(model, {"conv9.weight": 2.0}):
        pass
    with pytest.raises(ValueError, match="broadcast"):  # noqa: SIM117
        with nl.rescaled(model, {"conv1.weight": torch.ones(3, 3)}):
            pass


SYMMETRIC = {
    "sgd": (nl.sgd(), 0.1, 0.01),
    "momentum": (nl.momentum(0.9), 0.01, 0.01),
    "nesterov": (nl.nesterov(0.9), 0.01, 0.01),
    "adam": (nl.adam(eps=1e-30), 1e-3, 0.01),
    "adamw": (nl.adamw(eps=1e-30), 1e-3, 0.1),
    "rmsprop": (nl.rmsprop(eps=1e-30), 1e-4, 0.01),
    "lion": (nl.lion(), 1e-4, 0.1),
}


def losses_of_partners(data, name, power, shrink, make=nl.convnet, norm="batch"):
    """Largest difference of the loss over 100 steps between (w, η, λ) and (aw, a^p η, a^−q λ)."""
    rule, lr, weight_decay = SYMMETRIC[name]
    a, part = 4.0, nl.Dataset(data.x_train[:2500], data.y_train[:2500], data.x_test[:10],
                              data.y_test[:10], 10, "part")  # fmt: skip
    runs = nl.sweep(
        make(width=8, depth=2, norm=norm, eps=EXACT[norm]), part, rule,
        lr=("run", [lr, lr * a**power]),
        weight_decay=("run", [weight_decay, weight_decay * a**-shrink]),
        init_scale=("run", [1, a]),
        lr_other=lr, epochs=4, precision="float64", record_every=1,
    )  # fmt: skip
    assert runs.sizes["step"] == 100
    assert float(runs.loss[0, 0] - runs.loss[0, -1]) > 0.02  # it does train
    return float(np.abs(runs.loss[0] - runs.loss[1]).max())


@pytest.mark.parametrize("name", SYMMETRIC)
def test_the_exact_symmetry_holds_for_100_steps(data, name):
    theory = SYMMETRIC[name][0].theory
    p, q = theory.scale_exponent, theory.decay_exponent
    assert losses_of_partners(data, name, p, q) <= 1e-9


@pytest.mark.parametrize("norm", ["layer", "weight"])
@pytest.mark.parametrize("name", ["nesterov", "adam", "adamw"])
def test_the_exact_symmetry_holds_under_every_normalization(data, name, norm):
    theory = SYMMETRIC[name][0].theory
    p, q = theory.scale_exponent, theory.decay_exponent
    assert losses_of_partners(data, name, p, q, nl.mlp, norm) <= 1e-9


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_a_wrong_exponent_breaks_the_symmetry(data, name):
    theory = SYMMETRIC[name][0].theory
    p, q = theory.scale_exponent, theory.decay_exponent
    assert losses_of_partners(data, name, 3 - p, q) > 1e-4
    assert losses_of_partners(data, name, p, q - 1) > 1e-6

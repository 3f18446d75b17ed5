"""Update rules against torch's optimizers and their definitions, over random hyperparameters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import normlib as nl

K, C, N, STEPS = 3, 2, 4, 25
lrs = st.floats(1e-4, 0.3)
decays = st.floats(0, 1)
fractions = st.floats(0, 0.99)
quick = settings(max_examples=25, deadline=None, derandomize=True)


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ours(rule, lr, weight_decay, seed=0, steps=STEPS):
    """Weights of K networks after each step, gradients random but depending on w."""
    w = rule.start(drawn(seed, K, C, N))
    state, path = rule.init(w), [w]
    for step in range(1, steps + 1):
        g = drawn(seed + step, K, C, N) + 0.3 * w
        w, state = rule.update(w, g, state, lr, weight_decay, step)
        path.append(w)
    return torch.stack(path)


def torchs(optimizer, lr, weight_decay, seed=0, steps=STEPS, **arguments):
    """The same by a torch optimizer on each network by itself."""
    start, paths = drawn(seed, K, C, N), []
    for k in range(K):
        w = start[k].clone().requires_grad_()
        rule = optimizer([w], lr=float(lr[k]), weight_decay=float(weight_decay[k]), **arguments)
        path = [w.detach().clone()]
        for step in range(1, steps + 1):
            w.grad = drawn(seed + step, K, C, N)[k] + 0.3 * w.detach()
            rule.step()
            path.append(w.detach().clone())
        paths.append(torch.stack(path))
    return torch.stack(paths, 1)


def column(values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


three = st.tuples


def same(rule, optimizer, lr, weight_decay, **arguments):
    mine = ours(rule, column(lr), column(weight_decay))
    theirs = torchs(optimizer, lr, weight_decay, **arguments)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@quick
@given(three(lrs, lrs, lrs), three(decays, decays, decays), fractions)
def test_sgd_momentum_and_nesterov_are_torchs(lr, weight_decay, mu):
    same(nl.sgd(), torch.optim.SGD, lr, weight_decay)
    same(nl.momentum(mu), torch.optim.SGD, lr, weight_decay, momentum=mu)
    if mu > 0:  # torch refuses Nesterov without momentum
        same(nl.nesterov(mu), torch.optim.SGD, lr, weight_decay, momentum=mu, nesterov=True)


@quick
@given(three(lrs, lrs, lrs), three(decays, decays, decays), fractions, st.floats(0.5, 0.9999))
def test_adam_and_adamw_are_torchs(lr, weight_decay, b1, b2):
    same(nl.adam((b1, b2)), torch.optim.Adam, lr, weight_decay, betas=(b1, b2))
    same(nl.adamw((b1, b2)), torch.optim.AdamW, lr, weight_decay, betas=(b1, b2))


@quick
@given(three(lrs, lrs, lrs), three(decays, decays, decays), st.floats(0.5, 0.999))
def test_rmsprop_adagrad_and_adadelta_are_torchs(lr, weight_decay, average):
    same(nl.rmsprop(average), torch.optim.RMSprop, lr, weight_decay, alpha=average)
    same(nl.adagrad(), torch.optim.Adagrad, lr, weight_decay)
    same(nl.adadelta(average), torch.optim.Adadelta, lr, weight_decay, rho=average)


@quick
@given(lrs, decays, st.floats(0, 0.99), st.floats(0, 0.99))
def test_lion_is_its_definition(lr, weight_decay, b1, b2):
    path = ours(nl.lion((b1, b2)), lr, weight_decay)
    w, m = path[0].numpy().copy(), np.zeros((K, C, N))
    for step in range(1, STEPS + 1):
        g = drawn(step, K, C, N).numpy() + 0.3 * w
        w = w * (1 - lr * weight_decay) - lr * np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        np.testing.assert_allclose(path[step].numpy(), w, rtol=1e-9, atol=1e-12)


BASES = st.sampled_from([nl.sgd(), nl.momentum(0.8), nl.nesterov(0.9), nl.adam(), nl.adamw()])


@quick
@given(BASES, st.sampled_from(["channel", "layer"]), lrs, decays)
def test_unit_norm_is_the_rules_step_put_back_to_norm_1(rule, per, lr, weight_decay):
    dims = (2,) if per == "channel" else (1, 2)
    normalized = nl.unit_norm(rule, per)
    path = ours(normalized, lr, weight_decay)
    assert float((path.norm(dim=tuple(d + 1 for d in dims)) - 1).abs().max()) < 1e-12
    w, state = path[0], rule.init(path[0])
    for step in range(1, STEPS + 1):
        w, state = rule.update(w, drawn(step, K, C, N) + 0.3 * w, state, lr, weight_decay, step)
        w = w / w.norm(dim=dims, keepdim=True)
        torch.testing.assert_close(path[step], w, rtol=1e-12, atol=1e-12)
    assert normalized.other is rule


def test_optimizers_are_values():
    """Equal if their hyperparameters are, usable as keys, and printed as they are written."""
    for make in (nl.sgd, nl.momentum, nl.nesterov, nl.adam, nl.adamw, nl.rmsprop, nl.adagrad,
                 nl.adadelta, nl.lion, lambda: nl.unit_norm(nl.adam())):  # fmt: skip
        assert make() == make()
        assert len({make(), make()}) == 1
    assert nl.momentum(0.9) != nl.nesterov(0.9) != nl.nesterov(0.8)
    assert nl.adam() != nl.adamw()
    assert nl.unit_norm(nl.sgd(), "layer") != nl.unit_norm(nl.sgd(), "channel")
    assert repr(nl.nesterov(0.8)) == "nesterov(momentum=0.8)"
    with pytest.raises(AttributeError):
        nl.adam().eps = 1e-3


def test_updates_are_pure():
    for rule in (nl.sgd(), nl.nesterov(), nl.adamw(), nl.lion(), nl.unit_norm(nl.momentum())):
        w, g = rule.start(drawn(0, K, C, N)), drawn(1, K, C, N)
        state = rule.init(w)
        kept = [t.clone() for t in (w, g, *state)]
        first = rule.update(w, g, state, 0.1, 0.01, 1)
        second = rule.update(w, g, state, 0.1, 0.01, 1)
        assert all(torch.equal(a, b) for a, b in zip(kept, (w, g, *state), strict=True))
        assert torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("error", "name", "make"),
    [
        (ValueError, "momentum", lambda: nl.momentum(1.0)),
        (TypeError, "momentum", lambda: nl.nesterov("0.9")),
        (ValueError, "betas", lambda: nl.adam((0.9,))),
        (TypeError, "betas", lambda: nl.adam(0.9)),
        (ValueError, r"betas\[1\]", lambda: nl.adamw([0.9, 1.0])),
        (ValueError, "eps", lambda: nl.adam(eps=-1)),
        (ValueError, "alpha", lambda: nl.rmsprop(alpha=-0.1)),
        (ValueError, "rho", lambda: nl.adadelta(rho=2)),
        (ValueError, "per", lambda: nl.unit_norm(nl.sgd(), per="neuron")),
        (TypeError, "optimizer", lambda: nl.unit_norm("sgd")),
    ],
)
def test_a_wrong_hyperparameter_is_named(error, name, make):
    with pytest.raises(error, match=name):
        make()

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


def later(seed=0):
    """Weights, and a function that gives the next gradient."""
    return drawn(seed, K, C, N), lambda step, w: drawn(seed + step, K, C, N) + 0.3 * w


@quick
@given(lrs, decays, fractions, st.booleans())
def test_muon_is_torchs_but_for_its_precision(lr, weight_decay, mu, nesterov):
    """Torch makes its matrices orthogonal in bfloat16, which has three digits."""
    mine = ours(nl.muon(mu, nesterov), lr, column([weight_decay] * K), steps=3)
    theirs = torchs(torch.optim.Muon, [lr] * K, [weight_decay] * K, steps=3, momentum=mu,
                    nesterov=nesterov)  # fmt: skip
    free = ours(nl.muon(mu, nesterov), 0.0, column([0.0] * K), steps=3)
    assert float((mine - theirs).norm()) < 0.05 * float((mine - free).norm())


@pytest.mark.parametrize("shape", [(1, 4, 64), (1, 64, 4)])
def test_muons_step_has_singular_values_near_1_and_torchs_factor(shape):
    rule, g = nl.muon(), drawn(0, *shape)
    u, _ = rule.direction(g, rule.init(g), 1)
    values = torch.linalg.svdvals(u[0]) / max(1, shape[1] / shape[2]) ** 0.5
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


@quick
@given(lrs, decays, fractions, st.floats(1e-3, 1))
def test_lars_is_timms(lr, weight_decay, mu, trust):
    timm = pytest.importorskip("timm.optim")
    mine = ours(nl.lars(mu, trust), lr, column([weight_decay] * K))
    theirs = torchs(timm.Lars, [lr] * K, [weight_decay] * K, momentum=mu, trust_coeff=trust,
                    eps=0.0, always_adapt=True)  # fmt: skip
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@quick
@given(st.floats(1e-4, 0.1), decays, fractions, st.floats(0.5, 0.999))
def test_projected_steps_are_timms_sgdp_and_adamp(lr, weight_decay, mu, b2):
    """Where its threshold lets every channel through; SGDP has (1 − μ) in its decay."""
    timm = pytest.importorskip("timm.optim")
    open_to_all = {"delta": 1e9, "wd_ratio": 1.0, "eps": 1e-16}
    mine = ours(nl.projected(nl.momentum(mu)), lr, column([weight_decay] * K))
    theirs = torchs(timm.SGDP, [lr] * K, [weight_decay * (1 - mu)] * K, momentum=mu, **open_to_all)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    adam = nl.adam((mu, b2), eps=1e-16)
    mine = ours(nl.projected(adam), lr, column([weight_decay] * K))
    theirs = torchs(timm.AdamP, [lr] * K, [weight_decay] * K, betas=(mu, b2), **open_to_all)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@quick
@given(BASES, lrs, decays)
def test_a_step_on_the_sphere_keeps_the_norm_and_goes_lr_times_it(rule, lr, weight_decay):
    w, gradient = later()
    held, state, inner = nl.sphere(rule), nl.sphere(rule).init(w), rule.init(w)
    radius = w.norm(dim=(1, 2), keepdim=True)
    for step in range(1, STEPS + 1):
        g = gradient(step, w)
        u, inner = rule.direction(g, inner, step)
        expected = w - lr * radius * u / u.norm(dim=(1, 2), keepdim=True)
        expected *= radius / expected.norm(dim=(1, 2), keepdim=True)
        w, state = held.update(w, g, state, lr, weight_decay, step)
        torch.testing.assert_close(w, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(w.norm(dim=(1, 2), keepdim=True), radius, rtol=1e-12, atol=0)


@quick
@given(lrs, decays, st.sampled_from([nl.adamw(), nl.lion(), nl.muon()]))
def test_cautious_decay_is_the_rules_on_entries_that_its_step_shrinks(lr, weight_decay, rule):
    w, gradient = later()
    cautious, state = nl.cautious(rule), rule.init(w)
    mine, plain = w, rule.init(w)
    for step in range(1, STEPS + 1):
        g = gradient(step, mine)
        free, _ = rule.update(mine, g, plain, lr, 0.0, step)
        whole, plain = rule.update(mine, g, plain, lr, weight_decay, step)
        shrinks = (free - mine) * mine <= 0
        mine, state = cautious.update(mine, g, state, lr, weight_decay, step)
        expected = torch.where(shrinks, whole, free)
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


def test_cautious_decay_needs_a_rule_that_decays_by_itself():
    with pytest.raises(ValueError, match="decoupled"):
        nl.cautious(nl.adam())


LATER = [
    (nl.sphere(nl.adam(eps=1e-30)), 0, 0),
    (nl.cautious(nl.adamw(eps=1e-30)), 1, 1),
    (nl.projected(nl.momentum()), 2, 2),
    (nl.projected(nl.adam(eps=1e-30)), 1, 1),
    (nl.muon(), 1, 1),
    (nl.lars(), 0, 2),
]


@pytest.mark.parametrize(("rule", "p", "q"), LATER)
def test_rescaling_weights_is_undone_by_the_exponents_that_a_rule_names(rule, p, q):
    assert (rule.theory.scale_exponent, rule.theory.decay_exponent) == (p, q)
    a, paths = 3.0, []
    for factor in (1.0, a):
        w = factor * drawn(0, K, C, N)
        state, found = rule.init(w), []
        for step in range(1, STEPS + 1):
            g = drawn(step, K, C, N) / factor
            w, state = rule.update(w, g, state, 0.1 * factor**p, 0.2 / factor**q, step)
            found.append(w / factor)
        paths.append(torch.stack(found))
    torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-12)


def test_optimizers_are_values():
    """Equal if their hyperparameters are, usable as keys, and printed as they are written."""
    for make in (nl.sgd, nl.momentum, nl.nesterov, nl.adam, nl.adamw, nl.rmsprop, nl.adagrad,
                 nl.adadelta, nl.lion, nl.muon, nl.lars, lambda: nl.unit_norm(nl.adam()),
                 lambda: nl.sphere(nl.adam()), lambda: nl.cautious(nl.adamw()),
                 lambda: nl.projected(nl.momentum())):  # fmt: skip
        assert make() == make()
        assert len({make(), make()}) == 1
    assert nl.momentum(0.9) != nl.nesterov(0.9) != nl.nesterov(0.8)
    assert nl.adam() != nl.adamw()
    assert nl.unit_norm(nl.sgd(), "layer") != nl.unit_norm(nl.sgd(), "channel")
    assert repr(nl.nesterov(0.8)) == "nesterov(momentum=0.8)"
    with pytest.raises(AttributeError):
        nl.adam().eps = 1e-3


def test_updates_are_pure():
    for rule in (nl.sgd(), nl.nesterov(), nl.adamw(), nl.lion(), nl.unit_norm(nl.momentum()),
                 nl.muon(), nl.lars(), nl.sphere(nl.adam()), nl.cautious(nl.lion()),
                 nl.projected(nl.adam())):  # fmt: skip
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

"""The theorems of book/proofs.md: those that no other file tests, and that each names its tests."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import normlib as nl
from tests.conftest import ROOT

PROOFS = (ROOT / "book" / "proofs.md").read_text(encoding="utf-8")
THEOREMS = re.split(r"^```\{prf:theorem\} ", PROOFS, flags=re.M)[1:]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
}


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda text: text.split("\n")[0])
def test_every_theorem_has_a_proof_and_names_tests_that_exist(theorem):
    assert "{prf:proof}" in theorem
    named = re.search(r"Tests: (.+)", theorem)
    assert named
    assert set(re.findall(r"`(\w+)`", named[1])) <= TESTS
    assert re.findall(r"`(\w+)`", named[1])


@pytest.mark.parametrize("alpha", [1e-3, 0.5, 20.0])
def test_rescaling_the_weights_rescales_the_penalty(data, alpha):
    """L_λ(αw) = L_{λα²}(w), less than L_λ(w) for every α < 1."""
    torch.manual_seed(0)
    model = nl.convnet(width=4, eps=1e-30).module(data.shape, data.classes).double()
    x, y = data.x_train[:50].double(), data.y_train[:50]
    square = sum(
        float(getattr(model, f"conv{i}").weight.detach().square().sum()) for i in (1, 2, 3)
    )

    def penalised(weight_decay, scale):
        names = {f"conv{i}.weight": scale for i in (1, 2, 3)}
        with nl.rescaled(model, names), torch.no_grad():
            loss = float(F.cross_entropy(model(x), y))
        return loss + weight_decay / 2 * scale**2 * square

    assert penalised(0.1, alpha) == pytest.approx(penalised(0.1 * alpha**2, 1.0), rel=1e-12)
    assert (penalised(0.1, alpha) < penalised(0.1, 1.0)) == (alpha < 1)


@pytest.mark.parametrize("norm", ["batch", "layer", "weight"])
def test_decay_equals_a_growing_learning_rate(data, norm):
    """For every schedule, to rounding; the naive correction without the last factor is not."""
    net = nl.convnet(width=4, depth=2, norm=norm, eps=1e-30)
    lr, weight_decay, steps = 0.1, 0.05, 80
    rates = lr * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    shrink = 1 - rates * weight_decay
    before = np.concatenate([[1.0], np.cumprod(shrink)[:-1]])

    def run(weight_decay, factors):
        return nl.sweep(
            net, data, nl.sgd(), lr=lr, weight_decay=weight_decay, lr_other=0.1, epochs=2,
            record_every=1, precision="float64", schedule=lambda t, _: factors[t],
            schedule_other="constant",
        ).loss  # fmt: skip

    decayed = run(weight_decay, rates / lr)
    np.testing.assert_allclose(run(0.0, rates / lr / shrink / before**2), decayed, rtol=1e-9)
    assert abs(run(0.0, rates / lr / before**2) / decayed - 1).max() > 1e-6


def held(net, data, rates, weight_decay=0.0, norms=None):
    """Logits of every batch under plain SGD, and the norms of the hidden layers before each step.

    `rates` are those of the hidden layers (steps, layers); `norms`, where given, are held.
    """
    torch.manual_seed(0)
    model = net.module(data.shape, data.classes).double()
    weights = dict(model.named_parameters())
    keys = {p.key for p in net.parameters(data.shape, data.classes) if p.kind == "weight"}
    hidden = [weights.pop(key) for key in sorted(keys - {"head.weight"})]
    groups = [{"params": [w], "weight_decay": weight_decay} for w in hidden]
    optimizer = torch.optim.SGD([*groups, {"params": weights.values()}], lr=0.1)
    outputs, found = [], []
    for step, rate in enumerate(rates):
        with torch.no_grad():
            for w, norm in zip(hidden, norms if norms is not None else (), strict=False):
                w *= norm / w.norm()
        for group, value in zip(optimizer.param_groups, rate, strict=False):
            group["lr"] = value
        found.append([float(w.detach().norm()) for w in hidden])
        batch = slice(20 * step, 20 * step + 20)
        outputs.append(model(data.x_train[batch].double()))
        optimizer.zero_grad()
        F.cross_entropy(outputs[-1], data.y_train[batch]).backward()
        optimizer.step()
    return torch.stack(outputs).detach(), np.array(found)


@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
@pytest.mark.parametrize("length", [1.0, None])
def test_a_list_of_rates_makes_weights_of_fixed_norm_the_decayed_training(data, norm, length):
    """At norm 1 and at those of the start; the rate η/r² does not, nor do unnormalized weights."""
    net = nl.mlp(width=8, depth=2, norm=norm, eps=0.0 if norm != "batch" else 1e-30)
    lr, weight_decay, steps = 0.1, 0.5, 60
    wanted, norms = held(net, data, np.full((steps, 2), lr), weight_decay)
    kept = norms[0] if length is None else np.full(2, length)
    rates = lr * kept**2 / norms**2

    def apart(rates):
        outputs, _ = held(net, data, rates, norms=kept)
        return float(((outputs - wanted).norm(dim=(1, 2)) / wanted.norm(dim=(1, 2))).max())

    exact = apart(rates / (1 - lr * weight_decay))
    assert exact > 1e-2 if norm == "none" else exact < 1e-9
    assert apart(rates) > 1e-3


def remembering(chains, size, memory, start, sizes=None):
    """Weights of norm `start`, and random gradients of unit size orthogonal to them.

    Neighbours correlate by `memory`; entries differ in size by `sizes`.
    """
    random = torch.Generator().manual_seed(0)
    sizes = torch.ones(size, dtype=torch.float64) if sizes is None else sizes
    w = torch.randn(chains, 1, size, generator=random, dtype=torch.float64)
    w *= start / w.norm(dim=2, keepdim=True)
    source = torch.zeros_like(w)

    def gradient(w):
        noise = torch.randn(w.shape, generator=random, dtype=torch.float64)
        source.mul_(memory).add_(noise, alpha=(1 - memory**2) ** 0.5)
        g, r2 = source * sizes, w.square().sum(2, keepdim=True)
        return (g - (g * w).sum(2, keepdim=True) * w / r2) / (sizes.norm() * r2.sqrt())

    return w, gradient


RULES = {
    "sgd": (nl.sgd(), 0.03, 0.1, 2500),
    "momentum": (nl.momentum(0.9), 0.003, 0.1, 2500),
    "nesterov": (nl.nesterov(0.9), 0.003, 0.1, 2500),
    "adam": (nl.adam((0.9, 0.99), eps=1e-200), 0.003, 0.1, 7000),
    "adamw": (nl.adamw((0.9, 0.99), eps=1e-200), 0.003, 3.0, 5000),
}


def noisy_quotient(rule, lr, weight_decay, steps, scale=1.0, size=10):
    """Direction and norm after minimising a quotient of quadratic forms under noisy gradients."""
    random = torch.Generator().manual_seed(0)
    form = torch.diag(torch.linspace(0, 3, size, dtype=torch.float64))
    w = scale * torch.linspace(2, 1, size, dtype=torch.float64).view(1, 1, size)
    state = rule.init(w)
    for step in range(1, steps + 1):
        noise = 0.3 * torch.randn(size, generator=random, dtype=torch.float64)
        r = w.norm()
        g = 2 * w / r @ form + noise  # a function of the direction alone
        g = (g - (g * w).sum() * w / r**2) / r
        w, state = rule.update(w, g, state, lr, weight_decay, step)
    return (w / w.norm()).flatten(), float(w.norm())


@pytest.mark.parametrize("name", RULES)
def test_a_forgotten_start_leaves_one_number_and_a_unit(name):
    """Two starts end in one point; from one start, exchanged cells in one direction, norms a : 1.

    A product with a neighbouring exponent does not, nor does a training that is too short.
    """
    rule, lr, weight_decay, steps = RULES[name]
    p, q, a = rule.theory.scale_exponent, rule.theory.decay_exponent, 2.0
    way, norm = noisy_quotient(rule, lr, weight_decay, steps)
    other_way, other_norm = noisy_quotient(rule, lr, weight_decay, steps, scale=3.0)
    assert (other_way - way).abs().max() < 1e-8
    assert other_norm == pytest.approx(norm, rel=1e-8)
    exchanged = lr * a**p, weight_decay / a**q
    exchanged_way, exchanged_norm = noisy_quotient(rule, *exchanged, steps)
    assert (exchanged_way - way).abs().max() < 1e-8
    assert exchanged_norm == pytest.approx(a * norm, rel=1e-8)
    wrong = lr * a**p, weight_decay / a ** (3 - q if p == 1 else 1)
    wrong_way, _ = noisy_quotient(rule, *wrong, steps)
    assert (wrong_way - way).abs().max() > 1e-3
    early, _ = noisy_quotient(rule, lr, weight_decay, 30)
    early_exchanged, _ = noisy_quotient(rule, *exchanged, 30)
    assert (early_exchanged - early).abs().max() > 1e-3


@pytest.mark.parametrize("name", RULES)
def test_exponents_of_units_are_those_of_the_formulas(name):
    """κ = p/q, and along η^q λ^p the norms of the closed formulas go like (η/λ)^(1/(p+q))."""
    theory = RULES[name][0].theory
    p, q, a = theory.scale_exponent, theory.decay_exponent, 2.0
    assert theory.tradeoff_exponent == p / q
    known = {"gradient": 2.0, "size": 64}
    before = theory.equilibrium_norm(0.1, 0.01, **known)
    after = theory.equilibrium_norm(0.1 * a**p, 0.01 / a**q, **known)
    assert after / before == pytest.approx((a ** (p + q)) ** (1 / (p + q)), rel=1e-12)


@pytest.mark.parametrize("memory", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_balance_holds_for_gradients_that_remember(nesterov, memory):
    """Gradients whose neighbours correlate by `memory`; only Nesterov's angle depends on it."""
    mu, lr, weight_decay, size, chains = 0.9, 0.1, 0.01, 200, 8
    rule = nl.nesterov(mu) if nesterov else nl.momentum(mu)
    w, gradient = remembering(chains, size, memory, start=2.7)
    state, rows = rule.init(w), []
    for step in range(1, 3001):
        g = gradient(w)
        new, state = rule.update(w, g, state, lr, weight_decay, step)
        d, b = (w - new) / lr, state[0]
        cosine = (w * new).sum(2) / (w.norm(dim=2) * new.norm(dim=2))
        rows.append([(2 - 2 * cosine).mean(), d.square().sum() / chains, (d * b).sum() / chains])
        w = new
    angle2, step2, overlap = torch.tensor(rows)[1000:].mean(0).tolist()
    factor = 1 - mu + 2 * mu**2 * overlap / step2 if nesterov else 1 + mu
    assert angle2 * factor == pytest.approx(2 * lr * weight_decay, rel=0.02)
    independent = rule.theory.angle(lr, weight_decay) ** 2
    if not nesterov or memory == 0:
        assert angle2 == pytest.approx(independent, rel=0.02)
    else:
        assert abs(angle2 / independent - 1) > 0.1


@pytest.mark.parametrize("memory", [-0.5, 0.5])
@pytest.mark.parametrize("decoupled", [False, True])
def test_balance_of_adam_holds_for_gradients_that_remember_and_differ_in_size(decoupled, memory):
    """The step follows from λ + q whatever the memory is; without q it does not."""
    b1, b2, lr, size, chains, steps = 0.9, 0.999, 3e-3, 100, 8, 5000
    rule = nl.adamw((b1, b2), eps=1e-30) if decoupled else nl.adam((b1, b2), eps=1e-30)
    weight_decay = 0.5 if decoupled else 0.02
    start = rule.theory.equilibrium_norm(lr, weight_decay, gradient=1.0, size=size)
    sizes = torch.linspace(-2.5, 2.5, size, dtype=torch.float64).exp()
    w, gradient = remembering(chains, size, memory, start, sizes)
    state, rows = rule.init(w), []
    for step in range(1, steps + 1):
        g = gradient(w)
        new, state = rule.update(w, g, state, lr, weight_decay, step)
        root = (state[1] / (1 - b2**step)).sqrt()
        u = state[0] / (1 - b1**step) / root
        decay = weight_decay * w * (w if decoupled else w / root)
        rows.append(torch.stack([w * w, u * u, w * g / root, decay]).sum(-1))
        w = new
    late = torch.stack(rows)[steps // 2 :].mean((2, 3))
    _, step2, along, decay = late.mean(0).tolist()
    growth = float(late[-1, 0] - late[0, 0]) / len(late)
    turning = lr**2 * step2 * (1 + b1) / (1 - b1)
    assert turning == pytest.approx(2 * lr * (decay + along) + growth, rel=0.02)
    if decoupled:  # there it is large enough to see
        assert abs(turning / (2 * lr * decay + growth) - 1) > 0.05


def normalized_path(momentum, lr, weight_decay, exact=False, steps=300, size=30):
    """Weights of norm 1 with momentum on a noisy quotient of quadratic forms, from scratch.

    With `exact` the decay is replaced by learning rates lr / c and momenta momentum / c.
    """
    random = torch.Generator().manual_seed(0)
    form = torch.randn(size, size, generator=random, dtype=torch.float64)
    form = form @ form.T / size
    noise = 0.3 * torch.randn(steps, size, generator=random, dtype=torch.float64)
    w = torch.ones(size, dtype=torch.float64) / size**0.5
    buffer, c, norm, path = torch.zeros_like(w), 1.0, 1.0, []
    for t in range(steps):
        g = 2 * form @ w + noise[t]
        g = g - (g @ w) * w  # the gradient of a function of the direction alone, at norm 1
        if exact:
            before, c = c, 1 - lr * weight_decay + (momentum * norm * (1 - 1 / c) if t else 0.0)
            buffer = momentum / before * buffer + g
            w = w - lr / c * buffer
            norm = c * float(w.norm())
        else:
            buffer = momentum * buffer + g + weight_decay * w
            w = w - lr * buffer
        w = w / w.norm()
        path.append(w)
    return torch.stack(path)


@pytest.mark.parametrize(
    ("momentum", "lr", "weight_decay"), [(0.0, 0.1, 3.0), (0.5, 0.05, 2.0), (0.9, 0.003, 1.5)]
)
def test_decay_of_normalized_weights_is_momentum(momentum, lr, weight_decay):
    decayed = normalized_path(momentum, lr, weight_decay)
    assert (normalized_path(momentum, lr, weight_decay, exact=True) - decayed).abs().max() < 1e-12
    only_rate = normalized_path(momentum, lr / (1 - lr * weight_decay / (1 - momentum)), 0.0)
    if momentum:
        assert (only_rate - decayed).abs().max() > 1e-3


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [1.0, 5.0])
def test_decay_speeds_normalized_weights_up_by_the_formula(nesterov, weight_decay):
    """Drift under a weak steady gradient, against the same without decay."""
    mu, lr, steps = 0.9, 1e-3, 400
    rule = nl.unit_norm(nl.nesterov(mu) if nesterov else nl.momentum(mu))

    def speed(weight_decay):
        w = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
        state, angles = rule.init(w), []
        for step in range(1, steps + 1):
            across = torch.stack([-w[..., 1], w[..., 0]], -1)
            w, state = rule.update(w, 1e-4 * across, state, lr, weight_decay, step)
            angles.append(float(torch.atan2(w[0, 0, 1], w[0, 0, 0])))
        return (angles[-1] - angles[-101]) / 100

    boost = (1 - mu + mu**2 if nesterov else 1.0) / (1 - mu) ** 2
    expected = 1 / (1 - lr * weight_decay * boost)
    assert speed(weight_decay) / speed(0.0) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("times", [0.9, 1.2, 3.0])
def test_weights_beyond_the_limit_turn_by_themselves(nesterov, times):
    """One tiny push, then no gradient at all."""
    mu, lr = 0.9, 0.01
    rule = nl.unit_norm(nl.nesterov(mu) if nesterov else nl.momentum(mu))
    product = times * (1 - mu) ** 2 / (1 - mu + mu**2 if nesterov else 1.0)
    x = mu * product / (1 - product) if nesterov else product
    expected = math.acos((1 + mu**2 - x) / (2 * mu)) if times > 1 else 0.0
    w, push = torch.tensor([[[1.0, 0.0]], [[0.0, 1e-6]]], dtype=torch.float64)
    w, push = w[None], push[None]
    state = rule.init(w)
    for step in range(1, 3001):
        old = w
        w, state = rule.update(w, push * (step == 1), state, lr, product / lr, step)
    assert float((w - old).norm()) == pytest.approx(2 * math.sin(expected / 2), abs=1e-6)


def logits_along(data, net, rates, move):
    """Logits of minibatches along a training; `move(t, rate, i, w, g)` steps layer i."""
    torch.manual_seed(0)
    model = net.module(data.shape, data.classes).double()
    weights = [getattr(model, layer).weight for layer in net.layers]
    x, y = data.x_train.double(), data.y_train
    order, found = torch.Generator().manual_seed(0), []
    for t, rate in enumerate(rates):
        batch = torch.randint(len(x), (50,), generator=order)
        logits = model(x[batch])
        found.append(logits.detach())
        grads = torch.autograd.grad(F.cross_entropy(logits, y[batch]), weights)
        with torch.no_grad():
            for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
                move(t, rate, i, w, g)
    return torch.stack(found)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_decay_under_momentum_equals_a_growing_rate(data, mu):
    """With the right buffer to rounding over 200 steps; with a buffer of zero it is another."""
    net, lr, weight_decay, steps = nl.mlp(width=8, depth=2, eps=1e-30), 0.02, 0.1, 200
    total = 1 + mu - lr * weight_decay
    a = (total + math.sqrt(total**2 - 4 * mu)) / 2

    def train(decay, rates, start):
        buffers = {}

        def move(t, rate, i, w, g):
            buffer = buffers[i] = mu * buffers.get(i, start * w) + g + decay * w
            w.sub_(rate * buffer)

        return logits_along(data, net, rates, move)

    decayed = train(weight_decay, [lr] * steps, 0.0)
    rates = [lr * a ** (-2 * t - 1) for t in range(steps)]
    apart = {
        start: float((train(0.0, rates, start) - decayed).abs().max() / decayed.abs().max())
        for start in {-(1 - a) / (a * lr), 0.0}
    }
    assert apart[-(1 - a) / (a * lr)] < 1e-9
    assert mu == 0 or apart[0.0] > 1e-3


def test_adamws_weights_are_a_mean_of_its_steps():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(30, generator=generator, dtype=torch.float64).requires_grad_()
    start, weight_decay, steps = w.detach().clone(), 0.5, 120
    rates = 0.02 * np.cos(np.arange(steps) / 80)
    optimizer = torch.optim.AdamW([w], weight_decay=weight_decay)
    moved = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        w.grad = torch.randn(30, generator=generator, dtype=torch.float64)
        before = w.detach().clone()
        optimizer.step()
        moved.append(((1 - rate * weight_decay) * before - w.detach()) / rate)
    alpha = rates * weight_decay
    left = np.append(np.cumprod((1 - alpha)[::-1])[::-1], 1.0)
    shares = alpha * left[1:]
    assert left[0] + shares.sum() == pytest.approx(1, abs=1e-12)
    mean = left[0] * start - sum(c * u / weight_decay for c, u in zip(shares, moved, strict=True))
    torch.testing.assert_close(mean, w.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_norms_gain_lies_along_the_weights_by_the_share_of_momentum(beta):
    """And the three parts add up to what the norm does, to rounding."""
    rule, lr, weight_decay = nl.adamw((beta, 0.99), eps=1e-30), 0.005, 0.4
    start = rule.theory.equilibrium_norm(lr, weight_decay, size=500)
    parts = []
    for w, new in pairwise(nl.random_walk(rule, (4, 1, 500), start, lr, weight_decay, 2500)):
        kept = 1 - lr * weight_decay
        step = kept * w - new
        along, length = -2 * kept * (w * step).sum(), step.square().sum()
        decay = lr * weight_decay * (2 - lr * weight_decay) * w.square().sum()
        change = float(new.square().sum() - w.square().sum())
        assert change == pytest.approx(float(along + length - decay), abs=1e-12)
        parts.append((float(along), float(length)))
    along, length = np.array(parts[1000:]).sum(0)
    assert along / (along + length) == pytest.approx(2 * beta / (1 + beta), abs=0.02)


@pytest.mark.parametrize("product", [0.001, 0.05])
def test_directions_swing_under_momentum_and_strong_decay(product):
    rule, lr, mu = nl.momentum(0.9), 0.1, 0.9
    start = rule.theory.equilibrium_norm(lr, product / lr, 1.0)
    walk = nl.random_walk(rule, (4, 1, 400), start, lr, product / lr, 2500)
    path = torch.stack([F.normalize(w, dim=2) for w in walk])[500:]
    expected = [1.0, (1 + mu - product) / (1 + mu)]
    for _ in range(29):
        expected.append((1 + mu - product) * expected[-1] - mu * expected[-2])
    found = [float((path[: len(path) - k] * path[k:]).sum((2, 3)).mean()) for k in range(31)]
    np.testing.assert_allclose(found, expected, atol=0.04)
    assert (min(found) < 0) is (product > (1 - mu**0.5) ** 2)


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_lars_turns_by_its_rate_and_balances_its_share_of_decay(mu):
    # Its norm rests after ((1−μ)/ηc)² steps, whatever λ is: as many for both.
    trust, weight_decay = 0.04 * (1 - mu), 0.1
    rule = nl.lars(mu, trust)
    rest = math.sqrt(trust / (2 * weight_decay * (1 - mu)))
    angles, norms = [], []
    for w, new in pairwise(nl.random_walk(rule, (4, 1, 600), 1.1 * rest, 1.0, weight_decay, 3000)):
        chord = F.normalize(new, dim=2) - F.normalize(w, dim=2)
        angles.append(float(chord.square().sum(2).mean()))
        norms.append(float(w.norm(dim=2).mean()))
    assert math.sqrt(np.mean(angles[1500:])) == pytest.approx(
        trust / math.sqrt(1 - mu**2), rel=0.05
    )
    assert np.mean(norms[1500:]) == pytest.approx(rest, rel=0.05)


@pytest.mark.parametrize("product", [0.002, 0.01])
def test_the_toy_jumps_when_what_it_lost_has_grown_back(product):
    """From one return of |x| to a level to the next, with σ read off at both."""
    lr, (x, y), path = 0.1, (0.6, 0.8), []
    for _ in range(int(8 / product)):
        square = x * x + y * y
        gx, gy = 2 * x * y * y / square**2, -2 * x * x * y / square**2
        x, y = x - lr * (gx + product / lr * x), y - lr * (gy + product / lr * y)
        path.append((abs(x), 2 * lr / (x * x + y * y)))
    size, sigma = np.array(path).T
    small = size < 1e-3 * sigma**-0.5
    starts = np.flatnonzero(small[1:] & ~small[:-1]) + 1
    ends = np.flatnonzero(~small[1:] & small[:-1]) + 1
    ends = ends[ends > starts[0]]
    assert len(ends) > 3
    for first, last in zip(starts, ends, strict=False):
        part = sigma[first:last]
        assert part[0] < 2 < part[-1]
        change = np.log(np.abs(1 - part))
        # the whole is zero where each half is large
        assert abs(change.sum()) < 0.05 * np.abs(change).sum()
        steps = np.log(part[-1] / part[0]) / (2 * product)
        assert steps == pytest.approx(last - first, rel=0.05, abs=2)


def test_decay_balances_a_pair_at_twice_its_rate():
    generator = torch.Generator().manual_seed(0)
    a, b, goal = (torch.randn(6, 6, generator=generator).double() for _ in range(3))
    a, lr, weight_decay = 2 * a, 1e-3, 0.5
    first, sizes, left = a.T @ a - b @ b.T, [], []
    for _ in range(6000):
        residual = a @ b - goal
        a, b = (
            (1 - lr * weight_decay) * a - lr * residual @ b.T,
            (1 - lr * weight_decay) * b - lr * a.T @ residual,
        )
        half = (a.square().sum() + b.square().sum()) / 2
        sizes.append(float(half / torch.linalg.svdvals(a @ b).sum()))
        left.append(float((a.T @ a - b @ b.T).norm() / first.norm()))
    assert left[799] == pytest.approx((1 - lr * weight_decay) ** 1600, rel=0.03)
    assert min(sizes) >= 1
    assert sizes[0] > 1.3
    assert sizes[-1] < 1.01


def test_decay_under_momentum_and_any_schedule_equals_other_rates_and_momenta(data):
    net, mu, weight_decay, steps = nl.mlp(width=8, depth=2, eps=1e-30), 0.9, 0.05, 120
    lrs = 0.02 * (1.2 + np.sin(np.arange(steps) / 9))

    def train(rates, momenta, decay):
        moved = {}

        def move(t, rate, i, w, g):
            moved[i] = momenta[t] * moved.get(i, 0.0) - rate * (g + decay * w)
            w.add_(moved[i])

        return logits_along(data, net, rates, move)

    momenta = np.append(0.0, mu * lrs[1:] / lrs[:-1])
    scale = [1.0, 1.0]
    for lr, part in zip(lrs, momenta, strict=True):
        scale.append((1 - lr * weight_decay + part) * scale[-1] - part * scale[-2])
    before, now, after = np.array(scale[:-2]), np.array(scale[1:-1]), np.array(scale[2:])
    decayed = train(lrs, momenta, weight_decay)
    replayed = train(lrs / (now * after), momenta * before / after, 0.0)
    assert float((replayed - decayed).abs().max()) < 1e-8
    assert float((train(lrs, momenta, 0.0) - decayed).abs().max()) > 1e-2
    only_rates = train(lrs / (now * after), momenta, 0.0)
    assert float((only_rates - decayed).abs().max()) > 1e-3


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_momentum_lengthens_weights_by_the_steps_it_remembers(mu):
    generator = torch.Generator().manual_seed(0)
    w, d = torch.randn(50, generator=generator, dtype=torch.float64), torch.zeros(50).double()
    squares = []
    for _ in range(60):
        g = torch.randn(50, generator=generator, dtype=torch.float64)
        d = mu * d - 0.02 * (g - w * (w @ g) / (w @ w))
        before, w = float(w @ w), w + d
        squares.append(float(d @ d))
        foretold = sum(
            (2 if k else 1) * mu**k * square for k, square in enumerate(reversed(squares))
        )
        assert float(w @ w) - before == pytest.approx(foretold, rel=1e-9)

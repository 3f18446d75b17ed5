"""Each formula against a simulation with random gradients orthogonal to w.

The formulas hold for small lr × weight_decay: Lion's norm, for one, is 4 % off at 1e-3 and 0.6 %
at 3e-4. Averages (β₂) that reach over a good part of the relaxation slow it by as much.
"""

import itertools
import math
import re

import numpy as np
import pytest
import torch

import normlib as nl
from normlib import theory
from normlib.diagnostics import exponents, rules
from tests.conftest import ROOT

SIZE = 64


def simulate(rule, lr, weight_decay, steps, gradient=1.0, chains=8, start=1.0, seed=0):
    """Norms and angles (steps, chains) of weights under gradients of unit size `gradient`."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(chains, 1, SIZE, dtype=torch.float64, generator=random)
    w = w / w.norm(dim=2, keepdim=True) * start
    state, norms, angles = rule.init(w), [], []
    for step in range(1, steps + 1):
        r = w.norm(dim=2, keepdim=True)
        g = torch.randn(w.shape, dtype=torch.float64, generator=random)
        g = g - (g * w).sum(2, keepdim=True) * w / r**2
        g = gradient / r * g / g.norm(dim=2, keepdim=True)
        new, state = rule.update(w, g, state, lr, weight_decay, step)
        cosine = (new * w).sum(2, keepdim=True) / (r * new.norm(dim=2, keepdim=True))
        norms.append(r.ravel())
        angles.append(torch.arccos(cosine.clamp(max=1)).ravel())
        w = new
    return torch.stack(norms).numpy(), torch.stack(angles).numpy()


def settled(values):
    return values[len(values) // 2 :]


@pytest.mark.parametrize(
    ("rule", "lr", "weight_decay", "gradient", "tolerance"),
    [
        (nl.sgd(), 0.1, 0.01, 1.0, 0.01),
        (nl.sgd(), 0.5, 0.1, 3.0, 0.01),
        (nl.momentum(0.9), 0.1, 0.001, 1.0, 0.01),
        (nl.momentum(0.5), 0.2, 0.005, 2.0, 0.01),
        (nl.nesterov(0.9), 0.1, 0.001, 1.0, 0.01),
        (nl.nesterov(0.5), 0.2, 0.005, 2.0, 0.01),
        (nl.adam((0.9, 0.999), eps=1e-30), 1e-2, 1e-2, 8.0, 0.01),
        (nl.adam((0.5, 0.9995), eps=1e-30), 3e-3, 1e-2, 3.0, 0.01),
        (nl.adamw((0.9, 0.999), eps=1e-30), 1e-2, 0.1, 1.0, 0.01),
        (nl.adamw((0.5, 0.999), eps=1e-30), 1e-2, 0.1, 5.0, 0.01),
        (nl.rmsprop(0.99, eps=1e-30), 3e-3, 1e-2, 8.0, 0.05),
        (nl.lion((0.9, 0.99)), 1e-3, 0.3, 1.0, 0.03),
    ],
    ids=str,
)
def test_equilibrium_norm_and_angle(rule, lr, weight_decay, gradient, tolerance):
    known = {"gradient": gradient, "size": SIZE}
    expected = rule.theory.equilibrium_norm(lr, weight_decay, **known)
    # Two relaxation times and more until all is settled, as long again, and 96,000 steps in all.
    steps = max(3000, round(4.4 * rule.theory.relaxation_time(lr, weight_decay, **known)))
    chains = round(96_000 / steps)
    norms, angles = simulate(rule, lr, weight_decay, steps, gradient, chains, start=expected)
    assert settled(norms).mean() == pytest.approx(expected, rel=tolerance)
    angle = rule.theory.angle(lr, weight_decay, **known)
    assert math.sqrt((settled(angles) ** 2).mean()) == pytest.approx(angle, rel=tolerance)


@pytest.mark.parametrize(
    ("rule", "lr", "weight_decay", "tolerance"),
    [
        (nl.sgd(), 0.05, 0.02, 0.03),
        (nl.momentum(0.9), 0.02, 0.005, 0.05),
        (nl.nesterov(0.9), 0.02, 0.005, 0.05),
        (nl.adam((0.5, 0.99), eps=1e-30), 3e-3, 0.01, 0.1),
        (nl.adamw((0.5, 0.99), eps=1e-30), 1e-2, 0.01, 0.05),
        (nl.lion((0.9, 0.99)), 1e-3, 0.1, 0.05),
    ],
    ids=str,
)
def test_relaxation_time(rule, lr, weight_decay, tolerance):
    known = {"gradient": 2.0, "size": SIZE}
    expected = rule.theory.equilibrium_norm(lr, weight_decay, **known)
    time = rule.theory.relaxation_time(lr, weight_decay, **known)
    steps = round(2.5 * time)
    deviations = []
    for start in (0.95, 1.05):  # small: the formula is for small deviations
        norms, _ = simulate(rule, lr, weight_decay, steps, 2.0, chains=16, start=start * expected)
        deviations.append(np.log(norms).mean(1))
    # the difference of two runs with the same gradients; first steps fill the averages
    gap = np.abs(deviations[1] - deviations[0])
    first = min(round(0.5 * time), steps // 2)
    slope = np.polyfit(np.arange(first, steps), np.log(gap[first:]), 1)[0]
    assert -1 / slope == pytest.approx(time, rel=tolerance)


def test_the_buffer_delays_the_relaxation():
    """Where the relaxation time is 4/(1−μ), the way back is (1 + (1−μ)t/2) e^(−(1−μ)t/2)."""
    mu, time, lr = 0.9, 40, 0.1
    rule, weight_decay = nl.momentum(mu), (1 - mu) / (4 * time * lr)
    norm = rule.theory.equilibrium_norm(lr, weight_decay, gradient=2.0)
    low, high = (
        (simulate(rule, lr, weight_decay, 2 * time, 2.0, start=start * norm)[0] ** 4).mean(1)
        for start in (0.95, 1.05)
    )
    left, t = (high - low) / (high[0] - low[0]), np.arange(2 * time)
    delayed = (1 + (1 - mu) * t / 2) * np.exp(-(1 - mu) * t / 2)
    assert np.abs(left - delayed).max() < 0.02
    assert np.abs(left - np.exp(-t / time)).max() > 0.1


def test_sgd_turns_by_an_exact_identity():
    """Σ log cos θ = T log(1 − ηλ) − log(r_T / r₀), whatever the gradients."""
    lr, weight_decay, steps = 0.3, 0.05, 500
    norms, angles = simulate(nl.sgd(), lr, weight_decay, steps + 1, gradient=2.0)
    total = np.log(np.cos(angles[:steps])).sum(0)
    expected = steps * math.log(1 - lr * weight_decay) - np.log(norms[steps] / norms[0])
    np.testing.assert_allclose(total, expected, rtol=1e-10)


def test_sgd_without_decay_grows_by_an_exact_identity():
    """r⁴ grows by 2η²G² + η⁴G⁴/r⁴ in every step."""
    lr, gradient = 0.3, 2.0
    norms, _ = simulate(nl.sgd(), lr, 0.0, 300, gradient)
    push = (lr * gradient) ** 2
    growth = 2 * push + push**2 / norms[:-1] ** 4
    np.testing.assert_allclose(np.diff(norms**4, axis=0), growth, rtol=1e-9)


@pytest.mark.parametrize(
    "rule", [nl.sgd(), nl.momentum(), nl.nesterov(), nl.adam(), nl.adamw(), nl.lion(), nl.rmsprop()]
)
def test_formulas_agree_with_the_exact_symmetry(rule):
    """Rescaling (lr, λ) by the symmetry moves the norm by a and leaves the angle."""
    a, known = 3.0, {"gradient": 2.0, "size": SIZE}
    lr, weight_decay = 1e-3, 1e-2
    up, down = rule.theory.symmetry(a)
    before, after = (lr, weight_decay), (lr * up, weight_decay * down)
    norm = [rule.theory.equilibrium_norm(*pair, **known) for pair in (before, after)]
    assert norm[1] / norm[0] == pytest.approx(a, rel=1e-9)
    for formula in (rule.theory.angle, rule.theory.relaxation_time):
        assert formula(*after, **known) == pytest.approx(formula(*before, **known), rel=1e-9)
    effective = [
        rule.theory.effective_lr(pair[0], r) for pair, r in zip((before, after), norm, strict=True)
    ]
    assert effective[1] == pytest.approx(effective[0], rel=1e-9)


def test_ridges():
    kappas = {
        name: getattr(theory, name)().tradeoff_exponent
        for name in ("sgd", "adam", "adamw", "lion", "rmsprop", "adagrad", "adadelta", "unit_norm")
    }
    assert kappas == {
        "sgd": 1, "adam": 0.5, "adamw": 1, "lion": 1, "rmsprop": 0.5, "adagrad": 0.5,
        "adadelta": 0, "unit_norm": 0,
    }  # fmt: skip


def evaluated(formula, **values):
    """A formula in TeX without fractions, as a number."""
    text = re.sub(r"\\sqrt\{(.*?)\}", r" sqrt(\1)", formula)
    text = re.sub(r"\^(\{.*?\}|\d)", lambda m: f"**({m[1].strip('{}')})", text)
    tokens = re.findall(r"sqrt|r_\*|\\[a-z]+|[A-Za-z]|\d+|\*\*|[-+/()]", text)
    assert "".join(tokens) == text.replace(" ", ""), formula
    source = ""
    for before, token in itertools.pairwise(["", *tokens]):
        factor = re.match(r"[\w\\(]", token) and re.search(r"[\w)*]$", before)
        if factor and before not in ("sqrt", "**"):
            source += "*"  # factors stand side by side
        source += f"values[{token!r}]" if re.match(r"(?!sqrt)[A-Za-z\\]", token) else token
    return eval(source, {"sqrt": math.sqrt, "values": values})


MU, BETA = 0.9, 0.8
RULES = {
    "SGD, momentum": theory.sgd(MU),
    "Nesterov": theory.sgd(MU, nesterov=True),
    "Adam with L2": theory.adam((BETA, 0.999)),
    "AdamW": theory.adamw((BETA, 0.999)),
}
ROWS = re.findall(
    r"^\| ([^|]+?) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
    (ROOT / "book/summary.md").read_text(encoding="utf-8").split("|---|---|---|---|")[1],
    re.M,
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_summary_has_the_formulas(row):
    rule = next(rule for name, rule in RULES.items() if row[0].startswith(name))
    state = {"lr": 3e-3, "weight_decay": 2e-3, "gradient": 0.7, "size": 64}
    values = {
        r"\eta": 3e-3, r"\lambda": 2e-3, "G": 0.7, "d": 64, r"\mu": MU,
        "s": math.sqrt((1 - BETA) / (1 + BETA)), "r_*": rule.equilibrium_norm(**state),
    }  # fmt: skip
    quantities = (rule.angle, rule.equilibrium_norm, rule.relaxation_time)
    for cell, quantity in zip(row[1:], quantities, strict=True):
        if cell == "as momentum":
            assert row[0] == "Nesterov"
            cell = ROWS[0][1 + quantities.index(quantity)]
        assert evaluated(cell.strip("$"), **values) == pytest.approx(quantity(**state), rel=1e-4)
    assert len(ROWS) == len(RULES)


# Torch's own optimizers, and rules that are known by their steps ----------------------------------

QUICK = dict(betas=(0.9, 0.995), eps=1e-30)


def walk(make, rule, steps, shape=(32, 32), start=None, seed=0, lrs=None):
    """Norms and angles (steps,) of a torch optimizer under random gradients orthogonal to w."""
    random = torch.Generator().manual_seed(seed)
    w = torch.nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))
    optimizer = make([w])
    group = optimizer.param_groups[0]
    if start is None:
        start = rule.equilibrium_norm(group["lr"], group["weight_decay"], 1.0, w.numel())
    with torch.no_grad():
        w.mul_(start / w.norm())
    norms, angles = [], []
    for t in range(steps):
        group["lr"] = group["lr"] if lrs is None else lrs[t]
        before = w.detach().clone()
        g = torch.randn(shape, generator=random, dtype=torch.float64)
        g -= (g * before).sum() / before.square().sum() * before
        w.grad = g / g.norm() / before.norm()
        optimizer.step()
        along, across = exponents.split(before.ravel(), w.detach().ravel(), before.norm())
        norms.append(float(before.norm()))
        angles.append(math.atan2(float(across), norms[-1] + float(along)))
    return np.array(norms), np.array(angles)


def alone(make, shape=(32, 32), step=0):
    """An optimizer's formulas, and lr and weight decay."""
    optimizer = make([torch.nn.Parameter(torch.ones(shape))])
    group = optimizer.param_groups[0]
    return rules.theory_of(optimizer, group, shape, step), group["lr"], group["weight_decay"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("AdamW", {}),
        ("AdamW", dict(amsgrad=True)),
        ("NAdam", dict(decoupled_weight_decay=True, momentum_decay=1.0)),
        ("NAdam", dict(momentum_decay=1.0)),
        ("RAdam", dict(decoupled_weight_decay=True)),
        ("RAdam", {}),
    ],
    ids=str,
)
def test_torch_optimizers_turn_as_their_formulas_say(kind, settings):
    coupled = kind != "AdamW" and "decoupled_weight_decay" not in settings
    rates = dict(lr=0.002, weight_decay=0.01) if coupled else dict(lr=0.01, weight_decay=0.03)
    make = lambda p: getattr(torch.optim, kind)(p, **rates, **QUICK, **settings)  # noqa: E731
    rule, lr, decay = alone(make, step=5000)
    norm = rule.equilibrium_norm(lr, decay, 1.0, 1024)
    # AMSGrad has no formula for the norm: from its smallest norm on it is momentum.
    # At first without lr: the averages fill, and RAdam's slow start passes.
    lrs = [0.0] * 1000 + [lr] * 5000
    norms, angles = walk(make, rule, 6000, start=12.0 if math.isnan(norm) else norm, lrs=lrs)
    angle = rule.angle(lr, decay, 1.0, 1024)
    assert math.sqrt((settled(angles) ** 2).mean()) == pytest.approx(angle, rel=0.01)
    if not math.isnan(norm):
        assert settled(norms).mean() == pytest.approx(norm, rel=0.01)


class Lion(torch.optim.Optimizer):
    """Nothing is known of it but its steps."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, by_lr=True):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay, by_lr=by_lr))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["weight_decay"] * (group["lr"] if group["by_lr"] else 1))
                p.add_(torch.sign(b1 * m + (1 - b1) * p.grad), alpha=-group["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)


@pytest.mark.parametrize(
    ("make", "shape", "tolerance"),
    [
        (lambda p: Lion(p, lr=1e-3, weight_decay=0.3), (32, 32), 0.03),
        (lambda p: Lion(p, lr=1e-3, weight_decay=3e-4, by_lr=False), (32, 32), 0.03),
        (lambda p: torch.optim.Muon(p, lr=1e-2, weight_decay=0.05, momentum=0.9), (32, 32), 0.01),
        (lambda p: torch.optim.Muon(p, lr=1e-2, weight_decay=0.05, momentum=0.9, nesterov=False,
                                    adjust_lr_fn="match_rms_adamw"), (16, 64), 0.01),
    ],
    ids=["lion", "lion, independent decay", "muon, square", "muon, wide"],
)  # fmt: skip
def test_a_rule_that_is_known_by_its_steps_turns_as_they_say(make, shape, tolerance):
    rule, lr, decay = alone(make, shape)
    size = math.prod(shape)
    norms, angles = walk(make, rule, 5000, shape)
    angle, norm = (f(lr, decay, 1.0, size) for f in (rule.angle, rule.equilibrium_norm))
    assert math.sqrt((settled(angles) ** 2).mean()) == pytest.approx(angle, rel=tolerance)
    assert settled(norms).mean() == pytest.approx(norm, rel=2 * tolerance)


def test_the_steps_of_a_square_matrix_are_less_alike_than_its_momentum():
    """So Muon's formula without a measured persistence holds for long matrices only."""
    off = []
    for shape in ((32, 32), (8, 128)):
        rule, lr, decay = alone(lambda p: torch.optim.Muon(p, weight_decay=0.1), shape)
        off.append(rule.angle(lr, decay) / theory.muon(shape).angle(lr, decay))
    assert off[0] > 1.1
    assert off[1] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Cautious(p, lr=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adadelta(p, lr=1e-3, weight_decay=0.1),
        lambda p: Slow(p, lr=1e-3, weight_decay=0.1),
    ],
    ids=["decay depends on the step", "another exponent", "remembers too long"],
)
def test_a_rule_that_the_general_formula_does_not_fit_has_none(make):
    assert alone(make)[0] is None


class Cautious(Lion):
    """Decays only where the step does so too."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                u = torch.sign(p.grad)
                p.add_(u + group["weight_decay"] * p * (u * p > 0), alpha=-group["lr"])


class Slow(Lion):
    """With an average over ten thousand steps."""

    def __init__(self, params, lr=1e-4, weight_decay=0.0):
        super().__init__(params, lr, (1 - 1e-4, 1 - 1e-4), weight_decay)


def test_norms_follow_a_schedule():
    """AdamW from far above and through a schedule, to 3 %; the equilibrium is not where it ends."""
    lrs = [0.02 * 0.5 * (1 + math.cos(math.pi * t / 4000)) for t in range(4000)]
    make = lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, betas=(0.9, 0.98))  # noqa: E731
    rule = theory.adamw((0.9, 0.98))
    norms, _ = walk(make, rule, 4000, start=30.0, lrs=lrs)
    predicted = [30.0]
    for lr in lrs[:-1]:
        predicted.append(rule.next_norm(predicted[-1], lr, 0.1, size=1024))
    np.testing.assert_allclose(norms, predicted, rtol=0.03)
    assert norms[-1] > 1.5 * rule.equilibrium_norm(lrs[-400], 0.1, size=1024)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_norm_comes_to_rest_by_the_equation_of_its_rule(name):
    """Many steps at once are as many single ones; a start at equilibrium stays."""
    rule, known = getattr(theory, name)(), dict(gradient=2.0, size=SIZE)
    rest = rule.equilibrium_norm(0.01, 0.1, **known)
    one = 3 * rest
    for _ in range(200):
        one = rule.next_norm(one, 0.01, 0.1, **known)
    assert rule.next_norm(3 * rest, 0.01, 0.1, **known, steps=200) == pytest.approx(one, rel=1e-9)
    assert rule.next_norm(rest, 0.01, 0.1, **known, steps=50) == pytest.approx(rest, rel=1e-9)
    time = rule.relaxation_time(0.01, 0.1, **known)
    near = rule.next_norm(1.001 * rest, 0.01, 0.1, **known, steps=round(time))
    assert (near / rest - 1) / 0.001 == pytest.approx(math.exp(-round(time) / time), rel=0.01)


def test_the_ratio_of_gradients_and_weights_at_equilibrium():
    assert theory.sgd(0.9).gradient_ratio(0.1, 0.02, 3.0) == pytest.approx(
        math.sqrt(2 * 0.02 * 0.1 / 0.1), rel=0.01
    )
    assert theory.adamw().gradient_ratio(1e-3, 0.1, 3.0, 500) == pytest.approx(
        2 * 0.1 * 3.0 / (1e-3 * 500)
    )


def test_independent_decay_is_decay_that_lr_does_not_multiply():
    rule = theory.adamw().independent()
    assert rule.angle(1e-3, 1e-4) == pytest.approx(theory.adamw().angle(1e-3, 0.1))
    assert rule.angle(5e-3, 1e-4) == pytest.approx(rule.angle(1e-3, 1e-4))
    assert rule.relaxation_time(1e-3, 1e-4) == pytest.approx(5000)
    assert rule.tradeoff_exponent == math.inf
    assert rule.symmetry(2.0) == (2.0, 1.0)


def test_adafactor_turns_by_lr_at_any_norm_and_has_no_equilibrium():
    make = lambda p: torch.optim.Adafactor(p, lr=0.003, weight_decay=0.01)  # noqa: E731
    for start in (1.0, 100.0):
        norms, angles = walk(make, None, 1000, start=start)
        turned = math.sqrt((settled(angles) ** 2).mean())
        assert turned == pytest.approx(theory.adafactor().angle(0.003, 0.01), rel=0.01)
        assert norms[-1] == pytest.approx(start * math.exp(999 * (0.003**2 / 2 - 3e-5)), rel=0.01)
    assert math.isnan(theory.adafactor().equilibrium_norm(0.003, 0.01))

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

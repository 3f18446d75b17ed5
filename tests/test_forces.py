"""What moved a norm, why a gradient rose, joint groups, and a record that stays small."""

import copy
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normlib as nl
from normlib import theory
from tests.test_tracking import fit, sgd, small, tracked, walk

# Forces -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.5), 0.03 * 0.5),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01), 0.1 * 0.01 / 0.1),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0.0),
    ],
    ids=["decoupled", "coupled", "none"],
)
def test_three_forces_are_the_change_of_the_squared_norm(make, share):
    """Each by hand, from the weights before and after; their sum whatever the share of decay."""
    model, x, y = small(dtype=torch.float64)
    optimizer = make(model.parameters())
    tracker = nl.track(optimizer, model)
    weights = [model[0].weight.detach().clone()]
    for i in range(8):
        fit(model, optimizer, x, y, 1, first=i)
        weights.append(model[0].weight.detach().clone())
    found = tracker.forces().sel(parameter="0.weight")
    for i, (w, new) in enumerate(itertools.pairwise(weights)):
        step = new - (1 - share) * w
        expected = {
            "change": new.square().sum() - w.square().sum(),
            "from_alignment": 2 * (1 - share) * (w * step).sum(),
            "from_step": step.square().sum(),
            "from_decay": -share * (2 - share) * w.square().sum(),
        }
        for name, value in expected.items():
            assert float(found[name][i]) == pytest.approx(float(value), rel=1e-9, abs=1e-13), name
    parts = found.from_alignment + found.from_step + found.from_decay
    np.testing.assert_allclose(parts, found.change, rtol=1e-9, atol=1e-13)


def test_at_equilibrium_the_forces_balance_and_momentum_aligns():
    """In the mean the change is 0. Without momentum a random step has no alignment; with
    β₁ = 0.9 it has 18/19 of the growth, the share of the buffer's older gradients."""
    for beta, aligned in ((0.0, 0.0), (0.9, 18 / 19)):
        make = lambda p, beta=beta: torch.optim.AdamW(  # noqa: E731
            p, lr=0.01, weight_decay=0.1, betas=(beta, 0.98), eps=1e-30
        )
        norm = theory.adamw().equilibrium_norm(0.01, 0.1, size=400)
        mean = walk(make, 3000, scale=norm).forces().isel(parameter=0).mean("step")
        growth = float(mean.from_alignment + mean.from_step)
        assert float(mean.from_decay) == pytest.approx(-growth, rel=0.02)
        assert float(mean.from_alignment) / growth == pytest.approx(aligned, abs=0.02)


def test_decay_without_a_formula_leaves_the_change_alone():
    make = lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1, weight_decay=0.1)  # noqa: E731
    found = tracked(make=make)[1].forces()
    assert np.isfinite(found.change).all()
    assert np.isnan(found.from_step).all()
    assert all(one.long_name for one in found.values())


# Why a gradient rose ------------------------------------------------------------------------------


def test_a_gradient_rises_as_the_weights_shrink():
    """From 3 times its equilibrium's norm SGD comes down, with unit gradients: all is ‖w‖'s."""
    make = lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01)  # noqa: E731
    norm = theory.sgd().equilibrium_norm(0.1, 0.01, gradient=1.0)
    tracker = walk(make, 3000, scale=3 * norm)
    words = tracker.explain_gradients().splitlines()[1]
    record = tracker.to_dataset().isel(parameter=0)
    rise = [
        float((record.gradient_norm[part] ** 2).mean() ** 0.5)
        for part in (slice(20), slice(-20, None))
    ]
    assert words.startswith(
        f"weight: gradient norm × {rise[1] / rise[0]:.2g} since its first steps"
    )
    assert "× 1 from the unit gradient" in words
    ratio = math.sqrt(2 * 0.01 / 0.1)
    assert words.endswith(f"it would be {ratio:.2g}")
    there = float(words.split("‖g‖/‖w‖ is ")[1].split(",")[0])
    assert there == pytest.approx(ratio, rel=0.05)


def test_a_gradient_is_not_explained_where_the_law_does_not_hold():
    words = tracked(steps=40)[1].explain_gradients().splitlines()
    assert "not scale-invariant, so its norm need not go with" not in words[1]
    assert "not scale-invariant, so its norm need not go with" in words[2]


# Joint groups -------------------------------------------------------------------------------------


class Pair(nn.Module):
    """A matrix and a bias before a normalization: invariant together, each alone is not."""

    def __init__(self, power=1):
        super().__init__()
        self.first, self.power = nn.Linear(6, 7), power
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        weight, bias = self.first.weight, self.first.bias
        h = F.linear(x, weight, bias.sign() * bias.abs() ** self.power)
        h = (h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True)
        return self.last(torch.relu(h))


@pytest.mark.parametrize(("power", "exponents"), [(1, (1, 1)), (2, (2, 1))])
def test_a_joint_group_is_one_vector_more(power, exponents):
    """Its row is that of the tensors times √c, one after another; no gradient lies in it."""
    torch.manual_seed(0)
    model = Pair(power).double()
    x, y = torch.randn(20, 8, 6, dtype=torch.float64), torch.randint(3, (20, 8))
    group = dict(zip(("first.weight", "first.bias"), exponents, strict=True))
    optimizer = sgd(model, weight_decay=0.01)
    tracker = nl.track(optimizer, model, groups=[group])
    ends = []
    for i in range(5):
        tensors = (model.first.weight, model.first.bias)
        ends.append(torch.cat([math.sqrt(c) * p.detach().ravel()
                               for c, p in zip(exponents, tensors, strict=True)]))  # fmt: skip
        fit(model, optimizer, x, y, 1, first=i)
    record = tracker.to_dataset()
    assert list(record.parameter) == ["first.weight", "last.weight", "first.weight + first.bias"]
    one = record.isel(parameter=2)
    for i, (old, new) in enumerate(itertools.pairwise(ends)):
        assert float(one.weight_norm[i]) == pytest.approx(float(old.norm()), rel=1e-12)
        cosine = F.cosine_similarity(old, new, dim=0)
        assert float(one.angle[i]) == pytest.approx(math.acos(float(cosine)), rel=1e-5)
    assert abs(one.alignment).max() < 1e-12 < abs(record.alignment[0]).max()
    assert float(one.equilibrium_angle[0]) == pytest.approx(theory.sgd(0.9).angle(0.1, 0.01))


def test_a_joint_group_turns_by_the_formula_of_one_tensor():
    """Random gradients orthogonal to both tensors together, exponents 1 and 2."""
    random = torch.Generator().manual_seed(0)
    model = nn.ParameterDict(
        {n: nn.Parameter(torch.randn(20, k, generator=random, dtype=torch.float64))
         for n, k in (("a", 30), ("b", 10))}
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    tracker = nl.track(optimizer, model, groups=[{"a": 1, "b": 2}])
    for _ in range(6000):
        a, b = (model[n].detach() for n in "ab")
        g, h = (torch.randn(w.shape, generator=random, dtype=torch.float64) for w in (a, b))
        norm = (a.square().sum() + 2 * b.square().sum()).sqrt()
        along = ((a * g).sum() + 2 * (b * h).sum()) / (a.square().sum() + 4 * b.square().sum())
        model["a"].grad, model["b"].grad = (g - along * a) / norm, (h - 2 * along * b) / norm
        optimizer.step()
    late = tracker.to_dataset().isel(step=slice(3000, None))
    angles = (late.angle**2).mean("step") ** 0.5 / theory.sgd().angle(0.1, 0.01)
    assert float(angles[2]) == pytest.approx(1, abs=0.01)
    assert "a + b: angle" in tracker.summary()


def test_an_audit_gives_its_joint_groups_and_says_what_it_cannot_give():
    model = Pair()
    audit = SimpleNamespace(
        model=model,
        invariant=["first.in_proj[q]"],
        groups=[{"first.weight": 1, "first.bias": 1}, {"last.weight": 1, "last.bias": -1},
                {"first.in_proj[k]": 1, "last.bias": 1}],
    )  # fmt: skip
    tracker = nl.track(sgd(model), audit)
    x, y = torch.randn(4, 8, 6), torch.randint(3, (4, 8))
    fit(model, tracker.optimizer, x, y, 2)
    assert list(tracker.to_dataset().parameter) == ["first.weight + first.bias"]
    last = tracker.summary().splitlines()[-1]
    assert last == (
        "not tracked, being parts of tensors: first.in_proj[k] + last.bias, first.in_proj[q]"
    )


def test_a_group_with_several_rates_has_no_equilibrium():
    model = Pair()
    first = [{"params": [model.first.weight], "weight_decay": 0.1}]
    rest = [{"params": [model.first.bias, *model.last.parameters()]}]
    optimizer = torch.optim.SGD(first + rest, lr=0.1)
    tracker = nl.track(optimizer, model, groups=[{"first.weight": 1, "first.bias": 1}])
    fit(model, optimizer, torch.randn(4, 8, 6), torch.randint(3, (4, 8)), 2)
    words = tracker.summary().splitlines()[-1]
    assert "several lr or weight decays, so no one equilibrium" in words
    assert np.isnan(tracker.to_dataset().equilibrium_angle[-1]).all()
    for group, words in (({"first.weight": 1, "last.weight": -1}, "must be positive"),
                         ({"first.weight": 1, "none": 1}, "names none, which")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            nl.track(optimizer, model, groups=[group])


# A small record -----------------------------------------------------------------------------------


def test_a_long_record_is_thinned():
    _, whole = tracked(steps=37)
    model, x, y = small()
    optimizer = sgd(model)
    tracker = nl.track(optimizer, model, at_most=8)
    fit(model, optimizer, x, y, 20)
    state = copy.deepcopy(tracker.state_dict())
    assert len(tracker.to_dataset().step) <= 8
    fit(model, optimizer, x, y, 17, first=20)
    record = tracker.to_dataset()
    assert record.step.values.tolist() == [0, 8, 16, 24, 32]
    assert tracker.record_every == record.record_every == 8
    expected = whole.to_dataset().sel(step=record.step)
    np.testing.assert_array_equal(record.angle, expected.angle)
    tracker.load_state_dict(state)
    assert tracker.record_every == 4


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("0.*", ["0.weight"]),
        (["3.weight"], ["3.weight"]),
        (["*.weight", "none"], ["0.weight", "3.weight"]),
    ],
)
def test_names_choose_what_is_tracked(only, names):
    model = small()[0]
    assert list(nl.track(sgd(model), model, only=only).to_dataset().parameter) == names
    with pytest.raises(ValueError, match="two or more dimensions and a name like only="):
        nl.track(sgd(model), model, only="absent*")


def test_the_latest_step_is_flat_numbers_for_any_logger():
    _, tracker = tracked(steps=5, weight_decay=0.01)
    latest = tracker.latest()
    assert json.loads(json.dumps(latest, allow_nan=False)) == latest
    record = tracker.to_dataset().isel(step=-1)
    for name in (
        "angle",
        "weight_norm",
        "gradient_norm",
        "effective_lr",
        "equilibrium_angle",
        "lr",
    ):
        assert latest[f"{name}/0.weight"] == float(record[name].sel(parameter="0.weight"))
    assert "equilibrium_angle/3.weight" in latest
    assert not any("equilibrium" in name for name in tracked(steps=5)[1].latest())  # no decay
    assert tracked(steps=0)[1].latest() == {}


# Formulas -----------------------------------------------------------------------------------------


def test_a_formula_can_be_given():
    model, x, y = small()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01, weight_decay=0.001)
    tracker = nl.track(optimizer, model, rule=theory.adamw().independent())
    fit(model, optimizer, x, y, 3)
    expected = theory.adamw().angle(1.0, 0.001)
    np.testing.assert_allclose(tracker.to_dataset().equilibrium_angle, expected)


def test_each_parameter_group_has_its_own_formula():
    model, x, y = small()
    groups = [{"params": [model[0].weight], "betas": (0.5, 0.9)},
              {"params": [*model[1].parameters(), *model[3].parameters()]}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    tracker = nl.track(optimizer, model)
    fit(model, optimizer, x, y, 2)
    for i, betas in enumerate([(0.5, 0.9), (0.9, 0.999)]):
        expected = theory.adamw(betas).angle(0.01, 0.1)
        np.testing.assert_allclose(tracker.to_dataset().equilibrium_angle[i], expected)


def test_a_rule_relative_to_the_norm_has_no_equilibrium():
    make = lambda m: torch.optim.Adafactor(m.parameters(), lr=0.01, weight_decay=0.1)  # noqa: E731
    words = tracked(make=make)[1].summary()
    assert (
        "0.weight: a step is relative to the norm, so no equilibrium: it turns by about 0.01"
        in words
    )


def test_muon_beside_adamw():
    """As people use it: matrices to Muon, the rest to AdamW, a tracker each."""
    model, x, y = small()
    muon = torch.optim.Muon([model[0].weight], lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW([*model[1].parameters(), *model[3].parameters()], lr=0.01)
    trackers = [nl.track(o, model) for o in (muon, adamw)]
    for i in range(30):
        model.zero_grad()
        F.cross_entropy(model(x[i]), y[i]).backward()
        muon.step()
        adamw.step()
    for tracker, name in zip(trackers, ("0.weight", "3.weight"), strict=True):
        record = tracker.to_dataset()
        assert list(record.parameter) == [name]
        assert np.isfinite(record.equilibrium_angle).all()
    ratio = trackers[0].to_dataset().equilibrium_angle / theory.muon((5, 6)).angle(0.02, 0.1)
    assert 1.05 < float(ratio[0, 0]) < 1.3

"""A tracker measures what a sweep measures, changes nothing, and says plainly what it cannot do."""

import contextlib
import copy
import inspect
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

import normlib as nl
from normlib import theory
from normlib.diagnostics import exponents, measuring, rules
from tests import reference
from tests.conftest import ROOT

NET = nl.convnet(width=4, depth=2)
OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
]


def small(seed=0, dtype=torch.float32):
    """A network with two matrices, of which the first is scale-invariant, and its data."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    )
    return model.to(dtype), torch.randn(40, 8, 6, dtype=dtype), torch.randint(3, (40, 8))


def fit(model, optimizer, x, y, steps, schedule=None, first=0):
    """The plainest training loop."""
    for i in range(first, first + steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x[i]), y[i]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), **dict(lr=0.1, momentum=0.9) | settings)


def tracked(steps=10, record_every=1, make=sgd, dtype=torch.float32, **settings):
    """A training of the small network, and its tracker."""
    model, x, y = small(dtype=dtype)
    optimizer = make(model, **settings)
    tracker = nl.track(optimizer, model, record_every)
    fit(model, optimizer, x, y, steps)
    return model, tracker


# What it measures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "make", "lr"),
    [
        (nl.sgd(), lambda g: torch.optim.SGD(g, lr=0.1), 0.1),
        (nl.momentum(0.9), lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9), 0.1),
        (nl.nesterov(0.9), lambda g: torch.optim.SGD(g, 0.1, momentum=0.9, nesterov=True), 0.1),
        (nl.adam(), lambda g: torch.optim.Adam(g, lr=0.01), 0.01),
        (nl.adamw(), lambda g: torch.optim.AdamW(g, lr=0.01), 0.01),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw"],
)
def test_a_tracker_measures_what_a_sweep_measures(data, rule, make, lr):
    runs = nl.sweep(
        NET, data, rule, lr=lr, weight_decay=0.01, epochs=1, record_every=1, precision="float64"
    )
    x64 = data.to("cpu", torch.float64)
    wide = NET.wide(1, data.shape, data.classes, dtype=torch.float64)
    found = []

    def make_tracked(groups):
        optimizer = make(groups)
        holder = nn.ParameterList(p for group in groups for p in group["params"])
        found.append(nl.track(optimizer, holder))
        return optimizer

    batches = reference.minibatches(x64, 0, 1)
    reference.train(NET, x64, wide, 0, make_tracked, 0.01, "invariant", batches)
    record = found[0].to_dataset()
    order = list(wide.parameters)
    for layer in NET.layers:
        ours = record.isel(
            parameter=list(record.parameter).index(str(order.index(f"{layer}.weight")))
        )
        theirs = runs.sel(layer=layer)
        assert ours.step.values.tolist() == theirs.step.values.tolist()
        for name in ("weight_norm", "gradient_norm", "angle", "effective_lr"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, err_msg=name)
        assert set(ours.weight_decay.values) == {0.01}


def test_alignment_is_zero_for_scale_invariant_weights_alone():
    _, tracker = tracked(dtype=torch.float64)
    record = tracker.to_dataset()
    assert list(record.parameter) == ["0.weight", "3.weight"]
    alignment = abs(record.alignment).mean("step")
    assert alignment[0] < 1e-3 < alignment[1]  # batch norm's eps keeps it from 0


def test_small_angles_survive_single_precision():
    for name, tolerance in (("float32", 0.02), ("float64", 1e-3)):
        _, tracker = tracked(lr=1e-5, momentum=0, dtype=getattr(torch, name))
        one = tracker.to_dataset().isel(parameter=0)
        assert float(one.angle.max()) < 1e-5
        expected = one.lr * one.gradient_norm / one.weight_norm
        np.testing.assert_allclose(one.angle, expected, rtol=tolerance)


def test_half_precision_weights_are_measured_in_single():
    _, tracker = tracked(dtype=torch.bfloat16)
    record = tracker.to_dataset()
    assert bool((record.angle > 0).all())
    assert bool(np.isfinite(record.gradient_norm).all())


def test_the_layout_of_memory_does_not_matter():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    records = []
    for layout in (torch.contiguous_format, torch.channels_last):
        one = copy.deepcopy(model).to(memory_format=layout)
        optimizer = sgd(one)
        tracker = nl.track(optimizer, one)
        one(x.to(memory_format=layout)).square().mean().backward()
        optimizer.step()
        records.append(tracker.to_dataset())
    xr.testing.assert_allclose(*records, rtol=1e-12)


def test_weights_that_begin_at_zero_have_no_effective_lr_yet():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    optimizer = sgd(model)
    tracker = nl.track(optimizer, model)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.ones(2, 3)) - 1).square().mean().backward()
        optimizer.step()
    record = tracker.to_dataset().isel(parameter=0)
    assert np.isnan(record.effective_lr).values.tolist() == [True, False]
    assert np.isnan(record.angle).values.tolist() == [True, False]


def test_record_every_says_which_steps_are_measured():
    _, tracker = tracked(steps=10, record_every=4)
    assert tracker.to_dataset().step.values.tolist() == [0, 4, 8]
    assert tracker.steps == 10


def test_blocks_leave_no_trace(monkeypatch):
    _, whole = tracked(steps=30)
    monkeypatch.setattr(measuring, "_BLOCK", 7)
    _, blocks = tracked(steps=30)
    xr.testing.assert_identical(whole.to_dataset(), blocks.to_dataset())


def test_a_parameter_without_gradient_has_no_gradient_norm_and_does_not_turn():
    model, x, y = small()
    model.spare = nn.Linear(2, 2)
    optimizer = sgd(model, weight_decay=0.1)
    tracker = nl.track(optimizer, model)
    for i in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model[3](model[:3](x[i])), y[i]).backward()
        optimizer.step()
    spare = tracker.to_dataset().sel(parameter="spare.weight")
    assert np.isnan(spare.gradient_norm).all()
    assert np.isnan(spare.alignment).all()
    assert not spare.angle.any()
    assert "no gradient reaches it" in tracker.summary()


def test_sparse_gradients_are_measured():
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with nl.track(optimizer, model) as tracker:
        model(torch.tensor([1, 1, 2])).square().sum().backward()
        before, gradient = model.weight.detach().clone(), model.weight.grad.to_dense()
        optimizer.step()
    one = tracker.to_dataset().isel(parameter=0, step=0)
    assert float(one.gradient_norm) == pytest.approx(float(gradient.norm()), rel=1e-6)
    cosine = F.cosine_similarity(before.ravel(), gradient.ravel(), dim=0)
    assert float(one.alignment) == pytest.approx(float(cosine), rel=1e-5)


# It changes nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=str
)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, dict(lr=0.1, momentum=0.9, weight_decay=0.01)),
        (torch.optim.Adam, dict(lr=0.01, weight_decay=0.01)),
        (torch.optim.AdamW, dict(lr=0.01)),
    ],
)
def test_a_training_with_a_tracker_is_the_same_to_the_bit(kind, settings, how):
    ends = []
    for watched in (False, True):
        model, x, y = small()
        model.append(nn.Dropout(0.1))  # the random state matters too
        optimizer = kind(model.parameters(), **settings, **how)
        if watched:
            tracker = nl.track(optimizer, model, record_every=2)
        fit(model, optimizer, x, y, 12)
        if watched:
            tracker.to_dataset()
        ends.append((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    same(*ends)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=4),
        lambda params: torch.optim.LBFGS(params, max_iter=4, line_search_fn="strong_wolfe"),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_sees_no_tracker_and_the_tracker_sees_its_first_gradient(make, by_name):
    ends, first = [], []
    for watched in (False, True):
        model, x, y = small(dtype=torch.float64)
        optimizer = make(model.parameters())
        tracker = nl.track(optimizer, model) if watched else None
        for i in range(5):
            norms = []

            def closure(i=i, model=model, optimizer=optimizer, norms=norms, x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[i]), y[i])
                loss.backward()
                norms.append(float(model[0].weight.grad.norm()))
                return loss

            loss = optimizer.step(**{"closure": closure}) if by_name else optimizer.step(closure)
            assert float(loss.detach()) > 0
            first.append(norms[0])
        ends.append((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    same(*ends)
    measured = tracker.to_dataset().gradient_norm.sel(parameter="0.weight")
    np.testing.assert_allclose(measured, first[5:], rtol=1e-12)


def same(a, b):
    """Equal to the bit, whatever it is."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == b


def test_trackers_come_and_go():
    model, x, y = small()
    optimizer = sgd(model)
    with nl.track(optimizer, model) as first:
        second = nl.track(optimizer, model, record_every=2)
        fit(model, optimizer, x, y, 3)
    fit(model, optimizer, x, y, 2)
    second.remove()
    second.remove()
    fit(model, optimizer, x, y, 1)
    assert (first.steps, second.steps) == (3, 5)
    both = first.to_dataset().sel(step=[0, 2]), second.to_dataset().sel(step=[0, 2])
    np.testing.assert_array_equal(both[0].angle, both[1].angle)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# Ways to train ------------------------------------------------------------------------------------


def test_accumulated_gradients_are_one_step():
    model, x, y = small(dtype=torch.float64)
    optimizer = sgd(model)
    tracker = nl.track(optimizer, model)
    norms = []
    for i in range(6):
        (F.cross_entropy(model(x[i]), y[i]) / 2).backward()
        if i % 2:
            norms.append(float(model[0].weight.grad.norm()))
            optimizer.step()
            optimizer.zero_grad()
    record = tracker.to_dataset()
    assert record.step.values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(record.gradient_norm.sel(parameter="0.weight"), norms, rtol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_step_that_a_grad_scaler_skips_does_not_count(fused, unscaled):
    records = []
    for scale in (False, True):
        model, x, y = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scale)
        tracker = nl.track(optimizer, model)
        for i in (0, 1, 99, 2):
            if i == 99 and not scale:
                continue
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x[i % 40]), y[i % 40])
            scaler.scale(loss * (math.inf if i == 99 else 1)).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        records.append(tracker.to_dataset())
    assert records[1].step.values.tolist() == [0, 1, 2]
    # the skipped batch changed the running averages alone, which training does not use
    for name in ("gradient_norm", "angle", "weight_norm"):
        np.testing.assert_allclose(records[0][name], records[1][name], rtol=0.05)


def test_a_compiled_model_keeps_its_names():
    model, x, y = small()
    plain = small()[0]
    model[0] = torch.compile(model[0], backend="eager")
    compiled = torch.compile(model, backend="eager")
    records = []
    for one in (plain, compiled):
        optimizer = sgd(one)
        tracker = nl.track(optimizer, one)
        fit(one, optimizer, x, y, 3)
        records.append(tracker.to_dataset())
    assert list(records[1].parameter) == ["0.weight", "3.weight"]
    np.testing.assert_allclose(records[0].angle, records[1].angle, rtol=1e-4)


def test_schedules_are_recorded():
    model, x, y = small()
    groups = [{"params": [model[0].weight], "lr": 0.2, "weight_decay": 0.01},
              {"params": list(model[3].parameters()), "lr": torch.tensor(0.1)}]  # fmt: skip
    optimizer = torch.optim.SGD(groups, lr=0.1, foreach=False)
    tracker = nl.track(optimizer, model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    fit(model, optimizer, x, y, 4, schedule)
    optimizer.load_state_dict(optimizer.state_dict())  # puts new groups in the old ones' places
    fit(model, optimizer, x, y, 2, schedule)
    record = tracker.to_dataset()
    factors = np.array([1, 1, 0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(record.lr.sel(parameter="0.weight"), 0.2 * factors)
    np.testing.assert_allclose(record.lr.sel(parameter="3.weight"), 0.1 * factors, rtol=1e-6)
    np.testing.assert_allclose(record.effective_lr, record.lr / record.weight_norm**2)
    assert record.weight_decay.isel(step=0).values.tolist() == [0.01, 0.0]
    expected = [theory.sgd().angle(lr, 0.01) for lr in 0.2 * factors]
    np.testing.assert_allclose(record.equilibrium_angle.sel(parameter="0.weight"), expected)


def test_an_audit_chooses_its_invariant_parameters():
    model, x, y = small()
    audit = SimpleNamespace(model=model, invariant=["0.weight"])
    optimizer = sgd(model)
    tracker = nl.track(optimizer, audit)
    fit(model, optimizer, x, y, 2)
    assert list(tracker.to_dataset().parameter) == ["0.weight"]


def test_a_resumed_training_goes_on_with_its_record(tmp_path):
    settings = dict(weight_decay=0.01, dampening=0)
    _, whole = tracked(steps=9, record_every=2, **settings)
    _, x, y = small()
    model = small()[0]
    optimizer = sgd(model, **settings)
    tracker = nl.track(optimizer, model, record_every=2)
    fit(model, optimizer, x, y, 5)
    parts = {"model": model, "optimizer": optimizer, "tracker": tracker}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint")
    fit(model, optimizer, x, y, 3)  # lost

    model = small(seed=1)[0]
    optimizer = sgd(model, **settings)
    tracker = nl.track(optimizer, model, record_every=2)
    fit(model, optimizer, x, y, 1)  # forgotten
    parts = {"model": model, "optimizer": optimizer, "tracker": tracker}
    checkpoint = torch.load(tmp_path / "checkpoint", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])
    fit(model, optimizer, x, y, 4, first=5)
    xr.testing.assert_identical(whole.to_dataset(), tracker.to_dataset())
    assert whole.to_dataset().step.values.tolist() == [0, 2, 4, 6, 8]


def test_a_record_of_other_parameters_is_refused():
    _, tracker = tracked()
    model = nn.Linear(2, 2)
    other = nl.track(sgd(model), model)
    with pytest.raises(ValueError, match=r"other parameters.*0\.weight, 3\.weight, weight"):
        other.load_state_dict(tracker.state_dict())


def test_every_variable_says_what_it_is():
    record = tracked()[1].to_dataset()
    assert all(a.long_name and a.dims == ("parameter", "step") for a in record.values())
    assert record.attrs == dict(optimizer="SGD", steps=10, record_every=1, scale_exponent=2.0)


# Words and figures --------------------------------------------------------------------------------


def walk(make, steps, size=400, gradient=1.0, scale=1.0, record_every=1):
    """Random gradients orthogonal to w, the model of `normlib.theory`; returns the tracker."""
    random = torch.Generator().manual_seed(0)
    model = nn.Linear(size, 1, bias=False).double()
    w = model.weight
    with torch.no_grad():
        w.copy_(torch.randn(1, size, generator=random, dtype=torch.float64))
        w.mul_(scale / w.norm())
    optimizer = make(model.parameters())
    tracker = nl.track(optimizer, model, record_every)
    for _ in range(steps):
        g = torch.randn(1, size, generator=random, dtype=torch.float64)
        unit = w.detach() / w.detach().norm()
        g -= (g * unit).sum() * unit
        w.grad = gradient * g / g.norm() / w.detach().norm()
        optimizer.step()
    return tracker


# Averages that are short beside the time to equilibrium, as the formulas suppose.
QUICK = dict(betas=(0.9, 0.98), eps=1e-30)
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.002, weight_decay=0.01, **QUICK),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, **QUICK),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.002, 0.98, 1e-30, weight_decay=0.01),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("scale", [1 / 3, 3.0])
def test_the_steps_to_go_are_those_that_it_takes(name, scale):
    """Start far from equilibrium; what the summary says early comes true."""
    optimizer = RULES[name]([nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    known = rules.theory_of(optimizer, group)
    settings = dict(lr=group["lr"], weight_decay=group["weight_decay"], gradient=1.0, size=400)
    norm = known.equilibrium_norm(**settings)
    tracker = walk(RULES[name], 80, scale=scale * norm)
    words = tracker.summary().splitlines()[1]
    assert words.endswith("steps to go at this lr × weight_decay")
    said = float(words.split("about ")[1].split(" steps")[0].replace(",", ""))
    record = walk(RULES[name], 80 + round(1.5 * said), scale=scale * norm).to_dataset()
    # the norm crosses once, while angles are noisy
    near = norm * (0.8 if scale > 1 else 1.25) ** (-1 / known.scale_exponent)
    there = np.flatnonzero((record.weight_norm[0, 80:] - near) * (scale - 1) < 0)[0]
    assert said == pytest.approx(there, rel=0.3)


def test_the_summary_says_what_holds_of_each_parameter():
    def groups(model, lr=0.1, decay=0.02):
        others = [model[1].weight, model[1].bias, *model[3].parameters()]
        return torch.optim.SGD(
            [{"params": [model[0].weight], "weight_decay": decay}, {"params": others}], lr=lr
        )

    words = tracked(make=groups)[1].summary().splitlines()
    assert words[0] == "SGD after 10 steps; effective learning rate lr / ‖w‖^2"
    assert words[1].startswith("0.weight: angle ")
    assert words[2].startswith("3.weight: no weight decay, so no equilibrium; angle ")
    model = nn.Linear(3, 2)
    optimizer = sgd(model, weight_decay=0.1)
    tracker = nl.track(optimizer, model)
    model.weight.square().sum().backward()
    optimizer.step()
    words = tracker.summary().splitlines()[1]
    assert words.startswith("weight: not scale-invariant (cosine of weights and gradient 1.00), so")
    words = tracked(make=sgd, weight_decay=0.1, lr=0.0)[1].summary()
    assert "0.weight: no learning rate, so no equilibrium; angle 0 a step" in words
    words = tracked(steps=0)[1].summary()
    assert words.startswith("SGD after 0 steps: nothing measured yet; if it trains, another")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, weight_decay=0.1, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, weight_decay=0.1, centered=True),
        lambda p: torch.optim.Adagrad(p, weight_decay=0.1),
        lambda p: Mine(p, lr=0.1, weight_decay=0.1),
    ],
)
def test_a_rule_without_formula_has_none(make):
    _, tracker = tracked(make=lambda model: make(model.parameters()))
    assert "0.weight: no formula for the equilibrium of this optimizer; angle " in tracker.summary()
    assert np.isnan(tracker.to_dataset().equilibrium_angle).all()
    assert np.isfinite(tracker.to_dataset().effective_lr).all()


def test_adam_with_decoupled_decay_is_adamw():
    params = [nn.Parameter(torch.zeros(2))]
    settings = dict(lr=0.01, weight_decay=0.1)
    adam = torch.optim.Adam(params, decoupled_weight_decay=True, **settings)
    for optimizer in (adam, torch.optim.AdamW(params, **settings)):
        known = rules.theory_of(optimizer, optimizer.param_groups[0])
        assert known.angle(0.01, 0.1) == theory.adamw().angle(0.01, 0.1)


def test_an_optimizer_without_exponent_has_no_effective_lr():
    _, tracker = tracked(make=lambda model: torch.optim.Adadelta(model.parameters()))
    assert "effective learning rate not known" in tracker.summary()
    assert np.isnan(tracker.to_dataset().effective_lr).all()


def test_the_figure_shows_each_angle_beside_its_equilibrium():
    import matplotlib.pyplot as plt

    _, tracker = tracked(weight_decay=0.01)
    for names, lines in ((None, 5), (["0.weight"], 3)):
        axes = tracker.plot(names).axes[0]
        assert len(axes.lines) == lines
        assert axes.get_xlabel() == "step"
        np.testing.assert_array_equal(
            axes.lines[0].get_ydata(), tracker.to_dataset().angle.sel(parameter="0.weight")
        )
        assert axes.get_legend().get_texts()[0].get_text() == "0.weight"
    with pytest.raises(ValueError, match=r"nothere.*tracked are 0\.weight, 3\.weight"):
        tracker.plot(["nothere"])
    plt.close("all")


def test_the_figure_of_many_parameters_names_the_first_and_the_last():
    import matplotlib.pyplot as plt

    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(10))
    tracker = nl.track(sgd(model), model)
    texts = [text.get_text() for text in tracker.plot().axes[0].get_legend().get_texts()]
    assert texts == ["0.weight", "9.weight", "at equilibrium"]
    plt.close("all")


# Refusals -----------------------------------------------------------------------------------------


def pair(model):
    return sgd(model), model


class FullyShardedDataParallel(nn.Module):
    """Of the name of torch's own, whose construction needs a process group and a GPU."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)


def strangers():
    return sgd(nn.Linear(2, 2)), nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("words", "arguments", "settings"),
    [
        ("optimizer must be a torch.optim.Optimizer, got int", lambda: (3, nn.Linear(2, 2)), {}),
        ("record_every must be a whole number of at least 1, got 0", strangers,
         dict(record_every=0)),
        ("record_every must be a whole number of at least 1, got 1.5", strangers,
         dict(record_every=1.5)),
        ("record_every must be a whole number of at least 1, got True", strangers,
         dict(record_every=True)),
        ("exponent must be a number or None, got '2'", strangers, dict(exponent="2")),
        ("model must be an nn.Module or the result of nl.audit",
         lambda: (sgd(nn.Linear(2, 2)), "model"), {}),
        ("2 of the optimizer's 2 parameters are not in the model.*pass the module", strangers, {}),
        ("at_most must be a whole number of at least 2, got 1", strangers, dict(at_most=1)),
        ("sharded into flat ones.*fully_shard", lambda: pair(FullyShardedDataParallel()), {}),
        ("nothing to track.*two or more dimensions", lambda: pair(nn.BatchNorm1d(3)), {}),
        ("nothing to track.*audit's verdict", lambda: (sgd(m := nn.Linear(2, 2)),
         SimpleNamespace(model=m, invariant=[])), {}),
        ("weight is torch.complex64.*expected a dense tensor of real numbers",
         lambda: pair(nn.Linear(2, 2, dtype=torch.complex64)), {}),
        ("weight is torch.float32, torch.sparse_coo.*expected a dense tensor",
         lambda: pair(sparse()), {}),
    ],
)  # fmt: skip
def test_what_cannot_be_tracked_is_refused_in_words(words, arguments, settings):
    with pytest.raises((TypeError, ValueError), match=words) as error:
        nl.track(*arguments(), **settings)
    assert error.type is (TypeError if re.search(r"must be (?!.*got [01]$)", words) else ValueError)
    assert "\n" not in str(error.value)


def sparse():
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(3).to_sparse())
    return model


@pytest.fixture
def alone():
    """A process group of one process."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


PARTS = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

import normlib as nl
from tests.test_tracking import fit, small

kind, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
model, x, y = small(dtype=torch.float64)
if kind == "fsdp":
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
else:
    def split(name, module, mesh):
        for key, p in list(module.named_parameters(recurse=False)):
            place = Shard(1) if p.ndim > 1 else Replicate()
            module.register_parameter(key, torch.nn.Parameter(distribute_tensor(p, mesh, [place])))

    for i in (0, 3):
        distribute_module(model[i], mesh, split)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
groups = [{"0.weight": 1, "3.weight": 2}]
tracker = nl.track(optimizer, model, groups=groups)
if kind == "fsdp":
    fit(model, optimizer, x, y, 6)
else:  # the same gradients as without parts
    plain = small(dtype=torch.float64)[0]
    for i in range(6):
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            whole = q.full_tensor() if hasattr(q, "placements") else q
            p.data.copy_(whole.detach())
            p.grad = None
        torch.nn.functional.cross_entropy(plain(x[i]), y[i]).backward()
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            shared = hasattr(q, "placements")
            q.grad = distribute_tensor(p.grad, mesh, q.placements) if shared else p.grad
        optimizer.step()
torch.save((tracker.state_dict(), tracker.to_dataset().to_dict()), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["fsdp", "dtensor"])
def test_sharded_parameters_are_measured_whole(kind, tmp_path):
    """By two processes, of which each holds a part: the same as one that holds all."""
    torch_made = lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)  # noqa: E731
    model, x, y = small(dtype=torch.float64)
    optimizer = torch_made(model)
    whole = nl.track(optimizer, model, groups=[{"0.weight": 1, "3.weight": 2}])
    fit(model, optimizer, x, y, 6)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", PARTS, kind, str(rank), tmp_path],
                         env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    for rank in range(2):
        _, found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        found = xr.Dataset.from_dict(found)
        assert list(found.parameter) == ["0.weight", "3.weight", "0.weight + 3.weight"]
        xr.testing.assert_allclose(found, whole.to_dataset(), rtol=1e-9)


def test_a_model_in_ddp_is_tracked_under_its_own_names(alone):
    model, x, y = small()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = sgd(wrapped)
    tracker = nl.track(optimizer, wrapped)
    fit(wrapped, optimizer, x, y, 2)
    _, plain = tracked(steps=2)
    xr.testing.assert_allclose(tracker.to_dataset(), plain.to_dataset(), rtol=1e-5)


# The scale exponent -------------------------------------------------------------------------------


class Mine(torch.optim.SGD):
    """Somebody's own optimizer: nothing is known of it."""

    def step(self, closure=None):
        return super().step(closure)


class Stubborn(Mine):
    """One that cannot be made from its settings."""

    def __init__(self, params, secret):
        super().__init__(params, lr=0.1)


def settings(kind):
    """Small steps and a small eps, so that what is measured is the rule."""
    taken = inspect.signature(kind).parameters
    chosen = {} if kind is torch.optim.LBFGS else {"lr": 1e-6}
    if isinstance(getattr(taken.get("eps"), "default", None), float):
        chosen["eps"] = 1e-6 if kind is torch.optim.Adadelta else 1e-30
    return chosen


EXPONENTS = {
    "SGD": 2, "ASGD": 2, "Adagrad": 1, "RMSprop": 1, "Adam": 1, "AdamW": 1, "Adamax": 1, "NAdam": 1,
    "RAdam": 1, "Rprop": 1, "Muon": 1, "Adafactor": 0, "Adadelta": math.nan, "LBFGS": math.nan,
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_the_exponent_of_every_optimizer_of_torch_is_known_and_measured(kind):
    if kind is torch.optim.SparseAdam:
        with pytest.raises(ValueError, match="SparseAdam cannot step on a dense 6 × 6 matrix"):
            nl.scale_exponent(lambda params: kind(params))
        return
    expected = EXPONENTS[kind.__name__]
    with pytest.warns() if math.isnan(expected) else contextlib.nullcontext():
        measured = nl.scale_exponent(lambda params: kind(params, **settings(kind)))
    assert measured == pytest.approx(expected, abs=0.002, nan_ok=True)
    assert exponents.EXPONENTS[kind.__name__] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("settings", [dict(momentum=0.9), dict(momentum=0.9, nesterov=True)])
def test_momentum_leaves_the_exponent(settings):
    make = lambda params: torch.optim.SGD(params, lr=1e-6, **settings)  # noqa: E731
    assert nl.scale_exponent(make) == 2


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", ["SGD", "Adam", "RAdam", "Adafactor", "Rprop"])
def test_the_exponent_does_not_depend_on_the_seed(name, seed):
    make = lambda params: getattr(torch.optim, name)(params, lr=1e-6)  # noqa: E731
    measured = nl.scale_exponent(make, seed)
    assert measured == pytest.approx(EXPONENTS[name], abs=0.002)


def test_the_exponent_of_adadelta_hangs_on_its_eps():
    """From empty averages its step is √eps · a function of g/RMS(g): absolute, like Adam's."""
    for eps, expected in ((1e-12, 1), (1e6, 2)):
        make = lambda params, eps=eps: torch.optim.Adadelta(params, lr=1e-3, eps=eps)  # noqa: E731
        assert nl.scale_exponent(make) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("no power law", lambda params: torch.optim.Adadelta(params)),
        ("choose a smaller lr", lambda params: torch.optim.SGD(params, lr=100.0)),
        ("did not stay finite", lambda params: torch.optim.SGD(params, lr=math.inf)),
        ("did not turn", lambda params: torch.optim.SGD(params, lr=0.0)),
    ],
)
def test_no_exponent_comes_with_the_reason(words, make):
    with pytest.warns(UserWarning, match=words):
        assert math.isnan(nl.scale_exponent(make))


def test_what_makes_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="must return a torch optimizer, got list"):
        nl.scale_exponent(lambda params: params)


def test_the_exponent_of_an_unknown_optimizer_is_measured_or_given():
    model = nn.Linear(2, 2)
    before = torch.get_rng_state()
    assert nl.track(Mine(model.parameters(), lr=0.5, weight_decay=0.1), model).scale_exponent == 2
    stubborn = Stubborn(model.parameters(), "x")
    with pytest.warns(UserWarning, match="exponent of Stubborn could not be measured.*exponent="):
        assert math.isnan(nl.track(stubborn, model).scale_exponent)
    assert nl.track(stubborn, model, exponent=2).scale_exponent == 2
    assert torch.equal(before, torch.get_rng_state())

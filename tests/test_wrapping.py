"""Optimizers and models in wrappers are tracked, or one line says what to pass."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

import normlib as nl
from normlib.diagnostics import exponents
from tests.test_tracking import alone, fit, sgd, small, tracked  # noqa: F401


class Outer(torch.optim.Optimizer):
    """Without the constructor of its base, as old wrappers are."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self):
        self.optimizer.zero_grad()


class AcceleratedThing(Outer):
    """Of the name of one that hands every step on."""


class Ahead(torch.optim.Optimizer):
    """With hooks that it never runs, and weights that it moves itself."""

    def __init__(self, base_optimizer):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._base_optimizer, self.param_groups = base_optimizer, base_optimizer.param_groups

    def step(self, closure=None):
        self._base_optimizer.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(0.9)


class Holder:
    """No optimizer, but with one inside."""

    def __init__(self, base):
        self.base = base


def test_a_wrapper_that_hands_steps_on_is_taken_off():
    model, x, y = small()
    outer = AcceleratedThing(AcceleratedThing(sgd(model)))
    tracker = nl.track(outer, model)
    fit(model, outer, x, y, 4)
    xr.testing.assert_identical(tracker.to_dataset(), tracked(steps=4)[1].to_dataset())


@pytest.mark.parametrize(
    ("wrap", "attribute"),
    [(Outer, "optimizer"), (Ahead, "_base_optimizer"), (Holder, "base")],
)
def test_a_wrapper_whose_steps_cannot_be_seen_says_what_to_pass(wrap, attribute):
    model = small()[0]
    inner = sgd(model)
    words = f"{wrap.__name__} runs no step hooks.*only hands them on to its SGD.*{attribute}$"
    with pytest.raises(ValueError, match=words):
        nl.track(wrap(inner), model)
    assert nl.track(inner, model).scale_exponent == 2


class TwoCalls(torch.optim.Optimizer):
    """Sharpness-aware: climbs in one call, and steps from where it was in another."""

    def __init__(self, params, kind, rho=0.1, **settings):
        super().__init__(params, dict(rho=rho, **settings))
        self.base_optimizer = kind(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["climb"] = 0.1 * p.grad / p.grad.norm()
            p.add_(self.state[p]["climb"])

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.sub_(self.state[p]["climb"])
        self.base_optimizer.step()


def test_an_optimizer_of_two_calls_is_followed_where_it_steps():
    model, x, y = small(dtype=torch.float64)
    sam = TwoCalls(model.parameters(), torch.optim.Adam, lr=0.01)
    tracker = nl.track(sam, model)
    norms = []
    for i in range(6):
        norms.append(float(model[0].weight.detach().norm()))
        for part in (sam.first_step, sam.second_step):
            sam.zero_grad()
            F.cross_entropy(model(x[i]), y[i]).backward()
            part()
    record = tracker.to_dataset().sel(parameter="0.weight")
    assert tracker.steps == 6
    assert tracker.scale_exponent == 1
    np.testing.assert_allclose(record.weight_norm, norms, rtol=1e-9)


@pytest.mark.usefixtures("alone")
def test_zero_redundancy_keeps_the_formulas_of_what_it_holds():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, x, y = small()
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.AdamW, lr=0.01, weight_decay=0.1
    )
    tracker = nl.track(optimizer, model)
    fit(model, optimizer, x, y, 4)
    plain = tracked(4, make=lambda m: torch.optim.AdamW(m.parameters(), 0.01, weight_decay=0.1))[1]
    mine, other = tracker.to_dataset(), plain.to_dataset()
    assert tracker.scale_exponent == 1
    xr.testing.assert_allclose(mine.drop_attrs(), other.drop_attrs(), rtol=1e-6)


def test_an_audit_of_a_model_in_parallel_finds_its_parameters():
    model, x, y = small()
    wrapped = nn.DataParallel(copy.deepcopy(model))
    audit = nl.audit(wrapped, x[0], y[0])
    tracker = nl.track(sgd(wrapped), audit)
    assert "0.weight" in tracker.to_dataset().parameter


# Exponents under the user's own settings ----------------------------------------------------------


class Trust(torch.optim.Optimizer):
    """A rate relative to the norm, where there is decay; with a clip, only below a size."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, most=None):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, most=most))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                u, ratio = torch.sign(p.grad), torch.ones(())
                if group["weight_decay"]:
                    ratio = p.norm() / u.norm()
                if group["most"] is not None:
                    ratio = ratio.clamp(max=group["most"])
                p.add_(ratio * (u + group["weight_decay"] * p), alpha=-group["lr"])


def test_exponents_are_measured_with_the_decay_of_each_group():
    model, x, y = small()
    groups = [{"params": [model[0].weight], "weight_decay": 0.01},
              {"params": [*model[1].parameters(), *model[3].parameters()]}]  # fmt: skip
    optimizer = Trust(groups, lr=0.001)
    tracker = nl.track(optimizer, model)
    fit(model, optimizer, x, y, 3)
    record = tracker.to_dataset()
    np.testing.assert_allclose(record.effective_lr[0], 0.001)
    np.testing.assert_allclose(record.effective_lr[1], 0.001 / record.weight_norm[1])
    assert np.isnan(tracker.scale_exponent)
    assert "with p by group" in tracker.summary()


@pytest.mark.parametrize(("size", "p"), [(0.01, 0), (100.0, 1)])
def test_exponents_are_measured_at_the_size_of_the_weights(size, p):
    weights = nn.Parameter(size * torch.randn(9, 7))
    optimizer = Trust([weights], lr=0.001, weight_decay=0.1, most=1.0)
    assert exponents.exponent_of(optimizer, optimizer.param_groups[0]) == (p, "")


class Relative(torch.optim.Optimizer):
    """Without an lr: a share of the weights' own size, by default."""

    def __init__(self, params, lr=None, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            lr = self.param_groups[0]["lr"]
            size = 0.02 * p.norm() if lr is None else lr
            p.sub_(size * p.grad / p.grad.norm())


class Modes(torch.optim.SGD):
    """One that must be told that it trains."""

    ready = False

    def train(self):
        self.ready = True

    def step(self, closure=None):
        if not self.ready:
            raise RuntimeError("not in train mode")
        return super().step(closure)


def test_an_optimizer_with_a_mode_is_put_into_it():
    make = lambda params: Modes(params, lr=1e-6)  # noqa: E731
    assert nl.scale_exponent(make) == 2
    optimizer = Modes([nn.Parameter(torch.ones(3, 2))], lr=0.1)
    assert exponents.exponent_of(optimizer, optimizer.param_groups[0]) == (2, "")
    assert not optimizer.ready


def test_a_relative_step_without_lr_has_exponent_zero():
    optimizer = Relative([nn.Parameter(torch.randn(4, 3))])
    assert exponents.exponent_of(optimizer, optimizer.param_groups[0])[0] == 0


def test_a_subclass_that_changes_no_step_is_its_parent():
    class Named(torch.optim.AdamW):
        def __init__(self, params, decay):
            super().__init__(params, lr=0.01, weight_decay=decay)

    class Other(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    params = [nn.Parameter(torch.ones(2, 2))]
    found = [exponents.torch_rule(kind(params, **settings)) for kind, settings in (
        (Named, dict(decay=0.1)), (Other, {}), (torch.optim.AdamW, {}), (torch.optim.Adam, {})
    )]  # fmt: skip
    assert found == ["AdamW", "", "AdamW", "Adam"]

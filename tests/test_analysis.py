"""`nl.tradeoff` finds the exponent that a grid was made with, and says when it cannot."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import normlib as nl

LRS = np.geomspace(0.01, 3, 6)
DECAYS = np.concatenate([[0.0], np.geomspace(1e-4, 0.3, 8)])


def grid(kappa, noise=0.0, seeds=1):
    """A bowl in log lr + κ log weight_decay; cells without decay hold nonsense."""
    random = np.random.default_rng(0)
    lr = xr.DataArray(LRS, dims="lr", coords={"lr": LRS})
    decay = xr.DataArray(DECAYS, dims="weight_decay", coords={"weight_decay": DECAYS})
    along = np.log(lr) + kappa * np.log(decay.where(decay > 0, 1e6))
    bowl = 0.05 * (along - float(along.isel(weight_decay=slice(1, None)).mean())) ** 2
    values = bowl.expand_dims(seed=range(seeds)).transpose("lr", "weight_decay", "seed")
    return values + noise * random.standard_normal(values.shape)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1, 3))
def test_the_exponent_of_a_clean_grid_is_found(kappa):
    fit = nl.tradeoff(grid(kappa))
    assert np.arctan(float(fit.kappa[0])) == pytest.approx(np.arctan(kappa), abs=0.01)
    assert float(fit.r2[0]) > 0.99


def test_each_seed_has_its_own_exponent():
    fit = nl.tradeoff(grid(0.5, noise=0.2, seeds=5))
    assert fit.kappa.dims == ("seed",)
    _, low, high = nl.interval(fit.kappa)
    assert low < 0.5 < high
    assert high - low < 0.3
    assert float(fit.r2_at(0.5).mean()) > float(fit.r2_at(np.inf).mean())


def test_pure_noise_is_not_explained():
    """Leave-one-out R² does not reward a flexible curve; ordinary R² would be 0.1 here."""
    noise = grid(1.0).isel(seed=0) * 0 + np.random.default_rng(1).standard_normal((6, 9))
    fit = nl.tradeoff(noise)
    assert float(fit.r2_at(1.0)) < 0.05


def test_leave_one_out_is_what_its_name_says():
    """The closed form equals leaving each cell out and fitting again."""
    score = grid(0.7, noise=0.3).isel(seed=0, drop=True)
    fit = nl.tradeoff(score, degree=2)
    used = score.isel(weight_decay=slice(1, None))
    along = (np.log(used.lr) + np.log(used.weight_decay)).transpose(*used.dims).values.ravel()
    values = used.values.ravel()
    errors, spread = [], []
    for i in range(len(values)):
        rest = np.delete(np.arange(len(values)), i)
        fitted = np.polyfit(along[rest], values[rest], 2)
        errors.append(values[i] - np.polyval(fitted, along[i]))
        spread.append(values[i] - values[rest].mean())
    expected = 1 - np.square(errors).sum() / np.square(spread).sum()
    assert float(fit.r2_at(1.0)) == pytest.approx(expected, abs=1e-9)


def test_cells_that_diverged_or_are_masked_do_not_count():
    score = grid(1.0)
    eps_violation = score.where(score.lr < 2)
    eps_violation[0, 3] = np.inf
    masked = eps_violation.copy()
    masked[1, 1] = 1e9
    where = xr.ones_like(score.isel(seed=0), dtype=bool)
    where[1, 1] = False
    for fit in (nl.tradeoff(eps_violation), nl.tradeoff(masked, where=where)):
        assert float(fit.kappa[0]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (grid(1.0).isel(lr=0), "lr and weight_decay"),
        (grid(1.0).rename(seed="run"), "may have seed"),
        (grid(1.0).isel(lr=slice(1), weight_decay=slice(7)), "too few"),
        (0 * grid(1.0), "the same"),
    ],
)
def test_what_cannot_be_fitted_is_refused(score, message):
    with pytest.raises(ValueError, match=message):
        nl.tradeoff(score)


@pytest.fixture(scope="module")
def runs(data):
    net = nl.convnet(width=8, depth=2)
    return nl.sweep(
        net,
        data,
        nl.momentum(0.9),
        lr=[0.1, 1],
        weight_decay=[0, 1e-3, 0.1, 1],
        epochs=1,
        record_every=10,
    )


def test_cells_arrive_after_three_relaxation_times(runs):
    """Of SGD these depend on nothing but the cell: (1 − μ) / 4ηλ."""
    expected = runs.attrs["steps"] >= 3 * 0.1 / (4 * runs.lr * runs.weight_decay)
    assert 0 < int(expected.sum()) < 6
    assert (nl.at_equilibrium(runs, nl.momentum(0.9)) == expected).all()
    assert int(nl.at_equilibrium(runs, nl.momentum(0.9), times=0).sum()) == 6


def test_all_layers_must_have_arrived(runs):
    """Adam's time depends on a layer's gradient and size."""
    rule, steps = nl.adam(), runs.attrs["steps"]
    middle = runs.sel(step=20)  # the one trace between 40 and 70 % of 40 steps
    time = xr.apply_ufunc(
        rule.theory.relaxation_time, runs.lr, runs.weight_decay,
        middle.weight_norm * middle.gradient_norm, runs["size"], vectorize=True,
    )  # fmt: skip
    first, second = (time.sel(layer=layer, drop=True) for layer in runs.layer)
    limit = float((first + second).isel(lr=0, weight_decay=1)) / 2
    assert (first < limit).values.tolist() != (second < limit).values.tolist()
    both = (first < limit) & (second < limit)
    assert (nl.at_equilibrium(runs, rule, times=steps / limit) == both).all()


def test_a_rule_whose_time_is_not_known_is_refused(runs):
    with pytest.raises(ValueError, match="adagrad has no relaxation time"):
        nl.at_equilibrium(runs, nl.adagrad())


def test_runs_without_a_trace_in_the_middle_are_refused(runs):
    with pytest.raises(ValueError, match="no trace between 40 and 70 %"):
        nl.at_equilibrium(runs.isel(step=[0, -1]), nl.sgd())


def a_sweep(gradient, test_error):
    """Runs of one seed along lr, as far as `nl.dead` looks."""
    gradient = np.asarray(gradient, float)  # (lr, layer)
    early = np.ones_like(gradient)
    values = {
        "gradient_norm": (("lr", "layer", "step"), np.stack([early, gradient], -1)),
        "test_error": ("lr", np.asarray(test_error, float)),
    }
    return xr.Dataset(values, coords={"lr": np.arange(len(gradient)) + 1.0})


def test_dead_are_those_that_have_no_gradient_and_guess(data):
    """Of 1,000 images, 10 classes: guessing is 0.9, with a standard error of 0.0095."""
    silent, alive, half, lost = [0, 0], [0.3, 0.1], [0, 0.1], [np.nan, np.nan]
    runs = a_sweep(
        [silent, silent, silent, silent, alive, half, lost],
        [0.905, 0.873, 0.870, 0.0, 0.905, 0.905, np.nan],
    )
    expected = [True, True, False, False, False, False, False]
    assert nl.dead(runs, data).values.tolist() == expected
    assert nl.dead(runs, data.identity).values.tolist() == expected


def test_a_smaller_test_set_widens_what_counts_as_guessing(data):
    runs = a_sweep([[0.0]], [0.82])
    small = nl.Dataset(
        data.x_train, data.y_train, data.x_test[:100], data.y_test[:100], 10, "small"
    )
    assert nl.dead(runs, small).item()
    assert not nl.dead(runs, data).item()


def test_networks_die_when_the_head_has_a_huge_rate_too(data):
    """The recorded grid with one rate has dead networks; with a rate of their own it has none."""
    one, own = nl.recorded("nesterov"), nl.recorded("nesterov_other")
    dead = nl.dead(one.runs, one.spec.data)
    assert dead.dims == one.runs.test_error.dims
    assert not dead.sel(lr=slice(0, 0.5)).any()
    assert dead.sel(lr=3).mean() > 0.9
    assert not nl.dead(own.runs, own.spec.data).any()

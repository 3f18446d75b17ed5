"""What a sweep returns, measures and refuses."""

import contextlib
import inspect
import time

import numpy as np
import pytest
import torch
import xarray as xr

import normlib as nl
from normlib.sweeps import runs, training
from tests import reference
from tests.conftest import noise

NET = nl.convnet(width=4, depth=2)


def test_dimensions_follow_the_arguments(data):
    runs = nl.sweep(
        NET, data, nl.sgd(), lr=[0.01, 0.1], weight_decay=[0, 1e-3, 1e-2], seed=range(2), epochs=1
    )
    assert runs.test_error.dims == ("lr", "weight_decay", "seed")
    assert runs.angle.dims == ("lr", "weight_decay", "seed", "layer", "step")
    assert runs.angle.shape == (2, 3, 2, 2, 5)
    assert list(runs.step.values) == [0, 10, 20, 30, 39]


def test_a_number_makes_no_dimension(data):
    runs = nl.sweep(NET, data, nl.sgd(), lr=0.1, epochs=1)
    assert runs.test_error.dims == ()
    assert float(runs.lr) == 0.1


def test_arguments_along_one_dimension_vary_together(data):
    runs = nl.sweep(
        NET, data, nl.sgd(), lr=("line", [0.1, 0.2]), weight_decay=("line", [0.02, 0.01]), epochs=1
    )
    assert runs.test_error.dims == ("line",)
    np.testing.assert_allclose(runs.lr * runs.weight_decay, 0.002)


def test_each_cell_has_its_own_hyperparameters(data):
    grid = nl.sweep(NET, data, nl.sgd(), lr=[0.01, 0.1], weight_decay=[0, 1e-2], epochs=1)
    alone = nl.sweep(NET, data, nl.sgd(), lr=0.1, weight_decay=1e-2, epochs=1)
    np.testing.assert_allclose(
        grid.weight_norm.sel(lr=0.1, weight_decay=1e-2), alone.weight_norm, rtol=1e-3
    )


def test_chunks_and_seeds_do_not_mix_cells(data):
    settings = dict(lr=[0.01, 0.03, 0.1], weight_decay=[0, 1e-2], epochs=1, precision="float64")
    together = nl.sweep(NET, data, nl.sgd(), seed=[0, 5], **settings)
    chunked = nl.sweep(NET, data, nl.sgd(), seed=[0, 5], chunk_size=2, **settings)
    xr.testing.assert_allclose(together, chunked, rtol=1e-9)
    alone = nl.sweep(NET, data, nl.sgd(), seed=5, **settings)
    xr.testing.assert_allclose(together.loss.sel(seed=5), alone.loss, rtol=1e-9)


def test_traces_equal_what_an_ordinary_training_measures(data):
    runs = nl.sweep(
        NET, data, nl.momentum(0.9), lr=0.1, weight_decay=0.01, epochs=1, record_every=1,
        precision="float64",
    )  # fmt: skip
    x64 = data.to("cpu", torch.float64)
    model = NET.module(data.shape, data.classes).double()
    wide = NET.wide(1, data.shape, data.classes, dtype=torch.float64)
    model.load_state_dict(wide.state_dict(0))
    groups = [
        {"params": [p], "weight_decay": 0.01 if n in ("conv1.weight", "conv2.weight") else 0.0}
        for n, p in model.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    weight = model.conv2.weight
    for step, batch in enumerate(reference.minibatches(x64, 0, 1)):
        before = weight.detach().clone()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x64.x_train[batch]), x64.y_train[batch])
        loss.backward()
        loss, gradient = loss.item(), weight.grad.norm().item()
        optimizer.step()
        after = weight.detach()
        cosine = torch.nn.functional.cosine_similarity(before.ravel(), after.ravel(), dim=0)
        at = runs.sel(layer="conv2", step=step)
        assert float(at.loss) == pytest.approx(loss, rel=1e-9)
        assert float(at.weight_norm) == pytest.approx(float(before.norm()), rel=1e-9)
        assert float(at.gradient_norm) == pytest.approx(gradient, rel=1e-8)
        assert float(at.effective_lr) == pytest.approx(0.1 / float(before.norm()) ** 2, rel=1e-9)
        assert float(at.angle) == pytest.approx(float(torch.arccos(cosine)), rel=1e-5)


def test_small_angles_survive_single_precision(data):
    settings = dict(lr=1e-4, init_scale=3.0, epochs=1, record_every=1)
    single = nl.sweep(NET, data, nl.sgd(), **settings)
    double = nl.sweep(NET, data, nl.sgd(), precision="float64", **settings)
    assert float(double.angle.max()) < 1e-4
    np.testing.assert_allclose(single.angle, double.angle, rtol=0.02)


def test_schedules_multiply_the_learning_rate(data):
    steps = 40
    factors = {
        name: nl.sweep(NET, data, nl.sgd(), lr=1e-9, epochs=1, record_every=1, schedule=schedule)
        for name, schedule in {
            "step": "step", "cosine": "cosine", "half": lambda step, steps: 1 - step / steps,
        }.items()
    }  # fmt: skip
    lr = {
        name: (runs.effective_lr * runs.weight_norm**2).sel(layer="conv1").values / 1e-9
        for name, runs in factors.items()
    }
    at = np.arange(steps)
    np.testing.assert_allclose(lr["step"], np.select([at < 20, at < 30], [1, 0.1], 0.01), rtol=1e-5)
    np.testing.assert_allclose(lr["cosine"], (1 + np.cos(np.pi * at / 40)) / 2, rtol=1e-4)
    np.testing.assert_allclose(lr["half"], 1 - at / 40, rtol=1e-5)


def test_lr_other_moves_only_what_is_not_scale_invariant(data):
    runs = nl.sweep(NET, data, nl.sgd(), lr=0.1, lr_other=0.0, epochs=1)
    still = nl.sweep(NET, data, nl.sgd(), lr=1e-12, lr_other=0.1, epochs=1)
    assert float(runs.angle.min()) > 1e-4
    assert float(still.angle.max()) < 1e-6
    assert float(still.loss[-1]) < float(still.loss[0]) - 0.1


def test_the_global_random_state_is_untouched(data):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    nl.sweep(NET, data, nl.sgd(), lr=0.1, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_trains_about_as_well(data):
    settings = dict(lr=0.1, weight_decay=1e-3, lr_other=0.05, epochs=4, schedule="cosine")
    net = nl.convnet()
    half = nl.sweep(net, data, nl.nesterov(), precision="bfloat16", **settings)
    single = nl.sweep(net, data, nl.nesterov(), **settings)
    assert half.test_loss.dtype == np.float64
    assert abs(float(half.test_error - single.test_error)) < 0.1


OTHER_LABELS = dict(
    lr=xr.DataArray([0.1, 0.2], dims="line", coords={"line": [0, 1]}),
    weight_decay=xr.DataArray([0.1, 0.2], dims="line", coords={"line": [1, 2]}),
)


@pytest.mark.parametrize(
    ("error", "name", "wrong"),
    [
        (ValueError, "lr", dict(lr=-1)),
        (ValueError, "lr", dict(lr=0)),
        (ValueError, "lr", dict(lr=[])),
        (ValueError, "lr", dict(lr=[0.1, float("nan")])),
        (ValueError, "lr", dict(lr=[0.1, 0.1])),
        (ValueError, "lr", dict(lr=("line", [0.1], 3))),
        (ValueError, "lr", dict(lr=10**400)),
        (TypeError, "lr", dict(lr=xr.DataArray([True, False], dims="lr"))),
        (TypeError, "lr", dict(lr=None)),
        (TypeError, "weight_decay", dict(weight_decay="0.1")),
        (TypeError, "weight_decay", dict(weight_decay=["0.1"])),
        (ValueError, "weight_decay", dict(weight_decay=-1e-3)),
        (TypeError, "weight_decay", dict(weight_decay=True)),
        (ValueError, "lr_other", dict(lr_other=-0.1)),
        (ValueError, "init_scale", dict(init_scale=0)),
        (
            ValueError,
            "length",
            dict(lr=("line", [0.1, 0.2]), weight_decay=("line", [0.1, 0.2, 0.3])),
        ),
        (ValueError, "labels", OTHER_LABELS),
        (ValueError, "seed", dict(lr=("seed", [0.1, 0.2]))),
        (ValueError, "step", dict(lr=("step", [0.1, 0.2]))),
        (ValueError, "weight_decay", dict(lr=("weight_decay", [0.1, 0.2]))),
        (ValueError, "seed", dict(seed=[])),
        (ValueError, "seed", dict(seed=[1, 1])),
        (ValueError, "seed", dict(seed=-1)),
        (TypeError, "seed", dict(seed="0")),
        (TypeError, "seed", dict(seed=np.array(3.0))),
        (ValueError, "epochs", dict(epochs=0)),
        (TypeError, "epochs", dict(epochs=1.5)),
        (ValueError, "batch_size", dict(batch_size=1)),
        (ValueError, "batch_size", dict(batch_size=5000)),
        (ValueError, "schedule", dict(schedule="setp")),
        (ValueError, "schedule", dict(schedule=lambda step, steps: -1.0)),
        (TypeError, "schedule", dict(schedule=lambda step: 1.0)),
        (TypeError, "schedule", dict(schedule=lambda step, steps: None)),
        (TypeError, "schedule_other", dict(schedule_other=3)),
        (ValueError, "decay_on", dict(decay_on="gammas")),
        (ValueError, "decay_on", dict(decay_on="weights+gammas")),
        (ValueError, "decay_on", dict(decay_on="last_pair+last_pair")),
        (ValueError, "decay_on", dict(decay_on="")),
        (TypeError, "decay_on", dict(decay_on=["weights"])),
        (ValueError, "precision", dict(precision="float16")),
        (ValueError, "precision", dict(precision=torch.float16)),
        (TypeError, "precision", dict(precision=["float32"])),
        (ValueError, "record_every", dict(record_every=0)),
        (ValueError, "chunk_size", dict(chunk_size=0)),
        (ValueError, "device", dict(device="gpu")),
        (ValueError, "device", dict(device="meta")),
        (ValueError, "device", dict(device="cuda:99")),
        (TypeError, "device", dict(device=1.5)),
        (TypeError, "checkpoint_dir", dict(checkpoint_dir=5)),
        (
            ValueError,
            "optimizer",
            dict(optimizer=nl.unit_norm(nl.sgd()), net=nl.convnet(norm="none")),
        ),
        (ValueError, "per", dict(optimizer=nl.unit_norm(nl.sgd()), net=nl.convnet(norm="layer"))),
        (TypeError, "net", dict(net="convnet")),
        (TypeError, "data", dict(data=torch.zeros(3))),
        (ValueError, "not here", dict(data=nl.mnist1d().identity)),
        (TypeError, "augment", dict(augment="flip")),
        (TypeError, "optimizer", dict(optimizer="sgd")),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(data, monkeypatch, error, name, wrong):
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("training started"))
    arguments = dict(net=NET, data=data, optimizer=nl.sgd(), lr=0.1) | wrong
    with pytest.raises(error, match=name):
        nl.sweep(**arguments)


def test_a_sweep_has_the_arguments_of_its_spec():
    """And nothing but where it runs and whether it shows progress beside them."""
    in_one_line = inspect.signature(nl.sweep).parameters
    frozen = inspect.signature(nl.Sweep).parameters
    assert list(in_one_line) == [*frozen, "checkpoint_dir", "n_jobs", "progress"]
    for name, parameter in frozen.items():
        assert in_one_line[name].default == parameter.default


def test_a_spec_is_frozen_and_can_be_replaced(data):
    spec = nl.Sweep(NET, data, nl.sgd(), lr=[0.1, 0.2], epochs=1)
    with pytest.raises(AttributeError):
        spec.epochs = 2
    assert spec.replace(epochs=3).steps == 120
    assert spec.epochs == 1
    with pytest.raises(ValueError, match="epochs"):
        spec.replace(epochs=0)


@pytest.mark.parametrize(
    ("net", "decay_on"),
    [
        (nl.convnet(norm="none"), "invariant"),
        (nl.convnet(norm="none"), "invariant+hidden_pairs+last_pair"),
        (nl.convnet(depth=1), "hidden_pairs"),
    ],
)
def test_decaying_only_what_is_not_there_is_refused(data, net, decay_on):
    with pytest.raises(ValueError, match="decays nothing"):
        nl.sweep(net, data, nl.sgd(), lr=0.1, weight_decay=0.1, decay_on=decay_on)
    nl.Sweep(net, data, nl.sgd(), lr=0.1, decay_on=decay_on)
    nl.Sweep(net, data, nl.sgd(), lr=0.1, weight_decay=0.1, decay_on="weights+" + decay_on)


def test_groups_that_decay_add_up(data):
    """Everything is the weights, both kinds of pairs, and the head's bias."""
    spec = nl.Sweep(nl.convnet(depth=3), data, nl.sgd(), lr=0.1)

    def decayed(decay_on):
        parameters = spec.net.parameters(data.shape, data.classes)
        return {p.name for p in parameters if spec.replace(decay_on=decay_on).decays(p)}

    hidden, last = decayed("hidden_pairs"), decayed("last_pair")
    assert hidden == {f"norm{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
    assert last == {"norm3.weight", "norm3.bias"}
    assert decayed("weights+hidden_pairs") == decayed("weights") | hidden
    assert decayed("all") == decayed("weights+hidden_pairs+last_pair") | {"head.bias"}
    assert decayed("weights") == decayed("invariant") | {"head.weight"}


@pytest.mark.parametrize(
    ("error", "name", "wrong"),
    [
        (ValueError, "norm", dict(norm="bacth")),
        (ValueError, "width", dict(width=0)),
        (TypeError, "width", dict(width=2.5)),
        (ValueError, "depth", dict(depth=-1)),
        (ValueError, "eps", dict(eps=-1e-5)),
        (ValueError, "eps", dict(eps=0)),
        (TypeError, "eps", dict(eps="0")),
    ],
)
@pytest.mark.parametrize("make", [nl.convnet, nl.mlp])
def test_a_wrong_network_is_named(make, error, name, wrong):
    with pytest.raises(error, match=name):
        make(**wrong)


def test_labels_of_a_data_array_are_its_values(data):
    lr = xr.DataArray([0.1, 0.2], dims="lr", coords={"lr": [1, 2]})
    assert nl.sweep(NET, data, nl.sgd(), lr=lr, epochs=1).lr.values.tolist() == [0.1, 0.2]


def test_effective_lr_is_that_of_the_layers_own_rate(data):
    runs = nl.sweep(
        nl.convnet(width=4, depth=2, norm="none"), data, nl.sgd(), lr=0.1, lr_other=0.01, epochs=1
    )
    np.testing.assert_allclose(runs.effective_lr * runs.weight_norm**2, 0.01, rtol=1e-5)


def test_a_sweep_trains_inside_no_grad_too(data):
    with torch.no_grad():
        runs = nl.sweep(NET, data, nl.sgd(), lr=0.1, epochs=1)
    assert float(runs.loss[-1]) < float(runs.loss[0])


def test_a_normalized_sweep_keeps_norms_at_1(data):
    runs = nl.sweep(NET, data, nl.unit_norm(nl.nesterov()), lr=0.03, weight_decay=1e-3, epochs=1)
    np.testing.assert_allclose(runs.weight_norm, 2.0, rtol=1e-5)  # four channels of norm 1
    assert np.isfinite(runs.test_loss)


def exact(**changes):
    """Settings under which a sweep is exact to rounding."""
    net = nl.convnet(width=4, depth=2, eps=1e-30)
    return (
        dict(net=net, optimizer=nl.sgd(), epochs=2, record_every=1, precision="float64") | changes
    )


def test_norms_put_back_at_every_step_make_a_training_without_decay_the_decayed_one(data):
    """With the rate corrected by 1 / (1 - lr weight_decay), for every seed and cell."""
    lr = xr.DataArray([0.05, 0.1], dims="lr", coords={"lr": [0.05, 0.1]})
    decayed = nl.sweep(data=data, lr=lr, lr_other=0.05, weight_decay=0.1, seed=[3, 1], **exact())
    corrected = xr.DataArray(lr.values / (1 - 0.1 * lr.values), dims="lr", coords=lr.coords)
    given = nl.sweep(
        data=data, lr=("lr", corrected.values), lr_other=0.05, seed=[3, 1], chunk_size=1,
        imposed_norms=decayed.weight_norm.drop_vars("lr"), **exact(),
    )  # fmt: skip
    np.testing.assert_allclose(given.loss, decayed.loss, rtol=1e-9)
    np.testing.assert_allclose(given.weight_norm, decayed.weight_norm, rtol=1e-12)
    free = nl.sweep(data=data, lr=lr, lr_other=0.05, seed=[3, 1], **exact())
    assert abs(free.loss / decayed.loss - 1).max() > 1e-3


def test_norms_are_put_back_only_at_the_steps_they_name(data):
    free = nl.sweep(data=data, lr=0.1, **exact())
    norms = free.weight_norm.sel(step=[5]) / 2
    given = nl.sweep(data=data, lr=0.1, imposed_norms=norms, **exact())
    np.testing.assert_array_equal(given.weight_norm[:, :5], free.weight_norm[:, :5])
    np.testing.assert_allclose(given.weight_norm.sel(step=5), free.weight_norm.sel(step=5) / 2)
    assert float(given.weight_norm.sel(layer="conv1", step=6)) > float(norms.sel(layer="conv1")[0])


def test_norms_are_part_of_a_sweeps_identity(data):
    norms = nl.sweep(data=data, lr=0.1, **exact()).weight_norm
    plans = [
        nl.Sweep(data=data, lr=0.1, imposed_norms=given, **exact()).fingerprint
        for given in (None, norms, 2 * norms, norms.isel(step=[0]))
    ]
    assert len(set(plans)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda norms: norms.values, "DataArray"),
        (lambda norms: norms.isel(layer=0), "layer and step"),
        (lambda norms: norms.expand_dims(cell=2), "layer and step"),
        (lambda norms: norms.drop_vars("step"), "labels"),
        (lambda norms: norms.isel(layer=[1, 0]), "in this order"),
        (lambda norms: norms.assign_coords(step=norms.step + 41), "from 0 to 79"),
        (lambda norms: norms.assign_coords(step=norms.step / 2), "from 0 to 79"),
        (lambda norms: 0 * norms, "greater than 0"),
        (lambda norms: norms.where(norms.step > 3), "finite"),
        (lambda norms: norms.expand_dims(seed=[7]), "cells or seeds"),
    ],
)
def test_wrong_norms_are_refused(data, change, message):
    norms = nl.sweep(data=data, lr=0.1, seed=[0], **exact()).weight_norm.isel(seed=0, drop=True)
    with pytest.raises((TypeError, ValueError), match=message):
        nl.Sweep(data=data, lr=0.1, seed=[0], imposed_norms=change(norms), **exact())


def test_an_augmented_sweep_sees_the_changed_images():
    """Its first loss is that of the changed first batch; cells of one seed see the same."""
    changes, data = nl.flip_and_shift(shift=2), noise(200, 50)
    arguments = dict(lr=[0.1, 0.1001], epochs=2, batch_size=50, record_every=1)
    plain = nl.sweep(NET, data, nl.sgd(), **arguments)
    runs = nl.sweep(NET, data, nl.sgd(), augment=changes, **arguments)
    assert float(runs.loss[0, 0]) == float(runs.loss[1, 0]) != float(plain.loss[0, 0])
    batch = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:50]
    images = changes(data.x_train[batch], torch.Generator().manual_seed(2**31))
    logits = NET.wide(1, data.shape, 10, seed=0)(images, training=True)[0]
    expected = torch.nn.functional.cross_entropy(logits, data.y_train[batch])
    assert float(runs.loss[0, 0]) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_augmentation_depends_on_the_seed_alone():
    arguments = dict(lr=0.1, epochs=1, batch_size=50, augment=nl.flip_and_shift())
    one, again = (nl.sweep(NET, noise(200, 50), nl.sgd(), seed=[3], **arguments) for _ in range(2))
    both = nl.sweep(NET, noise(200, 50), nl.sgd(), seed=[2, 3], **arguments)
    assert float(one.train_loss[0]) == float(again.train_loss[0]) == float(both.train_loss[1])


def test_an_estimate_is_of_the_right_size_and_falls_as_parts_are_finished(data, tmp_path):
    spec = nl.Sweep(
        nl.convnet(width=16, depth=3), data, nl.sgd(), lr=[0.01, 0.1], seed=[0, 1], epochs=8,
        chunk_size=2,
    )  # fmt: skip
    before = spec.estimate(tmp_path)
    assert not list(tmp_path.iterdir())
    start = time.perf_counter()
    spec.replace(seed=[0]).run(tmp_path)
    taken = 2 * (time.perf_counter() - start)
    assert 0.2 < before / taken < 5
    assert 0.1 < spec.estimate(tmp_path) / before < 2.5
    spec.run(tmp_path)
    assert spec.estimate(tmp_path) == 0


def test_an_estimate_changes_nothing_in_the_folder(data, tmp_path):
    spec = nl.Sweep(NET, data, nl.sgd(), lr=0.1, epochs=1)
    spec.run(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    spec.replace(lr=0.2).estimate(tmp_path)  # another sweep
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_estimate_needs_the_images_too(data):
    with pytest.raises(ValueError, match="not here"):
        nl.Sweep(NET, data.identity, nl.sgd(), lr=0.1).estimate()


@pytest.mark.parametrize(("computes", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_the_fast_precision_of_a_gpu_is_what_it_computes_with(monkeypatch, computes, precision):
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return computes or including_emulation

    monkeypatch.setattr(runs, "device_of", torch.device)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert nl.fast_precision("cuda") == precision
    assert asked == [False]
    assert nl.fast_precision("mps") == "float32"


@pytest.mark.parametrize(
    "optimizer", [nl.nesterov(), nl.adam(), nl.unit_norm(nl.nesterov())], ids=str
)
@pytest.mark.parametrize("net", [nl.convnet(width=4), nl.mlp(width=4)], ids=["convnet", "mlp"])
def test_training_mixes_no_devices(monkeypatch, net, optimizer):
    """On `meta`, which holds no numbers: an operation between devices would be refused."""
    monkeypatch.setattr("normlib.sweeps.spec.device_of", torch.device)
    monkeypatch.setattr(nl.Dataset, "__post_init__", lambda self: None)  # it looks at the numbers
    monkeypatch.setattr(training.Traces, "arrays", lambda self: self.values)
    spec = nl.Sweep(
        net, noise(200, 50), optimizer, lr=[0.1, 0.2], weight_decay=0.01, epochs=1,
        batch_size=50, init_scale=[1.0, 2.0], augment=nl.flip_and_shift(), record_every=1,
        device="meta",
    )  # fmt: skip
    data = spec.data.to(spec.place, torch.float32)
    traces = training.train(spec, next(spec.parts(4)), data, stop=3)
    assert {values.device.type for values in traces.values()} == {"meta"}


def test_the_data_are_converted_and_checked_once_a_run(data, monkeypatch):
    checks, check = [], nl.Dataset.__post_init__
    spec = nl.Sweep(
        NET, data, nl.sgd(), lr=[0.1, 0.2], seed=range(3), epochs=1, chunk_size=1,
        precision="float64",
    )  # fmt: skip
    monkeypatch.setattr(
        nl.Dataset, "__post_init__", lambda self: (checks.append(1), check(self))[1]
    )
    spec.run()
    assert len(checks) == 1


def test_results_survive_a_netcdf_file(data, tmp_path):
    runs = nl.sweep(nl.convnet(width=3, depth=1), data, nl.sgd(), lr=[0.1, 0.2], epochs=1)
    runs.to_netcdf(tmp_path / "runs.nc")
    with xr.open_dataset(tmp_path / "runs.nc") as back:
        xr.testing.assert_identical(back.load(), runs)

"""The recipes run in the trainers that they are for, and other libraries' optimizers are known.

What other packages warn of is theirs.
"""

import importlib
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import normlib as nl
from normlib import theory
from normlib.diagnostics import exponents, rules
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("default")


class Points(Dataset):
    """Random points in three classes."""

    def __init__(self, named):
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(320, 6, generator=random)
        self.y = torch.randint(3, (320,), generator=random)
        self.named = named

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if self.named:
            return {"x": self.x[i], "labels": self.y[i]}
        return self.x[i], self.y[i]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def page():
    """All that the blocks of the page define."""
    text = (ROOT / "book" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    assert len(blocks) == 3
    names = {}
    exec(compile("\n".join(blocks), "recipes.md", "exec"), names)
    return names


def test_the_loop_logs_flat_numbers(page):
    assert sorted(page["logged"]) == [0, 10, 20]
    assert {"angle/0.weight", "equilibrium_angle/0.weight"} <= set(page["logged"][20])
    assert not any("3.weight" in name for name in page["logged"][20])


def test_the_lightning_callback_logs(page, tmp_path):
    lightning = importlib.import_module("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)

    callback = page["TrackNorms"]()
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(Points(named=False), batch_size=16))
    assert callback.tracker.steps == 60
    assert callback.tracker.to_dataset().step.values.tolist() == [0, 10, 20, 30, 40, 50]
    latest = callback.tracker.latest()
    for name in ("angle/net.0.weight", "equilibrium_angle/net.3.weight"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(latest[name], rel=1e-5)


def test_the_trainer_callback_logs(page, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    transformers = importlib.import_module("transformers")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels):
            out = self.net(x)
            return {"loss": F.cross_entropy(out, labels), "logits": out}

    seen = []

    class Logger(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(dict(logs))

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=16,
        logging_steps=10, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        weight_decay=0.1,
    )  # fmt: skip
    callback = page["TrackNormsToo"]()
    trainer = transformers.Trainer(
        model=Model(), args=arguments, train_dataset=Points(named=True),
        callbacks=[callback, Logger],
    )  # fmt: skip
    trainer.train()
    assert callback.tracker.steps == 60
    assert callback.tracker.scale_exponent == 1
    assert all("angle/net.0.weight" in logs for logs in seen)
    assert len(seen) >= 6


# Optimizers of other libraries --------------------------------------------------------------------

KNOWN = [
    ("timm.optim", "AdamWLegacy", {}, 1, theory.adamw((0.9, 0.999))),
    ("timm.optim", "NAdamW", {}, 1, "some"),
    ("timm.optim", "Lion", {}, 1, theory.lion((0.9, 0.99))),
    ("timm.optim", "AdamP", {}, 1, None),
    ("timm.optim", "Lamb", {}, 0, None),
    ("timm.optim", "Lars", {}, 0, None),
    ("timm.optim", "Adafactor", dict(lr=None), 0, None),
    ("timm.optim", "SGDW", {}, 2, None),
    ("timm.optim", "AdamWLegacy", dict(corrected_weight_decay=True), 1, None),
    ("pytorch_optimizer", "AdaBelief", {}, 1, theory.adamw((0.9, 0.999))),
    ("pytorch_optimizer", "AdaBelief", dict(fixed_decay=True), 1,
     theory.adamw((0.9, 0.999)).independent()),
    ("pytorch_optimizer", "AdEMAMix", {}, 1, None),
    ("pytorch_optimizer", "Prodigy", dict(lr=1.0), np.nan, None),
    ("pytorch_optimizer", "DAdaptAdam", dict(lr=1.0), np.nan, None),
    ("schedulefree", "AdamWScheduleFree", {}, 1, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("package", "kind", "settings", "p", "rule"), KNOWN, ids=[f"{k[1]} {k[2]}" for k in KNOWN]
)
def test_optimizers_of_other_libraries(package, kind, settings, p, rule):
    """p, and the angle at equilibrium where a formula holds: within 3 %, as for Lion."""
    make = getattr(importlib.import_module(package), kind)
    torch.manual_seed(0)
    optimizer = make(
        [nn.Parameter(0.1 * torch.randn(32, 32))], **dict(lr=1e-3, weight_decay=0.1) | settings
    )
    if hasattr(optimizer, "train"):
        optimizer.train()
    group = optimizer.param_groups[0]
    found, reason = exponents.exponent_of(optimizer, group)
    assert found == pytest.approx(p, abs=0.02, nan_ok=True), reason
    assert bool(reason) == np.isnan(p)
    known = rules.theory_of(optimizer, group, (32, 32))
    assert (known is None) == (rule is None)
    if isinstance(rule, theory.Theory):
        for lr in (1e-3, 3e-4):
            assert known.angle(lr, 0.1) == pytest.approx(rule.angle(lr, 0.1), rel=0.03)


@pytest.mark.parametrize("package", ["timm.optim", "pytorch_optimizer"])
def test_wrappers_of_other_libraries(package):
    module = importlib.import_module(package)
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    if package == "timm.optim":  # without hooks of its own
        with pytest.raises(ValueError, match=r"pass that: optimizer\._base_optimizer"):
            nl.track(module.Lookahead(inner), model)
    else:
        with pytest.warns(UserWarning, match="exponent of Lookahead could not be measured"):
            assert np.isnan(nl.track(module.Lookahead(inner), model).scale_exponent)
        sam = module.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
        assert nl.track(sam, model).optimizer is sam.base_optimizer


def test_accelerate_is_taken_off():
    accelerate = importlib.import_module("accelerate")
    model = network()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    prepared = accelerate.Accelerator(cpu=True).prepare(inner)
    assert nl.track(prepared, model).optimizer is inner

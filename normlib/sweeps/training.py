"""Trains one part of a sweep and measures it. Knows networks, data and optimizers; no files."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normlib.data import Dataset
from normlib.networks import Wide
from normlib.sweeps.parts import Part
from normlib.sweeps.spec import DTYPES, Arrays, Spec

FINAL = ("train_loss", "train_error", "test_loss", "test_error")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with a number of threads, and leave the number as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    spec: Spec,
    part: Part,
    data: Dataset,
    tick: Callable[[], object] = lambda: None,
    stop: int | None = None,
) -> Arrays:
    """Train the networks of a part.

    Parameters
    ----------
    spec : Spec
    part : Part
    data : Dataset
        The spec's, on its device and in its precision.
    tick : callable
        Called after every step.
    stop : int or None
        Make only so many steps, and do not evaluate.

    Returns
    -------
    dict of str to ndarray
        K networks first: losses and errors (K,), traces (K, layers, recorded steps).
    """
    seed, device, dtype = part.seed, spec.place, DTYPES[spec.precision]
    wide = spec.net.wide(part.stop - part.first, data.shape, data.classes, seed, device, dtype)

    def column(name: str) -> Tensor:
        values = torch.tensor(spec.columns[name][part.first : part.stop], dtype=dtype)
        return values.to(device).view(-1, 1, 1)

    lr, lr_other, weight_decay = column("lr"), column("lr_other"), column("weight_decay")
    wide.scale_(column("init_scale"))
    moves = []
    for p in wide.parameters.values():
        optimizer = spec.optimizer if p.invariant else spec.optimizer.other
        wide.values[p.name].data = optimizer.start(wide.values[p.name].data)
        moves.append((p.name, optimizer, bool(p.invariant), spec.decays(p)))
    states = {name: optimizer.init(wide.values[name].data) for name, optimizer, _, _ in moves}

    imposed = _imposed_norms(spec, part)
    traces = Traces(spec, wide)
    order, changes = (torch.Generator().manual_seed(seed + i) for i in (0, 2**31))
    per_epoch = len(data.x_train) // spec.batch_size
    for step in range(spec.steps if stop is None else stop):
        if step % per_epoch == 0:
            shuffled = torch.randperm(len(data.x_train), generator=order).to(device)
        for name, norm in imposed.get(step, {}).items():
            w = wide.values[name].data
            w *= norm / w.norm(dim=(1, 2), keepdim=True)
        at = (step % per_epoch) * spec.batch_size
        batch = shuffled[at : at + spec.batch_size]
        images = data.x_train[batch]
        if spec.augment is not None:
            images = spec.augment(images, changes)
        loss, grads = _gradients(spec, wide, images, data.y_train[batch])
        factor, factor_other = (float(factors[step]) for factors in spec.factors)
        rates = {True: lr * factor, False: lr_other * factor_other}
        traces.before(step, wide, grads, loss, rates)
        with torch.no_grad():
            for name, optimizer, invariant, decays in moves:
                wide.values[name].data, states[name] = optimizer.update(
                    wide.values[name].data,
                    grads[name],
                    states[name],
                    rates[invariant],
                    weight_decay if decays else 0.0,
                    step + 1,
                )
        traces.after(wide)
        tick()

    results = traces.arrays()
    if stop is not None:
        return results
    for split, x, y in (
        ("train", data.x_train, data.y_train),
        ("test", data.x_test, data.y_test),
    ):
        results[f"{split}_loss"], results[f"{split}_error"] = evaluate(spec, wide, x, y)
    # A network that has diverged has no results, whatever argmax makes of NaN.
    lost = ~(np.isfinite(results["train_loss"]) & np.isfinite(results["test_loss"]))
    for name in FINAL:
        results[name][lost] = np.nan
    return results


def _imposed_norms(spec: Spec, part: Part) -> dict[int, dict[str, Tensor]]:
    """For every step at which norms are imposed, the norm of each layer's weights, (K, 1, 1)."""
    if (norms := spec.norms_by_cell) is None:
        return {}
    names = [f"{layer}.weight" for layer in spec.net.layers]
    values = torch.tensor(norms.values, dtype=DTYPES[spec.precision], device=spec.place)
    values = values.reshape(spec.seeds.size, -1, len(names), norms.sizes["step"])
    values = values[list(np.ravel(spec.seeds)).index(part.seed), part.first : part.stop]
    return {
        int(step): {name: values[:, i, j].view(-1, 1, 1) for i, name in enumerate(names)}
        for j, step in enumerate(norms.step.values)
    }


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each network, (K,)."""
    k, n, classes = logits.shape
    loss = F.cross_entropy(logits.reshape(k * n, classes), y.repeat(k), reduction="none")
    return loss.view(k, n).mean(1)


def _logits(spec: Spec, wide: Wide, x: Tensor, training: bool) -> Tensor:
    """(K, N, classes), computed in the spec's precision."""
    if spec.precision != "bfloat16":
        return wide(x, training)
    with torch.autocast(spec.place.type, torch.bfloat16):
        logits = wide(x, training)
    return logits.to(DTYPES[spec.precision])


def _gradients(spec: Spec, wide: Wide, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.enable_grad():
        losses = _losses(_logits(spec, wide, x, training=True), y)
        # The sum's gradient is each network's own; one network's NaN stays its own.
        grads = torch.autograd.grad(losses.sum(), list(wide.values.values()))
    return losses.detach(), dict(zip(wide.values, grads, strict=True))


@torch.no_grad()
def evaluate(spec: Spec, wide: Wide, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and error of each network, (K,)."""
    losses = wrong = torch.zeros(())
    for images, labels in zip(x.split(spec.batch_size), y.split(spec.batch_size), strict=True):
        logits = _logits(spec, wide, images, training=False)
        losses = losses.to(logits) + _losses(logits, labels) * len(labels)
        wrong = wrong.to(labels) + (logits.argmax(2) != labels).sum(1)
    return losses.cpu().double().numpy() / len(y), wrong.cpu().double().numpy() / len(y)


class Traces:
    """Measurements of hidden layers along a training, in memory of fixed size."""

    def __init__(self, spec: Spec, wide: Wide) -> None:
        self.names = [f"{layer}.weight" for layer in spec.net.layers]
        self.slots = {step: i for i, step in enumerate(spec.recorded_steps)}
        self.early = {step: i for i, step in enumerate(spec.early)}
        self.exponent = spec.optimizer.theory.scale_exponent
        self.old: list[tuple[Tensor, Tensor]] = []
        k, layers, dtype = wide.networks, len(self.names), DTYPES[spec.precision]
        shapes = {
            "loss": (k, len(self.slots)),
            "early_loss": (k, len(self.early)),
            "early_norm": (k, layers, len(self.early)),
        }
        for name in ("weight_norm", "gradient_norm", "effective_lr", "angle"):
            shapes[name] = (k, layers, len(self.slots))
        self.values = {
            name: torch.zeros(shape, device=spec.place, dtype=dtype)
            for name, shape in shapes.items()
        }

    def before(
        self,
        step: int,
        wide: Wide,
        grads: Mapping[str, Tensor],
        loss: Tensor,
        rates: Mapping[bool, Tensor],
    ) -> None:
        """What is known before a step."""
        weights = [wide.values[name].data.flatten(1) for name in self.names]
        if (slot := self.early.get(step)) is not None:
            self.values["early_loss"][:, slot] = loss
            for i, w in enumerate(weights):
                self.values["early_norm"][:, i, slot] = w.norm(dim=1)
        self.slot, self.old = self.slots.get(step), []
        if self.slot is None:
            return
        self.values["loss"][:, self.slot] = loss
        for i, (name, w) in enumerate(zip(self.names, weights, strict=True)):
            norm, lr = w.norm(dim=1), rates[bool(wide.parameters[name].invariant)].flatten()
            self.values["weight_norm"][:, i, self.slot] = norm
            self.values["gradient_norm"][:, i, self.slot] = grads[name].flatten(1).norm(dim=1)
            self.values["effective_lr"][:, i, self.slot] = lr / norm**self.exponent
            self.old.append((w, norm))

    def after(self, wide: Wide) -> None:
        """The angle by which the step turned the weights."""
        for i, (w, norm) in enumerate(self.old):
            # From the step itself: the cosine of a small angle would be lost in rounding.
            step = wide.values[self.names[i]].data.flatten(1) - w
            along = (step * w).sum(1) / norm
            across = (step - (along / norm)[:, None] * w).norm(dim=1)
            self.values["angle"][:, i, self.slot] = torch.atan2(across, norm + along)

    def arrays(self) -> Arrays:
        arrays = {name: values.cpu().double().numpy() for name, values in self.values.items()}
        return {name: np.where(np.isfinite(a), a, np.nan) for name, a in arrays.items()}

"""Losses and gradients of any torch model at points of ours. Knows what a symmetry needs."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from normlib.diagnostics.exchange import Adjusted, Belongings, undisturbed, widened
from normlib.diagnostics.symmetries import Sample

EPS = 1e-20  # torch's batch norm refuses 0; against a variance of order 1 this is none
CHANGE = 1e-9  # relative change of the loss that is more than rounding

FUSED = re.compile(r"(in_proj_|qkv\.)(weight|bias)$")

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
Loss = Callable[..., Tensor]
Batch = tuple[Any, Any]
Weights = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A parameter, or one third of a fused projection."""

    name: str
    parameter: str
    third: int | None = None
    dim: int = 0  # the dimension of the output channels

    def rows(self, tensor: Tensor) -> Tensor:
        """A view of its entries, the channels first."""
        tensor = tensor.view(1) if tensor.ndim == 0 else tensor.transpose(0, self.dim)
        return tensor if self.third is None else tensor.chunk(3)[self.third]

    def matrix(self, tensor: Tensor) -> Tensor:
        """Its entries, one row a channel."""
        rows = self.rows(tensor)
        return rows.reshape(len(rows), -1)

    def scale(self, values: Weights, factors: np.ndarray) -> None:
        """Multiply each of equal blocks of channels by its factor, in a copy of the parameter."""
        rows = self._copied(values)
        each = torch.as_tensor(factors).to(rows).repeat_interleave(len(rows) // len(factors))
        rows.mul_(each.view(-1, *[1] * (rows.ndim - 1)))

    def replace(self, values: Weights, others: Weights) -> None:
        """Take this piece from other values, in a copy of the parameter."""
        self._copied(values).copy_(self.rows(others[self.parameter]))

    def _copied(self, values: Weights) -> Tensor:
        values[self.parameter] = values[self.parameter].clone()
        return self.rows(values[self.parameter])


def pieces(model: nn.Module) -> list[Piece]:
    """The parameters in the model's order; fused projections that can be trained in three."""
    transposed = {
        id(m._parameters.get("weight"))
        for m in model.modules()
        if isinstance(m, nn.modules.conv._ConvTransposeNd) and m.groups == 1
    }
    found = []
    for name, p in model.named_parameters():
        if p.requires_grad and FUSED.search(name) and len(p) % 3 == 0:
            found += [Piece(f"{name}[{q}]", name, k) for k, q in enumerate("qkv")]
        else:
            found.append(Piece(name, name, dim=int(p.requires_grad and id(p) in transposed)))
    return found


class Probe:
    """A model, a batch and a loss, evaluated at points of ours without leaving a trace.

    Random numbers are drawn from the number of the point, so that a model with some, other than
    for dropout, is one and the same function whenever that point is evaluated. That function may
    leave out a block: a verdict takes several points.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, targets: Tensor | None, loss: Loss | None, seed: int
    ) -> None:
        _check(model)
        if not isinstance(inputs, Tensor | tuple | dict):
            kind = type(inputs).__name__
            raise TypeError(f"inputs must be a tensor, or a tuple or dict of tensors; got {kind}")
        self.model, self.batch, self.loss, self.seed = model, (inputs, targets), loss, seed
        self.named = dict(model.named_parameters())
        self.sizes = {name: _size_of(p) for name, p in self.named.items()}
        trained = (one for one in pieces(model) if self.named[one.parameter].requires_grad)
        self.pieces = {piece.name: piece for piece in trained}
        self.belongings = Belongings((model, loss))

    def own(self) -> Sample:
        """At the model's own point and ε, on the batch as given."""
        values = {name: widened(p) for name, p in self.named.items()}
        return self._sample(values, self.batch, 0, None, "the model's own point")

    def at_random(self, number: int, far: bool = False) -> Sample:
        where = "a random point near the model's own"
        return self._sample(*self.point(number, far), number, EPS, where)

    def point(self, number: int, far: bool = False) -> tuple[Weights, Batch]:
        """A random point near the model's own, or anywhere, and another batch."""
        generator = torch.Generator().manual_seed(self.seed + number)
        values = {}
        for name, p in self.named.items():
            if not p.requires_grad:  # what is frozen is part of the function
                values[name] = widened(p)
                continue
            noise = torch.rand(p.shape, generator=generator).sub_(0.5).to(p.device)
            if far:
                values[name] = (noise * (3 * self.sizes[name])).double()
            else:
                values[name] = torch.add(p.detach(), noise, alpha=1.5 * self.sizes[name]).double()
        inputs, targets = self.batch
        return values, (
            tree_map_only(Tensor, _shuffler(generator, 0.5), inputs),
            tree_map_only(Tensor, _shuffler(generator, 0.0), targets),
        )

    def unfelt(
        self, some: list[T], first: int, edits: Iterable[Callable[[T, Weights], None]]
    ) -> list[T]:
        """Those of `some` that leave the loss when edits change values, each at another point."""
        for number, edit in enumerate(edits if some else (), first):
            values, batch = self.point(number)
            before, _ = self._loss_and_gradients(values, batch, number, EPS)
            passed: list[T] = []
            pending = [some]
            while pending:
                part = pending.pop()
                changed = dict(values)
                for one in part:
                    edit(one, changed)
                after, _ = self._loss_and_gradients(changed, batch, number, EPS)
                half = len(part) // 2
                if abs(after - before) <= CHANGE * max(abs(before), abs(after)):
                    passed += part
                elif half:  # what is felt is looked for in either half
                    pending += [part[half:], part[:half]]
            some = passed
        return some

    def _sample(
        self, values: Weights, batch: Batch, number: int, eps: float | None, where: str
    ) -> Sample:
        wanted = list(dict.fromkeys(piece.parameter for piece in self.pieces.values()))
        loss, gradients = self._loss_and_gradients(values, batch, number, eps, wanted)
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at {where}; check inputs, targets and loss")
        stats = {}
        for name, piece in self.pieces.items():
            gradient = gradients.get(piece.parameter)
            w = piece.matrix(values[piece.parameter])
            g = torch.zeros_like(w) if gradient is None else piece.matrix(gradient.to_dense())
            norms = (torch.linalg.vector_norm(x, dim=1).square() for x in (w, g))
            stats[name] = torch.stack([(w * g).sum(1), *norms])
        used = {name for name, piece in self.pieces.items() if piece.parameter in gradients}
        return Sample({name: s.cpu().numpy() for name, s in stats.items()}, used)

    def _loss_and_gradients(
        self,
        values: Weights,
        batch: Batch,
        number: int,
        eps: float | None,
        wanted: Sequence[str] = (),
    ) -> tuple[float, Weights]:
        """The loss, and its gradients by name as far as the loss uses the wanted parameters."""
        device = next(iter(self.named.values())).device
        inputs, targets = tree_map_only(Tensor, lambda x: widened(x).to(device), batch)
        fresh = {
            name: nn.Parameter(value, requires_grad=name in wanted)
            for name, value in values.items()
        }
        copies: dict[int, Tensor] = {id(self.named[name]): p for name, p in fresh.items()}
        with (
            undisturbed(self.seed + number),
            self.belongings.exchanged(copies, eps),
            Adjusted(eps),
        ):
            if isinstance(inputs, dict):
                output = self.model(**inputs)
            else:
                output = self.model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
            loss = _loss(self.loss, output, targets, self.seed + number)
            if wanted and not loss.requires_grad:
                raise ValueError("the loss depends on no trainable parameter; is it detached?")
            # Inside the block, or a checkpointed forward would be repeated with other tensors.
            leaves = [fresh[name] for name in wanted]
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if wanted else ()
        found = zip(wanted, gradients, strict=True)
        return loss.item(), {name: g for name, g in found if g is not None}


def _check(model: nn.Module) -> None:
    """Raise if the model's parameters cannot be audited."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, p in tensors.items():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"{name} is not initialised; run the model once on a batch first")
        if isinstance(p, nn.Parameter) and (p.is_complex() or p.layout != torch.strided):
            kind = "complex" if p.is_complex() else "sparse"
            raise ValueError(f"{name} is {kind}; an audit needs real and dense tensors")
    devices = sorted({str(p.device) for p in tensors.values()})
    if len(devices) > 1:
        raise ValueError(f"the model lies on {' and '.join(devices)}; move it to one device first")
    if devices == ["meta"]:
        raise ValueError("the model lies on meta and has no values; load them first")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no trainable parameter; set requires_grad on what trains")


def _size_of(parameter: Tensor) -> float:
    """What is large for an entry: their root mean square, or what an initialization makes."""
    w = parameter.detach()
    fan = w[0].numel() if w.ndim > 1 else 1
    return max(float(w.double().square().mean().sqrt()), fan**-0.5)


def _shuffler(generator: torch.Generator, noise: float) -> Callable[[Tensor], Tensor]:
    """Makes another batch: floats in another order and with noise, integers from those given."""

    def shuffle(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            return tensor
        if tensor.dtype != torch.bool and not tensor.is_floating_point():
            # position by position, so that masks, lengths and position ids stay what they are
            order = torch.rand(tensor.shape, generator=generator).argsort(0)
            return tensor.gather(0, order.to(tensor.device))
        tensor = widened(tensor)[torch.randperm(len(tensor), generator=generator).to(tensor.device)]
        if not noise or tensor.dtype == torch.bool:
            return tensor
        spread = float(tensor[tensor.isfinite()].std(correction=0)) or 1.0
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor + noise * spread * drawn.to(tensor.device)

    return shuffle


def _loss(loss: Loss | None, output: Any, targets: Tensor | None, seed: int) -> Tensor:
    """The user's loss, or one that suits the targets."""
    if loss is not None:
        value = loss(output) if targets is None else loss(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return one number, got {got}; take its mean or sum")
        return value.reshape(())
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise ValueError(f"the model returns a {kind}, no tensor; give a loss that takes it")
    if targets is None:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    if output.shape == targets.shape:
        return F.mse_loss(output, targets.to(output))
    if targets.dtype == torch.int64 and output.shape[:-1] == targets.shape:
        return F.cross_entropy(output.flatten(0, -2), targets.flatten())
    if targets.dtype == torch.int64 and output.shape[:1] + output.shape[2:] == targets.shape:
        return F.cross_entropy(output, targets)
    shapes = f"targets {tuple(targets.shape)} to output {tuple(output.shape)}"
    raise ValueError(f"no default loss fits {shapes}; give int64 class labels or a loss")

"""Losses and gradients of any torch model at points of ours. Knows what a symmetry needs."""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from normlib.diagnostics.arguments import Inputs, Loss, check, loss_of, size_of
from normlib.diagnostics.exchange import Adjusted, Belongings, undisturbed, widened
from normlib.diagnostics.operations import RULES, ended
from normlib.diagnostics.pieces import Piece, Weights
from normlib.diagnostics.symmetries import DOUBLE, SINGLE, Sample, Symmetry, Thresholds
from normlib.diagnostics.units import Units

EPS = 1e-20  # torch's batch norm refuses 0; against a variance of order 1 this is none
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
RANDOM = "a random point near the model's own"
NO_ROW = 1e-15  # a row's gradient relative to the largest tensor's that is none
PRECISION = {torch.float64: DOUBLE, torch.float32: SINGLE}

Batch = tuple[Any, Any]
T = TypeVar("T")


class Probe:
    """A model, a batch and a loss, evaluated at points of ours without leaving a trace.

    Random numbers are drawn from the number of the point, so that a model with some, other than
    for dropout, is one and the same function whenever that point is evaluated. That function may
    leave out a block: a verdict takes several points.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: Tensor | None,
        loss: Loss | None,
        seed: int,
        noise: float = 0.5,
        shuffle: bool = True,
    ) -> None:
        check(model)
        if not isinstance(inputs, Tensor | tuple | dict):
            kind = type(inputs).__name__
            raise TypeError(f"inputs must be a tensor, or a tuple or dict of tensors; got {kind}")
        self.model, self.batch, self.loss, self.seed = model, (inputs, targets), loss, seed
        self.noise, self.shuffle = noise, shuffle
        self.named = dict(model.named_parameters())
        self.sizes = {name: size_of(p) for name, p in self.named.items()}
        self.belongings = Belongings((model, loss))
        self.dtype, self.notes = torch.float64, list[str]()
        self.trained = [name for name, p in self.named.items() if p.requires_grad]
        self.before: dict[
            tuple[int, bool], float
        ] = {}  # losses at points, before anything is changed
        self.random = False  # whether a forward draws random numbers
        self.pieces: dict[str, Piece] = {}
        self._find_precision()

    @property
    def thresholds(self) -> Thresholds:
        return PRECISION[self.dtype]

    def _find_precision(self) -> None:
        """Double, or single where the model has operations without double; both must repeat."""
        try:
            first = self._own_loss()
        except (RuntimeError, TypeError) as error:
            self.dtype = torch.float32
            try:
                first = self._own_loss()
            except (RuntimeError, TypeError):
                raise error from None
            why = str(error).strip().splitlines()[0]
            self.notes.append(
                f"audited in single precision, with wider thresholds, since double fails: {why}"
            )
        if not math.isfinite(first):
            raise ValueError(f"the loss is {first} at the model's own point; check its arguments")
        self.first = first

    def _own_loss(self) -> float:
        return self._loss_and_gradients(self._own_values(), self.batch, 0, None)[0]

    def _own_values(self) -> Weights:
        return {name: widened(p, self.dtype) for name, p in self.named.items()}

    def begin(self, split: Mapping[str, Sequence[int]]) -> tuple[list[dict[str, int]], Sample]:
        """Cut the parameters as the forward does; the exponents that it leaves free; a sample."""
        shapes = {name: tuple(p.shape) for name, p in self.named.items()}
        units = Units(shapes, RULES, ended)
        values, batch = self.point(0)
        loss, gradients = self._loss_and_gradients(values, batch, 0, EPS, self.trained, units)
        for name, sizes in split.items():
            units.cut(name, sizes)
        pieces, found = units.solved()
        self.everything = [piece for some in pieces.values() for piece in some]
        self.pieces = {p.name: p for p in self.everything if p.parameter in self.trained}
        self.uses = units.uses
        self.forms = {name: " and ".join(sorted(forms)) for name, forms in units.forms.items()}
        if units.unknown:
            self.notes.append(
                f"the search for groups does not know {', '.join(sorted(units.unknown))}, and took "
                "it for what no scale passes; full=True searches without such knowledge"
            )
        proposals = [one for one in found if self.pieces.keys() >= one.keys()]
        return proposals, self._sample(values, loss, gradients, RANDOM)

    def own(self) -> Sample:
        """At the model's own point and ε, on the batch as given."""
        values = self._own_values()
        loss, gradients = self._loss_and_gradients(values, self.batch, 0, None, self.trained)
        if abs(loss - self.first) > self.thresholds.change * abs(self.first):
            raise ValueError(
                f"the loss does not repeat: {self.first:.6g}, then {loss:.6g} at the same point "
                "with the same random seed; give the forward's own generator a fixed seed"
            )
        return self._sample(values, loss, gradients, "the model's own point")

    def at_random(self, number: int) -> Sample:
        values, batch = self.point(number)
        found = self._loss_and_gradients(values, batch, number, EPS, self.trained)
        return self._sample(values, *found, RANDOM)

    def point(self, number: int, far: bool = False) -> tuple[Weights, Batch]:
        """A random point near the model's own, or anywhere, and another batch."""
        generator = torch.Generator().manual_seed(self.seed + number)
        values = {}
        for name, p in self.named.items():
            if not p.requires_grad:  # what is frozen is part of the function
                values[name] = widened(p, self.dtype)
                continue
            noise = torch.rand(p.shape, generator=generator).sub_(0.5).to(p.device)
            if far:
                values[name] = (noise * (3 * self.sizes[name])).to(self.dtype)
            else:
                moved = torch.add(p.detach(), noise, alpha=1.5 * self.sizes[name])
                values[name] = moved.to(self.dtype)
        inputs, targets = self.batch
        return values, (
            tree_map_only(Tensor, self._another(generator, self.noise), inputs),
            tree_map_only(Tensor, self._another(generator, 0.0), targets),
        )

    def _another(self, generator: torch.Generator, noise: float) -> Callable[[Tensor], Tensor]:
        """Makes another batch of one: in another order, and floats with noise."""

        def another(tensor: Tensor) -> Tensor:
            if tensor.ndim == 0:
                return tensor
            if tensor.dtype != torch.bool and not tensor.is_floating_point():
                # position by position, so that masks, lengths and position ids stay what they are
                order = torch.rand(tensor.shape, generator=generator).argsort(0)
                return tensor.gather(0, order.to(tensor.device)) if self.shuffle else tensor
            if self.shuffle:
                order = torch.randperm(len(tensor), generator=generator)
                tensor = tensor[order.to(tensor.device)]
            if not noise or tensor.dtype == torch.bool:
                return tensor
            tensor = widened(tensor, self.dtype)
            spread = float(tensor[tensor.isfinite()].std(correction=0)) or 1.0
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return tensor + noise * spread * drawn.to(tensor)

        return another

    def gradient_lies(self, sample: Sample, number: int) -> bool:
        """Whether a small change of scale at a sampled point does not do what its gradient says.

        So it is for what passes a stand-in for its gradient, as rounding with a straight-through
        estimator does.
        """
        draw = np.random.default_rng(self.seed)
        rates = dict(zip(self.pieces, draw.uniform(0.5, 1.5, len(self.pieces)), strict=True))
        step, losses = 1e-6 if self.dtype == torch.float64 else 1e-2, []
        values, batch = self.point(number)
        for sign in (1, -1):
            changed = dict(values)
            for name, piece in self.pieces.items():
                piece.scale(changed, np.array([1 + sign * step * rates[name]]))
            losses.append(self._loss_and_gradients(changed, batch, number, EPS)[0])
        measured = (losses[0] - losses[1]) / (2 * step)
        products = [rates[name] * sample.stats[name][0].sum() for name in self.pieces]
        bound = 1e-2 if self.dtype == torch.float64 else 0.2
        return abs(measured - sum(products)) > bound * np.abs(products).max()

    def levels_off(self, name: str, number: int) -> bool:
        """Whether the loss stops changing as a piece grows, as it does behind a norm with an ε.

        Eightfold weights make what √(variance + ε) spoils 64 times smaller, and 8 times what
        deviation + ε does. What saturates otherwise follows no such law from the first step on.
        """
        values, batch = self.point(number)
        losses = []
        for power in (0, 3, 6, 9):
            changed = dict(values)
            self.pieces[name].scale(changed, np.array([2.0**power]))
            losses.append(self._loss_and_gradients(changed, batch, number, EPS)[0])
        steps = np.abs(np.diff(losses))
        return any(np.allclose(steps[:-1], law * steps[1:], rtol=0.03) for law in (8, 64))

    def width(self, name: str) -> int:
        """Entries in a row."""
        piece = self.pieces[name]
        return self.named[piece.parameter].numel() // piece.layout.rows

    def shape(self, piece: Piece) -> tuple[int, int]:
        return piece.count, self.named[piece.parameter].numel() // piece.layout.rows

    def norm(self, piece: Piece) -> float:
        rows = torch.linalg.vector_norm(
            piece.layout.matrix(widened(self.named[piece.parameter])), dim=1
        )
        return float(np.linalg.norm(piece.part(rows.cpu().numpy())))

    def unseen(self, piece: Piece, samples: Sequence[Sample]) -> str:
        """Says how much of a piece the data at hand do not reach."""
        dark = np.ones(piece.count, dtype=bool)
        for sample in samples:
            dark &= np.sqrt(sample.stats[piece.name][2]) <= NO_ROW * sample.largest
        some = int(dark.sum())
        return f"{some} of {piece.count} rows get no gradient on this data" if some else ""

    def use(self, parameter: str) -> str:
        """What a forward does with a parameter."""
        if "embedding" in self.uses[parameter]:
            return "embedding"
        matrices = [name for name, uses in self.uses.items() if "matrix" in uses]
        if parameter not in matrices:
            return ""
        return "last matrix" if parameter == matrices[-1] else "matrix"

    def merged(
        self,
        fates: dict[str, tuple[str, str]],
        held: list[Symmetry],
        samples: Sequence[Sample],
    ) -> list[Piece]:
        """The pieces, but whole again where none is symmetric, or all are in blocks of a size."""
        parted: dict[str, list[Piece]] = {}
        for piece in self.everything:
            parted.setdefault(piece.parameter, []).append(piece)
        found: list[Piece] = []
        for parameter, some in parted.items():
            alone = [[s for s in held if [*s.exponents] == [p.name]] for p in some]
            sizes = {p.count // s[0].blocks if s else 0 for p, s in zip(some, alone, strict=True)}
            together = all(p.rows == list(range(p.rows[0], p.rows[-1] + 1)) for p in some)
            in_blocks = together and len(sizes) == 1 and 0 not in sizes
            alike = {fates.get(p.name) for p in some}
            if len(some) == 1 or not (alike == {("not invariant", "")} or in_blocks):
                found += some
                continue
            whole = Piece(parameter, parameter, some[0].layout)
            fates[parameter] = fates[some[0].name]
            if in_blocks:
                held.append(Symmetry({parameter: 1}, whole.count // sizes.pop()))
            for sample in samples:
                rows = np.empty((3, whole.count))
                for p in some:
                    rows[:, p.rows] = sample.stats[p.name]
                sample.stats[parameter] = rows
            found.append(whole)
        return found

    def unfelt(
        self,
        some: list[T],
        first: int,
        edits: Iterable[Callable[[T, Weights], None]],
        far: bool = False,
    ) -> list[T]:
        """Those of `some` that leave the loss when edits change values, each at another point."""
        for number, edit in enumerate(edits if some else (), first):
            values, batch = self.point(number, far)
            before = self._at(number, far, values, batch)
            if far and not math.isfinite(before):  # not every model has a loss everywhere
                values, batch = self.point(number)
                before = self._at(number, False, values, batch)
            passed: list[T] = []
            pending = [some]
            while pending:
                part = pending.pop()
                changed = dict(values)
                for one in part:
                    edit(one, changed)
                after, _ = self._loss_and_gradients(changed, batch, number, EPS)
                half = len(part) // 2
                if abs(after - before) <= self.thresholds.change * max(abs(before), abs(after)):
                    passed += part
                elif half:  # what is felt is looked for in either half
                    pending += [part[half:], part[:half]]
            some = passed
        return some

    def _at(self, number: int, far: bool, values: Weights, batch: Batch) -> float:
        """The loss at a random point, computed once."""
        if (number, far) not in self.before:
            found = self._loss_and_gradients(values, batch, number, EPS)
            self.before[number, far] = found[0]
        return self.before[number, far]

    def _sample(self, values: Weights, loss: float, gradients: Weights, where: str) -> Sample:
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at {where}; check inputs, targets and loss")
        stats, rows = {}, dict[str, np.ndarray]()
        for name, piece in self.pieces.items():
            if piece.parameter not in rows:
                gradient = gradients.get(piece.parameter)
                w = piece.layout.matrix(values[piece.parameter]).double()
                g = torch.zeros_like(w)
                if gradient is not None:
                    g = piece.layout.matrix(gradient.to_dense()).double()
                norms = (torch.linalg.vector_norm(x, dim=1).square() for x in (w, g))
                rows[piece.parameter] = torch.stack([(w * g).sum(1), *norms]).cpu().numpy()
            stats[name] = piece.part(rows[piece.parameter])
        used = {name for name, piece in self.pieces.items() if piece.parameter in gradients}
        return Sample(stats, used, self.thresholds)

    def _loss_and_gradients(
        self,
        values: Weights,
        batch: Batch,
        number: int,
        eps: float | None,
        wanted: Sequence[str] = (),
        units: Units | None = None,
    ) -> tuple[float, Weights]:
        """The loss, and its gradients by name as far as the loss uses the wanted parameters."""
        device = next(iter(self.named.values())).device
        inputs, targets = tree_map_only(Tensor, lambda x: widened(x, self.dtype).to(device), batch)
        fresh = {
            name: nn.Parameter(value, requires_grad=name in wanted)
            for name, value in values.items()
        }
        copies: dict[int, Tensor] = {id(self.named[name]): p for name, p in fresh.items()}
        made_up = eps is not None
        with (
            undisturbed(self.seed + number, self.dtype),
            self.belongings.exchanged(copies, self.dtype),
            Adjusted(copies, self.dtype, eps, self._noisy(number) if made_up else None),
            units or contextlib.nullcontext(),
        ):
            if units is not None:
                units.begin(self.named, fresh)
            if not self.model.training:
                self.model.train()
            start = torch.get_rng_state()
            with torch.set_grad_enabled(bool(wanted)):
                try:
                    loss = self._loss_of(inputs, targets, number)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if not made_up:
                        raise
                    said = (str(error).strip().splitlines() or [""])[0]
                    raise ValueError(
                        f"the model refuses a batch that the audit made from the inputs "
                        f"({type(error).__name__}: {said}); give noise=0, or shuffle=False too"
                    ) from error
            self.random |= not torch.equal(start, torch.get_rng_state())
            if wanted and not loss.requires_grad:
                raise ValueError("the loss depends on no trainable parameter; is it detached?")
            # Inside the block, or a checkpointed forward would be repeated with other tensors.
            leaves = tuple(fresh[name] for name in wanted)
            gradients = _gradients(loss, leaves) if wanted else ()
        found = zip(wanted, gradients, strict=True)
        return loss.item(), {name: g for name, g in found if g is not None}

    def _noisy(self, number: int) -> Callable[[Tensor], Tensor] | None:
        """Noise on what embeddings give, as on floating inputs: ids may be all alike."""
        if not self.noise:
            return None
        generator = torch.Generator().manual_seed(self.seed + number)

        def noisy(vectors: Tensor) -> Tensor:
            drawn = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
            return vectors * (1 + self.noise * drawn.to(vectors))

        return noisy

    def _loss_of(self, inputs: Inputs, targets: Any, number: int) -> Tensor:
        if isinstance(inputs, dict):
            output = self.model(**inputs)
        else:
            output = self.model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        return loss_of(self.loss, output, targets, self.seed + number)


def _gradients(loss: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """As torch.autograd.grad, which would leave our modes before a checkpoint is repeated."""
    run: Any = torch.autograd.Variable._execution_engine.run_backward
    return run((loss,), (torch.ones_like(loss),), False, False, leaves, True, accumulate_grad=False)

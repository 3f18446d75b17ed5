"""Norms and angles at an optimizer's steps, as they happen. Knows `wrapping` and torch."""

import math
from collections.abc import Mapping
from copy import deepcopy
from functools import cache, partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from normlib.diagnostics.wrapping import Whole, local

MEASURED = ("weight_norm", "gradient_norm", "alignment", "along", "across")
_BLOCK = 64  # measured steps between two copies from the device


class Measuring:
    """Measures at every so many steps of an optimizer, and keeps a bounded record."""

    steps: int
    record_every: int

    def __init__(
        self, optimizer: Optimizer, params: Mapping[str, Tensor], record_every: int, at_most: int
    ) -> None:
        self.optimizer, self.record_every, self.steps = optimizer, record_every, 0
        self._names, self._list, self._at_most = list(params), list(params.values()), at_most
        groups = optimizer.param_groups
        place = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        # By position: optimizer.load_state_dict puts new dictionaries in the old places.
        self._group_of = [place[id(p)] for p in self._list]
        self._whole = Whole(self._list)
        self._open: dict[str, list[Tensor]] | None = None
        self._room: list[Tensor] | None = None
        self._rows: list[tuple[int, list[Any], Tensor]] = []
        shapes = (0, (0, 2, len(params)), (0, len(MEASURED), len(params)))
        self._fetched = [tuple(np.zeros(shape, np.float32) for shape in shapes)]
        self._hooks = (
            optimizer.register_step_pre_hook(self._begin_step),
            optimizer.register_step_post_hook(self._end_step),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Stop measuring; what was measured stays."""
        for hook in self._hooks:
            hook.remove()
        self._room = None

    @torch.no_grad()
    def _begin_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        self._open = None
        if self.steps % self.record_every:
            return None
        flat = [_flat(p) for p in self._list]
        old = self._room or [torch.empty_like(w) for w in flat]
        for room, w in zip(old, flat, strict=True):
            room.copy_(w)
        # A CPU would have to fetch the memory page by page again; CUDA keeps it at hand.
        self._room = old if all(w.is_cpu for w in old) else None
        norms = self._whole.norms(old)
        unknown = [torch.full_like(norms[0], math.nan)] * len(norms)
        now = {"old": old, "weight_norm": norms, "gradient_norm": unknown, "alignment": unknown}
        self._open = now
        see_gradient = cache(partial(self._see_gradient, now))  # once
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            see_gradient()
            return None

        def watched() -> Any:  # the gradient comes into being inside the step
            loss = closure()
            see_gradient()
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, kwargs | {"closure": watched}

    @torch.no_grad()
    def _see_gradient(self, now: dict[str, list[Tensor]]) -> None:
        absent = [p.grad is None for p in self._list]
        if all(absent):
            return
        # Without a gradient a tensor of zeros: all processes add up the same things.
        grads = [
            torch.zeros_like(old) if p.grad is None else _flat(p.grad)
            for p, old in zip(self._list, now["old"], strict=True)
        ]
        norms = self._whole.norms(grads)
        products = self._whole.sums(list(map(torch.dot, grads, now["old"])))
        # A fused optimizer gets scaled gradients from a GradScaler, and the scale with them.
        scale = getattr(self.optimizer, "grad_scale", None)
        now |= {name: list(now[name]) for name in ("gradient_norm", "alignment")}
        for i, (norm, product, none) in enumerate(zip(norms, products, absent, strict=True)):
            if not none:
                now["alignment"][i] = product / (norm * now["weight_norm"][i])
                now["gradient_norm"][i] = norm if scale is None else norm / scale.to(norm.device)

    @torch.no_grad()
    def _end_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        now, self._open = self._open, None
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return  # a fused optimizer was told by a GradScaler to skip, and did
        if now is not None:
            # From the step itself: the cosine of a small angle would be lost in rounding.
            steps = [_flat(p) - old for p, old in zip(self._list, now["old"], strict=True)]
            products = self._whole.sums(list(map(torch.dot, steps, now["old"])))
            now["along"] = [x / norm for x, norm in zip(products, now["weight_norm"], strict=True)]
            for step, old, along, norm in zip(
                steps, now["old"], now["along"], now["weight_norm"], strict=True
            ):
                step.addcmul_(old, along / norm, value=-1)
            now["across"] = self._whole.norms(steps)
            defaults = {"lr": math.nan, "weight_decay": 0.0}
            groups = [defaults | optimizer.param_groups[i] for i in self._group_of]
            # Copied, since a tensor may be changed in place later.
            rates = [[deepcopy(group[name]) for group in groups] for name in defaults]
            values = torch.stack([_stack(now[name]) for name in MEASURED])
            self._rows.append((self.steps, rates, values))
        self.steps += 1
        if len(self._rows) >= _BLOCK:
            self._fetch()

    def _fetch(self) -> None:
        """Bring what was measured since the last time to the host, and keep the record bounded."""
        if not self._rows:
            return
        steps, rates, values = zip(*self._rows, strict=True)
        rates = [[[_number(x) for x in kind] for kind in row] for row in rates]
        self._fetched.append((np.array(steps), np.array(rates), torch.stack(values).cpu().numpy()))
        self._rows = []
        while sum(len(part[0]) for part in self._fetched) > self._at_most:
            self.record_every *= 2
            steps, *others = self._joined()
            kept = steps % self.record_every == 0
            self._fetched = [(steps[kept], *(part[kept] for part in others))]

    def _joined(self) -> tuple[np.ndarray, ...]:
        self._fetched = [tuple(np.concatenate(parts) for parts in zip(*self._fetched, strict=True))]
        return self._fetched[0]

    def _record(self) -> tuple[np.ndarray, ...]:
        """Steps (n,), rates (n, 2, parameters), measurements (n, 5, parameters)."""
        self._fetch()
        return self._joined()

    def state_dict(self) -> dict[str, Any]:
        """The record so far, for a checkpoint; ``torch.load(weights_only=True)`` reads it."""
        parts = dict(zip(("step", "rates", "values"), self._record(), strict=True))
        record = {name: torch.from_numpy(part.copy()) for name, part in parts.items()}
        about = {"parameters": self._names, "record_every": self.record_every}
        return {**about, "steps": self.steps, **record}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the record of an earlier tracker of the same parameters.

        Raises
        ------
        ValueError
            If it recorded other parameters.
        """
        mine = self._names
        if list(state["parameters"]) != mine:
            other = sorted(set(state["parameters"]) ^ set(mine))
            raise ValueError(
                "the state is a record of other parameters, expected the same in the same order; "
                f"track the same model. They differ in {', '.join(other) or 'order'}"
            )
        self.steps, self.record_every = int(state["steps"]), int(state["record_every"])
        self._rows = []
        self._fetched = [tuple(state[name].numpy().copy() for name in ("step", "rates", "values"))]


def _flat(x: Tensor) -> Tensor:
    """A dense vector, in a precision that suits angles; of a sharded tensor a part."""
    x = local(x.detach())
    x = x if x.layout == torch.strided else x.to_dense()
    return x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32))


def _stack(scalars: list[Tensor]) -> Tensor:
    """One vector, wherever and of whatever precision the parts are."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in scalars) else torch.float32
    return torch.stack([x.to(scalars[0].device, dtype) for x in scalars])


def _number(rate: Any) -> float:
    return math.nan if rate is None else float(rate)  # Adafactor may choose its own

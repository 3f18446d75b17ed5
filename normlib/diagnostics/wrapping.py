"""What stands around an optimizer or a model, and where the parts of a tensor are. Knows torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Wrappers that hand every step on, and change no weight themselves.
_MESSENGERS = ("Accelerated", "Lightning", "Fabric")
_INSIDE = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer", "optim", "base")
_AROUND_A_LAYER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def steps_of(optimizer: Any) -> Optimizer:
    """The optimizer whose step hooks run at every step of this one.

    Raises
    ------
    TypeError
        If it is no optimizer, and has none inside.
    ValueError
        If it runs no hooks, and may do more to the weights than the optimizer inside.
    """
    name = type(optimizer).__name__
    inside = {key: getattr(optimizer, key, None) for key in _INSIDE}
    inside = {key: value for key, value in inside.items() if isinstance(value, Optimizer)}
    if name.startswith(_MESSENGERS) and inside:
        return steps_of(next(iter(inside.values())))
    two_calls = callable(getattr(optimizer, "first_step", None))  # SAM: `step` need not be called
    if two_calls and "base_optimizer" in inside:
        return steps_of(inside["base_optimizer"])
    own = "_optimizer_step_pre_hooks" in getattr(optimizer, "__dict__", {})
    if isinstance(optimizer, Optimizer) and own and hasattr(type(optimizer).step, "hooked"):
        return optimizer
    if not inside:
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {name}; if it wraps one, pass that"
        )
    key, value = next(iter(inside.items()))
    raise ValueError(
        f"{name} runs no step hooks of torch, so its steps cannot be seen; if it only hands them "
        f"on to its {type(value).__name__}, pass that: optimizer.{key}"
    )


def rule_of(optimizer: Optimizer) -> Optimizer:
    """The one that knows the rule: in ZeRO's wrapper it works on this process's part."""
    inside = getattr(optimizer, "optim", None)
    return inside if isinstance(inside, Optimizer) else optimizer


def bare(model: nn.Module) -> nn.Module:
    """The module in DataParallel or DistributedDataParallel."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return model.get_submodule("module") if parallel else model


def plain(name: str, model: nn.Module) -> str:
    """The name that a parameter has without `torch.compile` and other wrappers."""
    for part in _AROUND_A_LAYER:
        name = name.replace(part, "")
    return name.removeprefix("module.") if bare(model) is not model else name


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor itself."""
    part = getattr(x, "to_local", None) if hasattr(x, "placements") else None
    return x if part is None else part()


class Whole:
    """Sums and norms over whole parameters, of which each process may hold a part."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        # Processes along these dimensions of a mesh hold different parts.
        self._meshes: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
        for i, p in enumerate(params):
            placements = getattr(p, "placements", ())
            if any(placement.is_partial() for placement in placements):
                raise ValueError("a parameter is a partial sum, expected whole or sharded ones")
            parts = tuple(k for k, place in enumerate(placements) if not place.is_replicate())
            if parts:
                self._meshes.setdefault((p.device_mesh, parts), []).append(i)  # type: ignore[attr-defined]

    def sums(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The sum over all parts, of one scalar a parameter."""
        found = list(values)
        for (mesh, parts), some in self._meshes.items():
            total = torch.stack([found[i].double() for i in some])
            for part in parts:
                torch.distributed.all_reduce(total, group=mesh.get_group(part))
            for i, value in zip(some, total, strict=True):
                found[i] = value.to(found[i].dtype)
        return found

    def norms(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The norm of one vector a parameter."""
        norms = list(torch._foreach_norm(list(vectors)))
        if not self._meshes:
            return norms
        squares = self.sums([norm.double().square() for norm in norms])
        return [s.sqrt().to(n.dtype) for s, n in zip(squares, norms, strict=True)]

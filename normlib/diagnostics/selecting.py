"""Which tensors and joint groups a tracker follows. Knows `wrapping`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from normlib.diagnostics.wrapping import bare, plain

Groups = Iterable[Mapping[str, float]]
Only = str | Iterable[str] | None


@dataclass(frozen=True)
class Selection:
    """What to measure, and how to show it.

    Attributes
    ----------
    params : dict
        Name -> parameter, of all that are measured.
    rows : dict
        Name of a row -> its members' names and exponents.
    left : list of str
        What was asked for and is no whole parameter.
    """

    params: dict[str, nn.Parameter]
    rows: dict[str, dict[str, float]]
    left: list[str]


def select(optimizer: Optimizer, model: Any, only: Only, groups: Groups | None) -> Selection:
    """All that `track` is asked for, once it is sure that it can be measured."""
    audit, audited = None, None
    if not isinstance(model, nn.Module):
        audit, model = model, getattr(model, "model", None)
        audited = getattr(audit, "invariant", None)
        if not isinstance(model, nn.Module) or audited is None:
            raise TypeError("model must be an nn.Module or the result of nl.audit")
        audited = {plain(name, model) for name in audited}
        if groups is None:
            groups = [g for g in getattr(audit, "groups", []) if min(g.values()) > 0]
    named = _named(optimizer, model)
    patterns = ["*"] if only is None else [only] if isinstance(only, str) else list(only)

    def wanted(name: str) -> bool:
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)

    singles = [n for n, p in named.items() if wanted(n)]
    if audited is None:
        singles = [name for name in singles if named[name].ndim >= 2]
    else:
        singles = [name for name in singles if name in audited]
    rows = {name: {name: 1.0} for name in singles}
    left = {name for name in audited or () if wanted(name)} - set(named)
    for group in groups or []:
        members = {plain(name, model): float(c) for name, c in group.items()}
        if not all(c > 0 for c in members.values()):
            raise ValueError(f"exponents of a joint group must be positive, got {dict(group)}")
        if set(members) <= set(named):
            rows |= {_title(members): members} if any(map(wanted, members)) else {}
        elif audit is None:
            unknown = ", ".join(sorted(set(members) - set(named)))
            raise ValueError(f"a joint group names {unknown}, which the optimizer does not hold")
        else:
            left.add(_title(members))
    if not rows:
        kind = "two or more dimensions" if audited is None else "the audit's verdict invariant"
        kind += "" if only is None else " and a name like only="
        raise ValueError(
            f"nothing to track: no parameter that the optimizer holds has {kind}; pass a model "
            "or an audit with such parameters"
        )
    params = {name: named[name] for members in rows.values() for name in members}
    for name, p in params.items():
        if p.layout != torch.strided or not p.is_floating_point():
            raise ValueError(
                f"{name} is {p.dtype}, {p.layout}; expected a dense tensor of real numbers; "
                "leave it out by passing an audit"
            )
    return Selection(params, rows, sorted(left))


def _named(optimizer: Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by name."""
    # By name, since its module is slow to import.
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in bare(model).modules()):
        raise ValueError(
            "the model's parameters are sharded into flat ones (FullyShardedDataParallel), "
            "expected whole tensors or DTensors; shard with torch.distributed.fsdp.fully_shard"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {plain(name, model): p for name, p in model.named_parameters() if id(p) in held}
    strangers = len(held - {id(p) for p in named.values()})
    if strangers:
        raise ValueError(
            f"{strangers} of the optimizer's {len(held)} parameters are not in the model, expected "
            "all of them; pass the module that holds all, and attach after it is wrapped or moved"
        )
    return named


def _title(members: Mapping[str, float]) -> str:
    """A joint group's name."""
    first, *others = members
    more = f"{len(others)} others" if len(others) > 2 else " + ".join(others)
    return f"{first} + {more}"

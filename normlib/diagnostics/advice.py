"""Parameter groups that follow from an audit's table. Knows torch's optimizers; no symmetry."""

import fnmatch
import html
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

LITTLE = 0.01  # share of the entries with decay that is worth a warning
SCALE = "sets a learning rate"
PAIR = "balances a pair, and shrinks its product"
GAIN = "a gain or bias of a pair, whose matrices decay"
SHRINKS = "would shrink the function"
NOTHING = "no decay is needed"


class ParamGroups(list[dict[str, Any]]):
    """Groups for an optimizer: a list of dicts that prints as a table."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row a group: why it is one, tensors, share of the entries, settings, first name."""
        total = sum(p.numel() for group in self for p in group["params"])
        rows = []
        # An optimizer adds all of its settings to each group.
        names = dict.fromkeys(key for group in self for key in group)
        differ = {k for k in names if len({repr(group.get(k)) for group in self}) > 1}
        shown = ({"lr", "weight_decay"} | differ) - {"params", "why", "names"}
        for group in self:
            settings = {k: group[k] for k in names if k in shown and k in group}
            entries = sum(p.numel() for p in group["params"])
            more = ", …" * (len(group["params"]) > 1)
            rows.append(
                {
                    "why": group["why"],
                    "tensors": len(group["params"]),
                    "share of entries": f"{entries / total:.1%}",
                    **settings,
                    "e.g.": group["names"][0] + more,
                }
            )
        return pd.DataFrame(rows).fillna("")

    def _line(self) -> str:
        decayed = [p for group in self if group["weight_decay"] for p in group["params"]]
        everything = [p for group in self for p in group["params"]]
        share = sum(p.numel() for p in decayed) / max(sum(p.numel() for p in everything), 1)
        return f"{len(decayed)} of {len(everything)} tensors decay, {share:.1%} of the entries"

    def __repr__(self) -> str:
        return f"{self.to_dataframe().to_string(index=False)}\n{self._line()}"

    def _repr_html_(self) -> str:
        return f"{self.to_dataframe().to_html(index=False)}<p>{html.escape(self._line())}</p>"


def param_groups(
    model: nn.Module,
    table: pd.DataFrame,
    weight_decay: float,
    *,
    other: float,
    pairs: float | None = None,
    rules: Mapping[str, Mapping[str, float]] | None = None,
    lr: float | None = None,
    layer_decay: float = 1.0,
    corrected: bool = False,
) -> ParamGroups:
    """Parameter groups with the decay that suits each verdict; see `Audit.param_groups`.

    Parameters
    ----------
    model : nn.Module
    table : pandas.DataFrame
        `Audit.to_dataframe`.
    weight_decay, other, pairs : float
        λ of what sets a learning rate, of the rest, of matrices in pairs (None: `weight_decay`).
    rules : mapping of str to dict or None
        Settings of some parameters, by verdict ("inverse") or by a pattern of names ("*.bias"):
        ``{"*.bias": {"weight_decay": 0.0}, "joint": {"lr": 1e-3}}``. Later ones win.
    lr : float or None
        Learning rate of the groups; needed for `layer_decay`, else the optimizer's own holds.
    layer_decay : float
        Factor of the rate from one layer to the one before it; layers are the children of the
        outermost lists of modules with two or more.
    corrected : bool
        Whether the decay of what sets a learning rate shall fall with the rate, so that norms stay
        (AdamC, Defazio 2025): these groups get ``corrected=True``, which `correct_decay` reads.

    Raises
    ------
    ValueError
        If a number is negative, a rule fits nothing, or `layer_decay` is given without `lr`.
    """
    pairs = weight_decay if pairs is None else pairs
    if min(weight_decay, other, pairs, layer_decay) < 0 or (lr is not None and lr <= 0):
        raise ValueError("decay, lr and layer_decay must not be negative, and lr must be positive")
    if layer_decay != 1.0 and lr is None:
        raise ValueError("layer_decay needs lr, the learning rate of the last layer")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    verdicts = table.groupby("parameter").verdict.agg(set)
    depths = _depths(model)
    unused = dict(rules or {})
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, p in trained.items():
        why = _why(verdicts[name], set(table.decay[table.parameter == name]), p.ndim)
        settings: dict[str, Any] = {
            "weight_decay": {SCALE: weight_decay, PAIR: pairs}.get(why, other)
        }
        if lr is not None:
            steps = max(depths.values(), default=0) - depths[name]
            settings["lr"] = lr * layer_decay**steps
        if corrected and why == SCALE:
            settings["corrected"] = True
        for pattern, change in (rules or {}).items():
            if pattern in verdicts[name] or fnmatch.fnmatch(name, pattern):
                settings |= change
                unused.pop(pattern, None)
        key = (why, *sorted(settings.items()))
        group = groups.setdefault(key, {"params": [], **settings, "why": why, "names": []})
        group["params"].append(p)
        group["names"].append(name)
    if unused:
        raise ValueError(f"no parameter has the verdict or a name like {', '.join(unused)}")
    order = (SCALE, PAIR, GAIN, SHRINKS, NOTHING)
    found = ParamGroups(sorted(groups.values(), key=lambda group: order.index(group["why"])))
    _warn(found, max(weight_decay, pairs, other))
    return found


def muon_groups(
    model: nn.Module,
    table: pd.DataFrame,
    weight_decay: float,
    *,
    other: float,
    lr: float,
    lr_adamw: float,
    pairs: float | None = None,
) -> tuple[ParamGroups, ParamGroups]:
    """Groups for Muon and for AdamW beside it; see `Audit.muon_groups`."""
    if min(lr, lr_adamw) <= 0:
        raise ValueError(f"learning rates must be positive, got {lr} and {lr_adamw}")
    use = table.groupby("parameter").use.first()
    for_muon, for_adamw = ParamGroups(), ParamGroups()
    for group in param_groups(model, table, weight_decay, other=other, pairs=pairs):
        named = list(zip(group["names"], group["params"], strict=True))
        for hidden, some in itertools.groupby(
            sorted(named, key=lambda one: _is_hidden(use[one[0]], one[1])),
            key=lambda one: _is_hidden(use[one[0]], one[1]),
        ):
            names, params = (list(column) for column in zip(*some, strict=True))
            rate, match = (lr, lr_adamw / lr) if hidden else (lr_adamw, 1.0)
            part = {
                **group, "params": params, "names": names, "lr": rate,
                "weight_decay": group["weight_decay"] * match,
            }  # fmt: skip
            (for_muon if hidden else for_adamw).append(part)
    if not for_muon:
        raise ValueError("the model has no matrix between layers, so nothing is left for Muon")
    return for_muon, for_adamw


def correct_decay(optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Let decay fall with the learning rate, in the groups that say ``corrected=True``.

    Before each step λ becomes λ·lr/lr_max, where lr_max is the group's largest rate so far or its
    ``initial_lr``, so that weights before a norm keep their norm while a schedule lowers lr.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        With groups of ``audit.param_groups(..., corrected=True)``.

    Returns
    -------
    RemovableHandle
        Call its ``remove()`` to stop.

    Raises
    ------
    ValueError
        If no group says so.

    Notes
    -----
    Source: Defazio 2025, "Why gradients rapidly increase near the end of training" (AdamC).

    >>> w = nn.Parameter(torch.ones(3))
    >>> groups = [{"params": [w], "weight_decay": 0.1, "corrected": True}]
    >>> optimizer = torch.optim.AdamW(groups, lr=1.0)
    >>> handle = nl.correct_decay(optimizer)
    >>> w.grad = torch.ones(3)
    >>> optimizer.step()
    >>> optimizer.param_groups[0]["lr"] = 0.5
    >>> optimizer.step()
    >>> optimizer.param_groups[0]["weight_decay"]
    0.05
    """
    chosen = [group for group in optimizer.param_groups if group.get("corrected")]
    if not chosen:
        raise ValueError("no group of the optimizer says corrected=True")
    full = [(group, group["weight_decay"]) for group in chosen]

    def fall(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, decay in full:
            largest = max(group.get("lr_max", 0.0), group.get("initial_lr", 0.0), group["lr"])
            group["lr_max"] = float(largest)
            group["weight_decay"] = decay * float(group["lr"]) / group["lr_max"]

    return optimizer.register_step_pre_hook(fall)


def _why(verdicts: set[str], decays: set[str], dimensions: int) -> str:
    """Of a parameter by the verdicts of its parts; the first that holds counts."""
    if any("learning rate" in decay for decay in decays):
        return SCALE
    if "inverse" in verdicts:
        return PAIR if dimensions > 1 else GAIN
    return SHRINKS if "not invariant" in verdicts else NOTHING


def _is_hidden(use: str, parameter: nn.Parameter) -> bool:
    return use == "matrix" and parameter.ndim == 2


def _depths(model: nn.Module) -> dict[str, int]:
    """How deep each parameter lies, in layers."""
    lists: list[tuple[str, nn.ModuleList | nn.Sequential]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer, _ in lists)
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and not inside:
            lists.append((name, module))
    layers = [f"{outer}.{k}.".lstrip(".") for outer, module in lists for k, _ in enumerate(module)]
    depths, reached = {}, 0
    for name, _ in model.named_parameters():
        mine = [k for k, layer in enumerate(layers, 1) if name.startswith(layer)]
        reached = mine[0] if mine else (len(layers) + 1 if reached == len(layers) > 0 else reached)
        depths[name] = reached
    return depths


def _warn(groups: ParamGroups, largest: float) -> None:
    total = sum(p.numel() for group in groups for p in group["params"])
    decayed = sum(p.numel() for group in groups if group["weight_decay"] for p in group["params"])
    if largest > 0 and decayed <= LITTLE * total:
        warnings.warn(
            f"{groups._line()}: nearly nothing; give other a decay if the model shall have one",
            stacklevel=4,
        )

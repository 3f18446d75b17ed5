"""Measure what decay does in torch's optimizers and two public collections: book/optimizers.md.

    python tools/optimizers.py            print the table
    python tools/optimizers.py --write    and keep it

Takes some minutes, with timm and pytorch_optimizer installed. Each exponent p that the tracker
would use is tried on another problem: weights twice as long with 2^p times the learning rate must
be the same training, and twice as long alone must not, unless p is 0. Each formula for the angle is
tried on random gradients. How decay enters is found by giving the same steps with it and
without. What fails is marked WRONG, and the exit status says so.
"""

import argparse
import datetime
import importlib.metadata
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normlib.diagnostics.exponents import exponent_of, like, made, split
from normlib.diagnostics.rules import decay_of, steps_of, theory_of
from normlib.theory import Theory

PAGE = Path(__file__).parent.parent / "book/optimizers.md"
SHAPE = (24, 10)
SIZE = 0.1  # root mean square entry of the weights


def _classes(library: str, module: ModuleType) -> Iterator[tuple[str, Callable[..., Optimizer]]]:
    """Those that a module offers under their own names."""
    for name, kind in sorted(vars(module).items()):
        if (
            inspect.isclass(kind)
            and issubclass(kind, Optimizer)
            and kind is not Optimizer
            and kind.__name__ == name
        ):
            takes = "weight_decay" in inspect.signature(kind).parameters
            yield (
                f"{library} {name}",
                lambda p, wd, kind=kind, takes=takes: kind(
                    p, **({"weight_decay": wd} if takes else {})
                ),
            )


def optimizers() -> Iterator[tuple[str, Callable[..., Optimizer]]]:
    """Names and makers of all that can be made on a CPU."""
    import pytorch_optimizer
    import timm.optim

    yield from _classes("torch", torch.optim)
    for name in timm.optim.list_optimizers():
        yield (
            f"timm {name}",
            lambda p, wd, name=name: timm.optim.create_optimizer_v2(
                p, name, lr=None, weight_decay=wd
            ),
        )
    yield from _classes("pytorch_optimizer", pytorch_optimizer)


def weights() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(1)
    return [nn.Parameter(SIZE * torch.randn(SHAPE, generator=random, dtype=torch.float64))]


def path(optimizer: Optimizer, scale: float, factor: float, steps: int = 30) -> np.ndarray:
    """Angles of the steps from scaled weights, on a regression with normalized rows of weights."""
    random = torch.Generator().manual_seed(2)
    x, y = (torch.randn(64, k, generator=random, dtype=torch.float64) for k in SHAPE[::-1])
    group = optimizer.param_groups[0]
    w = nn.Parameter(scale * weights()[0].detach())
    lr = {} if group.get("lr") is None else {"lr": factor * float(group["lr"])}
    decay = {"weight_decay": 1e-9 if group.get("weight_decay") else 0.0}
    fresh = made(like(optimizer, group, **lr, **decay), w)

    def closure() -> Tensor:
        with torch.enable_grad():
            fresh.zero_grad()
            loss = (x @ (w / w.norm()).T - y).square().mean()
            loss.backward()
        return loss

    takes = "closure" in inspect.signature(fresh.step).parameters
    angles = []
    for _ in range(steps):
        closure()
        before = w.detach().clone()
        fresh.step(*[closure] * takes)
        along, across = split(before.ravel(), w.detach().ravel(), before.norm())
        angles.append(math.atan2(float(across), float(before.norm() + along)))
    return np.array(angles)


def contradicted(optimizer: Optimizer, p: float) -> bool:
    own, scaled, long = (path(optimizer, *of) for of in ((1, 1), (2, 2**p), (2, 1)))
    if optimizer.param_groups[0].get("lr") is None:
        scaled = long

    def same(other: np.ndarray) -> bool:
        return bool(np.abs(own - other).sum() <= 0.03 * own.sum())

    return not same(scaled) or bool(p and same(long))


def rule_of(optimizer: Optimizer) -> Theory | None:
    """The tracker's formulas at lr 0.001 and λ 1, if it has any."""
    group = optimizer.param_groups[0]
    if group.get("lr") is None:
        return None
    return theory_of(optimizer, {**group, "lr": 1e-3, "weight_decay": 1.0}, SHAPE, step=10**6)


def angle_ratio(optimizer: Optimizer, rule: Theory | None) -> float:
    """The angle under random gradients over that of the formula; nan without one."""
    if rule is None or not rule.scale_exponent == rule.decay_exponent == 1:
        return math.nan
    group = optimizer.param_groups[0]
    random = torch.Generator().manual_seed(3)
    w = nn.Parameter(torch.randn(SHAPE, generator=random, dtype=torch.float64))
    w.data.mul_(rule.equilibrium_norm(1e-3, 1.0, 1.0, w.numel()) / w.data.norm())
    fresh = made(like(optimizer, group, lr=1e-3, weight_decay=1.0), w)
    takes = "closure" in inspect.signature(fresh.step).parameters
    angles = []
    for _ in range(4000):
        before = w.detach().clone()
        g = torch.randn(SHAPE, generator=random, dtype=torch.float64)
        g -= (g * before).sum() / before.square().sum() * before
        w.grad = g / before.norm()
        fresh.step(*[lambda: torch.zeros(())] * takes)
        along, across = split(before.ravel(), w.detach().ravel(), before.norm())
        angles.append(math.atan2(float(across), float(before.norm() + along)))
    return float(np.sqrt(np.square(angles[1500:]).mean())) / rule.angle(1e-3, 1.0, 1.0, w.numel())


def convention(optimizer: Optimizer) -> str:
    """How decay enters: into the gradient, beside it times lr, beside it alone, or otherwise."""
    group = {**optimizer.param_groups[0]}
    if "weight_decay" not in group:
        return "none"
    lr = group.get("lr")
    group |= {"weight_decay": 0.05} | ({} if lr is None else {"lr": 1e-3})
    random = torch.Generator().manual_seed(4)
    w = torch.randn(6, 6, generator=random, dtype=torch.float64)
    grads = [torch.randn(6, 6, generator=random, dtype=torch.float64) for _ in range(3)]
    held, now, decayed = [], w, []
    for step, g in zip(
        steps_of(like(optimizer, group, weight_decay=0.05), w, grads, None), grads, strict=True
    ):
        held.append(step)
        decayed.append(g + 0.05 * now)
        now = now + step
    free = list(steps_of(like(optimizer, group, weight_decay=0.0), w, decayed, None))
    apart = (torch.stack(held) - torch.stack(free)).norm() / torch.stack(held).norm()
    if apart < 1e-6:
        return "in the gradient"
    kind = "" if lr is None else decay_of(optimizer, group)
    return {"times lr": "ηλ", "independent": "λ", "": "other"}[kind]


def persistence(rule: Theory | None) -> float:
    """κ of the angle √(2ηλ/κ) at the balance; nan where the angle is not of that form."""
    if rule is None or not rule.scale_exponent or rule.decay_exponent != rule.scale_exponent:
        return math.nan
    angles = [rule.angle(1e-3, decay, 1.0, 240) for decay in (1.0, 0.25)]
    if not angles[1] or abs(angles[0] / angles[1] - 2) > 0.01:
        return math.nan
    return 2e-3 / angles[0] ** 2


def row(make: Callable[..., Optimizer]) -> list[str]:
    """p without and with decay, how decay enters, κ, the angle over its formula, and remarks."""
    cells, notes = [], list[str]()
    for decay in (0.0, 0.05):
        optimizer = make(weights(), decay)
        p, reason = exponent_of(optimizer, optimizer.param_groups[0])
        wrong = not reason and contradicted(optimizer, p)
        cells.append("WRONG" if wrong else f"{p:.3g}")
        if reason:
            notes.append(reason.split("measured (")[-1].split("); give")[0])
    try:
        cells.append(convention(optimizer))
    except Exception:  # whatever a stranger's step may do
        cells.append("?")
    rule = rule_of(optimizer)
    kappa = persistence(rule)
    cells.append("" if math.isnan(kappa) else f"{kappa:.3g}")
    ratio = angle_ratio(optimizer, rule)
    cells.append("" if math.isnan(ratio) else f"{ratio:.3f}")
    if abs(ratio - 1) > 0.05:
        cells[-1] += " WRONG"
    return [*cells, notes[-1].replace("|", "/")[:120] if notes else ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("names", nargs="*", help="parts of names, for these alone")
    arguments: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines, left = [], []
    for name, make in optimizers():
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        try:
            lines.append([name, *row(make)])
            print(*lines[-1], sep=" | ", flush=True)
        except Exception as error:  # it needs a GPU, a package, named parameters, …
            left.append(f"{name} ({str(error).splitlines()[0][:80] if str(error) else error!r})")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "timm", "pytorch_optimizer")
    )
    text = "\n".join(
        [
            "# Optimizers, and how they decay",
            "",
            f"Measured by `tools/optimizers.py` on {datetime.date.today()}, with {versions}; "
            "each optimizer with its default settings. A guess about one that is not here: "
            "[chapter 09](../notebooks/09_audit_your_model.ipynb) measures yours.",
            "",
            "- **p**: the effective learning rate is η/rᵖ. nan: none was found, for the reason in "
            "the last column.",
            "- **decay**: what a step takes off. *ηλ*: ηλ of the weights, as torch's AdamW. *λ*: "
            "λ of them, whatever η is. *in the gradient*: λw is added to the gradient. *other*: "
            "none of these. *none*: it has no weight decay.",
            "- **κ**: at the balance a step turns weights by √(2ηλ/κ). Empty: no such angle is "
            "known, or another formula holds.",
            "- **angle**: measured on random gradients, over that formula.",
            "",
            "| optimizer | p | p with decay | decay | κ | angle | why not |",
            "|---|---|---|---|---|---|---|",
            *(f"| {' | '.join(cells)} |" for cells in lines),
            "",
            f"Left out, since they could not be made or stepped here: {'; '.join(left)}.",
            "",
        ]
    )
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
    wrong = [cells[0] for cells in lines if any("WRONG" in cell for cell in cells)]
    if wrong:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()

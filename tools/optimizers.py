"""Measure the scale exponents of all optimizers of two public collections: tools/optimizers.md.

    python tools/optimizers.py            print the table
    python tools/optimizers.py --write    and keep it

Takes some minutes, with timm and pytorch_optimizer installed. Each exponent p that the tracker
would use is tried on another problem: weights twice as long with 2^p times the learning rate must
be the same training, and twice as long alone must not, unless p is 0. Each formula for the angle is
tried on random gradients. What fails is marked WRONG, and the exit status says so.
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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normlib.diagnostics.exponents import exponent_of, like, made, split
from normlib.diagnostics.rules import theory_of

PAGE = Path(__file__).with_suffix(".md")
SHAPE = (24, 10)
SIZE = 0.1  # root mean square entry of the weights


def optimizers() -> Iterator[tuple[str, Callable[..., Optimizer]]]:
    """Names and makers of all that can be made on a CPU."""
    import pytorch_optimizer
    import timm.optim

    for name in timm.optim.list_optimizers():
        yield (
            f"timm {name}",
            lambda p, wd, name=name: timm.optim.create_optimizer_v2(
                p, name, lr=None, weight_decay=wd
            ),
        )
    for name, kind in sorted(vars(pytorch_optimizer).items()):
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind.__name__ == name:
            takes = "weight_decay" in inspect.signature(kind).parameters
            yield (
                f"pytorch_optimizer {name}",
                lambda p, wd, kind=kind, takes=takes: kind(
                    p, **({"weight_decay": wd} if takes else {})
                ),
            )


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


def angle_ratio(optimizer: Optimizer) -> float:
    """The angle under random gradients over that of the formula; nan without one."""
    group = {**optimizer.param_groups[0], "lr": 1e-3, "weight_decay": 1.0}
    if optimizer.param_groups[0].get("lr") is None:
        return math.nan
    rule = theory_of(optimizer, group, SHAPE, step=10**6)
    if rule is None or not rule.scale_exponent == rule.decay_exponent == 1:
        return math.nan
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


def row(make: Callable[..., Optimizer]) -> list[str]:
    """p without and with decay, the angle over its formula, and remarks."""
    cells, notes = [], list[str]()
    for decay in (0.0, 0.05):
        optimizer = make(weights(), decay)
        p, reason = exponent_of(optimizer, optimizer.param_groups[0])
        wrong = not reason and contradicted(optimizer, p)
        cells.append("WRONG" if wrong else f"{p:.3g}")
        if reason:
            notes.append(reason.split("measured (")[-1].split("); give")[0])
    ratio: float = angle_ratio(optimizer)
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
            "# Scale exponents of two public collections",
            "",
            f"Written by `tools/optimizers.py` on {datetime.date.today()}, with {versions}; "
            "each with its default settings. nan: not measured, for the reason in the last column; "
            "then `effective_lr` is nan too. *angle*: under random gradients, over the formula of "
            "the tracker; empty where it has none.",
            "",
            "| optimizer | p without decay | p with decay | angle | why not |",
            "|---|---|---|---|---|",
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

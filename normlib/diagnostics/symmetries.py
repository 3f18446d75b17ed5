"""Symmetries of a loss, found in products of weights and gradients. Knows numpy; no tensors."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

# A loss that does not change when tensors w_i are multiplied by a^c_i satisfies Σ c_i ⟨w_i, g_i⟩
# = 0. So the products ⟨w_i, g_i⟩, measured at several points, hold every such symmetry in their
# null space.

NULL = 1e-8  # singular value relative to the largest: null below 1e-13, others above 1e-3
WHOLE = 1e-5  # error of an exponent: below 1e-11 where there is a symmetry


@dataclass(frozen=True)
class Thresholds:
    """What counts as zero in some precision.

    invariant : |cos(w, g)|; in double, symmetric tensors stay below 1e-14, others above 1e-6
    no_effect : |g| relative to the largest; in double, zeros stay below 1e-16, others above 1e-8
    change : relative change of the loss that is more than rounding
    """

    invariant: float
    no_effect: float
    change: float


DOUBLE = Thresholds(1e-9, 1e-12, 1e-9)
SINGLE = Thresholds(1e-4, 1e-6, 2e-5)  # wide: what passes is confirmed by rescaling


@dataclass(frozen=True)
class Sample:
    """Of each piece ⟨w, g⟩, ‖w‖² and ‖g‖² at one point, (3, channels); what the loss uses there."""

    stats: dict[str, np.ndarray]
    used: set[str]
    thresholds: Thresholds = DOUBLE

    @cached_property
    def largest(self) -> float:
        return max(map(self.gradient_norm, self.stats))

    def gradient_norm(self, name: str) -> float:
        return math.sqrt(self.stats[name][2].sum())

    def silent(self, name: str) -> bool:
        return self.gradient_norm(name) <= self.thresholds.no_effect * self.largest

    def along(self, exponents: Mapping[str, int]) -> np.ndarray:
        """The same three for c_i w_i of several pieces together."""
        stats = [self.stats[name] for name in exponents]
        if len({s.shape[1] for s in stats}) > 1:
            stats = [s.sum(1, keepdims=True) for s in stats]
        weights = np.array([[c, c**2, 1] for c in exponents.values()])
        return np.einsum("ik,ikc->kc", weights, np.array(stats))


@dataclass(frozen=True)
class Symmetry:
    """Multiplying each piece by a^exponent leaves the loss, with its own a for each block."""

    exponents: dict[str, int]
    blocks: int

    @property
    def kind(self) -> str:
        if len(self.exponents) == 1:
            return "invariant"
        return "joint" if min(self.exponents.values()) > 0 else "inverse"

    def eps_violation(self, sample: Sample) -> float:
        """Largest |cos| of weights and gradient over the blocks that are alive."""
        product, w2, g2 = _folded(sample.along(self.exponents), self.blocks)
        alive = (np.sqrt(g2) > sample.thresholds.no_effect * sample.largest) & (w2 > 0)
        cosines = np.abs(product[alive]) / np.sqrt(w2[alive] * g2[alive])
        return float(cosines.max()) if len(cosines) else math.nan


def finest(exponents: Mapping[str, int], samples: Sequence[Sample]) -> int:
    """Into how many equal blocks of channels a symmetry splits at most; 0 if it is none."""
    stats = np.stack([sample.along(exponents) for sample in samples])
    largest, zero = np.array([[sample.largest] for sample in samples]), samples[0].thresholds

    def holds(blocks: int) -> bool:
        product, w2, g2 = np.moveaxis(_folded(stats, blocks), 1, 0)
        bound = np.sqrt(w2) * (zero.invariant * np.sqrt(g2) + zero.no_effect * largest)
        return bool((np.abs(product) <= bound).all())

    channels = stats.shape[-1]
    divisors = [d for d in range(channels, 0, -1) if channels % d == 0]
    return next(filter(holds, divisors), 0) if holds(1) else 0


def _folded(stats: np.ndarray, blocks: int) -> np.ndarray:
    """Sums over the channels of each block."""
    return stats.reshape(*stats.shape[:-1], blocks, -1).sum(-1)


def null_space(products: np.ndarray) -> tuple[int, np.ndarray]:
    """Rank and null space (vectors in rows) of the products, whose columns differ in size."""
    scale = np.sqrt((products**2).mean(0))
    scale[scale == 0] = 1
    scaled = products / scale
    size = np.linalg.norm(scaled, axis=1, keepdims=True)
    _, values, vectors = np.linalg.svd(scaled / np.where(size == 0, 1, size))
    rank = int((values > NULL * values[0]).sum())
    return rank, vectors[rank:] / scale


def generators(products: np.ndarray) -> list[np.ndarray]:
    """Integer exponents of independent symmetries, with few pieces each."""
    _, null = null_space(products)
    return _sparse(_integers(null)) if len(null) else []


def independent(some: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """Those that are no combination of the ones before them."""
    rows: list[tuple[str, dict[str, Fraction]]] = []
    kept = []
    for one in some:
        row = {name: Fraction(exponent) for name, exponent in one.items()}
        for pivot, other in rows:
            if factor := row.get(pivot):
                _add(row, other, -factor)
        if row:
            pivot = next(iter(row))
            rows.append((pivot, {name: value / row[pivot] for name, value in row.items()}))
            kept.append(one)
    return kept


def _integers(null: np.ndarray) -> list[np.ndarray]:
    """A basis of a null space in small integers; what is none is left out."""
    from scipy.linalg import qr  # slow to import, and few need it

    pivots = qr(null, mode="r", pivoting=True)[1][: len(null)]
    found = []
    for row in np.linalg.solve(null[:, pivots], null):
        for multiple in range(1, 7):
            whole = (multiple * row).round()
            if np.abs(multiple * row - whole).max() < WHOLE:
                found.append(whole.astype(int))
                break
    return found


def _sparse(vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same symmetries with fewer pieces each, by adding multiples pair by pair."""
    vectors = list(vectors)
    better = True
    while better:
        better = False
        for i, j in itertools.permutations(range(len(vectors)), 2):
            both = np.flatnonzero(vectors[i] * vectors[j])
            for p, q in {(int(vectors[i][k]), int(vectors[j][k])) for k in both}:
                new = q * vectors[i] - p * vectors[j]
                new //= np.gcd.reduce(new)
                if _complexity(new) < _complexity(vectors[i]):
                    vectors[i], better = new, True
                    break
    return [v * int(np.sign(v[np.flatnonzero(v)[0]])) for v in vectors]


def _complexity(vector: Sequence[int] | np.ndarray) -> tuple[int, int]:
    return int(np.count_nonzero(vector)), int(np.abs(vector).sum())


def proposals(
    equations: Iterable[Mapping[str, Fraction]],
    activations: Iterable[Mapping[str, Fraction]],
    names: Sequence[str],
) -> list[dict[str, int]]:
    """Exponents that solve homogeneous equations, one solution for each scale that is left free.

    The basis is the one that the activations suggest: each solution multiplies one of them, the
    first in the forward that the solutions before leave alone, and none of the other chosen ones:
    +1 for what writes to it, −1 for what reads from it.
    """
    solved: dict[str, dict[str, Fraction]] = {}

    def reduced(row: Mapping[str, Fraction]) -> dict[str, Fraction]:
        row = dict(row)
        while bound := [name for name in row if name in solved]:
            for name in bound:
                if name in row:  # another may have cancelled it
                    _add(row, solved[name], row.pop(name))
        return row

    for equation in equations:
        row = reduced(equation)
        if row:
            pivot = next(reversed(row))
            size = -row.pop(pivot)
            solved[pivot] = {name: value / size for name, value in row.items()}
    free = [name for name in names if name not in solved]
    # Rows of a triangular system: what each chosen activation is in the free exponents.
    chosen: list[tuple[str, dict[str, Fraction], dict[int, Fraction]]] = []
    candidates = [*activations, *({name: Fraction(1)} for name in free)]
    seen: set[tuple[tuple[str, Fraction], ...]] = set()
    for candidate in candidates:
        if len(chosen) == len(free):
            break
        row = reduced(candidate)
        key = tuple(sorted(row.items()))
        if key in seen:
            continue
        seen.add(key)
        made = {len(chosen): Fraction(1)}
        for pivot, other, by in chosen:
            if factor := row.get(pivot):
                _add(row, other, -factor)
                _add(made, by, -factor)
        if row:
            pivot = next(iter(row))
            size = row[pivot]
            row = {name: value / size for name, value in row.items()}
            made = {k: value / size for k, value in made.items()}
            for _, other, by in chosen:
                if factor := other.get(pivot):
                    _add(other, row, -factor)
                    _add(by, made, -factor)
            chosen.append((pivot, row, made))
    exponents = {name: reduced({name: Fraction(1)}) for name in names}
    found = []
    for k in range(len(chosen)):
        values = {pivot: made[k] for pivot, _, made in chosen if k in made}
        solution = {
            name: sum((c * values.get(n, Fraction(0)) for n, c in row.items()), Fraction(0))
            for name, row in exponents.items()
        }
        common = math.lcm(*(value.denominator for value in solution.values()))
        scaled = {name: int(value * common) for name, value in solution.items() if value}
        divisor = math.gcd(*scaled.values()) * (1 if next(iter(scaled.values())) > 0 else -1)
        found.append({name: scaled[name] // divisor for name in scaled})
    return found


def _add(row: dict[Any, Fraction], other: Mapping[Any, Fraction], times: Fraction) -> None:
    for name, value in other.items():
        total = row.get(name, Fraction(0)) + value * times
        if total:
            row[name] = total
        else:
            row.pop(name, None)


def signs(basis: Sequence[Mapping[str, int]]) -> dict[str, str]:
    """Of each piece in a space of symmetries, whether it may grow while none shrinks.

    That depends on the space, not on its basis: "joint" is what has a positive exponent in some
    symmetry without negative ones, "inverse" what only grows as others shrink.
    """
    from scipy.optimize import linprog  # slow to import, and few need it

    names = list(dict.fromkeys(name for one in basis for name in one))
    if not names:
        return {}
    place = {name: k for k, name in enumerate(names)}
    matrix = np.zeros((len(basis), len(names)))
    for row, one in enumerate(basis):
        for name, exponent in one.items():
            matrix[row, place[name]] = exponent
    # As many exponents of at least 1 as can be: maximise Σ t with t ≤ y·basis, 0 ≤ t ≤ 1.
    count = len(names)
    answer = linprog(
        np.concatenate([np.zeros(len(basis)), -np.ones(count)]),
        A_ub=np.hstack([-matrix.T, np.eye(count)]),
        b_ub=np.zeros(count),
        bounds=[(None, None)] * len(basis) + [(0, 1)] * count,
    )
    grown = answer.x[len(basis) :] if answer.success else np.zeros(count)
    return {name: "joint" if grown[place[name]] > 0.5 else "inverse" for name in names}

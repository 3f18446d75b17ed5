"""Symmetries of a loss, found in products of weights and gradients. Knows numpy; no tensors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# A loss that does not change when tensors w_i are multiplied by a^c_i satisfies Σ c_i ⟨w_i, g_i⟩
# = 0. So the products ⟨w_i, g_i⟩, measured at several points, hold every such symmetry in their
# null space.

INVARIANT = 1e-9  # |cos(w, g)|: symmetric tensors stay below 1e-14, others above 1e-6
NO_EFFECT = 1e-12  # |g| relative to the largest: true zeros stay below 1e-16, others above 1e-8
NULL = 1e-8  # singular value relative to the largest: null below 1e-13, others above 1e-3
WHOLE = 1e-5  # error of an exponent: below 1e-11 where there is a symmetry


@dataclass(frozen=True)
class Sample:
    """Of each piece ⟨w, g⟩, ‖w‖² and ‖g‖² at one point, (3, channels); what the loss uses there."""

    stats: dict[str, np.ndarray]
    used: set[str]

    @cached_property
    def largest(self) -> float:
        return max(map(self.gradient_norm, self.stats))

    def gradient_norm(self, name: str) -> float:
        return math.sqrt(self.stats[name][2].sum())

    def silent(self, name: str) -> bool:
        return self.gradient_norm(name) <= NO_EFFECT * self.largest

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
        alive = (np.sqrt(g2) > NO_EFFECT * sample.largest) & (w2 > 0)
        cosines = np.abs(product[alive]) / np.sqrt(w2[alive] * g2[alive])
        return float(cosines.max()) if len(cosines) else math.nan


def finest(exponents: Mapping[str, int], samples: Sequence[Sample]) -> int:
    """Into how many equal blocks of channels a symmetry splits at most; 0 if it is none."""
    stats = np.stack([sample.along(exponents) for sample in samples])
    largest = np.array([[sample.largest] for sample in samples])

    def holds(blocks: int) -> bool:
        product, w2, g2 = np.moveaxis(_folded(stats, blocks), 1, 0)
        bound = np.sqrt(w2) * (INVARIANT * np.sqrt(g2) + NO_EFFECT * largest)
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


def generators(products: np.ndarray, spans: Sequence[slice]) -> list[np.ndarray]:
    """Integer exponents of independent symmetries, each inside a span and with few pieces."""
    found = set()
    for span in spans:
        _, null = null_space(products[:, span])
        for vector in _sparse(_integers(null)) if len(null) else []:
            whole = np.zeros(products.shape[1], int)
            whole[span] = vector
            found.add(tuple(map(int, whole)))
    basis: list[np.ndarray] = []
    for candidate in sorted(found, key=lambda vector: (*_complexity(vector), vector)):
        if np.linalg.matrix_rank(np.array([*basis, candidate])) > len(basis):
            basis.append(np.array(candidate))
    return sorted(_sparse(basis), key=lambda vector: np.flatnonzero(vector).tolist())


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

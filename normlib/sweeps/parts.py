"""How a sweep is cut into wide networks. Knows numbers of cells only."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator

from attrs import frozen


@frozen
class Part:
    """One wide network of a sweep: a seed and a range of cells."""

    seed: int
    first: int
    stop: int

    def halves(self) -> tuple["Part", "Part"]:
        middle = (self.first + self.stop) // 2
        return Part(self.seed, self.first, middle), Part(self.seed, middle, self.stop)

    def around(self, finished: Collection["Part"]) -> Iterator["Part"]:
        """Itself, or the pieces into which it must be cut so that `finished` are among them."""
        smaller = any(
            p.seed == self.seed and self.first <= p.first and p.stop <= self.stop for p in finished
        )
        if self in finished or not smaller or self.stop - self.first == 1:
            yield self
        else:
            for half in self.halves():
                yield from half.around(finished)

    @property
    def label(self) -> str:
        return f"seed{self.seed}-cells{self.first}-{self.stop}"


def cut(
    seeds: Iterable[int], cells: int, chunk_size: int, finished: Collection[Part] = ()
) -> Iterator[Part]:
    """Parts of nearly equal sizes, at most `chunk_size`, seed by seed.

    Where memory was too small for that, some that are finished are smaller; then what lies around
    them is cut as they were, in halves.

    >>> [(part.first, part.stop) for part in cut([0], cells=10, chunk_size=5)]
    [(0, 5), (5, 10)]
    >>> half = Part(0, 0, 2)
    >>> [(part.first, part.stop) for part in cut([0], cells=10, chunk_size=5, finished=[half])]
    [(0, 2), (2, 5), (5, 10)]
    """
    count = math.ceil(cells / chunk_size)
    edges = [round(cells * i / count) for i in range(count + 1)]
    for seed in seeds:
        for first, stop in itertools.pairwise(edges):
            yield from Part(int(seed), first, stop).around(finished)

"""What a check expects, and whether values agree. Knows intervals; shows nothing."""

import math
from dataclasses import asdict, dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from normlib.analysis import interval


class CheckError(AssertionError):
    """A measurement lies outside its prediction: the page's claim does not hold here."""


@dataclass(frozen=True)
class Prediction:
    """Where values should lie: near an expected number, below a bound, above one, or between.

    Attributes
    ----------
    expected, tolerance, below, above : float or None
        The first two, or one or both of the others.
    each : bool
        Whether every value must lie inside. Otherwise values are independent, one a seed, and the
        95 % t-interval of their mean must: a test of equivalence.

    Raises
    ------
    TypeError, ValueError
        If one of the four is not a finite number, or together they are no prediction.

    >>> Prediction(below=0.9).admits([0.2, 0.3, 0.4])
    True
    >>> Prediction(expected=1, tolerance=0.1, each=True).admits([0.95, 1.2])
    False
    """

    expected: float | None = None
    tolerance: float | None = None
    below: float | None = None
    above: float | None = None
    each: bool = False

    def __post_init__(self) -> None:
        given = {k: v for k, v in asdict(self).items() if k != "each" and v is not None}
        for name, value in given.items():
            if not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value) or (name == "tolerance" and value <= 0):
                raise ValueError(f"{name} must be finite, a tolerance above 0; got {value}")
            object.__setattr__(self, name, float(value))
        if set(given) not in ({"expected", "tolerance"}, {"below"}, {"above"}, {"below", "above"}):
            raise ValueError(
                "give expected and tolerance, or below, above or both of these; got "
                f"{' and '.join(given) or 'nothing'}"
            )
        if given.get("above", -math.inf) >= given.get("below", math.inf):
            raise ValueError(f"no value lies {self}")

    @classmethod
    def of(cls, record: dict) -> "Prediction":
        """The prediction in the record of a check."""
        return cls(*(record[name] for name in cls.__match_args__))

    def __str__(self) -> str:
        if self.expected is not None:
            return f"{self.expected:g} ± {self.tolerance:g}"
        bounds = {"above": self.above, "below": self.below}
        return " and ".join(f"{name} {v:g}" for name, v in bounds.items() if v is not None)

    def summary(self, values: ArrayLike) -> tuple[float, float, float]:
        """Mean of the values, and what of them must lie inside: their interval, or all of them."""
        values = np.asarray(values, float)
        mean, low, high = interval(values)
        return (mean, float(values.min()), float(values.max())) if self.each else (mean, low, high)

    def admits(self, values: ArrayLike) -> bool:
        """Whether the values lie inside; on the edge is inside, to rounding."""
        _, low, high = self.summary(values)
        return self.edges[0] <= low <= high <= self.edges[1]

    def excludes(self, values: ArrayLike) -> bool:
        """Whether an alternative's values lie outside: one of each, else the whole interval."""
        if self.each:
            return not self.admits(values)
        _, low, high = self.summary(values)
        return high < self.edges[0] or low > self.edges[1]

    def describe(self, values: ArrayLike, words: str = " ({} to {})") -> str:
        """The summary of the values in three digits, e.g. "0.98 (0.91 to 1.07)"."""
        mean, low, high = (f"{number:.3g}" for number in self.summary(values))
        if low == high:
            return mean
        return f"{low} to {high}" if self.each else mean + words.format(low, high)

    @property
    def edges(self) -> tuple[float, float]:
        """Where the band begins and ends, rounding allowed for; an open end is infinite."""
        if self.expected is not None and self.tolerance is not None:
            wide = self.tolerance * (1 + 1e-9)
            return self.expected - wide, self.expected + wide
        low = -math.inf if self.above is None else self.above - 1e-9 * abs(self.above)
        return low, math.inf if self.below is None else self.below + 1e-9 * abs(self.below)

"""Grids of trainings: what is trained (`spec`), how (`training`), where it is kept, and `runs`."""

from normlib.sweeps.runs import Sweep, fast_precision, sweep

__all__ = ["Sweep", "fast_precision", "sweep"]

"""What only chapters need: checks and how they look, figures, scrubbers, drawings."""

from normlib.notebook import drawings
from normlib.notebook.checks import check, evidence
from normlib.notebook.figures import heatmap, show_figure, style
from normlib.notebook.predictions import CheckError, Prediction
from normlib.notebook.scrubbers import scrubber

__all__ = [
    "CheckError",
    "Prediction",
    "check",
    "drawings",
    "evidence",
    "heatmap",
    "scrubber",
    "show_figure",
    "style",
]

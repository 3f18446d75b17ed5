"""The page of optimizers is what its script measures, for a handful of them."""

import re

import pytest
import torch

from tests.conftest import ROOT
from tools import optimizers

pytest.importorskip("timm.optim")
pytest.importorskip("pytorch_optimizer")

ROWS = {
    cells[0]: cells[1:]
    for line in (ROOT / "book/optimizers.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and len(cells := [c.strip() for c in line.strip("|").split("|")]) == 7
}
MADE = dict(optimizers.optimizers())


@pytest.mark.parametrize(
    "name",
    ["torch SGD", "torch AdamW", "torch Adam", "torch Muon", "timm lion", "timm adamc",
     "pytorch_optimizer Tiger", "pytorch_optimizer AdamP"],
)  # fmt: skip
def test_a_row_is_what_is_measured(name):
    found = optimizers.row(MADE[name])
    assert found[:3] == ROWS[name][:3]
    for one, other in zip(found[3:5], ROWS[name][3:5], strict=True):
        assert one == other or float(one) == pytest.approx(float(other), rel=0.02)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), "in the gradient"),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1), "ηλ"),
        (lambda p: torch.optim.Rprop(p), "none"),
    ],
)
def test_how_decay_enters_is_found(make, kind):
    assert optimizers.convention(make(optimizers.weights())) == kind


def test_the_page_names_versions_and_a_day():
    page = (ROOT / "book/optimizers.md").read_text(encoding="utf-8")
    assert re.search(r"on \d{4}-\d\d-\d\d, with torch [\d.]+, timm [\d.]+, pytorch_optimizer", page)
    assert len(ROWS) > 180

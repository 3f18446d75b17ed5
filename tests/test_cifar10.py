"""Chapter 10 where this machine's nbval does not go: with images, and as if there were a GPU."""

import os

import matplotlib
import numpy as np
import pytest
import torch

import normlib as nl
from normlib import recordings
from normlib.sweeps import training
from tests import guards
from tests.conftest import ROOT, noise, read

CHAPTER = ROOT / "notebooks" / "10_cifar10.ipynb"
IMAGES = os.environ.get("NORMLIB_CIFAR10")


@pytest.fixture
def chapter(monkeypatch, tmp_path, capsys):
    """Run its cells here, up to one that holds some words; what it printed and checked."""
    matplotlib.use("Agg")
    for name in ("NORMLIB_SIZE", "NORMLIB_KEEP", "NORMLIB_DATA", "NORMLIB_CIFAR10"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nl, "style", lambda: None)
    close = matplotlib.pyplot.close
    monkeypatch.setattr(nl, "show_figure", lambda figure, alt, caption="": close(figure))
    monkeypatch.setattr(
        nl, "scrubber", lambda values, draw, *rest, **words: [close(draw(v)) for v in values]
    )

    def run(start=None, stop=None, **names):
        begun = start is None
        for i, cell in enumerate(guards.code(read(CHAPTER))):
            if stop and stop in cell.source:
                break
            begun = begun or start in cell.source
            if begun or i < 2:
                exec(cell.source, names)
        return names, capsys.readouterr().out

    return run


@pytest.fixture
def gpu(chapter, monkeypatch):
    """As if torch saw a CUDA device, on which sweeps then run as on the CPU, at a small size."""
    full = recordings.full_size
    small = dict(
        net=nl.convnet(width=8, depth=1), epochs=10, batch_size=50, record_every=1, seed=[0, 1]
    )
    rates, decays = np.geomspace(1e-3, 3, 5), np.geomspace(1e-3, 3, 9)
    grid = dict(lr=rates, weight_decay=decays, device="cpu", chunk_size=32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(recordings, "fast_precision", lambda: "float32")
    monkeypatch.setattr(
        recordings,
        "full_size",
        lambda name, data, checkpoint_dir=None, **changes: full(
            name, data, checkpoint_dir, **small | grid | changes
        ),
    )
    monkeypatch.setattr(nl, "cifar10", lambda root: noise(100, 100, "CIFAR-10"))
    checked = []
    monkeypatch.setattr(nl, "check", lambda *a, **k: checked.append((*a[:2], k)))
    return checked


def test_with_a_gpu_it_trains_keeps_and_goes_on(chapter, gpu, monkeypatch, tmp_path):
    trained, train = [], training.train

    def note(spec, part, data, *rest, stop=None):
        if stop is None:
            trained.append(part.label)
        return train(spec, part, data, *rest, stop=stop)

    monkeypatch.setattr(training, "train", note)
    monkeypatch.setenv("NORMLIB_KEEP", str(tmp_path / "parts"))
    stop = "def usable"
    names, printed = chapter(stop=stop)
    assert names["GPU"]
    assert "hours; finished parts are kept in" in printed
    assert {path.name for path in (tmp_path / "parts").iterdir()} == set(recordings.FULL_SIZE)
    assert len(trained) == len(set(trained)) * 3
    count = len(trained)
    names, printed = chapter(stop=stop)
    assert len(trained) == count
    assert "about 0.0 hours" in printed
    # and of what was kept a recording can be made
    monkeypatch.setattr(recordings, "FOLDER", tmp_path)
    recordings.record("full_cifar10_adam", tmp_path / "parts" / "full_cifar10_adam")
    runs = nl.recorded("full_cifar10_adam").runs
    assert runs.attrs["data"] == "CIFAR-10"
    assert runs.test_error.equals(names["grids"]["Adam + L2"].test_error)


def test_with_a_gpu_every_check_is_live(chapter, gpu):
    """The cells after the grids run on what the GPU trained; one rate is recorded only."""
    chapter(stop="log ratio of the angle per step")
    assert len(gpu) > 10
    assert all(keywords["recorded"] is ("one_rate" in id) for id, _, keywords in gpu)


def test_with_a_gpu_but_no_network_it_shows_the_recordings(chapter, monkeypatch):
    def no_network(root):
        raise RuntimeError("CIFAR-10 could not be read from data (no route to host)")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nl, "cifar10", no_network)
    names, printed = chapter(stop="def draw")
    assert not names["GPU"]
    assert "no route to host" in printed
    assert "No CIFAR-10 images here" in printed
    assert "a JPEG copy" in printed


def test_make_gpu_fails_where_it_cannot_train(chapter, monkeypatch):
    def no_network(root):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nl, "cifar10", no_network)
    monkeypatch.setenv("NORMLIB_SIZE", "gpu")
    with pytest.raises(RuntimeError, match="no route to host"):
        chapter(stop="def draw")


def test_the_small_size_can_be_asked_for_on_a_gpu(chapter, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nl, "cifar10", lambda root: pytest.fail("a download was tried"))
    monkeypatch.setenv("NORMLIB_SIZE", "laptop")
    names, _ = chapter(stop="def draw")
    assert not names["GPU"]


def test_with_images_the_live_pairs_are_those_of_cifar10(chapter, monkeypatch):
    """The same predictions and bands as without; a check that fails raises."""
    if not IMAGES:
        pytest.skip("NORMLIB_CIFAR10 names no folder of images")
    monkeypatch.setenv("NORMLIB_CIFAR10", IMAGES)
    names, printed = chapter("partners = ", "Log ratio of angle per step for", MU=0.9)
    assert names["data"].shape == (3, 32, 32)
    assert printed.count("✓") == 3

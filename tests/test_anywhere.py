"""The chapters away from the repository: in an environment that has everything but normlib."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import normlib
from normlib import recordings
from tests import guards
from tests.conftest import CHAPTERS, ROOT, read


def set_up(chapter):
    return guards.code(read(chapter))[0].source


# What pip may use: this environment. "0" is how pip spells --no-build-isolation as a variable.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, env=os.environ | OFFLINE, check=True)
    (path,) = folder.iterdir()
    return path


def test_the_wheel_has_the_package_with_its_recordings_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    about = f"normlib-{normlib.__version__}.dist-info/"
    assert all(name.startswith(("normlib/", about)) for name in names)
    for file in recordings.FOLDER.rglob("*.nc"):
        assert f"normlib/recordings/{file.name}" in names
    assert {"normlib/__init__.pyi", "normlib/py.typed"} <= set(names)
    assert wheel.stat().st_size < 10e6


class Elsewhere:
    """A new environment with links to this one's packages, except normlib's."""

    def __init__(self, folder: Path, source: str) -> None:
        packages = folder / "packages"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
        )
        self.python = folder / "venv" / "bin" / "python"
        (self.site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        packages.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if entry.suffix != ".pth" and "normlib" not in entry.name:
                (packages / entry.name).symlink_to(entry)
        (self.site / "elsewhere.pth").write_text(f"{packages}\n")
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir()
        for chapter in CHAPTERS:
            shutil.copy(chapter, self.notebooks)
        hidden = ("PYTHONPATH", "NORMLIB_CIFAR10", "PYTEST_VERSION", "PYTEST_CURRENT_TEST")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment = kept | OFFLINE
        self.environment |= {"NORMLIB_SOURCE": source, "NORMLIB_SIZE": "laptop"}
        self.environment |= {"NORMLIB_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
        self.before = self.versions()

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.notebooks, env=self.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def versions(self) -> dict[str, str]:
        listed = json.loads(self.run("-m", "pip", "list", "--format", "json"))
        return {item["name"].lower(): item["version"] for item in listed}

    def execute(self, chapter: str) -> None:
        """Run a chapter as the book does; the repository is on the path of the runner alone."""
        runner = (
            "import pathlib, sys; sys.path.append(sys.argv[1]); from tools.notebooks import execute"
            "; execute(pathlib.Path(sys.argv[2]).resolve())"
        )
        self.run("-c", runner, str(ROOT), f"{chapter}.ipynb")

    def assert_that_normlib_alone_was_installed(self) -> None:
        assert "normlib" not in self.before
        assert self.versions() == self.before | {"normlib": normlib.__version__}
        new = {entry.name for entry in self.site.iterdir()} - {"elsewhere.pth"}
        assert new == {"normlib", f"normlib-{normlib.__version__}.dist-info"}
        where = self.run("-c", "import normlib, torch; print(normlib.__file__, torch.__file__)")
        package, torch = where.split()
        assert Path(package).is_relative_to(self.site)
        assert not Path(torch).is_relative_to(self.site)


@pytest.mark.skipif(os.name == "nt", reason="the new environment is made of symbolic links")
def test_from_the_wheel_every_set_up_works_and_a_chapter_runs(wheel, tmp_path):
    place = Elsewhere(tmp_path, str(wheel))
    cells = [set_up(chapter) for chapter in CHAPTERS]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    place.run("-c", cells[0])
    place.run("-c", "import json\nfor cell in json.load(open('../cells.json')): exec(cell, {})")
    place.execute("10_cifar10")
    place.assert_that_normlib_alone_was_installed()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.skipif(os.name == "nt", reason="the new environment is made of symbolic links")
def test_from_git_a_chapter_is_set_up_with_the_recordings(tmp_path):
    place = Elsewhere(tmp_path, f"git+file://{ROOT}")
    place.run("-c", set_up(CHAPTERS[0]) + "\nassert nl.recorded('nesterov').runs.sizes")
    place.assert_that_normlib_alone_was_installed()


# The set-up cell's decisions ----------------------------------------------------------------------


@pytest.fixture
def cell(monkeypatch, tmp_path):
    """Run the set-up cell up to its imports, as if normlib were missing, in a folder of its own."""
    source = set_up(CHAPTERS[0]).split("import matplotlib")[0]
    installed = []

    def pip(command, **_):
        installed.append(command)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    missing, find = {"normlib"}, importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    monkeypatch.delenv("NORMLIB_SOURCE", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return lambda: exec(source, {}), installed, missing


def test_it_installs_the_books_version_and_holds_torch_and_numpy(cell):
    run, installed, _ = cell
    run()
    (command,) = installed
    assert f"@v{normlib.__version__}" in command[5]
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy")]
    assert command[6:] == versions


def test_it_installs_nothing_where_normlib_is(cell):
    run, installed, missing = cell
    missing.clear()
    run()
    assert installed == []


def test_it_uses_a_checkout_that_is_not_installed(cell, monkeypatch):
    run, installed, _ = cell
    monkeypatch.chdir(ROOT / "notebooks")
    run()
    assert installed == []
    assert sys.path[0] == str(ROOT)


def test_it_installs_torch_and_numpy_where_they_are_missing(cell):
    run, installed, missing = cell
    missing |= {"torch", "numpy"}
    run()
    assert len(installed[0]) == 6


@pytest.mark.parametrize(
    ("name", "version", "enough"),
    [
        ("torch", "2.5.1+cu121", False),
        ("torch", "2.6.0", True),
        ("torch", "2.10.0a0+git1", True),
        ("numpy", "1.26.4", False),
        ("numpy", "2.0.2", True),
    ],
)
def test_a_library_that_is_too_old_is_said(cell, monkeypatch, name, version, enough):
    run, installed, _ = cell
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda asked: version if asked == name else real(asked)
    )
    message = rf"needs {name} 2\.\d or newer, and here is {version[0]}"
    with contextlib.nullcontext() if enough else pytest.raises(RuntimeError, match=message):
        run()
    assert len(installed) == enough


def test_the_oldest_versions_are_those_of_the_package():
    wanted = importlib.metadata.requires("normlib")
    assert {"torch>=2.6", "numpy>=2.0"} <= set(wanted)
    assert '("torch", (2, 6)), ("numpy", (2, 0))' in set_up(CHAPTERS[0])


def test_a_failed_installation_is_said(cell, monkeypatch):
    run, _, _ = cell
    failed = SimpleNamespace(returncode=1, stderr="no route to host")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: failed)
    with pytest.raises(RuntimeError, match=r"is there a network.*no route to host"):
        run()

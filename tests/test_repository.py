"""The repository agrees with itself: address, version, pins, layout."""

import ast
import itertools
import re
import subprocess
import tomllib

import pytest
import yaml

import normlib
from tests import guards
from tests.conftest import CHAPTERS, ROOT, read

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ADDRESS = PROJECT["project"]["urls"]["Repository"]
FILES = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
LAYERS = (
    "theory",
    "invariance",
    "audits",
    "parts",
    "datasets",
    "images",
    "rules",
    "nets",
    "sweeps",
    "recordings",
    "tradeoffs",
    "tracking",
    "book",
)


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_everything_that_carries_the_address_agrees():
    owner = ADDRESS.removeprefix("https://github.com/")
    config = yaml.safe_load(text("_config.yml"))
    assert config["repository"]["url"] == ADDRESS
    assert yaml.safe_load(text("CITATION.cff"))["repository-code"] == ADDRESS
    badges = re.findall(
        r"colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/(\w+)/(\S+?)\)", text("README.md")
    )
    assert badges
    for repository, branch, path in badges:
        assert repository == owner
        assert branch == config["repository"]["branch"]
        assert (ROOT / path).exists()
    for path in CHAPTERS:
        source = guards.code(read(path))[0].source
        assert f"git+{ADDRESS}@v{normlib.__version__}" in source
    # and nowhere else another address of a repository of ours
    for name in FILES:
        if name.endswith((".md", ".yml", ".toml", ".cff", ".ipynb", ".py")):
            for found in re.findall(r"github\.com/(OWNER/\w+|\w+/normlib)", text(name)):
                assert found == owner, name


def test_versions_agree():
    assert yaml.safe_load(text("CITATION.cff"))["version"] == normlib.__version__
    assert f"## {normlib.__version__}" in text("CHANGELOG.md")


def test_constraints_pin_every_direct_dependency():
    pinned = {line.split("==")[0].lower() for line in text("constraints.txt").splitlines() if line}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *itertools.chain(*extras.values())]
    names = {re.match(r"[A-Za-z0-9._-]+", item)[0].lower() for item in wanted} - {"normlib"}
    assert names <= pinned
    assert all("==" in line and "@" not in line for line in text("constraints.txt").splitlines())


def test_lower_bounds_only_move_neither_torch_nor_numpy():
    for item in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+>=[0-9.]+", item), item


MODULES = {
    path.relative_to(ROOT / "normlib").parts[0].removesuffix(".py"): path
    for path in sorted((ROOT / "normlib").rglob("*.py"))
    if path.name != "__main__.py" and path.parent.name + path.name != "normlib__init__.py"
}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    """A module imports only from those above it in the list."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("normlib"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    assert found <= set(LAYERS[: LAYERS.index(name)])
    assert ast.get_docstring(tree)


def test_every_public_name_is_documented():
    for name in normlib.__all__:
        doc = getattr(normlib, name).__doc__
        assert doc, name
        assert len(doc) > 40, name


def test_workflows_parse_and_say_that_they_have_not_run():
    workflows = [name for name in FILES if name.startswith(".github/workflows/")]
    assert {name.split("/")[-1] for name in workflows} >= {
        "test.yml",
        "pages.yml",
        "colab.yml",
        "release.yml",
    }
    for name in workflows:
        assert yaml.safe_load(text(name))["jobs"]
        assert "has not run yet" in text(name)


def test_no_code_names_a_certain_gpu():
    """``cuda`` is the device that the reader chose; a number after it would be another's."""
    for name in FILES:
        if name.startswith(("normlib/", "notebooks/", "tools/")) and name.endswith(
            (".py", ".ipynb")
        ):
            assert not re.search(r"cuda:\d|\.cuda\(", text(name)), name

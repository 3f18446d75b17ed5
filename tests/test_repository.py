"""The repository agrees with itself: address, version, pins, layout."""

import ast
import itertools
import json
import re
import subprocess
import sys
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
# From the ground up. A module imports only from lines above its own; a line may be a package,
# whose own modules are listed in their order too.
LAYERS = {
    "theory": (),
    "files": (),
    "validation": (),
    "diagnostics": (
        *("invariance", "symmetries", "pieces", "units", "operations"),
        *("exchange", "arguments", "probe", "advice", "charts", "reports", "audits", "command"),
        *("wrapping", "exponents", "rules", "equilibria"),
        *("measuring", "records", "selecting", "tracking"),
    ),
    "optimizers": ("rule", "torchs", "later", "walks"),
    "layers": (),
    "networks": (),
    "data": ("datasets", "images"),
    "sweeps": ("parts", "spec", "store", "training", "workers", "runs"),
    "recordings": ("definitions", "tables"),
    "analysis": (),
    "notebook": (
        *("predictions", "numberline", "display", "checks"),
        *("pictures", "figures", "scrubbers", "drawings"),
    ),
}
PACKAGE = ROOT / "normlib"


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


def test_what_is_cited_agrees():
    """CITATION.cff, Zenodo's metadata and the paper about the book; and its references exist."""
    citation = yaml.safe_load(text("CITATION.cff"))
    zenodo = json.loads(text(".zenodo.json"))
    paper = yaml.safe_load(text("paper.md").split("---")[1])
    assert paper["title"].startswith(citation["title"])
    assert zenodo["title"] == citation["title"]
    assert zenodo["version"] == citation["version"]
    assert zenodo["license"] == citation["license"]
    names = [author["name"] for author in citation["authors"]]
    assert [creator["name"] for creator in zenodo["creators"]] == names
    assert [author["name"] for author in paper["authors"]] == names
    known = set(re.findall(r"^@\w+\{(\w+),", text(paper["bibliography"]), re.M))
    assert set(re.findall(r"@(\w+)", text("paper.md").split("---")[2])) <= known


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
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__main__.py" and (path.parent != PACKAGE or path.stem in LAYERS)
}
ORDER = [
    name
    for layer, inner in LAYERS.items()
    for name in (*(f"{layer}.{module}" for module in inner), f"{layer}.__init__", layer)
]


def imported(tree):
    """Modules of the package that a module imports, as in ``sweeps.spec``; names left out."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("normlib"):
            base = node.module.removeprefix("normlib").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in ORDER else base)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    """A module imports only from those above it; the audit of a model only from `theory`."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    layer = name.split(".")[0]
    allowed = ORDER[: ORDER.index(name)]
    if layer == "diagnostics":
        allowed = ["theory", *(other for other in allowed if other.startswith("diagnostics."))]
    assert imported(tree) <= set(allowed)
    assert ast.get_docstring(tree)


def test_every_module_is_in_the_drawing():
    """And in the README's."""
    drawn = re.search(r"```text\nnormlib/\n(.*?)```", text("README.md"), re.S)[1]
    for layer, inner in LAYERS.items():
        assert re.search(rf"^  {layer}(\.py|/) ", drawn, re.M), layer
        for module in inner:
            assert module in drawn, module
    assert set(MODULES) <= set(ORDER)


def test_no_module_is_named_like_a_public_function():
    assert not {name.split(".")[-1] for name in MODULES} & set(normlib.__all__) - {
        "drawings", "recordings", "theory"
    }  # fmt: skip


def test_modules_are_short():
    long = {name: count for name, path in MODULES.items()
            if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400}  # fmt: skip
    assert not long


def test_importing_loads_only_what_is_used():
    """An audit needs neither plots nor sweeps nor tables of data."""
    code = (
        "import sys, normlib; assert 'torch' not in sys.modules;"
        "normlib.audit; loaded = {name.split('.')[0] for name in sys.modules};"
        "assert not loaded & {'matplotlib', 'scipy', 'sklearn', 'mnist1d', 'xarray'}, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_annotations_are_shipped(tmp_path):
    assert (PACKAGE / "py.typed").exists()
    stub = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
    names = {line.split()[-1] for line in stub.splitlines() if line.startswith("from")}
    assert names == set(normlib.__all__)


def test_every_public_name_is_documented():
    for name in normlib.__all__:
        doc = getattr(normlib, name).__doc__
        assert doc, name
        assert len(doc) > 40, name


def test_every_public_name_is_on_the_api_pages():
    """In the table of the first, and described in one of the others."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "book").glob("api*.md"))]
    index, others = pages[0], "\n".join(pages[1:])
    pattern = r"^\.\. auto(?:function|class|module):: (?:normlib\.)?(?:notebook\.)?(\w+)$"
    described = set(re.findall(pattern, others, re.M))
    for name in set(normlib.__all__) - {"recordings"}:
        assert name in described, name
        assert re.search(rf"^   {name}$|`nl\.{name}`", index, re.M), name


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

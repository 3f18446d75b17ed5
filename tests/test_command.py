"""``python -m normlib``: an audit from the command line, and what changed between two."""

import json
import subprocess
import sys

import pytest

from normlib.diagnostics.command import main

MODEL = """
import torch
from torch import nn

def with_norm(norm=True):
    middle = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(nn.Linear(5, 6), *middle, nn.ReLU()), torch.randn(16, 5)

def nothing():
    return nn.Linear(5, 6)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    return tmp_path / "mine.py"


def test_an_audit_says_where_its_inputs_came_from_and_how_much_decays(file, capsys):
    assert main(["audit", f"{file}:with_norm"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"inputs: of {file}:with_norm")
    assert "sets the learning rate" in said
    assert "% of the entries" in said


def test_a_changed_verdict_is_a_status_that_a_ci_sees(file, capsys):
    old, new = file.with_name("old.json"), file.with_name("new.json")
    assert main(["audit", f"{file}:with_norm", "--json", str(old)]) == 0
    assert main(["audit", f"{file}:with_norm", "--set", "norm=false", "--json", str(new)]) == 0
    assert json.loads(old.read_text())["tensors"]["0.weight"]["verdict"] == "invariant"
    capsys.readouterr()
    assert main(["diff", str(old), str(old)]) == 0
    assert main(["diff", str(old), str(new)]) == 1
    said = capsys.readouterr().out
    assert "0.weight: invariant -> not invariant" in said
    assert "1.weight: not invariant -> absent" in said


@pytest.mark.filterwarnings("ignore")  # of the libraries themselves
@pytest.mark.parametrize(
    "arguments",
    [
        ["torchvision:mobilenet_v3_small", "--batch", "3", "--pixels", "32"],
        ["timm:resnet10t", "--batch", "3", "--pixels", "32"],
        ["transformers:Qwen3", "--set", "num_hidden_layers=1", "hidden_size=16", "head_dim=8",
         "num_attention_heads=2", "num_key_value_heads=1", "intermediate_size=24", "vocab_size=30"],
    ],
)  # fmt: skip
def test_models_of_three_libraries_are_audited_by_name(arguments, capsys):
    assert main(["audit", *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("inputs: random")
    assert "Audit of" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "resnet18"], "names no model; write e.g. torchvision:resnet18"),
        (["audit", "keras:resnet18"], "'keras' is none of torchvision"),
        (["audit", "torchvision:resnet17"], "torchvision does not make 'resnet17'"),
        (["audit", "transformers:Lama"], "transformers has none of LamaForCausalLM"),
        (["audit", "none.py:model"], "none.py does not exist"),
        (["audit", "torchvision:resnet18", "--set", "x"], "--set takes KEY=VALUE, got 'x'"),
        (["diff", "none.json", "none.json"], "none.json"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_file_must_return_what_an_audit_takes(file, capsys):
    assert main(["audit", f"{file}:nothing"]) == 2
    assert "must return model, inputs" in capsys.readouterr().err


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "normlib", "--help"], capture_output=True, text=True, check=True
    )
    assert "python -m normlib diff old.json new.json" in done.stdout

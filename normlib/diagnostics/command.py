"""An audit from the command line, and what changed between two. Knows `audits`."""

import argparse
import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from normlib.diagnostics.audits import audit

EXAMPLES = """examples:
  python -m normlib audit torchvision:resnet18
  python -m normlib audit timm:vit_tiny_patch16_224 --pixels 224 --json new.json
  python -m normlib audit transformers:Llama --set num_hidden_layers=2 hidden_size=64
  python -m normlib audit train.py:make_model
  python -m normlib diff old.json new.json

FILE.py:FUNCTION returns a model and what nl.audit takes after it: model, inputs[, targets[, loss]].
diff ends with status 1 if a verdict changed, so that a CI notices."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 if all is well, 1 if a verdict changed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        "python -m normlib", description=__doc__.splitlines()[0], epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("audit", help="what weight decay does to each parameter of a model")
    one.add_argument("model", help="torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:NAME")
    one.add_argument("--json", type=Path, help="write the table there too")
    one.add_argument("--pixels", type=int, default=64, help="of random images (64)")
    one.add_argument("--tokens", type=int, default=32, help="of random text (32)")
    one.add_argument("--batch", type=int, default=8, help="examples (8)")
    one.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="model settings")
    one.add_argument("--weight-decay", type=float, default=0.1, help="of the groups shown (0.1)")
    two = commands.add_parser("diff", help="which verdicts changed between two --json files")
    two.add_argument("old", type=Path)
    two.add_argument("new", type=Path)
    given = parser.parse_args(arguments)
    try:
        return _diff(given.old, given.new) if given.command == "diff" else _audit(given)
    except (ValueError, TypeError, OSError) as error:
        print(f"normlib: {error}", file=sys.stderr)
        return 2


def _audit(given: argparse.Namespace) -> int:
    torch.manual_seed(0)
    arguments, source = _model(given)
    found = audit(*arguments)
    print(f"inputs: {source}")
    print(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table says how little decays
        print(found.param_groups(given.weight_decay, other=0.0))
    if given.json:
        table = found.to_dataframe()[["verdict", "per", "blocks", "decay", "note"]]
        content = {"model": given.model, "inputs": source, "tensors": table.to_dict("index")}
        given.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0


def _diff(old: Path, new: Path) -> int:
    before, after = (_verdicts(path) for path in (old, new))
    names = list(dict.fromkeys([*before, *after]))
    changed = [name for name in names if before.get(name) != after.get(name)]
    for name in changed:
        print(f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}")
    print(f"{len(changed)} of {len(names)} verdicts changed")
    return int(bool(changed))


def _verdicts(path: Path) -> dict[str, str]:
    try:
        tensors = json.loads(path.read_text("utf-8"))["tensors"]
        return {name: row["verdict"] for name, row in tensors.items()}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is no file that audit --json wrote") from None


def _model(given: argparse.Namespace) -> tuple[tuple[Any, ...], str]:
    """What `audit` takes, and where the inputs came from."""
    where, _, name = given.model.rpartition(":")
    if not where or not name:
        raise ValueError(f"{given.model!r} names no model; write e.g. torchvision:resnet18")
    settings = dict(_setting(one) for one in given.set)
    if where.endswith(".py"):
        made = _from_file(Path(where), name)(**settings)
        if not isinstance(made, tuple) or len(made) < 2:
            raise ValueError(f"{name} must return model, inputs[, targets[, loss]]")
        return made, f"of {given.model}"
    if where not in ("torchvision", "timm", "transformers"):
        raise ValueError(f"{where!r} is none of torchvision, timm, transformers and FILE.py")
    try:
        package = importlib.import_module("torchvision.models" if where == "torchvision" else where)
    except ImportError:
        raise ValueError(f"{where} is not installed: pip install {where}") from None
    if where == "transformers":
        return _language(package, name, given, settings)
    try:
        make = package.get_model if where == "torchvision" else package.create_model
        model = make(name, **settings)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{where} does not make {name!r}: {error}") from None
    images = torch.randn(given.batch, 3, given.pixels, given.pixels)
    return (model, images), f"random images {tuple(images.shape)}, squared distance as the loss"


def _language(
    package: Any, name: str, given: argparse.Namespace, settings: dict[str, Any]
) -> tuple[tuple[Any, ...], str]:
    kinds = [f"{name}{end}" for end in ("ForCausalLM", "LMHeadModel", "ForMaskedLM")]
    kind = next((kind for kind in kinds if hasattr(package, kind)), None)
    if kind is None or not hasattr(package, f"{name}Config"):
        raise ValueError(f"transformers has none of {', '.join(kinds)}; give e.g. Llama or GPT2")
    config = getattr(package, f"{name}Config")(**{"use_cache": False, **settings})
    model = getattr(package, kind)(config)
    ids = torch.randint(config.vocab_size, (given.batch, given.tokens))
    inputs = {"input_ids": ids, "labels": ids}
    source = f"random tokens {tuple(ids.shape)}, the model's own loss; random weights"
    return (model, inputs, None, lambda output: output.loss), source


def _from_file(path: Path, name: str) -> Any:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{path} has no {name}")
    return getattr(module, name)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value

"""Audit many published architectures and confirm every verdict by rescaling.

python tools/models.py                write book/models.csv, and models.txt with date and versions
python tools/models.py resnet18 llama only some, printed

Needs the extra ``models``: timm and transformers. Configurations are small and random.
"""

import argparse
import copy
import csv
import datetime
import importlib
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normlib as nl

TABLE = Path(__file__).resolve().parent.parent / "book" / "models.csv"
LABELS, EXACT, MOVED = torch.arange(8) % 4, 1e-7, 1e-12


class Case(NamedTuple):
    """A model, its inputs, targets and loss as `normlib.audit` takes them."""

    model: nn.Module
    inputs: Any
    targets: Tensor | None
    loss: Callable[..., Tensor] | None


def pictures(model: nn.Module, pixels: int = 64) -> Case:
    return Case(model, torch.randn(8, 3, pixels, pixels), LABELS, None)


def vision(name: str, **settings: Any) -> Callable[[], Case]:
    """Of torchvision."""
    return lambda: pictures(getattr(importlib.import_module("torchvision.models"), name)(
        num_classes=4, **settings
    ))  # fmt: skip


def timm(name: str, pixels: int = 64, **settings: Any) -> Callable[[], Case]:
    def make() -> Case:
        create = importlib.import_module("timm").create_model
        return pictures(create(name, num_classes=4, **settings), pixels)

    return make


def language(name: str, kind: str = "ForCausalLM", **settings: Any) -> Callable[[], Case]:
    """Of transformers, with two layers of width 32 and a vocabulary of 40."""
    small = {
        "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
    }  # fmt: skip

    def make() -> Case:
        module = importlib.import_module("transformers")
        config = getattr(module, f"{name}Config")(**{**small, **settings})
        ids = torch.randint(3, 40, (8, 16))
        model = getattr(module, f"{name}{kind}")(config)
        return Case(model, {"input_ids": ids, "labels": ids}, None, lambda out: out.loss)

    return make


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64, "patch_size": 16}
CASES: dict[str, Callable[[], Case]] = {
    **{name: vision(name) for name in (
        "alexnet", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v2",
        "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf", "efficientnet_b0",
    )},
    "vgg11_bn": lambda: pictures(nn.Sequential(
        *importlib.import_module("torchvision.models").vgg11_bn().features[:15], nn.Flatten(),
        nn.Linear(256 * 8 * 8, 4),
    )),
    "densenet": lambda: pictures(importlib.import_module("torchvision.models").DenseNet(
        8, (2, 2, 2), 16, num_classes=4
    )),
    **{name: timm(name, **settings) for name, settings in {
        "vit_tiny_patch16_224": VIT,
        "deit_tiny_patch16_224": VIT,
        "cait_xxs24_224": {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64},
        "beit_base_patch16_224": VIT,
        "eva02_tiny_patch14_224": {**VIT, "patch_size": 16},
        "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
        "convnextv2_atto": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
        "ghostnet_050": {},
        "lcnet_050": {},
        "nf_resnet26": {"pretrained": False},
        "tf_efficientnetv2_b0": {},
        "repvgg_a0": {},
        "hardcorenas_a": {},
        "xcit_nano_12_p16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64},
    }.items()},
    "mixer": lambda: pictures(importlib.import_module("timm.models.mlp_mixer").MlpMixer(
        num_classes=4, img_size=64, patch_size=16, num_blocks=2, embed_dim=48
    )),
    "convmixer": lambda: pictures(importlib.import_module("timm.models.convmixer").ConvMixer(
        32, 2, kernel_size=5, patch_size=8, num_classes=4
    )),
    "poolformer": lambda: pictures(importlib.import_module("timm.models.metaformer").MetaFormer(
        num_classes=4, depths=(1, 1, 1, 1), dims=(16, 24, 32, 48)
    )),
    "gpt2": language("GPT2", "LMHeadModel", **GPT2),
    "opt": language("OPT", ffn_dim=48, word_embed_proj_dim=32),
    "gpt_neox": language("GPTNeoX"),
    "bert": language("Bert", "ForMaskedLM"),
    "roberta": language("Roberta", "ForMaskedLM"),
    "llama": language("Llama"),
    "llama_tied": language("Llama", tie_word_embeddings=True),
    "mistral": language("Mistral"),
    "qwen2": language("Qwen2"),
    "qwen3": language("Qwen3", head_dim=8),
    "qwen3_moe": language("Qwen3Moe", **MOE),
    "mixtral": language("Mixtral", num_local_experts=4),
    "gemma": language("Gemma", head_dim=8),
    "gemma2": language("Gemma2", head_dim=8),
    "olmo2": language("Olmo2"),
    "phi3": language("Phi3"),
    "falcon": language("Falcon"),
    "bloom": language("Bloom", n_head=4, n_layer=2),
    "t5": lambda: _t5(),
}  # fmt: skip


def _t5() -> Case:
    module = importlib.import_module("transformers")
    config = module.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(3, 40, (8, 16))
    model = module.T5ForConditionalGeneration(config)
    return Case(model, {"input_ids": ids, "labels": ids}, None, lambda out: out.loss)


def rescaled_loss(case: Case) -> Callable[[dict[str, Tensor]], float]:
    """The loss of a copy at another point, in double precision, after factors on parameters.

    Independent of the audit: the model's own modules, with a small ε where they have one by name.
    """
    model = copy.deepcopy(case.model).double().train()
    if hasattr(model, "set_experts_implementation"):  # the others refuse double precision
        model.set_experts_implementation("eager")
    for module in model.modules():
        for name, value in vars(module).items():
            if name.endswith(("eps", "epsilon")) and isinstance(value, float):
                setattr(module, name, 1e-20)
            if isinstance(value, float) and ("drop" in name or name == "p"):
                setattr(module, name, 0.0)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            size = max(p.std(correction=0).item(), p[0].numel() ** -0.5 if p.ndim > 1 else 1.0)
            p.add_(0.3 * size * torch.randn(p.shape, generator=generator))
    named = dict(model.named_parameters())
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def narrow(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if is_float else value

    inputs = torch.utils._pytree.tree_map(narrow, case.inputs)

    @torch.no_grad()
    def loss(factors: dict[str, Tensor]) -> float:
        for name, b in model.named_buffers():
            b.copy_(buffers[name])
        kept = {name: named[name].clone() for name in factors}
        for name, factor in factors.items():
            named[name].mul_(factor)
        torch.manual_seed(3)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            value = case.loss(out) if case.loss else F.cross_entropy(out, case.targets)
        finally:
            torch.set_default_dtype(default)
        for name, old in kept.items():
            named[name].copy_(old)
        return value.item()

    return loss


def factors(found: nl.Audit, exponents: dict[str, int], each: np.ndarray) -> dict[str, Tensor]:
    """Powers of `each`, one a block, where pieces of the audit's table lie; 1 elsewhere."""
    table, made = found.to_dataframe(), dict[str, Tensor]()
    for name, exponent in exponents.items():
        number, count = found.blocks(name), max(int(table.blocks[name]), 1)
        powers = torch.as_tensor(each**exponent)[number.clamp(min=0) * len(each) // count]
        parameter = table.parameter[name]
        factor = torch.where(number < 0, 1.0, powers)
        made[parameter] = made.get(parameter, torch.tensor(1.0)) * factor
    return made


def faults(case: Case, found: nl.Audit) -> list[str]:
    """Verdicts that rescaling by 8 and 1/8 contradicts, block by block."""
    loss, table = rescaled_loss(case), found.to_dataframe()
    before, wrong = loss({}), []
    draw = np.random.default_rng(1)

    def moved(exponents: dict[str, int], blocks: int) -> float:
        each = 8.0 ** draw.choice([-1, 1], blocks) if blocks > 1 else np.array([8.0])
        return abs(loss(factors(found, exponents, each)) - before) / abs(before)

    for name, row in table.iterrows():
        if row.verdict == "invariant" and moved({name: 1}, row.blocks) > EXACT:
            wrong.append(f"{name} is called invariant")
        if row.verdict == "no effect" and moved({name: 1}, 1) > EXACT:
            wrong.append(f"{name} is said to have no effect")
        if row.verdict == "not invariant" and moved({name: 1}, 1) < MOVED:
            wrong.append(f"{name} is called not invariant")
    wrong += [f"the group of {next(iter(g))}" for g in found.groups if moved(g, 1) > EXACT]
    return wrong


def tried(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    case = CASES[name]()
    start = time.perf_counter()
    found = nl.audit(*case)
    seconds = time.perf_counter() - start
    counts = found.to_dataframe().verdict.value_counts()
    kinds = ("invariant", "joint", "inverse", "no effect", "not invariant", "undecided")
    return {
        "model": name,
        "tensors": len(found.to_dataframe()),
        **{kind: int(counts.get(kind, 0)) for kind in kinds},
        "groups": len(found.groups),
        "wrong": "; ".join(faults(case, found)),
        "notes": "; ".join(found.notes),
        "seconds": round(seconds, 1),
    }


def main(names: Iterable[str]) -> None:
    rows = []
    for name in names or CASES:
        try:
            rows.append(tried(name))
        except Exception as error:
            rows.append({"model": name, "wrong": f"{type(error).__name__}: {error}"})
        print(rows[-1], flush=True)
    if not names:
        rows.sort(key=lambda row: list(CASES).index(row["model"]))
        fields = [key for key in rows[0] if key not in ("notes", "undecided")]
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, fields, restval="", extrasaction="ignore", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)
        packages = ("torch", "torchvision", "timm", "transformers")
        used = ", ".join(f"{package} {version(package)}" for package in packages)
        about = f"Made on {datetime.date.today()}: {used}.\n"
        TABLE.with_suffix(".txt").write_text(about, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    main(parser.parse_args().names)

"""The audit of any model: its verdicts are confirmed by rescaling, independently of the module."""

import copy
import random
import warnings
from collections import deque, namedtuple
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import convnext, efficientnet, regnet, vgg
from torchvision.ops import StochasticDepth

import normlib as nl


def vgg11_bn():
    layers = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]
    model = vgg.VGG(vgg.make_layers(layers, batch_norm=True), init_weights=False)
    sizes = (64 * 49, 64), (64, 64), (64, 10)
    for place, size in zip((0, 3, 6), sizes, strict=True):
        model.classifier[place] = nn.Linear(*size)
    return model


def efficientnet_b0():
    blocks = [
        efficientnet.MBConvConfig(*setting, width_mult=0.25, depth_mult=1.0)
        for setting in (
            (1, 3, 1, 64, 32, 1),
            (6, 3, 2, 32, 24, 2),
            (6, 5, 2, 24, 40, 2),
            (6, 3, 2, 40, 80, 3),
            (6, 5, 1, 80, 112, 3),
            (6, 5, 2, 112, 192, 4),
            (6, 3, 1, 192, 320, 1),
        )
    ]
    return efficientnet.EfficientNet(blocks, dropout=0.2, num_classes=10)


def convnext_tiny():
    widths = (16, 32, 3), (32, 64, 3), (64, 128, 9), (128, None, 3)
    return convnext.ConvNeXt([convnext.CNBlockConfig(*w) for w in widths], num_classes=10)


# Torchvision's architectures with all their tensors; the large ones have narrower layers.
ZOO = {
    "resnet18": (lambda: zoo.resnet18(num_classes=10), 32),
    "vgg11_bn": (vgg11_bn, 32),
    "densenet121": (lambda: zoo.DenseNet(4, (6, 12, 24, 16), 8, bn_size=2, num_classes=10), 32),
    "mobilenet_v3_small": (lambda: zoo.mobilenet_v3_small(num_classes=10), 48),
    "efficientnet_b0": (efficientnet_b0, 48),
    "convnext_tiny": (convnext_tiny, 32),
    "vit_b_16": (lambda: zoo.VisionTransformer(32, 16, 12, 12, 48, 96, num_classes=10), 32),
    "swin_t": (
        lambda: zoo.SwinTransformer(
            [4, 4], 24, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7], num_classes=10
        ),
        48,
    ),
}

# How many tensors are invariant, joint, inverse, without effect, and not invariant.
COUNTS = {
    "resnet18": (20, 34, 7, 0, 1),
    "vgg11_bn": (8, 14, 7, 8, 1),
    "densenet121": (120, 240, 3, 0, 1),
    "mobilenet_v3_small": (35, 18, 29, 11, 49),
    "efficientnet_b0": (51, 14, 0, 16, 132),
    "convnext_tiny": (0, 106, 57, 0, 19),
    "vit_b_16": (0, 76, 99, 12, 13),
    "swin_t": (0, 85, 99, 12, 25),
}


class Rescaling:
    """A float64 copy of a model at a generic point, with tiny ε and without dropout; its loss."""

    def __init__(self, model, inputs, loss):
        torch.manual_seed(77)
        self.model = copy.deepcopy(model).double().train()
        self.inputs, self.loss = inputs, loss
        for module in self.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            for eps in ("eps", "variance_epsilon", "small"):
                if hasattr(module, eps):
                    setattr(module, eps, 1e-20)
            module.narrow = torch.float64
        with torch.no_grad():
            for p in self.model.parameters():
                if p.requires_grad:
                    spread = (p[0].numel() if p.ndim > 1 else 1) ** -0.5
                    p.add_(0.3 * max(p.std(correction=0).item(), spread) * torch.randn_like(p))
        self.named = dict(self.model.named_parameters())
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        self.before = self.value()

    @torch.no_grad()
    def value(self):
        for name, b in self.model.named_buffers():
            b.copy_(self.buffers[name])
        torch.manual_seed(5)  # the same dropout every time
        return self.loss(self.model(self.inputs)).item()

    def change(self, edits):
        """Relative change of the loss when parameters are replaced by a function of them."""
        kept = {name: self.named[name].detach().clone() for name in edits}
        with torch.no_grad():
            for name, edit in edits.items():
                self.named[name].copy_(edit(self.named[name]))
            after = self.value()
            for name, old in kept.items():
                self.named[name].copy_(old)
        return abs(after - self.before) / abs(self.before)


def edits(found, exponents, factors):
    """Multiplies blocks of rows of the audit's table by powers of their factors."""
    table, made = found.to_dataframe(), {}
    for name, exponent in exponents.items():
        number, count = found.blocks(name), max(table.blocks[name], 1)
        own = torch.tensor(factors**exponent)[(number.clamp(min=0) * len(factors)) // count]
        each = torch.where(number < 0, 1.0, own)
        parameter = table.parameter[name]
        made[parameter] = made.get(parameter, 1.0) * each
    return {name: lambda w, each=each: w * each for name, each in made.items()}


def confirm(found, model, inputs, loss):
    """Every verdict, against what rescaling and replacing does to the loss."""
    point, table = Rescaling(model, inputs, loss), found.to_dataframe()
    rng = np.random.default_rng(5)

    def factors(blocks):
        return rng.uniform(0.3, 3, blocks)

    for name, row in table.iterrows():
        if row.verdict == "invariant":
            assert point.change(edits(found, {name: 1}, factors(row.blocks))) < 1e-9, name
        elif row.verdict == "no effect":
            outside = found.blocks(name) < 0
            other = {row.parameter: lambda w, o=outside: torch.where(o, w, 5 * torch.randn_like(w))}
            assert point.change(other) < 1e-9, name
        elif row.verdict != "undecided":
            assert point.change(edits(found, {name: 1}, np.array([2.7]))) > 1e-8, name
        positions = {k for k, group in enumerate(found.groups) if name in group}
        assert positions == set(row.groups)
        assert bool(positions) == (row.verdict in ("joint", "inverse"))
    finest = dict.fromkeys(table.index[table.groups.map(bool)], 0)
    for group in found.groups:
        for blocks in {1, *(table.blocks[name] for name in group)}:
            if all(table.blocks[name] % blocks == 0 for name in group):
                change = point.change(edits(found, group, factors(blocks)))
                assert blocks > 1 or change < 1e-9, group
                for name in group:
                    finest[name] = max(finest[name], blocks if change < 1e-9 else 0)
    assert finest == {name: table.blocks[name] for name in finest}


@pytest.fixture(scope="module", params=ZOO)
def case(request):
    """A model of torchvision, a batch, a loss, and its audit."""
    make, pixels = ZOO[request.param]
    torch.manual_seed(0)
    model = make()
    inputs, targets = torch.randn(6, 3, pixels, pixels), torch.randint(10, (6,))
    return request.param, model, inputs, targets, nl.audit(model, inputs, targets)


def test_every_verdict_on_torchvision_models_is_confirmed_by_rescaling(case):
    _, model, inputs, targets, found = case
    inputs = torch.randn_like(inputs)[:3].double()
    confirm(found, model, inputs, lambda output: F.cross_entropy(output, targets[:3]))


def test_torchvision_models_have_the_known_numbers_of_symmetric_tensors(case):
    name, *_, found = case
    verdicts = found.to_dataframe().verdict.value_counts()
    kinds = "invariant", "joint", "inverse", "no effect", "not invariant"
    assert tuple(verdicts.get(kind, 0) for kind in kinds) == COUNTS[name]
    assert verdicts.get("undecided", 0) == 0


class Attention(nn.Module):
    """Self-attention with two heads, normalized queries and keys, and projections of their own."""

    def __init__(self, bias=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=bias) for _ in range(3))
        self.q_norm, self.k_norm = nn.RMSNorm(4), nn.LayerNorm(4)
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 9)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embedding(tokens)))


class RootMeanSquare(nn.Module):
    """As language models have it: single precision by name, and a name of its own for ε."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), 1e-6
        self.narrow = torch.float32

    def forward(self, x):
        wide = x.to(self.narrow)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(x.dtype)


class Functional(nn.Module):
    """Norms without modules, whose ε is no attribute that an audit knows, and such a dropout."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.head, self.small = nn.Linear(6, 3), 1e-3

    def forward(self, x):
        x = F.layer_norm(self.one(x), (6,), eps=self.small).tanh()
        return self.head(F.dropout(F.normalize(self.two(x), eps=self.small), 0.5, self.training))


def encoder(norm_first, activation="relu"):
    layer = nn.TransformerEncoderLayer(
        8, 2, 12, batch_first=True, norm_first=norm_first, activation=activation
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def images(norm, *, bias=True):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=bias), norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)
    )


def vectors(*layers):
    return nn.Sequential(*layers, nn.SiLU(), nn.Linear(6, 3))


def invariant(*kinds):
    return dict.fromkeys(kinds[1:], ("invariant", kinds[0]))


def joint(*kinds):
    return dict.fromkeys(kinds[1:], ("joint", kinds[0]))


PICTURE, SEQUENCE, ROWS = (8, 2, 8, 8), (6, 5, 8), (16, 5)
# Model, shape of its input, and verdict and granularity of some of its tensors.
SMALL = {
    "batch norm": (
        lambda: images(nn.BatchNorm2d(6)),
        PICTURE,
        {**invariant("channel", "0.weight"), "0.bias": ("no effect", "")},
    ),
    "instance norm": (
        lambda: images(nn.InstanceNorm2d(6, affine=True)),
        PICTURE,
        {**invariant("channel", "0.weight"), "0.bias": ("no effect", "")},
    ),
    "group norm": (
        lambda: images(nn.GroupNorm(3, 6)),
        PICTURE,
        joint("head", "0.weight", "0.bias"),
    ),
    "group norm without bias": (
        lambda: images(nn.GroupNorm(3, 6), bias=False),
        PICTURE,
        invariant("head", "0.weight"),
    ),
    "layer norm": (
        lambda: vectors(nn.Linear(5, 6), nn.LayerNorm(6)),
        ROWS,
        joint("tensor", "0.weight", "0.bias"),
    ),
    "rms norm": (
        lambda: vectors(nn.Linear(5, 6, bias=False), nn.RMSNorm(6)),
        ROWS,
        invariant("tensor", "0.weight"),
    ),
    "home-made rms norm": (
        lambda: vectors(nn.Linear(5, 6, bias=False), RootMeanSquare(6)),
        ROWS,
        invariant("tensor", "0.weight"),
    ),
    "functional": (Functional, ROWS, invariant("tensor", "one.weight", "two.weight")),
    "weight norm": (
        lambda: vectors(nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))),
        ROWS,
        {
            **invariant("channel", "0.parametrizations.weight.original1"),
            "0.parametrizations.weight.original0": ("not invariant", ""),
        },
    ),
    "spectral norm": (
        lambda: vectors(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6))),
        ROWS,
        invariant("tensor", "0.parametrizations.weight.original"),
    ),
    "queries and keys": (Attention, SEQUENCE, invariant("head", "q.weight", "k.weight")),
    "queries and keys with bias": (
        lambda: Attention(bias=True),
        SEQUENCE,
        {**joint("head", "q.weight", "q.bias"), "k_norm.bias": ("no effect", "")},
    ),
    "encoder, norms after": (
        lambda: encoder(False),
        SEQUENCE,
        {
            "layers.0.self_attn.in_proj_bias[k]": ("no effect", ""),
            "layers.1.self_attn.in_proj_weight[q]": ("inverse", "channel"),
        },
    ),
    "encoder, norms first": (
        lambda: encoder(True, "gelu"),
        SEQUENCE,
        {
            "layers.0.self_attn.in_proj_bias[k]": ("no effect", ""),
            "layers.0.self_attn.in_proj_weight[v]": ("inverse", "tensor"),
            "layers.1.linear1.weight": ("inverse", "tensor"),
        },
    ),
    "dropout": (
        lambda: vectors(nn.Dropout(0.3), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)),
        ROWS,
        {**invariant("channel", "1.weight"), "1.bias": ("no effect", "")},
    ),
    "no norm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.SiLU()),
        ROWS,
        {"0.weight": ("inverse", "tensor"), "2.bias": ("not invariant", "")},
    ),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("full", [False, True])
def test_every_verdict_on_small_models_is_confirmed_by_rescaling(name, full):
    make, shape, expected = SMALL[name]
    torch.manual_seed(1)
    model, inputs = make(), torch.randn(shape)
    found = nl.audit(model, inputs, full=full)
    table = found.to_dataframe()
    assert {key: (table.verdict[key], table.per[key]) for key in expected} == expected
    target = torch.randn_like(model(inputs)).double()
    confirm(found, model, inputs.double(), lambda output: F.mse_loss(output, target))


class Hidden(nn.Module):
    """Stochastic depth of another name, by example."""

    def forward(self, x):
        return (x * (torch.rand(len(x), 1) < 0.5)) if self.training else x


class Masked(nn.Linear):
    """Functional dropout in a layer with weights, and in attention over the batch."""

    def forward(self, x):
        x = F.dropout(super().forward(x), 0.5, self.training)
        return x + F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 * self.training)


class Undropped(nn.Linear):
    def forward(self, x):
        x = super().forward(x)
        return x + F.scaled_dot_product_attention(x, x, x)


class Residual(nn.Module):
    """A residual block whose second bias goes with the next batch norm, were it not for `drop`."""

    def __init__(self, drop, linear=nn.Linear):
        super().__init__()
        self.drop, self.one, self.two = drop, linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.drop(self.two(self.one(x).relu()))


def residual(drop, linear=nn.Linear):
    torch.manual_seed(3)
    last = nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)
    return nn.Sequential(Residual(drop, linear), *last)


DROPOUTS = {
    "dropout": (nn.Dropout(0.5), nn.Linear),
    "in place": (nn.Dropout(0.5, inplace=True), nn.Linear),
    "alpha": (nn.AlphaDropout(0.5), nn.Linear),
    "depth by example": (StochasticDepth(0.5, "row"), nn.Linear),
    "depth by batch": (StochasticDepth(0.9, "batch"), nn.Linear),
    "of another name": (Hidden(), nn.Linear),
    "functional": (nn.Identity(), Masked),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_of_every_kind_leaves_the_audit(name):
    drop, linear = DROPOUTS[name]
    inputs = torch.randn(12, 6)
    plain = residual(nn.Identity(), Undropped if linear is Masked else linear)
    expected, found = (nl.audit(m, inputs) for m in (plain, residual(drop, linear)))
    assert expected.to_dataframe().verdict["0.two.bias"] == "no effect"
    assert found.groups == expected.groups
    assert found.to_dataframe().equals(expected.to_dataframe())


def test_dropout_of_attention_and_recurrence_leaves_the_audit():
    for make in (
        lambda p: nn.LSTM(8, 6, 2, dropout=p, batch_first=True),
        lambda p: nn.TransformerEncoderLayer(8, 2, 12, dropout=p, batch_first=True),
    ):
        tables = []
        for p in (0.0, 0.5):
            torch.manual_seed(4)
            model = make(p)
            loss = lambda out: (out if isinstance(out, torch.Tensor) else out[0]).pow(3).mean()  # noqa: E731
            tables.append(nl.audit(model, torch.randn(SEQUENCE), loss=loss).to_dataframe())
        assert tables[0].equals(tables[1])


@pytest.mark.parametrize("seed", range(4))
def test_blocks_that_are_left_out_at_random_lose_no_verdict(seed):
    """At a single point half of the blocks are not used: nothing there is dead or without use."""

    class Skipped(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.layer, self.norm, self.p = nn.Linear(6, 6), nn.BatchNorm1d(6), p

        def forward(self, x):
            if self.training and torch.rand(()) < self.p:
                return x
            return x + self.norm(self.layer(x)).relu()

    verdicts = []
    for p in (0.0, 0.5):
        torch.manual_seed(5)
        model = nn.Sequential(*[Skipped(p) for _ in range(4)], nn.Linear(6, 3))
        verdicts.append(nl.audit(model, torch.randn(12, 6), seed=seed).to_dataframe().verdict)
    assert verdicts[1].tolist() == verdicts[0].tolist()
    assert set(verdicts[0]) == {"invariant", "no effect", "not invariant"}


class RaindropNet(nn.Module):
    """No dropout: a batch norm of its own, which knows training from evaluation."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))

    def forward(self, x):
        x = F.batch_norm(self.layer(x), self.mean, self.variance, training=self.training)
        return self.head(x.relu())


class Damped(nn.Linear):
    """Has a number named dropout that is no probability."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.dropout = 0.5

    def forward(self, x):
        return super().forward(x) * self.dropout


@pytest.mark.parametrize(
    ("make", "weight"),
    [
        (RaindropNet, "layer.weight"),
        (lambda: type("DropInWrapper", (RaindropNet,), {})(), "layer.weight"),
        (lambda: vectors(Damped(5, 6), nn.BatchNorm1d(6)), "0.weight"),
    ],
)
def test_a_name_with_drop_in_it_means_nothing(make, weight):
    assert nl.audit(make(), torch.randn(ROWS)).invariant == [weight]


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Rounded(nn.Module):
    def forward(self, x):
        return x if self.training else x.round()


def test_what_is_no_dropout_acts_as_in_training():
    """Noise of a fixed size breaks the invariance; a layer that rounds afterwards has gradients."""
    for layer, verdict in ((Noisy(), "not invariant"), (Rounded(), "invariant")):
        model = vectors(nn.Linear(5, 6), layer, nn.BatchNorm1d(6))
        table = nl.audit(model, torch.randn(ROWS)).to_dataframe()
        assert table.verdict["0.weight"] == verdict


def test_a_compiled_model_is_audited_as_it_is():
    model, inputs = images(nn.BatchNorm2d(6)), torch.randn(PICTURE)
    model.insert(3, nn.Dropout(0.5))
    compiled = torch.compile(model, backend="eager")
    compiled(inputs)
    expected, found = nl.audit(model, inputs), nl.audit(compiled, inputs)
    assert found.to_dataframe().verdict.tolist() == expected.to_dataframe().verdict.tolist()


def test_a_tied_weight_is_one_parameter():
    model, tokens = Tied(), torch.randint(9, (8, 5))
    found = nl.audit(model, tokens, tokens.roll(1, 1))
    assert list(found.to_dataframe().index) == [
        "embedding.weight",
        "norm.weight",
        "norm.bias",
        "head.bias",
    ]
    assert found.to_dataframe().verdict["embedding.weight"] == "inverse"
    confirm(found, model, tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten()))
    assert sum(len(group["params"]) for group in found.param_groups(0.1, other=0.0)) == 4


def test_a_frozen_parameter_is_part_of_the_function():
    """With its bias frozen a layer before layer norm is not invariant; it was with it."""
    model = vectors(nn.Linear(5, 6), nn.LayerNorm(6))
    model[0].bias.requires_grad_(False)
    found = nl.audit(model, torch.randn(ROWS))
    table = found.to_dataframe()
    assert (table.verdict["0.bias"], table.note["0.bias"]) == ("undecided", "frozen")
    assert np.isnan(table.gradient_norm["0.bias"])
    assert table.verdict["0.weight"] == "not invariant"
    target = torch.randn(16, 3).double()
    confirm(found, model, torch.randn(ROWS).double(), lambda output: F.mse_loss(output, target))


def test_a_transposed_convolution_is_invariant_per_output_channel():
    model = nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 10))
    inputs = torch.randn(PICTURE)
    table = nl.audit(model, inputs).to_dataframe()
    assert table.loc["0.weight", ["verdict", "per", "blocks"]].tolist() == [
        "invariant",
        "channel",
        6,
    ]
    point = Rescaling(model, inputs.double(), lambda output: output.square().mean())
    factors = torch.linspace(0.5, 3, 6, dtype=torch.float64).view(1, 6, 1, 1)
    assert point.change({"0.weight": lambda w: w * factors}) < 1e-9
    assert point.change({"0.weight": lambda w: w * factors[:, :2].mT.reshape(2, 1, 1, 1)}) > 1e-8


def test_a_gain_before_batch_norm_matters_by_its_sign_only():
    """It gets no gradient, and decay would shrink it until ε is felt: no decay for it."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6, bias=False))
    model = vectors(layer, nn.BatchNorm1d(6))
    found = nl.audit(model, torch.randn(ROWS))
    row = found.to_dataframe().loc["0.parametrizations.weight.original0"]
    assert (row.verdict, row.per, row.decay) == ("invariant", "channel", "nothing")
    assert row.note == "only its sign matters"
    decayed = found.param_groups(0.1, other=0.0)[0]
    assert [p.shape for p in decayed["params"]] == [(6, 5)]
    target = torch.randn(16, 3).double()
    confirm(found, model, torch.randn(ROWS).double(), lambda output: F.mse_loss(output, target))


def test_clipping_is_not_mistaken_for_homogeneity():
    """Where no unit reaches 6, ReLU6 is ReLU: only a large change of scale tells them apart."""
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU6(), nn.Linear(6, 3))
    found = nl.audit(model, torch.randn(ROWS), full=True)
    table = found.to_dataframe()
    assert found.groups == []
    assert found.invariant == ["0.weight"]
    assert table.note["3.weight"] == "invariant to small changes of scale only"
    target = torch.randn(16, 3).double()
    confirm(found, model, torch.randn(ROWS).double(), lambda output: F.mse_loss(output, target))


def test_what_is_dead_or_unused_is_undecided():
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100)
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    table = nl.audit(model, torch.randn(ROWS)).to_dataframe()
    assert table.verdict.tolist() == ["undecided"] * 3 + ["not invariant"] + ["undecided"] * 2
    assert table.note[:3].tolist() == ["dead on this data"] * 3
    assert table.note[4:].tolist() == ["the loss does not use it"] * 2


@pytest.mark.parametrize("make", ["transformer", "regnet"])
def test_groups_along_the_residual_stream_are_found_as_by_a_full_search(make):
    """The full search knows nothing of operations; both find the same space, whatever the seed."""
    torch.manual_seed(0)
    if make == "transformer":
        model = zoo.VisionTransformer(32, 16, 3, 2, 12, 24, num_classes=10)
    else:
        shape = regnet.BlockParams([3], [16], [8], [1.0], [2])
        model = regnet.RegNet(shape, num_classes=10, stem_width=8)
    inputs, targets = torch.randn(6, 3, 32, 32), torch.randint(10, (6,))
    found = nl.audit(model, inputs, targets)
    full = nl.audit(model, inputs, targets, full=True, seed=7)
    assert found.groups == full.groups
    assert found.to_dataframe().verdict.equals(full.to_dataframe().verdict)
    stream = set(max(found.groups, key=len))
    if make == "transformer":
        assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} < stream
        assert len(stream) == 4 + 4 * 3  # input, then out_proj and second MLP layer in 3 blocks
    else:
        ends = ["0.proj", *(f"{k}.f.c" for k in range(3))]
        stage = "trunk_output.block1.block1-"
        assert stream > {f"{stage}{end}.1.{w}" for end in ends for w in ("weight", "bias")}
    inputs = torch.randn(3, 3, 32, 32).double()
    confirm(found, model, inputs, lambda output: F.cross_entropy(output, targets[:3]))


def counting(module, inputs):
    """A user's hook that changes the module it is on."""
    module.calls = getattr(module, "calls", 0) + 1


class Recurrent(nn.Module):
    """Parameters that are also in a list of torch's own; draws random numbers of three kinds."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head, self.seen = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3), []

    def forward(self, x):
        self.seen.append(x)
        self.last = x + 0 * (torch.rand(1).item() + np.random.rand() + random.random())
        return self.head(self.lstm(self.last)[0][:, -1])


@dataclass
class Cache:
    keys: list = field(default_factory=lambda: [(torch.eye(5), [torch.zeros(5)])])
    calls: int = 0
    owner: nn.Module | None = None


class Slotted:
    __slots__ = ("inner", "late")

    def __init__(self):
        self.inner = {"scale": torch.ones(5)}


Pair = namedtuple("Pair", ["tensor", "seen"])


class Hoarder(nn.Module):
    """Holds tensors and state in whatever can be nested, and changes all of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.cache = {"blocks": [Cache(owner=self)], "log": {"lines": [[]]}}
        self.pair = (Pair(torch.ones(5), []), frozenset({torch.ones(5)}))
        self.space = SimpleNamespace(slotted=Slotted(), recent=deque([torch.ones(5)], maxlen=2))
        self.arrays = [np.ones(2), {"deep": np.zeros(3)}, np.frombuffer(b"fixed", np.uint8)]
        self.chance = {"torch": torch.Generator(), "numpy": [np.random.default_rng(0)]}
        self.chance |= {"python": random.Random(0), "old": np.random.RandomState(0)}
        self.bag = [{1, 2}]

    def forward(self, x):
        block, slotted = self.cache["blocks"][0], self.space.slotted
        key, (total,) = block.keys[0]
        x = x @ key + total + slotted.inner["scale"]  # all in the precision of x
        total.add_(1)
        key[0, 0] += 1
        slotted.inner["scale"] *= 2
        slotted.inner["last"] = slotted.late = x
        block.keys.append(x)
        block.calls += 1
        self.cache["log"]["lines"][0].append(x)
        self.pair[0].tensor.mul_(2)
        self.pair[0].seen.append(x)
        next(iter(self.pair[1])).mul_(2)
        self.space.recent[-1].mul_(3)
        self.space.recent.append(x)
        self.arrays[0] += 1
        self.arrays[1]["deep"][1] = 5
        self.bag[0].add(3)
        torch.rand(1, generator=self.chance["torch"])
        for kind in (*self.chance["numpy"], self.chance["python"], self.chance["old"]):
            (kind.rand if kind is self.chance["old"] else kind.random)()
        return self.layer(x)


class Broken(nn.Sequential):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("stop")


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return vectors(nn.utils.weight_norm(nn.Linear(5, 6)))


UNTOUCHED = {
    **{name: SMALL[name][:2] for name in ("batch norm", "spectral norm", "dropout", "functional")},
    "encoder": SMALL["encoder, norms first"][:2],
    "recurrent": (Recurrent, SEQUENCE),
    "weight norm as a hook": (old_weight_norm, ROWS),
    "broken": (lambda: Broken(nn.Linear(5, 6), nn.BatchNorm1d(6)), ROWS),
    "nested state": (Hoarder, ROWS),
    "double": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)).double(), ROWS),
}


def bits(value):
    """Anything that a module holds, so that equal means untouched; tensors by place and content."""
    if isinstance(value, torch.Tensor):
        grad = None if value.grad is None else bits(value.grad)
        content = value.detach().numpy().tobytes()
        return id(value), value.dtype, value.requires_grad, value._version, content, grad
    if isinstance(value, dict):
        return id(value), [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return id(value), [bits(item) for item in value]
    if isinstance(value, Cache | SimpleNamespace):
        return id(value), bits({k: item for k, item in vars(value).items() if k != "owner"})[1]
    if isinstance(value, Slotted):
        return id(value), bits(value.inner), hasattr(value, "late")
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes()
    if isinstance(value, torch.Generator):
        return id(value), value.get_state().tolist()
    if isinstance(value, random.Random | np.random.RandomState | np.random.Generator):
        state = getattr(value, "bit_generator", value).__getstate__()
        return id(value), repr(state)
    return id(value), repr(value) if isinstance(value, bool | int | float | str) else None


def everything(model, inputs):
    chance = torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1:3]
    return bits(inputs), [bits(vars(m)) for m in model.modules()], repr(chance)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", UNTOUCHED)
def test_an_audit_leaves_no_trace(name):
    """Values, buffers, gradients, flags, modes, hooks, attributes, lists, inputs, random state."""
    make, shape = UNTOUCHED[name]
    model = make()
    inputs = torch.randn(shape, dtype=next(model.parameters()).dtype)
    model.eval()
    next(model.children()).train()
    next(model.children()).register_forward_pre_hook(counting)
    for k, p in enumerate(model.parameters()):
        p.grad = torch.randn_like(p) if k % 2 else None
    list(model.parameters())[-1].requires_grad_(False)
    default, before = torch.get_default_dtype(), everything(model, inputs)
    with torch.inference_mode(), pytest.raises(RuntimeError) if name == "broken" else nullcontext():
        nl.audit(model, inputs)
    assert everything(model, inputs) == before
    assert torch.get_default_dtype() == default


def test_an_audit_gives_the_same_answer_twice():
    model, inputs = images(nn.BatchNorm2d(6)), torch.randn(PICTURE)
    one, two = (nl.audit(model, inputs).to_dataframe() for _ in range(2))
    assert one.equals(two)


def test_norms_are_those_of_the_models_own_point():
    model, inputs = images(nn.BatchNorm2d(6)).double(), torch.randn(PICTURE).double()
    targets = torch.arange(8) % 4
    table = nl.audit(model, inputs, targets).to_dataframe()
    F.cross_entropy(model(inputs), targets).backward()
    for name, p in model.named_parameters():
        assert table.norm[name] == pytest.approx(p.detach().norm().item(), rel=1e-12)
        assert table.gradient_norm[name] == pytest.approx(p.grad.norm().item(), abs=1e-12)
        assert table["shape"][name] == tuple(p.shape)


def test_eps_violates_the_invariance_as_much_as_its_law_says():
    """Before batch norm ⟨w_c, g_c⟩ = ε/(var_c + ε) γ_c ∂L/∂γ_c, exactly."""
    model = images(nn.BatchNorm2d(6, eps=0.1)).double()
    inputs, targets = torch.randn(PICTURE).double(), torch.arange(8) % 4
    table = nl.audit(model, inputs, targets).to_dataframe()
    assert table.verdict["0.weight"] == "invariant"  # the structure, whatever ε
    F.cross_entropy(model(inputs), targets).backward()
    w, g, gamma = model[0].weight.flatten(1), model[0].weight.grad.flatten(1), model[1].weight
    variance = model[0](inputs).var((0, 2, 3), correction=0)
    product = 0.1 / (variance + 0.1) * gamma * gamma.grad
    worst = (product.abs() / (w.norm(dim=1) * g.norm(dim=1))).max().item()
    assert table.eps_violation["0.weight"] == pytest.approx(worst, rel=1e-6)
    assert worst > 1e-3


def test_a_zero_head_hides_nothing_but_the_gradient():
    """At the model's own point nothing below a zero head has a gradient; the structure is seen."""
    model = images(nn.BatchNorm2d(6))
    nn.init.zeros_(model[-1].weight)
    table = nl.audit(model, torch.randn(PICTURE)).to_dataframe()
    assert table.verdict["0.weight"] == "invariant"
    assert table.gradient_norm["0.weight"] == 0
    assert np.isnan(table.eps_violation["0.weight"])


def test_a_printed_audit_fits_a_page():
    found = nl.audit(images(nn.BatchNorm2d(6)), torch.randn(PICTURE))
    lines = repr(found).splitlines()
    assert lines[0] == "Audit of Sequential: 6 tensors"
    assert any("invariant per channel" in x and "sets the learning rate" in x for x in lines)
    assert max(map(len, lines)) <= 100
    assert "<table" in found._repr_html_()
    named = type("<script>", (nn.Sequential,), {})(nn.Linear(5, 3))
    assert "<script" not in nl.audit(named, torch.randn(ROWS))._repr_html_()


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_inputs_may_be_several_tensors(kind):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm = nn.Embedding(7, 5), nn.BatchNorm1d(5)

        def forward(self, x, tokens, scale=None):
            return self.norm(x + self.embedding(tokens)), scale

    model, x, tokens = Two(), torch.randn(16, 5), torch.arange(16) % 7
    inputs = (x, tokens) if kind == "tuple" else {"x": x, "tokens": tokens, "scale": None}
    found = nl.audit(model, inputs, loss=lambda output: output[0].pow(3).mean())
    assert found.to_dataframe().verdict["embedding.weight"] == "not invariant"


def test_sequences_of_labels_are_understood():
    tokens = torch.randint(9, (8, 5))
    last = nl.audit(Tied(), tokens, tokens.roll(1, 1))
    model = Tied()
    second = nl.audit(
        nn.Sequential(model, nn.Flatten(1), nn.Unflatten(1, (9, 5))), tokens, tokens.roll(1, 1)
    )
    assert len(last.groups) == 1
    assert len(second.to_dataframe()) == 4


def test_numbers_and_sparse_gradients_are_parameters_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm = nn.Embedding(7, 5, sparse=True), nn.LayerNorm(5)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, tokens):
            return self.scale * self.norm(self.embedding(tokens))

    model, tokens = Scaled(), torch.arange(16) % 7
    found = nl.audit(model, tokens)
    assert found.to_dataframe().per["embedding.weight"] == "channel"  # each token's row
    assert found.groups == [{"scale": 1, "norm.weight": -1, "norm.bias": -1}]
    target = torch.randn(16, 5).double()
    confirm(found, model, tokens, lambda output: F.mse_loss(output, target))


def test_a_checkpointed_forward_gives_the_same_answer():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    torch.manual_seed(2)
    layers, inputs = list(images(nn.BatchNorm2d(6))), torch.randn(PICTURE)
    plain, saved = (nl.audit(kind(*layers), inputs) for kind in (nn.Sequential, Checkpointed))
    assert saved.groups == plain.groups
    assert saved.to_dataframe().equals(plain.to_dataframe())


def test_half_precision_models_are_audited_in_double():
    model = vectors(nn.Linear(5, 6, bias=False), RootMeanSquare(6)).bfloat16()
    assert nl.audit(model, torch.randn(ROWS).bfloat16()).invariant == ["0.weight"]


def sparse():
    model = nn.Linear(5, 3)
    model.weight = nn.Parameter(torch.eye(3, 5).to_sparse())
    return model


def on_two_devices():
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3, device="meta"))


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


def with_a_generator_of_its_own():
    draw = torch.Generator().manual_seed(0)
    model = nn.Linear(5, 3)
    model.register_forward_hook(lambda module, inputs, out: out + torch.rand(3, generator=draw))
    return model


def sorted_only():
    model = nn.Linear(5, 3)

    def check(module, inputs):
        if not (inputs[0].diff(dim=0) >= 0).all():
            raise RuntimeError("inputs must be sorted")

    model.register_forward_pre_hook(check)
    return model


def script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what is deprecated is still in use
        return torch.jit.script(nn.Linear(5, 3))


BAD = {
    "generator": (with_a_generator_of_its_own, {}, "does not repeat: .*forward's own generator a"),
    "checks": (
        sorted_only,
        {"inputs": torch.arange(80.0).view(16, 5)},
        "refuses a batch that the audit made .*inputs must be sorted.*give noise=0, or shuffle=F",
    ),
    "script": (script, {}, "TorchScript, whose operations"),
    "split": (lambda: nn.Linear(5, 3), {"split": {"weight": [2, 2]}}, "sum to its 3 rows"),
    "split name": (lambda: nn.Linear(5, 3), {"split": {"w": [2, 1]}}, "'w', which is no param"),
    "no trainable parameter": (lambda: nn.ReLU(), {}, "no trainable parameter; set requires_grad"),
    "frozen": (lambda: nn.Linear(5, 3).requires_grad_(False), {}, "no trainable parameter"),
    "lazy": (lambda: nn.LazyLinear(3), {}, "weight is not initialised; run the model once"),
    "complex": (lambda: nn.Linear(5, 3, dtype=torch.cfloat), {}, "weight is complex; .* real"),
    "sparse": (sparse, {}, "weight is sparse; an audit needs real and dense"),
    "devices": (on_two_devices, {}, "the model lies on cpu and meta; move it to one device"),
    "meta": (lambda: nn.Linear(5, 3, device="meta"), {}, "lies on meta and has no values"),
    "tuple": (lambda: nn.LSTM(5, 3), {}, "returns a tuple, no tensor; give a loss"),
    "nan": (lambda: nn.Linear(5, 3), {"loss": lambda x: x.sum().log() * torch.nan}, "loss is nan"),
    "infinite": (lambda: nn.Linear(5, 3), {"loss": lambda x: x.sum() / 0}, "loss is -?inf at the"),
    "no scalar": (lambda: nn.Linear(5, 3), {"loss": torch.abs}, r"one number, got \(16, 3\)"),
    "a float": (lambda: nn.Linear(5, 3), {"loss": lambda x: 1.0}, "one number, got float"),
    "detached": (lambda: Detached(5, 3), {}, "depends on no trainable parameter"),
    "targets": (lambda: nn.Linear(5, 3), {"targets": torch.ones(4)}, "no default loss fits"),
    "list": (lambda: nn.Linear(5, 3), {"inputs": [1]}, "inputs must be a tensor, .*; got list"),
    "batches": (
        lambda: nn.Linear(5, 3),
        {"batches": 1},
        "batches must be at least 2, got 1",
    ),
    "batch of 1": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)),
        {"inputs": torch.ones(1, 5)},
        "gets 1 values a channel, at least 3 are needed; give a larger batch",
    ),
    "batch of 2": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)),
        {"inputs": torch.ones(2, 5)},
        "gets 2 values a channel",
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_one_line(name):
    make, arguments, message = BAD[name]
    kind = TypeError if name == "list" else ValueError
    with pytest.raises(kind, match=message) as error:
        nl.audit(make(), **{"inputs": torch.randn(ROWS), **arguments})
    assert "\n" not in str(error.value)


def test_a_model_of_a_class_that_exec_made_is_audited_like_any_other():
    """Without a name of their own, such classes say that they are builtins."""
    names = {}
    exec(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.norm = nn.Linear(5, 3), nn.BatchNorm1d(3)\n"
        "    def forward(self, x):\n"
        "        return self.norm(self.first(x))\n",
        names,
    )
    assert names["Net"].__module__ == "builtins"
    assert nl.audit(names["Net"](), torch.randn(ROWS)).invariant == ["first.weight"]


class Split(nn.Module):
    def forward(self, x):
        return x.chunk(2, -1)


class Alternating(nn.Module):
    """A layer with a memory: later calls differ from the first."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return (x if self.calls == 1 else x + 1).chunk(2, -1)


@pytest.mark.parametrize("layer", [Split, Alternating])
def test_a_layer_without_weights_may_return_anything_and_remember(layer):
    """It is asked whether it is dropout, and must not notice."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.split, self.head = (
                nn.Linear(5, 4, bias=False),
                layer(),
                nn.Linear(2, 3),
            )

        def forward(self, x):
            one, two = self.split(self.first(x))
            return self.head(F.normalize(one * two))

    model = Net()
    found = nl.audit(model, torch.randn(ROWS))
    assert found.invariant == ["first.weight"]
    assert layer is Split or model.split.calls == 0

"""The audit of any model: its verdicts are confirmed by rescaling, independently of the module."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torchvision.models import convnext, efficientnet, vgg
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
    "mobilenet_v3_small": (lambda: zoo.mobilenet_v3_small(num_classes=10), 64),
    "efficientnet_b0": (efficientnet_b0, 64),
    "convnext_tiny": (convnext_tiny, 32),
    "vit_b_16": (lambda: zoo.VisionTransformer(32, 16, 12, 12, 48, 96, num_classes=10), 32),
    "swin_t": (
        lambda: zoo.SwinTransformer(
            [4, 4], 24, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7], num_classes=10
        ),
        64,
    ),
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
            if hasattr(module, "eps"):
                module.eps = 1e-20
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
        return self.loss(self.model(self.inputs)).item()

    def entries(self, name, tensor=None):
        """The entries that a name of the audit stands for: a parameter or a third of it."""
        parameter, _, third = name.rstrip("]").partition("[")
        tensor = self.named[parameter] if tensor is None else tensor
        return tensor.chunk(3)["qkv".index(third)] if third else tensor

    def change(self, edits):
        """Relative change of the loss when named entries are replaced by a function of them."""
        kept = {name: self.entries(name).detach().clone() for name in edits}
        with torch.no_grad():
            for name, edit in edits.items():
                self.entries(name).copy_(edit(self.entries(name)))
            after = self.value()
            for name, old in kept.items():
                self.entries(name).copy_(old)
        return abs(after - self.before) / abs(self.before)


def by_blocks(factors, exponent=1):
    """Multiplies equal blocks of output channels by a power of their factors."""

    def edit(tensor):
        channels = tensor.shape[0] if tensor.ndim else 1
        each = torch.tensor(factors**exponent).repeat_interleave(channels // len(factors))
        return tensor * each.view(-1, *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor * each[0]

    return edit


def confirm(found, model, inputs, loss):
    """Every verdict, against what rescaling and replacing does to the loss."""
    point, table = Rescaling(model, inputs, loss), found.to_dataframe()
    rng = np.random.default_rng(5)

    def factors(blocks):
        return rng.uniform(0.3, 3, blocks)

    for name, row in table.iterrows():
        if row.verdict == "invariant":
            assert point.change({name: by_blocks(factors(row.blocks))}) < 1e-9, name
        elif row.verdict == "no effect":
            assert point.change({name: lambda w: w + torch.randn_like(w)}) < 1e-9, name
        elif row.verdict != "undecided":
            assert point.change({name: lambda w: 2.7 * w}) > 1e-8, name
        positions = {k for k, group in enumerate(found.groups) if name in group}
        assert positions == set(row.groups)
        assert bool(positions) == (row.verdict in ("joint", "inverse"))
    for group in found.groups:
        blocks = min(table.blocks[name] for name in group)
        for factor in (factors(1), factors(blocks))[: 1 + (blocks > 1)]:
            edits = {name: by_blocks(factor, c) for name, c in group.items()}
            assert point.change(edits) < 1e-9, group


@pytest.fixture(scope="module", params=ZOO)
def case(request):
    """A model of torchvision, a batch, a loss, and its audit."""
    make, pixels = ZOO[request.param]
    torch.manual_seed(0)
    model = make()
    inputs, targets = torch.randn(6, 3, pixels, pixels), torch.randint(10, (6,))
    return model, inputs, targets, nl.audit(model, inputs, targets)


def test_every_verdict_on_torchvision_models_is_confirmed_by_rescaling(case):
    model, inputs, targets, found = case
    inputs = torch.randn_like(inputs)[:3].double()
    confirm(found, model, inputs, lambda output: F.cross_entropy(output, targets[:3]))

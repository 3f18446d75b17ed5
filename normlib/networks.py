"""K networks side by side as one wide network. Knows architectures; nothing of data or training.

A `Net` describes an architecture. `net.module(...)` is one ordinary torch network of it,
`net.wide(...)` holds K of them: every parameter is a tensor (K, C, n) for networks, channels
(output units) and inputs of one channel, so that a learning rate per network is one broadcast.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from normlib import layers
from normlib.validation import number, one_of, whole_number

Shape = tuple[int, ...]
NORMS = {"batch": "channel", "layer": "layer", "weight": "channel", "none": None}
_INITIALISING = threading.Lock()  # torch's random state is that of the whole process


@frozen
class Parameter:
    """One parameter of a network.

    Attributes
    ----------
    name : str
        As in the wide network, e.g. ``"conv1.weight"``.
    key : str
        As in the state_dict of the ordinary torch network.
    shape : tuple of int
        Its shape there.
    kind : str
        ``"weight"`` (convolutions, matrices), ``"gain"`` (γ) or ``"bias"`` (β and biases).
    invariant : str or None
        The group whose scale does not change the function: ``"channel"``, ``"layer"`` or None.
    image : (int, int, int) or None
        If one channel's inputs are an image (inputs, height, width); the wide network holds them
        as (height, width, inputs), the order in which they lie in channels-last memory.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    kind: str
    invariant: str | None = None
    image: tuple[int, int, int] | None = None

    def rows(self, value: Tensor) -> Tensor:
        """The ordinary parameter as (C, n): channels, inputs of one channel."""
        if self.image:
            value = value.reshape(-1, *self.image).permute(0, 2, 3, 1)
        return value.reshape(self.shape[0], -1).contiguous()

    def ordinary(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        if self.image:
            inputs, height, width = self.image
            rows = rows.reshape(-1, height, width, inputs).permute(0, 3, 1, 2)
        return rows.reshape(self.shape).clone()


@frozen
class Net:
    """The description of a network: hidden layers, each normalized, and a linear head."""

    width: int = field(validator=whole_number())
    depth: int = field(validator=whole_number())
    norm: str = field(validator=one_of(*NORMS))
    eps: float = field(validator=number())

    def __attrs_post_init__(self) -> None:
        if self.norm == "batch" and self.eps == 0:
            raise ValueError("torch's batch norm refuses eps=0 in training; use eps=1e-30")

    @property
    def settings(self) -> dict[str, Any]:
        """The description as a dict, for the record of an experiment."""
        return {"net": type(self).__name__, **attrs.asdict(self)}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the hidden layers, e.g. ``("conv1", "conv2", "conv3")``."""
        return tuple(f"{self._layer}{i}" for i in range(1, self.depth + 1))

    def parameters(self, shape: Shape, classes: int) -> tuple[Parameter, ...]:
        """Every parameter for inputs of `shape` (C, H, W) and a number of classes."""
        found, group, out = [], NORMS[self.norm], self.width
        for i, layer in enumerate(self.layers, start=1):
            weight = self._weight_shape(i, shape)
            image, ones = weight[1:] if len(weight) == 4 else None, (1,) * (len(weight) - 1)
            name, gain, bias = f"{layer}.weight", f"norm{i}.weight", f"norm{i}.bias"
            stem = f"{layer}.parametrizations.weight.original"
            if self.norm == "weight":
                found.append(Parameter(name, f"{stem}1", weight, "weight", group, image))
                found.append(Parameter(gain, f"{stem}0", (out, *ones), "gain"))
                found.append(Parameter(bias, f"{layer}.bias", (out,), "bias"))
                continue
            found.append(Parameter(name, name, weight, "weight", group, image))
            if self.norm == "none":
                found.append(Parameter(f"{layer}.bias", f"{layer}.bias", (out,), "bias"))
            else:
                found.append(Parameter(gain, gain, (out,), "gain"))
                found.append(Parameter(bias, bias, (out,), "bias"))
        image = self._image(shape)
        size = (classes, math.prod(image))
        found.append(Parameter("head.weight", "head.weight", size, "weight", None, image))
        found.append(Parameter("head.bias", "head.bias", (classes,), "bias"))
        return tuple(found)

    def module(self, shape: Shape, classes: int) -> nn.Sequential:
        """One ordinary torch network with torch's own layers and initialisation."""
        parts: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())] * self._flattens_first
        for i, layer in enumerate(self.layers, start=1):
            linear = self._linear(i, shape, bias=self.norm in ("weight", "none"))
            parts.append((layer, weight_norm(linear) if self.norm == "weight" else linear))
            if self.norm in ("batch", "layer"):
                parts.append((f"norm{i}", self._norms[self.norm](self.width, eps=self.eps)))
            parts.append((f"relu{i}", nn.ReLU()))
        parts += [("flatten", nn.Flatten())] * (not self._flattens_first)
        parts.append(("head", nn.Linear(math.prod(self._image(shape)), classes)))
        return nn.Sequential(OrderedDict(parts))

    def wide(
        self,
        networks: int,
        shape: Shape,
        classes: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Wide":
        """`networks` copies of one network, initialised by torch with `seed`, side by side."""
        if networks < 1 or classes < 1 or len(shape) != 3:
            raise ValueError(
                "networks and classes must be at least 1 and shape (C, H, W); "
                f"got {networks}, {classes} and {tuple(shape)}"
            )
        with _INITIALISING, torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch GPUs too
            module = self.module(shape, classes)
        return Wide(self, networks, shape, classes, module.state_dict(), device, dtype)

    # What differs between architectures:
    _layer: ClassVar[str]
    _norms: ClassVar[dict[str, Callable[..., nn.Module]]]
    _flattens_first: ClassVar[bool] = False

    def _weight_shape(self, i: int, shape: Shape) -> tuple[int, ...]:
        raise NotImplementedError

    def _image(self, shape: Shape) -> tuple[int, int, int]:
        """(channels, height, width) of what the head sees."""
        raise NotImplementedError

    def _linear(self, i: int, shape: Shape, bias: bool) -> nn.Module:
        raise NotImplementedError

    def _forward(self, wide: "Wide", x: Tensor, training: bool) -> Tensor:
        raise NotImplementedError


class ConvNet(Net):
    """Convolutions with kernels 5, 3, 3, … and stride 2, then a linear head."""

    _layer = "conv"
    _norms: ClassVar = {"batch": nn.BatchNorm2d, "layer": partial(nn.GroupNorm, 1)}

    def _kernel(self, i: int, shape: Shape) -> tuple[int, int]:
        k = 5 if i == 1 else 3
        return (1 if shape[1] == 1 else k), (1 if shape[2] == 1 else k)

    def _geometry(self, i: int, shape: Shape) -> dict[str, Any]:
        kernel = self._kernel(i, shape)
        return {
            "stride": tuple(1 if k == 1 else 2 for k in kernel),
            "padding": tuple(k // 2 for k in kernel),
        }

    def _weight_shape(self, i: int, shape: Shape) -> tuple[int, ...]:
        return (self.width, shape[0] if i == 1 else self.width, *self._kernel(i, shape))

    def _image(self, shape: Shape) -> tuple[int, int, int]:
        height, width = (-(-side // 2**self.depth) for side in shape[1:])
        return self.width, height, width

    def _linear(self, i: int, shape: Shape, bias: bool) -> nn.Module:
        out, inputs, *_ = self._weight_shape(i, shape)
        kernel = self._kernel(i, shape)
        return nn.Conv2d(inputs, out, kernel, bias=bias, **self._geometry(i, shape))

    def _forward(self, wide: "Wide", x: Tensor, training: bool) -> Tensor:
        k, h = wide.networks, x.contiguous(memory_format=torch.channels_last)
        for i in range(1, self.depth + 1):
            out, inputs, *kernel = self._weight_shape(i, wide.shape)
            if i == 1 and inputs == 1:
                h = self._first(wide, h, training)
                continue
            weight, bias, geometry = wide.weight(i), wide.bias(i), self._geometry(i, wide.shape)
            # Rows hold (height, width, inputs): seen this way the weight is channels-last.
            weight = weight.view(k * out, *kernel, inputs).permute(0, 3, 1, 2)
            if i > 1 and h.is_cuda and bias is None:
                h = layers.grouped(h, weight, k, **geometry)
            else:
                # All networks see one batch: the first layer needs no copy of it for each.
                h = F.conv2d(h, weight, bias, groups=1 if i == 1 else k, **geometry)
            if self.norm in ("batch", "layer"):
                h = wide.normalized(h, i, training)
            h = F.relu_(h)
        # Channels last here too, so that the gradient comes back in that layout.
        h = h.permute(0, 2, 3, 1).reshape(len(h), -1, k, self.width).permute(2, 0, 1, 3)
        return wide.head(h.reshape(k, len(x), -1))

    def _first(self, wide: "Wide", x: Tensor, training: bool) -> Tensor:
        """The first layer on images of one channel, with its ReLU: one matrix product."""
        seen = layers.windows(x, self._kernel(1, wide.shape), **self._geometry(1, wide.shape))
        x, weight, bias = seen.flatten(0, 2).flatten(1), wide.weight(1).flatten(0, 1), wide.bias(1)
        if folded := training and self.norm == "batch":
            weight, bias = layers.folded(x, weight, *wide.normalization(1), self.eps)
        h = layers.from_rows(x, weight, bias)
        if normal := folded or self.norm in ("weight", "none"):
            h = F.relu_(h)  # while it is no view: in place on a view autograd copies
        h = h.view(*seen.shape[:3], -1).permute(0, 3, 1, 2)
        return h if normal else F.relu_(wide.normalized(h, 1, training))


class MLP(Net):
    """Fully connected hidden layers, then a linear head."""

    _layer = "linear"
    _norms: ClassVar = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    _flattens_first = True

    def _weight_shape(self, i: int, shape: Shape) -> tuple[int, ...]:
        return (self.width, math.prod(shape) if i == 1 else self.width)

    def _image(self, shape: Shape) -> tuple[int, int, int]:
        return self.width, 1, 1

    def _linear(self, i: int, shape: Shape, bias: bool) -> nn.Module:
        out, inputs = self._weight_shape(i, shape)
        return nn.Linear(inputs, out, bias=bias)

    def _forward(self, wide: "Wide", x: Tensor, training: bool) -> Tensor:
        k, c, n = wide.networks, self.width, len(x)
        h = x.flatten(1)
        for i in range(1, self.depth + 1):
            weight, bias = wide.weight(i), wide.bias(i)
            if i == 1:
                h = h @ weight.reshape(k * c, -1).T
            else:
                h = (h.view(n, k, c).transpose(0, 1) @ weight.mT).transpose(0, 1).reshape(n, k * c)
            if bias is not None:
                h = h + bias
            if self.norm in ("batch", "layer"):
                h = wide.normalized(h, i, training)
            h = F.relu_(h)
        return wide.head(h.view(n, k, c).transpose(0, 1))


class Wide:
    """K networks of one description, computed as one.

    Attributes
    ----------
    values : dict of str to Tensor
        Parameter by name, (K, C, n), contiguous.
    buffers : dict of str to Tensor
        Running means and variances of batch norm, (K·C,).
    """

    def __init__(
        self,
        net: Net,
        networks: int,
        shape: Shape,
        classes: int,
        state: Mapping[str, Tensor],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self.net, self.networks = net, networks
        self.shape, self.classes = tuple(shape), classes
        self.parameters = {p.name: p for p in net.parameters(shape, classes)}
        self.values: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for p in self.parameters.values():
            one = p.rows(state[p.key]).to(device, dtype)
            self.values[p.name] = one.expand(networks, *one.shape).clone().requires_grad_()
        size = networks * net.width
        for i in range(1, net.depth + 1) if net.norm == "batch" else ():
            self.buffers[f"norm{i}.running_mean"] = torch.zeros(size, device=device, dtype=dtype)
            self.buffers[f"norm{i}.running_var"] = torch.ones(size, device=device, dtype=dtype)

    def __call__(self, x: Tensor, training: bool = False) -> Tensor:
        """Logits (K, N, classes) of a batch (N, C, H, W) that all networks share."""
        return self.net._forward(self, x, training)

    def state_dict(self, k: int) -> dict[str, Tensor]:
        """Network k as a state_dict that loads into `net.module(...)`."""
        state = {}
        for p in self.parameters.values():
            state[p.key] = p.ordinary(self.values[p.name][k].detach())
        for key, values in self.buffers.items():
            state[key] = values.view(self.networks, -1)[k].clone()
            if key.endswith("running_var"):
                # torch counts batches for averages without momentum; unused here
                state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        return state

    def scale_(self, factors: Tensor) -> None:
        """Multiply the hidden layers' weights of network k by ``factors[k]``."""
        factors = torch.as_tensor(factors).view(-1, 1, 1)
        for layer in self.net.layers:
            weight = self.values[f"{layer}.weight"].data
            weight.mul_(factors.to(weight))

    def flat(self, name: str) -> Tensor:
        """A parameter with one entry a channel, as a vector (K·C,)."""
        return self.values[name].reshape(-1)

    def weight(self, i: int) -> Tensor:
        """The weights that the i-th layer applies, (K, C, n); under weight norm γ w / ‖w‖."""
        w = self.values[f"{self.net.layers[i - 1]}.weight"]
        if self.net.norm == "weight":
            w = self.values[f"norm{i}.weight"] * (w / w.norm(dim=2, keepdim=True))
        return w

    def bias(self, i: int) -> Tensor | None:
        """The bias (K·C,) that the i-th layer adds before any normalization, or None."""
        if self.net.norm == "weight":
            return self.flat(f"norm{i}.bias")
        return self.flat(f"{self.net.layers[i - 1]}.bias") if self.net.norm == "none" else None

    def normalization(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Running mean and variance, γ and β of the i-th hidden layer's batch norm."""
        mean, var = self.buffers[f"norm{i}.running_mean"], self.buffers[f"norm{i}.running_var"]
        return mean, var, self.flat(f"norm{i}.weight"), self.flat(f"norm{i}.bias")

    def normalized(self, h: Tensor, i: int, training: bool) -> Tensor:
        """Batch or layer norm of the i-th hidden layer's output, each network on its own."""
        if self.net.norm == "layer":
            gain, shift = self.flat(f"norm{i}.weight"), self.flat(f"norm{i}.bias")
            return F.group_norm(h, self.networks, gain, shift, self.net.eps)
        return F.batch_norm(h, *self.normalization(i), training, eps=self.net.eps)

    def head(self, h: Tensor) -> Tensor:
        """Logits (K, N, classes) of features (K, N, F)."""
        return layers.heads(h, self.values["head.weight"], self.values["head.bias"])


def convnet(width: int = 25, depth: int = 3, norm: str = "batch", eps: float = 1e-5) -> ConvNet:
    """A small convolutional network: kernels 5, 3, 3, … with stride 2, then a linear head.

    Parameters
    ----------
    width : int
        Channels of every convolution.
    depth : int
        Number of convolutions.
    norm : {"batch", "layer", "weight", "none"}
        What follows each convolution. Batch norm and weight norm make each channel's weights
        scale-invariant, layer norm each layer's. Only the head has a bias, except that weight
        norm and "none" give each convolution one (weight norm's plays the part of β).
    eps : float
        ε of the normalization (batch and layer), as torch's.

    Raises
    ------
    ValueError
        For an impossible value, before anything is built.

    Notes
    -----
    The settings are ours, chosen independently of the paper's, which are not known to us.
    Chapters 00 and 01.

    >>> net = convnet(width=25, depth=3)
    >>> [p.name for p in net.parameters((1, 1, 40), classes=10) if p.invariant]
    ['conv1.weight', 'conv2.weight', 'conv3.weight']
    """
    return ConvNet(width, depth, norm, eps)


def mlp(width: int = 100, depth: int = 2, norm: str = "batch", eps: float = 1e-5) -> MLP:
    """A fully connected network; parameters and errors as for `convnet`. Chapter 01.

    >>> mlp(width=8, norm="layer").module((1, 1, 40), classes=10).head
    Linear(in_features=8, out_features=10, bias=True)
    """
    return MLP(width, depth, norm, eps)

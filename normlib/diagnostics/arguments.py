"""What a user gives an audit: refused in one line, or completed. Knows torch modules."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
Loss = Callable[..., Tensor]


def check(model: nn.Module) -> None:
    """Raise if the model's parameters cannot be audited."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "the model is TorchScript, whose operations cannot be seen; audit the "
            "module that it was made from"
        )
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, p in tensors.items():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"{name} is not initialised; run the model once on a batch first")
        if isinstance(p, nn.Parameter) and (p.is_complex() or p.layout != torch.strided):
            kind = "complex" if p.is_complex() else "sparse"
            raise ValueError(f"{name} is {kind}; an audit needs real and dense tensors")
    devices = sorted({str(p.device) for p in tensors.values()})
    if len(devices) > 1:
        raise ValueError(f"the model lies on {' and '.join(devices)}; move it to one device first")
    if devices == ["meta"]:
        raise ValueError("the model lies on meta and has no values; load them first")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no trainable parameter; set requires_grad on what trains")


def size_of(parameter: Tensor) -> float:
    """What is large for an entry: their root mean square, or what an initialization makes."""
    w = parameter.detach()
    fan = w[0].numel() if w.ndim > 1 else 1
    return max(float(w.double().square().mean().sqrt()), fan**-0.5)


def loss_of(loss: Loss | None, output: Any, targets: Tensor | None, seed: int) -> Tensor:
    """The user's loss, or one that suits the targets."""
    if loss is not None:
        value = loss(output) if targets is None else loss(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return one number, got {got}; take its mean or sum")
        return value.reshape(())
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise ValueError(f"the model returns a {kind}, no tensor; give a loss that takes it")
    if targets is None:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    if output.shape == targets.shape:
        return F.mse_loss(output, targets.to(output))
    if targets.dtype == torch.int64 and output.shape[:-1] == targets.shape:
        return F.cross_entropy(output.flatten(0, -2), targets.flatten())
    if targets.dtype == torch.int64 and output.shape[:1] + output.shape[2:] == targets.shape:
        return F.cross_entropy(output, targets)
    shapes = f"targets {tuple(targets.shape)} to output {tuple(output.shape)}"
    raise ValueError(f"no default loss fits {shapes}; give int64 class labels or a loss")

"""Scale invariance of any loss of any torch model. Knows autograd; nothing of our networks."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def rescaled(model: nn.Module, factors: Mapping[str, float | Tensor]) -> Iterator[nn.Module]:
    """Multiply parameters of a model for the length of a ``with`` block.

    Parameters
    ----------
    model : nn.Module
    factors : mapping of str to float or Tensor
        Factor by parameter name; a tensor must broadcast, e.g. (C, 1, 1, 1) for the channels of a
        convolution.

    Raises
    ------
    ValueError
        For a name that is no parameter, or a factor that does not broadcast.

    Notes
    -----
    Chapter 01.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> x = torch.ones(1, 2)
    >>> with rescaled(layer, {"weight": 10.0}):
    ...     tenfold = layer(x)
    >>> torch.allclose(tenfold, 10 * layer(x))
    True
    """
    named = dict(model.named_parameters())
    tensors = {}
    for name, factor in factors.items():
        if name not in named:
            raise ValueError(f"{name!r} is no parameter of the model; it has {', '.join(named)}")
        # torch would round a Python number to single precision
        wide = factor if isinstance(factor, Tensor) else torch.tensor(factor, dtype=torch.float64)
        try:
            wide.expand(named[name].shape)
        except RuntimeError:
            shapes = f"{tuple(wide.shape)} to {tuple(named[name].shape)}"
            raise ValueError(f"the factor of {name!r} does not broadcast: {shapes}") from None
        tensors[name] = wide.to(named[name])
    before = {name: named[name].detach().clone() for name in tensors}
    try:
        with torch.no_grad():
            for name, tensor in tensors.items():
                named[name].mul_(tensor)
        yield model
    finally:
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)


def euler(loss: Tensor, weights: Iterable[Tensor], dims: int | None = None) -> list[Tensor]:
    """Euler's test of scale invariance: the cosine between weights and their gradient.

    A loss that does not change with the scale of w satisfies ⟨w, ∇L(w)⟩ = 0, and only such a one
    does for every w.

    Parameters
    ----------
    loss : Tensor
        A scalar that was computed from `weights`.
    weights : iterable of Tensor
        E.g. ``model.parameters()``.
    dims : int or None
        Number of leading dimensions that index groups: None for one cosine a tensor, 1 for one a
        channel.

    Returns
    -------
    list of Tensor
        ⟨w, g⟩ / (‖w‖‖g‖) for each tensor, with the shape of its leading `dims` dimensions. nan
        where the weights or the gradient are zero: such a point decides nothing.

    Notes
    -----
    One point can lie: β = 0 has cosine nan, a zero head hides everything below it. Test at a
    generic point and over several batches. Chapter 01.

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> euler((w / w.norm())[0], [w])[0].abs() < 1e-6
    tensor(True)
    """
    weights = [weights] if isinstance(weights, Tensor) else list(weights)
    gradients = torch.autograd.grad(loss, weights, retain_graph=True)
    cosines = []
    for w, g in zip(weights, gradients, strict=True):
        shape = w.shape[: dims or 0]
        w, g = w.detach().reshape(*shape, -1), g.reshape(*shape, -1)
        cosines.append((w * g).sum(-1) / (w.norm(dim=-1) * g.norm(dim=-1)))
    return cosines

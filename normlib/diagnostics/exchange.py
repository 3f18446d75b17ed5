"""Copies in place of all that a model holds, for a while. Knows torch modules and containers."""

import contextlib
import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Where functions take their ε, and which they take if none is given.
EPS_PLACES = {
    F.layer_norm: 4, F.rms_norm: 3, F.group_norm: 4, F.batch_norm: 7, F.instance_norm: 7,
    F.normalize: 3, torch.layer_norm: 4, torch.rms_norm: 3, torch.group_norm: 4,
    torch.batch_norm: 7, torch.instance_norm: 7,
}  # fmt: skip
ADDITIONS = {
    torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__,
}  # fmt: skip
BOUNDS = {
    torch.clamp, torch.clamp_min, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_,
    torch.clip, Tensor.clip, torch.maximum, Tensor.maximum,
}  # fmt: skip
TINY = 2e-3  # what is added or kept above is an ε if it is no larger
DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout
}  # fmt: skip
NARROW = (torch.float32, torch.float16, torch.bfloat16)
GRADIENT = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
# What has a state that is not in attributes, and how to read and restore it.
STATES: tuple[tuple[type, Callable[[Any], Any], Callable[[Any, Any], object]], ...] = (
    (np.ndarray, np.copy, lambda a, content: a.flags.writeable and a.__setitem__(..., content)),
    (np.random.Generator, lambda g: g.bit_generator.state,
     lambda g, state: setattr(g.bit_generator, "state", state)),
    (np.random.RandomState, np.random.RandomState.get_state, np.random.RandomState.set_state),
    (random.Random, random.Random.getstate, random.Random.setstate),
    (torch.Generator, torch.Generator.get_state, torch.Generator.set_state),
)  # fmt: skip
# The standard library's objects (locks, files, queues of other threads) are no state of a model.
FOREIGN = sys.stdlib_module_names - {"collections", "types"}

Put = Callable[[Iterable[Any]], object]


def widened(tensor: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """A copy, in double precision or another one if it holds floats."""
    return tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


class Adjusted(TorchFunctionMode):
    """Functions with our copies, precision and ε, and without dropout.

    Whatever an operation takes is seen here, also what only a closure or a global of the loss
    holds: a tensor of the model is exchanged for its copy, a narrow one for a wide one.
    """

    def __init__(
        self,
        copies: dict[int, Tensor],
        dtype: torch.dtype,
        eps: float | None,
        noise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.copies, self.dtype, self.eps, self.noise = copies, dtype, eps, noise
        self.made: dict[int, tuple[Tensor, Tensor]] = {}
        # What is narrow, of all that must be wide.
        self.narrow = NARROW if dtype == torch.float64 else NARROW[1:]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return self._wide(args[0]).to(self.dtype)
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func == GRADIENT:
            return func(*args, **(kwargs or {}))
        args, named = tree_map(self._wide, (tuple(args), dict(kwargs or {})))
        if self.eps is not None:
            args, named = self._without_eps(func, args, named)
        if "dropout_p" in named:
            named["dropout_p"] = 0.0
        out = func(*args, **named)
        if self.noise is not None and func in (F.embedding, torch.embedding):
            out = self.noise(out)
        return out

    def _wide(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return self.dtype if value in NARROW else value
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.copies:
            return self.copies[id(value)]
        if value.dtype not in self.narrow:
            return value
        if id(value) not in self.made:  # with the original, so that its id stays its own
            self.made[id(value)] = value, value.to(self.dtype)
        return self.made[id(value)][1]

    def _without_eps(self, func: Any, args: Any, named: Any) -> tuple[Any, Any]:
        if func in EPS_PLACES:
            place = EPS_PLACES[func]
            if len(args) > place:
                return (*args[:place], self.eps, *args[place + 1 :]), named
            return args, named | {"eps": self.eps}
        if func in ADDITIONS or func in BOUNDS:
            args = tuple(map(self._eps, args))
            named = {k: self._eps(x) if k in ("min", "other") else x for k, x in named.items()}
        return args, named

    def _eps(self, value: Any) -> Any:
        """Our ε in place of one that a number or a tensor of one number is."""
        if isinstance(value, Tensor):
            single = value.numel() == 1 and value.is_floating_point() and not value.requires_grad
            tiny = single and 0 < value.item() <= TINY
            return torch.full_like(value, float(self.eps or 0)) if tiny else value
        return self.eps if isinstance(value, float) and 0 < value <= TINY else value


@contextlib.contextmanager
def undisturbed(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """Fixed random numbers, a default precision, nothing compiled; then all as it was."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # what was compiled would be again for each exchange
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        torch.set_default_dtype(dtype)
        yield


class Belongings:
    """All that can be reached from some objects by containers and attributes, as it is now."""

    def __init__(self, roots: Iterable[object]) -> None:
        self.content: list[tuple[list[Any], Put]] = []
        pending, seen = list(roots), dict[int, Any]()
        while pending:
            box = pending.pop()
            if id(box) not in seen:
                seen[id(box)] = box
                values, put = _opened(box)
                pending += values
                if put is not None:
                    self.content.append((values, put))
        self.masks: dict[int, bool] = {}  # whether a module is dropout, once that is known
        self.modules = [box for box in seen.values() if isinstance(box, nn.Module)]

    @contextlib.contextmanager
    def exchanged(self, copies: dict[int, Tensor], dtype: torch.dtype) -> Iterator[None]:
        """Modules without dropout and with copies in place of all tensors.

        The tensors themselves are never written to, and what a forward leaves behind is gone
        afterwards. `copies` are by the id of the original, so that what was tied stays tied.
        """

        def exchange(value: Any) -> Any:
            if isinstance(value, Tensor):
                if id(value) not in copies:
                    copies[id(value)] = widened(value, dtype)
                return copies[id(value)]
            if isinstance(value, tuple | frozenset):
                items = [exchange(item) for item in value]
                if any(map(operator.is_not, items, value)):
                    return value._make(items) if hasattr(value, "_make") else type(value)(items)
            return value

        try:
            for values, put in self.content:
                items = [exchange(value) for value in values]
                if any(map(operator.is_not, items, values)):
                    put(items)
            for module in self.modules:
                _adjust(module, self.masks)
            yield
        finally:
            for values, put in self.content:
                put(values)


def _opened(box: Any) -> tuple[list[Any], Put | None]:
    """What a container or an object holds, and a function that puts values in their places."""
    if isinstance(box, dict):
        keys = list(box)
        return list(box.values()), lambda values: _refill(box, zip(keys, values, strict=True))
    if isinstance(box, list | set | deque):
        return list(box), lambda values: _refill(box, values)
    if isinstance(box, tuple | frozenset):
        return list(box), None
    if isinstance(box, MethodType):
        return [box.__self__], None
    for kind, get, restore in STATES:
        if isinstance(box, kind):
            return [], partial(lambda restore, state, _: restore(box, state), restore, get(box))
    # A module's class may be nowhere at home: one that `exec` made says that it is a builtin.
    foreign = str(type(box).__module__).split(".")[0] in FOREIGN and not isinstance(box, nn.Module)
    if isinstance(box, Tensor | type) or foreign:
        return [], None
    slots = _slots(box)

    def put(values: Iterable[Any]) -> None:
        for name in _slots(box).keys() - slots.keys():
            object.__delattr__(box, name)
        for name, value in zip(slots, values, strict=False):
            object.__setattr__(box, name, value)

    return [*slots.values(), getattr(box, "__dict__", None)], put


def _slots(box: object) -> dict[str, Any]:
    state = object.__getstate__(box)  # the dictionary, or a pair of it and the slots
    return state[1] if isinstance(state, tuple) else {}


def _refill(box: Any, content: Iterable[Any]) -> None:
    """Put other values in a container; no method that a subclass may forbid."""
    box.clear()
    if isinstance(box, dict):
        for key, value in content:
            box[key] = value
    else:
        (box.update if isinstance(box, set) else box.extend)(content)


def _adjust(module: nn.Module, masks: dict[int, bool]) -> None:
    """No dropout, and no batch too small."""
    state = vars(module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.register_forward_pre_hook(_enough)
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        state["dropout"] = 0.0
    if not (state["_modules"] or state["_parameters"] or state["_buffers"]):
        module.register_forward_pre_hook(partial(_unmasked, masks))


def _unmasked(masks: dict[int, bool], module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Switch off dropout of any name: what keeps zeros in training, and anything otherwise.

    As part of the function it would hide symmetries: a bias that the next batch norm removes has
    an effect once stochastic depth gives it to some examples only.
    """
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        return
    if id(module) not in masks:
        x, state = inputs[0].detach(), vars(module).copy()

        def keeps(x: Tensor, training: bool) -> bool:
            module.training = training
            found = module.forward(x.clone())
            return isinstance(found, Tensor) and found.shape == x.shape and torch.equal(found, x)

        with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            masks[id(module)] = keeps(torch.zeros_like(x), training=True) and keeps(
                x, training=False
            )
        vars(module).clear()
        vars(module).update(state)
    module.training = module.training and not masks[id(module)]


def _enough(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse what tells nothing: batch norm makes ±1 of any two values."""
    count = inputs[0].numel() // inputs[0].shape[1]
    if count < 3 and (module.training or module.running_mean is None):
        raise ValueError(
            f"batch norm gets {count} values a channel, at least 3 are needed; give a larger batch"
        )

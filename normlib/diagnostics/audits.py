"""Which parameters of any torch model decay can only rescale. Knows autograd and torch modules;
nothing of our networks.

A loss that does not change when tensors w_i are multiplied by a^c_i satisfies Σ c_i ⟨w_i, g_i⟩ = 0.
So the products ⟨w_i, g_i⟩, measured at several points, hold every such symmetry in their null
space. At the user's own point a small product proves nothing (β = 0, a zero head, ε); at a random
point, in float64 and with ε out of the way, symmetric and other tensors lie decades apart.
"""

import contextlib
import html
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

EPS = 1e-20  # torch's batch norm refuses 0; against a variance of order 1 this is none
INVARIANT = 1e-9  # |cos(w, g)|: symmetric tensors stay below 1e-14, others above 1e-6
NO_EFFECT = 1e-12  # |g| relative to the largest: true zeros stay below 1e-16, others above 1e-8
NULL = 1e-8  # singular value relative to the largest: null below 1e-13, others above 1e-3
WHOLE = 1e-5  # error of an exponent: below 1e-11 where there is a symmetry
CHANGE = 1e-9  # relative change of the loss that is more than rounding

DECAY = {
    "invariant": "sets the learning rate",
    "joint": "sets a joint scale, which sets the learning rate",
    "inverse": "balances a pair",
    "no effect": "nothing",
    "not invariant": "shrinks the function",
    "undecided": "not known",
}
SIGNS = "only its sign matters"
LOCAL = "invariant to small changes of scale only"
_FUSED = re.compile(r"(in_proj_|qkv\.)(weight|bias)$")
_NORMS = (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm, F.normalize)
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What `audit` found; print it, or ask for `to_dataframe()`.

    Attributes
    ----------
    model : nn.Module
        The audited model itself, unchanged.
    groups : list of dict
        Generators of the symmetries that need several tensors, name -> integer exponent c:
        multiplying each by a^c leaves the loss, for every a > 0. All exponents are positive in a
        joint group; both signs occur in an inverse one. They are a basis with few tensors in
        each; products of them are symmetries too.
    searched : str
        How far apart the tensors of a group may be to be found.
    """

    model: nn.Module
    groups: list[dict[str, int]]
    searched: str
    _table: pd.DataFrame

    @property
    def invariant(self) -> list[str]:
        """Names of what is scale-invariant alone, per channel, per head or as a tensor."""
        return list(self._table.index[self._table.verdict == "invariant"])

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each parameter, or for each third of a fused q/k/v projection.

        Returns
        -------
        pandas.DataFrame
            Indexed by name, e.g. ``attention.in_proj_weight[q]``, with the columns

            - parameter: its name in ``model.named_parameters()``;
            - shape: of the parameter or the third of it;
            - verdict: "invariant" (alone), "joint" (only together with others), "inverse" (one
              may grow as another shrinks), "no effect" (any value gives the same loss), "not
              invariant", "undecided";
            - per: what may be rescaled independently, "channel" (an output channel or row),
              "head" (a block of them, also a group of a GroupNorm), "tensor"; "" if nothing. Of
              several groups the finest counts;
            - blocks: how many of these there are; 0 if nothing;
            - groups: positions in `Audit.groups`;
            - norm, gradient_norm: at the model's own point, on the inputs as given;
            - spoiled: largest |cos| of weight and gradient over the blocks at the model's own
              point with its own ε; 0 where the invariance is exact, nan where there is none;
            - decay: what weight decay does there, in words;
            - note: why something is undecided, or what is special.
        """
        return self._table.copy()

    def param_groups(
        self, weight_decay: float, other: float = 0.0
    ) -> list[dict[str, list[nn.Parameter] | float]]:
        """Parameter groups for a torch optimizer: decay where it sets a learning rate.

        Parameters
        ----------
        weight_decay : float
            λ of what is scale-invariant, alone or jointly. A fused projection belongs here if one
            of its thirds does.
        other : float
            λ of everything else that is trainable: there decay shrinks the function, balances a
            pair, or does nothing.

        Returns
        -------
        list of dict
            At most two groups, none of them empty. Every trainable parameter is in exactly one,
            a tied one too; frozen ones are in none.

        Notes
        -----
        A group wider than the search window counts as "not invariant"; see ``full=True``.
        Chapter 09.
        """
        scale = set(self._table.parameter[self._table.decay.str.contains("learning rate")])
        split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                split[name in scale].append(p)
        decays = {True: weight_decay, False: other}
        return [{"params": split[k], "weight_decay": decays[k]} for k in split if split[k]]

    def _summary(self) -> pd.DataFrame:
        lines = []
        for verdict, decay in DECAY.items():
            some = self._table[self._table.verdict == verdict]
            for per, part in some.groupby("per" if verdict == "invariant" else "verdict"):
                kind = f"invariant per {per}" if verdict == "invariant" else verdict
                first = part.index[0] + ", …" * (len(part) > 1)
                lines.append((kind, len(part), decay, first))
        return pd.DataFrame(lines, columns=["verdict", "tensors", "weight decay", "e.g."])

    def _lines(self) -> tuple[str, str]:
        head = f"Audit of {type(self.model).__name__}: {len(self._table)} tensors"
        tail = f"{len(self.groups)} joint or inverse groups, searched {self.searched}"
        spoiled = self._table.spoiled
        if spoiled.max() > INVARIANT:
            tail += f"\nε spoils at most |cos(w, g)| = {spoiled.max():.1e}, in {spoiled.idxmax()}"
        return head, tail

    def __repr__(self) -> str:
        head, tail = self._lines()
        return f"{head}\n{self._summary().to_string(index=False)}\n{tail}"

    def _repr_html_(self) -> str:
        head, tail = (html.escape(line).replace("\n", "<br>") for line in self._lines())
        return f"<p>{head}</p>{self._summary().to_html(index=False)}<p>{tail}</p>"


@torch.inference_mode(False)  # which also enables gradients
def audit(
    model: nn.Module,
    inputs: Tensor | tuple | dict,
    targets: Tensor | None = None,
    loss: Callable[..., Tensor] | None = None,
    batches: int = 3,
    full: bool = False,
    window: int = 12,
    seed: int = 0,
) -> Audit:
    """Find out what weight decay can do to each parameter of a model.

    Parameters
    ----------
    model : nn.Module
        Any model on one device. It is left as it was, to the bit: values, buffers, gradients,
        flags, modes, hooks, attributes, and the global random state.
    inputs : Tensor, tuple or dict
        One batch for ``model(inputs)``, ``model(*inputs)`` or ``model(**inputs)``; 8 examples are
        enough. Batch norm needs at least 3 values a channel.
    targets : Tensor or None
        Given to `loss`. Without one, int64 class labels mean cross-entropy, targets of the
        output's shape mean squared error.
    loss : callable or None
        ``loss(output, targets)``, or ``loss(output)`` if there are no targets, -> scalar. None
        and no targets: squared distance of the output to fixed random numbers.
    batches : int
        Points and batches on which a single tensor must pass; at least 2.
    full : bool
        Search joint and inverse groups among all tensors at once: one gradient for each tensor,
        which is minutes for a large model. It finds groups along a whole residual stream.
    window : int
        Otherwise groups are searched among this many consecutive tensors; 1 searches none.
    seed : int
        Of the random points.

    Returns
    -------
    Audit

    Raises
    ------
    ValueError
        If nothing is trainable; if parameters are complex, sparse, uninitialised, without values
        or on several devices; if the loss is no finite scalar, or none was given where the output
        is no tensor; if batch norm gets fewer than 3 values a channel.

    Notes
    -----
    Runs in train mode, so that batch norm uses the batch's statistics; dropout and stochastic
    depth are off. It takes about ``window + 2 * batches`` gradients in float64, for which the
    tensors of the modules are exchanged for copies; hooks run with them. The points are the
    model's own plus noise, the batches are the inputs shuffled, floating ones with noise. What
    passed is then rescaled for real, by powers of 2 up and down, and must leave the loss.

    "Not invariant" means neither alone nor with neighbours in the window. An ε that is a literal
    in a home-made norm cannot be removed, and hides an invariance. A parameter named like a fused
    projection (``in_proj_weight``, ``qkv.weight``, and biases) is audited in three. Chapter 09.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = nl.audit(net, torch.randn(16, 4), torch.arange(16) % 2)
    >>> found.invariant
    ['0.weight']
    >>> found.groups
    [{'1.weight': 1, '1.bias': 1, '3.weight': -1}]
    >>> list(found.to_dataframe().verdict)
    ['invariant', 'no effect', 'inverse', 'inverse', 'inverse', 'not invariant']
    """
    if batches < 2 or window < 1:
        raise ValueError(f"batches must be at least 2 and window 1, got {batches} and {window}")
    _checked(model)
    problem = _Problem(model, inputs, targets, loss, seed)
    own = problem.measure({name: _wide(p) for name, p in problem.named.items()}, problem.batch)
    rows = [problem.at_random(k) for k in range(batches)]
    used = [part for part in problem.parts if own.used[part]]
    silent = [part for part in used if all(row.silent(part) for row in rows)]
    blocks = {part: _blocks({part: 1}, rows) for part in used if part not in silent}
    rest = [part for part in blocks if not blocks[part]]
    found = [_Symmetry({part: 1}, blocks[part]) for part in blocks if blocks[part]]
    found += _search(problem, rest, rows, len(rest) if full else min(window, len(rest)))
    held = problem.confirmed(found)
    never = problem.silent_anywhere(silent)
    unfelt = problem.replaceable(never)
    # Before a norm, a gain that is one number a channel has no gradient, but its sign matters.
    gains = [
        _Symmetry({part: 1}, len(part.of(p)))
        for part in never
        if part not in unfelt and part.of(p := problem.named[part.parameter]).shape[1] == 1
    ]
    signs = problem.confirmed(gains)

    fates = dict.fromkeys(problem.parts, ("undecided", "the loss does not use it"))
    fates |= dict.fromkeys(used, ("not invariant", ""))
    fates |= dict.fromkeys(silent, ("undecided", "dead on this data"))
    fates |= dict.fromkeys(unfelt, ("no effect", ""))
    for symmetry in found:
        fates |= dict.fromkeys(symmetry.exponents, ("not invariant", LOCAL))
    for symmetry in sorted(held, key=lambda symmetry: symmetry.kind):  # joint after inverse
        fates |= dict.fromkeys(symmetry.exponents, (symmetry.kind, ""))
    for symmetry in signs:
        fates |= dict.fromkeys(symmetry.exponents, ("invariant", SIGNS))
    groups = [symmetry for symmetry in held if len(symmetry.exponents) > 1]
    return Audit(
        model,
        [{part.name: c for part, c in group.exponents.items()} for group in groups],
        "among all tensors" if full else f"among {window} consecutive tensors",
        _table(problem.named, fates, held + signs, groups, own),
    )


def _search(problem, rest, first, size: int) -> list["_Symmetry"]:
    """The symmetries of several of the parts `rest`, each among `size` neighbours."""
    if size < 2:
        return []
    spans = [slice(k, k + size) for k in range(len(rest) - size + 1)]
    products = np.array([[row.product(part) for part in rest] for row in first])
    # Some rows more than the rank, or chance alone makes null vectors.
    while max(_factored(products[:, s])[0] for s in spans) + 2 * len(first) > len(products):
        row = problem.at_random(len(products))
        products = np.vstack([products, [row.product(part) for part in rest]])
    found = []
    for vector in _generators(products, spans):
        exponents = {part: int(c) for part, c in zip(rest, vector, strict=True) if c}
        found.append(_Symmetry(exponents, _blocks(exponents, first) or 1))
    return found


@dataclass(frozen=True)
class _Part:
    """A parameter, or one third of a fused projection."""

    name: str
    parameter: str
    third: int | None = None
    dim: int = 0  # the dimension of the output channels

    def rows(self, tensor: Tensor) -> Tensor:
        """A view of its entries, the channels first."""
        tensor = tensor.view(1) if tensor.ndim == 0 else tensor.transpose(0, self.dim)
        return tensor if self.third is None else tensor.chunk(3)[self.third]

    def of(self, tensor: Tensor) -> Tensor:
        """Its entries as a matrix, one row a channel."""
        rows = self.rows(tensor)
        return rows.reshape(len(rows), -1)

    def scaled(self, tensor: Tensor, factors: np.ndarray) -> Tensor:
        """A copy of the parameter with each of equal blocks of channels times its factor."""
        tensor = tensor.clone()
        rows = self.rows(tensor)
        each = torch.as_tensor(factors).to(rows).repeat_interleave(len(rows) // len(factors))
        rows.mul_(each.view(-1, *[1] * (rows.ndim - 1)))
        return tensor

    def replaced(self, tensor: Tensor, other: Tensor) -> Tensor:
        """A copy of the parameter with this part of it from another."""
        tensor = tensor.clone()
        self.rows(tensor).copy_(self.rows(other))
        return tensor


@dataclass(frozen=True, eq=False)
class _Symmetry:
    """Multiplying each tensor by a^exponent leaves the loss, with its own a for each block."""

    exponents: dict[_Part, int]
    blocks: int

    @property
    def kind(self) -> str:
        if len(self.exponents) == 1:
            return "invariant"
        return "joint" if min(self.exponents.values()) > 0 else "inverse"


@dataclass(frozen=True)
class _Row:
    """Of each part ⟨w, g⟩, ‖w‖² and ‖g‖², a (3, channels) array; the largest ‖g‖ of all."""

    stats: dict[_Part, np.ndarray]
    used: dict[_Part, bool]
    top: float

    def norm(self, part: _Part) -> float:
        return math.sqrt(self.stats[part][2].sum())

    def silent(self, part: _Part) -> bool:
        return self.norm(part) <= NO_EFFECT * self.top

    def product(self, part: _Part) -> float:
        return float(self.stats[part][0].sum())

    def along(self, exponents: dict[_Part, int]) -> np.ndarray:
        """The same three for c_i w_i of several parts together."""
        stats = [self.stats[part] for part in exponents]
        if len({s.shape[1] for s in stats}) > 1:
            stats = [s.sum(1, keepdims=True) for s in stats]
        weights = [np.array([[c], [c**2], [1]]) for c in exponents.values()]
        return sum(w * s for w, s in zip(weights, stats, strict=True))


class _Double(TorchFunctionMode):
    """Gives double precision where a forward asks for less by name, and ε to functional norms."""

    def __init__(self, eps: float | None) -> None:
        super().__init__()
        self.eps = eps

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wide(value):
            is_narrow = isinstance(value, torch.dtype) and value in _NARROW
            return torch.float64 if is_narrow else value

        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        kwargs = {key: wide(value) for key, value in (kwargs or {}).items()}
        if self.eps is not None and func in _NORMS and "eps" in kwargs:
            kwargs["eps"] = self.eps
        return func(*map(wide, args), **kwargs)


class _Problem:
    """A model, a batch and a loss, evaluated at points of ours without leaving a trace."""

    def __init__(self, model, inputs, targets, loss, seed) -> None:
        if not isinstance(inputs, Tensor | tuple | dict):
            kind = type(inputs).__name__
            raise ValueError(f"inputs must be a tensor, or a tuple or dict of tensors; got {kind}")
        self.model, self.batch, self.loss, self.seed = model, (inputs, targets), loss, seed
        self.named = dict(model.named_parameters())
        self.sizes = {name: _size_of(p) for name, p in self.named.items()}
        self.parts = _parts(model)
        self.modules = [*model.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())]

    def evaluate(self, values, batch, number=0, eps=EPS, wanted=()):
        """The loss, and its gradients by name (None where the loss does not use a parameter)."""
        device = next(iter(self.named.values())).device
        inputs, targets = tree_map_only(Tensor, lambda x: _wide(x).to(device), batch)
        arguments = inputs if isinstance(inputs, tuple | dict) else (inputs,)
        fresh = {
            id(self.named[name]): nn.Parameter(value, requires_grad=name in wanted)
            for name, value in values.items()
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(_undisturbed(self.seed + number))
            stack.enter_context(_exchanged(self.modules, fresh, eps))
            stack.enter_context(_Double(eps))
            by_name = isinstance(arguments, dict)
            output = self.model(**arguments) if by_name else self.model(*arguments)
            loss = _loss(self.loss, output, targets, self.seed + number)
            if not wanted:
                return loss.item(), {}
            if not loss.requires_grad:
                raise ValueError("the loss depends on no trainable parameter; is it detached?")
            # Inside the block, or a checkpointed forward would be repeated with other tensors.
            leaves = [fresh[id(self.named[name])] for name in wanted]
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        return loss.item(), dict(zip(wanted, gradients, strict=True))

    def measure(self, values, batch, number=0, eps=None, where="the model's own point") -> _Row:
        wanted = list(dict.fromkeys(part.parameter for part in self.parts))
        loss, gradients = self.evaluate(values, batch, number, eps, wanted)
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at {where}; check inputs, targets and loss")
        stats, used = {}, {}
        for part in self.parts:
            gradient = gradients[part.parameter]
            used[part] = gradient is not None
            w = part.of(values[part.parameter])
            g = part.of(gradient.to_dense()) if used[part] else torch.zeros_like(w)
            norms = (torch.linalg.vector_norm(x, dim=1).square() for x in (w, g))
            stats[part] = torch.stack([(w * g).sum(1), *norms])
        stats = {part: s.cpu().numpy() for part, s in stats.items()}
        return _Row(stats, used, max(math.sqrt(s[2].sum()) for s in stats.values()))

    def at_random(self, number, far=False) -> _Row:
        where = "a random point near the model's own"
        return self.measure(*self.point(number, far), number, EPS, where)

    def point(self, number=0, far=False):
        """A random point near the model's own, or anywhere, and another batch."""
        generator = torch.Generator().manual_seed(self.seed + number)
        values = {}
        for name, p in self.named.items():
            if not p.requires_grad:  # what is frozen is part of the function
                values[name] = _wide(p)
                continue
            noise = torch.rand(p.shape, generator=generator).sub_(0.5).to(p.device)
            if far:
                values[name] = (noise * (3 * self.sizes[name])).double()
            else:
                values[name] = torch.add(p.detach(), noise, alpha=1.5 * self.sizes[name]).double()
        inputs, targets = self.batch
        return values, (
            tree_map_only(Tensor, _shuffler(generator, 0.5), inputs),
            tree_map_only(Tensor, _shuffler(generator, 0.0), targets),
        )

    def unfelt(self, some, replace):
        """Those of `some` that leave the loss at a random point when `replace` changes values."""
        if not some:
            return []
        values, batch = self.point()

        def loss(some):
            changed = dict(values)
            for one in some:
                replace(one, changed)
            return self.evaluate(changed, batch)[0]

        before, passed, pending = loss([]), [], [list(some)]
        while pending:
            part = pending.pop()
            after, half = loss(part), len(part) // 2
            if abs(after - before) <= CHANGE * max(abs(before), abs(after)):
                passed += part
            elif half:  # what is felt is looked for in either half
                pending += [part[half:], part[:half]]
        return passed

    def confirmed(self, symmetries):
        """Those that leave the loss under actual, large changes of scale, up and down."""
        draw = np.random.default_rng(self.seed)
        for powers in ([3, 4, 5], [-3, -4, -5]):

            def rescale(symmetry, values, powers=powers):
                # Powers of 2 are exact, so that rounding does not blur the answer.
                power = draw.choice(powers, symmetry.blocks)
                for part, c in symmetry.exponents.items():
                    values[part.parameter] = part.scaled(values[part.parameter], 2.0 ** (c * power))

            symmetries = self.unfelt(symmetries, rescale)
        return symmetries

    def silent_anywhere(self, silent):
        """Those of the silent that are so far from the model's own point too, not just dead."""
        if silent:
            with contextlib.suppress(ValueError):  # not every model has a finite loss everywhere
                row = self.at_random(0, far=True)
                return [part for part in silent if row.silent(part)]
        return silent

    def replaceable(self, silent):
        """Those of the silent that may have any value."""
        others, _ = self.point(far=True) if silent else ({}, None)

        def replace(part, values):
            values[part.parameter] = part.replaced(values[part.parameter], others[part.parameter])

        return self.unfelt(silent, replace)


def _checked(model: nn.Module) -> None:
    """Raise if the model's parameters cannot be audited."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, p in tensors.items():
        if isinstance(p, nn.parameter.UninitializedTensorMixin):
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


def _parts(model: nn.Module) -> list[_Part]:
    """What can be trained, fused projections in three."""
    transposed = {
        id(m._parameters.get("weight"))
        for m in model.modules()
        if isinstance(m, nn.modules.conv._ConvTransposeNd) and m.groups == 1
    }
    parts = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if _FUSED.search(name) and len(p) % 3 == 0:
            parts += [_Part(f"{name}[{q}]", name, k, 0) for k, q in enumerate("qkv")]
        else:
            parts.append(_Part(name, name, None, int(id(p) in transposed)))
    return parts


@contextlib.contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """Fixed random numbers, and double precision by default; afterwards all is as it was."""
    kept = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_default_dtype(kept[2])


@contextlib.contextmanager
def _exchanged(
    modules: Sequence[nn.Module], fresh: dict[int, Tensor], eps: float | None
) -> Iterator[None]:
    """Modules in train mode with copies in place of all their tensors, and with another ε.

    The user's tensors are never written to, and what a forward leaves in a module (buffers,
    attributes, items of its lists and dicts) is gone afterwards.
    """
    fresh = dict(fresh)  # by the id of the original, so that what was tied stays tied

    def copy(tensor):
        if id(tensor) not in fresh:
            fresh[id(tensor)] = _wide(tensor)
        return fresh[id(tensor)]

    kept = []
    for module in modules:
        boxes = [box for box in vars(module).values() if isinstance(box, dict | list | set)]
        kept += [(box, box.copy()) for box in (vars(module), *boxes)]
    try:
        for box, content in kept:
            if isinstance(box, set):
                continue
            for key, value in content.items() if isinstance(box, dict) else enumerate(content):
                if isinstance(value, Tensor):
                    box[key] = copy(value)
        for module in modules:
            state = vars(module)
            # Class names, since others' dropout and drop-path layers share no base with torch's.
            state["training"] = not re.search("drop|stochasticdepth", type(module).__name__.lower())
            if isinstance(state.get("dropout"), float):
                state["dropout"] = 0.0
            for name in ("eps", "epsilon", "variance_epsilon"):
                if eps is not None and isinstance(state.get(name), float) and state[name] < 1e-2:
                    state[name] = eps
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(_enough)
        yield
    finally:
        for box, content in kept:
            box.clear()
            if isinstance(box, list):
                box.extend(content)
            else:
                box.update(content)


def _enough(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse what tells nothing: batch norm makes ±1 of any two values."""
    count = inputs[0].numel() // inputs[0].shape[1]
    if count < 3:
        raise ValueError(
            f"batch norm gets {count} values a channel, at least 3 are needed; give a larger batch"
        )


def _wide(tensor: Tensor) -> Tensor:
    """A copy, in double precision if it holds floats."""
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True)


def _size_of(parameter: Tensor) -> float:
    """What is large for an entry: their root mean square, or what an initialization makes."""
    w = parameter.detach()
    fan = w[0].numel() if w.ndim > 1 else 1
    return max(float(w.double().square().mean().sqrt()), fan**-0.5)


def _shuffler(generator: torch.Generator, noise: float) -> Callable[[Tensor], Tensor]:
    """Makes another batch: floats in another order and with noise, integers from those given."""

    def shuffle(tensor):
        if tensor.ndim == 0:
            return tensor
        if tensor.dtype != torch.bool and not tensor.is_floating_point():
            # position by position, so that masks, lengths and position ids stay what they are
            order = torch.rand(tensor.shape, generator=generator).argsort(0)
            return tensor.gather(0, order.to(tensor.device))
        tensor = _wide(tensor)[torch.randperm(len(tensor), generator=generator).to(tensor.device)]
        if not noise or tensor.dtype == torch.bool:
            return tensor
        spread = float(tensor[tensor.isfinite()].std(correction=0)) or 1.0
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor + noise * spread * drawn.to(tensor.device)

    return shuffle


def _loss(loss, output, targets, seed: int) -> Tensor:
    """The user's loss, or one that suits the targets."""
    if loss is not None:
        value = loss(output) if targets is None else loss(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return one number, got {kind}; take its mean or sum")
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


def _blocks(exponents: dict[_Part, int], rows: Sequence[_Row]) -> int:
    """Into how many equal blocks of channels a symmetry splits at most; 0 if it is none."""
    stats = np.stack([row.along(exponents) for row in rows])
    top = np.array([[row.top] for row in rows])
    length = stats.shape[-1]
    for blocks in (d for d in range(length, 0, -1) if length % d == 0):
        product, w2, g2 = np.moveaxis(_fold(stats, blocks), 1, 0)
        if (np.abs(product) <= np.sqrt(w2) * (INVARIANT * np.sqrt(g2) + NO_EFFECT * top)).all():
            return blocks
    return 0


def _fold(stats: np.ndarray, blocks: int) -> np.ndarray:
    """Sums over the channels of each block."""
    return stats.reshape(*stats.shape[:-1], blocks, -1).sum(-1)


def _spoiled(symmetry: _Symmetry, row: _Row) -> float:
    """Largest |cos| of weights and gradient over the blocks of a symmetry that are alive."""
    product, w2, g2 = _fold(row.along(symmetry.exponents), symmetry.blocks)
    alive = (np.sqrt(g2) > NO_EFFECT * row.top) & (w2 > 0)
    cosines = np.abs(product[alive]) / np.sqrt(w2[alive] * g2[alive])
    return float(cosines.max()) if len(cosines) else math.nan


def _factored(products: np.ndarray) -> tuple[int, np.ndarray]:
    """Rank and null space (vectors in rows) of the products, whose columns differ in size."""
    scale = np.sqrt((products**2).mean(0))
    scale[scale == 0] = 1
    scaled = products / scale
    size = np.linalg.norm(scaled, axis=1, keepdims=True)
    _, values, vectors = np.linalg.svd(scaled / np.where(size == 0, 1, size))
    rank = int((values > NULL * values[0]).sum())
    return rank, vectors[rank:] / scale


def _generators(products: np.ndarray, spans: Sequence[slice]) -> list[np.ndarray]:
    """Integer exponents of independent symmetries, each inside a span and with few tensors."""
    found = set()
    for span in spans:
        _, null = _factored(products[:, span])
        for vector in _sparse(_integers(null)) if len(null) else []:
            whole = np.zeros(products.shape[1], int)
            whole[span] = vector
            found.add(tuple(map(int, whole)))
    basis: list[np.ndarray] = []
    for vector in sorted(found, key=lambda vector: (*_size(vector), vector)):
        if np.linalg.matrix_rank(np.array([*basis, vector])) > len(basis):
            basis.append(np.array(vector))
    return sorted(_sparse(basis), key=lambda vector: np.flatnonzero(vector).tolist())


def _integers(null: np.ndarray) -> list[np.ndarray]:
    """A basis of a null space in small integers; what is none is left out."""
    from scipy.linalg import qr  # slow to import, and few need it

    pivots = qr(null, mode="r", pivoting=True)[1][: len(null)]
    found = []
    for row in np.linalg.solve(null[:, pivots], null):
        for multiple in range(1, 7):
            whole = (multiple * row).round()
            if np.abs(multiple * row - whole).max() < WHOLE:
                found.append(whole.astype(int))
                break
    return found


def _sparse(vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same symmetries with fewer tensors each, by adding multiples pair by pair."""
    vectors = list(vectors)
    better = True
    while better:
        better = False
        for i, j in itertools.permutations(range(len(vectors)), 2):
            both = np.flatnonzero(vectors[i] * vectors[j])
            for p, q in {(int(vectors[i][k]), int(vectors[j][k])) for k in both}:
                new = q * vectors[i] - p * vectors[j]
                new //= np.gcd.reduce(new)
                if _size(new) < _size(vectors[i]):
                    vectors[i], better = new, True
                    break
    return [v * int(np.sign(v[np.flatnonzero(v)[0]])) for v in vectors]


def _size(vector: Sequence[int]) -> tuple[int, int]:
    return np.count_nonzero(vector), int(np.abs(vector).sum())


def _table(named, fates, symmetries, groups, own) -> pd.DataFrame:
    """One row for each parameter or third, in the model's order."""
    fates = {part.name: (part, *fate) for part, fate in fates.items()}
    lines = []
    for name, p in named.items():
        ours = [fate for fate in fates.values() if fate[0].parameter == name]
        for part, verdict, note in ours or [(_Part(name, name), "undecided", "frozen")]:
            values = part.rows(_wide(p))
            mine = [s for s in symmetries if part in s.exponents]
            blocks = max((s.blocks for s in mine if s.kind == verdict), default=0)
            signs = note == SIGNS
            lines.append(
                {
                    "name": part.name,
                    "parameter": name,
                    "shape": tuple(p.shape if part.third is None else values.shape),
                    "verdict": verdict,
                    "per": {len(values): "channel", 1: "tensor", 0: ""}.get(blocks, "head"),
                    "blocks": blocks,
                    "groups": tuple(k for k, group in enumerate(groups) if part in group.exponents),
                    "norm": float(values.double().norm()),
                    "gradient_norm": own.norm(part) if part in own.stats else math.nan,
                    "spoiled": max((_spoiled(s, own) for s in mine if not signs), default=math.nan),
                    "decay": DECAY["no effect" if signs else verdict],
                    "note": note,
                }
            )
    return pd.DataFrame(lines).set_index("name")

"""Which scales of its tensors a forward leaves free, read off its operations. Knows no values.

Every tensor of a forward gets a degree: what power of a common factor it takes on when each
parameter is multiplied by a power of that factor. A product adds degrees, a sum needs equal ones,
a norm ends them. So a forward is a system of linear equations for the exponents, as units are in
physics, and its solutions are the scale symmetries: proposals, for an operation that `operations`
does not know counts as one that no scale passes.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from normlib.diagnostics.pieces import Layout, Piece, named_pieces, row_layout, stacked_layout
from normlib.diagnostics.symmetries import proposals

Variable = tuple[str, frozenset[int] | None]  # a parameter's rows that act as one; None is all
Degree = dict[Any, Fraction]  # of each variable's exponent, how much
MANY = 64  # pieces of one parameter; what has more is left whole

VIEWS = set(
    """view reshape view_as reshape_as permute transpose t T mT H chunk split split_with_sizes
    tensor_split unbind select narrow getitem squeeze unsqueeze flatten unflatten movedim moveaxis
    swapaxes swapdims expand expand_as unsafe_chunk unsafe_split hsplit vsplit dsplit""".split()  # noqa: SIM905
)
KEPT = set(
    """dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout clone contiguous
    detach to float double half bfloat16 type type_as cuda cpu data requires_grad_""".split()  # noqa: SIM905
)


def combined(*terms: tuple[Degree, Fraction | int]) -> Degree:
    """The sum of multiples of degrees."""
    total: Degree = {}
    for degree, times in terms:
        for variable, coefficient in degree.items():
            total[variable] = total.get(variable, Fraction(0)) + coefficient * times
    return {variable: value for variable, value in total.items() if value}


@dataclass(frozen=True)
class Traced:
    """What is known of a tensor that a forward computes.

    As long as only views of a product with a parameter are taken, its features may still part
    ways: then `features` has the tensor's shape and the number of the feature of each entry, and
    `sources` are the parameters whose rows make them, with the rows of each feature.
    """

    degree: Degree
    features: Tensor | None = None
    sources: tuple[tuple[str, Tensor | None], ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter of the forward, or a view of it, with the views that were taken."""

    name: str
    views: tuple[Callable[[Tensor], Tensor], ...] = ()


class Units(TorchFunctionMode):
    """Writes down what each operation of a forward demands of the degrees.

    `shapes` are those of the parameters that the forward will use, `rules` what an operation of
    some name demands, and `otherwise` what any other does.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        rules: Mapping[str, Callable[..., Any]],
        otherwise: Callable[..., Degree],
    ) -> None:
        super().__init__()
        self.shapes, self.rules, self.otherwise = dict(shapes), rules, otherwise
        self.seen: dict[int, tuple[Tensor, Traced | Parameter]] = {}
        self.equations: list[Degree] = []
        self.activations: list[Degree] = []  # of what is computed, in the forward's order
        self.parts: dict[str, dict[frozenset[int] | None, None]] = defaultdict(dict)
        self.given: dict[str, list[tuple[int, ...]]] = {}
        self.layouts: dict[str, Layout] = {}
        self.labels: dict[str, str] = {}
        self.forms: dict[str, set[str]] = defaultdict(set)  # such as "1 + w"
        self.uses: dict[str, set[str]] = defaultdict(set)  # in the order of the last use
        self.unknown: dict[str, None] = {}

    def begin(self, *tensors: Mapping[str, Tensor]) -> None:
        """Say which tensors the parameters are, and of which they are copies."""
        for named in tensors:
            self.seen |= {id(p): (p, Parameter(name)) for name, p in named.items()}

    def cut(self, name: str, sizes: Sequence[int]) -> None:
        """Cut a parameter's rows where the user says."""
        if name not in self.shapes:
            raise ValueError(f"split names {name!r}, which is no parameter of the model")
        rows = self._layout(name).rows
        if sum(sizes) != rows or min(sizes, default=0) < 1:
            raise ValueError(
                f"split={{{name!r}: {list(sizes)}}} must be positive and sum to its {rows} rows"
            )
        ends = list(itertools.accumulate(sizes, initial=0))
        self.parts[name].pop(None, None)
        self.given[name] = [tuple(range(*pair)) for pair in itertools.pairwise(ends)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if not any(id(leaf) in self.seen for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if name == "iter":
            return iter(self.__torch_function__(Tensor.unbind, types, args, kwargs))
        if name in VIEWS or name in KEPT:
            first = args[0] if args else kwargs.get("input", kwargs.get("self"))
            known = self.seen.get(id(first))
            out = func(*args, **kwargs)
            if known is not None:
                same = name in KEPT
                self._view(known[1], out, None if same else lambda t: func(t, *args[1:], **kwargs))
            return out
        rule = self.rules.get(name)
        # Before the operation for what it changes in place, after it for its shape.
        demanded: Any = rule(self, args, kwargs) if rule else None
        out = func(*args, **kwargs)
        outs = [args[0]] if name == "setitem" else tree_leaves(out)
        outs = [one for one in outs if isinstance(one, Tensor) and one.is_floating_point()]
        if outs and rule is None:
            demanded = self.otherwise(self, name, args, kwargs)
        for tensor in outs:
            self.note(tensor, demanded(tensor) if callable(demanded) else demanded)
        return out

    def note(self, tensor: Tensor, found: Degree | Traced) -> None:
        """Remember what a tensor is; it stays alive, so that its id stays its own."""
        traced = found if isinstance(found, Traced) else Traced(found)
        self.seen[id(tensor)] = (tensor, traced)
        if traced.features is None:
            self.activations.append(traced.degree)

    def parameter(self, tensor: Any) -> Parameter | None:
        """The parameter that a tensor is or is a view of."""
        known = self.seen.get(id(tensor), (None, None))[1]
        return known if isinstance(known, Parameter) else None

    def third(self, tensor: Tensor, k: int) -> Tensor:
        """One of three equal parts of a tensor's rows."""
        part = tensor.chunk(3)[k]
        if id(tensor) in self.seen:
            self._view(self.seen[id(tensor)][1], part, lambda t: t.chunk(3)[k])
        return part

    def degree(self, tensor: Any) -> Degree:
        """Of a tensor that an operation takes whole; what is not computed from parameters has 0."""
        known = self.seen.get(id(tensor), (None, None))[1]
        if known is None or not tensor.numel():
            return {}
        if isinstance(known, Parameter):
            return {self._variable(known.name, self._rows(known)): Fraction(1)}
        return self._settled(known)

    def _settled(self, known: Traced) -> Degree:
        """The degree of features that part ways no more."""
        if known.features is None:
            return known.degree
        kept, first = _distinct(known.features), None
        degree = known.degree
        for name, mapping in known.sources:
            rows = None if mapping is None else frozenset(mapping[kept].flatten().tolist())
            mine = {self._variable(name, rows): Fraction(1)}
            if first is None:
                first = mine
                degree = combined((degree, 1), (mine, 1))
            else:  # a bias has the degree of what it is added to
                self.equal(mine, degree)
        self.activations.append(degree)
        return degree

    def used(self, name: str, how: str) -> None:
        self.uses[name] = self.uses.pop(name, set()) | {how}

    def equal(self, one: Degree, other: Degree) -> None:
        difference = combined((one, 1), (other, -1))
        if difference:
            self.equations.append(difference)

    def product(
        self, degree: Degree, weight: Any, bias: Any, column: bool, layout: Layout | None = None
    ) -> Callable[[Tensor], Traced | Degree]:
        """Of an input of some degree with a parameter whose rows make features, and a bias."""
        view = self.parameter(weight)
        if view is not None:
            self.used(view.name, "matrix")
        if view is None or (bias is not None and self.parameter(bias) is None):
            total = combined((degree, 1), (self.degree(weight), 1))
            if bias is not None:
                self.equal(self.degree(bias), total)
            return lambda out: total
        mapping = self._features(view, column, layout)
        sources = [(view.name, mapping)]
        if bias is not None:
            owner = self.parameter(bias)
            assert owner is not None
            rows = self._replayed(owner)
            sources.append((owner.name, None if rows is None else rows.reshape(-1, 1)))
        # Channels of a convolution are the second axis, features of a matrix the last.
        batched = len(self.shapes[view.name])

        def traced(out: Tensor) -> Traced | Degree:
            axis = -1 if layout is None else int(out.ndim == batched)
            count = out.shape[axis]
            if any(rows is not None and len(rows) != count for _, rows in sources):
                apart = tuple((name, None) for name, _ in sources)
                return self._settled(Traced(degree, torch.zeros(1, dtype=torch.long), apart))
            shape = [1] * out.ndim
            shape[axis] = count
            features = torch.arange(count).view(shape).expand(out.shape)
            return Traced(degree, features, tuple(sources))

        return traced

    def _features(self, view: Parameter, column: bool, layout: Layout | None) -> Tensor | None:
        """Rows of a parameter by output feature, (features, any); None if they do not lie so."""
        shape = self.shapes[view.name]
        if view.name in self.layouts:
            options = [self.layouts[view.name]]
        elif layout is not None or len(shape) < 2:
            options = [layout or row_layout(shape)]
        else:
            options = [stacked_layout(shape), stacked_layout(shape, column=True)]
        for option in options:
            index = self._replayed(view, option)
            if index is None or index.ndim < 2:
                continue
            if layout is not None:
                found = torch.arange(option.rows).view(-1, 1) if not view.views else None
            else:
                across = -2 if column else -1
                if index.stride(across) and index.shape[across] > 1:
                    continue
                found = index.select(across, 0)
                found = found.reshape(-1, found.shape[-1]).T
            self.layouts[view.name] = option
            return found
        return None

    def _layout(self, name: str) -> Layout:
        return self.layouts.setdefault(name, row_layout(self.shapes[name]))

    def _replayed(self, view: Parameter, layout: Layout | None = None) -> Tensor | None:
        """The number of the row of each entry of a view of a parameter."""
        layout = layout or self._layout(view.name)
        index = layout.spread(torch.arange(layout.rows), self.shapes[view.name])
        try:
            for step in view.views:
                index = step(index)
        except (RuntimeError, TypeError, IndexError):  # e.g. a view as another dtype
            return None
        return index

    def _rows(self, view: Parameter) -> frozenset[int] | None:
        index = self._replayed(view) if view.views else None
        return None if index is None else frozenset(_distinct(index).tolist())

    def _variable(self, name: str, rows: frozenset[int] | None) -> Variable:
        if rows is not None and len(rows) == self._layout(name).rows:
            rows = None
        self.parts[name][rows] = None
        return name, rows

    def _view(
        self,
        known: Traced | Parameter,
        out: Any,
        view: Callable[[Tensor], Any] | None,
    ) -> None:
        """What is known of a tensor is known of its views."""
        leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if isinstance(known, Parameter):
            for k, leaf in enumerate(leaves):
                step = () if view is None else (_nth(view, k),)
                self.seen[id(leaf)] = leaf, replace(known, views=known.views + step)
            return
        features = [known.features] * len(leaves)
        if known.features is not None and view is not None:
            try:
                features = tree_leaves(view(known.features))
            except (RuntimeError, TypeError):
                features = []
        if len(features) != len(leaves) or any(
            f is not None and f.shape != leaf.shape
            for f, leaf in zip(features, leaves, strict=True)
        ):
            known, features = Traced(self._settled(known)), [None] * len(leaves)
        for leaf, mine in zip(leaves, features, strict=True):
            self.seen[id(leaf)] = leaf, replace(known, features=mine)

    def solved(self) -> tuple[dict[str, list[Piece]], list[dict[str, int]]]:
        """The parameters in pieces that the forward uses apart, and which exponents are free.

        Pieces of one parameter that every solution gives the same exponent are one piece.
        """
        parted = {name: self.given.get(name) or self._parted(name) for name in self.shapes}
        found: list[dict[str, int]] = []
        for last in (False, True):
            pieces = {
                name: named_pieces(name, self._layout(name), parts, self.labels.get(name, ""))
                for name, parts in parted.items()
            }
            if not last or any(parted.values()):  # the second time with fewer pieces
                names = [piece.name for some in pieces.values() for piece in some]
                found = proposals(*self._system(pieces), names)
            for name, some in pieces.items() if not last else ():
                if parted[name] and name not in self.given:
                    parted[name] = _joined(some, found)
        return pieces, found

    def _parted(self, name: str) -> list[tuple[int, ...]]:
        """Rows that are never used together, in order; none if they all are."""
        parts = list(self.parts.get(name, ()))
        if not parts or None in parts:
            return []
        groups: list[set[int]] = []
        for part in parts:
            joined = set(part or ())
            apart = []
            for group in groups:
                if joined & group:
                    joined |= group
                else:
                    apart.append(group)
            groups = [*apart, joined]
        rest = set(range(self._layout(name).rows)).difference(*groups)
        groups += [rest] if rest else []
        return sorted(map(tuple, map(sorted, groups))) if len(groups) <= MANY else []

    def _system(self, pieces: Mapping[str, list[Piece]]) -> tuple[list[Degree], list[Degree]]:
        """Equations and activations in the exponents of pieces."""
        owner: dict[Variable, Degree] = {}
        equal: list[Degree] = []
        for name, parts in self.parts.items():
            for rows in parts:
                first, *others = (
                    p.name
                    for p in pieces[name]
                    if rows is None or p.chosen is None or not rows.isdisjoint(p.chosen)
                )
                owner[name, rows] = {first: Fraction(1)}
                equal += [{first: Fraction(1), other: Fraction(-1)} for other in others]

        def renamed(degree: Degree) -> Degree:
            return combined(*((owner[variable], times) for variable, times in degree.items()))

        return equal + list(map(renamed, self.equations)), list(map(renamed, self.activations))


def _joined(pieces: list[Piece], found: list[dict[str, int]]) -> list[tuple[int, ...]]:
    """Rows of one parameter, those together whose exponents always agree and are not all 0."""
    together: dict[Any, list[int]] = {}
    for piece in pieces:
        exponents = tuple(one.get(piece.name, 0) for one in found)
        together.setdefault(exponents if any(exponents) else piece.name, []).extend(piece.rows)
    return sorted(tuple(sorted(rows)) for rows in together.values())


def _distinct(index: Tensor) -> Tensor:
    """The different numbers in a tensor that repeats itself along some axes."""
    return index[tuple(slice(None) if step else 0 for step in index.stride())].unique()


def _nth(view: Callable[[Tensor], Any], k: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tree_leaves(view(tensor))[k]


def _name(func: Any) -> str:
    """The operation's name, the same for a function, a method, an operator and one in place."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        return getattr(getattr(func, "__self__", None), "__name__", name)
    dunder = name.startswith("__") and name.endswith("__")
    name = name.strip("_")
    if dunder and name[:1] == "i" and name[1:] in ("add", "sub", "mul", "truediv", "div", "pow"):
        name = name[1:]
    return {"truediv": "div", "rtruediv": "rdiv", "radd": "add", "rmul": "mul"}.get(name, name)

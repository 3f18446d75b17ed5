"""What weight decay can do to each tensor of any model. Knows `probe` and `symmetries`."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from normlib.diagnostics import symmetries
from normlib.diagnostics.arguments import Inputs, Loss
from normlib.diagnostics.pieces import Piece, Weights
from normlib.diagnostics.probe import WRAPPERS, Probe
from normlib.diagnostics.reports import DECAY, Audit
from normlib.diagnostics.symmetries import Sample, Symmetry

# At the user's own point a small product of weights and gradient proves nothing (β = 0, a zero
# head, ε); at a random point, in float64 and with ε out of the way, symmetric and other tensors
# lie decades apart.

SIGNS = "only its sign matters"
CHOOSES = "has no gradient; it only chooses, and its scale changes no choice"
STRAIGHT = "exactly, but the gradient is a stand-in that does not know it (straight-through)"
LITERAL = "but for an ε that could not be removed"
LOCAL = "invariant to small changes of scale only"
SMALL = 1e-3  # |cos(w, g)| that an ε may cause


@torch.inference_mode(False)  # which also enables gradients
def audit(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor | None = None,
    loss: Loss | None = None,
    batches: int = 2,
    full: bool = False,
    split: Mapping[str, Sequence[int]] | None = None,
    noise: float = 0.5,
    shuffle: bool = True,
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
        Search groups also by the null space of products of weights and gradients, which needs no
        knowledge of the operations: one gradient for each tensor, minutes for a large model.
    split : mapping of str to sequence of int or None
        Numbers of rows by which to cut parameters, by name; None cuts as the forward does.
    noise : float
        Of the batches that are made up, relative to the inputs' spread; also on what embeddings
        give. 0 if the model checks its inputs.
    shuffle : bool
        Whether the batches that are made up are the inputs in another order.
    seed : int
        Of the random points.

    Returns
    -------
    Audit

    Raises
    ------
    TypeError
        If inputs are no tensor, tuple or dict.
    ValueError
        If nothing is trainable; if the model is TorchScript; if parameters are complex, sparse,
        uninitialised, without values or on several devices; if the loss is no finite scalar, does
        not repeat, or none was given where the output is no tensor; if the model refuses a batch
        that was made up; if `split` does not fit; if batch norm gets fewer than 3 values a channel.

    Notes
    -----
    Modules are in the modes that they have in training: if the model is in eval mode, in those
    that its ``train()`` gives them. Dropout is off, also in layers of other names that only hide
    some of their input in training. Other random numbers are part of the function, the same
    whenever a point is evaluated. It takes about ``batches + 1`` gradients and 7 losses in
    float64, for which all tensors that an operation takes are exchanged for copies; hooks run with
    them. The points are the model's own plus noise, the batches the inputs shuffled and with noise.

    Groups are proposed by what the forward's operations let scales be, as units are in physics,
    which also says where it cuts a fused projection; an ε is set to nearly 0 wherever one is
    added. What passed is then rescaled for real, by powers of 2 up and down, and must leave the
    loss. Chapter 09.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = nl.audit(net, torch.randn(16, 4), torch.arange(16) % 2)
    >>> found.invariant
    ['0.weight']
    >>> found.groups
    [{'1.weight': 1, '1.bias': 1, '3.weight': -1}]
    >>> list(found.to_dataframe().verdict)
    ['invariant', 'no effect', 'inverse', 'inverse', 'inverse', 'not invariant']
    """
    if batches < 2:
        raise ValueError(f"batches must be at least 2, got {batches}")
    if isinstance(model, WRAPPERS):
        model = model.module
    probe = Probe(model, inputs, targets, loss, seed, noise, shuffle)
    proposed, sample = probe.begin(split or {})
    own = probe.own()
    # A block that is left out at random must be there at some of the points.
    more = range(1, max(batches, 12) if probe.random else batches)
    samples = [sample, *map(probe.at_random, more)]
    used = [name for name in probe.pieces if any(name in s.used for s in (own, *samples))]
    silent = [name for name in probe.pieces if all(sample.silent(name) for sample in samples)]
    blocks = {n: symmetries.finest({n: 1}, samples) for n in used if n not in silent}
    rest = [name for name, count in blocks.items() if not count]
    if full:
        proposed += _numeric(probe, samples, rest)
    found = [Symmetry({name: 1}, count) for name, count in blocks.items() if count]
    # What is free alone, or without effect, is left out of groups.
    joint = [{n: c for n, c in one.items() if n in rest} for one in proposed]
    for exponents in symmetries.independent([one for one in joint if len(one) > 1]):
        count = symmetries.finest(exponents, samples)
        found += [Symmetry(exponents, count)] if count else []
    # At points of its own, and at several: at one, stochastic depth may hide the difference.
    first = len(samples)
    points = batches if probe.random else 2  # one up, one down
    held = _confirmed(probe, found, first, points)
    # Far from the model's own point nothing stays dead by accident.
    others, _ = probe.point(first + points, far=True)
    replaced = [lambda name, values: probe.pieces[name].replace(values, others)] * points
    unfelt = probe.unfelt(silent, first, replaced if probe.random else replaced[:1], far=True)
    # No gradient, but not without effect: a gain before a norm, what only chooses, or dead units.
    felt = [name for name in silent if name not in unfelt]
    gains = {n for n in felt if probe.width(n) == 1}
    kept = [Symmetry({n: 1}, probe.pieces[n].count if n in gains else 1) for n in felt]
    still = _confirmed(probe, kept, first, points, far=True)

    fates = dict.fromkeys(probe.pieces, ("undecided", "the loss does not use it"))
    fates |= dict.fromkeys(used, ("not invariant", ""))
    fates |= dict.fromkeys(set(silent) & set(used), ("undecided", "dead on this data"))
    fates |= dict.fromkeys(set(unfelt) & set(used), ("no effect", ""))
    for symmetry in found:
        fates |= dict.fromkeys(symmetry.exponents, ("not invariant", LOCAL))
    groups = [symmetry.exponents for symmetry in held if len(symmetry.exponents) > 1]
    fates |= {name: (kind, "") for name, kind in symmetries.signs(groups).items()}
    fates |= {
        name: ("invariant", "") for s in held if len(s.exponents) == 1 for name in s.exponents
    }
    for symmetry in still:
        (name,) = symmetry.exponents
        fates[name] = ("invariant", SIGNS if name in gains else CHOOSES)
    plain = [name for name, fate in fates.items() if fate == ("not invariant", "")]
    hidden = _hidden(probe, plain, samples, first)
    for symmetry, note in hidden:
        fates |= dict.fromkeys(symmetry.exponents, ("invariant", note))
    for name, form in probe.forms.items():
        _say(fates, name, f"enters as {form}: decay pulls that to {_end(form)}, not to 0")
    felt_as = [*held, *still, *(symmetry for symmetry, _ in hidden)]
    merged = probe.merged(fates, felt_as, [own, *samples])
    return Audit(
        model,
        groups,
        "among all tensors, and by null spaces" if full else "among all tensors",
        tuple(probe.notes),
        {piece.name: piece for piece in merged},
        _table(probe, merged, fates, felt_as, groups, [own, *samples]),
    )


def _numeric(probe: Probe, samples: list[Sample], names: list[str]) -> list[dict[str, int]]:
    """Groups in the null space of the products, with as many more samples as that takes."""
    if len(names) < 2:
        return []
    batches, missing = len(samples), 1
    while missing > 0:
        products = np.array([[s.stats[name][0].sum() for name in names] for s in samples])
        # Some more than the rank, or chance alone makes null vectors.
        rank, _ = symmetries.null_space(products)
        missing = rank + 2 * batches - len(samples)
        samples += map(probe.at_random, range(len(samples), len(samples) + missing))
    return [
        {name: int(c) for name, c in zip(names, vector, strict=True) if c}
        for vector in symmetries.generators(products)
    ]


def _hidden(
    probe: Probe, names: list[str], samples: list[Sample], first: int
) -> list[tuple[Symmetry, str]]:
    """What is invariant though its gradient does not say so."""
    found: list[tuple[Symmetry, str]] = []
    if names and probe.gradient_lies(samples[0], 0):
        for count in (lambda n: probe.pieces[n].count, lambda n: 1):
            some = [Symmetry({n: 1}, count(n)) for n in names]
            exact = _confirmed(probe, some, first, 2)
            found += [(symmetry, STRAIGHT) for symmetry in exact]
            names = [n for n in names if all(n not in s.exponents for s in exact)]
    small = [
        name
        for name in names
        if all(Symmetry({name: 1}, 1).eps_violation(sample) < SMALL for sample in samples)
    ]
    return found + [(Symmetry({n: 1}, 1), LITERAL) for n in small if probe.levels_off(n, first)]


def _confirmed(
    probe: Probe, some: list[Symmetry], first: int, points: int, far: bool = False
) -> list[Symmetry]:
    """Those that leave the loss under actual, large changes of scale, up and down."""
    draw = np.random.default_rng(probe.seed)

    def rescale(sign: int, symmetry: Symmetry, values: Weights) -> None:
        # Powers of 2 are exact, so that rounding does not blur the answer.
        power = sign * draw.choice([3, 4, 5], symmetry.blocks)
        for name, c in symmetry.exponents.items():
            probe.pieces[name].scale(values, 2.0 ** (c * power))

    return probe.unfelt(some, first, [partial(rescale, (-1) ** k) for k in range(points)], far)


def _say(fates: dict[str, tuple[str, str]], parameter: str, what: str) -> None:
    """Add to the notes of a parameter's pieces."""
    for name, (verdict, note) in fates.items():
        if name.partition("[")[0] == parameter:
            fates[name] = (verdict, f"{note}; {what}" if note else what)


def _end(form: str) -> str:
    """What remains of a form such as 1 + w without w."""
    return form.removesuffix(" + w") if form.endswith(" + w") else form.replace("w", "0")


def _table(
    probe: Probe,
    merged: list[Piece],
    fates: dict[str, tuple[str, str]],
    held: list[Symmetry],
    groups: list[dict[str, int]],
    samples: list[Sample],
) -> pd.DataFrame:
    """One row for each parameter or piece, in the model's order; the first sample is its own."""
    own, *samples = samples
    lines = []
    for piece in merged:
        name, p = piece.name, probe.named[piece.parameter]
        verdict, note = fates.get(name, ("undecided", "frozen"))
        mine = [s for s in held if name in s.exponents]
        blocks = max((s.blocks for s in mine), default=0)
        signs = note.startswith((SIGNS, CHOOSES))
        violations = [s.eps_violation(own) for s in mine if not signs]
        dull = signs or verdict in ("undecided", "no effect")
        unseen = "" if dull else probe.unseen(piece, samples)
        lines.append(
            {
                "name": name,
                "parameter": piece.parameter,
                "shape": tuple(p.shape) if piece.chosen is None else probe.shape(piece),
                "verdict": verdict,
                "per": {piece.count: "channel", 1: "tensor", 0: ""}.get(blocks, "head"),
                "blocks": blocks,
                "groups": tuple(k for k, group in enumerate(groups) if name in group),
                "norm": probe.norm(piece),
                "gradient_norm": own.gradient_norm(name) if name in own.stats else math.nan,
                "eps_violation": max(violations, default=math.nan),
                "use": probe.use(piece.parameter),
                "decay": DECAY["no effect" if signs else verdict],
                "note": "; ".join(filter(None, [note, unseen])),
            }
        )
    return pd.DataFrame(lines).set_index("name")

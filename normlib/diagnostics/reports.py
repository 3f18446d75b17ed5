"""What an audit found, printed and drawn, and where to get advice from it. Knows pandas."""

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from normlib.diagnostics.advice import ParamGroups, muon_groups, param_groups
from normlib.diagnostics.pieces import Piece

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPOILT = 1e-9  # |cos(w, g)| at the model's own point that is more than rounding

DECAY = {
    "invariant": "sets the learning rate",
    "joint": "sets a joint scale, which sets the learning rate",
    "inverse": "balances a pair",
    "no effect": "nothing",
    "not invariant": "shrinks the function",
    "undecided": "not known",
}


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What `audit` found; print it, or ask for `to_dataframe()`. Chapter 09.

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
        How groups were looked for.
    notes : tuple of str
        What is to be known of the audit as a whole.
    """

    model: nn.Module
    groups: list[dict[str, int]]
    searched: str
    notes: tuple[str, ...]
    _pieces: dict[str, Piece]
    _table: pd.DataFrame

    @property
    def invariant(self) -> list[str]:
        """Names of what is scale-invariant alone, per channel, per head or as a tensor."""
        return list(self._table.index[self._table.verdict == "invariant"])

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each parameter, or for each part that the forward cuts it into.

        Returns
        -------
        pandas.DataFrame
            Indexed by name, e.g. ``attention.in_proj_weight[q]`` or ``qkv.weight[0:64]`` (rows),
            with the columns

            - parameter: its name in ``model.named_parameters()``;
            - shape: of the parameter, or rows and entries in a row of the part;
            - verdict: "invariant" (alone), "joint" (may grow with others while none shrinks),
              "inverse" (only grows as another shrinks), "no effect" (any value gives the same
              loss), "not invariant", "undecided"; a property of all symmetries together, of no
              chosen group;
            - per: what may be rescaled independently, "channel" (an output channel or row),
              "head" (a block of them, also a group of a GroupNorm), "tensor"; "" if nothing. Of
              several groups the finest counts;
            - blocks: how many of these there are; 0 if nothing;
            - groups: positions in `Audit.groups`;
            - norm, gradient_norm: at the model's own point, on the inputs as given;
            - eps_violation: largest size of the cosine of weight and gradient over the blocks, at
              the model's own point with its own ε; 0 where the invariance is exact, nan where
              there is none;
            - use: "embedding", "last matrix", "matrix" or "";
            - decay: what weight decay does there, in words;
            - note: why something is undecided, or what is special.
        """
        return self._table.copy()

    def blocks(self, name: str) -> Tensor:
        """Which block each entry of a parameter belongs to, for a row of the table.

        Parameters
        ----------
        name : str
            A row of `to_dataframe`.

        Returns
        -------
        Tensor
            int64, of the parameter's shape: the number of the block that may be rescaled apart
            from the others, 0 everywhere if there is only one; -1 for entries of other rows.
        """
        row, piece = self._table.loc[name], self._pieces[name]
        number = np.full(piece.layout.rows, -1)
        count = max(int(row.blocks), 1)
        number[piece.rows] = np.arange(piece.count) // (piece.count // count)
        shape = dict(self.model.named_parameters())[piece.parameter].shape
        return piece.layout.spread(torch.as_tensor(number), tuple(shape)).clone()

    def param_groups(
        self, weight_decay: float, *, other: float, pairs: float | None = None, **options: Any
    ) -> ParamGroups:
        """Parameter groups for a torch optimizer, with the decay that suits each verdict.

        Parameters
        ----------
        weight_decay : float
            λ of what is scale-invariant, alone or jointly: there decay sets a learning rate.
        other : float
            λ of the rest that is trainable: there decay shrinks the function or does nothing.
        pairs : float or None
            λ of matrices in inverse pairs, where it balances the pair and shrinks its product;
            None is `weight_decay`. Gains and biases in pairs are of the rest.
        **options
            As `normlib.param_groups` takes: rules by verdict or name, lr, layer_decay, corrected.

        Returns
        -------
        ParamGroups
            A list of dicts; print it for a table. Every trainable parameter is in exactly one, a
            tied one too; frozen ones are in none.

        Notes
        -----
        Chapter 09.

        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = nl.audit(net, torch.randn(16, 4), torch.arange(16) % 2)
        >>> groups = found.param_groups(5e-4, other=0.0)
        >>> [group["weight_decay"] for group in groups]
        [0.0005, 0.0005, 0.0, 0.0, 0.0]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        """
        return param_groups(
            self.model, self._table, weight_decay, other=other, pairs=pairs, **options
        )

    def muon_groups(
        self,
        weight_decay: float,
        *,
        other: float,
        lr: float,
        lr_adamw: float,
        pairs: float | None = None,
    ) -> tuple[ParamGroups, ParamGroups]:
        """Groups for ``torch.optim.Muon`` and for AdamW beside it, with matched decay.

        Muon gets the matrices between layers; AdamW embeddings, the last matrix, gains, biases and
        what has no two dimensions.

        Parameters
        ----------
        weight_decay, other, pairs : float
            As for `param_groups`, in AdamW's convention: a step takes lr_adamw·λ of a weight.
        lr, lr_adamw : float
            Learning rates of Muon and AdamW. Muon's λ is such that its steps take as much.

        Returns
        -------
        tuple of ParamGroups
            For Muon and for AdamW.

        Raises
        ------
        ValueError
            If no matrix is left for Muon, or a learning rate is not positive.
        """
        return muon_groups(
            self.model, self._table, weight_decay, other=other, pairs=pairs, lr=lr,
            lr_adamw=lr_adamw,
        )  # fmt: skip

    def plot(self) -> "Figure":
        """The model as one bar a parameter, as long as it has entries, coloured by verdict."""
        from normlib.diagnostics.charts import audit_figure

        return audit_figure(self._table, type(self.model).__name__)

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
        tail += "".join(f"\nnote: {note}" for note in self.notes)
        eps = self._table.eps_violation
        if eps.max() > SPOILT:
            tail += f"\nε spoils at most |cos(w, g)| = {eps.max():.1e}, in {eps.idxmax()}"
        return head, tail

    def __repr__(self) -> str:
        head, tail = self._lines()
        return f"{head}\n{self._summary().to_string(index=False)}\n{tail}"

    def _repr_html_(self) -> str:
        head, tail = (html.escape(line).replace("\n", "<br>") for line in self._lines())
        return f"<p>{head}</p>{self._summary().to_html(index=False)}<p>{tail}</p>"

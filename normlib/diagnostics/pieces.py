"""How the entries of a parameter lie in rows, and pieces of such rows. Knows shapes only."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Which axes of a parameter, looked at in a shape, number its rows: its output channels."""

    shape: tuple[int, ...]
    lead: tuple[int, ...] = (0,)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[axis] for axis in self.lead)

    def matrix(self, tensor: Tensor) -> Tensor:
        """The entries, one row a channel; a view where there can be one."""
        front = tensor.reshape(self.shape).movedim(self.lead, tuple(range(len(self.lead))))
        return front.reshape(self.rows, -1)

    def spread(self, each: Tensor, like: tuple[int, ...]) -> Tensor:
        """One number a row, in a shape that broadcasts against the parameter."""
        shape = [1] * len(self.shape)
        for axis in self.lead:
            shape[axis] = self.shape[axis]
        order = sorted(range(len(self.lead)), key=self.lead.__getitem__)
        lead = each.view([self.shape[axis] for axis in self.lead]).permute(order).reshape(shape)
        return lead.expand(self.shape).reshape(like)


def row_layout(shape: tuple[int, ...]) -> Layout:
    """Rows along the first axis; one row if there is none."""
    return Layout(tuple(shape) or (1,))


def stacked_layout(shape: tuple[int, ...], column: bool = False) -> Layout:
    """Of one matrix or a stack of them: rows, or columns if these are the output channels."""
    axes = list(range(len(shape)))
    axes.remove(len(shape) - (2 if column else 1))
    return Layout(tuple(shape), tuple(axes))


def transposed_layout(shape: tuple[int, ...], groups: int) -> Layout:
    """Of a transposed convolution: its output channels, group by group."""
    return Layout((groups, shape[0] // groups, *shape[1:]), (0, 2))


@dataclass(frozen=True)
class Piece:
    """A parameter, or some of its rows that a forward uses apart from the others."""

    name: str
    parameter: str
    layout: Layout
    chosen: tuple[int, ...] | None = None  # rows; None is all

    @cached_property
    def count(self) -> int:
        return self.layout.rows if self.chosen is None else len(self.chosen)

    def part(self, rows: np.ndarray) -> np.ndarray:
        """Its own of numbers of which there is one a row, on the last axis."""
        return rows if self.chosen is None else rows[..., list(self.chosen)]

    def scale(self, values: Weights, factors: np.ndarray) -> None:
        """Multiply each of equal blocks of rows by its factor, in a copy of the parameter."""
        tensor = values[self.parameter]
        if self.chosen is None and len(factors) == 1:
            values[self.parameter] = tensor * float(factors[0])
            return
        each = np.ones(self.layout.rows)
        each[self.rows] = np.repeat(factors, self.count // len(factors))
        spread = self.layout.spread(torch.as_tensor(each).to(tensor), tensor.shape)
        values[self.parameter] = tensor * spread

    def replace(self, values: Weights, others: Weights) -> None:
        """Take these rows from other values, in a copy of the parameter."""
        tensor, other = values[self.parameter], others[self.parameter]
        if self.chosen is None:
            values[self.parameter] = other.clone()
            return
        mine = torch.zeros(self.layout.rows, dtype=torch.bool, device=tensor.device)
        mine[torch.as_tensor(self.rows)] = True
        values[self.parameter] = torch.where(self.layout.spread(mine, tensor.shape), other, tensor)

    @property
    def rows(self) -> list[int]:
        return list(range(self.layout.rows)) if self.chosen is None else list(self.chosen)


def named_pieces(
    name: str, layout: Layout, parts: list[tuple[int, ...]], labels: str = ""
) -> list[Piece]:
    """Pieces of one parameter, with names that say which rows they are."""
    if len(parts) < 2:
        return [Piece(name, name, layout)]
    found = []
    for k, rows in enumerate(parts):
        together = rows[-1] - rows[0] + 1 == len(rows)
        which = f"{rows[0]}:{rows[-1] + 1}" if together else f"part {k + 1} of {len(parts)}"
        found.append(Piece(f"{name}[{labels[k] if labels else which}]", name, layout, rows))
    return found

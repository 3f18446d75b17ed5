"""Checks: one prediction each, tested, shown and kept. Knows predictions and number lines."""

import contextlib
import html
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from normlib.notebook.display import show
from normlib.notebook.numberline import number_line
from normlib.notebook.predictions import CheckError, Prediction


def check(
    id: str,
    claim: str,
    measured: ArrayLike,
    expected: float | None = None,
    *,
    tolerance: float | None = None,
    below: float | None = None,
    above: float | None = None,
    alternative: float | tuple[str, ArrayLike],
    each: bool = False,
    recorded: bool = False,
) -> None:
    """Test one prediction of the book on what was just measured; raise if it fails.

    Shows a line that is the same on every machine (claim, prediction, number of values, ✓), what
    was measured here, and both as a line of numbers; all goes into the output's metadata too.
    Inside `evidence` it is shown with the others of its block.

    Parameters
    ----------
    id, claim : str
        The claim's id in `book/claims.md`, a dot and a name, once in the book: "T4.exponent". Then
        what is tested, in words, with the unit.
    measured : float or sequence of float
        One value, or several.
    expected, tolerance, below, above, each
        What `Prediction` takes; from theory, or from the spread over seeds. All are part of the
        line: a prediction that is itself measured belongs into a ratio with `expected` 1.
    alternative : float or (str, float or sequence of float)
        What another, plausible theory predicts, or its name and what was measured with it. The
        prediction must exclude it, or the check could not tell the two apart.
    recorded : bool
        Whether the values come from a recorded sweep instead of one run in the chapter.

    Raises
    ------
    CheckError
        If what was measured is not finite or not inside.
    TypeError, ValueError
        If an argument is not what it should be, or the prediction admits the alternative.

    Notes
    -----
    Every chapter.

    >>> check("T4.slope", "slope of log norm", 0.251, 0.25, tolerance=0.02, alternative=0.5)
    ✓ T4.slope: slope of log norm; expected 0.25 ± 0.02, not 0.5 (live, 1 value)
      measured 0.251
    """
    if not (isinstance(id, str) and isinstance(claim, str)):
        raise TypeError(f"id and claim must be text, got {id!r} and {claim!r}")
    if not re.fullmatch(r"[A-Z]\d+(\.[a-z0-9_-]+)+", id):
        raise ValueError(f"id must be a claim's, a dot and a name, as T4.exponent; got {id!r}")
    prediction = Prediction(expected, tolerance, below, above, each)
    values = _numbers("measured", measured)
    name, others = _named(alternative)
    if np.isnan(others).any() or not prediction.excludes(others):
        raise ValueError(
            f"{id}: {prediction} does not exclude the alternative {prediction.describe(others)}; "
            "such a check cannot tell the two apart"
        )
    if len(values) == 0 or not np.isfinite(values).all():
        raise CheckError(f"{id}: {claim}: measured {values}, which is not finite")
    record = {"id": id, "claim": claim, "recorded": recorded, **asdict(prediction)}
    record |= {"values": values.tolist(), "count": len(values)}
    record |= zip(("measured", "low", "high"), prediction.summary(values), strict=True)
    record |= {"alternative_name": name, "alternative_values": others.tolist()}
    names = ("alternative", "alternative_low", "alternative_high")
    record |= zip(names, prediction.summary(others), strict=True)
    if not prediction.admits(values):
        raise CheckError(f"{_text(record)}: outside")
    _log(record)
    if _blocks:
        _blocks[-1].append(record)
    else:
        _show([record])


_blocks: list[list[dict]] = []  # records of the blocks that are open, the innermost last


@contextlib.contextmanager
def evidence() -> Iterator[None]:
    """Show the checks inside as one block: the first, and the others folded behind it.

    The first one carries the claim, the others guard it. If one fails, those before it are shown.

    >>> with evidence():
    ...     check("T1.one", "a sum", 2.0, 2, tolerance=0.1, alternative=1)
    ...     check("T1.two", "a product", 1.0, 1, tolerance=0.1, alternative=2)
    ✓ T1.one: a sum; expected 2 ± 0.1, not 1 (live, 1 value)
      measured 2
    ✓ T1.two: a product; expected 1 ± 0.1, not 2 (live, 1 value)
      measured 1
    """
    _blocks.append([])
    try:
        yield
    finally:
        if records := _blocks.pop():
            _show(records)


def _show(records: list[dict]) -> None:
    first, *guards = map(_html, records)
    if guards:
        name = f"{len(guards)} more check{'s' * (len(guards) > 1)}"
        first += f"<details><summary>{name}</summary>{''.join(guards)}</details>"
    bundle = {
        "text/plain": "\n".join(f"✓ {_text(record)}" for record in records),
        "text/html": f'<div class="nl-evidence">{first}</div>',
    }
    show(bundle, normlib=records)


def _text(record: dict) -> str:
    """What was tested, and on a second line what was measured."""
    prediction, name = Prediction.of(record), record["alternative_name"]
    found = "measured " + prediction.describe(record["values"], ", 95 % interval {} to {}")
    if name is not None:
        found += f", alternative {prediction.describe(record['alternative_values'])}"
    return (
        f"{record['id']}: {record['claim']}; expected {prediction}, not {_rival(record)} "
        f"({_count(record)})\n  {found}"
    )


def _html(record: dict) -> str:
    """The same as a line of numbers; all that differs between machines is in one element."""
    prediction = Prediction.of(record)
    values, others = record["values"], record["alternative_values"]
    rival = prediction.describe(others)
    if record["alternative_name"] is not None:
        rival = f"{html.escape(record['alternative_name'])}: {_measured(rival)}"
    line = _measured(number_line(prediction, values, others))
    return (
        f'<div class="nl-check"><p>✓ {html.escape(record["claim"])} <code>{record["id"]}</code></p>'
        f"<p>{line} ● <b>{_measured(prediction.describe(values))}</b> {_count(record)}; "
        f"▒ predicted {prediction}; ○ ruled out: {rival}</p></div>"
    )


def _measured(text: str) -> str:
    """What differs between machines, where tests know to look away."""
    return f'<span class="nl-measured">{text}</span>'


def _rival(record: dict) -> str:
    """The alternative's name, or its number where it is one."""
    return record["alternative_name"] or f"{record['alternative_values'][0]:g}"


def _count(record: dict) -> str:
    many = record["count"] > 1
    each = "each of " * (record["each"] and many)
    origin = "recorded" if record["recorded"] else "live"
    return f"{origin}, {each}{record['count']} value{'s' * many}"


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Values as a flat array of float."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a number or several, got {values!r}")
    return array.astype(float).ravel()


def _named(alternative: float | tuple[str, ArrayLike]) -> tuple[str | None, np.ndarray]:
    """An alternative's name, None for a bare number, and its values."""
    match alternative:
        case Real():
            return None, _numbers("alternative", alternative)
        case (str(name), values):
            return name, _numbers("alternative", values)
    raise TypeError(f"alternative must be a number or (name, values), got {alternative!r}")


def _log(record: dict) -> None:
    """Keep the record where tests look for it, if they asked."""
    if folder := os.environ.get("NORMLIB_CHECKS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

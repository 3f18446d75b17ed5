"""Write book/claims.md: every claim, what the chapters measured, and the verdict that follows.

    python tools/claims.py                       write the page
    python tools/claims.py --check               say whether the page is what the outputs say
    python tools/claims.py --book _build/fresh   write that of another copy of the book

Everything but the claims' words and the sentences on the verdicts comes from the records that
`nl.check` left in the chapters' outputs.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent

HOLDS, LIMITED, FAILS, DATED, OPEN = (
    "holds",
    "holds with a limit",
    "fails",
    "was true in 2017",
    "not tested yet",
)


@dataclass(frozen=True)
class Claim:
    """One claim, and which checks speak for it, bound it or speak against it.

    A check is named by the beginning of its claim; one name may stand for several checks.

    Attributes
    ----------
    id : str
    words : str
        In our words, but where quotation marks say otherwise.
    supports : tuple of str
        All of these must have been measured inside their bands for the claim to hold.
    why : str
        One sentence on the verdict.
    limits : tuple of str
        If these were measured inside their bands too, the claim holds with a limit.
    against, since : tuple of str
        If these were, the claim fails, or fails only since 2017.
    """

    id: str
    words: str
    supports: tuple[str, ...]
    why: str
    limits: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    since: tuple[str, ...] = ()


CLAIMS = (
    Claim(
        "A1",
        "Combined with normalization, L2 has no regularizing effect.",
        (
            "effect of λ = 0.1 on the test error when the norms are given",
            "largest difference of",
            "leave-one-out R² of test minus training error as a function of ηλ, CIFAR-10",
        ),
        "The same functions come out without a penalty, for weights before a normalization; decay "
        "on the last γ, β and the head does restrain the function.",
        limits=("‖(γ, β)‖² − ‖W‖² after 400 small steps",),
    ),
    Claim(
        "A2",
        "It sets the scale of the weights, and thereby the effective learning rate.",
        (
            "angle per step over √(2ηλ/(1+μ)), momentum",
            "κ of the effective rate",
            "κ of the angle per step, CIFAR-10, Nesterov",
            "largest relative difference of the loss over 120 steps, (aw, a²η, λ/a²)",
        ),
        "At equilibrium the angle per step is a matter of η, λ and μ alone.",
    ),
    Claim(
        "A3",
        "Adam and other popular methods only partially eliminate the influence of the scale.",
        ("scale exponent p of the same five", "slope of the log effective rate over log λ"),
        "They remove one of two powers of the norm; decay still changes the effective rate.",
    ),
    Claim(
        "A4",
        "There are other ways to mitigate the interaction.",
        ("angle per step with λ = 0.03 over that with λ = 0",),
        "With weights of norm 1 the angle per step does not feel a moderate λ.",
    ),
    Claim(
        "D1",
        "Batch, layer and weight normalization make the function invariant to the scale of w.",
        ("relative change when the whole layer", "relative change when one channel"),
        "To rounding; the ε of a normalization breaks it in proportion to 1/‖w‖².",
        limits=("slope of log change over log α with ε = 1e-5",),
    ),
    Claim(
        "D2",
        "The scale is strongly affected by regularization.",
        ("norm at λ = 0.1 over norm at λ = 0.01", "final norm from 4w over final norm from w/4"),
        "The norm settles where λ puts it, wherever it started.",
    ),
    Claim(
        "D3",
        '"We know of no first order gradient method that can fully eliminate this effect."',
        ("smallest scale exponent of the eleven first-order methods of June 2017",),
        "None of torch's first-order methods of June 2017 eliminates the scale; LARS and "
        "Adafactor, which were published later, do.",
        since=(
            "scale exponent of Adafactor (2018)",
            "scale exponent of LARS",
            "largest relative difference of the loss over 40 steps, weights times 1/8",
        ),
    ),
    Claim(
        "D4",
        "Forcing the weights to norm 1 solves the problem.",
        (
            "largest relative difference of the loss over 80 steps, initial weights times",
            "relative difference after 100 steps, the lines above and nl.unit_norm",
        ),
        "The scale is gone, but decay is not: with momentum it acts as more momentum.",
        limits=("largest difference of the logits over 200 steps, momentum, λ = 2",),
    ),
    Claim(
        "D5",
        "It removes a hyperparameter.",
        (
            "best of the normalized line minus best of the plane",
            "log ratio of largest to smallest test loss",
        ),
        "The best of 6 cells is equivalent to the best of 54, within 0.7 points of test error.",
    ),
    Claim(
        "D6",
        "Without regularization the norm grows and the effective learning rate falls.",
        (
            "growth of r⁴ without decay",
            "share of steps in which the norm of a layer grows, plain SGD without decay",
        ),
        "By Pythagoras, exactly, for plain SGD. That the fall is often desirable was not tested.",
    ),
    Claim(
        "D7",
        "That fall is hard to control, depends on the first steps and hurts reproducibility.",
        ("log effective rate after", "test error in points, first 100 steps"),
        "A hundred first steps decide about the effective rate of all later ones without decay, "
        "and about two points of test error; with decay they are forgotten.",
    ),
    Claim(
        "D8",
        "Regularizing γ and β does not matter.",
        ("test error with decay on γ, β too",),
        "The test error is equivalent within 1 point for λ up to 0.01; the training loss is not, "
        "and for large λ the error rises by many points.",
        limits=("log ratio of training loss with decay on γ, β too over without, λ = 0.001",),
    ),
    Claim(
        "D9",
        "With ReLU the scale of γ has no effect on later layers; only the last layer's matters.",
        ("relative change of the logits, last (γ, β) times 3", "largest |cos| between (γ, β)"),
        "If γ is read as (γ, β) of a whole layer before another batch or layer norm: not γ alone, "
        "not one channel, not under weight norm.",
        limits=("relative change of the logits, γ and β of a whole hidden layer",),
    ),
    Claim(
        "T1",
        "$L_λ(αw) = L_{λα^2}(w)$.",
        ("largest |L_λ(αw) − L_{λα²}(w)|",),
        "To rounding.",
    ),
    Claim(
        "T2",
        "$∇L(αw) = ∇L(w)/α$.",
        ("largest deviation of α∇L(αw) from ∇L(w)", "largest |cos(w, ∇L)|"),
        "To rounding, over six decades of α.",
    ),
    Claim(
        "T3",
        "The effective learning rate of gradient descent is η/‖w‖².",
        ("largest relative deviation of tan θ",),
        "Exactly, at every step of SGD.",
    ),
    Claim(
        "T4",
        "At equilibrium ‖w‖ is proportional to $(η/λ)^{1/4}$.",
        ("slope of log ‖w‖ over log(η/λ) at fixed ηλ", "2λr⁴/(ηG²) in the network, plain SGD"),
        "Along lines of equal ηλ. It is a balance, not a sign of convergence, and with momentum "
        "the constant contains the gradients' correlation.",
        limits=("2λ(1−μ)r⁴/(ηG²) over ρ", "norm over its predicted equilibrium on random"),
    ),
    Claim(
        "T5",
        "Adam's effective learning rate is η/‖w‖; with L2 it settles at a cube root of η²λ.",
        (
            "κ of the effective rate η/‖w‖ after 1,500 steps",
            "scale exponent p, furthest of Adam",
            "largest relative difference of the loss over 120 steps, (aw, aη",
            "slope of log ‖w‖ over log(η/λ) along a line",
            "κ of the angle per step, CIFAR-10, Adam + L2",
        ),
        "The exponents hold; the constant contains the divided gradient's part along w.",
        limits=("angle per step over the balance, network",),
    ),
    Claim(
        "T6",
        "Second-order methods (our treatment: the paper's words were not at hand).",
        (
            "relative difference of the Newton step and w",
            "relative difference of the damped step",
            "‖Gw‖ over the largest",
        ),
        "Newton doubles w and never turns it; what makes such methods usable, damping, has the "
        "scale in it.",
    ),
    Claim(
        "T7",
        "The effective rate of the normalized update does not depend on λ.",
        (
            "angle per step with λ = 0.03 over that with λ = 0",
            "κ of the angle per step, CIFAR-10, normalized Nesterov",
        ),
        "Nearly, for ηλ far below (1−μ)²; exactly, λ is a larger learning rate and momentum.",
        limits=(
            "largest difference of the logits over 200 steps, SGD, λ = 1",
            "largest difference of the logits over 200 steps, momentum, λ = 2",
        ),
    ),
    Claim(
        "F1",
        "Nesterov momentum: the test error over (η, λ) is constant along diagonals.",
        (
            "κ of the valley of test error, γ, β and head at a rate of their own",
            "κ of the valley of test error, CIFAR-10, Nesterov",
        ),
        "κ = 1 where γ, β and the head have a learning rate of their own; with one rate for all "
        "the diagonal bends.",
        limits=("κ of the valley of test error, one rate for every parameter: below 1;",),
    ),
    Claim(
        "F2",
        "Adam: the same, with another slope.",
        (
            "κ of the valley of test error, Adam + L2, own rate",
            "κ of the valley of test error, CIFAR-10, Adam + L2",
        ),
        "κ = 1/2 for Adam with L2, 1 for AdamW, on the same condition.",
        limits=("κ of the valley of test error, Adam + L2, one rate",),
    ),
    Claim(
        "F3",
        "Normalized weights: the test error is flat in λ until λ is too large.",
        (
            "κ of the valley of test error where ηλ/(1−μ) ≤ 0.05",
            "κ of the valley of test error, CIFAR-10, normalized Nesterov",
        ),
        "κ = 0. It ends at ηλ ≈ (1−μ)², where decay has made the momentum reach 1.",
        limits=("grid steps from the predicted limit", "log test loss near the limit"),
    ),
)


def of_notebook(notebook: nbformat.NotebookNode) -> list[dict]:
    """The records that `nl.check` left in the outputs of a chapter."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [o.metadata["normlib"] for o in outputs if "normlib" in o.get("metadata", {})]


def records(book: Path = ROOT) -> list[dict]:
    """The records of all chapters, each with the name of its chapter."""
    return [
        {**record, "chapter": path.stem}
        for path in sorted((book / "notebooks").glob("*.ipynb"))
        for record in of_notebook(nbformat.read(path, as_version=4))
    ]


def inside(record: dict) -> bool:
    """Whether the measurement, or its whole interval, lies in the band, and the rival does not."""
    low, high = (record["expected"] + sign * record["tolerance"] for sign in (-1, 1))
    measured = low <= record["low"] <= record["measured"] <= record["high"] <= high
    return measured and not low <= record["alternative"] <= high


def named(claim: Claim, names: tuple[str, ...], found: list[dict]) -> list[dict]:
    """The records that the names stand for; those of a limit may carry another id.

    Raises
    ------
    ValueError
        If a name stands for nothing.
    """
    chosen = []
    for name in names:
        matches = [record for record in found if f"{record['claim']};".startswith(name)]
        if not matches:
            raise ValueError(f"{claim.id}: no check begins with {name!r}")
        chosen += matches
    return chosen


def verdict(claim: Claim, found: list[dict]) -> str:
    """What follows for a claim from the numbers in the records."""
    support, limit, against, since = (
        [inside(record) for record in named(claim, names, found)]
        for names in (claim.supports, claim.limits, claim.against, claim.since)
    )
    if not support:
        return OPEN
    if not all(support) or (against and all(against)):
        return FAILS
    if since and all(since):
        return DATED
    return LIMITED if limit and all(limit) else HOLDS


def page(found: list[dict]) -> str:
    """The page, as Markdown."""
    own = {claim.id: [r for r in found if r["id"] == claim.id] for claim in CLAIMS}
    lines = [
        "# The claims, and what became of them",
        "",
        "Every claim of the paper that this book tests, with a verdict. The numbers are those in "
        "the chapters' outputs; `make claims` writes this page from them, and a test compares. "
        "The verdict follows from the numbers: a claim *holds* if all the checks that speak for "
        "it were measured inside their bands, *with a limit* if checks that show the limit were "
        "too. A is the paper's abstract, D its discussion, T its theory, F its grids; all words "
        "but those in quotation marks are ours.",
        "",
        "| id | claim | verdict | why |",
        "|---|---|---|---|",
    ]
    for claim in CLAIMS:
        lines.append(
            f"| [{claim.id}](claim-{claim.id.lower()}) | {claim.words.replace('|', '&#124;')} | "
            f"**{verdict(claim, found)}** | {claim.why} |"
        )
    counts = [verdict(claim, found) for claim in CLAIMS]
    tally = ", ".join(
        f"{counts.count(name)} {name}"
        for name in (HOLDS, LIMITED, FAILS, DATED, OPEN)
        if counts.count(name)
    )
    live = sum(not record["recorded"] for record in found)
    lines += [
        "",
        f"{len(CLAIMS)} claims: {tally}. {len(found)} checks, {live} of them live.",
        "",
        "Each line below is a check. *Expected* is the prediction and the band around it, "
        "*rival* what the band excludes. Where several seeds were measured, the whole 95 % "
        "interval of their mean must lie in the band.",
    ]
    for claim in CLAIMS:
        lines += [
            "",
            f"(claim-{claim.id.lower()})=",
            f"## {claim.id}: {verdict(claim, found)}",
            "",
            f"{claim.words} {claim.why}",
        ]
        if own[claim.id]:
            lines += [
                "",
                "| check | measured | expected | rival | values |",
                "|---|---|---|---|---|",
            ]
        for r in own[claim.id]:
            measured = f"{r['measured']:.3g}"
            if r["count"] > 1:
                measured += f" ({r['low']:.3g} to {r['high']:.3g})"
            chapter = f"[{r['chapter'][:2]}](../notebooks/{r['chapter']}.ipynb)"
            kind = "recorded" if r["recorded"] else "live"
            lines.append(
                f"| {chapter}: {r['claim'].replace('|', '&#124;')} | {measured} | "
                f"{r['expected']:g} ± {r['band']:g} | {r['rival']:.3g} | {r['count']}, {kind} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    parser.add_argument("--book", type=Path, default=ROOT, help="the folder of the book")
    arguments = parser.parse_args()
    target, wanted = arguments.book / "book" / "claims.md", page(records(arguments.book))
    if arguments.check:
        same = target.exists() and target.read_text(encoding="utf-8") == wanted
        print("the page is current" if same else "the page is not current: run make claims")
        return 0 if same else 1
    target.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

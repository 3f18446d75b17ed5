"""Numbers that prose states of measurements are those of the records."""

import functools
import math
import re

import numpy as np
import pytest
import yaml

import normlib as nl
from tests.conftest import CHAPTERS, ROOT, read
from tools import claims

RECORDS = {record["id"]: record for record in claims.records()}
CLAIMS = yaml.safe_load((ROOT / "book/claims.yml").read_text(encoding="utf-8"))


def low(id):
    return RECORDS[id]["low"]


def high(id):
    return RECORDS[id]["high"]


def mean(id):
    return RECORDS[id]["measured"]


def rival_low(id):
    return RECORDS[id]["alternative_low"]


def rival_high(id):
    return RECORDS[id]["alternative_high"]


def family(start):
    """All records whose id starts so."""
    found = [record for id, record in RECORDS.items() if id.startswith(start)]
    assert found
    return found


def ratio(function):
    """Of what was measured as a logarithm."""
    return lambda id: math.exp(function(id))


def within(share, start, around=1):
    """Whether all records whose id starts so are as near to a number as this share."""
    return all(
        abs(r[end] - around) <= share * around for r in family(start) for end in ("low", "high")
    )


def shown(chapter, pattern):
    """Numbers that a page prints or writes into the text of a figure."""
    found = re.search(pattern, printed(chapter))
    assert found, pattern
    return [float(number) for number in " ".join(found.groups()).split()]


def after(chapter, words, count):
    """The next numbers, unsigned, that a chapter prints or a caption says after these words."""
    captions = [line for output in outputs(chapter) for line in pictured(output)[1:]]
    page = " ".join([printed(chapter), *captions])
    found = re.search(words, page)
    assert found, words
    return [float(n) for n in re.findall(r"(?<![\w.])\d+\.?\d*", page[found.end() :])[:count]]


def remembers(least, name, most):
    """Chapter 07: angle after another start over the usual one, between the two numbers."""
    return least < math.exp(-after("07", f"{name}, step 300: -", 1)[0]) < most


def chosen():
    """Chapter 07: error of the plane's best, of five seeds and of a fifth, and of the line's."""
    return after("07", "chosen by four, read by the fifth plane", 4)


def felt_at_a_quarter():
    """Whether some row of chapter 07's list has another error at 0.27 of the limit than at 0."""
    rows = re.findall(r"([\d.]+) \(0\.00\) ([\d.]+) \(0\.27\)", printed("07"))
    return max(abs(float(late) / float(first) - 1) for first, late in rows) > 0.05


def gaps_are_alike():
    """Chapter 10: of two far cells of one ηλ, and not of a third with another."""
    one, other, little = (
        after("10", f"η = {lr}, λ = {wd}: gap", 1)[0]
        for lr, wd in (("0.01", "0.1"), ("1", "0.001"), ("0.01", "0.001"))
    )
    return abs(one - other) <= 2 < 3 * abs(one - other) < abs(one - little)


def smallest_entry():
    """Of the gradients of the recorded grids of Adam, root mean square of a layer's entries."""
    found = []
    for name in ("adam", "adam_other", "adamw_other"):
        runs = nl.recorded(name).runs
        size = (runs.gradient_norm / np.sqrt(runs["size"])).values
        found.append(size[np.isfinite(size) & (size > 0)].min())
    return min(found)


def rates_of_the_dead():
    """Learning rates at which networks of the grid with one rate died."""
    recording = nl.recorded("nesterov")
    dead = nl.dead(recording.runs, recording.spec.data)
    return recording.runs.lr.values[dead.any(["weight_decay", "seed"]).values]


def first_that_raises():
    """The smallest λ at which decay on hidden pairs alone raises the training loss."""
    more, less = (nl.recorded(f"decay_invariant{n}").runs.train_loss for n in ("_hidden", ""))
    for values in np.log(more / less).transpose("weight_decay", "seed"):
        if nl.interval(values)[1] > 0:
            return float(values.weight_decay)
    return math.nan


def errors(name, lr):
    """Test error of one row of a recorded grid, in percent, mean of seeds."""
    return 100 * nl.recorded(name).runs.test_error.sel(lr=lr).mean("seed")


def dead(name, lr):
    """For each λ of a row of a recorded grid, how many of its networks are dead."""
    recording = nl.recorded(name)
    return nl.dead(recording.runs, recording.spec.data).sel(lr=lr).sum("seed")


def along_the_diagonal():
    """Norms that the second layer's weights have on a diagonal of chapter 04, step 1,000."""
    runs = nl.recorded("nesterov_other").runs.sel(layer="conv2", step=1000).mean("seed")
    return np.array([
        float(runs.weight_norm.sel(lr=lr, weight_decay=decay))
        for lr, decay in ((0.01, 0.03), (0.1, 3e-3), (1, 3e-4))
    ])  # fmt: skip


# Where, the words with their numbers as groups, and what each number is: a function of a check.
# A number agrees if the record, rounded to as many digits as are stated, is the same.
STATED = [
    ("D5", r"better by ([\d.]+) to ([\d.]+) points", [(high, "D5.no_worse"), (low, "D5.no_worse")]),
    ("D7", r"cost ([\d.]+) to ([\d.]+)\. With decay",
     [(low, "D7.start.error"), (high, "D7.start.error")]),
    ("D7", r"\(([\d.]+) to ([\d.]+) times that with decay\)",
     [(ratio(low), "D7.spread.seeds.not_double"), (ratio(high), "D7.spread.seeds.not_double")]),
    ("D8", r"At λ = 0\.03 it rises by (\d+) to (\d+) points",
     [(low, "D8.hurts"), (high, "D8.hurts")]),
    ("F1", r"With one rate for all it is ([\d.]+) among", [(mean, "F1.kappa.one_rate.learned")]),
    ("F2", r"lower by ([\d.]+), about", [(mean, "F2.kappa.contrast.all")]),
    ("F3", r"rate (\d+) to (\d+) % before",
     [(lambda id: 100 * (1 - high(id)), "F3.limit.large_lr"),
      (lambda id: 100 * (1 - low(id)), "F3.limit.large_lr")]),
    ("faq", r"At λ = 0\.03 it cost (\d+) to (\d+) points", [(low, "D8.hurts"), (high, "D8.hurts")]),
    ("faq", r"wrong for (\d+) of 62 tensors", [(mean, "D9.rules.tensors")]),
    ("practice", r"\(κ = ([\d.]+)\), and ends at a cliff", [(mean, "F1.kappa.one_rate.learned")]),
    ("practice", r"lowers κ from ([\d.]+) to", [(mean, "F2.kappa.adam")]),
    ("limits", r"among those that learned κ is ([\d.]+), nearly 1",
     [(mean, "F1.kappa.one_rate.learned")]),
    ("04", r"With one rate κ is ([\d.]+), with an interval from ([\d.]+) to ([\d.]+)\.",
     [(mean, "F1.kappa.one_rate.learned"), (low, "F1.kappa.one_rate.learned"),
      (high, "F1.kappa.one_rate.learned")]),
    ("04", r"bent a little: κ = ([\d.]+) \(([\d.]+) to ([\d.]+)\)",
     [(mean, "F1.kappa.one_rate.learned"), (low, "F1.kappa.one_rate.learned"),
      (high, "F1.kappa.one_rate.learned")]),
    ("05", r"from κ = ([\d.]+) to ([\d.]+)\.",
     [(mean, "F1.kappa.own_rate.learned"), (mean, "F1.kappa.one_rate.learned")]),
    ("07", r"Per channel the angle grows by about ([\d.]+) %",
     [(lambda id: 100 * (ratio(mean)(id) - 1), "A4.angle.log.channel")]),
    ("07", r"In Adam it \*falls\*, by about (\d+) %",
     [(lambda id: 100 * (ratio(mean)(id) - 1), "A4.angle.log.adam")]),
    ("08", r"depend on the first steps, and costs ([\d.]+) to ([\d.]+) points",
     [(low, "D7.too_large"), (high, "D7.too_large")]),
    ("08", r"At λ = 0\.03 it costs (\d+) to (\d+) points", [(low, "D8.hurts"), (high, "D8.hurts")]),
    ("08", r"cost (\d+) to (\d+) points beside the others, and (\d+) to (\d+) on their own",
     [(low, "D8.hurts.hidden"), (high, "D8.hurts.hidden"),
      (low, "D8.hurts.hidden.alone"), (high, "D8.hurts.hidden.alone")]),
    ("08", r"four times as large cost ([\d.]+) to ([\d.]+) points",
     [(low, "D7.start.error"), (high, "D7.start.error")]),
    ("08", r"is lower by a factor of about (\d+)",
     [(lambda id: math.exp(-mean(id)), "D7.start.rate")]),
    ("D5", r"bought normalized weights ([\d.]+) to ([\d.]+) points",
     [(low, "D5.cifar10.own_plane"), (high, "D5.cifar10.own_plane")]),
    ("F2", r"lower by 0\.15, about ([\d.]+)\.", [(mean, "F2.kappa.one_rate.learned")]),
    ("F2", r"On CIFAR-10 it is ([\d.]+) then", [(mean, "F2.cifar10.one_rate.kappa")]),
    ("10", r"No network is dead, and κ is ([\d.]+),", [(mean, "F2.cifar10.one_rate.kappa")]),
    ("10", r"none dies, and κ is ([\d.]+)\.", [(mean, "F2.cifar10.one_rate.kappa")]),
    ("practice", r"lowers κ from 0\.5 to ([\d.]+):", [(mean, "F2.kappa.one_rate.learned")]),
    ("limits", r"κ falls from ([\d.]+) to ([\d.]+) \(",
     [(mean, "F2.kappa.adam"), (mean, "F2.kappa.one_rate.learned")]),
    ("05", r"has a κ of about ([\d.]+)\.", [(mean, "F2.kappa.one_rate.learned")]),
    ("05", r"κ = ([\d.]+) means a factor of .*?, about ([\d.]+)\.",
     [(mean, "F2.kappa.one_rate.learned"),
      (lambda id: 2 ** (1 / round(mean(id), 2)), "F2.kappa.one_rate.learned")]),
    ("D4", r"free weights ([\d.]+) to ([\d.]+) points",
     [(rival_low, "D4.first_steps"), (rival_high, "D4.first_steps")]),
    ("07", r"a free network loses ([\d.]+) to ([\d.]+) points",
     [(rival_low, "D4.first_steps"), (rival_high, "D4.first_steps")]),
    ("07", r"where ([\d.]+) % was measured",
     [(lambda id: 100 * (ratio(mean)(id) - 1), "A4.angle.log.channel")]),
    ("07", r"fixing the norm costs ([\d.]+) to ([\d.]+) points",
     [(rival_low, "D5.no_worse"), (rival_high, "D5.no_worse")]),
    ("07", r"better than its own line by ([\d.]+) to ([\d.]+) points",
     [(low, "D5.cifar10.own_plane"), (high, "D5.cifar10.own_plane")]),
    ("08", r"A smaller one, of ([\d.]+) to ([\d.]+) points",
     [(high, "D8.test_error.1e-03"), (low, "D8.no_gain")]),
    ("09", r"it differs for (\d+) of 62", [(mean, "D9.rules.tensors")]),
]  # fmt: skip
# Words for numbers, and what must be true of the records for them.
MEANT = [
    ("D7", "cost one to two points", lambda: 1 < low("D7.too_large") < high("D7.too_large") < 2),
    ("D7", "leave half the effective rate", lambda: 0.4 < ratio(mean)("D7.rate.lasts") < 0.6),
    ("D8", "loss doubles", lambda: 1.8 < ratio(mean)("D8.training_loss") < 2.3),
    ("A4", "by less than 7 %", lambda: max(-low("A4.angle.log.adam"), -low("A4.angle.log.layer"))
     < -math.log(1 - 0.07)),
    ("F3", "within 4 % of the limit", lambda: low("F3.limit.small_lr") > 0.96),
    ("faq", "these hold a thousandth", lambda: 0.05 < high("D9.rules.resnet18") < 0.15),
    ("faq", "four tenths of what the matrices hold",
     lambda: 37.5 < mean("D9.rules.transformer") < 44),
    ("faq", "the same within one point",
     lambda: max(abs(low("D8.test_error")), abs(high("D8.test_error"))) < 1),
    ("00", "(The factor is 100 in the first step;", lambda: within(0.01, "T3.first_step", 100)),
    ("00", "Of the factor 16 between the starts less than a tenth is left with decay.",
     lambda: 0.9 < low("D2.start_forgotten") < high("D2.start_forgotten") < 1.1),
    ("00", "the error changes by less than a factor of two; along the top row or the right column "
     "it changes more than sixfold.", lambda: (
         lambda diagonals, row, column: diagonals < 2 < 6 < min(row, column))(*shown(
             "00", r"at most ([\d.]+) times the smallest, along the top row ([\d.]+) times, "
                   r"along the right column ([\d.]+) times"))),
    ("01", "the growth is the same, within that factor",
     lambda: -math.log(2) < low("D6.same_speed") < high("D6.same_speed") < math.log(2)),
    ("02", "*is* the network with it, to rounding",
     lambda: max(r["high"] for r in family("A1.schedule.exact.")) < 1e-12),
    ("02", "Seed by seed the same error",
     lambda: set(RECORDS["A1.directions.test_error"]["values"]) == {0.0}),
    ("02", "With batch norm the loss is even a little lower at λ = 0.1.",
     lambda: high("A1.attainable") < 0),
    ("02", "With batch norm it costs none.", lambda: high("A1.attainable") < 1),
    ("03", "It settles within a percent of the formula", lambda: within(0.01, "T4.random.")),
    ("03", "about ten times the norm",
     lambda: 9 < 10 ** (4 * low("T4.exponent")) < 10 ** (4 * high("T4.exponent")) < 11),
    ("03", "with momentum, to 3 %, in every layer", lambda: within(0.03, "A2.angle.momentum")),
    ("03", "With momentum the angle follows ηλ to 3 % in every layer.",
     lambda: within(0.03, "A2.angle.momentum")),
    ("03", "the balance is right to a few percent",
     lambda: within(0.05, "T4.correlation") and within(0.055, "A2.angle.nesterov")),
    ("03", "Nesterov's angle comes out a little too large for that",
     lambda: low("A2.angle.nesterov") > 1),
    ("03", "the formula for independent gradients gives, 1.12",
     lambda: round(RECORDS["A2.angle.nesterov"]["alternative"], 2) == 1.12),
    ("03", "the band excludes twice the time, and the intervals of forty seeds say more.",
     lambda: {r["count"] for r in family("T4.relaxation.")} == {40}),
    ("03", "That of SGD holds 1; but", lambda:
     low("T4.relaxation.sgd") < 1 < high("T4.relaxation.sgd")),
    ("03", "the course is not quite an exponential, faster at first and slower later.", lambda: (
        lambda early, formula, late, end: early < formula and late > end)(*shown(
            "03", r"after ten steps ([\d.]+) are left and not ([\d.]+), in the end "
                  r"([\d.]+) and not ([\d.]+)\."))),
    ("03", "That of momentum does not hold 1: it holds 1.09,",
     lambda: 1 < low("T4.relaxation.momentum") < 1.09 < high("T4.relaxation.momentum")),
    ("03", "A quarter at once, and a half in the end",
     lambda: 0.2 < shown("03", r"falls at once to ([\d.]+) of")[0] < 0.3
     and 0.45 < mean("A2.step_down.in_the_end") < 0.55),
    ("03", "until the rate is about a fifth of the first. Then both turn down", lambda: all(
        min(row[:5]) > 0.8 > row[6] for row in (shown("03", r"SGD ((?:[\d.]+ ){10})momentum"),
                                               shown("03", r"momentum ((?:[\d.]+ ?){10})")))),
    ("03", "With momentum the ratio is at first somewhat above", lambda: all(
        1.05 < value < 1.25 for value in shown("03", r"momentum ((?:[\d.]+ ){3})"))),
    ("03", "its value there, the fifth in the printed row, is well below 1",
     lambda: shown("03", r"momentum ((?:[\d.]+ ){5})")[4] < 0.9),
    ("04", "for η alone and λ alone it is below 0", lambda: max(
        shown("04", r"own rate, learned ((?:-?[\d.]+ ){6})")[4:]) < 0),
    ("04", "come to rest a factor of about 3 apart",
     lambda: (abs(np.diff(np.log(along_the_diagonal())) - math.log(3)) < 0.1).all()),
    ("04", "On the row η = 3 networks die at every λ, also without decay.",
     lambda: (dead("nesterov", 3) > 0).all()),
    ("04", "On the row η = 1 they die from λ = 0.001 on, and what survives is bad.", lambda: (
        ((dead("nesterov", 1) > 0) == (dead("nesterov", 1).weight_decay >= 1e-3)).all()
        and errors("nesterov", 1).where(dead("nesterov", 1) > 0).min() > 50)),
    ("04", "The row η = 3 and most of the row η = 1 are hatched: dead.", lambda: (
        (dead("nesterov", 3) > 2.5).all() and (dead("nesterov", 1) > 2.5).mean() > 0.5)),
    ("04", "With a rate of their own none is dead.", lambda: not any(
        dead("nesterov_other", lr).any() for lr in nl.recorded("nesterov_other").runs.lr)),
    ("04", "both together save four of five",
     lambda: shown("04", r"γ and β slowed down (\d) of 5 is dead") == [1]),
    ("04", "the interval with rates of their own holds 0.9 as well", lambda: np.ptp(np.sign(
        np.array(shown("04", r"own rate, learned in both grids, degree 4: [\d.]+ "
                             r"\(([\d.]+) to ([\d.]+)\)")) - 0.9)) == 2),
    ("04", "On the digits the interval of κ holds 1, but also 1.3.",
     lambda: low("F1.kappa.digits.not_root") < 1 < 1.3 < high("F1.kappa.digits.not_root")),
    ("04", "(about a point in the cell η = 0.1, λ = 0 of section 3)", lambda: (
        0.5 < errors("nesterov_other", 0.1)[0] - errors("nesterov_other", 0.1).min() < 1.5)),
    ("04", "the power is ¼ to within 0.01", lambda: all(
        abs(r["measured"] - 0.25) < 0.01 for r in family("T4.units.norm."))),
    ("05", "accounts for the angle to 3 %", lambda: all(
        0.97 < r["low"] <= r["high"] < 1.03 for r in family("T5.network.angle."))),
    ("08", "change it by less than a fifth",
     lambda: high("D8.training_loss.hidden") < math.log(1.2)),
    ("08", "within 5 % of what it would have been",
     lambda: RECORDS["D7.rate.lasts"]["alternative_high"] < 0.05),
    ("09", "a thousandth of ResNet-18's entries", lambda: high("D9.rules.resnet18") < 0.15),
    ("10", "What can be said is κ = 1 to about a tenth",
     lambda: 0.9 < low("F1.cifar10.kappa") <= high("F1.cifar10.kappa") < 1.1),
    ("practice", r"$0.25\sqrt{\eta\lambda}$ with torch's $\mu = 0.95$",
     lambda: round(nl.theory.muon((1024, 256)).angle(1, 1), 2) == 0.25),
    ("practice", r"$0.21\sqrt{\eta\lambda}$ with β = (0.9, 0.99)",
     lambda: round(nl.theory.lion().angle(1, 1), 2) == 0.21),
    ("practice", "within its interval of a hundredth",
     lambda: 0.98 < low("T5.tracked.stream") <= high("T5.tracked.stream") < 1.01),
    ("practice", "turned by about a fifth less", lambda: all(
        0.75 < RECORDS[f"T5.tracked.{one}"]["alternative"] < 0.85 for one in ("queries", "keys"))),
    ("practice", "which is 0.23 for", lambda: round(((1 - 0.9) / (1 + 0.9)) ** 0.5, 2) == 0.23),
    ("practice", "for a thousandth of its numbers", lambda: high("D9.rules.resnet18") < 0.15),
    ("practice", "no decay at all cost about two", lambda: 1.5 < mean("D8.rules.decay") < 2.5),
    ("05", "agrees with it to 5 % (all layers are printed)", lambda: all(
        abs(one / other - 1) < 0.055  # of numbers with two digits
        for one, other in np.reshape(after("05", "layer by layer.*? foretell", 12), (6, 2)))),
    ("practice", "they do so for four tenths of them",
     lambda: 37.5 < mean("D9.rules.transformer") < 44),
    ("practice", "divide λ by 6 to 7 there",
     lambda: 6 < 2 ** (1 / mean("F2.kappa.one_rate.learned")) < 7),
    ("practice", "from η = 1 on networks died in our grid", lambda: rates_of_the_dead().min() == 1),
    ("practice", "λ is felt from about a quarter of ηλ = (1−μ)²", lambda: felt_at_a_quarter()),
    ("limits", "18,154 parameters", lambda: "of 18,154 parameters" in printed("09")),
    ("06", "turns w, by tens of degrees in our five networks",
     lambda: 20 < low("T6.newton.turns") <= high("T6.newton.turns") < 100),
    ("08", "At λ = 0.001 each of them doubles the training loss", lambda: all(
        1.8 < ratio(mean)(f"D8.training_loss.{one}") < 2.2
        for one in ("last", "last.alone", "head"))),
    ("09", "without it the error is higher by about two points",
     lambda: 1.5 < mean("D8.rules.decay") < 2.5),
    ("09", "no decay at all cost about two", lambda: 1.5 < mean("D8.rules.decay") < 2.5),
    ("09", "the advice's interval has a width of less than a point",
     lambda: high("D8.rules.audit") - low("D8.rules.audit") < 1),
    ("09", "for four tenths of a small vision transformer's",
     lambda: 37.5 < mean("D9.rules.transformer") < 44),
    ("09", "the second true to a percent or so",
     lambda: max(abs(v - 1) for v in RECORDS["D3.angle.adafactor"]["values"]) < 0.02),
    ("09", "for more than half of the numbers",
     lambda: 50 < after("09", "small ViT(?:'|&#x27;)s tensors and", 1)[0] < 65),
    ("limits", "more than a hundred checks", lambda: len(RECORDS) > 100),
    ("faq", "left nearly the same gap", lambda: gaps_are_alike()),
    ("A4", "feels λ = 1 at η = 0.003 by a percent or so",
     lambda: 0 < max(abs(v - 1) for v in RECORDS["D3.angle.adafactor"]["values"]) < 0.02),
    ("05", "hundreds of times as large or more", lambda: smallest_entry() > 100 * 1e-8),
    ("05", "The last two percent are more than chance", lambda: all(
        high(id) < power and 0.01 < 1 - mean(id) / power < 0.03
        for id, power in (("T5.slope.start_forgotten.adam", 1 / 3),
                          ("T5.slope.start_forgotten.adamw", 1 / 2)))),
    ("05", "off by up to ten percent",
     lambda: 0.085 < 1 - rival_low("T5.network.angle.adamw") < 0.115),
    ("05", "cancels about a fifth of the decay", lambda: all(
        0.15 < 1 - r["alternative_low"] ** 2 < 0.25 for r in family("T5.network.angle."))),
    ("05", "up to one and a half times that",
     lambda: 1.4 < rival_high("T5.correlation.adamw") < 1.6),
    ("05", "the half width of one κ's interval",
     lambda: round((high("F2.kappa.adam") - low("F2.kappa.adam")) / 2, 2) == 0.05),
    ("07", "by about a fifth, and the band does not hold", lambda: (
        remembers(0.75, "unit", 0.85)
        and after("07", "unit, step 300: -", 2)[1] > 0.2)),
    ("07", "that of a free network is smaller by about two thirds",
     lambda: remembers(0.3, "free", 0.4)),
    ("07", "After 1,000 steps the ten seeds on the circle show no difference",
     lambda: re.search(r"unit, step 1000: [-\d.]+ \(-[\d.]+ to \d", printed("07"))),
    ("07", "beyond the limit is right to a few percent",
     lambda: 0.95 < low("T7.turning") <= high("T7.turning") < 1.05),
    ("07", "at a quarter of the limit it begins to show", lambda: felt_at_a_quarter()),
    ("07", "the error does not rise up to four fifths of the limit", lambda: (
        lambda first, *rest: max(rest[:5]) <= first
     )(*after("07", r"η = 0\.01, %", 13))),
    ("07", "its test loss is little more than half",
     lambda: 0.5 < math.exp(-mean("D5.again_near_limit")) < 0.6),
    ("07", "On the circle it stays near 1", lambda: high("D5.wrong_decay") < math.log(1.2)),
    ("07", "ends a point above the line's", lambda: 0.8 < chosen()[1] - chosen()[3] < 1.2),
    ("07", "About half of that point is the price of choosing",
     lambda: 0.4 < chosen()[1] - chosen()[0] < 0.7),
    ("08", "the error of the first ten seeds *fell*", lambda: high("D8.test_error.1e-03") < 0),
    ("08", "from λ = 0.003 on where the pair decays alone", lambda: first_that_raises() == 0.003),
    ("08", "one step in four or so made one layer shorter",
     lambda: 0.2 < 1 - mean("D6.not_every_step.adam") < 0.35),
    ("08", "With momentum the norm grew in every step",
     lambda: rival_low("D6.not_every_step.adam") == 1),
    ("08", "a rate that is larger by a fifth or so",
     lambda: 1.1 < after("08", "that of small weights", 1)[0] < 1.3),
    ("08", "from seed to seed by a few percent, and *less* without decay",
     lambda: 0 < after("08", "log of the effective rate spreads by", 1)[0]
     < after("08", "between seeds, with decay by", 1)[0] < 0.1),
    ("08", "wider than the band that we had fixed",
     lambda: high("D7.spread.seeds.not_double") > 0.4),
    ("10", "Nesterov's ends just below 1, Adam's just below 1/2, the normalized one begins",
     lambda: high("F1.cifar10.kappa") < 1 and high("F2.cifar10.kappa") < 0.5
     and low("F3.cifar10.kappa") > 0),
    ("10", "within a few hundredths of 1/2, mostly below", lambda: max(
        abs(κ - 0.5) for κ in after("10", r"Adam \+ L2: \d+ fits, κ from", 2)) < 0.05),
    ("10", "leave nearly the same gap", lambda: gaps_are_alike()),
    ("10", "No network is dead, and", lambda: high("F2.cifar10.one_rate.alive") == 0),
    ("10", "whichever of nine fits one takes to about 0.03", lambda: max(
        abs(κ - mean("F2.cifar10.one_rate.kappa"))
        for κ in after("10", "κ at one rate, nine fits:", 2)) < 0.035),
    ("10", "its interval holds 0 (printed)", lambda: re.search(
        r"same cells and seeds: [\d.]+ \(-[\d.]+ to \d", printed("10"))),
]  # fmt: skip


def outputs(chapter):
    return [o for cell in read(CHAPTERS[int(chapter)]).cells for o in cell.get("outputs", [])]


def pictured(output):
    """The text and the caption of a figure."""
    data = output.get("data", {})
    if not data.get("text/plain", "").startswith("Figure: "):
        return []
    return [
        data["text/plain"],
        *re.findall(r"<figcaption>(.*?)</figcaption>", data.get("text/html", ""), re.S),
    ]


@functools.cache
def text(where):
    """Of a page, a chapter with its figures or a claim's reasons, with single spaces."""
    if where in CLAIMS:
        found = CLAIMS[where]["why"]
    elif where.isdigit():
        cells = read(CHAPTERS[int(where)]).cells
        prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
        figures = [words for output in outputs(where) for words in pictured(output)]
        found = " ".join(prose + figures)
    else:
        found = (ROOT / f"book/{where}.md").read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", found)


# The same for numbers that the page itself prints: the words, and where the print has them.
PRINTED = [
    ("04", r"is left out κ lies between ([\d.]+) and ([\d.]+)\.",
     r"one rate, without the cliff: ([\d.]+) to ([\d.]+)"),
    ("04", r"it falls to ([\d.]+)\.", r"one rate, cells of the cliff: [\d.]+ to ([\d.]+)"),
    ("04", r"Over all that arrived it is about ([\d.]+):", r"cells of the cliff: ([\d.]+) to"),
    ("04", r"come from the (\d+) cells above 10 %", r"(\d+) cells above 10 % carry 0\.6[5-9]"),
    ("05", r"to a κ of about ([\d.]+) instead", r"Adam \+ L2, one rate learned \d+ ([\d.]+)"),
    ("07", r"jumps from (\d+) % to (\d+) %",
     r"η = 0\.01, %(?: [\d.]+){6} ([\d.]+) ([\d.]+)"),
    ("10", r"At η = 0\.03 one rate costs ([\d.]+) points, .*? from ([\d.]+) to ([\d.]+)\.",
     r"seeds in common: .*?η = 0\.03: ([\d.]+) \(([\d.]+) to ([\d.]+)\)"),
    ("10", r"There κ is about ([\d.]+) with", r"rows up to η = 0\.1, degree 2: κ = ([\d.]+)"),
    ("07", r"and at the last have ([\d.]+) times its angle",
     r"points of 0\.01 have ([\d.]+) times"),
    ("07", r"at the last they have ([\d.]+) times it", r"those of 0\.1 ([\d.]+) times"),
]  # fmt: skip


@functools.cache
def printed(chapter):
    """All text of a chapter's outputs, tables and figures included, with single spaces."""
    found = []
    for output in outputs(chapter):
        page = output.get("data", {}).get("text/html", "")
        if "picture" not in page:
            found.append(output.get("text", "") + re.sub(r"<[^>]+>", " ", page))
        found += pictured(output)[:1]
    return re.sub(r"\s+", " ", " ".join(found))


@pytest.mark.parametrize(("chapter", "words", "pattern"), PRINTED)
def test_a_number_in_words_is_the_printed_one(chapter, words, pattern):
    stated, shown = re.search(words, text(chapter)), re.search(pattern, printed(chapter))
    assert stated
    assert shown
    for said, number in zip(stated.groups(), shown.groups(), strict=True):
        assert round(float(number), len(said.partition(".")[2])) == float(said)


def named(rows):
    return [pytest.param(*row, id=f"{row[0]}-{i}") for i, row in enumerate(rows)]


@pytest.mark.parametrize(("where", "words", "numbers"), named(STATED))
def test_a_number_in_words_is_the_records(where, words, numbers):
    stated = re.search(words, text(where))
    assert stated, "the sentence is gone: change or remove its row"
    for said, (function, id) in zip(stated.groups(), numbers, strict=True):
        digits = len(said.partition(".")[2])
        assert round(abs(function(id)), digits) == float(said), id


@pytest.mark.parametrize(("where", "words", "holds"), named(MEANT))
def test_what_words_say_of_a_number_is_true(where, words, holds):
    assert words in text(where), "the sentence is gone: change or remove its row"
    assert holds()


def test_a_number_that_is_not_the_records_is_seen():
    where, words, numbers = STATED[0]
    assert round(abs(numbers[0][0](numbers[0][1])) + 0.01, 2) != float(
        re.search(words, text(where))[1]
    )

"""Numbers that prose states of measurements are those of the records."""

import functools
import math
import re

import pytest
import yaml

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


def family(start):
    """All records whose id starts so."""
    found = [record for id, record in RECORDS.items() if id.startswith(start)]
    assert found
    return found


def ratio(function):
    """Of what was measured as a logarithm."""
    return lambda id: math.exp(function(id))


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
    ("faq", "half of what the matrices hold", lambda: 45 < mean("D9.rules.transformer") < 55),
    ("faq", "the same within one point",
     lambda: max(abs(low("D8.test_error")), abs(high("D8.test_error"))) < 1),
    ("03", "with momentum, to 3 %", lambda: 0.97 < low("A2.angle.momentum")
     <= high("A2.angle.momentum") < 1.03),
    ("04", "the power is ¼ to within 0.01", lambda: all(
        abs(r["measured"] - 0.25) < 0.01 for r in family("T4.units.norm."))),
    ("05", "agrees with it to 5 % in every layer", lambda: all(
        0.95 < r["low"] <= r["high"] < 1.05 for r in family("T5.correlation."))),
    ("05", "accounts for the angle to 3 %", lambda: all(
        0.97 < r["low"] <= r["high"] < 1.03 for r in family("T5.network.angle."))),
    ("08", "change it by less than a fifth",
     lambda: high("D8.training_loss.hidden") < math.log(1.2)),
    ("08", "within 5 % of what it would have been",
     lambda: RECORDS["D7.rate.lasts"]["alternative_high"] < 0.05),
    ("09", "a thousandth of ResNet-18's entries", lambda: high("D9.rules.resnet18") < 0.15),
    ("10", "What can be said is κ = 1 to about a tenth",
     lambda: 0.9 < low("F1.cifar10.kappa") <= high("F1.cifar10.kappa") < 1.1),
    ("practice", "for a thousandth of its numbers", lambda: high("D9.rules.resnet18") < 0.15),
    ("practice", "no decay at all cost about two", lambda: 1.5 < mean("D8.rules.decay") < 2.5),
]  # fmt: skip


@functools.cache
def text(where):
    """Of a page, a chapter or a claim's reasons, with single spaces."""
    if where in CLAIMS:
        found = CLAIMS[where]["why"]
    elif where.isdigit():
        cells = read(CHAPTERS[int(where)]).cells
        found = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        found = (ROOT / f"book/{where}.md").read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", found)


# The same for numbers that the page itself prints: the words, and where the print has them.
PRINTED = [
    ("04", r"it falls to ([\d.]+)\.", r"one rate, cells of the cliff: [\d.]+ to ([\d.]+)"),
    ("04", r"Over all that arrived it is about ([\d.]+):", r"cells of the cliff: ([\d.]+) to"),
    ("04", r"come from the (\d+) cells above 10 %", r"(\d+) cells above 10 % carry 0\.6[5-9]"),
    ("05", r"to a κ of about ([\d.]+) instead", r"Adam \+ L2, one rate learned \d+ ([\d.]+)"),
    ("07", r"jumps from (\d+) % to (\d+) %",
     r"η = 0\.01, %(?: [\d.]+){6} ([\d.]+) ([\d.]+)"),
    ("10", r"There κ is about ([\d.]+) with", r"rows up to η = 0\.1, degree 2: κ = ([\d.]+)"),
]  # fmt: skip


@functools.cache
def printed(chapter):
    """All text of a chapter's outputs, tables included, with single spaces."""
    found = []
    for cell in read(CHAPTERS[int(chapter)]).cells:
        for output in cell.get("outputs", []):
            page = output.get("data", {}).get("text/html", "")
            if "picture" not in page:
                found.append(output.get("text", "") + re.sub(r"<[^>]+>", " ", page))
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

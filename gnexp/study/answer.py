"""The answer of a study in one or two sentences, made from its simultaneous intervals alone."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from gnexp.study import answer_words as words
from gnexp.study.cells import Series
from gnexp.study.comparisons import Setting, Versus, between, flatness_rows, settings
from gnexp.study.inference import AHEAD, ALPHA, BEHIND, UNDECIDED, seeds_needed, simultaneous

SEEDS = 5  # as many as a first study should have


def answer(lines: Sequence[Series], reference_batch: int) -> list[str]:
    """Return one or two sentences: which norm to use at which batch size, or why nobody can say.

    Of the setting (model, data set, update rule) with most cells, the first of these; a study of
    several says so. The norm held against BN is the one with the highest mean at the smallest
    batch size that was compared, diverged seeds at chance; who leads is told only where the
    simultaneous interval of norm - BN lies on one side of 0.
    """
    lines = [line for line in lines if line.cells]
    if not lines:
        return ["No seed is finished yet."]
    found = settings(lines)
    main = max(found, key=lambda s: sum(len(line.cells) for line in s.lines))
    sentences = _of_setting(main, lines, reference_batch)
    if len(found) > 1:
        told = words.setting(main, found)
        sentences[0] = f"{told} (1 of {len(found)} settings, all in the tables): {sentences[0]}"
    return sentences


def _of_setting(setting: Setting, lines: Sequence[Series], reference_batch: int) -> list[str]:
    if len(setting.lines) == 1:
        return _alone(setting.lines[0], lines, reference_batch)
    if setting.bn is None:
        return _without_bn(setting)
    compared = [(line, pairs) for line, pairs in setting.pairs if pairs]
    if not compared:
        return [_nothing_in_common(setting)]
    tested = [(line, _tested(pairs)) for line, pairs in compared if _tested(pairs)]
    if not tested:
        return _untested(*_pick(compared))
    line, pairs = _pick(tested)
    return _against_bn(line, pairs, tested, setting)


def _tested(pairs: Sequence[Versus]) -> list[Versus]:
    return [one for one in pairs if one.adjusted.verdict in (AHEAD, BEHIND, UNDECIDED)]


def _pick(found: Sequence[tuple[Series, list[Versus]]]) -> tuple[Series, list[Versus]]:
    """Return the series with the highest mean at the smallest batch size that any has."""
    smallest = min(pairs[0].batch for _, pairs in found)
    here = [(line, pairs) for line, pairs in found if pairs[0].batch == smallest]
    return max(here, key=lambda one: words.mean(one[1][0].cell))


def _against_bn(
    line: Series,
    pairs: list[Versus],
    tested: Sequence[tuple[Series, list[Versus]]],
    setting: Setting,
) -> list[str]:
    decided = [one for one in pairs if one.adjusted.verdict != UNDECIDED]
    stretches = [list(of) for _, of in groupby(decided, key=lambda one: one.adjusted.verdict)]
    rest = [*_open(pairs)] if stretches else []
    if not stretches:
        first = _tie(line, pairs)
        rest.append(_would_decide(pairs))
    elif len(stretches) > 2:
        first = _several(line, stretches)
    else:
        first, *second = [_stretch(of, pairs, line, tested) for of in stretches]
        rest = [*second, *rest]
    rest += _elsewhere(line, pairs, tested)
    rest += _missing(line, setting)
    rest += _other_norms(line, pairs[0], tested)
    rest.append(words.method(pairs[0].adjusted.family, "comparison", "with BN"))
    return [f"{first}.", words.sentence(rest)]


def _stretch(
    of: list[Versus],
    pairs: Sequence[Versus],
    line: Series,
    tested: Sequence[tuple[Series, list[Versus]]],
) -> str:
    """Return who leads over one stretch of batch sizes, and by how much towards its outer end."""
    where = words.where([one.batch for one in of], [one.batch for one in pairs])
    name = words.name(line)
    outer = of if of[0] is pairs[0] or of[-1] is not pairs[-1] else of[::-1]
    sized = [one for one in outer if one.adjusted.lo and one.adjusted.hi]  # an end of 0 tells less
    at = next(iter(sized or outer))
    there = f" at batch {at.batch}" if len(of) > 1 else ""
    if of[0].adjusted.verdict == AHEAD:
        return f"{where}, use {name}: {words.points(at, True, f' over BN{there}')}"
    lead = words.points(at, place=there)
    batches = {one.batch for one in of}
    others = {
        words.name(other): {one.adjusted.verdict for one in its if one.batch in batches}
        for other, its in tested
        if other is not line
    }
    if any(AHEAD in verdicts for verdicts in others.values()):
        return f"{where}, BN leads {name}: by {lead}"
    unsure = [other for other, verdicts in others.items() if UNDECIDED in verdicts]
    every = "every other norm, " if others and not unsure else ""
    told = f", but {words.spelled(unsure)} cannot be told from it throughout" if unsure else ""
    return f"{where}, use BN: it leads {every}{name} by {lead}{told}"


def _tie(line: Series, pairs: Sequence[Versus]) -> str:
    batches = words.spelled([one.batch for one in pairs])
    widest = max(pairs, key=lambda one: abs(one.difference.difference))
    return (
        f"The data do not decide between {words.name(line)} and BN at batch {batches}: the largest "
        f"difference is {words.points(widest, True, f' at batch {widest.batch}')}"
    )


def _would_decide(pairs: Sequence[Versus]) -> str:
    several = [one.difference for one in pairs if one.difference.n_pairs > 1]
    steps = [one for one in several if one.sd > 0]
    dof = sum(one.n_pairs - 1 for one in steps)
    if not dof:
        return "more seeds would"
    sd = math.sqrt(sum((one.n_pairs - 1) * one.sd**2 for one in steps) / dof)
    alpha = ALPHA / (2 * pairs[0].adjusted.family)
    seeds = f"about {words.count(seeds_needed(sd, alpha=alpha))} seeds of each"
    return f"{seeds} would narrow the intervals to half a point either way"


def _several(line: Series, stretches: Sequence[list[Versus]]) -> str:
    ahead = [one for of in stretches for one in of if one.adjusted.verdict == AHEAD]
    behind = [one for of in stretches for one in of if one.adjusted.verdict == BEHIND]
    name = words.name(line)
    return (
        f"The lead changes more than once: {name} leads BN at batch "
        f"{words.spelled([one.batch for one in ahead])}, by "
        f"{words.points(ahead[0], place=f' at {ahead[0].batch}')}, and BN leads it at batch "
        f"{words.spelled([one.batch for one in behind])}, by "
        f"{words.points(behind[0], place=f' at {behind[0].batch}')}"
    )


def _open(pairs: Sequence[Versus]) -> list[str]:
    batches = [one.batch for one in pairs if one.adjusted.verdict == UNDECIDED]
    told = f"at batch {words.spelled(batches)} the data do not decide between them"
    return [told] if batches else []


def _elsewhere(
    line: Series, pairs: Sequence[Versus], tested: Sequence[tuple[Series, list[Versus]]]
) -> list[str]:
    """Name the norms that lead BN where the picked one does not."""
    won = {one.batch for one in pairs if one.adjusted.verdict == AHEAD}
    told = []
    for other, its in tested:
        leads = [o for o in its if o.adjusted.verdict == AHEAD and o.batch not in won]
        if other is not line and leads:
            batches = words.spelled([one.batch for one in leads])
            place = f" at {leads[0].batch}" if len(leads) > 1 else ""
            told.append(
                f"{words.name(other)} leads BN at batch {batches} "
                f"by {words.points(leads[0], place=place)}"
            )
    return told


def _missing(line: Series, setting: Setting) -> list[str]:
    mine = {cell.key["batch"] for cell in line.cells}
    theirs = {cell.key["batch"] for cell in setting.bn.cells}
    pairs = next(its for other, its in setting.pairs if other is line)
    told = [
        f"{who} is missing at batch {words.spelled(sorted(batches))}"
        for who, batches in (("BN", mine - theirs), (words.name(line), theirs - mine))
        if batches
    ]
    lost = [one for one in pairs if one not in _tested(pairs)]
    reasons = {one.difference.why for one in lost}
    for why in sorted(reasons):
        batches = words.spelled([one.batch for one in lost if one.difference.why == why])
        told.append(f"at batch {batches} nothing can be compared ({why})")
    return told


def _other_norms(
    line: Series, first: Versus, tested: Sequence[tuple[Series, list[Versus]]]
) -> list[str]:
    """Say which norms the picked one, the highest of several, cannot be told from."""
    others = [o for o, its in tested if o is not line and its[0].batch == first.batch]
    if not others:
        return []
    cells = [next(c for c in o.cells if c.key["batch"] == first.batch) for o in others]
    adjusted = simultaneous([between(first.cell, cell) for cell in cells])
    alike = [words.name(o) for o, a in zip(others, adjusted) if a.verdict not in (AHEAD, BEHIND)]
    told = f" ({words.spelled(alike)} cannot be told from it)" if alike else ""
    return [
        f"{words.name(line)} has the highest mean at batch {first.batch} of the "
        f"{len(others) + 1} compared with BN{told}"
    ]


def _untested(line: Series, pairs: Sequence[Versus]) -> list[str]:
    """Say why nothing has a p: one seed each, or no spread."""
    name = words.name(line)
    cells = [cell for one in pairs for cell in (one.cell, one.other)]
    batches = words.spelled([one.batch for one in pairs])
    if not any(cell.of("complete") for cell in cells):
        return [
            f"Every seed of {name} and BN diverged at batch {batches}, so there is no accuracy to "
            "compare; a smaller lr is the first thing to try."
        ]
    at = pairs[0]
    raw = f"{100 * at.difference.difference:+.1f} points at batch {at.batch}"
    n = f"n = {at.difference.n_a} and {at.difference.n_b}"
    if any(one.difference.why == words.TOO_FEW for one in pairs):
        return [
            f"One seed does not decide between {name} and BN: their difference is {raw} ({n}), and "
            "nothing says how far another seed would move it.",
            f"Train seeds={SEEDS} of each, which adds the missing ones.",
        ]
    return [
        f"The data do not decide between {name} and BN: the difference is {raw} ({n}), but all "
        "seeds agree exactly, which tells nothing of their spread.",
        "Train more seeds of each.",
    ]


def _nothing_in_common(setting: Setting) -> str:
    others = [line for line in setting.lines if line is not setting.bn]
    theirs = words.spelled(sorted({c.key["batch"] for line in others for c in line.cells}))
    mine = words.spelled([cell.key["batch"] for cell in setting.bn.cells])
    names = words.spelled([words.name(line) for line in others])
    return (
        f"Nothing can be compared: BN was trained at batch {mine} and {names} at batch {theirs}; "
        f"train BN at batch {theirs} too."
    )


def _without_bn(setting: Setting) -> list[str]:
    """Compare the highest norm with every other at the smallest batch size that most have."""
    counts: dict[int, int] = {}
    for line in setting.lines:
        for cell in line.cells:
            counts[cell.key["batch"]] = counts.get(cell.key["batch"], 0) + 1
    batch = max(sorted(counts), key=counts.__getitem__)
    there = [(ln, c) for ln in setting.lines for c in ln.cells if c.key["batch"] == batch]
    if len(there) < 2:
        return ["BN was not trained, and no two norms at the same batch size: nothing to compare."]
    best, cell = max(there, key=lambda one: words.mean(one[1]))
    there.sort(key=lambda one: one[0] is not best)  # so that its differences are its leads
    pairs = [(a, b) for i, a in enumerate(there) for b in there[i + 1 :]]
    found = [between(a[1], b[1]) for a, b in pairs]
    told, alike = [], []
    for (a, b), one, adjusted in zip(pairs, found, simultaneous(found)):
        if a[0] is best:
            other = words.name(b[0])
            versus = Versus(batch, cell, b[1], one, adjusted)
            lead = words.points(versus, True, f" over {other}", other)
            if adjusted.verdict == AHEAD:
                told.append(lead)
            else:
                alike.append(other)
    family = sum(one.p == one.p for one in found)
    head = f"BN was not trained; at batch {batch} {words.name(best)} has the highest mean"
    rest = [f"{words.spelled(alike)} cannot be told from it"] * bool(alike)
    if not family:
        return [f"{head}, but {rest[0]}.", f"Train seeds={SEEDS} of each, and norm=bn beside them."]
    rest += [words.method(family, "pair", "of norms")]
    return [f"{head}{': ' * bool(told)}{', '.join(told)}.", words.sentence(rest)]


def _alone(line: Series, lines: Sequence[Series], reference_batch: int) -> list[str]:
    name, smallest = words.name(line), line.cells[0]
    which = "other norms" if line.norm == "bn" else "norm=bn"
    batches = words.spelled([cell.key["batch"] for cell in line.cells])
    told = [f"Only {name} was trained; train {which} at batch {batches} to compare."]
    for row in flatness_rows(lines, reference_batch):
        here = all(row.get(key) == value for key, value in smallest.key.items())
        if here and row["p_holm"] == row["p_holm"]:
            return [*told, _lost(row)]
    return told


def _lost(row: dict[str, Any]) -> str:
    verb = "does not clearly move"
    if row["p_holm"] <= ALPHA:
        verb = "loses accuracy" if row["difference"] < 0 else "gains accuracy"
    bounds = words.bounds(row["lo_simultaneous"], row["hi_simultaneous"])
    return (
        f"From batch {row['reference_batch']} to {row['batch']} it {verb}: "
        f"{100 * row['difference']:+.1f} points (95 % interval {bounds}, n = {row['n']} and "
        f"{row['n_reference']}), simultaneous over {row['family']} "
        f"comparison{'s' * (row['family'] != 1)} (Holm)."
    )

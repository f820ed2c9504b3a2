"""The answer of a study in one or two sentences, made from its simultaneous intervals alone."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from gnexp.study import answer_gaps as gaps
from gnexp.study import answer_words as words
from gnexp.study.answer_leads import Place, places
from gnexp.study.answer_tie import tie
from gnexp.study.cells import Series
from gnexp.study.comparisons import Setting, Versus, between, flatness_rows, settings
from gnexp.study.inference import AHEAD, ALPHA, BEHIND, UNDECIDED, simultaneous

SEEDS = 5  # as many as a first study should have
MOST = 3  # stretches of batch sizes that are told one by one


def answer(lines: Sequence[Series], reference_batch: int) -> list[str]:
    """Return one or two sentences: which norm to use at which batch size, or why nobody can say.

    Of the setting (model, data set, update rule) with most cells, the first of these; a study of
    several says so. Who leads is told only where the simultaneous interval of norm - BN lies on
    one side of 0, the family being every norm at every batch size; a norm is the one to use where
    no other is decidedly above it. What is missing, has one seed or was not tuned is named.
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
    *before, last = _told(setting, lines, reference_batch)
    untuned = gaps.untuned(setting.lines)
    return [*before, f"{last[:-1]}; {untuned}." if untuned else last]


def _told(setting: Setting, lines: Sequence[Series], reference_batch: int) -> list[str]:
    if len(setting.lines) == 1:
        return _alone(setting.lines[0], lines, reference_batch)
    if setting.bn is None:
        return _without_bn(setting)
    compared = [(line, pairs) for line, pairs in setting.pairs if pairs]
    if not compared:
        return [_nothing_in_common(setting)]
    found = places(setting)
    return _against_bn(found, setting) if found else _untested(*_pick(compared))


def _pick(found: Sequence[tuple[Series, list[Versus]]]) -> tuple[Series, list[Versus]]:
    """Return the series with the highest mean at the smallest batch size that any has."""
    smallest = min(pairs[0].batch for _, pairs in found)
    here = [(line, pairs) for line, pairs in found if pairs[0].batch == smallest]
    return max(here, key=lambda one: words.mean(one[1][0].cell))


def _against_bn(found: Sequence[Place], setting: Setting) -> list[str]:
    decided = [place for place in found if place.verdict != UNDECIDED]
    stretches = [list(of) for _, of in groupby(decided, key=lambda place: place.winner)]
    winners = [of[0].winner[0] for of in stretches]
    if not stretches:
        first, *rest = tie(found, setting)
    elif len(stretches) > MOST or len(set(winners)) < len(winners):
        first, *rest = [_several(decided), *_open(found)]
    else:
        first, *rest = [_stretch(of, found, setting) for of in stretches]
        rest += _open(found)
    rest += gaps.missing(setting.lines) + gaps.untested(setting)
    rest.append(words.method(found[0].versus.adjusted.family, "comparison", "with BN"))
    return [f"{first}.", words.sentence(rest)]


def _stretch(of: Sequence[Place], found: Sequence[Place], setting: Setting) -> str:
    """Return who leads over one stretch of batch sizes, and by how much towards its outer end."""
    where = words.where([one.batch for one in of], [one.batch for one in found])
    outer = of if of[0] is found[0] or of[-1] is not found[-1] else of[::-1]
    sized = [p for p in outer if p.versus.adjusted.lo and p.versus.adjusted.hi]  # 0 tells less
    at = next(iter(sized or outer))
    there = f" at batch {at.batch}" if len(of) > 1 else ""
    name = words.name(at.line)
    if at.verdict == AHEAD:
        verb = f"{name} leads BN" if at.above else f"use {name}"
        lead = f"{words.points(at.versus, True, there if at.above else f' over BN{there}')}"
        higher = words.some(_names(line for place in of for line in place.above))
        if at.above:
            return f"{where}, {verb}: {lead}, but {higher} {_is_or_are(higher)} higher there"
        return f"{where}, {verb}: {lead}{_but(of)}"
    lead = words.points(at.versus, place=there)
    others = {line.label: line for line, _ in setting.pairs if line is not at.line}
    beaten = [line for label, line in others.items() if all(_beaten(p, label) for p in of)]
    every, too = "", ""
    if others and len(beaten) == len(others) and all(_beaten(p, at.line.label) for p in of):
        every = "every other norm, "
    elif beaten:
        too = f", and {words.some(_names(beaten))}"
    return f"{where}, use BN: it leads {every}{name} by {lead}{too}{_but(of)}"


def _beaten(place: Place, label: str) -> bool:
    return label in [line.label for line in (place.line, *place.behind)]


def _but(of: Sequence[Place]) -> str:
    """Name the norms that cannot be told from the one that is to be used over a stretch."""
    unsure = _names(line for place in of for line in place.unsure)
    if not unsure:
        return ""
    here = [set(_names(place.unsure)) for place in of]
    throughout = "" if all(set(unsure) == names for names in here) else " throughout"
    return f", but {words.some(unsure)} cannot be told from it{throughout}"


def _names(lines: Iterable[Series]) -> list[str]:
    return [*dict.fromkeys(words.name(line) for line in lines)]


def _is_or_are(names: str) -> str:
    return "are" if " and " in names else "is"


def _several(decided: Sequence[Place]) -> str:
    """List the batch sizes of every leader where the lead goes to and fro."""
    by: dict[tuple[str, str], list[Place]] = {}
    for place in sorted(decided, key=lambda place: place.verdict != AHEAD):
        by.setdefault((place.verdict, place.line.label), []).append(place)
    one_norm = len({label for _, label in by}) == 1
    told = []
    for (verdict, _), of in by.items():
        batches = words.spelled([place.batch for place in of])
        name = words.name(of[0].line)
        who = f"{name} leads BN" if verdict == AHEAD else f"BN leads {'it' if one_norm else name}"
        lead = words.points(of[0].versus, place=f" at {of[0].batch}")
        told.append(f"{who} at batch {batches}, by {lead}")
    return f"The lead changes more than once: {', and '.join(told)}"


def _open(found: Sequence[Place]) -> list[str]:
    """Name the batch sizes that are open, and which norm it is that BN cannot be told from."""
    by: dict[str, list[int]] = {}
    for place in found:
        if place.verdict == UNDECIDED:
            by.setdefault(words.name(place.line), []).append(place.batch)
    one_norm = len({place.line.label for place in found}) == 1
    return [
        f"at batch {words.spelled(batches)} the data do not decide between "
        f"{'them' if one_norm else f'{name} and BN'}"
        for name, batches in by.items()
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
    found = [between(a[1], b[1], setting.samples) for a, b in pairs]
    told, alike, few, rest = [], [], [], []
    for (a, b), one, adjusted in zip(pairs, found, simultaneous(found)):
        if a[0] is best:
            other = words.name(b[0])
            versus = Versus(batch, cell, b[1], one, adjusted)
            lead = words.points(versus, True, f" over {other}", other)
            if adjusted.verdict == AHEAD:
                told.append(lead)
            elif adjusted.verdict == BEHIND:  # over the seeds of both, which the means are not
                rest.append(f"{other} is above it over the seeds of both")
            elif one.why == words.TOO_FEW:
                few.append(other)
            else:
                alike.append(other)
    family = sum(one.p == one.p for one in found)
    done = "tuned" if setting.key.get("lr") == "tuned" else "trained"  # at other rates it may be
    head = f"BN was not {done}; at batch {batch} {words.name(best)} has the highest mean"
    rest += [f"{words.some(alike)} cannot be told from it"] * bool(alike)
    rest += [f"{words.some(few)} cannot be compared with it (one seed)"] * bool(few)
    if not family:
        return [
            f"{head}, but {'; '.join(rest)}.",
            f"Train seeds={SEEDS} of each, and norm=bn beside them.",
        ]
    rest += gaps.missing(setting.lines)
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

"""The answer of a study in a few sentences, made from its simultaneous intervals.

Over each stretch of batch sizes one of three forms: "use X" where X has the highest mean and is
decidedly better than every other norm; "use X, Y or Z, not W" where Y and Z are statistically tied
with X and W is decidedly worse; else "the data do not decide", and what would. Where no norm is
above chance, that. Beside it: what is missing, how was trained, and what the intervals hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gnexp.analysis.cells import Series
from gnexp.analysis.comparisons import ComparisonGroup, NormComparison
from gnexp.analysis.eval_split import for_split
from gnexp.analysis.inference import ALPHA, TOO_FEW
from gnexp.analysis.leaders import LARGE, NOT_TESTED, BatchVerdict, typical_errors, untested_lead
from gnexp.analysis.stretches import stretches
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.templates import write
from gnexp.report.text import phrases
from gnexp.report.text.beside_answer import gaps, training, update_rule

SEEDS = 5  # as many as a first study should have
MOST_SETTINGS = 3  # that are answered one by one
MOST_WORDS = 45  # of a sentence


def answer(analysis: StudyAnalysis) -> list[str]:
    """Return the answer's sentences: the norm to use at each batch size, or why none is decided.

    One answer for each comparison group (model, data set, update rule), the largest first.
    """
    groups = analysis.comparison_groups
    if not groups:
        return ["No seed is finished yet."]
    both = zip(groups, analysis.leaders)
    both = sorted(both, key=lambda one: -sum(len(line.cells) for line in one[0].lines))
    order = [group for group, _ in both]
    shown = [_of_setting(group, found, analysis) for group, found in both[:MOST_SETTINGS]]
    trained = training([one.lines for one in order[:MOST_SETTINGS]], bool(analysis.tuned))
    for setting, one, sentence in zip(order, shown, trained):
        if _any_complete(setting):
            one.beside.extend([*sentence, *update_rule(setting.lines)])
    sentences = _joined(order, groups, shown, len(groups) - len(shown))
    sentences += _method(shown, analysis.margin)
    return [for_split(text, analysis.eval_split) for text in sentences]


def _joined(
    order: Sequence[ComparisonGroup],
    among: Sequence[ComparisonGroup],
    shown: Sequence["_Answer"],
    rest: int,
) -> list[str]:
    """Return the groups' sentences under their names, what is common to all of them once."""
    if len(among) == 1:
        return [*shown[0].leads, *shown[0].beside]
    shared = [text for text in shown[0].beside if all(text in one.beside for one in shown)]
    sentences = []
    for setting, one in zip(order, shown):
        name = phrases.capital(phrases.setting(setting, among))
        own = [*one.leads, *(text for text in one.beside if text not in shared)]
        sentences += [f"{name}: {phrases.lowered(text)}" for text in own]
    more = [f"{rest} more setting{'s are' if rest > 1 else ' is'} in the tables."] * bool(rest)
    return [*sentences, *more, *shared]


@dataclass(frozen=True)
class _Answer:
    """A setting's sentences: who leads, and what stands beside it.

    tested: its comparisons, by batch and the numbers of both lines; bn: the number of BN.
    """

    leads: list[str]
    beside: list[str]
    tested: dict[tuple[int, int, int], NormComparison]
    bn: int | None


def _of_setting(
    setting: ComparisonGroup, found: Sequence[BatchVerdict], analysis: StudyAnalysis
) -> _Answer:
    names, lines = phrases.names(setting), setting.lines
    bn = next((i for i, line in enumerate(lines) if line is setting.bn), None)
    compared = [place for place in found if place.kind != NOT_TESTED]
    kind = _kind(setting, found, compared)
    facts = {"kind": kind, "names": names, **_CONSTANTS}
    facts["batches"] = sorted({cell.key["batch"] for line in lines for cell in line.cells})
    beside: list[str] = []
    if kind == "one norm":
        facts |= _lost(lines[0], analysis.flatness)
    elif kind == "nothing in common":
        batches = [[cell.key["batch"] for cell in line.cells] for line in lines]
        at = [f"{name} at batch {phrases.spelled(of)}" for name, of in zip(names, batches)]
        facts |= {"trained_at": at, "first": batches[0]}
    elif kind == "untested":
        facts |= dict(zip(("leader", "rival", "one"), untested_lead(setting, found)))
        facts["batch"] = found[0].batch
        beside = gaps(setting, [], names)
    elif kind == "compared":
        facts["stretches"], facts["in_tables"] = stretches(compared, bn)
        facts |= {"every": [place.batch for place in compared], "bn": bn}
        facts["named"] = lambda lines: [names[i] for i in lines]
        beside = gaps(setting, found, names)
    tested = {
        (place.batch, min(i, j), max(i, j)): one
        for place in (compared if kind == "compared" else ())
        for (i, j), one in place.over.items()
    }
    return _Answer(write("answer.j2", **facts), beside, tested, bn)


_CONSTANTS = {"LARGE": LARGE, "MOST_WORDS": MOST_WORDS, "SEEDS": SEEDS, "TOO_FEW": TOO_FEW}


def _any_complete(setting: ComparisonGroup) -> bool:
    return any(cell.of("complete") for line in setting.lines for cell in line.cells)


def _kind(
    setting: ComparisonGroup, found: Sequence[BatchVerdict], compared: Sequence[BatchVerdict]
) -> str:
    """Return which kind of answer a setting has: the first that fits."""
    if not any(cell.scored for line in setting.lines for cell in line.cells):
        return "no accuracy"
    if not _any_complete(setting):
        return "diverged"
    if len(setting.lines) == 1:
        return "one norm"
    if not found:
        return "nothing in common"
    return "compared" if compared else "untested"


def _lost(line: Series, flatness: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return of a study of one norm the difference at its smallest batch, where it was tested."""
    key = line.cells[0].key
    rows = (row for row in flatness if all(row.get(k) == v for k, v in key.items()))
    lost = next((row for row in rows if row["p_holm"] == row["p_holm"]), None)
    moved = lost is not None and lost["p_holm"] <= ALPHA
    return {"is_bn": line.norm == "bn", "lost": lost, "moved": moved}


def _method(answers: Sequence[_Answer], margin: float) -> list[str]:
    """Return in a list the sentence on what the intervals hold; empty if nothing was tested."""
    tested = [one for each in answers for one in each.tested.values()]
    if not tested:
        return []
    first = answers[0]
    with_bn = sum(first.bn in lines for _, *lines in first.tested)
    facts = {"with_bn": with_bn, "others": len(first.tested) - with_bn}
    facts |= dict(zip(("seeds", "images", "is_bound"), typical_errors(tested)))
    return write("method.j2", settings=len(answers), least=margin, **facts)

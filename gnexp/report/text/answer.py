"""The answer of a study in a few sentences, made from its simultaneous intervals.

Over each stretch of batch sizes one of three forms: "use X" where X has the highest mean and is
decidedly better than every other norm; "use X, Y or Z, not W" where Y and Z are statistically tied
with X and W is decidedly worse; else "the data do not decide", and what would. Where no norm is
above chance, that. Beside it: what is missing, how was trained, and what the intervals hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gnexp.analysis.comparisons import ComparisonGroup, NormComparison
from gnexp.analysis.eval_split import for_split
from gnexp.analysis.inference import ALPHA, TOO_FEW
from gnexp.analysis.leaders import LARGE, NOT_TESTED, BatchVerdict, typical_errors, untested_lead
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.text import phrases
from gnexp.report.text.beside_answer import gaps, training, update_rule
from gnexp.report.text.sentences import write
from gnexp.report.text.stretch_facts import lead_facts

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
    answers = [_of_setting(group, found, analysis) for group, found in both]
    shown = answers[:MOST_SETTINGS]
    trained = training([one.lines for one in order[:MOST_SETTINGS]], bool(analysis.tuned))
    for setting, one, sentence in zip(order, shown, trained):
        if _any_complete(setting):
            one.beside.extend([*sentence, *update_rule(setting.lines)])
    sentences = _joined(order, groups, shown, len(answers) - len(shown))
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
    """A setting's sentences: who leads, and what stands beside it; tested: its comparisons."""

    leads: list[str]
    beside: list[str]
    tested: list[NormComparison]
    with_bn: int
    others: int


def _of_setting(
    setting: ComparisonGroup, found: Sequence[BatchVerdict], analysis: StudyAnalysis
) -> _Answer:
    names = phrases.names(setting)
    facts = {"names": names, "batches": _batches(setting), "kind": _without_rivals(setting)}
    if facts["kind"]:
        if facts["kind"] == "one norm":
            facts |= _lost(setting, analysis.flatness)
        return _Answer(write("answer.j2", **facts), [], [], 0, 0)
    if not found:
        return _Answer(_nothing_in_common(setting, names), [], [], 0, 0)
    compared = [place for place in found if place.kind != NOT_TESTED]
    beside = gaps(setting, found if compared else [], names)
    if not compared:
        return _Answer(_untested(found, setting, names), beside, [], 0, 0)
    tested = {
        (place.batch, min(i, j), max(i, j)): one
        for place in found
        for (i, j), one in place.over.items()
    }
    bn = next((i for i, line in enumerate(setting.lines) if line is setting.bn), None)
    with_bn = sum(bn in (i, j) for _, i, j in tested)
    facts |= {"LARGE": LARGE, "MOST_WORDS": MOST_WORDS}
    facts["stretches"], facts["in_tables"] = lead_facts(compared, names, bn)
    leads = write("answer.j2", **facts)
    return _Answer(leads, beside, [*tested.values()], with_bn, len(tested) - with_bn)


def _any_complete(setting: ComparisonGroup) -> bool:
    return any(cell.of("complete") for line in setting.lines for cell in line.cells)


def _batches(setting: ComparisonGroup) -> list[int]:
    return sorted({cell.key["batch"] for line in setting.lines for cell in line.cells})


def _without_rivals(setting: ComparisonGroup) -> str:
    """Return why no norms can be compared at all, "" where they can."""
    if not any(cell.scored for line in setting.lines for cell in line.cells):
        return "no accuracy"
    if not _any_complete(setting):
        return "diverged"
    return "one norm" if len(setting.lines) == 1 else ""


def _lost(setting: ComparisonGroup, flatness: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return of a study of one norm the difference at its smallest batch, where it was tested."""
    (line,) = setting.lines
    key = line.cells[0].key
    rows = (row for row in flatness if all(row.get(k) == v for k, v in key.items()))
    lost = next((row for row in rows if row["p_holm"] == row["p_holm"]), None)
    moved = lost is not None and lost["p_holm"] <= ALPHA
    return {"is_bn": line.norm == "bn", "lost": lost, "moved": moved}


def _untested(
    found: Sequence[BatchVerdict], setting: ComparisonGroup, names: Sequence[str]
) -> list[str]:
    """Return sentences on why nothing was tested: one seed each, or no spread."""
    leader, rival, one = untested_lead(setting, found)
    facts = {"leader": leader, "rival": rival, "one": one, "batch": found[0].batch}
    return write("answer.j2", kind="untested", names=names, SEEDS=SEEDS, TOO_FEW=TOO_FEW, **facts)


def _nothing_in_common(setting: ComparisonGroup, names: Sequence[str]) -> list[str]:
    """Return a sentence for norms without a common batch size."""
    batches = [[cell.key["batch"] for cell in line.cells] for line in setting.lines]
    at = [f"{name} at batch {phrases.spelled(of)}" for name, of in zip(names, batches)]
    return write("answer.j2", kind="nothing in common", trained_at=at, first=batches[0])


def _method(answers: Sequence[_Answer], margin: float) -> list[str]:
    """Return in a list the sentence on what the intervals hold; empty if nothing was tested."""
    tested = [one for each in answers for one in each.tested]
    if not tested:
        return []
    seeds, images, is_bound = typical_errors(tested)
    return write(
        "method.j2",
        settings=len(answers),
        with_bn=answers[0].with_bn,
        others=answers[0].others,
        seeds=seeds,
        images=images,
        is_bound=is_bound,
        least=margin,
    )

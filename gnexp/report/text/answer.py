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
from gnexp.analysis.leaders import NOT_TESTED, BatchVerdict, typical_errors, untested_lead
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.text import phrases
from gnexp.report.text.answer_sentences import lead_sentences
from gnexp.report.text.gaps import gaps
from gnexp.report.text.training_length import training, update_rule

SEEDS = 5  # as many as a first study should have
MOST_SETTINGS = 3  # that are answered one by one


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
    if not any(cell.scored for line in setting.lines for cell in line.cells):
        return _Answer(["No seed is finished yet."], [], [], 0, 0)
    if not _any_complete(setting):
        return _Answer([_diverged(setting)], [], [], 0, 0)
    if len(setting.lines) == 1:
        return _Answer(_single_norm(setting, names[0], analysis.flatness), [], [], 0, 0)
    if not found:
        return _Answer([_nothing_in_common(setting, names)], [], [], 0, 0)
    compared = [place for place in found if place.kind != NOT_TESTED]
    beside = gaps(setting, found if compared else [], names)
    if not compared:
        return _Answer(_untested(found, setting, names), beside, [], 0, 0)
    tested = {
        (place.batch, min(i, j), max(i, j)): one
        for place in found
        for (i, j), one in place.over.items()
    }
    bn = _number(setting)
    with_bn = sum(bn in (i, j) for _, i, j in tested)
    leads = lead_sentences(compared, names, bn)
    return _Answer(leads, beside, [*tested.values()], with_bn, len(tested) - with_bn)


def _any_complete(setting: ComparisonGroup) -> bool:
    return any(cell.of("complete") for line in setting.lines for cell in line.cells)


def _number(setting: ComparisonGroup) -> int | None:
    return next((i for i, line in enumerate(setting.lines) if line is setting.bn), None)


def _diverged(setting: ComparisonGroup) -> str:
    batches = sorted({cell.key["batch"] for line in setting.lines for cell in line.cells})
    who = "every norm" if len(setting.lines) > 1 else phrases.names(setting)[0]
    return (
        f"Every seed of {who} diverged at batch {phrases.spelled(batches)}, so there is no "
        "accuracy to compare; a smaller lr is the first thing to try."
    )


def _untested(
    found: Sequence[BatchVerdict], setting: ComparisonGroup, names: Sequence[str]
) -> list[str]:
    """Return sentences on why nothing was tested: one seed each, or no spread."""
    first, rival, one = untested_lead(setting, found)
    lead = (
        f"{names[first]} has the highest mean, {phrases.points(one.difference)} above "
        f"{names[rival]} at batch {found[0].batch} ({phrases.seeds(one.n_a, one.n_b)})"
    )
    if one.why == TOO_FEW:
        return [
            f"One seed decides nothing: {lead}, and nothing says how far another seed would move "
            "it.",
            f"Train seeds={SEEDS} of each, which adds the missing ones.",
        ]
    return [
        f"The data do not decide: {lead}, but all seeds agree exactly, which tells nothing of "
        "their spread.",
        "Train more seeds of each.",
    ]


def _nothing_in_common(setting: ComparisonGroup, names: Sequence[str]) -> str:
    """Return a sentence for norms without a common batch size."""
    sizes = [
        f"{name} at batch {phrases.spelled([cell.key['batch'] for cell in line.cells])}"
        for name, line in zip(names, setting.lines)
    ]
    first = phrases.spelled([cell.key["batch"] for cell in setting.lines[0].cells])
    return (
        f"Nothing can be compared: {phrases.some(sizes)} have no batch size in common; train all "
        f"of them at batch {first}."
    )


def _single_norm(
    setting: ComparisonGroup, name: str, flatness: Sequence[dict[str, Any]]
) -> list[str]:
    """Return sentences for a study of one norm, with the accuracy lost at its smallest batch."""
    (line,) = setting.lines
    which = "other norms" if line.norm == "bn" else "norm=bn"
    batches = phrases.spelled([cell.key["batch"] for cell in line.cells])
    sentences = [f"Only {name} was trained; train {which} at batch {batches} to compare."]
    for row in flatness:
        here = all(row.get(key) == value for key, value in line.cells[0].key.items())
        if here and row["p_holm"] == row["p_holm"]:
            return [*sentences, _lost(row)]
    return sentences


def _lost(row: dict[str, Any]) -> str:
    verb = "does not clearly move"
    if row["p_holm"] <= ALPHA:
        verb = "loses accuracy" if row["difference"] < 0 else "gains accuracy"
    bounds = phrases.bounds(row["lo_simultaneous"], row["hi_simultaneous"])
    family = f"simultaneous over {row['family']} comparisons (Holm)"
    return (
        f"From batch {row['reference_batch']} to {row['batch']} it {verb}: "
        f"{100 * row['difference']:+.1f} points (95 % interval {bounds}, "
        f"{phrases.seeds(row['n'], row['n_reference'])}), "
        f"{family if row['family'] > 1 else 'the only comparison'}."
    )


def _method(answers: Sequence[_Answer], margin: float) -> list[str]:
    """Return in a list the sentence on what the intervals hold; empty if nothing was tested."""
    tested = [one for each in answers for one in each.tested]
    if not tested:
        return []
    over = " within each setting"
    if len(answers) == 1:
        n, m = answers[0].with_bn, answers[0].others
        counted = [f"{n} comparison{'s' * (n != 1)} with BN"] * bool(n)
        counted += [f"{m} between {'other ' * bool(n)}norms"] * bool(m)
        over = f" over {' and '.join(counted)}"
    seeds, images, is_bound = typical_errors(tested)
    sources = f"a typical standard error is {100 * seeds:.2f} points from seeds"
    if images is not None:
        bound = " (an upper bound)" * is_bound
        sources += f" and {100 * images:.2f} from test images{bound}"
    return [
        f"Intervals are simultaneous{over} (Holm); {sources}; a lead counts beyond "
        f"{phrases.margin(margin)}."
    ]

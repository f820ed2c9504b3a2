"""The words for a study that does not decide between BN and the best of the other norms."""

from collections.abc import Sequence

from gnexp.study import answer_words as words
from gnexp.study.answer_leads import Place
from gnexp.study.comparisons import Setting, Versus
from gnexp.study.inference import BEHIND, MOST_SEEDS, UNDECIDED, seeds_to_decide

MOST = 5  # names in one list


def tie(found: Sequence[Place], setting: Setting) -> list[str]:
    """Return the clauses of a study in which no place is decided: the tie, and what would end it.

    found: a Place per batch size, every one UNDECIDED.
    """
    batches = {place.batch for place in found}
    main = [place.line for place in found]
    named, behind, shown = [], [], []
    for line, pairs in sorted(setting.pairs, key=lambda pair: pair[0] is not main[0]):
        verdicts = {one.batch: one.adjusted.verdict for one in pairs if one.batch in batches}
        lost = [batch for batch, verdict in verdicts.items() if verdict == BEHIND]
        if lost:
            behind.append(f"BN leads {words.name(line)} at batch {words.spelled(lost)}")
        if line in main or (not lost and UNDECIDED in verdicts.values()):
            named.append(words.name(line))
            shown += [one for one in pairs if one.adjusted.verdict == UNDECIDED]
    widest = max(shown, key=lambda one: abs(one.difference.difference))
    if len(named) >= MOST:
        named[MOST - 2 :] = [f"{len(named) - MOST + 2} more norms"]
    of = " is"
    if len(named) > 1:
        (line,) = [ln for ln, pairs in setting.pairs if any(one is widest for one in pairs)]
        of = f" from BN is that of {words.name(line)}:"
    size = words.points(widest, True, f" at batch {widest.batch}")
    first = (
        f"The data do not decide between {words.spelled([*named, 'BN'])} at batch "
        f"{words.spelled(sorted(batches))}: the largest difference{of} {size}"
    )
    if len(behind) > 2:
        behind = [f"BN leads {len(behind)} norms at some batch sizes (in the tables)"]
    return [first, *behind, _would_decide(shown)]


def _would_decide(pairs: Sequence[Versus]) -> str:
    widest = max(pairs, key=lambda one: abs(one.difference.difference))
    low, high = seeds_to_decide(widest.difference, widest.adjusted.family)
    if low > MOST_SEEDS:
        return f"more than {MOST_SEEDS} seeds of each would be needed"
    most = str(high) if high <= MOST_SEEDS else f"more than {MOST_SEEDS}"
    return f"{low} to {most} seeds of each would decide the largest difference"

"""The words of the answer: names of norms, lists of batch sizes, differences with n."""

import math
from collections.abc import Sequence

from gnexp.study.cells import NORM_LABELS, Cell, Series, as_typed
from gnexp.study.comparisons import Setting, Versus
from gnexp.study.inference import TOO_FEW as TOO_FEW


def mean(cell: Cell) -> float:
    """Return the mean accuracy, diverged seeds at chance; -1 without a finished seed."""
    return math.fsum(cell.scored) / len(cell.scored) if cell.scored else -1.0


def name(line: Series) -> str:
    """Return 'GN with 8 groups', or the series' label where that says more."""
    plain = NORM_LABELS.get(line.norm, line.norm)
    if line.norm == "none":  # "no norm leads BN" would say something else
        return f"none (no normalization){_more(line.label.removeprefix(plain))}"
    groups, width = line.key.get("groups"), line.key.get("channels_per_group")
    for value, label, what in (
        (width, f"{plain}({width} per group)", f"{width} channels per group"),
        (groups, f"{plain}({groups})", f"{groups} group{'s' * (groups != 1)}"),
    ):
        if value is not None:
            return f"{plain} with {what}{_more(line.label.removeprefix(label))}"
    return f"{plain}{_more(line.label.removeprefix(plain))}"


def _more(rest: str) -> str:
    """Return what else tells the series apart, but for what the answer tells of all of them."""
    kept = [
        p for p in rest.split(", ") if p and not p.startswith(("update ", "tuned=", "lr=tuned"))
    ]
    return f" ({', '.join(kept)})" if kept else ""


def spelled(items: Sequence[object]) -> str:
    """Return '1, 2 and 4'."""
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def some(items: Sequence[str], most: int = 4) -> str:
    """Return '1, 2 and 4', of more than `most` the first few 'and 9 more'."""
    if len(items) <= most:
        return spelled(items)
    return f"{', '.join(items[: most - 1])} and {len(items) - most + 1} more"


def where(batches: Sequence[int], all_batches: Sequence[int]) -> str:
    """Return 'At every batch size compared (1 and 2)', 'Up to batch 4', 'From batch 8 up', ..."""
    if len(batches) == len(all_batches) > 1:
        return f"At every batch size compared ({spelled(all_batches)})"
    n = len(batches)
    if n > 1 and list(batches) == list(all_batches[:n]):
        return f"Up to batch {batches[-1]}"
    if n > 1 and list(batches) == list(all_batches[-n:]):
        return f"From batch {batches[0]} up"
    return f"At batch {spelled(batches)}"


def points(one: Versus, signed: bool = False, place: str = "", rival: str = "BN") -> str:
    """Return the size of the difference with its simultaneous interval, n, and what diverged.

    Unsigned it is the lead of the one that is ahead; signed it is the norm minus the rival.
    place: words between the size and what stands in parentheses.
    """
    d, lo, hi = one.difference.difference, one.adjusted.lo, one.adjusted.hi
    if not signed and d < 0:
        d, lo, hi = -d, -hi, -lo
    size = f"{100 * d:{'+' * signed}.1f} points{place}"
    a, b = one.difference.n_a, one.difference.n_b
    n = str(a) if a == b else f"{a} and {b}"
    lost = ""
    for who, cell in (("it", one.cell), (rival, one.other)):
        diverged = len(cell.of("diverged"))
        if diverged:
            lost += f"; {who} diverged in {diverged} of {len(cell.scored)}, counted at chance"
    lost = lost.replace("; it diverged", "; the norm diverged")
    return f"{size} (95 % interval {bounds(lo, hi)}, n = {n}{lost})"


def bounds(lo: float, hi: float) -> str:
    """Return '10.9 to 13.7', in points; 'above 0 to 5.2' where the end at 0 is Holm's decision."""
    below, above = ("0.0" if abs(end) < 5e-4 else f"{100 * end:.1f}" for end in (lo, hi))
    if lo == 0:
        below = "above 0"
    if hi == 0:
        above = "below 0"
    return f"{below} to {above}"


def count(n: float) -> str:
    """Return a number of seeds; beyond counting, 'over a million'."""
    return "over a million" if math.isinf(n) else str(n)


def method(family: int, what: str, of: str) -> str:
    """Return what the intervals are simultaneous over."""
    if family == 1:
        return f"the interval is that of the only {what} {of}"
    return f"intervals are simultaneous over {family} {what}s {of} (Holm)"


def sentence(clauses: Sequence[str]) -> str:
    """Return the clauses as one sentence."""
    text = "; ".join([clauses[0], *(_lower(clause) for clause in clauses[1:])])
    return f"{text[0].upper()}{text[1:]}."


def _lower(clause: str) -> str:
    starts = ("At ", "From ", "Up ")  # any other capital is a norm's own
    return clause[0].lower() + clause[1:] if clause.startswith(starts) else clause


def setting(one: Setting, among: Sequence[Setting]) -> str:
    """Return what tells a setting from the others: 'With model resnet8 and update batch 64'."""
    told = []
    for key, value in one.key.items():
        if len({repr(other.key.get(key)) for other in among}) > 1:
            value = "equal to the batch" if value == "= batch" else as_typed(value)
            told.append(f"{'update batch' if key == 'update' else key} {value}")
    return f"With {spelled(told)}" if told else "In the setting with most cells"

"""The facts beside an answer: what it leaves out, and the training behind it."""

from collections.abc import Sequence
from typing import Any

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.comparisons import ComparisonGroup
from gnexp.analysis.leaders import BatchVerdict
from gnexp.analysis.lr_search import TUNED
from gnexp.report.templates import write
from gnexp.report.text import phrases

MOST = 3  # clauses of one kind; the tables have them all
Batches = tuple[int, ...]  # empty: all of them
# Passes over the training images under which training is called short. Measured on all of CIFAR-10:
# the lead of BN at batch 32 is 5.0 points after 12 passes and 2.6 after 60.
SHORT = 30


def gaps(
    setting: ComparisonGroup, found: Sequence[BatchVerdict], names: Sequence[str]
) -> list[str]:
    """Return in a list the sentence on what the answer leaves out; empty where that is nothing."""
    missing = _missing(setting, names)
    one_seed, no_spread = _untested(found, names)
    untested = dict.fromkeys(
        name for kind in (one_seed, no_spread) for of in kind.values() for name in of
    )
    clauses = write(
        "gaps.j2",
        MOST=MOST,
        with_bn=setting.bn,
        tuned=setting.key.get("lr") == "tuned",  # at other rates BN may have been trained
        missing=missing,
        everyone_missing=[name for of in missing.values() for name in of],
        one_seed=one_seed,
        no_spread=no_spread,
        everyone_untested=list(untested),
        untuned=_untuned(setting, names),
    )
    return [f"{phrases.capital('; '.join(clauses))}."] if clauses else []


def _missing(
    setting: ComparisonGroup, names: Sequence[str]
) -> dict[tuple[str, Batches], list[str]]:
    """Return who lacks which of the batch sizes that any has, or was trained at which only."""
    batches = [tuple(c.key["batch"] for c in line.cells if c.scored) for line in setting.lines]
    every = sorted({batch for mine in batches for batch in mine})
    found: dict[tuple[str, Batches], list[str]] = {}
    for name, mine in zip(names, batches):
        lost = tuple(batch for batch in every if batch not in mine)
        kind = ("only", mine) if len(mine) <= len(lost) else ("missing", lost)
        if lost:
            found.setdefault(kind if mine else ("without", ()), []).append(name)
    return found


def _untested(
    found: Sequence[BatchVerdict], names: Sequence[str]
) -> tuple[dict[Batches, list[str]], dict[Batches, list[str]]]:
    """Return who has one seed, and who has no spread, where they were trained beside others."""
    one_seed: dict[Batches, list[str]] = {}
    no_spread: dict[Batches, list[str]] = {}
    for i, name in enumerate(names):
        here = [place for place in found if i in place.cells]
        few = tuple(place.batch for place in here if len(place.cells[i].scored) < 2)
        if few:
            one_seed.setdefault(() if len(few) == len(here) else few, []).append(name)
        alike = (p.batch for p in here if p.over and i not in p.compared and p.batch not in few)
        if batches := tuple(alike):
            no_spread.setdefault(batches, []).append(name)
    return one_seed, no_spread


def _untuned(setting: ComparisonGroup, names: Sequence[str]) -> dict[Batches, list[str]]:
    """Return whose learning rates were not tuned where others' were; empty if all are alike."""
    tuned = {cell.key.get("tuned") for line in setting.lines for cell in line.cells}
    found: dict[Batches, list[str]] = {}
    for name, line in zip(names, setting.lines) if {True, False} <= tuned else ():
        lost = tuple(c.key["batch"] for c in line.cells if c.key.get("tuned") is False)
        if lost:
            found.setdefault(() if len(lost) == len(line.cells) else lost, []).append(name)
    return found


def training(groups: Sequence[Sequence[Series]], tuned: bool) -> list[list[str]]:
    """Return of each group of series the sentence on its training, in a list.

    Empty where nothing of it is known. Groups that were trained alike share a sentence, with the
    training accuracies of all of them. tuned: whether rates were tuned where a cell's key does not
    say.
    """
    of = [[cell for line in lines for cell in line.cells] for lines in groups]
    budgets = [_budget(cells, tuned) for cells in of]
    if all(_sentence(budget, ()) == _sentence(budgets[0], ()) for budget in budgets):
        of = [[cell for cells in of for cell in cells]] * len(of)
    return [_sentence(budget, cells) for budget, cells in zip(budgets, of)]


def _sentence(budget: dict[str, Any], cells: Sequence[Cell]) -> list[str]:
    known = [[*cell.numbers("train_acc").values()] for cell in cells]
    reached = [sum(values) / len(values) for values in known if values]
    return write("training_length.j2", **budget, train_accuracies=reached) if budget else []


def _budget(cells: Sequence[Cell], tuned: bool) -> dict[str, Any]:
    """Return passes, images and learning rates; nothing where no seed is complete."""
    passes = sorted(
        seen / images
        for cell in cells
        for seen in cell.numbers("examples_seen").values()
        if (images := _images(cell)) and seen
    )
    if not passes:
        return {}
    was_tuned = {bool(cell.key.get("tuned", tuned)) for cell in cells}
    return {
        "passes": (passes[0], passes[-1]),
        "short": passes[0] < SHORT,
        "images": sorted({_images(cell) for cell in cells}),
        "tuned": "some" if len(was_tuned) > 1 else "all" if True in was_tuned else "none",
        "rates": list({cell.record.config.get("lr") for cell in cells} - {TUNED, None}),
    }


def _images(cell: Cell) -> int:
    return int(cell.record.result.get("data", {}).get("train") or 0)


def update_rule(lines: Sequence[Series]) -> list[str]:
    """Return in a list whose the effects of batch size are; empty for one batch size."""
    if len({cell.key["batch"] for line in lines for cell in line.cells}) < 2:
        return []
    rules = {line.key.get("update") for line in lines}
    return write("update_rule.j2", rule=rules.pop()) if len(rules) == 1 else []

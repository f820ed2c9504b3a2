"""Sentences on the training behind an answer: its length, its accuracy, its learning rates."""

from collections.abc import Sequence
from typing import Any

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.lr_search import TUNED
from gnexp.report.text.sentences import write

# Passes over the training images under which training is called short. Measured on all of CIFAR-10:
# the lead of BN at batch 32 is 5.0 points after 12 passes and 2.6 after 60.
SHORT = 30


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
    reached = _train_accuracies(cells)
    return write("training_length.j2", **budget, train_accuracies=reached) if budget else []


def _budget(cells: Sequence[Cell], tuned: bool) -> dict[str, Any]:
    """Return passes, images and learning rates; nothing where no seed is complete."""
    passes = sorted(one for cell in cells for one in _passes(cell))
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


def _passes(cell: Cell) -> list[float]:
    seen = [row["examples_seen"] for row in cell.of("complete") if row.get("examples_seen")]
    return [n / _images(cell) for n in seen] if _images(cell) else []


def _train_accuracies(cells: Sequence[Cell]) -> list[float]:
    """Return the mean over the complete seeds of each cell where it is known."""
    found = [[row.get("train_acc") for row in cell.of("complete")] for cell in cells]
    known = [[value for value in values if value is not None] for values in found]
    return [sum(values) / len(values) for values in known if values]


def update_rule(lines: Sequence[Series]) -> list[str]:
    """Return in a list whose the effects of batch size are; empty for one batch size."""
    if len({cell.key["batch"] for line in lines for cell in line.cells}) < 2:
        return []
    rules = {line.key.get("update") for line in lines}
    if rules == {"= batch"}:
        return [
            "Each update used one batch, so effects of batch size are those of norm and optimizer "
            "together."
        ]
    if len(rules) == 1:
        of = f"Every update used {rules.pop()} images"
        return [f"{of}, so effects of batch size are the norm's alone."]
    return []

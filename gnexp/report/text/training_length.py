"""Sentences on the training behind an answer: its length, its accuracy, its learning rates."""

from collections.abc import Sequence

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.lr_search import TUNED
from gnexp.report.text import phrases

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
    parts = [_budget(cells, tuned) for cells in of]
    if len(set(parts)) == 1:
        of = [[cell for cells in of for cell in cells]] * len(of)
    return [_sentence(budget, cells) for budget, cells in zip(parts, of)]


def _budget(cells: Sequence[Cell], tuned: bool) -> tuple[str, bool]:
    """Return passes, images and learning rates in words, and whether training was short."""
    passes = sorted(one for cell in cells for one in _passes(cell))
    if not passes:
        return "", False
    images = sorted({_images(cell) for cell in cells})
    many = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    return f"{_range(passes)} over {many} images, {_rates(cells, tuned)}", passes[0] < SHORT


def _sentence(budget: tuple[str, bool], cells: Sequence[Cell]) -> list[str]:
    text, short = budget
    if not text:
        return []
    parts = f"{'Training was short:' if short else 'Trained for'} {text}"
    reached = [accuracy for cell in cells for accuracy in _train_accuracy(cell)]
    parts += f"; final training accuracy {phrases.percents(reached)}" if reached else ""
    return [f"{parts}.{' The answer holds for this budget.' * short}"]


def _images(cell: Cell) -> int:
    return int(cell.record.result.get("data", {}).get("train") or 0)


def _passes(cell: Cell) -> list[float]:
    seen = [row["examples_seen"] for row in cell.of("complete") if row.get("examples_seen")]
    return [n / _images(cell) for n in seen] if _images(cell) else []


def _range(passes: Sequence[float]) -> str:
    low, high = (f"{n:.0f}" if n >= 10 else f"{n:.1f}".removesuffix(".0") for n in _ends(passes))
    return f"{low} pass{'es' * (low != '1')}" if low == high else f"{low} to {high} passes"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return values[0], values[-1]


def _train_accuracy(cell: Cell) -> list[float]:
    """Return the mean over the complete seeds, in a list; empty if unknown."""
    found = [row["train_acc"] for row in cell.of("complete") if row.get("train_acc") is not None]
    return [sum(found) / len(found)] if found else []


def _rates(cells: Sequence[Cell], tuned: bool) -> str:
    was_tuned = {bool(cell.key.get("tuned", tuned)) for cell in cells}
    if was_tuned == {True}:
        return "at learning rates tuned for each norm and batch size"
    if was_tuned == {True, False}:
        return "at learning rates of which some were tuned"
    rates = {cell.record.config.get("lr") for cell in cells} - {TUNED, None}
    if len(rates) == 1:
        return f"at one learning rate for all ({rates.pop():g}, not tuned)"
    return "at learning rates that were not tuned"


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

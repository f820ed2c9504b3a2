"""Each cell's accuracies as a sample: over seeds, and over test images.

Seeds and test images are crossed: every seed of a cell is tested on the same images. With Y_si = 1
where seed s is right about image i, Y_si = mean + seed_s + image_i + rest_si. The variance between
seeds' accuracies estimates var(seed) + var(rest) / N, so what a fresh draw of test images adds to
it is var(image) / N alone: the variance over images of the mean over seeds, less the rest in it.

Shapes: S seeds, N test images.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gnexp.analysis.cells import Cell
from gnexp.analysis.moderated_variance import keeps_own_variance, moderate

CROSSED, BOUND = "crossed", "bound"


@dataclass(frozen=True)
class Sample:
    """Accuracies of one cell, 0..1, diverged seeds at chance.

    mean, n: of the seeds. own_variance: of one seed's accuracy; variance, dof: the same moderated
    over the setting (nan and 0 for one seed); prior_dof: the part of dof that the prior gave;
    scatters: whether the cell is known to be one that may scatter more than others. images: how
    many test images, 0 if unknown; test_set: which. score_N: (N,) share of seeds that are right
    about each image, None where that is not recorded for every seed; rest: the part of the variance
    of score_N that other seeds would not repeat.
    """

    mean: float
    n: int
    own_variance: float
    variance: float
    dof: float
    prior_dof: float
    scatters: bool
    images: int
    test_set: str
    score_N: np.ndarray | None
    rest: float


def samples(cells: Iterable[Cell]) -> dict[int, Sample]:
    """Return {id(cell): Sample} of one comparable setting's cells that have a finished seed."""
    cells = [cell for cell in cells if cell.scored]
    several = [cell for cell in cells if len(cell.scored) > 1]
    spreads = {}
    if several:
        own = np.array([np.var(cell.scored, ddof=1) for cell in several])
        own_dof = np.array([len(cell.scored) - 1.0 for cell in several])
        shared = np.array([not keeps_own_variance(cell) for cell in several])
        variance, dof = moderate(own, own_dof, shared)
        columns = np.stack([own, variance, dof, dof - own_dof], axis=1).tolist()
        spreads = {id(cell): spread for cell, spread in zip(several, columns)}
    unknown = [math.nan, math.nan, 0.0, 0.0]
    return {id(cell): _sample(cell, spreads.get(id(cell), unknown)) for cell in cells}


def _sample(cell: Cell, spread: Sequence[float]) -> Sample:
    held_out = getattr(cell.record, "config", {}).get("data", {}).get("validation")
    test_set = f"{cell.record.result.get('data', {}).get('checksum')} {held_out}"
    tested = (cell.test_images, test_set, *_over_images(cell))
    return Sample(cell.mean, len(cell.scored), *spread, keeps_own_variance(cell), *tested)


def _over_images(cell: Cell) -> tuple[np.ndarray | None, float]:
    """Return score_N and rest of a Sample; (None, nan) where not every seed's images are known."""
    correct = [*cell.correct.values()]
    if not correct or len(correct) < len(cell.accuracies):
        return None, math.nan
    score_N, rest = over_images(np.stack(correct))
    share = len(correct) / (len(correct) + cell.diverged)
    return (share * score_N + (1 - share) / cell.classes).astype(np.float32), share**2 * rest


def over_images(right_SN: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (share of seeds that are right about each image (N,), what of its variance is rest).

    right_SN: (S, N) bool. rest = residual mean square of the two-way layout / S. Of one seed it
    cannot be told from the images' own part and is taken for 0, which overstates the latter.
    """
    seeds, images = right_SN.shape
    score_N = right_SN.mean(axis=0)
    if seeds < 2 or images < 2:
        return score_N, 0.0
    rest_SN = right_SN - score_N - right_SN.mean(axis=1, keepdims=True) + right_SN.mean()
    return score_N, float((rest_SN**2).sum()) / ((seeds - 1) * (images - 1)) / seeds


def image_variance(terms: Sequence[tuple[float, Sample]]) -> tuple[float, float, str]:
    """Return what other test images add to the variance of sum weight x accuracy, its dof, and how.

    CROSSED: from which images each network is right about, over samples of one test set together,
    so that images hard for both sides of a difference cancel. BOUND, where only the accuracies are
    known: W^2 p (1 - p) / N of each side, W its weights in sum and p its mean accuracy, as if all
    seeds of a side erred on the same images. (0, inf, "") where N is unknown.
    """
    if any(sample.images < 2 for _, sample in terms):
        return 0.0, math.inf, ""
    images = min(sample.images for _, sample in terms)
    sets: dict[str, list[tuple[float, Sample]]] = {}
    for term in terms:
        sets.setdefault(term[1].test_set, []).append(term)
    if all(sample.score_N is not None for _, sample in terms):
        return sum(map(_crossed, sets.values())), images - 1.0, CROSSED
    sides = [[t for t in of if (t[0] > 0) == up] for of in sets.values() for up in (True, False)]
    return sum(_bound(side) for side in sides if side), images - 1.0, BOUND


def _crossed(terms: Sequence[tuple[float, Sample]]) -> float:
    """Return the variance of a sum over one test set, of whose images it is known who is right."""
    score_N = sum(w * sample.score_N for w, sample in terms)
    rest = sum(w * w * sample.rest for w, sample in terms)
    variance = float(np.var(score_N, ddof=1, dtype=np.float64)) - rest
    return max(0.0, variance) / terms[0][1].images


def _bound(side: Sequence[tuple[float, Sample]]) -> float:
    """Return the largest variance that one side of a difference can have over one test set."""
    weight = sum(abs(w) for w, _ in side)
    p = sum(abs(w) * sample.mean for w, sample in side) / weight
    return weight**2 * max(p * (1 - p), 0.0) / side[0][1].images

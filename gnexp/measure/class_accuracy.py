"""Accuracy per class and calibration, from the test logits of a run.

A model with a logit that is not finite has diverged, and its numbers here are nan: float16, in
which logits are stored, ends at 65504.

Shapes: N test images, K classes, S seeds, P permutations.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gnexp.data.seeding import generator

_AT_ONCE = 2**22  # permuted values in memory


def class_accuracies(logits_NK: Tensor, y_N: Tensor, classes: Sequence[str]) -> list[dict]:
    """Return a row {class, n, accuracy} for each class, in the order of `classes`.

    n: its test images; accuracy: the share of them whose largest logit is that of the class, in
    [0, 1]; nan without images or if any logit is not finite.
    """
    hits_N = (logits_NK.argmax(dim=1) == y_N).double()
    finite = bool(logits_NK.isfinite().all())
    rows = []
    for index, name in enumerate(classes):
        own = hits_N[y_N == index]
        accuracy = own.mean().item() if len(own) and finite else math.nan
        rows.append({"class": name, "n": len(own), "accuracy": accuracy})
    return rows


def calibration_error(logits_NK: Tensor, y_N: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error in [0, 1]; nan if any logit is not finite.

    Images are binned by confidence, the largest softmax probability, into `bins` intervals of equal
    width, open below and closed above; the error is the mean over images of |mean confidence -
    accuracy| of their bin. Computed in float64, so that no rounding moves an image across an edge
    that its probability does not lie on. It is biased upwards: a calibrated model has up to
    about 0.4 sqrt(bins in use / N).
    Source: `_ECELoss` of the authors of Guo et al. 2017, github.com/gpleiss/temperature_scaling.
    """
    if not logits_NK.isfinite().all():
        return math.nan
    confidence_N, predicted_N = logits_NK.double().softmax(dim=1).max(dim=1)
    bin_N = (confidence_N * bins).ceil().long().clamp(1, bins) - 1
    # |sum confidence - sum hits| of a bin, over N, is its gap times its share of the images.
    excess_N = confidence_N - (predicted_N == y_N).double()
    excess_B = torch.zeros(bins, dtype=torch.float64, device=bin_N.device)
    return (excess_B.index_add_(0, bin_N, excess_N).abs().sum() / len(y_N)).item()


def chance_gap(
    hits_SN: Tensor, y_N: Tensor, permutations: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Return the gap between best and worst class expected by chance at this test size.

    hits_SN: whether each of S seeds got each of N test images right; leave diverged seeds out. A
    gap is best minus worst class accuracy, after averaging over the seeds, in [0, 1]. Keys:
    chance_gap, its mean where classes do not matter; chance_gap_95, the 95 % quantile of that;
    gap_p, the share of such gaps that reach the observed one, (1 + count) / (1 + permutations),
    so never 0.

    Where classes do not matter, images may be dealt anew to the classes, whose sizes are kept (a
    class without images takes no part). An image keeps its number of hits, so that more seeds make
    the chance gap smaller only as far as they disagree. Not included: training (one or two seeds
    say that these models treat classes unequally, not that the norm does); images in clusters, such
    as several of one patient; a correction of the observed gap, which is too large by at most about
    chance_gap. The null is equal distributions of difficulty. Raises ValueError with fewer than two
    classes that have images.
    """
    hits_SN, y_N = torch.as_tensor(hits_SN).cpu(), torch.as_tensor(y_N).cpu()
    sizes_K = torch.unique(y_N, return_counts=True)[1]
    if len(sizes_K) < 2:
        raise ValueError(f"{len(sizes_K)} class has test images; a gap needs at least 2")
    hits_N = hits_SN.long().sum(dim=0)
    observed = _gaps(hits_N[None, y_N.argsort()], sizes_K)
    gaps_P = _gaps_by_chance(hits_N, sizes_K, permutations, generator(seed, "chance gap"))
    reached = int((gaps_P >= observed).sum())
    gaps_P = gaps_P / len(hits_SN)
    return {
        "chance_gap": gaps_P.mean().item(),
        "chance_gap_95": gaps_P.quantile(0.95).item(),
        "gap_p": (1 + reached) / (1 + permutations),
    }


def _gaps_by_chance(
    hits_N: Tensor, sizes_K: Tensor, permutations: int, draws: torch.Generator
) -> Tensor:
    gaps, step = [], max(1, _AT_ONCE // len(hits_N))
    for first in range(0, permutations, step):
        count = min(step, permutations - first)
        orders = [torch.randperm(len(hits_N), generator=draws) for _ in range(count)]
        gaps.append(_gaps(hits_N[torch.stack(orders)], sizes_K))
    return torch.cat(gaps)


def _gaps(hits_PN: Tensor, sizes_K: Tensor) -> Tensor:
    """Return (P,): largest minus smallest mean over blocks of `sizes_K` consecutive columns.

    Sums are of integers, so that equal gaps are equal to the last bit.
    """
    ends_PK = hits_PN.cumsum(dim=1)[:, sizes_K.cumsum(dim=0) - 1]
    sums_PK = ends_PK.diff(dim=1, prepend=ends_PK.new_zeros(len(ends_PK), 1))
    means_PK = sums_PK.double() / sizes_K
    return means_PK.amax(dim=1) - means_PK.amin(dim=1)
